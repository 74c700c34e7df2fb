package placement

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

// largest returns a descriptor in which everything is as long as it may be.
func largest() Descriptor {
	d := Descriptor{Group: order.GroupID{Prefix: keyspace.PrefixOf(keyspace.Key{0xff}, keyspace.PrefixBitsMax), Gen: 1}, Engine: EngineRaft}
	d.View.Next = MembersMax + 1
	for i := range MembersMax {
		p := Peer{ID: strings.Repeat(string(rune('a'+i)), PeerIDBytesMax), Addrs: slicesRepeat(strings.Repeat("/", AddrBytesMax), AddrsMax)}
		d.Peers = append(d.Peers, p)
		d.View.Members = append(d.View.Members, order.Member{ID: order.ReplicaID(i + 1), Peer: p.Node(), Store: storeID(byte(i + 1)), Role: order.Voter, PeerID: p.ID})
	}
	return d
}

func TestTheLargestDescriptorFitsAResult(t *testing.T) {
	d := largest()
	b, err := d.Encode()
	if err != nil || len(b) != DescriptorBytesMax {
		t.Fatalf("%d bytes, %v; the bound says %d", len(b), err, DescriptorBytesMax)
	}
	if got, err := DecodeDescriptor(b); err != nil || !reflect.DeepEqual(got, d) {
		t.Fatalf("decoded %+v, %v", got, err)
	}
	if n := len(Result{Status: OK, Child: Child{Descriptor: d}}.Encode()); n != DescriptorBytesMax+20 || n > 16<<10 {
		t.Fatalf("a result of %d bytes", n)
	}
	if _, err := DecodeDescriptor(append(b, 0)); !errors.Is(err, ErrMalformed) {
		t.Fatalf("one byte more: %v", err)
	}
}

func TestAPeerThatLostItsStoreMayLearnBesideItsFormerSelf(t *testing.T) {
	d := genesis(3).RootDescriptor()
	m := d.View.Members[0]
	m.ID, m.Store, m.Role = d.View.Next, storeID(99), order.Learner
	d.View.Next++
	d.View.Members, d.Peers = append(d.View.Members, m), append(d.Peers, d.Peers[0])
	b, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DecodeDescriptor(b); err != nil || !reflect.DeepEqual(got, d) {
		t.Fatalf("decoded %+v, %v", got, err)
	}
}

func TestADescriptorThatContradictsItselfIsRefused(t *testing.T) {
	for name, change := range map[string]func(*Descriptor){
		"engine":        func(d *Descriptor) { d.Engine = 9 },
		"nobody":        func(d *Descriptor) { d.View.Members, d.Peers = nil, nil },
		"too many":      func(d *Descriptor) { *d = largest(); d.View.Members = append(d.View.Members, order.Member{}) },
		"peers missing": func(d *Descriptor) { d.Peers = d.Peers[:2] },
		"ids fall":      func(d *Descriptor) { d.View.Members[1].ID = 1 },
		"id above next": func(d *Descriptor) { d.View.Next = 3 },
		"role":          func(d *Descriptor) { d.View.Members[0].Role = 0 },
		"no voter":      func(d *Descriptor) { setRoles(d, order.Learner) },
		"no store":      func(d *Descriptor) { d.View.Members[0].Store = order.StoreID{} },
		"store twice":   func(d *Descriptor) { d.View.Members[0].Store = d.View.Members[1].Store },
		"other node":    func(d *Descriptor) { d.View.Members[0].Peer[0]++ },
		"other name":    func(d *Descriptor) { d.View.Members[0].PeerID = "somebody else" },
		"votes twice": func(d *Descriptor) {
			d.Peers[1] = d.Peers[0]
			m := d.View.Members
			m[1].Peer, m[1].PeerID = m[0].Peer, m[0].PeerID
		},
		"bad peer":        func(d *Descriptor) { d.Peers[0].Addrs = []string{" "} },
		"prefix not even": func(d *Descriptor) { d.Group.Prefix.Bits[31] = 1 },
	} {
		d := genesis(3).RootDescriptor()
		change(&d)
		if _, err := d.Encode(); !errors.Is(err, ErrDescriptor) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func setRoles(d *Descriptor, r order.Role) {
	for i := range d.View.Members {
		d.View.Members[i].Role = r
	}
}

func TestNewerGoesByGenerationThenView(t *testing.T) {
	at := func(gen, view uint64) Descriptor {
		d := genesis(1).RootDescriptor()
		d.Group.Gen, d.View.Num = gen, view
		return d
	}
	other := at(9, 9)
	other.Group.Prefix = prefix(1)
	for _, c := range []struct {
		a, b Descriptor
		want bool
	}{
		{at(0, 1), at(0, 0), true},
		{at(0, 0), at(0, 1), false},
		{at(0, 0), at(0, 0), false},
		{at(1, 0), at(0, 7), true},
		{at(0, 7), at(1, 0), false},
		{at(0, 0), Descriptor{}, true},
		{Descriptor{}, at(0, 0), false},
		{Descriptor{}, Descriptor{}, false},
		{other, at(0, 0), false},
	} {
		if got := Newer(c.a, c.b); got != c.want {
			t.Errorf("Newer(%v view %d, %v view %d) = %v", c.a.Group, c.a.View.Num, c.b.Group, c.b.View.Num, got)
		}
	}
}

func TestTheFirstCommitWins(t *testing.T) {
	d := NewDirectory(genesis(3), order.GroupID{})
	first := apply(t, d, Command{Kind: Create, Prefix: prefix(7), Members: hosts(3)})
	if first.Status != OK || first.Child.Group.Prefix != prefix(7) || first.Child.Group.Overlay != genesis(3).ID() {
		t.Fatalf("first: %+v", first)
	}
	second := apply(t, d, Command{Kind: Create, Prefix: prefix(7), Members: []Host{host(5)}})
	if second.Status != Exists || !reflect.DeepEqual(second.Child, first.Child) {
		t.Fatalf("second: %+v", second)
	}
	// A retry with members nobody could use still learns who won.
	if again := apply(t, d, Command{Kind: Create, Prefix: prefix(7)}); again.Status != Exists {
		t.Fatalf("third: %v", again.Status)
	}
	if other := apply(t, d, Command{Kind: Create, Prefix: prefix(8), Members: []Host{host(5)}}); other.Status != OK {
		t.Fatalf("another prefix: %v", other.Status)
	}
}

func TestTheDirectoryRefusesWhatCannotBeAGroup(t *testing.T) {
	d := NewDirectory(genesis(3), order.GroupID{})
	twice := []Host{host(1), host(1), host(2)}
	for name, c := range map[string]struct {
		cmd  Command
		want Status
	}{
		"shorter prefix":   {Command{Kind: Create, Prefix: keyspace.PrefixOf(keyspace.Key{1}, 7), Members: hosts(3)}, BadPrefix},
		"longer prefix":    {Command{Kind: Create, Prefix: keyspace.PrefixOf(keyspace.Key{1}, 9), Members: hosts(3)}, BadPrefix},
		"the whole space":  {Command{Kind: Create, Members: hosts(3)}, BadPrefix},
		"nobody":           {Command{Kind: Create, Prefix: prefix(1)}, BadMember},
		"an even number":   {Command{Kind: Create, Prefix: prefix(1), Members: hosts(2)}, BadMember},
		"more than 2f+1":   {Command{Kind: Create, Prefix: prefix(1), Members: hosts(5)}, BadMember},
		"a peer twice":     {Command{Kind: Create, Prefix: prefix(1), Members: twice}, BadMember},
		"no store":         {Command{Kind: Create, Prefix: prefix(1), Members: []Host{{Peer: host(1).Peer}}}, BadMember},
		"report of no one": {Command{Kind: Reported, Prefix: prefix(1), Replica: 1, Store: host(0).Store}, NotFound},
	} {
		if res := apply(t, d, c.cmd); res.Status != c.want {
			t.Errorf("%s: %v, want %v", name, res.Status, c.want)
		}
	}
	if res, _ := DecodeResult(d.Apply(0, []byte{77})); res.Status != Malformed {
		t.Errorf("unreadable bytes: %v", res.Status)
	}
	if len(d.children) != 0 {
		t.Errorf("%d children came of it", len(d.children))
	}
}

func TestMembersReportIn(t *testing.T) {
	d := NewDirectory(genesis(3), order.GroupID{})
	apply(t, d, Command{Kind: Create, Prefix: prefix(1), Members: hosts(3)})
	report := func(id order.ReplicaID, store order.StoreID) Status {
		return apply(t, d, Command{Kind: Reported, Prefix: prefix(1), Replica: id, Store: store}).Status
	}
	if s := report(2, storeID(200)); s != NotFound {
		t.Errorf("another store: %v", s)
	}
	if s := report(4, host(0).Store); s != NotFound {
		t.Errorf("no such replica: %v", s)
	}
	for i := range 3 {
		if len(d.Unstarted()) != 1 {
			t.Errorf("after %d reports all have started", i)
		}
		if s := report(order.ReplicaID(i+1), host(i).Store); s != OK {
			t.Errorf("replica %d: %v", i+1, s)
		}
	}
	if ch, _ := d.Lookup(prefix(1)); !ch.AllStarted() || len(d.Unstarted()) != 0 {
		t.Errorf("started %b", ch.Started)
	}
}

func TestQueries(t *testing.T) {
	d := NewDirectory(genesis(3), order.GroupID{})
	for i := range 1 << DepthDefault {
		apply(t, d, Command{Kind: Create, Prefix: prefix(i), Members: hosts(1)})
	}
	res, err := DecodeResult(d.Query(LookupQuery(prefix(9))))
	if err != nil || res.Status != OK || res.Child.Group.Prefix != prefix(9) {
		t.Fatalf("lookup: %+v, %v", res, err)
	}
	if res, _ := DecodeResult(NewDirectory(genesis(3), order.GroupID{}).Query(LookupQuery(prefix(9)))); res.Status != NotFound {
		t.Errorf("lookup of nothing: %v", res.Status)
	}
	if res, _ := DecodeResult(d.Query(LookupQuery(keyspace.Prefix{}))); res.Status != BadPrefix {
		t.Errorf("lookup of the whole space: %v", res.Status)
	}
	for _, b := range [][]byte{nil, {1}, {9, 0, 0}, append(LookupQuery(prefix(1)), 0)} {
		if res, _ := DecodeResult(d.Query(b)); res.Status != Malformed {
			t.Errorf("query %x: %v", b, res.Status)
		}
	}
	l, err := DecodeListing(d.Query(ListQuery(prefix(200))))
	if err != nil || len(l.Children) != 55 || l.More || l.Children[0].Prefix != prefix(201) || l.Children[0].Members != 1 {
		t.Errorf("list after 200: %d children, more %v, %v", len(l.Children), l.More, err)
	}
}

func TestListsComeInPages(t *testing.T) {
	g := genesis(3)
	g.Depth = DepthDefault + 1
	d := NewDirectory(g, order.GroupID{})
	for i := range 2*listMax - 1 {
		p := keyspace.PrefixOf(keyspace.Key{byte(i >> 1), byte(i << 7)}, g.Depth)
		apply(t, d, Command{Kind: Create, Prefix: p, Members: hosts(1)})
	}
	var all []keyspace.Prefix
	after, pages := keyspace.Prefix{}, 0
	for more := true; more; pages++ {
		b := d.Query(ListQuery(after))
		if len(b) > 16<<10 {
			t.Fatalf("a page of %d bytes", len(b))
		}
		l, err := DecodeListing(b)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range l.Children {
			all = append(all, s.Prefix)
		}
		after, more = all[len(all)-1], l.More
	}
	if pages != 2 || !reflect.DeepEqual(all, d.sorted()) {
		t.Fatalf("%d pages, %d of %d children", pages, len(all), len(d.children))
	}
}

func TestSnapshotEqualsReplay(t *testing.T) {
	a, b := NewDirectory(genesis(3), order.GroupID{}), NewDirectory(genesis(3), order.GroupID{})
	run := func(d *Directory, from, to int) {
		for i := from; i < to; i++ {
			apply(t, d, Command{Kind: Create, Prefix: prefix(i * 37), Members: hosts(1 + 2*(i%2))})
			apply(t, d, Command{Kind: Reported, Prefix: prefix(i * 11), Replica: 1, Store: host(0).Store})
		}
	}
	run(a, 0, 40)
	if err := b.Restore(a.Snapshot()); err != nil {
		t.Fatal(err)
	}
	run(a, 40, 80)
	run(b, 40, 80)
	if !bytes.Equal(a.Snapshot(), b.Snapshot()) {
		t.Fatal("snapshot and suffix differ from the whole log")
	}
}

func TestASnapshotThatIsNotOursIsRefusedAndChangesNothing(t *testing.T) {
	full := NewDirectory(genesis(3), order.GroupID{})
	for i := range 3 {
		apply(t, full, Command{Kind: Create, Prefix: prefix(i), Members: hosts(1)})
	}
	good := full.Snapshot()
	swapped := NewDirectory(genesis(3), order.GroupID{})
	one := len(appendChild(nil, full.children[prefix(0)]))
	outOfOrder := bytes.Clone(good)
	copy(outOfOrder[5:], good[5+one:5+2*one])
	copy(outOfOrder[5+one:], good[5:5+one])
	other := genesis(3)
	other.Nonce[0]++
	tooMany := bytes.Clone(good)
	tooMany[3] = 2
	started := bytes.Clone(good)
	started[6] = 2
	for name, b := range map[string][]byte{
		"empty":           nil,
		"later version":   append([]byte{3}, good[1:]...),
		"later child":     append(append(bytes.Clone(good[:5]), 3), good[6:]...),
		"truncated":       good[:len(good)-1],
		"a byte more":     append(bytes.Clone(good), 0),
		"out of order":    outOfOrder,
		"count too large": tooMany,
		"started nobody":  started,
	} {
		if err := swapped.Restore(b); err == nil {
			t.Errorf("%s: restored", name)
		}
	}
	if err := NewDirectory(other, order.GroupID{}).Restore(good); !errors.Is(err, ErrMalformed) {
		t.Errorf("another overlay's: %v", err)
	}
	if err := full.Restore(outOfOrder); err == nil || !bytes.Equal(full.Snapshot(), good) {
		t.Errorf("a refused snapshot changed the state: %v", err)
	}
}

func FuzzDecodeDescriptor(f *testing.F) {
	for _, d := range []Descriptor{genesis(3).RootDescriptor(), largest()} {
		b, _ := d.Encode()
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := DecodeDescriptor(b)
		if err != nil {
			return
		}
		if again, err := d.Encode(); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x became %x, %v", b, again, err)
		}
	})
}

func FuzzDecodeCommand(f *testing.F) {
	f.Add(mustEncode(f, Command{Kind: Create, Prefix: prefix(1), Members: hosts(3)}))
	f.Add(mustEncode(f, Command{Kind: Reported, Prefix: prefix(1), Replica: 2, Store: storeID(1)}))
	f.Add(mustEncode(f, Command{Kind: Reported, Prefix: prefix(1), Gen: 3, Replica: 2, Store: storeID(1)}))
	f.Add(mustEncode(f, Command{Kind: Revive, Prefix: prefix(1), Gen: 2, Members: hosts(3)}))
	f.Add(mustEncode(f, Command{Kind: Update, Prefix: prefix(1), Descriptor: viewed(child(f, 1), 4, 0, 1, 5)}))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := NewDirectory(genesis(3), order.GroupID{})
		res, err := DecodeResult(d.Apply(0, b))
		if err != nil {
			t.Fatalf("an answer that does not read: %v", err)
		}
		c, err := DecodeCommand(b)
		if (err != nil) != (res.Status == Malformed) {
			t.Fatalf("status %v, %v", res.Status, err)
		}
		if err != nil {
			return
		}
		if again, err := c.Encode(); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x became %x, %v", b, again, err)
		}
	})
}

func FuzzDecodeResult(f *testing.F) {
	f.Add(Result{Status: OK, Child: Child{Descriptor: genesis(3).RootDescriptor(), Started: 5}}.Encode())
	f.Add(Result{Status: BadMember}.Encode())
	f.Add(Result{Status: WrongGen, Child: Child{Descriptor: largest(), State: Reviving, Former: Former{View: 7}}}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if res, err := DecodeResult(b); err == nil && !bytes.Equal(res.Encode(), b) {
			t.Fatalf("%x became %x", b, res.Encode())
		}
	})
}

func FuzzDecodeListing(f *testing.F) {
	f.Add(Listing{Children: []Summary{{Prefix: prefix(1), Members: 3, Started: 2, State: Reviving}}, More: true}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, err := DecodeListing(b); err == nil && !bytes.Equal(l.encode(), b) {
			t.Fatalf("%x became %x", b, l.encode())
		}
	})
}

func FuzzDecodeQuery(f *testing.F) {
	f.Add(LookupQuery(prefix(1)))
	f.Add(ListQuery(prefix(0)))
	d := NewDirectory(genesis(3), order.GroupID{})
	apply(f, d, Command{Kind: Create, Prefix: prefix(1), Members: hosts(3)})
	f.Fuzz(func(t *testing.T, b []byte) {
		answer := d.Query(b)
		_, asResult := DecodeResult(answer)
		_, asListing := DecodeListing(answer)
		if asResult != nil && asListing != nil {
			t.Fatalf("%x got %x: %v, %v", b, answer, asResult, asListing)
		}
	})
}

// FuzzInherit: whatever a member of a former root says it knew, nothing in the directory that begins with it is live.
func FuzzInherit(f *testing.F) {
	d := NewDirectory(genesis(3), order.GroupID{})
	f.Add(d.Snapshot())
	for i := range 3 {
		apply(f, d, Command{Kind: Create, Prefix: prefix(i), Members: hosts(3)})
	}
	f.Add(d.Snapshot())
	f.Add(snapshot1(d))
	root := genesis(3).RootGroup()
	root.Gen = 1 << 32
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := Inherit(genesis(3), root, b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrDescriptor) {
				t.Fatal(err)
			}
			return
		}
		for p, ch := range d.children {
			if ch.State != Inherited || ch.Group.Gen >= root.Gen {
				t.Fatalf("%v is %v, %v", p, ch.Group, ch.State)
			}
		}
		if err := NewDirectory(genesis(3), root).Restore(d.Snapshot()); err != nil {
			t.Fatalf("%x became %x, %v", b, d.Snapshot(), err)
		}
	})
}

func FuzzRestore(f *testing.F) {
	d := NewDirectory(genesis(3), order.GroupID{})
	f.Add(d.Snapshot())
	for i := range 3 {
		apply(f, d, Command{Kind: Create, Prefix: prefix(i), Members: hosts(3)})
	}
	f.Add(d.Snapshot())
	f.Add(snapshot1(d))
	apply(f, d, Command{Kind: Revive, Prefix: prefix(1), Members: hosts(1)})
	f.Add(d.Snapshot())
	f.Fuzz(func(t *testing.T, b []byte) {
		d := NewDirectory(genesis(3), order.GroupID{})
		if err := d.Restore(b); err != nil {
			return
		}
		again := d.Snapshot()
		if b[0] == 1 {
			again = snapshot1(d)
		}
		if !bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}
