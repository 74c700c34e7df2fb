package dht

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht/keyspace"
	"latchkey/dht/pb"
)

// Class is which of the two streams between a pair of peers a message takes. Size decides: more than [ControlBytesMax]
// goes by bulk, so that small messages never wait behind large ones.
type Class uint8

// The classes.
const (
	Control Class = iota
	Bulk
	classes = 2
)

// String returns "control" or "bulk".
func (c Class) String() string {
	if c == Bulk {
		return "bulk"
	}
	return "control"
}

func classOf(bytes int) Class {
	if bytes > ControlBytesMax {
		return Bulk
	}
	return Control
}

// Handler serves one service. It is called on the goroutine that reads the stream, in arrival order, and must not block: what
// takes time is handed to another goroutine, which answers with [Request.Reply]. Handlers of messages from different peers,
// and of the two classes, run at the same time.
type Handler func(*Request)

// Request is one message that arrived: a request, which must be answered once by Reply or Fail, or a one-way message, for which
// they do nothing. A request never answered keeps its place among the [requestsMax] its peer may have in service.
type Request struct {
	From    peer.ID // authenticated by libp2p
	Key     keyspace.Key
	Service string
	Data    []byte // belongs to the handler; of [Overlay.HandleBrief], until it returns

	id       uint64 // 0: one-way
	alone    bool
	size     int // of Data, which the handler may change
	link     *link
	stream   *stream // nil: from ourselves
	answered atomic.Bool
}

// Node returns the point of the key space of the peer that it came from.
func (r *Request) Node() keyspace.NodeID {
	if r.link == nil {
		return NodeIDOf(r.From)
	}
	return r.link.node
}

// OneWay reports whether nobody awaits an answer.
func (r *Request) OneWay() bool { return r.id == 0 }

// Alone reports whether nothing else had come from the peer together with this. Who is sent one thing at a time waits for each; of many
// that come together, those who can do better handle several at once.
func (r *Request) Alone() bool { return r.alone }

// Reply answers with data, which it copies. It may be called from any goroutine, later; a peer that does not read holds it up for ten
// milliseconds at most, and hardly ever. A second answer is ignored. The answer is lost if the peer's stream is gone or its outbox is full; its caller then fails or times out.
func (r *Request) Reply(data []byte) {
	if len(data) > MessageBytesMax {
		r.Fail(fmt.Errorf("reply: %w", ErrTooLarge))
		return
	}
	r.answer(&item{kind: pb.Kind_KIND_REPLY, payload: data})
}

// Fail answers with err's text; the caller gets a [*RemoteError]. Otherwise it is as Reply.
func (r *Request) Fail(err error) {
	r.answer(&item{kind: pb.Kind_KIND_ERROR, payload: errorText(err)})
}

func errorText(err error) []byte {
	text := strings.ToValidUTF8(err.Error(), "?")
	return []byte(strings.ToValidUTF8(text[:min(len(text), errorTextBytesMax)], ""))
}

func (r *Request) answer(it *item) {
	if r.id == 0 || r.answered.Swap(true) {
		return
	}
	r.link.served(r.size)
	it.id = r.id
	o := r.link.o
	switch {
	case r.stream == nil:
		o.local.answer(it)
	case r.stream.detached.Load():
		// The asker has given up on this request, and a new stream may belong to a new life of it.
	default:
		if err := o.post(r.From, it, nil); err != nil {
			if errors.Is(err, ErrOutboxFull) {
				o.count.outboxFull.Add(1)
				r.Refused()
			}
			log.Debugw("answer dropped", "peer", r.From, "service", r.Service, "err", err)
		}
	}
}

// Misbehaved says that the message is not one a correct peer sends. It is counted under reason, which must be a constant, and
// the stream it came by is reset; nothing else happens. The request needs no answer after this.
func (r *Request) Misbehaved(reason string) {
	if r.id != 0 && !r.answered.Swap(true) {
		r.link.served(r.size)
	}
	if r.stream == nil {
		r.link.o.count.reset(Reason(reason))
		log.Errorw("our own message was refused", "service", r.Service, "reason", reason)
		return
	}
	r.stream.close(&badFrame{Reason(reason), "service " + r.Service})
}

// call is one request that awaits its answer. Whoever takes it out of its link's calls ends it, once.
type call struct {
	service string
	class   Class
	timeout time.Duration              // of Go
	due     time.Time                  // of Go; set under the link's mu
	done    func(data []byte, e error) // of Go
	answer  chan answer                // of Call
}

type answer struct {
	data []byte
	err  error
}

func (c *call) end(data []byte, err error) {
	if c.done == nil {
		c.answer <- answer{data, err} // room for one, and one is sent
		return
	}
	c.done(data, err)
}

// calls to reuse, each with its channel.
var callPool = sync.Pool{New: func() any { return &call{answer: make(chan answer, 1)} }}

// Send sends a one-way message to the entity key of a service at a peer: the paper's send(n, k, s, m). It copies msg, queues
// it and returns, where the peers talk by turns after it has tried for ten milliseconds at most to write it. A nil error means that the message was queued; it may still be lost with the link. Errors: [ErrOutboxFull],
// [ErrUnreachable] (an attempt to reach the peer failed a moment ago), [ErrTooLarge], [ErrService], [ErrClosed].
func (o *Overlay) Send(to peer.ID, key keyspace.Key, service string, msg []byte) error {
	return o.submit(to, &item{kind: pb.Kind_KIND_ONE_WAY, key: key, payload: msg}, service, nil)
}

// Call sends a request and waits for its answer, which belongs to the caller. It blocks until the answer, the end of ctx
// (then the error is context.Cause(ctx) and the peer may serve the request yet), the loss of the link, or the suspicion of a watched
// peer; give ctx a deadline, as a frozen peer's link can take half a minute to be lost. Errors: those of Send, [ErrLinkLost],
// [ErrSuspected], [*RemoteError], [ErrBusy], [ErrUnknownService].
func (o *Overlay) Call(ctx context.Context, to peer.ID, key keyspace.Key, service string, msg []byte) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	c := callPool.Get().(*call)
	c.service, c.class = service, classOf(len(msg))
	it := &item{kind: pb.Kind_KIND_REQUEST, id: o.ids.Add(1), key: key, payload: msg}
	if err := o.submit(to, it, service, c); err != nil {
		callPool.Put(c)
		return nil, err
	}
	var a answer
	select {
	case a = <-c.answer:
	case <-ctx.Done():
		if o.abandon(to, it.id) {
			a.err = context.Cause(ctx)
		} else {
			a = <-c.answer // it is being ended by another
		}
	}
	callPool.Put(c)
	return a.data, a.err
}

// Go is Call without waiting: done is called exactly once, on some goroutine of the overlay and never before Go has returned
// control of the caller's stack, with the answer or an error: those of Call, or [ErrTimeout]. It must not block. A timeout of 0
// or less means [CallTimeoutDefault].
func (o *Overlay) Go(to peer.ID, key keyspace.Key, service string, msg []byte, timeout time.Duration, done func(reply []byte, err error)) {
	if timeout <= 0 {
		timeout = CallTimeoutDefault
	}
	c := &call{service: service, class: classOf(len(msg)), timeout: timeout, done: done}
	it := &item{kind: pb.Kind_KIND_REQUEST, id: o.ids.Add(1), key: key, payload: msg}
	if err := o.submit(to, it, service, c); err != nil {
		go done(nil, err) // a closed overlay has no goroutine to offer
	}
}

// submit checks a message of ours and queues it, to the network or to ourselves.
func (o *Overlay) submit(to peer.ID, it *item, service string, c *call) error {
	if err := checkService(service); err != nil {
		return err
	}
	if len(it.payload) > MessageBytesMax {
		return fmt.Errorf("%w: %d bytes", ErrTooLarge, len(it.payload))
	}
	var err error
	if to == o.self {
		err = o.local.post(it, service, c)
	} else {
		it.service = []byte(service)
		err = o.post(to, it, c)
	}
	if errors.Is(err, ErrOutboxFull) {
		o.count.outboxFull.Add(1)
	}
	return err
}

// post queues an item, and with it the call that awaits its answer.
func (o *Overlay) post(to peer.ID, it *item, c *call) error {
	for o.up.Load() {
		if err := o.link(to).post(it, c); err != errGone {
			return err
		}
	}
	return ErrClosed
}

// abandon takes a call out; false means that another has.
func (o *Overlay) abandon(to peer.ID, id uint64) bool {
	l := o.local.link
	if to != o.self {
		o.linksMu.RLock()
		l = o.links[to]
		o.linksMu.RUnlock()
	}
	return l != nil && l.take(id) != nil
}

// serve hands a whole message to its service, with word of whether it came alone. It runs on the goroutine that reads the stream, or on the local one.
func (o *Overlay) serve(l *link, s *stream, it *item, svc *service, data []byte, alone bool) {
	r := &Request{Key: it.key, Data: data, id: it.id, link: l, stream: s, From: l.peer, alone: alone}
	if svc == nil {
		o.count.unknownService.Add(1)
		log.Debugw("unknown service", "peer", l.peer, "service", string(it.service))
	}
	inService, bytes := int32(0), int64(0)
	if it.id != 0 { // until the answer
		r.size = len(data)
		inService, bytes = l.serving.Add(1), l.servingBytes.Add(int64(len(data)))
	}
	if svc == nil {
		r.answer(&item{kind: pb.Kind_KIND_ERROR, cause: pb.Cause_CAUSE_UNKNOWN_SERVICE})
		return
	}
	r.Service = svc.name
	if inService > requestsMax || inService > 1 && bytes > requestBytesMax {
		o.count.busy.Add(1)
		r.Refused()
		r.answer(&item{kind: pb.Kind_KIND_ERROR, cause: pb.Cause_CAUSE_BUSY})
		return
	}
	svc.handler(r)
}

// served counts a request of the peer out.
func (l *link) served(bytes int) {
	l.serving.Add(-1)
	l.servingBytes.Add(-int64(bytes))
}

// answerError turns an error item into the caller's error.
func (l *link) answerError(it *item, service string) error {
	switch it.cause {
	case pb.Cause_CAUSE_UNKNOWN_SERVICE:
		return fmt.Errorf("%w: %s at %s", ErrUnknownService, service, l.peer)
	case pb.Cause_CAUSE_BUSY:
		return fmt.Errorf("%w: %s", ErrBusy, l.peer)
	}
	return &RemoteError{Peer: l.peer, Service: service, Text: string(it.payload)}
}
