package sigma

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
)

// TestAHandOverIsOneRoundTrip has clients take one lock in turns, each asking again as soon as it has given the lock back, over a network
// whose delays are equal. RELEASE to the voters and GRANT to the next is all that a hold waits for: two one-way delays. Twelve messages a
// hold are the three of each kind: nobody yields, installs or polls, and who has the lock soon is not told before that it is queued. What a hand-over takes longer on real hosts is theirs.
func TestAHandOverIsOneRoundTrip(t *testing.T) {
	for _, k := range []int{2, 8, 32} {
		const holds = 500
		rounds, sent := takeTurns(t, k, holds)
		t.Logf("%d clients: %.3f one-way delays and %.2f messages a hold", k, float64(rounds)/holds, float64(sent)/holds)
		if rounds > 2*holds+10 || sent > 12*holds+10*k {
			t.Errorf("%d clients: %d holds took %d one-way delays and %d messages", k, holds, rounds, sent)
		}
	}
}

func takeTurns(t *testing.T, clients, holds int) (rounds, sent int) {
	type hop struct {
		from, to keyspace.NodeID
		msg      Message
	}
	log := LogState{Descriptor: Descriptor{View: ViewID{1, 1}, Members: ids(1, 2, 3)}, Ceil: Block, Cap: time.Minute}
	voters, cls := make(map[keyspace.NodeID]*Replica), make(map[keyspace.NodeID]*Client)
	for b := byte(1); b < 4; b++ {
		voters[id(b)] = NewReplica(ReplicaConfig{Self: id(b), Inc: 1, TTLMin: 1, TTLMax: time.Minute}, log)
	}
	var (
		mail    []hop
		now     = automaton.Instant(1)
		clock   uint64
		held    int
		perform func(n keyspace.NodeID, out []Action)
	)
	begin := func(n keyspace.NodeID) {
		for _, c := range cls {
			clock = max(clock, c.Clock())
		}
		cls[n] = NewClient(ClientConfig{
			Name: "n", Req: Req{Session{n[0]}, uint64(held + 1)}, TTL: 10 * time.Second, View: log.Descriptor, Repeat: true, Patient: true, Clock: clock,
		})
		perform(n, cls[n].Step(Event{Kind: Begin, Now: now}, nil))
	}
	perform = func(n keyspace.NodeID, out []Action) {
		for i := range out {
			switch a := &out[i]; a.Kind {
			case Send:
				sent++
				mail = append(mail, hop{n, a.To, a.Msg})
			case Acquired:
				held++
				perform(n, cls[n].Step(Event{Kind: GiveBack, Now: now}, nil))
			case Returned:
				begin(n)
			}
		}
	}
	for i := range clients {
		begin(id(byte(10 + i)))
	}
	for ; held < holds; rounds++ {
		if len(mail) == 0 {
			t.Fatalf("nothing is on its way after %d holds", held)
		}
		was := mail
		mail, now = nil, now.Add(100*time.Microsecond)
		for i := range was {
			ev := Event{Kind: Receive, Now: now, From: was[i].from, Msg: &was[i].msg}
			if r := voters[was[i].to]; r != nil {
				perform(was[i].to, r.Step(ev, nil))
			} else {
				perform(was[i].to, cls[was[i].to].Step(ev, nil))
			}
		}
	}
	return rounds, sent
}

// BenchmarkResting tells what a replica takes that has nothing, as its host keeps it until the longest lease is over; and one with locks
// that are held.
func BenchmarkResting(b *testing.B) {
	for _, held := range []int{0, 1000} {
		b.Run(fmt.Sprint(held), func(b *testing.B) {
			count := max(1, 2000/max(1, held/10))
			log := LogState{Descriptor: Descriptor{View: ViewID{1, 1}, Members: ids(1, 2, 3)}, Ceil: Block, Cap: time.Minute}
			for range b.N {
				all := make([]*Replica, count)
				before := heap()
				for i := range all {
					all[i] = NewReplica(ReplicaConfig{Self: id(1), Inc: 1, TTLMin: 1, TTLMax: time.Minute}, log)
					for j := range held {
						all[i].Step(Event{Kind: Receive, Now: 1, From: id(10), Msg: &Message{
							Kind: Request, View: log.View, Name: fmt.Sprintf("a lock with a name %07d", j), Req: Req{Session{1, byte(j), byte(j >> 8)}, 1}, TTL: time.Minute,
						}}, nil)
					}
				}
				b.ReportMetric(float64(heap()-before)/float64(count*max(1, held)), "bytes/each")
				runtime.KeepAlive(all)
			}
		})
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A patient waiter is told of its place only if it has to wait, once, and with its own place; whoever asks again is answered.
func TestAPatientWaiterIsToldOnlyIfItHasToWait(t *testing.T) {
	d := newDesk(t, 1, 2, 3)
	told := make(map[keyspace.NodeID]int)
	d.lost = func(l letter) bool {
		if l.msg.Kind == Queued {
			told[l.to]++
		}
		return false
	}
	begin := func(b byte, patient bool) {
		d.client(b, ClientConfig{Patient: patient})
		d.begin(b)
		d.deliver()
	}
	begin(10, true)
	begin(11, true)
	if len(told) > 0 {
		t.Fatalf("told at once: %v", told)
	}
	d.giveBack(10)
	d.deliver()
	d.want(11, ClientHeld)
	begin(12, true)
	begin(13, false)
	if told[id(12)] > 0 || told[id(13)] != 3 {
		t.Fatalf("%d patient, %d impatient", told[id(12)], told[id(13)])
	}
	d.pass(queuedAfter)
	d.deliver()
	if w := d.saw(12, Waiting); told[id(12)] != 3 || told[id(11)] > 0 || w == nil || w.Msg.Position != 0 || w.Msg.Owner.Session != (Session{11}) {
		t.Fatalf("told %v, %+v", told, w)
	}
	d.pass(queuedAfter)
	if told[id(12)] != 3 {
		t.Error("told twice")
	}
	d.pass(time.Second) // a poll
	d.deliver()
	if told[id(12)] <= 3 {
		t.Error("a poll has no answer")
	}
}
