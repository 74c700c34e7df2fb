package invite

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"latchkey/node/invite/pb"
	"latchkey/replicagroup/placement"
)

// peerID returns the i-th peer id of the tests.
func peerID(t testing.TB, i int) peer.ID {
	t.Helper()
	seed := make([]byte, ed25519.SeedSize)
	seed[0] = byte(i)
	key, err := crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(seed))
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// private returns an invitation to a private overlay.
func private(t testing.TB) Invite {
	t.Helper()
	g := placement.Defaults()
	g.Name, g.RootKey, g.Nonce = "farm", make([]byte, ed25519.PublicKeySize), [16]byte{1}
	g.Founders = []placement.Host{{Peer: placement.Peer{ID: string(peerID(t, 1))}, Store: [16]byte{7}}}
	return Invite{
		Genesis:  g,
		SwarmKey: []byte("0123456789abcdef0123456789abcdef"),
		Bootstrap: []peer.AddrInfo{
			{ID: peerID(t, 1), Addrs: []ma.Multiaddr{ma.StringCast("/ip4/192.0.2.1/tcp/20001"), ma.StringCast("/dns/a.example/tcp/443/wss")}},
			{ID: peerID(t, 2), Addrs: []ma.Multiaddr{ma.StringCast("/ip6/2001:db8::1/udp/20001/quic-v1")}},
		},
	}
}

func mustToken(t testing.TB, i Invite) string {
	t.Helper()
	token, err := i.Token()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// seal puts the envelope of a token around a body.
func seal(version byte, body []byte) string {
	b := append([]byte{version}, body...)
	sum := sha256.Sum256(b)
	return prefix + base64.RawURLEncoding.EncodeToString(append(b, sum[:4]...))
}

func message(t testing.TB, i Invite, change func(*pb.Invite)) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(mustToken(t, i), prefix))
	if err != nil {
		t.Fatal(err)
	}
	var m pb.Invite
	if err := proto.Unmarshal(b[1:len(b)-4], &m); err != nil {
		t.Fatal(err)
	}
	change(&m)
	if b, err = proto.Marshal(&m); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTokenRoundTrips(t *testing.T) {
	open, bare := private(t), private(t)
	open.SwarmKey = nil
	bare.Bootstrap = nil
	for name, i := range map[string]Invite{"private": private(t), "public": open, "no addresses": bare} {
		token := mustToken(t, i)
		if strings.ContainsFunc(token, func(r rune) bool {
			return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.", r)
		}) {
			t.Errorf("%s: a shell or a mail may change %s", name, token)
		}
		for how, text := range map[string]string{
			"as it is": token, "with a line break": token + "\r\n", "wrapped": "\n  " + token[:40] + "\n  " + token[40:],
		} {
			got, err := Read(strings.NewReader(text))
			if err != nil {
				t.Errorf("%s, %s: %v", name, how, err)
				continue
			}
			same(t, got, i)
		}
		t.Logf("%s: %d bytes", name, len(token))
	}
}

// same checks that two invitations say the same.
func same(t testing.TB, got, want Invite) {
	t.Helper()
	if got.Genesis.ID() != want.Genesis.ID() || !bytes.Equal(got.SwarmKey, want.SwarmKey) || got.Private() != want.Private() || len(got.Bootstrap) != len(want.Bootstrap) {
		t.Fatalf("%v with %d peers; want %v with %d", got, len(got.Bootstrap), want, len(want.Bootstrap))
	}
	for n, p := range want.Bootstrap {
		if q := got.Bootstrap[n]; q.ID != p.ID || fmt.Sprint(q.Addrs) != fmt.Sprint(p.Addrs) {
			t.Errorf("bootstrap peer %d: %v; want %v", n, q, p)
		}
	}
}

func TestLargestInvitationFits(t *testing.T) {
	i := private(t)
	i.Genesis.Name, i.Genesis.F = strings.Repeat("n", placement.NameBytesMax), placement.FMax
	i.Genesis.Founders, i.Bootstrap = nil, nil
	for n := range 2*placement.FMax + 1 {
		h := placement.Host{Peer: placement.Peer{ID: strings.Repeat(string(rune('a'+n)), placement.PeerIDBytesMax)}, Store: [16]byte{byte(n + 1)}}
		for range placement.AddrsMax {
			h.Addrs = append(h.Addrs, strings.Repeat("a", placement.AddrBytesMax))
		}
		i.Genesis.Founders = append(i.Genesis.Founders, h)
	}
	for n := range AddrsMax {
		long := ma.StringCast("/dns/" + strings.Repeat("d", AddrBytesMax-11) + "/tcp/1")
		i.Bootstrap = append(i.Bootstrap, peer.AddrInfo{ID: peerID(t, n), Addrs: []ma.Multiaddr{long}})
	}
	token := mustToken(t, i)
	got, err := Parse(token)
	if err != nil {
		t.Fatalf("%d bytes: %v", len(token), err)
	}
	same(t, got, i)
}

func TestWhatIsWrongWithATokenIsSaidApart(t *testing.T) {
	good := private(t)
	token := mustToken(t, good)
	other := private(t)
	other.Bootstrap = other.Bootstrap[:1]
	flip := []byte(token)
	flip[60] ^= 1
	founders := func(m *pb.Invite) { m.Genesis = m.Genesis[:len(m.Genesis)-1] }
	depth := func(m *pb.Invite) { m.Genesis[1+1+len(good.Genesis.Name)] = placement.DepthMax + 1 }
	extra := protowire.AppendVarint(protowire.AppendTag(nil, 8, protowire.VarintType), 1700000000)
	many := func(m *pb.Invite) {
		for len(m.Bootstrap[0].Addrs) <= AddrsMax {
			m.Bootstrap[0].Addrs = append(m.Bootstrap[0].Addrs, m.Bootstrap[0].Addrs[0])
		}
	}
	for name, c := range map[string]struct {
		token string
		want  error
		says  string
	}{
		"nothing":             {" \n", ErrNotToken, "latchkey invite"},
		"something else":      {"12D3KooWabc", ErrNotToken, `"latchkey1."`},
		"a word":              {"latchkey", ErrNotToken, `"latchkey1."`},
		"a host name":         {"latchkey.example", ErrNotToken, `"latchkey1."`},
		"next family":         {"latchkey2.abc", ErrVersion, "install"},
		"next version":        {seal(2, message(t, good, func(*pb.Invite) {})), ErrVersion, "version 2"},
		"a field of the next": {seal(1, append(message(t, good, func(*pb.Invite) {}), extra...)), ErrVersion, "more than this program understands"},
		"a field inside": {seal(1, message(t, good, func(m *pb.Invite) { m.Bootstrap[0].ProtoReflect().SetUnknown(extra) })),
			ErrVersion, "more than this program understands"},
		"cut off":           {token[:len(token)-1], ErrDamaged, "copy the whole line"},
		"cut to its head":   {prefix, ErrDamaged, "copy the whole line"},
		"mistyped":          {string(flip), ErrDamaged, "copy the whole line"},
		"two at once":       {token + "\n" + mustToken(t, other), ErrSeveral, "different ones"},
		"two on a line":     {token + mustToken(t, other), ErrSeveral, "different ones"},
		"a letter too many": {token + "A", ErrDamaged, "copy the whole line"},
		"endless":           {token + strings.Repeat("A", TokenBytesMax), ErrDamaged, "longer than any"},
		"no message":        {seal(1, []byte{0xff}), ErrContents, "not a message"},
		"no genesis":        {seal(1, nil), ErrContents, "genesis"},
		"genesis cut":       {seal(1, message(t, good, founders)), placement.ErrMalformed, "bytes where"},
		"genesis refused":   {seal(1, message(t, good, depth)), placement.ErrGenesis, "depth"},
		"short key":         {seal(1, message(t, good, func(m *pb.Invite) { m.SwarmKey = m.SwarmKey[1:] })), ErrContents, "31 bytes"},
		"no peer id":        {seal(1, message(t, good, func(m *pb.Invite) { m.Bootstrap[1].Id = nil })), ErrContents, "bootstrap peer 1"},
		"peer id of no kind": {seal(1, message(t, good, func(m *pb.Invite) { m.Bootstrap[1].Id = []byte("peer") })),
			ErrContents, "bootstrap peer 1"},
		"peer named twice": {seal(1, message(t, good, func(m *pb.Invite) { m.Bootstrap[1].Id = m.Bootstrap[0].Id })), ErrContents, "twice"},
		"no address":       {seal(1, message(t, good, func(m *pb.Invite) { m.Bootstrap[1].Addrs = nil })), ErrContents, "no address"},
		"bad address": {seal(1, message(t, good, func(m *pb.Invite) { m.Bootstrap[1].Addrs[0] = good.SwarmKey })),
			ErrContents, "bad address"},
		"many addresses": {seal(1, message(t, good, many)), ErrContents, "more than 16"},
	} {
		_, err := Parse(c.token)
		if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.says) || strings.Contains(fmt.Sprint(err), "\n") {
			t.Errorf("%s: %v; want %v and %q", name, err, c.want, c.says)
		}
		silent(t, name, fmt.Sprint(err), good, c.token)
	}
}

func TestBadInvitationsAreNotWritten(t *testing.T) {
	for name, change := range map[string]func(*Invite){
		"genesis":   func(i *Invite) { i.Genesis.Name = "" },
		"empty key": func(i *Invite) { i.SwarmKey = []byte{} },
		"long key":  func(i *Invite) { i.SwarmKey = append(i.SwarmKey, 0) },
		"peer":      func(i *Invite) { i.Bootstrap[0].ID = "peer" },
		"address":   func(i *Invite) { i.Bootstrap[0].Addrs[0] = nil },
		"long address": func(i *Invite) {
			i.Bootstrap[0].Addrs[0] = ma.StringCast("/dns/" + strings.Repeat("d", AddrBytesMax-10) + "/tcp/1")
		},
		"addresses": func(i *Invite) {
			for range AddrsMax {
				i.Bootstrap[0].Addrs = append(i.Bootstrap[0].Addrs, i.Bootstrap[0].Addrs[0])
			}
		},
	} {
		i := private(t)
		change(&i)
		if token, err := i.Token(); !errors.Is(err, ErrContents) || token != "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// silent fails when a text shows a piece of the key or of the token.
func silent(t testing.TB, name, text string, i Invite, token string) {
	t.Helper()
	for _, secret := range []string{
		string(i.SwarmKey), hex.EncodeToString(i.SwarmKey), base64.StdEncoding.EncodeToString(i.SwarmKey)[:40], fmt.Sprint([]byte(i.SwarmKey)),
	} {
		if strings.Contains(text, secret) {
			t.Errorf("%s: it shows the swarm key: %s", name, text)
		}
	}
	for from := len(prefix); from+12 <= len(token); from++ {
		if strings.Contains(text, token[from:from+12]) {
			t.Fatalf("%s: it shows a piece of the token: %s", name, text)
		}
	}
}

func TestInvitationsPrintWithoutTheirKey(t *testing.T) {
	i := private(t)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, text := range []string{fmt.Sprintf(verb, i), fmt.Sprintf(verb, &i), fmt.Sprintf(verb, []Invite{i}), fmt.Sprintf(verb, struct{ I Invite }{i})} {
			silent(t, verb, text, i, mustToken(t, i))
			if !strings.Contains(text, "private overlay") {
				t.Errorf("%s: %s", verb, text)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(mustToken(f, private(f)))
	f.Add(seal(1, nil))
	f.Add("latchkey2.x")
	f.Fuzz(func(t *testing.T, token string) {
		check(t, token)
		check(t, "> "+token+"\n"+token)
		check(t, seal(1, []byte(token))) // past the checksum, which stops nearly everything else
	})
}

func check(t *testing.T, token string) {
	i, err := Parse(token)
	if err != nil {
		if !errors.Is(err, ErrNotToken) && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrVersion) && !errors.Is(err, ErrContents) && !errors.Is(err, ErrSeveral) {
			t.Fatalf("an error of no kind: %v", err)
		}
		return
	}
	again, err := Parse(mustToken(t, i))
	if err != nil {
		t.Fatal(err)
	}
	same(t, again, i)
}
