package voterlog

import (
	"os"
	"strings"
)

// BootID names this run of the operating system. Empty where that is not known.
func BootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
