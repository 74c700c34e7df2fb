package main

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// dyingWithUs has the kernel kill the command when we end without having done so.
func dyingWithUs(a *syscall.SysProcAttr) *syscall.SysProcAttr {
	a.Pdeathsig = syscall.SIGKILL
	return a
}

// adoptOrphans makes us the parent of what the command leaves behind, so that we see its end even where nobody else
// would collect it, as in a container without an init.
func adoptOrphans() { unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }
