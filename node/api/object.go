package api

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"latchkey/coherence/access"
	"latchkey/coherence/protocol"
	"latchkey/lockservice"
	latchkeyv1 "latchkey/node/api/latchkey/v1"
)

// Bounds of the calls about objects of one server. One more is refused with [lockservice.ErrLimit].
const (
	// ObjectBytesMax bounds a request or an answer with a value, which in JSON is a third longer.
	ObjectBytesMax = protocol.ValueMax/3*4 + 64<<10
	// ObjectCallsMax bounds the calls under way, waiting ones included.
	ObjectCallsMax = 1024
	// ObjectHoldsMax bounds the objects held through the daemon, or waited for.
	ObjectHoldsMax = 256
	// ObjectWatchesMax bounds the objects watched through it.
	ObjectWatchesMax = 256
	// ListedObjectsMax bounds the objects of one list.
	ListedObjectsMax = 4096
	// listedBytesMax bounds their names, so that the list fits into an answer.
	listedBytesMax = 512 << 10
	// holdDefault is for how long an object is held when the client does not say.
	holdDefault = 10 * time.Second
)

// ErrNoApp matches the error about an application that nobody has open.
var ErrNoApp = errors.New("api: nobody has the application open")

// Target is an object, in any execution of its application or, with an epoch, in that one.
type Target struct {
	App, Name string
	Epoch     uint64
}

// Objects reads and writes shared objects: for clients of a server, through the daemon it is of. Calls that only look do not found an application
// that nobody has open ([ErrNoApp]). Other errors: those of package coherence.
type Objects interface {
	// GetObject returns the value and the epoch it is of.
	GetObject(ctx context.Context, at Target) (value []byte, epoch uint64, err error)
	SetObject(ctx context.Context, at Target, value []byte) (epoch uint64, err error)
	// RemoveObject writes a value without bytes, and tells whether there was another.
	RemoveObject(ctx context.Context, at Target) (existed bool, epoch uint64, err error)
	// HoldObject waits until the object is kept from all others, for d at most.
	HoldObject(ctx context.Context, at Target, d time.Duration) (h ObjectHold, epoch uint64, err error)
	// WatchObject calls fn with the value, and again when it may be another one, until ctx ends or fn fails.
	WatchObject(ctx context.Context, at Target, fn func(value []byte, epoch uint64) error) error
	// ListObjects lists objects with a value, the first limit of them; 0 is as many as an answer holds.
	ListObjects(ctx context.Context, app, prefix string, limit int) (ObjectList, error)
	Object(ctx context.Context, at Target) (ObjectInfo, error)
	// Apps lists the applications that are open on the peer, by name.
	Apps(ctx context.Context) ([]AppInfo, error)
	App(ctx context.Context, name string) (AppInfo, error)
	CloseApp(ctx context.Context, name string) error
	// Checkpoint saves an application and returns the checkpoint's number.
	Checkpoint(ctx context.Context, name string) (uint64, error)
	// RestartApp has it begin anew, from its last checkpoint, and returns the new epoch.
	RestartApp(ctx context.Context, name string) (uint64, error)
}

// ObjectHold is an object that is kept from all others. It is to be released.
type ObjectHold interface {
	// Value is not to be changed.
	Value() []byte
	// Ended is closed when the object is held no longer.
	Ended() <-chan struct{}
	// Commit writes the value and ends the hold. Errors: [access.ErrHold] when it was over; nothing is written then.
	Commit(value []byte) error
	Release()
}

// ObjectList is what a list found.
type ObjectList struct {
	Objects []ListedObject `json:"objects"` // by rising name
	Epoch   uint64         `json:"epoch,string"`
	Unnamed int            `json:"unnamed"` // objects whose owners do not know what they are called
	Silent  []string       `json:"silent"`  // peers that have the application open and gave no answer
	More    bool           `json:"more"`
}

// ListedObject is an object with a value.
type ListedObject struct {
	Name  string `json:"name"`
	Bytes int    `json:"bytes"`
	Owner string `json:"owner"`
}

// ObjectInfo tells how an object is kept.
type ObjectInfo struct {
	Key     string     `json:"key"`
	Group   *GroupInfo `json:"group"`
	Epoch   uint64     `json:"epoch,string"`
	Touched bool       `json:"touched"`
	Manager string     `json:"manager"`
	Owner   string     `json:"owner"`
	Copies  int        `json:"copies"`
	Waiting int        `json:"waiting"`
	Here    string     `json:"here"`
	Bytes   int        `json:"bytes"`
}

// AppInfo tells of an application.
type AppInfo struct {
	App       string   `json:"app"`
	Open      bool     `json:"open"`
	Here      bool     `json:"here"`
	Epoch     uint64   `json:"epoch,string"`
	Threads   int      `json:"threads"`
	Peers     []string `json:"peers"`
	Copies    int      `json:"copies"`
	Restarted bool     `json:"restarted"`
	Saved     uint64   `json:"saved,string"`
	SavedObjs int      `json:"saved_objects"`
	State     string   `json:"state"`
	Anew      *AppAnew `json:"anew"` // nil: it has not begun anew, or nobody remembers
}

// AppAnew tells why an application began anew the last time.
type AppAnew struct {
	Epoch      uint64    `json:"epoch,string"` // of the execution that began
	Cause      string    `json:"cause"`        // silent, returned, needed, asked or blank
	Peer       string    `json:"peer"`         // that it is about, or its place in the key space where it is not known; may be empty
	Object     string    `json:"object"`       // the key of the object that it is about; may be empty
	Checkpoint uint64    `json:"checkpoint,string"`
	At         time.Time `json:"at,omitzero"`
}

// objectHandler serves objects. Every call is counted, and ends when the server drains.
type objectHandler struct{ s *Server }

// begin makes the context of a call. limit is of a kind of calls that are bounded by themselves; nil is none.
func (h objectHandler) begin(ctx context.Context, kind *bounded) (context.Context, func(), error) {
	if h.s.cfg.Objects == nil {
		return nil, nil, fmt.Errorf("api: this peer has no shared objects: %w", errors.ErrUnsupported)
	}
	return h.s.beginObject(ctx, kind)
}

// beginObject counts a call about an object, and has it end when the server drains.
func (s *Server) beginObject(ctx context.Context, kind *bounded) (context.Context, func(), error) {
	if !s.objectCalls.enter() {
		return nil, nil, fmt.Errorf("%w: %d calls about objects through this daemon", lockservice.ErrLimit, ObjectCallsMax)
	}
	if kind != nil && !kind.enter() {
		s.objectCalls.leave()
		return nil, nil, fmt.Errorf("%w: %d objects are held, or watched, through this daemon", lockservice.ErrLimit, kind.most)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.draining, func() { cancel(context.Cause(s.draining)) })
	return ctx, func() {
		stop()
		cancel(nil)
		if kind != nil {
			kind.leave()
		}
		s.objectCalls.leave()
	}, nil
}

func targetOf(t *latchkeyv1.Target) Target { return Target{t.GetApp(), t.GetName(), t.GetEpoch()} }

// served makes a call of it.
func served[R any](h interface {
	begin(context.Context, *bounded) (context.Context, func(), error)
}, ctx context.Context, do func(ctx context.Context) (R, error)) (r R, err error) {
	ctx, end, err := h.begin(ctx, nil)
	if err == nil {
		defer end()
		r, err = do(ctx)
	}
	return r, encodeError(err)
}

func (h objectHandler) Get(ctx context.Context, r *latchkeyv1.GetObjectRequest) (*latchkeyv1.ObjectValue, error) {
	return served(h, ctx, func(ctx context.Context) (*latchkeyv1.ObjectValue, error) {
		value, epoch, err := h.s.cfg.Objects.GetObject(ctx, targetOf(r.Target))
		return &latchkeyv1.ObjectValue{Value: value, Epoch: epoch}, err
	})
}

func (h objectHandler) Set(ctx context.Context, r *latchkeyv1.SetObjectRequest) (*latchkeyv1.SetObjectResponse, error) {
	return served(h, ctx, func(ctx context.Context) (*latchkeyv1.SetObjectResponse, error) {
		epoch, err := h.s.cfg.Objects.SetObject(ctx, targetOf(r.Target), r.Value)
		return &latchkeyv1.SetObjectResponse{Epoch: epoch}, err
	})
}

func (h objectHandler) Remove(ctx context.Context, r *latchkeyv1.RemoveObjectRequest) (*latchkeyv1.RemoveObjectResponse, error) {
	return served(h, ctx, func(ctx context.Context) (*latchkeyv1.RemoveObjectResponse, error) {
		existed, epoch, err := h.s.cfg.Objects.RemoveObject(ctx, targetOf(r.Target))
		return &latchkeyv1.RemoveObjectResponse{Existed: existed, Epoch: epoch}, err
	})
}

func (h objectHandler) Watch(ctx context.Context, r *latchkeyv1.WatchObjectRequest, stream *connect.ServerStream[latchkeyv1.ObjectValue]) error {
	ctx, end, err := h.begin(ctx, &h.s.objectWatches)
	if err != nil {
		return encodeError(err)
	}
	defer end()
	return encodeError(h.s.cfg.Objects.WatchObject(ctx, targetOf(r.Target), func(value []byte, epoch uint64) error {
		return stream.Send(&latchkeyv1.ObjectValue{Value: value, Epoch: epoch})
	}))
}

func (h objectHandler) List(ctx context.Context, r *latchkeyv1.ListObjectsRequest) (*latchkeyv1.ListObjectsResponse, error) {
	return served(h, ctx, func(ctx context.Context) (*latchkeyv1.ListObjectsResponse, error) {
		limit := ListedObjectsMax
		if r.Limit > 0 {
			limit = int(min(r.Limit, ListedObjectsMax))
		}
		all, err := h.s.cfg.Objects.ListObjects(ctx, r.App, r.Prefix, limit)
		if err != nil {
			return nil, err
		}
		res := &latchkeyv1.ListObjectsResponse{Unnamed: uint32(all.Unnamed), Silent: all.Silent, Epoch: all.Epoch, More: all.More}
		bytes := 0
		for _, o := range all.Objects {
			if bytes += len(o.Name) + len(o.Owner); bytes > listedBytesMax {
				res.More = true
				break
			}
			res.Objects = append(res.Objects, &latchkeyv1.ListedObject{Name: o.Name, Bytes: uint32(o.Bytes), Owner: o.Owner})
		}
		return res, nil
	})
}

func (h objectHandler) Object(ctx context.Context, r *latchkeyv1.ObjectRequest) (*latchkeyv1.ObjectResponse, error) {
	return served(h, ctx, func(ctx context.Context) (*latchkeyv1.ObjectResponse, error) {
		i, err := h.s.cfg.Objects.Object(ctx, targetOf(r.Target))
		if err != nil {
			return nil, err
		}
		res := &latchkeyv1.ObjectResponse{
			Key: i.Key, Epoch: i.Epoch, Touched: i.Touched, Manager: i.Manager, Owner: i.Owner, Copies: uint32(i.Copies), Waiting: uint32(i.Waiting),
			Here: i.Here, Bytes: uint32(i.Bytes),
		}
		if g := i.Group; g != nil {
			res.Group = &latchkeyv1.Group{Id: g.ID, Generation: g.Generation, View: g.View, Leader: g.Leader, Members: g.Members}
		}
		return res, nil
	})
}

func (h objectHandler) Apps(ctx context.Context, _ *latchkeyv1.AppsRequest) (*latchkeyv1.AppsResponse, error) {
	return served(h, ctx, func(ctx context.Context) (*latchkeyv1.AppsResponse, error) {
		all, err := h.s.cfg.Objects.Apps(ctx)
		res := &latchkeyv1.AppsResponse{}
		for _, a := range all {
			res.Apps = append(res.Apps, encodeApp(a))
		}
		return res, err
	})
}

func (h objectHandler) App(ctx context.Context, r *latchkeyv1.AppRequest) (*latchkeyv1.AppInfo, error) {
	return served(h, ctx, func(ctx context.Context) (*latchkeyv1.AppInfo, error) {
		a, err := h.s.cfg.Objects.App(ctx, r.App)
		return encodeApp(a), err
	})
}

func (h objectHandler) Close(ctx context.Context, r *latchkeyv1.CloseAppRequest) (*latchkeyv1.CloseAppResponse, error) {
	return served(h, ctx, func(ctx context.Context) (*latchkeyv1.CloseAppResponse, error) {
		return &latchkeyv1.CloseAppResponse{}, h.s.cfg.Objects.CloseApp(ctx, r.App)
	})
}

func (h objectHandler) Checkpoint(ctx context.Context, r *latchkeyv1.CheckpointRequest) (*latchkeyv1.CheckpointResponse, error) {
	return served(h, ctx, func(ctx context.Context) (*latchkeyv1.CheckpointResponse, error) {
		id, err := h.s.cfg.Objects.Checkpoint(ctx, r.App)
		return &latchkeyv1.CheckpointResponse{Checkpoint: id}, err
	})
}

func (h objectHandler) Restart(ctx context.Context, r *latchkeyv1.RestartRequest) (*latchkeyv1.RestartResponse, error) {
	return served(h, ctx, func(ctx context.Context) (*latchkeyv1.RestartResponse, error) {
		epoch, err := h.s.cfg.Objects.RestartApp(ctx, r.App)
		return &latchkeyv1.RestartResponse{Epoch: epoch}, err
	})
}

func encodeApp(a AppInfo) *latchkeyv1.AppInfo {
	var anew *latchkeyv1.AppAnew
	if n := a.Anew; n != nil {
		anew = &latchkeyv1.AppAnew{Epoch: n.Epoch, Cause: n.Cause, Peer: n.Peer, Object: n.Object, Checkpoint: n.Checkpoint, At: encodeTime(n.At)}
	}
	return &latchkeyv1.AppInfo{
		App: a.App, Open: a.Open, Here: a.Here, Epoch: a.Epoch, Threads: uint32(a.Threads), Peers: a.Peers, Copies: uint32(a.Copies), Restarted: a.Restarted,
		Saved: a.Saved, SavedObjects: uint32(a.SavedObjs), State: a.State, Anew: anew,
	}
}

func decodeApp(a *latchkeyv1.AppInfo) AppInfo {
	var anew *AppAnew
	if n := a.Anew; n != nil {
		anew = &AppAnew{Epoch: n.Epoch, Cause: n.Cause, Peer: n.Peer, Object: n.Object, Checkpoint: n.Checkpoint, At: decodeTime(n.At)}
	}
	return AppInfo{
		App: a.App, Open: a.Open, Here: a.Here, Epoch: a.Epoch, Threads: int(a.Threads), Peers: list(a.Peers), Copies: int(a.Copies), Restarted: a.Restarted,
		Saved: a.Saved, SavedObjs: int(a.SavedObjects), State: a.State, Anew: anew,
	}
}

// heldObject is an object that is held for a client.
type heldObject struct {
	ObjectHold
	epoch uint64

	mu        sync.Mutex
	committed bool
}

// Hold keeps the object for as long as the client stays. Who is gone has no use for it: nothing is written but by Commit.
func (h objectHandler) Hold(ctx context.Context, r *latchkeyv1.HoldObjectRequest, stream *connect.ServerStream[latchkeyv1.HoldObjectResponse]) error {
	return encodeError(h.hold(ctx, r, stream.Send))
}

func (h objectHandler) hold(ctx context.Context, r *latchkeyv1.HoldObjectRequest, send func(*latchkeyv1.HoldObjectResponse) error) error {
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
	held, epoch, err := h.s.cfg.Objects.HoldObject(ctx, targetOf(r.Target), d)
	if err != nil {
		return err
	}
	defer held.Release()
	over := time.Now().Add(d)
	id, e := rand.Text(), &heldObject{ObjectHold: held, epoch: epoch}
	h.s.heldObjects.Store(id, e)
	defer h.s.heldObjects.Delete(id)
	if err := send(&latchkeyv1.HoldObjectResponse{Id: id, Value: held.Value(), Epoch: epoch, Left: durationpb.New(time.Until(over))}); err != nil {
		return err
	}
	select {
	case <-held.Ended():
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.committed {
		return nil
	}
	return fmt.Errorf("%w: it was for %v, or the application has begun anew; nothing was written", access.ErrHold, d)
}

func (h objectHandler) Commit(ctx context.Context, r *latchkeyv1.CommitObjectRequest) (*latchkeyv1.SetObjectResponse, error) {
	return served(h, ctx, func(context.Context) (*latchkeyv1.SetObjectResponse, error) {
		v, ok := h.s.heldObjects.Load(r.Id)
		if !ok {
			return nil, fmt.Errorf("%w: it was held for long enough, or by another daemon; nothing was written", access.ErrHold)
		}
		e := v.(*heldObject)
		e.mu.Lock()
		defer e.mu.Unlock()
		if err := e.ObjectHold.Commit(r.Value); err != nil {
			return nil, err
		}
		e.committed = true
		return &latchkeyv1.SetObjectResponse{Epoch: e.epoch}, nil
	})
}

// The client's side.

var _ Objects = (*Client)(nil)

func (t Target) encode() *latchkeyv1.Target {
	return &latchkeyv1.Target{App: t.App, Name: t.Name, Epoch: t.Epoch}
}

// GetObject implements [Objects].
func (c *Client) GetObject(ctx context.Context, at Target) ([]byte, uint64, error) {
	r, err := c.objects.Get(ctx, &latchkeyv1.GetObjectRequest{Target: at.encode()})
	if err != nil {
		return nil, 0, decodeError(ctx, c.addr, err, false)
	}
	return r.Value, r.Epoch, nil
}

// SetObject implements [Objects].
func (c *Client) SetObject(ctx context.Context, at Target, value []byte) (uint64, error) {
	if len(value) > protocol.ValueMax {
		return 0, tooLarge(value)
	}
	r, err := c.objects.Set(ctx, &latchkeyv1.SetObjectRequest{Target: at.encode(), Value: value})
	if err != nil {
		return 0, decodeError(ctx, c.addr, err, true)
	}
	return r.Epoch, nil
}

func tooLarge(value []byte) error {
	return fmt.Errorf("%w: %d bytes, of %d", access.ErrTooLarge, len(value), protocol.ValueMax)
}

// RemoveObject implements [Objects].
func (c *Client) RemoveObject(ctx context.Context, at Target) (bool, uint64, error) {
	r, err := c.objects.Remove(ctx, &latchkeyv1.RemoveObjectRequest{Target: at.encode()})
	if err != nil {
		return false, 0, decodeError(ctx, c.addr, err, true)
	}
	return r.Existed, r.Epoch, nil
}

// WatchObject implements [Objects].
func (c *Client) WatchObject(ctx context.Context, at Target, fn func(value []byte, epoch uint64) error) error {
	callCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.objects.Watch(callCtx, &latchkeyv1.WatchObjectRequest{Target: at.encode()})
	if err != nil {
		return decodeError(ctx, c.addr, err, false)
	}
	defer stream.Close()
	for stream.Receive() {
		if err := fn(stream.Msg().Value, stream.Msg().Epoch); err != nil {
			return err
		}
	}
	if err := stream.Err(); err != nil {
		return decodeError(ctx, c.addr, err, false)
	}
	return fmt.Errorf("api: the daemon at %s tells of no more values of %q", c.addr, at.Name)
}

// ListObjects implements [Objects].
func (c *Client) ListObjects(ctx context.Context, app, prefix string, limit int) (ObjectList, error) {
	r, err := c.objects.List(ctx, &latchkeyv1.ListObjectsRequest{App: app, Prefix: prefix, Limit: uint32(min(max(limit, 0), ListedObjectsMax))})
	if err != nil {
		return ObjectList{}, decodeError(ctx, c.addr, err, false)
	}
	l := ObjectList{Objects: []ListedObject{}, Epoch: r.Epoch, Unnamed: int(r.Unnamed), Silent: list(r.Silent), More: r.More}
	for _, o := range r.Objects {
		l.Objects = append(l.Objects, ListedObject{o.Name, int(o.Bytes), o.Owner})
	}
	return l, nil
}

// Object implements [Objects].
func (c *Client) Object(ctx context.Context, at Target) (ObjectInfo, error) {
	r, err := c.objects.Object(ctx, &latchkeyv1.ObjectRequest{Target: at.encode()})
	if err != nil {
		return ObjectInfo{}, decodeError(ctx, c.addr, err, false)
	}
	i := ObjectInfo{
		Key: r.Key, Epoch: r.Epoch, Touched: r.Touched, Manager: r.Manager, Owner: r.Owner, Copies: int(r.Copies), Waiting: int(r.Waiting), Here: r.Here, Bytes: int(r.Bytes),
	}
	if g := r.Group; g != nil {
		i.Group = &GroupInfo{ID: g.Id, Generation: g.Generation, View: g.View, Leader: g.Leader, Members: list(g.Members)}
	}
	return i, nil
}

// Apps implements [Objects].
func (c *Client) Apps(ctx context.Context) ([]AppInfo, error) {
	r, err := c.objects.Apps(ctx, &latchkeyv1.AppsRequest{})
	if err != nil {
		return nil, decodeError(ctx, c.addr, err, false)
	}
	all := make([]AppInfo, len(r.Apps))
	for i, a := range r.Apps {
		all[i] = decodeApp(a)
	}
	return all, nil
}

// App implements [Objects].
func (c *Client) App(ctx context.Context, name string) (AppInfo, error) {
	r, err := c.objects.App(ctx, &latchkeyv1.AppRequest{App: name})
	if err != nil {
		return AppInfo{}, decodeError(ctx, c.addr, err, false)
	}
	return decodeApp(r), nil
}

// CloseApp implements [Objects].
func (c *Client) CloseApp(ctx context.Context, name string) error {
	if _, err := c.objects.Close(ctx, &latchkeyv1.CloseAppRequest{App: name}); err != nil {
		return decodeError(ctx, c.addr, err, true)
	}
	return nil
}

// Checkpoint implements [Objects].
func (c *Client) Checkpoint(ctx context.Context, name string) (uint64, error) {
	r, err := c.objects.Checkpoint(ctx, &latchkeyv1.CheckpointRequest{App: name})
	if err != nil {
		return 0, decodeError(ctx, c.addr, err, true)
	}
	return r.Checkpoint, nil
}

// RestartApp implements [Objects].
func (c *Client) RestartApp(ctx context.Context, name string) (uint64, error) {
	r, err := c.objects.Restart(ctx, &latchkeyv1.RestartRequest{App: name})
	if err != nil {
		return 0, decodeError(ctx, c.addr, err, true)
	}
	return r.Epoch, nil
}

// ClientHold is an object that a daemon holds for a client.
type ClientHold struct {
	c      *Client
	id     string
	value  []byte
	until  time.Time
	ended  chan struct{}
	err    error // why it ended; set before ended is closed
	cancel context.CancelFunc
}

var _ ObjectHold = (*ClientHold)(nil)

// HoldObject implements [Objects]. The hold is a [*ClientHold]. It ends with ctx, and when the daemon goes away.
func (c *Client) HoldObject(ctx context.Context, at Target, d time.Duration) (ObjectHold, uint64, error) {
	callCtx, cancel := context.WithCancel(ctx)
	stream, err := c.objects.Hold(callCtx, &latchkeyv1.HoldObjectRequest{Target: at.encode(), Hold: durationpb.New(d)})
	if err == nil && !stream.Receive() {
		err = stream.Err()
		stream.Close()
		if err == nil {
			err = connect.NewError(connect.CodeInternal, errors.New("the daemon ended the call without a hold"))
		}
	}
	if err != nil {
		cancel()
		return nil, 0, decodeError(ctx, c.addr, err, false)
	}
	m := stream.Msg()
	h := &ClientHold{c: c, id: m.Id, value: m.Value, until: time.Now().Add(m.Left.AsDuration()), ended: make(chan struct{}), cancel: cancel}
	go func() {
		defer close(h.ended)
		defer stream.Close()
		for stream.Receive() {
		}
		if err := stream.Err(); err != nil {
			h.err = decodeError(ctx, c.addr, err, false)
		}
	}()
	return h, m.Epoch, nil
}

// Value implements [ObjectHold].
func (h *ClientHold) Value() []byte { return h.value }

// Ended implements [ObjectHold].
func (h *ClientHold) Ended() <-chan struct{} { return h.ended }

// Err returns why the hold has ended, once it has: nil after a Commit.
func (h *ClientHold) Err() error {
	select {
	case <-h.ended:
		return h.err
	default:
		return nil
	}
}

// Until is when the hold ends at the latest, by this process's clock; the daemon's end counts.
func (h *ClientHold) Until() time.Time { return h.until }

// Commit implements [ObjectHold].
func (h *ClientHold) Commit(value []byte) error {
	if len(value) > protocol.ValueMax {
		return tooLarge(value)
	}
	ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
	defer cancel()
	if _, err := h.c.objects.Commit(ctx, &latchkeyv1.CommitObjectRequest{Id: h.id, Value: value}); err != nil {
		return decodeError(ctx, h.c.addr, err, true)
	}
	return nil
}

// commitTimeout bounds a commit, which waits for nobody but the daemon.
const commitTimeout = 10 * time.Second

// Release implements [ObjectHold].
func (h *ClientHold) Release() {
	h.cancel()
	<-h.ended
}
