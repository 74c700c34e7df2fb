package transfer

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"latchkey/internal/automaton"
	"latchkey/replicagroup/order"
)

// offered offers key n with the content c.
func offered(g *Gate, stream uint64, n, c byte, now automaton.Instant) Verdicts {
	var out Verdicts
	g.Offered(stream, Offer{Key: testKey(n), Content: Sum{c}, Size: 3 * ChunkBytes}, now, &out)
	return out
}

func ended(g *Gate, stream uint64, keep *Incoming, now automaton.Instant) Verdicts {
	var out Verdicts
	g.Ended(stream, keep, now, &out)
	return out
}

// said checks a verdict by the streams in it.
func said(t *testing.T, what string, v Verdicts, admit, refuse, cut []uint64) {
	t.Helper()
	var a, r, c []uint64
	for _, x := range v.Admit {
		a = append(a, x.Stream)
	}
	for _, x := range v.Refuse {
		r = append(r, x.Stream)
	}
	for _, x := range v.Cut {
		c = append(c, x.Stream)
	}
	if !slices.Equal(a, admit) || !slices.Equal(r, refuse) || !slices.Equal(c, cut) {
		t.Errorf("%s: admitted %v, refused %v, cut %v; want %v, %v, %v", what, a, r, c, admit, refuse, cut)
	}
}

// partly returns an incoming transfer of the content c that has one chunk.
func partly(c byte) *Incoming {
	body := testBody(ChunkBytes, 1)
	in := NewIncoming(Sum{c}, 3*ChunkBytes)
	in.Begin()
	in.Step(Frame{Kind: KindChunk, Sum: DigestOf(body).Content(), Data: body})
	return in
}

func TestTwoAreAdmittedAndTheOthersWait(t *testing.T) {
	var g Gate
	said(t, "first", offered(&g, 1, 1, 1, 0), []uint64{1}, nil, nil)
	said(t, "second", offered(&g, 2, 2, 1, 0), []uint64{2}, nil, nil)
	said(t, "third", offered(&g, 3, 3, 1, 0), nil, nil, nil)
	said(t, "fourth", offered(&g, 4, 4, 1, 0), nil, nil, nil)
	said(t, "one that waits goes", ended(&g, 3, nil, 0), nil, nil, nil)
	said(t, "one that runs goes", ended(&g, 1, nil, 0), []uint64{4}, nil, nil)
	said(t, "one that is unknown goes", ended(&g, 99, partly(1), 0), nil, nil, nil)
	if a, w, k := g.Counts(); a != 2 || w != 0 || k != 0 {
		t.Errorf("%d admitted, %d wait, %d kept", a, w, k)
	}
}

func TestAFloodOfOffersIsBounded(t *testing.T) {
	var g Gate
	key := func(i int) Offer {
		return Offer{Key: Key{Group: testKey(1).Group, To: order.ReplicaID(i)}, Content: Sum{1}, Size: 1}
	}
	var out Verdicts
	for i := range InMax + InQueueMax {
		g.Offered(uint64(i), key(i), 0, &out)
	}
	if len(out.Refuse) > 0 {
		t.Fatalf("refused %v", out.Refuse[0])
	}
	for i := range 1000 {
		n := InMax + InQueueMax + i
		out = Verdicts{}
		g.Offered(uint64(n), key(n), 0, &out)
		if len(out.Refuse) != 1 || out.Refuse[0] != (Refusal{uint64(n), Busy}) {
			t.Fatalf("offer %d: %+v", n, out)
		}
		ended(&g, uint64(n), nil, 0)
	}
	if a, w, _ := g.Counts(); a != InMax || w != InQueueMax {
		t.Errorf("%d admitted, %d wait", a, w)
	}
}

func TestANewerSenderTakesThePlaceWithWhatHasCome(t *testing.T) {
	var g Gate
	said(t, "old sender", offered(&g, 1, 1, 7, 0), []uint64{1}, nil, nil)
	said(t, "new sender", offered(&g, 2, 1, 7, 0), nil, nil, []uint64{1})
	said(t, "newer sender", offered(&g, 3, 1, 7, 0), nil, []uint64{2}, nil)
	said(t, "others go first", offered(&g, 4, 2, 7, 0), []uint64{4}, nil, nil)
	kept := partly(7)
	v := ended(&g, 1, kept, 0)
	said(t, "the old one's end", v, []uint64{3}, nil, nil)
	if v.Admit[0].Incoming != kept {
		t.Error("what had come is not gone on with")
	}
	// Another content begins anew, and what is kept of the former goes.
	ended(&g, 3, kept, 0)
	if v := offered(&g, 5, 1, 8, 0); v.Admit[0].Incoming == kept || v.Admit[0].Incoming.Has() != 0 {
		t.Error("another content goes on with the former's bytes")
	}
	ended(&g, 5, nil, 0)
	if v := offered(&g, 6, 1, 7, 0); v.Admit[0].Incoming == kept {
		t.Error("the former content was kept beside the newer")
	}
}

func TestWhatIsKeptIsBoundedAndForgotten(t *testing.T) {
	var g Gate
	now := at(time.Hour)
	for n := range byte(ParkedMax + 1) {
		offered(&g, uint64(n), n, n, now)
		ended(&g, uint64(n), partly(n), now)
		now = now.Add(time.Second)
	}
	if _, _, kept := g.Counts(); kept != ParkedMax {
		t.Errorf("%d are kept", kept)
	}
	if v := offered(&g, 100, 0, 0, now); v.Admit[0].Incoming.Has() != 0 {
		t.Error("the oldest was not the one to go")
	}
	ended(&g, 100, NewIncoming(Sum{}, 1), now) // nothing came of it
	if g.Next() != at(time.Hour+time.Second+ParkFor) {
		t.Errorf("next at %v", g.Next())
	}
	g.Tick(g.Next() - 1)
	if _, _, kept := g.Counts(); kept != ParkedMax {
		t.Errorf("%d are kept", kept)
	}
	g.Tick(g.Next())
	if v := offered(&g, 101, 1, 1, now); v.Admit[0].Incoming.Has() != 0 {
		t.Error("it was kept beyond its time")
	}
	if v := offered(&g, 102, 2, 2, now.Add(ParkFor)); v.Admit[0].Incoming.Has() != 0 || g.Next() != automaton.Never {
		t.Error("an offer found what should have been forgotten")
	}
}

// Random lives of a gate: its limits and invariants hold after every step, every stream gets one verdict at most, and when streams end
// everybody who waits is admitted.
func TestGateOnRandomSchedules(t *testing.T) {
	const waiting, admitted, cut = 1, 2, 3
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 3))
		var g Gate
		state := make(map[uint64]int)
		keys := make(map[uint64]byte)
		given := make(map[*Incoming]bool)
		ins := make(map[uint64]*Incoming)
		now := at(0)
		apply := func(v Verdicts) {
			for _, a := range v.Admit {
				if state[a.Stream] != waiting || given[a.Incoming] {
					t.Fatalf("seed %d: stream %d in state %d admitted, its bytes given %v", seed, a.Stream, state[a.Stream], given[a.Incoming])
				}
				state[a.Stream], given[a.Incoming], ins[a.Stream] = admitted, true, a.Incoming
			}
			for _, r := range v.Refuse {
				if state[r.Stream] != waiting {
					t.Fatalf("seed %d: stream %d in state %d refused", seed, r.Stream, state[r.Stream])
				}
				delete(state, r.Stream)
			}
			for _, c := range v.Cut {
				if state[c.Stream] != admitted {
					t.Fatalf("seed %d: stream %d in state %d cut", seed, c.Stream, state[c.Stream])
				}
				state[c.Stream] = cut
			}
			ran, per := 0, make(map[string]int)
			for s, st := range state {
				if st != waiting {
					ran++
				}
				if per[fmt.Sprint(keys[s], st == waiting)]++; per[fmt.Sprint(keys[s], st == waiting)] > 1 {
					t.Fatalf("seed %d: key %d twice in one state", seed, keys[s])
				}
			}
			a, w, k := g.Counts()
			if a != ran || a > InMax || a+w != len(state) || w > InQueueMax || k > ParkedMax {
				t.Fatalf("seed %d: %d admitted, %d wait, %d kept, of %v", seed, a, w, k, state)
			}
		}
		end := func(s uint64) {
			in := ins[s]
			delete(given, in)
			delete(ins, s)
			delete(state, s)
			if in != nil && rng.IntN(2) == 0 {
				in = nil
			}
			apply(ended(&g, s, in, now))
		}
		some := func() uint64 {
			all := []uint64{}
			for s := range state {
				all = append(all, s)
			}
			slices.Sort(all)
			return all[rng.IntN(len(all))]
		}
		for s := uint64(1); s < 300; s++ {
			now = now.Add(time.Duration(rng.IntN(int(20 * time.Second))))
			if rng.IntN(5) < 3 || len(state) == 0 {
				state[s], keys[s] = waiting, byte(rng.IntN(8))
				apply(offered(&g, s, keys[s], byte(rng.IntN(2)), now))
			} else {
				end(some())
			}
			g.Tick(now)
		}
		for len(state) > 0 {
			ran := false
			for s, st := range state {
				if st != waiting {
					end(s)
					ran = true
					break
				}
			}
			if !ran {
				t.Fatalf("seed %d: %v wait for nothing", seed, state)
			}
		}
	}
}
