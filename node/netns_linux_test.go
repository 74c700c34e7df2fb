package node

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	ma "github.com/multiformats/go-multiaddr"

	"latchkey/node/api"
	"latchkey/node/config"
)

// remoteDir names, in the environment of a test process that another test has started, what it is to be: a peer, by its directory.
const remoteDir = "LATCHKEY_TEST_PEER"

// lan makes network namespaces on one bridge, each with a network interface at one address, and removes them when the test ends.
func lan(t *testing.T, addrs ...string) (namespaces []string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to make network namespaces")
	}
	run := func(args ...string) error {
		out, err := exec.Command("ip", args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
		}
		return nil
	}
	name := func(i int) string {
		return fmt.Sprintf("lk%d-%.8s-%d", os.Getpid(), strings.TrimPrefix(t.Name(), "Test"), i)
	}
	for i := range len(addrs) + 1 { // the last has the bridge
		if err := run("netns", "add", name(i)); err != nil {
			t.Skipf("cannot make network namespaces here: %v", err)
		}
		t.Cleanup(func() {
			if err := run("netns", "del", name(i)); err != nil {
				t.Error(err)
			}
		})
	}
	hub := name(len(addrs))
	steps := [][]string{{"-n", hub, "link", "add", "bridge", "type", "bridge"}, {"-n", hub, "link", "set", "bridge", "up"}}
	for i, addr := range addrs {
		port := fmt.Sprint("port", i)
		steps = append(steps,
			[]string{"-n", hub, "link", "add", port, "type", "veth", "peer", "name", "lan", "netns", name(i)},
			[]string{"-n", hub, "link", "set", port, "master", "bridge", "up"},
			[]string{"-n", name(i), "link", "set", "lo", "up"},
			[]string{"-n", name(i), "addr", "add", addr, "dev", "lan"},
			[]string{"-n", name(i), "link", "set", "lan", "up"})
		namespaces = append(namespaces, name(i))
	}
	for _, s := range steps {
		if err := run(s...); err != nil {
			t.Skipf("cannot make a network of namespaces here: %v", err)
		}
	}
	return namespaces
}

// remote is a peer in a process and a namespace of its own.
type remote struct {
	t    *testing.T
	name string
	in   io.WriteCloser
	out  *bufio.Scanner
	log  bytes.Buffer // complete when it has ended
}

// newRemote starts the peer of a directory in a namespace.
func newRemote(t *testing.T, namespace, dir string, environ ...string) *remote {
	t.Helper()
	cmd := exec.Command("ip", "netns", "exec", namespace, os.Args[0], "-test.run", "^TestPeerOfANamespace$")
	cmd.Env = append(os.Environ(), append(environ, remoteDir+"="+dir)...)
	c := &remote{t: t, name: filepath.Base(dir)}
	cmd.Stderr = &c.log
	var err error
	if c.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.out = bufio.NewScanner(out)
	c.out.Buffer(nil, 1<<20)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.in.Close() // which ends it
		kill := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
		defer kill.Stop()
		var last []string
		for c.out.Scan() {
			last = append(last, c.out.Text())
		}
		err := cmd.Wait()
		if err != nil {
			t.Errorf("%s: %v: %s", c.name, err, last)
		}
		if err != nil || t.Failed() {
			t.Logf("%s: %s", c.name, c.log.String())
		}
	})
	return c
}

// ask has the child do something, and reads its answer into v.
func (c *remote) ask(v any, words ...string) error {
	if _, err := fmt.Fprintln(c.in, strings.Join(words, " ")); err != nil {
		return err
	}
	if !c.out.Scan() {
		return fmt.Errorf("%s: no answer to %v: %w", c.name, words, io.ErrUnexpectedEOF)
	}
	var a struct {
		Err   string
		Value json.RawMessage
	}
	if err := json.Unmarshal(c.out.Bytes(), &a); err != nil {
		return fmt.Errorf("%s: %q: %w", c.name, c.out.Text(), err)
	}
	if a.Err != "" {
		return fmt.Errorf("%s: %v: %s", c.name, words, a.Err)
	}
	if v == nil {
		return nil
	}
	return json.Unmarshal(a.Value, v)
}

// status returns how the child is doing and at which addresses it can be found.
func (c *remote) status() (s api.Status, addrs []string) {
	c.t.Helper()
	if err := c.ask(&s, "status"); err != nil {
		c.t.Fatal(err)
	}
	if err := c.ask(&addrs, "addrs"); err != nil {
		c.t.Fatal(err)
	}
	return s, addrs
}

// TestPeerOfANamespace is no test: it is what a child does.
func TestPeerOfANamespace(t *testing.T) {
	dir := os.Getenv(remoteDir)
	if dir == "" {
		t.Skip("part of the tests that start it")
	}
	d, err := OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	n, h, err := d.Run(t.Context(), d.Config(), nil)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		v, err := doForParent(t, d, n, h, strings.Fields(lines.Text()))
		answer := map[string]any{"Value": v}
		if err != nil {
			answer["Err"] = err.Error()
		}
		b, err := json.Marshal(answer)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("%s\n", b)
	}
	if err := errors.Join(n.Close(), h.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
	os.Exit(0) // libp2p has probes of NATs under way, which the test of the whole package would take for leaks
}

func doForParent(t *testing.T, d *Dir, n *Node, h host.Host, words []string) (any, error) {
	ctx, cancel := context.WithTimeout(t.Context(), waitMax)
	defer cancel()
	switch words[0] {
	case "status":
		return n.Status(ctx)
	case "addrs":
		var addrs []string
		for _, a := range h.Addrs() {
			addrs = append(addrs, a.String()+"/p2p/"+h.ID().String())
		}
		return addrs, nil
	case "lock":
		hold, err := n.Locks().Lock(ctx, words[1])
		if err != nil {
			return nil, err
		}
		return hold.Token(), hold.Release(ctx)
	case "meet":
		return meetByRelay(t, ctx, d, words[1])
	}
	return nil, fmt.Errorf("%s: unknown", words[0])
}

// meetByRelay dials a peer through a relay, with a host that nobody knows, and tells how they are connected in the end: "relayed" while that
// is all there is, "direct" when a direct connection has come of it.
func meetByRelay(t *testing.T, ctx context.Context, d *Dir, at string) (string, error) {
	info, err := peer.AddrInfoFromString(at)
	if err != nil {
		return "", err
	}
	c := d.Config()
	for i, a := range c.Network.Listen {
		c.Network.Listen[i] = a[:strings.LastIndex(a, "/")] + "/0"
	}
	opts, err := HostOptions(c, newKey(t), nil, nil)
	if err != nil {
		return "", err
	}
	h, err := libp2p.New(opts...)
	if err != nil {
		return "", err
	}
	defer h.Close()
	if err := h.Connect(network.WithAllowLimitedConn(ctx, "to look"), *info); err != nil {
		return "", err
	}
	relayed := func(c network.Conn) bool { return has(c.RemoteMultiaddr(), ma.P_CIRCUIT) }
	if conns := h.Network().ConnsToPeer(info.ID); !slices.ContainsFunc(conns, relayed) {
		return "", fmt.Errorf("not through a relay: %v", conns)
	}
	if r := <-ping.Ping(network.WithAllowLimitedConn(ctx, "to look"), h, info.ID); r.Error != nil || r.RTT == 0 {
		return "", fmt.Errorf("ping through the relay: %v", r.Error)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if slices.ContainsFunc(h.Network().ConnsToPeer(info.ID), func(c network.Conn) bool { return !relayed(c) }) {
			return "direct", nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "relayed", nil
		}
	}
}

// newcomer makes the directory of a peer that knows an overlay's founder by its directory, and by no address.
func newcomer(t *testing.T, founder string, p config.Profile, change func(*config.Network)) (dir string) {
	t.Helper()
	f, err := OpenDir(founder)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c, err := config.Default(p)
	if err != nil {
		t.Fatal(err)
	}
	change(&c.Network)
	dir = filepath.Join(t.TempDir(), "newcomer")
	if err := CreateDir(dir, DirSpec{Key: newKey(t), Genesis: f.Genesis(), SwarmKey: f.SwarmKey(), Config: c}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestPeersOfOneNetworkFindEachOther(t *testing.T) {
	t.Parallel()
	ns := lan(t, "10.111.0.1/24", "10.111.0.2/24")
	founder := filepath.Join(t.TempDir(), "founder")
	const listen = "/ip4/0.0.0.0/tcp/24001"
	one := 0
	if _, _, err := InitDir(founder, InitOptions{FoundOptions: FoundOptions{F: &one}, Profile: config.Private, Listen: []string{listen}}); err != nil {
		t.Fatal(err)
	}
	other := newcomer(t, founder, config.Private, func(n *config.Network) { n.Listen = []string{listen} })
	a, b := newRemote(t, ns[0], founder), newRemote(t, ns[1], other)
	for _, c := range []*remote{a, b} {
		eventually(t, c.name+" has found the other", func() bool {
			s, _ := c.status()
			return s.PeersConnected == 1
		})
	}
	if err := b.ask(nil, "lock", "one"); err != nil {
		t.Error(err)
	}
}

// TestAPeerThatNobodyReachesIsAClientBehindARelay runs a public overlay of two peers that reach each other and a third behind a
// firewall that lets nobody in. There is no tool here that makes a NAT, so this is one without: the addresses are public ones,
// and what comes in for the third's port is turned away.
func TestAPeerThatNobodyReachesIsAClientBehindARelay(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 20 s: AutoNAT takes its time")
	}
	t.Parallel()
	ns := lan(t, "8.8.0.1/24", "8.8.0.2/24", "8.8.0.3/24")
	for _, rule := range [][]string{
		{"add", "pref", "0", "iif", "lan", "ipproto", "tcp", "dport", "24001", "prohibit"},
		{"add", "pref", "1", "lookup", "local"},
		{"del", "pref", "0", "lookup", "local"},
	} {
		if out, err := exec.Command("ip", append([]string{"-n", ns[2], "rule"}, rule...)...).CombinedOutput(); err != nil {
			t.Skipf("cannot make a firewall of routing rules here: ip rule %v: %v: %s", rule, err, out)
		}
	}
	const listen = "/ip4/0.0.0.0/tcp/24001"
	founder := filepath.Join(t.TempDir(), "founder")
	none := 0
	if _, _, err := InitDir(founder, InitOptions{FoundOptions: FoundOptions{F: &none}, Profile: config.Public, Listen: []string{listen}}); err != nil {
		t.Fatal(err)
	}
	f, err := OpenDir(founder)
	if err != nil {
		t.Fatal(err)
	}
	seed := "/ip4/8.8.0.1/tcp/24001/p2p/" + f.ID().String()
	f.Close()
	join := func(n *config.Network) { n.Listen, n.Bootstrap, n.MDNS = []string{listen}, []string{seed}, false }
	second, third := newcomer(t, founder, config.Public, join), newcomer(t, founder, config.Public, join)
	a, b := newRemote(t, ns[0], founder), newRemote(t, ns[1], second)
	// It dials from other ports than the one it listens at, which the firewall knows nothing of.
	c := newRemote(t, ns[2], third, "LIBP2P_TCP_REUSEPORT=false")

	began := time.Now()
	within := func(d time.Duration, what string, ok func() bool) {
		t.Helper()
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for !ok() {
			if time.Since(began) > d {
				t.Fatalf("not within %v: %s", d, what)
			}
			<-tick.C
		}
		t.Logf("%v: %s", time.Since(began).Round(time.Millisecond), what)
	}
	within(20*time.Second, "the third uses a lock", func() bool { return c.ask(nil, "lock", "one") == nil })
	reach := func(p *remote, want string, hosting bool) func() bool {
		return func() bool { s, _ := p.status(); return s.Reachability == want && s.Hosting == hosting }
	}
	within(time.Minute, "the first is reached", reach(a, "public", true))
	within(time.Minute, "the second is reached and hosts", reach(b, "public", true))
	within(2*time.Minute, "the third is not, and hosts nothing", reach(c, "private", false))
	circuit := ""
	within(3*time.Minute, "the third has a relay", func() bool {
		_, addrs := c.status()
		i := slices.IndexFunc(addrs, func(a string) bool { return strings.Contains(a, "/p2p-circuit/") })
		if i >= 0 {
			circuit = addrs[i]
		}
		return i >= 0
	})
	var how string
	if err := b.ask(&how, "meet", circuit); err != nil || how != "direct" {
		t.Errorf("through %s: %q, %v", circuit, how, err)
	}
	if s, _ := c.status(); s.Groups != 0 {
		t.Errorf("the third hosts %d groups", s.Groups)
	}
}
