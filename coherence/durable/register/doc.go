// Package register is what the leader of a group knows of the copies of its durable objects: which node may have one until when, which write waits
// for whom, and who has the exclusive right to write (design: durable-objects.md sections 4.1 and 5; rules D1 to D6, D8 to D11, D13).
//
// It is in memory alone: a read costs no entry of the log, and a new leader begins with nothing. It makes up for that by waiting: no write is
// acknowledged, and nothing shown that the log does not call settled, before all leases of former leaders are over. A former leader
// that does not know it has been deposed is one more cache meanwhile, since it grants no lease that outlasts its own.
//
// The register reads the group's store as this replica has applied it, and proposes commands for it. Time comes in with each [Event].
package register
