package manager

import (
	"bytes"
	"errors"
	"testing"

	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

var config = Config{App: keyspace.Key{0xaa}, Object: keyspace.Key{1}, Epoch: 1, Life: 1}

func ref(i byte) protocol.NodeRef { return protocol.NodeRef{ID: keyspace.NodeID{i}, Inc: 1} }

// history makes a manager go through every state, with readers, a queue and suspicions, and calls f in each.
func history(f func(*Manager)) {
	m := New(config)
	give := func(msg protocol.Message) {
		msg.Epoch = 1
		if msg.From.Party == protocol.Nobody {
			msg.From = protocol.At(msg.Requester)
		}
		m.Step(Event{Kind: Receive, Msg: &msg}, nil)
		f(m)
	}
	f(m)
	give(protocol.Message{Kind: protocol.Write, Requester: ref(1), Seq: 1})
	give(protocol.Message{Kind: protocol.Touched, From: protocol.Address{Party: protocol.AppManager}, Life: 1, Seq: 1})
	give(protocol.Message{Kind: protocol.WriteAck, Requester: ref(1)})
	give(protocol.Message{Kind: protocol.Read, Requester: ref(2), Seq: 1})
	give(protocol.Message{Kind: protocol.Read, Requester: ref(3), Seq: 300})
	give(protocol.Message{Kind: protocol.Write, Requester: ref(4), Seq: 1})
	give(protocol.Message{Kind: protocol.Read, Requester: ref(5), Seq: 1})
	m.Step(Event{Kind: Suspect, Node: ref(3)}, nil)
	m.Step(Event{Kind: Suspect, Node: ref(6)}, nil)
	give(protocol.Message{Kind: protocol.ReadAck, Requester: ref(2), Seq: 1})
	give(protocol.Message{Kind: protocol.ReadAck, Requester: ref(3), Seq: 300})
	give(protocol.Message{Kind: protocol.WriteConfirm, Requester: ref(4), LastInv: 1})
	give(protocol.Message{Kind: protocol.InvalidateAck, Requester: ref(2), LastInv: 1})
	give(protocol.Message{Kind: protocol.InvalidateAck, Requester: ref(3), LastInv: 1})
	give(protocol.Message{Kind: protocol.Refused, From: protocol.At(protocol.NodeRef{ID: ref(1).ID, Inc: 2})})
}

func TestSnapshotsComeBackAsTheyWere(t *testing.T) {
	states := map[State]bool{}
	history(func(m *Manager) {
		states[m.state] = true
		again, err := Restore(config, m.Snapshot())
		if err != nil || !bytes.Equal(again.Snapshot(), m.Snapshot()) || again.String() != m.String() {
			t.Errorf("%v becomes %v: %v", m, again, err)
		}
		whole := m.Snapshot()
		for i := range whole { // cut off anywhere
			if _, err := Restore(config, whole[:i]); !errors.Is(err, protocol.ErrState) {
				t.Errorf("%d bytes of %d: %v", i, len(whole), err)
			}
		}
		for what, b := range map[string][]byte{"a byte more": append(whole[:len(whole):len(whole)], 0), "another version": append([]byte{protocol.StateVersion + 1}, whole[1:]...)} {
			if _, err := Restore(config, b); !errors.Is(err, protocol.ErrState) {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
	if len(states) != 5 {
		t.Errorf("states %v", states)
	}
}

func FuzzRestore(f *testing.F) {
	history(func(m *Manager) { f.Add(m.Snapshot()) })
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Restore(config, b)
		if err != nil {
			if !errors.Is(err, protocol.ErrState) {
				t.Errorf("%v", err)
			}
			return
		}
		if !bytes.Equal(m.Snapshot(), b) {
			t.Errorf("%x is another form of %x", b, m.Snapshot())
		}
		history(func(other *Manager) { // it goes on without harm
			for _, out := range other.Resend(nil) {
				if out.To.Party == protocol.Node {
					out.From, out.To = out.To, out.From
					m.Step(Event{Kind: Receive, Msg: &out}, nil)
				}
			}
		})
		m.Resend(nil)
	})
}
