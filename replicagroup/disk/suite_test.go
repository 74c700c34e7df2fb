package disk

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	logging "github.com/ipfs/go-log/v2"
	"go.uber.org/goleak"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup"
	"latchkey/replicagroup/order"
)

func TestMain(m *testing.M) {
	logging.SetLogLevel("latchkey/store", "fatal") // failing stores are what the tests are about
	debug.SetGCPercent(400)                        // their heaps are small: with Go's default much of their time is spent on collecting them
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/ipfs/go-log/writer.(*MirrorWriter).logRoutine"))
}

var overlay = order.OverlayID{1, 2, 3}

func group(name string) order.GroupID {
	return order.GroupID{Overlay: overlay, Prefix: keyspace.PrefixOf(keyspace.Preimage(name).Key(), 8)}
}

func entry(i uint64, data string) order.Record {
	return order.Record{Kind: order.RecordEntry, Index: i, Data: []byte(data)}
}

func snapshot(i uint64, data string) order.Record {
	return order.Record{Kind: order.RecordSnapshot, Index: i, Data: []byte(data)}
}

func state(data string) order.Record {
	return order.Record{Kind: order.RecordState, Data: []byte(data)}
}

func write(t testing.TB, s replicagroup.Store, g order.GroupID, recs ...order.Record) {
	t.Helper()
	if err := s.Write([]replicagroup.Write{{Group: g, Records: recs}}, true); err != nil {
		t.Fatal(err)
	}
}

func mustCreate(t testing.TB, s replicagroup.Store, g order.GroupID, id order.ReplicaID) {
	t.Helper()
	if err := s.Create(replicagroup.Identity{Group: g, Self: id, Descriptor: fmt.Appendf(nil, "%v/%d", g, id)}); err != nil {
		t.Fatal(err)
	}
}

// fresh makes and opens a store on a file system in memory.
func fresh(t testing.TB, o Options) (*Store, Options) {
	t.Helper()
	if o.fs == nil {
		o.fs = vfs.NewMem()
	}
	o.Overlay = overlay
	if err := create("/store", order.StoreID{9}, o.fill()); err != nil {
		t.Fatal(err)
	}
	return reopen(t, "/store", o), o
}

func reopen(t testing.TB, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// dump prints everything that a store gives back.
func dump(t testing.TB, s replicagroup.Store) string {
	t.Helper()
	all, err := s.Replicas()
	if err != nil {
		t.Fatal(err)
	}
	return show(all)
}

func show(all []replicagroup.StoredReplica) (out string) {
	for _, r := range all {
		out += fmt.Sprintf("%v %d %s: state %s", r.Group, r.Self, r.Descriptor, brief(r.Image.State))
		if s := r.Image.Snapshot; s != nil {
			out += fmt.Sprintf(" snapshot %d %d %d %x", s.Kind, s.Index, len(s.Data), checksum(nil, s.Data))
		}
		for _, e := range r.Image.Entries {
			out += fmt.Sprintf(" %d/%d=%s", e.Kind, e.Index, brief(e.Data))
		}
		out += "\n"
	}
	return out
}

// brief prints data, or what tells it from other data.
func brief(data []byte) string {
	if len(data) > 16 {
		return fmt.Sprintf("%d bytes %x", len(data), checksum(nil, data))
	}
	return fmt.Sprintf("%q", data)
}

// stores are what must behave alike.
var stores = []struct {
	name string
	make func(t *testing.T) (s replicagroup.Store, again func() replicagroup.Store)
}{
	{"memory", func(t *testing.T) (replicagroup.Store, func() replicagroup.Store) {
		s := replicagroup.NewMemoryStoreAs(order.StoreID{9})
		return s, func() replicagroup.Store { s = s.Detach(); return s }
	}},
	{"disk", func(t *testing.T) (replicagroup.Store, func() replicagroup.Store) {
		dir := t.TempDir() + "/store"
		if err := Create(dir, overlay, order.StoreID{9}); err != nil {
			t.Fatal(err)
		}
		return again(t, reopen(t, dir, Options{Overlay: overlay}), dir, Options{Overlay: overlay})
	}},
	{"disk with small tables", func(t *testing.T) (replicagroup.Store, func() replicagroup.Store) {
		s, o := fresh(t, Options{memtableBytes: 32 << 10})
		return again(t, s, "/store", o)
	}},
}

func again(t *testing.T, s *Store, dir string, o Options) (replicagroup.Store, func() replicagroup.Store) {
	return s, func() replicagroup.Store {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = reopen(t, dir, o)
		return s
	}
}

func TestStores(t *testing.T) {
	for _, kind := range stores {
		t.Run(kind.name, func(t *testing.T) {
			for _, c := range conformance {
				t.Run(c.name, func(t *testing.T) {
					s, again := kind.make(t)
					c.run(t, s, again)
				})
			}
		})
	}
}

// conformance is what every store must do. again opens the store anew.
var conformance = []struct {
	name string
	run  func(t *testing.T, s replicagroup.Store, again func() replicagroup.Store)
}{
	{"an empty store has its id and no replicas", func(t *testing.T, s replicagroup.Store, again func() replicagroup.Store) {
		if s.ID() != (order.StoreID{9}) || dump(t, s) != "" || again().ID() != (order.StoreID{9}) {
			t.Errorf("id %v, %s", s.ID(), dump(t, s))
		}
	}},
	{"what was persisted comes back", func(t *testing.T, s replicagroup.Store, again func() replicagroup.Store) {
		g := group("a")
		mustCreate(t, s, g, 1)
		check := func(want string) {
			t.Helper()
			if got := dump(t, s); got != want {
				t.Errorf("have %swant %s", got, want)
			}
			s = again()
			if got := dump(t, s); got != want {
				t.Errorf("again: have %swant %s", got, want)
			}
		}
		name := fmt.Sprintf("%v 1 %v/1: ", g, g)
		check(name + "state \"\"\n")
		write(t, s, g, snapshot(10, "ten"), entry(11, "a"), entry(12, "b"), entry(13, "c"), state("one"))
		ten := fmt.Sprintf("%x", checksum(nil, []byte("ten")))
		check(name + `state "one" snapshot 3 10 3 ` + ten + ` 2/11="a" 2/12="b" 2/13="c"` + "\n")
		// An entry voids all at or above it: a later leader's log wins.
		write(t, s, g, entry(12, "B"), state("two"))
		check(name + `state "two" snapshot 3 10 3 ` + ten + ` 2/11="a" 2/12="B"` + "\n")
		write(t, s, g, entry(13, "C"), snapshot(12, "twelve"))
		twelve := fmt.Sprintf("%x", checksum(nil, []byte("twelve")))
		check(name + `state "two" snapshot 3 12 6 ` + twelve + ` 2/13="C"` + "\n")
		write(t, s, g, snapshot(50, ""), entry(51, ""), entry(52, "y"), entry(51, "z"))
		check(name + `state "two" snapshot 3 50 0 0 2/51="z"` + "\n")
		write(t, s, g, snapshot(51, "x"))
		write(t, s, g, entry(7, "anywhere")) // an empty log takes any index
		check(name + fmt.Sprintf(`state "two" snapshot 3 51 1 %x 2/7="anywhere"`, checksum(nil, []byte("x"))) + "\n")
	}},
	{"replicas come back by group", func(t *testing.T, s replicagroup.Store, again func() replicagroup.Store) {
		var want []order.GroupID
		for i := range 40 {
			g := group(fmt.Sprint(i % 20))
			g.Gen = uint64(i/20) << 32
			if i >= 2 && slices.Contains(want, g) {
				continue
			}
			mustCreate(t, s, g, order.ReplicaID(i+1))
			write(t, s, g, state(fmt.Sprint(i)), entry(uint64(i), "e"))
			want = append(want, g)
		}
		root := order.GroupID{Overlay: overlay}
		mustCreate(t, s, root, 1)
		want = append(want, root)
		slices.SortFunc(want, order.GroupID.Compare)
		before := dump(t, s)
		s = again()
		all, err := s.Replicas()
		if err != nil || show(all) != before {
			t.Fatalf("%v: have\n%swant\n%s", err, show(all), before)
		}
		for i, r := range all {
			if r.Group != want[i] {
				t.Errorf("replica %d is of %v, want %v", i, r.Group, want[i])
			}
		}
	}},
	{"no replica id is used twice", func(t *testing.T, s replicagroup.Store, again func() replicagroup.Store) {
		g := group("a")
		mustCreate(t, s, g, 2)
		write(t, s, g, entry(1, "old"))
		for range 2 {
			for _, self := range []order.ReplicaID{1, 2} {
				if err := s.Create(replicagroup.Identity{Group: g, Self: self}); err == nil || errors.Is(err, replicagroup.ErrStore) {
					t.Errorf("replica %d after replica 2: %v", self, err)
				}
			}
			s = again()
		}
		mustCreate(t, s, g, 3) // begins empty
		for range 2 {
			if got, want := dump(t, s), fmt.Sprintf("%v 3 %v/3: state \"\"\n", g, g); got != want {
				t.Errorf("have %s, want %s", got, want)
			}
			s = again()
		}
	}},
	{"gaps and strangers are refused, and nothing of the record is kept", func(t *testing.T, s replicagroup.Store, again func() replicagroup.Store) {
		g := group("a")
		if err := s.Write([]replicagroup.Write{{Group: g}}, true); !errors.Is(err, replicagroup.ErrStore) {
			t.Errorf("write to a replica that was never created: %v", err)
		}
		mustCreate(t, s, g, 2)
		write(t, s, g, entry(11, "a"), entry(12, "b"))
		before := dump(t, s)
		for range 2 {
			for _, bad := range []order.Record{entry(14, "gap"), entry(10, "below"), {Kind: 99}, {}} {
				if err := s.Write([]replicagroup.Write{{Group: g, Records: []order.Record{bad}}}, true); !errors.Is(err, replicagroup.ErrStore) {
					t.Errorf("record %+v: %v", bad, err)
				}
				if got := dump(t, s); got != before {
					t.Errorf("after %+v: %s", bad, got)
				}
			}
			s = again()
		}
		write(t, s, g, entry(13, "next"))
	}},
	{"writes of several groups, some twice, and empty ones", func(t *testing.T, s replicagroup.Store, again func() replicagroup.Store) {
		a, b := group("a"), group("b")
		mustCreate(t, s, a, 1)
		mustCreate(t, s, b, 1)
		for _, sync := range []bool{false, true} {
			if err := s.Write(nil, sync); err != nil {
				t.Error(err)
			}
			if err := s.Write([]replicagroup.Write{{Group: a}}, sync); err != nil {
				t.Error(err)
			}
			if err := s.Write([]replicagroup.Write{
				{Group: a, Records: []order.Record{entry(1, "a1"), entry(2, "a2")}},
				{Group: b, Records: []order.Record{entry(1, "b1")}},
				{Group: a, Records: []order.Record{entry(2, "A2"), entry(3, "a3"), state("s")}},
			}, sync); err != nil {
				t.Error(err)
			}
		}
		before := dump(t, s)
		if got := dump(t, again()); got != before || got == "" {
			t.Errorf("have\n%swant\n%s", got, before)
		}
	}},
	{"snapshots of several chunks", func(t *testing.T, s replicagroup.Store, again func() replicagroup.Store) {
		g := group("a")
		mustCreate(t, s, g, 1)
		for i, n := range []int{3*ChunkBytesMax + 1, 3 * ChunkBytesMax, ChunkBytesMax, 1, 2 * ChunkBytesMax, 0} {
			data := make([]byte, n)
			rand.NewChaCha8([32]byte{byte(i)}).Read(data)
			write(t, s, g, order.Record{Kind: order.RecordSnapshot, Index: uint64(i), Data: data})
			s = again()
			all, err := s.Replicas()
			if err != nil {
				t.Fatal(err)
			}
			if got := all[0].Image.Snapshot; got.Index != uint64(i) || !slices.Equal(got.Data, data) {
				t.Fatalf("snapshot of %d bytes came back with %d", n, len(got.Data))
			}
		}
	}},
}

// Memory and disk agree on random scripts, nonsense included.
func TestStoresAgree(t *testing.T) {
	for seed := range uint64(40) {
		s, o := fresh(t, Options{memtableBytes: 32 << 10})
		memory := replicagroup.NewMemoryStoreAs(order.StoreID{9})
		rng := rand.New(rand.NewPCG(seed, 1))
		for step := range 200 {
			a, b := randomStep(rng, s, memory)
			if (a == nil) != (b == nil) || errors.Is(a, replicagroup.ErrStore) != errors.Is(b, replicagroup.ErrStore) {
				t.Fatalf("seed %d, step %d: disk says %v, memory says %v", seed, step, a, b)
			}
			if step%50 == 49 {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s = reopen(t, "/store", o)
			}
			if rng.IntN(10) == 0 {
				if x, y := dump(t, s), dump(t, memory); x != y {
					t.Fatalf("seed %d, step %d: disk has\n%smemory has\n%s", seed, step, x, y)
				}
			}
		}
		s.Close()
	}
}

// randomStep does one thing to two stores. Its writes have one record, since memory keeps the good ones before a bad one.
func randomStep(rng *rand.Rand, a, b replicagroup.Store) (error, error) {
	g := group(fmt.Sprint(rng.IntN(3)))
	if rng.IntN(10) == 0 {
		id := replicagroup.Identity{Group: g, Self: order.ReplicaID(rng.IntN(8) + 1), Descriptor: []byte{byte(rng.Int())}}
		return a.Create(id), b.Create(id)
	}
	rec := order.Record{Index: rng.Uint64N(12), Data: make([]byte, rng.IntN(40))}
	switch rng.IntN(12) {
	case 0:
		rec.Kind = order.RecordSnapshot
	case 1:
		rec.Kind, rec.Index = order.RecordState, 0
	case 2:
		rec.Kind = order.RecordKind(rng.IntN(6))
	default:
		rec.Kind = order.RecordEntry
	}
	for i := range rec.Data {
		rec.Data[i] = byte(rng.Int())
	}
	w := []replicagroup.Write{{Group: g, Records: []order.Record{rec}}}
	sync := rng.IntN(2) == 0
	return a.Write(w, sync), b.Write(w, sync)
}
