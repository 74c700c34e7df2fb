//go:build unix

package testnet

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"latchkey/testnet/wire"
)

// wireOf answers in place of a peer's wire: it notes the rules that it takes.
type wireOf struct {
	mu      sync.Mutex
	fails   bool
	hold    chan struct{} // nil, or what every answer waits for
	heard   chan struct{} // one for each request
	present wire.Rules
}

// serveWire answers at the wire socket of a place.
func serveWire(t *testing.T, s *place) *wireOf {
	t.Helper()
	l, err := net.Listen("unix", s.wireSocket())
	if err != nil {
		t.Fatal(err)
	}
	w := &wireOf{heard: make(chan struct{}, 1000)}
	server := http.Server{Handler: w}
	ended := make(chan struct{})
	go func() { defer close(ended); server.Serve(l) }()
	t.Cleanup(func() {
		w.set(func() {
			if w.hold != nil {
				close(w.hold)
				w.hold = nil
			}
		})
		server.Close()
		<-ended
	})
	return w
}

func (w *wireOf) set(do func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	do()
}

func (w *wireOf) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	var rules wire.Rules
	err := json.NewDecoder(r.Body).Decode(&rules)
	w.mu.Lock()
	fails, hold := w.fails || err != nil, w.hold
	w.mu.Unlock()
	w.heard <- struct{}{}
	if hold != nil {
		select {
		case <-hold:
		case <-r.Context().Done():
			return
		}
	}
	if fails {
		http.Error(rw, "out of order", http.StatusInternalServerError)
		return
	}
	w.set(func() { w.present = rules })
	rw.WriteHeader(http.StatusNoContent)
}

func (w *wireOf) blocks() (n int) {
	w.set(func() { n = len(w.present.Blocked) })
	return n
}

func (w *wireOf) version() (v uint64) {
	w.set(func() { v = w.present.Version })
	return v
}

// scripted is a testnet whose peers do what a shell says once each, none of them started, and what answers at their wires.
func scripted(t *testing.T, texts ...string) (*Processes, []*wireOf) {
	t.Helper()
	dir := shortDir(t)
	p := &Processes{nursery: newNursery(), opts: script(dir, `. "$1/script"`)} // $1 is the peer's directory
	p.life, p.end = context.WithCancelCause(context.Background())
	var wires []*wireOf
	for i, text := range texts {
		s := &place{index: i, port: 1 + i, dir: filepath.Join(dir, string(rune('0'+i)))}
		if err := os.MkdirAll(s.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(s.dir, "script"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		p.places = append(p.places, s)
		wires = append(wires, serveWire(t, s))
	}
	t.Cleanup(func() {
		for i := range p.places {
			p.Kill(i)
		}
		p.end(ErrClosed)
		p.watchers.Wait()
		p.nursery.close()
	})
	return p, wires
}

const (
	serves  = "echo READY x; exec sleep 1000"
	hangs   = "exec sleep 1000"
	laggard = `until [ -e "$1/go" ]; do sleep 0.01; done; ` + serves
)

func startPlace(t *testing.T, p *Processes, i int) {
	t.Helper()
	if err := p.start(short(t), p.places[i]); err != nil {
		t.Fatal(err)
	}
}

// launch starts a peer without waiting for it, and returns once its process is there.
func launch(t *testing.T, p *Processes, i int) (ended chan error) {
	t.Helper()
	ended = make(chan error, 1)
	go func() { ended <- p.start(short(t), p.places[i]) }()
	until(t, "the process is there", func() bool { return p.Status().Peers[i].PID != 0 })
	return ended
}

func TestNothingWaitsForAPeerThatStarts(t *testing.T) {
	p, wires := scripted(t, serves, serves, hangs)
	startPlace(t, p, 0)
	ended := launch(t, p, 2)
	for what, err := range map[string]error{
		"start":     p.start(short(t), p.places[1]),
		"pause":     p.Pause(1),
		"partition": p.Partition(short(t), []int{0}, []int{1}),
		"resume":    p.Resume(1),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if n := wires[0].blocks(); n != 2 {
		t.Errorf("peer 0 blocks %d", n)
	}
	if err := p.Heal(short(t)); err != nil {
		t.Error(err)
	}
	select {
	case err := <-ended:
		t.Error("the start is over:", err)
	default:
	}
	p.Kill(2)
	if err := <-ended; err == nil {
		t.Error("a killed peer has started")
	}
}

func TestAPeerThatStartsHasTheStandingRulesBeforeItCounts(t *testing.T) {
	p, wires := scripted(t, serves, laggard)
	startPlace(t, p, 0)
	hold := make(chan struct{})
	wires[1].hold = hold
	ended := launch(t, p, 1)
	if err := p.Partition(short(t), []int{0}); err != nil {
		t.Fatal(err)
	}
	<-wires[1].heard // although it has not said yet that it serves
	if err := os.WriteFile(filepath.Join(p.places[1].dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := func() *child { p.mu.Lock(); defer p.mu.Unlock(); return p.places[1].child }()
	<-c.ready
	select {
	case err := <-ended:
		t.Error("it counts before it has its rules:", err)
	case <-time.After(50 * time.Millisecond):
	}
	if st := p.Status().Peers[1]; st.Up || !st.Behind {
		t.Errorf("%+v", st)
	}
	wires[1].set(func() { wires[1].hold = nil })
	close(hold)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if st := p.Status().Peers[1]; !st.Up || st.Behind || wires[1].blocks() != 1 {
		t.Errorf("%+v, blocks %d", st, wires[1].blocks())
	}
}

func TestAPeerThatDoesNotTakeItsRulesIsShownAndToldAgain(t *testing.T) {
	p, wires := scripted(t, serves, serves)
	startPlace(t, p, 0)
	startPlace(t, p, 1)
	behind := func() bool { return p.Status().Peers[1].Behind }
	wires[1].set(func() { wires[1].fails = true })
	if err := p.Partition(short(t), []int{0}); err == nil || !strings.Contains(err.Error(), "peer 1: ") || !strings.Contains(err.Error(), "told again") {
		t.Errorf("partition: %v", err)
	}
	if wires[0].blocks() != 1 || !behind() {
		t.Errorf("peer 0 blocks %d; peer 1 is behind: %v", wires[0].blocks(), behind())
	}
	wires[1].set(func() { wires[1].fails = false })
	until(t, "it is told again", func() bool { return !behind() && wires[1].blocks() == 1 })

	if got := wires[1].version(); got != p.version {
		t.Errorf("it was told version %d of %d", got, p.version)
	}

	// Of what changed during a pause it hears when it goes on, and if it cannot, later.
	if err := p.Pause(1); err != nil {
		t.Fatal(err)
	}
	if err := p.Heal(short(t)); err != nil || !behind() {
		t.Errorf("%v; behind: %v", err, behind())
	}
	wires[1].set(func() { wires[1].fails = true })
	if err := p.Resume(1); err == nil || !strings.Contains(err.Error(), "told again") || !behind() {
		t.Errorf("resume: %v; behind: %v", err, behind())
	}
	wires[1].set(func() { wires[1].fails = false })
	until(t, "it is told again", func() bool { return !behind() && wires[1].blocks() == 0 })
}

func TestWhoWaitsForPeersToTakeRulesStopsWithItsContext(t *testing.T) {
	p, wires := scripted(t, serves, serves)
	startPlace(t, p, 0)
	startPlace(t, p, 1)
	hold := make(chan struct{})
	wires[1].hold = hold
	why := errors.New("changed my mind")
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Latency(ctx, time.Millisecond) }()
	<-wires[1].heard
	cancel(why)
	if err := <-ended; !errors.Is(err, why) || !strings.Contains(err.Error(), "peer 1: ") {
		t.Error(err)
	}
	// A peer that is being told is paused after that.
	paused := make(chan error, 1)
	go func() { paused <- p.Pause(1) }()
	select {
	case err := <-paused:
		t.Error("paused while it is told:", err)
	case <-time.After(30 * time.Millisecond):
	}
	wires[1].set(func() { wires[1].hold = nil })
	close(hold)
	if err := <-paused; err != nil || p.Status().Peers[1].Behind {
		t.Errorf("%v, %+v", err, p.Status().Peers[1])
	}
}
