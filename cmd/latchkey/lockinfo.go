package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"latchkey/lockservice"
	"latchkey/node/api"
)

// noCommand refuses a command after the name of a verb below lock, which somebody means who has a lock of that name.
func noCommand(verb string, n int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if c.ArgsLenAtDash() >= 0 {
			return usagef("lock %s: runs no command; for a lock called %s: latchkey lock -- %s -- CMD", verb, verb, verb)
		}
		return exactly(n)(c, args)
	}
}

func lockInfoVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "info NAME",
		Short: "tell who holds a lock and who waits for it",
		Example: `  latchkey lock info nightly
  latchkey lock info nightly -o json | jq -r .token`,
		Args: noCommand("info", 1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.callGroup(c, args[0], func(ctx context.Context, daemon *api.Client) error {
				i, err := daemon.Locks().Info(ctx, args[0])
				if err != nil {
					return err
				}
				l := lockInfoOf(i)
				if k, err := daemon.Key(ctx, args[0]); err == nil && k.Group != nil { // what else there is to tell does not depend on it
					l.Replicas = k.Group.Members
				}
				return a.value(l, func(w io.Writer) {
					writeLockInfo(w, i)
					for _, r := range l.Replicas {
						fmt.Fprintf(w, "replica\t%s\n", r)
					}
				})
			})
		},
	}
}

func lockWatchVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "watch NAME",
		Short: "tell who holds a lock and who waits for it, now and at every change",
		Long: `watch prints a line at once and at every change, until interrupted. It is told of changes by the lock's voters, or asks every half
second where they do not tell; of changes that follow each other faster than twenty a second it shows the last, and the tokens show that
there were others.`,
		Example: `  latchkey lock watch nightly
  latchkey lock watch nightly -o jsonl | jq -r .token`,
		Args: noCommand("watch", 1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.follow(c.Context(), func(ctx context.Context, daemon *api.Client) error {
				events, err := daemon.Locks().Watch(ctx, args[0])
				if err != nil {
					return err
				}
				for ev := range events {
					if ev.Err != nil {
						a.note(oneLine(ev.Err))
					} else if err := a.event(lockInfoOf(ev.Info), watchLine(ev.Info)); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

// follow runs what goes on until it is interrupted. A daemon that is not there is said at once.
func (a *app) follow(parent context.Context, fn func(ctx context.Context, daemon *api.Client) error) error {
	daemon, err := a.dial()
	if err != nil {
		return err
	}
	defer daemon.Close()
	ctx, stop := interruptible(parent)
	defer stop()
	first, cancel := a.bounded(ctx)
	_, err = daemon.Version(first)
	cancel()
	if err == nil {
		err = fn(ctx, daemon)
	}
	if ctx.Err() != nil {
		return silent(exitCode(context.Cause(ctx)))
	}
	return a.explain(err)
}

func watchLine(i lockservice.Info) string {
	s := fmt.Sprintf("%s  %s", time.Now().Format(time.TimeOnly), stateOf(i))
	if i.Held {
		s += fmt.Sprintf("  %s  token %v", i.Holder, i.Token)
	}
	if i.Waiting > 0 {
		s += fmt.Sprintf("  %d waiting", i.Waiting)
	}
	return s
}

func lockReleaseVerb(a *app) *cobra.Command {
	var force bool
	var token string
	c := &cobra.Command{
		Use:   "release --force NAME",
		Short: "take a lock away from its holder",
		Long: `A lock is released when its holder ends, or by itself when the holder is gone and its lease is over. release --force does not
wait for that: the lock goes to the next at once, as if the lease were over (after a --lock-delay, if the holder has set one). Its
token is used up, so a resource that checks tokens refuses the former holder. That one is told at once, and where it cannot be reached finds
out by its next renewal, within a third of its TTL: its command gets TERM then, and KILL a tenth of a second later. Until the command has
ended both may use a resource that does not check.

Everybody who shares the lock loses it. Of a semaphore, or to be sure that no later holder is hit, name the --token that
"lock info" shows. Which hold was broken, when, and through whose daemon, is kept with the lock and shown by "lock info".
A lock that the voters kept (protocol sigma) is kept in its group's log afterwards, by protocol group, and the next token is far above the
last, as 65537 after 3.`,
		Example: `  latchkey lock release --force nightly
  latchkey lock release --force --token 17 uploads`,
		Args: noCommand("release", 1),
		RunE: func(c *cobra.Command, args []string) error {
			name := args[0]
			if !force {
				return usagef("lock release: a lock is released by its holder; to take it away: latchkey lock release --force %s", shellWord(name))
			}
			var t uint64
			if token != "" {
				var err error
				if t, err = strconv.ParseUint(token, 10, 64); err != nil || t == 0 {
					return usagef("lock release: --token %s: it is a number above 0, as lock info shows it", token)
				}
			}
			return a.callGroup(c, name, func(ctx context.Context, daemon *api.Client) error {
				if t == 0 {
					i, err := daemon.Locks().Info(ctx, name)
					switch {
					case err != nil:
						return err
					case !i.Held:
						return exitf(exitNotFound, "nobody holds lock %q", name)
					case i.Permits > 0 && i.Holding > 1:
						return usagef("lock release: %q is a semaphore with %d holders; say which by --token (latchkey lock info %s)", name, i.Holding, shellWord(name))
					}
					t = uint64(i.Token)
				}
				holder, err := daemon.Locks().Break(ctx, name, lockservice.Token(t))
				if code := exitCode(err); err != nil && code == exitFailure && isNotHeld(err) {
					return exitf(exitNotFound, "nobody holds lock %q with token %d (any more)", name, t)
				}
				if err != nil {
					return err
				}
				broken := struct {
					Name   string    `json:"name"`
					Token  uint64    `json:"token,string"`
					Holder partyInfo `json:"holder"`
				}{name, t, partyInfo{holder.Session, holder.Peer}}
				return a.value(broken, func(w io.Writer) { fmt.Fprintf(w, "lock %q taken from %s, token %d\n", name, holder, t) })
			})
		},
	}
	c.Flags().BoolVar(&force, "force", false, "take it away, though its holder may believe in it for a while")
	c.Flags().StringVar(&token, "token", "", "only the hold with this token (default: the present one)")
	return c
}

type heldLock struct {
	Name    string `json:"name"`
	Token   uint64 `json:"token,string"`
	Holder  string `json:"holder"`
	TTL     int64  `json:"ttl_ms"`
	Shared  bool   `json:"shared"`
	Permits int    `json:"permits"`
}

func lockLsVerb(a *app) *cobra.Command {
	var here bool
	limit := 1000
	c := &cobra.Command{
		Use:   "ls [PREFIX]",
		Short: "list the locks of the overlay that somebody holds or waits for",
		Long: `ls lists the locks that somebody holds or waits for, or that are granted to nobody for a while, wherever in the overlay they are held; with
PREFIX those whose names begin with it. No peer knows of all of them, so the groups of the overlay are asked, eight at a time, each for a
page of 64 names, and again for the next; groups that sleep are woken. That suits a person who looks, and no script that polls: to
follow one lock there is "lock watch".

It is no snapshot: locks that somebody has all the while are in it, others may be. A group that gives no answer within 5 s is named, its
locks are missing, and ls ends with 1 when it has listed those of the others. So it does after --timeout, or a minute.

Where most machines of a group have lost power, its locks of before are not known for a minute or so, and a note says that. With -o json,
"incomplete" says whether any of this has been, or --limit has cut the list off.

With -o jsonl each page is printed as it comes, in no order; else names rise. How many wait is told, and "lock info NAME" tells who. At most --limit locks are listed, and a note says if there
are more. With --here it lists the locks that are held through this daemon and asks nobody; one whose holder has gone is listed
until its lease is over.`,
		Example: `  latchkey lock ls
  latchkey lock ls builds/
  latchkey lock ls -o jsonl --limit 0 | jq -r 'select(.waiting > 0).name'
  latchkey lock ls --here`,
		Args: func(c *cobra.Command, args []string) error {
			if c.ArgsLenAtDash() < 0 && len(args) > 1 {
				return usagef("lock ls: got %d arguments; usage: %s", len(args), c.UseLine())
			}
			return noCommand("ls", len(args))(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error {
			prefix := strings.Join(args, "")
			switch {
			case here && prefix != "":
				return usagef("lock ls: --here lists all that are held through this daemon; leave PREFIX out")
			case here:
				return a.call(c, a.lockLsHere)
			case limit < 0:
				return usagef("lock ls: --limit %d: it is 0, for no limit, or above", limit)
			}
			if prefix != "" {
				if err := lockservice.CheckName(prefix); err != nil {
					return err
				}
			}
			return a.follow(c.Context(), func(ctx context.Context, daemon *api.Client) error {
				d := lockLsTimeout
				if a.timeoutSet {
					d = a.timeout
				}
				ctx, cancel := a.askGroup(ctx, d)
				defer cancel()
				return a.lockLs(ctx, daemon, prefix, limit, d)
			})
		},
	}
	c.Flags().BoolVar(&here, "here", false, "only what is held through this daemon")
	c.Flags().IntVar(&limit, "limit", limit, "how many locks to list at most; 0 is no limit")
	return c
}

// lockLsTimeout is how long all the groups of an overlay have to tell of their locks when nobody set --timeout. Groups that live take
// milliseconds each, and more when they sleep.
const lockLsTimeout = time.Minute

// errEnough ends a list that has as many locks as are wanted.
var errEnough = errors.New("enough")

// lockLs lists the locks of the overlay. d is how long ctx lasts; 0: without end.
func (a *app) lockLs(ctx context.Context, daemon *api.Client, prefix string, limit int, d time.Duration) error {
	var all []lockservice.Info
	silent, unsure, cut := 0, 0, false
	err := daemon.Locks().List(ctx, prefix, func(p lockservice.ListPage) error {
		if p.Err != nil {
			silent++
			a.note(fmt.Sprintf("group %s does not tell of its locks: %s", p.Group, oneLine(p.Err)))
		}
		if p.Unsure {
			if unsure++; unsure == 1 {
				a.note(fmt.Sprintf("most voters of group %s have lost what they knew, as when the power fails; locks that are held since before may be missing, and nobody gets any until their leases are over", p.Group))
			}
		}
		for _, i := range p.Locks {
			if cut = limit > 0 && len(all) == limit; cut {
				return errEnough
			}
			if all = append(all, i); a.format == formatJSONL {
				if err := a.json(listedLockOf(i), ""); err != nil {
					return err
				}
				if limit == 0 {
					all = all[:0] // it is not needed any more
				}
			}
		}
		return nil
	})
	late := errors.Is(err, context.DeadlineExceeded)
	switch {
	case errors.Is(err, errEnough), late:
	case errors.Is(err, lockservice.ErrNoQuorum):
		return exitf(exitFailure, "lock ls: the root group does not answer, and nobody else knows which groups there are; latchkey group info root tells who of it is missing")
	case err != nil:
		return err
	}
	if a.format != formatJSONL {
		slices.SortFunc(all, func(x, y lockservice.Info) int { return strings.Compare(x.Name, y.Name) })
		partly := cut || late || silent > 0 || unsure > 0
		if err := a.value(map[string]any{"locks": locksOf(all), "incomplete": partly}, func(w io.Writer) { writeLocks(w, all, prefix, partly) }); err != nil {
			return err
		}
	}
	switch {
	case cut:
		a.note(fmt.Sprintf("there are more than %d; name the beginning of those you look for, or see --limit", limit))
	case late:
		return exitf(exitFailure, "lock ls: not all groups of the overlay told of their locks within %v, and those of the others are missing (see --timeout)", d)
	case silent > 0:
		return exitf(exitFailure, "lock ls: %d of the groups of the overlay gave no answer, and their locks are missing", silent)
	}
	return nil
}

func locksOf(all []lockservice.Info) []any {
	out := make([]any, len(all))
	for n, i := range all {
		out[n] = listedLockOf(i)
	}
	return out
}

// writeLocks writes a table. partly says that not all groups have told of theirs.
func writeLocks(w io.Writer, all []lockservice.Info, prefix string, partly bool) {
	if len(all) == 0 {
		of, among := "a lock", ""
		if prefix != "" {
			of = fmt.Sprintf("a lock that begins with %q", prefix)
		}
		if partly {
			among = ", in the groups that answered"
		}
		fmt.Fprintf(w, "nobody holds or waits for %s%s\n", of, among)
		return
	}
	fmt.Fprintln(w, "NAME\tTOKEN\tFREE IN\tWAITING\tSTATE\tHOLDER")
	for _, i := range all {
		token, left, holder := "-", "-", "-"
		if i.Held {
			token, left, holder = i.Token.String(), i.LeaseLeft.Round(time.Second/10).String(), i.Holder.String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\n", inLine(i.Name), token, left, i.Waiting, stateOf(i), holder)
	}
}

// lockLsHere lists the locks that are held through the daemon.
func (a *app) lockLsHere(ctx context.Context, daemon *api.Client) error {
	locks, err := daemon.HeldLocks(ctx)
	if err != nil {
		return err
	}
	all := make([]heldLock, len(locks))
	for i, l := range locks {
		all[i] = heldLock{l.Name, uint64(l.Token), l.Holder, l.TTL.Milliseconds(), l.Shared, l.Permits}
	}
	return a.list("locks", anys(all), func(w io.Writer) {
		if len(all) == 0 {
			fmt.Fprintln(w, "no locks are held through this daemon")
			return
		}
		fmt.Fprintln(w, "NAME\tTOKEN\tTTL\tAS\tHOLDER")
		for i, l := range all {
			as := "alone"
			switch {
			case l.Permits > 0:
				as = fmt.Sprintf("1 of %d", l.Permits)
			case l.Shared:
				as = "shared"
			}
			fmt.Fprintf(w, "%s\t%d\t%v\t%s\t%s\n", l.Name, l.Token, locks[i].TTL, as, l.Holder)
		}
	})
}

type partyInfo struct {
	Session string `json:"session"`
	Peer    string `json:"peer"`
}

type waiterInfo struct {
	partyInfo
	TTL    int64 `json:"ttl_ms"`
	Shared bool  `json:"shared"`
}

type holderInfo struct {
	partyInfo
	Token     uint64 `json:"token,string"`
	TTL       int64  `json:"ttl_ms"`
	LeaseLeft int64  `json:"lease_left_ms"`
	Confirmed bool   `json:"confirmed"`
}

type brokenInfo struct {
	Token   uint64    `json:"token,string"`
	Holder  partyInfo `json:"holder"`
	Holders int       `json:"holders"`
	By      partyInfo `json:"by"`
	At      time.Time `json:"at"`
}

type lockInfo struct {
	Name      string       `json:"name"`
	Held      bool         `json:"held"`
	Holder    *partyInfo   `json:"holder"` // null when free; the first where several hold it
	Token     uint64       `json:"token,string"`
	TTL       int64        `json:"ttl_ms"`
	LeaseLeft int64        `json:"lease_left_ms"`
	Confirmed bool         `json:"confirmed"`
	Value     string       `json:"value"`
	Shared    bool         `json:"shared"`
	Permits   int          `json:"permits"` // of a semaphore; 0: it is none
	Holding   int          `json:"holding"`
	Holders   []holderInfo `json:"holders"` // all, also where there is one only
	DelayLeft int64        `json:"delay_left_ms"`
	Waiters   []waiterInfo `json:"waiters"`
	Waiting   int          `json:"waiting"`
	Broken    []brokenInfo `json:"broken"`
	Protocol  string       `json:"protocol"`   // that locks the name now: sigma or group; auto where the daemon does not say
	TakenOver bool         `json:"taken_over"` // by group, from sigma, and it is not yet known who may hold it
	Replicas  []string     `json:"replicas,omitempty"`
}

// listedLock is a lockInfo without what lists do not tell: an empty list beside a number would contradict it.
type listedLock struct {
	lockInfo
	Holders *struct{} `json:"holders,omitempty"`
	Waiters *struct{} `json:"waiters,omitempty"`
	Broken  *struct{} `json:"broken,omitempty"`
}

func listedLockOf(i lockservice.Info) listedLock { return listedLock{lockInfo: lockInfoOf(i)} }

func lockInfoOf(i lockservice.Info) lockInfo {
	l := lockInfo{
		Name: i.Name, Held: i.Held, Token: uint64(i.Token), TTL: i.TTL.Milliseconds(), LeaseLeft: i.LeaseLeft.Milliseconds(),
		Confirmed: i.Confirmed, Value: i.Value, Shared: i.Shared, Permits: i.Permits, Holding: i.Holding, DelayLeft: i.DelayLeft.Milliseconds(),
		Holders: []holderInfo{}, Waiters: []waiterInfo{}, Waiting: i.Waiting, Broken: []brokenInfo{},
		Protocol: i.Protocol.String(), TakenOver: i.TakenOver,
	}
	if i.Held {
		l.Holder = &partyInfo{i.Holder.Session, i.Holder.Peer}
	}
	for _, h := range i.Holders {
		l.Holders = append(l.Holders, holderInfo{
			partyInfo{h.Session, h.Peer}, uint64(h.Token), h.TTL.Milliseconds(), h.LeaseLeft.Milliseconds(), h.Confirmed,
		})
	}
	if i.Held && len(i.Holders) == 0 { // a lock that is not shared
		l.Holders = append(l.Holders, holderInfo{*l.Holder, l.Token, l.TTL, l.LeaseLeft, l.Confirmed})
	}
	for _, w := range i.Waiters {
		l.Waiters = append(l.Waiters, waiterInfo{partyInfo{w.Session, w.Peer}, w.TTL.Milliseconds(), w.Shared})
	}
	for _, b := range i.Breaks {
		l.Broken = append(l.Broken, brokenInfo{
			uint64(b.Token), partyInfo{b.Holder.Session, b.Holder.Peer}, b.Holders, partyInfo{b.By.Session, b.By.Peer}, b.At,
		})
	}
	return l
}

// stateOf says in words how a lock stands.
func stateOf(i lockservice.Info) string {
	switch {
	case i.Permits > 0:
		return fmt.Sprintf("semaphore, %d of %d held", i.Holding, i.Permits)
	case !i.Held && i.TakenOver:
		return "handed over from protocol sigma to group"
	case !i.Held && i.DelayLeft > 0:
		return fmt.Sprintf("granted to nobody for %v", i.DelayLeft.Round(time.Millisecond))
	case !i.Held && i.Waiting > 0:
		return "being granted"
	case !i.Held:
		return "free"
	case i.Shared:
		return fmt.Sprintf("shared by %d", i.Holding)
	case !i.Confirmed:
		return "granted, not yet taken up"
	}
	return "held"
}

func writeLockInfo(w io.Writer, i lockservice.Info) {
	fmt.Fprintf(w, "lock\t%s\nstate\t%s\n", i.Name, stateOf(i))
	if i.Protocol != lockservice.ProtocolAuto { // the daemon says
		fmt.Fprintf(w, "protocol\t%v\n", i.Protocol)
	}
	switch {
	case len(i.Holders) > 0:
		for _, h := range i.Holders {
			fmt.Fprintf(w, "holder\t%s, token %v, lease %v, free in %v unless renewed\n", h.Party, h.Token, h.TTL, h.LeaseLeft.Round(time.Millisecond))
		}
		if more := i.Holding - len(i.Holders); more > 0 {
			fmt.Fprintf(w, "holders\t%d more\n", more)
		}
	case i.Held:
		fmt.Fprintf(w, "holder\t%s\ntoken\t%v\nlease\t%v, free in %v unless renewed\n", i.Holder, i.Token, i.TTL, i.LeaseLeft.Round(time.Millisecond))
	}
	if i.Value != "" {
		fmt.Fprintf(w, "value\t%s\n", inLine(i.Value))
	}
	for n, p := range i.Waiters {
		fmt.Fprintf(w, "waiter %d\t%s\n", n+1, p.Party)
	}
	if more := i.Waiting - len(i.Waiters); more > 0 {
		fmt.Fprintf(w, "waiters\t%d more\n", more)
	}
	for _, b := range i.Breaks {
		fmt.Fprintf(w, "broken\t%s, token %v of %s, by %s\n", b.At.Format(time.RFC3339), b.Token, b.Holder, b.By)
	}
}
