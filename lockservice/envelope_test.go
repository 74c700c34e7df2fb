package lockservice

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"latchkey/internal/protofield/odd"
	"latchkey/lockservice/pb"
	"latchkey/lockservice/table"
)

// FuzzEnvelopes holds the encoding by hand against the protobuf library.
func FuzzEnvelopes(f *testing.F) {
	f.Add("n", uint64(1), uint64(2), int64(time.Second), true)
	f.Add(strings.Repeat("x", NameBytesMax), uint64(1)<<63, uint64(0), int64(-1), false)
	f.Add(strings.Repeat("y", 110), uint64(0), uint64(300), int64(0), true)
	f.Fuzz(func(t *testing.T, name string, req, token uint64, ttl int64, flag bool) {
		name = strings.ToValidUTF8(name, "")
		note := strings.ToValidUTF8(name[:min(len(name), ValueBytesMax)], "")
		same := func(got []byte, want proto.Message) {
			t.Helper()
			if b := mustMarshal(want); !bytes.Equal(b, got) {
				t.Errorf("%v: %x, the library makes %x", want, got, b)
			}
		}
		back := func(b []byte, want table.Command) {
			t.Helper()
			if got, err := decodeCommand(b); CheckName(name) == nil && got != want {
				t.Errorf("read %+v, %v; want %+v", got, err, want)
			}
		}

		acquire := table.Acquire{
			Name: name, Req: req, TTL: time.Duration(ttl), Try: flag,
			Shared: !flag, Permits: int(token % (table.HoldersPerLockMax + 1)), Delay: time.Duration(req), Value: note,
		}
		b := encodeAcquire(acquire)
		same(b, &pb.Command{Op: &pb.Command_Acquire{Acquire: &pb.Acquire{
			Name: name, Req: req, TtlNs: ttl, Try: flag,
			Shared: !flag, Permits: token % (table.HoldersPerLockMax + 1), DelayNs: int64(req), Value: note,
		}}})
		back(b, acquire)
		renew := table.Renew{Name: name, Req: req, Token: table.Token(token), TTL: time.Duration(ttl)}
		b = encodeRenew(renew)
		same(b, &pb.Command{Op: &pb.Command_Renew{Renew: &pb.Renew{Name: name, Req: req, Token: token, TtlNs: ttl}}})
		back(b, renew)
		release := table.Release{Name: name, Req: req, Token: table.Token(token)}
		b = encodeRelease(release)
		same(b, &pb.Command{Op: &pb.Command_Release{Release: &pb.Release{Name: name, Req: req, Token: token}}})
		back(b, release)
		broken := table.Break{Name: name, Token: table.Token(token), At: ttl}
		b = encodeBreak(broken)
		same(b, &pb.Command{Op: &pb.Command_Break{Break: &pb.Break{Name: name, Token: token, AtUnixNs: ttl}}})
		back(b, broken)

		r := groupResult{status: pb.Status(req % 7), token: Token(token), position: uint32(ttl), waited: flag, detail: name}
		m := &pb.Result{Status: r.status, Token: token, Position: r.position, Waited: flag, Detail: name}
		if flag {
			r.holder = party{table.Client{1}, [32]byte{2}}
			m.Holder = &pb.Party{Client: r.holder.client[:], Peer: r.holder.peer[:]}
		}
		b = r.encode()
		same(b, m)
		got, err := decodeResult(b)
		if err != nil || got != r {
			t.Errorf("read %+v, %v; want %+v", got, err, r)
		}
	})
}

// libraryCommand is decodeCommand by the protobuf library.
func libraryCommand(b []byte) (table.Command, error) {
	var m pb.Command
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	var c table.Command
	var name string
	switch op := m.Op.(type) {
	case *pb.Command_Acquire:
		a := op.Acquire
		name, c = a.Name, table.Acquire{
			Name: a.Name, Req: a.Req, TTL: time.Duration(a.TtlNs), Try: a.Try,
			Shared: a.Shared, Permits: permitsOf(a.Permits), Delay: time.Duration(a.DelayNs), Value: a.Value,
		}
	case *pb.Command_Renew:
		r := op.Renew
		name, c = r.Name, table.Renew{Name: r.Name, Req: r.Req, Token: table.Token(r.Token), TTL: time.Duration(r.TtlNs)}
	case *pb.Command_Release:
		r := op.Release
		name, c = r.Name, table.Release{Name: r.Name, Req: r.Req, Token: table.Token(r.Token)}
	case *pb.Command_Break:
		r := op.Break
		name, c = r.Name, table.Break{Name: r.Name, Token: table.Token(r.Token), At: r.AtUnixNs}
	default:
		return nil, errMalformed
	}
	return c, CheckName(name)
}

// samples are well-formed commands and a result.
func samples() [][]byte {
	party := party{table.Client{1}, [32]byte{2}}
	return [][]byte{
		encodeAcquire(table.Acquire{Name: "n", Req: 1, TTL: time.Second, Try: true}),
		encodeAcquire(table.Acquire{Name: "n", Req: 1, TTL: time.Second, Shared: true, Permits: 7, Delay: time.Second, Value: "v"}),
		encodeBreak(table.Break{Name: "p", Token: 6, At: 7}),
		encodeRenew(table.Renew{Name: "m", Req: 2, Token: 3, TTL: time.Minute}),
		encodeRelease(table.Release{Name: "o", Req: 4, Token: 5}),
		groupResult{status: pb.Status_STATUS_LOCKED, token: 1, position: 2, holder: party, waited: true, detail: "d"}.encode(),
	}
}

// readsAsTheLibrary holds the decoding by hand against the protobuf library, of any bytes: a command is read in the same way by every
// replica, whichever build it is of.
func readsAsTheLibrary(t *testing.T, b []byte) {
	t.Helper()
	b = b[:min(len(b), commandBytesMax, resultBytesMax)]
	got, err := decodeCommand(b)
	want, wantErr := libraryCommand(b)
	if (err == nil) != (wantErr == nil) || err == nil && got != want {
		t.Errorf("command %x: %+v, %v; the library: %+v, %v", b, got, err, want, wantErr)
	}
	r, err := decodeResult(b)
	var m pb.Result
	wantErr = proto.Unmarshal(b, &m)
	w := groupResult{status: m.Status, token: Token(m.Token), position: m.Position, waited: m.Waited, detail: m.Detail}
	if wantErr == nil && m.Holder != nil {
		wantErr = setParty(m.Holder.Client, m.Holder.Peer, &w.holder.client, &w.holder.peer)
	}
	if (err == nil) != (wantErr == nil) || err == nil && r != w {
		t.Errorf("result %x: %+v, %v; the library: %+v, %v", b, r, err, w, wantErr)
	}
}

func TestOddEncodingsAreReadAsTheLibraryReadsThem(t *testing.T) {
	for _, b := range odd.Encodings(samples()...) {
		readsAsTheLibrary(t, b)
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
