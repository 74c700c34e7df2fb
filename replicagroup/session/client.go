package session

import (
	"errors"
	"slices"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/invariant"
	"latchkey/replicagroup/order"
)

// Errors in [Done].
var (
	// ErrOutcomeUnknown: the command was sent, and the session ended or the caller left before its fate was known.
	ErrOutcomeUnknown = errors.New("session: outcome unknown")
	// ErrBusy: [QueueMax] commands wait already; nothing was sent.
	ErrBusy = errors.New("session: too many commands wait")
	// ErrLimit: the group takes no further session; nothing was run.
	ErrLimit = errors.New("session: the group takes no further session")
	// ErrRefused: the group calls the command malformed or another peer's; nothing was run.
	ErrRefused = errors.New("session: command refused")
	// ErrUnknownService: the group has no such service; nothing was run.
	ErrUnknownService = errors.New("session: no such service in the group")
	// ErrTooLarge: the command is over the limits of [order.Command]; nothing was sent.
	ErrTooLarge = order.ErrTooLarge
	// ErrResultTooLarge: the command was executed, and its result was too long to be kept.
	ErrResultTooLarge = errors.New("session: result too large")
	// ErrAbandoned: the caller left before the command was sent.
	ErrAbandoned = errors.New("session: abandoned before it was sent")
	// ErrClosed: the client is closed; nothing was sent.
	ErrClosed = errors.New("session: client closed")
	// ErrMoved: another group serves the command's key; nothing was run.
	ErrMoved = errors.New("session: another group serves the key")
)

// Bounds of a [Client].
const (
	// QueueMax is how many submitted commands may wait for their first sending; one more ends with [ErrBusy].
	QueueMax = 1024
	// CallsMax is how many calls may be unanswered, repetitions included; no further one is sent meanwhile.
	CallsMax = 4 * WindowSize
)

// ClientConfig fixes a [Client]. The zero value of a field stands for its default.
type ClientConfig struct {
	TTL         time.Duration // of the session; default 15 s
	CallTimeout time.Duration // patience with one call, below TTL; default 1 s
	RetryMin    time.Duration // pause after the first failure; default 20 ms, doubled by each further one
	RetryMax    time.Duration // longest pause; default 500 ms
}

func (c *ClientConfig) defaults() {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&c.TTL, 15*time.Second)
	set(&c.CallTimeout, time.Second)
	set(&c.RetryMin, 20*time.Millisecond)
	set(&c.RetryMax, 500*time.Millisecond)
	invariant.Check(c.TTL >= TTLMin && c.TTL <= TTLMax && c.CallTimeout > 0 && c.CallTimeout < c.TTL && 0 < c.RetryMin && c.RetryMin <= c.RetryMax,
		"client configuration", *c)
}

// ClientEvent is an input of a [Client].
type ClientEvent interface{ isClientEvent() }

// The events.
type (
	// Identity gives the client a fresh random session id, first of all and after each [Lost].
	Identity struct{ ID order.ClientID }
	// Submit asks for a command to be executed once. It is answered by exactly one [Done] with its Ref, which the driver
	// never uses twice. Data must not change afterwards.
	Submit struct {
		Ref     uint64
		Service string
		Data    []byte
	}
	// Abandon says that nobody waits for a command any more. Its Done follows at once: ErrAbandoned when it was never
	// sent, else ErrOutcomeUnknown, and the client goes on finding out its fate for itself.
	Abandon struct{ Ref uint64 }
	// KeepAlive says whether an open session must stay alive while no command is under way.
	KeepAlive struct{ On bool }
	// Located answers [Relocate]: the voters of the group and its leader, zero when unknown. No voters: the group was not
	// found, and the client asks again after a pause. Unasked it says who the voters are now, and changes nothing else.
	Located struct {
		Voters []keyspace.NodeID
		Leader keyspace.NodeID
	}
	// Answer is the result of a call: the command stands in the log and was executed with this status.
	Answer struct {
		Call   uint64
		Status Status
		Data   []byte
	}
	// NotLeader says that a call came to a replica that does not lead: nothing was proposed. Hint may name the leader.
	NotLeader struct {
		Call uint64
		Hint keyspace.NodeID
	}
	// NoAnswer says that a call failed or took too long: it may have been executed or not.
	NoAnswer struct{ Call uint64 }
	// Timer says that the instant of the last [Arm] has come.
	Timer struct{}
	// Gone says that the group is over and that another one serves what it served: nobody there will answer any more. What was not
	// sent gets ErrMoved, what was sent ErrOutcomeUnknown, and the client takes nothing further.
	Gone struct{}
	// Close ends everything: what was not sent gets ErrClosed, what was sent ErrOutcomeUnknown, and an open session is told
	// to the group as closed, once.
	Close struct{}
)

func (Identity) isClientEvent()  {}
func (Submit) isClientEvent()    {}
func (Abandon) isClientEvent()   {}
func (KeepAlive) isClientEvent() {}
func (Located) isClientEvent()   {}
func (Answer) isClientEvent()    {}
func (NotLeader) isClientEvent() {}
func (NoAnswer) isClientEvent()  {}
func (Timer) isClientEvent()     {}
func (Gone) isClientEvent()      {}
func (Close) isClientEvent()     {}

// ClientAction is an output of a [Client].
type ClientAction interface{ isClientAction() }

// The actions.
type (
	// SendTo asks the driver to carry a command to a replica. It is answered by exactly one [Answer], [NotLeader] or
	// [NoAnswer] with its Call, the last of them after Timeout at the latest.
	SendTo struct {
		Call    uint64
		To      keyspace.NodeID
		Cmd     order.Command
		Timeout time.Duration
	}
	// Arm asks for a [Timer] event at an instant, in place of the one asked for before. Never means none.
	Arm struct{ At automaton.Instant }
	// Done ends a submitted command: Err nil means it was executed exactly once and gave Data.
	Done struct {
		Ref  uint64
		Data []byte
		Err  error
	}
	// Relocate asks where the group is: one [Located] answers it.
	Relocate struct{}
	// Lost says that the session is over. Everything it had in the group is or will be gone. The client waits for an
	// [Identity] before it opens another one.
	Lost struct{}
)

func (SendTo) isClientAction()   {}
func (Arm) isClientAction()      {}
func (Done) isClientAction()     {}
func (Relocate) isClientAction() {}
func (Lost) isClientAction()     {}

// Client is one session of one peer in one group: it opens the session on first use, sends commands to the leader, repeats
// them under their sequence number until their fate is known, acknowledges, and keeps the session alive while it is needed.
// Not safe for concurrent use.
//
// It talks to one replica at a time. As long as that one answers as leader everything flows in parallel; after a failure one
// call at a time probes the replicas, the hinted one first, with growing pauses, and after a full round without success it
// asks for the group's place again.
type Client struct {
	cfg ClientConfig
	now automaton.Instant

	id     order.ClientID // zero until the driver gives one
	open   bool           // the group has confirmed the session
	keep   bool
	closed bool
	gone   bool // of closed: because the group is
	// touched is the last sending of a command that the group has answered.
	touched automaton.Instant

	queue  []*request // never sent in this session; at most QueueMax, and what a lost session gave back
	flight []*request // sent and undecided, by rising seq; at most WindowSize
	seq    uint64     // last one given out
	calls  map[uint64]wire
	lastID uint64
	fresh  int // unanswered calls of this era

	voters   []keyspace.NodeID
	target   keyspace.NodeID
	sure     bool   // target has answered as leader
	era      uint64 // changes with target and session: failures of an older era say nothing about it
	hinted   bool   // target came from a hint and was tried at once
	failures int    // since the last answer
	locating bool
	retry    automaton.Instant // not before
	armed    automaton.Instant
}

// request is a submitted command.
type request struct {
	ref     uint64
	seq     uint64 // 0 before it is sent
	service string
	data    []byte
	call    uint64 // unanswered call of this era; 0 when it has to be sent
	// unknown says that an earlier copy may have been executed, or still be on its way.
	unknown bool
	orphan  bool // nobody waits for it
	limbo   bool // its session is over, its only call is unanswered
	done    bool
}

// wire is an unanswered call; req is nil for the commands about the session itself.
type wire struct {
	req  *request
	sent automaton.Instant
	era  uint64
}

// NewClient returns a client without an identity or a place. It panics on an inconsistent configuration.
func NewClient(cfg ClientConfig) *Client {
	cfg.defaults()
	return &Client{cfg: cfg, calls: make(map[uint64]wire), armed: automaton.Never}
}

// ID returns the id of the present session, zero when there is none.
func (c *Client) ID() order.ClientID { return c.id }

// Idle reports whether no command waits or is under way.
func (c *Client) Idle() bool { return len(c.queue) == 0 && len(c.flight) == 0 }

// Unsure reports whether a command was sent and may have been executed, or may be yet.
func (c *Client) Unsure() bool {
	return slices.ContainsFunc(c.flight, func(r *request) bool { return r.unknown || r.call != 0 })
}

// Step consumes one event, taken at an instant of the node's own clock, and appends actions to out. A stale event is dropped.
func (c *Client) Step(ev ClientEvent, now automaton.Instant, out []ClientAction) []ClientAction {
	c.now = max(c.now, now)
	switch ev := ev.(type) {
	case Identity:
		if c.id == (order.ClientID{}) {
			c.id = ev.ID
		}
	case Submit:
		out = c.submit(ev, out)
	case Abandon:
		out = c.abandon(ev.Ref, out)
	case KeepAlive:
		c.keep = ev.On
	case Located:
		c.located(ev)
	case Answer:
		if w, ok := c.take(ev.Call); ok {
			out = c.answer(w, ev, out)
		}
	case NotLeader:
		if w, ok := c.take(ev.Call); ok {
			c.notProposed(w)
			c.misrouted(w, ev.Hint)
		}
	case NoAnswer:
		if w, ok := c.take(ev.Call); ok {
			out = c.noAnswer(w, out)
			c.misrouted(w, keyspace.NodeID{})
		}
	case Timer:
		c.armed = automaton.Never
	case Gone:
		c.open = false // there is nobody to tell
		out = c.end(ErrMoved, out)
		c.gone = true
	case Close:
		out = c.end(ErrClosed, out)
	}
	out = c.pump(out)
	return c.arm(out)
}

func (c *Client) submit(s Submit, out []ClientAction) []ClientAction {
	var err error
	switch {
	case c.gone:
		err = ErrMoved
	case c.closed:
		err = ErrClosed
	case len(s.Data) > order.DataBytesMax || len(s.Service) > order.ServiceBytesMax:
		err = ErrTooLarge
	case s.Service == Service || s.Service == TickService:
		err = ErrRefused
	case len(c.queue) >= QueueMax:
		err = ErrBusy
	default:
		c.queue = append(c.queue, &request{ref: s.Ref, service: s.Service, data: s.Data})
		return out
	}
	return append(out, Done{Ref: s.Ref, Err: err})
}

func (c *Client) abandon(ref uint64, out []ClientAction) []ClientAction {
	for i, r := range c.queue {
		if r.ref == ref {
			c.queue = slices.Delete(c.queue, i, i+1)
			return c.finish(r, nil, ErrAbandoned, out)
		}
	}
	leave := func(r *request) {
		if r.ref == ref && !r.orphan && !r.done {
			out = append(out, Done{Ref: ref, Err: ErrOutcomeUnknown})
			r.orphan = true
		}
	}
	for _, r := range c.flight {
		leave(r)
	}
	for _, w := range c.calls {
		if w.req != nil && w.req.limbo {
			leave(w.req)
		}
	}
	return out
}

func (c *Client) located(l Located) {
	if !c.locating {
		if len(l.Voters) > 0 { // unasked
			c.voters = slices.Clone(l.Voters)
		}
		return
	}
	c.locating, c.failures, c.hinted = false, 0, false
	c.voters = slices.Clone(l.Voters)
	if len(c.voters) == 0 {
		c.retry = c.now.Add(c.cfg.RetryMax)
		return
	}
	c.aim(c.voters[0])
	if !l.Leader.IsZero() {
		c.aim(l.Leader)
	}
}

// aim turns to another replica. What is unanswered at the former one may be sent again.
func (c *Client) aim(to keyspace.NodeID) {
	c.target, c.sure, c.fresh = to, false, 0
	c.era++
	for _, r := range c.flight {
		if r.call != 0 {
			r.call, r.unknown = 0, true
		}
	}
}

// take ends a call.
func (c *Client) take(id uint64) (wire, bool) {
	w, ok := c.calls[id]
	delete(c.calls, id)
	if ok && w.era == c.era {
		c.fresh--
	}
	if ok && w.req != nil && w.req.call == id {
		w.req.call = 0
	}
	return w, ok
}

// answer handles the word of a leader.
func (c *Client) answer(w wire, a Answer, out []ClientAction) []ClientAction {
	if w.era == c.era {
		c.sure, c.failures, c.hinted = true, 0, false
	}
	r := w.req
	switch {
	case r == nil:
		return c.sessionAnswer(w, a, out)
	case r.done:
		return out
	case a.Status == Session:
		return c.refusedBySession(r, out)
	case a.Status == Window:
		c.retry = max(c.retry, c.now.Add(c.cfg.RetryMin))
		return out
	}
	if !r.limbo {
		c.touched = max(c.touched, w.sent)
		c.flight = slices.DeleteFunc(c.flight, func(x *request) bool { return x == r })
	}
	switch a.Status {
	case OK:
		return c.finish(r, a.Data, nil, out)
	case UnknownService:
		return c.finish(r, nil, ErrUnknownService, out)
	case Refused:
		return c.finish(r, nil, ErrRefused, out)
	case Limit:
		return c.finish(r, nil, ErrLimit, out)
	case TooLarge:
		return c.finish(r, nil, ErrResultTooLarge, out)
	case Moved:
		return c.finish(r, nil, ErrMoved, out)
	}
	return c.finish(r, nil, ErrOutcomeUnknown, out) // Stale: this client has said it had the answer
}

// refusedBySession handles a command that found its session gone. If no other copy can have been executed, it goes back to the
// queue, to be run under the next session.
func (c *Client) refusedBySession(r *request, out []ClientAction) []ClientAction {
	if r.limbo {
		c.requeue(r)
		return out
	}
	return c.lose(out)
}

// lose ends the session. Commands that may have been executed are reported; those whose only call is unanswered wait for it.
func (c *Client) lose(out []ClientAction) []ClientAction {
	flight := c.flight
	c.drop()
	var again []*request
	for _, r := range flight {
		switch {
		case r.unknown:
			out = c.finish(r, nil, ErrOutcomeUnknown, out)
		case r.call == 0:
			again = append(again, r)
		default:
			r.limbo = true
		}
	}
	c.requeue(again...)
	return append(out, Lost{})
}

// drop forgets the session, and the calls about it.
func (c *Client) drop() {
	c.flight, c.seq, c.id, c.open = nil, 0, order.ClientID{}, false
	c.era++ // what is still unanswered does not hold back the next session
	c.fresh = 0
	for id, w := range c.calls {
		if w.req == nil {
			c.take(id)
		}
	}
}

// requeue puts commands that have certainly not been executed in front of the queue, those that somebody waits for.
func (c *Client) requeue(rs ...*request) {
	rs = slices.DeleteFunc(rs, func(r *request) bool { return r.orphan })
	for _, r := range rs {
		r.seq, r.limbo = 0, false
	}
	c.queue = slices.Insert(c.queue, 0, rs...)
}

func (c *Client) finish(r *request, data []byte, err error, out []ClientAction) []ClientAction {
	if r.done {
		return out
	}
	r.done = true
	if r.orphan {
		return out
	}
	return append(out, Done{Ref: r.ref, Data: data, Err: err})
}

// sessionAnswer handles the answer to an open or a keep-alive.
func (c *Client) sessionAnswer(w wire, a Answer, out []ClientAction) []ClientAction {
	switch {
	case a.Status == OK:
		c.open = true
		c.touched = max(c.touched, w.sent)
	case a.Status == Limit:
		c.retry = c.now.Add(c.cfg.RetryMax)
		for _, r := range c.queue {
			out = c.finish(r, nil, ErrLimit, out)
		}
		c.queue = nil
	default:
		if a.Status == Refused {
			c.retry = c.now.Add(c.cfg.RetryMax)
		}
		return c.lose(out)
	}
	return out
}

// notProposed handles a call that changed nothing.
func (c *Client) notProposed(w wire) {
	if w.req != nil && w.req.limbo {
		c.requeue(w.req)
	}
}

func (c *Client) noAnswer(w wire, out []ClientAction) []ClientAction {
	if w.req == nil {
		return out
	}
	w.req.unknown = true
	if w.req.limbo {
		return c.finish(w.req, nil, ErrOutcomeUnknown, out)
	}
	return out
}

// misrouted turns to the hinted replica, at once if this is the first hint in a row, else to the next voter after a pause.
func (c *Client) misrouted(w wire, hint keyspace.NodeID) {
	if w.era != c.era {
		return
	}
	from := c.target
	c.failures++
	if !hint.IsZero() && hint != from {
		c.aim(hint)
		if !c.hinted {
			c.hinted = true
			return
		}
	} else if len(c.voters) > 0 {
		i := slices.Index(c.voters, from)
		c.aim(c.voters[(i+1)%len(c.voters)])
	}
	c.hinted = false
	pause := c.cfg.RetryMax
	if n := c.failures - 1; n < 16 {
		pause = min(pause, c.cfg.RetryMin<<n)
	}
	c.retry = c.now.Add(pause)
}

// wanted reports whether there is anything to send, now or later.
func (c *Client) wanted() bool {
	return len(c.queue) > 0 || len(c.flight) > 0 || c.open && c.keep
}

// keepDue returns when the session needs a word of its own, unless a command is under way, which serves as well.
func (c *Client) keepDue() automaton.Instant {
	if !c.open || !c.keep && len(c.flight) == 0 {
		return automaton.Never
	}
	return c.touched.Add(c.cfg.TTL / 3)
}

// pump sends whatever may be sent now.
func (c *Client) pump(out []ClientAction) []ClientAction {
	if c.closed || c.id == (order.ClientID{}) || c.locating || c.now < c.retry || !c.wanted() {
		return out
	}
	if len(c.voters) == 0 || c.failures > len(c.voters) {
		c.locating = true
		return append(out, Relocate{})
	}
	if !c.open {
		if c.fresh == 0 && c.maySend() {
			out = c.send(nil, opOpen, out)
		}
		return out
	}
	for _, r := range c.flight {
		if r.call == 0 && c.maySend() {
			out = c.send(r, 0, out)
		}
	}
	for len(c.queue) > 0 && c.seq < c.acked()+WindowSize && c.maySend() {
		r := c.queue[0]
		c.queue = c.queue[1:]
		c.seq++
		r.seq = c.seq
		c.flight = append(c.flight, r)
		out = c.send(r, 0, out)
	}
	if c.now >= c.keepDue() && c.fresh == 0 && c.maySend() {
		out = c.send(nil, opKeepAlive, out)
	}
	return out
}

// maySend holds back all but one call until the target has proved to be the leader.
func (c *Client) maySend() bool { return len(c.calls) < CallsMax && (c.sure || c.fresh == 0) }

// acked returns the number up to which every answer has arrived.
func (c *Client) acked() uint64 {
	if len(c.flight) > 0 {
		return c.flight[0].seq - 1
	}
	return c.seq
}

// send makes a call: of a request, or of the session itself when r is nil.
func (c *Client) send(r *request, op byte, out []ClientAction) []ClientAction {
	c.lastID++
	cmd := order.Command{Client: c.id, Acked: c.acked(), Service: Service}
	switch {
	case r != nil:
		cmd.Seq, cmd.Service, cmd.Data = r.seq, r.service, r.data
		r.call = c.lastID
	case op == opOpen:
		cmd.Data = OpenData(c.cfg.TTL)
	case op == opKeepAlive:
		cmd.Data = KeepAliveData()
	case op == opClose:
		cmd.Data = CloseData()
	}
	c.calls[c.lastID] = wire{req: r, sent: c.now, era: c.era}
	c.fresh++
	return append(out, SendTo{Call: c.lastID, To: c.target, Cmd: cmd, Timeout: c.cfg.CallTimeout})
}

// end takes nothing further. What was certainly never run ends with unsent.
func (c *Client) end(unsent error, out []ClientAction) []ClientAction {
	if c.closed {
		return out
	}
	c.closed = true
	for _, r := range c.queue {
		out = c.finish(r, nil, unsent, out)
	}
	for _, r := range c.flight {
		err := ErrOutcomeUnknown
		if r.call == 0 && !r.unknown { // every copy was turned away
			err = unsent
		}
		out = c.finish(r, nil, err, out)
	}
	var limbo []*request
	for _, w := range c.calls {
		if w.req != nil && w.req.limbo {
			limbo = append(limbo, w.req)
		}
	}
	slices.SortFunc(limbo, func(a, b *request) int { return int(int64(a.ref - b.ref)) })
	for _, r := range limbo {
		out = c.finish(r, nil, ErrOutcomeUnknown, out)
	}
	if c.open && !c.target.IsZero() {
		out = c.send(nil, opClose, out)
	}
	c.queue, c.flight = nil, nil
	clear(c.calls)
	return out
}

// arm asks for a timer at the next instant at which time alone changes something.
func (c *Client) arm(out []ClientAction) []ClientAction {
	at := automaton.Never
	if !c.closed && c.id != (order.ClientID{}) && !c.locating && c.wanted() {
		switch {
		case c.now < c.retry:
			at = c.retry
		case c.fresh == 0: // else an answer comes first
			at = c.keepDue()
		}
	}
	if at == c.armed {
		return out
	}
	c.armed = at
	return append(out, Arm{At: at})
}
