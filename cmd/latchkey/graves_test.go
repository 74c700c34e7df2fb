package main

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestGroupGraves(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, nil)
	p := d.run("group", "graves")
	for _, want := range []string{"PREFIX", "/0", "1.0", "unknown", "a3/8", "2048"} {
		if p.code != 0 || !strings.Contains(p.out.String(), want) {
			t.Errorf("exit %d, %s; want %q", p.code, p.out.String(), want)
		}
	}
	var v struct{ Graves []map[string]any }
	p = d.run("group", "graves", "-o", "json")
	if err := json.Unmarshal(p.out.Bytes(), &v); err != nil || len(v.Graves) != 2 || v.Graves[1]["bytes"] != "2048" || v.Graves[0]["buried"] != nil {
		t.Errorf("-o json: %v, %s", err, p.out.String())
	}

	for typed, deletes := range map[string]bool{"": false, "yes\n": false, "a3\n": false, "a3/8\n": true} {
		p := command(t, []string{"LATCHKEY_API=" + d.socket}, "group", "graves", "rm", "a3/8", "1")
		p.Stdin = strings.NewReader(typed)
		p.start().wait()
		if (p.code == 0) != deletes || strings.Contains(p.out.String(), "deleted  a3/8, generation 1") != deletes || !strings.Contains(p.err.String(), "some 2048 bytes, is deleted for good") {
			t.Errorf("typed %q: exit %d, %s %s", typed, p.code, p.out.String(), p.err.String())
		}
		if !deletes && !strings.Contains(p.err.String(), "group graves rm: not confirmed") {
			t.Errorf("typed %q: %s", typed, p.err.String())
		}
	}
	if p := d.run("group", "graves", "rm", "root", "1.0", "--yes"); p.code != 0 || p.err.Len() > 0 || !strings.Contains(p.out.String(), "/0, generation 1.0") {
		t.Errorf("--yes: exit %d, %s %s", p.code, p.out.String(), p.err.String())
	}
	expect(t, d.run("group", "graves", "rm", "a3/8", "7"), exitNotFound, "nothing of generation 7 of a3/8")
	expect(t, d.run("group", "graves", "rm", "a3/8", "one"), exitUsage, "want a number")
	expect(t, d.run("group", "graves", "rm", "a3/8"), exitUsage, "usage: latchkey group graves rm PREFIX GENERATION")
}
