package lockservice

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"latchkey/dht/keyspace"
	"latchkey/internal/invariant"
	"latchkey/lockservice/pb"
	"latchkey/lockservice/table"
)

// Limits of what is decoded. A longer message is malformed.
const (
	commandBytesMax = 2 << 10  // of a command, query or output: a name and some numbers
	resultBytesMax  = 16 << 10 // of a result, as replica groups keep them
	// infoWaitersMax bounds the waiters an Info lists, at 66 bytes each; the count is always whole.
	infoWaitersMax = 128
	// snapshotBytesMax is above what the limits of session and lock tables allow: 4096 sessions of 1024 requests, at most 85
	// bytes each, and the names of 65,536 locks.
	snapshotBytesMax = 512 << 20
	snapshotVersion  = 1
)

var errMalformed = errors.New("lockservice: malformed message")

// marshal encodes m so that equal messages have equal bytes in one version of the program; replicas compare and hash
// snapshots.
func marshal(m proto.Message) ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("lockservice: encode: %w", err)
	}
	return b, nil
}

// mustMarshal encodes what we made ourselves: every string in it is valid UTF-8, which is all that can be wrong.
func mustMarshal(m proto.Message) []byte {
	b, err := marshal(m)
	invariant.Check(err == nil, "our own message can be encoded", err)
	return b
}

// unmarshal decodes a message of at most max bytes. It ignores fields it does not know, for messages of later versions.
func unmarshal(b []byte, max int, m proto.Message) error {
	if len(b) > max {
		return fmt.Errorf("%w: %d bytes, at most %d", errMalformed, len(b), max)
	}
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, m); err != nil {
		return fmt.Errorf("%w: %v", errMalformed, err)
	}
	return nil
}

func decodeQuery(b []byte) (name string, err error) {
	m := new(pb.Query)
	if err := unmarshal(b, commandBytesMax, m); err != nil {
		return "", err
	}
	return m.Name, CheckName(m.Name)
}

func decodeInfo(b []byte) (*pb.Info, error) {
	m := new(pb.Info)
	return m, unmarshal(b, resultBytesMax, m)
}

func decodeGranted(b []byte) (*pb.Granted, error) {
	m := new(pb.Output)
	if err := unmarshal(b, commandBytesMax, m); err != nil {
		return nil, err
	}
	if m.GetGranted() == nil {
		return nil, fmt.Errorf("%w: output of an unknown kind", errMalformed)
	}
	return m.GetGranted(), nil
}

// statuses of the answers that are no refusals.
var statuses = map[table.Kind]pb.Status{
	table.Granted:  pb.Status_STATUS_GRANTED,
	table.Queued:   pb.Status_STATUS_QUEUED,
	table.Locked:   pb.Status_STATUS_LOCKED,
	table.Held:     pb.Status_STATUS_HELD,
	table.NotHeld:  pb.Status_STATUS_NOT_HELD,
	table.Released: pb.Status_STATUS_RELEASED,
}

// refused is the result of a command or query that cannot be read. Its text goes into the replicated state, so it is made of
// our own words only: those of the protobuf library differ from one build of a program to the next.
func refused(err error) (pb.Status, string) {
	if errors.Is(err, ErrName) {
		return pb.Status_STATUS_BAD_NAME, err.Error()
	}
	return pb.Status_STATUS_MALFORMED, "it cannot be read"
}

// refusal turns the refusing statuses into errors.
func refusal(s pb.Status, detail string) error {
	var kind error
	switch s {
	case pb.Status_STATUS_MALFORMED:
		kind = errMalformed
	case pb.Status_STATUS_BAD_NAME:
		kind = ErrName
	case pb.Status_STATUS_BAD_TTL:
		kind = ErrTTL
	case pb.Status_STATUS_LIMIT:
		kind = ErrLimit
	default:
		return nil
	}
	return fmt.Errorf("%w: the group refused: %s", kind, detail)
}

func partyOf(c table.Client, peer keyspace.NodeID) *pb.Party {
	return &pb.Party{Client: c[:], Peer: peer[:]}
}

func encodeSnapshot(s table.State) []byte {
	m := &pb.Snapshot{Version: snapshotVersion, NowNs: int64(s.Now), Counter: s.Counter}
	for _, l := range s.Locks {
		lock := &pb.Lock{Name: l.Name}
		if o := l.Owner; o != nil {
			lock.Owner = &pb.Owner{
				Party: partyOf(o.Client, o.Peer), Req: o.Req, Counter: o.Counter, TtlNs: int64(o.TTL), EndsNs: int64(o.Ends),
				Waited: o.Waited, Confirmed: o.Confirmed,
			}
		}
		for _, w := range l.Queue {
			lock.Queue = append(lock.Queue, &pb.Queued{Party: partyOf(w.Client, w.Peer), Req: w.Req, TtlNs: int64(w.TTL), SinceNs: int64(w.Since)})
		}
		m.Locks = append(m.Locks, lock)
	}
	return mustMarshal(m)
}

// decodeSnapshot reads the form; whether a table can be in that state is for [table.Restore] to say.
func decodeSnapshot(b []byte) (s table.State, err error) {
	m := new(pb.Snapshot)
	if err := unmarshal(b, snapshotBytesMax, m); err != nil {
		return s, err
	}
	if m.Version != snapshotVersion {
		return s, fmt.Errorf("%w: snapshot version %d, this program reads %d", errMalformed, m.Version, snapshotVersion)
	}
	s = table.State{Now: time.Duration(m.NowNs), Counter: m.Counter}
	for _, l := range m.Locks {
		if err := CheckName(l.Name); err != nil {
			return s, fmt.Errorf("%w: %w", errMalformed, err)
		}
		lock := table.LockState{Name: l.Name}
		if o := l.Owner; o != nil {
			lock.Owner = &table.OwnerState{
				Req: o.Req, Counter: o.Counter, TTL: time.Duration(o.TtlNs), Ends: time.Duration(o.EndsNs),
				Waited: o.Waited, Confirmed: o.Confirmed,
			}
			if err := decodeParty(o.Party, &lock.Owner.Client, &lock.Owner.Peer); err != nil {
				return s, err
			}
		}
		for _, q := range l.Queue {
			w := table.WaiterState{Req: q.Req, TTL: time.Duration(q.TtlNs), Since: time.Duration(q.SinceNs)}
			if err := decodeParty(q.Party, &w.Client, &w.Peer); err != nil {
				return s, err
			}
			lock.Queue = append(lock.Queue, w)
		}
		s.Locks = append(s.Locks, lock)
	}
	return s, nil
}

func decodeParty(p *pb.Party, c *table.Client, peer *keyspace.NodeID) error {
	return setParty(p.GetClient(), p.GetPeer(), c, peer)
}

func setParty(client, node []byte, c *table.Client, peer *keyspace.NodeID) error {
	if len(client) != len(c) || len(node) != len(peer) {
		return fmt.Errorf("%w: a client of %d bytes at a peer of %d", errMalformed, len(client), len(node))
	}
	copy(c[:], client)
	copy(peer[:], node)
	return nil
}
