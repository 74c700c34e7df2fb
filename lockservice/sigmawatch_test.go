package lockservice

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/lockservice/sigma"
	sigmapb "latchkey/lockservice/sigma/pb"
)

// TestWatchersAreToldOfChanges: on real peers, with all periods of asking so long that they do not count. A name is held by voters, then
// broken, which has the table lock it, then shared.
func TestWatchersAreToldOfChanges(t *testing.T) {
	t.Parallel()
	w := newHosts(t, 4, func(w *hosts) { w.fixed = true })
	voters, other := w.among("n")
	holder, watcher := voters[0], other
	watcher.sigma.patience = time.Hour
	events, err := watcher.locks.Watch(t.Context(), "n")
	if err != nil {
		t.Fatal(err)
	}
	until := func(what string, ok func(Info) bool) Info {
		t.Helper()
		timeout := time.After(hostsWait)
		for {
			select {
			case ev := <-events:
				if ev.Err == nil && ok(ev.Info) {
					return ev.Info
				}
			case <-timeout:
				t.Fatalf("a watcher is not told: %s", what)
			}
		}
	}
	until("free", func(i Info) bool { return !i.Held })
	h := holder.lock("n")
	until("held", func(i Info) bool {
		return i.Held && i.Confirmed && i.Token == h.Token() && i.Protocol == ProtocolSigma && strings.HasPrefix(h.Holder(), i.Holder.Session)
	})
	waits := make(chan *Handle, 1)
	go func() {
		h, err := voters[1].locks.Lock(w.ctx(), "n", WithTTL(hostsTTL))
		if err != nil {
			t.Error(err)
		}
		waits <- h
	}()
	until("one waits", func(i Info) bool { return i.Waiting == 1 && len(i.Waiters) == 1 })
	broken, err := watcher.locks.Break(w.ctx(), "n", h.Token())
	if err != nil {
		t.Fatal(err)
	}
	i := until("broken, and the next holds it", func(i Info) bool { return i.Held && i.Token > h.Token() && i.Protocol == ProtocolGroup })
	if len(i.Breaks) != 1 || i.Breaks[0].Token != h.Token() || i.Breaks[0].Holder != broken {
		t.Errorf("%+v, and %v was broken", i.Breaks, broken)
	}
	<-h.Context().Done()
	if cause := context.Cause(h.Context()); !errors.Is(cause, ErrLost) {
		t.Errorf("the one whose lock was broken: %v", cause)
	}
	next := <-waits
	if !i.Confirmed {
		i = until("taken up", func(i Info) bool { return i.Confirmed })
	}
	if i.Token != next.Token() {
		t.Errorf("token %v, and the next one holds %v", i.Token, next.Token())
	}
	mustRelease(t, next)
	until("free again", func(i Info) bool { return !i.Held && len(i.Breaks) == 1 })
}

func TestWatchersOfAVoterAreBounded(t *testing.T) {
	var s watchers
	peer := func(i int) keyspace.NodeID { return node(fmt.Sprint(i)) }
	w := func(from, session int, until automaton.Instant) watcher {
		return watcher{from: peer(from), req: sigma.Req{Session: sigma.Session{byte(session), byte(session >> 8)}, Seq: 1}, until: until}
	}
	for i := range watchersPerPeerMax {
		if !s.add(fmt.Sprint("n", i), w(0, i, 10), 0) {
			t.Fatalf("watcher %d of one peer is refused", i)
		}
	}
	switch {
	case s.add("n", w(0, 1000, 10), 0):
		t.Error("one peer has more watchers than it may")
	case !s.add("n0", w(0, 0, 10), 0):
		t.Error("a watcher cannot leave word anew")
	case !s.add("n", w(0, 1000, 20), 10):
		t.Error("those whose time is over are counted")
	}
	for i := 1; s.n < watchersMax; i++ {
		if !s.add("n", w(i, i, 20), 10) {
			t.Fatalf("refused with %d watchers", s.n)
		}
	}
	if s.add("m", w(9999, 1, 20), 10) {
		t.Error("more watchers than there may be")
	}
	for n := range s.byName {
		s.remove(n, func(watcher) bool { return true })
	}
	if s.n != 0 || len(s.byName)+len(s.perPeer) != 0 {
		t.Errorf("after all have gone: %d, %d names, %d peers", s.n, len(s.byName), len(s.perPeer))
	}
}

// scriptedVoters answer a watcher who leaves word as a test says.
type scriptedVoters struct {
	at     SigmaGroup
	answer func(to keyspace.NodeID, asked *sigma.Message)
}

func (v *scriptedVoters) Locate(context.Context, keyspace.Key, bool) (SigmaGroup, error) {
	return v.at, nil
}

func (v *scriptedVoters) Send(to keyspace.NodeID, _ keyspace.Key, frame []byte) {
	_, m, err := sigmapb.DecodeFrame(frame)
	if err != nil {
		panic(err)
	}
	v.answer(to, &m)
}

// TestAWatcherOfFarVotersHearsOfEveryRound: a lock that is fought for changes again before the answers of a majority are back, each time,
// and what a voter says may overtake its own answer. Asked of nobody else, the watcher would see nothing for as long as that goes on.
func TestAWatcherOfFarVotersHearsOfEveryRound(t *testing.T) {
	for _, tt := range []struct {
		name         string
		heard, tells time.Duration // when the near voter's answer, and what it then says, arrive
		least        int           // of 20 s
	}{
		{"changes before a majority listens", 10 * time.Millisecond, 20 * time.Millisecond, 200},
		{"what it says overtakes its answer", 20 * time.Millisecond, 10 * time.Millisecond, 200},
		{"a change that a late voter alone has heard of", 10 * time.Millisecond, time.Hour, 8},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := &scriptedVoters{at: SigmaGroup{Voters: nodesAt("a", "b", "c")}}
				s := NewSigma(SigmaConfig{Net: net, Limits: LimitsOf(worldTTLMax, 0), Clock: newTestClock(0)})
				defer s.Close()
				say := func(after time.Duration, from keyspace.NodeID, asked *sigma.Message, ack bool) {
					m := &sigma.Message{Kind: sigma.Inspected, Name: asked.Name, Req: asked.Req, Ack: ack, Report: &sigma.Report{Chunks: 1}}
					time.AfterFunc(after, func() { s.Deliver(from, net.at.Group, m) })
				}
				net.answer = func(to keyspace.NodeID, asked *sigma.Message) {
					switch to {
					case net.at.Voters[0]:
						say(tt.heard, to, asked, true)
						say(tt.tells, to, asked, false)
					case net.at.Voters[1]:
						say(150*time.Millisecond, to, asked, true)
					default:
						say(300*time.Millisecond, to, asked, true)
					}
				}
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				told := 0
				err := s.changes(ctx, "n", func() { told++ })
				if !errors.Is(err, context.DeadlineExceeded) || told < tt.least {
					t.Errorf("told %d times in 20 s, at least %d: %v", told, tt.least, err)
				}
			})
		})
	}
}
