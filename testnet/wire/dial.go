package wire

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// Dial connects to address as [net.Dialer.DialContext] does, under the wire's rules: while they block address it hangs until ctx
// ends, and so does the news of how it ended. It fails with [ErrCut] after the cut, and with [ErrAddress] for an address that
// rules could not name.
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
	c, err := w.dial(ctx, network, address)
	if err != nil && w.cut.Load() {
		return nil, ErrCut
	}
	return c, err
}

func (w *Wire) dial(ctx context.Context, network, address string) (net.Conn, error) {
	ap, err := dialAddress(address)
	if err != nil {
		return nil, err
	}
	latency, err := w.passage(ctx, ap)
	if err == nil {
		err = travel(ctx, latency)
	}
	if err != nil {
		return nil, late(network, err)
	}
	c, err := w.connect(ctx, network, address, ap)
	back := travel(ctx, latency)
	if back == nil {
		_, back = w.passage(ctx, ap)
	}
	if back == nil {
		return c, err
	}
	if err == nil {
		c.Close()
	}
	return nil, late(network, back)
}

// late says that a dial ended on its way.
func late(network string, err error) error { return &net.OpError{Op: "dial", Net: network, Err: err} }

// dialAddress reads an address as rules name it: there is one way to write each, and none that means several.
func dialAddress(address string) (netip.AddrPort, error) {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return ap, fmt.Errorf("%w: %q is not IP:port", ErrAddress, address)
	}
	if ap = plainAddress(ap); ap.Addr().IsUnspecified() {
		return ap, fmt.Errorf("%w: %q is no peer's; dial one that it listens at", ErrAddress, address)
	}
	return ap, nil
}

// passage waits until the rules let something through to address, and returns how long it takes one way.
func (w *Wire) passage(ctx context.Context, address netip.AddrPort) (time.Duration, error) {
	for {
		w.mu.Lock()
		r, changed := w.rules.on(address), w.ruled
		w.mu.Unlock()
		if !r.blocked {
			return r.latency, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// travel waits for d.
func travel(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// connect is a connect call in the kernel.
type connect struct {
	address netip.AddrPort
	recall  context.CancelFunc // ends it because its address is blocked now
	done    chan struct{}      // closed when it is over, and its connection among the wire's
}

// connect connects to address in the kernel once the rules let it, and again when they ended the call.
func (w *Wire) connect(ctx context.Context, network, address string, ap netip.AddrPort) (net.Conn, error) {
	for {
		if _, err := w.passage(ctx, ap); err != nil {
			return nil, late(network, err)
		}
		c, recalled, err := w.connectNow(ctx, network, address, ap)
		if !recalled {
			return c, err
		}
	}
}

// connectNow makes one call, and reports whether rules were in the way of it.
func (w *Wire) connectNow(ctx context.Context, network, address string, ap netip.AddrPort) (_ net.Conn, recalled bool, err error) {
	call, cancel := context.WithCancel(ctx)
	defer cancel()
	k := &connect{address: ap, recall: cancel, done: make(chan struct{})}
	w.mu.Lock()
	if w.rules.on(ap).blocked {
		w.mu.Unlock()
		return nil, true, nil
	}
	w.connects[k] = struct{}{}
	w.mu.Unlock()

	var d net.Dialer
	c, err := d.DialContext(call, network, address)
	var tracked *dialled
	w.mu.Lock()
	delete(w.connects, k)
	switch cut := w.cut.Load(); {
	case err == nil && cut:
		c.Close()
		err = ErrCut
	case err == nil:
		tc := w.whole(c)
		tracked = newDialled(tc, ap)
		w.conns[tc] = tracked
	case call.Err() != nil && ctx.Err() == nil:
		recalled = true
	}
	w.mu.Unlock()
	close(k.done)
	if tracked != nil {
		err = w.putUnderRules(tracked)
	}
	if err != nil {
		return nil, recalled, err
	}
	return tracked, false, nil
}

// putUnderRules puts the rules into effect for a connection whose owner has not seen it yet.
func (w *Wire) putUnderRules(d *dialled) error {
	w.ruling.Lock()
	defer w.ruling.Unlock()
	w.mu.Lock()
	r, cut := w.rules.on(d.address), w.cut.Load()
	w.mu.Unlock()
	if cut {
		return ErrCut // which has closed it, or will
	}
	d.apply(r)
	return nil
}
