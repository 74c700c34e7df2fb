package testnet

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"

	"latchkey/node"
	"latchkey/node/config"
	"latchkey/replicagroup/placement"
)

// ProcessOptions configures [UpProcesses].
type ProcessOptions struct {
	// Options are those of any testnet. Dir is required; Prepare must be nil, since the peers are not in this process.
	Options
	// Program is the latchkey binary that becomes each peer, and Args what its command line begins with: global flags.
	Program string
	Args    []string
}

// Processes is a running testnet, each of whose peers is a process of its own: "latchkey daemon" on a directory of its own, DIR/N.
// Its methods are safe for concurrent use. On Linux the peers die with this process, however it ends; elsewhere only Close ends
// them.
//
// A kill is SIGKILL, a pause SIGSTOP, a leave SIGTERM. Partitions and latency are rules of the peers' wires (package wire),
// told over DIR/N/wire.sock. A starting peer has them before it sends a byte; a paused one cannot be told, and learns them a
// moment after it goes on.
//
// Replicas are on disk, in DIR/N/store: a peer that comes back goes on with its own, however it ended and however many others did.
type Processes struct {
	opts     ProcessOptions
	genesis  placement.Genesis
	psk      pnet.PSK
	nursery  *nursery
	life     context.Context // ends with Close
	end      context.CancelCauseFunc
	clean    func() error // closes once
	watchers sync.WaitGroup
	joining  sync.Mutex // held while a place is added, or the state copied; taken first
	// resting is held for writing while the state is copied, and for reading by who lets a process start or go on. It is taken before mu.
	resting  sync.RWMutex
	mu       sync.Mutex
	closed   bool
	places   []*place
	standing faults
	version  uint64        // of the standing faults and of who the peers are
	news     chan struct{} // closed when there are any for those who wait; nil when nobody does
}

// place is a peer of [Processes] through its lives. What is not fixed is guarded by Processes.mu.
type place struct {
	index int
	key   crypto.PrivKey
	id    peer.ID
	port  int
	dir   string

	child  *child // nil while down
	ready  bool   // the child has said that it serves
	paused bool
	left   bool
	fault  string // how the last child ended, when nobody had asked it to
}

func (s *place) hostPort() string   { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }
func (s *place) addr() string       { return "/ip4/127.0.0.1/tcp/" + strconv.Itoa(s.port) }
func (s *place) apiSocket() string  { return filepath.Join(s.dir, apiSocketFile) }
func (s *place) wireSocket() string { return filepath.Join(s.dir, wireSocketFile) }
func (s *place) log() string        { return filepath.Join(s.dir, logFile) }

// UpProcesses founds an overlay, or takes up that of [Options.State], and starts its peers as processes. It returns when each of them is connected to the 20 others
// closest to it in the key space, in a testnet of up to 21 peers thus to all; ctx bounds that and nothing else. The caller closes the testnet, and has claimed its directory before ([Claim]).
func UpProcesses(ctx context.Context, o ProcessOptions) (*Processes, error) {
	var err error
	if o.Options, err = o.Options.withDefaults(); err != nil {
		return nil, err
	}
	switch {
	case o.Dir == "" || o.Program == "":
		return nil, fmt.Errorf("%w: peers of their own processes need a directory and a program", ErrOptions)
	case o.StoreDir != "":
		return nil, fmt.Errorf("%w: StoreDir: the peers have directories of their own", ErrOptions)
	case o.Prepare != nil:
		return nil, fmt.Errorf("%w: Prepare: the peers are not in this process", ErrOptions)
	}
	p := &Processes{opts: o, standing: faults{latency: o.Latency}}
	p.life, p.end = context.WithCancelCause(context.Background())
	p.clean = sync.OnceValue(p.takeDown)
	p.nursery = newNursery()
	begin := p.found
	if o.State != nil {
		begin = func() error { return p.restore(o.State) }
	}
	if err := begin(); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	if err := p.startAll(ctx); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	if err := p.awaitMesh(ctx, func(done, total int) { p.progress("peers finding each other", done, total) }); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// found draws the overlay and makes the peers' directories.
func (p *Processes) found() error {
	p.psk = node.NewSwarmKey()
	for range p.opts.N {
		s, err := p.newPlace()
		if err != nil {
			return err
		}
		p.places = append(p.places, s)
	}
	hosts := make([]placement.Host, 2*p.opts.F+1)
	for i := range hosts {
		hosts[i].Peer = placement.Peer{ID: string(p.places[i].id), Addrs: []string{p.places[i].addr()}}
		rand.Read(hosts[i].Store[:])
	}
	p.genesis = newGenesis(p.opts.Options, hosts)
	errs := make([]error, len(p.places))
	var wg sync.WaitGroup // each waits for the disk
	for i, s := range p.places {
		wg.Go(func() { errs[i] = p.furnish(s, nil) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// newPlace makes a place for one more peer, which must not become one of p.places before its number is taken.
func (p *Processes) newPlace() (*place, error) {
	for {
		port, err := freePort()
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(p.places, func(s *place) bool { return s.port == port }) { // of one that is down
			return p.placeAt(len(p.places), port)
		}
	}
}

// placeAt makes the place of peer i at a port.
func (p *Processes) placeAt(i, port int) (*place, error) {
	s := &place{index: i, key: identity(p.opts.Seed, i), port: port, dir: filepath.Join(p.opts.Dir, strconv.Itoa(i))}
	var err error
	if s.id, err = peer.IDFromPrivateKey(s.key); err != nil {
		return nil, fmt.Errorf("testnet: identity of peer %d: %w", i, err)
	}
	return s, nil
}

// furnish makes the directory of a peer, with the beginning of the root group in the store of a founder. bootstrap are peers to dial beside the
// founders when nobody is known.
func (p *Processes) furnish(s *place, bootstrap []string) error {
	c, err := config.Default(config.Test)
	if err != nil {
		return fmt.Errorf("testnet: %w", err)
	}
	c.Network.Listen, c.Network.Bootstrap = []string{s.addr()}, bootstrap
	spec := node.DirSpec{Key: s.key, Genesis: p.genesis, SwarmKey: p.psk, Config: c}
	spec.Founds = s.index < len(p.genesis.Founders)
	if s.index == 0 { // as "init" leaves it with the first peer; of a testnet it is no secret
		spec.RootKey = secret(p.opts.Seed, "root")
	}
	if err := p.markDir(s.dir); err != nil {
		return err
	}
	return describe(s, node.CreateDir(s.dir, spec))
}

// startAll starts every peer at once, but for those of a state that were down.
func (p *Processes) startAll(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	errs := make(chan error)
	starting := slices.DeleteFunc(slices.Clone(p.places), func(s *place) bool { return p.opts.State != nil && !p.opts.State.Peers[s.index].Up })
	for _, s := range starting {
		go func() { errs <- p.start(ctx, s) }()
	}
	p.progress("starting peers", 0, len(starting))
	var first error
	for done := range starting {
		if err := <-errs; err != nil && first == nil {
			first = err
			cancel(err) // the others need not go on
		}
		if first == nil {
			p.progress("starting peers", done+1, len(starting))
		}
	}
	return first
}

func (p *Processes) progress(stage string, done, total int) {
	if p.opts.Progress != nil {
		p.opts.Progress(Progress{Stage: stage, Done: done, Total: total})
	}
}

// placeLocked returns peer i's place, or [ErrNoPeer]. Called with p.mu held.
func (p *Processes) placeLocked(i int) (*place, error) {
	if err := checkNumber(i, len(p.places)); err != nil {
		return nil, err
	}
	return p.places[i], nil
}

// Status returns the testnet's state.
func (p *Processes) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := Status{
		Overlay: p.genesis.ID().Hex(), Seed: p.opts.Seed, F: p.opts.F, Depth: p.genesis.Depth, Mode: ModeProcess,
		Latency: p.standing.latency, Partitioned: p.standing.partitioned(),
	}
	for _, s := range p.places {
		q := PeerStatus{
			N: s.index, Peer: s.id.String(), Addr: s.addr() + "/p2p/" + s.id.String(), API: s.apiSocket(), Path: s.dir,
			Up: s.child != nil && s.ready, Founder: s.index < len(p.genesis.Founders), Paused: s.paused, Left: s.left,
			Side: p.standing.sideOf(s.index), Fault: s.fault,
		}
		if s.child != nil {
			q.PID, q.Behind = s.child.pid(), s.child.told != p.version
		}
		st.Peers = append(st.Peers, q)
	}
	return st
}

// CPU returns the processor time that the peers' present processes have used so far; 0 where the system does not tell.
func (p *Processes) CPU() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	var sum time.Duration
	for _, s := range p.places {
		if s.child != nil {
			sum += cpuOf(s.child.pid())
		}
	}
	return sum
}

// Logs returns the file that peer i's output goes to. Errors: [ErrNoPeer].
func (p *Processes) Logs(i int) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, err := p.placeLocked(i)
	if err != nil {
		return "", err
	}
	return s.log(), nil
}

// Close kills all peers at once, waits for the ends of their processes and removes what is theirs in the directory. It is
// idempotent.
func (p *Processes) Close() error { return p.clean() }

func (p *Processes) takeDown() error {
	p.mu.Lock()
	p.closed = true
	for _, s := range p.places {
		if s.child != nil {
			s.child.expected = true
			_ = s.child.kill() // it may just have ended
		}
	}
	p.mu.Unlock()
	p.end(ErrClosed)
	p.joining.Lock() // whoever joins has seen that now, and has removed what is not among the places
	places := p.places
	p.joining.Unlock()
	p.watchers.Wait()
	p.nursery.close()
	var errs []error
	for _, s := range places {
		errs = append(errs, removePeer(s.dir))
	}
	return errors.Join(errs...)
}

var _ Testnet = (*Processes)(nil)
