package pb

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/lockservice/sigma"
)

func tables() []sigma.Saved {
	p := sigma.ReportParty{
		Req: sigma.Req{Session: sigma.Session{1, 2}, Seq: 3}, ReqTS: 4, Node: keyspace.NodeID{5}, CS: -6, TTL: time.Second, Delay: 7, Left: 8, Tok: 1 << 63,
	}
	return []sigma.Saved{
		{},
		{Rec: 1 << 60, DelayLeft: time.Minute},
		{Rec: 9, Owned: true, Owner: p, GID: sigma.GID{Inc: 10, N: 11}},
		{Candidates: []sigma.ReportParty{p, p}},
	}
}

func TestWhatIsRecordedComesBackAsItWas(t *testing.T) {
	for _, s := range tables() {
		if got, err := DecodeSaved(AppendSaved(nil, &s)); err != nil || !reflect.DeepEqual(got, s) {
			t.Errorf("%+v: %v, was %+v", got, err, s)
		}
	}
	h := sigma.Head{View: sigma.ViewID{Gen: 1, Num: 2}, Floor: 1 << 63, Clock: 4}
	if got, err := DecodeHead(AppendHead(nil, &h)); err != nil || got != h {
		t.Errorf("%+v: %v", got, err)
	}
}

// FuzzDecodeSaved: whatever is accepted comes back the same.
func FuzzDecodeSaved(f *testing.F) {
	for _, s := range tables() {
		f.Add(AppendSaved(nil, &s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := DecodeHead(b); err == nil {
			if again, err := DecodeHead(AppendHead(nil, &h)); err != nil || again != h {
				t.Fatalf("%+v: %v", again, err)
			}
		}
		s, err := DecodeSaved(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if again, err := DecodeSaved(AppendSaved(nil, &s)); err != nil || !reflect.DeepEqual(again, s) {
			t.Fatalf("%+v: %v, was %+v", again, err, s)
		}
	})
}

func TestRecordsThatMakeNoSenseAreRefused(t *testing.T) {
	p := tables()[2].Owner
	for _, bad := range []func(*sigma.Saved){
		func(s *sigma.Saved) { s.DelayLeft = -1 },
		func(s *sigma.Saved) { s.Owner.TTL = 0 },
		func(s *sigma.Saved) { s.Owner.Left = -1 },
		func(s *sigma.Saved) {
			s.Candidates = make([]sigma.ReportParty, savedCandidatesMax+1)
			for i := range s.Candidates {
				s.Candidates[i] = p
			}
		},
	} {
		s := tables()[2]
		bad(&s)
		if _, err := DecodeSaved(AppendSaved(nil, &s)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%+v: %v", s, err)
		}
	}
}
