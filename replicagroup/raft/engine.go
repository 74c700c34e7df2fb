package raft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	etcd "go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"latchkey/internal/automaton"
	"latchkey/internal/invariant"
	"latchkey/replicagroup/order"
)

var (
	// ErrConfig is matched when [New] refuses its configuration.
	ErrConfig = errors.New("raft: bad configuration")
	// ErrWrongStore is matched when the view knows this replica under another store id: its disk was lost or exchanged, so it
	// must come back as a new member (replica-groups.md section 3.6).
	ErrWrongStore = errors.New("raft: store is not the member's")
)

// Config describes one replica of one group.
type Config struct {
	Group order.GroupID
	Self  order.ReplicaID
	Store order.StoreID // of this peer; must be what the view says of Self
	// View is the group's first configuration; where Join is set, a view that names this replica, so that it knows whom to
	// hear. It counts only where the image is empty; later the image holds the view.
	View order.View
	// Join says that the replica is a new member of a group that exists: its log begins with a snapshot of the leader's. It
	// counts only where the image is empty.
	Join bool
	// LeaseReads lets a leader answer reads without asking the members, for about an election time-out after a majority has
	// confirmed that it leads (lease.go). All replicas of a group must have it alike. It needs a driver that tells the time
	// in events, and clocks whose rates keep to Drift; where one does not, a read may miss what another leader has committed
	// meanwhile. It costs time when a leader dies: nobody takes over within an election time-out of its last heartbeat,
	// suspected or not, and a restarted replica does not vote for as long.
	LeaseReads bool
	// PromisesOnly has this replica keep what LeaseReads has all of them promise, and ask the members for each read all the same: for
	// a replica whose clock may stand still while time passes. As a follower's, such a clock makes promises last longer, which is safe.
	PromisesOnly bool
	// Like is what [Engine.Settings] of another engine has returned, or nil: settings that both have are kept once.
	Like *Settings
	// Heartbeat is the time between a leader's heartbeats; 0 stands for [HeartbeatDefault].
	Heartbeat time.Duration
	// ElectionTicks is the election time-out T in heartbeats, at least 2; 0 stands for [ElectionTicksDefault]. A follower that
	// has heard nothing for T forgets its leader; it campaigns at a random moment before 2T.
	ElectionTicks int
	Drift         automaton.Drift
	// Quiesce is how long a leader has nothing to do before it puts the group to sleep (quiesce.go), counted in heartbeats; 0
	// stands for [QuiesceDefault], less than 0 for never.
	Quiesce time.Duration
}

func (c *Config) validate() error {
	if c.Heartbeat == 0 {
		c.Heartbeat = HeartbeatDefault
	}
	if c.ElectionTicks == 0 {
		c.ElectionTicks = ElectionTicksDefault
	}
	if c.Quiesce == 0 {
		c.Quiesce = QuiesceDefault
	}
	switch {
	case c.Self == 0 || etcd.IsLocalMsgTarget(uint64(c.Self)):
		return fmt.Errorf("%w: replica %d, an id that nobody has", ErrConfig, c.Self)
	case c.Drift < 0 || c.LeaseReads && c.Drift.Shrink(time.Duration(c.ElectionTicks)*c.Heartbeat) <= 0:
		return fmt.Errorf("%w: drift of %d ppm", ErrConfig, c.Drift)
	case c.Heartbeat < 0:
		return fmt.Errorf("%w: heartbeat %v", ErrConfig, c.Heartbeat)
	case c.ElectionTicks < 2:
		return fmt.Errorf("%w: election time-out of %d heartbeats, at least 2", ErrConfig, c.ElectionTicks)
	case !c.Group.Prefix.Valid():
		return fmt.Errorf("%w: prefix %v", ErrConfig, c.Group.Prefix)
	}
	return nil
}

// config is a Config as an engine keeps it: there may be ten thousand engines, and most of it is the same for all of them.
type config struct {
	life order.Life // of the group
	Self order.ReplicaID
	*Settings
}

// group returns the group.
func (c *config) group() order.GroupID { return c.life.In(c.Overlay) }

// Settings are those of a [Config] that the engines of one peer are likely to have in common. They are never changed.
type Settings struct {
	Overlay                  order.OverlayID
	Store                    order.StoreID
	LeaseReads, PromisesOnly bool
	Heartbeat                time.Duration
	ElectionTicks            int
	Drift                    automaton.Drift
	Quiesce                  time.Duration
}

func (c *Config) keep() config {
	s := &Settings{c.Group.Overlay, c.Store, c.LeaseReads, c.PromisesOnly, c.Heartbeat, c.ElectionTicks, c.Drift, c.Quiesce}
	if c.Like != nil && *c.Like == *s {
		s = c.Like
	}
	return config{c.Group.Life(), c.Self, s}
}

// patience is the election time-out T.
func (s *Settings) patience() time.Duration { return time.Duration(s.ElectionTicks) * s.Heartbeat }

// checkView tests the facts that a view must fulfil on its own.
func checkView(v order.View) error {
	if len(v.Members) > order.MembersMax {
		return fmt.Errorf("view of %d members, at most %d", len(v.Members), order.MembersMax)
	}
	last := order.ReplicaID(0)
	coming, former := 0, 0 // voters
	for _, m := range v.Members {
		if m.ID <= last || etcd.IsLocalMsgTarget(uint64(m.ID)) {
			return fmt.Errorf("member %d out of order or reserved", m.ID)
		}
		switch m.Role {
		case order.Voter:
			coming, former = coming+1, former+1
		case order.Joining:
			coming++
		case order.Leaving:
			former++
		case order.Learner:
		default:
			return fmt.Errorf("member %d has %v", m.ID, m.Role)
		}
		if len(m.PeerID) > order.PeerIDBytesMax {
			return fmt.Errorf("member %d with a peer id of %d bytes, at most %d", m.ID, len(m.PeerID), order.PeerIDBytesMax)
		}
		last = m.ID
	}
	if v.Next <= last || etcd.IsLocalMsgTarget(uint64(v.Next)) {
		return fmt.Errorf("next id %d is not above %d", v.Next, last)
	}
	if coming == 0 || former == 0 {
		return errors.New("view without voters")
	}
	return nil
}

// Engine orders a group's commands with Raft. It is an [order.Orderer]; not safe for concurrent use.
type Engine struct {
	cfg    config
	view   order.View        // as of what was delivered
	voters []order.ReplicaID // its Voters
	views  []viewAt          // the one at the snapshot and all that came after it; view is the last
	raft   *etcd.RawNode     // nil before the first step, and while it sleeps; see quiesce.go
	log    *memLog

	// What the library said last. Exact between two steps, because every step drains it.
	role etcd.StateType
	lead order.ReplicaID
	state
	saved state // what the last write left

	// Flags stand together, for there may be ten thousand engines.
	started bool
	halted  bool
	joint   bool // view.Joint()
	probing bool // within a step: a member answers a heartbeat, and may have to be probed
	open    bool // of a leader: a round of reads is under way, with or without reads
	asleep  bool // no timer is set; see quiesce.go
	// sleepless keeps the library in a replica that sleeps, for a test that compares it with one that does not.
	sleepless bool

	linger  int32          // ticks left of a removed replica, 0 of any other
	inRound int32          // how many of reads, the first, the round under way is for; of a leader
	install *order.Install // the image's snapshot, for the driver's machine; sent by the first step
	clock   electionClock
	lease   lease

	// Writes under way, oldest first; seq is the newest one's number, stored the newest that is durable.
	writes      fifo[write]
	seq, stored uint64

	// Entries the driver was given and has not reported as applied, oldest first. delivered is the newest index it was given
	// (also by Install), applied the newest it reported.
	unapplied          fifo[*pb.Entry]
	delivered, applied uint64
	applyResp          *pb.Message // tells the library of them; nil until it is needed

	// The rest is used by leaders only and empty otherwise.

	ready     uint64         // index of the first entry of this leadership
	proposals fifo[proposal] // by rising index, all of term
	reads     []uint64       // that wait for their point
	rounds    uint64         // rounds ever begun; names the one under way
	asked     uint64         // rounds begun in this leadership: the highest position a heartbeat carries
	before    uint64         // how many of them before the library was made anew; see resume.go
	changeAt  uint64         // index of the newest change of the view proposed here or delivered
	beats     int32          // ticks of this leadership, modulo ElectionTicks: where its check of the quorum stands
	idle      int32          // ticks since there was something to do
	offering  *offering      // nil until it is needed
	peers     []peer         // beside view.Members
	dropped   uint64         // messages refused
	scratch   *[]byte        // for Hash
}

var _ order.Orderer = (*Engine)(nil)

// state is what a replica must remember of elections, and its commit index.
type state struct{ term, vote, commit uint64 }

// write is one Persist under way.
type write struct {
	seq     uint64
	self    []*pb.Message   // what the library wants to hear once it is durable
	install *order.Install  // what the machine must take over once it is durable
	view    *order.ViewNote // its view, if it is another
}

// proposal is a command that waits for its delivery.
type proposal struct{ ref, index uint64 }

// peer is what the engine keeps of a member beside what the library does.
type peer struct {
	acked     uint64 // read round it has confirmed (for Hash)
	match     uint64 // what it had acknowledged when this leader fell asleep
	snapTicks int32  // heartbeats since a snapshot went out to it, 0 when none is under way
	pursuing  bool   // it was sent a snapshot, and lacks much of what came after
	ballot    byte   // its answer in the election under way: none, granted, refused (for Hash)
	suspected bool   // by the driver's detector; the only field that is not for leaders
}

// Settings returns what engines have in common, for [Config.Like].
func (e *Engine) Settings() *Settings { return e.cfg.Settings }

// New returns a replica that starts from img. An empty image starts the group's first configuration, which the first step
// asks to be made durable. Errors match [ErrConfig], [ErrWrongStore] or, about the image, [ErrMalformed].
func New(cfg Config, img order.Image) (*Engine, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	log, view, err := restore(cfg, img)
	if err != nil {
		return nil, err
	}
	switch stand(view, cfg.Self, cfg.Store) {
	case removed:
		return nil, fmt.Errorf("%w: %w: replica %d, view %d", ErrConfig, ErrRemoved, cfg.Self, view.Num)
	case alien:
		return nil, fmt.Errorf("%w: replica %d of view %d has another than %v", ErrWrongStore, cfg.Self, view.Num, cfg.Store)
	}
	begin := log.initial.state
	e := &Engine{
		cfg: cfg.keep(), log: log, role: etcd.StateFollower, state: begin, saved: begin,
		delivered: log.base, applied: log.base, views: []viewAt{{log.base, view}},
	}
	e.setView(view)
	if log.base > genesisIndex {
		s, err := decodeSnapshot(log.snap)
		if err != nil {
			return nil, err
		}
		e.install = &order.Install{Index: s.index, Data: s.data}
	}
	return e, nil
}

// Beginning returns the image of a group of which nothing was ever ordered and whose machine begins in the state of a snapshot. Who joins
// later gets that state from the leader.
func Beginning(g order.GroupID, first order.View, machine []byte) order.Image {
	s := snapshot{group: g, index: genesisIndex + 1, term: genesisTerm, view: first, data: machine}
	return order.Image{
		State:    encodeState(state{term: s.term, commit: s.index}),
		Snapshot: &order.Record{Kind: order.RecordSnapshot, Index: s.index, Data: encodeSnapshot(s)},
	}
}

// newNode starts the library from a log of which everything up to applied has been applied; 0 stands for where the log begins.
func newNode(cfg *config, log *memLog, applied uint64) (*etcd.RawNode, error) {
	rn, err := etcd.NewRawNode(&etcd.Config{
		ID:                        uint64(cfg.Self),
		ElectionTick:              cfg.ElectionTicks,
		HeartbeatTick:             1,
		Storage:                   log,
		Applied:                   applied,
		AsyncStorageWrites:        true,
		MaxSizePerMsg:             appendBytesMax,
		MaxCommittedSizePerReady:  applyBytesMax,
		MaxUncommittedEntriesSize: uncommittedBytesMax,
		MaxInflightMsgs:           inflightMsgsMax,
		MaxInflightBytes:          inflightBytesMax,
		CheckQuorum:               true,
		PreVote:                   true,
		ReadOnlyOption:            etcd.ReadOnlySafe,
		DisableProposalForwarding: true,
		StepDownOnRemoval:         true,
		Logger:                    silent{},
	})
	log.initial = nil // the library has asked for it
	return rn, err
}

// restore reads an image, or makes the log of a new group.
func restore(cfg Config, img order.Image) (*memLog, order.View, error) {
	if img.State == nil && img.Snapshot == nil && len(img.Entries) == 0 {
		if err := checkView(cfg.View); err != nil {
			return nil, order.View{}, fmt.Errorf("%w: %v", ErrConfig, err)
		}
		if stand(cfg.View, cfg.Self, cfg.Store) == unknown {
			return nil, order.View{}, fmt.Errorf("%w: replica %d: %w", ErrConfig, cfg.Self, errNotMember)
		}
		s := snapshot{group: cfg.Group, index: genesisIndex, term: genesisTerm, view: cfg.View}
		if cfg.Join {
			s.index, s.term = 0, 0
		}
		l := &memLog{initial: &initial{conf: s.conf(cfg.Self)}}
		l.restore(s.message(encodeSnapshot(s)))
		l.initial.state = state{term: l.baseTerm, commit: l.base}
		return l, s.view, nil
	}
	if img.Snapshot == nil {
		return nil, order.View{}, malformed("image without snapshot")
	}
	s, err := decodeSnapshot(img.Snapshot.Data)
	switch {
	case err != nil:
		return nil, s.view, err
	case s.group != cfg.Group:
		return nil, s.view, malformed("image of group %v", s.group)
	case s.index == 0 && s.term == 0 && img.Snapshot.Index == 0 && len(img.Entries) == 0: // it has joined and heard nothing yet
	case s.index != img.Snapshot.Index || s.index < genesisIndex || s.index > indexMax || s.term < genesisTerm:
		return nil, s.view, malformed("snapshot %d of term %d, stored as %d", s.index, s.term, img.Snapshot.Index)
	}
	if sameView(s.view, cfg.View) {
		s.view = cfg.View // of which others may hold the same
	}
	l := &memLog{initial: &initial{conf: s.conf(cfg.Self)}}
	l.restore(s.message(img.Snapshot.Data))
	term := s.term
	for i, rec := range img.Entries {
		if rec.Index != s.index+1+uint64(i) {
			return nil, s.view, malformed("entry %d after %d", rec.Index, s.index+uint64(i))
		}
		ent, err := decodeEntry(rec)
		if err != nil {
			return nil, s.view, err
		}
		if i == 0 && ent.GetTerm() < s.term {
			// A snapshot that came from a leader replaces a log that disagrees with it, yet a store keeps what stood above its
			// index. Those entries are recognized by their term: whoever led in a later term than the snapshot's had it.
			break
		}
		if ent.GetTerm() < term {
			return nil, s.view, malformed("entry %d: term %d after %d", rec.Index, ent.GetTerm(), term)
		}
		term = ent.GetTerm()
		l.ents = append(l.ents, ent)
	}
	if l.initial.state, err = restoreState(img.State, l); err != nil {
		return nil, s.view, err
	}
	return l, s.view, nil
}

// restoreState reads the vote, term and commit index that belong to a log. The state is the last record of each write, so
// after a torn write it may be older than the log; then nothing of that write has been acknowledged, and the log's own term
// is a term in which this replica has not voted.
func restoreState(b []byte, l *memLog) (s state, err error) {
	switch {
	case b != nil:
		if s, err = decodeState(b); err != nil {
			return s, err
		}
	case l.base > genesisIndex || len(l.ents) > 0:
		return s, malformed("image without state")
	}
	if etcd.IsLocalMsgTarget(s.vote) { // any other id may be that of a voter whom the snapshot's view does not name yet
		return s, malformed("vote for %d", s.vote)
	}
	if s.commit > l.last() {
		return s, malformed("committed %d of %d", s.commit, l.last())
	}
	if last, _ := l.term(l.last()); s.term < last {
		s.term, s.vote = last, 0
	}
	if s.term > termMax {
		return s, malformed("term %d", s.term)
	}
	s.commit = max(s.commit, l.base, committedChanges(l.ents))
	return s, nil
}

// Step consumes one event; see [order.Orderer].
func (e *Engine) Step(ev order.Event, out *order.Actions) {
	if e.halted {
		stepHalted(ev, out)
		return
	}
	e.noteTime(ev)
	if r, ok := ev.(order.Rand); ok {
		e.clock.seed(r.Bits)
	}
	if !e.started {
		e.start(out)
	}
	switch ev := ev.(type) {
	case order.Recv:
		e.recv(ev, out)
	case order.Timer:
		if ev.Kind == tickTimer && ev.Epoch == e.clock.epoch && !e.quiesce(out) {
			if !e.giveUp(out) {
				e.tick(out)
				e.drain(out)
				e.arm(out)
			}
			e.tickRemoved(out)
		}
	case order.Propose:
		e.called(out)
		e.propose([]order.Propose{ev}, out)
	case order.ProposeAll:
		e.called(out)
		e.propose(ev.List, out)
	case order.Read:
		e.called(out)
		e.read(ev, out)
	case order.Change:
		e.called(out)
		e.change(ev, out)
	case order.Transfer:
		e.called(out)
		e.transfer(ev.To, out)
	case order.Stored:
		e.onStored(ev.Seq, out)
	case order.Applied:
		e.onApplied(ev.Index, out)
	case order.Link:
		e.link(ev, out)
	case order.Suspect:
		e.suspect(ev.Member, out)
	case order.Trust:
		e.trust(ev.Member, out)
	case order.Carried:
		e.carried(ev, out)
	case order.Compact:
		e.compact(ev, out)
	}
}

// start makes a new group durable, hands the image's snapshot to the machine and sets the timer.
func (e *Engine) start(out *order.Actions) {
	e.started = true
	rn, err := newNode(&e.cfg, e.log, 0) // not before: a replica may wait long for its start, beside ten thousand others
	invariant.Check(err == nil, "a log that was restored is one", err)
	e.raft = rn
	e.promise() // it may have made one before it stopped
	if e.log.last() <= genesisIndex {
		// Also after a restart that found nothing but the beginning: a write cut short may have left half of it.
		e.persist(out, []order.Record{
			{Kind: order.RecordSnapshot, Index: e.log.snapIndex, Data: e.log.snap},
			{Kind: order.RecordState, Data: encodeState(e.saved)},
		})
	}
	if e.install != nil {
		out.Install = append(out.Install, *e.install)
		e.install = nil
	}
	e.prospects(e.log.ents, out)
	e.begin(out)
	e.drain(out)
}

// persist asks for a write. Each holds something that must be on the disk before what waits for it goes on.
func (e *Engine) persist(out *order.Actions, recs []order.Record) {
	e.seq++
	out.Persist = append(out.Persist, order.Persist{Seq: e.seq, Records: recs, Sync: true})
	e.writes.push(write{seq: e.seq})
}

// send asks for a message to be carried, once write after is durable.
func (e *Engine) send(out *order.Actions, m *pb.Message, after uint64) {
	var a acknowledged
	e.sendBeside(out, m, after, &a)
}

// sendBeside is send beside others of the same moment, which share a.
func (e *Engine) sendBeside(out *order.Actions, m *pb.Message, after uint64, a *acknowledged) {
	e.outward(m)
	b := appendHead(make([]byte, 0, headSize(m)), m)
	s := order.Send{To: order.ReplicaID(m.GetTo()), Msg: b, After: after, Spare: e.spare(m, a)}
	if m.GetType() == pb.MsgSnap {
		s.Snapshot = m.GetSnapshot().GetData()
	}
	out.Send = append(out.Send, s)
}

// spare reports whether m is an append to a voter whose acknowledgement a majority does not need: as many others as it takes have
// acknowledged more, or as much and come first. Who is told at once and does not answer has soon acknowledged less than those who are
// told a moment later, and is spared from then on.
func (e *Engine) spare(m *pb.Message, a *acknowledged) bool {
	if e.role != etcd.StateLeader || e.joint || m.GetType() != pb.MsgApp || len(m.GetEntries()) == 0 {
		return false
	}
	if !a.known {
		a.of(e)
	}
	at := -1
	for i, id := range a.by[:a.n] {
		if id == m.GetTo() {
			at = i
		}
	}
	if at < 0 {
		return false
	}
	before := 0
	for i, match := range a.matches[:a.n] {
		if match > a.matches[at] || match == a.matches[at] && i < at {
			before++
		}
	}
	return before >= len(e.voters)/2
}

// acknowledged is what the voters but this one have acknowledged, by rising id, without those that are suspected.
type acknowledged struct {
	known   bool
	n       int
	by      [order.MembersMax]uint64
	matches [order.MembersMax]uint64
}

func (a *acknowledged) of(e *Engine) {
	a.known = true
	e.raft.WithProgress(func(id uint64, kind etcd.ProgressType, pr tracker.Progress) {
		if kind == etcd.ProgressTypePeer && id != uint64(e.cfg.Self) && a.n < len(a.by) && !e.suspects(order.ReplicaID(id)) {
			a.by[a.n], a.matches[a.n] = id, pr.Match
			a.n++
		}
	})
}

// drain performs what the library has ready (replica-groups.md section 3.2), until nothing is. One turn takes everything;
// another is needed only where the turn itself gave the library something.
func (e *Engine) drain(out *order.Actions) {
	for again := true; again; again = e.beginRound() || again {
		if again = e.raft.HasReady(); again { // asking is cheap, and half the time there is nothing
			again = e.perform(e.raft.Ready(), out)
		}
	}
}

// perform carries out one Ready. It reports whether the library was given something.
func (e *Engine) perform(rd etcd.Ready, out *order.Actions) (stepped bool) {
	wasLeader, wasTerm := e.role == etcd.StateLeader, e.term
	e.noteState(rd)
	var a acknowledged
	for _, m := range rd.Messages {
		switch m.GetTo() {
		case etcd.LocalAppendThread:
			stepped = e.store(rd.MustSync, m, out) || stepped
		case etcd.LocalApplyThread:
			stepped = e.deliver(m.GetEntries(), out) || stepped
		default:
			if !e.tellsCommitOnly(m) {
				e.sendBeside(out, m, 0, &a)
			}
		}
	}
	for _, rs := range rd.ReadStates {
		e.answerRound(rs, out)
	}
	if wasLeader && (e.role != etcd.StateLeader || e.term != wasTerm) {
		e.stepDown(out)
	}
	if e.role == etcd.StateLeader && (!wasLeader || e.term != wasTerm) {
		// The first thing a leader does is to append an empty entry of its term.
		e.ready = rd.Entries[0].GetIndex()
	}
	return stepped
}

// tellsCommitOnly reports whether m does nothing but tell a member that was sent everything how far the log is committed. The
// next append says so too, and the next heartbeat at the latest; until then the member only applies later. Left unsent, a
// command costs four messages among three members instead of eight. An empty append that answers a heartbeat's answer is
// another matter: it finds out what a member has whose acknowledgement was lost.
// So is the news that a change of the view is committed: who is about to leave hears no more afterwards.
func (e *Engine) tellsCommitOnly(m *pb.Message) bool {
	return !e.joint && m.GetType() == pb.MsgApp && len(m.GetEntries()) == 0 && m.GetIndex() == e.log.last() && !e.probing
}

// noteState takes over what a Ready says of role, leader, term, vote and commit index.
func (e *Engine) noteState(rd etcd.Ready) {
	if hs := rd.HardState; hs != nil {
		if v := hs.GetVote(); v != e.vote && v != 0 && v != uint64(e.cfg.Self) {
			e.clock.rest(e.cfg) // who has given its vote away waits for the winner
		}
		e.state = state{hs.GetTerm(), hs.GetVote(), hs.GetCommit()}
	}
	if ss := rd.SoftState; ss != nil {
		if e.role != ss.RaftState {
			e.clearBallots()
		}
		e.role, e.lead = ss.RaftState, order.ReplicaID(ss.Lead)
	}
}

// store performs a message to the library's append target: a write, and the responses it owes. It reports whether the
// library was given something.
func (e *Engine) store(sync bool, m *pb.Message, out *order.Actions) (stepped bool) {
	// The state comes last: a write cut short then looks as if it had never been asked for (see restoreState).
	var recs []order.Record
	var install *order.Install
	var view *order.ViewNote
	if s := m.GetSnapshot(); s != nil {
		d, err := decodeSnapshot(s.GetData())
		invariant.Check(err == nil, "a snapshot was checked when it came", err)
		install = &order.Install{Index: d.index, Data: d.data}
		recs = append(recs, order.Record{Kind: order.RecordSnapshot, Index: d.index, Data: s.GetData()})
		out.Prospects = append(out.Prospects, order.Prospect{Index: d.index + 1, Void: true})
		e.log.restore(s)
		if !sameView(d.view, e.view) {
			view = &order.ViewNote{View: d.view, Index: d.index, Joint: d.view.Joint()}
		}
		e.setView(d.view)
		e.views = []viewAt{{d.index, d.view}}
	}
	recs = appendEntries(recs, m.GetEntries())
	if ents := m.GetEntries(); len(ents) > 0 && ents[0].GetIndex() <= e.log.last() {
		out.Prospects = append(out.Prospects, order.Prospect{Index: ents[0].GetIndex(), Void: true})
	}
	e.log.append(m.GetEntries())
	e.prospects(m.GetEntries(), out)
	if now := (state{e.term, e.vote, e.commit}); now != e.saved && (sync || install != nil) {
		// A new commit index alone is not worth a write: it is learned again, and goes along with the next.
		recs = append(recs, order.Record{Kind: order.RecordState, Data: encodeState(now)})
		e.saved = now
	}
	if len(recs) > 0 {
		e.persist(out, recs)
	}
	// Responses that come with nothing to write wait for the writes under way, if any.
	w := e.writes.last()
	after := uint64(0)
	if w != nil {
		after = w.seq
		if install != nil {
			w.install, w.view = install, view
		}
	}
	if w != nil && w.self == nil {
		w.self = m.GetResponses()[:0] // what is kept moves to the front
	}
	for _, resp := range m.GetResponses() {
		switch {
		case resp.GetTo() != uint64(e.cfg.Self):
			e.send(out, resp, after)
		case w != nil:
			w.self = append(w.self, resp)
		default:
			e.feed(resp)
			stepped = true
		}
	}
	return stepped
}

// prospects tells of those among entries of the log that are to be told of before they are delivered.
func (e *Engine) prospects(ents []*pb.Entry, out *order.Actions) {
	for _, ent := range ents {
		switch data := ent.GetData(); {
		case isChange(ent):
			if c, err := decodeChange(data); len(data) > 0 && err == nil && c.Learn == nil {
				out.Prospects = append(out.Prospects, order.Prospect{Index: ent.GetIndex()})
			}
		case order.Own(data):
			if _, cmd, err := order.DecodeCommand(data); err == nil {
				out.Prospects = append(out.Prospects, order.Prospect{Index: ent.GetIndex(), Cmd: &cmd})
			}
		}
	}
}

// onStored continues what waited for writes up to seq.
func (e *Engine) onStored(seq uint64, out *order.Actions) {
	if seq > e.seq || seq <= e.stored {
		return
	}
	e.stored = seq
	fed := false
	for w := e.writes.first(); w != nil && w.seq <= seq; w = e.writes.first() {
		for _, m := range w.self {
			e.feed(m)
			fed = true
		}
		if w.install != nil {
			e.delivered = w.install.Index
			out.Install = append(out.Install, *w.install)
		}
		if w.view != nil {
			out.Views = append(out.Views, *w.view)
		}
		e.writes.pop()
	}
	if fed {
		e.drain(out)
	}
}

// feed hands a message to the library. Its errors mean "not now" and need no answer here.
func (e *Engine) feed(m *pb.Message) {
	e.noteBallot(m)
	_ = e.raft.Step(m)
}

// deliver hands committed entries to the machine, and tells the proposers of those that were proposed here. It reports whether
// the library was given something: a change of the view.
func (e *Engine) deliver(ents []*pb.Entry, out *order.Actions) (stepped bool) {
	for _, ent := range ents {
		invariant.Check(ent.GetIndex() == e.delivered+1, "delivery has no gap", ent.GetIndex())
		e.delivered = ent.GetIndex()
		e.unapplied.push(ent)
		d := order.Entry{Index: ent.GetIndex(), Kind: order.Noop}
		var unfit error
		switch {
		case isChange(ent):
			if unfit = e.applyChange(ent, out); unfit == nil {
				view := e.view
				d.Kind, d.Change, stepped = order.ViewChange, &view, true
			}
		case len(ent.GetData()) > 0:
			var err error
			d.Kind = order.Normal
			d.Stamp, d.Cmd, err = order.DecodeCommand(ent.GetData())
			invariant.Check(err == nil, "only commands enter the log", err)
		}
		d.View = e.view.Num
		out.Deliver = append(out.Deliver, d)
		if p := e.proposals.first(); p != nil && p.index == d.Index {
			out.Done = append(out.Done, order.Outcome{Ref: p.ref, Index: p.index, Err: unfit})
			e.proposals.pop()
		}
	}
	return stepped
}

// onApplied takes note that the machine has executed everything up to index. A driver may report any index inside what was
// delivered; one beyond is taken for the end of it.
func (e *Engine) onApplied(index uint64, out *order.Actions) {
	index = min(index, e.delivered)
	if index <= e.applied {
		return
	}
	e.applied = index
	n := 0
	for ents := e.unapplied.all(); n < len(ents) && ents[n].GetIndex() <= index; n++ {
	}
	if n > 0 {
		if e.applyResp == nil {
			e.applyResp = &pb.Message{
				Type: pb.MsgStorageApplyResp.Enum(), To: new(uint64(e.cfg.Self)), From: new(etcd.LocalApplyThread), Term: new(uint64),
			}
		}
		e.applyResp.Entries = e.unapplied.all()[:n]
		e.feed(e.applyResp) // the library reads it and does not keep it
		e.applyResp.Entries = nil
		for range n {
			e.unapplied.pop()
		}
	}
	if e.asleep {
		e.doze()
	}
	if e.delivered < e.commit || len(e.reads) > int(e.inRound) || e.joint {
		e.drain(out) // a joint view may be left now, or more may be delivered now, and a leader that got ready answers reads
	}
}

// leading reports whether this replica leads and has applied an entry of its own term.
func (e *Engine) leading() bool { return e.role == etcd.StateLeader && e.applied >= e.ready }

// propose hands the library commands, many in one message: however many they are, each member gets one append, stores and
// acknowledges once, and the library goes once through all it does for a proposal.
func (e *Engine) propose(ps []order.Propose, out *order.Actions) {
	refuse := func(ref uint64, err error) { out.Done = append(out.Done, order.Outcome{Ref: ref, Err: err}) }
	if e.offering == nil {
		e.offering = newOffering(e.cfg.Self)
	}
	o, next := e.offering, e.log.last()+1
	offer := func(refs []uint64, ents []*pb.Entry) bool { // taken all or not at all
		o.message.Entries = ents
		if e.raft.Step(o.message) != nil {
			return false
		}
		for _, ref := range refs {
			e.proposals.push(proposal{ref: ref, index: next})
			next++
		}
		return true
	}
	for len(ps) > 0 {
		o.reset()
		for ; len(ps) > 0 && len(o.data) < appendBytesMax; ps = ps[1:] {
			p := ps[0]
			switch {
			case e.role != etcd.StateLeader:
				refuse(p.Ref, order.ErrNotLeader)
			case e.writes.len() >= persistsMax:
				refuse(p.Ref, order.ErrBusy)
			default:
				if err := o.add(p); err != nil {
					refuse(p.Ref, err)
				}
			}
		}
		if len(o.refs) == 0 || offer(o.refs, o.ents) {
			continue
		}
		for i, ref := range o.refs { // there may be room for some
			if !offer(o.refs[i:i+1], o.ents[i:i+1]) {
				refuse(ref, order.ErrBusy)
			}
		}
	}
	o.reset()
	e.drain(out)
}

// offering is the storage of a leader's proposals, of which the library takes copies. (It says so in appendEntry. If it ever keeps
// what it is given, later commands take the place of earlier ones, and every test of the log fails.)
type offering struct {
	message *pb.Message
	refs    []uint64
	ents    []*pb.Entry
	data    []byte // of ents, one after the other
}

// offeredMax bounds the commands whose storage is kept, and offeredBytesMax their bytes.
const (
	offeredMax      = 64
	offeredBytesMax = 16 << 10
)

func newOffering(self order.ReplicaID) *offering {
	return &offering{message: &pb.Message{Type: pb.MsgProp.Enum(), From: new(uint64(self))}}
}

// reset forgets what was offered, and gives back storage of an unusual size.
func (o *offering) reset() {
	o.message.Entries = nil
	for _, ent := range o.ents {
		ent.Data = nil
	}
	o.refs, o.ents, o.data = o.refs[:0], o.ents[:0], o.data[:0]
	if cap(o.ents) > offeredMax {
		o.refs, o.ents = nil, nil
	}
	if cap(o.data) > offeredBytesMax {
		o.data = nil
	}
}

// add appends a proposal. What the log holds of it must be readable at delivery.
func (o *offering) add(p order.Propose) error {
	from := len(o.data)
	data, err := order.AppendCommand(o.data, p.Stamp, p.Cmd)
	if err == nil {
		err = order.CheckCommand(data[from:])
	}
	if err != nil {
		return err
	}
	n := len(o.ents)
	if n < cap(o.ents) && o.ents[:n+1][n] != nil {
		o.ents = o.ents[:n+1]
	} else {
		o.ents = append(o.ents, new(pb.Entry))
	}
	o.ents[n].Data = data[from:len(data):len(data)]
	o.refs, o.data = append(o.refs, p.Ref), data
	return nil
}

// stepDown ends a leadership: nobody can say any more what becomes of its proposals, and its reads were never confirmed.
func (e *Engine) stepDown(out *order.Actions) {
	for p := e.proposals.first(); p != nil; p = e.proposals.first() {
		out.Done = append(out.Done, order.Outcome{Ref: p.ref, Index: p.index, Err: order.ErrDropped})
		e.proposals.pop()
	}
	for _, ref := range e.reads {
		out.Done = append(out.Done, order.Outcome{Ref: ref, Err: order.ErrNotLeader})
	}
	e.reads, e.inRound, e.open = nil, 0, false
	e.endLease()
	e.asked, e.before, e.beats, e.idle, e.ready, e.changeAt = 0, 0, 0, 0, 0, 0
	for i := range e.peers {
		e.peers[i].snapTicks, e.peers[i].acked, e.peers[i].pursuing = 0, 0, false
	}
	e.clock.rest(e.cfg)
}

func (e *Engine) read(r order.Read, out *order.Actions) {
	switch {
	case e.role != etcd.StateLeader:
		out.Done = append(out.Done, order.Outcome{Ref: r.Ref, Err: order.ErrNotLeader})
	case len(e.reads)-int(e.inRound) >= readsMax:
		out.Done = append(out.Done, order.Outcome{Ref: r.Ref, Err: order.ErrBusy})
	case e.leaseHolds() && !e.cfg.PromisesOnly:
		out.ReadOK = append(out.ReadOK, order.ReadPoint{Ref: r.Ref, Index: e.commit})
		if e.renewLease() {
			e.drain(out)
		}
	default:
		e.reads = append(e.reads, r.Ref)
		e.drain(out)
	}
}

// beginRound starts a round of heartbeats for the reads that wait, unless one is under way: its answers may have left the
// members before these reads came. A fresh leader does not know yet what its predecessors committed, so it waits.
func (e *Engine) beginRound() bool {
	if e.open || len(e.reads) == 0 && !e.lease.renew || !e.leading() {
		return false
	}
	e.open = true
	e.lease.renew, e.lease.began = false, e.lease.now
	e.inRound = int32(len(e.reads))
	e.rounds++
	if len(e.voters) > 1 {
		e.asked++ // a lone voter need not ask
	}
	e.raft.ReadIndex(binary.BigEndian.AppendUint64(nil, e.rounds))
	return true
}

// answerRound answers the reads of the round that a majority has confirmed.
func (e *Engine) answerRound(rs etcd.ReadState, out *order.Actions) {
	if binary.BigEndian.Uint64(rs.RequestCtx) != e.rounds {
		return
	}
	for _, ref := range e.reads[:e.inRound] {
		out.ReadOK = append(out.ReadOK, order.ReadPoint{Ref: ref, Index: rs.Index})
	}
	e.reads = append(e.reads[:0], e.reads[e.inRound:]...)
	e.inRound, e.open = 0, false
	e.confirmLease()
}

// compact takes over a snapshot of the machine, with the view of its index. One that is too large, or not of an applied index
// above the last snapshot's, is dropped.
func (e *Engine) compact(c order.Compact, out *order.Actions) {
	if c.Index <= e.log.snapIndex || c.Index > e.applied || len(c.Data) > SnapshotBytesMax {
		return
	}
	view := e.viewOf(c.Index)
	if stand(view, e.cfg.Self, e.cfg.Store) == removed {
		return // nobody could start from it
	}
	term, err := e.log.term(c.Index)
	invariant.Check(err == nil, "an applied entry above the snapshot is in the log", c.Index)
	s := snapshot{group: e.cfg.group(), index: c.Index, term: term, view: view, data: c.Data}
	rec := encodeSnapshot(s)
	for len(e.views) > 1 && e.views[1].index <= c.Index {
		e.views = slices.Delete(e.views, 0, 1)
	}
	e.log.compact(s.message(rec), e.needed(c.Index))
	e.persist(out, []order.Record{{Kind: order.RecordSnapshot, Index: c.Index, Data: rec}})
}

// Leader returns who leads, as far as this replica knows; see [order.Orderer].
func (e *Engine) Leader() (leader order.ReplicaID, leading bool) { return e.lead, e.leading() }

// Quiesced reports whether this replica sleeps; see [order.Orderer].
func (e *Engine) Quiesced() bool { return e.asleep }

// Dropped returns how many messages were refused because no honest member in its right state sends them, or because the
// disk is too far behind.
func (e *Engine) Dropped() uint64 { return e.dropped }

// Status reports the present state; see [order.Orderer].
func (e *Engine) Status() order.Status {
	s := order.Status{
		View: e.view, Self: e.cfg.Self, Leader: e.lead, Leading: e.leading(), Term: e.term, Commit: e.commit, Applied: e.applied,
		First: e.log.snapIndex + 1, Last: e.log.last(), Quiesced: e.asleep,
	}
	if e.role == etcd.StateLeader {
		s.Behind, s.Match = make(map[order.ReplicaID]uint64), make(map[order.ReplicaID]uint64)
		e.progress(func(id order.ReplicaID, match uint64) {
			s.Behind[id] = s.Last - min(s.Last, match)
			s.Match[id] = match
		})
	}
	return s
}

// progress tells, at a leader, what each of the other members has acknowledged.
func (e *Engine) progress(f func(id order.ReplicaID, match uint64)) {
	if e.raft == nil {
		for i, m := range e.view.Members {
			if m.ID != e.cfg.Self {
				f(m.ID, e.peers[i].match)
			}
		}
		return
	}
	e.raft.WithProgress(func(id uint64, _ etcd.ProgressType, pr tracker.Progress) {
		if id != uint64(e.cfg.Self) {
			f(order.ReplicaID(id), pr.Match)
		}
	})
}
