package disk

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"latchkey/replicagroup"
	"latchkey/replicagroup/order"
)

// small is a store that flushes and compacts during a short script, with snapshots of several chunks.
var small = Options{Overlay: overlay, memtableBytes: 24 << 10, chunkBytes: 4 << 10}

// on returns o on another file system.
func (o Options) on(f vfs.FS) Options { o.fs = f; return o }

// model is what a store should hold, done the simple way.
type model struct {
	replicas map[order.GroupID]replicagroup.StoredReplica
	graves   []replicagroup.StoredReplica
	used     map[order.GroupID]order.ReplicaID
}

func newModel() *model {
	return &model{replicas: make(map[order.GroupID]replicagroup.StoredReplica), used: make(map[order.GroupID]order.ReplicaID)}
}

func (m *model) String() string {
	byGroup := func(a, b replicagroup.StoredReplica) int {
		return cmp.Or(a.Group.Compare(b.Group), cmp.Compare(a.Self, b.Self))
	}
	slices.SortFunc(m.graves, byGroup)
	return show(slices.SortedFunc(maps.Values(m.replicas), byGroup)) + "buried " + show(m.graves)
}

// contents prints a store as [model.String] prints a model.
func contents(s *Store) (string, error) {
	all, err := s.Replicas()
	if err != nil {
		return "", err
	}
	ids, err := s.Graves()
	if err != nil {
		return "", err
	}
	var graves []replicagroup.StoredReplica
	for _, id := range ids {
		r, err := s.Exhume(id.Group, id.Self)
		if err != nil {
			return "", err
		}
		graves = append(graves, r)
	}
	return show(all) + "buried " + show(graves), nil
}

// step is one call to a store, and the same for the model.
type step struct {
	sync bool
	do   func(*Store) error
	then func(*model)
}

// script draws calls that make sense one after the other. Some snapshots are of several chunks, and larger than a memtable.
func script(seed uint64, n int) (steps []step, states []string) {
	rng := rand.New(rand.NewPCG(seed, 7))
	m := newModel()
	states = append(states, m.String())
	for range n {
		st := draw(rng, m)
		st.then(m)
		steps, states = append(steps, st), append(states, m.String())
	}
	return steps, states
}

func draw(rng *rand.Rand, m *model) step {
	g := group(fmt.Sprint(rng.IntN(4)))
	r, ok := m.replicas[g]
	if x := rng.IntN(25); !ok || x == 0 {
		id := replicagroup.Identity{Group: g, Self: max(m.used[g], r.Self) + 1, Descriptor: fmt.Appendf(nil, "d%d", rng.IntN(100))}
		return step{true, func(s *Store) error { return s.Create(id) },
			func(m *model) { m.replicas[g] = replicagroup.StoredReplica{Identity: id} }}
	} else if x == 1 {
		return step{true, func(s *Store) error { return s.Retire(g) },
			func(m *model) { m.used[g] = m.replicas[g].Self; delete(m.replicas, g) }}
	} else if x == 2 {
		return step{true, func(s *Store) error { return s.Bury(g) }, func(m *model) {
			m.used[g], m.graves = m.replicas[g].Self, append(m.graves, m.replicas[g])
			delete(m.replicas, g)
		}}
	} else if x == 3 && len(m.graves) > 0 {
		d := m.graves[rng.IntN(len(m.graves))]
		return step{true, func(s *Store) error { return s.Purge(d.Group, d.Self) }, func(m *model) {
			m.graves = slices.DeleteFunc(m.graves, func(r replicagroup.StoredReplica) bool { return r.Group == d.Group && r.Self == d.Self })
		}}
	}
	var batch []replicagroup.Write
	for g := range 4 {
		g := group(fmt.Sprint(g))
		if r, ok := m.replicas[g]; ok && rng.IntN(2) == 0 {
			batch = append(batch, replicagroup.Write{Group: g, Records: drawRecords(rng, r)})
		}
	}
	sync := rng.IntN(3) == 0
	return step{sync, func(s *Store) error { return s.Write(batch, sync) }, func(m *model) {
		for _, w := range batch {
			r := m.replicas[w.Group]
			for _, rec := range w.Records {
				r = taken(r, rec)
			}
			m.replicas[w.Group] = r
		}
	}}
}

func drawRecords(rng *rand.Rand, r replicagroup.StoredReplica) (recs []order.Record) {
	for range 1 + rng.IntN(4) {
		rec := order.Record{Data: make([]byte, rng.IntN(1500))}
		if rng.IntN(20) == 0 {
			rec.Data = make([]byte, 4<<10+rng.IntN(20<<10))
		}
		for i := range rec.Data {
			rec.Data[i] = byte(rng.Int())
		}
		first, next := uint64(1), uint64(1)
		if s := r.Image.Snapshot; s != nil {
			first, next = s.Index+1, s.Index+1
		}
		if e := r.Image.Entries; len(e) > 0 {
			first, next = e[0].Index, e[len(e)-1].Index+1
		}
		switch rng.IntN(8) {
		case 0:
			rec.Kind, rec.Index = order.RecordSnapshot, first+rng.Uint64N(next-first+2)
		case 1:
			rec.Kind = order.RecordState
		case 2:
			rec.Kind, rec.Index = order.RecordEntry, first+rng.Uint64N(next-first+1)
		default:
			rec.Kind, rec.Index = order.RecordEntry, next
		}
		recs, r = append(recs, rec), taken(r, rec)
	}
	return recs
}

// taken returns a replica after a record that makes sense.
func taken(r replicagroup.StoredReplica, rec order.Record) replicagroup.StoredReplica {
	switch rec.Kind {
	case order.RecordState:
		r.Image.State = rec.Data
	case order.RecordSnapshot:
		r.Image.Snapshot = &rec
		r.Image.Entries = slices.DeleteFunc(slices.Clone(r.Image.Entries), func(e order.Record) bool { return e.Index <= rec.Index })
	case order.RecordEntry:
		r.Image.Entries = append(slices.DeleteFunc(slices.Clone(r.Image.Entries), func(e order.Record) bool { return e.Index >= rec.Index }), rec)
	}
	return r
}

// play runs a script on a store and keeps count: everything up to synced must survive, nothing after begun can exist.
type play struct {
	created       atomic.Bool
	synced, begun atomic.Int64
}

func (p *play) run(s *Store, steps []step) error {
	for i, st := range steps {
		p.begun.Store(int64(i + 1))
		if err := st.do(s); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
		if st.sync {
			p.synced.Store(int64(i + 1))
		}
	}
	return nil
}

// between checks that what a store holds is one of the states from synced to begun.
func between(s *Store, states []string, synced, begun int64) error {
	got, err := contents(s)
	if err != nil {
		return err
	}
	if slices.Contains(states[synced:begun+1], got) {
		return nil
	}
	if i := slices.Index(states, got); i >= 0 {
		return fmt.Errorf("the store is as of step %d, want %d to %d", i, synced, begun)
	}
	return fmt.Errorf("the store is as it never was; want steps %d to %d", synced, begun)
}

func TestScriptsEndAsTheModelSays(t *testing.T) {
	for seed := range uint64(10) {
		steps, states := script(seed, 100)
		s, o := fresh(t, small)
		p := new(play)
		if err := p.run(s, steps); err != nil {
			t.Fatal(err)
		}
		if m := s.db.Metrics(); m.Flush.Count == 0 || m.Compact.Count == 0 {
			t.Errorf("seed %d: %d flushes and %d compactions: the script is too short", seed, m.Flush.Count, m.Compact.Count)
		}
		for range 2 {
			if err := between(s, states, int64(len(steps)), int64(len(steps))); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = reopen(t, "/store", o)
		}
		s.Close()
	}
}

// Of more graves than a store keeps, the first go, with their data; how old and how large they are is on the disk.
func TestTheFirstGravesMakeRoom(t *testing.T) {
	began := time.Now().Add(-time.Second)
	s, o := fresh(t, Options{})
	of := func(i int) order.GroupID { g := group("a"); g.Gen = uint64(i); return g }
	for i := range replicagroup.GravesMax + 2 {
		mustCreate(t, s, of(i), 1)
		write(t, s, of(i), entry(1, strings.Repeat("x", 100+i)))
		if err := s.Bury(of(i)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		graves, err := s.Graves()
		if err != nil || len(graves) != replicagroup.GravesMax || graves[0].Group != of(2) {
			t.Fatalf("%d graves, %v", len(graves), err)
		}
		for i, g := range graves {
			if least := int64(100 + i + 2); g.Group != of(i+2) || g.Bytes < least || g.Bytes > least+100 || g.Buried.Before(began) || g.Buried.After(time.Now()) {
				t.Fatalf("grave %d is %+v", i, g)
			}
		}
		if _, err := s.Exhume(of(1), 1); err == nil {
			t.Error("the one that made room is there still")
		}
		s.Close()
		s = reopen(t, "/store", o)
	}
	// One that an older program has buried has no date: it is the oldest.
	b := s.db.NewBatch()
	if err := errors.Join(b.Delete(burialKey(of(9), 1), nil), b.Commit(pebble.Sync)); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = reopen(t, "/store", o)
	mustCreate(t, s, of(1000), 1)
	if err := s.Bury(of(1000)); err != nil {
		t.Fatal(err)
	}
	graves, err := s.Graves()
	if err != nil || len(graves) != replicagroup.GravesMax || slices.ContainsFunc(graves, func(g replicagroup.Grave) bool { return g.Group == of(9) }) {
		t.Errorf("%d graves, %v", len(graves), err)
	}
}

// An id that a retired or buried replica had stays used, also after a crash.
func TestRemovedReplicasLeaveTheirIDsBehind(t *testing.T) {
	s, o := fresh(t, Options{})
	a, b, never := group("a"), group("b"), group("never")
	mustCreate(t, s, a, 5)
	mustCreate(t, s, b, 7)
	write(t, s, a, entry(1, "a"), state("s"), snapshot(0, "snap"))
	write(t, s, b, entry(1, "b"))
	for range 2 { // idempotent
		if err := errors.Join(s.Retire(a), s.Bury(b)); err != nil {
			t.Fatal(err)
		}
	}
	if s.Retire(never) == nil || s.Bury(never) == nil {
		t.Error("a replica that never was could be removed")
	}
	for range 2 {
		if got := dump(t, s); got != "" {
			t.Errorf("have %s", got)
		}
		for g, id := range map[order.GroupID]order.ReplicaID{a: 5, b: 7} {
			if err := s.Write([]replicagroup.Write{{Group: g}}, true); !errors.Is(err, replicagroup.ErrStore) {
				t.Errorf("write to removed group %v: %v", g, err)
			}
			for self := range id + 1 {
				if s.Create(replicagroup.Identity{Group: g, Self: self}) == nil {
					t.Errorf("replica %d of %v was used up to %d", self, g, id)
				}
			}
		}
		r, err := s.Exhume(b, 7)
		if err != nil || string(r.Descriptor) != fmt.Sprintf("%v/7", b) || len(r.Image.Entries) != 1 {
			t.Errorf("buried: %+v, %v", r, err)
		}
		if _, err := s.Exhume(a, 5); err == nil {
			t.Error("a retired replica was exhumed")
		}
		s.Close()
		s = reopen(t, "/store", o)
	}
	mustCreate(t, s, b, 8) // a later replica of the same group beside the buried one
	write(t, s, b, entry(9, "later"))
	if err := s.Bury(b); err != nil {
		t.Fatal(err)
	}
	if ids, err := s.Graves(); err != nil || len(ids) != 2 || ids[0].Self != 7 || ids[1].Self != 8 {
		t.Errorf("buried: %v, %v", ids, err)
	}
	for range 2 {
		if err := s.Purge(b, 7); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	s = reopen(t, "/store", o)
	if ids, err := s.Graves(); err != nil || len(ids) != 1 || ids[0].Self != 8 {
		t.Errorf("buried: %v, %v", ids, err)
	}
}
