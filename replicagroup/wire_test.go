package replicagroup

import (
	"bytes"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/session"
)

var testDecoder = decoder{order.OverlayID{1}}

func testDescriptor() placement.Descriptor {
	host := placement.Host{Peer: placement.Peer{ID: "peer"}, Store: order.StoreID{9}}
	return placement.Descriptor{
		Group:  order.GroupID{Overlay: testDecoder.overlay, Prefix: keyspace.PrefixOf(keyspace.Key{0xa3}, 8)},
		View:   order.View{Next: 2, Members: []order.Member{{ID: 1, Peer: host.Node(), Store: host.Store, Role: order.Voter, PeerID: host.ID}}},
		Peers:  []placement.Peer{host.Peer},
		Engine: placement.EngineRaft,
	}
}

// wellFormed is one good message for each decoder.
func wellFormed() map[string][]byte {
	g := groupToPB(testDescriptor().Group)
	id := make([]byte, 16)
	id[0] = 1
	return map[string][]byte{
		"engine": marshal(&pb.EngineBatch{Messages: []*pb.EngineMessage{
			{Group: g, From: 1, To: 2, FromStore: id, ToStore: id, Data: []byte("m")}}}),
		"command":    marshal(&pb.CommandRequest{Group: g, Client: id, Seq: 1, Service: "s", Data: []byte("d")}),
		"query":      marshal(&pb.QueryRequest{Group: g, Service: "s"}),
		"output":     marshal(&pb.Output{Group: g, Client: id, Service: "s"}),
		"reply":      marshal(&pb.Reply{Status: pb.Status_OK, Leader: make([]byte, 32), Descriptor_: encodeDescriptor(testDescriptor())}),
		"descriptor": encodeDescriptor(testDescriptor()),
		"push":       marshal(&pb.DescriptorPush{Descriptor_: encodeDescriptor(testDescriptor())}),
		"probe":      marshal(&pb.ProbeReply{Store: id, UpMs: 5, Hosts: true, Room: true}),
		"question": encodeQuestion(testDescriptor().Group, 1, placement.Question{Term: 1, Round: 2, View: 3,
			Add: []keyspace.NodeID{{4}, {5}}, Remove: []placement.Removal{{Member: 6, Why: placement.Failed}}}),
		"renewal":  marshal(&pb.RenewRequest{Groups: []*pb.Group{g, g}}),
		"refusals": marshal(&pb.RenewAnswer{Refused: []uint32{1}}),
		"verdict":  encodeVerdict(placement.Question{Term: 1, Round: 2, View: 3}, placement.VictimLive),
		"root ask": marshal(&pb.RootStateRequest{Gen: 1 << 32}),
		"root":     marshal(&pb.RootStateReply{Present: true, Index: 7, Directory: []byte("d")}),
	}
}

func decodeAs(kind string, b []byte) error {
	var err error
	switch kind {
	case "engine":
		_, err = testDecoder.engineBatch(b)
	case "command":
		_, err = testDecoder.command(b)
	case "query":
		_, err = testDecoder.query(b)
	case "output":
		_, err = testDecoder.output(b)
	case "reply":
		_, err = testDecoder.reply(b)
	case "descriptor":
		_, err = testDecoder.descriptor(b)
	case "push":
		_, err = testDecoder.push(b)
	case "question":
		_, err = testDecoder.question(b)
	case "renewal":
		_, err = testDecoder.renewal(b)
	case "refusals":
		_, err = refusals(b, make([]order.GroupID, 2))
	case "root ask":
		_, err = testDecoder.rootStateAsk(b)
	case "root":
		_, err = decodeRootState(b)
	case "probe":
		if _, ok := decodeProbe(b); !ok {
			err = errMalformed
		}
	case "verdict":
		if _, ok := decodeVerdict(b); !ok {
			err = errMalformed
		}
	}
	return err
}

func TestDecodersTakeWhatHostsSend(t *testing.T) {
	for kind, b := range wellFormed() {
		if err := decodeAs(kind, b); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

func TestDecodersRefuseWhatNoHostSends(t *testing.T) {
	g := groupToPB(testDescriptor().Group)
	id := make([]byte, 16)
	id[0] = 1
	foreign := testDescriptor()
	foreign.Group.Overlay[0]++
	for name, c := range map[string]struct {
		kind string
		msg  proto.Message
	}{
		"no group":                 {"command", &pb.CommandRequest{Client: id, Service: "s"}},
		"stray prefix bytes":       {"query", &pb.QueryRequest{Group: &pb.Group{Prefix: append(bytes.Clone(g.Prefix), 0)}}},
		"prefix bits past its end": {"query", &pb.QueryRequest{Group: &pb.Group{Prefix: []byte{0, 4, 0xff}}}},
		"short client":             {"command", &pb.CommandRequest{Group: g, Client: id[:15], Service: "s"}},
		"no client":                {"command", &pb.CommandRequest{Group: g, Client: make([]byte, 16), Service: "s"}},
		"tick of a stranger":       {"command", &pb.CommandRequest{Group: g, Client: id, Service: session.TickService}},
		"long service":             {"command", &pb.CommandRequest{Group: g, Client: id, Service: string(make([]byte, order.ServiceBytesMax+1))}},
		"long data":                {"command", &pb.CommandRequest{Group: g, Client: id, Service: "s", Data: make([]byte, order.DataBytesMax+1)}},
		"long query":               {"query", &pb.QueryRequest{Group: g, Service: "s", Data: make([]byte, order.DataBytesMax+1)}},
		"short store":              {"engine", &pb.EngineBatch{Messages: []*pb.EngineMessage{{Group: g, FromStore: id[:3], ToStore: id}}}},
		"no store":                 {"engine", &pb.EngineBatch{Messages: []*pb.EngineMessage{{Group: g, ToStore: id}}}},
		"output to nobody":         {"output", &pb.Output{Group: g}},
		"short leader":             {"reply", &pb.Reply{Leader: []byte{1}}},
		"bad descriptor":           {"reply", &pb.Reply{Descriptor_: []byte{1}}},
		"foreign overlay":          {"reply", &pb.Reply{Descriptor_: encodeDescriptor(foreign)}},
		"no pushed descriptor":     {"push", &pb.DescriptorPush{}},
		"pushed from elsewhere":    {"push", &pb.DescriptorPush{Descriptor_: encodeDescriptor(foreign)}},
		"short store of a peer":    {"probe", &pb.ProbeReply{Store: id[:5], Hosts: true}},
		"host without a store":     {"probe", &pb.ProbeReply{Hosts: true}},
		"up for a thousand years":  {"probe", &pb.ProbeReply{Store: id, UpMs: 1 << 45}},
		"question of no group":     {"question", &pb.EndorseRequest{To: 1}},
		"question of too many":     {"question", &pb.EndorseRequest{Group: g, Add: [][]byte{make([]byte, 32), make([]byte, 32), make([]byte, 32)}}},
		"question of a short node": {"question", &pb.EndorseRequest{Group: g, Add: [][]byte{id}}},
		"question without reason":  {"question", &pb.EndorseRequest{Group: g, Remove: []*pb.Removal{{Member: 1, Why: 99}}}},
		"too many to remove":       {"question", &pb.EndorseRequest{Group: g, Remove: make([]*pb.Removal, order.MembersMax+1)}},
		"renewal of no prefix":     {"renewal", &pb.RenewRequest{Groups: []*pb.Group{{}}}},
		"renewal of too many":      {"renewal", &pb.RenewRequest{Groups: slices.Repeat([]*pb.Group{g}, placement.RenewGroupsMax+1)}},
		"refusal of what was not":  {"refusals", &pb.RenewAnswer{Refused: []uint32{2}}},
		"no verdict":               {"verdict", &pb.EndorseReply{Term: 1}},
		"root of nobody":           {"root", &pb.RootStateReply{Directory: []byte("d")}},
		"too large a root":         {"root", &pb.RootStateReply{Present: true, Directory: make([]byte, rootStateBytesMax+1)}},
		"unknown verdict":          {"verdict", &pb.EndorseReply{Verdict: uint32(placement.NoSense) + 1}},
	} {
		if err := decodeAs(c.kind, marshal(c.msg)); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	for kind, b := range wellFormed() {
		if err := decodeAs(kind, append(bytes.Clone(b), 0xff)); err == nil {
			t.Errorf("%s with a stray byte: taken", kind)
		}
	}
}

func FuzzDecodeMessages(f *testing.F) {
	for _, b := range wellFormed() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for kind := range wellFormed() {
			decodeAs(kind, b) // must not panic, whatever it says
		}
	})
}

var garbage = []byte{0xff, 0xff, 0xff}

// garbled is an overlay that counts the garbage that handlers were given.
type garbled struct {
	Overlay
	mu      sync.Mutex
	begun   map[string]uint64 // by service
	handled atomic.Uint64     // of all services
}

func (g *garbled) Handle(service string, h dht.Handler) {
	g.Overlay.Handle(service, g.counting(service, h))
}

func (g *garbled) HandleBrief(service string, h dht.Handler) {
	g.Overlay.HandleBrief(service, g.counting(service, h))
}

func (g *garbled) counting(service string, h dht.Handler) dht.Handler {
	return func(r *dht.Request) {
		if !bytes.Equal(r.Data, garbage) {
			h(r)
			return
		}
		g.mu.Lock()
		g.begun[service]++
		g.mu.Unlock()
		h(r)
		g.handled.Add(1)
	}
}

func (g *garbled) of(service string) uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.begun[service]
}

func (g *garbled) sum() (n uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, k := range g.begun {
		n += k
	}
	return n
}

func TestMalformedMessagesAreCountedAndHurtNobody(t *testing.T) {
	t.Parallel()
	w, got := new(world), &garbled{begun: make(map[string]uint64)}
	w.configure = func(c *Config) {
		if c.Overlay.(told).peer == w.peers[0] {
			got.Overlay = c.Overlay
			c.Overlay = got
		}
	}
	w.begin(t, 3, 1, 3)
	good, bad := w.peers[0], w.peers[1]
	ctx := deadline(t, waitMax)
	key := keyspace.Preimage("k").Key()
	if _, err := w.peers[2].groups.NewClient().Do(ctx, key, "count", number(1)); err != nil {
		t.Fatal(err)
	}
	services := []string{serviceEngine, serviceCommand, serviceQuery, serviceOutput, serviceLocate, serviceEnsure, serviceHost, serviceStart,
		serviceProbe, serviceEndorse, serviceLeave, serviceDescriptor, serviceRenew, serviceTwin, serviceRootState}
	// A stream that was reset again and again is not opened anew at once: nothing was sent then. And one that the other end opened before
	// the reset, and that is greeted after it, is of a session that is over: it is lost once more, and with it what was sent by it. Nor is
	// anything sent to a peer that is suspected, as one is that has no turn on a busy machine.
	again := func(err error) bool {
		return (errors.Is(err, dht.ErrUnreachable) || errors.Is(err, dht.ErrLinkLost) || errors.Is(err, dht.ErrSuspected)) && pause(ctx, time.Millisecond) == nil
	}
	first := good.groups.Counters().Malformed
	for _, service := range services {
		before := got.of(service)
		var err error
		for begun := false; !begun || again(err) && got.of(service) == before; begun = true {
			_, err = bad.overlay.Call(ctx, good.host.ID(), keyspace.Key{}, service, garbage)
		}
		if err == nil {
			t.Errorf("%s: garbage was answered", service)
		}
		if got.of(service) == before {
			t.Errorf("%s: garbage was not handed to its handler: %v", service, err)
		}
	}
	// A call may end before what it sent is handled, and then the next one sends more: whatever was handled is counted, once.
	for {
		handled, counted := got.handled.Load(), good.groups.Counters().Malformed-first
		if got.sum() == handled {
			if counted != handled {
				t.Errorf("%d malformed messages counted, %d were handled", counted, handled)
			}
			break
		}
		if err := pause(ctx, time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	// A command for the directory from anybody but the leader's own host is one that speaks for another. Who does not lead says only
	// that, and on a busy machine the root's leader changes.
	e := marshal(&pb.CommandRequest{Group: groupToPB(w.genesis.RootGroup()), Client: bytes.Repeat([]byte{7}, 16), Seq: 1, Service: placement.Service})
	refused := func(by, from *testPeer) bool {
		b, err := from.overlay.Call(ctx, by.host.ID(), keyspace.Key{}, serviceCommand, e)
		r, _ := testDecoder.reply(b)
		if !again(err) && (err != nil || r.status != pb.Status_REFUSED && r.status != pb.Status_NOT_LEADER) {
			t.Fatalf("a stranger's command for the directory was answered %v, %v", r.status, err)
		}
		return r.status == pb.Status_REFUSED
	}
	for i := 0; !refused(w.peers[i%3], w.peers[(i+1)%3]); i++ {
		if err := pause(ctx, time.Millisecond); err != nil {
			t.Fatalf("no leader refuses a stranger's command for the directory: %v", err)
		}
	}
	if got, err := w.peers[2].groups.NewClient().Do(ctx, key, "count", number(1)); err != nil || got[7] != 2 {
		t.Errorf("afterwards: %x, %v", got, err)
	}
}

func TestEngineMessageThatSpeaksForAnotherIsDropped(t *testing.T) {
	w := newWorld(t, 3, 1)
	ctx := deadline(t, waitMax)
	root := w.genesis.RootDescriptor()
	from, to := w.peers[1], w.peers[0]
	me, _ := root.View.MemberAt(to.overlay.Node())
	other, _ := root.View.MemberAt(w.peers[2].overlay.Node())
	for name, m := range map[string]*pb.EngineMessage{
		"another member":  {From: uint64(other.ID), FromStore: other.Store[:], To: uint64(me.ID), ToStore: me.Store[:]},
		"nobody":          {From: 99, FromStore: other.Store[:], To: uint64(me.ID), ToStore: me.Store[:]},
		"a former store":  {From: uint64(other.ID), FromStore: other.Store[:], To: uint64(me.ID), ToStore: make([]byte, 16)},
		"another replica": {From: uint64(other.ID), FromStore: other.Store[:], To: 99, ToStore: me.Store[:]},
	} {
		before := to.groups.Counters().StrayMessages
		m.Group, m.Data = groupToPB(root.Group), []byte("m")
		if err := from.overlay.Send(to.host.ID(), keyspace.Key{}, serviceEngine, marshal(&pb.EngineBatch{Messages: []*pb.EngineMessage{m}})); err != nil {
			t.Fatal(err)
		}
		for to.groups.Counters().StrayMessages == before {
			if err := pause(ctx, time.Millisecond); err != nil {
				t.Fatalf("a message for %s was not counted as stray", name)
			}
		}
	}
}

func TestSessionOfAnotherPeerIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 1)
	ctx := deadline(t, waitMax)
	key := keyspace.Preimage("k").Key()
	c := w.peers[0].groups.NewClient()
	if _, err := c.Do(ctx, key, "count", number(1)); err != nil {
		t.Fatal(err)
	}
	s := c.sessions[order.GroupID{Prefix: w.genesis.PrefixOf(key)}]
	req := marshal(&pb.CommandRequest{Group: groupToPB(s.descriptor.Group), View: s.descriptor.View.Num, Client: s.id[:], Seq: 1,
		Service: "count", Data: number(1)})
	var got reply
	err := w.peers[1].groups.askLeader(ctx, *s.descriptor, keyspace.Key{}, serviceCommand, func(placement.Descriptor) []byte { return req }, func(r reply) (bool, error) {
		got = r
		return true, nil
	})
	if err != nil || got.status != pb.Status_REFUSED {
		t.Errorf("another peer repeating a command was answered %v %x, %v", got.status, got.data, err)
	}
	if !errors.Is(noQuorum(ErrClosed, s.descriptor.Group, nil), ErrClosed) {
		t.Error("a closed host is reported as a lost quorum")
	}
}
