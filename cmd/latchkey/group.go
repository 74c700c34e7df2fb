package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"latchkey/dht/keyspace"
	"latchkey/lockservice"
	"latchkey/node"
	"latchkey/node/api"
	"latchkey/replicagroup/placement"
)

func groupVerb(a *app) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "group",
		Short: "look at the replica groups of the overlay, bring back one that is lost, give a lock one of its own",
		Long: `Each lock lives in the replica group of its prefix, the first bits of its hash. A group serves while a majority of its voters
answers. One that has lost its majority stays down, and says so, until its members are back or somebody revives it.`,
		Example: `  latchkey group ls
  latchkey group info nightly
  latchkey group revive a3/8
  latchkey group own nightly
  latchkey group graves`,
	})
	c.AddCommand(groupLsVerb(a), groupInfoVerb(a), groupReviveVerb(a), groupOwnVerb(a), groupGravesVerb(a))
	return c
}

func groupLsVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "list the groups that this peer takes part in, as it knows them",
		Long: `ls lists the groups of which this peer has a replica; /0 is the root, and the group of one lock alone goes by that
lock's name. The lag is in entries of the group's log: at the leader
what its slowest voter lacks, elsewhere what has not been executed here yet.`,
		Example: `  latchkey group ls
  latchkey group ls -o json | jq '.groups[] | select(.leader == "")'`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.call(c, func(ctx context.Context, daemon *api.Client) error {
				groups, err := daemon.Groups(ctx)
				if err != nil {
					return err
				}
				return a.list("groups", anys(groups), func(w io.Writer) { printGroups(w, groups, time.Now()) })
			})
		},
	}
}

func printGroups(w io.Writer, groups []api.HostedGroup, now time.Time) {
	if len(groups) == 0 {
		fmt.Fprintln(w, "no groups")
		return
	}
	fmt.Fprintf(w, "PREFIX\tGEN\tVIEW\tROLE\tVOTERS\tLAG\tSTATE\n")
	for _, g := range groups {
		name := g.Prefix
		if g.Key != "" {
			name = plain(g.Key)
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%d\t%d\t%s\n", name, generation(g.Generation), g.View, g.Role, len(g.Voters), g.Lag, hostedState(g, now))
	}
}

// generation prints that of a group; the overlay's own only once there was more than one.
func generation(gen uint64) string {
	if gen>>32 == 0 {
		return fmt.Sprint(gen)
	}
	return fmt.Sprintf("%d.%d", gen>>32, uint32(gen))
}

func hostedState(g api.HostedGroup, now time.Time) string {
	switch {
	case g.Sealed:
		return "ends: its lock went back to its prefix"
	case !g.Leaderless.IsZero():
		return "no leader for " + ago(now, g.Leaderless)
	case g.Role == "leaving":
		return "leaving"
	case g.Unleased:
		return "waits for a lease of the root"
	case g.Quiesced:
		return "asleep"
	}
	return "serving"
}

// downLine tells in the status of a group without a leader, and what to do.
func downLine(g api.HostedGroup, now time.Time) string {
	return fmt.Sprintf("%s generation %s: no leader for %s, so no majority answers; latchkey group info %s tells who is missing",
		g.Prefix, generation(g.Generation), ago(now, g.Leaderless), g.Prefix)
}

// groupInfoTimeout is how long group info waits when nobody set --timeout: members that are silent take some seconds.
const groupInfoTimeout = 15 * time.Second

// callLong is call, with another time-out unless somebody has set one.
func (a *app) callLong(c *cobra.Command, d time.Duration, fn func(ctx context.Context, daemon *api.Client) error) error {
	if !a.timeoutSet {
		a.timeout = d
	}
	return a.call(c, fn)
}

func groupInfoVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "info PREFIX|NAME",
		Short: "tell how a group stands: who of its members answers",
		Long: `info tells how the group of a prefix, or of the lock of this name, stands: it asks the root who the members are, and each of them
whether it is there. "root" is the root group itself.`,
		Example: `  latchkey group info a3/8
  latchkey group info nightly
  latchkey group info root`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.callLong(c, groupInfoTimeout, func(ctx context.Context, daemon *api.Client) error {
				g, err := daemon.Group(ctx, args[0])
				if err != nil {
					return rootFirst(err)
				}
				return a.value(g, func(w io.Writer) { printStanding(w, g) })
			})
		},
	}
}

func printStanding(w io.Writer, g api.GroupStanding) {
	fmt.Fprintf(w, "group\t%s, generation %s, view %d\n", g.Prefix, generation(g.Generation), g.View)
	if g.Key != "" {
		fmt.Fprintf(w, "lock\t%s, which has this group for itself\n", plain(g.Key))
	}
	fmt.Fprintf(w, "state\t%s: %d of %d voters answer\n", g.State, g.Answering, g.Voters)
	if g.Generation > 0 && (g.Parent == "" || g.Former > 0) {
		fmt.Fprintf(w, "revived\tafter generation %s was lost\n", generation(g.Former))
	}
	for _, m := range g.Members {
		fmt.Fprintf(w, "%s\t%s, %s\n", m.Role, m.Peer, m.State)
	}
	if !g.Directory && g.Prefix != rootPrefix {
		fmt.Fprintf(w, "%s\tdoes not answer; this is what the peer knew\n", parentOf(g))
	}
	switch {
	case g.State != api.GroupDown || g.Prefix == rootPrefix:
	case g.Directory:
		fmt.Fprintf(w, "to do\tstart the members that do not answer; if too many are gone for good: latchkey group revive %s\n", nameOf(g))
	case g.Parent != "":
		fmt.Fprintf(w, "to do\tstart the members that do not answer; if too many are gone for good, the group of prefix %s must come back first, "+
			"since it alone can revive the lock's: latchkey group info %s\n", g.Parent, g.Parent)
	default: // a revival would only wait for the root
		fmt.Fprintf(w, "to do\tstart the members that do not answer; if too many are gone for good, the root must come back first, "+
			"since it alone can revive a group: latchkey group info root\n")
	}
}

// parentOf names the group that can revive a group.
func parentOf(g api.GroupStanding) string {
	if g.Parent != "" {
		return g.Parent
	}
	return rootName
}

// nameOf is what people call a group: a lock's own group by the lock, others by their prefix.
func nameOf(g api.GroupStanding) string {
	if g.Key != "" {
		return plain(g.Key)
	}
	return g.Prefix
}

// rootFirst adds to the error of a question that the root did not answer what to do.
func rootFirst(err error) error {
	if errors.Is(err, lockservice.ErrNoQuorum) {
		return fmt.Errorf("%w; the root must come back first: latchkey group info root tells who of it is missing", err)
	}
	return err
}

// rootPrefix is the prefix of the root group.
const rootPrefix = "/0"

// reviveTimeout is how long revive waits when nobody set --timeout: the roll, a look-up, and the start of the new members.
const reviveTimeout = time.Minute

func groupReviveVerb(a *app) *cobra.Command {
	var o reviveOptions
	c := &cobra.Command{
		Use:   "revive PREFIX|NAME|root",
		Short: "bring back a group that has lost its majority for good",
		Long: `revive has the root make the next generation of a group, of peers that are there now. It is for a group whose majority is gone for
good: members that are merely down come back with all they knew, and should be started instead.

What the old generation knew is lost. Its locks count as released. Tokens go on rising: those of the new generation are above
all earlier ones. No lock is granted before every lease of the old generation is over, which takes a little more than
the overlay's longest TTL. Old members that come back put what they have aside, and stop.

It is refused while a majority of the old voters answers, unless forced. A majority that was merely cut off from the root
cannot be told from one that is lost: it goes on serving its own side until it hears of the new generation, and there
only the token protects what the locks are for.

Where the overlay has regenesis lease, the root does all this by itself. A revival waits there until the old generation's lease
is over, which takes some two minutes for a group that is alive (--force --timeout 3m); it may be said again.

A lock that has a group of its own is named instead of a prefix; the group of its prefix revives that one.

You are asked to type the prefix or the name, unless --yes is given.

The root group has no parent that could revive it. "revive root" makes this daemon's peer the founder of another root, which
needs the overlay's root key: root.key, from the directory where the overlay was founded or from a copy of it. Start the
root's members that can be started first, even if they are too few. Of those that answer, the new root takes over what the one
knows that has followed the root the furthest: which prefixes have groups, where, and of which generation. Groups that
have a majority tell it of themselves and lose nothing, also those that nobody knew; for as long as the overlay's lease time (two
minutes by default) it makes no others, and with --regenesis lease no group answers. A group it knows stays, up or down, until it is
revived; one that nobody knew, that comes later than that, and whose prefix has got a new group meanwhile, is over.
From then on the new root grows as the first one did.`,
		Example: `  latchkey group info a3/8
  latchkey group revive a3/8
  latchkey group revive a3/8 --yes -o json
  latchkey group revive root --root-key /media/usb/root.key`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.callLong(c, reviveTimeout, func(ctx context.Context, daemon *api.Client) error {
				return a.revive(ctx, c.InOrStdin(), daemon, args[0], o)
			})
		},
	}
	c.Flags().StringVar(&o.rootKey, "root-key", "", "of revive root: the file with the overlay's root key (default root.key in --path)")
	c.Flags().BoolVar(&o.yes, "yes", false, "do not ask")
	c.Flags().BoolVar(&o.force, "force", false, "though a majority of the voters answers: what the living group knows is lost")
	return c
}

// reviveOptions are the flags of revive.
type reviveOptions struct {
	yes, force bool
	rootKey    string
}

func (a *app) revive(ctx context.Context, in io.Reader, daemon *api.Client, prefix string, o reviveOptions) error {
	g, err := daemon.Group(ctx, prefix)
	if _, malformed := keyspace.ParsePrefix(prefix); malformed != nil && errors.Is(err, api.ErrNoGroup) {
		return usagef("group revive: %.80q: neither root nor a prefix like a3/8, as \"latchkey group ls\" prints them, nor the name of a lock that was ever taken", prefix)
	}
	if err != nil {
		return rootFirst(err)
	}
	switch {
	case g.Prefix == rootPrefix && g.Majority() && !o.force:
		return exitf(exitFailure, "group revive: the root is not lost: %d of its %d voters answer (%s); nothing was changed. --force gives the overlay another one all the same",
			g.Answering, g.Voters, strings.Join(votersThat(g, true), ", "))
	case g.Prefix == rootPrefix:
		return a.reviveRoot(ctx, in, daemon, g, o)
	case g.Prefix != prefix && g.Key == "":
		return usagef("group revive: %s is a lock's name; its group is that of prefix %s, which is shared with other locks: latchkey group revive %s",
			prefix, g.Prefix, g.Prefix)
	case g.Majority() && !o.force:
		return exitf(exitFailure, "group revive: group %s is not lost: %d of its %d voters answer (%s); nothing was changed. --force revives it all the same, and loses what it knows",
			prefix, g.Answering, g.Voters, strings.Join(votersThat(g, true), ", "))
	}
	if !g.Directory && g.Parent == "" {
		if err := rootThere(ctx, daemon); err != nil {
			return err
		}
	}
	if !o.yes {
		if err := a.confirmRevive(ctx, in, g); err != nil {
			return err
		}
	}
	v, err := daemon.Revive(hear(ctx), g.Prefix, g.Generation, o.force)
	if errors.Is(err, api.ErrAlive) {
		return fmt.Errorf("%w; nothing was changed. --force revives it all the same, and loses what it knows", err)
	}
	if err != nil {
		return rootFirst(err)
	}
	return a.value(v, func(w io.Writer) {
		fmt.Fprintf(w, "revived\t%s, generation %s\n", v.Prefix, generation(v.Generation))
		for _, m := range v.Members {
			fmt.Fprintf(w, "voter\t%s\n", m)
		}
		fmt.Fprintf(w, "locks\tgranted in about %v, when every lease of generation %s is over\n", v.Embargo.Round(time.Second), generation(g.Generation))
		fmt.Fprintf(w, "note\ta majority of the old generation that was merely cut off goes on serving its own side; there only the token protects\n")
	})
}

// rootThere refuses a revival when the root, which has not answered, has no majority that could: nobody else can revive a group, and
// to wait is in vain. A root that is merely slow, or is choosing a leader, is waited for.
func rootThere(ctx context.Context, daemon *api.Client) error {
	root, err := daemon.Group(ctx, rootName)
	if err != nil || root.Majority() {
		return err
	}
	return exitf(exitFailure, "group revive: the root, which alone can revive a group, does not answer: %d of its %d voters are there (missing: %s); nothing was changed. "+
		"The root must come back first: start those that are missing; if they are gone for good: latchkey group revive root", root.Answering, root.Voters, missingOf(root))
}

// hear returns a context that gives the daemon a little less time than ctx has, so that what it has to say at the end is heard.
func hear(ctx context.Context) context.Context {
	end, ok := ctx.Deadline()
	if !ok {
		return ctx
	}
	return api.LimitDaemon(ctx, end.Add(-spare(time.Until(end))))
}

// votersThat returns the voters that answer, or those that do not. On learners nothing depends.
func votersThat(g api.GroupStanding, answer bool) []string {
	var ids []string
	for _, m := range g.Members {
		if m.Role != "learner" && (m.State == api.MemberAnswers) == answer {
			ids = append(ids, m.Peer)
		}
	}
	return ids
}

// confirmRevive tells what a revival means and has the person type the prefix.
func (a *app) confirmRevive(ctx context.Context, in io.Reader, g api.GroupStanding) error {
	kind, word := "prefix", g.Prefix
	if g.Key != "" {
		kind, word = "name", g.Key
	}
	fmt.Fprintf(a.err, `Group %s has %d of %d voters that answer. Missing: %s.
The next generation begins without what generation %s knew: its locks count as released, tokens go on rising.
If a majority was merely cut off, it goes on serving its own side, where only the token protects.
Type the %s to go on: `, nameOf(g), g.Answering, g.Voters, missingOf(g), generation(g.Generation), kind)
	return a.typed(ctx, in, "group revive", word)
}

// missingOf names the members that do not answer.
func missingOf(g api.GroupStanding) string {
	if ids := votersThat(g, false); len(ids) > 0 {
		return plain(strings.Join(ids, ", "))
	}
	return "none"
}

// typed waits until the person has typed a word, which verb asked for.
func (a *app) typed(ctx context.Context, in io.Reader, verb, word string) error {
	typed := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(io.LimitReader(in, 1<<10)).ReadString('\n')
		typed <- strings.TrimSpace(line)
	}()
	select {
	case line := <-typed:
		if line == word {
			return nil
		}
		fmt.Fprintln(a.err)
		return exitf(exitFailure, "%s: not confirmed, so nothing was changed: type %s, or give --yes", verb, word)
	case <-ctx.Done():
		fmt.Fprintln(a.err)
		return exitf(exitFailure, "%s: nobody has confirmed it in time, so nothing was changed", verb)
	}
}

// reviveRoot makes the daemon's peer the founder of another root of the overlay.
func (a *app) reviveRoot(ctx context.Context, in io.Reader, daemon *api.Client, g api.GroupStanding, o reviveOptions) error {
	file := o.rootKey
	if file == "" {
		file = node.RootKeyFile(a.path)
	}
	key, err := node.ReadRootKey(file)
	if errors.Is(err, fs.ErrNotExist) {
		return exitf(exitFailure, "group revive: there is no root key at %s, and without it this overlay cannot be given another root: its groups go on as long as their "+
			"own majorities live, but none can be made, revived or found by newcomers until %d of the root's %d voters are back (missing: %s). "+
			"The key is in the directory where the overlay was founded: name it, or a copy, with --root-key. If it is gone too: latchkey init founds another overlay",
			file, g.Voters/2+1, g.Voters, missingOf(g))
	}
	if err != nil {
		return err
	}
	dir, err := node.PeekDir(a.path)
	if err != nil {
		return err
	}
	p, err := daemon.ProposeRoot(ctx)
	if err != nil {
		return err
	}
	if p.Volatile && !o.force {
		return exitf(exitFailure, "group revive: this daemon's store is in memory, and the new root would end with it: run it without --volatile, or revive the root on another peer")
	}
	proposal, err := placement.DecodeProposal(dir.Genesis, p.Document)
	if err != nil {
		return fmt.Errorf("group revive: the daemon at %s is not of the overlay in %s: %w", a.socket(), a.path, err)
	}
	doc, err := proposal.Sign(dir.Genesis, key)
	if err != nil {
		return fmt.Errorf("group revive: %s: %w", file, err)
	}
	if !o.yes {
		fmt.Fprintf(a.err, `The root has %d of %d voters that answer. Missing: %s.
This peer founds another root, of generation %d of the overlay. %s
Groups that have a majority go on and lose nothing. If the old root was merely cut off, its members
stop as soon as they hear of the new one. There is no way back.
Type root to go on: `, g.Answering, g.Voters, missingOf(g), p.Generation, beginsWith(p))
		if err := a.typed(ctx, in, "group revive", rootName); err != nil {
			return err
		}
	}
	v, err := daemon.Reseed(ctx, doc, o.force)
	if err != nil {
		return err
	}
	return a.value(reseeded{v, p.Survivor, p.Groups}, func(w io.Writer) {
		fmt.Fprintf(w, "root\tgeneration %d of the overlay, founded by %s\n", v.Generation, v.Founder)
		fmt.Fprintf(w, "begins\t%s\n", strings.TrimPrefix(beginsWith(p), "It begins "))
		fmt.Fprintf(w, "groups\tthat have a majority tell it of themselves now; others are made in about %v\n", v.Quarantine.Round(time.Second))
		fmt.Fprintf(w, "next\tlatchkey group info root; it grows as peers are there\n")
	})
}

// reseeded is what "revive root" prints.
type reseeded struct {
	api.Reseeded
	Survivor string `json:"survivor,omitempty"` // as of [api.RootProposal]
	Groups   int    `json:"groups"`
}

// beginsWith says what another root begins with.
func beginsWith(p api.RootProposal) string {
	if p.Survivor == "" {
		return "It begins with nothing, since no member of the old root answers; a group that is down for longer than survivors are waited for " +
			"may be made anew without what it knew."
	}
	return fmt.Sprintf("It begins with the %s that %s knows of; one that is down is not made anew.", plural(p.Groups, "group"), p.Survivor)
}

// rootName is how people name the root group.
const rootName = "root"
