package testnet

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/lockservice"
	"latchkey/replicagroup/placement"
)

// someManifest is one of three peers that never were.
func someManifest(t testing.TB, mode Mode) manifest {
	t.Helper()
	var founders []placement.Host
	var peers []statePeer
	for i := range 3 {
		id, err := peer.IDFromPrivateKey(identity(SeedDefault, i))
		if err != nil {
			t.Fatal(err)
		}
		founders = append(founders, placement.Host{Peer: placement.Peer{ID: string(id), Addrs: []string{fmt.Sprint("/ip4/127.0.0.1/tcp/", 1000+i)}}, Store: [16]byte{byte(i + 1)}})
		peers = append(peers, statePeer{Peer: id.String(), Port: 1000 + i, Up: i != 2, Left: i == 2})
	}
	o, err := Options{N: 3}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	m, err := newManifest(mode, SeedDefault, newGenesis(o, founders))
	if err != nil {
		t.Fatal(err)
	}
	m.Peers = peers
	return m
}

// someState is a state with these files, "name=content".
func someState(t testing.TB, m manifest, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := newStateWriter(t.Context(), &b, m)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		name, content, _ := strings.Cut(f, "=")
		if err := w.file(name, int64(len(content)), strings.NewReader(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.end(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func decode(b []byte) (*State, error) {
	return decodeState("x.state", bytes.NewReader(b), int64(len(b)))
}

// seal makes a state of an archive: what follows the head is as somebody wants it, and the checksum right.
func seal(archive []byte) []byte {
	b := append(fmt.Appendf(nil, "%s%d\n", stateHead, stateVersion), archive...)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

func TestAStateHoldsWhatWasWritten(t *testing.T) {
	m := someManifest(t, ModeProcess)
	b := someState(t, m, "0/identity.key=key", "0/store/STORE=s", "1/store/sub/dir/000001.sst="+strings.Repeat("x", 5000), "1/genesis=")
	if !strings.HasPrefix(string(b), "latchkey-testnet-state 1\n") {
		t.Errorf("begins with %q", b[:30])
	}
	s, err := decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if s.Mode() != ModeProcess || s.Seed != SeedDefault || s.genesis.ID() != m.genesis.ID() || !slices.Equal(s.Peers, m.Peers) {
		t.Errorf("%+v", s.manifest)
	}
	dir := t.TempDir()
	for i := range 2 {
		if err := os.Mkdir(filepath.Join(dir, fmt.Sprint(i)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := s.unpack(i, filepath.Join(dir, fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"0", "0/identity.key", "0/store", "0/store/STORE", "1", "1/genesis", "1/store", "1/store/sub", "1/store/sub/dir", "1/store/sub/dir/000001.sst"}
	if got := tree(t, dir); !slices.Equal(got, want) {
		t.Errorf("unpacked %v", got)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "1/store/sub/dir/000001.sst")); err != nil || string(b) != strings.Repeat("x", 5000) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if err := s.unpack(0, filepath.Join(dir, "0")); !errors.Is(err, os.ErrExist) {
		t.Errorf("over what is there: %v", err)
	}
}

func TestAStateThatIsTornDamagedForeignOrNewerIsRefusedInOneLine(t *testing.T) {
	whole := someState(t, someManifest(t, ModeProcess), "0/identity.key=key")
	bad := map[string][]byte{"longer": append(slices.Clone(whole), 0), "a text": []byte("dear diary\n"), "a binary": {0x7f, 'E', 'L', 'F', '\n'}}
	want := map[string]string{"longer": "checksum", "a text": "begins otherwise", "a binary": "begins otherwise"}
	for n := range len(whole) {
		if n < 200 || n%97 == 0 || n > len(whole)-200 {
			bad[fmt.Sprint("cut at ", n)], want[fmt.Sprint("cut at ", n)] = whole[:n], "cut off"
		}
	}
	for i := range whole {
		if i < 200 || i%97 == 0 || i > len(whole)-40 {
			b := slices.Clone(whole)
			b[i] ^= 1
			bad[fmt.Sprint("flipped at ", i)], want[fmt.Sprint("flipped at ", i)] = b, ""
		}
	}
	for _, version := range []string{"2", "17", "4294967295"} {
		bad["version "+version], want["version "+version] = []byte(stateHead+version+"\nwhatever that may hold"), "has version "+version
	}
	bad["version one"], want["version one"] = []byte(stateHead+"one\n"), "begins otherwise"
	bad["no end of line"], want["no end of line"] = []byte(stateHead+strings.Repeat("1", 100)), "begins otherwise"
	for what, b := range bad {
		_, err := decode(b)
		if !errors.Is(err, ErrState) || !strings.Contains(err.Error(), want[what]) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "x.state") {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, path := range []string{t.TempDir(), os.DevNull} {
		if _, err := OpenState(path); !errors.Is(err, ErrState) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := OpenState(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestAStateOfFilesThatNoPeerHasIsRefused(t *testing.T) {
	m := someManifest(t, ModeProcess)
	for _, file := range []string{
		"x", "0", "/etc/passwd", "../x", "0/../1/genesis", "0/store/../../x", "0//store/x", "0/store/./x", "0/store//x", "3/genesis", "-1/genesis", "00/genesis",
		"0/notes", "0/api.sock", "0/wire.sock", "0/daemon.log", "0/testnet.peer", "0/.config.yaml.1.tmp", "0/daemon.lock.lock", "0/stores/x", `0/store/..\x`, "0/memory",
		"0/sub/genesis",
	} {
		if _, err := decode(someState(t, m, file+"=x")); !errors.Is(err, ErrState) {
			t.Errorf("%s: %v", file, err)
		}
	}
	if _, err := decode(someState(t, m, "0/genesis=x", "0/genesis=y")); !errors.Is(err, ErrState) || !strings.Contains(err.Error(), "twice") {
		t.Errorf("the same file twice: %v", err)
	}
	if _, err := decode(someState(t, someManifest(t, ModeInProcess), "0/genesis=x")); !errors.Is(err, ErrState) {
		t.Errorf("a file of a peer in one process: %v", err)
	}
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	for what, h := range map[string]tar.Header{
		"link": {Typeflag: tar.TypeSymlink, Linkname: "/etc"}, "directory": {Typeflag: tar.TypeDir}, "device": {Typeflag: tar.TypeBlock}, "hard link": {Typeflag: tar.TypeLink, Linkname: "/etc/passwd"},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: stateManifestFile, Size: int64(len(text))})
		w.Write(text)
		h.Name = "0/store/x"
		if err := errors.Join(w.WriteHeader(&h), w.Close()); err != nil {
			t.Fatal(err)
		}
		if _, err := decode(seal(b.Bytes())); !errors.Is(err, ErrState) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestAManifestThatContradictsItselfIsRefused(t *testing.T) {
	for what, change := range map[string]func(*manifest){
		"mode":                func(m *manifest) { m.Mode = "threads" },
		"genesis":             func(m *manifest) { m.Genesis = "x" },
		"too few peers":       func(m *manifest) { m.Peers = m.Peers[:2] },
		"too many peers":      func(m *manifest) { m.Peers = make([]statePeer, PeersMax+1) },
		"another seed":        func(m *manifest) { m.Seed++ },
		"another peer":        func(m *manifest) { m.Peers[1].Peer = m.Peers[0].Peer },
		"a port twice":        func(m *manifest) { m.Peers[1].Port = m.Peers[0].Port },
		"port 0":              func(m *manifest) { m.Peers[1].Port = 0 },
		"port 65536":          func(m *manifest) { m.Peers[1].Port = 65536 },
		"up though it left":   func(m *manifest) { m.Peers[2].Up = true },
		"founders of another": func(m *manifest) { m.Genesis = someOther(m.Genesis) },
	} {
		m := someManifest(t, ModeProcess)
		change(&m)
		if _, err := decode(someState(t, m)); !errors.Is(err, ErrState) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// someOther returns a genesis document whose founders stand in another order.
func someOther(text string) string {
	g, err := placement.ReadGenesis(strings.NewReader(text))
	if err != nil {
		panic(err)
	}
	slices.Reverse(g.Founders)
	b, err := g.Text()
	if err != nil {
		panic(err)
	}
	return string(b)
}

// A checksum keeps out what is torn, not what somebody made up.
func FuzzDecodeState(f *testing.F) {
	m := someManifest(f, ModeProcess)
	whole := someState(f, m, "0/identity.key=key", "0/store/STORE=s")
	head := len(stateHead) + 2
	f.Add(whole[head : len(whole)-sha256.Size])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, archive []byte) {
		b := seal(archive)
		s, err := decode(b)
		if err != nil {
			if !errors.Is(err, ErrState) {
				t.Errorf("%v matches nothing", err)
			}
			return
		}
		total := int64(0)
		for _, x := range s.files {
			total += x.content.Size()
			if x.peer < 0 || x.peer >= len(s.Peers) || !filepath.IsLocal(filepath.FromSlash(x.path)) {
				t.Errorf("file %q of peer %d", x.path, x.peer)
			}
		}
		if total > int64(len(b)) {
			t.Errorf("%d bytes of files in a state of %d", total, len(b))
		}
	})
}

// dumpTo dumps a testnet into a new file.
func dumpTo(t *testing.T, n Testnet) string {
	t.Helper()
	var b bytes.Buffer
	if err := n.Dump(short(t), &b); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func openState(t *testing.T, path string) *State {
	t.Helper()
	s, err := OpenState(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// token takes and releases a lock through peer i and returns its token.
func token(t testing.TB, n *Network, i int, name string) lockservice.Token {
	t.Helper()
	h, err := peerAt(t, n, i).Node().Locks().Lock(short(t), name, lockservice.WithTTL(2*time.Second))
	if err != nil {
		t.Fatalf("lock %q through peer %d: %v", name, i, err)
	}
	if err := h.Release(short(t)); err != nil {
		t.Fatal(err)
	}
	return h.Token()
}

func TestATestnetInOneProcessIsTakenUpWhereItWasDumped(t *testing.T) {
	// A dump of peers in one process lacks what voters keep: with protocol sigma they would wait for a minute first.
	n := up(t, Options{N: 5, Seed: 3, Depth: 2, NoSigma: true})
	var tokens []lockservice.Token
	for i := range 4 {
		token(t, n, i, fmt.Sprint(i))
		tokens = append(tokens, token(t, n, i, fmt.Sprint(i)))
	}
	if err := n.Kill(4); err != nil {
		t.Fatal(err)
	}
	state := openState(t, dumpTo(t, n))
	before := n.Status()
	if _, err := Up(short(t), Options{State: state}); !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), "end it first") {
		t.Errorf("while the original runs: %v", err)
	}
	for i := range 4 { // of which the state knows nothing
		token(t, n, i, fmt.Sprint(i))
	}
	n.Close()
	for range 2 { // a state can be taken up again
		again := up(t, Options{State: state})
		after := again.Status()
		if after.Overlay != before.Overlay || after.Seed != 3 || after.F != 1 || after.Depth != 2 || !slices.Equal(after.Peers, before.Peers) {
			t.Errorf("it was %+v and is %+v", before, after)
		}
		for i, was := range tokens {
			if got := token(t, again, (i+1)%4, fmt.Sprint(i)); got <= was {
				t.Errorf("lock %d has token %d after %d", i, got, was)
			}
		}
		if err := again.Restart(short(t), 4); err != nil {
			t.Error(err)
		}
		if i, err := again.Join(short(t)); err != nil || i != 5 {
			t.Errorf("join: %d, %v", i, err)
		}
		again.Close()
	}
}

func TestAStateIsRefusedWhereItDoesNotFit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	for _, mode := range []Mode{ModeInProcess, ModeProcess} {
		if err := os.WriteFile(path, someState(t, someManifest(t, mode)), 0o600); err != nil {
			t.Fatal(err)
		}
		s := openState(t, path)
		for _, o := range []Options{{State: s, N: 3}, {State: s, F: 1}, {State: s, Seed: 1}, {State: s, Depth: 8}} {
			if _, err := Up(t.Context(), o); !errors.Is(err, ErrOptions) {
				t.Errorf("%+v: %v", o, err)
			}
		}
		dir := shortDir(t)
		claim(t, dir)
		_, inproc := Up(t.Context(), Options{State: s})
		_, process := UpProcesses(t.Context(), ProcessOptions{Options: Options{State: s, Dir: dir}, Program: "/bin/false"})
		for what, err := range map[Mode]error{ModeInProcess: inproc, ModeProcess: process} {
			if err == nil || errors.Is(err, ErrMode) != (what != mode) || strings.Contains(err.Error(), "\n") && what != mode {
				t.Errorf("a state of mode %s in mode %s: %v", mode, what, err)
			}
		}
		if left := tree(t, dir); !slices.Equal(left, []string{"control.sock", "control.sock.lock", madeFile}) {
			t.Errorf("left behind: %v", left)
		}
	}
}

func TestADumpEndsWithItsContextAndItsTestnet(t *testing.T) {
	n := up(t, Options{N: 3})
	why := errors.New("changed my mind")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if err := n.Dump(ctx, io.Discard); !errors.Is(err, why) {
		t.Error(err)
	}
	n.Close()
	if err := n.Dump(t.Context(), io.Discard); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// A dump that fails when part of it has been sent must not look whole to who asked for it.
func TestADumpThatFailsHalfWayIsAnErrorAtTheOtherEnd(t *testing.T) {
	dir := shortDir(t)
	c := claim(t, dir)
	if err := Dial(dir).Dump(short(t), io.Discard); !errors.Is(err, ErrStarting) {
		t.Errorf("while it starts: %v", err)
	}
	c.Serve(brokenDump{Network: up(t, Options{N: 3}), sent: 1 << 20})
	var got bytes.Buffer
	if err := Dial(dir).Dump(short(t), &got); err == nil || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("after %d bytes: %v", got.Len(), err)
	}
	c.Serve(brokenDump{})
	if err := Dial(dir).Dump(short(t), io.Discard); !errors.Is(err, ErrMode) {
		t.Errorf("before anything was sent: %v", err)
	}
}

// brokenDump is a testnet whose dumps fail after some bytes.
type brokenDump struct {
	*Network
	sent int
}

func (b brokenDump) Dump(_ context.Context, to io.Writer) error {
	if b.sent > 0 {
		if _, err := to.Write(make([]byte, b.sent)); err != nil {
			return err
		}
	}
	return ErrMode
}

func TestAStateBeyondItsBoundsIsNotWritten(t *testing.T) {
	m := someManifest(t, ModeProcess)
	begin := func() *stateWriter {
		t.Helper()
		w, err := newStateWriter(t.Context(), io.Discard, m)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	none := strings.NewReader("")
	w := begin()
	for i := w.files; i < stateFilesMax; i++ {
		if err := w.file(fmt.Sprint("0/store/", i), 0, none); err != nil {
			t.Fatalf("file %d: %v", i, err)
		}
	}
	if err := w.file("0/store/one more", 0, none); !errors.Is(err, ErrState) {
		t.Errorf("one file too many: %v", err)
	}
	if err := begin().file("0/store/x", StateBytesMax, none); !errors.Is(err, ErrState) { // with the manifest it is more
		t.Errorf("too many bytes: %v", err)
	}
	long := "0/store/" + strings.Repeat("x", statePathBytesMax)
	if err := begin().file(long[:statePathBytesMax], 0, none); err != nil {
		t.Errorf("a path of %d bytes: %v", statePathBytesMax, err)
	}
	if err := begin().file(long[:statePathBytesMax+1], 0, none); !errors.Is(err, ErrState) {
		t.Errorf("a path of %d bytes: %v", statePathBytesMax+1, err)
	}
	m.Genesis = strings.Repeat("x", stateManifestMax)
	if _, err := newStateWriter(t.Context(), io.Discard, m); !errors.Is(err, ErrState) {
		t.Errorf("a manifest of more than %d bytes: %v", stateManifestMax, err)
	}
}

// tree returns what is below dir, as paths from there.
func tree(t testing.TB, dir string) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if path != dir {
			rel, _ := filepath.Rel(dir, path)
			paths = append(paths, rel)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return paths
}
