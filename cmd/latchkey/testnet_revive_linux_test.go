package main

import (
	"cmp"
	"encoding/json"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// standing tells of a group what "group info" does.
func (n *liveNet) standing(peer int, of string) (g struct {
	Prefix, Generation string
	Members            []struct{ Peer string }
}) {
	n.t.Helper()
	p := n.verb(0, "run "+strconv.Itoa(peer), "--", binary, "group", "info", of, "-o", "json")
	if err := json.Unmarshal(p.out.Bytes(), &g); err != nil {
		n.t.Fatalf("group info %s: %v: %s", of, err, p.out.String())
	}
	return g
}

// retake takes and releases a lock that may have been lost with its group: what was under way then has an unknown outcome, and is said again.
func (n *liveNet) retake(peer int, name string) {
	n.t.Helper()
	eventually(n.t, "lock "+name+" can be had", func() bool {
		p := command(n.t, nil, "testnet", "run", strconv.Itoa(peer), "--dir", n.dir, "--", binary, "lock", name, "--ttl", "2s", "--wait", "2m", "--", "true")
		return p.start().wait() == 0
	})
}

// On real processes, in an overlay with leases: a group that has lost its majority comes back by itself, with larger tokens; its
// members that come back put aside what they knew. Then the root is lost, and brought back by an operator with the root key.
func TestALostGroupAndALostRootOfProcessesWithLeases(t *testing.T) {
	t.Parallel()
	n := upLive(t, socketDir(t), "--mode", "process", "-n", "7", "--regenesis", "lease", "--reads", "lease")
	defer func() {
		n.Process.Kill()
		n.wait()
	}()
	ids := make(map[string]int)
	for _, p := range n.status().Peers {
		ids[p.Peer] = p.N
	}
	// A lock of whose group two members are not of the root, which the first three keep.
	var name string
	var outside []int
	for i := 0; len(outside) < 2; i++ {
		name, outside = "lock"+strconv.Itoa(i), nil
		n.lock(0, 0, name)
		for _, m := range n.standing(0, name).Members {
			if at := ids[m.Peer]; at > 2 {
				outside = append(outside, at)
			}
		}
	}
	before := n.fence(0, name)
	prefix := n.standing(0, name).Prefix
	for _, i := range outside[:2] {
		n.verb(0, "kill "+strconv.Itoa(i))
	}
	n.retake(0, name)
	if after := n.fence(0, name); after <= before {
		t.Errorf("token %d after %d", after, before)
	}
	if g := n.standing(0, name); g.Generation != "1" {
		t.Errorf("%+v", g)
	}
	back := outside[0]
	n.verb(0, "restart "+strconv.Itoa(back))
	eventually(t, "who comes back puts aside what it knew", func() bool {
		p := n.verb(0, "run "+strconv.Itoa(back), "--", binary, "group", "graves")
		return strings.Contains(p.out.String(), prefix)
	})

	// Two of the root's voters go for good. Whoever it is now, one peer with the key founds another root.
	founder := -1
	root := n.standing(back, "root").Members
	for i := range 7 {
		if !slices.ContainsFunc(root, func(m struct{ Peer string }) bool { return ids[m.Peer] == i }) && i != outside[1] {
			founder = i
		}
	}
	// A lock whose group keeps its majority without them: it goes on in its generation.
	var gone []string
	for i := 0; gone == nil; i++ {
		name = "kept" + strconv.Itoa(i)
		n.lock(0, founder, name)
		group := n.standing(founder, name).Members
		slices.SortStableFunc(root, func(a, b struct{ Peer string }) int { // those outside the group first
			return cmp.Compare(btoi(slices.Contains(group, a)), btoi(slices.Contains(group, b)))
		})
		if !slices.Contains(group, root[0]) {
			gone = []string{root[0].Peer, root[1].Peer}
		}
	}
	token := n.fence(founder, name)
	for _, id := range gone {
		n.verb(0, "kill "+strconv.Itoa(ids[id]))
	}
	path := filepath.Join(n.dir, strconv.Itoa(founder))
	n.verb(exitFailure, "run "+strconv.Itoa(founder), "--", binary, "--path", path, "group", "revive", "root", "--yes") // it has no key
	was := n.standing(founder, name)
	p := n.verb(0, "run "+strconv.Itoa(founder), "--", binary, "--path", path, "group", "revive", "root", "--yes", "--root-key", filepath.Join(n.dir, "0", "root.key"))
	if !strings.Contains(p.out.String(), "that "+root[2].Peer+" knows of") {
		t.Errorf("the new root does not begin with what the last member of the old one knew: %s", p.out.String())
	}
	n.retake(founder, name)
	if after := n.fence(founder, name); after <= token {
		t.Errorf("token %d after %d", after, token)
	}
	if g := n.standing(founder, name); g.Generation != was.Generation {
		t.Errorf("the group was %+v, and is %+v", was, g)
	}
	if g := n.standing(founder, "root"); g.Generation != strconv.Itoa(1<<32) {
		t.Errorf("the root is %+v", g)
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
