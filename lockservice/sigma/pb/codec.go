package pb

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/lockservice/sigma"
)

// Service is the overlay's service by which frames travel, as one-way messages: from clients with the key of the lock's name, between
// replicas with the zero key.
const Service = "sigma"

// Limits of what is decoded. A longer message is malformed.
const (
	// MessageBytesMax is above what a piece of a report can be: 64 names of 1 KiB with 30 candidates, 8 waiters and 16 finished
	// requests each.
	MessageBytesMax = 1 << 19
	// FrameBytesMax leaves room for the name of a group.
	FrameBytesMax = MessageBytesMax + 64
	// EntryBytesMax is above what an entry of the log can be: a name with its candidates, waiters and finished requests.
	EntryBytesMax = 1 << 14
	// NameBytesMax bounds a lock's name.
	NameBytesMax = 1024
)

// ErrMalformed is matched by every error of [Decode].
var ErrMalformed = errors.New("sigma: malformed message")

// Group names the group that a message is for or from, within the overlay whose streams carry it.
type Group struct {
	Prefix keyspace.Prefix
	Gen    uint64
}

// ViewGen returns the generation that the views of this group have: the lower half of Gen. The upper half is the overlay's.
func (g Group) ViewGen() uint32 { return uint32(g.Gen) }

// EncodeFrame appends the bytes of a message of a group to b. A frame above what the overlay's control class takes, as a piece of a
// report may be, goes by bulk: the overlay sees to that.
func EncodeFrame(b []byte, g Group, m *sigma.Message) ([]byte, error) {
	if m.Report == nil {
		return appendFrame(b, g, m)
	}
	prefix, err := g.Prefix.AppendBinary(nil)
	if err == nil {
		b, err = proto.MarshalOptions{}.MarshalAppend(b, &Frame{Prefix: prefix, Gen: g.Gen, Message: messageOf(m)})
	}
	if err != nil {
		return b, fmt.Errorf("sigma: encode: %w", err)
	}
	return b, nil
}

// DecodeFrame reads a message and the group it is for or from. Its View is one of that group, which is all that is known of it. The
// error matches [ErrMalformed].
func DecodeFrame(b []byte) (g Group, m sigma.Message, err error) {
	err = ReadFrame(b, &g, &m)
	return g, m, err
}

// ReadFrame is DecodeFrame for who has room for what is read. Nothing in it aliases b. After an error both are zero.
func ReadFrame(b []byte, g *Group, m *sigma.Message) (err error) {
	if readFrame(b, g, m) {
		return nil
	}
	if *g, *m = (Group{}), (sigma.Message{}); len(b) > FrameBytesMax {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrMalformed, len(b), FrameBytesMax)
	}
	whole := new(Frame)
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, whole); err != nil {
		return fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	*g, *m, err = ofFrame(whole)
	return err
}

func ofFrame(p *Frame) (g Group, m sigma.Message, err error) {
	bad := func(err error) (Group, sigma.Message, error) { return Group{}, sigma.Message{}, err }
	if g, err = groupOf(p.Prefix, p.Gen); err != nil {
		return bad(err)
	}
	if p.Message == nil {
		return bad(errNothing)
	}
	if m, err = decode(p.Message); err != nil {
		return bad(err)
	}
	if err := g.has(&m); err != nil {
		return bad(err)
	}
	return g, m, nil
}

var errNothing = fmt.Errorf("%w: a frame of nothing", ErrMalformed)

// groupOf reads the name of a group.
func groupOf(prefix []byte, gen uint64) (g Group, err error) {
	g.Gen = gen
	p, rest, err := keyspace.DecodePrefix(prefix)
	if g.Prefix = p; err != nil || len(rest) > 0 {
		return Group{}, fmt.Errorf("%w: a prefix of %d bytes", ErrMalformed, len(prefix))
	}
	return g, nil
}

// has reports whether a message can be of the group.
func (g Group) has(m *sigma.Message) error {
	if m.View.Gen != g.ViewGen() {
		return fmt.Errorf("%w: a view of generation %d in a group of generation %d", ErrMalformed, m.View.Gen, g.Gen)
	}
	return nil
}

// Encode appends the bytes of a message to b.
func Encode(b []byte, m *sigma.Message) ([]byte, error) {
	out, err := proto.MarshalOptions{}.MarshalAppend(b, messageOf(m))
	if err != nil {
		return b, fmt.Errorf("sigma: encode: %w", err)
	}
	return out, nil
}

func messageOf(m *sigma.Message) *Message {
	p := &Message{
		Kind: Kind(m.Kind), ViewGen: m.View.Gen, View: m.View.Num, Name: m.Name, Req: reqOf(m.Req), Ts: m.TS, ReqTs: m.ReqTS,
		CsNs: int64(m.CS), TtlNs: int64(m.TTL), DelayNs: int64(m.Delay), Tok: uint64(m.Tok), Older: m.Older, Ack: m.Ack,
		Owner: reqOf(m.Owner), Position: uint32(m.Position), WaitNs: int64(m.Wait), EmbargoNs: int64(m.Embargo),
		Reason: Reason(m.Reason), Chunk: uint32(m.Chunk), Mode: Mode(m.Mode), Patient: m.Patient,
	}
	if m.GID != (sigma.GID{}) {
		p.Gid = &GID{Inc: m.GID.Inc, N: m.GID.N}
	}
	for i := range m.Members {
		p.Members = append(p.Members, m.Members[i][:])
	}
	if r := m.Report; r != nil {
		p.Report = &Report{Inc: r.Inc, Chunk: uint32(r.Chunk), Chunks: uint32(r.Chunks)}
		for i := range r.Entries {
			p.Report.Entries = append(p.Report.Entries, entryOf(&r.Entries[i]))
		}
	}
	return p
}

func reqOf(q sigma.Req) *Req {
	if q == (sigma.Req{}) {
		return nil
	}
	return &Req{Session: q.Session[:], Seq: q.Seq}
}

func entryOf(e *sigma.ReportEntry) *Entry {
	x := &Entry{Name: e.Name, DelayLeftNs: int64(e.DelayLeft), Parties: partiesOf(e.Parties), Queue: partiesOf(e.Queue)}
	for _, q := range e.Ended {
		x.Ended = append(x.Ended, reqOf(q))
	}
	return x
}

func partiesOf(ps []sigma.ReportParty) (out []*Party) {
	for i := range ps {
		p := &ps[i]
		out = append(out, &Party{
			Req: reqOf(p.Req), ReqTs: p.ReqTS, Node: p.Node[:], CsNs: int64(p.CS), TtlNs: int64(p.TTL), DelayNs: int64(p.Delay), LeftNs: int64(p.Left), Tok: uint64(p.Tok),
		})
	}
	return out
}

// Decode reads one message. Fields it does not know are ignored, for messages of later versions. The error matches [ErrMalformed].
func Decode(b []byte) (m sigma.Message, err error) {
	if len(b) > MessageBytesMax {
		return m, fmt.Errorf("%w: %d bytes, at most %d", ErrMalformed, len(b), MessageBytesMax)
	}
	p := new(Message)
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, p); err != nil {
		return m, fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	return decode(p)
}

func decode(p *Message) (m sigma.Message, err error) {
	d := decoder{}
	m = d.head(p, p.Req, p.Owner, p.Gid)
	m.Members = d.members(p.Members)
	if r := p.Report; r != nil {
		m.Report = d.report(r)
	}
	if d.fits(&m); d.err != nil {
		return sigma.Message{}, d.err
	}
	return m, nil
}

// head reads all of a message but its lists. What p points to is not looked at, so a message that is read by hand stays on its reader's
// stack.
func (d *decoder) head(p *Message, req, owner *Req, gid *GID) sigma.Message {
	if _, known := Kind_name[int32(p.Kind)]; !known || p.Kind == 0 {
		d.fail("kind %d", p.Kind)
	}
	if _, known := Reason_name[int32(p.Reason)]; !known {
		d.fail("reason %d", p.Reason)
	}
	if _, known := Mode_name[int32(p.Mode)]; !known {
		d.fail("mode %d", p.Mode)
	}
	voters := betweenVoters(sigma.Kind(p.Kind))                                                                                            // of a piece of all names or of one, and of no request
	many := voters || p.Kind == Kind_KIND_LIST || p.Kind == Kind_KIND_LISTED || p.Kind == Kind_KIND_MOVED || p.Kind == Kind_KIND_WRONG_GEN // which answer a LIST
	if !voters && req == nil {
		d.fail("no request is named")
	}
	return sigma.Message{
		Kind: sigma.Kind(p.Kind), View: sigma.ViewID{Gen: p.ViewGen, Num: p.View}, Name: d.name(p.Name, many && p.Name == ""),
		Req: d.req(req), TS: p.Ts, ReqTS: p.ReqTs, CS: automaton.Instant(p.CsNs), TTL: d.span(p.TtlNs), Delay: d.span(p.DelayNs),
		Tok: sigma.Token(p.Tok), Older: p.Older, Ack: p.Ack, Patient: p.Patient, Owner: d.req(owner), Wait: d.span(p.WaitNs), Embargo: d.span(p.EmbargoNs),
		Position: d.count(p.Position, sigma.WaitersPerLockMax), Chunk: d.count(p.Chunk, sigma.ChunksMax), Reason: sigma.Reason(p.Reason), Mode: sigma.Mode(p.Mode),
		GID: sigma.GID{Inc: gid.GetInc(), N: gid.GetN()},
	}
}

func betweenVoters(k sigma.Kind) bool { return k == sigma.Reported || k == sigma.Pull }

// fits refuses a message whose kind and parts do not fit together.
func (d *decoder) fits(m *sigma.Message) {
	if (m.Kind == sigma.Reported || m.Kind == sigma.Inspected || m.Kind == sigma.Listed) != (m.Report != nil) || (m.Kind == sigma.Moved) != (len(m.Members) > 0) {
		d.fail("%v with report %v and %d members", m.Kind, m.Report != nil, len(m.Members))
	}
	if r := m.Report; m.Kind == sigma.Reported && r != nil && m.Name != "" && (r.Chunks != 1 || len(r.Entries) != 1 || r.Entries[0].Name != m.Name) {
		d.fail("a report of one name with %d others", len(r.Entries))
	}
}

// decoder keeps the first error.
type decoder struct{ err error }

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
	}
}

func (d *decoder) name(s string, none bool) string {
	if len(s) > NameBytesMax || (s == "") != none {
		d.fail("a name of %d bytes", len(s))
	}
	return s
}

func (d *decoder) members(bs [][]byte) (out []keyspace.NodeID) {
	if len(bs) > sigma.MembersMax {
		d.fail("%d members", len(bs))
		return nil
	}
	for _, b := range bs {
		out = append(out, d.node(b))
	}
	return out
}

func (d *decoder) req(q *Req) (out sigma.Req) {
	if q == nil {
		return out
	}
	if len(q.Session) != len(out.Session) {
		d.fail("a session of %d bytes", len(q.Session))
		return out
	}
	copy(out.Session[:], q.Session)
	if out.Seq = q.Seq; out == (sigma.Req{}) { // means nobody, and is left out
		d.fail("a request of no session")
	}
	return out
}

func (d *decoder) node(b []byte) (n keyspace.NodeID) {
	if len(b) != len(n) {
		d.fail("a node of %d bytes", len(b))
		return n
	}
	copy(n[:], b)
	return n
}

// spanMax is longer than anything the protocol means.
const spanMax = int64(24 * 365 * time.Hour)

// span reads a length of time, which is not negative.
func (d *decoder) span(ns int64) time.Duration {
	if ns < 0 || ns > spanMax {
		d.fail("a time of %d ns", ns)
	}
	return time.Duration(ns)
}

func (d *decoder) count(n uint32, most int) int {
	if int64(n) > int64(most) {
		d.fail("a count of %d, at most %d", n, most)
	}
	return int(n)
}

func (d *decoder) report(r *Report) *sigma.Report {
	out := &sigma.Report{Inc: r.Inc, Chunk: d.count(r.Chunk, sigma.ChunksMax), Chunks: d.count(r.Chunks, sigma.ChunksMax)}
	if len(r.Entries) > sigma.ReportEntriesMax || r.Chunks == 0 || r.Chunk >= r.Chunks {
		d.fail("piece %d of %d with %d names", r.Chunk, r.Chunks, len(r.Entries))
		return out
	}
	for _, e := range r.Entries {
		out.Entries = append(out.Entries, d.entry(e, sigma.ReportQueueMax))
	}
	return out
}

func (d *decoder) entry(e *Entry, waiters int) sigma.ReportEntry {
	x := sigma.ReportEntry{
		Name: d.name(e.Name, false), DelayLeft: d.span(e.DelayLeftNs),
		Parties: d.parties(e.Parties, sigma.CandidatesMax), Queue: d.parties(e.Queue, waiters),
	}
	if len(e.Ended) > sigma.ReportEndedMax {
		d.fail("%d finished requests", len(e.Ended))
		return x
	}
	for _, q := range e.Ended {
		x.Ended = append(x.Ended, d.req(q))
	}
	return x
}

func (d *decoder) parties(ps []*Party, most int) (out []sigma.ReportParty) {
	if len(ps) > most {
		d.fail("%d requests of one name", len(ps))
		return nil
	}
	for _, p := range ps {
		if p.Req == nil {
			d.fail("no request is named")
		}
		out = append(out, sigma.ReportParty{
			Req: d.req(p.Req), ReqTS: p.ReqTs, Node: d.node(p.Node), CS: automaton.Instant(p.CsNs), TTL: d.span(p.TtlNs),
			Delay: d.span(p.DelayNs), Left: d.span(p.LeftNs), Tok: sigma.Token(p.Tok),
		})
	}
	return out
}

// EncodeEntry returns the bytes of an entry of the log. Equal entries have equal bytes.
func EncodeEntry(e *sigma.Entry) ([]byte, error) {
	p := &LogEntry{Kind: EntryKind(e.Kind), ViewGen: e.From.Gen, View: e.From.Num, CapNs: int64(e.Cap), Name: e.Name, Req: reqOf(e.Req)}
	for i := range e.Members {
		p.Members = append(p.Members, e.Members[i][:])
	}
	switch e.Kind {
	case sigma.EntryReport:
		p.Report, p.Node = entryOf(&e.Report), e.Node[:]
	case sigma.EntryOver:
		p.Node = e.Node[:]
	}
	out, err := proto.MarshalOptions{Deterministic: true}.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("sigma: encode: %w", err)
	}
	return out, nil
}

// DecodeEntry reads what [EncodeEntry] wrote. Fields it does not know are ignored. The error matches [ErrMalformed].
func DecodeEntry(b []byte) (e sigma.Entry, err error) {
	if len(b) > EntryBytesMax {
		return e, fmt.Errorf("%w: entry of %d bytes, at most %d", ErrMalformed, len(b), EntryBytesMax)
	}
	p := new(LogEntry)
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, p); err != nil {
		return e, fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	d := decoder{}
	if _, known := EntryKind_name[int32(p.Kind)]; !known || p.Kind == 0 {
		d.fail("entry of kind %d", p.Kind)
	}
	e = sigma.Entry{
		Kind: sigma.EntryKind(p.Kind), From: sigma.ViewID{Gen: p.ViewGen, Num: p.View}, Members: d.members(p.Members), Cap: d.span(p.CapNs),
		Name: d.name(p.Name, p.Kind != EntryKind_ENTRY_KIND_OVER), Req: d.req(p.Req),
	}
	report, over := p.Kind == EntryKind_ENTRY_KIND_REPORT, p.Kind == EntryKind_ENTRY_KIND_OVER
	if report || over {
		e.Node = d.node(p.Node)
	}
	switch {
	case report != (p.Report != nil), over != (p.Req != nil):
		d.fail("%v with report %v and request %v", p.Kind, p.Report != nil, p.Req != nil)
	case report:
		e.Report = d.entry(p.Report, sigma.HandOverQueueMax)
	}
	if d.err != nil {
		return sigma.Entry{}, d.err
	}
	return e, nil
}
