package wire

import (
	"net"
	"time"
)

// lingerMax bounds how long a closed connection tries to get rid of what was written before, blocked time aside.
const lingerMax = time.Second

// outbound is what goes to the other end.
type outbound struct {
	half
	failed  error     // what the kernel said; nothing is written any more
	closeAt time.Time // when the other end may see that the owner has closed
}

func (out *outbound) write(b []byte) (written int, err error) {
	out.call.Lock()
	defer out.call.Unlock()
	out.mu.Lock()
	defer out.mu.Unlock()
	for {
		if !out.shaped {
			n, err := out.kernelLocked(out.conn.Write, b[written:])
			written += n
			if out.shaped && isTimeout(err) {
				continue // a rule came and ended the call
			}
			return written, err
		}
		if err := out.refusedLocked(); err != nil {
			return written, err
		}
		switch room := LineBytesMax - out.bytes; {
		case out.failed != nil:
			return written, out.failed
		case written == len(b):
			return written, nil
		case room > 0:
			n := min(room, len(b)-written)
			out.pushLocked(b[written : written+n])
			written += n
		default:
			out.waitLocked(out.deadline)
		}
	}
}

// pump brings to the kernel what has been under way for long enough, and closes in the end.
func (out *outbound) pump() {
	out.mu.Lock()
	defer out.mu.Unlock()
	for !out.conn.w.cut.Load() {
		now := time.Now()
		switch {
		case out.kicked || out.rule.blocked:
			out.waitLocked()
		case len(out.queue) > 0 && !out.queue[0].due.After(now):
			out.deliverLocked()
		case len(out.queue) > 0:
			out.waitLocked(out.queue[0].due)
		case out.closed && !out.closeAt.After(now):
			out.mu.Unlock() // Close takes the wire's
			out.conn.Close()
			out.mu.Lock()
			return
		case out.closed:
			out.waitLocked(out.closeAt)
		case out.rule == rule{} && out.failed == nil:
			out.pumping = false
			out.plainLocked()
			return
		default:
			out.waitLocked()
		}
	}
}

// deliverLocked writes the queue's head.
func (out *outbound) deliverLocked() {
	if out.closed {
		_ = out.kernelDeadline(time.Now().Add(lingerMax))
	}
	n, err := out.kernelLocked(out.conn.Write, out.queue[0].data)
	out.popLocked(n)
	if err != nil && !(out.kicked && isTimeout(err)) {
		out.failed, out.queue, out.bytes = err, nil, 0
	}
}

// close ends the owner's calls, and reports whether the pump closes the connection, once the other end may know.
func (out *outbound) close() (later bool, err error) {
	out.mu.Lock()
	defer out.mu.Unlock()
	if out.closed {
		return out.shaped, net.ErrClosed
	}
	out.closed = true
	if !out.shaped {
		return false, nil
	}
	out.closeAt = time.Now().Add(out.rule.latency)
	if out.inKernel && !out.kicked {
		_ = out.kernelDeadline(time.Now().Add(lingerMax))
	}
	out.changed.Broadcast()
	return true, nil
}
