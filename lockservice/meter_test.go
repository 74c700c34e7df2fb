package lockservice

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestAMeterCountsWhatBecomesOfLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := new(Meter)
		b, req := new(int), uint64(0) // some backend
		take := func(wait time.Duration, from uint64, fail error) Grant {
			g, err := m.acquire(t.Context(), b, Request{TTL: 10 * time.Second}, func(context.Context, Request) (Grant, error) {
				if got := m.Counts().Waiting; got != 1 {
					t.Errorf("%d wait, one does", got)
				}
				time.Sleep(wait)
				req++
				return Grant{Req: from + req, TTL: 10 * time.Second}, fail
			})
			if err != fail {
				t.Errorf("%v, want %v", err, fail)
			}
			return g
		}
		expect := func(when string, held int, lost uint64) {
			t.Helper()
			if c := m.Counts(); c.Held != held || c.Lost != lost || c.Waiting != 0 {
				t.Errorf("%s: %d held, %d lost, %d wait; want %d held, %d lost", when, c.Held, c.Lost, c.Waiting, held, lost)
			}
		}
		given, renewed, left, taken, unsure := take(0, 0, nil), take(3*time.Second, sigmaReqs, nil), take(0, 0, nil), take(0, 0, nil), take(0, 0, nil)
		take(0, 0, ErrLocked)
		take(0, 0, errors.New("whatever"))
		expect("at first", 5, 0)
		if m.released(b, given, nil); m.released(b, given, ErrNotHeld) == nil {
			t.Error("an error is swallowed")
		}
		expect("one given back, twice", 4, 0)
		m.renewed(b, taken, ErrNotHeld)
		expect("one taken away", 3, 1)
		m.released(b, taken, ErrNotHeld)
		m.released(b, unsure, ErrOutcomeUnknown)
		expect("one given back, perhaps", 2, 1)
		m.renewed(b, left, ErrNoQuorum) // which is no news
		time.Sleep(9 * time.Second)
		m.renewed(b, renewed, nil)
		time.Sleep(2 * time.Second)
		expect("one was left alone", 1, 2)
		time.Sleep(10 * time.Second)
		expect("all leases are over", 0, 3)
		c := m.Counts()
		if c.Sigma != 1 || c.Group != 4 || c.Waits[0] != 4 || c.Waits[6] != 1 || c.WaitTime != 3*time.Second || c.Refused[0] != 1 || c.Refused[len(c.Refused)-1] != 1 {
			t.Errorf("%+v", c)
		}
		if len(m.holds) != 0 || len(Refusals()) != len(c.Refused) {
			t.Errorf("%d holds are kept; %v", len(m.holds), Refusals())
		}
	})
}
