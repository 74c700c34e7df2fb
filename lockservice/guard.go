package lockservice

import (
	"fmt"
	"sync"
)

// Guard protects one resource from holders that have been overtaken: it remembers the highest token it has seen and
// refuses lower ones with [ErrStaleToken]. An equal one is accepted, since it comes from the same holder. With it a
// resource is safe without any assumption about clocks; without it, two clients can touch the resource at once when one
// of them is delayed past its lease.
//
// It belongs to the resource, not to the client: one Guard per lock name, where every write passes. It lives in memory, so
// it forgets when its process ends; where the resource outlives the process, keep the token with the data ([FileGuard], or
// a condition on the row of a database).
//
// The zero value has seen nothing and is ready. It is safe for concurrent use and must not be copied after first use.
type Guard struct {
	mu      sync.Mutex
	highest Token
}

// Do calls effect if token is not stale, and returns what it returns. No other call runs meanwhile, so nothing comes
// between the check and the effect. The token counts as seen even when effect fails: part of it may have happened.
func (g *Guard) Do(token Token, effect func() error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.checkLocked(token); err != nil {
		return err
	}
	return effect()
}

// Check accepts or refuses a token. It suits resources that execute one request at a time; otherwise a newer token may be
// accepted between this check and the effect that follows it, and [Guard.Do] is the right call.
func (g *Guard) Check(token Token) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.checkLocked(token)
}

// Highest returns the highest token seen, 0 before the first.
func (g *Guard) Highest() Token {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.highest
}

func (g *Guard) checkLocked(token Token) error {
	if err := checkToken(token, g.highest); err != nil {
		return err
	}
	g.highest = token
	return nil
}

// checkToken refuses what is below the highest token seen, and 0, which no lock ever issues.
func checkToken(token, highest Token) error {
	switch {
	case token == 0:
		return fmt.Errorf("%w: 0 is no token; pass Handle.Token", ErrStaleToken)
	case token < highest:
		return fmt.Errorf("%w: %v, and %v has been seen: another holder came later", ErrStaleToken, token, highest)
	}
	return nil
}
