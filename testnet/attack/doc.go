// Package attack holds tests only: peers that know the overlay's id and its key, and mean harm. Each attacks one peer of a small
// overlay, the leader of a group, while an honest client takes and gives back locks of that group.
//
// Each hosting peer is a process of its own, and so are the attackers, which are bare libp2p hosts: in the field their processor and memory are
// not ours. Here they get what processor nobody else wants (SCHED_IDLE, where there is that). What they may cost is in
// docs/limits.md, and each test holds the attacked process to it: memory, streams, queues, and what was reset for which reason. Every
// honest operation must succeed.
//
// How much slower the honest client becomes is not judged by a test, because a busy machine slows it as well:
//
//	go test -run - -bench Attack ./testnet/attack -attack.time 1s
//
// reports it for each attack as a ratio, to rounds beside a process that only keeps the processors as busy, with ten seconds of
// rounds of either kind. It also reports how many processors the attacked process took, which a busy machine does not change much. Where
// others leave the attackers no processor, -attack.nice 5 gives them a share. Longer attacks in the tests: go test -args -attack.time 10s.
package attack
