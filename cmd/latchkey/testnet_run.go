package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"latchkey/testnet"
)

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
				peers, err := pick(ctx, r, []int{i})
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

// shellWord is s, quoted if a shell would see more in it than a word.
func shellWord(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./,:=+@%") == "" {
		return s
	}
	return shellQuote(s)
}

func testnetRunVerb(a *app, dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "run [N|A-B|N,N...] -- CMD [ARG...]",
		Short: "run a command against a peer, or against each of several in turn",
		Long: `run runs CMD without a shell and with LATCHKEY_API and LATCHKEY_PATH of the peer: once for each peer named, one
after the other, or for each that is up when none is. It ends at the first failure, with CMD's exit code. Where no latchkey is in
PATH, latchkey as CMD is this program.`,
		Example: `  latchkey testnet run 0 -- latchkey lock x -- sleep 5
  latchkey testnet run 0-4 -- latchkey id
  latchkey testnet run -- latchkey peers`,
		RunE: func(c *cobra.Command, args []string) error {
			dash := c.ArgsLenAtDash()
			if dash < 0 || dash > 1 || dash == len(args) {
				return usagef("testnet run: want at most one list of peers, then -- and a command, like: latchkey testnet run 0-4 -- latchkey id")
			}
			var list []int
			if dash == 1 {
				var err error
				if list, err = peerList(args[0]); err != nil {
					return err
				}
			}
			var peers []testnet.PeerStatus
			err := a.testnet(c, *dir, func(ctx context.Context, r *testnet.Remote) (err error) {
				peers, err = pick(ctx, r, list)
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

// runAt runs a command with the environment of p. INT and QUIT, which a terminal gives to both, are left to the command; TERM and
// HUP are passed on.
func runAt(p testnet.PeerStatus, argv []string) error {
	cmd := exec.Command(argv[0], argv[1:]...)
	if self, err := os.Executable(); cmd.Err != nil && argv[0] == "latchkey" && err == nil { // which was not installed, only built
		cmd = exec.Command(self, argv[1:]...)
	}
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
