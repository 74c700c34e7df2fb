// Package demo is latchkey's main job shown on one machine, in a way that can fail: many clients increment one counter in an
// ordinary file, guarded by a lock of the overlay and by nothing else, while peers are killed by role; then everything that
// was recorded is judged.
//
// A client reads the file, adds one, and writes the file back with the lock's token ([lockservice.FileGuard]) and its own
// last increment, in one atomic write. Reading and writing are two steps on purpose: without the lock, increments get lost
// ([Options.Sabotage] shows it). Clients share nothing but the file. A client lives in its peer's process and dies with it
// ([testnet.Peer.Do]): its goroutine sees and does nothing from the instant of the kill on. Later it is started anew at
// another peer, and learns where it was from the file.
//
// Meanwhile peers share objects of an application ([coherence.App]), whose managers the lock's group keeps: each updates an object of its own and a
// common one, and reads all. The first victim is a leader that takes no part in the application, and must cost a pause only. The second owns an
// object: the application begins anew, and every other peer hears of it and goes on in the next execution. A copy that is read after others
// have overwritten it (sabotage stale-copy) must show in the verdict.
//
// After the kills a peer joins, close enough to where the lock is kept that its group has to take it in; the group's leader leaves; and
// all peers are stopped at once and started again from their disks while locks are held.
//
// The checks are functions of what the run left behind: the file with its journal of writes, the history of acquires and
// releases, that of reads and updates of objects, the record of faults, and what the overlay said of its groups and locks. Each has a test with one bad specimen of every kind it exists to catch.
package demo
