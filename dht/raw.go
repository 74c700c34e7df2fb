package dht

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// Limits of raw streams, for each name. A stream over a limit is reset and counted as [ReasonStreams].
const (
	// rawPerPeerMax bounds the streams that one peer has open here: two in use, two that it has given up and we have not noticed yet.
	rawPerPeerMax = 4
	// rawTotalMax bounds those of all peers.
	rawTotalMax = 128
)

// Stream is a byte stream of its own between two peers of the overlay, for what is too large or too slow to share a kept-open one.
// It has no frames and no retries, and its loss tells nothing about other streams. One goroutine may read while another writes;
// Close, Reset and the deadlines may be called from any.
type Stream struct {
	o    *Overlay
	s    *stream
	over atomic.Bool // closed or reset by us
	stop func() bool // of the reset at the end of the overlay
}

// Peer returns the other end, authenticated by libp2p.
func (s *Stream) Peer() peer.ID { return s.s.link.peer }

// Read reads what the peer has written. The end of the stream is io.EOF; one that was cut has another error.
func (s *Stream) Read(b []byte) (int, error) {
	if s.o.Refuses(s.Peer(), s.s.boot.Store) {
		s.s.net.ResetWithError(streamTwin)
		return 0, errTwin
	}
	if !s.o.admitted(s.Peer()) {
		s.s.net.ResetWithError(network.StreamGated)
		return 0, errNotAdmitted
	}
	n, err := s.s.reader.Read(b)
	s.o.count.rawReceived.Add(uint64(n))
	return n, err
}

// Write blocks until the peer's window has room for b. Bytes that were written may still be lost with the stream.
func (s *Stream) Write(b []byte) (int, error) {
	n, err := s.s.net.Write(b)
	s.o.count.rawSent.Add(uint64(n))
	return n, err
}

// SetReadDeadline and SetWriteDeadline bound reads and writes from now on; the zero time is no bound.
func (s *Stream) SetReadDeadline(t time.Time) error { return s.s.net.SetReadDeadline(t) }

// SetWriteDeadline: see [Stream.SetReadDeadline].
func (s *Stream) SetWriteDeadline(t time.Time) error { return s.s.net.SetWriteDeadline(t) }

// CloseWrite says that nothing more will be written.
func (s *Stream) CloseWrite() error { return s.s.net.CloseWrite() }

// Close ends the stream for both directions. What was written is still delivered.
func (s *Stream) Close() error {
	s.end()
	return s.s.net.Close()
}

// Reset gives the stream up; both ends fail. It does nothing after Close.
func (s *Stream) Reset() {
	if s.end() {
		s.s.net.Reset()
	}
}

// Misbehaved resets the stream because of what the peer sent, and counts it under reason, which must be a constant.
func (s *Stream) Misbehaved(reason, detail string) {
	if s.end() {
		s.s.reset(&badFrame{Reason(reason), detail})
	}
}

// end is true the first time.
func (s *Stream) end() bool {
	s.stop()
	return !s.over.Swap(true)
}

func (o *Overlay) rawStream(s *stream) *Stream {
	r := &Stream{o: o, s: s}
	r.stop = context.AfterFunc(o.ctx, func() {
		r.over.Store(true)
		s.net.ResetWithError(network.StreamShutdown)
	})
	return r
}

// rawService serves the streams of one name.
type rawService struct {
	id      protocol.ID
	handler func(*Stream)

	mu    sync.Mutex
	peers map[peer.ID]int // streams of each
	total int
}

func (r *rawService) enter(p peer.ID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.total >= rawTotalMax || r.peers[p] >= rawPerPeerMax {
		return false
	}
	r.total++
	r.peers[p]++
	return true
}

func (r *rawService) leave(p peer.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.total--
	if r.peers[p]--; r.peers[p] == 0 {
		delete(r.peers, p)
	}
}

// rawProtocol returns the protocol id of the streams of a name.
func (o *Overlay) rawProtocol(name string) protocol.ID {
	return protocol.ID(o.connTag + "/stream/" + name + "/1.0.0")
}

// HandleStream registers the handler of raw streams of a name. It is called on a goroutine for each stream that a peer has opened,
// once both hellos were accepted, and the stream is reset when it returns unless it was closed; [Overlay.Close] resets it and waits for
// the handler. At most [rawPerPeerMax] streams of one peer and [rawTotalMax] of all are served at a time. It must be called before
// [Overlay.Start], once for each name; anything else is a mistake of the program and panics.
func (o *Overlay) HandleStream(name string, h func(*Stream)) {
	o.life.Lock()
	defer o.life.Unlock()
	if err := checkService(name); err != nil || o.started || o.raw[name] != nil {
		panic(fmt.Sprintf("dht: HandleStream(%q): started %v, taken %v, %v", name, o.started, o.raw[name] != nil, err))
	}
	o.raw[name] = &rawService{id: o.rawProtocol(name), handler: h, peers: make(map[peer.ID]int)}
}

// OpenStream opens a raw stream to a peer that handles the name, and exchanges hellos. It blocks for the dial and a round trip, ten
// seconds at most; ctx ends the wait, not the stream. The caller ends the stream by Close or Reset. Errors: [ErrUnreachable], among
// others for a peer that has no such handler or that refuses us, [ErrService], [ErrClosed], context.Cause(ctx).
func (o *Overlay) OpenStream(ctx context.Context, to peer.ID, name string) (*Stream, error) {
	if err := checkService(name); err != nil {
		return nil, err
	}
	if !o.enter() {
		return nil, ErrClosed
	}
	defer o.tasks.Done()
	if !o.up.Load() {
		return nil, ErrClosed
	}
	l := o.link(to)
	defer o.forget(l)
	for tries := 1; ; tries++ {
		s, err := o.openRaw(ctx, l, o.rawProtocol(name))
		switch {
		case err == nil:
			return o.rawStream(s), nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case o.ctx.Err() != nil:
			return nil, ErrClosed
		case crossed(err) && tries < openTriesMax && l.waitOut():
		default:
			return nil, fmt.Errorf("%w: %s, stream %s: %w", ErrUnreachable, to, name, err)
		}
	}
}

func (o *Overlay) openRaw(ctx context.Context, l *link, id protocol.ID) (*stream, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	defer context.AfterFunc(o.ctx, cancel)()
	ns, err := o.host.NewStream(ctx, l.peer, id)
	if err != nil {
		return nil, err
	}
	s := newStream(l, Bulk, ns, true)
	stop := context.AfterFunc(ctx, func() { ns.Reset() })
	err = s.greet()
	if !stop() && err == nil { // it was just reset
		err = ctx.Err()
	}
	return s, err
}

// acceptRaw runs on the host's goroutine for a raw stream that a peer opened.
func (o *Overlay) acceptRaw(ns network.Stream, r *rawService) {
	if !o.enter() {
		ns.Reset()
		return
	}
	defer o.tasks.Done()
	if o.turnAway(ns) {
		return
	}
	p := ns.Conn().RemotePeer()
	if !r.enter(p) {
		o.count.reset(ReasonStreams)
		ns.ResetWithError(network.StreamResourceLimitExceeded)
		return
	}
	defer r.leave(p)
	l := o.link(p)
	s := newStream(l, Bulk, ns, false)
	err := s.greet()
	o.forget(l)
	if err != nil {
		return
	}
	raw := o.rawStream(s)
	defer raw.Reset()
	r.handler(raw)
}

// Stalled reports whether err is the end of a deadline of a [Stream].
func Stalled(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}
