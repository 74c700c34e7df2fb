package replicagroup

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"latchkey/internal/protofield"
	"latchkey/internal/protofield/odd"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
	"latchkey/replicagroup/session"
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

// libraryBatch, libraryCommand and libraryReply are the decoders by hand, by the protobuf library.
func libraryBatch(b []byte) ([]engineEvent, error) {
	var m pb.EngineBatch
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	if len(m.Messages) > engineMessagesMax {
		return nil, errMalformed
	}
	var events []engineEvent
	for _, m := range m.Messages {
		e := engineEvent{to: order.ReplicaID(m.To), recv: order.Recv{From: order.ReplicaID(m.From), Msg: m.Data}}
		var err error
		if e.group, err = testDecoder.group(m.Group); m.Group == nil {
			err = errMalformed
		}
		if err = errors.Join(err, fixed(e.recv.Store[:], m.FromStore, ""), fixed(e.store[:], m.ToStore, "")); err != nil {
			return nil, err
		}
		events = append(events, e)
	}
	return events, nil
}

func libraryCommand(b []byte) (e commandEvent, err error) {
	var m pb.CommandRequest
	if err := proto.Unmarshal(b, &m); err != nil {
		return e, err
	}
	e.view, e.cmd = m.View, order.Command{Seq: m.Seq, Acked: m.Acked, Service: m.Service, Data: m.Data}
	if e.group, err = testDecoder.group(m.Group); err == nil {
		err = fixed(e.cmd.Client[:], m.Client, "")
	}
	if m.Group == nil || e.cmd.Client == (order.ClientID{}) || m.Service == session.TickService ||
		len(m.Service) > order.ServiceBytesMax || len(m.Data) > order.DataBytesMax {
		err = errMalformed
	}
	return e, err
}

func libraryReply(b []byte) (a reply, err error) {
	var m pb.Reply
	if err := proto.Unmarshal(b, &m); err != nil {
		return a, err
	}
	a.status, a.data = m.Status, m.Data
	if len(m.Leader) > 0 {
		err = fixed(a.leader[:], m.Leader, "")
	}
	if err == nil && len(m.Descriptor_) > 0 {
		a.descriptor, err = testDecoder.descriptor(m.Descriptor_)
	}
	return a, err
}

// samples are well-formed messages.
func samples() [][]byte {
	d := testDescriptor()
	g, other := d.Group, d.Group
	other.Gen++
	from, to := order.StoreID{1}, order.StoreID{2}
	cmd := order.Command{Client: order.ClientID{9}, Seq: 1, Acked: 2, Service: "locks", Data: []byte("data")}
	return [][]byte{
		appendEngineMessage(appendEngineMessage(nil, g, 1, 2, from, to, []byte("x")), other, 3, 4, to, from, nil),
		encodeCommand(g, 5, cmd), encodeCommand(other, 6, cmd),
		marshal(&pb.Reply{Status: pb.Status_MOVED, Data: []byte("data"), Leader: bytes.Repeat([]byte{7}, 32), Descriptor_: encodeDescriptor(d)}),
	}
}

// readsAsTheLibrary holds the decoding by hand against the protobuf library, of any bytes: a message is read in the same way by every peer,
// whichever build it is of.
func readsAsTheLibrary(t *testing.T, b []byte) {
	t.Helper()
	check := func(what string, got any, err error, want any, wantErr error) {
		t.Helper()
		if (err == nil) != (wantErr == nil) || err == nil && !reflect.DeepEqual(got, want) {
			t.Errorf("%s %x: %+v, %v; the library: %+v, %v", what, b, got, err, want, wantErr)
		}
	}
	events, err := testDecoder.engineBatch(b)
	wantEvents, wantErr := libraryBatch(b)
	for i := range events {
		events[i].recv.Msg = noneIfEmpty(events[i].recv.Msg)
	}
	for i := range wantEvents {
		wantEvents[i].recv.Msg = noneIfEmpty(wantEvents[i].recv.Msg)
	}
	check("batch", append([]engineEvent{}, events...), err, append([]engineEvent{}, wantEvents...), wantErr)
	e, err := testDecoder.command(b)
	wantE, wantErr := libraryCommand(b)
	e.cmd.Data, wantE.cmd.Data = noneIfEmpty(e.cmd.Data), noneIfEmpty(wantE.cmd.Data)
	check("command", e, err, wantE, wantErr)
	a, err := testDecoder.reply(b)
	wantA, wantErr := libraryReply(b)
	a.data, wantA.data = noneIfEmpty(a.data), noneIfEmpty(wantA.data)
	check("reply", a, err, wantA, wantErr)
}

func TestOddEncodingsAreReadAsTheLibraryReadsThem(t *testing.T) {
	for _, b := range odd.Encodings(samples()...) {
		readsAsTheLibrary(t, b)
		readsAsTheLibrary(t, protofield.AppendBytes(nil, 1, b)) // what an engine's message is in a batch
	}
	for _, b := range odd.Encodings(protofield.AppendUint(protofield.AppendBytes(nil, 6, "engine"), 2, 3)) {
		readsAsTheLibrary(t, protofield.AppendBytes(samples()[0], 1, b))
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		readsAsTheLibrary(t, odd.Draw(rng, samples()...))
	}
}

// FuzzDecoders begins with few seeds, since the fuzzer passes on all of this program's counters for each; the test above has the others.
func FuzzDecoders(f *testing.F) {
	for _, b := range samples() {
		f.Add(b)
		f.Add(slices.Concat(b, b))
	}
	f.Fuzz(readsAsTheLibrary)
}

// noneIfEmpty makes no difference between no bytes and none of them.
func noneIfEmpty(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return b
}
