package main

import "testing"

// However much is in use, the heap grows by heapRoom or by half of what it then is, and never beyond both.
func TestTheHeapHasRoom(t *testing.T) {
	for live, want := range map[uint64]int{0: 600, 1 << 20: 600, 4 << 20: 600, 8 << 20: 300, 12 << 20: 200, heapRoom: 100, 1 << 30: 100} {
		if got := heapPercent(live, false); got != want {
			t.Errorf("%d MiB in use: %d %%, want %d", live>>20, got, want)
		}
		if live > heapRoom {
			want = startPercent
		}
		if got := heapPercent(live, true); got != want {
			t.Errorf("%d MiB in use at the start: %d %%, want %d", live>>20, got, want)
		}
	}
}
