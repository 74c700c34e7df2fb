package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"latchkey/coherence"
	"latchkey/coherence/durable"
	"latchkey/testnet"
)

const (
	durableApp = "demo-durable"
	// durableTurns is how many turns each peer has to get after a kill, and durablePause is between two of them.
	durableTurns = 3
	durablePause = 50 * time.Millisecond
	// durableKept is how many members of the directory each peer leaves there.
	durableKept = 3
)

// keeping is the part of the run about durable objects: at every peer somebody increments one counter, and creates, deletes and lists members of the
// directory that it stands in. The lock's group keeps them, so that the death of its leader is that of theirs. Nobody begins anew.
type keeping struct {
	d     *demo
	dir   string // with its slash
	stop  context.CancelFunc
	all   sync.WaitGroup
	peers []int

	mu      sync.Mutex
	record  record
	turns   map[int]int
	dead    map[int]bool // killed, after it had written
	failure error
	changed chan struct{}

	leader     bool // the leader of the group was killed, and all others went on
	leaderless time.Duration
	killed     int // peers that wrote and had copies, and were killed
	final      map[int]int
}

// record is what was seen of the counter and the directory.
type record struct {
	made    map[int]int // by the counter's value: the peer whose increment that is, of those that returned
	unknown int         // increments of which nobody knows
	highest int         // that anybody has seen
	members map[string]*member
	ops     int
	errs    []error // the first few things that cannot be
}

// member is what is known of a name in the directory.
type member struct{ creating, created, deleting, deleted bool }

func newRecord() record { return record{made: map[int]int{}, members: map[string]*member{}} }

func (r *record) wrong(format string, args ...any) {
	if len(r.errs) < 8 {
		r.errs = append(r.errs, fmt.Errorf(format, args...))
	}
}

// read takes what a read found that began when highest was floor.
func (r *record) read(peer, floor, got int) {
	r.ops++
	if got < floor {
		r.wrong("peer %d reads %d after %d", peer, got, floor)
	}
	r.highest = max(r.highest, got)
}

// increment takes what an increment made that began when highest was floor.
func (r *record) increment(peer, floor, value int) {
	r.ops++
	if other, twice := r.made[value]; twice {
		r.wrong("peers %d and %d both make %d", other, peer, value)
	}
	if value <= floor {
		r.wrong("peer %d makes %d after %d", peer, value, floor)
	}
	r.made[value] = peer
	r.highest = max(r.highest, value)
}

// sure returns the names that are in the directory now, and those that are not, for sure.
func (r *record) sure() (in, out []string) {
	for name, m := range r.members {
		switch {
		case m.deleted:
			out = append(out, name)
		case m.created && !m.deleting:
			in = append(in, name)
		}
	}
	return in, out
}

// list takes a listing, of a time when those names were there and not there for sure.
func (r *record) list(peer int, in, out, got []string) {
	r.ops++
	for _, name := range in {
		if !slices.Contains(got, name) && !r.members[name].deleting {
			r.wrong("peer %d does not find %s, which was created", peer, name)
		}
	}
	for _, name := range out {
		if slices.Contains(got, name) {
			r.wrong("peer %d finds %s, which was deleted", peer, name)
		}
	}
	for _, name := range got {
		if m := r.members[name]; m == nil || !m.creating {
			r.wrong("peer %d finds %s, which nobody has created", peer, name)
		}
	}
}

// sum: what the counter is at the end, as every peer finds it, is what was counted. Increments that were cut off may have been made or not.
func (r *record) sum(final map[int]int) error {
	if len(final) == 0 || len(r.made) == 0 {
		return errors.New("nobody has counted")
	}
	for peer, n := range final {
		if n < len(r.made) || n > len(r.made)+r.unknown || n < r.highest {
			return fmt.Errorf("peer %d finds %d after %d increments that returned, and %d of which nobody knows; %d was seen", peer, n, len(r.made), r.unknown, r.highest)
		}
	}
	return nil
}

// keep begins.
func (d *demo) keep(ctx context.Context) *keeping {
	ctx, stop := context.WithCancel(ctx)
	k := &keeping{d: d, dir: d.directoryLikeLock(), stop: stop, record: newRecord(), turns: map[int]int{}, dead: map[int]bool{}, changed: make(chan struct{}), final: map[int]int{}}
	for _, i := range d.alive(-1) {
		p, err := d.net.Peer(i)
		if err != nil {
			continue
		}
		k.peers = append(k.peers, i)
		k.all.Go(func() {
			err := k.run(ctx, p)
			k.mu.Lock()
			defer k.mu.Unlock()
			select {
			case <-p.Killed():
				k.dead[i] = k.turns[i] > 0
			default:
				if ctx.Err() == nil {
					k.failure = errors.Join(k.failure, fmt.Errorf("demo: durable objects at peer %d: %w", i, err))
				}
			}
			k.notifyLocked()
		})
	}
	d.tell("all %d peers count with one durable counter, and create and delete members of its directory, which the same group keeps", len(k.peers))
	return k
}

// directoryLikeLock returns the name of a directory that the group keeps that keeps the lock.
func (d *demo) directoryLikeLock() string {
	g := d.net.Genesis()
	want := g.PrefixOf(lockKey(d.lock))
	for k := 0; ; k++ {
		dir := fmt.Sprintf("%d/", k)
		if g.PrefixOf(durable.KeyOf(durableApp+"/"+dir)) == want {
			return dir
		}
	}
}

func (k *keeping) notifyLocked() {
	close(k.changed)
	k.changed = make(chan struct{})
}

func (k *keeping) app(p *testnet.Peer) (*coherence.Durable, error) {
	return p.Node().Objects().Durable(durableApp)
}

// run takes turns at a peer until it is killed, or ctx ends.
func (k *keeping) run(ctx context.Context, p *testnet.Peer) error {
	app, err := k.app(p)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // what is dead waits for nothing
		select {
		case <-p.Killed():
			cancel()
		case <-ctx.Done():
		}
	}()
	pause := time.NewTicker(durablePause)
	defer pause.Stop()
	for n := 1; ; n++ {
		if err := k.turn(ctx, p, app, n); err != nil {
			return err
		}
		k.mu.Lock()
		k.turns[p.Index()]++
		k.notifyLocked()
		k.mu.Unlock()
		select {
		case <-pause.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (k *keeping) turn(ctx context.Context, p *testnet.Peer, app *coherence.Durable, n int) error {
	peer, counter := p.Index(), app.Object(k.dir+"counter")
	floor := k.floor()
	var value int
	err := counter.Update(ctx, func(b []byte) ([]byte, error) {
		value = counted(b) + 1
		return strconv.AppendInt(nil, int64(value), 10), nil
	})
	// What a peer has heard when it is killed nobody hears of: it counts as what nobody knows.
	k.note(p, func(r *record) {
		switch {
		case err == nil:
			r.increment(peer, floor, value)
		case errors.Is(err, coherence.ErrOutcomeUnknown):
			r.unknown++
		}
	}, func(r *record) { r.unknown++ })
	if err != nil {
		return err
	}
	own := func(n int) string { return fmt.Sprintf("m-%d-%d", peer, n) }
	if err := k.change(ctx, p, app, own(n), true); err != nil {
		return err
	}
	if n > durableKept {
		if err := k.change(ctx, p, app, own(n-durableKept), false); err != nil {
			return err
		}
	}
	k.mu.Lock()
	in, out := k.record.sure()
	floor = k.record.highest
	k.mu.Unlock()
	l, err := app.Directory(k.dir).List(ctx, "", 0)
	if err != nil {
		return err
	}
	v, err := counter.Read(ctx)
	if err != nil {
		return err
	}
	k.note(p, func(r *record) {
		r.list(peer, in, out, slices.DeleteFunc(l.Names, func(name string) bool { return !strings.HasPrefix(name, "m-") }))
		r.read(peer, floor, counted(v.Bytes))
	}, nil)
	return nil
}

func counted(b []byte) int {
	n, _ := strconv.Atoi(string(b))
	return n
}

func (k *keeping) floor() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.record.highest
}

// note has done take what a peer has found, or gone, if the peer is dead by then.
func (k *keeping) note(p *testnet.Peer, done, gone func(*record)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !p.Do(func() { done(&k.record) }) && gone != nil {
		gone(&k.record)
	}
}

// change creates a member of the directory, or deletes it.
func (k *keeping) change(ctx context.Context, p *testnet.Peer, app *coherence.Durable, name string, create bool) (err error) {
	k.note(p, func(r *record) {
		if create {
			r.members[name] = &member{creating: true}
		} else {
			r.members[name].deleting = true
		}
	}, nil)
	o := app.Object(k.dir + name)
	if create {
		_, err = o.Write(ctx, nil, coherence.IfAbsent())
	} else {
		_, err = o.Delete(ctx)
	}
	if err != nil {
		return err
	}
	k.note(p, func(r *record) {
		r.ops++
		if create {
			r.members[name].created = true
		} else {
			r.members[name].deleted = true
		}
	}, nil)
	return nil
}

// goesOn waits until every peer that is left of those who began has had turns since.
func (k *keeping) goesOn(ctx context.Context) error {
	k.mu.Lock()
	had := make(map[int]int)
	for i, n := range k.turns {
		had[i] = n
	}
	k.mu.Unlock()
	up := k.d.alive(-1)
	for {
		k.mu.Lock()
		failure, changed := k.failure, k.changed
		behind := slices.ContainsFunc(k.peers, func(i int) bool { return !k.dead[i] && slices.Contains(up, i) && k.turns[i] < had[i]+durableTurns })
		k.mu.Unlock()
		switch {
		case failure != nil:
			return failure
		case !behind:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("demo: those who use durable objects do not go on: %w", context.Cause(ctx))
		}
	}
}

// leaderKilled waits until all others have gone on.
func (k *keeping) leaderKilled(ctx context.Context, killed time.Time) error {
	k.d.pace(objectLeisure)
	defer k.d.pace(0)
	if err := k.goesOn(ctx); err != nil {
		return err
	}
	k.leader, k.leaderless = true, time.Since(killed)
	k.d.tell("all others count on with the durable counter, %v after the death of the leader that kept it", round(k.leaderless))
	return nil
}

// userKilled waits until all others have gone on, ends them, and has every peer read the counter.
func (k *keeping) userKilled(ctx context.Context, victim int) error {
	k.d.pace(objectLeisure)
	defer k.d.pace(0)
	if err := k.goesOn(ctx); err != nil {
		return err
	}
	k.stop()
	k.all.Wait()
	for i := range k.dead {
		if k.dead[i] {
			k.killed++
		}
	}
	for _, i := range k.d.alive(-1) {
		p, err := k.d.net.Peer(i)
		if err != nil {
			return err
		}
		app, err := k.app(p)
		if err != nil {
			return err
		}
		v, err := app.Object(k.dir + "counter").Read(ctx)
		if err != nil {
			return err
		}
		k.final[i] = counted(v.Bytes)
	}
	k.d.tell("with peer %d died a writer of the durable counter that had a copy of it; the counter is %v at all peers, after %d increments, and nothing began anew", victim,
		k.final[k.d.alive(-1)[0]], len(k.record.made))
	return nil
}

// end ends them, whatever has become of the run.
func (k *keeping) end() {
	if k != nil {
		k.stop()
		k.all.Wait()
	}
}

// checkCounted: no increment is lost, and none is made twice.
func (k *keeping) checkCounted() error {
	if k == nil {
		return errors.New("nobody has counted")
	}
	return k.record.sum(k.final)
}

// checkSeen: nothing that was read or listed was older than what had returned before.
func (k *keeping) checkSeen() error {
	if k == nil || k.record.ops == 0 {
		return errors.New("nobody has read")
	}
	return errors.Join(k.record.errs...)
}

// checkOutlived: the leader died, and writers that had copies, and all others went on.
func (k *keeping) checkOutlived() error {
	switch {
	case k == nil || !k.leader:
		return errors.New("not all went on after the leader was killed")
	case k.killed < 2:
		return fmt.Errorf("%d peers that wrote and had copies were killed; two are the least", k.killed)
	}
	return nil
}
