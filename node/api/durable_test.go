package api_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"latchkey/coherence"
	"latchkey/coherence/access"
	"latchkey/coherence/protocol"
	"latchkey/lockservice"
	"latchkey/node/api"
	"latchkey/node/api/apitest"
)

// oneDurable is one durable object in memory, and every other fails as its name says.
type oneDurable struct {
	mu      sync.Mutex
	v       coherence.Value
	ttl     time.Duration
	changed chan struct{}
	turn    chan struct{} // who takes what is in it has the turn
}

func newOneDurable() *oneDurable {
	d := &oneDurable{changed: make(chan struct{}), turn: make(chan struct{}, 1)}
	d.turn <- struct{}{}
	return d
}

var failures = map[string]error{
	"stale": coherence.ErrStale, "quorum": coherence.ErrNoQuorum, "unknown": coherence.ErrOutcomeUnknown, "full": coherence.ErrFull,
	"busy": coherence.ErrBusy, "name": coherence.ErrName, "ttl": coherence.ErrTTL, "large": coherence.ErrTooLarge, "closed": coherence.ErrClosed,
}

func (d *oneDurable) GetDurable(_ context.Context, _, name string) (coherence.Value, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.v, wrapped(name)
}

func wrapped(name string) error {
	if err := failures[name]; err != nil {
		return fmt.Errorf("%w: of this object: %w", err, context.DeadlineExceeded)
	}
	return nil
}

func (d *oneDurable) StaleDurable(_ context.Context, _, name string) (coherence.Value, time.Duration, bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.v, 3 * time.Second, name == "x", nil
}

func (d *oneDurable) SetDurable(_ context.Context, _, name string, w api.DurableWrite) (coherence.Version, error) {
	if err := wrapped(name); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if w.If != nil && *w.If != d.v.Version || w.Absent && d.v.Exists {
		return 0, &coherence.ConflictError{Name: name, Found: d.v}
	}
	d.ttl = w.TTL
	return d.writeLocked(coherence.Value{Bytes: w.Value, Exists: true}), nil
}

func (d *oneDurable) writeLocked(v coherence.Value) coherence.Version {
	v.Version = d.v.Version + 1
	d.v = v
	close(d.changed)
	d.changed = make(chan struct{})
	return v.Version
}

func (d *oneDurable) RemoveDurable(_ context.Context, _, name string, version *coherence.Version) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if version != nil && *version != d.v.Version {
		return false, &coherence.ConflictError{Name: name, Found: d.v}
	}
	existed := d.v.Exists
	if existed {
		d.writeLocked(coherence.Value{})
	}
	return existed, nil
}

type oneTurn struct {
	d    *oneDurable
	once sync.Once
}

func (d *oneDurable) HoldDurable(ctx context.Context, _, name string) (api.DurableHold, error) {
	if err := wrapped(name); err != nil {
		return nil, err
	}
	select {
	case <-d.turn:
		return &oneTurn{d: d}, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (t *oneTurn) Value() coherence.Value {
	v, _ := t.d.GetDurable(context.Background(), "", "")
	return v
}

func (t *oneTurn) Commit(_ context.Context, value []byte, ttl time.Duration) (coherence.Version, error) {
	defer t.Release()
	t.d.mu.Lock()
	defer t.d.mu.Unlock()
	t.d.ttl = ttl
	return t.d.writeLocked(coherence.Value{Bytes: value, Exists: true}), nil
}

func (t *oneTurn) Release() { t.once.Do(func() { t.d.turn <- struct{}{} }) }

func (d *oneDurable) WatchDurable(ctx context.Context, _, _ string, after coherence.Version, fn func(coherence.Change) error) error {
	for {
		d.mu.Lock()
		v, changed := d.v, d.changed
		d.mu.Unlock()
		if v.Version > after {
			if err := fn(coherence.Change{Value: v, Lagged: v.Version > after+1}); err != nil {
				return err
			}
			after = v.Version
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// WatchDirectory tells a directory that is too long for one answer, and then another.
func (d *oneDurable) WatchDirectory(ctx context.Context, _, directory string, after coherence.Version, fn func(coherence.Listing, bool) error) error {
	if after > 7 {
		return fmt.Errorf("%w: it has version 7", coherence.ErrVersion)
	}
	all, _ := d.ListDurable(ctx, "", directory, "", 1000)
	if err := fn(all, false); err != nil {
		return err
	}
	if err := fn(coherence.Listing{Names: all.Names[999:], Version: 8}, true); err != nil {
		return err
	}
	if err := fn(coherence.Listing{Names: append([]string{"a"}, all.Names[999:]...), Version: 9}, false); err != nil {
		return err
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

func (d *oneDurable) ListDurable(_ context.Context, _, directory, after string, limit int) (coherence.Listing, error) {
	l := coherence.Listing{Version: 7}
	for i := range min(limit, 1000) { // each a kibibyte, so that an answer does not hold them all
		l.Names = append(l.Names, fmt.Sprintf("%s%s%s%04d", directory, after, strings.Repeat("n", 1020-len(directory)-len(after)), i))
	}
	return l, nil
}

func (d *oneDurable) Durable(ctx context.Context, app, name string) (api.DurableInfo, error) {
	v, err := d.GetDurable(ctx, app, name)
	return api.DurableInfo{Key: "ab", Version: v.Version, Exists: v.Exists, Bytes: len(v.Bytes), Group: &api.GroupInfo{ID: "0d/8", View: 2, Leader: "a", Members: []string{"a", "b"}}}, err
}

func durableWorld(t *testing.T) (*world, *oneDurable) {
	d := newOneDurable()
	return newWorld(t, func(_ *apitest.Backend, c *api.Config) { c.Durables = d }), d
}

func TestDurableObjectsTravel(t *testing.T) {
	t.Parallel()
	w, d := durableWorld(t)
	c, ctx := w.client, t.Context()
	if v, err := c.GetDurable(ctx, "a", "x"); err != nil || v.Exists || v.Bytes != nil || v.Version != 0 {
		t.Errorf("%+v, %v", v, err)
	}
	none, one, two := coherence.Version(0), coherence.Version(1), coherence.Version(2)
	if v, err := c.SetDurable(ctx, "a", "x", api.DurableWrite{If: &none, TTL: time.Minute}); err != nil || v != 1 || d.ttl != time.Minute {
		t.Errorf("%v, %v, %v", v, err, d.ttl)
	}
	if v, err := c.GetDurable(ctx, "a", "x"); err != nil || !v.Exists || v.Bytes == nil { // of no bytes, and there
		t.Errorf("%+v, %v", v, err)
	}
	var conflict *coherence.ConflictError
	for what, set := range map[string]api.DurableWrite{"never written": {If: &none}, "a later one": {If: &two}, "absent": {Absent: true}} {
		if _, err := c.SetDurable(ctx, "a", "x", set); !errors.Is(err, coherence.ErrConflict) || !errors.As(err, &conflict) || conflict.Found.Version != 1 || !conflict.Found.Exists {
			t.Errorf("%s: %v", what, err)
		}
	}
	if v, err := c.SetDurable(ctx, "a", "x", api.DurableWrite{Value: []byte("v"), If: &one}); err != nil || v != 2 || d.ttl != 0 {
		t.Errorf("%v, %v, %v", v, err, d.ttl)
	}
	if v, age, ok, err := c.StaleDurable(ctx, "a", "x"); err != nil || !ok || age != 3*time.Second || string(v.Bytes) != "v" {
		t.Errorf("%+v, %v, %v, %v", v, age, ok, err)
	}
	if _, _, ok, err := c.StaleDurable(ctx, "a", "y"); err != nil || ok {
		t.Errorf("%v, %v", ok, err)
	}
	if i, err := c.Durable(ctx, "a", "x"); err != nil || i.Version != 2 || i.Bytes != 1 || !i.Exists || i.Group.Leader != "a" || len(i.Group.Members) != 2 {
		t.Errorf("%+v, %v", i, err)
	}
	if l, err := c.ListDurable(ctx, "a", "dir", "b", 3); err != nil || len(l.Names) != 3 || l.More || l.Version != 7 || !strings.HasPrefix(l.Names[0], "dirb") {
		t.Errorf("%+v, %v", l, err)
	}
	if l, err := c.ListDurable(ctx, "a", "", "", 0); err != nil || len(l.Names) != 512 || !l.More {
		t.Errorf("%d names, %v, %v", len(l.Names), l.More, err)
	}
	if _, err := c.RemoveDurable(ctx, "a", "x", &one); !errors.Is(err, coherence.ErrConflict) {
		t.Error(err)
	}
	for _, existed := range []bool{true, false} {
		if got, err := c.RemoveDurable(ctx, "a", "x", nil); err != nil || got != existed {
			t.Errorf("%v, %v", got, err)
		}
	}
	for name, want := range failures {
		_, err := c.SetDurable(ctx, "a", name, api.DurableWrite{})
		_, getErr := c.GetDurable(ctx, "a", name)
		if !errors.Is(err, want) && !(name == "closed" && errors.Is(err, lockservice.ErrClosed)) || (getErr == nil) != (err == nil) {
			t.Errorf("%s: %v, %v", name, err, getErr)
		}
	}
	if _, err := c.SetDurable(ctx, "a", "x", api.DurableWrite{Value: make([]byte, protocol.ValueMax+1)}); !errors.Is(err, coherence.ErrTooLarge) {
		t.Error(err)
	}
	if _, err := c.SetDurable(ctx, "a", "x", api.DurableWrite{If: &one, Absent: true}); !errors.Is(err, coherence.ErrConflict) && !strings.Contains(fmt.Sprint(err), "one condition") {
		t.Error(err)
	}
	if _, err := c.SetDurable(ctx, "a", "x", api.DurableWrite{TTL: -1}); !errors.Is(err, coherence.ErrTTL) {
		t.Error(err)
	}
	// A daemon without them says so.
	if _, err := newWorld(t, nil).client.GetDurable(ctx, "a", "x"); err == nil || !strings.Contains(err.Error(), "no durable objects") {
		t.Error(err)
	}
}

func TestWatchesOfDurableObjectsTravel(t *testing.T) {
	t.Parallel()
	w, d := durableWorld(t)
	write := func(v coherence.Value, skip coherence.Version) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.v.Version += skip
		d.writeLocked(v)
	}
	write(coherence.Value{Bytes: []byte("a"), Exists: true}, 0)
	enough := errors.New("enough")
	var told []string
	if err := w.client.WatchDurable(t.Context(), "a", "x", 0, func(c coherence.Change) error {
		told = append(told, fmt.Sprint(c.Version, string(c.Bytes), c.Exists, c.Lagged))
		switch len(told) {
		case 1:
			write(coherence.Value{}, 0)
		case 2:
			write(coherence.Value{Bytes: []byte("c"), Exists: true}, 1)
		case 3:
			return enough
		}
		return nil
	}); err != enough || !slices.Equal(told, []string{"1atrue false", "2false false", "4ctrue true"}) {
		t.Errorf("%q, %v", told, err)
	}
	// It begins where it is told to, and ends with the daemon.
	told = nil
	err := w.client.WatchDurable(t.Context(), "a", "x", 3, func(c coherence.Change) error {
		told = append(told, fmt.Sprint(c.Version, c.Lagged))
		go w.server.Close()
		return nil
	})
	if !errors.Is(err, lockservice.ErrClosed) || !slices.Equal(told, []string{"4 false"}) {
		t.Errorf("%q, %v", told, err)
	}
}

// A directory is told whole, whatever it holds, and then what has changed in it.
func TestWatchesOfDirectoriesTravel(t *testing.T) {
	t.Parallel()
	w, d := durableWorld(t)
	all, _ := d.ListDurable(t.Context(), "", "dir", "", 1000)
	want := [][]string{all.Names, all.Names[999:], {"a", all.Names[999]}}
	enough := errors.New("enough")
	n := 0
	if err := w.client.WatchDirectory(t.Context(), "a", "dir", 0, func(l coherence.Listing, lagged bool) error {
		if !slices.Equal(l.Names, want[n]) || l.Version != coherence.Version(7+n) || lagged != (n == 1) {
			t.Errorf("%d names of version %d, lagged %v; want %d", len(l.Names), l.Version, lagged, len(want[n]))
		}
		if n++; n == len(want) {
			return enough
		}
		return nil
	}); err != enough {
		t.Error(err)
	}
	if err := w.client.WatchDirectory(t.Context(), "a", "dir", 8, nil); !errors.Is(err, coherence.ErrVersion) {
		t.Error(err)
	}
}

func TestChangesOfListings(t *testing.T) {
	for _, c := range []struct{ was, now, added, removed string }{
		{"", "", "", ""}, {"", "a b", "a b", ""}, {"a b", "", "", "a b"}, {"a b d", "a c d e", "c e", "b"}, {"b", "a", "a", "b"}, {"a", "a", "", ""},
	} {
		added, removed := api.Changed(strings.Fields(c.was), strings.Fields(c.now))
		if strings.Join(added, " ") != c.added || strings.Join(removed, " ") != c.removed {
			t.Errorf("%q to %q: +%q -%q", c.was, c.now, added, removed)
		}
	}
}

func TestTheTurnToWriteEndsByItself(t *testing.T) {
	t.Parallel()
	w, d := durableWorld(t)
	c, ctx := w.client, t.Context()
	h, err := c.HoldDurableFor(ctx, "a", "x", time.Minute)
	if err != nil || h.Value().Exists {
		t.Fatal(err)
	}
	// Nobody else has it meanwhile.
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := c.HoldDurableFor(short, "a", "x", time.Minute); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if _, err := h.Commit(ctx, make([]byte, protocol.ValueMax+1), 0); !errors.Is(err, coherence.ErrTooLarge) {
		t.Error(err)
	}
	if _, err := h.Commit(ctx, nil, -1); !errors.Is(err, coherence.ErrTTL) { // the turn goes on
		t.Error(err)
	}
	if v, err := h.Commit(ctx, []byte("one"), time.Minute); err != nil || v != 1 || d.ttl != time.Minute {
		t.Errorf("%v, %v, %v", v, err, d.ttl)
	}
	if <-h.Ended(); h.Err() != nil {
		t.Error(h.Err())
	}
	if _, err := h.Commit(ctx, []byte("two"), 0); !errors.Is(err, access.ErrHold) {
		t.Error(err)
	}
	// It is over after its time, and nothing is written then.
	h, err = c.HoldDurableFor(ctx, "a", "x", time.Millisecond)
	if err != nil || string(h.Value().Bytes) != "one" || h.Value().Version != 1 {
		t.Fatal(h, err)
	}
	if <-h.Ended(); !errors.Is(h.Err(), access.ErrHold) {
		t.Error(h.Err())
	}
	if _, err := h.Commit(ctx, []byte("late"), 0); !errors.Is(err, access.ErrHold) {
		t.Error(err)
	}
	// Who goes away gives it up.
	if h, err = c.HoldDurableFor(ctx, "a", "x", time.Minute); err != nil {
		t.Fatal(err)
	}
	h.Release()
	again, err := c.HoldDurable(ctx, "a", "x")
	if err != nil {
		t.Fatal(err)
	}
	again.Release()
	if v, _ := d.GetDurable(ctx, "a", "x"); string(v.Bytes) != "one" {
		t.Errorf("%q", v.Bytes)
	}
	for _, d := range []time.Duration{-1, access.HoldMax + 1} {
		if _, err := c.HoldDurableFor(ctx, "a", "x", d); !errors.Is(err, lockservice.ErrShape) {
			t.Errorf("%v: %v", d, err)
		}
	}
	if _, err := c.HoldDurableFor(ctx, "a", "quorum", time.Minute); !errors.Is(err, coherence.ErrNoQuorum) {
		t.Error(err)
	}
}

// TestVersionsAreETags speaks to the API as curl does.
func TestVersionsAreETags(t *testing.T) {
	t.Parallel()
	w, _ := durableWorld(t)
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", w.socket)
	}}
	defer tr.CloseIdleConnections()
	for _, c := range []struct {
		call, body   string
		header, tag  string
		status       int
		etag, answer string
	}{
		{"Set", `{"app":"a","name":"x","value":"dg=="}`, "If-None-Match", "*", 200, `"1"`, `"version":"1"`},
		{"Set", `{"app":"a","name":"x","value":"dg=="}`, "If-None-Match", "*", 409, "", "it has version 1"},
		{"Set", `{"app":"a","name":"x","value":"dg=="}`, "If-Match", `"7"`, 409, "", "it has version 1"},
		{"Set", `{"app":"a","name":"x","value":"dg=="}`, "If-Match", `"1"`, 200, `"2"`, `"version":"2"`},
		{"Set", `{"app":"a","name":"x","value":"dg=="}`, "If-Match", `2`, 400, "", "a version in quotes"},
		{"Set", `{"app":"a","name":"x","value":"dg=="}`, "If-Match", `W/"2"`, 400, "", "a version in quotes"},
		{"Set", `{"app":"a","name":"x","value":"dg=="}`, "If-Match", `"02"`, 400, "", "a version in quotes"},
		{"Set", `{"app":"a","name":"x","value":"dg=="}`, "If-None-Match", `"2"`, 400, "", "a version in quotes"},
		{"Set", `{"app":"a","name":"x","value":"dg==","condition":{"version":"2"}}`, "If-Match", `"9"`, 200, `"3"`, `"version":"3"`}, // the request counts
		{"Set", `{"app":"a","name":"x","value":"dg==","condition":{"version":"3","absent":true}}`, "", "", 400, "", "one condition"},
		{"Set", `{"app":"a","name":"x","ttl":"0s"}`, "", "", 400, "", "bad time to live"},
		{"Get", `{"app":"a","name":"x"}`, "", "", 200, `"3"`, `"exists":true`},
		{"Get", `{"app":"a","name":"stale"}`, "", "", 503, "", "no present copy"},
		{"Remove", `{"app":"a","name":"x"}`, "If-None-Match", "*", 400, "", "is not removed"},
		{"Remove", `{"app":"a","name":"x"}`, "If-Match", `"1"`, 409, "", "it has version 3"},
		{"Remove", `{"app":"a","name":"x"}`, "If-Match", `"3"`, 200, "", `"existed":true`},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://latchkey/latchkey.v1.DurableService/"+c.call, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		if c.header != "" {
			r.Header.Set(c.header, c.tag)
		}
		res, err := tr.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if said := strings.ReplaceAll(string(body), `": `, `":`); err != nil || res.StatusCode != c.status || res.Header.Get("ETag") != c.etag || !strings.Contains(said, c.answer) {
			t.Errorf("%s %s, %s: %s: %d, %s, %s, %v", c.call, c.body, c.header, c.tag, res.StatusCode, res.Header.Get("ETag"), body, err)
		}
	}
}

// noDurables has no group that answers.
type noDurables struct{}

func (noDurables) GetDurable(context.Context, string, string) (coherence.Value, error) {
	return coherence.Value{}, coherence.ErrStale
}

func (noDurables) StaleDurable(context.Context, string, string) (coherence.Value, time.Duration, bool, error) {
	return coherence.Value{}, 0, false, nil
}

func (noDurables) SetDurable(context.Context, string, string, api.DurableWrite) (coherence.Version, error) {
	return 0, coherence.ErrNoQuorum
}

func (noDurables) RemoveDurable(context.Context, string, string, *coherence.Version) (bool, error) {
	return false, coherence.ErrNoQuorum
}

func (noDurables) HoldDurable(context.Context, string, string) (api.DurableHold, error) {
	return nil, coherence.ErrNoQuorum
}

func (noDurables) WatchDurable(context.Context, string, string, coherence.Version, func(coherence.Change) error) error {
	return coherence.ErrVersion
}

func (noDurables) WatchDirectory(context.Context, string, string, coherence.Version, func(coherence.Listing, bool) error) error {
	return coherence.ErrVersion
}

func (noDurables) ListDurable(context.Context, string, string, string, int) (coherence.Listing, error) {
	return coherence.Listing{}, coherence.ErrStale
}

func (noDurables) Durable(context.Context, string, string) (api.DurableInfo, error) {
	return api.DurableInfo{}, coherence.ErrStale
}
