package lockservice

import (
	"context"
	"errors"

	"latchkey/lockservice/sigma"
)

// Break has the table take the name over from the voters first, which tells their holder at once: it claims, and hears that it has lost.
//
// A voter may know a higher number of the hold than the majority that has told [Sigma.inspect] of it, and then the table has it under
// that: if the holder is the one whose token was named, that hold is meant.
func (b *sigmaBackend) Break(ctx context.Context, name string, token Token) (Party, error) {
	if err := CheckName(name); err != nil {
		return Party{}, err
	}
	before, seen := b.sigma.inspect(ctx, name)
	p, err := b.table.Break(ctx, name, token)
	if !errors.Is(err, ErrNotHeld) || seen != nil || !before.Held || before.Token != token {
		return p, err
	}
	now, again := b.table.Info(ctx, name)
	if again != nil || !now.Held || now.Holder != before.Holder || now.Token <= token {
		return p, err
	}
	return b.table.Break(ctx, name, now.Token)
}

// Ended implements [Ender].
func (b *sigmaBackend) Ended(ctx context.Context, g Grant) error {
	if g.Req < sigmaReqs {
		return b.table.Ended(ctx, g)
	}
	l := b.held(g)
	if l == nil {
		return nil
	}
	l.mu.Lock()
	core := l.core
	l.mu.Unlock()
	return l.wait(ctx, b.closing, func() bool { return l.core != core || l.lost || l.end.Kind != 0 || core.State() != sigma.ClientHeld })
}
