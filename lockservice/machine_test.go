package lockservice

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/lockservice/pb"
	"latchkey/lockservice/sigma"
	"latchkey/lockservice/table"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/session"
)

// call executes one command of client n at a log time and returns its result and what was pushed to whom.
func call(t testing.TB, m *Machine, now time.Duration, n byte, data []byte) (*pb.Result, map[byte]*pb.Granted) {
	t.Helper()
	pushed := make(map[byte]*pb.Granted)
	b := m.Apply(session.Context{
		Now: now, Client: order.ClientID{n}, Author: keyspace.NodeID{n},
		Emit: func(to order.ClientID, data []byte) {
			g, ended, err := decodeOutput(data)
			if err != nil {
				t.Errorf("output: %v", err)
			}
			if ended == nil {
				pushed[to[0]] = g
			}
		},
	}, data)
	res := new(pb.Result)
	if err := proto.Unmarshal(b, res); err != nil {
		t.Fatalf("result: %v", err)
	}
	return res, pushed
}

func acquire(name string, req uint64, ttl time.Duration) []byte {
	return mustMarshal(&pb.Command{Op: &pb.Command_Acquire{Acquire: &pb.Acquire{Name: name, Req: req, TtlNs: int64(ttl)}}})
}

func release(name string, req uint64, token uint64) []byte {
	return mustMarshal(&pb.Command{Op: &pb.Command_Release{Release: &pb.Release{Name: name, Req: req, Token: token}}})
}

// poll is what a waiter asks all the while.
func poll(name string, req uint64, ttl time.Duration) []byte {
	return encodeRenew(table.Renew{Name: name, Req: req, TTL: ttl})
}

func query(t testing.TB, m *Machine, data []byte) *pb.Info {
	t.Helper()
	b := m.Query(session.Context{}, data)
	if len(b) > session.ResultBytesMax {
		t.Errorf("an answer of %d bytes", len(b))
	}
	info, err := decodeInfo(b)
	if err != nil {
		t.Fatalf("info: %v", err)
	}
	return info
}

func TestMachineRefusesWhatItCannotRead(t *testing.T) {
	good := acquire("n", 1, time.Second)
	for name, c := range map[string]struct {
		data []byte
		want pb.Status
	}{
		"nothing":           {nil, pb.Status_STATUS_MALFORMED},
		"noise":             {[]byte("\xff\xff\xff\xff"), pb.Status_STATUS_MALFORMED},
		"truncated":         {good[:len(good)-1], pb.Status_STATUS_MALFORMED},
		"oversize":          {append(bytes.Clone(good), make([]byte, commandBytesMax)...), pb.Status_STATUS_MALFORMED},
		"unknown kind":      {[]byte{0x7a, 0}, pb.Status_STATUS_MALFORMED},
		"name not UTF-8":    {[]byte("\x0a\x03\x0a\x01\xff"), pb.Status_STATUS_MALFORMED},
		"no name":           {acquire("", 1, time.Second), pb.Status_STATUS_BAD_NAME},
		"name too long":     {acquire(strings.Repeat("x", 1025), 1, time.Second), pb.Status_STATUS_BAD_NAME},
		"control in name":   {release("a\u0085b", 1, 1), pb.Status_STATUS_BAD_NAME},
		"TTL too short":     {acquire("n", 1, time.Second-1), pb.Status_STATUS_BAD_TTL},
		"TTL too long":      {acquire("n", 1, worldTTLMax+1), pb.Status_STATUS_BAD_TTL},
		"TTL negative":      {acquire("n", 1, -time.Second), pb.Status_STATUS_BAD_TTL},
		"as it ought to be": {good, pb.Status_STATUS_GRANTED},
	} {
		m := worldMachine()
		before := m.Snapshot()
		res, _ := call(t, m, 0, 1, c.data)
		if res.Status != c.want {
			t.Errorf("%s: %v", name, res)
		}
		if refusal(res.Status, "") != nil && (res.Detail == "" || !bytes.Equal(m.Snapshot(), before)) {
			t.Errorf("%s: refused without a word, or the state changed: %v", name, res)
		}
	}
	if i := query(t, worldMachine(), []byte("\xff")); i.Status != pb.Status_STATUS_MALFORMED {
		t.Errorf("query: %v", i)
	}
	if i := query(t, worldMachine(), nil); i.Status != pb.Status_STATUS_BAD_NAME {
		t.Errorf("query without a name: %v", i)
	}
}

func TestMachinePushesTheGrantToTheWaiter(t *testing.T) {
	m := worldMachine()
	first, _ := call(t, m, 0, 1, acquire("n", 7, time.Second))
	second, pushed := call(t, m, 0, 2, acquire("n", 8, time.Second))
	if first.Status != pb.Status_STATUS_GRANTED || second.Status != pb.Status_STATUS_QUEUED || second.Position != 1 || len(pushed) != 0 {
		t.Errorf("%v, then %v, pushed %v", first, second, pushed)
	}
	_, pushed = call(t, m, 0, 1, release("n", 7, first.Token))
	if g := pushed[2]; len(pushed) != 1 || g == nil || g.Name != "n" || g.Req != 8 || g.Token <= first.Token {
		t.Errorf("pushed %v", pushed)
	}
	resent := 0
	m.Resend(session.Context{Emit: func(order.ClientID, []byte) { resent++ }})
	if resent != 1 {
		t.Errorf("resent %d outputs", resent)
	}
}

func TestMachineOfALaterGenerationWaitsForFormerLeases(t *testing.T) {
	cfg := MachineConfig{Gen: 3<<32 | 5, TTLMax: worldTTLMax, Drift: automaton.DriftDefault}
	m := NewMachine(cfg)
	if res, _ := call(t, m, 0, 1, acquire("n", 1, time.Second)); res.Status != pb.Status_STATUS_QUEUED {
		t.Errorf("at the start: %v", res)
	}
	at, ok := m.Deadline()
	if !ok || at != automaton.DriftDefault.Stretch(worldTTLMax) {
		t.Errorf("deadline %v, %v", at, ok)
	}
	call(t, m, at-1, 1, poll("n", 1, time.Second))
	var g *pb.Granted
	m.Tick(session.Context{Now: at, Emit: func(_ order.ClientID, b []byte) { g, _ = decodeGranted(b) }})
	if want := uint64(3)<<56 | 5<<46 | 1; g == nil || g.Token != want {
		t.Errorf("granted %v, want token %x", g, want)
	}
}

// tokenOf returns the token of the first grant in a generation, as soon as it grants.
func tokenOf(t *testing.T, gen uint64) Token {
	t.Helper()
	m := NewMachine(MachineConfig{Gen: gen, TTLMax: worldTTLMax, Drift: automaton.DriftDefault})
	res, _ := call(t, m, 0, 1, acquire("n", 1, time.Second))
	token := res.Token
	if at, ok := m.Deadline(); gen > 0 {
		if res.Status != pb.Status_STATUS_QUEUED || !ok {
			t.Fatalf("generation %x granted at once: %v", gen, res)
		}
		if _, pushed := call(t, m, at-1, 1, poll("n", 1, time.Second)); len(pushed) > 0 {
			t.Errorf("generation %x granted too early", gen)
		}
		m.Tick(session.Context{Now: at, Emit: func(_ order.ClientID, b []byte) {
			g, err := decodeGranted(b)
			if err != nil {
				t.Fatal(err)
			}
			token = g.Token
		}})
	}
	return Token(token)
}

// A revived group's first token is above any that its predecessors, with all keys' own groups they may have had, can ever have
// granted: their counters are full, and so are the generations of those groups.
func TestTokensOfALaterGenerationAreLarger(t *testing.T) {
	last := Token(0)
	for _, gen := range []uint64{0, 1, 2, 3, 63, 64, 65, PrefixGenMax - 1, PrefixGenMax, 1 << 32, 1<<32 | 1, 2 << 32, OverlayGenMax << 32, OverlayGenMax<<32 | PrefixGenMax} {
		first := tokenOf(t, gen)
		if first <= last {
			t.Errorf("generation %x begins with %x, and its predecessors go up to %x", gen, uint64(first), uint64(last))
		}
		last = first | (1<<keyGenBits-1)<<40 | (1<<40 - 1)
	}
	for _, gen := range []uint64{PrefixGenMax + 1, (OverlayGenMax + 1) << 32} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("generation %x, for which tokens have no room, was taken", gen)
				}
			}()
			NewMachine(MachineConfig{Gen: gen, TTLMax: worldTTLMax, Drift: automaton.DriftDefault})
		}()
	}
	if PrefixGenMax != placement.PrefixGenMax {
		t.Errorf("tokens have room for %d generations of a prefix, and the root makes %d", PrefixGenMax, placement.PrefixGenMax)
	}
}

// The wait of a later generation is by log time, through the session table: a leader's clock that jumps, and a change of leader,
// can only make it longer.
func TestTheWaitOfALaterGenerationOutlastsChangesOfLeader(t *testing.T) {
	cfg := MachineConfig{Gen: 1, TTLMax: worldTTLMax, Drift: automaton.DriftDefault}
	m := NewMachine(cfg)
	s := session.NewTable(cfg.Drift, map[string]session.Machine{ServiceName: m})
	wait, client := cfg.Drift.Stretch(worldTTLMax), order.ClientID{1}
	var index uint64
	var granted *pb.Granted
	entry := func(boot uint64, at time.Duration, service string, seq uint64, data []byte) {
		t.Helper()
		index++
		var out session.Outputs
		s.Apply(order.Entry{Index: index, Kind: order.Normal, Stamp: order.Stamp{Boot: boot, At: at},
			Cmd: order.Command{Client: client, Seq: seq, Author: keyspace.NodeID{1}, Service: service, Data: data}}, &out)
		for _, o := range out.List {
			granted, _ = decodeGranted(o.Data)
		}
	}
	entry(7, 0, session.Service, 0, session.OpenData(session.TTLMax))
	entry(7, 0, ServiceName, 1, acquire("n", 1, time.Second))
	for i, step := range []struct {
		boot uint64
		at   time.Duration
		want bool
	}{
		{7, wait / 2, false},
		{8, 100 * time.Hour, false},        // another leader's clock: no time has passed
		{8, 100*time.Hour + wait/4, false}, // three quarters
		{7, 200 * time.Hour, false},        // the first again: none has passed
		{7, 200*time.Hour + wait/4 - 1, false},
		{7, 200*time.Hour + wait/4 + 3, true}, // quarters are rounded
	} {
		entry(step.boot, step.at, ServiceName, uint64(i)+2, poll("n", 1, time.Second))
		if (granted != nil) != step.want {
			t.Fatalf("step %d at log time %v of %v: granted %v", i, s.Now(), wait, granted)
		}
	}
}

func TestInfoListsABoundedPartOfALongQueue(t *testing.T) {
	m := worldMachine()
	const n = 1 + 500
	for i := range n {
		var client order.ClientID
		binary.BigEndian.PutUint64(client[:], uint64(i)+1)
		m.Apply(session.Context{Client: client, Author: keyspace.NodeID{1}}, acquire("n", 1, worldTTLMax))
	}
	info := query(t, m, mustMarshal(&pb.Query{Name: "n"}))
	if info.Waiting != n-1 || len(info.Waiters) != infoWaitersMax {
		t.Errorf("%d waiters of %d, %d listed", info.Waiting, n-1, len(info.Waiters))
	}
}

// busy returns a machine with locks in every state.
func busy(t testing.TB) *Machine {
	m := worldMachine()
	for n := range byte(4) {
		for i := range 3 {
			call(t, m, time.Duration(n)*time.Second, n+1, acquire(fmt.Sprint("lock ", i), uint64(i)+1, 10*time.Second))
		}
	}
	call(t, m, 5*time.Second, 1, release("lock 1", 2, 0)) // granted to client 2, unconfirmed
	call(t, m, 5*time.Second, 1, release("lock 2", 3, 0)) // the same, and confirmed
	call(t, m, 6*time.Second, 2, mustMarshal(&pb.Command{Op: &pb.Command_Renew{
		Renew: &pb.Renew{Name: "lock 2", Req: 3, TtlNs: int64(20 * time.Second)}}}))
	for n := range byte(4) {
		call(t, m, 6*time.Second, n+1, encodeAcquire(table.Acquire{Name: "shared", Req: 4, TTL: 10 * time.Second, Shared: n < 2, Value: "v"}))
		call(t, m, 6*time.Second, n+1, encodeAcquire(table.Acquire{Name: "permits", Req: 5, TTL: 10 * time.Second, Permits: 2}))
		call(t, m, 6*time.Second, n+1, encodeAcquire(table.Acquire{Name: "waits", Req: 6, TTL: 10 * time.Second, Delay: 30 * time.Second}))
	}
	held := query(t, m, mustMarshal(&pb.Query{Name: "waits"}))
	call(t, m, 6*time.Second, 4, encodeBreak(table.Break{Name: "waits", Token: table.Token(held.Token), At: 1}))
	return m
}

func TestSnapshotCarriesTheWholeState(t *testing.T) {
	a, b := busy(t), worldMachine()
	if err := b.Restore(a.Snapshot()); err != nil {
		t.Fatal(err)
	}
	unconfirmed := func(m *Machine) (n int) {
		m.Resend(session.Context{Emit: func(order.ClientID, []byte) { n++ }})
		return n
	}
	if x, y := unconfirmed(a), unconfirmed(b); x != 1 || y != 1 {
		t.Errorf("%d and %d unconfirmed grants, want 1", x, y)
	}
	for step := range 40 { // what follows is the same at both
		now := 6*time.Second + time.Duration(step)*time.Second
		cmd := release(fmt.Sprint("lock ", step%3), uint64(step%3)+1, 0)
		n := byte(step/6)%4 + 1
		x, pushedX := call(t, a, now, n, cmd)
		y, pushedY := call(t, b, now, n, cmd)
		if !proto.Equal(x, y) || len(pushedX) != len(pushedY) || !bytes.Equal(a.Snapshot(), b.Snapshot()) {
			t.Fatalf("step %d: %v and %v", step, x, y)
		}
	}
}

// TestSnapshotKeepsTheNameOfAHolder that has come from protocol sigma: what it is called there, whose session with the group is another.
func TestSnapshotKeepsTheNameOfAHolder(t *testing.T) {
	m := worldMachine()
	wish := sigma.Req{Session: sigma.Session{0: 0xee, 15: 1}, Seq: 3}
	c := session.Context{Now: time.Second, Client: order.ClientID{1}, Author: keyspace.NodeID{1}, Emit: func(order.ClientID, []byte) {}}
	m.Apply(c, encodeAcquire(table.Acquire{Name: "n", Req: 1, TTL: time.Minute, Wish: wish}))
	again := worldMachine()
	if err := again.Restore(m.Snapshot()); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*Machine{m, again} {
		i := m.info(c, "n")
		if !bytes.Equal(i.Holder.GetClient(), wish.Session[:]) {
			t.Errorf("it is called %x", i.Holder.GetClient())
		}
	}
}

func TestRestoreRefusesWhatNoMachineCanBeIn(t *testing.T) {
	whole := busy(t)
	for name, change := range map[string]func(*pb.Snapshot){
		"a later version":        func(s *pb.Snapshot) { s.Version = snapshotVersion + 1 },
		"no version":             func(s *pb.Snapshot) { s.Version = 0 },
		"client id cut off":      func(s *pb.Snapshot) { s.Locks[0].Owners[0].Party.Client = []byte{1} },
		"waiter without a peer":  func(s *pb.Snapshot) { s.Locks[0].Queue[0].Party = nil },
		"name with a control":    func(s *pb.Snapshot) { s.Locks[0].Name = "\x00" },
		"locks out of order":     func(s *pb.Snapshot) { s.Locks[0], s.Locks[1] = s.Locks[1], s.Locks[0] },
		"a permit too many":      func(s *pb.Snapshot) { s.Locks[3].Permits = 1 << 40 },
		"breaker without a peer": func(s *pb.Snapshot) { s.Breaks[0].By = nil },
		"token of the future":    func(s *pb.Snapshot) { s.Counter = 0 },
	} {
		m := new(pb.Snapshot)
		if err := proto.Unmarshal(whole.Snapshot(), m); err != nil {
			t.Fatal(err)
		}
		change(m)
		before := whole.Snapshot()
		if err := whole.Restore(mustMarshal(m)); !errors.Is(err, errMalformed) {
			t.Errorf("%s: %v", name, err)
		}
		if !bytes.Equal(whole.Snapshot(), before) {
			t.Errorf("%s: refused, and yet the state has changed", name)
		}
	}
	if err := whole.Restore([]byte("\xff")); !errors.Is(err, errMalformed) {
		t.Errorf("noise: %v", err)
	}
}

// A snapshot of the first version, as peers before semaphores wrote it, is read as it was meant.
func TestRestoreReadsTheFirstVersion(t *testing.T) {
	party := func(n byte) *pb.Party { return partyOf(table.Client{n}, keyspace.NodeID{n}) }
	owner := &pb.Owner{Party: party(1), Req: 7, Counter: 3, TtlNs: int64(time.Second), EndsNs: int64(3 * time.Second), Confirmed: true}
	old := mustMarshal(&pb.Snapshot{Version: 1, NowNs: int64(2 * time.Second), Counter: 3, Locks: []*pb.Lock{{
		Name: "n", Owners: []*pb.Owner{owner}, Queue: []*pb.Queued{{Party: party(2), Req: 8, TtlNs: int64(time.Second)}},
	}}})
	m := worldMachine()
	if err := m.Restore(old); err != nil {
		t.Fatal(err)
	}
	_, pushed := call(t, m, 2*time.Second, 1, release("n", 7, 3))
	if g := pushed[2]; g == nil || g.Req != 8 || g.Token != 4 {
		t.Errorf("granted %v", pushed)
	}

	// In a later generation it left out until when nothing is granted.
	later := NewMachine(MachineConfig{Gen: 1, TTLMax: worldTTLMax, Drift: automaton.DriftDefault})
	old = mustMarshal(&pb.Snapshot{Version: 1, Locks: []*pb.Lock{{Name: "n", Queue: []*pb.Queued{{Party: party(2), Req: 8, TtlNs: int64(time.Second)}}}}})
	if err := later.Restore(old); err != nil {
		t.Fatal(err)
	}
	if at, ok := later.Deadline(); !ok || at != automaton.DriftDefault.Stretch(worldTTLMax) {
		t.Errorf("deadline %v, %v", at, ok)
	}
}

// An Info fits into what a group answers, however much there is to tell.
func TestInfoOfACrowdedNameFits(t *testing.T) {
	m := worldMachine()
	name, value := strings.Repeat("n", NameBytesMax), strings.Repeat("v", ValueBytesMax)
	ask := func(i int) {
		var client order.ClientID
		binary.BigEndian.PutUint64(client[:], uint64(i)+1)
		m.Apply(session.Context{Client: client, Author: keyspace.NodeID{1}}, encodeAcquire(table.Acquire{
			Name: name, Req: 1 << 62, TTL: worldTTLMax, Permits: 300, Delay: time.Nanosecond, Value: value}))
	}
	for i := range 1000 {
		ask(i)
	}
	for range table.BreaksMax + 1 {
		held := query(t, m, mustMarshal(&pb.Query{Name: name}))
		call(t, m, 0, 9, encodeBreak(table.Break{Name: name, Token: table.Token(held.Token), At: 1 << 62}))
	}
	info := query(t, m, mustMarshal(&pb.Query{Name: name}))
	if info.Holding != 300-table.BreaksMax-1 || len(info.Holders) != infoHoldersMax || len(info.Breaks) != infoBreaksMax || info.Value != value ||
		len(info.Waiters) != infoWaitersMax || info.Waiting != 700 {
		t.Errorf("%d holding, %d listed, %d breaks, %d of %d waiters", info.Holding, len(info.Holders), len(info.Breaks), len(info.Waiters), info.Waiting)
	}
	if b := encodeAcquire(table.Acquire{Name: name, Req: 1 << 63, TTL: 1 << 62, Try: true, Permits: 1 << 30, Delay: 1 << 62, Value: value}); len(b) > commandBytesMax {
		t.Errorf("the longest command has %d bytes", len(b))
	}
}

func FuzzDecodeCommand(f *testing.F) {
	f.Add(acquire("n", 1, time.Second))
	f.Add(release("lock 1", 2, 3))
	f.Add(encodeAcquire(table.Acquire{Name: "shared", Req: 1, TTL: time.Second, Shared: true, Delay: time.Second, Value: "v"}))
	f.Add(encodeAcquire(table.Acquire{Name: "permits", Req: 1, TTL: time.Second, Permits: 3}))
	f.Add(encodeBreak(table.Break{Name: "lock 2", Token: 6, At: -1}))
	f.Add(encodeAcquire(table.Acquire{Name: "n", Req: 1, TTL: time.Second, Wish: sigma.Req{Session: sigma.Session{1}, Seq: 2}, Held: 3}))
	f.Add(mustMarshal(&pb.Command{Op: &pb.Command_Renew{Renew: &pb.Renew{Name: "lock 2", Req: 3, Token: 4, TtlNs: -1}}}))
	f.Add([]byte("\x0a\x03\x0a\x01\xff"))
	f.Add(mustMarshal(&pb.Query{List: &pb.List{}}))
	f.Add(mustMarshal(&pb.Query{List: &pb.List{From: "lock 2"}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		x, y := busy(t), busy(t)
		call(t, x, 7*time.Second, 1, b)
		call(t, y, 7*time.Second, 1, b)
		if !bytes.Equal(x.Snapshot(), y.Snapshot()) {
			t.Errorf("%x does not do the same everywhere", b)
		}
		if err := y.Restore(x.Snapshot()); err != nil {
			t.Errorf("%x leads to a state that cannot be restored: %v", b, err)
		}
		if _, list, _ := decodeQuery(b); list == nil {
			query(t, x, b)
		} else if _, err := decodeListing(x.Query(session.Context{}, b)); err != nil {
			t.Errorf("%x is answered by a list nobody takes: %v", b, err)
		}
	})
}

func FuzzRestoreSnapshot(f *testing.F) {
	f.Add(worldMachine().Snapshot())
	f.Add(busy(f).Snapshot())
	handing := sigmaMachine(0, 1, 2, 3)
	call(f, handing, time.Second, 1, acquire("n", 1, time.Second))
	f.Add(handing.Snapshot())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, again := worldMachine(), worldMachine()
		if m.Restore(b) != nil {
			if m, again = sigmaMachine(0), sigmaMachine(0); m.Restore(b) != nil {
				return
			}
			m.Follow()
		}
		if err := again.Restore(m.Snapshot()); err != nil || !bytes.Equal(again.Snapshot(), m.Snapshot()) {
			t.Errorf("a state that was taken is refused when it is written back: %v", err)
		}
		m.Tick(session.Context{Now: time.Hour, Emit: func(order.ClientID, []byte) {}})
		call(t, m, 2*time.Hour, 1, acquire("n", 1, time.Second))
	})
}

func FuzzDecodeAnswers(f *testing.F) {
	f.Add(mustMarshal(&pb.Result{Status: pb.Status_STATUS_LOCKED, Holder: &pb.Party{Client: []byte{1}}}))
	f.Add(mustMarshal(&pb.Info{Status: pb.Status_STATUS_HELD, Waiters: []*pb.Waiter{{}}}))
	f.Add(mustMarshal(&pb.Listing{Locks: []*pb.Listed{{Name: "m", Away: true}, {Name: "n", Info: &pb.Info{Status: pb.Status_STATUS_HELD}}}, More: true}))
	f.Add(mustMarshal(&pb.Output{Output: &pb.Output_Granted{Granted: &pb.Granted{Name: "n", Req: 1}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		g := NewGroupBackend(answers{b}, GroupConfig{Limits: LimitsOf(worldTTLMax, 0)}).(*groupBackend)
		g.pushed(b)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond) // it may answer QUEUED for ever
		defer cancel()
		g.acquireOnce(ctx, Request{Name: "n", TTL: time.Second})
		g.Renew(t.Context(), Grant{Name: "n"})
		g.Info(t.Context(), "n")
		g.list(t.Context(), keyspace.Key{}, "")
	})
}
