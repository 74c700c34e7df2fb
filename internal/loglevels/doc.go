// Package loglevels changes, while a program runs, what each of its parts logs: those that log by go-log, as latchkey and kad-dht do, and
// those that log by slog under a name of gologshim's, as libp2p does. Levels are of the process, so there is one set of them.
package loglevels
