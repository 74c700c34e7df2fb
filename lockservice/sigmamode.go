package lockservice

import (
	"context"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/lockservice/pb"
	"latchkey/lockservice/sigma"
	sigmapb "latchkey/lockservice/sigma/pb"
	"latchkey/lockservice/table"
)

// What a client of protocol sigma does with a name that its group's table locks (rule M7): its automaton says which commands the table is
// to be given, and those are commands of the session of the backend whose wish it is, as those of protocol group are.

// loggedLine is what a line has to do with the group's table, which locks the name now (M7).
type loggedLine struct {
	attempt uint64       // of the automaton; 0: none
	req     uint64       // by which the backend's session knows it
	err     error        // of the last command, nil when it was answered
	taken   *LockedError // what a try was told
	leaving bool         // nobody waits for it any more, and the table is told so

	// at is where the table was found to lock the name last. It does so until that view ends (M6), and is asked at once.
	at struct {
		group sigmapb.Group
		view  sigma.ViewID
	}
}

// orderLocked has a command carried out by the group's table, in the background.
func (l *line) orderLocked(o sigma.Command) {
	s, g := l.sigma, &l.logged
	if o.Attempt != g.attempt { // each has a number of its own
		if g.attempt > 0 {
			l.by.table.exit(g.req)
		}
		g.attempt, g.req = o.Attempt, l.by.table.enter(attemptEar{l, l.seq, o.Attempt})
	}
	c := wishCommand{
		name: l.name, req: g.req, ttl: l.ttl, delay: l.delay, try: l.try, wish: sigma.Req{Session: l.session, Seq: l.seq}, Command: o,
	}
	by, seq, group := l.by, l.seq, l.group
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.searches.Go(func() { l.answered(seq, by.table.order(s.life, c, s.own(group), group.ViewGen())) })
	}
}

// answered takes the answer to a command of the line's request seq, with the group whose voters lock the name where it says so.
func (l *line) answered(seq uint64, a orderAnswer) {
	s := l.sigma
	var found SigmaGroup
	if a.Kind == sigma.AnswerElsewhere && a.moved {
		ctx, cancel := context.WithTimeout(s.life, l.ttl/callPart)
		g, err := s.cfg.Net.Locate(ctx, l.key, true)
		cancel()
		if found = g; err != nil || s.own(g.Group) || g.Group.ViewGen() != a.View.View.Gen {
			a.View = sigma.Descriptor{} // to be asked again
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone || l.seq != seq {
		return
	}
	l.logged.err = a.err
	if a.taken != nil {
		l.logged.taken = a.taken
	}
	if len(a.View.Members) > 0 && a.moved {
		l.group = found.Group
	}
	l.stepLocked(sigma.Event{Kind: sigma.Ordered, Answer: a.Answer})
	if len(a.View.Members) > 0 && !l.core.Logged() {
		s.moved(l.group, a.View)
	}
}

// attemptEar hears that the table has granted an attempt.
type attemptEar struct {
	line    *line
	seq     uint64
	attempt uint64
}

func (e attemptEar) granted(Token) {
	e.line.mu.Lock()
	defer e.line.mu.Unlock()
	if !e.line.gone && e.line.seq == e.seq {
		e.line.stepLocked(sigma.Event{Kind: sigma.Pushed, Answer: sigma.Answer{Attempt: e.attempt}})
	}
}

// ended has the attempt's hold ask the table at once whether it lasts.
func (e attemptEar) ended() {
	e.line.mu.Lock()
	defer e.line.mu.Unlock()
	if !e.line.gone && e.line.seq == e.seq && e.line.core.State() == sigma.ClientHeld {
		e.line.stepLocked(sigma.Event{Kind: sigma.Renew})
	}
}

// wishCommand is a command of a client of protocol sigma.
type wishCommand struct {
	sigma.Command
	name  string
	req   uint64
	wish  sigma.Req
	ttl   time.Duration
	delay time.Duration
	try   bool
}

// orderAnswer is what came of one.
type orderAnswer struct {
	sigma.Answer
	err   error        // why there was no answer
	taken *LockedError // AnswerLocked
	moved bool         // AnswerElsewhere: not the group that the client knows
}

// order has the group that owns the name execute a command, within a third of the TTL. The client knows the group of views of generation
// gen, or own, one of the key's own.
func (b *groupBackend) order(ctx context.Context, c wishCommand, own bool, gen uint32) (a orderAnswer) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.ttl/callPart, errNoAnswer)
	defer cancel()
	defer context.AfterFunc(b.life, cancel)()
	a.ID = c.ID
	command := encodeOrder(c.Kind, table.Acquire{Name: c.name, Req: c.req, TTL: c.ttl, Try: c.try, Delay: c.delay, Wish: c.wish, Held: table.Token(c.Tok)})
	data, err := b.groups.Do(ctx, keyspace.Preimage(c.name).Key(), ServiceName, command)
	if err != nil {
		// It may have been executed or not, or will be: the automaton asks again. Only what cannot come right ends the wish.
		if a.Kind, a.err = sigma.AnswerNone, groupError(ctx, err); forGood(err) {
			a.Kind, a.Err = sigma.AnswerRefused, a.err
		}
		return a
	}
	res, err := decodeResult(data)
	if err != nil {
		a.Kind, a.Err = sigma.AnswerRefused, err
		return a
	}
	a.Answer = answerTo(res)
	a.ID = c.ID
	switch a.Kind {
	case sigma.AnswerLocked:
		a.taken = &LockedError{Name: c.name, Holder: b.party(res.holder), Waiting: int(res.position)}
	case sigma.AnswerElsewhere:
		a.View, a.err = b.view(ctx, c.name)
		a.moved = own || a.View.View.Gen != gen
	}
	return a
}

// encodeOrder returns the command of the table's that carries out one of a client of protocol sigma. Of what an acquire asks for, a, the
// others take the name, the request and the token.
func encodeOrder(k sigma.CommandKind, a table.Acquire) []byte {
	switch k {
	case sigma.CommandRenew:
		return encodeRenew(table.Renew{Name: a.Name, Req: a.Req, Token: a.Held, TTL: a.TTL})
	case sigma.CommandRelease:
		return encodeRelease(table.Release{Name: a.Name, Req: a.Req, Token: a.Held})
	}
	return encodeAcquire(a)
}

// answerTo says what a result of the table means to a client of protocol sigma. The view of who is sent elsewhere is not in it.
func answerTo(res groupResult) (a sigma.Answer) {
	a.Tok, a.Waited = sigma.Token(res.token), res.waited
	switch res.status {
	case pb.Status_STATUS_GRANTED:
		a.Kind = sigma.AnswerGranted
	case pb.Status_STATUS_QUEUED:
		a.Kind, a.Position = sigma.AnswerQueued, int(res.position)-1
	case pb.Status_STATUS_LOCKED:
		a.Kind = sigma.AnswerLocked
	case pb.Status_STATUS_HELD:
		a.Kind = sigma.AnswerHeld
	case pb.Status_STATUS_NOT_HELD:
		a.Kind = sigma.AnswerNotHeld
	case pb.Status_STATUS_RELEASED:
		a.Kind = sigma.AnswerReleased
	case pb.Status_STATUS_ELSEWHERE:
		a.Kind = sigma.AnswerElsewhere
	default:
		if a.Kind, a.Err = sigma.AnswerRefused, refusal(res.status, res.detail); a.Err == nil {
			a.Err = unexpected("a wish", res.status)
		}
	}
	return a
}

// view returns the view whose voters lock a name, without members where it is not known.
func (b *groupBackend) view(ctx context.Context, name string) (d sigma.Descriptor, err error) {
	m, err := b.query(ctx, name)
	if err != nil {
		return d, err
	}
	members, err := nodesOf(m.Members)
	if err != nil {
		return d, err
	}
	return sigma.Descriptor{View: sigma.ViewID{Gen: m.ViewGen, Num: m.View}, Members: members}, nil
}

// leaveLocked goes on with a wish in the table that nobody waits for any more until it is over there, and answers false when it cannot.
func (l *line) leaveLocked() bool {
	b := l.by.table
	b.mu.Lock()
	defer b.mu.Unlock()
	l.logged.leaving = b.leavesLocked(l.name)
	return l.logged.leaving
}

func (l *line) leftLocked() {
	l.logged.leaving = false
	l.by.table.left()
}
