package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"latchkey/node"
	"latchkey/replicagroup/placement"
)

func initVerb(a *app) *cobra.Command {
	var o node.InitOptions
	var f int
	c := &cobra.Command{
		Use:   "init",
		Short: "make a peer and a new overlay in --path",
		Long: `init makes an identity and founds a new overlay in --path. It never overwrites anything.

This version keeps replicas in memory: the overlay lives as long as this first peer's daemon does.`,
		Example: `  latchkey init
  latchkey init --path /var/lib/latchkey --name build-farm --f 1`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if c.Flags().Changed("f") {
				o.F = &f
			}
			if c.Flags().Changed("depth") && o.Depth <= 0 {
				return usagef("init: --depth %d: it must be positive", o.Depth)
			}
			g, id, err := node.InitDir(a.path, o)
			if errors.Is(err, placement.ErrGenesis) {
				return usagef("init: %w", err)
			}
			if err != nil {
				return err
			}
			v := struct {
				Path    string `json:"path"`
				Peer    string `json:"peer"`
				Overlay string `json:"overlay"`
				Name    string `json:"overlay_name"`
			}{a.path, id.String(), g.ID().Hex(), g.Name}
			return a.value(v, func(w io.Writer) {
				fmt.Fprintf(w, "path\t%s\npeer\t%s\noverlay\t%s %s\nnext\tlatchkey daemon%s\n", v.Path, v.Peer, v.Overlay, v.Name, a.pathFlag())
			})
		},
	}
	c.Flags().StringVar(&o.Name, "name", "", `name of the overlay, for people (default "latchkey")`)
	c.Flags().IntVar(&f, "f", 0, "0 to 3: how many crashes a full group survives (default 2: groups of five, where there are five peers)")
	c.Flags().IntVar(&o.Depth, "depth", 0, "1 to 12: 2^depth groups share the key space (default 8)")
	return c
}
