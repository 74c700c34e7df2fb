package sigma

import (
	"slices"

	"latchkey/internal/automaton"
)

// A client whose name is locked by the table in the group's log (rule M7; the rules are those of lock-protocols.md section 3.1). It
// stays in its state: one that waits waits there, one that holds keeps token and deadline and claims, by its Req.

// logged is what a client knows there.
type logged struct {
	since   ViewID // in which it came
	attempt uint64
	lastID  uint64
	calls   []logCall         // unanswered
	began   automaton.Instant // the first sending of this attempt's acquire
	known   bool              // the table has this attempt, or may
	owned   bool              // the table has granted it
}

type logCall struct {
	id, attempt uint64
	kind        CommandKind
	sent        automaton.Instant // [void] once the clock has jumped
}

// logCallsMax bounds the renewals that are unanswered at a time.
const logCallsMax = 3

func (l *logged) jumped() {
	l.began = void
	for i := range l.calls {
		l.calls[i].sent = void
	}
}

func (l *logged) outstanding(k CommandKind) (n int) {
	for i := range l.calls {
		if l.calls[i].kind == k && l.calls[i].attempt == l.attempt {
			n++
		}
	}
	return n
}

// leave goes to the group's log: all grants are dropped.
func (c *Client) leave(out []Action) []Action {
	if c.cfg.mutant != mutantGrantsKept {
		c.sit(c.view)
	}
	c.logged, c.log.since = true, c.view.View
	return c.attempt(out)
}

// attempt asks the table, as a request that it does not know.
func (c *Client) attempt(out []Action) []Action {
	c.log.attempt++
	c.log.began, c.log.known, c.log.owned = c.now, false, false
	return c.acquireLogged(out)
}

func (c *Client) acquireLogged(out []Action) []Action {
	tok := Token(0)
	if c.state == ClientHeld {
		tok = c.tok
	}
	return c.order(CommandAcquire, tok, out)
}

func (c *Client) order(k CommandKind, tok Token, out []Action) []Action {
	c.log.lastID++
	c.log.calls = append(c.log.calls, logCall{c.log.lastID, c.log.attempt, k, c.now})
	c.next = c.now.Add(c.cfg.TTL / repeatPart)
	return append(out, Action{Kind: Order, Order: Command{ID: c.log.lastID, Kind: k, Attempt: c.log.attempt, Tok: tok}})
}

// renewLogged asks for a lease that counts from now, or, where it is not granted yet, where it stands.
func (c *Client) renewLogged(out []Action) []Action {
	switch {
	case !c.log.known && c.log.outstanding(CommandAcquire) > 0:
		c.next = c.now.Add(c.cfg.TTL / repeatPart)
		return out
	case !c.log.known:
		return c.acquireLogged(out)
	case c.log.outstanding(CommandRenew) >= logCallsMax:
		c.next = c.now.Add(c.cfg.TTL / repeatPart)
		return out
	}
	tok := Token(0)
	if c.log.owned {
		tok = c.tok
	}
	return c.order(CommandRenew, tok, out)
}

// dueLogged sends what the present state has to send next.
func (c *Client) dueLogged(out []Action) []Action {
	switch c.state {
	case ClientWaiting:
		return c.renewLogged(out)
	case ClientHeld:
		if c.cfg.OnDemand && c.log.owned {
			return out
		}
		return c.renewLogged(out)
	case ClientReleasing:
		if c.now >= c.giveUp {
			return c.done(nil, out)
		}
		return c.releaseLogged(out)
	}
	return out
}

// finishLogged gives back what the table has of the wish, if it may have something.
func (c *Client) finishLogged(err error, out []Action) []Action {
	if err != nil {
		return c.done(err, out)
	}
	return c.releaseLogged(out)
}

// releaseLogged waits for an acquire that is under way: a release that overtook it would leave a grant behind that nobody wants.
func (c *Client) releaseLogged(out []Action) []Action {
	c.next = min(c.giveUp, c.now.Add(c.patient))
	c.patient *= 2
	if c.log.outstanding(CommandAcquire)+c.log.outstanding(CommandRelease) > 0 {
		return out
	}
	next := c.next
	out = c.order(CommandRelease, 0, out)
	c.next = next
	return out
}

func (c *Client) pushed(attempt uint64, out []Action) []Action {
	if c.logged && attempt == c.log.attempt && !c.log.owned && (c.state == ClientWaiting || c.state == ClientHeld) {
		c.log.known, c.next = true, c.now
	}
	return out
}

// ordered takes the answer to a command.
func (c *Client) ordered(a *Answer, out []Action) []Action {
	i := slices.IndexFunc(c.log.calls, func(l logCall) bool { return l.id == a.ID })
	if i < 0 {
		return out
	}
	call := c.log.calls[i]
	c.log.calls = slices.Delete(c.log.calls, i, i+1)
	if !c.logged || call.attempt != c.log.attempt {
		return out
	}
	switch c.state {
	case ClientReleasing:
		return c.releasedLogged(call, a, out)
	case ClientWaiting, ClientHeld:
	default:
		return out
	}
	switch a.Kind {
	case AnswerNone:
		c.next = min(c.next, c.now.Add(c.cfg.TTL/repeatPart))
	case AnswerGranted:
		c.log.known = true
		if a.Waited {
			c.next = c.now
			return out
		}
		return c.heldLogged(a.Tok, c.log.began, out)
	case AnswerHeld:
		c.log.known = true
		return c.heldLogged(a.Tok, call.sent, out)
	case AnswerQueued:
		c.log.known = true
		if c.state == ClientHeld { // a claim waits for a rival
			c.next = c.now.Add(c.cfg.TTL / guardPart)
			return out
		}
		c.next = c.now.Add(c.cfg.TTL / renewPart)
		if c.cfg.Try { // it waits until the table knows who may have the name, no longer
			c.next = c.now.Add(min(c.patient, c.cfg.TTL/renewPart))
			c.patient *= 2
		}
		w := Action{Kind: Waiting}
		if w.Msg.Position = a.Position; c.told.Kind != Waiting || c.told.Msg.Position != a.Position {
			c.told = w
			out = append(out, w)
		}
	case AnswerNotHeld:
		if c.state == ClientHeld {
			return c.lose(ErrReplaced, out)
		}
		return c.attempt(out)
	case AnswerLocked:
		if c.state == ClientHeld {
			return c.lose(ErrReplaced, out)
		}
		return c.finish(ErrLocked, out)
	case AnswerRefused:
		if c.state == ClientHeld {
			return c.lose(a.Err, out)
		}
		return c.finish(a.Err, out)
	case AnswerElsewhere:
		return c.sentBack(a.View, out)
	}
	return out
}

// heldLogged enters or prolongs the hold: its lease counts from the sending of what was answered.
func (c *Client) heldLogged(tok Token, sent automaton.Instant, out []Action) []Action {
	if c.state == ClientHeld && tok != c.tok {
		return c.lose(ErrReplaced, out)
	}
	c.log.owned = true
	d := sent
	if d != void {
		d = sent.Add(c.lease())
	}
	switch {
	case c.state == ClientHeld && d > c.deadline:
		c.deadline = d
		c.next = c.renewal()
		return append(out, Action{Kind: Renewed, Tok: c.tok, At: d})
	case c.state == ClientHeld:
		c.next = min(c.next, max(c.renewal(), c.now.Add(c.cfg.TTL/repeatPart)))
		return out
	case d.Sub(c.now) < c.cfg.TTL/enterPart: // one more round trip
		c.tok, c.next = tok, c.now
		return out
	}
	c.state, c.tok, c.deadline = ClientHeld, tok, d
	c.next = c.renewal()
	return append(out, Action{Kind: Acquired, Tok: tok, At: d})
}

// sentBack goes to a view again whose voters lock the name.
func (c *Client) sentBack(d Descriptor, out []Action) []Action {
	if !d.Valid() || d.View.Compare(c.view.View) < 0 {
		d = c.view
	}
	if d.View.Compare(c.log.since) <= 0 { // the newer one is not known here yet
		c.log.known = false
		c.next = c.now.Add(c.cfg.TTL / repeatPart)
		return append(out, Action{Kind: Lookup})
	}
	c.logged = false
	c.sit(d)
	return c.ask(false, out)
}

// releasedLogged goes on with giving back.
func (c *Client) releasedLogged(call logCall, a *Answer, out []Action) []Action {
	switch {
	case a.Kind == AnswerNone:
		return out
	case call.kind == CommandAcquire && (a.Kind == AnswerGranted || a.Kind == AnswerQueued):
		return c.releaseLogged(out)
	case call.kind == CommandRenew:
		return out
	}
	if !c.free {
		c.free = true
		out = append(out, Action{Kind: Returned, Tok: c.tok})
	}
	return c.done(nil, out)
}
