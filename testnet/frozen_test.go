package testnet

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"latchkey/node/api"
)

// A leader that is frozen is silent: no connection ends. Nobody would notice before the election time-out, nor clients before
// their calls time out, if it were not watched.
func TestAGroupGoesOnSoonAfterItsLeaderIsFrozen(t *testing.T) {
	t.Parallel()
	for _, o := range []Options{{N: 5, F: 2}, {N: 7, F: 1}} {
		t.Run(fmt.Sprintf("%d peers, f %d", o.N, o.F), func(t *testing.T) {
			n := up(t, o)
			for round := range 3 {
				name := fmt.Sprintf("lock %d", round)
				for i := range n.N() {
					takeLock(t, n, i, name)
				}
				var info api.KeyInfo
				until(t, "the leader is known", func() (known bool) {
					var err error
					info, err = peerAt(t, n, 0).Node().Key(short(t), name)
					return err == nil && info.Group.Leader != ""
				})
				leader := n.IndexOf(info.Group.Leader)
				suspicions := func(i int) uint64 { return peerAt(t, n, i).Node().Overlay().Stats().Suspicions }
				before := make([]uint64, n.N())
				for i := range before {
					before[i] = suspicions(i)
				}
				must(t, n.Partition(short(t), []int{leader}))
				start := time.Now()
				took := make([]time.Duration, n.N())
				var asked sync.WaitGroup
				for i := range n.N() {
					if i != leader {
						asked.Go(func() {
							takeLock(t, n, i, name)
							took[i] = time.Since(start)
						})
					}
				}
				asked.Wait()
				member := func(i int) bool {
					return slices.ContainsFunc(info.Group.Members, func(p string) bool { return n.IndexOf(p) == i })
				}
				var voters, others []time.Duration
				for i, d := range took {
					switch {
					case i == leader:
					case member(i):
						until(t, "a voter suspects its leader", func() bool { return suspicions(i) > before[i] })
						voters = append(voters, d.Round(time.Millisecond))
					default:
						others = append(others, d.Round(time.Millisecond))
					}
				}
				t.Logf("the lock was had through voters after %v, through others after %v", voters, others)
				must(t, n.Heal(short(t)))
				must(t, n.WaitReady(short(t)))
			}
		})
	}
}
