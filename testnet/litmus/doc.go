// Package litmus runs small programs of reads and writes on a shared memory, thousands of times with drawn delays, and says
// whether an outcome came out that no sequentially consistent memory has.
//
// # Programs
//
// A file holds programs, one after the other:
//
//	# What follows a # is a comment.
//	litmus MP message passing: who sees the flag sees what it announces
//	peer: x = 1; y = 1
//	peer: a = y; b = x
//	never: a=1 b=0
//
// "litmus NAME" begins a program; the rest of the line says what it is about. Each "peer:" line is what one peer does, one
// statement after the other: OBJECT = NUMBER writes an object, REGISTER = OBJECT reads one. Every object holds 0 at first, and
// every register is read into once. What the registers hold at the end is the outcome. "finally: OBJECT…" adds what objects
// hold when all peers have ended. "never: NAME=NUMBER…" is optional: an outcome, or part of one, that must not occur; the reader
// makes sure that no order of the statements has it, so that it cannot be a slip of the pen.
//
// A file has at most 16,384 lines of 1,024 bytes and 1,024 programs; a program at most 12 peers, 16 objects, 32 statements,
// 16 "never" lines, values to 999, and 32,768 states on the way through all its orders (262,144 those of a file together),
// since [Decode] finds every outcome that a sequentially consistent memory has ([Program.Allowed]).
//
// [Builtin] returns the classic shapes: SB, MP, LB, IRIW, 2+2W and so on.
//
// # Runs
//
// [Run] runs a program on a [Memory] of several peers. Each run has objects of its own. Before it begins, drawn peers write
// 0 to some of them and drawn peers read some, so that owners and copies are at drawn places; then the program's peers are laid
// onto the memory's, sometimes several onto one, and start together, with a drawn delay before each statement. What objects
// hold finally is read when all have ended, so a memory must keep also that order, as Go's own does.
//
// That no forbidden outcome was seen proves nothing; so [Result] also tells which of the allowed ones were seen: a shape whose
// peers ran one after the other all the time has tried nothing.
package litmus
