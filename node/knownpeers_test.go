package node

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"latchkey/dht"
)

func randomPeer(t testing.TB) peer.ID {
	t.Helper()
	_, public, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// met makes a peer of the overlay with some addresses.
func met(t testing.TB, connected bool, addrs ...string) dht.PeerInfo {
	p := dht.PeerInfo{ID: randomPeer(t), Connected: connected}
	for _, a := range addrs {
		p.Addrs = append(p.Addrs, ma.StringCast(a))
	}
	return p
}

func TestMergePutsTheConnectedFirst(t *testing.T) {
	a, b, away := met(t, true, "/ip4/192.0.2.1/tcp/1"), met(t, true, "/ip4/192.0.2.2/tcp/1"), met(t, false, "/ip4/192.0.2.3/tcp/1")
	known := merge(nil, []dht.PeerInfo{a, away})
	if len(known) != 1 || known[0].ID != a.ID {
		t.Fatalf("%+v", known)
	}
	a.Connected = false
	if known = merge(known, []dht.PeerInfo{a, b}); len(known) != 2 || known[0].ID != b.ID || known[1].ID != a.ID {
		t.Errorf("%+v", known)
	}
	// The same peers are the same list, however they are told.
	a.Connected = true
	a.Addrs = append(a.Addrs, ma.StringCast("/ip4/192.0.2.9/tcp/1"))
	known = merge(known, []dht.PeerInfo{a, b})
	a.Addrs = []ma.Multiaddr{a.Addrs[1], a.Addrs[0], a.Addrs[1]}
	if again := merge(known, []dht.PeerInfo{b, a}); !reflect.DeepEqual(again, known) {
		t.Errorf("%+v became %+v", known, again)
	}
	// Who has no address cannot be dialled.
	if got := merge(nil, []dht.PeerInfo{met(t, true)}); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

func TestMergeIsBounded(t *testing.T) {
	var now []dht.PeerInfo
	for range 2 * knownPeersMax {
		p := met(t, true)
		for i := range 2 * knownAddrsMax {
			p.Addrs = append(p.Addrs, ma.StringCast(fmt.Sprintf("/dns4/%s.example/tcp/%d", strings.Repeat("a", 60), 10000+i)))
		}
		p.Addrs = append(p.Addrs, ma.StringCast("/dns4/"+strings.Repeat("a.", knownAddrBytesMax/2)+"/tcp/1"))
		now = append(now, p)
	}
	known := merge(merge(nil, now[:knownPeersMax]), now)
	if len(known) != knownPeersMax {
		t.Errorf("%d peers", len(known))
	}
	for _, p := range known {
		if len(p.Addrs) != knownAddrsMax {
			t.Errorf("%d addresses", len(p.Addrs))
		}
	}
}

func TestKnownPeersAreWrittenWhenTheyChangeAndAtTheEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), peersFile)
	a, b, c := met(t, true, "/ip4/192.0.2.1/tcp/1"), met(t, true, "/ip4/192.0.2.2/tcp/1"), met(t, true, "/ip4/192.0.2.3/tcp/1")
	synctest.Test(t, func(t *testing.T) {
		var now atomic.Pointer[[]dht.PeerInfo]
		now.Store(new([]dht.PeerInfo))
		k := openKnownPeers(path, func() []dht.PeerInfo { return *now.Load() })
		k.start()
		k.start()
		saved := func() int {
			synctest.Wait()
			return len(openKnownPeers(path, nil).infos())
		}
		now.Store(&[]dht.PeerInfo{a})
		time.Sleep(knownInterval - time.Millisecond)
		if n := saved(); n != 0 {
			t.Errorf("%d peers were written before the time", n)
		}
		time.Sleep(2 * time.Millisecond)
		if n := saved(); n != 1 {
			t.Errorf("%d peers were written, want 1", n)
		}
		// Nothing new, nothing written.
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * knownInterval)
		if n := saved(); n != 0 {
			t.Errorf("%d peers were written again", n)
		}
		now.Store(&[]dht.PeerInfo{a, b, c})
		time.Sleep(time.Millisecond)
		k.close()
		k.close()
		if n := saved(); n != 3 {
			t.Errorf("%d peers were written at the end, want 3", n)
		}
		k.start() // too late
	})
	if info, err := os.Stat(path); err != nil || shared(info) {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// What could not be written once is written when it can be, whether or not it changed since.
func TestKnownPeersAreTriedAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "absent")
	now := []dht.PeerInfo{met(t, true, "/ip4/192.0.2.1/tcp/1")}
	k := openKnownPeers(filepath.Join(dir, peersFile), func() []dht.PeerInfo { return now })
	k.note()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	k.note()
	if n := len(openKnownPeers(k.path, nil).infos()); n != 1 {
		t.Errorf("%d peers were written, want 1", n)
	}
}

func TestDamagedKnownPeersAreIgnoredAndReplaced(t *testing.T) {
	id := randomPeer(t)
	one := fmt.Sprintf(`{"id":%q,"addrs":["/ip4/192.0.2.1/tcp/1"]}`, id)
	var many []string
	for range knownPeersMax + 1 {
		many = append(many, strings.Replace(one, id.String(), randomPeer(t).String(), 1))
	}
	for name, text := range map[string]string{
		"empty":               "",
		"cut":                 `{"peers":[` + one,
		"another form":        `[` + one + `]`,
		"no peer id":          `{"peers":[{"id":"x","addrs":["/ip4/192.0.2.1/tcp/1"]}]}`,
		"nobody":              `{"peers":[{"addrs":["/ip4/192.0.2.1/tcp/1"]}]}`,
		"no address":          `{"peers":[` + strings.Replace(one, "tcp", "xyz", 1) + `]}`,
		"an address too long": `{"peers":[` + strings.Replace(one, "/ip4/192.0.2.1", "/dns4/"+strings.Repeat("a.", knownAddrBytesMax/2), 1) + `]}`,
		"nowhere":             fmt.Sprintf(`{"peers":[{"id":%q}]}`, id),
		"addresses":           `{"peers":[` + strings.Replace(one, `"/ip4`, strings.Repeat(`"/ip4/192.0.2.1/tcp/1",`, knownAddrsMax)+`"/ip4`, 1) + `]}`,
		"twice":               `{"peers":[` + one + "," + one + `]}`,
		"too many":            `{"peers":[` + strings.Join(many, ",") + `]}`,
		"too large":           `{"peers":[` + one + `]}` + strings.Repeat(" ", knownFileBytesMax),
	} {
		path := filepath.Join(t.TempDir(), peersFile)
		writeFile(t, path, []byte(text))
		now := []dht.PeerInfo{met(t, true, "/ip4/192.0.2.2/tcp/1")}
		k := openKnownPeers(path, func() []dht.PeerInfo { return now })
		if got := k.infos(); len(got) != 0 {
			t.Errorf("%s: read %v", name, got)
		}
		k.note()
		if got := openKnownPeers(path, nil).infos(); len(got) != 1 || got[0].ID != now[0].ID {
			t.Errorf("%s: not replaced: %v", name, got)
		}
	}
	// Of such a file a good one differs in no more than that.
	path := filepath.Join(t.TempDir(), peersFile)
	writeFile(t, path, []byte(`{"peers":[`+strings.Join(many[1:], ",")+`]}`))
	if got := openKnownPeers(path, nil).infos(); len(got) != knownPeersMax {
		t.Errorf("read %d peers", len(got))
	}
}

func FuzzDecodeKnownPeers(f *testing.F) {
	id := randomPeer(f)
	f.Add([]byte(fmt.Sprintf(`{"peers":[{"id":%q,"addrs":["/ip4/192.0.2.1/tcp/1"]}]}`, id)))
	f.Add([]byte(`{"peers":[{"id":null,"addrs":[null]}]}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		peers, err := decodeKnownPeers(b)
		if err != nil {
			return
		}
		k := knownPeers{peers: peers}
		if n := len(k.infos()); n != len(peers) || n > knownPeersMax {
			t.Errorf("%d of %d peers are good", n, len(peers))
		}
		if got := merge(peers, nil); !slices.EqualFunc(got, peers, func(a, b knownPeer) bool { return a.ID == b.ID }) {
			t.Errorf("%v became %v", peers, got)
		}
	})
}
