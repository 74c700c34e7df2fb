package main

import "syscall"

// dyingWithUs does nothing: macOS has no such service, so a command outlives a client that is killed.
func dyingWithUs(a *syscall.SysProcAttr) *syscall.SysProcAttr { return a }

// adoptOrphans does nothing: launchd collects them.
func adoptOrphans() {}
