package disk

import (
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"
)

// idleDir names, in the environment of a child of BenchmarkIdle, the store that it opens.
const idleDir = "DISK_TEST_IDLE"

func init() {
	if dir := os.Getenv(idleDir); dir != "" {
		watchIdle(dir)
		os.Exit(0)
	}
}

// What an open store that nobody uses costs in memory and time of the processor, in a process of its own. One iteration
// watches it for two seconds.
func BenchmarkIdle(b *testing.B) {
	for _, n := range []int{1, 10000} {
		b.Run(fmt.Sprintf("groups=%d", n), func(b *testing.B) {
			dir, _ := manyGroups(b, n)
			for range b.N {
				child := exec.Command(os.Args[0])
				child.Env = append(os.Environ(), idleDir+"="+dir)
				out, err := child.CombinedOutput()
				if err != nil {
					b.Fatalf("%v: %s", err, out)
				}
				var mib, cpu float64
				if _, err := fmt.Sscan(string(out), &mib, &cpu); err != nil {
					b.Fatalf("%v: %s", err, out)
				}
				b.ReportMetric(mib, "rss-MiB")
				b.ReportMetric(cpu, "cpu-%")
			}
		})
	}
}

// watchIdle prints by how many MiB an open store makes the process larger, once its replicas have been read and forgotten,
// and how many percent of a core it then takes.
func watchIdle(dir string) {
	before := resident()
	s, err := Open(dir, Options{Overlay: overlay})
	if err == nil {
		_, err = s.Replicas()
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	after, cpu := resident(), processor()
	time.Sleep(2 * time.Second)
	fmt.Println(float64(after-before)/(1<<20), 100*(processor()-cpu).Seconds()/2)
	s.Close()
}

func processor() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// resident returns the memory of this process, once what is not used was given back.
func resident() (bytes int64) {
	debug.FreeOSMemory()
	text, _ := os.ReadFile("/proc/self/statm")
	var size, pages int64
	fmt.Fscan(strings.NewReader(string(text)), &size, &pages)
	return pages * int64(os.Getpagesize())
}
