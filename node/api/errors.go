package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"latchkey/coherence"
	"latchkey/coherence/access"
	"latchkey/internal/loglevels"
	"latchkey/lockservice"
	latchkeyv1 "latchkey/node/api/latchkey/v1"
)

// ErrUnreachable is matched when no daemon answers at the address.
var ErrUnreachable = errors.New("api: daemon not reachable")

// ErrGone is matched, beside [ErrUnreachable], when nobody listens at the address: the daemon has ended, or never was. One that
// is started there later knows nothing of what was granted before.
var ErrGone = errors.New("api: no daemon listens")

// Errors about groups.
var (
	ErrNoGroup = errors.New("api: no such group")
	ErrAlive   = errors.New("api: the group is not lost")
	ErrPrefix  = errors.New("api: not a prefix of this overlay")
	ErrReseed  = errors.New("api: reseed document refused")
	ErrOwn     = errors.New("api: the group of the lock is as it was")
)

// Errors about peers.
var (
	// ErrPeer: it is no peer that we could speak to: no id, none whose address is known, or this peer itself.
	ErrPeer = errors.New("api: no such peer")
	// ErrConnect: the peer cannot be reached, or is none of the overlay's, or does not let us in.
	ErrConnect = errors.New("api: not connected")
)

// reasons is how each sentinel travels, in the order in which an error is held against them. An error matching several
// travels as the first: what is certain comes before the vague. lock.proto repeats this table.
var reasons = []struct {
	reason   latchkeyv1.Reason
	code     connect.Code
	sentinel error
}{
	{latchkeyv1.Reason_REASON_LOCKED, connect.CodeFailedPrecondition, lockservice.ErrLocked},
	{latchkeyv1.Reason_REASON_LOST, connect.CodeAborted, lockservice.ErrLost},
	{latchkeyv1.Reason_REASON_NOT_HELD, connect.CodeFailedPrecondition, lockservice.ErrNotHeld},
	{latchkeyv1.Reason_REASON_NAME, connect.CodeInvalidArgument, lockservice.ErrName},
	{latchkeyv1.Reason_REASON_TTL, connect.CodeInvalidArgument, lockservice.ErrTTL},
	{latchkeyv1.Reason_REASON_SHAPE, connect.CodeInvalidArgument, lockservice.ErrShape},
	{latchkeyv1.Reason_REASON_MODE, connect.CodeFailedPrecondition, lockservice.ErrMode},
	{latchkeyv1.Reason_REASON_LIMIT, connect.CodeResourceExhausted, lockservice.ErrLimit},
	{latchkeyv1.Reason_REASON_STALE_TOKEN, connect.CodeFailedPrecondition, lockservice.ErrStaleToken},
	{latchkeyv1.Reason_REASON_GUARD_FILE, connect.CodeDataLoss, lockservice.ErrGuardFile},
	{latchkeyv1.Reason_REASON_NO_GROUP, connect.CodeNotFound, ErrNoGroup},
	{latchkeyv1.Reason_REASON_ALIVE, connect.CodeFailedPrecondition, ErrAlive},
	{latchkeyv1.Reason_REASON_PREFIX, connect.CodeInvalidArgument, ErrPrefix},
	{latchkeyv1.Reason_REASON_RESEED, connect.CodeFailedPrecondition, ErrReseed},
	{latchkeyv1.Reason_REASON_OWN, connect.CodeFailedPrecondition, ErrOwn},
	{latchkeyv1.Reason_REASON_PEER, connect.CodeInvalidArgument, ErrPeer},
	{latchkeyv1.Reason_REASON_CONNECT, connect.CodeUnavailable, ErrConnect},
	{latchkeyv1.Reason_REASON_LOG_LEVEL, connect.CodeInvalidArgument, loglevels.ErrLevel},
	{latchkeyv1.Reason_REASON_SUBSYSTEM, connect.CodeNotFound, loglevels.ErrSubsystem},
	{latchkeyv1.Reason_REASON_RESTARTED, connect.CodeAborted, coherence.ErrRestarted},
	{latchkeyv1.Reason_REASON_BUSY, connect.CodeResourceExhausted, coherence.ErrBusy},
	{latchkeyv1.Reason_REASON_TOO_LARGE, connect.CodeInvalidArgument, coherence.ErrTooLarge},
	{latchkeyv1.Reason_REASON_OBJECT_NAME, connect.CodeInvalidArgument, coherence.ErrName},
	{latchkeyv1.Reason_REASON_LIMIT, connect.CodeResourceExhausted, coherence.ErrTooMany},
	{latchkeyv1.Reason_REASON_NO_APP, connect.CodeNotFound, ErrNoApp},
	{latchkeyv1.Reason_REASON_HOLD, connect.CodeFailedPrecondition, access.ErrHold},
	{latchkeyv1.Reason_REASON_CONFLICT, connect.CodeAborted, coherence.ErrConflict},
	{latchkeyv1.Reason_REASON_TAG, connect.CodeInvalidArgument, ErrTag},
	{latchkeyv1.Reason_REASON_VERSION, connect.CodeFailedPrecondition, coherence.ErrVersion},
	{latchkeyv1.Reason_REASON_FULL, connect.CodeResourceExhausted, coherence.ErrFull},
	{latchkeyv1.Reason_REASON_TTL, connect.CodeInvalidArgument, coherence.ErrTTL},
	{latchkeyv1.Reason_REASON_STALE, connect.CodeUnavailable, coherence.ErrStale},
	{latchkeyv1.Reason_REASON_OUTCOME_UNKNOWN, connect.CodeUnknown, lockservice.ErrOutcomeUnknown},
	{latchkeyv1.Reason_REASON_NO_QUORUM, connect.CodeUnavailable, lockservice.ErrNoQuorum},
	{latchkeyv1.Reason_REASON_OUTCOME_UNKNOWN, connect.CodeUnknown, coherence.ErrOutcomeUnknown},
	{latchkeyv1.Reason_REASON_NO_QUORUM, connect.CodeUnavailable, coherence.ErrNoQuorum},
	{latchkeyv1.Reason_REASON_WAIT, connect.CodeDeadlineExceeded, lockservice.ErrWait},
	{latchkeyv1.Reason_REASON_CLOSED, connect.CodeUnavailable, lockservice.ErrClosed},
	{latchkeyv1.Reason_REASON_CLOSED, connect.CodeUnavailable, coherence.ErrClosed},
}

// deadlineSlack is how far apart both ends may see one deadline.
const deadlineSlack = 100 * time.Millisecond

// encodeError turns what a backend returned into what travels.
func encodeError(err error) error {
	if err == nil {
		return nil
	}
	detail, code := &latchkeyv1.ErrorDetail{}, connect.CodeInternal
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		code = connect.CodeDeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = connect.CodeCanceled
	}
	for _, r := range reasons {
		if errors.Is(err, r.sentinel) {
			detail.Reason, code = r.reason, r.code
			break
		}
	}
	var locked *lockservice.LockedError
	if errors.As(err, &locked) {
		detail.Name, detail.Waiting = locked.Name, int64(locked.Waiting)
		detail.Holder = encodeParty(locked.Holder)
	}
	var conflict *coherence.ConflictError
	if errors.As(err, &conflict) {
		detail.Name, detail.Version, detail.Exists = conflict.Name, uint64(conflict.Found.Version), conflict.Found.Exists
	}
	ce := connect.NewError(code, errors.New(Plain(err.Error())))
	if d, err := connect.NewErrorDetail(detail); err == nil {
		ce.AddDetail(d)
	}
	return ce
}

// remoteError is an error that a daemon answered. It reads as the daemon said it, and unwraps to the sentinel that its
// reason stands for and to the [connect.Error].
type remoteError struct {
	sentinel error // nil when the reason is none we know
	wire     *connect.Error
}

func (e *remoteError) Error() string { return e.wire.Message() }

func (e *remoteError) Unwrap() []error {
	if e.sentinel == nil {
		return []error{e.wire}
	}
	return []error{e.sentinel, e.wire}
}

// decodeError turns the error of a call into what the caller matches: the sentinel that the daemon meant; else the cause of
// ctx, when that has ended; else [ErrUnreachable], if no daemon answered. unsure says that the call changes something: when it
// broke off after it was sent, the error matches [lockservice.ErrOutcomeUnknown] too.
func decodeError(ctx context.Context, addr string, err error, unsure bool) error {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		ce = connect.NewError(connect.CodeUnknown, err)
	}
	for _, d := range ce.Details() {
		m, err := d.Value()
		if detail, ok := m.(*latchkeyv1.ErrorDetail); err == nil && ok {
			if s := sentinelOf(detail, ce); s != nil {
				return s
			}
		}
	}
	if isLimited(ctx) && ctx.Err() == nil && connect.IsWireError(err) && ce.Code() == connect.CodeDeadlineExceeded {
		return &remoteError{sentinel: context.DeadlineExceeded, wire: ce}
	}
	// The daemon was told our deadline and may notice it a little earlier than we do.
	if end, ok := ctx.Deadline(); ok && ce.Code() == connect.CodeDeadlineExceeded && time.Until(end) < deadlineSlack {
		<-ctx.Done()
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case connect.IsWireError(err) && (ce.Code() == connect.CodeUnauthenticated || ce.Code() == connect.CodePermissionDenied):
		return &remoteError{sentinel: ErrToken, wire: ce}
	case connect.IsWireError(err):
		return &remoteError{wire: ce}
	case unsure && !neverSent(err):
		return fmt.Errorf("%w at %s: %w: it went away during the call", ErrUnreachable, addr, lockservice.ErrOutcomeUnknown)
	case neverSent(err):
		why := reason(ce.Unwrap())
		var cert *tls.CertificateVerificationError
		if errors.As(err, &cert) {
			why = fmt.Errorf("%w; where its authority is one of your own, name it by --api-ca", cert.Err)
		}
		err := fmt.Errorf("%w at %s: %v", ErrUnreachable, addr, why)
		if nobodyListens(ce) {
			return &goneError{err}
		}
		return err
	}
	return fmt.Errorf("%w at %s: it went away during the call", ErrUnreachable, addr)
}

// goneError is an error that matches [ErrGone] too, and does not say more for that.
type goneError struct{ error }

func (e *goneError) Unwrap() error        { return e.error }
func (e *goneError) Is(target error) bool { return target == ErrGone }

// endedError is a release that a daemon which is gone cannot carry out. It matches [lockservice.ErrClosed], after which the
// keeper of a lock does not try again.
type endedError struct{ error }

func (e *endedError) Unwrap() error        { return e.error }
func (e *endedError) Is(target error) bool { return target == lockservice.ErrClosed }

// nobodyListens tells the absence of a daemon from one that cannot be reached for now, such as by lack of descriptors.
func nobodyListens(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)
}

// reason is what the system said, without the address that the message names already.
func reason(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// sentinelOf returns the error that the daemon's reason stands for, or nil when there is none.
func sentinelOf(d *latchkeyv1.ErrorDetail, ce *connect.Error) error {
	if d.Reason == latchkeyv1.Reason_REASON_LOCKED && d.Name != "" {
		return &lockservice.LockedError{Name: d.Name, Holder: decodeParty(d.Holder), Waiting: int(d.Waiting)}
	}
	if d.Reason == latchkeyv1.Reason_REASON_CONFLICT && d.Name != "" {
		return &coherence.ConflictError{Name: d.Name, Found: coherence.Value{Version: coherence.Version(d.Version), Exists: d.Exists}}
	}
	for _, r := range reasons {
		if r.reason == d.Reason {
			return &remoteError{sentinel: r.sentinel, wire: ce}
		}
	}
	return nil
}
