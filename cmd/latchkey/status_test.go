package main

import (
	"encoding/json"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"latchkey/node/api"
)

func TestStatusOfADaemon(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	if p := at(t, dir, "init", "--profile", "test", "--name", "farm"); p.code != 0 {
		t.Fatal(p.err.String())
	}
	d, _ := startDaemon(t, dir, nil)
	defer d.wait()
	defer at(t, dir, "shutdown")
	if p := at(t, dir, "status"); p.code != 0 || !strings.Contains(p.out.String(), "turned away") || !strings.Contains(p.out.String(), "farm") {
		t.Errorf("status: exit %d, %s %s", p.code, p.out.String(), p.err.String())
	}
	p := at(t, dir, "status", "-o", "json")
	var s map[string]any
	if err := json.Unmarshal(p.out.Bytes(), &s); err != nil || p.code != 0 {
		t.Fatalf("status -o json: exit %d, %v: %s", p.code, err, p.out.String())
	}
	if s["mode"] != "server" || s["hosting"] != true || s["groups"] != 1.0 || s["peers_known"] != 0.0 || s["bootstrap"] == nil || s["refused"] == nil || s["alarms"] == nil {
		t.Errorf("%v", s)
	}
	expect(t, at(t, dir, "status", "now"), exitUsage, "status")
}

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
		Refused:  []api.Refused{{Reason: "handshake", Count: 7}, {Reason: "other overlay", Count: 1}},
		Alarms:   []api.Alarm{{Peer: "12D3KooWone", Store: "aa", At: now.Add(-time.Minute), Refused: true, Text: "store aa of peer 12D3KooWone runs in two places: stop one"}},
		Revision: "abcdef012345", DurableObjects: 3, DurableHits: 640, DurableMisses: 7, DurableRefused: 2,
		Down: []api.HostedGroup{{Prefix: "a3/8", Generation: 1<<32 | 2, Leaderless: now.Add(-time.Minute)}},
	}
	const want = `peer             12D3KooWself
overlay          0badcafe work
up               1m30s, version v1, revision abcdef012345
mode             auto, now a client
reachability     private
peers            2 connected, 5 known
groups           4 hosted, 1 of them without a leader
down             a3/8 generation 1.2: no leader for 1m0s, so no majority answers; latchkey group info a3/8 tells who is missing
durable objects  3 cached here; about 640 reads asked nobody, 7 asked a group, 2 of them since the copy here might have been old
bootstrap        12D3KooWone connected
bootstrap        12D3KooWtwo failed 3s ago: connection refused
bootstrap        12D3KooWsix reached 1h0m0s ago, away now
bootstrap        12D3KooWten not tried yet
turned away      7 handshake, 1 other overlay
ALARM            1m0s ago: store aa of peer 12D3KooWone runs in two places: stop one
`
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	printStatus(w, s, now)
	w.Flush()
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}
