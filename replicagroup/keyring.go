package replicagroup

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
	"latchkey/replicagroup/placement"
)

// keyring drives the own groups of a prefix's keys, at the leader of the prefix's group: it makes them, hands over to each what it begins
// with, and takes keys back. All that matters is in the logs; a next leader goes on from there (placement.Keys.Unfinished). It ends
// with the leadership.
type keyring struct {
	host    *Host
	group   order.GroupID // of the prefix
	creator *creator
	ctx     context.Context
	cancel  context.CancelFunc

	mu      sync.Mutex
	handing map[keyspace.Prefix]*errand
	taking  map[keyspace.Prefix]*errand
}

// errand is something that is being done about one key. err is set when done is closed.
type errand struct {
	done  chan struct{}
	err   error
	again bool // there was news meanwhile; guarded by keyring.mu
}

// wait waits for the end of an errand, for as long as somebody who asked for it does.
func (e *errand) wait() error {
	patience := time.NewTimer(commandTimeout)
	defer patience.Stop()
	select {
	case <-e.done:
		return e.err
	case <-patience.C:
		return errUnderWay
	}
}

// errUnderWay tells who has waited that what they want is being done.
var errUnderWay = errors.New("it is under way")

// ringOf returns the replica's keyring, which it begins if there is none. The replica leads.
func (r *replica) ringOf() *keyring {
	if r.ring == nil {
		h := r.shard.host
		k := &keyring{host: h, group: r.group, handing: make(map[keyspace.Prefix]*errand), taking: make(map[keyspace.Prefix]*errand)}
		k.ctx, k.cancel = context.WithCancel(h.ctx)
		k.creator = newCreator(h, placement.NewKeyCreator(h.genesis, r.group.Prefix))
		k.creator.ring = k
		k.creator.start()
		k.creator.feed(placement.LeaderChange{Leading: true})
		r.ring = k
	}
	return r.ring
}

// ringLeads goes on with what a former leader has left, or ends what this one had begun.
func (r *replica) ringLeads(leading bool) {
	if leading {
		r.ownChanged()
	} else if k := r.ring; k != nil {
		r.ring = nil
		k.creator.feed(placement.LeaderChange{})
		k.creator.box.Put(creatorEvent{})
		k.cancel()
	}
}

// ownChanged looks what there is to do after an entry about own groups.
func (r *replica) ownChanged() {
	if !r.leading {
		return
	}
	if own, is := r.own(); is {
		if phase, _ := own.Phase(); phase != placement.OwnEmpty && r.plan == nil {
			r.planBegin() // it has heard where it should live
		}
		return
	}
	keys, ok := r.keys()
	if !ok {
		return
	}
	starting, handing := keys.Unfinished()
	for _, ch := range starting {
		r.ringOf().creator.feed(placement.Committed{Child: ch})
	}
	for _, ch := range handing {
		r.ringOf().handAnew(ch.Group.Prefix)
	}
}

// propose has a command about own groups executed, in a session of this host like any other client's.
func (k *keyring) propose(a placement.ProposeKey) {
	ctx, cancel := context.WithTimeout(k.ctx, locateTimeout)
	defer cancel()
	res, err := k.commandReady(ctx, a.Command)
	revives := false
	if change, bad := placement.DecodeCommand(a.Command.Change); a.Command.Kind == placement.Change && bad == nil {
		if change.Kind != placement.Revive {
			return
		}
		revives = res.Status == placement.WrongGen && res.Child.Group.Gen > change.Gen
	}
	switch {
	case err != nil:
		k.creator.feed(placement.NotCommitted{Prefix: a.Prefix, Ref: a.Ref, Err: err})
	case res.Status == placement.OK, res.Status == placement.Exists, revives:
		log.Infow("a key has a group of its own", "group", res.Child.Group, "status", res.Status, "voters", len(res.Child.View.Members))
		k.creator.feed(placement.Committed{Child: res.Child})
	case res.Status == placement.NotReady: // no refusal: whoever wants the own group asks again
		k.creator.feed(placement.NotCommitted{Prefix: a.Prefix, Ref: a.Ref, Err: placement.ErrNotReady})
	default:
		k.creator.feed(placement.NotCommitted{Prefix: a.Prefix, Ref: a.Ref, Err: fmt.Errorf("%w: %v", placement.ErrRefused, res.Status)})
	}
}

// commandReady is command, repeated for a little while where the group answers that it is not ready: the first attempt has begun what
// makes it so, which as a rule takes some round trips.
func (k *keyring) commandReady(ctx context.Context, c placement.KeyCommand) (placement.Result, error) {
	patience, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	for wait := movingMin; ; wait = min(2*wait, movingMax) {
		res, err := k.command(ctx, c)
		if err != nil || res.Status != placement.NotReady || pause(patience, wait) != nil {
			return res, err
		}
	}
}

// command has a command of the prefix's group's [placement.Keys] executed.
func (k *keyring) command(ctx context.Context, c placement.KeyCommand) (placement.Result, error) {
	data, err := c.Encode()
	if err == nil {
		data, err = k.host.internal.do(ctx, k.group.Prefix, placement.OwnService, data)
	}
	if err != nil {
		return placement.Result{}, err
	}
	return placement.DecodeResult(data)
}

// part reads what is known of a key's own group, and what it is to begin with.
func (k *keyring) part(ctx context.Context, p keyspace.Prefix) (placement.KeyPart, error) {
	ctx, cancel := context.WithTimeout(ctx, locateTimeout)
	defer cancel()
	data, err := k.host.internal.query(ctx, k.group.Prefix, placement.OwnService, placement.PartQuery(p))
	if err != nil {
		return placement.KeyPart{}, err
	}
	return placement.DecodeKeyPart(data)
}

// run does an errand about a key unless it is being done already.
func (k *keyring) run(errands map[keyspace.Prefix]*errand, p keyspace.Prefix, do func(ctx context.Context, p keyspace.Prefix) error) *errand {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e, ok := errands[p]; ok {
		return e
	}
	e := &errand{done: make(chan struct{})}
	errands[p] = e
	over := func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		if e.again && k.ctx.Err() == nil {
			e.again = false
			return false
		}
		delete(errands, p)
		return true
	}
	if !k.host.spawn(func() {
		for e.err = do(k.ctx, p); !over(); e.err = do(k.ctx, p) {
		}
		close(e.done)
	}) {
		delete(errands, p)
		e.err = ErrClosed
		close(e.done)
	}
	return e
}

// hand sees to it that a key's own group begins.
func (k *keyring) hand(p keyspace.Prefix) *errand { return k.run(k.handing, p, k.handOver) }

// handAnew is hand where something may have changed since that has begun.
func (k *keyring) handAnew(p keyspace.Prefix) {
	e := k.hand(p)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.handing[p] == e {
		e.again = true
	}
}

func (k *keyring) handOver(ctx context.Context, p keyspace.Prefix) error {
	for {
		wait := handPause
		switch part, err := k.part(ctx, p); {
		case err != nil:
			log.Debugw("what is to be handed over to an own group cannot be read", "group", k.group, "key", p, "err", err)
		case part.Status != placement.OK:
			return ErrNoOwn
		case part.Begun:
			return nil
		case !part.Ready:
			wait = sealedEvery // leases of the group that was lost may last
		default:
			if err = k.begin(ctx, part); err == nil {
				return nil
			}
			log.Infow("an own group has not begun yet", "group", part.Child.Group, "err", err)
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

// begin hands over what a key's own group is to begin with, and has its parent forget that.
func (k *keyring) begin(ctx context.Context, part placement.KeyPart) error {
	ctx, cancel := context.WithTimeout(ctx, handTimeout)
	defer cancel()
	g := part.Child.Group
	if _, err := k.tell(ctx, part, placement.KeyCommand{Kind: placement.Begin, Name: part.Name, Gen: g.Gen, Part: part.Part}); err != nil {
		return err
	}
	_, err := k.command(ctx, placement.KeyCommand{Kind: placement.Begun, Name: part.Name, Gen: g.Gen})
	return err // whatever it says, this own group has begun
}

// tell has a command of a key's own group's [placement.Own] executed.
func (k *keyring) tell(ctx context.Context, part placement.KeyPart, c placement.KeyCommand) (placement.OwnResult, error) {
	data, err := c.Encode()
	if err == nil {
		k.host.locator.put(part.Child.Descriptor)
		data, err = k.host.internal.doOwn(ctx, part.Child.Descriptor, placement.OwnService, data)
	}
	if err != nil {
		return placement.OwnResult{}, err
	}
	res, err := placement.DecodeOwnResult(data)
	if err == nil && res.Status != placement.OK {
		err = &refusal{part.Child.Group, res.Status}
	}
	return res, err
}

// refusal says that a group has not done what it was told about a key.
type refusal struct {
	group  order.GroupID
	status placement.Status
}

func (r *refusal) Error() string { return fmt.Sprintf("group %v: %v", r.group, r.status) }

// takeBack sees to it that the prefix's group serves a key again.
func (k *keyring) takeBack(p keyspace.Prefix) *errand { return k.run(k.taking, p, k.bringBack) }

func (k *keyring) bringBack(ctx context.Context, p keyspace.Prefix) error {
	ctx, cancel := context.WithTimeout(ctx, returnTime)
	defer cancel()
	var first order.GroupID
	for {
		part, err := k.part(ctx, p)
		switch {
		case err != nil:
		case part.Status != placement.OK:
			return nil // it is back
		case first != order.GroupID{} && first != part.Child.Group:
			return fmt.Errorf("own group %v has followed %v", part.Child.Group, first) // who wants that one to end, too, asks again
		case !part.Begun:
			e := k.hand(p) // it has to have something first
			select {
			case <-e.done:
				err = e.err
			case <-ctx.Done():
			}
		default:
			var over bool
			first = part.Child.Group
			if over, err = k.bring(ctx, part); over {
				return err
			}
		}
		if err != nil {
			log.Infow("a key was not taken back from its own group yet", "group", k.group, "key", p, "err", err)
		}
		if cause := pause(ctx, handPause); cause != nil { // also where the last attempt found nothing wrong: the key is not back
			return errors.Join(cause, err)
		}
	}
}

// bring seals a key's own group and has the prefix's group adopt what it knew. over says that there is nothing more to do or to hope for.
func (k *keyring) bring(ctx context.Context, part placement.KeyPart) (over bool, err error) {
	g := part.Child.Group
	res, err := k.tell(ctx, part, placement.KeyCommand{Kind: placement.Seal, Name: part.Name, Gen: g.Gen})
	if err != nil {
		return res.Status == placement.TooLarge, err // what waits for the key does not fit into an entry: it stays where it is
	}
	data, err := k.host.internal.queryOwn(ctx, part.Child.Descriptor, placement.OwnService, nil)
	if err != nil {
		return false, err
	}
	if res, err = placement.DecodeOwnResult(data); err != nil || res.Phase != placement.OwnSealed {
		return false, fmt.Errorf("own group %v is %v: %w", g, res.Phase, err)
	}
	adopted, err := k.command(ctx, placement.KeyCommand{Kind: placement.Adopt, Name: part.Name, Gen: g.Gen, Part: res.Part})
	switch {
	case err != nil:
		return false, err
	case adopted.Status == placement.OK, adopted.Status == placement.NotFound:
		log.Infow("a key is back from its own group", "group", g)
		return true, nil
	}
	return false, &refusal{k.group, adopted.Status}
}

// Times of a keyring.
const (
	// handPause is before another attempt to hand something over.
	handPause = 100 * time.Millisecond
	// readyPatience is how long the group of a prefix is asked whether it can give a key away before whoever wants that is told to ask
	// again. It is below [commandTimeout], after which they take silence for a fault.
	readyPatience = 500 * time.Millisecond
	// handTimeout bounds one attempt, which waits for the members of the own group to start.
	handTimeout = 10 * time.Second
)

// ensured answers who wants a key to have a group of its own, of which a majority runs now: when it serves the key. One that was revived
// serves it when leases of the lost one are over, which is not waited for.
func (k *keyring) ensured(d placement.Descriptor, req *dht.Request) {
	busyWith := func(what string, err error) {
		req.Reply(marshal(&pb.Reply{Status: pb.Status_BUSY, Data: fmt.Appendf(nil, "%s: %v", what, err)}))
	}
	if !k.host.spawn(func() {
		part, err := k.part(k.ctx, d.Group.Prefix)
		switch {
		case err != nil:
			busyWith("whether the key's own group has begun is not known", err)
			return
		case part.Status != placement.OK || part.Child.Group != d.Group:
			busyWith("the key was taken back meanwhile", ErrNoOwn)
			return
		case !part.Begun && part.Ready:
			if err := k.hand(d.Group.Prefix).wait(); err != nil {
				busyWith("the key's own group has not begun", err)
				return
			}
		}
		req.Reply(marshal(&pb.Reply{Status: pb.Status_OK, Descriptor_: encodeDescriptor(d)}))
	}) {
		req.Reply(marshal(busy()))
	}
}

// ensureOwn asks for a key's own group.
type ensureOwn struct {
	parent order.GroupID
	prefix keyspace.Prefix
	name   keyspace.Preimage
	req    *dht.Request
}

func (e ensureOwn) handle(s *shard) {
	r, ok := s.replicas[e.parent.Life()]
	if !ok {
		s.host.absent(e.parent, e.req)
		return
	}
	keys, ok := r.keys()
	if !ok || !r.ready(e.req) {
		return
	}
	known, ok := keys.Lookup(e.prefix)
	if left := keys.Quarantine() - r.state().Now(); !ok && left > 0 {
		e.req.Reply(marshal(&pb.Reply{Status: pb.Status_REFUSED, Data: fmt.Appendf(nil,
			"group %v was revived, and gives no key away for %v more: the key may have a group of its own that has survived", e.parent, left.Round(time.Second))}))
		return
	}
	r.ringOf().creator.take(placement.Ensure{Prefix: e.prefix, Known: known, Name: e.name}, e.req)
}

// reviveOwn asks for the next generation of a key's own group that is lost.
type reviveOwn struct {
	parent order.GroupID
	reviveEvent
}

func (e reviveOwn) handle(s *shard) {
	r, ok := s.replicas[e.parent.Life()]
	if !ok {
		s.host.absent(e.parent, e.req)
		return
	}
	keys, ok := r.keys()
	if !ok || !r.ready(e.req) {
		return
	}
	part, ok := keys.Part(r.state().Now(), e.prefix)
	creator, name, known := r.ringOf().creator, keyspace.Preimage(part.Name), part.Child
	switch {
	case !ok:
		e.req.Reply(marshal(&pb.Reply{Status: pb.Status_NOT_HERE}))
	case known.Group.Gen > e.gen: // done already; whoever asks waits until it runs
		creator.take(placement.Ensure{Prefix: e.prefix, Known: known, Name: name}, e.req)
	case known.Group.Gen < e.gen:
		e.req.Reply(marshal(&pb.Reply{Status: pb.Status_REFUSED, Data: fmt.Appendf(nil, "it is of generation %d, and no generation %d was ever made", known.Group.Gen, e.gen)}))
	default:
		if !s.host.spawn(func() { creator.revive(known, name, e.force, e.req) }) {
			e.req.Reply(marshal(busy()))
		}
	}
}

// returnOwn asks for a key to be taken back.
type returnOwn struct {
	parent order.GroupID
	prefix keyspace.Prefix
	gen    uint64 // of the own group
	req    *dht.Request
}

func (e returnOwn) handle(s *shard) {
	r, ok := s.replicas[e.parent.Life()]
	if !ok {
		s.host.absent(e.parent, e.req)
		return
	}
	keys, ok := r.keys()
	if !ok || !r.ready(e.req) {
		return
	}
	switch known, out := keys.Lookup(e.prefix); {
	case !out:
		e.req.Reply(marshal(&pb.Reply{Status: pb.Status_OK}))
		return
	case known.Group.Gen != e.gen:
		e.req.Reply(marshal(&pb.Reply{Status: pb.Status_REFUSED, Data: fmt.Appendf(nil, "own group %v has followed the one that shall end", known.Group)}))
		return
	}
	if left := keys.Quarantine() - r.state().Now(); left > 0 { // until then the own group serves the key, and nobody would if it were sealed
		e.req.Reply(marshal(&pb.Reply{Status: pb.Status_BUSY, Data: fmt.Appendf(nil,
			"group %v was revived, and takes no key back for %v more", e.parent, left.Round(time.Second))}))
		return
	}
	back := r.ringOf().takeBack(e.prefix)
	if !s.host.spawn(func() {
		reply := &pb.Reply{Status: pb.Status_OK}
		if err := back.wait(); err != nil {
			reply.Status, reply.Data = pb.Status_BUSY, []byte(err.Error())
			if no, is := err.(*refusal); is && no.status == placement.TooLarge {
				reply.Status = pb.Status_REFUSED
			}
		}
		e.req.Reply(marshal(reply))
	}) {
		e.req.Reply(marshal(busy()))
	}
}
