package node

import (
	"context"
	"time"

	"latchkey/coherence"
	"latchkey/coherence/durable"
	"latchkey/node/api"
)

// APIDurables is the part of a node in durable objects as clients of its API use it.
type APIDurables struct{ n *Node }

var _ api.Durables = (*APIDurables)(nil)

// NewAPIDurables returns what serves the node's clients.
func (n *Node) NewAPIDurables() *APIDurables { return &APIDurables{n} }

// with has do use an object.
func (o *APIDurables) with(app, name string, do func(*coherence.DurableObject) error) error {
	d, err := o.n.objects.Durable(app)
	if err != nil {
		return err
	}
	return do(d.Object(name))
}

// GetDurable implements [api.Durables].
func (o *APIDurables) GetDurable(ctx context.Context, app, name string) (v coherence.Value, err error) {
	err = o.with(app, name, func(d *coherence.DurableObject) (err error) { v, err = d.Read(ctx); return err })
	return v, err
}

// StaleDurable implements [api.Durables].
func (o *APIDurables) StaleDurable(_ context.Context, app, name string) (v coherence.Value, age time.Duration, ok bool, err error) {
	if err := coherence.CheckDurableName(name); err != nil {
		return v, 0, false, err
	}
	err = o.with(app, name, func(d *coherence.DurableObject) error { v, age, ok = d.ReadStale(); return nil })
	return v, age, ok, err
}

// SetDurable implements [api.Durables].
func (o *APIDurables) SetDurable(ctx context.Context, app, name string, w api.DurableWrite) (v coherence.Version, err error) {
	var opts []coherence.WriteOption
	if w.If != nil {
		opts = append(opts, coherence.IfVersion(*w.If))
	}
	if w.Absent {
		opts = append(opts, coherence.IfAbsent())
	}
	if w.TTL != 0 {
		opts = append(opts, coherence.WithTTL(w.TTL))
	}
	err = o.with(app, name, func(d *coherence.DurableObject) (err error) { v, err = d.Write(ctx, w.Value, opts...); return err })
	return v, err
}

// RemoveDurable implements [api.Durables].
func (o *APIDurables) RemoveDurable(ctx context.Context, app, name string, version *coherence.Version) (existed bool, err error) {
	var opts []coherence.WriteOption
	if version != nil {
		opts = append(opts, coherence.IfVersion(*version))
	}
	err = o.with(app, name, func(d *coherence.DurableObject) (err error) { existed, err = d.Delete(ctx, opts...); return err })
	return existed, err
}

// HoldDurable implements [api.Durables].
func (o *APIDurables) HoldDurable(ctx context.Context, app, name string) (h api.DurableHold, err error) {
	err = o.with(app, name, func(d *coherence.DurableObject) error {
		held, err := d.Hold(ctx)
		if err == nil {
			h = durableTurn{held}
		}
		return err
	})
	return h, err
}

// durableTurn is a turn as clients of the API have it.
type durableTurn struct{ *coherence.DurableHold }

// Commit implements [api.DurableHold].
func (h durableTurn) Commit(ctx context.Context, value []byte, ttl time.Duration) (coherence.Version, error) {
	if ttl == 0 {
		return h.DurableHold.Commit(ctx, value)
	}
	return h.DurableHold.Commit(ctx, value, coherence.WithTTL(ttl))
}

// WatchDirectory implements [api.Durables].
func (o *APIDurables) WatchDirectory(ctx context.Context, app, directory string, after coherence.Version, fn func(coherence.Listing, bool) error) error {
	d, err := o.n.objects.Durable(app)
	if err != nil {
		return err
	}
	return d.Directory(directory).Watch(ctx, after, fn)
}

// WatchDurable implements [api.Durables].
func (o *APIDurables) WatchDurable(ctx context.Context, app, name string, after coherence.Version, fn func(coherence.Change) error) error {
	return o.with(app, name, func(d *coherence.DurableObject) error { return d.Watch(ctx, after, fn) })
}

// ListDurable implements [api.Durables].
func (o *APIDurables) ListDurable(ctx context.Context, app, directory, after string, limit int) (coherence.Listing, error) {
	d, err := o.n.objects.Durable(app)
	if err != nil {
		return coherence.Listing{}, err
	}
	return d.Directory(directory).List(ctx, after, limit)
}

// Durable implements [api.Durables].
func (o *APIDurables) Durable(ctx context.Context, app, name string) (api.DurableInfo, error) {
	v, err := o.GetDurable(ctx, app, name)
	if err != nil {
		return api.DurableInfo{}, err
	}
	key := durable.KeyOf(app + "/" + name)
	i := api.DurableInfo{Key: key.String(), Version: v.Version, Exists: v.Exists, Bytes: len(v.Bytes)}
	if d, err := o.n.groups.Locate(ctx, key); err == nil {
		i.Group = o.n.groupInfo(ctx, d)
	}
	return i, nil
}
