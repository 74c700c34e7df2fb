//go:build unix && !linux

package testnet

import "syscall"

// childAttributes keeps a terminal's signals from the peers. The system cannot end them with us.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
