package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/replicagroup"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/placement"
)

// Files of a peer's directory.
const (
	identityFile = "identity.key" // the peer's private key, as libp2p marshals it
	genesisFile  = "genesis"      // the overlay's genesis document, in text
	rootKeyFile  = "root.key"     // the overlay's root key; only where the overlay was founded
	foundingFile = "founding"     // the right to begin the root group, once
	lockFile     = "daemon.lock"  // locked while a daemon runs
)

// fileBytesMax bounds every file that is read from a directory.
const fileBytesMax = 64 << 10

// DefaultListen is where a peer listens that was told nothing else. Nobody else can join before there are invitations, so
// it is the loopback.
const DefaultListen = "/ip4/127.0.0.1/tcp/0"

var (
	// ErrExists: there is a peer in the directory already.
	ErrExists = errors.New("node: directory is initialised already")
	// ErrNotInitialised: there is no peer in the directory.
	ErrNotInitialised = errors.New("node: directory is not initialised")
	// ErrInUse: a daemon runs on the directory.
	ErrInUse = errors.New("node: directory is in use")
	// ErrDamaged: a file of the directory cannot be what this program wrote.
	ErrDamaged = errors.New("node: damaged file")
)

// InitDir makes a peer in an empty or absent directory: an identity, and a new overlay that this peer founds. It is the
// founding act: the directory's first daemon, and nobody after it, begins the root group. It never overwrites anything:
// [ErrExists]. Files are durable when it returns.
func InitDir(dir string, o FoundOptions) (placement.Genesis, peer.ID, error) {
	fail := func(err error) (placement.Genesis, peer.ID, error) { return placement.Genesis{}, "", err }
	for _, name := range []string{identityFile, genesisFile, rootKeyFile, foundingFile} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return fail(fmt.Errorf("%w: %s has %s; use another directory, or remove this one to give up its identity and overlay",
				ErrExists, dir, name))
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fail(fmt.Errorf("node: init: %w", err))
		}
	}
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return fail(fmt.Errorf("node: init: %w", err))
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return fail(fmt.Errorf("node: init: %w", err))
	}
	g, rootKey, err := drawGenesis(placement.Peer{ID: string(id)}, o)
	if err != nil {
		return fail(err)
	}
	text, err := g.Text()
	if err != nil {
		return fail(err)
	}
	record, err := g.FoundingRecord(0)
	if err != nil {
		return fail(err)
	}
	identity, err := crypto.MarshalPrivateKey(key)
	if err != nil {
		return fail(fmt.Errorf("node: init: %w", err))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(fmt.Errorf("node: init: %w", err))
	}
	// The identity comes last: a directory without one is not initialised, so an interrupted init can be seen for what it is.
	for _, f := range []struct {
		name string
		data []byte
		mode fs.FileMode
	}{
		{rootKeyFile, rootKey.Seed(), 0o600},
		{genesisFile, text, 0o644},
		{foundingFile, record.Encode(), 0o600},
		{identityFile, identity, 0o600},
	} {
		if err := createFile(filepath.Join(dir, f.name), f.data, f.mode); err != nil {
			return fail(fmt.Errorf("node: init: %w", err))
		}
	}
	return g, id, syncDir(dir)
}

// createFile writes a new file durably. It fails if there is one.
func createFile(path string, data []byte, mode fs.FileMode) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

// Dir is an opened directory. It is locked against a second daemon until Close.
type Dir struct {
	path    string
	key     crypto.PrivKey
	id      peer.ID
	genesis placement.Genesis
	record  *placement.FoundingRecord
	unlock  func() error
}

// OpenDir reads and locks a directory that InitDir made. Errors: [ErrNotInitialised], [ErrInUse], [ErrDamaged].
func OpenDir(dir string) (*Dir, error) {
	identity, err := readFile(dir, identityFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s has no %s; run: latchkey init --path %s", ErrNotInitialised, dir, identityFile, dir)
	} else if err != nil {
		return nil, err
	}
	d := &Dir{path: dir}
	damaged := func(name string, err error) (*Dir, error) {
		return nil, fmt.Errorf("%w: %s: %w; restore it from a copy, or init another directory", ErrDamaged, filepath.Join(dir, name), err)
	}
	if d.key, err = crypto.UnmarshalPrivateKey(identity); err != nil {
		return damaged(identityFile, err)
	}
	if d.id, err = peer.IDFromPrivateKey(d.key); err != nil {
		return damaged(identityFile, err)
	}
	f, err := os.Open(filepath.Join(dir, genesisFile))
	if err != nil {
		return damaged(genesisFile, err)
	}
	defer f.Close()
	if d.genesis, err = placement.ReadGenesis(f); err != nil {
		return damaged(genesisFile, err)
	}
	if d.unlock, err = lockPath(filepath.Join(dir, lockFile)); err != nil {
		return nil, err
	}
	// Only behind the lock: another daemon may have been about to consume the record.
	switch b, err := readFile(dir, foundingFile); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, errors.Join(err, d.Close())
	default:
		r, err := placement.DecodeFoundingRecord(b)
		if err != nil {
			d.Close()
			return damaged(foundingFile, err)
		}
		d.record = &r
	}
	return d, nil
}

func readFile(dir, name string) ([]byte, error) {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, fileBytesMax+1))
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	if len(b) > fileBytesMax {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", ErrDamaged, filepath.Join(dir, name), fileBytesMax)
	}
	return b, nil
}

// ID returns the directory's peer id.
func (d *Dir) ID() peer.ID { return d.id }

// Genesis returns the document of the directory's overlay.
func (d *Dir) Genesis() placement.Genesis { return d.genesis }

// NewHost makes a libp2p host with the directory's identity that listens at these addresses, [DefaultListen] when there are
// none.
func (d *Dir) NewHost(listen ...string) (host.Host, error) {
	if len(listen) == 0 {
		listen = []string{DefaultListen}
	}
	h, err := libp2p.New(libp2p.Identity(d.key), libp2p.ListenAddrStrings(listen...), libp2p.DisableRelay(),
		libp2p.DisableMetrics(), libp2p.UserAgent("latchkey/"+Version()))
	if err != nil {
		return nil, fmt.Errorf("node: cannot listen at %v: %w", listen, err)
	}
	return h, nil
}

// NewNode makes the directory's node on a host from NewHost. It consumes the founding record, if there is one: whatever
// becomes of the node from here on, no later start founds. An error that matches [replicagroup.ErrRootLost] says that an
// earlier start has consumed it.
func (d *Dir) NewNode(h host.Host, opts ...Option) (*Node, error) {
	store := replicagroup.NewMemoryStore()
	start := placement.Start{PeerID: string(d.id), Store: store.ID(), Record: d.record}
	if d.record != nil {
		store = replicagroup.NewMemoryStoreAs(d.record.Store)
		start.Store = store.ID()
	}
	act, err := placement.Decide(d.genesis, start)
	if err != nil {
		return nil, fmt.Errorf("node: %s: %w", filepath.Join(d.path, foundingFile), err)
	}
	switch act {
	case placement.Found:
		// The store lives no longer than this process, so the record goes first: a crash in between loses the overlay, and
		// the other order might found it twice.
		if err := os.Remove(filepath.Join(d.path, foundingFile)); err != nil {
			return nil, fmt.Errorf("node: cannot consume the founding record: %w", err)
		}
		if err := syncDir(d.path); err != nil {
			return nil, fmt.Errorf("node: cannot consume the founding record: %w", err)
		}
		d.record = nil
		if err := replicagroup.Found(store, d.genesis, placement.Peer{ID: string(d.id)}.Node()); err != nil {
			return nil, err
		}
	case placement.RootLost:
		return nil, rootLost(d.genesis.ID(), d.path)
	}
	return New(h, append([]Option{WithOverlay(d.genesis), WithStore(store)}, opts...)...)
}

// rootLost says what a founder's user is to do when the root is gone.
func rootLost(id order.OverlayID, dir string) error {
	return fmt.Errorf("%w: this peer founded overlay %v and kept its root group in memory, which ended with its last run; "+
		"locks and tokens of that overlay are gone for good. To found a new overlay: mv %s %s.lost && latchkey init --path %s",
		replicagroup.ErrRootLost, id, dir, dir, dir)
}

// Close unlocks the directory. It is idempotent.
func (d *Dir) Close() error {
	if d.unlock == nil {
		return nil
	}
	u := d.unlock
	d.unlock = nil
	return u()
}

// Run is what a daemon does with a directory: it makes host and node and starts them. The caller closes all three, the node
// first.
func (d *Dir) Run(ctx context.Context, listen []string, opts ...Option) (*Node, host.Host, error) {
	h, err := d.NewHost(listen...)
	if err != nil {
		return nil, nil, err
	}
	n, err := d.NewNode(h, opts...)
	if err == nil {
		if err = n.Start(ctx); err == nil {
			return n, h, nil
		}
		err = errors.Join(err, n.Close())
	}
	return nil, nil, errors.Join(err, h.Close())
}
