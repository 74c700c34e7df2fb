package transfer

import (
	"slices"

	"latchkey/internal/automaton"
)

// Verdicts is what a [Gate] decides about streams, which the driver names by numbers of its own.
type Verdicts struct {
	Admit  []Admission
	Refuse []Refusal // it was not admitted: tell the sender, and end the stream
	Cut    []Refusal // it was: end it, and report that
}

// Admission lets a stream begin, with what is here of its content.
type Admission struct {
	Stream   uint64
	Incoming *Incoming // the stream's until its end
}

// Refusal is the end of a stream.
type Refusal struct {
	Stream uint64
	Code   Code
}

// Gate is the receiving side of a node: which offers are admitted, which wait, and what is kept of broken ones. The zero value is ready.
//
// Invariants: of each key at most one stream is admitted and at most one waits; at most InMax are admitted, InQueueMax wait and
// ParkedMax are parked.
type Gate struct {
	admitted []*visit
	line     []*visit
	parked   []parked // by the time they came
}

type visit struct {
	stream  uint64
	key     Key
	content Sum
	size    int
	cut     bool
}

type parked struct {
	key      Key
	incoming *Incoming
	until    automaton.Instant
}

// Counts returns how many transfers are admitted, wait, and are parked.
func (g *Gate) Counts() (admitted, waiting, kept int) {
	return len(g.admitted), len(g.line), len(g.parked)
}

// Offered asks for admission. Who offers what was offered before takes its place: a replica is sent a snapshot by its leader only, so the
// newest sender is the one to listen to, whether the former has noticed that it is none or not.
func (g *Gate) Offered(stream uint64, o Offer, now automaton.Instant, out *Verdicts) {
	v := &visit{stream: stream, key: o.Key, content: o.Content, size: o.Size}
	for _, a := range g.admitted {
		if a.key == v.key {
			g.cut(a, Superseded, out)
		}
	}
	at := slices.IndexFunc(g.line, func(w *visit) bool { return w.key == v.key })
	switch {
	case at >= 0:
		out.Refuse = append(out.Refuse, Refusal{g.line[at].stream, Superseded})
		g.line[at] = v
	case len(g.line) >= InQueueMax:
		out.Refuse = append(out.Refuse, Refusal{stream, Busy})
		return
	default:
		g.line = append(g.line, v)
	}
	g.fill(now, out)
}

// Ended says that a stream is over, admitted or not. keep is what is left of an admitted one that may be resumed.
func (g *Gate) Ended(stream uint64, keep *Incoming, now automaton.Instant, out *Verdicts) {
	is := func(v *visit) bool { return v.stream == stream }
	if at := slices.IndexFunc(g.admitted, is); at >= 0 {
		if v := g.admitted[at]; keep != nil && keep.Has() > 0 {
			g.park(parked{v.key, keep, now.Add(ParkFor)})
		}
		g.admitted = slices.Delete(g.admitted, at, at+1)
	}
	g.line = slices.DeleteFunc(g.line, is)
	g.fill(now, out)
}

// Tick forgets what was kept long enough; see [Gate.Next].
func (g *Gate) Tick(now automaton.Instant) {
	g.parked = slices.DeleteFunc(g.parked, func(p parked) bool { return p.until <= now })
}

// Next returns when [Gate.Tick] is due, at the latest; Never when nothing is kept.
func (g *Gate) Next() automaton.Instant {
	if len(g.parked) == 0 {
		return automaton.Never
	}
	return g.parked[0].until
}

func (g *Gate) park(p parked) {
	g.parked = slices.DeleteFunc(g.parked, func(o parked) bool { return o.key == p.key })
	if len(g.parked) == ParkedMax {
		g.parked = slices.Delete(g.parked, 0, 1)
	}
	g.parked = append(g.parked, p)
}

// fill admits those whose turn it is. One whose key is still admitted, to a stream that was told to end, lets others go first.
func (g *Gate) fill(now automaton.Instant, out *Verdicts) {
	g.Tick(now)
	for i := 0; i < len(g.line) && len(g.admitted) < InMax; {
		v := g.line[i]
		if slices.ContainsFunc(g.admitted, func(a *visit) bool { return a.key == v.key }) {
			i++
			continue
		}
		g.line = slices.Delete(g.line, i, i+1)
		g.admitted = append(g.admitted, v)
		in := NewIncoming(v.content, v.size)
		if at := slices.IndexFunc(g.parked, func(p parked) bool { return p.key == v.key }); at >= 0 {
			if p := g.parked[at].incoming; p.content == v.content && p.size == v.size {
				in = p
			}
			g.parked = slices.Delete(g.parked, at, at+1)
		}
		out.Admit = append(out.Admit, Admission{v.stream, in})
	}
}

func (g *Gate) cut(v *visit, c Code, out *Verdicts) {
	if !v.cut {
		v.cut = true
		out.Cut = append(out.Cut, Refusal{v.stream, c})
	}
}
