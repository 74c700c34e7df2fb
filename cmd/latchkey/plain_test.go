package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"latchkey/lockservice"
)

const hostile = "/dns4/a\x1b[2J\x1b]0;owned\x07\u009b1m\u202e\xff\r/tcp/1"

func TestOutputCannotSteerATerminal(t *testing.T) {
	var out, errs bytes.Buffer
	p := printer{out: &out, err: &errs, format: formatText}
	if err := p.value(nil, func(w io.Writer) { fmt.Fprintf(w, "addr\t%s\nsecond\tüñí\n", hostile) }); err != nil {
		t.Fatal(err)
	}
	if err := p.event(nil, "joined "+hostile); err != nil {
		t.Fatal(err)
	}
	p.format = formatJSON
	if err := p.event(nil, "story "+hostile); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(&errs, oneLine(errors.New("refused: "+hostile)))
	for _, s := range []string{out.String(), errs.String()} {
		if strings.ContainsAny(s, "\x1b\x07\r\u009b\u202e") || !utf8.ValidString(s) {
			t.Errorf("%q", s)
		}
	}
	if want := `\x1b[2J\x1b]0;owned\x07\u009b1m\u202e\xff`; strings.Count(out.String()+errs.String(), want) != 4 {
		t.Errorf("%s%s", out.String(), errs.String())
	}
	if !strings.Contains(out.String(), "second  üñí\n") {
		t.Errorf("what prints is to stay: %q", out.String())
	}
}

func TestAValueIsNoLineOfOurs(t *testing.T) {
	if got := inLine("ev\nleader\tterm 9" + "\x1b"); got != `ev\nleader\tterm 9\x1b` {
		t.Errorf("%s", got)
	}
	var b strings.Builder
	writeLockInfo(&b, lockservice.Info{Name: "n", Held: true, Value: "v\nholder\tx"})
	if strings.Contains(b.String(), "\nholder\tx") {
		t.Errorf("a value wrote a line of its own: %q", b.String())
	}
}

func TestHostileVerdictIsOneHarmlessLine(t *testing.T) {
	if got := oneLine(errors.New("a\nb\r\nc")); got != "a; b; c" {
		t.Errorf("%q", got)
	}
}

func TestWhoeverDoesNotGetALockIsToldWhy(t *testing.T) {
	holder := lockservice.Party{Session: "a1", Peer: "12D3KooW"}
	for _, c := range []struct {
		info lockservice.Info
		want string
	}{
		{lockservice.Info{}, "it was held when we asked, and nobody holds it now"},
		{lockservice.Info{Held: true, Holder: holder, Token: 7}, "a1@12D3KooW holds it, token 7"},
		{lockservice.Info{Held: true, Holder: holder, Token: 7, Waiting: 2}, "a1@12D3KooW holds it, token 7; 2 waiting"},
		{lockservice.Info{Held: true, Holder: holder, Shared: true, Holding: 3}, "3 share it"},
		{lockservice.Info{Held: true, Holder: holder, Permits: 4, Holding: 4, Waiting: 1}, "4 of 4 permits are held; 1 waiting"},
		{lockservice.Info{Waiting: 1}, "nobody holds it, and it is being granted; 1 waiting"},
		{lockservice.Info{DelayLeft: 1500 * time.Millisecond}, "nobody holds it, and it is granted to nobody for 1.5s yet, since leases or a lock delay from before may last"},
	} {
		if got := whyNotFree(c.info); got != c.want {
			t.Errorf("%+v: %q, want %q", c.info, got, c.want)
		}
	}
}
