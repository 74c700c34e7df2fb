package coherence_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"latchkey/coherence"
	"latchkey/coherence/pb"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
	"latchkey/testnet"
)

// counting is a kind of threads that add to an object of their own and to one of all, one step a round, for so many rounds. Half way they wait until
// somebody has set the object "go". Their state is the number of the next round.
func counting(rounds int) coherence.ThreadFunc {
	return func(ctx context.Context, t *coherence.Thread) error {
		var round int
		if _, err := t.State(&round); err != nil {
			return err
		}
		for ; round < rounds; round++ {
			for going := false; !going; going = going || round != rounds/2 {
				if err := t.SafePoint(ctx, round); err != nil {
					return err
				}
				if round == rounds/2 {
					if err := t.Object("go").View(ctx, func(b []byte) error { going = len(b) > 0; return nil }); err != nil {
						return err
					}
				}
			}
			if err := add(ctx, t.Object("own/"+t.Name())); err != nil {
				return err
			}
			if err := add(ctx, t.Object("all")); err != nil {
				return err
			}
		}
		return nil
	}
}

func get(t *testing.T, ctx context.Context, a *coherence.App, name string) uint64 {
	t.Helper()
	b, err := a.Object(name).Get(ctx)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return number(b)
}

func register(t *testing.T, a *coherence.App, kind string, fn coherence.ThreadFunc) {
	t.Helper()
	if err := a.Register(kind, fn); err != nil {
		t.Fatal(err)
	}
}

func peerID(t *testing.T, net *testnet.Network, i int) coherence.GoOption {
	t.Helper()
	p, err := net.Peer(i)
	if err != nil {
		t.Fatal(err)
	}
	return coherence.At(p.Node().ID())
}

func TestThreadsRunWhereTheyArePlaced(t *testing.T) {
	t.Parallel()
	net, ctx := up(t, 3)
	var apps []*coherence.App
	for i := range 3 {
		apps = append(apps, open(t, ctx, net, i, "app"))
	}
	type where struct {
		Peer int
		Name string
	}
	ran := make(chan where, 10)
	for i, a := range apps[:2] {
		register(t, a, "worker", func(ctx context.Context, th *coherence.Thread) error {
			var args struct{ N int }
			if err := th.Args(&args); err != nil || args.N != 7 {
				return fmt.Errorf("arguments %v, %v", args, err)
			}
			if begun, err := th.State(&args); begun || err != nil {
				return fmt.Errorf("a state: %v", err)
			}
			ran <- where{i, th.Name()}
			return th.Object("seen/"+th.Name()).Set(ctx, []byte(th.Kind()))
		})
	}
	register(t, apps[0], "parent", func(ctx context.Context, th *coherence.Thread) error {
		return errors.Join(th.Go(ctx, "child", "worker", map[string]int{"N": 7}), th.SafePoint(ctx, nil))
	})
	register(t, apps[1], "bad", func(context.Context, *coherence.Thread) error { panic("on purpose") })
	args := struct{ N int }{7}
	for i, name := range []string{"a", "b"} { // from a node that can run none of them
		if err := apps[2].Go(ctx, name, "worker", args, peerID(t, net, i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := apps[2].Go(ctx, "p", "parent", nil); err != nil {
		t.Fatal(err)
	}
	if err := apps[0].Go(ctx, "wrong", "bad", nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "p", "child"} {
		if err := apps[2].Wait(ctx, name); err != nil {
			t.Errorf("%s ended with %v", name, err)
		}
		if b, err := apps[2].Object("seen/" + name).Get(ctx); name != "p" && (err != nil || string(b) != "worker") {
			t.Errorf("%s left %q, %v", name, b, err)
		}
	}
	if err := apps[2].Wait(ctx, "wrong"); !errors.Is(err, coherence.ErrThread) || !strings.Contains(err.Error(), "on purpose") {
		t.Errorf("a thread that panics ends with %v", err)
	}
	for range 2 {
		if w := <-ran; w.Name == "a" && w.Peer != 0 || w.Name == "b" && w.Peer != 1 {
			t.Errorf("%s runs on peer %d", w.Name, w.Peer)
		}
	}
	if apps[0].Epoch() != apps[2].Epoch() || apps[0].Epoch() != 1 {
		t.Error("the application began anew")
	}
	for what, c := range map[string]struct {
		err  error
		want error
	}{
		"a kind that nobody knows":   {apps[0].Go(ctx, "x", "unknown", nil), coherence.ErrKind},
		"a kind not known there":     {apps[0].Go(ctx, "x", "worker", nil, peerID(t, net, 2)), coherence.ErrKind},
		"long arguments":             {apps[0].Go(ctx, "x", "worker", make([]byte, coherence.ArgsBytesMax+1)), coherence.ErrTooLarge},
		"no name":                    {apps[0].Go(ctx, "", "worker", nil), coherence.ErrName},
		"no kind":                    {apps[0].Go(ctx, "x", "", nil), coherence.ErrName},
		"a kind twice":               {apps[0].Register("worker", counting(1)), coherence.ErrKind},
		"no function":                {apps[0].Register("none", nil), coherence.ErrKind},
		"waiting for nobody":         {apps[0].Wait(ctx, "nobody"), coherence.ErrNoThread},
		"a function for its own end": {apps[0].Go(ctx, "again", "worker", args), nil},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v", what, c.err)
		}
	}
}

func TestNamesOfThreadsAreTaken(t *testing.T) {
	t.Parallel()
	net, ctx := up(t, 3)
	a, b := open(t, ctx, net, 0, "app"), open(t, ctx, net, 1, "app")
	end := make(chan struct{})
	register(t, a, "k", func(ctx context.Context, th *coherence.Thread) error {
		select {
		case <-end:
		case <-ctx.Done():
		}
		return nil
	})
	if err := b.Go(ctx, "one", "k", nil); err != nil {
		t.Fatal(err)
	}
	for _, app := range []*coherence.App{a, b} {
		if err := app.Go(ctx, "one", "k", nil); !errors.Is(err, coherence.ErrThreadExists) {
			t.Errorf("twice: %v", err)
		}
	}
	p, _ := net.Peer(2)
	st, err := p.Node().Objects().Status(ctx, "app")
	if err != nil || len(st.Running) != 1 || len(st.Nodes) != 2 {
		t.Fatalf("%+v, %v", st, err)
	}
	i := slices.IndexFunc(st.Nodes, func(n coherence.NodeStatus) bool { return len(n.Threads) == 1 })
	if i < 0 || st.Nodes[i].Threads[0].Name != "one" || st.Nodes[i].Threads[0].Phase != "runs" || !slices.Equal(st.Nodes[i].Kinds, []string{"k"}) {
		t.Errorf("%+v", st)
	}
	close(end)
	if err := b.Wait(ctx, "one"); err != nil {
		t.Error(err)
	}
	if err := b.Go(ctx, "one", "k", nil); err != nil {
		t.Errorf("after its end: %v", err)
	}
}

// TestARestartBeginsFromTheCheckpoint kills the host of a thread after a checkpoint.
func TestARestartBeginsFromTheCheckpoint(t *testing.T) {
	t.Parallel()
	net, ctx := up(t, 7)
	lead := leader(t, ctx, net, coherence.AppKey("app"))
	var peers []int
	for i := range 7 {
		if i != lead && len(peers) < 3 {
			peers = append(peers, i)
		}
	}
	const rounds = 60
	var apps []*coherence.App
	restarted := make(chan protocol.Epoch, 10)
	for _, i := range peers {
		a := open(t, ctx, net, i, "app")
		apps = append(apps, a)
		register(t, a, "count", counting(rounds))
		if i == peers[0] { // the others' nodes may be in the new execution before it
			a.OnRestart(func(e protocol.Epoch) { restarted <- e })
		}
	}
	for i := range 3 {
		if err := apps[0].Go(ctx, fmt.Sprint("t", i), "count", nil, peerID(t, net, peers[i])); err != nil {
			t.Fatal(err)
		}
	}
	for get(t, ctx, apps[0], "all") < 20 {
	}
	start := time.Now()
	id, err := apps[1].Checkpoint(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("checkpoint %d in %v", id, time.Since(start))
	before := get(t, ctx, apps[0], "all")
	if err := net.Kill(peers[2]); err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	epoch := <-restarted
	t.Logf("epoch %d after %v; %d steps were done", epoch, time.Since(start), before)
	p, _ := net.Peer(peers[0])
	again, err := p.Node().Objects().Open(ctx, "app")
	if err != nil {
		t.Fatal(err)
	}
	if n := get(t, ctx, again, "all"); n < 20 || n > 3*rounds/2 {
		t.Errorf("%d steps were done", n)
	}
	if err := again.Object("go").Set(ctx, []byte("!")); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := again.Wait(ctx, fmt.Sprint("t", i)); err != nil {
			t.Error(err)
		}
		if n := get(t, ctx, again, fmt.Sprint("own/t", i)); n != rounds {
			t.Errorf("t%d did %d rounds", i, n)
		}
	}
	if n := get(t, ctx, again, "all"); n != 3*rounds {
		t.Errorf("%d steps in all", n)
	}
	t.Logf("done after %v", time.Since(start))
	if _, err := apps[0].Object("all").Get(ctx); !errors.Is(err, coherence.ErrRestarted) {
		t.Errorf("a call of the former execution: %v", err)
	}
}

func TestThreadsMove(t *testing.T) {
	t.Parallel()
	net, ctx := up(t, 3)
	var apps []*coherence.App
	for i := range 3 {
		a := open(t, ctx, net, i, "app")
		apps = append(apps, a)
		register(t, a, "count", counting(200000))
	}
	if err := apps[0].Go(ctx, "t", "count", nil, peerID(t, net, 0)); err != nil {
		t.Fatal(err)
	}
	to, _ := net.Peer(1)
	if err := to.Node().Objects().Migrate(ctx, "app", "t", to.Node().ID()); err != nil {
		t.Fatal(err)
	}
	if a, b := apps[0].Threads(), apps[1].Threads(); len(a) != 0 || len(b) != 1 {
		t.Errorf("threads %v and %v", a, b)
	}
	if err := apps[1].Close(ctx); err != nil {
		t.Fatal(err)
	}
	own, all := get(t, ctx, apps[0], "own/t"), get(t, ctx, apps[2], "all")
	if own == 0 || all+1 < own || len(apps[0].Threads())+len(apps[2].Threads()) != 1 || apps[0].Epoch() != 1 {
		t.Errorf("%d and %d steps, threads %v and %v, epoch %d", own, all, apps[0].Threads(), apps[2].Threads(), apps[0].Epoch())
	}
}

// lingering is a kind of threads that come to no safe point before a channel is closed.
func lingering(end <-chan struct{}) coherence.ThreadFunc {
	return func(ctx context.Context, t *coherence.Thread) error {
		select {
		case <-end:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		for ctx.Err() == nil {
			if err := t.SafePoint(ctx, nil); err != nil {
				return err
			}
			if err := add(ctx, t.Object("n")); err != nil {
				return err
			}
		}
		return context.Cause(ctx)
	}
}

func TestACheckpointSaysWhoDidNotStop(t *testing.T) {
	t.Parallel()
	net, ctx := up(t, 3)
	a, b := open(t, ctx, net, 0, "app"), open(t, ctx, net, 1, "app")
	end := make(chan struct{})
	register(t, a, "slow", lingering(end))
	always := make(chan struct{})
	close(always)
	register(t, b, "good", lingering(always))
	for name, kind := range map[string]string{"sloth": "slow", "bee": "good"} {
		if err := b.Go(ctx, name, kind, nil); err != nil {
			t.Fatal(err)
		}
	}
	blames := func(err error) bool {
		return errors.Is(err, coherence.ErrAborted) && strings.Contains(err.Error(), `"sloth"`) && !strings.Contains(err.Error(), `"bee"`)
	}
	for get(t, ctx, b, "n") == 0 { // until the one that will stop goes on
	}
	if _, err := b.Checkpoint(ctx, coherence.GiveUpAfter(time.Second)); !blames(err) {
		t.Errorf("given up by who leads: %v", err)
	}
	short, cancel := context.WithTimeout(ctx, 4*time.Second)
	defer cancel()
	if _, err := b.Checkpoint(short); !blames(err) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("given up by who asked: %v", err)
	}
	for n := get(t, ctx, b, "n"); get(t, ctx, b, "n") == n; { // the other one goes on
	}
	close(end)
	if _, err := b.Checkpoint(ctx); err != nil {
		t.Errorf("when all stop: %v", err)
	}
	if _, err := b.Checkpoint(ctx); err != nil {
		t.Errorf("once more: %v", err)
	}
	p, _ := net.Peer(2)
	if _, err := p.Node().Objects().Checkpoint(ctx, "nobody's"); !errors.Is(err, coherence.ErrNotOpen) {
		t.Errorf("of an application that nobody has open: %v", err)
	}
	if _, err := p.Node().Objects().Restart(ctx, "nobody's"); !errors.Is(err, coherence.ErrNotOpen) {
		t.Errorf("a restart of one: %v", err)
	}
	if err := p.Node().Objects().Migrate(ctx, "app", "bee", p.Node().ID()); !errors.Is(err, coherence.ErrKind) {
		t.Errorf("a move to who does not have it open: %v", err)
	}
	if err := p.Node().Objects().Migrate(ctx, "app", "nobody", p.Node().ID()); !errors.Is(err, coherence.ErrNoThread) {
		t.Errorf("a move of nobody: %v", err)
	}
}

// TestThreadsWaitForANode has all nodes leave while a thread has not ended.
func TestThreadsWaitForANode(t *testing.T) {
	t.Parallel()
	net, ctx := up(t, 3)
	a := open(t, ctx, net, 0, "app")
	end := make(chan struct{})
	close(end)
	register(t, a, "k", lingering(end))
	if err := a.Go(ctx, "t", "k", nil); err != nil {
		t.Fatal(err)
	}
	for get(t, ctx, a, "n") == 0 {
	}
	if _, err := a.Checkpoint(ctx); err != nil {
		t.Fatal(err)
	}
	saved := get(t, ctx, a, "n")
	if err := a.Close(ctx); err != nil {
		t.Fatal(err)
	}
	p, _ := net.Peer(2)
	objects := p.Node().Objects()
	if st, err := objects.Status(ctx, "app"); err != nil || !st.Open || len(st.Running) != 1 || !st.Running[0].At.IsZero() || len(st.Nodes) != 0 {
		t.Fatalf("%+v, %v", st, err)
	}
	b := open(t, ctx, net, 1, "app") // which cannot run it
	if b.Epoch() <= a.Epoch() {
		t.Errorf("epoch %d after %d", b.Epoch(), a.Epoch())
	}
	c := open(t, ctx, net, 2, "app")
	register(t, c, "k", lingering(end))
	for n := get(t, ctx, b, "n"); get(t, ctx, b, "n") <= max(n, 1); {
	}
	if saved == 0 || len(c.Threads()) != 1 || len(b.Threads()) != 0 {
		t.Errorf("%d steps were saved; threads %v and %v", saved, b.Threads(), c.Threads())
	}
}

// TestALostCheckpointIsNoStateAtAll takes chunks away that a checkpoint consists of.
func TestALostCheckpointIsNoStateAtAll(t *testing.T) {
	t.Parallel()
	net, ctx := up(t, 3)
	a, b := open(t, ctx, net, 0, "app"), open(t, ctx, net, 1, "app")
	if err := a.Object("x").Set(ctx, []byte("saved")); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Checkpoint(ctx); err != nil {
		t.Fatal(err)
	}
	restart := func() *coherence.App {
		t.Helper()
		p, _ := net.Peer(2)
		if _, err := p.Node().Objects().Restart(ctx, "app"); err != nil {
			t.Fatal(err)
		}
		<-a.Restarted()
		a = open(t, ctx, net, 0, "app")
		return a
	}
	if v, err := restart().Object("x").Get(ctx); err != nil || string(v) != "saved" {
		t.Fatalf("%q, %v", v, err)
	}
	if v, err := a.Object("y").Get(ctx); err != nil || len(v) != 0 {
		t.Fatalf("an object that is not in it: %q, %v", v, err)
	}
	<-b.Restarted()
	// Somebody has told the keepers that the application is over.
	p, _ := net.Peer(2)
	if err := p.Node().Chunks().Collect(ctx, coherence.AppKey("app"), 1<<40); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		p, _ := net.Peer(i)
		for n, _ := p.Node().Chunks().Usage(); n > 0; n, _ = p.Node().Chunks().Usage() {
			time.Sleep(time.Millisecond)
		}
	}
	restart()
	if v, err := a.Object("x").Get(ctx); !errors.Is(err, coherence.ErrLost) {
		t.Errorf("%q, %v", v, err)
	}
	if err := a.Object("x").Set(ctx, nil); !errors.Is(err, coherence.ErrLost) {
		t.Errorf("written: %v", err)
	}
}

// TestNobodyRaisesEpochs has a member of all groups say that there is a later execution, to a node and to managers of objects.
func TestNobodyRaisesEpochs(t *testing.T) {
	t.Parallel()
	net, ctx := up(t, 3)
	app, object := coherence.AppKey("app"), coherence.ObjectKey("app", "x")
	lead := leader(t, ctx, net, object)
	other := (lead + 1) % 3
	first := open(t, ctx, net, lead, "app")
	if err := first.Object("x").Set(ctx, []byte("mine")); err != nil {
		t.Fatal(err)
	}
	p, _ := net.Peer((lead + 2) % 3)
	liar := p.Node()
	self := protocol.NodeRef{ID: liar.Overlay().Node(), Inc: 1}
	for _, i := range []int{lead, other} {
		to, _ := net.Peer(i)
		for _, m := range []protocol.Message{
			{Kind: protocol.Destroy, From: protocol.Address{Party: protocol.AppManager}, To: protocol.At(first.Self()), Epoch: 99},
			{Kind: protocol.Destroy, From: protocol.Address{Party: protocol.ObjectManager}, To: protocol.At(first.Self()), Epoch: 99, Object: object},
			{Kind: protocol.Copy, From: protocol.At(self), To: protocol.At(first.Self()), Epoch: 99, Object: object, Seq: 1, Value: new(protocol.Cell)},
			{Kind: protocol.Read, From: protocol.At(self), To: protocol.Address{Party: protocol.ObjectManager}, Epoch: 99, Object: object, Requester: self, Seq: 1},
			{Kind: protocol.Reinit, From: protocol.Address{Party: protocol.AppManager}, To: protocol.Address{Party: protocol.ObjectManager}, Epoch: 99, Object: object},
		} {
			frame, err := pb.EncodeFrame(nil, app, &m)
			if err != nil {
				t.Fatal(err)
			}
			if err := liar.Overlay().Send(to.Node().ID(), keyspace.Key{}, pb.Service, frame); err != nil {
				t.Fatal(err)
			}
		}
		id := first.Self().ID // behind them on the same stream, and so after them
		if _, err := liar.Overlay().Call(ctx, to.Node().ID(), keyspace.Key{}, "coherence/who", id[:]); err != nil {
			t.Fatal(err)
		}
	}
	second := open(t, ctx, net, other, "app")
	if b, err := second.Object("x").Get(ctx); err != nil || string(b) != "mine" {
		t.Errorf("%q, %v", b, err)
	}
	if err := errors.Join(second.Object("x").Set(ctx, []byte("ours")), first.Object("x").Set(ctx, []byte("still"))); err != nil || first.Epoch() != second.Epoch() {
		t.Errorf("epochs %d and %d, %v", first.Epoch(), second.Epoch(), err)
	}
}
