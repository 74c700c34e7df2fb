package pb

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"

	"latchkey/coherence/appmanager"
	"latchkey/coherence/manager"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

var (
	app    = keyspace.Key{0xaa, 1}
	someOf = func(i byte) protocol.NodeRef {
		return protocol.NodeRef{ID: keyspace.NodeID{i, 31: i}, Inc: uint64(i) << 56}
	}
)

// messageOfForm makes a message of a form, with the parts ps.
func messageOfForm(s shape, f form, ps part) protocol.Message {
	m := protocol.Message{Kind: s.kind, From: protocol.Address{Party: s.from}, To: protocol.Address{Party: s.to}, Epoch: 1}
	if s.from == protocol.Node {
		m.From.Node = someOf(1)
	}
	if s.to == protocol.Node || f.reader {
		m.To.Node = someOf(2)
	}
	for p, set := range map[part]func(){
		object: func() { m.Object = keyspace.Key{3} }, requester: func() { m.Requester = someOf(4) }, seq: func() { m.Seq = 1<<64 - 1 },
		lastInv: func() { m.LastInv = 6 }, copied: func() { m.Copy = protocol.MasterCopy }, value: func() { m.Value = &protocol.Cell{Bytes: []byte{7}} },
		ack: func() { m.Ack = protocol.ReadAck }, life: func() { m.Life = 8 }, thread: func() { m.Thread = protocol.ThreadID{9} },
		migration: func() { m.Migration = 10 }, node: func() { m.Node = someOf(11) }, checkpoint: func() { m.Checkpoint = 12 },
		hash: func() { m.Hash = protocol.Hash{13} }, manifest: func() { m.Manifest = protocol.Hash{14} },
		parent: func() { m.Parent = protocol.ThreadID{15} }, flag: func() { m.Flag = true },
	} {
		if ps&p != 0 {
			set()
		}
	}
	return m
}

func samples() (out []protocol.Message) {
	for s, f := range forms {
		out = append(out, messageOfForm(s, f, f.must))
		if f.may != 0 {
			out = append(out, messageOfForm(s, f, f.must|f.may))
		}
	}
	return out
}

func TestMessagesComeBackAsTheyWere(t *testing.T) {
	ms := samples()
	empty := messageOfForm(shape{protocol.Copy, protocol.Node, protocol.Node}, form{}, object|seq|value)
	empty.Value = &protocol.Cell{Bytes: []byte{}}
	longest := empty
	longest.Value = &protocol.Cell{Bytes: bytes.Repeat([]byte{1}, protocol.ValueMax)}
	for _, m := range append(ms, empty, longest) {
		b, err := EncodeFrame([]byte("x"), app, &m)
		if err != nil {
			t.Fatal(err)
		}
		gotApp, got, err := DecodeFrame(b[1:])
		if err != nil || gotApp != app || !reflect.DeepEqual(got, m) {
			t.Errorf("%v: %v\n got %+v\nwant %+v", m.Kind, err, got, m)
		}
		if len(b)-1 > FrameBytesMax {
			t.Errorf("%v has %d bytes, at most %d are read", m.Kind, len(b)-1, FrameBytesMax)
		}
	}
	for k := protocol.Read; k <= protocol.Resume; k++ {
		has := false
		for s := range forms {
			has = has || s.kind == k
		}
		if !has {
			t.Errorf("%v has no form", k)
		}
	}
}

// TestAFrameIsShorterThanItsLimit: all parts at their longest, which no kind has at once.
func TestAFrameIsShorterThanItsLimit(t *testing.T) {
	b := bytes.Repeat([]byte{1}, 32)
	n := &NodeRef{Id: b, Inc: 1<<64 - 1}
	all := &Frame{App: b, Message: &Message{
		Kind: 38, From: 3, FromNode: n, To: 3, ToNode: n, Epoch: n.Inc, Object: b, Requester: n, Seq: n.Inc, LastInv: n.Inc, Master: true,
		Value: make([]byte, protocol.ValueMax), Ack: 9, Life: n.Inc, Thread: b[:16], Migration: n.Inc, Node: n, Checkpoint: n.Inc, Hash: b, Manifest: b,
		Parent: b[:16], Flag: true,
	}}
	if size := proto.Size(all); size > FrameBytesMax {
		t.Errorf("%d bytes, at most %d are read", size, FrameBytesMax)
	}
	all.Message.Value = nil
	e := &Event{Kind: EventKind_EVENT_KIND_PLACE, Message: all.Message, Node: n, Checkpoint: n.Inc, Hash: b, Epoch: n.Inc}
	for range PlacesMax {
		e.Places = append(e.Places, &Place{Thread: b[:16], Node: n})
	}
	if size := proto.Size(e); size > EventBytesMax {
		t.Errorf("an event of %d bytes, at most %d are read", size, EventBytesMax)
	}
}

func TestBadFramesAreMalformed(t *testing.T) {
	one := bytes.Repeat([]byte{1}, 32)
	good := func() *Frame {
		return &Frame{App: app[:], Message: &Message{
			Kind: Kind_KIND_COPY, From: Party_PARTY_NODE, FromNode: &NodeRef{Id: one, Inc: 1}, To: Party_PARTY_NODE, ToNode: &NodeRef{Id: one, Inc: 1},
			Epoch: 1, Object: one, Seq: 1, Value: []byte{1},
		}}
	}
	decode := func(f *Frame) error {
		b, err := proto.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		a, m, err := DecodeFrame(b)
		if err != nil && (a != keyspace.Key{} || m != protocol.Message{}) {
			t.Errorf("an error, and %+v", m)
		}
		return err
	}
	if err := decode(good()); err != nil {
		t.Fatal(err)
	}
	for what, spoil := range map[string]func(*Frame){
		"no application":         func(f *Frame) { f.App = nil },
		"half an application":    func(f *Frame) { f.App = f.App[:16] },
		"no message":             func(f *Frame) { f.Message = nil },
		"no kind":                func(f *Frame) { f.Message.Kind = 0 },
		"an unknown kind":        func(f *Frame) { f.Message.Kind = 39 },
		"a negative kind":        func(f *Frame) { f.Message.Kind = -1 },
		"a kind and 256":         func(f *Frame) { f.Message.Kind += 256 },
		"an unknown party":       func(f *Frame) { f.Message.From = 4 },
		"nobody's message":       func(f *Frame) { f.Message.FromNode = nil },
		"a message to nobody":    func(f *Frame) { f.Message.ToNode = nil },
		"a manager with a node":  func(f *Frame) { f.Message.From = Party_PARTY_OBJECT_MANAGER },
		"no epoch":               func(f *Frame) { f.Message.Epoch = 0 },
		"no object":              func(f *Frame) { f.Message.Object = nil },
		"half an object":         func(f *Frame) { f.Message.Object = one[:31] },
		"no number":              func(f *Frame) { f.Message.Seq = 0 },
		"no value":               func(f *Frame) { f.Message.Value = nil },
		"a value too long":       func(f *Frame) { f.Message.Value = make([]byte, protocol.ValueMax+1) },
		"another kind's field":   func(f *Frame) { f.Message.Thread = one[:16] },
		"half a node":            func(f *Frame) { f.Message.ToNode.Id = one[:3] },
		"a thread of 15":         func(f *Frame) { f.Message.Thread = one[:15] },
		"an answer that is none": func(f *Frame) { f.Message.Ack = Kind_KIND_WRITE },
	} {
		f := good()
		spoil(f)
		if err := decode(f); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, _, err := DecodeFrame(make([]byte, FrameBytesMax+1)); !errors.Is(err, ErrMalformed) {
		t.Errorf("too long: %v", err)
	}
	if _, _, err := DecodeFrame([]byte{0xff}); !errors.Is(err, ErrMalformed) {
		t.Errorf("no protobuf: %v", err)
	}
	for what, m := range map[string]protocol.Message{
		"one that is never sent": {Kind: protocol.Read, Epoch: 1},
		"a value too long":       {Kind: protocol.Copy, From: protocol.At(someOf(1)), To: protocol.At(someOf(2)), Epoch: 1, Object: app, Seq: 1, Value: &protocol.Cell{Bytes: make([]byte, protocol.ValueMax+1)}},
	} {
		if b, err := EncodeFrame([]byte("x"), app, &m); !errors.Is(err, ErrMalformed) || string(b) != "x" {
			t.Errorf("%s is encoded: %v", what, err)
		}
	}
}

func FuzzDecodeFrame(f *testing.F) {
	for _, m := range samples() {
		b, err := EncodeFrame(nil, app, &m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, m, err := DecodeFrame(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("%v", err)
			}
			return
		}
		again, err := EncodeFrame(nil, a, &m)
		if err != nil {
			t.Fatal(err)
		}
		if gotApp, got, err := DecodeFrame(again); err != nil || gotApp != a || !reflect.DeepEqual(got, m) {
			t.Errorf("%v\n got %+v\nwant %+v", err, got, m)
		}
	})
}

func objectEvents() []manager.Event {
	m := messageOfForm(shape{protocol.Write, protocol.Node, protocol.ObjectManager}, form{}, object|requester|seq)
	return []manager.Event{{Kind: manager.Receive, Msg: &m}, {Kind: manager.Suspect, Node: someOf(1)}, {Kind: manager.Trust, Node: someOf(1)}}
}

func appEvents() []appmanager.Event {
	m := messageOfForm(shape{protocol.Create, protocol.Node, protocol.AppManager}, form{}, thread|node|hash)
	return []appmanager.Event{
		{Kind: appmanager.Receive, Msg: &m}, {Kind: appmanager.Suspect, Node: someOf(1)}, {Kind: appmanager.Trust, Node: someOf(1)}, {Kind: appmanager.Begin},
		{Kind: appmanager.Abort, Checkpoint: 2}, {Kind: appmanager.Saved, Checkpoint: 3, Hash: protocol.Hash{4}}, {Kind: appmanager.Place, Epoch: 5},
		{Kind: appmanager.Place, Epoch: 5, Places: []appmanager.Placement{{Thread: protocol.ThreadID{6}, Node: someOf(7)}, {Thread: protocol.ThreadID{8}}}},
	}
}

func TestEventsComeBackAsTheyWere(t *testing.T) {
	for _, ev := range objectEvents() {
		b, err := EncodeObjectEvent(ev)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeObjectEvent(b); err != nil || !reflect.DeepEqual(got, ev) {
			t.Errorf("%v\n got %+v\nwant %+v", err, got, ev)
		}
	}
	for _, ev := range appEvents() {
		b, err := EncodeAppEvent(ev)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeAppEvent(b); err != nil || !reflect.DeepEqual(got, ev) {
			t.Errorf("%v\n got %+v\nwant %+v", err, got, ev)
		}
		if ev.Kind > appmanager.Trust || ev.Msg != nil {
			if got, err := DecodeObjectEvent(b); !errors.Is(err, ErrMalformed) {
				t.Errorf("an object's manager is told %+v, %v", got, err)
			}
		}
	}
}

func TestBadEventsAreMalformed(t *testing.T) {
	n := nodeOf(someOf(1))
	copied := messageOfForm(shape{protocol.Copy, protocol.Node, protocol.Node}, form{}, object|seq|value)
	withValue, err := messageOf(&copied)
	if err != nil {
		t.Fatal(err)
	}
	for what, e := range map[string]*Event{
		"no kind":                   {},
		"an unknown kind":           {Kind: 8},
		"a kind and 256":            {Kind: 256 + EventKind_EVENT_KIND_BEGIN},
		"no message":                {Kind: EventKind_EVENT_KIND_RECEIVE},
		"a node's message":          {Kind: EventKind_EVENT_KIND_RECEIVE, Message: withValue},
		"nobody is suspected":       {Kind: EventKind_EVENT_KIND_SUSPECT},
		"somebody beside a message": {Kind: EventKind_EVENT_KIND_BEGIN, Node: n},
		"no checkpoint":             {Kind: EventKind_EVENT_KIND_ABORT},
		"a hash too many":           {Kind: EventKind_EVENT_KIND_ABORT, Checkpoint: 1, Hash: app[:]},
		"no hash":                   {Kind: EventKind_EVENT_KIND_SAVED, Checkpoint: 1},
		"no epoch":                  {Kind: EventKind_EVENT_KIND_PLACE},
		"places of nothing":         {Kind: EventKind_EVENT_KIND_BEGIN, Places: []*Place{{Thread: app[:16], Node: n}}},
		"a place for nobody":        {Kind: EventKind_EVENT_KIND_PLACE, Epoch: 1, Places: []*Place{{Node: n}}},
		"too many places":           {Kind: EventKind_EVENT_KIND_PLACE, Epoch: 1, Places: make([]*Place, PlacesMax+1)},
	} {
		for i := range e.Places {
			if e.Places[i] == nil {
				e.Places[i] = &Place{Thread: app[:16], Node: n}
			}
		}
		b, err := proto.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if ev, err := DecodeAppEvent(b); !errors.Is(err, ErrMalformed) || !reflect.DeepEqual(ev, appmanager.Event{}) {
			t.Errorf("%s: %+v, %v", what, ev, err)
		}
	}
	if _, err := DecodeAppEvent(make([]byte, EventBytesMax+1)); !errors.Is(err, ErrMalformed) {
		t.Errorf("too long: %v", err)
	}
	if _, err := EncodeAppEvent(appmanager.Event{Kind: appmanager.Place, Epoch: 1, Places: make([]appmanager.Placement, PlacesMax+1)}); !errors.Is(err, ErrMalformed) {
		t.Errorf("too many places are encoded: %v", err)
	}
}

func FuzzDecodeEvent(f *testing.F) {
	for _, ev := range objectEvents() {
		b, err := EncodeObjectEvent(ev)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for _, ev := range appEvents() {
		b, err := EncodeAppEvent(ev)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		checkEvent(t, b, EncodeObjectEvent, DecodeObjectEvent)
		checkEvent(t, b, EncodeAppEvent, DecodeAppEvent)
	})
}

func checkEvent[E any](t *testing.T, b []byte, encode func(E) ([]byte, error), decode func([]byte) (E, error)) {
	ev, err := decode(b)
	if err != nil {
		if !errors.Is(err, ErrMalformed) {
			t.Errorf("%v", err)
		}
		return
	}
	again, err := encode(ev)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decode(again); err != nil || !reflect.DeepEqual(got, ev) {
		t.Errorf("%v\n got %+v\nwant %+v", err, got, ev)
	}
}

func BenchmarkFrame(b *testing.B) {
	m := messageOfForm(shape{protocol.ForwardedRead, protocol.ObjectManager, protocol.Node}, form{}, object|requester|seq|lastInv)
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if buf, err = EncodeFrame(buf[:0], app, &m); err != nil {
			b.Fatal(err)
		}
		if _, _, err := DecodeFrame(buf); err != nil {
			b.Fatal(err)
		}
	}
}
