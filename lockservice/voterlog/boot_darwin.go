package voterlog

import "golang.org/x/sys/unix"

// BootID names this run of the operating system. Empty where that is not known.
func BootID() string {
	id, err := unix.Sysctl("kern.bootsessionuuid")
	if err != nil {
		return ""
	}
	return id
}
