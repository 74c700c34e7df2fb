// Package access is how threads of one node reach one shared object: reads and writes of a cached copy whose rights come and go
// (design: coherence-automata.md sections 8 and 8.1).
//
// A value is an immutable [protocol.Cell] behind one atomic pointer, nil whenever the right to read is absent. A read that finds it is
// one load: the right was held at that instant, which is the read's point in time. It takes no lock, sends nothing and allocates
// nothing. Everything else happens under the object's short mutex, under which the automaton of the copy takes its steps too:
// that mutex is the pin (rule R17).
//
// # The five promises
//
//   - Program order. Each call returns when its access has been performed; nothing is buffered, and no value is handed out that
//     was taken after the right had gone.
//   - Pins. A right is checked and used under one hold of the mutex, and a revocation is a step under it.
//   - Acknowledge after revoking. [Object.SetRight] takes the value away; a [Copy] sends what acknowledges a loss only after it.
//   - User code is never under a pin. Functions given to [Object.View] and [Object.Update] run with the mutex free.
//   - Effects of an old epoch are cut off. Once [Epoch.End] has returned, no call on an object of it succeeds: [ErrRestarted].
//
// # Who waits
//
// A call that lacks a right waits in the object's line, and is performed at the moment the right comes, before anything can take
// it away again: readers are handed the cell, writes are stored, in the order of their arrival. So each answer to a request
// serves at least those who waited for it, and needs no time in which the right is frozen.
//
// Only an [Object.Update] needs the right for longer, since its function runs in between. It tries twice with the right free to
// go, and then holds it, for [Config].UpdateHold at most. Waits between holders go up in the order of the objects' keys: a hold
// ends at once when somebody on this node begins to wait for an object with a smaller key, since that may be the function
// that the hold is for. So two updates nested in opposite orders do not block each other.
package access
