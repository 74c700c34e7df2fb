package testnet

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"latchkey/testnet/wire"
)

// Times of a testnet of processes.
const (
	startMax = 20 * time.Second // until a started process serves
	tellMax  = 5 * time.Second  // until a peer has taken its rules
)

// start starts the process of a peer that is down, and returns when it serves.
func (p *Processes) start(ctx context.Context, s *place) error {
	p.starting.RLock()
	defer p.starting.RUnlock()
	p.mu.Lock()
	c, err := p.startLocked(s)
	p.mu.Unlock()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startMax, fmt.Errorf("it does not serve after %v; see its log", startMax))
	defer cancel()
	select {
	case <-c.ready:
		p.mu.Lock()
		defer p.mu.Unlock()
		if s.child == c { // it may have ended since
			s.ready = true
		}
		return nil
	case <-c.ended:
		err = errors.New(c.how())
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-p.life.Done():
		return ErrClosed
	}
	p.stop(c)
	return describe(s, err)
}

func (p *Processes) startLocked(s *place) (*child, error) {
	switch {
	case p.closed:
		return nil, ErrClosed
	case s.child != nil:
		return nil, fmt.Errorf("%w: %d; kill it first", ErrUp, s.index)
	}
	c, err := p.spawn(s, p.standing.rules(s.index, p.addrsLocked()))
	if err != nil {
		return nil, describe(s, err)
	}
	s.child, s.left, s.fault = c, false, ""
	return c, nil
}

// addrsLocked returns what rules call the peers. Called with p.mu held.
func (p *Processes) addrsLocked() []string {
	var addrs []string
	for _, s := range p.places {
		addrs = append(addrs, s.hostPort())
	}
	return addrs
}

// stop ends one life of a peer and waits for its end.
func (p *Processes) stop(c *child) {
	p.mu.Lock()
	c.expected = true
	p.mu.Unlock()
	_ = c.kill() // it may have ended by itself
	<-c.ended
}

// lived returns the life of peer i. Errors: [ErrNoPeer], [ErrDown]. Called with p.mu held.
func (p *Processes) livedLocked(i int) (*place, *child, error) {
	s, err := p.placeLocked(i)
	if err != nil {
		return nil, nil, err
	}
	if s.child == nil {
		return nil, nil, fmt.Errorf("%w: %d", ErrDown, i)
	}
	return s, s.child, nil
}

func stillStarting(i int) error { return fmt.Errorf("%w: %d is still starting", ErrDown, i) }

// Kill ends peer i by SIGKILL and waits until its process is gone. witness, when given, runs just before the signal. Errors:
// [ErrNoPeer], [ErrDown].
func (p *Processes) Kill(i int, witness ...func()) error {
	p.mu.Lock()
	_, c, err := p.livedLocked(i)
	if err == nil {
		c.expected = true
		for _, w := range witness {
			w()
		}
		_ = c.kill() // it may just have ended
	}
	p.mu.Unlock()
	if err != nil {
		return err
	}
	<-c.ended
	return nil
}

// Pause freezes peer i by SIGSTOP. Errors: [ErrNoPeer], [ErrDown], [ErrPaused] when it is already.
func (p *Processes) Pause(i int) error {
	p.starting.RLock() // whoever tells rules does so to peers that can hear
	defer p.starting.RUnlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	s, c, err := p.livedLocked(i)
	switch {
	case err != nil:
		return err
	case s.paused:
		return fmt.Errorf("%w: %d, already", ErrPaused, i)
	case !s.ready:
		return stillStarting(i)
	}
	if err := freeze(c.process); err != nil {
		return describe(s, err)
	}
	s.paused = true
	return nil
}

// Resume lets peer i go on, and tells it the rules that it missed. Errors: [ErrNoPeer], [ErrDown], [ErrNotPaused].
func (p *Processes) Resume(i int) error {
	p.starting.RLock()
	defer p.starting.RUnlock()
	p.mu.Lock()
	s, c, err := p.livedLocked(i)
	switch {
	case err != nil:
	case !s.paused:
		err = fmt.Errorf("%w: %d", ErrNotPaused, i)
	default:
		if err = describe(s, thaw(c.process)); err == nil {
			s.paused = false
		}
	}
	var rules wire.Rules
	if err == nil {
		rules = p.standing.rules(i, p.addrsLocked())
	}
	p.mu.Unlock()
	if err != nil {
		return err
	}
	return p.tell(p.life, s, c, rules)
}

// Restart starts the process of a peer that is down, and waits until it and the others that it can reach are connected. It has
// its identity and port of before, and an empty store. Errors: [ErrNoPeer], [ErrUp], [ErrClosed].
func (p *Processes) Restart(ctx context.Context, i int) error {
	p.mu.Lock()
	s, err := p.placeLocked(i)
	p.mu.Unlock()
	if err != nil {
		return err
	}
	if err := p.start(ctx, s); err != nil {
		return err
	}
	return p.awaitMesh(ctx, func(int) {})
}

// Join adds a peer, waits as Restart does, and returns its number. A peer that does not come up keeps its number. Errors:
// [ErrFull], [ErrClosed].
func (p *Processes) Join(ctx context.Context) (int, error) {
	p.joining.Lock()
	defer p.joining.Unlock()
	p.mu.Lock()
	closed, n := p.closed, len(p.places)
	p.mu.Unlock()
	switch {
	case closed:
		return 0, ErrClosed
	case n >= PeersMax:
		return 0, fmt.Errorf("%w: it has %d", ErrFull, n)
	}
	s, err := p.newPlace()
	if err != nil {
		return 0, err
	}
	var everybody []string // the founders may be on another side of a partition
	for _, q := range p.Status().Peers {
		everybody = append(everybody, q.Addr)
	}
	if err := p.furnish(s, everybody); err != nil {
		return 0, errors.Join(err, removePeer(s.dir))
	}
	// Rules that name the newcomer must reach the others before it does.
	placed := false
	err = p.change(ctx, func(f faults, _ int) (faults, error) {
		p.places, placed = append(p.places, s), true
		return f, nil
	})
	switch {
	case !placed: // closed meanwhile
		return 0, errors.Join(err, removePeer(s.dir))
	case err != nil:
		return 0, err
	}
	if err := p.start(ctx, s); err != nil {
		return 0, err
	}
	return s.index, p.awaitMesh(ctx, func(int) {})
}

// Leave ends peer i by SIGTERM, and waits for the end of its process or of ctx. Errors: [ErrNoPeer], [ErrDown], [ErrPaused].
func (p *Processes) Leave(ctx context.Context, i int) error {
	p.mu.Lock()
	s, c, err := p.livedLocked(i)
	switch {
	case err != nil:
	case s.paused:
		err = fmt.Errorf("%w: %d; it cannot leave before it is resumed", ErrPaused, i)
	case !s.ready:
		err = stillStarting(i)
	default:
		if err = describe(s, dismiss(c.process)); err == nil {
			c.expected, s.left = true, true
		}
	}
	p.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case <-c.ended:
		return nil
	case <-ctx.Done():
		return describe(s, fmt.Errorf("it has not left yet: %w", context.Cause(ctx)))
	}
}

// Partition implements [Testnet].
func (p *Processes) Partition(ctx context.Context, sides ...[]int) error {
	return p.change(ctx, func(f faults, n int) (faults, error) { return f.partition(n, sides) })
}

// Heal implements [Testnet].
func (p *Processes) Heal(ctx context.Context) error {
	return p.change(ctx, func(f faults, _ int) (faults, error) { return f.heal(), nil })
}

// Latency implements [Testnet].
func (p *Processes) Latency(ctx context.Context, d time.Duration) error {
	return p.change(ctx, func(f faults, _ int) (faults, error) { return f.delay(d) })
}

// change puts other faults in place of the standing ones, and tells them to every peer that can hear. to is given the standing
// ones and the number of peers, and called with p.mu held.
func (p *Processes) change(ctx context.Context, to func(faults, int) (faults, error)) error {
	p.starting.Lock() // nobody is between having read the rules and hearing of others
	defer p.starting.Unlock()
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return ErrClosed
	}
	f, err := to(p.standing, len(p.places))
	if err != nil {
		p.mu.Unlock()
		return err
	}
	p.standing = f
	addrs := p.addrsLocked()
	var wg sync.WaitGroup
	errs := make([]error, len(p.places))
	for i, s := range p.places {
		if s.child != nil && !s.paused {
			c := s.child
			wg.Go(func() { errs[i] = p.tell(ctx, s, c, f.rules(i, addrs)) })
		}
	}
	p.mu.Unlock()
	wg.Wait()
	return errors.Join(errs...)
}

// tell gives one peer its rules. One that has ended needs none.
func (p *Processes) tell(ctx context.Context, s *place, c *child, rules wire.Rules) error {
	ctx, cancel := context.WithTimeoutCause(ctx, tellMax, fmt.Errorf("it has not taken its rules after %v", tellMax))
	defer cancel()
	go func() {
		select {
		case <-c.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	err := wire.Remote{Socket: s.wireSocket()}.SetRules(ctx, rules)
	select {
	case <-c.ended:
		return nil
	default:
		return describe(s, err)
	}
}
