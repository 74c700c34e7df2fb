package sigma

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/invariant"
	"latchkey/replicagroup/quorum"
)

// ClientConfig fixes one wish for one lock.
type ClientConfig struct {
	Name  string
	Req   Req
	TTL   time.Duration // above zero
	Delay time.Duration // lock-delay
	Drift automaton.Drift
	View  Descriptor // as known; a newer one corrects it
	// Clock is the Lamport clock of the client's process: at least that of every message it has received, so that those who
	// came before it are served before it.
	Clock uint64
	// Try gives up when the lock is found taken, instead of waiting.
	Try bool
	// Patient leaves it to the replicas to say only after a while that others are first: nobody is told of a place in the queue that is left
	// sooner, and a hand-over costs a fifth less. Not with Try or Y1, which need to hear it.
	Patient bool
	// Repeat sends YIELD's and RELEASE's again until they are answered, for transports that lose messages.
	Repeat bool
	// OnDemand leaves renewals to [Renew] events: a holder that is served by this process, and does not ask, loses the lock.
	OnDemand bool
	// Logged goes to the group's table at once: for what only it can do.
	Logged bool
	// Y1 is the paper's rule for yielding, for reproduction: it yields once all replicas have named an owner and nobody has a
	// majority.
	Y1 bool
	// Quorum is how many grants it takes to hold, for reproduction of the paper's settings: above half of the members. 0 is a
	// majority, and the only value that view changes are safe with.
	Quorum int

	mutant mutant
}

// ClientState is where a [Client] stands.
type ClientState uint8

// The states; see the package documentation.
const (
	ClientIdle ClientState = iota
	ClientWaiting
	ClientHeld
	ClientLost
	ClientReleasing
	ClientDone
)

// String names the state.
func (s ClientState) String() string {
	names := [...]string{"IDLE", "WAITING", "HELD", "LOST", "RELEASING", "DONE"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("ClientState(%d)", uint8(s))
}

// Client is one wish for one lock, from the asking to the end. Not safe for concurrent use.
//
// Invariants: (I3) it enters only with m usable grants that carry its token; (I4) a grant it has yielded never counts; (I10)
// it sends no renewal at or after D; it never un-loses; its view only grows.
type Client struct {
	cfg   ClientConfig
	view  Descriptor
	state ClientState
	now   automaton.Instant
	clock uint64
	reqTS uint64

	seats    []seat // one for each member of view, in its order
	tok      Token
	deadline automaton.Instant // D

	next    automaton.Instant // when to poll, renew or repeat
	armed   automaton.Instant
	asked   automaton.Instant // when everybody was asked last
	patient time.Duration     // pause before the next repetition, doubled each time
	rounds  int               // polls and renewals, for lookupEach
	giveUp  automaton.Instant // when an unanswered release is left to the end of the leases
	lapsed  bool              // the leases run out by themselves, with the lock-delay that they bring
	free    bool              // Returned was told
	told    Action            // the last Waiting

	logged bool // its place is the group's log (M7)
	log    logged
}

// seat is what a client knows of one replica of its view.
type seat struct {
	node     keyspace.NodeID
	gid      GID // the newest grant known; zero is none
	live     bool
	yielded  bool
	older    bool
	prop     Token
	echo     automaton.Instant
	put      Token // INSTALL sent since the last poll
	heard    bool  // since the view began
	answered bool  // since everybody was asked last
	refused  Reason
	owner    Req // somebody else, as of ownerGID
	ownerGID GID
	place    int
	wait     time.Duration
	released bool
}

// void is a sending so long ago that no lease counted from it is alive.
const void automaton.Instant = -1 << 62

// NewClient returns an idle client. It panics without a view to ask in or a TTL: both come from its own process.
func NewClient(cfg ClientConfig) *Client {
	c := new(Client)
	c.Reset(cfg)
	return c
}

// Reset makes c an idle client as [NewClient] returns it. What it was is forgotten.
func (c *Client) Reset(cfg ClientConfig) {
	invariant.Check(cfg.TTL > 0 && cfg.View.Valid(), "a client's configuration", cfg)
	*c = Client{cfg: cfg, clock: cfg.Clock, next: automaton.Never, armed: automaton.Never, seats: c.seats}
	c.sit(cfg.View)
}

// State returns where the client stands.
func (c *Client) State() ClientState { return c.state }

// Token returns the fencing token, zero before the lock was entered.
func (c *Client) Token() Token { return c.tok }

// Deadline returns D. It means something once the lock was entered.
func (c *Client) Deadline() automaton.Instant { return c.deadline }

// Clock returns the Lamport clock, for the process's next client.
func (c *Client) Clock() uint64 { return c.clock }

// View returns the view the client asks in.
func (c *Client) View() Descriptor { return c.view }

// Logged reports whether its place is the group's log: the table there locks the name, and is asked by [Order].
func (c *Client) Logged() bool { return c.logged }

// Valid reports whether the lock is held at an instant: entered, neither lost nor given back, and before D.
func (c *Client) Valid(now automaton.Instant) bool { return c.state == ClientHeld && now < c.deadline }

// Step consumes one event and appends actions to out. What does not fit the state is stale and is dropped.
func (c *Client) Step(ev Event, out []Action) []Action {
	c.now = max(c.now, ev.Now)
	// First of all: whatever this event brings, it is too late for a hold whose time is up.
	if c.state == ClientHeld && c.now >= c.guard() {
		out = c.lose(ErrExpired, out)
	}
	switch ev.Kind {
	case Receive:
		out = c.receive(ev.From, ev.Msg, out)
	case Timer:
		c.armed = automaton.Never
	case Begin:
		if c.state == ClientIdle {
			c.state = ClientWaiting
			c.clock++
			c.reqTS = c.clock
			c.patient = c.cfg.TTL / repeatPart
			if c.cfg.Logged {
				out = c.leave(out)
				c.log.since = ViewID{} // it comes from no view, and may go to any
			} else {
				out = c.ask(false, out)
			}
		}
	case Renew:
		if c.state == ClientHeld && c.logged {
			out = c.renewLogged(out)
		} else if c.state == ClientHeld {
			out = c.ask(false, out)
		}
	case GiveBack:
		out = c.giveBack(out)
	case ClockJump:
		out = c.jump(out)
	case Located:
		if ev.State.Valid() {
			out = c.move(ev.State.Descriptor, ModeSigma, out)
		}
	case Ordered:
		out = c.ordered(&ev.Answer, out)
	case Pushed:
		out = c.pushed(ev.Answer.Attempt, out)
	}
	if c.now >= c.next {
		out = c.due(out)
	}
	return c.arm(out)
}

func (c *Client) majority() int { return max(c.cfg.Quorum, quorum.Majority(len(c.seats))) }

func (c *Client) lease() time.Duration { return c.cfg.Drift.Shrink(c.cfg.TTL) }

// guard returns when the loss of the present hold is reported: D minus a tenth, so that well-behaved work has stopped by D.
func (c *Client) guard() automaton.Instant { return c.deadline.Add(-c.cfg.TTL / guardPart) }

// sit begins a view: grants of another one are dropped.
func (c *Client) sit(d Descriptor) {
	c.view = d
	if cap(c.seats) < len(d.Members) {
		c.seats = make([]seat, len(d.Members))
	}
	c.seats = c.seats[:len(d.Members)]
	for i, n := range d.Members {
		c.seats[i] = seat{node: n}
	}
}

// move is 9.5's rule for clients, and M7: places are ordered by (view, sigma before the log), and it moves only up. A waiter drops its
// grants, a holder keeps its token and its deadline and claims.
func (c *Client) move(d Descriptor, mode Mode, out []Action) []Action {
	newer := d.View.Compare(c.view.View)
	switch {
	case newer < 0, newer == 0 && (mode == ModeSigma || c.logged):
		return out
	case c.logged: // what comes next is for the log to say
		c.sit(d)
		return out
	case newer > 0:
		c.sit(d)
	}
	switch c.state {
	case ClientWaiting, ClientHeld:
		if mode != ModeSigma {
			return c.leave(out)
		}
		out = c.ask(false, out)
	case ClientReleasing, ClientDone:
		if newer > 0 {
			out = c.sayOver(out)
		}
	}
	return out
}

func (c *Client) receive(from keyspace.NodeID, m *Message, out []Action) []Action {
	if m.Req != c.cfg.Req || m.TS >= tsMax || c.state == ClientIdle {
		return out
	}
	c.clock = max(c.clock, m.TS) + 1
	switch m.View.Compare(c.view.View) {
	case 1:
		if m.Kind == Moved && m.descriptor().Valid() {
			return c.move(m.descriptor(), m.Mode, out)
		}
		return append(out, Action{Kind: Lookup}) // a newer view, and no word of who is in it
	case -1:
		if c.cfg.mutant != mutantAnyView {
			return out
		}
	}
	i := slices.IndexFunc(c.seats, func(s seat) bool { return s.node == from })
	if i < 0 {
		return out
	}
	s := &c.seats[i]
	if c.logged && (m.Kind == Queued || m.Kind == Refused || m.Kind == Released) { // of a place that it has left
		return out
	}
	switch m.Kind {
	case Moved:
		return c.move(c.view, m.Mode, out)
	case Grant, Inquire:
		return c.granted(s, m, out)
	case Queued:
		s.heard, s.answered = true, true
		return c.queued(s, m, out)
	case Refused:
		s.heard, s.answered = true, true
		s.refused = m.Reason
		return c.refused(out)
	case Released:
		s.released = true
		return c.returned(out)
	case WrongGen:
		return append(out, Action{Kind: Lookup})
	}
	return out
}

// granted takes GRANT and INQUIRE (section 1.4).
func (c *Client) granted(s *seat, m *Message, out []Action) []Action {
	switch c.state {
	case ClientReleasing, ClientDone: // the request is over
		if c.lapsed || c.logged || c.state == ClientReleasing { // which is repeated
			return out
		}
		return c.send(s, Message{Kind: Release, ReqTS: c.reqTS, Tok: c.tok}, out)
	case ClientLost: // it will be, at D
		return out
	}
	if c.logged && c.cfg.mutant != mutantGrantsKept { // a grant of a place that it has left
		return out
	}
	echo := m.CS
	if c.cfg.mutant == mutantFromArrival {
		echo = c.now
	}
	older := m.Older || m.Kind == Inquire
	switch d := m.GID.Compare(s.gid); {
	case d < 0:
		return out
	case d > 0:
		s.gid, s.live, s.yielded, s.put, s.prop, s.echo = m.GID, true, false, 0, m.Tok, echo
		s.owner, s.ownerGID = Req{}, GID{}
	case s.yielded:
		// Without this a lost YIELD blocks the lock for ever: the client's own polls renew a grant it disowned.
		if c.cfg.mutant != mutantYieldOnce {
			out = c.send(s, Message{Kind: Yield, GID: s.gid}, out)
		}
		if c.cfg.mutant != mutantYieldCounted {
			return out
		}
		s.prop, s.echo = max(s.prop, m.Tok), max(s.echo, echo)
	default:
		s.prop, s.echo = max(s.prop, m.Tok), max(s.echo, echo)
	}
	s.older, s.heard, s.refused = older, true, 0
	s.answered = s.answered || s.echo >= c.asked
	if c.state == ClientHeld {
		out = c.prolong(out)
		return c.raise(s, c.tok, out)
	}
	return c.enter(out)
}

// usable reports whether a grant can be counted.
func (c *Client) usable(s *seat) bool {
	return s.live && (!s.yielded || c.cfg.mutant == mutantYieldCounted) && s.echo.Add(c.lease()) > c.now
}

// enter is 2.2: with m usable grants the token is the highest number they propose; it is entered once m carry it.
func (c *Client) enter(out []Action) []Action {
	usable, carrying, t := 0, 0, Token(0)
	for i := range c.seats {
		if s := &c.seats[i]; c.usable(s) {
			usable++
			t = max(t, s.prop)
		}
	}
	if usable < c.majority() {
		return c.yieldOlder(usable, out)
	}
	for i := range c.seats {
		if s := &c.seats[i]; c.usable(s) && (s.prop == t || c.cfg.mutant == mutantNoInstall) {
			carrying++
		}
	}
	if carrying < c.majority() {
		for i := range c.seats {
			if s := &c.seats[i]; c.usable(s) {
				out = c.raise(s, t, out)
			}
		}
		return out
	}
	d := c.echoed(t, c.cfg.mutant == mutantNoInstall).Add(c.lease())
	if d.Sub(c.now) < c.cfg.TTL/enterPart { // too little left: one more round trip
		if c.asked < c.now.Add(-c.cfg.TTL/repeatPart) {
			out = c.ask(false, out)
		}
		return out
	}
	c.state, c.tok, c.deadline = ClientHeld, t, d
	c.next = c.renewal()
	out = append(out, Action{Kind: Acquired, Tok: t, At: d})
	for i := range c.seats {
		if s := &c.seats[i]; c.usable(s) {
			out = c.raise(s, t, out)
		}
	}
	return out
}

// renewal returns when the present hold is to be renewed.
func (c *Client) renewal() automaton.Instant {
	if c.cfg.OnDemand {
		return automaton.Never
	}
	return max(c.now, c.deadline.Add(-c.lease()).Add(c.cfg.TTL/renewPart))
}

// echoed returns the m-th largest echo among the usable grants that carry a token, [void] when fewer do.
func (c *Client) echoed(t Token, any bool) automaton.Instant {
	var buf [MembersMax]automaton.Instant
	echoes := buf[:0]
	for i := range c.seats {
		if s := &c.seats[i]; c.usable(s) && (s.prop == t || any) {
			echoes = append(echoes, s.echo)
		}
	}
	if len(echoes) < c.majority() {
		return void
	}
	slices.Sort(echoes)
	return echoes[len(echoes)-c.majority()]
}

// raise brings a grant below t up to it, once between two polls.
func (c *Client) raise(s *seat, t Token, out []Action) []Action {
	if !s.live || s.yielded || s.prop >= t || s.put >= t {
		return out
	}
	s.put = t
	return c.send(s, Message{Kind: Install, GID: s.gid, Tok: t, CS: c.now}, out)
}

// yieldOlder is Y2: without a majority, grants behind which somebody older waits are given back. Y1 is the paper's.
func (c *Client) yieldOlder(usable int, out []Action) []Action {
	if c.cfg.Y1 {
		if !c.hopeless() {
			return out
		}
	}
	for i := range c.seats {
		if s := &c.seats[i]; s.live && !s.yielded && (s.older || c.cfg.Y1) {
			s.yielded = true
			out = c.send(s, Message{Kind: Yield, GID: s.gid}, out)
		}
	}
	return out
}

// hopeless is the premise of Y1: every replica has named an owner, and no request owns a majority of them.
func (c *Client) hopeless() bool {
	for i := range c.seats {
		a := &c.seats[i]
		if !(a.live && !a.yielded) && a.ownerGID == (GID{}) {
			return false
		}
		n := 0
		for j := range c.seats {
			if b := &c.seats[j]; a.named(c.cfg.Req) == b.named(c.cfg.Req) {
				n++
			}
		}
		if n >= c.majority() {
			return false
		}
	}
	return true
}

func (s *seat) named(own Req) Req {
	if s.live && !s.yielded {
		return own
	}
	return s.owner
}

// queued takes QUEUED: where the request stands, and that it does not own this replica.
func (c *Client) queued(s *seat, m *Message, out []Action) []Action {
	if m.GID.Compare(s.gid) > 0 && m.Owner != c.cfg.Req {
		s.live = false // our grant is over, or was never
	} else if m.GID != (GID{}) {
		return out // older than what we know
	}
	s.refused = 0
	s.owner, s.ownerGID, s.place, s.wait = m.Owner, m.GID, m.Position, m.Wait
	switch c.state {
	case ClientHeld:
		others := 0
		for i := range c.seats {
			if q := &c.seats[i]; !q.live && q.gid != (GID{}) && q.ownerGID.Compare(q.gid) > 0 {
				others++
			}
		}
		if others > len(c.seats)-c.majority() { // section 3 (c)
			return c.lose(ErrReplaced, out)
		}
		return out
	case ClientWaiting:
	default:
		return out
	}
	if c.cfg.Try {
		named := 0
		for i := range c.seats {
			q := &c.seats[i]
			if !q.live && q.ownerGID != (GID{}) && q.owner == m.Owner && m.Owner != (Req{}) {
				named++
			}
		}
		if named >= c.majority() || c.Answers() == len(c.seats) {
			return c.finish(ErrLocked, out)
		}
		return out
	}
	if c.cfg.Y1 {
		out = c.enter(out)
	}
	return c.tell(out)
}

// tell reports the place in the queue: the median of what the replicas say.
func (c *Client) tell(out []Action) []Action {
	var buf [MembersMax]int
	places := buf[:0]
	for i := range c.seats {
		if s := &c.seats[i]; s.heard && (!s.live || s.yielded) {
			places = append(places, s.place)
		}
	}
	if len(places) < c.majority() {
		return out
	}
	slices.Sort(places)
	a := Action{Kind: Waiting}
	a.Msg.Position, a.Msg.Owner, a.Msg.Wait = places[len(places)/2], c.owner(), c.predicted()
	if a.Msg.Position == c.told.Msg.Position && c.told.Kind == Waiting {
		return out
	}
	c.told = a
	return append(out, a)
}

// owner returns the request that most replicas have named as their owner, zero when none has named one.
func (c *Client) owner() (most Req) {
	best := 0
	for i := range c.seats {
		n := 0
		for j := range c.seats {
			if s := &c.seats[j]; !s.live && s.owner == c.seats[i].owner && s.ownerGID != (GID{}) {
				n++
			}
		}
		if n > best {
			best, most = n, c.seats[i].owner
		}
	}
	return most
}

func (c *Client) predicted() time.Duration {
	var buf [MembersMax]time.Duration
	waits := buf[:0]
	for i := range c.seats {
		if s := &c.seats[i]; s.heard && (!s.live || s.yielded) {
			waits = append(waits, s.wait)
		}
	}
	if len(waits) == 0 {
		return 0
	}
	slices.Sort(waits)
	return waits[len(waits)/2]
}

func (c *Client) refused(out []Action) []Action {
	n, why := 0, Reason(0)
	for i := range c.seats {
		if s := &c.seats[i]; s.refused != 0 && !s.live {
			n, why = n+1, s.refused
		}
	}
	if c.state != ClientWaiting || n <= len(c.seats)-c.majority() {
		return out
	}
	return c.finish(fmt.Errorf("%w: %v", ErrRefused, why), out)
}

// prolong recomputes D while held. It never un-loses: a hold past its deadline was lost before this.
func (c *Client) prolong(out []Action) []Action {
	if d := c.echoed(c.tok, false); d != void && d.Add(c.lease()) > c.deadline {
		c.deadline = d.Add(c.lease())
		c.next = c.renewal()
		c.patient = c.cfg.TTL / repeatPart
		out = append(out, Action{Kind: Renewed, Tok: c.tok, At: c.deadline})
	}
	return out
}

// ask sends REQ: to everybody, or to those who have not answered since everybody was asked last.
func (c *Client) ask(again bool, out []Action) []Action {
	if !again {
		c.asked = c.now
		// Whoever's whole view is gone gets no MOVED.
		if c.rounds++; c.rounds%lookupEach == 0 && c.Answers() < c.majority() {
			out = append(out, Action{Kind: Lookup})
		}
	}
	for i := range c.seats {
		s := &c.seats[i]
		if again && s.answered {
			continue
		}
		if !again {
			s.answered, s.put = false, 0
		}
		m := Message{Kind: Request, ReqTS: c.reqTS, CS: c.now, TTL: c.cfg.TTL, Delay: c.cfg.Delay}
		m.Patient = c.cfg.Patient && !c.cfg.Try && !c.cfg.Y1 && !again && c.rounds == 1
		if c.state == ClientHeld {
			m.Tok = c.tok
		}
		out = c.send(s, m, out)
	}
	c.next = c.now.Add(c.pause())
	return out
}

// pause returns how long after asking to ask again.
func (c *Client) pause() time.Duration {
	third := c.cfg.TTL / renewPart
	if c.state == ClientHeld {
		return c.cfg.TTL / repeatPart
	}
	p := min(max(c.predicted(), min(pollMin, third)), third)
	if c.Answers() < len(c.seats) { // something may be lost: sooner, but ever slower
		q := c.patient
		c.patient = min(2*c.patient, third)
		return min(p, q)
	}
	return p
}

// Answers counts the replicas that have answered since they were asked last.
func (c *Client) Answers() int {
	n := 0
	for i := range c.seats {
		if c.seats[i].answered {
			n++
		}
	}
	return n
}

// due sends what the present state has to send next.
func (c *Client) due(out []Action) []Action {
	c.next = automaton.Never
	if c.logged && c.state != ClientLost {
		return c.dueLogged(out)
	}
	switch c.state {
	case ClientWaiting:
		third := c.cfg.TTL / renewPart
		p := min(max(c.predicted(), min(pollMin, third)), third)
		if c.now.Sub(c.asked) < p { // not yet a poll: those who have not answered
			out = c.ask(true, out)
			c.next = min(c.next, c.asked.Add(p))
			return out
		}
		if c.cfg.Try && c.Answers() >= c.majority() {
			return c.finish(ErrLocked, out)
		}
		for i := range c.seats {
			if s := &c.seats[i]; s.yielded && c.cfg.Repeat && c.cfg.mutant != mutantYieldOnce {
				out = c.send(s, Message{Kind: Yield, GID: s.gid}, out)
			}
		}
		return c.ask(false, out)
	case ClientHeld:
		if c.now.Sub(c.asked) < c.cfg.TTL/renewPart-c.cfg.TTL/repeatPart {
			return c.ask(true, out)
		}
		return c.ask(false, out)
	case ClientLost: // at D
		if c.lapsed = c.cfg.Delay > 0; c.lapsed { // a release would spare others the delay
			return c.done(nil, out)
		}
		return c.giveBack(out)
	case ClientReleasing:
		if c.now >= c.giveUp {
			return c.done(nil, out)
		}
		return c.sayOver(out)
	}
	return out
}

// lose ends the hold for good. The lock is given back at D, not now: the holder's work has until then to stop.
func (c *Client) lose(cause error, out []Action) []Action {
	c.state, c.next = ClientLost, max(c.now, c.deadline)
	if cause == ErrJump {
		c.next = c.now.Add(c.cfg.TTL / guardPart)
	}
	return append(out, Action{Kind: Lost, Tok: c.tok, Err: cause})
}

func (c *Client) jump(out []Action) []Action {
	c.log.jumped()
	for i := range c.seats {
		c.seats[i].live = false
	}
	if c.state == ClientHeld {
		return c.lose(ErrJump, out)
	}
	return out
}

// giveBack ends the request: RELEASE to all, also to those that never answered.
func (c *Client) giveBack(out []Action) []Action {
	switch c.state {
	case ClientIdle:
		return c.done(nil, out)
	case ClientReleasing, ClientDone:
		return out
	}
	return c.finish(nil, out)
}

func (c *Client) finish(err error, out []Action) []Action {
	c.giveUp = c.now.Add(c.cfg.Drift.Stretch(c.cfg.TTL))
	c.state = ClientReleasing
	c.patient = c.cfg.TTL / repeatPart
	if c.logged {
		return c.finishLogged(err, out)
	}
	out = c.sayOver(out)
	if err != nil || !c.cfg.Repeat {
		return c.done(err, out)
	}
	return out
}

func (c *Client) sayOver(out []Action) []Action {
	for i := range c.seats {
		if s := &c.seats[i]; !s.released {
			out = c.send(s, Message{Kind: Release, ReqTS: c.reqTS, Tok: c.tok, Ack: c.cfg.Repeat}, out)
		}
	}
	c.next = automaton.Never
	if c.state == ClientReleasing {
		c.next = min(c.giveUp, c.now.Add(c.patient))
		c.patient *= 2
	}
	return out
}

func (c *Client) done(err error, out []Action) []Action {
	c.state, c.next = ClientDone, automaton.Never
	a := Action{Kind: Done, Tok: c.tok, Err: err}
	if errors.Is(err, ErrLocked) {
		a.Msg.Owner = c.owner()
	}
	return append(out, a)
}

// returned counts who has acknowledged the release.
func (c *Client) returned(out []Action) []Action {
	if c.state != ClientReleasing {
		return out
	}
	n := 0
	for i := range c.seats {
		if c.seats[i].released {
			n++
		}
	}
	if n >= c.majority() && !c.free {
		c.free = true
		out = append(out, Action{Kind: Returned, Tok: c.tok})
	}
	if n == len(c.seats) {
		return c.done(nil, out)
	}
	return out
}

func (c *Client) send(s *seat, m Message, out []Action) []Action {
	m.View, m.Name, m.Req, m.TS = c.view.View, c.cfg.Name, c.cfg.Req, c.clock
	invariant.Check(m.Kind != Request || m.Tok == 0 || c.now < c.deadline || c.cfg.mutant != mutantNone, "I10: no renewal past D", c)
	return append(out, Action{Kind: Send, To: s.node, Msg: m})
}

// arm asks for a timer when the earliest instant at which something is to be done has changed.
func (c *Client) arm(out []Action) []Action {
	at := c.next
	if c.state == ClientHeld {
		at = min(at, c.guard())
	}
	if at == c.armed {
		return out
	}
	c.armed = at
	return append(out, Action{Kind: Arm, At: at})
}
