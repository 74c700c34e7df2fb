package coherence

import (
	"testing"

	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

func TestAWrongGuessIsNotRepeatedAtOnce(t *testing.T) {
	ref := func(i byte) protocol.NodeRef { return protocol.NodeRef{ID: keyspace.NodeID{i}, Inc: 1} }
	from := func(k protocol.Kind, i byte) *protocol.Message {
		return &protocol.Message{Kind: k, From: protocol.At(ref(i))}
	}
	var g guess
	if n := g.take(ref(1)); !n.IsZero() {
		t.Errorf("guesses %v before it has seen anybody", n)
	}
	g.learn(from(protocol.Copy, 2))
	g.learn(&protocol.Message{Kind: protocol.Invalidate, From: protocol.At(ref(3))})
	if n := g.take(ref(1)); n != ref(2) {
		t.Errorf("guesses %v, and %v sent the last value", n, ref(2))
	}
	if n := g.take(ref(2)); !n.IsZero() {
		t.Errorf("%v asks itself", n)
	}
	g.learn(from(protocol.NoCopy, 3)) // of an object that was known to be elsewhere
	if n := g.take(ref(1)); n != ref(2) {
		t.Errorf("guesses %v", n)
	}
	g.learn(from(protocol.NoCopy, 2))
	for i := range guessAgain {
		if n := g.take(ref(1)); !n.IsZero() {
			t.Errorf("guesses %v, %d reads after it was wrong", n, i)
		}
	}
	if n := g.take(ref(1)); n != ref(2) {
		t.Errorf("guesses %v", n)
	}
}
