// Package chunks keeps what checkpoints consist of (coherence-automata.md section 8.2, rules C4, C5 and C7): values of objects and states of
// threads, each a chunk whose name is the SHA-256 of its content, at the 2f+1 peers closest to where its name puts it.
//
// A [Keeper] is a peer's part: it keeps chunks for others, within limits, in a [Store] that is the node's own or in memory. A [Client] puts chunks at
// keepers and gets them back. What comes back is held against its name, so a chunk that was altered is as good as missing, and the error says which
// of the two it was ([ErrAltered], [ErrMissing]); nothing that is incomplete is ever returned.
//
// # A checkpoint
//
// Owners put the values, nodes the states of their threads. Then whoever leads the application's group calls [Client.Save]: it makes sure that every
// chunk is at enough peers, mends what has too few, and puts the manifest, which is chunks too: the root, whose name is the checkpoint's, names the
// parts. Asked again, after a failure or by a new leader, it puts only what is not there yet. After that, and after the manager's group has ordered
// that the checkpoint is saved, [Client.Collect] tells keepers which manifests still count: the last one and the one before it, since a FIRST_TOUCH
// under way may name that. They drop the chunks of the application that neither names, unless these were wanted for a later checkpoint than the
// last one saved: a checkpoint that is being written loses nothing.
//
// # Places
//
// The overlay finds the peers closest to a preimage, not to a point, and a look-up costs hundreds of times what a message does. So the first byte of
// a chunk's name chooses one of 256 places, whose peers are looked up once and cached. A reader who finds nothing at the 2f+1 closest asks those
// that are a little further away as well, where a chunk stays when peers join; the next Save moves it.
package chunks
