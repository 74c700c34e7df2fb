package dht

import (
	"errors"
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"

	"latchkey/dht/keyspace"
)

// reachability returns what tells h's bus how reachable it is, as its AutoNAT would.
func reachability(t *testing.T, h host.Host) func(network.Reachability) {
	t.Helper()
	e, err := h.EventBus().Emitter(new(event.EvtLocalReachabilityChanged), eventbus.Stateful)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return func(r network.Reachability) {
		t.Helper()
		if err := e.Emit(event.EvtLocalReachabilityChanged{Reachability: r}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAutoModeHostsWhileReachable(t *testing.T) {
	os := mesh(t, 3, nil)
	h := newHost(t, 9)
	becomes := reachability(t, h)
	modes := make(chan bool, 8)
	auto := newOverlay(t, h, func(o *Overlay) { o.OnMode(func(hosting bool) { modes <- hosting }) },
		WithAutoMode(), WithBootstrap(infoOf(os[0].host)))
	if err := auto.WaitPeers(within(t), 3); err != nil {
		t.Fatal(err)
	}
	const at = keyspace.Preimage("k")
	all := append(slices.Clone(os), auto)
	sees := func(o *Overlay, members []*Overlay) func() bool {
		return func() bool {
			infos, err := o.ReplicaSet(t.Context(), at, 4)
			return err == nil && slices.Equal(ids(infos), trueSet(members, at, 4))
		}
	}
	everybodySees := func(members []*Overlay) {
		t.Helper()
		for i, o := range all {
			eventually(t, "the right replica set at node "+string(rune('0'+i)), sees(o, members))
		}
	}

	if auto.Hosting() || !auto.Auto() || auto.Reachability() != network.ReachabilityUnknown {
		t.Errorf("at first: hosting %v, auto %v, %v", auto.Hosting(), auto.Auto(), auto.Reachability())
	}
	everybodySees(os)
	for _, o := range os { // those who could be in a set know who is not
		if o.kad.RoutingTable().Find(auto.Self()) != "" {
			t.Errorf("a node in client mode is in the routing table of %s", o.Self())
		}
	}

	becomes(network.ReachabilityPublic)
	if hosting := <-modes; !hosting || !auto.Hosting() || auto.Reachability() != network.ReachabilityPublic {
		t.Errorf("reachable: told %v, hosting %v, %v", hosting, auto.Hosting(), auto.Reachability())
	}
	everybodySees(all)

	becomes(network.ReachabilityPublic) // no change
	becomes(network.ReachabilityPrivate)
	if hosting := <-modes; hosting || auto.Hosting() || auto.Reachability() != network.ReachabilityPrivate {
		t.Errorf("no longer reachable: told %v, hosting %v, %v", hosting, auto.Hosting(), auto.Reachability())
	}
	everybodySees(os)

	becomes(network.ReachabilityUnknown) // a client as before
	becomes(network.ReachabilityPublic)
	if hosting := <-modes; !hosting {
		t.Error("told that it hosts nothing when it was reachable again")
	}
	everybodySees(all)
}

func TestModesThatAreChosenDoNotFollowReachability(t *testing.T) {
	h := newHost(t, 1)
	becomes := reachability(t, h)
	server := newOverlay(t, h, func(o *Overlay) { o.OnMode(func(bool) { t.Error("a server changed its mode") }) })
	becomes(network.ReachabilityPrivate)
	eventually(t, "the event has been seen", func() bool { return server.Reachability() == network.ReachabilityPrivate })
	if !server.Hosting() || server.Auto() {
		t.Error("a server stopped hosting")
	}

	h = newHost(t, 2)
	becomes = reachability(t, h)
	client := newOverlay(t, h, func(o *Overlay) { o.OnMode(func(bool) { t.Error("a client changed its mode") }) }, WithClientMode(), WithAutoMode())
	becomes(network.ReachabilityPublic)
	eventually(t, "the event has been seen", func() bool { return client.Reachability() == network.ReachabilityPublic })
	if client.Hosting() || client.Auto() {
		t.Error("a client began to host")
	}
	if _, err := client.ReplicaSet(within(t), "k", 1); !errors.Is(err, ErrLookup) {
		t.Errorf("a client alone is in no replica set: %v", err)
	}
}
