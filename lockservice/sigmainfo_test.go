package lockservice

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/lockservice/pb"
	"latchkey/lockservice/sigma"
	"latchkey/lockservice/table"
	"latchkey/replicagroup/order"
)

func (p *sigmaPeer) info(name string) Info {
	p.world.tb.Helper()
	i, err := p.sigma.inspect(context.Background(), name)
	if err != nil {
		p.world.tb.Fatalf("info of %q: %v", name, err)
	}
	return i
}

func TestSigmaInfoTellsTheHolderAndTheQueueInOrder(t *testing.T) {
	amongVoters(t, func(t *testing.T, w *voters) {
		p, q, other := w.peer("p"), w.peer("q"), w.peer("o")
		if i := other.info("n"); i.Held || i.Waiting != 0 || i.DelayLeft != 0 {
			t.Errorf("a name that nobody has asked for: %+v", i)
		}
		h := p.lock("n", WithTTL(10*time.Second))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		const waiters = 20 // more than fit into an entry
		for i := range waiters {
			go q.Lock(ctx, "n", WithTTL(time.Duration(20+i)*time.Second))
			time.Sleep(50 * time.Millisecond)
		}
		i := other.info("n")
		if !i.Held || !i.Confirmed || i.Token != h.Token() || i.TTL != 10*time.Second || i.Holding != 1 {
			t.Errorf("%+v; the holder is %s, token %v", i, h.Holder(), h.Token())
		}
		if got := i.Holder.Session; h.Holder() != got+"@p" { // who is asked about names peers by their nodes
			t.Errorf("holder %s, itself it says %s", got, h.Holder())
		}
		if i.LeaseLeft <= 8*time.Second || i.LeaseLeft > 10*time.Second {
			t.Errorf("left %v", i.LeaseLeft)
		}
		if i.Waiting != waiters || len(i.Waiters) != waiters {
			t.Fatalf("%d wait, %d listed", i.Waiting, len(i.Waiters))
		}
		for n, x := range i.Waiters {
			if x.TTL != time.Duration(20+n)*time.Second {
				t.Errorf("place %d: TTL %v", n, x.TTL)
			}
		}
		mustRelease(t, h)
		time.Sleep(time.Second)
		if i := other.info("n"); i.Token <= h.Token() || i.TTL != 20*time.Second || i.Waiting != waiters-1 {
			t.Errorf("after the release: %+v", i)
		}
		cancel()
		synctest.Wait()
	})
}

func TestSigmaInfoNeedsAMajority(t *testing.T) {
	amongVoters(t, func(t *testing.T, w *voters) {
		p := w.peer("p")
		h := p.lock("n")
		w.kill("a")
		if i := p.info("n"); !i.Held || !i.Confirmed || i.Token != h.Token() {
			t.Errorf("without one voter: %+v", i)
		}
		w.kill("b")
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := p.sigma.inspect(ctx, "n"); !errors.Is(err, ErrNoQuorum) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without two: %v", err)
		}
		p.sigma.mu.Lock()
		defer p.sigma.mu.Unlock()
		if len(p.sigma.questions) != 0 {
			t.Errorf("%d questions kept", len(p.sigma.questions))
		}
	})
}

// TestSigmaInfoFollowsTheGeneration: voters that are of another generation say so, and who asks looks for the group at once.
func TestSigmaInfoFollowsTheGeneration(t *testing.T) {
	amongVoters(t, func(t *testing.T, w *voters) {
		p := w.peer("p")
		mustRelease(t, p.lock("n"))
		w.mu.Lock()
		w.group.Gen++
		w.log.View = sigma.ViewID{Gen: w.group.ViewGen(), Num: 1}
		w.located.Group = w.group
		w.mu.Unlock()
		for _, name := range []string{"a", "b", "c"} {
			w.add(name)
		}
		begun := time.Now()
		if i := p.info("n"); i.Held || time.Since(begun) > time.Second {
			t.Errorf("after %v: %+v", time.Since(begun), i)
		}
		begun = time.Now()
		if p.info("n"); time.Since(begun) > 2*w.delay {
			t.Errorf("again, after %v", time.Since(begun))
		}
	})
}

func TestSigmaInfoFollowsTheViewAndTheMode(t *testing.T) {
	amongVoters(t, func(t *testing.T, w *voters) {
		p, q := w.peer("p"), w.peer("q")
		h := p.lock("n")
		before := q.info("n")
		w.add("d")
		w.apply(sigma.Entry{Kind: sigma.EntryView, Members: nodesAt("b", "c", "d")})
		time.Sleep(time.Second)
		w.kill("a")
		if i := q.info("n"); !i.Held || i.Token != h.Token() || i.Holder != before.Holder {
			t.Errorf("in the next view: %+v", i)
		}
		w.mu.Lock()
		state, all := w.log, []*voter{}
		for _, v := range w.replicas {
			all = append(all, v)
		}
		w.mu.Unlock()
		for _, v := range all {
			v.step(sigma.Event{Kind: sigma.Applied, State: &state, Modes: []sigma.NameMode{{Name: "n", Mode: sigma.ModeGroup}}})
		}
		if _, err := q.sigma.inspect(t.Context(), "n"); !errors.Is(err, errElsewhere) {
			t.Errorf("of a name that the table has: %v", err)
		}
		if i := q.info("other"); i.Held {
			t.Errorf("another name: %+v", i)
		}
	})
}

// What voters answer is not agreed between them: what is made of it must be true of the lock.
func TestSigmaInfoMergesAnswers(t *testing.T) {
	members := nodesAt("a", "b", "c")
	party := func(seq uint64, tok sigma.Token, left time.Duration) sigma.ReportParty {
		return sigma.ReportParty{Req: sigma.Req{Session: sigma.Session{1}, Seq: seq}, ReqTS: seq, TTL: 10 * time.Second, Tok: tok, Left: left}
	}
	type answer struct {
		owner   []sigma.ReportParty
		queue   []sigma.ReportParty
		waiting int
		embargo time.Duration
		delay   time.Duration
	}
	first, second := party(1, 0, 0), party(2, 0, 0)
	for _, tt := range []struct {
		name    string
		answers []answer // of a, b, c
		held    bool
		sure    bool
		token   Token
		left    time.Duration
		waiting int
		delay   time.Duration
	}{
		{"free", []answer{{}, {}}, false, false, 0, 0, 0, 0},
		{"held", []answer{{owner: []sigma.ReportParty{party(1, 7, 5)}}, {owner: []sigma.ReportParty{party(1, 7, 4)}}, {owner: []sigma.ReportParty{party(1, 7, 3)}}},
			true, true, 7, 4, 0, 0},
		{"one voter offers a higher number", []answer{{owner: []sigma.ReportParty{party(1, 7, 5)}}, {owner: []sigma.ReportParty{party(1, 9, 4)}}, {owner: []sigma.ReportParty{party(1, 7, 3)}}},
			true, true, 7, 4, 0, 0},
		{"contended", []answer{
			{owner: []sigma.ReportParty{party(2, 7, 5)}, queue: []sigma.ReportParty{first}, waiting: 1},
			{owner: []sigma.ReportParty{party(2, 7, 5)}, queue: []sigma.ReportParty{first}, waiting: 1},
			{owner: []sigma.ReportParty{party(1, 7, 5)}, queue: []sigma.ReportParty{second}, waiting: 1},
		}, true, true, 7, 5, 1, 0},
		{"nobody has a majority", []answer{{owner: []sigma.ReportParty{party(1, 7, 5)}}, {owner: []sigma.ReportParty{party(2, 7, 5)}}, {}}, false, false, 0, 0, 2, 0},
		{"one is silent, and may know of a hold", []answer{{owner: []sigma.ReportParty{party(1, 7, 5)}}, {}}, true, false, 7, 5, 0, 0},
		{"one has restarted, and may have forgotten", []answer{{owner: []sigma.ReportParty{party(1, 7, 5)}}, {}, {embargo: 3}}, true, false, 7, 5, 0, 0},
		{"two have restarted", []answer{{}, {embargo: 3}, {embargo: 4}}, false, false, 0, 0, 0, 3},
		{"a lock delay", []answer{{delay: 2}, {delay: 5}, {}}, false, false, 0, 0, 0, 2},
		{"a long queue", []answer{{owner: []sigma.ReportParty{party(1, 7, 5)}, queue: []sigma.ReportParty{second}, waiting: 300}, {owner: []sigma.ReportParty{party(1, 7, 5)}, waiting: 299}},
			true, true, 7, 5, 300, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			answers := make(map[keyspace.NodeID]*sigma.Message)
			for i, a := range tt.answers {
				answers[members[i]] = &sigma.Message{Kind: sigma.Inspected, Position: a.waiting, Embargo: a.embargo, Report: &sigma.Report{
					Chunks: 1, Entries: []sigma.ReportEntry{{Name: "n", Parties: a.owner, Queue: a.queue, DelayLeft: a.delay}},
				}}
			}
			i := new(Sigma).merge("n", sigma.Descriptor{Members: members}, answers)
			got := fmt.Sprint(i.Held, i.Confirmed, i.Token, i.LeaseLeft, i.Waiting, i.DelayLeft)
			if want := fmt.Sprint(tt.held, tt.sure, tt.token, tt.left, tt.waiting, tt.delay); got != want {
				t.Errorf("%s\nwant %s", got, want)
			}
		})
	}
}

func TestSigmaQuestionsAreBounded(t *testing.T) {
	amongVoters(t, func(t *testing.T, w *voters) {
		p := w.peer("p")
		w.lose(func(keyspace.NodeID, keyspace.NodeID, *sigma.Message) bool { return true })
		ctx, cancel := context.WithCancel(t.Context())
		for range questionsMax {
			go p.sigma.inspect(ctx, "n")
		}
		synctest.Wait()
		if _, err := p.sigma.inspect(t.Context(), "n"); !errors.Is(err, ErrLimit) {
			t.Errorf("one more question: %v", err)
		}
		cancel()
		synctest.Wait()
		w.lose(nil)
		p.info("n")
		p.Service.Close()
		p.sigma.Close()
		if _, err := p.sigma.inspect(t.Context(), "n"); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

// tableAnswers answers commands in turn, the last of them for ever, and queries with info.
type tableAnswers struct {
	Groups
	results []groupResult
	info    *pb.Info
	asked   int
}

func (a *tableAnswers) Do(context.Context, keyspace.Key, string, []byte) ([]byte, error) {
	r := a.results[min(a.asked, len(a.results)-1)]
	a.asked++
	return r.encode(), nil
}

func (a *tableAnswers) Query(context.Context, keyspace.Key, string, []byte) ([]byte, error) {
	return mustMarshal(a.info), nil
}

func (a *tableAnswers) Notify(string, func(order.GroupID, []byte)) {}

// A break of a name that voters have is answered QUEUED until the table knows who may hold it.
func TestBreakWaitsUntilTheTableHasTheName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		queued := groupResult{status: pb.Status_STATUS_QUEUED}
		holder := party{client: table.Client{1}, peer: node("p")}
		g := &tableAnswers{results: []groupResult{queued, queued, queued, {status: pb.Status_STATUS_BROKEN, token: 9, holder: holder}}}
		b := NewGroupBackend(g, GroupConfig{})
		if p, err := b.Break(t.Context(), "n", 9); err != nil || p != b.(*groupBackend).party(holder) || g.asked != 4 {
			t.Errorf("%v, %v after %d questions", p, err, g.asked)
		}
		g.asked, g.results = 0, []groupResult{queued, {status: pb.Status_STATUS_NOT_HELD}}
		if _, err := b.Break(t.Context(), "n", 9); !errors.Is(err, ErrNotHeld) {
			t.Errorf("of a token that nobody holds: %v", err)
		}
		g.results = []groupResult{queued}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := b.Break(ctx, "n", 9); !errors.Is(err, ErrOutcomeUnknown) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("while the voters say nothing: %v", err)
		}
	})
}

func TestInfoNamesWhoMayHoldANameThatIsTakenOver(t *testing.T) {
	p, q := node("p"), node("q")
	wish := func(b byte) *pb.Wish { return &pb.Wish{Session: append([]byte{b}, make([]byte, 15)...), Seq: 1} }
	g := &tableAnswers{info: &pb.Info{Status: pb.Status_STATUS_NOT_HELD, Mode: pb.Mode_MODE_PENDING, Candidates: []*pb.Candidate{
		{Wish: wish(1), Peer: p[:], LeftNs: 5, Token: 9}, {Wish: wish(2), Peer: q[:], LeftNs: 6, Token: 9}, {Wish: &pb.Wish{}},
	}}}
	i, err := NewGroupBackend(g, GroupConfig{}).Info(t.Context(), "n")
	if err != nil || !i.TakenOver || !i.Held || i.Confirmed || i.Holding != 2 || len(i.Holders) != 2 || i.Token != 9 || i.Holder != i.Holders[0].Party || i.Holders[1].LeaseLeft != 6 {
		t.Errorf("%+v, %v", i, err)
	}
}
