package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/node/config"
)

// running is a directory in use.
type running struct {
	dir  *Dir
	node *Node
	host host.Host
}

// start runs the peer of a directory until the test ends, or stop is called.
func start(t *testing.T, path string, change func(*config.Config)) running {
	t.Helper()
	d, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	c := d.Config()
	if change != nil {
		change(&c)
	}
	n, h, err := d.Run(t.Context(), c, nil)
	if err != nil {
		t.Fatal(errors.Join(err, d.Close()))
	}
	r := running{d, n, h}
	t.Cleanup(func() { r.stop(t) })
	return r
}

func (r running) stop(t *testing.T) {
	t.Helper()
	if err := errors.Join(r.node.Close(), r.host.Close(), r.dir.Close()); err != nil {
		t.Error(err)
	}
}

// waitPeer waits until the node has a peer.
func (r running) waitPeer(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitMax)
	defer cancel()
	if err := r.node.Overlay().WaitPeers(ctx, 1); err != nil {
		t.Fatalf("no peer was found: %v", err)
	}
}

// member makes a directory that joins the overlay of another one.
func member(t *testing.T, of string) string {
	t.Helper()
	info, err := PeekDir(of)
	if err != nil {
		t.Fatal(err)
	}
	s := joinerSpec(t)
	s.Genesis, s.SwarmKey = info.Genesis, info.SwarmKey
	dir := filepath.Join(t.TempDir(), "member")
	if err := CreateDir(dir, s); err != nil {
		t.Fatal(err)
	}
	return dir
}

func bootstrapAt(r running) func(*config.Config) {
	return func(c *config.Config) {
		c.Network.Bootstrap = []string{r.host.Addrs()[0].String() + "/p2p/" + r.host.ID().String()}
	}
}

// A peer that was once told where the overlay is finds it again without being told; so does one whose addresses are fixed by
// init, after a restart of its own.
func TestPeersFindEachOtherAfterARestart(t *testing.T) {
	first := initDir(t)
	second := member(t, first)
	founder := start(t, first, nil)
	if got := founder.host.Addrs()[0].String(); got != founder.dir.Config().Network.Listen[0] {
		t.Errorf("listens at %s, the configuration says %v", got, founder.dir.Config().Network.Listen)
	}
	joined := start(t, second, bootstrapAt(founder))
	joined.waitPeer(t)
	joined.stop(t)
	b, err := os.ReadFile(filepath.Join(second, peersFile))
	if err != nil {
		t.Fatal(err)
	}
	known, err := decodeKnownPeers(b)
	if err != nil || len(known) != 1 || known[0].ID != founder.host.ID() {
		t.Fatalf("remembered %+v, %v", known, err)
	}
	start(t, second, nil).waitPeer(t)
}

// Whoever has the genesis document but another key, or none, does not get in.
func TestSwarmKeyKeepsOthersOut(t *testing.T) {
	t.Parallel()
	first := initDir(t)
	founder := start(t, first, nil)
	for name, key := range map[string]func(string) error{
		"another key": func(path string) error { return os.WriteFile(path, encodeSwarmKey(NewSwarmKey()), 0o600) },
		"no key":      os.Remove,
	} {
		dir := member(t, first)
		if err := key(filepath.Join(dir, swarmKeyFile)); err != nil {
			t.Fatal(err)
		}
		stranger := start(t, dir, nil)
		ctx, cancel := context.WithTimeout(t.Context(), waitMax)
		err := stranger.host.Connect(ctx, peer.AddrInfo{ID: founder.host.ID(), Addrs: founder.host.Addrs()})
		cancel()
		if err == nil || ctx.Err() == context.DeadlineExceeded {
			t.Errorf("%s: connecting ended with %v", name, err)
		}
		if n := len(founder.host.Network().Peers()); n != 0 {
			t.Errorf("%s: the founder has %d peers", name, n)
		}
	}
	start(t, member(t, first), bootstrapAt(founder)).waitPeer(t)
}

// A peer that is told to take no part founds nothing, and loses nothing by having tried.
func TestFoundingTakesAServer(t *testing.T) {
	dir := initDir(t)
	d, err := OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []config.Mode{config.ModeClient, config.ModeAuto} {
		c := d.Config()
		c.Network.Mode, c.Network.NAT = m, true
		if _, _, err := d.Run(t.Context(), c, nil); !errors.Is(err, config.ErrInvalid) || !strings.Contains(err.Error(), "network.mode") {
			t.Errorf("%s: %v", m, err)
		}
	}
	c := d.Config()
	c.Network.Listen = []string{"/ip4/127.0.0.1/udp/0/quic-v1"}
	if _, _, err := d.Run(t.Context(), c, nil); !errors.Is(err, config.ErrInvalid) || !strings.Contains(err.Error(), "TCP and WebSocket only") {
		t.Errorf("QUIC: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	start(t, dir, nil)
}

func TestClientHostsNothing(t *testing.T) {
	r := start(t, member(t, initDir(t)), func(c *config.Config) { c.Network.Mode = config.ModeClient })
	if s := r.node.Info().Store; s != "" {
		t.Errorf("a client has store %s", s)
	}
	if r.node.Overlay().Hosting() {
		t.Error("a client would host replicas")
	}
}

// A directory of the time before configurations had neither a configuration nor a key: it listens on the loopback, as it did.
func TestDirectoryWithoutConfigurationStaysOnTheLoopback(t *testing.T) {
	dir := initDir(t)
	for _, name := range []string{configFile, swarmKeyFile} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := config.Default(config.Test)
	if err != nil {
		t.Fatal(err)
	}
	r := start(t, dir, nil)
	if got := r.dir.Config(); !reflect.DeepEqual(got, want) || r.dir.SwarmKey() != nil {
		t.Errorf("runs with %+v", got)
	}
	for _, a := range r.host.Addrs() {
		if !strings.HasPrefix(a.String(), "/ip4/127.0.0.1/") {
			t.Errorf("listens at %s", a)
		}
	}
}

// A key that is lost must not turn a private peer into one that anybody can reach.
func TestPrivatePeerWithoutItsKeyDoesNotStart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "peer")
	if _, _, err := InitDir(dir, InitOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, swarmKeyFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDir(dir); !errors.Is(err, config.ErrInvalid) || !strings.Contains(err.Error(), swarmKeyFile) || !strings.Contains(err.Error(), configFile) {
		t.Errorf("got %v", err)
	}
}

func TestBadConfigurationNamesItsLine(t *testing.T) {
	dir := initDir(t)
	if err := os.WriteFile(ConfigFile(dir), []byte("profile: test\nnetwork:\n  conns_lo: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, open := range map[string]func() error{
		"open": func() error { _, err := OpenDir(dir); return err }, "peek": func() error { _, err := PeekDir(dir); return err },
	} {
		if err := open(); !errors.Is(err, config.ErrInvalid) || !strings.Contains(err.Error(), ConfigFile(dir)+":3: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPeekWorksBesideADaemon(t *testing.T) {
	dir := initDir(t)
	r := start(t, dir, nil)
	info, err := PeekDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info.ID != r.dir.ID() || info.Genesis.ID() != r.dir.Genesis().ID() || string(info.SwarmKey) != string(r.dir.SwarmKey()) || info.SwarmKey == nil ||
		!reflect.DeepEqual(info.Config, r.dir.Config()) {
		t.Errorf("peeked %+v", info)
	}
	if _, err := PeekDir(t.TempDir()); !errors.Is(err, ErrNotInitialised) {
		t.Errorf("empty directory: %v", err)
	}
}

// The environment and the command line go before the file, and are checked with it.
func TestLoadConfigMergesAndChecks(t *testing.T) {
	dir := initDir(t)
	d, err := OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	l, err := d.LoadConfig([]string{"LATCHKEY_NETWORK_MDNS=true"}, map[string]any{"network.listen": []string{"/ip4/127.0.0.1/tcp/0"}})
	if err != nil || !l.Network.MDNS || l.Network.Listen[0] != "/ip4/127.0.0.1/tcp/0" || l.Source("network.mdns") != "LATCHKEY_NETWORK_MDNS" {
		t.Errorf("%+v, %v", l, err)
	}
	if _, err := d.LoadConfig([]string{"LATCHKEY_PROFILE=public"}, nil); !errors.Is(err, config.ErrInvalid) || !strings.Contains(err.Error(), "LATCHKEY_PROFILE") {
		t.Errorf("public with a key: %v", err)
	}
	if d.Config().Network.MDNS {
		t.Error("the environment is in the directory's own configuration")
	}
}
