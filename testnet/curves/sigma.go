package curves

import (
	"time"

	"latchkey/internal/automaton"
	"latchkey/internal/sim"
	"latchkey/lockservice/sigma"
)

// sigmaReplica drives a replica. The log has one entry, the first view, and never another.
type sigmaReplica struct {
	w      *world
	env    *sim.Env
	core   *sigma.Replica
	cancel func()
	out    []sigma.Action
}

func (p *sigmaReplica) Receive(from sim.NodeID, msg any) {
	m := msg.(sigma.Message)
	p.step(sigma.Event{Kind: sigma.Receive, From: nodeID(from), Msg: &m})
}

func (p *sigmaReplica) Killed() {}

func (p *sigmaReplica) step(ev sigma.Event) {
	ev.Now = p.env.Now()
	p.out = p.core.Step(ev, p.out[:0])
	for i := range p.out {
		switch a := &p.out[i]; a.Kind {
		case sigma.Send:
			p.w.send(p.env, simID(a.To), a.Msg)
		case sigma.Arm:
			p.cancel = rearm(p.env, p.cancel, a.At, func() { p.step(sigma.Event{Kind: sigma.Timer}) })
		}
	}
}

// rearm replaces a timer.
func rearm(e *sim.Env, cancel func(), at automaton.Instant, f func()) func() {
	if cancel != nil {
		cancel()
	}
	if at == automaton.Never {
		return nil
	}
	return e.After(max(0, at.Sub(e.Now())), f)
}

// sigmaClient wants the lock again and again.
type sigmaClient struct {
	w       *world
	env     *sim.Env
	index   int
	session sigma.Session
	seq     uint64
	clock   uint64
	core    *sigma.Client
	since   time.Duration // when it was asked for
	old     map[sigma.Req]*sigma.Client
	recent  []sigma.Req // of old, oldest first
	cancel  func()
	out     []sigma.Action
}

// oldMax is how many finished requests a client answers late grants of: of one more the oldest has long been forgotten by everybody.
const oldMax = 8

func (c *sigmaClient) begin() {
	c.seq++
	c.core = sigma.NewClient(sigma.ClientConfig{
		Name: lockName, Req: sigma.Req{Session: c.session, Seq: c.seq}, TTL: ttl, Drift: automaton.DriftDefault,
		View: c.w.log.Descriptor, Clock: c.clock, Y1: c.w.s.Protocol == Y1, Quorum: c.w.s.M,
	})
	c.since = time.Duration(c.env.Now())
	c.step(c.core, sigma.Event{Kind: sigma.Begin})
}

func (c *sigmaClient) Receive(from sim.NodeID, msg any) {
	m := msg.(sigma.Message)
	core := c.core
	if core == nil || m.Req.Seq != c.seq {
		core = c.old[m.Req]
	}
	if core != nil {
		c.step(core, sigma.Event{Kind: sigma.Receive, From: nodeID(from), Msg: &m})
	}
}

func (c *sigmaClient) Killed() {}

func (c *sigmaClient) step(core *sigma.Client, ev sigma.Event) {
	ev.Now = c.env.Now()
	current := core == c.core
	c.out = core.Step(ev, c.out[:0])
	c.clock = max(c.clock, core.Clock())
	entered := false
	for i := range c.out {
		switch a := &c.out[i]; a.Kind {
		case sigma.Send:
			if a.Msg.Kind == sigma.Yield {
				c.w.yields++
			}
			c.w.send(c.env, simID(a.To), a.Msg)
		case sigma.Arm:
			if current {
				c.cancel = rearm(c.env, c.cancel, a.At, func() { c.step(core, sigma.Event{Kind: sigma.Timer}) })
			}
		case sigma.Acquired:
			entered = true
		}
	}
	if entered {
		c.w.enter(c.index, time.Duration(c.env.Now())-c.since)
		c.env.After(c.w.s.Hold, c.giveBack)
	}
}

// giveBack ends the hold and wants the next.
func (c *sigmaClient) giveBack() {
	again := c.w.leave(c.env.Now())
	was := c.core
	c.step(was, sigma.Event{Kind: sigma.GiveBack})
	if c.cancel != nil {
		c.cancel()
		c.cancel = nil
	}
	req := sigma.Req{Session: c.session, Seq: c.seq}
	c.old[req] = was
	if c.recent = append(c.recent, req); len(c.recent) > oldMax {
		delete(c.old, c.recent[0])
		c.recent = c.recent[1:]
	}
	c.core = nil
	if again {
		c.begin()
	}
}
