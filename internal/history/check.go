package history

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// Verdict says whether a history is one that a correct service could have produced.
type Verdict uint8

// The verdicts. Only Ok is a pass.
const (
	Unknown Verdict = iota // not decided within the time, or not everything was recorded
	Ok
	Illegal
)

// String returns "unknown", "ok" or "illegal".
func (v Verdict) String() string { return [...]string{"unknown", "ok", "illegal"}[v] }

var (
	// ErrIllegal matches the error of a history that no correct service could have produced.
	ErrIllegal = errors.New("history: illegal")
	// ErrUnknown matches the error of a history that was not decided.
	ErrUnknown = errors.New("history: undecided")
)

// Report is a verdict with what there is to say about it.
type Report struct {
	Verdict Verdict
	Key     string // the register or lock that is illegal or undecided
	Detail  string
	Judged  int // operations that were judged
}

// Err returns nil when the verdict is Ok, otherwise an error that matches [ErrIllegal] or [ErrUnknown].
func (r Report) Err() error {
	switch r.Verdict {
	case Ok:
		return nil
	case Illegal:
		return fmt.Errorf("%w: %q: %s", ErrIllegal, r.Key, r.Detail)
	}
	return fmt.Errorf("%w: %q: %s", ErrUnknown, r.Key, r.Detail)
}

// CheckRegister judges every Read, Write and CAS: each key is a register with compare-and-set that holds 0 at first. A
// timeout of 0 is none.
func (h *History) CheckRegister(timeout time.Duration) Report {
	return h.check(registerModel, timeout, KindRead, KindWrite, KindCAS)
}

// CheckLock judges every Acquire, Release and loss: each key is a lock with fencing tokens. See the package comment for
// what that means. A timeout of 0 is none.
func (h *History) CheckLock(timeout time.Duration) Report {
	return h.check(lockModel, timeout, KindAcquire, KindRelease, KindLost)
}

func (h *History) check(m porcupine.Model, timeout time.Duration, kinds ...Kind) Report {
	ops, full := h.snapshot()
	if full {
		return Report{Detail: fmt.Sprintf("more than %d operations: not all were recorded", OperationsMax)}
	}
	keys := make(map[string][]porcupine.Operation)
	judged := 0
	for _, o := range ops {
		if !slices.Contains(kinds, o.Op.Kind) || o.NoEffect {
			continue
		}
		if o.open() && (o.Op.Kind == KindRead || o.Op.Kind == KindAcquire) {
			continue // see the package comment
		}
		judged++
		keys[o.Op.Key] = append(keys[o.Op.Key], porcupine.Operation{
			ClientId: o.Client, Input: o, Output: o, Call: o.Call, Return: o.end(),
		})
	}
	begin := time.Now()
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		left := timeout - time.Since(begin)
		if timeout > 0 && left <= 0 {
			return Report{Verdict: Unknown, Key: key, Judged: judged, Detail: fmt.Sprintf("no verdict within %v", timeout)}
		}
		switch porcupine.CheckOperationsTimeout(m, keys[key], max(left, 0)) {
		case porcupine.Ok:
		case porcupine.Illegal:
			return Report{Verdict: Illegal, Key: key, Judged: judged, Detail: explain(m, keys[key])}
		default:
			return Report{Verdict: Unknown, Key: key, Judged: judged, Detail: fmt.Sprintf("no verdict within %v", timeout)}
		}
	}
	return Report{Verdict: Ok, Judged: judged}
}

// explain names the first operation that fits nowhere after as long a run of operations as porcupine could order.
func explain(m porcupine.Model, ops []porcupine.Operation) string {
	const patience = 5 * time.Second
	_, info := porcupine.CheckOperationsVerbose(m, ops, patience)
	var best []porcupine.Operation
	for _, part := range info.PartialLinearizationsOperations() {
		for _, line := range part {
			if len(line) > len(best) {
				best = line
			}
		}
	}
	placed := make(map[int64]bool, len(best))
	for _, o := range best {
		placed[o.Call] = true
	}
	for _, o := range ops {
		if !placed[o.Call] {
			detail := fmt.Sprintf("%v fits nowhere", o.Input.(Operation))
			if len(best) > 0 {
				detail += fmt.Sprintf("; the longest order of the others has %d of %d and ends with %v",
					len(best), len(ops), best[len(best)-1].Input.(Operation))
			}
			return detail
		}
	}
	return "no order of the operations explains the answers"
}

// registerModel is a register with compare-and-set. Its state is the value, a uint64.
var registerModel = porcupine.Model{
	Init: func() any { return uint64(0) },
	Step: func(state, in, _ any) (bool, any) {
		v, o := state.(uint64), in.(Operation)
		switch o.Op.Kind {
		case KindRead:
			return o.Answer.Value == v, v
		case KindWrite:
			return true, o.Op.Value
		}
		next := v
		if v == o.Op.Old {
			next = o.Op.Value
		}
		fits := o.open() || o.Answer.Value == v && o.Answer.OK == (v == o.Op.Old)
		return fits, next
	},
	Hash: func(state any) uint64 { return spread(state.(uint64)) },
}

// lockState is who holds a lock, by token (0 is nobody), and the highest token ever granted.
type lockState struct {
	holder uint64
	client int
	top    uint64
}

func (s lockState) heldBy(o Operation) bool {
	return s.holder != 0 && s.holder == o.Op.Token && s.client == o.Client
}

// lockModel is a lock with fencing tokens. An open Release and a Lost may come at any later time, so the checker may put
// them at the very end, where they find the lock in other hands and do nothing.
var lockModel = porcupine.Model{
	Init: func() any { return lockState{} },
	Step: func(state, in, _ any) (bool, any) {
		s, o := state.(lockState), in.(Operation)
		free := lockState{top: s.top}
		switch o.Op.Kind {
		case KindAcquire:
			ok := s.holder == 0 && o.Answer.Token > s.top
			return ok, lockState{holder: o.Answer.Token, client: o.Client, top: o.Answer.Token}
		case KindRelease:
			if !o.open() && o.Answer.OK && !s.heldBy(o) {
				return false, s
			}
		}
		// A Release that is open, or that was told that the lock is not held: its client has stopped using the lock,
		// so the lease may have run out at any time since the call. The same after a Lost.
		if s.heldBy(o) {
			return true, free
		}
		return true, s
	},
	Hash: func(state any) uint64 {
		s := state.(lockState)
		return spread(s.holder) ^ spread(s.top+1)<<1
	},
}

// spread makes neighbouring numbers hash far apart.
func spread(v uint64) uint64 {
	v = (v ^ v>>31) * 0x9e3779b97f4a7c15
	return v ^ v>>29
}

// CheckTokens reports whether the tokens of every lock rise strictly in the order of the grants, as far as that order can
// be seen: no token is granted twice, and a grant that was asked for after another had returned has the higher token. It
// needs no search, so it decides also what [History.CheckLock] does not in its time. The error matches [ErrIllegal], or
// [ErrUnknown] when not everything was recorded.
func (h *History) CheckTokens() error {
	ops, full := h.snapshot()
	if full {
		return fmt.Errorf("%w: more than %d operations", ErrUnknown, OperationsMax)
	}
	byReturn := make(map[string][]Operation)
	for _, o := range ops {
		if o.Op.Kind == KindAcquire && !o.open() && !o.NoEffect {
			byReturn[o.Op.Key] = append(byReturn[o.Op.Key], o)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(byReturn)) {
		returned := byReturn[key]
		called := slices.Clone(returned)
		slices.SortFunc(returned, func(a, b Operation) int { return cmp.Compare(a.Return, b.Return) })
		granted := make(map[uint64]Operation)
		var top Operation // the highest token returned before the call at hand
		for _, o := range called {
			for ; len(returned) > 0 && returned[0].Return < o.Call; returned = returned[1:] {
				if returned[0].Answer.Token > top.Answer.Token {
					top = returned[0]
				}
			}
			if o.Answer.Token <= top.Answer.Token {
				return fmt.Errorf("%w: %q: token did not rise: %v after %v", ErrIllegal, key, o, top)
			}
			if other, dup := granted[o.Answer.Token]; dup {
				return fmt.Errorf("%w: %q: token granted twice: %v and %v", ErrIllegal, key, other, o)
			}
			granted[o.Answer.Token] = o
		}
	}
	return nil
}
