package coherence

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/coherence/appmanager"
	"latchkey/coherence/pb"
	"latchkey/coherence/protocol"
	"latchkey/dht"
	"latchkey/dht/keyspace"
)

// Times of what a leader's host does.
const (
	// CheckpointTimeout is how long a checkpoint may take, unless whoever asks for it says otherwise.
	CheckpointTimeout = 30 * time.Second
	// gatherFor is how long nodes may take to come back before a restart chooses places among those that have.
	gatherFor = 500 * time.Millisecond
	// placeTimeout bounds one attempt to place threads.
	placeTimeout = 10 * time.Second
	// collectTimeout bounds the telling of keepers which checkpoints count.
	collectTimeout = time.Minute
)

// leadsMax bounds the applications of which a host remembers what it did for their managers.
const leadsMax = 1 << 12

// leading is what a host knows of an application whose group it leads.
type leading struct {
	checkpoint protocol.CheckpointID // the last that was seen under way
	since      time.Time
	timeout    time.Duration // of the next one, or this one
	saving     protocol.CheckpointID
	given      protocol.CheckpointID // the last that was given up, and why
	why        string
	epoch      protocol.Epoch // of the last restart that was seen
	began      time.Time
	placing    bool
	trouble    string
}

func (s *Service) leadLocked(app keyspace.Key) *leading {
	l := s.leads[app]
	if l == nil {
		if len(s.leads) >= leadsMax {
			clear(s.leads)
		}
		l = &leading{timeout: CheckpointTimeout}
		s.leads[app] = l
	}
	return l
}

// do does what the manager of an application that is led here wants. It does not block.
func (s *Service) do(app keyspace.Key, d *duty) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return
	}
	l := s.leadLocked(app)
	if d.checkpoint > 0 {
		if l.checkpoint != d.checkpoint {
			l.checkpoint, l.since = d.checkpoint, time.Now()
		}
		if time.Since(l.since) > l.timeout && l.given < d.checkpoint {
			timeout := l.timeout
			s.wg.Go(func() { s.expire(app, d.checkpoint, timeout) })
			l.given, l.why = d.checkpoint, fmt.Sprintf("it took more than %v", timeout)
		}
		if d.save != nil && l.saving != d.checkpoint {
			l.saving = d.checkpoint
			s.wg.Go(func() { s.save(app, d.checkpoint, *d.save) })
		}
	}
	if len(d.places) > 0 {
		if l.epoch != d.epoch {
			l.epoch, l.began = d.epoch, time.Now()
		}
		if !l.placing {
			l.placing = true
			began := l.began
			s.wg.Go(func() {
				trouble := s.place(app, d, began)
				s.mu.Lock()
				defer s.mu.Unlock()
				if l.placing = false; trouble != l.trouble && trouble != "" {
					log.Warnw("threads of an application wait to be begun again", "app", app, "epoch", d.epoch, "why", trouble)
				}
				l.trouble = trouble
			})
		}
	}
	if d.collect {
		s.wg.Go(func() {
			ctx, cancel := context.WithTimeout(s.ctx, collectTimeout)
			defer cancel()
			if err := s.chunks.Collect(ctx, app, d.saved, d.roots...); err != nil {
				log.Debugw("not everybody has heard which checkpoints count", "app", app, "err", err)
			}
		})
	}
}

// tell has an application's manager take an event, if its group is led here.
func (s *Service) tell(app keyspace.Key, ev appmanager.Event) {
	b, err := encodeApp(ev)
	if err != nil {
		log.Errorw("an event is not ordered", "app", app, "err", err)
		return
	}
	s.groups.Input(s.overlay.Self(), app, ServiceName, inputOf(app, keyspace.Key{}, b))
}

// save stores the cut of a checkpoint.
func (s *Service) save(app keyspace.Key, id protocol.CheckpointID, m appmanager.Manifest) {
	ctx, cancel := context.WithTimeout(s.ctx, CheckpointTimeout)
	defer cancel()
	root, err := s.chunks.Save(ctx, app, id, m)
	s.mu.Lock()
	l := s.leadLocked(app)
	l.saving = 0 // said once; what is lost is asked for again
	if err != nil && s.ctx.Err() == nil {
		l.given, l.why = id, fmt.Sprintf("it could not be stored: %v", err)
	}
	s.mu.Unlock()
	switch {
	case s.ctx.Err() != nil:
	case err != nil:
		log.Warnw("a checkpoint is given up", "app", app, "checkpoint", id, "err", err)
		s.tell(app, appmanager.Event{Kind: appmanager.Abort, Checkpoint: id})
	default:
		s.tell(app, appmanager.Event{Kind: appmanager.Saved, Checkpoint: id, Hash: root})
	}
}

// expire gives a checkpoint up that takes too long, and finds out who did not stop.
func (s *Service) expire(app keyspace.Key, id protocol.CheckpointID, after time.Duration) {
	ctx, cancel := context.WithTimeout(s.ctx, placeTimeout)
	defer cancel()
	why := fmt.Sprintf("it took more than %v", after)
	if info, err := s.ask(ctx, app); err == nil && info.Checkpoint == id {
		why += s.blame(ctx, app, &info)
	}
	s.mu.Lock()
	if l := s.leadLocked(app); l.given == id {
		l.why = why
	}
	s.mu.Unlock()
	log.Warnw("a checkpoint is given up", "app", app, "checkpoint", id, "why", why)
	s.tell(app, appmanager.Event{Kind: appmanager.Abort, Checkpoint: id})
}

// blame says what a checkpoint waits for.
func (s *Service) blame(ctx context.Context, app keyspace.Key, info *Info) string {
	switch info.State {
	case appmanager.Reading:
		return ", and not all objects could be read"
	case appmanager.Saving:
		return ", and it could not be stored in time"
	case appmanager.Stopping:
	default:
		return ""
	}
	names := make(map[protocol.ThreadID]string)
	for _, h := range s.askHosts(ctx, app, info.Nodes) {
		for _, t := range h.Threads {
			if len(t.ID) == len(protocol.ThreadID{}) {
				names[protocol.ThreadID(t.ID)] = fmt.Sprintf("%q on %v", t.Name, h.peer)
			}
		}
	}
	var late []string
	more := 0
	for _, t := range info.Running {
		if t.Stopped {
			continue
		}
		if len(late) == 5 {
			more++
			continue
		}
		name := names[t.ID]
		if name == "" {
			name = fmt.Sprintf("%v on node %v", t.ID, t.At)
		}
		late = append(late, name)
	}
	if len(late) == 0 {
		return ""
	}
	text := ", and no safe point was reached by thread " + strings.Join(late, ", ")
	if more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// giveUp asks for a checkpoint to be given up. It does not block.
func (s *Service) giveUp(app keyspace.Key, id protocol.CheckpointID, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return
	}
	why = strings.ToValidUTF8(why[:min(len(why), reasonBytesMax)], "")
	s.wg.Go(func() {
		ctx, cancel := context.WithTimeout(s.ctx, placeTimeout)
		defer cancel()
		if _, err := s.askLeader(ctx, app, question{Do: askAbort, Checkpoint: uint64(id), Reason: why}); err != nil {
			log.Debugw("a checkpoint is not given up", "app", app, "err", err)
		}
	})
}

// command does what somebody at a peer asks of the leader.
func (s *Service) command(from peer.ID, app keyspace.Key, q *question, r *answer) {
	id := protocol.CheckpointID(q.Checkpoint)
	s.mu.Lock()
	l := s.leadLocked(app)
	switch q.Do {
	case askBegin:
		if l.timeout = q.Timeout; l.timeout <= 0 || l.timeout > time.Hour {
			l.timeout = CheckpointTimeout
		}
	case askAbort:
		if l.given < id {
			l.given, l.why = id, q.Reason
		}
	case askWhy:
		if l.given == id {
			r.Reason = l.why
		}
	}
	s.mu.Unlock()
	switch q.Do {
	case askBegin:
		s.tell(app, appmanager.Event{Kind: appmanager.Begin})
	case askAbort:
		if id > 0 {
			s.tell(app, appmanager.Event{Kind: appmanager.Abort, Checkpoint: id})
		}
	case askRestart:
		if q.Epoch == 0 {
			r.Err = "which execution is over is not said"
			return
		}
		s.tell(app, appmanager.Event{Kind: appmanager.Receive, Msg: restartOf(protocol.Epoch(q.Epoch), dht.NodeIDOf(from))})
	}
}

// place finds places for threads, once nodes have had time to come back. It returns what keeps it from doing so.
func (s *Service) place(app keyspace.Key, d *duty, began time.Time) (trouble string) {
	ctx, cancel := context.WithTimeout(s.ctx, placeTimeout)
	defer cancel()
	select {
	case <-time.After(gatherFor - time.Since(began)):
	case <-ctx.Done():
		return ""
	}
	info, err := s.ask(ctx, app)
	if err != nil || info.Epoch != d.epoch || info.State != appmanager.Restarting {
		return ""
	}
	if len(info.Nodes) == 0 {
		return "no node has the application open"
	}
	answers := s.askHosts(ctx, app, info.Nodes)
	var hosts []Host
	for _, a := range answers {
		hosts = append(hosts, Host{Node: a.node, Peer: a.peer, Kinds: a.Kinds, Threads: a.Count})
	}
	wants := make([]*saved, len(d.places))
	errs := make([]error, len(d.places))
	var all sync.WaitGroup
	slots := make(chan struct{}, 16)
	for i, u := range d.places {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			b, err := s.chunks.Get(ctx, app, u.state)
			if err == nil {
				wants[i], err = decodeSaved(b)
			}
			errs[i] = err
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil { // C7: all of them or none
		return fmt.Sprintf("the state of %d threads is not to be had: %v", countErrors(errs), firstError(errs))
	}
	at := s.placed(ctx, app, answers, hosts, wants)
	var places []appmanager.Placement
	for i, u := range d.places {
		if at[i] < 0 {
			trouble = fmt.Sprintf("thread %q is of kind %q, which is not registered on any of %d nodes that have the application open and answer", wants[i].name, wants[i].kind, len(hosts))
			continue
		}
		places = append(places, appmanager.Placement{Thread: u.thread, Node: hosts[at[i]].Node})
	}
	if trouble != "" {
		return trouble // all at once, so that nobody runs half an application
	}
	for some := range slices.Chunk(places, pb.PlacesMax) {
		s.tell(app, appmanager.Event{Kind: appmanager.Place, Epoch: d.epoch, Places: some})
	}
	return ""
}

func countErrors(errs []error) (n int) {
	for _, err := range errs {
		if err != nil {
			n++
		}
	}
	return n
}

func firstError(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// placed returns where threads go: the policy of a node that has one says it, and [Spread] otherwise.
func (s *Service) placed(ctx context.Context, app keyspace.Key, answers []answer, hosts []Host, wants []*saved) []int {
	if len(wants) <= ThreadsShown && len(hosts) <= ThreadsShown {
		q := question{Do: askPlace}
		for _, w := range wants {
			q.Wanted = append(q.Wanted, wanted{w.name, w.kind, []byte(w.prefers)})
		}
		for _, h := range hosts {
			q.Hosts = append(q.Hosts, hostOf{h.Node.ID[:], h.Node.Inc, []byte(h.Peer), h.Kinds, h.Threads})
		}
		for _, a := range answers {
			if !a.Policy {
				continue
			}
			r, err := s.askPeer(ctx, a.peer, app, q)
			if err == nil && len(r.Places) == len(wants) && !slices.ContainsFunc(r.Places, func(i int) bool { return i < -1 || i >= len(hosts) }) {
				return r.Places
			}
			log.Debugw("a policy does not answer", "app", app, "peer", a.peer, "err", err)
		}
	}
	at := make([]int, len(wants))
	for i, w := range wants {
		if at[i] = choose(Spread, Wanted{w.name, w.kind, peer.ID(w.prefers)}, hosts); at[i] >= 0 {
			hosts[at[i]].Threads++
		}
	}
	return at
}
