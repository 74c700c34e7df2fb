package testnet

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"latchkey/replicagroup"
)

// Dump implements [Testnet]. The peers' stores are copied as of one moment, in which none of them is written; nobody waits for to.
func (n *Network) Dump(ctx context.Context, to io.Writer) error {
	m, images, err := n.copyAtRest()
	if err != nil {
		return err
	}
	w, err := newStateWriter(ctx, to, m)
	if err != nil {
		return err
	}
	for i, image := range images {
		b, err := json.Marshal(image)
		if err != nil {
			return fmt.Errorf("testnet: state: %w", err)
		}
		if err := w.file(fmt.Sprintf("%d/%s", i, stateMemoryFile), int64(len(b)), bytes.NewReader(b)); err != nil {
			return err
		}
	}
	return w.end()
}

// copyAtRest copies what the peers are and have stored. Nobody starts or ends meanwhile.
func (n *Network) copyAtRest() (m manifest, images []replicagroup.MemoryImage, err error) {
	if n.opts.StoreDir != "" {
		return m, nil, fmt.Errorf("%w: dump: its stores are on disk, in a process", ErrMode)
	}
	n.changing.Lock()
	slots := n.all()
	n.changing.Unlock()
	for _, s := range slots { // by number; nobody else holds two turns
		s.turn.Lock()
		defer s.turn.Unlock()
	}
	n.mu.Lock()
	closed := n.closed
	n.mu.Unlock()
	if closed {
		return m, nil, ErrClosed
	}
	if m, err = newManifest(ModeInProcess, n.opts.Seed, n.genesis); err != nil {
		return m, nil, err
	}
	var stores []*replicagroup.MemoryStore
	for _, s := range slots {
		s.mu.Lock()
		m.Peers = append(m.Peers, statePeer{Peer: s.id.String(), Port: s.port, Up: s.life != nil, Left: s.left})
		s.mu.Unlock()
		stores = append(stores, s.store)
	}
	images, err = replicagroup.CopyMemory(stores...)
	return m, images, err
}

// restore makes the places of a state's peers, with their stores.
func (n *Network) restore(s *State) error {
	if s.Mode() != ModeInProcess {
		return fmt.Errorf("%w: %s was a testnet with --mode %s; start it so", ErrMode, s.name, s.Mode())
	}
	if err := portsFree(s.Peers); err != nil {
		return err
	}
	n.genesis = s.genesis
	for i, was := range s.Peers {
		p, err := n.slotAt(i, was.Port)
		if err != nil {
			return err
		}
		if p.store, err = s.store(i); err != nil {
			return fmt.Errorf("%w: %s: peer %d: %w", ErrState, s.name, i, err)
		}
		p.left = was.Left
		n.slots = append(n.slots, p)
	}
	return nil
}

// store reads the store of a peer that was in a process with others.
func (s *State) store(i int) (*replicagroup.MemoryStore, error) {
	files := s.of(i)
	if len(files) != 1 {
		return nil, fmt.Errorf("%d stores", len(files))
	}
	d := json.NewDecoder(files[0].open())
	d.DisallowUnknownFields()
	var m replicagroup.MemoryImage
	if err := d.Decode(&m); err != nil {
		return nil, err
	}
	id := s.genesis.ID()
	if slices.ContainsFunc(m.Replicas, func(r replicagroup.StoredReplica) bool { return r.Group.Overlay != id }) {
		return nil, fmt.Errorf("replicas of another overlay")
	}
	return replicagroup.NewMemoryStoreOf(m)
}
