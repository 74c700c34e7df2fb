package history

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
)

// OperationsMax bounds a history. What comes after it is not recorded, and every verdict is Unknown then.
const OperationsMax = 1 << 20

// lineBytesMax bounds a line that [Read] accepts.
const lineBytesMax = 4096

// ErrMalformed is matched by errors about an encoded history that cannot be read.
var ErrMalformed = errors.New("history: malformed")

// Kind is what an operation does.
type Kind string

// The kinds of operations.
const (
	KindRead    Kind = "read"    // answers Value
	KindWrite   Kind = "write"   // sets Value
	KindCAS     Kind = "cas"     // sets Value if it was Old; answers OK, and in Value what was there before
	KindAcquire Kind = "acquire" // answers Token
	KindRelease Kind = "release" // names Token; answers OK, or not when it was not held
	KindLost    Kind = "lost"    // the hold of Token may end by itself from now on; never returns
)

var kinds = []Kind{KindRead, KindWrite, KindCAS, KindAcquire, KindRelease, KindLost}

// Op is an operation as its client asks for it. Registers hold 0 at first; locks are free.
type Op struct {
	Kind  Kind   `json:"kind"`
	Key   string `json:"key"` // the register or lock
	Value uint64 `json:"value,omitempty"`
	Old   uint64 `json:"old,omitempty"`
	Token uint64 `json:"token,omitempty"`
}

// Read asks for the value of a register.
func Read(key string) Op { return Op{Kind: KindRead, Key: key} }

// Write sets a register.
func Write(key string, value uint64) Op { return Op{Kind: KindWrite, Key: key, Value: value} }

// CAS sets a register to value if it holds old.
func CAS(key string, old, value uint64) Op {
	return Op{Kind: KindCAS, Key: key, Old: old, Value: value}
}

// Acquire asks for a lock.
func Acquire(key string) Op { return Op{Kind: KindAcquire, Key: key} }

// Release gives a lock back.
func Release(key string, token uint64) Op { return Op{Kind: KindRelease, Key: key, Token: token} }

// Answer is what the client was told. Which fields count depends on the [Kind].
type Answer struct {
	OK    bool   `json:"ok,omitempty"`
	Value uint64 `json:"value,omitempty"`
	Token uint64 `json:"token,omitempty"`
	// Version is that of the value written, or of the value found where nothing was: it rises with every write of a key, from 1.
	// 0 is that of the first value, or says that the service tells none.
	Version uint64 `json:"version,omitempty"`
}

// Operation is one recorded operation. Calls and returns of a history are numbered in one sequence from 1.
type Operation struct {
	Client int    `json:"client"`
	Call   int64  `json:"call"`
	Op     Op     `json:"op"`
	Return int64  `json:"return,omitempty"` // 0 while open
	Answer Answer `json:"answer,omitzero"`
	// NoEffect: the client knows that the operation did nothing. It is not judged.
	NoEffect bool `json:"no_effect,omitempty"`

	deaf bool // the client was killed meanwhile: no answer is heard
}

func (o *Operation) open() bool { return o.Return == 0 }

// end is when the operation was over, for the checker.
func (o *Operation) end() int64 {
	if o.open() {
		return math.MaxInt64
	}
	return o.Return
}

// String prints the operation on one line.
func (o Operation) String() string {
	s := fmt.Sprintf("client %d: %s %s", o.Client, o.Op.Kind, o.Op.Key)
	switch o.Op.Kind {
	case KindWrite:
		s += fmt.Sprintf(" %d", o.Op.Value)
	case KindCAS:
		s += fmt.Sprintf(" %d to %d", o.Op.Old, o.Op.Value)
	case KindRelease, KindLost:
		s += fmt.Sprintf(" token %d", o.Op.Token)
	}
	if o.open() {
		return fmt.Sprintf("%s (open since %d)", s, o.Call)
	}
	switch o.Op.Kind {
	case KindRead:
		s += fmt.Sprintf(" = %d", o.Answer.Value)
	case KindCAS:
		s += fmt.Sprintf(" = %v, was %d", o.Answer.OK, o.Answer.Value)
	case KindAcquire:
		s += fmt.Sprintf(" = token %d", o.Answer.Token)
	case KindRelease:
		s += fmt.Sprintf(" = %v", o.Answer.OK)
	}
	return fmt.Sprintf("%s (%d to %d)", s, o.Call, o.Return)
}

// History is a record of operations. Its zero value is empty and ready; it is safe for concurrent use.
type History struct {
	mu   sync.Mutex
	now  int64
	ops  []Operation
	full bool // something was left out
}

// New returns an empty history.
func New() *History { return &History{} }

// Call records that a client begins an operation, before it does anything for it, and returns the operation's number for
// [History.Return]. A client is any number; operations of one client may overlap.
func (h *History) Call(client int, op Op) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.callLocked(client, op)
}

func (h *History) callLocked(client int, op Op) int {
	if len(h.ops) == OperationsMax {
		h.full = true
		return -1
	}
	h.now++
	h.ops = append(h.ops, Operation{Client: client, Call: h.now, Op: op})
	return len(h.ops) - 1
}

// Return records an operation's answer, after it arrived. An operation whose outcome is unknown is not returned but left
// open. Returning one twice, or one of a client killed since, changes nothing.
func (h *History) Return(id int, a Answer) { h.finish(id, func(o *Operation) { o.Answer = a }) }

// Swapped records that a CAS has swapped, which was called without saying from what: an update that writes whatever it finds.
func (h *History) Swapped(id int, found uint64) {
	h.finish(id, func(o *Operation) { o.Op.Old, o.Answer = found, Answer{OK: true, Value: found} })
}

// NoEffect records that an operation surely did nothing and never will, such as a try that was refused.
func (h *History) NoEffect(id int) { h.finish(id, func(o *Operation) { o.NoEffect = true }) }

func (h *History) finish(id int, f func(*Operation)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if id < 0 || id >= len(h.ops) || !h.ops[id].open() || h.ops[id].deaf {
		return
	}
	h.now++
	h.ops[id].Return = h.now
	f(&h.ops[id])
}

// Lost records that a holder has been told that its hold is lost.
func (h *History) Lost(client int, key string, token uint64) {
	h.Call(client, Op{Kind: KindLost, Key: key, Token: token})
}

// Killed records that a client is gone. What it has open stays open, also when an answer is still reported; everything it
// holds may run out from now on. Its number may be used again by a successor.
func (h *History) Killed(client int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	type hold struct {
		key   string
		token uint64
	}
	held, released := []hold{}, map[hold]bool{}
	for i := range h.ops {
		o := &h.ops[i]
		if o.Client != client {
			continue
		}
		o.deaf = o.deaf || o.open()
		switch {
		case o.Op.Kind == KindAcquire && !o.open() && !o.NoEffect:
			held = append(held, hold{o.Op.Key, o.Answer.Token})
		case o.Op.Kind == KindRelease, o.Op.Kind == KindLost:
			released[hold{o.Op.Key, o.Op.Token}] = true
		}
	}
	for _, l := range held {
		if !released[l] {
			h.callLocked(client, Op{Kind: KindLost, Key: l.key, Token: l.token})
		}
	}
}

// Operations returns a copy of what was recorded, in the order of the calls.
func (h *History) Operations() []Operation {
	ops, _ := h.snapshot()
	return ops
}

func (h *History) snapshot() (ops []Operation, full bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]Operation(nil), h.ops...), h.full
}

// Encode writes the history as JSON, one operation on a line.
func (h *History) Encode(w io.Writer) error {
	b := bufio.NewWriter(w)
	enc := json.NewEncoder(b)
	for _, o := range h.Operations() {
		if err := enc.Encode(o); err != nil {
			return fmt.Errorf("history: encode: %w", err)
		}
	}
	return b.Flush()
}

// Decode reads what [History.Encode] wrote. Errors match [ErrMalformed], or are r's own.
func Decode(r io.Reader) (*History, error) {
	h := New()
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, lineBytesMax)
	for lines.Scan() {
		var o Operation
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			return nil, fmt.Errorf("%w: line %d: %v", ErrMalformed, len(h.ops)+1, err)
		}
		last := int64(0)
		if n := len(h.ops); n > 0 {
			last = h.ops[n-1].Call
		}
		switch {
		case !slices.Contains(kinds, o.Op.Kind):
			return nil, fmt.Errorf("%w: line %d: operation %q", ErrMalformed, len(h.ops)+1, o.Op.Kind)
		case o.Call <= last || o.Call == math.MaxInt64 || o.Return != 0 && (o.Return <= o.Call || o.Return == math.MaxInt64):
			return nil, fmt.Errorf("%w: line %d: call %d, return %d after call %d", ErrMalformed, len(h.ops)+1, o.Call, o.Return, last)
		case len(h.ops) == OperationsMax:
			return nil, fmt.Errorf("%w: more than %d operations", ErrMalformed, OperationsMax)
		}
		h.now = max(h.now, o.Call, o.Return)
		h.ops = append(h.ops, o)
	}
	switch err := lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return nil, fmt.Errorf("%w: line %d is longer than %d bytes", ErrMalformed, len(h.ops)+1, lineBytesMax)
	case err != nil:
		return nil, fmt.Errorf("history: decode: %w", err)
	}
	return h, nil
}
