package demo

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"latchkey/internal/history"
)

// judgeMax bounds how long porcupine may think. Undecided by then is not a pass.
const judgeMax = 20 * time.Second

// checkCounter: no increment is lost and none is made twice. The counter is exactly clients*each, and so is the number of
// writes, each of which found what the one before it left.
func checkCounter(c counter, clients, each int) error {
	if want := clients * each; c.Value != want {
		return fmt.Errorf("the counter is %d after %d increments", c.Value, want)
	}
	if len(c.Writes) != c.Value {
		return fmt.Errorf("the counter is %d and %d writes made it", c.Value, len(c.Writes))
	}
	for i, w := range c.Writes {
		if w.Value != i+1 {
			return fmt.Errorf("write %d, by client %d, made the counter %d", i+1, w.Client, w.Value)
		}
	}
	return nil
}

// checkClients: every client has made its increments 1 to each, once each and in this order, and the file knows it.
func checkClients(c counter, clients, each int) error {
	made := make([]int, clients)
	for _, w := range c.Writes {
		if w.Client < 0 || w.Client >= clients {
			return fmt.Errorf("client %d does not exist and wrote", w.Client)
		}
		if w.N != made[w.Client]+1 {
			return fmt.Errorf("client %d made increment %d after increment %d", w.Client, w.N, made[w.Client])
		}
		made[w.Client] = w.N
	}
	for i, n := range made {
		if n != each {
			return fmt.Errorf("client %d made %d of %d increments", i, n, each)
		}
	}
	if !slices.Equal(made, c.Last) {
		return fmt.Errorf("the file says %v of the clients' last increments, its journal %v", c.Last, made)
	}
	return nil
}

// checkTokens: the tokens of the writes rise strictly: each increment was made under a grant of its own, later than that
// of the increment before it.
func checkTokens(writes []write) error {
	last := uint64(0)
	for i, w := range writes {
		if w.Token <= last {
			return fmt.Errorf("write %d, by client %d, has token %d after %d", i+1, w.Client, w.Token, last)
		}
		last = w.Token
	}
	return nil
}

// checkHistory: a lock could have given the answers that were recorded.
func checkHistory(h *history.History, judge time.Duration) error {
	return errors.Join(h.CheckTokens(), h.CheckLock(judge).Err())
}

// fault is one thing done to the testnet.
type fault struct {
	kind faultKind
	peer int
	// What the overlay said just before.
	leader int   // of the lock's group
	holder int   // peer that held the lock, -1 when not asked
	voters []int // of the lock's group
	root   []int // voters of the root group
}

type faultKind int

const (
	killLeader faultKind = iota
	killHolder
	restart
)

// checkFaults: the run was as hard as it claims, and no harder than what is promised: a leader and then a holder were killed,
// a peer came back afterwards, and never were more than f voters of the lock's group or of the root down.
func checkFaults(faults []fault, f int) error {
	var down []int
	seen := map[faultKind]int{}
	for i, x := range faults {
		seen[x.kind]++
		switch {
		case x.kind == killLeader && x.leader != x.peer:
			return fmt.Errorf("fault %d killed peer %d as the leader, which was %d", i+1, x.peer, x.leader)
		case x.kind == killHolder && x.holder != x.peer:
			return fmt.Errorf("fault %d killed peer %d as the holder, which was %d", i+1, x.peer, x.holder)
		case x.kind == killHolder && seen[killLeader] == 0:
			return fmt.Errorf("fault %d killed the holder before the leader", i+1)
		case x.kind == restart && !slices.Contains(down, x.peer):
			return fmt.Errorf("fault %d restarted peer %d, which was up", i+1, x.peer)
		case x.kind != restart && slices.Contains(down, x.peer):
			return fmt.Errorf("fault %d killed peer %d, which was down", i+1, x.peer)
		}
		if x.kind == restart {
			down = slices.DeleteFunc(down, func(p int) bool { return p == x.peer })
			continue
		}
		down = append(down, x.peer)
		for _, group := range [][]int{x.voters, x.root} {
			if n := common(down, group); n > f {
				return fmt.Errorf("fault %d: %d of the voters %v are down, more than f = %d", i+1, n, group, f)
			}
		}
	}
	if seen[killLeader] == 0 || seen[killHolder] == 0 || seen[restart] == 0 {
		return fmt.Errorf("%d leaders and %d holders were killed and %d peers restarted; one of each is the least", seen[killLeader], seen[killHolder], seen[restart])
	}
	return nil
}

// common returns how many of a are in b.
func common(a, b []int) int {
	n := 0
	for _, x := range a {
		if slices.Contains(b, x) {
			n++
		}
	}
	return n
}
