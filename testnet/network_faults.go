package testnet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"latchkey/testnet/wire"
)

// Partition divides the peers. It is silence: between sides nothing gets through, connections stay open until somebody's timer
// ends them, and dials hang. Peers that restart or join while it stands are under it before they send a byte. One thing gets
// through, the reset by which a killed peer is noticed.
func (n *Network) Partition(ctx context.Context, sides ...[]int) error {
	return n.change(ctx, func(f faults, peers int) (faults, error) { return f.partition(peers, sides) })
}

// Heal ends the partition, and does not wait for anything: [Network.WaitReady] does.
func (n *Network) Heal(ctx context.Context) error {
	return n.change(ctx, func(f faults, _ int) (faults, error) { return f.heal(), nil })
}

// Latency delays everything between two peers by d each way, 0 to [LatencyMax].
func (n *Network) Latency(ctx context.Context, d time.Duration) error {
	return n.change(ctx, func(f faults, _ int) (faults, error) { return f.delay(d) })
}

// change puts other faults into effect.
func (n *Network) change(ctx context.Context, to func(f faults, peers int) (faults, error)) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	n.changing.Lock()
	defer n.changing.Unlock()
	n.mu.Lock()
	f, err := to(n.faults, len(n.slots))
	if n.closed {
		err = ErrClosed
	}
	if err == nil {
		n.faults = f
	}
	n.mu.Unlock()
	if err != nil {
		return err
	}
	return n.enforce()
}

// enforce gives every wire the rules that stand. Called with changing held.
func (n *Network) enforce() error {
	n.mu.Lock()
	slots, standing := n.slots, n.faults
	n.mu.Unlock()
	names := addrs(slots)
	for _, s := range slots {
		s.mu.Lock()
		w := s.wire
		s.mu.Unlock()
		if w == nil {
			continue
		}
		if err := w.SetRules(standing.rules(s.index, names)); err != nil && !errors.Is(err, wire.ErrCut) {
			return fmt.Errorf("testnet: peer %d: %w", s.index, err)
		}
	}
	return nil
}

// Join adds a peer, waits as [Network.WaitReady] does, and returns its number. The new peer is told of the founders and, as by
// an invitation, of one peer that is up on its side. When it could not be started, or ctx ended first, it stays as a peer that
// is down, or not ready. Errors: [ErrFull], [ErrClosed].
func (n *Network) Join(ctx context.Context) (int, error) {
	s, err := n.add(ctx)
	if err != nil {
		return 0, err
	}
	var knows []*slot
	live, standing := n.live()
	for _, p := range live {
		if len(knows) == 0 && standing.sideOf(p.index) == standing.sideOf(s.index) {
			knows = append(knows, n.all()[p.index])
		}
	}
	if err := n.bear(ctx, s, knows...); err != nil {
		return s.index, err
	}
	return s.index, n.WaitReady(ctx)
}

// add makes the place of a further peer.
func (n *Network) add(ctx context.Context) (*slot, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	n.changing.Lock()
	defer n.changing.Unlock()
	n.mu.Lock()
	i, closed := len(n.slots), n.closed
	n.mu.Unlock()
	switch {
	case closed:
		return nil, ErrClosed
	case i >= PeersMax:
		return nil, fmt.Errorf("%w: it has %d", ErrFull, i)
	}
	s, err := n.newSlot(i)
	if err != nil {
		return nil, err
	}
	if err := n.furnish(s); err != nil {
		return nil, err
	}
	n.mu.Lock()
	n.slots = append(n.slots, s)
	n.mu.Unlock()
	return s, n.enforce()
}

// Leave ends peer i in an orderly way: its groups replace it, it gives its locks back and closes its connections, which takes a
// few seconds, and longer when nobody answers. When ctx ends it goes unreplaced. The peer's place, identity and store stay, and [Network.Restart] takes them up
// again. Errors: [ErrNoPeer], [ErrDown].
func (n *Network) Leave(ctx context.Context, i int) error {
	s, err := n.slot(i)
	if err != nil {
		return err
	}
	s.turn.Lock()
	defer s.turn.Unlock()
	if s.present() == nil {
		return fmt.Errorf("%w: %d; restart it first", ErrDown, i)
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	s.leave(ctx)
	return nil
}

// Pause fails with [ErrMode].
func (n *Network) Pause(i int) error { return n.refuse(i, "pause") }

// Resume fails with [ErrMode].
func (n *Network) Resume(i int) error { return n.refuse(i, "resume") }

// Logs fails with [ErrMode].
func (n *Network) Logs(i int) (string, error) { return "", n.refuse(i, "logs") }

func (n *Network) refuse(i int, what string) error {
	if _, err := n.slot(i); err != nil {
		return err
	}
	return fmt.Errorf("%w: %s: its peers share a process; start it with --mode process", ErrMode, what)
}
