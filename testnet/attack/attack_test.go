package attack

import (
	"maps"
	"testing"
	"time"

	"latchkey/dht"
	"latchkey/replicagroup"
)

// What a peer and its host allow, as docs/limits.md has it.
const (
	streamsPerPeer = 64 // that one peer opened
	connsPerPeer   = 8
	kadStreams     = 8
	outboxPerPeer  = 2*(4<<20) + 2*(65<<20) // of answers nobody reads
	halfMessages   = 128 << 20              // of all peers
	groupsMax      = 256                    // two to the overlay's depth
	// flood is the least number of messages of one: more than what may be under way unread.
	flood = 10_000
	// slack is for all else: buffers and windows.
	slack = 64 << 20
)

// scenario is one attack and what must be true of it.
type scenario struct {
	name    string
	kind    string
	peers   int
	streams int   // of each attacker, for kind streams
	least   int64 // what the attackers must have done or tried for it to be an attack: messages, connections or streams
	keeps   int   // streams that each attacker is left with, while it goes on; 0: not looked at
	paced   bool  // it is a stream of messages, which the sink takes as well
	memory  int64 // by how much the process may grow beyond slack
	check   func(t *testing.T, o outcome)
}

// busy is a machine that is as busy, and no attack.
var busy = scenario{name: "busy machine, no attack", kind: "spin", peers: 2}

var scenarios = []scenario{
	busy,
	{name: "slow reader", kind: "slow", peers: 4, paced: true, least: 4, memory: 4 * outboxPerPeer, check: func(t *testing.T, o outcome) {
		if *attackTime > 20*time.Second { // longer than a write may wait
			reset(t, o, dht.ReasonStalled, 4)
		}
	}},
	{name: "half messages", kind: "half", peers: 3, least: 6, memory: halfMessages, check: func(t *testing.T, o outcome) {
		reset(t, o, dht.ReasonBudget, 1)
	}},
	{name: "garbage", kind: "garbage", peers: 2, least: 48, check: func(t *testing.T, o outcome) {
		for _, r := range []dht.Reason{dht.ReasonMalformed, dht.ReasonOversize, dht.ReasonTruncated} {
			reset(t, o, r, 1)
		}
	}},
	{name: "flood of requests", kind: "flood", peers: 2, paced: true, least: flood},
	{name: "flood of bulk", kind: "bulk", peers: 2, paced: true, least: 4},
	{name: "flood of one-way messages", kind: "oneway", peers: 2, paced: true, least: flood},
	{name: "flood of look-ups", kind: "kad", peers: 2, paced: true, least: flood, keeps: kadStreams, check: func(t *testing.T, o outcome) {
		reset(t, o, dht.ReasonStreams, kadStreams)
	}},
	{name: "flood of sessions", kind: "sessions", peers: 2, paced: true, least: flood},
	{name: "flood of commands", kind: "commands", peers: 2, paced: true, least: flood},
	{name: "flood of engine messages", kind: "engine", peers: 2, paced: true, least: 10 * flood, check: func(t *testing.T, o outcome) {
		if o.groups.StrayMessages == 0 {
			t.Error("no batch was counted as a stranger's")
		}
	}},
	{name: "10,000 streams of one", kind: "streams", peers: 1, streams: 10_000, least: 5000, check: crowded},
	{name: "10,000 streams of ten", kind: "streams", peers: 10, streams: 1_000, least: 5000, check: crowded},
	{name: "churn", kind: "churn", peers: 2, least: 2},
	{name: "half-open connections", kind: "halfopen", peers: 1, least: 300},
	// The last one, since it makes every group the overlay can have.
	{name: "flood of placement", kind: "place", peers: 2, paced: true, least: flood, check: func(t *testing.T, o outcome) {
		if o.groups.Busy == 0 {
			t.Error("nobody was told that there are too many groups under way")
		}
		if o.replicas > groupsMax+1 {
			t.Errorf("%d replicas", o.replicas)
		}
	}},
}

// reset checks that streams were reset for a reason, and counted.
func reset(t *testing.T, o outcome, r dht.Reason, least uint64) {
	t.Helper()
	if o.resets[r] < least {
		t.Errorf("%d streams reset for %q, want %d: %v", o.resets[r], r, least, o.resets)
	}
}

// crowded checks an attack of many streams.
func crowded(t *testing.T, o outcome) {
	t.Helper()
	reset(t, o, dht.ReasonStreams, 1)
}

// outcome is what one attack did.
type outcome struct {
	heap     int64   // growth of the attacked process during the attack
	peak     int64   // the most that was resident
	cpu      float64 // processors that the attacked process took
	has      inbound // of strangers at the attacked peer, at its end
	replicas int
	resets   map[dht.Reason]uint64
	groups   replicagroup.Counters
	busy     uint64
	report   report
}

// run attacks w, has the honest client work meanwhile, and returns what came of it.
func (w *world) run(t testing.TB, s scenario, honest func()) (o outcome) {
	t.Helper()
	v := w.attacked()
	base, size := v.probe(t), v.memory(t)
	g := attackWith(t, w.order(t, s))
	began := time.Now()
	honest()
	now := v.probe(t)
	took := time.Since(began)
	after := v.memory(t)
	o.heap, o.peak, o.cpu = after.Heap-size.Heap, after.Peak, (after.CPU-size.CPU).Seconds()/took.Seconds()
	o.has = w.strangers(now)
	if s.keeps > 0 { // a stream is there before its protocol is known, and for a moment after it is reset
		eventually(t, "the attackers are down to the streams they may have", func() bool {
			return w.strangers(v.probe(t)).Streams <= s.peers*s.keeps
		})
	}
	o.report = g.stop()
	now = v.probe(t)
	o.resets = now.Overlay.StreamsReset
	maps.DeleteFunc(o.resets, func(r dht.Reason, n uint64) bool { return n == base.Overlay.StreamsReset[r] })
	for r := range o.resets {
		o.resets[r] -= base.Overlay.StreamsReset[r]
	}
	o.busy, o.replicas = now.Overlay.Busy-base.Overlay.Busy, now.Replicas
	o.groups = replicagroup.Counters{
		StrayMessages: now.Groups.StrayMessages - base.Groups.StrayMessages, StrayOutputs: now.Groups.StrayOutputs - base.Groups.StrayOutputs,
		Malformed: now.Groups.Malformed - base.Groups.Malformed, Busy: now.Groups.Busy - base.Groups.Busy, Commands: now.Groups.Commands - base.Groups.Commands,
	}
	eventually(t, "the attackers' connections are gone", func() bool { return w.strangers(v.probe(t)).Conns == 0 })
	return o
}

func TestAttacks(t *testing.T) {
	if testing.Short() {
		t.Skip("attackers keep a processor busy for some ten seconds")
	}
	w := newWorld(t)
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			o := w.run(t, s, func() { w.lockFor(t, within(t), *attackTime) })
			t.Logf("heap %+d KiB; strangers have %+v; reset %v; busy %d; groups %+v; attackers %+v",
				o.heap>>10, o.has, o.resets, o.busy, o.groups, o.report)
			if o.heap > s.memory+slack {
				t.Errorf("the heap grew by %d MiB, which is beyond %d", o.heap>>20, (s.memory+slack)>>20)
			}
			if o.has.Streams > s.peers*streamsPerPeer || o.has.Conns > s.peers*connsPerPeer {
				t.Errorf("%d peers have %+v", s.peers, o.has)
			}
			if o.report.Sent+o.report.Refused < s.least {
				t.Errorf("the attackers managed %d only: this was no attack", o.report.Sent)
			}
			if s.check != nil {
				s.check(t, o)
			}
			// Nobody else has felt it: no honest stream was reset for what came by it.
			for i, p := range w.peers {
				if st := p.probe(t).Overlay; i != w.victim && len(st.StreamsReset) > 0 {
					t.Errorf("peer %d has reset streams of honest peers: %v", i, st.StreamsReset)
				}
			}
			if st := w.client.Overlay().Stats(); len(st.StreamsReset) > 0 {
				t.Errorf("the client has reset streams of honest peers: %v", st.StreamsReset)
			}
		})
	}
}
