package node

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	kaddht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	ma "github.com/multiformats/go-multiaddr"

	"latchkey/coherence"
	"latchkey/coherence/chunks"
	durablehost "latchkey/coherence/durable/host"
	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/internal/driver"
	"latchkey/lockservice"
	"latchkey/lockservice/voterlog"
	"latchkey/node/api"
	"latchkey/replicagroup"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/session"
)

// Node is one peer. Its methods are safe for concurrent use.
type Node struct {
	host    host.Host
	genesis placement.Genesis
	overlay *dht.Overlay
	groups  *replicagroup.Host
	store   replicagroup.Store
	clock   *driver.Clock
	locks   *lockservice.Service
	objects *coherence.Service
	durable *durablehost.Service // of groups that are led here
	chunks  *chunks.Service
	sigma   *sigmaParts // nil: the overlay does not run the protocol
	meter   lockservice.Meter

	psk        pnet.PSK // of the host, as far as we were told
	refusals   *Refusals
	strangers  *strangers
	access     *accessPeers
	neighbours *neighbours // nil without mDNS
	rendezvous *rendezvous // nil without one
	started    time.Time
	known      *knownPeers // nil: none are kept

	failing  []failing // the store, if it fails at other times than when it is used, and the log of voters
	watching sync.WaitGroup
	closing  func() error // nil: nothing is closed at the end

	mu       sync.Mutex
	closed   bool
	sessions []*lockSession
}

// lockSession is one session of the lock service: its service and the client of replica groups under it.
type lockSession struct {
	service *lockservice.Service
	client  *replicagroup.Client // nil: it has none
}

// failing is a store that may fail between two uses, as one on disk does.
type failing interface {
	Failed() <-chan struct{}
	Err() error
}

// booted is a store that counts its starts, so that others notice when it runs in two places. Both of ours do.
type booted interface{ BootNonce() replicagroup.Boot }

type options struct {
	genesis    placement.Genesis
	hasGenesis bool
	store      replicagroup.Store
	voterLog   *voterlog.Log
	bootstrap  []peer.AddrInfo
	clientOnly bool
	auto       bool
	mdns       bool
	kad        *kaddht.IpfsDHT
	rendezvous *kaddht.IpfsDHT
	refusals   *Refusals
	knownPeers string // file; empty: none are kept
	closing    func() error
	plan       placement.PlanTimes
	reseed     []byte
	rootState  []byte // with which the root of reseed begins here
	onReseed   func(doc, state []byte) error
	access     *Access
	psk        pnet.PSK
	enrol      func(ctx context.Context, invitation, joiner peer.ID) ([]byte, error)
}

// Option configures [New].
type Option func(*options)

// WithOverlay names the overlay by its genesis document. It is required.
func WithOverlay(g placement.Genesis) Option {
	return func(c *options) { c.genesis, c.hasGenesis = g, true }
}

// WithStore sets where the node keeps its replicas. Default: an empty store in memory. The caller closes the store after the
// node. One that keeps blobs, as that of package disk does, keeps the chunks of checkpoints too; else they are in memory. One that has BootNonce() replicagroup.Boot, as both of ours have, is noticed by others when it runs in two places. One that has Failed() <-chan struct{} and Err() error, as that of package disk has, stops the node when it fails.
func WithStore(s replicagroup.Store) Option { return func(c *options) { c.store = s } }

// WithVoterLog sets where the node's voters of protocol sigma record what they have promised, so that the node's next life knows. The
// caller closes it after the node, and gives the next life the log that follows it. Default: nothing is recorded, and a restart loses it.
func WithVoterLog(l *voterlog.Log) Option { return func(c *options) { c.voterLog = l } }

// withClosing has Close call f, the last of all.
func withClosing(f func() error) Option { return func(c *options) { c.closing = f } }

// withReseed hands over the newest reseed document that was kept, the state that was kept with it, and what keeps newer ones.
func withReseed(doc, state []byte, keep func(doc, state []byte) error) Option {
	return func(c *options) { c.reseed, c.rootState, c.onReseed = doc, state, keep }
}

// WithBootstrap names peers to dial when the node knows nobody else. The founders, at the addresses that the genesis document
// gives for them, are always among them.
func WithBootstrap(peers ...peer.AddrInfo) Option {
	return func(c *options) { c.bootstrap = append(c.bootstrap, peers...) }
}

// ClientOnly makes a node that uses the overlay and hosts nothing for it.
func ClientOnly() Option { return func(c *options) { c.clientOnly = true } }

// WithAutoMode makes a node that hosts nothing until its host is publicly reachable, and something from then on while it is: for peers
// of a public overlay, some of which are behind a NAT. What it hosts already stays when it is not reachable any more.
func WithAutoMode() Option { return func(c *options) { c.auto = true } }

// WithMDNS makes the node look for peers of its overlay on the local network, and show itself there.
func WithMDNS() Option { return func(c *options) { c.mdns = true } }

// WithRefusals says that the host is the node's own, made with [HostOptions] and the same r: those whom the node turns away are
// counted there, and peers of other overlays are disconnected. Without it the node counts for itself and leaves the host's
// connections alone.
func WithRefusals(r *Refusals) Option { return func(c *options) { c.refusals = r } }

// WithDHT hands over a Kademlia instance of the caller's, on the same host, all of whose peers speak latchkey in this overlay.
// Without it the node runs one of its own beside whatever the host has.
func WithDHT(d *kaddht.IpfsDHT) Option { return func(c *options) { c.kad = d } }

// WithAccess hands over what the peer knows of the overlay's allow-list, and remembers ([NewAccess]). Without it the node begins with no
// list, keeps to one that other peers tell it of, and forgets it when the process ends.
func WithAccess(a *Access) Option { return func(c *options) { c.access = a } }

// withEnrol hands over what puts a peer on the list by an invitation.
func withEnrol(enrol func(ctx context.Context, invitation, joiner peer.ID) ([]byte, error)) Option {
	return func(c *options) { c.enrol = enrol }
}

// withSwarmKey says which key the host was made with, so that the node can tell why it does not get on with another.
func withSwarmKey(psk pnet.PSK) Option { return func(c *options) { c.psk = psk } }

// WithPlanTimes sets when the groups that this node leads take in new members and replace those that are away, for overlays on one
// machine, say (placement.TestnetPlanTimes). Default: placement.DefaultPlanTimes.
func WithPlanTimes(t placement.PlanTimes) Option { return func(c *options) { c.plan = t } }

// New makes a node on a libp2p host. It uses no network yet. The host must outlive the node. Errors about the Kademlia network of
// [WithRendezvous] match [ErrRendezvous].
func New(h host.Host, opts ...Option) (*Node, error) {
	var c options
	for _, o := range opts {
		o(&c)
	}
	switch {
	case h == nil:
		return nil, errors.New("node: no libp2p host")
	case !c.hasGenesis:
		return nil, errors.New("node: WithOverlay is missing: a node belongs to one overlay, named by its genesis document")
	case c.clientOnly && c.store != nil:
		return nil, errors.New("node: ClientOnly and WithStore exclude each other: a client hosts nothing that would need a store")
	}
	if err := c.genesis.Validate(); err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	if c.rendezvous != nil {
		if err := checkRendezvous(c.rendezvous, h.ID()); err != nil {
			return nil, err
		}
	}
	if c.store == nil && !c.clientOnly {
		c.store = replicagroup.NewMemoryStore()
	}
	id := c.genesis.ID()
	if c.access == nil {
		var err error
		if c.access, err = NewAccess(c.genesis, nil, nil); err != nil {
			return nil, err
		}
	} else if c.access.genesis.ID() != id {
		return nil, fmt.Errorf("node: WithAccess: it is of overlay %v, and the node of %v", c.access.genesis.ID(), id)
	}
	overlayOpts := []dht.Option{dht.WithOverlayID(id), dht.WithAdmission(c.access.Admits), dht.WithBootstrap(append(founders(c.genesis, h.ID()), c.bootstrap...)...)}
	if c.clientOnly {
		overlayOpts = append(overlayOpts, dht.WithClientMode())
	}
	if c.auto {
		overlayOpts = append(overlayOpts, dht.WithAutoMode())
	}
	if c.kad != nil {
		overlayOpts = append(overlayOpts, dht.WithDHT(c.kad))
	}
	if s, ok := c.store.(booted); ok {
		b := s.BootNonce()
		overlayOpts = append(overlayOpts, dht.WithBoot(dht.Boot{Store: c.store.ID(), Count: b.Count, Nonce: b.Nonce}))
	}
	overlay, err := dht.New(h, overlayOpts...)
	if err != nil {
		return nil, err
	}
	n := &Node{host: h, genesis: c.genesis, overlay: overlay, store: c.store, clock: driver.NewClock(), started: time.Now()}
	n.psk = c.psk
	if n.refusals = c.refusals; n.refusals == nil {
		n.refusals = new(Refusals)
	}
	control := dht.ControlProtocol(id)
	n.strangers = &strangers{
		host: h, control: control, prefix: overlayPrefix(c.genesis),
		refusals: n.refusals, close: c.refusals != nil,
	}
	n.access = newAccessPeers(h, overlay, c.genesis, c.access, n.refusals, c.refusals != nil)
	n.access.enrol = c.enrol
	c.access.counts(n.refusals)
	n.introduced(c)
	if c.mdns {
		n.neighbours = &neighbours{host: h, name: mdnsName(id), found: overlay.Discovered}
	}
	if c.rendezvous != nil {
		n.rendezvous = newRendezvous(c.rendezvous, n)
	}
	if c.knownPeers != "" {
		n.known = openKnownPeers(c.knownPeers, overlay.Peers)
		for _, p := range slices.Backward(n.known.infos()) { // the overlay forgets the first ones first
			overlay.Remember(p)
		}
	}
	var blobs chunks.Store = new(chunks.MemoryStore)
	if b, ok := c.store.(chunks.Store); ok {
		blobs = b
	}
	keeper, err := chunks.NewKeeper(blobs)
	if err != nil {
		return nil, errors.Join(err, overlay.Close())
	}
	n.chunks = chunks.New(overlay, c.genesis.F, keeper)
	n.objects = coherence.NewService(overlay, n.chunks)
	if b, ok := c.store.(chunks.Store); ok {
		if err := n.objects.Remember(b); err != nil {
			return nil, errors.Join(err, n.chunks.Close(), overlay.Close())
		}
	}
	var voters replicagroup.VoterService
	if c.genesis.Sigma {
		n.sigma = n.newSigma(c.voterLog)
		voters = n.sigma.voters
	}
	n.durable = durablehost.New(c.genesis.Drift)
	n.groups, err = replicagroup.New(replicagroup.Config{
		Genesis: c.genesis, Reseed: c.reseed, ReseedState: c.rootState, OnReseed: c.onReseed, Overlay: overlay, Store: c.store, Clock: n.clock,
		Services: map[string]replicagroup.MachineFactory{lockservice.ServiceName: n.lockMachine, coherence.ServiceName: n.objects.Machine, durablehost.ServiceName: n.durable.Machine},
		Outlets:  map[string]replicagroup.Outlet{coherence.ServiceName: n.objects.Outlet}, Voters: voters, Leaders: n.durable,
		Declines: !overlay.Hosting(),
		Rejoins:  len(c.bootstrap) > 0 || n.known != nil && len(n.known.peers) > 0,

		Plan:      c.plan,
		Distrusts: func(p peer.ID, s order.StoreID) bool { return overlay.Refuses(p, s) },
		Distrust:  func(p peer.ID, s order.StoreID) { overlay.Refuse(p, s) },
	})
	if err != nil {
		return nil, errors.Join(err, n.chunks.Close(), overlay.Close())
	}
	overlay.OnMode(n.groups.SetHosting)
	overlay.OnAccused(n.groups.Accused)
	overlay.OnAlarm(func(a dht.Alarm) {
		if overlay.Refuses(a.Peer, a.Store) {
			n.groups.Distrusted(a.Peer, a.Store)
		}
	})
	if f, ok := c.store.(failing); ok {
		n.failing = append(n.failing, f)
	}
	if c.voterLog != nil {
		n.failing = append(n.failing, c.voterLog)
	}
	n.closing = c.closing
	n.locks = n.NewLocks()
	n.objects.Start(n.groups, n.genesis)
	return n, nil
}

// overlayPrefix begins the ids of an overlay's protocols.
func overlayPrefix(g placement.Genesis) string {
	return strings.TrimSuffix(string(dht.ControlProtocol(g.ID())), "control/1.0.0")
}

// introduced sets whom the node dials though its allow-list, which may be old, does not name them: those that it was told of when it was
// made. They are asked for their list, and for nothing else.
func (n *Node) introduced(c options) {
	known := make(map[peer.ID]bool)
	for _, f := range c.genesis.Founders {
		known[peer.ID(f.ID)] = true
	}
	for _, p := range c.bootstrap {
		known[p.ID] = true
	}
	if n.known != nil {
		for _, p := range n.known.infos() {
			known[p.ID] = true
		}
	}
	f := func(p peer.ID) bool { return known[p] }
	c.access.introduces.Store(&f)
}

// founders are the peers that the genesis document says where to find.
func founders(g placement.Genesis, self peer.ID) []peer.AddrInfo {
	var infos []peer.AddrInfo
	for _, f := range g.Founders {
		info := peer.AddrInfo{ID: peer.ID(f.ID)}
		for _, a := range f.Addrs {
			if m, err := ma.NewMultiaddr(a); err == nil {
				info.Addrs = append(info.Addrs, m)
			}
		}
		if info.ID != self && len(info.Addrs) > 0 {
			infos = append(infos, info)
		}
	}
	return infos
}

func (n *Node) lockMachine(g order.GroupID) session.Machine {
	c := lockservice.MachineConfig{Gen: g.Gen, TTLMax: n.genesis.TTLMax, Drift: n.genesis.Drift, Own: placement.IsOwn(g)}
	if n.genesis.Sigma {
		c.Sigma = min(lockservice.TTLDefault, n.genesis.TTLMax)
	}
	if n.genesis.OwnGroups {
		c.Wait = placement.KeysQuarantine(n.genesis)
	}
	return lockservice.NewMachine(c)
}

// Start joins the overlay and begins to serve. It returns once the node's own parts run; ctx bounds only that. An error that
// matches [replicagroup.ErrRootLost] says that this peer alone founded the overlay, and what it founded is gone.
func (n *Node) Start(ctx context.Context) error {
	if err := n.groups.Start(ctx); errors.Is(err, replicagroup.ErrRootLost) {
		return fmt.Errorf("%w: this peer founded overlay %v, and its store is not the one it founded it with; "+
			"make the founder's node with WithStore and the store that Found returned", err, n.genesis.ID())
	} else if err != nil {
		return err
	}
	for _, f := range n.failing {
		n.watching.Go(func() { n.watchStore(f) })
	}
	if err := n.strangers.start(); err != nil {
		return err
	}
	if err := n.overlay.Start(ctx); err != nil {
		return err
	}
	if err := n.access.start(); err != nil {
		return err
	}
	n.known.start()
	n.rendezvous.start()
	if n.neighbours != nil {
		return n.neighbours.start()
	}
	return nil
}

// Close hands over the shared objects that this node owns, releases the locks that its services hold, stops them and the replicas, and leaves the overlay. It is
// idempotent, and waits for everything it stops; releasing takes at most a few seconds when the groups do not answer. The
// libp2p host stays open.
func (n *Node) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil
	}
	n.closed = true
	sessions := n.sessions
	n.mu.Unlock()
	if n.neighbours != nil {
		n.neighbours.stop()
	}
	n.rendezvous.stop()
	n.known.close() // while the overlay still knows its peers
	n.strangers.stop()
	n.access.stop()
	errs := []error{n.objects.Close(), n.chunks.Close()}
	for _, s := range sessions {
		errs = append(errs, s.service.Close())
		if s.client != nil {
			errs = append(errs, s.client.Close())
		}
	}
	if n.sigma != nil {
		errs = append(errs, n.sigma.clients.Close())
	}
	errs = append(errs, n.groups.Close(), n.overlay.Close())
	n.watching.Wait()
	if n.closing != nil {
		failed := n.Err() != nil
		if err := n.closing(); !failed { // else Err has said it
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Leave takes the node out of its groups before a [Node.Close]: it hands over leaderships and asks its groups to replace it, where
// another peer can take its place. It blocks until they have, or have done without a leader for some seconds; at most
// [replicagroup.LeaveTimeout], and until ctx ends. An error tells how many groups still count on the node; nothing is lost then
// either. The node goes on until Close, but takes no new replicas before it is started anew.
func (n *Node) Leave(ctx context.Context) error { return n.groups.Leave(ctx) }

// watchStore stops the replicas when what they are kept in fails while nobody uses it.
func (n *Node) watchStore(f failing) {
	select {
	case <-f.Failed():
		log.Errorw("the node stops: its store failed", "err", f.Err())
		n.groups.Close()
	case <-n.groups.Done():
	}
}

// Done is closed when the node's replicas have stopped: by Close, or because its store failed ([Node.Err]).
func (n *Node) Done() <-chan struct{} { return n.groups.Done() }

// Err returns why the node stopped by itself, or nil.
func (n *Node) Err() error {
	if err := n.groups.Err(); err != nil {
		return err
	}
	for _, f := range n.failing {
		if err := f.Err(); err != nil {
			return err
		}
	}
	return nil
}

// Objects returns the node's part in shared objects: it opens applications.
func (n *Node) Objects() *coherence.Service { return n.objects }

// Chunks returns what keeps the checkpoints of applications, for this node and for others.
func (n *Node) Chunks() *chunks.Service { return n.chunks }

// Locks returns the node's own session of the lock service.
func (n *Node) Locks() *lockservice.Service { return n.locks }

// NewLocks opens another session of the lock service: to the groups it is another client. It ends with the node.
func (n *Node) NewLocks() *lockservice.Service {
	c := n.groups.NewClient()
	s := lockservice.New(n.backend(c), lockservice.WithClock(n.clock))
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sessions = append(n.sessions, &lockSession{s, c})
	return s
}

// NewLockBackend opens another session of the lock service and returns it bare, for those who count leases themselves.
func (n *Node) NewLockBackend() lockservice.Backend {
	c := n.groups.NewClient()
	b := n.backend(c)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sessions = append(n.sessions, &lockSession{lockservice.New(b, lockservice.WithClock(n.clock)), c})
	return b
}

func (n *Node) backend(c *replicagroup.Client) lockservice.Backend {
	if n.sigma != nil {
		return n.sigma.clients.NewBackend(c)
	}
	return lockservice.NewGroupBackend(c, lockservice.GroupConfig{
		Limits:   lockservice.LimitsOf(n.genesis.TTLMax, int64(n.genesis.Drift)),
		PeerName: n.peerName,
		Prefixes: n.prefixes,
		Meter:    &n.meter,
	})
}

func (n *Node) peerName(id keyspace.NodeID) (string, bool) {
	p, ok := n.overlay.PeerOf(id)
	return p.String(), ok
}

// prefixes lists the prefixes of the overlay that have groups, as the root's directory has them.
func (n *Node) prefixes(ctx context.Context) ([]keyspace.Prefix, error) {
	children, err := n.groups.Children(ctx)
	all := make([]keyspace.Prefix, len(children))
	for i, c := range children {
		all[i] = c.Prefix
	}
	return all, err
}

// ID returns the peer id of the node's host.
func (n *Node) ID() peer.ID { return n.host.ID() }

// Overlay returns the overlay layer below the node, for those who speak protocols of their own over it.
func (n *Node) Overlay() *dht.Overlay { return n.overlay }

// Groups returns the host of replica groups below the node.
func (n *Node) Groups() *replicagroup.Host { return n.groups }

// Genesis returns the document of the node's overlay.
func (n *Node) Genesis() placement.Genesis { return n.genesis }

// Version is what this build calls itself.
func Version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// Revision is the commit of the checkout that this was built from, with +dirty if there was more than that; empty when unknown.
func Revision() string {
	b, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	return revisionOf(b.Settings)
}

func revisionOf(settings []debug.BuildSetting) string {
	revision, dirty := "", ""
	for _, s := range settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value[:min(len(s.Value), 12)]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+dirty"
		}
	}
	if revision == "" {
		return ""
	}
	return revision + dirty
}

// Info implements [api.Node]: who this peer is.
func (n *Node) Info() api.Info {
	info := api.Info{
		Peer: n.host.ID().String(), Node: n.overlay.Node().Hex(), Overlay: n.genesis.ID().Hex(),
		OverlayName: n.genesis.Name, Version: Version(),
	}
	if n.store != nil {
		info.Store = n.store.ID().String()
	}
	for _, a := range n.host.Addrs() {
		info.Addrs = append(info.Addrs, a.String()+"/p2p/"+info.Peer)
	}
	return info
}

// Peers implements [api.Node]: the peers of the overlay that this one knows, by peer id.
func (n *Node) Peers() []api.Peer {
	var peers []api.Peer
	for _, p := range n.overlay.Peers() {
		q := api.Peer{Peer: p.ID.String(), Node: dht.NodeIDOf(p.ID).Hex(), Connected: p.Connected}
		for _, a := range p.Addrs {
			q.Addrs = append(q.Addrs, a.String())
		}
		peers = append(peers, q)
	}
	slices.SortFunc(peers, func(a, b api.Peer) int { return strings.Compare(a.Peer, b.Peer) })
	return peers
}

// notFound says what to do when the group of a lock could not be found.
func (n *Node) notFound(name string, err error) error {
	if !errors.Is(err, replicagroup.ErrNoQuorum) {
		return err
	}
	return fmt.Errorf("%w: the group of lock %q was not found: no peer near it that answers knows it, and the root, which would, has no majority; "+
		"start peers that are down, founders above all, or mend the network between them: %w", lockservice.ErrNoQuorum, name, err)
}

// keyTimeout bounds the question who leads a group, in [Node.Key].
const keyTimeout = 2 * time.Second

// Key implements [api.Node]: where the lock of this name lives. It looks the key up and asks its group, which is created if it
// does not exist yet; a group that does not answer in time is told without its leader.
func (n *Node) Key(ctx context.Context, name string) (api.KeyInfo, error) {
	if err := lockservice.CheckName(name); err != nil {
		return api.KeyInfo{}, err
	}
	at := keyspace.Preimage(name)
	info := api.KeyInfo{Name: name, Hash: at.Key().String()}
	closest, err := n.overlay.ReplicaSet(ctx, at, 2*n.genesis.F+1)
	if err != nil {
		return api.KeyInfo{}, err
	}
	for _, p := range closest {
		info.Closest = append(info.Closest, p.ID.String())
	}
	d, err := n.groups.Locate(ctx, at.Key())
	if err != nil {
		return api.KeyInfo{}, n.notFound(name, err)
	}
	if n.genesis.OwnGroups {
		ask, cancel := context.WithTimeout(ctx, keyTimeout)
		if own, err := n.groups.Child(ask, placement.KeyPrefix(at.Key())); err == nil {
			d = own.Descriptor
		}
		cancel()
	}
	if info.Group = n.groupInfo(ctx, d); ctx.Err() != nil {
		return api.KeyInfo{}, context.Cause(ctx)
	}
	return info, nil
}
