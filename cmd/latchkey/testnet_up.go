package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"latchkey/node/api"
	"latchkey/replicagroup/placement"
	"latchkey/testnet"
)

// upOptions configure "testnet up".
type upOptions struct {
	testnet.Options
	mode  testnet.Mode
	state string // file; empty: found an overlay
}

func testnetUpVerb(a *app, dir *string) *cobra.Command {
	o := upOptions{}
	mode, regenesis, reads := "", "", ""
	var sigma bool
	c := &cobra.Command{
		Use:   "up",
		Short: "run a testnet in the foreground, until Ctrl-C",
		Long: `up runs a testnet until Ctrl-C, and then leaves nothing behind. What one that was killed has left, the next "up" in the
directory removes.

With --mode process each peer is a daemon of its own, with the directory N and the output in N/daemon.log. Such peers
can also be paused. They keep replicas on disk, so those that were killed and restarted know all that they had promised,
even when all of them were killed at once. On Linux the peers die with "up", however that ends.`,
		Example: `  latchkey testnet up
  latchkey testnet up -n 9 --f 2
  latchkey testnet up --depth 12                     # 4,096 groups, once all are used
  latchkey testnet up --mode process --latency 20ms
  latchkey testnet up --regenesis lease              # lost groups come back by themselves, in half a minute
  latchkey testnet up --state seven.state            # as it was dumped`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if o.state != "" {
				for _, name := range []string{"nodes", "f", "seed", "depth", "mode", "regenesis", "reads", "own-groups", "sigma"} {
					if c.Flags().Changed(name) {
						return usagef("testnet up: --state and --%s: the state says that already", name)
					}
				}
				o.N, o.F, o.Seed = 0, 0, 0
				o.Dir = testnetDir(*dir)
				return a.testnetUp(c.Context(), o)
			}
			if o.N <= 0 || o.F <= 0 {
				return usagef("testnet up: -n %d, --f %d: both must be positive", o.N, o.F)
			}
			if c.Flags().Changed("depth") && o.Depth <= 0 {
				return usagef("testnet up: --depth %d: it must be positive", o.Depth)
			}
			o.NoSigma = !sigma
			var err error
			if o.Regenesis, err = placement.ParseRegenesis(regenesis); err != nil {
				return usagef("testnet up: --regenesis %s: want manual or lease", regenesis)
			}
			if o.LeaseReads, err = placement.ParseReads(reads); err != nil {
				return usagef("testnet up: --reads %s: want %s or %s", reads, placement.ReadsQuorum, placement.ReadsLease)
			}
			if err := o.Validate(); err != nil {
				return usagef("%w", err)
			}
			switch o.mode = testnet.Mode(mode); o.mode {
			case testnet.ModeInProcess, testnet.ModeProcess:
			default:
				return usagef("testnet up: --mode %s: use %s or %s", mode, testnet.ModeInProcess, testnet.ModeProcess)
			}
			o.Dir = testnetDir(*dir)
			return a.testnetUp(c.Context(), o)
		},
	}
	c.Flags().IntVarP(&o.N, "nodes", "n", testnet.PeersDefault, fmt.Sprintf("how many peers, %d at most", testnet.PeersMax))
	c.Flags().IntVar(&o.F, "f", testnet.FDefault, "how many crashes a group survives: its groups have 2f+1 voters")
	c.Flags().IntVar(&o.Depth, "depth", 0, fmt.Sprintf("%d to %d: 2^depth groups share the key space (default %d)",
		placement.DepthMin, placement.DepthMax, placement.DepthDefault))
	c.Flags().Uint64Var(&o.Seed, "seed", testnet.SeedDefault, "what the peers' identities come from")
	c.Flags().StringVar(&regenesis, "regenesis", placement.Manual.String(), fmt.Sprintf("manual or lease: how a lost group comes back (see latchkey init --help); a lease lasts %v here", testnet.Lease))
	c.Flags().StringVar(&reads, "reads", placement.ReadsQuorum, "quorum or lease: how leaders make sure that what they read is the newest (see latchkey init --help)")
	c.Flags().BoolVar(&o.OwnGroups, "own-groups", false, "allow to give a lock a replica group of its own (see latchkey group own --help)")
	c.Flags().BoolVar(&sigma, "sigma", true, "have the voters of a group keep locks without its log (see latchkey init --help)")
	c.Flags().StringVar(&o.state, "state", "", "take up the testnet in a file of \"testnet state dump\"")
	c.Flags().StringVar(&mode, "mode", string(testnet.ModeInProcess), "inproc: all peers in this process; process: each in its own")
	c.Flags().DurationVar(&o.Latency, "latency", 0, fmt.Sprintf("delay between two peers, each way, at most %v", testnet.LatencyMax))
	return c
}

// testnetUp runs a testnet until a signal comes.
func (a *app) testnetUp(ctx context.Context, o upOptions) (err error) {
	ctx, release := interruptible(ctx)
	defer release()
	if !signal.Ignored(syscall.SIGHUP) { // a terminal that closes is no reason to leave anything behind
		var stop context.CancelFunc
		ctx, stop = signal.NotifyContext(ctx, syscall.SIGHUP)
		defer stop()
	}
	control, err := testnet.Claim(o.Dir)
	if errors.Is(err, api.ErrAddr) {
		return dirTooLong(o.Dir)
	} else if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, control.Close()) }()
	start := time.Now()
	if o.state != "" {
		if o.State, err = testnet.OpenState(o.state); err != nil {
			return err
		}
		o.mode = o.State.Mode()
		defer func() { err = errors.Join(err, o.State.Close()) }()
	}
	o.Progress = a.progressBar()
	t, err := bringUp(ctx, o, []string{"--log-level", a.logLevel})
	if err != nil {
		if o.Progress != nil {
			fmt.Fprint(a.err, clearLine)
		}
		return interruption(ctx, err)
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	if ctx.Err() != nil { // at the last moment
		return interruption(ctx, context.Cause(ctx))
	}
	control.Serve(t)
	v := struct {
		testnet.Status
		WallMS int64 `json:"wall_ms"`
		CPUMS  int64 `json:"cpu_ms"` // of all processes; 0 where the system does not tell
	}{t.Status(), time.Since(start).Milliseconds(), testnetCPU(t).Milliseconds()}
	if err := a.value(v, func(w io.Writer) {
		writePeers(w, v.Status)
		fmt.Fprintf(w, "\n%s after %.2fs", upText(v.Status), float64(v.WallMS)/1000)
		if v.CPUMS > 0 {
			fmt.Fprintf(w, " and %.2fs of CPU time", float64(v.CPUMS)/1000)
		}
		fmt.Fprintf(w, "; %s, seed %d, overlay %.8s\n", standing(v.Status), v.Seed, v.Overlay)
		fmt.Fprintf(w, "From another terminal: latchkey testnet run 0%s -- latchkey lock NAME. Ctrl-C ends it.\n", dirFlag(o.Dir))
	}); err != nil {
		return err
	}
	<-ctx.Done() // the way it is meant to end
	if isTerminal(os.Stderr) {
		fmt.Fprintln(a.err, "\ntaking the testnet down")
	}
	return nil
}

// upText says how many peers are up, which need not be all where a file of "testnet state dump" was taken up.
func upText(st testnet.Status) string {
	up := 0
	for _, p := range st.Peers {
		if p.Up {
			up++
		}
	}
	if up < len(st.Peers) {
		return fmt.Sprintf("%d of %d peers are up and see each other", up, len(st.Peers))
	}
	return fmt.Sprintf("%d peers are up and see each other", up)
}

// bringUp starts a testnet. args are global flags for peers that are processes.
func bringUp(ctx context.Context, o upOptions, args []string) (testnet.Testnet, error) {
	if o.mode == testnet.ModeProcess {
		program, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("testnet: which program the peers are to run: %w", err)
		}
		p, err := testnet.UpProcesses(ctx, testnet.ProcessOptions{Options: o.Options, Program: program, Args: args})
		if err != nil {
			return nil, err
		}
		return p, nil
	}
	n, err := testnet.Up(ctx, o.Options)
	if err != nil {
		return nil, err
	}
	return n, nil
}

// testnetCPU returns the processor time that a testnet has used, with that of this process.
func testnetCPU(t testnet.Testnet) time.Duration {
	own := cpuTime()
	if p, ok := t.(*testnet.Processes); ok {
		peers := p.CPU()
		if peers == 0 {
			return 0 // it cannot be told, and half of it would mislead
		}
		return own + peers
	}
	return own
}

// clearLine takes back what a terminal's line shows.
const clearLine = "\r\x1b[K"

// progressBar returns what draws a bar for the person at the terminal; nil when there is none.
func (a *app) progressBar() func(testnet.Progress) {
	if !isTerminal(os.Stderr) {
		return nil
	}
	const width = 24
	return func(p testnet.Progress) {
		full := width * p.Done / max(p.Total, 1)
		fmt.Fprintf(a.err, clearLine+"%-24s [%s%s] %d/%d", p.Stage, strings.Repeat("#", full), strings.Repeat(".", width-full), p.Done, p.Total)
		if p.Done == p.Total {
			fmt.Fprint(a.err, clearLine)
		}
	}
}
