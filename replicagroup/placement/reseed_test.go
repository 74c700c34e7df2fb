package placement

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"latchkey/replicagroup/order"
)

// reseedable returns a document whose root key the test has.
func reseedable() (Genesis, ed25519.PrivateKey) {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	g := genesis(1)
	g.RootKey = key.Public().(ed25519.PublicKey)
	return g, key
}

func signed(t testing.TB, change func(*Reseed)) (Genesis, []byte) {
	t.Helper()
	g, key := reseedable()
	r := Reseed{Overlay: g.ID(), OverlayGen: 1, Founders: hosts(3)}
	if change != nil {
		change(&r)
	}
	b, err := r.Sign(g, key)
	if err != nil {
		t.Fatal(err)
	}
	return g, b
}

func TestAReseedDocumentNamesANewRoot(t *testing.T) {
	g, b := signed(t, func(r *Reseed) { r.OverlayGen = OverlayGenMax })
	r, err := OpenReseed(g, b)
	if err != nil || r.OverlayGen != OverlayGenMax || !reflect.DeepEqual(r.Founders, hosts(3)) {
		t.Fatalf("opened %+v, %v", r, err)
	}
	d := r.RootDescriptor()
	if err := d.Validate(); err != nil || d.Group != r.RootGroup() || d.Group.Gen != OverlayGenMax<<32 || d.Group.Prefix.Len != 0 || !Newer(d, g.RootDescriptor()) {
		t.Errorf("its root is %+v, %v", d, err)
	}
}

func TestOnlyTheRootKeyMakesAReseedDocument(t *testing.T) {
	g, key := reseedable()
	other := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, ed25519.SeedSize))
	good := Reseed{Overlay: g.ID(), OverlayGen: 1, Founders: hosts(3)}
	for name, c := range map[string]struct {
		change func(*Reseed)
		key    ed25519.PrivateKey
	}{
		"another key":      {nil, other},
		"no key":           {nil, nil},
		"another overlay":  {func(r *Reseed) { r.Overlay[0]++ }, key},
		"generation 0":     {func(r *Reseed) { r.OverlayGen = 0 }, key},
		"nobody":           {func(r *Reseed) { r.Founders = nil }, key},
		"an even number":   {func(r *Reseed) { r.Founders = hosts(2) }, key},
		"more than 2f+1":   {func(r *Reseed) { r.Founders = hosts(5) }, key},
		"a founder twice":  {func(r *Reseed) { r.Founders = []Host{host(1), host(2), host(1)} }, key},
		"without a store":  {func(r *Reseed) { r.Founders = []Host{{Peer: host(1).Peer}} }, key},
		"a bad peer":       {func(r *Reseed) { r.Founders = []Host{{Store: host(1).Store}} }, key},
		"not an address":   {func(r *Reseed) { h := host(1); h.Addrs = []string{" "}; r.Founders = []Host{h} }, key},
		"too long a peer":  {func(r *Reseed) { h := host(1); h.ID = strings.Repeat("x", PeerIDBytesMax+1); r.Founders = []Host{h} }, key},
		"the overlay zero": {func(r *Reseed) { r.Overlay = order.OverlayID{} }, key},
	} {
		r := good
		if c.change != nil {
			c.change(&r)
		}
		if b, err := r.Sign(g, c.key); !errors.Is(err, ErrReseed) || b != nil {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
}

func TestAProposalIsNoDocument(t *testing.T) {
	g, key := reseedable()
	r := Reseed{Overlay: g.ID(), OverlayGen: 3, Founders: hosts(1)}
	b, err := r.Propose(g)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenReseed(g, b); err == nil {
		t.Error("a proposal counts without a signature")
	}
	got, err := DecodeProposal(g, b)
	if err != nil || !reflect.DeepEqual(got, r) {
		t.Fatalf("decoded %+v, %v", got, err)
	}
	doc, err := got.Sign(g, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenReseed(g, doc); err != nil {
		t.Errorf("signed: %v", err)
	}
	for name, b := range map[string][]byte{"empty": nil, "truncated": b[:9], "a byte more": append(bytes.Clone(b), 0), "too long": make([]byte, ReseedBytesMax+1), "signed": doc} {
		if _, err := DecodeProposal(g, b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.OverlayGen = 0
	if _, err := r.Propose(g); !errors.Is(err, ErrReseed) {
		t.Errorf("generation 0: %v", err)
	}
}

// Every changed bit makes a document that is refused.
func TestAReseedDocumentThatWasChangedIsRefused(t *testing.T) {
	g, b := signed(t, nil)
	for i := range b {
		for bit := range 8 {
			forged := bytes.Clone(b)
			forged[i] ^= 1 << bit
			if r, err := OpenReseed(g, forged); !errors.Is(err, ErrReseed) && !errors.Is(err, ErrMalformed) {
				t.Fatalf("byte %d, bit %d: %+v, %v", i, bit, r, err)
			}
		}
		if _, err := OpenReseed(g, b[:i]); err == nil {
			t.Fatalf("the first %d bytes were taken", i)
		}
	}
	if _, err := OpenReseed(g, append(bytes.Clone(b), 0)); err == nil {
		t.Error("a byte more was taken")
	}
	if _, err := OpenReseed(g, make([]byte, ReseedBytesMax+1)); !errors.Is(err, ErrMalformed) {
		t.Errorf("too many bytes: %v", err)
	}
	elsewhere := g
	elsewhere.Nonce[0]++
	if _, err := OpenReseed(elsewhere, b); !errors.Is(err, ErrReseed) {
		t.Errorf("in another overlay of the same key: %v", err)
	}
}

// The bound is that of what can be signed, at its edge.
func TestTheLargestReseedDocumentFits(t *testing.T) {
	g, key := reseedable()
	g.F = FMax
	r := Reseed{Overlay: g.ID(), OverlayGen: 1}
	for i := range 2*FMax + 1 {
		r.Founders = append(r.Founders, Host{Peer: largest().Peers[i], Store: storeID(byte(i + 1))})
	}
	b, err := r.Sign(g, key)
	if err != nil || len(b) > ReseedBytesMax {
		t.Fatalf("%d bytes, %v; the bound says %d", len(b), err, ReseedBytesMax)
	}
	if got, err := OpenReseed(g, b); err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("opened %+v, %v", got, err)
	}
}

func FuzzOpenReseed(f *testing.F) {
	g, b := signed(f, nil)
	f.Add(b)
	f.Add(b[:70])
	_, key := reseedable()
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := OpenReseed(g, b)
		if err != nil {
			if !errors.Is(err, ErrReseed) && !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if again, err := r.Sign(g, key); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x became %x, %v", b, again, err)
		}
	})
}

// reseeded returns the directory of a root of the overlay's first later generation.
func reseeded() (*Directory, time.Duration) {
	g := genesis(3)
	return NewDirectory(g, order.GroupID{Gen: 1 << 32}), g.Drift.Stretch(g.Lease)
}

// at executes c at a log time.
func at(t testing.TB, d *Directory, now time.Duration, c Command) Result {
	t.Helper()
	res, err := DecodeResult(d.Apply(now, mustEncode(t, c)))
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func TestANewRootAdoptsWhatSurvived(t *testing.T) {
	d, end := reseeded()
	create := func(i int) Command { return Command{Kind: Create, Prefix: prefix(i), Members: hosts(3)} }
	update := func(to Descriptor) Command { return Command{Kind: Update, Prefix: to.Group.Prefix, Descriptor: to} }
	if res := at(t, d, end-1, create(1)); res.Status != Quarantined {
		t.Fatalf("a group was made while survivors may be on their way: %v", res.Status)
	}
	// A survivor keeps generation, view and members, and needs no Starts. Of two lives the later one counts.
	survivor := viewed(child(t, 1), 6, 0, 1, 7)
	res := at(t, d, 5, update(survivor))
	if res.Status != OK || !reflect.DeepEqual(res.Child.Descriptor, survivor) || res.Child.State != Live || !res.Child.AllStarted() || len(d.Unstarted()) != 0 {
		t.Fatalf("adopted: %v, %+v", res.Status, res.Child)
	}
	later := viewed(revived(t), 2, 0, 4, 5)
	if res := at(t, d, 6, update(later)); res.Status != OK || res.Child.Group.Gen != 1 {
		t.Errorf("a later life of it: %v, %v", res.Status, res.Child.Group)
	}
	if res := at(t, d, 7, update(survivor)); res.Status != WrongGen || res.Child.Group.Gen != 1 {
		t.Errorf("the earlier one again: %v, %v", res.Status, res.Child.Group)
	}
	if res := at(t, d, 8, create(1)); res.Status != Exists || res.Child.Group != later.Group {
		t.Errorf("create of an adopted prefix: %v, %v", res.Status, res.Child.Group)
	}
	// Nobody came for prefix 2: it gets a group of the new generation, after which a survivor is too late.
	if res := at(t, d, end, create(2)); res.Status != OK || res.Child.Group.Gen != 1<<32 || res.Child.State != Live {
		t.Fatalf("after the quarantine: %v, %v", res.Status, res.Child.Group)
	}
	if res := at(t, d, end, update(child(t, 2).Descriptor)); res.Status != WrongGen {
		t.Errorf("too late: %v", res.Status)
	}
	if res := at(t, d, end, update(child(t, 3).Descriptor)); res.Status != OK {
		t.Errorf("late, and its prefix is free still: %v", res.Status)
	}
	// What is revived from now on outranks everything before.
	res = at(t, d, end, Command{Kind: Revive, Prefix: prefix(1), Gen: 1, Members: hosts(3)})
	if res.Status != OK || res.Child.Group.Gen != 1<<32 || res.Child.Former.Gen != 1 {
		t.Errorf("an adopted group revived: %v, %+v", res.Status, res.Child)
	}
	if res := at(t, d, end, Command{Kind: Revive, Prefix: prefix(1), Gen: 1 << 32, Members: hosts(3)}); res.Status != OK || res.Child.Group.Gen != 1<<32|1 {
		t.Errorf("and again: %v, %+v", res.Status, res.Child)
	}
	// Nobody makes up a group of the new generation, or of one to come, by telling of its view.
	for _, gen := range []uint64{1 << 32, 2 << 32} {
		forged := child(t, 9).Descriptor
		forged.Group.Gen = gen
		if res := at(t, d, end, update(forged)); res.Status != NotFound {
			t.Errorf("an update of generation %x: %v", gen, res.Status)
		}
	}
	again, _ := reseeded()
	if err := again.Restore(d.Snapshot()); err != nil || !bytes.Equal(again.Snapshot(), d.Snapshot()) {
		t.Errorf("restored: %v", err)
	}
	if err := NewDirectory(genesis(3), order.GroupID{}).Restore(d.Snapshot()); !errors.Is(err, ErrMalformed) {
		t.Errorf("a first root took groups of a later one: %v", err)
	}
}

func TestAFirstRootAdoptsNobodyAndDoesNotWait(t *testing.T) {
	d := NewDirectory(genesis(3), order.GroupID{})
	if res := at(t, d, 0, Command{Kind: Update, Prefix: prefix(1), Descriptor: child(t, 1).Descriptor}); res.Status != NotFound {
		t.Errorf("update: %v", res.Status)
	}
	if res := at(t, d, 0, Command{Kind: Create, Prefix: prefix(1), Members: hosts(3)}); res.Status != OK || res.Child.Group.Gen != 0 {
		t.Errorf("create: %v", res.Status)
	}
}

// The planted mistake: a new root that creates at once makes a second group beside one that survived (I7), which then is over though
// it lived.
func TestARootWithoutQuarantineMakesSecondGroups(t *testing.T) {
	doubled := func(m mutant) bool {
		d, end := reseeded()
		d.mutant = m
		made := at(t, d, end/2, Command{Kind: Create, Prefix: prefix(1), Members: hosts(3)})
		came := at(t, d, end-1, Command{Kind: Update, Prefix: prefix(1), Descriptor: child(t, 1).Descriptor})
		return made.Status == OK && came.Status == WrongGen
	}
	if doubled(0) || !doubled(mutantNoQuarantine) {
		t.Errorf("second group: %v as it is, %v with the mistake", doubled(0), doubled(mutantNoQuarantine))
	}
}
