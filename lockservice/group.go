package lockservice

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/lockservice/pb"
	"latchkey/lockservice/table"
	"latchkey/replicagroup"
	"latchkey/replicagroup/order"
)

// Groups is what the group backend needs of a client of replica groups; *replicagroup.Client is one. A Groups is one
// session with each group. Its errors are those of package replicagroup, or the cause of ctx.
type Groups interface {
	// Do has a command executed once, in order, by the group that owns key.
	Do(ctx context.Context, key keyspace.Key, service string, data []byte) ([]byte, error)
	// Query reads the group's state linearizably.
	Query(ctx context.Context, key keyspace.Key, service string, data []byte) ([]byte, error)
	// Notify has fn called with what the service pushes to this client. fn must not block. Pushes may be lost.
	Notify(service string, fn func(group order.GroupID, data []byte))
}

// GroupConfig configures [NewGroupBackend].
type GroupConfig struct {
	Limits Limits // of the overlay: [LimitsOf]
	// PeerName turns a node into what people know it by, its peer id. When it is nil or does not know, the node id is used.
	PeerName func(keyspace.NodeID) (string, bool)
	// Prefixes lists the prefixes of the overlay that have groups, for [Lister]. nil: locks cannot be listed.
	Prefixes func(context.Context) ([]keyspace.Prefix, error)
	Meter    *Meter // nil: nobody counts
}

// Limits and periods of the group backend.
const (
	// pollMin and pollMax bound the period of [pollEvery].
	pollMin = 200 * time.Millisecond
	pollMax = 5 * time.Second
	// tryPoll is the first pause of a try that waits because the name's mode changes. Each next one is twice as long.
	tryPoll = 20 * time.Millisecond
	// leavingMax bounds the requests of one backend that are being taken back in the background. One more is not taken back:
	// it keeps its place until its session ends, and a grant made to it costs the others one TTL.
	leavingMax = 256
	// breakAgainMin and breakAgainMax are how soon a break is asked for again while the table takes a name over, at first and at last.
	breakAgainMin = 10 * time.Millisecond
	breakAgainMax = 500 * time.Millisecond
	// leaveTimeout bounds the taking back of one request; past it the same holds.
	leaveTimeout = 15 * time.Second
)

// pollEvery is how long a waiter listens for a pushed grant before it asks: a fifth of the TTL, so that a grant whose push
// was lost is found while most of its lease is left, within pollMin and pollMax, so that a long queue does not keep the group
// busy.
func pollEvery(ttl time.Duration) time.Duration { return min(max(ttl/5, pollMin), pollMax) }

// groupBackend takes locks by commands of the group that owns the name's key (lock-protocols.md section 3.1).
type groupBackend struct {
	groups Groups
	cfg    GroupConfig
	life   context.Context // ends with Close
	end    context.CancelFunc

	mu      sync.Mutex
	lastReq uint64
	waiting map[uint64]ear // by request
	leaving int            // requests being taken back, at most leavingMax
	named   struct {       // what holder said last
		party party
		name  string
	}
	idle     chan struct{}  // set by Close: closed when nothing is being taken back any more
	releases sync.WaitGroup // the goroutines that do so
}

// NewGroupBackend returns the backend of protocol group: locks are commands of the log of the group that owns the name's
// key. It takes over g's notifications for [ServiceName]. It is an [io.Closer]: Close waits until the requests of callers that
// gave up have been taken back, 5 s at most, and closes g if that is an io.Closer too.
func NewGroupBackend(g Groups, cfg GroupConfig) Backend { return newGroupBackend(g, cfg) }

func newGroupBackend(g Groups, cfg GroupConfig) *groupBackend {
	b := &groupBackend{
		groups: g, cfg: cfg,
		waiting: make(map[uint64]ear),
	}
	b.life, b.end = context.WithCancel(context.Background())
	g.Notify(ServiceName, func(_ order.GroupID, data []byte) { b.pushed(data) })
	return b
}

// ear hears of the grant that was pushed for a request, and of its end. It must not block.
type ear interface {
	granted(token Token)
	ended()
}

// tokenEar keeps the first that it hears of.
type tokenEar chan Token

func (e tokenEar) granted(t Token) {
	select {
	case e <- t:
	default:
	}
}

func (e tokenEar) ended() {} // its Renew will find it out

// enter gives a new request its number, and has e hear of pushed grants until exit.
func (b *groupBackend) enter(e ear) (req uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lastReq++
	b.waiting[b.lastReq] = e
	return b.lastReq
}

func (b *groupBackend) exit(req uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.waiting, req)
}

// pushed wakes the waiter or the holder that an output names. What is pushed is only a hint: the waiter holds once a Renew has confirmed
// the grant, and the holder does not once a Renew has found that it is over.
func (b *groupBackend) pushed(data []byte) {
	granted, ended, err := decodeOutput(data)
	if err != nil {
		log.Debugw("dropped a malformed output", "err", err)
		return
	}
	req := granted.GetReq()
	if ended != nil {
		req = ended.Req
	}
	b.mu.Lock()
	e := b.waiting[req]
	b.mu.Unlock()
	switch {
	case e == nil:
	case ended != nil:
		e.ended()
	default:
		e.granted(Token(granted.Token))
	}
}

// Ended implements [Ender]: the group pushes the end of a hold that is broken.
func (b *groupBackend) Ended(ctx context.Context, g Grant) error {
	ear := make(endEar, 1)
	b.mu.Lock()
	b.waiting[g.Req] = ear
	b.mu.Unlock()
	defer b.exit(g.Req)
	select {
	case <-ear:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-b.life.Done():
		return ErrClosed
	}
}

// endEar hears of the end of a grant.
type endEar chan struct{}

func (e endEar) granted(Token) {}

func (e endEar) ended() {
	select {
	case e <- struct{}{}:
	default:
	}
}

// errGone tells Acquire that a request that was queued is in the table no more: its session has ended, or it was granted and
// the grant has lapsed before anybody here heard of it.
var errGone = errors.New("lockservice: the request is gone")

func (b *groupBackend) Acquire(ctx context.Context, r Request) (Grant, error) {
	return b.cfg.Meter.acquire(ctx, b, r, b.acquire)
}

func (b *groupBackend) acquire(ctx context.Context, r Request) (Grant, error) {
	if err := errors.Join(CheckName(r.Name), b.cfg.Limits.CheckTTL(r.TTL), checkShape(r)); err != nil {
		return Grant{}, err
	}
	if r.Protocol == ProtocolSigma {
		return Grant{}, fmt.Errorf("%w: this overlay was founded without protocol sigma; use auto or group", ErrShape)
	}
	for {
		if g, err := b.acquireOnce(ctx, r); !errors.Is(err, errGone) {
			return g, err
		}
	}
}

// acquireOnce makes one request and follows it to its end.
func (b *groupBackend) acquireOnce(ctx context.Context, r Request) (Grant, error) {
	granted := make(tokenEar, 1)
	req := b.enter(granted)
	defer b.exit(req)
	res, err := b.do(ctx, r.Name, encodeAcquire(table.Acquire{
		Name: r.Name, Req: req, TTL: r.TTL, Try: r.Try, Shared: r.Shared, Permits: r.Permits, Delay: r.Delay, Value: r.Value,
	}))
	if errors.Is(err, ErrOutcomeUnknown) {
		b.leave(r.Name, req)
		if !r.Try && ctx.Err() == nil && errors.Is(err, replicagroup.ErrOutcomeUnknown) {
			return Grant{}, errGone // its session was lost, as after a partition; who waits goes on in the next one
		}
	}
	if err != nil {
		return Grant{}, err
	}
	g := Grant{Name: r.Name, Token: res.token, TTL: r.TTL, Req: req, Holder: b.holder(res.holder)}
	switch res.status {
	case pb.Status_STATUS_GRANTED:
		g.Waited = res.waited
		return g, nil
	case pb.Status_STATUS_LOCKED:
		return Grant{}, &LockedError{Name: r.Name, Holder: b.party(res.holder), Waiting: int(res.position)}
	case pb.Status_STATUS_QUEUED:
		g.Waited = true
		if g.Token, err = b.wait(ctx, r, req, granted, int(res.position)); err == nil {
			return g, nil
		}
		if !errors.Is(err, errGone) {
			b.leave(r.Name, req)
		}
		return Grant{}, err
	}
	return Grant{}, unexpected("acquire", res.status)
}

// wait follows a queued request until it is granted.
func (b *groupBackend) wait(ctx context.Context, r Request, req uint64, granted <-chan Token, position int) (Token, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil) // ends a poll that is under way
	type answer struct {
		res groupResult
		err error
	}
	polled := make(chan answer, 1)
	pause := pollEvery(r.TTL)
	if r.Try { // it waits until the table knows who may have the name, no longer
		pause = tryPoll
	}
	poll := time.NewTimer(pause)
	defer poll.Stop()
	for {
		if r.Queued != nil && position > 0 {
			r.Queued(position)
			position = 0
		}
		select {
		case token := <-granted:
			return token, nil
		case <-ctx.Done():
			return 0, fmt.Errorf("lockservice: wait for %q: %w", r.Name, context.Cause(ctx))
		case <-poll.C:
			go func() {
				res, err := b.do(ctx, r.Name, encodeRenew(table.Renew{Name: r.Name, Req: req, TTL: r.TTL}))
				polled <- answer{res, err}
			}()
			continue
		case a := <-polled:
			pause = min(2*pause, pollEvery(r.TTL))
			poll.Reset(pause)
			if a.err != nil {
				if errors.Is(a.err, ErrNoQuorum) || errors.Is(a.err, ErrOutcomeUnknown) || errors.Is(a.err, replicagroup.ErrBusy) {
					continue // the place in the queue lives in the group's log, and group and session will have time again
				}
				return 0, a.err
			}
			switch a.res.status {
			case pb.Status_STATUS_HELD:
				return a.res.token, nil
			case pb.Status_STATUS_QUEUED:
				position = int(a.res.position)
			case pb.Status_STATUS_NOT_HELD:
				return 0, errGone
			default:
				return 0, unexpected("wait", a.res.status)
			}
		}
	}
}

// leave takes a request back in the background, whatever has become of it.
func (b *groupBackend) leave(name string, req uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.leavesLocked(name) {
		return
	}
	b.releases.Go(func() {
		ctx, cancel := context.WithTimeout(b.life, leaveTimeout)
		defer cancel()
		if err := b.release(ctx, name, req, 0); err != nil && !errors.Is(err, ErrNotHeld) {
			log.Debugw("could not take a request back: it is left to its session and lease", "lock", name, "err", err)
		}
		b.left()
	})
}

// leavesLocked counts in a request that is taken back, which Close then waits for until left is called. It answers false when it cannot.
func (b *groupBackend) leavesLocked(name string) bool {
	if b.leaving >= leavingMax || b.idle != nil {
		log.Warnw("a request is not taken back: it is left to its session and lease", "lock", name, "leaving", b.leaving)
		return false
	}
	b.leaving++
	return true
}

func (b *groupBackend) left() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.leaving--; b.leaving == 0 && b.idle != nil {
		close(b.idle)
	}
}

// Close ends the backend. It is idempotent.
func (b *groupBackend) Close() error {
	b.mu.Lock()
	if b.idle == nil {
		b.idle = make(chan struct{})
		if b.leaving == 0 {
			close(b.idle)
		}
	}
	idle := b.idle
	b.mu.Unlock()
	timeout := time.NewTimer(closeTimeout)
	defer timeout.Stop()
	select {
	case <-idle:
	case <-timeout.C:
	}
	b.end()
	b.releases.Wait()
	if c, ok := b.groups.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

func (b *groupBackend) Renew(ctx context.Context, g Grant) error {
	return b.cfg.Meter.renewed(b, g, b.renew(ctx, g))
}

func (b *groupBackend) renew(ctx context.Context, g Grant) error {
	res, err := b.do(ctx, g.Name, encodeRenew(table.Renew{Name: g.Name, Req: g.Req, Token: table.Token(g.Token), TTL: g.TTL}))
	if err != nil {
		return err
	}
	switch res.status {
	case pb.Status_STATUS_HELD:
		return nil
	case pb.Status_STATUS_NOT_HELD:
		return ErrNotHeld
	}
	return unexpected("renew", res.status)
}

func (b *groupBackend) Release(ctx context.Context, g Grant) error {
	return b.cfg.Meter.released(b, g, b.release(ctx, g.Name, g.Req, g.Token))
}

// release ends a grant, or, with token 0, gives up whatever the request has.
func (b *groupBackend) release(ctx context.Context, name string, req uint64, token Token) error {
	res, err := b.do(ctx, name, encodeRelease(table.Release{Name: name, Req: req, Token: table.Token(token)}))
	if err != nil {
		return err
	}
	switch res.status {
	case pb.Status_STATUS_RELEASED:
		return nil
	case pb.Status_STATUS_NOT_HELD:
		return ErrNotHeld
	}
	return unexpected("release", res.status)
}

// Break is a command of the log like the others, so that what is broken is what has been seen, and by whom is on record.
func (b *groupBackend) Break(ctx context.Context, name string, token Token) (Party, error) {
	if err := CheckName(name); err != nil {
		return Party{}, err
	}
	command := encodeBreak(table.Break{Name: name, Token: table.Token(token), At: time.Now().UnixNano()})
	for pause := breakAgainMin; ; pause = min(2*pause, breakAgainMax) {
		res, err := b.do(ctx, name, command)
		if err != nil {
			return Party{}, err
		}
		switch res.status {
		case pb.Status_STATUS_BROKEN:
			return b.party(res.holder), nil
		case pb.Status_STATUS_NOT_HELD:
			return Party{}, ErrNotHeld
		case pb.Status_STATUS_QUEUED: // voters have the name: the table takes it over first
		default:
			return Party{}, unexpected("break", res.status)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return Party{}, fmt.Errorf("%w: break %q: its voters have not told who holds it: %w", ErrOutcomeUnknown, name, context.Cause(ctx))
		}
	}
}

func (b *groupBackend) Info(ctx context.Context, name string) (Info, error) {
	if err := CheckName(name); err != nil {
		return Info{}, err
	}
	m, err := b.query(ctx, name)
	if err != nil {
		return Info{}, err
	}
	return b.infoOf(name, m), nil
}

// infoOf puts what a table answers into this package's words.
func (b *groupBackend) infoOf(name string, m *pb.Info) Info {
	info := Info{
		Name: name, Held: m.Status == pb.Status_STATUS_HELD, Token: Token(m.Token),
		TTL: time.Duration(m.TtlNs), LeaseLeft: time.Duration(m.LeaseLeftNs), Confirmed: m.Confirmed, Waiting: int(m.Waiting),
	}
	info.Value, info.Permits, info.Shared = m.Value, permitsOf(m.Permits), m.Shared
	info.Holding, info.DelayLeft = int(m.Holding), time.Duration(m.DelayLeftNs)
	if info.Held {
		info.Holder = b.partyFromPB(m.Holder)
	}
	for _, h := range m.Holders {
		info.Holders = append(info.Holders, Holder{
			Party: b.partyFromPB(h.Party), Token: Token(h.Token), TTL: time.Duration(h.TtlNs), LeaseLeft: time.Duration(h.LeaseLeftNs), Confirmed: h.Confirmed,
		})
	}
	info.Protocol, info.TakenOver = ProtocolGroup, m.Mode == pb.Mode_MODE_PENDING
	if m.Mode == pb.Mode_MODE_SIGMA {
		info.Protocol = ProtocolSigma
	}
	b.mayHold(&info, m.Candidates)
	for _, w := range m.Waiters {
		info.Waiters = append(info.Waiters, Waiter{
			Party: b.partyFromPB(w.Party), TTL: time.Duration(w.TtlNs), WaitingFor: time.Duration(w.WaitingForNs), Shared: w.Shared,
		})
	}
	for _, x := range m.Breaks {
		info.Breaks = append(info.Breaks, BrokenLock{
			Token: Token(x.Token), Holder: b.partyFromPB(x.Holder), Holders: int(x.Holders), By: b.partyFromPB(x.By), At: time.Unix(0, x.AtUnixNs),
		})
	}
	return info
}

// mayHold tells of those who may hold a lock by grants of the voters that the table has taken it over from. There is more than one of them
// only until all but one have said that they do not.
func (b *groupBackend) mayHold(info *Info, candidates []*pb.Candidate) {
	for _, c := range candidates {
		var p party
		if copy(p.client[:], c.GetWish().GetSession()) != len(p.client) || copy(p.peer[:], c.Peer) != len(p.peer) {
			continue
		}
		h := Holder{Party: b.party(p), Token: Token(c.Token), LeaseLeft: time.Duration(c.LeftNs)}
		if !info.Held {
			info.Held, info.Holder, info.Token, info.LeaseLeft = true, h.Party, h.Token, h.LeaseLeft
		}
		info.Holding++
		info.Holders = append(info.Holders, h)
	}
}

// query asks what the group's table knows of a name.
func (b *groupBackend) query(ctx context.Context, name string) (*pb.Info, error) {
	data, err := marshal(&pb.Query{Name: name})
	if err != nil {
		return nil, err
	}
	data, err = b.groups.Query(ctx, keyspace.Preimage(name).Key(), ServiceName, data)
	if err != nil {
		return nil, groupError(ctx, err)
	}
	m, err := decodeInfo(data)
	if err != nil {
		return nil, err
	}
	return m, refusal(m.Status, m.Detail)
}

func (b *groupBackend) Limits(context.Context) (Limits, error) { return b.cfg.Limits, nil }

// do has one command executed. Refusals come back as errors.
func (b *groupBackend) do(ctx context.Context, name string, command []byte) (groupResult, error) {
	data, err := b.groups.Do(ctx, keyspace.Preimage(name).Key(), ServiceName, command)
	if err != nil {
		return groupResult{}, groupError(ctx, err)
	}
	res, err := decodeResult(data)
	if err != nil {
		return res, err
	}
	return res, refusal(res.status, res.detail)
}

// holder names for people who has been granted a lock. That is this backend's own session with the group every time, so the
// last answer is kept.
func (b *groupBackend) holder(p party) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if k := &b.named; k.name == "" || k.party != p {
		k.party, k.name = p, b.party(p).String()
	}
	return b.named.name
}

func (b *groupBackend) partyFromPB(m *pb.Party) Party {
	var p party
	if decodeParty(m, &p.client, &p.peer) != nil {
		return Party{}
	}
	return b.party(p)
}

// party names a client for people.
func (b *groupBackend) party(p party) Party {
	if p == (party{}) {
		return Party{}
	}
	out := Party{Session: hex.EncodeToString(p.client[:])}
	if b.cfg.PeerName != nil {
		if name, ok := b.cfg.PeerName(p.peer); ok {
			out.Peer = name
			return out
		}
	}
	out.Peer = hex.EncodeToString(p.peer[:])
	return out
}

// groupError says in this package's words what a client of groups reported. The text of the original stays.
func groupError(ctx context.Context, err error) error {
	var kind error
	switch {
	case errors.Is(err, replicagroup.ErrOutcomeUnknown):
		kind = ErrOutcomeUnknown
	case errors.Is(err, replicagroup.ErrNoQuorum):
		kind = ErrNoQuorum
	case errors.Is(err, replicagroup.ErrClosed):
		kind = ErrClosed
	case errors.Is(err, replicagroup.ErrBusy), errors.Is(err, replicagroup.ErrTooLarge), errors.Is(err, replicagroup.ErrRefused):
		kind = ErrLimit
	}
	if kind == nil {
		if ctx.Err() == nil {
			return fmt.Errorf("lockservice: %w", err)
		}
		kind = ErrOutcomeUnknown // it does not say, so it may have been sent
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w: %w", kind, cause, err)
	}
	return fmt.Errorf("%w: %w", kind, err)
}

// unexpected is an answer that does not fit its question: a replica of another version.
func unexpected(question string, s pb.Status) error {
	return fmt.Errorf("%w: the group answered %v to %s; do its peers run another version?", ErrOutcomeUnknown, s, question)
}
