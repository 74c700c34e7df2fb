package replicagroup

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"flag"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	manet "github.com/multiformats/go-multiaddr/net"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/raft"
	"latchkey/replicagroup/session"
	"latchkey/replicagroup/transfer"
	"latchkey/testnet/wire"
)

var snapshotMiB = flag.Int("transfer.mib", 6, "size of the snapshot in the conformance test of transfers, at most 47")

// blob is a machine with a large state, which a command of eight bytes sets the size of. Any other command only fills the log.
type blob struct {
	counter
	state []byte
}

func (m *blob) Apply(c session.Context, data []byte) []byte {
	if len(data) == 8 {
		m.state = make([]byte, binary.BigEndian.Uint64(data))
		rng := rand.New(rand.NewPCG(uint64(len(m.state)), 1))
		for i := 0; i+8 <= len(m.state); i += 8 {
			binary.BigEndian.PutUint64(m.state[i:], rng.Uint64())
		}
	}
	return nil
}
func (m *blob) Query(session.Context, []byte) []byte { return m.digest() }
func (m *blob) Snapshot() []byte                     { return m.state }
func (m *blob) Restore(b []byte) error               { m.state = b; return nil }
func (m *blob) digest() []byte {
	sum := sha256.Sum256(m.state)
	return sum[:]
}

// blobOf returns the digest of a peer's replica's blob.
func (p *testPeer) blobOf(g order.GroupID) (digest string) {
	p.touch(g, func(r *replica) { digest = string(r.table.Machine("blob").(*blob).digest()) })
	return digest
}

// laggard is a world of three in which one member of a group is down, and lacks more than the others' logs have.
type laggard struct {
	*world
	key    keyspace.Key
	group  order.GroupID
	far    *testPeer
	disk   *MemoryStore
	leader *testPeer
	other  *testPeer
	user   *Client // at other
}

// filler is a command that fills the log.
var filler = make([]byte, order.DataBytesMax-1000)

func newLaggard(t testing.TB, ctx context.Context, w *world, bytes int) *laggard {
	t.Helper()
	l := &laggard{world: w, key: keyspace.Preimage("large").Key()}
	l.group = order.GroupID{Overlay: w.genesis.ID(), Prefix: w.genesis.PrefixOf(l.key)}
	if _, err := w.peers[0].groups.NewClient().Do(ctx, l.key, "blob", number(uint64(bytes))); err != nil {
		t.Fatal(err)
	}
	at, err := w.peers[0].groups.Leader(ctx, l.key)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range w.peers {
		switch {
		case string(p.host.ID()) == at.ID:
			l.leader = p
		case l.far == nil:
			l.far = p
		default:
			l.other = p
		}
	}
	l.user = l.other.groups.NewClient()
	// The laggard must have begun, so that it has a log that can be too short.
	l.await(t, ctx, "the replica runs", l.far, func(s order.Status) bool { return s.Applied > 10 })
	l.disk = l.far.kill()
	l.fill(t, ctx, l.user)
	for _, p := range []*testPeer{l.leader, l.other} {
		l.await(t, ctx, "the log is cut", p, func(s order.Status) bool { return s.First > 100 })
	}
	leads := false // a busy machine may have changed who does
	if l.other.touch(l.group, func(r *replica) { leads = r.leading }); leads {
		l.leader, l.other = l.other, l.leader
	}
	return l
}

// fill makes the group's replicas take a snapshot.
func (l *laggard) fill(t testing.TB, ctx context.Context, user *Client) {
	t.Helper()
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range compactBytes/len(filler)/16 + 2 {
				if _, err := user.Do(ctx, l.key, "blob", filler); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

func (l *laggard) await(t testing.TB, ctx context.Context, what string, p *testPeer, ok func(s order.Status) bool) {
	t.Helper()
	for {
		all, err := p.groups.Status(ctx)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		for _, r := range all {
			if r.Group == l.group && ok(r.Status) {
				return
			}
		}
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			t.Fatalf("not in time: %s: %v", what, err)
		}
	}
}

// back starts the laggard again.
func (l *laggard) back(t *testing.T) {
	t.Helper()
	l.restart(t, l.far, l.disk)
}

// handOver has another replica lead from now on, as happens by itself on a busy machine.
func (l *laggard) handOver(t testing.TB, ctx context.Context) {
	t.Helper()
	for leads := false; ; {
		l.other.touch(l.group, func(r *replica) { leads = r.leading })
		if leads {
			break
		}
		l.leader.touch(l.group, func(r *replica) {
			m, _ := r.view.MemberAt(l.other.overlay.Node())
			r.step(order.Transfer{To: m.ID}) // again where one came to nothing
		})
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			t.Fatal("nobody else leads in time")
		}
	}
	l.leader, l.other = l.other, l.leader
}

// caughtUp waits until the laggard has what another has, and compares their states.
func (l *laggard) caughtUp(t testing.TB, ctx context.Context, with *testPeer) {
	t.Helper()
	var applied uint64
	with.touch(l.group, func(r *replica) { applied = r.applied })
	l.await(t, ctx, "the laggard has caught up", l.far, func(s order.Status) bool { return s.Applied >= applied })
	if l.far.blobOf(l.group) != with.blobOf(l.group) {
		t.Error("its state is not that of the others")
	}
}

// set runs a function on the goroutine that owns a peer's transfers, before anything that it does later.
func (p *testPeer) set(f func(tr *transfers)) {
	done := make(chan struct{})
	p.groups.transfers.box.Put(func() {
		f(p.groups.transfers)
		close(done)
	})
	<-done
}

func stats(t testing.TB, p *testPeer) TransferStats {
	t.Helper()
	st, err := p.groups.Transfers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// awaitStats waits until a peer's counts satisfy ok.
func awaitStats(t testing.TB, ctx context.Context, what string, p *testPeer, ok func(st TransferStats) bool) TransferStats {
	t.Helper()
	for {
		st := stats(t, p)
		if ok(st) {
			return st
		}
		if err := pause(ctx, time.Millisecond); err != nil {
			t.Fatalf("not in time: %s: %v; %+v", what, err, st)
		}
	}
}

func TestALargeSnapshotGoesByAStreamOfItsOwn(t *testing.T) {
	const size = 3<<20 + 12345
	ctx := deadline(t, waitMax)
	l := newLaggard(t, ctx, newWorld(t, 3, 1), size)
	before := l.leader.overlay.Stats()
	var moved atomic.Uint64
	l.leader.set(func(tr *transfers) {
		tr.acked = func(k transfer.Key, acked int) { moved.Store(l.leader.groups.Moved(k.Group, k.To)) }
	})
	l.back(t)
	l.caughtUp(t, ctx, l.leader)
	got := awaitStats(t, ctx, "it was received", l.far, func(st TransferStats) bool { return st.Received == 1 })
	if got.BytesReceived < size || got.BytesResumed != 0 || got.Receiving+got.Offered+got.Unstreamed != 0 {
		t.Errorf("received: %+v", got)
	}
	sent := awaitStats(t, ctx, "it was sent", l.leader, func(st TransferStats) bool { return st.Sent == 1 && st.Sending == 0 })
	if sent.BytesSent != got.BytesReceived || sent.Failed != 0 {
		t.Errorf("sent: %+v", sent)
	}
	if moved.Load() != sent.BytesSent {
		t.Errorf("progress told of %d bytes of %d", moved.Load(), sent.BytesSent)
	}
	after := l.leader.overlay.Stats()
	if raw := after.RawSent - before.RawSent; raw < size || raw > size+1<<20 {
		t.Errorf("%d bytes went over streams of their own", raw)
	}
	if kept := after.BytesSent - before.BytesSent; kept > 1<<20+1<<20 { // the log's end, and what is small
		t.Errorf("%d bytes went over the kept-open streams", kept)
	}
	if n := l.leader.groups.Moved(l.group, 1) + l.leader.groups.Moved(l.group, 2) + l.leader.groups.Moved(l.group, 3); n != 0 {
		t.Errorf("%d bytes on their way when nothing is", n)
	}
}

// Conformance test 9 (replica-groups.md section 8): the log is truncated, the sender dies in the middle, and the next leader goes on where it
// broke off.
func TestASnapshotIsGoneOnWithByAnotherSender(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, waitMax+time.Duration(*snapshotMiB)*2*time.Second)
	size := *snapshotMiB<<20 + 4321
	l := newLaggard(t, ctx, newWorld(t, 3, 1), size)
	half := size / 2 / transfer.ChunkBytes * transfer.ChunkBytes
	reached, killed := make(chan int, 1), make(chan struct{})
	l.leader.set(func(tr *transfers) {
		tr.acked = func(_ transfer.Key, acked int) {
			if acked >= half {
				select {
				case reached <- acked:
				default:
				}
				<-killed
			}
		}
	})
	l.back(t)
	var acked int
	select {
	case acked = <-reached:
	case <-ctx.Done():
		t.Fatal("the first sender never got half way")
	}
	l.leader.store.Detach()
	l.leader.host.Close() // without a word
	close(killed)
	l.leader.groups.Close()
	l.leader.overlay.Close()

	l.caughtUp(t, ctx, l.other)
	got := awaitStats(t, ctx, "it was received", l.far, func(st TransferStats) bool { return st.Received == 1 })
	if got.BytesResumed < uint64(acked) || got.BytesReceived < uint64(size) || got.BytesReceived > uint64(size+1<<20) {
		t.Errorf("%d bytes were acknowledged to the first sender: %+v", acked, got)
	}
	sent := awaitStats(t, ctx, "it was sent", l.other, func(st TransferStats) bool { return st.Sent == 1 })
	if sent.BytesSent+got.BytesResumed != got.BytesReceived {
		t.Errorf("the second sender: %+v, and %+v came", sent, got)
	}
	// Two of three are a group: it goes on with the state that came.
	if _, err := l.far.groups.NewClient().Do(ctx, l.key, "blob", filler); err != nil {
		t.Errorf("the group does not go on: %v", err)
	}
	t.Logf("%d bytes from the first sender, %d from the second", got.BytesResumed, sent.BytesSent)
}

func TestASpoiltChunkIsSentAgain(t *testing.T) {
	t.Parallel()
	const size = 3 << 20
	ctx := deadline(t, waitMax)
	l := newLaggard(t, ctx, newWorld(t, 3, 1), size)
	var spoilt atomic.Int32
	times := int32(2) // of one chunk; then of any, so that whole transfers are refused
	l.leader.set(func(tr *transfers) {
		tr.spoil = func(_ transfer.Key, at int, chunk []byte) {
			if at == transfer.ChunkBytes && spoilt.Add(1) <= times {
				chunk[7] ^= 1
			}
		}
	})
	l.back(t)
	l.caughtUp(t, ctx, l.leader)
	got := awaitStats(t, ctx, "it was received", l.far, func(st TransferStats) bool { return st.Received == 1 })
	if got.BytesReceived > size+1<<20 || spoilt.Load() != times+1 {
		t.Errorf("the chunk was sent %d times, and %d bytes were taken", spoilt.Load(), got.BytesReceived)
	}

	// Spoilt too often: refused with a clear error, kept up to there, told to the engine, which sends it anew.
	l.disk = l.far.kill()
	l.fill(t, ctx, l.user)
	spoilt.Store(-100)
	times = -100 + transfer.RepeatsMax + 1
	l.back(t)
	l.caughtUp(t, ctx, l.leader)
	got = awaitStats(t, ctx, "it was received in the end", l.far, func(st TransferStats) bool { return st.Received == 1 })
	if got.BytesResumed != transfer.ChunkBytes {
		t.Errorf("what had come before was not gone on with: %+v", got)
	}
	if sent := stats(t, l.leader); sent.Failed != 1 {
		t.Errorf("the refusal was not told: %+v", sent)
	}
}

// A sender that does not hear that everything has come offers it again. It is not sent again: the receiver still has it.
func TestATransferWhoseLastWordIsLostIsNotSentAgain(t *testing.T) {
	t.Parallel()
	const size = 3 << 20
	ctx := deadline(t, waitMax)
	l := newLaggard(t, ctx, newWorld(t, 3, 1), size)
	var lost atomic.Int32
	for _, p := range []*testPeer{l.leader, l.other} {
		p.set(func(tr *transfers) { tr.keep = true }) // the sender's engine knows that it has come, and nobody would offer it again
	}
	l.far.prepare = func(h *Host) {
		h.transfers.mute = func(transfer.Key) bool { return lost.Add(1) == 1 }
	}
	l.back(t)
	l.caughtUp(t, ctx, l.leader)
	got := awaitStats(t, ctx, "it was received twice", l.far, func(st TransferStats) bool { return st.Received == 2 })
	if got.BytesReceived > size+1<<20 || got.BytesResumed < size {
		t.Errorf("it was sent twice: %+v", got)
	}
	awaitStats(t, ctx, "the sender has heard", l.leader, func(st TransferStats) bool { return st.Sent == 1 && st.Sending == 0 })
	awaitStats(t, ctx, "nothing is kept", l.far, func(st TransferStats) bool { return st.Unstreamed == 0 && st.Receiving == 0 })
	l.caughtUp(t, ctx, l.leader)
}

// A peer that takes a stream and then does nothing costs its sender a while, and the engine learns that nothing came.
func TestAStalledReceiverIsGivenUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 1)
	from, to := w.peers[0], w.peers[1]
	to.groups.Close() // its overlay goes on; its streams are ours
	overlay := to.overlay
	overlay.Close()
	stalled := make(chan struct{})
	other, err := dht.New(to.host, dht.WithOverlayID(w.genesis.ID()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	t.Cleanup(func() { close(stalled) })
	var opened atomic.Int32
	other.HandleStream(streamSnapshot, func(s *dht.Stream) {
		opened.Add(1)
		<-stalled
	})
	if err := other.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The engine asked for nothing of this, so it is not asked whether it still wants it.
	from.set(func(tr *transfers) { tr.stall, tr.keep = 50*time.Millisecond, true })
	g := w.genesis.RootGroup()
	body := make([]byte, 2<<20)
	if !from.touch(g, func(r *replica) {
		m, _ := r.view.MemberAt(to.overlay.Node())
		from.groups.transfers.send(to.host.ID(), r, order.Send{To: m.ID, Msg: []byte("head"), Snapshot: body}, m.Store)
	}) {
		t.Fatal("no replica")
	}
	st := awaitStats(t, deadline(t, waitMax), "it was given up", from, func(st TransferStats) bool { return st.Failed == 1 })
	if st.Sending != 0 || opened.Load() != transfer.TriesMax {
		t.Errorf("after %d streams: %+v", opened.Load(), st)
	}
}

// offer opens a stream for a snapshot to a peer as another peer's host would, and sends an offer.
func offer(t *testing.T, from, to *testPeer, o transfer.Offer) (*dht.Stream, error) {
	t.Helper()
	s, err := from.overlay.OpenStream(deadline(t, waitMax), to.host.ID(), streamSnapshot)
	if err != nil {
		return nil, err
	}
	t.Cleanup(s.Reset)
	_, err = s.Write(transfer.AppendFrame(nil, transfer.Frame{Kind: transfer.KindOffer, Offer: o}))
	return s, err
}

// answer reads a receiver's frame, but for Wait.
func answer(t *testing.T, s *dht.Stream) (f transfer.Frame, err error) {
	t.Helper()
	s.SetReadDeadline(time.Now().Add(waitMax))
	var buf []byte
	for err == nil && (f.Kind == 0 || f.Kind == transfer.KindWait) {
		f, err = readTransferFrame(s, &buf)
	}
	return f, err
}

func TestOffersOfStrangersAndForStrangersAreRefused(t *testing.T) {
	w := newWorld(t, 4, 1) // the fourth shares no group
	member, to, stranger := w.peers[0], w.peers[1], w.peers[3]
	v := w.genesis.RootView()
	m, _ := v.MemberAt(member.overlay.Node())
	r, _ := v.MemberAt(to.overlay.Node())
	good := transfer.Offer{
		Key:  transfer.Key{Group: w.genesis.RootGroup(), To: r.ID},
		From: m.ID, FromStore: m.Store, ToStore: r.Store, Content: transfer.Sum{1}, Size: 3 << 20,
	}
	s, err := offer(t, member, to, good)
	if err != nil {
		t.Fatal(err)
	}
	if f, err := answer(t, s); err != nil || f.Kind != transfer.KindAccept || f.Offset != 0 {
		t.Fatalf("an honest offer: %v, %v", f.Kind, err)
	}
	s.Reset()

	before := to.groups.Counters()
	if s, err := offer(t, stranger, to, good); err == nil {
		if f, err := answer(t, s); err == nil {
			t.Errorf("a stranger was answered: %+v", f)
		}
	}
	for name, change := range map[string]func(o *transfer.Offer){
		"another group":           func(o *transfer.Offer) { o.Group.Prefix = keyspace.PrefixOf(keyspace.Key{9}, 8) },
		"another generation":      func(o *transfer.Offer) { o.Group.Gen++ },
		"another replica":         func(o *transfer.Offer) { o.To = m.ID },
		"another store":           func(o *transfer.Offer) { o.ToStore[0]++ },
		"in another's name":       func(o *transfer.Offer) { o.From = r.ID },
		"from another store":      func(o *transfer.Offer) { o.FromStore[0]++ },
		"of one who never joined": func(o *transfer.Offer) { o.From = 99 },
	} {
		o := good
		change(&o)
		s, err := offer(t, member, to, o)
		if err != nil {
			t.Fatal(err)
		}
		if f, err := answer(t, s); err != nil || f.Kind != transfer.KindRefuse || f.Code != transfer.Stray || !strings.Contains(f.Text, "group") {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
		s.Close()
	}
	if n := to.groups.Counters().StrayMessages - before.StrayMessages; n != 8 {
		t.Errorf("%d of 8 were counted", n)
	}
	// Frames against the rules reset the stream, and are counted.
	for name, b := range map[string][]byte{
		"no offer":         transfer.AppendFrame(nil, transfer.Frame{Kind: transfer.KindWait}),
		"a frame of 4 GiB": {0xff, 0xff, 0xff, 0xff},
		"another overlay":  transfer.AppendFrame(nil, transfer.Frame{Kind: transfer.KindOffer, Offer: func() transfer.Offer { o := good; o.Group.Overlay[0]++; return o }()}),
	} {
		before := to.groups.Counters().Malformed
		s, err := member.overlay.OpenStream(deadline(t, waitMax), to.host.ID(), streamSnapshot)
		if err != nil {
			t.Fatal(err)
		}
		s.Write(b)
		if f, err := answer(t, s); err == nil {
			t.Errorf("%s: answered %+v", name, f)
		}
		if n := to.groups.Counters().Malformed - before; n != 1 {
			t.Errorf("%s: counted %d times", name, n)
		}
		s.Reset()
	}
}

// Whatever a member offers, no more than a few streams are served, and none of it costs memory before it comes.
func TestAFloodOfOffersIsBounded(t *testing.T) {
	w := newWorld(t, 3, 1)
	from, to := w.peers[0], w.peers[1]
	v := w.genesis.RootView()
	m, _ := v.MemberAt(from.overlay.Node())
	r, _ := v.MemberAt(to.overlay.Node())
	ctx := deadline(t, waitMax)
	open, refused := 0, 0
	for i := range 60 {
		s, err := offer(t, from, to, transfer.Offer{
			Key:  transfer.Key{Group: w.genesis.RootGroup(), To: r.ID},
			From: m.ID, FromStore: m.Store, ToStore: r.Store, Content: transfer.Sum{byte(i)}, Size: transfer.BodyBytesMax,
		})
		if err == nil {
			s.SetReadDeadline(time.Now().Add(waitMax))
			_, err = s.Read(make([]byte, 1))
		}
		if err != nil {
			refused++
		} else {
			open++
		}
		st := stats(t, to)
		if st.Receiving > transfer.InMax || st.Receiving+st.Offered > 4 || st.Unstreamed > 0 {
			t.Fatalf("after %d offers: %+v", i+1, st)
		}
	}
	if open == 0 {
		t.Errorf("%d served, %d refused", open, refused)
	}
	// Each took the place of the one before, which was told so; an honest sender is served right after.
	s, err := offer(t, w.peers[2], to, func() transfer.Offer {
		m, _ := v.MemberAt(w.peers[2].overlay.Node())
		return transfer.Offer{Key: transfer.Key{Group: w.genesis.RootGroup(), To: r.ID}, From: m.ID, FromStore: m.Store, ToStore: r.Store, Content: transfer.Sum{1}, Size: 1 << 20}
	}())
	if err != nil {
		t.Fatal(err)
	}
	if f, err := answer(t, s); err != nil || f.Kind != transfer.KindAccept {
		t.Errorf("an honest offer: %+v, %v", f, err)
	}
	s.Reset()
	awaitStats(t, ctx, "nothing is left", to, func(st TransferStats) bool { return st.Receiving+st.Offered+st.Unstreamed == 0 })
}

// A partition in the middle is silence, not a reset: the stream is given up in time, what has come is kept, and the transfer goes on from
// there when the peers hear of each other again.
func TestASnapshotSurvivesAPartition(t *testing.T) {
	t.Parallel()
	const size = 6 << 20
	wires := []*wire.Wire{wire.New(), wire.New(), wire.New()}
	on := func(w *wire.Wire) []libp2p.Option { return []libp2p.Option{libp2p.Transport(w.Transport)} }
	t.Cleanup(func() {
		for _, w := range wires {
			w.Cut()
		}
	})
	ctx := deadline(t, waitMax)
	l := newLaggard(t, ctx, newWorldOn(t, 3, 1, func(i int) []libp2p.Option { return on(wires[i]) }), size)
	again := wire.New()
	for i, p := range l.peers {
		if p == l.far {
			wires[i].Cut()
			wires[i] = again
		}
	}
	l.far.options = on(again)
	const stall = 1500 * time.Millisecond
	reached, parted := make(chan *testPeer, 2), make(chan struct{})
	for _, p := range []*testPeer{l.leader, l.other} { // who sends is who leads by then
		var once sync.Once
		p.set(func(tr *transfers) {
			tr.stall = stall
			tr.acked = func(_ transfer.Key, acked int) {
				if acked >= 2<<20 {
					once.Do(func() { reached <- p })
					<-parted
				}
			}
		})
	}
	l.far.prepare = func(h *Host) { h.transfers.stall = stall }
	l.handOver(t, ctx)
	l.back(t)
	var sender *testPeer
	select {
	case sender = <-reached:
	case <-ctx.Done():
		t.Fatal("the transfer never got there")
	}
	before := stats(t, l.far).Stalled // where the machine is busy, a stream may have been silent for that long by itself
	// Everybody on one side, the laggard on the other.
	addrs := func(p *testPeer) (all []string) {
		for _, a := range p.host.Addrs() {
			if na, err := manet.ToNetAddr(a); err == nil {
				all = append(all, na.String())
			}
		}
		return all
	}
	for i, p := range l.peers {
		var blocked []string
		for _, o := range l.peers {
			if (o == l.far) != (p == l.far) {
				blocked = append(blocked, addrs(o)...)
			}
		}
		if err := wires[i].SetRules(wire.Rules{Blocked: blocked}); err != nil {
			t.Fatal(err)
		}
	}
	close(parted)
	kept := awaitStats(t, ctx, "what came is kept", l.far, func(st TransferStats) bool { return st.Unstreamed == 1 && st.Receiving == 0 })
	if kept.Stalled <= before || kept.BytesReceived < 2<<20 {
		t.Errorf("the stream did not end by silence: %+v", kept)
	}
	awaitStats(t, ctx, "the sender has noticed", sender, func(st TransferStats) bool { return st.Stalled > 0 })
	for _, w := range wires {
		if err := w.SetRules(wire.Rules{}); err != nil {
			t.Fatal(err)
		}
	}
	l.caughtUp(t, ctx, sender)
	// Another follows it where the log has been truncated again meanwhile, or the leader has changed.
	got := awaitStats(t, ctx, "it was received", l.far, func(st TransferStats) bool { return st.Received >= 1 })
	if got.BytesResumed < kept.BytesReceived || got.BytesReceived > got.Received*(size+1<<20) {
		t.Errorf("%d bytes were kept: %+v", kept.BytesReceived, got)
	}
}

// Two transfers at a time, in and out, however many there are.
func TestNoMoreThanTwoTransfersRunAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 1)
	ctx := deadline(t, waitMax)
	to, senders := w.peers[1], []*testPeer{w.peers[0], w.peers[2]}
	groups := []order.GroupID{w.genesis.RootGroup()}
	for i := byte(0); len(groups) < 6; i++ {
		key := keyspace.Preimage([]byte{i}).Key()
		if _, err := to.groups.NewClient().Do(ctx, key, "count", number(1)); err != nil {
			t.Fatal(err)
		}
		g := order.GroupID{Overlay: w.genesis.ID(), Prefix: w.genesis.PrefixOf(key)}
		if !slices.Contains(groups, g) {
			groups = append(groups, g)
		}
		for _, p := range w.peers {
			replicaOf(t, ctx, p, g, func(s order.Status) bool { return true })
		}
	}
	release := make(chan struct{})
	for i, p := range senders {
		p.set(func(tr *transfers) {
			tr.acked = func(transfer.Key, int) { <-release }
			tr.keep = true
		})
		for _, g := range groups[3*i : 3*i+3] {
			body := make([]byte, 2<<20)
			p.touch(g, func(r *replica) {
				m, _ := r.view.MemberAt(to.overlay.Node())
				p.groups.transfers.send(to.host.ID(), r, order.Send{To: m.ID, Msg: []byte("head"), Snapshot: body}, m.Store)
			})
		}
	}
	// The first two hold their places; of the others those wait at the receiver that have a stream, the rest at home.
	awaitStats(t, ctx, "two run in, and two wait", to, func(st TransferStats) bool {
		return st.Receiving == transfer.InMax && st.Offered == 2*transfer.OutMax-transfer.InMax
	})
	for _, p := range senders {
		if st := stats(t, p); st.Sending != 3 || st.Waiting != 3-transfer.OutMax {
			t.Errorf("%d of %d transfers have no stream", st.Waiting, st.Sending)
		}
	}
	stop := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, p := range w.peers {
				if st, err := p.groups.Transfers(ctx); err == nil && (st.Receiving > transfer.InMax || st.Sending-st.Waiting > transfer.OutMax) {
					t.Errorf("too many at once: %+v", st)
					return
				}
			}
		}
	})
	close(release)
	for _, p := range senders {
		awaitStats(t, ctx, "all are over", p, func(st TransferStats) bool { return st.Sending == 0 })
	}
	close(stop)
	watch.Wait()
	for _, p := range senders {
		if st := stats(t, p); st.Sent != 3 || st.Failed != 0 {
			t.Errorf("not all were sent: %+v", st)
		}
	}
}

// A newer sender takes the place of one that does not know yet that it leads no more, goes on where that one was, and that one is told.
func TestANewerSenderTakesThePlaceOfTheFormer(t *testing.T) {
	w := newWorld(t, 3, 1)
	former, newer, to := w.peers[0], w.peers[2], w.peers[1]
	ctx := deadline(t, transfer.StallMax-time.Second) // so that no stall is what ends it
	g := w.genesis.RootGroup()
	body := make([]byte, (transfer.AheadMax+4)*transfer.ChunkBytes)
	send := func(p *testPeer) {
		p.touch(g, func(r *replica) {
			m, _ := r.view.MemberAt(to.overlay.Node())
			p.groups.transfers.send(to.host.ID(), r, order.Send{To: m.ID, Msg: []byte("head of " + string(p.host.ID())), Snapshot: body}, m.Store)
		})
	}
	reached, release := make(chan struct{}, 1), make(chan struct{})
	former.set(func(tr *transfers) {
		tr.keep = true
		tr.acked = func(_ transfer.Key, acked int) {
			if acked == 2*transfer.ChunkBytes {
				reached <- struct{}{}
				<-release
			}
		}
	})
	newer.set(func(tr *transfers) { tr.keep = true })
	send(former)
	<-reached
	send(newer)
	awaitStats(t, ctx, "the newer has a stream", to, func(st TransferStats) bool { return st.Received == 1 })
	close(release)
	if st := awaitStats(t, ctx, "the former was told", former, func(st TransferStats) bool { return st.Sending == 0 }); st.Failed != 1 || st.Stalled != 0 {
		t.Errorf("the former: %+v", st)
	}
	got := stats(t, to)
	sent := awaitStats(t, ctx, "the newer has heard", newer, func(st TransferStats) bool { return st.Sending == 0 })
	if got.BytesReceived != uint64(len(body)) || got.BytesResumed < 2*transfer.ChunkBytes || sent.Sent != 1 || sent.BytesSent+got.BytesResumed != uint64(len(body)) {
		t.Errorf("received %+v, the newer sent %+v", got, sent)
	}
}

func TestLimitsOfTransfersFitTheEngines(t *testing.T) {
	// A snapshot's record has its group and view beside the machine's bytes.
	if transfer.BodyBytesMax < raft.SnapshotBytesMax+order.MembersMax*512+256 {
		t.Errorf("a body of %d bytes may be too small for a snapshot of %d", transfer.BodyBytesMax, raft.SnapshotBytesMax)
	}
	if transferBytesMin > batchBytesMax {
		t.Errorf("snapshots up to %d bytes go in batches of %d", transferBytesMin, batchBytesMax)
	}
	if transfer.BodyBytesMax+transfer.HeadBytesMax > engineBytesMax {
		t.Errorf("a snapshot of %d bytes has no room among %d of engine messages", transfer.BodyBytesMax, engineBytesMax)
	}
}
