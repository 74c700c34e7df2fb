package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"latchkey/internal/durablefile"
	"latchkey/testnet"
)

func testnetStateVerb(a *app, dir *string) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "state",
		Short: "put a testnet into a file, and take it up again",
		Long: `state keeps a testnet in one file: its peers with their identities and ports, its overlay, and what each peer has
stored. Taken up again it is the same overlay, with the same locks and tokens.

Not in the file are what stood between the peers (partition, latency, pauses) and what only ran: a command that held a
lock does not renew it, so that lock runs out. Peers that were down stay down. Of peers in one process the file lacks what
voters keep of locks by protocol sigma: those are gone, and none is granted for the first minute or so.`,
		Example: `  latchkey testnet state dump seven.state
  latchkey testnet state load seven.state`,
	})
	c.AddCommand(stateDumpVerb(a, dir), stateLoadVerb(a, dir))
	return c
}

func stateDumpVerb(a *app, dir *string) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "dump FILE|DIR",
		Short: "write the state of the testnet to a file",
		Long: `dump writes the state of the running testnet to FILE, or to a new file in DIR. The file holds the overlay's keys:
it is readable by you alone. It is there whole or not at all.

All peers stand still together while their stores are copied, a fraction of a second for a small testnet; a lease that
is renewed in the last moment may be lost by that. Of a testnet of "up --mode process" that was itself killed, dump
writes what its peers have left in --dir, until the next "up" there removes it.`,
		Example: `  latchkey testnet state dump seven.state
  latchkey testnet state dump /var/tmp               # names the file`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.stateDump(c, testnetDir(*dir), args[0], force)
		},
	}
	c.Flags().BoolVar(&force, "force", false, "replace a file that is there")
	return c
}

func stateLoadVerb(a *app, dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "load FILE",
		Short: `run the testnet in a file: as "testnet up --state FILE"`,
		Long: `load runs the testnet in FILE in the foreground, until Ctrl-C. The peers need the ports they had, so the testnet
that was dumped must have ended. The file is only read, and may be loaded again: each time it begins as it was dumped.`,
		Example: `  latchkey testnet state load seven.state`,
		Args:    exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			o := upOptions{state: args[0]}
			o.Dir = testnetDir(*dir)
			return a.testnetUp(c.Context(), o)
		},
	}
}

// dumped is what dump tells.
type dumped struct {
	File  string `json:"file"`
	Bytes int64  `json:"bytes,string"`
	Peers int    `json:"peers"`
}

// stateDump writes the state of the testnet in dir to a file.
func (a *app) stateDump(c *cobra.Command, dir, file string, force bool) error {
	if info, err := os.Stat(file); err == nil && info.IsDir() {
		file = filepath.Join(file, "testnet-"+time.Now().Format("20060102-150405")+".state")
	}
	if _, err := os.Lstat(file); err == nil && !force {
		return fmt.Errorf("testnet state dump: %s is there already; choose another name, or replace it with --force", file)
	}
	if info, err := os.Stat(filepath.Dir(file)); err != nil || !info.IsDir() {
		return fmt.Errorf("testnet state dump: there is no directory %s to write into", filepath.Dir(file))
	}
	ctx, release := interruptible(c.Context())
	defer release()
	c.SetContext(ctx)
	err := a.testnet(c, dir, func(ctx context.Context, r *testnet.Remote) error {
		return durablefile.ReplaceWith(file, 0o600, func(w io.Writer) error {
			err := r.Dump(ctx, w)
			if errors.Is(err, testnet.ErrNotRunning) {
				err = testnet.DumpStopped(ctx, dir, w)
			}
			return err
		})
	})
	if err != nil {
		return err
	}
	v := dumped{File: file}
	s, err := testnet.OpenState(file)
	if err != nil {
		return err
	}
	defer s.Close()
	v.Peers = len(s.Peers)
	if info, err := os.Stat(file); err == nil {
		v.Bytes = info.Size()
	}
	return a.value(v, func(w io.Writer) {
		fmt.Fprintf(w, "%s\t%d peers, %d bytes\n", v.File, v.Peers, v.Bytes)
	})
}
