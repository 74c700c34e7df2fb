package disk

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"latchkey/replicagroup"
	"latchkey/replicagroup/order"
)

func newRandom() *rand.ChaCha8 { return rand.NewChaCha8([32]byte{1}) }

// manyGroups makes a store on the file system with n groups, each with a state, a snapshot and four entries.
func manyGroups(b *testing.B, n int) (dir string, groups []order.GroupID) {
	dir = filepath.Join(b.TempDir(), "store")
	if err := Create(dir, overlay, order.StoreID{}); err != nil {
		b.Fatal(err)
	}
	s := reopen(b, dir, Options{Overlay: overlay})
	defer s.Close()
	for i := range n {
		g := group(fmt.Sprint(i))
		g.Gen = uint64(i)
		groups = append(groups, g)
	}
	work := make(chan order.GroupID)
	done := make(chan error)
	for range 64 { // creations share syncs
		go func() {
			var err error
			for g := range work {
				if e := s.Create(replicagroup.Identity{Group: g, Self: 1, Descriptor: make([]byte, 300)}); e != nil {
					err = e
				}
			}
			done <- err
		}()
	}
	for _, g := range groups {
		work <- g
	}
	close(work)
	for range 64 {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	data := make([]byte, 1024)
	for _, g := range groups {
		recs := []order.Record{{Kind: order.RecordState, Data: data[:48]}, {Kind: order.RecordSnapshot, Index: 10, Data: data}}
		for i := range uint64(4) {
			recs = append(recs, order.Record{Kind: order.RecordEntry, Index: 11 + i, Data: data[:150]})
		}
		if err := s.Write([]replicagroup.Write{{Group: g, Records: recs}}, false); err != nil {
			b.Fatal(err)
		}
	}
	return dir, groups
}

// One entry of 150 bytes for each group, every 1,000 a snapshot, so that the log stays short.
func BenchmarkWrite(b *testing.B) {
	for _, n := range []int{1, 64} {
		for _, sync := range []bool{false, true} {
			b.Run(fmt.Sprintf("groups=%d/sync=%v", n, sync), func(b *testing.B) {
				dir, groups := manyGroups(b, n)
				s := reopen(b, dir, Options{Overlay: overlay})
				defer s.Close()
				if _, err := s.Replicas(); err != nil {
					b.Fatal(err)
				}
				data := make([]byte, 150)
				batch := make([]replicagroup.Write, n)
				index := uint64(14)
				b.ReportAllocs()
				b.ResetTimer()
				for b.Loop() {
					index++
					for i, g := range groups {
						recs := []order.Record{{Kind: order.RecordEntry, Index: index, Data: data}}
						if index%1000 == 0 {
							recs = append(recs, order.Record{Kind: order.RecordSnapshot, Index: index - 100, Data: data})
						}
						batch[i] = replicagroup.Write{Group: g, Records: recs}
					}
					if err := s.Write(batch, sync); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// Opening a store of 10,000 groups and reading all of them.
func BenchmarkReopen(b *testing.B) {
	dir, groups := manyGroups(b, 10000)
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		s, err := Open(dir, Options{Overlay: overlay})
		if err != nil {
			b.Fatal(err)
		}
		all, err := s.Replicas()
		if err != nil || len(all) != len(groups) {
			b.Fatalf("%d replicas, %v", len(all), err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
