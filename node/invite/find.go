package invite

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// Bounds of a search.
const (
	// textBytesMax bounds the text around a token: room for line breaks, for what a mail program puts around, and for notes.
	textBytesMax = 4 * TokenBytesMax
	// workBytesMax bounds what one search decodes, all attempts together.
	workBytesMax = 32 << 20
)

// Read reads a text from r and returns the one invitation in it, as [Parse] does. It reads at most 128 KiB. Errors are those of
// [Parse] or r's own.
func Read(r io.Reader) (Invite, error) {
	text, err := io.ReadAll(io.LimitReader(r, textBytesMax))
	if err != nil {
		return Invite{}, fmt.Errorf("invite: %w", err)
	}
	return Parse(string(text))
}

// Parse returns the one invitation in a text. It may be wrapped over lines and quoted as in mails, stand between other words,
// and be there more than once. Errors match [ErrNotToken], [ErrDamaged], [ErrVersion], [ErrContents] or [ErrSeveral].
func Parse(text string) (Invite, error) {
	p := unwrap(text[:min(len(text), textBytesMax)])
	var one Invite
	var token string
	var wrong error // the most certain thing that is wrong with what was found
	work := 0
	for at := 0; ; {
		i := strings.Index(p.text[at:], prefix)
		if i < 0 {
			break
		}
		at += i
		found, end, err := p.tokenAt(at, &work)
		switch {
		case err == nil && token == "":
			one, token = found, p.text[at:end]
		case err == nil && token != p.text[at:end]:
			return Invite{}, fmt.Errorf("%w: these are different ones; give one of them", ErrSeveral)
		case err != nil && (wrong == nil || errors.Is(wrong, ErrDamaged)):
			wrong = err
		}
		at = end
	}
	switch {
	case token != "":
		return one, nil
	case wrong != nil:
		return Invite{}, wrong
	case p.text == "":
		return Invite{}, fmt.Errorf("%w: there is nothing; latchkey invite prints one", ErrNotToken)
	case newer.MatchString(p.text):
		return Invite{}, fmt.Errorf("%w; install the latchkey that made it", ErrVersion)
	}
	return Invite{}, fmt.Errorf("%w: one begins with %q; latchkey invite prints it", ErrNotToken, prefix)
}

// newer matches how invitations of another family begin.
var newer = regexp.MustCompile(family + `[0-9]+\.`)

// unwrapped is a text without its white space and quote marks.
type unwrapped struct {
	text   string
	breaks []int // where something was taken out, ascending
}

// unwrap takes out what mail programs and terminals put into a long line: white space, and what quotes a line at its start.
func unwrap(s string) unwrapped {
	var b strings.Builder
	var u unwrapped
	start := true // of a line
	for _, r := range s {
		switch {
		case unicode.IsSpace(r):
			start = start || r == '\n' || r == '\r'
		case unicode.Is(unicode.Cf, r): // has no width: nobody sees it
		case start && (r == '>' || r == '|'):
		default:
			start = false
			b.WriteRune(r)
			continue
		}
		if n := len(u.breaks); n == 0 || u.breaks[n-1] != b.Len() {
			u.breaks = append(u.breaks, b.Len())
		}
	}
	u.text = b.String()
	return u
}

// tokenAt reads the token whose prefix is at a place: it ends at one of the breaks behind it, or where a letter follows that no
// token has. end is where it does, or where to search on. work is how many bytes have been decoded, and will have been.
func (u unwrapped) tokenAt(at int, work *int) (i Invite, end int, err error) {
	first := at + len(prefix)
	last := first
	for last < len(u.text) && inToken(u.text[last]) {
		last++
	}
	if next := strings.Index(u.text[first:min(last+1, len(u.text))], prefix); next >= 0 {
		last = first + next // the next one follows at once
	}
	from, _ := slices.BinarySearch(u.breaks, first)
	to, _ := slices.BinarySearch(u.breaks, last)
	err = errMistyped
	for _, end := range append(u.breaks[from:to:to], last) {
		if end-at > TokenBytesMax {
			return Invite{}, first, fmt.Errorf("%w: it is longer than any invitation (%d bytes)", ErrDamaged, TokenBytesMax)
		}
		if *work += end - at; *work > workBytesMax {
			break
		}
		if i, err = open(u.text[first:end]); !errors.Is(err, ErrDamaged) {
			return i, end, err
		}
	}
	return Invite{}, first, err
}

func inToken(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}
