package disk

import (
	"encoding/binary"
	"hash/crc32"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

// Limits of what a store takes. Larger records are refused before anything is written.
const (
	ChunkBytesMax      = 1<<20 - crcBytes // of a snapshot, in one value
	DescriptorBytesMax = 1 << 20
	SnapshotBytesMax   = 1 << 30
	BatchBytesMax      = SnapshotBytesMax + 64<<20 // everything that one Write stores
)

// Keys. Numbers are big-endian, so that keys sort as what they name. What belongs to a replica stands under its slot, a number
// that is its own: so a replica's data can be dropped, or its owner changed, without touching the data of others.
//
//	01                              the store: [record]
//	02 group                        a replica: slot, id, descriptor
//	03 group                        highest replica id of a group whose replica was retired or buried
//	04 group id                     a buried replica: slot, id, descriptor
//	05 group id                     its burial: when, and how much it had; not of one that an older program has buried
//	06 space name                   a blob, without a checksum
//	07 space name                   its note
//	10 slot 01                      state
//	10 slot 02                      head of the snapshot: index, length, chunks, checksum of the whole
//	10 slot 03 n                    chunk n of the snapshot
//	10 slot 04 index                entry
//
// Every value but blobs ends with a CRC-32C over its key and the rest of it.
const (
	keyStore     = 0x01
	keyReplica   = 0x02
	keyTombstone = 0x03
	keyGrave     = 0x04
	keyBurial    = 0x05
	keyBlob      = 0x06
	keyNote      = 0x07
	keyData      = 0x10

	dataState = 0x01
	dataHead  = 0x02
	dataChunk = 0x03
	dataEntry = 0x04
)

const (
	groupBytes    = keyspace.Size + 2 + 8
	slotKeyBytes  = 1 + 8 + 1
	entryKeyBytes = slotKeyBytes + 8
	chunkKeyBytes = slotKeyBytes + 4
)

var storeKey = []byte{keyStore}

// groupKey appends nothing but what tells groups of one overlay apart, in the order of [order.GroupID.Compare].
func groupKey(kind byte, g order.GroupID) []byte {
	k := make([]byte, 0, 1+groupBytes+8)
	k = append(k, kind)
	k = append(k, g.Prefix.Bits[:]...)
	k = binary.BigEndian.AppendUint16(k, g.Prefix.Len)
	return binary.BigEndian.AppendUint64(k, g.Gen)
}

func graveKey(g order.GroupID, id order.ReplicaID) []byte {
	return binary.BigEndian.AppendUint64(groupKey(keyGrave, g), uint64(id))
}

func burialKey(g order.GroupID, id order.ReplicaID) []byte {
	return binary.BigEndian.AppendUint64(groupKey(keyBurial, g), uint64(id))
}

// groupOf reads the group out of a key of groupKey, graveKey or burialKey.
func groupOf(key []byte, overlay order.OverlayID) (order.GroupID, error) {
	g := order.GroupID{Overlay: overlay}
	want := 1 + groupBytes
	if len(key) > 0 && (key[0] == keyGrave || key[0] == keyBurial) {
		want += 8
	}
	if len(key) != want {
		return g, damaged("key of %d bytes", len(key))
	}
	b := key[1+copy(g.Prefix.Bits[:], key[1:]):]
	g.Prefix.Len, g.Gen = binary.BigEndian.Uint16(b), binary.BigEndian.Uint64(b[2:])
	if !g.Prefix.Valid() {
		return g, damaged("key %x names no group", key)
	}
	return g, nil
}

func slotKey(slot uint64, kind byte) []byte {
	k := binary.BigEndian.AppendUint64(append(make([]byte, 0, entryKeyBytes), keyData), slot)
	return append(k, kind)
}

func entryKey(slot, index uint64) []byte {
	return binary.BigEndian.AppendUint64(slotKey(slot, dataEntry), index)
}

func chunkKey(slot uint64, n uint32) []byte {
	return binary.BigEndian.AppendUint32(slotKey(slot, dataChunk), n)
}

// slotKeys returns the bounds of all data of a slot.
func slotKeys(slot uint64) (from, to []byte) { return slotKey(slot, 0), slotKey(slot, 0xff) }

// dataOf takes a key of a replica's data apart: number is the index of an entry or the number of a chunk.
func dataOf(key []byte) (slot uint64, kind byte, number uint64, err error) {
	if len(key) < slotKeyBytes || key[0] != keyData {
		return 0, 0, 0, damaged("key %.32x is of no kind", key)
	}
	slot, kind = binary.BigEndian.Uint64(key[1:]), key[9]
	switch rest := key[slotKeyBytes:]; {
	case (kind == dataState || kind == dataHead) && len(rest) == 0:
	case kind == dataChunk && len(rest) == 4:
		number = uint64(binary.BigEndian.Uint32(rest))
	case kind == dataEntry && len(rest) == 8:
		number = binary.BigEndian.Uint64(rest)
	default:
		return 0, 0, 0, damaged("key %.32x is of no kind", key)
	}
	return slot, kind, number, nil
}

// put adds a value with its checksum to a batch.
func put(b *pebble.Batch, key, value []byte) error {
	op := b.SetDeferred(len(key), len(value)+crcBytes)
	copy(op.Key, key)
	copy(op.Value, value)
	binary.BigEndian.PutUint32(op.Value[len(value):], checksum(key, value))
	return op.Finish()
}

func checksum(key, value []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value)
}

// open checks a value of put and returns it without its checksum, aliasing it.
func open(key, value []byte) ([]byte, error) {
	n := len(value) - crcBytes
	if n < 0 || binary.BigEndian.Uint32(value[n:]) != checksum(key, value[:n]) {
		return nil, damaged("wrong checksum of record %.32x", key)
	}
	return value[:n], nil
}

// drop adds the deletion of keys from to (not included) to a batch.
func drop(b *pebble.Batch, from, to []byte) error { return b.DeleteRange(from, to, nil) }

// record is what the database knows of its store.
type record struct {
	overlay order.OverlayID
	id      order.StoreID
	boot    Boot
	file    uint64 // number of STORE; see [fileID]
	// What STORE was before: a crash may leave it.
	formerBoots, formerFile uint64
}

const recordBytes = 32 + 16 + 5*8

func (r record) encode() []byte {
	b := append(make([]byte, 0, recordBytes), r.overlay[:]...)
	b = append(b, r.id[:]...)
	b = binary.BigEndian.AppendUint64(b, r.boot.Count)
	b = binary.BigEndian.AppendUint64(b, r.boot.Nonce)
	b = binary.BigEndian.AppendUint64(b, r.file)
	b = binary.BigEndian.AppendUint64(b, r.formerBoots)
	return binary.BigEndian.AppendUint64(b, r.formerFile)
}

// decodeRecord reads what [record.encode] wrote. Errors match [ErrDamaged].
func decodeRecord(b []byte) (r record, err error) {
	if len(b) != recordBytes {
		return r, damaged("store record of %d bytes", len(b))
	}
	b = b[copy(r.overlay[:], b):]
	b = b[copy(r.id[:], b):]
	r.boot = Boot{Count: binary.BigEndian.Uint64(b), Nonce: binary.BigEndian.Uint64(b[8:])}
	r.file, r.formerBoots, r.formerFile = binary.BigEndian.Uint64(b[16:]), binary.BigEndian.Uint64(b[24:]), binary.BigEndian.Uint64(b[32:])
	if r.id == (order.StoreID{}) {
		return r, damaged("store record without an id")
	}
	return r, nil
}

// listing is what the database knows of a replica besides its data.
type listing struct {
	slot       uint64
	self       order.ReplicaID
	descriptor []byte
}

func (l listing) encode() []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 16+len(l.descriptor)), l.slot)
	return append(binary.BigEndian.AppendUint64(b, uint64(l.self)), l.descriptor...)
}

// decodeListing reads what [listing.encode] wrote. The descriptor aliases b. Errors match [ErrDamaged].
func decodeListing(b []byte) (l listing, err error) {
	if len(b) < 16 || len(b) > 16+DescriptorBytesMax {
		return l, damaged("replica record of %d bytes", len(b))
	}
	l.slot, l.self = binary.BigEndian.Uint64(b), order.ReplicaID(binary.BigEndian.Uint64(b[8:]))
	l.descriptor = b[16:]
	return l, nil
}

// burial is what the database knows of a buried replica besides its listing and its data.
type burial struct {
	slot  uint64    // of its data; in its listing
	at    time.Time // zero: not known
	bytes int64
}

func (r burial) encode() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(r.at.UnixNano())), uint64(r.bytes))
}

// decodeBurial reads what [burial.encode] wrote. Errors match [ErrDamaged].
func decodeBurial(b []byte) (burial, error) {
	if len(b) != 16 || int64(binary.BigEndian.Uint64(b[8:])) < 0 {
		return burial{}, damaged("burial of %d bytes", len(b))
	}
	return burial{at: time.Unix(0, int64(binary.BigEndian.Uint64(b))), bytes: int64(binary.BigEndian.Uint64(b[8:]))}, nil
}

// decodeTombstone reads the replica id of a tombstone. Errors match [ErrDamaged].
func decodeTombstone(b []byte) (order.ReplicaID, error) {
	if len(b) != 8 {
		return 0, damaged("tombstone of %d bytes", len(b))
	}
	return order.ReplicaID(binary.BigEndian.Uint64(b)), nil
}

// snapshotHead says what the chunks of a snapshot make together.
type snapshotHead struct {
	index  uint64
	length uint64
	chunks uint32
	crc    uint32
}

func headOf(r order.Record, chunkBytes int) snapshotHead {
	n := (len(r.Data) + chunkBytes - 1) / chunkBytes
	return snapshotHead{r.Index, uint64(len(r.Data)), uint32(n), crc32.Checksum(r.Data, castagnoli)}
}

func (h snapshotHead) encode() []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 24), h.index)
	b = binary.BigEndian.AppendUint64(b, h.length)
	b = binary.BigEndian.AppendUint32(b, h.chunks)
	return binary.BigEndian.AppendUint32(b, h.crc)
}

// decodeHead reads what [snapshotHead.encode] wrote. Errors match [ErrDamaged].
func decodeHead(b []byte) (h snapshotHead, err error) {
	if len(b) != 24 {
		return h, damaged("snapshot head of %d bytes", len(b))
	}
	h = snapshotHead{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint32(b[16:]), binary.BigEndian.Uint32(b[20:])}
	if h.length > SnapshotBytesMax || uint64(h.chunks) > h.length {
		return h, damaged("snapshot of %d bytes in %d chunks", h.length, h.chunks)
	}
	return h, nil
}
