package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"latchkey/lockservice"
	"latchkey/node/api"
)

func isNotHeld(err error) bool { return errors.Is(err, lockservice.ErrNotHeld) }

func electVerb(a *app) *cobra.Command {
	var f lockFlags
	c := &cobra.Command{
		Use:                   "elect [flags] NAME [VALUE] [-- CMD ARG...]",
		DisableFlagsInUseLine: true,
		Short:                 "lead, for as long as a command runs or until interrupted",
		Long: `elect waits until this program is the leader called NAME, and leads while CMD runs. VALUE, such as an address, is told to those who
observe. Candidates lead in order of arrival.

The leader is the holder of the lock NAME and the term its fencing token, so all that "lock --help" says holds here too: CMD finds the
term in LATCHKEY_FENCE, and is stopped before anybody else can be elected. Without CMD, elect prints one line of JSON and leads until
interrupted or until its standard input closes.`,
		Example: `  latchkey elect scheduler "$(hostname):8080" -- ./schedule.sh
  latchkey observe scheduler`,
		Args: func(c *cobra.Command, args []string) error {
			_, _, _, err := electArgs(args, c.ArgsLenAtDash())
			return err
		},
		RunE: func(c *cobra.Command, args []string) error {
			name, value, argv, err := electArgs(args, c.ArgsLenAtDash())
			if err != nil {
				return err
			}
			f.waitSet, f.value = c.Flags().Changed("wait"), value
			if err := f.check(c.Flags().Changed("ttl")); err != nil {
				return err
			}
			if f.protocol == lockservice.ProtocolSigma {
				return usagef("elect: --protocol sigma: who is elected is kept in the group's log; use auto or group")
			}
			return a.lock(c.Context(), name, argv, f)
		},
	}
	f.register(c)
	return c
}

// electArgs splits the arguments of elect. dash is how many came before the first --, or -1.
func electArgs(args []string, dash int) (name, value string, argv []string, err error) {
	words := args
	if dash >= 0 {
		words, argv = args[:dash], args[dash:]
	}
	switch {
	case len(words) == 0 || len(words) > 2:
		return "", "", nil, usagef("elect: usage: latchkey elect NAME [VALUE] [-- CMD ARG...]")
	case dash >= 0 && len(argv) == 0:
		return "", "", nil, usagef("elect: there is no command after --; leave the -- out to lead without one")
	case len(words) == 2:
		value = words[1]
	}
	if len(value) > lockservice.ValueBytesMax {
		return "", "", nil, usagef("elect: the value has %d bytes and %d are allowed", len(value), lockservice.ValueBytesMax)
	}
	return words[0], value, argv, nil
}

type leaderInfo struct {
	Name    string     `json:"name"`
	Elected bool       `json:"elected"`
	Value   string     `json:"value"`
	Term    uint64     `json:"term,string"`
	Leader  *partyInfo `json:"leader"` // null while there is none
}

func observeVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "observe NAME",
		Short: "tell who leads, now and at every change",
		Long: `observe prints who is the leader called NAME, at once and at every change, until interrupted. It is told of changes
by the lock's voters, or asks every half second where they do not tell. What it prints may be over when it is read: a leader's term, not
an observer, says whose word counts.`,
		Example: `  latchkey observe scheduler
  latchkey observe scheduler -o jsonl | jq -r .value`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.follow(c.Context(), func(ctx context.Context, daemon *api.Client) error {
				leaders, err := daemon.Locks().Observe(ctx, args[0])
				if err != nil {
					return err
				}
				for l := range leaders {
					if l.Err != nil {
						a.note(oneLine(l.Err))
						continue
					}
					info, line := leaderInfo{Name: args[0], Elected: l.Elected, Value: l.Value, Term: uint64(l.Term)}, "nobody leads"
					if l.Elected {
						info.Leader = &partyInfo{l.Holder.Session, l.Holder.Peer}
						line = fmt.Sprintf("term %v  %s  %s", l.Term, inLine(l.Value), l.Holder)
					}
					if err := a.event(info, time.Now().Format(time.TimeOnly)+"  "+line); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}
