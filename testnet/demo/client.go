package demo

import (
	"context"
	"errors"
	"time"

	"latchkey/internal/history"
	"latchkey/lockservice"
	"latchkey/testnet"
)

// retryPause is how long a client waits after an answer that was none, such as too few replicas.
const retryPause = 20 * time.Millisecond

// client is one life of one client: it begins at a peer and ends with its work or with the peer. What it knows is lost with
// it; the next life begins with what the file says.
type client struct {
	d    *demo
	id   int // which client
	name int // in the history: each life is another party
	peer process
	take func(ctx context.Context) (hold, error)
	next int // its next increment; 0: unknown, the file says
}

// process is the process that a client lives in; *testnet.Peer is one.
type process interface {
	Index() int
	Do(effect func()) bool
	Killed() <-chan struct{}
}

// hold is a lock that is held; *lockservice.Handle is one.
type hold interface {
	Token() lockservice.Token
	Context() context.Context
	Release(ctx context.Context) error
}

// pretence is the hold of a client that took no lock: it goes on with the token it found in the file.
type pretence lockservice.Token

func (p pretence) Token() lockservice.Token      { return lockservice.Token(p) }
func (p pretence) Context() context.Context      { return context.Background() }
func (p pretence) Release(context.Context) error { return nil }

// newClient begins a life of client id at p.
func (d *demo) newClient(id int, p *testnet.Peer) *client {
	c := &client{d: d, id: id, name: int(d.lives.Add(1)), peer: p}
	if d.opts.Sabotage == SabotageNoLock {
		c.take = func(context.Context) (hold, error) {
			token, _, err := d.file.Read()
			return pretence(max(token, 1)), err
		}
		return c
	}
	locks := p.Node().NewLocks()
	c.take = func(ctx context.Context) (hold, error) {
		return locks.NetworkLock(ctx, d.lock, lockservice.WithTTL(d.opts.TTL))
	}
	return c
}

// errKilled ends a life. Nothing is done on the way out. errMoved ends one between two turns, to go on at another peer.
var (
	errKilled = errors.New("demo: killed")
	errMoved  = errors.New("demo: moved")
)

// do runs an effect of the client; errKilled when its peer is dead. See [testnet.Peer.Do].
func (c *client) do(effect func()) error {
	if !c.peer.Do(effect) {
		return errKilled
	}
	return nil
}

// run makes increments until the client has made all of them, its peer is killed, or ctx ends.
func (c *client) run(ctx context.Context) error {
	for {
		if done, err := c.turn(ctx); done || err != nil {
			return err
		}
		if err := c.d.between(ctx, c); err != nil {
			return err
		}
	}
}

// turn takes the lock, makes one increment and gives the lock back; done tells that all are made. What fails without harm is
// told and left to the next turn.
func (c *client) turn(ctx context.Context) (done bool, err error) {
	var op int
	if err := c.do(func() { op = c.d.history.Call(c.name, history.Acquire(LockName)) }); err != nil {
		return false, err
	}
	asked := time.Now()
	h, err := c.take(ctx)
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	if err != nil {
		// The acquire stays open: it may have been granted all the same, to lapse by itself.
		if err := c.do(func() { c.d.tell("client %d at peer %d got no answer and asks again: %v", c.id, c.peer.Index(), err) }); err != nil {
			return false, err
		}
		return false, pause(ctx)
	}
	token := uint64(h.Token())
	if err := c.do(func() {
		c.d.history.Return(op, history.Answer{Token: token})
		c.d.granted(time.Since(asked))
	}); err != nil {
		return false, err
	}
	// A hold can end while the client waits for the disk: it is over when the client is told, not when it looks.
	lost := context.AfterFunc(h.Context(), func() {
		if errors.Is(context.Cause(h.Context()), lockservice.ErrLost) {
			c.do(func() { c.d.history.Lost(c.name, LockName, token) })
		}
	})
	defer lost()
	done, err = c.critical(h)
	if errors.Is(err, lockservice.ErrLost) {
		return false, c.do(func() {
			c.d.history.Lost(c.name, LockName, token) // a stale token says so before the clock does
			c.d.tell("client %d at peer %d lost the lock and asks again: %v", c.id, c.peer.Index(), err)
		})
	}
	if err != nil {
		return false, err
	}
	if err := c.do(func() { op = c.d.history.Call(c.name, history.Release(LockName, token)) }); err != nil {
		return false, err
	}
	err = h.Release(ctx)
	return done, c.do(func() {
		switch {
		case err == nil:
			c.d.history.Return(op, history.Answer{OK: true})
		case errors.Is(err, lockservice.ErrNotHeld), errors.Is(err, lockservice.ErrLost):
			c.d.history.Return(op, history.Answer{OK: false})
		}
		// Anything else: nobody knows, and the release stays open.
	})
}

// critical is what the client does while it holds the lock. An error that matches [lockservice.ErrLost] says that it must not
// go on; nothing was written then.
func (c *client) critical(h hold) (done bool, err error) {
	var data []byte
	if killed := c.do(func() { data, err = c.d.file.Claim(h.Token()) }); killed != nil {
		return false, killed
	}
	if errors.Is(err, lockservice.ErrStaleToken) {
		return false, errors.Join(lockservice.ErrLost, err)
	}
	if err != nil {
		return false, err
	}
	n, err := parseCounter(data, c.d.opts.Clients)
	if err != nil {
		return false, err
	}
	c.d.hold(c, uint64(h.Token()))
	if c.next == 0 {
		c.next = n.Last[c.id] + 1
	}
	if c.next > c.d.opts.Each {
		return true, nil
	}
	if h.Context().Err() != nil {
		return false, context.Cause(h.Context())
	}
	n = n.increment(uint64(h.Token()), c.id, c.next)
	if killed := c.do(func() {
		if err = c.d.file.Write(h.Token(), n.encode()); err == nil {
			c.d.incremented()
		}
	}); killed != nil {
		return false, killed
	}
	if errors.Is(err, lockservice.ErrStaleToken) {
		return false, errors.Join(lockservice.ErrLost, err) // a later holder has written: the guard did its work
	}
	if err != nil {
		return false, err
	}
	c.next++
	return c.next > c.d.opts.Each, nil
}

// pause waits for retryPause, or until ctx ends.
func pause(ctx context.Context) error {
	t := time.NewTimer(retryPause)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
