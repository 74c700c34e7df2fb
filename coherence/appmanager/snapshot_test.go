package appmanager

import (
	"bytes"
	"errors"
	"testing"

	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

var config = Config{App: keyspace.Key{0xaa}}

func ref(i byte) protocol.NodeRef { return protocol.NodeRef{ID: keyspace.NodeID{i}, Inc: 1} }

// history makes a manager go through every state, and calls f in each.
func history(f func(*Manager)) {
	m := New(config)
	give := func(msg protocol.Message) {
		msg.Epoch = m.epoch
		m.Step(Event{Kind: Receive, Msg: &msg}, nil)
		f(m)
	}
	step := func(ev Event) {
		m.Step(ev, nil)
		f(m)
	}
	object := keyspace.Key{1}
	reader := func() protocol.Address { return protocol.Address{Party: protocol.AppManager, Node: m.reader()} }
	f(m)
	for i := byte(1); i <= 3; i++ {
		give(protocol.Message{Kind: protocol.Create, From: protocol.At(ref(i)), Thread: protocol.ThreadID{i}, Node: ref(i), Hash: protocol.Hash{i}, Flag: i == 3})
		give(protocol.Message{Kind: protocol.Started, From: protocol.At(ref(i)), Thread: protocol.ThreadID{i}})
	}
	give(protocol.Message{Kind: protocol.Create, From: protocol.At(ref(1)), Thread: protocol.ThreadID{4}, Node: ref(1)})
	give(protocol.Message{Kind: protocol.Terminated, From: protocol.At(ref(1)), Thread: protocol.ThreadID{4}})
	give(protocol.Message{Kind: protocol.Touched, Object: object, Life: 1, Seq: 1})
	give(protocol.Message{Kind: protocol.Touched, Object: keyspace.Key{2}, Life: 2, Seq: 300})
	give(protocol.Message{Kind: protocol.Query, Object: object, Requester: ref(2), Ack: protocol.InvalidateAck, LastInv: 4})
	give(protocol.Message{Kind: protocol.RestartReq, Object: object, Requester: ref(9)})
	step(Event{Kind: Begin})
	for i := byte(1); i <= 2; i++ {
		give(protocol.Message{Kind: protocol.Stopped, From: protocol.At(ref(i)), Thread: protocol.ThreadID{i}, Checkpoint: 1, Hash: protocol.Hash{i, 1}})
	}
	give(protocol.Message{Kind: protocol.Copy, To: reader(), Object: object, Seq: 1, Hash: protocol.Hash{7}})
	give(protocol.Message{Kind: protocol.Invalidate, To: reader(), Object: object, LastInv: 5})
	give(protocol.Message{Kind: protocol.NoCopy, To: reader(), Object: keyspace.Key{2}, Life: 2})
	step(Event{Kind: Saved, Checkpoint: 1, Hash: protocol.Hash{8}})
	give(protocol.Message{Kind: protocol.Migrate, From: protocol.At(ref(1)), Thread: protocol.ThreadID{1}, Node: ref(2)})
	step(Event{Kind: Suspect, Node: ref(9)})
	step(Event{Kind: Suspect, Node: ref(1)})
	step(Event{Kind: Place, Epoch: 2, Places: []Placement{{protocol.ThreadID{1}, ref(2)}}})
}

func TestSnapshotsComeBackAsTheyWere(t *testing.T) {
	states := map[State]bool{}
	history(func(m *Manager) {
		states[m.state] = true
		if err := m.Check(); err != nil {
			t.Error(err)
		}
		again, err := Restore(config, m.Snapshot())
		if err != nil || !bytes.Equal(again.Snapshot(), m.Snapshot()) || again.String() != m.String() {
			t.Fatalf("%v becomes %v: %v", m, again, err)
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
		m.Resend(nil) // it goes on without harm
		m.Step(Event{Kind: Begin}, nil)
		m.Step(Event{Kind: Suspect, Node: ref(1)}, nil)
		if err := m.Check(); err != nil {
			t.Error(err)
		}
	})
}
