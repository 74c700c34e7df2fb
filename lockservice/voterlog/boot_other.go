//go:build !linux && !darwin

package voterlog

// BootID names this run of the operating system. Here that is not known: it is empty.
func BootID() string { return "" }
