package dht

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multistream"

	"latchkey/dht/detector"
	"latchkey/dht/twins"
	"latchkey/internal/automaton"
)

// Boot is one start of the store that a peer keeps its replicas in. The zero value is that of a peer without a store.
type Boot = twins.Boot

// WithBoot says which store the peer runs with, and which start of it this is, from 1; the nonce is not zero. Hellos and
// heartbeats carry it, and the others judge by it whether the store runs in two places.
func WithBoot(b Boot) Option { return func(c *config) { c.own = b } }

// streamTwin is the code that streams are reset with to a peer whose store runs in two places.
const streamTwin network.StreamErrorCode = 0x6c6b01

// alarmsMax is how many alarms are kept; the oldest goes first.
const alarmsMax = 64

// Alarm says that something exists twice that must exist once: a store, as a copied or set-back directory makes it, or an
// identity.
type Alarm struct {
	Peer  peer.ID
	Other peer.ID  // uses Peer's store too; empty: two processes have Peer's identity
	Store [16]byte // that runs twice; zero: two processes have one identity and, as far as we know, not one store
	At    time.Time
}

// String says in one line what happened, to whom, and what to do.
func (a Alarm) String() string {
	switch {
	case a.Store == [16]byte{}:
		return fmt.Sprintf("two processes use the identity of peer %s, as a copied directory makes them: stop one of them", a.Peer)
	case a.Other != "":
		return fmt.Sprintf("peers %s and %s run one store %x, a copy: nothing of it counts but what the groups' views name; stop the one with the copy "+
			"and give it a new store with daemon --restored", a.Peer, a.Other, a.Store)
	}
	return fmt.Sprintf("store %x of peer %s runs in two places, or was set back to an earlier state: it is refused here, all that claims it; "+
		"stop the peer wherever it runs, and start the one to be kept with daemon --restored", a.Store, a.Peer)
}

// boots is what was heard of stores and their starts.
type boots struct {
	mu     sync.Mutex
	judge  twins.Judge
	any    atomic.Bool // somebody was refused; before that nobody need ask
	alarms []Alarm
}

// OnAlarm registers a function that is told of every alarm. It is called by several goroutines and must not block. Call it before
// [Overlay.Start].
func (o *Overlay) OnAlarm(f func(Alarm)) {
	o.life.Lock()
	defer o.life.Unlock()
	if o.started {
		panic("dht: OnAlarm after Start")
	}
	o.onAlarm = append(o.onAlarm, f)
}

// OnAccused registers a function that is told when a peer refuses us since our own store runs in two places: it has proof of
// that, or lies. It may be told again and again, by several goroutines, and must not block. Call it before [Overlay.Start].
func (o *Overlay) OnAccused(f func(by peer.ID)) {
	o.life.Lock()
	defer o.life.Unlock()
	if o.started {
		panic("dht: OnAccused after Start")
	}
	o.onAccused = append(o.onAccused, f)
}

// Alarms returns the latest alarms, the oldest first.
func (o *Overlay) Alarms() []Alarm {
	o.boots.mu.Lock()
	defer o.boots.mu.Unlock()
	return slices.Clone(o.boots.alarms)
}

// Refuses reports whether the peer is refused with this store, since it runs in two places. That lasts as long as this overlay: it is
// over for the peer once it has another store.
func (o *Overlay) Refuses(p peer.ID, store [16]byte) bool {
	if !o.boots.any.Load() {
		return false
	}
	o.boots.mu.Lock()
	defer o.boots.mu.Unlock()
	return o.boots.judge.Refuses(twins.Peer(p), store)
}

// refused reports whether the peer is refused with the store it was last started with.
func (o *Overlay) refused(p peer.ID) bool {
	if !o.boots.any.Load() {
		return false
	}
	o.boots.mu.Lock()
	defer o.boots.mu.Unlock()
	return o.boots.judge.Refused(twins.Peer(p))
}

// judge weighs what a peer says of its start. asked is when the question left that it answers, zero if none did. With [twins.Refuse]
// the peer's streams are gone.
func (o *Overlay) judge(p peer.ID, b Boot, asked automaton.Instant) twins.Verdict {
	own := o.own != (Boot{}) && b.Store == o.own.Store
	o.boots.mu.Lock()
	if own {
		asked = max(asked, 1) // whoever speaks to us has lived since we started, which was at 0
	}
	v, alarm := o.boots.judge.See(twins.Sighting{Peer: twins.Peer(p), Boot: b, Asked: asked}, o.beats.now())
	if v == twins.Refuse {
		o.boots.any.Store(true)
	}
	var ours *twins.Alarm
	if own { // and so have we
		now := o.beats.now()
		_, ours = o.boots.judge.See(twins.Sighting{Peer: twins.Peer(o.self), Boot: o.own, Asked: now}, now)
	}
	o.boots.mu.Unlock()
	for _, a := range []*twins.Alarm{alarm, ours} {
		if a != nil {
			o.alarm(Alarm{Peer: peer.ID(a.Peer), Other: peer.ID(a.Other), Store: a.Store})
		}
	}
	if v == twins.Refuse {
		o.expel(p)
	}
	return v
}

// alarm tells everybody, once for each subject.
func (o *Overlay) alarm(a Alarm) {
	o.count.alarms.Add(1)
	a.At = time.Now()
	if o.boots.keep(a) {
		log.Error(a.String())
	}
	if a.Other == "" && o.refused(a.Peer) {
		o.beats.box.Put(detector.Lost{Peer: detector.Peer(a.Peer)}) // to those who watch it it is gone
	}
	for _, f := range o.onAlarm {
		f(a)
	}
}

// keep puts an alarm in the place of an older one about the same, and reports whether it is the first.
func (b *boots) keep(a Alarm) (first bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := len(b.alarms)
	b.alarms = slices.DeleteFunc(b.alarms, func(b Alarm) bool { return b.Peer == a.Peer && b.Other == a.Other && b.Store == a.Store })
	first = len(b.alarms) == before
	b.alarms = append(b.alarms, a)
	b.alarms = b.alarms[max(0, len(b.alarms)-alarmsMax):]
	return first
}

// Refuse refuses a peer with this store, on the word of somebody whom the caller believes to have proof that it runs in two places. It
// is as if we had heard both.
func (o *Overlay) Refuse(p peer.ID, store [16]byte) {
	o.boots.mu.Lock()
	first := o.boots.judge.Condemn(twins.Peer(p), store)
	if first {
		o.boots.any.Store(true)
	}
	o.boots.mu.Unlock()
	if first {
		o.alarm(Alarm{Peer: p, Store: store})
		o.expel(p)
	}
}

// expel ends the streams of a peer that is refused, and with them its calls.
func (o *Overlay) expel(p peer.ID) {
	o.linksMu.RLock()
	l := o.links[p]
	o.linksMu.RUnlock()
	if l == nil {
		return
	}
	l.mu.Lock()
	refused := false
	for i := range l.lanes {
		for _, s := range []*stream{l.lanes[i].opened, l.lanes[i].accepted} {
			refused = refused || s != nil && o.Refuses(p, s.boot.Store)
		}
	}
	if !refused {
		l.mu.Unlock()
		return
	}
	lost, calls := l.loseLocked()
	l.session = newSession()
	l.mu.Unlock()
	for _, s := range lost {
		s.net.ResetWithError(streamTwin)
	}
	endAll(calls, fmt.Errorf("%w: %s: its store runs in two places", ErrLinkLost, p))
	o.forget(l)
}

// question asks whether somebody is still there at the other end of a connection by which the hello of an earlier start came. Of a
// process that is over nothing comes but what it sent before.
func (o *Overlay) question(l *link, c network.Conn) {
	if l.asking.Swap(true) {
		return
	}
	asks := o.spawn(func() {
		defer l.asking.Store(false)
		ctx, cancel := context.WithTimeout(o.ctx, openTimeout)
		defer cancel()
		ns, err := c.NewStream(ctx)
		if err != nil {
			return
		}
		s := newStream(l, Control, ns, true)
		err = ns.SetDeadline(time.Now().Add(o.hello))
		if err == nil {
			err = errors.Join(multistream.SelectProtoOrFail(o.protocols[Control], ns), ns.SetProtocol(o.protocols[Control]))
		}
		if err == nil {
			err = s.greet() // its verdict is all we want
		}
		log.Debugw("asked a former start", "peer", l.peer, "answer", err)
		ns.Reset()
	})
	if !asks {
		l.asking.Store(false)
	}
}

// heed looks whether a stream's end tells that our own store runs in two places.
func (s *stream) heed(err error) {
	var reset *network.StreamError
	if !errors.As(err, &reset) || !reset.Remote || reset.ErrorCode != streamTwin {
		return
	}
	for _, f := range s.link.o.onAccused {
		f(s.link.peer)
	}
}
