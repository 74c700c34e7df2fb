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
// Beside replicas there are blobs ([Store.PutBlob]), of whoever else on the peer keeps something.
//
// # What a crash leaves
//
// After a crash the store holds everything up to some batch and nothing beyond: all batches that were synced, perhaps some
// later ones, each whole. A write that was torn was never reported as stored and is dropped. The one thing that cannot be told
// from that is the last log that a crash left, of which the last writes then rot before the next start: the store is then as of an
// earlier batch. What rots before them is noticed, since a log says, with each write, up to where it was on the disk before. Of a
// store that was closed, every changed bit is noticed.
//
// Pebble alone would notice less. It ends a manifest or a log at the first thing in it that it cannot read, as if a crash had
// cut it there, and it does not know which logs there should be. A manifest that lost its end has lost the word that a log's
// batches are in tables, and that log may be gone by then: the batches before and after it would be there, and its own not. So
// the file FILES says what logs and manifests there are and what they begin with, and is written before any of them goes and
// whenever a log begins. At an opening each must be there and hold at least that. It costs no sync of a Write: it is written when a
// memtable is full. The damage that is left to go unnoticed harms nothing, or is that end of the last log. This is about one file at
// a time: STORE, FILES and the database are not signed, and whoever changes them together, each to fit, is believed.
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
