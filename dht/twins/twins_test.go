package twins

import (
	"fmt"
	"slices"
	"testing"

	"latchkey/internal/automaton"
)

func store(n byte) [16]byte { return [16]byte{n, 1} }

func TestJudgements(t *testing.T) {
	const p, q = Peer("p"), Peer("q")
	b := func(s byte, count, nonce uint64) Boot { return Boot{store(s), count, nonce} }
	type step struct {
		s      Sighting
		v      Verdict
		alarm  *Alarm
		former bool // it is about a store that the peer had before
	}
	ok := func(p Peer, b Boot) step { return step{s: Sighting{Peer: p, Boot: b}} }
	verdict := func(v Verdict) func(Peer, Boot, automaton.Instant, *Alarm) step {
		return func(p Peer, b Boot, asked automaton.Instant, alarm *Alarm) step {
			return step{s: Sighting{p, b, asked}, v: v, alarm: alarm}
		}
	}
	accept, refuse := verdict(Accept), verdict(Refuse)
	late := func(p Peer, b Boot, asked automaton.Instant) step { return verdict(Late)(p, b, asked, nil) }
	// Steps happen at instants 10, 20, 30 and so on.
	for name, steps := range map[string][]step{
		"nobody keeps a store": {ok(p, Boot{}), ok(p, Boot{Nonce: 1}), ok(p, Boot{Nonce: 2}), ok(p, Boot{Nonce: 1})},
		"restarts":             {ok(p, b(1, 1, 7)), ok(p, b(1, 2, 8)), ok(p, b(1, 9, 3)), ok(p, b(1, 9, 3))},
		"late words of earlier starts": {
			ok(p, b(1, 1, 7)), ok(p, b(1, 2, 8)), late(p, b(1, 1, 7), 0), ok(p, b(1, 3, 9)),
			late(p, b(1, 2, 8), 0), late(p, b(1, 1, 7), 0), ok(p, b(1, 3, 9)),
		},
		"late answers of the former start, also to the very last question": {
			ok(p, b(1, 1, 7)), ok(p, b(1, 2, 8)), late(p, b(1, 1, 7), 5), late(p, b(1, 1, 7), 19),
			late(p, b(1, 1, 7), 20), ok(p, b(1, 2, 8)),
		},
		"the former start answers a question of later": {
			ok(p, b(1, 1, 7)), ok(p, b(1, 2, 8)),
			refuse(p, b(1, 1, 7), 21, &Alarm{Peer: p, Store: store(1), Boots: [2]Boot{b(1, 2, 8), b(1, 1, 7)}}),
			refuse(p, b(1, 2, 8), 0, nil), refuse(p, b(1, 3, 9), 0, nil), refuse(p, b(1, 1, 7), 61, nil),
		},
		"set back, not to what was known": {
			ok(p, b(1, 5, 7)), late(p, b(1, 4, 9), 0),
			refuse(p, b(1, 4, 9), 25, &Alarm{Peer: p, Store: store(1), Boots: [2]Boot{b(1, 5, 7), b(1, 4, 9)}}),
		},
		"two of one count, and nobody was asked": {
			ok(p, b(1, 5, 7)), refuse(p, b(1, 5, 8), 0, &Alarm{Peer: p, Store: store(1), Boots: [2]Boot{b(1, 5, 7), b(1, 5, 8)}}),
			refuse(p, b(1, 5, 7), 0, nil),
		},
		"a new store after a refusal, and the old one again": {
			ok(p, b(1, 5, 7)), refuse(p, b(1, 5, 8), 0, &Alarm{Peer: p, Store: store(1), Boots: [2]Boot{b(1, 5, 7), b(1, 5, 8)}}),
			ok(p, b(2, 1, 9)), ok(p, b(2, 2, 10)), step{Sighting{p, b(1, 6, 7), 0}, Refuse, nil, true}, ok(p, b(2, 2, 10)),
		},
		"a store that goes to another identity": {
			ok(p, b(1, 5, 7)), ok(q, b(1, 6, 8)), accept(p, b(1, 5, 7), 0, nil), accept(p, b(1, 5, 7), 20, nil),
		},
		"two identities with one store": {
			ok(p, b(1, 5, 7)), ok(q, b(1, 6, 8)),
			accept(p, b(1, 5, 7), 21, &Alarm{Peer: q, Other: p, Store: store(1), Boots: [2]Boot{b(1, 6, 8), b(1, 5, 7)}}),
			ok(q, b(1, 6, 8)), accept(p, b(1, 5, 7), 41, nil),
		},
		"a liar expels nobody, whatever it claims": {
			ok(p, b(1, 5, 7)), accept(q, b(1, 5, 7), 0, &Alarm{Peer: p, Other: q, Store: store(1), Boots: [2]Boot{b(1, 5, 7), b(1, 5, 7)}}),
			ok(q, b(1, 1<<63, 8)), refuse(q, b(1, 1<<63, 9), 0, &Alarm{Peer: q, Store: store(1), Boots: [2]Boot{b(1, 1<<63, 8), b(1, 1<<63, 9)}}),
			accept(p, b(1, 5, 7), 45, nil), ok(p, b(1, 6, 9)),
		},
	} {
		t.Run(name, func(t *testing.T) {
			var j Judge
			now := automaton.Instant(0)
			for i, s := range steps {
				now += 10
				v, alarm := j.See(s.s, now)
				if v != s.v || (alarm == nil) != (s.alarm == nil) || alarm != nil && *alarm != *s.alarm {
					t.Fatalf("step %d, %+v: verdict %d and alarm %+v, not %d and %+v", i, s.s, v, alarm, s.v, s.alarm)
				}
				if got := j.Refused(s.s.Peer); got != (v == Refuse) && !s.former {
					t.Errorf("step %d: refused %v after verdict %d", i, got, v)
				}
				if got := j.Refuses(s.s.Peer, s.s.Boot.Store); got != (v == Refuse) {
					t.Errorf("step %d: the store is refused: %v, after verdict %d", i, got, v)
				}
			}
		})
	}
	var j Judge
	if j.Refused(p) || j.Refuses(p, store(1)) {
		t.Error("a peer that nobody heard of is refused")
	}
}

// At its edges memory holds what it promises, and beyond it forgets: a copy then, never an accusation.
func TestMemoryIsBounded(t *testing.T) {
	var j Judge
	now := automaton.Instant(0)
	name := func(i int) Peer { return Peer(fmt.Sprint("peer ", i)) }
	see := func(p Peer, b Boot) (Verdict, *Alarm) {
		now++
		return j.See(Sighting{Peer: p, Boot: b}, now)
	}
	of := func(i int) [16]byte { return [16]byte{1, byte(i), byte(i >> 8), byte(i >> 16)} }
	see("twin", Boot{of(1 << 20), 1, 1})
	if v, _ := see("twin", Boot{of(1 << 20), 1, 2}); v != Refuse {
		t.Fatal("not refused")
	}
	for i := 1; i < PeersMax; i++ {
		see(name(i), Boot{of(i), 5, 1})
	}
	see(name(1), Boot{of(1), 5, 1}) // is not the oldest any more
	if len(j.peers) != PeersMax {
		t.Fatalf("%d peers in memory", len(j.peers))
	}
	if see(name(PeersMax), Boot{of(PeersMax), 5, 1}); len(j.peers) != PeersMax || len(j.holders) != PeersMax {
		t.Errorf("one more: %d peers and %d stores in memory", len(j.peers), len(j.holders))
	}
	if !j.Refused("twin") {
		t.Error("who was refused is forgotten before others")
	}
	if v, alarm := see(name(2), Boot{of(2), 4, 9}); v != Accept || alarm != nil {
		t.Errorf("a forgotten one: verdict %d, alarm %v", v, alarm)
	}
	if v, _ := see(name(1), Boot{of(1), 4, 9}); v != Late {
		t.Errorf("one that is remembered: verdict %d", v)
	}
	// With none but refused ones, the oldest of them has to go.
	for i := range PeersMax + 1 {
		see(name(-i), Boot{of(i), 1, 1})
		if v, _ := see(name(-i), Boot{of(i), 1, 2}); v != Refuse {
			t.Fatal("not refused")
		}
	}
	if len(j.peers) != PeersMax || len(j.holders) > PeersMax*StoresMax || j.Refused("twin") {
		t.Errorf("%d peers and %d stores in memory, the first refused one among them: %v", len(j.peers), len(j.holders), j.Refused("twin"))
	}

	j = Judge{}
	see("p", Boot{of(0), 1, 1})
	see("p", Boot{of(0), 1, 2})
	for i := 1; i < 3*StoresMax; i++ {
		see("p", Boot{of(i), 7, 1})
	}
	if n := len(j.peers["p"].claims); n != StoresMax || len(j.holders) != StoresMax || !j.Refuses("p", of(0)) {
		t.Errorf("%d stores of a peer in memory, %d in all, the refused one among them: %v", n, len(j.holders), j.Refuses("p", of(0)))
	}
	alarms := 1
	for i := range 3 * AlarmsMax {
		see("p", Boot{of(100 + i), 1, 1})
		if v, alarm := see("p", Boot{of(100 + i), 1, 2}); v != Refuse {
			t.Errorf("store %d: verdict %d", i, v)
		} else if alarm != nil {
			alarms++
		}
	}
	if alarms != AlarmsMax {
		t.Errorf("%d alarms about one peer", alarms)
	}
	if n := len(j.peers["p"].claims); n != StoresMax {
		t.Errorf("%d stores of a peer in memory", n)
	}
}

// Who heard of it from another refuses as one who has heard both.
func TestCondemned(t *testing.T) {
	var j Judge
	b := func(s byte, count, nonce uint64) Boot { return Boot{store(s), count, nonce} }
	if j.Condemn("p", [16]byte{}) || j.Refused("p") {
		t.Error("condemned with no store")
	}
	j.See(Sighting{Peer: "p", Boot: b(1, 5, 7)}, 10)
	if !j.Condemn("p", store(1)) || j.Condemn("p", store(1)) {
		t.Error("it is new once")
	}
	if v, alarm := j.See(Sighting{Peer: "p", Boot: b(1, 6, 8)}, 20); v != Refuse || alarm != nil || !j.Refused("p") {
		t.Errorf("verdict %d, alarm %v", v, alarm)
	}
	if v, _ := j.See(Sighting{Peer: "p", Boot: b(2, 1, 9)}, 30); v != Accept || j.Refused("p") {
		t.Error("refused with a new store")
	}
	// Of the one before the new store it may be told only now.
	j.Condemn("p", store(3))
	if j.Refused("p") || !j.Refuses("p", store(3)) {
		t.Error("a late word about a former store is taken for one about the present")
	}
	if j.Condemn("q", store(4)); !j.Refused("q") {
		t.Error("one that was never heard is not refused")
	}
}

// Whatever is said in whatever order: memory stays bounded, a verdict of refusal lasts, and an alarm is raised once.
func FuzzJudge(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8})
	f.Fuzz(func(t *testing.T, b []byte) {
		var j Judge
		now := automaton.Instant(0)
		raised := make(map[string]int)
		for c := range slices.Chunk(b, 4) {
			if len(c) < 4 {
				break
			}
			now += automaton.Instant(c[3] % 3)
			s := Sighting{
				Peer: Peer([]byte{c[0] % 4}), Boot: Boot{store(c[0] >> 2 % 8), uint64(c[1]%4) + 1, uint64(c[2]%4) + 1},
				Asked: max(0, now-automaton.Instant(c[3]>>4)),
			}
			before := j.Refuses(s.Peer, s.Boot.Store)
			v, alarm := j.See(s, now)
			if before && v != Refuse || (v == Refuse) != j.Refuses(s.Peer, s.Boot.Store) {
				t.Fatalf("%+v: was refused %v, verdict %d", s, before, v)
			}
			if alarm != nil {
				if raised[string(s.Peer)]++; raised[string(s.Peer)] > AlarmsMax {
					t.Fatalf("%d alarms about one peer", raised[string(s.Peer)])
				}
			}
			if len(j.peers) > 4 || len(j.holders) > 4*StoresMax {
				t.Fatalf("%d peers, %d stores", len(j.peers), len(j.holders))
			}
		}
	})
}
