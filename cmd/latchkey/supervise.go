package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"latchkey/internal/driver"
	"latchkey/lockservice"
)

// lease is what supervise needs of a held lock; *lockservice.Handle is one.
type lease interface {
	TTL() time.Duration
	Remaining() time.Duration // certainly left
	Context() context.Context // ends when the lock is lost
}

// work is what goes on under a lock.
type work interface {
	done() <-chan struct{}   // closed when it has ended altogether
	pass(sig syscall.Signal) // hands on a signal that was sent to us
	terminate()              // asks it to end
	kill()                   // ends it
	tend()                   // called now and then while it runs
	result() error           // how it ended, once it is done
}

// When the work under a lease that may be lost is stopped, counted back from the lease's end (product.md section 3).
const (
	termAtTTL = 3  // TERM at a third of the TTL before it
	killAtTTL = 10 // KILL at a tenth of the TTL before it
	// graceMax is what is left between the two, at most, where the lock's group says that the hold is over: somebody else may have the
	// lock already.
	graceMax = 100 * time.Millisecond
)

// supervise blocks until w is done. While w runs it hands on signals, and stops w when the lease may be lost: that is its
// return value, nil when w ended by itself while the lock was held. told learns of it as soon as w was asked to end, and must not
// block.
//
// Work that is asked to end and does not is killed: a tenth of the TTL before the lease's end, or a moment later where the group says that the
// hold is over.
//
// A loss is final: once w was asked to end, a renewal that arrives after all no longer moves the moment of the kill.
func supervise(l lease, w work, signals <-chan os.Signal, told func(lost error)) (lost error) {
	clock, ttl := driver.NewClock(), l.TTL()
	end := clock.Now().Add(l.Remaining()) // of the lease; frozen when lost
	// Short ticks, because a Go timer stands still while the machine sleeps, and the lease does not.
	tick := time.NewTicker(min(max(ttl/100, 5*time.Millisecond), 500*time.Millisecond))
	defer tick.Stop()
	gone, killed := l.Context().Done(), false
	lose := func(cause error) { lost, gone = cause, nil; w.terminate(); told(cause) }
	for {
		select {
		case <-w.done():
			return lost
		case s := <-signals:
			w.pass(s.(syscall.Signal))
		case <-gone:
			cause := context.Cause(l.Context())
			if lose(cause); errors.Is(cause, lockservice.ErrNotHeld) {
				end = min(end, clock.Now().Add(ttl/killAtTTL+min(graceMax, ttl/killAtTTL)))
			}
		case <-tick.C:
			w.tend()
		}
		now, left := clock.Now(), l.Remaining()
		// In this order, since a lock that is lost has nothing remaining, and that is not when its lease ends.
		if lost == nil && l.Context().Err() == nil {
			end = now.Add(left)
			if end.Sub(now) <= ttl/termAtTTL {
				lose(&lapseError{end.Sub(now)})
			}
		}
		if lost != nil && !killed && end.Sub(now) <= ttl/killAtTTL {
			killed = true
			w.kill()
		}
	}
}

// lapseError is the loss of a lock whose lease nobody renewed in time. It matches [lockservice.ErrLost].
type lapseError struct{ left time.Duration }

func (e *lapseError) Error() string {
	return "no renewal came through, and only " + e.left.Round(time.Millisecond).String() + " of the lease are certainly left"
}

func (e *lapseError) Unwrap() error { return lockservice.ErrLost }

// inputWork is the work of a lock held without a command: it lasts until its input closes or a signal comes.
type inputWork struct {
	ended chan struct{}
	once  sync.Once
	err   error
}

// holdOpen returns a work that ends when in closes. From an input that cannot tell (the null device, also where the system or
// Go put it in place of a closed one; a terminal that may not be read in the background) it takes no end.
func holdOpen(in *os.File) *inputWork {
	w := &inputWork{ended: make(chan struct{})}
	if isNull(in) {
		return w
	}
	ignoreTerminalStops()
	go func() {
		if _, err := io.Copy(io.Discard, in); err == nil {
			w.end(nil)
		}
	}()
	return w
}

// isNull reports whether f is no input at all.
func isNull(f *os.File) bool {
	info, err := f.Stat()
	if err != nil {
		return errors.Is(err, fs.ErrInvalid) || errors.Is(err, syscall.EBADF)
	}
	null, err := os.Stat(os.DevNull)
	return err == nil && os.SameFile(info, null)
}

func (w *inputWork) end(err error) { w.once.Do(func() { w.err = err; close(w.ended) }) }

func (w *inputWork) done() <-chan struct{}   { return w.ended }
func (w *inputWork) pass(sig syscall.Signal) { w.end(silent(exitSignal + int(sig))) }
func (w *inputWork) terminate()              { w.end(nil) }
func (w *inputWork) kill()                   { w.end(nil) }
func (w *inputWork) tend()                   {}
func (w *inputWork) result() error           { return w.err }
