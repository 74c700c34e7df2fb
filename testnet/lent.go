package testnet

import (
	"fmt"
	"sync"

	"latchkey/replicagroup"
	"latchkey/replicagroup/disk"
	"latchkey/replicagroup/order"
)

// lent is a store on disk while one life of a peer has it.
type lent struct {
	*disk.Store

	mu   sync.RWMutex // held for reading through each call, for writing when the store is taken back
	back bool
}

// take takes the store back: it waits for calls under way, and those that come find that somebody else has it.
func (l *lent) take() error {
	l.mu.Lock()
	l.back = true
	l.mu.Unlock()
	return l.Store.Close()
}

// use calls fn while the life has the store.
func (l *lent) use(fn func() error) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.back {
		return fmt.Errorf("%w: %w: its peer was killed", replicagroup.ErrStore, replicagroup.ErrTakenOver)
	}
	return fn()
}

// Replicas implements [replicagroup.Store].
func (l *lent) Replicas() (all []replicagroup.StoredReplica, err error) {
	err = l.use(func() error {
		all, err = l.Store.Replicas()
		return err
	})
	return all, err
}

// Create implements [replicagroup.Store].
func (l *lent) Create(r replicagroup.Identity) error {
	return l.use(func() error { return l.Store.Create(r) })
}

// Retire implements [replicagroup.Store].
func (l *lent) Retire(g order.GroupID) error { return l.use(func() error { return l.Store.Retire(g) }) }

// Write implements [replicagroup.Store].
func (l *lent) Write(batch []replicagroup.Write, sync bool) error {
	return l.use(func() error { return l.Store.Write(batch, sync) })
}
