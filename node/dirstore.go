package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"latchkey/lockservice/voterlog"
	"latchkey/node/config"
	"latchkey/replicagroup"
	"latchkey/replicagroup/disk"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/placement"
)

// founderIn returns the founder of an overlay that is this peer.
func founderIn(g placement.Genesis, id string) (placement.Host, bool) {
	for _, h := range g.Founders {
		if h.ID == id {
			return h, true
		}
	}
	return placement.Host{}, false
}

// makeStore makes the store that the genesis document names for a founder.
func makeStore(path string, s DirSpec, id string) error {
	founder, _ := founderIn(s.Genesis, id)
	return disk.Create(path, s.Genesis.ID(), founder.Store)
}

// foundIn writes the beginning of the root group into a founder's store.
func foundIn(path string, s DirSpec, id string) error {
	store, err := disk.Open(path, disk.Options{Overlay: s.Genesis.ID()})
	if err != nil {
		return err
	}
	return errors.Join(replicagroup.Found(store, s.Genesis, placement.Peer{ID: id}.Node()), store.Close())
}

func (d *Dir) storePath() string { return filepath.Join(d.path, storeDir) }

// hasStore tells whether there is a store on disk, or what is left of one.
func (d *Dir) hasStore() (bool, error) {
	switch _, err := os.Lstat(d.storePath()); {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	default:
		return false, fmt.Errorf("node: %w", err)
	}
}

// checkStore tells whether the directory's peer can keep its replicas, or do without, as c says.
func (d *Dir) checkStore(c config.Config) error {
	g := d.info.Genesis
	_, founder := founderIn(g, string(d.info.ID))
	switch has, err := d.hasStore(); {
	case err != nil:
		return err
	case founder && len(g.Founders) == 1 && !has && !d.knowsOthers(c) && !d.reseeded():
		return rootLost(g.ID(), d.path)
	case founder && has && c.Network.Mode != config.ModeServer:
		return fmt.Errorf("%w: network.mode: %q: this peer is a founder of the overlay and keeps its root in %s; use server",
			config.ErrInvalid, c.Network.Mode, d.storePath())
	case founder && has && c.Store.Volatile:
		return fmt.Errorf("%w: store.volatile: true: this peer is a founder of the overlay and keeps its root in %s; run it without --volatile",
			config.ErrInvalid, d.storePath())
	case has && c.Store.Volatile:
		return fmt.Errorf("%w: store.volatile: true: others may count on replicas in %s; run without --volatile, or give them up for good by moving that directory away",
			config.ErrInvalid, d.storePath())
	}
	return nil
}

// knowsOthers tells whether there are peers who may have the overlay's root, besides the founder whose directory this is.
func (d *Dir) knowsOthers(c config.Config) bool {
	return len(c.Network.Bootstrap) > 0 || len(openKnownPeers(filepath.Join(d.path, peersFile), nil).peers) > 0
}

// reseeded reports whether the overlay has had another root since it was founded.
func (d *Dir) reseeded() bool {
	doc, _, err := d.reseed()
	return err == nil && doc != nil
}

// openStore opens the store on disk. A peer that has none gets an empty one under a new id, in which it never founds: if it had
// one before, that one's replicas are not its own any more (rule G1).
func (d *Dir) openStore() (*disk.Store, error) {
	o := disk.Options{Overlay: d.info.Genesis.ID()}
	s, err := disk.Open(d.storePath(), o)
	if errors.Is(err, fs.ErrNotExist) {
		if err = disk.Create(d.storePath(), o.Overlay, order.StoreID{}); err == nil {
			s, err = disk.Open(d.storePath(), o)
		}
		if _, founder := founderIn(d.info.Genesis, string(d.info.ID)); founder && err == nil {
			log.Warnw("this founder's store is gone: it comes back under a new one, as a peer that joins", "store", s.ID())
		}
	}
	return s, storeError(err, d.storePath())
}

// openVoterLog opens what the voters of the peer's former life have recorded. It is of use only to the life that follows that one, with
// the same store.
func (d *Dir) openVoterLog(s *disk.Store) (*voterlog.Log, error) {
	id := s.ID()
	l, err := voterlog.Open(filepath.Join(d.path, votersFile), voterlog.Life{Store: id[:], Start: s.BootNonce().Count, Boot: voterlog.BootID()})
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	return l, nil
}

// dropVoterLog sees to it that nothing is taken up that a copy of the directory may have left behind.
func (d *Dir) dropVoterLog() error {
	if err := os.Remove(filepath.Join(d.path, votersFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("node: %w", err)
	}
	return nil
}

// storeError says what to do about a store that cannot be opened, where the store's own words do not.
func storeError(err error, path string) error {
	if errors.Is(err, disk.ErrDamaged) {
		return fmt.Errorf("node: %w; nothing of it is used: mv %s %s.damaged, and the peer takes part anew under a new store id "+
			"(the only founder of an overlay cannot: its root is lost)", err, path, path)
	}
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	return nil
}

// Reidentify gives the directory's store a new id, which it returns, and puts its replicas aside: for a directory that was copied
// or restored, and whose replicas may therefore live elsewhere too. The peer takes part in groups anew. The only founder of an
// overlay is refused, since its root would be lost; so is a directory without a store. For other errors see package disk.
func (d *Dir) Reidentify() (order.StoreID, error) {
	g := d.info.Genesis
	if _, founder := founderIn(g, string(d.info.ID)); founder && len(g.Founders) == 1 {
		return order.StoreID{}, fmt.Errorf("node: this peer alone founded overlay %v, and its root would be lost with the store's id: "+
			"if its original has not run since this copy was made, and never will again, start with --moved; else run the original of %s where it was; "+
			"if other peers have the root too by now, move %s away instead, and this peer joins them", g.ID(), d.path, d.storePath())
	}
	if err := d.dropVoterLog(); err != nil {
		return order.StoreID{}, err
	}
	id, err := disk.Reidentify(d.storePath(), disk.Options{Overlay: g.ID()})
	if errors.Is(err, fs.ErrNotExist) {
		return id, fmt.Errorf("node: there is no store in %s that could have been restored: start without saying so: %w", d.storePath(), err)
	}
	return id, storeError(err, d.storePath())
}

// Adopt says that the directory was moved here, by a copy: its original has not run since and never will again. The store keeps id
// and replicas. Who says so wrongly has one member of its groups in two places, and can lose locks that were granted. For
// errors see package disk.
func (d *Dir) Adopt() error {
	if err := d.dropVoterLog(); err != nil {
		return err
	}
	err := disk.Adopt(d.storePath(), disk.Options{Overlay: d.info.Genesis.ID()})
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("node: there is no store in %s that could have been moved: start without saying so: %w", d.storePath(), err)
	}
	return storeError(err, d.storePath())
}

// rootLost says what a founder's user is to do when the root is gone.
func rootLost(id order.OverlayID, dir string) error {
	return fmt.Errorf("%w: this peer alone founded overlay %v, and the store with its root is not in %s any more; "+
		"and no other peer is known; "+
		"locks and tokens of that overlay are gone for good with it. To found a new overlay: mv %s %s.lost && latchkey init --path %s",
		replicagroup.ErrRootLost, id, filepath.Join(dir, storeDir), dir, dir, dir)
}
