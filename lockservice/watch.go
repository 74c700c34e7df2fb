package lockservice

import (
	"context"
	"reflect"
	"time"
)

// WatchEvery is how often [Service.Watch] and [Service.Observe] ask where the backend cannot tell of changes (it is no [Notifier], or too few
// voters listen): as in overlays whose voters run no protocol sigma, and for keys that have groups of their own.
const WatchEvery = 500 * time.Millisecond

// watchCallTimeout bounds one question of a watch.
const watchCallTimeout = 5 * time.Second

// WatchEvent is what a watch has seen: a lock's state, or why it cannot be seen now.
type WatchEvent struct {
	Info Info
	Err  error // matches [ErrNoQuorum] and so on; the watch goes on
}

// Watch tells a lock's state now and at every change, until ctx ends or the service is closed; then the channel is closed. What
// changes is who holds it, who waits, whether a grant has been taken up, and what has been broken; the time that is left of a lease is
// none. It is told of a change by the lock's voters, and then asks; where they cannot tell it asks every [WatchEvery]. Of changes that
// follow each other faster than that goes (20 a second at most) it tells the last: tokens show that there were others. While the group cannot be asked it says so once. A reader that is slow misses states, never the latest one.
//
// Errors: [ErrName], [ErrClosed].
func (s *Service) Watch(ctx context.Context, name string) (<-chan WatchEvent, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.closing, func() { cancel(ErrClosed) })
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		stop()
		cancel(ErrClosed)
		return nil, ErrClosed
	}
	events := make(chan WatchEvent, 1)
	s.loops.Go(func() {
		defer close(events)
		defer cancel(nil)
		defer stop()
		s.watch(ctx, name, events)
	})
	return events, nil
}

func (s *Service) watch(ctx context.Context, name string, events chan WatchEvent) {
	var last *WatchEvent
	ask := s.changes(ctx, name)
	for {
		call, cancel := context.WithTimeout(ctx, watchCallTimeout)
		info, err := s.info(call, name)
		cancel()
		if ctx.Err() != nil {
			return
		}
		ev := WatchEvent{Info: info, Err: err}
		if last == nil || ev.differs(*last) {
			last = &ev
			select {
			case <-events: // nobody has read it, and it is no longer true
			default:
			}
			events <- ev
		}
		if !ask() {
			return
		}
	}
}

// changes returns a function that waits until it is time to ask about a lock again. It answers false when ctx has ended.
func (s *Service) changes(ctx context.Context, name string) func() bool {
	var every <-chan time.Time // once the backend tells of nothing
	changed, deaf := make(chan struct{}, 1), make(chan struct{})
	if n, ok := s.backend.(Notifier); ok {
		s.loops.Go(func() {
			defer close(deaf)
			err := n.Changes(ctx, name, func() {
				select {
				case changed <- struct{}{}:
				default:
				}
			})
			log.Debugw("a watch is told of changes no longer", "lock", name, "err", err)
		})
	} else {
		close(deaf)
	}
	return func() bool {
		select {
		case <-changed:
		case <-deaf:
			deaf, every = nil, time.Tick(WatchEvery)
		case <-every:
		case <-ctx.Done():
		}
		return ctx.Err() == nil
	}
}

// differs reports whether a watcher wants to know.
func (e WatchEvent) differs(last WatchEvent) bool {
	if e.Err != nil || last.Err != nil {
		return (e.Err == nil) != (last.Err == nil)
	}
	return !reflect.DeepEqual(lasting(e.Info), lasting(last.Info))
}

// lasting is an Info without what time alone changes.
func lasting(i Info) Info {
	i.LeaseLeft = 0
	i.DelayLeft = min(i.DelayLeft, 1) // whether there is one
	holders, waiters := make([]Holder, len(i.Holders)), make([]Waiter, len(i.Waiters))
	for n, h := range i.Holders {
		h.LeaseLeft = 0
		holders[n] = h
	}
	for n, w := range i.Waiters {
		w.WaitingFor = 0
		waiters[n] = w
	}
	i.Holders, i.Waiters = holders, waiters
	return i
}
