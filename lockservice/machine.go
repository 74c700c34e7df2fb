package lockservice

import (
	"time"

	"latchkey/internal/automaton"
)

// MachineConfig configures [NewMachine]. Every replica of a group must use the same.
type MachineConfig struct {
	Gen    uint64 // of the group: overlay generation << 32 | group generation
	TTLMax time.Duration
	Drift  automaton.Drift
}

// Machine is the lock table as a state machine of a group.
type Machine struct{}

// NewMachine returns an empty lock table.
func NewMachine(cfg MachineConfig) *Machine { return &Machine{} }
