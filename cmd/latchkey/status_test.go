package main

import (
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"latchkey/node/api"
)

func TestStatusInWords(t *testing.T) {
	now := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	s := api.Status{
		Peer: "12D3KooWself", Overlay: "0badcafe", OverlayName: "work", Version: "v1", Started: now.Add(-90 * time.Second),
		Mode: "auto", Reachability: "private", PeersConnected: 2, PeersKnown: 5, Groups: 4, GroupsLeaderless: 1,
		Bootstrap: []api.BootstrapPeer{
			{Peer: "12D3KooWone", Connected: true, Tried: now},
			{Peer: "12D3KooWtwo", Tried: now.Add(-3 * time.Second), Error: "connection refused"},
			{Peer: "12D3KooWsix", Tried: now.Add(-time.Hour)},
			{Peer: "12D3KooWten"},
		},
		Refused: []api.Refused{{Reason: "handshake", Count: 7}, {Reason: "other overlay", Count: 1}},
	}
	const want = `peer          12D3KooWself
overlay       0badcafe work
up            1m30s, version v1
mode          auto, now a client
reachability  private
peers         2 connected, 5 known
groups        4 hosted, 1 of them without a leader
bootstrap     12D3KooWone connected
bootstrap     12D3KooWtwo failed 3s ago: connection refused
bootstrap     12D3KooWsix reached 1h0m0s ago, away now
bootstrap     12D3KooWten not tried yet
turned away   7 handshake, 1 other overlay
`
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	printStatus(w, s, now)
	w.Flush()
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}
