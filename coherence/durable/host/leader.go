package host

import (
	"fmt"
	"sync/atomic"
	"time"

	logging "github.com/ipfs/go-log/v2"

	"latchkey/coherence/durable"
	"latchkey/coherence/durable/pb"
	"latchkey/coherence/durable/register"
	"latchkey/coherence/durable/store"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/replicagroup"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/session"
)

var log = logging.Logger("latchkey/durable")

const (
	// repeatEvery is how often a leader says again what it waits for.
	repeatEvery = 250 * time.Millisecond
	// tickPause is the shortest time between two looks at what is over by now.
	tickPause = 5 * time.Millisecond
)

// Service makes the machines and the leaders of durable objects: a [replicagroup.LeaderService]. Safe for concurrent use.
type Service struct {
	params durable.Params
	stats  struct{ tenures, taken, sent, frames, proposed, pieces, confirms atomic.Uint64 }
}

var _ replicagroup.LeaderService = (*Service)(nil)

// New makes the service of a peer of an overlay with such clocks. It has nothing to start or to close.
func New(drift automaton.Drift) *Service { return &Service{params: durable.ParamsOf(drift)} }

// Stats counts what the leaders on this peer have done.
type Stats struct {
	Tenures  uint64 // leaders that began
	Taken    uint64 // messages of nodes
	Sent     uint64 // messages to nodes
	Frames   uint64 // that those went in
	Proposed uint64 // commands for the log
	Pieces   uint64 // entries that those took
	Confirms uint64 // times that one asked whether it leads still
}

// Stats returns what the leaders on this peer have done.
func (s *Service) Stats() Stats {
	c := &s.stats
	return Stats{c.tenures.Load(), c.taken.Load(), c.sent.Load(), c.frames.Load(), c.proposed.Load(), c.pieces.Load(), c.confirms.Load()}
}

// Machine makes the machine of a group: a [replicagroup.MachineFactory].
func (s *Service) Machine(g order.GroupID) session.Machine { return NewMachine(g) }

// Service, Asks and Answers: see [replicagroup.LeaderService].
func (s *Service) Service() string { return ServiceName }
func (s *Service) Asks() string    { return pb.ServiceLeader }
func (s *Service) Answers() string { return pb.ServiceNode }

// Used reports whether something is to be deleted in time, or to be marked as settled.
func (s *Service) Used(m session.Machine) bool {
	machine, ok := m.(*Machine)
	return ok && machine.store.Written() > 0
}

// Read reads a frame of a node. Nobody speaks for another: whose messages they are is not in the frame.
func (s *Service) Read(from keyspace.NodeID, data []byte) (order.GroupID, any, error) {
	p, err := pb.DecodePacket(data, from, true)
	if err != nil {
		return order.GroupID{}, nil, err
	}
	for i := range p.Messages {
		if m := &p.Messages[i]; m.Object != "" && !p.Prefix.Contains(durable.KeyOf(m.Object)) {
			return order.GroupID{}, nil, fmt.Errorf("%w: object %.64q is not of prefix %v", pb.ErrMalformed, m.Object, p.Prefix)
		}
	}
	return order.GroupID{Prefix: p.Prefix, Gen: p.Gen}, p.Messages, nil
}

var statuses = map[replicagroup.Why]pb.Status{
	replicagroup.NotLeading: pb.NotLeader, replicagroup.NotHosted: pb.NotHere, replicagroup.GoneBy: pb.Moved, replicagroup.TooMuch: pb.Busy,
}

// Decline encodes what a node is told whose frame nobody here takes.
func (s *Service) Decline(to order.GroupID, e replicagroup.Elsewhere) []byte {
	w := &pb.Whereabouts{Status: statuses[e.Why], Leader: e.Leader}
	if len(e.Descriptor) <= pb.DescriptorBytesMax {
		w.Descriptor = e.Descriptor
	}
	b, err := pb.EncodePacket(nil, &pb.Packet{Prefix: to.Prefix, Gen: to.Gen, Where: w})
	if err != nil {
		log.Errorw("an answer is not sent", "group", to, "err", err)
	}
	return b
}

// leader drives the register of one tenure.
type leader struct {
	service *Service
	desk    desk
	reg     *register.Register
	group   order.GroupID

	number   uint64             // of the last proposal
	attempts map[string]attempt // of objects whose command is proposed and neither executed nor failed
	objects  map[uint64]string  // whose those are, by number
	failed   []store.Command    // that the register has not heard of yet
	actions  []register.Action  // storage of one step
	out      map[keyspace.NodeID]*pb.Packet
	order    []keyspace.NodeID // of out, in the order of their first message
	repeats  bool              // something is waited for
	repeatAt automaton.Instant // when to say it again
	armed    automaton.Instant
	ask      bool // whether it leads still
}

// desk is a leader's place at its replica; [replicagroup.Desk] is one.
type desk interface {
	Group() order.GroupID
	Term() uint64
	Now() automaton.Instant
	Machine() session.Machine
	Send(to keyspace.NodeID, msg []byte)
	Dismiss(to keyspace.NodeID)
	Arm(at automaton.Instant)
	Confirm()
	Propose(n uint64, commands ...[]byte) bool
}

// attempt is the last proposal for an object.
type attempt struct {
	number uint64
	cmd    store.Command
}

// New makes a leader (rules D1, D9: the register is told no earlier, and learns with its first anchor).
func (s *Service) New(d *replicagroup.Desk, elected, confirmed automaton.Instant) replicagroup.Leader {
	return s.lead(d, elected, confirmed)
}

func (s *Service) lead(d desk, elected, confirmed automaton.Instant) *leader {
	l := &leader{
		service: s, desk: d, group: d.Group(), reg: register.New(s.params, d.Machine().(*Machine).store), armed: automaton.Never,
		attempts: make(map[string]attempt), objects: make(map[uint64]string), out: make(map[keyspace.NodeID]*pb.Packet),
	}
	s.stats.tenures.Add(1)
	l.step(register.Event{Kind: register.Lead, At: elected, Tenure: durable.Tenure{Gen: l.group.Gen, Term: d.Term()}})
	l.step(register.Event{Kind: register.Confirmed, At: confirmed})
	l.rest() // the desk does not know it yet, and nobody has asked for anything
	return l
}

// step has the register take an event, and carries out what it asks for.
func (l *leader) step(ev register.Event) {
	ev.Now = l.desk.Now()
	l.actions = l.reg.Step(ev, l.actions[:0])
	for i := range l.actions {
		switch a := &l.actions[i]; a.Kind {
		case register.Send:
			l.send(&a.Msg)
		case register.Propose:
			l.propose(a.Cmd)
		case register.Confirm:
			l.ask = true
		}
	}
	clear(l.actions)
}

// end asks for what the register wants confirmed, sends what has gathered, and sets the timer. Every call of a leader's method ends with it.
func (l *leader) end() {
	if l.ask {
		l.ask = false
		l.service.stats.confirms.Add(1)
		l.desk.Confirm() // where nobody else votes the answer comes before this returns
	}
	l.rest()
}

func (l *leader) rest() {
	for len(l.failed) > 0 {
		cmd := l.failed[0]
		l.failed = l.failed[1:]
		l.step(register.Event{Kind: register.Failed, Cmd: &cmd})
	}
	l.flush()
	at := l.reg.Next()
	if at != automaton.Never {
		at = max(at, l.desk.Now().Add(tickPause))
	}
	switch repeats := l.reg.Repeats(); {
	case !repeats: // it sleeps until a lease or a TTL is over
		l.repeats = false
	case !l.repeats:
		l.repeats, l.repeatAt = true, l.desk.Now().Add(repeatEvery)
		fallthrough
	default:
		at = min(at, l.repeatAt)
	}
	if at != l.armed {
		l.armed = at
		l.desk.Arm(at)
	}
}

func (l *leader) propose(cmd store.Command) {
	l.number++
	entries, err := entriesOf(proposal{l.desk.Term(), l.number}, &cmd)
	if err != nil {
		log.Errorw("a command is not proposed", "group", l.group, "object", cmd.Object, "err", err)
		return
	}
	if cmd.Object != "" { // of a mark nobody waits for what becomes
		if old, ok := l.attempts[cmd.Object]; ok {
			delete(l.objects, old.number)
		}
		l.attempts[cmd.Object] = attempt{l.number, cmd}
		l.objects[l.number] = cmd.Object
	}
	if !l.desk.Propose(l.number, entries...) {
		l.fail(l.number)
		return
	}
	l.service.stats.proposed.Add(1)
	l.service.stats.pieces.Add(uint64(len(entries)))
}

// fail notes that a proposal may have come to nothing.
func (l *leader) fail(number uint64) {
	if name, ok := l.objects[number]; ok {
		l.failed = append(l.failed, l.attempts[name].cmd)
		delete(l.attempts, name)
		delete(l.objects, number)
	}
}

func (l *leader) send(m *durable.Message) {
	l.service.stats.sent.Add(1)
	p := l.out[m.Node]
	if p == nil {
		p = &pb.Packet{Prefix: l.group.Prefix, Gen: l.group.Gen}
		l.out[m.Node] = p
	}
	if len(p.Messages) == 0 {
		l.order = append(l.order, m.Node)
	}
	p.Messages = append(p.Messages, *m)
}

// weight is above what a message takes in a frame.
func weight(m *durable.Message) int {
	const fixed = 160
	n := fixed + len(m.Object)
	if m.Value != nil {
		n += len(m.Value.Bytes)
	}
	return n
}

// flush sends what has gathered, in as many frames as it takes.
func (l *leader) flush() {
	for _, n := range l.order {
		for rest := l.out[n].Messages; len(rest) > 0; {
			k, bytes := 1, weight(&rest[0])
			for k < len(rest) && k < pb.FrameMessagesMax && bytes+weight(&rest[k]) <= pb.FrameBytesSoft {
				bytes += weight(&rest[k])
				k++
			}
			frame, err := pb.EncodePacket(nil, &pb.Packet{Prefix: l.group.Prefix, Gen: l.group.Gen, Messages: rest[:k]})
			rest = rest[k:]
			if err != nil {
				log.Errorw("messages are not sent", "group", l.group, "node", n, "err", err)
				continue
			}
			l.service.stats.frames.Add(1)
			l.desk.Send(n, frame)
		}
		delete(l.out, n)
	}
	l.order = l.order[:0]
}

// Executed tells the register of a command that the store has executed.
func (l *leader) Executed(posted any) {
	e, ok := posted.(executed)
	if !ok {
		return
	}
	if a, ok := l.attempts[e.cmd.Object]; ok && a.cmd.By == e.cmd.By && a.cmd.Seq == e.cmd.Seq && a.cmd.Wanted == e.cmd.Wanted {
		delete(l.attempts, e.cmd.Object)
		delete(l.objects, a.number)
	}
	l.step(register.Event{Kind: register.Committed, Cmd: &e.cmd, Result: e.result})
	l.end()
}

// Failed tells the register that a command may have to be proposed again.
func (l *leader) Failed(number uint64) {
	l.fail(number)
	l.end()
}

// Confirmed tells it of a new anchor.
func (l *leader) Confirmed(at automaton.Instant) {
	l.step(register.Event{Kind: register.Confirmed, At: at})
	l.end()
}

// Unconfirmed tells it that there is none yet.
func (l *leader) Unconfirmed() {
	l.step(register.Event{Kind: register.Unconfirmed})
	l.end()
}

// Receive hands it a node's messages.
func (l *leader) Receive(_ keyspace.NodeID, msg any) {
	messages, _ := msg.([]durable.Message)
	for i := range messages {
		l.service.stats.taken.Add(1)
		l.step(register.Event{Kind: register.Receive, Msg: &messages[i]})
	}
	l.end()
}

// Expire tells it that time has passed.
func (l *leader) Expire() {
	l.armed = automaton.Never
	kind := register.Tick
	if l.repeats && l.desk.Now() >= l.repeatAt {
		kind, l.repeatAt = register.Repeat, l.desk.Now().Add(repeatEvery)
	}
	l.step(register.Event{Kind: kind})
	l.end()
}

// Idle reports whether nobody has copies, nothing is to be deleted in time, and the log says that everything is settled.
func (l *leader) Idle() bool { return !l.reg.Waits() && len(l.attempts) == 0 }

// End tells the nodes that have copies.
func (l *leader) End() {
	for _, n := range l.reg.Sessions() {
		l.desk.Dismiss(n)
	}
	l.reg.Step(register.Event{Kind: register.Follow, Now: l.desk.Now()}, nil)
}
