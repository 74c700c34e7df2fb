// Package testnet runs an overlay of real peers on loopback, in one process: real TCP, real libp2p, with faults.
//
// [Up] founds the overlay. It writes the founding record into the founders' stores itself before any peer runs (rule G1 of
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
// # From other processes
//
// With a directory, each peer answers the node API on DIR/<number>/api.sock, and a [Control] answers on DIR/control.sock who
// wants to look at the testnet, kill or restart: "latchkey testnet" is built on that ([Remote]).
//
// Links have no delay of their own and cannot be partitioned yet.
package testnet
