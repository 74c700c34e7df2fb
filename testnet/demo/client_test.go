package demo

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"latchkey/internal/history"
	"latchkey/lockservice"
)

// host is a process that is killed after so many effects.
type host struct {
	mu     sync.Mutex
	left   int // -1: never killed
	killed chan struct{}
}

func (h *host) Index() int              { return 3 }
func (h *host) Killed() <-chan struct{} { return h.killed }

func (h *host) Do(effect func()) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch h.left {
	case 0:
		return false
	case 1:
		defer close(h.killed)
	}
	h.left--
	effect()
	return true
}

// grant is a hold that the test makes up.
type grant struct {
	token   lockservice.Token
	ctx     context.Context
	release error
}

func (g grant) Token() lockservice.Token      { return g.token }
func (g grant) Context() context.Context      { return g.ctx }
func (g grant) Release(context.Context) error { return g.release }

// living returns a client of a run with two clients of two increments, in a process that lives for so many effects and gets
// these grants.
func living(t *testing.T, effects int, grants ...grant) *client {
	t.Helper()
	d := newDemo(Options{Clients: 2, Each: 2}, filepath.Join(t.TempDir(), "counter"))
	c := &client{d: d, id: 1, name: 7, peer: &host{left: effects, killed: make(chan struct{})}}
	c.take = func(context.Context) (hold, error) {
		if len(grants) == 0 {
			return nil, errors.New("test: no grant left")
		}
		g := grants[0]
		grants = grants[1:]
		if g.ctx == nil {
			g.ctx = t.Context()
		}
		return g, nil
	}
	return c
}

func (d *demo) content(t *testing.T) counter {
	t.Helper()
	_, data, err := d.file.Read()
	if err != nil {
		t.Fatal(err)
	}
	c, err := parseCounter(data, d.opts.Clients)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// recorded prints the history, a word for each operation: its kind, with "?" when it is open and "!" when the answer was no.
func (d *demo) recorded() string {
	var words []string
	for _, o := range d.history.Operations() {
		word := string(o.Op.Kind)
		switch {
		case o.Return == 0:
			word += "?"
		case o.Op.Kind == history.KindRelease && !o.Answer.OK:
			word += "!"
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

func TestAClientMakesItsIncrementsAndKnowsWhenItIsDone(t *testing.T) {
	c := living(t, -1, grant{token: 5}, grant{token: 8})
	if err := c.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := c.d.content(t)
	if n.Value != 2 || n.Last[1] != 2 || n.Writes[1] != (write{Token: 8, Client: 1, N: 2, Value: 2}) {
		t.Errorf("%+v", n)
	}
	if got, want := c.d.recorded(), "acquire release acquire release"; got != want {
		t.Errorf("recorded %q, want %q", got, want)
	}
}

// A turn has six effects: it asks for the lock, is granted it, claims the file, writes it, asks to release, is answered. Killed
// between any two, nothing of the later ones may be seen.
func TestAKilledClientStopsBetweenAnyTwoOfItsEffects(t *testing.T) {
	for effects, want := range []struct {
		value    int
		recorded string
	}{
		{0, ""}, {0, "acquire?"}, {0, "acquire"}, {0, "acquire"}, {1, "acquire"}, {1, "acquire release?"}, {1, "acquire release"},
	} {
		c := living(t, effects, grant{token: 5}, grant{token: 6})
		if err := c.run(t.Context()); !errors.Is(err, errKilled) {
			t.Errorf("killed after %d effects: %v", effects, err)
		}
		if got := c.d.recorded(); c.d.content(t).Value != want.value || got != want.recorded {
			t.Errorf("killed after %d effects: counter %d, recorded %q; want %d, %q", effects, c.d.content(t).Value, got, want.value, want.recorded)
		}
	}
}

func TestTheNextLifeGoesOnFromWhatTheFileSays(t *testing.T) {
	c := living(t, 4, grant{token: 5}) // written, not released
	if err := c.run(t.Context()); !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	next := living(t, -1, grant{token: 6}, grant{token: 7})
	next.d.file = c.d.file
	if err := next.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := next.d.content(t)
	if n.Value != 2 || n.Writes[1] != (write{Token: 6, Client: 1, N: 2, Value: 2}) {
		t.Errorf("%+v", n)
	}
	// A life that finds all done releases and ends.
	last := living(t, -1, grant{token: 8})
	last.d.file = c.d.file
	if err := last.run(t.Context()); err != nil || last.d.content(t).Value != 2 || last.d.recorded() != "acquire release" {
		t.Errorf("%v, %+v, recorded %q", err, last.d.content(t), last.d.recorded())
	}
}

func TestAClientThatLostTheLockWritesNothingAndSaysSo(t *testing.T) {
	lost, lose := context.WithCancelCause(t.Context())
	lose(&lockservice.LostError{})
	for name, g := range map[string]grant{
		"its lease has run out":         {token: 9, ctx: lost},
		"a later holder has written":    {token: 3},
		"told when the lock was needed": {token: 9, ctx: lost, release: lockservice.ErrNotHeld},
	} {
		t.Run(name, func(t *testing.T) {
			c := living(t, -1, g)
			other := c.d.content(t).increment(4, 0, 1)
			if err := c.d.file.Write(4, other.encode()); err != nil {
				t.Fatal(err)
			}
			done, err := c.turn(t.Context())
			if done || err != nil || c.next > 1 {
				t.Errorf("%v, %v, next is increment %d", done, err, c.next)
			}
			// Once when told, and once more when it looked, whichever comes first.
			got := strings.ReplaceAll(c.d.recorded(), "lost? lost?", "lost?")
			if c.d.content(t).Value != 1 || got != "acquire lost?" {
				t.Errorf("counter %d, recorded %q", c.d.content(t).Value, got)
			}
		})
	}
}

func TestAReleaseOfUnknownOutcomeStaysOpen(t *testing.T) {
	for want, err := range map[string]error{
		"acquire release?": lockservice.ErrOutcomeUnknown,
		"acquire release!": lockservice.ErrNotHeld,
		"acquire release":  nil,
	} {
		c := living(t, -1, grant{token: 5, release: err})
		if _, err := c.turn(t.Context()); err != nil {
			t.Error(err)
		}
		if got := c.d.recorded(); got != want {
			t.Errorf("release that answers %v: recorded %q, want %q", err, got, want)
		}
	}
}

func TestAnAcquireWithoutAnswerStaysOpenAndIsMadeAgain(t *testing.T) {
	c := living(t, -1)
	if done, err := c.turn(t.Context()); done || err != nil {
		t.Errorf("%v, %v", done, err)
	}
	if got := c.d.recorded(); got != "acquire?" {
		t.Errorf("recorded %q", got)
	}
}
