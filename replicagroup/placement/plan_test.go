package placement

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/replicagroup/order"
)

// rig is a planner with a clock, and peers that answer its look-ups. Peer i is the i-th closest to the anchor, from 0.
type rig struct {
	*Planner
	now    automaton.Instant
	peers  []Host
	number map[keyspace.NodeID]int
	view   order.View
	// answering holds who answers look-ups: since when it has been up, and what it says beside.
	answering map[int]automaton.Instant
	clients   map[int]bool
	stores    map[int]order.StoreID // of peers that lost theirs
	lookUps   int
	events    int
	pending   []PlanAction // that drive has not seen to
	mute      map[int]bool // these answer no question, in drive
}

func newRig(f, self int) *rig {
	r := &rig{number: make(map[keyspace.NodeID]int), answering: make(map[int]automaton.Instant),
		clients: make(map[int]bool), stores: make(map[int]order.StoreID)}
	anchor, err := Anchor(genesis(3).ID(), prefix(1))
	if err != nil {
		panic(err)
	}
	for i := range 40 {
		r.peers = append(r.peers, host(i))
	}
	slices.SortFunc(r.peers, func(a, b Host) int { return keyspace.CompareDistance(anchor.Key(), a.Node(), b.Node()) })
	for i, h := range r.peers {
		r.number[h.Node()] = i
	}
	times := DefaultPlanTimes()
	r.Planner = NewPlanner(PlannerConfig{Prefix: prefix(1), Anchor: anchor, F: f, Self: r.node(self), Term: 7, Times: &times})
	return r
}

func (r *rig) node(i int) keyspace.NodeID { return r.peers[i].Node() }

func (r *rig) store(i int) order.StoreID {
	if s, ok := r.stores[i]; ok {
		return s
	}
	return r.peers[i].Store
}

// member returns replica id at peer i.
func (r *rig) member(id, i int, role order.Role) order.Member {
	return order.Member{ID: order.ReplicaID(id), Peer: r.node(i), Store: r.store(i), Role: role}
}

// do steps the planner and answers its look-ups.
func (r *rig) do(ev PlanEvent) []PlanAction {
	r.events++
	if v, ok := ev.(ViewSeen); ok && !v.Joint {
		r.view = v.View
	}
	var shown []PlanAction
	for _, a := range r.Step(ev, r.now, nil) {
		switch a.(type) {
		case Arm:
		case LookUp:
			r.lookUps++
			if c := r.found(); len(c.Peers) > 0 {
				shown = append(shown, r.do(c)...)
			}
		default:
			shown = append(shown, a)
		}
	}
	return shown
}

// tell steps the planner and leaves the actions to drive.
func (r *rig) tell(ev PlanEvent) { r.pending = append(r.pending, r.do(ev)...) }

// found is what a look-up finds now.
func (r *rig) found() (c Candidates) {
	for i := range r.peers {
		if since, ok := r.answering[i]; ok {
			c.Peers = append(c.Peers, Neighbour{Peer: r.node(i), Store: r.store(i), Up: r.now.Sub(since), Hosts: !r.clients[i]})
		}
	}
	return c
}

// run lets time pass, waking the planner when it asked for it. It ends early when the planner wants something done, if stop.
func (r *rig) run(d time.Duration, stop bool) []PlanAction {
	end := r.now.Add(d)
	var all []PlanAction
	for r.armed <= end {
		r.now = max(r.now, r.armed)
		all = append(all, r.do(Wake{})...)
		if stop && len(all) > 0 {
			return all
		}
	}
	r.now = end
	return all
}

// answer is a voter's answer to the present question.
func (r *rig) answer(from order.ReplicaID, v Verdict) EndorseAnswer {
	return EndorseAnswer{Term: 7, Round: r.round, View: r.Planner.view.Num, From: from, Verdict: v}
}

// show prints actions one per line, the askings of one round together.
func (r *rig) show(actions []PlanAction) string {
	var b strings.Builder
	var asked []string
	name := func(n keyspace.NodeID) string { return fmt.Sprintf("peer %d", r.number[n]) }
	for i, a := range actions {
		switch a := a.(type) {
		case Endorse:
			asked = append(asked, fmt.Sprint(a.To))
			if i+1 < len(actions) {
				if next, ok := actions[i+1].(Endorse); ok && next.Question.Round == a.Question.Round {
					continue
				}
			}
			fmt.Fprintf(&b, "ask %s in view %d:", strings.Join(asked, ","), a.Question.View)
			asked = nil
			for _, c := range a.Question.Add {
				fmt.Fprintf(&b, " add %s", name(c))
			}
			for _, v := range a.Question.Remove {
				m, _ := r.view.Member(v.Member)
				fmt.Fprintf(&b, " remove %d (%s, %v)", v.Member, name(m.Peer), v.Why)
			}
			b.WriteByte('\n')
		case Learn:
			fmt.Fprintf(&b, "#%d learn %s after view %d\n", a.Ref, name(a.Peer), a.From)
		case ChangeVoters:
			fmt.Fprintf(&b, "#%d change voters: promote %v remove %v after view %d\n", a.Ref, a.Promote, a.Remove, a.From)
		case DropLearner:
			fmt.Fprintf(&b, "#%d drop learner %d after view %d\n", a.Ref, a.Member, a.From)
		case TransferTo:
			fmt.Fprintf(&b, "transfer to %d\n", a.Member)
		case MayGo:
			fmt.Fprintf(&b, "%s may go\n", name(a.Peer))
		case Publish:
			fmt.Fprintf(&b, "publish view %d\n", a.View.Num)
		}
	}
	return b.String()
}

// TestPlanTraces replays the conversations in testdata/plan. Replica ids are plain numbers; peer i is the i-th closest to
// the group's anchor. Look-ups are answered at once by whoever is "up".
func TestPlanTraces(t *testing.T) {
	datadriven.Walk(t, "testdata/plan", func(t *testing.T, path string) {
		var r *rig
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			arg := func(name string) (n int) { d.ScanArgs(t, name, &n); return n }
			wait := func(name string) time.Duration {
				var s string
				d.ScanArgs(t, name, &s)
				w, err := time.ParseDuration(s)
				if err != nil {
					t.Fatal(err)
				}
				return w
			}
			numbers := func(key string) (list []int) {
				for _, a := range d.CmdArgs {
					for _, v := range a.Vals {
						var i int
						if _, err := fmt.Sscan(v, &i); a.Key == key && err == nil {
							list = append(list, i)
						}
					}
				}
				return list
			}
			switch d.Cmd {
			case "new":
				r = newRig(arg("f"), arg("self"))
				return ""
			case "view": // members as id.peer
				v := order.View{Num: uint64(arg("num")), Next: 1}
				for _, a := range d.CmdArgs {
					role := map[string]order.Role{"voters": order.Voter, "learners": order.Learner}[a.Key]
					for _, s := range a.Vals {
						var id, peer int
						if _, err := fmt.Sscanf(s, "%d.%d", &id, &peer); role == 0 || err != nil {
							continue
						}
						v.Members = append(v.Members, r.member(id, peer, role))
						v.Next = max(v.Next, order.ReplicaID(id+1))
					}
				}
				slices.SortFunc(v.Members, func(a, b order.Member) int { return int(a.ID) - int(b.ID) })
				return r.show(r.do(ViewSeen{View: v, Joint: d.HasArg("joint")}))
			case "up": // these answer look-ups from now on
				since := r.now
				if d.HasArg("for") {
					since = r.now.Add(-wait("for"))
				}
				for _, i := range numbers("peers") {
					r.answering[i] = since
				}
				return ""
			case "found": // a peer appears near the anchor
				return r.show(r.do(r.found()))
			case "gone":
				for _, i := range numbers("peers") {
					delete(r.answering, i)
				}
				return ""
			case "client":
				r.clients[arg("peer")] = !d.HasArg("not")
				return ""
			case "newstore":
				r.stores[arg("peer")] = storeID(byte(100 + arg("peer")))
				return ""
			case "suspect", "trust":
				return r.show(r.do(PeerState{Peer: r.node(arg("peer")), Live: d.Cmd == "trust"}))
			case "progress":
				ev := Progress{Member: order.ReplicaID(arg("member")), Match: uint64(arg("match")), Commit: uint64(arg("commit"))}
				if d.HasArg("moved") {
					ev.Moved = uint64(arg("moved"))
				}
				return r.show(r.do(ev))
			case "answer":
				verdict := Yes
				for v := Yes; v <= NoSense; v++ {
					if d.HasArg(strings.ReplaceAll(v.String(), " ", "-")) {
						verdict = v
					}
				}
				a := r.answer(order.ReplicaID(arg("from")), verdict)
				for key, to := range map[string]*uint64{"round": &a.Round, "view": &a.View, "term": &a.Term} {
					if d.HasArg(key) {
						*to = uint64(arg(key))
					}
				}
				return r.show(r.do(a))
			case "done":
				return r.show(r.do(ChangeDone{Ref: uint64(arg("ref")), OK: !d.HasArg("failed")}))
			case "leave":
				return r.show(r.do(LeaveWish{Peer: r.node(arg("peer"))}))
			case "run": // until the planner wants something, or the time is over
				before := r.now
				out := r.run(wait("for"), !d.HasArg("through"))
				return fmt.Sprintf("after %v\n", r.now.Sub(before).Round(time.Millisecond)) + r.show(out)
			}
			t.Fatalf("unknown command %s", d.Cmd)
			return ""
		})
	})
}
