package config

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Field is one value of the configuration.
type Field struct {
	Name string // as the file nests it: "network.listen"
	Doc  string // what it is, in one line
	Want string // the values it takes, in a few words

	at    func(*Config) any     // where its value is: *bool, *int, *string or *[]string
	check func(value any) error // whether a value of its type is in range; nil: any is
}

// Fields returns every field, in the order of the file. The caller may change the slice.
func Fields() []Field { return slices.Clone(fields) }

var fields = []Field{
	{
		Name: "profile", Doc: "kind of peer; every other field that is not set has this profile's default", Want: oneOf(Profiles()),
		at:    func(c *Config) any { return (*string)(&c.Profile) },
		check: among(Profiles()),
	},
	{
		Name: "network.listen", Doc: "addresses to listen at; with port 0 it is another port at each start", Want: fmt.Sprintf("1 to %d multiaddrs", AddrsMax),
		at:    func(c *Config) any { return &c.Network.Listen },
		check: addrList(1, AddrsMax, checkListen),
	},
	{
		Name: "network.announce", Doc: "addresses to tell other peers in place of those listened at", Want: fmt.Sprintf("up to %d multiaddrs", AddrsMax),
		at:    func(c *Config) any { return &c.Network.Announce },
		check: addrList(0, AddrsMax, checkAnnounce),
	},
	{
		Name: "network.bootstrap", Doc: "peers to dial when nobody else is known", Want: fmt.Sprintf("up to %d multiaddrs that end in /p2p/ and a peer id", BootstrapMax),
		at:    func(c *Config) any { return &c.Network.Bootstrap },
		check: addrList(0, BootstrapMax, checkBootstrap),
	},
	{
		Name: "network.mdns", Doc: "look for peers of the overlay on the local network", Want: "true or false",
		at: func(c *Config) any { return &c.Network.MDNS },
	},
	{
		Name: "network.mode", Doc: "server hosts replicas, client hosts none, auto is a client until it has been reached from outside",
		Want:  oneOf([]Mode{ModeServer, ModeClient, ModeAuto}),
		at:    func(c *Config) any { return (*string)(&c.Network.Mode) },
		check: among([]Mode{ModeServer, ModeClient, ModeAuto}),
	},
	{
		Name: "network.nat", Doc: "cross NATs: map ports, ask others whether they reach this peer, relay, punch holes", Want: "true or false",
		at: func(c *Config) any { return &c.Network.NAT },
	},
	{
		Name: "network.conns_low", Doc: "how many connections are kept when idle ones are closed", Want: fmt.Sprintf("1 to %d", int(ConnsMax)),
		at:    func(c *Config) any { return &c.Network.ConnsLow },
		check: within(1, ConnsMax),
	},
	{
		Name: "network.conns_high", Doc: "how many connections there may be before idle ones are closed", Want: fmt.Sprintf("1 to %d, not below conns_low", int(ConnsMax)),
		at:    func(c *Config) any { return &c.Network.ConnsHigh },
		check: within(1, ConnsMax),
	},
	{
		Name: "store.volatile", Doc: "keep replicas in memory: they end with the daemon; not for a founder", Want: "true or false",
		at: func(c *Config) any { return &c.Store.Volatile },
	},
	{
		Name: "metrics.listen", Doc: "where to answer Prometheus, at /metrics; without a host it is the loopback", Want: "HOST:PORT, or " + NoMetrics,
		at:    func(c *Config) any { return &c.Metrics.Listen },
		check: checkHostPort,
	},
	{
		Name: "api.listen", Doc: "where to answer clients on TCP, which need a token; without a host it is the loopback", Want: "HOST:PORT, or " + NoAPI,
		at:    func(c *Config) any { return &c.API.Listen },
		check: checkHostPort,
	},
	{
		Name: "api.tls_cert", Doc: "file of the certificate chain for that, in PEM; needed where it is not on the loopback", Want: "a file, or " + NoAPI,
		at:    func(c *Config) any { return &c.API.TLSCert },
		check: checkFile,
	},
	{
		Name: "api.tls_key", Doc: "file of the certificate's private key", Want: "a file, or " + NoAPI,
		at:    func(c *Config) any { return &c.API.TLSKey },
		check: checkFile,
	},
	{
		Name: "api.pprof", Doc: "answer net/http/pprof under /debug/pprof/, on the unix socket and to tokens for admin", Want: "true or false",
		at: func(c *Config) any { return &c.API.Pprof },
	},
	{
		Name: "api.hosts", Doc: "names by which it may be asked, beside localhost and IP addresses", Want: fmt.Sprintf("up to %d host names", HostsMax),
		at:    func(c *Config) any { return &c.API.Hosts },
		check: checkHosts,
	},
}

// isSection tells whether fields are nested under a name.
func isSection(name string) bool {
	return slices.ContainsFunc(fields, func(f Field) bool { return strings.HasPrefix(f.Name, name+".") })
}

// lookup finds a field by its name.
func lookup(name string) (Field, error) {
	for _, f := range fields {
		if f.Name == name {
			return f, nil
		}
	}
	return Field{}, fmt.Errorf("%s: no such field; there are %s", excerpt(name), known)
}

// known lists the fields' names.
var known = func() string {
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.Name
	}
	return strings.Join(names, ", ")
}()

// Get returns a field's value as text, lists joined by commas. Errors match [ErrInvalid].
func Get(c Config, name string) (string, error) {
	f, err := lookup(name)
	if err != nil {
		return "", invalid("%w", err)
	}
	return text(f.Value(c)), nil
}

// Set returns c with a field set from text, lists separated by commas, and every field in its range; what the fields are to
// each other is for [Config.Validate]. Setting the profile changes that field alone. Errors match [ErrInvalid].
func Set(c Config, name, value string) (Config, error) {
	f, err := lookup(name)
	if err != nil {
		return Config{}, invalid("%w", err)
	}
	v, err := f.parse(value)
	if err == nil {
		err = f.inRange(v)
	}
	if err != nil {
		return Config{}, invalid("%s: %s: %w", name, excerpt(value), err)
	}
	c = c.Clone()
	f.put(&c, v)
	return c, nil
}

// Unset returns c with a field as its profile has it. The profile itself cannot be unset. Errors match [ErrInvalid].
func Unset(c Config, name string) (Config, error) {
	f, err := lookup(name)
	if err != nil {
		return Config{}, invalid("%w", err)
	}
	if name == "profile" {
		return Config{}, invalid("profile: every other default is of it, so it cannot be unset; set it to another one")
	}
	standard, err := Default(c.Profile)
	if err != nil {
		return Config{}, err
	}
	c = c.Clone()
	f.put(&c, f.Value(standard))
	return c, nil
}

// Value returns the field's value in c: a bool, an int, a string, or a []string that the caller may keep.
func (f Field) Value(c Config) any {
	switch p := f.at(&c).(type) {
	case *bool:
		return *p
	case *int:
		return *p
	case *string:
		return *p
	case *[]string:
		return append([]string{}, *p...)
	default:
		panic(fmt.Sprintf("config: field %s has no type", f.Name))
	}
}

// put sets the field's value to one of its type.
func (f Field) put(c *Config, v any) {
	switch p := f.at(c).(type) {
	case *bool:
		*p = v.(bool)
	case *int:
		*p = v.(int)
	case *string:
		*p = v.(string)
	case *[]string:
		*p = v.([]string)
	}
}

// parse reads a value of the field's type from text.
func (f Field) parse(s string) (any, error) {
	switch f.at(new(Config)).(type) {
	case *bool:
		switch s {
		case "true":
			return true, nil
		case "false":
			return false, nil
		}
		return nil, f.wants()
	case *int:
		n, err := strconv.Atoi(s)
		if err != nil {
			return nil, f.wants()
		}
		return n, nil
	case *[]string:
		list := []string{}
		for item := range strings.SplitSeq(s, ",") {
			if item = strings.TrimSpace(item); item != "" {
				list = append(list, item)
			}
		}
		return list, nil
	}
	return s, nil
}

// convert makes a value of the field's type from one of that type, or from text.
func (f Field) convert(v any) (any, error) {
	if s, ok := v.(string); ok {
		return f.parse(s)
	}
	if reflect.TypeOf(v) == reflect.TypeOf(f.at(new(Config))).Elem() {
		return v, nil
	}
	return nil, f.wants()
}

func (f Field) wants() error { return fmt.Errorf("want %s", f.Want) }

// inRange tells what is wrong with a value of the field's type.
func (f Field) inRange(v any) error {
	if f.check == nil {
		return nil
	}
	return f.check(v)
}

// text writes a value as Set reads it.
func text(v any) string {
	if list, ok := v.([]string); ok {
		return strings.Join(list, ",")
	}
	return fmt.Sprint(v)
}

// excerpt shortens a value for an error message.
func excerpt(s string) string {
	const most = 80
	if len(s) > most {
		return strconv.Quote(s[:most]) + "..."
	}
	return strconv.Quote(s)
}

func oneOf[S ~string](values []S) string {
	names := make([]string, len(values))
	for i, v := range values {
		names[i] = string(v)
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " or " + names[last]
}
