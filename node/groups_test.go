package node

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht/keyspace"
	"latchkey/lockservice"
	"latchkey/node/api"
	"latchkey/replicagroup"
	"latchkey/replicagroup/placement"
)

// seven is an overlay of seven peers, the first three of which keep the root. Leases last a second at most, so that the wait of a
// revived group does not take long.
func seven(t *testing.T, sigma bool) (nodes []*Node, hosts []host.Host, stores []*replicagroup.MemoryStore) {
	t.Helper()
	g := placement.Defaults()
	g.Name, g.F, g.TTLMax, g.RootKey, g.Nonce = "revival", 1, time.Second, make(ed25519.PublicKey, ed25519.PublicKeySize), [16]byte{1}
	g.Sigma = sigma
	for i := range 7 {
		hosts, stores = append(hosts, newHost(t)), append(stores, replicagroup.NewMemoryStore())
		if i < 3 {
			g.Founders = append(g.Founders, placement.Host{Peer: placement.Peer{ID: string(hosts[i].ID())}, Store: stores[i].ID()})
		}
	}
	for i, h := range hosts {
		if i < 3 {
			if err := replicagroup.Found(stores[i], g, g.Founders[i].Node()); err != nil {
				t.Fatal(err)
			}
		}
		n, err := New(h, WithOverlay(g), WithStore(stores[i]), WithBootstrap(info(hosts[0])))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		if err := n.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		if err := n.Overlay().WaitPeers(within(t, waitMax), 6); err != nil {
			t.Fatal(err)
		}
	}
	return nodes, hosts, stores
}

// A group loses two of three members with a lock held: it stays down and says so, is revived, and grants that lock again, with a
// larger token, once every lease of the old generation is over. Whoever waited for one that its table keeps gets it, one after the other.
func TestARevivedGroupGrantsAfterTheOldLeasesWithLargerTokens(t *testing.T) {
	t.Parallel()
	for _, sigma := range []bool{false, true} {
		t.Run(fmt.Sprint("sigma ", sigma), func(t *testing.T) {
			t.Parallel()
			aRevivedGroupGrants(t, sigma)
		})
	}
}

// tabled is a lock that the group's table keeps, with a holder and others that wait for it, by either protocol.
type tabled struct {
	t    *testing.T
	done sync.WaitGroup

	mu    sync.Mutex
	last  *lockservice.Handle
	holds int
}

func (x *tabled) wait(ctx context.Context, n *Node, name string, p lockservice.Protocol) {
	x.done.Go(func() {
		h, err := n.Locks().Lock(ctx, name, lockservice.WithTTL(time.Second), lockservice.WithProtocol(p))
		if err != nil {
			x.t.Errorf("a waiter: %v", err)
			return
		}
		x.mu.Lock()
		if x.last.Context().Err() == nil || h.Token() <= x.last.Token() {
			x.t.Errorf("granted with token %x while %x holds, %v", uint64(h.Token()), uint64(x.last.Token()), x.last.Context().Err())
		}
		x.last = h
		x.holds++
		x.mu.Unlock()
		if err := h.Release(ctx); err != nil {
			x.t.Errorf("a waiter gives the lock back: %v", err)
		}
	})
}

func aRevivedGroupGrants(t *testing.T, sigma bool) {
	nodes, hosts, stores := seven(t, sigma)
	ctx := within(t, 60*time.Second)
	var name, prefix string
	var doomed, others []int // members that are not of the root; peers that are no members
	for i := 0; len(doomed) < 2; i++ {
		name, doomed, others = fmt.Sprint("lock ", i), nil, nil
		k, err := nodes[0].Key(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		prefix = k.Group.ID
		for j, h := range hosts {
			switch member := slices.Contains(k.Group.Members, h.ID().String()); {
			case member && j > 2:
				doomed = append(doomed, j)
			case !member:
				others = append(others, j)
			}
		}
	}
	doomed = doomed[:2]
	user := nodes[others[0]]
	first, err := user.Locks().Lock(ctx, name, lockservice.WithTTL(time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if g, err := user.GroupStanding(ctx, name); err != nil || g.State != api.GroupServing || g.Answering != 3 || g.Prefix != prefix || !g.Directory {
		t.Errorf("healthy: %+v, %v", g, err)
	}
	if _, err := user.ReviveGroup(ctx, prefix, 0, false); !errors.Is(err, api.ErrAlive) {
		t.Errorf("revive of a healthy group: %v", err)
	}

	kept := name
	for i := 0; kept == name; i++ {
		if of := fmt.Sprint("kept ", i); user.Genesis().PrefixOf(keyspace.Preimage(of).Key()).String() == prefix {
			kept = of
		}
	}
	x := &tabled{t: t}
	if x.last, err = user.Locks().Lock(ctx, kept, lockservice.WithTTL(time.Second), lockservice.WithProtocol(lockservice.ProtocolGroup)); err != nil {
		t.Fatal(err)
	}
	for i, p := range []lockservice.Protocol{lockservice.ProtocolAuto, lockservice.ProtocolAuto, lockservice.ProtocolGroup} {
		x.wait(ctx, nodes[others[i]], kept, p)
	}
	eventually(t, "three wait", func() bool {
		i, err := user.Locks().Info(ctx, kept)
		return err == nil && i.Waiting == 3 && i.Protocol == lockservice.ProtocolGroup
	})

	for _, j := range doomed {
		stores[j].Detach()
		hosts[j].Close()
		nodes[j].Close()
	}
	g, err := user.GroupStanding(ctx, prefix)
	if err != nil || g.State != api.GroupDown || g.Answering != 1 || g.Voters != 3 || g.Majority() {
		t.Fatalf("without two: %+v, %v", g, err)
	}
	for _, m := range g.Members {
		dead := slices.ContainsFunc(doomed, func(j int) bool { return hosts[j].ID().String() == m.Peer })
		if want := map[bool]string{true: api.MemberSilent, false: api.MemberAnswers}[dead]; m.State != want {
			t.Errorf("member %s %s, want %s", m.Peer, m.State, want)
		}
	}
	var left *Node
	for j, n := range nodes {
		if !slices.Contains(doomed, j) && !slices.Contains(others, j) {
			left = n
		}
	}
	eventually(t, "the member that is left says that the group is down", func() bool {
		s, err := left.Status(ctx)
		return err == nil && slices.ContainsFunc(s.Down, func(g api.HostedGroup) bool { return g.Prefix == prefix && g.Leader == "" })
	})

	start := time.Now()
	v, err := user.ReviveGroup(ctx, prefix, g.Generation, false)
	if err != nil || v.Generation != 1 || v.Prefix != prefix || len(v.Members) != 3 {
		t.Fatalf("revived: %+v, %v", v, err)
	}
	if d := user.Genesis().Drift.Stretch(user.Genesis().TTLMax); v.Embargo != d || v.EmbargoMS != d.Milliseconds() {
		t.Errorf("embargo %v, want %v", v.Embargo, d)
	}
	again, err := nodes[others[1]].Locks().Lock(ctx, name, lockservice.WithTTL(time.Second))
	if err != nil {
		t.Fatal(err)
	}
	waited := time.Since(start)
	if again.Token() <= first.Token() || uint64(again.Token())>>46 != 1 {
		t.Errorf("token %x after %x", uint64(again.Token()), uint64(first.Token()))
	}
	if least := user.Genesis().Drift.Shrink(v.Embargo); waited < least {
		t.Errorf("granted %v after the revival began, want %v at least", waited, least)
	}
	select { // the old holder stopped before anybody else was granted
	case <-first.Context().Done():
	default:
		t.Error("the old holder holds still")
	}
	t.Logf("granted %v after the revival began", waited)
	if x.done.Wait(); x.holds != 3 || uint64(x.last.Token())>>46 != 1 {
		t.Errorf("%d of three waiters got the lock, the last with token %x", x.holds, uint64(x.last.Token()))
	}
	if g, err := user.GroupStanding(ctx, name); err != nil || g.State != api.GroupServing || g.Generation != 1 || g.Former != 0 {
		t.Errorf("revived: %+v, %v", g, err)
	}
	hosted, err := left.HostedGroups(ctx)
	if err != nil || slices.ContainsFunc(hosted, func(g api.HostedGroup) bool { return g.Prefix == prefix && g.Generation == 0 }) {
		t.Errorf("the old generation runs still: %+v, %v", hosted, err)
	}
}

func TestGroupsAreNamedByPrefixLockOrRoot(t *testing.T) {
	h := newHost(t)
	g, store, err := Found(h, FoundOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n, err := New(h, WithOverlay(g), WithStore(store))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx := within(t, waitMax)
	for _, of := range []string{"root", "/0"} {
		eventually(t, of+" serves", func() bool {
			s, err := n.GroupStanding(ctx, of)
			return err == nil && s.State == api.GroupServing && s.Prefix == "/0" && len(s.Members) == 1 && s.Members[0].Role == "leader"
		})
	}
	p := g.PrefixOf(keyspace.Preimage("name").Key()).String()
	for _, of := range []string{"name", p} {
		if _, err := n.GroupStanding(ctx, of); !errors.Is(err, api.ErrNoGroup) || !strings.Contains(err.Error(), p) {
			t.Errorf("%s, which nobody has used: %v", of, err)
		}
	}
	for of, want := range map[string]string{
		"85": `"85" was taken for a lock's name; the prefix is written 85/8`, "name": `"name" was taken for a lock's name; a prefix is written like a3/8`,
	} {
		if _, err := n.GroupStanding(ctx, of); !errors.Is(err, api.ErrNoGroup) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", of, err, want)
		}
	}
	if _, err := n.GroupStanding(ctx, p); err == nil || strings.Contains(err.Error(), "taken for") {
		t.Errorf("%s: %v", p, err)
	}
	if _, err := n.GroupStanding(ctx, "a300/16"); !errors.Is(err, api.ErrPrefix) {
		t.Errorf("a prefix of another depth: %v", err)
	}
	if _, err := n.GroupStanding(ctx, "a\nb"); !errors.Is(err, lockservice.ErrName) {
		t.Errorf("no name: %v", err)
	}
	for _, bad := range []string{"", "name", "root", "/0", "a300/16"} {
		if _, err := n.ReviveGroup(ctx, bad, 0, true); !errors.Is(err, api.ErrPrefix) {
			t.Errorf("revive %q: %v", bad, err)
		}
	}
	if _, err := n.ReviveGroup(ctx, p, 0, true); !errors.Is(err, api.ErrNoGroup) {
		t.Errorf("revive of nothing: %v", err)
	}
	groups, err := n.HostedGroups(ctx)
	if err != nil || len(groups) != 1 || groups[0].Prefix != "/0" || groups[0].Role != "leader" || groups[0].Leader != peer.ID(h.ID()).String() ||
		len(groups[0].Voters) != 1 || !groups[0].Leaderless.IsZero() {
		t.Errorf("hosted: %+v, %v", groups, err)
	}
}
