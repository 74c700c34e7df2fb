package raft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	pb "go.etcd.io/raft/v3/raftpb"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

// The engine encodes messages and records itself instead of using the library's protobuf form: every length is bounded, an
// append's indexes cannot have gaps, and there is no way to write down a message inside a message, or a type that belongs inside one process.

// ErrMalformed is matched by every error about a message or record that cannot be read.
var ErrMalformed = errors.New("raft: malformed")

// Version 2 gave entries a kind, views joint roles, and votes the mark of a transfer.
const codecVersion = 3

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// reader takes fields off the front of b. After the first failure every further read gives zero.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = malformed("%s", what)
	}
	r.b = nil
}

func (r *reader) byte() byte {
	if len(r.b) < 1 {
		r.fail("cut short")
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail("bad number")
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) u64() uint64 {
	if len(r.b) < 8 {
		r.fail("cut short")
		return 0
	}
	v := binary.BigEndian.Uint64(r.b)
	r.b = r.b[8:]
	return v
}

// bytes returns n bytes that alias the input, nil when n is 0.
func (r *reader) bytes(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.fail("cut short")
		return nil
	}
	if n == 0 {
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

// numbers returns the fields of a message that are encoded as numbers, in their order.
func numbers(m *pb.Message) [7]uint64 {
	return [...]uint64{
		m.GetFrom(), m.GetTo(), m.GetTerm(), m.GetLogTerm(), m.GetIndex(), m.GetCommit(), m.GetRejectHint(),
	}
}

// appendMessage appends the encoding of a message to another member.
func appendMessage(b []byte, m *pb.Message) []byte {
	b = appendHead(b, m)
	if m.GetType() == pb.MsgSnap {
		b = append(b, m.GetSnapshot().GetData()...)
	}
	return b
}

// appendHead appends all of it but for a snapshot, which stands at its end.
func appendHead(b []byte, m *pb.Message) []byte {
	b = append(b, codecVersion, byte(m.GetType()))
	for _, v := range numbers(m) {
		b = binary.AppendUvarint(b, v)
	}
	context := m.GetContext()
	if transferVote(m) {
		b, context = append(b, flagTransfer), nil
	} else {
		b = append(b, byte(flag(m.GetReject())))
	}
	b = append(b, byte(len(context)))
	b = append(b, context...)
	if m.GetType() == pb.MsgApp {
		b = appendEntryList(b, m.GetEntries())
	}
	return b
}

// appendEntryList appends what [decodeEntries] reads.
func appendEntryList(b []byte, ents []*pb.Entry) []byte {
	b = binary.AppendUvarint(b, uint64(len(ents)))
	for _, e := range ents {
		b = binary.AppendUvarint(b, e.GetTerm())
		b = append(b, kindOf(e))
		b = binary.AppendUvarint(b, uint64(len(e.GetData())))
		b = append(b, e.GetData()...)
	}
	return b
}

// flagTransfer stands, in place of the reject flag, in a vote that leadership is handed over by.
const flagTransfer = 2

// transferContext is the library's mark of such a vote: its voters need not be loyal to their leader.
const transferContext = "CampaignTransfer"

func transferVote(m *pb.Message) bool {
	return m.GetType() == pb.MsgVote && string(m.GetContext()) == transferContext
}

// Kinds of entries in messages and records.
const (
	kindPlain  = iota // empty, or a command
	kindChange        // of the view
)

func kindOf(e *pb.Entry) byte {
	if isChange(e) {
		return kindChange
	}
	return kindPlain
}

// typeOf returns the library's type of an entry of a kind, nil for a plain one.
func typeOf(kind byte, r *reader) *pb.EntryType {
	switch kind {
	case kindPlain:
		return nil
	case kindChange:
		return pb.EntryConfChangeV2.Enum()
	}
	r.fail("unknown kind of entry")
	return nil
}

// headSize returns how much [appendHead] writes, or a little more.
func headSize(m *pb.Message) int {
	n := 2 + 2 + len(m.GetContext())
	for _, v := range numbers(m) {
		n += (bits.Len64(v|1) + 6) / 7
	}
	if m.GetType() == pb.MsgApp {
		n += binary.MaxVarintLen32
	}
	for _, e := range m.GetEntries() {
		n += entryOverhead + len(e.GetData())
	}
	return n
}

// envelope is a decoded message together with the numbers its fields point to.
type envelope struct {
	msg                                        pb.Message
	typ                                        pb.MessageType
	from, to, term, logTerm, idx, commit, hint uint64
	reject                                     bool
}

// entryBox is the same for an entry.
type entryBox struct {
	ent       pb.Entry
	term, idx uint64
}

// decodeMessage reads what [appendMessage] wrote. Entries and snapshot alias b. Errors match [ErrMalformed].
func decodeMessage(b []byte) (*pb.Message, error) {
	r := reader{b: b}
	if v := r.byte(); v != codecVersion {
		return nil, malformed("message version %d", v)
	}
	m := &envelope{typ: pb.MessageType(r.byte())}
	if m.typ != pb.MsgSnap && len(b) > messageBytesMax {
		return nil, malformed("message of %d bytes", len(b))
	}
	m.from, m.to, m.term, m.logTerm = r.uvarint(), r.uvarint(), r.uvarint(), r.uvarint()
	m.idx, m.commit, m.hint = r.uvarint(), r.uvarint(), r.uvarint()
	switch r.byte() {
	case 0:
	case 1:
		m.reject = true
	case flagTransfer:
		if m.typ != pb.MsgVote {
			r.fail("bad flag")
		}
		m.msg.Context = []byte(transferContext)
	default:
		r.fail("bad flag")
	}
	n := r.byte()
	if n > contextBytesMax || n > 0 && m.msg.Context != nil {
		r.fail("long context")
	}
	if n > 0 {
		m.msg.Context = r.bytes(uint64(n))
	}
	m.msg.Type, m.msg.From, m.msg.To, m.msg.Term, m.msg.LogTerm = &m.typ, &m.from, &m.to, &m.term, &m.logTerm
	m.msg.Index, m.msg.Commit, m.msg.RejectHint, m.msg.Reject = &m.idx, &m.commit, &m.hint, &m.reject
	switch m.typ {
	case pb.MsgApp:
		m.msg.Entries = decodeEntries(&r, m.idx)
	case pb.MsgSnap:
		if r.err == nil {
			s, err := decodeSnapshot(r.b)
			if err != nil {
				return nil, err
			}
			m.msg.Snapshot, r.b = s.message(r.b), nil
		}
	}
	if len(r.b) > 0 {
		r.fail("bytes left over")
	}
	if r.err != nil {
		return nil, r.err
	}
	return &m.msg, nil
}

// decodeEntries reads the entries that follow index prev.
func decodeEntries(r *reader, prev uint64) []*pb.Entry {
	n := r.uvarint()
	if n > uint64(len(r.b))/3 { // an entry has three bytes at least
		r.fail("more entries than bytes")
		return nil
	}
	if n == 0 {
		return nil
	}
	var boxes []entryBox
	var ents []*pb.Entry
	if n == 1 { // as in most appends
		lone := new(struct {
			box [1]entryBox
			ent [1]*pb.Entry
		})
		boxes, ents = lone.box[:], lone.ent[:]
	} else {
		boxes, ents = make([]entryBox, n), make([]*pb.Entry, n)
	}
	for i := range boxes {
		e := &boxes[i]
		e.term, e.idx = r.uvarint(), prev+1+uint64(i)
		e.ent.Type = typeOf(r.byte(), r)
		e.ent.Term, e.ent.Index, e.ent.Data = &e.term, &e.idx, r.bytes(r.uvarint())
		ents[i] = &e.ent
	}
	return ents
}

// snapshot is what a snapshot record and a snapshot message hold.
type snapshot struct {
	group       order.GroupID
	index, term uint64
	view        order.View
	data        []byte // the machine's; nil at the start of a group
}

// message returns s as the library's snapshot, but for its configuration; record is its encoding.
func (s snapshot) message(record []byte) *pb.Snapshot {
	return &pb.Snapshot{Data: record, Metadata: &pb.SnapshotMetadata{Index: new(s.index), Term: new(s.term)}}
}

// conf returns the snapshot's view as the library's configuration at a replica. A replica that was added later counts itself
// as a learner already, since the library takes no snapshot of a group without it; the entry that adds it changes nothing
// then. A replica that has no state yet has no configuration either.
func (s snapshot) conf(self order.ReplicaID) *pb.ConfState {
	if s.index == 0 {
		return new(pb.ConfState)
	}
	joint := s.view.Joint()
	cs := &pb.ConfState{AutoLeave: &joint}
	for _, m := range s.view.Members {
		id := uint64(m.ID)
		switch m.Role {
		case order.Voter:
			cs.Voters = append(cs.Voters, id)
			if joint {
				cs.VotersOutgoing = append(cs.VotersOutgoing, id)
			}
		case order.Joining:
			cs.Voters = append(cs.Voters, id)
		case order.Leaving:
			cs.VotersOutgoing = append(cs.VotersOutgoing, id)
		case order.Learner:
			cs.Learners = append(cs.Learners, id)
		}
	}
	if self >= s.view.Next {
		cs.Learners = append(cs.Learners, uint64(self))
	}
	return cs
}

func encodeSnapshot(s snapshot) []byte {
	size := 96 + len(s.data) // a replica keeps the record: there is not much more room than it takes
	for _, m := range s.view.Members {
		size += 56 + len(m.PeerID)
	}
	b := make([]byte, 0, size)
	b = append(b, codecVersion)
	b = append(b, s.group.Overlay[:]...)
	b, err := s.group.Prefix.AppendBinary(b)
	if err != nil {
		panic(err) // the prefix was checked by New
	}
	b = binary.BigEndian.AppendUint64(b, s.group.Gen)
	b = binary.BigEndian.AppendUint64(b, s.index)
	b = binary.BigEndian.AppendUint64(b, s.term)
	b = appendView(b, s.view)
	return append(b, s.data...)
}

// decodeSnapshot reads what [encodeSnapshot] wrote; its data aliases b.
func decodeSnapshot(b []byte) (s snapshot, err error) {
	r := reader{b: b}
	if v := r.byte(); r.err == nil && v != codecVersion {
		return s, malformed("snapshot version %d", v)
	}
	copy(s.group.Overlay[:], r.bytes(uint64(len(s.group.Overlay))))
	if r.err != nil {
		return s, r.err
	}
	if s.group.Prefix, r.b, err = keyspace.DecodePrefix(r.b); err != nil {
		return s, malformed("snapshot: %v", err)
	}
	s.group.Gen, s.index, s.term = r.u64(), r.u64(), r.u64()
	s.view = decodeView(&r)
	if r.err == nil && len(r.b) > SnapshotBytesMax {
		r.fail("snapshot too large")
	}
	s.data = r.bytes(uint64(len(r.b)))
	if r.err != nil {
		return s, r.err
	}
	return s, nil
}

func appendView(b []byte, v order.View) []byte {
	b = binary.AppendUvarint(b, v.Num)
	b = binary.AppendUvarint(b, uint64(v.Next))
	b = append(b, byte(len(v.Members)))
	for _, m := range v.Members {
		b = binary.AppendUvarint(b, uint64(m.ID))
		b = append(b, m.Peer[:]...)
		b = append(b, m.Store[:]...)
		b = append(b, byte(m.Role), byte(len(m.PeerID)))
		b = append(b, m.PeerID...)
	}
	return b
}

func decodeView(r *reader) order.View {
	v := order.View{Num: r.uvarint(), Next: order.ReplicaID(r.uvarint())}
	n := r.byte()
	if n > order.MembersMax {
		r.fail("too many members")
	}
	for range n {
		if r.err != nil {
			break
		}
		m := order.Member{ID: order.ReplicaID(r.uvarint())}
		copy(m.Peer[:], r.bytes(uint64(len(m.Peer))))
		copy(m.Store[:], r.bytes(uint64(len(m.Store))))
		m.Role = order.Role(r.byte())
		m.PeerID = string(r.bytes(uint64(r.byte())))
		v.Members = append(v.Members, m)
	}
	if r.err == nil {
		if err := checkView(v); err != nil {
			r.fail(err.Error())
		}
	}
	return v
}

const stateBytes = 1 + 3*8

func encodeState(s state) []byte {
	b := make([]byte, 0, stateBytes)
	b = append(b, codecVersion)
	b = binary.BigEndian.AppendUint64(b, s.term)
	b = binary.BigEndian.AppendUint64(b, s.vote)
	return binary.BigEndian.AppendUint64(b, s.commit)
}

func decodeState(b []byte) (s state, err error) {
	r := reader{b: b}
	if v := r.byte(); len(b) != stateBytes || v != codecVersion {
		return s, malformed("state of %d bytes, version %d", len(b), v)
	}
	s.term, s.vote, s.commit = r.u64(), r.u64(), r.u64()
	return s, nil
}

const entryHead = 1 + 8 + 1

// appendEntries appends a record for each entry. They share one buffer.
func appendEntries(recs []order.Record, ents []*pb.Entry) []order.Record {
	if len(ents) == 0 {
		return recs
	}
	recs = slices.Grow(recs, len(ents)+1) // the state may follow
	size := 0
	for _, e := range ents {
		size += entryHead + len(e.GetData())
	}
	buf := make([]byte, 0, size)
	for _, e := range ents {
		from := len(buf)
		buf = append(buf, codecVersion)
		buf = binary.BigEndian.AppendUint64(buf, e.GetTerm())
		buf = append(buf, kindOf(e))
		buf = append(buf, e.GetData()...)
		recs = append(recs, order.Record{Kind: order.RecordEntry, Index: e.GetIndex(), Data: buf[from:len(buf):len(buf)]})
	}
	return recs
}

// decodeEntry reads an entry's record; the data aliases it.
func decodeEntry(rec order.Record) (*pb.Entry, error) {
	r := reader{b: rec.Data}
	if v := r.byte(); v != codecVersion || len(rec.Data) < entryHead {
		return nil, malformed("entry of %d bytes, version %d", len(rec.Data), v)
	}
	e := &pb.Entry{Index: new(rec.Index), Term: new(r.u64())}
	e.Type = typeOf(r.byte(), &r)
	e.Data = r.bytes(uint64(len(r.b)))
	if r.err != nil {
		return nil, r.err
	}
	return e, checkEntry(e)
}

// checkEntry tells whether an entry can be delivered one day: it is empty, a command or a change of the view.
func checkEntry(e *pb.Entry) error {
	if len(e.GetData()) == 0 {
		return nil
	}
	if isChange(e) {
		_, err := decodeChange(e.GetData())
		return err
	}
	if err := order.CheckCommand(e.GetData()); err != nil {
		return malformed("entry %d: %v", e.GetIndex(), err)
	}
	return nil
}
