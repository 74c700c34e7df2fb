package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"latchkey/testnet"
	"latchkey/testnet/demo"
)

func testnetVerb(a *app) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "testnet",
		Short: "real peers on this machine, with faults: up, demo, kill, restart",
		Long: `testnet runs an overlay of real peers on this machine, in one process, over TCP on 127.0.0.1.

"up" stays in the foreground; the other verbs find it by its directory: --dir, else latchkey-testnet in
XDG_RUNTIME_DIR, else latchkey/testnet in the user's cache directory. There, N/api.sock is the API of peer N.

The same seed gives the same peer ids, which are no secret: do not use them for anything else. What a testnet
keeps, it keeps in memory: a killed peer finds its own again when it is restarted, and all is gone with "up".`,
		Example: `  latchkey testnet demo                              # the whole story in some ten seconds
  latchkey testnet up                                # seven peers, until Ctrl-C; then, elsewhere:
  latchkey testnet run 0 -- latchkey lock x -- sleep 5
  latchkey testnet kill 3`,
	})
	var dir string
	c.PersistentFlags().StringVar(&dir, "dir", "", "directory of the testnet (default "+testnet.DefaultDir()+")")
	c.AddCommand(testnetUpVerb(a, &dir), testnetDemoVerb(a), testnetLsVerb(a, &dir), testnetEnvVerb(a, &dir),
		testnetRunVerb(a, &dir), testnetKillVerb(a, &dir), testnetRestartVerb(a, &dir))
	return c
}

func testnetUpVerb(a *app, dir *string) *cobra.Command {
	var o testnet.Options
	c := &cobra.Command{
		Use:   "up",
		Short: "run a testnet in the foreground, until Ctrl-C",
		Example: `  latchkey testnet up
  latchkey testnet up -n 9 --f 2`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if o.N <= 0 || o.F <= 0 {
				return usagef("testnet up: -n %d, --f %d: both must be positive", o.N, o.F)
			}
			if err := o.Validate(); err != nil {
				return usagef("%w", err)
			}
			o.Dir = testnetDir(*dir)
			return a.testnetUp(c.Context(), o)
		},
	}
	c.Flags().IntVarP(&o.N, "nodes", "n", testnet.PeersDefault, fmt.Sprintf("how many peers, %d at most", testnet.PeersMax))
	c.Flags().IntVar(&o.F, "f", testnet.FDefault, "how many crashes a group survives: its groups have 2f+1 voters")
	c.Flags().Uint64Var(&o.Seed, "seed", testnet.SeedDefault, "what the peers' identities come from")
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

// testnetUp runs a testnet until a signal comes.
func (a *app) testnetUp(ctx context.Context, o testnet.Options) (err error) {
	ctx, release := interruptible(ctx)
	defer release()
	control, err := testnet.Claim(o.Dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, control.Close()) }()
	o.Progress = a.progressBar()
	start := time.Now()
	n, err := testnet.Up(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	control.Serve(n)
	st, took := n.Status(), time.Since(start).Round(10*time.Millisecond)
	if err := a.value(st, func(w io.Writer) {
		writePeers(w, st)
		fmt.Fprintf(w, "\n%d peers are up and see each other after %v; f = %d, seed %d, overlay %.8s\n", len(st.Peers), took, st.F, st.Seed, st.Overlay)
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

// dirFlag is the --dir that a command line needs to mean this testnet.
func dirFlag(dir string) string {
	if dir == testnetDir("") {
		return ""
	}
	return " --dir " + dir
}

// progressBar returns what draws a bar for the person at the terminal; nil when there is none.
func (a *app) progressBar() func(testnet.Progress) {
	if !isTerminal(os.Stderr) {
		return nil
	}
	const width = 24
	return func(p testnet.Progress) {
		full := width * p.Done / p.Total
		fmt.Fprintf(a.err, "\r\x1b[K%-24s [%s%s] %d/%d", p.Stage, strings.Repeat("#", full), strings.Repeat(".", width-full), p.Done, p.Total)
		if p.Done == p.Total {
			fmt.Fprint(a.err, "\r\x1b[K")
		}
	}
}

func writePeers(w io.Writer, st testnet.Status) {
	fmt.Fprintf(w, "N\tSTATE\tADDRESS\tAPI\n")
	for _, p := range st.Peers {
		state := "down"
		if p.Up {
			state = "up"
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\n", p.N, state, p.Addr, p.API)
	}
}

func testnetDemoVerb(a *app) *cobra.Command {
	var o demo.Options
	c := &cobra.Command{
		Use:   "demo",
		Short: "watch seven peers lose a leader and a lock holder, and lose no increment",
		Long: `demo starts seven peers. Eight clients increment one counter in an ordinary file, 50 times each, guarded by
nothing but a lock of the overlay and its fencing token. Mid-way the leader of the lock's group is killed, then a peer
that holds the lock, then one is restarted. At the end the file and the recorded history are judged.

It exits 0 only if every check passed. It needs no daemon and no running testnet, and touches neither.`,
		Example: `  latchkey testnet demo
  latchkey testnet demo -o json
  latchkey testnet demo --sabotage no-lock     # must fail: a demo that cannot proves nothing`,
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
	c.Flags().StringVar(&o.Sabotage, "sabotage", "", "break the run on purpose: no-lock increments without taking the lock")
	c.Flags().Uint64Var(&o.Seed, "seed", testnet.SeedDefault, "what the peers' identities come from")
	return c
}

func testnetLsVerb(a *app, dir *string) *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Short:   "list the peers of the running testnet",
		Example: `  latchkey testnet ls`,
		Args:    exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.testnet(c, *dir, func(ctx context.Context, r *testnet.Remote) error {
				st, err := r.Status(ctx)
				if err != nil {
					return err
				}
				return a.list("peers", anys(st.Peers), func(w io.Writer) { writePeers(w, st) })
			})
		},
	}
}

func testnetEnvVerb(a *app, dir *string) *cobra.Command {
	return &cobra.Command{
		Use:     "env N",
		Short:   "print what makes a shell use peer N",
		Example: `  eval "$(latchkey testnet env 2)"; latchkey id`,
		Args:    exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			i, err := peerNumber(args[0])
			if err != nil {
				return err
			}
			return a.testnet(c, *dir, func(ctx context.Context, r *testnet.Remote) error {
				peers, err := pick(ctx, r, i, i)
				if err != nil {
					return err
				}
				v := struct {
					API  string `json:"LATCHKEY_API"`
					Path string `json:"LATCHKEY_PATH"`
				}{peers[0].API, peers[0].Path}
				return a.value(v, func(w io.Writer) {
					fmt.Fprintf(w, "export LATCHKEY_API=%s\nexport LATCHKEY_PATH=%s\n", shellQuote(v.API), shellQuote(v.Path))
				})
			})
		},
	}
}

// shellQuote makes s one word for every POSIX shell.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func testnetRunVerb(a *app, dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "run [N|A-B] -- CMD [ARG...]",
		Short: "run a command against peer N, or against each of A to B in turn",
		Long: `run runs CMD without a shell and with LATCHKEY_API and LATCHKEY_PATH of the peer: once for each peer of the range,
one after the other, or for each that is up when none is named. It ends at the first failure, with CMD's exit code.`,
		Example: `  latchkey testnet run 0 -- latchkey lock x -- sleep 5
  latchkey testnet run 0-4 -- latchkey id
  latchkey testnet run -- latchkey peers`,
		RunE: func(c *cobra.Command, args []string) error {
			dash := c.ArgsLenAtDash()
			if dash < 0 || dash > 1 || dash == len(args) {
				return usagef("testnet run: want at most one number or range, then -- and a command, like: latchkey testnet run 0-4 -- latchkey id")
			}
			first, last := -1, -1
			if dash == 1 {
				var err error
				if first, last, err = peerRange(args[0]); err != nil {
					return err
				}
			}
			var peers []testnet.PeerStatus
			err := a.testnet(c, *dir, func(ctx context.Context, r *testnet.Remote) (err error) {
				peers, err = pick(ctx, r, first, last)
				return err
			})
			if err != nil {
				return err
			}
			for _, p := range peers {
				if len(peers) > 1 {
					fmt.Fprintf(a.err, "== peer %d\n", p.N)
				}
				if err := runAt(p, args[dash:]); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// peerNumber reads the number of a peer.
func peerNumber(s string) (int, error) {
	i, err := strconv.Atoi(s)
	if err != nil || i < 0 {
		return 0, usagef("testnet: %q is no peer; they are numbered from 0 (see latchkey testnet ls)", s)
	}
	return i, nil
}

// peerRange reads "2", "0-4" or, as other tools have it, "[0-4]".
func peerRange(s string) (first, last int, err error) {
	bare := strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
	from, to, isRange := strings.Cut(bare, "-")
	if !isRange {
		to = from
	}
	first, err1 := peerNumber(from)
	last, err2 := peerNumber(to)
	if err1 != nil || err2 != nil || first > last {
		return 0, 0, usagef("testnet run: %q is no peer or range of peers; write 2 or 0-4", s)
	}
	return first, last, nil
}

// pick returns the peers first to last, which must be up; with first -1, all that are up.
func pick(ctx context.Context, r *testnet.Remote, first, last int) ([]testnet.PeerStatus, error) {
	st, err := r.Status(ctx)
	switch {
	case err != nil:
		return nil, err
	case first < 0:
		up := slices.DeleteFunc(st.Peers, func(p testnet.PeerStatus) bool { return !p.Up })
		if len(up) == 0 {
			return nil, exitf(exitUnreachable, "testnet: every peer is down; bring one back with: latchkey testnet restart N")
		}
		return up, nil
	case last >= len(st.Peers):
		return nil, fmt.Errorf("%w: %d; the peers are 0 to %d", testnet.ErrNoPeer, last, len(st.Peers)-1)
	}
	for _, p := range st.Peers[first : last+1] {
		if !p.Up {
			return nil, exitf(exitUnreachable, "testnet: peer %d is down; bring it back with: latchkey testnet restart %d", p.N, p.N)
		}
	}
	return st.Peers[first : last+1], nil
}

// runAt runs a command with the environment of p. INT and QUIT, which a terminal gives to both, are left to the command; TERM and
// HUP are passed on.
func runAt(p testnet.PeerStatus, argv []string) error {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "LATCHKEY_API="+p.API, "LATCHKEY_PATH="+p.Path)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return exitf(exitCode(commandError(err)), "testnet run: cannot run the command: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		for {
			select {
			case s := <-signals:
				if s == syscall.SIGTERM || s == syscall.SIGHUP {
					_ = cmd.Process.Signal(s) // it may just have ended
				}
			case <-ended:
				return
			}
		}
	}()
	err := cmd.Wait()
	close(ended)
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return silent(exitSignal + int(ws.Signal()))
	}
	return silent(exit.ExitCode())
}

func testnetKillVerb(a *app, dir *string) *cobra.Command {
	return &cobra.Command{
		Use:     "kill N",
		Short:   "kill peer N without a goodbye",
		Example: `  latchkey testnet kill 3`,
		Args:    exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.testnetFault(c, *dir, args[0], "killed", (*testnet.Remote).Kill)
		},
	}
}

func testnetRestartVerb(a *app, dir *string) *cobra.Command {
	return &cobra.Command{
		Use:     "restart N",
		Short:   "start a killed peer again, with what its disk had",
		Example: `  latchkey testnet restart 3`,
		Args:    exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.testnetFault(c, *dir, args[0], "restarted", (*testnet.Remote).Restart)
		},
	}
}

// testnetFault does something to one peer and says so.
func (a *app) testnetFault(c *cobra.Command, dir, number, done string, do func(*testnet.Remote, context.Context, int) error) error {
	i, err := peerNumber(number)
	if err != nil {
		return err
	}
	return a.testnet(c, dir, func(ctx context.Context, r *testnet.Remote) error {
		if err := do(r, ctx, i); err != nil {
			return err
		}
		v := struct {
			N    int    `json:"n"`
			Done string `json:"done"`
		}{i, done}
		return a.value(v, func(w io.Writer) { fmt.Fprintf(w, "peer %d %s\n", i, done) })
	})
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
	case errors.Is(err, testnet.ErrNoPeer):
		return usagef("%w", err)
	}
	return err
}
