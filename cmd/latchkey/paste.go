package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"latchkey/node/invite"
)

// Bounds of what is read from a person's terminal.
const (
	pasteQuiet = 300 * time.Millisecond // without input, and a paste is over
	pasteMax   = 128 << 10              // bytes of it that count
	drainMax   = 5 * time.Second        // for what comes after that
)

// pasted reads an invitation that a person pastes at a terminal. It reads on until one is complete, or the person gives up by an
// empty line or by ending the input, and takes all that was pasted with it: what is left would be commands to the shell.
func (a *app) pasted(terminal *os.File) (invite.Invite, error) {
	fmt.Fprintln(a.err, "Paste the invitation, then press Enter:")
	chunks := make(chan string)
	go func() { // ends with the input; or with the program, which is soon
		defer close(chunks)
		buf := make([]byte, 8<<10) // more than a terminal gives at once
		for {
			n, err := terminal.Read(buf)
			if n > 0 {
				chunks <- string(buf[:n])
			}
			if err != nil {
				return
			}
		}
	}()
	defer discardInput(terminal) // also a last line without its Enter
	text, hinted := "", false
	for {
		more, ended := burst(chunks)
		if text += more; strings.TrimSpace(text) == "" && !ended {
			text = ""
			continue
		}
		i, err := invite.Parse(text)
		givesUp := ended || strings.TrimSpace(more) == "" || len(text) >= pasteMax
		if givesUp || !errors.Is(err, invite.ErrDamaged) {
			if len(text) >= pasteMax {
				drain(chunks)
			}
			return i, err
		}
		if !hinted {
			fmt.Fprintln(a.err, "This is not all of it, or it was mistyped. Paste the rest, or press Enter once more to give up:")
			hinted = true
		}
	}
}

// burst waits for input and returns all that comes at once, pasteMax bytes and some at most. ended says that no more will come.
func burst(chunks <-chan string) (text string, ended bool) {
	text, ok := <-chunks
	for ok && len(text) < pasteMax {
		var c string
		select {
		case c, ok = <-chunks:
			text += c
		case <-time.After(pasteQuiet):
			return text, false
		}
	}
	return text, !ok
}

// drain throws away what comes until nothing does, or it takes too long.
func drain(chunks <-chan string) {
	for limit := time.Now().Add(drainMax); time.Now().Before(limit); {
		select {
		case _, ok := <-chunks:
			if !ok {
				return
			}
		case <-time.After(pasteQuiet):
			return
		}
	}
}
