package apps

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/coherence/protocol"
	"latchkey/node"
	"latchkey/node/api"
	"latchkey/node/config"
	"latchkey/replicagroup/placement"
	"latchkey/testnet"
	"latchkey/testnet/apps/sor"
	"latchkey/testnet/wire"
)

var processRounds = flag.Int("apps.rounds", 0, "how often each fault happens to the processes that run threads; at 0 the worst of them happens once")

// peerArg makes this program a peer that can run the threads of the solver, in place of its tests.
const peerArg = "apps-peer"

const solver = "solver"

// bePeer is the process of a peer: what "latchkey daemon" is in other testnets, and beside it a program that has the application open. args are
// those that a testnet gives: --path DIR daemon --testnet-wire SOCKET. It ends by being killed.
func bePeer(args []string) int {
	err := func() error {
		var rules wire.Rules
		if err := json.NewDecoder(os.Stdin).Decode(&rules); err != nil {
			return err
		}
		w := wire.New()
		if err := w.SetRules(rules); err != nil {
			return err
		}
		l, err := api.Listen(args[4])
		if err != nil {
			return err
		}
		go wire.Serve(l, w)
		d, err := node.OpenDir(args[1])
		if err != nil {
			return err
		}
		socket, err := api.Listen(filepath.Join(args[1], "api.sock"))
		if err != nil {
			return err
		}
		ctx := context.Background()
		n, _, err := d.Run(ctx, d.Config(), []libp2p.Option{libp2p.Transport(w.Transport)}, node.WithPlanTimes(placement.TestnetPlanTimes()))
		if err != nil {
			return err
		}
		s, err := api.NewServer(api.Config{Node: n, Locks: n.NewLockBackend(), Objects: n.NewAPIObjects(), Durables: n.NewAPIDurables(), Shutdown: func() {}})
		if err != nil {
			return err
		}
		served := make(chan error, 1)
		go func() { served <- s.Serve(socket) }()
		fmt.Println("READY to run threads")
		for { // whoever comes while an execution ends opens the next
			app, err := n.Objects().Open(ctx, solver)
			if err == nil {
				err = new(sor.Job).Register(app)
			}
			if err == nil {
				break
			}
			fmt.Println(err)
			time.Sleep(poll)
		}
		select {
		case err := <-served:
			return err
		case <-n.Done():
			return n.Err()
		}
	}()
	fmt.Println(err)
	return 1
}

// crowd is a testnet of processes, and this process a peer beside them, from which the run is driven.
type crowd struct {
	t    *testing.T
	net  *testnet.Processes
	node *node.Node
	run  *run
}

func gather(t *testing.T, ctx context.Context, job *sor.Job, n int) *crowd {
	t.Helper()
	dir, err := os.MkdirTemp("", "apps") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	control, err := testnet.Claim(filepath.Join(dir, "net"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { control.Close() })
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	net, err := testnet.UpProcesses(ctx, testnet.ProcessOptions{
		Options: testnet.Options{N: n, F: 2, Depth: 1, Dir: filepath.Join(dir, "net")}, Program: program, Args: []string{peerArg},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { net.Close() })
	c := &crowd{t: t, net: net}

	first := net.Status().Peers[0]
	info, err := node.PeekDir(first.Path)
	if err != nil {
		t.Fatal(err)
	}
	key, _, err := crypto.GenerateEd25519Key(nil)
	if err != nil {
		t.Fatal(err)
	}
	conf, err := config.Default(config.Test)
	if err != nil {
		t.Fatal(err)
	}
	conf.Network.Listen, conf.Network.Bootstrap = []string{"/ip4/127.0.0.1/tcp/0"}, []string{first.Addr}
	own := filepath.Join(dir, "own")
	if err := node.CreateDir(own, node.DirSpec{Key: key, Genesis: info.Genesis, SwarmKey: info.SwarmKey, Config: conf}); err != nil {
		t.Fatal(err)
	}
	d, err := node.OpenDir(own)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	self, host, err := d.Run(ctx, conf, nil, node.WithPlanTimes(placement.TestnetPlanTimes()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close() })
	t.Cleanup(func() { self.Close() })
	c.node = self
	c.run = &run{
		Options: Options{Name: solver, N: n, Workers: job.Workers, Progress: func(testnet.Progress) {}},
		job:     job, objects: self.Objects(), r: new(Report),
	}
	return c
}

// up returns the peers that run, as the testnet numbers them.
func (c *crowd) up() (up []int) {
	for _, p := range c.net.Status().Peers {
		if p.Up {
			up = append(up, p.N)
		}
	}
	return up
}

// ids returns the ids of the processes.
func (c *crowd) ids() (ids []peer.ID) {
	for _, p := range c.net.Status().Peers {
		id, err := peer.Decode(p.Peer)
		if err != nil {
			c.t.Fatal(err)
		}
		ids = append(ids, id)
	}
	return ids
}

// all waits until all processes have the application open.
func (c *crowd) all(ctx context.Context) error {
	for {
		st, err := c.node.Objects().Status(ctx, solver)
		ready := 0
		for _, n := range st.Nodes {
			if len(n.Kinds) > 0 {
				ready++
			}
		}
		if err == nil && ready == len(c.up()) {
			return nil
		}
		if err := wait(ctx); err != nil {
			return fmt.Errorf("%d of %d processes have the application open: %w", ready, len(c.up()), err)
		}
	}
}

// withThreads returns the processes that run threads; there may be none for a moment.
func (c *crowd) withThreads(ctx context.Context) (with []int) {
	st, err := c.node.Objects().Status(ctx, solver)
	if err != nil {
		return nil
	}
	ids := c.ids()
	for _, n := range st.Nodes {
		if i := slices.Index(ids, n.Peer); i >= 0 && n.Count > 0 {
			with = append(with, i)
		}
	}
	return with
}

// leader returns the process that leads the group of the objects' managers, -1 where none does.
func (c *crowd) leader(ctx context.Context) int {
	for _, i := range c.up() {
		client, err := api.Dial(c.net.Status().Peers[i].API)
		if err != nil {
			continue
		}
		defer client.Close()
		o, err := client.Object(ctx, api.Target{App: solver, Name: "gate"})
		if err != nil || o.Group == nil {
			continue
		}
		return slices.IndexFunc(c.net.Status().Peers, func(p testnet.PeerStatus) bool { return p.Peer == o.Group.Leader && p.Up })
	}
	return -1
}

func (c *crowd) kill(victims ...int) {
	c.t.Helper()
	for _, i := range victims {
		c.must(c.net.Kill(i))
	}
	c.t.Logf("killed %v in epoch %d", victims, c.run.app.Epoch())
}

// anew waits until the application has begun anew after an execution.
func (c *crowd) anew(ctx context.Context, epoch protocol.Epoch) {
	c.t.Helper()
	for c.run.app.Epoch() == epoch {
		_, err := c.run.done(ctx)
		c.must(cmp.Or(err, wait(ctx)))
	}
}

func (c *crowd) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// saves makes checkpoints one after the other until ctx ends, and says how many were complete.
func (c *crowd) saves(ctx context.Context, begun chan<- struct{}) (complete int) {
	for ctx.Err() == nil {
		select {
		case begun <- struct{}{}:
		default:
		}
		if _, err := c.node.Objects().Checkpoint(ctx, solver); err == nil {
			complete++
		} else if wait(ctx) != nil {
			break
		}
	}
	return complete
}

// fault is what happens to processes that run threads.
type fault struct {
	name string
	make func(ctx context.Context)
}

// faults are the faults of a round, the worst of them last.
func (c *crowd) faults(begun <-chan struct{}, draw *rand.Rand) []fault {
	pick := func(from []int) int { return from[draw.IntN(len(from))] }
	host := func(ctx context.Context) int {
		for {
			if with := c.withThreads(ctx); len(with) > 0 {
				return pick(with)
			}
			c.must(wait(ctx))
		}
	}
	return []fault{
		{"a thread's host, while a checkpoint is made", func(ctx context.Context) {
			victim := host(ctx)
			<-begun
			c.kill(victim)
		}},
		{"the managers' leader", func(ctx context.Context) {
			victim := c.leader(ctx)
			if victim < 0 {
				victim = host(ctx) // this process leads
			}
			c.kill(victim)
		}},
		{"one, and another in the restart", func(ctx context.Context) {
			epoch := c.run.app.Epoch()
			c.kill(host(ctx))
			c.anew(ctx, epoch)
			c.kill(pick(c.up()))
		}},
		{"f at once, a thread's host among them, while a checkpoint is made", func(ctx context.Context) {
			one := host(ctx)
			other := c.leader(ctx)
			if other < 0 || other == one {
				other = pick(slices.DeleteFunc(c.up(), func(i int) bool { return i == one }))
			}
			<-begun
			c.kill(one, other)
		}},
	}
}

// TestThreadsOutliveProcesses has threads solve a grid on processes of their own while checkpoints are made without a break, and kills processes at
// once with SIGKILL: one that runs a thread and owns what it writes, the leader of the objects' managers, another one as soon as the application
// has begun anew, f at the same moment. The result is that of one process, to the last bit.
func TestThreadsOutliveProcesses(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+*processRounds)*2*time.Minute)
	defer cancel()
	const peers, stepsEach = 6, 5
	job := &sor.Job{Problem: sor.Problem{Rows: 16, Cols: 12, Steps: 10 + 4*stepsEach**processRounds, Workers: 5}}
	if err := job.Alone(ctx); err != nil {
		t.Fatal(err)
	}
	c := gather(t, ctx, job, peers)
	u := c.run
	var err error
	u.app, err = u.objects.Open(ctx, solver)
	c.must(err)
	c.must(c.all(ctx))
	steps := 2
	c.must(u.gate(ctx, steps))
	c.must(u.call(ctx, func() error { return job.Start(ctx, u.app, c.ids()) }))
	ctx, u.fail = context.WithCancelCause(ctx)
	defer u.watched.Wait()
	defer u.fail(nil)
	u.watch(ctx)
	c.must(u.reach(ctx, steps, steps))

	saving, stop := context.WithCancel(ctx)
	begun, complete := make(chan struct{}), make(chan int, 1)
	go func() { complete <- c.saves(saving, begun) }()
	defer stop()
	faults := c.faults(begun, rand.New(rand.NewPCG(7, uint64(*processRounds))))
	planned := slices.Repeat(faults, *processRounds)
	if len(planned) == 0 {
		planned = faults[len(faults)-1:]
	}
	for i, f := range planned {
		epoch, start := u.app.Epoch(), time.Now()
		f.make(ctx)
		c.anew(ctx, epoch) // who is killed may have had no thread, and be missed only later
		steps += stepsEach
		c.must(u.gate(ctx, steps))
		c.must(u.reach(ctx, steps, steps))
		t.Logf("%s: step %d in epoch %d after %v", f.name, steps, u.app.Epoch(), time.Since(start).Round(time.Millisecond))
		if i == len(planned)-1 {
			break
		}
		for _, p := range c.net.Status().Peers {
			if !p.Up {
				c.must(c.net.Restart(ctx, p.N))
			}
		}
		c.must(c.all(ctx))
	}
	stop()
	saved := <-complete
	c.must(u.gate(ctx, 0))
	c.must(u.reach(ctx, job.Total(), 0))
	c.must(u.call(ctx, func() (err error) {
		u.r.Differ, u.r.Of, err = job.Compare(ctx, u.app)
		return err
	}))
	t.Logf("%d checkpoints, %d executions more, %d of %d cells differ", saved, u.r.Restarts, u.r.Differ, u.r.Of)
	if u.r.Differ != 0 || u.r.Of != job.Rows*job.Cols || saved == 0 {
		t.Errorf("%+v, %d checkpoints", u.r, saved)
	}
}
