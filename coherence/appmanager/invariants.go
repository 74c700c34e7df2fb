package appmanager

import (
	"fmt"
	"maps"

	"latchkey/coherence/protocol"
)

// Check tests what the fields' comments promise. Tests call it after every step.
func (m *Manager) Check() error {
	saves := len(m.cutAt.Objects)+len(m.cutAt.Threads) > 0
	switch {
	case m.state > Restarting || m.epoch == 0:
		return fmt.Errorf("appmanager: state %d of epoch %d", uint8(m.state), m.epoch)
	case len(m.reads) > 0 && m.state != Reading, saves && m.state != Saving:
		return fmt.Errorf("appmanager: %d objects are read and %d saved in %v", len(m.reads), len(m.cutAt.Objects), m.state)
	case m.fresh != m.unsaved() || m.fresh+len(m.manifest.Objects) > protocol.ObjectsMax:
		return fmt.Errorf("appmanager: %d objects are new, said to be %d, beside %d", m.unsaved(), m.fresh, len(m.manifest.Objects))
	case len(m.threads) > protocol.ThreadsMax || len(m.added)+len(m.manifest.Threads) > protocol.ThreadsMax:
		return fmt.Errorf("appmanager: %d threads, %d and %d after a restart", len(m.threads), len(m.added), len(m.manifest.Threads))
	}
	again := Manager{id: m.id, threads: m.threads}
	if again.recount(); again.counts != m.counts || !maps.Equal(again.at, m.at) {
		return fmt.Errorf("appmanager: threads are miscounted: %+v for %+v", m.counts, again.counts)
	}
	unread := 0
	for o, x := range m.reads {
		if !x.done {
			unread++
		}
		if _, ok := m.touched[o]; !ok || x.withheld > 0 && !x.done {
			return fmt.Errorf("appmanager: object %x is read, touched %v, withheld %d", o[:4], ok, x.withheld)
		}
	}
	if unread != m.unread {
		return fmt.Errorf("appmanager: %d objects are to be read, said to be %d", unread, m.unread)
	}
	for id := range m.over {
		if _, ok := m.threads[id]; ok {
			return fmt.Errorf("appmanager: %v has ended, and has not", id)
		}
	}
	return nil
}
