package lockservice

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/lockservice/sigma"
	sigmapb "latchkey/lockservice/sigma/pb"
	"latchkey/lockservice/voterlog"
	"latchkey/replicagroup"
	"latchkey/replicagroup/order"
)

// SigmaVoters runs protocol sigma at the voters of every group of a peer: as the [replicagroup.VoterService] of the lock service, it
// feeds a [sigma.Replica] what its group's log says, what arrives, and time.
//
// A replica exists only while it has something: it is made when somebody asks something of it or when the group's view changes, and
// dropped when nobody has had or wanted a lock, and no view has changed, for the longest lease. So a group without locks costs a few
// words.
type SigmaVoters struct {
	cfg    SigmaVotersConfig
	client atomic.Pointer[func(from keyspace.NodeID, g sigmapb.Group, m *sigma.Message)]
	tables atomic.Int64 // taken up
}

// SigmaVotersConfig configures [NewSigmaVoters].
type SigmaVotersConfig struct {
	Limits Limits // of the overlay: [LimitsOf]
	// IdleFor is how old a view is before names that nobody has or wants, and that protocol group has locked, are given back to the
	// voters by the next one. Default: a minute.
	IdleFor time.Duration
	// Log is where the voters record what they have promised, so that their next life knows. nil: it does not, and waits until no lease
	// can last. The caller closes it after the voters have stopped.
	Log *voterlog.Log
}

// NewSigmaVoters returns the voters of one peer.
func NewSigmaVoters(cfg SigmaVotersConfig) *SigmaVoters {
	cfg.IdleFor = cmp.Or(cfg.IdleFor, time.Minute)
	return &SigmaVoters{cfg: cfg}
}

// OnAnswer sets who hears what replicas answer to this peer's clients: [Sigma.Deliver]. Until then it is lost. f is called on several
// goroutines and must not block. m is f's until it returns.
func (v *SigmaVoters) OnAnswer(f func(from keyspace.NodeID, g sigmapb.Group, m *sigma.Message)) {
	v.client.Store(&f)
}

// Service implements [replicagroup.VoterService].
func (v *SigmaVoters) Service() string { return ServiceName }

// Overlay implements [replicagroup.VoterService].
func (v *SigmaVoters) Overlay() string { return sigmapb.Service }

// messages are those that nobody needs any more, for the next ones: each lock costs twelve.
var messages = sync.Pool{New: func() any { return new(sigma.Message) }}

// Read implements [replicagroup.VoterService]. What is for a client is given to it.
func (v *SigmaVoters) Read(from keyspace.NodeID, data []byte) (to order.GroupID, msg any, mine bool, err error) {
	m := messages.Get().(*sigma.Message)
	var g sigmapb.Group
	if err := sigmapb.ReadFrame(data, &g, m); err != nil {
		v.Free(m)
		return to, nil, false, err
	}
	switch m.Kind {
	case sigma.Request, sigma.Yield, sigma.Release, sigma.Install, sigma.Inspect, sigma.List, sigma.Reported, sigma.Pull:
		return order.GroupID{Prefix: g.Prefix, Gen: g.Gen}, m, true, nil
	}
	if f := v.client.Load(); f != nil {
		(*f)(from, g, m)
	}
	v.Free(m)
	return to, nil, false, nil
}

// Free implements [replicagroup.VoterService].
func (v *SigmaVoters) Free(msg any) {
	m := msg.(*sigma.Message)
	*m = sigma.Message{} // what it names is not to be kept here
	messages.Put(m)
}

// Absent implements [replicagroup.VoterService]: a client that asks where the group is not is told to look for it.
func (v *SigmaVoters) Absent(from keyspace.NodeID, to order.GroupID, msg any, send func(to keyspace.NodeID, frame []byte)) {
	m := msg.(*sigma.Message)
	if m.Kind == sigma.Reported || m.Kind == sigma.Pull {
		return
	}
	answer := sigma.Message{Kind: sigma.WrongGen, View: m.View, Name: m.Name, Req: m.Req, TS: m.TS}
	if b, err := sigmapb.EncodeFrame(nil, groupOf(to), &answer); err == nil {
		send(from, b)
	}
}

func groupOf(g order.GroupID) sigmapb.Group { return sigmapb.Group{Prefix: g.Prefix, Gen: g.Gen} }

// New implements [replicagroup.VoterService].
func (v *SigmaVoters) New(s *replicagroup.Seat) replicagroup.Voter {
	w := &sigmaVoter{service: v, seat: s, restarted: s.Restarted(), since: s.Now(), born: s.Now()}
	_, w.locks = s.Machine().(*Machine)
	w.recorder.begin(v.cfg.Log, s)
	if w.restarted {
		w.saved = w.recorder.table()
	}
	return w
}

// sigmaVoter is the voter of one replica.
type sigmaVoter struct {
	service *SigmaVoters
	seat    *replicagroup.Seat
	locks   bool           // the group has a [Machine]
	replica *sigma.Replica // nil while it would have nothing

	view      sigma.ViewID      // the last one that the log told of; zero: none
	member    bool              // this replica votes in it. Not so of one whose node votes there with a store that it has lost
	since     automaton.Instant // when it was applied, or this life began
	caught    bool              // all is applied that was committed at some time in this life
	restarted bool              // a replica has to find out first what is going on (S8)
	rest      sigma.Rest        // of the last replica
	proposed  *[3]proposedEntry // Vet; nil before
	looked    automaton.Instant // giveBack
	listed    automaton.Instant // list
	watchers  watchers

	recorder recorder
	born     automaton.Instant // when this life began
	saved    *sigma.Table      // what the former life has recorded; nil: nothing, or it was taken up
	early    []*earlyMessage   // for the replica that takes it up
	silent   bool              // what it promises cannot be recorded, so it promises nothing
}

// machine returns the group's machine. It is asked for each time, since the host puts machines away that nobody uses. Not without locks.
func (w *sigmaVoter) machine() *Machine { return w.seat.Machine().(*Machine) }

// Idle implements [replicagroup.Voter].
func (w *sigmaVoter) Idle() bool { return w.replica == nil && w.watchers.n == 0 }

// earlyMessage has come before the replica that it is for.
type earlyMessage struct {
	from keyspace.NodeID
	msg  sigma.Message
}

// earlyMax bounds the messages that wait for a replica to catch up. More are dropped.
const earlyMax = 256

// proposedEntry is the last entry of a kind that was proposed here.
type proposedEntry struct {
	from sigma.ViewID
	at   automaton.Instant
}

// proposePause is the shortest time between two entries of one kind in one view: what one voter needs of the log, all of them need, and
// each asks.
const proposePause = time.Second

// Follow implements [replicagroup.Voter].
func (w *sigmaVoter) Follow() {
	if !w.locks || w.silent {
		return
	}
	defer w.giveBack()
	defer w.anyChanged()
	ev, ok := w.machine().Follow()
	if !ok {
		return
	}
	before, was := w.view, w.member
	if w.view = ev.State.View; w.view != before {
		w.since = w.seat.Now()
	}
	w.member = slices.Contains(w.machine().sigma.ids, w.seat.Replica())
	if w.replica == nil {
		switch {
		case w.view == before || w.restarted || len(ev.State.Prev) == 0 || !was && !w.member:
			// A replica that is made later begins with the present state. The log waits for what each voter says of a name that it takes over.
			if slices.ContainsFunc(ev.Modes, func(n sigma.NameMode) bool { return n.Mode == sigma.ModePending }) {
				w.awaken()
			}
			switch {
			case w.saved != nil && w.view.Compare(w.saved.Head.View) > 0:
				w.awaken() // others want to know what stands in it, and it is of use in the next view only
			case w.member && !w.restarted && w.replica == nil:
				// As awaken would make it: it has nothing, and knows so.
				w.silence(w.recorder.nothing(sigma.Head{View: w.view, Floor: max(w.rest.Floor, ev.State.Base), Clock: w.rest.Clock}))
			}
			return
		default:
			w.make(w.former(*ev.State, before, was), false)
			ev.Kind, ev.Modes = sigma.Jumped, w.machine().table.Modes()
		}
	}
	w.step(ev)
	if w.view != before {
		w.Foresee()
	}
}

// giveBack asks for a new view where the table keeps names for nobody. It looks when the log has grown: a group at rest stays so.
func (w *sigmaVoter) giveBack() {
	now := w.seat.Now()
	if w.looked != 0 && now.Sub(w.looked) < proposePause || !w.seat.Leading() {
		return
	}
	w.looked = now
	if w.machine().WantsView(now.Sub(w.since), w.service.cfg.IdleFor) {
		w.propose(sigma.Entry{Kind: sigma.EntryView, From: w.view})
	}
}

// former returns the state in which a replica sees a new view begin that has had nothing in the one before.
func (w *sigmaVoter) former(state sigma.LogState, before sigma.ViewID, was bool) sigma.LogState {
	f := sigma.LogState{Descriptor: sigma.Descriptor{View: before, Members: state.Prev}, Ceil: state.Base, Cap: state.Cap}
	if !was || before != (sigma.ViewID{Gen: state.View.Gen, Num: state.View.Num - 1}) {
		// It has not seen the view before this one, so it knows nothing of the locks of that view, not even that there were none.
		f.View, f.Members = sigma.ViewID{Gen: state.View.Gen}, []keyspace.NodeID{{}}
	}
	return f
}

// make makes the replica.
func (w *sigmaVoter) make(state sigma.LogState, restarted bool) {
	c := w.config()
	c.Restarted, c.Waited = restarted, w.seat.Now().Sub(w.since)
	w.replica = sigma.NewReplica(c, state)
}

func (w *sigmaVoter) config() sigma.ReplicaConfig {
	l := w.service.cfg.Limits
	return sigma.ReplicaConfig{
		Self: w.seat.Self(), Inc: w.seat.Start(), Drift: automaton.Drift(l.DriftPPM), TTLMin: l.TTLMin, TTLMax: l.TTLMax, Rest: w.rest,
	}
}

// takeUp makes the replica with what the former life has recorded, once everything is applied that was committed when this one began. It
// has promised nothing in the view after the table's, since it would have recorded that.
func (w *sigmaVoter) takeUp() {
	t, state, early := w.saved, w.machine().Sigma(), w.early
	w.saved, w.early, w.restarted = nil, nil, false
	if before, ok := t.State(state); ok {
		c := w.config()
		c.Table, c.Waited = t, w.seat.Now().Sub(w.born)
		w.replica = sigma.NewReplica(c, before)
		w.service.tables.Add(1)
	} else {
		w.make(state, true)
	}
	w.step(sigma.Event{Kind: sigma.Jumped, State: &state, Modes: w.machine().table.Modes()})
	w.caughtUp()
	w.Foresee()
	for _, m := range early {
		w.Receive(m.from, &m.msg)
	}
}

// awaken makes sure that there is a replica for somebody who asks. It is false where this replica does not vote in any view yet.
func (w *sigmaVoter) awaken() bool {
	if w.replica != nil {
		return true
	}
	if !w.member || w.silent {
		return false
	}
	if w.saved != nil {
		w.seat.CatchUp()
		return false
	}
	state := w.machine().Sigma()
	restarted := w.restarted
	w.restarted = false
	w.make(state, restarted)
	if modes := w.machine().table.Modes(); len(modes) > 0 {
		w.step(sigma.Event{Kind: sigma.Jumped, State: &state, Modes: modes})
	}
	if restarted {
		w.seat.CatchUp()
	}
	w.Foresee()
	return true
}

// Foresee implements [replicagroup.Voter]: a view that stands in the local log ends this one elsewhere (S1).
func (w *sigmaVoter) Foresee() {
	if w.replica == nil {
		return
	}
	now := w.seat.Now()
	for _, p := range w.seat.Prospects() {
		if p.Cmd != nil {
			if e, err := sigmapb.DecodeEntry(p.Cmd.Data); err != nil || e.Kind != sigma.EntryView || e.From != w.view {
				continue
			}
		}
		w.step(sigma.Event{Kind: sigma.Appended, Now: now, Since: p.Since, Entry: &sigma.Entry{Kind: sigma.EntryView, From: w.view}})
		return
	}
	w.step(sigma.Event{Kind: sigma.Truncated, Now: now})
}

// CaughtUp implements [replicagroup.Voter].
func (w *sigmaVoter) CaughtUp() {
	w.caught = true
	switch {
	case w.replica != nil:
		w.caughtUp()
	case w.saved != nil && w.member:
		w.takeUp()
	}
}

func (w *sigmaVoter) caughtUp() {
	w.step(sigma.Event{Kind: sigma.Barrier})
	if w.replica != nil && w.replica.Embargoed() && w.member {
		// It waits for leases that it may have forgotten: a new view spares it that.
		w.propose(sigma.Entry{Kind: sigma.EntryView, From: w.view})
	}
}

// Receive implements [replicagroup.Voter].
func (w *sigmaVoter) Receive(from keyspace.NodeID, msg any) {
	m := msg.(*sigma.Message)
	switch {
	case m.Kind == sigma.Inspect && m.TTL > 0:
		w.watch(from, m)
	case m.Kind == sigma.List && w.lists(m) && (w.saved == nil || w.awaken()): // a table that is not taken up yet is waited for below
		w.list(from, m)
	case m.Kind == sigma.List && w.member && m.View.Compare(w.view) > 0: // it is asked again
	case m.Kind != sigma.List && w.awaken():
		w.step(sigma.Event{Kind: sigma.Receive, From: from, Msg: m})
		w.changed(m.Name)
	case w.silent:
	case w.saved != nil && w.member:
		if len(w.early) < earlyMax {
			w.early = append(w.early, &earlyMessage{from, *m})
		}
	case w.view != sigma.ViewID{} && m.Kind != sigma.Reported && m.Kind != sigma.Pull: // a learner knows where to ask
		w.send(from, &sigma.Message{Kind: sigma.Moved, View: w.view, Name: m.Name, Req: m.Req, TS: m.TS, Members: w.machine().Sigma().Members})
	}
}

// Lost implements [replicagroup.Voter].
func (w *sigmaVoter) Lost(n keyspace.NodeID) {
	if w.replica != nil {
		w.step(sigma.Event{Kind: sigma.Gone, From: n})
		w.anyChanged()
	}
}

// Expire implements [replicagroup.Voter].
func (w *sigmaVoter) Expire() {
	if w.replica == nil {
		return
	}
	w.step(sigma.Event{Kind: sigma.Timer})
	w.anyChanged()
	if w.replica == nil {
		return
	}
	if rest, ok := w.replica.Rest(); ok {
		w.replica, w.rest = nil, rest
		w.recorder.rest()
	}
}

// Vet implements [replicagroup.Voter]: several voters ask for the same.
func (w *sigmaVoter) Vet(_ keyspace.NodeID, data []byte) bool {
	e, err := sigmapb.DecodeEntry(data)
	if err != nil || !w.locks {
		return false
	}
	if e.Kind > sigma.EntryRaiseTTL {
		return true // about one name, and from each voter another
	}
	if w.proposed == nil {
		w.proposed = new([3]proposedEntry)
	}
	now, last := w.seat.Now(), &w.proposed[e.Kind-sigma.EntryView]
	if e.From != w.view || last.from == w.view && last.at != 0 && now.Sub(last.at) < proposePause {
		return false
	}
	if e.Kind == sigma.EntryView && (w.restarted || w.replica != nil && !w.replica.Granting()) {
		return false // a courtesy to a voter that has restarted, if the others can tell it at once who holds what
	}
	*last = proposedEntry{w.view, now}
	return true
}

// Ready implements [replicagroup.Voter]: a view that follows one which nobody has settled can be settled by time only, since nobody may
// report the locks of the one between. This voter has heard of a majority once it has settled, so the others have, or soon will.
func (w *sigmaVoter) Ready() bool { return w.replica == nil || w.replica.Settled() }

func (w *sigmaVoter) propose(e sigma.Entry) {
	if b, err := sigmapb.EncodeEntry(&e); err == nil {
		w.seat.Propose(b)
	} else {
		log.Errorw("an entry cannot be encoded", "group", w.seat.Group(), "kind", e.Kind, "err", err)
	}
}

// step feeds the replica and carries out what it asks for.
func (w *sigmaVoter) step(ev sigma.Event) {
	if w.replica == nil { // silent
		return
	}
	ev.Now = w.seat.Now()
	var space [4]sigma.Action
	out := w.replica.Step(ev, space[:0])
	if w.silence(w.recorder.record(w.replica, out)) {
		return
	}
	for i := range out {
		a := &out[i]
		switch a.Kind {
		case sigma.Send:
			w.send(a.To, &a.Msg)
		case sigma.Arm:
			w.seat.Arm(a.At)
		case sigma.Propose:
			w.propose(a.Entry)
		}
	}
}

// silence ends all that this voter says when what it would promise cannot be recorded: the host stops, or has stopped.
func (w *sigmaVoter) silence(err error) bool {
	if err != nil {
		log.Debugw("a voter says no more", "group", w.seat.Group(), "err", err)
		w.silent, w.replica = true, nil
		w.seat.Arm(automaton.Never)
	}
	return w.silent
}

// frames are the storage of what voters send. Longer ones, which have parts of tables, are not kept.
var frames = sync.Pool{New: func() any { return new(make([]byte, 0, 256)) }}

const frameKeepMax = 4 << 10

func (w *sigmaVoter) send(to keyspace.NodeID, m *sigma.Message) {
	space := frames.Get().(*[]byte)
	b, err := sigmapb.EncodeFrame((*space)[:0], groupOf(w.seat.Group()), m)
	if err != nil {
		log.Errorw("a message cannot be encoded", "group", w.seat.Group(), "kind", m.Kind, "err", err)
		return
	}
	w.seat.Send(to, b)
	if cap(b) <= frameKeepMax {
		*space = b
		frames.Put(space)
	}
}
