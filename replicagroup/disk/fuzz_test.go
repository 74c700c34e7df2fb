package disk

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"latchkey/replicagroup/order"
)

// Whatever a file of ours holds, reading it gives an error that matches, or what encodes to the same bytes.
func FuzzDecodeFiles(f *testing.F) {
	f.Add(marker{overlay: overlay, boots: 7}.encode())
	f.Add(clean{1, 2, 3}.encode())
	f.Add(encodeFiles([]listed{{"000007.log", part{1, 2}}, {"MANIFEST-000001", part{}}}))
	f.Add([]byte(nil))
	f.Add(head())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMarker(b)
		same(t, b, m.encode(), err)
		c, err := decodeClean(b)
		same(t, b, c.encode(), err)
		files, err := decodeFiles(b)
		same(t, b, encodeFiles(files), err)
	})
}

// The same for keys and values of the database.
func FuzzDecodeRecords(f *testing.F) {
	g := group("a")
	f.Add(storeKey, record{overlay: overlay, id: order.StoreID{1}, boot: Boot{Count: 1, Nonce: 2}, file: 3}.encode())
	f.Add(groupKey(keyReplica, g), listing{1, 2, []byte("d")}.encode())
	f.Add(graveKey(g, 5), listing{1, 2, nil}.encode())
	f.Add(burialKey(g, 5), burial{at: time.Unix(1, 2), bytes: 3}.encode())
	f.Add(groupKey(keyTombstone, g), make([]byte, 8))
	f.Add(slotKey(1, dataHead), snapshotHead{1, 2, 1, 4}.encode())
	f.Add(slotKey(1, dataState), []byte("state"))
	f.Add(chunkKey(1, 2), []byte("chunk"))
	f.Add(entryKey(1, 2), []byte("entry"))
	f.Add([]byte{keyData}, []byte{})
	f.Fuzz(func(t *testing.T, key, value []byte) {
		if _, err := open(key, value); err != nil && !errors.Is(err, ErrDamaged) {
			t.Error(err)
		}
		r, err := decodeRecord(value)
		same(t, value, r.encode(), err)
		l, err := decodeListing(value)
		same(t, value, l.encode(), err)
		d, err := decodeBurial(value)
		same(t, value, d.encode(), err)
		h, err := decodeHead(value)
		same(t, value, h.encode(), err)
		if _, err := decodeTombstone(value); err != nil && !errors.Is(err, ErrDamaged) {
			t.Error(err)
		}
		if g, err := groupOf(key, overlay); err == nil && key[0] != keyGrave && key[0] != keyBurial {
			same(t, key, groupKey(key[0], g), nil)
		} else if err != nil && !errors.Is(err, ErrDamaged) {
			t.Error(err)
		}
		switch slot, kind, n, err := dataOf(key); {
		case err != nil && !errors.Is(err, ErrDamaged):
			t.Error(err)
		case err != nil:
		case kind == dataChunk:
			same(t, key, chunkKey(slot, uint32(n)), nil)
		case kind == dataEntry:
			same(t, key, entryKey(slot, n), nil)
		default:
			same(t, key, slotKey(slot, kind), nil)
		}
	})
}

func same(t *testing.T, in, out []byte, err error) {
	t.Helper()
	switch {
	case err == nil && !bytes.Equal(in, out):
		t.Errorf("%x was read as %x", in, out)
	case err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrVersion):
		t.Errorf("%x: %v", in, err)
	}
}
