package replicagroup

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
)

// FuzzEnvelopes holds the encoding by hand against the protobuf library.
func FuzzEnvelopes(f *testing.F) {
	f.Add(uint64(0), uint64(1), "locks", []byte("data"), true)
	f.Add(uint64(1)<<63, uint64(1)<<32, "", []byte{}, false)
	f.Add(uint64(300), uint64(127), strings.Repeat("s", order.ServiceBytesMax), bytes.Repeat([]byte{1}, 1000), true)
	f.Fuzz(func(t *testing.T, x, y uint64, service string, data []byte, root bool) {
		g := testDescriptor().Group
		g.Gen = y
		if root {
			g = order.GroupID{Overlay: testDecoder.overlay}
		}
		service = strings.ToValidUTF8(service[:min(len(service), order.ServiceBytesMax)], "")
		data = data[:min(len(data), order.DataBytesMax)]
		same := func(what string, got []byte, want proto.Message) {
			t.Helper()
			ours := want.ProtoReflect().New().Interface()
			if err := proto.Unmarshal(got, ours); err != nil || !proto.Equal(ours, want) {
				t.Errorf("%s: the library reads %v, %v; want %v", what, ours, err, want)
			}
			if b, err := (proto.MarshalOptions{Deterministic: true}).Marshal(want); err != nil || !bytes.Equal(b, got) {
				t.Errorf("%s: %x, the library makes %x, %v", what, got, b, err)
			}
		}

		from, to := order.StoreID{1, byte(x)}, order.StoreID{2, byte(y)}
		batch := appendEngineMessage(nil, g, order.ReplicaID(x), order.ReplicaID(y), from, to, data)
		batch = appendEngineMessage(batch, g, order.ReplicaID(y), order.ReplicaID(x), to, from, nil)
		same("batch", batch, &pb.EngineBatch{Messages: []*pb.EngineMessage{
			{Group: groupToPB(g), From: x, To: y, FromStore: from[:], ToStore: to[:], Data: data},
			{Group: groupToPB(g), From: y, To: x, FromStore: to[:], ToStore: from[:]},
		}})
		events, err := testDecoder.engineBatch(batch)
		want := engineEvent{group: g, to: order.ReplicaID(y), store: to,
			recv: order.Recv{From: order.ReplicaID(x), Store: from, Msg: data}}
		if err != nil || len(events) != 2 || !bytes.Equal(events[0].recv.Msg, data) {
			t.Fatalf("batch: read %+v, %v", events, err)
		}
		if events[0].recv.Msg = data; !reflect.DeepEqual(events[0], want) {
			t.Errorf("batch: read %+v, want %+v", events[0], want)
		}

		cmd := order.Command{Client: order.ClientID{9}, Seq: x, Acked: y, Service: service, Data: data}
		b := encodeCommand(g, y, cmd)
		same("command", b, &pb.CommandRequest{
			Group: groupToPB(g), View: y, Client: cmd.Client[:], Seq: x, Acked: y, Service: service, Data: data})
		if service != "tick" {
			e, err := testDecoder.command(b)
			if err != nil || e.group != g || e.view != y || !bytes.Equal(e.cmd.Data, data) {
				t.Fatalf("command: read %+v, %v", e, err)
			}
			if e.cmd.Data = data; !reflect.DeepEqual(e.cmd, cmd) {
				t.Errorf("command: read %+v, want %+v", e.cmd, cmd)
			}
		}

		status := pb.Status(x % 14)
		b = appendResult(nil, status, data)
		same("reply", b, &pb.Reply{Status: status, Data: data})
		if r, err := testDecoder.reply(b); err != nil || r.status != status || !bytes.Equal(r.data, data) {
			t.Errorf("reply: read %+v, %v", r, err)
		}
	})
}

func TestABatchOfTooManyMessagesIsRefused(t *testing.T) {
	var b []byte
	for range engineMessagesMax {
		b = appendEngineMessage(b, order.GroupID{}, 1, 2, order.StoreID{1}, order.StoreID{2}, nil)
	}
	if events, err := testDecoder.engineBatch(b); err != nil || len(events) != engineMessagesMax {
		t.Errorf("%d messages: %d read, %v", engineMessagesMax, len(events), err)
	}
	b = appendEngineMessage(b, order.GroupID{}, 1, 2, order.StoreID{1}, order.StoreID{2}, nil)
	if _, err := testDecoder.engineBatch(b); err == nil {
		t.Error("one message more: taken")
	}
}
