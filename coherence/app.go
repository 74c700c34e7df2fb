package coherence

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"latchkey/coherence/access"
	"latchkey/coherence/appmanager"
	"latchkey/coherence/cachedcopy"
	"latchkey/coherence/durable/copies"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

// Errors beside those of calls.
var (
	// ErrOpen matches the error of opening an application that this node has open.
	ErrOpen = errors.New("coherence: application already open on this node")
	// ErrClosed matches the error of every call after Close.
	ErrClosed = copies.ErrClosed
	// ErrTooMany matches the error about more objects than an application, or a node, can have.
	ErrTooMany = errors.New("coherence: too many objects")
)

// ObjectsMax bounds the objects of an application that one node uses, and those of the whole application.
const ObjectsMax = 1 << 17

// Option configures [Service.Open].
type Option func(*access.Config)

// WithMistake plants a mistake in all that this node does with the application's objects. It is for tests that have to see what a mistake does.
func WithMistake(m access.Mutant) Option { return func(c *access.Config) { c.Mutant = m } }

// App is this node's part in one execution of an application. When the execution is over, since a node that had the application open failed, every
// call fails with [ErrRestarted], for good: what a caller knows of values is of an execution that did not happen. Who wants to take part in the next
// one opens the application again. The node itself goes on without that if it has registered kinds of threads ([App.Register]) or wants to hear of it
// ([App.OnRestart]); Open returns then what is there. Safe for concurrent use.
type App struct {
	s       *Service
	name    string
	key     keyspace.Key
	self    protocol.NodeRef // each Open is an incarnation of its own
	options []Option
	part    *part
	ctx     context.Context // ends with this node's part in the execution, with the reason
	cancel  context.CancelCauseFunc
	taken   bool // somebody has opened it; under s.mu

	mu        sync.Mutex // before those of objects
	threads   map[protocol.ThreadID]*Thread
	creates   map[protocol.ThreadID]creation
	loaded    map[protocol.ThreadID]*saved   // of threads that are about to begin
	loading   map[protocol.ThreadID]struct{} // whose states are on their way
	holds     bool                           // threads stop at their safe points
	suspended bool                           // the node leaves threads behind
	asking    bool                           // it asks where they can go
	hint      protocol.NodeRef               // where the last thread went
	trouble   string                         // why a thread cannot be begun
	node      *appmanager.Node
	guest     protocol.ThreadID // by which the application's manager knows that the node uses objects
	inside    bool              // the guest is there
	left      bool              // it has ended
	opened    chan struct{}     // closed once the guest is there, or the application is over
	exec      *access.Epoch
	epoch     atomic.Uint64

	isOver   atomic.Bool
	over     chan struct{} // closed when the execution is over
	done     chan struct{} // closed when the node has no part in it any more
	doneOnce sync.Once
	closing  atomic.Bool
	heard    atomic.Int64  // when the last message came, in Unix nanoseconds
	rumour   chan struct{} // somebody says that there is a later execution

	guess   guess
	objects sync.Map // of keyspace.Key to *copyOf
	count   atomic.Int64

	names  sync.Mutex
	naming map[keyspace.Key]naming // objects that this node is to own, and does not know the names of

	manifests sync.Mutex
	contents  *appmanager.Manifest // what the execution began from, once it was asked for

	pending  sync.Mutex // after those of objects
	keeps    map[keeping]struct{}
	restless map[keyspace.Key]restless // copies that wait for somebody
	turn     int                       // of the ticker; one is repeatEvery
	progress chan struct{}             // when closing: one of them waits no longer
}

// restless is a copy that had something to say not long ago.
type restless struct {
	copy  *copyOf
	due   int // the turn at which it says it again
	after int // how many turns that was put off
}

// copyOf is a copy of an object, as it is in the map.
type copyOf struct {
	key       keyspace.Key
	object    *access.Object
	cached    *access.Cached
	repeating atomic.Bool
	recalling atomic.Bool            // its value is on its way from the checkpoint
	name      atomic.Pointer[string] // nil: only the key is known here
}

// Open takes part in an application, which is founded if nobody has it open. It blocks until the application's manager knows of this node; ctx
// bounds that only. One node has an application open once ([ErrOpen]); its goroutines share it. Where the node has gone on by itself after a restart
// (see [App]), the first Open returns that, and the options of the former one hold.
//
// What the objects hold lives as long as the application is open somewhere, and no node that has it open fails: then it begins anew, from its last
// checkpoint, or with all objects empty if it has none.
func (s *Service) Open(ctx context.Context, name string, opts ...Option) (*App, error) {
	if err := checkName("an application", name); err != nil {
		return nil, err
	}
	s.mu.Lock()
	a := s.apps[AppKey(name)]
	switch {
	case s.closed:
		s.mu.Unlock()
		return nil, ErrClosed
	case a != nil && (a.taken || a.closing.Load()):
		s.mu.Unlock()
		return nil, fmt.Errorf("%w: %q", ErrOpen, name)
	}
	mine := a == nil
	if mine {
		a = s.beginLocked(name, opts)
	}
	a.taken = true
	s.mu.Unlock()
	if mine {
		a.start()
	}
	select {
	case <-a.opened:
		return a, nil
	case <-a.over:
		return a, nil // the execution was a short one; its calls say so
	case <-ctx.Done():
	case <-s.ctx.Done():
	}
	if mine {
		go a.abandon()
	} else {
		s.mu.Lock()
		a.taken = false
		s.mu.Unlock()
	}
	return nil, fmt.Errorf("coherence: open %q: %w", name, cause(ctx, ErrClosed))
}

// beginLocked makes this node's part in an execution.
func (s *Service) beginLocked(name string, opts []Option) *App {
	c := access.Config{Counters: &s.counters}
	for _, o := range opts {
		o(&c)
	}
	a := &App{
		s: s, name: name, key: AppKey(name), options: opts, opened: make(chan struct{}), over: make(chan struct{}), done: make(chan struct{}),
		restless: make(map[keyspace.Key]restless), keeps: make(map[keeping]struct{}), progress: make(chan struct{}, 1), rumour: make(chan struct{}, 1), exec: access.NewEpoch(c),
		threads: make(map[protocol.ThreadID]*Thread), creates: make(map[protocol.ThreadID]creation),
		loaded: make(map[protocol.ThreadID]*saved), loading: make(map[protocol.ThreadID]struct{}),
	}
	a.ctx, a.cancel = context.WithCancelCause(s.ctx)
	if a.part = s.parts[a.key]; a.part == nil {
		a.part = newPart()
		s.parts[a.key] = a.part
	}
	a.self = protocol.NodeRef{ID: s.overlay.Node(), Inc: s.drawLocked()}
	a.node = appmanager.NewNode(appmanager.NodeConfig{Self: a.self, App: a.key})
	s.apps[a.key] = a
	s.wg.Go(a.run)
	s.wg.Go(a.listen)
	return a
}

// start asks the application's manager to know of this node, in the last epoch that was heard of.
func (a *App) start() {
	a.s.mu.Lock()
	known := a.s.epochs[a.key]
	a.s.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	if known > a.node.Epoch() {
		a.step(appmanager.NodeEvent{Kind: appmanager.NodeReceive, Msg: &protocol.Message{
			Kind: protocol.Destroy, From: protocol.Address{Party: protocol.AppManager}, To: protocol.At(a.self), Epoch: known}})
	} else {
		a.enter()
	}
}

// follow takes part in the next execution, after one that is over.
func (s *Service) follow(name string, opts []Option) {
	s.mu.Lock()
	if s.closed || s.apps[AppKey(name)] != nil {
		s.mu.Unlock()
		return
	}
	a := s.beginLocked(name, opts)
	s.wg.Go(func() {
		a.start()
		select {
		case <-a.opened:
		case <-a.over:
			return
		case <-a.done:
			return
		case <-s.ctx.Done():
			return
		}
		a.part.calls.Lock()
		defer a.part.calls.Unlock()
		a.part.mu.Lock()
		fns := slices.Clone(a.part.onRestart)
		a.part.mu.Unlock()
		for _, fn := range fns {
			a.tellRestart(fn)
		}
	})
	s.mu.Unlock()
}

// tellRestart calls what wants to hear of a restart, whatever it does.
func (a *App) tellRestart(fn func(protocol.Epoch)) {
	defer func() {
		if v := recover(); v != nil {
			log.Warnf("what was to hear that %q has begun anew panicked: %v\n%s", a.name, v, debug.Stack())
		}
	}()
	fn(protocol.Epoch(a.epoch.Load()))
}

func cause(ctx context.Context, otherwise error) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return otherwise
}

// abandon leaves an application that was not opened in time: its manager may know of this node by now.
func (a *App) abandon() {
	ctx, cancel := context.WithTimeout(a.s.ctx, closeTimeout)
	defer cancel()
	if err := a.Close(ctx); err != nil {
		log.Debugw("left before it was open", "app", a.name, "err", err)
	}
}

// enter asks the application's manager to know of this node. mu is held.
func (a *App) enter() {
	rand.Read(a.guest[:])
	a.step(appmanager.NodeEvent{Kind: appmanager.NewThread, Thread: a.guest, Node: a.self, Guest: true})
}

// step has the node's automaton take an event, and does what it says. mu is held.
func (a *App) step(ev appmanager.NodeEvent) {
	defer a.lookAfter()
	for _, act := range a.node.Step(ev, nil) {
		switch act.Kind {
		case appmanager.NodeSend:
			a.s.out.Put(outgoing{app: a.key, message: act.Msg})
		case appmanager.Run:
			a.runThread(act.Thread, act.Hash)
		case appmanager.Halt:
			if t := a.threads[act.Thread]; t != nil {
				t.standing = true
			}
		case appmanager.CreatedHere:
			switch {
			case act.Thread != a.guest:
				a.noteCreated(act)
			case a.inside:
			case act.Refused: // the run loop tries again
			default:
				a.inside = true
				a.epoch.Store(uint64(a.node.Epoch()))
				close(a.opened)
			}
		case appmanager.Leave:
			a.objects.Range(func(_, v any) bool {
				c := v.(*copyOf)
				c.cached.Step(cachedcopy.Event{Kind: cachedcopy.ThreadsGone, Node: act.Node})
				return true
			})
		case appmanager.NewEpoch:
			if a.inside {
				a.end(act.Epoch)
				return
			}
			a.s.remember(a.key, act.Epoch)
			a.enter()
		}
	}
}

// remember notes the epoch of an application, so that the next Open begins with it.
func (s *Service) remember(app keyspace.Key, e protocol.Epoch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.epochs) >= GroupAppsMax {
		clear(s.epochs)
	}
	s.epochs[app] = max(s.epochs[app], e)
}

// end ends this node's part in the execution, since there is another one.
func (a *App) end(next protocol.Epoch) {
	if a.isOver.Swap(true) {
		return
	}
	a.exec.End()
	a.cancel(ErrRestarted) // and with it its threads
	a.s.restarts.Add(1)
	a.s.remember(a.key, next)
	close(a.over)
	a.gone()
	if !a.closing.Load() && a.part.stays() {
		a.s.follow(a.name, a.options)
	}
}

// gone forgets the application on this node.
func (a *App) gone() {
	a.doneOnce.Do(func() {
		a.cancel(ErrClosed)
		a.s.mu.Lock()
		if a.s.apps[a.key] == a {
			delete(a.s.apps, a.key)
			if a.closing.Load() || !a.part.stays() {
				delete(a.s.parts, a.key)
			}
		}
		a.s.mu.Unlock()
		close(a.done)
	})
}

// receive takes a message for this incarnation.
func (a *App) receive(m *protocol.Message) {
	a.heard.Store(time.Now().UnixNano())
	epoch := protocol.Epoch(a.epoch.Load())
	object := m.Object != (keyspace.Key{}) && m.Kind != protocol.Destroy
	if m.Epoch > protocol.Epoch(a.known()) { // Nobody is believed but the group that keeps the epoch: a liar would end executions, for good
		select {
		case a.rumour <- struct{}{}:
		default:
		}
		return
	}
	switch {
	case a.isOver.Load():
	case epoch == 0 || !object:
		if object { // not there yet, so nobody counts on it
			return
		}
		a.mu.Lock()
		if m.Hash != (protocol.Hash{}) && a.node.Wants(m) && m.Epoch <= a.node.Epoch() {
			a.mu.Unlock()
			a.load(m)
			return
		}
		a.step(appmanager.NodeEvent{Kind: appmanager.NodeReceive, Msg: m})
		a.mu.Unlock()
		a.settled()
	case m.Epoch < epoch && m.From.Party == protocol.ObjectManager: // it has missed that its epoch is over, and would ask for ever
		a.s.route(a.key, &protocol.Message{
			Kind: protocol.Refused, From: protocol.At(a.self), To: m.From, Requester: a.self, Epoch: epoch, Object: m.Object}, false)
	case m.Epoch == epoch && m.Kind == protocol.NoCopy && m.From.Party == protocol.ObjectManager:
		if c, ok := a.objects.Load(m.Object); ok {
			c.(*copyOf).object.Fail(fmt.Errorf("%w: the application has %d, in use or in its checkpoint, which is the most", ErrTooMany, protocol.ObjectsMax))
		}
	case m.Epoch == epoch:
		if _, ok := a.objects.Load(m.Object); !ok && m.From.Party == protocol.Node {
			if m.Kind == protocol.Read {
				a.s.post(a.key, &protocol.Message{Kind: protocol.NoCopy, From: protocol.At(a.self), To: m.From, Epoch: epoch, Object: m.Object,
					Requester: m.Requester, Seq: m.Seq})
			}
			return // of an object that this node never asked for
		}
		c, err := a.copy(m.Object, true)
		if err != nil {
			return
		}
		if m.Kind == protocol.BecomeOwner && !a.learnName(c, m) {
			return
		}
		if m.Kind == protocol.FirstTouch && !a.recall(c, m) {
			return
		}
		a.guess.learn(m)
		c.cached.Step(cachedcopy.Event{Kind: cachedcopy.Receive, Msg: m})
		a.settled()
	}
}

// copy returns this node's copy of an object. Where somebody else speaks of it, it may be made also when the node is about to leave.
func (a *App) copy(key keyspace.Key, asked bool) (*copyOf, error) {
	if c, ok := a.objects.Load(key); ok {
		return c.(*copyOf), nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if c, ok := a.objects.Load(key); ok {
		return c.(*copyOf), nil
	}
	switch {
	case a.isOver.Load():
		return nil, ErrRestarted
	case a.closing.Load() && !asked:
		return nil, ErrClosed
	case a.count.Load() >= ObjectsMax:
		return nil, fmt.Errorf("%w: %d on this node", ErrTooMany, ObjectsMax)
	}
	c := &copyOf{key: key}
	automaton := cachedcopy.New(cachedcopy.Config{
		Self: a.self, App: a.key, Object: key, Epoch: protocol.Epoch(a.epoch.Load()), Threads: !a.left, Direct: true,
	})
	c.object, c.cached = access.NewCached(a.exec, key, automaton, func(m protocol.Message) { a.say(c, m) })
	c.cached.Guess(func() protocol.NodeRef { return a.guess.take(a.self) })
	a.objects.Store(key, c)
	a.count.Add(1)
	return c, nil
}

// inlineMax is the longest value that is sent at once. What is longer is encoded elsewhere, since an object's mutex is short.
const inlineMax = 4 << 10

// say sends what a copy has to say. It is called under the object's mutex.
func (a *App) say(c *copyOf, m protocol.Message) {
	a.pending.Lock()
	r := restless{c, 0, repeatFirst}
	if c.repeating.Load() {
		r.after = min(2*a.restless[c.key].after, repeatMost)
	}
	r.due = a.turn + r.after
	a.restless[c.key] = r
	a.pending.Unlock()
	switch {
	case m.To.Party == protocol.AppManager && m.Kind == protocol.Copy: // a checkpoint reads
		a.keep(m)
	case m.To.Party != protocol.Node:
		a.s.route(a.key, &m, c.repeating.Load())
	case m.To.Node.ID == a.self.ID || m.Value != nil && len(m.Value.Bytes) > inlineMax:
		a.s.out.Put(outgoing{app: a.key, message: m})
	default:
		a.s.post(a.key, &m)
	}
}

// run repeats what is not answered, until the node has no part in the application any more.
func (a *App) run() {
	tick := time.NewTicker(repeatEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			a.repeat()
		case <-a.progress:
		case <-a.done:
			return
		case <-a.s.ctx.Done():
			a.exec.End()
			a.cancel(ErrClosed)
			return
		}
		if a.closing.Load() {
			a.leave()
		}
	}
}

func (a *App) repeat() {
	a.pending.Lock()
	a.turn++
	round := a.turn%repeatMost == 0
	a.pending.Unlock()
	if round {
		a.mu.Lock()
		waits := a.node.Waits()
		switch {
		case waits:
			a.step(appmanager.NodeEvent{Kind: appmanager.NodeRepeat})
		case !a.inside && !a.closing.Load(): // it was refused
			a.enter()
		}
		a.mu.Unlock()
		if waits {
			a.s.seek(a.key, true, 0, nil)
		}
	}
	a.pending.Lock()
	var due []*copyOf
	for _, r := range a.restless {
		if r.due < a.turn {
			due = append(due, r.copy)
		}
	}
	a.pending.Unlock()
	for _, c := range due {
		if !a.calm(c) {
			a.s.seek(c.key, true, 0, nil)
			c.repeating.Store(true)
			c.cached.Step(cachedcopy.Event{Kind: cachedcopy.Repeat})
			c.repeating.Store(false)
		}
	}
}

// calm forgets that a copy waits for somebody, if it does not.
func (a *App) calm(c *copyOf) (calm bool) {
	c.cached.Inspect(func(k *cachedcopy.Copy) {
		if calm = !k.Waits(); calm {
			a.pending.Lock()
			delete(a.restless, c.key)
			a.pending.Unlock()
		}
	})
	return calm
}

// listen asks now and then whether the execution is over: who only reads what it has would not hear of it, if the one message that says so is
// lost.
func (a *App) listen() {
	tick := time.NewTicker(listenEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-a.rumour:
		case <-a.over:
			return
		case <-a.done:
			return
		case <-a.s.ctx.Done():
			return
		}
		ctx, cancel := context.WithTimeout(a.s.ctx, listenEvery)
		i, err := a.s.ask(ctx, a.key)
		cancel()
		if err == nil {
			a.learn(i.Epoch)
		}
	}
}

// known returns the epoch that the node is in, or about to enter.
func (a *App) known() protocol.Epoch {
	if e := protocol.Epoch(a.epoch.Load()); e > 0 {
		return e
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.node.Epoch()
}

// learn hears from the group that keeps it which epoch it is.
func (a *App) learn(e protocol.Epoch) {
	if e <= a.known() {
		return
	}
	if a.epoch.Load() > 0 {
		a.end(e)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if e > a.node.Epoch() {
		a.step(appmanager.NodeEvent{Kind: appmanager.NodeReceive, Msg: &protocol.Message{
			Kind: protocol.Destroy, From: protocol.Address{Party: protocol.AppManager}, To: protocol.At(a.self), Epoch: e}})
	}
}

// settled has the run loop see whether the node may leave.
func (a *App) settled() {
	if a.closing.Load() {
		select {
		case a.progress <- struct{}{}:
		default:
		}
	}
}

// Name returns the application's name.
func (a *App) Name() string { return a.name }

// Self returns who this node is in the application: each Open is an incarnation of its own.
func (a *App) Self() protocol.NodeRef { return a.self }

// Epoch returns which execution of the application it is.
func (a *App) Epoch() protocol.Epoch { return protocol.Epoch(a.epoch.Load()) }

// Copies returns how many copies of the application's objects this node has, valid or not.
func (a *App) Copies() int { return int(a.count.Load()) }

// Restarted is closed when the execution is over.
func (a *App) Restarted() <-chan struct{} { return a.over }

// Closed is closed when this node has no part in the execution any more: the application was closed, or the execution is over.
func (a *App) Closed() <-chan struct{} { return a.done }

// Close ends this node's part in the application, in later executions too. Calls fail with [ErrClosed] from now on. Threads that are here
// move to other nodes that have the application open and can run them, each at its next safe point; what this node owns is handed to others
// that have it open, and Close blocks until all that is done, or ctx ends; then it goes on in the background, and the application cannot be opened here
// again before it is done. If the process ends first, the application begins anew. So it does when there is no other node for a thread: the
// thread is begun again from the last checkpoint as soon as a node can run it. When the last one leaves and there are no threads, the application ends.
func (a *App) Close(ctx context.Context) error {
	a.s.mu.Lock()
	now := a.s.apps[a.key]
	a.s.mu.Unlock()
	if now != nil && now != a && now.part == a.part { // the node has gone on
		return now.Close(ctx)
	}
	a.closing.Store(true)
	a.settled()
	select {
	case <-a.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("coherence: still leaving %q, %d threads and %d copies are waited for: %w", a.name, len(a.Threads()), a.waits(), context.Cause(ctx))
	case <-a.s.ctx.Done():
		return ErrClosed
	}
}

// closeHeard is Close for as long as something is heard about the application.
func (a *App) closeHeard(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	last := time.Now()
	go func() {
		for {
			select {
			case <-time.After(silentTimeout - time.Since(last)):
			case <-ctx.Done():
				return
			}
			if heard := time.Unix(0, a.heard.Load()); heard.After(last) {
				last = heard
				continue
			}
			cancel(errSilent)
			return
		}
	}()
	return a.Close(ctx)
}

// errSilent is why a service gives up leaving.
var errSilent = errors.New("nobody answers")

func (a *App) waits() int {
	a.pending.Lock()
	defer a.pending.Unlock()
	return len(a.restless)
}

// leave has the threads move, then takes the guest away, which has the copies look for other owners, and forgets the application once nobody counts
// on this node.
func (a *App) leave() {
	if a.moveThreads() {
		return
	}
	a.exec.End()
	a.mu.Lock()
	if a.inside && !a.left && !a.suspended {
		a.left = true
		a.step(appmanager.NodeEvent{Kind: appmanager.End, Thread: a.guest, Node: a.hint})
	}
	waits := a.node.Waits() || a.suspended
	a.mu.Unlock()
	a.pending.Lock()
	all := make([]*copyOf, 0, len(a.restless))
	for _, r := range a.restless {
		all = append(all, r.copy)
	}
	a.pending.Unlock()
	for _, c := range all {
		if !a.calm(c) {
			waits = true
		}
	}
	if !waits {
		a.gone()
	}
}
