//go:build !linux && !darwin && !windows

package main

import (
	"os"
	"os/exec"
	"syscall"
)

// child is a command. On systems that latchkey does not know well, what the command starts is its own affair, and a request
// to end is a kill.
type child struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

// startChild runs program as argv with in and out as its input and output, and our standard error.
func startChild(program string, argv, env []string, in, out *os.File, _ func(string)) (*child, error) {
	c := &child{ended: make(chan struct{}), cmd: &exec.Cmd{
		Path: program, Args: argv, Env: env, Stdin: in, Stdout: out, Stderr: os.Stderr,
	}}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { c.cmd.Wait(); close(c.ended) }()
	return c, nil
}

func (c *child) done() <-chan struct{}   { return c.ended }
func (c *child) pass(sig syscall.Signal) { c.cmd.Process.Signal(sig) }
func (c *child) terminate()              { c.kill() }
func (c *child) kill()                   { c.cmd.Process.Kill() }
func (c *child) tend()                   {}

func (c *child) result() error {
	if code := c.cmd.ProcessState.ExitCode(); code != 0 {
		return silent(code & 0xff)
	}
	return nil
}

// passedOn lists the signals that a command gets from us.
func passedOn() []os.Signal { return []os.Signal{os.Interrupt, syscall.SIGTERM} }

// ignoreTerminalStops does nothing here.
func ignoreTerminalStops() {}
