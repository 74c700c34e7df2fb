package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"latchkey/coherence"
	"latchkey/node/api"
)

// Whoever asks a group that does not answer is told what that means: nothing that is surely present, nothing written, or nobody knows.
func TestASilentGroupIsToldApart(t *testing.T) {
	for _, c := range []struct {
		err  error
		want []string
	}{
		{coherence.ErrStale, []string{"no copy here is the present one for sure", "--stale"}},
		{coherence.ErrNoQuorum, []string{"nothing was written"}},
		{coherence.ErrOutcomeUnknown, []string{"nobody knows whether it was written", "read it to know"}},
	} {
		err := silentGroup(fmt.Errorf("api: %w", c.err), "object set", "app/x")
		var e *exitError
		if !errors.As(err, &e) || e.code != exitFailure {
			t.Errorf("%v: %v", c.err, err)
			continue
		}
		for _, want := range append(c.want, "object set: the group of app/x ") {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v: %q lacks %q", c.err, err, want)
			}
		}
	}
	for _, err := range []error{nil, errors.New("other"), errors.Join(coherence.ErrOutcomeUnknown, api.ErrUnreachable)} { // the daemon is silent, not the group
		if got := silentGroup(err, "object set", "app/x"); got != err {
			t.Errorf("%v becomes %v", err, got)
		}
	}
}

// A line about a directory tells some of the names, and how many more there are.
func TestALineAboutADirectoryIsShort(t *testing.T) {
	c := directoryChange{Names: 1, Added: []string{"a\tb"}, Removed: []string{"c"}, Version: 7, Lagged: true}
	if got := c.line(); !strings.HasSuffix(got, `  1 name  +a\tb  -c  (version 7, others before it are left out)`) {
		t.Errorf("%q", got)
	}
	c = directoryChange{Names: 100_000, Added: make([]string, 100_000)}
	if got := c.line(); len(got) > 200 || !strings.Contains(got, "  +and 99980 more") {
		t.Errorf("%q", got)
	}
}
