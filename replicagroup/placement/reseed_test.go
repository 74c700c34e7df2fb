package placement

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"latchkey/internal/automaton"
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

func TestAReseedDocumentNamesTheStateToBeginWith(t *testing.T) {
	g, b := signed(t, func(r *Reseed) { r.State = [32]byte{7} })
	r, err := OpenReseed(g, b)
	if err != nil || !r.Inherits() || r.State != [32]byte{7} || b[0] != reseedVersionState {
		t.Fatalf("opened %+v, %v", r, err)
	}
	if _, without := signed(t, nil); without[0] != reseedVersion || len(b) != len(without)+32 {
		t.Errorf("a document without a state has version %d and %d bytes, one with it %d", without[0], len(without), len(b))
	}
	zero := bytes.Clone(b) // a state that is none, written out: there is one encoding of each document
	clear(zero[34:66])
	if _, err := DecodeProposal(g, zero[:len(zero)-64]); !errors.Is(err, ErrMalformed) {
		t.Errorf("no state written out: %v", err)
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
	r := Reseed{Overlay: g.ID(), OverlayGen: 1, State: [32]byte{1}}
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
	_, with := signed(f, func(r *Reseed) { r.State[3] = 1 })
	f.Add(with)
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

// former returns the snapshot of a directory as a replica of the overlay's first root left it: prefix 1 has its second generation, in view
// 3, of prefix 2 nobody but the first member has started, and of prefix 3 all have.
func former(t testing.TB) []byte {
	t.Helper()
	d := NewDirectory(genesis(3), order.GroupID{})
	for i := 1; i <= 3; i++ {
		at(t, d, 0, Command{Kind: Create, Prefix: prefix(i), Members: hosts(3)})
	}
	at(t, d, 0, Command{Kind: Revive, Prefix: prefix(1), Gen: 0, Members: hosts(3)})
	for i := 1; i <= 3; i++ {
		ch, _ := d.Lookup(prefix(i))
		for _, m := range ch.View.Members {
			if i != 2 || m.ID == 1 {
				at(t, d, 0, Command{Kind: Reported, Prefix: prefix(i), Gen: ch.Group.Gen, Replica: m.ID, Store: m.Store})
			}
		}
	}
	at(t, d, 0, Command{Kind: Update, Prefix: prefix(1), Descriptor: viewed(revived(t), 3, 0, 1, 2)})
	return d.Snapshot()
}

// Conformance test 44, with a survivor's state: what it knew is where to begin, and no more than that.
func TestANewRootBeginsWithWhatASurvivorKnew(t *testing.T) {
	g := genesis(3)
	d, err := Inherit(g, order.GroupID{Gen: 1 << 32}, former(t))
	if err != nil || d.Len() != 3 || len(d.Unstarted()) != 0 || d.Open() {
		t.Fatalf("%d groups, %d to be started, open %v, %v", d.Len(), len(d.Unstarted()), d.Open(), err)
	}
	end := g.Drift.Stretch(g.Lease)
	create := func(i int) Command { return Command{Kind: Create, Prefix: prefix(i), Members: hosts(3)} }
	update := func(to Descriptor) Command { return Command{Kind: Update, Prefix: to.Group.Prefix, Descriptor: to} }

	// Long after the quarantine nothing takes the place of what it knew: its majority may only be down.
	for i := 1; i <= 3; i++ {
		if res := at(t, d, end+1, create(i)); res.Status != Exists || res.Child.State != Inherited {
			t.Errorf("prefix %d: %v, %v", i, res.Status, res.Child.State)
		}
	}
	// Nor is it told to start, and who says to have started it is not believed: a later generation may live.
	if res := at(t, d, end+1, Command{Kind: Reported, Prefix: prefix(2), Replica: 2, Store: child(t, 2).View.Members[1].Store}); res.Status != NotFound {
		t.Errorf("reported: %v", res.Status)
	}
	// An earlier generation and an earlier view than it knew are over; what it knew, or more, lives when a member says so.
	if res := at(t, d, end+1, update(child(t, 1).Descriptor)); res.Status != WrongGen {
		t.Errorf("an earlier generation: %v", res.Status)
	}
	if res := at(t, d, end+1, update(viewed(revived(t), 2, 0, 1, 2))); res.Status != Stale {
		t.Errorf("an earlier view: %v", res.Status)
	}
	same := viewed(revived(t), 3, 0, 1, 2)
	if res := at(t, d, end+1, update(same)); res.Status != OK || res.Child.State != Live || !res.Child.AllStarted() || !reflect.DeepEqual(res.Child.Descriptor, same) || res.Child.Former.Gen != 0 {
		t.Errorf("what it knew: %v, %+v", res.Status, res.Child)
	}
	// Of what it did not hear of, the later generation counts.
	later := child(t, 3).Descriptor
	later.Group.Gen = 2
	if res := at(t, d, end+1, update(later)); res.Status != OK || res.Child.Group.Gen != 2 || res.Child.State != Live {
		t.Errorf("a later generation: %v, %+v", res.Status, res.Child)
	}
	if res := at(t, d, end+1, update(child(t, 3).Descriptor)); res.Status != WrongGen {
		t.Errorf("and the one before: %v", res.Status)
	}
	// What nobody comes for is revived above everything before.
	if res := at(t, d, end+1, Command{Kind: Revive, Prefix: prefix(2), Members: hosts(3)}); res.Status != OK || res.Child.Group.Gen != 1<<32 || res.Child.State != Reviving {
		t.Errorf("revived: %v, %+v", res.Status, res.Child)
	}
	if res := at(t, d, end+1, create(4)); res.Status != OK || res.Child.Group.Gen != 1<<32 {
		t.Errorf("a prefix that was never used: %v, %v", res.Status, res.Child.Group)
	}
	again := NewDirectory(g, order.GroupID{Gen: 1 << 32})
	if err := again.Restore(d.Snapshot()); err != nil || !bytes.Equal(again.Snapshot(), d.Snapshot()) {
		t.Errorf("restored: %v", err)
	}
	// The next root inherits what this one has; none inherits from its own generation, or a later one.
	if next, err := Inherit(g, order.GroupID{Gen: 2 << 32}, d.Snapshot()); err != nil || next.Len() != 4 {
		t.Errorf("the next root: %v", err)
	}
	for _, b := range [][]byte{d.Snapshot(), nil, {9}} {
		if _, err := Inherit(g, order.GroupID{Gen: 1 << 32}, b); !errors.Is(err, ErrMalformed) {
			t.Errorf("inherited %d bytes: %v", len(b), err)
		}
	}
}

// Planted mistakes, each of which makes a prefix have two groups, or fall back to a generation that is over, for some later word.
func TestPlantedMistakesOfInheritingAreCaught(t *testing.T) {
	g := genesis(3)
	for name, c := range map[string]struct {
		m     mutant
		wrong func(d *Directory) bool
	}{
		"what a survivor knew is started": {mutantInheritLive, func(d *Directory) bool { return len(d.Unstarted()) > 0 }},
		"an earlier generation returns": {mutantInheritNoFloor, func(d *Directory) bool {
			return at(t, d, 0, Command{Kind: Update, Prefix: prefix(1), Descriptor: child(t, 1).Descriptor}).Child.Group.Gen == 0
		}},
		"a second group beside it": {mutantInheritFree, func(d *Directory) bool {
			return at(t, d, g.Drift.Stretch(g.Lease), Command{Kind: Create, Prefix: prefix(3), Members: hosts(3)}).Status == OK
		}},
	} {
		for _, planted := range []bool{false, true} {
			d := NewDirectory(g, order.GroupID{Gen: 1 << 32})
			if planted {
				d.mutant = c.m
			}
			if err := d.inherit(former(t)); err != nil {
				t.Fatal(err)
			}
			if c.wrong(d) != planted {
				t.Errorf("%s: planted %v, found %v", name, planted, !planted)
			}
		}
	}
}

// A member that was told to start what a survivor knew does not: see [Inherit].
func TestWhatASurvivorKnewIsNotStarted(t *testing.T) {
	known := child(t, 1)
	known.State = Inherited
	h := NewHosting(HostingConfig{Genesis: genesis(3), Self: known.View.Members[0].Peer, Store: known.View.Members[0].Store})
	out := h.Step(StartReplica{Ref: 1, From: known.View.Members[1].Peer, Descriptor: known.Descriptor}, nil)
	if len(out) != 1 || out[0] != (Confirm{known.Group}) {
		t.Fatalf("%+v", out)
	}
	out = h.Step(Confirmed{Group: known.Group, Child: known}, nil)
	if a, ok := out[0].(AnswerStart); len(out) != 1 || !ok || !errors.Is(a.Err, ErrUnconfirmed) {
		t.Errorf("%+v", out)
	}
}

// A root of a later generation lends nothing before what the former one has lent is over: the later generation of a group, which may have
// such a lease, may not have told of itself yet, where an earlier one has (I7).
func TestANewRootGrantsNoLeaseInItsQuarantine(t *testing.T) {
	for _, m := range []mutant{0, mutantGrantInQuarantine} {
		d, end := reseeded()
		lives := child(t, 1).Descriptor
		at(t, d, 1, Command{Kind: Update, Prefix: prefix(1), Descriptor: lives})
		grantor := NewLeaseGrantor(genesis(3), d)
		grantor.mutant = m
		grantor.Step(Leads{On: true}, 1, nil)
		renewed := func() bool {
			grantor.Step(Renew{Ref: 1, Groups: []order.GroupID{lives.Group}}, 2, nil)
			out := grantor.Step(RoundEnded{Round: grantor.round, OK: true, Own: automaton.Never}, 2, nil)
			a, ok := out[0].(AnswerRenew)
			return ok && a.OK && len(a.Refused) == 0
		}
		if renewed() != (m != 0) {
			t.Errorf("mistake %d: granted in quarantine: %v", m, m == 0)
		}
		if d.Pass(end); !renewed() {
			t.Errorf("mistake %d: refused after it", m)
		}
	}
}
