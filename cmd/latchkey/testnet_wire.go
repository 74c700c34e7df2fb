package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/libp2p/go-libp2p"
	"github.com/spf13/cobra"

	"latchkey/node/api"
	"latchkey/testnet/wire"
)

// wireFlag adds the hidden flag with which a testnet starts the daemons of its peers. Without it nothing of this file runs but
// this function.
func wireFlag(c *cobra.Command) *string {
	const name = "testnet-wire"
	socket := c.Flags().String(name, "", "unix socket to take a testnet's rules from, the first of them from standard input")
	_ = c.Flags().MarkHidden(name) // fails only for a flag that is not there
	return socket
}

// onWire gives a daemon's host a network that a testnet can divide and slow down: the options put the host on a wire (package
// wire) whose rules other processes of this user set at socket. The first rules are read from first, before anything is sent. The
// caller calls off when the host is closed. With no socket there are no options, and the host has its usual network.
func onWire(socket string, first io.Reader) (opts []libp2p.Option, off func() error, err error) {
	if socket == "" {
		return nil, func() error { return nil }, nil
	}
	fail := func(err error) ([]libp2p.Option, func() error, error) {
		return nil, nil, fmt.Errorf("daemon: --testnet-wire, which is for testnets: %w", err)
	}
	var rules wire.Rules
	if err := json.NewDecoder(io.LimitReader(first, rulesBytesMax)).Decode(&rules); err != nil {
		return fail(fmt.Errorf("no rules on standard input: %w", err))
	}
	w := wire.New()
	if err := w.SetRules(rules); err != nil {
		return fail(err)
	}
	l, err := api.Listen(socket)
	if err != nil {
		return fail(err)
	}
	served := make(chan error, 1)
	go func() { served <- wire.Serve(l, w) }()
	off = func() error { return errors.Join(l.Close(), <-served) }
	return []libp2p.Option{libp2p.Transport(w.Transport)}, off, nil
}

// rulesBytesMax bounds the first rules.
const rulesBytesMax = 128 << 10
