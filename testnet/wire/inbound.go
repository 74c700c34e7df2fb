package wire

import "time"

// pumpBytesMax is the most that a pump takes from the kernel at once. It begins with pumpBytesMin, since most connections are
// idle and each pump holds its buffer.
const (
	pumpBytesMin = 1 << 10
	pumpBytesMax = 32 << 10
)

// inbound is what comes from the other end.
type inbound struct {
	half
	end   error // what the kernel said last; it is reported after the queue, and from endAt
	endAt time.Time
}

func (in *inbound) read(b []byte) (int, error) {
	in.call.Lock()
	defer in.call.Unlock()
	in.mu.Lock()
	defer in.mu.Unlock()
	for {
		if !in.shaped {
			n, err := in.kernelLocked(in.conn.Read, b)
			if in.shaped && isTimeout(err) {
				continue // a rule came and ended the call
			}
			return n, err
		}
		if err := in.refusedLocked(); err != nil || len(b) == 0 {
			return 0, err
		}
		var next time.Time
		if now := time.Now(); !in.rule.blocked {
			n := 0
			for n < len(b) && len(in.queue) > 0 && !in.queue[0].due.After(now) {
				some := copy(b[n:], in.queue[0].data)
				in.popLocked(some)
				n += some
			}
			switch {
			case n > 0:
				return n, nil
			case len(in.queue) > 0:
				next = in.queue[0].due
			case in.end != nil && !in.endAt.After(now):
				return 0, in.end
			case in.end != nil:
				next = in.endAt
			case in.rule == rule{} && !in.pumping && !in.kicked:
				in.plainLocked()
				continue
			}
		}
		in.waitLocked(next, in.deadline)
	}
}

// pump fetches from the kernel, so that the time at which a byte came is known however late the owner reads.
func (in *inbound) pump() {
	buf := make([]byte, pumpBytesMin)
	in.mu.Lock()
	defer in.mu.Unlock()
	defer func() {
		in.pumping = false
		in.changed.Broadcast()
	}()
	for in.goneLocked() == nil && in.end == nil && in.rule != (rule{}) {
		if in.kicked || in.rule.blocked || in.bytes >= LineBytesMax {
			in.waitLocked()
			continue
		}
		n, err := in.kernelLocked(in.conn.Read, buf)
		if n > 0 {
			in.pushLocked(buf[:n])
		}
		if err != nil && !isTimeout(err) {
			in.end, in.endAt = err, time.Now().Add(in.rule.latency)
		}
		if n == len(buf) && n < pumpBytesMax {
			buf = make([]byte, 2*n)
		}
	}
}

// close ends the owner's calls. The pump may stay in the kernel until the connection is closed there.
func (in *inbound) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed = true
	in.queue, in.bytes = nil, 0
	in.changed.Broadcast()
}
