package api

import (
	"cmp"
	"fmt"
	"slices"
	"sync"

	"latchkey/internal/automaton"
	"latchkey/internal/driver"
	"latchkey/lockservice"
)

// grantKey names a grant in the calls of a client.
type grantKey struct {
	name  string
	token lockservice.Token
	req   uint64
}

// liveGrant is a grant that a client may still renew.
type liveGrant struct {
	grant lockservice.Grant
	// until is when it is forgotten unless renewed. By then twice the TTL has passed since its client could last have been
	// told that it holds the lock, so the client has stopped long before.
	until automaton.Instant
	// shared and permits say as what it was asked for.
	shared  bool
	permits uint32
}

// grants is the server's memory of what it has granted, bounded by [GrantsMax] and [AcquiresMax].
type grants struct {
	clock *driver.Clock
	calls sync.WaitGroup // one for each Acquire under way

	mu        sync.Mutex
	live      map[grantKey]liveGrant
	acquiring int
}

func newGrants() *grants {
	return &grants{clock: driver.NewClock(), live: make(map[grantKey]liveGrant)}
}

// begin makes room for an Acquire, until end is called. The error matches [lockservice.ErrLimit].
func (t *grants) begin() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.acquiring >= AcquiresMax {
		return fmt.Errorf("%w: %d acquires are under way through this daemon; try again when some have ended", lockservice.ErrLimit, t.acquiring)
	}
	if t.acquiring+len(t.live) >= GrantsMax {
		t.forgetLocked()
	}
	if t.acquiring+len(t.live) >= GrantsMax {
		return fmt.Errorf("%w: %d locks are held or awaited through this daemon; release some, or use another daemon",
			lockservice.ErrLimit, t.acquiring+len(t.live))
	}
	t.acquiring++
	t.calls.Add(1)
	return nil
}

func (t *grants) end() {
	t.mu.Lock()
	t.acquiring--
	t.mu.Unlock()
	t.calls.Done()
}

// wait blocks until no Acquire is under way.
func (t *grants) wait() { t.calls.Wait() }

// forgetLocked drops the grants whose clients have stopped renewing. Which order they go in cannot be seen.
func (t *grants) forgetLocked() {
	now := t.clock.Now()
	for k, g := range t.live {
		if now >= g.until {
			delete(t.live, k)
		}
	}
}

// list returns the grants whose leases are not over yet, by name and token.
func (t *grants) list() []liveGrant {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.clock.Now()
	var all []liveGrant
	for _, g := range t.live {
		if now < g.until.Add(-g.grant.TTL) { // it counts twice its TTL
			all = append(all, g)
		}
	}
	slices.SortFunc(all, func(a, b liveGrant) int {
		return cmp.Or(cmp.Compare(a.grant.Name, b.grant.Name), cmp.Compare(a.grant.Token, b.grant.Token), cmp.Compare(a.grant.Req, b.grant.Req))
	})
	return all
}

func (t *grants) add(g lockservice.Grant, shared bool, permits uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.live[grantKey{g.Name, g.Token, g.Req}] = liveGrant{g, t.clock.Now().Add(2 * g.TTL), shared, permits}
}

// find returns the grant that a client names. The error matches [lockservice.ErrNotHeld].
func (t *grants) find(k grantKey) (lockservice.Grant, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if g, ok := t.live[k]; ok && t.clock.Now() < g.until {
		return g.grant, nil
	}
	delete(t.live, k)
	return lockservice.Grant{}, fmt.Errorf("%w: lock %q with token %v was not granted by this daemon process, or has ended", lockservice.ErrNotHeld, k.name, k.token)
}

func (t *grants) renewed(k grantKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if g, ok := t.live[k]; ok {
		g.until = t.clock.Now().Add(2 * g.grant.TTL)
		t.live[k] = g
	}
}

func (t *grants) drop(k grantKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.live, k)
}
