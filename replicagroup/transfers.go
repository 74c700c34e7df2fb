package replicagroup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht"
	"latchkey/internal/automaton"
	"latchkey/internal/driver"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/transfer"
)

// streamSnapshot names the overlay's streams that snapshots go by.
const streamSnapshot = "group/snapshot"

// transfers carries snapshots that are too large for a batch of engine messages, each on a stream of its own: the driver of package
// transfer. One goroutine owns the queue and the gate; each stream has one of its own. Shards hand messages over and hear how they fare;
// a message that has come is put to its shard as any other engine message is.
type transfers struct {
	host *Host
	box  *driver.Mailbox[func()]

	// Of run's goroutine.
	queue   transfer.Queue
	gate    transfer.Gate
	running map[transfer.Key]context.CancelFunc
	visits  map[uint64]*visit
	visitor uint64
	orders  transfer.Orders
	verdict transfer.Verdicts

	stall time.Duration                              // transfer.StallMax, but for tests
	acked func(k transfer.Key, acked int)            // nil, but for tests: called by the sender's goroutine
	keep  bool                                       // for tests: what nobody needs is sent too
	spoil func(k transfer.Key, at int, chunk []byte) // likewise by the sender's, with a copy of what it is about to send
	mute  func(k transfer.Key) bool                  // likewise by the receiver's: its last word is lost

	mu    sync.Mutex
	jobs  map[transfer.Key]*job // every transfer of queue
	stats TransferStats
}

// job is one snapshot to be sent to one replica.
type job struct {
	key   transfer.Key
	peer  peer.ID
	offer transfer.Offer // but for the content
	body  []byte
	once  sync.Once
	sums  transfer.Digest // of body; see digest
	moved atomic.Uint64   // bytes that went over

	// Guarded by the transfers' mu.
	head []byte // of the newest message with this body
	err  error  // of the last stream
}

func (j *job) digest() transfer.Digest {
	j.once.Do(func() { j.sums = transfer.DigestOf(j.body) })
	return j.sums
}

// visit is one stream that a peer offers a snapshot by.
type visit struct {
	stream *dht.Stream
	offer  transfer.Offer
	word   chan word   // of the gate
	cut    atomic.Bool // another sender has taken its place
	told   bool        // why it was refused; of its goroutine
}

// word is what the gate has decided; with none of its fields set, that the offer has to wait.
type word struct {
	admit  *transfer.Incoming
	refuse transfer.Code
}

// TransferStats counts what a host did with snapshots that went on streams of their own.
type TransferStats struct {
	Sent, Received, Failed         uint64 // transfers: delivered, taken by their replica, given up as their sender
	Dropped                        uint64 // to be sent, and of no use any more: their replica does not lead, or the other has it
	Stalled                        uint64 // streams given up because for too long nothing came or went
	BytesSent, BytesReceived       uint64 // of snapshots, over streams: acknowledged, and found right
	BytesResumed                   uint64 // of those received whole: what had come before their last stream began
	Sending, Waiting               int    // known to the sending side; of them without a stream
	Receiving, Offered, Unstreamed int    // streams at work, offers that wait, and transfers kept after their stream broke
}

func newTransfers(h *Host) *transfers {
	return &transfers{
		host: h, box: driver.NewMailbox[func()](mailboxMax), stall: transfer.StallMax,
		running: make(map[transfer.Key]context.CancelFunc), visits: make(map[uint64]*visit), jobs: make(map[transfer.Key]*job),
	}
}

// run is the goroutine that owns the queue and the gate.
func (t *transfers) run() {
	wake := time.NewTimer(time.Hour)
	defer wake.Stop()
	var batch []func()
	for {
		wait := time.Hour
		if next := min(t.queue.Next(), t.gate.Next()); next != automaton.Never {
			wait = next.Sub(t.host.clock.Now())
		}
		wake.Reset(max(wait, 0))
		select {
		case <-t.box.Wake():
		case <-wake.C:
		}
		var closed bool
		if batch, closed = t.box.Take(batch); closed {
			return // streams end with the host's context
		}
		for _, f := range batch {
			f()
		}
		now := t.now()
		t.gate.Tick(now)
		t.queue.Tick(now, &t.orders)
		t.perform()
	}
}

func (t *transfers) now() automaton.Instant { return t.host.clock.Now() }

// perform carries out what the queue and the gate have asked for.
func (t *transfers) perform() {
	for len(t.orders.Begin)+len(t.orders.Cut)+len(t.orders.Told) > 0 {
		orders := t.orders
		t.orders = transfer.Orders{}
		for _, k := range orders.Begin {
			t.begin(k)
		}
		for _, k := range orders.Cut {
			if cancel := t.running[k]; cancel != nil {
				cancel()
			}
		}
		for _, told := range orders.Told {
			t.tell(told)
		}
	}
	verdict := t.verdict
	t.verdict = transfer.Verdicts{}
	for _, a := range verdict.Admit {
		t.visits[a.Stream].word <- word{admit: a.Incoming} // has room for all that may be said
	}
	for _, r := range verdict.Refuse {
		t.visits[r.Stream].word <- word{refuse: r.Code}
	}
	for _, c := range verdict.Cut {
		v := t.visits[c.Stream]
		v.cut.Store(true)
		v.stream.SetReadDeadline(time.Unix(1, 0)) // wakes its goroutine, which sees cut
	}
}

// tell tells the owner of a transfer how it fares.
func (t *transfers) tell(told transfer.Told) {
	t.mu.Lock()
	j := t.jobs[told.Key]
	if told.State != order.Underway {
		delete(t.jobs, told.Key)
	}
	switch told.State {
	case order.Arrived:
		t.stats.Sent++
	case order.Failed:
		t.stats.Failed++
	}
	if j != nil && told.State == order.Failed {
		log.Warnw("snapshot given up; the group's leader sends it again when it hears of the replica",
			"group", j.key.Group, "replica", j.key.To, "peer", j.peer, "moved", j.moved.Load(), "bytes", len(j.body), "err", j.err)
	}
	t.mu.Unlock()
	if j != nil {
		t.host.shardOf(told.Key.Group).box.Put(carriedEvent{j.key, j.offer.From, told.State})
	}
}

// send takes over a message with a snapshot for a replica at a peer. It is called by shards and does not block.
func (t *transfers) send(to peer.ID, r *replica, m order.Send, store order.StoreID) {
	j := &job{
		key: transfer.Key{Group: r.group, To: m.To}, peer: to, body: m.Snapshot, head: m.Msg,
		offer: transfer.Offer{From: r.self, FromStore: t.host.storeID, ToStore: store, Size: len(m.Snapshot)},
	}
	j.offer.Key = j.key
	t.box.Put(func() {
		t.mu.Lock()
		old := t.jobs[j.key]
		same := old != nil && old.peer == j.peer && old.offer == j.offer && &old.body[0] == &j.body[0]
		if same {
			old.head = j.head
		} else {
			t.jobs[j.key] = j
		}
		t.mu.Unlock()
		t.queue.Want(j.key, string(j.peer), same, t.now(), &t.orders)
	})
}

// drop forgets a transfer that its replica has no use for any more.
func (t *transfers) drop(k transfer.Key) {
	t.box.Put(func() {
		if t.keep {
			return
		}
		t.mu.Lock()
		if t.jobs[k] != nil {
			delete(t.jobs, k)
			t.stats.Dropped++
		}
		t.mu.Unlock()
		t.queue.Drop(k, t.now(), &t.orders)
	})
}

// begin opens a stream for a transfer, on a goroutine that reports its end.
func (t *transfers) begin(k transfer.Key) {
	t.mu.Lock()
	j := t.jobs[k]
	t.mu.Unlock()
	ctx, cancel := context.WithCancel(t.host.ctx)
	t.running[k] = cancel
	run := func() {
		how := t.carry(ctx, j)
		t.box.Put(func() {
			cancel()
			delete(t.running, k)
			t.queue.Ended(k, how, t.now(), &t.orders)
		})
	}
	if !t.host.spawn(run) {
		cancel() // the host is closed
	}
}

// carry sends a snapshot by one stream, as far as that goes.
func (t *transfers) carry(ctx context.Context, j *job) transfer.End {
	err := t.carryTo(ctx, j)
	var refused *transfer.RefusedError
	switch {
	case err == nil:
		log.Debugw("snapshot sent", "group", j.key.Group, "replica", j.key.To, "peer", j.peer, "bytes", len(j.body))
		return transfer.Delivered
	case ctx.Err() != nil:
		return transfer.Deferred // it was told to stop
	case errors.As(err, &refused) && refused.Code == transfer.Busy:
		return transfer.Deferred
	}
	log.Debugw("snapshot not sent", "group", j.key.Group, "replica", j.key.To, "peer", j.peer, "moved", j.moved.Load(), "bytes", len(j.body), "err", err)
	t.ended(err)
	t.mu.Lock()
	j.err = err
	t.mu.Unlock()
	if refused != nil && refused.Code != transfer.Closing || errors.Is(err, transfer.ErrGivenUp) || errors.Is(err, transfer.ErrMalformed) {
		return transfer.Rejected
	}
	return transfer.Broken
}

func (t *transfers) carryTo(ctx context.Context, j *job) error {
	offer, sums := j.offer, j.digest()
	offer.Content = sums.Content()
	s, err := t.host.overlay.OpenStream(ctx, j.peer, streamSnapshot)
	if err != nil {
		return err
	}
	defer s.Reset()
	defer context.AfterFunc(ctx, s.Reset)()
	if err := t.write(s, transfer.AppendFrame(nil, transfer.Frame{Kind: transfer.KindOffer, Offer: offer})); err != nil {
		return err
	}
	out := transfer.NewOutgoing(sums)
	moved := 0
	var buf []byte
	for {
		f, err := t.read(s, &buf)
		if err != nil {
			return misbehaved(s, err)
		}
		sends := out.Step(f)
		if f.Kind == transfer.KindAccept {
			t.box.TryPut(func() { t.queue.Admitted(j.key) })
		}
		if n := out.Moved() - moved; n > 0 {
			moved += n
			t.count(func(st *TransferStats) { st.BytesSent += uint64(n) })
			j.moved.Add(uint64(n))
			t.box.TryPut(func() { t.queue.Moved(j.key) })
			if t.acked != nil {
				t.acked(j.key, out.Acked())
			}
		}
		if sends.Waits {
			t.box.TryPut(func() { t.queue.Waiting(j.key, t.now(), &t.orders) })
		}
		for _, p := range sends.Pieces {
			chunk := j.body[p.Offset : p.Offset+p.Bytes]
			if t.spoil != nil {
				chunk = slices.Clone(chunk)
				t.spoil(j.key, p.Offset, chunk)
			}
			if err := t.write(s, transfer.AppendChunkHead(nil, p.Offset, p.Sum, p.Bytes), chunk); err != nil {
				return t.lastWord(s, &buf, err)
			}
		}
		if sends.Finish {
			t.mu.Lock()
			head := j.head
			t.mu.Unlock()
			if err := t.write(s, transfer.AppendFrame(nil, transfer.Frame{Kind: transfer.KindFinish, Data: head})); err != nil {
				return err
			}
		}
		if sends.Over {
			if sends.Err == nil {
				s.Close()
			}
			return misbehaved(s, sends.Err)
		}
	}
}

// lastWord returns why a receiver has ended a stream that cannot be written to any more, if it has said so.
func (t *transfers) lastWord(s *dht.Stream, buf *[]byte, err error) error {
	if dht.Stalled(err) {
		return err
	}
	for range transfer.AheadMax + 1 { // what it acknowledged before comes first
		f, bad := t.read(s, buf)
		if bad != nil {
			break
		}
		if f.Kind == transfer.KindRefuse {
			return &transfer.RefusedError{Code: f.Code, Text: f.Text}
		}
	}
	return err
}

// misbehaved counts an error against the peer if it is about what the peer has sent.
func misbehaved(s *dht.Stream, err error) error {
	if errors.Is(err, transfer.ErrMalformed) {
		s.Misbehaved("bad transfer of a snapshot", err.Error())
	}
	return err
}

// write writes parts of a frame, within the time that a frame may take.
func (t *transfers) write(s *dht.Stream, parts ...[]byte) error {
	s.SetWriteDeadline(time.Now().Add(t.stall))
	for _, b := range parts {
		if _, err := s.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// read reads a frame, within the time that one may take. Its data is in buf, until the next.
func (t *transfers) read(s *dht.Stream, buf *[]byte) (f transfer.Frame, err error) {
	s.SetReadDeadline(time.Now().Add(t.stall))
	return readTransferFrame(s, buf)
}

func readTransferFrame(s io.Reader, buf *[]byte) (f transfer.Frame, err error) {
	var length [4]byte
	if _, err := io.ReadFull(s, length[:]); err != nil {
		return f, err
	}
	n, err := transfer.FrameLength(length)
	if err != nil {
		return f, err
	}
	if cap(*buf) < n {
		*buf = make([]byte, n)
	}
	*buf = (*buf)[:n]
	if _, err := io.ReadFull(s, *buf); err != nil {
		return f, err
	}
	return transfer.DecodeFrame(*buf)
}

func (t *transfers) count(f func(st *TransferStats)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f(&t.stats)
}

// ended counts a stream that was given up.
func (t *transfers) ended(err error) {
	if dht.Stalled(err) {
		t.count(func(st *TransferStats) { st.Stalled++ })
	}
}

// accept serves a stream that a peer has opened.
func (t *transfers) accept(s *dht.Stream) {
	h := t.host
	if !h.enter() {
		return
	}
	defer h.wg.Done()
	defer context.AfterFunc(h.ctx, s.Reset)()
	if fellows := h.fellows.Load(); fellows == nil || !(*fellows)[s.Peer()] {
		h.counters.strayMessages.Add(1)
		return
	}
	var buf []byte
	f, err := t.read(s, &buf)
	if err == nil && (f.Kind != transfer.KindOffer || f.Offer.Group.Overlay != h.id) {
		err = fmt.Errorf("%w: %v at the beginning", transfer.ErrMalformed, f.Kind)
	}
	if err != nil {
		t.refuseMalformed(s, err)
		return
	}
	v := &visit{stream: s, offer: f.Offer, word: make(chan word, 4)}
	if !t.expects(v) {
		t.refuse(v, transfer.Stray, fmt.Sprintf("%v is not here, or replica %d is no member of it", v.offer.Key, v.offer.From))
		t.finish(s)
		return
	}
	if err := t.receive(v, &buf); err != nil {
		t.ended(err)
		t.refuseMalformed(s, err)
		log.Debugw("snapshot not received", "group", v.offer.Group, "replica", v.offer.To, "peer", s.Peer(), "bytes", v.offer.Size, "err", err)
	} else if v.told {
		t.finish(s)
	}
}

func (t *transfers) refuseMalformed(s *dht.Stream, err error) {
	if errors.Is(err, transfer.ErrMalformed) {
		t.host.counters.refused.Add(1)
	}
	misbehaved(s, err)
}

// refuse says why a stream ends.
func (t *transfers) refuse(v *visit, c transfer.Code, text string) {
	v.told = t.write(v.stream, transfer.AppendFrame(nil, transfer.Frame{Kind: transfer.KindRefuse, Code: c, Text: text})) == nil
}

// finish ends a stream whose sender has been told why. It takes what is still under way: a sender whose window is full would otherwise
// never get to read it. Meanwhile the stream has no place among those that are admitted any more.
func (t *transfers) finish(s *dht.Stream) {
	s.CloseWrite()
	s.SetReadDeadline(time.Now().Add(t.stall))
	io.CopyN(io.Discard, s, (transfer.AheadMax+1)*transfer.FrameBytesMax)
	s.Close()
}

// event is the engine message that an offer is of.
func (v *visit) event(msg []byte) *engineEvent {
	o := v.offer
	return &engineEvent{
		from: v.stream.Peer(), group: o.Group, to: o.To, store: o.ToStore,
		recv: order.Recv{From: o.From, Store: o.FromStore, Msg: msg},
	}
}

// expects asks the shard whether it would take such a message.
func (t *transfers) expects(v *visit) bool {
	return t.ask(func(done chan<- bool) shardEvent { return expectEvent{v.event(nil), done} }, v.offer.Group)
}

func (t *transfers) ask(event func(done chan<- bool) shardEvent, g order.GroupID) bool {
	done := make(chan bool, 1)
	if !t.host.shardOf(g).box.Put(event(done)) { // at most one of each stream
		return false
	}
	select {
	case ok := <-done:
		return ok
	case <-t.host.ctx.Done():
		return false
	}
}

// receive waits for admission and takes the snapshot.
func (t *transfers) receive(v *visit, buf *[]byte) error {
	var in *transfer.Incoming
	id := make(chan uint64, 1)
	if !t.box.TryPut(func() { id <- t.offered(v) }) {
		t.refuse(v, transfer.Busy, "too much to do")
		return nil
	}
	defer func() {
		keep := in
		t.box.Put(func() {
			n := <-id
			delete(t.visits, n)
			t.gate.Ended(n, keep, t.now(), &t.verdict)
		})
	}()
	var w word
	again := time.NewTicker(transfer.WaitEvery)
	defer again.Stop()
	for w.admit == nil && w.refuse == 0 {
		select {
		case w = <-v.word:
			if w.admit != nil || w.refuse != 0 {
				continue
			}
		case <-again.C:
		case <-t.host.ctx.Done():
			return context.Cause(t.host.ctx)
		}
		if err := t.write(v.stream, transfer.AppendFrame(nil, transfer.Frame{Kind: transfer.KindWait})); err != nil {
			return err
		}
	}
	if w.refuse != 0 {
		t.refuse(v, w.refuse, fmt.Sprintf("%v from %s", v.offer.Key, v.stream.Peer()))
		return nil
	}
	in = w.admit
	done, err := t.take(v, in, buf)
	if done {
		in = nil // nothing is left of it
	}
	return err
}

// offered brings a visit before the gate.
func (t *transfers) offered(v *visit) uint64 {
	t.visitor++
	t.visits[t.visitor] = v
	t.gate.Offered(t.visitor, v.offer, t.now(), &t.verdict)
	admitted := slices.ContainsFunc(t.verdict.Admit, func(a transfer.Admission) bool { return a.Stream == t.visitor })
	refused := slices.ContainsFunc(t.verdict.Refuse, func(r transfer.Refusal) bool { return r.Stream == t.visitor })
	if !admitted && !refused {
		v.word <- word{}
	}
	return t.visitor
}

// take takes an admitted snapshot. done says that it was handed over.
func (t *transfers) take(v *visit, in *transfer.Incoming, buf *[]byte) (done bool, err error) {
	s, resumed := v.stream, in.Has()
	if err := t.write(s, transfer.AppendFrame(nil, in.Begin())); err != nil {
		return false, err
	}
	for {
		s.SetReadDeadline(time.Now().Add(t.stall))
		if v.cut.Load() { // set before its deadline is
			t.refuse(v, transfer.Superseded, fmt.Sprintf("%v: another replica sends it now", v.offer.Key))
			return false, nil
		}
		f, err := readTransferFrame(s, buf)
		if err != nil {
			if v.cut.Load() {
				continue
			}
			return false, err
		}
		has := in.Has()
		r := in.Step(f)
		if n := in.Has() - has; n > 0 {
			t.count(func(st *TransferStats) { st.BytesReceived += uint64(n) })
		} else if n < 0 {
			resumed = 0 // the sender had other bytes
		}
		for _, reply := range r.Reply {
			if err := t.write(s, transfer.AppendFrame(nil, reply)); err != nil {
				return false, err
			}
		}
		if r.Head != nil {
			if !t.deliver(v, in.Message(r.Head)) {
				t.refuse(v, transfer.Stray, fmt.Sprintf("%v is not here any more, or replica %d is no member of it", v.offer.Key, v.offer.From))
				return true, nil
			}
			t.count(func(st *TransferStats) { st.Received++; st.BytesResumed += uint64(resumed) })
			var err error
			if t.mute != nil && t.mute(v.offer.Key) {
				s.Reset() // and nothing before it, which the sender might still read
			} else {
				err = t.write(s, transfer.AppendFrame(nil, transfer.Frame{Kind: transfer.KindDone}))
			}
			if err == nil {
				err = t.heard(s)
			}
			return err == nil, err
		}
		if r.Over {
			var refused *transfer.RefusedError
			if errors.As(r.Err, &refused) {
				log.Warnw("snapshot refused", "group", v.offer.Group, "replica", v.offer.To, "peer", s.Peer(), "reason", refused.Text)
				v.told = true
				return false, nil
			}
			return false, r.Err
		}
	}
}

// heard waits until the sender of a snapshot that has come has closed the stream. If it does not, it may offer the same again, and what has
// come is kept for that.
func (t *transfers) heard(s *dht.Stream) error {
	s.SetReadDeadline(time.Now().Add(t.stall))
	switch _, err := s.Read(make([]byte, 1)); {
	case err == io.EOF:
		s.Close()
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("%w: more after the end", transfer.ErrMalformed)
}

// deliver hands the message to its replica, and waits until it has taken it: until then the transfer keeps its place, and so memory
// stays bounded.
func (t *transfers) deliver(v *visit, msg []byte) bool {
	e := v.event(msg)
	t.host.shardOf(e.group).engineBytes.Add(int64(len(msg)))
	return t.ask(func(done chan<- bool) shardEvent { return arrivedEvent{e, done} }, e.group)
}

type (
	// carriedEvent tells a replica how a snapshot that it has sent fares.
	carriedEvent struct {
		key   transfer.Key
		from  order.ReplicaID
		state order.Carriage
	}
	// expectEvent asks whether an engine message would be taken.
	expectEvent struct {
		message *engineEvent
		done    chan<- bool
	}
	// arrivedEvent is an engine message that came by a stream of its own.
	arrivedEvent struct {
		message *engineEvent
		done    chan<- bool
	}
)

func (e carriedEvent) handle(s *shard) {
	r, ok := s.replicas[e.key.Group.Life()]
	if ok && r.self == e.from && !r.halted {
		st := r.engine.Status()
		if has, known := st.Match[e.key.To]; known && has+1 < st.First {
			r.step(order.Carried{To: e.key.To, State: e.state})
			return
		}
	}
	if e.state == order.Underway { // nobody needs it any more: this replica does not lead, or the other has it
		s.host.transfers.drop(e.key)
	}
}

func (e expectEvent) handle(s *shard) { e.done <- s.addressee(e.message) != nil }

func (e arrivedEvent) handle(s *shard) { e.done <- e.message.take(s) }

// Moved returns how many bytes of a snapshot have gone to a member of a group from here, while the transfer lasts; 0 when none is on
// its way. It rises while the transfer gets on. Safe for concurrent use.
func (h *Host) Moved(g order.GroupID, member order.ReplicaID) uint64 {
	h.transfers.mu.Lock()
	defer h.transfers.mu.Unlock()
	if j := h.transfers.jobs[transfer.Key{Group: g, To: member}]; j != nil {
		return j.moved.Load()
	}
	return 0
}

// Transfers returns what became of snapshots so far, and what is under way. It asks the goroutine that knows; ctx ends the wait.
func (h *Host) Transfers(ctx context.Context) (TransferStats, error) {
	t := h.transfers
	answer := make(chan TransferStats, 1)
	ask := func() {
		t.perform() // what ended a moment before this is to be counted, too
		t.mu.Lock()
		defer t.mu.Unlock()
		st := t.stats
		st.Sending, st.Waiting = t.queue.Len(), t.queue.Len()-t.queue.Running()
		st.Receiving, st.Offered, st.Unstreamed = t.gate.Counts()
		answer <- st
	}
	if !t.box.Put(ask) {
		return TransferStats{}, ErrClosed
	}
	select {
	case st := <-answer:
		return st, nil
	case <-ctx.Done():
		return TransferStats{}, context.Cause(ctx)
	case <-h.ctx.Done():
		return TransferStats{}, context.Cause(h.ctx)
	}
}
