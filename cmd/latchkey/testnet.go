package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"latchkey/node/api"
	"latchkey/testnet"
	"latchkey/testnet/demo"
)

func testnetVerb(a *app) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "testnet",
		Short: "real peers on this machine, with faults: up, demo, kill, partition",
		Long: `testnet runs an overlay of real peers on this machine, over TCP on 127.0.0.1: all in one process, or with
"up --mode process" each in a process of its own.

"up" stays in the foreground; the other verbs find it by its directory: --dir, else latchkey-testnet in
XDG_RUNTIME_DIR, else latchkey/testnet in the user's cache directory. There, N/api.sock is the API of peer N.
Several peers are named like 0-4 or [0-4], or 0,2,5.

A partition is silence: nothing arrives across it, connections stay open, and when it heals all goes on.

The same seed gives the same peer ids, which are no secret: do not use them for anything else. A restarted peer finds
its replicas again: in one process they are kept in its memory, which outlives a killed peer, and as processes on
disk, in N/store. While more than f of a group's 2f+1 members are down, the group stands still.`,
		Example: `  latchkey testnet demo                              # the whole story in some twenty seconds
  latchkey testnet up                                # seven peers, until Ctrl-C; then, elsewhere:
  latchkey testnet run 0 -- latchkey lock x -- sleep 5
  latchkey testnet kill 3
  latchkey testnet partition 0,1/2-6`,
	})
	var dir string
	c.PersistentFlags().StringVar(&dir, "dir", "", "directory of the testnet (default "+testnet.DefaultDir()+")")
	c.AddCommand(testnetUpVerb(a, &dir), testnetDemoVerb(a), testnetLsVerb(a, &dir), testnetEnvVerb(a, &dir), testnetRunVerb(a, &dir),
		testnetLogsVerb(a, &dir), testnetJoinVerb(a, &dir), testnetPartitionVerb(a, &dir), testnetHealVerb(a, &dir), testnetLatencyVerb(a, &dir), testnetStateVerb(a, &dir), testnetSimVerb(a), testnetLitmusVerb(a))
	for _, v := range peerVerbs {
		c.AddCommand(v.command(a, &dir))
	}
	for _, name := range []string{"down", "stop"} { // which other tools have
		c.AddCommand(&cobra.Command{Use: name, Hidden: true, RunE: func(*cobra.Command, []string) error {
			return usagef("testnet %s: there is no such verb: Ctrl-C in the terminal of \"latchkey testnet up\" ends it", name)
		}})
	}
	return c
}

// testnetDir returns the absolute directory of the testnet: the peers' sockets are named from anywhere.
func testnetDir(dir string) string {
	if dir == "" {
		dir = testnet.DefaultDir()
	}
	if abs, err := filepath.Abs(dir); err == nil {
		return abs
	}
	return dir
}

// dirTooLong is the end of a verb whose directory has no room for the paths of sockets.
func dirTooLong(dir string) error {
	return usagef("testnet: --dir %s: the path of a socket in it has %d bytes, more than this system allows; choose a shorter --dir, like /tmp/net", dir, len(dir)+len("/control.sock"))
}

// dirFlag is the --dir that a command line needs to mean this testnet.
func dirFlag(dir string) string {
	if dir == testnetDir("") {
		return ""
	}
	return " --dir " + dir
}

func testnetDemoVerb(a *app) *cobra.Command {
	var o demo.Options
	c := &cobra.Command{
		Use:   "demo",
		Short: "watch seven peers lose a leader, a lock holder and each other, and lose no increment",
		Long: `demo starts seven peers. Eight clients increment one counter in an ordinary file, 50 times each, guarded by
nothing but a lock of the overlay and its fencing token. Six peers read and update shared objects meanwhile. Mid-way the leader
of the lock's group is killed, which keeps track of the objects too, then a peer that holds the lock and owns an object; both come back. Then a peer joins and takes over a replica, the leader leaves and is replaced, and
all seven that are left are stopped at once and started again from their disks, while locks are held. At the end the file,
the recorded histories of the lock and of the objects, and those locks are judged. It takes some twenty seconds.

It exits 0 only if every check passed. It needs no daemon and no running testnet, and touches neither.`,
		Example: `  latchkey testnet demo
  latchkey testnet demo -o json
  latchkey testnet demo --sabotage no-lock     # must fail: a demo that cannot proves nothing
  latchkey testnet demo --sabotage stale-copy  # so must this`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if o.Sabotage != "" && !slices.Contains(demo.Sabotages, o.Sabotage) {
				return usagef("testnet demo: --sabotage %s: use %s", o.Sabotage, strings.Join(demo.Sabotages, " or "))
			}
			ctx, release := interruptible(c.Context())
			defer release()
			var told error
			o.Story = func(line string) {
				told = errors.Join(told, a.event(struct {
					Event string `json:"event"`
				}{strings.TrimSpace(line)}, line))
			}
			r, err := demo.Run(ctx, o)
			if err != nil {
				return err
			}
			err = a.value(r, func(w io.Writer) {
				fmt.Fprintln(w)
				_ = r.Table(w) // w remembers its errors
			})
			if err := errors.Join(told, err); err != nil {
				return err
			}
			if !r.OK {
				return silent(exitFailure)
			}
			return nil
		},
	}
	c.Flags().StringVar(&o.Sabotage, "sabotage", "", "break the run on purpose: no-lock increments without taking the lock, stale-copy reads copies of objects that others have overwritten")
	c.Flags().Uint64Var(&o.Seed, "seed", testnet.SeedDefault, "what the peers' identities come from")
	return c
}

// testnet runs fn with a client of the running testnet and a context that --timeout ends.
func (a *app) testnet(c *cobra.Command, dir string, fn func(ctx context.Context, r *testnet.Remote) error) error {
	dir = testnetDir(dir)
	ctx := c.Context()
	if a.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, a.timeout, fmt.Errorf("the testnet in %s did not answer within %v (see --timeout)", dir, a.timeout))
		defer cancel()
	}
	err := fn(ctx, testnet.Dial(dir))
	switch {
	case errors.Is(err, testnet.ErrNotRunning):
		return exitf(exitUnreachable, "%w; start one with: latchkey testnet up%s", err, dirFlag(dir))
	case errors.Is(err, api.ErrAddr):
		return dirTooLong(dir)
	case errors.Is(err, testnet.ErrNoPeer), errors.Is(err, testnet.ErrOptions), errors.Is(err, testnet.ErrMode):
		return usagef("%w", err)
	}
	return err
}
