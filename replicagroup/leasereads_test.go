package replicagroup

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
	"latchkey/replicagroup/placement"
)

func leaseReads(g *placement.Genesis) { g.LeaseReads = true }

// readers is a group of three, and the peer that leads it.
type readers struct {
	*world
	key    keyspace.Key
	group  placement.Descriptor
	leader *testPeer
}

func newReaders(t *testing.T, ctx context.Context, change ...func(*placement.Genesis)) *readers {
	t.Helper()
	w := &readers{world: newFixedWorld(t, 3, 1, change...), key: keyspace.Preimage("read").Key()}
	if _, err := w.peers[0].groups.NewClient().Do(ctx, w.key, "count", number(1)); err != nil {
		t.Fatal(err)
	}
	w.find(t, ctx)
	return w
}

func (w *readers) find(t *testing.T, ctx context.Context) {
	t.Helper()
	var err error
	if w.group, err = w.peers[0].groups.Locate(ctx, w.key); err != nil {
		t.Fatal(err)
	}
	at, err := w.peers[0].groups.Leader(ctx, w.key)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range w.peers {
		if string(p.host.ID()) == at.ID {
			w.leader = p
		}
	}
}

// lose has engine messages of those whom it says lost, in both directions; nil: none.
func (w *readers) lose(between func(from, to peer.ID) bool) {
	for _, p := range w.peers {
		if between == nil {
			p.deaf.Store(nil)
			continue
		}
		deaf := func(to peer.ID) bool { return between(p.host.ID(), to) }
		p.deaf.Store(&deaf)
	}
}

// unheard reads at the leader while no message between members arrives: no round can end. It reports whether there was an answer.
func (w *readers) unheard(t *testing.T, ctx context.Context) bool {
	t.Helper()
	c := w.leader.groups.NewClient()
	defer c.Close()
	if _, err := c.Query(ctx, w.key, "count", nil); err != nil {
		t.Fatal(err)
	}
	w.lose(func(_, _ peer.ID) bool { return true })
	defer w.lose(nil)
	short, cancel := context.WithTimeoutCause(ctx, 300*time.Millisecond, errors.New("patience"))
	defer cancel()
	got, err := c.Query(short, w.key, "count", nil)
	if err == nil && sumOf(t, got, nil) != 1 {
		t.Fatalf("read %x", got)
	}
	return err == nil
}

func TestReadsOnALeaseNeedNoRound(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, 60*time.Second)
	w := newReaders(t, ctx, leaseReads)
	for !w.unheard(t, ctx) { // a busy machine may let a lease run out first
		if err := ctx.Err(); err != nil {
			t.Fatal("no read was ever answered without a round: ", err)
		}
		w.find(t, ctx)
	}
}

func TestReadsNeedARoundUnlessTheOverlayHasLeases(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, 60*time.Second)
	w := newReaders(t, ctx)
	for range 3 {
		if w.unheard(t, ctx) {
			t.Fatal("a read was answered by a leader that had asked nobody")
		}
		w.find(t, ctx)
	}
}

// stuck holds up a shard's goroutine, as a machine that stands still does.
type stuck struct{ held, until chan struct{} }

func (e stuck) handle(*shard) {
	close(e.held)
	<-e.until
}

// heard is a caller that keeps its answer.
type heard chan []byte

func (h heard) Reply(b []byte) { h <- append([]byte(nil), b...) }

// A leader that stood still while another one was elected and something was written answers no read from before, though it hears of
// nothing: it looks at its clock.
func TestALeaderThatStoodStillAnswersNoStaleRead(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, 60*time.Second)
	w := newReaders(t, ctx, leaseReads)
	for !w.unheard(t, ctx) { // it has a lease now, or had one a moment ago
		w.find(t, ctx)
	}
	old := w.leader
	s := old.groups.shardOf(w.group.Group)
	freeze := stuck{make(chan struct{}), make(chan struct{})}
	s.box.Put(freeze)
	<-freeze.held
	w.lose(func(from, to peer.ID) bool { return from == old.host.ID() || to == old.host.ID() })

	// It is not suspected, since its peer is well; its voters elect another one when they have heard nothing for long enough.
	other := w.peers[0]
	if other == old {
		other = w.peers[1]
	}
	got, err := other.groups.NewClient().Do(ctx, w.key, "count", number(1))
	if sum := sumOf(t, got, err); sum != 2 {
		t.Fatalf("sum %d", sum)
	}

	answer := make(heard, 1)
	s.box.Put(&queryEvent{group: w.group.Group, view: w.group.View.Num, from: dht.NodeIDOf(old.host.ID()), service: "count", call: answer})
	status := make(chan []ReplicaStatus, 1)
	s.box.Put(statusEvent{status}) // in the same turn, before any timer
	close(freeze.until)
	if !leads(<-status, w.group.Group) {
		t.Fatal("the old leader knows already that it leads no more: this test shows nothing")
	}
	select {
	case b := <-answer:
		if r, err := old.groups.decode.reply(b); err == nil && r.status == pb.Status_OK {
			t.Fatalf("it answered %d after 2 was acknowledged", binary.BigEndian.Uint64(r.data))
		}
	default:
	}
	w.lose(nil)
	got, err = old.groups.NewClient().Query(ctx, w.key, "count", nil)
	if sum := sumOf(t, got, err); sum != 2 {
		t.Errorf("sum %d in the end", sum)
	}
}

func leads(all []ReplicaStatus, g order.GroupID) bool {
	for _, r := range all {
		if r.Group == g {
			return r.Status.Leading
		}
	}
	return false
}
