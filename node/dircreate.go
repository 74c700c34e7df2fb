package node

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"

	"latchkey/internal/durablefile"
	"latchkey/node/config"
	"latchkey/replicagroup/placement"
)

// madeFiles are the files that init and join make: what must not be there before, and what goes when they start over.
var madeFiles = []string{rootKeyFile, genesisFile, swarmKeyFile, configFile, foundingFile, identityFile}

// InitOptions say what overlay is founded and by what kind of peer. The zero value founds a private overlay.
type InitOptions struct {
	FoundOptions
	Profile config.Profile // default: private. A client hosts nothing and so cannot found: config.ErrInvalid
	Listen  []string       // multiaddrs, in place of the profile's; a port that is 0 is drawn once, for good
}

// InitDir makes a peer in an empty or absent directory: an identity, and a new overlay that this peer founds, with a swarm
// key unless the profile is public. It is the founding act: the directory's first daemon, and nobody after it, begins the
// root group. For files and errors see [CreateDir]; an overlay that cannot be is placement.ErrGenesis, and a configuration
// that cannot be is config.ErrInvalid.
func InitDir(dir string, o InitOptions) (placement.Genesis, peer.ID, error) {
	fail := func(err error) (placement.Genesis, peer.ID, error) { return placement.Genesis{}, "", err }
	if err := checkVacant(dir); err != nil {
		return fail(err)
	}
	c, err := founderConfig(o)
	if err != nil {
		return fail(err)
	}
	s := DirSpec{Config: c}
	if s.Key, _, err = crypto.GenerateEd25519Key(rand.Reader); err != nil {
		return fail(fmt.Errorf("node: init: %w", err))
	}
	id, err := peer.IDFromPrivateKey(s.Key)
	if err != nil {
		return fail(fmt.Errorf("node: init: %w", err))
	}
	if s.Genesis, s.RootKey, err = drawGenesis(placement.Peer{ID: string(id)}, o.FoundOptions); err != nil {
		return fail(err)
	}
	record, err := s.Genesis.FoundingRecord(0)
	if err != nil {
		return fail(err)
	}
	s.Record = &record
	if c.Profile.Keyed() {
		s.SwarmKey = NewSwarmKey()
	}
	if err := CreateDir(dir, s); err != nil {
		return fail(err)
	}
	return s.Genesis, id, nil
}

// founderConfig is the configuration of a new overlay's first peer.
func founderConfig(o InitOptions) (config.Config, error) {
	p := o.Profile
	if p == "" {
		p = config.Private
	}
	c, err := config.Default(p)
	switch {
	case err != nil:
		return c, err
	case c.Network.Mode == config.ModeClient:
		return c, fmt.Errorf("%w: profile: %s: the first peer of an overlay hosts its replicas, and a %s peer hosts none; "+
			"found the overlay with another profile, and join it with this one", config.ErrInvalid, p, p)
	}
	c.Network.Mode = config.ModeServer // nobody else could tell a founder that it is reachable
	if len(o.Listen) > 0 {
		c.Network.Listen = o.Listen
	}
	if err := c.Validate(p.Keyed()); err != nil {
		return c, err
	}
	return c.DrawPorts()
}

// DirSpec is what goes into a new directory. Key, Genesis and Config are required.
type DirSpec struct {
	Key      crypto.PrivKey
	Genesis  placement.Genesis
	RootKey  ed25519.PrivateKey        // only where the overlay is founded
	Record   *placement.FoundingRecord // only of a founder
	SwarmKey pnet.PSK                  // nil: a public overlay
	Config   config.Config
}

// CreateDir writes a peer's directory, which must be empty or absent: init, join and testnets all come here. It never
// overwrites anything: [ErrExists]; while somebody else is at it, or a daemon runs: [ErrInUse]. When it returns, the
// directory is complete on the disk. When it fails, it removes again what it wrote, and where that is not possible, because
// the process was killed, say, it leaves a mark: [OpenDir] refuses with [ErrUnfinished], and the next CreateDir removes what
// is there of its own files and starts over.
func CreateDir(dir string, s DirSpec) error {
	return createDir(dir, s)
}

func createDir(dir string, s DirSpec) error {
	files, err := s.files()
	if err != nil {
		return err
	}
	if err := checkVacant(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	for _, f := range files {
		if err := durablefile.Create(filepath.Join(dir, f.name), f.data, f.mode); err != nil {
			return fmt.Errorf("node: %w", err)
		}
	}
	if err := config.Write(filepath.Join(dir, configFile), s.Config); err != nil {
		return err
	}
	return durablefile.SyncDir(dir)
}

type newFile struct {
	name string
	data []byte
	mode fs.FileMode
}

// files encodes what the specification holds.
func (s DirSpec) files() ([]newFile, error) {
	if s.Key == nil {
		return nil, errors.New("node: DirSpec has no key")
	}
	identity, err := crypto.MarshalPrivateKey(s.Key)
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	text, err := s.Genesis.Text()
	if err != nil {
		return nil, err
	}
	if err := s.Config.Validate(s.SwarmKey != nil); err != nil {
		return nil, err
	}
	files := []newFile{{genesisFile, text, 0o644}}
	if s.RootKey != nil {
		files = append(files, newFile{rootKeyFile, s.RootKey.Seed(), 0o600})
	}
	if s.SwarmKey != nil {
		files = append(files, newFile{swarmKeyFile, encodeSwarmKey(s.SwarmKey), 0o600})
	}
	if s.Record != nil {
		files = append(files, newFile{foundingFile, s.Record.Encode(), 0o600})
	}
	return append(files, newFile{identityFile, identity, 0o600}), nil
}

// checkVacant refuses a directory that holds a peer.
func checkVacant(dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, unfinishedFile)); err == nil {
		return nil
	}
	for _, name := range madeFiles {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return fmt.Errorf("%w: %s has %s; use another directory, or remove this one to give up its identity and overlay",
				ErrExists, dir, name)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("node: %w", err)
		}
	}
	return nil
}
