package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	kaddht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/discovery"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	routingdiscovery "github.com/libp2p/go-libp2p/p2p/discovery/routing"

	"latchkey/node/allowlist"
	"latchkey/replicagroup"
	"latchkey/replicagroup/placement"
)

const applicationPrefix protocol.ID = "/application"

// application returns the Kademlia network of an application on its host. With peers to begin with it only asks: others do not find its
// peer there, but for the word that it leaves.
func application(t *testing.T, h host.Host, begin ...host.Host) *kaddht.IpfsDHT {
	t.Helper()
	mode := kaddht.ModeServer
	var first []peer.AddrInfo
	for _, b := range begin {
		mode, first = kaddht.ModeClient, append(first, info(b))
	}
	d, err := kaddht.New(h, kaddht.Mode(mode), kaddht.ProtocolPrefix(applicationPrefix), kaddht.BootstrapPeers(first...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// Peers that know the overlay's document, and no address of each other, meet by way of a Kademlia network of their application, whose
// server speaks no latchkey. Those of another overlay in the same network are not met, and who leaves word without being on the
// allow-list is not dialled.
func TestPeersMeetThroughTheApplicationsKademlia(t *testing.T) {
	t.Parallel()
	server := newHost(t)
	application(t, server)
	a, b, c, liar := newHost(t), newHost(t), newHost(t), newHost(t)
	one := 1
	genesis, root, err := drawGenesis(placement.Peer{ID: string(a.ID())}, FoundOptions{Name: "met", F: &one}) // it names no address
	if err != nil {
		t.Fatal(err)
	}
	key, err := allowlist.NewKey(genesis, root, 1)
	if err != nil {
		t.Fatal(err)
	}
	list, err := key.Found(nil, []peer.ID{a.ID(), b.ID()}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	store := replicagroup.NewMemoryStoreAs(genesis.Founders[0].Store)
	if err := replicagroup.Found(store, genesis, placement.Peer{ID: string(a.ID())}.Node()); err != nil {
		t.Fatal(err)
	}
	// Somebody who is not on the list leaves word first, so that whoever finds anybody has found it too.
	word := routingdiscovery.NewRoutingDiscovery(application(t, liar, server))
	eventually(t, "the liar leaves word", func() bool {
		_, err := word.Advertise(within(t, waitMax), rendezvousName(genesis.ID()))
		return err == nil
	})
	run := func(h host.Host, opts ...Option) *Node {
		t.Helper()
		n, err := New(h, append(opts, WithRendezvous(application(t, h, server)))...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		if err := n.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		return n
	}
	listed := func() Option {
		x, err := NewAccess(genesis, list.Document(), nil)
		if err != nil {
			t.Fatal(err)
		}
		return WithAccess(x)
	}
	other, otherStore, err := Found(c, FoundOptions{Name: "other"})
	if err != nil {
		t.Fatal(err)
	}
	nodes := []*Node{run(a, WithOverlay(genesis), WithStore(store), listed()), run(b, WithOverlay(genesis), listed())}
	stranger := run(c, WithOverlay(other), WithStore(otherStore))
	everybody(t, nodes...)
	searched := stranger.rendezvous.searches.Load()
	eventually(t, "the other overlay's peer has looked", func() bool { return stranger.rendezvous.searches.Load() > searched })
	for _, h := range []host.Host{a, b} {
		if connected(h, liar) {
			t.Error("who is not on the allow-list was dialled")
		}
	}
	if n := stranger.rendezvous.finds.Load(); n > 0 {
		t.Errorf("a peer of another overlay has found %d", n)
	}
	if len(nodes[0].Refused())+len(nodes[1].Refused()) > 0 {
		t.Errorf("refused: %v, %v", nodes[0].Refused(), nodes[1].Refused())
	}
	// The application's Kademlia network goes on when the node has gone.
	if err := errors.Join(nodes[1].Close(), nodes[1].Close()); err != nil {
		t.Error(err)
	}
	nodes[1].rendezvous.start() // does nothing
}

func TestAKademliaNetworkThatIsNoRendezvousIsRefused(t *testing.T) {
	h, other := newHost(t), newHost(t)
	g, _, err := Found(h, FoundOptions{})
	if err != nil {
		t.Fatal(err)
	}
	without, err := kaddht.New(h, kaddht.Mode(kaddht.ModeServer), kaddht.ProtocolPrefix(applicationPrefix), kaddht.DisableProviders())
	if err != nil {
		t.Fatal(err)
	}
	defer without.Close()
	for what, d := range map[string]*kaddht.IpfsDHT{"of another host": application(t, other), "without providers": without} {
		if _, err := New(h, WithOverlay(g), ClientOnly(), WithRendezvous(d)); !errors.Is(err, ErrRendezvous) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// placeOfWord is a rendezvous as a test would have it.
type placeOfWord struct {
	mu       sync.Mutex
	told     []time.Time // of advertisements
	asked    []time.Time // of searches
	err      error       // of advertisements
	hangs    bool        // both, until their contexts end
	there    []peer.AddrInfo
	returned int // peers that were taken
}

func (p *placeOfWord) Advertise(ctx context.Context, name string, _ ...discovery.Option) (time.Duration, error) {
	p.mu.Lock()
	p.told = append(p.told, time.Now())
	err, hangs := p.err, p.hangs
	p.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	return 3 * time.Hour, err
}

func (p *placeOfWord) FindPeers(ctx context.Context, name string, _ ...discovery.Option) (<-chan peer.AddrInfo, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, time.Now())
	out := make(chan peer.AddrInfo)
	there, hangs := p.there, p.hangs
	go func() {
		defer close(out)
		if hangs {
			<-ctx.Done()
		}
		for _, q := range there {
			select {
			case out <- q:
				p.mu.Lock()
				p.returned++
				p.mu.Unlock()
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// gaps are the times between what was done.
func gaps(at []time.Time) []time.Duration {
	var all []time.Duration
	for i := range at[1:] {
		all = append(all, at[i+1].Sub(at[i]))
	}
	return all
}

// about reports whether the first of the gaps are what is wanted, a quarter more or less.
func about(got []time.Duration, want ...time.Duration) bool {
	if len(got) < len(want) {
		return false
	}
	for i, w := range want {
		if got[i] < w*3/4 || got[i] > w*5/4 {
			return false
		}
	}
	return true
}

func TestPausesOfTheRendezvousGrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		alone, shown := true, true
		is := func(what *bool) func() bool {
			return func() bool { mu.Lock(); defer mu.Unlock(); return *what }
		}
		set := func(what *bool, to bool) { mu.Lock(); defer mu.Unlock(); *what = to }
		place := &placeOfWord{err: errors.New("nobody there")}
		r := &rendezvous{at: place, name: "n", advertises: is(&shown), alone: is(&alone), dials: func(peer.ID) bool { return true }, found: func(peer.AddrInfo) {}}
		r.start()
		r.start() // once is enough
		defer r.stop()
		take := func() (told, asked []time.Time) {
			place.mu.Lock()
			defer place.mu.Unlock()
			told, asked, place.told, place.asked = place.told, place.asked, nil, nil
			return told, asked
		}
		time.Sleep(24 * time.Hour)
		const s = time.Second
		growing := []time.Duration{s, 2 * s, 4 * s, 8 * s, 16 * s, 32 * s, 64 * s, 128 * s, 256 * s, 512 * s, rendezvousMax, rendezvousMax}
		told, asked := take()
		if !about(gaps(told), growing...) || !about(gaps(asked), growing...) {
			t.Errorf("without success: advertised after %v, searched after %v", gaps(told)[:12], gaps(asked)[:12])
		}
		if most := 24*6*4/3 + 12; len(told) > most || len(asked) > most {
			t.Errorf("%d advertisements and %d searches in a day", len(told), len(asked))
		}
		place.mu.Lock()
		place.err = nil
		place.mu.Unlock()
		set(&alone, false)
		time.Sleep(48 * time.Hour)
		told, asked = take()
		const m = time.Minute
		if renew := 3 * time.Hour / 8 * 7; !about(gaps(told), m, 2*m, 4*m, 8*m, 16*m, 32*m, 64*m, 128*m, renew, renew) {
			t.Errorf("with success: advertised after %v", gaps(told))
		}
		if !about(gaps(asked)[1:], rendezvousEvery, rendezvousEvery, rendezvousEvery) {
			t.Errorf("in company: searched after %v", gaps(asked)[:4])
		}
		// Left alone it searches at once, and as at the beginning; who is not to be found leaves no word.
		set(&alone, true)
		set(&shown, false)
		left := time.Now()
		time.Sleep(time.Minute)
		_, asked = take()
		if len(asked) < 3 || asked[0].Sub(left) > rendezvousLook || !about(gaps(asked), s, 2*s, 4*s) {
			t.Errorf("left alone: searched %v", asked)
		}
		time.Sleep(24 * time.Hour)
		if told, _ = take(); len(told) > 1 {
			t.Errorf("%d advertisements of who is not to be found", len(told))
		}
	})
}

func TestWhatTheRendezvousTellsIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		place := new(placeOfWord)
		for i := range 1000 {
			place.there = append(place.there, peer.AddrInfo{ID: peer.ID(fmt.Sprint(i))})
		}
		var found []peer.ID
		r := &rendezvous{at: place, name: "n", dials: func(p peer.ID) bool { return p != "1" }, found: func(p peer.AddrInfo) { found = append(found, p.ID) }}
		r.look(t.Context())
		synctest.Wait()
		if len(found) != rendezvousTake-1 || slices.Contains(found, "1") || place.returned != rendezvousTake {
			t.Errorf("%d of %d peers found: %v", len(found), place.returned, found)
		}
		place.hangs = true
		began := time.Now()
		r.look(t.Context())
		if took := time.Since(began); took != rendezvousTimeout {
			t.Errorf("a search that does not end took %v", took)
		}
		// Closing waits for nobody.
		never := func() bool { return false }
		r.alone, r.advertises = never, func() bool { return true }
		r.start()
		synctest.Wait()
		began = time.Now()
		r.stop()
		r.stop()
		r.start()
		if time.Since(began) != 0 || len(place.told) != 1 || len(place.asked) != 3 {
			t.Errorf("stopping took %v, after %d advertisements and %d searches", time.Since(began), len(place.told), len(place.asked))
		}
		var none *rendezvous
		none.start()
		none.stop()
	})
}
