package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	ma "github.com/multiformats/go-multiaddr"

	"latchkey/node/config"
	"latchkey/node/invite"
)

// runDir runs a directory's daemon, as far as it is this package's.
func runDir(t *testing.T, dir string) *Node {
	t.Helper()
	d, err := OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	n, h, err := d.Run(t.Context(), d.Config(), nil)
	if err != nil {
		t.Fatal(errors.Join(err, d.Close()))
	}
	t.Cleanup(func() {
		if err := errors.Join(n.Close(), h.Close(), d.Close()); err != nil {
			t.Error(err)
		}
	})
	return n
}

// now is what a running daemon would tell of itself and its peers.
func now(n *Node) []peer.AddrInfo {
	infos := []peer.AddrInfo{{ID: n.ID(), Addrs: n.host.Addrs()}}
	for _, p := range n.Overlay().Peers() {
		infos = append(infos, peer.AddrInfo{ID: p.ID, Addrs: p.Addrs})
	}
	return infos
}

func invitation(t *testing.T, dir string, now []peer.AddrInfo) invite.Invite {
	t.Helper()
	i, err := Invitation(dir, now)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func joinDir(t *testing.T, i invite.Invite, p config.Profile) (dir string, j Joined) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "peer")
	j, err := JoinDir(t.Context(), dir, i, JoinOptions{Profile: p, Listen: []string{"/ip4/127.0.0.1/tcp/0"}})
	if err != nil {
		t.Fatal(err)
	}
	return dir, j
}

// everybody waits until each node knows all others, and takes one lock from each of them at once.
func everybody(t *testing.T, nodes ...*Node) {
	t.Helper()
	ctx := within(t, waitMax)
	for _, n := range nodes {
		if err := n.Overlay().WaitPeers(ctx, len(nodes)-1); err != nil {
			t.Fatal(err)
		}
	}
	var held, most int
	errs, enter := make(chan error), make(chan int)
	go func() {
		for d := range enter {
			held += d
			most = max(most, held)
		}
		close(errs)
	}()
	done := make(chan error, len(nodes))
	for _, n := range nodes {
		go func() {
			for range 3 {
				l, err := n.Locks().Lock(ctx, "everybody")
				if err != nil {
					done <- err
					return
				}
				enter <- 1
				enter <- -1
				if err := l.Release(ctx); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range nodes {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	close(enter)
	<-errs
	if most != 1 {
		t.Errorf("%d held the lock at once", most)
	}
}

func TestJoinersAndTheirGuestsAreInOneOverlay(t *testing.T) {
	t.Parallel()
	founder := initDir(t)
	a := runDir(t, founder)
	second, j := joinDir(t, invitation(t, founder, now(a)), config.Test)
	if j.Met != a.ID() || j.Silent != nil {
		t.Fatalf("%+v", j)
	}
	b := runDir(t, second)
	if err := b.Overlay().WaitPeers(within(t, waitMax), 1); err != nil {
		t.Fatal(err)
	}
	// The joiner's invitation is as good as the founder's, with its daemon and without.
	third, j := joinDir(t, invitation(t, second, now(b)), config.Test)
	if j.Met == "" {
		t.Fatalf("%+v", j)
	}
	c := runDir(t, third)
	everybody(t, a, b, c)
	for _, i := range []invite.Invite{invitation(t, second, nil), invitation(t, third, now(c))} {
		if !i.Private() || i.Genesis.ID() != a.Genesis().ID() || len(i.Bootstrap) < 2 || !OnlyHere(i) {
			t.Errorf("%v with %v", i, i.Bootstrap)
		}
	}
}

func TestJoinBeforeAnyDaemonRuns(t *testing.T) {
	t.Parallel()
	founder := initDir(t)
	i := invitation(t, founder, nil)
	second, j := joinDir(t, i, config.Test)
	if j.Met != "" || !errors.Is(j.Silent, ErrUnreachable) || !strings.Contains(j.Silent.Error(), "connection refused") {
		t.Fatalf("%+v", j)
	}
	third, _ := joinDir(t, i, config.Test)
	c := runDir(t, third)
	b := runDir(t, second)
	everybody(t, runDir(t, founder), b, c)
}

func TestJoinRefusedWritesNothing(t *testing.T) {
	t.Parallel()
	founder, stranger := initDir(t), initDir(t)
	a, x := runDir(t, founder), runDir(t, stranger)
	good := invitation(t, founder, now(a))
	for name, c := range map[string]struct {
		change func(*invite.Invite)
		want   error
		says   string
	}{
		"a key that is another one": {func(i *invite.Invite) { i.SwarmKey = NewSwarmKey() }, ErrSwarmKey, "another one than ours"},
		"no key":                    {func(i *invite.Invite) { i.SwarmKey = nil }, ErrSwarmKey, "we have none"},
		"another overlay":           {func(i *invite.Invite) { i.Genesis = x.Genesis() }, ErrOtherOverlay, a.Genesis().ID().Hex()[:8]},
		"another peer": {func(i *invite.Invite) {
			i.Bootstrap = []peer.AddrInfo{{ID: x.ID(), Addrs: a.host.Addrs()}}
		}, ErrOtherPeer, a.ID().String()},
		"a web server": {func(i *invite.Invite) { i.Bootstrap[0].Addrs = []ma.Multiaddr{webserver(t)} }, ErrNotLatchkey, "libp2p"},
	} {
		i := good
		i.Bootstrap = slices.Clone(good.Bootstrap)
		c.change(&i)
		dir := filepath.Join(t.TempDir(), "peer")
		_, err := JoinDir(t.Context(), dir, i, JoinOptions{Profile: config.Test})
		if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.says) || !strings.Contains(fmt.Sprint(err), "nothing was written") {
			t.Errorf("%s: %v", name, err)
		}
		hidden(t, fmt.Sprint(err), good.SwarmKey)
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s: there is a directory", name)
		}
	}
	// Nobody got to a protocol of the overlay, and whoever had the wrong key was counted.
	s := a.Overlay().Stats()
	if s.StreamsAccepted != 0 || len(s.StreamsReset) != 0 || s.MessagesReceived != 0 {
		t.Errorf("%d hellos accepted, %d messages, resets %v", s.StreamsAccepted, s.MessagesReceived, s.StreamsReset)
	}
	if refused := a.Refused()[RefusedHandshake]; refused < 2 {
		t.Errorf("%d handshakes refused", refused)
	}
}

// A peer that runs with another key, or none, or of another overlay, at the address of one of ours.
func TestStrangersAreRefusedAndCounted(t *testing.T) {
	t.Parallel()
	founder := initDir(t)
	a := runDir(t, founder)
	i := invitation(t, founder, now(a))
	other := invitation(t, initDir(t), nil)
	for name, c := range map[string]struct {
		change func(*invite.Invite)
		want   error
		count  Refusal
	}{
		"wrong key":     {func(i *invite.Invite) { i.SwarmKey = NewSwarmKey() }, ErrSwarmKey, RefusedHandshake},
		"no key":        {func(i *invite.Invite) { i.SwarmKey = nil }, ErrSwarmKey, RefusedHandshake},
		"other overlay": {func(i *invite.Invite) { i.Genesis = other.Genesis }, ErrOtherOverlay, RefusedOverlay},
	} {
		t.Run(name, func(t *testing.T) {
			bad := i
			c.change(&bad)
			// They join while nobody answers, so that join has no occasion to refuse.
			bad.Bootstrap = []peer.AddrInfo{{ID: a.ID(), Addrs: []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/1")}}}
			dir, _ := joinDir(t, bad, config.Test)
			d, err := OpenDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			conf := d.Config()
			conf.Network.Bootstrap = nil
			for _, addr := range a.host.Addrs() {
				conf.Network.Bootstrap = append(conf.Network.Bootstrap, addr.String()+"/p2p/"+a.ID().String())
			}
			before := a.Refused()[c.count]
			n, h, err := d.Run(t.Context(), conf, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { n.Close(); h.Close() }()
			ctx := within(t, waitMax)
			poll := time.NewTicker(5 * time.Millisecond)
			defer poll.Stop()
			for a.Refused()[c.count] == before {
				select {
				case <-poll.C:
				case <-ctx.Done():
					t.Fatalf("never counted: %v", a.Refused())
				}
			}
			if err := Diagnose(ctx, h, n.Genesis(), bad.SwarmKey, peer.AddrInfo{ID: a.ID(), Addrs: a.host.Addrs()}); !errors.Is(err, c.want) {
				t.Errorf("on its own host: %v", err)
			}
			if len(n.Overlay().Peers()) != 0 {
				t.Errorf("it knows %v", n.Overlay().Peers())
			}
		})
	}
	if s := a.Overlay().Stats(); s.StreamsAccepted != 0 || s.MessagesReceived != 0 || len(s.StreamsReset) != 0 || len(a.Overlay().Peers()) != 0 {
		t.Errorf("%d hellos accepted, %d messages, resets %v, peers %v", s.StreamsAccepted, s.MessagesReceived, s.StreamsReset, a.Overlay().Peers())
	}
}

func TestJoinChecksWhatItIsGiven(t *testing.T) {
	founder := initDir(t)
	private := invitation(t, founder, nil)
	public := private
	public.SwarmKey = nil
	before := contents(t, founder)
	refused := private
	refused.Bootstrap = []peer.AddrInfo{{ID: private.Bootstrap[0].ID, Addrs: []ma.Multiaddr{webserver(t)}}}
	for _, i := range []invite.Invite{private, refused} { // before anybody is asked
		if _, err := JoinDir(t.Context(), founder, i, JoinOptions{Profile: config.Test}); !errors.Is(err, ErrExists) {
			t.Errorf("joining in a directory that has a peer: %v", err)
		}
	}
	if after := contents(t, founder); len(after) != len(before) {
		t.Error("it left files there")
	}
	for name, c := range map[string]struct {
		invite invite.Invite
		o      JoinOptions
		says   string
	}{
		"public profile, private overlay": {private, JoinOptions{Profile: config.Public}, "carries a swarm key"},
		"private profile, public overlay": {public, JoinOptions{Profile: config.Private}, "choose profile public"},
		"client profile, public overlay":  {public, JoinOptions{Profile: config.Client}, "choose profile public"},
		"no such profile":                 {private, JoinOptions{Profile: "huge"}, "huge"},
		"QUIC under a key":                {private, JoinOptions{Listen: []string{"/ip4/127.0.0.1/udp/0/quic-v1"}}, "TCP and WebSocket"},
		"no multiaddr":                    {private, JoinOptions{Listen: []string{"here"}}, "here"},
	} {
		dir := filepath.Join(t.TempDir(), "peer")
		_, err := JoinDir(t.Context(), dir, c.invite, c.o)
		if !errors.Is(err, config.ErrInvalid) || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s: there is a directory", name)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	cancel(enough)
	dir := filepath.Join(t.TempDir(), "peer")
	if _, err := JoinDir(ctx, dir, private, JoinOptions{Profile: config.Test}); !errors.Is(err, enough) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("there is a directory")
	}
}

// hidden fails when a text shows a swarm key.
func hidden(t *testing.T, text string, psk pnet.PSK) {
	t.Helper()
	for _, s := range []string{string(psk), fmt.Sprintf("%x", []byte(psk)), fmt.Sprint([]byte(psk))} {
		if strings.Contains(text, s) {
			t.Errorf("it shows the key: %s", text)
		}
	}
}

func TestJoinedDirectoryIsWhatTheProfileSays(t *testing.T) {
	founder := initDir(t)
	i := invitation(t, founder, nil)
	for p, want := range map[config.Profile]config.Mode{"": config.ModeServer, config.Client: config.ModeClient, config.Lowpower: config.ModeClient, config.Server: config.ModeServer} {
		dir, j := joinDir(t, i, p)
		info, err := PeekDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		c := info.Config.Network
		if info.ID != j.ID || c.Mode != want || string(info.SwarmKey) != string(i.SwarmKey) || info.Genesis.ID() != i.Genesis.ID() || len(c.Bootstrap) == 0 {
			t.Errorf("%q: %+v", p, info.Config)
		}
		if len(c.Listen) != 1 || strings.HasSuffix(c.Listen[0], "/0") {
			t.Errorf("%q: no port was drawn: %v", p, c.Listen)
		}
		for _, name := range []string{rootKeyFile, storeDir} {
			if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
				t.Errorf("%q: a joiner has %s", p, name)
			}
		}
	}
	i.SwarmKey = nil
	dir := filepath.Join(t.TempDir(), "peer")
	if _, err := JoinDir(t.Context(), dir, i, JoinOptions{Listen: []string{"/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"}}); err != nil {
		t.Fatal(err)
	}
	if info, err := PeekDir(dir); err != nil || info.Config.Profile != config.Public || info.SwarmKey != nil || info.Config.Network.Mode != config.ModeAuto {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestInvitationTellsWhatIsWorthTelling(t *testing.T) {
	t.Parallel()
	founder := initDir(t)
	info, err := PeekDir(founder)
	if err != nil {
		t.Fatal(err)
	}
	addrs := func(texts ...string) (all []ma.Multiaddr) {
		for _, s := range texts {
			all = append(all, ma.StringCast(s))
		}
		return all
	}
	own := peer.AddrInfo{ID: info.ID, Addrs: addrs("/ip4/127.0.0.1/tcp/20000", "/ip4/192.0.2.1/tcp/20000", "/ip6/fe80::1/tcp/20000", "/ip4/192.0.2.1/tcp/20000", "/ip4/0.0.0.0/tcp/1")}
	running := []peer.AddrInfo{own}
	for n := range 20 {
		p := peer.AddrInfo{ID: invitation(t, initDir(t), nil).Bootstrap[0].ID}
		for m := range 5 {
			p.Addrs = append(p.Addrs, ma.StringCast(fmt.Sprintf("/ip4/192.0.2.%d/tcp/%d", n+2, 20000+m)))
		}
		running = append(running, p)
	}
	i := invitation(t, founder, running)
	if fmt.Sprint(i.Bootstrap[0].Addrs) != "[/ip4/192.0.2.1/tcp/20000]" || i.Bootstrap[0].ID != info.ID {
		t.Errorf("of itself it tells %v", i.Bootstrap[0])
	}
	total := 0
	for _, p := range i.Bootstrap {
		total += len(p.Addrs)
	}
	if total != invite.AddrsMax || len(i.Bootstrap) < 6 || len(i.Bootstrap[1].Addrs) != otherAddrsMax || OnlyHere(i) {
		t.Errorf("%d addresses of %d peers", total, len(i.Bootstrap))
	}
	if _, err := i.Token(); err != nil {
		t.Error(err)
	}
	if _, err := Invitation(t.TempDir(), nil); !errors.Is(err, ErrNotInitialised) {
		t.Error(err)
	}
	// Of a client, who is found by nobody, the peers that it was told of come first.
	c, err := joinerConfig(i, JoinOptions{Profile: config.Client})
	if err != nil {
		t.Fatal(err)
	}
	client, key := filepath.Join(t.TempDir(), "client"), founderSpec(t).Key
	if err := CreateDir(client, DirSpec{Key: key, Genesis: i.Genesis, SwarmKey: i.SwarmKey, Config: c}); err != nil {
		t.Fatal(err)
	}
	if of := invitation(t, client, nil).Bootstrap; of[0].ID != info.ID || of[0].Addrs[0].String() != "/ip4/192.0.2.1/tcp/20000" {
		t.Errorf("a client tells of %v first", of[0])
	}
}

func TestInvitationWithoutADaemonTellsOfPeersMet(t *testing.T) {
	founder, other := initDir(t), invitation(t, initDir(t), nil).Bootstrap[0]
	b, err := json.Marshal(knownFile{Peers: []knownPeer{{ID: other.ID, Addrs: addrTexts(other.Addrs)}}})
	if err != nil {
		t.Fatal(err)
	}
	for content, want := range map[string]int{string(b): 2, "garbage": 1} {
		if err := os.WriteFile(filepath.Join(founder, peersFile), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		i := invitation(t, founder, nil)
		if len(i.Bootstrap) != want || want == 2 && i.Bootstrap[1].String() != other.String() {
			t.Errorf("%s: %v", content, i.Bootstrap)
		}
		if i := invitation(t, founder, []peer.AddrInfo{other}); len(i.Bootstrap) != 1 {
			t.Errorf("a daemon that runs knows better: %v", i.Bootstrap)
		}
	}
}

// TestSolitudeIsExplainedOncePerVerdict runs through what may be found, in virtual time.
func TestSolitudeIsExplainedOncePerVerdict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var mu sync.Mutex
		alone, verdict := true, map[peer.ID]error{"a": fmt.Errorf("%w: a", ErrUnreachable), "b": fmt.Errorf("%w: b", ErrUnreachable)}
		var told []string
		s := solitude{
			alone: func() bool { mu.Lock(); defer mu.Unlock(); return alone },
			peers: func() []peer.AddrInfo { return []peer.AddrInfo{{ID: "a"}, {ID: "b"}} },
			ask: func(_ context.Context, p peer.AddrInfo) error {
				mu.Lock()
				defer mu.Unlock()
				return verdict[p.ID]
			},
			tell: func(what string, err error) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, what+": "+err.Error())
			},
			over: func() { mu.Lock(); defer mu.Unlock(); told = append(told, "over") },
		}
		go s.run(ctx)
		now := func(f func()) { mu.Lock(); defer mu.Unlock(); f() }
		expect := func(after time.Duration, says ...string) {
			t.Helper()
			time.Sleep(after) // virtual
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if len(told) != len(says) {
				t.Fatalf("told %q; want %q", told, says)
			}
			for i, s := range says {
				if !strings.Contains(told[i], s) {
					t.Errorf("told %q; want %q", told[i], s)
				}
			}
			told = nil
		}
		expect(aloneGrace - time.Second)
		expect(2*time.Second, "other bootstrap peers that do not answer: 1")
		expect(10 * time.Minute) // the same again is no news
		now(func() { verdict["a"] = fmt.Errorf("%w: a", ErrSwarmKey) })
		expect(2*time.Minute, ErrSwarmKey.Error())
		expect(10 * time.Minute)
		now(func() { verdict["a"] = fmt.Errorf("%w: a", ErrOtherOverlay) })
		expect(2*time.Minute, ErrOtherOverlay.Error())
		now(func() { alone = false })
		expect(time.Minute, "over")
		now(func() { alone = true })
		expect(aloneGrace+time.Second, ErrOtherOverlay.Error()) // after company it is news again
		now(func() { verdict["a"] = nil })
		expect(10 * time.Minute) // somebody answers: no reason to complain
	})
}
