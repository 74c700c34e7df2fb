package pb

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"

	"latchkey/coherence/durable"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

var prefix = keyspace.PrefixOf(keyspace.Key{0xab, 0xcd}, 9)

func packets() (out []Packet) {
	var up, down []durable.Message
	for _, m := range samples() {
		if m.Kind.ToLeader() {
			up = append(up, m)
		} else {
			down = append(down, m)
		}
	}
	return []Packet{
		{Prefix: prefix, Gen: most, Messages: up},
		{Prefix: prefix, Messages: down},
		{Prefix: prefix, Where: &Whereabouts{Status: Busy}},
		{Prefix: prefix, Messages: down[:1], Where: &Whereabouts{Status: NotLeader, Leader: node, Descriptor: []byte{1, 2}}},
	}
}

func toLeader(f *Packet) bool { return len(f.Messages) > 0 && f.Messages[0].Kind.ToLeader() }

func TestFramesComeBackAsTheyWere(t *testing.T) {
	long := sample(durable.Copy, forms[durable.Copy].must|forms[durable.Copy].may)
	long.Value = &protocol.Cell{Bytes: bytes.Repeat([]byte{1}, protocol.ValueMax)}
	read := sample(durable.Read, forms[durable.Read].must)
	read.Object = "x"
	full := Packet{Prefix: prefix}
	for range FrameMessagesMax {
		full.Messages = append(full.Messages, read)
	}
	all := append(packets(), Packet{Prefix: prefix, Messages: []durable.Message{long}}, full,
		Packet{Prefix: prefix, Where: &Whereabouts{Status: Moved, Descriptor: make([]byte, DescriptorBytesMax)}})
	for i, f := range all {
		b, err := EncodePacket([]byte("x"), &f)
		if err != nil {
			t.Errorf("%d: %v", i, err)
			continue
		}
		if got, err := DecodePacket(b[1:], node, toLeader(&f)); err != nil || !reflect.DeepEqual(got, f) {
			t.Errorf("%d: %v\n got %+v\nwant %+v", i, err, got, f)
		}
		if _, err := DecodePacket(b[1:], node, !toLeader(&f)); !errors.Is(err, ErrMalformed) && len(f.Messages) > 0 {
			t.Errorf("%d, of the other side: %v", i, err)
		}
	}
}

func TestBadFramesAreMalformed(t *testing.T) {
	read, lease := sample(durable.Read, forms[durable.Read].must), sample(durable.Lease, forms[durable.Lease].must)
	for what, f := range map[string]Packet{
		"nothing":                {Prefix: prefix},
		"both sides":             {Prefix: prefix, Messages: []durable.Message{read, lease}},
		"the other sides":        {Prefix: prefix, Messages: []durable.Message{lease, read}},
		"too many":               {Prefix: prefix, Messages: make([]durable.Message, FrameMessagesMax+1)},
		"no status":              {Prefix: prefix, Where: &Whereabouts{}},
		"unknown status":         {Prefix: prefix, Where: &Whereabouts{Status: statuses}},
		"whereabouts of a node":  {Prefix: prefix, Messages: []durable.Message{read}, Where: &Whereabouts{Status: Busy}},
		"descriptor":             {Prefix: prefix, Where: &Whereabouts{Status: Busy, Descriptor: make([]byte, DescriptorBytesMax+1)}},
		"a message that is none": {Prefix: prefix, Messages: []durable.Message{{Kind: durable.Read}}},
	} {
		if _, err := EncodePacket(nil, &f); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	p, _ := prefix.AppendBinary(nil)
	for what, f := range map[string]*Frame{
		"no prefix":      {Where: &Where{Status: 1}},
		"long prefix":    {Prefix: append(p, 0), Where: &Where{Status: 1}},
		"short leader":   {Prefix: p, Where: &Where{Status: 1, Leader: node[:31]}},
		"unknown status": {Prefix: p, Where: &Where{Status: 1 << 20}},
		"empty message":  {Prefix: p, Messages: []*Message{{}}},
		"too many":       {Prefix: p, Messages: make([]*Message, FrameMessagesMax+1)},
	} {
		b, err := proto.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, to := range []bool{false, true} {
			if _, err := DecodePacket(b, node, to); !errors.Is(err, ErrMalformed) {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	if _, err := DecodePacket(make([]byte, FrameBytesMax+1), node, true); !errors.Is(err, ErrMalformed) {
		t.Error(err)
	}
}

// FuzzDecodePacket holds that what is accepted may be sent, and comes back.
func FuzzDecodePacket(f *testing.F) {
	for _, p := range packets() {
		b, err := EncodePacket(nil, &p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, toLeader(&p))
	}
	f.Fuzz(func(t *testing.T, b []byte, to bool) {
		p, err := DecodePacket(b, node, to)
		if err != nil {
			return
		}
		again, err := EncodePacket(nil, &p)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodePacket(again, node, to); err != nil || !reflect.DeepEqual(got, p) {
			t.Fatalf("%v: %+v, then %+v", err, p, got)
		}
	})
}

// BenchmarkMiss is what the frames of a read that asks the leader cost: its request and the answer, written and read.
func BenchmarkMiss(b *testing.B) {
	read, answer := sample(durable.Read, forms[durable.Read].must), sample(durable.Copy, forms[durable.Copy].must)
	read.Object, answer.Object = "app/dir/name", "app/dir/name"
	answer.Content, answer.Version, answer.Lease, answer.Value = durable.Whole, 7, 1e9, &protocol.Cell{Bytes: make([]byte, 64)}
	b.ReportAllocs()
	for b.Loop() {
		for _, m := range []durable.Message{read, answer} {
			frame, err := EncodePacket(nil, &Packet{Prefix: prefix, Gen: 1, Messages: []durable.Message{m}})
			if err != nil {
				b.Fatal(err)
			}
			if _, err := DecodePacket(frame, node, m.Kind.ToLeader()); err != nil {
				b.Fatal(err)
			}
		}
	}
}
