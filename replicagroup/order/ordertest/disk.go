package ordertest

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"latchkey/replicagroup/order"
)

// disk is one peer's store for the group. It survives the peer's crashes.
//
// Records reach the disk in the order in which they were written. Those that were not synced when the power went may be
// lost, the later ones first; that may tear a batch.
type disk struct {
	store   order.StoreID
	self    order.ReplicaID // the replica it belongs to, 0 for none
	join    *order.View     // the view that named the replica first, unless it is a founder
	durable order.Image
	pending []order.Persist // written, not synced
	stated  bool            // a state record was written once
	through uint64          // this life's last persist that is stored, as far as the disk itself knows
}

// write takes a batch into the disk's cache.
func (d *disk) write(p order.Persist) { d.pending = append(d.pending, p) }

// keep leaves out the records that a planted mistake loses.
func (d *disk) keep(records []order.Record, w mistakes) []order.Record {
	if !w.dropState && !w.dropEntries {
		return records
	}
	return slices.DeleteFunc(slices.Clone(records), func(r order.Record) bool {
		lost := r.Kind == order.RecordEntry && w.dropEntries || r.Kind == order.RecordState && w.dropState && d.stated
		d.stated = d.stated || r.Kind == order.RecordState
		return lost
	})
}

// stored makes the batches up to seq durable if sync is set, and remembers that they count as stored.
func (d *disk) stored(seq uint64, sync bool) error {
	d.through = seq
	for sync && len(d.pending) > 0 && d.pending[0].Seq <= seq {
		if err := d.take(d.pending[0].Records); err != nil {
			return err
		}
		d.pending = d.pending[1:]
	}
	return nil
}

// crash keeps some of what was not synced: the first so many records, so the last batch kept may be torn.
func (d *disk) crash(r *rand.Rand) error {
	var records []order.Record
	for _, p := range d.pending {
		records = append(records, p.Records...)
	}
	keep := r.IntN(len(records) + 1)
	if r.IntN(3) == 0 {
		keep = 0 // the worst case, often
	}
	d.pending, d.through = nil, 0
	return d.take(records[:keep])
}

// take applies records by the meaning of their kinds. Entries above a snapshot stay, whether or not they continue it.
func (d *disk) take(records []order.Record) error {
	im := &d.durable
	for _, r := range records {
		switch r.Kind {
		case order.RecordState:
			im.State = r.Data
		case order.RecordSnapshot:
			im.Snapshot = &r
			im.Entries = slices.DeleteFunc(slices.Clone(im.Entries), func(e order.Record) bool { return e.Index <= r.Index })
		case order.RecordEntry:
			n := uint64(len(im.Entries))
			first := r.Index
			switch {
			case n > 0:
				first = im.Entries[0].Index
			case im.Snapshot != nil:
				first = im.Snapshot.Index + 1
			}
			if r.Index < first || r.Index > first+n {
				return fmt.Errorf("entry %d does not continue the stored log, which holds %d from %d", r.Index, n, first)
			}
			im.Entries = append(im.Entries[:r.Index-first], r)
		default:
			return fmt.Errorf("record of unknown kind %d", r.Kind)
		}
	}
	return nil
}

// image returns what a starting replica finds.
func (d *disk) image() order.Image {
	im := d.durable
	im.Entries = slices.Clone(im.Entries)
	if im.Snapshot != nil {
		s := *im.Snapshot
		im.Snapshot = &s
	}
	return im
}
