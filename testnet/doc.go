// Package testnet runs an overlay of real peers on loopback: real TCP, real libp2p, with faults. A [Testnet] is a [Network], all of
// whose peers are in this process, or [Processes], each of whose peers is a process of its own.
//
// [Up] founds the overlay. It writes the beginning of the root group into the founders' stores itself before any peer runs (rule G1 of
// replica-groups.md section 6.4). Identities come from the seed, so a testnet has the same peer ids every time; the overlay's
// id is new each time, since every founding is a new act. Never use such identities elsewhere: anybody can compute them.
//
// # What a kill is
//
// [Network.Kill] is for a peer what SIGKILL is for a process. In this order: nothing that its clients do counts any more
// ([Peer.Do]), its sockets are gone with what was unsent (package wire), and its store takes no more writes. Only then are
// the dead peer's goroutines ended, and what their shutdown code does reaches nobody. The stores belong to the testnet: a
// restarted peer finds in its own what the killed one had persisted, and nothing else.
//
// [Processes] need no such care: there a kill is SIGKILL, and the stores are on disk, in the peers' directories.
//
// # Leaving
//
// [Network.Leave] is the other way to go: the peer gives its locks back and closes its connections, as a daemon does that is told
// to stop. Either way its place stays, and [Network.Restart] starts it again.
//
// # Partitions and latency
//
// They are rules of the peers' wires, below libp2p's security, so that Kademlia and heartbeats suffer as they would. A partition is
// silence: bytes stop, connections stay open until somebody's timer ends them, dials hang, and what was under way goes on when it
// heals. Each peer's wire does this to what that peer has dialled, so those that restart or join have their rules before they
// send a byte. One thing gets across: the reset that ends what a killed peer had dialled.
//
// # States
//
// [Network.Dump] and [Processes.Dump] write a testnet into a file, [OpenState] reads it, and with [Options.State] it is taken up
// again: the same overlay, with the same peers, locks and tokens. All stores are copied as of one moment. A dump that is taken up
// takes the whole overlay back to that moment at once, so nobody in it knows better; the peers' ports keep it from being taken up
// beside the original.
//
// # From other processes
//
// With a directory, each peer answers the node API on DIR/<number>/api.sock, and a [Control] answers on DIR/control.sock who
// wants to look at the testnet or do something to it: "latchkey testnet" is built on that ([Remote]).
package testnet
