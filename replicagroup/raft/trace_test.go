package raft

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	pb "go.etcd.io/raft/v3/raftpb"

	"latchkey/replicagroup/order"
)

// stage is a group whose every event a trace file names; what the engines ask for is printed. Disks and links wait for their
// cue: "settle" lets them work until nothing is left.
type stage struct {
	cfg     Config
	engines map[order.ReplicaID]*Engine
	disks   map[order.ReplicaID]*disk
	writes  map[order.ReplicaID][]order.Persist
	stored  map[order.ReplicaID]uint64
	held    map[order.ReplicaID][]order.Send
	wire    []flight
	away    map[order.ReplicaID]bool // hears nothing
	out     strings.Builder
}

type flight struct {
	from order.ReplicaID
	send order.Send
}

// TestTraces replays the conversations in testdata/traces; -rewrite writes down what the engines do now.
func TestTraces(t *testing.T) {
	datadriven.Walk(t, "testdata/traces", func(t *testing.T, path string) {
		var s *stage
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd == "group" {
				var voters, learners int
				d.ScanArgs(t, "voters", &voters)
				d.MaybeScanArgs(t, "learners", &learners)
				s = newStage(testView(voters, learners))
				if beats := 0; d.HasArg("quiesce") {
					d.ScanArgs(t, "quiesce", &beats)
					s.cfg.Quiesce = time.Duration(beats) * HeartbeatDefault
				}
				for _, m := range s.cfg.View.Members {
					s.start(t, m.ID)
				}
				return s.flush()
			}
			s.command(t, d)
			return s.flush()
		})
	})
}

func newStage(v order.View) *stage {
	return &stage{
		cfg: Config{Group: testGroup, View: v}, engines: map[order.ReplicaID]*Engine{}, disks: map[order.ReplicaID]*disk{},
		writes: map[order.ReplicaID][]order.Persist{}, stored: map[order.ReplicaID]uint64{}, held: map[order.ReplicaID][]order.Send{},
		away: map[order.ReplicaID]bool{},
	}
}

func (s *stage) flush() string {
	defer s.out.Reset()
	if s.out.Len() == 0 {
		return "nothing\n"
	}
	return s.out.String()
}

func (s *stage) start(t *testing.T, id order.ReplicaID) {
	m, _ := s.cfg.View.Member(id)
	cfg := s.cfg
	cfg.Self, cfg.Store = id, m.Store
	if s.disks[id] == nil {
		s.disks[id] = &disk{}
	}
	e, err := New(cfg, s.disks[id].image())
	if err != nil {
		t.Fatal(err)
	}
	s.engines[id], s.writes[id], s.held[id], s.stored[id] = e, nil, nil, 0
	s.step(id, order.Rand{Bits: uint64(id)})
}

func (s *stage) command(t *testing.T, d *datadriven.TestData) {
	var id, to order.ReplicaID
	var ref uint64
	var n uint64
	if d.HasArg("at") {
		d.ScanArgs(t, "at", &n)
		id = order.ReplicaID(n)
	}
	if d.HasArg("of") {
		d.ScanArgs(t, "of", &n)
		to = order.ReplicaID(n)
	}
	d.MaybeScanArgs(t, "ref", &ref)
	switch d.Cmd {
	case "timer":
		times := 1
		d.MaybeScanArgs(t, "times", &times)
		for range times {
			s.step(id, order.Timer{Kind: tickTimer, Epoch: s.engines[id].clock.epoch})
		}
	case "propose":
		s.step(id, order.Propose{Ref: ref, Cmd: command(ref)})
	case "read":
		s.step(id, order.Read{Ref: ref})
	case "suspect":
		s.step(id, order.Suspect{Member: to})
	case "trust":
		s.step(id, order.Trust{Member: to})
	case "quiesce": // says again, for replica of, what it said when it fell asleep
		e := s.engines[to]
		m := &pb.Message{Type: msgQuiesce.Enum(), From: new(uint64(to)), To: new(uint64(id)), Term: &e.term, Commit: &e.commit}
		s.step(id, order.Recv{From: to, Store: s.cfg.View.Members[to-1].Store, Msg: appendMessage(nil, m)})
	case "link-up":
		s.step(id, order.Link{To: to, Up: true})
	case "compact":
		s.step(id, order.Compact{Index: s.engines[id].applied, Data: []byte("machine")})
	case "store":
		s.store(id)
	case "deliver":
		s.deliver()
	case "settle":
		for s.deliver() || s.storeAll() {
		}
	case "away":
		s.away[id] = true
	case "back":
		delete(s.away, id)
	case "restart":
		s.start(t, id)
	case "status":
		for _, m := range s.cfg.View.Members {
			st := s.engines[m.ID].Status()
			asleep := ""
			if st.Quiesced {
				asleep = " asleep"
			}
			fmt.Fprintf(&s.out, "%d: leader %d leading %v term %d commit %d applied %d log %d-%d%s\n",
				m.ID, st.Leader, st.Leading, st.Term, st.Commit, st.Applied, st.First, st.Last, asleep)
		}
	default:
		t.Fatalf("%s: unknown command %s", d.Pos, d.Cmd)
	}
}

func (s *stage) deliver() bool {
	wire := s.wire
	s.wire = nil
	for _, f := range wire {
		if !s.away[f.send.To] && !s.away[f.from] {
			m, _ := s.cfg.View.Member(f.from)
			s.step(f.send.To, order.Recv{From: f.from, Store: m.Store, Msg: f.send.Whole()})
		}
	}
	return len(wire) > 0
}

func (s *stage) storeAll() bool {
	any := false
	for _, m := range s.cfg.View.Members {
		any = s.store(m.ID) || any
	}
	return any
}

func (s *stage) store(id order.ReplicaID) bool {
	writes := s.writes[id]
	s.writes[id] = nil
	for _, p := range writes {
		for _, r := range p.Records {
			s.disks[id].write(r)
		}
		s.stored[id] = p.Seq
		held := s.held[id]
		s.held[id] = nil
		for _, h := range held {
			s.send(id, h)
		}
		s.step(id, order.Stored{Seq: p.Seq})
	}
	return len(writes) > 0
}

func (s *stage) send(id order.ReplicaID, m order.Send) {
	if m.After > s.stored[id] {
		s.held[id] = append(s.held[id], m)
	} else {
		s.wire = append(s.wire, flight{id, m})
	}
}

func (s *stage) step(id order.ReplicaID, ev order.Event) {
	var out order.Actions
	s.engines[id].Step(ev, &out)
	name := strings.ToLower(strings.TrimPrefix(fmt.Sprintf("%T", ev), "order."))
	if r, ok := ev.(order.Recv); ok {
		m, _ := decodeMessage(r.Msg)
		name = fmt.Sprintf("%v from %d", typeName(m), r.From)
	}
	before := s.out.Len()
	line := func(format string, args ...any) {
		fmt.Fprintf(&s.out, "  "+format+"\n", args...)
	}
	head := fmt.Sprintf("%d %s\n", id, name)
	s.out.WriteString(head)
	for _, p := range out.Persist {
		var recs []string
		for _, r := range p.Records {
			recs = append(recs, describeRecord(r))
		}
		line("write %d: %s", p.Seq, strings.Join(recs, ", "))
		s.writes[id] = append(s.writes[id], p)
	}
	for _, m := range out.Send {
		msg, _ := decodeMessage(m.Whole())
		after := ""
		if m.After > 0 {
			after = fmt.Sprintf(" after write %d", m.After)
		}
		line("-> %d %s%s", m.To, describe(msg), after)
		s.send(id, m)
	}
	for _, t := range out.Timers {
		if t.After < 0 {
			line("no timer")
			continue
		}
		line("timer in %v", t.After.Truncate(1e6))
	}
	for _, in := range out.Install {
		line("install %d: %s", in.Index, in.Data)
	}
	for _, e := range out.Deliver {
		line("entry %d: %s", e.Index, e.Cmd.Data)
	}
	for _, o := range out.Done {
		line("done %d at %d: %v", o.Ref, o.Index, o.Err)
	}
	for _, r := range out.ReadOK {
		line("read %d at %d", r.Ref, r.Index)
	}
	if s.out.Len() == before+len(head) {
		kept := s.out.String()[:before]
		s.out.Reset()
		s.out.WriteString(kept) // nothing came of it
	}
	if n := len(out.Deliver); n > 0 {
		s.step(id, order.Applied{Index: out.Deliver[n-1].Index})
	} else if n := len(out.Install); n > 0 {
		s.step(id, order.Applied{Index: out.Install[n-1].Index})
	}
}

func describeRecord(r order.Record) string {
	switch r.Kind {
	case order.RecordState:
		s, _ := decodeState(r.Data)
		return fmt.Sprintf("state term %d vote %d commit %d", s.term, s.vote, s.commit)
	case order.RecordSnapshot:
		return fmt.Sprintf("snapshot %d", r.Index)
	}
	return fmt.Sprintf("entry %d", r.Index)
}

func typeName(m *pb.Message) string {
	switch m.GetType() {
	case msgQuiesce:
		return "Quiesce"
	case msgWake:
		return "Wake"
	}
	return m.GetType().String()
}

func describe(m *pb.Message) string {
	b := fmt.Sprintf("%v term %d", typeName(m), m.GetTerm())
	switch m.GetType() {
	case msgQuiesce:
		b += fmt.Sprintf(" commit %d", m.GetCommit())
	case pb.MsgApp:
		b += fmt.Sprintf(" after %d/%d, %d entries, commit %d", m.GetIndex(), m.GetLogTerm(), len(m.GetEntries()), m.GetCommit())
	case pb.MsgAppResp:
		b += fmt.Sprintf(" index %d", m.GetIndex())
	case pb.MsgVote, pb.MsgPreVote:
		b += fmt.Sprintf(" log %d/%d", m.GetIndex(), m.GetLogTerm())
	case pb.MsgHeartbeat:
		b += fmt.Sprintf(" commit %d", m.GetCommit())
	case pb.MsgSnap:
		b += fmt.Sprintf(" snapshot %d", m.GetSnapshot().GetMetadata().GetIndex())
	}
	if len(m.GetContext()) > 0 {
		b += fmt.Sprintf(" round %d", m.GetContext()[0])
	}
	if m.GetReject() {
		b += " rejected"
	}
	return b
}
