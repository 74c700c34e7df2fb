package replicagroup

import (
	"latchkey/dht/keyspace"
	"latchkey/internal/protofield"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/session"
)

// The messages that every command is made of are encoded and decoded by hand; the bytes are those of pb.EngineBatch,
// pb.CommandRequest and pb.Reply.

// appendGroup appends a field that holds a pb.Group.
func appendGroup(b []byte, num int, g order.GroupID) []byte {
	var space [2 + keyspace.Size]byte
	prefix, _ := g.Prefix.AppendBinary(space[:0]) // never fails
	b, at := protofield.Open(b, num)
	b = protofield.AppendBytes(b, 1, prefix)
	b = protofield.AppendUint(b, 2, g.Gen)
	return protofield.Close(b, at)
}

// groupFields are the fields of a pb.Group.
type groupFields struct {
	present bool
	prefix  []byte
	gen     uint64
}

// read reads those that b has.
func (g *groupFields) read(b []byte) error {
	g.present = true
	r := protofield.Read(b)
	for r.Next() {
		switch r.Field() {
		case protofield.Bytes(1):
			g.prefix = r.Bytes()
		case protofield.Number(2):
			g.gen = r.Uint()
		}
	}
	return r.Err()
}

// groupOf returns the group that they name.
func (d decoder) groupOf(g groupFields) (order.GroupID, error) {
	if !g.present {
		return order.GroupID{}, malformed("no group")
	}
	prefix, err := decodePrefix(g.prefix)
	return order.GroupID{Overlay: d.overlay, Prefix: prefix, Gen: g.gen}, err
}

// appendEngineMessage appends an engine's message to another replica to a batch of them.
func appendEngineMessage(b []byte, g order.GroupID, from, to order.ReplicaID, fromStore, toStore order.StoreID, data []byte) []byte {
	b, at := protofield.Open(b, 1)
	b = appendGroup(b, 1, g)
	b = protofield.AppendUint(b, 2, uint64(from))
	b = protofield.AppendUint(b, 3, uint64(to))
	b = protofield.AppendBytes(b, 4, fromStore[:])
	b = protofield.AppendBytes(b, 5, toStore[:])
	b = protofield.AppendBytes(b, 6, data)
	return protofield.Close(b, at)
}

// engineBatch decodes a batch of engine messages into events for shards. From and Store are what the sender claims. The
// engines' own messages alias data.
func (d decoder) engineBatch(data []byte) ([]engineEvent, error) {
	events := make([]engineEvent, 0, 1) // mostly it is one
	r := protofield.Read(data)
	for r.Next() {
		if r.Field() != protofield.Bytes(1) {
			continue
		}
		if len(events) == engineMessagesMax {
			return nil, malformed("more than %d engine messages in one batch", engineMessagesMax)
		}
		e, err := d.engineMessage(r.Bytes())
		if err != nil {
			return nil, malformed("engine message: %v", err)
		}
		events = append(events, e)
	}
	if err := r.Err(); err != nil {
		return nil, malformed("engine batch: %v", err)
	}
	return events, nil
}

func (d decoder) engineMessage(data []byte) (e engineEvent, err error) {
	var group groupFields
	var fromStore, toStore []byte
	r := protofield.Read(data)
	for r.Next() {
		switch r.Field() {
		case protofield.Bytes(1):
			if err := group.read(r.Bytes()); err != nil {
				return e, err
			}
		case protofield.Number(2):
			e.recv.From = order.ReplicaID(r.Uint())
		case protofield.Number(3):
			e.to = order.ReplicaID(r.Uint())
		case protofield.Bytes(4):
			fromStore = r.Bytes()
		case protofield.Bytes(5):
			toStore = r.Bytes()
		case protofield.Bytes(6):
			e.recv.Msg = r.Bytes()
		}
	}
	if err = r.Err(); err == nil {
		e.group, err = d.groupOf(group)
	}
	if err == nil {
		err = fixed(e.recv.Store[:], fromStore, "store id")
	}
	if err == nil {
		err = fixed(e.store[:], toStore, "store id")
	}
	return e, err
}

// encodeCommand encodes a command for a replica of a group in a view.
func encodeCommand(g order.GroupID, view uint64, c order.Command) []byte {
	b := appendGroup(make([]byte, 0, commandOverhead+len(c.Data)), 1, g)
	b = protofield.AppendUint(b, 2, view)
	b = protofield.AppendBytes(b, 3, c.Client[:])
	b = protofield.AppendUint(b, 4, c.Seq)
	b = protofield.AppendUint(b, 5, c.Acked)
	b = protofield.AppendBytes(b, 6, c.Service)
	return protofield.AppendBytes(b, 7, c.Data)
}

// command decodes a command. Its data aliases b.
func (d decoder) command(b []byte) (commandEvent, error) {
	var e commandEvent
	var group groupFields
	var client []byte
	r := protofield.Read(b)
	for r.Next() {
		switch r.Field() {
		case protofield.Bytes(1):
			if err := group.read(r.Bytes()); err != nil {
				return e, malformed("command: %v", err)
			}
		case protofield.Number(2):
			e.view = r.Uint()
		case protofield.Bytes(3):
			client = r.Bytes()
		case protofield.Number(4):
			e.cmd.Seq = r.Uint()
		case protofield.Number(5):
			e.cmd.Acked = r.Uint()
		case protofield.Bytes(6):
			e.cmd.Service = r.String()
		case protofield.Bytes(7):
			e.cmd.Data = r.Bytes()
		}
	}
	err := r.Err()
	if err == nil {
		e.group, err = d.groupOf(group)
	}
	if err != nil {
		return e, malformed("command: %v", err)
	}
	if err := fixed(e.cmd.Client[:], client, "client id"); err != nil {
		return e, err
	}
	switch {
	case e.cmd.Client == order.ClientID{}, e.cmd.Service == session.TickService:
		return e, malformed("command that only a leader's own host may give")
	case len(e.cmd.Service) > order.ServiceBytesMax, len(e.cmd.Data) > order.DataBytesMax:
		return e, malformed("command over its limits: service of %d bytes, data of %d", len(e.cmd.Service), len(e.cmd.Data))
	}
	return e, nil
}

// reply is an answer to a command or query.
type reply struct {
	status     pb.Status
	data       []byte
	leader     keyspace.NodeID      // zero when it names none
	descriptor placement.Descriptor // zero when it names none
}

// appendResult appends a reply that has a status and data.
func appendResult(b []byte, status pb.Status, data []byte) []byte {
	b = protofield.AppendUint(b, 1, uint64(status))
	return protofield.AppendBytes(b, 2, data)
}

// reply decodes a reply. Its data aliases b.
func (d decoder) reply(b []byte) (reply, error) {
	var a reply
	var leader, descriptor []byte
	r := protofield.Read(b)
	for r.Next() {
		switch r.Field() {
		case protofield.Number(1):
			a.status = pb.Status(r.Uint())
		case protofield.Bytes(2):
			a.data = r.Bytes()
		case protofield.Bytes(3):
			leader = r.Bytes()
		case protofield.Bytes(4):
			descriptor = r.Bytes()
		}
	}
	if err := r.Err(); err != nil {
		return reply{}, malformed("reply: %v", err)
	}
	if len(leader) > 0 {
		if err := fixed(a.leader[:], leader, "leader"); err != nil {
			return reply{}, err
		}
	}
	if len(descriptor) > 0 {
		var err error
		if a.descriptor, err = d.descriptor(descriptor); err != nil {
			return reply{}, err
		}
	}
	return a, nil
}
