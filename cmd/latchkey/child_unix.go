//go:build linux || darwin

package main

import (
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// child is a command and everything in its process group.
type child struct {
	pgid  int         // also the command's pid
	tty   atomic.Bool // the group has had the terminal from us
	note  func(string)
	ended chan struct{}
	// status is how the command itself ended; set before ended is closed.
	status unix.WaitStatus
}

// startChild runs program as argv in a process group of its own, with in and out as its input and output, and our standard error. Where standard input is the
// terminal that we are in the foreground of, the group takes our place there. note tells the user something.
func startChild(program string, argv, env []string, in, out *os.File, note func(string)) (*child, error) {
	c := &child{note: note, ended: make(chan struct{})}
	cmd := &exec.Cmd{
		Path: program, Args: argv, Env: env, Stdin: in, Stdout: out, Stderr: os.Stderr,
		SysProcAttr: dyingWithUs(&syscall.SysProcAttr{Setpgid: true}),
	}
	adoptOrphans()
	started := make(chan error)
	go func() {
		// The system kills the child when the thread that started it ends, so this thread stays with it to the end.
		runtime.LockOSThread()
		err := cmd.Start()
		if err == nil {
			c.pgid = cmd.Process.Pid
			cmd.Process.Release() // wait below is the only one who waits
		}
		started <- err
		if err == nil {
			c.wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	c.takeTerminal()
	return c, nil
}

// wait returns when the command and all others of its group have ended.
func (c *child) wait() {
	for {
		var ws unix.WaitStatus
		switch pid, err := unix.Wait4(-c.pgid, &ws, unix.WUNTRACED, nil); {
		case err == unix.EINTR:
		case err != nil: // no child of ours is left in the group
			// Somebody else's child may be, and where orphans are not handed to us, so are all the command left behind.
			for unix.Kill(-c.pgid, 0) != unix.ESRCH {
				time.Sleep(20 * time.Millisecond)
			}
			if c.tty.Load() {
				giveTerminal(unix.Getpgrp())
			}
			close(c.ended)
			return
		case ws.Stopped():
			if c.tty.Load() && ws.StopSignal() == unix.SIGTSTP {
				c.note("not suspended: what it holds would be lost")
				unix.Kill(-c.pgid, unix.SIGCONT)
			}
		case pid == c.pgid:
			c.status = ws
		}
	}
}

// takeTerminal makes the group the foreground group of our terminal, if that is ours to give.
func (c *child) takeTerminal() {
	if fg, err := unix.IoctlGetInt(unix.Stdin, unix.TIOCGPGRP); err != nil || fg != unix.Getpgrp() {
		return
	}
	ignoreTerminalStops()
	c.tty.Store(true)
	giveTerminal(c.pgid)
	unix.Kill(-c.pgid, unix.SIGCONT) // whoever was faster than us and was stopped for reading
}

// giveTerminal fails harmlessly when the terminal has gone.
func giveTerminal(pgid int) { unix.IoctlSetPointerInt(unix.Stdin, unix.TIOCSPGRP, pgid) }

// ignoreTerminalStops keeps us running when we use the terminal from the background. Commands started earlier do not inherit it.
func ignoreTerminalStops() { signal.Ignore(unix.SIGTTIN, unix.SIGTTOU) }

func (c *child) done() <-chan struct{}   { return c.ended }
func (c *child) pass(sig syscall.Signal) { unix.Kill(-c.pgid, sig) }
func (c *child) kill()                   { unix.Kill(-c.pgid, unix.SIGKILL) }

// terminate also wakes whoever is stopped, or the signal would not reach it.
func (c *child) terminate() {
	unix.Kill(-c.pgid, unix.SIGTERM)
	unix.Kill(-c.pgid, unix.SIGCONT)
}

// tend passes the terminal on when the user's shell has brought us back to the foreground.
func (c *child) tend() { c.takeTerminal() }

func (c *child) result() error {
	switch {
	case c.status.Signaled():
		return silent(exitSignal + int(c.status.Signal()))
	case c.status.ExitStatus() != 0:
		return silent(c.status.ExitStatus())
	}
	return nil
}

// passedOn lists the signals that a command gets from us, less those that we were told to ignore, as nohup does.
func passedOn() []os.Signal {
	var sigs []os.Signal
	for _, s := range []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT} {
		if !signal.Ignored(s) {
			sigs = append(sigs, s)
		}
	}
	return sigs
}
