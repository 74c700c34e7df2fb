// Package node assembles one latchkey peer on a libp2p host: the overlay, the host of replica groups and the lock service.
//
// [New] wires, [Node.Start] uses the network, [Node.Close] stops. The libp2p host is the caller's: latchkey adds its own
// protocols to it, all under /latchkey/<first 8 hex digits of the overlay id>/, and a Kademlia instance of its own, unless one
// is handed over; it opens no listener and closes nothing that it did not make.
//
// [InitDir] and [OpenDir] keep a peer in a directory, as the latchkey daemon does: identity, genesis document and the
// founding record.
//
// This version keeps replicas in memory. A peer that stops has lost them and comes back under a new store id, under which it
// is never taken for its former self (replica-groups.md section 3.6); the overlay's founder can therefore not be restarted
// ([replicagroup.ErrRootLost]).
package node
