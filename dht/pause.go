package dht

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// A peer whose requests are refused is read more slowly for a moment: to refuse one costs less than to serve it, but who sends a hundred
// thousand a second would take a processor with refusals alone. What it sends meanwhile waits at its own end, as the stream takes no more.
const (
	// refusedPause is for how long a refused request has its peer's streams not read.
	refusedPause = 200 * time.Microsecond
	// pauseMax bounds one pause, and owedMax what may be still to come: a peer that was refused a thousand times at once, and then behaves,
	// is held up for that long and no longer.
	pauseMax = 5 * time.Millisecond
	owedMax  = 20 * time.Millisecond
)

// Spare has the peers for which f is true never read more slowly, whatever is refused to them: others depend on what else they have to
// say. f is called from any goroutine and must not block. Call it at most once, before [Overlay.Start].
func (o *Overlay) Spare(f func(peer.ID) bool) {
	o.life.Lock()
	defer o.life.Unlock()
	if o.started || o.spared != nil {
		panic("dht: Spare twice or after Start")
	}
	o.spared = f
}

// refused notes that a request of the peer was refused, or that it does not read what it was answered.
func (l *link) refused() {
	if spared := l.o.spared; spared != nil && spared(l.peer) {
		return
	}
	if l.owed.Load() < int64(owedMax) {
		l.owed.Add(int64(refusedPause))
	}
}

// pause waits for what is owed, at most pauseMax. It is called by who reads the peer's streams.
func (l *link) pause() {
	owed := l.owed.Load()
	if part := min(owed, int64(pauseMax)); part > 0 && l.owed.CompareAndSwap(owed, owed-part) {
		time.Sleep(time.Duration(part))
	}
}

// Refused says that the request asks for more than its peer may have, as its answer says: the peer is read a little more slowly for a
// moment, in which everything else that comes from it waits, too (see [Overlay.Spare]). It may be called from any goroutine and does not block.
func (r *Request) Refused() {
	if r.stream != nil { // ourselves
		r.link.refused()
	}
}
