package disk

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"latchkey/replicagroup"
	"latchkey/replicagroup/order"
)

var scripts = flag.Int("disk.scripts", 1, "how many scripts to crash, and to run into errors, at every step")

// begin makes a store and opens it; a step of both may fail.
func (p *play) begin(o Options) (*Store, error) {
	if err := create("/store", order.StoreID{9}, o.fill()); err != nil {
		return nil, err
	}
	p.created.Store(true)
	return Open("/store", o)
}

// survivor opens what a crash left and checks it. A store whose creation was cut off holds nothing and can be created again.
func survivor(o Options, states []string, created bool, synced, begun int64) error {
	s, err := Open("/store", o)
	if errors.Is(err, fs.ErrNotExist) && !created {
		s, err = new(play).begin(o)
	}
	if err != nil {
		return err
	}
	defer s.Close()
	if s.ID() != (order.StoreID{9}) {
		return fmt.Errorf("store id %v", s.ID())
	}
	return between(s, states, synced, begun)
}

// The power fails before every write, sync, creation, renaming and removal of a script, on its way through logs, flushes and
// compactions. Of what was not synced, nothing, some or all reached the disk. Whatever was synced is there, nothing is there
// in part or out of order, and what comes after the crash can crash again.
func TestPowerFailsAtEveryStep(t *testing.T) {
	n := 30
	if testing.Short() {
		n = 15
	}
	for seed := range uint64(*scripts) {
		steps, states := script(seed, n)
		disk := vfs.NewCrashableMem()
		rng := rand.New(rand.NewPCG(seed, 3))
		var p play
		var mu sync.Mutex
		var crashes, reopened int
		crash := func(op errorfs.Op) error {
			if op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			crashes++
			for _, percent := range []int{0, 50, 100} {
				created, synced := p.created.Load(), p.synced.Load()
				left := disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
				begun := p.begun.Load()
				o := small.on(left)
				if err := survivor(o, states, created, synced, begun); err != nil {
					t.Errorf("seed %d, crash %d at %v of %s, %d%% of the unsynced kept: %v", seed, crashes, op.Kind, op.Path, percent, err)
				}
				if reopened++; reopened%7 == 0 { // the start after the crash crashes, too
					again := left.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
					o.fs = again
					if err := survivor(o, states, created, synced, begun); err != nil {
						t.Errorf("seed %d, second crash after %d: %v", seed, crashes, err)
					}
				}
			}
			return nil
		}
		o := small.on(errorfs.Wrap(disk, errorfs.InjectorFunc(crash)))
		s, err := p.begin(o)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.run(s, steps); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		t.Logf("seed %d: %d crashes, %d starts", seed, crashes, reopened)
		if crashes < 2*n {
			t.Errorf("only %d crashes in %d steps", crashes, n)
		}
	}
}

// The disk fails at every operation of a script in turn, once or for good, reading or writing. The store then fails every
// call, nothing reaches the disk any more, and a later start finds all that was reported as stored.
func TestDiskFailsAtEveryStep(t *testing.T) {
	n := 30
	if testing.Short() {
		n = 10
	}
	for _, kind := range []struct {
		name   string
		cause  error
		hits   func(k errorfs.OpKind) bool
		onward bool
	}{
		{"once", errorfs.ErrInjected, func(errorfs.OpKind) bool { return true }, false},
		{"full", syscall.ENOSPC, func(k errorfs.OpKind) bool { return k.ReadOrWrite() == errorfs.OpIsWrite }, true},
	} {
		t.Run(kind.name, func(t *testing.T) {
			for seed := range uint64(*scripts) {
				steps, states := script(100+seed, n)
				for at := 0; ; at++ {
					disk := vfs.NewCrashableMem()
					var mu sync.Mutex
					count, hit := 0, errorfs.Op{}
					failing := errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
						// Preallocation is a hint, disk usage is for pacing, a lock that cannot be had is told as one.
						if !kind.hits(op.Kind) || op.Kind == errorfs.OpFilePreallocate || op.Kind == errorfs.OpGetDiskUsage || op.Kind == errorfs.OpLock {
							return nil
						}
						mu.Lock()
						defer mu.Unlock()
						count++
						if count-1 == at || kind.onward && count > at {
							if hit.Path == "" {
								hit = op
							}
							return kind.cause
						}
						return nil
					}))
					o := small.on(failing)
					var p play
					s, err := p.begin(o)
					if err == nil {
						err = p.run(s, steps)
						if err != nil {
							checkFailed(t, s, kind.cause)
						}
						if closing := s.Close(); err == nil {
							err = closing
						}
					}
					mu.Lock()
					over, op := count <= at, hit
					mu.Unlock()
					where := fmt.Sprintf("%s, seed %d, operation %d, %v of %s", kind.name, seed, at, op.Kind, op.Path)
					if over {
						if err != nil {
							t.Fatalf("%s: nothing failed, yet %v", where, err)
						}
						t.Logf("%s, seed %d: %d operations", kind.name, seed, at)
						break
					}
					if err != nil && (!errors.Is(err, replicagroup.ErrStore) || !errors.Is(err, kind.cause)) {
						t.Errorf("%s: %v", where, err)
					}
					if err == nil && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
						t.Errorf("%s: nobody noticed", where)
					}
					synced, begun := p.synced.Load(), p.begun.Load()
					for _, left := range []*vfs.MemFS{disk.CrashClone(vfs.CrashCloneCfg{}), disk} {
						if err := survivor(small.on(left), states, p.created.Load(), synced, begun); err != nil {
							t.Errorf("%s: %v", where, err)
						}
					}
					if t.Failed() {
						return
					}
				}
			}
		})
	}
}

// checkFailed checks that a failed store does nothing any more and always says why.
func checkFailed(t *testing.T, s *Store, cause error) {
	t.Helper()
	g := group("0")
	_, replicas := s.Replicas()
	_, graves := s.Graves()
	_, exhume := s.Exhume(g, 1)
	for what, err := range map[string]error{
		"Write": s.Write(nil, true), "Create": s.Create(replicagroup.Identity{Group: g, Self: 1000}),
		"Retire": s.Retire(g), "Bury": s.Bury(g), "Purge": s.Purge(g, 1), "Replicas": replicas, "Graves": graves, "Exhume": exhume, "Err": s.Err(),
	} {
		if !errors.Is(err, replicagroup.ErrStore) || !errors.Is(err, cause) {
			t.Errorf("%s of a failed store: %v", what, err)
		}
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: more than one line: %q", what, err)
		}
	}
	select {
	case <-s.Failed():
	default:
		t.Error("Failed is not closed")
	}
}
