package simworld

import (
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/sim"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/session"
)

// Messages between clients and replicas. life tells a client's runs apart.
type (
	request struct {
		life, call uint64
		cmd        order.Command
	}
	response struct {
		life, call uint64
		notLeader  bool
		hint       keyspace.NodeID
		status     session.Status
		data       []byte
	}
	push struct {
		client order.ClientID
		data   []byte
	}
)

// engine orders commands for a server. It calls server.apply with what is decided and server.decided with what became of a
// proposal.
type engine interface {
	receive(from sim.NodeID, msg any) // what is not a request
	propose(ref uint64, s order.Stamp, cmd order.Command)
	leading() bool
	hint() keyspace.NodeID
	killed()
}

const (
	// resendEvery is how often a leader emits again what is still awaited.
	resendEvery = time.Second
	// resultsKept is how many results of entries a server remembers until its engine says whose proposals they were.
	resultsKept = 256
)

// server is one life of a replica: the host's work around an engine.
type server struct {
	w       *World
	env     *sim.Env
	engine  engine
	machine *machine
	table   *session.Table
	boot    uint64
	offset  time.Duration // its clock's reading at boot

	ref     uint64
	waiting map[uint64]request // by ref
	callers map[uint64]sim.NodeID
	results map[uint64]session.Result // by index, the last resultsKept
	outputs session.Outputs
	led     bool // as of the last step
	ticking uint64
	cancel  func() // of the deadline's timer
}

func newServer(w *World, env *sim.Env) *server {
	s := &server{
		w: w, env: env, boot: env.Rand().Uint64() | 1, offset: time.Duration(env.Rand().Int64N(int64(time.Hour))),
		waiting: make(map[uint64]request), callers: make(map[uint64]sim.NodeID), results: make(map[uint64]session.Result),
		cancel: func() {},
	}
	s.reset()
	return s
}

// reset forgets the machine's state.
func (s *server) reset() {
	s.machine = newMachine(s.w.tableConfig(), s.w.cfg.Mutant)
	s.table = session.NewTable(s.w.cfg.Drift, map[string]session.Machine{service: s.machine})
	switch s.w.cfg.Mutant {
	case ForgetResults:
		session.Sabotage(s.table, session.MutantForgetResults)
	case ForeignStamps:
		session.Sabotage(s.table, session.MutantForeignStamps)
	}
}

func (s *server) stamp() order.Stamp {
	return order.Stamp{Boot: s.boot, At: s.offset + time.Duration(s.env.Now())}
}

func (s *server) Receive(from sim.NodeID, msg any) {
	if r, ok := msg.(request); ok {
		s.request(from, r)
	} else {
		s.engine.receive(from, msg)
	}
	s.after()
}

func (s *server) Killed() {
	if s.engine != nil {
		s.engine.killed()
	}
}

func (s *server) request(from sim.NodeID, r request) {
	if !s.engine.leading() {
		s.env.Send(from, response{life: r.life, call: r.call, notLeader: true, hint: s.engine.hint()})
		return
	}
	r.cmd.Author = s.w.peer(from)
	s.ref++
	s.waiting[s.ref], s.callers[s.ref] = r, from
	s.engine.propose(s.ref, s.stamp(), r.cmd)
}

// apply executes a decided entry.
func (s *server) apply(e order.Entry) {
	s.outputs.Reset()
	s.machine.notes = s.machine.notes[:0]
	s.results[e.Index] = s.table.Apply(e, &s.outputs)
	delete(s.results, e.Index-resultsKept)
	s.w.check.entry(e.Index, s.machine.notes, s.results[e.Index])
	if e.Index%digestEvery == 0 {
		s.w.check.state(e.Index, s.table.Digest())
	}
	if s.engine.leading() {
		s.push()
	}
}

func (s *server) push() {
	for _, o := range s.outputs.List {
		s.env.Send(s.w.node(o.Peer), push{client: o.Client, data: o.Data})
	}
}

// decided answers the client of a proposal: it stands at index, or (0) it is not known to stand anywhere.
func (s *server) decided(ref, index uint64, notLeader bool) {
	if ref == s.ticking {
		s.ticking = 0
	}
	r, ok := s.waiting[ref]
	if !ok {
		return
	}
	to := s.callers[ref]
	delete(s.waiting, ref)
	delete(s.callers, ref)
	ans := response{life: r.life, call: r.call}
	switch {
	case notLeader:
		ans.notLeader, ans.hint = true, s.engine.hint()
	case index == 0:
		return // the client's patience is its own
	default:
		res := s.results[index]
		ans.status, ans.data = res.Status, res.Data
	}
	s.env.Send(to, ans)
}

// after does what a host does when its replica has taken a step: a new leader ticks and resends, every leader arms a timer for
// the next deadline.
func (s *server) after() {
	if !s.env.Alive() {
		return
	}
	leads := s.engine.leading()
	if leads && !s.led {
		s.led = true
		s.tick()
		s.resend()
	}
	s.led = leads
	s.cancel()
	if wait, ok := s.table.NextTick(s.stamp()); ok && leads && s.ticking == 0 {
		s.cancel = s.env.After(wait, func() {
			s.tick()
			s.after()
		})
	}
}

func (s *server) tick() {
	if !s.engine.leading() || s.ticking != 0 {
		return
	}
	s.ref++
	s.ticking = s.ref
	s.engine.propose(s.ref, s.stamp(), order.Command{Service: session.TickService})
}

func (s *server) resend() {
	if !s.engine.leading() {
		return
	}
	s.outputs.Reset()
	s.table.Resend(&s.outputs)
	s.push()
	s.env.After(resendEvery, s.resend)
}
