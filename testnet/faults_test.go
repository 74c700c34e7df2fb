package testnet

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

func TestRulesCutEverySideOffFromEveryOther(t *testing.T) {
	f, err := faults{latency: time.Second}.partition(6, [][]int{{0, 3}, {4, 4}})
	if err != nil {
		t.Fatal(err)
	}
	want := []int{0, 2, 2, 0, 1, 2, 2} // a later peer is with those that were not named
	var names []string
	for i := range want {
		names = append(names, fmt.Sprint("peer ", i))
	}
	for i, side := range want {
		if f.sideOf(i) != side {
			t.Errorf("peer %d is on side %d, want %d", i, f.sideOf(i), side)
		}
		r := f.rules(i, names)
		for j := range want {
			if slices.Contains(r.Blocked, names[j]) != (side != want[j]) {
				t.Errorf("peer %d blocks %v", i, r.Blocked)
			}
		}
		if r.Latency != time.Second {
			t.Errorf("latency %v", r.Latency)
		}
	}
	if r := f.heal().rules(0, names); len(r.Blocked) > 0 || r.Latency != time.Second {
		t.Errorf("healed: %+v", r)
	}
}
