package node

import (
	"fmt"
	"sync"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
)

// watcher runs one goroutine that follows events of a host. The zero value is ready to use; methods are safe for concurrent use.
type watcher struct {
	mu      sync.Mutex
	stopped bool
	events  event.Subscription // nil before start
	wg      sync.WaitGroup
}

// start subscribes to events of these types and runs f with them, which must return when the channel is closed. After stop it
// does nothing.
func (w *watcher) start(h host.Host, name string, types []any, f func(<-chan any)) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return nil
	}
	events, err := h.EventBus().Subscribe(types, eventbus.BufSize(1024), eventbus.Name(name))
	if err != nil {
		return fmt.Errorf("node: subscribing to the host's events: %w", err)
	}
	w.events = events
	w.wg.Go(func() { f(events.Out()) })
	return nil
}

// stop ends the subscription and waits for f to return. It is idempotent.
func (w *watcher) stop() {
	w.mu.Lock()
	w.stopped = true
	if w.events != nil {
		w.events.Close()
	}
	w.mu.Unlock()
	w.wg.Wait()
}
