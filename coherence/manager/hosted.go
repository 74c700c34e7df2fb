package manager

// Blank reports whether the manager knows nothing but its epoch, so that a host need not keep it: one that is made when somebody asks
// again does the same. (Of suspects it may be told again.)
func (m *Manager) Blank() bool {
	return m.state == Idle && m.owner.IsZero() && len(m.pending) == 0 && !m.touched && !m.asked && m.reports == 0
}

// Waits reports whether a [Manager.Resend] would say something, so that a host calls it now and then.
func (m *Manager) Waits() bool { return m.state != Idle || m.asked }

// Copies returns how many nodes may have a copy beside the owner.
func (m *Manager) Copies() int { return len(m.copySet) }

// Pending returns how many requests wait until what is under way is done.
func (m *Manager) Pending() int { return len(m.pending) }
