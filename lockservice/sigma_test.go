package lockservice

import (
	"testing"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/lockservice/pb"
	"latchkey/lockservice/sigma"
	sigmapb "latchkey/lockservice/sigma/pb"
	"latchkey/lockservice/table"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/session"
)

func sigmaMachine(gen uint64, voters ...byte) *Machine {
	m := NewMachine(MachineConfig{Gen: gen, TTLMax: worldTTLMax, Drift: automaton.DriftDefault, Sigma: time.Second})
	if len(voters) > 0 {
		m.FirstView(view(voters...))
	}
	return m
}

// view is one with these voters, and a learner.
func view(voters ...byte) order.View {
	v := order.View{Members: []order.Member{{ID: 99, Peer: keyspace.NodeID{99}, Role: order.Learner}}}
	for _, b := range voters {
		v.Members = append(v.Members, order.Member{ID: order.ReplicaID(b), Peer: keyspace.NodeID{b}, Role: order.Voter})
	}
	return v
}

func nodes(bs ...byte) (out []keyspace.NodeID) {
	for _, b := range bs {
		out = append(out, keyspace.NodeID{b})
	}
	return out
}

func at(now time.Duration) session.Context {
	return session.Context{Now: now, Emit: func(order.ClientID, []byte) {}}
}

func entry(t *testing.T, e sigma.Entry) []byte {
	t.Helper()
	b, err := sigmapb.EncodeEntry(&e)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTheLogTellsVotersOfViewsAndTokens(t *testing.T) {
	m := sigmaMachine(0, 1, 2, 3)
	ev, ok := m.Follow()
	if s := ev.State; !ok || ev.Kind != sigma.Jumped || s.View != (sigma.ViewID{Num: 1}) || s.Base != 0 || s.Ceil != sigma.Block || s.Cap < time.Second || s.Prev != nil {
		t.Fatalf("at first: %+v, %v", ev, ok)
	}
	if ev, ok := m.Follow(); ok {
		t.Errorf("nothing happened, and it tells %+v", ev)
	}
	m.ApplyOwn(at(0), entry(t, sigma.Entry{Kind: sigma.EntryRaise, From: m.Sigma().View}))
	m.ApplyOwn(at(0), entry(t, sigma.Entry{Kind: sigma.EntryRaiseTTL, From: m.Sigma().View, Cap: time.Minute}))
	m.ApplyOwn(at(0), entry(t, sigma.Entry{Kind: sigma.EntryRaise, From: sigma.ViewID{Num: 7}}))
	m.ApplyOwn(at(0), entry(t, sigma.Entry{Kind: sigma.EntryView, From: m.Sigma().View, Members: nodes(9)}))
	if ev, ok := m.Follow(); !ok || ev.Kind != sigma.Applied || ev.State.Ceil != 2*sigma.Block || ev.State.Cap != time.Minute || ev.State.View.Num != 1 {
		t.Errorf("after a Raise and a RaiseTTL: %+v", ev)
	}
	m.ApplyOwn(at(0), entry(t, sigma.Entry{Kind: sigma.EntryView, From: m.Sigma().View}))
	joint := view(1, 2, 3, 4)
	joint.Members[1].Role, joint.Members[4].Role = order.Leaving, order.Joining
	m.NextView(at(0), joint)
	m.NextView(at(0), view(2, 3, 4)) // the joint phase is over
	s := m.Sigma()
	if s.View.Num != 3 || s.Base != 3*sigma.Block || s.Ceil != 4*sigma.Block || len(s.Prev) != 3 || s.Members[2] != nodes(4)[0] {
		t.Errorf("after a null change and a change of voters: %+v", s)
	}
	lost := view(2, 3, 4)
	lost.Members[1].ID = 5 // and has joined anew
	m.NextView(at(0), lost)
	if s = m.Sigma(); s.View.Num != 4 {
		t.Errorf("after a voter lost its disk: %+v", s)
	}
	other := sigmaMachine(0, 1, 2, 3)
	if err := other.Restore(m.Snapshot()); err != nil {
		t.Fatal(err)
	}
	if ev, ok := other.Follow(); !ok || ev.Kind != sigma.Jumped || ev.State.View != s.View || ev.State.Ceil != s.Ceil || string(other.Snapshot()) != string(m.Snapshot()) {
		t.Errorf("restored: %+v, was %+v", ev, s)
	}
}

func TestANewGenerationsFirstViewWaitsForLeasesOfTheFormer(t *testing.T) {
	m := sigmaMachine(1, 1, 2, 3)
	until, ok := m.Deadline()
	if _, begun := m.Follow(); !ok || until < worldTTLMax || begun {
		t.Fatalf("a view has begun %v, the first one does at %v", begun, until)
	}
	m.NextView(at(until-1), view(1, 2, 4))
	if _, begun := m.Follow(); begun {
		t.Error("a view began with a change of voters, too early")
	}
	again := sigmaMachine(1)
	if err := again.Restore(m.Snapshot()); err != nil {
		t.Fatal(err)
	}
	again.Tick(at(until))
	if ev, begun := again.Follow(); !begun || ev.State.View != (sigma.ViewID{Gen: 1, Num: 1}) || ev.State.Members[2] != nodes(4)[0] {
		t.Errorf("at %v: %v, %+v", until, begun, ev.State)
	}
}

// TestAHandoverIsPartOfTheState takes a name from the voters, and has another replica of the machine go on in the middle.
func TestAHandoverIsPartOfTheState(t *testing.T) {
	m := sigmaMachine(0, 1, 2, 3)
	m.Follow()
	c := at(0)
	c.Client, c.Author = order.ClientID{1}, keyspace.NodeID{50}
	name := []byte("n")
	res, err := decodeResult(m.Apply(c, encodeAcquire(table.Acquire{Name: string(name), Req: 1, TTL: time.Second})))
	if err != nil || res.status != pb.Status_STATUS_QUEUED {
		t.Fatalf("%+v, %v", res, err)
	}
	if ev, ok := m.Follow(); !ok || len(ev.Modes) != 1 || ev.Modes[0] != (sigma.NameMode{Name: "n", Mode: sigma.ModePending}) {
		t.Errorf("told %+v", ev)
	}
	x := sigma.Req{Session: sigma.Session{7}, Seq: 1}
	report := func(m *Machine, author byte, claims byte) {
		c := at(0)
		c.Author = keyspace.NodeID{author}
		m.ApplyOwn(c, entry(t, sigma.Entry{Kind: sigma.EntryReport, From: m.Sigma().View, Node: keyspace.NodeID{claims}, Report: sigma.ReportEntry{
			Name: "n", Parties: []sigma.ReportParty{{Req: x, Node: keyspace.NodeID{60}, TTL: time.Second, Left: time.Second, Tok: 3}},
		}}))
	}
	report(m, 9, 9) // no voter
	report(m, 1, 2) // in another's name
	report(m, 1, 1)
	again := sigmaMachine(0, 1, 2, 3)
	if err := again.Restore(m.Snapshot()); err != nil {
		t.Fatal(err)
	}
	if ev, ok := again.Follow(); !ok || ev.Kind != sigma.Jumped || len(ev.Modes) != 1 || ev.Modes[0].Mode != sigma.ModePending {
		t.Errorf("told %+v", ev)
	}
	report(again, 2, 2)
	c.Client, c.Author = order.ClientID{2}, keyspace.NodeID{60}
	res, err = decodeResult(again.Apply(c, encodeAcquire(table.Acquire{Name: "n", Req: 1, TTL: time.Second, Wish: x, Held: 3})))
	if err != nil || res.status != pb.Status_STATUS_GRANTED || res.token != 3 {
		t.Errorf("the claim: %+v, %v", res, err)
	}
	if ev, _ := again.Follow(); len(ev.Modes) != 1 || ev.Modes[0].Mode != sigma.ModeGroup {
		t.Errorf("told %+v", ev)
	}
	info, err := decodeInfo(again.Query(c, mustMarshal(&pb.Query{Name: "other"})))
	if err != nil || info.Mode != pb.Mode_MODE_SIGMA || info.View != 1 || len(info.Members) != 3 {
		t.Errorf("of a name that voters lock: %+v, %v", info, err)
	}
	if again.Prepare(at(0), "other") || !again.Prepare(at(0), "n") {
		t.Error("ready to be carved out: a name that the voters lock, or not the table's")
	}
}

func TestRequestsOfASigmaWishTravel(t *testing.T) {
	want := table.Acquire{Name: "n", Req: 1, TTL: time.Second, Wish: sigma.Req{Session: sigma.Session{1, 2}, Seq: 3}, Held: 1 << 60}
	if got, err := decodeCommand(encodeAcquire(want)); err != nil || got != table.Command(want) {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestANameThatIsCarvedOutIsNoLongerTheVoters: another group's table has it, in whatever view, and a key's own group has no voters that lock.
func TestANameThatIsCarvedOutIsNoLongerTheVoters(t *testing.T) {
	cfg := MachineConfig{TTLMax: time.Minute, Drift: automaton.DriftDefault, Sigma: 15 * time.Second}
	view := order.View{Members: []order.Member{{ID: 1, Peer: keyspace.NodeID{1}, Role: order.Voter}}}
	prefix := NewMachine(cfg)
	prefix.FirstView(view)
	cfg.Own, cfg.Gen = true, placement.OwnGen(0, 0, 1)
	own := NewMachine(cfg)
	own.FirstView(view)
	if len(own.Sigma().Members) > 0 || own.table.Mode("n") != sigma.ModeGroup {
		t.Error("voters of a key's own group lock")
	}
	c := session.Context{Now: time.Second, Author: keyspace.NodeID{1}, Emit: func(order.ClientID, []byte) {}}
	b, err := sigmapb.EncodeEntry(&sigma.Entry{Kind: sigma.EntryReport, From: prefix.Sigma().View, Node: keyspace.NodeID{1}, Report: sigma.ReportEntry{Name: "n"}})
	if err != nil {
		t.Fatal(err)
	}
	if prefix.Prepare(c, "n") {
		t.Error("carved out before the voters have said who has it")
	}
	prefix.ApplyOwn(c, b)
	if !prefix.Prepare(c, "n") {
		t.Fatal("not to be carved out")
	}
	ceil := prefix.Sigma().Ceil
	part, _ := prefix.Carve(c, "n")
	if err := own.Graft(c, part); err != nil {
		t.Fatal(err)
	}
	for range 2 { // and in the next view, also for a member that has it of a snapshot
		if m := prefix.table.Mode("n"); m != sigma.ModeGroup {
			t.Fatalf("mode %v of a name that is another group's", m)
		}
		restored := NewMachine(MachineConfig{TTLMax: time.Minute, Drift: automaton.DriftDefault, Sigma: 15 * time.Second})
		if err := restored.Restore(prefix.Snapshot()); err != nil || restored.table.Mode("n") != sigma.ModeGroup {
			t.Fatalf("restored: %v", err)
		}
		null, err := sigmapb.EncodeEntry(&sigma.Entry{Kind: sigma.EntryView, From: prefix.Sigma().View})
		if err != nil {
			t.Fatal(err)
		}
		prefix.ApplyOwn(c, null)
	}
	res, err := decodeResult(own.Apply(c, encodeAcquire(table.Acquire{Name: "n", Req: 1, TTL: time.Minute, Wish: sigma.Req{Seq: 1}})))
	if err != nil || res.status != pb.Status_STATUS_GRANTED || sigma.Token(res.token) <= ceil {
		t.Errorf("%+v, %v", res, err)
	}
}
