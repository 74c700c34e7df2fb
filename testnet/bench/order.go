package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"latchkey/dht/rawbench"
	"latchkey/replicagroup"
	"latchkey/replicagroup/disk"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/session"
	"latchkey/testnet"
)

// Parameters of [Order].
const (
	CallersDefault = 256
	// CallersMax is how many requests of one peer another takes at once; more callers would measure how they are turned away.
	CallersMax = 1024

	pacedRate  = 1000                   // commands a second
	orderTurn  = 100 * time.Millisecond // one side's turn
	perSession = session.WindowSize     // callers that share a session: more would wait for its window
)

// OrderOptions configures [Order]. The zero value stands for the defaults.
type OrderOptions struct {
	Callers int           // at once; 0 is CallersDefault, at most CallersMax
	Time    time.Duration // how long to measure commands without sync and the baseline, together; every other figure takes half of it. 0 is TimeDefault
	Dir     string        // where stores on disk are made, and removed; empty: the system's directory for such things

	Progress func(testnet.Progress)
}

// OrderResult is what [Order] found. Its JSON form is part of the command line's contract.
type OrderResult struct {
	Bench     string `json:"bench"`
	Operation string `json:"operation"` // what one operation is
	Voters    int    `json:"voters"`
	Callers   int    `json:"callers"` // of the batched loads
	Payload   int    `json:"payload_bytes"`
	Rate      int    `json:"paced_per_s"` // of the paced loads

	NoSync   OrderLoads `json:"no_sync"`      // stores in memory, as of volatile peers
	Disk     OrderLoads `json:"disk_no_sync"` // stores on disk that are never synced
	Sync     OrderLoads `json:"disk_sync"`    // stores on disk, as daemons have them
	BareRaft OrderLoad  `json:"bare_raft"`    // three members of the library in memory: no network, sessions, stores or results

	// Ratio is the rate of no_sync.batched to that of bare_raft: the median of what pairs of turns say, of which a busy machine spoils some.
	Ratio float64 `json:"ratio_to_bare_raft"`
	// CPURatio is the same of commands by CPU time, which says more where others use the machine.
	CPURatio float64 `json:"cpu_ratio_to_bare_raft"`

	Commands uint64  `json:"commands"` // that were ordered in all, warm-up included, each executed once: the machines were asked
	Errors   int     `json:"errors"`   // always 0: an error ends the bench
	Load     float64 `json:"load"`     // average of the last minute, at the end; -1 where the system does not tell
}

// OrderLoads are the figures of one kind of store.
type OrderLoads struct {
	Batched OrderLoad `json:"batched"` // as many callers as there are, each one command after the other
	Paced   OrderLoad `json:"paced"`
}

// OrderLoad are the figures of one load. CPU time and allocations are those of all peers together, callers included.
type OrderLoad struct {
	Operations int     `json:"operations"`
	OpsPerS    float64 `json:"ops_per_s"`
	P50us      float64 `json:"p50_us"`
	P99us      float64 `json:"p99_us"`
	CPUusOp    float64 `json:"cpu_us_per_op"`
	AllocsOp   float64 `json:"allocs_per_op"`
	MessagesOp float64 `json:"messages_per_op"` // of the network; 0 for the baseline, which has none
}

// Text writes the result for people, in columns separated by tabs.
func (r *OrderResult) Text(w io.Writer) {
	fmt.Fprintf(w, "%s\t%s\n", r.Bench, r.Operation)
	line := func(name string, l OrderLoad) {
		fmt.Fprintf(w, "%s\t%.0f a second, p50 %.2f ms, p99 %.2f ms; each %.1f us of CPU, %.0f allocations, %.2f messages\n",
			name, l.OpsPerS, l.P50us/1e3, l.P99us/1e3, l.CPUusOp, l.AllocsOp, l.MessagesOp)
	}
	for _, s := range []struct {
		name string
		OrderLoads
	}{{"without sync", r.NoSync}, {"on disk, without sync", r.Disk}, {"on disk, with sync", r.Sync}} {
		line(fmt.Sprintf("%s, %d callers", s.name, r.Callers), s.Batched)
		line(fmt.Sprintf("%s, paced", s.name), s.Paced)
	}
	line(fmt.Sprintf("bare raft, %d callers", r.Callers), r.BareRaft)
	fmt.Fprintf(w, "ratio\t%.2f of bare raft's rate, the median of turns; %.2f of it by CPU time\n", r.Ratio, r.CPURatio)
	fmt.Fprintf(w, "commands\t%d, each executed once\n", r.Commands)
	fmt.Fprintf(w, "load average\t%.2f\n", r.Load)
}

// Order measures commands ordered and executed by a group of three voters, sent by a peer that does not lead it: through its client to
// the leader's host, the log, the stores and the machine, and back. Bare raft is measured in turns with those whose stores are
// in memory.
func Order(ctx context.Context, o OrderOptions) (_ *OrderResult, err error) {
	o.Callers = cmp.Or(o.Callers, CallersDefault)
	o.Time = cmp.Or(o.Time, TimeDefault)
	if o.Callers < 0 || o.Callers > CallersMax {
		return nil, fmt.Errorf("bench: %d callers: between 1 and %d", o.Callers, CallersMax)
	}
	if o.Progress == nil {
		o.Progress = func(testnet.Progress) {}
	}
	r := &OrderResult{
		Bench: "order", Operation: "a 64-byte command from a follower's client, ordered, executed and answered",
		Voters: voters, Callers: o.Callers, Payload: payloadBytes, Rate: pacedRate,
	}
	dir, err := os.MkdirTemp(o.Dir, "latchkey-bench-")
	if err != nil {
		return nil, fmt.Errorf("bench: a directory for the stores: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	runs := []struct {
		name  string
		loads *OrderLoads
		store makeStore
		bare  *OrderLoad
	}{
		{"without sync", &r.NoSync, inMemory, &r.BareRaft},
		{"on disk, without sync", &r.Disk, onDiskUnsynced, nil},
		{"on disk, with sync", &r.Sync, onDisk, nil},
	}
	for i, s := range runs {
		o.Progress(testnet.Progress{Stage: s.name, Done: i, Total: len(runs)})
		commands, ratio, err := o.loads(ctx, s.loads, s.bare, filepath.Join(dir, s.name), s.store)
		if err != nil {
			return nil, fmt.Errorf("bench: %s: %w", s.name, err)
		}
		r.Commands += commands
		r.Ratio += ratio // of the one that has a baseline
	}
	o.Progress(testnet.Progress{Stage: "done", Done: len(runs), Total: len(runs)})
	r.CPURatio = r.BareRaft.CPUusOp / max(r.NoSync.Batched.CPUusOp, 0.1)
	r.Load = loadAverage()
	return r, nil
}

// makeStore makes a store that has an id, for a peer of an overlay, in a directory if it needs one; done closes it.
type makeStore func(dir string, overlay order.OverlayID, id order.StoreID) (s replicagroup.Store, done func() error, err error)

func inMemory(_ string, _ order.OverlayID, id order.StoreID) (replicagroup.Store, func() error, error) {
	return replicagroup.NewMemoryStoreAs(id), func() error { return nil }, nil
}

func onDisk(dir string, overlay order.OverlayID, id order.StoreID) (replicagroup.Store, func() error, error) {
	if err := disk.Create(dir, overlay, id); err != nil {
		return nil, nil, err
	}
	s, err := disk.Open(dir, disk.Options{Overlay: overlay})
	if err != nil {
		return nil, nil, err
	}
	return s, s.Close, nil
}

func onDiskUnsynced(dir string, overlay order.OverlayID, id order.StoreID) (replicagroup.Store, func() error, error) {
	s, done, err := onDisk(dir, overlay, id)
	return unsynced{s}, done, err
}

// unsynced is a store that leaves it to the system when what is written reaches the disk.
type unsynced struct{ replicagroup.Store }

func (s unsynced) Write(batch []replicagroup.Write, _ bool) error { return s.Store.Write(batch, false) }

// loads measures one kind of store, in turns with bare raft where that is asked for. It returns how many commands there were, and
// how many there were for each of bare raft's.
func (o *OrderOptions) loads(ctx context.Context, out *OrderLoads, bare *OrderLoad, dir string, store makeStore) (_ uint64, ratio float64, err error) {
	up, cancel := context.WithTimeoutCause(ctx, readyMax, fmt.Errorf("three peers are not up after %v", readyMax))
	defer cancel()
	t, err := newTrio(up, dir, store, counting)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	s, err := newSender(ctx, t, o.Callers)
	if err != nil {
		return 0, 0, err
	}
	var base *bareRaft
	if bare != nil {
		if base, err = newBareRaft(ctx, o.Callers); err != nil {
			return 0, 0, err
		}
		defer base.close()
	}
	if _, _, err := o.turn(ctx, s, base); err != nil { // streams, sessions and pools are made; not counted
		return 0, 0, err
	}
	var us, them rawbench.Result
	var ratios []float64
	messages := uint64(0)
	for range max(1, int(o.Time/(2*orderTurn))) {
		before := t.messages()
		ours, theirs, err := o.turn(ctx, s, base)
		if err != nil {
			return 0, 0, err
		}
		messages += t.messages() - before
		us.Add(ours)
		them.Add(theirs)
		if theirs.OpsPerSecond() > 0 {
			ratios = append(ratios, ours.OpsPerSecond()/theirs.OpsPerSecond())
		}
	}
	out.Batched = figures(us, messages)
	if bare != nil {
		*bare = figures(them, 0)
		if slices.Sort(ratios); len(ratios) > 0 {
			ratio = ratios[len(ratios)/2]
		}
	}
	before := t.messages()
	paced, err := rawbench.MeasurePaced(ctx, o.Time/2, pacedRate, func(i int) error { return s.do(ctx, i%o.Callers) })
	if err != nil {
		return 0, 0, err
	}
	out.Paced = figures(paced, t.messages()-before)
	commands, err := s.check(ctx)
	return commands, ratio, err
}

// turn lets the commands have a turn, and then bare raft if there is any.
func (o *OrderOptions) turn(ctx context.Context, s *sender, base *bareRaft) (us, them rawbench.Result, err error) {
	d := min(orderTurn, o.Time/2)
	us, err = rawbench.MeasureMany(ctx, d, o.Callers, func(caller int) error { return s.do(ctx, caller) })
	if err == nil && base != nil {
		payload := make([]byte, payloadBytes)
		them, err = rawbench.MeasureMany(ctx, d, o.Callers, func(caller int) error { return base.do(ctx, caller, payload) })
	}
	return us, them, err
}

func figures(r rawbench.Result, messages uint64) OrderLoad {
	return OrderLoad{
		Operations: len(r.Samples), OpsPerS: r.OpsPerSecond(), P50us: micros(r.Quantile(0.5)), P99us: micros(r.Quantile(0.99)),
		CPUusOp: micros(r.CPUPerOp()), AllocsOp: r.AllocsPerOp(), MessagesOp: float64(messages) / float64(max(len(r.Samples), 1)),
	}
}
