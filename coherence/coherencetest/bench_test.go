package coherencetest

import (
	"testing"

	"latchkey/coherence/cachedcopy"
	"latchkey/coherence/manager"
	"latchkey/coherence/protocol"
)

// BenchmarkWrite is what a write that moves the object costs the automata: two nodes take it from each other in turn. Messages are counted.
func BenchmarkWrite(b *testing.B) {
	om := manager.New(manager.Config{App: appKey, Object: objectKey(1), Epoch: 1, Life: 1})
	var copies [2]*cachedcopy.Copy
	for i := range copies {
		copies[i] = cachedcopy.New(cachedcopy.Config{
			Self: protocol.NodeRef{ID: nodeID(i + 1), Inc: 1}, App: appKey, Object: objectKey(1), Epoch: 1, Threads: true,
		})
	}
	var net, msgs []protocol.Message
	var acts []cachedcopy.Action
	sent := 0
	step := func(i int, ev cachedcopy.Event) {
		acts = copies[i].Step(ev, acts[:0])
		for j := range acts {
			if acts[j].Kind == cachedcopy.Send {
				net = append(net, acts[j].Msg)
			}
		}
	}
	write := func(i int) {
		step(i, cachedcopy.Event{Kind: cachedcopy.WriteFault})
		for at := 0; at < len(net); at++ {
			m := net[at]
			switch m.To.Party {
			case protocol.ObjectManager:
				msgs = om.Step(manager.Event{Kind: manager.Receive, Msg: &m}, msgs[:0])
				net = append(net, msgs...)
			case protocol.AppManager: // it says yes
				m.From, m.To = m.To, m.From
				net = append(net, m)
			default:
				if m.Kind == protocol.FirstTouch {
					m.Value = cells[0]
				}
				step(nodeOf(m.To.Node), cachedcopy.Event{Kind: cachedcopy.Receive, Msg: &m})
			}
		}
		sent += len(net)
		net = net[:0]
		if !copies[i].Store(cells[1]) {
			b.Fatal("no right to write")
		}
	}
	write(0)
	sent = 0
	b.ReportAllocs()
	for n := 1; b.Loop(); n++ {
		write(n % 2)
	}
	b.ReportMetric(float64(sent)/float64(b.N), "messages/op")
}
