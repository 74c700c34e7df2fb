package lockservice

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestNamesAreBoundedPrintableUTF8(t *testing.T) {
	for _, good := range []string{
		"a", " ", "nightly-build", "größe/中/🔒", "\u00a0", "\u2028", "\ufffd", strings.Repeat("x", NameBytesMax), strings.Repeat("é", NameBytesMax/2),
	} {
		if err := CheckName(good); err != nil {
			t.Errorf("%.20q: %v", good, err)
		}
	}
	for bad, says := range map[string]string{
		"":                                  "empty",
		strings.Repeat("x", NameBytesMax+1): "1025 bytes",
		strings.Repeat("é", NameBytesMax/2) + "x": "1025 bytes",
		"a\x00b":              "U+0000 at offset 1",
		"tab\t":               "U+0009 at offset 3",
		"line\n":              "U+000A",
		"\x1b[31m":            "U+001B",
		"\x7f":                "U+007F",
		"next\u0085line":      "U+0085 at offset 4",
		"\u009f":              "U+009F",
		"\xff":                "0xff at offset 0",
		"ab\xc3":              "0xc3 at offset 2",
		"\xed\xa0\x80":        "offset 0", // half a surrogate pair
		"\xc0\xaf":            "offset 0", // overlong
		"x\xf4\x90\x80\x80":   "offset 1", // above U+10FFFF
		"ok until \x80 there": "offset 9",
	} {
		if err := CheckName(bad); !errors.Is(err, ErrName) || !strings.Contains(err.Error(), says) {
			t.Errorf("%.20q: %v; want it to say %q", bad, err, says)
		}
	}
}

func TestTTLsAreBoundedByTheOverlay(t *testing.T) {
	l := LimitsOf(time.Minute, 10_000)
	for ttl, ok := range map[time.Duration]bool{
		time.Second: true, time.Minute: true, TTLDefault: true,
		time.Second - 1: false, time.Minute + 1: false, 0: false, -time.Second: false,
	} {
		err := l.CheckTTL(ttl)
		if (err == nil) != ok || !ok && (!errors.Is(err, ErrTTL) || !strings.Contains(err.Error(), "1s to 1m0s")) {
			t.Errorf("%v: %v", ttl, err)
		}
	}
	if d := LimitsOf(5*time.Second, 0).TTLDefault; d != 5*time.Second {
		t.Errorf("default under a maximum of 5 s: %v", d)
	}
	if d := l.TTLDefault; d != 15*time.Second {
		t.Errorf("default: %v", d)
	}
}
