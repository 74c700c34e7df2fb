package disk

import (
	"bytes"
	"errors"
	"testing"

	"latchkey/replicagroup"
	"latchkey/replicagroup/order"
)

// TestBlobsStayBesideReplicas: what was synced is there after a reopening, what was dropped is not, and replicas are what they were.
func TestBlobsStayBesideReplicas(t *testing.T) {
	s, o := fresh(t, Options{})
	mustCreate(t, s, group("a"), 1)
	if err := s.Write([]replicagroup.Write{{Group: group("a"), Records: []order.Record{entry(1, "one")}}}, true); err != nil {
		t.Fatal(err)
	}
	space, one, two, three := [32]byte{1}, [32]byte{1}, [32]byte{2}, [32]byte{3}
	large := bytes.Repeat([]byte{7}, BlobBytesMax)
	for name, blob := range map[[32]byte][]byte{one: []byte("first"), two: large, three: {}} {
		if err := s.PutBlob(space, name, []byte{name[0]}, blob); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(s.PutBlob(space, two, []byte("anew"), nil), s.DropBlobs(space, [][32]byte{one}), s.SyncBlobs(), s.Close()); err != nil {
		t.Fatal(err)
	}
	if err := s.SyncBlobs(); !errors.Is(err, replicagroup.ErrStore) {
		t.Errorf("after Close: %v", err)
	}
	s = reopen(t, "/store", o)
	notes := make(map[[32]byte]string)
	if err := s.Blobs(func(of, name [32]byte, note []byte) {
		if of == space {
			notes[name] = string(note)
		}
	}); err != nil || len(notes) != 2 || notes[two] != "anew" || notes[three] != "\x03" {
		t.Errorf("notes %q, %v", notes, err)
	}
	for name, want := range map[[32]byte][]byte{one: nil, two: large, three: {}} {
		if b, err := s.Blob(space, name); err != nil || !bytes.Equal(b, want) || (b == nil) != (want == nil) {
			t.Errorf("blob %x: %d bytes, %v", name[:1], len(b), err)
		}
	}
	if b, err := s.Blob([32]byte{2}, two); b != nil || err != nil {
		t.Errorf("of another space: %d bytes, %v", len(b), err)
	}
	if err := s.PutBlob(space, one, nil, make([]byte, BlobBytesMax+1)); !errors.Is(err, replicagroup.ErrTooLarge) {
		t.Errorf("one byte more: %v", err)
	}
	if all, err := s.Replicas(); err != nil || len(all) != 1 || len(all[0].Image.Entries) != 1 {
		t.Errorf("replicas %v, %v", all, err)
	}
}
