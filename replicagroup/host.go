package replicagroup

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	logging "github.com/ipfs/go-log/v2"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/driver"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/raft"
	"latchkey/replicagroup/session"
)

var log = logging.Logger("latchkey/group")

// Overlay is what a host needs of the overlay; *dht.Overlay is one.
type Overlay interface {
	Self() peer.ID
	Node() keyspace.NodeID
	Handle(service string, h dht.Handler)
	HandleBrief(service string, h dht.Handler)
	Send(to peer.ID, key keyspace.Key, service string, msg []byte) error
	Call(ctx context.Context, to peer.ID, key keyspace.Key, service string, msg []byte) ([]byte, error)
	HandleStream(name string, h func(*dht.Stream))
	OpenStream(ctx context.Context, to peer.ID, name string) (*dht.Stream, error)
	Go(to peer.ID, key keyspace.Key, service string, msg []byte, timeout time.Duration, done func(reply []byte, err error))
	ReplicaSet(ctx context.Context, at keyspace.Preimage, r int) ([]peer.AddrInfo, error)
	OnLink(func(p peer.ID, up bool))
	OnSuspect(func(p peer.ID, suspected bool))
	Spare(func(peer.ID) bool)
	Watch(p peer.ID, active bool)
	Unwatch(p peer.ID)
	Learn(peer.AddrInfo)
	Info(peer.ID) peer.AddrInfo
	PeerOf(keyspace.NodeID) (peer.ID, bool)
}

// MachineFactory makes one service's state machine for a group.
type MachineFactory func(g order.GroupID) session.Machine

// Config configures a [Host].
type Config struct {
	Genesis  placement.Genesis
	Overlay  Overlay
	Store    Store                     // nil: the host keeps no replicas, as a client does
	Clock    *driver.Clock             // nil: a new one
	Services map[string]MachineFactory // of every group but the root, by name
	Outlets  map[string]Outlet         // of services that post, by name
	Voters   VoterService              // what runs beside the log in every group but the root; nil: nothing does
	Leaders  LeaderService             // what leaders of every group but the root do for a service; nil: nothing
	Declines bool                      // start as after SetHosting(false)
	// Rejoins says that others may have the overlay's root: its only founder, if that is this peer and its store is gone, joins like
	// any other peer. Without it such a start fails with [ErrRootLost].
	Rejoins bool

	// Distrusts reports whether a peer's store runs in two places, as far as the overlay knows; nil: it knows of none. Distrust tells
	// the overlay of one that a fellow knows; nil: nobody is told.
	Distrusts func(peer.ID, order.StoreID) bool
	Distrust  func(peer.ID, order.StoreID)
	Plan      placement.PlanTimes // when groups change their members; the zero value stands for the defaults
	// Fixed says that the groups this peer leads keep the members they have, whatever becomes of them: for measurements that view
	// changes would disturb.
	Fixed bool
	// Reseed is the newest reseed document the peer knows ([placement.OpenReseed]), as OnReseed was given it; nil: none.
	Reseed []byte
	// ReseedState is what OnReseed was given with it; nil: none.
	ReseedState []byte
	// OnReseed makes a reseed document durable that was verified and is newer, and, where it is not nil, first the state with which the
	// root begins here; that is needed until the host has started once more. The host acts on it once that has returned nil. It may
	// block. Nil: documents are forgotten with the host.
	OnReseed func(doc, state []byte) error
}

// Host runs the replicas of many groups on one peer, answers for them, and finds the groups of others. Methods are safe for
// concurrent use.
type Host struct {
	overlay   Overlay
	genesis   placement.Genesis
	id        order.OverlayID
	store     Store
	storeID   order.StoreID
	volatile  bool // the store is in memory
	clock     *driver.Clock
	services  map[string]MachineFactory
	outlets   map[string]Outlet
	voters    VoterService  // nil: there are none
	leaders   LeaderService // nil: there are none
	start     uint64        // [Seat.Start]
	declines  bool          // at the start
	rejoins   bool
	decode    decoder
	shards    []*shard
	locator   *locator
	creator   *creator
	hosting   *hosting
	counters  counters
	transfers *transfers

	voterLoads  voterLoads
	leaderLoads voterLoads // messages to leaders
	internal    *Client    // of the host itself, for placement
	kin         kin
	like        atomic.Pointer[raft.Settings] // of the engine that was made last
	leases      *leases                       // nil under policy manual

	plan       placement.PlanTimes
	neighbours *neighbours // nil: no plan is made
	publisher  *publisher
	inquiries  inquiries
	since      automaton.Instant // when the host was made
	leaving    atomic.Bool       // see Leave

	ctx    context.Context // ends with Close
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	fellows atomic.Pointer[map[peer.ID]bool] // the keys of meetings; replaced, never changed

	audits    chan struct{}                     // see [Host.audit]; holds one while one is due
	rumoured  atomic.Int64                      // an automaton.Instant: when somebody last spoke of a generation not known here
	distrusts func(peer.ID, order.StoreID) bool // [Config.Distrusts]
	distrust  func(peer.ID, order.StoreID)      // [Config.Distrust]
	notices   notices

	seeking    chan struct{} // see [Host.withParent]; has one for each
	ownAudits  chan struct{} // see [Host.auditOwn]; holds one while one is due
	rootSought atomic.Int64  // an automaton.Instant: when the root was last looked for because of a stranger who spoke for it

	mu       sync.Mutex
	started  bool
	closed   bool
	hosted   map[order.Life]bool
	clients  map[*Client]struct{}
	sessions map[order.ClientID]addressee // of this host's clients, for outputs
	watched  map[peer.ID]int              // how many have a reason to watch a peer
	active   map[peer.ID]int              // and how many to watch it closely
	meetings map[peer.ID]int              // how many replicas here have a member at a peer
	failed   error

	reseedable
}

type counters struct {
	strayMessages atomic.Uint64 // engine messages for another replica, store or from another peer than they say, and batches of strangers
	strayOutputs  atomic.Uint64
	refused       atomic.Uint64 // malformed messages
	busy          atomic.Uint64
	views         atomic.Uint64 // settled ones that came into force at replicas that lead
	commands      atomic.Uint64 // executed at replicas that lead
	snapshots     atomic.Uint64 // taken
	buried        atomic.Uint64 // replicas
	parked        atomic.Uint64 // machines that sleep
	voterDropped  atomic.Uint64 // messages to voters for which there was no room
	ledDeclined   atomic.Uint64 // messages to leaders that were not taken
}

// Counters are what a host has refused and done since it started.
type Counters struct {
	StrayMessages, StrayOutputs, Malformed, Busy uint64

	Views     uint64 // changes of view of the groups that it led then
	Commands  uint64 // executed in the groups that it led then, those about sessions included
	Snapshots uint64 // taken of its replicas
	Buried    uint64 // replicas put aside, as their group's generation was over

	Parked uint64 // how often the machines of a replica that sleeps were put away

	LedDeclined uint64 // messages to leaders ([LeaderService]) that nobody here took, and whose peers were told so

	VoterDropped uint64 // messages to voters ([VoterService]) of peers that had too many waiting
}

// New makes a host. It uses neither network nor store before [Host.Start]. An invalid genesis is an error.
func New(cfg Config) (*Host, error) {
	if err := cfg.Genesis.Validate(); err != nil {
		return nil, fmt.Errorf("replicagroup: %w", err)
	}
	h := &Host{
		overlay: cfg.Overlay, genesis: cfg.Genesis, id: cfg.Genesis.ID(),
		store: cfg.Store, clock: cfg.Clock, services: cfg.Services, outlets: cfg.Outlets, voters: cfg.Voters, leaders: cfg.Leaders, declines: cfg.Declines, rejoins: cfg.Rejoins,
		distrusts: cfg.Distrusts, distrust: cfg.Distrust,
		hosted: make(map[order.Life]bool), clients: make(map[*Client]struct{}), sessions: make(map[order.ClientID]addressee),
		watched: make(map[peer.ID]int), active: make(map[peer.ID]int), meetings: make(map[peer.ID]int),
		audits: make(chan struct{}, 1), ownAudits: make(chan struct{}, 1), reseedable: reseedable{onReseed: cfg.OnReseed, linked: make(map[peer.ID]bool)},
	}
	if err := h.seed(cfg.Reseed, cfg.ReseedState); err != nil {
		return nil, err
	}
	if h.clock == nil {
		h.clock = driver.NewClock()
	}
	if h.plan = cfg.Plan; h.plan == (placement.PlanTimes{}) {
		h.plan = placement.DefaultPlanTimes()
	}
	if err := h.plan.Validate(); err != nil {
		return nil, fmt.Errorf("replicagroup: %w", err)
	}
	h.since = h.clock.Now()
	if h.store != nil {
		h.storeID = h.store.ID()
		_, h.volatile = h.store.(*MemoryStore)
		h.start = uint64(time.Now().UnixMilli()) // of a store that does not count its starts
		if s, ok := h.store.(interface{ BootNonce() Boot }); ok {
			h.start = s.BootNonce().Count
		}
	}
	h.decode = decoder{h.id}
	h.ctx, h.cancel = context.WithCancelCause(context.Background())
	for range runtime.GOMAXPROCS(0) {
		h.shards = append(h.shards, newShard(h))
	}
	h.locator = newLocator(h)
	h.internal = h.NewClient()
	h.creator = newCreator(h, placement.NewCreator(h.genesis, h.firstRoot().Peers))
	h.hosting = newHosting(h)
	if !cfg.Fixed {
		h.neighbours = newNeighbours(h)
	}
	h.publisher = newPublisher(h)
	if h.genesis.Regenesis == placement.Leased {
		h.leases = newLeases(h)
	}
	h.seeking = make(chan struct{}, seekingMax)

	h.transfers = newTransfers(h)
	h.overlay.HandleStream(streamSnapshot, h.transfers.accept)

	h.overlay.Handle(serviceEngine, h.counted(h.handleEngine))
	h.overlay.Handle(serviceCommand, h.counted(h.handleCommand))
	h.overlay.Handle(serviceQuery, h.counted(h.handleQuery))
	h.overlay.Handle(serviceOutput, h.counted(h.handleOutput))
	h.overlay.Handle(serviceLocate, h.counted(h.locator.handleLocate))
	h.overlay.Handle(serviceEnsure, h.counted(h.creator.handleEnsure))
	h.overlay.Handle(serviceHost, h.counted(h.hosting.handleHost))
	h.overlay.Handle(serviceStart, h.counted(h.hosting.handleStart))
	h.overlay.Handle(serviceReseed, h.counted(h.handleReseed))
	h.overlay.Handle(serviceRootState, h.counted(h.handleRootState))
	h.overlay.Handle(servicePresent, h.counted(h.handlePresent))
	h.overlay.Handle(serviceRevive, h.counted(h.creator.handleRevive))
	h.overlay.Handle(serviceProbe, h.counted(h.hosting.handleProbe))
	h.overlay.Handle(serviceEndorse, h.counted(h.handleEndorse))
	h.overlay.Handle(serviceLeave, h.counted(h.handleLeave))
	h.overlay.Handle(serviceDescriptor, h.counted(h.handleDescriptor))
	h.overlay.Handle(serviceRenew, h.counted(h.handleRenew))
	h.overlay.Handle(serviceTwin, h.counted(h.handleTwin))
	h.overlay.Handle(serviceReturn, h.counted(h.handleReturn))
	if h.voters != nil {
		h.overlay.HandleBrief(h.voters.Overlay(), h.counted(h.handleVoter))
		h.overlay.Handle(servicePropose, h.counted(h.handlePropose))
		h.overlay.Handle(serviceVoterLease, h.counted(h.handleVoterLease))
	}
	if h.leaders != nil {
		h.overlay.Handle(h.leaders.Asks(), h.counted(h.handleLead))
	}
	h.overlay.OnLink(h.link)
	h.overlay.OnSuspect(h.suspect)
	h.overlay.Spare(h.fellow) // what engines have to say must not wait
	return h, nil
}

// counted adapts a handler and counts what it refuses.
func (h *Host) counted(fn func(req *dht.Request) error) dht.Handler {
	return func(req *dht.Request) {
		if err := fn(req); err != nil {
			h.counters.refused.Add(1)
			req.Misbehaved(err.Error())
		}
	}
}

// Start brings back the replicas that the store knows and begins to answer. The overlay may have been started before or is
// started right after. It returns [ErrRootLost] when this peer alone founded the overlay and its store is not the founding
// one any more: such a peer founds nothing, and nobody else has the root.
func (h *Host) Start(ctx context.Context) error {
	h.mu.Lock()
	if h.started || h.closed {
		h.mu.Unlock()
		return fmt.Errorf("replicagroup: host started twice or after Close: %w", ErrClosed)
	}
	h.started = true
	h.mu.Unlock()

	var known []StoredReplica
	var retired map[order.GroupID]order.ReplicaID
	if h.store != nil {
		var err error
		if known, err = h.store.Replicas(); err != nil {
			return err
		}
		if retired, err = h.store.Retired(); err != nil {
			return err
		}
		if err := h.checkFounding(known, retired); err != nil {
			return err
		}
		if known, err = h.foundReseeded(known, retired); err != nil {
			return err
		}
	}
	for _, s := range h.shards {
		h.wg.Go(func() {
			if err := s.run(); err != nil {
				h.fail(err)
			}
		})
	}
	h.wg.Go(h.transfers.run)
	h.creator.start()
	h.hosting.start(known, retired)
	if h.store != nil {
		h.wg.Go(h.audit)
		h.auditDue()
	}
	if h.store != nil && h.genesis.OwnGroups {
		h.wg.Go(h.auditOwn)
	}
	for _, r := range known {
		if r.Group.Overlay != h.id {
			return fmt.Errorf("replicagroup: the store holds group %v of overlay %v, and this is overlay %v; "+
				"use the directory of that overlay, or an empty one", r.Group, r.Group.Overlay, h.id)
		}
		d, err := placement.DecodeDescriptor(r.Descriptor)
		if err != nil {
			return fmt.Errorf("replicagroup: stored descriptor of group %v: %w", r.Group, err)
		}
		inTurn := r.Group.Prefix.Len > 0 && !placement.IsOwn(r.Group)
		switch err := h.run(d, r.Self, r.Image, false, inTurn); {
		case errors.Is(err, raft.ErrRemoved):
			if err := h.store.Retire(r.Group); err != nil {
				return err
			}
			h.left(r.Group, r.Self, false)
		case err != nil:
			return err
		}
	}
	return nil
}

// checkFounding refuses to go on when the overlay's root cannot exist any more, or is missing from the very store that it was
// founded in and never left.
func (h *Host) checkFounding(known []StoredReplica, retired map[order.GroupID]order.ReplicaID) error {
	if h.reseeded() {
		return nil // the root it founded is over
	}
	if len(h.genesis.Founders) != 1 || h.genesis.Founders[0].Node() != h.overlay.Node() {
		return nil
	}
	for _, r := range known {
		if r.Group == h.rootGroup() {
			return nil
		}
	}
	if _, left := retired[h.rootGroup()]; left {
		return nil
	}
	if h.rejoins && h.storeID != h.genesis.Founders[0].Store {
		log.Warnw("this peer founded the overlay, and its store is gone: it joins what others have kept of it", "overlay", h.id, "store", h.storeID)
		return nil
	}
	return ErrRootLost
}

// SetHosting says whether this peer takes part in groups that it is asked to join from now on; a peer without a store never does.
// The replicas it has stay. It does not block.
func (h *Host) SetHosting(on bool) {
	if h.store != nil && !(on && h.leaving.Load()) {
		h.hosting.box.Put(hostingEvent{ev: placement.Declining{On: !on}})
	}
}

// spawn runs fn on a goroutine that Close waits for. It answers false, and runs nothing, once the host is closed.
func (h *Host) spawn(fn func()) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.wg.Go(fn)
	return true
}

// enter counts the calling goroutine among those that Close waits for; wg.Done ends that. It answers false once the host is closed.
func (h *Host) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.wg.Add(1)
	return true
}

// fail stops the host after its store has failed, or was found to be another's too.
func (h *Host) fail(err error) {
	h.mu.Lock()
	first := h.failed == nil && !h.closed
	if first {
		h.failed = err
	}
	h.mu.Unlock()
	if !first {
		return
	}
	if errors.Is(err, ErrTakenOver) || errors.Is(err, ErrTwin) {
		log.Infow("host stops: its store has another user", "err", err)
	} else {
		log.Errorw("host stops: it cannot keep what it would have to promise", "err", err)
	}
	h.stop(err)
}

// stop ends the host's clients and shards, without waiting for them.
func (h *Host) stop(cause error) {
	h.mu.Lock()
	clients := slices.Collect(maps.Keys(h.clients))
	h.mu.Unlock()
	for _, c := range clients {
		c.Close()
	}
	h.cancel(cause)
	for _, s := range h.shards {
		s.box.Close()
		s.asides.Close()
	}
	h.transfers.box.Close()
	h.mu.Lock()
	defer h.mu.Unlock()
	for p := range h.watched {
		h.overlay.Unwatch(p)
	}
	clear(h.watched)
}

// Close stops all replicas where they are and every client of the host. It is idempotent and waits for the host's
// goroutines. It closes neither overlay nor store.
func (h *Host) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		h.wg.Wait()
		return nil
	}
	h.closed = true
	h.mu.Unlock()
	h.stop(ErrClosed)
	h.wg.Wait()
	return nil
}

// Err returns why the host has stopped by itself, or nil.
func (h *Host) Err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.failed
}

// Done is closed when the host has stopped, by Close or by itself.
func (h *Host) Done() <-chan struct{} { return h.ctx.Done() }

// Found writes into an empty store that its peer is one of the overlay's founders, so that the peer's first start runs the
// root group. It is the founding act of rule G1: whoever draws the genesis document calls it once for each founder, before
// any peer runs. A store that is not the one the document names for this founder is refused.
func Found(s Store, g placement.Genesis, self keyspace.NodeID) error {
	m, ok := g.RootView().MemberAt(self)
	if !ok {
		return fmt.Errorf("replicagroup: %v is no founder of overlay %v", self, g.ID())
	}
	if m.Store != s.ID() {
		return fmt.Errorf("replicagroup: founder %v has store %v, the genesis document names %v", self, s.ID(), m.Store)
	}
	desc, err := g.RootDescriptor().Encode()
	if err != nil {
		return err
	}
	return s.Create(Identity{Group: g.RootGroup(), Self: m.ID, Descriptor: desc})
}

// run starts the replica self of the group that d describes from what the store has of it: nothing, where it joins a group that
// exists. Where it is inTurn, its engine may begin later. An error matches [raft.ErrRemoved] when the group has removed it as far as the store knows.
func (h *Host) run(d placement.Descriptor, self order.ReplicaID, image order.Image, join, inTurn bool) error {
	m, ok := d.View.Member(self)
	if !ok || m.Peer != h.overlay.Node() || m.Store != h.storeID {
		// The store knows better than a descriptor can: this life of the store never was that member.
		return fmt.Errorf("replicagroup: replica %d of group %v is not at this peer and store: a store is that of the peer it was made for; "+
			"run it there, and this peer with its own or an empty one", self, d.Group)
	}
	h.mu.Lock()
	n, known := len(h.hosted), h.hosted[d.Group.Life()]
	h.mu.Unlock()
	switch {
	case known:
		return nil
	case n >= groupsMax:
		return fmt.Errorf("replicagroup: this peer runs %d groups already, the most it takes", groupsMax)
	}
	d = h.kin.share(d)
	engine, err := raft.New(raft.Config{
		Group: d.Group, Self: self, Store: h.storeID, View: d.View, Join: join,
		LeaseReads: h.genesis.LeaseReads, PromisesOnly: !h.clock.SuspendAware(), Drift: h.genesis.Drift, Like: h.like.Load(),
	}, image)
	if err != nil {
		return fmt.Errorf("replicagroup: group %v: %w", d.Group, err)
	}
	h.like.Store(engine.Settings())
	h.mu.Lock()
	h.hosted[d.Group.Life()] = true
	h.mu.Unlock()
	h.locator.keep(&d)
	r := newReplica(self, &d, engine, h.machines(d.Group), h.genesis.Drift)
	r.parks = true
	if h.voters != nil && d.Group.Prefix.Len > 0 {
		r.seat = &Seat{r: r, service: h.voters.Service(), restarted: image.State != nil || image.Snapshot != nil || len(image.Entries) > 0}
	}
	h.shardOf(d.Group).box.Put(startEvent{r, inTurn})
	log.Infow("replica started", "group", d.Group, "replica", self, "joins", join, "voters", len(d.View.Voters()))
	return nil
}

// fromParent reports whether a peer is a member of the group that creates groups. Only its leader asks others to host.
func (h *Host) fromParent(p peer.ID) bool {
	root, _ := h.locator.cached(keyspace.Prefix{})
	_, member := root.View.MemberAt(dht.NodeIDOf(p))
	if !member {
		// The root may have moved on. Who is its leader asks again; others shall not keep this peer busy.
		now, last := h.clock.Now(), h.rootSought.Load()
		if now.Sub(automaton.Instant(last)) >= newsAfter && h.rootSought.CompareAndSwap(last, int64(now)) {
			h.spawn(func() { _, _ = h.locator.locate(h.ctx, keyspace.Prefix{}, true) })
		}
	}
	return member
}

// machines makes the state machines of a group: the root's directory, or the services of a prefix.
func (h *Host) machines(g order.GroupID) map[string]session.Machine {
	m := make(map[string]session.Machine)
	if g.Prefix.Len == 0 {
		m[placement.Service] = newDirectoryMachine(h.genesis, g, h.creator.moved)
		return m
	}
	for name, factory := range h.services {
		m[name] = factory(g)
	}
	switch {
	case !h.genesis.OwnGroups:
	case placement.IsOwn(g):
		m[placement.OwnService] = OwnMachine(placement.NewOwn(g))
	default:
		m[placement.OwnService] = KeysMachine(placement.NewKeys(h.genesis, g))
	}
	return m
}

// learn remembers where a peer is.
func (h *Host) learn(p placement.Peer) {
	info := peer.AddrInfo{ID: peer.ID(p.ID)}
	for _, a := range p.Addrs {
		if m, err := ma.NewMultiaddr(a); err == nil {
			info.Addrs = append(info.Addrs, m)
		}
	}
	h.overlay.Learn(info)
}

// shardOf returns the shard that runs a group's replica.
func (h *Host) shardOf(g order.GroupID) *shard {
	x := binary.BigEndian.Uint64(g.Prefix.Bits[:8])>>(64-min(int(g.Prefix.Len), 16)) + uint64(g.Prefix.Len)
	return h.shards[x%uint64(len(h.shards))]
}

// random draws bits for an engine.
func (h *Host) random() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.BigEndian.Uint64(b[:])
}

// handleEngine takes engine messages of peers that share a group with this one. Others have nothing to say to an engine here;
// what they send is not even looked at, since it comes without being asked for, and would take the room of what must come.
func (h *Host) handleEngine(req *dht.Request) error {
	if fellows := h.fellows.Load(); fellows == nil || !(*fellows)[req.From] {
		h.counters.strayMessages.Add(1)
		return nil
	}
	events, err := h.decode.engineBatch(req.Data)
	if err != nil {
		return err
	}
	trusted := events[:0]
	for _, e := range events {
		if h.distrusted(req.From, e.recv.Store) {
			h.counters.strayMessages.Add(1)
			continue
		}
		e.from = req.From
		trusted = append(trusted, e)
	}
	h.takeEngines(trusted, req)
	return nil
}

func (h *Host) handleCommand(req *dht.Request) error {
	e, err := h.decode.command(req.Data)
	if err != nil {
		return err
	}
	e.cmd.Author, e.call = req.Node(), req
	if e.cmd.Service == placement.Service && req.From != h.overlay.Self() && !isUpdate(e.cmd) {
		// Only a leader's own host commands the directory, but for a member of a group that tells of its view. One that was
		// deposed a moment ago may still try: it is no misbehaviour, and its creation is taken up by whoever asked for it.
		e.foreign = true
	}
	if e.cmd.Service == placement.OwnService && h.genesis.OwnGroups && req.From != h.overlay.Self() {
		h.commandOwn(&e, req)
		return nil
	}
	if !soon(req) || !h.shardOf(e.group).handleNow(&e) {
		h.submit(e.group, &e, req)
	}
	return nil
}

func (h *Host) handleQuery(req *dht.Request) error {
	e, err := h.decode.query(req.Data)
	if err != nil {
		return err
	}
	e.from, e.call = req.Node(), req
	h.submit(e.group, &e, req)
	return nil
}

// submit hands a request to its shard, or answers that there is no room.
func (h *Host) submit(g order.GroupID, e shardEvent, call caller) {
	if !h.shardOf(g).box.TryPut(e) {
		h.counters.busy.Add(1)
		h.refuse(call, busy())
	}
}

// refuse answers a request that asks for more than its peer may have, which is then read more slowly for a moment ([dht.Request.Refused]).
func (h *Host) refuse(call caller, reply *pb.Reply) {
	call.Reply(marshal(reply))
	if c, ok := call.(informing); ok {
		call = c.caller
	}
	if req, ok := call.(*dht.Request); ok {
		req.Refused()
	}
}

// absent answers a request for a group that has no replica here, with the best hint this peer has.
func (h *Host) absent(g order.GroupID, call caller) {
	h.rumour(g)
	r := &pb.Reply{Status: pb.Status_NOT_HERE}
	if d, ok := h.locator.cached(g.Prefix); ok {
		r.Descriptor_ = encodeDescriptor(d)
		if d.Group.Gen > g.Gen {
			r.Status = pb.Status_MOVED
		}
	}
	call.Reply(marshal(r))
}

// push sends outputs of machines to the peers whose sessions they are for, and posts the others. A lost one is sent again from state.
func (h *Host) push(g order.GroupID, outs *session.Outputs) {
	for _, o := range outs.List {
		if o.Posted != nil {
			if out := h.outlets[o.Service]; out != nil {
				out(g, o.Posted)
			}
			continue
		}
		to, ok := h.overlay.PeerOf(o.Peer)
		if !ok {
			continue
		}
		msg := marshal(&pb.Output{Group: groupToPB(g), Client: o.Client[:], Service: o.Service, Data: o.Data})
		if err := h.overlay.Send(to, keyspace.Key{}, serviceOutput, msg); err != nil {
			log.Debugw("output dropped", "group", g, "peer", to, "err", err)
		}
	}
}

// handleOutput passes a push on to the client whose session it names. Only a member of the group, as this peer knows it, is
// believed.
func (h *Host) handleOutput(req *dht.Request) error {
	o, err := h.decode.output(req.Data)
	if err != nil {
		return err
	}
	h.mu.Lock()
	to := h.sessions[o.client]
	h.mu.Unlock()
	if to.client == nil || !to.client.takes(o, dht.NodeIDOf(req.From)) {
		h.counters.strayOutputs.Add(1)
		return nil
	}
	to.client.notify(o)
	return nil
}

// link tells every shard that a peer came or went.
func (h *Host) link(p peer.ID, up bool) {
	h.linkedTo(p, up)
	if h.neighbours != nil {
		h.neighbours.linked()
	}
	if root, _ := h.locator.cached(keyspace.Prefix{}); up && slices.ContainsFunc(root.Peers, func(m placement.Peer) bool { return m.ID == string(p) }) {
		h.auditDue()
	}
	e := linkEvent{peer: dht.NodeIDOf(p), up: up}
	for _, s := range h.shards {
		s.box.Put(e)
	}
}

// suspect tells every shard of a peer that seems to have stopped, or that seemed so and has not.
func (h *Host) suspect(p peer.ID, suspected bool) {
	e := suspectEvent{dht.NodeIDOf(p), suspected}
	for _, s := range h.shards {
		s.box.Put(e)
	}
}

// Counters returns what the host has refused and done so far.
func (h *Host) Counters() Counters {
	return Counters{
		StrayMessages: h.counters.strayMessages.Load(), StrayOutputs: h.counters.strayOutputs.Load(),
		Malformed: h.counters.refused.Load(), Busy: h.counters.busy.Load(),
		Views: h.counters.views.Load(), Commands: h.counters.commands.Load(), Snapshots: h.counters.snapshots.Load(), Buried: h.counters.buried.Load(),
		VoterDropped: h.counters.voterDropped.Load(), LedDeclined: h.counters.ledDeclined.Load(), Parked: h.counters.parked.Load(),
	}
}

// ReplicaStatus is the state of one replica on this host.
type ReplicaStatus struct {
	Group      order.GroupID
	Descriptor placement.Descriptor
	Status     order.Status
	// Leaderless is how long no leader has been known here; 0 while one is. Without a leader the group serves nobody. Of a group that
	// sleeps, it is also how long the failure detector has suspected its leader, or too many of its voters.
	Leaderless time.Duration
	// Leaves: the group has removed this replica, which ends soon.
	Leaves bool
	Halted bool // it has stopped for good; the group goes on without it
	// Key is the key whose own group it is, and Phase how far that is ([placement.Own]); empty before it has begun, and of other groups.
	Key   string
	Phase placement.OwnPhase
	// Unleased is set at a leader that may not answer, since the root has not renewed the group's lease (policy lease).
	Unleased bool
}

// Status returns the state of every replica on this host. It asks the goroutines that run them, which answer soon, whatever they are busy
// with; ctx ends the wait. Nobody may change what the states hold.
func (h *Host) Status(ctx context.Context) ([]ReplicaStatus, error) {
	parts, answer := make([][]ReplicaStatus, 0, len(h.shards)), make(chan []ReplicaStatus, len(h.shards))
	for _, s := range h.shards {
		if !s.asides.Put(statusEvent{answer}) {
			return nil, ErrClosed
		}
	}
	for range h.shards {
		select {
		case part := <-answer:
			parts = append(parts, part)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-h.ctx.Done():
			return nil, context.Cause(h.ctx)
		}
	}
	return slices.Concat(parts...), nil
}
