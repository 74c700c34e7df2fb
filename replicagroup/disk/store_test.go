package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"latchkey/replicagroup"
	"latchkey/replicagroup/order"
)

// Many goroutines write to their groups, each reported write is there after a reopening, and groups are not mixed up. Syncs
// are shared: there are fewer than writes.
func TestConcurrentWriters(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	if err := Create(dir, overlay, order.StoreID{}); err != nil {
		t.Fatal(err)
	}
	s := reopen(t, dir, Options{Overlay: overlay})
	const writers, each = 8, 40
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			g := group("w")
			g.Gen = uint64(w)
			if err := s.Create(replicagroup.Identity{Group: g, Self: 1}); err != nil {
				t.Error(err)
			}
			for i := range uint64(each) {
				err := s.Write([]replicagroup.Write{{Group: g, Records: []order.Record{entry(i+1, fmt.Sprint(w, " ", i))}}}, true)
				if err != nil {
					t.Error(err)
				}
				if i%16 == 0 {
					if _, err := s.Replicas(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	all, err := reopen(t, dir, Options{Overlay: overlay}).Replicas()
	if err != nil || len(all) != writers {
		t.Fatalf("%d replicas, %v", len(all), err)
	}
	for w, r := range all {
		if len(r.Image.Entries) != each {
			t.Errorf("writer %d: %d entries", w, len(r.Image.Entries))
		}
		for i, e := range r.Image.Entries {
			if string(e.Data) != fmt.Sprint(w, " ", i) {
				t.Errorf("writer %d, entry %d: %s", w, i, e.Data)
			}
		}
	}
}

func TestAClosedStoreSaysSo(t *testing.T) {
	s, _ := fresh(t, Options{})
	mustCreate(t, s, group("a"), 1)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := uint64(1); ; i++ {
				// Writers race with Close and with each other, so entries may be gaps to them. They must end with the store.
				err := s.Write([]replicagroup.Write{{Group: group("a"), Records: []order.Record{state("s")}}}, i%8 == 0)
				if err != nil {
					if !errors.Is(err, replicagroup.ErrStore) {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	wg.Go(func() {
		for range 2 {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	_, err := s.Replicas()
	if !errors.Is(err, replicagroup.ErrStore) || !errors.Is(s.Retire(group("a")), replicagroup.ErrStore) {
		t.Errorf("closed store: %v", err)
	}
	if s.Err() != nil {
		t.Errorf("closing is no failure: %v", s.Err())
	}
}

func TestWhatIsTooLargeIsRefused(t *testing.T) {
	s, _ := fresh(t, Options{})
	if err := s.Create(replicagroup.Identity{Group: group("a"), Self: 1, Descriptor: make([]byte, DescriptorBytesMax+1)}); !errors.Is(err, replicagroup.ErrTooLarge) {
		t.Error(err)
	}
	mustCreate(t, s, group("a"), 1)
	// Many times the same half gigabyte is too much for one batch; nobody touches its pages.
	huge := order.Record{Kind: order.RecordState, Data: make([]byte, SnapshotBytesMax/2)}
	err := s.Write([]replicagroup.Write{{Group: group("a"), Records: []order.Record{huge, huge, huge}}}, true)
	if !errors.Is(err, replicagroup.ErrTooLarge) || !errors.Is(err, replicagroup.ErrStore) {
		t.Error(err)
	}
	if err := s.Create(replicagroup.Identity{Group: order.GroupID{Overlay: order.OverlayID{77}}, Self: 1}); !errors.Is(err, ErrForeign) {
		t.Errorf("a group of another overlay: %v", err)
	}
	write(t, s, group("a"), state("small")) // it lives on
}

// size returns how many bytes the files with these suffixes have.
func size(t testing.TB, dir string, suffixes ...string) (n int64) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		for _, suffix := range suffixes {
			if info, err := e.Info(); err == nil && strings.HasSuffix(e.Name(), suffix) {
				n += info.Size()
			}
		}
	}
	return n
}

// What is void gives its space back, without further writes.
func TestSpaceIsReclaimed(t *testing.T) {
	dir, o := filepath.Join(t.TempDir(), "store"), Options{Overlay: overlay, memtableBytes: 256 << 10, reclaimAfter: 50 * time.Millisecond}
	if err := Create(dir, overlay, order.StoreID{}); err != nil {
		t.Fatal(err)
	}
	s := reopen(t, dir, o)
	g, keep := group("a"), group("keep")
	mustCreate(t, s, g, 1)
	mustCreate(t, s, keep, 1)
	rng, data := newRandom(), make([]byte, 8<<10)
	total := 0
	for i := uint64(1); i <= 3000; i++ {
		rng.Read(data)
		recs := []order.Record{{Kind: order.RecordEntry, Index: i, Data: append([]byte{}, data...)}}
		if i%200 == 0 {
			recs = append(recs, order.Record{Kind: order.RecordSnapshot, Index: i - 10, Data: append([]byte{}, data...)})
		}
		total += len(data)
		if err := s.Write([]replicagroup.Write{{Group: g, Records: recs}}, false); err != nil {
			t.Fatal(err)
		}
	}
	write(t, s, keep, state("kept"))
	within := func(what string, limit int64) {
		t.Helper()
		deadline := time.Now().Add(time.Minute)
		for n := size(t, dir, ".sst"); n > limit; n = size(t, dir, ".sst") {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %d bytes of tables after %d were written, want %d at most", what, n, total, limit)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	within("with a short log", 6<<20)
	if err := s.Retire(g); err != nil {
		t.Fatal(err)
	}
	within("with nothing left", 64<<10)
	if n := size(t, dir, ".log"); n > 4<<20 {
		t.Errorf("%d bytes of logs", n)
	}
	if got := dump(t, s); !strings.Contains(got, "kept") || strings.Contains(got, g.String()) {
		t.Errorf("have %s", got)
	}
}
