package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// serve runs Serve for w and returns a client, and a function that ends it.
func serve(t *testing.T, w *Wire) (r Remote, end func()) {
	t.Helper()
	dir, err := os.MkdirTemp("", "w")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r.Socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", r.Socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- Serve(l, w) }()
	end = func() {
		l.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
	return r, end
}

func TestRulesOfAnotherProcessApply(t *testing.T) {
	w := New()
	defer w.Cut()
	near, far := pair(t, w)
	r, end := serve(t, w)
	if err := r.SetRules(t.Context(), Rules{Blocked: []string{near.RemoteAddr().String()}}); err != nil {
		t.Fatal(err)
	}
	send(t, near, "hello")
	silent(t, far)
	if err := r.SetRules(t.Context(), Rules{Latency: -1}); !errors.Is(err, ErrRules) {
		t.Error("bad rules:", err)
	}
	silent(t, far)
	if err := r.SetRules(t.Context(), Rules{Latency: time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	receive(t, far, "hello")
	var most Rules
	for i := range BlockedMax {
		most.Blocked = append(most.Blocked, fmt.Sprintf("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:%x]:65535", 0x1000+i))
	}
	if err := r.SetRules(t.Context(), most); err != nil {
		t.Error("as many rules as there can be:", err)
	}

	why := errors.New("changed my mind")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if err := r.SetRules(ctx, Rules{}); !errors.Is(err, why) {
		t.Error(err)
	}
	w.Cut()
	if err := r.SetRules(t.Context(), Rules{}); !errors.Is(err, ErrCut) {
		t.Error("rules of a cut wire:", err)
	}
	end()
	if err := r.SetRules(t.Context(), Rules{}); err == nil || !strings.Contains(err.Error(), r.Socket) {
		t.Error("nobody there:", err)
	}
}

// A request that was on its way while the process was stopped may come after the one that was to replace it.
func TestRulesThatArriveLateDoNotReplaceNewerOnes(t *testing.T) {
	w := New()
	defer w.Cut()
	near, far := pair(t, w)
	r, end := serve(t, w)
	defer end()
	if err := r.SetRules(t.Context(), Rules{Version: 7, Blocked: []string{near.RemoteAddr().String()}}); err != nil {
		t.Fatal(err)
	}
	for _, version := range []uint64{0, 6} {
		if err := r.SetRules(t.Context(), Rules{Version: version}); !errors.Is(err, ErrStale) || errors.Is(err, ErrRules) || !strings.Contains(err.Error(), "version 7") {
			t.Errorf("version %d after 7: %v", version, err)
		}
	}
	send(t, near, "hello")
	silent(t, far)
	for _, version := range []uint64{7, 8} { // the same may be told twice
		if err := r.SetRules(t.Context(), Rules{Version: version}); err != nil {
			t.Errorf("version %d: %v", version, err)
		}
	}
	receive(t, far, "hello")
}

func TestWhatIsNoRulesIsRefused(t *testing.T) {
	w := New()
	defer w.Cut()
	near, far := pair(t, w)
	block(t, w, near)
	r, end := serve(t, w)
	defer end()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", r.Socket)
	}}}
	for _, x := range []struct {
		method, path, body string
		code               int
	}{
		{"PUT", "/rules", "", 400},
		{"PUT", "/rules", "{", 400},
		{"PUT", "/rules", "[]", 400},
		{"PUT", "/rules", "{} {}", 400},
		{"PUT", "/rules", `{"latency_ns":"1s"}`, 400},
		{"PUT", "/rules", `{"delay":1}`, 400},
		{"PUT", "/rules", strings.Repeat(" ", requestBytesMax) + "{}", 400},
		{"GET", "/rules", "", 405},
		{"PUT", "/", "{}", 404},
	} {
		req, err := http.NewRequest(x.method, "http://wire"+x.path, strings.NewReader(x.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode != x.code {
			t.Errorf("%s %s %.40s: %d", x.method, x.path, x.body, resp.StatusCode)
		}
	}
	send(t, near, "hello")
	silent(t, far)
}

func FuzzDecodeRules(f *testing.F) {
	f.Add([]byte(`{"blocked":["127.0.0.1:1","[::1]:2"],"latency_ns":1000,"version":"18446744073709551615"}`))
	f.Add([]byte(`{"latency_ns":-1}`))
	f.Add([]byte(`{}{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRules(b)
		if err != nil {
			if !errors.Is(err, ErrRules) {
				t.Errorf("%v matches nothing", err)
			}
			return
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeRules(again); err != nil {
			t.Errorf("%s: %v", again, err)
		}
		if err := r.Validate(); err != nil {
			t.Error(err)
		}
	})
}
