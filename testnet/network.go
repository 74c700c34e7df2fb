package testnet

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/lockservice/voterlog"
	"latchkey/node"
	"latchkey/replicagroup"
	"latchkey/replicagroup/disk"
	"latchkey/replicagroup/placement"
	"latchkey/testnet/wire"
)

// Parameters of a testnet.
const (
	PeersDefault = 7
	// PeersMax keeps a full mesh within the file descriptors and the memory of one process.
	PeersMax    = 50
	FDefault    = 1
	SeedDefault = 1
	// TTLMax is the longest lease of the overlay: short, because a testnet is there to lose holders.
	TTLMax = 10 * time.Second
	// Lease is how long a group's lease of the root lasts where [Options.Regenesis] wants them, and how long a root that was given to the
	// overlay waits for the groups that live: short, because a testnet is there to lose groups.
	Lease = 10 * time.Second
)

// Listening ports are taken from a range below those that systems give to outgoing connections, so that nobody takes the port
// of a killed peer before it comes back.
const (
	portFirst = 20_000
	portLast  = 31_999
)

// closeMax is how many of the peers closest to it in the key space a peer must be connected to for being ready: those that its
// look-up of itself finds. Farther ones it gets to know when it has to do with them.
const closeMax = 20

// readyPoll is the pause between two looks at a condition that peers report no event for.
const readyPoll = 5 * time.Millisecond

// Errors to match with errors.Is.
var (
	ErrOptions = errors.New("testnet: options")
	ErrNoPeer  = errors.New("testnet: no such peer")
	ErrDown    = errors.New("testnet: peer is down")
	ErrUp      = errors.New("testnet: peer is up")
	ErrClosed  = errors.New("testnet: closed")
)

// Options configures [Up]. The zero value stands for the defaults.
type Options struct {
	N    int    // peers; 0 is PeersDefault, PeersMax the most
	F    int    // crashes a group survives; 0 is FDefault. The first 2F+1 peers found the overlay
	Seed uint64 // of the identities; 0 is SeedDefault
	// Depth makes 2^Depth groups share the key space: placement.DepthMin to placement.DepthMax; 0 is placement.DepthDefault.
	Depth int
	// Regenesis says how a group that is lost for good comes back, and LeaseReads whether leaders read on leases (placement.Genesis). A
	// lease of the root lasts [Lease] in a testnet.
	Regenesis  placement.Regenesis
	LeaseReads bool
	// OwnGroups allows keys to have groups of their own (placement.Genesis); not with placement.Leased.
	OwnGroups bool
	// NoSigma has no locks kept by protocol sigma (placement.Genesis).
	NoSigma bool
	// State, when set, is a testnet to take up where it was dumped: it says how many peers there are, F, Seed, Depth, Regenesis, LeaseReads, OwnGroups and NoSigma,
	// which are not to be set. Peers that were down stay down. Of partitions, latency and pauses it says nothing: there are none. [ErrMode] is
	// matched when it is of the other mode, [ErrRunning] while the testnet that it was made of still runs.
	State *State
	// Latency delays everything between two peers, each way; at most [LatencyMax]. See [Network.Latency].
	Latency time.Duration
	// StoreDir gets the peers' stores, peer N's in StoreDir/N. Empty: they are in memory. Only for [Up], and not together with State.
	StoreDir string
	// Dir gets a socket of the node API for each peer. Empty: none.
	Dir string
	// Prepare, when set, is called for each life of each peer before it starts, to register services of the caller's own. Peers
	// are prepared at the same time.
	Prepare func(i int, n *node.Node)
	// Progress, when set, is told of each step of Up, from one goroutine at a time. It must not block.
	Progress func(Progress)
}

// Progress says how far [Up] is.
type Progress struct {
	Stage       string // what is being done
	Done, Total int    // peers
}

// Validate reports whether [Up] would take these options. The error matches [ErrOptions].
func (o Options) Validate() error {
	_, err := o.withDefaults()
	return err
}

// withDefaults fills in what is not set, and says what cannot be.
func (o Options) withDefaults() (Options, error) {
	if o.State != nil {
		if o.N != 0 || o.F != 0 || o.Seed != 0 || o.Depth != 0 || o.Regenesis != 0 || o.LeaseReads || o.OwnGroups || o.NoSigma {
			return o, fmt.Errorf("%w: peers, f, seed, depth, regenesis, reads and own groups of a state are what they were", ErrOptions)
		}
		if o.StoreDir != "" {
			return o, fmt.Errorf("%w: a state has its stores in memory", ErrOptions)
		}
		o = o.State.options(o)
	}
	o.N, o.F, o.Seed = cmp.Or(o.N, PeersDefault), cmp.Or(o.F, FDefault), cmp.Or(o.Seed, SeedDefault)
	o.Depth = cmp.Or(o.Depth, placement.DepthDefault)
	switch {
	case o.F < 1 || o.F > placement.FMax:
		return o, fmt.Errorf("%w: f is %d; it can be 1 to %d", ErrOptions, o.F, placement.FMax)
	case o.N < 2*o.F+1 || o.N > PeersMax:
		return o, fmt.Errorf("%w: %d peers with f = %d; at least %d are needed, and %d are the most", ErrOptions, o.N, o.F, 2*o.F+1, PeersMax)
	case o.Regenesis != placement.Manual && o.Regenesis != placement.Leased:
		return o, fmt.Errorf("%w: regenesis is %v; it can be %v or %v", ErrOptions, o.Regenesis, placement.Manual, placement.Leased)
	case o.OwnGroups && o.Regenesis == placement.Leased:
		return o, fmt.Errorf("%w: own groups of keys and regenesis %v exclude each other", ErrOptions, o.Regenesis)
	case o.Depth < placement.DepthMin || o.Depth > placement.DepthMax:
		return o, fmt.Errorf("%w: depth is %d; it can be %d to %d", ErrOptions, o.Depth, placement.DepthMin, placement.DepthMax)
	}
	_, err := faults{}.delay(o.Latency)
	return o, err
}

// Network is a running testnet. Its methods are safe for concurrent use.
type Network struct {
	opts     Options
	genesis  placement.Genesis
	progress func(Progress) // of Up

	// changing is held while faults or the number of peers change, and wires with them. It is taken after a slot's turn and
	// before a slot's mu, and that before mu.
	changing sync.Mutex

	mu      sync.Mutex
	slots   []*slot // by number; only ever appended to
	faults  faults
	closed  bool           // no peer is born any more, and Close waits for burials
	burials sync.WaitGroup // none is added once closed is set
}

var _ Testnet = (*Network)(nil)

// Up founds an overlay, or takes up that of [Options.State], and starts its peers. It returns when each of them sees all others and knows who owns a key; ctx bounds
// that and nothing else. The caller closes the network.
func Up(ctx context.Context, opts Options) (*Network, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	n := &Network{opts: opts, faults: faults{latency: opts.Latency}, progress: func(Progress) {}}
	if opts.Progress != nil {
		n.progress = opts.Progress
	}
	begin := n.found
	if opts.State != nil {
		begin = func() error { return n.restore(opts.State) }
	}
	if err := begin(); err != nil {
		return nil, err
	}
	if err := n.bearAll(ctx); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	if err := n.waitReady(ctx, n.progress); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// found makes the peers' places and the genesis document, and writes the root's beginning into the founders' stores.
func (n *Network) found() error {
	for i := range n.opts.N {
		s, err := n.newSlot(i)
		if err != nil {
			return err
		}
		n.slots = append(n.slots, s)
	}
	founders := n.slots[:2*n.opts.F+1]
	var hosts []placement.Host
	for _, s := range founders {
		hosts = append(hosts, placement.Host{
			Peer:  placement.Peer{ID: string(s.id), Addrs: []string{s.addr.String()}},
			Store: s.store.ID(),
		})
	}
	g := newGenesis(n.opts, hosts)
	n.genesis = g
	errs := make([]error, len(n.slots))
	var wg sync.WaitGroup // each may wait for the disk
	for i, s := range n.slots {
		wg.Go(func() { errs[i] = n.furnish(s) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// furnish makes the store of a new peer on the disk, if that is where it is to be, and writes the root's beginning into that of a founder.
func (n *Network) furnish(s *slot) error {
	founds := s.index < len(n.genesis.Founders)
	fail := func(err error) error { return fmt.Errorf("testnet: peer %d: %w", s.index, err) }
	if n.opts.StoreDir != "" {
		s.storeDir = filepath.Join(n.opts.StoreDir, strconv.Itoa(s.index))
		if err := disk.Create(s.storeDir, n.genesis.ID(), s.store.ID()); err != nil {
			return fail(err)
		}
	}
	if !founds {
		return nil
	}
	store, err := s.open(n.genesis)
	if err != nil {
		return fail(err)
	}
	if err := errors.Join(replicagroup.Found(store, n.genesis, dht.NodeIDOf(s.id)), s.shut()); err != nil {
		return fail(err)
	}
	return nil
}

// newSlot makes the place of peer i: identity, port and store.
func (n *Network) newSlot(i int) (*slot, error) {
	for {
		port, err := freePort()
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(n.slots, func(s *slot) bool { return s.port == port }) { // of one that is down
			return n.slotAt(i, port)
		}
	}
}

// slotAt makes the place of peer i at a port.
func (n *Network) slotAt(i, port int) (*slot, error) {
	s := &slot{index: i, key: identity(n.opts.Seed, i), port: port, store: replicagroup.NewMemoryStore(), voters: voterlog.NewMemory()}
	var err error
	if s.id, err = peer.IDFromPrivateKey(s.key); err != nil {
		return nil, fmt.Errorf("testnet: identity of peer %d: %w", i, err)
	}
	s.hostPort = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	s.addr = ma.StringCast("/ip4/127.0.0.1/tcp/" + strconv.Itoa(port))
	if n.opts.Dir != "" {
		s.dir = filepath.Join(n.opts.Dir, strconv.Itoa(i))
	}
	return s, nil
}

// newGenesis draws the document of a testnet's overlay.
func newGenesis(o Options, founders []placement.Host) placement.Genesis {
	g := placement.Defaults()
	g.Name, g.Founders = "testnet", founders
	g.F, g.Depth, g.TTLMax, g.DeadAfter = o.F, o.Depth, TTLMax, 0
	g.Regenesis, g.LeaseReads, g.OwnGroups, g.Sigma, g.Lease = o.Regenesis, o.LeaseReads, o.OwnGroups, !o.NoSigma, Lease
	g.RootKey = secret(o.Seed, "root").Public().(ed25519.PublicKey)
	rand.Read(g.Nonce[:])
	return g
}

// secret derives an ed25519 key from the seed. Testnets only: whoever knows the seed has the key.
func secret(seed uint64, name string) ed25519.PrivateKey {
	b := sha256.Sum256(append(binary.BigEndian.AppendUint64([]byte("latchkey testnet key, not a secret: "), seed), name...))
	return ed25519.NewKeyFromSeed(b[:])
}

// identity returns peer i's key.
func identity(seed uint64, i int) crypto.PrivKey {
	k, err := crypto.UnmarshalEd25519PrivateKey(secret(seed, "peer "+strconv.Itoa(i)))
	if err != nil {
		panic(err) // an ed25519 key that is none: only by a mistake here
	}
	return k
}

// ports is where this process looks for free ports next. All its testnets share it: a port that one has been given, and does not listen
// at yet, is not given to another.
var ports = struct {
	sync.Mutex
	next int
}{next: portFirst + mathrand.IntN(portLast-portFirst+1)}

// freePort returns the next free port of the range.
func freePort() (int, error) {
	ports.Lock()
	defer ports.Unlock()
	for range portLast - portFirst + 1 {
		port := ports.next
		if ports.next++; ports.next > portLast {
			ports.next = portFirst
		}
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("testnet: no free port between %d and %d on 127.0.0.1", portFirst, portLast)
}

// bearAll starts every peer at once, but for those of a state that were down.
func (n *Network) bearAll(ctx context.Context) error {
	errs := make(chan error)
	starting := slices.DeleteFunc(slices.Clone(n.slots), func(s *slot) bool { return n.opts.State != nil && !n.opts.State.Peers[s.index].Up })
	for _, s := range starting {
		go func() { errs <- n.bear(ctx, s, n.opts.known(n.slots)...) }()
	}
	var all []error
	for done := range starting {
		n.progress(Progress{"starting peers", done, len(starting)})
		all = append(all, <-errs)
	}
	n.progress(Progress{"starting peers", len(starting), len(starting)})
	return errors.Join(all...)
}

// known returns those of slots that a peer knows at the start of a testnet: of a state all, as a daemon remembers whom it has met.
func (o Options) known(slots []*slot) []*slot {
	if o.State == nil {
		return nil
	}
	return slots
}

// bear starts a peer that is down. It is told of the founders, and of those it knows. Errors: [ErrUp], [ErrClosed].
func (n *Network) bear(ctx context.Context, s *slot, knows ...*slot) error {
	s.turn.Lock()
	defer s.turn.Unlock()
	if s.present() != nil {
		return fmt.Errorf("%w: %d; kill it first", ErrUp, s.index)
	}
	store, err := s.open(n.genesis)
	if err != nil {
		return fmt.Errorf("testnet: peer %d: %w", s.index, err)
	}
	opts := []node.Option{node.WithOverlay(n.genesis), node.WithStore(store), node.WithVoterLog(s.voters), node.WithPlanTimes(placement.TestnetPlanTimes())}
	for _, k := range knows {
		if k != s {
			opts = append(opts, node.WithBootstrap(peer.AddrInfo{ID: k.id, Addrs: []ma.Multiaddr{k.addr}}))
		}
	}
	w, err := n.wireFor(s)
	if err != nil {
		return errors.Join(err, s.shut())
	}
	p, err := s.bear(ctx, w, n.opts.Prepare, opts)
	if err != nil {
		s.end()
		err = errors.Join(err, s.shut())
		return fmt.Errorf("testnet: peer %d: %w", s.index, err)
	}
	s.begin(p)
	return nil
}

// wireFor makes a wire for the next life of a peer, under the rules that stand and those to come.
func (n *Network) wireFor(s *slot) (*wire.Wire, error) {
	n.changing.Lock()
	defer n.changing.Unlock()
	n.mu.Lock()
	closed, rules := n.closed, n.faults.rules(s.index, addrs(n.slots))
	n.mu.Unlock()
	if closed {
		return nil, ErrClosed
	}
	w := wire.New()
	s.connect(w)
	return w, w.SetRules(rules)
}

// WaitReady waits until every peer that is up sees the others that are: it is connected to the 20 closest to it in the key space,
// in a testnet of up to 21 peers thus to all, and names the right owners of a key when asked. While a partition stands, only
// those of its own side count, and nobody is asked for owners: who is across is away, but need not be known to be yet. It
// returns ctx's cause when that ends first, with who is not ready.
func (n *Network) WaitReady(ctx context.Context) error { return n.waitReady(ctx, func(Progress) {}) }

func (n *Network) waitReady(ctx context.Context, progress func(Progress)) error {
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	var live []*Peer
	var standing faults
	ready := make(map[*Peer]bool) // as long as nothing changes
	for {
		nowLive, nowStanding := n.live()
		if !slices.Equal(live, nowLive) || !standing.samePartition(nowStanding) {
			clear(ready)
		}
		live, standing = nowLive, nowStanding
		var late []int
		for i, ok := range n.see(ctx, live, ready, standing) {
			if ready[live[i]] = ok; !ok {
				late = append(late, live[i].index)
			}
		}
		progress(Progress{"peers finding each other", len(live) - len(late), len(live)})
		if len(late) == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("testnet: peers %v do not see all others: %w", late, context.Cause(ctx))
		}
	}
}

// see reports which of the live peers see what they should; those that are ready already are not asked.
func (n *Network) see(ctx context.Context, live []*Peer, ready map[*Peer]bool, standing faults) []bool {
	oks := make([]bool, len(live))
	var asked sync.WaitGroup
	for i, p := range live {
		if oks[i] = ready[p]; oks[i] {
			continue
		}
		asked.Go(func() {
			oks[i] = connected(p, live, standing) && (standing.partitioned() || n.findsOwners(ctx, p, live))
		})
	}
	asked.Wait()
	return oks
}

// connected reports whether p is connected to the closest others of its side.
func connected(p *Peer, live []*Peer, standing faults) bool {
	others := make(map[keyspace.NodeID]*Peer)
	var nodes []keyspace.NodeID
	for _, q := range live {
		if q != p && standing.sideOf(p.index) == standing.sideOf(q.index) {
			node := dht.NodeIDOf(q.host.ID())
			others[node] = q
			nodes = append(nodes, node)
		}
	}
	keyspace.SortByDistance(keyspace.Key(dht.NodeIDOf(p.host.ID())), nodes)
	for _, node := range nodes[:min(closeMax, len(nodes))] {
		if p.host.Network().Connectedness(others[node].host.ID()) != network.Connected {
			return false
		}
	}
	return true
}

// findsOwners reports whether p finds the owners of a key that nobody has asked for before.
func (n *Network) findsOwners(ctx context.Context, p *Peer, live []*Peer) bool {
	var nodes []keyspace.NodeID
	for _, q := range live {
		nodes = append(nodes, dht.NodeIDOf(q.host.ID()))
	}
	probe := keyspace.Preimage("testnet probe " + rand.Text())
	keyspace.SortByDistance(probe.Key(), nodes)
	r := 2*n.opts.F + 1
	owners, err := p.node.Overlay().ReplicaSet(ctx, probe, r)
	return err == nil && slices.EqualFunc(owners, nodes[:min(r, len(nodes))], func(a peer.AddrInfo, b keyspace.NodeID) bool {
		return dht.NodeIDOf(a.ID) == b
	})
}

// live returns the peers that are up, by number, and what stands between them.
func (n *Network) live() (live []*Peer, standing faults) {
	for _, s := range n.all() {
		if p := s.present(); p != nil {
			live = append(live, p)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return live, n.faults
}

// N returns how many peers the testnet has, up or down.
func (n *Network) N() int { return len(n.all()) }

// all returns the peers' places.
func (n *Network) all() []*slot {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.slots
}

// F returns how many crashed voters a group survives.
func (n *Network) F() int { return n.opts.F }

// Founders returns the numbers of the peers that are the root group's voters.
func (n *Network) Founders() []int {
	var is []int
	for i := range n.genesis.Founders {
		is = append(is, i)
	}
	return is
}

// Genesis returns the overlay's genesis document.
func (n *Network) Genesis() placement.Genesis { return n.genesis }

// ID returns the peer id of peer i, which need not be there yet: that of the next peer to join, for one, is known before.
func (n *Network) ID(i int) peer.ID {
	id, err := peer.IDFromPrivateKey(identity(n.opts.Seed, i))
	if err != nil {
		panic(err) // an ed25519 key that has none: only by a mistake here
	}
	return id
}

// IndexOf returns the number of the peer with this id in text form, or -1.
func (n *Network) IndexOf(id string) int {
	return slices.IndexFunc(n.all(), func(s *slot) bool { return s.id.String() == id })
}

// Status returns the network's state.
func (n *Network) Status() Status {
	n.mu.Lock()
	slots, standing := n.slots, n.faults
	n.mu.Unlock()
	st := Status{
		Overlay: n.genesis.ID().Hex(), Seed: n.opts.Seed, F: n.opts.F, Depth: n.genesis.Depth, Mode: ModeInProcess,
		Latency: standing.latency, Partitioned: standing.partitioned(),
	}
	for _, s := range slots {
		s.mu.Lock()
		up, left := s.life != nil, s.left
		s.mu.Unlock()
		st.Peers = append(st.Peers, PeerStatus{
			N: s.index, Peer: s.id.String(), Addr: s.addr.String() + "/p2p/" + s.id.String(), API: s.socket(), Path: s.dir,
			Up: up, Left: left, Founder: s.index < len(n.genesis.Founders), Side: standing.sideOf(s.index),
		})
	}
	return st
}

// slot returns peer i's place, or [ErrNoPeer].
func (n *Network) slot(i int) (*slot, error) {
	slots := n.all()
	if err := checkNumber(i, len(slots)); err != nil {
		return nil, err
	}
	return slots[i], nil
}

// Peer returns the present life of peer i. Errors: [ErrNoPeer], [ErrDown].
func (n *Network) Peer(i int) (*Peer, error) {
	s, err := n.slot(i)
	if err != nil {
		return nil, err
	}
	p := s.present()
	if p == nil {
		return nil, fmt.Errorf("%w: %d; restart it first", ErrDown, i)
	}
	return p, nil
}

// Kill ends peer i without a goodbye; see the package comment. When it returns, the peer is dead to everybody. witness, when
// given, runs at the very instant: after the last effect of the peer's clients ([Peer.Do]) and before anybody can notice. It
// must not block. Errors: [ErrNoPeer], [ErrDown].
func (n *Network) Kill(i int, witness ...func()) error {
	s, err := n.slot(i)
	if err != nil {
		return err
	}
	s.turn.Lock()
	defer s.turn.Unlock()
	if s.present() == nil {
		return fmt.Errorf("%w: %d was killed already", ErrDown, i)
	}
	p := s.kill(witness...)
	n.mu.Lock()
	closed := n.closed
	if !closed {
		n.burials.Go(p.bury)
	}
	n.mu.Unlock()
	if closed {
		p.bury()
	}
	return nil
}

// Restart starts a peer that was killed or has left again, with the same identity, port and store, and waits as [Network.WaitReady]
// does. Like a daemon it remembers the other peers, so it finds those of its side when the founders are across. Errors:
// [ErrNoPeer], [ErrUp], [ErrClosed].
func (n *Network) Restart(ctx context.Context, i int) error {
	s, err := n.slot(i)
	if err != nil {
		return err
	}
	if err := n.bear(ctx, s, n.all()...); err != nil {
		return err
	}
	return n.WaitReady(ctx)
}

// Close kills all peers at once and waits for their goroutines. It is idempotent.
func (n *Network) Close() error {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	var dead []*Peer
	for _, s := range n.all() {
		s.turn.Lock()
		if s.present() != nil {
			dead = append(dead, s.kill())
		}
		s.turn.Unlock()
	}
	var wg sync.WaitGroup
	for _, p := range dead {
		wg.Go(p.bury)
	}
	wg.Wait()
	n.burials.Wait()
	for _, s := range n.all() {
		if s.dir != "" {
			_ = os.Remove(s.dir) // not if somebody else has put something there
		}
	}
	return nil
}
