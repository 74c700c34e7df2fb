//go:build !unix

package rawbench

import "time"

func cpuTime() time.Duration { return 0 }
