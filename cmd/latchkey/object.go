package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"latchkey/coherence"
	"latchkey/coherence/access"
	"latchkey/coherence/protocol"
	"latchkey/node/api"
)

// objectFlags are the flags of every verb below object.
type objectFlags struct {
	volatile bool
	epoch    uint64
}

func objectVerb(a *app) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "object",
		Short: "read, write, update and watch objects that peers share",
		Long: fmt.Sprintf(`object reads and writes the shared objects of applications. All peers see one memory: what one has written every other reads, and no
stale copy is ever returned. A peer that reads an object keeps a copy and reads it again without asking anybody, until somebody writes.
An object holds up to %d bytes, and is named APP/NAME: what stands before the first slash is the application.

Objects are durable unless --volatile says otherwise: what a command has written is kept by the object's replica group, and survives f failures
of that group's 2f+1 peers, whichever they are. There is nothing to open or to close. Every write gives an object a greater version, for ever,
which info and -o json tell; --if-version writes only where nobody else has. A name is a path, and no part of it is empty, "." or "..".
Where a group does not answer, reads fail rather than return what may be old (get --stale returns that), and who wrote is told whether nothing
was written or nobody knows.

With --volatile they are other objects: what they hold is in the memory of the peers that have the application
open, and is kept while at least one has it open and none of them fails. If one fails, or is silent for three seconds, the application begins
anew from its last checkpoint ("latchkey app checkpoint"), or with empty objects, in its next epoch. The next command through each daemon then fails and says so, once; commands after that are of
the new execution. A script that must notice in every case names the --epoch it is in, which -o json and "app info" tell.

A daemon opens a volatile application when a command first needs it, and keeps it open until "latchkey app close APP", or until it stops; then it hands
over what it owns to others that have it open. A laptop that only looked should close it before it goes to sleep. Only set and update found an
application that nobody has open; other commands end with 4 then. A volatile object whose value has no bytes is one that nobody has written: get
and rm end with 4, and ls does not list it.`, protocol.ValueMax),
		Example: `  echo "hello" | latchkey object set demo/greeting -
  latchkey object get demo/greeting
  latchkey object update demo/count -- awk '{n = $1} END {print n + 1}'
  latchkey object watch demo/count
  latchkey object set --volatile demo/scratch hello`,
	})
	c.AddCommand(objectGetVerb(a), objectSetVerb(a), objectUpdateVerb(a), objectWatchVerb(a), objectRmVerb(a), objectLsVerb(a), objectInfoVerb(a))
	return c
}

func (f *objectFlags) register(c *cobra.Command) {
	c.Flags().BoolVar(&f.volatile, "volatile", false, "an object in the memory of those who have the application open")
	c.Flags().Uint64Var(&f.epoch, "epoch", 0, "with --volatile: fail unless it is this execution of the application (default any)")
}

// durableOnly are the flags that only durable objects have.
var durableOnly = []string{"if-version", "if-absent", "ttl", "stale", "after"}

// of reads APP/NAME.
func (f *objectFlags) of(c *cobra.Command, arg string) (api.Target, error) {
	if err := f.check(c); err != nil {
		return api.Target{}, err
	}
	app, name, ok := strings.Cut(arg, "/")
	if !ok || app == "" || name == "" {
		return api.Target{}, usagef("%s: %q: name an object as APP/NAME, like demo/greeting", verbOf(c), inLine(arg))
	}
	if err := coherence.CheckNames(app, name); err != nil {
		return api.Target{}, err
	}
	if !f.volatile {
		if err := coherence.CheckDurableName(name); err != nil {
			return api.Target{}, err
		}
	}
	return api.Target{App: app, Name: name, Epoch: f.epoch}, nil
}

// check refuses flags of the other mode.
func (f *objectFlags) check(c *cobra.Command) error {
	if !f.volatile {
		if c.Flags().Changed("epoch") {
			return usagef("%s: --epoch is about volatile objects: say --volatile too, or leave it out", verbOf(c))
		}
		return nil
	}
	for _, name := range durableOnly {
		if c.Flags().Changed(name) {
			return usagef("%s: --%s is about durable objects, and --volatile means others", verbOf(c), name)
		}
	}
	return nil
}

// verbOf is how one types a verb, without the program.
func verbOf(c *cobra.Command) string {
	return strings.TrimPrefix(c.CommandPath(), c.Root().Name()+" ")
}

// callObject runs fn, which needs other peers, through the daemon, in the time that --timeout gives.
func (a *app) callObject(c *cobra.Command, what string, fn func(ctx context.Context, daemon *api.Client) error) error {
	daemon, err := a.dial()
	if err != nil {
		return err
	}
	defer daemon.Close()
	ctx, stop := interruptible(c.Context())
	defer stop()
	within, cancel := a.askGroup(ctx, a.timeout)
	defer cancel()
	err = fn(within, daemon)
	return a.explain(interruption(ctx, noAnswer(err, what, a.timeout)))
}

// noAnswer says who may be silent where a call has not ended in time.
func noAnswer(err error, what string, d time.Duration) error {
	if errors.Is(err, context.DeadlineExceeded) && !errors.As(err, new(*exitError)) {
		return exitf(exitFailure, "%s: no answer within %v: its group or its owner does not answer, or somebody holds it; latchkey group ls tells of groups (see --timeout)", what, d)
	}
	return err
}

// objectValue is how a value is told.
type objectValue struct {
	App    string  `json:"app"`
	Name   string  `json:"name"`
	Epoch  uint64  `json:"epoch,string"`
	Bytes  int     `json:"bytes"`
	Value  *string `json:"value"` // null where it is no UTF-8
	Base64 string  `json:"value_base64"`
}

func objectValueOf(at api.Target, value []byte, epoch uint64) objectValue {
	v := objectValue{App: at.App, Name: at.Name, Epoch: epoch, Bytes: len(value), Base64: base64.StdEncoding.EncodeToString(value)}
	if utf8.Valid(value) {
		text := string(value)
		v.Value = &text
	}
	return v
}

// objectDone is what a write has to tell.
type objectDone struct {
	App   string `json:"app"`
	Name  string `json:"name"`
	Epoch uint64 `json:"epoch,string"`
	Bytes int    `json:"bytes"`
}

// quietly prints a result for programs only.
func (a *app) quietly(v any) error {
	if a.format == formatText {
		return nil
	}
	return a.value(v, nil)
}

func objectGetVerb(a *app) *cobra.Command {
	var f objectFlags
	var stale bool
	c := &cobra.Command{
		Use:   "get APP/NAME",
		Short: "print the value of an object",
		Long: `get prints the value as it is, byte by byte; on a terminal what would not print is shown as escapes, and a line is ended. -o json tells the
version too. It ends with 4 where the object does not exist; with --volatile, where it has no value or nobody has the application open.

Where the object's group does not answer get fails with 1. With --stale it prints what this peer saw last, however old that is, and asks nobody; how
old is said on standard error.`,
		Example: `  latchkey object get demo/greeting
  latchkey object get demo/greeting -o json | jq -r .version
  latchkey object get --volatile demo/greeting -o json | jq -r .epoch`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			at, err := f.of(c, args[0])
			if err != nil {
				return err
			}
			if !f.volatile {
				return a.getDurable(c, at, stale)
			}
			return a.callObject(c, args[0], func(ctx context.Context, daemon *api.Client) error {
				value, epoch, err := daemon.GetObject(ctx, at)
				switch {
				case err != nil:
					return err
				case len(value) == 0:
					return exitf(exitNotFound, "object %q has no value in execution %d of application %q", at.Name, epoch, at.App)
				case a.format != formatText:
					return a.value(objectValueOf(at, value, epoch), nil)
				}
				return a.printValue(value)
			})
		},
	}
	f.register(c)
	c.Flags().BoolVar(&stale, "stale", false, "print what this peer saw last, however old, and ask nobody")
	return c
}

// printValue prints a value as it is, or so that a terminal bears it.
func (a *app) printValue(value []byte) error {
	if out, ok := a.out.(*os.File); ok && isTerminal(out) {
		value = []byte(plain(string(value)))
		if !bytes.HasSuffix(value, []byte("\n")) {
			value = append(value, '\n')
		}
	}
	_, err := a.out.Write(value)
	return err
}

func objectSetVerb(a *app) *cobra.Command {
	var f objectFlags
	var file string
	var d durableFlags
	c := &cobra.Command{
		Use:   "set APP/NAME VALUE|-",
		Short: "write an object",
		Long: `set writes VALUE, or what standard input or the --file holds. It ends when the object's group has it and no peer can read the former value any
more, which takes two seconds at most where a peer that has a copy does not answer. -o json tells the version it made.

With --if-version or --if-absent it writes only if the object has that version, or does not exist; else it ends with 1 and says which version is
there. With --ttl the object is deleted when nobody has written it for so long; every write says that anew.

If nobody knows whether the value was written, set ends with 1 and says so: get tells.
With --volatile it founds the application if nobody has it open.`,
		Example: `  latchkey object set demo/greeting hello
  date | latchkey object set demo/now - --ttl 1h
  latchkey object set demo/picture --file picture.png --if-version 1`,
		Args: func(c *cobra.Command, args []string) error {
			if file != "" && len(args) == 2 {
				return usagef("object set: a value and --file exclude each other")
			}
			if file != "" {
				return exactly(1)(c, args)
			}
			return exactly(2)(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error {
			at, err := f.of(c, args[0])
			if err != nil {
				return err
			}
			if err := d.check(c); err != nil {
				return err
			}
			value, err := readValue(append(args, "")[1], file)
			if err != nil {
				return err
			}
			if !f.volatile {
				return a.setDurable(c, at, d.write(value))
			}
			return a.callObject(c, args[0], func(ctx context.Context, daemon *api.Client) error {
				epoch, err := daemon.SetObject(ctx, at, value)
				if err != nil {
					return err
				}
				return a.quietly(objectDone{at.App, at.Name, epoch, len(value)})
			})
		},
	}
	f.register(c)
	c.Flags().StringVarP(&file, "file", "f", "", "write what this file holds")
	d.register(c)
	c.Flags().BoolVar(&d.absent, "if-absent", false, "write only if the object does not exist")
	registerTTL(c, &d.ttl)
	return c
}

// readValue returns the value to write: the argument, standard input where that is -, or a file.
func readValue(arg, file string) ([]byte, error) {
	var in io.Reader = strings.NewReader(arg)
	from := "the argument"
	switch {
	case file != "":
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("object set: %w", err)
		}
		defer f.Close()
		in, from = f, file
	case arg == "-":
		in, from = os.Stdin, "standard input"
	}
	b, err := io.ReadAll(io.LimitReader(in, protocol.ValueMax+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("object set: read %s: %w", from, err)
	case len(b) > protocol.ValueMax:
		return nil, usagef("object set: %s has more than %d bytes, which is what an object holds", from, protocol.ValueMax)
	}
	return b, nil
}

func objectRmVerb(a *app) *cobra.Command {
	var f objectFlags
	var d durableFlags
	c := &cobra.Command{
		Use:   "rm APP/NAME",
		Short: "delete an object",
		Long: `rm deletes the object; its version rises. It ends with 4 where there was none, and with 1 where it has another version than --if-version says.
With --volatile it writes a value without bytes, which is how an object is that nobody has written.`,
		Example: `  latchkey object rm demo/greeting
  latchkey object rm demo/greeting --if-version 1`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			at, err := f.of(c, args[0])
			if err != nil {
				return err
			}
			if err := d.check(c); err != nil {
				return err
			}
			if !f.volatile {
				return a.removeDurable(c, at, d.version)
			}
			return a.callObject(c, args[0], func(ctx context.Context, daemon *api.Client) error {
				existed, epoch, err := daemon.RemoveObject(ctx, at)
				switch {
				case err != nil:
					return err
				case !existed:
					return exitf(exitNotFound, "object %q has no value in execution %d of application %q", at.Name, epoch, at.App)
				}
				return a.quietly(objectDone{at.App, at.Name, epoch, 0})
			})
		},
	}
	f.register(c)
	d.register(c)
	return c
}

func objectWatchVerb(a *app) *cobra.Command {
	var f objectFlags
	var after uint64
	c := &cobra.Command{
		Use:   "watch APP/NAME | APP/[DIR/]",
		Short: "print the value of an object, or what is in a directory, now and at every change",
		Long: `watch prints a line at once and for every version after that, in their order, until interrupted. Where versions follow each other too fast some
are left out, and the line after them says so. --after begins with what comes after a version, and fails where the object has not come to it. It goes on while
the object's group has no leader or does not answer. With -o jsonl lines have the whole value; in text the first 200 bytes.
With a slash at its end the argument is a directory: a line tells how many objects are in it, and which have been made and deleted.
With --volatile it prints a line whenever the value may have become another one, and ends with 1 when the application begins anew.`,
		Example: `  latchkey object watch demo/count
  latchkey object watch demo/count -o jsonl | jq -r .value
  latchkey object watch render-farm/frame/ -o jsonl | jq -r '.added[]'`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			if !f.volatile && strings.HasSuffix(args[0], "/") {
				if err := f.check(c); err != nil {
					return err
				}
				app, directory, err := directoryOf(args[0])
				if err != nil {
					return err
				}
				return a.watchDirectory(c, app, directory, coherence.Version(after))
			}
			at, err := f.of(c, args[0])
			if err != nil {
				return err
			}
			if !f.volatile {
				return a.watchDurable(c, at, coherence.Version(after))
			}
			return a.follow(c.Context(), func(ctx context.Context, daemon *api.Client) error {
				return daemon.WatchObject(ctx, at, func(value []byte, epoch uint64) error {
					return a.event(objectValueOf(at, value, epoch), valueLine(value))
				})
			})
		},
	}
	f.register(c)
	c.Flags().Uint64Var(&after, "after", 0, "begin with what comes after this version (default with what is there)")
	return c
}

// shownMax is how much of a value a line of text shows.
const shownMax = 200

func valueLine(value []byte) string {
	shown := value[:min(len(value), shownMax)]
	s := fmt.Sprintf("%s  %d bytes  %s", time.Now().Format(time.TimeOnly), len(value), inLine(strings.TrimSuffix(string(shown), "\n")))
	if len(shown) < len(value) {
		s += " ..."
	}
	return s
}

func objectLsVerb(a *app) *cobra.Command {
	var f objectFlags
	limit, after := 1000, ""
	c := &cobra.Command{
		Use:   "ls APP[/DIR]",
		Short: "list the objects of a directory",
		Long: fmt.Sprintf(`ls lists the objects of a directory, as they are at one instant: those named DIR, a slash and something without a slash; without DIR, those of
the application whose names have no slash. At most --limit of them (%d at most); --after goes on behind a name.

With --volatile it lists the objects of an application that have a value, and names that begin with what stands for DIR. Nobody keeps a list then: those who keep track of objects know them by hashes of their names. So the peers that have the application open are asked what they
own. It is no snapshot: what goes from one owner to another meanwhile may be missing. An owner that got an object from a peer that left, and
could not ask what it is called, does not know; such objects are counted in a note. A peer that gives no answer is named, its objects are
missing, and ls ends with 1.`, api.ListedObjectsMax),
		Example: `  latchkey object ls demo
  latchkey object ls render-farm/frame -o jsonl | jq -r .name
  latchkey object ls --volatile render-farm/frame/`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := f.check(c); err != nil {
				return err
			}
			app, prefix, _ := strings.Cut(args[0], "/")
			if limit < 1 || limit > api.ListedObjectsMax {
				return usagef("object ls: --limit %d: between 1 and %d", limit, api.ListedObjectsMax)
			}
			if err := coherence.CheckNames(app, prefix+"x"); err != nil {
				return err
			}
			if !f.volatile {
				return a.listDurable(c, app, prefix, after, limit)
			}
			return a.callObject(c, args[0], func(ctx context.Context, daemon *api.Client) error {
				l, err := daemon.ListObjects(ctx, app, prefix, limit)
				if err != nil {
					return err
				}
				if err := a.list("objects", anys(l.Objects), func(w io.Writer) {
					if len(l.Objects) == 0 {
						fmt.Fprintf(w, "no object of application %q that begins with %q has a value\n", app, prefix)
						return
					}
					fmt.Fprintln(w, "NAME\tBYTES\tOWNER")
					for _, o := range l.Objects {
						fmt.Fprintf(w, "%s\t%d\t%s\n", inLine(o.Name), o.Bytes, o.Owner)
					}
				}); err != nil {
					return err
				}
				if l.More {
					a.note(fmt.Sprintf("there are more than %d; name the beginning of those you look for, or see --limit", len(l.Objects)))
				}
				if l.Unnamed > 0 {
					a.note(fmt.Sprintf("%d more objects have a value, and nobody who has the application open knows what they are called", l.Unnamed))
				}
				if len(l.Silent) > 0 {
					return exitf(exitFailure, "object ls: no answer from %s; what they own is missing", strings.Join(l.Silent, ", "))
				}
				return nil
			})
		},
	}
	f.register(c)
	c.Flags().IntVar(&limit, "limit", limit, "how many objects to list at most")
	c.Flags().StringVar(&after, "after", "", "list names behind this one of the directory")
	return c
}

func objectInfoVerb(a *app) *cobra.Command {
	var f objectFlags
	c := &cobra.Command{
		Use:   "info APP/NAME",
		Short: "tell an object's version and which group keeps it",
		Long: `info tells the object's version, how many bytes it has, and the group that keeps it. It ends with 4 where the object does not exist, and says which version
its deletion had, if it was deleted. With --volatile it tells who owns the object, who has copies, and which group keeps track of that.`,
		Example: `  latchkey object info demo/greeting
  latchkey object info demo/greeting -o json | jq -r .version
  latchkey object info --volatile demo/greeting -o json | jq -r .owner`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			at, err := f.of(c, args[0])
			if err != nil {
				return err
			}
			if !f.volatile {
				return a.infoDurable(c, at)
			}
			return a.callObject(c, args[0], func(ctx context.Context, daemon *api.Client) error {
				i, err := daemon.Object(ctx, at)
				if err != nil {
					return err
				}
				return a.value(struct {
					App  string `json:"app"`
					Name string `json:"name"`
					api.ObjectInfo
				}{at.App, at.Name, i}, func(w io.Writer) {
					owner := i.Owner
					if owner == "" {
						owner = "nobody: it was not used in this execution"
					}
					fmt.Fprintf(w, "object\t%s/%s\nexecution\t%d\nowner\t%s\ncopies\t%d other peers may have one\n", inLine(at.App), inLine(at.Name), i.Epoch, owner, i.Copies)
					fmt.Fprintf(w, "manager\t%s, %d requests wait\nhere\t%s, %d bytes\nkey\t%s\n", i.Manager, i.Waiting, i.Here, i.Bytes, i.Key)
					if g := i.Group; g != nil {
						fmt.Fprintf(w, "group\t%s, view %d, led by %s\n", g.ID, g.View, g.Leader)
						for _, m := range g.Members {
							fmt.Fprintf(w, "member\t%s\n", m)
						}
					}
				})
			})
		},
	}
	f.register(c)
	return c
}

func objectUpdateVerb(a *app) *cobra.Command {
	var f objectFlags
	hold, wait, ttl := 10*time.Second, 30*time.Second, time.Duration(0)
	c := &cobra.Command{
		Use:   "update APP/NAME -- CMD [ARG...]",
		Short: "replace the value of an object by what a command makes of it",
		Long: fmt.Sprintf(`update gives CMD the value as its standard input, which is empty where the object does not exist, and writes what it prints as the new value, with
no write of anybody in between: from before CMD starts until after the write it is this command's turn, so CMD runs exactly once. Others that write
wait meanwhile, and others that read get the value from before. With --volatile, who reads it through another peer waits too.

CMD runs without a shell, as "latchkey lock" runs one: in a process group of its own, with our standard error, and with LATCHKEY_OBJECT (APP/NAME),
LATCHKEY_VERSION (with --volatile LATCHKEY_EPOCH) and LATCHKEY_API in its environment; INT, TERM, HUP and QUIT are passed on. If it fails, or
prints more than %d bytes, the value stays as it is, and update ends with its exit code (128+n after signal n), or 2.

The turn lasts for --hold at most. Before that is over CMD gets TERM, then KILL, nothing is written, and update ends with 76. So it does where this
peer was cut off for so long that the group let somebody else write, and with --volatile when the application begins anew. When the turn does
not come within --wait, CMD is not run and update ends with 75. With --ttl the object is deleted when nobody has written it for so long; every
write says that anew.
A CMD that updates another object meanwhile, while somewhere else one does that in the other order, waits until a hold is over: update several
objects in one order everywhere.`, protocol.ValueMax),
		Example: `  latchkey object update demo/count -- awk '{n = $1} END {print n + 1}'
  latchkey object update demo/list --hold 1m -- sort -u`,
		Args: func(c *cobra.Command, args []string) error {
			if dash := c.ArgsLenAtDash(); dash != 1 || len(args) < 2 {
				return usagef("object update: usage: latchkey object update APP/NAME -- CMD [ARG...]")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			at, err := f.of(c, args[0])
			if err != nil {
				return err
			}
			switch {
			case hold < time.Second || hold > access.HoldMax:
				return usagef("object update: --hold %v: between 1s and %v", hold, access.HoldMax)
			case wait < 0:
				return usagef("object update: --wait %v: it must not be negative", wait)
			}
			if err := checkTTL(c, ttl); err != nil {
				return err
			}
			return a.updateObject(c.Context(), at, args[1:], hold, wait, ttl, f.volatile)
		},
	}
	f.register(c)
	c.Flags().DurationVar(&hold, "hold", hold, fmt.Sprintf("how long the object may be kept from others, 1s to %v", access.HoldMax))
	c.Flags().DurationVar(&wait, "wait", wait, "how long to wait for the object; 0 is no limit")
	registerTTL(c, &ttl)
	return c
}

// heldTurn is the turn to write an object, of either mode.
type heldTurn struct {
	until   time.Time
	value   []byte
	env     string // what the command is told beside the name
	ended   <-chan struct{}
	err     func() error // why it has ended, once it has
	commit  func(value []byte) (done any, err error)
	release func()
}

// holdLease is the hold of an object as supervise sees a lease: the work is stopped in its last seconds.
type holdLease struct {
	until time.Time
	ctx   context.Context
	ttl   time.Duration
}

// holdGrace is how much of a hold, at its end, is kept for stopping what runs under it: a third of it between TERM and the end.
const holdGrace = 3 * time.Second

func (l holdLease) TTL() time.Duration       { return l.ttl }
func (l holdLease) Remaining() time.Duration { return max(0, time.Until(l.until)) }
func (l holdLease) Context() context.Context { return l.ctx }

func (a *app) updateObject(parent context.Context, at api.Target, argv []string, hold, wait, ttl time.Duration, volatile bool) error {
	program, err := lookPath(argv[0])
	if err != nil {
		return updateCommandError(err)
	}
	daemon, err := a.dial()
	if err != nil {
		return err
	}
	defer daemon.Close()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, passedOn()...)
	defer signal.Stop(signals)
	held, err := a.holdObject(parent, at, wait, signals, func(ctx context.Context) (*heldTurn, error) {
		if volatile {
			return volatileTurn(ctx, daemon, at, hold)
		}
		return a.durableTurn(ctx, daemon, at, hold, ttl)
	})
	if err != nil {
		return err
	}
	defer held.release()
	work, err := startFilter(program, argv, objectEnv(at, held.env, daemon.Addr()), held.value, a.note)
	if err != nil {
		return updateCommandError(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	go func() {
		<-held.ended
		cancel(held.err())
	}()
	name := at.App + "/" + at.Name
	lost := supervise(holdLease{held.until, ctx, min(hold, holdGrace)}, work, signals, func(error) {})
	value, outErr := work.output()
	switch {
	case lost != nil && held.err() == nil:
		return exitf(exitLost, "object update: %s was held for %v, and the command did not end in that time; nothing was written (see --hold)", name, hold)
	case lost != nil:
		return exitf(exitLost, "object update: %s is held no longer, so the command was stopped and nothing was written: %w", name, held.err())
	case len(work.got) > protocol.ValueMax: // for which it was killed
		return outErr
	case work.result() != nil:
		return work.result()
	case outErr != nil:
		return outErr
	}
	done, err := held.commit(value)
	if errors.Is(err, access.ErrHold) || errors.Is(err, coherence.ErrRestarted) || errors.Is(err, coherence.ErrConflict) {
		return exitf(exitLost, "object update: %s: %w", name, err)
	}
	if err != nil {
		return a.explain(err)
	}
	return a.quietly(done)
}

// volatileTurn waits until a volatile object is held.
func volatileTurn(ctx context.Context, daemon *api.Client, at api.Target, hold time.Duration) (*heldTurn, error) {
	got, epoch, err := daemon.HoldObject(ctx, at, hold)
	if err != nil {
		return nil, err
	}
	h := got.(*api.ClientHold)
	return &heldTurn{
		until: h.Until(), value: h.Value(), env: fmt.Sprintf("LATCHKEY_EPOCH=%d", epoch), ended: h.Ended(), err: h.Err, release: h.Release,
		commit: func(value []byte) (any, error) {
			return objectDone{at.App, at.Name, epoch, len(value)}, h.Commit(value)
		},
	}, nil
}

func updateCommandError(err error) error {
	return exitf(commandCode(err), "object update: cannot run the command: %w", err)
}

// holdObject waits until an object is held, or a signal comes.
func (a *app) holdObject(parent context.Context, at api.Target, wait time.Duration, signals <-chan os.Signal, take func(context.Context) (*heldTurn, error)) (*heldTurn, error) {
	waiting, cancel := context.WithCancelCause(parent)
	got := make(chan struct{})
	var heard bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		var late <-chan time.Time
		if wait > 0 {
			t := time.NewTimer(wait)
			defer t.Stop()
			late = t.C
		}
		select {
		case s := <-signals:
			heard = true
			cancel(&interruptError{s.(syscall.Signal)})
		case <-late:
			cancel(exitf(exitNotAcquired, "object update: %s/%s was not ours within %v: somebody holds it, or its group or its owner does not answer (see --wait)", at.App, at.Name, wait))
		case <-got:
		}
	}()
	// The stream of the hold lives as long as the context does, so it is left to the process to end.
	held, err := take(waiting)
	close(got)
	<-done
	if err != nil {
		if cause := context.Cause(waiting); waiting.Err() != nil {
			return nil, cause
		}
		return nil, a.explain(err)
	}
	if heard {
		held.release()
		return nil, context.Cause(waiting)
	}
	return held, nil
}

// objectEnv is our environment with the object in it.
func objectEnv(at api.Target, more, socket string) []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains([]string{"LATCHKEY_OBJECT", "LATCHKEY_EPOCH", "LATCHKEY_VERSION", "LATCHKEY_API"}, name)
	})
	return append(env, "LATCHKEY_OBJECT="+at.App+"/"+at.Name, more, "LATCHKEY_API="+absolute(socket))
}

// filter is a command that makes one value of another.
type filter struct {
	*child
	out  *os.File
	read chan struct{} // closed when got and err are set
	got  []byte
	err  error
}

// startFilter runs program as argv with value as its input.
func startFilter(program string, argv, env []string, value []byte, note func(string)) (*filter, error) {
	inR, inW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		inR.Close()
		inW.Close()
		return nil, err
	}
	c, err := startChild(program, argv, env, inR, outW, note)
	inR.Close()
	outW.Close()
	if err != nil {
		inW.Close()
		outR.Close()
		return nil, err
	}
	f := &filter{child: c, out: outR, read: make(chan struct{})}
	go func() {
		inW.Write(value) // who does not read it all need not
		inW.Close()
	}()
	go func() {
		defer close(f.read)
		f.got, f.err = io.ReadAll(io.LimitReader(outR, protocol.ValueMax+1))
		if len(f.got) > protocol.ValueMax {
			c.kill()
		}
	}()
	return f, nil
}

// outputGrace bounds how long somebody may keep the output open whom the command has left behind outside its process group.
const outputGrace = 2 * time.Second

// output returns what the command has printed, once it is done.
func (f *filter) output() ([]byte, error) {
	f.out.SetReadDeadline(time.Now().Add(outputGrace))
	<-f.read
	f.out.Close()
	switch {
	case len(f.got) > protocol.ValueMax:
		return nil, usagef("object update: the command printed more than %d bytes, which is what an object holds; nothing was written", protocol.ValueMax)
	case errors.Is(f.err, os.ErrDeadlineExceeded):
		return nil, exitf(exitFailure, "object update: something that the command started keeps its output open, so nobody knows what is in it; nothing was written")
	}
	return f.got, f.err
}
