package sigma

import (
	"iter"
	"slices"
	"time"
)

// List tells of the names in use from a name on, by rising name: who owns them or may, and who waits. At most most are told of, and more says
// that there are others. Names that another protocol locks are the table's to tell of. It changes nothing, and costs a step for every
// name of the replica. embargo is for how long this replica grants nothing, and may not know of everybody.
func (r *Replica) List(from string, most int) (entries []ReportEntry, more bool, embargo time.Duration) {
	names, more := Lowest(func(yield func(string) bool) {
		for name, l := range r.locks {
			if (l.live() || l.delay > r.now) && !yield(name) {
				return
			}
		}
	}, from, most)
	for _, name := range names {
		entries = append(entries, r.entry(name, r.locks[name], ReportQueueMax))
	}
	switch {
	case r.booting: // it has forgotten what it knew, and waits for the barrier
		embargo = 1
	case !r.settled:
		embargo = max(1, r.settleAt.Sub(r.now))
	case r.now < r.embargo:
		embargo = r.embargo.Sub(r.now)
	}
	return entries, more, embargo
}

// Lowest returns the first most of some names, by rising name, of those that are not below from; more says that there are others. It keeps no
// more than it returns, so a page of a large table costs no sorting of the whole.
func Lowest(names iter.Seq[string], from string, most int) (low []string, more bool) {
	for name := range names {
		if name < from {
			continue
		}
		if len(low) == most {
			if more = true; name >= low[most-1] {
				continue
			}
			low = low[:most-1]
		}
		at, _ := slices.BinarySearch(low, name)
		low = slices.Insert(low, at, name)
	}
	return low, more
}
