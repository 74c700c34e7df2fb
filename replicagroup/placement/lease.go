package placement

import (
	"maps"
	"slices"
	"time"

	"latchkey/internal/automaton"
	"latchkey/internal/invariant"
	"latchkey/replicagroup/order"
)

// Under policy [Leased] a prefix's group answers only while it holds a lease of its parent, and the parent makes the next
// generation of a group only when the lease of the one before is over on every clock within the overlay's drift
// (replica-groups.md section 6.5). So never do two generations of a prefix answer at one time (invariant I7). Both sides are here:
// the [LeaseHolder] of a peer that leads groups, and the [LeaseGrantor] of the parent's leader.

// Limits of leases.
const (
	// RenewGroupsMax bounds the groups of one renewal, which names all that a peer leads.
	RenewGroupsMax = 1 << 14 // as many as HostedMax
	// RenewalsMax bounds the renewals that wait at a parent's leader for it to confirm that it leads; a further one is answered at
	// once that nothing was granted, and its sender asks again.
	RenewalsMax = 1024
)

// Periods of leases, as parts of the lease and times.
const (
	renewEvery   = 3                // a renewal goes out every Lease/3, and counts as lost after as long
	renewRetry   = 20               // and Lease/20 after one that failed
	grantorEvery = 20               // a grantor looks for dead groups every Lease/20
	rollEvery    = 10 * time.Second // at most between two roll calls of a group that does not renew
	rollOften    = time.Second      // at least
	// unstartedWait is how much longer a group is left alone of whose members no majority has reported in: the parent is still telling
	// them to start.
	unstartedWait = 10 * time.Second
)

// LeaseWait returns how long, on its own clock, a parent waits after its last grant until the lease is over on every clock that obeys
// the drift: the lease and a margin of 2ρ/(1-ρ) of it.
func (g Genesis) LeaseWait() time.Duration { return g.Drift.Stretch(g.Lease) }

// HolderEvent is an input of a [LeaseHolder].
type HolderEvent interface{ isHolderEvent() }

// The events of a [LeaseHolder]; [Wake] is one too.
type (
	// Lead says that a replica here begins to lead its group. It does so without a lease.
	Lead struct{ Group order.GroupID }
	// Follow says that it leads no more.
	Follow struct{ Group order.GroupID }
	// Renewed says that the parent's leader has granted what a round asked for, but for Refused.
	Renewed struct {
		Round   uint64
		Refused []order.GroupID
	}
	// NotRenewed says that a round got no grant: nobody answered who leads the parent.
	NotRenewed struct{ Round uint64 }
)

func (Lead) isHolderEvent()       {}
func (Follow) isHolderEvent()     {}
func (Renewed) isHolderEvent()    {}
func (NotRenewed) isHolderEvent() {}
func (Wake) isHolderEvent()       {}

// HolderAction is an output of a [LeaseHolder].
type HolderAction interface{ isHolderAction() }

// The actions of a [LeaseHolder]; [Arm] is one too.
type (
	// SendRenew asks the parent's leader for the leases of Groups; answered by [Renewed] or [NotRenewed]. It is sent after the
	// instant of the step, never before.
	SendRenew struct {
		Round  uint64
		Groups []order.GroupID
	}
	// Hold says that Group may answer from From on and before Until. Both are zero when it has begun to lead.
	Hold struct {
		Group       order.GroupID
		From, Until automaton.Instant
	}
	// Refused says that the parent knows another generation of Group's prefix, or is about to make one.
	Refused struct{ Group order.GroupID }
)

func (SendRenew) isHolderAction() {}
func (Hold) isHolderAction()      {}
func (Refused) isHolderAction()   {}
func (Arm) isHolderAction()       {}

// lease is one leadership's lease.
type lease struct {
	from, until automaton.Instant
	asked       bool // some round has named it
}

// LeaseHolder keeps the leases of the groups that are led on one peer: one renewal for all of them every third of the lease. A
// lease counts from the step that asked for it, on this peer's own clock. Not safe for concurrent use.
type LeaseHolder struct {
	length     time.Duration
	quarantine time.Duration // of a group of a later generation
	leases     map[order.GroupID]*lease

	round    uint64
	waiting  map[order.GroupID]*lease // of the round under way; nil: none is
	sent     automaton.Instant        // when it was, or the last one
	next     automaton.Instant        // when the next one is due
	armed    automaton.Instant
	mutant   mutant
	lastSeen automaton.Instant
}

// NewLeaseHolder returns the holder of a peer of g's overlay that leads nothing yet.
func NewLeaseHolder(g Genesis) *LeaseHolder {
	h := &LeaseHolder{length: g.Lease, leases: make(map[order.GroupID]*lease), armed: automaton.Never}
	if g.OwnGroups {
		// What the former generation leased to groups of single keys must be over as well (section 6.5, quarantine).
		h.quarantine = g.LeaseWait()
	}
	return h
}

// Step consumes one event and appends what is to be done to out. It never blocks and never fails.
func (h *LeaseHolder) Step(ev HolderEvent, now automaton.Instant, out []HolderAction) []HolderAction {
	invariant.Check(now >= h.lastSeen, "a clock does not go back", now)
	h.lastSeen = now
	switch ev := ev.(type) {
	case Lead:
		l := new(lease)
		if ev.Group.Gen > 0 && h.quarantine > 0 {
			l.from = now.Add(h.quarantine)
		}
		h.leases[ev.Group] = l
		out = append(out, Hold{Group: ev.Group})
	case Follow:
		delete(h.leases, ev.Group)
	case Renewed:
		if h.waiting != nil && ev.Round == h.round {
			out = h.renewed(ev.Refused, now, out)
		}
	case NotRenewed:
		if h.waiting != nil && ev.Round == h.round {
			h.waiting = nil
			h.next = now.Add(h.length / renewRetry)
		}
	case Wake:
		h.armed = automaton.Never
	}
	return h.renew(now, out)
}

func (h *LeaseHolder) renewed(refused []order.GroupID, now automaton.Instant, out []HolderAction) []HolderAction {
	until := h.sent.Add(h.length)
	if h.mutant == mutantCountFromReply {
		until = now.Add(h.length)
	}
	no := make(map[order.GroupID]bool, len(refused))
	for _, g := range refused {
		no[g] = true
	}
	for _, g := range slices.SortedFunc(maps.Keys(h.waiting), order.GroupID.Compare) {
		l := h.waiting[g]
		switch {
		case h.leases[g] != l: // another leadership; it has to ask for itself
		case no[g]:
			out = append(out, Refused{g})
		default:
			l.until = until
			out = append(out, Hold{g, l.from, until})
		}
	}
	h.waiting = nil
	return out
}

// renew sends a round when one is due, or when a group waits for its first, and sees to being woken for the next.
func (h *LeaseHolder) renew(now automaton.Instant, out []HolderAction) []HolderAction {
	if h.waiting != nil && now >= h.sent.Add(h.length/renewEvery) {
		h.waiting = nil // lost; what comes of it yet is too old to be worth much
		h.next = now
	}
	fresh := false
	for _, l := range h.leases {
		fresh = fresh || !l.asked
	}
	if h.waiting == nil && len(h.leases) > 0 && (fresh || now >= h.next) {
		h.round++
		h.sent, h.next = now, now.Add(h.length/renewEvery)
		h.waiting = make(map[order.GroupID]*lease)
		groups := slices.SortedFunc(maps.Keys(h.leases), order.GroupID.Compare)
		groups = groups[:min(len(groups), RenewGroupsMax)] // a host runs no more
		for _, g := range groups {
			h.waiting[g] = h.leases[g]
			h.leases[g].asked = true
		}
		out = append(out, SendRenew{h.round, groups})
	}
	at := automaton.Never
	switch {
	case h.waiting != nil:
		at = h.sent.Add(h.length / renewEvery)
	case len(h.leases) > 0:
		at = h.next
	}
	if at != h.armed {
		h.armed = at
		out = append(out, Arm{at})
	}
	return out
}

// GrantorEvent is an input of a [LeaseGrantor].
type GrantorEvent interface{ isGrantorEvent() }

// The events of a [LeaseGrantor]; [Wake] is one too.
type (
	// Leads says that this replica of the parent begins to lead, or leads no more.
	Leads struct{ On bool }
	// Renew asks for the leases of Groups. It is answered by exactly one [AnswerRenew] with its Ref.
	Renew struct {
		Ref    uint64
		Groups []order.GroupID
	}
	// RoundEnded says that a majority of the parent has confirmed since the [StartRound] that this replica leads, and that the
	// directory is as it was then or later; or that it has not. Own is until when the parent itself may answer, Never for the root.
	RoundEnded struct {
		Round uint64
		OK    bool
		Own   automaton.Instant
	}
	// RollCalled answers a [CallRoll]: whether a majority of the last known view answers.
	RollCalled struct {
		Group    order.GroupID
		Majority bool
	}
	// Doom says that somebody who answers for it wants the next generation of Group, alive or not.
	Doom struct{ Group order.GroupID }
	// RevivalEnded answers a [Regenerate]: the next generation was made, or not.
	RevivalEnded struct{ Group order.GroupID }
)

func (Leads) isGrantorEvent()        {}
func (Renew) isGrantorEvent()        {}
func (RoundEnded) isGrantorEvent()   {}
func (RollCalled) isGrantorEvent()   {}
func (Doom) isGrantorEvent()         {}
func (RevivalEnded) isGrantorEvent() {}
func (Wake) isGrantorEvent()         {}

// GrantorAction is an output of a [LeaseGrantor].
type GrantorAction interface{ isGrantorAction() }

// The actions of a [LeaseGrantor]; [Arm] is one too.
type (
	// StartRound asks for a majority's confirmation that this replica leads, begun after this step; answered by [RoundEnded].
	StartRound struct{ Round uint64 }
	// AnswerRenew answers a [Renew]. With OK, everything but Refused is granted, which is in the order of the question.
	AnswerRenew struct {
		Ref     uint64
		OK      bool
		Refused []order.GroupID
	}
	// CallRoll asks the members of a group whether they run it; answered by [RollCalled].
	CallRoll struct{ Child Child }
	// Regenerate asks for the next generation of a group; answered by [RevivalEnded]. Before the command is proposed,
	// [LeaseGrantor.MayRevive] must allow it.
	Regenerate struct{ Child Child }
)

func (StartRound) isGrantorAction()  {}
func (AnswerRenew) isGrantorAction() {}
func (CallRoll) isGrantorAction()    {}
func (Regenerate) isGrantorAction()  {}
func (Arm) isGrantorAction()         {}

// watch is what a grantor remembers of one group, in memory only.
type watch struct {
	granted  automaton.Instant // last: or when this leadership began, or saw the group first
	silent   automaton.Instant // since when no roll call found a majority; Never: some did, or none was made
	nextRoll automaton.Instant
	rolling  bool
	doomed   bool // by an operator: nothing more is granted
	reviving bool // a Regenerate is not ended
	proposed bool // its command may be in the log: nothing more is granted
}

// LeaseGrantor is the side of a parent's leader: it grants leases to the live generations of its directory, and has the next
// generation made of a group whose lease is over for sure and of whose members no majority answers. It runs beside the
// parent's replica, on whose directory it looks. Bounds: [RenewalsMax], and one watch per child. Not safe for concurrent use.
type LeaseGrantor struct {
	directory *Directory
	wait      time.Duration // from a grant until the lease is over on every clock
	deadAfter time.Duration
	pause     time.Duration // between looks for dead groups

	leading bool
	watches map[order.GroupID]*watch
	round   uint64  // the one under way
	current []Renew // wait for it
	next    []Renew // came since it began, and wait for the one after it
	running bool    // a round is under way
	armed   automaton.Instant
	mutant  mutant
}

// NewLeaseGrantor returns the grantor of a replica of g's root group that does not lead yet. d is that replica's directory.
func NewLeaseGrantor(g Genesis, d *Directory) *LeaseGrantor {
	return &LeaseGrantor{directory: d, wait: g.LeaseWait(), deadAfter: g.DeadAfter, pause: g.Lease / grantorEvery,
		watches: make(map[order.GroupID]*watch), armed: automaton.Never}
}

// Step consumes one event and appends what is to be done to out. It never blocks and never fails.
func (t *LeaseGrantor) Step(ev GrantorEvent, now automaton.Instant, out []GrantorAction) []GrantorAction {
	switch ev := ev.(type) {
	case Leads:
		out = t.lead(ev.On, now, out)
	case Renew:
		out = t.renew(ev, now, out)
	case RoundEnded:
		if t.running && ev.Round == t.round {
			out = t.roundEnded(ev, now, out)
		}
	case RollCalled:
		out = t.rollCalled(ev, now, out)
	case Doom:
		if w := t.watch(ev.Group, now); w != nil && t.leading {
			w.doomed = true
			out = t.look(now, out)
		}
	case RevivalEnded:
		if w := t.watches[ev.Group]; w != nil {
			w.reviving = false
			w.nextRoll = now.Add(rollOften)
		}
	case Wake:
		t.armed = automaton.Never
		out = t.look(now, out)
	}
	at := automaton.Never
	if t.leading {
		at = t.armed
		if at == automaton.Never {
			at = now.Add(t.pause)
		}
	}
	if at != t.armed {
		t.armed = at
		out = append(out, Arm{at})
	}
	return out
}

// lead begins or ends a leadership. A new leader knows nothing of what the one before it has granted, so every group counts as
// granted now: a lease of the former leader was asked for before this one was elected.
func (t *LeaseGrantor) lead(on bool, now automaton.Instant, out []GrantorAction) []GrantorAction {
	for _, r := range slices.Concat(t.current, t.next) {
		out = append(out, AnswerRenew{Ref: r.Ref})
	}
	t.current, t.next, t.running = nil, nil, false
	t.leading = on
	clear(t.watches)
	if on {
		for _, ch := range t.directory.children {
			w := t.watch(ch.Group, now)
			if t.mutant == mutantNewLeaderNoWait {
				w.granted = now.Add(-t.wait)
			}
		}
	}
	return out
}

// watch returns the watch of a live generation, nil for another one. What is seen for the first time counts as granted now.
func (t *LeaseGrantor) watch(g order.GroupID, now automaton.Instant) *watch {
	if ch, ok := t.directory.Lookup(g.Prefix); !ok || ch.Group != g {
		return nil
	}
	w := t.watches[g]
	if w == nil {
		w = &watch{granted: now, silent: automaton.Never}
		t.watches[g] = w
	}
	return w
}

func (t *LeaseGrantor) renew(ev Renew, now automaton.Instant, out []GrantorAction) []GrantorAction {
	switch {
	case !t.leading || len(t.current)+len(t.next) >= RenewalsMax:
		return append(out, AnswerRenew{Ref: ev.Ref})
	case t.mutant == mutantUnconfirmed:
		return t.grant(ev, now, out)
	case t.running: // that round began before this came
		t.next = append(t.next, ev)
		return out
	}
	t.current = append(t.current, ev)
	return t.startRound(out)
}

func (t *LeaseGrantor) startRound(out []GrantorAction) []GrantorAction {
	t.round++
	t.running = true
	return append(out, StartRound{t.round})
}

func (t *LeaseGrantor) roundEnded(ev RoundEnded, now automaton.Instant, out []GrantorAction) []GrantorAction {
	for _, r := range t.current {
		// A parent that has no lease itself must not lend what may outlive its own by more than a lease.
		// Nor may a new root lend what a later generation, of which it has not heard yet, may have of the former root.
		if ev.OK && t.leading && now < ev.Own && (t.directory.Open() || t.mutant == mutantGrantInQuarantine) {
			out = t.grant(r, now, out)
		} else {
			out = append(out, AnswerRenew{Ref: r.Ref})
		}
	}
	t.current, t.next, t.running = t.next, nil, false
	if len(t.current) > 0 {
		out = t.startRound(out)
	}
	return out
}

// grant answers a renewal after its round. The directory says which generations live, and a generation whose successor may be
// in the log already lives no more.
func (t *LeaseGrantor) grant(r Renew, now automaton.Instant, out []GrantorAction) []GrantorAction {
	a := AnswerRenew{Ref: r.Ref, OK: true}
	for _, g := range r.Groups {
		w := t.watch(g, now)
		if t.mutant == mutantRenewDead {
			continue
		}
		if w == nil || w.doomed || w.proposed {
			a.Refused = append(a.Refused, g)
			continue
		}
		w.granted, w.silent, w.reviving = now, automaton.Never, false
	}
	return append(out, a)
}

// look finds the groups whose leases are over.
func (t *LeaseGrantor) look(now automaton.Instant, out []GrantorAction) []GrantorAction {
	if !t.leading {
		return out
	}
	for _, p := range t.directory.sorted() {
		ch := t.directory.children[p]
		w := t.watch(ch.Group, now)
		over := w.granted.Add(t.wait)
		if !w.doomed && !ch.majority() {
			over = over.Add(unstartedWait)
		}
		switch {
		case now < over || w.rolling || w.reviving || now < w.nextRoll:
		case w.doomed || w.proposed:
			w.reviving = true
			out = append(out, Regenerate{ch})
		default:
			if w.rolling = true; w.silent == automaton.Never {
				w.silent = now
			}
			out = append(out, CallRoll{ch})
		}
	}
	maps.DeleteFunc(t.watches, func(g order.GroupID, _ *watch) bool { return t.watch(g, now) == nil }) // generations that are over
	return out
}

func (t *LeaseGrantor) rollCalled(ev RollCalled, now automaton.Instant, out []GrantorAction) []GrantorAction {
	w := t.watch(ev.Group, now)
	if w == nil || !w.rolling {
		return out
	}
	w.rolling = false
	w.nextRoll = now.Add(min(max(t.deadAfter/grantorEvery, rollOften), rollEvery))
	ch, _ := t.directory.Lookup(ev.Group.Prefix)
	switch {
	case w.silent == automaton.Never || !t.leading: // it has renewed since
	case ev.Majority: // it lives, and may find a leader yet
		w.silent = automaton.Never
	case now.Sub(w.silent) >= t.deadAfter:
		w.reviving = true
		out = append(out, Regenerate{ch})
	}
	return out
}

// MayRevive reports whether the command that ends a generation may be proposed in this very moment, by this very leader: its lease
// must be over on every clock, counted from this leader's last grant or from its election. When it may, nothing is granted to that
// generation any more as long as this replica leads.
func (t *LeaseGrantor) MayRevive(g order.GroupID, now automaton.Instant) bool {
	w := t.watches[g]
	if !t.leading || w == nil || !w.reviving && !w.proposed || now < w.granted.Add(t.wait) {
		return false
	}
	w.proposed = true
	return true
}
