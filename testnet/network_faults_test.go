package testnet

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"

	"latchkey/lockservice"
)

func connectedTo(t testing.TB, n *Network, i, j int) bool {
	t.Helper()
	return peerAt(t, n, i).Host().Network().Connectedness(peerAt(t, n, j).Host().ID()) == network.Connected
}

// countEnds counts the connections that end at any peer.
func countEnds(t testing.TB, n *Network) *atomic.Int64 {
	t.Helper()
	var ends atomic.Int64
	for i := range n.N() {
		peerAt(t, n, i).Host().Network().Notify(&network.NotifyBundle{
			DisconnectedF: func(network.Network, network.Conn) { ends.Add(1) },
		})
	}
	return &ends
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// With f = 2 and five peers every group has all five, so a side of three is its majority and a side of two is not.
func TestAPartitionIsSilenceInWhichOnlyAMajorityGoesOn(t *testing.T) {
	t.Parallel()
	n := up(t, Options{N: 5, F: 2})
	const ttl = 2 * time.Second
	held, err := peerAt(t, n, 0).Node().Locks().Lock(short(t), "held", lockservice.WithTTL(ttl))
	must(t, err)
	other, err := peerAt(t, n, 1).Node().Locks().Lock(short(t), "other", lockservice.WithTTL(ttl))
	must(t, err)
	must(t, other.Release(short(t)))

	ends := countEnds(t, n)
	must(t, n.Partition(short(t), []int{0, 1}))
	for _, p := range n.Status().Peers {
		if want := min(p.N/2, 1); p.Side != want {
			t.Errorf("peer %d is on side %d, want %d", p.N, p.Side, want)
		}
	}

	// The minority gets no answer.
	ctx, cancel := context.WithTimeout(t.Context(), ttl)
	defer cancel()
	refused := make(chan error, 1)
	go func() {
		_, err := peerAt(t, n, 1).Node().Locks().Lock(ctx, "other", lockservice.WithTTL(ttl))
		refused <- err
	}()
	// The holder learns that its lock is lost before anybody of the majority gets it.
	granted, err := peerAt(t, n, 4).Node().Locks().Lock(short(t), "held", lockservice.WithTTL(ttl))
	must(t, err)
	if !errors.Is(context.Cause(held.Context()), lockservice.ErrLost) {
		t.Errorf("granted to another, and the holder has heard: %v", context.Cause(held.Context()))
	}
	if granted.Token() <= held.Token() {
		t.Errorf("token %v after %v", granted.Token(), held.Token())
	}
	must(t, granted.Release(short(t)))
	again, err := peerAt(t, n, 3).Node().Locks().Lock(short(t), "other", lockservice.WithTTL(ttl))
	must(t, err)
	if again.Token() <= other.Token() {
		t.Errorf("token %v after %v", again.Token(), other.Token())
	}
	must(t, again.Release(short(t)))
	if err := <-refused; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the minority was answered: %v", err)
	}
	for i := range n.N() {
		for j := range n.N() {
			if i != j && !connectedTo(t, n, i, j) {
				t.Errorf("peer %d has lost its connection to %d", i, j)
			}
		}
	}
	if got := ends.Load(); got != 0 {
		t.Errorf("%d connections ended in the silence", got)
	}

	// All are one again, at once, on the connections they had.
	must(t, n.Heal(short(t)))
	start := time.Now()
	must(t, n.WaitReady(short(t)))
	last := granted.Token()
	for i := range n.N() {
		h, err := peerAt(t, n, i).Node().Locks().Lock(short(t), "held", lockservice.WithTTL(ttl))
		must(t, err)
		if h.Token() <= last {
			t.Errorf("peer %d got token %v after %v", i, h.Token(), last)
		}
		last = h.Token()
		must(t, h.Release(short(t)))
	}
	t.Logf("everybody had the lock within %v of the heal", time.Since(start))
	if got := ends.Load(); got != 0 {
		t.Errorf("%d connections did not outlive the heal", got)
	}
}

// Timers end connections in a partition that lasts. Here the test does it, so as not to wait for one.
func TestAHealMendsAnOverlayThatHasGivenUpItsConnections(t *testing.T) {
	n := up(t, Options{N: 5, F: 2})
	takeLock(t, n, 0, "a lock")
	takeLock(t, n, 4, "a lock")
	must(t, n.Partition(short(t), []int{0, 1}, []int{2, 3, 4}))
	for _, i := range []int{0, 1} {
		for _, j := range []int{2, 3, 4} {
			must(t, peerAt(t, n, i).Host().Network().ClosePeer(peerAt(t, n, j).Host().ID()))
			if connectedTo(t, n, i, j) || !connectedTo(t, n, j, i) {
				t.Errorf("peer %d closed its connection to %d: connected %v and %v", i, j, connectedTo(t, n, i, j), connectedTo(t, n, j, i))
			}
		}
	}
	for _, j := range []int{2, 3, 4} {
		for _, i := range []int{0, 1} {
			must(t, peerAt(t, n, j).Host().Network().ClosePeer(peerAt(t, n, i).Host().ID()))
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	far := peerAt(t, n, 4).Host()
	err := peerAt(t, n, 0).Host().Connect(ctx, peer.AddrInfo{ID: far.ID(), Addrs: far.Addrs()})
	if err == nil || ctx.Err() == nil {
		t.Errorf("a dial across ended before its context: %v", err)
	}
	takeLock(t, n, 4, "a lock")

	must(t, n.Heal(short(t)))
	start := time.Now()
	must(t, n.WaitReady(short(t)))
	t.Logf("ready %v after the heal", time.Since(start))
	for i := range n.N() {
		takeLock(t, n, i, "a lock")
	}
	t.Logf("everybody had the lock within %v of the heal", time.Since(start))
}

func TestPeersThatRestartOrJoinDuringAPartitionAreUnderIt(t *testing.T) {
	n := up(t, Options{N: 5})
	killed := peerAt(t, n, 3).Host().ID()
	must(t, n.Kill(3))
	until(t, "the others notice", func() bool { // or they would go on believing in the life that was killed
		return !slices.ContainsFunc([]int{0, 1, 2, 4}, func(i int) bool {
			return peerAt(t, n, i).Host().Network().Connectedness(killed) == network.Connected
		})
	})
	must(t, n.Partition(short(t), []int{0, 1, 2})) // the founders; 3 and 4 are the others
	must(t, n.Restart(short(t), 3))
	if i, err := n.Join(short(t)); i != 5 || err != nil {
		t.Fatalf("joined as %d, %v", i, err)
	}
	for _, i := range []int{3, 4, 5} {
		for _, j := range []int{3, 4, 5} {
			if i != j && !connectedTo(t, n, i, j) {
				t.Errorf("peers %d and %d are on one side and not connected", i, j)
			}
		}
	}
	for _, i := range []int{3, 5} {
		for _, j := range []int{0, 1, 2} {
			if connectedTo(t, n, i, j) || connectedTo(t, n, j, i) {
				t.Errorf("peers %d and %d met across the partition", i, j)
			}
		}
	}
	if st := n.Status(); !st.Partitioned || st.Peers[5].Side != 1 || st.Peers[0].Side != 0 {
		t.Errorf("%+v", st)
	}
	must(t, n.Heal(short(t)))
	start := time.Now()
	must(t, n.WaitReady(short(t)))
	t.Logf("ready %v after the heal", time.Since(start))
	takeLock(t, n, 5, "a lock")
	if n.Status().Partitioned {
		t.Error("still partitioned")
	}
}

func TestJoinedPeersAreThoseOfTheSeed(t *testing.T) {
	t.Parallel()
	n := up(t, Options{N: 3})
	i, err := n.Join(short(t))
	if err != nil || i != 3 || n.N() != 4 {
		t.Fatalf("joined as %d of %d, %v", i, n.N(), err)
	}
	larger := up(t, Options{N: 4})
	if !slices.Equal(ids(n), ids(larger)) {
		t.Error("a peer that joined is another than one that was there from the start")
	}
	takeLock(t, n, 3, "a lock")
	must(t, n.Kill(3))
	must(t, n.Restart(short(t), 3))
	takeLock(t, n, 3, "a lock")

	full := &Network{slots: make([]*slot, PeersMax)}
	if _, err := full.Join(t.Context()); !errors.Is(err, ErrFull) {
		t.Error(err)
	}
}

func TestAPeerThatLeavesGivesItsLocksBackAndMayReturn(t *testing.T) {
	t.Parallel()
	n := up(t, Options{N: 4})
	h, err := peerAt(t, n, 3).Node().Locks().Lock(short(t), "a lock", lockservice.WithTTL(TTLMax))
	must(t, err)
	life, store := peerAt(t, n, 3), peerAt(t, n, 3).Node().Info().Store
	must(t, n.Leave(short(t), 3))
	start := time.Now()
	next, err := peerAt(t, n, 0).Node().Locks().Lock(short(t), "a lock", lockservice.WithTTL(TTLMax))
	must(t, err)
	if took := time.Since(start); took > TTLMax/2 || next.Token() <= h.Token() {
		t.Errorf("token %v after %v, %v after its holder left", next.Token(), h.Token(), took)
	}
	must(t, next.Release(short(t)))
	select {
	case <-life.Killed():
	default:
		t.Error("the life of a peer that left goes on")
	}
	if st := n.Status().Peers[3]; st.Up || !st.Left {
		t.Errorf("%+v", st)
	}
	for _, err := range []error{n.Leave(short(t), 3), n.Kill(3)} {
		if !errors.Is(err, ErrDown) {
			t.Error(err)
		}
	}
	must(t, n.Restart(short(t), 3))
	if st := n.Status().Peers[3]; !st.Up || st.Left {
		t.Errorf("%+v", st)
	}
	if peerAt(t, n, 3).Node().Info().Store != store {
		t.Error("it came back without its store")
	}
	takeLock(t, n, 3, "a lock")
}

// A peer that leaves while its side cannot answer must not take for ever, nor keep others from looking or healing.
func TestLeavingAcrossAPartitionEnds(t *testing.T) {
	t.Parallel()
	n := up(t, Options{N: 3})
	_, err := peerAt(t, n, 0).Node().Locks().Lock(short(t), "a lock", lockservice.WithTTL(TTLMax))
	must(t, err)
	must(t, n.Partition(short(t), []int{0}))
	left := make(chan error, 1)
	go func() { left <- n.Leave(short(t), 0) }()
	until(t, "status is told", func() bool { return n.Status().Partitioned })
	must(t, n.Latency(short(t), time.Millisecond))
	must(t, <-left)
	must(t, n.Heal(short(t)))
	takeLock(t, n, 1, "another lock")
}

func TestLatencyIsFeltByEveryPair(t *testing.T) {
	t.Parallel()
	const d = 30 * time.Millisecond
	n := up(t, Options{N: 3, Latency: d})
	if got := n.Status().Latency; got != d {
		t.Errorf("status tells %v", got)
	}
	rtt := func(i, j int) time.Duration {
		ctx, cancel := context.WithCancel(short(t))
		defer cancel()
		r, ok := <-ping.Ping(ctx, peerAt(t, n, i).Host(), peerAt(t, n, j).Host().ID())
		if !ok || r.Error != nil {
			t.Fatal(ok, r.Error)
		}
		return r.RTT
	}
	for i := range 3 {
		for _, j := range []int{(i + 1) % 3, (i + 2) % 3} {
			if got := rtt(i, j); got < 2*d {
				t.Errorf("from %d to %d and back in %v with %v each way", i, j, got, d)
			}
		}
	}
	takeLock(t, n, 2, "a lock")
	must(t, n.Latency(short(t), 0))
	until(t, "the latency is gone", func() bool { return rtt(0, 1) < d && rtt(1, 0) < d })
}

func TestFaultsThatMakeNoSenseAreRefused(t *testing.T) {
	n := up(t, Options{N: 3})
	ctx := short(t)
	for name, x := range map[string]struct{ err, want error }{
		"no side":          {n.Partition(ctx), ErrOptions},
		"one side":         {n.Partition(ctx, []int{0, 1, 2}), ErrOptions},
		"an empty side":    {n.Partition(ctx, []int{0}, nil), ErrOptions},
		"twice":            {n.Partition(ctx, []int{0}, []int{1, 0}), ErrOptions},
		"a stranger":       {n.Partition(ctx, []int{3}), ErrNoPeer},
		"before its time":  {n.Latency(ctx, -1), ErrOptions},
		"too late":         {n.Latency(ctx, LatencyMax+1), ErrOptions},
		"options":          {Options{Latency: -1}.Validate(), ErrOptions},
		"pause":            {n.Pause(1), ErrMode},
		"resume":           {n.Resume(1), ErrMode},
		"pause a stranger": {n.Pause(7), ErrNoPeer},
		"leave a stranger": {n.Leave(ctx, -1), ErrNoPeer},
	} {
		if !errors.Is(x.err, x.want) {
			t.Errorf("%s: %v", name, x.err)
		}
	}
	if _, err := n.Logs(0); !errors.Is(err, ErrMode) {
		t.Errorf("logs: %v", err)
	}
	why := errors.New("changed my mind")
	gone, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	for _, err := range []error{n.Partition(gone, []int{0}), n.Heal(gone), n.Latency(gone, 0), n.Leave(gone, 0)} {
		if !errors.Is(err, why) {
			t.Error(err)
		}
	}
	if _, err := n.Join(gone); !errors.Is(err, why) || n.N() != 3 {
		t.Error(err)
	}
	if st := n.Status(); st.Partitioned || st.Latency != 0 || st.Mode != ModeInProcess {
		t.Errorf("%+v", st)
	}
	takeLock(t, n, 0, "a lock")
	n.Close()
	_, err := n.Join(ctx)
	for _, err := range []error{err, n.Partition(ctx, []int{0}), n.Heal(ctx), n.Latency(ctx, 0)} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
}
