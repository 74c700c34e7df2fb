package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"latchkey/lockservice"
	"latchkey/node/api"
)

// lockFlags are the flags of lock.
type lockFlags struct {
	ttl, wait time.Duration
	waitSet   bool
	try       bool
	protocol  lockservice.Protocol
	byName    string // protocol as it was typed
	notAcq    int
	shared    bool
	permits   int // 0: it is no semaphore
	permitSet bool
	delay     time.Duration
	value     string // of elect
}

func lockVerb(a *app) *cobra.Command {
	var f lockFlags
	c := &cobra.Command{
		Use:                   "lock [flags] NAME [-- CMD ARG...]",
		DisableFlagsInUseLine: true,
		Short:                 "hold a lock, for as long as a command runs or until interrupted",
		Long: `lock waits for the lock NAME, in order of arrival, and holds it while CMD runs.

CMD runs without a shell, in a process group of its own, with this terminal, and finds in its environment
  LATCHKEY_LOCK    the name
  LATCHKEY_FENCE   the fencing token: a number that rises with every grant of this lock
  LATCHKEY_HOLDER  who holds it, as "lock info" shows it
  LATCHKEY_API     the daemon's socket
INT, TERM, HUP and QUIT are passed on to it, and lock ends with its exit code (128+n after signal n; 127 when
there is no such command, 126 when it cannot be run). The lock is released when its whole process group
has ended, so a command left in the background keeps it. Ctrl-Z does not suspend CMD: the lease would run out.

The lease is renewed in the background. When it may be lost, CMD's process group gets TERM a third of the TTL
before the lease ends, KILL a tenth of the TTL before, and lock ends with 76; where the lock was taken away
("lock release --force"), both at once, with a tenth of a second between. When the daemon is restarted
the lock stays held, by nobody, until its lease is over, and CMD is stopped at the next renewal. If lock itself is killed, the lease
runs out after at most the TTL. On Linux CMD is then killed at once, though not what CMD has started; elsewhere
CMD lives on, and a resource that checks the token is safe from it. On Windows, CMD and all it started end
together, and TERM is a Ctrl-Break. If lock itself is frozen (SIGSTOP), it cannot stop CMD, and somebody else may
get the lock meanwhile: again, a resource that checks the token is safe.

Without CMD, lock prints one line of JSON and holds the lock until interrupted (exit 130 or 143) or until its
standard input closes (exit 0). Input from /dev/null, or none at all, says nothing: then only a signal ends it.

With --shared the lock is held beside others that share it, and with nobody who does not. With -n the name is a semaphore,
of which so many hold a permit each; all have to name the same number, and the name is no lock meanwhile. Nobody is
overtaken: who wants the lock alone waits only for those before it. Those who share a lock at a time see one
LATCHKEY_FENCE; permits have one each, which no resource can check, as several are valid at a time.

With --protocol sigma the voters of the lock's group keep the lock between them: a free one costs one round trip, and nobody notices
that the group's leader has died. With --protocol group the group's log keeps it, as it keeps what is shared, has permits or is
elected. auto, the default, is sigma where the overlay runs it and it can keep such a lock. Whoever asks for one name by different
protocols excludes each other all the same: a name that is wanted by group goes there, its holder with it,
and --protocol sigma follows it there ("lock info" says where it is). So does a name whose lock is taken away by "lock release --force".
The next token is far above the last then. "lock info" names who holds or waits by its own session, in both protocols; who has asked for
the name by group, or for a share, a permit or an election, by the session of its daemon with the group, which all that do so
through one daemon have in common.

A lock that is called like a verb below (info), or starts with a dash, is named after --:
  latchkey lock -- info -- ./build.sh

Exit code 75 (or -E) says that the lock was not free all the time: somebody else held it, or it was granted to nobody, as
after a restart or revival of its group, while leases or lock delays from before may last; then the error of --wait says
so. A group that cannot answer, since too many of its members are down or cut off, is an error: 1, whatever -E says, and
so is a peer that was revoked; so is 2 for wrong usage, and 3 when the daemon cannot be reached or goes away while lock waits.`,
		Example: `  latchkey lock nightly -- ./build.sh          # one at a time, on every machine
  latchkey lock nightly --try -E 0 -- ./build.sh   # or not at all, which is fine
  latchkey lock nightly --wait 30s -- ./build.sh   # exit 75 when others have had it all that time
  latchkey lock nightly                            # hold it until Ctrl-C
  latchkey lock nightly --shared -- ./read.sh      # beside other readers
  latchkey lock uploads -n 3 -- ./upload.sh        # three at a time, on all machines together`,
		Args: func(c *cobra.Command, args []string) error {
			_, _, err := lockArgs(args, c.ArgsLenAtDash())
			return err
		},
		RunE: func(c *cobra.Command, args []string) error {
			name, argv, err := lockArgs(args, c.ArgsLenAtDash())
			if err != nil {
				return err
			}
			f.waitSet, f.permitSet = c.Flags().Changed("wait"), c.Flags().Changed("permits")
			if err := f.check(c.Flags().Changed("ttl")); err != nil {
				return err
			}
			return a.lock(c.Context(), name, argv, f)
		},
	}
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		if words := c.Flags().Args(); len(words) > 1 { // NAME and a command whose flags were taken for ours
			return fmt.Errorf("%w; put -- before a command: latchkey lock %s -- %s and so on", flagError(c, err), shellWord(words[0]), shellWords(words[1:]))
		}
		return flagError(c, err)
	})
	f.register(c)
	c.Flags().BoolVar(&f.shared, "shared", false, "hold it beside others that share it")
	c.Flags().IntVarP(&f.permits, "permits", "n", 0, fmt.Sprintf("hold one of so many permits, 1 to %d; all name the same number", lockservice.PermitsMax))
	c.AddCommand(lockInfoVerb(a), lockLsVerb(a), lockWatchVerb(a), lockReleaseVerb(a))
	return c
}

// register adds the flags that lock and elect have in common.
func (f *lockFlags) register(c *cobra.Command) {
	c.Flags().DurationVar(&f.ttl, "ttl", 0, "how long the lock survives us when we stop: 1s to the overlay's longest, which is 1m, in testnets 10s (default 15s, or the longest)")
	c.Flags().DurationVar(&f.wait, "wait", 0, "how long to wait for the lock (default without limit; 0 is --try)")
	c.Flags().BoolVar(&f.try, "try", false, "do not wait")
	c.Flags().StringVar(&f.byName, "protocol", "auto", "how the lock is kept: sigma (by the voters of its group, without the group's log), group (by that log), or auto")
	c.Flags().DurationVar(&f.delay, "lock-delay", 0, fmt.Sprintf("how long nobody gets the lock after our lease has run out, up to %v; for resources that check no tokens", lockservice.LockDelayMax))
	c.Flags().IntVarP(&f.notAcq, "conflict-exit-code", "E", exitNotAcquired, "exit code when the lock was not acquired in time")
}

// lockArgs splits the arguments of lock into a name and a command. dash is how many came before the first --, or -1.
func lockArgs(args []string, dash int) (name string, argv []string, err error) {
	switch {
	case len(args) == 0:
		return "", nil, usagef("lock: which lock? usage: latchkey lock NAME [-- CMD ARG...]")
	case dash == 1 && len(args) == 1:
		return "", nil, usagef("lock: there is no command after --; leave the -- out to hold the lock without one")
	case dash == 0: // lock -- NAME [--] [CMD ARG...]
		name, argv = args[0], args[1:]
		if len(argv) > 0 && argv[0] == "--" {
			argv = argv[1:]
		}
		return name, argv, nil
	case dash > 1 || dash < 0 && len(args) > 1:
		return "", nil, usagef("lock: unexpected %q after the name; put -- before a command: latchkey lock %s -- %s", args[1], shellWord(args[0]), shellWords(args[1:]))
	}
	return args[0], args[1:], nil
}

// shellWords writes words as one types them to a shell, the first -- left out.
func shellWords(args []string) string {
	if i := slices.Index(args, "--"); i >= 0 {
		args = slices.Delete(slices.Clone(args), i, i+1)
	}
	words := make([]string, len(args))
	for i, s := range args {
		words[i] = shellWord(s)
	}
	return strings.Join(words, " ")
}

func (f *lockFlags) check(ttlSet bool) error {
	switch {
	case f.try && f.waitSet:
		return usagef("lock: --try and --wait exclude each other")
	case f.wait < 0:
		return usagef("lock: --wait %v: it must not be negative", f.wait)
	case ttlSet && f.ttl <= 0:
		return usagef("lock: --ttl %v: it must be positive, like 15s", f.ttl)
	case f.shared && f.permitSet:
		return usagef("lock: --shared and -n exclude each other: a permit is not shared")
	case f.permitSet && (f.permits < 1 || f.permits > lockservice.PermitsMax):
		return usagef("lock: -n %d: a semaphore has 1 to %d permits", f.permits, lockservice.PermitsMax)
	case f.delay < 0 || f.delay > lockservice.LockDelayMax:
		return usagef("lock: --lock-delay %v: it is 0 to %v", f.delay, lockservice.LockDelayMax)
	case f.notAcq < 0 || f.notAcq > 255:
		return usagef("lock: -E %d: exit codes go from 0 to 255", f.notAcq)
	}
	var err error
	if f.protocol, err = lockservice.ParseProtocol(f.byName); err != nil {
		return usagef("lock: --protocol %s: %s", f.byName, protocolHint(f.byName))
	}
	if f.protocol == lockservice.ProtocolSigma && (f.shared || f.permitSet) {
		return usagef("lock: --protocol sigma: only one holds such a lock; use auto or group")
	}
	f.try = f.try || f.waitSet && f.wait == 0
	return nil
}

// protocolHint says what to do about a protocol that locks are not kept by.
func protocolHint(name string) string {
	if name == "backoff" {
		return "a name is locked by one protocol at a time, and backoff knows nothing of who holds it by sigma or group; use auto"
	}
	return "use auto, sigma or group"
}

// lock acquires the lock, has argv run under it (or holds it until told to stop), and gives it back.
func (a *app) lock(ctx context.Context, name string, argv []string, f lockFlags) error {
	if err := lockservice.CheckName(name); err != nil {
		return err
	}
	var program string
	if len(argv) > 0 {
		var err error
		if program, err = lookPath(argv[0]); err != nil { // before anybody waits for us
			return commandError(err)
		}
	}
	daemon, err := a.dial()
	if err != nil {
		return err
	}
	defer daemon.Close()

	signals := make(chan os.Signal, 8)
	signal.Notify(signals, passedOn()...)
	defer signal.Stop(signals)

	held, err := a.acquire(ctx, daemon, name, f, signals)
	if err != nil {
		return err
	}
	since := time.Now()
	var work work
	if len(argv) == 0 {
		work, err = a.announce(held)
	} else {
		work, err = startChild(program, argv, childEnv(held, daemon.Addr()), os.Stdin, os.Stdout, a.note)
	}
	if err != nil {
		a.release(daemon, held)
		return commandError(err)
	}
	told := make(chan struct{})
	lost := supervise(held, work, signals, func(lost error) {
		gone := daemon.Gone()
		go func() {
			defer close(told)
			a.fail(loss(daemon, held, since, gone, lost), exitLost)
		}()
	})
	if lost != nil { // whatever the reason, be it a daemon that is not reachable
		// Others need not wait for the lease to end if it can be helped; that it cannot is no news.
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if held.Release(ctx); ctx.Err() != nil {
			daemon.Abandon()
		}
		<-told
		return silent(exitLost)
	}
	a.release(daemon, held)
	return work.result()
}

// lossAsk bounds the questions why a lock was lost, whose answers are for people only.
const lossAsk = time.Second

// loss says why a lock that was held since then was lost, and that its work is stopped. It asks the daemon for what the loss itself does not tell:
// whether somebody has taken the lock away, and whether it is another process than the one that took it.
func loss(daemon *api.Client, held *lockservice.Handle, since time.Time, gone bool, lost error) error {
	if gone {
		return fmt.Errorf("lock %q may be lost, so its work is stopped: its daemon is gone: %w", held.Name(), lost)
	}
	ctx, cancel := context.WithTimeout(context.Background(), lossAsk)
	defer cancel()
	if !errors.Is(lost, lockservice.ErrNotHeld) { // nobody has answered
		return fmt.Errorf("lock %q may be lost, so its work is stopped: %w", held.Name(), whyLost(lost))
	}
	if s, err := daemon.Status(ctx); err == nil && s.Started.After(since) {
		return fmt.Errorf("the daemon was restarted, so lock %q may be lost and its work is stopped; nobody gets it before its lease is over", held.Name())
	}
	if i, err := daemon.Locks().Info(ctx, held.Name()); err == nil {
		for _, b := range i.Breaks {
			if b.Token == held.Token() {
				return fmt.Errorf("lock %q was taken away by release --force, so its work is stopped: token %v, by %v", held.Name(), b.Token, b.By)
			}
		}
	}
	return fmt.Errorf("lock %q is lost, so its work is stopped: %w", held.Name(), whyLost(lost))
}

// whyLost is a loss without what the sentence that it stands in says already.
func whyLost(lost error) error {
	var l *lockservice.LostError
	switch {
	case !errors.As(lost, &l):
		return lost
	case l.Cause == nil:
		return fmt.Errorf("token %v, last confirmed %v ago", l.Token, l.Since.Round(time.Millisecond))
	case errors.Is(l.Cause, lockservice.ErrNotHeld):
		return fmt.Errorf("its group has ended the hold with token %v, last confirmed %v ago", l.Token, l.Since.Round(time.Millisecond))
	}
	return fmt.Errorf("token %v, last confirmed %v ago: %w", l.Token, l.Since.Round(time.Millisecond), l.Cause)
}

// acquire waits for the lock until a signal comes.
func (a *app) acquire(ctx context.Context, daemon *api.Client, name string, f lockFlags, signals <-chan os.Signal) (*lockservice.Handle, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	acquired, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case s := <-signals:
			cancel(&interruptError{s.(syscall.Signal)})
		case <-acquired:
		}
	}()

	limit := f.wait // for a sign of the group; 0 is none
	if f.try {
		limit = a.groupTimeout()
		var stop context.CancelFunc
		ctx, stop = a.askGroup(ctx, limit)
		defer stop()
	}
	about := a.inquire(ctx, daemon, name, limit)
	defer about.stop()
	var opts []lockservice.Option
	if f.ttl != 0 {
		opts = append(opts, lockservice.WithTTL(f.ttl))
	}
	if f.delay > 0 {
		opts = append(opts, lockservice.WithLockDelay(f.delay))
	}
	if f.protocol != lockservice.ProtocolAuto {
		opts = append(opts, lockservice.WithProtocol(f.protocol))
	}
	if f.value != "" {
		opts = append(opts, lockservice.WithValue(f.value))
	}
	if !f.try {
		if f.wait > 0 {
			opts = append(opts, lockservice.WithWait(f.wait))
		}
		queued := a.noteSilence(about, acquired, cancel)
		go a.endShutOut(ctx, daemon, acquired, cancel)
		go a.noteDelay(ctx, daemon, name, acquired)
		show := a.format == formatText && isTerminal(os.Stderr)
		opts = append(opts, lockservice.WithQueued(func(position int) {
			queued()
			if show {
				a.note(fmt.Sprintf("waiting for lock %q: place %d in the queue", name, position))
			}
		}))
	}
	start := time.Now()
	held, err := f.take(ctx, daemon.Locks(), name, opts)
	close(acquired)
	<-watched
	switch code := exitCode(err); {
	case errors.Is(err, lockservice.ErrWait) && !errors.Is(err, lockservice.ErrLocked), ctx.Err() == nil && groupSilent(err, start, limit):
		return nil, about.silence(limit)
	case errors.As(context.Cause(ctx), new(*daemonSilentError)), errors.As(context.Cause(ctx), new(*shutOutError)):
		if err == nil {
			a.release(daemon, held)
		}
		return nil, context.Cause(ctx)
	case ctx.Err() != nil: // interrupted, and what Lock says of it adds nothing
		if err == nil {
			a.release(daemon, held)
		}
		return nil, &exitError{code: exitCode(context.Cause(ctx))}
	case code == exitNotAcquired:
		return nil, &exitError{f.notAcq, notFree(ctx, daemon, name, err)}
	case err != nil:
		return nil, a.explain(err)
	}
	return held, nil
}

// take asks for what the flags say.
func (f *lockFlags) take(ctx context.Context, locks *lockservice.Service, name string, opts []lockservice.Option) (*lockservice.Handle, error) {
	semaphore := locks.Semaphore(name, f.permits)
	switch {
	case f.permits > 0 && f.try:
		return semaphore.TryAcquire(ctx, opts...)
	case f.permits > 0:
		return semaphore.Acquire(ctx, opts...)
	case f.shared && f.try:
		return locks.TryRLock(ctx, name, opts...)
	case f.shared:
		return locks.RLock(ctx, name, opts...)
	case f.try:
		return locks.TryLock(ctx, name, opts...)
	}
	return locks.Lock(ctx, name, opts...)
}

// release gives the lock back. Failure is told and changes no exit code: the work is done, and the lease runs out by itself.
func (a *app) release(daemon *api.Client, held *lockservice.Handle) {
	ctx, cancel := context.WithTimeout(context.Background(), min(held.TTL(), 5*time.Second))
	defer cancel()
	end := time.Now().Add(held.Remaining())
	err := held.Release(ctx)
	switch {
	case err == nil, errors.Is(err, lockservice.ErrLost), errors.Is(err, lockservice.ErrNotHeld):
		return
	case errors.Is(err, api.ErrGone):
		left := max(0, time.Until(end)).Round(100 * time.Millisecond)
		a.note(fmt.Sprintf("lock %q could not be released, as its daemon is gone, and lapses in about %v: %s", held.Name(), left, oneLine(err)))
	default:
		a.note(fmt.Sprintf("lock %q could not be released and lapses within %v: %s", held.Name(), held.TTL(), oneLine(err)))
	}
	daemon.Abandon() // who has not answered so far is not waited for once more
}

// note tells the person at the terminal something that no program reads.
func (a *app) note(text string) { fmt.Fprintf(a.err, "latchkey: %s\n", text) }

// lookPath finds a program as [exec.LookPath] does, and says of a directory that it is one.
func lookPath(name string) (string, error) {
	program, err := exec.LookPath(name)
	if err != nil && strings.ContainsRune(name, filepath.Separator) {
		if info, statErr := os.Stat(name); statErr == nil && info.IsDir() {
			return "", fmt.Errorf("%s is a directory: %w", name, os.ErrPermission)
		}
	}
	return program, err
}

// commandError is the end of lock when its command did not start.
func commandError(err error) error {
	return exitf(commandCode(err), "lock: cannot run the command: %w", err)
}

// commandCode returns the exit code that shells give to a command that did not start because of err.
func commandCode(err error) int {
	switch {
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, os.ErrNotExist):
		return exitNoCommand
	case errors.Is(err, os.ErrPermission), errors.Is(err, exec.ErrDot), errors.Is(err, syscall.ENOEXEC):
		return exitNotRunnable
	}
	return exitFailure
}

// childEnv is our environment with the lock in it.
func childEnv(held *lockservice.Handle, socket string) []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains([]string{"LATCHKEY_LOCK", "LATCHKEY_FENCE", "LATCHKEY_HOLDER", "LATCHKEY_API"}, name)
	})
	return append(env, "LATCHKEY_LOCK="+held.Name(), "LATCHKEY_FENCE="+held.Token().String(), "LATCHKEY_HOLDER="+held.Holder(), "LATCHKEY_API="+absolute(socket))
}

// announce prints the line of a lock that is held without a command, and returns a work that ends with standard input.
func (a *app) announce(held *lockservice.Handle) (work, error) {
	line, err := json.Marshal(struct {
		Lock   string `json:"lock"`
		Token  uint64 `json:"token,string"`
		Holder string `json:"holder"`
		TTL    int64  `json:"ttl_ms"`
	}{held.Name(), uint64(held.Token()), held.Holder(), held.TTL().Milliseconds()})
	if err == nil {
		_, err = fmt.Fprintf(a.out, "%s\n", line)
	}
	return holdOpen(os.Stdin), err
}
