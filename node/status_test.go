package node

import (
	"errors"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht"
	"latchkey/lockservice"
	"latchkey/node/config"
)

func TestStatusTellsHowAPeerIsDoing(t *testing.T) {
	test := profile(t, config.Test, anyTCP)
	var r Refusals
	founder := hostOf(t, test, key(1), &r)
	g, store, err := Found(founder, FoundOptions{Name: "farm"})
	if err != nil {
		t.Fatal(err)
	}
	// A port that nobody listens at: that of a host which has gone.
	dead := hostOf(t, test, key(1), nil)
	gone := info(dead)
	dead.Close()
	n, err := New(founder, WithOverlay(g), WithStore(store), WithRefusals(&r), WithBootstrap(gone))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	client, err := New(hostOf(t, test, key(1), nil), WithOverlay(g), ClientOnly())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if err := client.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := client.Overlay().WaitPeers(within(t, waitMax), 1); err != nil {
		t.Fatal(err)
	}
	hold, err := client.Locks().Lock(within(t, waitMax), "one")
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Release(t.Context())
	stranger := hostOf(t, test, key(2), nil)
	if err := stranger.Connect(within(t, time.Second), info(founder)); err == nil {
		t.Fatal("a stranger got in")
	}
	stranger.Close()

	eventually(t, "the dead bootstrap peer was tried and the stranger counted", func() bool {
		return !n.Overlay().Bootstrap()[0].At.IsZero() && n.Refused()[RefusedHandshake] == 1
	})
	s, err := n.Status(within(t, waitMax))
	if err != nil {
		t.Fatal(err)
	}
	if s.Peer != n.ID().String() || s.Overlay != g.ID().Hex() || s.OverlayName != "farm" || time.Since(s.Started) > time.Minute {
		t.Errorf("who: %+v", s)
	}
	if s.Mode != "server" || !s.Hosting || s.Reachability != "unknown" || s.Groups != 2 || s.GroupsLeaderless != 0 {
		t.Errorf("what: %+v", s)
	}
	if s.PeersConnected != 1 || s.PeersKnown != 1 {
		t.Errorf("whom it knows: %+v", s)
	}
	if len(s.Refused) != 1 || s.Refused[0].Reason != "handshake" || s.Refused[0].Count != 1 {
		t.Errorf("whom it refused: %+v", s.Refused)
	}
	if b := s.Bootstrap; len(b) != 1 || b[0].Peer != gone.ID.String() || b[0].Connected || b[0].Tried.IsZero() || b[0].Addrs[0] != gone.Addrs[0].String() ||
		!strings.Contains(b[0].Error, "refused") || strings.ContainsAny(b[0].Error, "\n\t") {
		t.Errorf("bootstrap: %+v", b)
	}

	s, err = client.Status(within(t, waitMax))
	if err != nil || s.Mode != "client" || s.Hosting || s.Groups != 0 || len(s.Bootstrap) != 1 || !s.Bootstrap[0].Connected || s.Bootstrap[0].Error != "" {
		t.Errorf("the client: %+v, %v", s, err)
	}
}

func TestABootstrapPeerThatHasConnectedHasNoErrorAnyMore(t *testing.T) {
	failed := dht.BootstrapPeer{Info: peer.AddrInfo{ID: "x"}, At: time.Now(), Err: errors.New("refused\nby  all")}
	if p := bootstrapStatus(failed, false); p.Connected || p.Error != "refused by all" || !p.Tried.Equal(failed.At) {
		t.Errorf("while it is away: %+v", p)
	}
	if p := bootstrapStatus(failed, true); !p.Connected || p.Error != "" || !p.Tried.Equal(failed.At) {
		t.Errorf("once it is there: %+v", p)
	}
}

func TestANodeInAutoModeTakesReplicasWhileItIsReached(t *testing.T) {
	t.Parallel()
	test := profile(t, config.Test, anyTCP)
	var r Refusals
	founder, start := publicOverlay(t, hostOf(t, test, nil, &r), &r)
	h := hostOf(t, test, nil, nil)
	n := start(h, new(Refusals), WithAutoMode())
	if err := n.Overlay().WaitPeers(within(t, waitMax), 1); err != nil {
		t.Fatal(err)
	}
	// With f = 0 a group has one member, the closest peer that hosts.
	names := func(asked string) (here int) {
		t.Helper()
		for i := range 12 {
			k, err := founder.Key(within(t, waitMax), asked+strings.Repeat("x", i))
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range k.Group.Members {
				if m == n.ID().String() {
					here++
				}
			}
		}
		return here
	}
	groups := func() int {
		t.Helper()
		s, err := n.Status(within(t, waitMax))
		if err != nil {
			t.Fatal(err)
		}
		return s.Groups
	}
	if here := names("a"); here != 0 || groups() != 0 {
		t.Errorf("%d groups at a peer that nobody reaches, it says %d", here, groups())
	}
	becomes(t, h, network.ReachabilityPublic)
	eventually(t, "the founder sees a server", func() bool { return founder.Overlay().DHT().RoutingTable().Find(n.ID()) != "" })
	eventually(t, "groups are made there", func() bool { return names("b"+time.Now().String()) > 0 && groups() > 0 })

	becomes(t, h, network.ReachabilityPrivate)
	eventually(t, "the founder sees no server", func() bool {
		return founder.Overlay().DHT().RoutingTable().Find(n.ID()) == "" && !n.Overlay().Hosting()
	})
	had := groups()
	names("c")
	if groups() != had {
		t.Errorf("it has %d groups now, and had %d when it went out of reach", groups(), had)
	}
}

func TestRevisionOfABuild(t *testing.T) {
	for want, settings := range map[string][]debug.BuildSetting{
		"":                   {{Key: "vcs.modified", Value: "true"}},
		"0123456789ab":       {{Key: "vcs.revision", Value: "0123456789abcdef"}, {Key: "vcs.modified", Value: "false"}},
		"0123456789ab+dirty": {{Key: "vcs.modified", Value: "true"}, {Key: "vcs.revision", Value: "0123456789abcdef"}},
		"short":              {{Key: "vcs", Value: "git"}, {Key: "vcs.revision", Value: "short"}},
	} {
		if got := revisionOf(settings); got != want {
			t.Errorf("%v: %q, not %q", settings, got, want)
		}
	}
}

// The root is gone, and with it whoever could make or find the group of a key.
func TestKeyWithoutARootSaysWhatToDo(t *testing.T) {
	t.Parallel()
	test := profile(t, config.Test, anyTCP)
	founder := hostOf(t, test, key(1), nil)
	g, store, err := Found(founder, FoundOptions{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := New(founder, WithOverlay(g), WithStore(store))
	if err != nil {
		t.Fatal(err)
	}
	n, err := New(hostOf(t, test, key(1), nil), WithOverlay(g))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []*Node{f, n} {
		t.Cleanup(func() { n.Close() })
		if err := n.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Overlay().WaitPeers(within(t, waitMax), 1); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	founder.Close()
	_, err = n.Key(within(t, waitMax), "lost")
	for _, says := range []string{`"lost"`, "the root", "start peers that are down"} {
		if !errors.Is(err, lockservice.ErrNoQuorum) || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, which is to say %q", err, says)
		}
	}
}
