// Package wire is the cable of one testnet peer: every socket that the peer's host or its API opens goes through one
// [Wire], so that a kill can be what a kill is. [Wire.Cut] pulls the cable: no shutdown code of any layer above (a
// yamux GoAway, a libp2p or HTTP farewell, a release of a lock) gets a byte out any more, as if the process had been
// shot. The sockets are real ones and the remote end sees what it would see of a shot process: a reset.
package wire

import (
	"context"
	"errors"
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

	mu        sync.Mutex
	conns     map[*conn]struct{}     // open connections, dialled and accepted
	listeners map[*listener]struct{} // open listeners
	dials     sync.WaitGroup         // dials under way; none is added once cut is set
}

// New returns a whole wire without connections.
func New() *Wire {
	w := &Wire{conns: map[*conn]struct{}{}, listeners: map[*listener]struct{}{}}
	w.life, w.end = context.WithCancel(context.Background())
	return w
}

// Cut pulls the cable. When it returns, every connection has been reset (its unsent bytes are gone), every listener is
// closed, no dial is under way, and nothing written from now on leaves; bytes that the remote end had already been
// handed stay with it. It waits for no remote end. Further calls do nothing.
func (w *Wire) Cut() {
	w.mu.Lock()
	first := !w.cut.Swap(true)
	w.mu.Unlock()
	if !first {
		return
	}
	w.end()
	w.dials.Wait()
	// Nothing is added to the two sets from here on: track looks at cut under mu.
	w.mu.Lock()
	defer w.mu.Unlock()
	for l := range w.listeners {
		l.Listener.Close()
	}
	for c := range w.conns {
		// net.Conn.Close returns when the descriptor is closed and no call is left inside it.
		c.Conn.Close()
	}
	clear(w.listeners)
	clear(w.conns)
}

// Conns returns how many connections are open.
func (w *Wire) Conns() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.conns)
}

// Dial connects to address as [net.Dialer.DialContext] does. It fails with [ErrCut] after the cut.
func (w *Wire) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	w.mu.Lock()
	if w.cut.Load() {
		w.mu.Unlock()
		return nil, ErrCut
	}
	w.dials.Add(1)
	w.mu.Unlock()
	defer w.dials.Done()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(w.life, cancel)()
	var d net.Dialer
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		if w.cut.Load() {
			return nil, ErrCut
		}
		return nil, err
	}
	return w.track(c)
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

// track takes c into the wire. On a cut wire it closes c instead.
func (w *Wire) track(c net.Conn) (net.Conn, error) {
	if t, ok := c.(interface{ SetLinger(int) error }); ok {
		// A close resets the connection and drops what is unsent, and leaves no TIME-WAIT behind, so that a restarted
		// peer finds its port free. libp2p's own transport does the same.
		_ = t.SetLinger(0)
	}
	tc := &conn{Conn: c, w: w}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut.Load() {
		c.Close()
		return nil, ErrCut
	}
	w.conns[tc] = struct{}{}
	return tc, nil
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
