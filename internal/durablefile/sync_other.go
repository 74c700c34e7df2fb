//go:build !unix

package durablefile

// SyncDir does nothing: the system has no such operation.
func SyncDir(string) error { return nil }
