package coherence

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	logging "github.com/ipfs/go-log/v2"
	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/coherence/access"
	"latchkey/coherence/appmanager"
	"latchkey/coherence/cachedcopy"
	"latchkey/coherence/chunks"
	"latchkey/coherence/durable/copies"
	durablepb "latchkey/coherence/durable/pb"
	"latchkey/coherence/manager"
	"latchkey/coherence/pb"
	"latchkey/coherence/protocol"
	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/internal/driver"
	"latchkey/replicagroup"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/session"
)

var log = logging.Logger("latchkey/object")

// Overlay is what a [Service] needs of the overlay; *dht.Overlay is one.
type Overlay interface {
	Self() peer.ID
	Node() keyspace.NodeID
	Handle(service string, h dht.Handler)
	Send(to peer.ID, key keyspace.Key, service string, msg []byte) error
	OnSuspect(func(p peer.ID, suspected bool))
	OnUnwatch(func(p peer.ID))
	PeerOf(keyspace.NodeID) (peer.ID, bool)
	Call(ctx context.Context, to peer.ID, key keyspace.Key, service string, msg []byte) ([]byte, error)
	Go(to peer.ID, key keyspace.Key, service string, msg []byte, timeout time.Duration, done func(reply []byte, err error))
	Info(peer.ID) peer.AddrInfo
	Learn(peer.AddrInfo)
}

// Periods of a service.
const (
	// repeatEvery is a turn. A node waits for an answer for repeatFirst turns, then for twice as many, at most for repeatMost, before it asks
	// again; and then asks every voter of the group.
	repeatEvery = 250 * time.Millisecond
	repeatFirst = 2
	repeatMost  = 8
	// listenEvery is how often a node asks whether an execution is over.
	listenEvery = 2 * time.Second
	// relocateEvery is how often a node looks a group up anew that does not answer.
	relocateEvery = 2 * time.Second
	// watchFor is how long the failure detector watches a node that no manager led here has named again.
	watchFor = 5 * time.Second
	// giveUpAfter is how long a node has to be suspected without a break before the manager of an application hears of it, and ends the
	// execution. A slow node costs others that time; a wrong suspicion would cost them everything.
	giveUpAfter = 3 * time.Second
	// closeTimeout bounds how long [Service.Close] waits for masters to find other owners, and silentTimeout how long while nothing is
	// heard about them.
	closeTimeout  = 5 * time.Second
	silentTimeout = 1500 * time.Millisecond
)

// Limits of a service. What would exceed them is dropped, and repeated by who said it.
const (
	// outboxMax bounds the messages that wait to be encoded and sent.
	outboxMax = 1 << 14
)

// Service is a peer's part in shared objects: it gives the groups that are led here what their managers are told, sends what they say, and
// has the applications that are open on this node. Safe for concurrent use.
type Service struct {
	overlay Overlay
	groups  *replicagroup.Host
	genesis placement.Genesis
	client  *replicagroup.Client
	chunks  *chunks.Service

	out  *driver.Mailbox[outgoing]
	ctx  context.Context
	end  context.CancelFunc
	wg   sync.WaitGroup
	beat *time.Ticker

	mu     sync.Mutex
	closed bool
	inc    uint64 // the last incarnation that was drawn
	// reserved is the highest incarnation that store knows of: no later process draws one up to it.
	reserved uint64
	store    chunks.Store // nil: the clock has to do
	apps     map[keyspace.Key]*App
	parts    map[keyspace.Key]*part          // what stays of those that go on by themselves
	leads    map[keyspace.Key]*leading       // of applications whose groups are led here
	epochs   map[keyspace.Key]protocol.Epoch // the last ones heard of, of applications that were open here
	come     map[keyspace.Key]protocol.Epoch // what the groups of applications have said of their epochs
	asks     map[keyspace.Key][]waiter       // what waits for them to say it
	leaders  map[keyspace.Prefix]peer.ID     // who spoke last for the managers of a prefix
	seeking  map[keyspace.Prefix][]waiter    // what waits for a group that is being looked for
	sought   map[keyspace.Prefix]time.Time   // when it was last
	waiting  room                            // that seeking and asks have
	asking   int                             // questions to voters under way

	durable *copies.Service // from Start on

	counters access.Counters
	restarts atomic.Uint64 // executions that ended under those who had them open here

	detect sync.Mutex            // the failure detector's opinions; never held with mu
	down   map[peer.ID]time.Time // who is suspected, and since when
	watch  map[peer.ID]time.Time // who is watched, and when a manager last named it
}

// outgoing is a message on its way, or what a machine has posted.
type outgoing struct {
	app     keyspace.Key
	message protocol.Message
	posted  *said
}

// NewService makes the service of a peer, with the one that keeps what checkpoints consist of, which is closed after it. It comes before the host of replica groups, which needs [Service.Machine] and [Service.Outlet], and before
// the overlay is started. It does nothing before [Service.Start].
func NewService(o Overlay, c *chunks.Service) *Service {
	s := &Service{
		overlay: o, chunks: c, parts: make(map[keyspace.Key]*part), leads: make(map[keyspace.Key]*leading), come: make(map[keyspace.Key]protocol.Epoch), asks: make(map[keyspace.Key][]waiter), out: driver.NewMailbox[outgoing](outboxMax),
		apps: make(map[keyspace.Key]*App), epochs: make(map[keyspace.Key]protocol.Epoch),
		leaders: make(map[keyspace.Prefix]peer.ID), seeking: make(map[keyspace.Prefix][]waiter), sought: make(map[keyspace.Prefix]time.Time),
		down: make(map[peer.ID]time.Time), watch: make(map[peer.ID]time.Time),
	}
	s.ctx, s.end = context.WithCancel(context.Background())
	o.Handle(pb.Service, s.receive)
	o.Handle(durablepb.ServiceNode, s.receiveDurable)
	o.Handle(serviceWho, s.answerWho)
	o.Handle(serviceHosts, s.answerHosts)
	o.Handle(serviceNames, s.answerNames)
	o.OnSuspect(s.suspect)
	o.OnUnwatch(func(p peer.ID) { s.suspect(p, false) })
	return s
}

// Machine makes the state machine of a group: a [replicagroup.MachineFactory].
func (s *Service) Machine(g order.GroupID) session.Machine { return NewMachine(g) }

// Outlet takes what managers say in groups that are led here.
func (s *Service) Outlet(_ order.GroupID, posted any) {
	if p, ok := posted.(said); ok {
		s.out.TryPut(outgoing{posted: &p})
	}
}

// Start begins to serve. It is called once.
func (s *Service) Start(groups *replicagroup.Host, g placement.Genesis) {
	s.groups, s.genesis, s.client = groups, g, groups.NewClient()
	s.startDurable()
	s.beat = time.NewTicker(watchFor / 4)
	s.wg.Go(s.run)
}

// Close closes the applications that are open on this node, for some seconds at most, and ends the service.
func (s *Service) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	var open []*App
	for _, a := range s.apps {
		open = append(open, a)
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(s.ctx, closeTimeout)
	defer cancel()
	var all sync.WaitGroup
	errs := make([]error, len(open))
	for i, a := range open {
		all.Go(func() { errs[i] = a.closeHeard(ctx) })
	}
	all.Wait()
	s.mu.Lock()
	s.end() // nothing is begun after this
	s.mu.Unlock()
	s.out.Close()
	s.wg.Wait()
	if s.durable != nil {
		s.durable.Close()
	}
	if s.client != nil {
		errs = append(errs, s.client.Close())
	}
	return errors.Join(errs...)
}

// Closed reports whether Close was called.
func (s *Service) Closed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// run sends what waits, and looks after those who are watched.
func (s *Service) run() {
	defer s.beat.Stop()
	var batch []outgoing
	for {
		select {
		case <-s.out.Wake():
		case <-s.beat.C:
			s.unwatch()
		case <-s.ctx.Done():
			return
		}
		var closed bool
		if batch, closed = s.out.Take(batch); closed {
			return
		}
		for i := range batch {
			if p := batch[i].posted; p != nil {
				for j := range p.messages {
					s.post(p.app, &p.messages[j])
				}
				for _, c := range p.concerns {
					s.concern(p.app, c)
				}
				if p.anew != nil {
					log.Infow("an application begins anew", "app", p.app, "epoch", p.anew.Epoch, "why", p.anew)
				}
				if p.duty != nil {
					s.do(p.app, p.duty)
				}
			} else {
				s.post(batch[i].app, &batch[i].message)
			}
		}
		clear(batch)
	}
}

// post sends a message, whoever it is for. It does not block. It is not called under the mutex of an object, which the message may be for.
func (s *Service) post(app keyspace.Key, m *protocol.Message) {
	if m.To.Party != protocol.Node {
		s.route(app, m, true)
		return
	}
	if m.To.Node.ID == s.overlay.Node() {
		s.deliver(app, m)
		return
	}
	frame, ok := s.encode(app, m)
	if !ok {
		return
	}
	if p, ok := s.overlay.PeerOf(m.To.Node.ID); ok {
		s.send(p, frame)
		return
	}
	key := app
	if m.Object != (keyspace.Key{}) {
		key = m.Object
	}
	s.introduce(key, m.To.Node.ID, func(p peer.ID) { s.send(p, frame) })
}

func (s *Service) encode(app keyspace.Key, m *protocol.Message) ([]byte, bool) {
	frame, err := pb.EncodeFrame(nil, app, m)
	if err != nil {
		log.Errorw("a message is not sent", "message", m, "err", err)
		return nil, false
	}
	return frame, true
}

func (s *Service) send(to peer.ID, frame []byte) {
	if err := s.overlay.Send(to, keyspace.Key{}, pb.Service, frame); err != nil {
		log.Debugw("a message is lost", "peer", to, "err", err)
	}
}

// keyOf returns the key whose group keeps the manager that a message is for, or from.
func keyOf(app keyspace.Key, m *protocol.Message, manager protocol.Party) keyspace.Key {
	if manager == protocol.AppManager {
		return app
	}
	return m.Object
}

// route sends a message to a manager: to every voter of its group, of which only the leader takes it (route_replica of the paper), or, unless it
// is for all, to whom is known to lead. It does not block.
func (s *Service) route(app keyspace.Key, m *protocol.Message, all bool) {
	key := keyOf(app, m, m.To.Party)
	prefix := s.genesis.PrefixOf(key)
	d, ok := s.groups.Known(prefix)
	if !ok {
		msg := *m
		s.seek(key, false, weightOf(&msg), func() { s.route(app, &msg, all) })
		return
	}
	var to []peer.ID
	s.mu.Lock()
	leader, known := s.leaders[prefix]
	if all {
		delete(s.leaders, prefix)
	}
	s.mu.Unlock()
	for _, id := range d.View.Voters() {
		p, _ := d.Peer(id)
		if known && !all && peer.ID(p.ID) == leader {
			to = []peer.ID{leader}
			break
		}
		to = append(to, peer.ID(p.ID))
	}
	var frame []byte
	for _, p := range to {
		if p == s.overlay.Self() {
			s.input(p, app, m)
			continue
		}
		if frame == nil {
			if frame, ok = s.encode(app, m); !ok {
				return
			}
		}
		s.send(p, frame)
	}
}

// seek finds a key's group and calls then, on another goroutine, which keeps so many bytes until then. fresh: those that are known do not answer.
func (s *Service) seek(key keyspace.Key, fresh bool, bytes int, then func()) {
	prefix := s.genesis.PrefixOf(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return
	}
	waiting, under := s.seeking[prefix]
	if !under && fresh && time.Since(s.sought[prefix]) < relocateEvery {
		return
	}
	if then != nil {
		if !s.waiting.take(bytes) {
			return
		}
		waiting = append(waiting, waiter{then, bytes})
	}
	s.seeking[prefix] = waiting
	if under {
		return
	}
	s.sought[prefix] = time.Now()
	s.wg.Go(func() {
		locate := s.groups.Locate
		if fresh {
			locate = s.groups.Relocate
		}
		ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
		defer cancel()
		d, err := locate(ctx, key)
		var leader placement.Peer
		if err == nil { // it may have been founded a moment ago, and takes nothing before it has a leader
			leader, err = s.groups.LeaderOf(ctx, d)
		}
		s.mu.Lock()
		if err == nil {
			s.leaders[prefix] = peer.ID(leader.ID)
		}
		waiting := s.seeking[prefix]
		delete(s.seeking, prefix)
		s.waiting.free(waiting)
		s.mu.Unlock()
		if err != nil {
			log.Debugw("a group is not found", "prefix", prefix, "err", err)
			return
		}
		for _, w := range waiting {
			w.then()
		}
	})
}

// receive takes a message of a peer. Nobody speaks for another, and for managers only members of their group do.
func (s *Service) receive(req *dht.Request) {
	app, m, err := pb.DecodeFrame(req.Data)
	switch {
	case err != nil:
		req.Misbehaved("malformed message about an object")
		return
	case !req.OneWay():
		req.Misbehaved("a message about an object awaits an answer")
		return
	case m.From.Party == protocol.Node && m.From.Node.ID != dht.NodeIDOf(req.From):
		req.Misbehaved("a message about an object speaks for another node")
		return
	}
	if m.From.Party == protocol.Node {
		if m.Kind == protocol.Create && m.Flag && m.Node != m.From.Node {
			return // who uses objects says so himself
		}
		s.take(req.From, app, &m)
		return
	}
	key := keyOf(app, &m, m.From.Party)
	if s.member(req.From, key) {
		s.take(req.From, app, &m)
		return
	}
	// The group may have moved on, or is not known here.
	s.seek(key, true, weightOf(&m), func() {
		if s.member(req.From, key) {
			s.take(req.From, app, &m)
		}
	})
}

// member reports whether a peer is of the group of a key, as far as is known here.
func (s *Service) member(p peer.ID, key keyspace.Key) bool {
	d, ok := s.groups.Known(s.genesis.PrefixOf(key))
	if !ok {
		return false
	}
	_, ok = d.View.MemberAt(dht.NodeIDOf(p))
	return ok
}

// take hands a message on that its sender may send.
func (s *Service) take(from peer.ID, app keyspace.Key, m *protocol.Message) {
	if m.To.Party == protocol.Node {
		if m.From.Party != protocol.Node {
			s.mu.Lock()
			s.leaders[s.genesis.PrefixOf(keyOf(app, m, m.From.Party))] = from
			s.mu.Unlock()
		}
		s.deliver(app, m)
		return
	}
	s.input(from, app, m)
}

// deliver hands a message to the application that it is for, if that is the incarnation which is there.
func (s *Service) deliver(app keyspace.Key, m *protocol.Message) {
	if m.To.Node.ID != s.overlay.Node() {
		return
	}
	s.mu.Lock()
	a := s.apps[app]
	if a != nil && a.self == m.To.Node {
		s.mu.Unlock()
		a.receive(m)
		return
	}
	// What is refused is so in the name of a later incarnation. It is drawn before the next Open can be: that one is not over.
	now := protocol.NodeRef{ID: s.overlay.Node()}
	if a != nil {
		now = a.self
	} else {
		now.Inc = s.drawLocked()
	}
	s.mu.Unlock()
	s.refuse(app, now, m)
}

// refuse tells whoever counts on an earlier incarnation of this node, which is now another one, that it is gone (R6): the application was closed here,
// or the process has been started anew.
func (s *Service) refuse(app keyspace.Key, now protocol.NodeRef, m *protocol.Message) {
	toNode := cachedcopy.ForNode(m)
	if m.Kind == protocol.Destroy || m.From.Party == protocol.Node && m.Kind != protocol.Copy && !toNode || !now.Succeeds(m.To.Node) {
		return
	}
	refused := protocol.Message{Kind: protocol.Refused, From: protocol.At(now), Requester: now, Epoch: m.Epoch, Object: m.Object}
	switch {
	case toNode:
		refused.To = m.From
		s.post(app, &refused)
		return
	case m.From.Party == protocol.AppManager:
		refused.To.Party = protocol.AppManager
	default:
		refused.To.Party = protocol.ObjectManager
	}
	s.route(app, &refused, false)
}

// reserveFor is how far ahead of the clock incarnations are reserved in the store.
const reserveFor = time.Hour

// Remember has the service keep in a store which incarnations this node has had, so that a process that begins with a clock set back draws later
// ones (R6). It is called before [Service.Start]; without it that rests on the clock.
func (s *Service) Remember(store chunks.Store) error {
	b, err := store.Blob(chunks.Reserved, [32]byte{})
	if err != nil {
		return fmt.Errorf("coherence: what incarnations this node had: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.store = store; len(b) == 8 {
		s.inc = max(s.inc, binary.BigEndian.Uint64(b))
	}
	return nil
}

// draw returns an incarnation that is above all that this node had.
func (s *Service) draw() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.drawLocked()
}

func (s *Service) drawLocked() uint64 {
	s.inc = max(s.inc+1, uint64(time.Now().UnixNano()))
	if s.store != nil && s.inc > s.reserved { // seldom
		next := s.inc + uint64(reserveFor)
		err := s.store.PutBlob(chunks.Reserved, [32]byte{}, []byte{0, 8}, binary.BigEndian.AppendUint64(nil, next))
		if err = errors.Join(err, s.store.SyncBlobs()); err != nil {
			log.Errorw("incarnations are not kept", "err", err) // the store stops the node by itself
		} else {
			s.reserved = next
		}
	}
	return s.inc
}

// hasCome reports whether an application has come to an epoch, as far as its own group has said. An epoch that a liar named would end the present
// one for good: an object's manager takes any later one for the next (R7).
func (s *Service) hasCome(app keyspace.Key, e protocol.Epoch) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.come[app] >= e
}

// believe asks an application's group for its epoch, and calls then when it has answered, on another goroutine, which keeps so many bytes until then.
func (s *Service) believe(app keyspace.Key, bytes int, then func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil || !s.waiting.take(bytes) {
		return // it is repeated
	}
	waits, under := s.asks[app]
	s.asks[app] = append(waits, waiter{then, bytes})
	if !under {
		s.wg.Go(func() { s.confirm(app) })
	}
}

// confirm asks an application's group for its epoch.
func (s *Service) confirm(app keyspace.Key) {
	ctx, cancel := context.WithTimeout(s.ctx, relocateEvery)
	defer cancel()
	i, err := s.ask(ctx, app)
	s.mu.Lock()
	if err == nil {
		if len(s.come) >= GroupAppsMax {
			clear(s.come)
		}
		s.come[app] = max(s.come[app], i.Epoch)
	}
	waits := s.asks[app]
	delete(s.asks, app)
	s.waiting.free(waits)
	s.mu.Unlock()
	if err != nil {
		log.Debugw("it is not known which execution it is", "app", app, "err", err)
		return
	}
	for _, w := range waits {
		w.then()
	}
}

// input has the group that keeps a manager order a message for it, if the group is led here.
func (s *Service) input(from peer.ID, app keyspace.Key, m *protocol.Message) {
	if m.To.Party == protocol.AppManager || s.hasCome(app, m.Epoch) {
		s.order(from, app, m)
		return
	}
	msg := *m
	s.believe(app, weightOf(&msg), func() {
		if s.hasCome(app, msg.Epoch) {
			s.order(from, app, &msg)
		}
	})
}

func (s *Service) order(from peer.ID, app keyspace.Key, m *protocol.Message) {
	var event []byte
	var err error
	object := m.Object
	if m.To.Party == protocol.AppManager {
		object = keyspace.Key{}
		event, err = encodeApp(appmanager.Event{Kind: appmanager.Receive, Msg: m})
	} else {
		event, err = pb.EncodeObjectEvent(manager.Event{Kind: manager.Receive, Msg: m})
	}
	if err != nil {
		log.Errorw("a message is not ordered", "message", m, "err", err)
		return
	}
	s.groups.Input(from, keyOf(app, m, m.To.Party), ServiceName, inputOf(app, object, event))
}

// encodeApp encodes an event for the manager of an application, with the time.
func encodeApp(ev appmanager.Event) ([]byte, error) {
	ev.At = time.Now().UnixMilli()
	return pb.EncodeAppEvent(ev)
}

// concern watches a node that a manager counts on, and tells the manager when the failure detector thinks otherwise than it.
func (s *Service) concern(app keyspace.Key, c concern) {
	p, ok := s.overlay.PeerOf(c.node.ID)
	if !ok || p == s.overlay.Self() {
		return
	}
	s.detect.Lock()
	_, watched := s.watch[p]
	s.watch[p] = time.Now()
	if !watched && s.groups.Watch(p) {
		delete(s.down, p)
	}
	since, down := s.down[p]
	s.detect.Unlock()
	if c.object == (keyspace.Key{}) && down && time.Since(since) < giveUpAfter && !c.suspected || down == c.suspected {
		return
	}
	var event []byte
	var err error
	key := c.object
	if c.object == (keyspace.Key{}) {
		key = app
		kind := appmanager.Suspect
		if !down {
			kind = appmanager.Trust
		}
		event, err = encodeApp(appmanager.Event{Kind: kind, Node: c.node})
	} else {
		kind := manager.Suspect
		if !down {
			kind = manager.Trust
		}
		event, err = pb.EncodeObjectEvent(manager.Event{Kind: kind, Node: c.node})
	}
	if err == nil {
		s.groups.Input(s.overlay.Self(), key, ServiceName, inputOf(app, c.object, event))
	}
}

// suspect takes an opinion of the failure detector, which holds as long as anybody here watches the peer, be it another part of this node: a
// detector that begins to watch it anew knows nothing of what it said before, and would never take that back. An application would begin anew for a
// failure that was over minutes ago.
func (s *Service) suspect(p peer.ID, suspected bool) {
	s.detect.Lock()
	defer s.detect.Unlock()
	if !suspected {
		delete(s.down, p)
	} else if _, already := s.down[p]; !already {
		s.down[p] = time.Now()
	}
}

// unwatch ends the watches that nobody needs any more.
func (s *Service) unwatch() {
	s.detect.Lock()
	defer s.detect.Unlock()
	for p, at := range s.watch {
		if time.Since(at) > watchFor {
			delete(s.watch, p)
			s.groups.Unwatch(p)
		}
	}
}

// Applications returns those that are open on this node, by name.
func (s *Service) Applications() []*App {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*App
	for _, a := range s.apps {
		if a.epoch.Load() > 0 {
			all = append(all, a)
		}
	}
	slices.SortFunc(all, func(x, y *App) int { return strings.Compare(x.name, y.name) })
	return all
}

// Stats tells what this node has done with objects since it was made.
type Stats struct {
	Applications  int    // that are open here
	Copies        int    // of objects, of all of them
	Hits          uint64 // accesses that found the right they needed here; an estimate, since one in 64 is counted
	Misses        uint64 // that waited for other nodes
	Invalidations uint64 // copies given up since others wrote, or wanted to
	Restarts      uint64 // executions that ended under this node
}

// Stats returns what this node has done.
func (s *Service) Stats() Stats {
	st := Stats{Hits: s.counters.Hits(), Misses: s.counters.Misses.Load(), Invalidations: s.counters.Invalidations.Load(), Restarts: s.restarts.Load()}
	for _, a := range s.Applications() {
		st.Applications++
		st.Copies += a.Copies()
	}
	return st
}

// Info tells of an application, whether this node has it open or not. It blocks until its group answers or ctx ends.
func (s *Service) Info(ctx context.Context, app string) (Info, error) {
	if err := checkName("an application", app); err != nil {
		return Info{}, err
	}
	return s.ask(ctx, AppKey(app))
}

func (s *Service) ask(ctx context.Context, app keyspace.Key) (Info, error) {
	b, err := s.client.Query(ctx, app, ServiceName, app[:])
	if err != nil {
		return Info{}, err
	}
	return decodeInfo(b)
}
