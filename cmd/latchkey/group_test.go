package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"latchkey/node/api"
)

func TestGroupLsAndInfo(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, nil)
	p := d.run("group", "ls", "-o", "json")
	var ls struct{ Groups []map[string]any }
	if err := json.Unmarshal(p.out.Bytes(), &ls); err != nil || p.code != 0 || len(ls.Groups) != 3 {
		t.Fatalf("group ls -o json: exit %d, %v: %s", p.code, err, p.out.String())
	}
	if g := ls.Groups[0]; g["prefix"] != "/0" || g["lag"] != "1152921504606846976" || g["quiesced"] != true || g["leaderless"] != nil {
		t.Errorf("%v", g)
	}
	if g := ls.Groups[1]; g["generation"] != "2" || g["leader"] != "" || g["leaderless"] == nil {
		t.Errorf("%v", g)
	}
	if g := ls.Groups[2]; g["unleased"] != true || ls.Groups[0]["unleased"] != nil {
		t.Errorf("%v", g)
	}
	p = d.run("group", "info", "a3/8")
	for _, want := range []string{"a3/8, generation 2, view 7", "no majority: 1 of 3 voters answer", "12D3KooWone, does not answer", "12D3KooWtwo, has no replica",
		"after generation 1 was lost", "latchkey group revive a3/8"} {
		if p.code != 0 || !strings.Contains(p.out.String(), want) {
			t.Errorf("group info: exit %d, %s; want %q", p.code, p.out.String(), want)
		}
	}
	expect(t, d.run("group", "info", "77/8"), exitNotFound, "77/8")
	expect(t, d.run("group", "info"), exitUsage, "usage: latchkey group info PREFIX|NAME")
	expect(t, d.run("group"), exitUsage, "which verb?")
}

func TestGroupsInWords(t *testing.T) {
	now := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	const want = `PREFIX  GEN  VIEW  ROLE     VOTERS  LAG  STATE
/0      0    3     leader   3       5    serving
a3/8    1.0  0     voter    1       0    no leader for 12s
a4/8    1    9     learner  2       0    asleep
a5/8    0    2     leaving  1       0    leaving
a6/8    0    1     leader   1       0    waits for a lease of the root
night   1    1     leader   1       0    serving
old     2    1     voter    1       0    ends: its lock went back to its prefix
`
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	printGroups(w, []api.HostedGroup{
		{Prefix: "/0", View: 3, Role: "leader", Voters: []string{"a", "b", "c"}, Lag: 5},
		{Prefix: "a3/8", Generation: 1 << 32, Role: "voter", Voters: []string{"a"}, Quiesced: true, Leaderless: now.Add(-12 * time.Second)},
		{Prefix: "a4/8", Generation: 1, View: 9, Role: "learner", Voters: []string{"a", "b"}, Quiesced: true},
		{Prefix: "a5/8", View: 2, Role: "leaving", Voters: []string{"a"}},
		{Prefix: "a6/8", View: 1, Role: "leader", Voters: []string{"a"}, Quiesced: true, Unleased: true},
		{Prefix: "a6ff/256", Generation: 1, View: 1, Role: "leader", Voters: []string{"a"}, Key: "night"},
		{Prefix: "a700/256", Generation: 2, View: 1, Role: "voter", Voters: []string{"a"}, Key: "old", Sealed: true, Leaderless: now},
	}, now)
	w.Flush()
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

// A group is lost or not by its voters: a learner that answers is none of those that do.
func TestLearnersAreNotCountedAmongVoters(t *testing.T) {
	g := api.GroupStanding{Members: []api.GroupMember{{Peer: "a", Role: "leader", State: api.MemberAnswers}, {Peer: "b", Role: "voter", State: api.MemberSilent},
		{Peer: "c", Role: "learner", State: api.MemberAnswers}, {Peer: "d", Role: "learner", State: api.MemberWithout}}}
	if here, gone := votersThat(g, true), votersThat(g, false); !slices.Equal(here, []string{"a"}) || !slices.Equal(gone, []string{"b"}) {
		t.Errorf("here %v, gone %v", here, gone)
	}
}

func TestGroupRevive(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, nil)
	env := []string{"LATCHKEY_API=" + d.socket}

	// Nothing happens unless the prefix is typed, or --yes is given.
	for _, typed := range []string{"", "yes\n", "a3\n", "a4/8\n", strings.Repeat("a", 1<<12)} {
		p := command(t, env, "group", "revive", "a3/8")
		p.Stdin = strings.NewReader(typed)
		p.start().wait()
		if said := p.err.String(); p.code != exitFailure || p.out.Len() > 0 || !strings.Contains(said, "not confirmed, so nothing was changed") ||
			!strings.Contains(said, "12D3KooWone, 12D3KooWtwo") || !strings.Contains(said, "only the token protects") {
			t.Errorf("typed %.10q: exit %d, %s %s", typed, p.code, p.out.String(), said)
		}
	}
	p := command(t, env, "group", "revive", "a3/8")
	p.Stdin = strings.NewReader(" a3/8 \n")
	p.start().wait()
	for _, want := range []string{"a3/8, generation 3", "granted in about 1m1s", "merely cut off goes on serving its own side; there only the token protects"} {
		if p.code != 0 || !strings.Contains(p.out.String(), want) {
			t.Errorf("confirmed: exit %d, %s %s; want %q", p.code, p.out.String(), p.err.String(), want)
		}
	}
	p = d.run("group", "revive", "a3/8", "--yes", "-o", "json")
	var v map[string]any
	if err := json.Unmarshal(p.out.Bytes(), &v); err != nil || p.code != 0 || v["generation"] != "3" || v["embargo_ms"] != 61000.0 || p.err.Len() > 0 {
		t.Errorf("--yes -o json: exit %d, %v, %s %s", p.code, err, p.out.String(), p.err.String())
	}

	expect(t, d.run("group", "revive", "a4/8", "--yes"), exitFailure, "is not lost: 2 of its 3 voters answer (12D3KooWfake, 12D3KooWone); nothing was changed", "--force")
	if p := d.run("group", "revive", "a4/8", "--yes", "--force"); p.code != 0 || !strings.Contains(p.out.String(), "a4/8, generation 3") {
		t.Errorf("forced: exit %d, %s %s", p.code, p.out.String(), p.err.String())
	}
	expect(t, d.run("group", "revive", "77/8", "--yes"), exitNotFound, "77/8")
	expect(t, d.run("group", "revive", "root", "--yes", "--path", d.dir), exitFailure, "there is no root key at "+d.dir+"/root.key", "cannot be given another root",
		"until 2 of the root's 3 voters are back (missing: 12D3KooWone, 12D3KooWtwo)")
	expect(t, d.run("group", "revive", "zz/8", "--yes"), exitUsage, `"zz/8": neither root nor a prefix like a3/8`)
	expect(t, d.run("group", "revive"), exitUsage, "usage: latchkey group revive PREFIX|NAME|root")
}

// A revival that the root cannot carry out says so, however it comes out, and that the root comes first.
func TestGroupWithoutARoot(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, nil)
	for _, flag := range []string{"--yes", "--force"} { // nobody is asked for a confirmation in vain
		expect(t, d.run("group", "revive", "a5/8", flag), exitFailure, "the root, which alone can revive a group, does not answer: 1 of its 3 voters are there "+
			"(missing: 12D3KooWone, 12D3KooWtwo); nothing was changed. The root must come back first", "latchkey group revive root")
	}
	const first = "the root must come back first: latchkey group info root"
	expect(t, d.run("--timeout", "1s", "group", "revive", "a6/8", "--yes"), exitFailure, "the root, which alone can revive a group", first)
	expect(t, d.run("group", "revive", "b0/8", "--yes"), exitFailure, "the root does not answer, and this peer knows no group of prefix b0/8", first)
	expect(t, d.run("group", "info", "b0/8"), exitFailure, "knows no group of prefix b0/8", first)
	p := d.run("group", "info", "a5/8")
	if says := p.out.String(); p.code != 0 || !strings.Contains(says, "does not answer; this is what the peer knew") ||
		!strings.Contains(says, "the root must come back first, since it alone can revive a group: latchkey group info root") || strings.Contains(says, "group revive") {
		t.Errorf("group info: exit %d, %s", p.code, says)
	}
}

// The root of an overlay of one peer is gone with its store: with the root key the peer founds another one, and goes on after a restart.
func TestGroupReviveRoot(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	if p := at(t, dir, "init", "--profile", "test"); p.code != 0 {
		t.Fatal(p.err.String())
	}
	d, _ := startDaemon(t, dir, nil)
	expect(t, at(t, dir, "group", "revive", "root", "--yes"), exitFailure, "the root is not lost: 1 of its 1 voters answer", "nothing was changed")

	wrong := filepath.Join(shortDir(t), "wrong.key")
	if err := os.WriteFile(wrong, make([]byte, 32), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, at(t, dir, "group", "revive", "root", "--yes", "--force", "--root-key", wrong), exitFailure, "this is not the root key of overlay")
	if err := os.WriteFile(wrong, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, at(t, dir, "group", "revive", "root", "--yes", "--force", "--root-key", wrong), exitFailure, "has 5 bytes, and a root key 32")

	// The key is a copy, as it should be.
	kept := filepath.Join(shortDir(t), "kept.key")
	if err := os.Rename(filepath.Join(dir, "root.key"), kept); err != nil {
		t.Fatal(err)
	}
	expect(t, at(t, dir, "group", "revive", "root", "--yes", "--force"), exitFailure, "there is no root key at")
	p := command(t, nil, "--path", dir, "group", "revive", "root", "--force", "--root-key", kept)
	p.Stdin = strings.NewReader("/0\n")
	if p.start().wait(); p.code != exitFailure || !strings.Contains(p.err.String(), "There is no way back") || !strings.Contains(p.err.String(), "nothing was changed: type root") {
		t.Fatalf("not confirmed: exit %d, %s", p.code, p.err.String())
	}
	p = command(t, nil, "--path", dir, "group", "revive", "root", "--force", "--root-key", kept, "-o", "json")
	p.Stdin = strings.NewReader("root\n")
	p.start().wait()
	var v map[string]any
	if err := json.Unmarshal(p.out.Bytes(), &v); err != nil || p.code != 0 || v["generation"] != 1.0 || v["founder"] == "" || v["quarantine_ms"] == nil || v["survivor"] != v["founder"] {
		t.Fatalf("revive root: exit %d, %v, %s %s", p.code, err, p.out.String(), p.err.String())
	}
	info := func() string {
		t.Helper()
		p := at(t, dir, "group", "info", "root")
		if p.code != 0 {
			t.Fatalf("group info root: %s", p.err.String())
		}
		return p.out.String()
	}
	if says := info(); !strings.Contains(says, "/0, generation 1.0, view 0") || !strings.Contains(says, "serving: 1 of 1 voters answer") {
		t.Errorf("group info root: %s", says)
	}
	at(t, dir, "shutdown")
	d.wait()
	d, _ = startDaemon(t, dir, nil)
	defer d.wait()
	defer at(t, dir, "shutdown")
	if says := info(); !strings.Contains(says, "/0, generation 1.0, view") {
		t.Errorf("after a restart: %s", says)
	}
}
