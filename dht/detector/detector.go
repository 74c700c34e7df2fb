package detector

import (
	"slices"
	"strings"
	"time"

	"latchkey/internal/automaton"
)

// Detector watches peers. It is not safe for concurrent use: one driver, or one simulator, owns it. The zero value watches nobody and is
// ready.
type Detector struct {
	watches []*watch // by peer
	ticked  automaton.Instant
	stalled automaton.Instant // when we last found that we had been stopped
}

// watch is what is known of one peer.
type watch struct {
	peer      Peer
	active    bool
	suspected bool
	known     bool // heard since the last connection to it was lost, if any was
	fresh     bool // heard since the last tick

	// silence and unpinged are the ticks since the last sign of life and the last ping.
	silence, unpinged time.Duration

	reached        automaton.Instant // when it became known, or trusted again; pings before that waited for something else
	late           bool              // one of those counts yet
	measured       bool
	rtt, deviation time.Duration // smoothed

	nonce    uint64 // 0: none yet
	since    automaton.Instant
	replaced []uint64 // nonces before that, the latest last
	// returned and alarmed say whether a replaced nonce has come back, and whether there was an alarm; the instants, when last.
	returned, alarmed     bool
	returnedAt, alarmedAt automaton.Instant
}

// Step consumes ev at instant now, which never goes back, and appends what must be done to out. It never blocks or fails: what is about
// a peer that is not watched is dropped.
func (d *Detector) Step(ev Event, now automaton.Instant, out []Action) []Action {
	switch ev.(type) {
	case Watch, Heard, Beat, Lost:
		if next := d.Next(); next != automaton.Never && now.Sub(next) >= StallMin {
			out = d.tick(now, out) // whatever comes first tells that we were stopped
		}
	}
	switch ev := ev.(type) {
	case Watch:
		return d.watch(ev, now, out)
	case Unwatch:
		if i, ok := d.find(ev.Peer); ok {
			d.watches = slices.Delete(d.watches, i, i+1)
		}
	case Tick:
		return d.tick(now, out)
	case Heard:
		if w := d.of(ev.Peer); w != nil {
			return w.hear(now, out)
		}
	case Beat:
		if w := d.of(ev.Peer); w != nil {
			out = w.hear(now, out)
			if ev.Answer && ev.Echo >= d.stalled && ev.Echo <= now {
				w.answered(ev.Echo, now)
			}
			return w.boot(ev.Nonce, now, out)
		}
	case Lost:
		if w := d.of(ev.Peer); w != nil {
			return w.lose(out)
		}
	}
	return out
}

// Next returns when the next [Tick] is due, [automaton.Never] while nobody is watched.
func (d *Detector) Next() automaton.Instant {
	if len(d.watches) == 0 {
		return automaton.Never
	}
	return d.ticked.Add(d.period())
}

// Suspected reports whether the peer is watched and suspected.
func (d *Detector) Suspected(p Peer) bool {
	w := d.of(p)
	return w != nil && w.suspected
}

func (d *Detector) find(p Peer) (int, bool) {
	return slices.BinarySearchFunc(d.watches, p, func(w *watch, p Peer) int { return strings.Compare(string(w.peer), string(p)) })
}

func (d *Detector) of(p Peer) *watch {
	if i, ok := d.find(p); ok {
		return d.watches[i]
	}
	return nil
}

func (d *Detector) watch(ev Watch, now automaton.Instant, out []Action) []Action {
	i, ok := d.find(ev.Peer)
	if ok {
		d.watches[i].active = ev.Active
		return out
	}
	if len(d.watches) == 0 {
		d.ticked = now // no tick was due before
	}
	d.watches = slices.Insert(d.watches, i, &watch{peer: ev.Peer, active: ev.Active})
	return append(out, Ping{ev.Peer})
}

// period is the time between two ticks.
func (d *Detector) period() time.Duration {
	if slices.ContainsFunc(d.watches, func(w *watch) bool { return w.active }) {
		return TickActive
	}
	return TickIdle
}

func (d *Detector) tick(now automaton.Instant, out []Action) []Action {
	passed, period := now.Sub(d.ticked), d.period()
	if passed < period {
		return out // too early
	}
	d.ticked = now
	stalled := passed-period >= StallMin
	if stalled {
		d.stalled = now
	}
	for _, w := range d.watches {
		out = w.tick(min(passed, period+TickSlack), stalled, now, out)
	}
	return out
}

// tick counts a tick of a length. A peer that was heard within it has been silent for less than that, which counts as nothing.
func (w *watch) tick(length time.Duration, stalled bool, now automaton.Instant, out []Action) []Action {
	w.unpinged += length
	switch {
	case stalled:
		w.silence, w.since = 0, now
		w.unpinged = max(w.unpinged, NonceInterval) // answers, if there were any, were for a long time ago
	case w.fresh:
		w.silence = 0
	default:
		w.silence += length
	}
	w.fresh = false
	if !w.suspected && w.silence >= w.patience() {
		w.suspected = true
		out = append(out, Suspect{w.peer, w.silence})
	}
	if w.unpinged >= NonceInterval || !w.suspected && w.silence >= w.interval() && w.unpinged >= w.interval() {
		w.unpinged = 0
		out = append(out, Ping{w.peer})
	}
	return out
}

func (w *watch) interval() time.Duration {
	if w.active {
		return IntervalActive
	}
	return IntervalIdle
}

// patience is how long the peer may be silent.
func (w *watch) patience() time.Duration {
	p := w.interval() + min(max(w.rtt+4*max(w.deviation, DeviationMin), w.interval()), AnswerMax)
	if !w.known {
		p = max(p, FirstPatience)
	}
	return p
}

// hear takes note of a sign of life.
func (w *watch) hear(now automaton.Instant, out []Action) []Action {
	if w.suspected || !w.known {
		w.late = w.known
		w.known, w.reached = true, now
	}
	w.fresh, w.silence = true, 0
	if w.suspected {
		w.suspected = false
		out = append(out, Trust{w.peer})
	}
	return out
}

// lose suspects a peer that no connection is left to, and looks for it at once.
func (w *watch) lose(out []Action) []Action {
	if !w.suspected {
		w.suspected = true
		out = append(out, Suspect{w.peer, 0})
	}
	w.known, w.fresh, w.unpinged = false, false, 0
	return append(out, Ping{w.peer})
}

// answered measures the round trip of a ping sent at echo. Of those sent to a silent peer one counts, as the reason for a little more
// patience, since it may be the network that is slower now; there are more such answers the longer the peer was stopped.
func (w *watch) answered(echo, now automaton.Instant) {
	rtt := now.Sub(echo)
	switch {
	case echo >= w.reached:
		w.measure(rtt)
	case w.late:
		w.late, w.measured = false, true // never as the first measurement, which counts in full
		w.measure(min(rtt, w.patience()))
	}
}

// measure takes a round trip into account. It is the peer's word that the answer belongs to that ping, so it is bounded by what it may
// cost; only the peer itself is given more patience for it.
func (w *watch) measure(rtt time.Duration) {
	rtt = min(rtt, AnswerMax)
	if !w.measured {
		w.measured, w.rtt, w.deviation = true, rtt, rtt/2
		return
	}
	w.deviation += (max(rtt-w.rtt, w.rtt-rtt) - w.deviation) / 4
	w.rtt += (rtt - w.rtt) / 8
}

// boot compares the peer's boot nonce with those before.
func (w *watch) boot(nonce uint64, now automaton.Instant, out []Action) []Action {
	if nonce == w.nonce || nonce == 0 {
		return out
	}
	if i := slices.Index(w.replaced, nonce); i >= 0 {
		if now.Sub(w.since) < NonceGrace {
			return out // it was on its way
		}
		// The first return may be of the present life, when what we took for a newer one was a straggler of an older.
		if w.returned && now.Sub(w.returnedAt) < AlarmInterval && (!w.alarmed || now.Sub(w.alarmedAt) >= AlarmInterval) {
			w.alarmed, w.alarmedAt = true, now
			out = append(out, Alarm{Peer: w.peer, Nonces: [2]uint64{w.nonce, nonce}})
		}
		w.returned, w.returnedAt = true, now
		w.replaced = slices.Delete(w.replaced, i, i+1)
	}
	if w.nonce != 0 {
		w.replaced = append(w.replaced, w.nonce)
		w.replaced = w.replaced[max(len(w.replaced)-noncesMax, 0):]
	}
	w.nonce, w.since = nonce, now
	return out
}
