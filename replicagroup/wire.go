package replicagroup

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/session"
)

// Services of the overlay under which hosts speak to each other (pb/replicagroup.proto says what travels under each).
const (
	serviceEngine    = "group/engine"
	serviceCommand   = "group/command"
	serviceQuery     = "group/query"
	serviceOutput    = "group/output"
	serviceLocate    = "group/locate"
	serviceEnsure    = "group/ensure"
	serviceHost      = "group/host"
	serviceStart     = "group/start"
	servicePresent   = "group/present"
	serviceRevive    = "group/revive"
	serviceReseed    = "group/reseed"
	serviceRootState = "group/rootstate"
	serviceReturn    = "group/return"

	serviceProbe      = "group/probe"
	serviceEndorse    = "group/endorse"
	serviceLeave      = "group/leave"
	serviceDescriptor = "group/descriptor"
	serviceRenew      = "group/renew"
	serviceTwin       = "group/twin"
)

// engineMessagesMax bounds the messages in one batch, which a sender cuts by bytes.
const engineMessagesMax = 16 << 10

// errMalformed is the reason for which a peer's stream is reset.
var errMalformed = errors.New("replicagroup: malformed message")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errMalformed, fmt.Sprintf(format, args...))
}

// decoder turns messages into this overlay's values, or says why they are none.
type decoder struct{ overlay order.OverlayID }

func groupToPB(g order.GroupID) *pb.Group {
	prefix, _ := g.Prefix.AppendBinary(nil) // never fails
	return &pb.Group{Prefix: prefix, Gen: g.Gen}
}

func decodePrefix(b []byte) (keyspace.Prefix, error) {
	p, rest, err := keyspace.DecodePrefix(b)
	if err == nil && len(rest) > 0 {
		err = malformed("%d bytes after the prefix", len(rest))
	}
	return p, err
}

func (d decoder) group(g *pb.Group) (order.GroupID, error) {
	p, err := decodePrefix(g.GetPrefix())
	return order.GroupID{Overlay: d.overlay, Prefix: p, Gen: g.GetGen()}, err
}

// fixed copies b into an array when the length fits.
func fixed(dst, b []byte, what string) error {
	if len(b) != len(dst) {
		return malformed("%s of %d bytes, want %d", what, len(b), len(dst))
	}
	copy(dst, b)
	return nil
}

func (d decoder) query(data []byte) (queryEvent, error) {
	var m pb.QueryRequest
	if err := proto.Unmarshal(data, &m); err != nil {
		return queryEvent{}, malformed("query: %v", err)
	}
	g, err := d.group(m.Group)
	if err != nil {
		return queryEvent{}, err
	}
	if len(m.Service) > order.ServiceBytesMax || len(m.Data) > order.DataBytesMax {
		return queryEvent{}, malformed("query over its limits: service of %d bytes, data of %d", len(m.Service), len(m.Data))
	}
	return queryEvent{group: g, view: m.View, service: m.Service, data: m.Data}, nil
}

// output is what a machine pushes to a client session.
type output struct {
	group   order.GroupID
	client  order.ClientID
	service string
	data    []byte
}

func (d decoder) output(data []byte) (output, error) {
	var m pb.Output
	if err := proto.Unmarshal(data, &m); err != nil {
		return output{}, malformed("output: %v", err)
	}
	g, err := d.group(m.Group)
	if err != nil {
		return output{}, err
	}
	o := output{group: g, service: m.Service, data: m.Data}
	return o, fixed(o.client[:], m.Client, "client id")
}

// descriptor decodes a descriptor of this overlay.
func (d decoder) descriptor(b []byte) (placement.Descriptor, error) {
	desc, err := placement.DecodeDescriptor(b)
	if err == nil && desc.Group.Overlay != d.overlay {
		err = malformed("descriptor of overlay %v", desc.Group.Overlay)
	}
	return desc, err
}

// encodeDescriptor encodes a descriptor that was decoded or validated before.
func encodeDescriptor(d placement.Descriptor) []byte {
	b, err := d.Encode()
	if err != nil {
		log.Errorw("own descriptor cannot be encoded", "group", d.Group, "err", err)
		return nil
	}
	return b
}

// marshal encodes one of our own messages, which cannot fail: all strings in them are valid UTF-8 by the time they get here.
func marshal(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		log.Errorw("own message cannot be encoded", "err", err)
	}
	return b
}

// statusToPB is how a session table's status travels.
func statusToPB(s session.Status) pb.Status {
	switch s {
	case session.OK:
		return pb.Status_OK
	case session.Session:
		return pb.Status_SESSION
	case session.Window:
		return pb.Status_WINDOW
	case session.Stale:
		return pb.Status_STALE
	case session.UnknownService:
		return pb.Status_UNKNOWN_SERVICE
	case session.Refused:
		return pb.Status_REFUSED
	case session.Limit:
		return pb.Status_LIMIT
	case session.TooLarge:
		return pb.Status_TOO_LARGE
	case session.Moved:
		return pb.Status_KEY_MOVED
	}
	return pb.Status_STATUS_UNSPECIFIED
}

// statusFromPB is the inverse of statusToPB; ok is false for the statuses that are a host's own.
func statusFromPB(s pb.Status) (session.Status, bool) {
	for t := session.OK; t <= session.Moved; t++ {
		if statusToPB(t) == s {
			return t, true
		}
	}
	return 0, false
}
