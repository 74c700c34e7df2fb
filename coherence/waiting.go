package coherence

import "latchkey/coherence/protocol"

const (
	// waitingMax and waitingBytesMax bound the messages that wait for a group to be found, to be asked or to see whether their sender is of it. More are
	// dropped, and repeated by who said them.
	waitingMax      = 1 << 10
	waitingBytesMax = 16 << 20
)

// waiter is what waits, and the bytes of the messages that it keeps.
type waiter struct {
	then  func()
	bytes int
}

// room counts waiters.
type room struct{ n, bytes int }

// take makes room for one that keeps so many bytes, or reports that there is none.
func (r *room) take(bytes int) bool {
	if r.n >= waitingMax || r.bytes+bytes > waitingBytesMax {
		return false
	}
	r.n++
	r.bytes += bytes
	return true
}

// free gives room back.
func (r *room) free(all []waiter) {
	for _, w := range all {
		r.n--
		r.bytes -= w.bytes
	}
}

// waiterBytes is what a message takes beside its value.
const waiterBytes = 256

func weightOf(m *protocol.Message) int {
	if m.Value == nil {
		return waiterBytes
	}
	return waiterBytes + len(m.Value.Bytes)
}
