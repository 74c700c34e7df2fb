package coherence_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/libp2p/go-libp2p"

	"latchkey/coherence"
	"latchkey/node"
)

// Two programs, each on a libp2p host of its own, share an object. In real life they run on different machines; they share the genesis
// document, and nothing else.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	var apps []*coherence.App
	var opts []node.Option
	for i := range 2 {
		host, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"))
		if err != nil {
			log.Fatal(err)
		}
		defer host.Close()
		if i == 0 { // founds the overlay, once; the others need the document only
			genesis, store, err := node.Found(host, node.FoundOptions{Name: "example"})
			if err != nil {
				log.Fatal(err)
			}
			opts = []node.Option{node.WithOverlay(genesis), node.WithStore(store)}
		}
		n, err := node.New(host, opts...)
		if err != nil {
			log.Fatal(err)
		}
		defer n.Close()
		if err := n.Start(ctx); err != nil {
			log.Fatal(err)
		}
		opts = opts[:1]

		app, err := n.Objects().Open(ctx, "counters")
		if err != nil {
			log.Fatal(err)
		}
		apps = append(apps, app)
	}

	// Both count, and neither loses an increment of the other.
	for _, app := range apps {
		visits := coherence.NewVar(app.Object("site/visits"), coherence.JSON[int]{})
		for range 3 {
			if err := visits.Update(ctx, func(n int) (int, error) { return n + 1, nil }); err != nil {
				log.Fatal(err)
			}
		}
	}

	// A copy is read in place, without a message, until somebody writes the object.
	err := apps[0].Object("site/visits").View(ctx, func(value []byte) error {
		fmt.Printf("%s visits\n", value)
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output:
	// 6 visits
}
