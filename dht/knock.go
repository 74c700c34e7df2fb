package dht

import (
	"context"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/multiformats/go-multistream"
)

// A network that was cut and is whole again does not wake the connections over it: the kernel has waited longer and longer between two
// attempts to send what was not acknowledged, and waits about as long again as the cut lasted. So a peer that stays silent is knocked at: it is dialled
// beside the connections there are. When it answers there, and still says nothing on those, they are closed, and whoever has
// something to say dials anew. A frozen peer answers nowhere, one that is slow, or whose overlay alone is silent, answers where it is asked first: on the connections there are. They keep them.
const (
	// knockAfter is how long a peer may be suspected before it is knocked at: most suspicions pass by themselves.
	knockAfter = time.Second
	// askedMax is how long a connection may owe an answer. Only then is the peer dialled beside it.
	askedMax = time.Second
	// knockTimeout bounds one knock, with its handshakes; a kernel tries twice within it.
	knockTimeout = 2 * time.Second
	// knockPauseMax is the longest pause before a peer is asked again that does answer where it is asked; it doubles from knockAfter.
	knockPauseMax = 30 * time.Second
	// After its connections were made anew a peer is left alone for a pause that doubles from renewPauseMin to renewPauseMax, and is forgotten
	// when it is over for as long again. A connection that comes up is a sign of life: one that is silent on every new one, too, must come to count
	// as failed, which takes half a minute of suspicion (placement.PlanTimes).
	renewPauseMin = 10 * time.Second
	renewPauseMax = 5 * time.Minute
	// knockAddrsMax is at how many addresses a peer is knocked at once.
	knockAddrsMax = 4
)

// knocks are the peers that are being knocked at, and what ends it.
type knocks struct {
	mu      sync.Mutex
	ends    map[peer.ID]*context.CancelFunc
	renewed map[peer.ID]renewal // of watched peers
}

// renewal is the last one of a peer's connections, and for how long it is left alone since.
type renewal struct {
	at    time.Time
	pause time.Duration
}

// wait returns how long a peer that is suspected now is left alone.
func (k *knocks) wait(p peer.ID, now time.Time) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	return max(knockAfter, k.renewed[p].at.Add(k.renewed[p].pause).Sub(now))
}

// renew notes that a peer's connections are made anew.
func (k *knocks) renew(p peer.ID, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	r := renewal{now, renewPauseMin}
	if last, ok := k.renewed[p]; ok && now.Sub(last.at) < 2*last.pause {
		r.pause = min(2*last.pause, renewPauseMax)
	}
	if k.renewed == nil {
		k.renewed = make(map[peer.ID]renewal)
	}
	k.renewed[p] = r
}

// forget forgets a peer that is not watched any more.
func (k *knocks) forget(p peer.ID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.renewed, p)
}

// knock begins to knock at a peer that fell silent, until it is heard or has no connection any more.
func (o *Overlay) knock(p peer.ID) {
	k := &o.knocks
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ends[p] != nil {
		return
	}
	ctx, end := context.WithCancel(o.ctx)
	if !o.spawn(func() {
		o.knockOn(ctx, p)
		end()
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.ends[p] == &end {
			delete(k.ends, p)
		}
	}) {
		end()
		return
	}
	if k.ends == nil {
		k.ends = make(map[peer.ID]*context.CancelFunc)
	}
	k.ends[p] = &end
}

// endKnock ends it.
func (o *Overlay) endKnock(p peer.ID) {
	k := &o.knocks
	k.mu.Lock()
	defer k.mu.Unlock()
	if end := k.ends[p]; end != nil {
		(*end)()
		delete(k.ends, p)
	}
}

func (o *Overlay) knockOn(ctx context.Context, p peer.ID) {
	t := time.NewTimer(o.knocks.wait(p, time.Now()))
	defer t.Stop()
	for pause := knockAfter; ; {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		conns := o.host.Network().ConnsToPeer(p)
		if len(conns) == 0 {
			return // whoever has something to say dials
		}
		switch alive, reached := o.mute(ctx, p, conns); {
		case ctx.Err() != nil:
			return
		case alive:
			pause = min(2*pause, knockPauseMax)
			t.Reset(pause)
		case !reached:
			pause = knockAfter
			t.Reset(0)
		default:
			log.Infow("a silent peer was reached beside its connections, which are closed to be made anew", "peer", p)
			o.count.renewed.Add(1)
			o.knocks.renew(p, time.Now())
			for _, c := range conns {
				_ = c.CloseWithError(network.ConnGarbageCollected)
			}
			return
		}
	}
}

// mute asks a peer on its connections, and dials it beside them when no answer comes in time. alive says that one of them has brought an
// answer, reached that none has and the peer was reached beside them.
func (o *Overlay) mute(ctx context.Context, p peer.ID, conns []network.Conn) (alive, reached bool) {
	ctx, cancel := context.WithTimeout(ctx, askedMax+knockTimeout)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	answers := make(chan struct{}, len(conns))
	for _, c := range conns {
		asking.Go(func() {
			if o.answers(ctx, c) {
				answers <- struct{}{}
			}
		})
	}
	t := time.NewTimer(askedMax)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false, false
	case <-answers:
		return true, false
	case <-t.C:
	}
	reached = o.reaches(ctx, p, conns)
	select {
	case <-answers:
		return true, false
	default:
		return false, reached
	}
}

// answers asks for a stream on a connection, and reports whether anything came back in time. A refusal is an answer, and so is a failure of
// our own: it says nothing against the connection.
func (o *Overlay) answers(ctx context.Context, c network.Conn) bool {
	s, err := c.NewStream(ctx)
	if err == nil {
		defer s.Reset()
		defer context.AfterFunc(ctx, func() { s.Reset() })()
		err = multistream.SelectProtoOrFail(o.protocols[Control], s)
	}
	return err == nil || ctx.Err() == nil && !c.IsClosed()
}

// reaches dials a peer beside its connections, and reports whether it answered. What was dialled is closed.
func (o *Overlay) reaches(ctx context.Context, p peer.ID, conns []network.Conn) bool {
	n, ok := o.host.Network().(interface {
		TransportForDialing(ma.Multiaddr) transport.Transport
	})
	if !ok || !o.admitted(p) {
		return false
	}
	addrs := make([]ma.Multiaddr, 0, knockAddrsMax)
	add := func(a ma.Multiaddr) {
		if len(addrs) < knockAddrsMax && manet.IsThinWaist(a) && !ma.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	for _, c := range conns {
		if c.Stat().Direction == network.DirOutbound {
			add(c.RemoteMultiaddr())
		}
	}
	for _, a := range o.host.Peerstore().Addrs(p) {
		add(a)
	}
	ctx, cancel := context.WithTimeout(ctx, knockTimeout)
	defer cancel()
	dials := make(chan bool, len(addrs))
	under := 0
	for _, a := range addrs {
		t := n.TransportForDialing(a)
		if t == nil || t.Proxy() {
			continue
		}
		under++
		go func() {
			c, err := t.Dial(ctx, a, p)
			if err == nil {
				cancel()
				_ = c.Close()
			}
			dials <- err == nil
		}()
	}
	reached := false
	for range under {
		reached = <-dials || reached
	}
	return reached
}
