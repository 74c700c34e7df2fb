package bench

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht/keyspace"
	"latchkey/dht/rawbench"
	"latchkey/internal/footprint"
	"latchkey/lockservice"
	"latchkey/lockservice/voterlog"
	"latchkey/replicagroup"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/session"
	"latchkey/testnet"
)

// Parameters of [Groups].
const (
	GroupsDefault = 10_000
	// GroupsMax is one less than a peer takes, since the root is a group too.
	GroupsMax = placement.HostedMax - 1

	// GroupsTimeDefault is long enough for a few collections of garbage not to look like a load.
	GroupsTimeDefault = 10 * time.Second

	// GroupsSettleDefault is from when all groups are led again until they have looked for somebody to take the place of the dead peer, which
	// each leader does once the peer counts as failed with it, and rest: that is work, and no cost of sleep. DeathCPUms tells of it.
	GroupsSettleDefault = 45 * time.Second

	groupsBits  = 14               // length of their prefixes: no overlay is that deep yet, and a longer one takes longer to find an anchor for
	asleepWait  = 10 * time.Minute // for all groups to elect a leader and fall asleep
	asleepPause = 500 * time.Millisecond
)

// GroupsOptions configures [Groups]. But for Peer, zero values stand for defaults.
type GroupsOptions struct {
	Groups int           // on each peer; 0 is GroupsDefault, at most GroupsMax
	Disk   bool          // stores on disk instead of in memory
	Time   time.Duration // how long to measure CPU; 0 is GroupsTimeDefault
	Settle time.Duration // from when all are led again after a death until CPU is measured anew, at least; 0 is GroupsSettleDefault
	Dir    string        // as in OrderOptions
	// Peer returns a command whose process calls [GroupPeer] with its standard input and output; ctx kills it.
	Peer func(ctx context.Context) *exec.Cmd

	Progress func(testnet.Progress) // Done and Total are replicas
}

// GroupsResult is what [Groups] found. Its JSON form is part of the command line's contract. Figures of a peer are
// means of those that run, each in a process to itself.
type GroupsResult struct {
	Bench        string  `json:"bench"`
	Operation    string  `json:"operation"`
	Groups       int     `json:"groups"` // asleep, each with a lock table
	Store        string  `json:"store"`  // memory or disk
	HeapMB       float64 `json:"heap_mb"`
	HeapEmptyMB  float64 `json:"heap_without_groups_mb"`
	BytesReplica float64 `json:"bytes_per_replica"` // of heap
	RSSMB        float64 `json:"rss_mb"`            // resident, the whole process, as a daemon comes to be within a minute (internal/footprint); -1 where the system does not tell
	RSSGroupsMB  float64 `json:"rss_of_groups_mb"`  // what of it a process without groups does not have
	RSSEmptyMB   float64 `json:"rss_of_process_mb"` // of a process without groups
	CPUPercent   float64 `json:"cpu_percent"`       // of one core
	CPUEmpty     float64 `json:"cpu_without_groups_percent"`
	MessagesS    float64 `json:"messages_per_s"`

	Peers      int     `json:"peers"`
	AsleepS    float64 `json:"asleep_after_s"` // from the start of the peers until every group has a leader and sleeps
	StartCPUms float64 `json:"cpu_ms_per_group_until_asleep"`

	// The figures after one of the peers was killed are those of the two that are left.
	Orphans       int     `json:"groups_of_killed"`             // that it led
	LedAgainS     float64 `json:"led_again_after_s"`            // from its death until all groups have a leader at both
	StatusMs      float64 `json:"status_ms"`                    // the longest question for the state of all groups meanwhile
	AsleepAgainS  float64 `json:"asleep_again_after_s"`         // from its death until all groups sleep, without it
	DeathCPUms    float64 `json:"cpu_ms_per_group_after_death"` // of both together, from the former measurement to the next
	CPUOneDead    float64 `json:"cpu_one_dead_percent"`         // of one core, once nobody is looked for any more
	MessagesDeadS float64 `json:"messages_one_dead_per_s"`
	HeapDeadMB    float64 `json:"heap_one_dead_mb"`

	Load float64 `json:"load"`
}

// Text writes the result for people, in columns separated by tabs.
func (r *GroupsResult) Text(w io.Writer) {
	fmt.Fprintf(w, "%s\t%s\n", r.Bench, r.Operation)
	fmt.Fprintf(w, "heap\t%.1f MB a peer, %.1f of them without groups; %.0f bytes a replica (store: %s)\n", r.HeapMB, r.HeapEmptyMB, r.BytesReplica, r.Store)
	fmt.Fprintf(w, "resident\t%.1f MB a peer, %.1f of them without groups\n", r.RSSMB, r.RSSEmptyMB)
	fmt.Fprintf(w, "CPU\t%.2f %% of a core a peer, %.2f without groups; %.1f messages a second\n", r.CPUPercent, r.CPUEmpty, r.MessagesS)
	fmt.Fprintf(w, "asleep\tafter %.1f s, with %.2f ms of CPU a group at all its members\n", r.AsleepS, r.StartCPUms)
	fmt.Fprintf(w, "a peer killed\t%d groups led again after %.1f s; a question for all states takes %.0f ms at most\n", r.Orphans, r.LedAgainS, r.StatusMs)
	fmt.Fprintf(w, "asleep without it\tafter %.1f s, with %.2f ms of CPU a group; then %.2f %% of a core a peer, %.1f messages a second, %.1f MB of heap\n",
		r.AsleepAgainS, r.DeathCPUms, r.CPUOneDead, r.MessagesDeadS, r.HeapDeadMB)
	fmt.Fprintf(w, "load average\t%.2f\n", r.Load)
}

// Groups measures what groups that sleep cost three peers that keep all of them, each in a process of its own.
func Groups(ctx context.Context, o GroupsOptions) (_ *GroupsResult, err error) {
	o.Groups, o.Time, o.Settle = cmp.Or(o.Groups, GroupsDefault), cmp.Or(o.Time, GroupsTimeDefault), cmp.Or(o.Settle, GroupsSettleDefault)
	if o.Groups < 0 || o.Groups > GroupsMax {
		return nil, fmt.Errorf("bench: %d groups: between 1 and %d", o.Groups, GroupsMax)
	}
	if o.Progress == nil {
		o.Progress = func(testnet.Progress) {}
	}
	dir, err := os.MkdirTemp(o.Dir, "latchkey-bench-")
	if err != nil {
		return nil, fmt.Errorf("bench: a directory for the stores: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	r := &GroupsResult{
		Bench: "groups", Operation: fmt.Sprintf("%d sleeping groups of three voters, all on the same three peers", o.Groups),
		Groups: o.Groups, Store: "memory", Peers: voters,
	}
	if o.Disk {
		r.Store = "disk"
	}
	empty, _, err := o.idle(ctx, 0, filepath.Join(dir, "empty"), nil)
	if err != nil {
		return nil, fmt.Errorf("bench: peers without groups: %w", err)
	}
	full, took, err := o.idle(ctx, o.Groups, filepath.Join(dir, "full"), r)
	if err != nil {
		return nil, fmt.Errorf("bench: peers with %d groups: %w", o.Groups, err)
	}
	r.HeapEmptyMB, r.HeapMB = float64(empty.Heap)/1e6, float64(full.Heap)/1e6
	r.BytesReplica = float64(full.Heap-empty.Heap) / float64(o.Groups)
	r.CPUEmpty, r.CPUPercent = 100*empty.CPU, 100*full.CPU
	r.RSSMB, r.RSSEmptyMB, r.MessagesS = full.RSS/1e6, empty.RSS/1e6, full.Messages
	r.RSSGroupsMB = r.RSSMB - r.RSSEmptyMB
	if full.RSS < 0 {
		r.RSSMB, r.RSSGroupsMB, r.RSSEmptyMB = -1, -1, -1
	}
	r.AsleepS, r.StartCPUms = took.Seconds(), full.StartCPU*1e3*voters/float64(o.Groups)
	r.Load = loadAverage()
	return r, nil
}

// groupsIdle is what an idle peer takes.
type groupsIdle struct {
	Heap     int64   // in use after a collection
	RSS      float64 // after what is free was given back; -1 where the system does not tell
	CPU      float64 // of one core
	Messages float64 // sent a second
	StartCPU float64 // seconds of CPU before it was measured
}

// groupsSetup is what the process of a peer is told once it listens.
type groupsSetup struct {
	Genesis []byte
	Peers   []peer.AddrInfo
	Groups  int
	Disk    bool
	Dir     string // of its store
	Time    time.Duration
}

// groupsAsk is what the process is asked then, again and again, until its input ends.
type groupsAsk struct {
	Dead    string // who was killed; empty: nobody
	Measure bool   // what an idle peer takes, rather than what its replicas do
}

// groupsNews is what it says: first where it listens, and then what it was asked.
type groupsNews struct {
	Self   *peer.AddrInfo `json:",omitempty"`
	Asleep int            // replicas that sleep and know a leader
	Led    int            // that know one, other than who was killed
	Dead   int            // whose leader was killed
	TookMs float64        // to count them
	Idle   *groupsIdle    `json:",omitempty"`
	Err    string         `json:",omitempty"`
}

// groupsPeer is the process of a peer.
type groupsPeer struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	tell  *json.Encoder
	news  *json.Decoder
}

// hear returns the next thing it says.
func (p *groupsPeer) hear() (n groupsNews, err error) {
	if err = p.news.Decode(&n); err == nil && n.Err != "" {
		err = errors.New(n.Err)
	}
	return n, err
}

// end has it end, and waits for that.
func (p *groupsPeer) end() error { return errors.Join(p.stdin.Close(), p.cmd.Wait()) }

// asked asks all of them the same, and returns what they say.
func asked(peers []*groupsPeer, what groupsAsk) ([]groupsNews, error) {
	for _, p := range peers {
		if err := p.tell.Encode(what); err != nil {
			return nil, err
		}
	}
	all := make([]groupsNews, 0, len(peers))
	for _, p := range peers {
		news, err := p.hear()
		if err != nil {
			return nil, err
		}
		all = append(all, news)
	}
	return all, nil
}

// until asks all of them until as many replicas as there are do what count counts.
func (o *GroupsOptions) until(ctx context.Context, peers []*groupsPeer, dead peer.ID, stage string, all int, each func(groupsNews), count func(groupsNews) int) error {
	for {
		news, err := asked(peers, groupsAsk{Dead: dead.String()})
		if err != nil {
			return err
		}
		n := 0
		for _, x := range news {
			each(x)
			n += count(x)
		}
		if o.Progress(testnet.Progress{Stage: stage, Done: n, Total: all}); n == all {
			return nil
		}
		if err := wait(ctx, asleepPause); err != nil {
			return err
		}
	}
}

// measured returns the mean of what they take.
func measured(peers []*groupsPeer) (mean groupsIdle, err error) {
	all, err := asked(peers, groupsAsk{Measure: true})
	n := len(peers)
	for _, news := range all {
		if news.Idle == nil {
			return mean, errors.New("bench: a peer that measures nothing")
		}
		i := *news.Idle
		mean.Heap += i.Heap / int64(n)
		mean.RSS += i.RSS / float64(n)
		mean.CPU += i.CPU / float64(n)
		mean.Messages += i.Messages / float64(n)
		mean.StartCPU += i.StartCPU / float64(n)
	}
	return mean, err
}

// idle starts three peers with n groups and measures them when all groups sleep. took is how long that took. Then, unless death is nil, it
// kills one of them, and says there what became of the others.
func (o *GroupsOptions) idle(ctx context.Context, n int, dir string, death *GroupsResult) (mean groupsIdle, took time.Duration, err error) {
	ctx, kill := context.WithCancel(ctx)
	defer kill()
	ctx, cancel := context.WithTimeoutCause(ctx, asleepWait, fmt.Errorf("they do not all sleep after %v", asleepWait))
	defer cancel()
	peers, setup := make([]*groupsPeer, 0, voters), groupsSetup{Groups: n, Disk: o.Disk, Time: o.Time}
	defer func() {
		if err != nil {
			kill()
		}
		for _, p := range peers {
			err = errors.Join(err, p.end())
		}
		if cause := context.Cause(ctx); err != nil && cause != nil && cause != context.Canceled {
			err = cause
		}
	}()
	for range voters {
		p := &groupsPeer{cmd: o.Peer(ctx)}
		out, err := p.cmd.StdoutPipe()
		if err != nil {
			return mean, 0, err
		}
		if p.stdin, err = p.cmd.StdinPipe(); err != nil {
			return mean, 0, err
		}
		if err := p.cmd.Start(); err != nil {
			return mean, 0, err
		}
		peers, p.tell, p.news = append(peers, p), json.NewEncoder(p.stdin), json.NewDecoder(out)
		hello, err := p.hear()
		if err != nil {
			return mean, 0, err
		}
		if hello.Self == nil {
			return mean, 0, errors.New("bench: a peer that does not say where it listens")
		}
		setup.Peers = append(setup.Peers, *hello.Self)
	}
	if setup.Genesis, err = foundedBy(setup.Peers).Encode(); err != nil {
		return mean, 0, err
	}
	start := time.Now()
	for i, p := range peers {
		setup.Dir = filepath.Join(dir, strconv.Itoa(i))
		if err := p.tell.Encode(setup); err != nil {
			return mean, 0, err
		}
	}
	asleep := func(x groupsNews) int { return x.Asleep }
	groups := n + 1 // the root's, too
	if err := o.until(ctx, peers, "", "asleep", voters*groups, func(groupsNews) {}, asleep); err != nil {
		return mean, 0, err
	}
	took = time.Since(start)
	if mean, err = measured(peers); err != nil || death == nil {
		return mean, took, err
	}

	// The last of them dies.
	last, id := peers[voters-1], setup.Peers[voters-1].ID
	news, err := asked(peers[:1], groupsAsk{Dead: id.String()})
	if err != nil {
		return mean, took, err
	}
	death.Orphans = news[0].Dead
	if err := last.cmd.Process.Kill(); err != nil {
		return mean, took, err
	}
	peers = peers[:voters-1]
	_ = last.end() // it was killed
	start = time.Now()
	longest := func(x groupsNews) { death.StatusMs = max(death.StatusMs, x.TookMs) }
	if err := o.until(ctx, peers, id, "led again", len(peers)*groups, longest, func(x groupsNews) int { return x.Led }); err != nil {
		return mean, took, err
	}
	led := time.Now()
	death.LedAgainS = led.Sub(start).Seconds()
	if err := o.until(ctx, peers, id, "asleep again", len(peers)*groups, longest, asleep); err != nil {
		return mean, took, err
	}
	death.AsleepAgainS = time.Since(start).Seconds()
	if err := wait(ctx, o.Settle-time.Since(led)); err != nil {
		return mean, took, err
	}
	without, err := measured(peers)
	death.DeathCPUms = (without.StartCPU - mean.StartCPU) * 1e3 * float64(len(peers)) / float64(max(n, 1))
	death.CPUOneDead, death.MessagesDeadS, death.HeapDeadMB = 100*without.CPU, without.Messages, float64(without.Heap)/1e6
	return mean, took, err
}

// GroupPeer is one peer of [Groups], in a process of its own. It returns when it is done, or ctx is, or there is no more input.
func GroupPeer(ctx context.Context, in io.Reader, out io.Writer) error {
	tell := json.NewEncoder(out)
	err := groupPeer(ctx, json.NewDecoder(in), tell)
	if err != nil {
		err = errors.Join(err, tell.Encode(groupsNews{Err: err.Error()}))
	}
	return err
}

func groupPeer(ctx context.Context, in *json.Decoder, out *json.Encoder) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go footprint.Keep(ctx) // as a daemon does
	p := new(trioPeer)
	defer func() { err = errors.Join(err, p.close()) }()
	self, err := p.listen()
	if err != nil {
		return err
	}
	if err := out.Encode(groupsNews{Self: &self}); err != nil {
		return err
	}
	var o groupsSetup
	if err := in.Decode(&o); err != nil {
		return err
	}
	g, err := placement.DecodeGenesis(o.Genesis)
	if err != nil {
		return err
	}
	store := inMemory
	if o.Disk {
		store = onDisk
	}
	limits := lockservice.LimitsOf(g.TTLMax, int64(g.Drift))
	locks := map[string]replicagroup.MachineFactory{lockservice.ServiceName: func(id order.GroupID) session.Machine {
		return lockservice.NewMachine(lockservice.MachineConfig{Gen: id.Gen, TTLMax: g.TTLMax, Drift: g.Drift, Sigma: min(lockservice.TTLDefault, g.TTLMax)})
	}}
	p.voters = lockservice.NewSigmaVoters(lockservice.SigmaVotersConfig{Limits: limits, Log: voterlog.NewMemory()})
	if err := p.start(ctx, g, o.Peers, o.Dir, store, locks, func(self keyspace.NodeID) error { return found(g, self, p.store, o.Groups) }); err != nil {
		return err
	}
	for {
		var what groupsAsk
		if err := in.Decode(&what); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		var news groupsNews
		if what.Measure {
			if news.Idle, err = p.idle(ctx, o.Time); err != nil {
				return err
			}
		} else if news, err = p.count(ctx, what.Dead); err != nil {
			return err
		}
		if err := out.Encode(news); err != nil {
			return err
		}
	}
}

// idle measures what the peer takes.
func (p *trioPeer) idle(ctx context.Context, d time.Duration) (*groupsIdle, error) {
	i := &groupsIdle{StartCPU: rawbench.CPUTime().Seconds()}
	messages, start, cpu := p.overlay.Stats().MessagesSent, time.Now(), rawbench.CPUTime()
	if err := wait(ctx, d); err != nil {
		return nil, err
	}
	took := time.Since(start).Seconds()
	i.CPU, i.Messages = (rawbench.CPUTime()-cpu).Seconds()/took, float64(p.overlay.Stats().MessagesSent-messages)/took
	i.Heap = heap()
	i.RSS = resident()
	return i, nil
}

// found writes n groups of the founders into a founder's store, as if they had been created.
func found(g placement.Genesis, self keyspace.NodeID, s replicagroup.Store, n int) error {
	d := g.RootDescriptor()
	m, ok := d.View.MemberAt(self)
	if !ok {
		return errors.New("bench: no founder")
	}
	for i := range n {
		var key keyspace.Key
		binary.BigEndian.PutUint16(key[:], uint16(i<<(16-groupsBits)))
		d.Group.Prefix = keyspace.PrefixOf(key, groupsBits)
		b, err := d.Encode()
		if err != nil {
			return err
		}
		if err := s.Create(replicagroup.Identity{Group: d.Group, Self: m.ID, Descriptor: b}); err != nil {
			return err
		}
	}
	return nil
}

// count counts what the replicas do.
func (p *trioPeer) count(ctx context.Context, dead string) (n groupsNews, err error) {
	start := time.Now()
	all, err := p.groups.Status(ctx)
	n.TookMs = time.Since(start).Seconds() * 1e3
	for _, r := range all {
		leader, ok := r.Status.View.Member(r.Status.Leader)
		switch {
		case !ok:
		case dead != "" && peer.ID(leader.PeerID).String() == dead:
			n.Dead++
		default:
			n.Led++
		}
		if ok && r.Status.Quiesced {
			n.Asleep++
		}
	}
	return n, err
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// heap returns how much heap is in use, after giving the rest back.
func heap() int64 {
	debug.FreeOSMemory()
	debug.FreeOSMemory() // pools are emptied by the second collection
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// resident returns the process's resident memory in bytes, -1 where the system does not tell.
func resident() float64 {
	var total, pages int
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return -1
	}
	if _, err := fmt.Sscan(string(b), &total, &pages); err != nil {
		return -1
	}
	return float64(pages * os.Getpagesize())
}
