package lockservice

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/driver"
	"latchkey/lockservice/sigma"
	sigmapb "latchkey/lockservice/sigma/pb"
	"latchkey/replicagroup"
	"latchkey/replicagroup/quorum"
)

// SigmaNet is what clients of protocol sigma need of the peer they run on. Its methods are safe for concurrent use.
type SigmaNet interface {
	// Locate finds the group that owns key, in a cache unless fresh is set, which asks the overlay again. It blocks on look-ups; ctx
	// ends that. Its errors are those of package replicagroup.
	Locate(ctx context.Context, key keyspace.Key, fresh bool) (SigmaGroup, error)
	// Send sends a frame to a replica of the group that owns key. It copies the frame and does not block. What cannot be sent is lost.
	Send(to keyspace.NodeID, key keyspace.Key, frame []byte)
}

// SigmaGroup is a group and who votes in it.
type SigmaGroup struct {
	Group  sigmapb.Group
	Voters []keyspace.NodeID // at least one, no one twice
}

// SigmaConfig configures [NewSigma].
type SigmaConfig struct {
	Net    SigmaNet
	Depth  int    // of the overlay: the length of its groups' prefixes
	Limits Limits // of the overlay: [LimitsOf]
	Clock  Clock  // that of the services above
	Self   string // the peer's id, for people
	// PeerName, Prefixes and Meter are as in [GroupConfig].
	PeerName func(keyspace.NodeID) (string, bool)
	Prefixes func(context.Context) ([]keyspace.Prefix, error)
	Meter    *Meter // nil: nobody counts
}

// Limits of [Sigma].
const (
	// WishesMax bounds the locks that one peer holds or waits for by protocol sigma, those it has given back within their TTL
	// included. One more is refused with [ErrLimit].
	WishesMax = 1 << 16
	// placesMax bounds the groups whose views are kept.
	placesMax = 1 << 14
	// lookupPause is between two look-ups of one group that all clients of a peer share.
	lookupPause = 3 * time.Second
)

// Sigma is the client side of protocol sigma on one peer: every wish for a lock is an automaton of package sigma, which whoever
// brings an event steps (a caller, a stream's reader, the timer). So a lock has no goroutine of its own, and an uncontended one is
// held as soon as the answers of a majority have been read. Its methods are safe for concurrent use.
//
// Views of groups are learned from the replicas, and kept: only the first wish of a group has to ask twice.
type Sigma struct {
	cfg   SigmaConfig
	drift automaton.Drift
	life  context.Context // ends with Close
	end   context.CancelFunc
	clock atomic.Uint64 // Lamport: at least that of every client

	mu       sync.Mutex
	closed   bool
	lines    map[sigma.Session]*line
	idle     map[string][]*line // by name, the latest last
	places   map[keyspace.Prefix]*place
	searches sync.WaitGroup

	questions map[sigma.Session]*question // about who has a lock
	patience  time.Duration               // [watchPatience]

	ears sync.Pool // of channels with room for one

	acquired, oneRound, followed atomic.Uint64

	timing sync.Mutex
	timers driver.Timers[*line]
	timer  *time.Timer
	wakes  automaton.Instant // when timer runs out
}

// place is what is known of a group's present view.
type place struct {
	group  sigmapb.Group
	view   sigma.Descriptor
	looked automaton.Instant // when the overlay was asked last
}

// NewSigma returns the clients of one peer. They hear what replicas answer through [Sigma.Deliver].
func NewSigma(cfg SigmaConfig) *Sigma {
	s := &Sigma{
		cfg: cfg, drift: automaton.Drift(cfg.Limits.DriftPPM),
		lines: make(map[sigma.Session]*line), idle: make(map[string][]*line), places: make(map[keyspace.Prefix]*place),
		wakes: automaton.Never, questions: make(map[sigma.Session]*question), patience: watchPatience,
	}
	s.ears.New = func() any { return make(chan struct{}, 1) }
	s.life, s.end = context.WithCancel(context.Background())
	s.timer = time.AfterFunc(time.Hour, s.expired)
	s.timer.Stop()
	return s
}

// Close ends every wish at once: waiting calls fail with [ErrClosed], and what is held, or is being given back, is left to its lease.
// It waits for look-ups under way. It is idempotent.
func (s *Sigma) Close() error {
	s.mu.Lock()
	s.closed = true
	lines := s.lines
	s.lines, s.idle = make(map[sigma.Session]*line), make(map[string][]*line)
	s.mu.Unlock()
	s.end()
	s.timing.Lock()
	s.timer.Stop()
	s.wakes = -1 // never set again
	s.timing.Unlock()
	for _, l := range lines {
		l.mu.Lock()
		l.gone = true
		if l.logged.leaving {
			l.leftLocked()
		}
		l.tellLocked()
		l.mu.Unlock()
	}
	s.searches.Wait()
	return nil
}

// Deliver takes a message that a replica has sent to a client. from is the authenticated sender. It does not block, and keeps no part of m
// but what is not changed any more.
func (s *Sigma) Deliver(from keyspace.NodeID, g sigmapb.Group, m *sigma.Message) {
	s.mu.Lock()
	l, q := s.lines[m.Req.Session], s.questions[m.Req.Session]
	s.mu.Unlock()
	switch {
	case l != nil:
		l.deliver(from, g, m)
	case q != nil:
		q.hear(from, g, m)
	}
}

// SigmaStats counts what clients of a peer have done since its start.
type SigmaStats struct {
	Acquired uint64 // locks
	OneRound uint64 // of those, the ones that were held as soon as a majority had answered the first question
	Followed uint64 // of those, the ones that the group's table granted, since protocol group had the name
}

// Stats returns the counts.
func (s *Sigma) Stats() SigmaStats {
	return SigmaStats{Acquired: s.acquired.Load(), OneRound: s.oneRound.Load(), Followed: s.followed.Load()}
}

// lamport returns a clock for the next request. Wall time is part of it, as in hybrid logical clocks: a process that has just started,
// or has not asked this group for long, would otherwise come before those who wait. A wall clock that is wrong costs order, and
// nothing else.
func (s *Sigma) lamport() uint64 { return max(s.clock.Load(), uint64(max(0, time.Now().UnixMicro()))) }

func (s *Sigma) heard(clock uint64) {
	for {
		if old := s.clock.Load(); clock <= old || s.clock.CompareAndSwap(old, clock) {
			return
		}
	}
}

// line is one line of requests for one name, one after the other: a session of the protocol.
type line struct {
	sigma   *Sigma
	session sigma.Session
	name    string
	key     keyspace.Key
	holder  string // for people

	mu       sync.Mutex
	seq      uint64
	ttl      time.Duration
	delay    time.Duration
	try      bool
	group    sigmapb.Group
	core     *sigma.Client
	acts     []sigma.Action
	frame    []byte
	jumps    uint64 // of the clock, as last seen
	position int    // -1: not told
	asked    int    // REQ and INSTALL sent
	lost     bool
	returned bool // a majority has heard of the release
	end      sigma.Action
	gone     bool
	by       *sigmaBackend // whose wish it is
	backend  *sigmaBackend // that has granted it under req; nil: it is no grant
	req      uint64
	logged   loggedLine
	ears     []chan struct{}
	due      automaton.Instant // when core wants to be woken
	wakes    automaton.Instant // when it is; not later
	idleTill automaton.Instant // Never while somebody uses it
}

// line takes a line of requests for a name that nobody uses.
func (s *Sigma) line(name string) (*line, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	if idle := s.idle[name]; len(idle) > 0 {
		l := idle[len(idle)-1]
		idle[len(idle)-1] = nil
		if s.idle[name] = idle[:len(idle)-1]; len(idle) == 1 {
			delete(s.idle, name)
		}
		return l, nil
	}
	if len(s.lines) >= WishesMax {
		return nil, fmt.Errorf("%w: %d locks are held or waited for through this peer", ErrLimit, len(s.lines))
	}
	l := &line{
		sigma: s, name: name, key: keyspace.Preimage(name).Key(), due: automaton.Never, wakes: automaton.Never, idleTill: automaton.Never,
	}
	rand.Read(l.session[:])
	l.holder = Party{Session: hex.EncodeToString(l.session[:]), Peer: s.cfg.Self}.String()
	s.lines[l.session] = l
	return l, nil
}

// restLocked puts a line whose request is over where the next wish for its name finds it, and for the TTL where late answers do.
func (l *line) restLocked() {
	s := l.sigma
	if l.logged.attempt > 0 {
		l.by.table.exit(l.logged.req)
		l.logged.attempt = 0
	}
	l.idleTill = s.cfg.Clock.Now().Add(s.drift.Stretch(l.ttl) + time.Second)
	l.armLocked()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lines[l.session] == l {
		s.idle[l.name] = append(s.idle[l.name], l)
	}
}

func (l *line) rest() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.restLocked()
}

// forget drops an idle line. It answers false when somebody has taken it meanwhile.
func (s *Sigma) forget(l *line) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	idle := s.idle[l.name]
	i := slices.Index(idle, l)
	if i < 0 {
		return false
	}
	if s.idle[l.name] = slices.Delete(idle, i, i+1); len(idle) == 1 {
		delete(s.idle, l.name)
	}
	delete(s.lines, l.session)
	return true
}

// known returns where to ask for a key, unless its group is to be looked for.
func (s *Sigma) known(key keyspace.Key) (g sigmapb.Group, d sigma.Descriptor, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.places[keyspace.PrefixOf(key, s.cfg.Depth)]; p != nil {
		return p.group, p.view, true
	}
	return g, d, false
}

// place returns where to ask for a key. A group of the key's own locks by its table only: its view is nobody's.
func (s *Sigma) place(ctx context.Context, key keyspace.Key) (sigmapb.Group, sigma.Descriptor, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.places[keyspace.PrefixOf(key, s.cfg.Depth)]
	if p == nil {
		s.mu.Unlock()
		g, err := s.cfg.Net.Locate(ctx, key, false)
		s.mu.Lock()
		switch {
		case err != nil:
			return sigmapb.Group{}, sigma.Descriptor{}, err
		case s.own(g.Group):
			return g.Group, sigma.Descriptor{Members: sorted(g.Voters)}, nil
		}
		p = s.foundLocked(g)
	}
	return p.group, p.view, nil
}

// find is place for a wish, which waits for its group as it waits for the lock: while the group is not found, as long as a founder that
// is asked to make it is frozen, say, it is looked for again until ctx ends.
func (s *Sigma) find(ctx context.Context, key keyspace.Key) (sigmapb.Group, sigma.Descriptor, error) {
	for pause := askAgainMin; ; pause = min(2*pause, askAgainMax) {
		g, d, err := s.place(ctx, key)
		if err == nil || forGood(err) {
			return g, d, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			if !errors.Is(err, replicagroup.ErrNoQuorum) { // nothing was sent, so the outcome is known
				err = fmt.Errorf("%w: the lock's group was not found: %w", replicagroup.ErrNoQuorum, err)
			}
			return g, d, err
		}
	}
}

// forGood reports whether asking a group again, or for it, cannot come right.
func forGood(err error) bool {
	return errors.Is(err, replicagroup.ErrClosed) || errors.Is(err, replicagroup.ErrRefused) || errors.Is(err, replicagroup.ErrStore)
}

// own reports whether a group is a key's own.
func (s *Sigma) own(g sigmapb.Group) bool { return int(g.Prefix.Len) != s.cfg.Depth }

// foundLocked takes note of a group that was located. Nobody's view is numbered 0, so that whoever is asked in it says which is.
func (s *Sigma) foundLocked(g SigmaGroup) *place {
	p := s.places[g.Group.Prefix]
	if p == nil {
		if len(s.places) >= placesMax {
			clear(s.places) // each is found again with its next wish
		}
		p = &place{looked: s.cfg.Clock.Now().Add(-lookupPause)}
		s.places[g.Group.Prefix] = p
	}
	if p.view.Members == nil || g.Group.Gen > p.group.Gen {
		p.group, p.view = g.Group, sigma.Descriptor{View: sigma.ViewID{Gen: g.Group.ViewGen()}, Members: sorted(g.Voters)}
	}
	return p
}

// found is foundLocked for who does not hold mu.
func (s *Sigma) found(g SigmaGroup) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.foundLocked(g)
}

func sorted(nodes []keyspace.NodeID) []keyspace.NodeID {
	return slices.SortedFunc(slices.Values(nodes), keyspace.NodeID.Compare)
}

// moved takes note of the view that a client has heard of.
func (s *Sigma) moved(g sigmapb.Group, d sigma.Descriptor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.places[g.Prefix]; p != nil && g.Gen >= p.group.Gen && d.View.Compare(p.view.View) > 0 {
		p.group, p.view = g, d
	}
}

// begin makes a request of the line, which is idle.
func (l *line) begin(by *sigmaBackend, r Request, g sigmapb.Group, d sigma.Descriptor, patient bool) (asked automaton.Instant) {
	s := l.sigma
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seq++
	l.ttl, l.group, l.position, l.asked, l.lost, l.returned, l.end, l.idleTill = r.TTL, g, -1, 0, false, false, sigma.Action{}, automaton.Never
	l.due, l.jumps, l.backend, l.req = automaton.Never, s.cfg.Clock.Jumps(), nil, 0
	l.by, l.delay, l.try, l.logged.err, l.logged.taken = by, r.Delay, r.Try, nil, nil
	at := l.logged.at
	if l.core == nil {
		l.core = new(sigma.Client)
	}
	l.core.Reset(sigma.ClientConfig{
		Name: l.name, Req: sigma.Req{Session: l.session, Seq: l.seq}, TTL: r.TTL, Delay: r.Delay, Drift: s.drift, View: d,
		Clock: s.lamport(), Try: r.Try, Repeat: true, OnDemand: true, Patient: patient,
		Logged: s.own(g) || at.group == g && at.view == d.View && d.View.Num > 0,
	})
	return l.stepLocked(sigma.Event{Kind: sigma.Begin})
}

func (l *line) deliver(from keyspace.NodeID, g sigmapb.Group, m *sigma.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone || l.core == nil || g.Prefix != l.group.Prefix || g.Gen < l.group.Gen {
		return
	}
	before, was, logged := l.core.View().View, l.group, l.core.Logged()
	l.group = g // a client that moves to a later generation speaks to that at once
	l.stepLocked(sigma.Event{Kind: sigma.Receive, From: from, Msg: m})
	l.sigma.heard(l.core.Clock())
	d := l.core.View()
	if d.View.Gen != g.ViewGen() {
		l.group = was
	}
	if l.core.Logged() && !logged {
		l.logged.at.group, l.logged.at.view = l.group, d.View
	}
	if d.View != before {
		l.sigma.moved(l.group, d)
	}
}

// stepLocked feeds one event and does what comes of it. It returns the instant the event was given.
func (l *line) stepLocked(ev sigma.Event) automaton.Instant {
	c := l.sigma.cfg.Clock
	ev.Now = c.Now()
	l.acts = l.acts[:0]
	if j := c.Jumps(); j != l.jumps {
		l.jumps = j
		l.acts = l.core.Step(sigma.Event{Kind: sigma.ClockJump, Now: ev.Now}, l.acts)
	}
	l.acts = l.core.Step(ev, l.acts)
	tell := false
	var orders []sigma.Command
	for i := range l.acts {
		switch a := &l.acts[i]; a.Kind {
		case sigma.Send:
			l.sendLocked(i)
		case sigma.Arm:
			l.due = a.At
			l.armLocked()
		case sigma.Waiting:
			l.position, tell = a.Msg.Position, true
		case sigma.Acquired:
			tell = true
			l.sigma.acquired.Add(1)
			switch {
			case l.core.Logged():
				l.sigma.followed.Add(1)
			case l.asked <= len(l.core.View().Members):
				l.sigma.oneRound.Add(1)
			}
		case sigma.Renewed:
			tell = true
		case sigma.Lost:
			l.lost, tell = true, true
			log.Debugw("lost", "lock", l.name, "token", a.Tok, "err", a.Err)
		case sigma.Returned:
			l.returned, tell = true, true
		case sigma.Done:
			l.end, tell = *a, true
			if l.backend != nil && l.backend.drop(l.req) { // nobody has released it
				l.restLocked()
			}
			if l.logged.leaving {
				l.leftLocked()
				l.restLocked()
			}
		case sigma.Lookup:
			l.sigma.lookUp(l)
		case sigma.Order:
			orders = append(orders, a.Order)
		}
	}
	for _, o := range orders {
		l.orderLocked(o)
	}
	if tell {
		l.tellLocked()
	}
	return ev.Now
}

// sendLocked sends the message of an action. Those of one step that go to all replicas are equal, and are encoded once.
func (l *line) sendLocked(i int) {
	a := &l.acts[i]
	if a.Msg.Kind == sigma.Request || a.Msg.Kind == sigma.Install {
		l.asked++
	}
	if i == 0 || !sameFrame(&l.acts[i-1], a) {
		var err error
		if l.frame, err = sigmapb.EncodeFrame(l.frame[:0], l.group, &a.Msg); err != nil {
			log.Errorw("cannot encode a message of our own", "lock", l.name, "err", err)
			return
		}
	}
	l.sigma.cfg.Net.Send(a.To, l.key, l.frame)
}

// sameFrame reports whether two actions of one step carry one message.
func sameFrame(a, b *sigma.Action) bool {
	if b.Kind != a.Kind || b.Msg.Kind != a.Msg.Kind || b.Msg.View != a.Msg.View || b.Msg.TS != a.Msg.TS {
		return false
	}
	return b.Msg.Kind == sigma.Request && b.Msg.CS == a.Msg.CS && b.Msg.Tok == a.Msg.Tok || b.Msg.Kind == sigma.Release && b.Msg.Tok == a.Msg.Tok
}

// tellLocked has everybody look who waits for this line.
func (l *line) tellLocked() {
	for _, ear := range l.ears {
		select {
		case ear <- struct{}{}:
		default:
		}
	}
}

// wait blocks until met answers true, which is asked now and after whatever happens to the line, with its mu held. met is not asked after
// ctx has ended, nor after closing has, if there is one.
func (l *line) wait(ctx, closing context.Context, met func() bool) error {
	var closed <-chan struct{}
	if closing != nil {
		closed = closing.Done()
	}
	ear := l.sigma.ears.Get().(chan struct{})
	l.mu.Lock()
	l.ears = append(l.ears, ear)
	var err error
	for err == nil && !met() {
		if l.gone {
			err = ErrClosed
			break
		}
		l.mu.Unlock()
		select {
		case <-ear:
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-closed:
			err = ErrClosed
		}
		l.mu.Lock()
	}
	l.ears = slices.DeleteFunc(l.ears, func(e chan struct{}) bool { return e == ear })
	l.mu.Unlock()
	select {
	case <-ear: // so that the next user does not find it
	default:
	}
	l.sigma.ears.Put(ear)
	return err
}

// armLocked sees to it that the line is woken when it wants to be. A timer that is set is put off only when it runs out: most
// requests are over long before theirs.
func (l *line) armLocked() {
	at := min(l.due, l.idleTill)
	if at >= l.wakes {
		return
	}
	l.wakes = at
	s := l.sigma
	s.timing.Lock()
	defer s.timing.Unlock()
	s.timers.Set(l, at)
	s.wakeLocked()
}

func (s *Sigma) wakeLocked() {
	if at := s.timers.Next(); at < s.wakes {
		s.wakes = at
		s.timer.Reset(max(0, at.Sub(s.cfg.Clock.Now())))
	}
}

// expired wakes the lines whose time has come.
func (s *Sigma) expired() {
	var due []*line
	s.timing.Lock()
	if s.wakes < 0 {
		s.timing.Unlock()
		return
	}
	s.wakes = automaton.Never
	for now := s.cfg.Clock.Now(); ; {
		l, ok := s.timers.Expired(now)
		if !ok {
			break
		}
		due = append(due, l)
	}
	s.wakeLocked()
	s.timing.Unlock()
	for _, l := range due {
		l.expired()
	}
}

func (l *line) expired() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wakes = automaton.Never
	if l.gone {
		return
	}
	now := l.sigma.cfg.Clock.Now()
	if l.due <= now {
		l.due = automaton.Never
		l.stepLocked(sigma.Event{Kind: sigma.Timer})
		l.tellLocked() // of the time
	}
	if l.idleTill <= now {
		l.gone = l.sigma.forget(l)
		if l.idleTill = automaton.Never; l.gone {
			return
		}
	}
	l.armLocked()
}

// lookUp asks the overlay for the group of a line that hears too little of it.
func (s *Sigma) lookUp(l *line) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, now := s.places[l.group.Prefix], s.cfg.Clock.Now()
	if s.closed {
		return
	}
	fresh := p == nil || now.Sub(p.looked) >= lookupPause
	if fresh && p != nil {
		p.looked = now
	}
	s.searches.Go(func() {
		g, err := s.cfg.Net.Locate(s.life, l.key, fresh)
		if err == nil {
			s.mu.Lock()
			s.foundLocked(g)
			s.mu.Unlock()
		}
		if err != nil {
			log.Debugw("group not found", "lock", l.name, "err", err)
			return
		}
		l.located(g)
	})
}

// located has the client move to a later generation, and else asks voters that its view does not have which view it is.
func (l *line) located(g SigmaGroup) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone || g.Group.Prefix != l.group.Prefix || g.Group.Gen < l.group.Gen {
		return
	}
	zero := sigma.ViewID{Gen: g.Group.ViewGen()}
	if g.Group.Gen > l.group.Gen {
		l.group = g.Group
		l.stepLocked(sigma.Event{Kind: sigma.Located, State: &sigma.LogState{
			Descriptor: sigma.Descriptor{View: zero, Members: sorted(g.Voters)},
		}})
		return
	}
	members := l.core.View().Members
	for _, n := range g.Voters {
		if slices.Contains(members, n) {
			continue
		}
		m := sigma.Message{Kind: sigma.Yield, View: zero, Name: l.name, Req: sigma.Req{Session: l.session, Seq: l.seq}, TS: l.core.Clock()}
		if frame, err := sigmapb.EncodeFrame(nil, l.group, &m); err == nil {
			l.sigma.cfg.Net.Send(n, l.key, frame)
		}
	}
}

// sigmaBackend takes locks by protocol sigma, and by protocol group what only that can do.
type sigmaBackend struct {
	sigma   *Sigma
	table   *groupBackend
	closing context.Context
	close   context.CancelCauseFunc

	mu     sync.Mutex
	last   uint64           // above [sigmaReqs]
	grants map[uint64]*line // held by protocol sigma, by Grant.Req
}

// sigmaReqs is below the numbers of what is held by protocol sigma, and above those of protocol group, which begin with 1.
const sigmaReqs = 1 << 52

// NewBackend returns a backend of both protocols for an overlay whose voters run sigma. Locks are kept between the voters of the group that
// owns the name's key, without its log; what is shared, has permits or a value is kept by the group's table, as [NewGroupBackend] does
// it with g, and so is what is asked for by [ProtocolGroup]. One name is locked by one of them at a time, and who asks by the other
// follows it. It is an [io.Closer]: after Close calls fail with [ErrClosed]; what it has been granted is left to its lease.
func (s *Sigma) NewBackend(g Groups) Backend {
	b := &sigmaBackend{
		sigma: s, table: newGroupBackend(g, GroupConfig{Limits: s.cfg.Limits, PeerName: s.cfg.PeerName, Prefixes: s.cfg.Prefixes}), last: sigmaReqs, grants: make(map[uint64]*line),
	}
	b.closing, b.close = context.WithCancelCause(s.life)
	return b
}

func (b *sigmaBackend) Close() error {
	b.close(ErrClosed)
	return b.table.Close()
}

// byGroup reports whether protocol group is to keep a lock.
func byGroup(r Request) bool {
	return r.Protocol == ProtocolGroup || r.Protocol == ProtocolAuto && (r.Shared || r.Permits > 0 || r.Value != "")
}

func (b *sigmaBackend) Acquire(ctx context.Context, r Request) (Grant, error) {
	return b.sigma.cfg.Meter.acquire(ctx, b, r, b.acquire)
}

func (b *sigmaBackend) acquire(ctx context.Context, r Request) (Grant, error) {
	s := b.sigma
	if byGroup(r) {
		return b.table.Acquire(ctx, r)
	}
	if err := errors.Join(CheckName(r.Name), s.cfg.Limits.CheckTTL(r.TTL), checkShape(r)); err != nil {
		return Grant{}, err
	}
	l, err := s.line(r.Name)
	if err != nil {
		return Grant{}, err
	}
	g, d, known := s.known(l.key)
	if !known {
		if g, d, err = b.find(ctx, l); err != nil {
			l.rest()
			return Grant{}, err
		}
	}
	// Whoever gives up soon wants to know why.
	until, ends := ctx.Deadline()
	asked := l.begin(b, r, g, d, !ends || time.Until(until) > impatience)
	for position := -1; ; {
		err := l.wait(ctx, b.closing, func() bool { return l.end.Kind != 0 || l.core.State() == sigma.ClientHeld || l.position != position })
		if err != nil {
			return Grant{}, fmt.Errorf("lockservice: wait for %q: %w", r.Name, l.leave(err))
		}
		l.mu.Lock()
		switch {
		case l.core.State() == sigma.ClientHeld:
			defer l.mu.Unlock()
			since := l.core.Deadline().Add(-s.drift.Shrink(r.TTL))
			return Grant{
				Name: r.Name, Token: Token(l.core.Token()), TTL: r.TTL, Holder: l.holder, Req: b.keepLocked(l), Since: since,
				Waited: since.Sub(asked) > r.TTL/waitedPart,
			}, nil
		case l.end.Kind != 0:
			end, taken := l.end, l.logged.taken
			l.restLocked()
			l.mu.Unlock()
			if errors.Is(end.Err, sigma.ErrLocked) && taken != nil {
				return Grant{}, taken
			}
			return Grant{}, b.refusal(r.Name, end)
		default:
			position = l.position
			l.mu.Unlock()
			if r.Queued != nil && position >= 0 {
				r.Queued(position + 1) // the first of those who wait is next
			}
		}
	}
}

// find looks for the group of a line. ctx ends that, and so does the backend's end.
func (b *sigmaBackend) find(ctx context.Context, l *line) (sigmapb.Group, sigma.Descriptor, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(b.closing, func() { cancel(ErrClosed) })()
	g, d, err := b.sigma.find(ctx, l.key)
	if err != nil {
		err = groupError(ctx, err)
	}
	return g, d, err
}

// impatience is how long a request has to wait so that the voters need not say at once that it is queued: ten times as long as they take.
const impatience = 100 * time.Millisecond

// leave gives back a request whose caller waits no longer. It adds to the cause that too few replicas have answered, if so.
func (l *line) leave(cause error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, answers := len(l.core.View().Members), l.core.Answers()
	switch waits := l.core.State() == sigma.ClientWaiting && l.position < 0 && !errors.Is(cause, ErrClosed); {
	case waits && l.core.Logged() && errors.Is(l.logged.err, ErrNoQuorum):
		cause = fmt.Errorf("%w: %w", l.logged.err, cause)
	case waits && !l.core.Logged() && answers < quorum.Majority(n):
		cause = fmt.Errorf("%w: %d of %d replicas answer: %w", ErrNoQuorum, answers, n, cause)
	}
	l.stepLocked(sigma.Event{Kind: sigma.GiveBack})
	if !l.gone && l.end.Kind == 0 && l.core.Logged() && l.leaveLocked() {
		return cause // once the table has heard of it the line rests
	}
	l.restLocked()
	return cause
}

// waitedPart says what part of the TTL may have passed before a lease began that callers elsewhere count from their own asking.
const waitedPart = 10

// refusal says why a request has ended without a grant.
func (b *sigmaBackend) refusal(name string, end sigma.Action) error {
	switch {
	case errors.Is(end.Err, sigma.ErrLocked):
		e := &LockedError{Name: name}
		if q := end.Msg.Owner; q != (sigma.Req{}) {
			e.Holder = Party{Session: hex.EncodeToString(q.Session[:])}
		}
		return e
	case errors.Is(end.Err, sigma.ErrRefused):
		return fmt.Errorf("%w: %w", ErrLimit, end.Err)
	case end.Err == nil: // the hold was over before the caller saw it: the machine slept
		return fmt.Errorf("%w: %q was granted, and its lease ran out", ErrOutcomeUnknown, name)
	}
	return end.Err // the table's
}

// keepLocked makes a line, whose mu is held, a grant.
func (b *sigmaBackend) keepLocked(l *line) (req uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last++
	b.grants[b.last] = l
	l.backend, l.req = b, b.last
	return b.last
}

// held returns the line of a grant.
func (b *sigmaBackend) held(g Grant) *line {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.grants[g.Req]
	if l == nil || l.name != g.Name {
		return nil
	}
	return l
}

// drop lets go of a grant. It answers false when somebody else has.
func (b *sigmaBackend) drop(req uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.grants[req]
	delete(b.grants, req)
	return ok
}

func (b *sigmaBackend) Renew(ctx context.Context, g Grant) error {
	return b.sigma.cfg.Meter.renewed(b, g, b.renew(ctx, g))
}

func (b *sigmaBackend) renew(ctx context.Context, g Grant) error {
	if g.Req < sigmaReqs {
		return b.table.Renew(ctx, g)
	}
	l := b.held(g)
	if l == nil {
		return ErrNotHeld
	}
	l.mu.Lock()
	if l.core.State() != sigma.ClientHeld || Token(l.core.Token()) != g.Token {
		l.mu.Unlock()
		return ErrNotHeld
	}
	until := l.stepLocked(sigma.Event{Kind: sigma.Renew}).Add(b.sigma.drift.Shrink(g.TTL))
	seq := l.seq
	l.mu.Unlock()
	renewed := false
	err := l.wait(ctx, nil, func() bool {
		held := l.seq == seq && l.core.State() == sigma.ClientHeld
		renewed = held && l.core.Deadline() >= until
		return renewed || !held
	})
	switch {
	case err != nil:
		return fmt.Errorf("%w: renew %q: %w", ErrNoQuorum, g.Name, err)
	case !renewed:
		return ErrNotHeld
	}
	return nil
}

func (b *sigmaBackend) Release(ctx context.Context, g Grant) error {
	return b.releaseWithin(ctx, nil, 0, g)
}

// releaseWithin implements [releaser]. The limit is looked at when the line is woken, as it is by each repetition of its release.
func (b *sigmaBackend) releaseWithin(ctx, life context.Context, limit time.Duration, g Grant) error {
	if g.Req >= sigmaReqs {
		return b.sigma.cfg.Meter.released(b, g, b.release(ctx, life, limit, g))
	}
	if limit > 0 {
		bounded, cancel := context.WithTimeoutCause(ctx, limit, errNoAnswer)
		defer cancel()
		defer context.AfterFunc(life, cancel)()
		ctx = bounded
	}
	return b.sigma.cfg.Meter.released(b, g, b.table.Release(ctx, g))
}

// release gives a lock back that the voters keep. Without a limit life is nil.
func (b *sigmaBackend) release(ctx, life context.Context, limit time.Duration, g Grant) error {
	l := b.held(g)
	if l == nil {
		return ErrNotHeld
	}
	l.mu.Lock()
	seq := l.seq
	if Token(l.core.Token()) != g.Token || l.end.Kind != 0 || l.lost && l.core.State() != sigma.ClientLost {
		l.mu.Unlock()
		return ErrNotHeld
	}
	until := l.stepLocked(sigma.Event{Kind: sigma.GiveBack}).Add(limit)
	l.mu.Unlock()
	over, late := false, false
	err := l.wait(ctx, life, func() bool {
		over = l.seq != seq || l.returned || l.end.Kind != 0
		late = limit > 0 && !over && b.sigma.cfg.Clock.Now() >= until
		return over || late
	})
	switch {
	case late:
		err = errNoAnswer
	case errors.Is(err, ErrClosed) && life != nil && life.Err() != nil: // the service's end says nothing about the lock
		err = context.Cause(life)
	}
	if err != nil { // the line repeats the release until the lease is over, and then drops the grant
		return fmt.Errorf("%w: release %q: %w", ErrOutcomeUnknown, g.Name, err)
	}
	if b.drop(g.Req) {
		l.rest()
	}
	return nil
}

func (b *sigmaBackend) Info(ctx context.Context, name string) (Info, error) {
	if err := CheckName(name); err != nil {
		return Info{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		info Info
		err  error
	}
	tabled := make(chan answer, 1) // what has been broken of the name is known to the table only
	go func() {
		info, err := b.table.Info(ctx, name)
		tabled <- answer{info, err}
	}()
	info, err := b.sigma.inspect(ctx, name)
	switch {
	case errors.Is(err, errElsewhere):
		a := <-tabled
		return a.info, a.err
	case err != nil:
		return Info{}, err
	}
	patience := time.NewTimer(tableWait)
	defer patience.Stop()
	select {
	case a := <-tabled:
		if a.err == nil && a.info.Protocol == ProtocolGroup { // it has taken the name over meanwhile
			return a.info, nil
		}
		info.Breaks = a.info.Breaks
	case <-patience.C: // without a leader all but that can be told
	}
	return info, nil
}

// tableWait is how long an Info that the voters have answered waits for the table's part.
const tableWait = 500 * time.Millisecond

// Changes implements [Notifier].
func (b *sigmaBackend) Changes(ctx context.Context, name string, fn func()) error {
	if err := CheckName(name); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(b.closing, func() { cancel(ErrClosed) })()
	return b.sigma.changes(ctx, name, fn)
}

func (b *sigmaBackend) Limits(context.Context) (Limits, error) { return b.sigma.cfg.Limits, nil }
