package simworld

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"latchkey/internal/automaton"
	"latchkey/lockservice/hold"
	"latchkey/lockservice/table"
	"latchkey/replicagroup/session"
)

// digestEvery is how many entries lie between two comparisons of whole states.
const digestEvery = 64

// checker knows true time and everybody's state. Whatever it finds ends the run.
type checker struct {
	w      *World
	report Report

	holders map[string][]*wish // acquired, and neither lost nor given back

	frontier uint64            // highest entry that a replica has executed
	entries  map[uint64]uint64 // index -> hash of what it did
	states   map[uint64][32]byte
	executed map[uint64]execution // uid -> where and with what answer
	grants   map[string][]grant   // per lock, by rising index
	queues   map[string][]waiting // per lock, as the log has it
	shares   map[waiting]bool     // whether a request is to share its lock
	tokens   map[waiting]table.Token
	asked    map[waiting]asked              // of who waits: the last time
	offered  map[table.Client]time.Duration // when a client's last grant out of a queue was made
}

// asked is when a waiter has asked where it stands, for how long a lease, and whether it may stand behind others then.
type asked struct {
	at, ttl time.Duration
	behind  bool
}

type execution struct {
	index uint64
	ans   table.Answer
}

type grant struct {
	index uint64
	who   waiting
	token table.Token
}

type waiting struct {
	client table.Client
	req    uint64
}

func newChecker(w *World) *checker {
	return &checker{
		w: w, holders: make(map[string][]*wish), entries: make(map[uint64]uint64), states: make(map[uint64][32]byte),
		executed: make(map[uint64]execution), grants: make(map[string][]grant), queues: make(map[string][]waiting),
		shares: make(map[waiting]bool), tokens: make(map[waiting]table.Token),
		asked: make(map[waiting]asked), offered: make(map[table.Client]time.Duration),
	}
}

func (k *checker) fail(format string, args ...any) { k.w.sim.Fail(fmt.Errorf(format, args...)) }

// acquired is told when a client begins to believe that it holds a lock.
func (k *checker) acquired(x *wish) {
	k.report.Acquired++
	k.exclusive(x)
	k.holders[x.name] = append(k.holders[x.name], x)
}

func (k *checker) renewed(x *wish) { k.exclusive(x) }

// exclusive compares a belief with all others about the same lock, at this true time. It is enough to look when a belief
// begins or is prolonged: time alone only ends them.
func (k *checker) exclusive(x *wish) {
	if !k.w.cfg.bounded() {
		return
	}
	valid, held := 1, 1
	for _, y := range k.holders[x.name] {
		if y == x || x.shared && y.shared {
			continue
		}
		if x.permits > 0 { // others may hold too, so many
			if held++; y.hold.Valid(y.c.env.Now()) {
				valid++
			}
			if y.hold.State() != hold.StateHeld {
				held--
			}
			continue
		}
		now := y.c.env.Now()
		switch {
		case y.hold.Valid(now):
			k.fail("exclusion: clients %d (token %d, deadline in %v) and %d (token %d, deadline in %v) both hold %s",
				y.c.env.ID(), y.hold.Token(), y.hold.Deadline().Sub(now), x.c.env.ID(), x.hold.Token(), x.hold.Deadline().Sub(x.c.env.Now()), x.name)
		case y.hold.State() == hold.StateHeld && k.w.cfg.Faults.PauseEvery == 0:
			k.fail("loss reported late: client %d acquired %s while %d, whose machine runs, had not been told", x.c.env.ID(), x.name, y.c.env.ID())
		}
	}
	switch {
	case x.permits == 0:
	case valid > x.permits:
		k.fail("exclusion: client %d (token %d) is one of %d that hold %s, of %d permits", x.c.env.ID(), x.hold.Token(), valid, x.name, x.permits)
	case held > x.permits && k.w.cfg.Faults.PauseEvery == 0:
		k.fail("loss reported late: client %d acquired %s when %d had not been told, of %d permits", x.c.env.ID(), x.name, held-1, x.permits)
	}
}

func (k *checker) lost(x *wish) {
	k.report.Lost++
	if d := x.hold.Deadline(); k.w.cfg.Faults.PauseEvery == 0 && x.c.env.Now() > d.Add(-hold.Guard(x.cfg.TTL)+time.Microsecond) {
		k.fail("loss reported late: client %d at %v, deadline of %s at %v", x.c.env.ID(), x.c.env.Now(), x.name, automaton.Instant(d))
	}
	k.over(x)
}

// over ends a belief.
func (k *checker) over(x *wish) {
	k.holders[x.name] = slices.DeleteFunc(k.holders[x.name], func(y *wish) bool { return x == y })
}

// told compares what a client is told with what was executed.
func (k *checker) told(uid uint64, d session.Done) {
	e, ran := k.executed[uid]
	switch d.Err {
	case nil:
		if r := decodeResult(d.Data); !ran || r.uid != uid || r.ans.Kind != e.ans.Kind || r.ans.Token != e.ans.Token {
			k.fail("command %x executed %v as %+v, its client is told %+v", uid, ran, e, r)
		}
	case session.ErrOutcomeUnknown:
	default:
		if ran {
			k.fail("command %x was executed at %d, its client is told %v", uid, e.index, d.Err)
		}
	}
}

// entry is told what a replica's machine did at an entry. The first replica's word is checked against the rules, the
// others' against the first.
func (k *checker) entry(index uint64, notes []note, res session.Result) {
	h := digest(notes, res)
	if index <= k.frontier {
		if first, ok := k.entries[index]; ok && first != h {
			k.fail("agreement: replicas did different things at entry %d", index)
		}
		return
	}
	k.frontier = index
	k.entries[index] = h
	for _, n := range notes {
		switch n.kind {
		case noteCommand:
			k.command(index, n)
		case noteGrant:
			k.handed(index, n.grant, n.at)
		case noteEnded:
			for name, q := range k.queues {
				k.queues[name] = slices.DeleteFunc(q, func(w waiting) bool { return w.client == n.client })
			}
		}
	}
}

// digest hashes what an entry did, with FNV-1a.
func digest(notes []note, res session.Result) uint64 {
	h := uint64(14695981039346656037)
	mix := func(b []byte) {
		for _, c := range b {
			h = (h ^ uint64(c)) * 1099511628211
		}
	}
	for _, n := range notes {
		mix([]byte{byte(n.kind)})
		mix(n.client[:])
		mix(result{n.cmd.uid, n.ans}.encode())
		mix(encodeGrant(n.grant))
	}
	mix(binary.BigEndian.AppendUint64([]byte{byte(res.Status)}, res.Seq))
	mix(res.Data)
	return h
}

func (k *checker) command(index uint64, n note) {
	if e, twice := k.executed[n.cmd.uid]; twice {
		k.fail("once only: command %x executed at %d and at %d", n.cmd.uid, e.index, index)
	}
	k.executed[n.cmd.uid] = execution{index, n.ans}
	switch c := n.cmd.cmd.(type) {
	case table.Acquire:
		who := waiting{n.client, c.Req}
		k.shares[who] = c.Shared
		switch n.ans.Kind {
		case table.Granted:
			if q := k.queues[c.Name]; k.tokens[who] != n.ans.Token && slices.ContainsFunc(q, func(w waiting) bool { return !k.silent(w, n.at) }) {
				k.fail("order: entry %d grants %s to %v at once, the queue is %v", index, c.Name, who, q)
			}
			k.granted(index, c.Name, who, n.ans.Token)
		case table.Queued:
			waits := slices.Contains(k.queues[c.Name], who)
			// One that was silent may have been passed over meanwhile, and then it has begun anew behind all others.
			k.asked[who] = asked{n.at, c.TTL, k.suspect(who) || waits && k.silent(who, n.at)}
			if !waits {
				k.queues[c.Name] = append(k.queues[c.Name], who)
			}
		}
	case table.Renew:
		if n.ans.Kind == table.Queued {
			who := waiting{n.client, c.Req}
			k.asked[who] = asked{n.at, c.TTL, k.suspect(who)}
		}
	case table.Release:
		if n.ans.Kind != table.Released {
			return
		}
		k.queues[c.Name] = slices.DeleteFunc(k.queues[c.Name], func(w waiting) bool { return w == waiting{n.client, c.Req} })
	}
}

// handed is told of a grant out of a queue: it must be the turn of the first, but for those that may be gone.
func (k *checker) handed(index uint64, g table.Grant, at time.Duration) {
	k.report.Handed++
	q := k.queues[g.Name]
	who := waiting{g.Client, g.Req}
	i := slices.Index(q, who)
	if i < 0 || slices.ContainsFunc(q[:i], func(w waiting) bool { return !k.silent(w, at) && !k.suspect(w) }) {
		k.fail("order: entry %d grants %s to %v, the queue is %v", index, g.Name, who, q)
		return
	}
	k.report.Passed += i
	k.queues[g.Name] = slices.Delete(q, i, i+1)
	k.offered[g.Client] = at
	k.granted(index, g.Name, who, g.Token)
}

// silent reports whether a waiter has not asked for so long that it is passed over.
func (k *checker) silent(w waiting, at time.Duration) bool {
	a := k.asked[w]
	return at-a.at > a.ttl/2+2*time.Second
}

// suspect reports whether a waiter may have to wait behind others: its client may have let a grant lapse, and not asked for this one since;
// or it was silent itself, and has asked anew.
func (k *checker) suspect(w waiting) bool {
	granted, ok := k.offered[w.client]
	a, waits := k.asked[w]
	return waits && (a.behind || ok && a.at <= granted)
}

// granted checks that tokens rise with the grants of a lock. A request may be told its token again.
func (k *checker) granted(index uint64, name string, who waiting, token table.Token) {
	if k.tokens[who] == token {
		return
	}
	k.tokens[who] = token
	gs := k.grants[name]
	if len(gs) > 0 {
		last := gs[len(gs)-1]
		if token < last.token || token == last.token && !(k.shares[who] && k.shares[last.who]) {
			k.fail("tokens: %s granted to %v with %d at entry %d, to %v with %d at %d", name, last.who, last.token, last.index, who, token, index)
		}
	}
	k.grants[name] = append(gs, grant{index, who, token})
}

// state compares the whole state of replicas at one entry.
func (k *checker) state(index uint64, d [32]byte) {
	if first, ok := k.states[index]; ok && first != d {
		k.fail("agreement: replicas differ in state after entry %d", index)
	}
	k.states[index] = d
}
