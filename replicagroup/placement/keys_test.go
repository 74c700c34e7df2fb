package placement

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

// toyParts hands over nothing but the name; it refuses what the test says.
type toyParts struct {
	refuse  error
	unknown bool
	took    []string
}

func (p *toyParts) Prepare(string) bool               { return !p.unknown }
func (p *toyParts) Carve(name string) ([]byte, error) { return []byte("part of " + name), p.refuse }
func (p *toyParts) Graft(b []byte) error {
	if p.refuse == nil {
		p.took = append(p.took, string(b))
	}
	return p.refuse
}

// keyNames returns n names whose keys have one prefix, and the prefix.
func keyNames(n int) ([]string, keyspace.Prefix) {
	p := keyspace.PrefixOf(keyspace.Preimage("first").Key(), DepthMin)
	names := []string{"first"}
	for i := 0; len(names) < n; i++ {
		if name := fmt.Sprint("name-", i); p.Contains(keyspace.Preimage(name).Key()) {
			names = append(names, name)
		}
	}
	return names, p
}

func newTestKeys(gen uint64) (*Keys, []string) {
	names, p := keyNames(OwnGroupsMax + 1)
	return NewKeys(genesis(3), order.GroupID{Overlay: order.OverlayID{7}, Prefix: p, Gen: gen}), names
}

func keyApply(t testing.TB, k *Keys, now time.Duration, parts Parts, c KeyCommand) Result {
	t.Helper()
	b, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	res, err := DecodeResult(k.Apply(now, parts, b))
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func TestOwnGenerationsHoldWhatTokensHold(t *testing.T) {
	for _, c := range []struct{ parent, key, life uint64 }{{0, 0, 1}, {PrefixGenMax, KeyGenMax, OwnLivesMax}, {200<<32 | 17, 5, 6}} {
		g := OwnGen(c.parent, c.key, c.life)
		if ParentGen(g) != c.parent || KeyGen(g) != c.key || g>>32 != c.parent>>32 || g&OwnLivesMax != c.life {
			t.Errorf("%v: %x is of parent %x, key %d", c, g, ParentGen(g), KeyGen(g))
		}
	}
	if OwnGen(1, 0, 1) <= OwnGen(0, KeyGenMax, OwnLivesMax) || OwnGen(1<<32, 0, 1) <= OwnGen(PrefixGenMax, KeyGenMax, OwnLivesMax) {
		t.Error("a later prefix's group does not outrank an earlier one")
	}
}

func TestKeyGoesOutOnceAndComesBack(t *testing.T) {
	k, names := newTestKeys(0)
	parts := new(toyParts)
	out := KeyCommand{Kind: Out, Name: names[0], Members: hosts(3)}
	first := keyApply(t, k, 0, parts, out)
	key := keyspace.Preimage(names[0]).Key()
	if first.Status != OK || first.Child.Group.Prefix != KeyPrefix(key) || !k.Away(key) || k.Open() {
		t.Fatalf("out: %+v", first)
	}
	if again := keyApply(t, k, 0, parts, out); again.Status != Exists || again.Child.Group != first.Child.Group {
		t.Errorf("out twice: %+v", again)
	}
	gen := first.Child.Group.Gen
	part, _ := DecodeKeyPart(k.Query(0, PartQuery(KeyPrefix(key))))
	if part.Status != OK || !part.Ready || part.Begun || string(part.Part) != "part of "+names[0] || part.Name != names[0] {
		t.Errorf("part %+v", part)
	}
	for _, c := range []struct {
		cmd  KeyCommand
		want Status
	}{
		{KeyCommand{Kind: Begun, Name: names[0], Gen: gen + 1}, WrongGen},
		{KeyCommand{Kind: Begun, Name: names[1], Gen: gen}, NotFound},
		{KeyCommand{Kind: Begun, Name: names[0], Gen: gen}, OK},
		{KeyCommand{Kind: Begun, Name: names[0], Gen: gen}, OK},
		{KeyCommand{Kind: Adopt, Name: names[0], Gen: gen + 1, Part: []byte("late")}, WrongGen},
		{KeyCommand{Kind: Adopt, Name: names[0], Gen: gen, Part: []byte("back")}, OK},
		{KeyCommand{Kind: Adopt, Name: names[0], Gen: gen, Part: []byte("back")}, NotFound},
		{KeyCommand{Kind: Begin, Name: names[0], Gen: gen}, Malformed},
		{KeyCommand{Kind: Seal, Name: names[0], Gen: gen}, Malformed},
	} {
		if res := keyApply(t, k, 0, parts, c.cmd); res.Status != c.want {
			t.Errorf("%d %q gen %d: %v, want %v", c.cmd.Kind, c.cmd.Name, c.cmd.Gen, res.Status, c.want)
		}
	}
	if k.Away(key) || !k.Open() || len(parts.took) != 1 {
		t.Errorf("back: away %v, took %q", k.Away(key), parts.took)
	}
	if second := keyApply(t, k, 0, parts, out); second.Child.Group.Gen <= gen {
		t.Errorf("the second own group has generation %x, the first %x", second.Child.Group.Gen, gen)
	}
}

func TestKeysRefuse(t *testing.T) {
	k, names := newTestKeys(0)
	full := new(toyParts)
	full.refuse = errors.New("no")
	unknown := &toyParts{unknown: true}
	if res := keyApply(t, k, 0, unknown, KeyCommand{Kind: Out, Name: names[0], Members: hosts(3)}); res.Status != NotReady || !k.Open() {
		t.Errorf("what is not known yet: %+v", res)
	}
	if res := keyApply(t, k, 0, full, KeyCommand{Kind: Out, Name: names[0], Members: hosts(3)}); res.Status != TooLarge || !k.Open() {
		t.Errorf("what cannot be carved out: %v", res.Status)
	}
	if res := keyApply(t, k, 0, new(toyParts), KeyCommand{Kind: Out, Name: names[0], Members: hosts(2)}); res.Status != BadMember {
		t.Errorf("two members: %v", res.Status)
	}
	for i, n := range names {
		want := OK
		if i == OwnGroupsMax {
			want = TooMany
		}
		if res := keyApply(t, k, 0, new(toyParts), KeyCommand{Kind: Out, Name: n, Members: hosts(3)}); res.Status != want {
			t.Errorf("own group %d: %v, want %v", i+1, res.Status, want)
		}
	}
	other := "another"
	for i := 0; k.parent.Prefix.Contains(keyspace.Preimage(other).Key()); i++ {
		other = fmt.Sprint("another-", i)
	}
	if res := keyApply(t, k, 0, new(toyParts), KeyCommand{Kind: Out, Name: other, Members: hosts(3)}); res.Status != BadPrefix {
		t.Errorf("a key of another prefix: %v", res.Status)
	}
	k, names = newTestKeys(0)
	k.lives = OwnLivesMax
	if res := keyApply(t, k, 0, new(toyParts), KeyCommand{Kind: Out, Name: names[0], Members: hosts(3)}); res.Status != Exhausted {
		t.Errorf("one life too many: %v", res.Status)
	}
	k, names = newTestKeys(3)
	for _, c := range []struct {
		now  time.Duration
		want Status
	}{{k.Quarantine() - 1, Quarantined}, {k.Quarantine(), OK}} {
		if res := keyApply(t, k, c.now, new(toyParts), KeyCommand{Kind: Out, Name: names[0], Members: hosts(3)}); res.Status != c.want {
			t.Errorf("at %v: %v, want %v", c.now, res.Status, c.want)
		}
	}
	for _, bad := range []KeyCommand{
		{Kind: Out, Name: strings.Repeat("n", KeyNameMax+1)}, {Kind: Adopt, Part: make([]byte, PartBytesMax+1)}, {Kind: keyKindEnd}, {},
	} {
		if _, err := bad.Encode(); !errors.Is(err, ErrMalformed) {
			t.Errorf("kind %d: %v", bad.Kind, err)
		}
	}
}

func TestLostOwnGroupBeginsAboveItsTokens(t *testing.T) {
	k, names := newTestKeys(0)
	ch := keyApply(t, k, 0, new(toyParts), KeyCommand{Kind: Out, Name: names[0], Members: hosts(3)}).Child
	revive := func(gen uint64) Result {
		data := mustEncode(t, Command{Kind: Revive, Prefix: ch.Group.Prefix, Gen: gen, Members: hosts(3)})
		return keyApply(t, k, time.Second, new(toyParts), KeyCommand{Kind: Change, Change: data})
	}
	gen := ch.Group.Gen
	for want := uint64(1); want <= KeyGenMax; want++ {
		res := revive(gen)
		if res.Status != OK || KeyGen(res.Child.Group.Gen) != want || res.Child.State != Reviving {
			t.Fatalf("revival %d: %+v", want, res)
		}
		if again := revive(gen); again.Status != WrongGen {
			t.Fatalf("a late copy: %v", again.Status)
		}
		gen = res.Child.Group.Gen
	}
	if res := revive(gen); res.Status != Exhausted {
		t.Errorf("one generation too many: %v", res.Status)
	}
	part, _ := k.Part(time.Second, ch.Group.Prefix)
	if part.Ready || part.Begun || part.Part != nil {
		t.Errorf("made anew: %+v", part)
	}
	if part, _ := k.Part(time.Second+k.wait, ch.Group.Prefix); !part.Ready {
		t.Error("it never begins")
	}
}

func TestKeysRestoreWhatTheyHad(t *testing.T) {
	k, names := newTestKeys(0)
	for i, n := range names[:5] {
		ch := keyApply(t, k, 0, new(toyParts), KeyCommand{Kind: Out, Name: n, Members: hosts(3)}).Child
		if i%2 == 0 {
			keyApply(t, k, 0, new(toyParts), KeyCommand{Kind: Begun, Name: n, Gen: ch.Group.Gen})
		}
	}
	again, _ := newTestKeys(0)
	if err := again.Restore(k.Snapshot()); err != nil || !bytes.Equal(again.Snapshot(), k.Snapshot()) {
		t.Fatalf("restored: %v", err)
	}
	starting, handing := again.Unfinished()
	if len(starting) != 5 || len(handing) != 2 {
		t.Errorf("%d start and %d are handed over", len(starting), len(handing))
	}
	for i := range k.Snapshot() {
		if err := again.Restore(k.Snapshot()[:i]); err == nil {
			t.Fatalf("%d bytes of a snapshot were taken", i)
		}
	}
	if !bytes.Equal(again.Snapshot(), k.Snapshot()) {
		t.Error("a refused snapshot has changed something")
	}
}

func TestOwnGroupServesBetweenBeginAndSeal(t *testing.T) {
	key := keyspace.Preimage("first").Key()
	g := order.GroupID{Prefix: KeyPrefix(key), Gen: OwnGen(0, 0, 1)}
	o := NewOwn(g)
	parts := new(toyParts)
	do := func(c KeyCommand) OwnResult {
		t.Helper()
		b, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		res, err := DecodeOwnResult(o.Apply(parts, b))
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	steps := []struct {
		cmd    KeyCommand
		status Status
		phase  OwnPhase
	}{
		{KeyCommand{Kind: Seal, Name: "first", Gen: g.Gen}, NotFound, OwnEmpty},
		{KeyCommand{Kind: Begin, Name: "second", Gen: g.Gen}, WrongGen, OwnEmpty},
		{KeyCommand{Kind: Begin, Name: "first", Gen: g.Gen + 1}, WrongGen, OwnEmpty},
		{KeyCommand{Kind: Out, Name: "first", Gen: g.Gen}, Malformed, OwnEmpty},
		{KeyCommand{Kind: Begin, Name: "first", Gen: g.Gen, Part: []byte("it")}, OK, OwnServes},
		{KeyCommand{Kind: Begin, Name: "first", Gen: g.Gen, Part: []byte("it")}, OK, OwnServes},
		{KeyCommand{Kind: Seal, Name: "first", Gen: g.Gen}, OK, OwnSealed},
		{KeyCommand{Kind: Begin, Name: "first", Gen: g.Gen, Part: []byte("it")}, OK, OwnSealed},
		{KeyCommand{Kind: Seal, Name: "first", Gen: g.Gen}, OK, OwnSealed},
	}
	for i, s := range steps {
		res := do(s.cmd)
		if res.Status != s.status || res.Phase != s.phase || o.Away(key) != (s.phase != OwnServes) {
			t.Errorf("step %d: %v in phase %v, away %v; want %v, %v", i, res.Status, res.Phase, o.Away(key), s.status, s.phase)
		}
		again := NewOwn(g)
		if err := again.Restore(o.Snapshot()); err != nil || !bytes.Equal(again.Snapshot(), o.Snapshot()) {
			t.Errorf("step %d restored: %v", i, err)
		}
	}
	if len(parts.took) != 1 {
		t.Errorf("took %q", parts.took)
	}
	if res, err := DecodeOwnResult(o.Query(nil)); err != nil || string(res.Part) != "part of first" {
		t.Errorf("sealed: %+v, %v", res, err)
	}
	if !o.Away(keyspace.Preimage("second").Key()) {
		t.Error("serves another key")
	}
}

func FuzzDecodeKeyCommand(f *testing.F) {
	for _, c := range []KeyCommand{
		{Kind: Out, Name: "a", Members: hosts(3)}, {Kind: Adopt, Name: "a", Gen: 7, Part: []byte("x")}, {Kind: Change, Name: "b", Change: []byte("y")},
	} {
		b, _ := c.Encode()
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := DecodeKeyCommand(b)
		if err != nil {
			return
		}
		if again, err := c.Encode(); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x came back as %x: %v", b, again, err)
		}
	})
}

func FuzzDecodeOwnResult(f *testing.F) {
	f.Add(OwnResult{Status: OK, Phase: OwnSealed, Name: "n", Part: []byte("p")}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := DecodeOwnResult(b); err == nil && !bytes.Equal(r.Encode(), b) {
			t.Fatalf("%x came back as %x", b, r.Encode())
		}
	})
}

func FuzzDecodeKeyPart(f *testing.F) {
	k, names := newTestKeys(0)
	ch := keyApply(f, k, 0, new(toyParts), KeyCommand{Kind: Out, Name: names[0], Members: hosts(3)}).Child
	f.Add(k.Query(0, PartQuery(ch.Group.Prefix)))
	f.Add([]byte{byte(NotFound)})
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := DecodeKeyPart(b); err == nil && !bytes.Equal(p.Encode(), b) {
			t.Fatalf("%x came back as %x", b, p.Encode())
		}
	})
}

func FuzzRestoreKeys(f *testing.F) {
	k, names := newTestKeys(0)
	keyApply(f, k, 0, new(toyParts), KeyCommand{Kind: Out, Name: names[0], Members: hosts(3)})
	f.Add(k.Snapshot())
	f.Fuzz(func(t *testing.T, b []byte) {
		again, _ := newTestKeys(0)
		if again.Restore(b) == nil && !bytes.Equal(again.Snapshot(), b) {
			t.Fatalf("%x came back as %x", b, again.Snapshot())
		}
	})
}

func FuzzRestoreOwn(f *testing.F) {
	g := order.GroupID{Prefix: KeyPrefix(keyspace.Preimage("first").Key())}
	f.Add([]byte{ownVersion, byte(OwnServes), 0, 5, 'f', 'i', 'r', 's', 't'})
	f.Fuzz(func(t *testing.T, b []byte) {
		o := NewOwn(g)
		if o.Restore(b) == nil && !bytes.Equal(o.Snapshot(), b) {
			t.Fatalf("%x came back as %x", b, o.Snapshot())
		}
	})
}
