package disk

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What an open store that nobody uses costs, in memory and time of the processor. One iteration watches it for two seconds.
func BenchmarkIdle(b *testing.B) {
	for _, n := range []int{1, 10000} {
		b.Run(fmt.Sprintf("groups=%d", n), func(b *testing.B) {
			dir, _ := manyGroups(b, n)
			before, _ := resident()
			s := reopen(b, dir, Options{Overlay: overlay})
			defer s.Close()
			for range b.N {
				cpu := processor(b)
				time.Sleep(2 * time.Second)
				b.ReportMetric(100*(processor(b)-cpu).Seconds()/2, "cpu-%")
			}
			if after, ok := resident(); ok {
				b.ReportMetric(float64(after-before)/(1<<20), "rss-MiB")
			}
		})
	}
}

func processor(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// resident returns the memory of this process after a collection, where the system tells.
func resident() (int64, bool) {
	runtime.GC()
	runtime.GC()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, false
	}
	fields := strings.Fields(string(text))
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize()), err == nil
}
