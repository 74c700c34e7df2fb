package lockservice

import (
	"context"
	"slices"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/lockservice/sigma"
	sigmapb "latchkey/lockservice/sigma/pb"
	"latchkey/replicagroup/quorum"
)

// Watching a lock without asking again and again. A watcher leaves word with every voter of the group (an INSPECT with a TTL, which says
// for how long); each answers that it listens, and once more when what it knows of the name has changed, whichever protocol locks it.
// That is all it says: the watcher then leaves word anew, and asks who has the lock. So what a voter keeps for a watcher is a few words for
// a few seconds, and a lock that changes hands a thousand times a second costs a watcher no more than one that does so
// twenty times.

const (
	// watchersMax bounds the watchers of one group at one voter, and watchersPerPeerMax those of one peer. One more is not answered, and
	// asks every [WatchEvery].
	watchersMax        = 512
	watchersPerPeerMax = 64
	// watchFor is for how long word is left, and watchPatience after how long it is left anew though nothing was heard: for voters that have
	// stopped, and messages that were lost.
	watchFor      = 10 * time.Second
	watchPatience = 5 * time.Second
	// watchPause is the least time between two changes that a watcher is told of.
	watchPause = 50 * time.Millisecond
	// watchAnswerTimeout bounds the wait for voters to say that they listen.
	watchAnswerTimeout = time.Second
)

// watchers are those who have left word with one voter. Each hears of one change.
type watchers struct {
	byName  map[string][]watcher
	perPeer map[keyspace.NodeID]int
	n       int
}

type watcher struct {
	from  keyspace.NodeID
	req   sigma.Req
	until automaton.Instant
	mark  uint64 // of what there was to tell
}

// add takes a watcher in, in place of what it has left before. It answers false where there is no room.
func (s *watchers) add(name string, w watcher, now automaton.Instant) bool {
	s.remove(name, func(x watcher) bool { return x.from == w.from && x.req.Session == w.req.Session })
	if s.n >= watchersMax || s.perPeer[w.from] >= watchersPerPeerMax {
		for n := range s.byName {
			s.remove(n, func(x watcher) bool { return x.until <= now })
		}
	}
	if s.n >= watchersMax || s.perPeer[w.from] >= watchersPerPeerMax {
		return false
	}
	if s.byName == nil {
		s.byName, s.perPeer = make(map[string][]watcher), make(map[keyspace.NodeID]int)
	}
	s.byName[name] = append(s.byName[name], w)
	s.perPeer[w.from]++
	s.n++
	return true
}

// remove takes out the watchers of a name that f says.
func (s *watchers) remove(name string, f func(watcher) bool) {
	if s.n == 0 {
		return
	}
	rest := slices.DeleteFunc(s.byName[name], func(x watcher) bool {
		if !f(x) {
			return false
		}
		if s.perPeer[x.from]--; s.perPeer[x.from] == 0 {
			delete(s.perPeer, x.from)
		}
		s.n--
		return true
	})
	if s.byName[name] = rest; len(rest) == 0 {
		delete(s.byName, name)
	}
}

// watch takes word from a watcher.
func (w *sigmaVoter) watch(from keyspace.NodeID, m *sigma.Message) {
	if !w.locks {
		return
	}
	now := w.seat.Now()
	if w.watchers.add(m.Name, watcher{from, m.Req, now.Add(min(m.TTL, watchFor)), w.mark(m.Name)}, now) {
		w.word(from, m.Name, m.Req, true)
	}
}

// mark tells apart what there is to tell of a name.
func (w *sigmaVoter) mark(name string) uint64 {
	m := w.machine().table.Mark(name)
	if w.replica != nil {
		m ^= w.replica.Mark(name)
	}
	return m
}

// word tells a watcher that this voter listens, or that something has changed.
func (w *sigmaVoter) word(to keyspace.NodeID, name string, q sigma.Req, listens bool) {
	w.send(to, &sigma.Message{
		Kind: sigma.Inspected, View: sigma.ViewID{Gen: groupOf(w.seat.Group()).ViewGen()}, Name: name, Req: q, Ack: listens, Report: &sigma.Report{Chunks: 1},
	})
}

// changed tells those who watch a name, if what there is to tell of it is not what it was.
func (w *sigmaVoter) changed(name string) {
	if len(w.watchers.byName[name]) == 0 {
		return
	}
	mark, now := w.mark(name), w.seat.Now()
	w.watchers.remove(name, func(x watcher) bool {
		if x.mark != mark && now < x.until {
			w.word(x.from, name, x.req, false)
		}
		return x.mark != mark || now >= x.until
	})
}

// anyChanged is changed of every name.
func (w *sigmaVoter) anyChanged() {
	for name := range w.watchers.byName {
		w.changed(name)
	}
}

// changes leaves word with the voters, and calls fn whenever the state of a lock may have changed since it was called last: at first,
// after each change, and otherwise once in a while. It blocks until ctx ends.
func (s *Sigma) changes(ctx context.Context, name string, fn func()) error {
	q, as, err := s.ask()
	if err != nil {
		return err
	}
	defer s.asked(as)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.life, func() { cancel(ErrClosed) })()
	fresh := false
	for seq := uint64(1); ; seq++ {
		listening := s.leaveWord(ctx, q, name, sigma.Req{Session: as, Seq: seq}, fresh, fn)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		pause := watchPause
		if fresh = !listening; fresh {
			fn()
			pause = WatchEvery
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// leaveWord leaves word with every voter, calls fn when a majority listens, and returns when one says that something has changed, or
// it is time to leave word anew. It answers false when too few listen. fresh has the overlay asked who votes.
//
// A change counts whoever tells of it, and whenever: fn has been called at least once then. With far voters a contended lock changes
// again before a majority has answered, every time, and a voter's answer may come after what it says next. Whoever listens late may
// have known then what fn was not told, and has fn called again.
func (s *Sigma) leaveWord(ctx context.Context, q *question, name string, as sigma.Req, fresh bool, fn func()) bool {
	key := keyspace.Preimage(name).Key()
	at, err := s.voters(ctx, key, fresh)
	if err != nil {
		return false
	}
	m := sigma.Message{
		Kind: sigma.Inspect, View: sigma.ViewID{Gen: at.Group.ViewGen()}, Name: name, Req: as, TS: s.clock.Load(), TTL: watchFor,
	}
	frame, err := sigmapb.EncodeFrame(nil, at.Group, &m)
	if err != nil {
		log.Errorw("cannot encode a question of our own", "lock", name, "err", err)
		return false
	}
	for _, n := range at.Voters {
		s.cfg.Net.Send(n, key, frame)
	}
	listen := make(map[keyspace.NodeID]bool)
	timeout := time.NewTimer(watchAnswerTimeout)
	defer timeout.Stop()
	for {
		select {
		case a := <-q.answers:
			switch m := a.msg; {
			case m.Req.Seq != as.Seq || a.at != at.Group || !slices.Contains(at.Voters, a.from):
			case m.Kind == sigma.WrongGen:
				return false
			case m.Kind != sigma.Inspected:
			case m.Ack:
				if listen[a.from] = true; len(listen) < quorum.Majority(len(at.Voters)) {
					continue
				}
				if fn(); len(listen) == quorum.Majority(len(at.Voters)) {
					timeout.Reset(s.patience)
				}
			default:
				if len(listen) < quorum.Majority(len(at.Voters)) {
					fn()
				}
				return true
			}
		case <-timeout.C:
			return len(listen) >= quorum.Majority(len(at.Voters))
		case <-ctx.Done():
			return false
		}
	}
}

// voters returns who votes in the group of a key.
func (s *Sigma) voters(ctx context.Context, key keyspace.Key, fresh bool) (SigmaGroup, error) {
	if fresh {
		ctx, cancel := context.WithTimeout(ctx, watchAnswerTimeout)
		defer cancel()
		return s.cfg.Net.Locate(ctx, key, true)
	}
	g, d, err := s.place(ctx, key)
	return SigmaGroup{Group: g, Voters: d.Members}, err
}
