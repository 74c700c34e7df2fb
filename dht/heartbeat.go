package dht

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht/detector"
	"latchkey/dht/keyspace"
	"latchkey/dht/twins"
	"latchkey/internal/automaton"
	"latchkey/internal/driver"
)

// serviceHeartbeat is the service of pings and their answers, which are one-way messages both.
const serviceHeartbeat = "dht/heartbeat"

// Watch begins to watch a peer, or changes how: an active watch notices a peer that has stopped in about half a second, another
// one in two seconds. The functions of [Overlay.OnSuspect] are told. The peer is dialled when there is no connection to it, again
// and again. Only watched peers cost anything: one that talks is pinged once a second, one that does not four times at most. The
// node itself is not watched. It does not block.
func (o *Overlay) Watch(p peer.ID, active bool) {
	if p != o.self {
		o.beats.box.Put(detector.Watch{Peer: detector.Peer(p), Active: active})
	}
}

// Unwatch ends a watch. Whether the peer was suspected is forgotten: the functions of [Overlay.OnSuspect] are not told, and those of
// [Overlay.OnUnwatch] are. Calls to one that was are refused for a second more, unless something comes from it. It does not block.
func (o *Overlay) Unwatch(p peer.ID) { o.beats.box.Put(detector.Unwatch{Peer: detector.Peer(p)}) }

// OnSuspect registers a function that is told when a watched peer is suspected of having stopped, and when it is trusted again. A
// suspicion may be wrong. It is called in order, by one goroutine, and must not block. Call it before [Overlay.Start].
//
// The connections to a suspected peer stay: they outlive a short pause with everything that is under way on them, a wrong suspicion costs
// no handshakes and loses no messages, and libp2p closes those of a peer that is gone for good by its own time-outs. Only when a peer is
// reached beside its connections while they bring no answer, as after a long cut, they are closed and made anew (see [Stats].Renewed). What waits for an answer does not wait for those: calls to a peer that falls silent, and while it is,
// fail with [ErrSuspected]. Messages without an answer are sent all the same.
func (o *Overlay) OnSuspect(f func(p peer.ID, suspected bool)) {
	o.life.Lock()
	defer o.life.Unlock()
	if o.started {
		panic("dht: OnSuspect after Start")
	}
	o.onSuspect = append(o.onSuspect, f)
}

// OnUnwatch registers a function that is told when the watch of a peer has ended: a suspicion of it counts for nothing from then on, will never be
// taken back, and a later watch begins without it. It is called like those of [Overlay.OnSuspect], in order with them. Call it before
// [Overlay.Start].
func (o *Overlay) OnUnwatch(f func(p peer.ID)) {
	o.life.Lock()
	defer o.life.Unlock()
	if o.started {
		panic("dht: OnUnwatch after Start")
	}
	o.onUnwatch = append(o.onUnwatch, f)
}

// heartbeats drives the failure detector. Its goroutine owns core and watched; everybody else puts events.
type heartbeats struct {
	now    func() automaton.Instant
	nonce  uint64 // of this start
	boot   Boot   // of our store, if we have one: the nonce is the store's then
	send   func(to peer.ID, msg []byte)
	heard  func(p peer.ID) bool // since it was asked last
	change func(p peer.ID, suspected bool, silence time.Duration)
	alarm  func(p peer.ID)
	ended  func(p peer.ID) // the watch of it
	box    *driver.Mailbox[detector.Event]

	core    detector.Detector
	watched map[peer.ID]struct{}
	actions []detector.Action
}

func newHeartbeats(o *Overlay) *heartbeats {
	clock := driver.NewClock()
	nonce := clock.Nonce()
	if o.own != (Boot{}) {
		nonce = o.own.Nonce
	}
	return &heartbeats{
		now: clock.Now, nonce: nonce, boot: o.own,
		send: o.sendHeartbeat, heard: o.heard, change: o.suspect, alarm: func(p peer.ID) { o.alarm(Alarm{Peer: p}) }, ended: o.unwatched,
		box: driver.NewMailbox[detector.Event](heartbeatsMax), watched: make(map[peer.ID]struct{}),
	}
}

// run is the detector's goroutine.
func (b *heartbeats) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	armed := automaton.Never // when timer runs out, if ever
	var batch []detector.Event
	for {
		if next := b.core.Next(); next != armed {
			armed = next
			wait := time.Hour
			if next != automaton.Never {
				wait = max(next.Sub(b.now()), 0)
			}
			timer.Reset(wait)
		}
		select {
		case <-ctx.Done():
			b.box.Close()
			return
		case <-b.box.Wake():
			batch, _ = b.box.Take(batch)
			for _, ev := range batch {
				b.step(ev)
			}
		case <-timer.C:
			armed = automaton.Never // set it again even if it was early: it goes by another clock than ours
			for p := range b.watched {
				if b.heard(p) {
					b.step(detector.Heard{Peer: detector.Peer(p)})
				}
			}
			b.step(detector.Tick{})
		}
	}
}

// step feeds one event to the detector and carries out what it asks for.
func (b *heartbeats) step(ev detector.Event) {
	switch ev := ev.(type) {
	case detector.Watch:
		b.watched[peer.ID(ev.Peer)] = struct{}{}
	case detector.Unwatch:
		delete(b.watched, peer.ID(ev.Peer))
		b.ended(peer.ID(ev.Peer))
	case detector.Lost:
		b.heard(peer.ID(ev.Peer)) // whatever it was, it is older
	}
	now := b.now()
	b.actions = b.core.Step(ev, now, b.actions[:0])
	for _, a := range b.actions {
		switch a := a.(type) {
		case detector.Ping:
			b.send(peer.ID(a.Peer), heartbeat{nonce: b.nonce, boot: b.boot, at: now}.encode())
		case detector.Suspect:
			b.change(peer.ID(a.Peer), true, a.Silence)
		case detector.Trust:
			b.change(peer.ID(a.Peer), false, 0)
		case detector.Alarm:
			b.alarm(peer.ID(a.Peer))
		}
	}
}

// received takes note of a ping or an answer, and answers a ping. It is called by the goroutine that has read it: the answer
// waits for nothing.
func (b *heartbeats) received(from peer.ID, m heartbeat) {
	if !m.answer {
		b.send(from, heartbeat{answer: true, nonce: b.nonce, boot: b.boot, at: m.at}.encode())
	}
	b.box.TryPut(detector.Beat{Peer: detector.Peer(from), Nonce: m.nonce, Answer: m.answer, Echo: m.at})
}

// link takes note of a connection that came up, or of the last one that went.
func (b *heartbeats) link(p peer.ID, up bool) {
	if up {
		b.box.Put(detector.Heard{Peer: detector.Peer(p)})
	} else {
		b.box.Put(detector.Lost{Peer: detector.Peer(p)})
	}
}

// sendHeartbeat queues a ping or an answer. One that cannot leave is lost.
func (o *Overlay) sendHeartbeat(to peer.ID, msg []byte) {
	if err := o.Send(to, keyspace.Key{}, serviceHeartbeat, msg); err != nil {
		log.Debugw("heartbeat dropped", "peer", to, "err", err)
	}
}

// heard reports whether anything came from p since it was asked last.
func (o *Overlay) heard(p peer.ID) bool {
	o.linksMu.RLock()
	l := o.links[p]
	o.linksMu.RUnlock()
	return l != nil && l.heard.Swap(false) && !o.refused(p)
}

// suspect tells everybody of a suspicion that begins or ends.
func (o *Overlay) suspect(p peer.ID, suspected bool, silence time.Duration) {
	log.Debugw("suspicion", "peer", p, "suspected", suspected, "silence", silence)
	if suspected {
		o.count.suspicions.Add(1)
	}
	for _, f := range o.onSuspect {
		f(p, suspected)
	}
	o.linksMu.RLock()
	l := o.links[p]
	o.linksMu.RUnlock()
	if !suspected {
		o.endKnock(p)
	} else if silence > 0 {
		o.knock(p)
	}
	switch {
	case l == nil:
	case !suspected:
		l.silent.Store(0)
	case silence > 0: // with a lost connection its calls have failed, and a new one may be had
		l.giveUp()
	}
}

// unwatched tells everybody that a watch has ended.
func (o *Overlay) unwatched(p peer.ID) {
	for _, f := range o.onUnwatch {
		f(p)
	}
	o.endKnock(p)
	o.knocks.forget(p)
	o.unsuspect(p)
}

// unsuspect has calls go to a peer again before long that is not watched any more: nobody asks whether it is back, and it may have nothing
// to say unless it is called.
func (o *Overlay) unsuspect(p peer.ID) {
	o.linksMu.RLock()
	l := o.links[p]
	o.linksMu.RUnlock()
	if l != nil {
		l.silent.CompareAndSwap(int64(automaton.Never), int64(o.beats.now().Add(silentFor)))
	}
}

// giveUp fails the calls that await an answer, and those to come while the peer's streams live and it stays silent.
func (l *link) giveUp() {
	l.mu.Lock()
	l.silent.Store(0)
	if l.streams > 0 {
		l.silent.Store(int64(automaton.Never))
	}
	if l.heard.Load() { // something has come since the detector looked, and what comes next will not be noted before it looks again
		l.silent.Store(0)
	}
	var calls []*call
	for _, c := range l.calls {
		calls = append(calls, c)
	}
	clear(l.calls)
	l.mu.Unlock()
	endAll(calls, fmt.Errorf("%w: %s", ErrSuspected, l.peer))
}

func (o *Overlay) handleHeartbeat(r *Request) {
	m, err := decodeHeartbeat(r.Data)
	if err != nil || !r.OneWay() {
		r.Misbehaved(string(ReasonHeartbeat))
		return
	}
	asked := automaton.Instant(0)
	if m.answer {
		asked = m.at
	}
	if o.judge(r.From, m.boot, asked) == twins.Accept {
		o.beats.received(r.From, m)
	}
}

// heartbeat is a ping or the answer to one, which repeats its instant: one byte, 0 or 1, then nonce and instant, eight bytes each,
// the highest first; then id and count of the sender's store, sixteen bytes and eight, or zeros if it has none.
type heartbeat struct {
	answer bool
	nonce  uint64            // of the sender's start, never 0
	at     automaton.Instant // of who has pinged, when it did
	boot   Boot              // of the sender's store, or zero; with the same nonce
}

const heartbeatBytes = 41

func (m heartbeat) encode() []byte {
	b := make([]byte, 1, heartbeatBytes)
	if m.answer {
		b[0] = 1
	}
	b = binary.BigEndian.AppendUint64(b, m.nonce)
	b = binary.BigEndian.AppendUint64(b, uint64(m.at))
	b = append(b, m.boot.Store[:]...)
	return binary.BigEndian.AppendUint64(b, m.boot.Count)
}

func decodeHeartbeat(b []byte) (m heartbeat, err error) {
	if len(b) != heartbeatBytes || b[0] > 1 {
		return m, malformed("heartbeat of %d bytes", len(b))
	}
	m = heartbeat{answer: b[0] == 1, nonce: binary.BigEndian.Uint64(b[1:]), at: automaton.Instant(binary.BigEndian.Uint64(b[9:]))}
	if m.nonce == 0 {
		return m, malformed("heartbeat without nonce")
	}
	if store, count := b[17:33], binary.BigEndian.Uint64(b[33:]); count > 0 || [16]byte(store) != [16]byte{} {
		m.boot, err = decodeBoot(store, count, m.nonce)
	}
	return m, err
}
