package lockservice

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

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

		acquire := table.Acquire{Name: name, Req: req, TTL: time.Duration(ttl), Try: flag}
		b := encodeAcquire(acquire)
		same(b, &pb.Command{Op: &pb.Command_Acquire{Acquire: &pb.Acquire{Name: name, Req: req, TtlNs: ttl, Try: flag}}})
		back(b, acquire)
		renew := table.Renew{Name: name, Req: req, Token: table.Token(token), TTL: time.Duration(ttl)}
		b = encodeRenew(renew)
		same(b, &pb.Command{Op: &pb.Command_Renew{Renew: &pb.Renew{Name: name, Req: req, Token: token, TtlNs: ttl}}})
		back(b, renew)
		release := table.Release{Name: name, Req: req, Token: table.Token(token)}
		b = encodeRelease(release)
		same(b, &pb.Command{Op: &pb.Command_Release{Release: &pb.Release{Name: name, Req: req, Token: token}}})
		back(b, release)

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
