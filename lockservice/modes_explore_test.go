package lockservice

import (
	"flag"
	"fmt"
	"hash/maphash"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/sim"
	"latchkey/lockservice/sigma"
	"latchkey/lockservice/table"
	"latchkey/replicagroup/order"
)

var (
	exploreFlag = flag.Int("explore", 1_500, "how many states each exploration of modes visits at most; 0 is all")
	onlyFlag    = flag.String("explore.only", "", "only the exploration of modes of this name")
)

// The exploration of this file tries every order of events of the shipped automata of one group in a small world: three voters, the log
// and the machine that it drives, and clients of both protocols for one name. What is sent is delivered at any time or never, whether to
// a voter, to a client or to the log; entries are executed at any time; timers fire late or never. Time is one clock that moves in steps
// of half a TTL. It is to rules M1 to M7 what TestExploration of package sigma is to views.
type modeState struct {
	now   automaton.Instant
	reps  []*modeReplica // shared between states: a step copies what it changes
	cls   []*modeClient
	mail  []modeMail // sorted by name
	log   *modeLog   // the last entry
	last  sigma.Token
	ticks int
	view  bool // the view change has been appended
	down  bool // a voter has restarted
}

type modeReplica struct {
	core    *sigma.Replica
	timer   automaton.Instant
	applied *modeLog
	name    string
}

type modeClient struct {
	core   *sigma.Client
	group  bool
	timer  automaton.Instant
	gave   bool
	lookup bool
	name   string
}

// modeMail is a message, or a command or entry on its way to the log, or an answer from there.
type modeMail struct {
	from, to keyspace.NodeID
	msg      *sigma.Message
	entry    *handEntry
	call     uint64       // entry: the command it is
	answer   *sigma.Event // to a client
	name     string
}

// modeLog is an entry with all that came before it. Equal logs are one, so each is executed once.
type modeLog struct {
	n      int
	path   []handEntry
	line   []*modeLog // with each entry of the path
	next   map[string]*modeLog
	event  *sigma.Event // what it means to replicas
	name   string       // of that
	state  string       // the machine after it
	sigma  sigma.LogState
	result []byte
	pushed map[keyspace.NodeID]uint64 // clients' requests
	due    time.Duration              // when log time brings something, 0 for never
	idle   bool                       // it changes nothing, and says nothing but its result
}

const (
	modeTTL  = 10 * time.Second
	modeTick = modeTTL / 2
)

// modeExploration is one search.
type modeExploration struct {
	size    int // how many states there are, where that is known; those are visited whole from a limit of wholeFrom on
	ticks   int
	next    []sim.NodeID        // the voters of the next view, when there is one
	null    bool                // the next view has the same voters
	release bool                // clients may give back what they have or wait for
	crash   bool                // a voter may restart once
	deep    bool                // depth first
	plain   bool                // also what can do nothing any more is delivered, see settle
	parts   map[string]struct{} // what the clients, voters and the log have been like, together
	max     int
	fault   handFault

	first order.View
	seen  map[uint64]struct{}
	seed  maphash.Seed
	todo  []*modeState
	err   error
}

func modeNode(i int) keyspace.NodeID { return handNode(sim.NodeID(9 + i)) } // of a client

func (x *modeExploration) machine() *Machine {
	m := NewMachine(MachineConfig{TTLMax: 10 * modeTTL, Sigma: modeTTL})
	table.Sabotage(m.table, x.fault.table)
	m.FirstView(x.first)
	return m
}

func modeView(voters ...sim.NodeID) (v order.View) {
	for _, i := range voters {
		v.Members = append(v.Members, order.Member{ID: order.ReplicaID(i + 1), Peer: handNode(i), Role: order.Voter})
	}
	return v
}

// begin returns a log without entries.
func (x *modeExploration) begin() *modeLog {
	m := x.machine()
	l := &modeLog{}
	l.note(m)
	return l
}

func (l *modeLog) note(m *Machine) {
	if ev, ok := m.Follow(); ok {
		l.event = &ev
		l.name = fmt.Sprint(ev.Kind, ev.State.View, ev.State.Ceil, ev.State.Cap, ev.Modes)
	}
	l.next, l.state, l.sigma = make(map[string]*modeLog), string(m.Snapshot()), m.Sigma()
	if at, ok := m.Deadline(); ok {
		l.due = max(1, at)
	}
}

// append returns the log with one more entry.
func (x *modeExploration) append(l *modeLog, e handEntry, now automaton.Instant) *modeLog {
	e.now = time.Duration(now)
	key := fmt.Sprint(e.kind, e.author[0], now, e.data)
	if k := l.next[key]; k != nil {
		return k
	}
	k := &modeLog{n: l.n + 1, path: append(slices.Clip(l.path), e), pushed: make(map[keyspace.NodeID]uint64)}
	k.line = append(slices.Clip(l.line), k)
	m := x.machine()
	m.Follow()
	for i := range k.path {
		m.Follow()
		k.result = k.path[i].execute(m, func(id order.ClientID, data []byte) {
			if g, err := decodeGranted(data); err == nil && i == len(k.path)-1 {
				k.pushed[keyspace.NodeID{id[0]}] = g.Req
			}
		})
	}
	k.note(m)
	k.idle = k.event == nil && k.state == l.state && k.due == l.due && len(k.pushed) == 0
	l.next[key] = k
	return k
}

// after returns the log up to the entry after l, of the one that ends with end.
func (end *modeLog) after(l *modeLog) *modeLog { return end.line[l.n] }

func (u *modeState) copy() *modeState {
	v := *u
	v.reps, v.cls, v.mail = slices.Clone(u.reps), slices.Clone(u.cls), slices.Clone(u.mail)
	return &v
}

func (u *modeState) put(m modeMail) {
	at, dup := slices.BinarySearchFunc(u.mail, m.name, func(q modeMail, n string) int { return strings.Compare(q.name, n) })
	if !dup {
		u.mail = slices.Insert(u.mail, at, m)
	}
}

// perform takes what a node wants done.
func (x *modeExploration) perform(u *modeState, from keyspace.NodeID, group bool, out []sigma.Action, timer *automaton.Instant) (lookup bool) {
	for i := range out {
		switch a := &out[i]; a.Kind {
		case sigma.Send:
			m := a.Msg
			u.put(modeMail{from: from, to: a.To, msg: &m, name: string(m.AppendState([]byte{'m', from[0], a.To[0]}))})
		case sigma.Arm:
			*timer = a.At
		case sigma.Propose:
			e := &handEntry{kind: "own", author: from, data: mustEntry(&a.Entry)}
			u.put(modeMail{from: from, entry: e, name: string(a.Entry.AppendState([]byte{'e', from[0]}))})
		case sigma.Order:
			o := a.Order
			acquire := table.Acquire{Name: "n", Req: o.Attempt, TTL: modeTTL, Held: table.Token(o.Tok)}
			if !group {
				acquire.Wish = modeWish(from)
			}
			e := &handEntry{kind: "cmd", author: from, data: encodeOrder(o.Kind, acquire)}
			e.client[0] = from[0]
			u.put(modeMail{from: from, entry: e, call: o.ID, name: fmt.Sprintf("o%c%d.%d", from[0], o.ID, o.Kind)})
		case sigma.Acquired:
			if a.Tok <= u.last && x.err == nil {
				x.err = fmt.Errorf("I6 order: token %d after %d", a.Tok, u.last)
			}
			u.last = a.Tok
		case sigma.Lookup:
			lookup = true
		}
	}
	return lookup
}

func modeWish(n keyspace.NodeID) sigma.Req { return sigma.Req{Session: sigma.Session{n[0]}, Seq: 1} }

func stateName(b []byte, more ...any) string { return string(b) + fmt.Sprint(more...) }

func (x *modeExploration) stepReplica(u *modeState, i int, ev sigma.Event, applied *modeLog) *modeState {
	ev.Now = u.now
	was := u.reps[i]
	r := &modeReplica{core: was.core.Clone(), timer: was.timer, applied: applied}
	if ev.Kind == sigma.Timer {
		r.timer = automaton.Never
	}
	x.perform(u, handNode(sim.NodeID(i)), false, r.core.Step(ev, nil), &r.timer)
	if err := r.core.Check(); err != nil && x.err == nil {
		x.err = err
	}
	r.name = stateName(r.core.AppendState(nil), r.timer)
	u.reps[i] = r
	return u
}

func (x *modeExploration) stepClient(u *modeState, i int, ev sigma.Event) *modeState {
	ev.Now = u.now
	c := *u.cls[i]
	c.core = c.core.Clone()
	if ev.Kind == sigma.Timer {
		c.timer = automaton.Never
	}
	if x.perform(u, modeNode(i), c.group, c.core.Step(ev, nil), &c.timer) {
		c.lookup = true
	}
	c.name = stateName(c.core.AppendState(nil), c.timer, c.gave, c.lookup)
	u.cls[i] = &c
	return u
}

// enter appends an entry to the log and sends out what it answers.
func (x *modeExploration) enter(u *modeState, e handEntry, call uint64) *modeState {
	l := x.append(u.log, e, u.now)
	if !l.idle || x.plain || x.fault != (handFault{}) { // the log is as good without it
		u.log = l
	}
	if e.kind == "cmd" {
		a := handAnswer(l.result, l.sigma.Descriptor)
		a.ID = call
		u.put(modeMail{to: e.author, answer: &sigma.Event{Kind: sigma.Ordered, Answer: a}, name: fmt.Sprintf("a%c%d %d %d", e.author[0], a.ID, a.Kind, a.Tok)})
	}
	for i := range u.cls {
		if req, ok := l.pushed[modeNode(i)]; ok {
			u.put(modeMail{to: modeNode(i), answer: &sigma.Event{Kind: sigma.Pushed, Answer: sigma.Answer{Attempt: req}}, name: fmt.Sprintf("p%c%d", modeNode(i)[0], req)})
		}
	}
	return u
}

// settle takes for executed what means nothing to a voter, and for lost what can do nothing any more to who gets it, whatever comes.
func (x *modeExploration) settle(u *modeState) {
	for i, r := range u.reps {
		to := r.applied
		for to.n < u.log.n && u.log.after(to).event == nil {
			to = u.log.after(to)
		}
		if to != r.applied {
			k := *r
			k.applied, u.reps[i] = to, &k
		}
	}
	u.mail = slices.DeleteFunc(u.mail, func(m modeMail) bool { return x.stale(u, &m) })
}

func (x *modeExploration) stale(u *modeState, m *modeMail) bool {
	if x.fault != (handFault{}) {
		return false
	}
	client := func(n keyspace.NodeID) *modeClient {
		if i := int(n[0]) - int(modeNode(0)[0]); i >= 0 && i < len(u.cls) {
			return u.cls[i]
		}
		return nil
	}
	switch {
	case m.entry != nil && m.entry.kind == "own": // reports, and what is over: of the view's one handover, or one before
		return x.append(u.log, *m.entry, u.now).idle
	case m.entry != nil:
		return false
	case m.answer != nil:
		return client(m.to).core.StaleAnswer(*m.answer)
	case client(m.to) != nil:
		return client(m.to).core.Stale(m.from, m.msg)
	}
	c, last := client(m.from), u.view || !x.null && x.next == nil
	told := c != nil && last && c.core.Logged() && c.core.View().View == u.log.sigma.View
	return u.reps[m.to[0]-1].core.Stale(m.from, m.msg, told)
}

// deliver hands over what is on its way.
func (x *modeExploration) deliver(u *modeState, i int) *modeState {
	m := u.mail[i]
	u.mail = slices.Delete(u.mail, i, i+1)
	if m.entry != nil {
		return x.enter(u, *m.entry, m.call)
	}
	if j := int(m.to[0]) - 1; j < len(u.reps) {
		return x.stepReplica(u, j, sigma.Event{Kind: sigma.Receive, From: m.from, Msg: m.msg}, u.reps[j].applied)
	}
	ev := sigma.Event{Kind: sigma.Receive, From: m.from, Msg: m.msg}
	if m.answer != nil {
		ev = *m.answer
	}
	return x.stepClient(u, int(m.to[0])-int(modeNode(0)[0]), ev)
}

// choices returns what can happen next.
func (x *modeExploration) choices(u *modeState) (out []func(*modeState) *modeState) {
	for i := range u.mail {
		out = append(out, func(v *modeState) *modeState { return x.deliver(v, i) })
	}
	for i, r := range u.reps {
		if r.applied.n < u.log.n {
			out = append(out, func(v *modeState) *modeState { return x.execute(v, i) })
		}
		if r.timer <= u.now {
			out = append(out, func(v *modeState) *modeState { return x.stepReplica(v, i, sigma.Event{Kind: sigma.Timer}, r.applied) })
		}
		if x.crash && !u.down {
			out = append(out, func(v *modeState) *modeState { return x.restart(v, i) })
		}
	}
	for i, c := range u.cls {
		if c.timer <= u.now {
			out = append(out, func(v *modeState) *modeState { return x.stepClient(v, i, sigma.Event{Kind: sigma.Timer}) })
		}
		if c.lookup {
			out = append(out, func(v *modeState) *modeState {
				k := *v.cls[i]
				k.lookup, v.cls[i] = false, &k
				return x.stepClient(v, i, sigma.Event{Kind: sigma.Located, State: &v.log.sigma})
			})
		}
		if x.release && !c.gave {
			out = append(out, func(v *modeState) *modeState {
				k := *v.cls[i]
				k.gave, v.cls[i] = true, &k
				return x.stepClient(v, i, sigma.Event{Kind: sigma.GiveBack})
			})
		}
	}
	if (x.null || x.next != nil) && !u.view {
		out = append(out, func(v *modeState) *modeState {
			v.view = true
			return x.enter(v, handEntry{kind: "view", null: x.null, view: modeView(x.next...)}, 0)
		})
	}
	if u.log.due > 0 && u.log.due <= time.Duration(u.now) {
		out = append(out, func(v *modeState) *modeState { return x.enter(v, handEntry{kind: "tick"}, 0) })
	}
	if u.ticks < x.ticks {
		out = append(out, func(v *modeState) *modeState {
			v.ticks++
			v.now = v.now.Add(modeTick)
			return v
		})
	}
	return out
}

// execute has a voter execute the next entry.
func (x *modeExploration) execute(u *modeState, i int) *modeState {
	l := u.log.after(u.reps[i].applied)
	if l.event == nil {
		r := *u.reps[i]
		r.applied = l
		u.reps[i] = &r
		return u
	}
	return x.stepReplica(u, i, *l.event, l)
}

// restart makes a voter forget all but its log, of which it executes what is committed before it serves.
func (x *modeExploration) restart(u *modeState, i int) *modeState {
	u.down = true
	m := x.machine()
	for j := range u.log.path {
		u.log.path[j].execute(m, func(order.ClientID, []byte) {})
	}
	ev, _ := m.Follow()
	r := &modeReplica{timer: automaton.Never, applied: u.log, core: sigma.NewReplica(sigma.ReplicaConfig{
		Self: handNode(sim.NodeID(i)), Inc: 2, TTLMin: 1, TTLMax: 10 * modeTTL, Restarted: true,
	}, *ev.State)}
	r.core.Sabotage(x.fault.sigma)
	u.reps[i] = r
	x.stepReplica(u, i, ev, u.log)
	return x.stepReplica(u, i, sigma.Event{Kind: sigma.Barrier}, u.log)
}

// check looks for two holders.
func (x *modeExploration) check(u *modeState) error {
	holders := 0
	for _, c := range u.cls {
		if s := c.core.State(); (s == sigma.ClientHeld || s == sigma.ClientLost) && u.now < c.core.Deadline() {
			holders++
		}
	}
	if holders > 1 && x.err == nil {
		x.err = fmt.Errorf("I5: %d holders", holders)
	}
	return x.err
}

func (x *modeExploration) visit(u *modeState) error {
	if !x.plain {
		x.settle(u)
	}
	if x.parts != nil {
		s := fmt.Sprint(u.now, u.last, u.view, u.down, u.log.state)
		for _, r := range u.reps {
			s += "\x00" + r.name
		}
		for _, c := range u.cls {
			s += "\x00" + c.name
		}
		x.parts[s] = struct{}{}
	}
	var h maphash.Hash
	h.SetSeed(x.seed)
	write := func(s string) { _, _ = h.WriteString(s); _ = h.WriteByte(0) }
	write(fmt.Sprint(u.now, u.last, u.view, u.down))
	oldest := u.log.n
	for _, r := range u.reps {
		write(r.name)
		write(fmt.Sprint(u.log.n - r.applied.n))
		oldest = min(oldest, r.applied.n)
	}
	for _, r := range u.reps {
		if r.applied.n == oldest {
			for l := r.applied; l.n < u.log.n; {
				l = u.log.after(l)
				write(l.name)
			}
			break
		}
	}
	write(u.log.state)
	for _, c := range u.cls {
		write(c.name)
	}
	for i := range u.mail {
		write(u.mail[i].name)
	}
	k := h.Sum64()
	if _, ok := x.seen[k]; !ok {
		x.seen[k] = struct{}{}
		x.todo = append(x.todo, u)
	}
	return x.check(u)
}

// guard turns the automata's own assertions into errors.
func (x *modeExploration) guard(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("invariant: %v", p)
	}
}

// run visits what can be reached from a state. It reports how many states it saw and whether these are all.
func (x *modeExploration) run(from *modeState) (states int, complete bool, err error) {
	defer func() { states = len(x.seen) }()
	defer x.guard(&err)
	x.seen, x.seed = make(map[uint64]struct{}), maphash.MakeSeed()
	if err := x.visit(from); err != nil {
		return 0, false, err
	}
	for len(x.todo) > 0 {
		if x.max > 0 && len(x.seen) > x.max {
			return 0, false, nil
		}
		var u *modeState
		if last := len(x.todo) - 1; x.deep {
			u, x.todo = x.todo[last], x.todo[:last]
		} else {
			u, x.todo[0] = x.todo[0], nil
			x.todo = x.todo[1:]
		}
		for _, do := range x.choices(u) {
			if err := x.visit(do(u.copy())); err != nil {
				return 0, false, err
			}
		}
	}
	return 0, true, nil
}

// walk goes from a state by drawn steps. Time goes on seldom.
func (x *modeExploration) walk(u *modeState, steps int, r *rand.Rand) (err error) {
	defer x.guard(&err)
	for range steps {
		all := x.choices(u)
		if len(all) == 0 {
			break
		}
		i := r.IntN(len(all))
		if i == len(all)-1 && r.IntN(2) == 0 { // the last is time, where it can go on
			i = r.IntN(len(all))
		}
		u = all[i](u.copy())
		if err := x.check(u); err != nil {
			return err
		}
	}
	return x.serve(u)
}

// serve has everything happen that is due, again and again, until everybody has had the lock and given it back (I8).
func (x *modeExploration) serve(u *modeState) (err error) {
	defer x.guard(&err)
	u = u.copy()
	done := func(c *modeClient) bool { return c.core.State() == sigma.ClientDone }
	for range 40 {
		for n := 0; n < 2000; n++ {
			did := n
			if len(u.mail) > 0 {
				u = x.deliver(u, 0)
				did++
			}
			for i, r := range u.reps {
				if r.applied.n < u.log.n {
					u = x.execute(u, i)
					did++
				}
				if u.reps[i].timer <= u.now {
					u = x.stepReplica(u, i, sigma.Event{Kind: sigma.Timer}, u.reps[i].applied)
					did++
				}
			}
			for i := range u.cls {
				c := u.cls[i]
				switch {
				case c.lookup:
					k := *c
					k.lookup, u.cls[i] = false, &k
					u = x.stepClient(u, i, sigma.Event{Kind: sigma.Located, State: &u.log.sigma})
				case c.core.State() == sigma.ClientHeld:
					u = x.stepClient(u, i, sigma.Event{Kind: sigma.GiveBack})
				case c.timer <= u.now:
					u = x.stepClient(u, i, sigma.Event{Kind: sigma.Timer})
				default:
					continue
				}
				did++
			}
			if err := x.check(u); err != nil {
				return err
			}
			if did == n {
				break
			}
		}
		if !slices.ContainsFunc(u.cls, func(c *modeClient) bool { return !done(c) }) {
			return nil
		}
		if u.now = u.now.Add(modeTick); u.log.due > 0 && u.log.due <= time.Duration(u.now) {
			u = x.enter(u, handEntry{kind: "tick"}, 0)
		}
	}
	var left []string
	for _, c := range u.cls {
		left = append(left, c.core.State().String())
	}
	return fmt.Errorf("I8: not everybody was served: %v", left)
}

// start returns a world in which everybody has asked: clients of protocol sigma, then those of protocol group.
func (x *modeExploration) start(voters, logged int) *modeState {
	x.first = modeView(0, 1, 2)
	u := &modeState{now: 1, log: x.begin()}
	for i := range 3 {
		r := &modeReplica{timer: automaton.Never, applied: u.log, core: sigma.NewReplica(sigma.ReplicaConfig{
			Self: handNode(sim.NodeID(i)), Inc: 1, TTLMin: 1, TTLMax: 10 * modeTTL,
		}, *u.log.event.State)}
		r.core.Sabotage(x.fault.sigma)
		u.reps = append(u.reps, r)
		x.stepReplica(u, i, *u.log.event, u.log)
	}
	for i := range voters + logged {
		c := &modeClient{timer: automaton.Never, group: i >= voters, core: sigma.NewClient(sigma.ClientConfig{
			Name: "n", Req: modeWish(modeNode(i)), TTL: modeTTL, View: u.log.sigma.Descriptor, Repeat: true, Logged: i >= voters,
		})}
		c.core.Sabotage(x.fault.sigma)
		u.cls = append(u.cls, c)
		x.stepClient(u, i, sigma.Event{Kind: sigma.Begin})
	}
	return u
}

// play delivers the first message from one to the other, by node: voters are 1 to 3, clients 10 and on, the log is 0.
func (x *modeExploration) play(u *modeState, hops ...[2]byte) *modeState {
	for _, p := range hops {
		i := slices.IndexFunc(u.mail, func(m modeMail) bool { return m.from[0] == p[0] && m.to[0] == p[1] })
		if i < 0 {
			panic(fmt.Sprintf("nothing goes from %d to %d", p[0], p[1]))
		}
		u = x.deliver(u, i)
	}
	return u
}

// drop forgets what is on its way to or from a node.
func (u *modeState) drop(n byte) {
	u.mail = slices.DeleteFunc(u.mail, func(m modeMail) bool { return m.from[0] == n || m.to[0] == n })
}

// acquired has client c ask and hear voters.
func (x *modeExploration) acquired(u *modeState, c byte, voters ...byte) *modeState {
	for _, v := range voters {
		u = x.play(u, [2]byte{c, v}, [2]byte{v, c})
	}
	return u
}

// held is the start of the design's search: client 10 holds through voters 1 and 3, after client 12 did; client 11 owns voter 2, whose number is
// lower; and client 13 asks the table, so the log has taken the name.
func (x *modeExploration) held() *modeState {
	u := x.acquired(x.start(3, 1), 12, 1, 3)
	u = x.stepClient(u, 2, sigma.Event{Kind: sigma.GiveBack})
	u.mail = slices.DeleteFunc(u.mail, func(m modeMail) bool { return m.from[0] == 12 && m.msg.Kind != sigma.Release })
	u = x.acquired(u, 12, 1, 3)
	u.drop(12)
	u = x.acquired(x.acquired(u, 10, 1, 3), 11, 2)
	u.drop(10)
	return x.play(u, [2]byte{13, 0})
}

// rivals is a world in which client 10 holds through voters 1 and 3, client 11 owns voter 2 with a number above the holder's, which was client
// 12's before, and has renewed there half a TTL later and asked voter 3. Client 13 asks the table, to
// which voters 1 and 2 have reported.
func (x *modeExploration) rivals() *modeState {
	u := x.acquired(x.start(3, 1), 12, 2)
	others := func(m modeMail) bool { return m.from[0] != 13 }
	u.now = u.now.Add(2 * modeTick)
	u = x.stepReplica(u, 1, sigma.Event{Kind: sigma.Timer}, u.log)
	u.mail = slices.DeleteFunc(u.mail, others)
	u = x.acquired(x.stepClient(u, 0, sigma.Event{Kind: sigma.Timer}), 10, 1, 3)
	u = x.acquired(x.stepClient(u, 1, sigma.Event{Kind: sigma.Timer}), 11, 2)
	u.now = u.now.Add(modeTick)
	u.mail = slices.DeleteFunc(u.mail, others)
	u = x.acquired(x.stepClient(u, 1, sigma.Event{Kind: sigma.Timer}), 11, 2)
	u = x.play(u, [2]byte{11, 3}, [2]byte{13, 0})
	u = x.play(x.execute(u, 0), [2]byte{1, 0})
	return x.play(x.execute(u, 1), [2]byte{2, 0})
}

// renewed is a world in which client 10 holds through everybody, and has renewed half a TTL later with all but voter 1. Client 11 asks the
// table.
func (x *modeExploration) renewed() *modeState {
	u := x.acquired(x.start(1, 1), 10, 1, 2, 3)
	u.now = u.now.Add(modeTick)
	u = x.acquired(x.stepClient(u, 0, sigma.Event{Kind: sigma.Timer}), 10, 2, 3)
	u.drop(10)
	return x.play(u, [2]byte{11, 0})
}

// taken is a world in which client 11 has the lock by the table, of which voter 3 has not heard, and client 10 asks the voters.
func (x *modeExploration) taken() *modeState {
	u := x.play(x.start(1, 1), [2]byte{11, 0})
	u = x.play(x.execute(u, 0), [2]byte{1, 0})
	u = x.play(x.execute(u, 1), [2]byte{2, 0})
	u = x.play(u, [2]byte{0, 11}, [2]byte{0, 11}, [2]byte{11, 0}, [2]byte{0, 11}) // queued, pushed, renewed
	if x.fault == (handFault{}) && u.cls[1].core.State() != sigma.ClientHeld {
		panic("client 11 has not got the lock")
	}
	return u
}

// whole is the same with one client of protocol sigma, which holds through everybody.
func (x *modeExploration) whole() *modeState {
	u := x.start(1, 1)
	for _, v := range []byte{1, 2, 3} {
		u = x.play(u, [2]byte{10, v}, [2]byte{v, 10})
	}
	return x.play(u, [2]byte{11, 0})
}

// idle is a world whose log had the name, and whose voter 3 has not heard of it: nobody wants it there any more, the next view gives it back.
// Clients 10 and 11 ask the voters.
func (x *modeExploration) idle() *modeState { return x.idleFor(2) }

// idleAlone is the same with client 10 only.
func (x *modeExploration) idleAlone() *modeState { return x.idleFor(1) }

// free is a world in which nobody holds, and client 11 asks the table.
func (x *modeExploration) free() *modeState { return x.start(0, 1) }

func (x *modeExploration) idleFor(clients int) *modeState {
	u := x.start(clients, 0)
	stranger := handEntry{kind: "cmd", author: modeNode(8), client: order.ClientID{99}}
	for _, k := range []sigma.CommandKind{sigma.CommandAcquire, sigma.CommandRenew, sigma.CommandRelease} {
		stranger.data = encodeOrder(k, table.Acquire{Name: "n", Req: 1, TTL: modeTTL})
		u = x.enter(u, stranger, 0)
		switch k {
		case sigma.CommandAcquire:
			for i := range 2 {
				u = x.play(x.execute(u, i), [2]byte{byte(i + 1), 0})
			}
		case sigma.CommandRenew:
			u.last = handAnswer(u.log.result, u.log.sigma.Descriptor).Tok
		}
	}
	u.drop(modeNode(8)[0])
	return u
}

// TestExplorationOfModes visits the states of small worlds in which a name changes its mode, as far as -explore goes, and prints how many
// they were.
func TestExplorationOfModes(t *testing.T) {
	t.Parallel()
	limit := *exploreFlag
	if testing.Short() {
		limit = 500
	}
	for _, k := range modeWorlds() {
		x := k.modeExploration
		if x.max = limit; *onlyFlag != "" && *onlyFlag != k.name {
			continue
		}
		small := k.size > 0 && (limit == 0 || k.size <= max(limit, 4000) || limit >= wholeFrom && k.size < 10*wholeFrom)
		if small {
			x.max = 0
		}
		n, all, err := x.run(k.start(&x))
		t.Logf("%s: %d states, complete %v", k.name, n, all)
		if err != nil || small && (!all || n != k.size) {
			t.Errorf("%s: after %d states, complete %v of %d: %v", k.name, n, all, k.size, err)
		}
	}
}

// TestTheExplorationOfModesLeavesNothingOut compares it with one that delivers all there is: clients, voters and the log get into the same states together.
func TestTheExplorationOfModesLeavesNothingOut(t *testing.T) {
	t.Parallel()
	for _, k := range modeWorlds() {
		if k.size == 0 || k.size > 10_000 || k.size > 1000 && *exploreFlag < wholeFrom {
			continue
		}
		var parts [2]map[string]struct{}
		var sizes [2]int
		for i := range parts {
			x := k.modeExploration
			x.plain, x.parts = i == 1, make(map[string]struct{})
			n, all, err := x.run(k.start(&x))
			if err != nil || !all {
				t.Fatalf("%s: complete %v, %v", k.name, all, err)
			}
			parts[i], sizes[i] = x.parts, n
		}
		t.Logf("%s: %d states, %d if all is delivered, with %d and %d of clients, voters and log", k.name, sizes[0], sizes[1], len(parts[0]), len(parts[1]))
		if !maps.Equal(parts[0], parts[1]) {
			t.Errorf("%s: they are not the same", k.name)
		}
	}
}

// wholeFrom is the limit from which worlds that can be visited whole are, though they have more states, but not ten times as many.
const wholeFrom = 100_000

type modeWorld struct {
	name  string
	start func(*modeExploration) *modeState
	modeExploration
}

func modeWorlds() []modeWorld {
	return []modeWorld{
		{"to group, nobody holds", (*modeExploration).free, modeExploration{size: 261}},
		{"back, null change, one client", (*modeExploration).idleAlone, modeExploration{null: true}},
		{"to group, one holds", (*modeExploration).whole, modeExploration{size: 1_200}},
		{"to group, one holds, releases", (*modeExploration).whole, modeExploration{size: 1_007_921, release: true}},
		{"to group, one holds, a rival", (*modeExploration).held, modeExploration{size: 48_778}},
		{"to group, a rival, three steps of time", (*modeExploration).held, modeExploration{ticks: 3, deep: true}},
		{"to group, a rival, view of 1", (*modeExploration).held, modeExploration{next: []sim.NodeID{0}}},
		{"to group, a rival, a crash", (*modeExploration).held, modeExploration{crash: true, ticks: 1, deep: true}},
		{"back, null change", (*modeExploration).idle, modeExploration{null: true}},
		{"back, null change, three steps of time", (*modeExploration).idle, modeExploration{null: true, ticks: 3, deep: true}},
	}
}

// TestDrawnPathsOfModes walks from the same states by drawn steps, and looks whether everybody is served after each walk (I8).
func TestDrawnPathsOfModes(t *testing.T) {
	t.Parallel()
	for _, k := range modeWorlds() {
		x := k.modeExploration
		from, r := k.start(&x), rand.New(rand.NewPCG(1, 2))
		for i := range max(10, *exploreFlag/50) {
			if err := x.walk(from, 80, r); err != nil {
				t.Errorf("%s: path %d: %v", k.name, i, err)
				break
			}
		}
	}
}

// TestTheExplorationOfModesCatchesMutants plants each mistake of lock-protocols.md section 10.1, and waits for the check that is there for
// it, on drawn paths through the states. It finds in some hundred paths what is near the state it starts from.
func TestTheExplorationOfModesCatchesMutants(t *testing.T) {
	t.Parallel()
	held, taken := (*modeExploration).held, (*modeExploration).taken
	for _, k := range []struct {
		name  string
		check string
		start func(*modeExploration) *modeState
		seed  uint64 // that finds it soon
		modeExploration
	}{
		{"no seal", "I5", held, 7, modeExploration{fault: handFault{sigma: sigma.MutantNoModeSeal}, ticks: 4}},
		{"reports of one", "I5", held, 7, modeExploration{fault: handFault{table: table.MutantOneModeReport}}},
		{"owner ignored", "I5", held, 7, modeExploration{fault: handFault{table: table.MutantNoCandidates}}},
		{"token of the reports", "I6", held, 7, modeExploration{fault: handFault{table: table.MutantReportedToken}, ticks: 4}},
		{"shortest lease", "I5", (*modeExploration).renewed, 7, modeExploration{fault: handFault{table: table.MutantShortestLease}, ticks: 4}},
		{"claim overrules", "I5", (*modeExploration).rivals, 13, modeExploration{fault: handFault{table: table.MutantClaimOverrules}, ticks: 4}},
		{"grants kept", "I5", held, 12, modeExploration{fault: handFault{sigma: sigma.MutantGrantsKept}, ticks: 4}},
		{"empty report", "I5", held, 7, modeExploration{fault: handFault{sigma: sigma.MutantEmptyModeReport}, crash: true, ticks: 1}},
		{"mode reset by a view", "I5", taken, 7, modeExploration{fault: handFault{table: table.MutantModeReset}, null: true}},
		{"reports kept by a view", "I8", held, 7, modeExploration{fault: handFault{table: table.MutantKeptReports}, next: []sim.NodeID{0}}},
		{"sealed table left out", "I5", held, 7, modeExploration{fault: handFault{sigma: sigma.MutantSealedLeftOut}, null: true}},
		{"new view ignores modes", "I5", taken, 7, modeExploration{fault: handFault{sigma: sigma.MutantModesForgotten}, null: true}},
		{"back inside the view", "I6", taken, 5, modeExploration{fault: handFault{table: table.MutantBackAtOnce}, release: true}},
	} {
		x := k.modeExploration
		from, r := k.start(&x), rand.New(rand.NewPCG(k.seed, 2))
		n, err := 0, error(nil)
		for ; n < 2000 && err == nil; n++ {
			x.err = nil
			if err = x.walk(from, 80, r); err != nil && !strings.Contains(err.Error(), k.check) {
				err = nil // another of its symptoms
			}
		}
		if t.Logf("%s: path %d: %.100v", k.name, n, err); err == nil {
			t.Errorf("%s: not caught in %d paths", k.name, n)
		}
	}
}
