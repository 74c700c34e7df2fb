package ordertest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"latchkey/internal/history"
	"latchkey/replicagroup/order"
)

// service is the one service of the suite's machine.
const service = "conformance"

// windowMax is how many results the machine keeps above Acked, per client.
const windowMax = 64

// request is a decoded command: registers and locks are numbered.
type request struct {
	kind       byte
	key        uint64
	value, old uint64 // the value and the expected one; old is the token of a release
}

// Kinds of requests.
const (
	opRead byte = iota + 1
	opWrite
	opCAS
	opAcquire
	opRelease
)

func (r request) encode() []byte {
	b := []byte{r.kind}
	for _, v := range [...]uint64{r.key, r.value, r.old} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return b
}

func decodeRequest(b []byte) request {
	return request{
		kind: b[0], key: binary.BigEndian.Uint64(b[1:]),
		value: binary.BigEndian.Uint64(b[9:]), old: binary.BigEndian.Uint64(b[17:]),
	}
}

func register(key uint64) string { return fmt.Sprintf("r%d", key) }
func lock(key uint64) string     { return fmt.Sprintf("l%d", key) }

// op returns the request as the history records it.
func (r request) op() history.Op {
	switch r.kind {
	case opRead:
		return history.Read(register(r.key))
	case opWrite:
		return history.Write(register(r.key), r.value)
	case opCAS:
		return history.CAS(register(r.key), r.old, r.value)
	case opAcquire:
		return history.Acquire(lock(r.key))
	}
	return history.Release(lock(r.key), r.old)
}

// session is a client as the machine knows it.
type session struct {
	acked   uint64
	results map[uint64]history.Answer // above acked
}

// machine is a deterministic replicated machine: registers with compare-and-set, locks with tokens, and sessions that
// give each (client, seq) effect once.
type machine struct {
	registers map[uint64]uint64
	holders   map[uint64]uint64 // lock to the token that holds it
	token     uint64            // the last one granted
	sessions  map[order.ClientID]*session
	index     uint64
	chain     uint64 // digests every entry executed and its result
	// forgetful is a planted mistake: it executes repeats again.
	forgetful bool
}

func newMachine() *machine {
	return &machine{
		registers: make(map[uint64]uint64), holders: make(map[uint64]uint64), sessions: make(map[order.ClientID]*session),
	}
}

// apply executes an entry. effect reports that the entry's command ran now, rather than before or never.
func (m *machine) apply(e order.Entry) (a history.Answer, effect bool) {
	m.index = e.Index
	m.chain = mix(m.chain, digestEntry(e))
	if e.Kind != order.Normal {
		return a, false
	}
	s := m.sessions[e.Cmd.Client]
	if s == nil {
		s = &session{results: make(map[uint64]history.Answer)}
		m.sessions[e.Cmd.Client] = s
	}
	for s.acked < e.Cmd.Acked {
		s.acked++
		delete(s.results, s.acked)
	}
	stored, repeat := s.results[e.Cmd.Seq]
	switch {
	case repeat && !m.forgetful:
		a = stored
	case (e.Cmd.Seq <= s.acked || e.Cmd.Seq > s.acked+windowMax) && !m.forgetful:
		// Its client has the answer already, or asks too far ahead: refused, without effect.
	default:
		a, effect = m.execute(decodeRequest(e.Cmd.Data)), true
		s.results[e.Cmd.Seq] = a
	}
	m.chain = mix(mix(m.chain, a.Value), a.Token)
	return a, effect
}

func (m *machine) execute(r request) history.Answer {
	switch r.kind {
	case opRead:
		return m.read(r.key)
	case opWrite:
		m.registers[r.key] = r.value
		return history.Answer{}
	case opCAS:
		was := m.registers[r.key]
		if was == r.old {
			m.registers[r.key] = r.value
		}
		return history.Answer{OK: was == r.old, Value: was}
	case opAcquire:
		if m.holders[r.key] != 0 {
			return history.Answer{}
		}
		m.token++
		m.holders[r.key] = m.token
		return history.Answer{Token: m.token}
	case opRelease:
		if m.holders[r.key] != r.old {
			return history.Answer{}
		}
		delete(m.holders, r.key)
		return history.Answer{OK: true}
	}
	return history.Answer{}
}

func (m *machine) read(key uint64) history.Answer { return history.Answer{Value: m.registers[key]} }

// snapshot encodes the machine.
func (m *machine) snapshot() []byte {
	b := binary.BigEndian.AppendUint64(nil, m.index)
	b = binary.BigEndian.AppendUint64(b, m.chain)
	b = binary.BigEndian.AppendUint64(b, m.token)
	for _, table := range []map[uint64]uint64{m.registers, m.holders} {
		b = binary.BigEndian.AppendUint64(b, uint64(len(table)))
		for _, k := range slices.Sorted(maps.Keys(table)) {
			b = binary.BigEndian.AppendUint64(b, k)
			b = binary.BigEndian.AppendUint64(b, table[k])
		}
	}
	clients := slices.SortedFunc(maps.Keys(m.sessions), func(a, b order.ClientID) int { return slices.Compare(a[:], b[:]) })
	for _, c := range clients {
		s := m.sessions[c]
		b = append(b, c[:]...)
		b = binary.BigEndian.AppendUint64(b, s.acked)
		b = binary.BigEndian.AppendUint64(b, uint64(len(s.results)))
		for _, seq := range slices.Sorted(maps.Keys(s.results)) {
			a := s.results[seq]
			b = binary.BigEndian.AppendUint64(b, seq)
			b = binary.BigEndian.AppendUint64(b, a.Value)
			b = binary.BigEndian.AppendUint64(b, a.Token)
			if a.OK {
				b = append(b, 1)
			} else {
				b = append(b, 0)
			}
		}
	}
	return b
}

// errSnapshot says that an engine handed over a snapshot that no machine made.
var errSnapshot = errors.New("the snapshot handed over is not one of the machine's")

// restoreMachine decodes a snapshot.
func restoreMachine(b []byte) (m *machine, err error) {
	m = newMachine()
	short := false
	u64 := func() uint64 {
		if len(b) < 8 {
			short, b = true, nil
			return 0
		}
		v := binary.BigEndian.Uint64(b)
		b = b[8:]
		return v
	}
	m.index, m.chain, m.token = u64(), u64(), u64()
	for _, table := range []map[uint64]uint64{m.registers, m.holders} {
		for n := u64(); n > 0 && !short; n-- {
			k := u64()
			table[k] = u64()
		}
	}
	for len(b) > 0 && !short {
		var c order.ClientID
		b = b[copy(c[:], b):]
		s := &session{acked: u64(), results: make(map[uint64]history.Answer)}
		m.sessions[c] = s
		for n := u64(); n > 0 && !short; n-- {
			seq := u64()
			a := history.Answer{Value: u64(), Token: u64()}
			if short = short || len(b) < 1; !short {
				a.OK, b = b[0] == 1, b[1:]
			}
			s.results[seq] = a
		}
	}
	if short {
		return nil, errSnapshot
	}
	return m, nil
}

// digestEntry digests everything about an entry that all members must agree on.
func digestEntry(e order.Entry) uint64 {
	h := mix(mix(mix(uint64(e.Kind), e.Index), e.View), e.Stamp.Boot)
	h = mix(mix(mix(h, uint64(e.Stamp.At)), e.Cmd.Seq), e.Cmd.Acked)
	h = mixBytes(mixBytes(mixBytes(h, e.Cmd.Client[:]), e.Cmd.Author[:]), []byte(e.Cmd.Service))
	return mixBytes(h, e.Cmd.Data)
}

// mix folds a word into a digest; it finds differences, not attackers.
func mix(h, v uint64) uint64 {
	h = (h ^ v) * 0x9e3779b97f4a7c15
	return h ^ h>>29
}

func mixBytes(h uint64, b []byte) uint64 {
	h = mix(h, uint64(len(b)))
	for ; len(b) >= 8; b = b[8:] {
		h = mix(h, binary.LittleEndian.Uint64(b))
	}
	for _, c := range b {
		h = mix(h, uint64(c))
	}
	return h
}
