package protocol

import "slices"

// Suspects is what a manager has been told about nodes. The zero value is empty. It holds at most [NodesMax].
type Suspects struct {
	list []suspicion // by node
}

type suspicion struct {
	node  NodeRef
	final bool
}

func (s *Suspects) at(n NodeRef) (int, bool) {
	return slices.BinarySearchFunc(s.list, n, func(q suspicion, n NodeRef) int { return q.node.Compare(n) })
}

// Add notes a suspicion, and reports whether it is new or has become final. A final one is no opinion: a later incarnation has been seen (R15).
func (s *Suspects) Add(n NodeRef, final bool) bool {
	i, ok := s.at(n)
	switch {
	case ok && (s.list[i].final || !final), !ok && len(s.list) >= NodesMax:
		return false
	case ok:
		s.list[i].final = true
	default:
		s.list = slices.Insert(s.list, i, suspicion{n, final})
	}
	return true
}

// Remove takes an opinion back. A final suspicion stays.
func (s *Suspects) Remove(n NodeRef) {
	if i, ok := s.at(n); ok && !s.list[i].final {
		s.list = slices.Delete(s.list, i, i+1)
	}
}

// Has reports whether n is suspected.
func (s *Suspects) Has(n NodeRef) bool {
	_, ok := s.at(n)
	return ok
}

// Final reports whether n is suspected for good.
func (s *Suspects) Final(n NodeRef) bool {
	i, ok := s.at(n)
	return ok && s.list[i].final
}

// Keep forgets those for which needed reports false.
func (s *Suspects) Keep(needed func(NodeRef) bool) {
	s.list = slices.DeleteFunc(s.list, func(q suspicion) bool { return !needed(q.node) })
}

// Full reports whether nobody else can be added.
func (s *Suspects) Full() bool { return len(s.list) >= NodesMax }

// Nodes lists them, in order. The caller does not change the result.
func (s *Suspects) Nodes() []NodeRef {
	out := make([]NodeRef, len(s.list))
	for i, q := range s.list {
		out[i] = q.node
	}
	return out
}

// Opinions lists those that may turn out to be well, in order.
func (s *Suspects) Opinions() []NodeRef {
	var out []NodeRef
	for _, q := range s.list {
		if !q.final {
			out = append(out, q.node)
		}
	}
	return out
}

// Empty reports whether nobody is suspected.
func (s *Suspects) Empty() bool { return len(s.list) == 0 }

// Clone returns a copy that shares nothing.
func (s *Suspects) Clone() Suspects { return Suspects{slices.Clone(s.list)} }

// Append writes them to a state's canonical form.
func (s *Suspects) Append(b []byte) []byte {
	for _, q := range s.list {
		b = AppendBools(q.node.Append(append(b, 1)), q.final)
	}
	return append(b, 0)
}
