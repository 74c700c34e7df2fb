// Package invariant asserts what a piece of latchkey holds about its own state.
//
// It is never used on input from a peer, a caller or a file: those are validated and refused. A failed invariant means
// that our own code is wrong, and a node that stops is better than two owners (house style, section 8).
package invariant

import "fmt"

// Check panics with what and the printed state when ok is false. The arguments should be cheap: they are evaluated on
// every call. What they are is a type parameter so that a check that holds allocates nothing.
func Check[T any](ok bool, what string, state T) {
	if !ok {
		panic(fmt.Sprintf("latchkey: broken invariant: %s: %+v", what, state))
	}
}
