package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"latchkey/testnet"
)

// peerVerb is a verb that does something to each of the peers that it names.
type peerVerb struct {
	name, short, long, example string
	done                       string // what has happened to a peer then
	do                         func(*testnet.Remote, context.Context, int) error
	fits                       func(testnet.PeerStatus) error // why it cannot be done to a peer; nil: it can
}

func notDown(p testnet.PeerStatus) error {
	if !p.Up && p.PID == 0 {
		return fmt.Errorf("%w: %d", testnet.ErrDown, p.N)
	}
	return nil
}

func notUp(p testnet.PeerStatus) error {
	if p.Up || p.PID != 0 {
		return fmt.Errorf("%w: %d", testnet.ErrUp, p.N)
	}
	return nil
}

func notAway(p testnet.PeerStatus) error {
	if p.Paused {
		return fmt.Errorf("%w: %d", testnet.ErrPaused, p.N)
	}
	return notDown(p)
}

func notAwake(p testnet.PeerStatus) error {
	if p.Paused {
		return nil
	}
	if err := notDown(p); err != nil {
		return err
	}
	return fmt.Errorf("%w: %d", testnet.ErrNotPaused, p.N)
}

// peerVerbs are all of these.
var peerVerbs = []peerVerb{
	{
		name: "kill", short: "kill peers without a goodbye", done: "killed", do: (*testnet.Remote).Kill, fits: notDown,
		example: `  latchkey testnet kill 3
  latchkey testnet kill 0,2`,
	}, {
		name: "restart", short: "start peers again that were killed or have left", done: "restarted", do: (*testnet.Remote).Restart, fits: notUp,
		long: `restart starts each peer with the identity and the port it had, and waits until it and those that it can reach are
connected. It finds the replicas that it had.`,
		example: `  latchkey testnet restart 3
  latchkey testnet restart 0-2`,
	}, {
		name: "pause", short: "freeze peers, as SIGSTOP does", done: "paused", do: (*testnet.Remote).Pause, fits: notAway,
		long: `pause freezes the processes of peers: nothing of them runs, their connections stay open, and the system takes what
others send until its buffers are full. It needs a testnet of "up --mode process".`,
		example: `  latchkey testnet pause 3
  latchkey testnet pause [0-1]`,
	}, {
		name: "resume", short: "let paused peers go on", done: "resumed", do: (*testnet.Remote).Resume, fits: notAwake,
		example: `  latchkey testnet resume 3`,
	}, {
		name: "leave", short: "have peers leave in an orderly way, as SIGTERM does", done: "left", do: (*testnet.Remote).Leave, fits: notAway,
		example: `  latchkey testnet leave 5
  latchkey testnet leave 5-6`,
	},
}

// peerDone is what a peerVerb tells about one peer.
type peerDone struct {
	N    int    `json:"n"`
	Done string `json:"done"`
}

func (v peerVerb) command(a *app, dir *string) *cobra.Command {
	return &cobra.Command{
		Use: v.name + " N|A-B|N,N...", Short: v.short, Long: v.long, Example: v.example,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			list, err := peerList(args[0])
			if err != nil {
				return err
			}
			return a.testnet(c, *dir, func(ctx context.Context, r *testnet.Remote) error {
				done, err := v.each(ctx, r, list)
				return errors.Join(a.peersDone(done), err)
			})
		},
	}
}

// needsUp tells that a peer is down which has to be brought back first. Who kills one that is down has what is wanted.
func (v peerVerb) needsUp(err error) bool { return errors.Is(err, testnet.ErrDown) && v.name != "kill" }

// each does it to one peer after the other, until the first failure. It does nothing to anybody when one does not exist, or it
// cannot be done to one.
func (v peerVerb) each(ctx context.Context, r *testnet.Remote, list []int) (done []peerDone, err error) {
	if len(list) > 1 {
		st, err := r.Status(ctx)
		if err != nil {
			return nil, err
		}
		if err := known(st, list); err != nil {
			return nil, err
		}
		for _, i := range list {
			if err := v.fits(st.Peers[i]); err != nil && (st.Mode == testnet.ModeProcess || v.name != "pause" && v.name != "resume") {
				err = fmt.Errorf("%w; nothing was done to the others", err)
				if v.needsUp(err) {
					err = exitf(exitUnreachable, "%w; bring it back with: latchkey testnet restart %d", err, i)
				}
				return nil, err
			}
		}
	}
	for _, i := range list {
		if err := v.do(r, ctx, i); err != nil {
			if v.needsUp(err) { // say so as of a peer that is to run something
				if _, down := pick(ctx, r, []int{i}); errors.As(down, new(*exitError)) {
					err = down
				}
			}
			return done, err
		}
		done = append(done, peerDone{i, v.done})
	}
	return done, nil
}

// peersDone says what has happened, to all of those named or to the first of them.
func (a *app) peersDone(done []peerDone) error {
	if len(done) == 0 {
		return nil
	}
	return a.list("peers", anys(done), func(w io.Writer) {
		for _, d := range done {
			fmt.Fprintf(w, "peer %d %s\n", d.N, d.Done)
		}
	})
}

func testnetJoinVerb(a *app, dir *string) *cobra.Command {
	return &cobra.Command{
		Use:     "join",
		Short:   "add a peer",
		Long:    `join adds a peer with the next number, and waits until it and those that it can reach are connected.`,
		Example: `  latchkey testnet join`,
		Args:    exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.testnet(c, *dir, func(ctx context.Context, r *testnet.Remote) error {
				i, err := r.Join(ctx)
				if err != nil {
					return err
				}
				return a.value(peerDone{i, "joined"}, func(w io.Writer) { fmt.Fprintf(w, "peer %d joined\n", i) })
			})
		},
	}
}

func testnetPartitionVerb(a *app, dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "partition A/B[/C...]",
		Short: "divide the peers into sides that hear nothing of each other",
		Long: `partition divides the peers into sides. Peers that are named on none, and those that join later, form one more side
together. A partition replaces the one before; connections across it stay open and carry nothing, until somebody's
timer ends them or the partition does.`,
		Example: `  latchkey testnet partition 0,1/2,3,4
  latchkey testnet partition 0-2/3-6
  latchkey testnet partition 0             # against all others`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			sides, err := peerSides(args[0])
			if err != nil {
				return err
			}
			return a.testnet(c, *dir, func(ctx context.Context, r *testnet.Remote) error {
				if err := r.Partition(ctx, sides...); err != nil {
					return err
				}
				return a.standing(ctx, r)
			})
		},
	}
}

func testnetHealVerb(a *app, dir *string) *cobra.Command {
	return &cobra.Command{
		Use:     "heal",
		Short:   "end the partition; latency stays",
		Example: `  latchkey testnet heal`,
		Args:    exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.testnet(c, *dir, func(ctx context.Context, r *testnet.Remote) error {
				if err := r.Heal(ctx); err != nil {
					return err
				}
				return a.standing(ctx, r)
			})
		},
	}
}

func testnetLatencyVerb(a *app, dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "latency D",
		Short: "delay everything between two peers by D each way; 0 ends that",
		Example: `  latchkey testnet latency 20ms
  latchkey testnet latency 0`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			d, err := time.ParseDuration(args[0])
			if err != nil || d < 0 || d > testnet.LatencyMax {
				return usagef("testnet latency %s: want 0 to %v, like 20ms", args[0], testnet.LatencyMax)
			}
			return a.testnet(c, *dir, func(ctx context.Context, r *testnet.Remote) error {
				if err := r.Latency(ctx, d); err != nil {
					return err
				}
				return a.standing(ctx, r)
			})
		},
	}
}

// standing tells what stands between the peers now.
func (a *app) standing(ctx context.Context, r *testnet.Remote) error {
	st, err := r.Status(ctx)
	if err != nil {
		return err
	}
	sides := sidesOf(st)
	v := struct {
		Sides   [][]int       `json:"sides"`
		Latency time.Duration `json:"latency_ns"`
	}{sides, st.Latency}
	return a.value(v, func(w io.Writer) {
		if st.Partitioned {
			fmt.Fprintf(w, "partition %s", sidesText(sides))
		} else {
			fmt.Fprint(w, "no partition")
		}
		fmt.Fprintf(w, ", latency %v each way\n", st.Latency)
	})
}
