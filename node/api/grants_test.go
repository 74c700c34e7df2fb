package api

import (
	"errors"
	"testing"
	"time"

	"latchkey/lockservice"
)

// SocketPathMax lets the tests outside reach the limit.
const SocketPathMax = socketPathMax

func TestAcquiresAreBounded(t *testing.T) {
	g := newGrants()
	for range AcquiresMax {
		if err := g.begin(); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.begin(); !errors.Is(err, lockservice.ErrLimit) {
		t.Fatalf("one more: %v", err)
	}
	g.end()
	if err := g.begin(); err != nil {
		t.Errorf("after one has ended: %v", err)
	}
}

func TestGrantsAreBoundedAndForgottenAfterTwiceTheTTL(t *testing.T) {
	g := newGrants()
	grant := func(n int, ttl time.Duration) lockservice.Grant {
		return lockservice.Grant{Name: "n", Token: lockservice.Token(n), Req: uint64(n), TTL: ttl}
	}
	for n := range GrantsMax {
		if err := g.begin(); err != nil {
			t.Fatal(err)
		}
		g.add(grant(n+1, time.Hour), false, 0)
		g.end()
	}
	if err := g.begin(); !errors.Is(err, lockservice.ErrLimit) {
		t.Fatalf("one more: %v", err)
	}
	// A renewed one stays, a released one makes room, and so does one whose client has gone quiet.
	g.renewed(grantKey{"n", 1, 1})
	g.drop(grantKey{"n", 2, 2})
	if err := g.begin(); err != nil {
		t.Fatalf("after a release: %v", err)
	}
	g.add(grant(2, 0), false, 0)
	g.end()
	if _, err := g.find(grantKey{"n", 2, 2}); !errors.Is(err, lockservice.ErrNotHeld) {
		t.Errorf("a grant that is over: %v", err)
	}
	g.add(grant(2, 0), false, 0)
	if err := g.begin(); err != nil {
		t.Errorf("after a grant is over: %v", err)
	}
	if _, err := g.find(grantKey{"n", 1, 1}); err != nil {
		t.Error(err)
	}
}
