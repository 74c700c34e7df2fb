package main

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// fence takes a lock through a peer and returns the token.
func (n *liveNet) fence(peer int, name string) int {
	n.t.Helper()
	p := n.verb(exitOK, "run "+strconv.Itoa(peer), "--", binary, "lock", name, "--ttl", "10s", "--", "sh", "-c", "echo $LATCHKEY_FENCE")
	token, err := strconv.Atoi(strings.TrimSpace(p.out.String()))
	if err != nil {
		n.t.Fatal(err)
	}
	return token
}

// More founders than a group can spare are killed, and come back as who they were.
func TestATestnetOfProcessesOutlivesTheDeathOfAllItsPeers(t *testing.T) {
	t.Parallel()
	n := upLive(t, socketDir(t), "--mode", "process", "-n", "4", "--f", "1")
	names := []string{"a", "b", "c", "d"}
	tokens := make(map[string]int)
	for i, name := range names {
		tokens[name] = n.fence(i, name)
	}
	store := func(i int) string {
		return n.verb(exitOK, fmt.Sprint("run ", i), "--", binary, "-o", "json", "id").out.String()
	}
	was := store(0)
	for _, whom := range []string{"0-1", "0-3"} {
		n.verb(exitOK, "kill "+whom)
		n.verb(exitOK, "restart "+whom)
		for i, name := range names {
			if token := n.fence((i+1)%len(names), name); token <= tokens[name] {
				t.Errorf("kill %s: %s has token %d after %d", whom, name, token, tokens[name])
			} else {
				tokens[name] = token
			}
		}
	}
	if is := store(0); is != was {
		t.Errorf("peer 0 was %s and is %s", was, is)
	}
	n.Process.Signal(syscall.SIGINT)
	if code := n.wait(); code != exitOK {
		t.Errorf("Ctrl-C: exit %d, %s", code, n.err.String())
	}
	if left := remains(t, n.dir); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
