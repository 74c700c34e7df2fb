package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/spf13/cobra"

	"latchkey/testnet"
	"latchkey/testnet/bench"
)

func benchVerb(a *app) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "bench",
		Short: "measure a fresh testnet on this machine: route, lock, order, object, groups, join",
		Long: `bench starts a testnet of its own, measures, and prints the figures beside those of what it is built on, taken in turns in the
same run: of a raw libp2p round trip between the same two hosts, or of the raft library alone. It needs no daemon.

On a machine that does other things too, trust the ratio, the counts and the CPU time; the load average tells.`,
		Example: `  latchkey bench route
  latchkey bench lock --protocol group -o json
  latchkey bench order --callers 512
  latchkey bench groups
  latchkey bench join`,
	})
	c.AddCommand(benchRouteVerb(a), benchLockVerb(a), benchOrderVerb(a), benchGroupsVerb(a), benchGroupPeerVerb(a), benchJoinVerb(a), benchObjectVerb(a))
	return c
}

// benchFlags are the flags that all benches have.
func benchFlags(c *cobra.Command, o *bench.Options) {
	c.Flags().IntVarP(&o.N, "nodes", "n", testnet.PeersDefault, "how many peers")
	c.Flags().DurationVar(&o.Time, "for", bench.TimeDefault, "how long to measure")
}

// printed is what a bench has found.
type printed interface{ Text(io.Writer) }

// measure makes a bench one that any of them is.
func measure[R printed](f func(context.Context, bench.Options) (R, error)) func(context.Context, bench.Options) (printed, error) {
	return func(ctx context.Context, o bench.Options) (printed, error) { return f(ctx, o) }
}

// bench runs one bench and prints what it found.
func (a *app) bench(c *cobra.Command, o bench.Options, measure func(context.Context, bench.Options) (printed, error)) error {
	if o.N <= 0 {
		return usagef("bench: -n %d: it must be positive", o.N)
	}
	if err := checkBenchTime(o.Time); err != nil {
		return err
	}
	ctx, release := interruptible(c.Context())
	defer release()
	o.Progress = a.progressBar()
	r, err := measure(ctx, o)
	if errors.Is(err, testnet.ErrOptions) {
		return usagef("%w", err)
	}
	if err != nil {
		return err
	}
	return a.value(r, func(w io.Writer) { r.Text(w) })
}

func checkBenchTime(d time.Duration) error {
	if d <= 0 || d > time.Hour {
		return usagef("bench: --for %v: give a time of up to an hour", d)
	}
	return nil
}

func benchRouteVerb(a *app) *cobra.Command {
	var o bench.Options
	c := &cobra.Command{
		Use:     "route",
		Short:   "a message to the owner of a key and its reply",
		Example: `  latchkey bench route -o json`,
		Args:    exactly(0),
		RunE:    func(c *cobra.Command, _ []string) error { return a.bench(c, o, measure(bench.Route)) },
	}
	benchFlags(c, &o)
	return c
}

func benchLockVerb(a *app) *cobra.Command {
	var o bench.Options
	var protocol string
	c := &cobra.Command{
		Use:   "lock",
		Short: "acquire and release of a free lock",
		Long: `lock takes a free lock and gives it back through a peer that is not in the lock's group, one time after the other.

With protocol sigma, the default, the raw round trip is an echo to the same voters, on the same streams, awaited from a majority. It also measures
many clients with a lock each, 2 to 256 clients that contend for one, and what becomes of free locks while the leader of their
group is killed.`,
		Example: `  latchkey bench lock -o json
  latchkey bench lock --protocol group -o json`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			switch protocol {
			case "group":
				return a.bench(c, o, measure(bench.LockGroup))
			case "sigma":
				return a.bench(c, o, measure(bench.LockSigma))
			}
			return usagef("bench lock: --protocol %s: use group or sigma", protocol)
		},
	}
	benchFlags(c, &o)
	c.Flags().StringVar(&protocol, "protocol", "sigma", "how the lock is kept: group or sigma")
	return c
}

func benchObjectVerb(a *app) *cobra.Command {
	var o bench.ObjectOptions
	var durable bool
	c := &cobra.Command{
		Use:   "object",
		Short: "hits and misses of shared objects, their memory, a hot one, a checkpoint",
		Long: `object shares objects of one application between all peers of a testnet. It measures a read that finds a copy (beside a read lock that nobody
else wants), a read of what another peer owns and a write of what another owns and 0, 1, 4 and 16 others have copies of (beside a raw round trip between
the two peers, in turns), the messages these take, the memory of copies, one object that seven peers update as fast as they can, and a checkpoint (beside
a plain copy of as many bytes over one stream). All peers are in this process, so rates of many at once are those of the whole machine.

With --durable they are durable objects of one group: a hit (beside one look at the clock), a read miss (beside a raw round trip to the group's leader), a
write that nobody and one that 16 peers have a copy of (beside that and a command that the group orders for its leader), reads that are stale after a
write has returned, of which there are none, what 16 peers with copies of all --objects say to keep them, and five peers that read a thousand objects and
write one time in a hundred.`,
		Example: `  latchkey bench object -o json
  latchkey bench object --durable -o json
  latchkey bench object --objects 50000
  latchkey bench object -n 7 --checkpoint 0`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case o.N < 3:
				return usagef("bench object: -n %d: at least 3", o.N)
			case o.Objects < 1 || o.Objects > bench.ObjectsMax:
				return usagef("bench object: --objects %d: between 1 and %d", o.Objects, bench.ObjectsMax)
			case o.CheckpointMiB < 0 || o.CheckpointMiB > bench.CheckpointMiBMax:
				return usagef("bench object: --checkpoint %d: between 0 and %d", o.CheckpointMiB, bench.CheckpointMiBMax)
			}
			if o.CheckpointMiB == 0 {
				o.CheckpointMiB = -1
			}
			if durable {
				if c.Flags().Changed("checkpoint") {
					return usagef("bench object: --checkpoint is about volatile objects, and --durable means others")
				}
				return a.bench(c, o.Options, func(ctx context.Context, basic bench.Options) (printed, error) {
					o.Options = basic
					return bench.Durable(ctx, o)
				})
			}
			return a.bench(c, o.Options, func(ctx context.Context, basic bench.Options) (printed, error) {
				o.Options = basic
				return bench.Object(ctx, o)
			})
		},
	}
	c.Flags().IntVarP(&o.N, "nodes", "n", bench.ObjectPeersDefault, "how many peers; with fewer than 18 some writes are left out")
	c.Flags().DurationVar(&o.Time, "for", bench.TimeDefault, "how long to measure hits, misses, writes and the hot object, together")
	c.Flags().IntVar(&o.Objects, "objects", bench.ObjectsDefault, "how many objects one peer makes and another reads, 64 at a time")
	c.Flags().BoolVar(&durable, "durable", false, "measure durable objects")
	c.Flags().IntVar(&o.CheckpointMiB, "checkpoint", bench.CheckpointMiBDefault, "MiB to save in a checkpoint; 0 is none")
	return c
}

func benchOrderVerb(a *app) *cobra.Command {
	var o bench.OrderOptions
	c := &cobra.Command{
		Use:   "order",
		Short: "commands ordered by a group of three voters, beside the raft library alone",
		Long: `order has a peer send 64-byte commands to a group of three voters that another one leads, and measures how many are ordered,
executed and answered in a second, by many callers at once, and how long one takes when there are 1,000 a second: with stores
in memory (no_sync), on disk without sync (disk_no_sync), and on disk as a daemon has them (disk_sync). In turns with the first of
them runs the raft library alone, in memory, without network, sessions or results, and as many callers (bare_raft).

Trust ratio_to_bare_raft, the counts and the CPU time; rates depend on what else the machine does. When all is over the group
is asked how many commands it has executed, and the bench fails unless each was executed once.`,
		Example: `  latchkey bench order -o json
  latchkey bench order --callers 64 --for 10s --dir /var/tmp`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if o.Callers <= 0 || o.Callers > bench.CallersMax {
				return usagef("bench order: --callers %d: between 1 and %d, which is what one peer takes of another at once", o.Callers, bench.CallersMax)
			}
			if err := checkBenchTime(o.Time); err != nil {
				return err
			}
			ctx, release := interruptible(c.Context())
			defer release()
			o.Progress = a.progressBar()
			r, err := bench.Order(ctx, o)
			if err != nil {
				return err
			}
			return a.value(r, func(w io.Writer) { r.Text(w) })
		},
	}
	c.Flags().IntVar(&o.Callers, "callers", bench.CallersDefault, "how many callers at once")
	c.Flags().DurationVar(&o.Time, "for", bench.TimeDefault, "how long to measure the commands in memory and the library; other figures take half of it")
	c.Flags().StringVar(&o.Dir, "dir", "", "where to make the stores on disk, which are removed (default: the system's directory for temporary files)")
	return c
}

func benchGroupsVerb(a *app) *cobra.Command {
	var o bench.GroupsOptions
	c := &cobra.Command{
		Use:   "groups",
		Short: "what groups that sleep cost a peer in memory and CPU",
		Long: `groups starts three peers that keep the same groups, each group with a lock table and none with anything to do, waits until all
of them have elected a leader and sleep, and measures heap, resident memory and CPU of a peer, beside those of three peers without
groups. Then it kills one of them, and tells how long it takes until the other two have a leader for every group again, until all
groups sleep without it, what that cost, and what they cost once they have looked for somebody to take its place, 45 seconds
after all were led again. Each peer has a process of its own; figures of a peer are means.`,
		Example: `  latchkey bench groups -o json
  latchkey bench groups --groups 1000 --disk`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if o.Groups <= 0 || o.Groups > bench.GroupsMax {
				return usagef("bench groups: --groups %d: between 1 and %d, which is what a peer keeps", o.Groups, bench.GroupsMax)
			}
			if err := checkBenchTime(o.Time); err != nil {
				return err
			}
			ctx, release := interruptible(c.Context())
			defer release()
			program, err := os.Executable()
			if err != nil {
				return err
			}
			o.Peer = func(ctx context.Context) *exec.Cmd {
				peer := exec.CommandContext(ctx, program, "bench", "group-peer")
				peer.Stderr = a.err
				return peer
			}
			o.Progress = a.progressBar()
			r, err := bench.Groups(ctx, o)
			if err != nil {
				return err
			}
			return a.value(r, func(w io.Writer) { r.Text(w) })
		},
	}
	c.Flags().IntVar(&o.Groups, "groups", bench.GroupsDefault, "how many groups")
	c.Flags().BoolVar(&o.Disk, "disk", false, "keep them on disk, as a daemon does, and not in memory")
	c.Flags().DurationVar(&o.Time, "for", bench.GroupsTimeDefault, "how long to measure CPU")
	c.Flags().StringVar(&o.Dir, "dir", "", "where to make the stores on disk, which are removed (default: the system's directory for temporary files)")
	return c
}

// benchGroupPeerVerb is what the processes run that benchGroupsVerb starts.
func benchGroupPeerVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "group-peer", Short: "one peer of bench groups", Hidden: true, Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error { return bench.GroupPeer(c.Context(), os.Stdin, a.out) },
	}
}

func benchJoinVerb(a *app) *cobra.Command {
	var o bench.JoinOptions
	c := &cobra.Command{
		Use:   "join",
		Short: "what a peer that joins moves: groups and bytes",
		Long: `join starts a testnet, makes groups, lets one more peer join, and waits until no group changes its members any more. It prints how
many groups did, and how much the newcomer received and sent until the last of them had taken it in.`,
		Example: `  latchkey bench join -o json
  latchkey bench join -n 7 --groups 16`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case o.N <= 0:
				return usagef("bench join: -n %d: it must be positive", o.N)
			case o.Groups <= 0 || o.Groups > bench.JoinGroupsMax:
				return usagef("bench join: --groups %d: between 1 and %d", o.Groups, bench.JoinGroupsMax)
			}
			ctx, release := interruptible(c.Context())
			defer release()
			o.Progress = a.progressBar()
			r, err := bench.Join(ctx, o)
			if errors.Is(err, testnet.ErrOptions) {
				return usagef("%w", err)
			}
			if err != nil {
				return err
			}
			return a.value(r, func(w io.Writer) { r.Text(w) })
		},
	}
	c.Flags().IntVarP(&o.N, "nodes", "n", bench.JoinPeersDefault, "how many peers before the join")
	c.Flags().IntVar(&o.Groups, "groups", bench.JoinGroupsDefault, "how many groups there are then")
	return c
}
