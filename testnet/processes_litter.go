package testnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"latchkey/node"
	"latchkey/node/api"
)

// Files of a peer's directory DIR/N that are not the daemon's own, and the directory of its store.
const (
	markFile       = "testnet.peer" // a testnet of processes made this directory; there first, gone last
	apiSocketFile  = "api.sock"
	wireSocketFile = "wire.sock"
	lockSuffix     = ".lock" // of the file beside a socket that api.Listen locks
	logFile        = "daemon.log"
	storeDir       = "store"
)

const markText = "A testnet made this directory and removes it, with store and the files it knows, when it ends.\n"

// markSeed begins the mark's second line, which tells of what seed the testnet is.
const markSeed = "seed "

// seedOfMark reads the seed in a mark.
func seedOfMark(text string) (seed uint64, ok bool) {
	_, line, ok := strings.Cut(text, "\n"+markSeed)
	if !ok {
		return 0, false
	}
	seed, err := strconv.ParseUint(strings.TrimSpace(line), 10, 64)
	return seed, err == nil
}

// ErrForeign is matched when something is where a peer's directory would be that no testnet has put there.
var ErrForeign = errors.New("testnet: directory holds what is not a testnet's")

// peerFiles are the files that a testnet, or whoever uses its peers, puts into a peer's directory.
var peerFiles = append(node.DirFiles(), api.TokensFile, apiSocketFile, wireSocketFile, logFile)

// peerFile reports whether a file of this name is one of them, or what was left by somebody who was killed while it was written.
func peerFile(name string) bool {
	for _, own := range peerFiles {
		rest, ok := strings.CutPrefix(strings.TrimPrefix(name, "."), own)
		if ok && (rest == "" || rest[0] == '.' || rest[0] == '-') {
			return true
		}
	}
	return false
}

// markDir makes a peer's directory and marks it. One that is there must be empty, or be marked and hold no peer.
func (p *Processes) markDir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("testnet: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("%w: %w; choose another --dir", ErrForeign, err)
	}
	if !marked(entries) && len(entries) > 0 {
		return fmt.Errorf("%w: %s has %s; choose another --dir", ErrForeign, dir, entries[0].Name())
	}
	if err := os.WriteFile(filepath.Join(dir, markFile), fmt.Appendf(nil, "%s%s%d\n", markText, markSeed, p.opts.Seed), 0o600); err != nil {
		return fmt.Errorf("testnet: %w", err)
	}
	return nil
}

func marked(entries []fs.DirEntry) bool {
	for _, e := range entries {
		if e.Name() == markFile && e.Type().IsRegular() {
			return true
		}
	}
	return false
}

// removePeer removes a marked directory with the store and the files that it knows. Others stay, and keep the directory and its mark. A
// directory without a mark is none of its business.
func removePeer(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil || !marked(entries) {
		return nil
	}
	var errs []error
	others := false
	for _, e := range entries {
		switch {
		case e.Name() == markFile:
		case e.Name() == storeDir && e.IsDir():
			errs = append(errs, os.RemoveAll(filepath.Join(dir, storeDir)))
		case peerFile(e.Name()) && !e.IsDir():
			errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
		default:
			others = true
		}
	}
	if err := errors.Join(errs...); err != nil || others {
		return err
	}
	return errors.Join(os.Remove(filepath.Join(dir, markFile)), os.Remove(dir))
}

// sweep removes from a testnet's directory what one left there that was killed itself. The caller holds the directory.
func sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("testnet: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), spoolPrefix) && e.Type().IsRegular() {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("testnet: %w", err)
			}
			continue
		}
		if n, err := strconv.Atoi(e.Name()); err != nil || n < 0 || strconv.Itoa(n) != e.Name() || !e.IsDir() {
			continue
		}
		if err := sweepPeer(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func sweepPeer(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // not ours, then
	}
	socket := filepath.Join(dir, apiSocketFile)
	// Peers that share a process leave a socket with its lock, and nothing else.
	alone := len(entries) > 0
	for _, e := range entries {
		alone = alone && (e.Name() == apiSocketFile && e.Type()&fs.ModeSocket != 0 || e.Name() == apiSocketFile+lockSuffix && e.Type().IsRegular())
	}
	if !alone && !marked(entries) {
		return nil
	}
	if !falls(socket) {
		return fmt.Errorf("%w in %s: a peer of a former one still answers at %s; stop it with: latchkey shutdown --api %s",
			ErrRunning, filepath.Dir(dir), socket, socket)
	}
	if alone {
		for _, e := range entries {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("testnet: %w", err)
			}
		}
		return os.Remove(dir)
	}
	return removePeer(dir)
}

// fallMax is how long the peers of a testnet that was killed may take to die after it.
const fallMax = time.Second

// falls reports whether nobody answers at a socket, or soon nobody does.
func falls(socket string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), fallMax)
	defer cancel()
	for {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			return true
		}
		conn.Close()
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return false
		}
	}
}
