package placement

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

func TestGenesisRoundTrips(t *testing.T) {
	g := genesis(3)
	g.OwnGroups = true
	b, err := g.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeGenesis(b)
	if err != nil || !reflect.DeepEqual(got, g) {
		t.Fatalf("decoded %+v, %v; want %+v", got, err, g)
	}
	for i := range b {
		if _, err := DecodeGenesis(b[:i]); !errors.Is(err, ErrMalformed) {
			t.Fatalf("%d of %d bytes: %v", i, len(b), err)
		}
	}
	if _, err := DecodeGenesis(append(b, 0)); !errors.Is(err, ErrMalformed) {
		t.Fatalf("a byte too many: %v", err)
	}
	b[1+1+len(g.Name)+2+4*8] = 2 // OwnGroups: a second way to say yes
	if _, err := DecodeGenesis(b); !errors.Is(err, ErrMalformed) {
		t.Fatalf("a yes that is not 1: %v", err)
	}
}

// A document of policy manual has the bytes, and so the id, that it had before there was another policy.
func TestGenesisOfVersion1KeepsItsID(t *testing.T) {
	g := genesis(1)
	b, err := g.Encode()
	if err != nil || b[0] != 1 {
		t.Fatalf("version %d, %v", b[0], err)
	}
	const before = "7126834a9513bb511be5e3c19b8aa5fe8cc42d0d4d35ce0b70851fe571be74ea"
	if id := g.ID().Hex(); id != before {
		t.Errorf("id %s, before %s", id, before)
	}
	g.Regenesis = Leased
	l, err := g.Encode()
	if err != nil || l[0] != 2 || len(l) != len(b)+1 {
		t.Fatalf("leased: version %d of %d bytes, %v", l[0], len(l), err)
	}
	if got, err := DecodeGenesis(l); err != nil || !reflect.DeepEqual(got, g) {
		t.Fatalf("decoded %+v, %v", got, err)
	}
	at := 1 + 1 + len(g.Name) + 2 + 4*8 + 1
	for v, says := range map[byte]string{0: "with the policy of version 1", 2: "regenesis 2"} {
		l[at] = v
		if _, err := DecodeGenesis(l); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("policy %d: %v", v, err)
		}
	}
	l[0] = 5
	if _, err := DecodeGenesis(l); !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), "version 5") {
		t.Errorf("a later version: %v", err)
	}
	for _, r := range []Regenesis{Manual, Leased} {
		g := genesis(1)
		g.LeaseReads, g.Regenesis = true, r
		l, err := g.Encode()
		if err != nil || l[0] != 3 || len(l) != len(b)+2 {
			t.Fatalf("reads by leases: version %d of %d bytes, %v", l[0], len(l), err)
		}
		if got, err := DecodeGenesis(l); err != nil || !reflect.DeepEqual(got, g) {
			t.Fatalf("decoded %+v, %v", got, err)
		}
		if leases, err := ParseReads(g.Reads()); !leases || err != nil {
			t.Errorf("%s parsed as %v, %v", g.Reads(), leases, err)
		}
		l[at+1] = 0
		if _, err := DecodeGenesis(l); err == nil || !strings.Contains(err.Error(), "with the reads of version 2") {
			t.Errorf("a second way to say no: %v", err)
		}
	}
	for i, change := range []func(*Genesis){
		func(*Genesis) {}, func(g *Genesis) { g.LeaseReads = true }, func(g *Genesis) { g.Regenesis = Leased }, func(g *Genesis) { g.OwnGroups = true },
	} {
		g := genesis(1)
		g.Sigma = true
		change(&g)
		l, err := g.Encode()
		if err != nil || l[0] != 4 || len(l) != len(b)+3 {
			t.Fatalf("locks of voters, %d: version %d of %d bytes, %v", i, l[0], len(l), err)
		}
		if got, err := DecodeGenesis(l); err != nil || !reflect.DeepEqual(got, g) {
			t.Fatalf("decoded %+v, %v", got, err)
		}
		l[at+2] = 0
		if _, err := DecodeGenesis(l); err == nil || !strings.Contains(err.Error(), "with the locks of version 3") {
			t.Errorf("a second way to say no: %v", err)
		}
	}
	for _, r := range []Regenesis{Manual, Leased} {
		if p, err := ParseRegenesis(r.String()); err != nil || p != r {
			t.Errorf("%v parsed as %v, %v", r, p, err)
		}
	}
	if leases, err := ParseReads(genesis(1).Reads()); leases || err != nil {
		t.Errorf("the default parsed as %v, %v", leases, err)
	}
	if _, err := ParseReads("stale"); !errors.Is(err, ErrGenesis) {
		t.Errorf("an unknown way to read: %v", err)
	}
	if _, err := ParseRegenesis("auto"); !errors.Is(err, ErrGenesis) {
		t.Errorf("an unknown policy: %v", err)
	}
}

func TestEveryValueOfTheGenesisChangesTheOverlayID(t *testing.T) {
	seen := map[order.OverlayID]string{genesis(3).ID(): "unchanged"}
	for name, change := range map[string]func(*Genesis){
		"name":      func(g *Genesis) { g.Name = "other" },
		"founder":   func(g *Genesis) { g.Founders[1].ID = "someone" },
		"address":   func(g *Genesis) { g.Founders[1].Addrs[0] = "/ip4/127.0.0.1/tcp/1" },
		"store":     func(g *Genesis) { g.Founders[1].Store[4]++ },
		"order":     func(g *Genesis) { f := g.Founders; f[0], f[1] = f[1], f[0] },
		"root key":  func(g *Genesis) { g.RootKey[0]++ },
		"depth":     func(g *Genesis) { g.Depth++ },
		"f":         func(g *Genesis) { g.F++ },
		"lease":     func(g *Genesis) { g.Lease++ },
		"drift":     func(g *Genesis) { g.Drift++ },
		"dead":      func(g *Genesis) { g.DeadAfter++ },
		"owngroups": func(g *Genesis) { g.OwnGroups = true },
		"ttl":       func(g *Genesis) { g.TTLMax-- },
		"regenesis": func(g *Genesis) { g.Regenesis = Leased },
		"reads":     func(g *Genesis) { g.LeaseReads = true },
		"sigma":     func(g *Genesis) { g.Sigma = true },
		"nonce":     func(g *Genesis) { g.Nonce[0]++ },
	} {
		g := genesis(3)
		change(&g)
		id := g.ID()
		if id == (order.OverlayID{}) {
			t.Errorf("%s: the changed document is not valid: %v", name, g.Validate())
		}
		if other, ok := seen[id]; ok {
			t.Errorf("%s has the id of %s", name, other)
		}
		seen[id] = name
	}
}

func TestGenesisRefusesValuesOutOfRange(t *testing.T) {
	for name, change := range map[string]func(*Genesis){
		"no name":              func(g *Genesis) { g.Name = "" },
		"long name":            func(g *Genesis) { g.Name = strings.Repeat("n", NameBytesMax+1) },
		"control character":    func(g *Genesis) { g.Name = "a\nb" },
		"not UTF-8":            func(g *Genesis) { g.Name = "\xff" },
		"no founder":           func(g *Genesis) { g.Founders = nil },
		"two founders":         func(g *Genesis) { g.Founders = g.Founders[:2] },
		"more than 2f+1":       func(g *Genesis) { g.F = 0 },
		"same founder twice":   func(g *Genesis) { g.Founders[2].ID = g.Founders[0].ID },
		"same store twice":     func(g *Genesis) { g.Founders[2].Store = g.Founders[0].Store },
		"no store":             func(g *Genesis) { g.Founders[0].Store = order.StoreID{} },
		"no peer id":           func(g *Genesis) { g.Founders[0].ID = "" },
		"long peer id":         func(g *Genesis) { g.Founders[0].ID = strings.Repeat("x", PeerIDBytesMax+1) },
		"empty address":        func(g *Genesis) { g.Founders[0].Addrs = []string{""} },
		"long address":         func(g *Genesis) { g.Founders[0].Addrs = []string{strings.Repeat("x", AddrBytesMax+1)} },
		"address with newline": func(g *Genesis) { g.Founders[0].Addrs = []string{"/ip4\n/x"} },
		"many addresses":       func(g *Genesis) { g.Founders[0].Addrs = slicesRepeat("/x", AddrsMax+1) },
		"no root key":          func(g *Genesis) { g.RootKey = nil },
		"depth 0":              func(g *Genesis) { g.Depth = DepthMin - 1 },
		"depth too large":      func(g *Genesis) { g.Depth = DepthMax + 1 },
		"f negative":           func(g *Genesis) { g.F = -1 },
		"f too large":          func(g *Genesis) { g.F = FMax + 1 },
		"lease short":          func(g *Genesis) { g.Lease = LeaseMin - 1 },
		"lease long":           func(g *Genesis) { g.Lease = LeaseMax + 1 },
		"no drift":             func(g *Genesis) { g.Drift = DriftMin - 1 },
		"drift too large":      func(g *Genesis) { g.Drift = DriftMax + 1 },
		"dead after negative":  func(g *Genesis) { g.DeadAfter = -time.Second },
		"dead after too long":  func(g *Genesis) { g.DeadAfter = DeadAfterMax + 1 },
		"regenesis":            func(g *Genesis) { g.Regenesis = Leased + 1 },
		"ttl short":            func(g *Genesis) { g.TTLMax = TTLMaxMin - 1 },
		"ttl long":             func(g *Genesis) { g.TTLMax = TTLMaxMax + 1 },
		"no nonce":             func(g *Genesis) { g.Nonce = [16]byte{} },
	} {
		g := genesis(3)
		change(&g)
		if err := g.Validate(); !errors.Is(err, ErrGenesis) {
			t.Errorf("%s: %v", name, err)
		}
		if b, err := g.Encode(); !errors.Is(err, ErrGenesis) || b != nil {
			t.Errorf("%s: encoded to %d bytes, %v", name, len(b), err)
		}
		if g.ID() != (order.OverlayID{}) {
			t.Errorf("%s: has an id", name)
		}
	}
}

func slicesRepeat(s string, n int) []string {
	var list []string
	for range n {
		list = append(list, s)
	}
	return list
}

func TestTheRootBeginsWithTheFounders(t *testing.T) {
	g := genesis(3)
	v := g.RootView()
	if v.Num != 0 || v.Next != 4 || len(v.Voters()) != 3 {
		t.Fatalf("view %+v", v)
	}
	for i, m := range v.Members {
		if m.ID != order.ReplicaID(i+1) || m.Peer != g.Founders[i].Node() || m.Store != g.Founders[i].Store || m.Role != order.Voter {
			t.Errorf("member %d is %+v", i, m)
		}
	}
	if d := g.RootDescriptor(); d.Validate() != nil || d.Group != g.RootGroup() || d.Group.Prefix.Len != 0 {
		t.Errorf("descriptor %+v: %v", d, d.Validate())
	}
}

func TestAnchorsLieUnderTheirPrefix(t *testing.T) {
	id := genesis(1).ID()
	for i := range 40 {
		p := prefix(i * 6)
		a, err := Anchor(id, p)
		if err != nil || !p.Contains(a.Key()) {
			t.Fatalf("anchor of %v: %q, %v", p, a, err)
		}
		other, _ := Anchor(order.OverlayID{1}, p)
		if other == a {
			t.Fatalf("two overlays share the anchor of %v", p)
		}
	}
	root, err := Anchor(id, keyspace.Prefix{})
	if err != nil || root != keyspace.Preimage("root"+string(id[:])) {
		t.Fatalf("root anchor %q, %v", root, err)
	}
}

func TestGenesisFileRoundTrips(t *testing.T) {
	g := genesis(3)
	text, err := g.Text()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{string(text), "# more\n\n" + string(text) + "\n# and more", strings.ReplaceAll(string(text), "\n", "\r\n")} {
		got, err := ReadGenesis(strings.NewReader(s))
		if err != nil || got.ID() != g.ID() {
			t.Fatalf("read %v, %v from\n%s", got.ID(), err, s)
		}
	}
}

func TestGenesisFileIsRefusedWithAReason(t *testing.T) {
	text, _ := genesis(1).Text()
	whole := string(text)
	cut := whole[:len(whole)-20]
	for name, c := range map[string]struct{ in, says string }{
		"empty":         {"", "without the line"},
		"only comments": {"# hello\n", "without the line"},
		"another file":  {"{\"name\": \"x\"}\n", "not a genesis file"},
		"later version": {strings.Replace(whole, genesisHeader, "latchkey genesis 2", 1), "not a genesis file"},
		"truncated":     {cut, "malformed"},
		"not base64":    {genesisHeader + "\n!!!!\n", "base64"},
		"too long":      {strings.Repeat("#\n", GenesisTextBytesMax), "more than"},
	} {
		_, err := ReadGenesis(strings.NewReader(c.in))
		if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestANameCannotBreakOutOfItsComment(t *testing.T) {
	g := genesis(1)
	g.Name = "x\nlatchkey genesis 1"
	if _, err := g.Text(); err == nil {
		t.Fatal("a name with a line break was written")
	}
}

func FuzzDecodeGenesis(f *testing.F) {
	for _, n := range []int{1, 3} {
		g := genesis(n)
		b, _ := g.Encode()
		f.Add(b)
		g.Regenesis = Leased
		b, _ = g.Encode()
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		g, err := DecodeGenesis(b)
		if err != nil {
			return
		}
		if again, err := g.Encode(); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x became %x, %v", b, again, err)
		}
		text, err := g.Text()
		if err != nil {
			t.Fatal(err)
		}
		if h, err := ReadGenesis(bytes.NewReader(text)); err != nil || h.ID() != g.ID() {
			t.Fatalf("its file does not read: %v", err)
		}
	})
}

func FuzzReadGenesis(f *testing.F) {
	text, _ := genesis(3).Text()
	f.Add(text)
	f.Add([]byte("# nothing\n" + genesisHeader + "\nAQ==\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		g, err := ReadGenesis(bytes.NewReader(b))
		if err == nil && g.Validate() != nil {
			t.Fatalf("read a document that is not valid: %v", g.Validate())
		}
	})
}
