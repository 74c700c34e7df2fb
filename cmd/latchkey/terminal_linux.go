package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// discardInput throws away what a terminal has received and nobody has read, also a line that has no end yet.
func discardInput(terminal *os.File) {
	_ = unix.IoctlSetInt(int(terminal.Fd()), unix.TCFLSH, unix.TCIFLUSH) // what is no terminal has nothing to discard
}
