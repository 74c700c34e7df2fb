// Package bench measures latchkey on a fresh testnet against a raw libp2p round trip taken in the same run, in turns of a few
// milliseconds, so that whatever else the machine does falls on both. Ratios, counts and CPU per operation are dependable on a
// busy machine; microseconds and rates are not, and the load average that goes with them says so.
//
// The raw round trip is that of physics.md B1: one stream kept open between the same two hosts, a length prefix, one caller.
// It tells its own CPU time per operation, for both ends: a baseline that is slow by itself would flatter us.
//
// Messages are counted one by one at their senders, on all peers, batched or not; what the idle testnet sends anyway
// (heartbeats, keep-alives) is measured first and counted apart.
package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/dht/rawbench"
	"latchkey/lockservice"
	"latchkey/node"
	"latchkey/testnet"
)

// Parameters of a measurement.
const (
	TimeDefault  = 3 * time.Second
	turn         = 50 * time.Millisecond  // one side's turn
	idleTime     = 500 * time.Millisecond // for counting what an idle testnet sends
	payloadBytes = 64
	lockName     = "bench"
	echoService  = "bench-echo"
	readyMax     = 30 * time.Second
)

// Options configures a measurement. The zero value stands for the defaults.
type Options struct {
	N        int           // peers; 0 is seven
	Time     time.Duration // how long to measure, both sides together; 0 is TimeDefault
	Progress func(testnet.Progress)
}

// Result is what a measurement found. Its JSON form is part of the command line's contract.
type Result struct {
	Bench       string  `json:"bench"`
	Operation   string  `json:"operation"`    // what one operation is, and what part of it the latencies are of
	Peers       int     `json:"peers"`        // of the testnet
	Operations  int     `json:"operations"`   // that were measured
	P50us       float64 `json:"p50_us"`       // latency
	P99us       float64 `json:"p99_us"`       //
	OpsPerS     float64 `json:"ops_per_s"`    // one caller, one operation after the other
	RatioToRaw  float64 `json:"ratio_to_raw"` // p50 to p50
	MessagesOp  float64 `json:"messages_per_op"`
	AllocsOp    float64 `json:"allocs_per_op"` // of all peers together, like the CPU time
	CPUusOp     float64 `json:"cpu_us_per_op"`
	RawP50us    float64 `json:"raw_p50_us"`
	RawCPUusOp  float64 `json:"raw_cpu_us_per_op"`
	IdleMessage float64 `json:"idle_messages_per_s"` // of the whole testnet; not in messages_per_op
	Load        float64 `json:"load"`                // average of the last minute, at the end; -1 where the system does not tell

	lookups, streams uint64 // that were begun and opened during the measurement; repeated operations need none
	suspicions       uint64 // that peers had of each other then, right or wrong: who is suspected is asked and looked for anew
}

// Text writes the result for people, in columns separated by tabs.
func (r *Result) Text(w io.Writer) {
	fmt.Fprintf(w, "%s\t%s\n", r.Bench, r.Operation)
	fmt.Fprintf(w, "latency\tp50 %.1f us, p99 %.1f us (%d operations, %.0f a second, one after the other)\n", r.P50us, r.P99us, r.Operations, r.OpsPerS)
	fmt.Fprintf(w, "raw round trip\tp50 %.1f us, %.1f us of CPU, both ends, measured in turns with the above\n", r.RawP50us, r.RawCPUusOp)
	fmt.Fprintf(w, "ratio\t%.2f raw round trips\n", r.RatioToRaw)
	fmt.Fprintf(w, "per operation\t%.2f messages, %.1f us of CPU, %.0f allocations, all %d peers together\n", r.MessagesOp, r.CPUusOp, r.AllocsOp, r.Peers)
	fmt.Fprintf(w, "idle\t%.0f messages a second, all peers together; not counted above\n", r.IdleMessage)
	fmt.Fprintf(w, "load average\t%.2f\n", r.Load)
}

// Route measures a message to the peer closest to a key and its reply, with the owner known.
func Route(ctx context.Context, o Options) (*Result, error) {
	echo := func(_ int, n *node.Node) {
		n.Overlay().Handle(echoService, func(r *dht.Request) { r.Reply(r.Data) })
	}
	return run(ctx, o, echo, func(ctx context.Context, n *testnet.Network) (*subject, error) {
		from, err := n.Peer(0)
		if err != nil {
			return nil, err
		}
		at, to, err := ownedByAnother(ctx, n, from)
		if err != nil {
			return nil, err
		}
		payload := make([]byte, payloadBytes)
		return &subject{
			name: "route", operation: "a 64-byte message to the owner of a key, and its reply", from: from, to: to,
			op: func() (time.Duration, error) {
				start := time.Now()
				_, err := from.Node().Overlay().Route(ctx, at, echoService, payload)
				return time.Since(start), err
			},
		}, nil
	})
}

// ownedByAnother returns a key whose closest peer is not from, and that peer.
func ownedByAnother(ctx context.Context, n *testnet.Network, from *testnet.Peer) (keyspace.Preimage, *testnet.Peer, error) {
	for i := 0; ; i++ {
		at := keyspace.Preimage(fmt.Sprint("bench ", i))
		owners, err := from.Node().Overlay().ReplicaSet(ctx, at, 1)
		if err != nil {
			return "", nil, err
		}
		if owner := n.IndexOf(owners[0].ID.String()); owner != from.Index() {
			to, err := n.Peer(owner)
			return at, to, err
		}
	}
}

// LockGroup measures an uncontended lock of protocol group, taken and given back through a peer that neither leads the lock's
// group nor votes in it.
func LockGroup(ctx context.Context, o Options) (*Result, error) {
	return run(ctx, o, nil, func(ctx context.Context, n *testnet.Network) (*subject, error) {
		from, to, err := strangerAndLeader(ctx, n)
		if err != nil {
			return nil, err
		}
		locks := from.Node().Locks()
		return &subject{
			name: "lock", operation: "acquire and release of a free lock, protocol group; latency of the acquire", from: from, to: to,
			op: func() (time.Duration, error) {
				start := time.Now()
				h, err := locks.Lock(ctx, lockName, lockservice.WithTTL(testnet.TTLMax))
				took := time.Since(start)
				if err != nil {
					return 0, err
				}
				return took, h.Release(ctx)
			},
		}, nil
	})
}

// strangerAndLeader returns a peer outside the group of the lock to measure, or a follower when all peers are in it, and the
// group's leader.
func strangerAndLeader(ctx context.Context, n *testnet.Network) (from, to *testnet.Peer, err error) {
	asked, err := n.Peer(0)
	if err != nil {
		return nil, nil, err
	}
	key, err := asked.Node().Key(ctx, lockName)
	if err != nil {
		return nil, nil, err
	}
	if key.Group == nil || key.Group.Leader == "" {
		return nil, nil, errors.New("bench: the lock's group has no leader")
	}
	best := -1
	for i, p := range n.Status().Peers {
		switch {
		case p.Peer == key.Group.Leader:
		case !slices.Contains(key.Group.Members, p.Peer):
			best = i
		case best < 0:
			best = i
		}
	}
	if from, err = n.Peer(best); err != nil {
		return nil, nil, err
	}
	to, err = n.Peer(n.IndexOf(key.Group.Leader))
	return from, to, err
}

// subject is what is measured.
type subject struct {
	name, operation string
	from, to        *testnet.Peer                 // the ends of the raw round trip
	op              func() (time.Duration, error) // one operation; how long the part took that latencies are of
}

// run measures what make makes on a fresh testnet.
func run(ctx context.Context, o Options, prepare func(int, *node.Node), make func(context.Context, *testnet.Network) (*subject, error)) (_ *Result, err error) {
	n, err := upWithin(ctx, testnet.Options{N: o.N, NoSigma: true, Prepare: prepare, Progress: o.Progress})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	s, err := make(ctx, n)
	if err != nil {
		return nil, err
	}
	r, err := s.measure(ctx, n, cmp.Or(o.Time, TimeDefault))
	if err != nil {
		return nil, fmt.Errorf("bench: %s: %w", s.name, err)
	}
	return r, nil
}

func upWithin(ctx context.Context, o testnet.Options) (*testnet.Network, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, readyMax, fmt.Errorf("bench: the testnet is not up after %v", readyMax))
	defer cancel()
	return testnet.Up(ctx, o)
}

func (s *subject) measure(ctx context.Context, n *testnet.Network, d time.Duration) (*Result, error) {
	echo, err := rawbench.Open(ctx, s.from.Host(), s.to.Host())
	if err != nil {
		return nil, err
	}
	defer echo.Close()
	payload := [payloadBytes]byte{}
	raw := func() error { return echo.Do(payload[:]) }
	var latencies rawbench.Result // of the part of an operation that counts
	ours := func() error {
		took, err := s.op()
		latencies.Samples = append(latencies.Samples, took)
		return err
	}
	// The first turns open streams, sessions and groups, and are not counted.
	for _, op := range []func() error{ours, raw} {
		if _, err := rawbench.Measure(ctx, turn, op); err != nil {
			return nil, err
		}
	}
	latencies.Samples = nil
	idle, err := idleMessages(ctx, n)
	if err != nil {
		return nil, err
	}
	var us, them rawbench.Result
	messages, start := uint64(0), count(n)
	for range max(1, int(d/(2*turn))) {
		before := count(n)
		r, err := rawbench.Measure(ctx, turn, ours)
		if err != nil {
			return nil, err
		}
		messages += count(n).messages - before.messages
		us.Add(r)
		if r, err = rawbench.Measure(ctx, turn, raw); err != nil {
			return nil, err
		}
		them.Add(r)
	}
	ops, end := float64(len(us.Samples)), count(n)
	return &Result{
		Bench: s.name, Operation: s.operation, Peers: n.N(), Operations: len(us.Samples),
		P50us: micros(latencies.Quantile(0.5)), P99us: micros(latencies.Quantile(0.99)), OpsPerS: us.OpsPerSecond(),
		RatioToRaw: float64(latencies.Quantile(0.5)) / float64(them.Quantile(0.5)),
		MessagesOp: max(0, float64(messages)-idle*us.Wall.Seconds()) / ops,
		AllocsOp:   us.AllocsPerOp(), CPUusOp: micros(us.CPUPerOp()),
		RawP50us: micros(them.Quantile(0.5)), RawCPUusOp: micros(them.CPUPerOp()),
		IdleMessage: idle, Load: loadAverage(),
		lookups: end.lookups - start.lookups, streams: end.streams - start.streams, suspicions: end.suspicions - start.suspicions,
	}, nil
}

// counts are what all peers together have done.
type counts struct{ messages, lookups, streams, suspicions uint64 }

func count(n *testnet.Network) (c counts) {
	for i := range n.N() {
		if p, err := n.Peer(i); err == nil {
			st := p.Node().Overlay().Stats()
			c.messages += st.MessagesSent
			c.lookups += st.Lookups
			c.streams += st.StreamsOpened
			c.suspicions += st.Suspicions
		}
	}
	return c
}

// idleMessages returns how many messages a second the testnet sends when nobody asks for anything.
func idleMessages(ctx context.Context, n *testnet.Network) (float64, error) {
	before, start := count(n), time.Now()
	t := time.NewTimer(idleTime)
	defer t.Stop()
	select {
	case <-t.C:
		return float64(count(n).messages-before.messages) / time.Since(start).Seconds(), nil
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

// loadAverage returns the load average of the last minute, -1 where the system does not tell.
func loadAverage() float64 {
	load := -1.0
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		fmt.Sscan(string(b), &load)
	}
	return load
}
