package replicagroup

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/session"
)

// sessionTTL is how long a group keeps a session without hearing of it. Sessions of a client that is in use are kept alive.
const sessionTTL = 15 * time.Second

// Client is one client of replica groups: to each group it talks to, one session. Its commands take effect at most once,
// also when they have to be repeated. Methods are safe for concurrent use.
type Client struct {
	host *Host

	mu       sync.Mutex
	closed   bool
	sessions map[order.GroupID]*groupSession // by own group, or by prefix alone
	// over holds, by key, the last own group with which a session was given up as it seemed over. Another one with that has an id of its own:
	// under the same it would begin with numbers for which the group has results.
	// When there are too many, no group up to formerly is taken for another than those.
	over     map[keyspace.Prefix]uint64
	formerly uint64
	notifies map[string]func(group order.GroupID, data []byte)
}

// NewClient makes a client of the overlay's groups. It opens a session with a group on first use.
func (h *Host) NewClient() *Client {
	c := &Client{
		host: h, sessions: make(map[order.GroupID]*groupSession), over: make(map[keyspace.Prefix]uint64),
		notifies: make(map[string]func(order.GroupID, []byte)),
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	c.closed = h.closed
	h.clients[c] = struct{}{}
	return c
}

// Do has data executed once, in order, by the service of the group that owns key, and returns the result. The group is
// created if there is none. It blocks until the answer is here or ctx ends. Errors: [ErrNoQuorum] when the command was not
// even sent before ctx ended; [ErrOutcomeUnknown] when it was, or when the session was lost under it; [ErrRefused],
// [ErrBusy], [ErrTooLarge], [ErrClosed]. Every error that ctx brought about also matches context.Cause(ctx).
func (c *Client) Do(ctx context.Context, key keyspace.Key, service string, data []byte) ([]byte, error) {
	h := c.host
	if !h.genesis.OwnGroups {
		return c.do(ctx, h.genesis.PrefixOf(key), service, data)
	}
	return h.follow(ctx, key, func(own placement.Descriptor) ([]byte, error) {
		if own.IsZero() {
			return c.do(ctx, h.genesis.PrefixOf(key), service, data)
		}
		return c.doOwn(ctx, own, service, data)
	})
}

// Query reads from the service of the group that owns key, linearizably: it sees every command whose answer anybody had when
// Query was called. It blocks until the answer is here or ctx ends ([ErrNoQuorum]).
func (c *Client) Query(ctx context.Context, key keyspace.Key, service string, data []byte) ([]byte, error) {
	h := c.host
	if !h.genesis.OwnGroups {
		return c.query(ctx, h.genesis.PrefixOf(key), service, data)
	}
	return h.follow(ctx, key, func(own placement.Descriptor) ([]byte, error) {
		if own.IsZero() {
			return c.query(ctx, h.genesis.PrefixOf(key), service, data)
		}
		return c.queryOwn(ctx, own, service, data)
	})
}

// Notify has fn called with what a service pushes to this client's sessions. fn must not block. Pushes may be lost, late or
// repeated.
func (c *Client) Notify(service string, fn func(group order.GroupID, data []byte)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.notifies[service] = fn
}

func (c *Client) notify(o output) {
	c.mu.Lock()
	fn := c.notifies[o.service]
	c.mu.Unlock()
	if fn != nil {
		fn(o.group, o.data)
	}
}

// Close ends the client's sessions: the groups are told, once and without waiting, and what waits for an answer gets
// [ErrClosed] or [ErrOutcomeUnknown]. It is idempotent.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	sessions := c.sessions
	c.sessions = nil
	c.mu.Unlock()
	for _, s := range sessions {
		s.close()
	}
	c.host.mu.Lock()
	delete(c.host.clients, c)
	c.host.mu.Unlock()
	return nil
}

func (c *Client) do(ctx context.Context, p keyspace.Prefix, service string, data []byte) ([]byte, error) {
	if err := checkRequest(service, data); err != nil {
		return nil, err
	}
	s, err := c.session(order.GroupID{Prefix: p})
	if err != nil {
		return nil, err
	}
	return s.do(ctx, service, data)
}

// session returns the client's session with a key's own group, or, by its prefix alone, with the group of a prefix.
func (c *Client) session(g order.GroupID) (*groupSession, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	s, ok := c.sessions[g]
	if !ok {
		s = newGroupSession(c, g)
		c.sessions[g] = s
	}
	return s, nil
}

// checkRequest refuses what the other side would take for garbage.
func checkRequest(service string, data []byte) error {
	switch {
	case len(data) > order.DataBytesMax:
		return fmt.Errorf("%w: %d bytes of data, at most %d", ErrTooLarge, len(data), order.DataBytesMax)
	case service == "" || len(service) > order.ServiceBytesMax || !utf8.ValidString(service):
		return fmt.Errorf("%w: %q is no name of a service (1 to %d bytes of UTF-8)", ErrRefused, service, order.ServiceBytesMax)
	}
	return nil
}

func (c *Client) query(ctx context.Context, p keyspace.Prefix, service string, data []byte) ([]byte, error) {
	if err := checkRequest(service, data); err != nil {
		return nil, err
	}
	d, err := c.host.locator.locate(ctx, p, false)
	if err != nil {
		return nil, noQuorum(err, order.GroupID{Prefix: p}, nil)
	}
	result, _, err := c.host.queryAt(ctx, d, service, data)
	return result, err
}

// queryAt reads from the group that d describes, or what that group has become, and says which generation has answered.
func (h *Host) queryAt(ctx context.Context, d placement.Descriptor, service string, data []byte) (result []byte, by order.GroupID, err error) {
	req := func(d placement.Descriptor) []byte {
		by = d.Group
		return marshal(&pb.QueryRequest{Group: groupToPB(d.Group), View: d.View.Num, Service: service, Data: data})
	}
	err = h.askLeader(ctx, d, keyspace.Key{}, serviceQuery, req, func(r reply) (bool, error) {
		switch r.status {
		case pb.Status_OK:
			result = r.data
			return true, nil
		case pb.Status_KEY_MOVED:
			h.movedTo(by, r)
			return true, errMoved
		case pb.Status_UNKNOWN_SERVICE, pb.Status_REFUSED, pb.Status_TOO_LARGE:
			return true, fmt.Errorf("%w: query of %s in group %v: %v", ErrRefused, service, d.Group, r.status)
		}
		return false, nil
	})
	return result, by, err
}

// groupSession drives one session.Client: the session of one client with one prefix's group, or with a key's own group, where it has the
// id that the client's session with the group of the key's prefix has: so a lock that moves from the one to the other keeps its holder.
//
// Callers, replies, timers and searches all step the automaton themselves, one at a time under mu, and carry out its actions
// after they have let go of it. A goroutine of its own would cost a command two more wake-ups, which is as much as a network
// round trip on one machine.
type groupSession struct {
	client *Client
	prefix keyspace.Prefix
	own    order.GroupID // of a key's own group: this one and no later one. Else zero

	mu         sync.Mutex
	served     order.GroupID     // who executed a command of the session last
	missing    automaton.Instant // of own: since when its parent does not know it, or knows it for over; 0: it does
	core       *session.Client
	id         order.ClientID        // as registered with the host
	descriptor *placement.Descriptor // replaced, never changed; zero: not located yet
	waiting    map[uint64]chan<- session.Done
	nextRef    uint64
	keep       bool
	used       automaton.Instant // last submit
	due        automaton.Instant // when core wants to be woken; Never when it does not
	timer      *time.Timer
	wakes      automaton.Instant // when timer runs out; Never when it is not set
	closed     bool
	follows    peer.ID                // who was called last and is watched; empty: nobody
	actions    []session.ClientAction // storage of one step's
}

// task is something that the automaton has asked for and that is done once mu is free: a call to be sent, or else a search.
type task struct {
	call  session.SendTo
	place *placement.Descriptor // of the call; nil: search
	fresh bool                  // of the search
}

// tasks are those of one event, which may step the automaton more than once.
type tasks struct{ list []task }

var taskPool = sync.Pool{New: func() any { return new(tasks) }}

func newTasks() *tasks { return taskPool.Get().(*tasks) }

// donePool has channels that a caller awaits its answer on. Each gets one, and is put back after that.
var donePool = sync.Pool{New: func() any { return make(chan session.Done, 1) }}

// newGroupSession makes a client's session with a key's own group, or, by its prefix alone, with the group of a prefix. c.mu is held.
func newGroupSession(c *Client, g order.GroupID) *groupSession {
	s := &groupSession{
		client: c, prefix: g.Prefix,
		core:       session.NewClient(session.ClientConfig{TTL: sessionTTL, CallTimeout: commandTimeout}),
		descriptor: new(placement.Descriptor),
		waiting:    make(map[uint64]chan<- session.Done), due: automaton.Never, wakes: automaton.Never,
	}
	var id order.ClientID
	if placement.IsOwn(g) {
		s.own = g
		if parent := c.sessions[order.GroupID{Prefix: c.host.parentOf(g.Prefix)}]; parent != nil && !c.isOverLocked(g) {
			parent.mu.Lock()
			id = parent.id
			parent.mu.Unlock()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.core.Step(s.identityLocked(id), c.host.clock.Now(), nil) // has nothing to do yet
	return s
}

// identityLocked registers an id for the automaton, under which outputs will find it: a fresh one in place of zero.
func (s *groupSession) identityLocked(id order.ClientID) session.Identity {
	if id == (order.ClientID{}) {
		rand.Read(id[:])
	}
	s.client.host.known(id, s.client)
	s.client.host.forgotten(s.id)
	s.id = id
	return session.Identity{ID: id}
}

// addressee is whom the outputs for a session's id are for.
type addressee struct {
	client   *Client
	sessions int // that have the id
}

// known registers a session's id. It may be that of a session already registered, of the same client.
func (h *Host) known(id order.ClientID, c *Client) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sessions[id] = addressee{c, h.sessions[id].sessions + 1}
}

// forgotten undoes one call of known.
func (h *Host) forgotten(id order.ClientID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if a, ok := h.sessions[id]; ok && a.sessions > 1 {
		h.sessions[id] = addressee{a.client, a.sessions - 1}
	} else {
		delete(h.sessions, id)
	}
}

func (s *groupSession) do(ctx context.Context, service string, data []byte) ([]byte, error) {
	done := donePool.Get().(chan session.Done)
	defer donePool.Put(done)
	todo := newTasks()
	s.mu.Lock()
	s.nextRef++
	ref := s.nextRef
	s.waiting[ref] = done
	now := s.client.host.clock.Now()
	s.used = now
	if !s.keep {
		s.keep = true
		s.stepLocked(session.KeepAlive{On: true}, now, todo)
	}
	s.stepLocked(session.Submit{Ref: ref, Service: service, Data: data}, now, todo)
	s.mu.Unlock()
	s.run(todo)
	select {
	case d := <-done:
		return d.Data, s.failure(d.Err, nil)
	case <-ctx.Done():
		s.step(session.Abandon{Ref: ref})
		d := <-done // Abandon answers at once, unless the answer was faster
		return d.Data, s.failure(d.Err, context.Cause(ctx))
	}
}

// failure turns an error of the automaton into one of this package. cause is why the caller left, if it did.
func (s *groupSession) failure(err, cause error) error {
	if err == nil {
		return nil
	}
	for _, e := range []struct{ from, to error }{
		{session.ErrAbandoned, ErrNoQuorum}, {session.ErrOutcomeUnknown, ErrOutcomeUnknown}, {session.ErrBusy, ErrBusy},
		{session.ErrLimit, ErrRefused}, {session.ErrRefused, ErrRefused}, {session.ErrUnknownService, ErrRefused},
		{session.ErrTooLarge, ErrTooLarge}, {session.ErrResultTooLarge, ErrTooLarge}, {session.ErrClosed, ErrClosed}, {session.ErrMoved, errMoved},
	} {
		if !errors.Is(err, e.from) {
			continue
		}
		if cause != nil {
			return fmt.Errorf("%w: group of prefix %v: %w", e.to, s.prefix, cause)
		}
		return fmt.Errorf("%w: group of prefix %v: %v", e.to, s.prefix, err)
	}
	return fmt.Errorf("replicagroup: group of prefix %v: %w", s.prefix, err)
}

// step feeds one event to the automaton and carries out what it asks for.
func (s *groupSession) step(ev session.ClientEvent) {
	todo := newTasks()
	s.mu.Lock()
	s.stepLocked(ev, s.client.host.clock.Now(), todo)
	s.mu.Unlock()
	s.run(todo)
}

// run does what has gathered, and gives its storage back.
func (s *groupSession) run(todo *tasks) {
	for i := range todo.list {
		if t := &todo.list[i]; t.place != nil {
			s.send(&t.call, t.place)
		} else {
			s.locate(t.fresh)
		}
	}
	clear(todo.list)
	todo.list = todo.list[:0]
	taskPool.Put(todo)
}

// stepLocked steps the automaton and adds to todo what has to be done after mu is free.
func (s *groupSession) stepLocked(ev session.ClientEvent, now automaton.Instant, todo *tasks) {
	lost := false
	s.actions = s.core.Step(ev, now, s.actions[:0])
	for _, a := range s.actions {
		switch a := a.(type) {
		case session.SendTo:
			todo.list = append(todo.list, task{call: a, place: s.descriptor})
		case session.Arm:
			s.armLocked(a.At, now)
		case session.Done:
			s.waiting[a.Ref] <- a
			delete(s.waiting, a.Ref)
		case session.Relocate:
			todo.list = append(todo.list, task{fresh: !s.descriptor.IsZero()})
		case session.Lost:
			lost = true
		}
	}
	clear(s.actions)
	if lost { // after the rest, since the automaton goes on at once with what it could take back
		log.Debugw("session lost", "prefix", s.prefix, "client", s.id)
		s.stepLocked(s.identityLocked(s.lastingLocked()), now, todo)
	}
}

// lastingLocked returns the session's id if it goes on with it after a loss, else zero. In an overlay with own groups it does at a later
// generation of a group than the one that knew it: under that id the client holds what is at groups of keys of the prefix. Calls
// to the former generation name that one, so none of them can take effect at the later.
func (s *groupSession) lastingLocked() (id order.ClientID) {
	if s.client.host.genesis.OwnGroups && s.served.Prefix.Len > 0 && s.served.Gen < s.descriptor.Group.Gen {
		id = s.id
	}
	s.served = order.GroupID{}
	return id
}

// armLocked takes note of when the automaton wants to be woken. The timer is touched only when it would run out later than that:
// an open session puts its keep-alive off with every command, and setting a timer costs more than one that runs out for nothing.
func (s *groupSession) armLocked(at, now automaton.Instant) {
	if s.due = at; at >= s.wakes || s.closed {
		return
	}
	s.wakes = at
	if wait := max(0, at.Sub(now)); s.timer == nil {
		s.timer = time.AfterFunc(wait, s.expired)
	} else {
		s.timer.Reset(wait)
	}
}

// expired steps the automaton when its time has come. A session that nobody has used for longer than any lease can last
// holds nothing any more, and is let go.
func (s *groupSession) expired() {
	h := s.client.host
	s.mu.Lock()
	now := h.clock.Now()
	s.wakes = automaton.Never
	todo := newTasks()
	if s.keep && now.Sub(s.used) > h.genesis.TTLMax+sessionTTL {
		s.keep = false
		s.stepLocked(session.KeepAlive{On: false}, now, todo)
		s.followLocked("")
	}
	if s.due <= now {
		s.stepLocked(session.Timer{}, now, todo)
	} else {
		s.armLocked(s.due, now)
	}
	s.mu.Unlock()
	s.run(todo)
}

// send carries one call to a replica. Every call gets its answer, so the automaton's bound on calls holds.
func (s *groupSession) send(a *session.SendTo, d *placement.Descriptor) {
	h, call, to := s.client.host, a.Call, a.To
	m, ok := d.View.MemberAt(a.To)
	if !ok { // a hint named a stranger
		s.step(session.NotLeader{Call: call})
		return
	}
	p, _ := d.Peer(m.ID)
	s.follow(peer.ID(p.ID))
	req := encodeCommand(d.Group, d.View.Num, a.Cmd)
	h.overlay.Go(peer.ID(p.ID), keyspace.Key{}, serviceCommand, req, a.Timeout, func(b []byte, err error) {
		s.step(s.answered(call, to, d, b, err))
	})
}

// follow watches who is called from now on, as a rule the leader, in place of who was before: a call to a peer that falls silent
// then fails at once, and does not wait for its time-out.
func (s *groupSession) follow(p peer.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.followLocked(p)
	}
}

func (s *groupSession) followLocked(p peer.ID) {
	if s.follows == p {
		return
	}
	h := s.client.host
	h.mu.Lock()
	defer h.mu.Unlock()
	if p != "" {
		h.activateLocked(p, true)
		h.watchLocked(p)
	}
	if s.follows != "" {
		h.activateLocked(s.follows, false)
		h.unwatchLocked(s.follows)
	}
	s.follows = p
}

// answered turns the answer to a call to a node into the automaton's event.
func (s *groupSession) answered(call uint64, to keyspace.NodeID, d *placement.Descriptor, b []byte, err error) session.ClientEvent {
	h := s.client.host
	var r reply
	if err == nil {
		r, err = h.decode.reply(b)
	}
	if err != nil {
		log.Debugw("no answer", "group", d.Group, "node", to, "err", err)
		return session.NoAnswer{Call: call}
	}
	if h.corrected(*d, r) {
		s.renew()
	}
	if status, ok := statusFromPB(r.status); ok {
		switch h.locator.led(d.Group, to); status {
		case session.Moved:
			h.movedTo(d.Group, r)
		case session.OK:
			s.servedBy(d.Group)
		}
		return session.Answer{Call: call, Status: status, Data: r.data}
	}
	switch r.status {
	case pb.Status_NOT_LEADER, pb.Status_NOT_HERE, pb.Status_MOVED, pb.Status_BUSY, pb.Status_NO_LEASE:
		return session.NotLeader{Call: call, Hint: r.leader}
	}
	return session.NoAnswer{Call: call}
}

// renew takes over what has become known of the group's place.
func (s *groupSession) renew() {
	if d, ok := s.client.host.locator.cached(s.prefix); ok && s.is(d.Group) {
		s.mu.Lock()
		newer := placement.Newer(d, *s.descriptor)
		s.mu.Unlock()
		if newer {
			s.located(d)
		}
	}
}

// is reports whether the session can be with a group: of an own group with that very one, since what was asked of it is not to be asked again
// of the one that follows.
func (s *groupSession) is(g order.GroupID) bool { return s.own == order.GroupID{} || s.own == g }

// locate finds the group for the automaton; fresh when what was found before did not answer.
func (s *groupSession) locate(fresh bool) {
	h := s.client.host
	if !fresh {
		// The cache answers without waiting, most of the time.
		if d, ok := h.locator.cached(s.prefix); ok && s.is(d.Group) {
			s.located(d)
			return
		}
	}
	h.spawn(func() {
		if s.own != (order.GroupID{}) {
			s.seekOwn()
			return
		}
		d, err := h.locator.locate(h.ctx, s.prefix, fresh)
		if err != nil {
			log.Debugw("group not found", "prefix", s.prefix, "err", err)
		}
		s.located(d)
	})
}

func (s *groupSession) located(d placement.Descriptor) {
	ev := session.Located{Leader: s.client.host.locator.leader(d.Group)}
	for _, m := range d.View.Members {
		if m.Role == order.Voter {
			ev.Voters = append(ev.Voters, m.Peer)
		}
	}
	todo := newTasks()
	s.mu.Lock()
	if !d.IsZero() {
		s.descriptor = &d
	}
	s.stepLocked(ev, s.client.host.clock.Now(), todo)
	s.mu.Unlock()
	s.run(todo)
}

// takes reports whether an output from this node is to be believed: it must come from a member.
func (s *groupSession) takes(o output, from keyspace.NodeID) bool {
	s.mu.Lock()
	d, id := *s.descriptor, s.id
	s.mu.Unlock()
	if newer, ok := s.client.host.locator.cached(s.prefix); ok && placement.Newer(newer, d) {
		d = newer
	}
	_, member := d.View.MemberAt(from)
	return member && d.Group == o.group && id == o.client
}

func (s *groupSession) close() { s.end(session.Close{}) }

// end gives the automaton its last event and lets go of everything.
func (s *groupSession) end(last session.ClientEvent) {
	h, todo := s.client.host, newTasks()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	s.stepLocked(last, h.clock.Now(), todo)
	if s.timer != nil {
		s.timer.Stop()
	}
	s.followLocked("")
	h.forgotten(s.id)
	s.mu.Unlock()
	s.run(todo)
}
