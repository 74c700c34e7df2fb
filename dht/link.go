package dht

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"google.golang.org/protobuf/encoding/protowire"

	"latchkey/dht/keyspace"
	"latchkey/dht/pb"
	"latchkey/internal/automaton"
)

// errGone says that a link was forgotten between finding and using it.
var errGone = errors.New("dht: link forgotten")

// link is all there is between us and one peer: the calls awaiting its answers and a lane for each class.
//
// Its streams share one fate: when one is lost, the others are reset and all calls fail. Otherwise an answer could be written to
// a stream that its asker has already lost, and the asker would wait for its whole timeout. The two ends may see a
// loss at different times, so a hello carries a session number that each side draws anew after a loss; a stream with
// another session than the attached ones tells that they are lost at the other end.
type link struct {
	o       *Overlay
	peer    peer.ID
	node    keyspace.NodeID // of peer
	budget  budget
	serving atomic.Int32 // its requests in service here
	greeted atomic.Int32 // streams it opened that have not said hello yet

	servingBytes atomic.Int64 // of the requests in service
	owed         atomic.Int64 // nanoseconds for which its streams are still not to be read, as requests were refused
	lull         atomic.Int32 // how many control messages may yet be written by whoever posts them; see lullMax
	heard        atomic.Bool  // a frame has come since the failure detector looked
	silent       atomic.Int64 // until when calls are refused, on the detector's clock, as it was suspected because none came; 0: they are not
	asking       atomic.Bool  // whether a former start of the peer is still there

	// mu guards the fields below and all of the lanes. It is taken after linksMu and before life.
	mu      sync.Mutex
	gone    bool // no longer in links
	calls   map[uint64]*call
	lanes   [classes]lane
	streams int         // attached, of both lanes
	session uint64      // ours
	theirs  uint64      // of the attached streams
	timer   *time.Timer // ends calls of Go whose time is up; nil until the first one
	wakes   time.Time   // when it runs out; zero when it is not set
	heldUp  time.Time   // when it held up who posted a message the last time; zero: it never did, or long ago
}

// lane is one class of a link.
//
//  1. While writer is set, frames are taken by its write loop; while opening, they wait for it. Otherwise there are none.
//  2. writer is opened or accepted, whichever came first.
//  3. messages and bytes count what is in frames or in the hands of the writer.
type lane struct {
	frames           []*frame
	messages, bytes  int
	opened, accepted *stream // by us, by the peer; hellos exchanged
	writer           *stream
	opening          bool
	pause            time.Duration // after a failed attempt
	retryAt          time.Time
}

// frame is the body of a frame under way, with room before it for the length.
type frame struct {
	b     []byte
	items int
	sent  int // bytes that are written already, with the length
}

// frameRoom holds the varint of any frame's length.
const frameRoom = 3

// frameKeepMax bounds the buffers kept for reuse.
const frameKeepMax = 64 << 10

var framePool = sync.Pool{New: func() any { return &frame{b: make([]byte, frameRoom, 1024)} }}

func newFrame() *frame {
	f := framePool.Get().(*frame)
	f.b, f.items, f.sent = f.b[:frameRoom], 0, 0
	return f
}

func (f *frame) free() {
	if cap(f.b) <= frameKeepMax {
		framePool.Put(f)
	}
}

// bytes returns the frame with its length in front, what is written of it already included.
func (f *frame) bytes() []byte {
	n := uint64(len(f.b) - frameRoom)
	start := frameRoom - protowire.SizeVarint(n)
	protowire.AppendVarint(f.b[start:start], n)
	return f.b[start:]
}

// pieces cuts a bulk message into frames of its own.
func pieces(it *item) []*frame {
	var frames []*frame
	add := func(it *item) {
		b := make([]byte, frameRoom, frameRoom+len(it.payload)+itemOverheadMax)
		frames = append(frames, &frame{b: appendItem(b, it)})
	}
	head, rest := *it, it.payload[min(len(it.payload), pieceBytesMax):]
	if len(rest) > 0 {
		head.total, head.payload = uint64(len(it.payload)), it.payload[:pieceBytesMax]
	}
	add(&head)
	for len(rest) > 0 {
		n := min(len(rest), pieceBytesMax)
		add(&item{kind: pb.Kind_KIND_PIECE, payload: rest[:n]})
		rest = rest[n:]
	}
	frames[0].items = 1 // the message is counted once
	return frames
}

// budget is what a peer's half-received messages may take together.
type budget struct{ used atomic.Int64 }

func (b *budget) take(n int64) bool {
	if b.used.Add(n) > reassemblyBytesMax {
		b.used.Add(-n)
		return false
	}
	return true
}

func (b *budget) give(n int64) { b.used.Add(-n) }

func newLink(o *Overlay, p peer.ID) *link {
	return &link{o: o, peer: p, node: NodeIDOf(p), calls: make(map[uint64]*call), session: newSession()}
}

func newSession() uint64 { return max(rand.Uint64(), 1) }

// link returns the link to p, making one if there is none.
func (o *Overlay) link(p peer.ID) *link {
	o.linksMu.RLock()
	l := o.links[p]
	o.linksMu.RUnlock()
	if l != nil {
		return l
	}
	o.linksMu.Lock()
	defer o.linksMu.Unlock()
	if l = o.links[p]; l != nil {
		return l
	}
	if len(o.links) >= peersIdleMax {
		for _, l := range o.links {
			o.forgetIdleLocked(l, true)
		}
	}
	l = newLink(o, p)
	o.links[p] = l
	return l
}

// forget drops a link that holds nothing and owes no pause.
func (o *Overlay) forget(l *link) {
	o.linksMu.Lock()
	defer o.linksMu.Unlock()
	o.forgetIdleLocked(l, false)
}

// forgetIdleLocked drops a link that holds nothing; with its pause after failures when paused is set. It needs linksMu.
func (o *Overlay) forgetIdleLocked(l *link, paused bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	idle := l.streams == 0 && len(l.calls) == 0 && l.greeted.Load() == 0
	for i := range l.lanes {
		idle = idle && !l.lanes[i].opening && (paused || l.lanes[i].pause == 0)
	}
	if idle {
		l.gone = true
		if o.links[l.peer] == l {
			delete(o.links, l.peer)
		}
	}
}

// post queues it, opening a stream if none is there. c, if any, will be ended exactly once if and only if the error is nil.
//
// Where the peers talk by turns (see lull), it writes the message itself: to wake the writer would cost the message a tenth of its time.
func (l *link) post(it *item, c *call) error {
	class := classOf(len(it.payload))
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.admitLocked(it, c); err != nil {
		return err
	}
	var frames []*frame
	if class == Bulk {
		l.mu.Unlock()
		frames = pieces(it) // copies
		l.mu.Lock()
		if err := l.admitLocked(it, c); err != nil {
			return err
		}
	}
	ln := &l.lanes[class]
	if ln.writer == nil && !ln.opening {
		if wait := time.Until(ln.retryAt); wait > 0 {
			return fmt.Errorf("%w: %s: no attempt for another %v", ErrUnreachable, l.peer, wait)
		}
		if !l.o.spawn(func() { l.open(class) }) {
			return ErrClosed
		}
		ln.opening = true
	}
	if c != nil {
		l.awaitLocked(it.id, c)
	}
	ln.messages++
	ln.bytes += len(it.payload) + itemOverheadMax
	if class == Bulk {
		ln.frames = append(ln.frames, frames...)
	} else {
		ln.append(it)
	}
	if w := ln.writer; w != nil && w.idle {
		w.idle = false
		if class == Control && len(l.calls) <= 1 && l.lull.Load() > 0 && !l.sluggishLocked() {
			l.lull.Add(-1)
			w.promptLocked()
		} else {
			w.wake <- struct{}{} // has room: the writer sleeps
		}
	}
	return nil
}

// sluggishLocked reports whether the peer has held somebody up who posted a message, a short while ago.
func (l *link) sluggishLocked() bool {
	if l.heldUp.IsZero() {
		return false
	}
	if time.Since(l.heldUp) < promptPause {
		return true
	}
	l.heldUp = time.Time{}
	return false
}

// admitLocked reports why it cannot be queued.
func (l *link) admitLocked(it *item, c *call) error {
	if l.gone {
		return errGone
	}
	class := classOf(len(it.payload))
	ln := &l.lanes[class]
	messagesMax, bytesMax := outboxMessagesMax[class], outboxBytesMax[class]
	if it.kind == pb.Kind_KIND_REPLY || it.kind == pb.Kind_KIND_ERROR {
		messagesMax, bytesMax = messagesMax+requestsMax, 2*bytesMax
	}
	switch {
	case c != nil && l.refuses():
		return fmt.Errorf("%w: %s", ErrSuspected, l.peer)
	case ln.messages >= messagesMax, ln.bytes+len(it.payload)+itemOverheadMax > bytesMax:
		return fmt.Errorf("%w: %s, %v: %d messages, %d bytes", ErrOutboxFull, l.peer, class, ln.messages, ln.bytes)
	case c != nil && len(l.calls) >= callsMax:
		return fmt.Errorf("%w: %s: %d calls await an answer", ErrOutboxFull, l.peer, len(l.calls))
	}
	return nil
}

// refuses reports whether calls to the peer are refused because it fell silent.
func (l *link) refuses() bool {
	until := l.silent.Load()
	return until != 0 && l.o.beats.now() < automaton.Instant(until)
}

// append adds it to the last control frame, or to a new one if it does not fit, or if that one is written in part, with its length.
func (ln *lane) append(it *item) {
	var f *frame
	if n := len(ln.frames); n > 0 {
		f = ln.frames[n-1]
	}
	if f == nil || f.sent > 0 || f.items == itemsPerFrameMax || len(f.b)-frameRoom+len(it.payload)+itemOverheadMax > controlFrameBytesMax {
		f = newFrame()
		ln.frames = append(ln.frames, f)
	}
	f.b = appendItem(f.b, it)
	f.items++
}

func (ln *lane) drop() {
	ln.frames, ln.messages, ln.bytes = nil, 0, 0
}

// await registers a call that nothing is queued for here.
func (l *link) await(id uint64, c *call) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.gone:
		return ErrClosed
	case len(l.calls) >= callsMax:
		return fmt.Errorf("%w: %d calls to ourselves await an answer", ErrOutboxFull, len(l.calls))
	}
	l.awaitLocked(id, c)
	return nil
}

// awaitLocked registers a call. One timer serves all calls of the link, and is touched only by one that ends before all others: most
// are answered long before their time, and a timer for each would cost more than the rest of this.
func (l *link) awaitLocked(id uint64, c *call) {
	l.calls[id] = c
	if c.done != nil {
		c.due = time.Now().Add(c.timeout)
		l.armLocked(c.due)
	}
}

func (l *link) armLocked(due time.Time) {
	if !l.wakes.IsZero() && !due.Before(l.wakes) {
		return
	}
	l.wakes = due
	if wait := time.Until(due); l.timer == nil {
		l.timer = time.AfterFunc(wait, l.expire)
	} else {
		l.timer.Reset(wait)
	}
}

// expire ends the calls whose time is up.
func (l *link) expire() {
	var late []*call
	l.mu.Lock()
	now, next := time.Now(), time.Time{}
	for id, c := range l.calls {
		switch {
		case c.done == nil: // its caller looks to its time itself
		case !c.due.After(now):
			delete(l.calls, id)
			late = append(late, c)
		case next.IsZero() || c.due.Before(next):
			next = c.due
		}
	}
	if l.wakes = (time.Time{}); !next.IsZero() {
		l.armLocked(next)
	}
	l.mu.Unlock()
	for _, c := range late {
		c.end(nil, fmt.Errorf("%w: %s, service %s, %v", ErrTimeout, l.peer, c.service, c.timeout))
	}
}

// take removes a call for the caller to end; nil if it is gone.
func (l *link) take(id uint64) *call {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.calls[id]
	delete(l.calls, id)
	return c
}

// complete ends the call that it answers. data is the payload, for the caller to keep.
func (l *link) complete(it *item, data []byte) {
	c := l.take(it.id)
	switch {
	case c == nil:
		l.o.count.lateReplies.Add(1)
	case it.kind == pb.Kind_KIND_ERROR:
		c.end(nil, l.answerError(it, c.service))
	default:
		c.end(data, nil)
	}
}

// open opens a stream, exchanges hellos and reads the stream to its end.
func (l *link) open(class Class) {
	for tries := 1; ; {
		s, err := l.dial(class)
		switch {
		case err == errStale:
		case crossed(err) && tries < openTriesMax && l.waitOut():
			tries++
		case err != nil:
			l.openFailed(class, fmt.Errorf("%w: %s: %w", ErrUnreachable, l.peer, err))
			return
		case s == nil:
			return
		default:
			s.read()
			return
		}
	}
}

// crossed reports whether err is of a dial that reached the peer and came to nothing there. So ends the meeting of two peers
// that dial each other at the same moment: over TCP from a listening port to a listening port it can become one connection,
// of which both take themselves for the opening end.
func crossed(err error) bool {
	var dial *swarm.DialError
	if !errors.As(err, &dial) || len(dial.DialErrors) == 0 {
		return false
	}
	for _, e := range dial.DialErrors {
		var op *net.OpError
		if errors.As(e.Cause, &op) && op.Op == "dial" || errors.Is(e.Cause, context.DeadlineExceeded) {
			return false
		}
	}
	return true
}

// waitOut waits for a moment drawn at random, so that two who have met do not meet again. It is false when the overlay closes.
func (l *link) waitOut() bool {
	t := time.NewTimer(rand.N(crossPauseMax))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-l.o.ctx.Done():
		return false
	}
}

// errStale says that another stream of the peer was lost while this one was opened.
var errStale = errors.New("dht: session over")

// errTwin says that the peer's store runs in two places.
var errTwin = &badFrame{ReasonTwin, "it is refused"}

// dial returns a stream that is attached, or nil if the peer's own came first.
func (l *link) dial(class Class) (*stream, error) {
	ctx, cancel := context.WithTimeout(l.o.ctx, openTimeout)
	defer cancel()
	l.o.endPause(l.peer)
	ns, err := l.o.host.NewStream(ctx, l.peer, l.o.protocols[class])
	if err != nil {
		return nil, err
	}
	s := newStream(l, class, ns, true)
	l.mu.Lock()
	late := l.lanes[class].writer != nil
	l.lanes[class].opening = !late
	l.mu.Unlock()
	if late {
		ns.Reset()
		return nil, nil
	}
	if err := s.greet(); err != nil {
		return nil, err
	}
	if err := l.attach(s); err != nil {
		s.reset(err)
		return nil, err
	}
	return s, nil
}

// openFailed fails what waited for the stream, unless the peer has opened one meanwhile.
func (l *link) openFailed(class Class, err error) {
	log.Debugw("not reached", "peer", l.peer, "class", class, "err", err)
	l.mu.Lock()
	ln := &l.lanes[class]
	ln.opening = false
	var calls []*call
	if ln.writer == nil {
		ln.drop()
		ln.pause = min(max(2*ln.pause, retryMin), retryMax)
		ln.retryAt = time.Now().Add(ln.pause)
		// With no stream, every call of the class was waiting for this one.
		for id, c := range l.calls {
			if c.class == class {
				delete(l.calls, id)
				calls = append(calls, c)
			}
		}
	}
	l.mu.Unlock()
	endAll(calls, err)
}

// attach puts a greeted stream to use, in place of those the peer has lost. It returns errStale when we have lost one while this
// was greeted, errGone when the link was forgotten, errTwin, and ErrClosed.
func (l *link) attach(s *stream) error {
	l.mu.Lock()
	ln := &l.lanes[s.class]
	slot := &ln.accepted
	if s.mine {
		slot = &ln.opened
	}
	switch {
	case !l.o.up.Load():
		l.mu.Unlock()
		return ErrClosed
	case l.gone:
		l.mu.Unlock()
		return errGone
	case s.ours != l.session:
		l.mu.Unlock()
		return errStale
	case l.o.Refuses(l.peer, s.boot.Store): // found out since it was greeted
		l.mu.Unlock()
		return errTwin
	case !l.o.admitted(l.peer): // dismissed since then
		l.mu.Unlock()
		return errNotAdmitted
	}
	var lost []*stream
	var calls []*call
	if l.streams > 0 && (l.theirs != s.theirs || *slot != nil) {
		lost, calls = l.loseLocked()
	}
	*slot, l.theirs = s, s.theirs
	if s.mine {
		ln.opening = false
	}
	if l.streams++; l.streams == 1 {
		l.o.host.ConnManager().Protect(l.peer, l.o.connTag)
	}
	for i := range l.lanes {
		l.lanes[i].pause, l.lanes[i].retryAt = 0, time.Time{}
	}
	if ln.writer == nil && l.o.spawn(s.write) {
		ln.writer = s
	}
	l.mu.Unlock()
	for _, old := range lost {
		old.net.ResetWithError(network.StreamSupplanted)
	}
	if len(calls) > 0 {
		endAll(calls, fmt.Errorf("%w: %s: it has lost our streams", ErrLinkLost, l.peer))
	}
	l.o.nodes.add(l.peer)
	return nil
}

// loseLocked takes all streams out of use, with what waits to be written, and returns them for resetting, and the calls, which fail.
func (l *link) loseLocked() (lost []*stream, calls []*call) {
	for i := range l.lanes {
		ln := &l.lanes[i]
		for _, s := range []*stream{ln.opened, ln.accepted} {
			if s != nil {
				s.detached.Store(true)
				if s.idle {
					s.idle = false
					s.wake <- struct{}{} // has room: the writer sleeps
				}
				lost = append(lost, s)
			}
		}
		ln.opened, ln.accepted, ln.writer = nil, nil, nil
		ln.drop()
	}
	if l.streams > 0 {
		l.o.host.ConnManager().Unprotect(l.peer, l.o.connTag)
	}
	l.streams = 0
	l.silent.Store(0)
	for _, c := range l.calls {
		calls = append(calls, c)
	}
	clear(l.calls)
	return lost, calls
}

// shut resets everything for Close, after which nothing can be added.
func (l *link) shut() {
	l.mu.Lock()
	l.gone = true
	lost, calls := l.loseLocked()
	if l.timer != nil {
		l.timer.Stop()
	}
	l.mu.Unlock()
	for _, s := range lost {
		s.net.ResetWithError(network.StreamShutdown)
	}
	endAll(calls, ErrClosed)
}

func endAll(calls []*call, err error) {
	for _, c := range calls {
		c.end(nil, err)
	}
}

// linkUp ends the pause after failed attempts: the peer is there.
func (o *Overlay) linkUp(p peer.ID) {
	o.linksMu.RLock()
	l := o.links[p]
	o.linksMu.RUnlock()
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.lanes {
		l.lanes[i].retryAt = time.Time{}
	}
}
