package lockservice

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"latchkey/dht/keyspace"
	"latchkey/internal/invariant"
	"latchkey/lockservice/pb"
	"latchkey/lockservice/sigma"
	"latchkey/lockservice/table"
)

// Limits of what is decoded. A longer message is malformed.
const (
	commandBytesMax = 2 << 10  // of a command, query or output: a name and some numbers
	resultBytesMax  = 16 << 10 // of a result, as replica groups keep them
	// infoWaitersMax, infoHoldersMax and infoBreaksMax bound what an Info lists, at 68, 90 and 140 bytes each; the first two counts are
	// always whole.
	infoWaitersMax = 128
	infoHoldersMax = 40
	infoBreaksMax  = 8

	infoCandidatesMax = 30 // at 100 bytes each
	// listNamesMax and listBytesMax bound one page of a list of names.
	listNamesMax = 64
	listBytesMax = resultBytesMax - 4<<10 // one more name, with all there is to tell of it, still fits a result
	// snapshotBytesMax is above what the limits of session and lock tables allow: 4096 sessions of 1024 requests, at most 85
	// bytes each, and the names of 65,536 locks.
	snapshotBytesMax = 512 << 20
	// snapshotVersion is the version that is written. One of snapshotVersionMin is read too: what it lacks is absent.
	snapshotVersion    = 5
	snapshotVersionMin = 1
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

// decodeQuery reads what is asked: about a name, or, when list is not nil, about those from one on.
func decodeQuery(b []byte) (name string, list *pb.List, err error) {
	m := new(pb.Query)
	if err := unmarshal(b, commandBytesMax, m); err != nil {
		return "", nil, err
	}
	if m.List != nil {
		if m.List.From == "" {
			return "", m.List, nil
		}
		return "", m.List, CheckName(m.List.From)
	}
	return m.Name, nil, CheckName(m.Name)
}

// decodeListing reads a page of a table. The names in it rise.
func decodeListing(b []byte) (*pb.Listing, error) {
	m := new(pb.Listing)
	if err := unmarshal(b, resultBytesMax, m); err != nil {
		return nil, err
	}
	for i, l := range m.Locks {
		if CheckName(l.Name) != nil || i > 0 && m.Locks[i-1].Name >= l.Name || (l.Info == nil) != l.Away {
			return nil, fmt.Errorf("%w: a list with a name that is none, or out of order", errMalformed)
		}
	}
	return m, nil
}

func decodeInfo(b []byte) (*pb.Info, error) {
	m := new(pb.Info)
	return m, unmarshal(b, resultBytesMax, m)
}

// decodeOutput reads what is pushed: a grant or the end of one; the other is nil.
func decodeOutput(b []byte) (*pb.Granted, *pb.Ended, error) {
	m := new(pb.Output)
	if err := unmarshal(b, commandBytesMax, m); err != nil {
		return nil, nil, err
	}
	if m.GetGranted() == nil && m.GetEnded() == nil {
		return nil, nil, fmt.Errorf("%w: output of an unknown kind", errMalformed)
	}
	return m.GetGranted(), m.GetEnded(), nil
}

// statuses of the answers that are no refusals.
var statuses = map[table.Kind]pb.Status{
	table.Granted:  pb.Status_STATUS_GRANTED,
	table.Queued:   pb.Status_STATUS_QUEUED,
	table.Locked:   pb.Status_STATUS_LOCKED,
	table.Held:     pb.Status_STATUS_HELD,
	table.NotHeld:  pb.Status_STATUS_NOT_HELD,
	table.Released: pb.Status_STATUS_RELEASED,
	table.Broken:   pb.Status_STATUS_BROKEN,

	table.Elsewhere: pb.Status_STATUS_ELSEWHERE,
}

// infoModes are the modes as an Info has them.
var infoModes = map[sigma.Mode]pb.Mode{
	sigma.ModeGroup: pb.Mode_MODE_GROUP, sigma.ModeSigma: pb.Mode_MODE_SIGMA, sigma.ModePending: pb.Mode_MODE_PENDING,
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
	case pb.Status_STATUS_MODE:
		kind = ErrMode
	case pb.Status_STATUS_SHAPE:
		kind = ErrShape
	default:
		return nil
	}
	return fmt.Errorf("%w: the group refused: %s", kind, detail)
}

func partyOf(c table.Client, peer keyspace.NodeID) *pb.Party {
	return &pb.Party{Client: c[:], Peer: peer[:]}
}

// encodeSnapshot writes a table, and what goes with it of protocol sigma, if anything.
func encodeSnapshot(s table.State, sig *sigmaState) []byte {
	m := &pb.Snapshot{Version: snapshotVersion, NowNs: int64(s.Now), Counter: s.Counter}
	for _, l := range s.Locks {
		lock := &pb.Lock{Name: l.Name, Permits: uint64(l.Permits), UntilNs: int64(l.Until), Away: l.Away, TurnsUntilNs: int64(l.TurnsUntil)}
		if h := l.Hand; h != nil {
			lock.Hand = &pb.Handover{Pending: h.Pending, Reporters: bytesOf(h.Reporters)}
			for _, c := range h.Candidates {
				lock.Hand.Candidates = append(lock.Hand.Candidates, &pb.Candidate{
					Wish: wishOf(c.Wish), Peer: c.Peer[:], UntilNs: int64(c.Until), DelayNs: int64(c.Delay), Token: uint64(c.Token),
				})
			}
			for _, q := range h.Said {
				lock.Hand.Said = append(lock.Hand.Said, wishOf(q))
			}
		}
		for _, n := range l.Turns {
			lock.Turns = append(lock.Turns, &pb.Turn{Wish: wishOf(n.Wish), Peer: n.Peer[:], ReqTs: n.ReqTS, Come: n.Come})
		}
		for _, o := range l.Owners {
			lock.Owners = append(lock.Owners, &pb.Owner{
				Party: partyOf(o.Client, o.Peer), Req: o.Req, Counter: o.Counter, TtlNs: int64(o.TTL), EndsNs: int64(o.Ends),
				Waited: o.Waited, Confirmed: o.Confirmed, Shared: o.Shared, DelayNs: int64(o.Delay), Value: o.Value, Wish: wishOf(o.Wish),
			})
		}
		for _, w := range l.Queue {
			lock.Queue = append(lock.Queue, &pb.Queued{
				Party: partyOf(w.Client, w.Peer), Req: w.Req, TtlNs: int64(w.TTL), SinceNs: int64(w.Since), HeardNs: int64(w.Heard),
				Shared: w.Shared, DelayNs: int64(w.Delay), Value: w.Value, Wish: wishOf(w.Wish), Held: uint64(w.Held), Try: w.Try,
			})
		}
		m.Locks = append(m.Locks, lock)
	}
	for _, b := range s.Breaks {
		broken := brokenOf(b)
		broken.Name, broken.NowNs = b.Name, int64(b.Now)
		m.Breaks = append(m.Breaks, broken)
	}
	if sig != nil {
		m.Sigma = sig.stored()
	}
	return mustMarshal(m)
}

// brokenOf tells of a break to those who know the lock's name.
func brokenOf(b table.BreakState) *pb.Broken {
	return &pb.Broken{
		Token: uint64(b.Token), Holder: partyOf(b.Holder.Client, b.Holder.Peer), Holders: uint32(b.Holders),
		By: partyOf(b.By.Client, b.By.Peer), AtUnixNs: b.At,
	}
}

// decodeSnapshot reads the form; whether a table can be in that state is for [table.Restore] to say.
func decodeSnapshot(b []byte) (s table.State, sig *pb.Sigma, err error) {
	m := new(pb.Snapshot)
	if err := unmarshal(b, snapshotBytesMax, m); err != nil {
		return s, nil, err
	}
	s, err = tableOf(m)
	return s, m.Sigma, err
}

func tableOf(m *pb.Snapshot) (s table.State, err error) {
	if m.Version < snapshotVersionMin || m.Version > snapshotVersion {
		return s, fmt.Errorf("%w: snapshot version %d, this program reads %d to %d", errMalformed, m.Version, snapshotVersionMin, snapshotVersion)
	}
	s = table.State{Now: time.Duration(m.NowNs), Counter: m.Counter}
	for _, l := range m.Locks {
		if err := CheckName(l.Name); err != nil {
			return s, fmt.Errorf("%w: %w", errMalformed, err)
		}
		lock := table.LockState{Name: l.Name, Permits: permitsOf(l.Permits), Until: time.Duration(l.UntilNs), Away: l.Away}
		if lock.Hand, err = decodeHand(l.Hand); err != nil {
			return s, err
		}
		if lock.TurnsUntil, lock.Turns, err = decodeTurns(l); err != nil {
			return s, err
		}
		for _, x := range l.Owners {
			o := table.OwnerState{
				Req: x.Req, Counter: x.Counter, TTL: time.Duration(x.TtlNs), Ends: time.Duration(x.EndsNs),
				Waited: x.Waited, Confirmed: x.Confirmed, Shared: x.Shared, Delay: time.Duration(x.DelayNs), Value: x.Value,
			}
			if o.Wish, err = decodeWish(x.Wish); err != nil {
				return s, err
			}
			if err := decodeParty(x.Party, &o.Client, &o.Peer); err != nil {
				return s, err
			}
			lock.Owners = append(lock.Owners, o)
		}
		for _, q := range l.Queue {
			w := table.WaiterState{
				Req: q.Req, TTL: time.Duration(q.TtlNs), Since: time.Duration(q.SinceNs), Heard: time.Duration(q.HeardNs),
				Shared: q.Shared, Delay: time.Duration(q.DelayNs), Value: q.Value, Held: table.Token(q.Held), Try: q.Try,
			}
			if w.Wish, err = decodeWish(q.Wish); err != nil {
				return s, err
			}
			if err := decodeParty(q.Party, &w.Client, &w.Peer); err != nil {
				return s, err
			}
			lock.Queue = append(lock.Queue, w)
		}
		s.Locks = append(s.Locks, lock)
	}
	for _, x := range m.Breaks {
		b := table.BreakState{
			Name: x.Name, Token: table.Token(x.Token), Holders: int(x.Holders), Now: time.Duration(x.NowNs), At: x.AtUnixNs,
		}
		err := errors.Join(CheckName(x.Name), decodeParty(x.Holder, &b.Holder.Client, &b.Holder.Peer), decodeParty(x.By, &b.By.Client, &b.By.Peer))
		if err != nil {
			return s, fmt.Errorf("%w: %w", errMalformed, err)
		}
		s.Breaks = append(s.Breaks, b)
	}
	return s, nil
}

// wishOf returns nil of no request.
func wishOf(q sigma.Req) *pb.Wish {
	if q == (sigma.Req{}) {
		return nil
	}
	return &pb.Wish{Session: q.Session[:], Seq: q.Seq}
}

func decodeWish(w *pb.Wish) (q sigma.Req, err error) {
	if w == nil {
		return q, nil
	}
	if q.Seq = w.Seq; len(w.Session) != len(q.Session) {
		return q, fmt.Errorf("%w: a session of %d bytes", errMalformed, len(w.Session))
	}
	copy(q.Session[:], w.Session)
	return q, nil
}

func decodeHand(h *pb.Handover) (*table.HandoverState, error) {
	if h == nil {
		return nil, nil
	}
	out := &table.HandoverState{Pending: h.Pending}
	for _, b := range h.Reporters { // in the order in which they came
		n, err := nodesOf([][]byte{b})
		if err != nil {
			return nil, err
		}
		out.Reporters = append(out.Reporters, n...)
	}
	for _, c := range h.Candidates {
		peer, err := nodesOf([][]byte{c.Peer})
		if err != nil {
			return nil, err
		}
		x := table.CandidateState{Peer: peer[0], Until: time.Duration(c.UntilNs), Delay: time.Duration(c.DelayNs), Token: table.Token(c.Token)}
		if x.Wish, err = decodeWish(c.Wish); err != nil {
			return nil, err
		}
		out.Candidates = append(out.Candidates, x)
	}
	for _, w := range h.Said {
		q, err := decodeWish(w)
		if err != nil {
			return nil, err
		}
		out.Said = append(out.Said, q)
	}
	return out, nil
}

func decodeTurns(l *pb.Lock) (until time.Duration, turns []table.Turn, err error) {
	for _, x := range l.Turns {
		peer, err := nodesOf([][]byte{x.Peer})
		if err != nil {
			return 0, nil, err
		}
		n := table.Turn{Peer: peer[0], ReqTS: x.ReqTs, Come: x.Come}
		if n.Wish, err = decodeWish(x.Wish); err != nil {
			return 0, nil, err
		}
		turns = append(turns, n)
	}
	return time.Duration(l.TurnsUntilNs), turns, nil
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
