package testnet

import (
	"context"
	"os"
	"path/filepath"
	"sync"

	logging "github.com/ipfs/go-log/v2"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"latchkey/lockservice/voterlog"
	"latchkey/node"
	"latchkey/node/api"
	"latchkey/replicagroup"
	"latchkey/replicagroup/disk"
	"latchkey/replicagroup/placement"
	"latchkey/testnet/wire"
)

var log = logging.Logger("latchkey/testnet")

// Peer is one life of one peer: from a start to a kill. Its methods are safe for concurrent use.
type Peer struct {
	index  int
	wire   *wire.Wire
	host   host.Host
	node   *node.Node
	server *api.Server // nil in a testnet without a directory
	served sync.WaitGroup

	// mu orders effects and the kill: effects hold it for reading, the kill for writing.
	mu     sync.RWMutex
	dead   bool
	killed chan struct{} // closed at the kill
}

// Index returns the peer's number in its testnet, from 0.
func (p *Peer) Index() int { return p.index }

// Node returns the node. After the kill it is a ghost: it reaches nobody.
func (p *Peer) Node() *node.Node { return p.node }

// Host returns the libp2p host below the node.
func (p *Peer) Host() host.Host { return p.host }

// Killed is closed when this life ends.
func (p *Peer) Killed() <-chan struct{} { return p.killed }

// Do runs effect as something that the peer's process does to the world outside, and reports whether it ran: it does not once
// the peer is killed. A kill waits for the effects under way, so each of them happened before the kill or not at all. A
// goroutine that stands for a client in the peer's process does everything that others could see through Do, and ends when
// Do returns false. effect must not block for long, and must not call Kill.
func (p *Peer) Do(effect func()) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.dead {
		return false
	}
	effect()
	return true
}

// slot is a place for a peer: what stays the same through its lives.
type slot struct {
	index    int
	key      crypto.PrivKey
	id       peer.ID
	port     int
	addr     ma.Multiaddr
	hostPort string // addr as rules name it
	dir      string // empty in a testnet without a directory

	// turn is held through a start and an end. It guards the stores.
	turn     sync.Mutex
	store    *replicagroup.MemoryStore
	voters   *voterlog.Log // in memory, beside whichever store
	storeDir string        // of the store on disk that there is in its place; empty: there is none
	onDisk   *lent         // that store while a life has it

	mu   sync.Mutex
	wire *wire.Wire // of the life that is, or begins; nil while down
	life *Peer      // nil while down
	left bool       // the last life ended by Leave
}

// open returns the peer's store for a life that begins. Called in turn, while down.
func (s *slot) open(g placement.Genesis) (replicagroup.Store, error) {
	if s.storeDir == "" {
		return s.store, nil
	}
	store, err := disk.Open(s.storeDir, disk.Options{Overlay: g.ID()})
	if err != nil {
		return nil, err
	}
	s.onDisk = &lent{Store: store}
	return s.onDisk, nil
}

// shut takes the store away from the life that had it: whatever that does from now on leaves no trace. Called in turn.
func (s *slot) shut() error {
	s.voters = s.voters.Detach()
	if s.storeDir == "" {
		s.store = s.store.Detach()
		return nil
	}
	if s.onDisk == nil {
		return nil
	}
	store := s.onDisk
	s.onDisk = nil
	return store.take()
}

func (s *slot) socket() string {
	if s.dir == "" {
		return ""
	}
	return filepath.Join(s.dir, "api.sock")
}

// present returns the life that is, or nil.
func (s *slot) present() *Peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.life
}

// connect says what wire the life that begins is on.
func (s *slot) connect(w *wire.Wire) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wire = w
}

// begin makes p the life that is.
func (s *slot) begin(p *Peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life, s.left = p, false
}

// end makes the slot an empty one.
func (s *slot) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wire, s.life = nil, nil
}

// addrs returns the slots' addresses as rules name them.
func addrs(slots []*slot) []string {
	var addrs []string
	for _, s := range slots {
		addrs = append(addrs, s.hostPort)
	}
	return addrs
}

// bear starts a life on w. Called in turn, while down.
func (s *slot) bear(ctx context.Context, w *wire.Wire, prepare func(i int, n *node.Node), opts []node.Option) (_ *Peer, err error) {
	p := &Peer{index: s.index, wire: w, killed: make(chan struct{})}
	defer func() {
		if err != nil {
			p.wire.Cut()
			p.bury()
		}
	}()
	p.host, err = libp2p.New(
		libp2p.Identity(s.key),
		libp2p.Transport(p.wire.Transport), // the only way out
		libp2p.ListenAddrs(s.addr),
		libp2p.DisableRelay(),
		libp2p.DisableMetrics(),
		libp2p.DisableIdentifyAddressDiscovery(), // everybody is on loopback
	)
	if err != nil {
		return nil, err
	}
	if p.node, err = node.New(p.host, opts...); err != nil {
		return nil, err
	}
	if prepare != nil {
		prepare(s.index, p.node)
	}
	if err := p.node.Start(ctx); err != nil {
		return nil, err
	}
	if s.dir != "" {
		if err := p.serve(s.socket()); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// serve answers the node API at socket.
func (p *Peer) serve(socket string) error {
	if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
		return err
	}
	l, err := api.Listen(socket)
	if err != nil {
		return err
	}
	if l, err = p.wire.Adopt(l); err != nil {
		return err
	}
	p.server, err = api.NewServer(api.Config{Node: p.node, Locks: p.node.NewLockBackend(), Objects: p.node.NewAPIObjects(), Durables: p.node.NewAPIDurables(), Version: node.Version()})
	if err != nil {
		return err
	}
	p.served.Go(func() { _ = p.server.Serve(l) }) // ends with Close; a cut listener reports nothing before
	return nil
}

// kill ends the life s has, and returns it for its burial. Called in turn, while up.
func (s *slot) kill(witness ...func()) *Peer {
	p := s.present()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead = true
	for _, w := range witness {
		w()
	}
	p.wire.Cut()
	if err := s.shut(); err != nil { // only what was not synced can be lost, and nobody was told of that
		log.Warnw("store of a killed peer", "peer", s.index, "err", err)
	}
	s.end()
	close(p.killed)
	return p
}

// leave ends the life s has in an orderly way. Called in turn, while up.
func (s *slot) leave(ctx context.Context) {
	p := s.present()
	if p.server != nil {
		p.server.Drain()
	}
	if err := p.node.Leave(ctx); err != nil {
		log.Infow("a peer leaves and is not replaced everywhere", "peer", s.index, "err", err)
	}
	p.bury() // not dead yet: this time others hear what it has to say
	s.kill()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = true
}

// bury ends the goroutines of a peer. When its wire is cut they may try for a few seconds to reach somebody; what they have to
// say about it is of no interest.
func (p *Peer) bury() {
	if p.server != nil {
		p.server.Close()
	}
	if p.node != nil {
		p.node.Close()
	}
	if p.host != nil {
		p.host.Close()
	}
	p.served.Wait()
}
