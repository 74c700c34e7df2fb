package transfer

import "time"

// Sizes. Both ends must agree on ChunkBytes: resumption counts in whole chunks.
const (
	// ChunkBytes is how much one chunk carries; the last one of a body may have less.
	ChunkBytes = 1 << 20
	// BodyBytesMax bounds a body. An offer of a larger one is malformed.
	BodyBytesMax = 48<<20 + 64<<10
	// HeadBytesMax bounds what stands before the body in its message.
	HeadBytesMax = 1 << 10
	// FrameBytesMax bounds a frame without its length.
	FrameBytesMax = ChunkBytes + 256
	// textBytesMax bounds the words in a Repeat or Refuse; the sender cuts a longer text.
	textBytesMax = 256
)

// Limits of one transfer.
const (
	// AheadMax is how many chunks may be under way without an acknowledgement.
	AheadMax = 8
	// RepeatsMax is how often a chunk may be asked for again before the stream is given up.
	RepeatsMax = 3
)

// Limits of a node.
const (
	// OutMax and InMax bound the transfers that run at once, out and in (replica-groups.md section 3.3). More wait.
	OutMax = 2
	InMax  = 2
	// OutQueueMax bounds those known to a sender, running ones too; one more fails at once. A waiting one costs no copy of its bytes.
	OutQueueMax = 4096
	// InQueueMax bounds the offers that wait at a receiver; one more is refused as busy, and its sender comes again.
	InQueueMax = 64
	// ParkedMax is how many broken transfers a receiver keeps the bytes of; the one kept longest goes first.
	ParkedMax = 2
)

// Times.
const (
	// ParkFor is how long they are kept.
	ParkFor = time.Minute
	// StallMax is how long one frame may take, in either direction. A peer that needs longer has its stream reset, and what has
	// arrived is kept.
	StallMax = 10 * time.Second
	// WaitEvery is how often a receiver says that an offer still waits.
	WaitEvery = 3 * time.Second
	// WaitMax is how long a sender lets one that waits at a busy receiver keep its place among the running, while it has another
	// for another peer.
	WaitMax = 2 * time.Second
	// BusyPause is how long one stands back that was refused as busy or has given its place up.
	BusyPause = 250 * time.Millisecond
	// A broken stream is opened again after a pause that doubles from RetryMin; TriesMax streams in a row on which nothing
	// moved are the end.
	RetryMin = 100 * time.Millisecond
	TriesMax = 4
	// ReportEvery is how often the owner hears that its transfer is under way.
	ReportEvery = 500 * time.Millisecond
)
