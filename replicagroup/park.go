package replicagroup

import (
	"bytes"

	"latchkey/internal/invariant"
	"latchkey/replicagroup/session"
)

// A replica that sleeps is not asked for anything, and of ten thousand that do, the machines and the table of sessions before them take
// more room than what they hold. So a replica puts them away as a snapshot when it falls asleep, and makes them again from it when it is
// to execute something or to answer: what a restart does, in microseconds and without the disk. Whoever wants them calls state.

// Groups that nobody has ever asked for anything have equal states: what several put away one after the other is kept once.

// parkedBytesMax bounds what is put away: a larger state is used by somebody, and would take its time.
const parkedBytesMax = 1024

// state returns the replica's table of sessions with the machines behind it. What it returned before must not be used any more once the
// replica has slept.
func (r *replica) state() *session.Table {
	if r.table == nil {
		r.table = session.NewTable(r.shard.host.genesis.Drift, r.shard.host.machines(r.group))
		err := r.table.Restore(r.parked)
		invariant.Check(err == nil, "what was put away can be taken out", err)
		r.parked = nil
	}
	return r.table
}

// park puts the machines away, unless a voter or a leader that has something, the keys' keeper or the grantor of leases looks at one of them: what they
// look at would not be the replica's any more when it is awake again.
func (r *replica) park() {
	if !r.parks || r.table == nil || r.seat != nil && !r.seat.voter.Idle() || r.ring != nil || r.granting != nil {
		return
	}
	if d := r.desk; d != nil {
		if d.leader == nil || !d.leader.Idle() || d.proposed > 0 {
			return
		}
		r.unlead()
	}
	if b := r.table.Snapshot(); len(b) <= parkedBytesMax {
		s := r.shard
		if !bytes.Equal(b, s.parked) {
			s.parked = bytes.Clone(b)
		}
		r.parked, r.table = s.parked, nil
		r.shard.host.counters.parked.Add(1)
	}
}
