package placement

import (
	"crypto/ed25519"
	"fmt"
	"testing"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

// host returns the i-th peer of the tests, with a store of its own.
func host(i int) Host {
	h := Host{Peer: Peer{ID: fmt.Sprintf("peer-%02d", i), Addrs: []string{fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", 4000+i)}}}
	h.Store[0], h.Store[15] = byte(i+1), 0xee
	return h
}

func hosts(n int) []Host {
	list := make([]Host, n)
	for i := range list {
		list[i] = host(i)
	}
	return list
}

// genesis returns a valid document with n founders and f = 1.
func genesis(n int) Genesis {
	g := Defaults()
	g.Name, g.F, g.Founders = "test", 1, hosts(n)
	g.RootKey = make(ed25519.PublicKey, ed25519.PublicKeySize)
	g.Nonce[3] = 9
	return g
}

// prefix returns the i-th prefix of the tests' depth.
func prefix(i int) keyspace.Prefix {
	return keyspace.PrefixOf(keyspace.Key{byte(i)}, DepthDefault)
}

func mustEncode(t testing.TB, c Command) []byte {
	t.Helper()
	b, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// apply executes c and returns its result.
func apply(t testing.TB, d *Directory, c Command) Result {
	t.Helper()
	res, err := DecodeResult(d.Apply(0, mustEncode(t, c)))
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func storeID(b byte) (s order.StoreID) { s[0] = b; return s }
