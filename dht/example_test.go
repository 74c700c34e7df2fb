package dht_test

import (
	"context"
	"fmt"
	"log"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht"
)

// Two peers; whichever is closest to the key answers.
func Example() {
	ctx := context.Background()
	var seeds []peer.AddrInfo
	var last *dht.Overlay
	for range 2 {
		h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"))
		if err != nil {
			log.Fatal(err)
		}
		defer h.Close()
		o, err := dht.New(h, dht.WithOverlayID([32]byte{'e', 'x'}), dht.WithBootstrap(seeds...))
		if err != nil {
			log.Fatal(err)
		}
		o.Handle("greet", func(r *dht.Request) { r.Reply(append([]byte("hello, "), r.Data...)) })
		if err := o.Start(ctx); err != nil {
			log.Fatal(err)
		}
		defer o.Close()
		seeds = append(seeds, peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()})
		last = o
	}
	if err := last.WaitPeers(ctx, 1); err != nil {
		log.Fatal(err)
	}
	reply, err := last.Route(ctx, "nightly-build", "greet", []byte("overlay"))
	fmt.Println(string(reply), err)
	// Output: hello, overlay <nil>
}
