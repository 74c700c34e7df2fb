package main

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"latchkey/node"
	"latchkey/node/invite"
)

// fed runs latchkey beside the daemon of dir with something on standard input.
func fed(t *testing.T, dir, stdin string, args ...string) *process {
	t.Helper()
	p := command(t, nil, append([]string{"--path", dir}, args...)...)
	p.Stdin = strings.NewReader(stdin)
	p.start().wait()
	return p
}

// ok fails the test unless p ended well.
func ok(t *testing.T, p *process) *process {
	t.Helper()
	if p.code != 0 {
		t.Fatalf("%v: exit %d, %s", withoutTokens(strings.Join(p.Args[1:], " ")), p.code, p.err.String())
	}
	return p
}

// initTest makes a founder on the loopback.
func initTest(t *testing.T, dir string) { t.Helper(); ok(t, at(t, dir, "init", "--profile", "test")) }

// invited returns the invitation of the member in dir, and checks that nothing shows its secrets.
func invited(t *testing.T, dir string) (token string, i invite.Invite) {
	t.Helper()
	p := ok(t, at(t, dir, "invite"))
	token = p.out.String()
	if strings.Count(token, "\n") != 1 || !strings.HasSuffix(token, "\n") {
		t.Fatalf("invite prints %q", token)
	}
	i, err := invite.Parse(token)
	if err != nil {
		t.Fatal(err)
	}
	tell(t, p.err.String(), i, token)
	return strings.TrimSpace(token), i
}

// tell fails when a text tells a secret.
func tell(t *testing.T, text string, i invite.Invite, token string) {
	t.Helper()
	if strings.Contains(text, hex.EncodeToString(i.SwarmKey)) || strings.Contains(text, string(i.SwarmKey)) || strings.Contains(text, token[40:80]) {
		t.Errorf("a secret shows: %s", text)
	}
}

// lockFrom takes the lock from each directory several times at once, and fails when two have it.
func lockFrom(t *testing.T, dirs ...string) {
	t.Helper()
	mine := filepath.Join(shortDir(t), "mine")
	var all []*process
	for range 3 {
		for _, dir := range dirs {
			all = append(all, command(t, nil, "--path", dir, "lock", "n", "--wait", waitMax.String(), "--",
				"sh", "-c", `mkdir "$1" && sleep 0.02 && rmdir "$1" && echo $LATCHKEY_FENCE`, "sh", mine).start())
		}
	}
	tokens := make(map[string]bool)
	for _, p := range all {
		if p.wait() != 0 {
			t.Errorf("%v: exit %d, %s", p.Args[1:], p.code, p.err.String())
		}
		tokens[p.out.String()] = true
	}
	if len(tokens) != len(all) {
		t.Errorf("%d tokens for %d grants", len(tokens), len(all))
	}
}

// meeting waits until the daemon of each directory is connected to all others.
func meeting(t *testing.T, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		eventually(t, dir+" meets the others", func() bool {
			return strings.Count(at(t, dir, "peers", "-o", "jsonl").out.String(), `"connected":true`) == len(dirs)-1
		})
	}
}

func TestThreeMachinesByInitInviteJoin(t *testing.T) {
	t.Parallel()
	base := shortDir(t)
	a, b, c := filepath.Join(base, "a"), filepath.Join(base, "b"), filepath.Join(base, "c")
	initTest(t, a)
	startDaemon(t, a, nil)
	token, i := invited(t, a)

	p := ok(t, fed(t, b, token+"\n", "join", "-", "--profile", "test", "-o", "json"))
	var made struct {
		Path, Peer, Overlay, Profile, Met string
		Private, Joined                   bool
	}
	if err := json.Unmarshal(p.out.Bytes(), &made); err != nil || made.Path != b || made.Overlay != i.Genesis.ID().Hex() || !made.Private || !made.Joined || made.Met == "" || made.Profile != "test" {
		t.Errorf("%s, %v", p.out.String(), err)
	}
	tell(t, p.out.String()+p.err.String(), i, token)
	_, ready := startDaemon(t, b, nil)
	if !strings.HasPrefix(ready, "READY peer="+made.Peer+" ") {
		t.Errorf("%q", ready)
	}
	eventually(t, "b meets a", func() bool { return strings.Contains(at(t, b, "peers").out.String(), "connected") })

	// The joiner invites the third, which shows its token to everybody.
	token, i = invited(t, b)
	if len(i.Bootstrap) != 2 {
		t.Errorf("b tells of %v", i.Bootstrap)
	}
	p = ok(t, at(t, c, "join", token, "--profile", "test"))
	if !strings.Contains(p.err.String(), "latchkey join -") || !strings.Contains(p.out.String(), "joined   yes") {
		t.Errorf("%s%s", p.out.String(), p.err.String())
	}
	tell(t, p.out.String()+p.err.String(), i, token)
	startDaemon(t, c, nil)
	meeting(t, a, b, c)
	lockFrom(t, a, b, c)
}

func TestJoinsBeforeAnyDaemonRuns(t *testing.T) {
	t.Parallel()
	base := shortDir(t)
	a, b, c := filepath.Join(base, "a"), filepath.Join(base, "b"), filepath.Join(base, "c")
	initTest(t, a)
	p := ok(t, at(t, a, "invite"))
	for _, says := range []string{"is a secret", "the daemon is not running", "of no use on another machine"} {
		if !strings.Contains(p.err.String(), says) {
			t.Errorf("invite says nothing of %q: %s", says, p.err.String())
		}
	}
	token := p.out.String()
	for _, dir := range []string{b, c} {
		p := ok(t, fed(t, dir, token, "join", "-", "--profile", "test"))
		if !strings.Contains(p.out.String(), "not tried out") || !strings.Contains(p.err.String(), "connection refused") {
			t.Errorf("%s%s", p.out.String(), p.err.String())
		}
	}
	for _, dir := range []string{c, b, a} {
		startDaemon(t, dir, nil)
	}
	meeting(t, a, b, c)
	lockFrom(t, a, b, c)
}

func TestAClientInvitesToo(t *testing.T) {
	t.Parallel()
	base := shortDir(t)
	a, b, c := filepath.Join(base, "a"), filepath.Join(base, "b"), filepath.Join(base, "c")
	initTest(t, a)
	startDaemon(t, a, nil)
	token, _ := invited(t, a)
	ok(t, fed(t, b, token, "join", "-", "--profile", "client", "--listen", "/ip4/127.0.0.1/tcp/0"))
	if _, i := invited(t, b); len(i.Bootstrap) != 2 {
		t.Errorf("a client that was never there invites with %v", i.Bootstrap)
	}
	d, _ := startDaemon(t, b, []string{"LATCHKEY_NETWORK_MDNS=false"})
	lockFrom(t, a, b)
	token, _ = invited(t, b)
	ok(t, at(t, b, "shutdown"))
	d.wait()
	ok(t, fed(t, c, token, "join", "-", "--profile", "test"))
	startDaemon(t, c, nil)
	meeting(t, a, c)
	lockFrom(t, a, c)
}

func TestStrangersAreRefusedByTheirOwnLines(t *testing.T) {
	t.Parallel()
	base := shortDir(t)
	a, x := filepath.Join(base, "a"), filepath.Join(base, "x")
	initTest(t, a)
	initTest(t, x)
	startDaemon(t, a, nil)
	startDaemon(t, x, nil)
	token, good := invited(t, a)
	_, other := invited(t, x)
	with := func(change func(*invite.Invite)) string {
		i := good
		change(&i)
		token, err := i.Token()
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	damaged := []byte(token)
	damaged[len(damaged)/2] ^= 1
	for name, c := range map[string]struct {
		token string
		code  int
		says  string
	}{
		"wrong key":     {with(func(i *invite.Invite) { i.SwarmKey = node.NewSwarmKey() }), exitFailure, "uses another one than ours"},
		"no key":        {with(func(i *invite.Invite) { i.SwarmKey = nil }), exitFailure, "asks for a swarm key, and we have none"},
		"other overlay": {with(func(i *invite.Invite) { i.Genesis = other.Genesis }), exitFailure, "peer of another overlay"},
		"other peer": {with(func(i *invite.Invite) {
			i.Bootstrap = []peer.AddrInfo{{ID: other.Bootstrap[0].ID, Addrs: good.Bootstrap[0].Addrs}}
		}), exitFailure, "another peer answers"},
		"mistyped":            {string(damaged), exitFailure, "cut off or mistyped"},
		"cut off":             {token[:len(token)-5], exitFailure, "cut off or mistyped"},
		"nothing":             {"\n", exitUsage, "there is nothing"},
		"something else":      {"hello", exitUsage, "not an invitation"},
		"of the next version": {"latchkey2" + token[len("latchkey1"):], exitFailure, "newer version"},
	} {
		dir := filepath.Join(base, "joiner")
		p := fed(t, dir, c.token, "join", "-", "--profile", "test")
		expect(t, p, c.code, c.says)
		tell(t, p.out.String()+p.err.String(), good, token)
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s: something was written", name)
		}
	}
	expect(t, fed(t, filepath.Join(base, "public"), token, "join", "-", "--profile", "public"), exitUsage, "carries a swarm key")
	expect(t, fed(t, x, token, "join", "-", "--profile", "test"), exitFailure, "initialised already")

	// A daemon that has come to have another key, or none, is kept out, learns why, and is counted.
	handshakes := func() int {
		var s struct {
			Refused []struct {
				Reason string
				Count  int `json:",string"`
			}
		}
		p := ok(t, at(t, a, "status", "-o", "json"))
		if err := json.Unmarshal(p.out.Bytes(), &s); err != nil {
			t.Fatalf("%v: %s", err, p.out.String())
		}
		for _, r := range s.Refused {
			if r.Reason == string(node.RefusedHandshake) {
				return r.Count
			}
		}
		return 0
	}
	b := filepath.Join(base, "b")
	ok(t, fed(t, b, token, "join", "-", "--profile", "test"))
	key := "/key/swarm/psk/1.0.0/\n/base16/\n" + hex.EncodeToString(node.NewSwarmKey()) + "\n"
	if err := os.WriteFile(filepath.Join(b, "swarm.key"), []byte(key), 0o600); err != nil {
		t.Fatal(err)
	}
	before := handshakes()
	warned(t, b, "swarm key does not fit", "uses another one than ours")
	eventually(t, "it is counted", func() bool { return handshakes() > before })
	if err := os.Remove(filepath.Join(b, "swarm.key")); err != nil {
		t.Fatal(err)
	}
	warned(t, b, "swarm key does not fit", "we have none")
	if p := ok(t, at(t, a, "peers")); !strings.Contains(p.out.String(), "no other peers") {
		t.Errorf("a knows %s", p.out.String())
	}
}

// warned runs the daemon of dir until its first line on stderr, which must say these things.
func warned(t *testing.T, dir string, says ...string) {
	t.Helper()
	d := command(t, nil, "--path", dir, "daemon")
	d.Stderr = nil
	out, err := d.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	line := make(chan string, 1)
	go func() {
		r := bufio.NewReader(out)
		s, _ := r.ReadString('\n')
		line <- s
		io.Copy(io.Discard, r)
	}()
	d.start()
	select {
	case s := <-line:
		for _, want := range says {
			if !strings.Contains(s, want) {
				t.Errorf("the daemon says %q; want %q", s, want)
			}
		}
	case <-time.After(waitMax):
		t.Errorf("the daemon says nothing; want %q", says)
	}
	d.Process.Signal(syscall.SIGTERM)
	if d.wait() != 0 {
		t.Errorf("the daemon ended with %d", d.code)
	}
}

func TestDaemonSaysThatNobodyAnswers(t *testing.T) {
	t.Parallel()
	base := shortDir(t)
	a, b := filepath.Join(base, "a"), filepath.Join(base, "b")
	initTest(t, a)
	token, _ := invited(t, a)
	ok(t, fed(t, b, token, "join", "-", "--profile", "test"))
	warned(t, b, "no peer of the overlay answers yet", "connection refused")
}

func TestInvitationsDoNotShowWhereTheyAreMisplaced(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	initTest(t, dir)
	token, i := invited(t, dir)
	for _, args := range [][]string{
		{token}, {"help", token}, {"join", token, token}, {"join", "--profile", token, "-"}, {"join", "--listen", token, "-"}, {"id", token},
		{"join", "--token", token}, {"join", token + "x"}, {"join", "x" + token[:len(token)-1]}, {"-o", token, "id"}, {"config", "set", "network.mode", token},
		{"lock", "n", token},
	} {
		p := fed(t, filepath.Join(dir, "other"), token, args...)
		if p.code == 0 {
			t.Errorf("%d arguments: exit 0", len(args))
		}
		tell(t, p.oneLine()+p.out.String(), i, token)
	}
}

// TestKilledJoinsStartOver kills joins at all sorts of moments. Whatever is left, the next join makes the peer or finds it made.
func TestKilledJoinsStartOver(t *testing.T) {
	t.Parallel()
	base := shortDir(t)
	a := filepath.Join(base, "a")
	initTest(t, a)
	token, _ := invited(t, a)
	made, again := 0, 0
	for i := range 40 {
		dir := filepath.Join(base, fmt.Sprint(i))
		p := command(t, nil, "--path", dir, "join", "-", "--profile", "test")
		p.Stdin = strings.NewReader(token)
		p.start()
		select {
		case <-p.ended:
		case <-time.After(time.Duration(i) * time.Millisecond): // not to let something happen, but to vary what has
			p.Process.Kill()
			p.wait()
		}
		switch next := fed(t, dir, token, "join", "-", "--profile", "test"); {
		case next.code == 0:
			again++
		case strings.Contains(next.err.String(), "initialised already"):
			made++
		default:
			t.Errorf("killed after %d ms; then: exit %d, %s", i, next.code, next.err.String())
		}
		if _, err := node.PeekDir(dir); err != nil {
			t.Errorf("killed after %d ms: %v", i, err)
		}
	}
	t.Logf("%d joins were done when they were killed, %d began anew", made, again)
}

func TestInviteNeedsADirectoryOfItsOwn(t *testing.T) {
	t.Parallel()
	base := shortDir(t)
	a, x := filepath.Join(base, "a"), filepath.Join(base, "x")
	expect(t, at(t, a, "invite"), exitFailure, "not initialised")
	initTest(t, a)
	initTest(t, x)
	startDaemon(t, x, nil)
	expect(t, at(t, a, "--api", filepath.Join(x, "api.sock"), "invite"), exitFailure, "name them both")
	p := ok(t, at(t, x, "-o", "json", "invite"))
	var v struct {
		Token           string
		Private, Daemon bool
		Addrs           []string
	}
	if err := json.Unmarshal(p.out.Bytes(), &v); err != nil || !v.Private || !v.Daemon || len(v.Addrs) != 1 || !strings.HasPrefix(v.Addrs[0], "/ip4/127.0.0.1/tcp/") {
		t.Errorf("%s, %v", p.out.String(), err)
	}
}

func TestPublicOverlayPrintsWhomToTrust(t *testing.T) {
	t.Parallel()
	base := shortDir(t)
	a, b := filepath.Join(base, "a"), filepath.Join(base, "b")
	p := ok(t, at(t, a, "init", "--profile", "public", "--listen", "/ip4/127.0.0.1/tcp/0"))
	for _, says := range []string{"trusted not to lie", "makes up peer ids", "private overlay"} {
		if !strings.Contains(p.err.String(), says) {
			t.Errorf("nothing of %q in %s", says, p.err.String())
		}
	}
	if _, err := os.Stat(filepath.Join(a, "swarm.key")); !errors.Is(err, os.ErrNotExist) {
		t.Error("a public overlay has a swarm key")
	}
	p = ok(t, at(t, a, "invite"))
	if strings.Contains(p.err.String(), "secret") {
		t.Errorf("%s", p.err.String())
	}
	expect(t, fed(t, b, p.out.String(), "join", "-", "--profile", "client"), exitUsage, "choose profile public")
	ok(t, fed(t, b, p.out.String(), "join", "-", "--listen", "/ip4/127.0.0.1/tcp/0"))
}

func TestDaemonMakesThePeerWhenAsked(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(shortDir(t), "peer")
	d, ready := startDaemon(t, dir, nil, "--init", "--init-profile", "test")
	if !strings.Contains(ready, "listen=/ip4/127.0.0.1/tcp/") {
		t.Errorf("%q", ready)
	}
	ok(t, at(t, dir, "shutdown"))
	if d.wait(); d.code != 0 || !strings.Contains(d.err.String(), "made peer") {
		t.Errorf("exit %d, %s", d.code, d.err.String())
	}
	// Not anew: it is the same peer, of the same overlay.
	d, again := startDaemon(t, dir, nil, "--init")
	ok(t, at(t, dir, "shutdown"))
	if d.wait(); again != ready || strings.Contains(d.err.String(), "made peer") {
		t.Errorf("it was %q and is %q, %s", ready, again, d.err.String())
	}
	expect(t, at(t, filepath.Join(dir, "x"), "daemon", "--init", "--init-profile", "client"), exitUsage, "hosts none")
	expect(t, at(t, filepath.Join(dir, "x"), "daemon", "--init", "--init-profile", "test", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1"), exitUsage, "TCP and WebSocket only")
}

func TestDaemonTakesBootstrapPeersFromItsFlags(t *testing.T) {
	t.Parallel()
	base := shortDir(t)
	a, b := filepath.Join(base, "a"), filepath.Join(base, "b")
	initTest(t, a)
	_, good := invited(t, a)
	good.Bootstrap[0].Addrs = []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/1")} // nobody there
	token, err := good.Token()
	if err != nil {
		t.Fatal(err)
	}
	ok(t, fed(t, b, token, "join", "-", "--profile", "test"))
	_, ready := startDaemon(t, a, nil)
	at := strings.TrimSpace(ready[strings.Index(ready, "listen=")+len("listen="):])
	startDaemon(t, b, nil, "--bootstrap", at)
	meeting(t, a, b)
}

func TestInvitationsAreTakenOutOfErrors(t *testing.T) {
	if s := withoutTokens(fmt.Sprintf("a latchkey1.%s b, latchkey1.x", strings.Repeat("Q_-9", 20))); s != "a latchkey1.[invitation] b, latchkey1.x" {
		t.Error(s)
	}
}

func TestWhatIsNoInvitationIsWrongUsageWhereverItIsFrom(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(shortDir(t), "x")
	for _, p := range []*process{
		command(t, nil, "--path", dir, "join", "-"), // with the null device as its input, which is no terminal
		command(t, nil, "--path", dir, "join", "frobnicate"),
	} {
		p.start().wait()
		expect(t, p, exitUsage, "latchkey: join: not an invitation")
	}
	expect(t, fed(t, dir, "frobnicate", "join", "-"), exitUsage, "latchkey: join: not an invitation")
}

func TestAFileThatHoldsAnInvitationIsReadByTheShell(t *testing.T) {
	t.Parallel()
	base := shortDir(t)
	a, file := filepath.Join(base, "a"), filepath.Join(base, "the invitation")
	initTest(t, a)
	p := ok(t, at(t, a, "invite", "-o", "json"))
	if err := os.WriteFile(file, p.out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, at(t, filepath.Join(base, "b"), "join", file), exitUsage, "is a file", "join - < '"+file+"'")
	ok(t, fed(t, filepath.Join(base, "b"), p.out.String(), "join", "-", "--profile", "test"))
	ok(t, at(t, filepath.Join(base, "c"), "join", "\""+strings.TrimSpace(p.out.String())+"\"", "--profile", "test"))
}

func TestAnAddressThatIsNotOursIsOneLine(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	initTest(t, dir)
	expect(t, at(t, dir, "daemon", "--listen", "/ip4/192.0.2.77/tcp/4701"), exitFailure, "cannot listen at", "192.0.2.77")
	public := filepath.Join(dir, "public")
	ok(t, at(t, public, "init", "--profile", "public"))
	expect(t, at(t, public, "daemon", "--listen", "/ip4/192.0.2.77/udp/4701/quic-v1"), exitFailure, "cannot listen at", "192.0.2.77")
}

// A public overlay revives lost groups by itself, any other one where its founder wants that; joiners hear of it.
func TestInitChoosesHowGroupsComeBack(t *testing.T) {
	t.Parallel()
	base := shortDir(t)
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"default": {nil, "regenesis manual"},
		"manual":  {[]string{"--regenesis", "manual"}, "regenesis manual"},
		"lease":   {[]string{"--regenesis", "lease"}, "regenesis lease"},
		"public":  {[]string{"--profile", "public"}, "regenesis lease, reads quorum"},
		"reads":   {[]string{"--reads", "lease"}, "regenesis manual, reads lease"},
	} {
		dir := filepath.Join(base, name)
		p := ok(t, at(t, dir, append([]string{"init", "--listen", "/ip4/127.0.0.1/tcp/0"}, c.args...)...))
		if !strings.Contains(p.out.String(), c.want) {
			t.Errorf("%s: no %q in %s", name, c.want, p.out.String())
		}
		p = ok(t, at(t, dir, "invite"))
		p = ok(t, fed(t, dir+"2", p.out.String(), "join", "-", "--listen", "/ip4/127.0.0.1/tcp/0"))
		if !strings.Contains(p.out.String(), c.want) {
			t.Errorf("%s: who joins sees no %q in %s", name, c.want, p.out.String())
		}
	}
	expect(t, at(t, filepath.Join(base, "x"), "init", "--regenesis", "auto"), exitUsage, "want manual or lease")
	expect(t, at(t, filepath.Join(base, "x"), "init", "--reads", "stale"), exitUsage, "want quorum or lease")
	expect(t, at(t, filepath.Join(base, "x"), "init", "--regenesis", "manual", "--profile", "public"), exitUsage, "a public overlay has regenesis lease")
}
