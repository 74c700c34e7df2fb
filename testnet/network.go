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
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/node"
	"latchkey/replicagroup"
	"latchkey/replicagroup/placement"
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
)

// Listening ports are taken from a range below those that systems give to outgoing connections, so that nobody takes the port
// of a killed peer before it comes back.
const (
	portFirst = 20_000
	portLast  = 31_999
)

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
	o.N, o.F, o.Seed = cmp.Or(o.N, PeersDefault), cmp.Or(o.F, FDefault), cmp.Or(o.Seed, SeedDefault)
	switch {
	case o.F < 1 || o.F > placement.FMax:
		return o, fmt.Errorf("%w: f is %d; it can be 1 to %d", ErrOptions, o.F, placement.FMax)
	case o.N < 2*o.F+1 || o.N > PeersMax:
		return o, fmt.Errorf("%w: %d peers with f = %d; at least %d are needed, and %d are the most", ErrOptions, o.N, o.F, 2*o.F+1, PeersMax)
	}
	return o, nil
}

// Network is a running testnet. Its methods are safe for concurrent use.
type Network struct {
	opts    Options
	genesis placement.Genesis
	slots   []*slot
	burials sync.WaitGroup

	mu     sync.Mutex
	closed bool // no peer is born any more, and Close waits for burials
}

// Up founds an overlay and starts its peers. It returns when each of them sees all others and knows who owns a key; ctx bounds
// that and nothing else. The caller closes the network.
func Up(ctx context.Context, opts Options) (*Network, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	n := &Network{opts: opts}
	if err := n.found(); err != nil {
		return nil, err
	}
	if err := n.bearAll(ctx); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	if err := n.WaitReady(ctx); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// found makes identities, stores, ports and the genesis document, and writes the founding record into the founders' stores.
func (n *Network) found() error {
	ports := portsFrom(portFirst + mathrand.IntN(portLast-portFirst+1))
	for i := range n.opts.N {
		s := &slot{index: i, key: identity(n.opts.Seed, i), store: replicagroup.NewMemoryStore()}
		var err error
		if s.id, err = peer.IDFromPrivateKey(s.key); err != nil {
			return fmt.Errorf("testnet: identity of peer %d: %w", i, err)
		}
		port, err := ports()
		if err != nil {
			return err
		}
		s.addr = ma.StringCast("/ip4/127.0.0.1/tcp/" + strconv.Itoa(port))
		if n.opts.Dir != "" {
			s.dir = filepath.Join(n.opts.Dir, strconv.Itoa(i))
		}
		n.slots = append(n.slots, s)
	}
	g := placement.Defaults()
	g.Name = "testnet"
	g.F, g.TTLMax, g.DeadAfter = n.opts.F, TTLMax, 0
	g.RootKey = secret(n.opts.Seed, "root").Public().(ed25519.PublicKey)
	rand.Read(g.Nonce[:])
	founders := n.slots[:2*n.opts.F+1]
	for _, s := range founders {
		g.Founders = append(g.Founders, placement.Host{
			Peer:  placement.Peer{ID: string(s.id), Addrs: []string{s.addr.String()}},
			Store: s.store.ID(),
		})
	}
	n.genesis = g
	for _, s := range founders {
		if err := replicagroup.Found(s.store, g, dht.NodeIDOf(s.id)); err != nil {
			return fmt.Errorf("testnet: %w", err)
		}
	}
	return nil
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

// portsFrom returns a function that gives the free ports of the range, one after the other, beginning anywhere in it.
func portsFrom(start int) func() (int, error) {
	tried := 0
	return func() (int, error) {
		for count := portLast - portFirst + 1; tried < count; {
			port := portFirst + (start-portFirst+tried)%count
			tried++
			l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
			if err == nil {
				return port, l.Close()
			}
		}
		return 0, fmt.Errorf("testnet: no free port between %d and %d on 127.0.0.1", portFirst, portLast)
	}
}

// bearAll starts every peer at once.
func (n *Network) bearAll(ctx context.Context) error {
	errs := make(chan error)
	for _, s := range n.slots {
		go func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			errs <- s.bear(ctx, n.genesis, n.opts.Prepare)
		}()
	}
	var all []error
	n.progress("starting peers", 0)
	for done := range n.slots {
		all = append(all, <-errs)
		n.progress("starting peers", done+1)
	}
	return errors.Join(all...)
}

func (n *Network) progress(stage string, done int) {
	if n.opts.Progress != nil {
		n.opts.Progress(Progress{Stage: stage, Done: done, Total: len(n.slots)})
	}
}

// WaitReady waits until every peer that is up sees all others that are, and names the right owners of a key when asked. It
// returns ctx's cause when that ends first, with who is not ready.
func (n *Network) WaitReady(ctx context.Context) error {
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		live := n.live()
		var late []int
		for _, p := range live {
			if !n.sees(ctx, p, live) {
				late = append(late, p.index)
			}
		}
		n.progress("peers finding each other", len(n.slots)-len(late))
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

// sees reports whether p is connected to everybody and finds the owners of a key that nobody has asked for before.
func (n *Network) sees(ctx context.Context, p *Peer, live []*Peer) bool {
	connected := map[string]bool{p.node.ID().String(): true}
	for _, q := range p.node.Peers() {
		if q.Connected {
			connected[q.Peer] = true
		}
	}
	var nodes []keyspace.NodeID
	for _, q := range live {
		if !connected[q.node.ID().String()] {
			return false
		}
		nodes = append(nodes, dht.NodeIDOf(q.node.ID()))
	}
	probe := keyspace.Preimage("testnet probe " + rand.Text())
	keyspace.SortByDistance(probe.Key(), nodes)
	owners, err := p.node.Overlay().ReplicaSet(ctx, probe, 2*n.opts.F+1)
	return err == nil && slices.EqualFunc(owners, nodes[:min(len(owners), len(nodes))], func(a peer.AddrInfo, b keyspace.NodeID) bool {
		return dht.NodeIDOf(a.ID) == b
	}) && len(owners) == min(2*n.opts.F+1, len(nodes))
}

// live returns the peers that are up, by number.
func (n *Network) live() []*Peer {
	var live []*Peer
	for _, s := range n.slots {
		s.mu.Lock()
		if s.life != nil {
			live = append(live, s.life)
		}
		s.mu.Unlock()
	}
	return live
}

// N returns how many peers the testnet has, up or down.
func (n *Network) N() int { return len(n.slots) }

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

// IndexOf returns the number of the peer with this id in text form, or -1.
func (n *Network) IndexOf(id string) int {
	return slices.IndexFunc(n.slots, func(s *slot) bool { return s.id.String() == id })
}

// Status returns the network's state.
func (n *Network) Status() Status {
	st := Status{Overlay: n.genesis.ID().Hex(), Seed: n.opts.Seed, F: n.opts.F, Mode: ModeInProcess}
	for _, s := range n.slots {
		s.mu.Lock()
		up := s.life != nil
		s.mu.Unlock()
		st.Peers = append(st.Peers, PeerStatus{
			N: s.index, Peer: s.id.String(), Addr: s.addr.String() + "/p2p/" + s.id.String(),
			API: s.socket(), Path: s.dir, Up: up, Founder: s.index < len(n.genesis.Founders),
		})
	}
	return st
}

// slot returns peer i's place, or [ErrNoPeer].
func (n *Network) slot(i int) (*slot, error) {
	if i < 0 || i >= len(n.slots) {
		return nil, fmt.Errorf("%w: %d; the peers are 0 to %d", ErrNoPeer, i, len(n.slots)-1)
	}
	return n.slots[i], nil
}

// Peer returns the present life of peer i. Errors: [ErrNoPeer], [ErrDown].
func (n *Network) Peer(i int) (*Peer, error) {
	s, err := n.slot(i)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life == nil {
		return nil, fmt.Errorf("%w: %d", ErrDown, i)
	}
	return s.life, nil
}

// Kill ends peer i without a goodbye; see the package comment. When it returns, the peer is dead to everybody. witness, when
// given, runs at the very instant: after the last effect of the peer's clients ([Peer.Do]) and before anybody can notice. It
// must not block. Errors: [ErrNoPeer], [ErrDown].
func (n *Network) Kill(i int, witness ...func()) error {
	s, err := n.slot(i)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life == nil {
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

// Restart starts a killed peer again with the same identity, port and store, and waits until it sees the others and they see
// it. Errors: [ErrNoPeer], [ErrUp], [ErrClosed].
func (n *Network) Restart(ctx context.Context, i int) error {
	s, err := n.slot(i)
	if err != nil {
		return err
	}
	s.mu.Lock()
	err = n.rebear(ctx, s)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return n.WaitReady(ctx)
}

func (n *Network) rebear(ctx context.Context, s *slot) error {
	if s.life != nil {
		return fmt.Errorf("%w: %d; kill it first", ErrUp, s.index)
	}
	n.mu.Lock()
	closed := n.closed
	n.mu.Unlock()
	if closed {
		return ErrClosed
	}
	return s.bear(ctx, n.genesis, n.opts.Prepare)
}

// Close kills all peers at once and waits for their goroutines. It is idempotent.
func (n *Network) Close() error {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	var dead []*Peer
	for _, s := range n.slots {
		s.mu.Lock()
		if s.life != nil {
			dead = append(dead, s.kill())
		}
		s.mu.Unlock()
	}
	var wg sync.WaitGroup
	for _, p := range dead {
		wg.Go(p.bury)
	}
	wg.Wait()
	n.burials.Wait()
	for _, s := range n.slots {
		if s.dir != "" {
			_ = os.Remove(s.dir) // not if somebody else has put something there
		}
	}
	return nil
}
