package api

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"latchkey/coherence"
	"latchkey/coherence/access"
	"latchkey/coherence/protocol"
	"latchkey/lockservice"
	latchkeyv1 "latchkey/node/api/latchkey/v1"
)

// ErrTag matches the error about a header If-Match or If-None-Match that is no condition of a write.
var ErrTag = errors.New("api: bad ETag")

// Durables reads and writes durable objects: for clients of a server, through the daemon it is of. Errors: those of package coherence.
type Durables interface {
	GetDurable(ctx context.Context, app, name string) (coherence.Value, error)
	// StaleDurable tells what the peer saw last of an object, if it saw anything, and how long ago that was the present value for sure.
	StaleDurable(ctx context.Context, app, name string) (v coherence.Value, age time.Duration, ok bool, err error)
	SetDurable(ctx context.Context, app, name string, w DurableWrite) (coherence.Version, error)
	// RemoveDurable deletes an object, if it has a version where one is given, and tells whether it was there.
	RemoveDurable(ctx context.Context, app, name string, version *coherence.Version) (existed bool, err error)
	// HoldDurable waits for the turn to write.
	HoldDurable(ctx context.Context, app, name string) (DurableHold, error)
	WatchDurable(ctx context.Context, app, name string, after coherence.Version, fn func(coherence.Change) error) error
	// WatchDirectory tells what is in a directory, all of it each time; an empty name is that of the objects whose names have no slash.
	WatchDirectory(ctx context.Context, app, directory string, after coherence.Version, fn func(list coherence.Listing, lagged bool) error) error
	// ListDurable lists names of a directory that come after one, the first limit of them; 0 is as many as an answer holds.
	ListDurable(ctx context.Context, app, directory, after string, limit int) (coherence.Listing, error)
	Durable(ctx context.Context, app, name string) (DurableInfo, error)
}

// DurableWrite is what to write, and on which condition.
type DurableWrite struct {
	Value  []byte
	If     *coherence.Version // only if the object has this one; 0 is one that was never written
	Absent bool               // only if it does not exist
	TTL    time.Duration      // for how long it is kept when it is not written; 0 is for ever
}

// DurableHold is the turn to write an object. It is to be released.
type DurableHold interface {
	Value() coherence.Value
	// Commit writes and ends the turn. With a ttl above 0 the object is deleted when it was not written for so long.
	Commit(ctx context.Context, value []byte, ttl time.Duration) (coherence.Version, error)
	Release()
}

// DurableInfo tells how a durable object is kept.
type DurableInfo struct {
	Key     string            `json:"key"`
	Group   *GroupInfo        `json:"group"`
	Version coherence.Version `json:"version,string"`
	Exists  bool              `json:"exists"`
	Bytes   int               `json:"bytes"`
}

// durableHandler serves durable objects, whose calls count as those about objects.
type durableHandler struct{ s *Server }

func (h durableHandler) begin(ctx context.Context, kind *bounded) (context.Context, func(), error) {
	if h.s.cfg.Durables == nil {
		return nil, nil, fmt.Errorf("api: this peer has no durable objects: %w", errors.ErrUnsupported)
	}
	return h.s.beginObject(ctx, kind)
}

// tagOf writes a version as HTTP has it.
func tagOf(v coherence.Version) string { return `"` + strconv.FormatUint(uint64(v), 10) + `"` }

// sendTag has an answer say which version it is of.
func sendTag(ctx context.Context, v coherence.Version) {
	if call, ok := connect.CallInfoForHandlerContext(ctx); ok {
		call.ResponseHeader().Set("ETag", tagOf(v))
	}
}

// conditionOf reads the condition of a write: that of the request or, if it has none, that of its headers.
func conditionOf(ctx context.Context, c *latchkeyv1.DurableCondition) (version *coherence.Version, absent bool, err error) {
	if c != nil {
		if c.Version != nil && c.Absent {
			return nil, false, fmt.Errorf("%w: a write has one condition: a version, or that there is nothing", ErrTag)
		}
		return (*coherence.Version)(c.Version), c.Absent, nil
	}
	call, ok := connect.CallInfoForHandlerContext(ctx)
	if !ok {
		return nil, false, nil
	}
	match, none := call.RequestHeader().Values("If-Match"), call.RequestHeader().Values("If-None-Match")
	switch {
	case len(match)+len(none) == 0:
		return nil, false, nil
	case len(none) == 1 && len(match) == 0 && none[0] == "*":
		return nil, true, nil
	case len(match) == 1 && len(none) == 0:
		digits, begins := strings.CutPrefix(match[0], `"`)
		digits, ends := strings.CutSuffix(digits, `"`)
		if v, err := strconv.ParseUint(digits, 10, 64); err == nil && begins && ends && tagOf(coherence.Version(v)) == match[0] {
			return (*coherence.Version)(&v), false, nil
		}
	}
	return nil, false, fmt.Errorf(`%w: want one header, If-Match with a version in quotes, or If-None-Match: *`, ErrTag)
}

func (h durableHandler) Get(ctx context.Context, r *latchkeyv1.GetDurableRequest) (*latchkeyv1.DurableValue, error) {
	return served(h, ctx, func(ctx context.Context) (*latchkeyv1.DurableValue, error) {
		if r.Stale {
			v, age, ok, err := h.s.cfg.Durables.StaleDurable(ctx, r.App, r.Name)
			m := encodeDurable(v)
			if ok {
				m.Age = durationpb.New(age)
			}
			return m, err
		}
		v, err := h.s.cfg.Durables.GetDurable(ctx, r.App, r.Name)
		if err == nil {
			sendTag(ctx, v.Version)
		}
		return encodeDurable(v), err
	})
}

func encodeDurable(v coherence.Value) *latchkeyv1.DurableValue {
	return &latchkeyv1.DurableValue{Value: v.Bytes, Version: uint64(v.Version), Exists: v.Exists}
}

func (h durableHandler) Set(ctx context.Context, r *latchkeyv1.SetDurableRequest) (*latchkeyv1.SetDurableResponse, error) {
	return served(h, ctx, func(ctx context.Context) (*latchkeyv1.SetDurableResponse, error) {
		w := DurableWrite{Value: r.Value}
		var err error
		if w.If, w.Absent, err = conditionOf(ctx, r.Condition); err != nil {
			return nil, err
		}
		if w.TTL, err = ttlOf(r.Ttl); err != nil {
			return nil, err
		}
		v, err := h.s.cfg.Durables.SetDurable(ctx, r.App, r.Name, w)
		if err == nil {
			sendTag(ctx, v)
		}
		return &latchkeyv1.SetDurableResponse{Version: uint64(v)}, err
	})
}

func ttlOf(d *durationpb.Duration) (time.Duration, error) {
	if d != nil && (d.CheckValid() != nil || d.AsDuration() <= 0) {
		return 0, fmt.Errorf("%w: a ttl is more than nothing", coherence.ErrTTL)
	}
	return d.AsDuration(), nil
}

func (h durableHandler) Remove(ctx context.Context, r *latchkeyv1.RemoveDurableRequest) (*latchkeyv1.RemoveDurableResponse, error) {
	return served(h, ctx, func(ctx context.Context) (*latchkeyv1.RemoveDurableResponse, error) {
		version := (*coherence.Version)(r.Version)
		if version == nil {
			v, absent, err := conditionOf(ctx, nil)
			switch {
			case err != nil:
				return nil, err
			case absent:
				return nil, fmt.Errorf("%w: what is absent is not removed: give If-Match, or nothing", ErrTag)
			}
			version = v
		}
		existed, err := h.s.cfg.Durables.RemoveDurable(ctx, r.App, r.Name, version)
		return &latchkeyv1.RemoveDurableResponse{Existed: existed}, err
	})
}

func (h durableHandler) Watch(ctx context.Context, r *latchkeyv1.WatchDurableRequest, stream *connect.ServerStream[latchkeyv1.DurableValue]) error {
	ctx, end, err := h.begin(ctx, &h.s.objectWatches)
	if err != nil {
		return encodeError(err)
	}
	defer end()
	return encodeError(h.s.cfg.Durables.WatchDurable(ctx, r.App, r.Name, coherence.Version(r.After), func(c coherence.Change) error {
		m := encodeDurable(c.Value)
		m.Lagged = c.Lagged
		return stream.Send(m)
	}))
}

func (h durableHandler) WatchDirectory(ctx context.Context, r *latchkeyv1.WatchDirectoryRequest, stream *connect.ServerStream[latchkeyv1.DirectoryChange]) error {
	ctx, end, err := h.begin(ctx, &h.s.objectWatches)
	if err != nil {
		return encodeError(err)
	}
	defer end()
	var told []string
	return encodeError(h.s.cfg.Durables.WatchDirectory(ctx, r.App, r.Directory, coherence.Version(r.After), func(l coherence.Listing, lagged bool) error {
		added, removed := Changed(told, l.Names)
		told = l.Names
		for first := true; first || len(added)+len(removed) > 0; first = false {
			m := &latchkeyv1.DirectoryChange{Version: uint64(l.Version), Lagged: lagged}
			m.Added, added = page(added, listedBytesMax)
			if len(added) == 0 {
				m.Removed, removed = page(removed, listedBytesMax-lengths(m.Added))
			}
			m.More = len(added)+len(removed) > 0
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		return nil
	}))
}

// Changed compares two rising lists of names: which the second has and the first has not, and the other way about.
func Changed(was, now []string) (added, removed []string) {
	for len(was) > 0 || len(now) > 0 {
		switch {
		case len(was) == 0 || len(now) > 0 && now[0] < was[0]:
			added, now = append(added, now[0]), now[1:]
		case len(now) == 0 || was[0] < now[0]:
			removed, was = append(removed, was[0]), was[1:]
		default:
			was, now = was[1:], now[1:]
		}
	}
	return added, removed
}

// page cuts off as many names as so many bytes hold, one at least of those that an object may have.
func page(names []string, most int) (these, rest []string) {
	for i, name := range names {
		if most -= len(name); most < 0 {
			return names[:i], names[i:]
		}
	}
	return names, nil
}

func lengths(names []string) (n int) {
	for _, name := range names {
		n += len(name)
	}
	return n
}

func (h durableHandler) List(ctx context.Context, r *latchkeyv1.ListDurableRequest) (*latchkeyv1.ListDurableResponse, error) {
	return served(h, ctx, func(ctx context.Context) (*latchkeyv1.ListDurableResponse, error) {
		limit := ListedObjectsMax
		if r.Limit > 0 {
			limit = int(min(r.Limit, ListedObjectsMax))
		}
		all, err := h.s.cfg.Durables.ListDurable(ctx, r.App, r.Directory, r.After, limit)
		if err != nil {
			return nil, err
		}
		res := &latchkeyv1.ListDurableResponse{Version: uint64(all.Version), More: all.More}
		bytes := 0
		for _, name := range all.Names {
			if bytes += len(name); bytes > listedBytesMax {
				res.More = true
				break
			}
			res.Names = append(res.Names, name)
		}
		return res, nil
	})
}

func (h durableHandler) Info(ctx context.Context, r *latchkeyv1.DurableInfoRequest) (*latchkeyv1.DurableInfo, error) {
	return served(h, ctx, func(ctx context.Context) (*latchkeyv1.DurableInfo, error) {
		i, err := h.s.cfg.Durables.Durable(ctx, r.App, r.Name)
		if err != nil {
			return nil, err
		}
		res := &latchkeyv1.DurableInfo{Key: i.Key, Version: uint64(i.Version), Exists: i.Exists, Bytes: uint32(i.Bytes)}
		if g := i.Group; g != nil {
			res.Group = &latchkeyv1.Group{Id: g.ID, Generation: g.Generation, View: g.View, Leader: g.Leader, Members: g.Members}
		}
		return res, nil
	})
}

// heldDurable is a turn that a client has.
type heldDurable struct {
	mu   sync.Mutex // held during a commit, so that the turn does not end meanwhile
	hold DurableHold
	over bool
	done chan struct{} // closed when a commit was made
}

// end ends the turn, and reports whether it did.
func (e *heldDurable) end() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.over {
		return false
	}
	e.over = true
	e.hold.Release()
	return true
}

// Hold keeps the turn for as long as the client stays, and the time asked for lasts. Nothing is written but by Commit.
func (h durableHandler) Hold(ctx context.Context, r *latchkeyv1.HoldDurableRequest, stream *connect.ServerStream[latchkeyv1.HoldDurableResponse]) error {
	return encodeError(h.hold(ctx, r, stream.Send))
}

func (h durableHandler) hold(ctx context.Context, r *latchkeyv1.HoldDurableRequest, send func(*latchkeyv1.HoldDurableResponse) error) error {
	d := holdDefault
	if r.Hold != nil {
		if d = r.Hold.AsDuration(); r.Hold.CheckValid() != nil || d <= 0 || d > access.HoldMax {
			return fmt.Errorf("%w: an object is held for up to %v, and not for %v", lockservice.ErrShape, access.HoldMax, d)
		}
	}
	ctx, end, err := h.begin(ctx, &h.s.objectHolds)
	if err != nil {
		return err
	}
	defer end()
	hold, err := h.s.cfg.Durables.HoldDurable(ctx, r.App, r.Name)
	if err != nil {
		return err
	}
	e := &heldDurable{hold: hold, done: make(chan struct{})}
	defer e.end()
	timer := time.NewTimer(d)
	defer timer.Stop()
	id, v := rand.Text(), hold.Value()
	h.s.heldDurables.Store(id, e)
	defer h.s.heldDurables.Delete(id)
	if err := send(&latchkeyv1.HoldDurableResponse{Id: id, Value: v.Bytes, Version: uint64(v.Version), Exists: v.Exists, Left: durationpb.New(d)}); err != nil {
		return err
	}
	select {
	case <-e.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
	}
	if !e.end() { // a commit was faster
		return nil
	}
	return fmt.Errorf("%w: it was for %v; nothing was written", access.ErrHold, d)
}

func (h durableHandler) Commit(ctx context.Context, r *latchkeyv1.CommitDurableRequest) (*latchkeyv1.SetDurableResponse, error) {
	return served(h, ctx, func(ctx context.Context) (*latchkeyv1.SetDurableResponse, error) {
		held, ok := h.s.heldDurables.Load(r.Id)
		if !ok {
			return nil, fmt.Errorf("%w: it was held for long enough, or by another daemon; nothing was written", access.ErrHold)
		}
		e := held.(*heldDurable)
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.over {
			return nil, fmt.Errorf("%w: the turn is over; nothing was written", access.ErrHold)
		}
		ttl, err := ttlOf(r.Ttl)
		if err != nil {
			return nil, err
		}
		v, err := e.hold.Commit(ctx, r.Value, ttl)
		if errors.Is(err, coherence.ErrTooLarge) || errors.Is(err, coherence.ErrTTL) {
			return nil, err
		}
		e.over = true // by itself, whatever came of it
		close(e.done)
		if err != nil {
			return nil, err
		}
		sendTag(ctx, v)
		return &latchkeyv1.SetDurableResponse{Version: uint64(v)}, nil
	})
}

// The client's side.

var _ Durables = (*Client)(nil)

// durableError is an error about a lock's group that is one about an object's.
type durableError struct {
	error
	also error
}

func (e *durableError) Unwrap() []error { return []error{e.error, e.also} }

// durable decodes the error of a call about a durable object.
func (c *Client) durable(ctx context.Context, err error, unsure bool) error {
	err = decodeError(ctx, c.addr, err, unsure)
	for _, s := range []struct{ lock, object error }{
		{lockservice.ErrOutcomeUnknown, coherence.ErrOutcomeUnknown}, {lockservice.ErrNoQuorum, coherence.ErrNoQuorum}, {lockservice.ErrTTL, coherence.ErrTTL},
	} {
		if errors.Is(err, s.lock) {
			return &durableError{err, s.object}
		}
	}
	return err
}

func decodeDurable(m *latchkeyv1.DurableValue) coherence.Value {
	v := coherence.Value{Bytes: m.Value, Version: coherence.Version(m.Version), Exists: m.Exists}
	if v.Exists && v.Bytes == nil {
		v.Bytes = []byte{}
	}
	return v
}

// GetDurable implements [Durables].
func (c *Client) GetDurable(ctx context.Context, app, name string) (coherence.Value, error) {
	r, err := c.durables.Get(ctx, &latchkeyv1.GetDurableRequest{App: app, Name: name})
	if err != nil {
		return coherence.Value{}, c.durable(ctx, err, false)
	}
	return decodeDurable(r), nil
}

// StaleDurable implements [Durables].
func (c *Client) StaleDurable(ctx context.Context, app, name string) (coherence.Value, time.Duration, bool, error) {
	r, err := c.durables.Get(ctx, &latchkeyv1.GetDurableRequest{App: app, Name: name, Stale: true})
	if err != nil {
		return coherence.Value{}, 0, false, c.durable(ctx, err, false)
	}
	return decodeDurable(r), r.Age.AsDuration(), r.Age != nil, nil
}

// SetDurable implements [Durables].
func (c *Client) SetDurable(ctx context.Context, app, name string, w DurableWrite) (coherence.Version, error) {
	if len(w.Value) > protocol.ValueMax {
		return 0, tooLarge(w.Value)
	}
	req := &latchkeyv1.SetDurableRequest{App: app, Name: name, Value: w.Value}
	if w.If != nil || w.Absent {
		req.Condition = &latchkeyv1.DurableCondition{Version: (*uint64)(w.If), Absent: w.Absent}
	}
	if w.TTL != 0 {
		req.Ttl = durationpb.New(w.TTL)
	}
	r, err := c.durables.Set(ctx, req)
	if err != nil {
		return 0, c.durable(ctx, err, true)
	}
	return coherence.Version(r.Version), nil
}

// RemoveDurable implements [Durables].
func (c *Client) RemoveDurable(ctx context.Context, app, name string, version *coherence.Version) (bool, error) {
	r, err := c.durables.Remove(ctx, &latchkeyv1.RemoveDurableRequest{App: app, Name: name, Version: (*uint64)(version)})
	if err != nil {
		return false, c.durable(ctx, err, true)
	}
	return r.Existed, nil
}

// WatchDurable implements [Durables].
func (c *Client) WatchDurable(ctx context.Context, app, name string, after coherence.Version, fn func(coherence.Change) error) error {
	callCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.durables.Watch(callCtx, &latchkeyv1.WatchDurableRequest{App: app, Name: name, After: uint64(after)})
	if err != nil {
		return c.durable(ctx, err, false)
	}
	defer stream.Close()
	for stream.Receive() {
		if err := fn(coherence.Change{Value: decodeDurable(stream.Msg()), Lagged: stream.Msg().Lagged}); err != nil {
			return err
		}
	}
	if err := stream.Err(); err != nil {
		return c.durable(ctx, err, false)
	}
	return fmt.Errorf("api: the daemon at %s tells of no more values of %q", c.addr, name)
}

// WatchDirectory implements [Durables].
func (c *Client) WatchDirectory(ctx context.Context, app, directory string, after coherence.Version, fn func(coherence.Listing, bool) error) error {
	callCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.durables.WatchDirectory(callCtx, &latchkeyv1.WatchDirectoryRequest{App: app, Directory: directory, After: uint64(after)})
	if err != nil {
		return c.durable(ctx, err, false)
	}
	defer stream.Close()
	names := map[string]struct{}{}
	for stream.Receive() {
		m := stream.Msg()
		for _, name := range m.Removed {
			delete(names, name)
		}
		for _, name := range m.Added {
			names[name] = struct{}{}
		}
		if m.More {
			continue
		}
		if err := fn(coherence.Listing{Names: slices.Sorted(maps.Keys(names)), Version: coherence.Version(m.Version)}, m.Lagged); err != nil {
			return err
		}
	}
	if err := stream.Err(); err != nil {
		return c.durable(ctx, err, false)
	}
	return fmt.Errorf("api: the daemon at %s tells no more of directory %q", c.addr, directory)
}

// ListDurable implements [Durables].
func (c *Client) ListDurable(ctx context.Context, app, directory, after string, limit int) (coherence.Listing, error) {
	r, err := c.durables.List(ctx, &latchkeyv1.ListDurableRequest{App: app, Directory: directory, After: after, Limit: uint32(min(max(limit, 0), ListedObjectsMax))})
	if err != nil {
		return coherence.Listing{}, c.durable(ctx, err, false)
	}
	return coherence.Listing{Names: list(r.Names), More: r.More, Version: coherence.Version(r.Version)}, nil
}

// Durable implements [Durables].
func (c *Client) Durable(ctx context.Context, app, name string) (DurableInfo, error) {
	r, err := c.durables.Info(ctx, &latchkeyv1.DurableInfoRequest{App: app, Name: name})
	if err != nil {
		return DurableInfo{}, c.durable(ctx, err, false)
	}
	i := DurableInfo{Key: r.Key, Version: coherence.Version(r.Version), Exists: r.Exists, Bytes: int(r.Bytes)}
	if g := r.Group; g != nil {
		i.Group = &GroupInfo{ID: g.Id, Generation: g.Generation, View: g.View, Leader: g.Leader, Members: list(g.Members)}
	}
	return i, nil
}

// ClientTurn is the turn to write a durable object that a daemon keeps for a client. Value is what the object was when it came.
type ClientTurn struct {
	c      *Client
	id     string
	value  coherence.Value
	until  time.Time
	ended  chan struct{}
	err    error // why it ended; set before ended is closed
	cancel context.CancelFunc
}

var _ DurableHold = (*ClientTurn)(nil)

// HoldDurable implements [Durables]: the turn is for as long as the daemon gives who does not say.
func (c *Client) HoldDurable(ctx context.Context, app, name string) (DurableHold, error) {
	return c.HoldDurableFor(ctx, app, name, holdDefault)
}

// HoldDurableFor waits for the turn to write, which lasts for d at most. It ends with ctx, and when the daemon goes away.
func (c *Client) HoldDurableFor(ctx context.Context, app, name string, d time.Duration) (*ClientTurn, error) {
	callCtx, cancel := context.WithCancel(ctx)
	stream, err := c.durables.Hold(callCtx, &latchkeyv1.HoldDurableRequest{App: app, Name: name, Hold: durationpb.New(d)})
	if err == nil && !stream.Receive() {
		err = stream.Err()
		stream.Close()
		if err == nil {
			err = connect.NewError(connect.CodeInternal, errors.New("the daemon ended the call without a turn"))
		}
	}
	if err != nil {
		cancel()
		return nil, c.durable(ctx, err, false)
	}
	m := stream.Msg()
	v := decodeDurable(&latchkeyv1.DurableValue{Value: m.Value, Version: m.Version, Exists: m.Exists})
	h := &ClientTurn{c: c, id: m.Id, value: v, until: time.Now().Add(m.Left.AsDuration()), ended: make(chan struct{}), cancel: cancel}
	go func() {
		defer close(h.ended)
		defer stream.Close()
		for stream.Receive() {
		}
		if err := stream.Err(); err != nil {
			h.err = c.durable(ctx, err, false)
		}
	}()
	return h, nil
}

// Value implements [DurableHold].
func (h *ClientTurn) Value() coherence.Value { return h.value }

// Ended is closed when the turn is over.
func (h *ClientTurn) Ended() <-chan struct{} { return h.ended }

// Err returns why the turn has ended, once it has: nil after a Commit.
func (h *ClientTurn) Err() error {
	select {
	case <-h.ended:
		return h.err
	default:
		return nil
	}
}

// Until is when the turn ends at the latest, by this process's clock; the daemon's end counts.
func (h *ClientTurn) Until() time.Time { return h.until }

// Commit implements [DurableHold].
func (h *ClientTurn) Commit(ctx context.Context, value []byte, ttl time.Duration) (coherence.Version, error) {
	if len(value) > protocol.ValueMax {
		return 0, tooLarge(value)
	}
	req := &latchkeyv1.CommitDurableRequest{Id: h.id, Value: value}
	if ttl != 0 {
		req.Ttl = durationpb.New(ttl)
	}
	r, err := h.c.durables.Commit(ctx, req)
	if err != nil {
		return 0, h.c.durable(ctx, err, true)
	}
	return coherence.Version(r.Version), nil
}

// Release implements [DurableHold].
func (h *ClientTurn) Release() {
	h.cancel()
	<-h.ended
}
