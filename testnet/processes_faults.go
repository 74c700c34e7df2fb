package testnet

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Times of a testnet of processes; tellPoll is that between two attempts to tell a peer its rules.
const (
	startMax = 20 * time.Second // until a started process serves
	tellMax  = 5 * time.Second  // until a peer has taken its rules
	tellPoll = 50 * time.Millisecond

	stillMax  = 5 * time.Second // until a process stands still that was sent SIGSTOP: one may be waiting for a disk
	stillPoll = time.Millisecond
)

// start starts the process of a peer that is down, and returns when it serves by the standing rules.
func (p *Processes) start(ctx context.Context, s *place) error {
	p.resting.RLock()
	p.mu.Lock()
	c, err := p.startLocked(s)
	p.mu.Unlock()
	p.resting.RUnlock()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startMax, fmt.Errorf("it does not serve after %v; see its log", startMax))
	defer cancel()
	select {
	case <-c.ready:
		err = p.awaitReady(ctx, s, c)
	case <-c.ended:
		err = errors.New(c.how())
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-p.life.Done():
		err = ErrClosed
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrClosed):
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
	c, err := p.spawn(s, p.rulesLocked(s))
	if err != nil {
		return nil, describe(s, err)
	}
	s.child, s.left, s.fault = c, false, ""
	c.told = p.version
	p.watchers.Go(func() { p.inform(s, c) })
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
		return nil, nil, fmt.Errorf("%w: %d; restart it first", ErrDown, i)
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

// Pause freezes peer i by SIGSTOP, and returns when nothing of it runs any more (on Linux; elsewhere that takes a moment longer).
// Errors: [ErrNoPeer], [ErrDown], [ErrPaused] when it is already, [ErrClosed].
func (p *Processes) Pause(i int) error {
	c, err := p.pause(i)
	if err != nil {
		return err
	}
	return p.awaitStill(i, c)
}

// awaitStill waits until the process of a peer that was sent SIGSTOP stands still, or has ended.
func (p *Processes) awaitStill(i int, c *child) error {
	tick := time.NewTicker(stillPoll)
	defer tick.Stop()
	late := time.After(stillMax)
	for {
		select {
		case <-c.ended:
			return nil
		default:
		}
		if ok, err := still(c.process); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-late:
			return fmt.Errorf("testnet: peer %d: its process still runs %v after SIGSTOP", i, stillMax)
		case <-p.life.Done():
			return ErrClosed
		}
	}
}

// pause sends SIGSTOP to a peer and returns its life.
func (p *Processes) pause(i int) (*child, error) {
	for {
		p.mu.Lock()
		s, c, err := p.livedLocked(i)
		switch {
		case err != nil:
		case s.paused:
			err = fmt.Errorf("%w: %d, already", ErrPaused, i)
		case !s.ready:
			err = stillStarting(i)
		case c.telling: // else it would hear former rules when it goes on
			news := p.newsLocked()
			p.mu.Unlock()
			select {
			case <-news:
				continue
			case <-p.life.Done():
				return nil, ErrClosed
			}
		default:
			if err = describe(s, freeze(c.process)); err == nil {
				s.paused = true
				p.announceLocked()
			}
		}
		p.mu.Unlock()
		return c, err
	}
}

// Resume lets peer i go on, and waits until it has the rules that it missed. Errors: [ErrNoPeer], [ErrDown], [ErrNotPaused],
// [ErrClosed].
func (p *Processes) Resume(i int) error {
	p.resting.RLock()
	p.mu.Lock()
	s, c, err := p.livedLocked(i)
	switch {
	case err != nil:
	case !s.paused:
		err = fmt.Errorf("%w: %d", ErrNotPaused, i)
	default:
		if err = describe(s, thaw(c.process)); err == nil {
			s.paused = false
			p.announceLocked()
		}
	}
	version := p.version
	var hearers []hearer
	if err == nil {
		hearers = append(hearers, hearer{s, c, c.failures})
	}
	p.mu.Unlock()
	p.resting.RUnlock()
	if err != nil {
		return err
	}
	return p.awaitTold(p.life, version, hearers)
}

// Restart starts the process of a peer that is down, and waits until it and the others that it can reach are connected. It has
// its identity, port and store of before. Errors: [ErrNoPeer], [ErrUp], [ErrClosed].
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
	return p.awaitMesh(ctx, func(int, int) {})
}

// Join adds a peer, waits as Restart does, and returns its number. A peer that does not come up keeps its number. Errors:
// [ErrFull], [ErrClosed].
func (p *Processes) Join(ctx context.Context) (int, error) {
	s, version, hearers, err := p.place()
	if err != nil {
		return 0, err
	}
	// Rules that name the newcomer must reach the others before it does.
	if err := p.awaitTold(ctx, version, hearers); err != nil {
		return 0, err
	}
	if err := p.start(ctx, s); err != nil {
		return 0, err
	}
	return s.index, p.awaitMesh(ctx, func(int, int) {})
}

// place adds a place for one more peer, with its directory, and returns what to wait for until all know its address.
func (p *Processes) place() (s *place, version uint64, hearers []hearer, err error) {
	p.joining.Lock()
	defer p.joining.Unlock()
	p.mu.Lock()
	closed, n := p.closed, len(p.places)
	p.mu.Unlock()
	switch {
	case closed:
		return nil, 0, nil, ErrClosed
	case n >= PeersMax:
		return nil, 0, nil, fmt.Errorf("%w: it has %d", ErrFull, n)
	}
	if s, err = p.newPlace(); err != nil {
		return nil, 0, nil, err
	}
	var everybody []string // the founders may be on another side of a partition
	for _, q := range p.Status().Peers {
		everybody = append(everybody, q.Addr)
	}
	if err := p.furnish(s, everybody); err != nil {
		return nil, 0, nil, errors.Join(err, removePeer(s.dir))
	}
	version, hearers, err = p.replace(func(f faults, _ int) (faults, error) {
		p.places = append(p.places, s)
		return f, nil
	})
	if err != nil { // closed meanwhile
		return nil, 0, nil, errors.Join(err, removePeer(s.dir))
	}
	return s, version, hearers, nil
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
