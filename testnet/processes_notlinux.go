//go:build unix && !linux

package testnet

import (
	"os"
	"syscall"
)

// childAttributes keeps a terminal's signals from the peers. The system cannot end them with us.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

const stillKnown = false

// still cannot be told here: a peer stands still a moment after it was paused.
func still(*os.Process) (bool, error) { return true, nil }
