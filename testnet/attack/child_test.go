package attack

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
)

// roleEnv tells a child process of this test what to be; its value is a [role].
const roleEnv = "LATCHKEY_TEST_ATTACK"

// role is what a child process is: attackers, or an honest peer that hosts groups.
type role struct {
	Attack *order
	Peer   *peerOrder
}

// childMain is a child process. It says that it is ready by a line, and works until its standard input ends.
func childMain(text string) int {
	var r role
	err := json.Unmarshal([]byte(text), &r)
	if err == nil && r.Attack != nil {
		err = attackerMain(*r.Attack)
	} else if err == nil {
		err = peerMain(*r.Peer)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// child is a running child process.
type child struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *json.Encoder // to it
	out   *bufio.Reader
	done  bool
}

// newChild starts a process of this test in a role, with a program in front that sets its priority, say.
func newChild(t testing.TB, r role, front []string, environ ...string) *child {
	t.Helper()
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	args := append(front, os.Args[0])
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(append(os.Environ(), environ...), roleEnv+"="+string(text))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: cmd, stdin: stdin, lines: json.NewEncoder(stdin), out: bufio.NewReader(stdout)}
	t.Cleanup(func() {
		if !c.done {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	return c
}

// next reads the child's next line into v.
func (c *child) next(t testing.TB, v any) {
	t.Helper()
	line, err := c.out.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, v)
	}
	if err != nil {
		t.Fatalf("a child process: %q, %v", line, err)
	}
}

// end has the child end and waits for it.
func (c *child) end() error {
	c.done = true
	return errors.Join(c.stdin.Close(), c.cmd.Wait())
}
