package testnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"latchkey/node"
	"latchkey/replicagroup/placement"
)

// spoolPrefix begins the name of a state that is being copied, in the testnet's directory.
const spoolPrefix = ".state-"

// Dump implements [Testnet]. All peers' processes are stopped before the first byte is copied, and go on after the last one was: what a
// peer had told others is then in its own part of the copy, as it would be on its disk if all were killed at that moment. With
// one peer after the other it would not be: the copy of the first could have forgotten what others had heard of it since.
// They stand still as long as it takes to copy their stores into a file in the testnet's directory; to is written afterwards.
func (p *Processes) Dump(ctx context.Context, to io.Writer) error {
	spool, err := os.CreateTemp(p.opts.Dir, spoolPrefix)
	if err != nil {
		return fmt.Errorf("testnet: state: %w", err)
	}
	defer func() {
		spool.Close()
		os.Remove(spool.Name())
	}()
	if runtime.GOOS != "windows" { // a process that is killed leaves nothing behind
		if err := os.Remove(spool.Name()); err != nil {
			return fmt.Errorf("testnet: state: %w", err)
		}
	}
	if err := p.copyAtRest(ctx, spool); err != nil {
		return err
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("testnet: state: %w", err)
	}
	_, err = io.Copy(to, spool)
	return err
}

// copyAtRest writes the state to a file, with all peers stopped meanwhile.
func (p *Processes) copyAtRest(ctx context.Context, spool io.Writer) error {
	p.joining.Lock()
	defer p.joining.Unlock()
	p.resting.Lock() // nobody starts or goes on
	defer p.resting.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(p.life, func() { cancel(ErrClosed) })()
	stopped, m, err := p.stopAll()
	defer p.goOn(stopped)
	if err != nil {
		return err
	}
	for _, s := range stopped {
		if err := p.awaitStill(s.index, s.life); err != nil {
			return err
		}
	}
	return writePeers(ctx, spool, m, p.opts.Dir)
}

// stopAll sends SIGSTOP to all peers that run, and returns those that ran, and what they are.
func (p *Processes) stopAll() (stopped []hearer, m manifest, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, m, ErrClosed
	}
	if m, err = newManifest(ModeProcess, p.opts.Seed, p.genesis); err != nil {
		return nil, m, err
	}
	for _, s := range p.places {
		m.Peers = append(m.Peers, statePeer{Peer: s.id.String(), Port: s.port, Up: s.child != nil && !s.left, Left: s.left})
		if s.child == nil || s.paused {
			continue
		}
		if !stillKnown {
			return stopped, m, fmt.Errorf("%w: dump: this system does not tell when a process stands still; have all peers leave first", ErrMode)
		}
		if err := freeze(s.child.process); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return stopped, m, describe(s, err)
		}
		stopped = append(stopped, hearer{place: s, life: s.child})
	}
	return stopped, m, nil
}

// goOn lets the peers go on that stopAll stopped, but for those that somebody has paused since.
func (p *Processes) goOn(stopped []hearer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range stopped {
		if s.child == s.life && !s.paused {
			_ = thaw(s.life.process) // it may have ended
		}
	}
}

func newManifest(mode Mode, seed uint64, g placement.Genesis) (manifest, error) {
	text, err := g.Text()
	return manifest{Mode: mode, Seed: seed, Genesis: string(text), genesis: g}, err
}

// writePeers writes the state of peers of whose directories nobody writes to any.
func writePeers(ctx context.Context, to io.Writer, m manifest, dir string) error {
	w, err := newStateWriter(ctx, to, m)
	if err != nil {
		return err
	}
	for i := range m.Peers {
		number := strconv.Itoa(i)
		if err := w.dir(number, filepath.Join(dir, number), stateFileOfPeer); err != nil {
			return err
		}
		store := filepath.Join(dir, number, storeDir)
		err := filepath.WalkDir(store, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			rel, err := filepath.Rel(store, path)
			if err != nil {
				return err
			}
			return w.fileOf(number+"/"+storeDir+"/"+filepath.ToSlash(rel), path)
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a peer that never started has no store
			return fmt.Errorf("testnet: state: peer %d: %w", i, err)
		}
	}
	return w.end()
}

// dir adds those regular files of a directory that take names.
func (w *stateWriter) dir(name, dir string, take func(string) bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("testnet: state: %w", err)
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || !take(e.Name()) {
			continue
		}
		if err := w.fileOf(name+"/"+e.Name(), filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("testnet: state: %w", err)
		}
	}
	return nil
}

// DumpStopped writes the state of a testnet of processes that was killed itself, and whose peers' directories are still in dir. It
// keeps others out of the directory meanwhile and changes nothing in it. Errors: [ErrRunning], [ErrNotRunning] when there are no
// such directories, [ErrState] when they are not those of one testnet.
func DumpStopped(ctx context.Context, dir string, to io.Writer) error {
	if _, err := os.Stat(filepath.Join(dir, "0", markFile)); err != nil {
		return fmt.Errorf("%w in %s", ErrNotRunning, dir)
	}
	_, l, err := claimDir(dir)
	if err != nil {
		return err
	}
	defer l.Close()
	m, err := manifestOf(dir)
	if err != nil {
		return err
	}
	return writePeers(ctx, to, m, dir)
}

// manifestOf reads from peers' directories what testnet they are of.
func manifestOf(dir string) (m manifest, err error) {
	var genesis string
	for i := 0; ; i++ {
		peerDir := filepath.Join(dir, strconv.Itoa(i))
		text, err := os.ReadFile(filepath.Join(peerDir, markFile))
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return m, fmt.Errorf("testnet: state: %w", err)
		}
		info, err := node.PeekDir(peerDir)
		if err != nil {
			return m, fmt.Errorf("%w: peer %d cannot be part of it: %w", ErrState, i, err)
		}
		seed, ok := seedOfMark(string(text))
		port, err := portOf(info)
		if i == 0 {
			if m, err = newManifest(ModeProcess, seed, info.Genesis); err != nil {
				return m, fmt.Errorf("testnet: state: %w", err)
			}
			genesis = m.Genesis
		}
		if id := info.Genesis.ID(); !ok || err != nil || id != m.genesis.ID() || seed != m.Seed {
			return m, fmt.Errorf("%w: %s is not of the testnet of the peers before it", ErrState, peerDir)
		}
		if !falls(filepath.Join(peerDir, apiSocketFile)) {
			return m, fmt.Errorf("%w in %s: peer %d still runs", ErrRunning, dir, i)
		}
		m.Peers = append(m.Peers, statePeer{Peer: info.ID.String(), Port: port, Up: true})
	}
	m.Genesis = genesis
	if err := m.check(); err != nil {
		return m, fmt.Errorf("%w: the directories in %s are no whole testnet: %w", ErrState, dir, err)
	}
	return m, nil
}

// portOf returns the port at which a testnet's peer listens.
func portOf(info *node.DirInfo) (int, error) {
	for _, a := range info.Config.Network.Listen {
		if port, ok := strings.CutPrefix(a, "/ip4/127.0.0.1/tcp/"); ok {
			return strconv.Atoi(port)
		}
	}
	return 0, errors.New("it listens at no port of the loopback")
}

// restore makes the places and directories of a state's peers.
func (p *Processes) restore(s *State) error {
	if s.Mode() != ModeProcess {
		return fmt.Errorf("%w: %s was a testnet with --mode %s; start it so", ErrMode, s.name, s.Mode())
	}
	p.genesis = s.genesis
	for i, was := range s.Peers {
		place, err := p.placeAt(i, was.Port)
		if err != nil {
			return err
		}
		place.left = was.Left
		p.places = append(p.places, place)
	}
	if err := portsFree(s.Peers); err != nil {
		return err
	}
	errs := make([]error, len(p.places))
	var wg sync.WaitGroup // each waits for the disk
	for i, place := range p.places {
		wg.Go(func() { errs[i] = describe(place, p.resettle(s, place)) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	first, err := node.PeekDir(p.places[0].dir)
	if err != nil {
		return describe(p.places[0], err)
	}
	p.psk = first.SwarmKey
	return nil
}

// resettle makes the directory of a peer from a state. Its store is a copy, of which it is known that no original runs: the peers'
// ports are free, and what others remember of them is of the same moment.
func (p *Processes) resettle(s *State, place *place) error {
	if err := p.markDir(place.dir); err != nil {
		return err
	}
	if err := s.unpack(place.index, place.dir); err != nil {
		return err
	}
	d, err := node.OpenDir(place.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	c := d.Config()
	if d.ID() != place.id || d.Genesis().ID() != p.genesis.ID() || !slices.Contains(c.Network.Listen, place.addr()) {
		return fmt.Errorf("%w: %s: its files are of another peer, overlay or port", ErrState, s.name)
	}
	if err := d.Adopt(); err != nil && !errors.Is(err, fs.ErrNotExist) { // it had no store yet
		return err
	}
	return d.Close()
}

// portsFree checks that nobody listens at the peers' ports, as those do of the testnet that a state was made of.
func portsFree(peers []statePeer) error {
	for i, s := range peers {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port)))
		if err != nil {
			return fmt.Errorf("%w: peer %d needs its port again, and somebody has it: %w; if the testnet that was dumped still runs, end it first", ErrRunning, i, err)
		}
		if err := l.Close(); err != nil {
			return fmt.Errorf("testnet: %w", err)
		}
	}
	return nil
}
