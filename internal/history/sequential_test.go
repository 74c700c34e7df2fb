package history

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// clients lets programs run at the same time as far as their record shows: each operation returns after all were called. So
// only the order within a client says anything.
func clients(programs ...string) *History {
	var ops []Operation
	now := int64(0)
	for client, text := range programs {
		for _, word := range strings.Fields(text) {
			o := Operation{Client: client, Call: now + 1, Return: now + 2}
			now += 2
			if cut, ok := strings.CutSuffix(word, "?"); ok { // no answer came
				word, o.Return = cut, 0
			}
			var key string
			var a, b, version uint64
			word, versionText, told := strings.Cut(word, "@")
			if told {
				fmt.Sscan(versionText, &version)
			}
			text := strings.NewReplacer("=", " ", ",", " ").Replace(word[1:])
			n, _ := fmt.Sscan(text, &key, &a, &b)
			switch {
			case word[0] == 'R' && n == 2:
				o.Op, o.Answer = Read(key), Answer{Value: a}
			case word[0] == 'W' && n == 2:
				o.Op = Write(key, a)
			case word[0] == 'C' && n == 3: // swapped
				o.Op, o.Answer = CAS(key, a, b), Answer{OK: true, Value: a}
			case word[0] == 'F' && n == 3: // wanted 99 there, found a
				o.Op, o.Answer = CAS(key, b, 98), Answer{Value: a}
			default:
				panic(word)
			}
			o.Answer.Version = version
			if o.open() {
				o.Answer = Answer{}
			}
			ops = append(ops, o)
		}
	}
	return &History{ops: ops, now: now}
}

// sequentialHistories are judged by CheckSequential. Each illegal one is a different kind of failure that it exists to catch.
var sequentialHistories = []struct {
	name string
	want Verdict
	h    *History
}{
	{"nothing", Ok, clients()},
	{"first value", Ok, clients("Rx=0")},
	{"a client sees another's writes late", Ok, clients("Wx=1 Wx=2", "Rx=0 Rx=1 Rx=2")},
	{"a client goes by an old view for ever", Ok, clients("Wx=1 Wy=2", "Rx=0 Ry=0 Rx=0")},
	{"a read of nothing", Illegal, clients("Rx=7")},
	{"coherence of reads (CoRR)", Illegal, clients("Wx=1", "Rx=1 Rx=0")},
	{"coherence of reads of two writes", Illegal, clients("Wx=1 Wx=2", "Rx=2 Rx=1")},
	{"two readers see two writes in different orders", Illegal, clients("Wx=1", "Wx=2", "Rx=1 Rx=2", "Rx=2 Rx=1")},
	{"own write not found (CoWR)", Illegal, clients("Wx=1 Rx=0")},
	{"own write found before it was written (CoRW)", Illegal, clients("Rx=1 Wx=1")},
	{"own writes in another order (CoWW)", Illegal, clients("Wx=1 Wx=2", "Rx=2 Rx=1")},
	{"a write in front of what its client had found", Illegal, clients("Rx=2 Wx=1", "Wx=2", "Rx=1 Rx=2")},
	{"store buffer (SB)", Illegal, clients("Wx=1 Ry=0", "Wy=1 Rx=0")},
	{"store buffer, one of them late", Ok, clients("Wx=1 Ry=0", "Wy=1 Rx=1")},
	{"message passed before its content (MP)", Illegal, clients("Wx=1 Wy=1", "Ry=1 Rx=0")},
	{"load buffer (LB)", Illegal, clients("Rx=1 Wy=1", "Ry=1 Wx=1")},
	{"independent readers disagree (IRIW)", Illegal, clients("Wx=1", "Wy=1", "Rx=1 Ry=0", "Ry=1 Rx=0")},
	{"independent readers agree", Ok, clients("Wx=1", "Wy=1", "Rx=1 Ry=0", "Ry=1 Rx=1")},
	{"told by a third (WRC)", Illegal, clients("Wx=1", "Rx=1 Wy=1", "Ry=1 Rx=0")},
	{"a chain of three (ISA2)", Illegal, clients("Wx=1 Wy=1", "Ry=1 Wz=1", "Rz=1 Rx=0")},
	{"both first writes last (2+2W)", Illegal, clients("Wx=1 Wy=2", "Wy=1 Wx=2", "Rx=2 Rx=1", "Ry=2 Ry=1")},
	{"R", Illegal, clients("Wx=1 Wy=1", "Wy=2 Rx=0", "Ry=1 Ry=2")},
	{"S", Illegal, clients("Wx=2 Wy=1", "Ry=1 Wx=1", "Rx=1 Rx=2")},
	{"swap", Ok, clients("Cx=0,1 Cx=2,3", "Cx=1,2")},
	{"lost update", Illegal, clients("Cx=0,1", "Cx=0,2")},
	{"a write between what a swap found and what it wrote", Illegal, clients("Cx=0,1 Rx=1", "Wx=2", "Rx=0 Rx=2 Rx=1")},
	{"refused swap reads", Illegal, clients("Wx=1 Wy=1", "Ry=1 Fx=0,99")},
	{"refused swap that should have swapped", Illegal, clients("Fx=0,0")},
	{"open write that somebody read", Ok, clients("Wx=1?", "Rx=0 Rx=1")},
	{"open write undone", Illegal, clients("Wx=1?", "Rx=1 Rx=0")},
	{"open write that nobody read", Ok, clients("Wx=1?", "Rx=0")},
	{"open write takes effect after what follows it", Ok, clients("Wx=1? Rx=0 Ry=2", "Wy=2 Rx=1")},
	{"open swap that somebody read", Ok, clients("Cx=5,1?", "Wx=5 Rx=1")},
	{"open swap of what never was", Illegal, clients("Cx=5,1?", "Rx=1")},
	{"open read", Ok, clients("Rx=9?")},
	{"versions", Ok, clients("Wx=1@1 Wx=2@3", "Rx=0 Rx=2@3", "Wx=7@2")},
	{"versions against the order of a client", Illegal, clients("Wx=1@2 Wx=2@1")},
	{"versions in circles over two keys (2+2W)", Illegal, clients("Wx=1@2 Wy=2@1", "Wy=1@2 Wx=2@1")},
	{"an old version after a newer one", Illegal, clients("Wx=1@1 Wx=2@2", "Rx=2@2 Rx=1@1")},
	{"a version twice", Illegal, clients("Wx=1@1", "Wx=2@1")},
	{"the value of another version", Illegal, clients("Wx=1@1 Wx=2@2", "Rx=1@2")},
	{"a swap that leaves out a version", Illegal, clients("Wx=1@1 Wx=2@2", "Cx=1,3@3")},
	{"a version nobody wrote", Illegal, clients("Wx=1@1", "Rx=1@2")},
	{"the version of an open write", Ok, clients("Wx=1?", "Wx=2@1 Rx=1@2")},
	{"values twice, versions told", Ok, clients("Wx=1@1 Wx=1@2", "Rx=1@1 Rx=1@2")},
	{"values twice, old version late", Illegal, clients("Wx=1@1 Wx=1@2", "Rx=1@2 Rx=1@1")},
	{"values twice", Unknown, clients("Wx=1 Wx=1", "Rx=1")},
	{"the first value written again", Unknown, clients("Wx=0", "Rx=0")},
}

func TestSequentialCheckerTellsGoodHistoriesFromBad(t *testing.T) {
	for _, c := range sequentialHistories {
		r := c.h.CheckSequential(0)
		if r.Verdict != c.want || r.Verdict != Ok && r.Detail == "" {
			t.Errorf("%s: %v (%s), want %v", c.name, r.Verdict, r.Detail, c.want)
		}
		if brute, decided := enumerate(c.h.ops); c.want != Unknown && (!decided || brute != (c.want == Ok)) {
			t.Errorf("%s: the enumerator says %v", c.name, brute)
		}
	}
}

func TestOverlappingOperationsOfAClientHaveNoOrder(t *testing.T) {
	h := write(call("w", 1, Write("x", 1)), did(1, Read("x"), Answer{}), ret("w", yes))
	if r := h.CheckSequential(0); r.Verdict != Ok {
		t.Errorf("a read during a write: %v", r.Err())
	}
	h = write(call("w", 1, Write("x", 1)), did(1, Read("x"), Answer{Value: 1}), did(1, Read("x"), Answer{}), ret("w", yes))
	if r := h.CheckSequential(0); r.Verdict != Illegal {
		t.Errorf("two reads during a write, backwards: %v", r.Verdict)
	}
	h = write(did(1, Write("y", 1), yes), call("w", 1, Write("x", 1)), call("v", 1, Write("x", 2)), ret("v", yes), ret("w", yes),
		did(2, Read("x"), Answer{Value: 1}), did(2, Read("x"), Answer{Value: 2}), did(2, Read("y"), Answer{}))
	if r := h.CheckSequential(0); r.Verdict != Illegal {
		t.Errorf("what a client did before two writes at once: %v", r.Verdict)
	}
}

// An illegal history says which operations contradict each other.
func TestIllegalHistoryIsExplained(t *testing.T) {
	err := clients("Wx=1 Ry=0", "Wy=1 Rx=0").CheckSequential(0).Err()
	if !errors.Is(err, ErrIllegal) {
		t.Fatal(err)
	}
	for _, part := range []string{"client 0: write x 1", "is by the same client before", "client 0: read y = 0", "finds what was there before", "client 1: write y 1"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%v\ndoes not say %q", err, part)
		}
	}
}

func TestTooFewStatesAreNoPass(t *testing.T) {
	// Nothing can be derived: every write is read by its own client alone.
	h := clients("Wx=1 Rx=1 Wx=2 Rx=2", "Wx=3 Rx=3 Wx=4 Rx=4")
	if r := h.CheckSequential(0); r.Verdict != Ok {
		t.Fatal(r.Err())
	}
	r := h.CheckSequential(2)
	if r.Verdict != Unknown || !errors.Is(r.Err(), ErrUnknown) {
		t.Errorf("2 states: %v", r.Err())
	}
	full := &History{ops: h.ops, full: true}
	if r := full.CheckSequential(0); r.Verdict != Unknown {
		t.Errorf("not everything recorded: %v", r.Verdict)
	}
}

// enumerate tries every order of the operations, and every choice of open ones that took effect. It decides small histories.
func enumerate(ops []Operation) (consistent, decided bool) {
	type held struct{ value, version uint64 }
	var all []Operation
	for _, o := range ops {
		if o.open() && o.Op.Kind == KindRead || o.NoEffect {
			continue
		}
		all = append(all, o)
	}
	if len(all) > 10 {
		return false, false
	}
	told := make(map[string]map[uint64]bool)
	for _, o := range all {
		if wrote(&o) && !o.open() {
			if told[o.Op.Key] == nil {
				told[o.Op.Key] = make(map[uint64]bool)
			}
			told[o.Op.Key][o.Answer.Version] = true
		}
	}
	top := make(map[string]uint64)
	var try func(done uint, state map[string]held) bool
	try = func(done uint, state map[string]held) bool {
		complete := true
		for i, o := range all {
			if done>>i&1 != 0 {
				continue
			}
			complete = complete && o.open()
			blocked := false
			for j, p := range all {
				blocked = blocked || done>>j&1 == 0 && p.Client == o.Client && !p.open() && p.Return < o.Call
			}
			if blocked {
				continue
			}
			was := state[o.Op.Key]
			next := was
			fits := true
			if o.Op.Kind != KindWrite {
				want := o.Answer.Value
				if o.open() {
					want = o.Op.Old
				}
				fits = want == was.value
				if v := o.Answer.Version; v != 0 && !wrote(&o) {
					fits = fits && (v == was.version || was.version == 0 && was != held{} && !told[o.Op.Key][v])
				}
				if o.Op.Kind == KindCAS && !o.open() && o.Answer.OK != (o.Answer.Value == o.Op.Old) {
					fits = false
				}
			}
			if !fits {
				continue
			}
			oldTop := top[o.Op.Key]
			if wrote(&o) {
				next = held{value: o.Op.Value}
				if !o.open() && o.Answer.Version != 0 {
					if o.Answer.Version <= oldTop {
						continue
					}
					next.version = o.Answer.Version
					top[o.Op.Key] = next.version
				}
			}
			state[o.Op.Key] = next
			ok := try(done|1<<i, state)
			state[o.Op.Key], top[o.Op.Key] = was, oldTop
			if ok {
				return true
			}
		}
		return complete
	}
	return try(0, make(map[string]held)), true
}

// draw makes a small history: written values are told apart, answers are anything that was or will be written, and some
// operations overlap or stay open.
func draw(next func(n int) int) []Operation {
	var ops []Operation
	now, count := int64(0), 2+next(6)
	busy := make(map[int]int) // an operation of the client that has not returned
	value := uint64(0)
	for range count {
		client, key := next(3), []string{"x", "y"}[next(2)]
		now++
		o := Operation{Client: client, Call: now}
		if i, ok := busy[client]; ok && next(4) != 0 {
			ops[i].Return = now
			now++
			o.Call = now
			delete(busy, client)
		}
		drawn := uint64(next(count/2 + 2))
		switch next(5) {
		case 0, 1:
			o.Op, o.Answer.Value = Read(key), drawn
		case 2, 3:
			value++
			o.Op = Write(key, value)
		case 4:
			value++
			o.Op, o.Answer = CAS(key, drawn, value), Answer{OK: true, Value: drawn}
			if next(4) == 0 {
				o.Answer = Answer{Value: uint64(next(count/2 + 2))}
			}
		}
		if next(6) == 0 {
			o.Answer.Version = uint64(1 + next(4))
		}
		if _, ok := busy[client]; !ok && next(5) == 0 {
			busy[client] = len(ops)
		} else if next(8) != 0 {
			now++
			o.Return = now
		}
		ops = append(ops, o)
	}
	for i := range ops {
		if ops[i].open() {
			ops[i].Answer = Answer{}
		}
	}
	return ops
}

func compareWithEnumerator(t *testing.T, ops []Operation) Verdict {
	t.Helper()
	got := judgeSequential(ops, 1<<20)
	want, decided := enumerate(ops)
	if !decided {
		t.Fatalf("%d operations are too many to enumerate", len(ops))
	}
	if got.Verdict == Unknown && strings.Contains(got.Detail, "more than once") {
		return Unknown
	}
	if got.Verdict == Unknown || want != (got.Verdict == Ok) {
		t.Fatalf("%v (%s), but the enumerator says %v:\n%v", got.Verdict, got.Detail, want, ops)
	}
	s := &sequential{} // the search alone, with nothing derived before
	if r := s.build(ops); r == nil {
		if order, _ := s.sort(); order != nil {
			if found, _ := s.search(1 << 20); found != want {
				t.Fatalf("the search alone says %v, the enumerator %v:\n%v", found, want, ops)
			}
		}
	}
	return got.Verdict
}

func TestSequentialCheckerAgreesWithEnumeration(t *testing.T) {
	t.Parallel()
	seen := make(map[Verdict]int)
	for seed := range uint64(10_000) {
		r := rand.New(rand.NewPCG(seed, 1))
		seen[compareWithEnumerator(t, draw(r.IntN))]++
	}
	if seen[Ok] < 1000 || seen[Illegal] < 1000 {
		t.Errorf("%v drawn: one kind is hardly tried", seen)
	}
}

func FuzzSequentialAgreesWithEnumeration(f *testing.F) {
	f.Add([]byte("\x03\x00\x01\x02\x03\x04\x05\x06\x07"))
	f.Add([]byte("sequential consistency"))
	f.Fuzz(func(t *testing.T, b []byte) {
		compareWithEnumerator(t, draw(func(n int) int {
			if len(b) == 0 {
				return 0
			}
			v := int(b[0]) % n
			b = b[1:]
			return v
		}))
	})
}

// run makes a long history of clients on one memory. Each takes effect at one instant; calls and returns say nothing of it.
func run(seed uint64, clients, count, keys int, versions bool) *History {
	r := rand.New(rand.NewPCG(seed, 2))
	value, version := make([]uint64, keys), make([]uint64, keys)
	h := &History{}
	for i := range count {
		key := r.IntN(keys)
		o := Operation{Client: r.IntN(clients), Call: int64(2*i + 1), Return: int64(2*i + 2)}
		name := fmt.Sprint("k", key)
		switch r.IntN(3) {
		case 0:
			value[key], version[key] = uint64(i+1), version[key]+1
			o.Op = Write(name, value[key])
		case 1:
			o.Op, o.Answer = CAS(name, value[key], uint64(i+1)), Answer{OK: true, Value: value[key]}
			value[key], version[key] = uint64(i+1), version[key]+1
		case 2:
			o.Op, o.Answer = Read(name), Answer{Value: value[key]}
		}
		if versions {
			o.Answer.Version = version[key]
		}
		h.ops = append(h.ops, o)
	}
	return h
}

// scatter shifts the operations of each client by an amount of its own: their order in the record says nothing then.
func scatter(h *History) *History {
	const shift = 400
	out := &History{}
	by := make(map[int][]Operation)
	most := 0
	for _, o := range h.ops {
		by[o.Client] = append(by[o.Client], o)
		most = max(most, o.Client)
	}
	now := int64(0)
	for round := 0; len(by) > 0; round++ {
		for c := range most + 1 {
			if ops := by[c]; len(ops) > 0 && round >= c*shift/(most+1) {
				o := ops[0]
				o.Call, o.Return = now+1, now+2
				now += 2
				out.ops = append(out.ops, o)
				if by[c] = ops[1:]; len(by[c]) == 0 {
					delete(by, c)
				}
			}
		}
	}
	return out
}

func TestLongRunsAreJudged(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name                 string
		clients, count, keys int
		versions, scattered  bool
	}{
		{"versions", 8, 20_000, 64, true, false},
		{"versions, scattered", 8, 20_000, 64, true, true},
		{"no versions", 6, 12_000, 16, false, false},
		{"no versions, scattered", 6, 4_000, 8, false, true},
	} {
		h := run(1, c.clients, c.count, c.keys, c.versions)
		if c.scattered {
			h = scatter(h)
		}
		begin := time.Now()
		if r := h.CheckSequential(0); r.Verdict != Ok || r.Judged != c.count {
			t.Errorf("%s: %d judged, %v", c.name, r.Judged, r.Err())
		}
		took := time.Since(begin)
		// One read late in the run finds what was there before the last write that its client has seen.
		if !stale(h) {
			t.Fatalf("%s: nothing to make stale", c.name)
		}
		begin = time.Now()
		if r := h.CheckSequential(0); r.Verdict != Illegal {
			t.Errorf("%s, with a stale read: %v", c.name, r.Err())
		}
		t.Logf("%s: %d operations in %v; illegal in %v", c.name, c.count, took, time.Since(begin))
	}
}

// stale lets a read find what its client had found, or written, earlier, before the last that it knows.
func stale(h *History) bool {
	type seen struct {
		client int
		key    string
	}
	type found struct{ value, version uint64 }
	known := make(map[seen][]found)
	for i := range h.ops {
		o := &h.ops[i]
		k := seen{o.Client, o.Op.Key}
		now := found{o.Answer.Value, o.Answer.Version}
		if wrote(o) {
			now.value = o.Op.Value
		}
		last := known[k]
		if o.Op.Kind == KindRead && len(last) > 1 && i > len(h.ops)*3/4 {
			o.Answer.Value, o.Answer.Version = last[len(last)-2].value, last[len(last)-2].version
			return true
		}
		if len(last) == 0 || last[len(last)-1] != now {
			known[k] = append(last, now)
		}
	}
	return false
}
