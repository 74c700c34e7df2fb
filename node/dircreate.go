package node

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"

	"latchkey/internal/durablefile"
	"latchkey/node/allowlist"
	"latchkey/node/config"
	"latchkey/replicagroup/placement"
)

// madeFiles are the files that init and join make: what must not be there before, and what goes when they start over.
var madeFiles = []string{rootKeyFile, genesisFile, swarmKeyFile, configFile, allowListFile, storeDir, identityFile}

// InitOptions say what overlay is founded and by what kind of peer. The zero value founds a private overlay.
type InitOptions struct {
	FoundOptions
	Profile config.Profile // default: private. A client hosts nothing and so cannot found: config.ErrInvalid
	Listen  []string       // multiaddrs, in place of the profile's; a port that is 0 is drawn once, for good
}

// InitDir makes a peer in an empty or absent directory: an identity, and a new overlay that this peer founds, with a swarm
// key unless the profile is public. It is the founding act (rule G1): the root group's beginning is in the directory's store
// when it returns, and no start ever founds. For files and errors see [CreateDir]; an overlay that cannot be is placement.ErrGenesis, and a configuration
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
	switch leased := placement.Leased; {
	case c.Profile != config.Public:
	case o.Regenesis == nil:
		o.Regenesis = &leased
	case *o.Regenesis != placement.Leased:
		return fail(fmt.Errorf("%w: a public overlay has regenesis lease: nobody there is in a position to know that a group is lost, and to revive it", config.ErrInvalid))
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
	s.Founds = true
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
	RootKey  ed25519.PrivateKey // only where the overlay is founded
	Founds   bool               // the peer is a founder: its store is made too, with the beginning of the root group
	SwarmKey pnet.PSK           // nil: a public overlay
	Config   config.Config
	// AllowList is the overlay's, where it has one.
	AllowList []byte
}

// CreateDir writes a peer's directory, which must be empty or absent: init, join and testnets all come here. It never
// overwrites anything: [ErrExists]; while somebody else is at it, or a daemon runs: [ErrInUse]. When it returns, the
// directory is complete on the disk. When it fails, it removes again what it wrote; where that is not possible, because
// the process was killed, say, it leaves a mark, by which [OpenDir] refuses with [ErrUnfinished], and the next CreateDir
// removes what is there of these files and starts over.
func CreateDir(dir string, s DirSpec) error {
	return createDir(dir, s, func(string) error { return nil })
}

// createDir does what CreateDir does and calls step, which says what comes next, before each change to the disk; an error of
// step is that of the change.
//
// The mark is the first file and goes last. So without it the directory has all files or none of them, and with it nobody has
// used them yet: there is nothing to lose in removing them.
func createDir(dir string, s DirSpec, step func(string) error) (err error) {
	files, err := s.files()
	if err != nil {
		return err
	}
	id, err := s.id()
	if err != nil {
		return err
	}
	if err := checkVacant(dir); err != nil {
		return err
	}
	do := func(what string, f func() error) {
		if err != nil {
			return
		}
		if err = step(what); err == nil {
			err = f()
		}
		if err != nil {
			err = fmt.Errorf("node: %s: %s: %w", dir, what, err)
		}
	}
	do("make the directory", func() error { return makeDir(dir) })
	if err != nil {
		return err
	}
	unlock, err := lockPath(filepath.Join(dir, lockFile))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	// Again, now that nobody else is at it.
	if err := checkVacant(dir); err != nil {
		return err
	}
	do("mark it as unfinished", func() error { return mark(dir) })
	do("sync the mark", func() error { return durablefile.SyncDir(dir) })
	for _, name := range madeFiles {
		do("clear "+name, func() error { return removeMade(dir, name) })
	}
	if s.Founds {
		store := filepath.Join(dir, storeDir)
		do("make the store", func() error { return makeStore(store, s, id) })
		do("write the root into it", func() error { return foundIn(store, s, id) })
	}
	for _, f := range files {
		do("write "+f.name, func() error { return durablefile.Create(filepath.Join(dir, f.name), f.data, f.mode) })
	}
	do("sync the files", func() error { return durablefile.SyncDir(dir) })
	do("remove the mark", func() error { return os.Remove(filepath.Join(dir, unfinishedFile)) })
	if err != nil {
		return errors.Join(err, undo(dir))
	}
	do("sync the end of it", func() error { return durablefile.SyncDir(dir) })
	if err != nil {
		return fmt.Errorf("%w; the directory is complete, but may not outlive a power cut", err)
	}
	return nil
}

// makeDir makes a directory and its name durable.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	parent := filepath.Dir(filepath.Clean(dir))
	if err := durablefile.SyncDir(parent); err != nil && !errors.Is(err, fs.ErrPermission) { // we may enter it, not list it
		return err
	}
	return nil
}

// markText is what the mark holds. It is on the disk before anything else of the directory is touched.
const markText = "latchkey init or join is making a peer here. If it was interrupted, run it again: it starts over.\n"

// mark makes the file that says that the directory is unfinished. It may be there from the last time, whole or cut off.
func mark(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, unfinishedFile), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(markText)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// undo removes what an unfinished directory has, the mark last. Where it fails the mark stays.
func undo(dir string) error {
	for _, name := range append(slices.Clone(madeFiles), unfinishedFile) {
		if err := removeMade(dir, name); err != nil {
			return fmt.Errorf("node: %s is left unfinished: %w", dir, err)
		}
	}
	return nil
}

// removeMade removes what init and join may have made under a name.
func removeMade(dir, name string) error {
	path := filepath.Join(dir, name)
	if name == storeDir {
		return os.RemoveAll(path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

type newFile struct {
	name string
	data []byte
	mode fs.FileMode
}

// id returns the peer id, bytes.
func (s DirSpec) id() (string, error) {
	id, err := peer.IDFromPrivateKey(s.Key)
	if err != nil {
		return "", fmt.Errorf("node: %w", err)
	}
	return string(id), nil
}

// files encodes what the specification holds.
func (s DirSpec) files() ([]newFile, error) {
	if s.Key == nil {
		return nil, errors.New("node: DirSpec has no key")
	}
	if n := len(s.SwarmKey); s.SwarmKey != nil && n != swarmKeyBytes {
		return nil, fmt.Errorf("node: DirSpec has a swarm key of %d bytes, want %d", n, swarmKeyBytes)
	}
	if id, err := s.id(); err != nil {
		return nil, err
	} else if _, ok := founderIn(s.Genesis, id); s.Founds && !ok {
		return nil, fmt.Errorf("node: DirSpec founds, and its peer is no founder of overlay %v", s.Genesis.ID())
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
	conf, err := config.Encode(s.Config)
	if err != nil {
		return nil, err
	}
	files := []newFile{{genesisFile, text, 0o644}, {configFile, conf, 0o600}}
	if s.RootKey != nil {
		files = append(files, newFile{rootKeyFile, s.RootKey.Seed(), 0o600})
	}
	if s.SwarmKey != nil {
		files = append(files, newFile{swarmKeyFile, encodeSwarmKey(s.SwarmKey), 0o600})
	}
	if s.AllowList != nil {
		if _, err := allowlist.Open(s.Genesis, s.AllowList); err != nil {
			return nil, err
		}
		files = append(files, newFile{allowListFile, s.AllowList, 0o644})
	}
	return append(files, newFile{identityFile, identity, 0o600}), nil
}

// checkVacant refuses a directory that holds a peer. One that is marked as unfinished does not.
func checkVacant(dir string) error {
	if unfinished, err := isUnfinished(dir); unfinished || err != nil {
		return err
	}
	name, err := anyMade(dir)
	if err == nil && name != "" {
		err = fmt.Errorf("%w: %s has %s; use another directory, or remove this one to give up its identity and overlay", ErrExists, dir, name)
	}
	return err
}

// anyMade returns one of the files that init and join make, if the directory has any.
func anyMade(dir string) (name string, err error) {
	for _, name := range madeFiles {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return name, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("node: %w", err)
		}
	}
	return "", nil
}

// isUnfinished tells whether init or join was interrupted in a directory, or is at work there: whatever it has of the files that
// these make goes when the next one starts over. So a file that merely has the mark's name is no mark, but an error that matches
// [ErrDamaged]: the files beside it may be a peer's whose directory is complete.
func isUnfinished(dir string) (bool, error) {
	b, err := readFile(dir, unfinishedFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err == nil && string(b) == markText:
		return true, nil
	case err == nil && strings.HasPrefix(markText, string(b)): // cut off, before anything else was done
		if name, err := anyMade(dir); name == "" || err != nil {
			return err == nil, err
		}
	case err != nil && !errors.Is(err, ErrDamaged):
		return false, err
	}
	return false, fmt.Errorf("%w: %s: neither init nor join has written this; if it is yours move it away, and what else is there stays as it is",
		ErrDamaged, filepath.Join(dir, unfinishedFile))
}
