package node

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/internal/durablefile"
	"latchkey/node/allowlist"
	"latchkey/replicagroup/placement"
)

// Files of a peer's directory that are about who may be in the overlay.
const (
	allowListFile = "allow.list" // the newest allow-list the peer knows; not where there is none
	adminKeyFile  = "admin.key"  // the overlay's admin key; in one directory only
	allowLockFile = "allow.lock" // locked while somebody reads the list to write it back changed
)

var (
	// ErrNoList: the overlay has no allow-list, as far as the directory knows.
	ErrNoList = errors.New("node: the overlay has no allow-list")
	// ErrNoAdminKey: the directory has not the overlay's admin key.
	ErrNoAdminKey = errors.New("node: no admin key")
	// ErrAdminExists: the overlay has an admin key already.
	ErrAdminExists = errors.New("node: the overlay has an admin key already")
)

// allowLockWait bounds the wait for another who changes the list.
const allowLockWait = 10 * time.Second

// ReadAllowList returns the newest allow-list that a directory knows. A daemon may run on it. Errors: [ErrNoList], [ErrDamaged], those of
// [PeekDir].
func ReadAllowList(dir string) (*allowlist.List, error) {
	info, err := PeekDir(dir)
	if err != nil {
		return nil, err
	}
	l, err := readAllowList(dir, info.Genesis)
	if err == nil && l == nil {
		err = fmt.Errorf("%w; latchkey overlay admin init makes one, where the overlay was founded", ErrNoList)
	}
	return l, err
}

// readAllowList returns nil where there is none.
func readAllowList(dir string, g placement.Genesis) (*allowlist.List, error) {
	doc, err := readFileMax(dir, allowListFile, allowlist.DocumentBytesMax)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	l, err := allowlist.Open(g, doc)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w; restore it from a copy, here or from another peer's directory", ErrDamaged, filepath.Join(dir, allowListFile), err)
	}
	return l, nil
}

// readAdminKey returns nil where there is none.
func readAdminKey(dir string, g placement.Genesis) (*allowlist.Key, error) {
	b, err := readFile(dir, adminKeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	k, err := allowlist.ReadKey(g, b)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w; restore it from a copy", ErrDamaged, filepath.Join(dir, adminKeyFile), err)
	}
	return k, nil
}

func lockAllowList(ctx context.Context, dir string) (unlock func() error, err error) {
	ctx, cancel := context.WithTimeout(ctx, allowLockWait)
	defer cancel()
	return lockWait(ctx, filepath.Join(dir, allowLockFile), "change of the allow-list")
}

// InitAdmin makes the overlay's admin key and its first allow-list in a directory, with these members beside the directory's peer. root
// is the overlay's root key. Where the overlay has a list, as after the admin key was lost, anew makes another key, which takes the place
// of the former one, and the list goes on. Killed at any moment, it can be repeated. Errors: [ErrAdminExists], allowlist.ErrKey, those of
// [PeekDir].
func InitAdmin(ctx context.Context, dir string, root ed25519.PrivateKey, members []peer.ID, anew bool) (*allowlist.List, error) {
	info, err := PeekDir(dir)
	if err != nil {
		return nil, err
	}
	unlock, err := lockAllowList(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	list, err := readAllowList(dir, info.Genesis)
	if err != nil {
		return nil, err
	}
	key, err := readAdminKey(dir, info.Genesis)
	if err != nil && !anew {
		return nil, err
	}
	if list != nil && !anew && (key == nil || key.Number() <= list.Admin()) {
		return nil, fmt.Errorf("%w, number %d; where it is lost, --new-key makes another", ErrAdminExists, list.Admin())
	}
	number := uint64(1)
	if list != nil {
		number = list.Admin() + 1
	}
	if key == nil || key.Number() < number { // else an earlier attempt was interrupted after it had made the key
		if key, err = allowlist.NewKey(info.Genesis, root, number); err != nil {
			return nil, err
		}
		b, err := key.Bytes()
		if err != nil {
			return nil, err
		}
		if err := durablefile.Replace(filepath.Join(dir, adminKeyFile), b, 0o600); err != nil {
			return nil, fmt.Errorf("node: %w", err)
		}
	}
	first, err := key.Found(list, append([]peer.ID{info.ID}, members...), time.Now())
	if err != nil {
		return nil, err
	}
	return first, writeAllowList(dir, first)
}

func writeAllowList(dir string, l *allowlist.List) error {
	if err := durablefile.Replace(filepath.Join(dir, allowListFile), l.Document(), 0o644); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	return nil
}

// EditAllowList changes the overlay's allow-list with the admin key of a directory, and returns the new list. It is durable then. A daemon
// that runs on the directory takes it over by itself, within a second, and tells the others. Errors: [ErrNoList], [ErrNoAdminKey], those
// of change, allowlist.ErrKey, allowlist.ErrFull, those of [PeekDir].
func EditAllowList(ctx context.Context, dir string, change func(*allowlist.Draft) error) (*allowlist.List, error) {
	info, err := PeekDir(dir)
	if err != nil {
		return nil, err
	}
	return editAllowList(ctx, dir, info.Genesis, change)
}

func editAllowList(ctx context.Context, dir string, g placement.Genesis, change func(*allowlist.Draft) error) (*allowlist.List, error) {
	unlock, err := lockAllowList(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	list, err := readAllowList(dir, g)
	if err != nil {
		return nil, err
	}
	key, err := readAdminKey(dir, g)
	switch {
	case err != nil:
		return nil, err
	case list == nil && key == nil:
		return nil, fmt.Errorf("%w; latchkey overlay admin init makes one, where the overlay was founded", ErrNoList)
	case list == nil:
		return nil, fmt.Errorf("%w: latchkey overlay admin init was interrupted; run it again", ErrNoList)
	case key == nil:
		return nil, fmt.Errorf("%w: %s has no %s; do this on the peer that has it", ErrNoAdminKey, dir, adminKeyFile)
	}
	if key.Number() > list.Admin() {
		return nil, fmt.Errorf("%w: %s has admin key %d, and its list is of key %d; where the key was made, run latchkey overlay admin init --new-key again, "+
			"and elsewhere wait until the list that goes with it has come", allowlist.ErrKey, dir, key.Number(), list.Admin())
	}
	next, err := key.Edit(list, time.Now(), change)
	if err != nil || next == list {
		return next, err
	}
	return next, writeAllowList(dir, next)
}

// openAccess returns what a directory knows of the overlay's list.
func openAccess(dir string, g placement.Genesis) (*Access, error) {
	l, err := readAllowList(dir, g)
	if err != nil {
		return nil, err
	}
	var doc []byte
	if l != nil {
		doc = l.Document()
	}
	k, err := readAdminKey(dir, g)
	if err != nil {
		return nil, err
	}
	a, err := NewAccess(g, doc, func(doc []byte) error { return keepAllowList(dir, g, doc) })
	if err == nil {
		a.enrols.Store(k != nil && l != nil && k.Signs(l))
		a.reload = accessReloader(dir, a)
	}
	return a, err
}

// keepAllowList writes a list into a directory unless that has a newer one.
func keepAllowList(dir string, g placement.Genesis, doc []byte) error {
	unlock, err := lockAllowList(context.Background(), dir)
	if err != nil {
		return err
	}
	defer unlock()
	had, err := readAllowList(dir, g)
	if err != nil && !errors.Is(err, ErrDamaged) {
		return err
	}
	l, err := allowlist.Open(g, doc)
	if err != nil || !l.Newer(had.Have()) {
		return err
	}
	return writeAllowList(dir, l)
}

// enrol puts joiner on the list, by an invitation.
func (d *Dir) enrol(ctx context.Context, invitation, joiner peer.ID) ([]byte, error) {
	l, err := editAllowList(ctx, d.path, d.info.Genesis, func(l *allowlist.Draft) error { return l.Enrol(invitation, joiner) })
	if err != nil {
		return nil, err
	}
	if _, err := d.access.Take(l.Document()); err != nil {
		return nil, err
	}
	return l.Document(), nil
}

// accessReloader returns a function that takes over what others have changed in a directory since it was called last.
func accessReloader(dir string, a *Access) func() {
	var mu sync.Mutex
	var list, key os.FileInfo
	changed := func(name string, last *os.FileInfo) bool {
		now, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			now = nil
		}
		was := *last
		*last = now
		return (now == nil) != (was == nil) ||
			now != nil && (!os.SameFile(now, was) || !now.ModTime().Equal(was.ModTime()) || now.Size() != was.Size())
	}
	return func() {
		mu.Lock()
		defer mu.Unlock()
		newList, newKey := changed(allowListFile, &list), changed(adminKeyFile, &key)
		if !newList && !newKey {
			return
		}
		l, err := readAllowList(dir, a.genesis)
		var k *allowlist.Key
		if err == nil {
			k, err = readAdminKey(dir, a.genesis)
		}
		if err == nil && l != nil {
			if k != nil && k.Signs(l) { // before the list counts: whoever comes by an invitation of it would be sent elsewhere
				a.enrols.Store(true)
			}
			_, err = a.Take(l.Document())
		}
		if err != nil {
			log.Errorw("what changed in the directory about the allow-list does not count here", "err", err)
			return
		}
		a.enrols.Store(k != nil && a.List() != nil && k.Signs(a.List()))
	}
}
