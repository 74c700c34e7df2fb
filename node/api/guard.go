package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"latchkey/node/api/latchkey/v1/latchkeyv1connect"
)

// GuardConfig says how a server answers on TCP.
type GuardConfig struct {
	Tokens string   // file of tokens ([MakeToken])
	Hosts  []string // names under which the daemon may be asked, beside localhost and IP addresses
	TLS    *tls.Config
}

// ServeTCP answers on l, which it owns, until Close: to calls with a token whose scope allows them. Whoever comes by way of a web page is
// refused, whatever it has: a request with an Origin, and one for a Host name that the daemon was not told, as a page makes whose name has
// been pointed at this machine.
func (s *Server) ServeTCP(l net.Listener, c GuardConfig) error {
	h := s.newHTTP(s.guarded(c, s.Handler()))
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		l.Close()
		return nil
	}
	s.others = append(s.others, h)
	s.mu.Unlock()
	if c.TLS != nil {
		t := c.TLS.Clone()
		t.NextProtos = []string{"h2", "http/1.1"}
		l = tls.NewListener(l, t)
	}
	if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("api: serve: %w", err)
	}
	return nil
}

// guarded lets through who may call.
func (s *Server) guarded(c GuardConfig, next http.Handler) http.Handler {
	tokens := &tokenFile{path: c.Tokens}
	errs := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := checkHost(r, c.Hosts); err != nil {
			http.Error(w, "latchkey: "+Plain(err.Error()), http.StatusForbidden)
			return
		}
		refuse := func(code connect.Code, status int, err error) {
			ce := connect.NewError(code, errors.New(Plain(err.Error())))
			if errs.IsSupported(r) {
				_ = errs.Write(w, r, ce)
				return
			}
			http.Error(w, "latchkey: "+Plain(err.Error()), status)
		}
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok {
			w.Header().Set("WWW-Authenticate", "Bearer")
			refuse(connect.CodeUnauthenticated, http.StatusUnauthorized, fmt.Errorf("%w: there is none; the API on TCP wants one: make it with latchkey token new, "+
				"and give it by LATCHKEY_API_TOKEN or --api-token-file", ErrToken))
			return
		}
		t, err := tokens.find(token, time.Now())
		if err != nil {
			w.Header().Set("WWW-Authenticate", "Bearer")
			refuse(connect.CodeUnauthenticated, http.StatusUnauthorized, err)
			return
		}
		if want := CallScopes(r.URL.Path); !slices.ContainsFunc(want, t.allows) {
			refuse(connect.CodePermissionDenied, http.StatusForbidden, fmt.Errorf("%w: token %s is for %s, and this call needs %s", ErrToken, t.Name, scopeList(t.Scopes, " and "), scopeList(want, " or ")))
			return
		}
		ctx, cancel := context.WithCancelCause(r.Context())
		defer cancel(nil)
		go func() { // a call may last, and a token may not
			tick := time.NewTicker(tokenRecheck)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
					if _, err := tokens.find(token, time.Now()); err != nil {
						cancel(err)
						return
					}
				}
			}
		}()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

func scopeList(scopes []Scope, between string) string {
	var names []string
	for _, s := range scopes {
		names = append(names, string(s))
	}
	return strings.Join(names, between)
}

// checkHost refuses what web pages send.
func checkHost(r *http.Request, names []string) error {
	if o := r.Header.Get("Origin"); o != "" {
		return fmt.Errorf("a web page of %.100q asks, and the API answers no web pages", o)
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(strings.ToLower(host), "["), "]")
	if _, err := netip.ParseAddr(host); err == nil || host == "localhost" {
		return nil
	}
	if slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, host) }) {
		return nil
	}
	return fmt.Errorf("it was asked as %.100q, which is not a name it was told: add it to api.hosts, or use an IP address", host)
}

// readOnly are the procedures that tell and change nothing.
var readOnly = []string{
	latchkeyv1connect.NodeServiceIdProcedure, latchkeyv1connect.NodeServicePeersProcedure, latchkeyv1connect.NodeServiceStatusProcedure,
	latchkeyv1connect.NodeServiceKeyProcedure, latchkeyv1connect.NodeServiceGroupsProcedure, latchkeyv1connect.NodeServiceGroupProcedure,
	latchkeyv1connect.NodeServiceGravesProcedure, latchkeyv1connect.NodeServiceLogLevelsProcedure,
	latchkeyv1connect.LockServiceInfoProcedure, latchkeyv1connect.LockServiceListProcedure, latchkeyv1connect.LockServiceListOverlayProcedure,
	latchkeyv1connect.LockServiceChangesProcedure, latchkeyv1connect.LockServiceEndedProcedure,
}

// forLocks are the procedures that who takes locks needs. Break, which takes a lock from another, is not among them.
var forLocks = []string{
	latchkeyv1connect.LockServiceLimitsProcedure, latchkeyv1connect.LockServiceAcquireProcedure, latchkeyv1connect.LockServiceRenewProcedure,
	latchkeyv1connect.LockServiceReleaseProcedure, latchkeyv1connect.LockServiceInfoProcedure, latchkeyv1connect.LockServiceChangesProcedure,
	latchkeyv1connect.LockServiceEndedProcedure,
}

// CallScopes returns the scopes that allow a procedure. What is not named here, as a procedure that is new, needs admin.
func CallScopes(procedure string) []Scope {
	var scopes []Scope
	if slices.Contains(readOnly, procedure) {
		scopes = append(scopes, ScopeRead)
	}
	if slices.Contains(forLocks, procedure) {
		scopes = append(scopes, ScopeLock)
	}
	if strings.HasPrefix(procedure, "/"+latchkeyv1connect.ObjectServiceName+"/") || strings.HasPrefix(procedure, "/"+latchkeyv1connect.DurableServiceName+"/") {
		scopes = append(scopes, ScopeObject)
	}
	if procedure == latchkeyv1connect.NodeServiceVersionProcedure || procedure == latchkeyv1connect.NodeServiceIdProcedure {
		return []Scope{ScopeRead, ScopeLock, ScopeObject, ScopeAdmin}
	}
	return append(scopes, ScopeAdmin)
}
