package session

import (
	"bytes"
	"container/heap"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/invariant"
	"latchkey/replicagroup/order"
)

// Limits of a table. All are refused with a status, never with an error that stops the group.
const (
	// WindowSize is how many commands of one session may be unacknowledged; one beyond it gets [Window].
	WindowSize = 64
	// ResultBytesMax bounds the result of one command; a longer one is dropped with [TooLarge].
	ResultBytesMax = 16 << 10
	// ResultsBytesMax bounds what is stored for one session: while it is reached, further commands get [Window].
	ResultsBytesMax = 64 << 10
	// SessionsMax is how many sessions a group keeps; one more gets [Limit].
	SessionsMax = 4096
	// SessionsPerPeerMax is how many of them belong to one peer; one more gets [Limit].
	SessionsPerPeerMax = 256
	// EndedMax is how many ids of ended sessions are remembered; the oldest is forgotten first.
	EndedMax = 1024
	// TTLMin and TTLMax bound a session's time to live; an open outside gets [Limit].
	TTLMin = 100 * time.Millisecond
	TTLMax = 10 * time.Minute
)

// Names of services that every group has. No [Machine] may be registered under them.
const (
	// Service takes the commands that open, keep and close a session: [OpenData], [KeepAliveData], [CloseData]. Their Seq is
	// not looked at and they may be repeated freely.
	Service = "session"
	// TickService takes the empty command, of no client, that the leader's host proposes when [Table.Deadline] is due: it
	// carries a stamp and nothing else.
	TickService = "tick"
	// IndexService answers every query with the index of the last entry applied, which [DecodeIndex] reads: whoever has applied that has
	// applied everything that was committed before it asked. It takes no commands.
	IndexService = "index"
)

// DecodeIndex reads the answer to a query of [IndexService].
func DecodeIndex(b []byte) (index uint64, ok bool) {
	if len(b) != 8 {
		return 0, false
	}
	return binary.BigEndian.Uint64(b), true
}

// Status says what became of a command.
type Status uint8

// The statuses. Only OK, TooLarge, UnknownService and Moved use up the sequence number.
const (
	OK             Status = iota // executed, now or at an earlier copy
	Session                      // the session is unknown, expired or closed: nothing was run
	Window                       // too much is unacknowledged: nothing was run; acknowledge and repeat
	Stale                        // the session has acknowledged this number already: nothing was run
	UnknownService               // no such service in this group: nothing was run
	Refused                      // another peer's session, or a malformed command: nothing was run
	Limit                        // a limit is reached, or the TTL is outside its bounds: nothing was run
	TooLarge                     // executed, but its result was longer than [ResultBytesMax] and is lost
	Moved                        // another group serves the key ([Gate]): nothing was run here, nor ever will be under this number
	statusEnd
)

// String names the status.
func (s Status) String() string {
	names := [...]string{"ok", "session", "window", "stale", "unknown-service", "refused", "limit", "too-large", "moved"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("Status(%d)", uint8(s))
}

// Context is what a [Machine] may know while it runs.
type Context struct {
	Index  uint64          // of the entry; in Query and Resend, of the last one applied
	Now    time.Duration   // log time
	Client order.ClientID  // whose command it is; zero in Tick, Query and Resend
	Author keyspace.NodeID // the peer that sent it; zero in Tick, SessionEnded and Resend
	// Emit adds an output, which the leader's host pushes to the peer of that client's session; outputs may be lost, hence
	// Resend. It does nothing when the session does not exist. Nil in Query.
	Emit func(client order.ClientID, data []byte)
	// Post adds a value for whoever drives the service at the leader's host, which gets it once the entry is committed; it may be
	// lost, too. Nil in Query.
	Post func(v any)
	// Parts takes keys out of the group's other machines, and puts them back. Nil but in Apply.
	Parts Parts
}

// Machine is the state machine of one service in one group. It must be deterministic: what it does, returns and emits may
// depend on its state and its arguments only. It is called from one goroutine. Input slices must not be kept or changed.
type Machine interface {
	// Apply executes one command, once, and returns its result, at most [ResultBytesMax] long. It never fails: a malformed
	// command has a result that says so.
	Apply(c Context, data []byte) []byte
	// Query answers from the state without changing it.
	Query(c Context, data []byte) []byte
	// Tick tells that the machine's deadline has come.
	Tick(c Context)
	// SessionEnded tells that a session is over and will never come back.
	SessionEnded(c Context, client order.ClientID)
	// Deadline returns the earliest log time at which Tick has something to do.
	Deadline() (logTime time.Duration, ok bool)
	// Resend emits again every output that is still awaited, for a new leader and for outputs that were lost.
	Resend(c Context)
	// Snapshot returns the canonical encoding of the state: equal states give equal bytes. An empty one is that of a service which
	// nobody has used; a group's snapshot does not mention it, as those of builds without the service do not.
	Snapshot() []byte
	// Restore replaces the state by one that Snapshot encoded, or refuses it. Without bytes it is the state of before the first entry.
	Restore([]byte) error
}

// Insider is a [Machine] that knows the views of its group, and takes commands of the group itself.
type Insider interface {
	Machine
	// FirstView tells of the view with which the group's log begins. It comes before any entry, and not before a Restore.
	FirstView(v order.View)
	// NextView tells of a view that an entry begins, in log order. v is not to be changed.
	NextView(c Context, v order.View)
	// ApplyOwn executes a command of the group itself, of no client: Context.Author is the member's peer that the leader's host
	// proposed it for. Nobody hears a result, and a repeat is executed again.
	ApplyOwn(c Context, data []byte)
}

// Output is a message for the peer of a session, or what was posted to the service's driver.
type Output struct {
	Peer    keyspace.NodeID
	Client  order.ClientID
	Service string
	Data    []byte
	Posted  any // nil: it is a message
}

// Outputs collects what a call to a [Table] emitted. A driver reuses one value; it calls Reset in between.
type Outputs struct{ List []Output }

// Reset empties o, keeping its storage.
func (o *Outputs) Reset() {
	clear(o.List)
	o.List = o.List[:0]
}

// Result is what the client of a command is told. The zero value belongs to entries that no client waits for.
type Result struct {
	Client order.ClientID
	Seq    uint64
	Status Status
	Data   []byte // shared with the table: not to be changed
}

// Table is the session table of one group with its services behind it. Not safe for concurrent use.
type Table struct {
	drift    automaton.Drift
	services []service // by rising name
	gate     Gate      // one of services; nil if there is none

	index uint64
	now   time.Duration
	// stamp is the reference of log time: the highest stamp seen of the boot seen last.
	stamp order.Stamp

	sessions map[order.ClientID]*entry
	byEnd    byDeadline
	perPeer  map[keyspace.NodeID]int // sum over peers = len(sessions)
	ended    []order.ClientID        // oldest first
	isEnded  map[order.ClientID]struct{}

	out     *Outputs // of the running call
	running string   // service that is running
	emit    func(order.ClientID, []byte)
	post    func(any)
	mutant  Mutant
}

// entry is one session. Invariant: every key of results is in (acked, acked+WindowSize]; bytes is the sum of their lengths.
type entry struct {
	id      order.ClientID
	peer    keyspace.NodeID
	ttl     time.Duration
	ends    time.Duration // log time
	acked   uint64
	results map[uint64]stored
	bytes   int
	at      int // place in byEnd
}

type stored struct {
	status Status
	data   []byte
}

// service is a machine and what it goes by.
type service struct {
	name string
	Machine
}

// NewTable returns the empty table of a group that offers these services. Log time starts at zero. It panics when a service
// has a reserved or overlong name: the names are the program's own.
func NewTable(drift automaton.Drift, services map[string]Machine) *Table {
	t := &Table{drift: drift, services: make([]service, 0, len(services))}
	for _, n := range slices.Sorted(maps.Keys(services)) {
		invariant.Check(n != Service && n != TickService && n != IndexService && n != "" && len(n) <= order.ServiceBytesMax, "service name", n)
		t.services = append(t.services, service{n, services[n]})
		if g, ok := services[n].(Gate); ok {
			invariant.Check(t.gate == nil, "one gate", n)
			t.gate = g
		}
	}
	t.emit, t.post = t.doEmit, t.doPost
	t.clear()
	return t
}

// clear makes the table as it was at first. A group that nobody has used yet needs no room for sessions.
func (t *Table) clear() {
	t.sessions, t.perPeer, t.isEnded, t.byEnd, t.ended = nil, nil, nil, nil, nil
	t.index, t.now, t.stamp = 0, 0, order.Stamp{}
}

// Machine returns the machine of a service, nil when there is none.
func (t *Table) Machine(name string) Machine {
	for _, s := range t.services {
		if s.name == name {
			return s.Machine
		}
	}
	return nil
}

// FirstView tells the machines of the view with which the group's log begins. It is called before any entry is applied, unless a
// snapshot is restored.
func (t *Table) FirstView(v order.View) {
	for _, s := range t.services {
		if m, ok := s.Machine.(Insider); ok {
			m.FirstView(v)
		}
	}
}

// names returns the names of the services, rising.
func (t *Table) names() []string {
	names := make([]string, len(t.services))
	for i, s := range t.services {
		names[i] = s.name
	}
	return names
}

// Apply executes one entry of the log and adds what the services emit to out. Entries must come in log order.
func (t *Table) Apply(e order.Entry, out *Outputs) Result {
	t.index, t.out = e.Index, out
	t.advance(e.Stamp)
	t.endSessions()
	for _, s := range t.services {
		if d, ok := s.Deadline(); ok && d <= t.now {
			s.Tick(t.context(s.name))
		}
	}
	if e.Kind == order.ViewChange {
		for _, s := range t.services {
			if m, ok := s.Machine.(Insider); ok {
				m.NextView(t.context(s.name), *e.Change)
			}
		}
	}
	if e.Kind != order.Normal || e.Cmd.Client == (order.ClientID{}) {
		if m, ok := t.Machine(e.Cmd.Service).(Insider); ok && e.Kind == order.Normal {
			c := t.context(e.Cmd.Service)
			c.Author = e.Cmd.Author
			m.ApplyOwn(c, e.Cmd.Data)
		}
		return Result{}
	}
	status, data := t.run(e.Cmd)
	return Result{Client: e.Cmd.Client, Seq: e.Cmd.Seq, Status: status, Data: data}
}

// advance moves log time on by what the leader's clock has moved since its previous stamp.
func (t *Table) advance(s order.Stamp) {
	switch {
	case s.Boot == 0:
	case t.mutant == MutantForeignStamps:
		t.now, t.stamp = max(t.now, s.At), s
	case s.Boot != t.stamp.Boot:
		t.stamp = s // another clock: a new reference, and no time has passed
	case s.At > t.stamp.At:
		t.now = later(t.now, s.At-t.stamp.At)
		t.stamp.At = s.At
	}
}

// later adds without wrapping.
func later(t, d time.Duration) time.Duration {
	if s := t + d; s >= t {
		return s
	}
	return math.MaxInt64
}

func (t *Table) endSessions() {
	for len(t.byEnd) > 0 && t.byEnd[0].ends <= t.now {
		t.end(t.byEnd[0])
	}
}

// end forgets a session and tells the services.
func (t *Table) end(s *entry) {
	heap.Remove(&t.byEnd, s.at)
	delete(t.sessions, s.id)
	if t.perPeer[s.peer]--; t.perPeer[s.peer] == 0 {
		delete(t.perPeer, s.peer)
	}
	if len(t.ended) == EndedMax {
		delete(t.isEnded, t.ended[0])
		t.ended = t.ended[1:]
	}
	t.ended = append(t.ended, s.id)
	t.noteEnded(s.id)
	for _, m := range t.services {
		m.SessionEnded(t.context(m.name), s.id)
	}
}

func (t *Table) noteEnded(id order.ClientID) {
	if t.isEnded == nil {
		t.isEnded = make(map[order.ClientID]struct{})
	}
	t.isEnded[id] = struct{}{}
}

func (t *Table) context(service string) Context {
	t.running = service
	return Context{Index: t.index, Now: t.now, Emit: t.emit, Post: t.post}
}

func (t *Table) doPost(v any) {
	if t.out != nil {
		t.out.List = append(t.out.List, Output{Service: t.running, Posted: v})
	}
}

func (t *Table) doEmit(client order.ClientID, data []byte) {
	if s, ok := t.sessions[client]; ok && t.out != nil {
		t.out.List = append(t.out.List, Output{Peer: s.peer, Client: client, Service: t.running, Data: data})
	}
}

// run executes a command of a client, unless it has run already or may not run.
func (t *Table) run(c order.Command) (Status, []byte) {
	if c.Service == Service {
		return t.runSession(c), nil
	}
	s, ok := t.sessions[c.Client]
	switch {
	case !ok:
		return Session, nil
	case s.peer != c.Author || c.Service == TickService:
		return Refused, nil
	}
	t.touch(s)
	t.acknowledge(s, c.Acked)
	if c.Seq <= s.acked {
		return Stale, nil
	}
	if r, ok := s.results[c.Seq]; ok && t.mutant != MutantForgetResults {
		return r.status, r.data
	}
	if c.Seq-s.acked > WindowSize || s.bytes >= ResultsBytesMax {
		return Window, nil
	}
	r := stored{status: UnknownService}
	if m := t.Machine(c.Service); m != nil {
		r = stored{status: Moved}
		if !t.away(m, c.Data, false) {
			ctx := t.context(c.Service)
			ctx.Client, ctx.Author, ctx.Parts = c.Client, c.Author, t
			r = stored{OK, m.Apply(ctx, c.Data)}
		}
		if len(r.data) > ResultBytesMax {
			r = stored{status: TooLarge}
		}
	}
	s.results[c.Seq] = r
	s.bytes += len(r.data)
	return r.status, r.data
}

// runSession executes a command about the session itself.
func (t *Table) runSession(c order.Command) Status {
	op, ttl, err := decodeSessionData(c.Data)
	s, live := t.sessions[c.Client]
	_, ended := t.isEnded[c.Client]
	switch {
	case err != nil || live && s.peer != c.Author:
		return Refused
	case op == opOpen && !live && !ended:
		return t.open(c.Client, c.Author, ttl)
	case !live:
		return Session
	case op == opClose:
		t.end(s)
		return OK
	}
	t.touch(s)
	t.acknowledge(s, c.Acked)
	return OK
}

func (t *Table) open(id order.ClientID, peer keyspace.NodeID, ttl time.Duration) Status {
	if ttl < TTLMin || ttl > TTLMax || !t.room(peer) {
		return Limit
	}
	t.insert(&entry{id: id, peer: peer, ttl: ttl, ends: later(t.now, t.drift.Stretch(ttl)), results: make(map[uint64]stored)})
	return OK
}

// Refuses reports whether the table, as it stands, would refuse a command for want of room: one that opens a session beyond a
// limit. A leader answers it with [Limit] and need not have it ordered, so that asking without end costs the group nothing.
func (t *Table) Refuses(c order.Command) bool {
	if c.Service != Service {
		return false
	}
	op, _, err := decodeSessionData(c.Data)
	_, live := t.sessions[c.Client]
	_, ended := t.isEnded[c.Client]
	return err == nil && op == opOpen && !live && !ended && !t.room(c.Author)
}

// room reports whether a peer may have one more session.
func (t *Table) room(peer keyspace.NodeID) bool {
	return len(t.sessions) < SessionsMax && t.perPeer[peer] < SessionsPerPeerMax
}

func (t *Table) insert(s *entry) {
	if t.sessions == nil {
		t.sessions, t.perPeer = make(map[order.ClientID]*entry), make(map[keyspace.NodeID]int)
	}
	t.sessions[s.id] = s
	t.perPeer[s.peer]++
	heap.Push(&t.byEnd, s)
}

func (t *Table) touch(s *entry) {
	s.ends = later(t.now, t.drift.Stretch(s.ttl))
	heap.Fix(&t.byEnd, s.at)
}

// acknowledge forgets the results the client has.
func (t *Table) acknowledge(s *entry, acked uint64) {
	if acked <= s.acked {
		return
	}
	s.acked = acked
	for seq, r := range s.results {
		if seq <= acked {
			delete(s.results, seq)
			s.bytes -= len(r.data)
		}
	}
}

// Query answers a read from the present state. The caller has made sure that the state is recent enough (a read point).
func (t *Table) Query(service string, author keyspace.NodeID, data []byte) (Status, []byte) {
	if service == IndexService {
		return OK, binary.BigEndian.AppendUint64(nil, t.index)
	}
	m := t.Machine(service)
	if m == nil {
		return UnknownService, nil
	}
	if t.away(m, data, true) {
		return Moved, nil
	}
	c := t.context(service)
	c.Author, c.Emit, c.Post = author, nil, nil
	return OK, m.Query(c, data)
}

// Resend adds every output that is still awaited to out.
func (t *Table) Resend(out *Outputs) {
	t.out = out
	for _, s := range t.services {
		s.Resend(t.context(s.name))
	}
}

// Now returns the log time.
func (t *Table) Now() time.Duration { return t.now }

// Index returns the index of the last entry applied.
func (t *Table) Index() uint64 { return t.index }

// Sessions returns how many sessions are open.
func (t *Table) Sessions() int { return len(t.sessions) }

// Deadline returns the earliest log time at which a session or something of a service is over.
func (t *Table) Deadline() (logTime time.Duration, ok bool) {
	first := func(d time.Duration, has bool) {
		if has && (!ok || d < logTime) {
			logTime, ok = d, true
		}
	}
	if len(t.byEnd) > 0 {
		first(t.byEnd[0].ends, true)
	}
	for _, s := range t.services {
		first(s.Deadline())
	}
	return logTime, ok
}

// NextTick tells the leader's host, whose clock shows now, how long to wait before it proposes a command of [TickService]:
// zero when an entry stamped now would reach the deadline, or when the log does not know this clock yet, so that its time
// counts from as early as possible. ok is false when there is nothing to wait for.
func (t *Table) NextTick(now order.Stamp) (after time.Duration, ok bool) {
	d, ok := t.Deadline()
	if !ok || now.Boot != t.stamp.Boot {
		return 0, ok
	}
	return max(0, d-t.now-max(0, now.At-t.stamp.At)), true
}

// Digest returns a hash of the whole state, services included: replicas that applied the same entries have equal ones.
func (t *Table) Digest() [32]byte { return sha256.Sum256(t.Snapshot()) }

// byDeadline is a heap of sessions by (ends, id), a total order: what it pops does not depend on how it was filled.
type byDeadline []*entry

func (h byDeadline) Len() int { return len(h) }
func (h byDeadline) Less(i, j int) bool {
	if h[i].ends != h[j].ends {
		return h[i].ends < h[j].ends
	}
	return bytes.Compare(h[i].id[:], h[j].id[:]) < 0
}
func (h byDeadline) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}
func (h *byDeadline) Push(x any) {
	s := x.(*entry)
	s.at = len(*h)
	*h = append(*h, s)
}
func (h *byDeadline) Pop() any {
	old := *h
	s := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return s
}
