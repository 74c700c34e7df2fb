package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"latchkey/node"
	"latchkey/node/api"
	"latchkey/node/config"
	"latchkey/replicagroup/placement"
)

func initVerb(a *app) *cobra.Command {
	var o node.InitOptions
	var f int
	var regenesis, reads string
	var sigma bool
	c := &cobra.Command{
		Use:   "init",
		Short: "make a peer and a new overlay in --path",
		Long: `init makes an identity and founds a new overlay in --path. It never overwrites anything. To become a peer of an
overlay that exists, see "latchkey join".

Unless --profile says otherwise the overlay is private: swarm.key, a pre-shared key in Kubo's format, keeps out
everybody who has not got it, before any protocol is spoken. It works over TCP and WebSocket only. The profiles:
  private   a private overlay; on every interface, looking for its peers on the local network (mDNS) too
  server    as private, for a machine with a fixed address: no mDNS, more connections
  public    no key, anybody may join; TCP and QUIC, through NATs. init prints whom you then have to trust
  test      on the loopback only, with a key
  client, lowpower   host nothing, so they cannot be first: they are profiles of "latchkey join"

--regenesis says, for good, how a group that has lost most of its members for good comes back:
  manual   by "latchkey group revive". Groups go on while the overlay's root group is away
  lease    by itself, within ten minutes, without what it knew. Groups answer only while they hold a lease of the root group,
           of two minutes: if that is away for longer, no lock can be taken or kept

--reads says, for good, how a group's leader makes sure that what it reads is the newest:
  quorum   it asks the other members; reads that wait together share one round of messages
  lease    it does not need to, for a second after a majority has answered: members help elect nobody else for that long. Reads are
           then as right as the members' clocks: each must keep its rate within the overlay's drift (1 %), also while its virtual
           machine is suspended or moved. Another leader is found a second later than otherwise. Locks and tokens need no clock for that

--own-groups allows, for good, to give a much-used lock a replica group of its own ("latchkey group own"). Its price: a group that was
lost and revived grants no lock for the overlay's lease time (two minutes), not one, since such a group may have survived it. It
does not go together with regenesis lease.

The voters of a group keep the locks that one holds at a time, without its log (protocol sigma): a free lock costs one round trip to a
majority, and nobody waits for a leader that has died. Such locks outlive restarts and crashes of all daemons. A power cut of most
machines of a group at the same moment ends them: tokens still rise, and the group grants none until every lease would be over, 18 s to
72 s. --sigma=false has, for good, every lock kept in the log of its group, which is on the disk before a lock is granted.

The root of the overlay is in the directory "store" in --path when init is done: nobody but this peer has
it, so it must not be lost. Nor must root.key, of which a copy should be kept elsewhere: it is the overlay's root key, which
nobody else gets, and without which an overlay whose root is lost can never be given a new one.`,
		Example: `  latchkey init
  latchkey init --path /var/lib/latchkey --profile server --name build-farm --f 1
  latchkey init --listen /ip4/0.0.0.0/tcp/4701`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if c.Flags().Changed("f") {
				o.F = &f
			}
			switch {
			case c.Flags().Changed("depth") && (o.Depth < placement.DepthMin || o.Depth > placement.DepthMax):
				return usagef("init: --depth %d: want %d to %d", o.Depth, placement.DepthMin, placement.DepthMax)
			case o.F != nil && (f < 0 || f > placement.FMax):
				return usagef("init: --f %d: want 0 to %d", f, placement.FMax)
			}
			if c.Flags().Changed("regenesis") {
				r, err := placement.ParseRegenesis(regenesis)
				if err != nil {
					return usagef("init: --regenesis %s: want manual or lease", regenesis)
				}
				if o.OwnGroups && r == placement.Leased {
					return usagef("init: --own-groups does not go together with --regenesis lease; leave one of them out")
				}
				o.Regenesis = &r
			}
			o.NoSigma = !sigma
			var err error
			if o.LeaseReads, err = placement.ParseReads(reads); err != nil {
				return usagef("init: --reads %s: want %s or %s", reads, placement.ReadsQuorum, placement.ReadsLease)
			}
			return a.init(o)
		},
	}
	profileFlag(c, &o.Profile, "private")
	listenFlag(c, &o.Listen, "the profile's, at a port that is drawn once")
	c.Flags().StringVar(&o.Name, "name", "", `name of the overlay, for people (default "latchkey")`)
	c.Flags().IntVar(&f, "f", 0, "0 to 3: how many crashes a full group survives (default 2: groups of five, where there are five peers)")
	c.Flags().IntVar(&o.Depth, "depth", 0, fmt.Sprintf("%d to %d: 2^depth groups share the key space (default %d)",
		placement.DepthMin, placement.DepthMax, placement.DepthDefault))
	c.Flags().StringVar(&regenesis, "regenesis", "", "manual or lease: how a group that has lost most of its members for good comes back (default manual; lease if public)")
	c.Flags().BoolVar(&o.OwnGroups, "own-groups", false, "allow to give a lock a replica group of its own")
	c.Flags().StringVar(&reads, "reads", placement.ReadsQuorum, "quorum or lease: how leaders make sure that what they read is the newest")
	c.Flags().BoolVar(&sigma, "sigma", true, "have the voters of a group keep locks without its log")
	return c
}

// made is what init and join print.
type made struct {
	Path    string   `json:"path"`
	Peer    string   `json:"peer"`
	Overlay string   `json:"overlay"`
	Name    string   `json:"overlay_name"`
	Private bool     `json:"private"`
	Revives string   `json:"regenesis"`
	Reads   string   `json:"reads"`
	Own     bool     `json:"own_groups"`
	Sigma   bool     `json:"sigma"`
	Profile string   `json:"profile"`
	Listen  []string `json:"listen"`
	RootKey string   `json:"root_key,omitempty"` // file; of init only
}

func (v made) write(w io.Writer) {
	kind := "public"
	if v.Private {
		kind = "private"
	}
	own, locks := "", "group"
	if v.Own {
		own = ", own groups"
	}
	if v.Sigma {
		locks = "sigma"
	}
	fmt.Fprintf(w, "path\t%s\npeer\t%s\noverlay\t%s %s, %s, regenesis %s, reads %s, locks %s%s\nprofile\t%s\nlistens\t%s\n", v.Path, v.Peer, v.Overlay, v.Name, kind, v.Revives, v.Reads, locks, own, v.Profile, strings.Join(v.Listen, " "))
}

func (a *app) init(o node.InitOptions) error {
	if _, err := api.ParseAddr(a.socket()); err != nil && !api.IsHTTP(a.socket()) { // no daemon could run there
		return err
	}
	g, id, err := node.InitDir(a.path, o)
	if errors.Is(err, placement.ErrGenesis) || errors.Is(err, config.ErrInvalid) {
		return usagef("init: %w", err)
	} else if err != nil {
		return err
	}
	dir, err := node.PeekDir(a.path)
	if err != nil {
		return err
	}
	v := made{a.path, id.String(), g.ID().Hex(), g.Name, dir.SwarmKey != nil, g.Regenesis.String(), g.Reads(), g.OwnGroups, g.Sigma, string(dir.Config.Profile), dir.Config.Network.Listen, node.RootKeyFile(a.path)}
	if err := a.value(v, func(w io.Writer) {
		v.write(w)
		fmt.Fprintf(w, "keep\ta copy of %s elsewhere, and secret: no invitation carries it, and only with it can the overlay be given a new root if ever its root is lost\n", v.RootKey)
		fmt.Fprintf(w, "next\tlatchkey daemon%s\nothers\tlatchkey invite%s, then latchkey join on each other machine\n", a.pathFlag(), a.pathFlag())
	}); err != nil {
		return err
	}
	if !v.Private {
		fmt.Fprint(a.err, trustInPublic)
	}
	return nil
}

// trustInPublic is what everybody should know who opens an overlay to strangers.
const trustInPublic = `
This overlay is public: whoever has an invitation, or reads the overlay's id off the wire, can join it and take locks.
  - Every peer that joins is trusted not to lie. Its groups survive crashes, not lies.
  - Nothing stops somebody who makes up peer ids at will from placing them next to a key and so into its group.
  - It crosses NATs by QUIC, hole punching and relays; peers nobody can reach are clients and keep no replicas.
This first peer runs in mode server, so others must reach it. Where strangers are not welcome, use a private overlay.
`

// profileFlag adds --profile.
func profileFlag(c *cobra.Command, p *config.Profile, standard string) {
	c.Flags().StringVar((*string)(p), "profile", "", oneOfProfiles()+" (default "+standard+")")
	// Fails only for a flag that is not there.
	_ = c.RegisterFlagCompletionFunc("profile", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return profileNames(), cobra.ShellCompDirectiveNoFileComp
	})
}

func profileNames() (names []string) {
	for _, p := range config.Profiles() {
		names = append(names, string(p))
	}
	return names
}

func oneOfProfiles() string {
	names := profileNames()
	last := len(names) - 1
	return strings.Join(slices.Clone(names[:last]), ", ") + " or " + names[last]
}

// listenFlag adds --listen.
func listenFlag(c *cobra.Command, listen *[]string, standard string) {
	c.Flags().StringArrayVar(listen, "listen", nil, "multiaddr to listen at, like /ip4/0.0.0.0/tcp/4701; repeatable (default: "+standard+")")
}
