package coherence_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"latchkey/coherence"
	"latchkey/testnet"
)

// A durable object is kept by its group: it needs nobody to have it open, and outlives any peer. Here are three peers in one process.
func ExampleDurable() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	net, err := testnet.Up(ctx, testnet.Options{N: 3, Depth: 4})
	if err != nil {
		log.Fatal(err)
	}
	defer net.Close()
	var apps []*coherence.Durable
	for i := range 3 {
		p, err := net.Peer(i)
		if err != nil {
			log.Fatal(err)
		}
		app, err := p.Node().Objects().Durable("shop")
		if err != nil {
			log.Fatal(err)
		}
		apps = append(apps, app)
	}

	price, err := apps[0].Object("prices/tea").Write(ctx, []byte("3.50"), coherence.IfAbsent())
	if err != nil {
		log.Fatal(err)
	}
	// Who read a version writes only if it is still the one.
	if _, err := apps[1].Object("prices/tea").CompareAndSwap(ctx, price, []byte("3.80")); err != nil {
		log.Fatal(err)
	}
	_, err = apps[2].Object("prices/tea").CompareAndSwap(ctx, price, []byte("3.20"))
	fmt.Println(errors.Is(err, coherence.ErrConflict))

	// What a write has replaced nobody reads any more.
	tea, err := apps[0].Object("prices/tea").Get(ctx)
	if err != nil {
		log.Fatal(err)
	}
	all, err := apps[2].Directory("prices").List(ctx, "", 10)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s %v\n", tea, all.Names)
	// Output:
	// true
	// 3.80 [tea]
}
