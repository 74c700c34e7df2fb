package testnet

import (
	"sync"
	"testing"
)

// Testnets that come up at once are given different ports, though none of them listens yet.
func TestTestnetsOfAProcessShareNoPort(t *testing.T) {
	t.Parallel()
	const testnets, each = 8, 16
	var (
		mu   sync.Mutex
		wg   sync.WaitGroup
		seen = map[int]bool{}
	)
	for range testnets {
		wg.Go(func() {
			for range each {
				port, err := freePort()
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if seen[port] {
					t.Errorf("port %d is given twice", port)
				}
				seen[port] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}
