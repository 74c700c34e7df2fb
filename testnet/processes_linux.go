package testnet

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// childAttributes keeps a terminal's signals from the peers, and ends them with us.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// stillKnown says whether still knows.
const stillKnown = true

// still reports whether all threads of a child of ours stand still since a SIGSTOP. The signal is on its way for a moment after
// it was sent, and the state in /proc is that of the first thread only.
func still(p *os.Process) (bool, error) {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PID, p.Pid, &info, unix.WSTOPPED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return false, os.NewSyscallError("waitid", err)
		}
		return info.Signo == int32(unix.SIGCHLD), nil
	}
}

// tick is the unit of processor time in /proc, whatever the kernel uses inside.
const tick = 10 * time.Millisecond

// cpuOf returns the processor time that a process has used, 0 when there is none.
func cpuOf(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name, in parentheses, may hold anything. After it, state is field 0, utime 11 and stime 12.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(string(fields[11]), 10, 64)
	system, _ := strconv.ParseInt(string(fields[12]), 10, 64)
	return time.Duration(user+system) * tick
}
