package node

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-msgio/pbio"
	"github.com/multiformats/go-multistream"

	"latchkey/dht"
	"latchkey/node/allowlist"
	"latchkey/node/allowlist/pb"
	"latchkey/replicagroup/placement"
)

// Limits of the protocols by which allow-lists spread and peers are enrolled.
const (
	// accessStreamsMax bounds the streams that are served of each, and accessPerPeerMax those of one peer. One more is reset.
	accessStreamsMax = 32
	accessPerPeerMax = 2
	// accessTimeout bounds one exchange, and how long a peer stays connected that may do nothing but be enrolled.
	accessTimeout = 10 * time.Second
	// accessMessageMax bounds a message: a list and what names it.
	accessMessageMax = 1<<20 + 4<<10 // [allowlist.DocumentBytesMax] and what names it
	// accessAtOnce is how many exchanges we begin at a time.
	accessAtOnce = 8
	// revokedTimeout bounds the exchange with a peer that was revoked, which is told of the list that says so before its connection ends.
	revokedTimeout = 2 * time.Second
	// revokedAtOnce is how many such peers are told at a time that come anew, each once in revokedPause; others are sent away at once.
	revokedAtOnce = 8
	revokedPause  = 10 * time.Second
	// accessTick is how often lists that did not get through are sent again, and the directory is looked at.
	accessTick = 500 * time.Millisecond
)

func accessProtocol(g placement.Genesis) protocol.ID { return overlayProtocol(g, "access") }
func joinProtocol(g placement.Genesis) protocol.ID   { return overlayProtocol(g, "join") }

func overlayProtocol(g placement.Genesis, name string) protocol.ID {
	return protocol.ID(overlayPrefix(g) + name + "/1.0.0")
}

// accessPeers spreads the allow-list among the overlay's peers, sends away those that are not on it, and enrols those that were invited.
type accessPeers struct {
	host     host.Host
	overlay  *dht.Overlay
	genesis  placement.Genesis
	access   *Access
	refusals *Refusals
	close    bool // connections that are refused end
	// enrol makes joiner a member by an invitation, and returns the list; nil: this peer has no directory.
	enrol func(ctx context.Context, invitation, joiner peer.ID) (doc []byte, err error)

	exchanges, joins entrants
	kick             chan struct{} // the list is a new one
	ctx              context.Context
	cancel           context.CancelFunc
	busy             sync.WaitGroup // exchanges and handlers under way
	closing          sync.Mutex     // guards closed and ending
	closed           bool
	ending           map[string]bool // connections that are being closed, by their ids
	told             tellers         // who says that this peer is not let in
	revoked          revokedPeers    // who was told so of late
	watcher
}

// entrants counts streams that are served.
type entrants struct {
	mu    sync.Mutex
	peers map[peer.ID]int
	total int
}

func (e *entrants) enter(p peer.ID) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.total >= accessStreamsMax || e.peers[p] >= accessPerPeerMax {
		return false
	}
	if e.peers == nil {
		e.peers = make(map[peer.ID]int)
	}
	e.total++
	e.peers[p]++
	return true
}

func (e *entrants) leave(p peer.ID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.total--
	if e.peers[p]--; e.peers[p] == 0 {
		delete(e.peers, p)
	}
}

func newAccessPeers(h host.Host, o *dht.Overlay, g placement.Genesis, a *Access, r *Refusals, close bool) *accessPeers {
	x := &accessPeers{host: h, overlay: o, genesis: g, access: a, refusals: r, close: close, kick: make(chan struct{}, 1), ending: make(map[string]bool)}
	x.ctx, x.cancel = context.WithCancel(context.Background())
	a.onChange(func() {
		o.Reconsider() // at once: nothing is granted after a list that says that we are out
		select {
		case x.kick <- struct{}{}:
		default:
		}
	})
	return x
}

// begin counts the calling goroutine, or one about to be started, among those stop waits for; busy.Done ends that.
func (x *accessPeers) begin() bool {
	x.closing.Lock()
	defer x.closing.Unlock()
	if x.closed {
		return false
	}
	x.busy.Add(1)
	return true
}

func (x *accessPeers) start() error {
	tells := x.tellRevoked
	x.access.tells.Store(&tells)
	x.host.SetStreamHandler(accessProtocol(x.genesis), func(s network.Stream) {
		x.served(s, &x.exchanges, x.access.Admits, x.answer)
	})
	x.host.SetStreamHandler(joinProtocol(x.genesis), func(s network.Stream) {
		invited := func(p peer.ID) bool {
			if x.access.Judge(p) != allowlist.Invited { // it may have been invited a moment ago
				x.newest()
			}
			return x.access.Judge(p) == allowlist.Invited
		}
		x.served(s, &x.joins, invited, x.join)
	})
	return x.watcher.start(x.host, "latchkey/access", []any{new(event.EvtPeerIdentificationCompleted)}, x.run)
}

func (x *accessPeers) stop() {
	x.host.RemoveStreamHandler(accessProtocol(x.genesis))
	x.host.RemoveStreamHandler(joinProtocol(x.genesis))
	x.access.tells.Store(nil)
	x.cancel()
	x.closing.Lock()
	x.closed = true
	x.closing.Unlock()
	x.watcher.stop()
	x.told.unwatch(x)
	x.busy.Wait()
}

// served runs a handler for a stream of a peer that may open it.
func (x *accessPeers) served(s network.Stream, in *entrants, may func(peer.ID) bool, handle func(context.Context, network.Stream) error) {
	p := s.Conn().RemotePeer()
	if !x.begin() {
		s.ResetWithError(network.StreamShutdown)
		return
	}
	defer x.busy.Done()
	if !may(p) {
		_, why := refusalOf(x.access.Judge(p))
		x.refusals.add(why)
		s.ResetWithError(network.StreamGated)
		return
	}
	if !in.enter(p) {
		x.refusals.add(RefusedLimits)
		s.ResetWithError(network.StreamResourceLimitExceeded)
		return
	}
	defer in.leave(p)
	ctx, cancel := context.WithTimeout(x.ctx, accessTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	if err := handle(ctx, s); err != nil {
		log.Debugw("access", "peer", p, "protocol", s.Protocol(), "err", err)
		s.Reset()
		return
	}
	s.Close()
}

// run follows peers that come, lists that change, and time.
func (x *accessPeers) run(events <-chan any) {
	x.host.Network().Notify(x.told.watch(x)) // not in start, which may be called by who is told of a connection: that would wait for itself
	said := make(map[peer.ID]string)         // the list that a peer and we had in common last
	under := make(map[peer.ID]bool)
	failed := make(map[peer.ID]time.Time) // the last exchange with a peer that was revoked
	type outcome struct {
		peer peer.ID
		list string // empty: it failed
	}
	done := make(chan outcome, accessAtOnce) // has room for all
	tick := time.NewTicker(accessTick)
	defer tick.Stop()
	// spread begins an exchange with whoever may not know our list, and sees to those who are not on it.
	spread := func() {
		ours := x.access.List()
		if ours == nil {
			return
		}
		peers := x.host.Network().Peers()
		for p := range said {
			if !slices.Contains(peers, p) {
				delete(said, p)
			}
		}
		for p, at := range failed {
			if time.Since(at) >= revokedPause {
				delete(failed, p)
			}
		}
		for _, p := range peers {
			v := x.access.Judge(p)
			if v == allowlist.WasRevoked {
				x.overlay.Dismiss(p) // at once, however many exchanges are under way; its connections have a moment
			}
			if under[p] || len(under) >= accessAtOnce {
				continue
			}
			tell := func() bool { // where its connections are not ours to end, one that does not answer is not asked all the time
				_, paused := failed[p]
				return v == allowlist.WasRevoked && !paused && said[p] != nameOf(ours) && x.speaks(p)
			}
			if v != allowlist.Admitted && !x.access.introducer(p, v) && !tell() {
				x.dismiss(p, v)
				continue
			}
			if said[p] == nameOf(ours) && v == allowlist.Admitted {
				continue
			}
			if !x.speaks(p) {
				if v != allowlist.Admitted && x.age(p) > accessTimeout {
					x.dismiss(p, v)
				}
				continue
			}
			if !x.begin() {
				return
			}
			under[p] = true
			go func() {
				defer x.busy.Done()
				patience := accessTimeout
				if v == allowlist.WasRevoked {
					patience = revokedTimeout
				}
				list, err := x.exchange(x.ctx, p, patience)
				if err != nil {
					log.Debugw("allow-list not exchanged", "peer", p, "err", err)
				}
				if v := x.access.Judge(p); v == allowlist.WasRevoked || v != allowlist.Admitted && (err == nil || x.age(p) > accessTimeout) {
					x.dismiss(p, v) // its list, if it had a newer one, does not name it either
				}
				done <- outcome{p, list}
			}()
		}
	}
	x.overlay.Dismiss(x.host.ID()) // where the list does not admit us
	x.tell()
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return
			}
			x.told.met(e.(event.EvtPeerIdentificationCompleted).Peer)
			spread()
		case <-x.kick:
			x.overlay.Dismiss(x.host.ID())
			x.tell()
			spread()
		case o := <-done:
			delete(under, o.peer)
			if said[o.peer] = o.list; o.list == "" {
				delete(said, o.peer)
				if x.access.Judge(o.peer) == allowlist.WasRevoked {
					failed[o.peer] = time.Now()
				}
			} else {
				spread()
			}
		case <-tick.C:
			x.newest()
			spread()
		}
	}
}

// newest takes in what has changed in the directory, and returns the list that counts now.
func (x *accessPeers) newest() *allowlist.List {
	if x.access.reload != nil {
		x.access.reload()
	}
	return x.access.List()
}

// tell says what an operator must know of a list: that this peer is not on it.
func (x *accessPeers) tell() {
	l := x.access.List()
	if v := l.Judge(x.host.ID(), time.Now()); v != allowlist.Admitted {
		log.Errorw("this peer may not be in the overlay: others will refuse it", "peer", x.host.ID(), "verdict", v, "list", l.Number())
	}
}

// speaks reports whether a peer takes part in exchanges, as far as it has said.
func (x *accessPeers) speaks(p peer.ID) bool {
	all, err := x.host.Peerstore().SupportsProtocols(p, accessProtocol(x.genesis))
	return err == nil && len(all) > 0
}

// nameOf names a list in memory.
func nameOf(l *allowlist.List) string {
	h := l.Have()
	return fmt.Sprint(h.Admin, ".", h.Number, ".", string(h.Digest))
}

// age is for how long a peer has been connected.
func (x *accessPeers) age(p peer.ID) (age time.Duration) {
	for _, c := range x.host.Network().ConnsToPeer(p) {
		age = max(age, time.Since(c.Stat().Opened))
	}
	return age
}

// dismiss ends what the overlay has with a peer that the list does not admit, and on a host of our own its connections. An invitation has
// some time to be used, and for its answer to arrive.
func (x *accessPeers) dismiss(p peer.ID, v allowlist.Verdict) {
	x.overlay.Dismiss(p)
	if !x.close || (v == allowlist.Invited || v == allowlist.Used) && x.access.enrols.Load() && x.age(p) < accessTimeout {
		return
	}
	code, why := refusalOf(v)
	for _, c := range x.host.Network().ConnsToPeer(p) {
		x.closing.Lock()
		under := x.closed || x.ending[c.ID()]
		if !under {
			x.ending[c.ID()] = true
			x.busy.Add(1)
		}
		x.closing.Unlock()
		if under {
			continue
		}
		x.refusals.add(why)
		go func() { // which waits when the peer reads nothing
			defer x.busy.Done()
			c.CloseWithError(code)
			x.closing.Lock()
			delete(x.ending, c.ID())
			x.closing.Unlock()
		}()
	}
}

// exchange tells a connected peer which list we have, takes over its list or gives it ours, and returns the name of what both have then.
func (x *accessPeers) exchange(ctx context.Context, p peer.ID, patience time.Duration) (string, error) {
	const why = "lists go over connections that are there"
	ctx, cancel := context.WithTimeout(network.WithAllowLimitedConn(network.WithNoDial(ctx, why), why), patience)
	defer cancel()
	s, err := x.host.NewStream(ctx, p, accessProtocol(x.genesis))
	if err != nil {
		return "", err
	}
	defer s.Reset()
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	list, err := x.converse(s)
	if err == nil {
		err = s.Close()
	}
	return list, err
}

// converse is exchange on a stream.
func (x *accessPeers) converse(s io.ReadWriter) (string, error) {
	ours := x.access.List()
	w, r := pbio.NewDelimitedWriter(s), pbio.NewDelimitedReader(s, accessMessageMax)
	if err := w.WriteMsg(ours.Have()); err != nil {
		return "", err
	}
	var theirs pb.Have
	if err := r.ReadMsg(&theirs); err != nil {
		return "", err
	}
	if len(theirs.Document) > 0 {
		if _, err := x.access.Take(theirs.Document); err != nil {
			return "", err
		}
		return nameOf(x.access.List()), nil
	}
	last := &pb.Have{}
	if ours.Newer(&theirs) {
		last.Document = ours.Document()
	}
	if err := w.WriteMsg(last); err != nil {
		return "", err
	}
	if err := r.ReadMsg(&theirs); err != nil { // it has taken it
		return "", err
	}
	return nameOf(ours), nil
}

// answer is the other side of exchange.
func (x *accessPeers) answer(_ context.Context, s network.Stream) error {
	w, r := pbio.NewDelimitedWriter(s), pbio.NewDelimitedReader(s, accessMessageMax)
	var theirs pb.Have
	if err := r.ReadMsg(&theirs); err != nil {
		return err
	}
	ours := x.access.List()
	have := ours.Have()
	if ours.Newer(&theirs) {
		have.Document = ours.Document()
		return w.WriteMsg(have)
	}
	if err := w.WriteMsg(have); err != nil {
		return err
	}
	var last pb.Have
	if err := r.ReadMsg(&last); err != nil {
		return err
	}
	if len(last.Document) > 0 {
		if _, err := x.access.Take(last.Document); err != nil {
			return err
		}
	}
	return w.WriteMsg(x.access.have())
}

// revokedPeers are those that were told of late that they are revoked.
type revokedPeers struct {
	mu    sync.Mutex
	under int
	at    map[peer.ID]time.Time
}

// begin reports whether a peer is to be told now; if so end follows.
func (r *revokedPeers) begin(p peer.ID, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for q, at := range r.at {
		if now.Sub(at) >= revokedPause {
			delete(r.at, q)
		}
	}
	if _, told := r.at[p]; told || r.under >= revokedAtOnce {
		return false
	}
	if r.at == nil {
		r.at = make(map[peer.ID]time.Time) // of revoked peers only, of which a list has so many
	}
	r.under++
	r.at[p] = now
	return true
}

func (r *revokedPeers) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.under--
}

// tellRevoked gives our list to a peer that was revoked and comes anew, on a connection that the host has not taken and will not take:
// nothing that the peer sends gets further than its side of this exchange. Else a peer that was away when it was revoked would go on with
// what it has: the groups of which it is a majority by itself, and their locks. It blocks for revokedTimeout at most.
func (x *accessPeers) tellRevoked(c network.Conn) {
	p := c.RemotePeer()
	if !x.begin() {
		return
	}
	defer x.busy.Done()
	if !x.revoked.begin(p, time.Now()) {
		return
	}
	defer x.revoked.end()
	ctx, cancel := context.WithTimeout(x.ctx, revokedTimeout)
	defer cancel()
	s, err := openBare(ctx, c)
	if err == nil {
		defer context.AfterFunc(ctx, func() { s.SetDeadline(time.Unix(1, 0)) })()
		err = multistream.SelectProtoOrFail(accessProtocol(x.genesis), io.ReadWriteCloser(s))
	}
	if err == nil {
		_, err = x.converse(s)
	}
	if err != nil {
		log.Debugw("a revoked peer was not told", "peer", p, "err", err)
	}
}

// join serves an invitation.
func (x *accessPeers) join(ctx context.Context, s network.Stream) error {
	invitation := s.Conn().RemotePeer()
	w, r := pbio.NewDelimitedWriter(s), pbio.NewDelimitedReader(s, allowlist.EnrolBytesMax)
	refuse := func(why string) error { return w.WriteMsg(&pb.EnrolResponse{Refusal: why}) }
	if x.enrol == nil || !x.access.enrols.Load() {
		return refuse(gated[gatedElsewhere])
	}
	var m pb.EnrolRequest
	if err := r.ReadMsg(&m); err != nil {
		return err
	}
	joiner, err := allowlist.CheckEnrolRequest(x.genesis, invitation, &m)
	var doc []byte
	if err == nil {
		doc, err = x.enrol(ctx, invitation, joiner)
	}
	if err != nil {
		x.refusals.add(RefusedInvitation)
		log.Infow("not enrolled", "invitation", invitation, "peer", joiner, "err", err)
		return refuse(err.Error())
	}
	log.Warnw("a peer was enrolled by its invitation", "peer", joiner, "invitation", invitation)
	return w.WriteMsg(&pb.EnrolResponse{Document: doc})
}

// enrolAt asks a connected peer to put the owner of key on the list, by the invitation that h's identity is, and returns the list.
func enrolAt(ctx context.Context, h host.Host, g placement.Genesis, key crypto.PrivKey, p peer.ID) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, accessTimeout)
	defer cancel()
	m, err := allowlist.EnrolRequest(g, key, h.ID())
	if err != nil {
		return nil, err
	}
	s, err := h.NewStream(ctx, p, joinProtocol(g))
	if err != nil {
		return nil, err
	}
	defer s.Reset()
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	var answer pb.EnrolResponse
	if err := pbio.NewDelimitedWriter(s).WriteMsg(m); err != nil {
		return nil, err
	}
	if err := pbio.NewDelimitedReader(s, accessMessageMax).ReadMsg(&answer); err != nil {
		return nil, err
	}
	if len(answer.Document) == 0 {
		return nil, fmt.Errorf("%w: %s says: %.200q", ErrRefused, p, answer.Refusal)
	}
	return answer.Document, s.Close()
}

// listAt asks a connected peer of the overlay for its list.
func listAt(ctx context.Context, h host.Host, g placement.Genesis, p peer.ID) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, accessTimeout)
	defer cancel()
	s, err := h.NewStream(ctx, p, accessProtocol(g))
	if err != nil {
		return nil, err
	}
	defer s.Reset()
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	if err := pbio.NewDelimitedWriter(s).WriteMsg(&pb.Have{}); err != nil {
		return nil, err
	}
	var theirs pb.Have
	if err := pbio.NewDelimitedReader(s, accessMessageMax).ReadMsg(&theirs); err != nil {
		return nil, err
	}
	return theirs.Document, nil
}
