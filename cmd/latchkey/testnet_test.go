package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"latchkey/testnet"
)

// typed runs a command line and returns what it printed and its exit code.
func typed(args ...string) (out, errs string, code int) {
	var o, e bytes.Buffer
	code = run(args, &o, &e)
	return o.String(), e.String(), code
}

// socketDir returns a directory that is not there yet, with a path short enough for sockets.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "net")
}

func TestTestnetVerbsRefuseWhatMakesNoSense(t *testing.T) {
	for line, tc := range map[string]struct {
		code int
		want string
	}{
		"testnet":                                            {exitUsage, "which verb"},
		"testnet upp":                                        {exitUsage, "upp"},
		"testnet up -n 2":                                    {exitUsage, "at least 3"},
		"testnet up -n 0":                                    {exitUsage, "positive"},
		"testnet up -n 51":                                   {exitUsage, "50 are the most"},
		"testnet up --f -1":                                  {exitUsage, "must be positive"},
		"testnet up --depth 0":                               {exitUsage, "must be positive"},
		"testnet up --depth 13":                              {exitUsage, "1 to 12"},
		"testnet up --state /nowhere/at/all":                 {exitFailure, "no such file"},
		"testnet up --state " + os.DevNull:                   {exitFailure, "is no file"},
		"testnet up --state x -n 7":                          {exitUsage, "the state says that already"},
		"testnet state":                                      {exitUsage, "which verb"},
		"testnet state dump":                                 {exitUsage, "arguments"},
		"testnet state load":                                 {exitUsage, "arguments"},
		"testnet state dump x --dir /nowhere/at/all":         {exitUnreachable, "start one with"},
		"testnet up now":                                     {exitUsage, "arguments"},
		"testnet demo --sabotage all":                        {exitUsage, "no-lock"},
		"testnet kill":                                       {exitUsage, "arguments"},
		"testnet kill x":                                     {exitUsage, "no peer"},
		"testnet kill -- -1":                                 {exitUsage, "no peer"},
		"testnet restart 1x":                                 {exitUsage, "no peer"},
		"testnet env":                                        {exitUsage, "arguments"},
		"testnet run":                                        {exitUsage, "like: latchkey testnet run"},
		"testnet run 0 true":                                 {exitUsage, "like: latchkey testnet run"},
		"testnet run 0 --":                                   {exitUsage, "like: latchkey testnet run"},
		"testnet run 0 1 -- true":                            {exitUsage, "like: latchkey testnet run"},
		"testnet run 4-0 -- true":                            {exitUsage, "4-0"},
		"testnet run 0- -- true":                             {exitUsage, "0-"},
		"testnet run 0,,1 -- true":                           {exitUsage, "0,,1"},
		"testnet run [0-1 -- true":                           {exitUsage, "[0-1"},
		"testnet kill 0-99999":                               {exitUsage, "0-99999"},
		"testnet up --mode threads":                          {exitUsage, "inproc or process"},
		"testnet litmus --sabotage x":                        {exitUsage, "stale-copy"},
		"app run":                                            {exitUsage, "which verb"},
		"app run mandelbrot":                                 {exitUsage, "unknown verb"},
		"app run tsp --cities 21":                            {exitUsage, "give 5 to 20"},
		"app run tsp --workers 0":                            {exitUsage, "0 workers: give 1 to 64"},
		"app run tsp --peers 33":                             {exitUsage, "give 3 to 32"},
		"app run sor now":                                    {exitUsage, "arguments"},
		"app run sor --peers 2":                              {exitUsage, "give 3 to 32"},
		"app run sor --peers 0":                              {exitUsage, "give 3 to 32"},
		"app run sor --rows 2":                               {exitUsage, "2 rows: give 3 to"},
		"app run sor --cols 1000000":                         {exitUsage, "columns: give 3 to"},
		"app run sor --steps 4 --kill":                       {exitUsage, "at least 8"},
		"app run sor --leave":                                {exitUsage, "give more peers"},
		"app run sor --workers 61":                           {exitUsage, "61 workers: give 1 to 60"},
		"testnet litmus --runs 0":                            {exitUsage, "1 to"},
		"testnet litmus -n 1":                                {exitUsage, "at least 2 peers"},
		"testnet litmus -n 0":                                {exitUsage, "-n 0: give at least 2 peers"},
		"testnet litmus /dev/null":                           {exitUsage, "no program"},
		"testnet litmus no-such-file":                        {exitUsage, "testnet litmus: there is no such file as no-such-file"},
		"testnet litmus testnet_litmus.go":                   {exitUsage, "line 1"},
		"testnet up --latency 1h":                            {exitUsage, "latency is 1h"},
		"testnet up --latency -1s":                           {exitUsage, "latency is -1s"},
		"testnet pause":                                      {exitUsage, "arguments"},
		"testnet resume x":                                   {exitUsage, "no peer"},
		"testnet leave 1-0":                                  {exitUsage, "no peer"},
		"testnet join 7":                                     {exitUsage, "arguments"},
		"testnet partition":                                  {exitUsage, "arguments"},
		"testnet partition 0,1/":                             {exitUsage, "empty side"},
		"testnet partition /":                                {exitUsage, "empty side"},
		"testnet partition 0-2/2-4":                          {exitUsage, "peer 2 is on two sides"},
		"testnet partition a/b":                              {exitUsage, "no peer"},
		"testnet heal now":                                   {exitUsage, "arguments"},
		"testnet latency":                                    {exitUsage, "arguments"},
		"testnet latency slow":                               {exitUsage, "like 20ms"},
		"testnet latency -- -1ms":                            {exitUsage, "like 20ms"},
		"testnet latency 1h":                                 {exitUsage, "like 20ms"},
		"testnet logs":                                       {exitUsage, "arguments"},
		"testnet logs 0-1":                                   {exitUsage, "no peer"},
		"testnet logs -f -o json 0":                          {exitUsage, "-o jsonl"},
		"testnet heal --dir /nowhere/at/all":                 {exitUnreachable, "start one with"},
		"bench":                                              {exitUsage, "which verb"},
		"bench route -n 0":                                   {exitUsage, "positive"},
		"bench route -n 2":                                   {exitUsage, "at least 3"},
		"bench route --for 0s":                               {exitUsage, "--for"},
		"bench lock --protocol paxos":                        {exitUsage, "use group or sigma"},
		"bench order --callers 0":                            {exitUsage, "between 1 and 1024"},
		"bench order --callers 1025":                         {exitUsage, "between 1 and 1024"},
		"bench order --for 2h":                               {exitUsage, "--for"},
		"testnet sim lock --worlds 0":                        {exitUsage, "must be positive"},
		"testnet sim lock --worlds 1001":                     {exitUsage, "1 to 1000"},
		"testnet sim lock --for -1s":                         {exitUsage, "must be positive"},
		"testnet sim lock --for 25h":                         {exitUsage, "at most 24h"},
		"testnet sim lock 5":                                 {exitUsage, "got 1 arguments"},
		"testnet sim":                                        {exitUsage, ""},
		"testnet ls --dir /nowhere/at/all":                   {exitUnreachable, "latchkey testnet up --dir /nowhere/at/all"},
		"testnet kill 0 --dir /nowhere/at/all":               {exitUnreachable, "start one with"},
		"testnet run --dir /nowhere/at/all -- true":          {exitUnreachable, "start one with"},
		"testnet up --dir /tmp/" + strings.Repeat("x", 200):  {exitUsage, "bytes"},
		"testnet ls --dir /tmp/" + strings.Repeat("x", 200):  {exitUsage, "bytes"},
		"testnet env 0 -o json --dir " + os.DevNull:          {exitUnreachable, "none is running"},
		"testnet up --dir " + filepath.Join(os.DevNull, "x"): {exitFailure, "directory"},
	} {
		out, errs, code := typed(strings.Fields(line)...)
		if code != tc.code || !strings.Contains(errs, tc.want) || strings.Count(errs, "\n") != 1 || out != "" {
			t.Errorf("%s: exit %d, %q, %q; want exit %d and one line with %q", line, code, out, errs, tc.code, tc.want)
		}
	}
}

func TestATestnetIsUsedKilledAndRestartedFromTheCommandLine(t *testing.T) {
	dir := socketDir(t)
	control, err := testnet.Claim(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	n, err := testnet.Up(t.Context(), testnet.Options{N: 3, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	control.Serve(n)

	out, _, code := typed("testnet", "ls", "--dir", dir, "-o", "json")
	var ls struct{ Peers []testnet.PeerStatus }
	if err := json.Unmarshal([]byte(out), &ls); err != nil || code != exitOK || len(ls.Peers) != 3 || !ls.Peers[2].Up {
		t.Errorf("ls: exit %d, %v: %s", code, err, out)
	}
	out, _, code = typed("testnet", "env", "1", "--dir", dir)
	want := fmt.Sprintf("export LATCHKEY_API='%s'\nexport LATCHKEY_PATH='%s'\n", ls.Peers[1].API, ls.Peers[1].Path)
	if out != want || code != exitOK {
		t.Errorf("env: exit %d: %s", code, out)
	}
	for line, want := range map[string]int{
		"testnet run 0 -- true":           exitOK,
		"testnet run 0-2 -- true":         exitOK,
		"testnet run [0-2] -- true":       exitOK,
		"testnet run -- true":             exitOK,
		"testnet run 0 -- no-such-binary": exitNoCommand,
		"testnet run 3 -- true":           exitUsage,
		"testnet run 0-3 -- true":         exitUsage,
		"testnet env 3":                   exitUsage,
		"testnet kill 3":                  exitUsage,
		"testnet restart 0":               exitFailure,
		"testnet up":                      exitFailure, // the directory is taken
		"testnet up --mode process":       exitFailure,
		"testnet pause 0":                 exitUsage, // not in this mode
		"testnet resume 0":                exitUsage,
		"testnet logs 0":                  exitUsage,
		"testnet kill 0,3":                exitUsage, // nobody is killed then
		"testnet partition 0/3":           exitUsage,
		"testnet partition 0-2":           exitUsage, // no partition
	} {
		verb, command, isRun := strings.Cut(line, " -- ")
		args := append(strings.Fields(verb), "--dir", dir)
		if isRun {
			args = append(args, "--", command)
		}
		if _, errs, code := typed(args...); code != want {
			t.Errorf("%s: exit %d, want %d: %s", line, code, want, errs)
		}
	}
	if _, _, code := typed("testnet", "run", "2", "--dir", dir, "--", "sh", "-c", `test "$LATCHKEY_API" = "$1" && exit 9`, "sh", ls.Peers[2].API); code != 9 {
		t.Errorf("run: exit %d; the command should have found its peer's socket and exited with 9", code)
	}
	if _, _, code := typed("testnet", "run", "2", "--dir", dir, "--", "sh", "-c", "kill -TERM $$"); code != exitSignal+15 {
		t.Errorf("run of a command that a signal ends: exit %d", code)
	}

	if out, errs, code := typed("testnet", "kill", "2", "--dir", dir); code != exitOK || out != "peer 2 killed\n" {
		t.Errorf("kill: exit %d: %q, %s", code, out, errs)
	}
	for _, peers := range []string{"2", "0-2"} {
		if _, errs, code := typed("testnet", "run", peers, "--dir", dir, "--", "true"); code != exitUnreachable || !strings.Contains(errs, "peer 2 is down") {
			t.Errorf("run at %s after the kill: exit %d: %s", peers, code, errs)
		}
	}
	if _, _, code := typed("testnet", "run", "--dir", dir, "--", "true"); code != exitOK {
		t.Errorf("run at those that are up: exit %d", code)
	}
	if _, _, code := typed("testnet", "kill", "2", "--dir", dir); code != exitFailure {
		t.Errorf("second kill: exit %d", code)
	}
	if out, errs, code := typed("testnet", "restart", "2", "--dir", dir, "-o", "jsonl"); code != exitOK || out != "{\"n\":2,\"done\":\"restarted\"}\n" {
		t.Errorf("restart: exit %d: %q, %s", code, out, errs)
	}
	if _, _, code := typed("testnet", "run", "2", "--dir", dir, "--", "true"); code != exitOK {
		t.Errorf("run after the restart: exit %d", code)
	}

	for _, step := range []struct{ line, want string }{
		{"join", "peer 3 joined\n"},
		{"partition 0-2", "partition 0,1,2/3, latency 0s each way\n"},
		{"latency 2ms -o jsonl", `{"sides":[[0,1,2],[3]],"latency_ns":2000000}` + "\n"},
		{"heal", "no partition, latency 2ms each way\n"},
		{"latency 0", "no partition, latency 0s each way\n"},
		{"leave 2-3", "peer 2 left\npeer 3 left\n"},
		{"restart [2,3] -o jsonl", `{"n":2,"done":"restarted"}` + "\n" + `{"n":3,"done":"restarted"}` + "\n"},
		{"kill 3,2 -o json", "{\n  \"peers\": [\n    {\n      \"n\": 3,\n      \"done\": \"killed\"\n    },\n    {\n      \"n\": 2,\n      \"done\": \"killed\"\n    }\n  ]\n}\n"},
	} {
		if out, errs, code := typed(append(append([]string{"testnet"}, strings.Fields(step.line)...), "--dir", dir)...); code != exitOK || out != step.want {
			t.Errorf("%s: exit %d: %q, want %q; %s", step.line, code, out, step.want, errs)
		}
	}
	// One peer that it cannot be done to spares the others.
	if out, errs, code := typed("testnet", "kill", "1,2,0", "--dir", dir); code != exitFailure || out != "" || !strings.Contains(errs, "peer is down: 2; nothing was done") {
		t.Errorf("kill of peers one of which is down: exit %d: %q, %q", code, out, errs)
	}
	for list, says := range map[string]string{"2": "peer 2 is down; bring it back with", "1,2,0": "peer is down: 2; nothing was done to the others"} {
		if out, errs, code := typed("testnet", "leave", list, "--dir", dir); code != exitUnreachable || out != "" ||
			!strings.Contains(errs, says) || !strings.Contains(errs, "latchkey testnet restart 2") {
			t.Errorf("leave %s, of which one is down: exit %d: %q, %q", list, code, out, errs)
		}
	}
	if out, errs, code := typed("testnet", "kill", "1", "--dir", dir, "-o", "json"); code != exitOK || !strings.HasPrefix(out, "{\n  \"peers\": [") {
		t.Errorf("kill of one that was spared: exit %d: %q, %s", code, out, errs)
	}
	if _, errs, code := typed("testnet", "restart", "1,2", "--dir", dir); code != exitOK {
		t.Errorf("restart: exit %d, %s", code, errs)
	}
	if _, errs, code := typed("testnet", "leave", "2", "--dir", dir); code != exitOK {
		t.Errorf("leave: exit %d, %s", code, errs)
	}
	if _, errs, code := typed("testnet", "env", "2", "--dir", dir); code != exitUnreachable ||
		!strings.Contains(errs, "peer 2 has left; let it come again with: latchkey testnet restart 2") {
		t.Errorf("env of a peer that has left: exit %d, %s", code, errs)
	}
	if _, errs, code := typed("testnet", "restart", "2", "--dir", dir); code != exitOK {
		t.Errorf("restart of a peer that has left: exit %d, %s", code, errs)
	}
	// A peer that shares its process has no directory to invite or configure by.
	for _, verb := range [][]string{{"invite"}, {"config", "show"}} {
		if _, errs, code := typed(append([]string{"--path", filepath.Join(dir, "0")}, verb...)...); code != exitFailure ||
			!strings.Contains(errs, "--mode process") || strings.Contains(errs, "latchkey init") {
			t.Errorf("%v: exit %d, %s", verb, code, errs)
		}
	}
	for _, verb := range []string{"down", "stop"} {
		if _, errs, code := typed("testnet", verb, "--dir", dir); code != exitUsage || !strings.Contains(errs, "Ctrl-C") {
			t.Errorf("%s: exit %d, %s", verb, code, errs)
		}
	}
	long := "/tmp/" + strings.Repeat("d", 150)
	for _, verb := range []string{"up", "ls"} {
		if _, errs, code := typed("testnet", verb, "--dir", long); code != exitUsage || !strings.Contains(errs, "choose a shorter --dir") || strings.Contains(errs, "--api") {
			t.Errorf("%s: exit %d, %s", verb, code, errs)
		}
	}
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for limit := time.Now().Add(waitMax); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestListsOfPeersAreReadAsPeopleWriteThem(t *testing.T) {
	for text, want := range map[string]string{
		"2": "[2]", "0-4": "[0 1 2 3 4]", "[0-4]": "[0 1 2 3 4]", "0,2,5": "[0 2 5]", "[0,2]": "[0 2]", "0-2,5": "[0 1 2 5]", "5,1": "[5 1]",
		"1,0-2": "[1 0 2]", "3-3": "[3]", "9999": "[9999]",
		"": "", "-1": "", "1-": "", "2-1": "", "a": "", "0,": "", "[0": "", "0]": "", "[]": "", "0--1": "", "+1": "", "0x1": "", " 1": "", "10000": "",
	} {
		got, err := peerList(text)
		if want == "" && err == nil || want != "" && fmt.Sprint(got) != want {
			t.Errorf("%q: %v, %v; want %s", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"0,1/2,3,4": "[[0 1] [2 3 4]]", "0-2/3-6": "[[0 1 2] [3 4 5 6]]", "[0-2]/[3-6]": "[[0 1 2] [3 4 5 6]]", "0/1/2": "[[0] [1] [2]]", "4": "[[4]]",
		"": "", "/": "", "0/": "", "/0": "", "0//1": "", "0/0": "", "0-3/3": "", "0|1": "",
	} {
		got, err := peerSides(text)
		if want == "" && err == nil || want != "" && fmt.Sprint(got) != want {
			t.Errorf("%q: %v, %v; want %s", text, got, err, want)
		}
		if back, err := peerSides(sidesText(got)); want != "" && (err != nil || fmt.Sprint(back) != want) {
			t.Errorf("%q is written as %q", text, sidesText(got))
		}
	}
}

func TestAFollowedLogIsReadToItsEndAlsoWhenItBeginsAnew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	put := func(s string) {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(s); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	put("one\ntw")
	for format, want := range map[string]string{
		formatText: "one\ntw\n", formatJSONL: "{\"line\":\"one\"}\n{\"line\":\"tw\"}\n",
		formatJSON: fmt.Sprintf("{\n  \"lines\": [\n    \"one\",\n    \"tw\"\n  ],\n  \"path\": %q\n}\n", path),
	} {
		var out bytes.Buffer
		a := &app{printer: printer{out: &out, format: format}}
		if err := a.log(t.Context(), path, false); err != nil || out.String() != want {
			t.Errorf("%s: %v, %q; want %q", format, err, out.String(), want)
		}
	}

	heard, ended := make(chan string), make(chan error, 1)
	go func() {
		ended <- readLog(t.Context(), path, true, func(line string) error { heard <- line; return nil })
	}()
	hear := func(want string) {
		t.Helper()
		select {
		case got := <-heard:
			if got != want {
				t.Errorf("heard %q, want %q", got, want)
			}
		case <-time.After(waitMax):
			t.Fatalf("never heard %q", want)
		}
	}
	hear("one")
	put("o\nthree\n")
	hear("two")
	hear("three")
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	put("anew\n")
	hear("anew")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(waitMax):
		t.Fatal("it goes on following a log that is gone")
	}

	put("x\n")
	ctx, interrupt := context.WithCancel(t.Context())
	go func() {
		ended <- readLog(ctx, path, true, func(line string) error { interrupt(); return nil })
	}()
	if err := <-ended; err != nil {
		t.Errorf("interrupted: %v", err)
	}
}

// lines hands over what is written, line by line.
type lines struct{ c chan string }

func (l lines) Write(b []byte) (int, error) {
	for line := range strings.Lines(string(b)) {
		l.c <- line
	}
	return len(b), nil
}

func TestUpShowsItsPeersAndGivesTheDirectoryBackWhenItEnds(t *testing.T) {
	dir := socketDir(t)
	ctx, interrupt := context.WithCancel(t.Context())
	out := lines{make(chan string, 100)}
	a := &app{printer: printer{out: out, err: out, format: formatText}, timeout: 5 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- a.testnetUp(ctx, upOptions{Options: testnet.Options{N: 3, Dir: dir}}) }()
	var banner string
	for !strings.Contains(banner, "Ctrl-C") {
		select {
		case line := <-out.c:
			banner += line
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(20 * time.Second):
			t.Fatalf("no banner: %s", banner)
		}
	}
	st, err := testnet.Dial(dir).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range st.Peers {
		if !strings.Contains(banner, p.Addr) || !strings.Contains(banner, p.API) {
			t.Errorf("the banner lacks peer %d: %s", p.N, banner)
		}
	}
	interrupt()
	if err := <-ended; err != nil {
		t.Errorf("interrupted: %v", err)
	}
	if left, err := os.ReadDir(dir); !errors.Is(err, fs.ErrNotExist) { // which it has made itself
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestBenchOrderPrintsItsFiguresAndRemovesItsStores(t *testing.T) {
	dir := t.TempDir()
	out, errs, code := typed("bench", "order", "--callers", "16", "--for", "20ms", "--dir", dir, "-o", "json")
	var r struct {
		Ratio    float64 `json:"ratio_to_bare_raft"`
		Commands int     `json:"commands"`
		Callers  int     `json:"callers"`
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != exitOK || r.Ratio <= 0 || r.Commands == 0 || r.Callers != 16 {
		t.Errorf("exit %d, %v: %s%s", code, err, out, errs)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("stores left behind: %v, %v", left, err)
	}
}

func TestBenchJoinRefusesWhatMakesNoSense(t *testing.T) {
	for line, want := range map[string]string{"-n 0": "positive", "-n 2": "at least 3", "--groups 0": "between 1 and 256", "--groups 257": "between 1 and 256"} {
		if out, errs, code := typed(strings.Fields("bench join " + line)...); code != exitUsage || !strings.Contains(errs, want) || out != "" {
			t.Errorf("%s: exit %d, %q, %q", line, code, out, errs)
		}
	}
}

func TestBenchGroupsRefusesWhatAPeerDoesNotKeep(t *testing.T) {
	for line, want := range map[string]string{"--groups 0": "between 1 and 16383", "--groups 16384": "between 1 and 16383", "--for 0s": "--for"} {
		if out, errs, code := typed(strings.Fields("bench groups " + line)...); code != exitUsage || !strings.Contains(errs, want) || out != "" {
			t.Errorf("%s: exit %d, %q, %q", line, code, out, errs)
		}
	}
}

func TestProgressOfALongSimulationIsToldByTheLine(t *testing.T) {
	var b bytes.Buffer
	often, rarely := linesOf(&b, 0), linesOf(&b, time.Hour)
	often(1, 3)
	rarely(2, 3)
	often(3, 3)
	if got := b.String(); got != "worlds 1/3\nworlds 3/3\n" {
		t.Errorf("%q", got)
	}
}

// Where a state is taken up in which some peers are down, only those that are up are counted.
func TestPeersThatAreDownAreNotCountedAsUp(t *testing.T) {
	up, left := testnet.PeerStatus{Up: true}, testnet.PeerStatus{Left: true}
	for want, peers := range map[string][]testnet.PeerStatus{
		"2 peers are up and see each other":      {up, up},
		"2 of 3 peers are up and see each other": {up, left, up},
	} {
		if got := upText(testnet.Status{Peers: peers}); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
