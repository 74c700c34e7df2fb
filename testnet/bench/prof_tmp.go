package bench

import (
	"os"
	"runtime/pprof"
	"runtime"
	"fmt"
)

func tmpProf() {
	d := os.Getenv("LK_PROF")
	if d == "" {
		return
	}
	f, _ := os.Create(fmt.Sprintf("%s/heap.%d", d, os.Getpid()))
	pprof.Lookup("heap").WriteTo(f, 0)
	f.Close()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	f, _ = os.Create(fmt.Sprintf("%s/mem.%d", d, os.Getpid()))
	fmt.Fprintf(f, "%+v\n", m)
	b, _ := os.ReadFile("/proc/self/smaps_rollup")
	f.Write(b)
	f.Close()
}
func tmpCPU() func() {
	d := os.Getenv("LK_PROF")
	if d == "" {
		return func() {}
	}
	f, _ := os.CreateTemp(d, "cpu")
	pprof.StartCPUProfile(f)
	return func() { pprof.StopCPUProfile(); f.Close() }
}
