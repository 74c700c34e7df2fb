package lockservice

import (
	"bytes"
	"slices"

	"latchkey/dht/keyspace"
	"latchkey/lockservice/pb"
	"latchkey/lockservice/table"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/session"
)

var _ session.Preparer = (*Machine)(nil)

// KeyOf returns the key of the lock that a command or query names.
func (m *Machine) KeyOf(data []byte, query bool) (keyspace.Key, bool) {
	var name string
	if query {
		var err error
		var list *pb.List
		if name, list, err = decodeQuery(data); err != nil || list != nil {
			return keyspace.Key{}, false
		}
		return keyspace.Preimage(name).Key(), true
	}
	cmd, err := decodeCommand(data)
	if err != nil {
		return keyspace.Key{}, false
	}
	switch c := cmd.(type) {
	case table.Acquire:
		name = c.Name
	case table.Renew:
		name = c.Name
	case table.Release:
		name = c.Name
	case table.Break:
		name = c.Name
	default:
		return keyspace.Key{}, false
	}
	return keyspace.Preimage(name).Key(), true
}

// Prepare implements [session.Preparer]: a name that voters lock by protocol sigma is taken from them first, and carved out with whoever
// may hold it.
func (m *Machine) Prepare(c session.Context, name string) bool {
	m.Tick(c)
	return m.table.Prepare(name)
}

// Carve takes one lock out of the table, as a pb.Snapshot of a table that has nothing else.
func (m *Machine) Carve(c session.Context, name string) ([]byte, []session.PartClient) {
	m.Tick(c) // what is over at this log time is over in what goes, too
	s := m.table.Carve(name)
	var clients []session.PartClient
	for by, left := range s.Clients() {
		clients = append(clients, session.PartClient{ID: order.ClientID(by.Client), Keep: left})
	}
	slices.SortFunc(clients, func(a, b session.PartClient) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return encodeSnapshot(s, nil), clients
}

// Graft takes over a lock that Carve has taken out of another group's table.
func (m *Machine) Graft(c session.Context, part []byte) error {
	s, _, err := decodeSnapshot(part)
	if err != nil {
		return err
	}
	m.Tick(c)
	return m.table.Graft(s)
}
