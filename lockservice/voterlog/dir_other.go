//go:build !unix

package voterlog

// syncDir is not needed, or not possible, here.
func syncDir(string) error { return nil }
