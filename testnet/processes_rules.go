package testnet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"latchkey/testnet/wire"
)

// change puts other faults in place of the standing ones, and waits until every peer that serves and is not paused has them, or
// ctx ends. A starting peer has them before it counts as serving, and a paused one when it goes on. to is given the standing ones and
// the number of peers, and called with p.mu held.
func (p *Processes) change(ctx context.Context, to func(faults, int) (faults, error)) error {
	version, hearers, err := p.replace(to)
	if err != nil {
		return err
	}
	return p.awaitTold(ctx, version, hearers)
}

// replace puts other faults in place of the standing ones, and returns what change waits for.
func (p *Processes) replace(to func(faults, int) (faults, error)) (version uint64, hearers []hearer, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return 0, nil, ErrClosed
	}
	f, err := to(p.standing, len(p.places))
	if err != nil {
		return 0, nil, err
	}
	p.standing = f
	p.version++
	p.announceLocked()
	for _, s := range p.places {
		if s.child != nil && s.ready && !s.paused {
			hearers = append(hearers, hearer{s, s.child, s.child.failures})
		}
	}
	return p.version, hearers, nil
}

// hearer is one life of a peer that is to have rules.
type hearer struct {
	*place
	life     *child
	failures int // of telling it, that there were before
}

// doneLocked reports whether a life has the rules of a version, or needs none; or that it could not be told them.
func (h hearer) doneLocked(version uint64) (bool, error) {
	switch {
	case h.child != h.life || h.paused || h.life.told >= version:
		return true, nil
	case h.life.failures > h.failures && h.life.failedVersion >= version:
		return true, describe(h.place, fmt.Errorf("it goes on by former rules, and is told again until it takes these: %w", h.life.failure))
	}
	return false, nil
}

// awaitTold waits until all have the rules of a version or need none, and returns why some could not be told them.
func (p *Processes) awaitTold(ctx context.Context, version uint64, hearers []hearer) error {
	var failures []error
	for {
		p.mu.Lock()
		hearers = slices.DeleteFunc(hearers, func(h hearer) bool {
			done, err := h.doneLocked(version)
			failures = append(failures, err)
			return done
		})
		news := p.newsLocked()
		p.mu.Unlock()
		if len(hearers) == 0 {
			return errors.Join(failures...)
		}
		select {
		case <-news:
		case <-p.life.Done():
			return ErrClosed
		case <-ctx.Done():
			for _, h := range hearers {
				failures = append(failures, describe(h.place, errors.New("it has not taken its rules yet")))
			}
			return errors.Join(append(failures, context.Cause(ctx))...)
		}
	}
}

// awaitReady waits until a peer that has said that it serves has the standing rules, and counts it as serving then. One that has ended
// since is somebody else's business.
func (p *Processes) awaitReady(ctx context.Context, s *place, c *child) error {
	for {
		p.mu.Lock()
		ended, told := s.child != c, c.told == p.version
		if !ended && told {
			s.ready = true
		}
		news, failure := p.newsLocked(), c.failure
		p.mu.Unlock()
		if ended || told {
			return nil
		}
		select {
		case <-news:
		case <-p.life.Done():
			return ErrClosed
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("it has not taken its rules: %w", context.Cause(ctx)), failure)
		}
	}
}

// inform tells one life of a peer the standing rules when they are others than it has, again and again until it takes them. It
// returns when that life ends. A peer that starts hears of a change as soon as it can, which is before it sends a byte or a moment after.
func (p *Processes) inform(s *place, c *child) {
	for {
		p.mu.Lock()
		version, rules := p.version, p.rulesLocked(s)
		c.telling = c.told != version && !s.paused && s.child == c
		telling, news := c.telling, p.newsLocked()
		p.mu.Unlock()
		var again <-chan time.Time
		if telling {
			err := p.tell(s, c, rules)
			p.mu.Lock()
			c.telling = false
			if c.failure = err; err == nil {
				c.told = version
			} else {
				c.failures++
				c.failedVersion = version
			}
			p.announceLocked()
			p.mu.Unlock()
			if err == nil {
				continue
			}
			again, news = time.After(tellPoll), nil
		}
		select {
		case <-news:
		case <-again:
		case <-c.ended:
			return
		}
	}
}

// rulesLocked returns the standing rules of a peer's wire. Called with p.mu held.
func (p *Processes) rulesLocked(s *place) wire.Rules {
	r := p.standing.rules(s.index, p.addrsLocked())
	r.Version = p.version
	return r
}

// tell gives one life of a peer its rules.
func (p *Processes) tell(s *place, c *child, rules wire.Rules) error {
	ctx, cancel := context.WithTimeoutCause(p.life, tellMax, fmt.Errorf("no answer after %v", tellMax))
	defer cancel()
	told := make(chan struct{})
	defer close(told)
	go func() {
		select {
		case <-c.ended:
			cancel()
		case <-told:
		}
	}()
	return wire.Remote{Socket: s.wireSocket()}.SetRules(ctx, rules)
}

// newsLocked returns what is closed by the next announceLocked. Both are called with p.mu held.
func (p *Processes) newsLocked() <-chan struct{} {
	if p.news == nil {
		p.news = make(chan struct{})
	}
	return p.news
}

// announceLocked tells those who wait that rules were changed or taken, or what a peer does.
func (p *Processes) announceLocked() {
	if p.news != nil {
		close(p.news)
		p.news = nil
	}
}
