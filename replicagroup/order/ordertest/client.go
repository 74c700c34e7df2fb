package ordertest

import (
	"encoding/binary"
	"time"

	"latchkey/internal/history"
	"latchkey/internal/sim"
	"latchkey/replicagroup/order"
)

// hopsMax bounds how often a client follows a hint before it waits: two members may name each other.
const hopsMax = 3

// client issues one operation after the other and repeats each, a command under one (client, seq), until it is answered.
type client struct {
	c   *cluster
	env *sim.Env
	me  int
	id  order.ClientID

	number  uint64 // of the present operation, from 1
	seq     uint64 // of the last command
	request request
	asking  ask
	record  int // the operation in the history
	busy    bool
	stopped bool
	paused  bool // begins nothing

	began   sim.Time          // when the present operation did
	target  sim.NodeID        // the member it asks
	reads   sim.NodeID        // when not -1: it only reads, only there
	hops    int               // hints followed since it picked the target itself
	held    map[uint64]uint64 // locks it holds, with their tokens
	answers int
}

func newClient(c *cluster, e *sim.Env) *client {
	cl := &client{c: c, env: e, me: int(e.ID()) - c.hosts, reads: -1, held: make(map[uint64]uint64)}
	binary.BigEndian.PutUint64(cl.id[:], e.Rand().Uint64())
	cl.id[15] = byte(cl.me) // never equal, whatever was drawn
	cl.retarget()
	e.After(time.Duration(e.Rand().Int64N(int64(patience))), cl.begin)
	return cl
}

// Killed implements [sim.Process]. Clients are spared.
func (cl *client) Killed() {}

// finished reports whether nothing is left to ask and nothing is open.
func (cl *client) finished() bool {
	return !cl.busy && (cl.stopped || cl.c.ops > 0 && cl.answers >= cl.c.ops)
}

// stop ends the client once its present operation is answered.
func (cl *client) stop() { cl.stopped = true }

// begin starts the next operation.
func (cl *client) begin() {
	if cl.busy || cl.finished() || cl.stopped {
		return
	}
	if cl.c.hushed || cl.paused {
		cl.env.After(patience/20, cl.begin)
		return
	}
	r := cl.draw()
	cl.number++
	cl.busy, cl.request, cl.began, cl.hops = true, r, cl.c.world.Now(), 0
	cl.asking = ask{number: cl.number, key: r.key}
	if r.kind == opRead && (cl.reads >= 0 || cl.env.Rand().IntN(3) > 0) {
		cl.asking.read = true
	} else {
		cl.seq++
		cl.asking.cmd = order.Command{Client: cl.id, Seq: cl.seq, Acked: cl.seq - 1, Service: service, Data: append(r.encode(), make([]byte, cl.c.pad)...)}
		stamped := cl.asking.cmd
		stamped.Author = peerOf(cl.env.ID())
		cl.c.issued[commandID{cl.id, cl.seq}] = digestCommand(stamped)
	}
	cl.record = cl.c.history.Call(cl.me, r.op())
	cl.ask(cl.number)
}

// draw draws an operation. Values are never written twice, so a read tells which write it saw.
func (cl *client) draw() request {
	rnd := cl.env.Rand()
	key := rnd.Uint64N(uint64(cl.c.keys))
	if cl.reads >= 0 {
		return request{kind: opRead, key: key}
	}
	unique := cl.number<<16 | uint64(cl.me) + 1
	if cl.c.locks {
		if token, ok := cl.held[key]; ok {
			return request{kind: opRelease, key: key, old: token}
		}
		if rnd.IntN(4) == 0 {
			return request{kind: opAcquire, key: key}
		}
	}
	switch rnd.IntN(5) {
	case 0, 1:
		return request{kind: opWrite, key: key, value: unique}
	case 2:
		// The value expected is right only now and then: it is what some client wrote last or what nobody wrote.
		return request{kind: opCAS, key: key, value: unique, old: cl.c.lastWritten(key)}
	}
	return request{kind: opRead, key: key}
}

// ask sends the present operation, and again after a while if it is still the present one.
func (cl *client) ask(number uint64) {
	if !cl.busy || cl.number != number {
		return
	}
	if cl.c.triple && !cl.asking.read {
		for i := range min(3, cl.c.hosts) {
			cl.env.Send(sim.NodeID((int(cl.target)+i)%cl.c.hosts), cl.asking)
		}
	} else {
		cl.env.Send(cl.target, cl.asking)
	}
	cl.env.After(cl.c.retry, func() {
		if cl.busy && cl.number == number {
			cl.retarget()
			cl.ask(number)
		}
	})
}

// retarget picks another member of the newest view, as a descriptor tells it.
func (cl *client) retarget() {
	cl.hops = 0
	members := cl.c.view.Members
	if cl.target = cl.c.home[members[cl.env.Rand().IntN(len(members))].ID]; cl.reads >= 0 {
		cl.target = cl.reads
	}
}

// Receive implements [sim.Process].
func (cl *client) Receive(_ sim.NodeID, msg any) {
	r, ok := msg.(reply)
	if !ok || !cl.busy || r.number != cl.number {
		return
	}
	if r.redirect {
		// The timer repeats it; the next time it goes where the leader is said to be.
		if to, ok := cl.c.home[r.hint]; ok && cl.target != to && cl.reads < 0 && cl.hops < hopsMax {
			cl.hops++
			cl.target = to
			cl.env.Send(cl.target, cl.asking)
		}
		return
	}
	cl.busy = false
	cl.answers++
	cl.c.gap = max(cl.c.gap, cl.c.world.Now()-cl.c.answeredAt)
	cl.c.answeredAt = cl.c.world.Now()
	cl.c.slowest = max(cl.c.slowest, cl.c.world.Now()-cl.began)
	cl.settle(r.answer)
	cl.env.After(time.Duration(cl.env.Rand().ExpFloat64()*float64(cl.c.think)), cl.begin)
}

// settle records an answer and what follows from it.
func (cl *client) settle(a history.Answer) {
	switch r := cl.request; r.kind {
	case opWrite:
		cl.c.wrote(r.key, r.value)
	case opCAS:
		if a.OK {
			cl.c.wrote(r.key, r.value)
		}
	case opAcquire:
		if a.Token == 0 {
			cl.c.history.NoEffect(cl.record) // held by another
			return
		}
		cl.held[r.key] = a.Token
	case opRelease:
		delete(cl.held, r.key)
	}
	cl.c.history.Return(cl.record, a)
}
