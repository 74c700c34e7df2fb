package testnet

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/replicagroup/placement"
)

// A state is a testnet at rest: who its peers are, what they have stored, and nothing of what stood between them. As a file it is
//
//	latchkey-testnet-state 1\n    what it is, and the version of the format
//	a tar archive                 testnet.json first (manifest), then the files of peer N as N/...
//	32 bytes                      SHA-256 of all before
//
// so that "tail -n +2 FILE | tar t" lists it. Nothing of a file is used before its checksum is found right.

// Bounds of a state.
const (
	stateVersion       = 1
	stateHead          = "latchkey-testnet-state "
	stateHeadBytesMax  = len(stateHead) + 20 // of all versions
	stateManifestFile  = "testnet.json"
	stateManifestMax   = 256 << 10
	stateFilesMax      = 65536 // of all peers
	statePathBytesMax  = 256
	stateMemoryFile    = "memory" // of a peer in this process: its store
	stateStandsFor     = "the state of a testnet"
	stateDumpAgainHint = "copy it again, or dump again"
)

// StateBytesMax is the largest state that is read or written.
const StateBytesMax = 16 << 30

// ErrState is matched when a file is not the state of a testnet, or not one that this program can take.
var ErrState = errors.New("testnet: state")

// manifest says what testnet a state is of.
type manifest struct {
	Mode    Mode        `json:"mode"`
	Seed    uint64      `json:"seed,string"`
	Genesis string      `json:"genesis"` // the document, in text
	Peers   []statePeer `json:"peers"`   // by number

	genesis placement.Genesis
}

// statePeer is one peer of a state.
type statePeer struct {
	Peer string `json:"peer"`
	Port int    `json:"port"`
	Up   bool   `json:"up"`
	Left bool   `json:"left,omitempty"` // down because it left
}

// check completes a manifest that was read, and says what cannot be.
func (m *manifest) check() error {
	var err error
	if m.genesis, err = placement.ReadGenesis(strings.NewReader(m.Genesis)); err != nil {
		return err
	}
	founders := len(m.genesis.Founders)
	switch {
	case m.Mode != ModeInProcess && m.Mode != ModeProcess:
		return fmt.Errorf("mode %q is unknown", m.Mode)
	case founders != 2*m.genesis.F+1 || len(m.Peers) < founders || len(m.Peers) > PeersMax:
		return fmt.Errorf("%d peers, %d of them founders, with f = %d", len(m.Peers), founders, m.genesis.F)
	}
	ports := make(map[int]bool)
	for i, p := range m.Peers {
		id, err := peer.IDFromPrivateKey(identity(m.Seed, i))
		switch {
		case err != nil:
			return err
		case p.Peer != id.String() || i < founders && m.genesis.Founders[i].ID != string(id):
			return fmt.Errorf("peer %d is not the one of seed %d", i, m.Seed)
		case p.Port < 1 || p.Port > 65535 || ports[p.Port]:
			return fmt.Errorf("peer %d has port %d", i, p.Port)
		case p.Up && p.Left:
			return fmt.Errorf("peer %d has left and is up", i)
		}
		ports[p.Port] = true
	}
	return nil
}

// options returns what of a testnet's options its state says.
func (m *manifest) options(o Options) Options {
	o.N, o.F, o.Seed, o.Depth = len(m.Peers), m.genesis.F, m.Seed, m.genesis.Depth
	o.Regenesis, o.LeaseReads, o.OwnGroups, o.NoSigma = m.genesis.Regenesis, m.genesis.LeaseReads, m.genesis.OwnGroups, !m.genesis.Sigma
	return o
}

// stateWriter writes a state.
type stateWriter struct {
	ctx   context.Context // ends the writing
	to    io.Writer
	sum   hash.Hash
	tar   *tar.Writer
	files int
	bytes int64
}

// newStateWriter begins a state.
func newStateWriter(ctx context.Context, to io.Writer, m manifest) (*stateWriter, error) {
	w := &stateWriter{ctx: ctx, to: to, sum: sha256.New()}
	both := io.MultiWriter(to, w.sum)
	if _, err := fmt.Fprintf(both, "%s%d\n", stateHead, stateVersion); err != nil {
		return nil, err
	}
	w.tar = tar.NewWriter(both)
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, err
	}
	if len(b) > stateManifestMax {
		return nil, fmt.Errorf("%w: a manifest of %d bytes; %d are the most", ErrState, len(b), stateManifestMax)
	}
	return w, w.file(stateManifestFile, int64(len(b)), bytes.NewReader(b))
}

// file adds a file of n bytes.
func (w *stateWriter) file(name string, n int64, content io.Reader) error {
	if err := context.Cause(w.ctx); err != nil {
		return err
	}
	w.files++
	w.bytes += n
	if w.files > stateFilesMax || w.bytes > StateBytesMax || len(name) > statePathBytesMax {
		return fmt.Errorf("%w: too large at %s: %d files with %d bytes; %d with %d are the most", ErrState, name, w.files, w.bytes, stateFilesMax, StateBytesMax)
	}
	if err := w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: n, Mode: 0o600}); err != nil {
		return fmt.Errorf("testnet: state: %s: %w", name, err)
	}
	if _, err := io.CopyN(w.tar, content, n); err != nil {
		return fmt.Errorf("testnet: state: %s: %w", name, err)
	}
	return nil
}

// fileOf adds a file of the disk that nobody writes to meanwhile.
func (w *stateWriter) fileOf(name, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return w.file(name, info.Size(), f)
}

// end writes the end of the state.
func (w *stateWriter) end() error {
	if err := w.tar.Close(); err != nil {
		return err
	}
	_, err := w.to.Write(w.sum.Sum(nil))
	return err
}

// State is a testnet at rest, read from a file. Close it when the testnet that it was given to is up.
type State struct {
	manifest
	name  string
	file  *os.File
	files []stateFile
}

// stateFile is where a file of a peer is in a state.
type stateFile struct {
	peer    int
	path    string // in the peer's directory, with slashes
	content *io.SectionReader
}

// open returns a reader of the file from its beginning.
func (f stateFile) open() io.Reader { return io.NewSectionReader(f.content, 0, f.content.Size()) }

// OpenState opens the state of a testnet in a file, and reads it whole once to see that it is. Errors: [ErrState], and those of
// opening and reading a file.
func OpenState(name string) (*State, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("testnet: state: %w", err)
	}
	s, err := readState(name, f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	s.file = f
	return s, nil
}

// readState reads a state. r is a file.
func readState(name string, r *os.File) (*State, error) {
	info, err := r.Stat()
	if err != nil {
		return nil, fmt.Errorf("testnet: state: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is no file", ErrState, name)
	}
	return decodeState(name, r, info.Size())
}

// decodeState reads a state of n bytes.
func decodeState(name string, r io.ReaderAt, n int64) (*State, error) {
	bad := func(format string, args ...any) (*State, error) {
		return nil, fmt.Errorf("%w: %s %w", ErrState, name, fmt.Errorf(format, args...))
	}
	head := make([]byte, min(n, int64(stateHeadBytesMax)))
	if _, err := r.ReadAt(head, 0); err != nil && err != io.EOF {
		return nil, fmt.Errorf("testnet: state: %w", err)
	}
	line, _, whole := strings.Cut(string(head), "\n")
	number, ours := strings.CutPrefix(line, stateHead)
	version, err := strconv.ParseUint(number, 10, 32)
	switch {
	case !ours && !(n < int64(len(stateHead)) && strings.HasPrefix(stateHead, line)):
		return bad("is not %s: it begins otherwise", stateStandsFor)
	case !ours || !whole && len(head) < stateHeadBytesMax:
		return bad("is cut off: %s", stateDumpAgainHint)
	case err != nil || !whole:
		return bad("is not %s: it begins otherwise", stateStandsFor)
	case version != stateVersion:
		return bad("has version %d of the format, and this program reads version %d: use the program that wrote it", version, stateVersion)
	case n > StateBytesMax+StateBytesMax/2:
		return bad("has %d bytes; %d are the most", n, StateBytesMax)
	}
	begin, end := int64(len(line)+1), n-sha256.Size
	sum, want := sha256.New(), make([]byte, sha256.Size)
	if end < begin {
		return bad("is cut off: %s", stateDumpAgainHint)
	}
	if _, err := io.Copy(sum, io.NewSectionReader(r, 0, end)); err != nil {
		return nil, fmt.Errorf("testnet: state: %w", err)
	}
	if _, err := r.ReadAt(want, end); err != nil && err != io.EOF {
		return nil, fmt.Errorf("testnet: state: %w", err)
	}
	if !bytes.Equal(sum.Sum(nil), want) {
		return bad("is damaged or cut off, as its checksum tells: %s", stateDumpAgainHint)
	}
	s := &State{name: name}
	if err := s.index(r, begin, end); err != nil {
		return bad("cannot be what this program wrote: %w", err)
	}
	return s, nil
}

// index reads what is in the archive between two offsets.
func (s *State) index(r io.ReaderAt, begin, end int64) error {
	section := io.NewSectionReader(r, begin, end-begin)
	t := tar.NewReader(section) // reads headers one block at a time, so that the section's offset is that of the content
	h, err := t.Next()
	switch {
	case err != nil:
		return err
	case h.Name != stateManifestFile || h.Size > stateManifestMax:
		return fmt.Errorf("%q with %d bytes in place of %s", h.Name, h.Size, stateManifestFile)
	}
	d := json.NewDecoder(t)
	d.DisallowUnknownFields()
	if err := d.Decode(&s.manifest); err != nil {
		return fmt.Errorf("%s: %w", stateManifestFile, err)
	}
	if err := s.check(); err != nil {
		return fmt.Errorf("%s: %w", stateManifestFile, err)
	}
	seen := make(map[string]bool)
	for {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		at, err := section.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg || h.Size < 0 || h.Size > end-begin-at {
			return fmt.Errorf("%q is no file, or larger than the archive", h.Name)
		}
		number, rest, ok := strings.Cut(h.Name, "/")
		n, err := strconv.Atoi(number)
		switch {
		case !ok || err != nil || n < 0 || n >= len(s.Peers) || strconv.Itoa(n) != number || !s.takes(rest):
			return fmt.Errorf("file %q is none of a peer", h.Name)
		case seen[h.Name]:
			return fmt.Errorf("file %q is there twice", h.Name)
		case len(seen) >= stateFilesMax:
			return fmt.Errorf("more than %d files", stateFilesMax)
		}
		seen[h.Name] = true
		s.files = append(s.files, stateFile{n, rest, io.NewSectionReader(r, begin+at, h.Size)})
	}
}

// takes reports whether a state of this mode has files of this path.
func (m *manifest) takes(file string) bool {
	if m.Mode == ModeInProcess {
		return file == stateMemoryFile
	}
	dir, name := path.Split(file)
	return len(file) <= statePathBytesMax && fs.ValidPath(file) && !strings.ContainsAny(file, "\\:\x00") &&
		(dir == "" && stateFileOfPeer(name) || strings.HasPrefix(dir, storeDir+"/"))
}

// stateFileOfPeer reports whether a file of a peer's directory belongs into a state: what the testnet or the daemon keeps there, but
// for logs, locks, sockets and what is being written.
func stateFileOfPeer(name string) bool {
	return peerFile(name) && !strings.HasPrefix(name, ".") && !strings.HasSuffix(name, lockSuffix) &&
		!slices.Contains([]string{apiSocketFile, wireSocketFile, logFile}, name)
}

// Mode returns how the testnet ran its peers, and will.
func (s *State) Mode() Mode { return s.manifest.Mode }

// Close closes the file.
func (s *State) Close() error { return s.file.Close() }

// of returns the files of one peer.
func (s *State) of(peer int) (files []stateFile) {
	for _, f := range s.files {
		if f.peer == peer {
			files = append(files, f)
		}
	}
	return files
}

// unpack writes a peer's files below its directory, which is there. They need not outlive a power cut.
func (s *State) unpack(peer int, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, f := range s.of(peer) {
		if err := root.MkdirAll(path.Dir(f.path), 0o700); err != nil {
			return err
		}
		out, err := root.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, f.open())
		if err := errors.Join(err, out.Close()); err != nil {
			return err
		}
	}
	return nil
}
