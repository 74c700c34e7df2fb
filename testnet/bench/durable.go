package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/coherence"
	"latchkey/coherence/durable"
	"latchkey/dht/keyspace"
	"latchkey/dht/rawbench"
	"latchkey/lockservice"
	"latchkey/replicagroup/placement"
	"latchkey/testnet"
)

// Parameters of a measurement of durable objects.
const (
	sharersMost   = 16
	mixPeers      = 5
	mixObjects    = 1000
	mixWrites     = 100 // one operation in so many writes
	renewalLeases = 4   // for how many leases renewals are counted; for one, where there is little time
)

// DurableResult is what [Durable] found. Its JSON form is part of the command line's contract.
type DurableResult struct {
	Bench string `json:"bench"`
	Mode  string `json:"mode"`
	Peers int    `json:"peers"`

	HitNS     float64 `json:"hit_ns"` // a View of a copy that is here
	ClockNS   float64 `json:"clock_ns"`
	HitRatio  float64 `json:"hit_ratio_to_clock"` // to one time.Now
	HitAllocs float64 `json:"hit_allocs"`

	RawP50us      float64 `json:"raw_p50_us"`     // a raw round trip between who reads and writes, and the leader
	OrderedP50us  float64 `json:"ordered_p50_us"` // another service's command, ordered by the same group for its leader's own peer
	MissP50us     float64 `json:"miss_p50_us"`    // a read of what another peer has written
	MissRatio     float64 `json:"miss_ratio"`     // to a raw round trip
	MissMessages  float64 `json:"miss_messages"`  // of all peers
	StoreP50us    float64 `json:"store_p50_us"`   // a write of what nobody else has a copy of
	StoreRatio    float64 `json:"store_ratio"`    // to a raw round trip and an ordered command
	StoreMessages float64 `json:"store_messages"` // of all peers, those of the group's log included
	Sharers       int     `json:"sharers"`
	SharedP50us   float64 `json:"store_shared_p50_us"` // a write of what so many other peers have copies of
	SharedRatio   float64 `json:"store_shared_ratio"`  // to a write without, one after the other by the same peer

	// The same once more beside a write of what nobody else has that comes, as that does, after all those peers have read something else: what they
	// have just done costs the next write too. Of each the processors' time, of all peers together, and the least that the ratio can be where
	// messages cost what those of a raw round trip do and all processors are used: each sharer takes two.
	AfterP50us  float64 `json:"store_after_reads_p50_us"`
	AfterRatio  float64 `json:"store_shared_ratio_after_reads"`
	RawCPUus    float64 `json:"raw_cpu_us"`
	AfterCPUus  float64 `json:"store_after_reads_cpu_us"`
	SharedCPUus float64 `json:"store_shared_cpu_us"`
	SharedLeast float64 `json:"store_shared_ratio_least"`
	SharerCPUus float64 `json:"sharer_cpu_us"` // what each sharer adds
	SharerToRaw float64 `json:"sharer_cpu_ratio"`

	StaleOne     int `json:"stale_one_reader"`   // reads, after a write had returned, of what was there before; of one peer
	StaleSharers int `json:"stale_sharers"`      // of all sharers
	StaleCut     int `json:"stale_cut_off"`      // of a peer that is cut off
	Judged       int `json:"stale_writes"`       // after which all that was looked for
	CutMS        int `json:"write_past_cut_off"` // how long a write waited for a peer that is cut off; the most is an arbiter's wait

	Caches       int     `json:"caches"`                          // peers that have copies of all objects of one group
	Objects      int     `json:"objects"`                         // how many those are
	FillPerS     float64 `json:"fill_per_s"`                      // read misses, many at a time
	PerHalfLease float64 `json:"control_messages_per_half_lease"` // of one cache: renewals and their answers
	Renewed      float64 `json:"messages_per_half_lease"`         // of one cache, counted at all peers; with what else they say
	HalfLeases   float64 `json:"half_leases"`                     // that this was counted for
	AskedAgain   uint64  `json:"misses_while_renewed"`            // 0: copies that are hit are renewed in time

	MixPeers int     `json:"mix_peers"`
	MixPerS  float64 `json:"mix_ops_per_s"` // reads and, one in a hundred, writes, of all these peers, without a pause
	MixHits  float64 `json:"mix_hit_share"`

	Load float64 `json:"load"`
}

// Text writes the result for people, in columns separated by tabs.
func (r *DurableResult) Text(w io.Writer) {
	fmt.Fprintf(w, "hit\t%.1f ns, %.2f allocations by View; %.2f of one look at the clock of %.1f ns\n", r.HitNS, r.HitAllocs, r.HitRatio, r.ClockNS)
	fmt.Fprintf(w, "baselines\ta raw round trip to the leader %.0f us, an ordered command at the leader %.0f us\n", r.RawP50us, r.OrderedP50us)
	fmt.Fprintf(w, "read miss\tp50 %.0f us: %.2f raw round trips; %.2f messages\n", r.MissP50us, r.MissRatio, r.MissMessages)
	fmt.Fprintf(w, "write\tp50 %.0f us: %.2f of a raw round trip and an ordered command; %.2f messages\n", r.StoreP50us, r.StoreRatio, r.StoreMessages)
	fmt.Fprintf(w, "write, shared\tp50 %.0f us with %d sharers: %.2f of one without, %.2f of one without that follows the same reads (%.0f us); %.2f is the least here\n",
		r.SharedP50us, r.Sharers, r.SharedRatio, r.AfterRatio, r.AfterP50us, r.SharedLeast)
	fmt.Fprintf(w, "processors' time\ta raw round trip %.0f us, a write %.0f us, with sharers %.0f us: %.0f us for each, %.2f of a raw round trip\n", r.RawCPUus, r.AfterCPUus,
		r.SharedCPUus, r.SharerCPUus, r.SharerToRaw)
	fmt.Fprintf(w, "stale reads\tafter %d writes: %d of one reader, %d of %d sharers; %d of one that is cut off, for which a write waited %d ms\n", r.Judged, r.StaleOne, r.StaleSharers, r.Sharers,
		r.StaleCut, r.CutMS)
	fmt.Fprintf(w, "many copies\t%d caches of %d objects, filled at %.0f a second: %.2f control messages of a cache in half a lease, %.2f messages in all, %d misses\n",
		r.Caches, r.Objects, r.FillPerS, r.PerHalfLease, r.Renewed, r.AskedAgain)
	fmt.Fprintf(w, "read mostly\t%d peers: %.0f operations a second, %.1f %% hits\n", r.MixPeers, r.MixPerS, 100*r.MixHits)
	fmt.Fprintf(w, "load average\t%.2f\n", r.Load)
}

// durables is a measurement of durable objects under way.
type durables struct {
	ctx    context.Context
	net    *testnet.Network
	apps   []*coherence.Durable // by peer
	whole  time.Duration
	r      *DurableResult
	prefix keyspace.Prefix
	leader int
	writer int   // outside the group, if there is such a peer
	others []int // all but these two
	idle   float64
}

// Durable measures durable objects of one group: hits, misses, writes with sharers and without, stale reads, renewals, a mix.
func Durable(ctx context.Context, o ObjectOptions) (_ *DurableResult, err error) {
	n, err := upWithin(ctx, testnet.Options{N: cmp.Or(o.N, ObjectPeersDefault), NoSigma: true, Progress: o.Progress})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	b := &durables{ctx: ctx, net: n, whole: cmp.Or(o.Time, TimeDefault), r: &DurableResult{Bench: "object", Mode: "durable", Peers: n.N()}}
	for _, step := range []func() error{b.begin, b.hits, b.missesAndWrites, b.stale, func() error { return b.renewals(cmp.Or(o.Objects, ObjectsDefault)) }, b.mix} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("bench: durable object: %w", err)
		}
	}
	b.r.Load = loadAverage()
	return b.r, nil
}

// begin founds the group, and says who does what.
func (b *durables) begin() error {
	for i := range b.net.N() {
		p, err := b.net.Peer(i)
		if err != nil {
			return err
		}
		d, err := p.Node().Objects().Durable(objectApp)
		if err != nil {
			return err
		}
		b.apps = append(b.apps, d)
	}
	b.prefix = b.net.Genesis().PrefixOf(durable.KeyOf(objectApp + "/first"))
	if err := b.apps[0].Object("first").Set(b.ctx, nil); err != nil {
		return err
	}
	p, err := b.net.Peer(0)
	if err != nil {
		return err
	}
	groups := p.Node().Groups()
	d, err := groups.Locate(b.ctx, durable.KeyOf(objectApp+"/first"))
	if err != nil {
		return err
	}
	leader, err := groups.LeaderOf(b.ctx, d)
	if err != nil {
		return err
	}
	b.leader = b.net.IndexOf(peer.ID(leader.ID).String())
	voters := b.voters(&d)
	b.writer = (b.leader + 1) % b.net.N()
	for i := range b.net.N() {
		if !slices.Contains(voters, i) {
			b.writer = i
		}
	}
	for i := range b.net.N() {
		if i != b.leader && i != b.writer {
			b.others = append(b.others, i)
		}
	}
	b.idle, err = idleMessages(b.ctx, b.net)
	return err
}

// voters returns the peers that vote in a group.
func (b *durables) voters(d *placement.Descriptor) (at []int) {
	for _, id := range d.View.Voters() {
		v, _ := d.Peer(id)
		at = append(at, b.net.IndexOf(peer.ID(v.ID).String()))
	}
	return at
}

// name returns the name of an object in a directory of the group.
func (b *durables) name(directory string, i int) string {
	for k := 0; ; k++ {
		name := fmt.Sprintf("%s-%d/%d", directory, k, i)
		if b.net.Genesis().PrefixOf(durable.KeyOf(objectApp+"/"+name)) == b.prefix {
			return name
		}
	}
}

func (b *durables) hits() error {
	o := b.apps[b.writer].Object(b.name("hit", 0))
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
	clock := func() { sum += int(time.Now().Unix() & 1) }
	var ns, allocs [2][]float64
	for end := time.Now().Add(b.whole / 8); len(ns[0]) < 9 || time.Now().Before(end); {
		for i, op := range []func(){view, clock} {
			x, a := timed(op)
			ns[i], allocs[i] = append(ns[i], x), append(allocs[i], a)
		}
		if b.ctx.Err() != nil {
			return context.Cause(b.ctx)
		}
	}
	r := b.r
	r.HitNS, r.ClockNS = median(ns[0]), median(ns[1])
	r.HitRatio, r.HitAllocs = r.HitNS/r.ClockNS, slices.Min(allocs[0]) // others allocate meanwhile
	return failed
}

// lockLike returns the name of a lock that the group keeps.
func (b *durables) lockLike() string {
	for k := 0; ; k++ {
		name := fmt.Sprintf("bench-ordered-%d", k)
		if b.net.Genesis().PrefixOf(keyspace.Preimage(name).Key()) == b.prefix {
			return name
		}
	}
}

// timedCall is a latency that is sampled in turns with others.
type timedCall struct {
	op func(i int) (time.Duration, error)
	rawbench.Result
	cpu      time.Duration // of all peers, while it was timed
	messages uint64
	wall     time.Duration
}

// missesAndWrites measures all that takes the leader, in turns.
func (b *durables) missesAndWrites() error {
	w, lead := b.host(b.writer), b.host(b.leader)
	echo, err := rawbench.Open(b.ctx, w.Host(), lead.Host())
	if err != nil {
		return err
	}
	defer echo.Close()
	payload := make([]byte, payloadBytes)
	var cpu time.Duration
	took := func(f func() error) (d time.Duration, err error) {
		used, began := rawbench.CPUTime(), time.Now()
		err = f()
		d = time.Since(began)
		cpu += rawbench.CPUTime() - used
		return d, err
	}
	sharers := b.others[:min(len(b.others), sharersMost)]
	b.r.Sharers = len(sharers)
	author := b.apps[b.others[0]]
	alone, shared := b.apps[b.writer].Object(b.name("alone", 0)), b.apps[b.writer].Object(b.name("shared", 0))
	other := b.name("other", 0)
	lock, locks := b.lockLike(), lead.Node().Locks()
	readBy := func(name string) error {
		for _, s := range sharers {
			if _, err := b.apps[s].Object(name).Read(b.ctx); err != nil {
				return err
			}
		}
		return nil
	}
	calls := []*timedCall{
		{op: func(int) (time.Duration, error) { return took(func() error { return echo.Do(payload) }) }},
		{op: func(int) (time.Duration, error) {
			var h *lockservice.Handle
			d, err := took(func() (err error) {
				h, err = locks.Lock(b.ctx, lock, lockservice.WithTTL(testnet.TTLMax), lockservice.WithProtocol(lockservice.ProtocolGroup))
				return err
			})
			if err == nil {
				err = h.Release(b.ctx)
			}
			return d, err
		}},
		{op: func(i int) (time.Duration, error) {
			o := b.apps[b.writer].Object(b.name("miss", i))
			return took(func() error { _, err := o.Read(b.ctx); return err })
		}},
		{op: func(int) (time.Duration, error) { return took(func() error { return alone.Set(b.ctx, payload) }) }},
		{op: func(int) (time.Duration, error) {
			if err := readBy(shared.Name()); err != nil {
				return 0, err
			}
			return took(func() error { return shared.Set(b.ctx, payload) })
		}},
		{op: func(int) (time.Duration, error) {
			if err := b.apps[b.leader].Object(other).Set(b.ctx, payload); err != nil { // so that the reads are misses, as those of the shared one
				return 0, err
			}
			if err := readBy(other); err != nil {
				return 0, err
			}
			return took(func() error { return alone.Set(b.ctx, payload) })
		}},
	}
	const batch = 16
	misses := 0
	for round, end := 0, time.Now().Add(b.whole/2); round < 4 || time.Now().Before(end); round++ {
		for i := range batch {
			if err := author.Object(b.name("miss", misses+i)).Set(b.ctx, payload); err != nil {
				return err
			}
		}
		for _, c := range calls {
			cpu = 0
			before, start := count(b.net), time.Now()
			var samples []time.Duration
			for i := range batch {
				d, err := c.op(misses + i)
				if err != nil {
					return err
				}
				samples = append(samples, d)
			}
			if round > 0 { // the first opens streams and sessions
				c.Add(rawbench.Result{Samples: samples})
				c.wall, c.cpu = c.wall+time.Since(start), c.cpu+cpu
				c.messages += count(b.net).messages - before.messages
			}
		}
		misses += batch
	}
	p50 := func(i int) float64 { return micros(calls[i].Quantile(0.5)) }
	messages := func(c *timedCall) float64 {
		return max(0, float64(c.messages)-b.idle*c.wall.Seconds()) / float64(len(c.Samples))
	}
	r := b.r
	r.RawP50us, r.OrderedP50us, r.MissP50us, r.StoreP50us, r.SharedP50us = p50(0), p50(1), p50(2), p50(3), p50(4)
	r.MissRatio, r.StoreRatio, r.SharedRatio = r.MissP50us/r.RawP50us, r.StoreP50us/(r.RawP50us+r.OrderedP50us), r.SharedP50us/r.StoreP50us
	r.MissMessages, r.StoreMessages = messages(calls[2]), messages(calls[3])
	cpuOf := func(i int) float64 { return micros(calls[i].cpu) / float64(len(calls[i].Samples)) }
	r.AfterP50us, r.RawCPUus, r.SharedCPUus, r.AfterCPUus = p50(5), cpuOf(0), cpuOf(4), cpuOf(5)
	r.AfterRatio = r.SharedP50us / r.AfterP50us
	r.SharedLeast = (r.AfterP50us + float64(r.Sharers)*r.RawCPUus/float64(runtime.GOMAXPROCS(0))) / r.AfterP50us
	r.SharerCPUus = max(0, r.SharedCPUus-r.AfterCPUus) / float64(max(r.Sharers, 1))
	if r.RawCPUus > 0 { // not every system tells
		r.SharerToRaw = r.SharerCPUus / r.RawCPUus
	}
	return nil
}

func (b *durables) host(i int) *testnet.Peer {
	p, err := b.net.Peer(i)
	if err != nil {
		panic(err) // nobody is killed here
	}
	return p
}

// stale looks for reads that find what was there before a write that has returned: of one reader, of all sharers, and of one that is cut off.
func (b *durables) stale() error {
	name := b.name("stale", 0)
	o := b.apps[b.writer].Object(name)
	sharers := b.others[:b.r.Sharers]
	write := func(readers []int) (olds int, err error) {
		over := make(chan struct{})
		var all sync.WaitGroup
		for _, i := range readers { // who reads all the time has a copy most of the time
			reader := b.apps[i].Object(name)
			all.Go(func() {
				for {
					select {
					case <-over:
						return
					case <-time.After(100 * time.Microsecond):
						reader.Read(b.ctx)
					}
				}
			})
		}
		defer all.Wait()
		defer close(over)
		for range 25 {
			v, err := o.Write(b.ctx, nil)
			if err != nil {
				return 0, err
			}
			for _, i := range readers {
				now, err := b.apps[i].Object(name).Read(b.ctx)
				if err != nil {
					return 0, err
				}
				if now.Version < v {
					olds++
				}
			}
			b.r.Judged++
		}
		return olds, nil
	}
	var err error
	if b.r.StaleOne, err = write(sharers[:1]); err != nil {
		return err
	}
	if b.r.StaleSharers, err = write(sharers); err != nil {
		return err
	}
	// One that does not vote is cut off while it has a copy.
	p, err := b.net.Peer(b.leader)
	if err != nil {
		return err
	}
	d, err := p.Node().Groups().Locate(b.ctx, durable.KeyOf(objectApp+"/"+name))
	if err != nil {
		return err
	}
	cut := -1
	voters := b.voters(&d)
	for i := range b.net.N() {
		if i != b.writer && !slices.Contains(voters, i) {
			cut = i
		}
	}
	if cut < 0 {
		return nil // all of a small testnet vote
	}
	reader := b.apps[cut].Object(name)
	if _, err := reader.Read(b.ctx); err != nil {
		return err
	}
	if err := b.net.Partition(b.ctx, []int{cut}); err != nil {
		return err
	}
	began := time.Now()
	v, err := o.Write(b.ctx, nil)
	if err != nil {
		return err
	}
	b.r.CutMS = int(time.Since(began).Milliseconds())
	b.r.Judged++
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		ctx, cancel := context.WithTimeout(b.ctx, 50*time.Millisecond)
		now, err := reader.Read(ctx)
		cancel()
		if err == nil && now.Version < v {
			b.r.StaleCut++
		}
	}
	if err := b.net.Heal(b.ctx); err != nil {
		return err
	}
	_, err = reader.Read(b.ctx)
	return err
}

// renewals has many peers keep copies of many objects of the group, and counts what they say for it.
func (b *durables) renewals(objects int) error {
	caches := append(slices.Clone(b.others), b.writer)
	caches = caches[:min(len(caches), sharersMost)]
	names := make([]string, objects)
	dirs := make([]string, fillers) // creates of one directory go one after the other
	for i := range dirs {
		dirs[i] = b.name(fmt.Sprintf("many-%d", i), 0)
	}
	for i := range names {
		d := dirs[i%fillers]
		names[i] = fmt.Sprintf("%s%d", d[:len(d)-1], i)
	}
	if err := each(objects, func(i int) error { return b.apps[b.leader].Object(names[i]).Set(b.ctx, []byte{1}) }); err != nil {
		return err
	}
	held := make([]*coherence.DurableObject, len(caches)*objects)
	start := time.Now()
	if err := each(len(held), func(i int) error {
		held[i] = b.apps[caches[i%len(caches)]].Object(names[i/len(caches)])
		_, err := held[i].Read(b.ctx)
		return err
	}); err != nil {
		return err
	}
	r := b.r
	r.Caches, r.Objects, r.FillPerS = len(caches), objects, float64(len(held))/time.Since(start).Seconds()
	sum := func() (renewals, misses uint64) {
		for _, i := range caches {
			st := b.host(i).Node().Objects().DurableStats()
			renewals, misses = renewals+st.Renewals, misses+st.Misses
		}
		return renewals, misses
	}
	lease := durable.LeaseDefault
	hit := func(d time.Duration) error { // some copies of each cache, which is enough to have all of them renewed
		for end, i := time.Now().Add(d), 0; time.Now().Before(end); i++ {
			for k := range caches {
				if _, err := held[(i%objects)*len(caches)+k].Read(b.ctx); err != nil {
					return err
				}
			}
			time.Sleep(10 * time.Millisecond)
		}
		return nil
	}
	// What lapsed while others were filled is read again, and then all of it lasts.
	if err := each(len(held), func(i int) error { _, err := held[i].Read(b.ctx); return err }); err != nil {
		return err
	}
	renewed, missed := sum()
	before, start := count(b.net), time.Now()
	if err := hit(max(lease, min(renewalLeases*lease, b.whole))); err != nil {
		return err
	}
	took := time.Since(start)
	renewals, misses := sum()
	r.HalfLeases = float64(took) / float64(lease/2)
	per := float64(len(caches)) * r.HalfLeases
	r.PerHalfLease, r.AskedAgain = 2*float64(renewals-renewed)/per, misses-missed
	r.Renewed = max(0, float64(count(b.net).messages-before.messages)-b.idle*took.Seconds()) / per
	return nil
}

// mix has some peers read, and write now and then.
func (b *durables) mix() error {
	peers := append([]int{b.writer, b.leader}, b.others...)
	peers = peers[:min(len(peers), mixPeers)]
	names := make([]string, mixObjects)
	for i := range names {
		names[i] = b.name(fmt.Sprintf("mix-%d", i%fillers), i)
	}
	if err := each(len(names), func(i int) error { return b.apps[b.leader].Object(names[i]).Set(b.ctx, []byte{1}) }); err != nil {
		return err
	}
	counts, errs := make([]int, len(peers)), make([]error, len(peers))
	misses := func() (n uint64) {
		for _, i := range peers {
			n += b.host(i).Node().Objects().DurableStats().Misses
		}
		return n
	}
	before := misses()
	objects := make([][]*coherence.DurableObject, len(peers))
	for k, i := range peers {
		for _, name := range names {
			objects[k] = append(objects[k], b.apps[i].Object(name))
		}
	}
	var reads int
	var mu sync.Mutex
	var all sync.WaitGroup
	start := time.Now()
	end := start.Add(b.whole / 4)
	for k := range peers {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(k), 1))
			writes := 0
			for ; errs[k] == nil && (counts[k]&0xff != 0 || time.Now().Before(end)); counts[k]++ {
				o := objects[k][rng.IntN(mixObjects)]
				if rng.IntN(mixWrites) == 0 {
					errs[k] = o.Set(b.ctx, []byte{2})
					writes++
				} else {
					_, errs[k] = o.Read(b.ctx)
				}
			}
			mu.Lock()
			reads += counts[k] - writes
			mu.Unlock()
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	n := 0
	for _, c := range counts {
		n += c
	}
	r := b.r
	r.MixPeers, r.MixPerS = len(peers), float64(n)/time.Since(start).Seconds()
	r.MixHits = 1 - float64(misses()-before)/float64(max(reads, 1))
	return nil
}
