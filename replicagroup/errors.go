package replicagroup

import "errors"

// Errors to match with errors.Is.
var (
	// ErrNoQuorum: the group did not answer in time. Nothing is known to have been run.
	ErrNoQuorum = errors.New("replicagroup: no quorum of the group answered in time")
	// ErrOutcomeUnknown: the command was sent, and whether it has taken effect or will is not known.
	ErrOutcomeUnknown = errors.New("replicagroup: outcome unknown")
	// ErrClosed: the host or client was closed.
	ErrClosed = errors.New("replicagroup: closed")
	// ErrTooLarge: a command, query or answer passes its limit.
	ErrTooLarge = errors.New("replicagroup: too large")
	// ErrBusy: too much is in flight already; nothing was sent.
	ErrBusy = errors.New("replicagroup: too many commands in flight")
	// ErrRefused: the group does not take this request (unknown service, foreign session, a limit); asking again will not help.
	ErrRefused = errors.New("replicagroup: refused")
	// ErrStore: the store failed or no longer belongs to this process. The host stops at once, since it may not act on what
	// it cannot keep.
	ErrStore = errors.New("replicagroup: store failed")
	// ErrNoGroup: the prefix has no group, so there is none to revive.
	ErrNoGroup = errors.New("replicagroup: the prefix has no group")
	// ErrAlive: a majority of the group's voters answers, so the group is not lost.
	ErrAlive = errors.New("replicagroup: the group is not lost")
	// ErrNoOwnGroups: the overlay was founded without own groups of keys.
	ErrNoOwnGroups = errors.New("replicagroup: this overlay has no own groups")
	// ErrHasOwn: the key has a group of its own already.
	ErrHasOwn = errors.New("replicagroup: the key has a group of its own already")
	// ErrNoOwn: the key has no group of its own; the group of its prefix serves it.
	ErrNoOwn = errors.New("replicagroup: the key has no group of its own")
	// ErrTwin: this peer's store runs in two places. The host stops, since neither has all that was promised.
	ErrTwin = errors.New("replicagroup: this peer's store runs in two places")
	// ErrRootLost: this peer alone founded the overlay, the root group it founded is gone with the store that held it, and no other
	// peer is known that might have it.
	ErrRootLost = errors.New("replicagroup: the overlay's root group is lost")

	// errMoved: another group serves the key; nothing was run.
	errMoved = errors.New("replicagroup: another group serves the key")
)
