package durabletest

import (
	"fmt"
	"testing"

	"latchkey/coherence/durable"
	"latchkey/coherence/durable/cachedobject"
)

// story is a world in which a test says what happens, in words of moves. Nodes and terms are counted from 1, and objects are x and y.
type story struct {
	w      *world
	missed error // the first thing that is not as the story says. With a mistake it goes on, until an invariant breaks
}

func (s *story) ok() bool { return s.w.broken == nil }

func (s *story) do(m move) {
	if s.ok() {
		s.w = s.w.apply(m)
	}
}

func object(name string) int { return int(name[0] - 'x') }

func (s *story) read(n int, o string)  { s.do(move{kind: read, node: n - 1, object: object(o)}) }
func (s *story) write(n int, o string) { s.do(move{kind: write, node: n - 1, object: object(o)}) }
func (s *story) lock(n int, o string)  { s.do(move{kind: lock, node: n - 1, object: object(o)}) }
func (s *story) evict(n int, o string) { s.do(move{kind: evict, node: n - 1, object: object(o)}) }
func (s *story) renew(n int)           { s.do(move{kind: extend, node: n - 1}) }
func (s *story) crash(n int)           { s.do(move{kind: crash, node: n - 1}) }
func (s *story) repeat(n int)          { s.do(move{kind: repeatNode, node: n - 1}) }
func (s *story) remind(t int)          { s.do(move{kind: repeatLeader, leader: t - 1}) }

func (s *story) commit() {
	if len(s.w.leaders[s.w.latest()].proposed) == 0 {
		s.want(false, "nothing is proposed")
		return
	}
	s.do(move{kind: commit})
}

func (s *story) learn(t int) {
	if s.w.leaders[t-1].applied == len(s.w.log) {
		s.want(false, "t%d knows the log", t)
		return
	}
	s.do(move{kind: learn, leader: t - 1})
}

func (s *story) elect() { s.do(move{kind: elect}) }

func (s *story) ticks(n int) {
	for range n {
		s.do(move{kind: tick})
	}
}

// giveUp has node n give up its last call.
func (s *story) giveUp(n int) {
	s.do(move{kind: giveUp, node: n - 1, object: int(s.w.nodes[n-1].lastID)})
}

// find returns the oldest message of a kind that is of node n, and about an object if one is named; -1 if there is none.
func (s *story) find(k durable.Kind, n int, o ...string) int {
	for i, p := range s.w.net {
		if p.msg.Kind == k && p.msg.Node == nodeID(n-1) && (len(o) == 0 || p.msg.Object == o[0]) {
			return i
		}
	}
	return -1
}

func (s *story) post(kind moveKind, k durable.Kind, n, t int, o ...string) {
	if !s.ok() {
		return
	}
	i := s.find(k, n, o...)
	if i < 0 {
		s.want(false, "no %v of n%d travels", k, n)
		return
	}
	s.do(move{kind: kind, post: i, leader: t - 1})
}

// deliver delivers the oldest message of a kind from or to node n, in the first case to term t.
func (s *story) deliver(k durable.Kind, n, t int, o ...string) { s.post(deliver, k, n, t, o...) }

// maybe delivers it if there is one: a mistake may have sent it.
func (s *story) maybe(k durable.Kind, n, t int) {
	if s.find(k, n) >= 0 {
		s.deliver(k, n, t)
	}
}

// copy delivers it, and it may come again.
func (s *story) copy(k durable.Kind, n, t int) { s.post(duplicate, k, n, t) }

// lose loses it.
func (s *story) lose(k durable.Kind, n int) { s.post(lose, k, n, 1) }

// fetch has node n read an object from term t, and use what it is told.
func (s *story) fetch(n int, o string, t int) {
	s.read(n, o)
	s.deliver(durable.Read, n, t, o)
	s.deliver(durable.Copy, n, t, o)
}

// begin has node n write an object at term t, up to where the write is in the log and the leader knows.
func (s *story) begin(n int, o string, t int) {
	s.write(n, o)
	s.deliver(durable.Store, n, t)
	s.commit()
	s.learn(t)
}

// put is begin, up to where the node knows.
func (s *story) put(n int, o string, t int) {
	s.begin(n, o, t)
	s.deliver(durable.Stored, n, t)
}

// revoke has node n drop the copy that a write waits for.
func (s *story) revoke(n, t int) {
	s.deliver(durable.Invalidate, n, t)
	s.deliver(durable.InvalidateAck, n, t)
}

func (s *story) want(ok bool, format string, args ...any) {
	switch {
	case ok || !s.ok():
	case s.w.mutant == durable.NoMutant:
		s.w.fail("story: "+format, args...)
	case s.missed == nil:
		s.missed = fmt.Errorf("story: "+format, args...)
	}
}

// has is the version that node n may read at once, -1 if it may not.
func (s *story) has(n int, o string) int {
	p := s.w.nodes[n-1]
	if c := p.core.Readable(o, p.now); c != nil {
		return int(c.Version)
	}
	return -1
}

func (s *story) idle(n int, o string) bool {
	return s.w.nodes[n-1].core.State(o) == cachedobject.Idle
}

// told is a story, and the mistakes that spoil its end.
type told struct {
	name    string
	mutants []durable.Mutant
	tell    func(s *story)
}

func tell(m durable.Mutant, f func(*story)) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	// Nodes are slow and leaders fast. A lease of 12 lasts two ticks and a bit at a node: it ends in the third, and a fast clock waits 15 for it,
	// which is in the third too. One that waits 12 stops at the second.
	s := &story{w: newWorld(&setup{
		nodes: 3, objects: 2, terms: 9, lease: 12, reads: 100, writes: 100, locks: 100, mutant: m, bound: true,
		budget: budget{100, 100, 100, 100, 100, 100},
	})}
	if f(s); s.w.broken == nil {
		return s.missed
	}
	return s.w.broken
}

// check tells stories as they should end, and with each mistake, which has to spoil them.
func check(t *testing.T, stories []told) {
	t.Helper()
	for _, s := range stories {
		if err := tell(durable.NoMutant, s.tell); err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
		for _, m := range s.mutants {
			if err := tell(m, s.tell); err == nil {
				t.Errorf("%s: the mistake %v does not show", s.name, m)
			} else {
				t.Logf("%v: %v", m, err)
			}
		}
	}
}

// unsettled writes x, of which n1 has the version before.
func unsettled(s *story) {
	s.fetch(1, "x", 1)
	s.write(2, "x")
	s.deliver(durable.Store, 2, 1)
	s.commit()
}

// The tests of durable-objects.md section 14 that are about the automata, by their numbers.

var storiesFillRace = []told{
	{"the copy comes after the invalidation", []durable.Mutant{durable.NoFloor}, func(s *story) {
		s.read(1, "x")
		s.deliver(durable.Read, 1, 1)
		s.begin(2, "x", 1)
		s.revoke(1, 1)
		s.deliver(durable.Stored, 2, 1)
		s.deliver(durable.Copy, 1, 1) // whoever waited gets it: the read had begun before
		s.want(s.idle(1, "x") && s.has(1, "x") < 0, "the answer is used once, and not cached")
	}},
}

func TestFillRace(t *testing.T) { check(t, storiesFillRace) } // 1

var storiesACopyLivesOnItsOwnLease = []told{
	{"a copy comes after its session was over, and another object keeps the session's number alive", []durable.Mutant{durable.SessionLease}, func(s *story) {
		s.read(1, "x")
		s.deliver(durable.Read, 1, 1)
		s.ticks(3) // the leader forgets the session; the node has never held a lease, so it has lapsed for nobody
		s.fetch(1, "y", 1)
		s.put(2, "x", 1)
		s.deliver(durable.Copy, 1, 1)
		s.want(s.has(1, "x") < 0 && s.has(1, "y") == 0, "x is not cached, and y is")
	}},
}

func TestACopyLivesOnItsOwnLease(t *testing.T) { check(t, storiesACopyLivesOnItsOwnLease) } // 2

var storiesASessionThatLapsedIsNeverUsedAgain = []told{
	{"another object's copy revives nothing", []durable.Mutant{durable.NoNewSession}, func(s *story) {
		s.fetch(1, "x", 1)
		s.ticks(3)
		s.put(2, "x", 1)
		s.fetch(1, "y", 1)
		s.want(s.has(1, "x") < 0 && s.has(1, "y") == 0, "x has lapsed, and y is cached")
	}},
	{"a late READ opens the old session again", nil, func(s *story) {
		s.fetch(1, "y", 1)
		s.evict(1, "y")
		s.read(1, "y")
		s.deliver(durable.Read, 1, 1)
		s.ticks(3)
		s.repeat(1) // which notices that the session is over
		s.deliver(durable.Copy, 1, 1)
		s.want(s.has(1, "y") < 0, "a copy of the old session is not cached")
	}},
	{"a late READ of the old session does not end the new one", []durable.Mutant{durable.OldSession}, func(s *story) {
		s.read(1, "y")
		s.copy(durable.Read, 1, 1)
		s.deliver(durable.Copy, 1, 1)
		s.ticks(3)
		s.read(1, "x")
		s.deliver(durable.Read, 1, 1, "x") // the new READ first
		s.deliver(durable.Copy, 1, 1)
		s.deliver(durable.Read, 1, 1)
		s.begin(2, "x", 1)
		s.want(s.find(durable.Stored, 2) < 0, "the write waits for the copy")
		s.revoke(1, 1)
		s.deliver(durable.Stored, 2, 1)
	}},
}

func TestASessionThatLapsedIsNeverUsedAgain(t *testing.T) {
	check(t, storiesASessionThatLapsedIsNeverUsedAgain)
} // 3

var storiesADeposedLeadersReadersStopInTime = []told{
	{"it has granted just before it was deposed", []durable.Mutant{durable.NoWait, durable.WaitWithoutDrift}, func(s *story) {
		s.fetch(1, "x", 1)
		s.elect()
		s.begin(2, "x", 2)
		s.ticks(2)
		s.want(s.has(1, "x") == 0, "the reader reads on, as nothing has been acknowledged")
		s.maybe(durable.Stored, 2, 2)
		s.ticks(1)
		s.deliver(durable.Stored, 2, 2)
		s.want(s.has(1, "x") < 0, "the lease is over")
	}},
	{"it grants after it was deposed", []durable.Mutant{durable.GrantWithoutAnchor, durable.LeaseFromReply}, func(s *story) {
		s.elect()
		s.ticks(1)
		s.read(1, "x")
		s.ticks(1)
		s.deliver(durable.Read, 1, 1) // it is at 12 of 9, and does not serve
		s.want(s.find(durable.Copy, 1) < 0 || s.w.mutant != durable.NoMutant, "nothing is granted")
		s.begin(2, "x", 2)
		s.ticks(1)
		s.maybe(durable.Copy, 1, 1)
		s.deliver(durable.Stored, 2, 2)
		if s.w.mutant == durable.LeaseFromReply { // another way to the same
			s.fetch(3, "y", 2)
			s.read(1, "y")
			s.deliver(durable.Read, 1, 2)
			s.ticks(2)
			s.deliver(durable.Copy, 1, 2)
			s.ticks(1)
			s.begin(2, "y", 2)
			s.deliver(durable.Stored, 2, 2)
		}
	}},
	{"the same leader waits for a reader that is cut off", []durable.Mutant{durable.ArbiterWithoutDrift, durable.ReaderUnregistered, durable.AckBeforeInvalidated}, func(s *story) {
		s.fetch(1, "x", 1)
		s.begin(2, "x", 1)
		s.ticks(2)
		s.want(s.has(1, "x") == 0 && s.find(durable.Stored, 2) < 0, "the reader may read, and the writer waits")
		s.maybe(durable.Stored, 2, 1)
		s.ticks(1)
		s.deliver(durable.Stored, 2, 1)
	}},
	{"copies do not outlive the tenure that granted them", []durable.Mutant{durable.KeepOverTenure}, func(s *story) {
		s.fetch(1, "x", 1)
		s.elect()
		s.ticks(2)
		s.fetch(1, "y", 2)
		s.want(s.has(1, "x") < 0 && s.has(1, "y") == 0, "x was of the former tenure")
		s.ticks(1)
		s.put(2, "x", 2)
	}},
	{"a new leader renews no lease that it does not know", []durable.Mutant{durable.RenewUnknown}, func(s *story) {
		s.fetch(1, "x", 1)
		s.elect()
		s.ticks(2)
		s.renew(1)
		s.deliver(durable.Renew, 1, 2)
		s.maybe(durable.Lease, 1, 2)
		s.ticks(1)
		s.put(2, "x", 2)
	}},
}

func TestADeposedLeadersReadersStopInTime(t *testing.T) {
	check(t, storiesADeposedLeadersReadersStopInTime)
} // 4

var storiesANewLeaderShowsWhatIsSettled = []told{
	{"settled objects are shown at once, and writes of them are acknowledged after the wait", nil, func(s *story) {
		s.put(1, "x", 1)
		s.remind(1)
		s.remind(1) // nothing has happened since: it leaves a mark
		s.commit()
		s.learn(1)
		s.begin(2, "y", 1)
		s.deliver(durable.Stored, 2, 1) // of which no mark tells
		s.elect()
		s.fetch(3, "x", 2)
		s.want(s.has(3, "x") == 1, "a settled object is read and cached")
		s.read(3, "y")
		s.deliver(durable.Read, 3, 2)
		s.want(s.find(durable.Copy, 3) < 0, "one of which the log does not say that it is settled is not")
		s.begin(1, "x", 2)
		s.want(len(s.w.log) == 6 && s.find(durable.Stored, 1) < 0, "a write is committed, and not acknowledged")
		s.revoke(3, 2)
		s.ticks(3)
		s.deliver(durable.Stored, 1, 2)
		s.deliver(durable.Copy, 3, 2)
	}},
	{"what may be unsettled is not shown", []durable.Mutant{durable.ShowUnsettled}, func(s *story) {
		unsettled(s)
		s.elect()
		s.read(3, "x")
		s.deliver(durable.Read, 3, 2)
		s.maybe(durable.Copy, 3, 2)
	}},
	{"not even for once", []durable.Mutant{durable.UncachedWhileWaiting}, func(s *story) {
		unsettled(s)
		s.elect()
		s.write(3, "x")
		s.deliver(durable.Store, 3, 2)
		s.read(2, "y") // anything: n2 waits for its write of x
		s.crash(2)
		s.read(2, "x")
		s.deliver(durable.Read, 2, 2) // the one of y, of the former life
		s.deliver(durable.Read, 2, 2)
		for s.ok() && s.find(durable.Copy, 2) >= 0 {
			s.deliver(durable.Copy, 2, 2)
		}
	}},
	{"a mark does not speak of writes that wait", []durable.Mutant{durable.MarkEarly}, func(s *story) {
		unsettled(s)
		s.learn(1)
		s.write(3, "y")
		s.deliver(durable.Store, 3, 1)
		s.commit() // with a mark
		s.elect()
		s.read(3, "x")
		s.deliver(durable.Read, 3, 2)
		s.maybe(durable.Copy, 3, 2)
	}},
}

func TestANewLeaderShowsWhatIsSettled(t *testing.T) { check(t, storiesANewLeaderShowsWhatIsSettled) } // 5

var storiesAWriteWhoseAnswerWasLostIsMadeOnce = []told{
	{"and answered after the wait", []durable.Mutant{durable.RepeatEarly, durable.NoDedup}, func(s *story) {
		s.fetch(1, "x", 1)
		s.write(2, "x")
		s.deliver(durable.Store, 2, 1)
		s.commit()
		s.elect()
		s.repeat(2)
		s.deliver(durable.Store, 2, 2)
		s.maybe(durable.Stored, 2, 2)
		if s.want(len(s.w.leaders[1].proposed) == 0, "it is not proposed again"); len(s.w.leaders[1].proposed) > 0 {
			s.commit()
		}
		s.ticks(3)
		s.deliver(durable.Stored, 2, 2)
		s.want(s.w.oracle.Lookup("x").Version == 1, "it is made once")
	}},
}

func TestAWriteWhoseAnswerWasLostIsMadeOnce(t *testing.T) {
	check(t, storiesAWriteWhoseAnswerWasLostIsMadeOnce)
} // 6

var storiesAReaderThatNeverAcknowledgesCostsOneLease = []told{
	{"it renews", []durable.Mutant{durable.RenewDuringInvalidation}, func(s *story) {
		s.fetch(1, "x", 1)
		s.begin(2, "x", 1)
		s.lose(durable.Invalidate, 1)
		s.ticks(1)
		s.renew(1)
		s.deliver(durable.Renew, 1, 1)
		s.deliver(durable.Lease, 1, 1)
		s.ticks(2)
		s.deliver(durable.Stored, 2, 1)
	}},
	{"it reads another object", []durable.Mutant{durable.CopyDuringInvalidation}, func(s *story) {
		s.fetch(1, "x", 1)
		s.begin(2, "x", 1)
		s.lose(durable.Invalidate, 1)
		s.ticks(1)
		s.fetch(1, "y", 1)
		s.want(s.has(1, "y") < 0, "for once")
		s.ticks(2)
		s.deliver(durable.Stored, 2, 1)
	}},
	{"others read the old value meanwhile", []durable.Mutant{durable.UncachedNew, durable.ShowEarly}, func(s *story) {
		s.fetch(1, "x", 1)
		s.begin(2, "x", 1)
		s.fetch(3, "x", 1)
		s.want(s.idle(3, "x") && s.has(3, "x") < 0 && s.has(1, "x") == 0, "the reader is answered, and caches nothing")
	}},
	{"what is acknowledged is gone", []durable.Mutant{durable.AckBeforeRevoke}, func(s *story) {
		s.fetch(1, "x", 1)
		s.begin(2, "x", 1)
		s.revoke(1, 1)
		s.deliver(durable.Stored, 2, 1)
	}},
	{"nothing is acknowledged that is not in the log", []durable.Mutant{durable.AckBeforeCommit}, func(s *story) {
		s.write(2, "x")
		s.deliver(durable.Store, 2, 1)
		s.want(s.find(durable.Stored, 2) < 0, "it is not in the log")
		s.maybe(durable.Stored, 2, 1)
	}},
	{"an acknowledgement counts for its write", []durable.Mutant{durable.AckAnyVersion}, func(s *story) {
		s.fetch(1, "x", 1)
		s.begin(2, "x", 1)
		s.deliver(durable.Invalidate, 1, 1)
		s.copy(durable.InvalidateAck, 1, 1) // it comes again
		s.deliver(durable.Stored, 2, 1)
		s.fetch(1, "x", 1)
		s.begin(3, "x", 1)
		s.want(s.find(durable.Invalidate, 2) >= 0, "the writer has a copy")
		s.revoke(2, 1)
		s.deliver(durable.InvalidateAck, 1, 1)
		s.want(s.find(durable.Stored, 3) < 0, "the write waits for n1")
		s.maybe(durable.Stored, 3, 1)
		s.revoke(1, 1)
		s.deliver(durable.Stored, 3, 1)
	}},
	{"a writer does not read its copy while it writes", []durable.Mutant{durable.ReadOwnMeanwhile}, func(s *story) {
		s.fetch(1, "x", 1)
		s.begin(1, "x", 1)
		s.fetch(2, "x", 1)
		s.want(s.has(1, "x") < 0, "it waits for its write")
	}},
}

func TestAReaderThatNeverAcknowledgesCostsOneLease(t *testing.T) {
	check(t, storiesAReaderThatNeverAcknowledgesCostsOneLease)
} // 9, and 7 as far as it is about automata

var storiesANoticeOfEvictionIsOfOneCopy = []told{
	{"it is overtaken by a new READ", []durable.Mutant{durable.DropWithoutSeq}, func(s *story) {
		s.fetch(1, "x", 1)
		s.evict(1, "x")
		s.renew(1)
		s.fetch(1, "x", 1)
		s.deliver(durable.Dropped, 1, 1)
		s.begin(2, "x", 1)
		s.want(s.find(durable.Stored, 2) < 0, "the write waits for the copy")
		s.revoke(1, 1)
		s.deliver(durable.Stored, 2, 1)
	}},
	{"a READ that comes twice registers what is not there, which costs an INVALIDATE", nil, func(s *story) {
		s.read(1, "x")
		s.copy(durable.Read, 1, 1)
		s.deliver(durable.Copy, 1, 1)
		s.evict(1, "x")
		s.renew(1)
		s.deliver(durable.Dropped, 1, 1)
		s.deliver(durable.Read, 1, 1)
		s.lose(durable.Copy, 1)
		s.begin(2, "x", 1)
		s.revoke(1, 1)
		s.deliver(durable.Stored, 2, 1)
	}},
}

func TestANoticeOfEvictionIsOfOneCopy(t *testing.T) { check(t, storiesANoticeOfEvictionIsOfOneCopy) } // 10

var storiesAWriterThatGaveUpAndReadIsInvalidated = []told{
	{"by its own write", []durable.Mutant{durable.WriterExempt}, func(s *story) {
		s.write(1, "x")
		s.giveUp(1)
		s.fetch(1, "x", 1)
		s.want(s.has(1, "x") == 0, "it reads what is there")
		s.deliver(durable.Store, 1, 1)
		s.commit()
		s.learn(1)
		s.read(2, "x")
		s.deliver(durable.Read, 2, 1)
		s.deliver(durable.Copy, 2, 1)
		s.revoke(1, 1)
		s.lose(durable.Stored, 1)
		s.fetch(2, "x", 1)
		s.want(s.has(2, "x") == 1, "the write is settled")
	}},
}

func TestAWriterThatGaveUpAndReadIsInvalidated(t *testing.T) {
	check(t, storiesAWriterThatGaveUpAndReadIsInvalidated)
} // 11

var storiesANodeThatStartsAgainFreesItsCopies = []told{
	{"with its first request", nil, func(s *story) {
		s.read(1, "x")
		s.copy(durable.Read, 1, 1) // of the former life, and late
		s.deliver(durable.Copy, 1, 1)
		s.crash(1)
		s.read(1, "y")
		s.deliver(durable.Read, 1, 1, "y")
		s.deliver(durable.Copy, 1, 1)
		s.put(2, "x", 1) // nobody is waited for
		s.deliver(durable.Read, 1, 1)
		s.want(s.find(durable.Copy, 1) < 0 && s.has(1, "y") == 0, "a late message of the former life changes nothing")
		s.begin(2, "y", 1)
		s.want(s.find(durable.Invalidate, 1) >= 0, "the copy of this life is registered")
		s.revoke(1, 1)
		s.deliver(durable.Stored, 2, 1)
	}},
}

func TestANodeThatStartsAgainFreesItsCopies(t *testing.T) {
	check(t, storiesANodeThatStartsAgainFreesItsCopies)
} // 12

var storiesTheExclusiveRightEndsWithItsSession = []told{
	{"an owner that is gone", []durable.Mutant{durable.OwnerWithoutLease}, func(s *story) {
		s.lock(1, "x")
		s.deliver(durable.Write, 1, 1)
		s.deliver(durable.Copy, 1, 1)
		s.want(s.w.nodes[0].core.Exclusive("x", s.w.nodes[0].now), "it has the right")
		s.fetch(2, "x", 1) // readers do not wait
		s.crash(1)
		s.write(3, "x")
		s.deliver(durable.Store, 3, 1)
		s.want(len(s.w.leaders[0].proposed) == 0, "the writer waits")
		s.ticks(3)
		s.commit()
		s.learn(1)
		s.deliver(durable.Stored, 3, 1)
	}}, {"the right is given back by its number", []durable.Mutant{durable.ReleaseAny}, func(s *story) {
		s.lock(1, "x")
		s.copy(durable.Write, 1, 1)
		s.lose(durable.Copy, 1)
		s.giveUp(1)
		s.lock(1, "x")
		s.deliver(durable.Write, 1, 1) // of the first, once more
		s.deliver(durable.Copy, 1, 1)  // which is given back
		s.deliver(durable.Write, 1, 1)
		s.deliver(durable.Copy, 1, 1)
		s.deliver(durable.Release, 1, 1)
		s.lock(2, "x")
		s.deliver(durable.Write, 2, 1)
		s.maybe(durable.Copy, 2, 1)
		s.want(s.find(durable.Recall, 1) >= 0, "the owner is asked for it")
	}},
}

func TestTheExclusiveRightEndsWithItsSession(t *testing.T) {
	check(t, storiesTheExclusiveRightEndsWithItsSession)
} // 14, as far as it is about automata

// The design answers a failed condition from the leader's memory alone. A condition that fails now may hold when a copy of the message
// comes: "write if there is nothing", and an object that is deleted meanwhile. The writer has been told that it failed.
var storiesAWriteThatFailedIsNotMadeLater = []told{
	{"when a copy of its message comes", []durable.Mutant{durable.ForgetConflict}, func(s *story) {
		s.w.setup.absent = true // n1 writes if there is nothing, and others delete with their last write
		s.put(2, "x", 1)
		s.write(1, "x")
		s.copy(durable.Store, 1, 1)
		s.commit()
		s.learn(1)
		s.deliver(durable.Conflict, 1, 1)
		n := *s.w.nodes[1]
		n.writes = 1
		s.w.nodes[1] = &n
		s.begin(2, "x", 1)
		for s.ok() && s.find(durable.Invalidate, 1) >= 0 {
			s.revoke(1, 1)
		}
		s.deliver(durable.Stored, 2, 1)
		s.want(s.w.oracle.Lookup("x").Value == nil, "it is deleted")
		s.deliver(durable.Store, 1, 1)
		if len(s.w.leaders[0].proposed) > 0 {
			s.commit()
		}
		s.want(s.w.oracle.Lookup("x").Value == nil, "and not written")
	}},
}

func TestAWriteThatFailedIsNotMadeLater(t *testing.T) {
	check(t, storiesAWriteThatFailedIsNotMadeLater)
}

// all are the stories that show mistakes.
var all = [][]told{
	storiesFillRace,
	storiesACopyLivesOnItsOwnLease,
	storiesASessionThatLapsedIsNeverUsedAgain,
	storiesADeposedLeadersReadersStopInTime,
	storiesANewLeaderShowsWhatIsSettled,
	storiesAWriteWhoseAnswerWasLostIsMadeOnce,
	storiesAReaderThatNeverAcknowledgesCostsOneLease,
	storiesANoticeOfEvictionIsOfOneCopy,
	storiesAWriterThatGaveUpAndReadIsInvalidated,
	storiesANodeThatStartsAgainFreesItsCopies,
	storiesTheExclusiveRightEndsWithItsSession,
	storiesAWriteThatFailedIsNotMadeLater,
}
