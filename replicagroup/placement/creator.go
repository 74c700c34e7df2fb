package placement

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/invariant"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/quorum"
)

// Limits of a [Creator].
const (
	CreationsMax  = 64  // creations that are not committed yet; a further Ensure gets ErrBusy
	EnsuresMax    = 256 // Ensures waiting for one creation; a further one gets ErrBusy
	CandidatesMax = 20  // peers considered per look-up: Kademlia's K

	candidatesKept = 2 * CandidatesMax // of all rounds and known peers, the closest
)

// Times of a [Creator].
const (
	lookUpWait  = 5 * time.Second        // a look-up unanswered that long counts as one that found nobody
	askWait     = 2 * time.Second        // a peer silent that long is passed over in this round
	proposeWait = 5 * time.Second        // whoever waits for a commit longer hears that the outcome is unknown
	retryPause  = 250 * time.Millisecond // before the next round, and before a dropped proposal is repeated
	answerWait  = 3 * time.Second        // an Ensure is answered this long after the commit, members started or not
	startFirst  = 500 * time.Millisecond // between Starts until a majority has reported in
	startLast   = 10 * time.Second       // the longest pause between Starts to the rest
)

// Rounds of look-up and asking when fewer than 2f+1 peers accept. A peer missed by one look-up or busy for a moment should
// not make a group smaller for ever; a small overlay should not wait long for peers that do not exist. Proposals that are
// dropped lead to further rounds, up to roundsMax, then whoever waits hears that the outcome is unknown.
const (
	roundsFew    = 2 // when every peer that was found has answered
	roundsSilent = 3 // when some were silent
	roundsMax    = 10
)

// Errors in [AnswerEnsure.Err].
var (
	ErrNotLeader = errors.New("placement: this replica does not lead the parent group")
	ErrBusy      = errors.New("placement: too many groups are being created")
	ErrPrefix    = errors.New("placement: not a prefix of the overlay's depth")
	ErrNoHosts   = errors.New("placement: no peer near the prefix hosts groups")
	// ErrUndecided: the Create was proposed and its fate is unknown. Asking again finds out.
	ErrUndecided = errors.New("placement: outcome of the creation unknown")
	ErrRefused   = errors.New("placement: the directory refused the creation")
	// ErrNotReady: the directory was not ready for the creation (status [NotReady]). Asking again in a while finds it so.
	ErrNotReady = errors.New("placement: not known yet who has something at the key")
	// ErrCreating: the prefix's group is being created or revived, so there is nothing lost to revive yet.
	ErrCreating = errors.New("placement: the group is being created")
)

// CreatorEvent is an input of a [Creator].
type CreatorEvent interface{ isCreatorEvent() }

// The events of a [Creator].
type (
	// Ensure asks for Prefix's group. Known is what the leader's own directory says of it, zero if nothing. Every Ensure is
	// answered by exactly one [AnswerEnsure] with its Ref.
	Ensure struct {
		Prefix keyspace.Prefix
		Ref    uint64
		Known  Child
		Name   keyspace.Preimage // of a [NewKeyCreator]: the key's
	}
	// ReviveLost asks for the next generation of a lost group: Known is what the leader's own directory says of it. That it is
	// lost, whoever asks has made sure. Like every Ensure it is answered by exactly one [AnswerEnsure] with its Ref.
	ReviveLost struct {
		Ref   uint64
		Known Child
		Name  keyspace.Preimage // of a [NewKeyCreator]: the key's
	}
	// Closest answers a [LookUp]: the peers found, in any order, this one included if it hosts groups. None if it failed.
	Closest struct {
		Prefix keyspace.Prefix
		Peers  []Peer
	}
	// HostAnswer is a peer's own answer to [AskHost]. Store is where it would keep the replica.
	HostAnswer struct {
		Prefix keyspace.Prefix
		Peer   keyspace.NodeID
		Store  order.StoreID
		OK     bool
	}
	// NoAnswer reports that a peer could not be asked.
	NoAnswer struct {
		Prefix keyspace.Prefix
		Peer   keyspace.NodeID
	}
	// Committed reports the child of an executed Create or Revive, ours or one before it, or the child after an Update.
	Committed struct{ Child Child }
	// NotCommitted reports that a proposed Create or Revive was not executed (an error of package order), or was and the
	// directory refused it ([ErrRefused], [ErrNotReady]). Ref is the proposal's: what is said of one that the creator has given up does not end
	// the next one.
	NotCommitted struct {
		Prefix keyspace.Prefix
		Ref    uint64
		Err    error
	}
	// Started reports that a member runs its replica: its answer to [SendStart], on its own stream.
	Started struct {
		Group   order.GroupID
		Peer    keyspace.NodeID
		Replica order.ReplicaID
		Store   order.StoreID
	}
	// LeaderChange reports that this replica of the parent group begins to lead, with the unfinished children of its
	// directory, or that it no longer leads.
	LeaderChange struct {
		Leading   bool
		Unstarted []Child
	}
	// Wake reports that the instant of the last [Arm] has come.
	Wake struct{}
)

func (Ensure) isCreatorEvent()       {}
func (ReviveLost) isCreatorEvent()   {}
func (Closest) isCreatorEvent()      {}
func (HostAnswer) isCreatorEvent()   {}
func (NoAnswer) isCreatorEvent()     {}
func (Committed) isCreatorEvent()    {}
func (NotCommitted) isCreatorEvent() {}
func (Started) isCreatorEvent()      {}
func (LeaderChange) isCreatorEvent() {}
func (Wake) isCreatorEvent()         {}

// CreatorAction is an output of a [Creator].
type CreatorAction interface{ isCreatorAction() }

// The actions of a [Creator].
type (
	// LookUp asks for the N peers closest to Anchor by a fresh look-up; answered by [Closest].
	LookUp struct {
		Prefix keyspace.Prefix
		Anchor keyspace.Preimage
		N      int
	}
	// AskHost asks a peer, perhaps this one, whether it will host a replica of Prefix's group; answered by [HostAnswer] or
	// [NoAnswer].
	AskHost struct {
		Prefix keyspace.Prefix
		Peer   Peer
	}
	// Propose asks for a command's place in the parent's log. A Create or Revive is answered by [Committed] or [NotCommitted]; a
	// Reported needs no answer, and has no Ref.
	Propose struct {
		Ref     uint64
		Command Command
	}
	// ProposeKey is Propose of a [NewKeyCreator]: an Out in place of a Create, a Change in place of the others.
	ProposeKey struct {
		Ref     uint64
		Prefix  keyspace.Prefix
		Command KeyCommand
	}
	// SendStart tells a member to start its replica; its answer becomes [Started].
	SendStart struct {
		Peer       Peer
		Descriptor Descriptor
	}
	// AnswerEnsure ends an [Ensure]: the group's descriptor, or an error.
	AnswerEnsure struct {
		Ref        uint64
		Descriptor Descriptor
		Err        error
	}
	// Arm asks for a [Wake] at an instant, in place of the one asked for before; [automaton.Never] asks for none.
	Arm struct{ At automaton.Instant }
)

func (LookUp) isCreatorAction()       {}
func (AskHost) isCreatorAction()      {}
func (Propose) isCreatorAction()      {}
func (ProposeKey) isCreatorAction()   {}
func (SendStart) isCreatorAction()    {}
func (AnswerEnsure) isCreatorAction() {}
func (Arm) isCreatorAction()          {}

type phase uint8

const (
	lookingUp phase = iota + 1
	asking
	pausing // between two rounds
	proposing
	starting
)

type opinion uint8

const (
	fresh  opinion = iota // not asked in this round
	asked                 // until candidate.deadline
	yes                   // will host, in candidate.store
	no                    // hosts nothing
	silent                // did not answer in this round
)

type candidate struct {
	Peer
	node     keyspace.NodeID
	opinion  opinion
	store    order.StoreID
	deadline automaton.Instant
}

// creation is the making of one prefix's group, or of a further generation of it.
type creation struct {
	phase    phase
	revives  bool   // generation lost is to be followed by the next one
	lost     uint64 // of revives
	anchor   keyspace.Preimage
	point    keyspace.Key // of anchor
	ensures  []uint64     // who waits, at most EnsuresMax
	deadline automaton.Instant
	// Before the commit: the closest candidates of all rounds by rising distance to point, at most candidatesKept.
	candidates []candidate
	round      int
	proposal   uint64 // Ref of the newest
	// After it: the child, with the members that have reported in.
	child    Child
	answerBy automaton.Instant // when the Ensures are answered, started or not; Never when nobody waits
	pause    time.Duration     // until the next Starts
}

// Creator is the parent leader's side of creating groups (rule G3). It proposes; only the parent's log creates. Whatever it
// forgets or repeats, the directory keeps one child per prefix. Bounds: [CreationsMax], [EnsuresMax], and one finished
// creation with silent members per child of the directory. Not safe for concurrent use.
type Creator struct {
	overlay order.OverlayID
	depth   int
	f       int
	known   []Peer
	leading bool
	keys    bool            // it creates own groups of keys
	within  keyspace.Prefix // of keys: whose
	open    map[keyspace.Prefix]*creation
	pending int // creations in open before phase starting
	lastRef uint64
	armed   automaton.Instant
}

// NewCreator returns the creator of a replica of g's root group that does not lead yet. known are peers that are candidates
// whether a look-up finds them or not: the parent group's members, so that a look-up made while the overlay starts does not
// make a group smaller than its parent.
func NewCreator(g Genesis, known []Peer) *Creator {
	return &Creator{overlay: g.ID(), depth: g.Depth, f: g.F, known: known,
		open: make(map[keyspace.Prefix]*creation), armed: automaton.Never}
}

// NewKeyCreator returns the creator of a replica of the group of a prefix, which makes own groups for keys of that prefix (rule G7), of
// the peers closest to each key: the point where they should live is the key itself, so its preimage comes with every Ensure.
// What its group is part of does not matter to where they live, so known peers are no candidates of their own accord.
func NewKeyCreator(g Genesis, prefix keyspace.Prefix) *Creator {
	c := NewCreator(g, nil)
	c.keys, c.within, c.depth = true, prefix, keyspace.PrefixBitsMax
	return c
}

// takes says why this creator makes no group of a prefix, if it does not.
func (c *Creator) takes(p keyspace.Prefix, name keyspace.Preimage) error {
	switch {
	case int(p.Len) != c.depth || !p.Valid():
		return fmt.Errorf("%w: %v", ErrPrefix, p)
	case c.keys && (name == "" || len(name) > KeyNameMax || KeyPrefix(name.Key()) != p || !c.within.Contains(name.Key())):
		return fmt.Errorf("%w: %v is not the key of this name, or not of prefix %v", ErrPrefix, p, c.within)
	}
	return nil
}

// anchor returns the preimage of the point at which a group that takes allows should live.
func (c *Creator) anchor(p keyspace.Prefix, name keyspace.Preimage) keyspace.Preimage {
	if c.keys {
		return name
	}
	anchor, err := Anchor(c.overlay, p)
	invariant.Check(err == nil, "a checked prefix has an anchor", p)
	return anchor
}

// propose asks for a command's place in the log of the group that this creator works for.
func (c *Creator) propose(ref uint64, cmd Command, name keyspace.Preimage) CreatorAction {
	if !c.keys {
		return Propose{ref, cmd}
	}
	if cmd.Kind == Create {
		return ProposeKey{Ref: ref, Prefix: cmd.Prefix, Command: KeyCommand{Kind: Out, Name: string(name), Members: cmd.Members}}
	}
	change, err := cmd.Encode()
	invariant.Check(err == nil, "members that were checked can be named", err)
	return ProposeKey{Ref: ref, Prefix: cmd.Prefix, Command: KeyCommand{Kind: Change, Change: change}}
}

// Step consumes one event and appends what is to be done to out. It never blocks and never fails: an event that fits no
// creation is stale and is dropped.
func (c *Creator) Step(ev CreatorEvent, now automaton.Instant, out []CreatorAction) []CreatorAction {
	switch ev := ev.(type) {
	case Ensure:
		out = c.ensure(ev, now, out)
	case ReviveLost:
		out = c.revive(ev, now, out)
	case Closest:
		if m := c.open[ev.Prefix]; m != nil && m.phase == lookingUp {
			out = c.found(ev.Prefix, m, ev.Peers, now, out)
		}
	case HostAnswer:
		if ev.Store == (order.StoreID{}) {
			ev.OK = false
		}
		if m := c.open[ev.Prefix]; m != nil && m.phase == asking {
			m.answered(ev)
			out = c.progress(ev.Prefix, m, now, out)
		}
	case NoAnswer:
		if m := c.open[ev.Prefix]; m != nil && m.phase == asking {
			m.passOver(func(k candidate) bool { return k.node == ev.Peer })
			out = c.progress(ev.Prefix, m, now, out)
		}
	case Committed:
		out = c.committed(ev.Child, now, out)
	case NotCommitted:
		out = c.notCommitted(ev, now, out)
	case Started:
		out = c.started(ev, out)
	case LeaderChange:
		out = c.leaderChange(ev, now, out)
	case Wake:
		c.armed = automaton.Never
		for _, p := range slices.SortedFunc(maps.Keys(c.open), keyspace.Prefix.Compare) {
			out = c.wake(p, c.open[p], now, out)
		}
	}
	return c.arm(out)
}

// Open returns how many creations are under way, those included that wait for silent members.
func (c *Creator) Open() int { return len(c.open) }

func (c *Creator) ensure(ev Ensure, now automaton.Instant, out []CreatorAction) []CreatorAction {
	m := c.open[ev.Prefix]
	refuse := func(err error) []CreatorAction { return append(out, AnswerEnsure{Ref: ev.Ref, Err: err}) }
	err := c.takes(ev.Prefix, ev.Name)
	if c.keys && err == nil && m != nil && m.phase == starting && ev.Known.IsZero() { // the key was taken back before all had started
		out = c.giveUp(ev.Prefix, m, ErrUndecided, out)
		m = nil
	}
	switch {
	case err != nil:
		return refuse(err)
	case !c.leading:
		return refuse(ErrNotLeader)
	case m == nil && !ev.Known.IsZero() && !ev.Known.unfinished():
		return append(out, AnswerEnsure{Ref: ev.Ref, Descriptor: ev.Known.Descriptor})
	case m == nil && !ev.Known.IsZero():
		// Its commit came after this creator had given it up, and nobody told it: it is that of a proposal whose outcome was unknown.
		return c.ensure(ev, now, c.committed(ev.Known, now, out))
	case m == nil && c.pending >= CreationsMax:
		return refuse(ErrBusy)
	case m == nil:
		anchor := c.anchor(ev.Prefix, ev.Name)
		m = &creation{anchor: anchor, point: anchor.Key(), ensures: []uint64{ev.Ref}}
		c.open[ev.Prefix] = m
		c.pending++
		return m.lookUp(ev.Prefix, now, out)
	case m.phase == starting && m.answerBy == automaton.Never && m.child.majority():
		return append(out, AnswerEnsure{Ref: ev.Ref, Descriptor: m.child.Descriptor})
	case len(m.ensures) >= EnsuresMax:
		return refuse(ErrBusy)
	}
	m.ensures = append(m.ensures, ev.Ref)
	if m.phase == starting && m.answerBy == automaton.Never {
		m.answerBy = now.Add(answerWait)
	}
	return out
}

// revive begins what leads to a Revive. A creation that waits for members of the lost generation to start is over.
func (c *Creator) revive(ev ReviveLost, now automaton.Instant, out []CreatorAction) []CreatorAction {
	p := ev.Known.Group.Prefix
	m := c.open[p]
	refuse := func(err error) []CreatorAction { return append(out, AnswerEnsure{Ref: ev.Ref, Err: err}) }
	err := c.takes(p, ev.Name)
	switch {
	case err != nil:
		return refuse(err)
	case ev.Known.IsZero():
		return refuse(fmt.Errorf("%w: %v", ErrPrefix, p))
	case !c.leading:
		return refuse(ErrNotLeader)
	case m != nil && m.phase != starting && m.revives && m.lost == ev.Known.Group.Gen: // asked again, or by a second operator
		if len(m.ensures) >= EnsuresMax {
			return refuse(ErrBusy)
		}
		m.ensures = append(m.ensures, ev.Ref)
		return out
	case m != nil && (m.phase != starting || m.child.Group.Gen > ev.Known.Group.Gen):
		return refuse(ErrCreating)
	case m == nil && c.pending >= CreationsMax:
		return refuse(ErrBusy)
	case m != nil:
		out = c.giveUp(p, m, ErrUndecided, out)
	}
	anchor := c.anchor(p, ev.Name)
	m = &creation{anchor: anchor, point: anchor.Key(), ensures: []uint64{ev.Ref}, revives: true, lost: ev.Known.Group.Gen}
	c.open[p] = m
	c.pending++
	return m.lookUp(p, now, out)
}

// lookUp begins a round.
func (m *creation) lookUp(p keyspace.Prefix, now automaton.Instant, out []CreatorAction) []CreatorAction {
	m.phase = lookingUp
	m.round++
	m.deadline = now.Add(lookUpWait)
	return append(out, LookUp{Prefix: p, Anchor: m.anchor, N: CandidatesMax})
}

// found merges what a look-up found with what earlier rounds learned, and begins to ask.
func (c *Creator) found(p keyspace.Prefix, m *creation, peers []Peer, now automaton.Instant, out []CreatorAction) []CreatorAction {
	before := m.candidates
	m.candidates = nil
	for _, peer := range slices.Concat(peers[:min(len(peers), CandidatesMax)], c.known) {
		k := candidate{Peer: peer, node: peer.Node()}
		same := func(o candidate) bool { return o.node == k.node }
		if peer.check() != nil || slices.ContainsFunc(m.candidates, same) {
			continue
		}
		// A yes or a no holds; who was silent, or not needed, is asked anew.
		if i := slices.IndexFunc(before, same); i >= 0 && (before[i].opinion == yes || before[i].opinion == no) {
			k.opinion, k.store = before[i].opinion, before[i].store
		}
		m.candidates = append(m.candidates, k)
	}
	// Peers of earlier rounds stay candidates though this look-up missed them.
	for _, k := range before {
		if !slices.ContainsFunc(m.candidates, func(o candidate) bool { return o.node == k.node }) {
			if k.opinion == silent || k.opinion == asked {
				k.opinion = fresh
			}
			m.candidates = append(m.candidates, k)
		}
	}
	slices.SortFunc(m.candidates, func(a, b candidate) int { return keyspace.CompareDistance(m.point, a.node, b.node) })
	m.candidates = m.candidates[:min(len(m.candidates), candidatesKept)]
	m.phase = asking
	return c.progress(p, m, now, out)
}

func (m *creation) answered(ev HostAnswer) {
	for i := range m.candidates {
		if k := &m.candidates[i]; k.node == ev.Peer && (k.opinion == asked || k.opinion == silent) {
			if k.opinion = no; ev.OK {
				k.opinion, k.store = yes, ev.Store
			}
		}
	}
}

// passOver marks the peers under question that gone selects as silent.
func (m *creation) passOver(gone func(candidate) bool) {
	for i := range m.candidates {
		if k := &m.candidates[i]; k.opinion == asked && gone(*k) {
			k.opinion = silent
		}
	}
}

// progress asks the closest peers that may still accept, 2f+1 at most, and goes on when nobody is left to wait for.
func (c *Creator) progress(p keyspace.Prefix, m *creation, now automaton.Instant, out []CreatorAction) []CreatorAction {
	want := quorum.Voters(2*c.f+1, c.f)
	var hosts []Host
	var wait, quiet int
	m.deadline = automaton.Never
	for i := range m.candidates {
		k := &m.candidates[i]
		if len(hosts)+wait == want {
			break
		}
		switch k.opinion {
		case fresh:
			k.opinion, k.deadline = asked, now.Add(askWait)
			out = append(out, AskHost{Prefix: p, Peer: k.Peer})
			fallthrough
		case asked:
			wait++
			m.deadline = min(m.deadline, k.deadline)
		case yes:
			hosts = append(hosts, Host{Peer: k.Peer, Store: k.store})
		case silent:
			quiet++
		}
	}
	switch {
	case wait > 0:
		return out
	case len(hosts) < want && (m.round < roundsFew || quiet > 0 && m.round < roundsSilent):
		m.phase, m.deadline = pausing, now.Add(retryPause)
		return out
	case len(hosts) == 0:
		return c.giveUp(p, m, ErrNoHosts, out)
	}
	hosts = hosts[:quorum.Voters(len(hosts), c.f)]
	if err := checkHosts(hosts, c.f); err != nil { // two peers that claim one store
		return c.giveUp(p, m, fmt.Errorf("%w: %v", ErrNoHosts, err), out)
	}
	c.lastRef++
	m.phase, m.deadline, m.proposal = proposing, now.Add(proposeWait), c.lastRef
	if m.revives {
		return append(out, c.propose(m.proposal, Command{Kind: Revive, Prefix: p, Gen: m.lost, Members: hosts}, m.anchor))
	}
	return append(out, c.propose(m.proposal, Command{Kind: Create, Prefix: p, Members: hosts}, m.anchor))
}

// giveUp tells everybody who waits, and forgets the creation. If its Create is committed after all, [Creator.committed] goes
// on from there, once somebody tells of it: whoever proposed, or the next Ensure.
func (c *Creator) giveUp(p keyspace.Prefix, m *creation, err error, out []CreatorAction) []CreatorAction {
	for _, ref := range m.ensures {
		out = append(out, AnswerEnsure{Ref: ref, Err: err})
	}
	if m.phase != starting {
		c.pending--
	}
	delete(c.open, p)
	return out
}

func (c *Creator) committed(ch Child, now automaton.Instant, out []CreatorAction) []CreatorAction {
	p := ch.Group.Prefix
	m := c.open[p]
	switch {
	case !c.leading || ch.IsZero():
		return out
	case m == nil && ch.AllStarted():
		return out
	case m == nil:
		m = &creation{answerBy: automaton.Never}
		c.open[p] = m
	case m.phase == starting && !Newer(ch.Descriptor, m.child.Descriptor):
		return out
	case m.phase == starting && ch.Group == m.child.Group: // its members changed
		m.child = ch
		return c.settle(p, m, out)
	case m.phase == starting: // it was revived
	case m.revives && ch.Group.Gen <= m.lost: // news of the lost generation
		return out
	default:
		c.pending--
		m.answerBy = now.Add(answerWait)
		m.candidates = nil
	}
	m.phase, m.child, m.pause = starting, ch, startFirst
	out = m.sendStarts(now, out)
	return c.settle(p, m, out)
}

func (c *Creator) notCommitted(ev NotCommitted, now automaton.Instant, out []CreatorAction) []CreatorAction {
	m := c.open[ev.Prefix]
	if m == nil || m.phase != proposing || m.proposal != ev.Ref {
		return out
	}
	switch {
	case errors.Is(ev.Err, order.ErrNotLeader), errors.Is(ev.Err, order.ErrHalted):
		return c.giveUp(ev.Prefix, m, ErrNotLeader, out)
	case errors.Is(ev.Err, ErrRefused), errors.Is(ev.Err, ErrNotReady):
		return c.giveUp(ev.Prefix, m, ev.Err, out)
	}
	// A Revive that was dropped is repeated: if it took effect after all, the directory says so, and by whom.
	if m.round >= roundsMax {
		return c.giveUp(ev.Prefix, m, ErrUndecided, out)
	}
	// Dropped or too busy: look up again after a pause. Those that accepted keep their place.
	m.phase, m.deadline = pausing, now.Add(retryPause)
	return out
}

func (c *Creator) started(ev Started, out []CreatorAction) []CreatorAction {
	m := c.open[ev.Group.Prefix]
	if m == nil || m.phase != starting || m.child.Group != ev.Group {
		return out
	}
	if member, ok := m.child.View.Member(ev.Replica); !ok || member.Peer != ev.Peer {
		return out // speaks for another peer
	}
	ch, ok := m.child.started(ev.Replica, ev.Store)
	if !ok || ch.Started == m.child.Started {
		return out
	}
	m.child = ch
	out = append(out, c.propose(0, Command{Kind: Reported, Prefix: ev.Group.Prefix, Gen: ev.Group.Gen, Replica: ev.Replica, Store: ev.Store}, ""))
	return c.settle(ev.Group.Prefix, m, out)
}

// settle answers the Ensures once a majority runs, and forgets the creation once every member does.
func (c *Creator) settle(p keyspace.Prefix, m *creation, out []CreatorAction) []CreatorAction {
	if m.child.majority() {
		out = m.answerAll(out)
	}
	if m.child.AllStarted() {
		delete(c.open, p)
	}
	return out
}

func (m *creation) answerAll(out []CreatorAction) []CreatorAction {
	for _, ref := range m.ensures {
		out = append(out, AnswerEnsure{Ref: ref, Descriptor: m.child.Descriptor})
	}
	m.ensures, m.answerBy = nil, automaton.Never
	return out
}

func (m *creation) sendStarts(now automaton.Instant, out []CreatorAction) []CreatorAction {
	for i := range m.child.View.Members {
		if m.child.Started>>i&1 == 0 {
			out = append(out, SendStart{Peer: m.child.Peers[i], Descriptor: m.child.Descriptor})
		}
	}
	m.deadline = now.Add(m.pause)
	if m.child.majority() {
		m.pause = min(2*m.pause, startLast)
	}
	return out
}

func (c *Creator) leaderChange(ev LeaderChange, now automaton.Instant, out []CreatorAction) []CreatorAction {
	for _, p := range slices.SortedFunc(maps.Keys(c.open), keyspace.Prefix.Compare) {
		out = c.giveUp(p, c.open[p], ErrNotLeader, out)
	}
	if c.leading = ev.Leading; c.leading {
		for _, ch := range ev.Unstarted {
			out = c.committed(ch, now, out)
		}
	}
	return out
}

func (c *Creator) wake(p keyspace.Prefix, m *creation, now automaton.Instant, out []CreatorAction) []CreatorAction {
	if m.phase == starting && m.answerBy <= now {
		out = m.answerAll(out)
	}
	if m.deadline > now {
		return out
	}
	switch m.phase {
	case lookingUp:
		return c.found(p, m, nil, now, out)
	case asking:
		m.passOver(func(k candidate) bool { return k.deadline <= now })
		return c.progress(p, m, now, out)
	case pausing:
		return m.lookUp(p, now, out)
	case proposing:
		return c.giveUp(p, m, ErrUndecided, out)
	}
	return m.sendStarts(now, out)
}

// arm asks for the next Wake if it has changed.
func (c *Creator) arm(out []CreatorAction) []CreatorAction {
	next := automaton.Never
	for _, m := range c.open {
		next = min(next, m.deadline)
		if m.phase == starting {
			next = min(next, m.answerBy)
		}
	}
	if next != c.armed {
		c.armed = next
		out = append(out, Arm{At: next})
	}
	return out
}
