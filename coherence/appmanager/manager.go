package appmanager

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

// State is where an application manager is.
type State uint8

// The states. STOPPING, READING and SAVING are the parts of a checkpoint (section 8.2).
const (
	Running State = iota
	Stopping
	Reading
	Saving
	Restarting
)

// String spells the state.
func (s State) String() string {
	return [...]string{"RUNNING", "STOPPING", "READING", "SAVING", "RESTARTING"}[s]
}

// QueriesMax bounds the queries that wait for a node's last thread. Further ones are dropped: object managers repeat them.
const QueriesMax = 1 << 12

// EndedMax bounds the ended threads that are remembered, so that a late CREATE does not bring one back. The oldest is forgotten first.
const EndedMax = 1 << 14

// Config is what a manager is made with.
type Config struct {
	App        keyspace.Key
	Epoch      protocol.Epoch        // that it begins with, above all that it had before its group forgot it; 0 is 1
	Checkpoint protocol.CheckpointID // that its checkpoints are numbered after
}

// Manager is the manager of one application (RR-5059 section 3.2). All replicas of its group step it with the same events in the order of the
// group's log. Not safe for concurrent use. The zero value is not usable; see [New].
type Manager struct {
	cfg    Config
	mutant protocol.Mutant

	state    State
	epoch    protocol.Epoch
	threads  map[protocol.ThreadID]thread
	at       map[protocol.NodeRef]int       // how many threads each node executes; no zeros
	counts   counts                         // of threads
	ended    []protocol.ThreadID            // of this epoch, the oldest first
	over     map[protocol.ThreadID]struct{} // the same
	suspects protocol.Suspects
	// asked holds those that object managers have asked about (R12): they are watched, though no thread may run there.
	asked   []protocol.NodeRef
	queries []query // in order, none twice
	// touched holds the objects of this epoch, and the life of the group that reported each (R16).
	touched map[keyspace.Key]protocol.Life
	fresh   int // how many of them the last complete checkpoint does not have

	// id is that of the last checkpoint that was begun. It never returns to an earlier value, not by a restart either.
	id       protocol.CheckpointID
	reads    map[keyspace.Key]read // of READING
	unread   int                   // of them
	cutAt    Manifest              // what SAVING saves: the threads go on meanwhile
	manifest Manifest              // of the last complete checkpoint
	hash     protocol.Hash         // its name, zero for none
	savedID  protocol.CheckpointID // its number, 0 for none
	// added holds the threads that somebody outside has created since: a restart creates them again, since nobody else will.
	added map[protocol.ThreadID]protocol.Hash
}

// thread is a thread that has not ended. It is at one node, or at one of two while it migrates.
type thread struct {
	at, to  protocol.NodeRef // to is nobody unless the thread migrates; at is nobody while a restart waits for a place
	mig     protocol.MigSeq
	guest   bool
	started bool
	stopped protocol.CheckpointID // the last one that it has stopped for
	hash    protocol.Hash         // of the state it stopped with, or was started with
}

// counts says how many threads have not started, and have not stopped for the present checkpoint.
type counts struct{ unstarted, unstopped int }

func (t *thread) executesAt(n protocol.NodeRef) bool { return t.at == n || t.to == n }

type query struct {
	object keyspace.Key
	node   protocol.NodeRef
	asker  protocol.NodeRef // an owner, of a reader of its own; nobody: the object's manager
	ack    protocol.Kind
	seq    protocol.ReqSeq
	inv    protocol.InvSeq
}

// read is what a checkpoint knows of an object.
type read struct {
	done     bool
	hash     protocol.Hash   // zero: nobody has it
	withheld protocol.InvSeq // INVALIDATE that waits for the cut
}

// Manifest is what a checkpoint consists of: the hash of each chunk. The zero value is the state before everything.
type Manifest struct {
	Objects map[keyspace.Key]protocol.Hash
	Threads map[protocol.ThreadID]protocol.Hash
}

func (m Manifest) clone() Manifest { return Manifest{maps.Clone(m.Objects), maps.Clone(m.Threads)} }

// New makes the manager of an application that has not begun: no threads.
func New(cfg Config) *Manager {
	return &Manager{
		cfg: cfg, epoch: max(cfg.Epoch, 1), id: cfg.Checkpoint, threads: make(map[protocol.ThreadID]thread), at: make(map[protocol.NodeRef]int),
		over: make(map[protocol.ThreadID]struct{}), touched: make(map[keyspace.Key]protocol.Life), added: make(map[protocol.ThreadID]protocol.Hash),
	}
}

// EventKind says what an [Event] is.
type EventKind uint8

// The events.
const (
	Receive EventKind = iota + 1 // Msg
	Suspect                      // a failure detector suspects Node
	Trust                        // it has taken that back
	Begin                        // begin a checkpoint
	Abort                        // it takes too long, or a store has refused (C6)
	Saved                        // the manifest that [Save] named is stored, under Hash
	Place                        // answers [Choose]
)

// Event is an input. The group's log orders them.
type Event struct {
	Kind       EventKind
	Msg        *protocol.Message // not kept
	Node       protocol.NodeRef
	Checkpoint protocol.CheckpointID // Abort, Saved
	Hash       protocol.Hash
	Epoch      protocol.Epoch // Place: which restart it answers
	Places     []Placement    // Place
	// At is when the host was told, in Unix milliseconds, 0 where that is not known. It is for people: the automaton does not look at it.
	At int64
}

// Placement says where a thread goes.
type Placement struct {
	Thread protocol.ThreadID
	Node   protocol.NodeRef
}

// ActionKind says what an [Action] is.
type ActionKind uint8

// The actions.
const (
	Send   ActionKind = iota + 1 // Msg
	Choose                       // choose places for Threads, and step [Place] with Epoch: choosing is no business of a replica
	Save                         // store Manifest, and step [Saved]
)

// Action is an output.
type Action struct {
	Kind       ActionKind
	Msg        protocol.Message
	Epoch      protocol.Epoch
	Threads    []protocol.ThreadID
	Checkpoint protocol.CheckpointID
	Manifest   Manifest
}

// State returns where the manager is.
func (m *Manager) State() State { return m.state }

// Epoch returns which execution it is.
func (m *Manager) Epoch() protocol.Epoch { return m.epoch }

// Executes reports whether n executes a thread, as far as the manager knows: a node in the middle of receiving one counts.
func (m *Manager) Executes(n protocol.NodeRef) bool { return m.at[n] > 0 }

// set replaces a thread.
func (m *Manager) set(id protocol.ThreadID, t thread) {
	if old, ok := m.threads[id]; ok {
		m.count(old, -1)
	}
	m.threads[id] = t
	m.count(t, 1)
}

// count adds a thread to what is counted, or takes it away.
func (m *Manager) count(t thread, by int) {
	for _, n := range [...]protocol.NodeRef{t.at, t.to} {
		if n.IsZero() {
			continue
		}
		if m.at[n] += by; m.at[n] == 0 {
			delete(m.at, n)
		}
	}
	if !t.started {
		m.counts.unstarted += by
	}
	if !t.guest && t.stopped != m.id { // guests have no state of their own and go on
		m.counts.unstopped += by
	}
}

// recount counts all threads anew.
func (m *Manager) recount() {
	m.at, m.counts = make(map[protocol.NodeRef]int), counts{}
	for _, t := range m.threads {
		m.count(t, 1)
	}
}

// Threads returns how many threads have not ended, guests included.
func (m *Manager) Threads() int { return len(m.threads) }

// Saved returns the last complete checkpoint. The caller does not change it.
func (m *Manager) Saved() (Manifest, protocol.Hash) { return m.manifest, m.hash }

// SavedID returns the number of the last complete checkpoint, 0 for none.
func (m *Manager) SavedID() protocol.CheckpointID { return m.savedID }

// Forget has the manager forget its checkpoint, and with it every thread that a restart would create: the application is over.
func (m *Manager) Forget() {
	m.manifest, m.hash, m.savedID, m.added = Manifest{}, protocol.Hash{}, 0, make(map[protocol.ThreadID]protocol.Hash)
	m.fresh = m.unsaved()
}

// Stored reports whether chunks may be stored for an application whose checkpoints are numbered after the one given: there is a checkpoint, one was begun,
// or a thread was created since the last one.
func (m *Manager) Stored(after protocol.CheckpointID) bool { return m.id > after || len(m.added) > 0 }

// ThreadState is what a manager knows of a thread.
type ThreadState struct {
	ID        protocol.ThreadID
	At, To    protocol.NodeRef // At is nobody while it waits for a place, To unless it migrates
	Migration protocol.MigSeq
	Guest     bool          // a node that uses objects, and no thread
	Started   bool          // its node has said so
	Stopped   bool          // for the checkpoint that is under way, or was the last
	Hash      protocol.Hash // of the state it stopped with, or was started with
}

// List returns all threads and guests, in the order of their names.
func (m *Manager) List() []ThreadState {
	all := make([]ThreadState, 0, len(m.threads))
	for _, id := range m.sorted() {
		t := m.threads[id]
		all = append(all, ThreadState{id, t.at, t.to, t.mig, t.guest, t.started, t.stopped == m.id && m.id > 0, t.hash})
	}
	return all
}

// Checkpoint returns the number of the last checkpoint that was begun.
func (m *Manager) Checkpoint() protocol.CheckpointID { return m.id }

// Suspects reports whether n is suspected.
func (m *Manager) Suspects(n protocol.NodeRef) bool { return m.suspects.Has(n) }

// Concerns lists the nodes that a host watches with its failure detector. In order. Those that it suspects are among them: nobody else would tell the
// manager that it was wrong, and it gives no thread to a suspect (testdata/wrongly_suspected.txt).
func (m *Manager) Concerns() []protocol.NodeRef {
	ns := m.concerned()
	if m.mutant != protocol.Unwatched {
		ns = append(ns, m.suspects.Opinions()...)
	}
	slices.SortFunc(ns, protocol.NodeRef.Compare)
	return slices.Compact(ns)
}

// concerned lists those whose failure would matter.
func (m *Manager) concerned() []protocol.NodeRef {
	ns := m.nodes()
	ns = append(ns, m.asked...)
	slices.SortFunc(ns, protocol.NodeRef.Compare)
	return slices.Compact(ns)
}

// nodes lists who executes a thread. In order.
func (m *Manager) nodes() []protocol.NodeRef {
	return slices.SortedFunc(maps.Keys(m.at), protocol.NodeRef.Compare)
}

func compareThreads(a, b protocol.ThreadID) int { return bytes.Compare(a[:], b[:]) }
func compareKeys(a, b keyspace.Key) int         { return bytes.Compare(a[:], b[:]) }

func (m *Manager) sorted() []protocol.ThreadID {
	return slices.SortedFunc(maps.Keys(m.threads), compareThreads)
}

// Sabotage plants a mistake, for tests.
func (m *Manager) Sabotage(mutant protocol.Mutant) { m.mutant = mutant }

func (m *Manager) put(out []Action, to protocol.Address, msg protocol.Message) []Action {
	msg.From, msg.To, msg.Epoch = protocol.Address{Party: protocol.AppManager}, to, m.epoch
	return append(out, Action{Kind: Send, Msg: msg})
}

func (m *Manager) tell(out []Action, n protocol.NodeRef, msg protocol.Message) []Action {
	return m.put(out, protocol.At(n), msg)
}

func (m *Manager) object(out []Action, msg protocol.Message) []Action {
	return m.put(out, protocol.Address{Party: protocol.ObjectManager}, msg)
}

// Step takes an event and appends what has to be done to out. An input that matches no row is late or a duplicate, and is dropped.
func (m *Manager) Step(ev Event, out []Action) []Action {
	switch ev.Kind {
	case Receive:
		return m.receive(ev.Msg, out)
	case Suspect:
		return m.suspect(ev.Node, false, out)
	case Trust:
		m.suspects.Remove(ev.Node)
	case Begin:
		if m.state == Running { // C1
			m.id++
			m.recount() // nobody has stopped for it
			m.state = Stopping
			return m.stopped(m.hold(out))
		}
	case Abort:
		if ev.Checkpoint == m.id {
			return m.abort(out)
		}
	case Saved:
		if m.state == Saving && ev.Checkpoint == m.id {
			m.manifest, m.hash, m.savedID, m.cutAt, m.state = m.cutAt, ev.Hash, m.id, Manifest{}, Running
			m.added = make(map[protocol.ThreadID]protocol.Hash)
			m.fresh = m.unsaved()
		}
	case Place:
		if m.state == Restarting && ev.Epoch == m.epoch {
			return m.place(ev.Places, out)
		}
	}
	return out
}

func (m *Manager) receive(in *protocol.Message, out []Action) []Action {
	from := in.From.Node
	if in.From.Party == protocol.Node {
		epoch := m.epoch
		if out = m.returned(from, out); m.epoch != epoch {
			return out
		}
	}
	if in.Epoch != m.epoch && m.mutant != protocol.WithoutEpoch {
		if in.Epoch < m.epoch && in.From.Party == protocol.Node { // rule E; a survivor is told
			out = m.tell(out, from, protocol.Message{Kind: protocol.Destroy})
		}
		return out
	}
	switch in.Kind {
	case protocol.Create:
		return m.create(in, out)
	case protocol.Started:
		return m.started(in, out)
	case protocol.Migrate:
		return m.migrate(in, out)
	case protocol.Moved, protocol.MigrationFailed:
		return m.moved(in, out)
	case protocol.Terminated:
		if t, ok := m.threads[in.Thread]; ok && (t.at == from && t.to.IsZero() || t.to == from) {
			m.forget(in.Thread)
			out = m.examine(out)
		}
		if _, ok := m.threads[in.Thread]; !ok {
			out = m.tell(out, from, protocol.Message{Kind: protocol.Terminated, Thread: in.Thread})
		}
		return m.stopped(out)
	case protocol.Query:
		q := query{in.Object, in.Requester, in.From.Node, in.Ack, in.Seq, in.LastInv}
		if !m.Executes(in.Requester) {
			return m.answer(q, out)
		}
		m.queries = slices.DeleteFunc(m.queries, func(o query) bool { return q.compare(o) == 0 })
		if len(m.queries) < QueriesMax {
			i, _ := slices.BinarySearchFunc(m.queries, q, query.compare)
			m.queries = slices.Insert(m.queries, i, q)
		}
	case protocol.Injection:
		return m.inject(in, out)
	case protocol.RestartReq:
		return m.restartReq(in, out)
	case protocol.Touched:
		return m.touch(in, out)
	case protocol.Stopped:
		t, ok := m.threads[in.Thread]
		switch {
		case m.state == Stopping && (in.Checkpoint == m.id || m.mutant == protocol.AnyStopped) && ok && in.Migration == t.mig && t.executesAt(from):
			t.stopped, t.hash = m.id, in.Hash
			m.set(in.Thread, t)
			return m.stopped(out)
		case m.state == Stopping && in.Checkpoint < m.id: // it holds for an earlier one still, or does not know this one
			return m.tell(out, from, protocol.Message{Kind: protocol.Checkpoint, Checkpoint: m.id})
		case m.state != Stopping && m.state != Reading: // C2: of a finished one
			return m.tell(out, from, protocol.Message{Kind: protocol.Resume, Checkpoint: m.id})
		}
	case protocol.Copy, protocol.NoCopy, protocol.Invalidate:
		return m.readerReceives(in, out)
	}
	return out
}

func (q query) compare(o query) int {
	if c := compareKeys(q.object, o.object); c != 0 {
		return c
	}
	return cmp.Or(q.node.Compare(o.node), q.asker.Compare(o.asker))
}

func (m *Manager) create(in *protocol.Message, out []Action) []Action {
	receipt := protocol.Message{Kind: protocol.Created, Thread: in.Thread, Node: in.Node, Manifest: m.hash}
	t, known := m.threads[in.Thread]
	_, over := m.over[in.Thread]
	outside := in.Parent == protocol.ThreadID{} && !in.Flag // a restart creates it again, and so must find room
	switch {
	case known:
		receipt.Node = t.at
	case over:
	case m.state == Restarting && in.Flag: // a place for threads; what it touches waits
		t = thread{at: in.Node, guest: true, started: true}
		receipt.Flag = m.suspects.Has(in.Node) || len(m.threads) >= protocol.ThreadsMax
		if !receipt.Flag {
			m.set(in.Thread, t)
		}
	case m.state != Running && (m.state != Stopping || in.Parent == protocol.ThreadID{}): // C3: it waits, and is repeated
		return out
	case in.Checkpoint > 0 && in.Checkpoint <= m.id: // its state may have been collected with that checkpoint, which does not name it
		receipt.Flag, receipt.Checkpoint = true, m.id
	case !in.Flag && m.named(in.Thread) != protocol.ThreadID{}:
		receipt.Flag, receipt.Parent = true, m.named(in.Thread)
	case m.suspects.Has(in.Node) || len(m.threads) >= protocol.ThreadsMax || outside && len(m.added)+len(m.manifest.Threads) >= protocol.ThreadsMax:
		receipt.Flag = true
	default:
		t = thread{at: in.Node, guest: in.Flag, started: in.Flag, hash: in.Hash}
		m.set(in.Thread, t)
		if outside {
			m.added[in.Thread] = in.Hash
		}
		if !t.guest {
			out = m.start(in.Thread, &t, out)
		}
	}
	return m.tell(out, in.From.Node, receipt)
}

// named returns the thread that has the same name as id: the two share [protocol.ThreadNameBytes]. Two that are to be one would be
// one and the same.
func (m *Manager) named(id protocol.ThreadID) protocol.ThreadID {
	for o, t := range m.threads {
		if !t.guest && o != id && bytes.Equal(o[:protocol.ThreadNameBytes], id[:protocol.ThreadNameBytes]) {
			return o // there is at most one
		}
	}
	return protocol.ThreadID{}
}

// start says what runs a thread. Frozen in a restart, so that nobody runs half an application.
func (m *Manager) start(id protocol.ThreadID, t *thread, out []Action) []Action {
	msg := protocol.Message{Kind: protocol.Start, Thread: id, Hash: t.hash, Manifest: m.hash, Flag: m.state == Restarting}
	if m.state == Stopping {
		msg.Checkpoint = m.id // C3
	}
	return m.tell(out, t.at, msg)
}

func (m *Manager) started(in *protocol.Message, out []Action) []Action {
	t, ok := m.threads[in.Thread]
	if ok && !t.started && t.at == in.From.Node {
		t.started = true
		m.set(in.Thread, t)
	}
	if m.state == Restarting {
		return m.unfreeze(out)
	}
	if in.Flag {
		out = m.tell(out, in.From.Node, protocol.Message{Kind: protocol.Unfreeze})
	}
	return out
}

// unfreeze ends a restart once every thread is there.
func (m *Manager) unfreeze(out []Action) []Action {
	if m.counts.unstarted > 0 {
		return out
	}
	m.state = Running
	for _, n := range m.nodes() {
		out = m.tell(out, n, protocol.Message{Kind: protocol.Unfreeze})
	}
	return out
}

func (m *Manager) migrate(in *protocol.Message, out []Action) []Action {
	from, t := in.From.Node, m.threads[in.Thread]
	switch {
	case t.at != from || t.guest || in.Node == from:
		return out
	case t.to == in.Node && !t.to.IsZero(): // the GRANT may have been lost
	case m.state == Running && t.to.IsZero() && t.started && !m.suspects.Has(in.Node):
		t.mig++
		t.to = in.Node
		m.set(in.Thread, t)
	default:
		return out // C3: it waits, and is repeated
	}
	return m.tell(out, from, protocol.Message{Kind: protocol.Grant, Thread: in.Thread, Migration: t.mig, Node: t.to})
}

func (m *Manager) moved(in *protocol.Message, out []Action) []Action {
	t, ok := m.threads[in.Thread]
	// R13. The paper's MOVED has no number: one of an earlier migration would take the thread from a node that it has come back to
	// (testdata/r13_moved.txt).
	if ok && !t.to.IsZero() && (in.From.Node == t.at && in.Migration == t.mig || m.mutant == protocol.WithoutR13) {
		switch {
		case in.Kind == protocol.MigrationFailed:
			t.to = protocol.NodeRef{}
		case m.mutant == protocol.WithoutR13 && in.From.Node == t.to:
			t.to = protocol.NodeRef{}
		default:
			t.at, t.to = t.to, protocol.NodeRef{}
		}
		m.set(in.Thread, t)
		out = m.examine(out)
	}
	if !ok || in.Migration < t.mig || t.to.IsZero() {
		out = m.tell(out, in.From.Node, protocol.Message{Kind: in.Kind, Thread: in.Thread, Migration: in.Migration})
	}
	return out
}

func (m *Manager) forget(id protocol.ThreadID) {
	m.count(m.threads[id], -1)
	delete(m.threads, id)
	if len(m.ended) >= EndedMax {
		delete(m.over, m.ended[0])
		m.ended = m.ended[1:]
	}
	m.ended = append(m.ended, id)
	m.over[id] = struct{}{}
}

// examine answers the queries about nodes that execute no thread any more.
func (m *Manager) examine(out []Action) []Action {
	m.queries = slices.DeleteFunc(m.queries, func(q query) bool {
		if m.Executes(q.node) {
			return false
		}
		out = m.answer(q, out)
		return true
	})
	return out
}

// answer acknowledges for a node that executes no thread: it has invalidated its copies (R10). It does so in the manager's own name.
func (m *Manager) answer(q query, out []Action) []Action {
	msg := protocol.Message{Kind: q.ack, Object: q.object, Requester: q.node, Seq: q.seq, LastInv: q.inv}
	if !q.asker.IsZero() {
		return m.tell(out, q.asker, msg)
	}
	return m.object(out, msg)
}

// inject finds a new owner: the hint if it will do, or else the next node after the owner that executes a thread.
func (m *Manager) inject(in *protocol.Message, out []Action) []Action {
	nodes := slices.DeleteFunc(m.nodes(), func(n protocol.NodeRef) bool { return n == in.Requester || m.suspects.Has(n) })
	if others := slices.DeleteFunc(slices.Clone(nodes), func(n protocol.NodeRef) bool { return n == in.From.Node }); len(others) > 0 {
		nodes = others // R11: who sends it back is asked again only when there is nobody else
	}
	if len(nodes) == 0 {
		return out // it is repeated
	}
	to := nodes[0]
	for _, n := range nodes {
		if n.Compare(in.Requester) > 0 {
			to = n
			break
		}
	}
	if slices.Contains(nodes, in.Node) {
		to = in.Node
	}
	return m.tell(out, to, protocol.Message{Kind: protocol.BecomeOwner, Object: in.Object, Requester: in.Requester})
}

func (m *Manager) restartReq(in *protocol.Message, out []Action) []Action {
	n := in.Requester
	// R12. The paper restarts on every suspicion. Detectors have no accuracy, and two opinions are better than one.
	if in.Flag || m.suspects.Has(n) || m.mutant == protocol.WithoutR12 {
		return m.restart(out)
	}
	if i, ok := slices.BinarySearchFunc(m.asked, n, protocol.NodeRef.Compare); !ok && len(m.asked) < protocol.NodesMax {
		m.asked = slices.Insert(m.asked, i, n)
	}
	return m.object(out, protocol.Message{Kind: protocol.NotSuspect, Object: in.Object, Requester: n})
}

// touch applies R16: an object is noted before it is touched. No receipt is given while a checkpoint reads (C4).
func (m *Manager) touch(in *protocol.Message, out []Action) []Action {
	life, known := m.touched[in.Object]
	_, saved := m.manifest.Objects[in.Object]
	fresh := !known && !saved
	switch {
	case known && in.Life < life, m.state == Restarting:
		return out
	case fresh && len(m.manifest.Objects)+m.fresh >= protocol.ObjectsMax:
		return m.object(out, protocol.Message{Kind: protocol.Touched, Object: in.Object, Life: in.Life, Seq: in.Seq, Flag: true})
	case known && in.Life > life:
		return m.restart(out) // its group has lost its state, and with it who the owner is
	case m.state == Reading && m.mutant != protocol.StaleNone:
		return out
	}
	m.touched[in.Object] = in.Life
	if fresh {
		m.fresh++
	}
	return m.object(out, protocol.Message{Kind: protocol.Touched, Object: in.Object, Life: in.Life, Seq: in.Seq})
}

// unsaved counts the objects that are touched and that the last complete checkpoint does not have. Together with those it has, a manifest of
// this epoch is never larger than ObjectsMax.
func (m *Manager) unsaved() (n int) {
	for o := range m.touched {
		if _, ok := m.manifest.Objects[o]; !ok {
			n++
		}
	}
	return n
}

// returned applies R15.
func (m *Manager) returned(n protocol.NodeRef, out []Action) []Action {
	if m.mutant == protocol.WithoutR15 {
		return out
	}
	var gone []protocol.NodeRef // at most the nodes of the application are looked at
	for o := range m.at {
		if n.Succeeds(o) && !m.suspects.Final(o) {
			gone = append(gone, o)
		}
	}
	slices.SortFunc(gone, protocol.NodeRef.Compare)
	for _, o := range gone {
		out = m.suspect(o, true, out)
	}
	for _, o := range m.asked {
		if n.Succeeds(o) {
			m.suspects.Add(o, true)
		}
	}
	return out
}

func (m *Manager) suspect(n protocol.NodeRef, final bool, out []Action) []Action {
	if m.suspects.Full() {
		concerns := m.concerned()
		m.suspects.Keep(func(n protocol.NodeRef) bool {
			_, ok := slices.BinarySearchFunc(concerns, n, protocol.NodeRef.Compare)
			return ok
		})
	}
	m.suspects.Add(n, final)
	if m.Executes(n) {
		return m.restart(out)
	}
	return m.abort(out) // C6
}

// restart begins a new execution from the last complete checkpoint (section 6.1).
func (m *Manager) restart(out []Action) []Action {
	objects := slices.SortedFunc(maps.Keys(m.touched), compareKeys)
	nodes := m.nodes()
	m.epoch++
	m.state = Restarting
	threads := make(map[protocol.ThreadID]thread)
	for id, h := range m.manifest.Threads {
		threads[id] = thread{hash: h}
	}
	for id, h := range m.added {
		threads[id] = thread{hash: h}
	}
	m.threads, m.ended, m.queries, m.asked, m.reads, m.unread, m.cutAt = threads, nil, nil, nil, nil, 0, Manifest{}
	m.over = make(map[protocol.ThreadID]struct{})
	m.recount()
	m.touched, m.fresh = make(map[keyspace.Key]protocol.Life), 0
	for _, n := range nodes {
		out = m.tell(out, n, protocol.Message{Kind: protocol.Destroy})
	}
	for _, o := range objects {
		out = m.object(out, protocol.Message{Kind: protocol.Reinit, Object: o})
	}
	return m.choose(out)
}

func (m *Manager) choose(out []Action) []Action {
	if len(m.threads) == 0 {
		m.state = Running
		return out
	}
	return append(out, Action{Kind: Choose, Epoch: m.epoch, Threads: m.sorted()})
}

func (m *Manager) place(places []Placement, out []Action) []Action {
	for _, p := range places {
		if t, ok := m.threads[p.Thread]; ok && t.at.IsZero() && !m.suspects.Has(p.Node) && !p.Node.IsZero() {
			t.at = p.Node
			m.set(p.Thread, t)
			out = m.start(p.Thread, &t, out)
		}
	}
	return out
}

// Resend appends what the present state waits for, once more. It changes nothing, so it needs no place in the group's log.
func (m *Manager) Resend(out []Action) []Action {
	var unplaced []protocol.ThreadID
	for _, id := range m.sorted() {
		switch t := m.threads[id]; {
		case t.at.IsZero():
			unplaced = append(unplaced, id)
		case !t.started:
			out = m.start(id, &t, out)
		}
	}
	if len(unplaced) > 0 {
		out = append(out, Action{Kind: Choose, Epoch: m.epoch, Threads: unplaced})
	}
	switch m.state {
	case Stopping:
		out = m.hold(out)
	case Reading:
		out = m.ask(out)
	case Saving:
		out = append(out, Action{Kind: Save, Checkpoint: m.id, Manifest: m.cutAt})
	}
	return out
}

// Clone returns a copy that shares nothing: what a replica that joins is given.
func (m *Manager) Clone() *Manager {
	c := *m
	c.at, c.over = maps.Clone(m.at), maps.Clone(m.over)
	c.threads, c.touched, c.reads, c.added = maps.Clone(m.threads), maps.Clone(m.touched), maps.Clone(m.reads), maps.Clone(m.added)
	c.ended, c.asked, c.queries = slices.Clone(m.ended), slices.Clone(m.asked), slices.Clone(m.queries)
	c.suspects, c.manifest, c.cutAt = m.suspects.Clone(), m.manifest.clone(), m.cutAt.clone()
	return &c
}

// Append writes the whole state in canonical form: equal states give equal bytes.
func (m *Manager) Append(b []byte) []byte {
	num := func(vs ...uint64) {
		for _, v := range vs {
			b = binary.AppendUvarint(b, v)
		}
	}
	num(uint64(m.state), uint64(m.epoch), uint64(m.id), uint64(m.savedID), uint64(len(m.threads)))
	for _, id := range m.sorted() {
		t := m.threads[id]
		b = t.to.Append(t.at.Append(append(b, id[:]...)))
		num(uint64(t.mig), uint64(t.stopped))
		b = append(protocol.AppendBools(b, t.guest, t.started), t.hash[:]...)
	}
	num(uint64(len(m.ended)))
	for _, id := range m.ended {
		b = append(b, id[:]...)
	}
	b = m.suspects.Append(b)
	num(uint64(len(m.asked)), uint64(len(m.queries)))
	for _, n := range m.asked {
		b = n.Append(b)
	}
	for _, q := range m.queries {
		b = q.asker.Append(q.node.Append(append(b, q.object[:]...)))
		num(uint64(q.ack), uint64(q.seq), uint64(q.inv))
	}
	num(uint64(len(m.touched)))
	for _, o := range slices.SortedFunc(maps.Keys(m.touched), compareKeys) {
		b = append(b, o[:]...)
		num(uint64(m.touched[o]))
	}
	num(uint64(len(m.reads)))
	for _, o := range slices.SortedFunc(maps.Keys(m.reads), compareKeys) {
		r := m.reads[o]
		b = append(protocol.AppendBools(append(b, o[:]...), r.done), r.hash[:]...)
		num(uint64(r.withheld))
	}
	for _, hs := range []map[protocol.ThreadID]protocol.Hash{m.added, m.manifest.Threads, m.cutAt.Threads} {
		num(uint64(len(hs)))
		for _, id := range slices.SortedFunc(maps.Keys(hs), compareThreads) {
			h := hs[id]
			b = append(append(b, id[:]...), h[:]...)
		}
	}
	for _, hs := range []map[keyspace.Key]protocol.Hash{m.manifest.Objects, m.cutAt.Objects} {
		num(uint64(len(hs)))
		for _, o := range slices.SortedFunc(maps.Keys(hs), compareKeys) {
			h := hs[o]
			b = append(append(b, o[:]...), h[:]...)
		}
	}
	return append(b, m.hash[:]...)
}

// String prints the state as traces do.
func (m *Manager) String() string {
	s := fmt.Sprintf("%v epoch=%d", m.state, m.epoch)
	if m.id > 0 {
		s += fmt.Sprintf(" id=%d", m.id)
	}
	for _, id := range m.sorted() {
		t := m.threads[id]
		s += fmt.Sprintf(" %v@%v", id, t.at)
		if !t.to.IsZero() {
			s += fmt.Sprintf("->%v", t.to)
		}
	}
	return s
}
