package pb

import (
	"fmt"
	"time"

	"latchkey/internal/automaton"
	"latchkey/internal/protofield"
	"latchkey/lockservice/sigma"
)

// What a voter has recorded of its table. These bytes do not leave its host, and each life of the host writes them anew.

// savedCandidatesMax bounds the candidates of one name that are read: more than all voters of a view can name.
const savedCandidatesMax = sigma.MembersMax * sigma.CandidatesMax

// AppendHead appends the bytes of a table's head to b.
func AppendHead(b []byte, h *sigma.Head) []byte {
	b = protofield.AppendUint(b, 1, uint64(h.View.Gen))
	b = protofield.AppendUint(b, 2, h.View.Num)
	b = protofield.AppendUint(b, 3, uint64(h.Floor))
	return protofield.AppendUint(b, 4, h.Clock)
}

// DecodeHead reads what [AppendHead] wrote. The error matches [ErrMalformed].
func DecodeHead(b []byte) (h sigma.Head, err error) {
	r := protofield.Read(b)
	for r.Next() {
		switch r.Field() {
		case protofield.Number(1):
			h.View.Gen = uint32(r.Uint())
		case protofield.Number(2):
			h.View.Num = r.Uint()
		case protofield.Number(3):
			h.Floor = sigma.Token(r.Uint())
		case protofield.Number(4):
			h.Clock = r.Uint()
		}
	}
	if err = r.Err(); err != nil {
		err = fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	return h, err
}

// AppendSaved appends the bytes of what is recorded of a name to b.
func AppendSaved(b []byte, s *sigma.Saved) []byte {
	b = protofield.AppendUint(b, 1, uint64(s.Rec))
	b = protofield.AppendUint(b, 2, uint64(s.DelayLeft))
	if s.Owned {
		b = appendParty(b, 3, &s.Owner)
		b = protofield.AppendUint(b, 4, s.GID.Inc)
		b = protofield.AppendUint(b, 5, s.GID.N)
	}
	for i := range s.Candidates {
		b = appendParty(b, 6, &s.Candidates[i])
	}
	return b
}

func appendParty(b []byte, num int, p *sigma.ReportParty) []byte {
	b, at := protofield.Open(b, num)
	b = appendReq(b, 1, &p.Req)
	b = protofield.AppendUint(b, 2, p.ReqTS)
	b = protofield.AppendBytes(b, 3, p.Node[:])
	b = protofield.AppendUint(b, 4, uint64(p.CS))
	b = protofield.AppendUint(b, 5, uint64(p.TTL))
	b = protofield.AppendUint(b, 6, uint64(p.Delay))
	b = protofield.AppendUint(b, 7, uint64(p.Left))
	b = protofield.AppendUint(b, 8, uint64(p.Tok))
	return protofield.Close(b, at)
}

// DecodeSaved reads what [AppendSaved] wrote. The error matches [ErrMalformed].
func DecodeSaved(b []byte) (s sigma.Saved, err error) {
	bad := func(err error) (sigma.Saved, error) { return sigma.Saved{}, fmt.Errorf("%w: %v", ErrMalformed, err) }
	r := protofield.Read(b)
	for r.Next() {
		switch r.Field() {
		case protofield.Number(1):
			s.Rec = sigma.Token(r.Uint())
		case protofield.Number(2):
			s.DelayLeft = time.Duration(r.Uint())
		case protofield.Bytes(3):
			if s.Owner, err = readParty(r.Bytes()); err != nil {
				return bad(err)
			}
			s.Owned = true
		case protofield.Number(4):
			s.GID.Inc = r.Uint()
		case protofield.Number(5):
			s.GID.N = r.Uint()
		case protofield.Bytes(6):
			p, err := readParty(r.Bytes())
			if err != nil {
				return bad(err)
			}
			if s.Candidates = append(s.Candidates, p); len(s.Candidates) > savedCandidatesMax {
				return bad(fmt.Errorf("more than %d candidates", savedCandidatesMax))
			}
		}
	}
	if err := r.Err(); err != nil {
		return bad(err)
	}
	if s.DelayLeft < 0 || !s.Owned && s.GID != (sigma.GID{}) {
		return bad(fmt.Errorf("a delay of %v, a grant of nobody", s.DelayLeft))
	}
	return s, nil
}

func readParty(b []byte) (p sigma.ReportParty, err error) {
	r := protofield.Read(b)
	for r.Next() {
		switch r.Field() {
		case protofield.Bytes(1):
			var q Req
			if !q.read(r.Bytes()) || len(q.Session) > len(p.Req.Session) {
				return p, fmt.Errorf("a request that cannot be read")
			}
			copy(p.Req.Session[:], q.Session)
			p.Req.Seq = q.Seq
		case protofield.Number(2):
			p.ReqTS = r.Uint()
		case protofield.Bytes(3):
			if n := copy(p.Node[:], r.Bytes()); n != len(r.Bytes()) || n != len(p.Node) {
				return p, fmt.Errorf("a node of %d bytes", len(r.Bytes()))
			}
		case protofield.Number(4):
			p.CS = automaton.Instant(r.Uint())
		case protofield.Number(5):
			p.TTL = time.Duration(r.Uint())
		case protofield.Number(6):
			p.Delay = time.Duration(r.Uint())
		case protofield.Number(7):
			p.Left = time.Duration(r.Uint())
		case protofield.Number(8):
			p.Tok = sigma.Token(r.Uint())
		}
	}
	if err := r.Err(); err != nil {
		return p, err
	}
	if p.TTL <= 0 || p.Delay < 0 || p.Left < 0 {
		return p, fmt.Errorf("a lease of %v, of which %v are left, and a delay of %v", p.TTL, p.Left, p.Delay)
	}
	return p, nil
}
