package api_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"crypto/tls"
	"crypto/x509"
	"path/filepath"

	logging "github.com/ipfs/go-log/v2"

	"latchkey/internal/loglevels"
	"latchkey/node/api"
	"latchkey/node/api/apitest"
)

func TestPeersAndLogLevelsTravel(t *testing.T) {
	w := newWorld(t, nil)
	ctx, want := t.Context(), apitest.Node{}
	wantConn, _ := want.Connect(ctx, "/ip4/127.0.0.1/tcp/2/p2p/12D3KooWone")
	if got, err := w.client.Connect(ctx, "/ip4/127.0.0.1/tcp/2/p2p/12D3KooWone"); err != nil || got != wantConn {
		t.Errorf("connect: %+v, %v", got, err)
	}
	if _, err := w.client.Connect(ctx, "/ip4/127.0.0.1/tcp/2/p2p/12D3KooWaway"); !errors.Is(err, api.ErrConnect) || !strings.Contains(err.Error(), "nobody answers") {
		t.Errorf("away: %v", err)
	}
	if _, err := w.client.Connect(ctx, "nobody"); !errors.Is(err, api.ErrPeer) {
		t.Errorf("nobody: %v", err)
	}
	if n, err := w.client.Disconnect(ctx, "12D3KooWone"); err != nil || n != 2 {
		t.Errorf("disconnect: %d, %v", n, err)
	}
	if _, err := w.client.Disconnect(ctx, "12D3KooWtwo"); !errors.Is(err, api.ErrPeer) {
		t.Errorf("disconnect: %v", err)
	}
	wantPong, _ := want.Ping(ctx, "12D3KooWone")
	if got, err := w.client.Ping(ctx, "12D3KooWone"); err != nil || got != wantPong {
		t.Errorf("ping: %+v, %v", got, err)
	}
	logging.Logger("latchkey/travels")
	if got, err := w.client.SetLogLevel(ctx, "latchkey/travels", "info"); err != nil || len(got) != 1 || got[0] != (loglevels.Level{Subsystem: "latchkey/travels", Level: "info"}) {
		t.Errorf("set: %v, %v", got, err)
	}
	if got, err := w.client.LogLevels(ctx, "latchkey/travels"); err != nil || len(got) != 1 || got[0].Level != "info" {
		t.Errorf("levels: %v, %v", got, err)
	}
	for _, c := range []struct {
		subsystem, level string
		want             error
	}{{"latchkey/travels", "noise", loglevels.ErrLevel}, {"latchkey/nowhere", "info", loglevels.ErrSubsystem}, {"", "info", loglevels.ErrSubsystem}} {
		if _, err := w.client.SetLogLevel(ctx, c.subsystem, c.level); !errors.Is(err, c.want) {
			t.Errorf("%q %q: %v, want %v", c.subsystem, c.level, err, c.want)
		}
	}
}

// get asks a daemon by its socket.
func (w *world) get(path string) (status int, body string) {
	w.t.Helper()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", w.socket)
	}}
	defer tr.CloseIdleConnections()
	res, err := (&http.Client{Transport: tr}).Get("http://latchkey" + path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func TestProfilesAreTakenWhereThatIsAskedFor(t *testing.T) {
	if status, _ := newWorld(t, nil).get("/debug/pprof/goroutine?debug=1"); status != http.StatusNotFound {
		t.Errorf("nobody asked for them: %d", status)
	}
	w := newWorld(t, func(_ *apitest.Backend, c *api.Config) { c.Pprof = true })
	if status, body := w.get("/debug/pprof/goroutine?debug=1"); status != http.StatusOK || !strings.Contains(body, "goroutine profile") {
		t.Errorf("%d: %s", status, body)
	}
	if status, body := w.get("/debug/pprof/"); status != http.StatusOK || !strings.Contains(body, "heap") {
		t.Errorf("%d: %s", status, body)
	}
	for _, seconds := range []string{"0", "-1", "301", "x", "NaN"} {
		if status, body := w.get("/debug/pprof/trace?seconds=" + seconds); status != http.StatusBadRequest || !strings.HasPrefix(body, "latchkey: seconds=") {
			t.Errorf("seconds=%s: %d %s", seconds, status, body)
		}
	}
	// On TCP they are for tokens that may do everything.
	base, file := w.onTCP()
	for scope, want := range map[api.Scope]int{api.ScopeRead: http.StatusForbidden, api.ScopeLock: http.StatusForbidden, api.ScopeAdmin: http.StatusOK} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/debug/pprof/cmdline", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+tokenFor(t, file, string(scope), scope))
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("with a token for %s: %d, want %d", scope, res.StatusCode, want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestTheAPISpeaksHTTPS(t *testing.T) {
	w := newWorld(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	vouched := httptest.NewTLSServer(nil) // for its certificate, good for 127.0.0.1 and example.com
	t.Cleanup(vouched.Close)
	file := filepath.Join(t.TempDir(), "tokens.json")
	token := tokenFor(t, file, "all", api.ScopeAdmin)
	done := make(chan error, 1)
	go func() {
		done <- w.server.ServeTCP(l, api.GuardConfig{Tokens: file, TLS: &tls.Config{Certificates: vouched.TLS.Certificates, MinVersion: tls.VersionTLS12}})
	}()
	t.Cleanup(func() {
		w.server.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	roots := x509.NewCertPool()
	roots.AddCert(vouched.Certificate())
	dial := func(base string, opts ...api.DialOption) *api.Client {
		c, err := api.Dial(base, opts...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Abandon)
		return c
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	at := l.Addr().String()
	if i, err := dial("https://"+at, api.WithToken(token), api.WithRoots(roots)).ID(ctx); err != nil || i.Peer != "12D3KooWfake" {
		t.Errorf("%+v, %v", i, err)
	}
	for what, c := range map[string]struct {
		client *api.Client
		want   error
		says   string
	}{
		"nobody vouches":      {dial("https://"+at, api.WithToken(token), api.WithRoots(x509.NewCertPool())), api.ErrUnreachable, "--api-ca"},
		"the system does not": {dial("https://"+at, api.WithToken(token)), api.ErrUnreachable, "unknown authority"},
		"no token":            {dial("https://"+at, api.WithRoots(roots)), api.ErrToken, "latchkey token new"},
		"without TLS":         {dial("http://"+at, api.WithToken(token)), api.ErrUnreachable, ""},
	} {
		if _, err := c.client.ID(ctx); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// A long call goes over it too, as to wait for a lock.
	locks := dial("https://"+at, api.WithToken(token), api.WithRoots(roots)).Locks()
	h, err := locks.Lock(ctx, "over-tls")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Release(ctx); err != nil {
		t.Error(err)
	}
}
