package replicagroup

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/driver"
	"latchkey/replicagroup/order"
)

func TestAPeersMessagesToVotersAreBounded(t *testing.T) {
	var l voterLoads
	for i := range voterMessagesMax {
		if !l.take("a", 1) {
			t.Fatalf("message %d was refused", i)
		}
	}
	if l.take("a", 1) {
		t.Error("one too many was taken")
	}
	if !l.take("b", voterBytesMax+1) {
		t.Error("one alone may have any size, and the other peer's do not count")
	}
	if l.take("b", 1) {
		t.Error("bytes over the limit were taken")
	}
	l.release("b", voterBytesMax+1)
	if !l.take("b", voterBytesMax) || l.take("b", 1) {
		t.Error("what was released is free again, and no more")
	}
	l.release("b", voterBytesMax)
	for range voterMessagesMax {
		l.release("a", 1)
	}
	if len(l.peers) > 0 {
		t.Errorf("still counted: %v", l.peers)
	}
}

// noting is a voter that notes what it hears.
type noting struct {
	seat  *Seat
	heard []string
	idle  bool
}

func (v *noting) note(s string)                    { v.heard = append(v.heard, s) }
func (v *noting) Follow()                          { v.note("follow") }
func (v *noting) Foresee()                         { v.note("foresee") }
func (v *noting) CaughtUp()                        { v.note("caught up") }
func (v *noting) Receive(keyspace.NodeID, any)     { v.note("receive") }
func (v *noting) Expire()                          { v.note("expire") }
func (v *noting) Lost(n keyspace.NodeID)           { v.note("lost") }
func (v *noting) Ready() bool                      { return true }
func (v *noting) Idle() bool                       { return v.idle }
func (v *noting) Vet(keyspace.NodeID, []byte) bool { return true }

// votingService makes them.
type votingService struct{ made chan *noting }

func (votingService) Service() string { return "count" }
func (votingService) Overlay() string { return "voting" }
func (votingService) Read(keyspace.NodeID, []byte) (order.GroupID, any, bool, error) {
	return order.GroupID{}, nil, false, errMalformed
}
func (votingService) Free(any) {}
func (s votingService) New(seat *Seat) Voter {
	v := &noting{seat: seat}
	s.made <- v
	return v
}
func (votingService) Absent(keyspace.NodeID, order.GroupID, any, func(keyspace.NodeID, []byte)) {}

func TestAVoterForeseesWhatStandsInTheLogUntilItIsExecutedOrVoid(t *testing.T) {
	v := new(noting)
	s := &Seat{r: &replica{shard: &shard{now: 7}, applied: 3}, service: "count", voter: v}
	own := &order.Command{Service: "count", Data: []byte("x")}
	other := &order.Command{Service: "other", Data: []byte("x")}
	s.foresee([]order.Prospect{{Index: 3, Cmd: own}, {Index: 4, Cmd: other}}) // executed already; of another service
	if len(v.heard) > 0 || len(s.Prospects()) > 0 {
		t.Fatalf("heard %q of %v", v.heard, s.Prospects())
	}
	s.foresee([]order.Prospect{{Index: 5}, {Index: 6, Cmd: own}})
	s.r.shard.now = 8
	s.foresee([]order.Prospect{{Index: 6, Void: true}, {Index: 6}})
	if p := s.Prospects(); len(p) != 2 || p[0].Since != automaton.Instant(7) || p[1].Since != automaton.Instant(8) || p[1].Cmd != nil {
		t.Fatalf("they stand as %+v", p)
	}
	s.foresee([]order.Prospect{{Index: 9, Void: true}}) // of nothing
	s.r.applied = 5
	s.follow()
	if p := s.Prospects(); len(p) != 1 || p[0].Index != 6 {
		t.Fatalf("they stand as %+v", p)
	}
	s.r.applied = 6
	s.asking, s.catchUp = true, 6
	s.follow()
	if s.Prospects() != nil || s.asking {
		t.Errorf("%v, asks still: %v", s.Prospects(), s.asking)
	}
	want := []string{"foresee", "foresee", "follow", "follow", "caught up"}
	if len(v.heard) != len(want) || v.heard[4] != want[4] {
		t.Errorf("heard %q, want %q", v.heard, want)
	}
}

func TestOwnProposalsAreBounded(t *testing.T) {
	_, r, e, _ := newAsked(t)
	r.seat = &Seat{r: r, service: "count", voter: new(noting)}
	for range ownProposalsMax + 1 {
		r.seat.propose(keyspace.NodeID{1}, []byte("x"))
	}
	if len(e.cmds) != ownProposalsMax || e.cmds[0].Author != (keyspace.NodeID{1}) || e.cmds[0].Client != (order.ClientID{}) {
		t.Fatalf("%d proposed, at most %d", len(e.cmds), ownProposalsMax)
	}
	e.next = r.applied
	e.order(r, 2)
	for range 3 {
		r.seat.propose(keyspace.NodeID{1}, []byte("x"))
	}
	if len(e.cmds) != ownProposalsMax || r.seat.own != ownProposalsMax {
		t.Errorf("%d under way after two were executed", len(e.cmds))
	}
}

// arming is a voter that wants to be woken, and proposes, at each message.
type arming struct{ noting }

func (v *arming) Receive(keyspace.NodeID, any) {
	v.note("receive")
	v.seat.Arm(v.seat.Now().Add(time.Millisecond))
	v.seat.propose(keyspace.NodeID{1}, []byte("x"))
}

// A message finds the shard in a turn, busy, and at rest. What it brings about beside answers is for the next turn.
func TestAMessageToAVoterIsHandledAtOnceWhereTheShardRests(t *testing.T) {
	s, r, _, _ := newAsked(t)
	v := new(arming)
	r.seat = &Seat{r: r, service: "count", voter: v}
	v.seat = r.seat
	s.host.shards = []*shard{s}
	box := driver.NewMailbox[shardEvent](8)
	s.box = box
	message := func() *voterEvent { return &voterEvent{peer: "p", group: r.group} }
	s.host.admit(message())
	if len(v.heard) > 0 || box.Empty() {
		t.Fatal("handled while a turn was under way")
	}
	s.turns.Unlock()
	s.host.admit(message())
	if waiting, _ := box.Take(nil); len(v.heard) > 0 || len(waiting) != 2 {
		t.Fatalf("it overtook: heard %q, %d wait", v.heard, len(waiting))
	}
	<-box.Wake()
	s.host.admit(message())
	if len(v.heard) != 1 || !box.Empty() {
		t.Fatalf("heard %q of one", v.heard)
	}
	select {
	case <-box.Wake():
	default:
		t.Error("nobody sees to the timer and the proposal")
	}
	s.turns.Lock() // the shard has ended
	s.host.admit(message())
	if len(v.heard) != 1 {
		t.Error("handled after the end")
	}
}

func TestMessagesThatWaitForALeaseAreBounded(t *testing.T) {
	s, r, _, _ := newAsked(t)
	v := new(noting)
	r.seat = &Seat{r: r, service: "count", voter: v, lease: new(voterLease)}
	r.leading, r.lease = false, new(leaseCell)
	r.seat.lease.asked = s.now // the leader's answer is on its way
	for range voterWaitingMax {
		r.seat.receive(new(voterEvent))
	}
	dropped := &s.host.counters.voterDropped
	if len(v.heard) > 0 || dropped.Load() > 0 {
		t.Fatalf("%d heard without a lease, %d dropped", len(v.heard), dropped.Load())
	}
	r.seat.receive(new(voterEvent))
	if dropped.Load() != 1 {
		t.Errorf("%d dropped of one too many", dropped.Load())
	}
	voterLeaseEvent{group: r.group}.handle(s) // there is none
	if len(v.heard) > 0 || len(r.seat.lease.waiting) != voterWaitingMax || dropped.Load() != 1 {
		t.Errorf("without a lease %d are heard, %d wait, %d are dropped", len(v.heard), len(r.seat.lease.waiting), dropped.Load())
	}
	voterLeaseEvent{r.group, s.host.clock.Now().Add(time.Hour), s.host.clock.Jumps()}.handle(s)
	if len(v.heard) != voterWaitingMax || len(r.seat.lease.waiting) > 0 {
		t.Errorf("with a lease %d are heard, %d wait", len(v.heard), len(r.seat.lease.waiting))
	}
	r.seat.receive(new(voterEvent))
	if len(v.heard) != voterWaitingMax+1 || dropped.Load() != 1 {
		t.Errorf("%d are heard, %d dropped", len(v.heard), dropped.Load())
	}
}

// FuzzOwnFrame: what is read is what was written.
func FuzzOwnFrame(f *testing.F) {
	g := order.GroupID{Prefix: keyspace.Prefix{Bits: keyspace.Key{0xa0}, Len: 3}, Gen: 5}
	f.Add(encodeProposal(g, []byte("x")))
	f.Add(appendGroup(nil, 1, g))
	f.Add([]byte{0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		g, data, err := decoder{}.ownFrame(b)
		if err != nil {
			if !errors.Is(err, errMalformed) || data != nil || g != (order.GroupID{}) {
				t.Fatal(err)
			}
			return
		}
		h, again, err := decoder{}.ownFrame(encodeProposal(g, data))
		if err != nil || h != g || !bytes.Equal(again, data) {
			t.Fatalf("%v %x: %v %x, %v", g, data, h, again, err)
		}
	})
}

// TestAVoterIsMadeWithItsReplicaAndFollowsItsLog runs voters on real hosts.
func TestAVoterIsMadeWithItsReplicaAndFollowsItsLog(t *testing.T) {
	t.Parallel()
	w := &world{fixed: true}
	made := make(chan *noting, 16)
	w.configure = func(c *Config) { c.Voters = votingService{made} }
	w.begin(t, 3, 1, 3)
	ctx := deadline(t, waitMax)
	key := keyspace.Preimage("k").Key()
	if _, err := w.peers[0].groups.NewClient().Do(ctx, key, "count", number(1)); err != nil {
		t.Fatal(err)
	}
	caught := make(chan struct{}, 3)
	for range 3 {
		v := <-made
		h := w.peers[0].groups
		for _, p := range w.peers {
			if p.overlay.Node() == v.seat.Self() {
				h = p.groups
			}
		}
		h.shardOf(v.seat.Group()).box.Put(onShard(func() {
			if v.seat.Restarted() || v.seat.Start() != 1 || v.seat.Machine() == nil || v.seat.Now() == 0 {
				t.Errorf("a seat of a first start: %+v", v.seat)
			}
			v.seat.CatchUp()
			v.seat.CatchUp()
			v.seat.Arm(v.seat.Now().Add(time.Millisecond))
		}))
		go func() {
			for {
				done := make(chan bool, 1)
				h.shardOf(v.seat.Group()).box.Put(onShard(func() {
					n := 0
					for _, s := range v.heard {
						if s == "caught up" || s == "expire" {
							n++
						}
					}
					done <- n == 2
				}))
				select {
				case ok := <-done:
					if ok {
						caught <- struct{}{}
						return
					}
				case <-ctx.Done():
					return
				}
				if pause(ctx, 5*time.Millisecond) != nil {
					return
				}
			}
		}()
	}
	for range 3 {
		select {
		case <-caught:
		case <-ctx.Done():
			t.Fatal("a voter has not caught up, or its time has not come")
		}
	}
	if _, err := w.peers[0].overlay.Call(ctx, peer.ID(w.peers[1].host.ID()), keyspace.Key{}, "voting", []byte("x")); err == nil {
		t.Error("a message to a voter was answered")
	}
}

// onShard runs a function on a shard's goroutine.
type onShard func()

func (f onShard) handle(*shard) { f() }
