package placement

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"latchkey/internal/automaton"
	"latchkey/replicagroup/order"
)

// leaseGenesis is a document with a lease of 60 s and a drift of 1 %.
func leaseGenesis() Genesis {
	g := genesis(3)
	g.Regenesis, g.Lease, g.DeadAfter = Leased, time.Minute, 5*time.Minute
	return g
}

const minute = automaton.Instant(time.Minute)

func TestTheWaitIsTheLeaseAndItsMargin(t *testing.T) {
	g := Defaults()
	// 2ρL/(1-ρ) of two minutes at 1 %.
	if margin := g.LeaseWait() - g.Lease; margin < 2424*time.Millisecond || margin > 2425*time.Millisecond {
		t.Errorf("margin %v", margin)
	}
}

func TestAHolderRenewsAllItsGroupsInOneRound(t *testing.T) {
	g := leaseGenesis()
	h := NewLeaseHolder(g)
	groups := make([]order.GroupID, 3)
	for i := range groups {
		groups[i] = order.GroupID{Overlay: g.ID(), Prefix: prefix(i)}
	}
	step := func(now automaton.Instant, ev HolderEvent, want ...HolderAction) {
		t.Helper()
		if got := h.Step(ev, now, nil); !reflect.DeepEqual(got, want) {
			t.Fatalf("%T at %v:\n got %v\nwant %v", ev, time.Duration(now), got, want)
		}
	}
	third := minute / 3
	step(10, Lead{groups[0]}, Hold{Group: groups[0]}, SendRenew{1, groups[:1]}, Arm{10 + third})
	step(20, Lead{groups[2]}, Hold{Group: groups[2]}) // its turn comes when this round is over
	step(30, Lead{groups[1]}, Hold{Group: groups[1]})
	step(40, Renewed{Round: 1}, Hold{groups[0], 0, 10 + minute}, SendRenew{2, groups}, Arm{40 + third})
	step(50, Renewed{Round: 1}) // twice
	step(60, Renewed{Round: 2, Refused: groups[1:2]},
		Hold{groups[0], 0, 40 + minute}, Refused{groups[1]}, Hold{groups[2], 0, 40 + minute})
	step(70, Wake{}, Arm{40 + third}) // too early
	step(40+third, Wake{}, SendRenew{3, groups}, Arm{40 + 2*third})

	// Who leads anew begins without, and what was asked for its former leadership is not its own.
	step(50+third, Follow{groups[0]})
	step(60+third, Lead{groups[0]}, Hold{Group: groups[0]})
	step(70+third, Renewed{Round: 3}, Hold{groups[1], 0, 40 + third + minute}, Hold{groups[2], 0, 40 + third + minute},
		SendRenew{4, groups}, Arm{70 + 2*third})
	// A round that failed is followed by another one soon, one without an answer after a third of the lease.
	step(80+third, NotRenewed{Round: 4}, Arm{80 + third + minute/20})
	step(80+third+minute/20, Wake{}, SendRenew{5, groups}, Arm{80 + 2*third + minute/20})
	step(80+2*third+minute/20, Wake{}, SendRenew{6, groups}, Arm{80 + 3*third + minute/20})
	step(2*minute, NotRenewed{Round: 5}, SendRenew{7, groups}, Arm{2*minute + third})
	for _, g := range groups {
		h.Step(Follow{g}, 2*minute+1, nil)
	}
	if out := h.Step(Renewed{Round: 7}, 2*minute+2, nil); !slices.Contains(out, HolderAction(Arm{automaton.Never})) || len(out) != 1 {
		t.Errorf("a peer that leads nothing does %v", out)
	}
}

func TestALaterGenerationIsInQuarantineWhereKeysHaveGroups(t *testing.T) {
	g := leaseGenesis()
	for _, own := range []bool{false, true} {
		g.OwnGroups = own
		for gen := range uint64(2) {
			h := NewLeaseHolder(g)
			group := order.GroupID{Overlay: g.ID(), Prefix: prefix(1), Gen: gen}
			h.Step(Lead{group}, 100, nil)
			want := Hold{Group: group, Until: 100 + minute}
			if own && gen > 0 {
				want.From = automaton.Instant(100).Add(g.LeaseWait())
			}
			if out := h.Step(Renewed{Round: 1}, 200, nil); out[0] != HolderAction(want) {
				t.Errorf("own groups %v, generation %d: %v, want %v", own, gen, out, want)
			}
		}
	}
}

// grantorWorld is a grantor that leads over one child whose members have reported in.
type grantorWorld struct {
	*LeaseGrantor
	t     *testing.T
	g     Genesis
	group order.GroupID
	now   automaton.Instant
}

func newGrantorWorld(t *testing.T) *grantorWorld {
	g := leaseGenesis()
	d := NewDirectory(g, g.RootGroup())
	w := &grantorWorld{LeaseGrantor: NewLeaseGrantor(g, d), t: t, g: g, group: order.GroupID{Overlay: g.ID(), Prefix: prefix(1)}}
	apply(t, d, Command{Kind: Create, Prefix: prefix(1), Members: hosts(3)})
	for i, h := range hosts(3) {
		apply(t, d, Command{Kind: Reported, Prefix: prefix(1), Replica: order.ReplicaID(i + 1), Store: h.Store})
	}
	w.step(Leads{On: true})
	return w
}

// step returns what is done, without timers.
func (w *grantorWorld) step(ev GrantorEvent) []GrantorAction {
	return slices.DeleteFunc(w.Step(ev, w.now, nil), func(a GrantorAction) bool { _, timer := a.(Arm); return timer })
}

func (w *grantorWorld) does(ev GrantorEvent, want ...GrantorAction) {
	w.t.Helper()
	if got := w.step(ev); len(got) != len(want) || len(got) > 0 && !reflect.DeepEqual(got, want) {
		w.t.Fatalf("%T at %v:\n got %+v\nwant %+v", ev, time.Duration(w.now), got, want)
	}
}

func (w *grantorWorld) child() Child {
	ch, _ := w.directory.Lookup(w.group.Prefix)
	return ch
}

func TestAGrantorGrantsAfterARoundThatBeganLater(t *testing.T) {
	w := newGrantorWorld(t)
	groups := []order.GroupID{w.group}
	w.does(Renew{1, groups}, StartRound{1})
	w.does(Renew{2, groups}) // that round began before it came
	w.does(Renew{3, groups})
	w.does(RoundEnded{Round: 1, OK: true, Own: automaton.Never}, AnswerRenew{Ref: 1, OK: true}, StartRound{2})
	w.does(RoundEnded{Round: 1, OK: true, Own: automaton.Never}) // twice
	w.does(RoundEnded{Round: 2}, AnswerRenew{Ref: 2}, AnswerRenew{Ref: 3})

	// Generations that do not live are refused, by name.
	dead, unknown := w.group, w.group
	dead.Gen, unknown.Prefix = 1, prefix(2)
	w.does(Renew{4, []order.GroupID{dead, w.group, unknown}}, StartRound{3})
	w.does(RoundEnded{Round: 3, OK: true, Own: automaton.Never}, AnswerRenew{Ref: 4, OK: true, Refused: []order.GroupID{dead, unknown}})

	// A chain of leases: a parent whose own lease is over when the round ends grants nothing.
	w.now = 100
	w.does(Renew{5, groups}, StartRound{4})
	w.does(RoundEnded{Round: 4, OK: true, Own: 100}, AnswerRenew{Ref: 5})
	w.does(Renew{6, groups}, StartRound{5})
	w.does(Leads{}, AnswerRenew{Ref: 6}) // whoever waits hears of it when the leader is deposed
	w.does(RoundEnded{Round: 5, OK: true, Own: automaton.Never})
	w.does(Renew{7, groups}, AnswerRenew{Ref: 7})
}

func TestAGrantorHasRoomForSoManyRenewals(t *testing.T) {
	w := newGrantorWorld(t)
	for i := range uint64(RenewalsMax) {
		for _, a := range w.step(Renew{Ref: i}) {
			if _, ok := a.(StartRound); !ok {
				t.Fatalf("renewal %d: %v", i, a)
			}
		}
	}
	w.does(Renew{Ref: RenewalsMax}, AnswerRenew{Ref: RenewalsMax})
	if out := w.step(RoundEnded{Round: 1}); len(out) != 2 { // the first one's answer, and the next round
		t.Fatalf("%d actions", len(out))
	}
	w.does(Renew{Ref: RenewalsMax + 1})
}

func TestASilentGroupIsRevivedAfterItsLeaseAndDeadAfter(t *testing.T) {
	w := newGrantorWorld(t)
	wait := automaton.Instant(w.g.LeaseWait())
	w.now = wait - 1
	w.does(Wake{})
	w.now = wait
	w.does(Wake{}, CallRoll{w.child()})
	w.does(Wake{}) // one at a time
	w.does(RollCalled{Group: w.group})
	if w.MayRevive(w.group, w.now) {
		t.Fatal("may be revived before it counts as dead")
	}
	w.now += automaton.Instant(rollEvery)
	w.does(Wake{}, CallRoll{w.child()})
	// A majority answers: it lives, and the time begins anew.
	w.does(RollCalled{Group: w.group, Majority: true})
	w.now += automaton.Instant(rollEvery)
	began := w.now
	for ; w.now.Sub(began) < w.g.DeadAfter; w.now += automaton.Instant(rollEvery) {
		w.does(Wake{}, CallRoll{w.child()})
		w.does(RollCalled{Group: w.group})
	}
	w.does(Wake{}, CallRoll{w.child()})
	w.does(RollCalled{Group: w.group}, Regenerate{w.child()})

	// It renews after all: then nothing may be proposed, and the time begins anew.
	w.does(Renew{1, []order.GroupID{w.group}}, StartRound{1})
	w.does(RoundEnded{Round: 1, OK: true, Own: automaton.Never}, AnswerRenew{Ref: 1, OK: true})
	if w.MayRevive(w.group, w.now) {
		t.Fatal("may be revived while it has a lease")
	}
	w.does(RevivalEnded{w.group})
	w.now += wait - 1
	w.does(Wake{})
	w.now++
	w.does(Wake{}, CallRoll{w.child()})
	w.now = w.now.Add(w.g.DeadAfter)
	w.does(RollCalled{Group: w.group}, Regenerate{w.child()})
	if !w.MayRevive(w.group, w.now) {
		t.Fatal("may not be revived though it is dead")
	}
	// From now on nothing is granted any more, whatever becomes of the command; which is proposed again until it is executed.
	w.does(Renew{2, []order.GroupID{w.group}}, StartRound{2})
	w.does(RoundEnded{Round: 2, OK: true, Own: automaton.Never}, AnswerRenew{Ref: 2, OK: true, Refused: []order.GroupID{w.group}})
	w.does(RevivalEnded{w.group})
	w.now = w.now.Add(rollOften)
	w.does(Wake{}, Regenerate{w.child()})
	if res := apply(t, w.directory, Command{Kind: Revive, Prefix: prefix(1), Gen: 0, Members: hosts(3)}); res.Status != OK {
		t.Fatal(res.Status)
	}
	w.does(RevivalEnded{w.group})
	w.does(Wake{})
	if w.MayRevive(w.group, w.now) || len(w.watches) != 1 {
		t.Errorf("a generation that is over is watched: %v", w.watches)
	}
	// The next one has not reported in: it is left alone for longer.
	w.now = w.now.Add(w.g.LeaseWait() + unstartedWait - 1)
	w.does(Wake{})
	w.now++
	w.does(Wake{}, CallRoll{w.child()})
}

func TestANewLeaderBeginsToWaitAnew(t *testing.T) {
	w := newGrantorWorld(t)
	w.now = automaton.Instant(w.g.LeaseWait()) - 1
	w.does(Leads{})
	w.does(Leads{On: true})
	w.now = w.now.Add(w.g.LeaseWait() - 1)
	w.does(Wake{})
	w.now++
	w.does(Wake{}, CallRoll{w.child()})
	w.does(Leads{})
	w.now = w.now.Add(w.g.DeadAfter)
	w.does(RollCalled{Group: w.group}) // it does not lead any more
	if w.MayRevive(w.group, w.now) {
		t.Error("who does not lead may revive")
	}
}

func TestAnOperatorsWordEndsALeaseAndNothingSooner(t *testing.T) {
	w := newGrantorWorld(t)
	w.now = 1000
	w.does(Doom{w.group})
	w.does(Renew{1, []order.GroupID{w.group}}, StartRound{1})
	w.does(RoundEnded{Round: 1, OK: true, Own: automaton.Never}, AnswerRenew{Ref: 1, OK: true, Refused: []order.GroupID{w.group}})
	w.now = automaton.Instant(w.g.LeaseWait()) - 1 // of the beginning, which counts as a grant
	w.does(Wake{})
	if w.MayRevive(w.group, w.now) {
		t.Fatal("may be revived while it may have a lease")
	}
	w.now++
	w.does(Wake{}, Regenerate{w.child()})
	if !w.MayRevive(w.group, w.now) {
		t.Error("may not be revived")
	}
	other := w.group
	other.Gen = 7
	w.does(Doom{other}) // does not live
}
