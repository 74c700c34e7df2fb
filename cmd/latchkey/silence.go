package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"latchkey/lockservice"
	"latchkey/node/api"
)

// groupTimeoutDefault is how long a lock's group has to answer when nobody set --timeout. One that lives answers in milliseconds,
// or in two or three seconds when it has just lost its leader.
const groupTimeoutDefault = 5 * time.Second

// groupTimeout is how long a lock's group has to answer; 0 is no limit.
func (a *app) groupTimeout() time.Duration {
	if a.timeoutSet {
		return a.timeout
	}
	return groupTimeoutDefault
}

// askGroup returns a context for a question to a lock's group through the daemon, which is given a little less time than we wait.
// Whoever does not answer, group or daemon, is so known.
func (a *app) askGroup(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d == 0 {
		return context.WithCancel(ctx)
	}
	end := time.Now().Add(d)
	ctx, cancel := context.WithDeadlineCause(ctx, end, a.daemonSilent(d))
	return api.LimitDaemon(ctx, end.Add(-spare(d))), cancel
}

// spare is how much of d the daemon is not given, since its answer takes time to arrive.
func spare(d time.Duration) time.Duration { return min(d/5, 500*time.Millisecond) }

// daemonSilentError is the end of a call that the daemon did not answer.
type daemonSilentError struct {
	socket string
	after  time.Duration
}

func (e *daemonSilentError) Error() string {
	return fmt.Sprintf("the daemon at %s did not answer within %v; it may be stopped or overloaded (see --timeout)", e.socket, e.after)
}

func (a *app) daemonSilent(d time.Duration) error { return &daemonSilentError{a.socket(), d} }

// callGroup runs fn, which asks the group of the lock named name through the daemon.
func (a *app) callGroup(c *cobra.Command, name string, fn func(ctx context.Context, daemon *api.Client) error) error {
	daemon, err := a.dial()
	if err != nil {
		return err
	}
	defer daemon.Close()
	d := a.groupTimeout()
	ctx, cancel := a.askGroup(c.Context(), d)
	defer cancel()
	about := a.inquire(c.Context(), daemon, name, d)
	defer about.stop()
	start := time.Now()
	if err = fn(ctx, daemon); groupSilent(err, start, d) {
		return about.silence(d)
	}
	return a.explain(err)
}

// groupSilent reports whether err, at the end of a question that began at start and was given d, says that the daemon got no
// answer from a lock's group.
func groupSilent(err error, start time.Time, d time.Duration) bool {
	late := d > 0 && time.Since(start) > d*3/4
	switch {
	case errors.Is(err, api.ErrUnreachable):
		return false
	case errors.Is(err, lockservice.ErrNoQuorum):
		return true
	}
	return late && (errors.Is(err, lockservice.ErrOutcomeUnknown) || errors.Is(err, context.DeadlineExceeded))
}

// inquiry finds out what is known about a lock's group while that has not answered.
type inquiry struct {
	name  string
	found chan struct{} // closed when text and err are set
	text  string
	err   error
	stop  context.CancelFunc
}

// Times of an inquiry: when it begins at the latest, and how long it may last, since the daemon looks for the group and for its
// leader meanwhile.
const (
	inquireAfter = time.Second
	inquireMax   = 4 * time.Second
)

// inquire begins an inquiry some time before d has passed, so that it is done by then; d = 0 is no limit. stop ends it.
func (a *app) inquire(ctx context.Context, daemon *api.Client, name string, d time.Duration) *inquiry {
	after := inquireAfter
	if d > 0 {
		after = min(after, d/4)
	}
	q := &inquiry{name: name, found: make(chan struct{})}
	ctx, q.stop = context.WithCancel(ctx)
	go func() {
		defer close(q.found)
		begin := time.NewTimer(after)
		defer begin.Stop()
		select {
		case <-begin.C:
		case <-ctx.Done():
			return
		}
		ctx, cancel := context.WithTimeoutCause(ctx, inquireMax, a.daemonSilent(inquireMax))
		defer cancel()
		q.text, q.err = aboutGroup(ctx, daemon, name)
	}()
	return q
}

// silence is the end of a question that the group did not answer within d: no conflict, so scripts that allow for one must not
// take it for one.
func (q *inquiry) silence(d time.Duration) error {
	select {
	case <-q.found:
	case <-time.After(inquireMax):
	}
	within := ""
	if d > 0 {
		within = fmt.Sprintf(" within %v", d)
	}
	select {
	case <-q.found:
		if q.err != nil {
			return &exitError{exitFailure, q.err}
		}
		if q.text != "" {
			return exitf(exitFailure, "lock %q: its group gave no answer%s; %s", q.name, within, q.text)
		}
	default:
	}
	return exitf(exitFailure, "lock %q: its group gave no answer%s, and who is in it could not be found out: start peers that are down, "+
		"founders above all, or mend the network between them; latchkey peers tells whom this daemon reaches. A root that was brought back a moment ago makes no groups for some minutes", q.name, within)
}

// shutOutError is what ends a wait for a lock that cannot come: the daemon's peer may not be in the overlay.
type shutOutError struct{ why string }

func (e *shutOutError) Error() string { return "the daemon is shut out of the overlay: " + e.why }

// shutOutLook is how often somebody who waits for a lock looks whether the daemon's peer may still be in the overlay.
const shutOutLook = 10 * time.Second

// endShutOut ends a wait when the daemon's peer may not be in the overlay any more. acquired is closed when the wait is over.
func (a *app) endShutOut(ctx context.Context, daemon *api.Client, acquired <-chan struct{}, end context.CancelCauseFunc) {
	look := time.NewTicker(shutOutLook)
	defer look.Stop()
	for {
		select {
		case <-look.C:
		case <-acquired:
			return
		}
		ctx, cancel := context.WithTimeout(ctx, shutOutLook)
		s, err := daemon.Status(ctx)
		cancel()
		if err == nil && s.ShutOut != "" {
			end(&shutOutError{s.ShutOut})
			return
		}
	}
}

// noteSilence tells the person who waits for a lock when nothing has been heard of its group for long, and ends the wait when that is
// because the daemon's peer may not be in the overlay. heard says that something was; acquired is closed when the wait is over.
func (a *app) noteSilence(about *inquiry, acquired <-chan struct{}, end context.CancelCauseFunc) (heard func()) {
	sign, once := make(chan struct{}), sync.Once{}
	go func() {
		long := time.NewTimer(groupTimeoutDefault)
		defer long.Stop()
		select {
		case <-long.C:
		case <-sign:
			return
		case <-acquired:
			return
		}
		silence := about.silence(groupTimeoutDefault)
		select {
		case <-sign:
		case <-acquired:
		default:
			if out := new(shutOutError); errors.As(silence, &out) {
				end(out)
				return
			}
			a.note(oneLine(silence) + " (waiting on)")
		}
	}()
	return func() { once.Do(func() { close(sign) }) }
}

// noteDelay tells the person who waits for a lock for long that nobody holds it, and for how long it will be granted to nobody yet.
// acquired is closed when the wait is over.
func (a *app) noteDelay(ctx context.Context, daemon *api.Client, name string, acquired <-chan struct{}) {
	long := time.NewTimer(groupTimeoutDefault)
	defer long.Stop()
	select {
	case <-long.C:
	case <-acquired:
		return
	}
	text := delayed(ctx, daemon, name)
	select {
	case <-acquired:
	default:
		if text != "" {
			a.note(fmt.Sprintf("lock %q: %s (waiting on)", name, text))
		}
	}
}

// notFreeError is the end of a try or a limited wait for a lock that somebody has, or nobody may have. It reads as what is known of that.
type notFreeError struct {
	text  string
	cause error
}

func (e *notFreeError) Error() string { return e.text }
func (e *notFreeError) Unwrap() error { return e.cause }

// notFree says who holds a lock that was not acquired, or that nobody does. What cannot be found out in a moment is not said.
func notFree(ctx context.Context, daemon *api.Client, name string, err error) error {
	ctx, cancel := context.WithTimeout(ctx, delayMax)
	defer cancel()
	i, infoErr := daemon.Locks().Info(ctx, name)
	if infoErr != nil {
		return err
	}
	what := fmt.Sprintf("lock %q is not free", name)
	if errors.Is(err, lockservice.ErrWait) {
		what = fmt.Sprintf("lock %q was not acquired within the wait limit", name)
	}
	return &notFreeError{what + ": " + whyNotFree(i), err}
}

// whyNotFree says why one who has just asked for a lock has not been given it.
func whyNotFree(i lockservice.Info) string {
	waiting := ""
	if i.Waiting > 0 {
		waiting = fmt.Sprintf("; %d waiting", i.Waiting)
	}
	switch {
	case i.Permits > 0 && i.Holding > 0:
		return fmt.Sprintf("%d of %d permits are held", i.Holding, i.Permits) + waiting
	case i.Shared && i.Holding > 1:
		return fmt.Sprintf("%d share it", i.Holding) + waiting
	case i.Held:
		return fmt.Sprintf("%s holds it, token %v", i.Holder, i.Token) + waiting
	case i.DelayLeft > 0:
		return delayText(i)
	case i.Waiting > 0:
		return "nobody holds it, and it is being granted" + waiting
	}
	return "it was held when we asked, and nobody holds it now"
}

// delayMax bounds the question whether a lock is granted to nobody, which only explains what is known already.
const delayMax = time.Second

// delayed says for how long a lock that nobody holds is granted to nobody, or nothing where that is not so or cannot be found out.
func delayed(ctx context.Context, daemon *api.Client, name string) string {
	ctx, cancel := context.WithTimeout(ctx, delayMax)
	defer cancel()
	i, err := daemon.Locks().Info(ctx, name)
	if err != nil || i.Held || i.DelayLeft <= 0 {
		return ""
	}
	return delayText(i)
}

func delayText(i lockservice.Info) string {
	return fmt.Sprintf("nobody holds it, and it is granted to nobody for %v yet, since leases or a lock delay from before may last",
		i.DelayLeft.Round(100*time.Millisecond))
}

// aboutGroup tells what the daemon knows of the group of a lock that does not answer, and what to do. An error is a daemon that
// does not answer either, or whose peer may not be in the overlay.
func aboutGroup(ctx context.Context, daemon *api.Client, name string) (string, error) {
	if s, err := daemon.Status(ctx); err == nil && s.ShutOut != "" {
		return "", &shutOutError{s.ShutOut}
	}
	id, err := daemon.ID(ctx)
	if err != nil {
		return "", err
	}
	peers, err := daemon.Peers(ctx)
	if err != nil {
		return "", err
	}
	k, err := daemon.Key(api.LimitDaemon(ctx, time.Now().Add(inquireMax*4/5)), name)
	switch {
	case errors.Is(err, api.ErrUnreachable), errors.As(err, new(*daemonSilentError)):
		return "", err
	case err != nil || k.Group == nil:
		return "", nil
	}
	return groupStanding(k.Group, connectedTo(id, peers)), nil
}

// connectedTo returns who is connected to a daemon, itself included.
func connectedTo(id api.Info, peers []api.Peer) map[string]bool {
	here := map[string]bool{id.Peer: true}
	for _, p := range peers {
		if p.Connected {
			here[p.Peer] = true
		}
	}
	return here
}

// groupStanding tells who of a silent group is connected, and what to do.
func groupStanding(g *api.GroupInfo, connected map[string]bool) string {
	prefix, _, _ := strings.Cut(g.ID, "@")
	var here, away []string
	for _, m := range g.Members {
		if connected[m] {
			here = append(here, m)
		} else {
			away = append(away, m)
		}
	}
	names := func(ids []string) string {
		if len(ids) == 0 {
			return "none"
		}
		return strings.Join(ids, ", ")
	}
	todo := "start those that are down, or mend the network between them; if too many are gone for good, latchkey group revive " + prefix
	if len(away) == 0 {
		todo = "try again, since they may be choosing a leader; if it stays so, the network between them is cut"
	}
	return fmt.Sprintf("it keeps prefix %s and needs %d of its %d members, of which this daemon is connected to %s and not to %s: %s",
		prefix, len(g.Members)/2+1, len(g.Members), names(here), names(away), todo)
}
