package dht

import (
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	logging "github.com/ipfs/go-log/v2"
	kaddht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"

	"latchkey/dht/keyspace"
	"latchkey/dht/twins"
)

var log = logging.Logger("latchkey/dht")

// NodeIDOf returns p's point of the key space.
func NodeIDOf(p peer.ID) keyspace.NodeID { return keyspace.NodeIDOf(string(p)) }

type config struct {
	id         [32]byte
	bootstrap  []peer.AddrInfo
	client     bool
	auto       bool
	kad        *kaddht.IpfsDHT
	helloMake  func() []byte
	helloCheck func(peer.ID, []byte) error
	admits     func(peer.ID) bool
	sawOverlay bool
	own        Boot
}

// Option sets one property of an overlay. See the With functions.
type Option func(*config)

// WithOverlayID sets the overlay's 32-byte id. Required. Its first four bytes are part of every protocol id, and all of it is
// in the hello, so only peers of the same overlay ever speak to each other.
func WithOverlayID(id [32]byte) Option { return func(c *config) { c.id, c.sawOverlay = id, true } }

// WithBootstrap adds peers to dial while no other peer of the overlay is known. Oneself among them is ignored.
func WithBootstrap(peers ...peer.AddrInfo) Option {
	return func(c *config) { c.bootstrap = append(c.bootstrap, peers...) }
}

// WithClientMode makes a node that is in nobody's replica set: it uses the overlay and hosts nothing.
func WithClientMode() Option { return func(c *config) { c.client = true } }

// WithAutoMode makes a node that is in client mode until the host is publicly reachable, as its AutoNAT finds, and from then on while it
// is; see [Overlay.OnMode]. It gives way to [WithClientMode].
func WithAutoMode() Option { return func(c *config) { c.auto = true } }

// WithDHT uses d for look-ups instead of a Kademlia network of the overlay's own. It must belong to the same host and be in
// ModeServer, in ModeClient (which implies [WithClientMode]) or in ModeAuto (which implies [WithAutoMode]); every server in it should
// run this overlay, since any of them may be found. The caller closes it, after the overlay.
func WithDHT(d *kaddht.IpfsDHT) Option { return func(c *config) { c.kad = d } }

// WithHello exchanges bytes with a peer before anything else is. make returns ours, at most [HelloBytesMax]; check sees the
// peer's and refuses it by an error, which resets the stream. Either may be nil. They are called once for each stream, on
// any goroutine, several at a time.
func WithHello(make func() []byte, check func(from peer.ID, hello []byte) error) Option {
	return func(c *config) { c.helloMake, c.helloCheck = make, check }
}

// Overlay is one node's end of an overlay. Make it with [New], register services with [Overlay.Handle], then [Overlay.Start] it.
// All methods are safe for concurrent use.
type Overlay struct {
	config
	host      host.Host
	self      peer.ID
	node      keyspace.NodeID
	protocols [classes]protocol.ID
	kadID     protocol.ID // of our own Kademlia network; empty with WithDHT
	connTag   string
	handlers  map[string]*service    // fixed by Start
	raw       map[string]*rawService // fixed by Start
	onLink    []func(peer.ID, bool)
	onMode    []func(hosting bool)
	onSuspect []func(p peer.ID, suspected bool)
	onUnwatch []func(p peer.ID)
	onAlarm   []func(Alarm)
	spared    func(peer.ID) bool // see [Overlay.Spare]; nil: nobody is
	onAccused []func(by peer.ID)
	boots     boots
	beats     *heartbeats
	knocks    knocks
	hosting   atomic.Bool  // we may be in replica sets; changed by watch
	shutOut   atomic.Bool  // we are not admitted ourselves; see [Overlay.Reconsider], which holds considering while it looks
	reach     atomic.Int32 // network.Reachability, as the host sees it; changed by watch
	count     counters
	ids       atomic.Uint64 // of requests; starts at random, so answers meant for a former life match nothing
	local     *local
	nodes     *nodeMap
	sets      *sets
	boot      *bootstrap
	finds     *finds
	kick      chan struct{} // something changed: look for neighbours soon

	ctx         context.Context // ends on Close; set by New
	cancel      context.CancelCauseFunc
	up          atomic.Bool
	considering sync.Mutex    // taken before any other
	hello       time.Duration // openTimeout, and
	stall       time.Duration // writeStallMax, but for tests
	// unfinished is unfinishedMax, but for tests; half is what half-received messages hold.
	unfinished time.Duration
	half       reassembly
	events     event.Subscription

	// life guards the fields below. It is taken after linksMu and after any link's mu.
	life    sync.Mutex
	started bool
	closed  bool
	tasks   sync.WaitGroup // every goroutine of ours, and the host's that run our stream handler

	// linksMu is taken before any link's mu.
	linksMu sync.RWMutex
	links   map[peer.ID]*link
}

type service struct {
	name    string
	handler Handler
	brief   bool // of one-way messages nothing is kept beyond its call
}

// New wires an overlay on h without using the network. h stays the caller's: Close does not close it. Errors match [ErrOption].
func New(h host.Host, opts ...Option) (*Overlay, error) {
	o := &Overlay{
		host:     h,
		self:     h.ID(),
		node:     NodeIDOf(h.ID()),
		handlers: make(map[string]*service),
		raw:      make(map[string]*rawService),
		nodes:    newNodeMap(),
		sets:     newSets(),
		finds:    newFinds(),
		kick:     make(chan struct{}, 1),
		links:    make(map[peer.ID]*link),
		hello:    openTimeout,
		stall:    writeStallMax,

		unfinished: unfinishedMax,
	}
	for _, opt := range opts {
		opt(&o.config)
	}
	if err := o.validate(); err != nil {
		return nil, err
	}
	o.boot = newBootstrap(o.bootstrap)
	prefix := "/latchkey/" + hex.EncodeToString(o.id[:4])
	o.protocols = [classes]protocol.ID{Control: protocol.ID(prefix + "/control/1.0.0"), Bulk: protocol.ID(prefix + "/bulk/1.0.0")}
	o.connTag = prefix
	if o.kad == nil {
		o.kadID = protocol.ID(prefix + "/kad/1.0.0")
	}
	o.count.resets = make(map[Reason]uint64)
	o.ids.Store(rand.Uint64() >> 2)
	o.ctx, o.cancel = context.WithCancelCause(context.Background())
	o.local = newLocal(o)
	o.beats = newHeartbeats(o)
	o.boots.judge.See(twins.Sighting{Peer: twins.Peer(o.self), Boot: o.own}, 0)
	o.handlers[serviceHeartbeat] = &service{name: serviceHeartbeat, handler: o.handleHeartbeat}
	o.nodes.add(o.self)
	o.Reconsider()
	return o, nil
}

func (o *Overlay) validate() error {
	if !o.sawOverlay {
		return fmt.Errorf("%w: WithOverlayID is required", ErrOption)
	}
	if b := o.own; b != (Boot{}) && (b.Store == [16]byte{} || b.Count == 0 || b.Nonce == 0) {
		return fmt.Errorf("%w: WithBoot: start %d of store %x with nonce %x", ErrOption, b.Count, b.Store, b.Nonce)
	}
	o.bootstrap = slices.DeleteFunc(o.bootstrap, func(p peer.AddrInfo) bool { return p.ID == o.self })
	for _, p := range o.bootstrap {
		if err := p.ID.Validate(); err != nil {
			return fmt.Errorf("%w: WithBootstrap: %v", ErrOption, err)
		}
	}
	if o.kad != nil {
		switch mode := o.kad.Mode(); {
		case o.kad.PeerID() != o.self:
			return fmt.Errorf("%w: WithDHT: it belongs to another host", ErrOption)
		case mode == kaddht.ModeClient:
			o.client = true
		case mode == kaddht.ModeAuto:
			o.auto = true
		case mode != kaddht.ModeServer:
			return fmt.Errorf("%w: WithDHT: use ModeServer, ModeClient or ModeAuto", ErrOption)
		}
	}
	o.auto = o.auto && !o.client
	o.hosting.Store(!o.client && !o.auto)
	return nil
}

// Handle registers the handler of a service. It must be called before [Overlay.Start], once for each service; anything else
// is a mistake of the program and panics.
func (o *Overlay) Handle(name string, h Handler) { o.handle(&service{name: name, handler: h}) }

// HandleBrief is Handle for a handler that keeps neither a one-way message nor its data beyond its call: their storage is that of the next
// message then.
func (o *Overlay) HandleBrief(name string, h Handler) {
	o.handle(&service{name: name, handler: h, brief: true})
}

func (o *Overlay) handle(s *service) {
	name := s.name
	o.life.Lock()
	defer o.life.Unlock()
	if err := checkService(name); err != nil || o.started || o.handlers[name] != nil {
		panic(fmt.Sprintf("dht: Handle(%q): started %v, taken %v, %v", name, o.started, o.handlers[name] != nil, err))
	}
	o.handlers[name] = s
}

// OnLink registers a function that is told when a connection to a peer comes up or the last one goes, in the order in which
// that happens. It is told of every peer of the host, whether it speaks latchkey or not. It must not block. Call it before
// [Overlay.Start].
func (o *Overlay) OnLink(f func(p peer.ID, up bool)) {
	o.life.Lock()
	defer o.life.Unlock()
	if o.started {
		panic("dht: OnLink after Start")
	}
	o.onLink = append(o.onLink, f)
}

// Start joins the overlay: it opens the protocols and begins to look for other peers, without waiting for any (see
// [Overlay.WaitPeers]). ctx bounds the start only. Errors match [ErrClosed] on a second start.
func (o *Overlay) Start(ctx context.Context) error {
	o.life.Lock()
	defer o.life.Unlock()
	if o.started || o.closed {
		return fmt.Errorf("%w: started already", ErrClosed)
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	// The subscription comes before the Kademlia network, so that no peer enters its table unseen.
	events, err := o.host.EventBus().Subscribe([]any{
		new(event.EvtPeerConnectednessChanged),
		new(event.EvtPeerIdentificationCompleted),
		new(event.EvtPeerIdentificationFailed),
		new(event.EvtPeerProtocolsUpdated),
		new(event.EvtLocalReachabilityChanged),
	}, eventbus.BufSize(eventsMax), eventbus.Name("latchkey/dht"))
	if err != nil {
		return fmt.Errorf("dht: subscribing: %w", err)
	}
	if o.kad == nil {
		mode := kaddht.ModeServer
		switch {
		case o.client:
			mode = kaddht.ModeClient
		case o.auto: // it follows the same event as we do
			mode = kaddht.ModeAuto
		}
		o.kad, err = kaddht.New(guardedHost{o.host, o}, kaddht.Mode(mode), kaddht.ProtocolPrefix(protocol.ID(o.connTag)),
			kaddht.DisableValues(), kaddht.DisableProviders())
		if err != nil {
			events.Close()
			return fmt.Errorf("dht: kademlia: %w", err)
		}
	}
	o.events, o.started = events, true
	o.up.Store(true)
	for class, id := range o.protocols {
		o.host.SetStreamHandler(id, func(s network.Stream) { o.accept(s, Class(class)) })
	}
	for _, r := range o.raw {
		o.host.SetStreamHandler(r.id, func(s network.Stream) { o.acceptRaw(s, r) })
	}
	o.tasks.Go(o.watch)
	o.tasks.Go(o.maintain)
	o.tasks.Go(o.local.run)
	o.tasks.Go(func() { o.beats.run(o.ctx) })
	return nil
}

// Close leaves the overlay: streams are reset, calls fail with [ErrClosed], and it waits for every goroutine, thus for every
// handler that runs. It does not close the host, nor what [WithDHT] gave. Idempotent.
func (o *Overlay) Close() error {
	o.life.Lock()
	if o.closed {
		o.life.Unlock()
		o.tasks.Wait()
		return nil
	}
	o.closed = true
	started := o.started
	o.life.Unlock()

	o.up.Store(false)
	o.cancel(ErrClosed)
	if started {
		for _, id := range o.protocols {
			o.host.RemoveStreamHandler(id)
		}
		for _, r := range o.raw {
			o.host.RemoveStreamHandler(r.id)
		}
	}
	o.linksMu.RLock()
	links := make([]*link, 0, len(o.links))
	for _, l := range o.links {
		links = append(links, l)
	}
	o.linksMu.RUnlock()
	for _, l := range append(links, o.local.link) {
		l.shut()
	}
	var err error
	if started && o.kadID != "" {
		err = o.kad.Close()
	}
	o.tasks.Wait()
	if started {
		o.events.Close()
	}
	return err
}

// spawn runs f on a goroutine that Close waits for, unless the overlay is closed.
func (o *Overlay) spawn(f func()) bool {
	if !o.enter() {
		return false
	}
	go func() {
		defer o.tasks.Done()
		f()
	}()
	return true
}

// enter counts the calling goroutine among those Close waits for; tasks.Done ends that.
func (o *Overlay) enter() bool {
	o.life.Lock()
	defer o.life.Unlock()
	if o.closed {
		return false
	}
	o.tasks.Add(1)
	return true
}

// Self returns the peer id of this node.
func (o *Overlay) Self() peer.ID { return o.self }

// Node returns this node's point of the key space.
func (o *Overlay) Node() keyspace.NodeID { return o.node }

// DHT returns the Kademlia network used for look-ups; nil before Start unless [WithDHT] gave it.
func (o *Overlay) DHT() *kaddht.IpfsDHT { return o.kad }

func checkService(name string) error {
	if name == "" || len(name) > ServiceNameBytesMax || !utf8.ValidString(name) {
		return fmt.Errorf("%w: %d bytes", ErrService, len(name))
	}
	return nil
}
