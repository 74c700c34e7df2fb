package lockservice

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"latchkey/internal/automaton"
	"latchkey/internal/invariant"
	"latchkey/lockservice/pb"
	"latchkey/lockservice/table"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/quorum"
	"latchkey/replicagroup/session"
)

// MachineConfig configures [NewMachine]. Every replica of a group must use the same.
type MachineConfig struct {
	Gen    uint64        // of a prefix's group: overlay generation (at most [OverlayGenMax]) << 32 | generation of the prefix (at most [PrefixGenMax])
	TTLMax time.Duration // longest lease, from the overlay's genesis
	Drift  automaton.Drift
	// Wait is for how long, in log time, a group that is not the first of its prefix grants nothing, where that is longer than leases
	// of an earlier one may last: in an overlay with own groups [placement.KeysQuarantine], until which it may hear of one that
	// serves a key of the prefix.
	Wait time.Duration
	// Own says that the group is a key's own, and Gen as [placement.OwnGen] has it. It serves nothing before it has been given what the
	// key's prefix's group knew, so it has nothing to wait for then.
	Own bool
	// Sigma is the longest lease that voters grant by protocol sigma before the log allows longer ones: the overlay's default TTL. Zero:
	// the group does not run the protocol, and every name is locked by the table, as in a group that is a key's own.
	Sigma time.Duration
}

// Machine is what a group's log knows of locks: the table of protocol group, and what the log has to say to the voters that lock by
// protocol sigma (sigma.go). It turns bytes into the commands of package lockservice/table and its answers into bytes. Like every
// [session.Machine] it is deterministic and belongs to one goroutine.
type Machine struct {
	cfg    table.Config
	table  *table.Table
	grants []table.Grant // storage of one step
	sigma  sigmaState
}

var _ session.Machine = (*Machine)(nil)

// NewMachine returns an empty lock table. In a group that is not the first of its prefix it grants nothing before every lease
// of an earlier one is over: stretch(TTLMax) of log time after its start, of which a change of leader takes nothing away, since
// log time adds up only what some leader's own clock has counted. It panics when TTLMax is below [TTLMin], for a genesis with such
// a maximum is not valid, and when Gen does not fit into a token, for a root makes no such group.
func NewMachine(cfg MachineConfig) *Machine {
	overlay, prefix := cfg.Gen>>32, uint32(cfg.Gen)
	var first uint64
	if cfg.Own {
		prefix, first = uint32(placement.ParentGen(cfg.Gen)), placement.KeyGen(cfg.Gen)<<counterBits
	}
	invariant.Check(overlay <= OverlayGenMax && prefix <= PrefixGenMax, "a generation that tokens can hold", cfg.Gen)
	c := table.Config{
		Drift:      cfg.Drift,
		OverlayGen: uint8(overlay), GroupGen: uint16(prefix << keyGenBits),
		TTLMin: TTLMin, TTLMax: cfg.TTLMax, First: first, Voters: cfg.Sigma > 0 && !cfg.Own,
	}
	if cfg.Gen != 0 && !cfg.Own {
		c.Fresh = max(cfg.Drift.Stretch(cfg.TTLMax), cfg.Wait)
	}
	m := &Machine{cfg: c, table: table.New(c)}
	m.sigma.begin(cfg)
	return m
}

// Apply executes one command and returns a pb.Result.
func (m *Machine) Apply(c session.Context, data []byte) []byte {
	cmd, err := decodeCommand(data)
	if err != nil {
		var res groupResult
		res.status, res.detail = refused(err)
		return res.encode()
	}
	m.open(c)
	by := table.Caller{Client: table.Client(c.Client), Peer: c.Author}
	var holders []table.Holder // that may be ended
	b, breaks := cmd.(table.Break)
	if breaks {
		holders = m.table.Info(c.Now, b.Name).Holders
	}
	var ans table.Answer
	ans, m.grants = m.table.Step(c.Now, by, cmd, m.grants[:0])
	for _, h := range holders {
		if ans.Kind == table.Broken && h.Token == b.Token {
			c.Emit(order.ClientID(h.Client), mustMarshal(&pb.Output{Output: &pb.Output_Ended{Ended: &pb.Ended{Name: b.Name, Req: h.Req, Token: uint64(h.Token)}}}))
		}
	}
	m.emit(c)
	return m.result(by, cmd, ans).encode()
}

func (m *Machine) result(by table.Caller, cmd table.Command, ans table.Answer) groupResult {
	switch ans.Kind {
	case table.Refused:
		switch ans.Reason {
		case table.BadTTL:
			return groupResult{status: pb.Status_STATUS_BAD_TTL, detail: fmt.Sprintf("this overlay allows %v to %v", m.cfg.TTLMin, m.cfg.TTLMax)}
		case table.BadDelay:
			return groupResult{status: pb.Status_STATUS_SHAPE, detail: fmt.Sprintf("a lock delay is 0 to %v", table.DelayMax)}
		case table.BadValue:
			return groupResult{status: pb.Status_STATUS_SHAPE, detail: fmt.Sprintf("a value has at most %d bytes", table.ValueBytesMax)}
		case table.BadPermits:
			return groupResult{status: pb.Status_STATUS_SHAPE, detail: fmt.Sprintf("a semaphore has 1 to %d permits, none of which is shared", table.HoldersPerLockMax)}
		case table.BadMode:
			a, _ := cmd.(table.Acquire) // the only command that is refused for this
			return groupResult{status: pb.Status_STATUS_MODE, detail: fmt.Sprintf("it is %s as long as anybody has it or waits for it, and was asked for as %s",
				modeName(ans.Permits), modeName(a.Permits))}
		}
		return groupResult{status: pb.Status_STATUS_LIMIT, detail: ans.Reason.String()}
	case table.Broken:
		h := ans.Holder
		return groupResult{status: pb.Status_STATUS_BROKEN, token: Token(ans.Token), holder: party{h.Session, h.Peer}}
	case table.Locked:
		res := groupResult{status: pb.Status_STATUS_LOCKED, position: uint32(ans.Position)}
		if h := ans.Holder; h != (table.Holder{}) {
			res.holder = party{h.Session, h.Peer}
		}
		return res
	}
	res := groupResult{status: statuses[ans.Kind], token: Token(ans.Token), waited: ans.Waited, holder: party{by.Client, by.Peer}}
	if ans.Kind == table.Queued {
		res.position = uint32(ans.Position) + 1
	}
	return res
}

// modeName says what a name is in use as.
func modeName(permits int) string {
	if permits == 0 {
		return "a lock"
	}
	return fmt.Sprintf("a semaphore of %d", permits)
}

// emit pushes the grants of one step to those who wait for them.
func (m *Machine) emit(c session.Context) {
	for _, g := range m.grants {
		c.Emit(order.ClientID(g.Client), mustMarshal(&pb.Output{Output: &pb.Output_Granted{
			Granted: &pb.Granted{Name: g.Name, Req: g.Req, Token: uint64(g.Token)}}}))
	}
}

// Query answers a pb.Query with a pb.Info or a pb.Listing.
func (m *Machine) Query(c session.Context, data []byte) []byte {
	name, list, err := decodeQuery(data)
	switch {
	case err != nil && list != nil:
		res := new(pb.Listing)
		res.Status, res.Detail = refused(err)
		return mustMarshal(res)
	case err != nil:
		res := new(pb.Info)
		res.Status, res.Detail = refused(err)
		return mustMarshal(res)
	case list != nil:
		return mustMarshal(m.list(c, list.From))
	}
	return mustMarshal(m.info(c, name))
}

// list tells of the names in use from a name on.
func (m *Machine) list(c session.Context, from string) *pb.Listing {
	names, more := m.table.List(from, listNamesMax)
	res := &pb.Listing{Status: pb.Status_STATUS_HELD, More: more}
	size := 0
	for _, n := range names {
		l := &pb.Listed{Name: n.Name, Away: n.Away}
		if !n.Away {
			l.Info = m.info(c, n.Name)
			l.Info.Waiters, l.Info.Breaks, l.Info.Members, l.Info.Holders = nil, nil, nil, nil
			l.Info.Candidates = l.Info.Candidates[:min(len(l.Info.Candidates), 1)]
		}
		if size += proto.Size(l); size > listBytesMax && len(res.Locks) > 0 {
			res.More = true
			break
		}
		res.Locks = append(res.Locks, l)
	}
	return res
}

func (m *Machine) info(c session.Context, name string) *pb.Info {
	info := m.table.Info(c.Now, name)
	res := &pb.Info{Status: pb.Status_STATUS_NOT_HELD, Waiting: uint32(len(info.Waiters)), Mode: infoModes[info.Mode]}
	if log := m.sigma.log; len(log.Members) > 0 {
		res.ViewGen, res.View, res.Members = log.View.Gen, log.View.Num, bytesOf(log.Members)
	}
	for _, x := range info.Candidates[:min(len(info.Candidates), infoCandidatesMax)] {
		res.Candidates = append(res.Candidates, &pb.Candidate{Wish: wishOf(x.Wish), Peer: x.Peer[:], LeftNs: int64(max(0, x.Until-c.Now)), Token: uint64(x.Token)})
	}
	if h := info.Holder; info.Held {
		res.Status, res.Holder = pb.Status_STATUS_HELD, partyOf(h.Session, h.Peer)
		res.Token, res.TtlNs, res.LeaseLeftNs, res.Confirmed = uint64(h.Token), int64(h.TTL), int64(h.Left), h.Confirmed
	}
	res.Permits, res.Holding, res.DelayLeftNs = uint64(info.Permits), uint32(len(info.Holders)), int64(info.Delay)
	res.Value, res.Shared = info.Holder.Value, info.Holder.Shared
	if info.Permits > 0 || info.Holder.Shared {
		for _, h := range info.Holders[:min(len(info.Holders), infoHoldersMax)] {
			res.Holders = append(res.Holders, &pb.Held{
				Party: partyOf(h.Session, h.Peer), Token: uint64(h.Token), TtlNs: int64(h.TTL), LeaseLeftNs: int64(h.Left), Confirmed: h.Confirmed,
			})
		}
	}
	for _, w := range info.Waiters[:min(len(info.Waiters), infoWaitersMax)] {
		res.Waiters = append(res.Waiters, &pb.Waiter{Party: partyOf(w.Session, w.Peer), TtlNs: int64(w.TTL), WaitingForNs: int64(w.Since), Shared: w.Shared})
	}
	for _, b := range info.Breaks[max(0, len(info.Breaks)-infoBreaksMax):] {
		res.Breaks = append(res.Breaks, brokenOf(b))
	}
	return res
}

// Tick ends the leases that are over.
func (m *Machine) Tick(c session.Context) {
	m.open(c)
	m.grants = m.table.Tick(c.Now, m.grants[:0])
	m.emit(c)
}

// SessionEnded takes a client out of all queues; its leases run out.
func (m *Machine) SessionEnded(c session.Context, client order.ClientID) {
	m.grants = m.table.SessionEnded(c.Now, table.Client(client), m.grants[:0])
	m.emit(c)
}

// Deadline returns when Tick has something to do.
func (m *Machine) Deadline() (time.Duration, bool) {
	at, ok := m.table.Deadline()
	if m.waits() && (!ok || m.cfg.Fresh < at) {
		return m.cfg.Fresh, true
	}
	return at, ok
}

// Resend pushes every grant again that its waiter has not confirmed.
func (m *Machine) Resend(c session.Context) {
	m.grants = m.table.Resend(m.grants[:0])
	m.emit(c)
}

// Snapshot returns the state as a pb.Snapshot.
func (m *Machine) Snapshot() []byte { return encodeSnapshot(m.table.State(), &m.sigma) }

// Restore replaces the state by one that Snapshot encoded. It refuses anything else, and changes nothing then.
func (m *Machine) Restore(b []byte) error {
	s, sig, err := decodeSnapshot(b)
	if err != nil {
		return err
	}
	if m.sigma.on && len(sig.GetMembers()) > 0 {
		s.Need = quorum.Majority(len(sig.Members))
	}
	t, err := table.Restore(m.cfg, s)
	if err != nil {
		return errors.Join(errMalformed, err)
	}
	if err := m.sigma.restore(sig, uint64(t.Top())); err != nil {
		return err
	}
	m.table = t
	return nil
}
