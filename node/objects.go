package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/coherence"
	"latchkey/dht/keyspace"
	"latchkey/lockservice"
	"latchkey/node/api"
	"latchkey/replicagroup/placement"
)

// AppsMax bounds the applications that a node has open for clients of its API.
const AppsMax = 64

// APIObjects is the part of a node in shared objects as clients of its API use it. It opens an application when one first needs it, and keeps it open
// until [APIObjects.CloseApp], or until the node is closed: what is in the application's objects lives as long as somebody has it open.
//
// When an application has begun anew, the next call here fails with [coherence.ErrRestarted], and those that come later are of the new execution.
type APIObjects struct {
	n *Node

	mu   sync.Mutex
	apps map[string]*keptApp
}

// keptApp is an application that is open for clients, or being opened or closed.
type keptApp struct {
	ready chan struct{} // closed once app and err are set
	app   *coherence.App
	err   error
}

var _ api.Objects = (*APIObjects)(nil)

// NewAPIObjects returns what serves the node's clients. Applications that it opens end with the node.
func (n *Node) NewAPIObjects() *APIObjects {
	return &APIObjects{n: n, apps: make(map[string]*keptApp)}
}

// restartedError tells a client that an execution is over.
type restartedError struct {
	app   string
	epoch uint64
}

func (e *restartedError) Error() string {
	return fmt.Sprintf("application %q has begun anew, since a peer that had it open failed, or somebody restarted it, as app info tells: execution %d is over, and what its "+
		"objects held since the last checkpoint is gone; repeat the command to go on in the next one", e.app, e.epoch)
}

func (e *restartedError) Unwrap() error { return coherence.ErrRestarted }

// open returns an application that is open here, and opens it if it is not: founds it only if asked to.
func (o *APIObjects) open(ctx context.Context, name string, epoch uint64, found bool) (*coherence.App, error) {
	for {
		o.mu.Lock()
		k := o.apps[name]
		if k == nil {
			if len(o.apps) >= AppsMax {
				o.mu.Unlock()
				return nil, fmt.Errorf("%w: %d applications are open through this daemon; latchkey app close ends its part in one", lockservice.ErrLimit, AppsMax)
			}
			k = &keptApp{ready: make(chan struct{})}
			o.apps[name] = k
			o.mu.Unlock()
			k.app, k.err = o.join(ctx, name, found)
			if k.err != nil {
				o.forget(name, k)
			}
			close(k.ready)
			if k.err != nil {
				return nil, k.err
			}
		} else {
			o.mu.Unlock()
		}
		select {
		case <-k.ready:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if k.err != nil { // somebody else's attempt, whose time may have been up, or who would not found it
			continue
		}
		select {
		case <-k.app.Restarted():
			o.forget(name, k)
			return nil, &restartedError{name, uint64(k.app.Epoch())}
		default:
		}
		select {
		case <-k.app.Closed():
			o.forget(name, k)
			continue
		default:
		}
		if now := uint64(k.app.Epoch()); epoch != 0 && epoch != now {
			return nil, fmt.Errorf("application %q is in execution %d, and not %d: %w", name, now, epoch, coherence.ErrRestarted)
		}
		return k.app, nil
	}
}

func (o *APIObjects) forget(name string, k *keptApp) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.apps[name] == k {
		delete(o.apps, name)
	}
}

func (o *APIObjects) join(ctx context.Context, name string, found bool) (*coherence.App, error) {
	for _, a := range o.n.objects.Applications() { // the program that this node is of may have it open
		if a.Name() == name {
			return a, nil
		}
	}
	if !found {
		i, err := o.n.objects.Info(ctx, name)
		if err != nil {
			return nil, err
		}
		if !i.Open {
			return nil, noApp(name)
		}
	}
	return o.n.objects.Open(ctx, name)
}

// noAppError reads as what is wrong with one application.
type noAppError string

func noApp(name string) error {
	return noAppError(fmt.Sprintf("nobody has application %q open; the first who writes an object of it founds it", name))
}

func (e noAppError) Error() string { return string(e) }
func (e noAppError) Unwrap() error { return api.ErrNoApp }

// with has do use an object.
func (o *APIObjects) with(ctx context.Context, at api.Target, found bool, do func(*coherence.Object) error) (epoch uint64, err error) {
	if err := coherence.CheckNames(at.App, at.Name); err != nil {
		return 0, err
	}
	app, err := o.open(ctx, at.App, at.Epoch, found)
	if err != nil {
		return 0, err
	}
	return uint64(app.Epoch()), o.told(at.App, app, do(app.Object(at.Name)))
}

// told makes an error of an application one for a client.
func (o *APIObjects) told(name string, app *coherence.App, err error) error {
	switch {
	case errors.Is(err, coherence.ErrRestarted):
		o.mu.Lock()
		if k := o.apps[name]; k != nil && k.app == app {
			delete(o.apps, name)
		}
		o.mu.Unlock()
		return &restartedError{name, uint64(app.Epoch())}
	case errors.Is(err, coherence.ErrClosed) && !o.n.objects.Closed():
		return fmt.Errorf("application %q is being closed on this peer; repeat the command", name)
	}
	return err
}

// GetObject implements [api.Objects].
func (o *APIObjects) GetObject(ctx context.Context, at api.Target) (value []byte, epoch uint64, err error) {
	epoch, err = o.with(ctx, at, false, func(v *coherence.Object) error {
		return v.View(ctx, func(b []byte) error { value = b; return nil }) // it is never changed
	})
	return value, epoch, err
}

// SetObject implements [api.Objects].
func (o *APIObjects) SetObject(ctx context.Context, at api.Target, value []byte) (epoch uint64, err error) {
	return o.with(ctx, at, true, func(v *coherence.Object) error { return v.Set(ctx, value) })
}

// RemoveObject implements [api.Objects].
func (o *APIObjects) RemoveObject(ctx context.Context, at api.Target) (existed bool, epoch uint64, err error) {
	epoch, err = o.with(ctx, at, false, func(v *coherence.Object) error {
		return v.Update(ctx, func(b []byte) ([]byte, error) { existed = len(b) > 0; return nil, nil })
	})
	return existed, epoch, err
}

// HoldObject implements [api.Objects].
func (o *APIObjects) HoldObject(ctx context.Context, at api.Target, d time.Duration) (h api.ObjectHold, epoch uint64, err error) {
	epoch, err = o.with(ctx, at, true, func(v *coherence.Object) error {
		held, err := v.Hold(ctx, d)
		h = held
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	return h, epoch, nil
}

// WatchObject implements [api.Objects].
func (o *APIObjects) WatchObject(ctx context.Context, at api.Target, fn func(value []byte, epoch uint64) error) error {
	if err := coherence.CheckNames(at.App, at.Name); err != nil {
		return err
	}
	app, err := o.open(ctx, at.App, at.Epoch, false)
	if err != nil {
		return err
	}
	epoch := uint64(app.Epoch())
	return o.told(at.App, app, app.Object(at.Name).Watch(ctx, func(b []byte) error { return fn(b, epoch) }))
}

// ListObjects implements [api.Objects].
func (o *APIObjects) ListObjects(ctx context.Context, name, prefix string, limit int) (api.ObjectList, error) {
	if err := coherence.CheckNames(name, "any"); err != nil {
		return api.ObjectList{}, err
	}
	app, err := o.open(ctx, name, 0, false)
	if err != nil {
		return api.ObjectList{}, err
	}
	found, err := app.List(ctx, prefix, limit+1)
	if err != nil {
		return api.ObjectList{}, o.told(name, app, err)
	}
	l := api.ObjectList{Objects: []api.ListedObject{}, Epoch: uint64(app.Epoch()), Unnamed: found.Unnamed, Silent: []string{}}
	for _, v := range found.Objects {
		if l.More = len(l.Objects) == limit; l.More {
			break
		}
		l.Objects = append(l.Objects, api.ListedObject{Name: v.Name, Bytes: v.Bytes, Owner: v.Owner.String()})
	}
	for _, p := range found.Silent {
		l.Silent = append(l.Silent, p.String())
	}
	return l, nil
}

// Object implements [api.Objects].
func (o *APIObjects) Object(ctx context.Context, at api.Target) (i api.ObjectInfo, err error) {
	i.Epoch, err = o.with(ctx, at, false, func(v *coherence.Object) error {
		m, err := v.Info(ctx)
		if err != nil {
			return err
		}
		i.Touched, i.Manager, i.Copies, i.Waiting = m.Touched, m.State, m.Copies, m.Waiting
		if !m.Owner.IsZero() {
			i.Owner = o.n.peerOf(m.Owner.ID)
		}
		i.Here, i.Bytes = v.State()
		return nil
	})
	if err != nil {
		return api.ObjectInfo{}, err
	}
	key := coherence.ObjectKey(at.App, at.Name)
	i.Key = key.String()
	if d, err := o.n.groups.Locate(ctx, key); err == nil {
		i.Group = o.n.groupInfo(ctx, d)
	}
	return i, nil
}

// peerOf names a node by its peer, or by its place in the key space where the peer is not known here.
func (n *Node) peerOf(id keyspace.NodeID) string {
	if id == n.overlay.Node() {
		return n.host.ID().String()
	}
	if p, ok := n.overlay.PeerOf(id); ok {
		return p.String()
	}
	return keyspace.Key(id).String()
}

// Apps implements [api.Objects].
func (o *APIObjects) Apps(context.Context) ([]api.AppInfo, error) {
	var all []api.AppInfo
	for _, a := range o.n.objects.Applications() {
		all = append(all, api.AppInfo{App: a.Name(), Open: true, Here: true, Epoch: uint64(a.Epoch()), Peers: []string{}, Copies: a.Copies()})
	}
	return all, nil
}

// App implements [api.Objects].
func (o *APIObjects) App(ctx context.Context, name string) (api.AppInfo, error) {
	i, err := o.n.objects.Info(ctx, name)
	if err != nil {
		return api.AppInfo{}, err
	}
	info := api.AppInfo{App: name, Open: i.Open, Epoch: uint64(i.Epoch), Threads: i.Threads, Peers: []string{}, Saved: uint64(i.Saved), SavedObjs: i.Objects, State: i.State.String()}
	for _, n := range i.Nodes {
		info.Peers = append(info.Peers, o.n.peerOf(n.ID))
	}
	info.Anew = anewOf(ctx, o.n.objects, name, o.n.peerOf)
	for _, a := range o.n.objects.Applications() {
		if a.Name() == name {
			info.Here, info.Copies = true, a.Copies()
		}
	}
	o.mu.Lock()
	k := o.apps[name]
	o.mu.Unlock()
	if k != nil {
		select {
		case <-k.ready:
			if k.err == nil {
				select {
				case <-k.app.Restarted():
					info.Restarted = true
				default:
				}
			}
		default:
		}
	}
	return info, nil
}

const (
	// anewTimeout bounds the question why an application began anew, which takes half of the time that is left at most.
	anewTimeout = 2 * time.Second
	// anewPeerTimeout bounds the question for the name of a peer that is not known here. It is the rule that it is gone for good, and nobody answers.
	anewPeerTimeout = 250 * time.Millisecond
)

// anewTeller is what is asked why an application began anew: [coherence.Service].
type anewTeller interface {
	Anew(ctx context.Context, app string) (*coherence.Anew, error)
	PeerOf(ctx context.Context, app string, id keyspace.NodeID) (string, bool)
}

// anewOf tells why an application began anew the last time, nil if it has not; peerOf names what it has no other name for. It is said beside the rest, which does without it where nobody answers in time.
func anewOf(ctx context.Context, of anewTeller, app string, peerOf func(keyspace.NodeID) string) *api.AppAnew {
	most := anewTimeout
	if end, ok := ctx.Deadline(); ok {
		most = min(most, time.Until(end)/2)
	}
	within, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	a, err := of.Anew(within, app)
	if err != nil {
		log.Debugw("nobody says why an application began anew", "app", app, "err", err)
	}
	if a == nil || err != nil {
		return nil
	}
	r := &api.AppAnew{Epoch: uint64(a.Epoch), Cause: a.Cause.String(), Checkpoint: uint64(a.From), At: a.At}
	if a.Node.ID != (keyspace.NodeID{}) {
		within, cancel := context.WithTimeout(within, anewPeerTimeout)
		defer cancel()
		if p, ok := of.PeerOf(within, app, a.Node.ID); ok {
			r.Peer = p
		} else {
			r.Peer = peerOf(a.Node.ID)
		}
	}
	if a.Object != (keyspace.Key{}) {
		r.Object = a.Object.String()
	}
	return r
}

// CloseApp implements [api.Objects]. It closes an application that the program opened which this node is of, too.
func (o *APIObjects) CloseApp(ctx context.Context, name string) error {
	if err := coherence.CheckNames(name, "any"); err != nil {
		return err
	}
	for _, a := range o.n.objects.Applications() {
		if a.Name() == name {
			err := a.Close(ctx)
			if err == nil {
				o.mu.Lock()
				if k := o.apps[name]; k != nil && k.app == a {
					delete(o.apps, name)
				}
				o.mu.Unlock()
			}
			return err
		}
	}
	return noAppError(fmt.Sprintf("application %q is not open on this peer", name))
}

// Checkpoint implements [api.Objects].
func (o *APIObjects) Checkpoint(ctx context.Context, name string) (uint64, error) {
	id, err := o.n.objects.Checkpoint(ctx, name)
	if errors.Is(err, coherence.ErrNotOpen) {
		return 0, noApp(name)
	}
	return uint64(id), err
}

// RestartApp implements [api.Objects].
func (o *APIObjects) RestartApp(ctx context.Context, name string) (uint64, error) {
	epoch, err := o.n.objects.Restart(ctx, name)
	if errors.Is(err, coherence.ErrNotOpen) {
		return 0, noApp(name)
	}
	return uint64(epoch), err
}

// groupInfo tells of a group, its leader included if that can be found.
func (n *Node) groupInfo(ctx context.Context, d placement.Descriptor) *api.GroupInfo {
	g := &api.GroupInfo{ID: d.Group.String(), Generation: d.Group.Gen, View: d.View.Num}
	for _, p := range d.Peers {
		g.Members = append(g.Members, peer.ID(p.ID).String())
	}
	ask, cancel := context.WithTimeout(ctx, keyTimeout)
	defer cancel()
	if leader, err := n.groups.LeaderOf(ask, d); err == nil {
		g.Leader = peer.ID(leader.ID).String()
	}
	return g
}
