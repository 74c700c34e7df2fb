package raft

import "time"

// Where every group's log starts (replica-groups.md section 3.1), so that index 0 never means anything.
const (
	genesisIndex = 10
	genesisTerm  = 1
)

// Defaults of [Config].
const (
	HeartbeatDefault     = 100 * time.Millisecond
	ElectionTicksDefault = 10
	QuiesceDefault       = 3 * time.Second
)

// Limits of the library's flow control (replica-groups.md section 3.1).
const (
	appendBytesMax      = 64 << 10 // entries of one append message; a single larger entry goes alone
	inflightMsgsMax     = 64       // appends under way to one member
	inflightBytesMax    = 1 << 20  // and their bytes
	uncommittedBytesMax = 4 << 20  // what a leader takes before Propose answers ErrBusy; a command has at least 82 bytes, so this bounds their number as well
	applyBytesMax       = 1 << 20  // delivered and not yet applied; more waits in the log
)

// Limits of the engine's own queues.
const (
	readsMax    = 4096 // reads that wait; more are answered ErrBusy
	persistsMax = 1024 // writes under way; beyond, messages are dropped and proposals answered ErrBusy until the disk catches up
)

// What a leader keeps in memory below its snapshot for followers that are a little behind; who lacks more gets the snapshot.
const (
	trailingEntriesMax = 1024
	trailingBytesMax   = 1 << 20
)

// foldBytesMax is how large a log may be to be folded when its replica falls asleep.
const foldBytesMax = 4 << 10

// What it keeps for a member that a snapshot is on its way to, and until that one has caught up afterwards: a snapshot that takes
// longer than the tail above lasts would be of no use, nor would the next.
const (
	pursuitEntriesMax = 1 << 16
	pursuitBytesMax   = 32 << 20
)

// SnapshotBytesMax bounds the machine state in one snapshot. A larger [order.Compact] is dropped.
const SnapshotBytesMax = 48 << 20

// A snapshot that was sent and not acknowledged is taken for lost after two election time-outs and this many heartbeats more
// for each MiB of it, unless the link to the member breaks earlier.
const snapshotTicksPerMiB = 4

// lingerElections is how many election time-outs a removed replica goes on voting before it halts (see doc.go).
const lingerElections = 30

// Limits of what the decoders accept.
const (
	changeBytesMax  = 4 << 10              // a change of the view
	contextBytesMax = 8                    // the library puts 8 bytes into heartbeats while reads wait
	messageBytesMax = 2*appendBytesMax + 1 // of everything but snapshots
	commandOverhead = 128                  // room for what an encoded command has beside its data, as a guess for buffers
	entryOverhead   = 24                   // of one entry beside its data, at most, in this encoding and in the library's count
)

// Numbers no honest group reaches. They keep a wrong one from wrapping an index or using up the terms: one election a second
// for 136 years makes 2^32 terms.
const (
	termLeapMax = 1 << 32 // how far a message's term may be above ours
	termMax     = 1 << 62 // nobody campaigns from here on
	indexMax    = 1 << 62
)
