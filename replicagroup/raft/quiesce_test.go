package raft

import (
	"fmt"
	"slices"
	"testing"
	"time"

	etcd "go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"latchkey/replicagroup/order"
)

// asleep reports whether everybody who is up sleeps.
func (w *world) asleep() bool {
	for _, id := range w.ids() {
		if n := w.nodes[id]; n.up && !n.eng.Quiesced() {
			return false
		}
	}
	return true
}

func (w *world) awaitSleep() {
	w.tb.Helper()
	if !w.run(10*QuiesceDefault, w.asleep) {
		for _, id := range w.ids() {
			w.tb.Errorf("%d: up %v %+v", id, w.nodes[id].up, w.nodes[id].eng.Status())
		}
		w.tb.Fatal("the group does not sleep")
	}
}

// sleepers returns a group that sleeps, and its leader.
func sleepers(t *testing.T, seed uint64, voters, learners int) (*world, *node) {
	w := newWorld(t, seed, voters, learners)
	w.startAll()
	lead := w.awaitLeader(electionTimeout)
	w.commit(lead, 1, 3)
	from := w.now
	w.awaitSleep()
	if d := w.now - from; d < QuiesceDefault-2*HeartbeatDefault || d > QuiesceDefault+5*HeartbeatDefault {
		t.Fatalf("asleep after %v", d)
	}
	w.pass(HeartbeatDefault) // timers whose epoch is over, and answers that are late
	return w, lead
}

func TestAGroupThatSleepsSetsNoTimer(t *testing.T) {
	for _, voters := range []int{1, 3, 5} {
		for seed := range uint64(10) {
			w, lead := sleepers(t, seed, voters, int(seed%2))
			if n := len(w.queue); n > 0 {
				t.Fatalf("%d events to come in a group of %d that sleeps", n, voters)
			}
			if st := lead.eng.Status(); !st.Quiesced || !st.Leading {
				t.Fatalf("%+v", st)
			}
			term := lead.eng.term
			w.pass(time.Hour)
			w.commit(lead, 4, 5)
			w.agree(3 * HeartbeatDefault)
			if lead.eng.term != term || w.leader() != lead {
				t.Fatalf("term %d after %d", lead.eng.term, term)
			}
			w.awaitSleep()
		}
	}
}

func TestAGroupNeverSleepsThatIsToldSo(t *testing.T) {
	w := newWorld(t, 1, 3, 0)
	w.cfg.Quiesce = -1
	w.startAll()
	lead := w.awaitLeader(electionTimeout)
	for range 100 {
		w.pass(HeartbeatDefault)
		for _, id := range w.ids() {
			if w.nodes[id].eng.Quiesced() {
				t.Fatalf("%d sleeps", id)
			}
		}
	}
	if w.leader() != lead {
		t.Fatal("another leader")
	}
}

// A group with something to do does not sleep, however long nobody asks for anything.
func TestALeaderDoesNotSleepWhileAMemberLacksSomething(t *testing.T) {
	for name, away := range map[string]func(lead *node) order.ReplicaID{
		"voter":   func(lead *node) order.ReplicaID { return lead.id%3 + 1 },
		"learner": func(*node) order.ReplicaID { return 4 },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 3, 3, 1)
			w.startAll()
			lead := w.awaitLeader(electionTimeout)
			w.pass(5 * HeartbeatDefault)
			id := away(lead)
			w.crash(id)
			w.commit(lead, 1, 2)
			w.pass(5 * QuiesceDefault)
			if lead.eng.Quiesced() || !lead.eng.leading() {
				t.Fatalf("%+v", lead.eng.Status())
			}
			w.start(id)
			w.awaitSleep()
			if w.leader() != lead || w.nodes[id].last != lead.last {
				t.Fatalf("%d leads; %d of %d", w.leader().id, w.nodes[id].last, lead.last)
			}
		})
	}
}

// suspect has everybody who is up suspect a member, or trust it again.
func (w *world) suspect(id order.ReplicaID, is bool) {
	for _, other := range w.ids() {
		if n := w.nodes[other]; n.up && other != id {
			if is {
				w.step(n, order.Suspect{Member: id})
			} else {
				w.step(n, order.Trust{Member: id})
			}
		}
	}
}

// A member that is gone, by the detector's word, keeps nobody awake. When it is trusted again it gets what it lacks, be it a voter, which
// would say that it is back, or a learner, which would not, and whether the leader has the log or only a snapshot of it.
func TestAGroupSleepsWithoutAMemberThatIsGone(t *testing.T) {
	for name, id := range map[string]order.ReplicaID{"voter": 2, "learner": 4} {
		for seed := range uint64(6) {
			w := newWorld(t, seed, 3, 1)
			w.startAll()
			w.step(w.nodes[1], order.Timer{Kind: tickTimer, Epoch: w.nodes[1].eng.clock.epoch})
			lead := w.awaitLeader(electionTimeout)
			if lead.id == id {
				continue
			}
			if seed%2 == 1 {
				for _, n := range w.nodes {
					n.compactAt = 4
				}
			}
			w.pass(5 * HeartbeatDefault)
			others := slices.DeleteFunc(w.ids(), func(o order.ReplicaID) bool { return o == id })
			w.split([]order.ReplicaID{id}, others)
			w.commit(lead, 1, 2+40*(seed%2))
			if w.pass(5 * QuiesceDefault); lead.eng.Quiesced() {
				t.Fatalf("%s: it sleeps though a member lacks something that nobody suspects", name)
			}
			w.suspect(id, true)
			asleep := func() bool {
				return !slices.ContainsFunc(others, func(o order.ReplicaID) bool { return !w.nodes[o].eng.Quiesced() })
			}
			if !w.run(2*QuiesceDefault, asleep) {
				t.Fatalf("%s: the others do not sleep: %+v", name, lead.eng.Status())
			}
			if lead.eng.raft != nil {
				t.Errorf("%s: the leader sleeps with all it has", name)
			}
			if st := lead.eng.Status(); st.Behind[id] == 0 || st.Match[others[len(others)-1]] != st.Last && st.Match[others[0]] != st.Last {
				t.Errorf("%s: %+v", name, st)
			}
			term := lead.eng.term
			w.pass(QuiesceDefault)
			w.split()
			w.suspect(id, false)
			w.awaitSleep()
			if n := w.nodes[id]; n.last != lead.last || w.leader() != lead || lead.eng.term != term {
				t.Fatalf("%s: seed %d: it has %d of %d", name, seed, n.last, lead.last)
			}
			w.agree(0)
		}
	}
}

// Without a majority to go on with a leader does not sleep: it has to find out that it leads nobody.
func TestALeaderDoesNotSleepWithoutAMajority(t *testing.T) {
	w := newWorld(t, 2, 3, 0)
	w.startAll()
	lead := w.awaitLeader(electionTimeout)
	w.pass(5 * HeartbeatDefault)
	gone, there := lead.id%3+1, (lead.id+1)%3+1
	w.crash(gone)
	w.commit(lead, 1, 2)
	w.step(lead, order.Suspect{Member: gone})
	w.step(lead, order.Suspect{Member: there})
	if w.pass(5 * QuiesceDefault); lead.eng.Quiesced() {
		t.Fatalf("%+v", lead.eng.Status())
	}
	w.step(lead, order.Trust{Member: there})
	if w.awaitSleep(); w.leader() != lead {
		t.Fatal("another leads")
	}
}

// An answer to a heartbeat of before the sleep confirms no read that was asked for after it.
func TestALateAnswerConfirmsNoReadOfAfterTheSleep(t *testing.T) {
	w := newWorld(t, 3, 3, 0)
	w.startAll()
	lead := w.awaitLeader(electionTimeout)
	w.commit(lead, 1, 2)
	var late []order.Recv
	w.drop = func(m *pb.Message) bool {
		if m.GetType() == pb.MsgHeartbeatResp && len(m.GetContext()) > 0 {
			from := w.member(order.ReplicaID(m.GetFrom()))
			late = append(late, order.Recv{From: from.ID, Store: from.Store, Msg: appendHead(nil, m)})
		}
		return false
	}
	for ref := range uint64(5) {
		w.step(lead, order.Read{Ref: 100 + ref})
		w.pass(HeartbeatDefault / 2)
		if _, ok := lead.reads[100+ref]; !ok {
			t.Fatal("a read is not answered")
		}
	}
	w.awaitSleep()
	if lead.eng.raft != nil || len(late) < 5 {
		t.Fatalf("%d answers", len(late))
	}
	w.split([]order.ReplicaID{lead.id})
	w.step(lead, order.Read{Ref: 200})
	for _, r := range late {
		w.step(lead, r)
	}
	if _, ok := lead.reads[200]; ok {
		t.Fatal("an answer of before the sleep confirms a read of after it")
	}
	w.split()
	w.pass(5 * HeartbeatDefault)
	if _, ok := lead.reads[200]; !ok {
		t.Fatal("a read after the sleep is not answered")
	}
	w.awaitSleep()
}

// A dead leader's Quiesce may be the last that is heard of it, after the detector has given it up.
func TestNobodySleepsUnderALeaderThatIsSuspected(t *testing.T) {
	w := newWorld(t, 5, 3, 1)
	w.startAll()
	lead := w.awaitLeader(electionTimeout)
	w.pass(5 * HeartbeatDefault)
	doubter := w.nodes[lead.id%3+1]
	w.step(doubter, order.Suspect{Member: lead.id})
	w.pass(4 * QuiesceDefault)
	if doubter.eng.Quiesced() || doubter.eng.lead != lead.id || w.leader() != lead {
		t.Fatalf("%+v", doubter.eng.Status())
	}
	w.step(doubter, order.Trust{Member: lead.id})
	w.awaitSleep()

	w.step(doubter, order.Suspect{Member: 99}) // nobody
	w.step(doubter, order.Trust{Member: 99})
	for _, id := range w.ids() { // not the leader
		if id != doubter.id && id != lead.id {
			w.step(doubter, order.Suspect{Member: id})
		}
	}
	if !w.asleep() {
		t.Fatal("woken by a suspicion of another than the leader")
	}
}

// What a sleeping follower hears of its link to the leader makes it look; what a leader hears of others does when they are back.
func TestALinkToTheLeaderWakes(t *testing.T) {
	for _, up := range []bool{true, false} {
		w, lead := sleepers(t, 6, 3, 0)
		follower := w.nodes[lead.id%3+1]
		w.step(lead, order.Link{To: follower.id, Up: up})
		if lead.eng.Quiesced() == up {
			t.Fatalf("a link of the leader's, up %v: it sleeps %v", up, !up)
		}
		w.awaitSleep()
		w.step(lead, order.Link{To: 99, Up: up})
		w.step(lead, order.Link{To: lead.id, Up: up})
		if !w.asleep() {
			t.Fatal("woken by a link to nobody")
		}
		beats := lead.sent["MsgHeartbeat"]
		w.step(follower, order.Link{To: lead.id, Up: up})
		w.pass(3 * HeartbeatDefault)
		if w.asleep() || lead.sent["MsgHeartbeat"] == beats {
			t.Fatal("the follower did not look for its leader")
		}
		w.awaitSleep()
	}
}

// Whatever wrong a Quiesce says, nobody falls asleep over it that is not in step, and nobody panics.
func TestOnlyTheLeaderInStepPutsAFollowerToSleep(t *testing.T) {
	for _, role := range everyRole {
		for _, from := range []uint64{1, 3, 4, 9} {
			for term := uint64(1); term < 9; term++ {
				for commit := uint64(0); commit < 20; commit++ {
					e := inRole(t, role)
					var out order.Actions
					m := message(msgQuiesce, from, term)
					m.Commit = new(commit)
					before, last := e.commit, e.log.last()
					e.Step(recvOf(m), &out)
					if e.raft.HasReady() {
						t.Fatalf("%v: something left after %v", role, m)
					}
					if e.commit != before && (commit > last || e.commit != commit) {
						t.Fatalf("%v: commit %d after %v, it was %d of %d", role, e.commit, m, before, last)
					}
					if want := e.role == etcd.StateFollower && uint64(e.lead) == from && e.term == term && commit == last && e.writes.len() == 0; e.asleep != want {
						t.Fatalf("%v: asleep %v after %v, leader %d term %d commit %d last %d", role, e.asleep, m, e.lead, e.term, e.commit, last)
					}
					e.Step(recvOf(message(msgWake, 3, term)), &out)
					if e.asleep && e.term == term {
						t.Fatalf("%v: asleep after a Wake", role)
					}
				}
			}
		}
	}
}

// A leader that was cut off while the group slept wakes up to find that it leads no more.
func TestALeaderThatWasDeposedAsleepStepsDown(t *testing.T) {
	w, old := sleepers(t, 8, 3, 0)
	rest := []order.ReplicaID{old.id%3 + 1, (old.id+1)%3 + 1}
	w.split([]order.ReplicaID{old.id}, rest)
	for _, id := range rest {
		w.step(w.nodes[id], order.Suspect{Member: old.id})
	}
	if !w.run(electionTimeout, func() bool { return w.leader() != old }) {
		t.Fatal("nobody else leads")
	}
	lead := w.leader()
	w.commit(lead, 10, 12)
	w.pass(5 * QuiesceDefault)
	if !lead.eng.Quiesced() || !old.eng.Quiesced() { // without it, which is suspected
		t.Fatalf("%+v\n%+v", lead.eng.Status(), old.eng.Status())
	}
	w.split()
	w.step(old, order.Read{Ref: 77}) // before it hears of anything
	w.pass(3 * HeartbeatDefault)
	if _, ok := old.reads[77]; ok || old.eng.role != etcd.StateFollower {
		t.Fatalf("a deposed leader answers: %+v", old.eng.Status())
	}
	for _, id := range rest {
		w.step(w.nodes[id], order.Trust{Member: old.id})
	}
	w.awaitSleep()
	w.agree(0)
}

// A late answer to what was over before does not wake; what makes a difference does.
func TestWhichMessagesWakeALeader(t *testing.T) {
	for _, c := range []struct {
		typ   pb.MessageType
		term  int64 // relative
		wakes bool
	}{
		{pb.MsgHeartbeatResp, 0, false}, {pb.MsgHeartbeatResp, -1, false}, {pb.MsgAppResp, 0, false}, {pb.MsgVoteResp, 0, false},
		{pb.MsgPreVoteResp, 0, false}, {pb.MsgAppResp, 1, true}, {pb.MsgPreVote, 1, true}, {pb.MsgVote, 1, true}, {pb.MsgHeartbeat, 1, true},
		{msgWake, 0, true},
	} {
		w, lead := sleepers(t, 9, 3, 0)
		from := lead.id%3 + 1
		m := &pb.Message{Type: c.typ.Enum(), From: new(uint64(from)), To: new(uint64(lead.id)), Term: new(uint64(int64(lead.eng.term) + c.term)), Index: new(lead.eng.log.last())}
		if c.typ == pb.MsgPreVote || c.typ == pb.MsgVote {
			m.LogTerm = &lead.eng.term
		}
		w.step(lead, order.Recv{From: from, Store: w.member(from).Store, Msg: appendMessage(nil, m)})
		if lead.eng.Quiesced() == c.wakes {
			t.Errorf("%v of term %+d: asleep %v", c.typ, c.term, lead.eng.Quiesced())
		}
		w.awaitSleep()
	}
}

// One that was even removed while it slept, cut off, hears nothing of the others any more. It finds out when a link is back.
func TestALeaderThatWasRemovedAsleepStepsDown(t *testing.T) {
	w, old := sleepers(t, 10, 3, 0)
	rest := []order.ReplicaID{old.id%3 + 1, (old.id+1)%3 + 1}
	w.split([]order.ReplicaID{old.id}, rest)
	for _, id := range rest {
		w.step(w.nodes[id], order.Suspect{Member: old.id})
	}
	if !w.run(electionTimeout, func() bool { return w.leader() != old }) {
		t.Fatal("nobody else leads")
	}
	lead := w.leader()
	w.pass(5 * HeartbeatDefault)
	w.step(lead, order.Change{Ref: 50, From: lead.eng.view.Num, Remove: []order.ReplicaID{old.id}})
	if !w.run(5*electionTimeout, func() bool { return len(w.newest.View.Members) == 2 && !w.newest.Joint }) {
		t.Fatalf("%+v", lead.done[50])
	}
	w.awaitSleep()
	w.split()
	w.step(old, order.Link{To: rest[0], Up: true})
	w.pass(3 * electionTimeout)
	if _, leading := old.eng.Leader(); leading || old.eng.Quiesced() {
		t.Errorf("%+v", old.eng.Status())
	}
}

// A replica that was asleep does exactly what it would do had it kept all it had, whatever happens to it before, meanwhile and
// afterwards: late and early messages of all terms, suspicions, links that break, crashes, changes of leader, reads, snapshots.
func TestWhoSleptIsAsWhoDidNot(t *testing.T) {
	dozed := 0
	for seed := range uint64(40) {
		w := newWorld(t, seed, 1+2*int(seed%3), int(seed/3%2))
		w.twins, w.cfg.Quiesce, w.cfg.LeaseReads = true, HeartbeatDefault*3, seed%4 == 1
		w.dup = 0.05
		w.startAll()
		ids, ref := w.ids(), uint64(0)
		var old []order.Recv // messages of earlier times
		w.drop = func(m *pb.Message) bool {
			if w.rng.IntN(20) == 0 && m.GetType() != pb.MsgSnap {
				from := w.member(order.ReplicaID(m.GetFrom()))
				old = append(old, order.Recv{From: from.ID, Store: from.Store, Msg: appendHead(nil, m)})
			}
			return w.rng.Float64() < w.loss
		}
		some := func() *node { return w.nodes[ids[w.rng.IntN(len(ids))]] }
		for range 120 {
			w.pass(w.some(8 * HeartbeatDefault))
			n, o := some(), some()
			if !n.up {
				if w.rng.IntN(3) == 0 {
					w.start(n.id)
				}
				continue
			}
			switch w.rng.IntN(16) {
			case 0, 1:
				ref++
				w.propose(n, ref)
			case 2:
				w.step(n, order.Read{Ref: 1<<40 + ref})
				ref++
			case 3, 4:
				w.step(n, order.Suspect{Member: o.id})
				w.after(w.some(10*HeartbeatDefault), func() {
					if n.up {
						w.step(n, order.Trust{Member: o.id})
					}
				})
			case 5, 6:
				w.step(n, order.Link{To: o.id, Up: w.rng.IntN(2) == 0})
			case 7, 8, 9:
				for _, r := range old {
					if d, err := decodeMessage(r.Msg); err == nil && d.GetTo() == uint64(n.id) {
						w.step(n, r)
					}
				}
			case 10:
				if lead := w.leader(); lead != nil {
					w.step(lead, order.Transfer{To: n.id})
				}
			case 11:
				w.crash(n.id)
			case 12:
				w.loss = w.rng.Float64() / 4
			case 13:
				n.compactAt = 1 + uint64(w.rng.IntN(20))
			default:
				w.loss = 0
				w.run(20*HeartbeatDefault, w.asleep)
			}
		}
		dozed += w.dozed
	}
	if dozed < 2000 {
		t.Errorf("%d steps of replicas that sleep, which is too few to be of use", dozed)
	}
}

// Who sleeps and loses its memory then has lost nothing: it comes back with its log, term and vote as the disk has them.
func TestACrashOfASleeperIsARestart(t *testing.T) {
	for seed := range uint64(10) {
		w, lead := sleepers(t, seed, 3, 0)
		n := w.nodes[lead.id%3+1]
		if n.eng.raft != nil {
			t.Fatal("a follower sleeps with all it has")
		}
		term, last := n.eng.term, n.eng.log.last()
		w.crash(n.id)
		w.start(n.id)
		if n.eng.term != term || n.eng.log.last() != last || n.eng.asleep {
			t.Fatalf("term %d to %d after %d to %d", n.eng.term, n.eng.log.last(), term, last)
		}
		w.commit(w.awaitLeader(electionTimeout), 4, 6)
		w.awaitSleep()
		w.agree(0)
	}
}

// A message of an old term wakes a sleeper and changes nothing; one that only answers what is over does not even wake it.
func TestAMessageOfAnOldTermDeposesNobody(t *testing.T) {
	w, lead := sleepers(t, 4, 3, 0)
	n := w.nodes[lead.id%3+1]
	other := w.member((n.id)%3 + 1)
	term, hash := n.eng.term, n.eng.Hash()
	say := func(m *pb.Message) {
		m.From, m.To, m.Term = new(uint64(other.ID)), new(uint64(n.id)), new(term-1)
		w.step(n, order.Recv{From: other.ID, Store: other.Store, Msg: appendHead(nil, m)})
	}
	for _, late := range []pb.MessageType{pb.MsgAppResp, pb.MsgHeartbeatResp, pb.MsgVoteResp, pb.MsgPreVoteResp} {
		if say(&pb.Message{Type: late.Enum()}); n.eng.raft != nil || n.eng.Hash() != hash {
			t.Errorf("%v wakes a sleeper", late)
		}
	}
	for _, stale := range []pb.MessageType{pb.MsgHeartbeat, pb.MsgVote, pb.MsgPreVote, pb.MsgApp} {
		m := &pb.Message{Type: stale.Enum()}
		if stale == pb.MsgApp {
			m.Index, m.LogTerm = new(uint64(genesisIndex)), new(uint64(genesisTerm))
		}
		if say(m); n.eng.asleep || n.eng.raft == nil {
			t.Errorf("%v does not wake a sleeper", stale)
		}
		w.awaitSleep()
		if w.leader() != lead || n.eng.term != term || lead.eng.term != term {
			t.Errorf("%v deposes the leader", stale)
		}
	}
}

// A log that was folded for the time of a sleep is the one that it was, whatever is asked of it first.
func TestFoldedLogIsTheSame(t *testing.T) {
	fill := func() *memLog {
		l := &memLog{}
		l.restore(testSnapshot(10, 1, ""))
		l.append([]*pb.Entry{testEntry(1, 11, 1), {Term: new(uint64(2)), Index: new(uint64(12))}, testEntry(3, 13, 3)})
		return l
	}
	for name, look := range map[string]func(l *memLog) any{
		"last":    func(l *memLog) any { return l.last() },
		"term":    func(l *memLog) any { term, err := l.term(12); return fmt.Sprint(term, err) },
		"digest":  func(l *memLog) any { return l.digest() },
		"entries": func(l *memLog) any { ents, err := l.Entries(11, 14, 1<<20); return fmt.Sprint(ents, err) },
		"append": func(l *memLog) any {
			l.append([]*pb.Entry{testEntry(4, 12, 4)})
			return fmt.Sprint(l.last(), l.digest())
		},
		"snapshot": func(l *memLog) any {
			l.compact(testSnapshot(12, 2, "x"), 12)
			return fmt.Sprint(l.first(), l.last(), l.digest())
		},
		"install": func(l *memLog) any {
			l.restore(testSnapshot(20, 4, "x"))
			return fmt.Sprint(l.first(), l.last(), l.digest())
		},
	} {
		l := fill()
		l.fold()
		if l.ents != nil || l.folded == nil {
			t.Fatal("it is not folded")
		}
		if got, want := look(l), look(fill()); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}
