// Package host is the group's part in durable objects: the machine that a replica group keeps them in, and, where the group is led, what
// drives the register of copies (design: durable-objects.md sections 2, 4.1, 5 and 6.1).
//
// [Machine] is the store as a service of replica groups. An entry of the log carries at most 64 KiB, and a command with its value may be sixteen
// times as long. So a longer command is cut into several entries, which its leader proposes one behind the other. The machine gathers them and
// executes the command with the last one; whatever comes between, from a later leader or because an entry was lost, voids what it has
// gathered. Nothing of that is visible, and the engine needs to know nothing of large entries: its limits, its flow control and what it lets go
// ahead of them stay as they are.
//
// A leader begins once it has applied everything that was committed when it asked whether it leads still; the instant of asking is the first
// anchor of its leases. It steps the register with what the group's log has executed, with messages of nodes, and with time, in the turns of
// the goroutine that runs the group's replica, so the store does not change under it. Messages to one node are framed together. A leader
// that knows that it leads no more tells the nodes that have sessions with it.
package host
