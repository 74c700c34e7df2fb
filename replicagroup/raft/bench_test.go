package raft

import (
	"fmt"
	"testing"
	"time"

	etcd "go.etcd.io/raft/v3"

	"latchkey/replicagroup/order"
)

// trio is three engines in one goroutine whose disks and links take no time.
type trio struct {
	engines [3]*Engine
	out     order.Actions
	queue   []struct {
		to int
		ev order.Event
	}
	commits int
}

func newTrio(tb testing.TB) *trio {
	var w trio
	view := testView(3, 0)
	for i := range w.engines {
		e, err := New(Config{Group: testGroup, Self: order.ReplicaID(i + 1), Store: view.Members[i].Store, View: view}, order.Image{})
		if err != nil {
			tb.Fatal(err)
		}
		w.engines[i] = e
		w.push(i, order.Rand{Bits: uint64(i)})
	}
	w.run()
	w.push(0, order.Timer{Kind: tickTimer, Epoch: w.engines[0].clock.epoch})
	w.run()
	if _, leading := w.engines[0].Leader(); !leading {
		tb.Fatal("nobody leads")
	}
	return &w
}

func (w *trio) push(to int, ev order.Event) {
	w.queue = append(w.queue, struct {
		to int
		ev order.Event
	}{to, ev})
}

func (w *trio) run() {
	for i := 0; i < len(w.queue); i++ {
		at := w.queue[i].to
		w.out.Reset()
		w.engines[at].Step(w.queue[i].ev, &w.out)
		for _, p := range w.out.Persist {
			w.push(at, order.Stored{Seq: p.Seq})
		}
		// A send that waits for a write leaves after the Stored event above, and arrives after it.
		for _, s := range w.out.Send {
			w.push(int(s.To)-1, order.Recv{From: order.ReplicaID(at + 1), Store: order.StoreID{byte(at + 1)}, Msg: s.Whole()})
		}
		if n := len(w.out.Deliver); n > 0 {
			w.push(at, order.Applied{Index: w.out.Deliver[n-1].Index})
		}
		w.commits += len(w.out.Done)
	}
	w.queue = w.queue[:0]
}

func (w *trio) compact() {
	for i, e := range w.engines {
		w.push(i, order.Compact{Index: e.applied})
	}
	w.run()
}

// BenchmarkCommit measures one command of 128 bytes from Propose until all three replicas have applied it. Compare with
// BenchmarkLibraryCommit, the library alone under the same load.
func BenchmarkCommit(b *testing.B) {
	for _, size := range []int{128, 4096} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			w := newTrio(b)
			cmd := order.Command{Client: order.ClientID{1}, Service: "locks", Data: make([]byte, size)}
			b.ReportAllocs()
			for i := uint64(1); b.Loop(); i++ {
				w.push(0, order.Propose{Ref: i, Stamp: order.Stamp{Boot: 1, At: time.Duration(i)}, Cmd: cmd})
				w.run()
				if i%4096 == 0 {
					w.compact()
				}
			}
		})
	}
}

// BenchmarkCommitBatched proposes 64 commands before anything else happens.
func BenchmarkCommitBatched(b *testing.B) {
	w := newTrio(b)
	cmd := order.Command{Client: order.ClientID{1}, Service: "locks", Data: make([]byte, 128)}
	b.ReportAllocs()
	for i := uint64(1); b.Loop(); i++ {
		w.push(0, order.Propose{Ref: i, Stamp: order.Stamp{Boot: 1, At: time.Duration(i)}, Cmd: cmd})
		if i%64 == 0 {
			w.run()
		}
		if i%4096 == 0 {
			w.compact()
		}
	}
}

// BenchmarkCommitTogether proposes 64 commands at once.
func BenchmarkCommitTogether(b *testing.B) {
	w := newTrio(b)
	cmd := order.Command{Client: order.ClientID{1}, Service: "locks", Data: make([]byte, 128)}
	all := make([]order.Propose, 0, 64)
	b.ReportAllocs()
	for i := uint64(1); b.Loop(); i++ {
		if all = append(all, order.Propose{Ref: i, Stamp: order.Stamp{Boot: 1, At: time.Duration(i)}, Cmd: cmd}); i%64 == 0 {
			w.push(0, order.ProposeAll{List: all})
			w.run()
			all = all[:0]
		}
		if i%4096 == 0 {
			w.compact()
		}
	}
}

func BenchmarkRead(b *testing.B) {
	w := newTrio(b)
	b.ReportAllocs()
	for i := uint64(1); b.Loop(); i++ {
		w.push(0, order.Read{Ref: i})
		w.run()
	}
}

func BenchmarkHash(b *testing.B) {
	w := newTrio(b)
	cmd := order.Command{Client: order.ClientID{1}, Service: "locks", Data: make([]byte, 128)}
	b.ReportAllocs()
	for i := uint64(1); b.Loop(); i++ {
		if i%8 == 0 {
			b.StopTimer()
			w.push(0, order.Propose{Ref: i, Cmd: cmd})
			w.run()
			b.StartTimer()
		}
		w.engines[0].Hash()
	}
}

// BenchmarkLibraryCommit is the yardstick: three RawNodes of the library, messages passed by pointer, memory storage.
func BenchmarkLibraryCommit(b *testing.B) {
	var nodes [3]*etcd.RawNode
	var logs [3]*memLog
	view := testView(3, 0)
	for i := range nodes {
		s := snapshot{group: testGroup, index: genesisIndex, term: genesisTerm, view: view}
		l := &memLog{initial: &initial{state{term: 1, commit: genesisIndex}, snapshot{index: genesisIndex, view: view}.conf(0)}}
		l.restore(s.message(encodeSnapshot(s)))
		rn, err := etcd.NewRawNode(&etcd.Config{
			ID: uint64(i + 1), ElectionTick: 10, HeartbeatTick: 1, Storage: l, AsyncStorageWrites: true, MaxSizePerMsg: appendBytesMax,
			MaxInflightMsgs: 64, CheckQuorum: true, PreVote: true, Logger: silent{},
		})
		if err != nil {
			b.Fatal(err)
		}
		nodes[i], logs[i] = rn, l
	}
	drain := func() {
		for busy := true; busy; {
			busy = false
			for i, rn := range nodes {
				for rn.HasReady() {
					busy = true
					for _, m := range rn.Ready().Messages {
						switch m.GetTo() {
						case etcd.LocalAppendThread:
							logs[i].append(m.GetEntries())
							fallthrough
						case etcd.LocalApplyThread:
							for _, r := range m.GetResponses() {
								_ = nodes[r.GetTo()-1].Step(r)
							}
						default:
							_ = nodes[m.GetTo()-1].Step(m)
						}
					}
				}
			}
		}
	}
	_ = nodes[0].Campaign()
	drain()
	data := make([]byte, 128)
	b.ReportAllocs()
	for i := 1; b.Loop(); i++ {
		if err := nodes[0].Propose(data); err != nil {
			b.Fatal(err)
		}
		drain()
		if i%4096 == 0 {
			for _, l := range logs {
				s := snapshot{group: testGroup, index: l.last(), term: l.baseTerm, view: view}
				l.compact(s.message(nil), s.index)
			}
		}
	}
}

// What it costs to wake a follower, beside what it then does: when a peer is lost, all groups it led wake at once.
func BenchmarkRouse(b *testing.B) {
	w := newWorld(b, 1, 3, 0)
	w.startAll()
	lead := w.awaitLeader(electionTimeout)
	w.commit(lead, 1, 3)
	w.awaitSleep()
	e := w.nodes[lead.id%3+1].eng
	b.ReportAllocs()
	for b.Loop() {
		e.rouse()
		e.doze()
	}
}
