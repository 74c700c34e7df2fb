package bench

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/dht/rawbench"
	"latchkey/lockservice"
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

	groupsBits  = 14               // length of their prefixes: no overlay is that deep yet, and a longer one takes longer to find an anchor for
	asleepWait  = 10 * time.Minute // for all groups to elect a leader and fall asleep
	asleepPause = 500 * time.Millisecond
)

// GroupsOptions configures [Groups]. The zero value stands for the defaults.
type GroupsOptions struct {
	Groups int           // on each peer; 0 is GroupsDefault, at most GroupsMax
	Disk   bool          // stores on disk instead of in memory
	Time   time.Duration // how long to measure CPU; 0 is GroupsTimeDefault
	Dir    string        // as in OrderOptions

	Progress func(testnet.Progress) // Done and Total are replicas
}

// GroupsResult is what [Groups] found. Its JSON form is part of the command line's contract. All figures but the last four are of one
// peer; three run in the process, and are taken to share what it uses equally.
type GroupsResult struct {
	Bench        string  `json:"bench"`
	Operation    string  `json:"operation"`
	Groups       int     `json:"groups"` // asleep, each with a lock table
	Store        string  `json:"store"`  // memory or disk
	HeapMB       float64 `json:"heap_mb"`
	HeapEmptyMB  float64 `json:"heap_without_groups_mb"`
	BytesReplica float64 `json:"bytes_per_replica"` // of heap
	RSSMB        float64 `json:"rss_mb"`            // resident, after what is free was given back; -1 where the system does not tell
	RSSGroupsMB  float64 `json:"rss_of_groups_mb"`  // what of it was not there without groups
	RSSEmptyMB   float64 `json:"rss_of_process_mb"` // of the whole process, program text included, with peers that have no groups
	CPUPercent   float64 `json:"cpu_percent"`       // of one core
	CPUEmpty     float64 `json:"cpu_without_groups_percent"`
	MessagesS    float64 `json:"messages_per_s"`

	Peers      int     `json:"peers"`
	AsleepS    float64 `json:"asleep_after_s"` // from the start of the peers until every group has a leader and sleeps
	StartCPUms float64 `json:"cpu_ms_per_group_until_asleep"`
	Load       float64 `json:"load"`
}

// Text writes the result for people, in columns separated by tabs.
func (r *GroupsResult) Text(w io.Writer) {
	fmt.Fprintf(w, "%s\t%s\n", r.Bench, r.Operation)
	fmt.Fprintf(w, "heap\t%.1f MB a peer, %.1f of them without groups; %.0f bytes a replica (store: %s)\n", r.HeapMB, r.HeapEmptyMB, r.BytesReplica, r.Store)
	fmt.Fprintf(w, "resident\t%.1f MB for the groups of a peer; a process without groups has %.1f\n", r.RSSGroupsMB, r.RSSEmptyMB)
	fmt.Fprintf(w, "CPU\t%.2f %% of a core a peer, %.2f without groups; %.1f messages a second\n", r.CPUPercent, r.CPUEmpty, r.MessagesS)
	fmt.Fprintf(w, "asleep\tafter %.1f s, with %.2f ms of CPU a group at all its members\n", r.AsleepS, r.StartCPUms)
	fmt.Fprintf(w, "load average\t%.2f\n", r.Load)
}

// Groups measures what groups that sleep cost three peers that keep all of them.
func Groups(ctx context.Context, o GroupsOptions) (_ *GroupsResult, err error) {
	o.Groups, o.Time = cmp.Or(o.Groups, GroupsDefault), cmp.Or(o.Time, GroupsTimeDefault)
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
	before := heap()
	empty, err := o.idle(ctx, 0, filepath.Join(dir, "empty"), nil)
	if err != nil {
		return nil, fmt.Errorf("bench: peers without groups: %w", err)
	}
	full, err := o.idle(ctx, o.Groups, filepath.Join(dir, "full"), r)
	if err != nil {
		return nil, fmt.Errorf("bench: peers with %d groups: %w", o.Groups, err)
	}
	peers := float64(voters)
	r.HeapEmptyMB, r.HeapMB = float64(empty.heap-before)/peers/1e6, float64(full.heap-before)/peers/1e6
	r.BytesReplica = float64(full.heap-empty.heap) / peers / float64(o.Groups)
	r.CPUEmpty, r.CPUPercent = 100*empty.cpu/peers, 100*full.cpu/peers
	r.RSSMB, r.MessagesS = full.rss/peers/1e6, full.messages/peers
	r.RSSGroupsMB, r.RSSEmptyMB = (full.rss-empty.rss)/peers/1e6, empty.rss/1e6
	if full.rss < 0 {
		r.RSSMB, r.RSSGroupsMB, r.RSSEmptyMB = -1, -1, -1
	}
	r.Load = loadAverage()
	return r, nil
}

// idling is what three idle peers take together.
type idling struct {
	heap     int64   // in use after a collection
	rss      float64 // -1 where the system does not tell
	cpu      float64 // of one core
	messages float64 // a second
}

// idle starts three peers with n groups and measures them when all groups sleep. how, if any, is told how long that took.
func (o *GroupsOptions) idle(ctx context.Context, n int, dir string, how *GroupsResult) (_ idling, err error) {
	up, cancel := context.WithTimeoutCause(ctx, asleepWait, fmt.Errorf("they do not all sleep after %v", asleepWait))
	defer cancel()
	store := inMemory
	if o.Disk {
		store = onDisk
	}
	var genesis placement.Genesis
	locks := map[string]replicagroup.MachineFactory{lockservice.ServiceName: func(g order.GroupID) session.Machine {
		return lockservice.NewMachine(lockservice.MachineConfig{Gen: g.Gen, TTLMax: genesis.TTLMax, Drift: genesis.Drift})
	}}
	start, cpu := time.Now(), rawbench.CPUTime()
	t, err := newTrio(up, dir, store, locks, func(g placement.Genesis, self keyspace.NodeID, s replicagroup.Store) error {
		genesis = g
		return found(g, self, s, n)
	})
	if err != nil {
		return idling{}, err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	if err := t.asleep(up, voters*(n+1), o.Progress); err != nil {
		return idling{}, err
	}
	if how != nil {
		how.AsleepS = time.Since(start).Seconds()
		how.StartCPUms = float64((rawbench.CPUTime() - cpu).Microseconds()) / 1e3 / float64(max(n, 1))
	}
	i := idling{heap: heap(), rss: resident()}
	messages := t.messages()
	start, cpu = time.Now(), rawbench.CPUTime()
	if err := wait(ctx, o.Time); err != nil {
		return idling{}, err
	}
	took := time.Since(start).Seconds()
	i.cpu, i.messages = (rawbench.CPUTime()-cpu).Seconds()/took, float64(t.messages()-messages)/took
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

// asleep waits until so many replicas sleep, each with a leader.
func (t *trio) asleep(ctx context.Context, replicas int, progress func(testnet.Progress)) error {
	for {
		asleep := 0
		for _, p := range t.peers {
			all, err := p.groups.Status(ctx)
			if err != nil {
				return err
			}
			for _, r := range all {
				if r.Status.Quiesced && r.Status.Leader != 0 {
					asleep++
				}
			}
		}
		if progress(testnet.Progress{Stage: "asleep", Done: asleep, Total: replicas}); asleep == replicas {
			return nil
		}
		if err := wait(ctx, asleepPause); err != nil {
			return err
		}
	}
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
