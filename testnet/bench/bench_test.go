package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// No figure is judged here: that is for people, on a machine that does nothing else.
func TestBenchesFillInEveryFigure(t *testing.T) {
	for name, bench := range map[string]func(context.Context, Options) (*Result, error){"route": Route, "lock": LockGroup} {
		t.Run(name, func(t *testing.T) {
			r, err := bench(t.Context(), Options{Time: 200 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			var text bytes.Buffer
			r.Text(&text)
			t.Log("\n" + text.String())
			if r.Bench != name || r.Peers != 7 || r.Operations == 0 || r.P50us <= 0 || r.P99us < r.P50us || r.OpsPerS <= 0 ||
				r.RatioToRaw <= 0 || r.MessagesOp <= 0 || r.AllocsOp <= 0 || r.RawP50us <= 0 || r.RawCPUusOp < 0 {
				t.Errorf("%+v", r)
			}
			if r.lookups > 0 || r.streams > 0 {
				t.Errorf("%d look-ups and %d new streams in %d repeated operations", r.lookups, r.streams, r.Operations)
			}
			b, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			for _, field := range []string{"p50_us", "p99_us", "ops_per_s", "ratio_to_raw", "messages_per_op", "allocs_per_op", "raw_p50_us", "raw_cpu_us_per_op", "load"} {
				if !strings.Contains(string(b), `"`+field+`":`) {
					t.Errorf("%s lacks %s", b, field)
				}
			}
		})
	}
}

func TestABenchEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Route(ctx, Options{}); err == nil {
		t.Error("a cancelled bench returned a result")
	}
}
