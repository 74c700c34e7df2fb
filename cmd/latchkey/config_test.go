package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// inEnv runs latchkey beside the daemon of dir, with more in its environment.
func inEnv(t *testing.T, dir string, env []string, args ...string) *process {
	t.Helper()
	p := command(t, env, append([]string{"--path", dir}, args...)...).start()
	p.wait()
	return p
}

func TestConfigShowsWhereValuesComeFrom(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	expect(t, at(t, dir, "config", "show"), exitFailure, "not initialised")
	initTest(t, dir)
	p := ok(t, inEnv(t, dir, []string{"LATCHKEY_NETWORK_CONNS_LOW=7"}, "config", "show", "-o", "json"))
	var all struct {
		Fields []struct {
			Field, Source string
			Value         any
		}
	}
	if err := json.Unmarshal(p.out.Bytes(), &all); err != nil {
		t.Fatal(err, p.out.String())
	}
	sources := make(map[string]string)
	for _, f := range all.Fields {
		sources[f.Field] = f.Source
	}
	if !strings.HasPrefix(sources["profile"], dir+"/config.yaml:") || sources["network.conns_low"] != "LATCHKEY_NETWORK_CONNS_LOW" || sources["network.mdns"] != "profile test" {
		t.Errorf("%v", sources)
	}
	if p := ok(t, at(t, dir, "config", "get", "network.conns_high")); p.out.String() != "192\n" {
		t.Errorf("%q", p.out.String())
	}
	ok(t, at(t, dir, "config", "set", "network.listen", "/ip4/127.0.0.1/tcp/20001,/ip4/127.0.0.1/tcp/20002/ws"))
	if p := ok(t, at(t, dir, "config", "show")); !strings.Contains(p.out.String(), "/ip4/127.0.0.1/tcp/20001") || !strings.Contains(p.out.String(), "\n                    /ip4/127.0.0.1/tcp/20002/ws") {
		t.Errorf("%s", p.out.String())
	}
	before, err := os.ReadFile(filepath.Join(dir, "config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	ok(t, at(t, dir, "config", "set", "network.conns_low", "9"))
	ok(t, at(t, dir, "config", "unset", "network.conns_low"))
	if now, _ := os.ReadFile(filepath.Join(dir, "config.yaml")); string(now) != string(before) {
		t.Errorf("what was set and unset again is in the file: %s", now)
	}
	expect(t, at(t, dir, "config", "unset", "profile"), exitUsage, "cannot be unset")
	expect(t, at(t, dir, "config", "unset", "mdns"), exitUsage, "did you mean network.mdns?")
	p = ok(t, inEnv(t, dir, []string{"LATCHKEY_NETWORK_MDNS=false"}, "config", "set", "network.mdns", "true"))
	if !strings.Contains(p.err.String(), "LATCHKEY_NETWORK_MDNS is set in the environment") {
		t.Errorf("%s", p.err.String())
	}
	file, err := os.ReadFile(filepath.Join(dir, "config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		field, value, says string
	}{
		{"network.mode", "king", "want server, client or auto"},
		{"network.conns_low", "193", "above network.conns_high"},
		{"network.speed", "9", "no such field"},
		{"network.listen", "/ip4/127.0.0.1/udp/1/quic-v1", "TCP and WebSocket only"},
		{"profile", "public", "swarm.key"},
	} {
		expect(t, at(t, dir, "config", "set", c.field, c.value), exitUsage, c.field, c.says)
	}
	expect(t, at(t, dir, "config", "get", "x"), exitUsage, "no such field")
	expect(t, at(t, dir, "config", "get", "mdns"), exitUsage, "did you mean network.mdns?")
	expect(t, at(t, dir, "config", "set", "mdns", "true"), exitUsage, "did you mean network.mdns?")
	if now, _ := os.ReadFile(filepath.Join(dir, "config.yaml")); string(now) != string(file) {
		t.Error("a refused value changed the file")
	}
	expect(t, inEnv(t, dir, []string{"LATCHKEY_NETWORK_SPEED=9"}, "daemon"), exitFailure, "LATCHKEY_NETWORK_SPEED")
	expect(t, inEnv(t, dir, []string{"LATCHKEY_NETWORK_MODE=king"}, "daemon"), exitFailure, "LATCHKEY_NETWORK_MODE", "king")
}

func TestConfigEditTakesOnlyWhatIsInOrder(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	initTest(t, dir)
	file := filepath.Join(dir, "config.yaml")
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	editor := func(script string) []string {
		path := filepath.Join(shortDir(t), "editor")
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		return []string{"VISUAL=", "EDITOR=" + path}
	}
	draft := filepath.Join(dir, "config.draft.yaml")
	untouched := func(what string) {
		t.Helper()
		if now, _ := os.ReadFile(file); string(now) != string(before) {
			t.Fatalf("%s replaced the file by %q", what, now)
		}
		if _, err := os.Stat(draft); err == nil {
			t.Fatalf("%s left its draft", what)
		}
	}
	// What changes nothing leaves nothing, and neither does what empties the file.
	expect(t, inEnv(t, dir, editor("exit 3"), "config", "edit"), exitFailure, "exit status 3", "nothing was changed")
	untouched("an editor that failed")
	ok(t, inEnv(t, dir, editor("true"), "config", "edit"))
	untouched("an editor that did nothing")
	expect(t, inEnv(t, dir, editor(`echo > "$1"`), "config", "edit"), exitFailure, "emptied", "nothing was changed")
	untouched("an editor that emptied it")
	// A draft from before the file's last change would take that back.
	expect(t, inEnv(t, dir, editor(`echo '#' >> "$1"; exit 1`), "config", "edit"), exitFailure, "draft is kept", "rm "+draft)
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(draft, old, old); err != nil {
		t.Fatal(err)
	}
	expect(t, inEnv(t, dir, editor("true"), "config", "edit"), exitFailure, "is older than "+file, "rm "+draft)
	if err := os.Remove(draft); err != nil {
		t.Fatal(err)
	}
	p := inEnv(t, dir, editor(`printf 'profile: test\nnetwork:\n  mode: king\n' > "$1"`), "config", "edit")
	if p.code != exitFailure || !strings.Contains(p.err.String(), "config.draft.yaml:3") || !strings.Contains(p.err.String(), "nothing was changed") {
		t.Errorf("exit %d, %s", p.code, p.err.String())
	}
	if now, _ := os.ReadFile(file); string(now) != string(before) {
		t.Fatal("a draft that is not in order replaced the file")
	}
	// The next edit goes on where that one ended.
	p = ok(t, inEnv(t, dir, editor(`grep -q king "$1" && sed -i s/king/server/ "$1"`), "config", "edit"))
	if !strings.Contains(p.err.String(), "going on with the draft") {
		t.Errorf("%s", p.err.String())
	}
	if now, _ := os.ReadFile(file); string(now) != "profile: test\nnetwork:\n  mode: server\n" {
		t.Errorf("%q", now)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "config.draft.yaml")); err == nil {
		t.Error("the draft is left")
	}
	// A file that somebody broke by hand stops what needs it, and can be mended.
	if err := os.WriteFile(file, []byte("profile: test\nnetwork:\n  mdsn: true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, at(t, dir, "daemon"), exitFailure, file+":3", "mdsn")
	expect(t, at(t, dir, "config", "set", "network.mdns", "true"), exitFailure, "latchkey config edit")
	ok(t, inEnv(t, dir, editor(`sed -i s/mdsn/mdns/ "$1"`), "config", "edit"))
	ok(t, at(t, dir, "config", "set", "network.mdns", "false"))
}

func TestChangesOfTheConfigurationDoNotLoseEachOther(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	initTest(t, dir)
	for round := range 5 {
		low, high := strconv.Itoa(10+round), strconv.Itoa(200+round)
		var both sync.WaitGroup
		both.Go(func() { expect(t, inEnv(t, dir, nil, "config", "set", "network.conns_low", low), exitOK) })
		both.Go(func() { expect(t, inEnv(t, dir, nil, "config", "set", "network.conns_high", high), exitOK) })
		both.Wait()
		for field, want := range map[string]string{"network.conns_low": low, "network.conns_high": high} {
			if got := strings.TrimSpace(ok(t, inEnv(t, dir, nil, "config", "get", field)).out.String()); got != want {
				t.Errorf("round %d: %s is %s, was set to %s", round, field, got, want)
			}
		}
	}
	// An edit during which the file is set.
	editor := filepath.Join(shortDir(t), "editor")
	script := fmt.Sprintf("#!/bin/sh\necho '# mine' >> \"$1\"\nsed 's/conns_low: .*/conns_low: 77/' %[1]s > %[1]s.new && mv %[1]s.new %[1]s\n", filepath.Join(dir, "config.yaml"))
	if err := os.WriteFile(editor, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	expect(t, inEnv(t, dir, []string{"VISUAL=", "EDITOR=" + editor}, "config", "edit"), exitFailure, "was changed while you edited", "draft is kept")
	if got := strings.TrimSpace(ok(t, inEnv(t, dir, nil, "config", "get", "network.conns_low")).out.String()); got != "77" {
		t.Errorf("conns_low is %s: the edit took the change back", got)
	}
}

func TestMisspeltVariablesAreNamed(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	initTest(t, dir)
	for variable, says := range map[string]string{
		"LATCHKEY_NETWROK_MODE=server": "latchkey: LATCHKEY_NETWROK_MODE is set in the environment, and means nothing; did you mean LATCHKEY_NETWORK_MODE?\n",
		"LATCHKEY_PAHT=/tmp":           "; did you mean LATCHKEY_PATH?",
		"latchkey_api=x":               "; did you mean LATCHKEY_API?",
		"LATCHKEY_COLOUR=red":          "latchkey: LATCHKEY_COLOUR is set in the environment, and means nothing; latchkey config --help lists the fields",
		"LATCHKEY_PAHT=":               "",
		"LATCHKEY_FENCE=7":             "",
		"LATCHKEY_OBJECT=demo/n":       "",
		"LATCHKEY_EPOCH=7":             "",
		"LATCHKEY_API_TOKEN=secret":    "",
	} {
		p := ok(t, inEnv(t, dir, []string{variable}, "config", "get", "profile"))
		if said := p.err.String(); !strings.Contains(said, says) || says == "" && said != "" {
			t.Errorf("%s: %q", variable, said)
		}
	}
}

func TestMisspeltVariablesOfClientsAreNamed(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	if notes := strangeVariables([]string{"LATCHKEY_API_TOKEN_FIEL=x", "LATCHKEY_NETWORK_X=1"}); len(notes) != 1 || !strings.Contains(notes[0], "did you mean LATCHKEY_API_TOKEN_FILE?") {
		t.Errorf("%q", notes)
	}
	initTest(t, dir)
	p := inEnv(t, dir, []string{"LATCHKEY_API_LISTN=:1"}, "config", "get", "profile")
	if said := p.err.String(); p.code != exitFailure || !strings.Contains(said, "did you mean LATCHKEY_API_LISTEN?") || !strings.Contains(said, "no such field") {
		t.Errorf("exit %d, %q", p.code, said)
	}
	if got := strings.TrimSpace(ok(t, inEnv(t, dir, []string{"LATCHKEY_API_LISTEN=127.0.0.1:4780"}, "config", "get", "api.listen")).out.String()); got != "127.0.0.1:4780" {
		t.Errorf("api.listen by its variable is %q", got)
	}
}

// TestVariablesThatAreReadAreKnown: one that is read, and not in the list, would be told to mean nothing.
func TestVariablesThatAreReadAreKnown(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	read := regexp.MustCompile(`env\("(LATCHKEY_[A-Z_]+)"\)`) // of Getenv and LookupEnv
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range read.FindAllStringSubmatch(strings.ReplaceAll(string(b), "LookupEnv", "env"), -1) {
			if !slices.Contains(environNames(), m[1]) && !strings.HasPrefix(m[1], "LATCHKEY_TEST_") {
				t.Errorf("%s reads %s, which environNames lacks", file, m[1])
			}
		}
	}
}
