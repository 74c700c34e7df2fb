package lockservice

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/lockservice/sigma"
	sigmapb "latchkey/lockservice/sigma/pb"
	"latchkey/replicagroup/quorum"
)

// Who has a lock that voters keep, and who waits for it: every voter is asked what it knows, and what a majority says is put together.
// No voter knows by itself: an owner at one of them may be one that waits.

const (
	// questionsMax bounds the questions of this kind that a peer asks at a time. One more is refused with [ErrLimit].
	questionsMax = 1 << 10
	// askAgainMin and askAgainMax are how soon a voter that has not answered is asked again, at first and at last.
	askAgainMin = 100 * time.Millisecond
	askAgainMax = time.Second
	// lateWait is for how long voters that have not answered are waited for once a majority has, if that took less; else as long again.
	lateWait = 50 * time.Millisecond
)

// errElsewhere says that the group's table locks a name, or is about to.
var errElsewhere = errors.New("lockservice: the group's table has the name")

// question is one that is being asked. The session it is asked under is nobody's.
type question struct {
	answers chan heardOf
}

type heardOf struct {
	from keyspace.NodeID
	at   sigmapb.Group
	msg  *sigma.Message
}

// ask registers a question.
func (s *Sigma) ask() (*question, sigma.Session, error) {
	q := &question{answers: make(chan heardOf, 2*sigma.MembersMax)}
	var as sigma.Session
	rand.Read(as[:])
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, as, ErrClosed
	case len(s.questions) >= questionsMax:
		return nil, as, fmt.Errorf("%w: %d questions at a time", ErrLimit, len(s.questions))
	}
	s.questions[as] = q
	return q, as, nil
}

func (s *Sigma) asked(as sigma.Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.questions, as)
}

// hear takes an answer, of which it keeps a copy. One for which there is no room is lost, and asked for again.
func (q *question) hear(from keyspace.NodeID, g sigmapb.Group, m *sigma.Message) {
	answer := *m
	select {
	case q.answers <- heardOf{from, g, &answer}:
	default:
	}
}

// inspect asks the voters who has a name. It returns errElsewhere when one says that the group's table has it.
func (s *Sigma) inspect(ctx context.Context, name string) (Info, error) {
	key := keyspace.Preimage(name).Key()
	q, as, err := s.ask()
	if err != nil {
		return Info{}, err
	}
	defer s.asked(as)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.life, func() { cancel(ErrClosed) })()
	g, d, err := s.place(ctx, key)
	if err != nil {
		return Info{}, groupError(ctx, err)
	}
	if int(g.Prefix.Len) != s.cfg.Depth { // a key's own group locks by its table
		return Info{}, errElsewhere
	}
	answers := make(map[keyspace.NodeID]*sigma.Message)
	begun, looked := s.cfg.Clock.Now(), s.cfg.Clock.Now()
	wrong, told := false, false // a voter has said that the group is not there, and that was looked into
	pause := askAgainMin
	again, late := time.NewTimer(pause), time.NewTimer(time.Hour)
	defer again.Stop()
	defer late.Stop()
	send := func() {
		m := sigma.Message{Kind: sigma.Inspect, View: d.View, Name: name, Req: sigma.Req{Session: as, Seq: 1}, TS: s.clock.Load()}
		frame, err := sigmapb.EncodeFrame(nil, g, &m)
		if err != nil {
			log.Errorw("cannot encode a question of our own", "lock", name, "err", err)
			return
		}
		for _, n := range d.Members {
			if answers[n] == nil {
				s.cfg.Net.Send(n, key, frame)
			}
		}
	}
	at := func(next sigmapb.Group, in sigma.Descriptor) {
		g, d, begun = next, in, s.cfg.Clock.Now()
		clear(answers)
		late.Reset(time.Hour)
		send()
	}
	send()
	for {
		select {
		case a := <-q.answers:
			m := a.msg
			switch {
			case a.at.Prefix != g.Prefix || a.at.Gen < g.Gen || !slices.Contains(d.Members, a.from):
			case m.Kind == sigma.WrongGen:
				wrong = true
			case m.Kind == sigma.Moved && m.Mode != sigma.ModeSigma:
				return Info{}, errElsewhere
			case m.Kind == sigma.Moved && m.View.Compare(d.View) > 0:
				in := sigma.Descriptor{View: m.View, Members: m.Members}
				if in.Valid() {
					s.moved(a.at, in)
					at(a.at, in)
				}
			case m.Kind == sigma.Inspected && m.View == d.View && len(m.Report.Entries) > 0:
				answers[a.from] = m
				switch n := len(answers); {
				case n == len(d.Members):
					return s.merge(name, d, answers), nil
				case n == quorum.Majority(len(d.Members)):
					late.Reset(max(lateWait, s.cfg.Clock.Now().Sub(begun)))
				}
			}
		case <-late.C:
			return s.merge(name, d, answers), nil
		case <-again.C:
			pause = min(2*pause, askAgainMax)
			again.Reset(pause)
			// A view that is gone answers nothing, or that it is not there.
			if now := s.cfg.Clock.Now(); len(answers) < quorum.Majority(len(d.Members)) && (now.Sub(looked) >= lookupPause || wrong && !told) {
				looked, told = now, wrong
				found, err := s.cfg.Net.Locate(ctx, key, true)
				if err == nil && (found.Group != g || found.Group.Gen > g.Gen || !slices.Equal(sorted(found.Voters), d.Members)) {
					if int(found.Group.Prefix.Len) != s.cfg.Depth {
						return Info{}, errElsewhere
					}
					s.found(found)
					at(found.Group, sigma.Descriptor{View: sigma.ViewID{Gen: found.Group.ViewGen()}, Members: sorted(found.Voters)})
					continue
				}
			}
			send()
		case <-ctx.Done():
			if n := len(answers); n < quorum.Majority(len(d.Members)) && s.life.Err() == nil {
				return Info{}, fmt.Errorf("%w: %d of %d replicas answer: %w", ErrNoQuorum, n, len(d.Members), context.Cause(ctx))
			}
			return Info{}, context.Cause(ctx)
		}
	}
}

// sighted is what the voters say of one request.
type sighted struct {
	sigma.ReportParty
	owns []sigma.ReportParty // as the voters have it that it owns, or may
}

// merge puts together what a majority of a view's voters answered. A request holds the lock if a majority says that it owns it. It may
// hold it, and is shown as one that has not confirmed, if it has one together with those who have not answered or grant nothing yet,
// as after a restart: they may have forgotten. Any other waits.
func (s *Sigma) merge(name string, d sigma.Descriptor, answers map[keyspace.NodeID]*sigma.Message) Info {
	need := quorum.Majority(len(d.Members))
	silent, most := len(d.Members)-len(answers), 0
	var delays []time.Duration
	seen := make(map[sigma.Req]*sighted)
	see := func(p sigma.ReportParty) *sighted {
		x := seen[p.Req]
		if x == nil {
			x = &sighted{ReportParty: p}
			seen[p.Req] = x
		}
		return x
	}
	for _, m := range answers {
		if m.Embargo > 0 {
			silent++
		}
		delay, owners := m.Embargo, 0
		for _, e := range m.Report.Entries {
			delay, owners = max(delay, e.DelayLeft), owners+len(e.Parties)
			for _, p := range e.Parties {
				see(p).owns = append(see(p).owns, p)
			}
			for _, p := range e.Queue {
				see(p)
			}
		}
		delays, most = append(delays, delay), max(most, owners+m.Position)
	}
	all := make([]*sighted, 0, len(seen))
	for _, x := range seen {
		all = append(all, x)
	}
	slices.SortFunc(all, func(a, b *sighted) int {
		return cmp.Or(cmp.Compare(a.ReqTS, b.ReqTS), slices.Compare(a.Req.Session[:], b.Req.Session[:]), cmp.Compare(a.Req.Seq, b.Req.Seq))
	})
	info := Info{Name: name, Protocol: ProtocolSigma}
	for i, x := range all {
		if n := len(x.owns); n == 0 || n+silent < need {
			continue
		}
		byToken := slices.SortedFunc(slices.Values(x.owns), func(a, b sigma.ReportParty) int { return cmp.Compare(b.Tok, a.Tok) })
		byLeft := slices.SortedFunc(slices.Values(x.owns), func(a, b sigma.ReportParty) int { return cmp.Compare(b.Left, a.Left) })
		last := min(need, len(x.owns)) - 1
		info.Held, info.Holder, info.Confirmed, info.Holding = true, s.party(x.Req, x.Node), len(x.owns) >= need, 1
		info.Token, info.TTL, info.LeaseLeft = Token(byToken[last].Tok), x.TTL, byLeft[last].Left
		all = slices.Delete(all, i, i+1)
		most = max(0, most-1)
		break
	}
	for _, x := range all {
		info.Waiters = append(info.Waiters, Waiter{Party: s.party(x.Req, x.Node), TTL: x.TTL})
	}
	info.Waiting = max(len(all), most)
	if !info.Held {
		slices.Sort(delays)
		info.DelayLeft = delays[need-1]
	}
	return info
}

// party names a client for people.
func (s *Sigma) party(q sigma.Req, at keyspace.NodeID) Party {
	p := Party{Session: hex.EncodeToString(q.Session[:]), Peer: hex.EncodeToString(at[:])}
	if s.cfg.PeerName != nil {
		if name, ok := s.cfg.PeerName(at); ok {
			p.Peer = name
		}
	}
	return p
}
