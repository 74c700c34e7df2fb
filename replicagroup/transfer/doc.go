// Package transfer moves snapshots between replicas: the row "snapshots" of replica-groups.md section 3.3. Each goes on a stream of
// its own, in chunks of [ChunkBytes] with a running hash, and can be resumed after a broken stream, also by another sender that has
// the same bytes. The parts are pure automata; streams, clocks and goroutines are their driver's (replicagroup/transfers.go).
//
//   - [Queue]: a node's sending side. At most [OutMax] transfers run; the others wait in line. It tries again after a broken stream
//     and says when it gives up.
//   - [Gate]: a node's receiving side. At most [InMax] run, others wait; what arrived before a stream broke is kept for a while.
//   - [Outgoing] and [Incoming]: the two ends of one stream.
//   - [Frame]: what travels, with its bounded encoding.
//
// One transfer on its stream:
//
//	sender                         receiver
//	Offer{whose, content, size} ->
//	                            <- Wait             while others are before it, again every WaitEvery
//	                            <- Accept{n, hash}  it has the first n bytes, which hash to this
//	Chunk{n, hash, bytes}       ->                  hash of everything up to the chunk's end
//	                            <- Ack{n}           or Repeat{n, why}, from where to send again
//	Finish{head}                ->                  after the last Ack: what stands before the snapshot in its message
//	                            <- Done             or, at any time, Refuse{why}
//
// The content is named by its SHA-256. A sender whose own bytes hash to what the receiver says it has goes on there; otherwise it
// begins at 0, which its first chunk shows, and the receiver lets go of what it had. The head of the message, which differs from
// leader to leader, comes last and so is the newest.
//
// A sender cannot make a receiver take a snapshot that is not what it offered, nor hold more than it has sent; a receiver cannot make a
// sender send more than the snapshot and a few repetitions, or hold more than the snapshot. That the sender may send it at all is for
// the driver to check before it asks the [Gate].
package transfer
