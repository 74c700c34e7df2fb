// Package wire is the cable of one testnet peer: every socket that the peer's host or its API opens goes through one
// [Wire], so that a kill can be what a kill is. [Wire.Cut] pulls the cable: no shutdown code of any layer above (a
// yamux GoAway, a libp2p or HTTP farewell, a release of a lock) gets a byte out any more, as if the process had been
// shot. The sockets are real ones and the remote end sees what it would see of a shot process: a reset.
//
// [Wire.SetRules] makes the cable a bad one: addresses that are cut off in silence, and latency. Of two connected wires the one
// that dialled acts, for both directions, so partitions must be set on both. [Serve] takes rules from another process.
//
// One thing gets through a partition: the end of a peer that had dialled is a reset, and its kernel, not its wire, sends it.
package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
)

// ErrCut is returned by everything that uses a wire after it was cut.
var ErrCut = errors.New("wire: cut")

// Wire carries the connections of one life of one peer. It is cut once and never mended: a restarted peer gets a new
// one. All methods are safe for concurrent use.
type Wire struct {
	// cut is looked at before each write and after each read. A write that was past its look when Cut came finds its
	// descriptor closed instead, so the flag need not be under mu.
	cut atomic.Bool
	// life ends with the cut and takes the dials under way along.
	life context.Context
	end  context.CancelFunc

	// ruling is held while rules are put into effect. It is taken before mu. No lock of a connection is held where mu is taken.
	ruling sync.Mutex

	mu        sync.Mutex
	rules     ruleset
	ruled     chan struct{}          // closed when rules change
	conns     map[*conn]*dialled     // open connections; those accepted have none
	connects  map[*connect]struct{}  // under way
	listeners map[*listener]struct{} // open listeners
	dials     sync.WaitGroup         // dials under way; none is added once cut is set
	pumps     sync.WaitGroup         // of connections; likewise
}

// New returns a whole wire without connections or rules.
func New() *Wire {
	w := &Wire{
		ruled: make(chan struct{}), conns: make(map[*conn]*dialled), connects: make(map[*connect]struct{}), listeners: make(map[*listener]struct{}),
	}
	w.life, w.end = context.WithCancel(context.Background())
	return w
}

// Cut pulls the cable. When it returns, every connection has been reset (its unsent bytes are gone), every listener is
// closed, no dial is under way, no goroutine of the wire runs, and nothing written from now on leaves; bytes that the remote
// end had already been handed stay with it. It waits for no remote end. Further calls do nothing.
func (w *Wire) Cut() {
	w.ruling.Lock()
	w.mu.Lock()
	first := !w.cut.Swap(true)
	w.mu.Unlock()
	w.ruling.Unlock()
	if !first {
		return
	}
	w.end()
	w.dials.Wait()
	// Nothing is added to the two sets from here on: track looks at cut under mu.
	w.mu.Lock()
	for l := range w.listeners {
		l.Listener.Close()
	}
	var shaped []*dialled
	for c, d := range w.conns {
		// net.Conn.Close returns when the descriptor is closed and no call is left inside it.
		c.Conn.Close()
		if d != nil {
			shaped = append(shaped, d)
		}
	}
	clear(w.listeners)
	clear(w.conns)
	w.mu.Unlock()
	for _, d := range shaped {
		d.wake()
	}
	w.pumps.Wait()
}

// SetRules replaces the rules, for the connections there are as for those to come. When it returns, nothing moves that they
// forbid. It waits for no remote end. Errors: [ErrRules] and [ErrStale], and then the former rules stay; [ErrCut].
func (w *Wire) SetRules(r Rules) error {
	rules, err := r.compile()
	if err != nil {
		return err
	}
	w.ruling.Lock()
	defer w.ruling.Unlock()
	w.mu.Lock()
	if w.cut.Load() {
		w.mu.Unlock()
		return ErrCut
	}
	if has := w.rules.version; rules.version < has {
		w.mu.Unlock()
		return fmt.Errorf("%w: version %d, and it has version %d", ErrStale, rules.version, has)
	}
	w.rules = rules
	close(w.ruled)
	w.ruled = make(chan struct{})
	var recalled []*connect
	for k := range w.connects {
		if rules.on(k.address).blocked {
			k.recall()
			recalled = append(recalled, k)
		}
	}
	w.mu.Unlock()
	for _, k := range recalled {
		<-k.done
	}
	w.mu.Lock()
	var all []*dialled
	for _, d := range w.conns {
		if d != nil {
			all = append(all, d)
		}
	}
	w.mu.Unlock()
	for _, d := range all {
		d.apply(rules.on(d.address))
	}
	return nil
}

// Conns returns how many connections are open.
func (w *Wire) Conns() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.conns)
}

// Listen listens on address as [net.Listen] does. It fails with [ErrCut] after the cut.
func (w *Wire) Listen(network, address string) (net.Listener, error) {
	l, err := net.Listen(network, address)
	if err != nil {
		return nil, err
	}
	return w.Adopt(l)
}

// Adopt puts a listener on the wire, with every connection it will accept. It closes l and fails with [ErrCut] after the
// cut.
func (w *Wire) Adopt(nl net.Listener) (net.Listener, error) {
	l := &listener{Listener: nl, w: w, closed: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut.Load() {
		nl.Close()
		return nil, ErrCut
	}
	w.listeners[l] = struct{}{}
	return l, nil
}

// track takes an accepted connection into the wire. On a cut wire it closes c instead.
func (w *Wire) track(c net.Conn) (net.Conn, error) {
	tc := w.whole(c)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut.Load() {
		c.Close()
		return nil, ErrCut
	}
	w.conns[tc] = nil
	return tc, nil
}

// whole makes c one that is reset by its end.
func (w *Wire) whole(c net.Conn) *conn {
	if t, ok := c.(interface{ SetLinger(int) error }); ok {
		// A close resets the connection and drops what is unsent, and leaves no TIME-WAIT behind, so that a restarted
		// peer finds its port free. libp2p's own transport does the same.
		_ = t.SetLinger(0)
	}
	return &conn{Conn: c, w: w}
}

// listener hands accepted connections to the wire.
type listener struct {
	net.Listener
	w      *Wire
	closed chan struct{}
	once   sync.Once
}

// Accept does not return after the cut until the owner closes the listener, and then says only that: a host that is dead has
// nothing to report.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		c, err = l.w.track(c)
	}
	if l.w.cut.Load() {
		<-l.closed
		return nil, &net.OpError{Op: "accept", Net: l.Addr().Network(), Addr: l.Addr(), Err: net.ErrClosed}
	}
	return c, err
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	l.w.mu.Lock()
	delete(l.w.listeners, l)
	l.w.mu.Unlock()
	if err := l.Listener.Close(); !l.w.cut.Load() {
		return err
	}
	return nil // the cut closed it
}

// conn is one connection on the wire.
type conn struct {
	net.Conn
	w *Wire
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.w.cut.Load() {
		return 0, ErrCut // what arrives after the cut was sent to nobody
	}
	return n, err
}

func (c *conn) Write(b []byte) (int, error) {
	if c.w.cut.Load() {
		return 0, ErrCut
	}
	return c.Conn.Write(b)
}

func (c *conn) Close() error {
	c.w.mu.Lock()
	delete(c.w.conns, c)
	c.w.mu.Unlock()
	return c.Conn.Close()
}
