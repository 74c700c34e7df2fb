package sim

// eventKind says whom an event is for.
type eventKind uint8

const (
	worldEvent   eventKind = iota // run belongs to no node
	messageEvent                  // msg from from to node
	timerEvent                    // run, armed by env
)

// event is something that will happen. Events are ordered by time, then by when they were scheduled.
type event struct {
	at   Time
	seq  uint64
	kind eventKind
	node NodeID
	from NodeID
	env  *Env
	run  func()
	msg  any
}

func (e *event) before(f *event) bool { return e.at < f.at || e.at == f.at && e.seq < f.seq }

// queue is a binary heap of events. container/heap would box every event in an interface.
type queue []event

func (q *queue) push(ev event) {
	*q = append(*q, ev)
	h := *q
	i := len(h) - 1
	for i > 0 {
		p := (i - 1) / 2
		if !ev.before(&h[p]) {
			break
		}
		h[i] = h[p]
		i = p
	}
	h[i] = ev
}

// pop removes the first event. The queue is not empty.
func (q *queue) pop() event {
	h := *q
	top, n := h[0], len(h)-1
	last := h[n]
	h[n] = event{} // lets go of the message
	h = h[:n]
	*q = h
	if n == 0 {
		return top
	}
	i := 0
	for {
		c := 2*i + 1
		if c >= n {
			break
		}
		if c+1 < n && h[c+1].before(&h[c]) {
			c++
		}
		if !h[c].before(&last) {
			break
		}
		h[i] = h[c]
		i = c
	}
	h[i] = last
	return top
}
