package simworld

import (
	"fmt"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/sim"
	"latchkey/lockservice/hold"
	"latchkey/lockservice/table"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/session"
)

const (
	locateTakes = 20 * time.Millisecond
	callTimeout = 300 * time.Millisecond
	wishesMax   = 2 // of one client at a time, beside those that are being given back
)

// client is one life of a node with one session and a few wishes.
type client struct {
	w    *World
	env  *sim.Env
	sess *session.Client
	acts []session.ClientAction

	wishes []*wish // that are not over
	req    uint64
	ref    uint64
	refs   map[uint64]pendingCall // submitted commands
	calls  map[uint64]bool        // sends that have no answer yet
	timer  func()
	busy   bool
	queue  []session.ClientEvent
}

// pendingCall is a call of a hold on its way through the session.
type pendingCall struct {
	wish *wish
	call hold.Call
	uid  uint64
}

// wish is one hold with what its user does.
type wish struct {
	c        *client
	name     string
	hold     *hold.Hold
	cfg      hold.Config
	reqs     map[uint64]uint64 // attempt -> request number
	timer    func()
	leaving  bool // its user has given it back or up
	acquired bool
	settled  bool // began after the faults, and wants the lock whatever it takes
	done     bool
	shared   bool
	permits  int
}

func newClient(w *World, e *sim.Env) *client {
	c := &client{
		w: w, env: e, refs: make(map[uint64]pendingCall), calls: make(map[uint64]bool), timer: func() {},
		sess: session.NewClient(session.ClientConfig{TTL: w.cfg.Session, CallTimeout: callTimeout}),
	}
	e.After(0, func() { c.step(c.identity()) })
	c.think()
	return c
}

func (c *client) identity() session.Identity {
	var id order.ClientID
	r := c.env.Rand()
	for i := range id {
		id[i] = byte(r.Uint32())
	}
	return session.Identity{ID: id}
}

// String prints the wishes for a failed run.
func (c *client) String() string {
	s := fmt.Sprintf("client %d:", c.env.ID())
	for _, x := range c.wishes {
		s += fmt.Sprintf(" %s %v", x.name, x.hold.State())
	}
	return s
}

func (c *client) idle() bool { return len(c.wishes) == 0 }

// Killed ends whatever this life believed.
func (c *client) Killed() {
	for _, x := range c.wishes {
		c.w.check.over(x)
	}
	c.wishes = nil
}

func (c *client) Receive(_ sim.NodeID, msg any) {
	switch m := msg.(type) {
	case response:
		if m.life != c.env.Life() || !c.calls[m.call] {
			return
		}
		delete(c.calls, m.call)
		if m.notLeader {
			c.step(session.NotLeader{Call: m.call, Hint: m.hint})
		} else {
			c.step(session.Answer{Call: m.call, Status: m.status, Data: m.data})
		}
	case push:
		if m.client != c.sess.ID() {
			return
		}
		req, token := decodeGrant(m.data)
		for _, x := range c.wishes {
			for attempt, r := range x.reqs {
				if r == req {
					x.step(hold.Pushed{Attempt: attempt, Token: token})
				}
			}
		}
	}
}

// step feeds one event to the session. Events that come of its actions are fed after it.
func (c *client) step(ev session.ClientEvent) {
	c.queue = append(c.queue, ev)
	if c.busy {
		return
	}
	c.busy = true
	for len(c.queue) > 0 && c.env.Alive() {
		next := c.queue[0]
		c.queue = c.queue[1:]
		c.acts = c.sess.Step(next, c.env.Now(), c.acts[:0])
		for _, a := range c.acts {
			c.perform(a)
		}
	}
	c.busy = false
}

func (c *client) perform(a session.ClientAction) {
	switch a := a.(type) {
	case session.SendTo:
		c.calls[a.Call] = true
		c.env.Send(c.w.node(a.To), request{life: c.env.Life(), call: a.Call, cmd: a.Cmd})
		c.env.After(a.Timeout, func() {
			if c.calls[a.Call] {
				delete(c.calls, a.Call)
				c.step(session.NoAnswer{Call: a.Call})
			}
		})
	case session.Arm:
		c.timer()
		c.timer = func() {}
		if a.At != automaton.Never {
			c.timer = c.env.After(a.At.Sub(c.env.Now()), func() { c.step(session.Timer{}) })
		}
	case session.Done:
		c.done(a)
	case session.Relocate:
		c.env.After(locateTakes, func() {
			var voters []keyspace.NodeID
			for i := range c.w.cfg.Replicas {
				voters = append(voters, c.w.peer(sim.NodeID(i)))
			}
			c.step(session.Located{Voters: voters})
		})
	case session.Lost:
		c.w.check.report.Sessions++
		c.step(c.identity())
	}
}

// done takes the fate of a command to the hold that asked for it.
func (c *client) done(d session.Done) {
	p, ok := c.refs[d.Ref]
	if !ok {
		return
	}
	delete(c.refs, d.Ref)
	c.w.check.told(p.uid, d)
	if d.Err != nil {
		p.wish.step(hold.Failed{Call: p.call.ID})
		return
	}
	r := decodeResult(d.Data)
	a := hold.Answer{Call: p.call.ID, Token: uint64(r.ans.Token), Waited: r.ans.Waited, Position: r.ans.Position}
	a.Kind = map[table.Kind]hold.AnswerKind{
		table.Granted: hold.Granted, table.Queued: hold.Queued, table.Locked: hold.Locked, table.Held: hold.Held,
		table.NotHeld: hold.NotHeld, table.Released: hold.Released, table.Refused: hold.Refused,
	}[r.ans.Kind]
	if a.Kind == hold.Refused {
		a.Err = fmt.Errorf("refused: %v", r.ans.Reason)
	}
	p.wish.step(a)
}

func (c *client) drawn(mean time.Duration) time.Duration {
	return 1 + time.Duration(c.env.Rand().ExpFloat64()*float64(mean))
}

// think begins a wish after a while, and again.
func (c *client) think() {
	c.env.After(c.drawn(c.w.cfg.Think), func() {
		if c.w.closing {
			return
		}
		active := 0
		for _, x := range c.wishes {
			if !x.leaving {
				active++
			}
		}
		if active < wishesMax {
			c.wish()
		}
		c.think()
	})
}

func (c *client) wish() {
	r := c.env.Rand()
	x := &wish{
		c: c, name: string(rune('a' + r.IntN(c.w.cfg.Names))), reqs: make(map[uint64]uint64), timer: func() {},
		cfg: hold.Config{TTL: c.w.cfg.TTL[r.IntN(len(c.w.cfg.TTL))], Drift: c.w.protocolDrift(), Try: r.IntN(6) == 0},
	}
	mode := c.w.cfg.Modes[x.name[0]-'a']
	x.shared, x.permits = mode == someShare && r.IntN(3) > 0, max(mode, 0)
	x.hold = hold.New(x.cfg)
	switch c.w.cfg.Mutant {
	case FromArrival:
		hold.Sabotage(x.hold, hold.MutantFromArrival)
	case RetryMoves:
		hold.Sabotage(x.hold, hold.MutantRetryMoves)
	case Unconfirmed:
		hold.Sabotage(x.hold, hold.MutantUnconfirmed)
	}
	c.wishes = append(c.wishes, x)
	c.step(session.KeepAlive{On: true})
	switch {
	case r.IntN(6) == 0:
		c.env.After(c.drawn(x.cfg.TTL), x.leave)
	case !x.cfg.Try:
		x.settled = !c.w.faulty()
	}
	x.step(hold.Begin{})
}

// leave gives the lock, or the wish for it, back.
func (x *wish) leave() {
	x.leaving = true
	x.step(hold.Release{})
}

func (x *wish) step(ev hold.Event) {
	if x.done || !x.c.env.Alive() {
		return
	}
	for _, a := range x.hold.Step(ev, x.c.env.Now(), nil) {
		x.perform(a)
	}
}

func (x *wish) perform(a hold.Action) {
	c := x.c
	switch a := a.(type) {
	case hold.Call:
		x.call(a)
	case hold.Arm:
		x.timer()
		x.timer = func() {}
		if a.At != automaton.Never {
			x.timer = c.env.After(a.At.Sub(c.env.Now()), func() { x.step(hold.Timer{}) })
		}
	case hold.Acquired:
		x.acquired = true
		c.w.check.acquired(x)
		c.env.After(c.drawn(c.w.cfg.Hold), x.leave)
	case hold.Renewed:
		c.w.check.renewed(x)
	case hold.Lost:
		c.w.check.lost(x)
		c.env.After(c.drawn(c.w.cfg.Think), x.leave)
	case hold.Done:
		x.done = true
		c.finished(x)
	}
}

// call sends a hold's call through the session, and loses patience with it if that was drawn.
func (x *wish) call(a hold.Call) {
	c := x.c
	req, ok := x.reqs[a.Attempt]
	if !ok {
		c.req++
		req = c.req
		clear(x.reqs) // the former attempts are over
		x.reqs[a.Attempt] = req
	}
	c.ref++
	ref := c.ref
	uid := uint64(c.env.ID())<<56 | c.env.Life()<<40 | ref
	var cmd table.Command
	switch a.Kind {
	case hold.Acquire:
		cmd = table.Acquire{Name: x.name, Req: req, TTL: a.TTL, Try: a.Try, Shared: x.shared, Permits: x.permits}
	case hold.Renew:
		cmd = table.Renew{Name: x.name, Req: req, Token: table.Token(a.Token), TTL: a.TTL}
	case hold.GiveBack:
		cmd = table.Release{Name: x.name, Req: req, Token: table.Token(a.Token)}
		c.w.check.over(x)
	}
	c.refs[ref] = pendingCall{x, a, uid}
	c.step(session.Submit{Ref: ref, Service: service, Data: command{uid, cmd}.encode()})
	if p := c.w.cfg.Patience; p > 0 && c.w.faulty() {
		c.env.After(p, func() { c.step(session.Abandon{Ref: ref}) })
	}
}

func (c *client) finished(x *wish) {
	x.timer()
	c.w.check.over(x)
	if x.settled && !x.acquired {
		c.w.sim.Fail(fmt.Errorf("client %d ended its wish for %s without having had it", c.env.ID(), x.name))
	}
	for i, y := range c.wishes {
		if x == y {
			c.wishes = append(c.wishes[:i:i], c.wishes[i+1:]...)
			break
		}
	}
	if len(c.wishes) == 0 {
		c.step(session.KeepAlive{On: false})
	}
}
