package testnet

import (
	"context"
	"testing"
	"time"
)

func up(t testing.TB, opts Options) *Network {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	n, err := Up(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

func TestSmoke(t *testing.T) {
	start := time.Now()
	n := up(t, Options{})
	t.Log("up", time.Since(start))
	p, _ := n.Peer(0)
	h, err := p.Node().Locks().Lock(t.Context(), "x")
	h.Release(t.Context())
	t.Log(h, err, time.Since(start))
	start = time.Now()
	n.Close()
	t.Log("closed", time.Since(start))
}
