package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openTerminal returns both ends of a new pseudo-terminal.
func openTerminal(t *testing.T) (user, program *os.File) {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { user.Close() })
	if err := unix.IoctlSetPointerInt(int(user.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(user.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return user, program
}

func inForeground() bool {
	fg, err := unix.IoctlGetInt(0, unix.TIOCGPGRP)
	return err == nil && fg == unix.Getpgrp()
}

// runShell leads a session on a terminal and runs the rest of its command line in the foreground, as a shell without job
// control.
func runShell(tell func(string)) {
	c := exec.Command(os.Args[1], os.Args[2:]...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.Env = append(os.Environ(), "LATCHKEY_TEST_CHILD=terminal")
	c.Run()
	tell(fmt.Sprintf("exit %d, foreground %v", c.ProcessState.ExitCode(), inForeground()))
}

// runTerminal is a command that uses its terminal.
func runTerminal(tell func(string)) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGCONT)
	tell("started")
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	tell(fmt.Sprintf("read %q %v, foreground %v", strings.TrimSpace(line), err, inForeground()))
	for s := range signals {
		tell(s.String())
		if s == syscall.SIGINT {
			os.Exit(3)
		}
	}
}

// TestCommandHasTheTerminal types at a command run under a lock: a line, which it must be able to read; Ctrl-Z, which must not
// stop it; Ctrl-C, which must reach it alone. Afterwards the terminal is given back.
func TestCommandHasTheTerminal(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, nil)
	user, program := openTerminal(t)
	shown := &buffer{}
	go io.Copy(shown, user) // ends with user
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	shell := self("shell", filepath.Join(d.dir, "log"))
	shell.Args = []string{exe, binary, "lock", "n", "--", exe}
	shell.Env = append(shell.Env, "LATCHKEY_API="+d.socket)
	shell.Stdin, shell.Stdout, shell.Stderr = program, program, program
	shell.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shell.Process.Kill(); shell.Wait() })
	program.Close()

	d.told("started", false)
	fmt.Fprintln(user, "hello")
	d.told(`read "hello" <nil>, foreground true`, false)
	pressed := time.Now()
	fmt.Fprint(user, "\x1a") // Ctrl-Z
	d.until("it is continued", func() bool { return d.told("continued", true).After(pressed) })
	fmt.Fprint(user, "\x03") // Ctrl-C
	d.told("interrupt", false)
	d.told("exit 3, foreground true", false)
	if !strings.Contains(shown.String(), "not suspended") {
		t.Errorf("the terminal shows %q", shown.String())
	}
	if token, _ := d.State("n"); token != 0 {
		t.Error("still held")
	}
}

// joinAtTerminal runs latchkey join - at a terminal. type sends text as if it was pasted there.
func joinAtTerminal(t *testing.T, dir string) (p *process, shown *buffer, program *os.File, paste func(string)) {
	t.Helper()
	user, program := openTerminal(t)
	t.Cleanup(func() { program.Close() })
	shown = &buffer{}
	go io.Copy(shown, user) // ends with user
	p = command(t, nil, "--path", dir, "join", "-", "--profile", "test")
	p.Stdin, p.Stdout, p.Stderr = program, program, program
	p.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	p.start()
	eventually(t, "it asks", func() bool { return strings.Contains(shown.String(), "Paste the invitation") })
	return p, shown, program, func(text string) {
		if _, err := io.WriteString(user, text); err != nil {
			t.Error(err)
		}
	}
}

// leftFor tells what the next program that reads the terminal would get.
func leftFor(t *testing.T, program *os.File) string {
	t.Helper()
	n, err := unix.IoctlGetInt(int(program.Fd()), unix.TIOCINQ)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, n)
	if n > 0 {
		if n, err = unix.Read(int(program.Fd()), b); err != nil {
			t.Fatal(err)
		}
	}
	return string(b[:n])
}

func TestInvitationsArePastedAsTheyCome(t *testing.T) {
	t.Parallel()
	base := shortDir(t)
	a := filepath.Join(base, "a")
	initTest(t, a)
	line := ok(t, at(t, a, "invite"))
	token := strings.TrimSpace(line.out.String())
	both := line.err.String() + token[:50] + "\n" + token[50:] + "\n" + line.err.String()

	p, shown, program, paste := joinAtTerminal(t, filepath.Join(base, "b"))
	paste(both) // wrapped, with the notes of 2>&1
	if code, left := p.wait(), leftFor(t, program); code != exitOK || left != "" {
		t.Errorf("exit %d, left %q: %s", code, left, shown.String())
	}
	// In two parts, with a pause that the program takes for the end.
	p, shown, _, paste = joinAtTerminal(t, filepath.Join(base, "c"))
	paste("\n" + token[:99] + "\n")
	eventually(t, "it asks for the rest", func() bool { return strings.Contains(shown.String(), "Paste the rest") })
	paste(token[99:] + "\n")
	if code := p.wait(); code != exitOK {
		t.Errorf("exit %d: %s", code, shown.String())
	}
	// What is no invitation does not become commands.
	p, shown, program, paste = joinAtTerminal(t, filepath.Join(base, "d"))
	paste("Hello,\n\nhere is\nrm -rf\n")
	if code, left := p.wait(), leftFor(t, program); code != exitFailure || left != "" {
		t.Errorf("exit %d, left %q: %s", code, left, shown.String())
	}
	says := func(what string) { // the terminal may show it only after the program has ended
		t.Helper()
		eventually(t, "it says "+what, func() bool { return strings.Contains(shown.String(), what) })
	}
	says("not an invitation")
	// And one that stays incomplete can be given up.
	p, shown, program, paste = joinAtTerminal(t, filepath.Join(base, "e"))
	paste(token[:99] + "\n" + token[101:] + "\n")
	eventually(t, "it asks for the rest", func() bool { return strings.Contains(shown.String(), "Paste the rest") })
	paste("\n")
	if code, left := p.wait(), leftFor(t, program); code != exitFailure || left != "" {
		t.Errorf("exit %d, left %q: %s", code, left, shown.String())
	}
	says("mistyped; copy")
}
