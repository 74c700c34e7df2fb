package replicagroup

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

// An accusation is as good as who brings it forward.
func TestOnlyFellowsAreBelievedThatAStoreRunsTwice(t *testing.T) {
	w := newWorld(t, 3, 1)
	p, fellow := w.peers[0], w.peers[1]
	stranger, err := peer.Decode("12D3KooWRMjeT3GuYch6bQJetZyFu6zcGc9bwcTz6VJWNV6wbbvU")
	if err != nil {
		t.Fatal(err)
	}
	p.groups.Accused(stranger)
	c := p.groups.NewClient()
	ctx := deadline(t, 20*time.Second)
	if _, err := c.Do(ctx, keyspace.Preimage("k").Key(), "count", number(1)); err != nil || p.groups.Err() != nil {
		t.Fatalf("accused by a stranger: %v, %v", err, p.groups.Err())
	}
	for range 2 {
		p.groups.Accused(fellow.host.ID())
	}
	select {
	case <-p.groups.Done():
	case <-ctx.Done():
		t.Fatal("accused by a fellow, and it goes on")
	}
	err = p.groups.Err()
	for _, says := range []string{fellow.host.ID().String(), p.store.ID().String(), "--restored"} {
		if !errors.Is(err, ErrTwin) || !strings.Contains(err.Error(), says) {
			t.Errorf("it stops with %v, which is to say %q", err, says)
		}
	}
	other := fellow.groups.NewClient()
	if _, err := other.Do(ctx, keyspace.Preimage("k").Key(), "count", number(1)); err != nil {
		t.Errorf("the others: %v", err)
	}

	// A client has no store that could run twice.
	client, err := New(Config{Genesis: w.genesis, Overlay: told{must(dht.New(w.peers[2].host, dht.WithOverlayID(w.genesis.ID()))), new(testPeer)}})
	if err != nil {
		t.Fatal(err)
	}
	client.Accused(fellow.host.ID())
	if client.Err() != nil {
		t.Errorf("a client stops: %v", client.Err())
	}
	client.Close()
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// What is said in the name of a store that runs twice does not reach an engine, whoever is its peer's fellow.
func TestMessagesOfADistrustedStoreAreDropped(t *testing.T) {
	w := newWorld(t, 1, 0)
	from := w.peers[0].host.ID()
	bad, good := order.StoreID{1}, order.StoreID{2}
	h, err := New(Config{Genesis: w.genesis, Overlay: told{must(dht.New(w.peers[0].host, dht.WithOverlayID(w.genesis.ID()))), new(testPeer)},
		Store: NewMemoryStore(), Distrusts: func(p peer.ID, s order.StoreID) bool { return p == from && s == bad }})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	h.fellows.Store(&map[peer.ID]bool{from: true})
	g := w.genesis.RootGroup()
	for i, s := range []order.StoreID{bad, good, bad} {
		msg := appendEngineMessage(nil, g, 1, 2, s, order.StoreID{3}, []byte("x"))
		if err := h.handleEngine(&dht.Request{From: from, Data: msg}); err != nil {
			t.Fatal(err)
		}
		if n := h.Counters().StrayMessages; n != uint64(i/2+1) {
			t.Errorf("after %d messages %d were dropped", i+1, n)
		}
	}
	if !h.distrusted(from, bad) || h.distrusted(from, good) || h.distrusted("another", bad) {
		t.Error("the wrong ones are distrusted")
	}
	if w.peers[0].groups.distrusted(from, bad) {
		t.Error("a host that knows of no copies distrusts somebody")
	}
}

// Every handle on a memory store is another start of it.
func TestAMemoryStoreCountsItsStarts(t *testing.T) {
	s := NewMemoryStore()
	seen := map[uint64]bool{}
	for i := range uint64(5) {
		b := s.BootNonce()
		if b.Count != i+1 || b.Nonce == 0 || seen[b.Nonce] || b != s.BootNonce() {
			t.Errorf("start %d: %+v, and then %+v", i+1, b, s.BootNonce())
		}
		seen[b.Nonce] = true
		s = s.Detach()
	}
}
