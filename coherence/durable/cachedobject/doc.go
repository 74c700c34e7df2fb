// Package cachedobject is a node's side of the durable objects of one group: its copies, the lease on all of them, and the calls that wait for an
// answer (design: durable-objects.md sections 4.2 and 5; rules D7, D12, D14 to D18).
//
//	INVALID         no copy that may be read
//	SHARED          a copy that may be read for as long as the lease lasts
//	EXCLUSIVE       SHARED, and the right to write without being outrun
//	WAIT_COPY       a READ is under way
//	WAIT_STORE      a STORE is under way; reads wait for it
//	WAIT_EXCLUSIVE  a WRITE is under way
//
// A value is immutable. A hit needs no step of the automaton: whoever reads loads the [Cell], then the [Lease], then looks at the clock, in this
// order. If the cell is of the lease's tenure and session, and the lease is not over, then the right was held when the cell was loaded.
// What takes a copy away is done before its acknowledgement is sent; user code never stands in between.
package cachedobject
