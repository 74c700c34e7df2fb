package placement

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/replicagroup/order"
)

// TestCreatorTraces replays the conversations in testdata/creator. Peers are numbered; the creator knows peer 0 as a member of
// its own group. Time stands still but for "wake".
func TestCreatorTraces(t *testing.T) {
	datadriven.Walk(t, "testdata/creator", func(t *testing.T, path string) {
		var c *Creator
		var now automaton.Instant
		var dir *Directory
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			arg := func(name string) (n int) { d.ScanArgs(t, name, &n); return n }
			peers := func() (list []Host) {
				for _, a := range d.CmdArgs {
					if a.Key == "peers" {
						for _, v := range a.Vals {
							var i int
							fmt.Sscan(v, &i)
							list = append(list, host(i))
						}
					}
				}
				return list
			}
			step := func(ev CreatorEvent) string { return show(c.Step(ev, now, nil), now) }
			switch d.Cmd {
			case "new":
				now, dir = 0, NewDirectory(genesis(3), order.GroupID{})
				c = NewCreator(genesis(3), peersOf(peers()))
				return ""
			case "lead":
				return step(LeaderChange{Leading: true, Unstarted: dir.Unstarted()})
			case "unlead":
				return step(LeaderChange{})
			case "ensure":
				known, _ := dir.Lookup(prefix(arg("prefix")))
				return step(Ensure{Prefix: prefix(arg("prefix")), Ref: uint64(arg("ref")), Known: known})
			case "closest":
				return step(Closest{Prefix: prefix(arg("prefix")), Peers: peersOf(peers())})
			case "answer":
				h := host(arg("peer"))
				return step(HostAnswer{Prefix: prefix(arg("prefix")), Peer: h.Node(), Store: h.Store, OK: d.HasArg("yes")})
			case "noanswer":
				return step(NoAnswer{Prefix: prefix(arg("prefix")), Peer: host(arg("peer")).Node()})
			case "commit":
				res := apply(t, dir, Command{Kind: Create, Prefix: prefix(arg("prefix")), Members: peers()})
				if d.HasArg("unheard") {
					return ""
				}
				return step(Committed{res.Child})
			case "report": // a Reported that was committed
				apply(t, dir, Command{Kind: Reported, Prefix: prefix(arg("prefix")), Replica: order.ReplicaID(arg("replica")), Store: host(arg("peer")).Store})
				return ""
			case "notcommitted":
				errs := map[string]error{"dropped": order.ErrDropped, "notleader": order.ErrNotLeader, "refused": ErrRefused}
				ref := c.lastRef // the newest, or the one before it
				if d.HasArg("stale") {
					ref--
				}
				return step(NotCommitted{Prefix: prefix(arg("prefix")), Ref: ref, Err: errs[d.CmdArgs[1].Key]})
			case "started":
				h := host(arg("peer"))
				return step(Started{Group: order.GroupID{Overlay: genesis(3).ID(), Prefix: prefix(arg("prefix"))},
					Peer: h.Node(), Replica: order.ReplicaID(arg("replica")), Store: h.Store})
			case "wake":
				var after string
				d.ScanArgs(t, "after", &after)
				pause, err := time.ParseDuration(after)
				if err != nil {
					t.Fatal(err)
				}
				now = now.Add(pause)
				return step(Wake{})
			case "open":
				return fmt.Sprintf("%d open, %d of them not committed\n", c.Open(), c.pending)
			}
			t.Fatalf("unknown command %s", d.Cmd)
			return ""
		})
	})
}

// show prints actions one per line; times are relative to now.
func show(actions []CreatorAction, now automaton.Instant) string {
	var b strings.Builder
	number := func(p Peer) string { return strings.TrimPrefix(p.ID, "peer-0") }
	members := func(d Descriptor) string {
		var list []string
		for _, p := range d.Peers {
			list = append(list, number(p))
		}
		return strings.Join(list, ",")
	}
	for _, a := range actions {
		switch a := a.(type) {
		case LookUp:
			fmt.Fprintf(&b, "look up %v n=%d\n", a.Prefix, a.N)
		case AskHost:
			fmt.Fprintf(&b, "ask %s for %v\n", number(a.Peer), a.Prefix)
		case Propose:
			if a.Command.Kind == Reported {
				fmt.Fprintf(&b, "propose reported %v replica %d\n", a.Command.Prefix, a.Command.Replica)
				continue
			}
			fmt.Fprintf(&b, "propose create %v with %s\n", a.Command.Prefix, members(Descriptor{Peers: peersOf(a.Command.Members)}))
		case SendStart:
			fmt.Fprintf(&b, "start %v at %s\n", a.Descriptor.Group, number(a.Peer))
		case AnswerEnsure:
			if a.Err != nil {
				fmt.Fprintf(&b, "answer %d: %v\n", a.Ref, a.Err)
				continue
			}
			fmt.Fprintf(&b, "answer %d: %v with %s\n", a.Ref, a.Descriptor.Group, members(a.Descriptor))
		case Arm:
			if a.At == automaton.Never {
				fmt.Fprintf(&b, "arm never\n")
				continue
			}
			fmt.Fprintf(&b, "arm in %v\n", a.At.Sub(now))
		}
	}
	return b.String()
}

func answers(t *testing.T, out []CreatorAction, want error) {
	t.Helper()
	n := 0
	for _, a := range out {
		if a, ok := a.(AnswerEnsure); ok {
			n++
			if !errors.Is(a.Err, want) {
				t.Errorf("answer %v, want %v", a.Err, want)
			}
		}
	}
	if n != 1 {
		t.Errorf("%d answers in %v", n, out)
	}
}

func leading(known ...Peer) *Creator {
	c := NewCreator(genesis(3), known)
	c.Step(LeaderChange{Leading: true}, 0, nil)
	return c
}

func TestEnsureIsBounded(t *testing.T) {
	c := leading()
	for i := range CreationsMax {
		c.Step(Ensure{Prefix: prefix(i), Ref: uint64(i)}, 0, nil)
	}
	answers(t, c.Step(Ensure{Prefix: prefix(CreationsMax)}, 0, nil), ErrBusy)
	for i := 1; i < EnsuresMax; i++ {
		if out := c.Step(Ensure{Prefix: prefix(3), Ref: uint64(i)}, 0, nil); len(out) != 0 {
			t.Fatalf("ensure %d: %v", i, out)
		}
	}
	answers(t, c.Step(Ensure{Prefix: prefix(3)}, 0, nil), ErrBusy)
	// One that ends makes room for another.
	dir := NewDirectory(genesis(3), order.GroupID{})
	ch := apply(t, dir, Command{Kind: Create, Prefix: prefix(5), Members: hosts(3)}).Child
	c.Step(Committed{ch}, 0, nil)
	if out := c.Step(Ensure{Prefix: prefix(CreationsMax)}, 0, nil); len(out) != 1 {
		t.Errorf("no room after a commit: %v", out)
	}
	// Losing the lead answers everybody and leaves nothing behind.
	n := 0
	for _, a := range c.Step(LeaderChange{}, 0, nil) {
		if a, ok := a.(AnswerEnsure); ok && errors.Is(a.Err, ErrNotLeader) {
			n++
		}
	}
	if want := CreationsMax + 1 + EnsuresMax - 1; n != want || c.Open() != 0 || c.pending != 0 {
		t.Errorf("%d answered, want %d; %d open, %d pending", n, want, c.Open(), c.pending)
	}
}

func TestEnsureRefusesForeignPrefixes(t *testing.T) {
	c := leading()
	stray := prefix(1)
	stray.Bits[20] = 1
	for _, p := range []keyspace.Prefix{{}, keyspace.PrefixOf(keyspace.Key{1}, DepthDefault+1), stray} {
		answers(t, c.Step(Ensure{Prefix: p}, 0, nil), ErrPrefix)
	}
}

func TestDroppedProposalsAreNotRepeatedForEver(t *testing.T) {
	c := leading(peersOf(hosts(3))...)
	now := automaton.Instant(0)
	out := c.Step(Ensure{Prefix: prefix(1)}, now, nil)
	for step := 0; c.Open() > 0; step++ {
		if step > 10*roundsMax {
			t.Fatal("it goes on and on")
		}
		var next []CreatorAction
		for _, a := range out {
			switch a := a.(type) {
			case LookUp:
				next = c.Step(Closest{Prefix: prefix(1)}, now, next)
			case AskHost:
				next = c.Step(HostAnswer{Prefix: prefix(1), Peer: a.Peer.Node(), Store: storeID(a.Peer.ID[6]), OK: true}, now, next)
			case Propose:
				next = c.Step(NotCommitted{Prefix: prefix(1), Ref: a.Ref, Err: order.ErrDropped}, now, next)
			}
		}
		if len(next) == 0 {
			now = now.Add(retryPause)
			next = c.Step(Wake{}, now, next)
		}
		out = next
	}
	answers(t, out, ErrUndecided)
}

func TestALookUpCountsNoMoreThanItsLimit(t *testing.T) {
	c := leading()
	c.Step(Ensure{Prefix: prefix(1)}, 0, nil)
	var flood []Peer
	for i := range 10 * CandidatesMax {
		flood = append(flood, Peer{ID: fmt.Sprint("flood", i)})
	}
	c.Step(Closest{Prefix: prefix(1), Peers: append([]Peer{{ID: ""}}, flood...)}, 0, nil)
	if n := len(c.open[prefix(1)].candidates); n != CandidatesMax-1 {
		t.Errorf("%d candidates", n)
	}
}

func TestThePeersAskedAreTheClosestToTheAnchor(t *testing.T) {
	c := leading(peersOf(hosts(9))...)
	c.Step(Ensure{Prefix: prefix(1)}, 0, nil)
	anchor, _ := Anchor(genesis(3).ID(), prefix(1))
	var nodes []keyspace.NodeID
	for _, h := range hosts(9) {
		nodes = append(nodes, h.Node())
	}
	keyspace.SortByDistance(anchor.Key(), nodes)
	var got []keyspace.NodeID
	for _, a := range c.Step(Closest{Prefix: prefix(1)}, 0, nil) {
		if a, ok := a.(AskHost); ok {
			got = append(got, a.Peer.Node())
		}
	}
	if len(got) != 3 || got[0] != nodes[0] || got[1] != nodes[1] || got[2] != nodes[2] {
		t.Errorf("asked %v, the closest are %v", got, nodes[:3])
	}
}

func TestAReportThatSpeaksForAnotherPeerIsDropped(t *testing.T) {
	c := leading()
	ch := apply(t, NewDirectory(genesis(3), order.GroupID{}), Command{Kind: Create, Prefix: prefix(1), Members: hosts(3)}).Child
	c.Step(Committed{ch}, 0, nil)
	good := Started{Group: ch.Group, Peer: host(1).Node(), Replica: 2, Store: host(1).Store}
	for name, change := range map[string]func(*Started){
		"another peer":    func(s *Started) { s.Peer = host(2).Node() },
		"another store":   func(s *Started) { s.Store = storeID(77) },
		"another replica": func(s *Started) { s.Replica = 1 },
		"no replica":      func(s *Started) { s.Replica = 9 },
		"another life":    func(s *Started) { s.Group.Gen = 1 },
		"another group":   func(s *Started) { s.Group.Prefix = prefix(2) },
	} {
		s := good
		change(&s)
		if out := c.Step(s, 0, nil); len(out) != 0 {
			t.Errorf("%s: %v", name, out)
		}
	}
	if out := c.Step(good, 0, nil); len(out) == 0 {
		t.Error("the member's own report was dropped")
	}
	if out := c.Step(good, 0, nil); len(out) != 0 {
		t.Errorf("its repeat: %v", out)
	}
}

func BenchmarkEnsureOfAKnownChild(b *testing.B) {
	c := leading()
	ch := Child{Descriptor: genesis(3).RootDescriptor(), Started: 0b111}
	ch.Group.Prefix = prefix(1)
	var out []CreatorAction
	b.ReportAllocs()
	for b.Loop() {
		out = c.Step(Ensure{Prefix: prefix(1), Known: ch}, 0, out[:0])
	}
}
