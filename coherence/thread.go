package coherence

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/coherence/access"
	"latchkey/coherence/appmanager"
	"latchkey/coherence/protocol"
)

// Errors about threads.
var (
	// ErrKind matches the error about a kind of threads that no node which has the application open can run, or that is registered already.
	ErrKind = errors.New("coherence: kind of threads")
	// ErrThreadExists matches the error about a name that a thread has which has not ended.
	ErrThreadExists = errors.New("coherence: thread exists")
	// ErrNoThread matches the error about a thread of which nobody knows.
	ErrNoThread = errors.New("coherence: no such thread")
	// ErrMoved matches what a thread's calls fail with after it has left the node: it goes on elsewhere, and its function here returns.
	ErrMoved = errors.New("coherence: thread has moved")
	// ErrThread matches the error that a thread ended with, as [App.Wait] returns it.
	ErrThread = errors.New("coherence: thread failed")
	// ErrRefused matches the error of a thread that was not created: its node is suspected, or there are too many.
	ErrRefused = errors.New("coherence: thread refused")
)

// ThreadFunc is what the threads of a kind do. It runs on whichever node the thread is, and is called again, on another one or after a restart, with
// what the thread saved last ([Thread.State]). It returns when the thread has ended, or when a call of the thread has failed with [ErrMoved],
// [ErrRestarted] or [ErrClosed]: then it returns that error, and the thread goes on elsewhere, or from the last checkpoint. Its ctx ends then too.
// An error that is its own, and a panic, end the thread with that error, and nothing else.
//
// Between two safe points it waits for no other thread, unless there is a safe point in the loop in which it waits: else no checkpoint comes about.
type ThreadFunc func(ctx context.Context, t *Thread) error

// Thread is a thread of an application while it is on this node: something that the application's manager tracks, that moves to another
// node when this one leaves, and that is begun again from the last checkpoint when a node fails. Its methods are for its own function, and whoever
// that has work for it.
type Thread struct {
	app    *App
	id     protocol.ThreadID
	saved  *saved
	ctx    context.Context
	cancel context.CancelCauseFunc

	attention atomic.Bool // there is something to do at the next safe point
	over      atomic.Bool // it is not here any more

	// under app.mu
	standing bool             // at a safe point, until wake
	wake     chan struct{}    // has one element when it may go on
	moveTo   protocol.NodeRef // where it is to go
	moving   chan error       // who waits for that
	creating map[protocol.ThreadID]struct{}
	created  chan struct{} // closed when creating may have become empty
	ended    bool          // its function has returned
	err      error
}

// Name returns the thread's name.
func (t *Thread) Name() string { return t.saved.name }

// Kind returns the kind that it was created with.
func (t *Thread) Kind() string { return t.saved.kind }

// Epoch returns which execution of the application the thread is of.
func (t *Thread) Epoch() protocol.Epoch { return t.app.Epoch() }

// Args decodes what the thread was created with into what v points to: as [App.Go] encodes it.
func (t *Thread) Args(v any) error {
	if err := fromBytes(t.saved.args, v); err != nil {
		return fmt.Errorf("coherence: the arguments of thread %q: %w", t.saved.name, err)
	}
	return nil
}

// State decodes what the thread saved last into what v points to, and reports whether there is something: a thread that begins for the first
// time has saved nothing.
func (t *Thread) State(v any) (bool, error) {
	if !t.saved.begun {
		return false, nil
	}
	if err := fromBytes(t.saved.state, v); err != nil {
		return true, fmt.Errorf("coherence: the state of thread %q: %w", t.saved.name, err)
	}
	return true, nil
}

// Object returns an object of the application, for this thread: its calls end when the thread has left the node.
func (t *Thread) Object(name string) *Object { return t.app.object(name, t) }

// Go creates a thread, as [App.Go] does. After a restart whoever created it creates it again, unless both are in the checkpoint.
func (t *Thread) Go(ctx context.Context, name, kind string, args any, opts ...GoOption) error {
	if err := t.failed(); err != nil {
		return err
	}
	return t.app.create(ctx, t, name, kind, args, opts)
}

// failed says why the thread is not here any more.
func (t *Thread) failed() error {
	switch {
	case !t.over.Load():
		return nil
	default:
		return context.Cause(t.ctx)
	}
}

// SafePoint says that the thread could be begun again from state, which is encoded as arguments are, and only if it is needed: when nothing is to
// be done it costs a few nanoseconds, so a loop can have one in each round. It returns nil when the thread goes on.
//
// While a checkpoint is made the thread stands still here, for as long as it takes all threads to come to a safe point: at most until the checkpoint
// is given up. When the thread is to move, it fails with [ErrMoved] once it is on the other node. Errors beside: [ErrRestarted], [ErrClosed],
// and those of encoding state, which leave the thread where it is. The end of ctx ends a move that has not been granted yet, and nothing else.
func (t *Thread) SafePoint(ctx context.Context, state any) error {
	if !t.attention.Load() {
		return t.failed()
	}
	return t.stop(ctx, state)
}

// stop is a safe point at which there is something to do.
func (t *Thread) stop(ctx context.Context, state any) error {
	if err := t.settle(); err != nil {
		return err
	}
	a := t.app
	b, err := toBytes(state)
	if err == nil && len(b) > StateBytesMax {
		err = fmt.Errorf("%w: a state of %d bytes, at most %d", ErrTooLarge, len(b), StateBytesMax)
	}
	if err != nil {
		return fmt.Errorf("coherence: the state of thread %q: %w", t.saved.name, err)
	}
	s := *t.saved
	s.state, s.begun = b, true
	chunk := s.encode()
	for {
		a.mu.Lock()
		holds, held, to := a.node.Holds(), a.node.Checkpoint(), t.moveTo
		if !holds && to.IsZero() {
			t.attention.Store(len(t.creating) > 0)
			a.mu.Unlock()
			return t.failed()
		}
		a.mu.Unlock()
		id := held
		if !holds { // to move. No checkpoint that has been begun keeps what it does not name
			i, err := a.s.ask(t.ctx, a.key)
			if err != nil {
				t.dropMove(to, err)
				continue
			}
			id = max(held, i.Checkpoint) + 1
		}
		hash, err := a.s.chunks.Put(t.ctx, a.key, id, chunk)
		if t.over.Load() {
			return t.failed()
		}
		if err != nil {
			err = fmt.Errorf("thread %q cannot store its state: %w", t.saved.name, err)
			log.Warnw("a safe point is passed by", "app", a.name, "thread", t.saved.name, "err", err)
			if holds {
				a.s.giveUp(a.key, held, err.Error())
			}
			t.dropMove(to, err)
			return t.failed()
		}
		a.mu.Lock()
		switch {
		case !to.IsZero() && to == t.moveTo:
			a.step(appmanager.NodeEvent{Kind: appmanager.Move, Thread: t.id, Node: to, Hash: hash})
		case a.node.Holds():
			a.step(appmanager.NodeEvent{Kind: appmanager.SafePoint, Thread: t.id, Hash: hash})
		}
		standing := t.standing
		a.mu.Unlock()
		if standing {
			if err := t.stand(ctx, to); err != nil {
				return err
			}
		}
	}
}

// stand waits until the thread may go on.
func (t *Thread) stand(ctx context.Context, to protocol.NodeRef) error {
	var ends, late <-chan struct{}
	if !to.IsZero() {
		within, cancel := context.WithTimeout(t.ctx, grantTimeout)
		defer cancel()
		ends, late = ctx.Done(), within.Done()
	}
	for {
		select {
		case <-t.wake:
			if !to.IsZero() {
				t.dropMove(to, fmt.Errorf("%w: thread %q was not let go", ErrRefused, t.saved.name))
			}
			return t.failed()
		case <-t.ctx.Done():
			return context.Cause(t.ctx)
		case <-ends:
			ends, late = nil, nil
		case <-late:
			ends, late = nil, nil
		}
		t.app.mu.Lock()
		t.app.step(appmanager.NodeEvent{Kind: appmanager.Stay, Thread: t.id}) // which does nothing once it was granted
		t.app.mu.Unlock()
	}
}

// dropMove tells who wanted the thread to move that it does not.
func (t *Thread) dropMove(to protocol.NodeRef, err error) {
	t.app.mu.Lock()
	defer t.app.mu.Unlock()
	if to.IsZero() || t.moveTo != to {
		return
	}
	t.moveTo = protocol.NodeRef{}
	if t.moving != nil {
		t.moving <- err
		t.moving = nil
	}
}

// settle waits until it is known of each thread that this one wanted to create whether it was (C3).
func (t *Thread) settle() error {
	for {
		t.app.mu.Lock()
		n := len(t.creating)
		if n > 0 && t.created == nil {
			t.created = make(chan struct{})
		}
		c := t.created
		t.app.mu.Unlock()
		if n == 0 {
			return t.failed()
		}
		select {
		case <-c:
		case <-t.ctx.Done():
			return context.Cause(t.ctx)
		}
	}
}

// part is what a node keeps of an application from one execution to the next.
type part struct {
	calls     sync.Mutex // of onRestart: one after the other
	mu        sync.Mutex
	kinds     map[string]ThreadFunc
	policy    Policy
	own       bool // the policy is the application's
	onRestart []func(protocol.Epoch)
	ended     []EndedThread // the last ones, at most endedShown
}

// endedShown bounds the ended threads that a node remembers.
const endedShown = 256

// EndedThread is a thread that ended on a node.
type EndedThread struct {
	Name, Kind string
	Epoch      protocol.Epoch
	Err        string // empty: it returned nil
}

func newPart() *part { return &part{kinds: make(map[string]ThreadFunc), policy: Spread} }

// stays reports whether the node goes on in the next execution by itself.
func (p *part) stays() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.kinds)+len(p.onRestart) > 0
}

func (p *part) kindNames() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Keys(p.kinds))
}

func (p *part) note(e EndedThread) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.ended) >= endedShown {
		p.ended = slices.Delete(p.ended, 0, 1)
	}
	p.ended = append(p.ended, e)
}

// Register says what threads of a kind do, on this node: from now on threads of the application can be placed here. It holds for later executions
// too: a node that has registered something takes part in the next one by itself when the application begins anew, until Close. What
// has not been registered anywhere runs nowhere. A kind is registered once ([ErrKind]); all nodes register the same under one name.
func (a *App) Register(kind string, fn ThreadFunc) error {
	if err := checkKind(kind); err != nil {
		return err
	}
	p := a.part
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case fn == nil:
		return fmt.Errorf("%w: %q has no function", ErrKind, kind)
	case p.kinds[kind] != nil:
		return fmt.Errorf("%w: %q is registered already on this node", ErrKind, kind)
	case len(p.kinds) >= KindsMax:
		return fmt.Errorf("%w: %d are registered on this node, which is the most", ErrKind, KindsMax)
	}
	p.kinds[kind] = fn
	return nil
}

// SetPolicy says where threads go that this node creates, that leave it, and, if a node with a policy of its own is among those that have the
// application open, after a restart. nil is [Spread].
func (a *App) SetPolicy(p Policy) {
	a.part.mu.Lock()
	defer a.part.mu.Unlock()
	if a.part.policy, a.part.own = p, p != nil; p == nil {
		a.part.policy = Spread
	}
}

// OnRestart has fn called each time the application has begun anew and this node is in the new execution, with its epoch. The node then goes on
// by itself, as one does that has registered a kind of threads. Objects of the former execution, and [App] itself, stay ended for good: what a
// caller remembers of values is of an execution that did not happen. [Service.Open] returns the new one, also within fn. The calls of fn are one
// after the other.
func (a *App) OnRestart(fn func(epoch protocol.Epoch)) {
	a.part.mu.Lock()
	defer a.part.mu.Unlock()
	a.part.onRestart = append(a.part.onRestart, fn)
}

// GoOption configures [App.Go].
type GoOption func(*goConfig)

type goConfig struct{ at peer.ID }

// At says which node the thread begins on, and goes back to when it is begun again: if that has the application open and can run it.
// Creating fails if it does not ([ErrKind]); after a restart another one will do.
func At(p peer.ID) GoOption { return func(c *goConfig) { c.at = p } }

// Go creates a thread of a registered kind, on a node that the application's [Policy] chooses, or [At] names. It returns once the application's
// manager knows of it: it runs, or will run, until its function returns, and whatever fails meanwhile. args, of at most [ArgsBytesMax] encoded, are
// bytes, or marshal themselves ([encoding.BinaryMarshaler]), or are encoded as JSON. Names are the application's to choose; one is free again when its
// thread has ended.
//
// Errors: [ErrThreadExists]; [ErrKind] if no node can run it; [ErrTooLarge]; [ErrName]; [ErrRefused]; [ErrRestarted]; and what keeps the arguments from
// being stored. When ctx ends it fails with its cause, and the thread may have been created. While a checkpoint is made it waits.
func (a *App) Go(ctx context.Context, name, kind string, args any, opts ...GoOption) error {
	return a.create(ctx, nil, name, kind, args, opts)
}

func (a *App) create(ctx context.Context, parent *Thread, name, kind string, args any, opts []GoOption) error {
	var c goConfig
	for _, o := range opts {
		o(&c)
	}
	if err := checkName("a thread", name); err != nil {
		return err
	}
	if err := checkKind(kind); err != nil {
		return err
	}
	b, err := toBytes(args)
	if err == nil && len(b) > ArgsBytesMax {
		err = fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(b), ArgsBytesMax)
	}
	if err != nil {
		return fmt.Errorf("coherence: the arguments of thread %q: %w", name, err)
	}
	s := &saved{name: name, kind: kind, prefers: string(c.at), args: b}
	ev := appmanager.NodeEvent{Kind: appmanager.NewThread, Thread: newThreadID(name)}
	if parent != nil {
		ev.Parent = parent.id
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(a.ctx, func() { cancel(context.Cause(a.ctx)) })()
	for try := 0; ; try++ {
		done, err := a.tryCreate(ctx, parent, s, c.at, ev)
		if done || err != nil {
			if err != nil {
				return fmt.Errorf("coherence: create thread %q: %w", name, err)
			}
			return nil
		}
		if try >= createTries {
			return fmt.Errorf("%w: thread %q: checkpoints follow each other too fast", ErrRefused, name)
		}
	}
}

// createTries is how often the state of a new thread is stored again, since a checkpoint has been begun meanwhile.
const createTries = 5

func (a *App) tryCreate(ctx context.Context, parent *Thread, s *saved, at peer.ID, ev appmanager.NodeEvent) (bool, error) {
	info, err := a.s.ask(ctx, a.key)
	if err != nil {
		return false, err
	}
	hosts := a.s.hosts(ctx, a.key, info.Nodes)
	if at != "" {
		hosts = slices.DeleteFunc(hosts, func(h Host) bool { return h.Peer != at })
	}
	i := a.choose(Wanted{s.name, s.kind, at}, hosts)
	switch {
	case i < 0 && at != "" && len(hosts) == 0:
		return false, fmt.Errorf("%w: %v does not have the application open, and it was to run there", ErrKind, at)
	case i < 0 && at != "":
		return false, fmt.Errorf("%w: %q is not registered on %v", ErrKind, s.kind, at)
	case i < 0:
		return false, fmt.Errorf("%w: %q is not registered on any of %d nodes that have the application open and answer", ErrKind, s.kind, len(hosts))
	}
	ev.Node, ev.Checkpoint = hosts[i].Node, info.Checkpoint+1
	if ev.Hash, err = a.s.chunks.Put(ctx, a.key, ev.Checkpoint, s.encode()); err != nil {
		return false, err
	}
	receipt := make(chan appmanager.NodeAction, 1)
	a.mu.Lock()
	switch {
	case a.isOver.Load() || parent != nil && parent.over.Load():
		a.mu.Unlock()
		return false, ErrRestarted
	case len(a.creates) >= protocol.ThreadsMax:
		a.mu.Unlock()
		return false, fmt.Errorf("%w: %d are being created", ErrRefused, protocol.ThreadsMax)
	}
	a.creates[ev.Thread] = creation{receipt, parent}
	if parent != nil {
		parent.creating[ev.Thread] = struct{}{}
		parent.attention.Store(true)
	}
	a.step(ev)
	a.mu.Unlock()
	select {
	case r := <-receipt:
		switch {
		case !r.Refused:
			return true, nil
		case r.Checkpoint > 0:
			return false, nil
		case r.Parent != protocol.ThreadID{}:
			return false, ErrThreadExists
		}
		return false, fmt.Errorf("%w: node %v is suspected, or the application has %d threads", ErrRefused, hosts[i].Peer, protocol.ThreadsMax)
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}

// creation is a thread that somebody here wants to create.
type creation struct {
	receipt chan appmanager.NodeAction
	parent  *Thread
}

// choose asks the application's policy.
func (a *App) choose(w Wanted, hosts []Host) int {
	a.part.mu.Lock()
	defer a.part.mu.Unlock()
	return choose(a.part.policy, w, hosts)
}

// noteCreated hands a receipt on. mu is held.
func (a *App) noteCreated(act appmanager.NodeAction) {
	c, ok := a.creates[act.Thread]
	if !ok {
		return
	}
	delete(a.creates, act.Thread)
	if c.parent != nil {
		delete(c.parent.creating, act.Thread)
		if len(c.parent.creating) == 0 && c.parent.created != nil {
			close(c.parent.created)
			c.parent.created = nil
		}
	}
	c.receipt <- act
}

// runThread begins a thread, or lets one go on that stands still. mu is held.
func (a *App) runThread(id protocol.ThreadID, hash protocol.Hash) {
	t := a.threads[id]
	if t == nil {
		s := a.loaded[id]
		delete(a.loaded, id)
		if s == nil { // cannot be: what would begin it was kept back until its state was there
			log.Errorw("a thread has no state", "app", a.name, "thread", id, "hash", hash)
			s = &saved{}
		}
		t = &Thread{app: a, id: id, saved: s, wake: make(chan struct{}, 1), creating: make(map[protocol.ThreadID]struct{})}
		t.ctx, t.cancel = context.WithCancelCause(a.ctx)
		t.attention.Store(a.holds || a.closing.Load())
		a.threads[id] = t
		a.part.mu.Lock()
		fn := a.part.kinds[s.kind]
		a.part.mu.Unlock()
		a.s.wg.Go(func() { t.run(fn) })
		return
	}
	t.standing = false
	if t.ended {
		a.endThread(t)
		return
	}
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// run is a thread's goroutine.
func (t *Thread) run(fn ThreadFunc) {
	err := func() (err error) {
		returned := false
		defer func() {
			if v := recover(); v != nil {
				err = &access.PanicError{Value: v, Stack: debug.Stack()}
			} else if !returned {
				err = errors.New("its function ended its goroutine")
			}
		}()
		if fn == nil {
			returned = true
			return fmt.Errorf("%w: %q is not registered on this node", ErrKind, t.saved.kind)
		}
		err = fn(t.ctx, t)
		returned = true
		return err
	}()
	a := t.app
	a.mu.Lock()
	defer a.mu.Unlock()
	t.ended, t.err = true, err
	if t.over.Load() {
		return
	}
	t.over.Store(true) // its goroutines, if it has left some, do nothing any more
	t.cancel(fmt.Errorf("%w: it has ended", ErrNoThread))
	a.endThread(t)
	a.settled()
}

// endThread says that a thread has ended. One that stands still does not end before it may go on. When the service has ended its function returned for
// that, and it is begun again elsewhere. mu is held.
func (a *App) endThread(t *Thread) {
	if p, here := a.node.Phase(t.id); !here || p != appmanager.Runs || a.isOver.Load() || a.threads[t.id] != t || a.suspended || a.s.ctx.Err() != nil {
		return
	}
	delete(a.threads, t.id)
	e := EndedThread{Name: t.saved.name, Kind: t.saved.kind, Epoch: protocol.Epoch(a.epoch.Load())}
	if t.err != nil {
		e.Err = t.err.Error()
		log.Warnw("a thread failed", "app", a.name, "thread", t.saved.name, "kind", t.saved.kind, "err", t.err)
		var p *access.PanicError
		if errors.As(t.err, &p) {
			log.Warnf("thread %q panicked: %v\n%s", t.saved.name, p.Value, p.Stack)
		}
	}
	a.part.note(e)
	a.step(appmanager.NodeEvent{Kind: appmanager.End, Thread: t.id})
}

// lookAfter sees what a step has done to the threads here. mu is held.
func (a *App) lookAfter() {
	if h := a.node.Holds(); h != a.holds {
		a.holds = h
		if h {
			for _, t := range a.threads {
				t.attention.Store(true)
			}
		}
	}
	for id, t := range a.threads {
		if !t.standing {
			continue
		}
		if _, here := a.node.Phase(id); !here { // it has moved
			delete(a.threads, id)
			t.leave(ErrMoved)
			if t.moving != nil {
				t.moving <- nil
				t.moving = nil
			}
			a.settled()
		}
	}
}

// leave ends what the thread does here.
func (t *Thread) leave(err error) {
	if !t.over.Swap(true) {
		t.cancel(err)
	}
}

// load gets the state of a thread that a message begins, and steps the message then. Others of that thread are dropped meanwhile: they are
// repeated.
func (a *App) load(m *protocol.Message) {
	a.mu.Lock()
	if _, under := a.loading[m.Thread]; under || a.isOver.Load() || len(a.loading) >= protocol.ThreadsMax {
		a.mu.Unlock()
		return
	}
	a.loading[m.Thread] = struct{}{}
	a.mu.Unlock()
	msg := *m
	a.s.wg.Go(func() {
		s, err := a.fetch(&msg)
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.loading, msg.Thread)
		switch {
		case a.isOver.Load():
		case err != nil:
			a.trouble = fmt.Sprintf("thread %v cannot be begun: %v", msg.Thread, err)
			log.Errorw("a thread cannot be begun, and is tried again", "app", a.name, "thread", msg.Thread, "epoch", msg.Epoch, "err", err)
		default:
			a.trouble = ""
			a.loaded[msg.Thread] = s
			a.step(appmanager.NodeEvent{Kind: appmanager.NodeReceive, Msg: &msg})
			if _, here := a.node.Phase(msg.Thread); !here {
				delete(a.loaded, msg.Thread) // it was not begun after all
			}
		}
	})
}

func (a *App) fetch(m *protocol.Message) (*saved, error) {
	if m.From.Party == protocol.Node { // nobody sends threads about that the application's manager does not know of
		i, err := a.s.askThread(a.ctx, a.key, m.Thread)
		if err != nil {
			return nil, err
		}
		at := slices.IndexFunc(i.Running, func(t RunningThread) bool { return t.ID == m.Thread })
		if at < 0 || i.Running[at].Migration != m.Migration || i.Running[at].To != a.self && i.Running[at].At != a.self {
			return nil, fmt.Errorf("%w: %v sends it, and was not to", ErrNoThread, m.From)
		}
	}
	b, err := a.s.chunks.Get(a.ctx, a.key, m.Hash)
	if err != nil {
		return nil, err
	}
	return decodeSaved(b)
}

// Threads returns the names of the threads that are on this node, in order.
func (a *App) Threads() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	names := make([]string, 0, len(a.threads))
	for _, t := range a.threads {
		names = append(names, t.saved.name)
	}
	slices.Sort(names)
	return names
}

// Times of threads.
const (
	// grantTimeout is how long a thread waits at a safe point to be let go before it goes on where it is.
	grantTimeout = 10 * time.Second
	// pollFirst and pollMost are how often something is asked for again that takes its time.
	pollFirst = 20 * time.Millisecond
	pollMost  = 500 * time.Millisecond
)

// pause waits a little longer each time; it returns false when ctx has ended.
func pause(ctx context.Context, d *time.Duration) bool {
	*d = min(max(*d*3/2, pollFirst), pollMost)
	select {
	case <-time.After(*d):
		return true
	case <-ctx.Done():
		return false
	}
}

// Wait blocks until a thread has ended, or ctx does. If it ended with an error that a node which has the application open remembers, Wait returns
// that ([ErrThread]). A name that no thread has, and nobody remembers, is [ErrNoThread].
func (a *App) Wait(ctx context.Context, name string) error {
	if err := checkName("a thread", name); err != nil {
		return err
	}
	var wait time.Duration
	seen := false
	for {
		if err := a.restarted(); err != nil {
			return err
		}
		var id protocol.ThreadID
		b := threadName(name)
		copy(id[:], b[:])
		info, err := a.s.askThread(ctx, a.key, id)
		switch {
		case err != nil:
			return err
		case len(info.Running) > 0:
			seen = true
		default:
			for _, h := range a.s.askHosts(ctx, a.key, info.Nodes) {
				for _, e := range slices.Backward(h.Ended) {
					if e.Name == name && e.Epoch == protocol.Epoch(a.epoch.Load()) {
						if e.Err != "" {
							return fmt.Errorf("%w: %q: %s", ErrThread, name, e.Err)
						}
						return nil
					}
				}
			}
			if !seen {
				return fmt.Errorf("%w: %q", ErrNoThread, name)
			}
			return nil
		}
		if !pause(ctx, &wait) {
			return context.Cause(ctx)
		}
	}
}

// restarted says why nothing can be done with this execution any more.
func (a *App) restarted() error {
	switch {
	case a.closing.Load():
		return ErrClosed
	case a.isOver.Load():
		return ErrRestarted
	}
	return nil
}
