package lockservice

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// TestHoldsThatVotersKeepHearThatTheyAreBroken: on real peers, of leases of fixed length, whose holders ask nobody: they would go on until
// their leases are over. Also of one that the table has taken over before.
func TestHoldsThatVotersKeepHearThatTheyAreBroken(t *testing.T) {
	t.Parallel()
	w := newHosts(t, 4, func(w *hosts) { w.fixed, w.genesis.TTLMax = true, time.Minute })
	voters, other := w.among("n")
	for _, name := range []string{w.name(1), w.name(2)} {
		h, err := voters[0].locks.Lock(w.ctx(), name, WithTTL(time.Minute), WithoutRenewal())
		if err != nil {
			t.Fatal(err)
		}
		if name == w.name(2) { // by the wish of somebody else
			ctx, leave := context.WithTimeout(w.ctx(), time.Second)
			_, err := other.locks.Lock(ctx, name, WithTTL(hostsTTL), WithProtocol(ProtocolGroup))
			if leave(); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("two have %q: %v", name, err)
			}
		}
		if who, err := other.locks.Break(w.ctx(), name, h.Token()); err != nil || !named(who, h) {
			t.Fatalf("taken from %v, who calls itself %s: %v", who, h.Holder(), err)
		}
		if i, err := other.locks.Info(w.ctx(), name); err != nil || len(i.Breaks) != 1 || !named(i.Breaks[0].Holder, h) {
			t.Errorf("%+v, %v", i, err)
		}
		<-h.Context().Done()
		var lost *LostError
		if cause := context.Cause(h.Context()); !errors.As(cause, &lost) || !errors.Is(cause, ErrNotHeld) || lost.Since > time.Minute*8/10 {
			t.Errorf("%q: %v", name, cause)
		}
	}
}

// named reports whether a party has the session by which a holder knows itself.
func named(p Party, h *Handle) bool { return strings.HasPrefix(h.Holder(), p.Session+"@") }
