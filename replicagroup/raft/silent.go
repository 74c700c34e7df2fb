package raft

import "fmt"

// silent is the library's logger: automata do not log. What the library calls a panic must still be one, since it does not
// expect to go on; it means that the engine let something through or broke a rule of its own.
type silent struct{}

func (silent) Debug(...any)            {}
func (silent) Debugf(string, ...any)   {}
func (silent) Info(...any)             {}
func (silent) Infof(string, ...any)    {}
func (silent) Warning(...any)          {}
func (silent) Warningf(string, ...any) {}
func (silent) Error(...any)            {}
func (silent) Errorf(string, ...any)   {}

func (silent) Fatal(v ...any)                 { panic("raft: " + fmt.Sprint(v...)) }
func (silent) Fatalf(format string, v ...any) { panic("raft: " + fmt.Sprintf(format, v...)) }
func (silent) Panic(v ...any)                 { panic("raft: " + fmt.Sprint(v...)) }
func (silent) Panicf(format string, v ...any) { panic("raft: " + fmt.Sprintf(format, v...)) }
