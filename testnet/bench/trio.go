package bench

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/replicagroup"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/session"
)

// trio is the smallest overlay that bears a failure: three peers on the loopback, each on a libp2p host and a store of its own, that
// keep one group of a machine that only counts.
type trio struct {
	peers [voters]*trioPeer
	key   keyspace.Key // of the group
}

type trioPeer struct {
	host    host.Host
	store   replicagroup.Store
	done    func() error // closes the store
	overlay *dht.Overlay
	groups  *replicagroup.Host
	voters  replicagroup.VoterService // what runs beside the logs; nil: nothing does
}

const (
	voters       = 3
	countService = "count"
)

// newTrio starts the peers and waits until they know each other. Stores are made in directories below dir.
//
// services are what the groups offer.
func newTrio(ctx context.Context, dir string, store makeStore, services map[string]replicagroup.MachineFactory) (_ *trio, err error) {
	t := &trio{key: keyspace.Preimage("bench").Key()}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	var infos []peer.AddrInfo
	for i := range t.peers {
		t.peers[i] = new(trioPeer)
		info, err := t.peers[i].listen()
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	g := foundedBy(infos)
	for i, p := range t.peers {
		if err := p.start(ctx, g, infos, filepath.Join(dir, strconv.Itoa(i)), store, services, nil); err != nil {
			return nil, err
		}
	}
	for _, p := range t.peers {
		if err := p.overlay.WaitPeers(ctx, voters-1); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// listen makes the peer's libp2p host, on a port of the loopback.
func (p *trioPeer) listen() (_ peer.AddrInfo, err error) {
	if p.host, err = libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay(), libp2p.DisableMetrics()); err != nil {
		return peer.AddrInfo{}, err
	}
	return peer.AddrInfo{ID: p.host.ID(), Addrs: p.host.Addrs()}, nil
}

// foundedBy draws the genesis of an overlay of these peers.
func foundedBy(peers []peer.AddrInfo) placement.Genesis {
	g := placement.Defaults()
	g.Name, g.F, g.RootKey = "bench", 1, make(ed25519.PublicKey, ed25519.PublicKeySize)
	rand.Read(g.Nonce[:])
	for _, p := range peers {
		founder := placement.Peer{ID: string(p.ID)}
		for _, a := range p.Addrs {
			founder.Addrs = append(founder.Addrs, a.String())
		}
		var id order.StoreID
		rand.Read(id[:])
		g.Founders = append(g.Founders, placement.Host{Peer: founder, Store: id})
	}
	return g
}

// start starts a founder that listens; fill, if any, puts more into its store before.
func (p *trioPeer) start(ctx context.Context, g placement.Genesis, peers []peer.AddrInfo, dir string, store makeStore,
	services map[string]replicagroup.MachineFactory, fill func(self keyspace.NodeID) error) (err error) {
	self := dht.NodeIDOf(p.host.ID())
	m, ok := g.RootView().MemberAt(self)
	if !ok {
		return errors.New("bench: no founder")
	}
	if p.store, p.done, err = store(dir, g.ID(), m.Store); err != nil {
		return err
	}
	if err := replicagroup.Found(p.store, g, self); err != nil {
		return err
	}
	if fill != nil {
		if err := fill(self); err != nil {
			return err
		}
	}
	if p.overlay, err = dht.New(p.host, dht.WithOverlayID(g.ID()), dht.WithBootstrap(peers...)); err != nil {
		return err
	}
	if p.groups, err = replicagroup.New(replicagroup.Config{Genesis: g, Overlay: p.overlay, Store: p.store, Services: services, Voters: p.voters}); err != nil {
		return err
	}
	return errors.Join(p.groups.Start(ctx), p.overlay.Start(ctx))
}

// follower returns a peer that does not lead the group.
func (t *trio) follower(ctx context.Context) (*trioPeer, error) {
	leader, err := t.peers[0].groups.Leader(ctx, t.key)
	if err != nil {
		return nil, err
	}
	for _, p := range t.peers {
		if string(p.host.ID()) != leader.ID {
			return p, nil
		}
	}
	return nil, fmt.Errorf("bench: no follower")
}

// messages returns how many messages all peers have sent.
func (t *trio) messages() (n uint64) {
	for _, p := range t.peers {
		n += p.overlay.Stats().MessagesSent
	}
	return n
}

func (t *trio) close() error {
	var errs []error
	for _, p := range t.peers {
		if p != nil {
			errs = append(errs, p.close())
		}
	}
	return errors.Join(errs...)
}

func (p *trioPeer) close() error {
	var errs []error
	if p.groups != nil {
		errs = append(errs, p.groups.Close())
	}
	if p.overlay != nil {
		errs = append(errs, p.overlay.Close())
	}
	if p.host != nil {
		errs = append(errs, p.host.Close())
	}
	if p.done != nil {
		errs = append(errs, p.done())
	}
	return errors.Join(errs...)
}

// sender is one peer's callers: their clients, and how many commands they have sent.
type sender struct {
	t       *trio
	clients []*replicagroup.Client // each serves perSession callers
	payload [payloadBytes]byte
	sent    atomic.Uint64
}

// newSender makes clients for n callers at a peer that does not lead the group, which it thereby creates.
func newSender(ctx context.Context, t *trio, n int) (*sender, error) {
	p, err := t.follower(ctx)
	if err != nil {
		return nil, err
	}
	s := &sender{t: t}
	for range (n + perSession - 1) / perSession {
		s.clients = append(s.clients, p.groups.NewClient()) // closed with the peer
	}
	return s, nil
}

// do sends one command of a caller and waits until it was executed.
func (s *sender) do(ctx context.Context, caller int) error {
	s.sent.Add(1)
	_, err := s.clients[caller/perSession].Do(ctx, s.t.key, countService, s.payload[:])
	return err
}

// check asks the group how many commands it has executed, which must be as many as were sent.
func (s *sender) check(ctx context.Context) (uint64, error) {
	b, err := s.clients[0].Query(ctx, s.t.key, countService, nil)
	if err != nil {
		return 0, err
	}
	if sent := s.sent.Load(); binary.BigEndian.Uint64(b) != sent {
		return 0, fmt.Errorf("the group has executed %d commands of %d", binary.BigEndian.Uint64(b), sent)
	}
	return s.sent.Load(), nil
}

var counting = map[string]replicagroup.MachineFactory{countService: func(order.GroupID) session.Machine { return new(count64) }}

// count64 counts commands.
type count64 struct{ n uint64 }

func (m *count64) Apply(session.Context, []byte) []byte {
	m.n++
	return m.Snapshot()
}
func (m *count64) Query(session.Context, []byte) []byte         { return m.Snapshot() }
func (m *count64) Tick(session.Context)                         {}
func (m *count64) SessionEnded(session.Context, order.ClientID) {}
func (m *count64) Deadline() (time.Duration, bool)              { return 0, false }
func (m *count64) Resend(session.Context)                       {}
func (m *count64) Snapshot() []byte                             { return binary.BigEndian.AppendUint64(nil, m.n) }
func (m *count64) Restore(b []byte) error {
	if len(b) != 8 {
		return errors.New("bench: a count has eight bytes")
	}
	m.n = binary.BigEndian.Uint64(b)
	return nil
}
