package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"

	"latchkey/coherence"
	"latchkey/dht/rawbench"
	"latchkey/testnet"
)

// Parameters of a measurement of objects.
const (
	objectApp = "bench"
	// ObjectPeersDefault is how many peers it takes to have one write what another owns and sixteen have copies of.
	ObjectPeersDefault = 18
	// CopiesMeasured is how many copies on one peer memory is measured with.
	CopiesMeasured = 100_000
	// ObjectsDefault is how many objects one peer makes and another reads.
	ObjectsDefault = 10_000
	// ObjectsMax bounds them.
	ObjectsMax = coherence.ObjectsMax / 2
	// CheckpointMiBDefault is how much the checkpoint saves that is measured, in values of a MiB.
	CheckpointMiBDefault = 100
	// CheckpointMiBMax bounds it: it is in memory about six times.
	CheckpointMiBMax = 1 << 10
	hitTurn          = 1 << 15 // hits in a turn
	missesMin        = 16      // that are measured at least
	fillers          = 64      // callers that make objects
)

// CopyBytesBound is the most memory that a copy of an object may take on a node, in bytes, with a short name and its place in the node's tables; the
// value comes on top. 100,000 copies so take 100 MiB at most.
const CopyBytesBound = 1 << 10

// copiesAtOnce is with how many copies an exclusive miss is measured.
var copiesAtOnce = []int{0, 1, 4, 16}

// ObjectOptions configures [Object]. The zero value stands for the defaults.
type ObjectOptions struct {
	Options
	Objects       int // 0 is ObjectsDefault
	CheckpointMiB int // 0 is CheckpointMiBDefault; below 0: no checkpoint
}

// ObjectResult is what [Object] found. Its JSON form is part of the command line's contract.
type ObjectResult struct {
	Bench string `json:"bench"`
	Peers int    `json:"peers"`

	HitNS     float64 `json:"hit_ns"` // a View of a copy that is here
	HitAllocs float64 `json:"hit_allocs"`
	LockNS    float64 `json:"rwmutex_ns"` // a read lock and its release, with nobody else
	HitRatio  float64 `json:"hit_ratio"`  // to that
	GetNS     float64 `json:"get_ns"`     // a Get of 64 bytes
	GetAllocs float64 `json:"get_allocs"`

	MissP50us    float64 `json:"miss_p50_us"` // a read of what another peer owns
	MissP99us    float64 `json:"miss_p99_us"`
	RawP50us     float64 `json:"raw_p50_us"` // a raw round trip between the two
	MissRatio    float64 `json:"miss_ratio"`
	MissMessages float64 `json:"miss_messages"` // of all peers, those of the group's log included
	MissCPUus    float64 `json:"miss_cpu_us"`   // of all peers

	Writes     []ExclusiveMiss `json:"writes"`
	WriteRatio float64         `json:"write_ratio"` // of the first, without copies

	Copies      int     `json:"copies"`     // that memory was measured with, on one node
	CopyBytes   float64 `json:"copy_bytes"` // of one, with its name and without its value
	CopyBound   int     `json:"copy_bytes_bound"`
	InBound     bool    `json:"in_bound"`
	Objects     int     `json:"objects"`      // that one peer made and another read, 64 at a time
	TouchPerS   float64 `json:"touch_per_s"`  // first writes
	FillPerS    float64 `json:"fill_per_s"`   // read misses
	FillCPUus   float64 `json:"fill_cpu_us"`  // of one of either, all peers together
	ObjectBytes float64 `json:"object_bytes"` // of one at all peers: two copies, three managers, and what is in the group's log of it

	HotWriters  int     `json:"hot_writers"` // peers that update one object
	HotPerS     float64 `json:"hot_updates_per_s"`
	HotJain     float64 `json:"hot_jain"` // 1: all got the same
	HotWorstMS  float64 `json:"hot_longest_ms"`
	HotPerRound float64 `json:"hot_round_trips"` // that one hand-over takes

	Checkpoint *CheckpointFigures `json:"checkpoint"`
	Load       float64            `json:"load"`
}

// ExclusiveMiss is a write of what another peer owns and others have copies of.
type ExclusiveMiss struct {
	Copies   int     `json:"copies"`
	P50us    float64 `json:"p50_us"`
	P99us    float64 `json:"p99_us"`
	Ratio    float64 `json:"ratio"`
	Messages float64 `json:"messages"`
}

// CheckpointFigures tell of a checkpoint, beside a plain copy over one stream.
type CheckpointFigures struct {
	MiB      int     `json:"mib"`
	Peers    int     `json:"peers"` // that have the application open, and share the objects
	MiBPerS  float64 `json:"mib_per_s"`
	CopyMiBS float64 `json:"copy_mib_per_s"`
	Ratio    float64 `json:"ratio"` // of the rates
}

// Text writes the result for people, in columns separated by tabs.
func (r *ObjectResult) Text(w io.Writer) {
	fmt.Fprintf(w, "hit\t%.1f ns, %.2f allocations by View; %.2f of a read lock of %.1f ns; Get %.1f ns, %.2f allocations\n", r.HitNS, r.HitAllocs, r.HitRatio, r.LockNS, r.GetNS, r.GetAllocs)
	fmt.Fprintf(w, "read miss\tp50 %.0f us, p99 %.0f us; %.2f raw round trips of %.1f us; %.2f messages, %.0f us of CPU, all %d peers together\n",
		r.MissP50us, r.MissP99us, r.MissRatio, r.RawP50us, r.MissMessages, r.MissCPUus, r.Peers)
	for _, x := range r.Writes {
		fmt.Fprintf(w, "exclusive miss\t%d copies: p50 %.0f us, p99 %.0f us; %.2f raw round trips; %.2f messages\n", x.Copies, x.P50us, x.P99us, x.Ratio, x.Messages)
	}
	fmt.Fprintf(w, "memory\t%d copies on a peer: %.0f bytes each without the value, of %d at most\n", r.Copies, r.CopyBytes, r.CopyBound)
	fmt.Fprintf(w, "many at once\t%d objects: %.0f first writes and %.0f read misses a second, %.0f us of CPU each; %.0f bytes of an object, all peers together\n",
		r.Objects, r.TouchPerS, r.FillPerS, r.FillCPUus, r.ObjectBytes)
	fmt.Fprintf(w, "hot object\t%d peers update it %.0f times a second, one in %.2f raw round trips; Jain %.3f, longest wait %.0f ms\n", r.HotWriters, r.HotPerS, r.HotPerRound, r.HotJain, r.HotWorstMS)
	if c := r.Checkpoint; c != nil {
		fmt.Fprintf(w, "checkpoint\t%d MiB of %d peers: %.0f MiB/s, %.2f of a plain copy at %.0f MiB/s\n", c.MiB, c.Peers, c.MiBPerS, c.Ratio, c.CopyMiBS)
	}
	fmt.Fprintf(w, "load average\t%.2f\n", r.Load)
}

// objects is a measurement under way.
type objects struct {
	ctx   context.Context
	net   *testnet.Network
	apps  []*coherence.App // by peer
	whole time.Duration
	r     *ObjectResult
	raw   rawbench.Result
	idle  float64
}

// Object measures shared objects: hits, misses, memory, a hot object, a checkpoint.
func Object(ctx context.Context, o ObjectOptions) (_ *ObjectResult, err error) {
	n, err := upWithin(ctx, testnet.Options{N: cmp.Or(o.N, ObjectPeersDefault), Progress: o.Progress})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	b := &objects{ctx: ctx, net: n, whole: cmp.Or(o.Time, TimeDefault), r: &ObjectResult{Bench: "object", Peers: n.N(), CopyBound: CopyBytesBound}}
	for i := range n.N() {
		p, err := n.Peer(i)
		if err != nil {
			return nil, err
		}
		app, err := p.Node().Objects().Open(ctx, objectApp)
		if err != nil {
			return nil, fmt.Errorf("bench: object: %w", err)
		}
		b.apps = append(b.apps, app)
	}
	steps := []func() error{b.hits, b.misses, b.writes, b.hot, func() error { return b.memory(cmp.Or(o.Objects, ObjectsDefault)) }}
	if o.CheckpointMiB >= 0 {
		steps = append(steps, func() error { return b.checkpoint(cmp.Or(o.CheckpointMiB, CheckpointMiBDefault)) })
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, fmt.Errorf("bench: object: %w", err)
		}
	}
	b.r.Load = loadAverage()
	return b.r, nil
}

// timed runs op many times and returns what one took, in nanoseconds, and how often it allocated.
func timed(op func()) (ns, allocs float64) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	for range hitTurn {
		op()
	}
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	return float64(took) / hitTurn, float64(after.Mallocs-before.Mallocs) / hitTurn
}

func median(xs []float64) float64 {
	slices.Sort(xs)
	return xs[len(xs)/2]
}

// hits measures reads of a copy that is here, and a read lock, in turns.
func (b *objects) hits() error {
	o := b.apps[0].Object("hit")
	if err := o.Set(b.ctx, make([]byte, payloadBytes)); err != nil {
		return err
	}
	var sum int
	var failed error
	see := func(v []byte) error { sum += len(v); return nil }
	view := func() {
		if err := o.View(b.ctx, see); err != nil {
			failed = err
		}
	}
	var mu sync.RWMutex
	value := make([]byte, payloadBytes)
	lock := func() {
		mu.RLock()
		sum += len(value)
		mu.RUnlock()
	}
	get := func() {
		if v, err := o.Get(b.ctx); err != nil {
			failed = err
		} else {
			sum += len(v)
		}
	}
	var ns, allocs [3][]float64
	for end := time.Now().Add(b.whole / 8); len(ns[0]) < 5 || time.Now().Before(end); {
		for i, op := range []func(){view, lock, get} {
			x, a := timed(op)
			ns[i], allocs[i] = append(ns[i], x), append(allocs[i], a)
		}
		if b.ctx.Err() != nil {
			return context.Cause(b.ctx)
		}
	}
	if failed != nil {
		return failed
	}
	r := b.r
	r.HitNS, r.LockNS, r.GetNS = median(ns[0]), median(ns[1]), median(ns[2])
	r.HitRatio = r.HitNS / r.LockNS
	// Of the quietest turn: others allocate meanwhile.
	r.HitAllocs, r.GetAllocs = slices.Min(allocs[0]), slices.Min(allocs[2])
	return nil
}

// misses measures reads of objects that another peer has just made, and raw round trips between the two, in turns. Each object is read once.
func (b *objects) misses() error {
	owner, reader := b.apps[0], b.apps[1]
	from, to := b.host(1), b.host(0)
	echo, err := rawbench.Open(b.ctx, from, to)
	if err != nil {
		return err
	}
	defer echo.Close()
	payload := [payloadBytes]byte{}
	raw := func() error { return echo.Do(payload[:]) }
	if _, err := rawbench.Measure(b.ctx, turn, raw); err != nil {
		return err
	}
	if b.idle, err = idleMessages(b.ctx, b.net); err != nil {
		return err
	}
	const batch = 16
	var took rawbench.Result
	messages, wall, made := uint64(0), time.Duration(0), 0
	for end := time.Now().Add(b.whole / 4); made < missesMin+batch || time.Now().Before(end); {
		var some []*coherence.Object
		for range batch {
			name := fmt.Sprintf("miss/%d", made)
			if err := owner.Object(name).Set(b.ctx, payload[:]); err != nil {
				return err
			}
			some = append(some, reader.Object(name))
			made++
		}
		before, start := count(b.net), time.Now()
		cpu := rawbench.CPUTime()
		var samples []time.Duration
		for _, o := range some {
			began := time.Now()
			if _, err := o.Get(b.ctx); err != nil {
				return err
			}
			samples = append(samples, time.Since(began))
		}
		if made > batch { // the first open streams
			took.Add(rawbench.Result{Samples: samples, CPU: rawbench.CPUTime() - cpu})
			wall += time.Since(start)
			messages += count(b.net).messages - before.messages
		}
		r, err := rawbench.Measure(b.ctx, turn/2, raw)
		if err != nil {
			return err
		}
		b.raw.Add(r)
	}
	n := float64(len(took.Samples))
	r := b.r
	r.MissP50us, r.MissP99us, r.RawP50us = micros(took.Quantile(0.5)), micros(took.Quantile(0.99)), micros(b.raw.Quantile(0.5))
	r.MissRatio = r.MissP50us / r.RawP50us
	r.MissMessages = max(0, float64(messages)-b.idle*wall.Seconds()) / n
	r.MissCPUus = micros(took.CPUPerOp())
	return nil
}

func (b *objects) host(i int) host.Host {
	p, err := b.net.Peer(i)
	if err != nil {
		panic(err) // nobody is killed here
	}
	return p.Host()
}

// writes measures writes of objects that another peer owns, with copies elsewhere.
func (b *objects) writes() error {
	for _, copies := range copiesAtOnce {
		if copies > b.net.N()-2 {
			continue
		}
		owner, writer, readers := b.apps[0], b.apps[1], b.apps[2:2+copies]
		var samples []time.Duration
		messages, wall, made := uint64(0), time.Duration(0), 0
		for end := time.Now().Add(b.whole / 8); made < missesMin || time.Now().Before(end); made++ {
			name := fmt.Sprintf("write/%d-%d", copies, made)
			if err := owner.Object(name).Set(b.ctx, make([]byte, payloadBytes)); err != nil {
				return err
			}
			for _, r := range readers {
				if _, err := r.Object(name).Get(b.ctx); err != nil {
					return err
				}
			}
			o := writer.Object(name)
			before, start := count(b.net), time.Now()
			if err := o.Set(b.ctx, make([]byte, payloadBytes)); err != nil {
				return err
			}
			took := time.Since(start)
			samples, wall = append(samples, took), wall+took
			messages += count(b.net).messages - before.messages
		}
		all := rawbench.Result{Samples: samples}
		b.r.Writes = append(b.r.Writes, ExclusiveMiss{
			Copies: copies, P50us: micros(all.Quantile(0.5)), P99us: micros(all.Quantile(0.99)),
			Ratio: micros(all.Quantile(0.5)) / b.r.RawP50us, Messages: max(0, float64(messages)-b.idle*wall.Seconds()) / float64(made),
		})
	}
	b.r.WriteRatio = b.r.Writes[0].Ratio
	return nil
}

// hot has several peers update one object.
func (b *objects) hot() error {
	writers := b.apps[:min(len(b.apps), 7)]
	counts := make([]int, len(writers))
	worst := make([]time.Duration, len(writers))
	errs := make([]error, len(writers))
	var all sync.WaitGroup
	start := time.Now()
	end := start.Add(b.whole / 4)
	for i, app := range writers {
		all.Go(func() {
			o := app.Object("hot")
			for time.Now().Before(end) {
				began := time.Now()
				if errs[i] = o.Update(b.ctx, func(v []byte) ([]byte, error) { return append(v[:len(v):len(v)], 1)[:min(len(v)+1, payloadBytes)], nil }); errs[i] != nil {
					return
				}
				counts[i]++
				worst[i] = max(worst[i], time.Since(began))
			}
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	took := time.Since(start)
	sum, squares := 0.0, 0.0
	for _, n := range counts {
		sum, squares = sum+float64(n), squares+float64(n)*float64(n)
	}
	r := b.r
	r.HotWriters, r.HotPerS, r.HotWorstMS = len(writers), sum/took.Seconds(), float64(slices.Max(worst).Microseconds())/1e3
	r.HotJain = sum * sum / (float64(len(counts)) * squares)
	r.HotPerRound = 1e6 / r.HotPerS / r.RawP50us
	return nil
}

// memory has one peer make copies that it does not ask for yet, which is all that a copy takes but for its value; and one peer make objects that
// another reads, many at once.
func (b *objects) memory(objects int) error {
	r := b.r
	idler := b.apps[len(b.apps)-1]
	before := heapNow()
	for i := range CopiesMeasured {
		idler.Object(fmt.Sprintf("copies-%d/%d", i%fillers, i))
	}
	r.Copies, r.CopyBytes = CopiesMeasured, max(0, float64(heapNow())-float64(before))/CopiesMeasured
	r.InBound = r.CopyBytes <= CopyBytesBound

	name := func(i int) string { return fmt.Sprintf("filled-%d/%d", i%fillers, i) }
	before = heapNow()
	start, cpu := time.Now(), rawbench.CPUTime()
	if err := each(objects, func(i int) error { return b.apps[0].Object(name(i)).Set(b.ctx, []byte{1}) }); err != nil {
		return err
	}
	r.TouchPerS = float64(objects) / time.Since(start).Seconds()
	start = time.Now()
	if err := each(objects, func(i int) error { _, err := b.apps[1].Object(name(i)).Get(b.ctx); return err }); err != nil {
		return err
	}
	r.Objects, r.FillPerS = objects, float64(objects)/time.Since(start).Seconds()
	r.FillCPUus = micros(rawbench.CPUTime()-cpu) / float64(2*objects)
	r.ObjectBytes = max(0, float64(heapNow())-float64(before)) / float64(objects)
	return nil
}

// each calls f with 0 to n-1, many at once, until one fails.
func each(n int, f func(i int) error) error {
	var next atomic.Int64
	errs := make([]error, fillers)
	var all sync.WaitGroup
	for k := range errs {
		all.Go(func() {
			for errs[k] == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				errs[k] = f(i)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// heapNow returns the memory that is in use, of all peers.
func heapNow() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// copyProtocol is that of the plain copy.
const copyProtocol protocol.ID = "/latchkey-bench/copy"

// checkpoint saves values of an application of three peers, and copies as much from one peer to another.
func (b *objects) checkpoint(mib int) error {
	const app = "bench-checkpoint"
	open := min(3, b.net.N())
	var apps []*coherence.App
	for i := range open {
		p, err := b.net.Peer(i)
		if err != nil {
			return err
		}
		a, err := p.Node().Objects().Open(b.ctx, app)
		if err != nil {
			return err
		}
		apps = append(apps, a)
	}
	for i := range mib {
		value := make([]byte, 1<<20)
		for j := range value {
			value[j] = byte(j*7 + i*131 + j>>8*i)
		}
		if err := apps[i%open].Object(fmt.Sprintf("v/%d", i)).Set(b.ctx, value); err != nil {
			return err
		}
	}
	start := time.Now()
	if _, err := apps[0].Checkpoint(b.ctx, coherence.GiveUpAfter(5*time.Minute)); err != nil {
		return err
	}
	took := time.Since(start)

	from, to := b.host(0), b.host(1)
	done := make(chan error, 1)
	to.SetStreamHandler(copyProtocol, func(s network.Stream) {
		n, err := io.Copy(io.Discard, s)
		if err == nil && n != int64(mib)<<20 {
			err = fmt.Errorf("%d bytes copied", n)
		}
		s.Close()
		done <- err
	})
	defer to.RemoveStreamHandler(copyProtocol)
	s, err := from.NewStream(b.ctx, to.ID(), copyProtocol)
	if err != nil {
		return err
	}
	defer s.Reset()
	chunk := make([]byte, 1<<20)
	start = time.Now()
	for range mib {
		if _, err := s.Write(chunk); err != nil {
			return err
		}
	}
	if err := s.CloseWrite(); err != nil {
		return err
	}
	select {
	case err := <-done:
		if err != nil {
			return err
		}
	case <-b.ctx.Done():
		return context.Cause(b.ctx)
	}
	plain := time.Since(start)
	rate := func(d time.Duration) float64 { return float64(mib) / d.Seconds() }
	b.r.Checkpoint = &CheckpointFigures{MiB: mib, Peers: open, MiBPerS: rate(took), CopyMiBS: rate(plain), Ratio: rate(took) / rate(plain)}
	return nil
}
