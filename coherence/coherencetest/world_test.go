package coherencetest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"strings"

	"latchkey/coherence/appmanager"
	"latchkey/coherence/cachedcopy"
	"latchkey/coherence/manager"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

// Parties of a world: nodes are numbered from 1, objects too.

func nodeID(i int) keyspace.NodeID         { return keyspace.NodeID{0, 0, 0, byte(i)} }
func objectKey(i int) keyspace.Key         { return keyspace.Key{0, 0, 0, byte(i)} }
func threadID(i int) (t protocol.ThreadID) { t[3] = byte(i); return t }

var appKey = keyspace.Key{0xaa}

func objectOf(k keyspace.Key) int   { return int(k[3]) - 1 }
func nodeOf(n protocol.NodeRef) int { return int(n.ID[3]) - 1 }

// cells are the values there are: that of version v of an object is one byte.
var cells = func() (c [256]*protocol.Cell) {
	for i := range c {
		c[i] = &protocol.Cell{Bytes: []byte{byte(i)}}
	}
	return c
}()

func hashOf(c *protocol.Cell) protocol.Hash { return protocol.Hash{1, c.Bytes[0]} }

// setup is what does not change in a world.
type setup struct {
	nodes, objects, threads int
	mutant                  protocol.Mutant
	full                    bool // with an application manager and threads that live somewhere
	direct                  bool // nodes ask whoever is likely to have the master first
	guess                   bool // and the next node about an object that they know nothing of
	twoStep                 bool // a write hit checks the right first and stores then (R17)
	faults                  int  // of each node, or of all together in a full world
	budget                  budget
	observe                 func(side, transition string)
}

// budget is what may still go wrong.
type budget struct {
	dups, losses, silents, crashes, returns, suspicions, migrations, checkpoints, aborts, blanks, ends, guests int8
}

// world is a state of everything. What it points at is shared between worlds and never changed: a move copies what it changes.
type world struct {
	*setup
	oms    []*omState
	am     *amState
	peers  []*peer
	net    []*post
	budget budget
	faults [4]int8
	last   map[epochObject]uint8 // versions: of the last write
	saved  map[protocol.Hash]*appmanager.Manifest
	broken error
}

type epochObject struct {
	epoch  protocol.Epoch
	object int
}

type digest [2]uint64

var digestSeeds = [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}

func digestOf(b []byte) digest {
	return digest{maphash.Bytes(digestSeeds[0], b), maphash.Bytes(digestSeeds[1], b)}
}

type omState struct {
	core   *manager.Manager
	life   protocol.Life
	lost   protocol.Epoch // in which its group lost its state: it is not expected to know anything there
	digest digest
}

type amState struct {
	core   *appmanager.Manager
	save   protocol.CheckpointID // a manifest is being stored
	choose protocol.Epoch
	digest digest
}

type peer struct {
	up     bool
	inc    uint64
	node   *appmanager.Node // nil unless the world is full
	copies []*cachedcopy.Copy
	wants  [2]cachedcopy.Right // of a thread that waits, by object
	pinned [2]bool             // a thread has seen its right to write, and will store
	leaves bool                // WithoutR10: the copies hear later that the threads are gone
	digest digest
}

type post struct {
	msg    protocol.Message
	digest digest
}

func newWorld(s *setup) *world {
	w := &world{setup: s, budget: s.budget, last: map[epochObject]uint8{}, saved: map[protocol.Hash]*appmanager.Manifest{}}
	for i := range w.faults {
		w.faults[i] = int8(s.faults)
	}
	for i := range s.objects {
		w.oms = append(w.oms, nil)
		w.setManager(i, w.newManager(i, 1), 1, 0)
	}
	for i := range s.nodes {
		w.peers = append(w.peers, w.newPeer(i, 1))
	}
	if s.full {
		am := appmanager.New(appmanager.Config{App: appKey})
		am.Sabotage(s.mutant)
		w.am = &amState{core: am}
		for i := range s.threads {
			n := i % s.nodes
			w.stepNode(n, appmanager.NodeEvent{Kind: appmanager.NewThread, Thread: threadID(i + 1), Node: w.ref(n), Hash: protocol.Hash{1}})
		}
		w.drain()
	}
	return w
}

func (w *world) newManager(i int, life protocol.Life) *manager.Manager {
	m := manager.New(manager.Config{App: appKey, Object: objectKey(i + 1), Epoch: 1, Life: life})
	m.Sabotage(w.mutant)
	if w.observe != nil {
		m.Observe(func(t string) { w.observe("om", t) })
	}
	return m
}

func (w *world) setManager(i int, m *manager.Manager, life protocol.Life, lost protocol.Epoch) {
	w.oms[i] = &omState{core: m, life: life, lost: lost, digest: digestOf(m.Append([]byte{1, byte(i), byte(life), byte(lost)}))}
}

func (w *world) newPeer(i int, inc uint64) *peer {
	p := &peer{up: true, inc: inc}
	self := protocol.NodeRef{ID: nodeID(i + 1), Inc: inc}
	for o := range w.objects {
		c := cachedcopy.New(cachedcopy.Config{Self: self, App: appKey, Object: objectKey(o + 1), Epoch: 1, Threads: !w.full, Direct: w.direct})
		c.Sabotage(w.mutant)
		if w.observe != nil {
			c.Observe(func(t string) { w.observe("node", t) })
		}
		p.copies = append(p.copies, c)
	}
	if w.full {
		p.node = appmanager.NewNode(appmanager.NodeConfig{Self: self, App: appKey})
		p.node.Sabotage(w.mutant)
	}
	p.seal(i)
	return p
}

func (w *world) ref(i int) protocol.NodeRef {
	return protocol.NodeRef{ID: nodeID(i + 1), Inc: w.peers[i].inc}
}

func (p *peer) seal(i int) {
	b := protocol.AppendBools([]byte{2, byte(i), byte(p.wants[0]), byte(p.wants[1])}, p.up, p.pinned[0], p.pinned[1], p.leaves)
	b = binary.AppendUvarint(b, p.inc)
	if p.up {
		for _, c := range p.copies {
			b = c.Append(b)
		}
		if p.node != nil {
			b = p.node.Append(b)
		}
	}
	p.digest = digestOf(b)
}

func (a *amState) seal() {
	a.digest = digestOf(binary.AppendUvarint(binary.AppendUvarint(a.core.Append([]byte{3}), uint64(a.save)), uint64(a.choose)))
}

// clone copies what a move may change.
func (w *world) clone() *world {
	v := *w
	v.oms, v.peers, v.net = slices.Clone(w.oms), slices.Clone(w.peers), slices.Clone(w.net)
	return &v
}

// digest names the state. Messages have no order.
func (w *world) digest() digest {
	var d digest
	add := func(e digest) { d[0] += e[0]; d[1] += e[1] }
	for _, m := range w.oms {
		add(m.digest)
	}
	for _, p := range w.peers {
		add(p.digest)
	}
	if w.am != nil {
		add(w.am.digest)
	}
	for _, p := range w.net {
		add(p.digest)
	}
	g := w.budget
	var b [64]byte
	x := append(b[:0], 4, byte(g.dups), byte(g.losses), byte(g.silents), byte(g.crashes), byte(g.returns), byte(g.suspicions), byte(g.migrations),
		byte(g.checkpoints), byte(g.aborts), byte(g.blanks), byte(g.ends), byte(g.guests))
	for _, f := range w.faults {
		x = append(x, byte(f))
	}
	for o := range w.objects { // only the present epoch's counts for the future
		x = append(x, w.last[epochObject{w.epoch(), o}])
	}
	add(digestOf(x))
	return d
}

func (w *world) epoch() protocol.Epoch {
	if w.am == nil {
		return 1
	}
	return w.am.core.Epoch()
}

func (w *world) fail(err error) {
	if w.broken == nil {
		w.broken = err
	}
}

func (w *world) send(m protocol.Message) {
	if m.To.Party == protocol.AppManager && w.am == nil { // a world without one: it says yes
		if m.Kind == protocol.Touched {
			o := objectOf(m.Object)
			w.stepManager(o, manager.Event{Kind: manager.Receive, Msg: &protocol.Message{
				Kind: protocol.Touched, From: protocol.Address{Party: protocol.AppManager}, Epoch: m.Epoch, Life: m.Life, Seq: m.Seq, Object: m.Object,
			}})
		}
		return
	}
	if m.Kind == protocol.Copy && m.To.Party == protocol.AppManager { // the owner's driver stores the value
		m.Hash, m.Value = hashOf(m.Value), nil
	}
	w.net = append(w.net, &post{m, digestOf(m.Append([]byte{5}))})
}

func (w *world) stepManager(i int, ev manager.Event) {
	s := w.oms[i]
	m := s.core.Clone()
	out := m.Step(ev, nil)
	w.setManager(i, m, s.life, s.lost)
	if err := m.Check(); err != nil {
		w.fail(err)
	}
	for _, o := range out {
		w.send(o)
	}
}

func (w *world) stepApp(ev appmanager.Event) {
	a := *w.am
	a.core = a.core.Clone()
	was := a.core.State()
	out := a.core.Step(ev, nil)
	w.am = &a
	w.performApp(out)
	w.am.seal()
	if was == appmanager.Reading && a.core.State() == appmanager.Saving || was == appmanager.Stopping && a.core.State() == appmanager.Saving {
		w.atCut()
	}
}

func (w *world) performApp(out []appmanager.Action) {
	for _, a := range out {
		switch a.Kind {
		case appmanager.Send:
			w.send(a.Msg)
		case appmanager.Save:
			w.am.save = a.Checkpoint
			h := protocol.Hash{2, byte(a.Checkpoint)}
			if _, ok := w.saved[h]; !ok || a.Checkpoint == w.am.core.Checkpoint() {
				w.saved = maps.Clone(w.saved)
				w.saved[h] = &a.Manifest
			}
		case appmanager.Choose:
			w.am.choose = a.Epoch
		}
	}
}

// atCut: what is saved is the live state of this instant (I3, C5), if nobody stands between two steps.
func (w *world) atCut() {
	m := w.saved[protocol.Hash{2, byte(w.am.core.Checkpoint())}]
	for i, p := range w.peers {
		for t := range w.threads {
			if ph, ok := p.nodePhase(threadID(t + 1)); ok && p.up && ph == appmanager.Runs && p.node.Epoch() == w.epoch() {
				w.fail(fmt.Errorf("C3: t%d runs at n%d at the cut", t+1, i+1))
			}
		}
	}
	for o := range w.objects {
		live, touched := w.last[epochObject{w.epoch(), o}]
		if before, _ := w.am.core.Saved(); !touched {
			h := before.Objects[objectKey(o+1)]
			live = h[1]
		}
		var saved uint8
		if h, ok := m.Objects[objectKey(o+1)]; ok {
			saved = h[1]
		}
		if saved != live {
			w.fail(fmt.Errorf("C5: the checkpoint has version %d of x%d, and the last write made %d", saved, o+1, live))
		}
	}
}

func (w *world) edit(i int) *peer {
	p := *w.peers[i]
	p.copies = slices.Clone(p.copies)
	w.peers[i] = &p
	return &p
}

func (w *world) stepCopy(i, o int, ev cachedcopy.Event) {
	p := w.edit(i)
	c := p.copies[o].Clone()
	p.copies[o] = c
	if ev.Kind == cachedcopy.Receive && ev.Msg.Kind == protocol.FirstTouch {
		m := *ev.Msg
		m.Value = w.initial(i, o)
		ev.Msg = &m
		if at := (epochObject{m.Epoch, o}); c.Wants(&m) && w.last[at] == 0 {
			w.setLast(at, m.Value.Bytes[0])
		}
	}
	broken := c.Broken()
	out := c.Step(ev, nil)
	for _, a := range out {
		switch a.Kind {
		case cachedcopy.Send:
			w.send(a.Msg)
		case cachedcopy.Destroyed:
			p.wants[o], p.pinned[o] = cachedcopy.NoAccess, false
		case cachedcopy.SetRight:
			w.access(p, o, c, a.Right)
		}
	}
	p.seal(i)
	if err := c.Check(); err != nil {
		w.fail(err)
	}
	if c.Broken() > broken {
		w.fail(errors.New("I7: INVALIDATE at a MASTER, or a FORWARDED_WRITE to its own node"))
	}
}

// access is what threads do when their right changes: who has waited, reads or writes now.
func (w *world) access(p *peer, o int, c *cachedcopy.Copy, r cachedcopy.Right) {
	if c.Right() < r {
		return // it has changed again in the same step
	}
	if r >= p.wants[o] {
		p.wants[o] = cachedcopy.NoAccess
	}
	if r == cachedcopy.ReadWrite && !w.twoStep {
		w.store(o, c)
	}
}

func (w *world) store(o int, c *cachedcopy.Copy) {
	at := epochObject{c.Epoch(), o}
	w.setLast(at, w.last[at]+1)
	if !c.Store(cells[w.last[at]]) {
		w.fail(errors.New("R17: a write is lost: its right was taken between check and store"))
	}
}

func (w *world) setLast(at epochObject, v uint8) {
	w.last = maps.Clone(w.last)
	w.last[at] = v
}

// initial is the value of an object that nobody has touched in the node's epoch.
func (w *world) initial(i, o int) *protocol.Cell {
	if n := w.peers[i].node; n != nil && n.Manifest() != (protocol.Hash{}) {
		if h, ok := w.saved[n.Manifest()].Objects[objectKey(o+1)]; ok {
			return cells[h[1]]
		}
	}
	return cells[0]
}

func (w *world) stepNode(i int, ev appmanager.NodeEvent) {
	p := w.edit(i)
	p.node = p.node.Clone()
	out := p.node.Step(ev, nil)
	sent := false
	for _, a := range out {
		switch a.Kind {
		case appmanager.NodeSend:
			w.send(a.Msg)
			sent = true
		case appmanager.Enter:
			w.copies(i, cachedcopy.Event{Kind: cachedcopy.ThreadsHere})
		case appmanager.Leave:
			if sent && w.mutant == protocol.WithoutR10 {
				w.peers[i].leaves = true
				continue
			}
			w.copies(i, cachedcopy.Event{Kind: cachedcopy.ThreadsGone, Node: a.Node})
		case appmanager.NewEpoch:
			w.copies(i, cachedcopy.Event{Kind: cachedcopy.Destroy, Epoch: a.Epoch})
		case appmanager.Run:
			w.checkTwice(i, a.Thread)
		}
	}
	w.peers[i].seal(i)
}

// checkTwice: a thread runs at one node at a time (R9).
func (w *world) checkTwice(i int, t protocol.ThreadID) {
	for j, p := range w.peers {
		if ph, ok := p.nodePhase(t); j != i && p.up && ok && ph == appmanager.Runs && p.node.Epoch() == w.peers[i].node.Epoch() {
			w.fail(fmt.Errorf("R9: %v runs at n%d and at n%d", t, i+1, j+1))
		}
	}
}

func (p *peer) nodePhase(t protocol.ThreadID) (appmanager.Phase, bool) {
	if p.node == nil {
		return 0, false
	}
	return p.node.Phase(t)
}

func (w *world) copies(i int, ev cachedcopy.Event) {
	for o := range w.objects {
		w.stepCopy(i, o, ev)
	}
}

// deliver hands a message over. It stays in the network when keep says so.
func (w *world) deliver(at int, keep bool) {
	m := w.net[at].msg
	if !keep {
		w.net = slices.Delete(w.net, at, at+1)
	}
	switch m.To.Party {
	case protocol.ObjectManager:
		w.stepManager(objectOf(m.Object), manager.Event{Kind: manager.Receive, Msg: &m})
	case protocol.AppManager:
		w.stepApp(appmanager.Event{Kind: appmanager.Receive, Msg: &m})
	case protocol.Node:
		i := nodeOf(m.To.Node)
		if !w.peers[i].up {
			return
		}
		switch m.Kind {
		case protocol.Destroy, protocol.Checkpoint, protocol.Resume, protocol.Unfreeze, protocol.Start, protocol.Created, protocol.Grant,
			protocol.Transfer, protocol.Arrived, protocol.Moved, protocol.MigrationFailed, protocol.Terminated:
			if w.full {
				w.stepNode(i, appmanager.NodeEvent{Kind: appmanager.NodeReceive, Msg: &m})
			}
		default:
			if n := w.peers[i].node; n != nil && m.Epoch > n.Epoch() { // an entity of the node hears of the epoch first, and tells all
				w.stepNode(i, appmanager.NodeEvent{Kind: appmanager.NodeReceive, Msg: &protocol.Message{Epoch: m.Epoch, To: protocol.At(w.ref(i))}})
			}
			w.stepCopy(i, objectOf(m.Object), cachedcopy.Event{Kind: cachedcopy.Receive, Msg: &m})
		}
	}
}

func (w *world) drain() {
	for n := 0; len(w.net) > 0 && n < 10_000; n++ {
		w.deliver(0, false)
	}
}

// wire prints a message with its way.
func wire(m *protocol.Message) string { return fmt.Sprintf("%v>%v %v", m.From, m.To, m) }

// state prints everything, as traces show it.
func (w *world) state() string {
	var b strings.Builder
	for i, m := range w.oms {
		if i > 0 {
			b.WriteString(" | ")
		}
		b.WriteString("om")
		if w.objects > 1 {
			fmt.Fprintf(&b, " x%d", i+1)
		}
		fmt.Fprintf(&b, " %v", m.core)
	}
	if w.am != nil {
		fmt.Fprintf(&b, " | am %v", w.am.core)
	}
	for i, p := range w.peers {
		fmt.Fprintf(&b, " | %v", w.ref(i))
		if !p.up {
			b.WriteString(" down")
			continue
		}
		if p.node != nil {
			fmt.Fprintf(&b, "%v", p.node)
		}
		for _, c := range p.copies {
			fmt.Fprintf(&b, " %v", c)
		}
	}
	return b.String()
}

// check tests the invariants of section 5 that need to see everything, in every epoch there is.
func (w *world) check() error {
	if w.broken != nil {
		return w.broken
	}
	for o := range w.objects {
		if err := w.checkObject(o); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) checkObject(o int) error {
	var done [8]protocol.Epoch
	n := 0
	for _, p := range w.peers {
		if !p.up {
			continue
		}
		e := p.copies[o].Epoch()
		if slices.Contains(done[:n], e) {
			continue
		}
		done[n] = e
		n++
		if err := w.checkEpoch(o, e); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) checkEpoch(o int, e protocol.Epoch) error {
	om := w.oms[o].core
	knows := om.Epoch() == e && w.oms[o].lost != e
	masters, exclusive, readable := 0, -1, 0
	var orphan error // a copy of a master that nobody can tell of any more
	for i, p := range w.peers {
		if !p.up || p.copies[o].Epoch() != e {
			continue
		}
		c := p.copies[o]
		if c.Right() > cachedcopy.NoAccess {
			readable++
			if v, last := c.Value().Bytes[0], w.last[epochObject{e, o}]; v != last {
				return fmt.Errorf("I3: n%d reads version %d of x%d, and the last write made %d", i+1, v, o+1, last)
			}
		}
		if c.State().Master() {
			masters++
		}
		if c.State() == cachedcopy.OwnerExclusive {
			exclusive = i
		}
		if knows && c.Right() > cachedcopy.NoAccess && !c.State().Master() && !om.HasCopy(w.ref(i)) && !w.serves(o, e, c.Direct(), w.ref(i)) {
			err := fmt.Errorf("I5 (lemma 3): n%d has a copy of x%d and is not in the copy set, nor is it a reader of the master's own", i+1, o+1)
			if w.lives(c.Direct(), o, e) {
				return err
			}
			orphan = err
		}
	}
	valid := 0
	var receives [8]bool // a node that may receive the master twice is one
	for _, q := range w.net {
		m := &q.msg
		if m.Kind != protocol.Copy || m.To.Party != protocol.Node || objectOf(m.Object) != o || m.Epoch != e {
			continue
		}
		if i := nodeOf(m.To.Node); w.peers[i].up && w.peers[i].copies[o].Wants(m) {
			valid++
			if m.Copy == protocol.MasterCopy && !receives[i] {
				receives[i] = true
				masters++
			}
			if m.Flag {
				if !w.serves(o, e, m.From.Node, m.To.Node) && w.lives(m.From.Node, o, e) {
					return fmt.Errorf("I4 (lemma 2): a valid COPY travels from n%d to n%d, which does not count as a reader", nodeOf(m.From.Node)+1, i+1)
				}
				continue
			}
			if s := om.State(); knows && s != manager.WaitReadAck && s != manager.WaitWriteAck {
				return fmt.Errorf("I4 (lemma 2): a valid COPY travels to n%d in %v", i+1, s)
			}
		}
	}
	switch {
	case exclusive >= 0 && readable > 1:
		return fmt.Errorf("I1 (lemma 4): n%d is OWNER_EXCLUSIVE of x%d, and %d copies are readable", exclusive+1, o+1, readable)
	case exclusive >= 0 && valid > 0:
		return fmt.Errorf("I1 (lemma 4): n%d is OWNER_EXCLUSIVE of x%d while a valid COPY travels", exclusive+1, o+1)
	case orphan != nil && masters > 0:
		return orphan
	case masters > 1:
		return fmt.Errorf("I2 (lemma 5): %d masters of x%d", masters, o+1)
	}
	if owner := om.Owner(); knows && !owner.IsZero() && om.State() != manager.WaitWriteAck {
		i := nodeOf(owner)
		if p := w.peers[i]; p.up && p.inc == owner.Inc && p.copies[o].Epoch() == e && !p.copies[o].State().Master() {
			return fmt.Errorf("I6: the owner n%d of x%d is %v in %v", i+1, o+1, p.copies[o].State(), om.State())
		}
	}
	return nil
}

// lives reports whether that incarnation of a node is up, and in that epoch still: who has gone on has lost what it had in it, as if it had crashed.
func (w *world) lives(n protocol.NodeRef, o int, e protocol.Epoch) bool {
	if n.IsZero() {
		return false
	}
	p := w.peers[nodeOf(n)]
	return p.up && p.inc == n.Inc && p.copies[o].Epoch() <= e
}

// serves reports whether the master at owner counts n among the readers that the manager does not know of.
func (w *world) serves(o int, e protocol.Epoch, owner, n protocol.NodeRef) bool {
	if !w.lives(owner, o, e) {
		return false
	}
	c := w.peers[nodeOf(owner)].copies[o]
	return c.Epoch() == e && c.State().Master() && c.Serves(n)
}
