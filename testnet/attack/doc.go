// Package attack holds tests only: peers that know the overlay's id and its key, and mean harm. Each attacks one peer of a small
// overlay, the leader of a group, while an honest client takes and gives back locks of that group.
//
// The attackers are bare libp2p hosts in a process of their own, at low priority: in the field their processor is not ours, and
// their memory must not be counted as the attacked peer's. What they may cost is in docs/limits.md, and each test holds the
// attacked process to it: memory, streams, queues, and what was reset for which reason. Every honest operation must succeed.
//
// How much slower the honest client becomes is printed and not judged, because a busy machine slows it as well:
//
//	go test -run - -bench Attack ./testnet/attack
//
// reports it for each attack as a ratio, during to before. Longer attacks: go test -args -attack.time 10s.
package attack
