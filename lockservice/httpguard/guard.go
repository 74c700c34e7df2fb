// Package httpguard is a fencing guard for what a lock protects behind an HTTP server: every request that changes it carries its token in
// a header, and one whose token is lower than one seen before is refused. A holder that has been delayed past its lease then changes
// nothing, whatever it believes (lock-protocols.md section 2.5).
//
// The token is the number of [lockservice.Handle.Token], or of LATCHKEY_FENCE in a command that "latchkey lock" runs:
//
//	latchkey lock catalogue -- sh -c 'curl -H "Latchkey-Fence: $LATCHKEY_FENCE" --data-binary @page http://store/page'
package httpguard

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"latchkey/lockservice"
)

// Header carries the token, in decimal.
const Header = "Latchkey-Fence"

// BodyBytesMax bounds the body of a guarded request. A longer one is refused with 413.
const BodyBytesMax = 8 << 20

// Handler returns a handler that lets requests pass to next whose token is not stale, one at a time: nothing comes between the check and
// what next does. One guard belongs to one lock, and every request that changes what the lock protects has to come by it; those that only
// read need not. A [lockservice.Guard] forgets when its process ends, so a server that is started anew takes the first token it sees: where
// that matters keep the token with the data, as [lockservice.FileGuard] and package sqlguard do.
//
// A body is read whole before it is a request's turn, so that a slow client holds up nobody; an answer is written in its turn, so give the
// server a WriteTimeout. Who is refused is told with 412 that the token is stale, with 428 that there is none, with 400 that it is no
// token, and with 413 that the body is too long; next does not run then.
func Handler(guard *lockservice.Guard, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, code, err := tokenOf(r)
		if err != nil {
			http.Error(w, err.Error(), code)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, BodyBytesMax))
		if err != nil {
			code := http.StatusBadRequest
			if errors.As(err, new(*http.MaxBytesError)) {
				code = http.StatusRequestEntityTooLarge
			}
			http.Error(w, "httpguard: the body cannot be read: "+err.Error(), code)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		err = guard.Do(token, func() error {
			next.ServeHTTP(w, r)
			return nil
		})
		if err != nil {
			http.Error(w, err.Error(), http.StatusPreconditionFailed)
		}
	})
}

// tokenOf reads the token, or says with which code a request is refused. A header that is there twice is no token: whoever forwards
// requests could have added one.
func tokenOf(r *http.Request) (lockservice.Token, int, error) {
	values := r.Header.Values(Header)
	if len(values) == 0 {
		return 0, http.StatusPreconditionRequired, fmt.Errorf("httpguard: the header %s is missing: send the fencing token of your lock", Header)
	}
	n, err := strconv.ParseUint(values[0], 10, 64)
	if err != nil || n == 0 || len(values) > 1 {
		return 0, http.StatusBadRequest, fmt.Errorf("httpguard: the header %s: send one fencing token, a decimal number above 0", Header)
	}
	return lockservice.Token(n), 0, nil
}

// SetToken has a request carry a token. The request's former token, if any, is replaced.
func SetToken(r *http.Request, token lockservice.Token) { r.Header.Set(Header, token.String()) }
