//go:build !unix

package testnet

import (
	"fmt"
	"os"
	"syscall"
)

func childAttributes() *syscall.SysProcAttr { return nil }

const stillKnown = false

func freeze(*os.Process) error        { return noSignals("pause") }
func still(*os.Process) (bool, error) { return false, noSignals("pause") }
func thaw(*os.Process) error          { return noSignals("resume") }

// dismiss cannot ask here.
func dismiss(*os.Process) error { return noSignals("leave") }

func noSignals(verb string) error {
	return fmt.Errorf("%w: %s: this system has no signals", ErrMode, verb)
}
