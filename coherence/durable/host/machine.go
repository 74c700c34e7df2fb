package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"latchkey/coherence/durable"
	"latchkey/coherence/durable/pb"
	"latchkey/coherence/durable/store"
	"latchkey/dht/keyspace"
	"latchkey/internal/invariant"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/session"
)

// ServiceName is the service of replica groups that keeps durable objects.
const ServiceName = "durable"

// PieceBytesMax is how much of a command goes into one entry of the log. A command that is longer takes several.
const PieceBytesMax = order.DataBytesMax - pieceHeader

// An entry begins with what it is.
const (
	wholeEntry byte = iota + 1
	pieceEntry
)

// pieceHeader is what stands before a piece of a command:
//
//	kind, term and number of the proposal, length of the command, where in it the piece begins
const pieceHeader = 1 + 8 + 8 + 4 + 4

// ErrSnapshot is matched by errors about a snapshot that cannot be read.
var ErrSnapshot = errors.New("durable/host: snapshot")

// proposal names one attempt of one leader to have a command ordered.
type proposal struct{ term, number uint64 }

// gathering are the pieces of a command that have come, the first of them first.
type gathering struct {
	of    proposal
	total int
	data  []byte // nil: nothing is gathered
}

// Machine is the store of one group as its replicas execute it. Like every [session.Machine] it is deterministic and belongs to one
// goroutine.
type Machine struct {
	cfg    store.Config
	store  *store.Store
	pieces gathering
}

var (
	_ session.Insider  = (*Machine)(nil)
	_ session.Splitter = (*Machine)(nil)
)

// NewMachine returns the machine of a group that has no durable objects. It panics where the generation does not fit into a version, for a
// root makes no such group.
func NewMachine(g order.GroupID) *Machine {
	cfg := store.Config{Base: baseOf(g)}
	return &Machine{cfg: cfg, store: store.New(cfg)}
}

// baseOf is the version before the first of a group's generation. As in tokens of locks, the generation of a prefix's group has ten bits,
// and stands before six for those of a key's own group, which durable objects do not have.
func baseOf(g order.GroupID) durable.Version {
	overlay, prefix := g.Gen>>32, uint32(g.Gen)
	if g.Prefix.Len == keyspace.PrefixBitsMax {
		prefix = 0 // a key's own group, where nobody asks for a durable object
	}
	invariant.Check(overlay < 1<<8 && prefix < 1<<10, "a generation that versions can hold", g.Gen)
	return durable.Base(uint8(overlay), uint16(prefix)<<6)
}

// executed is what a machine posts of each command.
type executed struct {
	cmd    store.Command
	result store.Result
}

// entriesOf cuts a command into the entries that carry it.
func entriesOf(of proposal, c *store.Command) ([][]byte, error) {
	b, err := pb.EncodeCommand(c)
	if err != nil {
		return nil, err
	}
	if 1+len(b) <= order.DataBytesMax {
		return [][]byte{append([]byte{wholeEntry}, b...)}, nil
	}
	var out [][]byte
	for at := 0; at < len(b); at += PieceBytesMax {
		piece := b[at:min(at+PieceBytesMax, len(b))]
		e := append(make([]byte, 0, pieceHeader+len(piece)), pieceEntry)
		e = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(e, of.term), of.number)
		e = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(e, uint32(len(b))), uint32(at))
		out = append(out, append(e, piece...))
	}
	return out, nil
}

// ApplyOwn executes an entry.
func (m *Machine) ApplyOwn(c session.Context, data []byte) {
	command := m.gather(data)
	if command == nil {
		return
	}
	cmd, err := pb.DecodeCommand(command)
	if err != nil {
		return // no leader proposes that
	}
	res := m.store.Apply(c.Index, c.Now, cmd)
	if c.Post != nil {
		c.Post(executed{cmd, res})
	}
}

// gather returns the command that an entry ends, nil if it ends none.
func (m *Machine) gather(data []byte) []byte {
	p := m.pieces
	m.pieces = gathering{}
	switch {
	case len(data) == 0:
		return nil
	case data[0] == wholeEntry:
		return data[1:]
	case data[0] != pieceEntry || len(data) <= pieceHeader:
		return nil
	}
	of := proposal{binary.BigEndian.Uint64(data[1:]), binary.BigEndian.Uint64(data[9:])}
	total, at, piece := int(binary.BigEndian.Uint32(data[17:])), int(binary.BigEndian.Uint32(data[21:])), data[pieceHeader:]
	switch {
	case total > pb.CommandBytesMax || at+len(piece) > total:
		return nil
	case at == 0:
		p = gathering{of: of, total: total, data: make([]byte, 0, total)}
	case p.of != of || p.total != total || len(p.data) != at: // of another attempt, or one between them was lost
		return nil
	}
	if p.data = append(p.data, piece...); len(p.data) == total {
		return p.data
	}
	m.pieces = p
	return nil
}

// Apply executes no commands of clients: whoever leads proposes what nodes ask it for.
func (m *Machine) Apply(session.Context, []byte) []byte { return nil }

// Tick, Deadline: what ends by time is ended by entries of the leader, and forgotten with the next command.
func (m *Machine) Tick(session.Context)            {}
func (m *Machine) Deadline() (time.Duration, bool) { return 0, false }

// SessionEnded: nobody has a session of the group's.
func (m *Machine) SessionEnded(session.Context, order.ClientID) {}

// FirstView and NextView: the log's order is all that is needed of the group.
func (m *Machine) FirstView(order.View)                 {}
func (m *Machine) NextView(session.Context, order.View) {}

// Resend: the leader repeats what it says itself.
func (m *Machine) Resend(session.Context) {}

// KeyOf, Carve and Graft: locks may get groups of their own, and objects do not.
func (m *Machine) KeyOf([]byte, bool) (keyspace.Key, bool) { return keyspace.Key{}, false }
func (m *Machine) Carve(session.Context, string) ([]byte, []session.PartClient) {
	return nil, nil
}
func (m *Machine) Graft(_ session.Context, part []byte) error {
	if len(part) > 0 {
		return fmt.Errorf("durable/host: %d bytes of a key that moves, and objects do not", len(part))
	}
	return nil
}

const snapshotVersion = 1

// Snapshot returns the whole state; nothing where nobody has used the group.
//
//	version, length of the command that is being gathered (0: none); if there is one: term and number of its proposal, bytes that have come;
//	the store's
func (m *Machine) Snapshot() []byte {
	s := m.store.Snapshot()
	if len(s) == 0 && m.pieces.data == nil {
		return nil
	}
	b := binary.AppendUvarint([]byte{snapshotVersion}, uint64(m.pieces.total))
	if p := m.pieces; p.data != nil {
		b = binary.AppendUvarint(binary.AppendUvarint(b, p.of.term), p.of.number)
		b = append(binary.AppendUvarint(b, uint64(len(p.data))), p.data...)
	}
	return append(b, s...)
}

// Restore replaces the state by one that Snapshot encoded. It refuses anything else with an error that matches [ErrSnapshot], and changes nothing
// then.
func (m *Machine) Restore(b []byte) error {
	var p gathering
	if len(b) > 0 {
		if b[0] != snapshotVersion {
			return fmt.Errorf("%w: version %d, this program reads %d", ErrSnapshot, b[0], snapshotVersion)
		}
		r := reader{rest: b[1:]}
		if total := r.uint(); total > 0 {
			p = gathering{of: proposal{r.uint(), r.uint()}, total: int(min(total, pb.CommandBytesMax+1))}
			n := r.uint()
			if r.bad || total > pb.CommandBytesMax || n == 0 || n >= total || n > uint64(len(r.rest)) {
				return fmt.Errorf("%w: %d bytes of a command of %d", ErrSnapshot, n, total)
			}
			p.data = append(make([]byte, 0, total), r.rest[:n]...)
			r.rest = r.rest[n:]
		} else if len(r.rest) == 0 {
			r.bad = true // of nothing there is no snapshot
		}
		if r.bad {
			return fmt.Errorf("%w: cut short, or of nothing", ErrSnapshot)
		}
		b = r.rest
	}
	s, err := store.Restore(m.cfg, b)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSnapshot, err)
	}
	m.store, m.pieces = s, p
	return nil
}

// reader reads numbers.
type reader struct {
	rest []byte
	bad  bool
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.rest)
	if n <= 0 || n > 1 && r.rest[n-1] == 0 { // of each number there is one form
		r.bad = true
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

// Info is what a group says of an object. It is read linearizably, and nobody's copy is asked for.
type Info struct {
	Exists  bool
	Version durable.Version // 0: never written, as far as is remembered
	Size    int             // of the value
	TTL     time.Duration   // 0: none
	Settled bool            // the log says that no older copy is left
	Objects int             // that the group has, and their bytes
	Bytes   int
}

// InfoQuery asks a group's [Machine] for the [Info] of an object.
func InfoQuery(object string) []byte { return []byte(object) }

// Query answers what InfoQuery asks.
func (m *Machine) Query(_ session.Context, data []byte) []byte {
	name := string(data[:min(len(data), durable.ObjectBytesMax)])
	o := m.store.Lookup(name)
	var i Info
	if i.Exists = o.Value != nil; i.Exists {
		i.Size = len(o.Value.Bytes)
	}
	i.Version, i.TTL, i.Settled = o.Version, o.TTL, m.store.Settled(name)
	i.Objects, i.Bytes = m.store.Len()
	return i.encode()
}

func (i *Info) encode() []byte {
	flags := byte(0)
	if i.Exists {
		flags |= 1
	}
	if i.Settled {
		flags |= 2
	}
	b := []byte{flags}
	for _, v := range [...]uint64{uint64(i.Version), uint64(i.Size), uint64(i.TTL), uint64(i.Objects), uint64(i.Bytes)} {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

// DecodeInfo reads the answer to an [InfoQuery].
func DecodeInfo(b []byte) (Info, error) {
	if len(b) == 0 || b[0] > 3 {
		return Info{}, errInfo
	}
	r := reader{rest: b[1:]}
	i := Info{Exists: b[0]&1 > 0, Settled: b[0]&2 > 0, Version: durable.Version(r.uint())}
	var small [4]uint64
	for k := range small {
		if small[k] = r.uint(); small[k] > 1<<62 {
			r.bad = true
		}
	}
	if r.bad || len(r.rest) > 0 {
		return Info{}, errInfo
	}
	i.Size, i.TTL, i.Objects, i.Bytes = int(small[0]), time.Duration(small[1]), int(small[2]), int(small[3])
	return i, nil
}

var errInfo = errors.New("durable/host: an answer about an object cannot be read")
