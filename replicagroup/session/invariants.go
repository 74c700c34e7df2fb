package session

import "fmt"

// check tests every invariant of the table's state. It walks the whole state: tests call it after every step.
func (t *Table) check() error {
	if len(t.byEnd) != len(t.sessions) || len(t.ended) != len(t.isEnded) || len(t.ended) > EndedMax {
		return fmt.Errorf("%d sessions, %d deadlines; %d ended, %d known", len(t.sessions), len(t.byEnd), len(t.ended), len(t.isEnded))
	}
	peers := 0
	for _, n := range t.perPeer {
		peers += n
		if n < 1 || n > SessionsPerPeerMax {
			return fmt.Errorf("%d sessions of one peer", n)
		}
	}
	if peers != len(t.sessions) || peers > SessionsMax {
		return fmt.Errorf("%d sessions, %d by peer", len(t.sessions), peers)
	}
	for i, s := range t.byEnd {
		if s.at != i || t.sessions[s.id] != s || i > 0 && t.byEnd.Less(i, (i-1)/2) {
			return fmt.Errorf("session %v at place %d of the deadlines", s.id, i)
		}
		if _, ended := t.isEnded[s.id]; ended {
			return fmt.Errorf("session %v is open and has ended", s.id)
		}
		bytes := 0
		for seq, r := range s.results {
			if bytes += len(r.data); seq <= s.acked || seq-s.acked > WindowSize {
				return fmt.Errorf("session %v: result %d with %d acknowledged", s.id, seq, s.acked)
			}
		}
		if bytes != s.bytes || bytes >= ResultsBytesMax+ResultBytesMax {
			return fmt.Errorf("session %v: %d bytes of results, counted %d", s.id, bytes, s.bytes)
		}
	}
	return nil
}
