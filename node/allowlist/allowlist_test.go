package allowlist

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"latchkey/node/allowlist/pb"
	"latchkey/replicagroup/placement"
)

var at = time.Unix(1_800_000_000, 0)

// overlay makes a document and its root key, the same for the same name.
func overlay(t testing.TB, name string) (placement.Genesis, ed25519.PrivateKey) {
	t.Helper()
	root := ed25519.NewKeyFromSeed(bytes.Repeat([]byte(name[:1]), ed25519.SeedSize))
	g := placement.Defaults()
	g.Name, g.RootKey = name, root.Public().(ed25519.PublicKey)
	g.Nonce[0] = name[0]
	g.Founders = []placement.Host{{Peer: placement.Peer{ID: string(someone(t, 200))}}}
	g.Founders[0].Store[0] = 1
	if err := g.Validate(); err != nil {
		t.Fatal(err)
	}
	return g, root
}

func keyOf(t testing.TB, n byte) crypto.PrivKey {
	t.Helper()
	k, err := crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func someone(t testing.TB, n byte) peer.ID {
	t.Helper()
	p, err := peer.IDFromPrivateKey(keyOf(t, n))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func founded(t testing.TB, members ...peer.ID) (placement.Genesis, ed25519.PrivateKey, *Key, *List) {
	t.Helper()
	g, root := overlay(t, "one")
	k, err := NewKey(g, root, 1)
	if err != nil {
		t.Fatal(err)
	}
	l, err := k.Found(nil, members, at)
	if err != nil {
		t.Fatal(err)
	}
	return g, root, k, l
}

func edit(t testing.TB, k *Key, l *List, f func(*Draft) error) *List {
	t.Helper()
	next, err := k.Edit(l, at, f)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func TestTheListSaysWhoMayBeIn(t *testing.T) {
	a, b, c := someone(t, 1), someone(t, 2), someone(t, 3)
	_, _, k, l := founded(t, a)
	if l.Number() != 1 || l.Judge(a, at) != Admitted || l.Judge(b, at) != Unknown || l.Members() != 1 {
		t.Errorf("the first list: %v", l.Entries())
	}
	if v := (*List)(nil).Judge(b, at); v != Admitted {
		t.Errorf("without a list: %v", v)
	}
	l2 := edit(t, k, l, func(d *Draft) error { return errors.Join(d.Allow(b, "b"), d.Invite(c, at.Add(time.Hour), true, "")) })
	if l2.Number() != 2 || l2.Judge(b, at) != Admitted || l2.Judge(c, at) != Invited || l2.Judge(c, at.Add(time.Hour)) != Expired {
		t.Errorf("the second: %v", l2.Entries())
	}
	l3 := edit(t, k, l2, func(d *Draft) error { return errors.Join(d.Revoke(b), d.Revoke(c)) })
	if l3.Judge(b, at) != WasRevoked || l3.Judge(c, at) != WasRevoked || l3.Judge(a, at) != Admitted {
		t.Errorf("the third: %v", l3.Entries())
	}
	if same := edit(t, k, l3, func(d *Draft) error { return errors.Join(d.Revoke(b), d.Allow(a, "")) }); same != l3 {
		t.Error("a change that changes nothing makes a list")
	}
	if l4 := edit(t, k, l3, func(d *Draft) error { return d.Allow(b, "") }); l4.Judge(b, at) != Admitted {
		t.Error("who was revoked cannot be allowed again")
	}
	if _, err := k.Edit(l3, at, func(d *Draft) error { return d.Revoke(someone(t, 9)) }); !errors.Is(err, ErrEntry) {
		t.Errorf("revoking a stranger: %v", err)
	}
	if !l3.Newer(l2.Have()) || l2.Newer(l3.Have()) || l3.Newer(l3.Have()) || !l.Newer((*List)(nil).Have()) {
		t.Error("newer and older are mixed up")
	}
}

func TestAnInvitationEnrolsWhomItMay(t *testing.T) {
	self, once, often, bound := someone(t, 1), someone(t, 2), someone(t, 3), someone(t, 4)
	_, _, k, l := founded(t, self)
	l = edit(t, k, l, func(d *Draft) error {
		return errors.Join(d.Invite(once, at.Add(time.Hour), true, "n"), d.Invite(often, at.Add(time.Hour), false, ""), d.Invite(bound, at.Add(time.Hour), true, ""))
	})
	enrol := func(i, p peer.ID) error {
		next, err := k.Edit(l, at, func(d *Draft) error { return d.Enrol(i, p) })
		if err == nil {
			l = next
		}
		return err
	}
	for _, c := range []struct {
		invitation, joiner peer.ID
		want               error
	}{
		{once, someone(t, 10), nil}, {once, someone(t, 10), nil}, {once, someone(t, 11), ErrRefused},
		{often, someone(t, 12), nil}, {often, someone(t, 13), nil},
		{bound, bound, nil}, {bound, bound, nil}, {bound, someone(t, 14), ErrRefused},
		{someone(t, 10), someone(t, 15), ErrRefused}, {someone(t, 20), someone(t, 15), ErrRefused}, {often, once, ErrRefused},
	} {
		if err := enrol(c.invitation, c.joiner); !errors.Is(err, c.want) {
			t.Errorf("%s enrols %s: %v, want %v", c.invitation, c.joiner, err, c.want)
		}
	}
	if by, ok := l.Enrolled(once); !ok || by != someone(t, 10) || l.Judge(once, at) != Used {
		t.Errorf("once: by %v, %v", by, l.Judge(once, at))
	}
	if e, _ := l.Find(someone(t, 10)); e.Kind != Member || e.Note != "n" {
		t.Errorf("the enrolled: %v", e)
	}
	// Nobody comes back by an invitation that is still good.
	l = edit(t, k, l, func(d *Draft) error { return d.Revoke(someone(t, 12)) })
	if err := enrol(often, someone(t, 12)); !errors.Is(err, ErrRefused) {
		t.Errorf("a revoked peer enrols again: %v", err)
	}
	if _, err := k.Edit(l, at.Add(time.Hour), func(d *Draft) error { return d.Enrol(often, someone(t, 16)) }); !errors.Is(err, ErrRefused) {
		t.Errorf("expired: %v", err)
	}
	for _, life := range []time.Duration{0, -time.Second, InvitationLifeMax + time.Second} {
		if _, err := k.Edit(l, at, func(d *Draft) error { return d.Invite(someone(t, 30), at.Add(life), false, "") }); !errors.Is(err, ErrEntry) {
			t.Errorf("for %v: %v", life, err)
		}
	}
}

func TestEnrolmentNeedsTheKey(t *testing.T) {
	g, _, _, _ := founded(t)
	other, _ := overlay(t, "two")
	m, err := EnrolRequest(g, keyOf(t, 5), someone(t, 6))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := CheckEnrolRequest(g, someone(t, 6), m); err != nil || p != someone(t, 5) {
		t.Error(p, err)
	}
	for what, check := range map[string]func() error{
		"another invitation": func() error { _, err := CheckEnrolRequest(g, someone(t, 7), m); return err },
		"another overlay":    func() error { _, err := CheckEnrolRequest(other, someone(t, 6), m); return err },
		"another peer": func() error {
			_, err := CheckEnrolRequest(g, someone(t, 6), &pb.EnrolRequest{Peer: []byte(someone(t, 8)), Signature: m.Signature})
			return err
		},
		"no peer": func() error { _, err := CheckEnrolRequest(g, someone(t, 6), &pb.EnrolRequest{}); return err },
	} {
		if err := check(); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestOnlyTheOverlaysKeysCount(t *testing.T) {
	g, root, k, l := founded(t, someone(t, 1))
	other, otherRoot := overlay(t, "two")
	if _, err := NewKey(g, otherRoot, 1); !errors.Is(err, ErrKey) {
		t.Errorf("another root key: %v", err)
	}
	if _, err := Open(other, l.Document()); !errors.Is(err, ErrDocument) {
		t.Errorf("another overlay: %v", err)
	}
	b, err := k.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ReadKey(other, b); !errors.Is(err, ErrKey) {
		t.Errorf("another overlay's key: %v", err)
	}
	if again, err := ReadKey(g, b); err != nil || !again.Signs(l) {
		t.Errorf("the key read again: %v", err)
	}
	if says := fmt.Sprintf("%v %+v %#v %s %x", k, k, k, k, k); strings.Contains(says, fmt.Sprintf("%x", k.private.Seed())) || strings.Contains(says, string(k.private)) {
		t.Error("the key prints itself")
	}
	// A new admin key goes on with the list and outranks the former one, whatever number that reaches.
	k2, err := NewKey(g, root, 2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k2.Edit(l, at, func(d *Draft) error { return nil }); !errors.Is(err, ErrKey) {
		t.Errorf("a list of the other key: %v", err)
	}
	first, err := k2.Found(l, nil, at)
	if err != nil || first.Judge(someone(t, 1), at) != Admitted {
		t.Fatal(first, err)
	}
	for n := byte(10); n < 20; n++ {
		l = edit(t, k, l, func(d *Draft) error { return d.Allow(someone(t, n), "") })
	}
	if !first.Newer(l.Have()) || l.Newer(first.Have()) {
		t.Error("the former key counts more")
	}
	if _, err := k.Found(first, nil, at); !errors.Is(err, ErrKey) {
		t.Errorf("the former key founds: %v", err)
	}
}

func TestListsAreBounded(t *testing.T) {
	_, _, k, l := founded(t)
	id := func(n int) peer.ID {
		var seed [ed25519.SeedSize]byte
		rand.Read(seed[:])
		key, _ := crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(seed[:]))
		p, _ := peer.IDFromPrivateKey(key)
		return p
	}
	note := strings.Repeat("n", NoteBytesMax)
	full := edit(t, k, l, func(d *Draft) error {
		for n := range EntriesMax {
			if err := d.Invite(id(n), at.Add(time.Hour), true, note); err != nil {
				return err
			}
		}
		return nil
	})
	if len(full.Document()) > DocumentBytesMax*9/10 {
		t.Errorf("a full list has %d bytes", len(full.Document()))
	}
	if _, err := k.Edit(full, at, func(d *Draft) error { return d.Allow(id(0), "") }); !errors.Is(err, ErrFull) {
		t.Errorf("one more: %v", err)
	}
	if _, err := k.Edit(l, at, func(d *Draft) error { return d.Allow(id(0), note+"n") }); !errors.Is(err, ErrEntry) {
		t.Errorf("a long note: %v", err)
	}
	// Who was revoked longest ago is forgotten first, and invitations a while after they have expired.
	gone := edit(t, k, full, func(d *Draft) error {
		for _, e := range full.Entries()[:RevokedMax] {
			if err := d.Revoke(e.Peer); err != nil {
				return err
			}
		}
		return nil
	})
	last := full.Entries()[RevokedMax].Peer
	more := edit(t, k, gone, func(d *Draft) error { return d.Revoke(last) })
	if len(more.Entries()) != EntriesMax-1 || more.Judge(last, at) != WasRevoked {
		t.Errorf("%d entries, the last revoked %v", len(more.Entries()), more.Judge(last, at))
	}
	later, err := k.Edit(more, at.Add(time.Hour+expiredKept+time.Second), func(d *Draft) error { return d.Allow(id(0), "") })
	if err != nil || len(later.Entries()) != RevokedMax+1 {
		t.Errorf("%d entries a week later, %v", len(later.Entries()), err)
	}
}

func FuzzOpen(f *testing.F) {
	g, _, k, l := founded(f, someone(f, 1))
	l = edit(f, k, l, func(d *Draft) error { return d.Invite(someone(f, 2), at.Add(time.Hour), true, "n") })
	f.Add(l.Document(), false)
	var d pb.Document
	if err := proto.Unmarshal(l.Document(), &d); err != nil {
		f.Fatal(err)
	}
	f.Add(d.List, true)
	f.Fuzz(func(t *testing.T, b []byte, signed bool) {
		if signed { // as a holder of the key could write it
			m := &pb.Document{List: b, Signature: sign(k.private, listDomain, b), Admin: k.admin}
			b, _ = proto.Marshal(m)
		}
		got, err := Open(g, b)
		if err != nil {
			if !errors.Is(err, ErrDocument) {
				t.Error(err)
			}
			return
		}
		for _, e := range got.Entries() {
			if again, ok := got.Find(e.Peer); !ok || again != e {
				t.Errorf("%v is found as %v", e, again)
			}
		}
		if !got.Newer((&List{admin: &pb.Certificate{}}).Have()) {
			t.Error("it counts less than none")
		}
	})
}
