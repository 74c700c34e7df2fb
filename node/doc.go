// Package node assembles one latchkey peer on a libp2p host: the overlay, the host of replica groups and the lock service.
//
// [New] wires, [Node.Start] uses the network, [Node.Close] stops. The libp2p host is the caller's: latchkey adds its own
// protocols to it, all under /latchkey/<first 8 hex digits of the overlay id>/, and a Kademlia instance of its own, unless one
// is handed over; it opens no listener and closes nothing that it did not make.
//
// # How peers find each other
//
// A node dials the founders that the genesis document has addresses of, the peers of [WithBootstrap], and those it has met before. Besides
// it may look on the local network ([WithMDNS]), and in a Kademlia network that the application is in anyway, most of whose peers may
// know nothing of latchkey ([WithRendezvous]).
//
// # Directories
//
// [InitDir], [CreateDir] and [OpenDir] keep a peer in a directory, as the latchkey daemon does; [Dir.Run] makes a host as the
// directory's configuration says ([HostOptions], package config) and a node on it. The files:
//
//	identity.key  the peer's private key
//	genesis       the overlay's genesis document
//	swarm.key     the overlay's pre-shared key, in Kubo's format; not in a public overlay
//	config.yaml   the peer's configuration
//	reseed        the document that gave the overlay a new root; only where that was ever needed
//	root.key      the overlay's root key; only where the overlay was founded
//	store         a directory: the peer's replicas (package disk). Of a founder init makes it, of others the first start
//	voters        what voters have promised of locks; who removes it has the locks of this peer's groups wait for old leases
//	allow.list    the newest allow-list of the overlay that the peer knows; only where the overlay has one
//	admin.key     the overlay's admin key, which signs that list; in one directory only
//	joining.key   the key of a peer that join is making here, from the time when others are told its id
//	peers.json    peers that were met, dialled when nobody else is known; may be removed at any time
//	daemon.lock   locked while a daemon runs, or init or join is at work
//	unfinished    there while init or join writes: first made, last removed
//
// A directory that init or join was killed in has the file unfinished. [OpenDir] refuses it ([ErrUnfinished]), and the next
// init or join removes what is there of its files and starts over; nobody has used them. The mark is known by its content: a file
// of that name with another is refused and nothing is removed. Without that file a directory is complete. All files that change later are replaced in one step.
//
// A directory without config.yaml, as the time before there was one left it, runs with the defaults of profile test: on the
// loopback only. One whose profile needs a swarm key and that has none does not run.
//
// # Who may be in the overlay
//
// An overlay may have an allow-list (package allowlist). A peer keeps the newest one it has heard of ([Access]), refuses everybody else
// once it knows who they are and before any protocol is spoken, or, on a host that has a gater of its own, at the first stream, and tells
// other peers of it. [InitAdmin] makes the first list, [EditAllowList] changes it, [Invite] and [JoinDir] enrol a peer by an invitation.
//
// # What outlives a process
//
// A peer's replicas are in its store, and what they promise is there before it is promised. So a peer that comes back goes on
// where it was, however it ended. Init is the founding act (rule G1 of replica-groups.md section 6.4): the beginning of the root
// group is in the founder's store before anybody hears of the overlay, and no start ever founds.
//
// A peer whose store is lost comes back under a new store id, under which it is never taken for its former self (section 3.6). An
// overlay's only founder cannot ([replicagroup.ErrRootLost]): its root is lost. A store that may be a copy is refused
// ([latchkey/replicagroup/disk.ErrCopied]) until [Dir.Reidentify] gives it a new id. A copy that runs all the same is refused by the others
// with its original, and both nodes stop ([replicagroup.ErrTwin]). When the disk fails the node stops, and
// [Node.Err] says why. With store.volatile in the configuration replicas are in memory and end with the process; a directory that
// has a store refuses that, so that no peer leaves promises aside.
package node
