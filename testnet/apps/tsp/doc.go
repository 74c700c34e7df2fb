// Package tsp finds the shortest round trip through cities by branch and bound, on shared objects: an application of several peers by package
// coherence alone.
//
// What is to be searched is in a queue of objects: "queue/ends" says where it begins and ends, and "queue/items/N" is its element N: the first
// cities of a trip. Workers, which are threads, take the first element. A short beginning is replaced by all that are one city longer, at the end
// of the queue; a long one is searched. The object "best" has the best trip so far. It is the bound, which workers read at every city they
// try: a read that costs nothing while nobody has found a better one.
//
// Who finds what first depends on time, but the result does not: of trips of the same length the one whose cities come first in order is the better
// one, and only what must become longer than the best is left out. So it is that of one process ([Problem.Solve]).
//
// Between taking an element and having done with it there is a safe point only while the element, whose place is taken by whoever adds it, has not
// been written yet. A worker saves which element it has taken. The object "gate" holds how many elements may be taken for now, 0 for all.
package tsp
