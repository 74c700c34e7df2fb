package node_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"

	"latchkey/lockservice"
	"latchkey/node"
)

// A program that has libp2p hosts already puts a latchkey node on each and takes a lock by name. In real life every host is
// a program of its own; they share the genesis document, and nothing else.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	// The hosts an application has. Latchkey leaves their other protocols alone.
	var hosts []host.Host
	for range 3 {
		h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"))
		if err != nil {
			log.Fatal(err)
		}
		defer h.Close()
		hosts = append(hosts, h)
	}

	// One of them founds the overlay, once. The others need the document only.
	genesis, store, err := node.Found(hosts[0], node.FoundOptions{Name: "example"})
	if err != nil {
		log.Fatal(err)
	}
	var nodes []*node.Node
	for i, h := range hosts {
		opts := []node.Option{node.WithOverlay(genesis)}
		if i == 0 {
			opts = append(opts, node.WithStore(store))
		}
		n, err := node.New(h, opts...)
		if err != nil {
			log.Fatal(err)
		}
		defer n.Close()
		if err := n.Start(ctx); err != nil {
			log.Fatal(err)
		}
		nodes = append(nodes, n)
	}

	lock, err := nodes[1].Locks().NetworkLock(ctx, "nightly-build")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("held:", lock.Name())

	// Nobody else gets it meanwhile, on whichever host they ask.
	_, err = nodes[2].Locks().TryLock(ctx, "nightly-build")
	fmt.Println("another peer is refused:", errors.Is(err, lockservice.ErrLocked))

	first := lock.Token()
	if err := lock.Release(ctx); err != nil {
		log.Fatal(err)
	}
	lock, err = nodes[2].Locks().NetworkLock(ctx, "nightly-build")
	if err != nil {
		log.Fatal(err)
	}
	defer lock.Release(ctx)
	fmt.Println("the token rose:", lock.Token() > first)

	// Output:
	// held: nightly-build
	// another peer is refused: true
	// the token rose: true
}
