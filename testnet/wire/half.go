package wire

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

const (
	// LineBytesMax bounds what a shaped connection holds of each direction, with what it costs to hold it. Beyond it the
	// writer waits, as it does for a full socket.
	LineBytesMax = 256 << 10
	// parcelBytes is what holding a parcel costs beside its data.
	parcelBytes = 64
)

// longAgo is a deadline that ends a call in the kernel.
var longAgo = time.Unix(1, 0)

// parcel is a piece of what is under way.
type parcel struct {
	due  time.Time // when it arrives
	data []byte
}

// half is one direction of a dialled connection. While no rule applies it is plain: the owner's calls go to the kernel. With
// a rule it is shaped: a pump stands between the owner's calls and the kernel, and goes when the rule has gone and nothing
// is under way.
//
//  1. Plain: the queue is empty, no pump runs, the kernel's deadline is the owner's.
//  2. Shaped: only the pump calls the kernel, whose deadline is none, unless a call is to end.
//  3. At most one call is in the kernel.
type half struct {
	conn           *conn                 // the kernel's end
	kernelDeadline func(time.Time) error // sets that of this direction

	// call is held through a Read or Write of the owner, so that one call's bytes stay together. It is taken before mu.
	call sync.Mutex

	mu       sync.Mutex
	changed  sync.Cond // something below changed, or a time has come
	rule     rule
	shaped   bool
	inKernel bool
	kicked   bool // the call in the kernel is to end, and the pump makes none until this is set back
	pumping  bool
	closed   bool // by the owner
	queue    []parcel
	bytes    int       // of queue
	deadline time.Time // the owner's
	alarm    *time.Timer
	alarmAt  time.Time // when alarm rings; zero: never
}

func (h *half) init(c *conn, kernelDeadline func(time.Time) error) {
	h.conn, h.kernelDeadline = c, kernelDeadline
	h.changed.L = &h.mu
}

// apply sets the rule. When it returns, no call of before is in the kernel, so nothing moves but by the new rule. pump is
// started if it is needed. It must not be called twice at a time, nor once the wire is cut.
func (h *half) apply(r rule, pump func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r == h.rule || h.closed && !h.shaped {
		return
	}
	h.rule, h.shaped = r, true
	if h.inKernel {
		h.kicked = true
		_ = h.kernelDeadline(longAgo) // fails on a closed connection, where no call stays
		for h.inKernel {
			h.changed.Wait()
		}
	}
	h.kicked = false
	_ = h.kernelDeadline(time.Time{})
	if !h.pumping {
		h.pumping = true
		h.conn.w.pumps.Go(pump)
	}
	h.changed.Broadcast()
}

// plainLocked makes the half plain again.
func (h *half) plainLocked() {
	h.shaped = false
	_ = h.kernelDeadline(h.deadline)
	h.changed.Broadcast()
}

// kernelLocked makes a call in the kernel, without mu.
func (h *half) kernelLocked(f func([]byte) (int, error), b []byte) (int, error) {
	h.inKernel = true
	h.mu.Unlock()
	n, err := f(b)
	h.mu.Lock()
	h.inKernel = false
	if h.shaped {
		h.changed.Broadcast()
	}
	return n, err
}

// setDeadline sets the owner's deadline.
func (h *half) setDeadline(t time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.deadline = t
	if !h.shaped {
		return h.kernelDeadline(t)
	}
	h.changed.Broadcast()
	return h.goneLocked()
}

// goneLocked returns why the owner can do nothing any more, or nil.
func (h *half) goneLocked() error {
	switch {
	case h.conn.w.cut.Load():
		return ErrCut
	case h.closed:
		return net.ErrClosed
	}
	return nil
}

// refusedLocked returns why a call of the owner fails now, or nil.
func (h *half) refusedLocked() error {
	if err := h.goneLocked(); err != nil {
		return err
	}
	if !h.deadline.IsZero() && !time.Now().Before(h.deadline) {
		return os.ErrDeadlineExceeded
	}
	return nil
}

// push adds what enters the line now.
func (h *half) pushLocked(data []byte) {
	h.queue = append(h.queue, parcel{time.Now().Add(h.rule.latency), append([]byte(nil), data...)})
	h.bytes += len(data) + parcelBytes
	h.changed.Broadcast()
}

// popLocked removes the first n bytes of the queue's head.
func (h *half) popLocked(n int) {
	head := &h.queue[0]
	head.data = head.data[n:]
	h.bytes -= n
	if len(head.data) == 0 {
		h.queue[0] = parcel{}
		h.queue = h.queue[1:]
		h.bytes -= parcelBytes
	}
	h.changed.Broadcast()
}

// waitLocked waits for a change, and no longer than until the first of the times that are not zero. It may return early.
func (h *half) waitLocked(times ...time.Time) {
	for _, t := range times {
		if t.IsZero() || !h.alarmAt.IsZero() && !t.Before(h.alarmAt) {
			continue
		}
		h.alarmAt = t
		if h.alarm == nil {
			h.alarm = time.AfterFunc(time.Until(t), h.ring)
		} else {
			h.alarm.Reset(time.Until(t))
		}
	}
	h.changed.Wait()
}

func (h *half) ring() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.alarmAt = time.Time{}
	h.changed.Broadcast()
}

// wake lets everybody look again.
func (h *half) wake() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.changed.Broadcast()
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
