package durabletest

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"latchkey/coherence/durable"
	"latchkey/coherence/durable/cachedobject"
	"latchkey/coherence/durable/register"
	"latchkey/coherence/durable/store"
	"latchkey/dht/keyspace"
	"latchkey/internal/driver"
)

// Leader is a group of one prefix in this process: the store and the register, without a log that could fail. Whatever it is told and says may be lost, and
// takes up to a millisecond. It is meant for virtual time. Safe for concurrent use.
type Leader struct {
	params durable.Params
	clock  *driver.Clock
	fail   func(error)

	mu     sync.Mutex
	term   uint64
	dead   bool
	store  *store.Store
	reg    *register.Register
	index  uint64
	nodes  map[keyspace.NodeID]func(keyspace.Prefix, []durable.Message)
	cut    map[keyspace.NodeID]bool
	loss   float64
	rand   *rand.Rand
	sent   map[durable.Kind]int
	all    int
	sought int
}

// NewLeader begins to lead, until ctx ends. fail is told of what contradicts itself.
func NewLeader(ctx context.Context, p durable.Params, fail func(error)) *Leader {
	l := &Leader{
		params: p, clock: driver.NewClock(), fail: fail, store: store.New(store.Config{}), nodes: map[keyspace.NodeID]func(keyspace.Prefix, []durable.Message){},
		cut: map[keyspace.NodeID]bool{}, rand: rand.New(rand.NewPCG(1, 2)), sent: map[durable.Kind]int{},
	}
	l.Elect()
	go l.run(ctx)
	return l
}

// Link returns the way of a node to the leader, who tells it what it says by receive.
func (l *Leader) Link(node keyspace.NodeID, receive func(keyspace.Prefix, []durable.Message)) Link {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nodes[node] = receive
	return Link{l, node}
}

// Elect has another term begin, with what the log has.
func (l *Leader) Elect() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.term++
	l.index++
	l.dead = false
	l.store.Apply(l.index, time.Duration(l.clock.Now()), store.Command{})
	l.reg = register.New(l.params, l.store)
	l.step(register.Event{Kind: register.Lead, Tenure: durable.Tenure{Term: l.term}, At: l.clock.Now()})
}

// Kill has nobody lead, until the next election.
func (l *Leader) Kill() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dead = true
}

// Cut cuts a node off, or no more.
func (l *Leader) Cut(n keyspace.NodeID, cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut[n] = cut
}

// Lose has this share of all messages lost.
func (l *Leader) Lose(share float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.loss = share
}

// Sent returns how many messages of a kind were sent and not lost.
func (l *Leader) Sent(k durable.Kind) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sent[k]
}

// Sought returns how often all voters were asked, and how often the leader was looked for.
func (l *Leader) Sought() (all, sought int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all, l.sought
}

func (l *Leader) run(ctx context.Context) {
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-time.After(50 * time.Millisecond):
		}
		k := register.Tick
		if i%5 == 0 {
			k = register.Repeat
		}
		l.mu.Lock()
		l.step(register.Event{Kind: k})
		l.mu.Unlock()
	}
}

// step is called with the mutex held.
func (l *Leader) step(ev register.Event) {
	if l.dead {
		return
	}
	events := []register.Event{ev}
	for len(events) > 0 {
		ev := events[0]
		events = events[1:]
		ev.Now = l.clock.Now()
		for _, a := range l.reg.Step(ev, nil) {
			switch a.Kind {
			case register.Send:
				l.post(a.Msg)
			case register.Propose:
				l.index++
				res := l.store.Apply(l.index, time.Duration(l.clock.Now()), a.Cmd)
				events = append(events, register.Event{Kind: register.Committed, Cmd: &a.Cmd, Result: res})
			case register.Confirm:
				events = append(events, register.Event{Kind: register.Confirmed, At: l.clock.Now()})
			}
		}
		if err := l.reg.Check(); err != nil {
			l.fail(err)
		}
	}
}

// travels has f called after a while, with the mutex held, unless it is lost.
func (l *Leader) travels(n keyspace.NodeID, k durable.Kind, f func()) {
	if l.cut[n] || l.rand.Float64() < l.loss {
		return
	}
	l.sent[k]++
	delay := time.Duration(l.rand.IntN(int(time.Millisecond)))
	go func() {
		time.Sleep(delay)
		f()
	}()
}

func (l *Leader) post(m durable.Message) {
	receive := l.nodes[m.Node]
	l.travels(m.Node, m.Kind, func() {
		if receive != nil {
			receive(keyspace.Prefix{}, []durable.Message{m})
		}
	})
}

// Link is a node's way to a leader.
type Link struct {
	leader *Leader
	node   keyspace.NodeID
}

// Whither names the leader.
func (k Link) Whither(_ keyspace.Prefix, all bool) cachedobject.Whither {
	if all {
		return cachedobject.Whither{Reach: cachedobject.Several}
	}
	return cachedobject.Whither{}
}

// Send tells the leader.
func (k Link) Send(_ keyspace.Prefix, to cachedobject.Whither, msgs []durable.Message) {
	l := k.leader
	l.mu.Lock()
	defer l.mu.Unlock()
	if to.Reach == cachedobject.Several {
		l.all++
	}
	for _, m := range msgs {
		m.Node = k.node
		l.travels(k.node, m.Kind, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.step(register.Event{Kind: register.Receive, Msg: &m})
		})
	}
}

// Seek counts.
func (k Link) Seek(keyspace.Prefix) {
	k.leader.mu.Lock()
	defer k.leader.mu.Unlock()
	k.leader.sought++
}
