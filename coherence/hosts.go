package coherence

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/coherence/protocol"
	"latchkey/dht"
	"latchkey/dht/keyspace"
)

// serviceHosts is the overlay's service by which peers ask a node that has an application open about its threads, and who leads an
// application's group to do something. Questions and answers are JSON.
const serviceHosts = "coherence/hosts"

const (
	// questionBytesMax bounds a question, and answerBytesMax an answer.
	questionBytesMax = 256 << 10
	answerBytesMax   = 1 << 20
	// answerTimeout is how long an answer is waited for.
	answerTimeout = 2 * time.Second
	// reasonBytesMax bounds the reason for which a checkpoint is given up.
	reasonBytesMax = 1 << 10
)

// hostsVersion is of these questions and answers. Peers of another version are not understood.
const hostsVersion = 1

// What is asked.
const (
	askHost    = "host"    // of a node: what is there
	askMove    = "move"    // of a node: have Thread go to Node
	askPlace   = "place"   // of a node with a policy of its own: where Wanted go
	askBegin   = "begin"   // of the leader: begin a checkpoint, and give it up after Timeout
	askAbort   = "abort"   // of the leader: give Checkpoint up, for Reason
	askWhy     = "why"     // of the leader: why Checkpoint was given up
	askRestart = "restart" // of the leader: begin the application anew from its last checkpoint
)

// question is asked by a peer.
type question struct {
	Version    int           `json:"v"`
	Do         string        `json:"do"`
	App        []byte        `json:"app"`
	Thread     []byte        `json:"thread,omitempty"`
	Node       []byte        `json:"node,omitempty"`
	Inc        uint64        `json:"inc,omitempty"`
	Checkpoint uint64        `json:"checkpoint,omitempty"`
	Epoch      uint64        `json:"epoch,omitempty"`
	Timeout    time.Duration `json:"timeout,omitempty"`
	Reason     string        `json:"reason,omitempty"`
	Wanted     []wanted      `json:"wanted,omitempty"`
	Hosts      []hostOf      `json:"hosts,omitempty"`
}

type wanted struct {
	Name, Kind string
	Prefers    []byte `json:",omitempty"`
}

type hostOf struct {
	ID      []byte
	Inc     uint64
	Peer    []byte
	Kinds   []string
	Threads int
}

// answer is what a peer says.
type answer struct {
	Version int    `json:"v"`
	Err     string `json:"err,omitempty"`

	// of askHost
	Open    bool          `json:"open,omitempty"`
	Name    string        `json:"name,omitempty"`
	Inc     uint64        `json:"inc,omitempty"`
	Epoch   uint64        `json:"epoch,omitempty"`
	Kinds   []string      `json:"kinds,omitempty"`
	Policy  bool          `json:"policy,omitempty"` // it has one of its own
	Count   int           `json:"count,omitempty"`  // of threads
	Threads []HostThread  `json:"threads,omitempty"`
	Ended   []EndedThread `json:"ended,omitempty"`
	Trouble string        `json:"trouble,omitempty"` // what keeps it from going on

	Places []int  `json:"places,omitempty"` // of askPlace
	Reason string `json:"reason,omitempty"` // of askWhy

	peer peer.ID
	node protocol.NodeRef
}

// HostThread is a thread on a node.
type HostThread struct {
	ID         []byte
	Name, Kind string
	Phase      string // frozen, runs, stops, asks, leaves
}

// decodeQuestion reads what a peer asks.
func decodeQuestion(b []byte) (q question, app keyspace.Key, err error) {
	if len(b) > questionBytesMax {
		return q, app, fmt.Errorf("coherence: a question of %d bytes", len(b))
	}
	if err := json.Unmarshal(b, &q); err != nil {
		return q, app, fmt.Errorf("coherence: a question: %w", err)
	}
	ok := len(q.App) == len(app) && (len(q.Thread) == 0 || len(q.Thread) == len(protocol.ThreadID{})) && (len(q.Node) == 0 || len(q.Node) == len(keyspace.NodeID{})) &&
		(q.Do != askMove || len(q.Thread) > 0 && len(q.Node) > 0) && len(q.Reason) <= reasonBytesMax && len(q.Wanted) <= ThreadsShown && len(q.Hosts) <= ThreadsShown
	for _, h := range q.Hosts {
		ok = ok && len(h.ID) == len(keyspace.NodeID{})
	}
	if !ok {
		return q, app, errors.New("coherence: a question with parts of other lengths than they have")
	}
	copy(app[:], q.App)
	return q, app, nil
}

// decodeAnswer reads what a peer says.
func decodeAnswer(b []byte) (a answer, err error) {
	if len(b) > answerBytesMax {
		return a, fmt.Errorf("coherence: an answer of %d bytes", len(b))
	}
	if err := json.Unmarshal(b, &a); err != nil {
		return a, fmt.Errorf("coherence: an answer: %w", err)
	}
	switch {
	case a.Version != hostsVersion:
		return a, fmt.Errorf("coherence: the peer speaks version %d of what is asked about applications, this program version %d: run one program on all", a.Version, hostsVersion)
	case len(a.Kinds) > KindsMax || len(a.Threads) > ThreadsShown || len(a.Ended) > endedShown || len(a.Places) > ThreadsShown:
		return a, errors.New("coherence: an answer with more than there can be")
	case a.Err != "":
		return a, errors.New(a.Err)
	}
	slices.Sort(a.Kinds)
	return a, nil
}

// answerHosts answers a peer.
func (s *Service) answerHosts(req *dht.Request) {
	q, app, err := decodeQuestion(req.Data)
	if err != nil || req.OneWay() {
		req.Misbehaved("malformed question about an application")
		return
	}
	b, err := json.Marshal(s.answer(req.From, app, &q))
	if err != nil {
		req.Fail(err)
		return
	}
	req.Reply(b)
}

// answer does not block.
func (s *Service) answer(from peer.ID, app keyspace.Key, q *question) (r answer) {
	r.Version = hostsVersion
	if q.Version != hostsVersion {
		return r // the other side says so
	}
	s.mu.Lock()
	a := s.apps[app]
	s.mu.Unlock()
	switch q.Do {
	case askHost:
		if a != nil {
			a.describe(&r)
		}
	case askMove:
		if a == nil {
			r.Err = "the node does not have the application open"
		} else if err := a.want(protocol.ThreadID(q.Thread), protocol.NodeRef{ID: keyspace.NodeID(q.Node), Inc: q.Inc}, nil); err != nil {
			r.Err = err.Error()
		}
	case askPlace:
		if a == nil {
			r.Err = "the node does not have the application open"
			break
		}
		hosts := make([]Host, len(q.Hosts))
		for i, h := range q.Hosts {
			slices.Sort(h.Kinds)
			hosts[i] = Host{Node: protocol.NodeRef{ID: keyspace.NodeID(h.ID), Inc: h.Inc}, Peer: peer.ID(h.Peer), Kinds: h.Kinds, Threads: h.Threads}
			hosts[i].Self = hosts[i].Node == a.self
		}
		for _, w := range q.Wanted {
			i := a.choose(Wanted{w.Name, w.Kind, peer.ID(w.Prefers)}, hosts)
			if i >= 0 {
				hosts[i].Threads++
			}
			r.Places = append(r.Places, i)
		}
	case askBegin, askAbort, askRestart, askWhy:
		s.command(from, app, q, &r)
	default:
		r.Err = fmt.Sprintf("nobody knows what %.40q is", q.Do)
	}
	return r
}

// describe says what is on this node.
func (a *App) describe(r *answer) {
	r.Kinds = a.part.kindNames()
	a.part.mu.Lock()
	r.Policy, r.Ended = a.part.own, slices.Clone(a.part.ended)
	a.part.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	r.Open, r.Name, r.Inc, r.Epoch, r.Trouble = a.inside && !a.closing.Load() && !a.isOver.Load(), a.name, a.self.Inc, a.epoch.Load(), a.trouble
	r.Count = len(a.threads)
	for id, t := range a.threads {
		if len(r.Threads) == ThreadsShown {
			break
		}
		p, _ := a.node.Phase(id)
		r.Threads = append(r.Threads, HostThread{id[:], t.saved.name, t.saved.kind, p.String()})
	}
	slices.SortFunc(r.Threads, func(x, y HostThread) int { return slices.Compare([]byte(x.Name), []byte(y.Name)) })
}

// want has a thread go to another node at its next safe point; done, if not nil, hears of it.
func (a *App) want(id protocol.ThreadID, to protocol.NodeRef, done chan error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.threads[id]
	switch {
	case a.isOver.Load():
		return ErrRestarted
	case t == nil:
		return fmt.Errorf("%w on this node", ErrNoThread)
	case to == a.self:
		return nil
	case !t.moveTo.IsZero():
		return fmt.Errorf("%w: thread %q is about to move already", ErrRefused, t.saved.name)
	}
	t.moveTo, t.moving = to, done
	t.attention.Store(true)
	return nil
}

// askPeer asks a peer, which may be this one.
func (s *Service) askPeer(ctx context.Context, p peer.ID, app keyspace.Key, q question) (answer, error) {
	q.Version, q.App = hostsVersion, app[:]
	if p == s.overlay.Self() {
		a := s.answer(p, app, &q)
		a.peer = p
		if a.Err != "" {
			return a, errors.New(a.Err)
		}
		return a, nil
	}
	b, err := json.Marshal(q)
	if err != nil {
		return answer{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, answerTimeout, fmt.Errorf("no answer of %v in %v", p, answerTimeout))
	defer cancel()
	if b, err = s.overlay.Call(ctx, p, app, serviceHosts, b); err != nil {
		return answer{}, err
	}
	a, err := decodeAnswer(b)
	a.peer = p
	return a, err
}

// peerOf returns a node's peer, and has it introduced if it is not known.
func (s *Service) peerOf(ctx context.Context, app keyspace.Key, id keyspace.NodeID) (peer.ID, bool) {
	if p, ok := s.overlay.PeerOf(id); ok {
		return p, true
	}
	found := make(chan peer.ID, 1)
	s.introduce(app, id, func(p peer.ID) { found <- p })
	select {
	case p := <-found:
		return p, true
	case <-time.After(answerTimeout):
	case <-ctx.Done():
	}
	return "", false
}

// askHosts asks those nodes what is there, all at once, and returns what they say, in their order. Who does not answer, or has left, is left out.
func (s *Service) askHosts(ctx context.Context, app keyspace.Key, nodes []protocol.NodeRef) []answer {
	answers := make([]answer, len(nodes))
	var all sync.WaitGroup
	for i, n := range nodes {
		all.Go(func() {
			p, ok := s.overlay.Self(), n.ID == s.overlay.Node()
			if !ok {
				p, ok = s.peerOf(ctx, app, n.ID)
			}
			if !ok {
				return
			}
			a, err := s.askPeer(ctx, p, app, question{Do: askHost})
			if err != nil {
				log.Debugw("a node does not say what it runs", "node", n, "err", err)
				return
			}
			if a.node = n; a.Open && a.Inc == n.Inc {
				answers[i] = a
			}
		})
	}
	all.Wait()
	return slices.DeleteFunc(answers, func(a answer) bool { return !a.Open })
}

// hosts asks nodes what they can run.
func (s *Service) hosts(ctx context.Context, app keyspace.Key, nodes []protocol.NodeRef) []Host {
	var hosts []Host
	for _, a := range s.askHosts(ctx, app, nodes) {
		hosts = append(hosts, Host{Node: a.node, Peer: a.peer, Kinds: a.Kinds, Threads: a.Count, Self: a.peer == s.overlay.Self()})
	}
	return hosts
}

// askLeader asks who leads an application's group. It blocks until one answers or ctx ends.
func (s *Service) askLeader(ctx context.Context, app keyspace.Key, q question) (answer, error) {
	var wait time.Duration
	for {
		l, err := s.groups.Leader(ctx, app)
		if err != nil {
			return answer{}, err
		}
		a, err := s.askPeer(ctx, peer.ID(l.ID), app, q)
		if err == nil {
			return a, nil
		}
		log.Debugw("a leader does not answer", "peer", l.ID, "err", err)
		if !pause(ctx, &wait) {
			return answer{}, fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}

// askThread asks an application's group about it, and lists only threads with the name of this one.
func (s *Service) askThread(ctx context.Context, app keyspace.Key, t protocol.ThreadID) (Info, error) {
	b, err := s.client.Query(ctx, app, ServiceName, append(app[:len(app):len(app)], t[:protocol.ThreadNameBytes]...))
	if err != nil {
		return Info{}, err
	}
	return decodeInfo(b)
}

// Status is what is known of an application.
type Status struct {
	Info
	Nodes []NodeStatus // that have it open and answer
}

// NodeStatus is what a node says of an application that it has open.
type NodeStatus struct {
	Peer    peer.ID
	Node    protocol.NodeRef
	Epoch   protocol.Epoch
	Kinds   []string // that are registered
	Count   int      // of threads
	Threads []HostThread
	Ended   []EndedThread // the last threads that ended there
	Trouble string        // what keeps a thread from going on, empty for nothing
}

// Status tells of an application, by its name, and what each node that has it open says. It blocks until its group answers, and a little for
// the nodes; this node need not have it open.
func (s *Service) Status(ctx context.Context, app string) (Status, error) {
	info, err := s.Info(ctx, app)
	if err != nil {
		return Status{}, err
	}
	st := Status{Info: info}
	for _, a := range s.askHosts(ctx, AppKey(app), info.Nodes) {
		st.Nodes = append(st.Nodes, NodeStatus{
			Peer: a.peer, Node: a.node, Epoch: protocol.Epoch(a.Epoch), Kinds: a.Kinds, Count: a.Count, Threads: a.Threads, Ended: a.Ended, Trouble: a.Trouble,
		})
	}
	return st, nil
}

// Migrate has a thread go to another node that has the application open, at its next safe point. It returns once it is there, or ctx ends.
func (s *Service) Migrate(ctx context.Context, app, thread string, to peer.ID) error {
	fail := func(err error) error { return fmt.Errorf("coherence: move thread %q to %v: %w", thread, to, err) }
	if err := errors.Join(checkName("an application", app), checkName("a thread", thread)); err != nil {
		return err
	}
	key := AppKey(app)
	var wait time.Duration
	asked := false
	for {
		b := threadName(thread)
		var id protocol.ThreadID
		copy(id[:], b[:])
		info, err := s.askThread(ctx, key, id)
		if err != nil {
			return fail(err)
		}
		if len(info.Running) == 0 {
			return fail(ErrNoThread)
		}
		t := info.Running[0]
		dest := slices.IndexFunc(info.Nodes, func(n protocol.NodeRef) bool { return n.ID == dht.NodeIDOf(to) })
		switch {
		case dest < 0:
			return fail(fmt.Errorf("%w: it does not have the application open", ErrKind))
		case t.At == info.Nodes[dest] && t.To.IsZero():
			return nil
		case !asked && !t.At.IsZero():
			hosts := s.hosts(ctx, key, []protocol.NodeRef{info.Nodes[dest]})
			if len(hosts) == 0 {
				return fail(errors.New("it does not answer"))
			}
			at, ok := s.peerOf(ctx, key, t.At.ID)
			if !ok {
				break
			}
			for _, h := range s.askHosts(ctx, key, []protocol.NodeRef{t.At}) {
				for _, x := range h.Threads {
					if x.Name == thread && !hosts[0].Runs(x.Kind) {
						return fail(fmt.Errorf("%w: %q is not registered there", ErrKind, x.Kind))
					}
				}
			}
			n := info.Nodes[dest]
			if _, err := s.askPeer(ctx, at, key, question{Do: askMove, Thread: t.ID[:], Node: n.ID[:], Inc: n.Inc}); err != nil {
				return fail(err)
			}
			asked = true
		}
		if !pause(ctx, &wait) {
			return fail(fmt.Errorf("it has not come to a safe point, or was not let go: %w", context.Cause(ctx)))
		}
	}
}
