package keyspace

import (
	"errors"
	"math/big"
	"testing"

	"pgregory.net/rapid"
)

func key(t *rapid.T, label string) (k Key) {
	copy(k[:], rapid.SliceOfN(rapid.Byte(), Size, Size).Draw(t, label))
	return k
}

func TestDistanceOrdersAsNumbers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k, a, b := key(t, "k"), NodeID(key(t, "a")), NodeID(key(t, "b"))
		xor := func(n NodeID) *big.Int {
			var d [Size]byte
			for i := range d {
				d[i] = n[i] ^ k[i]
			}
			return new(big.Int).SetBytes(d[:])
		}
		want := xor(a).Cmp(xor(b))
		if got := CompareDistance(k, a, b); (got < 0) != (want < 0) || (got == 0) != (want == 0) {
			t.Fatalf("CompareDistance = %d, big numbers say %d", got, want)
		}
		if Closer(k, a, b) != (want < 0) {
			t.Fatal("Closer disagrees")
		}
	})
}

func TestPrefixRoundTripsAndContainsItsKeys(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k, other := key(t, "k"), key(t, "other")
		n := rapid.IntRange(0, PrefixBitsMax).Draw(t, "n")
		p := PrefixOf(k, n)
		if !p.Valid() || !p.Contains(k) {
			t.Fatalf("%v is not valid or does not hold its key", p)
		}
		if p.Contains(other) != (CommonPrefixBits(k, other) >= n) {
			t.Fatalf("%v and %v", p, other)
		}
		b, _ := p.AppendBinary(nil)
		q, rest, err := DecodePrefix(append(b, 7))
		if err != nil || q != p || len(rest) != 1 {
			t.Fatalf("decoded %v, rest %d, %v", q, len(rest), err)
		}
		for i := range b {
			if _, _, err := DecodePrefix(b[:i]); !errors.Is(err, ErrPrefix) {
				t.Fatalf("%d of %d bytes: %v", i, len(b), err)
			}
		}
	})
}

func TestAPrefixIsReadAsItIsPrinted(t *testing.T) {
	for n := range PrefixBitsMax + 1 {
		p := PrefixOf(Key{0xa7, 0x31, 0xff, 31: 0xff}, n)
		if got, err := ParsePrefix(p.String()); err != nil || got != p {
			t.Fatalf("%v was read as %v, %v", p, got, err)
		}
	}
	for _, s := range []string{"", "/", "a3", "a3/", "a3/7", "A3/8", "a3/08", "a3/+8", "a3/9", "a300/8", "a/4", "zz/8", "/257", "a3/8 ", "a3/8/1"} {
		if p, err := ParsePrefix(s); !errors.Is(err, ErrPrefix) {
			t.Errorf("%q was read as %v, %v", s, p, err)
		}
	}
}

func TestDecodePrefixRefusesStrayBits(t *testing.T) {
	if _, _, err := DecodePrefix([]byte{0, 4, 0xff}); !errors.Is(err, ErrPrefix) {
		t.Errorf("bits beyond the length: %v", err)
	}
	if _, _, err := DecodePrefix([]byte{1, 1}); !errors.Is(err, ErrPrefix) {
		t.Errorf("257 bits: %v", err)
	}
}

func TestAnchorLiesUnderItsPrefix(t *testing.T) {
	for _, n := range []int{0, 1, 8, 11} {
		p := PrefixOf(Preimage("nightly-build").Key(), n)
		a, err := Anchor("overlay", p)
		if err != nil || !p.Contains(a.Key()) {
			t.Errorf("anchor of %v: %v, under it: %v", p, err, p.Contains(a.Key()))
		}
		if b, _ := Anchor("overlay", p); b != a {
			t.Errorf("anchor of %v is not repeatable", p)
		}
		if b, _ := Anchor("another overlay", p); b == a {
			t.Errorf("anchor of %v does not depend on the overlay", p)
		}
	}
	if _, err := Anchor("", PrefixOf(Key{}, AnchorBitsMax+1)); !errors.Is(err, ErrPrefix) {
		t.Errorf("too long a prefix: %v", err)
	}
}

func TestSortByDistance(t *testing.T) {
	k := Preimage("k").Key()
	nodes := []NodeID{NodeIDOf("a"), NodeIDOf("b"), NodeIDOf("c"), NodeID(k)}
	SortByDistance(k, nodes)
	if nodes[0] != NodeID(k) {
		t.Error("the key's own point is not the closest to it")
	}
	for i := 1; i < len(nodes); i++ {
		if !Closer(k, nodes[i-1], nodes[i]) {
			t.Errorf("place %d is not closer than place %d", i-1, i)
		}
	}
}

func FuzzDecodePrefix(f *testing.F) {
	f.Add([]byte{0, 8, 0xa3})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, rest, err := DecodePrefix(b)
		if err != nil {
			return
		}
		again, _ := p.AppendBinary(nil)
		if string(again) != string(b[:len(b)-len(rest)]) {
			t.Errorf("%x decodes to %v, which encodes to %x", b, p, again)
		}
	})
}
