package replicagroup

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/driver"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/session"
)

// closely returns whom a host has told the overlay to watch closely.
func (h *Host) closely() []peer.ID {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Sorted(maps.Keys(h.active))
}

// Test 16 of replica-groups.md section 8, in small: groups that nobody asks anything send nothing and look at nobody closely.
// When a peer is gone, all its groups answer. How soon, ordertest/16 says in virtual time, and [TestThousandsOfGroupsHaveTheirTurnSoon] where
// there are many.
func TestGroupsSleepAndOutliveAPeer(t *testing.T) {
	t.Parallel()
	const groups = 24
	w := newWorld(t, 7, 2)
	ctx := deadline(t, waitMax)
	var keys []keyspace.Key
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range groups {
		key := keyspace.Preimage(fmt.Sprint("group ", i)).Key()
		keys = append(keys, key)
		wg.Go(func() {
			c := w.peers[i%len(w.peers)].groups.NewClient()
			defer c.Close()
			if _, err := c.Do(ctx, key, "count", number(1)); err != nil {
				mu.Lock()
				defer mu.Unlock()
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	// replicas returns the state of all replicas at the peers among.
	replicas := func(among []*testPeer) (all []ReplicaStatus) {
		for _, p := range among {
			s, err := p.groups.Status(ctx)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, s...)
		}
		return all
	}
	asleep := func() bool {
		for _, r := range replicas(w.peers) {
			if !r.Status.Quiesced {
				return false
			}
		}
		return true
	}
	// closely tells who watches another peer closely; itself a peer may, which a client of its own has asked last.
	closely := func() (who []string) {
		for _, p := range w.peers {
			self := p.overlay.Self()
			if all := slices.DeleteFunc(p.groups.closely(), func(p peer.ID) bool { return p == self }); len(all) > 0 {
				who = append(who, fmt.Sprint(self, " watches ", all))
			}
		}
		return who
	}
	fallAsleep := func() {
		t.Helper()
		for !asleep() || len(closely()) > 0 {
			if err := pause(ctx, 10*time.Millisecond); err != nil {
				t.Fatalf("not every group sleeps: %v; %q", err, closely())
			}
		}
	}
	fallAsleep()
	for _, p := range w.peers {
		if n := len(p.groups.watches()); n == 0 {
			t.Errorf("%v watches nobody", p.overlay.Self())
		}
	}

	all := func(among []*testPeer) (longest time.Duration) { // until every group has answered one of them
		began := time.Now()
		for i, key := range keys {
			wg.Go(func() {
				c := among[i%len(among)].groups.NewClient()
				defer c.Close()
				got, err := c.Do(ctx, key, "count", number(1))
				took := time.Since(began)
				mu.Lock()
				defer mu.Unlock()
				if err != nil || binary.BigEndian.Uint64(got) < 2 {
					t.Errorf("%x, %v", got, err)
				}
				longest = max(longest, took)
			})
		}
		wg.Wait()
		return longest
	}
	usual := all(w.peers) // while nobody is gone, and from sleep, too: waking up is not free on a busy machine
	fallAsleep()

	// The peer that leads most goes.
	leads := make(map[peer.ID]int)
	for _, r := range replicas(w.peers) {
		if r.Status.Leading {
			m, _ := r.Status.View.Member(r.Status.Self)
			leads[peer.ID(m.PeerID)]++
		}
	}
	victim := slices.MaxFunc(w.peers, func(a, b *testPeer) int { return leads[a.overlay.Self()] - leads[b.overlay.Self()] })
	rest := slices.DeleteFunc(slices.Clone(w.peers), func(p *testPeer) bool { return p == victim })
	victim.groups.Close()
	victim.overlay.Close()
	victim.host.Close()
	longest := all(rest)
	t.Logf("%d of %d groups lost their leader, all answer after %v; %v where nobody is gone", leads[victim.overlay.Self()], groups, longest, usual)
	if leads[victim.overlay.Self()] == 0 {
		t.Error("nobody lost its leader")
	}
}

// sleeper is an engine that sleeps when it is told to.
type sleeper struct {
	view   order.View
	asleep bool
	leads  bool // as replica 1; else 2 does
	heard  []order.Event

	elects bool // it wakes when it begins, or its leader is suspected, and has none until alone is unset
	alone  bool
}

func (e *sleeper) Step(ev order.Event, _ *order.Actions) {
	e.heard = append(e.heard, ev)
	switch ev := ev.(type) {
	case order.Rand:
		e.alone = e.elects
	case order.Suspect:
		e.alone = e.elects && ev.Member == 2
	}
	e.asleep = e.asleep && !e.alone
}

func (e *sleeper) Hash() [32]byte       { return [32]byte{} }
func (e *sleeper) Status() order.Status { return order.Status{View: e.view} }
func (e *sleeper) Quiesced() bool       { return e.asleep }

func (e *sleeper) Leader() (leader order.ReplicaID, leading bool) {
	switch {
	case e.alone:
		return 0, false
	case e.leads:
		return 1, true
	}
	return 2, false
}

// watcher is an overlay that takes note of whom it is to watch.
type watcher struct {
	Overlay
	watched map[peer.ID]bool // closely
}

func (o *watcher) Self() peer.ID                 { return "1" }
func (o *watcher) Node() keyspace.NodeID         { return keyspace.NodeID{1} }
func (o *watcher) Watch(p peer.ID, closely bool) { o.watched[p] = closely }
func (o *watcher) Unwatch(p peer.ID)             { delete(o.watched, p) }
func (o *watcher) Info(p peer.ID) peer.AddrInfo  { return peer.AddrInfo{ID: p} }

func testMember(id byte) order.Member {
	return order.Member{ID: order.ReplicaID(id), Peer: keyspace.NodeID{id}, PeerID: fmt.Sprint(id), Role: order.Voter}
}

// A detector's opinion holds until it is taken back: who starts, or hears of a new member, is told of it.
func TestAnEngineKnowsWhoIsSuspected(t *testing.T) {
	o := &watcher{watched: make(map[peer.ID]bool)}
	h := &Host{clock: driver.NewClock(), overlay: o, watched: make(map[peer.ID]int), active: make(map[peer.ID]int), meetings: make(map[peer.ID]int)}
	h.locator = &locator{}
	s := newShard(h)
	h.shards = []*shard{s}
	d := testDescriptor()
	d.View.Members[0].PeerID = testMember(1).PeerID
	e := &sleeper{view: order.View{Num: 1, Members: []order.Member{testMember(1), testMember(2)}, Next: 3}}
	heard := func(want ...order.Event) {
		t.Helper()
		if !reflect.DeepEqual(e.heard[:min(len(want), len(e.heard))], want) || len(e.heard) != len(want) {
			t.Errorf("the engine hears %v, want %v", e.heard, want)
		}
		e.heard = nil
	}
	suspectEvent{peer: keyspace.NodeID{2}, down: true}.handle(s)
	suspectEvent{peer: keyspace.NodeID{3}, down: true}.handle(s)
	r := newReplica(1, &d, e, map[string]session.Machine{"count": new(counter)}, 1)
	startEvent{replica: r}.handle(s)
	if _, ok := e.heard[0].(order.Rand); !ok {
		t.Fatalf("the engine hears %v first", e.heard)
	}
	e.heard = e.heard[1:]
	heard(order.Suspect{Member: 2})
	suspectEvent{peer: keyspace.NodeID{2}}.handle(s)
	heard(order.Trust{Member: 2})
	r.setView(order.ViewNote{View: order.View{Num: 0, Members: []order.Member{testMember(1), testMember(2), testMember(3)}, Next: 4}, Index: 12})
	heard(order.Suspect{Member: 3})
	watchEvent{keyspace.NodeID{3}}.handle(s) // as of a watch that ended and began anew
	heard(order.Trust{Member: 3})
	watchEvent{keyspace.NodeID{2}}.handle(s)
	heard()

	// Whom the overlay watches closely.
	closely := func(want map[peer.ID]bool) {
		t.Helper()
		if !maps.Equal(o.watched, want) {
			t.Errorf("watched are %v, want %v", o.watched, want)
		}
	}
	closely(map[peer.ID]bool{"2": true, "3": true})
	e.asleep = true
	r.step(order.Read{})
	closely(map[peer.ID]bool{"2": false, "3": false})
	r.setView(order.ViewNote{View: order.View{Num: 0, Members: []order.Member{testMember(1), testMember(2)}, Next: 4}, Index: 13})
	closely(map[peer.ID]bool{"2": false})
	e.asleep = false
	r.step(order.Read{})
	closely(map[peer.ID]bool{"2": true})
	h.mu.Lock() // a client asks 2 for something
	h.activateLocked("2", true)
	h.watchLocked("2")
	h.mu.Unlock()
	r.halt("test")
	r.afterStep()
	closely(map[peer.ID]bool{"2": true})
	h.mu.Lock()
	h.activateLocked("2", false)
	h.unwatchLocked("2")
	h.mu.Unlock()
	closely(map[peer.ID]bool{"2": false})
	h.meet(r.fellows, nil, r.awake)
	closely(map[peer.ID]bool{})
}

// newSleepers returns a shard with n replicas that sleep, of groups with three members; led says that they lead.
func newSleepers(n int, led bool) (s *shard, all []*replica) {
	o := &watcher{watched: make(map[peer.ID]bool)}
	h := &Host{clock: driver.NewClock(), overlay: o, watched: make(map[peer.ID]int), active: make(map[peer.ID]int), meetings: make(map[peer.ID]int)}
	h.locator = newLocator(&Host{})
	h.publisher = newPublisher(h)
	s = newShard(h)
	h.shards = []*shard{s}
	for i := range n {
		d := testDescriptor()
		d.Group.Prefix = keyspace.PrefixOf(keyspace.Key{byte(i >> 8), byte(i)}, 16)
		view := order.View{Num: 1, Members: []order.Member{testMember(1), testMember(2), testMember(3)}, Next: 4}
		d.View = view
		r := newReplica(1, &d, &sleeper{view: view, asleep: true, leads: led}, nil, 1)
		r.view, r.group = view, d.Group
		startEvent{replica: r}.handle(s)
		r.engine.(*sleeper).heard = nil
		all = append(all, r)
	}
	return s, all
}

// A peer that dies and led many groups that sleep does not wake them all at once. All of them say that they have no leader meanwhile,
// who is asked does not wait for its turn, and when the peer is back after all the others sleep on.
func TestGroupsOfADeadLeaderWakeInALine(t *testing.T) {
	const n = 4 * rousesMax
	s, all := newSleepers(n, false)
	told := func() (n int) {
		for _, r := range all {
			if slices.Contains(r.engine.(*sleeper).heard, order.Event(order.Suspect{Member: 2, Now: time.Duration(s.now)})) {
				n++
			}
		}
		return n
	}
	suspectEvent{peer: keyspace.NodeID{2}, down: true}.handle(s)
	if got := told(); got != rousesMax {
		t.Errorf("%d of %d hear of the suspicion at once, want %d", got, n, rousesMax)
	}
	if first := all[rousesMax-1].engine.(*sleeper).heard; len(first) != 1 {
		t.Errorf("the first by name hear of it first: %v", first)
	}
	for i, r := range all {
		if r.silence() == 0 {
			t.Errorf("replica %d has no leader, and says nothing", i)
		}
	}
	asked, waiting := all[n-1], all[n-2]
	asked.ask(&queryEvent{group: asked.group, call: nobody{}})
	if got := told(); got != rousesMax+1 || len(waiting.engine.(*sleeper).heard) > 0 {
		t.Errorf("%d have heard of it when one was asked, want %d", got, rousesMax+1)
	}
	next := s.timers.Next()
	if want := s.now.Add(rouseEvery); next != want {
		t.Fatalf("the next ones are told at %v, want %v", next, want)
	}
	s.rouse()
	if got := told(); got != 2*rousesMax+1 {
		t.Errorf("%d have heard of it in the second round, want %d", got, 2*rousesMax+1)
	}
	suspectEvent{peer: keyspace.NodeID{2}}.handle(s)
	for len(s.drowsy) > 0 {
		s.rouse()
	}
	if got := told(); got != 2*rousesMax+1 {
		t.Errorf("%d have heard of a suspicion that was taken back, want %d", got, 2*rousesMax+1)
	}
	if waiting.silence() != 0 {
		t.Error("it says that it has no leader, which is back")
	}
}

// Nor do more of them wake while many of those that did have no leader yet: on a busy machine their elections would only take longer. One
// that does not get any for long holds up the others no more, and one whose voters are gone does not at all.
func TestNoMoreGroupsWakeWhileManyHaveNoLeader(t *testing.T) {
	s, all := newSleepers(8*stirringMax, false)
	for _, r := range all {
		r.engine.(*sleeper).elects = true
	}
	woken := func(want int) {
		t.Helper()
		n := 0
		for _, r := range all {
			if r.awake {
				n++
			}
		}
		if n != want {
			t.Fatalf("%d are awake, want %d", n, want)
		}
	}
	const first = min(rousesMax, stirringMax)
	suspectEvent{peer: keyspace.NodeID{2}, down: true}.handle(s)
	woken(first)
	s.rouse()
	woken(stirringMax)
	for _, r := range all[:10] {
		r.engine.(*sleeper).alone = false
		r.afterStep()
	}
	s.rouse()
	woken(stirringMax + 10)
	s.rouse()
	woken(stirringMax + 10)
	s.now = s.now.Add(stirringPatience)
	s.rouse()
	woken(stirringMax + 10 + first)
	s.rouse()
	woken(stirringMax + 10 + stirringMax)
	suspectEvent{peer: keyspace.NodeID{3}, down: true}.handle(s)
	s.rouse()
	s.rouse()
	woken(stirringMax + 10 + stirringMax + 2*rousesMax)
}

// The same holds for the many groups of a peer that comes back.
func TestNoMoreGroupsBeginWhileManyHaveNoLeader(t *testing.T) {
	s, _ := newSleepers(0, false)
	var all []*replica
	for i := range startsAtOnce + 4*startsMax {
		d := testDescriptor()
		d.Group.Prefix = keyspace.PrefixOf(keyspace.Key{byte(i >> 8), byte(i)}, 16)
		d.View = order.View{Num: 1, Members: []order.Member{testMember(1), testMember(2), testMember(3)}, Next: 4}
		r := newReplica(1, &d, &sleeper{view: d.View, elects: true}, nil, 1)
		r.view, r.group = d.View, d.Group
		startEvent{r, true}.handle(s)
		all = append(all, r)
	}
	begun := func(want int) {
		t.Helper()
		n := 0
		for _, r := range all {
			if len(r.engine.(*sleeper).heard) > 0 {
				n++
			}
		}
		if n != want {
			t.Fatalf("%d have begun, want %d", n, want)
		}
	}
	begun(startsAtOnce)
	s.begin()
	begun(startsAtOnce)
	for i := range startsAtOnce - stirringMax + 5 {
		all[i].engine.(*sleeper).alone = false
		all[i].afterStep()
	}
	s.begin()
	begun(startsAtOnce + 5)
	s.now = s.now.Add(stirringPatience)
	s.begin()
	begun(startsAtOnce + 5 + startsMax)
}

// A replica puts its machines away while it sleeps, and has them again as they were when somebody wants them.
func TestMachinesArePutAwayInSleep(t *testing.T) {
	s, all := newSleepers(1, false)
	r := all[0]
	s.host.genesis = placement.Defaults()
	s.host.services = map[string]MachineFactory{"count": func(order.GroupID) session.Machine { return new(counter) }}
	r.table, r.parks = session.NewTable(s.host.genesis.Drift, s.host.machines(r.group)), true
	var out session.Outputs
	client := order.ClientID{1}
	open := session.OpenData(time.Minute)
	apply := func(seq uint64, service string, data []byte) {
		r.applied++
		r.state().Apply(order.Entry{Index: r.applied, Kind: order.Normal, Stamp: order.Stamp{Boot: 1, At: time.Duration(r.applied)},
			Cmd: order.Command{Client: client, Seq: seq, Service: service, Data: data}}, &out)
	}
	apply(0, session.Service, open)
	apply(1, "count", number(5))
	before := r.state().Digest()
	nap := func() {
		t.Helper()
		e := r.engine.(*sleeper)
		e.asleep = false
		r.afterStep()
		e.asleep = true
		r.afterStep()
	}
	nap()
	if r.table != nil {
		t.Fatal("it sleeps with its machines")
	}
	if r.phase(); r.table != nil {
		t.Error("they were taken out for nothing")
	}
	if r.state().Digest() != before || r.parked != nil {
		t.Error("what was taken out is not what was put away")
	}
	if _, got := r.state().Query("count", keyspace.NodeID{}, nil); !bytes.Equal(got, number(5)) {
		t.Errorf("it counted to %x", got)
	}
	// The root's grantor of leases looks at the directory that it was made with, also when the replica leads after it has slept.
	r.granting = &granting{replica: r}
	if nap(); r.table == nil {
		t.Error("what grants leases looks at machines that were put away")
	}
	r.granting = nil
	// Nor while a voter has something. When that is over they are, though the group sleeps on.
	v := &noting{}
	r.seat = &Seat{r: r, service: "count", voter: v}
	if nap(); r.table == nil || r.seat.Machine() == nil {
		t.Error("a voter's machine was put away")
	}
	v.idle = true
	if r.expired(timerVoter); r.table != nil {
		t.Error("the machine of a voter that has nothing any more is not put away")
	}
	if m := r.seat.Machine(); !bytes.Equal(m.Query(session.Context{}, nil), number(5)) || r.table == nil {
		t.Error("a voter's machine is not what it was")
	}
	r.seat = nil
	for i := range uint64(session.WindowSize) { // results of a session that is used
		apply(i+2, "count", number(1))
	}
	if nap(); r.table == nil {
		t.Errorf("%d bytes were put away, more than %d", len(r.parked), parkedBytesMax)
	}
}

// Where elections take no time, the line of a shard moves by rousesMax every rouseEvery, however long it is. A peer of two processors
// that keeps ten thousand groups with two others has 1,700 in each line when one of them dies.
func TestThousandsOfGroupsHaveTheirTurnSoon(t *testing.T) {
	const n = 1700
	s, all := newSleepers(n, false)
	suspectEvent{peer: keyspace.NodeID{2}, down: true}.handle(s)
	took := time.Duration(0)
	for len(s.drowsy) > 0 {
		if at := s.timers.Next(); at == automaton.Never || at > s.now.Add(rouseEvery) {
			t.Fatalf("%d wait after %v, until %v", len(s.drowsy), took, at)
		}
		took += rouseEvery
		s.now = s.now.Add(rouseEvery)
		for key, ok := s.timers.Expired(s.now); ok; key, ok = s.timers.Expired(s.now) {
			if key.kind == timerRouse {
				s.rouse()
			}
		}
	}
	for _, r := range all {
		if !slices.ContainsFunc(r.engine.(*sleeper).heard, func(ev order.Event) bool { _, ok := ev.(order.Suspect); return ok }) {
			t.Fatal("one never has its turn")
		}
	}
	if limit := (n + rousesMax - 1) / rousesMax * rouseEvery; took > limit {
		t.Errorf("the last of %d has its turn after %v, want %v", n, took, limit)
	}
	t.Logf("the last of %d has its turn after %v", n, took)
}

// One that is back wakes groups that lack nothing no more than others: who leads them is told in the same line.
func TestLeadersHearOfAReturnInALine(t *testing.T) {
	const n = 2*rousesMax + 1
	s, all := newSleepers(n, true)
	suspectEvent{peer: keyspace.NodeID{3}, down: true}.handle(s)
	told := func() (n int) {
		for _, r := range all {
			if slices.Contains(r.engine.(*sleeper).heard, order.Event(order.Trust{Member: 3})) {
				n++
			}
		}
		return n
	}
	suspectEvent{peer: keyspace.NodeID{3}}.handle(s)
	for want := rousesMax; ; want = min(want+rousesMax, n) {
		if got := told(); got != want {
			t.Fatalf("%d of %d have heard of the return, want %d", got, n, want)
		}
		if want == n {
			break
		}
		s.rouse()
	}
	if len(s.drowsy) > 0 {
		t.Errorf("%d wait on", len(s.drowsy))
	}
}

// Nor does the end of a dead leader's connection, which is often heard of before anybody suspects it, nor a member's that is back. Who
// waits for its turn hears of both.
func TestGroupsOfALinkThatBrokeWakeInALine(t *testing.T) {
	for _, led := range []bool{false, true} {
		const n = 2*rousesMax + 1
		s, all := newSleepers(n, led)
		heard := func() (n int) {
			for _, r := range all {
				n += len(r.engine.(*sleeper).heard)
			}
			return n
		}
		linkEvent{peer: keyspace.NodeID{3}}.handle(s) // a follower's, which wakes nobody
		if got := heard(); got != 0 || len(s.drowsy) > 0 {
			t.Fatalf("led %v: %d hear of a link that is nothing to them, %d wait", led, got, len(s.drowsy))
		}
		want := []order.Event{order.Link{To: 2, Up: true}}
		if led {
			linkEvent{peer: keyspace.NodeID{2}, up: true}.handle(s)
		} else {
			want = []order.Event{order.Link{To: 2}, order.Link{To: 2, Up: true}}
			linkEvent{peer: keyspace.NodeID{2}}.handle(s)
			linkEvent{peer: keyspace.NodeID{2}}.handle(s)
		}
		if got := heard(); got < rousesMax || got > 2*rousesMax {
			t.Errorf("led %v: %d hear of it at once, want those of %d", led, got, rousesMax)
		}
		if !led {
			linkEvent{peer: keyspace.NodeID{2}, up: true}.handle(s)
		}
		last := all[n-1].engine.(*sleeper)
		if len(last.heard) > 0 {
			t.Errorf("led %v: the last one hears %v before its turn", led, last.heard)
		}
		for len(s.drowsy) > 0 {
			s.rouse()
		}
		if !reflect.DeepEqual(last.heard, want) {
			t.Errorf("led %v: the last one hears %v in its turn, want %v", led, last.heard, want)
		}
	}
}

// A peer that comes back with many groups has their engines begin in a line; who is asked for something does not wait for its turn. What
// the others would have heard meanwhile they hear then.
func TestManyReplicasBeginInALine(t *testing.T) {
	const n = startsAtOnce + 2*startsMax
	s, _ := newSleepers(0, false)
	var all []*replica
	for i := range n {
		d := testDescriptor()
		d.Group.Prefix = keyspace.PrefixOf(keyspace.Key{byte(i >> 8), byte(i)}, 16)
		d.View = order.View{Num: 1, Members: []order.Member{testMember(1), testMember(2), testMember(3)}, Next: 4}
		r := newReplica(1, &d, &sleeper{view: d.View}, nil, 1)
		r.view, r.group = d.View, d.Group
		startEvent{r, true}.handle(s)
		all = append(all, r)
	}
	heard := func(i int) []order.Event { return all[i].engine.(*sleeper).heard }
	begun := func() (n int) {
		for i := range all {
			if len(heard(i)) > 0 {
				n++
			}
		}
		return n
	}
	if got := begun(); got != startsAtOnce {
		t.Errorf("%d of %d begin at once, want %d", got, n, startsAtOnce)
	}
	suspectEvent{peer: keyspace.NodeID{2}, down: true}.handle(s)
	linkEvent{peer: keyspace.NodeID{3}, up: true}.handle(s)
	if got := begun(); got != startsAtOnce {
		t.Errorf("%d have begun for a link and a suspicion, want %d", got, startsAtOnce)
	}
	asked, ended, waiting := all[n-1], all[n-2], all[n-3]
	asked.ask(&queryEvent{group: asked.group, call: nobody{}})
	if got := heard(n - 1); len(got) != 2 || got[1] != order.Event(order.Suspect{Member: 2, Now: time.Duration(s.now)}) {
		t.Errorf("who was asked hears %v, want a beginning and the suspicion", got)
	}
	if waiting.silence() == 0 || asked.silence() != 0 {
		t.Errorf("who waits has been without a leader for %v, and who has one for %v", waiting.silence(), asked.silence())
	}
	delete(s.replicas, ended.group.Life()) // as when the group is over
	for want := startsAtOnce + startsMax; ; want += startsMax {
		if at := s.timers.Next(); at != s.now.Add(rouseEvery) {
			t.Fatalf("the next ones begin at %v, want %v", at, s.now.Add(rouseEvery))
		}
		s.begin()
		if s.resting == nil {
			break
		}
		if got := begun(); got != want+1 {
			t.Errorf("%d have begun in their turn, want %d", got, want+1)
		}
	}
	if got := begun(); got != n-1 || len(heard(n-2)) > 0 {
		t.Errorf("%d have begun in the end, want all but the one that is over", got)
	}
}

// A leader that sleeps says when the majority of its group is gone, though nobody asks it for anything; and it sleeps on.
func TestASleepingLeaderSaysThatItIsAlone(t *testing.T) {
	s, all := newSleepers(1, true)
	r := all[0]
	suspectEvent{peer: keyspace.NodeID{2}, down: true}.handle(s)
	if r.silence() != 0 {
		t.Error("two of three are a majority")
	}
	s.now += automaton.Instant(time.Hour)
	suspectEvent{peer: keyspace.NodeID{3}, down: true}.handle(s)
	if since, lost := r.lost(); !lost || since != s.now || r.silence() == 0 {
		t.Errorf("alone of three: %v, since %v, and it is %v", lost, since, s.now)
	}
	if r.awake {
		t.Error("it woke up, and could do nothing")
	}
	suspectEvent{peer: keyspace.NodeID{2}}.handle(s)
	if r.silence() != 0 {
		t.Error("two of three are a majority again")
	}
}

// Timers of heartbeats run out together, never late and never twice in one beat; others when they are set for.
func TestHeartbeatsOfAllGroupsComeTogether(t *testing.T) {
	s := &shard{}
	const beat = 100 * time.Millisecond
	for _, now := range []time.Duration{0, 1, beat - 1, beat, beat + beat/2, 10*beat + 7} {
		s.now = automaton.Instant(now)
		at := s.due(order.SetTimer{After: beat, Beat: true})
		if at%automaton.Instant(beat) != 0 || at <= s.now || at > s.now.Add(beat) {
			t.Errorf("set at %v, it runs out at %v", now, at)
		}
		if at := s.due(order.SetTimer{After: beat}); at != s.now.Add(beat) {
			t.Errorf("set at %v for %v, it runs out at %v", now, beat, at)
		}
	}
}
