package quorum

import "testing"

func TestVotersOfSmallOverlays(t *testing.T) {
	for _, c := range []struct{ n, f, want int }{
		{0, 1, 0}, {1, 0, 1}, {1, 2, 1}, {2, 2, 1}, {3, 2, 3}, {4, 2, 3}, {5, 2, 5}, {7, 1, 3}, {7, 3, 7}, {1000, 2, 5},
	} {
		if got := Voters(c.n, c.f); got != c.want {
			t.Errorf("Voters(%d, f=%d) = %d, want %d", c.n, c.f, got, c.want)
		}
	}
}

func TestAnyTwoMajoritiesMeet(t *testing.T) {
	for n := 1; n < 50; n++ {
		if m := Majority(n); 2*m <= n || 2*(m-1) > n {
			t.Errorf("Majority(%d) = %d: two need not share a voter, or it is not the smallest", n, m)
		}
		if Tolerated(n)+Majority(n) != n {
			t.Errorf("Tolerated(%d) = %d", n, Tolerated(n))
		}
	}
}
