package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/node/api"
)

// rootPrefix is the root group's.
const rootPrefix = "/0"

// The play, in parts of all increments: when the leader is killed, when the holder, and when the first victim comes back. What follows
// does not wait for increments.
const (
	killLeaderAt = 0.25
	killHolderAt = 0.45
	restartAt    = 0.60
)

// statusPoll is the pause between two questions to the overlay about who leads.
const statusPoll = 20 * time.Millisecond

// placing is what the overlay says about the lock, in numbers of peers.
type placing struct {
	leader int
	voters []int
	root   []int // voters of the root group
}

// direct plays the run: it starts the clients, kills and restarts peers by their roles, has one join and one leave, stops all and starts
// them again from their disks, and returns when all clients are done.
func (d *demo) direct(ctx context.Context) error {
	newcomer := d.net.N()
	if err := d.chooseLock(newcomer); err != nil {
		return err
	}
	at, err := d.found(ctx)
	if err != nil {
		return err
	}
	d.tell("the lock %q lives in the group of peers %s, led by peer %d; peers %s keep the root", d.lock, list(at.voters), at.leader, list(at.root))
	d.sharing = d.share(ctx, at)
	defer d.sharing.end()
	d.keeping = d.keep(ctx)
	defer d.keeping.end()
	if err := d.sharing.settled(ctx); err != nil {
		return err
	}
	if err := d.keeping.goesOn(ctx); err != nil { // a new leader waits for a lease before its first write returns
		return err
	}
	for id := range d.opts.Clients {
		if err := d.begin(ctx, id, id%d.net.N()); err != nil {
			return err
		}
	}
	d.tell("%d clients at %d peers begin: %d increments each", d.opts.Clients, min(d.opts.Clients, d.net.N()), d.opts.Each)
	if err := d.strikeTwice(ctx); err != nil {
		return err
	}
	if err := d.follow(ctx, newcomer); err != nil {
		return err
	}
	if err := d.await(ctx, func() bool { return len(d.finished) == d.opts.Clients }); err != nil {
		return err
	}
	d.tell("all clients are done")
	return nil
}

// strikeTwice kills a leader and a holder, and restarts one of them.
func (d *demo) strikeTwice(ctx context.Context) error {
	if err := d.untilPart(ctx, killLeaderAt); err != nil {
		return err
	}
	first, stopped, err := d.killLeader(ctx)
	if err != nil {
		return err
	}
	killed := time.Now()
	if err := d.recover(ctx, stopped); err != nil {
		return err
	}
	if err := d.sharing.leaderKilled(ctx, killed); err != nil {
		return err
	}
	if err := d.keeping.leaderKilled(ctx, killed); err != nil {
		return err
	}

	if err := d.untilPart(ctx, killHolderAt); err != nil {
		return err
	}
	at, err := d.place(ctx)
	if err != nil {
		return err
	}
	restarted := false
	if d.eligiblePeers(at) == nil {
		// Whoever holds the lock, its death would leave a group without a majority.
		if err := d.restart(ctx, first); err != nil {
			return err
		}
		restarted = true
		if at, err = d.place(ctx); err != nil {
			return err
		}
	}
	second, stopped, err := d.killHolder(ctx, at)
	if err != nil {
		return err
	}
	killed = time.Now()
	if err := d.recovered(ctx); err != nil {
		return err
	}
	if err := d.sharing.ownerKilled(ctx, second, killed); err != nil {
		return err
	}
	if err := d.keeping.userKilled(ctx, second); err != nil {
		return err
	}
	if err := d.untilPart(ctx, restartAt); err != nil {
		return err
	}
	back := first
	if restarted {
		back = second
	}
	if err := d.restart(ctx, back); err != nil {
		return err
	}
	return d.goOn(ctx, stopped, back)
}

func lockKey(name string) keyspace.Key { return keyspace.Preimage(name).Key() }

// place asks the overlay where the lock lives and who leads there, until somebody does.
func (d *demo) place(ctx context.Context) (placing, error) {
	tick := time.NewTicker(statusPoll)
	defer tick.Stop()
	for {
		at, err := d.ask(ctx)
		if err == nil {
			return at, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return placing{}, fmt.Errorf("demo: nobody can tell who leads the lock's group (last answer: %v): %w", err, context.Cause(ctx))
		}
	}
}

// ask asks all peers who the members of the lock's group and of the root are. Those that have the newest view tell.
func (d *demo) ask(ctx context.Context) (at placing, err error) {
	var lock, root api.HostedGroup
	leader := ""
	prefix := d.net.Genesis().PrefixOf(keyspace.Preimage(d.lock).Key()).String()
	for _, i := range d.alive(-1) {
		p, err := d.net.Peer(i)
		if err != nil {
			return at, err
		}
		groups, err := p.Node().HostedGroups(ctx)
		if err != nil {
			return at, err
		}
		for _, g := range groups {
			switch {
			case g.Prefix == prefix && g.View >= lock.View:
				if g.View > lock.View {
					leader = ""
				}
				lock, leader = g, cmp.Or(leader, g.Leader)
			case g.Prefix == rootPrefix && g.View >= root.View:
				root = g
			}
		}
	}
	at.leader = d.net.IndexOf(leader)
	for _, id := range lock.Voters {
		at.voters = append(at.voters, d.net.IndexOf(id))
	}
	for _, id := range root.Voters {
		at.root = append(at.root, d.net.IndexOf(id))
	}
	slices.Sort(at.voters)
	slices.Sort(at.root)
	if !slices.Contains(d.alive(-1), at.leader) || len(at.root) == 0 {
		return at, errors.New("demo: no leader")
	}
	return at, nil
}

// untilPart waits until this part of all increments has been written, or no client is running any more.
func (d *demo) untilPart(ctx context.Context, part float64) error {
	want := int(part * float64(d.opts.Clients*d.opts.Each))
	return d.await(ctx, func() bool { return d.writes >= want || len(d.running) == 0 })
}

// killLeader kills the leader of the lock's group.
func (d *demo) killLeader(ctx context.Context) (victim int, stopped []int, err error) {
	at, err := d.place(ctx)
	if err != nil {
		return 0, nil, err
	}
	stopped, err = d.strike(fault{kind: killLeader, peer: at.leader, leader: at.leader, holder: -1, voters: at.voters, root: at.root})
	if err != nil {
		return 0, nil, err
	}
	d.tell("KILLED peer %d, the leader of the lock's group; %s", at.leader, stoppedText(stopped))
	return at.leader, stopped, nil
}

// killHolder kills a peer at the moment when one of its clients holds the lock.
func (d *demo) killHolder(ctx context.Context, at placing) (victim int, stopped []int, err error) {
	d.mu.Lock()
	d.eligible = d.eligiblePeers(at)
	d.mu.Unlock()
	if err := d.await(ctx, func() bool { return d.caught != nil || len(d.running) == 0 }); err != nil {
		return 0, nil, err
	}
	d.mu.Lock()
	h := d.caught
	d.mu.Unlock()
	if h == nil {
		return 0, nil, errors.New("demo: every client was done before one of them could be killed while it held the lock")
	}
	victim = h.client.peer.Index()
	holder, err := d.holder(ctx, victim, h)
	if err != nil {
		return 0, nil, err
	}
	stopped, err = d.strike(fault{kind: killHolder, peer: victim, leader: -1, holder: holder, voters: at.voters, root: at.root})
	if err != nil {
		return 0, nil, err
	}
	d.tell("KILLED peer %d while its client %d held the lock (token %d) and had not written yet; %s", victim, h.client.id, h.token, stoppedText(stopped))
	return victim, stopped, nil
}

// holder returns who holds the lock as the overlay sees it, asked from a peer other than victim. Without a lock to ask about
// it is who claims to.
func (d *demo) holder(ctx context.Context, victim int, h *heldBy) (int, error) {
	if d.opts.Sabotage == SabotageNoLock {
		return victim, nil
	}
	witness, err := d.net.Peer(d.alive(victim)[0])
	if err != nil {
		return 0, err
	}
	info, err := witness.Node().Locks().Info(ctx, d.lock)
	if err != nil {
		return 0, fmt.Errorf("demo: ask who holds the lock: %w", err)
	}
	if !info.Held || uint64(info.Token) != h.token {
		return -1, nil // the check of the faults will say so
	}
	return d.net.IndexOf(info.Holder.Peer), nil
}

// strike kills f.peer and keeps record of it.
func (d *demo) strike(f fault) (stopped []int, err error) {
	d.faults = append(d.faults, f)
	d.kills = append(d.kills, time.Now())
	return d.kill(f.peer)
}

// recover waits until the lock is granted again and then lets stopped clients go on at other peers.
func (d *demo) recover(ctx context.Context, stopped []int) error {
	if err := d.recovered(ctx); err != nil {
		return err
	}
	return d.goOn(ctx, stopped, d.leastLoaded()...)
}

// recovered waits until as many increments have been written since the last kill as there are clients, so that everybody who
// queued before it has had its turn, and notes the longest time without a grant.
func (d *demo) recovered(ctx context.Context) error {
	d.mu.Lock()
	want := d.writes + d.opts.Clients
	d.mu.Unlock()
	if err := d.await(ctx, func() bool { return d.writes >= want || len(d.running) == 0 }); err != nil {
		return err
	}
	killed := d.kills[len(d.kills)-1]
	d.mu.Lock()
	gap := longestPause(d.grants, killed)
	d.mu.Unlock()
	d.gaps = append(d.gaps, gap)
	d.tell("%v after the kill the lock goes round as before; the longest time in which nobody got it was %v",
		time.Since(killed).Round(time.Millisecond), gap.Round(time.Millisecond))
	return nil
}

// longestPause returns the longest time without a grant from since on, up to the last grant.
func longestPause(grants []time.Time, since time.Time) time.Duration {
	longest := time.Duration(0)
	for _, g := range grants {
		if g.After(since) {
			longest = max(longest, g.Sub(since))
			since = g
		}
	}
	return longest
}

// goOn starts stopped clients anew at these peers, in turn. A voter of a group counts like any other peer.
func (d *demo) goOn(ctx context.Context, stopped []int, peers ...int) error {
	for k, id := range stopped {
		i := peers[k%len(peers)]
		d.tell("client %d goes on at peer %d, from what the file says of it", id, i)
		if err := d.begin(ctx, id, i); err != nil {
			return err
		}
	}
	return nil
}

// restart starts peer i again.
func (d *demo) restart(ctx context.Context, i int) error {
	d.faults = append(d.faults, fault{kind: restart, peer: i})
	if err := d.net.Restart(ctx, i); err != nil {
		return err
	}
	d.tell("RESTARTED peer %d with the store kept for it; all others see it", i)
	return nil
}

// alive returns the peers that are up, without except.
func (d *demo) alive(except int) []int {
	var up []int
	for i := range d.net.N() {
		if _, err := d.net.Peer(i); err == nil && i != except {
			up = append(up, i)
		}
	}
	return up
}

// leastLoaded returns the peers that are up, those with the fewest clients first.
func (d *demo) leastLoaded() []int {
	d.mu.Lock()
	defer d.mu.Unlock()
	load := make([]int, d.net.N())
	for c := range d.running {
		load[c.peer.Index()]++
	}
	up := d.alive(-1)
	slices.SortStableFunc(up, func(a, b int) int { return load[a] - load[b] })
	return up
}

// eligiblePeers returns the peers that are up and whose death would leave no more than f voters of the lock's group or of the
// root down; nil when there is none.
func (d *demo) eligiblePeers(at placing) []int {
	up := d.alive(-1)
	var fit []int
	for _, i := range up {
		harmless := true
		for _, group := range [][]int{at.voters, at.root} {
			down := len(group) - common(group, up)
			if slices.Contains(group, i) {
				down++
			}
			harmless = harmless && down <= d.net.F()
		}
		if harmless {
			fit = append(fit, i)
		}
	}
	return fit
}

func stoppedText(clients []int) string {
	switch len(clients) {
	case 0:
		return "no client was there"
	case 1:
		return fmt.Sprintf("its client %d stopped where it was", clients[0])
	}
	return fmt.Sprintf("its clients %s stopped where they were", list(clients))
}

// list prints numbers for people: "1, 2 and 3".
func list(ns []int) string {
	var parts []string
	for _, n := range ns {
		parts = append(parts, fmt.Sprint(n))
	}
	if len(parts) < 2 {
		return strings.Join(parts, "")
	}
	return strings.Join(parts[:len(parts)-1], ", ") + " and " + parts[len(parts)-1]
}
