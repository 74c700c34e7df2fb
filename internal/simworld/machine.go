package simworld

import (
	"encoding/binary"
	"encoding/json"
	"time"

	"latchkey/lockservice/table"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/session"
)

// service is the name of the lock table in the simulated group.
const service = "locks"

// command is a lock command with a number that the world gives out once: whoever executes one twice is caught.
type command struct {
	uid uint64
	cmd table.Command
}

const (
	cmdAcquire byte = iota + 1
	cmdTry
	cmdRenew
	cmdRelease
)

func (c command) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, c.uid)
	put := func(kind byte, req uint64, tok table.Token, ttl time.Duration, name string) {
		b = append(b, kind, 0, 0)
		if a, ok := c.cmd.(table.Acquire); ok {
			if b[10] = byte(a.Permits); a.Shared {
				b[9] = 1
			}
		}
		for _, v := range []uint64{req, uint64(tok), uint64(ttl)} {
			b = binary.BigEndian.AppendUint64(b, v)
		}
		b = append(b, name...)
	}
	switch x := c.cmd.(type) {
	case table.Acquire:
		kind := cmdAcquire
		if x.Try {
			kind = cmdTry
		}
		put(kind, x.Req, 0, x.TTL, x.Name)
	case table.Renew:
		put(cmdRenew, x.Req, x.Token, x.TTL, x.Name)
	case table.Release:
		put(cmdRelease, x.Req, x.Token, 0, x.Name)
	}
	return b
}

func decodeCommand(b []byte) command {
	u64 := func(i int) uint64 { return binary.BigEndian.Uint64(b[i:]) }
	c := command{uid: u64(0)}
	req, tok, ttl, name := u64(11), table.Token(u64(19)), time.Duration(u64(27)), string(b[35:])
	switch b[8] {
	case cmdAcquire, cmdTry:
		c.cmd = table.Acquire{Name: name, Req: req, TTL: ttl, Try: b[8] == cmdTry, Shared: b[9] == 1, Permits: int(b[10])}
	case cmdRenew:
		c.cmd = table.Renew{Name: name, Req: req, Token: tok, TTL: ttl}
	case cmdRelease:
		c.cmd = table.Release{Name: name, Req: req, Token: tok}
	}
	return c
}

// result is what a command gave; uid says whose result it is.
type result struct {
	uid uint64
	ans table.Answer
}

func (r result) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, r.uid)
	b = append(b, byte(r.ans.Kind), byte(r.ans.Reason), 0)
	if r.ans.Waited {
		b[10] = 1
	}
	b = binary.BigEndian.AppendUint64(b, uint64(r.ans.Token))
	return binary.BigEndian.AppendUint64(b, uint64(r.ans.Position))
}

func decodeResult(b []byte) result {
	u64 := func(i int) uint64 { return binary.BigEndian.Uint64(b[i:]) }
	return result{u64(0), table.Answer{
		Kind: table.Kind(b[8]), Reason: table.Reason(b[9]), Waited: b[10] == 1, Token: table.Token(u64(11)), Position: int(u64(19)),
	}}
}

func encodeGrant(g table.Grant) []byte {
	b := binary.BigEndian.AppendUint64(nil, g.Req)
	return binary.BigEndian.AppendUint64(b, uint64(g.Token))
}

func decodeGrant(b []byte) (req, token uint64) {
	return binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
}

// machine is the lock table as a service of the simulated group. It notes what happens for the checker.
type machine struct {
	cfg    table.Config
	mutant Mutant
	table  *table.Table
	grants []table.Grant
	notes  []note
}

// note is one thing that an entry made happen: a command with its answer, a grant out of a queue, or the end of a session.
type note struct {
	kind   noteKind
	client table.Client
	cmd    command
	ans    table.Answer
	grant  table.Grant
	at     time.Duration // log time
}

type noteKind uint8

const (
	noteCommand noteKind = iota
	noteGrant
	noteEnded
)

func newMachine(cfg table.Config, m Mutant) *machine {
	x := &machine{cfg: cfg, mutant: m}
	x.use(table.New(cfg))
	return x
}

func (m *machine) use(t *table.Table) {
	switch m.mutant {
	case SameToken:
		table.Sabotage(t, table.MutantSameToken)
	case StaleRelease:
		table.Sabotage(t, table.MutantStaleRelease)
	case Mixed:
		table.Sabotage(t, table.MutantMixed)
	case Impatient:
		table.Sabotage(t, table.MutantImpatient)
	case ExtraPermit:
		table.Sabotage(t, table.MutantExtraPermit)
	case Overtake:
		table.Sabotage(t, table.MutantOvertake)
	}
	m.table = t
}

func (m *machine) emit(c session.Context) {
	for _, g := range m.grants {
		c.Emit(order.ClientID(g.Client), encodeGrant(g))
	}
}

// noteGrants notes the grants of one step.
func (m *machine) noteGrants(at time.Duration) {
	for _, g := range m.grants {
		m.notes = append(m.notes, note{kind: noteGrant, client: g.Client, grant: g, at: at})
	}
}

func (m *machine) Apply(c session.Context, data []byte) []byte {
	cmd := decodeCommand(data)
	by := table.Caller{Client: table.Client(c.Client), Peer: c.Author}
	m.Tick(c) // so that what time brings is noted before the command
	var ans table.Answer
	ans, m.grants = m.table.Step(c.Now, by, cmd.cmd, m.grants[:0])
	m.notes = append(m.notes, note{kind: noteCommand, client: by.Client, cmd: cmd, ans: ans, at: c.Now})
	m.noteGrants(c.Now)
	m.emit(c)
	return result{cmd.uid, ans}.encode()
}

func (m *machine) Query(session.Context, []byte) []byte { return nil }

func (m *machine) Tick(c session.Context) {
	m.grants = m.table.Tick(c.Now, m.grants[:0])
	m.noteGrants(c.Now)
	m.emit(c)
}

func (m *machine) SessionEnded(c session.Context, client order.ClientID) {
	m.notes = append(m.notes, note{kind: noteEnded, client: table.Client(client)})
	m.grants = m.table.SessionEnded(c.Now, table.Client(client), m.grants[:0])
	m.noteGrants(c.Now)
	m.emit(c)
}

func (m *machine) Deadline() (time.Duration, bool) { return m.table.Deadline() }

func (m *machine) Resend(c session.Context) {
	m.grants = m.table.Resend(m.grants[:0])
	m.emit(c)
}

func (m *machine) Snapshot() []byte {
	b, err := json.Marshal(m.table.State())
	if err != nil {
		panic(err)
	}
	return b
}

func (m *machine) Restore(b []byte) error {
	var s table.State
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	t, err := table.Restore(m.cfg, s)
	if err != nil {
		return err
	}
	m.use(t)
	return nil
}
