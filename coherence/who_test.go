package coherence

import (
	"testing"

	"latchkey/dht/keyspace"
)

func FuzzWho(f *testing.F) {
	f.Add([]byte(`{"ID":"12D3KooWC8jdwAgowRTSgAS6vNHg2yBaofRiJAHcarxueXj4B43U","Addrs":["/ip4/127.0.0.1/tcp/1"]}`))
	f.Add([]byte(`{"ID":"x"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if info, err := decodeWho(keyspace.NodeID{1}, b); err == nil {
			t.Errorf("%v is taken for a node whose id is no hash", info)
		}
	})
}
