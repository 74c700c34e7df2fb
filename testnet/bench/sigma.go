package bench

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/dht/rawbench"
	"latchkey/lockservice"
	"latchkey/node"
	"latchkey/testnet"
)

// Parameters of [LockSigma].
const (
	sigmaThere = "bench-there" // service that sends back what it is sent, by
	sigmaBack  = "bench-back"

	// requestBytes is about what the first frame of a lock has.
	requestBytes = 96
	sigmaNames   = 16
	pacedLocks   = 200 // a second, beside a leader that is killed

	// contendEach is for how long clients contend at least, for each of them: with two or three holds each, one more or less would look
	// unfair.
	contendEach = 2 * time.Millisecond
)

// sigmaClients are how many clients contend for one name.
var sigmaClients = []int{2, 8, 32, 128, 256}

// Contended is what clients have that take one lock in turns, each asking again at once. They are spread over all peers.
type Contended struct {
	Clients    int     `json:"clients"`
	Handovers  int     `json:"handovers"`
	HandoversS float64 `json:"handovers_per_s"`
	RoundTrips float64 `json:"handover_round_trips"` // time from one hold to the next, in raw round trips
	// P50RoundTrips is the median time from the call that releases the lock to the return of the call that waits for it.
	P50RoundTrips float64 `json:"handover_p50_round_trips"`
	Jain          float64 `json:"jain"` // 1: all had it equally often
	// Messages and CPUus are those of all peers together for one hold, from the first to the last.
	Messages float64 `json:"messages_per_handover"`
	CPUus    float64 `json:"cpu_us_per_handover"`
}

// Failover is what becomes of locks, some hundred a second of different names, while the leader of their group is killed.
type Failover struct {
	Locks     int     `json:"locks"`
	QuietP99  float64 `json:"quiet_p99_us"`
	KilledP99 float64 `json:"killed_p99_us"`
	Ratio     float64 `json:"ratio"`
	KilledMax float64 `json:"killed_max_us"`
}

// SigmaResult is what [LockSigma] found. Its JSON form is part of the command line's contract. The raw round trip is an echo to the same
// voters on the same streams, awaited from a majority.
type SigmaResult struct {
	Result
	Protocol  string      `json:"protocol"`
	OneRTT    float64     `json:"one_rtt_share"` // of uncontended locks
	PairsS    float64     `json:"pairs_per_s"`   // acquire and release, of 16 names by as many clients
	PairCPUus float64     `json:"pair_cpu_us"`
	Contended []Contended `json:"contended"`
	Least     float64     `json:"least_to_two_clients"` // the lowest rate of hand-overs, beside that of 2 clients
	Failover  Failover    `json:"leader_killed"`
}

// Text writes the result for people, in columns separated by tabs.
func (r *SigmaResult) Text(w io.Writer) {
	r.Result.Text(w)
	fmt.Fprintf(w, "one round trip\t%.1f %% of locks\n", 100*r.OneRTT)
	fmt.Fprintf(w, "%d names\t%.0f pairs a second, %.1f us of CPU each\n", sigmaNames, r.PairsS, r.PairCPUus)
	for _, c := range r.Contended {
		fmt.Fprintf(w, "%d clients\t%.0f hand-overs a second, one in %.2f raw round trips; from release to hold %.2f; %.1f messages, %.0f us of CPU; Jain %.3f\n",
			c.Clients, c.HandoversS, c.RoundTrips, c.P50RoundTrips, c.Messages, c.CPUus, c.Jain)
	}
	fmt.Fprintf(w, "least of these\t%.2f of the hand-overs of 2 clients\n", r.Least)
	f := r.Failover
	fmt.Fprintf(w, "leader killed\tp99 %.0f us, quiet %.0f us, ratio %.2f; longest %.0f us (%d locks)\n", f.KilledP99, f.QuietP99, f.Ratio, f.KilledMax, f.Locks)
}

// LockSigma measures locks of protocol sigma: a free one, taken and given back through a peer that does not vote in its group; many
// free ones; one for which many contend; and free ones while the leader of their group is killed.
func LockSigma(ctx context.Context, o Options) (_ *SigmaResult, err error) {
	echoes := new(sync.Map) // *node.Node to *majorityEcho
	prepare := func(_ int, n *node.Node) {
		n.Overlay().HandleBrief(sigmaThere, func(r *dht.Request) { _ = n.Overlay().Send(r.From, r.Key, sigmaBack, r.Data) })
		n.Overlay().HandleBrief(sigmaBack, func(r *dht.Request) {
			if e, ok := echoes.Load(n); ok {
				e.(*majorityEcho).heard(r.Data)
			}
		})
	}
	n, err := upWithin(ctx, testnet.Options{N: o.N, Prepare: prepare, Progress: o.Progress})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	from, leader, err := strangerAndLeader(ctx, n)
	if err != nil {
		return nil, err
	}
	voters, err := votersOf(ctx, from.Node())
	if err != nil {
		return nil, err
	}
	raw := &majorityEcho{overlay: from.Node().Overlay(), voters: voters, done: make(chan struct{}, 1), payload: make([]byte, requestBytes)}
	echoes.Store(from.Node(), raw)
	echo := func() error { return raw.do(ctx) }

	// A name of its own for every client, all in one group.
	names := namesLike(n, lockName, sigmaNames)
	clients := make([]*lockservice.Service, sigmaClients[len(sigmaClients)-1])
	for i := range clients {
		p, err := n.Peer(i % n.N())
		if err != nil {
			return nil, err
		}
		clients[i] = p.Node().NewLocks()
	}
	own := from.Node().NewLocks()
	ttl := lockservice.WithTTL(testnet.TTLMax)
	pair := func(locks *lockservice.Service, name string) (time.Duration, error) {
		start := time.Now()
		h, err := locks.Lock(ctx, name, ttl)
		took := time.Since(start)
		if err != nil {
			return 0, err
		}
		return took, h.Release(ctx)
	}

	r := &SigmaResult{Protocol: "sigma"}
	whole := cmp.Or(o.Time, TimeDefault)
	if err := r.uncontended(ctx, n, whole/2, from.Node(), func() (time.Duration, error) { return pair(own, lockName) }, echo, raw); err != nil {
		return nil, err
	}
	many, err := rawbench.MeasureMany(ctx, whole/8, sigmaNames, func(i int) error {
		_, err := pair(own, names[i])
		return err
	})
	if err != nil {
		return nil, err
	}
	r.PairsS, r.PairCPUus = many.OpsPerSecond(), micros(many.CPUPerOp())
	for _, k := range sigmaClients {
		c, err := contend(ctx, n, max(whole/16, time.Duration(k)*contendEach), clients[:k], r.RawP50us, ttl)
		if err != nil {
			return nil, err
		}
		r.Contended = append(r.Contended, c)
	}
	r.Least = leastToFirst(r.Contended)
	if r.Failover, err = failover(ctx, n, leader.Index(), whole/8, func(i int) (time.Duration, error) { return pair(own, names[i%sigmaNames]) }); err != nil {
		return nil, err
	}
	r.Load = loadAverage()
	return r, nil
}

// leastToFirst returns the lowest rate of hand-overs beside the first one; 0 where those made none, which is a measurement too short to tell.
func leastToFirst(all []Contended) float64 {
	least, first := math.Inf(1), all[0].HandoversS
	for _, c := range all {
		least = min(least, c.HandoversS)
	}
	if first == 0 {
		return 0
	}
	return least / first
}

// uncontended measures one caller, in turns with the raw round trip.
func (r *SigmaResult) uncontended(ctx context.Context, n *testnet.Network, d time.Duration, from *node.Node, op func() (time.Duration, error), echo func() error, raw *majorityEcho) error {
	var latencies, us, them rawbench.Result
	ours := func() error {
		took, err := op()
		latencies.Samples = append(latencies.Samples, took)
		return err
	}
	for _, op := range []func() error{ours, echo} { // opens streams, and is not counted
		if _, err := rawbench.Measure(ctx, turn, op); err != nil {
			return err
		}
	}
	latencies.Samples = nil
	idle, err := idleMessages(ctx, n)
	if err != nil {
		return err
	}
	messages, start, before := uint64(0), count(n), from.SigmaStats()
	for range max(1, int(d/(2*turn))) {
		was := count(n)
		m, err := rawbench.Measure(ctx, turn, ours)
		if err != nil {
			return err
		}
		messages += count(n).messages - was.messages
		us.Add(m)
		if m, err = rawbench.Measure(ctx, turn, echo); err != nil {
			return err
		}
		them.Add(m)
	}
	ops, end, after := float64(len(us.Samples)), count(n), from.SigmaStats()
	r.Result = Result{
		Bench: "lock", Operation: "acquire and release of a free lock, protocol sigma; latency of the acquire", Peers: n.N(), Operations: len(us.Samples),
		P50us: micros(latencies.Quantile(0.5)), P99us: micros(latencies.Quantile(0.99)), OpsPerS: us.OpsPerSecond(),
		RatioToRaw: float64(latencies.Quantile(0.5)) / float64(them.Quantile(0.5)),
		MessagesOp: max(0, float64(messages)-idle*us.Wall.Seconds()) / ops,
		AllocsOp:   us.AllocsPerOp(), CPUusOp: micros(us.CPUPerOp()),
		RawP50us: micros(them.Quantile(0.5)), RawCPUusOp: micros(them.CPUPerOp()), IdleMessage: idle,
		lookups: end.lookups - start.lookups, streams: end.streams - start.streams, suspicions: end.suspicions - start.suspicions,
	}
	r.OneRTT = float64(after.OneRound-before.OneRound) / float64(max(1, after.Acquired-before.Acquired))
	return nil
}

// contend has clients take one lock in turns for d.
func contend(ctx context.Context, n *testnet.Network, d time.Duration, clients []*lockservice.Service, rawUS float64, o lockservice.Option) (Contended, error) {
	counts, waits := make([]atomic.Int64, len(clients)), make([]rawbench.Result, len(clients))
	base, messages, cpu := time.Now(), count(n).messages, rawbench.CPUTime()
	var holds atomic.Int64
	var released atomic.Int64 // when it was last, since base
	turn := func(i int, c *lockservice.Service) error {
		asked := time.Since(base)
		h, err := c.Lock(ctx, "contended", o)
		if err != nil {
			return err
		}
		if at := time.Duration(released.Load()); at > asked { // it was waited for then
			waits[i].Samples = append(waits[i].Samples, time.Since(base)-at)
		}
		released.Store(int64(time.Since(base)))
		holds.Add(1)
		return h.Release(ctx)
	}
	var over atomic.Bool
	var ended atomic.Int64 // when it was over, since base; those who wait then have their turn yet, which is not counted
	var first atomic.Int64 // holds before the clock started, and those after it
	var end *time.Timer
	end = time.AfterFunc(time.Hour, func() {
		if first.Load() <= int64(len(clients)) && ctx.Err() == nil { // on a machine that is that busy it takes longer
			end.Reset(d)
			return
		}
		ended.Store(int64(time.Since(base)))
		over.Store(true)
	})
	defer end.Stop()
	var wg sync.WaitGroup
	errs := make([]error, len(clients))
	var begun time.Time
	started := make(chan struct{})
	for i, c := range clients {
		wg.Go(func() {
			for !over.Load() && errs[i] == nil {
				errs[i] = turn(i, c)
				if over.Load() {
					return
				}
				switch n := first.Add(1); {
				case n > int64(len(clients)):
					counts[i].Add(1)
				case n == int64(len(clients)): // everybody has had it once, as they take turns: all wait
					begun = time.Now()
					end.Reset(d)
					close(started)
				}
			}
		})
	}
	select {
	case <-started:
	case <-ctx.Done():
		over.Store(true)
	}
	wg.Wait()
	if err := errors.Join(append(errs, context.Cause(ctx))...); err != nil {
		return Contended{}, err
	}
	took := base.Add(time.Duration(ended.Load())).Sub(begun)
	sum, squares := 0.0, 0.0
	for i := range counts {
		x := float64(counts[i].Load())
		sum += x
		squares += x * x
	}
	c := Contended{
		Clients: len(clients), Handovers: int(sum), HandoversS: sum / took.Seconds(),
		Messages: float64(count(n).messages-messages) / float64(holds.Load()), CPUus: micros(rawbench.CPUTime()-cpu) / float64(holds.Load()),
	}
	var all rawbench.Result
	for i := range waits {
		all.Add(waits[i])
	}
	c.P50RoundTrips = micros(all.Quantile(0.5)) / rawUS
	if sum > 0 {
		c.Jain = sum * sum / (float64(len(clients)) * squares)
		c.RoundTrips = micros(took) / sum / rawUS
	}
	return c, nil
}

// failover measures locks for d, and again for d from the moment on in which a peer is killed.
func failover(ctx context.Context, n *testnet.Network, victim int, d time.Duration, lock func(i int) (time.Duration, error)) (Failover, error) {
	var f Failover
	measure := func(r *rawbench.Result) error {
		var mu sync.Mutex
		_, err := rawbench.MeasurePaced(ctx, d, pacedLocks, func(i int) error {
			took, err := lock(i)
			mu.Lock()
			defer mu.Unlock()
			r.Samples = append(r.Samples, took)
			return err
		})
		return err
	}
	var quiet, killed rawbench.Result
	if err := measure(&quiet); err != nil {
		return f, err
	}
	dead := make(chan error, 1)
	go func() { dead <- n.Kill(victim) }()
	if err := errors.Join(measure(&killed), <-dead); err != nil {
		return f, err
	}
	f = Failover{
		Locks: len(quiet.Samples) + len(killed.Samples), QuietP99: micros(quiet.Quantile(0.99)), KilledP99: micros(killed.Quantile(0.99)), KilledMax: micros(killed.Quantile(1)),
	}
	f.Ratio = f.KilledP99 / f.QuietP99
	return f, nil
}

// votersOf returns the peers that vote in the group of the lock to measure.
func votersOf(ctx context.Context, n *node.Node) ([]peer.ID, error) {
	d, err := n.Groups().Locate(ctx, keyspace.Preimage(lockName).Key())
	if err != nil {
		return nil, err
	}
	var voters []peer.ID
	for _, id := range d.View.Voters() {
		p, _ := d.Peer(id)
		voters = append(voters, peer.ID(p.ID))
	}
	return voters, nil
}

// namesLike returns names whose locks are in the group of name.
func namesLike(n *testnet.Network, name string, count int) (names []string) {
	p, err := n.Peer(0)
	if err != nil {
		return nil
	}
	g := p.Node().Genesis()
	want := g.PrefixOf(keyspace.Preimage(name).Key())
	for i := 0; len(names) < count; i++ {
		if s := fmt.Sprint(name, " ", i); g.PrefixOf(keyspace.Preimage(s).Key()) == want {
			names = append(names, s)
		}
	}
	return names
}

// majorityEcho is the raw round trip: a one-way message to each voter on the streams that locks use, which each sends back, awaited from a
// majority. One caller at a time.
type majorityEcho struct {
	overlay *dht.Overlay
	voters  []peer.ID
	payload []byte // begins with the number of the echo
	done    chan struct{}

	mu   sync.Mutex
	seq  uint64
	left int // answers that are awaited
}

func (e *majorityEcho) do(ctx context.Context) error {
	e.mu.Lock()
	e.seq++
	e.left = len(e.voters)/2 + 1
	binary.BigEndian.PutUint64(e.payload, e.seq)
	e.mu.Unlock()
	for _, v := range e.voters {
		if err := e.overlay.Send(v, keyspace.Key{}, sigmaThere, e.payload); err != nil {
			return err
		}
	}
	select {
	case <-e.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (e *majorityEcho) heard(data []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(data) < 8 || binary.BigEndian.Uint64(data) != e.seq || e.left == 0 {
		return
	}
	if e.left--; e.left == 0 {
		e.done <- struct{}{}
	}
}
