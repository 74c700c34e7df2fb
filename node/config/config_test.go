package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
)

const somePeer = "/p2p/12D3KooWGRUoJFbAhHVFEKvw7LmGRPwvJLbVvTQyZ1Qj1W4cDVBN"

// file writes a configuration file for a test.
func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func mustDefault(t testing.TB, p Profile) Config {
	t.Helper()
	c, err := Default(p)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestEveryProfileIsValidWhereItBelongs(t *testing.T) {
	for _, p := range Profiles() {
		c := mustDefault(t, p)
		if err := c.Validate(p.Keyed()); err != nil {
			t.Errorf("%s: %v", p, err)
		}
		if p != Test && c.Validate(!p.Keyed()) == nil {
			t.Errorf("%s goes with and without a swarm key", p)
		}
		for _, a := range c.Network.Listen {
			if loopback := strings.HasPrefix(a, "/ip4/127."); loopback != (p == Test) {
				t.Errorf("%s listens at %s", p, a)
			}
		}
	}
	if err := mustDefault(t, Test).Validate(false); err != nil {
		t.Errorf("test without a key: %v", err)
	}
	if _, err := Default("privat"); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "lowpower") {
		t.Errorf("no such profile: %v", err)
	}
}

func TestEachLayerGoesBeforeTheOneBelow(t *testing.T) {
	path := file(t, "profile: server\nnetwork:\n  mode: client\n  conns_low: 11\n  conns_high: 22\n  listen: [/ip4/127.0.0.1/tcp/1]\n")
	environ := []string{"LATCHKEY_NETWORK_CONNS_HIGH=33", "LATCHKEY_NETWORK_LISTEN=/ip4/127.0.0.1/tcp/2, /ip4/127.0.0.1/tcp/3", "LATCHKEY_NETWORK_MDNS="}
	l, err := Load(path, environ, map[string]any{"network.listen": []string{"/ip4/127.0.0.1/tcp/4"}})
	if err != nil {
		t.Fatal(err)
	}
	want := mustDefault(t, Server)
	want.Network.Mode, want.Network.ConnsLow, want.Network.ConnsHigh = ModeClient, 11, 33
	want.Network.Listen = []string{"/ip4/127.0.0.1/tcp/4"}
	if !reflect.DeepEqual(l.Config, want) {
		t.Errorf("got  %+v\nwant %+v", l.Config, want)
	}
	for field, source := range map[string]string{
		"profile": path + ":1", "network.mode": path + ":3", "network.conns_low": path + ":4",
		"network.conns_high": "LATCHKEY_NETWORK_CONNS_HIGH", "network.listen": "command line",
		"network.mdns": "profile server", "network.no": "",
	} {
		if got := l.Source(field); got != source {
			t.Errorf("source of %s: %q, want %q", field, got, source)
		}
	}
	l, err = Load(path, environ[1:], nil)
	if err != nil || text(l.Network.Listen) != "/ip4/127.0.0.1/tcp/2,/ip4/127.0.0.1/tcp/3" {
		t.Errorf("list of a variable: %v, %v", l.Network.Listen, err)
	}
}

// A variable or flag that names another profile changes every value that nobody set.
func TestProfileOfAnyLayerGivesTheDefaults(t *testing.T) {
	path := file(t, "profile: private\n")
	for name, load := range map[string]func() (Loaded, error){
		"environment":  func() (Loaded, error) { return Load(path, []string{"LATCHKEY_PROFILE=lowpower"}, nil) },
		"command line": func() (Loaded, error) { return Load(path, nil, map[string]any{"profile": "lowpower"}) },
	} {
		if l, err := load(); err != nil || !reflect.DeepEqual(l.Config, mustDefault(t, Lowpower)) {
			t.Errorf("%s: %+v, %v", name, l.Config, err)
		}
	}
	// Without a word about it in a file, the profile is private; without a file, it is test.
	if l, err := Load(file(t, "# nothing\n"), nil, nil); err != nil || l.Profile != Private || l.Source("profile") != "default" {
		t.Errorf("empty file: %s (%s), %v", l.Profile, l.Source("profile"), err)
	}
	if l, err := Load(filepath.Join(t.TempDir(), "absent"), nil, nil); err != nil || l.Profile != Test {
		t.Errorf("no file: %s, %v", l.Profile, err)
	}
}

func TestWrongValuesNameFieldValueRangeAndPlace(t *testing.T) {
	for _, c := range []struct {
		name, file, env string
		flags           map[string]any
		want            []string
	}{
		{"unknown field", "network:\n  mdsn: true\n", "", nil, []string{"config.yaml:2", `"network.mdsn"`, "no such field", "network.mdns"}},
		{"unknown section", "\nnetwrk: {}\n", "", nil, []string{"config.yaml:2", `"netwrk"`}},
		{"field twice", "profile: test\nnetwork:\n  nat: true\n  nat: false\n", "", nil, []string{"config.yaml:4", "network.nat", "twice"}},
		{"number as text", "network:\n  conns_low: many\n", "", nil, []string{"config.yaml:2", "network.conns_low", `"many"`, "1 to 100000"}},
		{"number out of range", "profile: test\nnetwork:\n  conns_low: 0\n", "", nil, []string{"config.yaml:3", "network.conns_low", `"0"`, "1 to 100000"}},
		{"number too long", "network:\n  conns_low: 99999999999999999999\n", "", nil, []string{"config.yaml:2", "network.conns_low"}},
		{"truth as text", "network:\n  nat: yes\n", "", nil, []string{"config.yaml:2", "network.nat", `"yes"`, "true or false"}},
		{"text for a list", "network:\n  listen: /ip4/127.0.0.1/tcp/1\n", "", nil, []string{"config.yaml:2", "network.listen", "a list"}},
		{"number in a list", "network:\n  listen:\n    - 4701\n", "", nil, []string{"config.yaml:3", "network.listen", "entry 1"}},
		{"nothing", "network:\n  mode:\n", "", nil, []string{"config.yaml:2", "network.mode", "server, client or auto"}},
		{"unknown field of the store", "store:\n  volatil: true\n", "", nil, []string{"config.yaml:2", `"store.volatil"`, "store.volatile"}},
		{"store as text", "store: memory\n", "", nil, []string{"config.yaml:1", "store", "field: value"}},
		{"unknown variable of the store", "", "LATCHKEY_STORE_VOLATIL=true", nil, []string{"LATCHKEY_STORE_VOLATIL"}},
		{"no truth", "", "LATCHKEY_STORE_VOLATILE=yes", nil, []string{"store.volatile", "LATCHKEY_STORE_VOLATILE", "true or false"}},
		{"no profile", "profile: privat\n", "", nil, []string{"config.yaml:1", "profile", `"privat"`, "private, public"}},
		{"no port of metrics", "metrics:\n  listen: 127.0.0.1\n", "", nil, []string{"config.yaml:2", "metrics.listen", `"127.0.0.1"`, "HOST:PORT", "none"}},
		{"metrics at a name", "", "LATCHKEY_METRICS_LISTEN=example.org:1", nil, []string{"metrics.listen", "LATCHKEY_METRICS_LISTEN", "an IP address"}},
		{"metrics at no port", "", "LATCHKEY_METRICS_LISTEN=:65536", nil, []string{"metrics.listen", "HOST:PORT"}},
		{"no mode", "network:\n  mode: both\n", "", nil, []string{"config.yaml:2", "network.mode", `"both"`}},
		{"no address", "network:\n  listen: ['127.0.0.1:4701']\n", "", nil, []string{"config.yaml:2", "network.listen", `"127.0.0.1:4701"`, "multiaddr"}},
		{"no port", "network:\n  listen: [/ip4/127.0.0.1]\n", "", nil, []string{"network.listen", "a port"}},
		{"listen nowhere", "network:\n  listen: []\n", "", nil, []string{"network.listen", "0 addresses", "1 to 16"}},
		{"announce a peer", "network:\n  announce: [/dns4/a.example/tcp/1" + somePeer + "]\n", "", nil, []string{"network.announce", "without /p2p/"}},
		{"bootstrap nobody", "network:\n  bootstrap: [/ip4/192.0.2.1/tcp/1]\n", "", nil, []string{"network.bootstrap", "peer id"}},
		{"bootstrap nowhere", "network:\n  bootstrap: [" + somePeer + "]\n", "", nil, []string{"network.bootstrap", "peer id"}},
		{"list for the file", "- a\n", "", nil, []string{"config.yaml:1", "field: value"}},
		{"list for a section", "network: [1]\n", "", nil, []string{"config.yaml:1", "network", "field: value"}},
		{"anchors", "network: &n {nat: true}\nprofile: *n\n", "", nil, []string{"config.yaml:2", "profile"}},
		{"two documents", "profile: test\n---\nprofile: test\n", "", nil, []string{"config.yaml:2", "second document"}},
		{"no YAML", "profile: test\nnetwork: [\n", "", nil, []string{"config.yaml:", "not YAML"}},
		{"bytes", "\x00\x01", "", nil, []string{"config.yaml:1", "not YAML"}},
		{"too large", strings.Repeat("#", FileBytesMax+1), "", nil, []string{"config.yaml:1", "65536 bytes"}},
		{"unknown variable", "", "LATCHKEY_NETWORK_LISTN=x", nil, []string{"LATCHKEY_NETWORK_LISTN", "no such field", "network.listen"}},
		{"variable out of range", "", "LATCHKEY_NETWORK_CONNS_HIGH=-1", nil, []string{"network.conns_high", `"-1"`, "LATCHKEY_NETWORK_CONNS_HIGH", "1 to 100000"}},
		{"variable of another type", "", "LATCHKEY_NETWORK_NAT=on", nil, []string{"network.nat", `"on"`, "LATCHKEY_NETWORK_NAT", "true or false"}},
		{"profile of a variable", "", "LATCHKEY_PROFILE=x", nil, []string{"profile", `"x"`, "LATCHKEY_PROFILE"}},
		{"unknown flag", "", "", map[string]any{"network.port": 1}, []string{"network.port", "command line", "no such field"}},
		{"flag of another type", "", "", map[string]any{"network.nat": 1}, []string{"network.nat", "command line", "true or false"}},
		{"flag out of range", "", "", map[string]any{"network.conns_low": 0}, []string{"network.conns_low", "command line", "1 to 100000"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Load(file(t, c.file), []string{c.env}, c.flags)
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("got %v", err)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
		})
	}
}

func TestOtherVariablesAreNotConfiguration(t *testing.T) {
	environ := []string{"LATCHKEY_PATH=/x", "LATCHKEY_API=/y", "LATCHKEY_TIMEOUT=1s", "LATCHKEY_LOCK=n", "LATCHKEY_FENCE=7",
		"LATCHKEY_HOLDER=h", "LATCHKEY_NETWORK", "NETWORK_NAT=x", "=C:=x", "LATCHKEY_PROFILES=z"}
	l, err := Load(file(t, "profile: test\n"), environ, nil)
	if err != nil || !reflect.DeepEqual(l.Config, mustDefault(t, Test)) {
		t.Errorf("%+v, %v", l.Config, err)
	}
}

func TestUnreadableFileIsNotAnAbsentOne(t *testing.T) {
	if _, err := Load(t.TempDir(), nil, nil); err == nil {
		t.Error("a directory was read as a configuration")
	}
}

func TestValuesThatDoNotGoTogether(t *testing.T) {
	for _, c := range []struct {
		profile      Profile
		private      bool
		field, value string
		want         string
	}{
		{Private, true, "network.conns_low", "193", "network.conns_high, which is 192"},
		{Private, true, "network.mode", "auto", "network.nat"},
		{Private, true, "network.listen", "/ip4/0.0.0.0/udp/4701/quic-v1", "TCP and WebSocket only"},
		{Private, true, "network.listen", "/ip4/0.0.0.0/tcp/4701,/ip4/0.0.0.0/udp/4701/quic-v1/webtransport", "TCP and WebSocket only"},
		{Private, true, "network.listen", "/ip4/0.0.0.0/udp/4701/webrtc-direct", "TCP and WebSocket only"},
		{Test, true, "network.listen", "/ip4/127.0.0.1/udp/4701/quic-v1", "TCP and WebSocket only"},
		{Public, false, "network.listen", "/ip4/0.0.0.0/udp/4701/webrtc-direct", "no such transport"},
		{Public, false, "network.listen", "/ip4/0.0.0.0/tcp/4701/http", "no such transport"},
		{Private, false, "network.mode", "server", "no swarm.key"},
		{Lowpower, false, "network.mode", "client", "no swarm.key"},
		{Public, true, "network.mode", "server", "without a swarm key"},
	} {
		conf, err := Set(mustDefault(t, c.profile), c.field, c.value)
		if err != nil {
			t.Errorf("%s %s: %v", c.field, c.value, err)
			continue
		}
		if err := conf.Validate(c.private); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s, private %v, %s %s: %v", c.profile, c.private, c.field, c.value, err)
		}
	}
	for _, listen := range []string{"/ip4/0.0.0.0/tcp/1/ws", "/ip6zone/eth0/ip6/fe80::1/tcp/1"} {
		conf, err := Set(mustDefault(t, Private), "network.listen", listen)
		if err = errors.Join(err, conf.Validate(true)); err != nil {
			t.Errorf("%s: %v", listen, err)
		}
	}
	// The place of the value is in the error, where it is known.
	l, err := Load(file(t, "profile: private\n"), []string{"LATCHKEY_NETWORK_LISTEN=/ip4/0.0.0.0/udp/4701/quic-v1"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Validate(true); err == nil || !strings.Contains(err.Error(), "(LATCHKEY_NETWORK_LISTEN)") {
		t.Errorf("QUIC by a variable: %v", err)
	}
}

// changed sets every field of a profile to something else than its default.
func changed(t testing.TB, p Profile) Config {
	c := mustDefault(t, p)
	for name, value := range map[string]string{
		"network.listen": "/ip4/127.0.0.1/tcp/5,/ip6/::1/tcp/6", "network.announce": "/dns4/a.example/tcp/7",
		"network.bootstrap": "/ip4/192.0.2.1/tcp/8" + somePeer, "network.mode": map[Mode]string{ModeServer: "client", ModeClient: "server", ModeAuto: "server"}[c.Network.Mode],
		"network.mdns": fmt.Sprint(!c.Network.MDNS), "network.nat": fmt.Sprint(!c.Network.NAT), "network.conns_low": "1", "network.conns_high": "2",
		"store.volatile": "true", "metrics.listen": "127.0.0.1:9464",
		"api.listen": "192.0.2.1:4780", "api.tls_cert": "cert.pem", "api.tls_key": "key.pem", "api.pprof": "true", "api.hosts": "latchkey.example,other.example",
	} {
		var err error
		if c, err = Set(c, name, value); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func TestWhatIsWrittenIsReadBack(t *testing.T) {
	for _, p := range Profiles() {
		for name, c := range map[string]Config{"default": mustDefault(t, p), "changed": changed(t, p)} {
			path := filepath.Join(t.TempDir(), "config.yaml")
			if err := Write(path, c); err != nil {
				t.Fatal(err)
			}
			l, err := Load(path, nil, nil)
			if err != nil || !reflect.DeepEqual(l.Config, c) {
				t.Errorf("%s, %s: %v\ngot  %+v\nwant %+v", p, name, err, l.Config, c)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range Fields() {
				if !strings.Contains(string(b), f.Doc) {
					t.Errorf("the file does not explain %s", f.Name)
				}
				// A default stays a comment, so that it is seen to come from the profile.
				if want := name == "changed" || f.Name == "profile"; strings.HasPrefix(l.Source(f.Name), path+":") != want {
					t.Errorf("%s, %s: %s is from %q", p, name, f.Name, l.Source(f.Name))
				}
			}
		}
	}
}

// Whoever removes the # before a default sets the value that it showed.
func TestDefaultsInTheFileCanBeUncommented(t *testing.T) {
	for _, p := range Profiles() {
		b, err := Encode(mustDefault(t, p))
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for line := range strings.Lines(string(b)) {
			bare := strings.TrimLeft(line, " ")
			if strings.HasPrefix(bare, "#") && !strings.HasPrefix(bare, "##") && !strings.HasPrefix(bare, "# ") || strings.HasPrefix(bare, "#  -") {
				line = strings.Replace(line, "#", "", 1)
			}
			lines = append(lines, line)
		}
		l, err := Load(file(t, strings.Join(lines, "")), nil, nil)
		if err != nil || !reflect.DeepEqual(l.Config, mustDefault(t, p)) {
			t.Errorf("%s: %v\n%s", p, err, strings.Join(lines, ""))
		}
		for _, f := range Fields() {
			if !strings.Contains(l.Source(f.Name), "config.yaml:") {
				t.Errorf("%s: %s is still from %q", p, f.Name, l.Source(f.Name))
			}
		}
	}
}

func TestWriteReplacesAndKeepsSecret(t *testing.T) {
	path := file(t, "profile: test\n")
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	bad := mustDefault(t, Test)
	bad.Network.ConnsLow = 0
	if err := Write(path, bad); !errors.Is(err, ErrInvalid) {
		t.Errorf("a value out of range was written: %v", err)
	}
	if err := Write(path, mustDefault(t, Server)); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 && runtime.GOOS != "windows" {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if all, err := os.ReadDir(filepath.Dir(path)); err != nil || len(all) != 1 {
		t.Errorf("beside the file: %v, %v", all, err)
	}
	if err := Write(filepath.Join(path, "below"), bad); err == nil {
		t.Error("written below a file")
	}
}

func TestGetAndSetAgree(t *testing.T) {
	c := changed(t, Private)
	for _, f := range Fields() {
		v, err := Get(c, f.Name)
		if err != nil {
			t.Fatal(err)
		}
		d, err := Set(mustDefault(t, Private), f.Name, v)
		if err != nil {
			t.Errorf("%s: %v", f.Name, err)
		}
		if w, _ := Get(d, f.Name); w != v {
			t.Errorf("%s: set to %q, is %q", f.Name, v, w)
		}
		if f.Doc == "" || f.Want == "" || strings.Contains(f.Doc+f.Want, "\n") {
			t.Errorf("%s is not explained in a line", f.Name)
		}
	}
	for name, value := range map[string]string{"network.listen": "x", "network.conns_low": "1.5", "network.nat": "1", "network.port": "1", "network": "", "": "", "profile": ""} {
		if _, err := Set(c, name, value); !errors.Is(err, ErrInvalid) {
			t.Errorf("set %q to %q: %v", name, value, err)
		}
	}
	if _, err := Get(c, "network.port"); !errors.Is(err, ErrInvalid) {
		t.Errorf("get: %v", err)
	}
	// The original is as it was.
	if d, err := Set(c, "network.listen", "/ip4/127.0.0.1/tcp/9"); err != nil || !reflect.DeepEqual(c, changed(t, Private)) || len(d.Network.Listen) != 1 {
		t.Errorf("Set changed its argument: %+v, %v", c, err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("profile: test\nnetwork: {listen: [/ip4/127.0.0.1/tcp/0], nat: true, conns_low: 3}\n"))
	f.Add([]byte("network:\n  listen: &a\n    - *a\n"))
	f.Add([]byte("? [a]\n: b\n"))
	f.Add([]byte("<<: {profile: test}\n"))
	f.Add([]byte("profile: !!binary dGVzdA==\n"))
	for _, p := range Profiles() {
		b, err := Encode(mustDefault(f, p))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		set, lines, err := decode(b)
		if err != nil {
			if line, _, ok := strings.Cut(err.Error(), ": "); !ok || strings.Trim(line, "0123456789") != "" || strings.Contains(err.Error(), "\n") {
				t.Fatalf("not one line with its number: %q", err)
			}
			return
		}
		if len(set) != len(lines) || len(set) > len(fields) {
			t.Fatalf("%d values of %d lines", len(set), len(lines))
		}
		// What is in range is written and read back.
		p, _ := set["profile"].(string)
		c, err := Default(Profile(p))
		if err != nil {
			return
		}
		for name, v := range set {
			field, err := lookup(name)
			if err != nil {
				t.Fatal(err)
			}
			field.put(&c, v)
		}
		out, err := Encode(c)
		if err != nil {
			return
		}
		again, _, err := decode(out)
		if err != nil {
			t.Fatalf("cannot read what was written: %v\n%s", err, out)
		}
		d, _ := Default(Profile(p))
		for name, v := range again {
			field, _ := lookup(name)
			field.put(&d, v)
		}
		if !reflect.DeepEqual(c.Clone(), d.Clone()) && fmt.Sprint(c) != fmt.Sprint(d) {
			t.Fatalf("wrote %+v, read %+v", c, d)
		}
	})
}
