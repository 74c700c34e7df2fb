package replicagroup

import (
	"errors"
	"slices"
	"testing"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

func entry(i uint64, data string) order.Record {
	return order.Record{Kind: order.RecordEntry, Index: i, Data: []byte(data)}
}

func group(name string) order.GroupID {
	return order.GroupID{Prefix: keyspace.PrefixOf(keyspace.Preimage(name).Key(), 8)}
}

func write(t *testing.T, s Store, g order.GroupID, recs ...order.Record) {
	t.Helper()
	if err := s.Write([]Write{{g, recs}}, true); err != nil {
		t.Fatal(err)
	}
}

func image(t *testing.T, s Store, g order.GroupID) order.Image {
	t.Helper()
	all, err := s.Replicas()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		if r.Group == g {
			return r.Image
		}
	}
	t.Fatalf("no replica of group %v", g)
	return order.Image{}
}

func TestMemoryStoreGivesBackWhatWasPersisted(t *testing.T) {
	s, g := NewMemoryStore(), group("a")
	if err := s.Create(Identity{Group: g, Self: 1}); err != nil {
		t.Fatal(err)
	}
	write(t, s, g, order.Record{Kind: order.RecordSnapshot, Index: 10, Data: []byte("ten")})
	write(t, s, g, entry(11, "a"), entry(12, "b"), entry(13, "c"), order.Record{Kind: order.RecordState, Data: []byte("one")})
	// An entry voids all at or above it: a later leader's log wins.
	write(t, s, g, entry(12, "B"), order.Record{Kind: order.RecordState, Data: []byte("two")})
	im := image(t, s, g)
	var got []string
	for _, e := range im.Entries {
		got = append(got, string(e.Data))
	}
	if want := []string{"a", "B"}; !slices.Equal(got, want) || string(im.State) != "two" || string(im.Snapshot.Data) != "ten" {
		t.Errorf("entries %v, state %s, snapshot %s", got, im.State, im.Snapshot.Data)
	}
	write(t, s, g, entry(13, "C"), order.Record{Kind: order.RecordSnapshot, Index: 12, Data: []byte("twelve")})
	if im = image(t, s, g); len(im.Entries) != 1 || im.Entries[0].Index != 13 || im.Snapshot.Index != 12 {
		t.Errorf("after a snapshot: %d entries, snapshot at %d", len(im.Entries), im.Snapshot.Index)
	}
	write(t, s, g, order.Record{Kind: order.RecordSnapshot, Index: 50, Data: []byte("fifty")}, entry(51, "x"))
	if im = image(t, s, g); len(im.Entries) != 1 || im.Entries[0].Index != 51 {
		t.Errorf("after a snapshot beyond the log: %+v", im.Entries)
	}
}

func TestMemoryStoreRefusesGapsAndStrangers(t *testing.T) {
	s, g := NewMemoryStore(), group("a")
	if err := s.Write([]Write{{g, nil}}, true); !errors.Is(err, ErrStore) {
		t.Errorf("write to a replica that was never created: %v", err)
	}
	if err := s.Create(Identity{Group: g, Self: 2}); err != nil {
		t.Fatal(err)
	}
	for _, self := range []order.ReplicaID{1, 2} {
		if err := s.Create(Identity{Group: g, Self: self}); err == nil {
			t.Errorf("replica %d was created after replica 2", self)
		}
	}
	write(t, s, g, entry(11, "a"))
	for _, bad := range []order.Record{entry(13, "gap"), entry(10, "below"), {Kind: 99}} {
		if err := s.Write([]Write{{g, []order.Record{bad}}}, true); !errors.Is(err, ErrStore) {
			t.Errorf("record %+v: %v", bad, err)
		}
	}
}

func TestDetachedStoreTakesNothingMore(t *testing.T) {
	s, g := NewMemoryStore(), group("a")
	if err := s.Create(Identity{Group: g, Self: 1}); err != nil {
		t.Fatal(err)
	}
	write(t, s, g, entry(11, "before"))
	next := s.Detach()
	if next.ID() != s.ID() {
		t.Error("the disk changed its id")
	}
	if err := s.Write([]Write{{g, []order.Record{entry(12, "after")}}}, true); !errors.Is(err, ErrStore) {
		t.Errorf("write of a dead peer: %v", err)
	}
	if err := s.Create(Identity{Group: group("b"), Self: 1}); !errors.Is(err, ErrStore) {
		t.Errorf("create of a dead peer: %v", err)
	}
	if _, err := s.Replicas(); !errors.Is(err, ErrStore) {
		t.Errorf("read of a dead peer: %v", err)
	}
	if im := image(t, next, g); len(im.Entries) != 1 {
		t.Errorf("the disk has %d entries, want the one written before", len(im.Entries))
	}
	write(t, next, g, entry(12, "restarted"))
}
