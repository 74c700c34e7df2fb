package node

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/node/config"
	"latchkey/replicagroup/disk"
	"latchkey/replicagroup/placement"
)

// founderSpec is what init would write, joinerSpec what join would.
func founderSpec(t testing.TB) DirSpec {
	t.Helper()
	s := joinerSpec(t)
	id, err := peer.IDFromPrivateKey(s.Key)
	if err != nil {
		t.Fatal(err)
	}
	if s.Genesis, s.RootKey, err = drawGenesis(placement.Peer{ID: string(id)}, FoundOptions{Name: "spec"}); err != nil {
		t.Fatal(err)
	}
	s.Founds = true
	return s
}

func joinerSpec(t testing.TB) DirSpec {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(nil)
	if err != nil {
		t.Fatal(err)
	}
	g, _, err := drawGenesis(placement.Peer{ID: "somebody else"}, FoundOptions{Name: "spec"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Default(config.Test)
	if err != nil {
		t.Fatal(err)
	}
	return DirSpec{Key: key, Genesis: g, SwarmKey: NewSwarmKey(), Config: c}
}

// checkHolds tells whether a directory opens and is what s says, without a file too many.
func checkHolds(t *testing.T, dir string, s DirSpec) {
	t.Helper()
	d, err := OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	files, err := s.files()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{lockFile: ""}
	for _, f := range files {
		want[f.name] = string(f.data)
	}
	if got := contents(t, dir); !maps.Equal(got, want) {
		t.Errorf("the directory has %v, want %v, or one of them has another content", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
	if !d.key.Equals(s.Key) || d.Genesis().ID() != s.Genesis.ID() || string(d.SwarmKey()) != string(s.SwarmKey) ||
		!reflect.DeepEqual(d.Config(), s.Config) {
		t.Errorf("opened, the directory is another one")
	}
	has, err := d.hasStore()
	if err != nil || has != s.Founds {
		t.Errorf("there is a store: %v, %v; the specification says %v", has, err, s.Founds)
	}
	if s.Founds {
		checkFounded(t, dir, s)
	}
}

// checkFounded tells whether a directory's store is the one that the genesis document names, and holds the beginning of the root
// group and nothing else.
func checkFounded(t *testing.T, dir string, s DirSpec) {
	t.Helper()
	store, err := disk.Open(filepath.Join(dir, storeDir), disk.Options{Overlay: s.Genesis.ID()})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	all, err := store.Replicas()
	if err != nil || len(all) != 1 || all[0].Group != s.Genesis.RootGroup() || all[0].Self != 1 || len(all[0].Image.Entries) != 0 {
		t.Errorf("the store holds %+v, %v", all, err)
	}
	if store.ID() != s.Genesis.Founders[0].Store {
		t.Errorf("the store is %v, the genesis document names %v", store.ID(), s.Genesis.Founders[0].Store)
	}
}

// steps lists the steps in which createDir makes a directory.
func steps(t *testing.T, s DirSpec) []string {
	t.Helper()
	var all []string
	if err := createDir(filepath.Join(t.TempDir(), "peer"), s, func(what string) error { all = append(all, what); return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

// What a call leaves behind that fails at some step: nothing, but for a directory that is complete when only the last wait fails.
func TestFailureAtAnyStepLeavesNothing(t *testing.T) {
	t.Parallel()
	full := errors.New("no space left")
	for name, s := range map[string]DirSpec{"init": founderSpec(t), "join": joinerSpec(t)} {
		for i, at := range steps(t, s) {
			dir, n := filepath.Join(t.TempDir(), "peer"), 0
			err := createDir(dir, s, func(string) error {
				if n++; n == i+1 {
					return full
				}
				return nil
			})
			if !errors.Is(err, full) || !strings.Contains(err.Error(), at) {
				t.Errorf("%s, %s: %v", name, at, err)
			}
			if at == "sync the end of it" {
				checkHolds(t, dir, s)
				continue
			}
			if _, err := OpenDir(dir); !errors.Is(err, ErrNotInitialised) {
				t.Errorf("%s, %s: open: %v", name, at, err)
			}
			for _, f := range append(slices.Clone(madeFiles), unfinishedFile) {
				if _, err := os.Lstat(filepath.Join(dir, f)); err == nil {
					t.Errorf("%s, %s: %s is left", name, at, f)
				}
			}
			if err := CreateDir(dir, s); err != nil {
				t.Errorf("%s, %s: next try: %v", name, at, err)
			}
			checkHolds(t, dir, s)
		}
	}
}

// Under the mark any of the files may be missing, cut or somebody else's.
func TestUnfinishedDirectoryStartsOver(t *testing.T) {
	for _, name := range madeFiles {
		for kind, b := range map[string][]byte{"empty": nil, "cut": []byte("latch"), "other": []byte(strings.Repeat("x", 1<<17))} {
			dir := t.TempDir()
			for file, data := range map[string][]byte{unfinishedFile: []byte(markText), name: b} {
				if err := os.WriteFile(filepath.Join(dir, file), data, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := OpenDir(dir); !errors.Is(err, ErrUnfinished) || !strings.Contains(err.Error(), "run it again") || !strings.Contains(err.Error(), dir) {
				t.Errorf("%s %s: open: %v", kind, name, err)
			}
			if _, err := PeekDir(dir); !errors.Is(err, ErrUnfinished) {
				t.Errorf("%s %s: peek: %v", kind, name, err)
			}
			s := joinerSpec(t)
			if err := CreateDir(dir, s); err != nil {
				t.Errorf("%s %s: %v", kind, name, err)
			}
			checkHolds(t, dir, s)
		}
	}
}

// Other files in the directory are nobody's business.
func TestStartingOverRemovesItsOwnFilesOnly(t *testing.T) {
	dir := t.TempDir()
	for name, data := range map[string]string{unfinishedFile: markText, "notes.txt": "{}", peersFile: "{}"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := CreateDir(dir, joinerSpec(t)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"notes.txt", peersFile} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}

// A file that somebody calls unfinished is no leave to remove the peer beside it.
func TestAFileThatIsNoMarkIsRefusedAndNothingRemoved(t *testing.T) {
	for what, b := range map[string]string{"empty": "", "cut": markText[:10], "other": "tax return\n", "more": markText + "x", "long": strings.Repeat("x", fileBytesMax+1)} {
		complete, vacant := initDir(t), t.TempDir()
		for _, dir := range []string{complete, vacant} {
			if err := os.WriteFile(filepath.Join(dir, unfinishedFile), []byte(b), 0o600); err != nil {
				t.Fatal(err)
			}
			before, spec := contents(t, dir), joinerSpec(t)
			err := CreateDir(dir, spec)
			if dir == vacant && (what == "empty" || what == "cut") { // killed while it marked
				checkHolds(t, dir, spec)
				continue
			}
			_, opened := OpenDir(dir)
			for _, err := range []error{err, opened} {
				if !errors.Is(err, ErrDamaged) || errors.Is(err, ErrUnfinished) || !strings.Contains(err.Error(), filepath.Join(dir, unfinishedFile)) ||
					!strings.Contains(err.Error(), "move it away") || strings.Contains(err.Error(), "\n") {
					t.Errorf("%s: %v", what, err)
				}
			}
			if !maps.Equal(before, contents(t, dir)) {
				t.Errorf("%s: files changed", what)
			}
		}
		if err := os.Remove(filepath.Join(complete, unfinishedFile)); err != nil {
			t.Fatal(err)
		}
		d, err := OpenDir(complete)
		if err != nil {
			t.Fatalf("%s: moved away: %v", what, err)
		}
		d.Close()
	}
	dir := initDir(t)
	if err := os.Mkdir(filepath.Join(dir, unfinishedFile), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := InitDir(dir, InitOptions{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("a directory of that name: %v", err)
	}
}

func TestOnlyOneOfManyMakesTheDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "peer")
	var specs [8]DirSpec
	for i := range specs {
		specs[i] = joinerSpec(t)
	}
	var errs [len(specs)]error
	var wg sync.WaitGroup
	for i := range specs {
		wg.Go(func() { errs[i] = CreateDir(dir, specs[i]) })
	}
	wg.Wait()
	made := -1
	for i, err := range errs {
		switch {
		case err == nil && made >= 0:
			t.Fatal("two made the directory")
		case err == nil:
			made = i
		case !errors.Is(err, ErrExists) && !errors.Is(err, ErrInUse):
			t.Error(err)
		}
	}
	if made < 0 {
		t.Fatal("nobody made the directory")
	}
	checkHolds(t, dir, specs[made])
}

// Somebody may make the directory between our first look and the lock.
func TestWhoComesLateOverwritesNothing(t *testing.T) {
	dir, first := filepath.Join(t.TempDir(), "peer"), joinerSpec(t)
	err := createDir(dir, joinerSpec(t), func(what string) error {
		if what == "make the directory" {
			return CreateDir(dir, first)
		}
		return nil
	})
	if !errors.Is(err, ErrExists) {
		t.Errorf("got %v", err)
	}
	checkHolds(t, dir, first)
}

func TestNobodyStartsOverWhileADaemonRuns(t *testing.T) {
	dir := initDir(t)
	d, err := OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := os.WriteFile(filepath.Join(dir, unfinishedFile), []byte(markText), 0o600); err != nil {
		t.Fatal(err)
	}
	before := contents(t, dir)
	if err := CreateDir(dir, joinerSpec(t)); !errors.Is(err, ErrInUse) {
		t.Errorf("got %v", err)
	}
	if !maps.Equal(before, contents(t, dir)) {
		t.Error("files changed under a daemon")
	}
}

func TestDirectoryThatCannotBeMade(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, filepath.Join(file, "below")} {
		if _, _, err := InitDir(dir, InitOptions{Profile: config.Test}); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	for name, change := range map[string]func(*DirSpec){
		"no key":            func(s *DirSpec) { s.Key = nil },
		"no genesis":        func(s *DirSpec) { s.Genesis = placement.Genesis{} },
		"no configuration":  func(s *DirSpec) { s.Config = config.Config{} },
		"a key of a public": func(s *DirSpec) { s.Config.Profile = config.Public },
		"no swarm key":      func(s *DirSpec) { s.SwarmKey, s.Config.Profile = nil, config.Private },
		"half a swarm key":  func(s *DirSpec) { s.SwarmKey = s.SwarmKey[:16] },
		"no founder":        func(s *DirSpec) { s.Founds = true },
	} {
		s, dir := joinerSpec(t), filepath.Join(t.TempDir(), "peer")
		change(&s)
		if err := CreateDir(dir, s); err == nil {
			t.Errorf("%s: written", name)
		}
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a refused directory was made", name)
		}
	}
}

// What init makes of each profile.
func TestInitFollowsTheProfile(t *testing.T) {
	for _, p := range config.Profiles() {
		dir := filepath.Join(t.TempDir(), "peer")
		g, id, err := InitDir(dir, InitOptions{Profile: p})
		if c, _ := config.Default(p); c.Network.Mode == config.ModeClient {
			if !errors.Is(err, config.ErrInvalid) || !strings.Contains(err.Error(), string(p)) {
				t.Errorf("%s founded an overlay: %v", p, err)
			}
			if _, err := os.Stat(dir); err == nil {
				t.Errorf("%s: a refused init left files", p)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", p, err)
			continue
		}
		info, err := PeekDir(dir)
		if err != nil {
			t.Errorf("%s: %v", p, err)
			continue
		}
		if info.ID != id || info.Genesis.ID() != g.ID() || (info.SwarmKey == nil) != (p == config.Public) || info.Config.Network.Mode != config.ModeServer {
			t.Errorf("%s: %+v", p, info)
		}
		for _, a := range info.Config.Network.Listen {
			if strings.Contains(a, "/tcp/0") || strings.Contains(a, "/udp/0") {
				t.Errorf("%s: no port was drawn for %s", p, a)
			}
		}
	}
	if _, _, err := InitDir(filepath.Join(t.TempDir(), "peer"), InitOptions{Profile: "privat"}); !errors.Is(err, config.ErrInvalid) {
		t.Errorf("no such profile: %v", err)
	}
	dir := filepath.Join(t.TempDir(), "peer")
	if _, _, err := InitDir(dir, InitOptions{Listen: []string{"/ip4/127.0.0.1/udp/0/quic-v1"}}); !errors.Is(err, config.ErrInvalid) || !strings.Contains(err.Error(), "TCP and WebSocket only") {
		t.Errorf("QUIC under a swarm key: %v", err)
	}
	if _, _, err := InitDir(dir, InitOptions{Listen: []string{"/ip4/127.0.0.1/tcp/4701", "/ip4/127.0.0.1/tcp/0/ws"}}); err != nil {
		t.Fatal(err)
	}
	info, err := PeekDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if l := info.Config.Network.Listen; info.Config.Profile != config.Private || len(l) != 2 || l[0] != "/ip4/127.0.0.1/tcp/4701" || l[1] == "/ip4/127.0.0.1/tcp/0/ws" {
		t.Errorf("listen addresses of init: %+v", info.Config)
	}
}

func TestSecretsAreTheirOwnersOnly(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("file modes are not kept on Windows")
	}
	dir := filepath.Join(t.TempDir(), "a", "peer")
	if err := CreateDir(dir, founderSpec(t)); err != nil {
		t.Fatal(err)
	}
	for _, name := range madeFiles {
		info, err := os.Stat(filepath.Join(dir, name))
		if name == allowListFile && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if want := name != genesisFile; shared(info) == want {
			t.Errorf("%s has mode %v", name, info.Mode().Perm())
		}
	}
	if info, err := os.Stat(dir); err != nil || shared(info) {
		t.Errorf("the directory has mode %v, %v", info.Mode(), err)
	}
}

func ExampleCreateDir() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)

	// A peer founds an overlay, and another one is made a member: join does this with what an invitation holds.
	overlay, _, err := InitDir(filepath.Join(dir, "founder"), InitOptions{Profile: config.Test})
	if err != nil {
		fmt.Println(err)
		return
	}
	founder, err := PeekDir(filepath.Join(dir, "founder"))
	if err != nil {
		fmt.Println(err)
		return
	}
	key, _, err := crypto.GenerateEd25519Key(nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	c, err := config.Default(config.Test)
	if err == nil {
		c, err = c.DrawPorts()
	}
	if err == nil {
		err = CreateDir(filepath.Join(dir, "member"), DirSpec{Key: key, Genesis: overlay, SwarmKey: founder.SwarmKey, Config: c})
	}
	fmt.Println("member:", err)
	// Output: member: <nil>
}
