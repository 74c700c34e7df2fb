//go:build unix

package testnet

import (
	"os"
	"syscall"
)

// freeze, thaw and dismiss send what their names stand for to the process of a peer.
func freeze(p *os.Process) error  { return p.Signal(syscall.SIGSTOP) }
func thaw(p *os.Process) error    { return p.Signal(syscall.SIGCONT) }
func dismiss(p *os.Process) error { return p.Signal(syscall.SIGTERM) }
