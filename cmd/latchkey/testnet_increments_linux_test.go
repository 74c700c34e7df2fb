package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"latchkey/lockservice"
)

var increments = flag.Int("testnet.increments", 20, "how many commands increment a number under one lock, in each round")

const (
	incrementTTL = 2 * time.Second
	plainTTL     = 10 * time.Second // what a testnet's locks have when nobody says
)

// counting is a number in a file that commands increment under a lock, each through one of the peers, and the tokens they had.
type counting struct {
	n       *liveNet
	lock    string
	flags   [][]string // of lock, in turn
	dir     string
	sockets []string
	done    int // commands that have ended well
	unsure  atomic.Int64

	exactly bool // each command as its users type it, once
	avoid   int  // the peer that it does not go through; -1: none
}

// plainly counts in the words "latchkey lock NAME -- sh -c 'v=$(cat f); echo $((v+1)) > f'": no flag, no second try, no failure.
func (n *liveNet) plainly(lock string) *counting {
	c := n.counting(lock)
	c.exactly, c.avoid = true, -1
	return c
}

func (n *liveNet) counting(lock string, flags ...[]string) *counting {
	if len(flags) == 0 {
		flags = [][]string{nil}
	}
	c := &counting{n: n, lock: lock, flags: flags, dir: n.t.TempDir()}
	for _, p := range n.status().Peers {
		c.sockets = append(c.sockets, p.API)
	}
	if err := os.WriteFile(filepath.Join(c.dir, "f"), []byte("0\n"), 0o600); err != nil {
		n.t.Fatal(err)
	}
	return c
}

// rounds starts all commands of all counts at once, does what do does meanwhile, and waits for them.
func rounds(counts []*counting, do func()) {
	var wg sync.WaitGroup
	for _, c := range counts {
		c.start(&wg)
	}
	do()
	wg.Wait()
}

func (c *counting) round(do func()) { rounds([]*counting{c}, do) }

// start starts all commands at once. One whose peer fails it before it had the lock goes to another.
func (c *counting) start(wg *sync.WaitGroup) {
	c.done += *increments
	if c.exactly {
		c.startPlainly(wg)
		return
	}
	for i := range *increments {
		wg.Go(func() {
			for peer := i; ; peer++ {
				args := append([]string{"lock", c.lock, "--ttl", incrementTTL.String()}, c.flags[i%len(c.flags)]...)
				args = append(args, "--", "sh", "-c", `v=$(cat f); echo $((v+1)) > f; echo $LATCHKEY_FENCE >> fences`)
				p := command(c.n.t, []string{"LATCHKEY_API=" + c.sockets[peer%len(c.sockets)]}, args...)
				p.Dir = c.dir
				switch code := p.start().wait(); code {
				case exitOK:
					return
				case exitLost: // killed in the middle, or at the end
					c.unsure.Add(1)
				case exitFailure, exitUnreachable:
					time.Sleep(50 * time.Millisecond) // between two tries
				default:
					c.n.t.Errorf("peer %d: exit %d: %s", peer%len(c.sockets), code, p.err.String())
					return
				}
			}
		})
	}
}

func (c *counting) startPlainly(wg *sync.WaitGroup) {
	for i := range *increments {
		peer := i % len(c.sockets)
		if peer == c.avoid {
			peer = (peer + 1) % len(c.sockets)
		}
		wg.Go(func() {
			p := command(c.n.t, []string{"LATCHKEY_API=" + c.sockets[peer]}, "lock", c.lock, "--", "sh", "-c", `v=$(cat f); echo $((v+1)) > f`)
			p.Dir = c.dir
			if code := p.start().wait(); code != exitOK {
				c.n.t.Errorf("peer %d: exit %d: %s", peer, code, p.err.String())
			}
		})
	}
}

// check looks at the number: each command that ended well counts once, and one that was stopped may. No token is older than one before it.
func (c *counting) check() {
	c.n.t.Helper()
	b, err := os.ReadFile(filepath.Join(c.dir, "f"))
	if err != nil {
		c.n.t.Fatal(err)
	}
	v, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if unsure := int(c.unsure.Load()); err != nil || v < c.done || v > c.done+unsure {
		c.n.t.Errorf("the number is %q after %d increments; %d were stopped", b, c.done, unsure)
	}
	if c.exactly {
		return
	}
	if b, err = os.ReadFile(filepath.Join(c.dir, "fences")); err != nil {
		c.n.t.Fatal(err)
	}
	last := uint64(0)
	for _, line := range strings.Fields(string(b)) {
		token, err := strconv.ParseUint(line, 10, 64)
		if err != nil || token <= last {
			c.n.t.Errorf("token %q after %d", line, last)
		}
		last = token
	}
}

// TestIncrementsUnderALockAreNeverLost has many processes read, increment and write one number under one lock, while peers are killed,
// frozen for longer than a lease, and replaced: under one that voters keep, and under one that is asked for by both protocols. With -testnet.increments 100 -testnet.rounds 3 it is a campaign.
func TestIncrementsUnderALockAreNeverLost(t *testing.T) {
	t.Parallel()
	const peers, asked = 5, 4
	n := upLive(t, socketDir(t), "--mode", "process", "-n", fmt.Sprint(peers), "--depth", "1", "--sigma")
	sigma, group := []string{"--protocol", "sigma"}, []string{"--protocol", "group"}
	plain := n.plainly("n")
	counts := []*counting{n.counting("by sigma", sigma), n.counting("of both", sigma, group), plain}
	lock := counts[0].lock
	rounds(counts, func() {})
	for range *loadRounds {
		leader := n.leaderOf(lock, asked)
		plain.avoid = leader
		rounds(counts, func() {
			n.verb(exitOK, fmt.Sprint("kill ", leader))
			n.verb(exitOK, fmt.Sprint("restart ", leader))
		})
		frozen := n.membersOf(lock, asked)[0]
		plain.avoid = frozen
		pause := incrementTTL * 3 / 2
		if *increments >= 100 {
			pause = plainTTL * 11 / 10
		}
		rounds(counts, func() {
			n.verb(exitOK, fmt.Sprint("pause ", frozen))
			time.Sleep(pause) // what is tested is a pause longer than a lease
			n.verb(exitOK, fmt.Sprint("resume ", frozen))
		})
		leaver := n.membersOf(lock, asked)[0]
		plain.avoid = leaver
		rounds(counts, func() {
			n.verb(exitOK, fmt.Sprint("leave ", leaver))
			n.verb(exitOK, fmt.Sprint("restart ", leaver))
		})
	}
	for _, c := range counts {
		c.check()
	}
	n.frozenHolder("frozen")
}

// frozenHolder freezes a command that holds a lock, and the latchkey that keeps it, for twice the TTL: somebody else gets the lock
// meanwhile, and what the woken command writes is refused.
func (n *liveNet) frozenHolder(lock string) {
	t := n.t
	t.Helper()
	dir := t.TempDir()
	log, file := filepath.Join(dir, "log"), filepath.Join(dir, "guarded")
	api := n.status().Peers[0].API
	under := func(mode string) *process {
		writer := self(mode, log)
		args := append([]string{"lock", lock, "--ttl", incrementTTL.String(), "--"}, writer.Args...)
		return command(t, []string{"LATCHKEY_API=" + api, "LATCHKEY_TEST_CHILD=" + mode, "LATCHKEY_TEST_LOG=" + log, "LATCHKEY_TEST_FILE=" + file}, args...)
	}
	told := func(what string) (pid int) {
		eventually(t, "the command says "+what, func() bool {
			b, _ := os.ReadFile(log)
			for _, line := range strings.Split(string(b), "\n") {
				if f := strings.Fields(line); len(f) == 3 && f[0] == what {
					pid, _ = strconv.Atoi(f[1])
				}
			}
			return pid != 0
		})
		return pid
	}
	first := under("late-writer").start()
	child := told("holding")
	for _, pid := range []int{first.Process.Pid, child} {
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	stopped := time.Now()
	second := under("writer")
	if code := second.start().wait(); code != exitOK {
		t.Errorf("the next holder: exit %d, %s", code, second.err.String())
	}
	if took := time.Since(stopped); took > 2*incrementTTL {
		t.Errorf("the next holder had to wait for %v, with a TTL of %v", took, incrementTTL)
	}
	time.Sleep(time.Until(stopped.Add(2 * incrementTTL))) // what is tested is a freeze of this length
	unix.Kill(child, unix.SIGCONT)
	told("refused")
	unix.Kill(first.Process.Pid, unix.SIGCONT)
	if code := first.wait(); code != exitLost {
		t.Errorf("the frozen holder: exit %d, %s", code, first.err.String())
	}
	if _, data, err := lockservice.NewFileGuard(file).Read(); err != nil || string(data) != "writer" {
		t.Errorf("the guarded file has %q, %v", data, err)
	}
}

// runWriter writes a guarded file under a lock. The late one does not look at the time, but begins when it has been frozen.
func runWriter(mode string, tell func(string)) {
	token, err := strconv.ParseUint(os.Getenv("LATCHKEY_FENCE"), 10, 64)
	if err != nil {
		panic(err)
	}
	guard := lockservice.NewFileGuard(os.Getenv("LATCHKEY_TEST_FILE"))
	if mode == "late-writer" {
		// It is woken with TERM on the way, which must not keep it from its write.
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGTERM)
		tell(fmt.Sprint("holding ", os.Getpid()))
		for before := time.Now(); time.Since(before) < incrementTTL; { // a step of the clock by so much is a freeze
			before = time.Now()
			time.Sleep(time.Millisecond)
		}
	}
	if err := guard.Write(lockservice.Token(token), []byte(mode)); err != nil {
		tell(fmt.Sprint("refused ", os.Getpid()))
		select {}
	}
	tell(fmt.Sprint("written ", os.Getpid()))
}
