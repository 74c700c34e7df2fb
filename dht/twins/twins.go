package twins

import (
	"cmp"
	"slices"

	"latchkey/internal/automaton"
)

// Limits of a [Judge]'s memory.
const (
	// PeersMax is how many peers are remembered. For one more, the one that was not heard of for longest is forgotten, of those that
	// were not refused if there are any. A peer that is forgotten may be a copy unnoticed, and is not accused for it.
	PeersMax = 4096

	// StoresMax is how many stores of one peer are remembered. A peer has one, and another one after it lost that or was restored.
	StoresMax = 4

	// AlarmsMax is how many alarms are raised about one peer's claims. What follows is refused like the others, in silence.
	AlarmsMax = 8
)

// Peer names an identity, such as by the bytes of its libp2p peer id.
type Peer string

// Boot is one start of one store. It is comparable.
type Boot struct {
	Store [16]byte // id; zero: the process keeps no store, and there is nothing to judge
	Count uint64   // how often the store has been started, from 1
	Nonce uint64   // drawn at random for this start
}

// Sighting is what a peer has said of itself.
type Sighting struct {
	Peer Peer
	Boot Boot
	// Asked is the instant, by our clock, after which the question left that the message answers. Zero for what came unasked: it
	// may be as old as it likes.
	Asked automaton.Instant
}

// Verdict says what to do with whoever was heard.
type Verdict uint8

// The verdicts of a [Judge].
const (
	Accept Verdict = iota
	Late           // words of a start that was followed by another, as far as we know
	Refuse         // one of two
)

// Alarm says that a store runs in two places.
type Alarm struct {
	Peer  Peer
	Other Peer // who claims the same store under another identity; empty: Peer is two, and both are refused
	Store [16]byte
	Boots [2]Boot // the one that was known, and the one that contradicts it
}

// Judge judges sightings. It is not safe for concurrent use: one driver, or one simulator, owns it. The zero value has heard of
// nobody and is ready.
type Judge struct {
	peers   map[Peer]*record
	holders map[[16]byte]*holder // of the stores that peers of the map claim
	clock   uint64               // counts sightings
	mutant  Mutant
}

// record is what is known of one peer.
type record struct {
	claims []claim // in the order of their first sighting; one for each store
	heard  uint64
	alarms int
}

type claim struct {
	boot    Boot              // of the highest count
	since   automaton.Instant // when that was heard of first
	refused bool
}

// holder is the peer with the highest count of a store, whoever claims it.
type holder struct {
	peer    Peer
	boot    Boot
	since   automaton.Instant
	alarmed bool
}

// See takes note of what was heard at instant now, which never goes back and is after everything it says. The alarm is nil but at the
// first sign that a store runs twice. It never blocks or fails.
func (j *Judge) See(s Sighting, now automaton.Instant) (Verdict, *Alarm) {
	if s.Boot.Store == ([16]byte{}) {
		return Accept, nil
	}
	j.clock++
	r := j.record(s.Peer)
	r.heard = j.clock
	c := j.claim(s.Peer, r, s.Boot.Store)
	v := Refuse
	if !c.refused {
		known := c.boot
		if v = j.weigh(&c.boot, &c.since, s, now); v == Refuse {
			c.refused = true
			if r.alarms++; r.alarms <= AlarmsMax {
				return v, &Alarm{Peer: s.Peer, Store: s.Boot.Store, Boots: [2]Boot{known, s.Boot}}
			}
		}
	}
	return v, j.share(s, r, now)
}

// Condemn refuses a peer with a store, on the word of somebody who is believed to have proof. It reports whether that is new.
func (j *Judge) Condemn(p Peer, store [16]byte) bool {
	if store == ([16]byte{}) {
		return false
	}
	j.clock++
	r := j.record(p)
	r.heard = j.clock
	c := j.claim(p, r, store)
	was := c.refused
	c.refused = true
	return !was
}

// weigh compares a boot with the highest one known, which it replaces if it is higher.
func (j *Judge) weigh(known *Boot, since *automaton.Instant, s Sighting, now automaton.Instant) Verdict {
	switch {
	case s.Boot.Count > known.Count:
		*known, *since = s.Boot, now
		return Accept
	case s.Boot == *known, j.mutant == MutantCountsOnly && s.Boot.Count == known.Count:
		return Accept
	case s.Boot.Count == known.Count:
		return Refuse
	case s.Asked > *since, j.mutant == MutantAnyWord, j.mutant == MutantAnyAnswer && s.Asked > 0:
		return Refuse
	}
	return Late
}

// share looks whether somebody of another identity claims the same store, and lives.
func (j *Judge) share(s Sighting, r *record, now automaton.Instant) *Alarm {
	h := j.holders[s.Boot.Store]
	if h == nil {
		j.holders[s.Boot.Store] = &holder{peer: s.Peer, boot: s.Boot, since: now}
		return nil
	}
	known := *h
	v := j.weigh(&h.boot, &h.since, s, now)
	if h.boot != known.boot {
		h.peer = s.Peer
	}
	twice := v == Refuse || s.Boot == known.boot // nobody else can have drawn that nonce
	if known.peer == s.Peer || !twice || h.alarmed {
		return nil
	}
	h.alarmed = true
	if r.alarms++; r.alarms > AlarmsMax {
		return nil
	}
	return &Alarm{Peer: known.peer, Other: s.Peer, Store: s.Boot.Store, Boots: [2]Boot{known.boot, s.Boot}}
}

// Refused reports whether the peer is one of two, by the store whose latest start was heard of last.
func (j *Judge) Refused(p Peer) bool {
	r := j.peers[p]
	if r == nil {
		return false
	}
	return slices.MaxFunc(r.claims, func(a, b claim) int { return cmp.Compare(a.since, b.since) }).refused
}

// Refuses reports whether the peer was refused with this store.
func (j *Judge) Refuses(p Peer, store [16]byte) bool {
	r := j.peers[p]
	return r != nil && slices.ContainsFunc(r.claims, func(c claim) bool { return c.boot.Store == store && c.refused })
}

// record returns what is known of a peer, and makes room for a new one.
func (j *Judge) record(p Peer) *record {
	if r := j.peers[p]; r != nil {
		return r
	}
	if j.peers == nil {
		j.peers, j.holders = make(map[Peer]*record), make(map[[16]byte]*holder)
	}
	if len(j.peers) >= PeersMax {
		j.forget()
	}
	r := new(record)
	j.peers[p] = r
	return r
}

// forget drops the peer that was heard of longest ago.
func (j *Judge) forget() {
	var oldest Peer
	var best *record
	for p, r := range j.peers {
		if best == nil || r.refused() == best.refused() && r.heard < best.heard || !r.refused() && best.refused() {
			oldest, best = p, r
		}
	}
	for _, c := range best.claims {
		j.release(oldest, c.boot.Store)
	}
	delete(j.peers, oldest)
}

func (r *record) refused() bool {
	return slices.ContainsFunc(r.claims, func(c claim) bool { return c.refused })
}

// claim returns what is known of a peer's store, and makes room for a new one.
func (j *Judge) claim(p Peer, r *record, store [16]byte) *claim {
	if i := slices.IndexFunc(r.claims, func(c claim) bool { return c.boot.Store == store }); i >= 0 {
		return &r.claims[i]
	}
	if len(r.claims) >= StoresMax {
		i := max(0, slices.IndexFunc(r.claims, func(c claim) bool { return !c.refused }))
		j.release(p, r.claims[i].boot.Store)
		r.claims = slices.Delete(r.claims, i, i+1)
	}
	r.claims = append(r.claims, claim{boot: Boot{Store: store}})
	return &r.claims[len(r.claims)-1]
}

// release forgets that the peer holds the store.
func (j *Judge) release(p Peer, store [16]byte) {
	if h := j.holders[store]; h != nil && h.peer == p {
		delete(j.holders, store)
	}
}
