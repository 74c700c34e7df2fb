package dht

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protowire"

	"latchkey/dht/pb"
	"latchkey/dht/twins"
	"latchkey/internal/automaton"
)

// stream is one libp2p stream of a link. One goroutine reads it; if it is its lane's writer, another writes it.
type stream struct {
	link     *link
	class    Class
	mine     bool // opened by us
	net      network.Stream
	reader   *bufio.Reader
	wake     chan struct{} // to the sleeping writer, when there is something to write or it is detached
	detached atomic.Bool   // set under the link's mu
	idle     bool          // the writer sleeps, and nobody writes in its place; guarded by the link's mu

	brief Request // the last one of a service that keeps none; of who reads

	// Of whoever writes in the place of the sleeping writer. The flags are guarded by the link's mu.
	prompt   bool // somebody does
	hurried  bool // and was told to let go
	patience stallWatch

	ours, theirs uint64 // sessions, of the hellos
	boot         Boot   // of the peer's hello
}

func newStream(l *link, class Class, ns network.Stream, mine bool) *stream {
	s := &stream{link: l, class: class, mine: mine, net: ns, reader: bufio.NewReader(ns), wake: make(chan struct{}, 1)}
	s.patience = stallWatch{limit: promptMax, late: s.hurry}
	return s
}

// accept runs on the host's goroutine for a stream that a peer opened.
func (o *Overlay) accept(ns network.Stream, class Class) {
	if !o.enter() {
		ns.Reset()
		return
	}
	defer o.tasks.Done()
	if o.turnAway(ns) {
		return
	}
	if s := o.greeted(ns, class); s != nil {
		s.read()
	}
}

// greeted greets a stream that a peer opened and puts it to use. It returns nil if nothing came of it.
func (o *Overlay) greeted(ns network.Stream, class Class) *stream {
	l, greeting := o.linkGreeting(ns.Conn().RemotePeer())
	defer o.forget(l) // if it holds nothing: no stream, or none any more
	defer l.greeted.Add(-1)
	s := newStream(l, class, ns, false)
	if greeting > greetedMax {
		s.reset(&badFrame{ReasonStreams, "without hello"})
		return nil
	}
	if s.greet() != nil {
		return nil
	}
	if err := l.attach(s); err != nil {
		s.reset(err) // the peer sees it, and tries again when it has something to say
		return nil
	}
	return s
}

// linkGreeting returns the link of a peer, which is not forgotten before the stream that is greeted on it is done with that, and how many
// streams are greeted on it, this one among them.
func (o *Overlay) linkGreeting(p peer.ID) (l *link, greeting int32) {
	for {
		l = o.link(p)
		greeting = l.greeted.Add(1)
		l.mu.Lock()
		gone := l.gone
		l.mu.Unlock()
		if !gone {
			return l, greeting
		}
		l.greeted.Add(-1) // it was forgotten meanwhile, when the peer's last stream ended
	}
}

// greet exchanges hellos: whoever opened the stream speaks first. On an error the stream has been reset, and counted if it was
// the peer's fault.
func (s *stream) greet() (err error) {
	o := s.link.o
	defer context.AfterFunc(o.ctx, func() { s.net.Reset() })()
	defer func() {
		if err != nil {
			s.refuse(err)
		}
	}()
	if err := s.net.SetDeadline(time.Now().Add(o.hello)); err != nil {
		return err
	}
	asked := automaton.Instant(0)
	if s.mine {
		if !o.admitted(s.link.peer) {
			return errNotAdmitted
		}
		asked = o.beats.now()
		if err := s.sendHello(); err != nil {
			return err
		}
	}
	body, err := readFrame(s.reader, helloFrameBytesMax, nil)
	if err != nil {
		return err
	}
	h, err := decodeHello(body, o.id)
	if err != nil {
		return err
	}
	s.theirs, s.boot = h.session, h.boot
	if o.helloCheck != nil {
		if err := o.helloCheck(s.link.peer, h.application); err != nil {
			return &badFrame{ReasonRefused, err.Error()}
		}
	}
	switch o.judge(s.link.peer, h.boot, asked) {
	case twins.Refuse:
		return errTwin
	case twins.Late:
		if s.mine {
			return errStale // a later one was heard of while we asked
		}
		o.question(s.link, s.net.Conn())
		return &badFrame{ReasonFormer, fmt.Sprint("start ", h.boot.Count)}
	}
	if s.mine {
		o.count.streamsOpened.Add(1)
	} else {
		if err := s.sendHello(); err != nil {
			return err
		}
		o.count.streamsAccepted.Add(1)
	}
	return s.net.SetDeadline(time.Time{})
}

func (s *stream) sendHello() error {
	var application []byte
	if make := s.link.o.helloMake; make != nil {
		application = make()
	}
	if len(application) > HelloBytesMax {
		return fmt.Errorf("our hello: %w: %d bytes", ErrTooLarge, len(application))
	}
	s.link.mu.Lock()
	s.ours = s.link.session
	s.link.mu.Unlock()
	body, err := encodeHello(s.link.o.id, hello{s.ours, s.link.o.own, application})
	if err != nil {
		return err
	}
	_, err = s.net.Write(append(protowire.AppendVarint(nil, uint64(len(body))), body...))
	return err
}

// refuse resets a stream that is not attached.
func (s *stream) refuse(err error) {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		err = &badFrame{ReasonNoHello, "in time"}
	}
	s.heed(err)
	s.reset(err)
}

// reset resets the stream; if err is about the peer's bytes, it is counted.
func (s *stream) reset(err error) {
	reason, bad := asBadFrame(err)
	if !bad {
		s.net.Reset()
		return
	}
	s.link.o.count.reset(reason)
	log.Debugw("stream reset", "peer", s.link.peer, "class", s.class, "err", err)
	code := network.StreamProtocolViolation
	switch reason {
	case ReasonRefused:
		code = network.StreamGated
	case ReasonFormer:
		code = network.StreamSupplanted
	case ReasonTwin:
		code = streamTwin
	}
	s.net.ResetWithError(code)
}

// close ends an attached stream and with it the others of the peer, once: its calls fail with [ErrLinkLost] because of err.
func (s *stream) close(err error) {
	l := s.link
	s.heed(err)
	l.mu.Lock()
	if s.detached.Load() {
		l.mu.Unlock()
		if reason, bad := asBadFrame(err); bad {
			l.o.count.reset(reason)
		}
		return
	}
	lost, calls := l.loseLocked()
	l.session = newSession()
	l.mu.Unlock()
	s.reset(err)
	for _, other := range lost {
		if other != s {
			other.net.Reset()
		}
	}
	if len(calls) > 0 {
		endAll(calls, fmt.Errorf("%w: %s: %w", ErrLinkLost, l.peer, err))
	}
	l.o.forget(l)
}

// crowdedLocked reports whether others are likely to send soon after those whose messages are in a batch: it holds several, or calls
// that are not in it await answers. Going by the batch alone is not enough. Callers whose answers came in one frame follow one another
// on one processor, the writer runs between them, and as long as it finds one message at a time it would never yield to find more.
func (l *link) crowdedLocked(messages int) bool { return messages > 1 || len(l.calls) > messages }

// mayPrompt takes note of a frame of the peer. When it brings one message, the peers talk by turns, and what we say next goes out at
// once; when it brings more, others are about to speak, whose messages the writer gathers.
func (l *link) mayPrompt(alone bool) {
	next := int32(0)
	if alone {
		next = lullMax
	}
	if l.lull.Load() != next {
		l.lull.Store(next)
	}
}

// stallWatch notices a write that does not end. Its timer is set once in a while, and not for each write, which would cost a small write a
// tenth of its time: so a write is found to be late after one to two times the limit.
type stallWatch struct {
	limit time.Duration
	late  func()

	writes atomic.Uint64 // begun and ended; odd while one is under way
	set    atomic.Bool   // the timer is
	timer  *time.Timer
	seen   uint64 // writes, when the timer was set
}

func (w *stallWatch) begin() {
	w.writes.Add(1)
	w.arm()
}

func (w *stallWatch) end() { w.writes.Add(1) }

// arm sets the timer unless it is set. Who writes and who finds that the timer has run out may both do it: each looks at what the other
// has changed after it has changed its own, so that no write goes unwatched.
func (w *stallWatch) arm() {
	if w.set.Load() || !w.set.CompareAndSwap(false, true) {
		return
	}
	if w.seen = w.writes.Load(); w.timer == nil {
		w.timer = time.AfterFunc(w.limit, w.expired)
	} else {
		w.timer.Reset(w.limit)
	}
}

func (w *stallWatch) expired() {
	if now := w.writes.Load(); now%2 == 1 && now == w.seen {
		w.late()
		return
	}
	w.set.Store(false)
	if w.writes.Load()%2 == 1 {
		w.arm()
	}
}

// again has it watch the writes to come, after it has found one late.
func (w *stallWatch) again() { w.set.Store(false) }

// stop ends the watch, after the last write.
func (w *stallWatch) stop() {
	w.writes.Store(0) // nothing is late any more
	if w.set.Swap(true) {
		w.timer.Stop()
	}
}

// promptLocked writes the frame that is queued, in place of the writer, which sleeps and has been taken out of idle. It lets go of the
// link's mu meanwhile. A peer that does not read holds it up for twice [promptMax] at most: what is left then, or what fails, is the
// writer's, as is all that was queued in the meantime, and for [promptPause] all that comes.
func (s *stream) promptLocked() {
	l, ln := s.link, &s.link.lanes[s.class]
	messages, size, f := ln.messages, ln.bytes, ln.frames[0]
	clear(ln.frames)
	ln.frames, s.prompt = ln.frames[:0], true
	l.mu.Unlock()
	s.patience.begin()
	n, err := s.net.Write(f.bytes())
	s.patience.end()
	l.mu.Lock()
	s.prompt = false
	if s.hurried {
		s.hurried, l.heldUp = false, time.Now()
		s.patience.again()
		_ = s.net.SetWriteDeadline(time.Time{}) // if that fails, so will the write
	}
	if err == nil {
		s.wrote(f)
	}
	switch {
	case ln.writer != s: // lost meanwhile, and with it what was queued; the writer finds it out
	case err != nil:
		f.sent = n
		ln.frames = slices.Insert(ln.frames, 0, f)
	default:
		ln.messages -= messages
		ln.bytes -= size
	}
	if ln.writer != s || len(ln.frames) > 0 {
		s.wake <- struct{}{} // has room: the writer sleeps
	} else {
		s.idle = true
	}
}

// hurry has whoever writes in the writer's place give it up.
func (s *stream) hurry() {
	s.link.mu.Lock()
	defer s.link.mu.Unlock()
	if !s.prompt { // it has just ended
		s.patience.again()
		return
	}
	s.hurried = true
	_ = s.net.SetWriteDeadline(time.Unix(1, 0))
}

// wrote counts a frame that is written, and gives its storage back.
func (s *stream) wrote(f *frame) {
	o := s.link.o
	o.count.framesSent.Add(1)
	o.count.messagesSent.Add(uint64(f.items))
	o.count.bytesSent.Add(uint64(len(f.b) - frameRoom))
	f.free()
}

// write is the write loop of the lane's writer. It takes all that waits as one batch and sleeps when nothing does.
func (s *stream) write() {
	l, o := s.link, s.link.o
	ln := &l.lanes[s.class]
	stall := stallWatch{limit: o.stall, late: func() { s.close(&badFrame{ReasonStalled, o.stall.String()}) }}
	defer stall.stop()
	defer s.patience.stop()
	var batch []*frame
	var messages, size int // of the batch, as the lane counts them
	crowded := false       // several callers were at it when the last batch was taken
	for {
		l.mu.Lock()
		if ln.writer != s {
			l.mu.Unlock()
			return
		}
		ln.messages -= messages
		ln.bytes -= size
		messages, size = ln.messages, ln.bytes
		batch, ln.frames = ln.frames, batch[:0]
		s.idle = len(batch) == 0
		if !s.idle {
			crowded = l.crowdedLocked(messages)
		}
		l.mu.Unlock()
		if len(batch) == 0 {
			<-s.wake
			// Others who are about to send get in before the batch is taken: with many callers this makes one frame of a
			// score of messages and quadruples throughput. A lone caller would only wait for strangers' work.
			if crowded {
				runtime.Gosched()
			}
			continue
		}
		stall.begin()
		for i, f := range batch {
			if _, err := s.net.Write(f.bytes()[f.sent:]); err != nil {
				s.close(err)
				return
			}
			s.wrote(f)
			batch[i] = nil
		}
		stall.end()
	}
}

// read reads an attached stream to its end.
func (s *stream) read() {
	s.close(s.readAll())
}

func (s *stream) readAll() error {
	o := s.link.o
	frameMax := controlFrameBytesMax
	if s.class == Bulk {
		frameMax = bulkFrameBytesMax
	}
	joined := assembler{budget: &s.link.budget, stream: s}
	defer joined.drop()
	var buf []byte
	var items []item
	for {
		var err error
		if buf, err = readFrame(s.reader, frameMax, buf); err != nil {
			return joined.late(err)
		}
		if items, err = decodeFrame(buf, s.class, items); err != nil {
			return err
		}
		if heard := &s.link.heard; !heard.Load() { // writing it each time would cost more
			heard.Store(true)
			s.link.silent.Store(0)
		}
		o.count.framesReceived.Add(1)
		o.count.bytesReceived.Add(uint64(len(buf)))
		alone := len(items) == 1 && s.reader.Buffered() == 0
		if s.class == Control {
			s.link.mayPrompt(alone)
		}
		for i := range items {
			it := &items[i]
			under := joined.begun.kind != 0
			whole, err := joined.add(it)
			if err == nil && under != (joined.begun.kind != 0) {
				err = joined.limit(o.unfinished)
			}
			if err != nil {
				return err
			}
			if whole {
				o.count.messagesReceived.Add(1)
				s.dispatch(it, alone)
			}
			if s.detached.Load() {
				return net.ErrClosed
			}
			if i%itemsAtOnce == itemsAtOnce-1 {
				runtime.Gosched()
				s.link.pause()
			}
		}
		s.link.pause()
		// A peer that has said more lets the others' readers go first. A flood would keep the processor otherwise, until the runtime takes
		// it away, which is after ten milliseconds.
		if s.reader.Buffered() > 0 {
			runtime.Gosched()
		}
	}
}

// dispatch hands a whole message on. Its payload aliases the frame unless it was joined from pieces.
func (s *stream) dispatch(it *item, alone bool) {
	o := s.link.o
	data := it.payload
	var svc *service
	answer := it.kind == pb.Kind_KIND_REPLY || it.kind == pb.Kind_KIND_ERROR
	if !answer {
		if svc = o.handlers[string(it.service)]; svc != nil && svc.brief && it.id == 0 {
			s.brief = Request{Service: svc.name, Key: it.key, Data: data, link: s.link, stream: s, From: s.link.peer, alone: alone}
			svc.handler(&s.brief)
			return
		}
	}
	if it.total == 0 {
		data = append([]byte(nil), data...)
	}
	if answer {
		s.link.complete(it, data)
	} else {
		o.serve(s.link, s, it, svc, data, alone)
	}
}

// readFrame reads one frame into buf, or into a larger buffer. io.EOF means that the stream ended between frames; errors about
// the bytes are *badFrame.
func readFrame(r *bufio.Reader, bytesMax int, buf []byte) ([]byte, error) {
	length := uint64(0)
	for shift := 0; ; shift += 7 {
		b, err := r.ReadByte()
		if err != nil {
			return buf, truncated(err, shift > 0)
		}
		length |= uint64(b&0x7f) << shift
		if length > uint64(bytesMax) || shift > 21 {
			return buf, &badFrame{ReasonOversize, fmt.Sprintf("more than %d bytes", bytesMax)}
		}
		if b < 0x80 {
			break
		}
	}
	if length == 0 {
		return buf, malformed("empty frame")
	}
	if uint64(cap(buf)) < length {
		buf = make([]byte, length)
	}
	buf = buf[:length]
	_, err := io.ReadFull(r, buf)
	return buf, truncated(err, true)
}

// truncated makes an end of the stream inside a frame the peer's fault.
func truncated(err error, inside bool) error {
	if inside && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) {
		return &badFrame{ReasonTruncated, "the stream ended inside a frame"}
	}
	return err
}
