package testnet

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"latchkey/lockservice"
	"latchkey/replicagroup"
	"latchkey/replicagroup/placement"
	"latchkey/testnet/wire"
)

func TestMain(m *testing.M) {
	flag.Set("test.parallel", "10") // they wait for elections and leases, more than for a processor
	debug.SetGCPercent(400)         // their heaps are small: with Go's default much of their time is spent on collecting them
	goleak.VerifyTestMain(m)
}

func up(t testing.TB, opts Options) *Network {
	t.Helper()
	n, err := Up(short(t), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// short returns a context for what takes moments on an idle machine.
func short(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("test: waited too long"))
	t.Cleanup(cancel)
	return ctx
}

func peerAt(t testing.TB, n *Network, i int) *Peer {
	t.Helper()
	p, err := n.Peer(i)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// takeLock takes and releases a lock through peer i.
func takeLock(t testing.TB, n *Network, i int, name string) {
	t.Helper()
	h, err := peerAt(t, n, i).Node().Locks().Lock(short(t), name, lockservice.WithTTL(2*time.Second))
	if err != nil {
		t.Fatalf("lock %q through peer %d: %v", name, i, err)
	}
	if err := h.Release(short(t)); err != nil {
		t.Fatalf("release %q through peer %d: %v", name, i, err)
	}
}

// until waits until cond holds.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	ctx := short(t)
	for !cond() {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, context.Cause(ctx))
		}
	}
}

func ids(n *Network) (ids []string) {
	for _, p := range n.Status().Peers {
		ids = append(ids, p.Peer)
	}
	return ids
}

func TestSevenPeersComeUpWithTheIdentitiesOfTheirSeedInAnOverlayOfTheirOwn(t *testing.T) {
	t.Parallel()
	var steps []Progress
	n := up(t, Options{Progress: func(p Progress) { steps = append(steps, p) }})
	again := up(t, Options{})
	other := up(t, Options{N: 3, Seed: 2})
	if n.N() != 7 || n.F() != 1 || !slices.Equal(n.Founders(), []int{0, 1, 2}) {
		t.Errorf("%d peers, f = %d, founders %v", n.N(), n.F(), n.Founders())
	}
	if !slices.Equal(ids(n), ids(again)) {
		t.Error("the same seed gave other peer ids")
	}
	for _, id := range ids(other) {
		if slices.Contains(ids(n), id) {
			t.Errorf("another seed gave the same peer id %s", id)
		}
	}
	if n.Genesis().ID() == again.Genesis().ID() {
		t.Error("two foundings made one overlay")
	}
	for i := range 7 {
		if got := peerAt(t, n, i).Node().ID().String(); got != ids(n)[i] || n.IndexOf(got) != i {
			t.Errorf("peer %d is %s", i, got)
		}
		takeLock(t, n, i, fmt.Sprint("lock ", i))
	}
	if last := steps[len(steps)-1]; last.Done != 7 || last.Total != 7 {
		t.Errorf("progress ended with %+v", last)
	}
}

func TestAKilledPeerIsGoneAtOnceAndComesBackAsItself(t *testing.T) {
	t.Parallel()
	n := up(t, Options{})
	takeLock(t, n, 6, "a lock") // its group exists from here on
	victim, before := peerAt(t, n, 1), n.Status().Peers[1]
	store := victim.Node().Info().Store

	start := time.Now()
	if err := n.Kill(1); err != nil {
		t.Fatal(err)
	}
	sees := func(i int) (connected bool) {
		for _, q := range peerAt(t, n, i).Node().Peers() {
			connected = connected || q.Peer == before.Peer && q.Connected
		}
		return connected
	}
	for _, i := range []int{0, 2, 3, 4, 5, 6} {
		until(t, "the others notice", func() bool { return !sees(i) })
	}
	t.Logf("all others noticed within %v", time.Since(start))
	select {
	case <-victim.Killed():
	default:
		t.Error("Killed is not closed")
	}
	if _, err := n.Peer(1); !errors.Is(err, ErrDown) {
		t.Errorf("Peer: %v", err)
	}
	if err := n.Kill(1); !errors.Is(err, ErrDown) {
		t.Errorf("second kill: %v", err)
	}
	if err := n.WaitReady(short(t)); err != nil { // the six of them
		t.Error(err)
	}
	takeLock(t, n, 6, "a lock")

	if err := n.Restart(short(t), 1); err != nil {
		t.Fatal(err)
	}
	if after := n.Status().Peers[1]; after != before {
		t.Errorf("came back as %+v, was %+v", after, before)
	}
	if got := peerAt(t, n, 1).Node().Info().Store; got != store {
		t.Errorf("came back with store %s, had %s", got, store)
	}
	if err := n.Restart(short(t), 1); !errors.Is(err, ErrUp) {
		t.Errorf("second restart: %v", err)
	}
}

// With f = 1 a group of three answers only while two of its voters do. So once another voter of the root is killed, a group
// that does not exist yet can be made only if the one that was killed before votes again, with its log.
func TestARestartedFounderVotesAgainFromWhatItsDiskHas(t *testing.T) {
	t.Parallel()
	n := up(t, Options{N: 3})
	takeLock(t, n, 0, "first")
	if err := n.Kill(1); err != nil {
		t.Fatal(err)
	}
	takeLock(t, n, 0, "first")
	if err := n.Restart(short(t), 1); err != nil {
		t.Fatal(err)
	}
	if err := n.Kill(2); err != nil {
		t.Fatal(err)
	}
	takeLock(t, n, 0, "first")
	takeLock(t, n, 1, "first")
}

func TestEffectsOfAPeerEndWithItsKillWhichWaitsForThoseUnderWay(t *testing.T) {
	n := up(t, Options{N: 3})
	p := peerAt(t, n, 2)
	begun, finish, ran := make(chan struct{}), make(chan struct{}), make(chan bool)
	go func() { ran <- p.Do(func() { close(begun); <-finish }) }()
	<-begun
	killed := make(chan error)
	witnessed := false
	go func() { killed <- n.Kill(2, func() { witnessed = true }) }()
	select {
	case <-p.Killed():
		t.Fatal("the kill did not wait for an effect under way")
	case <-time.After(20 * time.Millisecond):
	}
	close(finish)
	if !<-ran {
		t.Error("an effect begun before the kill says that it did not run")
	}
	if err := <-killed; err != nil {
		t.Fatal(err)
	}
	if !witnessed {
		t.Error("nobody witnessed the kill")
	}
	if p.Do(func() { t.Error("an effect of a dead peer ran") }) {
		t.Error("an effect of a dead peer says that it ran")
	}
}

func TestAKilledPeersProcessReachesNobodyAndWritesNoMore(t *testing.T) {
	n := up(t, Options{N: 3})
	s, ghost := n.slots[1], peerAt(t, n, 1)
	handle := s.store // the one that the peer's process has
	if err := n.Kill(1); err != nil {
		t.Fatal(err)
	}
	if _, err := ghost.wire.Dial(t.Context(), "tcp", "127.0.0.1:1"); !errors.Is(err, wire.ErrCut) || ghost.wire.Conns() != 0 {
		t.Errorf("the dead process has %d connections; a dial of it: %v", ghost.wire.Conns(), err)
	}
	if err := handle.Write(nil, true); !errors.Is(err, replicagroup.ErrStore) {
		t.Errorf("the dead process can write: %v", err)
	}
	if rs, err := s.store.Replicas(); err != nil || len(rs) == 0 || s.store.ID() != handle.ID() {
		t.Errorf("the next life finds %d replicas, %v, in store %v; the killed one had %v", len(rs), err, s.store.ID(), handle.ID())
	}
}

func TestTheDepthOfATestnetIsThatOfItsGenesis(t *testing.T) {
	t.Parallel()
	for asked, want := range map[int]int{0: placement.DepthDefault, placement.DepthMin: placement.DepthMin, placement.DepthMax: placement.DepthMax} {
		n := up(t, Options{N: 3, Depth: asked})
		if got := n.Genesis().Depth; got != want || n.Status().Depth != want {
			t.Errorf("asked for %d: the genesis has %d and the status %d, want %d", asked, got, n.Status().Depth, want)
		}
		takeLock(t, n, 1, "at any depth")
	}
}

func TestUnusableOptionsAndNumbersAreRefused(t *testing.T) {
	for _, o := range []Options{{N: 2}, {N: -1}, {N: PeersMax + 1}, {N: 4, F: 2}, {F: -1}, {F: 4, N: 9}, {Depth: -1}, {Depth: placement.DepthMax + 1}} {
		if n, err := Up(t.Context(), o); !errors.Is(err, ErrOptions) || !errors.Is(o.Validate(), ErrOptions) {
			t.Errorf("%+v: %v, %v", o, n, err)
		}
	}
	n := up(t, Options{N: 3})
	for _, i := range []int{-1, 3} {
		_, err := n.Peer(i)
		if !errors.Is(err, ErrNoPeer) || !strings.Contains(err.Error(), "0 to 2") {
			t.Errorf("peer %d: %v", i, err)
		}
		if err := n.Kill(i); !errors.Is(err, ErrNoPeer) {
			t.Errorf("kill %d: %v", i, err)
		}
		if err := n.Restart(t.Context(), i); !errors.Is(err, ErrNoPeer) {
			t.Errorf("restart %d: %v", i, err)
		}
	}
	n.Kill(0)
	n.Close()
	n.Close()
	if err := n.Restart(t.Context(), 0); !errors.Is(err, ErrClosed) {
		t.Errorf("restart after Close: %v", err)
	}
}

func TestUpEndsWithItsContextAndLeavesNothing(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("changed my mind")
	n, err := Up(ctx, Options{Progress: func(p Progress) {
		if p.Stage != "starting peers" {
			cancel(why)
		}
	}})
	if err == nil {
		n.Close() // it was ready at the first look
	} else if !errors.Is(err, why) {
		t.Error(err)
	}
}

// BenchmarkUp times seven peers from nothing until each sees all others and finds owners, and tells what they weigh when
// idle. Aims: 3 s, 120 MiB resident. The resident set is the process's, with the benchmark itself.
func BenchmarkUp(b *testing.B) {
	var rss float64
	for b.Loop() {
		n, err := Up(b.Context(), Options{})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		rss = max(rss, residentMiB())
		n.Close()
		b.StartTimer()
	}
	b.ReportMetric(rss, "resident-MiB")
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/up")
}

// residentMiB returns the process's resident set, 0 where the system does not tell.
func residentMiB() float64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var size, resident float64
	fmt.Sscan(string(b), &size, &resident)
	return resident * float64(os.Getpagesize()) / (1 << 20)
}

// What outlives all peers at once is on the disk, and nothing else of them does.
func TestStoresOnDiskOutliveAllPeers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := up(t, Options{N: 4, StoreDir: dir, Depth: 1})
	held, err := peerAt(t, n, 3).Node().Locks().Lock(short(t), "held", lockservice.WithTTL(TTLMax))
	if err != nil {
		t.Fatal(err)
	}
	was := token(t, n, 0, "other")
	if err := n.Dump(t.Context(), io.Discard); !errors.Is(err, ErrMode) {
		t.Errorf("dump: %v", err)
	}
	for i := range 4 {
		if err := n.Kill(i); err != nil {
			t.Fatal(err)
		}
		if s := n.all()[i]; s.onDisk != nil {
			t.Errorf("peer %d was killed and its store is open", i)
		}
	}
	for i := range 4 {
		if err := n.Restart(short(t), i); err != nil {
			t.Fatal(err)
		}
	}
	info, err := peerAt(t, n, 1).Node().Locks().Info(short(t), "held")
	if err != nil || !info.Held || info.Token != held.Token() {
		t.Errorf("%+v, %v; want held with token %d", info, err, held.Token())
	}
	if is := token(t, n, 2, "other"); is <= was {
		t.Errorf("token %d after %d", is, was)
	}
	if i, err := n.Join(short(t)); err != nil || i != 4 {
		t.Errorf("join: %d, %v", i, err)
	}
	for i := range 5 {
		if _, err := os.Stat(filepath.Join(dir, fmt.Sprint(i), "STORE")); err != nil {
			t.Error(err)
		}
	}
	if err := n.Leave(short(t), 4); err != nil {
		t.Error(err)
	}
	if err := n.Restart(short(t), 4); err != nil {
		t.Error(err)
	}
}
