package pb

import (
	"fmt"
	"testing"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/lockservice/sigma"
)

// BenchmarkHandover replaces one of three voters of a group in which so many names are held, and has somebody ask for two of them at once:
// their holder claims one, another wants a free one. What is sent arrives in the next round, by its bytes. It tells after how many one-way
// delays both are granted by a majority, and after how many everything is settled.
func BenchmarkHandover(b *testing.B) {
	for _, names := range []int{1_000, 100_000} {
		b.Run(fmt.Sprint(names), func(b *testing.B) {
			for range b.N {
				handOver(b, names)
			}
		})
	}
}

type hop struct {
	from, to keyspace.NodeID
	data     []byte
}

func handOver(b *testing.B, names int) {
	const ttl = time.Minute
	b.StopTimer()
	node := func(i byte) keyspace.NodeID { return keyspace.NodeID{i} }
	log := sigma.LogState{
		Descriptor: sigma.Descriptor{View: sigma.ViewID{Num: 1}, Members: []keyspace.NodeID{node(1), node(2), node(3)}},
		Ceil:       sigma.Block, Cap: sigma.CapFor(ttl),
	}
	voters := make(map[keyspace.NodeID]*sigma.Replica)
	for i := byte(1); i <= 4; i++ {
		voters[node(i)] = sigma.NewReplica(sigma.ReplicaConfig{Self: node(i), Inc: 1, Drift: automaton.DriftDefault, TTLMin: 1, TTLMax: ttl}, log)
	}
	name := func(i int) string { return fmt.Sprintf("a lock with a name %07d", i) }
	req := func(i int) sigma.Req {
		return sigma.Req{Session: sigma.Session{1, byte(i), byte(i >> 8), byte(i >> 16)}, Seq: 1}
	}
	who := func(i int) keyspace.NodeID { return node(byte(10 + i/sigma.RequestsPerPeerMax)) }
	for i := range names {
		m := sigma.Message{Kind: sigma.Request, View: log.View, Name: name(i), Req: req(i), TTL: ttl}
		for v := byte(1); v <= 3; v++ {
			voters[node(v)].Step(sigma.Event{Kind: sigma.Receive, Now: 1, From: who(i), Msg: &m}, nil)
		}
	}
	b.StartTimer()
	var mail []hop
	reports, others, sent := 0, 0, 0
	send := func(from keyspace.NodeID, out []sigma.Action) (grants int) {
		for i := range out {
			if out[i].Kind != sigma.Send {
				continue
			}
			data, err := Encode(nil, &out[i].Msg)
			if err != nil {
				b.Fatal(err)
			}
			if sent++; out[i].Msg.Kind == sigma.Reported {
				reports += len(data)
			} else {
				others += len(data)
			}
			if voters[out[i].To] != nil {
				mail = append(mail, hop{from, out[i].To, data})
			} else if out[i].Msg.Kind == sigma.Grant {
				grants++
			}
		}
		return grants
	}
	next, _ := log.Apply(sigma.Entry{Kind: sigma.EntryView, From: log.View, Members: []keyspace.NodeID{node(1), node(2), node(4)}})
	for v := byte(1); v <= 4; v++ {
		send(node(v), voters[node(v)].Step(sigma.Event{Kind: sigma.Applied, Now: 2, State: &next}, nil))
	}
	granted, i := 0, names/2
	for _, k := range []struct {
		from keyspace.NodeID
		msg  sigma.Message
	}{
		{who(i), sigma.Message{Kind: sigma.Request, View: next.View, Name: name(i), Req: req(i), TTL: ttl, Tok: 1}},
		{node(99), sigma.Message{Kind: sigma.Request, View: next.View, Name: "free", Req: sigma.Req{Session: sigma.Session{2}}, TTL: ttl}},
	} {
		for _, v := range next.Members {
			granted += send(v, voters[v].Step(sigma.Event{Kind: sigma.Receive, Now: 3, From: k.from, Msg: &k.msg}, nil))
		}
	}
	first, all := 0, 0
	for round := 1; all == 0 && round < 10_000; round++ {
		was, now := mail, automaton.Instant(3+round)
		mail = nil
		for _, h := range was {
			m, err := Decode(h.data)
			if err != nil {
				b.Fatal(err)
			}
			granted += send(h.to, voters[h.to].Step(sigma.Event{Kind: sigma.Receive, Now: now, From: h.from, Msg: &m}, nil))
		}
		if first == 0 && granted >= 4 {
			first = round
		}
		if voters[node(1)].Settled() && voters[node(2)].Settled() && voters[node(4)].Settled() {
			all = round
		}
	}
	if first == 0 || all == 0 {
		b.Fatalf("two names granted after %d one-way delays, everything settled after %d", first, all)
	}
	b.ReportMetric(float64(first), "delays-to-names")
	b.ReportMetric(float64(all), "delays-to-all")
	b.ReportMetric(float64(reports)/1e6, "MB-reports")
	b.ReportMetric(float64(others)/1e6, "MB-others") // each holder is told by each voter where to
	b.ReportMetric(float64(sent), "messages")
}
