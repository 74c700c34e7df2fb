package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"latchkey/coherence"
	"latchkey/coherence/durable/store"
	"latchkey/node/api"
)

// durableFlags are conditions of writes.
type durableFlags struct {
	expect  uint64
	version *coherence.Version // what expect says, if it was given
	absent  bool
	ttl     time.Duration
}

func (d *durableFlags) register(c *cobra.Command) {
	c.Flags().Uint64Var(&d.expect, "if-version", 0, "only if the object has this version; 0 is one that was never written")
}

// check reads what was given.
func (d *durableFlags) check(c *cobra.Command) error {
	if c.Flags().Changed("if-version") {
		d.version = (*coherence.Version)(&d.expect)
	}
	switch {
	case d.version != nil && d.absent:
		return usagef("%s: --if-version and --if-absent exclude each other", verbOf(c))
	}
	return checkTTL(c, d.ttl)
}

func registerTTL(c *cobra.Command, ttl *time.Duration) {
	c.Flags().DurationVar(ttl, "ttl", 0, fmt.Sprintf("delete the object when it was not written for so long, at least %v (default never)", store.TTLMin))
}

func checkTTL(c *cobra.Command, ttl time.Duration) error {
	if c.Flags().Changed("ttl") && (ttl < store.TTLMin || ttl > store.TTLMax) {
		return usagef("%s: --ttl %v: between %v and %v", verbOf(c), ttl, store.TTLMin, store.TTLMax)
	}
	return nil
}

func (d *durableFlags) write(value []byte) api.DurableWrite {
	return api.DurableWrite{Value: value, If: d.version, Absent: d.absent, TTL: d.ttl}
}

// durableValue is how the value of a durable object is told.
type durableValue struct {
	App     string            `json:"app"`
	Name    string            `json:"name"`
	Version coherence.Version `json:"version,string"`
	Exists  bool              `json:"exists"`
	Lagged  bool              `json:"lagged,omitempty"` // of watch
	AgeMS   *int64            `json:"age_ms,omitempty"` // of --stale
	Bytes   int               `json:"bytes"`
	Value   *string           `json:"value"` // null where it is no UTF-8, or there is none
	Base64  string            `json:"value_base64"`
}

func durableValueOf(at api.Target, v coherence.Value) durableValue {
	told := durableValue{App: at.App, Name: at.Name, Version: v.Version, Exists: v.Exists}
	if v.Exists {
		o := objectValueOf(at, v.Bytes, 0)
		told.Bytes, told.Value, told.Base64 = o.Bytes, o.Value, o.Base64
	}
	return told
}

// durableDone is what a write has to tell.
type durableDone struct {
	App     string            `json:"app"`
	Name    string            `json:"name"`
	Version coherence.Version `json:"version,string"`
	Bytes   int               `json:"bytes"`
}

// callDurable is callObject for durable objects, whose groups may be silent.
func (a *app) callDurable(c *cobra.Command, at api.Target, fn func(ctx context.Context, daemon *api.Client) error) error {
	name := at.App + "/" + at.Name
	return a.callObject(c, name, func(ctx context.Context, daemon *api.Client) error {
		return silentGroup(fn(ctx, daemon), verbOf(c), name)
	})
}

// silentGroup says what to do about a group that does not answer.
func silentGroup(err error, verb, name string) error {
	switch {
	case errors.Is(err, coherence.ErrStale):
		return exitf(exitFailure, "%s: the group of %s does not answer, and no copy here is the present one for sure; latchkey group ls tells of groups, and object get --stale of what was "+
			"seen last", verb, name)
	case errors.Is(err, coherence.ErrNoQuorum):
		return exitf(exitFailure, "%s: the group of %s does not answer; nothing was written; latchkey group ls tells of groups", verb, name)
	case errors.Is(err, coherence.ErrOutcomeUnknown) && !errors.Is(err, api.ErrUnreachable):
		return exitf(exitFailure, "%s: the group of %s did not answer in time, and nobody knows whether it was written, or will be; read it to know", verb, name)
	}
	return err
}

func (a *app) getDurable(c *cobra.Command, at api.Target, stale bool) error {
	return a.callDurable(c, at, func(ctx context.Context, daemon *api.Client) error {
		v, told := coherence.Value{}, durableValue{}
		if stale {
			seen, age, ok, err := daemon.StaleDurable(ctx, at.App, at.Name)
			switch {
			case err != nil:
				return err
			case !ok:
				return exitf(exitNotFound, "object get: this peer has seen nothing of %s/%s, or keeps it no longer", at.App, at.Name)
			}
			ms := age.Milliseconds()
			v, told = seen, durableValueOf(at, seen)
			told.AgeMS = &ms
			if a.format == formatText {
				a.note(fmt.Sprintf("this was the present value %v ago", age.Round(time.Millisecond)))
			}
		} else {
			now, err := daemon.GetDurable(ctx, at.App, at.Name)
			if err != nil {
				return err
			}
			v, told = now, durableValueOf(at, now)
		}
		switch {
		case !v.Exists:
			return notThere(at, v.Version)
		case a.format != formatText:
			return a.value(told, nil)
		}
		return a.printValue(v.Bytes)
	})
}

// notThere is the error about an object that does not exist.
func notThere(at api.Target, version coherence.Version) error {
	if version == 0 {
		return exitf(exitNotFound, "object %s/%s does not exist", at.App, at.Name)
	}
	return exitf(exitNotFound, "object %s/%s does not exist: it was deleted, as version %d", at.App, at.Name, version)
}

func (a *app) setDurable(c *cobra.Command, at api.Target, w api.DurableWrite) error {
	return a.callDurable(c, at, func(ctx context.Context, daemon *api.Client) error {
		v, err := daemon.SetDurable(ctx, at.App, at.Name, w)
		if err != nil {
			return err
		}
		return a.quietly(durableDone{at.App, at.Name, v, len(w.Value)})
	})
}

func (a *app) removeDurable(c *cobra.Command, at api.Target, version *coherence.Version) error {
	return a.callDurable(c, at, func(ctx context.Context, daemon *api.Client) error {
		existed, err := daemon.RemoveDurable(ctx, at.App, at.Name, version)
		switch {
		case err != nil:
			return err
		case !existed:
			return notThere(at, 0)
		}
		return a.quietly(struct {
			App  string `json:"app"`
			Name string `json:"name"`
		}{at.App, at.Name})
	})
}

func (a *app) watchDurable(c *cobra.Command, at api.Target, after coherence.Version) error {
	return a.follow(c.Context(), func(ctx context.Context, daemon *api.Client) error {
		return daemon.WatchDurable(ctx, at.App, at.Name, after, func(ch coherence.Change) error {
			told := durableValueOf(at, ch.Value)
			told.Lagged = ch.Lagged
			line := time.Now().Format(time.TimeOnly) + "  "
			if ch.Exists {
				line = valueLine(ch.Bytes)
			} else {
				line += "does not exist"
			}
			line += fmt.Sprintf("  (version %d", ch.Version)
			if ch.Lagged {
				line += ", others before it are left out"
			}
			return a.event(told, line+")")
		})
	})
}

// directoryChange is how a change of a directory is told.
type directoryChange struct {
	App       string            `json:"app"`
	Directory string            `json:"directory"` // with its slash; empty: the objects whose names have none
	Version   coherence.Version `json:"version,string"`
	Lagged    bool              `json:"lagged,omitempty"`
	Names     int               `json:"names"` // that are there now
	Added     []string          `json:"added"`
	Removed   []string          `json:"removed"`
}

// shownNames is how many names of each kind a line of text tells.
const shownNames = 20

func (c directoryChange) line() string {
	s := time.Now().Format(time.TimeOnly) + "  " + plural(c.Names, "name")
	for _, part := range []struct {
		sign  string
		names []string
	}{{"+", c.Added}, {"-", c.Removed}} {
		for _, name := range part.names[:min(len(part.names), shownNames)] {
			s += "  " + part.sign + inLine(name)
		}
		if more := len(part.names) - shownNames; more > 0 {
			s += fmt.Sprintf("  %sand %d more", part.sign, more)
		}
	}
	s += fmt.Sprintf("  (version %d", c.Version)
	if c.Lagged {
		s += ", others before it are left out"
	}
	return s + ")"
}

// directoryOf reads what names a directory: APP/ or APP/DIR/.
func directoryOf(arg string) (app, directory string, err error) {
	app, directory, _ = strings.Cut(arg, "/")
	directory = strings.TrimSuffix(directory, "/")
	if err := coherence.CheckNames(app, directory+"x"); err != nil {
		return "", "", err
	}
	if directory != "" {
		err = coherence.CheckDurableName(directory)
	}
	return app, directory, err
}

func (a *app) watchDirectory(c *cobra.Command, app, directory string, after coherence.Version) error {
	at := directory
	if at != "" {
		at += "/"
	}
	var was []string
	return a.follow(c.Context(), func(ctx context.Context, daemon *api.Client) error {
		return daemon.WatchDirectory(ctx, app, directory, after, func(l coherence.Listing, lagged bool) error {
			told := directoryChange{App: app, Directory: at, Version: l.Version, Lagged: lagged, Names: len(l.Names), Added: []string{}, Removed: []string{}}
			added, removed := api.Changed(was, l.Names)
			told.Added, told.Removed, was = append(told.Added, added...), append(told.Removed, removed...), l.Names
			return a.event(told, told.line())
		})
	})
}

// durableName is one of a listing.
type durableName struct {
	Name string `json:"name"`
}

func (a *app) listDurable(c *cobra.Command, app, directory, after string, limit int) error {
	directory = strings.TrimSuffix(directory, "/")
	at := api.Target{App: app, Name: directory}
	if directory != "" {
		if err := coherence.CheckDurableName(directory); err != nil {
			return err
		}
		at.Name += "/"
	}
	return a.callDurable(c, at, func(ctx context.Context, daemon *api.Client) error {
		l, err := daemon.ListDurable(ctx, app, directory, strings.TrimPrefix(after, at.Name), limit)
		if err != nil {
			return err
		}
		names := make([]durableName, len(l.Names))
		for i, name := range l.Names {
			names[i].Name = at.Name + name
		}
		if err := a.list("objects", anys(names), func(w io.Writer) {
			if len(names) == 0 {
				fmt.Fprintf(w, "no object of %s/%s\n", inLine(app), inLine(at.Name))
				return
			}
			fmt.Fprintln(w, "NAME")
			for _, n := range names {
				fmt.Fprintln(w, inLine(n.Name))
			}
		}); err != nil {
			return err
		}
		if l.More && len(names) > 0 {
			a.note(fmt.Sprintf("there are more: --after %s goes on (see --limit)", inLine(names[len(names)-1].Name)))
		}
		return nil
	})
}

func (a *app) infoDurable(c *cobra.Command, at api.Target) error {
	return a.callDurable(c, at, func(ctx context.Context, daemon *api.Client) error {
		i, err := daemon.Durable(ctx, at.App, at.Name)
		switch {
		case err != nil:
			return err
		case !i.Exists:
			return notThere(at, i.Version)
		}
		return a.value(struct {
			App  string `json:"app"`
			Name string `json:"name"`
			api.DurableInfo
		}{at.App, at.Name, i}, func(w io.Writer) {
			fmt.Fprintf(w, "object\t%s/%s\nversion\t%d\nbytes\t%d\nkey\t%s\n", inLine(at.App), inLine(at.Name), i.Version, i.Bytes, i.Key)
			if g := i.Group; g != nil {
				fmt.Fprintf(w, "group\t%s, view %d, led by %s\n", g.ID, g.View, g.Leader)
				for _, m := range g.Members {
					fmt.Fprintf(w, "member\t%s\n", m)
				}
			}
		})
	})
}

// durableTurn waits for the turn to write a durable object.
func (a *app) durableTurn(ctx context.Context, daemon *api.Client, at api.Target, hold, ttl time.Duration) (*heldTurn, error) {
	h, err := daemon.HoldDurableFor(ctx, at.App, at.Name, hold)
	if err != nil {
		return nil, silentGroup(err, "object update", at.App+"/"+at.Name)
	}
	v := h.Value()
	return &heldTurn{
		until: h.Until(), value: v.Bytes, env: fmt.Sprintf("LATCHKEY_VERSION=%d", v.Version), ended: h.Ended(), err: h.Err, release: h.Release,
		commit: func(value []byte) (any, error) {
			ctx, cancel := a.askGroup(context.Background(), a.timeout)
			defer cancel()
			version, err := h.Commit(ctx, value, ttl)
			return durableDone{at.App, at.Name, version, len(value)}, silentGroup(err, "object update", at.App+"/"+at.Name)
		},
	}, nil
}
