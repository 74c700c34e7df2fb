package lockservice

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/lockservice/sigma"
	sigmapb "latchkey/lockservice/sigma/pb"
	"latchkey/replicagroup/quorum"
)

// Which names voters keep. Each of them is asked for a page of its table, and what a majority says of the names up to where the shortest
// page ends is put together as for one name: whoever holds a lock is known to a majority, so no lock that is held all the while is
// missed. A page walks the whole table of a voter once, so a voter makes one each listPause at most; who asks more often is not
// answered, and asks again.

// listPause is the least time between two pages that a voter makes of one group.
const listPause = 10 * time.Millisecond

// embargoWait is for how long a majority of voters that grant again is waited for, as after a restart or in a new view: until then the
// others may not have told them what they know. After that what they know is all there is to tell.
const embargoWait = 2 * time.Second

// listLookupPause is the least time between two look-ups of a group whose voters do not tell of their names. It leaves room for several
// within [ListGroupTimeout].
const listLookupPause = 500 * time.Millisecond

// lists reports whether this voter can answer a LIST: it is of the present view, or no view has begun.
func (w *sigmaVoter) lists(m *sigma.Message) bool {
	if w.view == (sigma.ViewID{}) {
		return m.View.Num == 0 && w.locks
	}
	return w.member && m.View == w.view
}

// list answers with a page. A voter that has no replica has nothing, unless it has restarted and has to find out first. Where no view has
// begun nobody has anything: had one begun before the question, one of a majority knew.
func (w *sigmaVoter) list(to keyspace.NodeID, m *sigma.Message) {
	if w.silent {
		return
	}
	if w.view == (sigma.ViewID{}) && w.restarted && !w.caught {
		w.seat.CatchUp() // one may have begun in the former life; it is asked again
		return
	}
	now := w.seat.Now()
	if w.listed != 0 && now.Sub(w.listed) < listPause {
		return
	}
	w.listed = now
	answer := sigma.Message{Kind: sigma.Listed, View: m.View, Name: m.Name, Req: m.Req, TS: m.TS, Report: &sigma.Report{Chunks: 1}}
	if (w.replica != nil || w.restarted) && w.awaken() {
		w.step(sigma.Event{Kind: sigma.Timer}) // what is over by now is over in the list
		answer.Report.Entries, answer.Ack, answer.Embargo = w.replica.List(m.Name, sigma.ReportEntriesMax)
	}
	w.send(to, &answer)
}

// listing is what is known of the names of one group from one on: those up to last, or all when last is empty.
type listing struct {
	locks  []Info // by rising name
	last   string
	unsure bool // most voters may not know of everybody
}

// list asks the voters of the group that owns key for their names from one on. It blocks until a majority has answered, or ctx ends.
func (s *Sigma) list(ctx context.Context, key keyspace.Key, from string) (l listing, err error) {
	q, as, err := s.ask()
	if err != nil {
		return l, err
	}
	defer s.asked(as)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.life, func() { cancel(ErrClosed) })()
	g, d, err := s.place(ctx, key)
	if err != nil {
		return l, groupError(ctx, err)
	}
	answers := make(map[keyspace.NodeID]*sigma.Message)
	send := func() {
		m := sigma.Message{Kind: sigma.List, View: d.View, Name: from, Req: sigma.Req{Session: as, Seq: 1}, TS: s.clock.Load()}
		frame, err := sigmapb.EncodeFrame(nil, g, &m)
		if err != nil {
			log.Errorw("cannot encode a question of our own", "err", err)
			return
		}
		for _, n := range d.Members {
			if answers[n] == nil {
				s.cfg.Net.Send(n, key, frame)
			}
		}
	}
	pause, begun, looked := askAgainMin, s.cfg.Clock.Now(), s.cfg.Clock.Now()
	again, late := time.NewTimer(pause), time.NewTimer(time.Hour)
	defer again.Stop()
	defer late.Stop()
	at := func(next sigmapb.Group, in sigma.Descriptor) {
		g, d = next, in
		clear(answers)
		late.Reset(time.Hour)
		pause = askAgainMin
		again.Reset(pause)
		send()
	}
	// unsure lets go of what voters say that may not know of everybody yet, so that they are asked again, unless that has taken long.
	unsure := func() bool {
		if knowing(d, answers) || s.cfg.Clock.Now().Sub(begun) >= embargoWait {
			return false
		}
		maps.DeleteFunc(answers, func(_ keyspace.NodeID, m *sigma.Message) bool { return m.Embargo > 0 })
		late.Reset(time.Hour)
		return true
	}
	wrong := false // a voter has said that the group is not there
	send()
	for {
		select {
		case a := <-q.answers:
			m := a.msg
			switch {
			case a.at.Prefix != g.Prefix || a.at.Gen < g.Gen || !slices.Contains(d.Members, a.from):
			case m.Kind == sigma.WrongGen:
				wrong = true
			case m.Kind == sigma.Moved && m.View.Compare(d.View) > 0:
				if in := (sigma.Descriptor{View: m.View, Members: m.Members}); in.Valid() {
					s.moved(a.at, in)
					at(a.at, in)
				}
			case m.Kind == sigma.Listed && m.View == d.View && m.Name == from:
				answers[a.from] = m
				switch n := len(answers); {
				case n == len(d.Members):
					if !unsure() {
						return s.mergeListing(d, answers), nil
					}
				case n == quorum.Majority(len(d.Members)):
					late.Reset(lateWait)
				}
			}
		case <-late.C:
			if unsure() {
				continue
			}
			return s.mergeListing(d, answers), nil
		case <-again.C:
			pause = min(2*pause, askAgainMax)
			again.Reset(pause)
			// A view that is gone answers nothing, or that it is not there.
			now := s.cfg.Clock.Now()
			if few := len(answers) < quorum.Majority(len(d.Members)); few && (now.Sub(looked) >= listLookupPause || wrong && looked == begun) {
				looked, wrong = now, false
				if found, err := s.cfg.Net.Locate(ctx, key, true); err == nil && (found.Group.Gen > g.Gen || !slices.Equal(sorted(found.Voters), d.Members)) {
					s.found(found)
					at(found.Group, sigma.Descriptor{View: sigma.ViewID{Gen: found.Group.ViewGen()}, Members: sorted(found.Voters)})
					continue
				}
			}
			send()
		case <-ctx.Done():
			if n := len(answers); n < quorum.Majority(len(d.Members)) && s.life.Err() == nil {
				return l, fmt.Errorf("%w: %d of %d replicas answer: %w", ErrNoQuorum, n, len(d.Members), context.Cause(ctx))
			}
			return l, context.Cause(ctx)
		}
	}
}

// knowing reports whether a majority of voters has answered that has forgotten nothing.
func knowing(d sigma.Descriptor, answers map[keyspace.NodeID]*sigma.Message) bool {
	granting := 0
	for _, m := range answers {
		if m.Embargo == 0 {
			granting++
		}
	}
	return granting >= quorum.Majority(len(d.Members))
}

// mergeListing puts the pages of a majority together.
func (s *Sigma) mergeListing(d sigma.Descriptor, answers map[keyspace.NodeID]*sigma.Message) (l listing) {
	l.unsure = !knowing(d, answers)
	byName := make(map[string]map[keyspace.NodeID]*sigma.Message)
	for n, m := range answers {
		if e := m.Report.Entries; m.Ack && len(e) > 0 && (l.last == "" || e[len(e)-1].Name < l.last) {
			l.last = e[len(e)-1].Name
		}
		for _, e := range m.Report.Entries {
			if byName[e.Name] == nil {
				byName[e.Name] = make(map[keyspace.NodeID]*sigma.Message)
			}
			byName[e.Name][n] = &sigma.Message{Embargo: m.Embargo, Position: len(e.Queue), Report: &sigma.Report{Entries: []sigma.ReportEntry{e}}}
		}
	}
	for name, said := range byName {
		if l.last != "" && name > l.last {
			continue
		}
		for n, m := range answers {
			if said[n] == nil {
				said[n] = &sigma.Message{Embargo: m.Embargo, Report: new(sigma.Report)}
			}
		}
		l.locks = append(l.locks, s.merge(name, d, said))
	}
	slices.SortFunc(l.locks, byListedName)
	return l
}
