package demo

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"latchkey/testnet"
)

// Report is what a run came to. Its JSON form is part of the command line's contract.
type Report struct {
	OK         bool    `json:"ok"`    // every check passed
	Peers      int     `json:"peers"` // of the testnet, at its start
	Increments int     `json:"increments"`
	Kills      int     `json:"kills"`
	LockP50us  int64   `json:"lock_p50_us"`       // from asking for the contended lock to holding it
	FailoverMS []int64 `json:"failover_ms"`       // by kill: the longest time in which nobody was granted the lock
	JoinMS     int64   `json:"join_ms"`           // until a peer that joined had taken over a replica
	LeaveMS    int64   `json:"leave_ms"`          // until a peer was gone that left, and another had its place
	RestartMS  int64   `json:"restart_ms"`        // from the end of all peers until the lock was granted again
	Kept       int     `json:"kept"`              // locks held meanwhile that are held still, with their tokens
	ObjectOps  int     `json:"object_ops"`        // reads and updates of shared objects
	LeaderMS   int64   `json:"object_leader_ms"`  // from the death of the leader of the objects' managers until every peer had had turns again
	AnewMS     int64   `json:"object_restart_ms"` // from the death of an owner until every peer had had turns in the next execution
	DurableOps int     `json:"durable_ops"`       // reads and updates of durable objects
	DurableMS  int64   `json:"durable_leader_ms"` // from the death of their group's leader until every other peer had had turns again
	Checks     []Check `json:"checks"`

	clients, each, restarts int
	acquires                int
	lockP99, lockMax        time.Duration
	took                    time.Duration
	moves                   moves
}

// Check is the verdict of one checker.
type Check struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	err  error
}

// judge runs the checkers over what the run left behind. runErr is why the run was cut short, if it was.
func (d *demo) judge(runErr error) (*Report, error) {
	r := &Report{
		Peers: testnet.PeersDefault, Kills: len(d.kills), FailoverMS: []int64{}, restarts: len(d.faults) - len(d.kills),
		clients: d.opts.Clients, each: d.opts.Each, acquires: len(d.waits),
		LockP50us: percentile(d.waits, 50).Microseconds(), lockP99: percentile(d.waits, 99), lockMax: percentile(d.waits, 100),
		took: d.took, moves: d.moves,
		JoinMS: d.moves.joinTook.Milliseconds(), LeaveMS: d.moves.leaveTook.Milliseconds(), RestartMS: d.moves.restartTook.Milliseconds(), Kept: d.intact(),
	}
	for _, g := range d.gaps {
		r.FailoverMS = append(r.FailoverMS, g.Milliseconds())
	}
	_, data, err := d.file.Read()
	if err != nil {
		return nil, err
	}
	c, err := parseCounter(data, d.opts.Clients)
	if err != nil {
		return nil, err
	}
	r.Increments = c.Value
	check := func(name string, err error) {
		r.Checks = append(r.Checks, Check{Name: name, OK: err == nil, err: err})
		if err != nil {
			d.tell("check FAILED: %s: %s", name, oneLine(err))
		}
	}
	check("run completed", runErr)
	check("no increment lost or doubled", checkCounter(c, d.opts.Clients, d.opts.Each))
	check("every client made its increments in order", checkClients(c, d.opts.Clients, d.opts.Each))
	check("tokens of the writes strictly rising", checkTokens(c.Writes))
	check("history of acquire and release linearizable", checkHistory(d.history, judgeMax))
	check("faults by role, never more than f voters down", checkFaults(d.faults, d.net.F()))
	if s := d.sharing; s != nil {
		r.ObjectOps, r.LeaderMS, r.AnewMS = s.operations(), s.leaderless.Milliseconds(), s.restartTook.Milliseconds()
	}
	check("shared objects sequentially consistent", d.sharing.checkCoherent())
	check("no update of an object lost or doubled", d.sharing.checkUpdates())
	check("objects outlive a leader, and all hear of an owner's death", d.sharing.checkKills())
	if k := d.keeping; k != nil {
		r.DurableOps, r.DurableMS = k.record.ops, k.leaderless.Milliseconds()
	}
	check("no increment of a durable counter lost or doubled", d.keeping.checkCounted())
	check("no read of a durable object older than what had returned", d.keeping.checkSeen())
	check("durable objects outlive a leader, a writer and a holder of copies", d.keeping.checkOutlived())
	check("a peer that joined took over a replica", checkJoin(d.moves, d.net.F()))
	check("a peer left and was replaced, with no pause over 2 s", checkLeave(d.moves, d.net.F()))
	check("all peers restarted from disk, every lock and token intact", checkRestart(d.moves, testnet.PeersDefault))
	r.OK = !slices.ContainsFunc(r.Checks, func(c Check) bool { return !c.OK })
	return r, nil
}

// percentile returns the p-th percentile of ds, 0 when there are none.
func percentile(ds []time.Duration, p int) time.Duration {
	if len(ds) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(ds))
	return sorted[(len(sorted)-1)*p/100]
}

// Table writes the report for people.
func (r *Report) Table(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "increments\t%d of %d\t%d clients with %d each at %d peers\n", r.Increments, r.clients*r.each, r.clients, r.each, r.Peers)
	fmt.Fprintf(w, "acquires\t%d\tp50 %s, p99 %s, longest %s (contended)\n", r.acquires,
		short(time.Duration(r.LockP50us)*time.Microsecond), short(r.lockP99), short(r.lockMax))
	fmt.Fprintf(w, "faults\t%d killed, %d restarted\t%s\n", r.Kills, r.restarts, r.gapsText())
	fmt.Fprintf(w, "objects\t%d reads and updates\tall went on %s after the leader's death, and %s after an owner's, in a new execution\n",
		r.ObjectOps, short(time.Duration(r.LeaderMS)*time.Millisecond), short(time.Duration(r.AnewMS)*time.Millisecond))
	fmt.Fprintf(w, "durable\t%d reads and updates\tall others went on %s after the leader's death, and nothing began anew\n", r.DurableOps, short(time.Duration(r.DurableMS)*time.Millisecond))
	fmt.Fprintf(w, "moves\t1 joined, 1 left\ttook over a replica in %s; replaced in %s, longest time without a grant %s\n",
		short(r.moves.joinTook), short(r.moves.leaveTook), short(r.moves.leaveGap))
	fmt.Fprintf(w, "restart\t%d peers\tall at once, from disk: %s until the next grant; %d of %d locks kept their tokens\n",
		r.moves.stopped, short(r.moves.restartTook), r.Kept, len(r.moves.kept))
	fmt.Fprintf(w, "time\t%s\tup to the last increment\n", short(r.took))
	for _, c := range r.Checks {
		verdict, why := "ok", ""
		if !c.OK {
			verdict, why = "FAILED", oneLine(c.err)
		}
		fmt.Fprintf(w, "check\t%s\t%s\n", verdict, strings.TrimSuffix(c.Name+": "+why, ": "))
	}
	return w.Flush()
}

// oneLine prints an error, which may be several, on one line.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

func (r *Report) gapsText() string {
	var gaps []string
	for _, g := range r.FailoverMS {
		gaps = append(gaps, short(time.Duration(g)*time.Millisecond))
	}
	if len(gaps) == 0 {
		return ""
	}
	return "longest time without a grant after each kill: " + strings.Join(gaps, ", ")
}

// short prints a duration with three digits or so.
func short(d time.Duration) string {
	switch {
	case d >= time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	}
	return d.Round(time.Microsecond).String()
}
