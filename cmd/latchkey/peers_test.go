package main

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestPeersPingAndLogLevel(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, nil)
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"peers"}, "12D3KooWone  connected"},
		{[]string{"peers", "connect", "12D3KooWtwo"}, "12D3KooWtwo  connected  /ip4"},
		{[]string{"peers", "connect", "12D3KooWone"}, "connected already"},
		{[]string{"peers", "disconnect", "12D3KooWone"}, "2 connections ended"},
		{[]string{"peers", "addrs"}, "/ip4/127.0.0.1/tcp/2/p2p/12D3KooWone\n"},
		{[]string{"peers", "addrs", "12D3KooWone"}, "/ip4/127.0.0.1/tcp/2/p2p/12D3KooWone\n"},
		{[]string{"ping", "-n", "1", "12D3KooWone"}, "1 answers, least 1.5ms"},
		{[]string{"log", "level"}, "latchkey/api"},
		{[]string{"log", "level", "latchkey/api", "warn"}, "latchkey/api  warn"},
	} {
		if p := d.run(c.args...); p.code != 0 || !strings.Contains(p.out.String(), c.says) || p.err.Len() > 0 {
			t.Errorf("%v: exit %d, %q %q; want %q", c.args, p.code, p.out.String(), p.err.String(), c.says)
		}
	}
	var v struct {
		Pings []struct {
			US int64 `json:"round_trip_us"`
		}
		Mean int64 `json:"mean_us"`
	}
	p := d.run("ping", "-n", "2", "-o", "json", "12D3KooWtwo")
	if err := json.Unmarshal(p.out.Bytes(), &v); err != nil || len(v.Pings) != 2 || v.Pings[1].US != 1500 || v.Mean != 1500 {
		t.Errorf("%v: %s", err, p.out.String())
	}
	for _, c := range []struct {
		code int
		args []string
		says string
	}{
		{exitUsage, []string{"peers", "connect"}, "usage: latchkey peers connect"},
		{exitUsage, []string{"peers", "connect", "x"}, "no such peer"},
		{exitUsage, []string{"peers", "conect", "x"}, "did you mean connect"},
		{exitFailure, []string{"peers", "connect", "12D3KooWaway"}, "not connected: nobody answers"},
		{exitUsage, []string{"peers", "disconnect", "12D3KooWtwo"}, "no such peer"},
		{exitNotFound, []string{"peers", "addrs", "x"}, "no peer"},
		{exitUsage, []string{"ping", "-n", "0", "12D3KooWone"}, "want 1 to"},
		{exitFailure, []string{"ping", "12D3KooWaway"}, "nobody answers"},
		{exitUsage, []string{"log", "level", "latchkey/api", "loud"}, "debug, info, warn, error"},
		{exitNotFound, []string{"log", "level", "nothing", "debug"}, "lists what there is"},
		{exitUsage, []string{"log", "level", "", "debug"}, "all is for all"},
		{exitUsage, []string{"log", "level", "a", "b", "c"}, "usage: latchkey log level"},
		{exitUsage, []string{"log"}, "which verb?"},
	} {
		expect(t, d.run(c.args...), c.code, c.says)
	}
}
