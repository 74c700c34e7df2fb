package coherence

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"time"

	"latchkey/coherence/appmanager"
	"latchkey/coherence/manager"
	"latchkey/coherence/pb"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/session"
)

// ServiceName is the service of replica groups that keeps the managers of applications and of objects.
const ServiceName = "object"

// Limits of what one group keeps. What would exceed them is not begun: who asks for it repeats it in vain.
const (
	GroupAppsMax    = 1 << 10 // application managers of one group, and applications with objects there
	GroupObjectsMax = 1 << 17 // object managers of one group
)

// Machine is what a replica group knows of shared objects: the managers whose keys have its prefix (RR-5059 section 4.1). The group's log
// orders what they are told; all replicas step them alike; what they say is posted, and sent by the leader's host. Like every [session.Machine]
// it is deterministic and belongs to one goroutine.
//
// # Managers come and go
//
// The manager of an object that nobody has touched in its epoch knows nothing but the epoch, and is not kept. That of an application is kept
// while somebody has it open, while it has threads, and after a failure that left it without either if it has a checkpoint to go on from. When the last
// one leaves and no thread is left, its objects are gone: their managers are told, its checkpoint is collected, and it is forgotten. So that no epoch
// comes twice, the next one to be founded in the group begins above all that were. The first epoch of a generation of the group is above all of earlier ones.
type Machine struct {
	life    protocol.Life
	epoch   protocol.Epoch        // that an application begins with which is founded now
	ids     protocol.CheckpointID // after which its checkpoints are numbered, since chunks of earlier ones may be about to be collected
	apps    map[keyspace.Key]*application
	objects int         // of all applications
	anew    []beganAnew // at most [AnewMax], the oldest first; of an application the last one
}

// beganAnew is why an application began anew.
type beganAnew struct {
	app keyspace.Key
	Anew
}

// application is what a group knows of one.
type application struct {
	epoch   protocol.Epoch        // the last that a message about an object was of: what is of an earlier one is gone
	manager *appmanager.Manager   // nil: it is another group's, or nobody has the application open
	after   protocol.CheckpointID // that its checkpoints are numbered after
	objects map[keyspace.Key]*manager.Manager
	busy    map[keyspace.Key]struct{} // those of objects that wait for somebody
}

var _ session.Insider = (*Machine)(nil)
var _ session.Splitter = (*Machine)(nil)

// NewMachine returns the machine of a group that nobody has asked for anything.
func NewMachine(g order.GroupID) *Machine {
	// A generation has the overlay's in its upper half. Neither comes near what it has room for here.
	gen := g.Gen>>32<<16 + g.Gen&0xffff
	return &Machine{life: protocol.Life(gen + 1), epoch: protocol.Epoch(gen<<32 + 1)}
}

// said is what a machine posts: what managers of an application have to say, and whom they wait for.
type said struct {
	app      keyspace.Key
	messages []protocol.Message
	concerns []concern
	duty     *duty // nil: none
	anew     *Anew // nil: no execution has just begun
}

// duty is what an application's manager has its leader's host do: choosing, storing and counting time are no business of a replica.
type duty struct {
	epoch  protocol.Epoch
	places []unplaced         // threads that a restart needs places for
	nodes  []protocol.NodeRef // that have the application open

	checkpoint protocol.CheckpointID // one that is under way, 0 for none
	save       *appmanager.Manifest  // its cut, in SAVING. It is not changed

	collect bool // only these manifests count now, and what is wanted for a checkpoint after
	saved   protocol.CheckpointID
	roots   []protocol.Hash // none: the application is over
}

// unplaced is a thread that needs a place, and its state.
type unplaced struct {
	thread protocol.ThreadID
	state  protocol.Hash
}

// empty reports whether there is nothing to post.
func (s *said) empty() bool {
	return len(s.messages)+len(s.concerns) == 0 && s.duty == nil && s.anew == nil
}

// concern is a node whose failure would hold a manager up.
type concern struct {
	object    keyspace.Key // zero: the application's manager
	node      protocol.NodeRef
	suspected bool // the manager thinks so
}

// input is an entry of the log: what a manager is told.
//
//	application's key, object's key or zero, event as package pb encodes it
const inputHeader = 2 * len(keyspace.Key{})

func inputOf(app, object keyspace.Key, event []byte) []byte {
	b := make([]byte, 0, inputHeader+len(event))
	return append(append(append(b, app[:]...), object[:]...), event...)
}

// ApplyOwn steps a manager.
func (m *Machine) ApplyOwn(c session.Context, data []byte) {
	if len(data) < inputHeader {
		return
	}
	var app, object keyspace.Key
	copy(object[:], data[copy(app[:], data):])
	s := said{app: app}
	if object == (keyspace.Key{}) {
		ev, err := pb.DecodeAppEvent(data[inputHeader:])
		if err != nil {
			return
		}
		m.stepApp(&s, ev)
	} else {
		ev, err := pb.DecodeObjectEvent(data[inputHeader:])
		if err != nil || ev.Msg != nil && ev.Msg.Object != object {
			return
		}
		m.stepObject(&s, object, ev)
	}
	if !s.empty() {
		c.Post(s)
	}
}

// of returns what is known of an application, or makes room for it.
func (m *Machine) of(app keyspace.Key) *application {
	a, ok := m.apps[app]
	if !ok {
		if len(m.apps) >= GroupAppsMax {
			return nil
		}
		if m.apps == nil {
			m.apps = make(map[keyspace.Key]*application)
		}
		a = &application{objects: make(map[keyspace.Key]*manager.Manager), busy: make(map[keyspace.Key]struct{})}
		m.apps[app] = a
	}
	return a
}

// tidy forgets an application of which nothing is known.
func (m *Machine) tidy(app keyspace.Key) {
	if a := m.apps[app]; a != nil && a.manager == nil && len(a.objects) == 0 {
		delete(m.apps, app)
	}
}

func (m *Machine) stepObject(s *said, object keyspace.Key, ev manager.Event) {
	a := m.of(s.app)
	if a == nil {
		return
	}
	defer m.tidy(s.app)
	if ev.Kind == manager.Receive {
		switch {
		case ev.Msg.Epoch < a.epoch:
			if ev.Msg.From.Party == protocol.Node { // rule E; a survivor is told
				s.messages = append(s.messages, protocol.Message{Kind: protocol.Destroy, From: protocol.Address{Party: protocol.ObjectManager},
					To: protocol.At(ev.Msg.From.Node), Epoch: a.epoch, Object: object})
			}
			return
		case ev.Msg.Epoch > a.epoch: // REINIT may have been lost, and what nobody uses any more would hear of nothing else
			a.epoch = ev.Msg.Epoch
			for key, om := range a.objects {
				if om.Epoch() < a.epoch {
					delete(a.objects, key)
					delete(a.busy, key)
					m.objects--
				}
			}
		}
	}
	om := a.objects[object]
	if om == nil {
		if ev.Kind != manager.Receive || ev.Msg.Kind == protocol.Reinit || m.objects >= GroupObjectsMax {
			return
		}
		om = manager.New(manager.Config{App: s.app, Object: object, Epoch: ev.Msg.Epoch, Life: m.life})
		a.objects[object] = om
		m.objects++
	}
	s.messages = om.Step(ev, s.messages)
	if om.Waits() {
		a.busy[object] = struct{}{}
	} else {
		delete(a.busy, object)
	}
	if om.Blank() {
		delete(a.objects, object)
		m.objects--
	}
}

func (m *Machine) stepApp(s *said, ev appmanager.Event) {
	a := m.of(s.app)
	if a == nil {
		return
	}
	defer m.tidy(s.app)
	if a.manager == nil {
		if ev.Kind != appmanager.Receive || ev.Msg.Kind != protocol.Create || ev.Msg.Epoch != m.epoch {
			m.closed(s, ev)
			return
		}
		a.manager, a.after = appmanager.New(appmanager.Config{App: s.app, Epoch: m.epoch, Checkpoint: m.ids}), m.ids
	}
	before, last, had := a.manager.Epoch(), a.manager.SavedID(), a.manager.Threads()
	_, root := a.manager.Saved()
	m.perform(s, a.manager, a.manager.Step(ev, nil))
	if a.manager.Epoch() != before {
		s.anew = m.note(s.app, a.manager, ev)
	}
	if a.manager.Epoch() == before && a.manager.SavedID() != last {
		_, next := a.manager.Saved()
		d := s.dutyOf(a.manager)
		d.collect, d.saved, d.roots = true, a.manager.SavedID(), []protocol.Hash{next, root}
	}
	if a.manager.Threads() > 0 {
		return
	}
	if a.manager.Epoch() == before {
		if _, hash := a.manager.Saved(); had == 0 && hash != (protocol.Hash{}) {
			return // a failure has left nobody, and the checkpoint to go on from: what comes late from before it ends nothing
		}
		// The last one has left, and left nothing to do: what is there is of an execution that is over.
		stored := a.manager.Stored(a.after)
		a.manager.Forget()
		m.perform(s, a.manager, a.manager.Step(appmanager.Event{Kind: appmanager.Receive, Msg: restartOf(before, keyspace.NodeID{})}, nil))
		m.over(s, a, stored)
		m.anew = slices.DeleteFunc(m.anew, func(b beganAnew) bool { return b.app == s.app })
	} else if _, hash := a.manager.Saved(); hash == (protocol.Hash{}) { // otherwise whoever opens it next finds what the checkpoint has
		m.over(s, a, a.manager.Stored(a.after))
	}
}

// over forgets an application's manager. Chunks may be stored for one checkpoint more than have been begun, since threads are created with them: they are
// collected too, and those of the next application are kept for later ones.
func (m *Machine) over(s *said, a *application, stored bool) {
	last := a.manager.Checkpoint() + 1
	if stored {
		d := s.dutyOf(a.manager)
		d.collect, d.saved, d.roots = true, last, nil
	}
	m.epoch, m.ids = max(m.epoch, a.manager.Epoch()), max(m.ids, last)
	a.manager = nil
}

// restartOf is what has an application begin anew, since somebody on a node asks for it.
func restartOf(e protocol.Epoch, by keyspace.NodeID) *protocol.Message {
	return &protocol.Message{Kind: protocol.RestartReq, From: protocol.Address{Party: protocol.ObjectManager}, To: protocol.Address{Party: protocol.AppManager},
		Epoch: e, Flag: true, Object: asked, Requester: protocol.NodeRef{ID: by, Inc: 1}}
}

// asked is no object's key.
var asked = keyspace.Key{1}

// perform posts what a manager says, and what it has its host do.
func (m *Machine) perform(s *said, am *appmanager.Manager, acts []appmanager.Action) {
	for _, act := range acts {
		switch act.Kind {
		case appmanager.Send:
			s.messages = append(s.messages, act.Msg)
		case appmanager.Choose:
			s.dutyOf(am)
		case appmanager.Save:
			s.dutyOf(am).save = &act.Manifest
		}
	}
	switch am.State() {
	case appmanager.Stopping, appmanager.Reading, appmanager.Saving:
		s.dutyOf(am)
	}
}

// dutyOf returns the duty of an application's leader, as it is now.
func (s *said) dutyOf(am *appmanager.Manager) *duty {
	if s.duty == nil {
		s.duty = new(duty)
	}
	d := s.duty
	d.epoch, d.checkpoint, d.places, d.nodes = am.Epoch(), 0, nil, nil
	switch am.State() {
	case appmanager.Stopping, appmanager.Reading, appmanager.Saving:
		d.checkpoint = am.Checkpoint()
	case appmanager.Restarting:
		for _, t := range am.List() {
			if t.Guest {
				d.nodes = append(d.nodes, t.At)
			} else if t.At.IsZero() {
				d.places = append(d.places, unplaced{t.ID, t.Hash})
			}
		}
	}
	return d
}

// closed answers for the manager of an application that nobody has open: what speaks to it is of an execution that is over.
func (m *Machine) closed(s *said, ev appmanager.Event) {
	if ev.Kind != appmanager.Receive || ev.Msg.Epoch >= m.epoch {
		return
	}
	reply := protocol.Message{From: protocol.Address{Party: protocol.AppManager}, To: ev.Msg.From, Epoch: m.epoch}
	switch ev.Msg.From.Party {
	case protocol.Node:
		reply.Kind = protocol.Destroy
	case protocol.ObjectManager:
		reply.Kind, reply.Object = protocol.Reinit, ev.Msg.Object
	default:
		return
	}
	s.messages = append(s.messages, reply)
}

// Resend posts again what managers wait for, and whom.
func (m *Machine) Resend(c session.Context) {
	for _, app := range slices.SortedFunc(maps.Keys(m.apps), compareKeys) {
		a := m.apps[app]
		s := said{app: app}
		if a.manager != nil {
			m.perform(&s, a.manager, a.manager.Resend(nil))
			for _, n := range a.manager.Concerns() {
				s.concerns = append(s.concerns, concern{node: n, suspected: a.manager.Suspects(n)})
			}
		}
		for _, object := range slices.SortedFunc(maps.Keys(a.busy), compareKeys) {
			om := a.objects[object]
			s.messages = om.Resend(s.messages)
			for _, n := range om.Concerns() {
				s.concerns = append(s.concerns, concern{object, n, om.Suspects(n)})
			}
		}
		if !s.empty() {
			c.Post(s)
		}
	}
}

func compareKeys(a, b keyspace.Key) int { return bytes.Compare(a[:], b[:]) }

// ThreadsShown bounds the threads, and the nodes, that an [Info] lists.
const ThreadsShown = 1 << 10

// Info is what a group says of an application.
type Info struct {
	Open    bool           // it is there: somebody has it open, or could go on from its checkpoint
	Epoch   protocol.Epoch // of this execution; of the next one where there is none
	Threads int            // that have not ended, those who have it open included

	State      appmanager.State
	Checkpoint protocol.CheckpointID // the last that was begun
	Saved      protocol.CheckpointID // the last that is complete, 0 for none
	Manifest   protocol.Hash         // its name
	Objects    int                   // that it has
	Nodes      []protocol.NodeRef    // that have the application open, at most [ThreadsShown]
	Running    []RunningThread       // the threads, at most [ThreadsShown]
}

// RunningThread is what an application's manager knows of a thread.
type RunningThread struct {
	ID        protocol.ThreadID
	At, To    protocol.NodeRef // At is nobody while a restart looks for a place; To is nobody unless it migrates
	Migration protocol.MigSeq
	Stopped   bool // for the checkpoint that is under way
}

// ObjectInfo is what a group says of an object.
type ObjectInfo struct {
	Touched bool             // in this execution
	Epoch   protocol.Epoch   // that the manager is of
	State   string           // of the manager, as the paper spells it
	Owner   protocol.NodeRef // zero: nobody
	Copies  int              // nodes that may have a copy, beside the owner
	Waiting int              // requests
}

// Query tells of an application, by its key. What follows the key is how the names of the threads begin that are listed. Or it tells of an object: the
// application's key is followed by the object's then. Or, with one byte after the application's key, of why that began anew the last time.
func (m *Machine) Query(_ session.Context, data []byte) []byte {
	var app keyspace.Key
	switch len(data) {
	case len(app) + 1:
		copy(app[:], data)
		return m.queryAnew(app)
	case 2 * len(app):
		copy(app[:], data)
		return m.queryObject(app, keyspace.Key(data[len(app):]))
	}
	info := Info{Epoch: m.epoch, Checkpoint: m.ids}
	name := data[min(copy(app[:], data), len(data)):] // of a thread, or nothing
	if m.apps[app] != nil && m.apps[app].manager != nil {
		am := m.apps[app].manager
		saved, hash := am.Saved()
		info = Info{Open: true, Epoch: am.Epoch(), Threads: am.Threads(), State: am.State(), Checkpoint: am.Checkpoint(), Saved: am.SavedID(),
			Manifest: hash, Objects: len(saved.Objects)}
		for _, t := range am.List() {
			switch {
			case t.Guest && len(info.Nodes) < ThreadsShown:
				info.Nodes = append(info.Nodes, t.At)
			case !t.Guest && len(info.Running) < ThreadsShown && bytes.HasPrefix(t.ID[:], name):
				info.Running = append(info.Running, RunningThread{t.ID, t.At, t.To, t.Migration, t.Stopped})
			}
		}
	}
	return info.encode()
}

func (i *Info) encode() []byte {
	b := protocol.AppendBools(nil, i.Open)
	for _, v := range [...]uint64{uint64(i.Epoch), uint64(i.Threads), uint64(i.State), uint64(i.Checkpoint), uint64(i.Saved), uint64(i.Objects)} {
		b = binary.AppendUvarint(b, v)
	}
	b = binary.AppendUvarint(append(b, i.Manifest[:]...), uint64(len(i.Nodes)))
	for _, n := range i.Nodes {
		b = n.Append(b)
	}
	b = binary.AppendUvarint(b, uint64(len(i.Running)))
	for _, t := range i.Running {
		b = t.To.Append(t.At.Append(append(b, t.ID[:]...)))
		b = protocol.AppendBools(binary.AppendUvarint(b, uint64(t.Migration)), t.Stopped)
	}
	return b
}

func decodeInfo(b []byte) (i Info, err error) {
	r := &reader{b: b}
	i.Open = r.byte() == 1
	i.Epoch = protocol.Epoch(r.uint())
	i.Threads = int(min(r.uint(), protocol.ThreadsMax))
	if i.State = appmanager.State(min(r.uint(), 255)); i.State > appmanager.Restarting {
		r.fail("state %d", i.State)
	}
	i.Checkpoint, i.Saved = protocol.CheckpointID(r.uint()), protocol.CheckpointID(r.uint())
	i.Objects = int(min(r.uint(), protocol.ObjectsMax))
	i.Manifest = protocol.Hash(r.key())
	for range r.count(ThreadsShown) {
		i.Nodes = append(i.Nodes, r.node())
	}
	for range r.count(ThreadsShown) {
		t := RunningThread{ID: protocol.ThreadID(r.thread()), At: r.node(), To: r.node()}
		t.Migration, t.Stopped = protocol.MigSeq(r.uint()), r.byte() == 1
		i.Running = append(i.Running, t)
	}
	if err := r.end(); err != nil {
		return Info{}, err
	}
	return i, nil
}

func (m *Machine) queryObject(app, object keyspace.Key) []byte {
	var i ObjectInfo
	if a := m.apps[app]; a != nil && a.objects[object] != nil {
		om := a.objects[object]
		i = ObjectInfo{!om.Owner().IsZero(), om.Epoch(), om.State().String(), om.Owner(), om.Copies(), om.Pending()}
	}
	b := binary.AppendUvarint(protocol.AppendBools(nil, i.Touched), uint64(i.Epoch))
	b = i.Owner.Append(appendString(b, i.State))
	return binary.AppendUvarint(binary.AppendUvarint(b, uint64(i.Copies)), uint64(i.Waiting))
}

func decodeObjectInfo(b []byte) (i ObjectInfo, err error) {
	r := &reader{b: b}
	i.Touched = r.byte() == 1
	i.Epoch = protocol.Epoch(r.uint())
	i.State = r.string()
	i.Owner = r.node()
	i.Copies = int(min(r.uint(), protocol.NodesMax))
	i.Waiting = int(min(r.uint(), protocol.NodesMax))
	if err := r.end(); err != nil {
		return ObjectInfo{}, err
	}
	return i, nil
}

// Apply executes no commands of clients: managers are told things by drivers alone ([replicagroup.Host.Input]).
func (m *Machine) Apply(session.Context, []byte) []byte { return nil }

// Tick, Deadline: nothing here ends by time.
func (m *Machine) Tick(session.Context)            {}
func (m *Machine) Deadline() (time.Duration, bool) { return 0, false }

// SessionEnded: nobody has a session.
func (m *Machine) SessionEnded(session.Context, order.ClientID) {}

// FirstView and NextView: the log's order is all that managers need of the group.
func (m *Machine) FirstView(order.View)                 {}
func (m *Machine) NextView(session.Context, order.View) {}

// KeyOf, Carve and Graft: locks may get groups of their own, and objects do not.
func (m *Machine) KeyOf([]byte, bool) (keyspace.Key, bool) { return keyspace.Key{}, false }
func (m *Machine) Carve(session.Context, string) ([]byte, []session.PartClient) {
	return nil, nil
}
func (m *Machine) Graft(_ session.Context, part []byte) error {
	if len(part) > 0 {
		return fmt.Errorf("coherence: %d bytes of a key that moves, and objects do not", len(part))
	}
	return nil
}

// snapshotVersion is that of the snapshots that are written; snapshotOldest is the oldest that is read.
const (
	snapshotVersion = 4
	snapshotOldest  = 2
)

// Snapshot returns the whole state; nothing where nobody has used the group.
//
//	version, epoch, number of the last checkpoint, number of applications; for each:
//	key, epoch of its objects, length of the manager's state (0: none), state, number of objects; for each: key, length, state
//	number of those that have begun anew; for each: key, why. Version 2 ends before that
//	for each application with a manager: what its checkpoints are numbered after. Version 3 ends before that
func (m *Machine) Snapshot() []byte {
	if len(m.apps) == 0 && m.epoch == m.first() && m.ids == 0 {
		return nil
	}
	b := binary.AppendUvarint(binary.AppendUvarint([]byte{snapshotVersion}, uint64(m.epoch)), uint64(m.ids))
	b = binary.AppendUvarint(b, uint64(len(m.apps)))
	for _, app := range slices.SortedFunc(maps.Keys(m.apps), compareKeys) {
		a := m.apps[app]
		b = binary.AppendUvarint(append(b, app[:]...), uint64(a.epoch))
		var state []byte
		if a.manager != nil {
			state = a.manager.Snapshot()
		}
		b = append(binary.AppendUvarint(b, uint64(len(state))), state...)
		b = binary.AppendUvarint(b, uint64(len(a.objects)))
		for _, object := range slices.SortedFunc(maps.Keys(a.objects), compareKeys) {
			state = a.objects[object].Snapshot()
			b = append(b, object[:]...)
			b = append(binary.AppendUvarint(b, uint64(len(state))), state...)
		}
	}
	b = binary.AppendUvarint(b, uint64(len(m.anew)))
	for i := range m.anew {
		b = m.anew[i].append(append(b, m.anew[i].app[:]...))
	}
	for _, a := range m.managed() {
		b = binary.AppendUvarint(b, uint64(a.after))
	}
	return b
}

// managed returns the applications whose managers are here, in the order of their keys.
func (m *Machine) managed() (all []*application) {
	for _, app := range slices.SortedFunc(maps.Keys(m.apps), compareKeys) {
		if a := m.apps[app]; a.manager != nil {
			all = append(all, a)
		}
	}
	return all
}

// first is the epoch that the first application of this life begins with.
func (m *Machine) first() protocol.Epoch { return protocol.Epoch((m.life-1)<<32 + 1) }

// Restore replaces the state by one that Snapshot encoded. It refuses anything else, and changes nothing then.
func (m *Machine) Restore(b []byte) error {
	next := Machine{life: m.life, epoch: m.first()}
	if len(b) > 0 {
		if err := next.decode(b); err != nil {
			return err
		}
	}
	*m = next
	return nil
}

func (m *Machine) decode(b []byte) error {
	r := &reader{b: b}
	version := r.byte()
	if version < snapshotOldest || version > snapshotVersion {
		return fmt.Errorf("%w: version %d, this program reads %d to %d", errSnapshot, version, snapshotOldest, snapshotVersion)
	}
	m.epoch, m.ids = protocol.Epoch(r.uint()), protocol.CheckpointID(r.uint())
	if m.epoch < m.first() {
		r.fail("epoch %d is of an earlier life", m.epoch)
	}
	var lastApp keyspace.Key
	for i := range r.count(GroupAppsMax) {
		app := r.key()
		if i > 0 && compareKeys(lastApp, app) >= 0 {
			r.fail("applications out of order")
		}
		lastApp = app
		epoch := protocol.Epoch(r.uint())
		state := r.take(r.uint())
		objects := r.count(GroupObjectsMax - m.objects)
		if r.err != nil {
			return r.err
		}
		a := m.of(app)
		a.epoch = epoch
		if len(state) > 0 {
			am, err := appmanager.Restore(appmanager.Config{App: app}, state)
			if err != nil {
				return fmt.Errorf("%w: %w", errSnapshot, err)
			}
			a.manager = am
		} else if objects == 0 {
			r.fail("an application of which nothing is known")
		}
		var last keyspace.Key
		for j := range objects {
			object := r.key()
			if j > 0 && compareKeys(last, object) >= 0 {
				r.fail("objects out of order")
			}
			last = object
			state := r.take(r.uint())
			if r.err != nil {
				return r.err
			}
			om, err := manager.Restore(manager.Config{App: app, Object: object, Life: m.life}, state)
			if err != nil {
				return fmt.Errorf("%w: %w", errSnapshot, err)
			}
			a.objects[object] = om
			m.objects++
			if om.Waits() {
				a.busy[object] = struct{}{}
			}
		}
	}
	if version > 2 {
		for range r.count(AnewMax) {
			app := r.key()
			m.anew = append(m.anew, beganAnew{app, r.anew()})
		}
	}
	if version > 3 {
		for _, a := range m.managed() {
			if a.after = protocol.CheckpointID(r.uint()); a.after > a.manager.Checkpoint() {
				r.fail("checkpoint %d is numbered after %d", a.manager.Checkpoint(), a.after)
			}
		}
	}
	return r.end()
}
