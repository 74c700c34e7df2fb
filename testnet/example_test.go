package testnet_test

import (
	"context"
	"fmt"

	"latchkey/testnet"
)

// An application's own test can take its peers from a testnet, and kill them.
func Example() {
	ctx := context.Background()
	net, err := testnet.Up(ctx, testnet.Options{N: 4})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer net.Close()

	for _, step := range []func() error{
		func() error { return use(ctx, net, 3) },
		func() error { return net.Kill(1) },
		func() error { return use(ctx, net, 3) },
		func() error { return net.Restart(ctx, 1) },
		func() error { return use(ctx, net, 1) },
	} {
		if err := step(); err != nil {
			fmt.Println(err)
			return
		}
	}
	// Output:
	// peer 3 holds the lock
	// peer 3 holds the lock
	// peer 1 holds the lock
}

// use takes a lock through peer i.
func use(ctx context.Context, net *testnet.Network, i int) error {
	p, err := net.Peer(i)
	if err != nil {
		return err
	}
	lock, err := p.Node().Locks().NetworkLock(ctx, "nightly-build")
	if err != nil {
		return err
	}
	fmt.Printf("peer %d holds the lock\n", i)
	return lock.Release(ctx)
}
