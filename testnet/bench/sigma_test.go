package bench

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// As with the other benches, no figure is judged here.
func TestLockSigmaFillsInEveryFigure(t *testing.T) {
	r, err := LockSigma(t.Context(), Options{Time: 800 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	r.Text(&text)
	t.Log("\n" + text.String())
	if r.Bench != "lock" || r.Protocol != "sigma" || r.Operations == 0 || r.P50us <= 0 || r.P99us < r.P50us || r.RatioToRaw <= 0 || r.AllocsOp <= 0 ||
		r.RawP50us <= 0 || r.PairsS <= 0 || r.Failover.Locks == 0 || r.Failover.Ratio <= 0 {
		t.Errorf("%+v", r)
	}
	for i, c := range r.Contended {
		if c.Clients != sigmaClients[i] || c.Handovers == 0 || c.HandoversS <= 0 || c.RoundTrips <= 0 || c.P50RoundTrips <= 0 || c.Messages < 6 || c.CPUus <= 0 || c.Jain <= 0 || c.Jain > 1.0001 {
			t.Errorf("%+v", c)
		}
	}
	if r.OneRTT <= 0 || r.OneRTT > 1 || r.MessagesOp <= 0 {
		t.Errorf("%.2f messages; %.3f of %d locks took one round trip", r.MessagesOp, r.OneRTT, r.Operations)
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"ratio_to_raw", "one_rtt_share", "messages_per_op", "allocs_per_op", "pairs_per_s", "pair_cpu_us", "contended", "handover_round_trips", "handover_p50_round_trips", "least_to_two_clients", "jain", "leader_killed"} {
		if !strings.Contains(string(b), `"`+field+`":`) {
			t.Errorf("%s lacks %s", b, field)
		}
	}
}

// A machine may be so busy that two clients take no turn while they are watched; what cannot be told is 0, since JSON knows no other way.
func TestLeastToFirstIsANumber(t *testing.T) {
	rates := func(all ...float64) (c []Contended) {
		for _, r := range all {
			c = append(c, Contended{HandoversS: r})
		}
		return c
	}
	for _, c := range []struct {
		rates []Contended
		want  float64
	}{
		{rates(4, 2, 8), 0.5},
		{rates(4, 8), 1},
		{rates(4, 0, 8), 0},
		{rates(0, 0), 0},
		{rates(0, 5), 0},
	} {
		if got := leastToFirst(c.rates); got != c.want {
			t.Errorf("%v: %v, want %v", c.rates, got, c.want)
		}
	}
}
