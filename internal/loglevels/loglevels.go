package loglevels

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	logging "github.com/ipfs/go-log/v2"
)

var (
	// ErrLevel: no level has that name.
	ErrLevel = errors.New("loglevels: no such level")
	// ErrSubsystem: no part that logs has that name.
	ErrSubsystem = errors.New("loglevels: no such subsystem")
)

// Names are the levels, from the one at which most is logged.
func Names() []string { return []string{"debug", "info", "warn", "error"} }

var levels = map[string]struct {
	zap  logging.LogLevel
	slog slog.Level
}{
	"debug": {logging.LevelDebug, slog.LevelDebug},
	"info":  {logging.LevelInfo, slog.LevelInfo},
	"warn":  {logging.LevelWarn, slog.LevelWarn},
	"error": {logging.LevelError, slog.LevelError},
}

// Level is what one part logs.
type Level struct {
	Subsystem string `json:"subsystem"`
	Level     string `json:"level"`
}

// subsystemsMax bounds the names of slog's parts that are kept apart. Libraries name them in their source; what comes after so many
// logs by the level it began with.
const subsystemsMax = 1024

// named are the parts that log by slog.
var named struct {
	mu    sync.Mutex
	parts map[string]*slog.LevelVar
}

// part returns the level of a part, which begins with first.
func part(name string, first slog.Level) *slog.LevelVar {
	named.mu.Lock()
	defer named.mu.Unlock()
	if l := named.parts[name]; l != nil {
		return l
	}
	l := new(slog.LevelVar)
	l.Set(first)
	if named.parts == nil {
		named.parts = make(map[string]*slog.LevelVar)
	}
	if len(named.parts) < subsystemsMax {
		named.parts[name] = l
	}
	return l
}

// Handler returns a handler for gologshim: each part logs to h, which lets everything pass, from a level of its own on, which is first's
// until it is set.
func Handler(h slog.Handler, first func(subsystem string) slog.Level) slog.Handler {
	rest := new(slog.LevelVar)
	rest.Set(first(""))
	return handler{h, first, rest}
}

type handler struct {
	slog.Handler
	first func(string) slog.Level
	level *slog.LevelVar
}

// Enabled implements [slog.Handler].
func (h handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

// WithAttrs implements [slog.Handler]. A part names itself by the attribute "logger".
func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, a := range attrs {
		if a.Key == "logger" {
			h.level = part(a.Value.String(), h.first(a.Value.String()))
		}
	}
	h.Handler = h.Handler.WithAttrs(attrs)
	return h
}

// WithGroup implements [slog.Handler].
func (h handler) WithGroup(name string) slog.Handler {
	h.Handler = h.Handler.WithGroup(name)
	return h
}

// List returns the level of every part that pattern names, in the order of their names: one, all whose name begins with what is before
// a last *, or all with "all" or an empty pattern. Errors match [ErrSubsystem].
func List(pattern string) ([]Level, error) {
	found := []Level{}
	each(pattern, func(name string, get func() string, _ func(string)) { found = append(found, Level{name, get()}) })
	if len(found) == 0 {
		return nil, noSubsystem(pattern)
	}
	return found, nil
}

// Set sets the level of every part that pattern names, as for List, and returns them. Errors match [ErrLevel] and [ErrSubsystem].
func Set(pattern, level string) ([]Level, error) {
	if _, ok := levels[level]; !ok {
		return nil, fmt.Errorf("%w: %.40q; there are %s", ErrLevel, level, strings.Join(Names(), ", "))
	}
	var changed []Level
	each(pattern, func(name string, _ func() string, set func(string)) {
		set(level)
		changed = append(changed, Level{name, level})
	})
	if len(changed) == 0 {
		return nil, noSubsystem(pattern)
	}
	return changed, nil
}

func noSubsystem(pattern string) error {
	return fmt.Errorf("%w: nothing that logs is called %.100q; latchkey log level lists what there is", ErrSubsystem, pattern)
}

// each calls f for each part that pattern names.
func each(pattern string, f func(name string, get func() string, set func(string))) {
	prefix, isPrefix := strings.CutSuffix(pattern, "*")
	fits := func(name string) bool {
		return pattern == "" || pattern == "all" || name == pattern || isPrefix && strings.HasPrefix(name, prefix)
	}
	named.mu.Lock()
	defer named.mu.Unlock()
	names := logging.GetSubsystems()
	for name := range named.parts {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if !fits(name) {
			continue
		}
		l := named.parts[name]
		var z *logging.ZapEventLogger
		if slices.Contains(logging.GetSubsystems(), name) {
			z = logging.Logger(name) // go-log's own list of levels may not be read while a logger is made
		}
		f(name, func() string {
			if z != nil {
				return nameOf(func(n string) bool { return z.LevelEnabled(levels[n].zap) })
			}
			return nameOf(func(n string) bool { return l.Level() <= levels[n].slog })
		}, func(level string) {
			if z != nil {
				_ = logging.SetLogLevel(name, level) // the level is one
			}
			if l != nil {
				l.Set(levels[level].slog)
			}
		})
	}
}

// nameOf returns the first level that is logged.
func nameOf(logged func(string) bool) string {
	for _, n := range Names() {
		if logged(n) {
			return n
		}
	}
	return Names()[len(Names())-1]
}
