package api

import (
	"fmt"
	"net/http"
	"net/http/pprof"
	"time"
)

// Limits of what profiles cost. They are for who may do everything, so these are against mistakes.
const (
	// profilesMax bounds the profiles that are taken at a time. One more is refused with 429.
	profilesMax = 2
	// profileTimeMax bounds how long one may take.
	profileTimeMax = 5 * time.Minute
)

// profiles answers net/http/pprof.
func profiles() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index) // and whatever has a name
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	taken := bounded{most: profilesMax}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s := r.FormValue("seconds"); s != "" {
			if d, err := time.ParseDuration(s + "s"); err != nil || d <= 0 || d > profileTimeMax {
				http.Error(w, fmt.Sprintf("latchkey: seconds=%.20q: want more than 0 and at most %v", s, profileTimeMax.Seconds()), http.StatusBadRequest)
				return
			}
		}
		if !taken.enter() {
			http.Error(w, fmt.Sprintf("latchkey: %d profiles are being taken; wait for one", profilesMax), http.StatusTooManyRequests)
			return
		}
		defer taken.leave()
		mux.ServeHTTP(w, r)
	})
}
