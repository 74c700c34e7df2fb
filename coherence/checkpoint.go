package coherence

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"latchkey/coherence/appmanager"
	"latchkey/coherence/cachedcopy"
	"latchkey/coherence/chunks"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

// Errors about checkpoints.
var (
	// ErrNotOpen matches the error about an application that nobody has open, and that has no checkpoint to go on from.
	ErrNotOpen = errors.New("coherence: nobody has the application open")
	// ErrAborted matches the error of a checkpoint that was given up; the one before stays in force. The text says why.
	ErrAborted = errors.New("coherence: checkpoint given up")
	// ErrLost matches the error of a call on an object whose value in the checkpoint is not to be had: no peer that ought to have it has it as it
	// was. It is tried again.
	ErrLost = errors.New("coherence: value of the checkpoint is lost")
)

// CheckpointOption configures [App.Checkpoint].
type CheckpointOption func(*checkpointConfig)

type checkpointConfig struct{ timeout time.Duration }

// GiveUpAfter says how long a checkpoint may take before it is given up; [CheckpointTimeout] if it is not said.
func GiveUpAfter(d time.Duration) CheckpointOption {
	return func(c *checkpointConfig) { c.timeout = d }
}

// Checkpoint saves the application as it is at one instant during the call: the values of all objects, and the states of all threads, which
// stand still at safe points until then. Others go on reading meanwhile, and their writes wait. It returns the checkpoint's number once all is
// stored by enough peers to outlive f failures; from then on a restart begins from it. If one is being made that has not come to its instant
// yet, it is that one.
//
// Errors: [ErrAborted] if it was given up, since it took too long or something failed, with the names of threads that came to no safe point; the
// checkpoint before stays in force then. [ErrRestarted] if the application began anew meanwhile, [ErrNotOpen], and the cause of ctx, whose end gives the
// checkpoint up.
func (a *App) Checkpoint(ctx context.Context, opts ...CheckpointOption) (protocol.CheckpointID, error) {
	if err := a.restarted(); err != nil {
		return 0, err
	}
	return a.s.Checkpoint(ctx, a.name, opts...)
}

// Checkpoint is [App.Checkpoint] for an application that this node need not have open.
func (s *Service) Checkpoint(ctx context.Context, app string, opts ...CheckpointOption) (protocol.CheckpointID, error) {
	c := checkpointConfig{timeout: CheckpointTimeout}
	for _, o := range opts {
		o(&c)
	}
	if err := checkName("an application", app); err != nil {
		return 0, err
	}
	id, err := s.checkpoint(ctx, AppKey(app), c)
	if err != nil {
		return 0, fmt.Errorf("coherence: checkpoint of %q: %w", app, err)
	}
	return id, nil
}

func (s *Service) checkpoint(ctx context.Context, app keyspace.Key, c checkpointConfig) (protocol.CheckpointID, error) {
	var wait time.Duration
	var id protocol.CheckpointID
	var epoch protocol.Epoch
	var last Info
	for {
		info, err := s.ask(ctx, app)
		switch {
		case err != nil && ctx.Err() == nil:
			return 0, err
		case err != nil:
		case !info.Open:
			return 0, ErrNotOpen
		case epoch == 0:
			epoch = info.Epoch
		case info.Epoch != epoch:
			return 0, s.restartedSince(ctx, app)
		}
		if err == nil {
			last = info
		}
		switch {
		case err != nil:
		case id == 0 && (info.State == appmanager.Stopping || info.State == appmanager.Reading): // its instant is still to come
			id = info.Checkpoint
		case id == 0 && info.State == appmanager.Running:
			id = info.Checkpoint + 1
			fallthrough
		case id > info.Checkpoint && info.State == appmanager.Running:
			if _, err := s.askLeader(ctx, app, question{Do: askBegin, Timeout: c.timeout}); err != nil && ctx.Err() == nil {
				return 0, err
			}
		case id > 0 && info.Saved >= id:
			return info.Saved, nil
		case id > 0 && info.Checkpoint > id, id > 0 && info.Checkpoint == id && info.State == appmanager.Running:
			why := ""
			if a, err := s.askLeader(ctx, app, question{Do: askWhy, Checkpoint: uint64(id)}); err == nil && a.Reason != "" {
				why = ": " + a.Reason
			}
			return 0, fmt.Errorf("%w%s", ErrAborted, why)
		}
		if pause(ctx, &wait) {
			wait = min(wait, 200*time.Millisecond)
			continue
		}
		why := ""
		if id > 0 && last.Checkpoint == id {
			within, cancel := context.WithTimeout(s.ctx, answerTimeout)
			why = s.blame(within, app, &last)
			cancel()
			s.giveUp(app, id, "who asked for it waits no longer"+why)
		}
		return 0, fmt.Errorf("%w: waited for no longer%s: %w", ErrAborted, why, context.Cause(ctx))
	}
}

// Restart has an application begin anew from its last checkpoint, as after a failure, or with nothing if there is none. It returns the number of the new
// execution once there is one.
func (s *Service) Restart(ctx context.Context, app string) (protocol.Epoch, error) {
	if err := checkName("an application", app); err != nil {
		return 0, err
	}
	fail := func(err error) (protocol.Epoch, error) {
		return 0, fmt.Errorf("coherence: restart of %q: %w", app, err)
	}
	key := AppKey(app)
	var wait time.Duration
	var epoch protocol.Epoch
	for {
		info, err := s.ask(ctx, key)
		switch {
		case err != nil:
			return fail(err)
		case epoch > 0 && info.Epoch > epoch:
			return info.Epoch, nil
		case !info.Open:
			return fail(ErrNotOpen)
		}
		epoch = info.Epoch
		if _, err := s.askLeader(ctx, key, question{Do: askRestart, Epoch: uint64(epoch)}); err != nil {
			return fail(err)
		}
		if !pause(ctx, &wait) {
			return fail(context.Cause(ctx))
		}
	}
}

// keep stores the value that a checkpoint reads, and sends its name. It is called under the object's mutex.
func (a *App) keep(m protocol.Message) {
	key := keeping{m.Object, protocol.CheckpointID(m.To.Node.Inc)}
	a.pending.Lock()
	_, under := a.keeps[key]
	if !under {
		a.keeps[key] = struct{}{}
	}
	a.pending.Unlock()
	if under {
		return // asked again before it was stored
	}
	a.s.wg.Go(func() {
		hash, err := a.s.chunks.Put(a.ctx, a.key, key.checkpoint, m.Value.Bytes)
		a.pending.Lock()
		delete(a.keeps, key)
		a.pending.Unlock()
		switch {
		case a.ctx.Err() != nil:
		case err != nil:
			a.s.giveUp(a.key, key.checkpoint, fmt.Sprintf("%v could not store an object: %v", a.s.overlay.Self(), err))
		default:
			m.Value, m.Hash, m.Copy = nil, hash, protocol.ReadCopy
			a.s.route(a.key, &m, false)
		}
	})
}

// keeping is a value that is being stored for a checkpoint.
type keeping struct {
	object     keyspace.Key
	checkpoint protocol.CheckpointID
}

// recall finds the value that an object has before anybody has touched it in this execution: what the checkpoint says that the execution began
// from, or nothing. It reports whether it is in the message; if not, the copy gets the message once the value is there.
func (a *App) recall(c *copyOf, m *protocol.Message) bool {
	wants := false
	c.cached.Inspect(func(k *cachedcopy.Copy) { wants = k.Wants(m) })
	if !wants {
		return true
	}
	a.mu.Lock()
	root := a.node.Manifest()
	a.mu.Unlock()
	if root == (protocol.Hash{}) {
		m.Value = &protocol.Cell{Bytes: []byte{}}
		return true
	}
	if c.recalling.Swap(true) {
		return false
	}
	msg := *m
	a.s.wg.Go(func() {
		defer c.recalling.Store(false)
		b, err := a.valueOf(root, msg.Object)
		switch {
		case a.ctx.Err() != nil:
		case err != nil:
			log.Errorw("an object of the checkpoint is lost", "app", a.name, "object", protocol.Name(msg.Object), "err", err)
			c.object.Fail(fmt.Errorf("%w: %w", ErrLost, err))
		default:
			msg.Value = &protocol.Cell{Bytes: b}
			c.cached.Step(cachedcopy.Event{Kind: cachedcopy.Receive, Msg: &msg})
			a.settled()
		}
	})
	return false
}

// valueOf reads an object of a checkpoint: the one that a manifest names, or a later one of the same execution, which says the same of what nobody
// has touched in it.
func (a *App) valueOf(root protocol.Hash, object keyspace.Key) ([]byte, error) {
	m, err := a.manifest(root)
	if err != nil {
		return nil, err
	}
	name, ok := m.Objects[object]
	if !ok {
		return []byte{}, nil
	}
	b, err := a.s.chunks.Get(a.ctx, a.key, name)
	if err == nil && b == nil {
		b = []byte{}
	}
	return slices.Clip(b), err
}

// manifest loads what a checkpoint consists of, once.
func (a *App) manifest(root protocol.Hash) (*appmanager.Manifest, error) {
	a.manifests.Lock()
	defer a.manifests.Unlock()
	if a.contents != nil {
		return a.contents, nil
	}
	m, err := a.s.chunks.Load(a.ctx, a.key, root)
	if errors.Is(err, chunks.ErrMissing) { // the checkpoint may have been followed by others, and collected
		i, err2 := a.s.ask(a.ctx, a.key)
		if err2 == nil && i.Epoch == a.Epoch() && i.Manifest != root {
			m, err = a.s.chunks.Load(a.ctx, a.key, i.Manifest)
		}
	}
	if err != nil {
		return nil, err
	}
	a.contents = &m
	return a.contents, nil
}

// moveThreads has threads go elsewhere when the node leaves, and reports whether some are still here that can. Those that cannot are left behind:
// the application begins anew without this node.
func (a *App) moveThreads() bool {
	a.mu.Lock()
	type here struct {
		t *Thread
		w Wanted
	}
	var idle []here
	n := len(a.threads) + len(a.loading)
	for _, t := range a.threads {
		if t.moveTo.IsZero() && !t.standing {
			idle = append(idle, here{t, Wanted{Name: t.saved.name, Kind: t.saved.kind}})
		}
	}
	asked := a.asking
	if len(idle) > 0 && !asked && !a.suspended {
		a.asking = true
	}
	suspended := a.suspended
	a.mu.Unlock()
	switch {
	case suspended, n == 0:
		return false
	case len(idle) == 0 || asked:
		return true
	}
	a.s.wg.Go(func() {
		defer a.settled()
		ctx, cancel := context.WithTimeout(a.ctx, placeTimeout)
		defer cancel()
		info, err := a.s.ask(ctx, a.key)
		var hosts []Host
		if err == nil {
			nodes := slices.DeleteFunc(info.Nodes, func(n protocol.NodeRef) bool { return n == a.self })
			hosts = a.s.hosts(ctx, a.key, nodes)
		}
		lost := 0
		for _, h := range idle {
			i := a.choose(h.w, hosts)
			if i < 0 {
				lost++
				continue
			}
			hosts[i].Threads++
			a.mu.Lock()
			a.hint = hosts[i].Node
			a.mu.Unlock()
			a.want(h.t.id, hosts[i].Node, nil)
		}
		a.mu.Lock()
		a.asking = false
		if err == nil && lost > 0 && lost == len(a.threads) { // all others have gone
			a.suspended = true
		}
		suspend := a.suspended
		a.mu.Unlock()
		if suspend {
			a.suspend()
		}
	})
	return true
}

// suspend leaves threads behind for which there is no other node: this incarnation is over, so the application begins anew (R15), from its last
// checkpoint, as soon as somebody can run them.
func (a *App) suspend() {
	log.Infow("no other node can run the threads that are left here: they wait for one, as the last checkpoint has them", "app", a.name)
	a.exec.End()
	a.cancel(ErrClosed)
	a.s.wg.Go(func() {
		defer a.gone()
		var wait time.Duration
		for {
			now := protocol.NodeRef{ID: a.self.ID, Inc: a.s.draw()}
			a.s.route(a.key, &protocol.Message{Kind: protocol.Refused, From: protocol.At(now), To: protocol.Address{Party: protocol.AppManager},
				Requester: now, Epoch: a.Epoch()}, true)
			ctx, cancel := context.WithTimeout(a.s.ctx, answerTimeout)
			info, err := a.s.ask(ctx, a.key)
			cancel()
			if a.s.ctx.Err() != nil || err == nil && info.Epoch != a.Epoch() {
				return
			}
			if !pause(a.s.ctx, &wait) {
				return
			}
		}
	})
}
