package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"latchkey/coherence"
	"latchkey/coherence/access"
	"latchkey/internal/loglevels"
	"latchkey/lockservice"
	"latchkey/node/api"
)

// Exit codes. Scripts lean on them.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitUnreachable = 3
	exitNotFound    = 4
	exitNotAcquired = 75
	exitLost        = 76
	exitNotRunnable = 126 // the command of lock exists and cannot be run, as env(1) has it
	exitNoCommand   = 127 // the command of lock does not exist
	exitSignal      = 128 // plus the signal's number
)

// exitError ends the program with a code. A nil err ends it silently: everything has been said.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// A verb's RunE returns one of these, or any other error, whose code exitCode then finds:
//
//	return usagef("--nodes %d: at least 3", n)      // exit 2, wrong flags or arguments
//	return exitf(exitNotFound, "no peer %d", n)     // a code of the verb's choice
//	return silent(exitFailure)                       // the verb has printed its own report
//	return fmt.Errorf("testnet: %w", err)           // exit 1, or what a known sentinel stands for

func exitf(code int, format string, args ...any) error {
	return &exitError{code, fmt.Errorf(format, args...)}
}

func usagef(format string, args ...any) error { return exitf(exitUsage, format, args...) }

func silent(code int) error { return &exitError{code: code} }

// exitCode returns the code that err stands for.
func exitCode(err error) int {
	var exit *exitError
	var interrupt *interruptError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &exit):
		return exit.code
	case errors.As(err, &interrupt):
		return exitSignal + int(interrupt.sig)
	case errors.Is(err, lockservice.ErrName), errors.Is(err, lockservice.ErrTTL), errors.Is(err, lockservice.ErrShape),
		errors.Is(err, api.ErrAddr), errors.Is(err, api.ErrPrefix), errors.Is(err, api.ErrPeer), errors.Is(err, loglevels.ErrLevel), errors.Is(err, coherence.ErrName), errors.Is(err, coherence.ErrTooLarge):
		return exitUsage
	case errors.Is(err, api.ErrNoGroup), errors.Is(err, api.ErrNoApp), errors.Is(err, loglevels.ErrSubsystem):
		return exitNotFound
	case errors.Is(err, api.ErrUnreachable), errors.Is(err, lockservice.ErrClosed):
		return exitUnreachable
	case errors.Is(err, lockservice.ErrLocked), errors.Is(err, lockservice.ErrWait), errors.Is(err, coherence.ErrBusy):
		return exitNotAcquired
	case errors.Is(err, lockservice.ErrLost), errors.Is(err, access.ErrHold):
		return exitLost
	}
	return exitFailure
}

// oneLine makes an error fit one line that only shows, whatever it quotes, and says nothing of the packages it comes from.
func oneLine(err error) string {
	return plain(strings.Join(strings.FieldsFunc(api.Plain(err.Error()), func(r rune) bool { return r == '\n' || r == '\r' }), "; "))
}

// interruptError is the cause with which a context of interruptible ends.
type interruptError struct{ sig syscall.Signal }

func (e *interruptError) Error() string { return "interrupted by signal: " + e.sig.String() }

// interruption returns the cause of ctx where that is an [interruptError], of which every part of what was under way may say that it ended by it,
// and else err.
func interruption(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.As(cause, new(*interruptError)) {
		return cause
	}
	return err
}

// insistAfter is how long after the first signal another one means that the program shall end at once. Those before are the same
// wish told twice: a terminal, timeout(1) and supervisors may signal both a process and its group.
const insistAfter = 500 * time.Millisecond

// interruptible returns a context that ends at the first SIGINT or SIGTERM with an *interruptError as its cause. Another
// one, insistAfter later or more, ends the program at once. stop gives the signals back.
func interruptible(parent context.Context) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	quit := make(chan struct{})
	go func() {
		for first := (time.Time{}); ; {
			select {
			case s := <-signals:
				sig := s.(syscall.Signal)
				switch {
				case first.IsZero():
					first = time.Now()
					cancel(&interruptError{sig})
				case time.Since(first) >= insistAfter:
					os.Exit(exitSignal + int(sig))
				}
			case <-quit:
				return
			}
		}
	}()
	return ctx, func() { signal.Stop(signals); close(quit); cancel(nil) }
}
