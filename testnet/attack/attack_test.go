package attack

import (
	"maps"
	"slices"
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
	halfGrowth     = halfMessages / 2       // what growing one takes for a moment
	groupsMax      = 256                    // two to the overlay's depth
	// slack is for all else: buffers, windows, and the garbage of four peers in this process.
	slack = 64 << 20
)

// scenario is one attack and what must be true of it.
type scenario struct {
	name    string
	kind    string
	peers   int
	streams int   // of each attacker, for kind streams
	keeps   int   // streams that each attacker is left with, while it goes on; 0: not looked at
	memory  int64 // by how much the process may grow beyond slack
	check   func(t *testing.T, w *world, o outcome)
}

var scenarios = []scenario{
	{name: "busy machine, no attack", kind: "spin", peers: 2},
	{name: "slow reader", kind: "slow", peers: 4, memory: 4 * outboxPerPeer, check: func(t *testing.T, _ *world, o outcome) {
		sent(t, o, 4)
		if *attackTime > 20*time.Second { // longer than a write may wait
			reset(t, o, dht.ReasonStalled, 4)
		}
	}},
	{name: "half messages", kind: "half", peers: 3, memory: halfMessages + halfGrowth, check: func(t *testing.T, _ *world, o outcome) {
		sent(t, o, 3)
		reset(t, o, dht.ReasonBudget, 1)
	}},
	{name: "garbage", kind: "garbage", peers: 2, check: func(t *testing.T, _ *world, o outcome) {
		sent(t, o, 12)
		for _, r := range []dht.Reason{dht.ReasonMalformed, dht.ReasonOversize, dht.ReasonTruncated} {
			reset(t, o, r, 1)
		}
	}},
	{name: "flood of requests", kind: "flood", peers: 2, check: flooded},
	{name: "flood of bulk", kind: "bulk", peers: 2, check: func(t *testing.T, _ *world, o outcome) { sent(t, o, 4) }},
	{name: "flood of one-way messages", kind: "oneway", peers: 2, check: flooded},
	{name: "flood of look-ups", kind: "kad", peers: 2, keeps: kadStreams, check: func(t *testing.T, _ *world, o outcome) {
		sent(t, o, 1000)
		reset(t, o, dht.ReasonStreams, kadStreams)
	}},
	{name: "flood of sessions", kind: "sessions", peers: 2, check: flooded},
	{name: "flood of commands", kind: "commands", peers: 2, check: flooded},
	{name: "flood of engine messages", kind: "engine", peers: 2, check: func(t *testing.T, _ *world, o outcome) {
		flooded(t, nil, o)
		if o.groups.StrayMessages == 0 {
			t.Error("no batch was counted as a stranger's")
		}
	}},
	{name: "10,000 streams of one", kind: "streams", peers: 1, streams: 10_000, check: crowded},
	{name: "10,000 streams of ten", kind: "streams", peers: 10, streams: 1_000, check: crowded},
	{name: "churn", kind: "churn", peers: 2, check: func(t *testing.T, _ *world, o outcome) { sent(t, o, 2) }},
	{name: "half-open connections", kind: "halfopen", peers: 1, check: func(t *testing.T, _ *world, o outcome) { sent(t, o, 300) }},
	// The last one, since it makes every group the overlay can have.
	{name: "flood of placement", kind: "place", peers: 2, check: func(t *testing.T, w *world, o outcome) {
		flooded(t, nil, o)
		if o.groups.Busy == 0 {
			t.Error("nobody was told that there are too many groups under way")
		}
		all, err := w.attacked().Groups().Status(within(t))
		if err != nil || len(all) > groupsMax+1 {
			t.Errorf("%d replicas, %v", len(all), err)
		}
	}},
}

// sent checks that the attack took place.
func sent(t *testing.T, o outcome, least int64) {
	t.Helper()
	if o.report.Sent < least {
		t.Errorf("the attackers managed %d only: this was no attack", o.report.Sent)
	}
}

func flooded(t *testing.T, _ *world, o outcome) {
	t.Helper()
	sent(t, o, 1000)
}

// reset checks that streams were reset for a reason, and counted.
func reset(t *testing.T, o outcome, r dht.Reason, least uint64) {
	t.Helper()
	if o.resets[r] < least {
		t.Errorf("%d streams reset for %q, want %d: %v", o.resets[r], r, least, o.resets)
	}
}

// crowded checks an attack of many streams.
func crowded(t *testing.T, _ *world, o outcome) {
	t.Helper()
	if tried := o.report.Sent + o.report.Refused; tried < 5000 {
		t.Errorf("the attackers tried %d streams only", tried)
	}
	reset(t, o, dht.ReasonStreams, 1)
}

// outcome is what one attack did.
type outcome struct {
	before, during []time.Duration // of honest rounds, rising
	heap           int64           // growth of the process during the attack
	streams, conns int             // of strangers at the attacked peer, at its end
	resets         map[dht.Reason]uint64
	groups         replicagroup.Counters
	busy           uint64
	report         report
}

// run attacks w and returns what came of it.
func (w *world) run(t testing.TB, s scenario, d time.Duration) (o outcome) {
	t.Helper()
	ctx := within(t)
	base := w.attacked().Overlay().Stats()
	groups := w.attacked().Groups().Counters()
	w.lockFor(t, ctx, d/8) // the way is known again
	o.before = w.lockFor(t, ctx, d/2)
	size := heap()
	g := attackWith(t, w.order(t, s.kind, s.peers, s.streams))
	o.during = w.lockFor(t, ctx, d)
	o.heap = heap() - size
	o.streams, o.conns = w.strangersStreams()
	if s.keeps > 0 { // a stream is there before its protocol is known, and for a moment after it is reset
		eventually(t, "the attackers are down to the streams they may have", func() bool {
			n, _ := w.strangersStreams()
			return n <= s.peers*s.keeps
		})
	}
	o.report = g.stop()
	o.resets = w.attacked().Overlay().Stats().StreamsReset
	maps.DeleteFunc(o.resets, func(r dht.Reason, n uint64) bool { return n == base.StreamsReset[r] })
	for r := range o.resets {
		o.resets[r] -= base.StreamsReset[r]
	}
	o.busy = w.attacked().Overlay().Stats().Busy - base.Busy
	now := w.attacked().Groups().Counters()
	o.groups = replicagroup.Counters{
		StrayMessages: now.StrayMessages - groups.StrayMessages, StrayOutputs: now.StrayOutputs - groups.StrayOutputs,
		Malformed: now.Malformed - groups.Malformed, Busy: now.Busy - groups.Busy,
	}
	eventually(t, "the attackers' connections are gone", func() bool { _, c := w.strangersStreams(); return c == 0 })
	return o
}

func TestAttacks(t *testing.T) {
	if testing.Short() {
		t.Skip("attackers keep a processor busy for some ten seconds")
	}
	w := newWorld(t)
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			o := w.run(t, s, *attackTime)
			t.Logf("honest rounds: p50 %v, then %v (%.1f x); p99 %v, then %v (%.1f x); %d, then %d",
				quantile(o.before, 0.5), quantile(o.during, 0.5), ratio(o.before, o.during, 0.5),
				quantile(o.before, 0.99), quantile(o.during, 0.99), ratio(o.before, o.during, 0.99), len(o.before), len(o.during))
			t.Logf("heap %+d KiB; strangers' streams %d, connections %d; reset %v; busy %d; groups %+v; attackers %+v",
				o.heap>>10, o.streams, o.conns, o.resets, o.busy, o.groups, o.report)
			if o.heap > s.memory+slack {
				t.Errorf("the heap grew by %d MiB, which is beyond %d", o.heap>>20, (s.memory+slack)>>20)
			}
			if o.streams > s.peers*streamsPerPeer || o.conns > s.peers*connsPerPeer {
				t.Errorf("%d peers have %d streams and %d connections", s.peers, o.streams, o.conns)
			}
			if s.check != nil {
				s.check(t, w, o)
			}
			// Nobody else has felt it: no honest stream was reset for what came by it.
			for i, n := range append(slices.Clone(w.nodes), w.client) {
				if st := n.Overlay().Stats(); i != w.victim && len(st.StreamsReset) > 0 {
					t.Errorf("peer %d has reset streams of honest peers: %v", i, st.StreamsReset)
				}
			}
		})
	}
}
