package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"latchkey/lockservice"
)

func main() {
	if spec := os.Getenv(memberEnv); spec != "" {
		if err := beMember(spec); err != nil {
			fmt.Fprintln(os.Stderr, "compare: etcd member:", err)
			os.Exit(1)
		}
		return
	}
	var o options
	flag.DurationVar(&o.length, "for", 5*time.Second, "how long each system works on each workload, failover apart")
	flag.BoolVar(&o.sync, "sync", false, "store on disk and sync, on both sides")
	flag.IntVar(&o.failovers, "failovers", 0, "how often the member that leads is killed, and how often it is frozen")
	flag.StringVar(&o.program, "latchkey", "", "the latchkey binary for -failovers (default: built for the run)")
	asJSON := flag.Bool("json", false, "print JSON")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "usage: go run . [flags]\n\nCompares latchkey's locks with etcd's on this machine; see doc.go for what and how.\n\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 || o.length <= 0 || o.failovers < 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	r, err := run(ctx, o)
	if err == nil && *asJSON {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		err = e.Encode(r)
	} else if err == nil {
		err = r.text(os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

type options struct {
	length    time.Duration
	sync      bool
	failovers int
	program   string
}

// Result is what a run found.
type Result struct {
	Sync      bool       `json:"sync"`
	Workloads []Workload `json:"workloads"`
	Killed    []Failover `json:"killed,omitempty"`
	Frozen    []Failover `json:"frozen,omitempty"`
}

// Workload is one row.
type Workload struct {
	Name     string  `json:"name"`
	Clients  int     `json:"clients"`
	Latchkey Figures `json:"latchkey"`
	Group    Figures `json:"latchkey_group"`
	Etcd     Figures `json:"etcd"`
}

// Failover is one death of the member that led, on each side.
type Failover struct {
	Latchkey Outage `json:"latchkey"`
	Group    Outage `json:"latchkey_group"`
	Etcd     Outage `json:"etcd"`
}

// workloads are those without faults.
var workloads = []struct {
	name           string
	clients, names int
}{
	{"uncontended", 1, 1},
	{"names", 16, 16},
	{"contended", 2, 1},
	{"contended", 32, 1},
	{"contended", 128, 1},
}

func run(ctx context.Context, o options) (_ *Result, err error) {
	dir, err := os.MkdirTemp("", "latchkey-compare-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	r := &Result{Sync: o.sync}
	if err := o.healthy(ctx, dir, r); err != nil {
		return nil, err
	}
	if o.failovers == 0 {
		return r, nil
	}
	if o.program == "" {
		o.program = filepath.Join(dir, "program")
		if err := build(ctx, o.program); err != nil {
			return nil, fmt.Errorf("build latchkey, or name a binary with -latchkey: %w", err)
		}
	}
	for i := range o.failovers {
		for _, f := range []struct {
			signal syscall.Signal
			all    *[]Failover
		}{{syscall.SIGKILL, &r.Killed}, {syscall.SIGSTOP, &r.Frozen}} {
			one, err := o.failover(ctx, filepath.Join(dir, fmt.Sprintf("%d-%d", f.signal, i)), f.signal)
			if err != nil {
				return nil, err
			}
			*f.all = append(*f.all, one)
		}
	}
	return r, nil
}

// build makes the latchkey binary, in the module of its own that this one names, since this one does not have all it needs.
func build(ctx context.Context, program string) error {
	dir, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "latchkey").Output()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-o", program, "./cmd/latchkey")
	cmd.Dir = strings.TrimSpace(string(dir))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// healthy runs the workloads without faults.
func (o options) healthy(ctx context.Context, dir string, r *Result) (err error) {
	l, err := newLatchkey(ctx, dir, o.sync)
	if err != nil {
		return fmt.Errorf("latchkey: %w", err)
	}
	defer func() { err = errors.Join(err, l.close()) }()
	e, err := newEtcd(ctx, dir, o.sync)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	for _, w := range workloads {
		f := Workload{Name: w.name, Clients: w.clients}
		if err := o.workload(ctx, l, e, w.clients, w.names, &f); err != nil {
			return fmt.Errorf("%s, %d clients: %w", w.name, w.clients, err)
		}
		r.Workloads = append(r.Workloads, f)
	}
	return nil
}

func (o options) workload(ctx context.Context, l *latchkeySystem, e *etcdSystem, clients, names int, f *Workload) (err error) {
	group := l.by(lockservice.ProtocolGroup)
	var sides []*side
	for _, s := range []struct {
		system
		namer *latchkeySystem
	}{{l, l}, {group, group}, {e, l}} {
		all := make([]string, names)
		for i := range all {
			if all[i], err = s.namer.nameFor(ctx, fmt.Sprint("compare ", clients, " ", i)); err != nil {
				return err
			}
		}
		d, err := newSide(ctx, s.system, clients, all)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, d.close()) }()
		sides = append(sides, d)
	}
	if err := compare(ctx, o.length, sides...); err != nil {
		return err
	}
	f.Latchkey, f.Group, f.Etcd = sides[0].tally.figures(), sides[1].tally.figures(), sides[2].tally.figures()
	return nil
}

// failover has both systems lose their leader, one after the other.
func (o options) failover(ctx context.Context, dir string, s syscall.Signal) (f Failover, err error) {
	ours := func(name string, p lockservice.Protocol) func() (cluster, error) {
		return func() (cluster, error) {
			dir := filepath.Join(dir, name)
			if err := os.MkdirAll(dir, 0o700); err != nil { // a testnet makes no directory of its own
				return nil, err
			}
			return newLatchkeyCluster(ctx, o.program, dir, p)
		}
	}
	for _, side := range []struct {
		name   string
		make   func() (cluster, error)
		outage *Outage
	}{
		{"latchkey", ours("sigma", lockservice.ProtocolSigma), &f.Latchkey},
		{"latchkey by group", ours("group", lockservice.ProtocolGroup), &f.Group},
		{"etcd", func() (cluster, error) { return newEtcdCluster(filepath.Join(dir, "etcd")) }, &f.Etcd},
	} {
		c, err := side.make()
		if err != nil {
			return f, fmt.Errorf("%s: %w", side.name, err)
		}
		*side.outage, err = outage(ctx, c, s)
		if err = errors.Join(err, c.close()); err != nil {
			return f, fmt.Errorf("%s, %v: %w", side.name, s, err)
		}
	}
	return f, nil
}

// text writes the result for people.
func (r *Result) text(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "\t\tacquire p50 ms\tp99 ms\tholds/s\tCPU ms/hold\tJain\tlongest gap ms\t\n")
	for _, l := range r.Workloads {
		for _, s := range []struct {
			name string
			f    Figures
		}{{"latchkey", l.Latchkey}, {"by group", l.Group}, {"etcd", l.Etcd}} {
			fmt.Fprintf(t, "%s, %d\t%s\t%.3f\t%.2f\t%.0f\t%.3f\t%.3f\t%.1f\t\n", l.Name, l.Clients, s.name, s.f.P50ms, s.f.P99ms, s.f.PerS, s.f.CPUms, s.f.Jain, s.f.Longest)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if len(r.Workloads) > 0 {
		u := r.Workloads[0]
		fmt.Fprintf(w, "\nAn uncontended acquire of etcd takes %.1f times as long.\n", u.Etcd.P50ms/u.Latchkey.P50ms)
	}
	for _, f := range []struct {
		what string
		all  []Failover
	}{{"killed", r.Killed}, {"frozen", r.Frozen}} {
		for i, o := range f.all {
			fmt.Fprintf(w, "%s\n", strings.TrimSpace(fmt.Sprintf("the leader %s, run %d: longest gap %.0f ms latchkey (quiet %.0f), %.0f by group (quiet %.0f), %.0f etcd (quiet %.0f)",
				f.what, i+1, o.Latchkey.Longest, o.Latchkey.Before, o.Group.Longest, o.Group.Before, o.Etcd.Longest, o.Etcd.Before)))
		}
	}
	return nil
}
