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
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
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
	hub := namespace(t, "hub")
	inNamespaces(t, "-n "+hub+" link add bridge type bridge", "-n "+hub+" link set bridge up")
	for i, addr := range addrs {
		n := namespace(t, fmt.Sprint(i))
		inNamespaces(t,
			fmt.Sprintf("-n %s link add port%d type veth peer name lan netns %s", hub, i, n),
			fmt.Sprintf("-n %s link set port%d master bridge up", hub, i),
			fmt.Sprintf("-n %s addr add %s dev lan", n, addr),
			fmt.Sprintf("-n %s link set lan up", n))
		namespaces = append(namespaces, n)
	}
	return namespaces
}

// namespacesMade numbers the namespaces of this process.
var namespacesMade atomic.Int32

// namespace makes one, in which there is only the loopback.
func namespace(t *testing.T, label string) (name string) {
	t.Helper()
	name = fmt.Sprintf("lk%d-%d-%s", os.Getpid(), namespacesMade.Add(1), label)
	inNamespaces(t, "netns add "+name)
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", name).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	inNamespaces(t, "-n "+name+" link set lo up")
	return name
}

// inNamespaces runs commands of the tool ip.
func inNamespaces(t *testing.T, commands ...string) {
	t.Helper()
	for _, c := range commands {
		if out, err := exec.Command("ip", strings.Fields(c)...).CombinedOutput(); err != nil {
			t.Skipf("cannot make a network of namespaces here: ip %s: %v: %s", c, err, bytes.TrimSpace(out))
		}
	}
}

// behindNAT makes a namespace behind another one, which has its network interface lan on the outside and becomes a router as there is one in most
// homes: connections go out with the router's address, from the same port where that is free, and what comes to the router
// by itself is dropped without an answer.
func behindNAT(t *testing.T, router string) (inside string) {
	t.Helper()
	inside = namespace(t, "inside")
	inNamespaces(t,
		"-n "+router+" link add inside type veth peer name lan netns "+inside,
		"-n "+router+" addr add 192.168.1.1/24 dev inside",
		"-n "+router+" link set inside up",
		"-n "+inside+" addr add 192.168.1.2/24 dev lan",
		"-n "+inside+" link set lan up",
		"-n "+inside+" route add default via 192.168.1.1",
		"netns exec "+router+" sysctl -q -w net.ipv4.ip_forward=1")
	f, err := os.Open("/run/netns/" + router)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c, err := nftables.New(nftables.WithNetNSFd(int(f.Fd())))
	if err != nil {
		t.Skipf("cannot speak to the kernel's nftables: %v", err)
	}
	outside := func(key expr.MetaKey) []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: key, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: append([]byte("lan"), make([]byte, 13)...)}, // IFNAMSIZ
		}
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "router"})
	out := c.AddChain(&nftables.Chain{Table: table, Name: "out", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	c.AddRule(&nftables.Rule{Table: table, Chain: out, Exprs: append(outside(expr.MetaKeyOIFNAME), &expr.Masq{})})
	in := c.AddChain(&nftables.Chain{Table: table, Name: "in", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter})
	c.AddRule(&nftables.Rule{Table: table, Chain: in, Exprs: append(outside(expr.MetaKeyIIFNAME), &expr.Verdict{Kind: expr.VerdictDrop})})
	if err := c.Flush(); err != nil {
		t.Skipf("cannot make a NAT of the kernel's nftables here: %v", err)
	}
	return inside
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
		v, err := doForParent(t, n, h, strings.Fields(lines.Text()))
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

func doForParent(t *testing.T, n *Node, h host.Host, words []string) (any, error) {
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
	case "dial":
		return dialAnew(ctx, words[1])
	case "meet":
		return meetByRelay(ctx, h, words[1])
	}
	return nil, fmt.Errorf("%s: unknown", words[0])
}

// dialAnew dials an address from a host that nobody knows, and tells whether that worked.
func dialAnew(ctx context.Context, at string) (bool, error) {
	info, err := peer.AddrInfoFromString(at)
	if err != nil {
		return false, err
	}
	h, err := libp2p.New(libp2p.NoListenAddrs)
	if err != nil {
		return false, err
	}
	defer h.Close()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return h.Connect(ctx, *info) == nil, nil
}

// meetByRelay connects a peer's host to another through a relay, waits until a direct connection has come of it and returns that one's
// address at the other end.
func meetByRelay(ctx context.Context, h host.Host, at string) (string, error) {
	info, err := peer.AddrInfoFromString(at)
	if err != nil {
		return "", err
	}
	ctx = network.WithAllowLimitedConn(ctx, "to look")
	if err := h.Connect(ctx, *info); err != nil {
		return "", err
	}
	if r := <-ping.Ping(ctx, h, info.ID); r.Error != nil {
		return "", fmt.Errorf("ping: %w", r.Error)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conns := h.Network().ConnsToPeer(info.ID)
		for _, c := range conns {
			if !has(c.RemoteMultiaddr(), ma.P_CIRCUIT) {
				return c.RemoteMultiaddr().String(), nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "", fmt.Errorf("never direct: %v", conns)
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

// TestPeersBehindNATsAreClientsThatMeetThroughARelay runs a public overlay of two peers that anybody reaches and two that are each behind a
// NAT: these host nothing, have a relay, take locks, and come from a connection through the relay to a direct one, which each
// NAT takes for one that its own peer has opened.
func TestPeersBehindNATsAreClientsThatMeetThroughARelay(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 20 s: AutoNAT takes its time")
	}
	t.Parallel()
	for _, transport := range []string{"tcp/24001", "udp/24001/quic-v1"} {
		t.Run(strings.ReplaceAll(transport, "/", "-"), func(t *testing.T) {
			t.Parallel()
			peersBehindNATs(t, transport)
		})
	}
}

func peersBehindNATs(t *testing.T, transport string) {
	ns := lan(t, "8.8.0.1/24", "8.8.0.2/24", "8.8.0.3/24", "8.8.0.4/24")
	listen := "/ip4/0.0.0.0/" + transport
	founder := filepath.Join(t.TempDir(), "founder")
	none := 0
	if _, _, err := InitDir(founder, InitOptions{FoundOptions: FoundOptions{F: &none}, Profile: config.Public, Listen: []string{listen}}); err != nil {
		t.Fatal(err)
	}
	f, err := OpenDir(founder)
	if err != nil {
		t.Fatal(err)
	}
	seed := "/ip4/8.8.0.1/" + transport + "/p2p/" + f.ID().String()
	f.Close()
	join := func(n *config.Network) { n.Listen, n.Bootstrap, n.MDNS = []string{listen}, []string{seed}, false }
	var others [3]string
	for i := range others {
		others[i] = newcomer(t, founder, config.Public, join)
	}
	a, b := newRemote(t, ns[0], founder), newRemote(t, ns[1], others[0])
	inside := []*remote{newRemote(t, behindNAT(t, ns[2]), others[1]), newRemote(t, behindNAT(t, ns[3]), others[2])}

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
	for i, p := range inside {
		within(20*time.Second, fmt.Sprintf("peer %d behind a NAT uses a lock", i), func() bool { return p.ask(nil, "lock", "one") == nil })
	}
	reach := func(p *remote, want string, hosting bool) func() bool {
		return func() bool { s, _ := p.status(); return s.Reachability == want && s.Hosting == hosting }
	}
	within(time.Minute, "the first is reached", reach(a, "public", true))
	within(time.Minute, "the second is reached and hosts", reach(b, "public", true))
	circuits := make([]string, len(inside))
	for i, p := range inside {
		within(2*time.Minute, fmt.Sprintf("peer %d behind a NAT is not reached, and hosts nothing", i), reach(p, "private", false))
		within(3*time.Minute, fmt.Sprintf("peer %d behind a NAT has a relay", i), func() bool {
			_, addrs := p.status()
			if at := slices.IndexFunc(addrs, func(a string) bool { return strings.Contains(a, "/p2p-circuit/") }); at >= 0 {
				circuits[i] = addrs[at]
			}
			return circuits[i] != ""
		})
	}
	_, id, _ := strings.Cut(circuits[0], "/p2p-circuit/")
	outside := "/ip4/8.8.0.3/" + transport
	var reached bool
	if err := b.ask(&reached, "dial", outside+"/"+id); err != nil || reached {
		t.Fatalf("the NAT lets strangers in: %v, %v", reached, err)
	}
	var direct string
	if err := inside[1].ask(&direct, "meet", circuits[0]); err != nil || direct != outside {
		t.Errorf("through %s: directly at %q, %v", circuits[0], direct, err)
	}
	t.Logf("%v: directly connected at %s", time.Since(began).Round(time.Millisecond), direct)
	for i, p := range inside {
		if err := p.ask(nil, "lock", "one"); err != nil {
			t.Errorf("peer %d behind a NAT: %v", i, err)
		}
		if s, _ := p.status(); s.Groups != 0 || s.Hosting {
			t.Errorf("peer %d behind a NAT hosts %d groups", i, s.Groups)
		}
	}
}
