package history

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

// step is one line of a made-up history: a call or a return of the operation with this name.
type step func(h *History, ids map[string]int)

func call(name string, client int, op Op) step {
	return func(h *History, ids map[string]int) { ids[name] = h.Call(client, op) }
}

func ret(name string, a Answer) step {
	return func(h *History, ids map[string]int) { h.Return(ids[name], a) }
}

// did is a call and its return with nothing between.
func did(client int, op Op, a Answer) step {
	return func(h *History, _ map[string]int) { h.Return(h.Call(client, op), a) }
}

func lost(client int, token uint64) step {
	return func(h *History, _ map[string]int) { h.Lost(client, "l", token) }
}

func killed(client int) step { return func(h *History, _ map[string]int) { h.Killed(client) } }

func write(steps ...step) *History {
	h, ids := New(), map[string]int{}
	for _, s := range steps {
		s(h, ids)
	}
	return h
}

func got(token uint64) Answer { return Answer{Token: token} }

var yes, no = Answer{OK: true}, Answer{}

// lockHistories are judged by CheckLock. Each illegal one is a different kind of failure that the model exists to catch.
var lockHistories = []struct {
	name string
	want Verdict
	h    []step
}{
	{"one after the other", Ok, []step{
		did(1, Acquire("l"), got(5)), did(1, Release("l", 5), yes), did(2, Acquire("l"), got(9)), did(2, Release("l", 9), yes)}},
	{"waits while it is held", Ok, []step{
		did(1, Acquire("l"), got(1)), call("a", 2, Acquire("l")), call("r", 1, Release("l", 1)), ret("a", got(2)), ret("r", yes)}},
	{"two holders at once", Illegal, []step{did(1, Acquire("l"), got(1)), did(2, Acquire("l"), got(2))}},
	{"one client holds twice", Illegal, []step{did(1, Acquire("l"), got(1)), did(1, Acquire("l"), got(2))}},
	{"two holders, released later", Illegal, []step{
		did(1, Acquire("l"), got(1)), did(2, Acquire("l"), got(2)), did(1, Release("l", 1), yes), did(2, Release("l", 2), yes)}},
	{"two locks are two locks", Ok, []step{did(1, Acquire("l"), got(1)), did(2, Acquire("m"), got(1))}},
	{"token repeated", Illegal, []step{
		did(1, Acquire("l"), got(5)), did(1, Release("l", 5), yes), did(2, Acquire("l"), got(5))}},
	{"token going down", Illegal, []step{
		did(1, Acquire("l"), got(5)), did(1, Release("l", 5), yes), did(2, Acquire("l"), got(4))}},
	{"no token", Illegal, []step{did(1, Acquire("l"), got(0))}},
	{"release by one who never held", Illegal, []step{did(1, Acquire("l"), got(1)), did(2, Release("l", 1), yes)}},
	{"release of an old token succeeds", Illegal, []step{
		did(1, Acquire("l"), got(1)), did(1, Release("l", 1), yes), did(1, Acquire("l"), got(2)), did(1, Release("l", 1), yes)}},
	{"release succeeds twice", Illegal, []step{
		did(1, Acquire("l"), got(1)), did(1, Release("l", 1), yes), did(1, Release("l", 1), yes)}},
	{"release of a free lock succeeds", Illegal, []step{did(1, Release("l", 1), yes)}},
	{"release of an old token refused", Ok, []step{
		did(1, Acquire("l"), got(1)), did(1, Release("l", 1), yes), did(1, Acquire("l"), got(2)), did(1, Release("l", 1), no)}},
	{"grant before the release was called", Illegal, []step{
		did(1, Acquire("l"), got(1)), call("a", 2, Acquire("l")), ret("a", got(2)), did(1, Release("l", 1), yes)}},
	{"release cut off takes effect later", Ok, []step{
		did(1, Acquire("l"), got(1)), call("r", 1, Release("l", 1)), did(2, Acquire("l"), got(2)), did(2, Release("l", 2), yes)}},
	{"release cut off takes effect once", Illegal, []step{
		did(1, Acquire("l"), got(1)), call("r", 1, Release("l", 1)), did(2, Acquire("l"), got(2)), did(3, Acquire("l"), got(3))}},
	{"release found it not held, after another's grant", Ok, []step{
		did(1, Acquire("l"), got(1)), call("r", 1, Release("l", 1)), did(2, Acquire("l"), got(2)), ret("r", no)}},
	{"acquire cut off, with effect", Ok, []step{
		call("a", 1, Acquire("l")), did(2, Acquire("l"), got(7)), did(2, Release("l", 7), yes)}},
	{"lost, then another's", Ok, []step{did(1, Acquire("l"), got(1)), lost(1, 1), did(2, Acquire("l"), got(2))}},
	{"another's, then lost", Illegal, []step{did(1, Acquire("l"), got(1)), did(2, Acquire("l"), got(2)), lost(1, 1)}},
	{"lost lock still held a while", Ok, []step{
		did(1, Acquire("l"), got(1)), lost(1, 1), call("a", 2, Acquire("l")), did(1, Release("l", 1), yes), ret("a", got(2))}},
	{"lost by one does not end another's", Illegal, []step{
		did(1, Acquire("l"), got(1)), lost(1, 1), did(2, Acquire("l"), got(2)), lost(1, 1), did(3, Acquire("l"), got(3))}},
	{"lost names another's token", Illegal, []step{did(1, Acquire("l"), got(1)), lost(2, 1), did(2, Acquire("l"), got(2))}},
	{"holder killed, lease runs out", Ok, []step{did(1, Acquire("l"), got(1)), killed(1), did(2, Acquire("l"), got(2))}},
	{"granted before the holder was killed", Illegal, []step{
		did(1, Acquire("l"), got(1)), did(2, Acquire("l"), got(2)), killed(1)}},
	{"a stranger was killed", Illegal, []step{did(1, Acquire("l"), got(1)), killed(3), did(2, Acquire("l"), got(2))}},
	{"killed while asking, answer reported late", Ok, []step{
		call("a", 1, Acquire("l")), killed(1), ret("a", got(1)), did(2, Acquire("l"), got(2))}},
	{"killed while releasing", Ok, []step{
		did(1, Acquire("l"), got(1)), call("r", 1, Release("l", 1)), killed(1), ret("r", no), did(2, Acquire("l"), got(2)),
		did(2, Release("l", 2), yes)}},
	{"killed client comes back and holds again", Ok, []step{
		did(1, Acquire("l"), got(1)), killed(1), did(1, Acquire("l"), got(2)), did(1, Release("l", 2), yes), did(2, Acquire("l"), got(3))}},
	{"a kill does not excuse the next life", Illegal, []step{
		did(1, Acquire("l"), got(1)), killed(1), did(1, Acquire("l"), got(2)), did(2, Acquire("l"), got(3))}},
}

func TestLockModelTellsGoodHistoriesFromBad(t *testing.T) {
	for _, c := range lockHistories {
		if r := write(c.h...).CheckLock(time.Minute); r.Verdict != c.want {
			t.Errorf("%s: %v (%s), want %v", c.name, r.Verdict, r.Detail, c.want)
		} else if err := r.Err(); (c.want == Illegal) != errors.Is(err, ErrIllegal) || (err == nil) != (c.want == Ok) {
			t.Errorf("%s: error %v", c.name, err)
		}
	}
}

func TestRegisterModelTellsGoodHistoriesFromBad(t *testing.T) {
	val := func(v uint64) Answer { return Answer{Value: v} }
	for _, c := range []struct {
		name string
		want Verdict
		h    []step
	}{
		{"nothing", Ok, nil},
		{"first value", Ok, []step{did(1, Read("x"), val(0))}},
		{"read of a write", Ok, []step{did(1, Write("x", 3), no), did(2, Read("x"), val(3))}},
		{"stale read", Illegal, []step{did(1, Write("x", 3), no), did(1, Write("x", 4), no), did(2, Read("x"), val(3))}},
		{"read of nothing", Illegal, []step{did(1, Read("x"), val(3))}},
		{"write forgotten", Illegal, []step{did(1, Write("x", 3), no), did(2, Read("x"), val(0))}},
		{"read from the future", Illegal, []step{did(1, Read("x"), val(3)), did(1, Write("x", 3), no)}},
		{"reads go backwards", Illegal, []step{
			call("w", 1, Write("x", 3)), did(2, Read("x"), val(3)), did(3, Read("x"), val(0)), ret("w", no)}},
		{"overlapping writes, either order", Ok, []step{
			call("w", 1, Write("x", 3)), did(2, Write("x", 4), no), ret("w", no), did(3, Read("x"), val(3))}},
		{"open write seen late", Ok, []step{
			call("w", 1, Write("x", 3)), did(2, Read("x"), val(0)), did(2, Read("x"), val(3))}},
		{"open write never seen", Ok, []step{call("w", 1, Write("x", 3)), did(2, Read("x"), val(0))}},
		{"open write undone", Illegal, []step{
			call("w", 1, Write("x", 3)), did(2, Read("x"), val(3)), did(2, Read("x"), val(0))}},
		{"write applied twice", Illegal, []step{
			did(1, Write("x", 3), no), did(2, Write("x", 4), no), did(2, Read("x"), val(4)), did(2, Read("x"), val(3))}},
		{"swap", Ok, []step{did(1, CAS("x", 0, 5), yes), did(1, CAS("x", 0, 6), Answer{Value: 5}), did(1, Read("x"), val(5))}},
		{"two swaps of one value", Illegal, []step{did(1, CAS("x", 0, 5), yes), did(2, CAS("x", 0, 6), yes)}},
		{"swap refused for no reason", Illegal, []step{did(1, CAS("x", 0, 5), no)}},
		{"swap lies about what was there", Illegal, []step{did(1, Write("x", 1), no), did(1, CAS("x", 0, 5), Answer{Value: 2})}},
		{"refused swap took effect", Illegal, []step{
			did(1, Write("x", 1), no), did(1, CAS("x", 0, 5), Answer{Value: 1}), did(1, Read("x"), val(5))}},
		{"open swap may have happened", Ok, []step{call("c", 1, CAS("x", 0, 5)), did(2, Read("x"), val(5))}},
		{"open swap happens only on its old value", Illegal, []step{
			did(1, Write("x", 1), no), call("c", 1, CAS("x", 0, 5)), did(2, Read("x"), val(5))}},
		{"registers are apart", Ok, []step{did(1, Write("x", 1), no), did(1, Read("y"), val(0))}},
	} {
		if r := write(c.h...).CheckRegister(time.Minute); r.Verdict != c.want {
			t.Errorf("%s: %v (%s), want %v", c.name, r.Verdict, r.Detail, c.want)
		}
	}
}

func TestTokensMustRiseInTheOrderOfTheGrants(t *testing.T) {
	for _, c := range []struct {
		name string
		bad  bool
		h    []step
	}{
		{"rising", false, []step{did(1, Acquire("l"), got(1)), did(2, Acquire("l"), got(3))}},
		{"repeated", true, []step{did(1, Acquire("l"), got(1)), did(2, Acquire("l"), got(1))}},
		{"repeated by overlapping grants", true, []step{
			call("a", 1, Acquire("l")), did(2, Acquire("l"), got(1)), ret("a", got(1))}},
		{"going down", true, []step{did(1, Acquire("l"), got(2)), did(2, Acquire("l"), got(1))}},
		{"going down past a higher one", true, []step{
			did(1, Acquire("l"), got(2)), did(2, Acquire("l"), got(9)), did(2, Acquire("l"), got(5))}},
		{"overlapping grants have no order", false, []step{
			call("a", 1, Acquire("l")), did(2, Acquire("l"), got(2)), ret("a", got(1))}},
		{"other lock", false, []step{did(1, Acquire("l"), got(2)), did(2, Acquire("m"), got(1))}},
		{"zero", true, []step{did(1, Acquire("l"), got(0))}},
		{"open", false, []step{did(1, Acquire("l"), got(2)), call("a", 1, Acquire("l"))}},
	} {
		if err := write(c.h...).CheckTokens(); errors.Is(err, ErrIllegal) != c.bad || (err != nil) != c.bad {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestUnknownIsNoPass(t *testing.T) {
	// Writes that all overlap and a read of a value nobody wrote: every order has to be tried.
	h := New()
	for i := range 40 {
		h.Call(i, Write("x", uint64(i+1)))
	}
	for range 40 {
		h.Return(h.Call(99, CAS("x", 999, 1)), Answer{Value: 7})
	}
	h.Return(h.Call(99, Read("x")), Answer{Value: 1000})
	r := h.CheckRegister(20 * time.Millisecond)
	if r.Verdict != Unknown || !errors.Is(r.Err(), ErrUnknown) || errors.Is(r.Err(), ErrIllegal) {
		t.Errorf("%+v, %v", r, r.Err())
	}
	if (Report{}).Err() == nil {
		t.Error("the zero report passes")
	}
}

func TestHistoryBeyondItsBoundIsUnknown(t *testing.T) {
	h := New()
	for range OperationsMax {
		h.NoEffect(h.Call(1, Write("x", 1)))
	}
	if r := h.CheckRegister(0); r.Verdict != Ok {
		t.Fatalf("at the bound: %+v", r)
	}
	id := h.Call(1, Read("x"))
	h.Return(id, Answer{Value: 77})
	if r := h.CheckRegister(0); r.Verdict != Unknown {
		t.Errorf("beyond the bound: %+v", r)
	}
	if err := h.CheckTokens(); !errors.Is(err, ErrUnknown) {
		t.Errorf("beyond the bound: %v", err)
	}
	if n := len(h.Operations()); n != OperationsMax {
		t.Errorf("%d operations", n)
	}
}

func TestNoEffectIsNotJudged(t *testing.T) {
	h := New()
	h.Return(h.Call(1, Acquire("l")), got(1))
	h.NoEffect(h.Call(2, Acquire("l")))
	if r := h.CheckLock(0); r.Verdict != Ok || r.Judged != 1 {
		t.Errorf("%+v", r)
	}
}

func TestReportNamesTheOperationThatDoesNotFit(t *testing.T) {
	h := write(did(1, Acquire("a"), got(1)), did(1, Acquire("l"), got(1)), did(2, Acquire("l"), got(2)))
	r := h.CheckLock(0)
	if r.Key != "l" || !strings.Contains(r.Detail, "client 2: acquire l = token 2") {
		t.Errorf("%+v", r)
	}
}

func TestConcurrentRecordingKeepsEveryOperation(t *testing.T) {
	h := New()
	var wg sync.WaitGroup
	for c := range 8 {
		wg.Go(func() {
			for range 200 {
				h.Return(h.Call(c, Read("x")), Answer{})
			}
		})
	}
	wg.Wait()
	if r := h.CheckRegister(time.Minute); r.Verdict != Ok || r.Judged != 1600 {
		t.Errorf("%+v", r)
	}
}

func TestHistorySurvivesEncoding(t *testing.T) {
	for _, c := range lockHistories {
		h := write(c.h...)
		var b bytes.Buffer
		if err := h.Encode(&b); err != nil {
			t.Fatal(err)
		}
		again, err := Decode(&b)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if v := again.CheckLock(0).Verdict; v != c.want {
			t.Errorf("%s: %v after decoding", c.name, v)
		}
		for i, o := range h.Operations() {
			o.deaf = false
			if !reflect.DeepEqual(o, again.Operations()[i]) {
				t.Errorf("%s: %v became %v", c.name, o, again.Operations()[i])
			}
		}
		before := again.now
		if again.Call(1, Read("x")); again.now <= before {
			t.Errorf("%s: a decoded history does not go on", c.name)
		}
	}
}

func TestDecodeRefusesWhatIsMalformed(t *testing.T) {
	read := func(times string) string { return `{"op":{"kind":"read"},` + times + "}\n" }
	if _, err := Decode(strings.NewReader(read(`"call":2`) + read(`"call":3,"return":5`))); err != nil {
		t.Errorf("well-formed: %v", err)
	}
	for _, in := range []string{
		"x", "{", strings.Repeat("x", lineBytesMax+1), `{"call":1,"op":{"kind":"steal"}}`, read(`"call":0`), read(`"call":-4`),
		read(`"call":2,"return":2`), read(`"call":2,"return":1`), read(`"call":2`) + read(`"call":2`),
		read(`"call":9223372036854775807`),
	} {
		if _, err := Decode(strings.NewReader(in)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%.40q: %v", in, err)
		}
	}
	if _, err := Decode(strings.NewReader("")); err != nil {
		t.Errorf("empty: %v", err)
	}
}

func FuzzDecodeHistory(f *testing.F) {
	var b bytes.Buffer
	_ = write(lockHistories[1].h...).Encode(&b)
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, in []byte) {
		h, err := Decode(bytes.NewReader(in))
		if err != nil {
			return
		}
		if h.CheckTokens() == nil {
			h.CheckLock(10 * time.Millisecond)
		}
		h.CheckRegister(10 * time.Millisecond)
	})
}

func TestSwapOfWhateverIsThere(t *testing.T) {
	h := write(did(1, Write("x", 5), yes))
	id := h.Call(2, Op{Kind: KindCAS, Key: "x", Value: 7})
	h.Swapped(id, 5)
	h.Swapped(id, 6) // too late
	if o := h.Operations()[1]; o.Op.Old != 5 || o.Answer != (Answer{OK: true, Value: 5}) || o.open() {
		t.Error(o)
	}
	h.Return(h.Call(1, Read("x")), Answer{Value: 7})
	if err := errors.Join(h.CheckRegister(0).Err(), h.CheckSequential(0).Err()); err != nil {
		t.Error(err)
	}
}
