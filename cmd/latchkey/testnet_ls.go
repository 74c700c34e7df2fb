package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"latchkey/testnet"
)

func testnetLsVerb(a *app, dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "list the peers of the running testnet, and what is wrong between them",
		Long:  `ls shows each peer, the side of the partition that it is on, and how its process ended if nobody had asked it to.`,
		Example: `  latchkey testnet ls
  latchkey testnet ls -o json`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.testnet(c, *dir, func(ctx context.Context, r *testnet.Remote) error {
				st, err := r.Status(ctx)
				if err != nil {
					return err
				}
				if a.format == formatJSON {
					return a.value(st, nil)
				}
				return a.list("peers", anys(st.Peers), func(w io.Writer) {
					writePeers(w, st)
					fmt.Fprintf(w, "\n%s\n", standing(st))
				})
			})
		},
	}
}

// writePeers writes a table, with a column for what only some testnets have when this one has it.
func writePeers(w io.Writer, st testnet.Status) {
	faulty := slices.ContainsFunc(st.Peers, func(p testnet.PeerStatus) bool { return p.Fault != "" })
	head := []string{"N", "STATE"}
	if st.Partitioned {
		head = append(head, "SIDE")
	}
	if st.Mode == testnet.ModeProcess {
		head = append(head, "PID")
	}
	head = append(head, "ADDRESS", "API")
	if faulty {
		head = append(head, "ENDED BY ITSELF")
	}
	fmt.Fprintln(w, strings.Join(head, "\t"))
	for _, p := range st.Peers {
		row := []string{strconv.Itoa(p.N), state(p)}
		if st.Partitioned {
			row = append(row, strconv.Itoa(p.Side))
		}
		if st.Mode == testnet.ModeProcess {
			pid := "-"
			if p.PID != 0 {
				pid = strconv.Itoa(p.PID)
			}
			row = append(row, pid)
		}
		row = append(row, p.Addr, p.API)
		if faulty {
			row = append(row, p.Fault)
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
}

// state is one word for how a peer is.
func state(p testnet.PeerStatus) string {
	switch {
	case p.Paused:
		return "paused"
	case p.Up && p.Behind:
		return "behind"
	case p.Up:
		return "up"
	case p.PID != 0:
		return "starting"
	case p.Left:
		return "left"
	default:
		return "down"
	}
}

// standing says in one line what holds for all peers.
func standing(st testnet.Status) string {
	mode := "all in one process"
	if st.Mode == testnet.ModeProcess {
		mode = "each its own process"
	}
	s := fmt.Sprintf("%s, f = %d", mode, st.F)
	if st.Latency > 0 {
		s += fmt.Sprintf(", latency %v each way", st.Latency)
	}
	if st.Partitioned {
		s += ", partition " + sidesText(sidesOf(st))
	}
	return s
}

// sidesOf returns the peers of each side of the partition.
func sidesOf(st testnet.Status) [][]int {
	var sides [][]int
	for _, p := range st.Peers {
		for len(sides) <= p.Side {
			sides = append(sides, nil)
		}
		sides[p.Side] = append(sides[p.Side], p.N)
	}
	return slices.DeleteFunc(sides, func(s []int) bool { return len(s) == 0 })
}
