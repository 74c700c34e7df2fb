package httpguard

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"latchkey/lockservice"
)

// A server that keeps a page, which a lock protects. The delayed write of a former holder is refused, whatever that holder believes.
func Example() {
	var guard lockservice.Guard // of the lock called "page"
	page := ""
	mux := http.NewServeMux()
	mux.Handle("PUT /page", Handler(&guard, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		page = string(body)
	})))
	server := httptest.NewServer(mux)
	defer server.Close()

	put := func(token lockservice.Token, text string) { // what each holder does, with its Handle.Token
		r, _ := http.NewRequest(http.MethodPut, server.URL+"/page", strings.NewReader(text))
		SetToken(r, token)
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			fmt.Println(err)
			return
		}
		res.Body.Close()
		fmt.Println(res.StatusCode)
	}
	put(33, "first holder")
	put(34, "second holder")
	put(33, "first holder, after a long pause")
	fmt.Println(page)
	// Output:
	// 200
	// 200
	// 412
	// second holder
}

func TestRequestsWithoutAUsableTokenDoNotPass(t *testing.T) {
	var guard lockservice.Guard
	if err := guard.Check(7); err != nil {
		t.Fatal(err)
	}
	ran := 0
	h := Handler(&guard, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { ran++ }))
	for _, tt := range []struct {
		tokens []string
		body   int
		code   int
	}{
		{nil, 0, http.StatusPreconditionRequired},
		{[]string{""}, 0, http.StatusBadRequest},
		{[]string{"0"}, 0, http.StatusBadRequest},
		{[]string{"-7"}, 0, http.StatusBadRequest},
		{[]string{"seven"}, 0, http.StatusBadRequest},
		{[]string{"18446744073709551616"}, 0, http.StatusBadRequest},
		{[]string{"7", "8"}, 0, http.StatusBadRequest},
		{[]string{"6"}, 0, http.StatusPreconditionFailed},
		{[]string{"9"}, BodyBytesMax + 1, http.StatusRequestEntityTooLarge},
		{[]string{"7"}, BodyBytesMax, http.StatusOK}, // a body that is too long has not used its token
	} {
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(strings.Repeat("x", tt.body)))
		for _, token := range tt.tokens {
			r.Header.Add(Header, token)
		}
		w, before := httptest.NewRecorder(), ran
		h.ServeHTTP(w, r)
		if w.Code != tt.code || (ran > before) != (tt.code == http.StatusOK) {
			t.Errorf("tokens %q, %d bytes: %d, ran: %v; want %d", tt.tokens, tt.body, w.Code, ran > before, tt.code)
		}
	}
}

// Between the check of a request and its effect no other takes effect.
func TestRequestsPassOneAtATime(t *testing.T) {
	var guard lockservice.Guard
	var inside atomic.Int32
	last := uint64(0)
	h := Handler(&guard, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if inside.Add(1) != 1 {
			t.Error("two at once")
		}
		defer inside.Add(-1)
		token, _, _ := tokenOf(r)
		if uint64(token) < last {
			t.Errorf("token %d after %d", token, last)
		}
		last = uint64(token)
	}))
	var wg sync.WaitGroup
	for token := lockservice.Token(1); token <= 32; token++ {
		wg.Go(func() {
			r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("x"))
			SetToken(r, token)
			h.ServeHTTP(httptest.NewRecorder(), r)
		})
	}
	wg.Wait()
	if guard.Highest() != 32 {
		t.Errorf("highest %v", guard.Highest())
	}
}
