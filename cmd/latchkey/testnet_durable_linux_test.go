package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"latchkey/coherence"
	"latchkey/coherence/durable"
	"latchkey/internal/automaton"
	"latchkey/internal/history"
	"latchkey/node/api"
	"latchkey/testnet"
)

var (
	counts = flag.Int("durable.counts", 12, "how many increments of one durable counter all clients of a testnet make together, leaders being killed meanwhile")
	frozen = flag.Duration("durable.frozen", 0, "for how long a reader of durable objects is stopped, and a peer frozen beside; 0: until the writer is through, and not at all")
)

const (
	durableApp = "app"
	// durableCall bounds one call of a client of a testnet: more than what a writer waits after the death of a leader.
	durableCall = 5 * time.Second
	// wordBits is how much of a value of the counter tells whose it is, so that no two writes write the same.
	wordBits = 32
)

// durableUse is clients of the daemons of a testnet's peers that count, write and read durable objects of one group, and record what they see.
type durableUse struct {
	n       *liveNet
	net     *testnet.Remote
	peers   []testnet.PeerStatus
	h       *history.History
	ids     atomic.Int64
	words   atomic.Uint64
	made    atomic.Int64 // increments that were acknowledged
	unsure  atomic.Int64 // of which nobody knows
	perPeer []atomic.Int64
	calls   []atomic.Int64 // that succeeded, by peer
	ctx     context.Context
	stop    context.CancelFunc
	all     sync.WaitGroup

	mu   sync.Mutex
	seen map[uint64]uint64 // of what was written, the version that somebody found it with
	open []openWrite
}

// openWrite is a write of which its client was not told what became of it.
type openWrite struct {
	op        int
	old, word uint64
}

var durableNames = []string{"n", "x", "y"}

func useDurables(n *liveNet) *durableUse {
	u := &durableUse{n: n, net: testnet.Dial(n.dir), peers: n.status().Peers, h: history.New(), seen: map[uint64]uint64{}}
	u.ctx, u.stop = context.WithCancel(n.t.Context())
	u.perPeer, u.calls = make([]atomic.Int64, len(u.peers)), make([]atomic.Int64, len(u.peers))
	for i := range u.peers {
		u.all.Go(func() { u.use(i) })
	}
	return u
}

// use goes on until it is stopped, whatever happens to the daemon.
func (u *durableUse) use(peer int) {
	c, err := api.Dial(u.peers[peer].API)
	if err != nil {
		u.n.t.Error(err)
		return
	}
	defer c.Close()
	pace := time.NewTicker(2 * time.Millisecond)
	defer pace.Stop()
	id := int(u.ids.Add(1))
	for i := peer; u.ctx.Err() == nil; i++ {
		ctx, cancel := context.WithTimeout(u.ctx, durableCall)
		known, err := u.call(ctx, c, id, peer, i)
		cancel()
		if err == nil {
			u.calls[peer].Add(1)
		}
		if !known { // what it goes on with is not after that
			id = int(u.ids.Add(1))
		}
		<-pace.C
	}
}

// call makes one call, and reports whether it is known what became of it.
func (u *durableUse) call(ctx context.Context, c *api.Client, id, peer, i int) (known bool, err error) {
	name := durableNames[i/2%len(durableNames)]
	read := func() (coherence.Value, uint64, error) {
		op := u.h.Call(id, history.Read(name))
		v, err := c.GetDurable(ctx, durableApp, name)
		if err != nil {
			u.h.NoEffect(op)
			return v, 0, err
		}
		value := uint64(0)
		if len(v.Bytes) > 0 {
			if value, err = strconv.ParseUint(string(v.Bytes), 10, 64); err != nil {
				u.n.t.Errorf("%s holds %q", name, v.Bytes)
			}
		}
		u.mu.Lock()
		u.seen[value] = v.Version.Counter()
		u.mu.Unlock()
		u.h.Return(op, history.Answer{Value: value, Version: v.Version.Counter()})
		return v, value, nil
	}
	v, old, err := read()
	if err != nil || i%2 == 0 {
		return true, err
	}
	word := u.words.Add(1)
	w, op := api.DurableWrite{}, 0
	if name == "n" {
		word |= (old>>wordBits + 1) << wordBits
		w.If = &v.Version
		op = u.h.Call(id, history.CAS(name, old, word))
	} else {
		op = u.h.Call(id, history.Write(name, word))
	}
	w.Value = strconv.AppendUint(nil, word, 10)
	version, err := c.SetDurable(ctx, durableApp, name, w)
	switch {
	case err == nil:
		u.h.Return(op, history.Answer{OK: name == "n", Value: old, Version: version.Counter()})
		if name == "n" {
			u.made.Add(1)
			u.perPeer[peer].Add(1)
		}
	case errors.Is(err, coherence.ErrConflict) || errors.Is(err, coherence.ErrNoQuorum) || errors.Is(err, coherence.ErrBusy): // too many lives of peers have written of late
		u.h.NoEffect(op)
	case errors.Is(err, api.ErrUnreachable) && !errors.Is(err, coherence.ErrOutcomeUnknown):
		u.h.NoEffect(op) // it was not sent
	default:
		if name == "n" {
			u.unsure.Add(1)
		}
		u.mu.Lock()
		u.open = append(u.open, openWrite{op, old, word})
		u.mu.Unlock()
		return false, err
	}
	return true, err
}

// goOn waits until all but some have done more.
func (u *durableUse) goOn(after string, but ...int) {
	t := u.n.t
	t.Helper()
	var was []int64
	for i := range u.calls {
		was = append(was, u.calls[i].Load())
	}
	start := time.Now()
	eventually(t, "all go on after "+after, func() bool {
		for i := range u.calls {
			if !slices.Contains(but, i) && u.calls[i].Load() < was[i]+6 {
				return false
			}
		}
		return true
	})
	t.Logf("%s: all go on after %v; %d increments", after, time.Since(start).Round(time.Millisecond), u.made.Load())
}

// roles returns the number of the peer that leads the objects' group, and those of its other members, as one peer sees it.
func (u *durableUse) roles(ask int) (leader int, others []int) {
	t := u.n.t
	t.Helper()
	c, err := api.Dial(u.peers[ask].API)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	number := func(id string) int {
		return slices.IndexFunc(u.peers, func(p testnet.PeerStatus) bool { return p.Peer == id })
	}
	eventually(t, "the objects' group has a leader", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), durableCall)
		defer cancel()
		i, err := c.Durable(ctx, durableApp, "n")
		if err != nil || i.Group == nil || i.Group.Leader == "" {
			return false
		}
		leader, others = number(i.Group.Leader), nil
		for _, m := range i.Group.Members {
			if k := number(m); k != leader {
				others = append(others, k)
			}
		}
		return u.n.status().Peers[leader].Up
	})
	return leader, others
}

// judge ends the use, and judges what was seen: the sum, each object by itself, and all together.
func (u *durableUse) judge() {
	t := u.n.t
	t.Helper()
	u.stop()
	u.all.Wait()
	made, unsure := u.made.Load(), u.unsure.Load()
	for i := range u.peers {
		c, err := api.Dial(u.peers[i].API)
		if err != nil {
			t.Fatal(err)
		}
		var v coherence.Value
		ctx, cancel := context.WithTimeout(t.Context(), waitMax)
		v, err = c.GetDurable(ctx, durableApp, "n")
		cancel()
		c.Close()
		sum, bad := strconv.ParseInt(string(v.Bytes), 10, 64)
		if sum >>= wordBits; errors.Join(err, bad) != nil || sum < made || sum > made+unsure {
			t.Errorf("peer %d finds %d after %d increments, of %d more nobody knows: %v", i, sum, made, unsure, err)
		}
	}
	for _, w := range u.open { // what was found was made, some time before now
		if version := u.seen[w.word]; version != 0 {
			u.h.Return(w.op, history.Answer{OK: w.word>>wordBits != 0, Value: w.old, Version: version})
		}
	}
	objects, together := u.h.CheckRegister(time.Minute), u.h.CheckSequential(0)
	if err := errors.Join(objects.Err(), together.Err()); err != nil {
		t.Error(err)
	}
	var by []int64
	for i := range u.perPeer {
		by = append(by, u.perPeer[i].Load())
	}
	t.Logf("%d increments (by peer %v), %d unsure, %d operations judged by object and %d together", made, by, unsure, objects.Judged, together.Judged)
}

// commands has "object update app/cli -- sh -c 'read v; echo $((v+1))'" increment a number through all peers at once, each some times. One that surely wrote
// nothing is said again, as a script would.
func (u *durableUse) commands(times int) (wait func() (done, unsure int)) {
	var done, unknown atomic.Int64
	var all sync.WaitGroup
	for i, p := range u.peers {
		all.Go(func() {
			for range times {
				for done.Load() >= 0 {
					c := command(u.n.t, []string{"LATCHKEY_API=" + p.API}, "object", "update", durableApp+"/cli", "--", "sh", "-c", "read v; echo $((v+1))")
					code, said := c.start().wait(), c.err.String()
					switch {
					case code == exitOK:
						done.Add(1)
					case strings.Contains(said, "nobody knows") || strings.Contains(said, "outcome unknown") || strings.Contains(said, "went away"):
						unknown.Add(1)
					case code == exitLost || code == exitUnreachable || code == exitFailure: // nothing was written
						time.Sleep(50 * time.Millisecond) // between two tries
						continue
					default:
						u.n.t.Errorf("peer %d: exit %d: %s", i, code, said)
					}
					break
				}
			}
		})
	}
	return func() (int, int) {
		all.Wait()
		return int(done.Load()), int(unknown.Load())
	}
}

// killedOwner kills the daemon through which a command has the turn to write: readers go on, and the next writer has its turn without anybody's doing.
// (durable-objects.md section 14, test 14)
func (u *durableUse) killedOwner(owner, writer int) {
	t := u.n.t
	t.Helper()
	at := durableApp + "/held"
	u.n.verb(exitOK, fmt.Sprint("run ", writer), "--", binary, "object", "set", at, "1")
	held := command(t, []string{"LATCHKEY_API=" + u.peers[owner].API}, "object", "update", at, "--", "sh", "-c", "echo begun >&2; exec sleep 60")
	held.start()
	eventually(t, "the command has its turn", func() bool { return strings.Contains(held.err.String(), "begun") })
	if err := u.net.Kill(t.Context(), owner); err != nil {
		t.Fatal(err)
	}
	next := command(t, []string{"LATCHKEY_API=" + u.peers[writer].API}, "object", "update", at, "--", "sh", "-c", "read v; echo $((v+1))")
	began := time.Now()
	next.start()
	if p := u.n.verb(exitOK, fmt.Sprint("run ", writer), "--", binary, "object", "get", at); strings.TrimSpace(p.out.String()) != "1" && strings.TrimSpace(p.out.String()) != "2" {
		t.Errorf("a reader finds %q", p.out.String())
	}
	if code := next.wait(); code != exitOK {
		t.Errorf("the next writer: exit %d, %s", code, next.err.String())
	}
	t.Logf("the next writer is through after %v", time.Since(began).Round(time.Millisecond))
	if code := held.wait(); code == exitOK {
		t.Errorf("whose daemon was killed: exit %d, %s", code, held.err.String())
	}
	if err := u.net.Restart(t.Context(), owner); err != nil {
		t.Fatal(err)
	}
}

// stopped stops a reader that has a copy with SIGSTOP: a writer is through while it is stopped still, others read the old value until then, and what
// the reader was asked meanwhile it answers with the new one. (durable-objects.md section 14, test 7)
func (u *durableUse) stopped(reader, writer, other int) {
	t := u.n.t
	t.Helper()
	const name = "stop"
	dial := func(i int) *api.Client {
		c, err := api.Dial(u.peers[i].API)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	r, w, o := dial(reader), dial(writer), dial(other)
	ctx, cancel := context.WithTimeout(t.Context(), waitMax)
	defer cancel()
	set := func(v string) {
		t.Helper()
		if _, err := w.SetDurable(ctx, durableApp, name, api.DurableWrite{Value: []byte(v)}); err != nil {
			t.Fatal(err)
		}
	}
	set("old")
	for _, c := range []*api.Client{r, o, r} { // the second read of the reader is of a copy
		if v, err := c.GetDurable(ctx, durableApp, name); err != nil || string(v.Bytes) != "old" {
			t.Fatalf("%q, %v", v.Bytes, err)
		}
	}
	if err := u.net.Pause(ctx, reader); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	written := make(chan struct{})
	go func() {
		defer close(written)
		set("new")
	}()
	olds, slowest := 0, time.Duration(0)
	for through := false; !through; {
		select {
		case <-written:
			through = true
		default:
			asked := time.Now()
			v, err := o.GetDurable(ctx, durableApp, name)
			if err != nil {
				t.Fatal(err)
			}
			slowest = max(slowest, time.Since(asked))
			if string(v.Bytes) == "old" {
				olds++
			}
			time.Sleep(2 * time.Millisecond) // between two reads
		}
	}
	took := time.Since(began)
	bound := durable.ParamsOf(automaton.DriftDefault).Arbiter()
	t.Logf("a writer waits %v for a stopped reader, of %v at most by the leader's clock; %d reads of another peer meanwhile, the slowest took %v", took.Round(time.Millisecond), bound, olds, slowest)
	if olds == 0 && took > bound/4 {
		t.Errorf("nobody read while the writer waited for %v", took)
	}
	if slowest > cmp.Or(*frozen, bound)*3/4 && slowest > took/2 {
		t.Errorf("a reader waited for %v, as the writer did", slowest)
	}
	if *frozen > 0 {
		if took > bound+bound/4+time.Second { // what is over a lease is for a loaded machine
			t.Errorf("the writer waited for %v, of %v", took, bound)
		}
		time.Sleep(time.Until(began.Add(*frozen))) // what is tested is a stop of this length
	}
	answer := make(chan string, 1)
	go func() {
		v, err := r.GetDurable(ctx, durableApp, name)
		answer <- fmt.Sprint(string(v.Bytes), err)
	}()
	if err := u.net.Resume(ctx, reader); err != nil {
		t.Fatal(err)
	}
	if got := <-answer; got != "new<nil>" {
		t.Errorf("who was stopped finds %q", got)
	}
}

// TestDurableObjectsOutliveTheirLeaders has all five peers of a testnet of processes count, write and read through their daemons, and by the command line, while who
// leads is killed again and again, peers are frozen for three leases, and partitions come and go; then a reader is stopped. With -durable.counts 10000
// and -durable.frozen 10s it is a campaign. A leader is killed a second after all go on: one that is killed within a lease acknowledges nothing, as it should not.
func TestDurableObjectsOutliveTheirLeaders(t *testing.T) {
	t.Parallel()
	const peers = 5
	n := upLive(t, socketDir(t), "--mode", "process", "-n", fmt.Sprint(peers), "--depth", "1")
	n.verb(exitOK, "run 0", "--", binary, "object", "set", durableApp+"/cli", "0")
	u := useDurables(n)
	u.goOn("the beginning")
	each := max(2, min(20, *counts/100))
	commands := u.commands(each)
	ctx := t.Context()
	fatal := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for round := 0; round == 0 || u.made.Load() < int64(*counts); round++ {
		ask := round % peers
		leader, _ := u.roles(ask)
		fatal(u.net.Kill(ctx, leader))
		u.goOn("the leader was killed", leader)
		fatal(u.net.Restart(ctx, leader))
		if round%4 == 0 {
			_, others := u.roles((leader + 1) % peers)
			cut := others[round/4%len(others)]
			fatal(u.net.Partition(ctx, []int{cut}))
			u.goOn("a member was cut off", cut)
			fatal(u.net.Heal(ctx))
		}
		if *frozen > 0 && round%4 == 1 {
			leader, _ = u.roles((leader + 1) % peers)
			fatal(u.net.Pause(ctx, leader))
			time.Sleep(3 * durable.LeaseDefault) // what is tested is a pause of this length
			u.goOn("the leader was frozen", leader)
			fatal(u.net.Resume(ctx, leader))
		}
		u.goOn("it is back")
		if *frozen > 0 {
			time.Sleep(time.Second)
		}
	}
	leader, others := u.roles(0)
	var apart []int
	for i := range peers {
		if i != leader && !slices.Contains(others, i) {
			apart = append(apart, i)
		}
	}
	done, unsure := commands()
	u.judge()
	if len(apart) == 0 {
		apart = others[:1]
	}
	u.killedOwner(apart[0], leader)
	u.stopped(apart[0], leader, others[len(others)-1])
	p := n.verb(exitOK, "run 1", "--", binary, "object", "get", durableApp+"/cli")
	sum, err := strconv.Atoi(strings.TrimSpace(p.out.String()))
	if err != nil || sum < done || sum > done+unsure || done+unsure != peers*each {
		t.Errorf("the commands' number is %q after %d of them, of %d more nobody knows", p.out.String(), done, unsure)
	}
	t.Logf("%d commands, %d unsure", done, unsure)
}
