// Package sor solves a grid by red-black successive over-relaxation, on shared objects: an application of several peers by package coherence alone.
//
// Each row of the grid is an object. Each worker is a thread with a block of rows, and writes those only; of the blocks beside its own it reads the
// nearest row. A step has two halves: the cells of one colour are made from the cells of the other, so no half reads what it writes, and the
// order of rows and workers makes no difference. The result is that of one process, to the last bit ([Problem.Solve]).
//
// Between two halves the workers meet at a barrier of two objects: "barrier/arrived" counts them, and who arrives last opens the way by
// "barrier/open", which holds how many halves are over. Both only grow, so no one has to set them back, and nobody goes through twice.
//
// A worker saves which half it is at, and whether it has arrived at its end: with the objects of the same instant that is all. It looks at a safe point
// each time round that it waits, so a checkpoint never waits for a worker who waits for another one. The first half writes the rows as they
// are at first, so an application without a checkpoint begins anew from nothing.
//
// The object "gate" holds how many steps the workers may do for now, 0 for all: who wants something to happen half way sets it.
package sor
