// Package disk keeps replicas on disk. [Store] implements [latchkey/replicagroup.Store] on one Pebble database, which all
// groups of a peer share: what every replica wants stored in one turn becomes one batch and at most one sync.
//
// # What is kept
//
// Per replica: who it is ([latchkey/replicagroup.Identity]), its last state, its last snapshot in chunks of at most 1 MiB,
// and the entries above it. What a later record makes void is deleted in the same batch and its space given back by
// compaction. Every value carries a checksum of ours over itself and its key, beside those of Pebble.
//
// Replica ids are never used twice in a group, so a removed replica leaves its id behind ([Store.Retire]); a replica of a
// generation that is over can be put aside with all its data ([Store.Bury]) until somebody decides about it.
//
// # What a crash leaves
//
// After a crash the store holds everything up to some batch and nothing beyond: all batches that were synced, perhaps some
// later ones, each whole. A write that was torn was never reported as stored and is dropped. The one thing that cannot be told
// from that is a log that a crash left and whose very end then rots before the next start. Of a store that was closed, every
// changed bit is noticed.
//
// The first error of the disk (full, unreadable, unwritable) ends the life of an open store: every call from then on
// returns that error, and nothing more reaches the disk, as if the process had been killed at that moment. Starting again
// finds all that was ever reported as stored.
//
// # What is refused
//
// A directory of another overlay ([ErrForeign]), of a newer program ([ErrVersion]), in use by another process ([ErrInUse]),
// with content that cannot be what was written ([ErrDamaged]), or that is a copy ([ErrCopied]). Nothing is guessed at.
//
// A copy matters because a replica's promises must not exist twice (replica-groups.md section 3.6). What this machine can
// know of it alone: the directory's file STORE is written anew at each opening, and the database remembers which file that
// was. A copy, a restored backup, or a move to another file system changes the file, and the store is refused until
// [Reidentify] gives it a new id. A copy of a whole disk or machine cannot be seen from inside: for that the store draws a
// [Boot] at each opening, which peers compare. On file systems whose file numbers do not last, only the boots are compared.
package disk
