package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/lockservice"
	"latchkey/replicagroup/placement"
	"latchkey/testnet"
)

const (
	// keptLocks are locks that somebody holds while all peers are stopped.
	keptLocks = 5
	// leisureSlow is what each client waits between two turns while groups change their members: there is always somebody at work,
	// and work is left for later.
	leisureSlow = 800 * time.Millisecond
	// followMax is how long a group may take to take in a peer that joined, or to replace one that left.
	followMax = 20 * time.Second
	// leaveMax is how long a group may stand still because a member leaves.
	leaveMax = 2 * time.Second
)

// moves is what happened to the membership, for the report and its checks. Times are zero where something did not happen.
type moves struct {
	newcomer, leaver int
	joined           placing // when the newcomer was taken in
	joinTook         time.Duration
	left             placing // when the leaver was gone
	leaveTook        time.Duration
	leaveGap         time.Duration // the longest time without a grant while it left
	led              bool          // the leaver led the lock's group
	stopped          int           // peers that were stopped at once
	restartTook      time.Duration // until the lock was granted again
	kept             []keptLock
}

// keptLock is a lock that was held when all peers were stopped, and what became of it.
type keptLock struct {
	name        string
	was, is     lockservice.Token
	held, asked bool
}

// chooseLock chooses the lock's name so that a peer yet to join will be one of the closest to where the lock is kept: groups follow
// the closest peers, so that this one has to take over a replica.
func (d *demo) chooseLock(newcomer int) error {
	g := d.net.Genesis()
	for k := 1; ; k++ {
		prefix := g.PrefixOf(keyspace.Preimage(d.lock).Key())
		anchor, err := placement.Anchor(g.ID(), prefix)
		if err != nil {
			return err
		}
		var nodes []keyspace.NodeID
		for i := range newcomer + 1 {
			nodes = append(nodes, dht.NodeIDOf(d.net.ID(i)))
		}
		keyspace.SortByDistance(anchor.Key(), nodes)
		if slices.Contains(nodes[:2*d.net.F()+1], dht.NodeIDOf(d.net.ID(newcomer))) {
			return nil
		}
		d.lock = fmt.Sprintf("%s-%d", LockName, k)
	}
}

// found has the lock's group made, and returns where it is.
func (d *demo) found(ctx context.Context) (placing, error) {
	p, err := d.net.Peer(0)
	if err != nil {
		return placing{}, err
	}
	h, err := p.Node().Locks().NetworkLock(ctx, d.lock, lockservice.WithTTL(d.opts.TTL))
	if err != nil {
		return placing{}, err
	}
	if err := h.Release(ctx); err != nil {
		return placing{}, err
	}
	return d.place(ctx)
}

// follow plays what groups do about members that come and go, and about all peers that stop.
func (d *demo) follow(ctx context.Context, newcomer int) error {
	d.pace(leisureSlow)
	for _, i := range d.down(-1) {
		if err := d.restart(ctx, i); err != nil {
			return err
		}
	}
	if err := d.join(ctx, newcomer); err != nil {
		return err
	}
	if err := d.leave(ctx); err != nil {
		return err
	}
	if err := d.stopAll(ctx); err != nil {
		return err
	}
	d.pace(0)
	return nil
}

// pace sets what every client waits between two turns.
func (d *demo) pace(leisure time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.leisure = leisure
	d.notifyLocked()
}

// between is called by a client between two turns. It returns when the client is to go on, or errMoved.
func (d *demo) between(ctx context.Context, c *client) error {
	began := time.Now()
	for {
		d.mu.Lock()
		leaves, left, changed := c.peer.Index() == d.leaving, d.leisure-time.Since(began), d.changed
		d.mu.Unlock()
		switch {
		case leaves:
			return errMoved
		case left <= 0:
			return nil
		}
		t := time.NewTimer(left)
		select {
		case <-t.C:
		case <-changed:
		case <-c.peer.Killed():
			t.Stop()
			return errKilled
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
		t.Stop()
	}
}

// join has a peer join, and waits until the lock's group has taken it in.
func (d *demo) join(ctx context.Context, newcomer int) error {
	before, err := d.place(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	i, err := d.net.Join(ctx)
	if err != nil {
		return err
	}
	d.moves.newcomer = i
	d.tell("peer %d JOINED; it is one of the %d closest to where the lock is kept by peers %s", i, 2*d.net.F()+1, list(before.voters))
	at, ok, err := d.placed(ctx, func(at placing) bool { return slices.Contains(at.voters, i) && len(at.voters) == 2*d.net.F()+1 })
	if err != nil {
		return err
	}
	if !ok {
		d.tell("peer %d was not taken in within %v: peers %s keep the lock", i, followMax, list(at.voters))
		return nil
	}
	d.moves.joined, d.moves.joinTook = at, time.Since(began)
	d.tell("%v after it joined, peer %d keeps a replica: the lock's group is peers %s, led by peer %d", round(d.moves.joinTook), i, list(at.voters), at.leader)
	return nil
}

// placed waits until the lock's group is as it should be, for followMax at the most, and returns how it is.
func (d *demo) placed(ctx context.Context, should func(placing) bool) (at placing, ok bool, err error) {
	for began := time.Now(); time.Since(began) < followMax; {
		if at, err = d.place(ctx); err != nil || should(at) {
			return at, err == nil, err
		}
		select {
		case <-time.After(statusPoll):
		case <-ctx.Done():
			return at, false, context.Cause(ctx)
		}
	}
	return at, false, nil
}

// leave has a member of the lock's group leave, its leader unless that is the newcomer, and waits until the group has replaced it.
func (d *demo) leave(ctx context.Context) error {
	at, err := d.place(ctx)
	if err != nil {
		return err
	}
	i := at.leader
	if i == d.moves.newcomer {
		i = at.voters[(slices.Index(at.voters, i)+1)%len(at.voters)]
	}
	d.moves.leaver, d.moves.led = i, i == at.leader
	moved, err := d.vacate(ctx, i)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := d.net.Leave(ctx, i); err != nil {
		return err
	}
	took := time.Since(began)
	d.mu.Lock()
	d.leaving = -1
	d.mu.Unlock()
	at, ok, err := d.placed(ctx, func(at placing) bool { return !slices.Contains(at.voters, i) && len(at.voters) == 2*d.net.F()+1 })
	if err != nil {
		return err
	}
	if !ok {
		d.tell("peer %d LEFT and was not replaced within %v: peers %s keep the lock", i, followMax, list(at.voters))
		return d.goOn(ctx, moved, d.leastLoaded()...)
	}
	d.mu.Lock()
	gap := longestPause(d.grants, began)
	d.mu.Unlock()
	d.moves.left, d.moves.leaveTook, d.moves.leaveGap = at, max(took, time.Nanosecond), gap
	d.tell("peer %d LEFT within %v, after its group had replaced it: peers %s keep the lock, led by peer %d; the longest time without a grant was %v",
		i, round(took), list(at.voters), at.leader, round(gap))
	return d.goOn(ctx, moved, d.leastLoaded()...)
}

// vacate waits until no client is at work at a peer, and returns those that were.
func (d *demo) vacate(ctx context.Context, i int) (moved []int, err error) {
	d.mu.Lock()
	d.leaving, d.moved = i, nil
	d.notifyLocked()
	d.mu.Unlock()
	err = d.await(ctx, func() bool {
		for c := range d.running {
			if c.peer.Index() == i {
				return false
			}
		}
		return true
	})
	d.mu.Lock()
	defer d.mu.Unlock()
	slices.Sort(d.moved)
	return d.moved, err
}

// stopAll kills every peer, so that all that is known is on disks, starts them again, and looks what became of the locks.
func (d *demo) stopAll(ctx context.Context) error {
	keeper := d.alive(-1)[0]
	p, err := d.net.Peer(keeper)
	if err != nil {
		return err
	}
	locks := p.Node().NewLocks()
	for k := range keptLocks {
		name := fmt.Sprintf("demo-kept-%d", k)
		h, err := locks.NetworkLock(ctx, name, lockservice.WithTTL(testnet.TTLMax))
		if err != nil {
			return err
		}
		d.moves.kept = append(d.moves.kept, keptLock{name: name, was: h.Token()})
	}
	up := d.alive(-1)
	var stopped []int
	began := time.Now()
	for _, i := range up {
		clients, err := d.kill(i)
		if err != nil {
			return err
		}
		stopped = append(stopped, clients...)
	}
	d.tell("STOPPED all peers, %s, without a goodbye, while %d locks are held at peer %d; %s", list(up), keptLocks, keeper, stoppedText(stopped))
	back := d.down(d.moves.leaver)
	errs := make([]error, len(back))
	var starts sync.WaitGroup
	for k, i := range back {
		starts.Go(func() { errs[k] = d.net.Restart(ctx, i) })
	}
	starts.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	d.moves.stopped = len(up)
	d.tell("RESTARTED peers %s from their disks", list(back))
	for k := range d.moves.kept {
		if err := d.look(ctx, back[k%len(back)], &d.moves.kept[k]); err != nil {
			return err
		}
	}
	if err := d.goOn(ctx, stopped, back...); err != nil {
		return err
	}
	d.mu.Lock()
	before := len(d.grants)
	d.mu.Unlock()
	if err := d.await(ctx, func() bool { return len(d.grants) > before || len(d.running) == 0 }); err != nil {
		return err
	}
	d.moves.restartTook = time.Since(began)
	d.tell("%v after the stop the lock goes round again; the %d locks that were held are held still, with their tokens", round(d.moves.restartTook), d.intact())
	return nil
}

// look asks peer i what became of a lock, until it gets an answer.
func (d *demo) look(ctx context.Context, i int, k *keptLock) error {
	p, err := d.net.Peer(i)
	if err != nil {
		return err
	}
	for {
		info, err := p.Node().Locks().Info(ctx, k.name)
		if err == nil {
			k.asked, k.held, k.is = true, info.Held, info.Token
			return nil
		}
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return fmt.Errorf("demo: peer %d cannot tell who holds %s (last answer: %v): %w", i, k.name, err, context.Cause(ctx))
		}
	}
}

// intact returns how many of the kept locks are as they were.
func (d *demo) intact() (n int) {
	for _, k := range d.moves.kept {
		if k.held && k.is == k.was {
			n++
		}
	}
	return n
}

// down returns the peers that are down, without one that left.
func (d *demo) down(left int) []int {
	up := d.alive(-1)
	var all []int
	for i := range d.net.N() {
		if i != left && !slices.Contains(up, i) {
			all = append(all, i)
		}
	}
	return all
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// checkJoin: a peer joined and is a voter of the lock's group, beside others that make the group whole.
func checkJoin(m moves, f int) error {
	switch {
	case m.joinTook == 0:
		return errors.New("no peer that joined was taken into the lock's group")
	case !slices.Contains(m.joined.voters, m.newcomer):
		return fmt.Errorf("peer %d joined and is none of the voters %v", m.newcomer, m.joined.voters)
	case len(m.joined.voters) != 2*f+1:
		return fmt.Errorf("the group has %d voters %v, want %d", len(m.joined.voters), m.joined.voters, 2*f+1)
	}
	return nil
}

// checkLeave: a voter of the lock's group left, another has its place, and nobody waited long for that.
func checkLeave(m moves, f int) error {
	switch {
	case m.leaveTook == 0:
		return errors.New("no peer that left was replaced in the lock's group")
	case !slices.Contains(m.joined.voters, m.leaver):
		return fmt.Errorf("peer %d left, which was none of the voters %v", m.leaver, m.joined.voters)
	case slices.Contains(m.left.voters, m.leaver):
		return fmt.Errorf("peer %d left and is one of the voters %v", m.leaver, m.left.voters)
	case len(m.left.voters) != 2*f+1:
		return fmt.Errorf("the group has %d voters %v, want %d", len(m.left.voters), m.left.voters, 2*f+1)
	case m.leaveGap > leaveMax:
		return fmt.Errorf("nobody was granted the lock for %v; %v is the most", m.leaveGap, leaveMax)
	}
	return nil
}

// checkRestart: all peers were stopped at once, came back from their disks, and every lock is held as it was, with the same token.
func checkRestart(m moves, peers int) error {
	switch {
	case m.stopped < peers:
		return fmt.Errorf("%d peers were stopped at once, of %d", m.stopped, peers)
	case m.restartTook == 0:
		return errors.New("the lock was not granted again")
	case len(m.kept) == 0:
		return errors.New("no lock was held")
	}
	for _, k := range m.kept {
		if !k.asked || !k.held || k.is != k.was {
			return fmt.Errorf("%s was held with token %d; afterwards held is %v, with token %d", k.name, k.was, k.held, k.is)
		}
	}
	return nil
}
