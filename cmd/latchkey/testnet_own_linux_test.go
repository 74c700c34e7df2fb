package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"latchkey/dht/keyspace"
)

// movePhases are how long after the operator's command somebody fails. A move takes some tens of milliseconds from Out to Begun, and some
// from Seal to Adopt: so failures fall before it, behind each of its entries, and after it.
var movePhases = []time.Duration{20, 60, 40, 80, 0, 120, 30, 200, 50, 10, 100, 70}

// own asks a peer until a lock has a group of its own, or, with back, has none any more. A command that ends early may have done its work.
func (n *liveNet) own(ask int, name string, back bool) {
	n.t.Helper()
	args, done := []string{"group", "own", name, "--yes"}, "has a group of its own already"
	if back {
		args, done = []string{"group", "own", "--remove", name, "--yes"}, "has no group of its own"
	}
	socket := n.status().Peers[ask].API
	eventually(n.t, fmt.Sprint("the lock moves: ", strings.Join(args, " ")), func() bool {
		p := command(n.t, []string{"LATCHKEY_API=" + socket}, args...)
		code := p.start().wait()
		if code != exitOK && !strings.Contains(p.err.String(), done) {
			n.t.Logf("group own: exit %d, %s", code, p.err.String())
			return false
		}
		return true
	})
}

// half says in which of the two groups of an overlay of depth 1 a lock is.
func half(name string) byte { return keyspace.Preimage(name).Key()[0] >> 7 }

// A lock moves to a group of its own and back while commands wait for it, and somebody who takes part fails in the midst of the move: the
// leader of its prefix's group, which drives it, is killed or frozen, or a voter of its own group is killed. The number that the commands
// increment loses nothing, tokens rise, and the move is finished. With -testnet.rounds 12 the failure comes in every phase.
func TestALockMovesWhileItsMoversFail(t *testing.T) {
	t.Parallel()
	const peers, operator = 7, 6
	n := upLive(t, socketDir(t), "--mode", "process", "-n", fmt.Sprint(peers), "--depth", "1", "--own-groups")
	c := n.counting("moves")
	sibling := "" // a lock that stays with the prefix's group
	for i := 0; sibling == ""; i++ {
		if name := fmt.Sprint("stays ", i); half(name) == half(c.lock) {
			sibling = name
		}
	}
	n.lock(exitOK, operator, sibling)
	n.lock(exitOK, operator, c.lock)
	for round := range *loadRounds {
		for step, back := range []bool{false, true} {
			phase := movePhases[(2*round+step)%len(movePhases)] * time.Millisecond
			victim := n.leaderOf(sibling, operator)
			what, undo := "kill", "restart"
			switch round % 3 {
			case 1:
				what, undo = "pause", "resume"
			case 2:
				members := slices.DeleteFunc(n.membersOf(c.lock, operator), func(m int) bool { return m == operator || m == victim })
				victim = members[0] // of its own group, once it has one
			}
			if victim == operator { // it is asked, and takes the command along when it fails
				what, undo = "", ""
			}
			start := time.Now()
			c.round(func() {
				moved := make(chan struct{})
				go func() {
					defer close(moved)
					n.own(operator, c.lock, back)
				}()
				time.Sleep(phase) // the phase that is tested
				if what != "" {
					n.verb(exitOK, fmt.Sprint(what, " ", victim))
				}
				<-moved
				t.Logf("round %d, back %v: %s %d after %v; moved after %v", round, back, what, victim, phase, time.Since(start).Round(time.Millisecond))
				if undo != "" {
					n.verb(exitOK, fmt.Sprint(undo, " ", victim))
				}
			})
			t.Logf("round %d, back %v: %d commands after %v", round, back, *increments, time.Since(start).Round(time.Millisecond))
		}
	}
	c.round(func() {})
	c.check()
}
