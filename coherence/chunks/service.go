package chunks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	logging "github.com/ipfs/go-log/v2"
	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/coherence/appmanager"
	"latchkey/coherence/protocol"
	"latchkey/dht"
	"latchkey/dht/keyspace"
)

var log = logging.Logger("latchkey/chunks")

// Overlay is what a [Service] needs of the overlay; *dht.Overlay is one.
type Overlay interface {
	Self() peer.ID
	Handle(service string, h dht.Handler)
	Call(ctx context.Context, to peer.ID, key keyspace.Key, service string, msg []byte) ([]byte, error)
	ReplicaSet(ctx context.Context, at keyspace.Preimage, r int) ([]peer.AddrInfo, error)
}

// Bounds of a service.
const (
	// InFlightMax bounds the chunks that one service puts or gets at a time, and with them the memory that takes.
	InFlightMax = 8
	// WaitingMax bounds the questions of others that wait for the keeper. Who asks more is told to ask again.
	WaitingMax = 32
	// callTimeout is how long one question to one peer may take.
	callTimeout = 10 * time.Second
	// busyWait is how long to wait before a busy keeper is asked again, busyTries how often that is done.
	busyWait  = 50 * time.Millisecond
	busyTries = 40
	// farther is how many of the closest peers a reader asks when those that ought to have a chunk do not.
	farther = 20
)

// Errors about chunks that are not to be had.
var (
	// ErrMissing matches the error about a chunk that no peer has which was asked.
	ErrMissing = errors.New("chunks: chunk missing")
	// ErrAltered matches the error about a chunk that a peer answered with another content, and that nobody had as it was.
	ErrAltered = errors.New("chunks: chunk altered")
	// ErrStored matches the error about a chunk that too few peers have stored.
	ErrStored = errors.New("chunks: stored by too few peers")
	// ErrClosed matches the error of calls after Close.
	ErrClosed = errors.New("chunks: closed")
)

// Service keeps chunks for others, and puts and gets one's own. Safe for concurrent use. The zero value is not usable; see [New].
type Service struct {
	overlay Overlay
	f       int
	slots   chan struct{}
	asked   chan *dht.Request
	collect chan request
	ctx     context.Context
	cancel  context.CancelCauseFunc
	wg      sync.WaitGroup

	mu     sync.Mutex
	keeper *Keeper
}

// New makes a service of a peer, that tolerates f failures, on a keeper, and registers its handler: the overlay has not been started yet.
func New(overlay Overlay, f int, keeper *Keeper) *Service {
	s := &Service{
		overlay: overlay, f: f, keeper: keeper, slots: make(chan struct{}, InFlightMax), asked: make(chan *dht.Request, WaitingMax),
		collect: make(chan request, 1),
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	overlay.Handle(ServiceName, s.handle)
	s.wg.Go(s.serve)
	s.wg.Go(s.collects)
	return s
}

// Close ends the service; calls under way fail with [ErrClosed]. It waits for what it does. It may be called again.
func (s *Service) Close() error {
	s.cancel(ErrClosed)
	s.wg.Wait()
	return nil
}

// Usage returns how many chunks this peer keeps for anybody, and their bytes.
func (s *Service) Usage() (chunks int, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keeper.Usage()
}

var busy = func() []byte { b, _ := (&reply{busy: true}).encode(); return b }()

// handle queues a question for the keeper, which may wait for the disk.
func (s *Service) handle(r *dht.Request) {
	select {
	case s.asked <- r:
	default:
		r.Reply(busy)
	}
}

// serve answers questions. Those that have queued up are answered together, after one sync.
func (s *Service) serve() {
	type answer struct {
		to    *dht.Request
		reply []byte
		err   error
	}
	var answers []answer
	for {
		select {
		case r := <-s.asked:
			s.mu.Lock()
			answers = answers[:0]
			for r != nil {
				b, err := s.answer(r.Data)
				answers = append(answers, answer{r, b, err})
				if r = nil; len(answers) < WaitingMax {
					select {
					case r = <-s.asked:
					default:
					}
				}
			}
			err := s.keeper.Sync()
			s.mu.Unlock()
			for _, a := range answers {
				switch {
				case errors.Is(a.err, ErrMalformed):
					a.to.Misbehaved("malformed question about chunks")
				case errors.Join(a.err, err) != nil:
					a.to.Fail(errors.Join(a.err, err))
				default:
					a.to.Reply(a.reply)
				}
			}
			clear(answers)
		case <-s.ctx.Done():
			return
		}
	}
}

// answer has the keeper answer a question. mu is held, and the keeper is synced before the answer leaves.
func (s *Service) answer(question []byte) ([]byte, error) {
	q, err := decodeRequest(question)
	if err != nil {
		return nil, err
	}
	a, err := s.ask(&q)
	if err != nil {
		return nil, err
	}
	return a.encode()
}

// ask has this peer's keeper answer. mu is held.
func (s *Service) ask(q *request) (a reply, err error) {
	switch {
	case q.put != nil:
		if err = s.keeper.Put(q.app, q.id, q.put); errors.Is(err, ErrFull) {
			log.Warnw("a chunk is refused", "app", q.app, "err", err)
			a.full, err = true, nil
		}
	case len(q.have) > 0:
		for _, name := range q.have {
			has, err := s.keeper.Has(q.app, name, q.id)
			if err != nil {
				return a, err
			}
			a.has = append(a.has, has)
		}
	case len(q.roots) > 0:
		select {
		case s.collect <- *q:
		default: // one is under way; the next checkpoint asks again
		}
	default:
		a.chunk, err = s.keeper.Get(q.app, q.get)
	}
	return a, err
}

// call asks a peer, which may be this one.
func (s *Service) call(ctx context.Context, to peer.ID, q *request) (reply, error) {
	if to == s.overlay.Self() {
		s.mu.Lock()
		defer s.mu.Unlock()
		a, err := s.ask(q)
		if err == nil {
			err = s.keeper.Sync()
		}
		return s.refused(to, a, err)
	}
	b := q.encoded
	if b == nil {
		var err error
		if b, err = q.encode(); err != nil {
			return reply{}, err
		}
	}
	for range busyTries {
		a, err := s.callOnce(ctx, to, q, b)
		if err != nil || !a.busy {
			return s.refused(to, a, err)
		}
		select {
		case <-time.After(busyWait):
		case <-ctx.Done():
			return reply{}, context.Cause(ctx)
		}
	}
	return reply{}, fmt.Errorf("%v has too much to do", to)
}

func (s *Service) callOnce(ctx context.Context, to peer.ID, q *request, b []byte) (reply, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, callTimeout, fmt.Errorf("no answer in %v", callTimeout))
	defer cancel()
	b, err := s.overlay.Call(ctx, to, q.app, ServiceName, b)
	if err != nil {
		return reply{}, err
	}
	return decodeReply(b, len(q.have))
}

func (s *Service) refused(by peer.ID, a reply, err error) (reply, error) {
	if err == nil && a.full {
		err = ErrFull
	}
	if err != nil {
		err = fmt.Errorf("%v: %w", by, err)
	}
	return a, err
}

// begin takes a slot, and joins the lives of ctx and the service. The caller calls end.
func (s *Service) begin(ctx context.Context) (_ context.Context, end func(), err error) {
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	case <-s.ctx.Done():
		return nil, nil, ErrClosed
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.ctx, func() { cancel(ErrClosed) })
	return ctx, func() { stop(); cancel(nil); <-s.slots }, nil
}

// place is where the chunks are whose names begin with b.
func place(b byte) keyspace.Preimage { return keyspace.Preimage(fmt.Sprintf("chunks/%02x", b)) }

// peers returns the r peers closest to a place.
func (s *Service) peers(ctx context.Context, b byte, r int) ([]peer.ID, error) {
	infos, err := s.overlay.ReplicaSet(ctx, place(b), r)
	if err != nil {
		return nil, fmt.Errorf("chunks: who keeps %v: %w", place(b), err)
	}
	ids := make([]peer.ID, len(infos))
	for i := range infos {
		ids[i] = infos[i].ID
	}
	return ids, nil
}

// enough is how many of so many peers have to have a chunk: one more than may fail, or all of an overlay that is smaller.
func (s *Service) enough(peers int) int { return min(s.f+1, peers) }

// smallChunk is put without asking first whether it is there.
const smallChunk = 4 << 10

// Put stores a chunk, which is not changed any more, for a checkpoint, and returns its name. It blocks until the 2f+1 peers closest to its place have stored it, or have failed to;
// f+1 have to have it, or the error matches [ErrStored]. Errors beside: [ErrTooLarge], [ErrClosed], the cause of ctx.
func (s *Service) Put(ctx context.Context, app keyspace.Key, id protocol.CheckpointID, chunk []byte) (protocol.Hash, error) {
	name := Name(chunk)
	if len(chunk) > BytesMax {
		return name, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(chunk), BytesMax)
	}
	if chunk == nil {
		chunk = []byte{}
	}
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return name, err
	}
	defer end()
	peers, err := s.peers(ctx, name[0], 2*s.f+1)
	if err != nil {
		return name, err
	}
	return name, s.spread(ctx, peers, app, id, name, chunk)
}

// spread puts a chunk at all of some peers that do not have it.
func (s *Service) spread(ctx context.Context, peers []peer.ID, app keyspace.Key, id protocol.CheckpointID, name protocol.Hash, chunk []byte) error {
	put := request{app: app, id: id, put: chunk}
	var err error
	if put.encoded, err = put.encode(); err != nil {
		return err
	}
	errs := make([]error, len(peers))
	var wg sync.WaitGroup
	for i, p := range peers {
		wg.Go(func() {
			if len(chunk) > smallChunk {
				a, err := s.call(ctx, p, &request{app: app, id: id, have: []protocol.Hash{name}})
				if err != nil || a.has[0] {
					errs[i] = err
					return
				}
			}
			_, errs[i] = s.call(ctx, p, &put)
		})
	}
	wg.Wait()
	return s.stored(ctx, name, len(peers), errs)
}

// stored reports whether enough peers have a chunk.
func (s *Service) stored(ctx context.Context, name protocol.Hash, peers int, errs []error) error {
	have := 0
	for _, err := range errs {
		if err == nil {
			have++
		}
	}
	switch {
	case have >= s.enough(peers) && peers > 0:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w: %d of %d have chunk %x, and %d have to: %w", ErrStored, have, peers, name[:4], s.enough(peers), errors.Join(errs...))
}

// Get returns a chunk. It asks this peer, then those that ought to have it, the closest first, then those a little farther away. What comes is held
// against the name. When nobody has it, the error matches [ErrAltered] if somebody answered with something else and [ErrMissing] otherwise, and
// tells who could not be asked. Errors beside: [ErrClosed], the cause of ctx.
func (s *Service) Get(ctx context.Context, app keyspace.Key, name protocol.Hash) ([]byte, error) {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	return s.get(ctx, app, name)
}

func (s *Service) get(ctx context.Context, app keyspace.Key, name protocol.Hash) ([]byte, error) {
	asked := []peer.ID{s.overlay.Self()}
	b, unheard, altered := s.getFrom(ctx, asked, app, name)
	for _, r := range []int{2*s.f + 1, farther} {
		if b != nil || ctx.Err() != nil {
			break
		}
		peers, err := s.peers(ctx, name[0], max(r, 2*s.f+1))
		if err != nil {
			unheard = append(unheard, err)
			continue
		}
		peers = slices.DeleteFunc(peers, func(p peer.ID) bool { return slices.Contains(asked, p) })
		asked = append(asked, peers...)
		var more []error
		var other error
		b, more, other = s.getFrom(ctx, peers, app, name)
		unheard, altered = append(unheard, more...), errors.Join(altered, other)
	}
	switch {
	case b != nil:
		return b, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case altered != nil:
		return nil, fmt.Errorf("%w: %x: %w", ErrAltered, name[:4], altered)
	case len(unheard) > 0:
		return nil, fmt.Errorf("%w: %x, asked of %d peers, not all of which could answer: %w", ErrMissing, name[:4], len(asked), errors.Join(unheard...))
	}
	return nil, fmt.Errorf("%w: %x: none of %d peers has it", ErrMissing, name[:4], len(asked))
}

// getFrom asks peers in turn until one has the chunk.
func (s *Service) getFrom(ctx context.Context, peers []peer.ID, app keyspace.Key, name protocol.Hash) (chunk []byte, unheard []error, altered error) {
	for _, p := range peers {
		a, err := s.call(ctx, p, &request{app: app, get: name})
		switch {
		case err != nil:
			unheard = append(unheard, err)
		case a.chunk == nil:
		case Name(a.chunk) != name:
			altered = errors.Join(altered, fmt.Errorf("%v has another content of %d bytes", p, len(a.chunk)))
		default:
			return a.chunk, unheard, altered
		}
	}
	return nil, unheard, altered
}

// Save makes sure that everything a manifest names is stored by enough peers, stores the manifest, and returns its name. It may be called again, also by
// another peer, and puts then only what is missing. Chunks that too few peers have, since peers have gone or come, are copied to those that now are
// the closest. Errors are those of [Service.Put] and [Service.Get].
func (s *Service) Save(ctx context.Context, app keyspace.Key, id protocol.CheckpointID, m appmanager.Manifest) (root protocol.Hash, err error) {
	parts, err := encodeManifest(app, id, m)
	if err != nil {
		return root, err
	}
	places := make(map[byte]map[protocol.Hash]struct{})
	want := func(name protocol.Hash) {
		if name == (protocol.Hash{}) {
			return // a thread that has no state
		}
		if places[name[0]] == nil {
			places[name[0]] = make(map[protocol.Hash]struct{})
		}
		places[name[0]][name] = struct{}{}
	}
	for _, h := range m.Objects {
		want(h)
	}
	for _, h := range m.Threads {
		want(h)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for b, names := range places {
		wg.Go(func() {
			ordered := make([]protocol.Hash, 0, len(names))
			for name := range names {
				ordered = append(ordered, name)
			}
			slices.SortFunc(ordered, func(a, b protocol.Hash) int { return bytes.Compare(a[:], b[:]) })
			for some := range slices.Chunk(ordered, NamesMax) {
				if err := s.ensure(ctx, app, id, b, some); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return root, context.Cause(ctx)
	}
	for _, b := range parts { // the root is the last
		if root, err = s.Put(ctx, app, id, b); err != nil {
			return root, err
		}
	}
	return root, nil
}

// ensure has chunks of one place stored by enough peers.
func (s *Service) ensure(ctx context.Context, app keyspace.Key, id protocol.CheckpointID, at byte, names []protocol.Hash) error {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	peers, err := s.peers(ctx, at, 2*s.f+1)
	if err != nil {
		return err
	}
	answers := make([]reply, len(peers))
	errs := make([]error, len(peers))
	var wg sync.WaitGroup
	for i, p := range peers {
		wg.Go(func() { answers[i], errs[i] = s.call(ctx, p, &request{app: app, id: id, have: names}) })
	}
	wg.Wait()
	for n, name := range names {
		var lack []int
		for i := range peers {
			if errs[i] == nil && !answers[i].has[n] {
				lack = append(lack, i)
			}
		}
		outcome := slices.Clone(errs)
		if len(lack) > 0 {
			chunk, err := s.get(ctx, app, name)
			if err != nil {
				return err
			}
			for _, i := range lack {
				wg.Go(func() { _, outcome[i] = s.call(ctx, peers[i], &request{app: app, id: id, put: chunk}) })
			}
			wg.Wait()
		}
		if err := s.stored(ctx, name, len(peers), outcome); err != nil {
			return err
		}
	}
	return nil
}

// Load returns the manifest of an application's checkpoint by its name. It is whole, or there is an error: those of [Service.Get], and [ErrManifest].
func (s *Service) Load(ctx context.Context, app keyspace.Key, root protocol.Hash) (m appmanager.Manifest, err error) {
	m = appmanager.Manifest{Objects: make(map[keyspace.Key]protocol.Hash), Threads: make(map[protocol.ThreadID]protocol.Hash)}
	if root == (protocol.Hash{}) {
		return m, nil
	}
	_, err = s.load(ctx, app, root, &m)
	if err != nil {
		return appmanager.Manifest{}, err
	}
	return m, nil
}

func (s *Service) load(ctx context.Context, app keyspace.Key, root protocol.Hash, m *appmanager.Manifest) (parts []protocol.Hash, err error) {
	b, err := s.Get(ctx, app, root)
	if err != nil {
		return nil, err
	}
	if _, parts, err = decodeRoot(app, b); err != nil {
		return nil, err
	}
	for _, name := range parts {
		b, err := s.Get(ctx, app, name)
		if err != nil {
			return nil, err
		}
		if err := decodePart(b, m); err != nil {
			return nil, err
		}
	}
	return parts, nil
}

// Collect tells keepers which manifests of an application count: that of its last checkpoint, and the one before it, if there is one; none when the
// application is over. It waits for nobody to do anything, and who does not hear of it hears of the next one.
func (s *Service) Collect(ctx context.Context, app keyspace.Key, last protocol.CheckpointID, roots ...protocol.Hash) error {
	roots = slices.DeleteFunc(slices.Clone(roots), func(h protocol.Hash) bool { return h == protocol.Hash{} })
	if len(roots) > rootsMax {
		return fmt.Errorf("%w: %d manifests count", ErrManifest, len(roots))
	}
	if len(roots) == 0 {
		roots = []protocol.Hash{{}} // said as the name of no chunk
	}
	told := make(map[peer.ID]struct{})
	var failed []error
	for b := range 256 {
		peers, err := s.peers(ctx, byte(b), 2*s.f+1)
		if err != nil {
			return err
		}
		for _, p := range peers {
			if _, ok := told[p]; ok {
				continue
			}
			told[p] = struct{}{}
			if _, err := s.call(ctx, p, &request{app: app, id: last, roots: roots}); err != nil {
				failed = append(failed, err)
			}
		}
	}
	return errors.Join(failed...)
}

// collects drops what no manifest names. It needs the manifests for that, so the keeper goes on serving meanwhile.
func (s *Service) collects() {
	for {
		select {
		case q := <-s.collect:
			if n, err := s.collectOf(&q); err != nil {
				log.Warnw("nothing is collected", "app", q.app, "err", err)
			} else {
				log.Debugw("collected", "app", q.app, "chunks", n, "after", q.id)
			}
		case <-s.ctx.Done():
			return
		}
	}
}

func (s *Service) collectOf(q *request) (int, error) {
	keep := make(map[protocol.Hash]struct{})
	for _, root := range q.roots {
		if root == (protocol.Hash{}) {
			continue
		}
		m := appmanager.Manifest{Objects: make(map[keyspace.Key]protocol.Hash), Threads: make(map[protocol.ThreadID]protocol.Hash)}
		parts, err := s.load(s.ctx, q.app, root, &m)
		if err != nil {
			return 0, err // what it names is not known, so everything stays
		}
		keep[root] = struct{}{}
		for _, name := range parts {
			keep[name] = struct{}{}
		}
		for _, name := range m.Objects {
			keep[name] = struct{}{}
		}
		for _, name := range m.Threads {
			keep[name] = struct{}{}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keeper.Collect(q.app, q.id, keep)
}
