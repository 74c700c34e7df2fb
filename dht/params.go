package dht

import "time"

// Limits of the message layer. Both ends of a stream must agree on the frame bounds; they change with the protocol version.
const (
	// protocolVersion is sent in the hello; peers of another version are refused.
	// 2: replicas of locks know shared ones, semaphores, lock delays and breaks, which one of version 1 would carry out otherwise.
	protocolVersion = 2

	// controlFrameBytesMax and bulkFrameBytesMax bound one frame without its length prefix (architecture.md section 6). A
	// longer one resets the stream.
	controlFrameBytesMax = 128 << 10
	bulkFrameBytesMax    = 1<<20 + 64<<10

	// itemsPerFrameMax bounds the batch in one frame, so that a frame of empty items cannot cost more than it weighs. The
	// writer begins another frame.
	itemsPerFrameMax = 1024

	// itemsAtOnce is how many of a frame are handled before the goroutines of others get a turn. One frame of 64 callers is handled at once.
	itemsAtOnce = 64

	// itemOverheadMax is more than any item's encoding takes beside its payload.
	itemOverheadMax = 256

	// ControlBytesMax is the largest message that goes by the control stream. A larger one goes by bulk.
	ControlBytesMax = controlFrameBytesMax - itemOverheadMax

	// pieceBytesMax is how much of a larger message goes into one bulk frame.
	pieceBytesMax = 1 << 20

	// MessageBytesMax is the largest message. Sending a larger one fails with [ErrTooLarge]; a peer that announces a larger
	// one has its stream reset.
	MessageBytesMax = 64 << 20

	// reassemblyBytesMax bounds what one peer's half-received messages may announce together: one largest message. A peer
	// that keeps to the protocol writes one message at a time, so only another kind of peer reaches it; its stream is reset.
	// Memory is taken as pieces arrive, not when they are announced.
	reassemblyBytesMax = MessageBytesMax

	// ServiceNameBytesMax bounds a service's name.
	ServiceNameBytesMax = 64

	// errorTextBytesMax bounds the text of an error reply; a longer text is cut by the sender.
	errorTextBytesMax = 1024

	// HelloBytesMax bounds the application's part of the hello; helloFrameBytesMax the frame that carries it.
	HelloBytesMax      = 4 << 10
	helloFrameBytesMax = HelloBytesMax + 256
)

// outboxMessagesMax and outboxBytesMax bound what waits to be written to one peer, per class. A full outbox refuses the
// message with [ErrOutboxFull] and keeps what it has: the caller knows which of its messages are worth repeating. Answers may
// take [requestsMax] messages and as many bytes more, so that a flood of messages does not starve those who wait for an answer;
// one that finds even that full is dropped and counted, and its asker times out. One largest message always fits an empty bulk
// outbox.
var (
	outboxMessagesMax = [classes]int{Control: 4096, Bulk: 256}
	outboxBytesMax    = [classes]int{Control: 4 << 20, Bulk: MessageBytesMax + 1<<20}
)

// Limits per peer.
const (
	// callsMax bounds the calls to one peer that await an answer; one more fails with [ErrOutboxFull].
	callsMax = 4096

	// requestsMax bounds the requests of one peer that are in service here; one more is answered with [ErrBusy].
	requestsMax = 1024

	// requestBytesMax bounds what they weigh together; a request beyond it is answered with [ErrBusy] too. One alone may have any
	// size.
	requestBytesMax = 16 << 20

	// greetedMax bounds the streams of one peer that have not exchanged hellos yet; one more is reset. Of the others there is
	// one from each side and class, since a new one replaces the former.
	greetedMax = 8

	// peersIdleMax is how many peers we remember a failed attempt for before those without a stream are forgotten.
	peersIdleMax = 1024
)

// Times of the message layer.
const (
	// openTimeout bounds dialling a peer and opening a stream, and then the exchange of hellos, each.
	openTimeout = 5 * time.Second

	// After an attempt failed, sending to that peer fails at once for a pause that doubles from retryMin to retryMax. A
	// connection to the peer ends the pause.
	retryMin = 20 * time.Millisecond
	retryMax = time.Second

	// Two peers that dial each other at the same moment may both fail: such a dial is tried again, openTriesMax times in all, after
	// a pause drawn up to crossPauseMax.
	openTriesMax  = 3
	crossPauseMax = 20 * time.Millisecond

	// promptMax is how long whoever posts a message may have to write it; held up for longer, though never for twice that time, it leaves
	// the rest to the writer. A peer whose messages come one at a time is sent lullMax so for each: an answer, and what follows from it.
	// For promptPause after it has held somebody up nobody writes to it in the writer's place, so that one that reads just enough to end each
	// write costs the others, who may wait for who posts, next to nothing.
	promptMax   = 5 * time.Millisecond
	promptPause = 10 * time.Second
	lullMax     = 2

	// writeStallMax is how long one write may wait for a peer that does not read. The stream is given up before twice that time is over.
	writeStallMax = 15 * time.Second
	// silentFor is how long calls to a peer are refused after the end of a watch that suspected it.
	silentFor = time.Second

	// CallTimeoutDefault is the timeout of [Overlay.Go] when none is given.
	CallTimeoutDefault = 10 * time.Second
)

// Look-ups and membership.
const (
	// replicaSetsMax bounds the cache of replica sets; the one not asked for longest is dropped.
	replicaSetsMax = 4096

	// ReplicaSetLifetime is how long a looked-up replica set is used without looking again. Events that we see correct it
	// sooner; the lifetime bounds how long changes in a part of a large overlay we are not connected to go unseen.
	ReplicaSetLifetime = 2 * time.Minute

	// departedFor is how long after a peer became unreachable a look-up that names it is not kept: those that were asked may notice
	// later than we. departedMax bounds of how many peers that is remembered; the one that departed first is forgotten first.
	departedFor = 5 * time.Second
	departedMax = 256

	// arrivedFor is how long after a peer turned out to be a member a look-up that does not come across it is corrected: Kademlia's tables may not
	// have it yet. Of as many peers as departedMax that is remembered.
	arrivedFor = 30 * time.Second

	// lookupTimeout bounds one look-up: a frozen peer alone could hold one for 10 s. Until it is known to be gone, every look-up
	// that comes across it takes this long, so those who wait for one wait longer (5 s in replicagroup).
	lookupTimeout = 3 * time.Second

	// lookupsMax bounds the look-ups that run at once; more wait.
	lookupsMax = 32

	// routeTriesMax is how many nodes one [Overlay.Route] tries to reach.
	routeTriesMax = 3

	// nodesMax bounds the memory of which peer a node id belongs to; the one not used longest is forgotten.
	nodesMax = 16384

	// learnAddrsMax bounds the addresses taken from one [Overlay.Learn], and learnTTL how long they are kept.
	learnAddrsMax = 16
	learnTTL      = 24 * time.Hour

	// A node looks itself up to keep its neighbour set: settleMin after something changed, then at intervals doubling to
	// settleMax. While changes go on the interval grows no further than settleBusy, and after quietMin without a look-up
	// a change starts it at settleMin again.
	settleMin  = 100 * time.Millisecond
	settleBusy = 5 * time.Second
	settleMax  = time.Minute
	quietMin   = 10 * time.Second

	// The bootstrap peers are dialled while the routing table is empty, at intervals doubling from bootstrapMin to
	// bootstrapMax; dialTimeout bounds one dial. So a node joins within ten seconds after one of them comes up.
	bootstrapMin = 100 * time.Millisecond
	bootstrapMax = 4 * time.Second
	dialTimeout  = 5 * time.Second

	// seenMax is how many other peers that were met are remembered to be dialled then.
	seenMax = 64

	// foundMax is how many peers that were found and not reached are remembered, foundDialsMax how many of them are dialled at once, and
	// foundAddrsMax at how many addresses each: fewer than libp2p dials of one peer at once (8), so that addresses that somebody gave for
	// a bootstrap peer leave room for its own.
	foundMax      = 64
	foundDialsMax = 8
	foundAddrsMax = 4

	// A node that knows at most islandMax others and is connected to none of its bootstrap peers dials these too, every
	// islandInterval.
	islandMax      = 20
	islandInterval = time.Minute

	// waitInterval is how often [Overlay.WaitPeers] looks at the routing table, which announces nothing.
	waitInterval = 5 * time.Millisecond

	// heartbeatsMax bounds the pings and answers that wait for the failure detector. One more is dropped: that it came counts anyway.
	heartbeatsMax = 1024

	// eventsMax is the buffer between the host's event bus and us. Emitters would wait if it were full.
	eventsMax = 1024
)
