package config

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/v2"

	"latchkey/internal/durablefile"
)

// Loaded is a configuration whose values know where they are from.
type Loaded struct {
	Config
	sources map[string]string // by field; missing: the profile's default
}

// Source tells where a field's value is from: "FILE:LINE", the name of a variable, "command line", or "profile NAME" for the
// default of a profile, and "default" for the profile itself. It is empty for a field that does not exist.
func (l Loaded) Source(field string) string {
	if _, err := lookup(field); err != nil {
		return ""
	}
	if s, ok := l.sources[field]; ok {
		return s
	}
	if field == "profile" {
		return "default"
	}
	return "profile " + string(l.Profile)
}

// layer is what one place says: some fields, and where it says them.
type layer struct {
	values  *koanf.Koanf
	sources map[string]string
}

func newLayer(values map[string]any, sources map[string]string) (layer, error) {
	k := koanf.New(".")
	return layer{k, sources}, k.Load(confmap.Provider(values, "."), nil)
}

// Load merges, each over the one before, the defaults of the profile, a file, the environment and the command line.
// Of the environment, given as [os.Environ] returns it, it reads LATCHKEY_PROFILE, LATCHKEY_NETWORK_*, LATCHKEY_STORE_*, LATCHKEY_METRICS_* and LATCHKEY_API_*
// (but [ClientVariables]), lists separated by commas; an empty variable counts as not set. flags holds values by field name, of the field's type or as [Set]
// reads them.
//
// A file that does not exist counts as one that says no more than "profile: test": a peer that was told nothing listens on
// the loopback only. In the result every field is in its range; whether the fields go together is for [Loaded.Validate].
// Errors match [ErrInvalid], but for those of reading the file.
func Load(file string, environ []string, flags map[string]any) (Loaded, error) {
	fromFile, err := fileLayer(file)
	if err != nil {
		return Loaded{}, err
	}
	fromEnv, err := envLayer(environ)
	if err != nil {
		return Loaded{}, err
	}
	fromFlags, err := flagLayer(flags)
	if err != nil {
		return Loaded{}, err
	}
	said := koanf.New(".")
	l := Loaded{sources: make(map[string]string)}
	for _, layer := range []layer{fromFile, fromEnv, fromFlags} {
		if err := said.Merge(layer.values); err != nil {
			return Loaded{}, invalid("%w", err)
		}
		for field, source := range layer.sources {
			l.sources[field] = source
		}
	}
	// The defaults come last, because any layer may name the profile that they are of.
	c, err := Default(Profile(said.String("profile")))
	if err != nil {
		return Loaded{}, l.explain(&problem{"profile", said.String("profile"), errors.New("want " + oneOf(Profiles()))})
	}
	all, err := newLayer(values(c), nil)
	if err == nil {
		err = all.values.Merge(said)
	}
	if err == nil {
		err = all.values.Unmarshal("", &l.Config)
	}
	if err != nil {
		return Loaded{}, invalid("%w", err)
	}
	return l, l.explain(l.outOfRange())
}

// values lists every field's value.
func values(c Config) map[string]any {
	m := make(map[string]any, len(fields))
	for _, f := range fields {
		m[f.Name] = f.Value(c)
	}
	return m
}

// fileLayer reads a file.
func fileLayer(path string) (layer, error) {
	b, err := durablefile.Read(path, FileBytesMax)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return newLayer(map[string]any{"profile": string(Test)}, nil)
	case errors.Is(err, durablefile.ErrTooLong):
		return layer{}, invalid("%s:1: the file has more than %d bytes", path, FileBytesMax)
	case errors.Is(err, durablefile.ErrNotAFile):
		return layer{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	case err != nil:
		return layer{}, fmt.Errorf("config: %w", err)
	}
	values, lines, err := decode(b)
	if err != nil {
		return layer{}, invalid("%s:%w", path, err)
	}
	sources := make(map[string]string, len(lines))
	for field, line := range lines {
		sources[field] = fmt.Sprintf("%s:%d", path, line)
	}
	if _, ok := values["profile"]; !ok {
		values["profile"] = string(Private)
	}
	return newLayer(values, sources)
}

// The variables that are configuration. Others that begin with LATCHKEY_ are not our business: LATCHKEY_PATH says where the
// configuration is, LATCHKEY_LOCK and its like are told to commands that run under a lock.
const (
	envPrefix  = "LATCHKEY_"
	envProfile = envPrefix + "PROFILE"
	envNetwork = envPrefix + "NETWORK_"
	envStore   = envPrefix + "STORE_"
	envMetrics = envPrefix + "METRICS_"
	envAPI     = envPrefix + "API_"
)

// Env returns the name of the environment variable that sets the field.
func (f Field) Env() string { return envPrefix + strings.ToUpper(strings.ReplaceAll(f.Name, ".", "_")) }

// ClientVariables look like those of section api, and are none: they tell clients how to ask a daemon on TCP.
var ClientVariables = []string{envAPI + "TOKEN", envAPI + "TOKEN_FILE", envAPI + "CA"}

// envLayer reads the environment. Of a variable that is there more than once, the last one counts, as everywhere.
func envLayer(environ []string) (layer, error) {
	values, sources := make(map[string]any), make(map[string]string)
	for _, entry := range environ {
		name, value, ok := strings.Cut(entry, "=")
		if !ok || value == "" || name != envProfile && !strings.HasPrefix(name, envNetwork) && !strings.HasPrefix(name, envStore) &&
			!strings.HasPrefix(name, envMetrics) && !strings.HasPrefix(name, envAPI) || slices.Contains(ClientVariables, name) {
			continue
		}
		i := slices.IndexFunc(fields, func(f Field) bool { return f.Env() == name })
		if i < 0 {
			return layer{}, invalid("%s: no such field; there are %s", excerpt(name), known)
		}
		f := fields[i]
		v, err := f.parse(value)
		if err != nil {
			return layer{}, invalid("%s: %s (%s): %w", f.Name, excerpt(value), name, err)
		}
		values[f.Name], sources[f.Name] = v, name
	}
	return newLayer(values, sources)
}

// flagLayer reads what the command line says.
func flagLayer(flags map[string]any) (layer, error) {
	const source = "command line"
	values, sources := make(map[string]any, len(flags)), make(map[string]string, len(flags))
	for name, v := range flags {
		f, err := lookup(name)
		if err != nil {
			return layer{}, invalid("%s: %w", source, err)
		}
		if values[name], err = f.convert(v); err != nil {
			return layer{}, invalid("%s: %s (%s): %w", name, excerpt(fmt.Sprint(v)), source, err)
		}
		sources[name] = source
	}
	return newLayer(values, sources)
}
