package node

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	logging "github.com/ipfs/go-log/v2"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"

	"latchkey/dht"
	"latchkey/internal/durablefile"
	"latchkey/node/config"
	"latchkey/replicagroup/placement"
)

var log = logging.Logger("latchkey/node")

// Files of a peer's directory, and one directory.
const (
	identityFile = "identity.key" // the peer's private key, as libp2p marshals it
	genesisFile  = "genesis"      // the overlay's genesis document, in text
	swarmKeyFile = "swarm.key"    // the overlay's pre-shared key; not in a public overlay
	configFile   = "config.yaml"  // the peer's configuration
	// configDraftFile is what an editor changes while the configuration is edited.
	configDraftFile = "config.draft.yaml"
	rootKeyFile     = "root.key"     // the overlay's root key; only where the overlay was founded
	reseedFile      = "reseed"       // the newest reseed document; only where the overlay's root was lost once
	rootStateFile   = "reseed.state" // what was left of the former root's state; only where a later root began with it
	storeDir        = "store"        // a directory: the peer's replicas (package disk)
	votersFile      = "voters"       // what voters have promised (package voterlog)
	peersFile       = "peers.json"   // peers that were met
	lockFile        = "daemon.lock"  // locked while a daemon runs, or somebody makes the directory
	unfinishedFile  = "unfinished"   // there while init or join writes the others
)

// fileBytesMax bounds each of the files that are read from a directory, known peers aside.
const fileBytesMax = 64 << 10

var (
	// ErrExists: there is a peer in the directory already.
	ErrExists = errors.New("node: directory is initialised already")
	// ErrNotInitialised: there is no peer in the directory.
	ErrNotInitialised = errors.New("node: directory is not initialised")
	// ErrUnfinished: init or join was interrupted in the directory, or is at work there.
	ErrUnfinished = errors.New("node: directory is unfinished")
	// ErrInUse: a daemon runs on the directory, or somebody is making it.
	ErrInUse = errors.New("node: directory is in use")
	// ErrDamaged: a file of the directory cannot be what this program wrote.
	ErrDamaged = errors.New("node: damaged file")
)

// DirFiles returns the names of the files that a peer's directory may hold, but for its store, which is a directory, and the sockets and tokens
// of a daemon. Beside them there may be others that begin with one of these names and a dot or a minus, with or without a dot in front:
// parts of files, and what is being written.
func DirFiles() []string {
	return []string{
		identityFile, genesisFile, swarmKeyFile, configFile, configDraftFile, configLockFile, rootKeyFile, reseedFile, rootStateFile, votersFile, peersFile, lockFile, unfinishedFile,
		allowListFile, adminKeyFile, allowLockFile, joiningFile,
	}
}

// replacedFiles are those of a directory that are replaced, beside which a process that was killed may have left a part of the next one: of
// some a secret.
var replacedFiles = []string{adminKeyFile, allowListFile, configFile, configDraftFile, joiningFile, peersFile, reseedFile, rootStateFile}

// DirInfo is what a peer's directory says about the peer.
type DirInfo struct {
	ID       peer.ID
	Genesis  placement.Genesis
	SwarmKey pnet.PSK      // nil in a public overlay; a secret
	Config   config.Config // of the file alone: neither environment nor flags are in it
}

// PeekDir reads a directory without locking it, so that it works beside a running daemon. Errors: [ErrNotInitialised],
// [ErrUnfinished], [ErrDamaged], and config.ErrInvalid.
func PeekDir(dir string) (*DirInfo, error) {
	d, err := readDir(dir)
	if err != nil {
		return nil, err
	}
	return &d.info, nil
}

// Dir is an opened directory. It is locked against a second daemon until Close. Its methods are not safe for concurrent use.
type Dir struct {
	path   string
	key    crypto.PrivKey
	info   DirInfo
	unlock func() error

	refusals Refusals // of the host and the node made here
	access   *Access  // nil before OpenDir
}

// OpenDir reads and locks a directory that InitDir or CreateDir made. Errors: [ErrNotInitialised], [ErrUnfinished],
// [ErrInUse], [ErrDamaged], and config.ErrInvalid.
func OpenDir(dir string) (*Dir, error) {
	d, err := readDir(dir)
	if err != nil {
		return nil, err
	}
	if d.unlock, err = lockPath(filepath.Join(dir, lockFile)); err != nil {
		return nil, err
	}
	if d.access, err = openAccess(dir, d.info.Genesis); err != nil {
		return nil, errors.Join(err, d.unlock())
	}
	d.access.counts(&d.refusals)
	for _, name := range replacedFiles {
		durablefile.Sweep(filepath.Join(dir, name))
	}
	for _, name := range []string{identityFile, swarmKeyFile, rootKeyFile, adminKeyFile} {
		warnIfShared(filepath.Join(dir, name))
	}
	if _, err := os.Stat(ConfigFile(dir)); errors.Is(err, fs.ErrNotExist) {
		log.Warnw("no configuration: the peer listens on the loopback only; latchkey config set writes one", "file", ConfigFile(dir))
	}
	return d, nil
}

// readDir reads what does not change while a daemon runs.
func readDir(dir string) (*Dir, error) {
	if unfinished, err := isUnfinished(dir); unfinished {
		return nil, fmt.Errorf("%w: latchkey init or join was interrupted in %s (or is at work there now); run it again, and it starts over",
			ErrUnfinished, dir)
	} else if err != nil {
		return nil, err
	}
	identity, err := readFile(dir, identityFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s has no %s; run latchkey init or latchkey join, with --path %s", ErrNotInitialised, dir, identityFile, dir)
	} else if err != nil {
		return nil, err
	}
	d := &Dir{path: dir}
	if d.key, err = crypto.UnmarshalPrivateKey(identity); err != nil {
		return nil, damaged(dir, identityFile, err)
	}
	if d.info.ID, err = peer.IDFromPrivateKey(d.key); err != nil {
		return nil, damaged(dir, identityFile, err)
	}
	genesis, err := readFile(dir, genesisFile)
	if errors.Is(err, fs.ErrPermission) {
		return nil, err
	}
	if err != nil {
		return nil, damaged(dir, genesisFile, err)
	}
	if d.info.Genesis, err = placement.ReadGenesis(bytes.NewReader(genesis)); err != nil {
		return nil, damaged(dir, genesisFile, err)
	}
	if d.info.SwarmKey, err = ReadSwarmKey(dir); err != nil {
		return nil, err
	}
	c, err := d.LoadConfig(nil, nil)
	if err != nil {
		return nil, err
	}
	d.info.Config = c.Config
	return d, nil
}

func readFile(dir, name string) ([]byte, error) { return readFileMax(dir, name, fileBytesMax) }

func readFileMax(dir, name string, most int64) ([]byte, error) {
	b, err := durablefile.Read(filepath.Join(dir, name), most)
	switch {
	case errors.Is(err, durablefile.ErrTooLong), errors.Is(err, durablefile.ErrNotAFile):
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	case err != nil:
		return nil, fmt.Errorf("node: %w", err)
	}
	return b, nil
}

func damaged(dir, name string, err error) error {
	return fmt.Errorf("%w: %s: %w; restore it from a copy, or init another directory", ErrDamaged, filepath.Join(dir, name), err)
}

// ID returns the directory's peer id.
func (d *Dir) ID() peer.ID { return d.info.ID }

// Genesis returns the document of the directory's overlay.
func (d *Dir) Genesis() placement.Genesis { return d.info.Genesis }

// SwarmKey returns the overlay's pre-shared key, nil in a public overlay.
func (d *Dir) SwarmKey() pnet.PSK { return d.info.SwarmKey }

// Config returns the configuration in the directory's file, or the defaults where it has none. For the environment and the
// command line see [Dir.LoadConfig].
func (d *Dir) Config() config.Config { return d.info.Config.Clone() }

// RootKeyFile returns the path of a directory's root key, which is there only where the overlay was founded: the private key, as its
// seed of 32 bytes, that signs a document which gives the overlay a new root. It is a secret, and is not needed to run a peer.
func RootKeyFile(dir string) string { return filepath.Join(dir, rootKeyFile) }

// ReadRootKey reads a root key from the file that init made, or a copy of it. A file that is not there matches fs.ErrNotExist; one that
// holds something else, [ErrDamaged].
func ReadRootKey(file string) (ed25519.PrivateKey, error) {
	seed, err := durablefile.Read(file, fileBytesMax)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("node: %w", err)
	case errors.Is(err, durablefile.ErrTooLong), errors.Is(err, durablefile.ErrNotAFile):
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	case err != nil:
		return nil, fmt.Errorf("node: %w", err)
	case len(seed) != ed25519.SeedSize:
		return nil, fmt.Errorf("%w: %s has %d bytes, and a root key %d", ErrDamaged, file, len(seed), ed25519.SeedSize)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// ConfigFile returns the path of a directory's configuration file.
func ConfigFile(dir string) string { return filepath.Join(dir, configFile) }

// ConfigDraft returns the path of the draft that is changed while the configuration is edited.
func ConfigDraft(dir string) string { return filepath.Join(dir, configDraftFile) }

// LoadConfig merges the directory's configuration file with the environment and the command line, as config.Load does, and
// checks that the directory's peer can run with the result. Errors match config.ErrInvalid, but for those of reading the file.
func (d *Dir) LoadConfig(environ []string, flags map[string]any) (config.Loaded, error) {
	c, err := config.Load(ConfigFile(d.path), environ, flags)
	if err == nil {
		err = c.Validate(d.info.SwarmKey != nil)
	}
	return c, err
}

// NewHost makes a libp2p host with the directory's identity and swarm key, as c says ([HostOptions]). Extra options come before those,
// and win where that says so.
func (d *Dir) NewHost(c config.Config, extra ...libp2p.Option) (host.Host, error) {
	opts, err := HostOptions(c, d.key, d.info.SwarmKey, &d.refusals)
	if err != nil {
		return nil, err
	}
	gate := d.access.Gater()
	opts = append(opts, unless(func(c *libp2p.Config) bool { return c.ConnectionGater != nil }, libp2p.ConnectionGater(gate)))
	h, err := libp2p.New(append(slices.Clone(extra), opts...)...)
	if err != nil {
		return nil, fmt.Errorf("node: cannot listen at %v: %w", c.Network.Listen, err)
	}
	return h, nil
}

// NewNode makes the directory's node on a host from NewHost. It goes on with the replicas in the directory's store; a peer that is
// to host and has no store yet gets an empty one. The node closes the store. With store.volatile, which takes a directory without
// a store, replicas are in memory.
//
// Errors match [replicagroup.ErrRootLost] when this peer alone founded the overlay and its store is gone, config.ErrInvalid, and
// those of disk.Open: disk.ErrCopied, disk.ErrDamaged and so on.
func (d *Dir) NewNode(h host.Host, c config.Config, opts ...Option) (*Node, error) {
	if err := d.check(c); err != nil {
		return nil, err
	}
	bootstrap, err := bootstrapPeers(c)
	if err != nil {
		return nil, err
	}
	opts = append([]Option{WithOverlay(d.info.Genesis), WithBootstrap(bootstrap...), WithRefusals(&d.refusals),
		WithAccess(d.access), withEnrol(d.enrol), withSwarmKey(d.info.SwarmKey),
		withKnownPeers(filepath.Join(d.path, peersFile))}, opts...)
	if c.Network.MDNS {
		opts = append(opts, WithMDNS())
	}
	if c.Network.Mode == config.ModeAuto {
		opts = append(opts, WithAutoMode())
	}
	reseed, state, err := d.reseed()
	if err != nil {
		return nil, err
	}
	opts = append(opts, withReseed(reseed, state, d.keepReseed))
	switch {
	case c.Network.Mode == config.ModeClient:
		if has, _ := d.hasStore(); has {
			log.Warnw("client mode: the replicas in the store do not run, and their groups count this peer as down", "store", d.storePath())
		}
		return New(h, append(opts, ClientOnly())...)
	case c.Store.Volatile:
		return New(h, opts...)
	}
	store, err := d.openStore()
	if err != nil {
		return nil, err
	}
	closing := store.Close
	if d.info.Genesis.Sigma {
		voters, err := d.openVoterLog(store)
		if err != nil {
			return nil, errors.Join(err, store.Close())
		}
		opts = append(opts, WithVoterLog(voters))
		closing = func() error { return errors.Join(voters.Close(), store.Close()) }
	}
	n, err := New(h, append(opts, WithStore(store), withClosing(closing))...)
	if err != nil {
		return nil, errors.Join(err, closing())
	}
	return n, nil
}

// reseed returns the reseed document that was kept and the state that was kept with it, nil where there is none. Whether the state is
// that of the document is for whoever begins with it to judge, by its digest.
func (d *Dir) reseed() (doc, state []byte, err error) {
	doc, err = readFile(d.path, reseedFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	if _, err := placement.OpenReseed(d.info.Genesis, doc); err != nil {
		return nil, nil, fmt.Errorf("%w: %s: %w; remove it, and the peer is told of the overlay's root by others", ErrDamaged, filepath.Join(d.path, reseedFile), err)
	}
	state, err = readFileMax(d.path, rootStateFile, rootStateBytesMax)
	if errors.Is(err, fs.ErrNotExist) {
		return doc, nil, nil
	}
	return doc, state, err
}

// rootStateBytesMax bounds the state that a root begins with: it came in one message.
const rootStateBytesMax = dht.MessageBytesMax

// keepReseed makes a reseed document durable, after the state with which its root begins here, if it does.
func (d *Dir) keepReseed(doc, state []byte) error {
	if state != nil {
		if err := durablefile.Replace(filepath.Join(d.path, rootStateFile), state, 0o600); err != nil {
			return err
		}
	}
	return durablefile.Replace(filepath.Join(d.path, reseedFile), doc, 0o644)
}

// check tells whether the directory's peer can run with this configuration.
func (d *Dir) check(c config.Config) error {
	if err := c.Validate(d.info.SwarmKey != nil); err != nil {
		return err
	}
	return d.checkStore(c)
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

// Run is what a daemon does with a directory: it makes host and node and starts them, as c says. The caller closes all three,
// the node first.
func (d *Dir) Run(ctx context.Context, c config.Config, hostOpts []libp2p.Option, opts ...Option) (*Node, host.Host, error) {
	if err := d.check(c); err != nil {
		return nil, nil, err
	}
	h, err := d.NewHost(c, hostOpts...)
	if err != nil {
		return nil, nil, err
	}
	n, err := d.NewNode(h, c, opts...)
	if err == nil {
		if err = n.Start(ctx); err == nil {
			return n, h, nil
		}
		err = errors.Join(err, n.Close())
	}
	return nil, nil, errors.Join(err, h.Close())
}

// bootstrapPeers reads network.bootstrap, one entry for each peer.
func bootstrapPeers(c config.Config) ([]peer.AddrInfo, error) {
	addrs, err := multiaddrs("bootstrap", c.Network.Bootstrap)
	if err != nil {
		return nil, err
	}
	infos, err := peer.AddrInfosFromP2pAddrs(addrs...)
	if err != nil {
		return nil, fmt.Errorf("%w: network.bootstrap: %w", config.ErrInvalid, err)
	}
	return infos, nil
}
