package main

import (
	"encoding/json"
	"strings"
	"testing"
	"text/tabwriter"

	"latchkey/node/api"
)

func TestGroupOwn(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, nil)
	env := []string{"LATCHKEY_API=" + d.socket}
	for _, typed := range []string{"", "yes\n", "nightl\n"} {
		p := command(t, env, "group", "own", "nightly")
		p.Stdin = strings.NewReader(typed)
		p.start().wait()
		if said := p.err.String(); p.code != exitFailure || p.out.Len() > 0 || !strings.Contains(said, "group own: not confirmed, so nothing was changed") {
			t.Errorf("typed %q: exit %d, %s %s", typed, p.code, p.out.String(), said)
		}
	}
	p := command(t, env, "group", "own", "nightly", "-o", "json")
	p.Stdin = strings.NewReader("nightly\n")
	p.start().wait()
	var v struct {
		Name, Prefix, Generation string
		Members                  []string
	}
	if err := json.Unmarshal(p.out.Bytes(), &v); err != nil || p.code != 0 || v.Name != "nightly" || v.Prefix != "a3ff/256" || v.Generation != "1" || len(v.Members) != 1 {
		t.Errorf("group own: exit %d, %v: %s %s", p.code, err, p.out.String(), p.err.String())
	}
	if p := d.run("group", "own", "--remove", "own", "--yes"); p.code != 0 || !strings.Contains(p.out.String(), "a3/8, generation 0") {
		t.Errorf("group own --remove: exit %d, %s %s", p.code, p.out.String(), p.err.String())
	}
	expect(t, d.run("group", "own", "own", "--yes"), exitFailure, `lock "own" has a group of its own already`)
	expect(t, d.run("group", "own", "--remove", "nightly", "--yes"), exitFailure, `lock "nightly" has no group of its own`)
	expect(t, d.run("group", "own", "crowded", "--yes"), exitFailure, "too many own groups")
	expect(t, d.run("group", "own", "a\nb", "--yes"), exitUsage, "name")
	expect(t, d.run("group", "own"), exitUsage, "usage: latchkey group own NAME")
}

func TestOwnGroupsInWords(t *testing.T) {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	printStanding(w, api.GroupStanding{
		Prefix: "a3ff/256", Generation: 1 << 16, View: 2, State: api.GroupDown, Voters: 3, Answering: 1, Directory: true, Parent: "a3/8", Key: "nightly",
	})
	w.Flush()
	for _, want := range []string{"nightly, which has this group for itself", "latchkey group revive nightly"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%s\nwant %q", b.String(), want)
		}
	}
	if strings.Contains(b.String(), "was lost") {
		t.Errorf("it was never revived:\n%s", b.String())
	}
	b.Reset()
	printStanding(w, api.GroupStanding{Prefix: "a3ff/256", Generation: 1, State: api.GroupDown, Voters: 3, Parent: "a3/8", Key: "nightly"})
	w.Flush()
	if !strings.Contains(b.String(), "latchkey group info a3/8") || strings.Contains(b.String(), "root") {
		t.Errorf("only the group of its prefix can revive it:\n%s", b.String())
	}
}
