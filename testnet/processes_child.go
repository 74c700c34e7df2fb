package testnet

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"

	"latchkey/testnet/wire"
)

// Bounds of what a peer's process prints. A longer line is cut, and a log that has grown to its bound begins anew.
const (
	logLineBytesMax = 16 << 10
	logBytesMax     = 8 << 20
)

// readyPrefix begins the line with which a daemon says that it serves.
const readyPrefix = "READY "

// child is one life of a peer: its process. Its methods are safe for concurrent use.
type child struct {
	process  *os.Process
	ready    chan struct{} // closed when it has said that it serves
	ended    chan struct{} // closed when the process is gone and its output is in the log
	state    *os.ProcessState
	lastLine string // of its output; like state, set before ended is closed

	// What follows is guarded by Processes.mu.
	expected      bool   // somebody has asked it to end
	told          uint64 // version of the rules that it has
	telling       bool
	failures      int    // to tell it rules
	failedVersion uint64 // of the last failure
	failure       error  // of the last attempt to tell it rules
}

func (c *child) pid() int    { return c.process.Pid }
func (c *child) kill() error { return c.process.Kill() }

// how tells how the process ended, and what it said last.
func (c *child) how() string {
	if c.lastLine == "" {
		return c.state.String()
	}
	return c.state.String() + ": " + c.lastLine
}

// spawn starts the process of s. It has the rules before it does anything. Called with Processes.mu held.
func (p *Processes) spawn(s *place, rules wire.Rules) (*child, error) {
	stdin, err := given(rules)
	if err != nil {
		return nil, err
	}
	defer stdin.Close()
	log, err := os.OpenFile(s.log(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	out, stdout, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	defer stdout.Close()
	cmd := exec.Command(p.opts.Program, append(slices.Clone(p.opts.Args), "--path", s.dir, "daemon", "--testnet-wire", s.wireSocket())...)
	cmd.Env = slices.DeleteFunc(os.Environ(), ours)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stdout
	cmd.SysProcAttr = childAttributes()
	if err := p.nursery.start(cmd); err != nil {
		return nil, errors.Join(err, out.Close(), log.Close())
	}
	c := &child{process: cmd.Process, ready: make(chan struct{}), ended: make(chan struct{})}
	p.watchers.Go(func() {
		c.lastLine = record(out, log, sync.OnceFunc(func() { close(c.ready) }))
		out.Close()
		log.Close()
		_ = cmd.Wait() // the state tells
		c.state = cmd.ProcessState
		p.bury(s, c)
		close(c.ended)
	})
	return c, nil
}

// given returns a file to read rules from.
func given(rules wire.Rules) (*os.File, error) {
	b, err := json.Marshal(rules)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	if _, err := w.Write(b); err != nil { // they fit into the pipe: PeersMax addresses
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// ours reports whether a variable of the environment would change what a peer does.
func ours(variable string) bool {
	return strings.HasPrefix(variable, "LATCHKEY_") || strings.HasPrefix(variable, "NOTIFY_SOCKET=")
}

// bury notes the end of a child. Only then is its place free.
func (p *Processes) bury(s *place, c *child) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.child, s.ready, s.paused = nil, false, false
	if !c.expected {
		s.fault = c.how()
	}
	p.announceLocked()
}

// record copies what a process prints to its log until that ends, calls ready at the READY line, and returns the last line. A log
// that cannot be written is no reason to hold the process up.
func record(out io.Reader, log *os.File, ready func()) (last string) {
	size := int64(0)
	if info, err := log.Stat(); err == nil {
		size = info.Size()
	}
	r := bufio.NewReaderSize(out, logLineBytesMax)
	for {
		line, err := r.ReadSlice('\n')
		if size += int64(len(line)); size > logBytesMax {
			_ = log.Truncate(0)
			size = int64(len(line))
		}
		_, _ = log.Write(line)
		if bytes.HasPrefix(line, []byte(readyPrefix)) {
			ready()
		} else if text := bytes.TrimSpace(line); len(text) > 0 {
			last = string(text)
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return last
		}
	}
}

// nursery starts processes from one thread that stays, because Linux ends a process with the thread that started it.
type nursery struct {
	births chan birth
	done   chan struct{}
}

type birth struct {
	cmd *exec.Cmd
	err chan error
}

func newNursery() *nursery {
	n := &nursery{births: make(chan birth), done: make(chan struct{})}
	go func() {
		defer close(n.done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for b := range n.births {
			b.err <- b.cmd.Start()
		}
	}()
	return n
}

func (n *nursery) start(cmd *exec.Cmd) error {
	b := birth{cmd, make(chan error)}
	n.births <- b
	return <-b.err
}

// close ends the thread. All processes have ended before.
func (n *nursery) close() {
	close(n.births)
	<-n.done
}

// describe says which peer an error is about.
func describe(s *place, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("testnet: peer %d: %w", s.index, err)
}
