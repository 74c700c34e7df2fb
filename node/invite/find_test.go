package invite

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// wrap breaks a text into lines of n, each with something before it.
func wrap(text string, n int, before string) string {
	var b strings.Builder
	for len(text) > n {
		b.WriteString(before + text[:n] + "\n")
		text = text[n:]
	}
	return b.String() + before + text + "\n"
}

func TestTheOneInvitationInATextIsFound(t *testing.T) {
	i := private(t)
	token := mustToken(t, i)
	note := "latchkey: note: this line is a secret: it holds the key of the overlay\n"
	for name, text := range map[string]string{
		"quoted":               `"` + token + `"`,
		"in single quotes":     "'" + token + "'\n",
		"in brackets":          "<" + token + ">",
		"in a sentence":        "Take " + token + ", please.",
		"in a mail":            "Hello,\n\n> " + token + "\n\nBye",
		"quoted twice":         ">> " + token,
		"after a prompt":       "$ latchkey invite\n" + token + "\n$ ",
		"in JSON":              "{\n  \"token\": \"" + token + "\",\n  \"overlay\": \"2d261c80\",\n  \"addrs\": []\n}\n",
		"in an assignment":     "INVITATION=" + token,
		"with a note after it": token + "\n" + note,
		"with a note before":   note + token + "\n",
		"wrapped, with notes":  note + wrap(token, 60, "") + note,
		"wrapped in a mail":    "On Monday somebody wrote:\n" + wrap(token, 60, "> ") + "> Bye\n",
		"wrapped in its head":  wrap("an invitation: "+token, 20, ""),
		"wrapped and indented": wrap(token, 76, "\t  "),
		"wrapped by \\r\\n":    strings.ReplaceAll(wrap(token, 76, ""), "\n", "\r\n"),
		"wrapped by spaces":    token[:30] + " " + token[30:99] + "  " + token[99:],
		"with invisible marks": "\ufeff" + token[:50] + "\u200b" + token[50:],
		"twice":                token + "\n" + token + "\n",
		"twice on a line":      token + token,
		"twice, once cut off":  token[:99] + "\n" + token + "\n",
		"twice, once wrapped":  wrap(token, 40, "") + `"` + token + `"`,
		"by words of the kind": "latchkey1. latchkey1.abc latchkey2.abc\n" + token,
	} {
		got, err := Read(strings.NewReader(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		same(t, got, i)
	}
}

func TestASearchForAnInvitationIsBounded(t *testing.T) {
	token := mustToken(t, private(t))
	for name, text := range map[string]string{
		"heads":        strings.Repeat(prefix, textBytesMax),
		"broken heads": strings.Repeat(prefix+" A ", textBytesMax),
		"breaks":       prefix + strings.Repeat("A ", textBytesMax),
		"heads first":  strings.Repeat(prefix+"\n", 2000) + prefix + strings.Repeat("A\n", textBytesMax),
		"too far away": strings.Repeat(" ", textBytesMax) + token,
		"quotes":       strings.Repeat("\n>", textBytesMax) + token,
	} {
		start := time.Now()
		_, err := Parse(text)
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("%s: it took %v", name, took)
		}
		if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNotToken) {
			t.Errorf("%s: %v", name, err)
		}
		t.Logf("%s: %v", name, time.Since(start))
	}
}
