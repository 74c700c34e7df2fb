package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"latchkey/testnet"
)

// logPoll is the pause between two looks at a log that is followed.
const logPoll = 100 * time.Millisecond

func testnetLogsVerb(a *app, dir *string) *cobra.Command {
	follow := false
	c := &cobra.Command{
		Use:   "logs N",
		Short: "print what peer N has printed",
		Long: `logs prints the output of a peer's process, with -f also what comes, until Ctrl-C or the end of the testnet. It
needs a testnet of "up --mode process"; how much its peers tell is up to --log-level of "up".`,
		Example: `  latchkey testnet logs 3
  latchkey testnet logs -f 0`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			i, err := peerNumber(args[0])
			if err != nil {
				return err
			}
			if follow && a.format == formatJSON {
				return usagef("testnet logs: -f has no end to close a json document at; use -o jsonl")
			}
			var path string
			if err := a.testnet(c, *dir, func(ctx context.Context, r *testnet.Remote) (err error) {
				path, err = r.Logs(ctx, i)
				return err
			}); err != nil {
				return err
			}
			ctx, release := interruptible(c.Context())
			defer release()
			return a.log(ctx, path, follow)
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes")
	return c
}

// log prints a log: in json as one document, in jsonl a line each.
func (a *app) log(ctx context.Context, path string, follow bool) error {
	lines := []string{}
	err := readLog(ctx, path, follow, func(line string) error {
		switch a.format {
		case formatJSON:
			lines = append(lines, line)
			return nil
		case formatJSONL:
			return a.json(struct {
				Line string `json:"line"`
			}{line}, "")
		}
		_, err := fmt.Fprintln(a.out, line)
		return err
	})
	if err == nil && a.format == formatJSON {
		err = a.value(map[string]any{"path": path, "lines": lines}, nil)
	}
	return err
}

// readLog calls fn with each line of a log; to follow it, until the file is gone or ctx ends. A log that has become shorter has
// begun anew.
func readLog(ctx context.Context, path string, follow bool, fn func(line string) error) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("testnet logs: %w", err)
	}
	defer f.Close()
	r, at, part := bufio.NewReader(f), int64(0), ""
	for {
		text, err := r.ReadString('\n')
		at += int64(len(text))
		part += text
		if err == nil || part != "" && !follow {
			if err := fn(strings.TrimSuffix(part, "\n")); err != nil {
				return err
			}
			part = ""
		}
		switch {
		case err == nil:
			continue
		case err != io.EOF:
			return fmt.Errorf("testnet logs: %w", err)
		case !follow:
			return nil
		}
		select {
		case <-time.After(logPoll):
		case <-ctx.Done():
			return nil
		}
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return fmt.Errorf("testnet logs: %w", err)
		case info.Size() < at:
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				return fmt.Errorf("testnet logs: %w", err)
			}
			at, part = 0, ""
		}
	}
}
