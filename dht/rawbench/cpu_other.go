//go:build !unix

package rawbench

import "time"

func CPUTime() time.Duration { return 0 }
