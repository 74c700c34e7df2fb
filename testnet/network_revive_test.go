package testnet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"latchkey/lockservice"
	"latchkey/node/api"
)

// Conformance test 42 under policy manual: group and root are in different partitions. An operator on the root's side cannot tell the
// group from a lost one, and revives it. Both generations then answer, each its own side, and only the token protects: that of the old
// one is smaller, whatever it grants. When the sides meet again the old generation ends.
func TestARevivedGroupAndTheSideThatWasCutOff(t *testing.T) {
	t.Parallel()
	n := up(t, Options{N: 8, F: 1})
	const ttl = 2 * time.Second
	lock := func(i int, name string) lockservice.Token {
		t.Helper()
		h, err := peerAt(t, n, i).Node().Locks().Lock(patient(t), name, lockservice.WithTTL(ttl))
		must(t, err)
		must(t, h.Release(patient(t)))
		return h.Token()
	}
	// A name of whose group two members are not of the root, and a peer that is neither.
	var name, prefix string
	var cut []int
	user := -1
	for i := 0; len(cut) < 2 || user < 0; i++ {
		name, cut, user = fmt.Sprint("n", i), nil, -1
		k, err := peerAt(t, n, 0).Node().Key(patient(t), name)
		must(t, err)
		prefix = k.Group.ID
		for j := range n.N() {
			switch member := slices.Contains(k.Group.Members, n.ID(j).String()); {
			case slices.Contains(n.Founders(), j):
			case member && len(cut) < 2:
				cut = append(cut, j)
			case !member:
				user = j
			}
		}
	}
	before := lock(user, name)
	must(t, n.Partition(patient(t), append(slices.Clone(cut), user)))
	if here := lock(user, name); here <= before {
		t.Errorf("token %v after %v", here, before)
	}

	// Seen from the root, the group has lost its majority.
	operator := peerAt(t, n, 0).Node()
	eventually(t, func() error {
		g, err := operator.GroupStanding(patient(t), prefix)
		if err == nil && g.State != api.GroupDown {
			err = fmt.Errorf("the group is %s: %+v", g.State, g.Members)
		}
		return err
	})
	v, err := operator.ReviveGroup(patient(t), prefix, 0, false)
	must(t, err)
	if v.Generation != 1 {
		t.Fatalf("revived as %+v", v)
	}
	revived := lock(0, name)
	old := lock(user, name) // the side that is cut off goes on
	if old <= before || old >= revived {
		t.Errorf("tokens %v before, %v of the old generation, %v of the new one", before, old, revived)
	}

	must(t, n.Heal(patient(t)))
	for _, i := range append(slices.Clone(cut), user) {
		eventually(t, func() error {
			groups, err := peerAt(t, n, i).Node().HostedGroups(patient(t))
			for _, g := range groups {
				if g.Prefix == prefix && g.Generation == 0 {
					return fmt.Errorf("peer %d runs the old generation still: %+v", i, g)
				}
			}
			return err
		})
	}
	if now := lock(user, name); now <= revived {
		t.Errorf("token %v after %v when the sides have met", now, revived)
	}
}

// patient bounds a wait that a revived group may fill: it grants nothing for as long as the longest lease lasts.
func patient(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 2*time.Minute, errors.New("test: waited too long"))
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until something is the case.
func eventually(t *testing.T, is func() error) {
	t.Helper()
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for end := time.Now().Add(2 * time.Minute); ; <-poll.C {
		err := is()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}
