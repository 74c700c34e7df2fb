package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"latchkey/lockservice"
	"latchkey/node/config"
	"latchkey/replicagroup"
	"latchkey/replicagroup/disk"
	"latchkey/replicagroup/order"
)

// acquire takes a lock and gives it back, and returns its token.
func (r running) acquire(t *testing.T, name string) lockservice.Token {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitMax)
	defer cancel()
	l, err := r.node.Locks().Lock(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Release(ctx); err != nil {
		t.Fatal(err)
	}
	return l.Token()
}

// runFails expects a directory's peer not to start.
func runFails(t *testing.T, dir string, change func(*config.Config), want error, says ...string) {
	t.Helper()
	d, err := OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	c := d.Config()
	c.Network.Listen = []string{"/ip4/127.0.0.1/tcp/0"}
	if change != nil {
		change(&c)
	}
	n, h, err := d.Run(t.Context(), c, nil)
	if err == nil {
		t.Error(errors.Join(n.Close(), h.Close()))
		t.Fatal("it runs")
	}
	for _, s := range append(says, "") {
		if !errors.Is(err, want) || !strings.Contains(err.Error(), s) || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %q, want %v and %q", err, want, s)
		}
	}
}

func volatileStore(c *config.Config) { c.Store.Volatile = true }

func TestFounderGoesOnAfterARestart(t *testing.T) {
	t.Parallel()
	dir := initDir(t)
	var last lockservice.Token
	for i := range 3 {
		r := start(t, dir, nil)
		if got, want := r.node.Info().Store, r.dir.Genesis().Founders[0].Store.String(); got != want {
			t.Errorf("start %d: store %s, want %s", i, got, want)
		}
		if token := r.acquire(t, "kept"); token <= last {
			t.Errorf("start %d: token %v after %v", i, token, last)
		} else {
			last = token
		}
		r.stop(t)
	}
}

// Rule G1: no start founds, whatever it finds in its store.
func TestOnlyFounderWithoutItsStoreFoundsNothing(t *testing.T) {
	dir := initDir(t)
	if err := os.RemoveAll(filepath.Join(dir, storeDir)); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*config.Config){
		"as it is": nil, "in memory": volatileStore, "client": func(c *config.Config) { c.Network.Mode = config.ModeClient },
	} {
		runFails(t, dir, change, replicagroup.ErrRootLost, "latchkey init --path "+dir)
		if _, err := os.Stat(filepath.Join(dir, storeDir)); err == nil {
			t.Errorf("%s: a store was made", name)
		}
	}
	info, err := PeekDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	// Nor with a store that somebody put there, under whatever id.
	for _, id := range []order.StoreID{{}, info.Genesis.Founders[0].Store} {
		if err := errors.Join(os.RemoveAll(filepath.Join(dir, storeDir)), disk.Create(filepath.Join(dir, storeDir), info.Genesis.ID(), id)); err != nil {
			t.Fatal(err)
		}
		runFails(t, dir, nil, replicagroup.ErrRootLost)
	}
}

// One of several founders that lost its store joins what the others keep, under another store id.
func TestOneOfSeveralFoundersJoinsWithoutItsStore(t *testing.T) {
	s := founderSpec(t)
	for range 2 {
		h := s.Genesis.Founders[0]
		h.ID = string(randomPeer(t))
		h.Store[0]++
		h.Store[1] += byte(len(s.Genesis.Founders))
		s.Genesis.Founders = append(s.Genesis.Founders, h)
	}
	dir := filepath.Join(t.TempDir(), "peer")
	if err := CreateDir(dir, s); err != nil {
		t.Fatal(err)
	}
	r := start(t, dir, nil)
	first := r.node.Info().Store
	if want := s.Genesis.Founders[0].Store.String(); first != want {
		t.Errorf("the founder's store is %s, want %s", first, want)
	}
	r.stop(t)
	if again := start(t, dir, nil); again.node.Info().Store != first {
		t.Errorf("came back as %s, was %s", again.node.Info().Store, first)
	} else {
		again.stop(t)
	}
	if err := os.RemoveAll(filepath.Join(dir, storeDir)); err != nil {
		t.Fatal(err)
	}
	if r := start(t, dir, nil); r.node.Info().Store == first {
		t.Errorf("came back as %s, which it is no more", first)
	}
}

func TestJoinerGetsAStoreAndKeepsIt(t *testing.T) {
	dir := member(t, initDir(t))
	if _, err := os.Stat(filepath.Join(dir, storeDir)); err == nil {
		t.Error("join made a store")
	}
	// What a killed first start may have left is no store.
	info, err := PeekDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, storeDir), 0o700); err != nil {
		t.Fatal(err)
	}
	r := start(t, dir, nil)
	store := r.node.Info().Store
	r.stop(t)
	r = start(t, dir, nil)
	if again := r.node.Info().Store; again != store {
		t.Errorf("the store was %s and is %s", store, again)
	}
	r.stop(t)
	if err := os.RemoveAll(filepath.Join(dir, storeDir)); err != nil {
		t.Fatal(err)
	}
	if again := start(t, dir, nil).node.Info().Store; again == store || info.Genesis.Founders[0].Store.String() == again {
		t.Errorf("a lost store came back: %s", again)
	}
}

// A peer that has replicas on disk is not to become another one in memory meanwhile.
func TestVolatilePeerLeavesNoStoreAside(t *testing.T) {
	founder := initDir(t)
	dir := member(t, founder)
	r := start(t, dir, volatileStore)
	first := r.node.Info().Store
	r.stop(t)
	r = start(t, dir, volatileStore)
	if again := r.node.Info().Store; again == first {
		t.Errorf("what was in memory came back as %s", again)
	}
	r.stop(t)
	if _, err := os.Stat(filepath.Join(dir, storeDir)); err == nil {
		t.Error("a volatile peer has a store")
	}
	start(t, dir, nil).stop(t)
	runFails(t, dir, volatileStore, config.ErrInvalid, "store.volatile", filepath.Join(dir, storeDir))
	runFails(t, founder, volatileStore, config.ErrInvalid, "store.volatile", "founder", filepath.Join(founder, storeDir))
	start(t, founder, nil)
}

// copyDir copies the files below a directory, sockets aside.
func copyDir(t *testing.T, to, from string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, e os.DirEntry, err error) error {
		rel, _ := filepath.Rel(from, path)
		switch target := filepath.Join(to, rel); {
		case err != nil:
			return err
		case e.IsDir():
			return os.MkdirAll(target, 0o700)
		case e.Type().IsRegular():
			b, err := os.ReadFile(path)
			return errors.Join(err, os.WriteFile(target, b, 0o600))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestCopiedDirectoryTakesANewIdentityOrStaysDown(t *testing.T) {
	t.Parallel()
	founder := initDir(t)
	dir := member(t, founder)
	r := start(t, dir, nil)
	store := r.node.Info().Store
	r.stop(t)
	twin := filepath.Join(t.TempDir(), "twin")
	copyDir(t, twin, dir)
	runFails(t, twin, nil, disk.ErrCopied, "daemon --restored", filepath.Join(twin, storeDir))
	d, err := OpenDir(twin)
	if err != nil {
		t.Fatal(err)
	}
	id, err := d.Reidentify()
	if err != nil || id.String() == store {
		t.Errorf("restored as %v, %v", id, err)
	}
	d.Close()
	if got := start(t, twin, func(c *config.Config) { c.Network.Listen = []string{"/ip4/127.0.0.1/tcp/0"} }).node.Info().Store; got != id.String() {
		t.Errorf("runs with store %s, was told %v", got, id)
	}
	if got := start(t, dir, nil).node.Info().Store; got != store {
		t.Errorf("the original runs with store %s, had %s", got, store)
	}

	// A sole founder's copy would have no root under another id, and its root may live on elsewhere.
	copyDir(t, filepath.Join(twin, "founder"), founder)
	if d, err = OpenDir(filepath.Join(twin, "founder")); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Reidentify(); err == nil || !strings.Contains(err.Error(), "alone founded") {
		t.Errorf("the only founder was restored: %v", err)
	}
	d.Close()
	runFails(t, filepath.Join(twin, "founder"), nil, disk.ErrCopied, "daemon --moved")
	if d, err = OpenDir(filepath.Join(twin, "founder")); err != nil {
		t.Fatal(err)
	}
	if err := d.Adopt(); err != nil {
		t.Error(err)
	}
	d.Close()
	start(t, filepath.Join(twin, "founder"), func(c *config.Config) { c.Network.Listen = []string{"/ip4/127.0.0.1/tcp/0"} })

	if d, err = OpenDir(member(t, founder)); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.Reidentify(); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "start without") {
		t.Errorf("restored nothing: %v", err)
	}
}

func TestStoreThatCannotBeOpenedSaysWhatToDo(t *testing.T) {
	founder := initDir(t)
	dir := member(t, founder)
	start(t, dir, nil).stop(t)
	marker := filepath.Join(dir, storeDir, "STORE")
	b, err := os.ReadFile(marker)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1]++
	if err := os.WriteFile(marker, b, 0o600); err != nil {
		t.Fatal(err)
	}
	store := filepath.Join(dir, storeDir)
	runFails(t, dir, nil, disk.ErrDamaged, "mv "+store+" "+store+".damaged")

	// The store of another overlay.
	other := member(t, initDir(t))
	start(t, other, nil).stop(t)
	if err := errors.Join(os.RemoveAll(store), os.Rename(filepath.Join(other, storeDir), store)); err != nil {
		t.Fatal(err)
	}
	runFails(t, dir, nil, disk.ErrForeign, store)
}

// A store that fails while nobody writes stops the node all the same, which says why.
func TestNodeStopsWhenItsStoreFails(t *testing.T) {
	dir := initDir(t)
	d, err := OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	h, err := d.NewHost(d.Config())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	store := &failingStore{MemoryStore: replicagroup.NewMemoryStoreAs(d.Genesis().Founders[0].Store), failed: make(chan struct{})}
	founder, _ := founderIn(d.Genesis(), string(d.ID()))
	if err := replicagroup.Found(store, d.Genesis(), founder.Node()); err != nil {
		t.Fatal(err)
	}
	closed := false
	n, err := New(h, WithOverlay(d.Genesis()), WithStore(store), withClosing(func() error { closed = true; return errRotten }))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n.Err() != nil {
		t.Errorf("it runs, and says %v", n.Err())
	}
	store.err = errRotten
	close(store.failed)
	select {
	case <-n.Done():
	case <-time.After(waitMax):
		t.Fatal("the node goes on")
	}
	if !errors.Is(n.Err(), errRotten) {
		t.Errorf("it stopped because of %v", n.Err())
	}
	if err := n.Close(); err != nil || !closed {
		t.Errorf("close: %v; the store was closed: %v", err, closed)
	}
}

var errRotten = errors.New("rotten")

type failingStore struct {
	*replicagroup.MemoryStore
	failed chan struct{}
	err    error // set before failed is closed
}

func (s *failingStore) Failed() <-chan struct{} { return s.failed }

func (s *failingStore) Err() error {
	select {
	case <-s.failed:
		return s.err
	default:
		return nil
	}
}
