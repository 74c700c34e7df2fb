package api_test

import (
	"context"
	"errors"
	"testing"

	"latchkey/lockservice"
	"latchkey/node/api"
	"latchkey/node/api/apitest"
)

// telling is a backend that tells of changes when the test says so.
type telling struct {
	*apitest.Backend
	changed chan struct{}
	heard   chan struct{} // if set, has an element for each call
}

func (b *telling) Changes(ctx context.Context, _ string, fn func()) error {
	if b.heard != nil {
		b.heard <- struct{}{}
	}
	for {
		select {
		case <-b.changed:
			fn()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func TestWatchThroughTheDaemonIsToldOfChanges(t *testing.T) {
	b := &telling{changed: make(chan struct{})}
	w := newWorld(t, func(m *apitest.Backend, c *api.Config) { b.Backend, c.Locks = m, b })
	n := w.locks.(lockservice.Notifier)
	told, done := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- n.Changes(ctx, "n", func() { told <- struct{}{} }) }()
	for range 3 {
		b.changed <- struct{}{}
		<-told
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("a watch that was ended: %v", err)
	}
	if err := n.Changes(t.Context(), "", func() {}); !errors.Is(err, lockservice.ErrName) {
		t.Errorf("of no name: %v", err)
	}
	b = &telling{heard: make(chan struct{})}
	w = newWorld(t, func(m *apitest.Backend, c *api.Config) { b.Backend, c.Locks = m, b })
	go func() { done <- w.locks.(lockservice.Notifier).Changes(t.Context(), "n", func() {}) }()
	<-b.heard
	w.server.Drain()
	if err := <-done; !errors.Is(err, lockservice.ErrClosed) {
		t.Errorf("a watch through a daemon that stops: %v", err)
	}
}

func TestWatchesThroughADaemonAreBounded(t *testing.T) {
	b := &telling{heard: make(chan struct{})}
	w := newWorld(t, func(m *apitest.Backend, c *api.Config) { b.Backend, c.Locks = m, b })
	n := w.locks.(lockservice.Notifier)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, api.WatchesMax)
	for range api.WatchesMax {
		go func() { done <- n.Changes(ctx, "n", func() {}) }()
		<-b.heard
	}
	if err := n.Changes(t.Context(), "n", func() {}); !errors.Is(err, lockservice.ErrLimit) {
		t.Errorf("one more: %v", err)
	}
	cancel()
	for range api.WatchesMax {
		<-done
	}
}

// A peer that is told of nothing says so, and whoever watches through it asks.
func TestWatchThroughADaemonThatIsToldOfNothing(t *testing.T) {
	w := newWorld(t, nil)
	if err := w.locks.(lockservice.Notifier).Changes(t.Context(), "n", func() { t.Error("told") }); err == nil {
		t.Error("it watches")
	}
	events, err := w.client.Locks().Watch(t.Context(), "n")
	if err != nil {
		t.Fatal(err)
	}
	if ev := <-events; ev.Err != nil || ev.Info.Held {
		t.Errorf("%+v", ev)
	}
	g := w.mustAcquire("n")
	if ev := <-events; ev.Err != nil || ev.Info.Token != g.Token {
		t.Errorf("%+v", ev)
	}
}

func TestWhatIsAskedForTravels(t *testing.T) {
	var got lockservice.Request
	w := newWorld(t, func(b *apitest.Backend, _ *api.Config) {
		b.OnAcquire = func(_ context.Context, r lockservice.Request) error {
			got = r
			return lockservice.ErrShape
		}
	})
	for p, want := range map[lockservice.Protocol]lockservice.Protocol{
		lockservice.ProtocolAuto: lockservice.ProtocolAuto, lockservice.ProtocolSigma: lockservice.ProtocolSigma, lockservice.ProtocolGroup: lockservice.ProtocolGroup,
		100: 255, // none that anybody knows stays one
	} {
		r := request("n")
		r.Protocol = p
		if _, err := w.locks.Acquire(t.Context(), r); !errors.Is(err, lockservice.ErrShape) || got.Protocol != want {
			t.Errorf("%v: %v, arrived as %v", p, err, got.Protocol)
		}
	}
	for permits, want := range map[int]int{0: 0, 1: 1, lockservice.PermitsMax: lockservice.PermitsMax, lockservice.PermitsMax + 1: lockservice.PermitsMax + 1, 1<<31 + 1: lockservice.PermitsMax + 1} {
		r := request("n")
		r.Permits = permits
		if _, err := w.locks.Acquire(t.Context(), r); !errors.Is(err, lockservice.ErrShape) || got.Permits != want {
			t.Errorf("%d permits: %v, arrived as %d", permits, err, got.Permits)
		}
	}
}
