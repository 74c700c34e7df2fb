package main

import (
	"os/exec"
	"syscall"
)

// childOf makes a process die with this one.
func childOf(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
