package dht

import (
	"maps"
	"sync"
	"sync/atomic"
)

// Reason says why a stream was reset.
type Reason string

// The reasons of the message layer itself. [Request.Misbehaved] adds those of the services.
const (
	ReasonTruncated   Reason = "truncated frame"
	ReasonOversize    Reason = "oversize frame"
	ReasonMalformed   Reason = "malformed frame"
	ReasonKind        Reason = "unknown kind"
	ReasonPiece       Reason = "bad piece"
	ReasonBudget      Reason = "reassembly budget"
	ReasonNoHello     Reason = "no hello"
	ReasonSecondHello Reason = "second hello"
	ReasonVersion     Reason = "other version"
	ReasonOverlay     Reason = "other overlay"
	ReasonRefused     Reason = "hello refused"
	ReasonStreams     Reason = "too many streams"
	ReasonStalled     Reason = "reads nothing"
	ReasonHeartbeat   Reason = "bad heartbeat"
	ReasonTwin        Reason = "store in two places"
	ReasonFormer      Reason = "former start"
	ReasonUnfinished  Reason = "unfinished message"
	reasonOther       Reason = "other"
)

// reasonsMax bounds the reasons counted apart; further ones count as "other". Reasons are constants in code, so reaching it
// is a mistake of a service.
const reasonsMax = 64

// Stats counts what an overlay did since it was made. Messages are counted one by one, batched or not; those to oneself are
// not counted.
type Stats struct {
	StreamsOpened   uint64 // by us, hellos exchanged
	StreamsAccepted uint64 // opened by the other side, hellos exchanged
	StreamsReset    map[Reason]uint64

	MessagesSent, MessagesReceived uint64
	FramesSent, FramesReceived     uint64
	BytesSent, BytesReceived       uint64 // of frames without their prefixes

	RawSent, RawReceived uint64 // bytes of raw streams; these are counted among the streams too, when their hellos are exchanged

	Lookups       uint64 // Kademlia look-ups begun for replica sets
	LookupsFailed uint64
	LookupsShared uint64 // askers who joined a look-up that was under way
	SelfLookups   uint64 // those that keep the neighbour set

	OutboxFull     uint64 // messages and replies refused by a full outbox
	UnknownService uint64 // messages for a service we do not have
	Busy           uint64 // requests refused because too many were in service
	LateReplies    uint64 // answers nobody waited for any more

	Suspicions uint64 // of watched peers, right or wrong
	Renewed    uint64 // times that the connections to a silent peer were closed, which was reached beside them
	Alarms     uint64 // that a store runs in two places, or that two processes use one identity
}

type counters struct {
	streamsOpened, streamsAccepted                             atomic.Uint64
	messagesSent, messagesReceived, framesSent, framesReceived atomic.Uint64
	bytesSent, bytesReceived                                   atomic.Uint64
	lookups, lookupsFailed, lookupsShared, selfLookups         atomic.Uint64
	outboxFull, unknownService, busy, lateReplies              atomic.Uint64
	suspicions, renewed, alarms                                atomic.Uint64
	rawSent, rawReceived                                       atomic.Uint64

	mu     sync.Mutex
	resets map[Reason]uint64
}

func (c *counters) reset(r Reason) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.resets[r]; !ok && len(c.resets) >= reasonsMax {
		r = reasonOther
	}
	c.resets[r]++
}

// Stats returns the counts so far. Safe for concurrent use; the counts are read one after another.
func (o *Overlay) Stats() Stats {
	c := &o.count
	c.mu.Lock()
	resets := maps.Clone(c.resets)
	c.mu.Unlock()
	return Stats{
		StreamsOpened: c.streamsOpened.Load(), StreamsAccepted: c.streamsAccepted.Load(), StreamsReset: resets,
		MessagesSent: c.messagesSent.Load(), MessagesReceived: c.messagesReceived.Load(),
		FramesSent: c.framesSent.Load(), FramesReceived: c.framesReceived.Load(),
		BytesSent: c.bytesSent.Load(), BytesReceived: c.bytesReceived.Load(),
		RawSent: c.rawSent.Load(), RawReceived: c.rawReceived.Load(),
		Lookups: c.lookups.Load(), LookupsFailed: c.lookupsFailed.Load(), LookupsShared: c.lookupsShared.Load(),
		SelfLookups: c.selfLookups.Load(),
		OutboxFull:  c.outboxFull.Load(), UnknownService: c.unknownService.Load(), Busy: c.busy.Load(),
		LateReplies: c.lateReplies.Load(),
		Suspicions:  c.suspicions.Load(), Renewed: c.renewed.Load(), Alarms: c.alarms.Load(),
	}
}
