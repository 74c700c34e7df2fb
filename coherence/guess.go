package coherence

import (
	"sync"

	"latchkey/coherence/protocol"
)

// guessAgain is how many objects a node reads for the first time after a wrong guess, before it guesses again.
const guessAgain = 8

// guess is whom a node asks about an object that it knows nothing of: who sent it the last one. Objects that are used together are often made together.
// A wrong guess costs two messages, and is followed by some reads without one.
type guess struct {
	mu   sync.Mutex
	node protocol.NodeRef
	wait int // reads that go without
}

// take returns whom to ask, nobody for the object's manager.
func (g *guess) take(self protocol.NodeRef) protocol.NodeRef {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.wait > 0 {
		g.wait--
		return protocol.NodeRef{}
	}
	if g.node.ID == self.ID {
		return protocol.NodeRef{}
	}
	return g.node
}

// learn sees what came of it.
func (g *guess) learn(m *protocol.Message) {
	if m.From.Party != protocol.Node || m.Kind != protocol.Copy && m.Kind != protocol.NoCopy && m.Kind != protocol.Refused {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if m.Kind == protocol.Copy {
		g.node = m.From.Node
	} else if m.From.Node.ID == g.node.ID {
		g.wait = guessAgain
	}
}
