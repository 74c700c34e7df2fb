package curves

import (
	"time"

	"latchkey/internal/sim"
)

// strawMessage is what the strawman's clients and replicas tell each other.
type strawMessage struct {
	kind    strawKind
	attempt int // of the client
}

type strawKind uint8

const (
	strawAsk strawKind = iota
	strawGrant
	strawRefuse
	strawGiveBack
)

// strawReplica grants to whoever asks first, and refuses the others until it is given back. There are no faults here, so it needs
// no lease.
type strawReplica struct {
	w     *world
	env   *sim.Env
	owner sim.NodeID // 0, a replica, is nobody
}

func (p *strawReplica) Receive(from sim.NodeID, msg any) {
	m := msg.(strawMessage)
	switch {
	case m.kind == strawGiveBack:
		if p.owner == from {
			p.owner = 0
		}
	case p.owner == 0:
		p.owner = from
		p.w.send(p.env, from, strawMessage{strawGrant, m.attempt})
	default:
		p.w.send(p.env, from, strawMessage{strawRefuse, m.attempt})
	}
}

func (p *strawReplica) Killed() {}

// Windows of the strawman.
const (
	fixedWindow = 1600 * time.Millisecond
	firstWindow = 320 * time.Millisecond
	lastWindow  = 128 * firstWindow // 41 s
)

type strawClient struct {
	w        *world
	env      *sim.Env
	index    int
	since    time.Duration
	attempt  int
	window   time.Duration
	granted  []sim.NodeID
	refusals int
	over     bool // this attempt has succeeded or failed
}

func (c *strawClient) begin() {
	c.since = time.Duration(c.env.Now())
	c.window = firstWindow
	c.try()
}

func (c *strawClient) try() {
	c.attempt++
	c.granted, c.refusals, c.over = c.granted[:0], 0, false
	for i := range c.w.s.N {
		c.w.send(c.env, sim.NodeID(i), strawMessage{strawAsk, c.attempt})
	}
}

func (c *strawClient) Receive(from sim.NodeID, msg any) {
	m := msg.(strawMessage)
	switch {
	case m.kind == strawGrant && (m.attempt != c.attempt || c.over && len(c.granted) < c.w.s.M):
		c.w.yields++ // too late to be of use
		c.w.send(c.env, from, strawMessage{strawGiveBack, m.attempt})
	case m.attempt != c.attempt:
	case m.kind == strawGrant:
		c.granted = append(c.granted, from)
		if len(c.granted) == c.w.s.M {
			c.over = true
			c.w.enter(c.index, time.Duration(c.env.Now())-c.since)
			c.env.After(c.w.s.Hold, c.giveBack)
		}
	case m.kind == strawRefuse:
		if c.refusals++; c.refusals == c.w.s.N-c.w.s.M+1 {
			c.fail()
		}
	}
}

func (c *strawClient) Killed() {}

func (c *strawClient) fail() {
	c.over = true
	c.w.yields += len(c.granted)
	c.release()
	window := fixedWindow
	if c.w.s.Protocol == Exponential {
		window = c.window
		c.window = min(2*c.window, lastWindow)
	}
	c.env.After(time.Duration(c.env.Rand().Int64N(int64(window))), c.try)
}

func (c *strawClient) giveBack() {
	again := c.w.leave(c.env.Now())
	c.release()
	if again {
		c.begin()
	}
}

// release gives back what was granted; what comes later is given back as it comes.
func (c *strawClient) release() {
	for _, r := range c.granted {
		c.w.send(c.env, r, strawMessage{strawGiveBack, c.attempt})
	}
	c.granted = c.granted[:0]
}
