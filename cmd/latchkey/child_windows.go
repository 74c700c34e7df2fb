package main

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// child is a command in a job of its own, which holds everything it starts, and ends with us.
type child struct {
	cmd   *exec.Cmd
	job   windows.Handle
	ended chan struct{}
}

// startChild runs program as argv with in and out as its input and output, and our standard error.
func startChild(program string, argv, env []string, in, out *os.File, _ func(string)) (*child, error) {
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return nil, fmt.Errorf("job object: %w", err)
	}
	limits := windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION{
		BasicLimitInformation: windows.JOBOBJECT_BASIC_LIMIT_INFORMATION{LimitFlags: windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE},
	}
	if _, err := windows.SetInformationJobObject(job, windows.JobObjectExtendedLimitInformation,
		uintptr(unsafe.Pointer(&limits)), uint32(unsafe.Sizeof(limits))); err != nil {
		windows.CloseHandle(job)
		return nil, fmt.Errorf("job object: %w", err)
	}
	c := &child{job: job, ended: make(chan struct{}), cmd: &exec.Cmd{
		Path: program, Args: argv, Env: env, Stdin: in, Stdout: out, Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{CreationFlags: windows.CREATE_NEW_PROCESS_GROUP},
	}}
	if err := c.cmd.Start(); err != nil {
		windows.CloseHandle(job)
		return nil, err
	}
	if err := c.join(); err != nil {
		c.cmd.Process.Kill()
		c.cmd.Wait()
		windows.CloseHandle(job)
		return nil, fmt.Errorf("job object: %w", err)
	}
	go func() {
		c.cmd.Wait()
		windows.CloseHandle(job) // ends whatever the command left behind
		close(c.ended)
	}()
	return c, nil
}

// join puts the command into the job.
func (c *child) join() error {
	p, err := windows.OpenProcess(windows.PROCESS_SET_QUOTA|windows.PROCESS_TERMINATE, false, uint32(c.cmd.Process.Pid))
	if err != nil {
		return err
	}
	defer windows.CloseHandle(p)
	return windows.AssignProcessToJobObject(c.job, p)
}

func (c *child) done() <-chan struct{} { return c.ended }
func (c *child) pass(syscall.Signal)   { c.terminate() }
func (c *child) tend()                 {}
func (c *child) kill()                 { windows.TerminateJobObject(c.job, 1) }

func (c *child) terminate() {
	windows.GenerateConsoleCtrlEvent(windows.CTRL_BREAK_EVENT, uint32(c.cmd.Process.Pid))
}

func (c *child) result() error {
	if code := c.cmd.ProcessState.ExitCode(); code != 0 {
		return silent(code)
	}
	return nil
}

// passedOn lists the signals that a command gets from us.
func passedOn() []os.Signal { return []os.Signal{os.Interrupt, syscall.SIGTERM} }

// ignoreTerminalStops does nothing: consoles stop nobody.
func ignoreTerminalStops() {}
