// Package apitest has stand-ins for a peer and its locks, to test what is built on the daemon's API without an overlay.
package apitest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"latchkey/lockservice"
	"latchkey/node/api"
)

// Limits are those of every [Backend].
var Limits = lockservice.Limits{TTLMin: time.Second, TTLMax: time.Minute, TTLDefault: 15 * time.Second, DriftPPM: 10_000}

// Call is one call that a [Backend] has answered.
type Call struct {
	Op    string // acquire, renew, release, break, info
	Name  string
	Token lockservice.Token
	At    time.Time // when it was answered
	Err   error
}

// Backend keeps locks in memory: first come, first served, leases ended by the machine's clock. Hooks, set before first use,
// run before the call is carried out; the call fails with what they return.
type Backend struct {
	OnAcquire func(ctx context.Context, r lockservice.Request) error
	OnRenew   func(ctx context.Context, g lockservice.Grant) error
	OnRelease func(ctx context.Context, g lockservice.Grant) error
	OnInfo    func(ctx context.Context, name string) error
	OnList    func() error                    // what a group says that does not tell of its locks; nil: all do
	OnUnsure  func() bool                     // whether that group has forgotten locks; nil: it has not
	OnRoot    func(ctx context.Context) error // what a list of groups ends with; nil: it does not

	// ShutOut, set before first use, is why the node beside may not be in the overlay; empty: it may.
	ShutOut string

	// Delay, set before first use, is until when locks are granted to nobody.
	Delay time.Time

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at every change
	locks   map[string]*lock
	token   lockservice.Token
	req     uint64
	calls   []Call
}

type lock struct {
	holder *lockservice.Grant
	end    time.Time
	queue  []*waiter
	breaks []lockservice.BrokenLock
}

type waiter struct {
	req lockservice.Request
	id  uint64
}

// NewBackend returns a backend whose first token is one above 2^60, which a float would round.
func NewBackend() *Backend {
	return &Backend{changed: make(chan struct{}), locks: make(map[string]*lock), token: 1 << 60}
}

func (b *Backend) lockLocked(name string) *lock {
	l := b.locks[name]
	if l == nil {
		l = &lock{}
		b.locks[name] = l
	}
	if l.holder != nil && !time.Now().Before(l.end) {
		l.holder = nil
	}
	return l
}

func (b *Backend) changeLocked() {
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *Backend) note(op, name string, token lockservice.Token, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls = append(b.calls, Call{op, name, token, time.Now(), err})
	b.changeLocked()
}

func (b *Backend) grantLocked(l *lock, r lockservice.Request, req uint64, waited bool) lockservice.Grant {
	b.token++
	g := lockservice.Grant{Name: r.Name, Token: b.token, TTL: r.TTL, Holder: fmt.Sprintf("session@%d", req), Req: req, Waited: waited}
	l.holder, l.end = &g, time.Now().Add(r.TTL)
	b.changeLocked()
	return g
}

// freeLocked reports whether a lock can be granted.
func (b *Backend) freeLocked(l *lock) bool { return l.holder == nil && !time.Now().Before(b.Delay) }

// Acquire implements [lockservice.Backend].
func (b *Backend) Acquire(ctx context.Context, r lockservice.Request) (g lockservice.Grant, err error) {
	defer func() { b.note("acquire", r.Name, g.Token, err) }()
	if b.OnAcquire != nil {
		if err := b.OnAcquire(ctx, r); err != nil {
			return lockservice.Grant{}, err
		}
	}
	if err := Limits.CheckTTL(r.TTL); err != nil {
		return lockservice.Grant{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.req++
	me := &waiter{r, b.req}
	l := b.lockLocked(r.Name)
	if b.freeLocked(l) && len(l.queue) == 0 {
		return b.grantLocked(l, r, me.id, false), nil
	}
	if r.Try {
		e := &lockservice.LockedError{Name: r.Name, Waiting: len(l.queue)}
		if l.holder != nil {
			e.Holder = party(l.holder.Req)
		}
		return lockservice.Grant{}, e
	}
	l.queue = append(l.queue, me)
	b.changeLocked()
	told := 0
	for {
		place := 0
		for i, w := range l.queue {
			if w == me {
				place = i + 1
			}
		}
		if place == 1 && b.freeLocked(b.lockLocked(r.Name)) {
			l.queue = l.queue[1:]
			return b.grantLocked(l, r, me.id, true), nil
		}
		if place != told && r.Queued != nil {
			r.Queued(place)
			told = place
		}
		changed, lapse := b.changed, time.NewTimer(max(time.Until(l.end), time.Until(b.Delay), time.Millisecond))
		b.mu.Unlock()
		select {
		case <-changed:
		case <-lapse.C:
		case <-ctx.Done():
		}
		lapse.Stop()
		b.mu.Lock()
		if ctx.Err() != nil {
			for i, w := range l.queue {
				if w == me {
					l.queue = append(l.queue[:i:i], l.queue[i+1:]...)
				}
			}
			b.changeLocked()
			return lockservice.Grant{}, context.Cause(ctx)
		}
	}
}

func party(req uint64) lockservice.Party {
	return lockservice.Party{Session: fmt.Sprintf("s%d", req), Peer: "12D3KooWfake"}
}

// Renew implements [lockservice.Backend].
func (b *Backend) Renew(ctx context.Context, g lockservice.Grant) (err error) {
	defer func() { b.note("renew", g.Name, g.Token, err) }()
	if b.OnRenew != nil {
		if err := b.OnRenew(ctx, g); err != nil {
			return err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.lockLocked(g.Name)
	if l.holder == nil || l.holder.Token != g.Token {
		return lockservice.ErrNotHeld
	}
	l.end = time.Now().Add(g.TTL)
	return nil
}

// Release implements [lockservice.Backend].
func (b *Backend) Release(ctx context.Context, g lockservice.Grant) (err error) {
	defer func() { b.note("release", g.Name, g.Token, err) }()
	if b.OnRelease != nil {
		if err := b.OnRelease(ctx, g); err != nil {
			return err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.lockLocked(g.Name)
	if l.holder == nil || l.holder.Token != g.Token {
		return lockservice.ErrNotHeld
	}
	l.holder = nil
	return nil
}

// Break implements [lockservice.Backend].
func (b *Backend) Break(_ context.Context, name string, token lockservice.Token) (holder lockservice.Party, err error) {
	defer func() { b.note("break", name, token, err) }()
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.lockLocked(name)
	if l.holder == nil || l.holder.Token != token {
		return lockservice.Party{}, lockservice.ErrNotHeld
	}
	holder = party(l.holder.Req)
	l.holder = nil
	l.breaks = append(l.breaks, lockservice.BrokenLock{Token: token, Holder: holder, Holders: 1, By: lockservice.Party{Session: "operator"}, At: time.Now()})
	b.changeLocked()
	return holder, nil
}

// Ended implements [lockservice.Ender].
func (b *Backend) Ended(ctx context.Context, g lockservice.Grant) error {
	if b.Until(ctx, func() bool { token, _ := b.State(g.Name); return token != g.Token }) {
		return nil
	}
	return context.Cause(ctx)
}

// Info implements [lockservice.Backend].
func (b *Backend) Info(ctx context.Context, name string) (i lockservice.Info, err error) {
	defer func() { b.note("info", name, i.Token, err) }()
	if b.OnInfo != nil {
		if err := b.OnInfo(ctx, name); err != nil {
			return lockservice.Info{}, err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.lockLocked(name)
	i = lockservice.Info{Name: name, Waiting: len(l.queue), Confirmed: true, DelayLeft: max(0, time.Until(b.Delay)), Breaks: slices.Clone(l.breaks)}
	if h := l.holder; h != nil {
		i.Held, i.Holder, i.Token, i.TTL, i.LeaseLeft = true, party(h.Req), h.Token, h.TTL, time.Until(l.end)
	}
	for _, w := range l.queue {
		i.Waiters = append(i.Waiters, lockservice.Waiter{Party: party(w.id), TTL: w.req.TTL})
	}
	return i, nil
}

// List implements [lockservice.Lister], with a page for each lock, and the error of OnList as that of a group.
func (b *Backend) List(ctx context.Context, prefix string, fn func(lockservice.ListPage) error) error {
	if b.OnRoot != nil {
		if err := b.OnRoot(ctx); err != nil {
			return err
		}
	}
	b.mu.Lock()
	names := slices.Sorted(maps.Keys(b.locks))
	b.mu.Unlock()
	for _, name := range names {
		i, err := b.Info(ctx, name)
		if err != nil {
			return err
		}
		if !strings.HasPrefix(name, prefix) || !i.Held && i.Waiting == 0 {
			continue
		}
		i.Waiters = nil
		if err := fn(lockservice.ListPage{Group: "a3/8", Locks: []lockservice.Info{i}}); err != nil {
			return err
		}
	}
	if b.OnList != nil {
		return fn(lockservice.ListPage{Group: "b4/8", Err: b.OnList(), Unsure: b.OnUnsure != nil && b.OnUnsure()})
	}
	return nil
}

// Limits implements [lockservice.Backend].
func (b *Backend) Limits(context.Context) (lockservice.Limits, error) { return Limits, nil }

// Calls returns what has been answered so far.
func (b *Backend) Calls() []Call {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]Call(nil), b.calls...)
}

// State returns who holds the lock, and how many wait. The token is 0 when it is free.
func (b *Backend) State(name string) (token lockservice.Token, waiting int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.lockLocked(name)
	if l.holder != nil {
		token = l.holder.Token
	}
	return token, len(l.queue)
}

// Until waits until ok, asked at every change and now and then, and reports whether it came to be so before ctx ended.
func (b *Backend) Until(ctx context.Context, ok func() bool) bool {
	for {
		b.mu.Lock()
		changed := b.changed
		b.mu.Unlock()
		if ok() {
			return true
		}
		lapse := time.NewTimer(10 * time.Millisecond)
		select {
		case <-changed:
		case <-lapse.C:
		case <-ctx.Done():
			return false
		}
		lapse.Stop()
	}
}

// Node is a peer that knows two others.
type Node struct {
	KeyErr  error
	ShutOut string // of [Node.Status]
}

// Info implements [api.Node].
func (Node) Info() api.Info {
	return api.Info{
		Peer: "12D3KooWfake", Node: "aa00", Overlay: "0badcafe", OverlayName: "fake", Addrs: []string{"/ip4/127.0.0.1/tcp/1/p2p/12D3KooWfake"},
		Version: "v0", Store: "57",
	}
}

// Peers implements [api.Node].
func (Node) Peers() []api.Peer {
	return []api.Peer{
		{Peer: "12D3KooWone", Node: "01", Addrs: []string{"/ip4/127.0.0.1/tcp/2"}, Connected: true},
		{Peer: "12D3KooWtwo", Node: "02"},
	}
}

// Status implements [api.Node].
func (n Node) Status(context.Context) (api.Status, error) {
	at := time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)
	return api.Status{
		Peer: "12D3KooWfake", Overlay: "0badcafe", OverlayName: "fake", Version: "v0", Started: at,
		Mode: "auto", Hosting: true, Reachability: "public", PeersConnected: 1, PeersKnown: 2, Groups: 4, GroupsLeaderless: 3,
		Bootstrap: []api.BootstrapPeer{
			{Peer: "12D3KooWone", Addrs: []string{"/ip4/127.0.0.1/tcp/2"}, Connected: true},
			{Peer: "12D3KooWtwo", Addrs: []string{}, Tried: at.Add(time.Minute), Error: "connection refused"},
		},
		Refused: []api.Refused{{Reason: "handshake", Count: 1 << 60}},
		Alarms: []api.Alarm{
			{Peer: "12D3KooWone", Store: "aa01", At: at.Add(time.Hour), Refused: true, Text: "one runs twice: stop it"},
			{Peer: "12D3KooWone", Other: "12D3KooWtwo", Store: "aa02", At: at, Text: "one and two have one store"},
		},
		Revision: "abcdef012345+dirty", AllowList: &api.AllowList{AdminKey: 1, Number: 1 << 60}, ShutOut: n.ShutOut,
		Down: []api.HostedGroup{{Prefix: "a3/8", Generation: 2, Role: "voter", Voters: []string{"12D3KooWfake"}, Leaderless: at}},
	}, nil
}

// HostedGroups implements [api.Node].
func (Node) HostedGroups(context.Context) ([]api.HostedGroup, error) {
	return []api.HostedGroup{
		{Prefix: "/0", View: 4, Role: "leader", Leader: "12D3KooWfake", Voters: []string{"12D3KooWfake"}, Lag: 1 << 60, Quiesced: true},
		{Prefix: "a3/8", Generation: 2, Role: "voter", Voters: []string{"12D3KooWfake", "12D3KooWone"}, Leaderless: time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC)},
		{Prefix: "a5/8", Role: "leader", Leader: "12D3KooWfake", Voters: []string{"12D3KooWfake"}, Unleased: true},
	}, nil
}

// GroupStanding implements [api.Node]. It knows lost, a3/8, of which it says that it has lost its majority, and live, a4/8. Of a5/8,
// which is lost too, and of b0/8 the root does not answer; of a6/8, which is lost, it stops answering then.
func (Node) GroupStanding(_ context.Context, of string) (api.GroupStanding, error) {
	g := api.GroupStanding{
		Prefix: "a3/8", Generation: 2, View: 7, State: api.GroupDown, Voters: 3, Answering: 1, Former: 1, Directory: true,
		Members: []api.GroupMember{
			{Peer: "12D3KooWfake", Role: "voter", State: api.MemberAnswers, View: 7},
			{Peer: "12D3KooWone", Role: "voter", State: api.MemberSilent},
			{Peer: "12D3KooWtwo", Role: "voter", State: api.MemberWithout},
		},
	}
	switch of {
	case "a3/8":
		return g, nil
	case "a5/8":
		g.Prefix, g.Directory = of, false
		return g, nil
	case "a6/8":
		g.Prefix = of
		return g, nil
	case "b0/8":
		return api.GroupStanding{}, fmt.Errorf("%w: the root does not answer, and this peer knows no group of prefix %s", lockservice.ErrNoQuorum, of)
	case "a4/8":
		g.Prefix, g.State, g.Answering = of, api.GroupServing, 2
		g.Members[1] = api.GroupMember{Peer: "12D3KooWone", Role: "leader", State: api.MemberAnswers, View: 7}
		return g, nil
	case "root":
		g.Prefix = "/0"
		return g, nil
	}
	return api.GroupStanding{}, fmt.Errorf("%w: prefix %s has no group yet", api.ErrNoGroup, of)
}

// ReviveGroup implements [api.Node].
func (Node) ReviveGroup(ctx context.Context, prefix string, gen uint64, force bool) (api.Revived, error) {
	switch {
	case prefix == "a6/8":
		<-ctx.Done()
		return api.Revived{}, fmt.Errorf("%w: the root, which alone can revive a group: %w", lockservice.ErrNoQuorum, context.Cause(ctx))
	case prefix == "a4/8" && !force:
		return api.Revived{}, fmt.Errorf("%w: of its voters answer: 12D3KooWfake, 12D3KooWone", api.ErrAlive)
	case prefix == "a3/8" || prefix == "a4/8":
		return api.Revived{Prefix: prefix, Generation: gen + 1, Members: []string{"12D3KooWfake"}, Embargo: 61 * time.Second, EmbargoMS: 61000}, nil
	}
	return api.Revived{}, fmt.Errorf("%w: %q", api.ErrPrefix, prefix)
}

// OwnGroup implements [api.Node]. The lock "own" has a group of its own, and "crowded" cannot get one.
func (Node) OwnGroup(_ context.Context, name string, remove bool) (api.Served, error) {
	switch {
	case name == "crowded":
		return api.Served{}, fmt.Errorf("%w: lock %q: too many own groups", api.ErrOwn, name)
	case remove && name != "own":
		return api.Served{}, fmt.Errorf("%w: lock %q has no group of its own", api.ErrOwn, name)
	case remove:
		return api.Served{Name: name, Prefix: "a3/8", Generation: 0, Members: []string{"12D3KooWfake", "12D3KooWone"}}, nil
	case name == "own":
		return api.Served{}, fmt.Errorf("%w: lock %q has a group of its own already", api.ErrOwn, name)
	}
	return api.Served{Name: name, Prefix: "a3ff/256", Generation: 1, Members: []string{"12D3KooWfake"}}, nil
}

// Connect implements [api.Node]. It knows the peers of Peers.
func (n Node) Connect(_ context.Context, to string) (api.Connection, error) {
	for _, p := range n.Peers() {
		if strings.HasSuffix(to, p.Peer) {
			return api.Connection{Peer: p.Peer, Addr: "/ip4/127.0.0.1/tcp/2", Already: p.Connected}, nil
		}
	}
	if strings.HasSuffix(to, "12D3KooWaway") {
		return api.Connection{}, fmt.Errorf("%w: nobody answers at %s", api.ErrConnect, to)
	}
	return api.Connection{}, fmt.Errorf("%w: %q", api.ErrPeer, to)
}

// Disconnect implements [api.Node].
func (n Node) Disconnect(_ context.Context, who string) (int, error) {
	for _, p := range n.Peers() {
		if who == p.Peer && p.Connected {
			return 2, nil
		}
	}
	return 0, fmt.Errorf("%w: %q", api.ErrPeer, who)
}

// Ping implements [api.Node].
func (n Node) Ping(ctx context.Context, who string) (api.Pong, error) {
	c, err := n.Connect(ctx, who)
	if err != nil {
		return api.Pong{}, err
	}
	return api.Pong{Peer: c.Peer, Addr: c.Addr, RoundTrip: 1500 * time.Microsecond, RoundTripUS: 1500}, nil
}

// Graves implements [api.Node].
func (Node) Graves(context.Context) (api.Graveyard, error) {
	return api.Graveyard{Most: 256, Graves: []api.Grave{
		{Prefix: "/0", Generation: 1 << 32, Replica: 1, Bytes: 1 << 60},
		{Prefix: "a3/8", Generation: 1, Replica: 1 << 60, Buried: time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC), Bytes: 2048},
	}}, nil
}

// DeleteGrave implements [api.Node]. It knows those of Graves.
func (n Node) DeleteGrave(ctx context.Context, prefix string, gen uint64) ([]api.Grave, error) {
	y, _ := n.Graves(ctx)
	for _, g := range y.Graves {
		if g.Prefix == prefix && g.Generation == gen {
			return []api.Grave{g}, nil
		}
	}
	return nil, fmt.Errorf("%w: nothing of generation %d of %s was put aside here", api.ErrNoGroup, gen, prefix)
}

// ProposeRoot implements [api.Node].
func (Node) ProposeRoot(context.Context) (api.RootProposal, error) {
	return api.RootProposal{Document: []byte("proposal"), Generation: 3, Volatile: true, Survivor: "12D3KooWsurvivor", Groups: 4}, nil
}

// Reseed implements [api.Node].
func (Node) Reseed(_ context.Context, doc []byte, force bool) (api.Reseeded, error) {
	if string(doc) != "signed" || !force {
		return api.Reseeded{}, fmt.Errorf("%w: %q", api.ErrReseed, doc)
	}
	return api.Reseeded{Generation: 3, Founder: "12D3KooWfake", Quarantine: 2 * time.Minute, QuarantineMS: 120000}, nil
}

// Key implements [api.Node].
func (n Node) Key(_ context.Context, name string) (api.KeyInfo, error) {
	if n.KeyErr != nil {
		return api.KeyInfo{}, n.KeyErr
	}
	return api.KeyInfo{
		Name: name, Hash: "ff", Closest: []string{"12D3KooWone", "12D3KooWtwo"},
		Group: &api.GroupInfo{ID: "f0/8", Generation: 1 << 60, View: 2, Leader: "12D3KooWone", Members: []string{"12D3KooWone", "12D3KooWtwo"}},
	}, nil
}
