package node

import (
	"io"
	"net/http"
	"testing"
)

func TestHealthIsTold(t *testing.T) {
	t.Parallel()
	n := soleNode(t, newHost(t))
	m, err := n.ServeMetrics(":0")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	ask := func(path string) (int, string) {
		t.Helper()
		res, err := http.Get("http://" + m.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(b)
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		eventually(t, path+" says ok", func() bool { code, says := ask(path); return code == 200 && says == "ok\n" })
	}
	n.Close()
	for _, path := range []string{"/healthz", "/readyz"} {
		if code, says := ask(path); code != http.StatusServiceUnavailable || says != "the node has stopped\n" {
			t.Errorf("%s of a node that was closed: %d %q", path, code, says)
		}
	}
}
