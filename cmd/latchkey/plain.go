package main

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// plain makes text harmless to a terminal: whatever does not print, but for line breaks and tabs, is shown as an escape. What other
// peers say of themselves ends up in our output, and could otherwise move the cursor, or retitle the window of who reads it.
func plain(s string) string {
	if !strings.ContainsFunc(s, disguised) && utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case !disguised(r):
			b.WriteString(s[:n])
		case r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
		s = s[n:]
	}
	return b.String()
}

// inLine makes text that others chose fit for one column of one line: it cannot pass for a line of ours.
func inLine(s string) string {
	return plain(strings.NewReplacer("\n", `\n`, "\t", `\t`).Replace(s))
}

// disguised reports whether a rune does something else than to show.
func disguised(r rune) bool { return r != '\n' && r != '\t' && !unicode.IsPrint(r) }

// plainWriter writes text as plain makes it. A rune must not be cut by the end of a write.
type plainWriter struct{ w io.Writer }

func (p plainWriter) Write(b []byte) (int, error) {
	if _, err := io.WriteString(p.w, plain(string(b))); err != nil {
		return 0, err
	}
	return len(b), nil
}
