package placement

import (
	"errors"
	"fmt"
	"slices"

	"latchkey/dht/keyspace"
	"latchkey/internal/invariant"
	"latchkey/replicagroup/order"
)

// Limits of a [Hosting].
const (
	ConfirmingMax    = 64      // Starts being confirmed with the parent; a further one gets ErrHostBusy, its sender repeats
	StartsWaitingMax = 16      // Starts of one group that wait for one confirmation
	HostedMax        = 1 << 14 // groups this peer takes part in; beyond, it declines to host
)

// Why a member refuses a Start.
var (
	ErrOverlay     = errors.New("placement: group of another overlay")
	ErrNotMember   = errors.New("placement: this peer is not a member of the group")
	ErrStore       = errors.New("placement: the group names another store of this peer")
	ErrRetired     = errors.New("placement: this replica was removed from the group before")
	ErrUnconfirmed = errors.New("placement: the parent group did not confirm the group")
	ErrHostBusy    = errors.New("placement: too many groups are being started here")
	ErrNotHosting  = errors.New("placement: this peer hosts no groups")
	ErrSender      = errors.New("placement: told to start by a peer that belongs neither to the group nor to its parent")
)

// HostingEvent is an input of a [Hosting].
type HostingEvent interface{ isHostingEvent() }

// The events of a [Hosting].
type (
	// WillYouHost asks whether this peer would run a replica of Prefix's group; answered by [AnswerHost].
	WillYouHost struct {
		Ref    uint64
		Prefix keyspace.Prefix
	}
	// Probe asks whether this peer is fit to be anybody's neighbour; answered by [AnswerProbe].
	Probe struct{ Ref uint64 }
	// StartReplica tells this peer to run its replica. Every one is answered by exactly one [AnswerStart].
	StartReplica struct {
		Ref        uint64
		From       keyspace.NodeID // whose stream it came by
		Parent     bool            // From is a member of the parent group
		Descriptor Descriptor
	}
	// Confirmed answers a [Confirm]: the parent's child as a linearizable read found it, zero if there is none; or why the
	// parent could not be read. Of the root, which has no parent, the child is what this peer knows of it after such a read.
	Confirmed struct {
		Group order.GroupID
		Child Child
		Err   error
	}
	// Running answers a [Run]: the replica is in the store and runs, or why not.
	Running struct {
		Group order.GroupID
		Err   error
	}
	// HeardOf reports that somebody spoke of a generation of a prefix of which this peer has a replica of an earlier one.
	// It may be a lie, so the parent is asked.
	HeardOf struct{ Group order.GroupID }
	// Superseded reports what the parent's directory says of a prefix, as a linearizable read found it: the live generation.
	Superseded struct{ Live order.GroupID }
	// Retired reports that a replica of this peer was removed from its group. It never runs again.
	Retired struct{ Tombstone Tombstone }
	// Declining says that this peer hosts nothing more from now on, or does again. The replicas it runs or is starting stay.
	Declining struct{ On bool }
)

func (WillYouHost) isHostingEvent()  {}
func (Probe) isHostingEvent()        {}
func (StartReplica) isHostingEvent() {}
func (Confirmed) isHostingEvent()    {}
func (Running) isHostingEvent()      {}
func (Retired) isHostingEvent()      {}
func (HeardOf) isHostingEvent()      {}
func (Superseded) isHostingEvent()   {}
func (Declining) isHostingEvent()    {}

// HostingAction is an output of a [Hosting].
type HostingAction interface{ isHostingAction() }

// The actions of a [Hosting].
type (
	// AnswerHost answers [WillYouHost].
	AnswerHost struct {
		Ref   uint64
		OK    bool
		Store order.StoreID
	}
	// AnswerProbe answers [Probe].
	AnswerProbe struct {
		Ref   uint64
		Store order.StoreID
		Hosts bool // it keeps the replicas it has
		Room  bool // it takes more
	}
	// AnswerStart answers [StartReplica]: with Err nil this peer reports in as Replica in Store.
	AnswerStart struct {
		Ref     uint64
		Replica order.ReplicaID
		Store   order.StoreID
		Err     error
	}
	// Confirm asks the parent for Group's prefix by a linearizable read; answered by [Confirmed], once. The root itself is asked
	// about the root.
	Confirm struct{ Group order.GroupID }
	// Bury asks the driver to stop a replica whose generation is over, and to put its data aside. It never runs again.
	Bury struct{ Hosted }
	// Run asks the driver to put the replica into the store and run it; answered by [Running], once. An earlier replica of the
	// group that still runs here was removed, and goes first.
	Run struct {
		Replica    order.ReplicaID
		Descriptor Descriptor
		Join       bool            // the group exists: the replica begins with what the leader sends it
		Former     order.ReplicaID // the earlier replica; 0 if there is none
	}
)

func (AnswerHost) isHostingAction()  {}
func (AnswerProbe) isHostingAction() {}
func (AnswerStart) isHostingAction() {}
func (Confirm) isHostingAction()     {}
func (Bury) isHostingAction()        {}
func (Run) isHostingAction()         {}

// Hosted is a replica this peer runs.
type Hosted struct {
	Group   order.GroupID
	Replica order.ReplicaID
}

// Tombstone marks a removed replica: replicas of Group up to Replica, and older generations of its prefix, never run here.
type Tombstone struct {
	Group   order.GroupID
	Replica order.ReplicaID
}

// HostingConfig is what a [Hosting] begins with.
type HostingConfig struct {
	Genesis    Genesis
	Self       keyspace.NodeID
	Store      order.StoreID
	Declines   bool        // a peer that is in client mode: hosts nothing
	Hosted     []Hosted    // the replicas in the store
	Tombstones []Tombstone // likewise
}

// startingReplica is a Start on its way from the parent's confirmation to the running replica.
type startingReplica struct {
	refs    []uint64
	replica order.ReplicaID // what the Starts name; 0 < replica
	// What the newest Start of a member says, and who sent it; zero if only the parent has sent any.
	told    Descriptor
	from    keyspace.NodeID
	running bool // Run was asked for
}

// Hosting is a member's side of creating groups (rule G3) and of joining them: it starts a replica at most once per group,
// replica id and store, only in the store the group names, and only when the parent's directory holds the very group.
//
// A group that is new is told to its members by the parent, and they start what the parent's directory says. Later members are
// made by the group itself, which tells them; the parent only confirms that the group is the prefix's present one, since it
// learns of views late. So a joiner believes a peer that calls itself a member. One that lies could only make it run a replica that
// no member speaks to. Not safe for concurrent use.
type Hosting struct {
	overlay  order.OverlayID
	depth    int
	self     keyspace.NodeID
	store    order.StoreID
	declines bool
	own      bool // the overlay has own groups of keys
	hosted   map[order.Life]order.ReplicaID
	// tombstones holds the latest per prefix, with replica 0 where nothing of that generation was removed; at most one for each prefix of the overlay's depth, the root's, and those of
	// keys that had groups of their own here.
	tombstones map[keyspace.Prefix]Tombstone
	starts     map[order.GroupID]*startingReplica
	// rumours are the prefixes about whose generation the parent is being asked; at most ConfirmingMax.
	rumours map[keyspace.Prefix]order.GroupID
}

// NewHosting returns a hosting that remembers what the store holds.
func NewHosting(cfg HostingConfig) *Hosting {
	h := &Hosting{overlay: cfg.Genesis.ID(), depth: cfg.Genesis.Depth, self: cfg.Self, store: cfg.Store, declines: cfg.Declines, own: cfg.Genesis.OwnGroups,
		hosted: make(map[order.Life]order.ReplicaID), tombstones: make(map[keyspace.Prefix]Tombstone),
		starts: make(map[order.GroupID]*startingReplica), rumours: make(map[keyspace.Prefix]order.GroupID)}
	for _, g := range cfg.Hosted {
		h.hosted[g.Group.Life()] = g.Replica
	}
	for _, t := range cfg.Tombstones {
		h.retire(t)
	}
	return h
}

// Step consumes one event and appends what is to be done to out. It never blocks and never fails.
func (h *Hosting) Step(ev HostingEvent, out []HostingAction) []HostingAction {
	switch ev := ev.(type) {
	case WillYouHost:
		ok := !h.declines && h.child(ev.Prefix) && len(h.hosted)+len(h.starts) < HostedMax
		return append(out, AnswerHost{Ref: ev.Ref, OK: ok, Store: h.store})
	case Probe:
		room := !h.declines && len(h.hosted)+len(h.starts) < HostedMax
		return append(out, AnswerProbe{Ref: ev.Ref, Store: h.store, Hosts: !h.declines, Room: room})
	case StartReplica:
		return h.start(ev, out)
	case Confirmed:
		return h.confirmed(ev, out)
	case Running:
		s := h.starts[ev.Group]
		if s == nil || !s.running {
			return out
		}
		err := ev.Err
		if h.buried(ev.Group, s.replica) { // it was removed while it started
			if err == nil && h.tombstones[ev.Group.Prefix].Group.Gen > ev.Group.Gen {
				out = append(out, Bury{Hosted{Group: ev.Group, Replica: s.replica}})
			}
			err = ErrRetired
		}
		if err == nil {
			h.hosted[ev.Group.Life()] = s.replica
		}
		return h.finish(ev.Group, s, err, out)
	case HeardOf:
		return h.heard(ev.Group, out)
	case Superseded:
		return h.superseded(ev.Live, out)
	case Retired:
		h.retire(ev.Tombstone)
	case Declining:
		h.declines = ev.On
	}
	return out
}

// heard asks the parent about a generation after one that runs here.
func (h *Hosting) heard(g order.GroupID, out []HostingAction) []HostingAction {
	p := g.Prefix
	if _, asking := h.rumours[p]; asking || !h.child(p) || len(h.rumours) >= ConfirmingMax || h.starts[g] != nil || !h.outlived(g) {
		return out
	}
	h.rumours[p] = g
	return append(out, Confirm{Group: g})
}

// outlived reports whether a replica of an earlier generation of g's prefix runs here.
func (h *Hosting) outlived(g order.GroupID) bool {
	for old := range h.hosted {
		if old.Prefix == g.Prefix && old.Gen < g.Gen {
			return true
		}
	}
	return false
}

// superseded buries every replica of an earlier generation than the live one, which the parent has named.
func (h *Hosting) superseded(live order.GroupID, out []HostingAction) []HostingAction {
	if live.Overlay != h.overlay || !h.child(live.Prefix) {
		return out
	}
	var over []Hosted
	for g, id := range h.hosted {
		if g.Prefix == live.Prefix && g.Gen < live.Gen {
			over = append(over, Hosted{Group: g.In(h.overlay), Replica: id})
		}
	}
	// One that is starting is buried when it runs.
	h.retire(Tombstone{Group: live})
	slices.SortFunc(over, func(a, b Hosted) int { return a.Group.Compare(b.Group) })
	for _, r := range over {
		delete(h.hosted, r.Group.Life())
		out = append(out, Bury{r})
	}
	return out
}

func (h *Hosting) retire(t Tombstone) {
	p := t.Group.Prefix
	if old, ok := h.tombstones[p]; !ok || old.Group.Gen < t.Group.Gen || old.Group.Gen == t.Group.Gen && old.Replica < t.Replica {
		h.tombstones[p] = t
	}
	if h.hosted[t.Group.Life()] <= t.Replica {
		delete(h.hosted, t.Group.Life())
	}
}

// buried reports whether a tombstone covers the replica.
func (h *Hosting) buried(g order.GroupID, id order.ReplicaID) bool {
	t, ok := h.tombstones[g.Prefix]
	return ok && (g.Gen < t.Group.Gen || g.Gen == t.Group.Gen && id <= t.Replica)
}

// mine returns the replica that d gives to this peer, or why it must not run.
func (h *Hosting) mine(d Descriptor) (order.ReplicaID, error) {
	m, ok := d.View.At(h.self, h.store)
	if !ok {
		m, ok = d.View.MemberAt(h.self)
	}
	_, taken := h.hosted[d.Group.Life()]
	taken = taken || h.starts[d.Group] != nil
	switch {
	case d.Group.Overlay != h.overlay || !h.child(d.Group.Prefix) && !isRoot(d.Group):
		return 0, fmt.Errorf("%w: %v of overlay %v", ErrOverlay, d.Group, d.Group.Overlay)
	case h.declines && !taken:
		return 0, ErrNotHosting
	case !ok:
		return 0, ErrNotMember
	case m.Store != h.store:
		return 0, fmt.Errorf("%w: %v, it has %v now", ErrStore, m.Store, h.store)
	case h.buried(d.Group, m.ID):
		return 0, ErrRetired
	}
	if has := h.hosted[d.Group.Life()]; has > m.ID { // a lower one was removed, and nobody has told us yet
		return 0, fmt.Errorf("%w: it is replica %d, not %d", ErrNotMember, has, m.ID)
	}
	return m.ID, nil
}

// child reports whether the overlay has groups of such a prefix: those of its depth, and, where it allows them, of whole keys.
func (h *Hosting) child(p keyspace.Prefix) bool {
	return int(p.Len) == h.depth || h.own && p.Len == keyspace.PrefixBitsMax
}

// isRoot reports whether a group is the overlay's root, which has no parent.
func isRoot(g order.GroupID) bool { return g.Prefix.Len == 0 }

func (h *Hosting) start(ev StartReplica, out []HostingAction) []HostingAction {
	d, g := ev.Descriptor, ev.Descriptor.Group
	refuse := func(err error) []HostingAction { return append(out, AnswerStart{Ref: ev.Ref, Err: err}) }
	id, err := h.mine(d)
	if err != nil {
		return refuse(err)
	}
	_, member := d.View.MemberAt(ev.From)
	if !member && (!ev.Parent || isRoot(g)) {
		return refuse(ErrSender)
	}
	if h.hosted[g.Life()] == id { // it runs: report in again
		return append(out, AnswerStart{Ref: ev.Ref, Replica: id, Store: h.store})
	}
	s := h.starts[g]
	switch {
	case s != nil && s.replica != id:
		return refuse(ErrUnconfirmed)
	case s != nil && len(s.refs) >= StartsWaitingMax, s == nil && len(h.starts) >= ConfirmingMax:
		return refuse(ErrHostBusy)
	}
	begun := s != nil
	if !begun {
		s = &startingReplica{replica: id}
		h.starts[g] = s
		out = append(out, Confirm{Group: g})
	}
	s.refs = append(s.refs, ev.Ref)
	if member && Newer(d, s.told) {
		s.told, s.from = d, ev.From
	}
	return out
}

// confirmed starts the replica from the newest of what the parent's directory and the group's members say.
func (h *Hosting) confirmed(ev Confirmed, out []HostingAction) []HostingAction {
	if h.rumours[ev.Group.Prefix] == ev.Group {
		delete(h.rumours, ev.Group.Prefix)
	}
	if ev.Err == nil && ev.Child.Group.Prefix == ev.Group.Prefix {
		out = h.superseded(ev.Child.Group, out)
	}
	s := h.starts[ev.Group]
	if s == nil || s.running {
		return out
	}
	if ev.Err != nil {
		return h.finish(ev.Group, s, fmt.Errorf("%w: %v", ErrUnconfirmed, ev.Err), out)
	}
	if ev.Child.Group != ev.Group || ev.Child.State == Inherited { // of which a later generation may live
		return h.finish(ev.Group, s, ErrUnconfirmed, out)
	}
	d := ev.Child.Descriptor
	if isRoot(ev.Group) { // nobody else can say who belongs to it
		if _, known := d.View.MemberAt(s.from); !known {
			return h.finish(ev.Group, s, ErrSender, out)
		}
	}
	if Newer(s.told, d) {
		d = s.told
	}
	if id, err := h.mine(d); err != nil || id != s.replica {
		return h.finish(ev.Group, s, ErrUnconfirmed, out)
	}
	s.running = true
	return append(out, Run{Replica: s.replica, Descriptor: d, Join: d.View.Num > 0, Former: h.hosted[ev.Group.Life()]})
}

func (h *Hosting) finish(g order.GroupID, s *startingReplica, err error, out []HostingAction) []HostingAction {
	invariant.Check(len(s.refs) <= StartsWaitingMax, "bounded waiters", len(s.refs))
	delete(h.starts, g)
	for _, ref := range s.refs {
		a := AnswerStart{Ref: ref, Err: err}
		if err == nil {
			a.Replica, a.Store = s.replica, h.store
		}
		out = append(out, a)
	}
	return out
}
