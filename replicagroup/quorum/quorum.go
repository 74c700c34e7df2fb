// Package quorum is the arithmetic of replica groups: how many members make a quorum, and how many voters an overlay of a
// given size can afford (replica-groups.md sections 3.5 and 4.1). Pure functions, standard library only.
package quorum

// Majority returns the smallest number of n voters such that any two such sets share one.
func Majority(n int) int { return n/2 + 1 }

// Voters returns how many voters a group has when it should survive f crashes and the overlay has n nodes: the largest odd
// number that is at most 2f+1 and at most n. It is 0 only when n < 1.
func Voters(n, f int) int {
	v := min(n, 2*f+1)
	if v < 1 {
		return 0
	}
	return v - (v+1)%2
}

// Tolerated returns how many of n voters may be down while a majority is left.
func Tolerated(n int) int { return n - Majority(n) }
