// Package dht is the overlay in the words of the papers: send, route, route_replica, the neighbour set and the replica set
// of a key (RR-5059 section 2), over go-libp2p streams and a Kademlia network of its own.
//
// A node is a libp2p host in an overlay; its point of the key space is the SHA-256 of its peer id. Entities are named by a
// key and a service: a [Handler] is registered per service and reads the key from the [Request].
//
//	paper                   here
//	send(n, k, s, m)        [Overlay.Send], with an answer [Overlay.Call] and [Overlay.Go]
//	route(k, s, m)          [Overlay.Route]: to the node closest to the key
//	route_replica(r, ...)   [Overlay.RouteReplica]: to the r nodes closest to the key
//	neighbour set           [Overlay.NeighbourSet]: kept up to date, asked without a message
//	r nodes closest to k    [Overlay.ReplicaSet]: one Kademlia look-up, then cached and corrected
//
// Two departures. The paper routes a message from node to node along routing tables; we look up the closest node once, cache
// it and speak to it directly, because a look-up costs hundreds of times what a message on an open stream does (physics.md
// B3). And a route takes a [keyspace.Preimage] where the paper takes a key: Kademlia hashes what it is asked for at both
// ends, so a raw point cannot be looked up.
//
// # Messages
//
// Between two peers there is one kept-open stream of each [Class], opened on first use and used by both sides. If both open
// one at the same moment both stay and both are read, and each side keeps writing on one. A stream begins with a hello each
// way: protocol version, overlay id, session, and bytes of the application, which may refuse the peer. Nothing of the application
// travels before both hellos have been accepted. After that come frames: length-prefixed protobuf batches of items (one-way
// messages, requests, replies, errors). A message too large for a control frame goes by bulk, in pieces.
//
// What is promised: messages of one class from one peer reach their handlers in the order they were sent, at most once, as
// long as the stream lives. The streams of a peer are lost together: then one-way messages under way are lost with them, and every
// request awaiting its answer fails at once with [ErrLinkLost]. Between the classes there is no order. Messages may be lost, so protocols above
// repeat them; a repeated one is a new message here.
//
// One writer goroutine per written stream takes whatever has queued up since its last write as one frame, so a lone message
// leaves at once and a burst leaves together; there is no timer. It yields once between waking and taking if several callers are at it,
// which is enough for the others to get in: with 64 callers that made frames of 21 messages and 4 times the throughput. Writing from the
// caller instead when nothing is queued was tried: it saves one hand-over of five (1.07 instead of 1.10 raw round trips), but lost
// the batches and four fifths of that throughput, and a libp2p stream cannot tell beforehand whether a write would block,
// while a caller must never wait for a slow peer.
//
// # Streams of their own
//
// What is too large or too slow to share a kept-open stream gets one to itself, by [Overlay.OpenStream] and [Overlay.HandleStream]: after
// the same hellos it is a plain byte stream, with its own fate.
//
// # Stores that run in two places
//
// A hello and a heartbeat say which store the sender keeps its replicas in, and which start of it this is ([WithBoot]). Package twins
// judges by that whether the store was copied or set back and runs twice. What a former start says is not used, and somebody is asked
// whether it is still there; if it is, both are refused: their streams are reset, nothing of theirs reaches a handler, watchers are told
// that the peer is gone, and both are told why ([Overlay.OnAccused]). An [Alarm] names the peer, once.
//
// # Bad input
//
// Whatever is malformed, truncated, oversize or unknown resets the stream it came by and is counted by [Reason] in
// [Overlay.Stats]; nothing else happens, and other peers notice nothing. One case is milder: a service that nobody handles.
// A newer peer may rightly know services an older one does not, and resetting would take the known services' messages along,
// so the message is dropped and counted, and a request is answered with [ErrUnknownService].
package dht
