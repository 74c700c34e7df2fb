package testnet

import (
	"context"
	"errors"
	"io"
	"time"
)

// Errors to match with errors.Is.
var (
	// ErrMode is matched when a testnet of this mode cannot do what was asked for.
	ErrMode = errors.New("testnet: not in this mode")
	// ErrFull is matched when a testnet has as many peers as it can.
	ErrFull = errors.New("testnet: no room for another peer")
)

// Mode says how a testnet runs its peers.
type Mode string

// The modes.
const (
	ModeInProcess Mode = "inproc"  // all peers in one process: [Network]
	ModeProcess   Mode = "process" // each peer a process of its own
)

// Testnet is what [Control] serves: peers on loopback, numbered from 0, and what can be done to them. All methods are safe for
// concurrent use. Errors beside those named below: [ErrNoPeer], [ErrOptions] for arguments that make no sense, [ErrClosed], and
// context.Cause(ctx).
type Testnet interface {
	// Status returns the present state.
	Status() Status
	// Kill ends peer i without a goodbye, as SIGKILL does; witness runs at that instant and must not block. Errors: [ErrDown].
	Kill(i int, witness ...func()) error
	// Restart starts a peer that was killed or has left, with the same identity and port, and waits until it and the others
	// that it can reach see each other. Errors: [ErrUp].
	Restart(ctx context.Context, i int) error
	// Pause freezes peer i, as SIGSTOP does, and Resume lets it go on. Errors: [ErrDown], [ErrMode] where peers share a process.
	Pause(i int) error
	Resume(i int) error
	// Join adds a peer, waits as Restart does, and returns its number. Errors: [ErrFull].
	Join(ctx context.Context) (int, error)
	// Leave ends peer i in an orderly way, as SIGTERM does. It is down afterwards and may be restarted. Errors: [ErrDown].
	Leave(ctx context.Context, i int) error
	// Partition divides the peers: those of different sides hear nothing of each other. Peers named in no side form one further
	// side together, and so do those that join later. It replaces the partition that was.
	Partition(ctx context.Context, sides ...[]int) error
	// Heal ends the partition. What was on its way arrives then. Latency stays.
	Heal(ctx context.Context) error
	// Latency delays everything between two peers by d each way.
	Latency(ctx context.Context, d time.Duration) error
	// Dump writes the state of the testnet, as of one moment: who its peers are and what they have stored. [Options.State] takes it up
	// again, here or elsewhere. The peers stand still while their stores are copied. Nothing that stands between peers is in it,
	// and nothing that only runs: a holder whose lock is in it will not renew it.
	Dump(ctx context.Context, to io.Writer) error
	// Logs returns the file that peer i's output goes to. Errors: [ErrMode] where peers share a process.
	Logs(i int) (path string, err error)
	// Close ends all peers at once and waits for what they leave to do. It is idempotent.
	Close() error
}

// Status is the state of a testnet.
type Status struct {
	Overlay     string        `json:"overlay"`
	Seed        uint64        `json:"seed,string"`
	F           int           `json:"f"`
	Depth       int           `json:"depth"` // 2^Depth groups share the key space
	Mode        Mode          `json:"mode"`
	Latency     time.Duration `json:"latency_ns"`  // one way
	Partitioned bool          `json:"partitioned"` // by Side of the peers
	Peers       []PeerStatus  `json:"peers"`
}

// PeerStatus is the state of one peer.
type PeerStatus struct {
	N       int    `json:"n"`
	Peer    string `json:"peer"`
	Addr    string `json:"addr"`
	API     string `json:"api"`  // socket of the node API; empty in a testnet without a directory
	Path    string `json:"path"` // the peer's directory; likewise
	Up      bool   `json:"up"`
	Founder bool   `json:"founder"`          // votes in the root group
	Paused  bool   `json:"paused,omitempty"` // up, and frozen
	Behind  bool   `json:"behind,omitempty"` // has not taken the rules of Side and Latency yet; it is told again until it does
	Left    bool   `json:"left,omitempty"`   // down because it left, not because it was killed
	Side    int    `json:"side"`             // of the partition, from 0 in the order given, those named in none last; 0 without a partition
	PID     int    `json:"pid,omitempty"`    // of the peer's process; process mode only
	Fault   string `json:"fault,omitempty"`  // why it is down though nobody took it down: how its process ended, and the last line of its log
}
