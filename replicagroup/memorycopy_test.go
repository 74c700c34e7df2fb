package replicagroup

import (
	"reflect"
	"sync"
	"testing"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

func TestACopyOfMemoryHoldsWhatTheStoreDid(t *testing.T) {
	s := NewMemoryStore()
	g, gone := order.GroupID{Gen: 1}, order.GroupID{Gen: 2}
	entry := func(i uint64) order.Record {
		return order.Record{Kind: order.RecordEntry, Index: i, Data: []byte{byte(i)}}
	}
	for _, id := range []order.GroupID{g, gone} {
		if err := s.Create(Identity{Group: id, Self: 7, Descriptor: []byte("d")}); err != nil {
			t.Fatal(err)
		}
	}
	write := func(recs ...order.Record) {
		t.Helper()
		if err := s.Write([]Write{{Group: g, Records: recs}}, true); err != nil {
			t.Fatal(err)
		}
	}
	write(order.Record{Kind: order.RecordState, Data: []byte("state")}, entry(5), entry(6), order.Record{Kind: order.RecordSnapshot, Index: 5, Data: []byte("snap")}, entry(7))
	if err := s.Retire(gone); err != nil {
		t.Fatal(err)
	}
	images, err := CopyMemory(s)
	if err != nil {
		t.Fatal(err)
	}
	want, err := s.Replicas()
	if err != nil {
		t.Fatal(err)
	}
	write(entry(8)) // later
	c, err := NewMemoryStoreOf(images[0])
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.Replicas(); err != nil || !reflect.DeepEqual(got, want) || c.ID() != s.ID() {
		t.Errorf("store %v with %+v, %v; want %v with %+v", c.ID(), got, err, s.ID(), want)
	}
	if before, after := s.BootNonce(), c.BootNonce(); after.Count <= before.Count || after.Nonce == before.Nonce {
		t.Errorf("start %+v after %+v", after, before)
	}
	if err := c.Create(Identity{Group: gone, Self: 7}); err == nil {
		t.Error("the copy has forgotten a retired replica")
	}
	if err := c.Create(Identity{Group: gone, Self: 8}); err != nil {
		t.Error(err)
	}

	old := s
	s = s.Detach()
	if _, err := CopyMemory(NewMemoryStore(), old); err == nil {
		t.Error("a handle that was detached could be copied")
	}
	if _, err := s.Replicas(); err != nil {
		t.Error("the failed copy left a store locked")
	}
}

func TestAnImageThatIsNoneIsRefused(t *testing.T) {
	id := Identity{Group: order.GroupID{Gen: 1}, Self: 1}
	for what, m := range map[string]MemoryImage{
		"a group twice": {Replicas: []StoredReplica{{Identity: id}, {Identity: id}}},
		"a long prefix": {Replicas: []StoredReplica{{Identity: Identity{Group: order.GroupID{Prefix: keyspace.Prefix{Len: 257}}, Self: 1}}}},
		"a gap": {Replicas: []StoredReplica{{Identity: id, Image: order.Image{Entries: []order.Record{
			{Kind: order.RecordEntry, Index: 1}, {Kind: order.RecordEntry, Index: 3}}}}}},
		"no record": {Replicas: []StoredReplica{{Identity: id, Image: order.Image{Entries: []order.Record{{Kind: 99}}}}}},
	} {
		if _, err := NewMemoryStoreOf(m); err == nil {
			t.Errorf("%s: taken", what)
		}
	}
}

// Somebody who tells others what he has stored never appears to have forgotten it.
func TestStoresAreCopiedAsOfOneMoment(t *testing.T) {
	first, second := NewMemoryStore(), NewMemoryStore()
	g := order.GroupID{Gen: 1}
	for _, s := range []*MemoryStore{first, second} {
		if err := s.Create(Identity{Group: g, Self: 1}); err != nil {
			t.Fatal(err)
		}
	}
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := uint64(1); ; i++ {
			for _, s := range []*MemoryStore{first, second} {
				// A state, not an entry: what is copied stays small.
				if err := s.Write([]Write{{Group: g, Records: []order.Record{{Kind: order.RecordState, Data: []byte{byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)}}}}}, true); err != nil {
					t.Error(err)
				}
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	at := func(m MemoryImage) (n uint64) {
		for _, b := range m.Replicas[0].Image.State {
			n = n<<8 | uint64(b)
		}
		return n
	}
	last := uint64(0)
	for i := 0; i < 2000 || last < 2000; i++ {
		stores := []*MemoryStore{first, second}
		if i%2 == 1 {
			stores = []*MemoryStore{second, first}
		}
		images, err := CopyMemory(stores...)
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 1 {
			images[0], images[1] = images[1], images[0]
		}
		if a, b := at(images[0]), at(images[1]); b > a || a > b+1 {
			t.Fatalf("the second has heard of %d, the first knows of %d", b, a)
		} else {
			last = b
		}
	}
	close(stop)
	writer.Wait()
}
