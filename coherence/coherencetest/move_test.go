package coherencetest

import (
	"fmt"
	"slices"

	"latchkey/coherence/appmanager"
	"latchkey/coherence/cachedcopy"
	"latchkey/coherence/manager"
	"latchkey/coherence/protocol"
)

// A move changes a world. It prints as the command of a trace that makes it: the name of its op, then its arguments.
type move struct {
	op   string
	node int // from 0
	arg  int
	post int    // in the network
	text string // of the message
}

// The ops, with their arguments.
const (
	opRead       = "read"       // n1 [x1]: a thread on n1 reads, and faults
	opWrite      = "write"      // n1 [x1]
	opDeliver    = "deliver"    // n1>om READ req=n1 seq=1: that message arrives
	opDup        = "dup"        // the same, and it stays in the network
	opLose       = "lose"       // it never arrives
	opSilent     = "leave"      // n1: the last thread leaves, with no application manager to tell; it comes back at once
	opPin        = "check"      // n1 [x1]: a thread sees its right to write; it stores later
	opStore      = "store"      // n1 [x1]
	opCrash      = "crash"      // n1
	opReturn     = "return"     // n1: as a new incarnation
	opSuspectOM  = "suspect-om" // n1 [x1]: the object's manager suspects it
	opTrustOM    = "trust-om"   // n1 [x1]
	opSuspectAM  = "suspect-am" // n1
	opTrustAM    = "trust-am"   // n1
	opRepeat     = "repeat"     // n1
	opResendOM   = "resend-om"  // [x1]
	opResendAM   = "resend-am"
	opMove       = "move"  // t1 n2: thread t1 asks to migrate
	opEnd        = "end"   // t1
	opGuest      = "guest" // n1: somebody there uses objects without being a thread
	opGone       = "gone"  // n1: WithoutR10, the copies hear that the threads are gone
	opSafe       = "safe"  // t1: it comes to a safe point
	opCheckpoint = "begin-checkpoint"
	opAbort      = "abort-checkpoint"
	opSaved      = "saved"  // the manifest is stored
	opPlace      = "place"  // n1: threads of a restart go there
	opBlank      = "blank"  // [x1]: the manager's group loses its state
	opReinit     = "reinit" // [x1]: a late REINIT of the present epoch
)

func (m move) String() string {
	switch m.op {
	case opDeliver, opDup, opLose:
		return m.op + " " + m.text
	case opRead, opWrite, opPin, opStore, opSuspectOM, opTrustOM:
		return fmt.Sprintf("%s n%d x%d", m.op, m.node+1, m.arg+1)
	case opMove:
		return fmt.Sprintf("%s t%d n%d", m.op, m.arg+1, m.node+1)
	case opEnd, opSafe:
		return fmt.Sprintf("%s t%d", m.op, m.arg+1)
	case opResendOM, opBlank, opReinit:
		return fmt.Sprintf("%s x%d", m.op, m.arg+1)
	case opResendAM, opCheckpoint, opAbort, opSaved:
		return m.op
	}
	return fmt.Sprintf("%s n%d", m.op, m.node+1)
}

// apply makes a move in a copy of the world.
func (w *world) apply(m move) *world {
	v := w.clone()
	switch m.op {
	case opRead, opWrite:
		v.faults[v.faultsOf(m.node)]--
		p := v.edit(m.node)
		ev := cachedcopy.Event{Kind: cachedcopy.ReadFault}
		if w.guess {
			ev.Node = w.ref((m.node + 1) % w.nodes)
		}
		p.wants[m.arg] = max(p.wants[m.arg], cachedcopy.ReadOnly)
		if m.op == opWrite {
			ev.Kind, p.wants[m.arg] = cachedcopy.WriteFault, cachedcopy.ReadWrite
		}
		v.stepCopy(m.node, m.arg, ev)
	case opDeliver:
		v.deliver(m.post, false)
	case opDup:
		v.budget.dups--
		v.deliver(m.post, true)
	case opLose:
		v.budget.losses--
		v.net = slices.Delete(v.net, m.post, m.post+1)
	case opSilent:
		v.budget.silents--
		v.copies(m.node, cachedcopy.Event{Kind: cachedcopy.ThreadsGone})
		v.edit(m.node).wants = [2]cachedcopy.Right{}
		v.copies(m.node, cachedcopy.Event{Kind: cachedcopy.ThreadsHere})
	case opPin:
		v.edit(m.node).pinned[m.arg] = true
		v.stepCopy(m.node, m.arg, cachedcopy.Event{Kind: cachedcopy.Hold})
	case opStore:
		p := v.edit(m.node)
		p.pinned[m.arg] = false
		p.copies[m.arg] = p.copies[m.arg].Clone()
		v.store(m.arg, p.copies[m.arg])
		v.stepCopy(m.node, m.arg, cachedcopy.Event{Kind: cachedcopy.Release})
	case opCrash:
		v.budget.crashes--
		p := v.edit(m.node)
		p.up, p.wants, p.pinned, p.leaves = false, [2]cachedcopy.Right{}, [2]bool{}, false
		p.seal(m.node)
	case opReturn:
		v.budget.returns--
		v.peers[m.node] = v.newPeer(m.node, v.peers[m.node].inc+1)
	case opSuspectOM, opTrustOM:
		ev := manager.Event{Kind: manager.Suspect, Node: v.ref(m.node)}
		if m.op == opTrustOM {
			ev.Kind = manager.Trust
		} else if v.peers[m.node].up {
			v.budget.suspicions--
		}
		v.stepManager(m.arg, ev)
	case opSuspectAM, opTrustAM:
		ev := appmanager.Event{Kind: appmanager.Suspect, Node: v.ref(m.node)}
		if m.op == opTrustAM {
			ev.Kind = appmanager.Trust
		} else if v.peers[m.node].up {
			v.budget.suspicions--
		}
		v.stepApp(ev)
	case opRepeat:
		v.repeat(m.node)
	case opResendOM:
		for _, o := range v.oms[m.arg].core.Resend(nil) {
			v.sendNew(o)
		}
	case opResendAM:
		a := *v.am
		v.am = &a
		for _, o := range a.core.Resend(nil) {
			if o.Kind != appmanager.Send {
				v.performApp([]appmanager.Action{o})
			} else {
				v.sendNew(o.Msg)
			}
		}
		v.am.seal()
	case opMove:
		v.budget.migrations--
		v.thread(m.arg, appmanager.NodeEvent{Kind: appmanager.Move, Node: v.ref(m.node), Hash: protocol.Hash{1}})
	case opEnd:
		v.budget.ends--
		v.thread(m.arg, appmanager.NodeEvent{Kind: appmanager.End})
	case opGuest:
		v.budget.guests--
		v.stepNode(m.node, appmanager.NodeEvent{Kind: appmanager.NewThread, Thread: threadID(10 + m.node), Node: v.ref(m.node), Guest: true})
	case opGone:
		v.edit(m.node).leaves = false
		v.copies(m.node, cachedcopy.Event{Kind: cachedcopy.ThreadsGone})
	case opSafe:
		v.thread(m.arg, appmanager.NodeEvent{Kind: appmanager.SafePoint, Hash: protocol.Hash{1}})
	case opCheckpoint:
		v.budget.checkpoints--
		v.stepApp(appmanager.Event{Kind: appmanager.Begin})
	case opAbort:
		v.budget.aborts--
		v.stepApp(appmanager.Event{Kind: appmanager.Abort, Checkpoint: v.am.core.Checkpoint()})
	case opSaved:
		a := *v.am
		v.am = &a
		a.save = 0
		v.stepApp(appmanager.Event{Kind: appmanager.Saved, Checkpoint: w.am.save, Hash: protocol.Hash{2, byte(w.am.save)}})
	case opPlace:
		var places []appmanager.Placement
		for t := range v.threads {
			places = append(places, appmanager.Placement{Thread: threadID(t + 1), Node: v.ref(m.node)})
		}
		a := *v.am
		v.am = &a
		a.choose = 0
		v.stepApp(appmanager.Event{Kind: appmanager.Place, Epoch: w.am.choose, Places: places})
	case opBlank:
		v.budget.blanks--
		life := v.oms[m.arg].life + 1
		v.setManager(m.arg, v.newManager(m.arg, life), life, v.oms[m.arg].core.Epoch())
	case opReinit:
		v.budget.dups--
		v.stepManager(m.arg, manager.Event{Kind: manager.Receive, Msg: &protocol.Message{
			Kind: protocol.Reinit, From: protocol.Address{Party: protocol.AppManager}, Epoch: v.oms[m.arg].core.Epoch(), Object: objectKey(m.arg + 1),
		}})
	default:
		panic("no such move: " + m.op)
	}
	if v.peers[m.node] != w.peers[m.node] {
		v.edit(m.node).seal(m.node)
	}
	return v
}

func (w *world) faultsOf(node int) int {
	if w.full {
		return 0
	}
	return node
}

// sendNew sends what is not in the network already: a timer fires later than everything arrives, if it arrives at all.
func (w *world) sendNew(m protocol.Message) {
	d := digestOf(m.Append([]byte{5}))
	if !slices.ContainsFunc(w.net, func(p *post) bool { return p.digest == d }) {
		w.send(m)
	}
}

func (w *world) repeat(i int) {
	for o := range w.objects {
		for _, a := range w.peers[i].copies[o].Clone().Step(cachedcopy.Event{Kind: cachedcopy.Repeat}, nil) {
			if a.Kind == cachedcopy.Send {
				w.sendNew(a.Msg)
			}
		}
	}
	if n := w.peers[i].node; n != nil {
		for _, a := range n.Clone().Step(appmanager.NodeEvent{Kind: appmanager.NodeRepeat}, nil) {
			w.sendNew(a.Msg)
		}
	}
}

// thread steps the node where a thread runs.
func (w *world) thread(t int, ev appmanager.NodeEvent) {
	ev.Thread = threadID(t + 1)
	if i := w.runsAt(t); i >= 0 && !w.peers[i].busy() {
		w.stepNode(i, ev)
	}
}

// busy: somebody waits for an object, or has seen a right and not used it yet. He is at no safe point.
func (p *peer) busy() bool { return p.wants != [2]cachedcopy.Right{} || p.pinned != [2]bool{} }

// runsAt is the node of the newest epoch that runs the thread.
func (w *world) runsAt(t int) int {
	for i, p := range w.peers {
		if ph, ok := p.nodePhase(threadID(t + 1)); ok && p.up && ph == appmanager.Runs && p.node.Epoch() == w.epoch() {
			return i
		}
	}
	return -1
}

// runs reports whether somebody on the node can use objects.
func (w *world) runs(i int) bool {
	p := w.peers[i]
	if !p.up || p.leaves {
		return false
	}
	if p.node == nil {
		return true
	}
	for t := range w.threads {
		if ph, ok := p.node.Phase(threadID(t + 1)); ok && ph == appmanager.Runs {
			return true
		}
	}
	_, guest := p.node.Phase(threadID(10 + i))
	return guest
}

// moves lists what can happen: first what goes on without faults, accesses, migrations and checkpoints, and how many that are.
func (w *world) moves() (ms []move, quiet int) {
	ms = w.list(true)
	quiet = len(ms)
	all := w.list(false)
	if len(all) == quiet {
		return ms, quiet
	}
	at := 0
	for _, m := range all { // both lists have the same order
		if at < quiet && m == ms[at] {
			at++
			continue
		}
		ms = append(ms, m)
	}
	return ms, quiet
}

func (w *world) list(quiet bool) []move {
	var ms []move
	for i, p := range w.net {
		if i > 0 && slices.ContainsFunc(w.net[:i], func(q *post) bool { return q.digest == p.digest }) {
			continue
		}
		ms = append(ms, move{op: opDeliver, post: i})
		if quiet {
			continue
		}
		if w.budget.dups > 0 {
			ms = append(ms, move{op: opDup, post: i})
		}
		if w.budget.losses > 0 {
			ms = append(ms, move{op: opLose, post: i})
		}
	}
	timers := len(w.net) == 0
	for i, p := range w.peers {
		if p.leaves {
			ms = append(ms, move{op: opGone, node: i})
		}
		if !p.up {
			for o := range w.objects {
				if w.full && !w.suspectedByManager(o, i) && w.watched(o, i) {
					ms = append(ms, move{op: opSuspectOM, node: i, arg: o})
				}
			}
			if w.full && slices.Contains(w.am.core.Concerns(), w.ref(i)) && !w.suspectedByApp(i) {
				ms = append(ms, move{op: opSuspectAM, node: i})
			}
			if !quiet && w.budget.returns > 0 {
				ms = append(ms, move{op: opReturn, node: i})
			}
			continue
		}
		for o, c := range p.copies {
			if p.pinned[o] {
				ms = append(ms, move{op: opStore, node: i, arg: o})
			} else if w.twoStep && c.State() == cachedcopy.OwnerExclusive && !quiet && w.last[epochObject{1, o}] < 3 {
				ms = append(ms, move{op: opPin, node: i, arg: o})
			}
		}
		if timers && (p.node != nil && p.node.Waits() || slices.ContainsFunc(p.copies, (*cachedcopy.Copy).Waits)) {
			ms = append(ms, move{op: opRepeat, node: i})
		}
		if quiet {
			continue
		}
		if w.runs(i) && w.faults[w.faultsOf(i)] > 0 {
			for o, c := range p.copies {
				if c.Right() < cachedcopy.ReadOnly && p.wants[o] < cachedcopy.ReadOnly {
					ms = append(ms, move{op: opRead, node: i, arg: o})
				}
				if c.Right() < cachedcopy.ReadWrite && p.wants[o] < cachedcopy.ReadWrite {
					ms = append(ms, move{op: opWrite, node: i, arg: o})
				}
			}
		}
		if w.budget.silents > 0 && !slices.ContainsFunc(p.copies, func(c *cachedcopy.Copy) bool { return c.State().Master() }) {
			ms = append(ms, move{op: opSilent, node: i})
		}
		if w.budget.crashes > 0 {
			ms = append(ms, move{op: opCrash, node: i})
		}
		if w.budget.suspicions > 0 {
			for o := range w.objects {
				if !w.suspectedByManager(o, i) && w.watched(o, i) {
					ms = append(ms, move{op: opSuspectOM, node: i, arg: o})
				}
			}
			if w.am != nil && !w.suspectedByApp(i) && slices.Contains(w.am.core.Concerns(), w.ref(i)) {
				ms = append(ms, move{op: opSuspectAM, node: i})
			}
		}
		if w.budget.guests > 0 && p.node != nil && !p.node.Executes() {
			ms = append(ms, move{op: opGuest, node: i})
		}
	}
	for i, p := range w.peers { // a detector that was wrong finds out
		if !p.up || !timers {
			continue
		}
		for o := range w.objects {
			if w.suspectedByManager(o, i) && w.watched(o, i) {
				ms = append(ms, move{op: opTrustOM, node: i, arg: o})
			}
		}
		if w.am != nil && w.suspectedByApp(i) && slices.Contains(w.am.core.Concerns(), w.ref(i)) {
			ms = append(ms, move{op: opTrustAM, node: i})
		}
	}
	for o, m := range w.oms {
		if timers && len(m.core.Resend(nil)) > 0 {
			ms = append(ms, move{op: opResendOM, arg: o})
		}
		if w.budget.blanks > 0 && !quiet {
			ms = append(ms, move{op: opBlank, arg: o})
		}
		if w.mutant == protocol.WithoutR7 && w.budget.dups > 0 && !quiet {
			ms = append(ms, move{op: opReinit, arg: o})
		}
	}
	if w.am == nil {
		return ms
	}
	if timers && len(w.am.core.Resend(nil)) > 0 {
		ms = append(ms, move{op: opResendAM})
	}
	if w.am.save > 0 {
		ms = append(ms, move{op: opSaved})
	}
	if w.am.choose > 0 {
		for i, p := range w.peers {
			if p.up && !w.suspectedByApp(i) {
				ms = append(ms, move{op: opPlace, node: i})
			}
		}
	}
	for t := range w.threads {
		i := w.runsAt(t)
		if i < 0 || w.peers[i].busy() {
			continue
		}
		if w.peers[i].node.Holds() {
			ms = append(ms, move{op: opSafe, arg: t})
		}
		for to := range w.peers {
			if to != i && w.budget.migrations > 0 && !quiet && w.peers[to].up {
				ms = append(ms, move{op: opMove, arg: t, node: to})
			}
		}
		if w.budget.ends > 0 && !quiet {
			ms = append(ms, move{op: opEnd, arg: t})
		}
	}
	if !quiet {
		if w.budget.checkpoints > 0 && w.am.core.State() == appmanager.Running {
			ms = append(ms, move{op: opCheckpoint})
		}
		if s := w.am.core.State(); w.budget.aborts > 0 && (s == appmanager.Stopping || s == appmanager.Reading || s == appmanager.Saving) {
			ms = append(ms, move{op: opAbort})
		}
	}
	return ms
}

// watched: a host has its failure detector watch those that a manager is concerned about while it waits for somebody, and nobody else. So nobody tells
// a manager that it was wrong about somebody else.
func (w *world) watched(o, i int) bool {
	m := w.oms[o].core
	return m.Waits() && slices.Contains(m.Concerns(), w.ref(i))
}

func (w *world) suspectedByManager(o, i int) bool { return w.oms[o].core.Suspects(w.ref(i)) }
func (w *world) suspectedByApp(i int) bool        { return w.am.core.Suspects(w.ref(i)) }

// label fills in what a move prints.
func (w *world) label(m move) move {
	switch m.op {
	case opDeliver, opDup, opLose:
		m.text = wire(&w.net[m.post].msg)
	}
	return m
}

// settled reports whether everybody has what was asked for.
func (w *world) settled() bool {
	for i, p := range w.peers {
		if !p.up {
			continue
		}
		if p.node != nil && p.node.Epoch() < w.epoch() {
			continue // a survivor
		}
		if w.runs(i) && p.wants != [2]cachedcopy.Right{} {
			return false
		}
		for t := range w.threads {
			if ph, ok := p.nodePhase(threadID(t + 1)); ok && ph != appmanager.Runs {
				return false
			}
		}
	}
	for _, m := range w.oms {
		if m.core.State() != manager.Idle {
			return false
		}
	}
	if w.am != nil && w.am.core.State() != appmanager.Running {
		return false
	}
	return true
}
