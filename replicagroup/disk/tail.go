package disk

import (
	"encoding/binary"
	"hash/crc32"
	"math"
	"strconv"
	"strings"
)

// A log that a crash left ends where the crash cut it, so Pebble takes the first thing in its last block that it cannot read for that end,
// and what was stored after it is gone without a word. But each chunk of a log says up to where the log was on the disk when it was
// written. Where such a one follows, what cannot be read was on the disk: no crash did that.
//
// What is left is damage to the last chunks, after which nothing was synced and then written.

// What Pebble's logs are made of (its package record, chunks with a sync offset): a checksum of all that follows it, the length of the
// data, what kind of chunk it is, the log's number, and up to where it was synced.
const (
	logBlockBytes  = 32 << 10
	logHeaderBytes = 19
	logChunkFirst  = 9 // kinds of such chunks: whole, first, middle, last
	logChunkLast   = 12
	oldHeaderBytes = 11 // of a chunk without a sync offset, as the end of a log has one
	oldChunkLast   = 8
	crcMask        = 0xa282ead8
)

// chunk reads the chunk at the beginning of b, which ends with its block. synced is what it says of the log.
func chunk(b []byte, log uint32) (size int, synced uint64, ok bool) {
	if len(b) < oldHeaderBytes {
		return 0, 0, false
	}
	head, kind := oldHeaderBytes, b[6]
	switch {
	case kind >= logChunkFirst && kind <= logChunkLast && len(b) >= logHeaderBytes:
		head, synced = logHeaderBytes, binary.LittleEndian.Uint64(b[oldHeaderBytes:])
	case kind == 0 || kind > oldChunkLast:
		return 0, 0, false
	}
	size = head + int(binary.LittleEndian.Uint16(b[4:]))
	if number := binary.LittleEndian.Uint32(b[7:]); size > len(b) || number != log {
		return 0, 0, false
	}
	sum := crc32.Checksum(b[6:size], castagnoli)
	return size, synced, binary.LittleEndian.Uint32(b) == (sum>>15|sum<<17)+crcMask
}

// blockAt returns what stands at an offset of a log, up to the end of its block.
func blockAt(data []byte, at int) []byte {
	return data[at:min(len(data), at-at%logBlockBytes+logBlockBytes)]
}

// rot returns where a log cannot be read though it was on the disk there; ok is false if that is nowhere.
func rot(data []byte, log uint32) (at int, ok bool) {
	for at < len(data) {
		b := blockAt(data, at)
		size, _, good := chunk(b, log)
		if !good {
			if len(b) >= logHeaderBytes {
				break
			}
			size = len(b) // no chunk fits there
		}
		at += size
	}
	for next := at + 1; next < len(data); next++ {
		if _, synced, good := chunk(blockAt(data, next), log); good && synced > uint64(at) {
			return at, true
		}
	}
	return 0, false
}

// checkTail refuses a last log that was damaged where it was on the disk.
func (s *Store) checkTail() error {
	names, err := s.fence.List(s.dir)
	if err != nil {
		return err
	}
	last, number := "", uint32(0)
	for _, name := range names {
		if n, err := strconv.ParseUint(strings.TrimSuffix(name, ".log"), 10, 32); isLog(name) && err == nil && (last == "" || uint32(n) > number) {
			last, number = name, uint32(n)
		}
	}
	if last == "" {
		return nil
	}
	data, err := readSmall(s.fence, s.fence.PathJoin(s.dir, last), math.MaxInt32)
	if err != nil {
		return err
	}
	if at, bad := rot(data, number); bad {
		return damaged("log %s cannot be read at byte %d, and more was stored after that", last, at)
	}
	return nil
}
