package api_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	"latchkey/lockservice"
	"latchkey/node/api"
	latchkeyv1 "latchkey/node/api/latchkey/v1"
)

// onTCP has a daemon answer on TCP too, and returns its URL and the file of its tokens.
func (w *world) onTCP() (base, file string) {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	file = filepath.Join(w.t.TempDir(), "tokens.json")
	done := make(chan error, 1)
	go func() {
		done <- w.server.ServeTCP(l, api.GuardConfig{Tokens: file, Hosts: []string{"latchkey.example"}})
	}()
	w.t.Cleanup(func() {
		w.server.Close()
		if err := <-done; err != nil {
			w.t.Errorf("ServeTCP: %v", err)
		}
	})
	return "http://" + l.Addr().String(), file
}

// tokenFor makes a token.
func tokenFor(t *testing.T, file, name string, scopes ...api.Scope) string {
	t.Helper()
	token, err := api.MakeToken(file, name, scopes, 0)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func with(t *testing.T, base, token string) *api.Client {
	t.Helper()
	c, err := api.Dial(base, api.WithToken(token))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Abandon)
	return c
}

func TestCallsOnTCPNeedATokenOfTheirScope(t *testing.T) {
	w := newWorld(t, nil)
	base, file := w.onTCP()
	ctx := t.Context()
	look := func(c *api.Client) error { _, err := c.Status(ctx); return err }
	hold := func(c *api.Client) error {
		_, err := c.LockBackend().Acquire(ctx, lockservice.Request{Name: "n", TTL: 10 * time.Second, Try: true})
		if errors.Is(err, lockservice.ErrLocked) {
			return nil
		}
		return err
	}
	object := func(c *api.Client) error { // there are none here
		_, err := c.Apps(ctx)
		if err != nil && !errors.Is(err, api.ErrToken) {
			_, err = c.GetDurable(ctx, "a", "x")
			return notToken(err)
		}
		return err
	}
	admin := func(c *api.Client) error { _, err := c.Revive(ctx, "a3/8", 1, false); return notToken(err) }
	calls := map[string]func(*api.Client) error{"read": look, "lock": hold, "object": object, "admin": admin}
	for name, scopes := range map[string][]api.Scope{
		"read": {api.ScopeRead}, "lock": {api.ScopeLock}, "object": {api.ScopeObject}, "admin": {api.ScopeAdmin}, "two": {api.ScopeRead, api.ScopeLock},
	} {
		c := with(t, base, tokenFor(t, file, name, scopes...))
		for call, f := range calls {
			may := name == call || name == "admin" || name == "two" && (call == "read" || call == "lock")
			if err := f(c); (err == nil) != may || err != nil && !errors.Is(err, api.ErrToken) {
				t.Errorf("%s with a token for %s: %v", call, name, err)
			}
		}
		if _, err := c.ID(ctx); err != nil { // which every client asks
			t.Errorf("id with a token for %s: %v", name, err)
		}
	}
	for what, c := range map[string]struct {
		client *api.Client
		says   string
	}{
		"none":    {with(t, base, ""), "latchkey token new"},
		"unknown": {with(t, base, "lkapi_unknown"), "does not know this token"},
		"hash":    {with(t, base, hashIn(t, file)), "does not know this token"},
	} {
		if err := look(c.client); !errors.Is(err, api.ErrToken) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// The unix socket needs none.
	if err := look(w.client); err != nil {
		t.Error(err)
	}
}

// notToken hides every error but that of a token.
func notToken(err error) error {
	if errors.Is(err, api.ErrToken) {
		return err
	}
	return nil
}

// hashIn is what somebody finds who reads the file.
func hashIn(t *testing.T, file string) string {
	t.Helper()
	tokens, err := api.ReadTokens(file)
	if err != nil || len(tokens) == 0 {
		t.Fatal(tokens, err)
	}
	return tokens[0].Hash
}

func TestARevokedTokenEndsWhatIsUnderWay(t *testing.T) {
	w := newWorld(t, nil)
	base, file := w.onTCP()
	c := with(t, base, tokenFor(t, file, "ci", api.ScopeLock))
	if _, err := w.locks.Acquire(t.Context(), lockservice.Request{Name: "n", TTL: time.Minute}); err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error, 1)
	go func() {
		_, err := c.LockBackend().Acquire(t.Context(), lockservice.Request{Name: "n", TTL: time.Minute})
		waiting <- err
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if !w.Until(ctx, func() bool { _, n := w.State("n"); return n == 1 }) {
		t.Fatal("nobody waits")
	}
	if err := api.RevokeToken(file, "ci"); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; err == nil {
		t.Error("granted to a revoked token")
	}
	if !w.Until(ctx, func() bool { _, n := w.State("n"); return n == 0 }) {
		t.Error("it still waits in the queue")
	}
	if _, err := c.ID(t.Context()); !errors.Is(err, api.ErrToken) {
		t.Errorf("a revoked token: %v", err)
	}
}

func TestWebPagesAreRefused(t *testing.T) {
	w := newWorld(t, nil)
	base, file := w.onTCP()
	good := tokenFor(t, file, "look", api.ScopeRead)
	for _, c := range []struct {
		host, origin string
		want         int
	}{
		{"", "", 200}, {"localhost:1", "", 200}, {"[::1]:1", "", 200}, {"Latchkey.Example", "", 200},
		{"evil.example", "", 403}, {"localhost.evil.example", "", 403}, {"", "http://localhost", 403}, {"", "null", 403},
	} {
		for _, method := range []string{http.MethodPost, http.MethodOptions} {
			r, err := http.NewRequestWithContext(t.Context(), method, base+"/latchkey.v1.NodeService/Id", strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("Authorization", "Bearer "+good)
			r.Host = c.host
			if c.origin != "" {
				r.Header.Set("Origin", c.origin)
			}
			tr := &http.Transport{}
			res, err := tr.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(res.Body)
			res.Body.Close()
			tr.CloseIdleConnections()
			want := c.want
			if method == http.MethodOptions && want == 200 {
				want = http.StatusMethodNotAllowed
			}
			if res.StatusCode != want || res.Header.Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("%s for %q from %q: %d %s", method, c.host, c.origin, res.StatusCode, body)
			}
		}
	}
}

// Whoever adds a procedure decides who may call it: without a decision it is for admins.
func TestEveryProcedureHasItsScopes(t *testing.T) {
	for _, f := range []protoreflect.FileDescriptor{latchkeyv1.File_latchkey_v1_node_proto, latchkeyv1.File_latchkey_v1_lock_proto, latchkeyv1.File_latchkey_v1_object_proto, latchkeyv1.File_latchkey_v1_durable_proto} {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				name := "/" + string(s.FullName()) + "/" + string(s.Methods().Get(j).Name())
				if !slices.Contains(api.CallScopes(name), api.ScopeAdmin) {
					t.Errorf("%s is not for admins", name)
				}
			}
		}
	}
	for name, want := range map[string][]api.Scope{
		"/latchkey.v1.LockService/Break":    {api.ScopeAdmin},
		"/latchkey.v1.NodeService/Shutdown": {api.ScopeAdmin},
		"/latchkey.v1.NodeService/Reseed":   {api.ScopeAdmin},
		"/latchkey.v1.LockService/Acquire":  {api.ScopeLock, api.ScopeAdmin},
		"/latchkey.v1.ObjectService/Set":    {api.ScopeObject, api.ScopeAdmin},
		"/latchkey.v1.DurableService/Set":   {api.ScopeObject, api.ScopeAdmin},
		"/latchkey.v1.Unknown/Unknown":      {api.ScopeAdmin},
		"/":                                 {api.ScopeAdmin},
	} {
		if got := api.CallScopes(name); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

func TestTheFileOfTokens(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens.json")
	one := tokenFor(t, file, "one", api.ScopeRead)
	b, err := os.ReadFile(file)
	if err != nil || strings.Contains(string(b), one) {
		t.Errorf("the file holds the token, %v", err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	for _, c := range []struct {
		name   string
		scopes []api.Scope
		life   time.Duration
	}{
		{"one", []api.Scope{api.ScopeRead}, 0}, {"two", nil, 0}, {"two", []api.Scope{"all"}, 0}, {"a b", []api.Scope{api.ScopeRead}, 0},
		{strings.Repeat("n", api.TokenNameMax+1), []api.Scope{api.ScopeRead}, 0}, {"two", []api.Scope{api.ScopeRead}, -time.Second},
		{"two", []api.Scope{api.ScopeRead, api.ScopeRead}, 0},
	} {
		if _, err := api.MakeToken(file, c.name, c.scopes, c.life); !errors.Is(err, api.ErrTokens) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if err := api.RevokeToken(file, "two"); !errors.Is(err, api.ErrNoToken) {
		t.Error(err)
	}
	for _, damaged := range []string{"", "{", `[{"name":"x"}]`, `[{"name":"x","scopes":["read"],"sha256":"00"}]`} {
		if err := os.WriteFile(file, []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := api.ReadTokens(file); !errors.Is(err, api.ErrTokens) {
			t.Errorf("%q: %v", damaged, err)
		}
	}
}
