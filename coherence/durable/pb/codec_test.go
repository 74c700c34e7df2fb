package pb

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"latchkey/coherence/durable"
	"latchkey/coherence/durable/store"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

var node = keyspace.NodeID{1, 31: 2}

const most = 1<<64 - 1

// sample makes a message of a kind with some parts.
func sample(k durable.Kind, ps part) durable.Message {
	m := durable.Message{Kind: k, Node: node, Session: durable.Session{Inc: most, N: 2}}
	for p, set := range map[part]func(){
		object: func() { m.Object = strings.Repeat("x", durable.ObjectBytesMax) }, seq: func() { m.Seq = most },
		tenure: func() { m.Tenure = durable.Tenure{Gen: most, Term: most} }, version: func() { m.Version = most },
		content: func() { m.Content, m.Version, m.Value = durable.Whole, most, &protocol.Cell{Bytes: []byte{7}} },
		lease:   func() { m.Lease = durable.LeaseMax }, exclusive: func() { m.Exclusive = true }, reason: func() { m.Reason = durable.Bad },
		write: func() { m.Expect, m.Wanted, m.TTL = durable.Exact, most, store.TTLMax },
	} {
		if ps&p != 0 {
			set()
		}
	}
	if k == durable.Store {
		m.Value = &protocol.Cell{Bytes: []byte{8}}
	}
	return m
}

func samples() (out []durable.Message) {
	for k, f := range forms {
		if k != durable.Store {
			out = append(out, sample(k, f.must))
		}
		out = append(out, sample(k, f.must|f.may))
	}
	store := sample(durable.Store, forms[durable.Store].must)
	remove, empty := store, store
	remove.Delete, remove.Value = true, nil
	empty.Value = &protocol.Cell{Bytes: []byte{}}
	same := sample(durable.Copy, forms[durable.Copy].must|version)
	same.Content = durable.Same
	return append(out, store, remove, empty, same)
}

func TestMessagesComeBackAsTheyWere(t *testing.T) {
	longest := sample(durable.Copy, forms[durable.Copy].must|forms[durable.Copy].may)
	longest.Value = &protocol.Cell{Bytes: bytes.Repeat([]byte{1}, protocol.ValueMax)}
	for _, m := range append(samples(), longest) {
		b, err := EncodeMessage([]byte("x"), &m)
		if err != nil {
			t.Errorf("%v: %v", &m, err)
			continue
		}
		got, err := DecodeMessage(b[1:], node)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%v: %v\n got %+v\nwant %+v", m.Kind, err, got, m)
		}
	}
	for k := durable.Kind(1); k.Fits(); k++ {
		if _, ok := forms[k]; !ok {
			t.Errorf("%v has no form", k)
		}
		if Kind_name[int32(k)] != "KIND_"+k.String() {
			t.Errorf("%v is %s on the wire", k, Kind_name[int32(k)])
		}
	}
}

// TestBadMessagesAreMalformed takes each message, and changes one thing.
func TestBadMessagesAreMalformed(t *testing.T) {
	changes := map[string]func(*durable.Message){
		"kind":       func(m *durable.Message) { m.Kind = 15 },
		"no kind":    func(m *durable.Message) { m.Kind = 0 },
		"name":       func(m *durable.Message) { m.Object += strings.Repeat("x", durable.ObjectBytesMax+1) },
		"no UTF-8":   func(m *durable.Message) { m.Object = "\xff" },
		"value":      func(m *durable.Message) { m.Value = &protocol.Cell{Bytes: make([]byte, protocol.ValueMax+1)} },
		"content":    func(m *durable.Message) { m.Content = 3 },
		"lease":      func(m *durable.Message) { m.Lease = durable.LeaseMax + 1 },
		"TTL":        func(m *durable.Message) { m.TTL = store.TTLMax + 1 },
		"expect":     func(m *durable.Message) { m.Expect = 3 },
		"reason":     func(m *durable.Message) { m.Reason = 200 },
		"wanted":     func(m *durable.Message) { m.Expect, m.Wanted = durable.Any, 1 },
		"generation": func(m *durable.Message) { m.Tenure = durable.Tenure{Gen: 1} },
		"foreign":    func(m *durable.Message) { m.Exclusive, m.Reason = true, durable.Bad },
	}
	for _, m := range samples() {
		for what, change := range changes {
			bad := m
			if change(&bad); reflect.DeepEqual(bad, m) {
				continue
			}
			if _, err := EncodeMessage(nil, &bad); !errors.Is(err, ErrMalformed) {
				t.Errorf("%v with another %s: %v", m.Kind, what, err)
			}
		}
	}
	// What never leaves this build may come from another.
	for what, p := range map[string]*Message{
		"nothing":     {},
		"kind":        {Kind: 1 << 30, Seq: 1, Object: "x"},
		"negative":    {Kind: -1, Seq: 1, Object: "x"},
		"content":     {Kind: Kind_KIND_COPY, Seq: 1, Object: "x", Term: 1, Content: 1 << 31},
		"lease":       {Kind: Kind_KIND_LEASE, Seq: 1, Term: 1, LeaseNs: 1 << 63},
		"no value":    {Kind: Kind_KIND_STORE, Seq: 1, Object: "x"},
		"two in one":  {Kind: Kind_KIND_STORE, Seq: 1, Object: "x", Delete: true, Value: []byte{1}},
		"spare value": {Kind: Kind_KIND_READ, Seq: 1, Object: "x", Value: []byte{1}},
	} {
		b, err := proto.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeMessage(b, node); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := DecodeMessage(make([]byte, MessageBytesMax+1), node); !errors.Is(err, ErrMalformed) {
		t.Error(err)
	}
}

func commands() []store.Command {
	by := protocol.NodeRef{ID: node, Inc: most}
	long := strings.Repeat("x", durable.ObjectBytesMax)
	var except []string
	for i := range store.ExceptionsMax {
		except = append(except, long[1:]+string(rune('a'+i)))
	}
	return []store.Command{
		{Mark: store.Mark{Index: 7}},
		{Object: "x", Wanted: 3, Delete: true},
		{Object: "x", By: by, Seq: 1, Delete: true},
		{Object: "x", By: by, Seq: 1, Value: &protocol.Cell{Bytes: []byte{}}, Expect: durable.Absent},
		{
			Object: long, By: by, Seq: most, Value: &protocol.Cell{Bytes: bytes.Repeat([]byte{1}, protocol.ValueMax)}, Expect: durable.Exact, Wanted: most,
			TTL: store.TTLMax, Mark: store.Mark{Index: most, Except: except},
		},
	}
}

func TestCommandsComeBackAsTheyWere(t *testing.T) {
	for _, c := range commands() {
		b, err := EncodeCommand(&c)
		if err != nil {
			t.Errorf("%.20q: %v", c.Object, err)
			continue
		}
		if got, err := DecodeCommand(b); err != nil || !reflect.DeepEqual(got, c) {
			t.Errorf("%.20q: %v", c.Object, err)
		}
	}
}

func TestBadCommandsAreMalformed(t *testing.T) {
	by := protocol.NodeRef{ID: node, Inc: 1}
	v := &protocol.Cell{Bytes: []byte{1}}
	for what, c := range map[string]store.Command{
		"a mark that writes":    {Value: v},
		"an expiry of nothing":  {Object: "x", Delete: true},
		"an expiry that writes": {Object: "x", Wanted: 1, Value: v},
		"no number":             {Object: "x", By: by, Value: v},
		"no value":              {Object: "x", By: by, Seq: 1},
		"two in one":            {Object: "x", By: by, Seq: 1, Value: v, Delete: true},
		"expect":                {Object: "x", By: by, Seq: 1, Value: v, Expect: 3},
		"wanted":                {Object: "x", By: by, Seq: 1, Value: v, Wanted: 3},
		"TTL":                   {Object: "x", By: by, Seq: 1, Value: v, TTL: -time.Second},
		"name":                  {Object: "\xff", By: by, Seq: 1, Value: v},
		"value":                 {Object: "x", By: by, Seq: 1, Value: &protocol.Cell{Bytes: make([]byte, protocol.ValueMax+1)}},
		"exceptions":            {Mark: store.Mark{Index: 1, Except: []string{"b", "a"}}},
		"too many exceptions":   {Mark: store.Mark{Index: 1, Except: make([]string, store.ExceptionsMax+1)}},
	} {
		if _, err := EncodeCommand(&c); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, p := range map[string]*Command{
		"a short node": {Object: "x", Node: node[:31], Seq: 1, Value: []byte{1}},
		"a long node":  {Object: "x", Node: append(node[:], 1), Seq: 1, Value: []byte{1}},
		"no node":      {Object: "x", Node: make([]byte, 32), Seq: 1, Value: []byte{1}},
	} {
		b, err := proto.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeCommand(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := DecodeCommand(make([]byte, CommandBytesMax+1)); !errors.Is(err, ErrMalformed) {
		t.Error(err)
	}
}

// FuzzDecodeMessage holds that what is accepted is what an automaton may send, and comes back.
func FuzzDecodeMessage(f *testing.F) {
	for _, m := range samples() {
		b, err := EncodeMessage(nil, &m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeMessage(b, node)
		if err != nil {
			return
		}
		again, err := EncodeMessage(nil, &m)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeMessage(again, node); err != nil || !reflect.DeepEqual(got, m) {
			t.Fatalf("%v: %+v, then %+v", err, m, got)
		}
	})
}

// FuzzDecodeCommand holds the same of commands, and that a store takes them.
func FuzzDecodeCommand(f *testing.F) {
	for _, c := range commands()[:4] {
		b, err := EncodeCommand(&c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := DecodeCommand(b)
		if err != nil {
			return
		}
		again, err := EncodeCommand(&c)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeCommand(again); err != nil || !reflect.DeepEqual(got, c) {
			t.Fatalf("%v: %+v, then %+v", err, c, got)
		}
		s := store.New(store.Config{})
		for i := range uint64(2) {
			s.Apply(10+i, time.Hour, c)
			if err := s.Check(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
