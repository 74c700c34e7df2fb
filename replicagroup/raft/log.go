package raft

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"slices"

	etcd "go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"latchkey/internal/invariant"
)

// memLog is the library's storage: the part of the log it reads back. A write enters it when the engine asks the driver to
// make the write durable, not when the driver reports it done; the library keeps such entries in its own unstable part until
// then and reads them from there, so the difference cannot be seen.
//
// Invariants: ents[i] has index base+1+i; terms never fall from baseTerm on; snap covers an index in [base, last].
type memLog struct {
	initial *initial // what the library begins with; nil once it has begun
	short   bool     // for the library, the last entry is not there yet; see resume.go
	// snap is the newest snapshot's record, nil in a follower that sleeps if it says nothing that is not known otherwise; snapIndex and
	// snapTerm are where it stands. Entries up to its index that are still in ents serve followers that are a little behind
	// (trailingEntriesMax); a store has dropped them.
	snap                []byte
	snapIndex, snapTerm uint64

	base, baseTerm uint64
	ents           []*pb.Entry
	// folded holds the entries while the replica sleeps, and count how many they are; ents is nil then. See fold.
	folded []byte
	count  uint64
	// sums[i] digests ents[0..i]; built on demand by digest, cut with ents.
	sums [][sha256.Size]byte
}

// initial is the state and configuration that the library begins with.
type initial struct {
	state state
	conf  *pb.ConfState
}

func (l *memLog) first() uint64 { return l.base + 1 }
func (l *memLog) last() uint64  { return l.base + l.count + uint64(len(l.ents)) }

// keep takes over the newest snapshot's record.
func (l *memLog) keep(s *pb.Snapshot) {
	l.snap, l.snapIndex, l.snapTerm = s.GetData(), s.GetMetadata().GetIndex(), s.GetMetadata().GetTerm()
}

func (l *memLog) term(i uint64) (uint64, error) {
	switch {
	case i < l.base:
		return 0, etcd.ErrCompacted
	case i == l.base:
		return l.baseTerm, nil
	case i > l.last():
		return 0, etcd.ErrUnavailable
	}
	l.unfold()
	return l.ents[i-l.base-1].GetTerm(), nil
}

// append puts entries into the log; whatever stood at their first index or above is void.
func (l *memLog) append(ents []*pb.Entry) {
	if len(ents) == 0 {
		return
	}
	l.unfold()
	at := ents[0].GetIndex()
	invariant.Check(at > l.base && at <= l.last()+1, "entries join the log", at)
	keep := at - l.base - 1
	// The full slice expression makes the append copy when it would write over entries that a message still refers to.
	if keep < uint64(len(l.ents)) {
		l.ents = l.ents[:keep:keep]
		l.sums = l.sums[:min(keep, uint64(len(l.sums)))]
	}
	l.ents = append(l.ents, ents...)
}

// fold makes a small log smaller still, until somebody looks into it: the library's entries take several times the room of what they
// hold, and their data, where they came in a message, keeps that and the batch it came in. In a log that grows that is not for long.
func (l *memLog) fold() {
	n := 0
	for _, e := range l.ents {
		n += entryOverhead + len(e.GetData())
	}
	if n > foldBytesMax || len(l.ents) == 0 {
		return
	}
	l.count, l.folded = uint64(len(l.ents)), bytes.Clone(appendEntryList(make([]byte, 0, n+binary.MaxVarintLen32), l.ents))
	l.ents = nil
}

// unfold makes l.ents what it was.
func (l *memLog) unfold() {
	if l.count == 0 {
		return
	}
	r := reader{b: l.folded}
	l.ents = decodeEntries(&r, l.base)
	invariant.Check(r.err == nil && uint64(len(l.ents)) == l.count, "a log is unfolded as it was folded", r.err)
	l.count, l.folded = 0, nil
}

// restore replaces the whole log by a snapshot that came from a leader.
func (l *memLog) restore(s *pb.Snapshot) {
	l.keep(s)
	l.ents, l.sums, l.folded, l.count = nil, nil, nil, 0
	l.base, l.baseTerm = s.GetMetadata().GetIndex(), s.GetMetadata().GetTerm()
}

// compact takes a snapshot made here and forgets the entries below it but for a tail, which begins after need if somebody is
// waiting for what is there.
func (l *memLog) compact(s *pb.Snapshot, need uint64) {
	l.keep(s)
	l.unfold()
	index := s.GetMetadata().GetIndex()
	from, bytes := index, 0 // the entries (from, index] are kept
	for from > l.base {
		bytes += len(l.ents[from-l.base-1].GetData())
		if (index-from >= trailingEntriesMax || bytes > trailingBytesMax) &&
			(from <= need || index-from >= pursuitEntriesMax || bytes > pursuitBytesMax) {
			break
		}
		from--
	}
	if from == l.base {
		return
	}
	term, err := l.term(from)
	invariant.Check(err == nil, "a snapshot's index is in the log", from)
	l.ents = slices.Clone(l.ents[from-l.base:])
	l.base, l.baseTerm, l.sums = from, term, nil
}

// digest returns a hash of the log and the snapshot. It costs what was added since the last call.
func (l *memLog) digest() [sha256.Size]byte {
	l.unfold()
	var head [24]byte
	binary.BigEndian.PutUint64(head[:], l.base)
	binary.BigEndian.PutUint64(head[8:], l.baseTerm)
	binary.BigEndian.PutUint64(head[16:], l.snapIndex)
	sum := sha256.Sum256(head[:])
	if n := len(l.sums); n > 0 {
		sum = l.sums[n-1]
	}
	var buf []byte
	for _, e := range l.ents[len(l.sums):] {
		buf = append(buf[:0], sum[:]...)
		buf = binary.BigEndian.AppendUint64(buf, e.GetTerm())
		buf = append(buf, kindOf(e))
		buf = append(buf, e.GetData()...)
		sum = sha256.Sum256(buf)
		l.sums = append(l.sums, sum)
	}
	return sum
}

// The methods below are the library's Storage interface.

// InitialState returns the vote, term and commit index, and the configuration.
func (l *memLog) InitialState() (*pb.HardState, *pb.ConfState, error) {
	s := l.initial.state
	return &pb.HardState{Term: new(s.term), Vote: new(s.vote), Commit: new(s.commit)}, l.initial.conf, nil
}

// FirstIndex returns the index of the first entry that is kept.
func (l *memLog) FirstIndex() (uint64, error) { return l.first(), nil }

// LastIndex returns the index of the last entry.
func (l *memLog) LastIndex() (uint64, error) {
	if l.short {
		return l.last() - 1, nil
	}
	return l.last(), nil
}

// Term returns the term of an entry, also of the one before the first.
func (l *memLog) Term(i uint64) (uint64, error) {
	if l.short && i == l.last() {
		return 0, etcd.ErrUnavailable
	}
	return l.term(i)
}

// Snapshot returns the newest snapshot.
func (l *memLog) Snapshot() (*pb.Snapshot, error) {
	return snapshot{index: l.snapIndex, term: l.snapTerm}.message(l.snap), nil
}

// Entries returns the entries [lo, hi), at least one, and no more than about maxSize bytes of them.
func (l *memLog) Entries(lo, hi, maxSize uint64) ([]*pb.Entry, error) {
	if lo <= l.base {
		return nil, etcd.ErrCompacted
	}
	if hi > l.last()+1 || lo >= hi {
		return nil, etcd.ErrUnavailable
	}
	l.unfold()
	ents := l.ents[lo-l.base-1 : hi-l.base-1]
	var size uint64
	for i, e := range ents {
		if size += uint64(len(e.GetData())) + entryOverhead; size > maxSize && i > 0 {
			ents = ents[:i]
			break
		}
	}
	return ents[:len(ents):len(ents)], nil
}
