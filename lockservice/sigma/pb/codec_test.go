package pb

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"latchkey/dht/keyspace"
	"latchkey/lockservice/sigma"
)

func samples() []sigma.Message {
	q, v := sigma.Req{Session: sigma.Session{1, 2}, Seq: 3}, sigma.ViewID{Gen: 4, Num: 5}
	party := sigma.ReportParty{Req: q, ReqTS: 6, Node: keyspace.NodeID{7}, CS: -8, TTL: time.Second, Delay: 9, Left: 10, Tok: 11}
	return []sigma.Message{
		{Kind: sigma.Request, View: v, Name: "n", Req: q, TS: 1, ReqTS: 2, CS: -3, TTL: time.Second, Delay: 5, Tok: 6, Patient: true},
		{Kind: sigma.Yield, View: v, Name: "n", Req: q, GID: sigma.GID{Inc: 1, N: 2}},
		{Kind: sigma.Release, View: v, Name: "n", Req: q, Tok: 1 << 63, Ack: true},
		{Kind: sigma.Install, View: v, Name: "n", Req: q, GID: sigma.GID{N: 2}, Tok: 7, CS: 1},
		{Kind: sigma.Grant, View: v, Name: "n", Req: q, GID: sigma.GID{Inc: 1}, Tok: 7, CS: 1, Older: true},
		{Kind: sigma.Inquire, View: v, Name: "n", Req: q, GID: sigma.GID{Inc: 1, N: 2}, Tok: 7, Older: true},
		{Kind: sigma.Queued, View: v, Name: "n", Req: q, Owner: q, GID: sigma.GID{Inc: 1, N: 2}, Position: 8, Wait: 9, Embargo: 10},
		{Kind: sigma.Released, View: v, Name: "n", Req: q},
		{Kind: sigma.Moved, View: v, Name: "n", Req: q, Members: []keyspace.NodeID{{1}, {2}, {3}}},
		{Kind: sigma.WrongGen, View: v, Name: "n", Req: q},
		{Kind: sigma.Refused, View: v, Name: "n", Req: q, Reason: sigma.BadToken},
		{Kind: sigma.Reported, View: v, Report: &sigma.Report{Inc: 1, Chunk: 2, Chunks: 3, Entries: []sigma.ReportEntry{
			{Name: "n", Parties: []sigma.ReportParty{party}, Queue: []sigma.ReportParty{party, party}, Ended: []sigma.Req{q}, DelayLeft: 4},
		}}},
		{Kind: sigma.Pull, View: v, Chunk: 5},
		{Kind: sigma.Pull, View: v, Name: "n"},
		{Kind: sigma.Reported, View: v, Name: "n", Report: &sigma.Report{Chunks: 1, Entries: []sigma.ReportEntry{{Name: "n", Parties: []sigma.ReportParty{party}}}}},
		{Kind: sigma.Moved, View: v, Name: "n", Req: q, Members: []keyspace.NodeID{{1}}, Mode: sigma.ModeGroup},
		{Kind: sigma.Inspect, View: v, Name: "n", Req: q},
		{Kind: sigma.Inspected, View: v, Name: "n", Req: q, Report: &sigma.Report{Chunks: 1, Entries: []sigma.ReportEntry{{Name: "n"}}}},
		{Kind: sigma.List, View: v, Req: q},
		{Kind: sigma.List, View: v, Name: "n", Req: q},
		{Kind: sigma.Listed, View: v, Name: "n", Req: q, Ack: true, Report: &sigma.Report{Chunks: 1, Entries: []sigma.ReportEntry{{Name: "n"}, {Name: "o"}}}},
		{Kind: sigma.Listed, View: v, Req: q, Report: &sigma.Report{Chunks: 1}},
		{Kind: sigma.Moved, View: v, Req: q, Members: []keyspace.NodeID{{1}, {2}, {3}}}, // as a LIST of all names is answered
		{Kind: sigma.WrongGen, View: v, Req: q},
	}
}

func entries() []sigma.Entry {
	q, v := sigma.Req{Session: sigma.Session{1, 2}, Seq: 3}, sigma.ViewID{Gen: 4, Num: 5}
	return []sigma.Entry{
		{Kind: sigma.EntryView, From: v},
		{Kind: sigma.EntryView, From: v, Members: []keyspace.NodeID{{1}, {2}}},
		{Kind: sigma.EntryRaise, From: v},
		{Kind: sigma.EntryRaiseTTL, From: v, Cap: time.Minute},
		{Kind: sigma.EntryOver, From: v, Name: "n", Req: q, Node: keyspace.NodeID{9}},
		{Kind: sigma.EntryReport, From: v, Node: keyspace.NodeID{9}, Report: samples()[11].Report.Entries[0]},
	}
}

func TestEntriesComeBackAsTheyWere(t *testing.T) {
	for _, e := range entries() {
		b, err := EncodeEntry(&e)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeEntry(b)
		if err != nil || !reflect.DeepEqual(got, e) {
			t.Errorf("%v: %v\n got %+v\nwant %+v", e.Kind, err, got, e)
		}
	}
	if _, err := DecodeEntry(make([]byte, EntryBytesMax+1)); !errors.Is(err, ErrMalformed) {
		t.Errorf("too long: %v", err)
	}
}

func TestTheLongestReportFitsAnEntry(t *testing.T) {
	q := sigma.Req{Session: sigma.Session{1}, Seq: 1<<64 - 1}
	party := sigma.ReportParty{Req: q, ReqTS: 1<<64 - 1, CS: -1, TTL: time.Hour, Delay: time.Hour, Left: time.Hour, Tok: 1<<64 - 1}
	e := sigma.Entry{Kind: sigma.EntryReport, Report: sigma.ReportEntry{Name: strings.Repeat("n", NameBytesMax), DelayLeft: time.Hour}}
	for range sigma.CandidatesMax {
		e.Report.Parties = append(e.Report.Parties, party)
	}
	for range sigma.HandOverQueueMax {
		e.Report.Queue = append(e.Report.Queue, party)
	}
	for range sigma.ReportEndedMax {
		e.Report.Ended = append(e.Report.Ended, q)
	}
	b, err := EncodeEntry(&e)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeEntry(b); err != nil {
		t.Error(err)
	}
	e.Report.Name, e.Report.Queue = "n", append(e.Report.Queue, party)
	if b, err = EncodeEntry(&e); err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeEntry(b); !errors.Is(err, ErrMalformed) {
		t.Errorf("a waiter too many: %v", err)
	}
}

func FuzzDecodeEntry(f *testing.F) {
	for _, e := range entries() {
		b, err := EncodeEntry(&e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := DecodeEntry(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("%v", err)
			}
			return
		}
		again, err := EncodeEntry(&e)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeEntry(again); err != nil || !reflect.DeepEqual(got, e) {
			t.Errorf("%v\n got %+v\nwant %+v", err, got, e)
		}
	})
}

func TestMessagesComeBackAsTheyWere(t *testing.T) {
	for _, m := range samples() {
		b, err := Encode(nil, &m)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(b)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%v: %v\n got %+v\nwant %+v", m.Kind, err, got, m)
		}
	}
}

func groups() []Group {
	whole := keyspace.Prefix{Len: keyspace.PrefixBitsMax}
	return []Group{{Gen: 7<<32 | 4}, {Prefix: keyspace.Prefix{Bits: keyspace.Key{0xa0}, Len: 3}, Gen: 4}, {Prefix: whole, Gen: 4}}
}

func TestFramesComeBackAsTheyWere(t *testing.T) {
	for _, g := range groups() {
		for _, m := range samples() {
			b, err := EncodeFrame([]byte("x"), g, &m)
			if err != nil {
				t.Fatal(err)
			}
			gotG, got, err := DecodeFrame(b[1:])
			if err != nil || gotG != g || !reflect.DeepEqual(got, m) {
				t.Errorf("%v of %v: %v\n got %+v of %+v\nwant %+v", m.Kind, g, err, got, gotG, m)
			}
		}
	}
}

func TestBadFramesAreMalformed(t *testing.T) {
	q := &Req{Session: make([]byte, 16), Seq: 1}
	good := &Message{Kind: Kind_KIND_REQUEST, Name: "n", Req: q, ViewGen: 4}
	prefix := []byte{0, 3, 0xa0}
	for what, f := range map[string]*Frame{
		"no prefix":              {Gen: 4, Message: good},
		"half a prefix":          {Prefix: prefix[:2], Gen: 4, Message: good},
		"more than a prefix":     {Prefix: append(prefix[:3:3], 0), Gen: 4, Message: good},
		"bits behind the prefix": {Prefix: []byte{0, 3, 0xb0}, Gen: 4, Message: good},
		"a prefix too long":      {Prefix: append([]byte{1, 1}, make([]byte, 33)...), Gen: 4, Message: good},
		"no message":             {Prefix: prefix, Gen: 4},
		"a bad message":          {Prefix: prefix, Gen: 4, Message: &Message{ViewGen: 4}},
		"another generation":     {Prefix: prefix, Gen: 5, Message: good},
	} {
		b, err := proto.Marshal(f)
		if err != nil {
			t.Fatal(what, err)
		}
		if g, m, err := DecodeFrame(b); !errors.Is(err, ErrMalformed) || g != (Group{}) || m.Kind != 0 {
			t.Errorf("%s: %+v of %+v, %v", what, m, g, err)
		}
	}
	if _, _, err := DecodeFrame(make([]byte, FrameBytesMax+1)); !errors.Is(err, ErrMalformed) {
		t.Errorf("too long: %v", err)
	}
	if _, _, err := DecodeFrame([]byte{0xff}); !errors.Is(err, ErrMalformed) {
		t.Errorf("no protobuf: %v", err)
	}
}

// TestTheLargestPieceFits holds the limit of a message against those of a report.
func TestTheLargestPieceFits(t *testing.T) {
	party := sigma.ReportParty{Req: sigma.Req{Session: sigma.Session{1}, Seq: 1 << 62}, ReqTS: 1 << 61, CS: 1 << 62, TTL: time.Hour, Delay: time.Hour, Left: time.Hour}
	m := sigma.Message{Kind: sigma.Reported, Report: &sigma.Report{Chunks: sigma.ChunksMax}}
	for range sigma.ReportEntriesMax {
		e := sigma.ReportEntry{Name: strings.Repeat("n", NameBytesMax), DelayLeft: time.Hour}
		for range sigma.CandidatesMax {
			e.Parties = append(e.Parties, party)
		}
		for range sigma.ReportQueueMax {
			e.Queue = append(e.Queue, party)
		}
		for range sigma.ReportEndedMax {
			e.Ended = append(e.Ended, party.Req)
		}
		m.Report.Entries = append(m.Report.Entries, e)
	}
	b, err := Encode(nil, &m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(b); err != nil {
		t.Errorf("%d bytes: %v", len(b), err)
	}
	for _, g := range groups() {
		m.View.Gen = g.ViewGen()
		b, err := EncodeFrame(nil, g, &m)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := DecodeFrame(b); err != nil {
			t.Errorf("%d bytes in a frame of %+v: %v", len(b), g, err)
		}
	}
	m.Report.Entries = append(m.Report.Entries, m.Report.Entries[0])
	if b, err = Encode(nil, &m); err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(b); !errors.Is(err, ErrMalformed) {
		t.Errorf("one name too many: %v", err)
	}
}

// TestAFrameCostsItsName: what every lock reads is not kept but for the name.
func TestAFrameCostsItsName(t *testing.T) {
	for _, m := range samples()[:8] {
		b, err := EncodeFrame(nil, Group{Gen: uint64(m.View.Gen)}, &m)
		if err != nil {
			t.Fatal(err)
		}
		if n := testing.AllocsPerRun(100, func() {
			if _, _, err := DecodeFrame(b); err != nil {
				t.Fatal(err)
			}
		}); n > 1 {
			t.Errorf("%v: %v allocations", m.Kind, n)
		}
	}
}

func TestBadMessagesAreMalformed(t *testing.T) {
	q := &Req{Session: make([]byte, 16), Seq: 1}
	node := make([]byte, 32)
	cases := map[string]*Message{
		"no kind":             {Name: "n", Req: q},
		"an unknown kind":     {Kind: 99, Name: "n", Req: q},
		"a negative kind":     {Kind: -1, Name: "n", Req: q},
		"an unknown reason":   {Kind: Kind_KIND_REFUSED, Name: "n", Req: q, Reason: 99},
		"no name":             {Kind: Kind_KIND_REQUEST, Req: q},
		"a long name":         {Kind: Kind_KIND_REQUEST, Name: strings.Repeat("n", NameBytesMax+1), Req: q},
		"no request":          {Kind: Kind_KIND_REQUEST, Name: "n"},
		"a short session":     {Kind: Kind_KIND_REQUEST, Name: "n", Req: &Req{Session: node[:15]}},
		"a long session":      {Kind: Kind_KIND_REQUEST, Name: "n", Req: &Req{Session: node[:17]}},
		"a session of zeros":  {Kind: Kind_KIND_REQUEST, Name: "n", Req: &Req{Session: make([]byte, 16)}},
		"a negative TTL":      {Kind: Kind_KIND_REQUEST, Name: "n", Req: q, TtlNs: -1},
		"an endless TTL":      {Kind: Kind_KIND_REQUEST, Name: "n", Req: q, TtlNs: 1 << 62},
		"a negative delay":    {Kind: Kind_KIND_REQUEST, Name: "n", Req: q, DelayNs: -1},
		"a far place":         {Kind: Kind_KIND_QUEUED, Name: "n", Req: q, Position: 1 << 31},
		"no members":          {Kind: Kind_KIND_MOVED, Name: "n", Req: q},
		"many members":        {Kind: Kind_KIND_MOVED, Name: "n", Req: q, Members: slicesOf(node, sigma.MembersMax+1)},
		"a short member":      {Kind: Kind_KIND_MOVED, Name: "n", Req: q, Members: [][]byte{node[:31]}},
		"members of a grant":  {Kind: Kind_KIND_GRANT, Name: "n", Req: q, Members: [][]byte{node}},
		"no report":           {Kind: Kind_KIND_REPORTED},
		"a report in a grant": {Kind: Kind_KIND_GRANT, Name: "n", Req: q, Report: &Report{Chunks: 1}},
		"no pieces":           {Kind: Kind_KIND_REPORTED, Report: &Report{}},
		"a piece behind all":  {Kind: Kind_KIND_REPORTED, Report: &Report{Chunk: 1, Chunks: 1}},
		"many pieces":         {Kind: Kind_KIND_REPORTED, Report: &Report{Chunks: sigma.ChunksMax + 1}},
		"an entry, no name":   {Kind: Kind_KIND_REPORTED, Report: &Report{Chunks: 1, Entries: []*Entry{{}}}},
		"a party, no request": {Kind: Kind_KIND_REPORTED, Report: &Report{Chunks: 1, Entries: []*Entry{{Name: "n", Parties: []*Party{{Node: node}}}}}},
		"a party, no node":    {Kind: Kind_KIND_REPORTED, Report: &Report{Chunks: 1, Entries: []*Entry{{Name: "n", Queue: []*Party{{Req: q}}}}}},
		"a pull, a long name": {Kind: Kind_KIND_PULL, Name: strings.Repeat("n", NameBytesMax+1)},
		"a report of another": {Kind: Kind_KIND_REPORTED, Name: "n", Report: &Report{Chunks: 1, Entries: []*Entry{{Name: "m"}}}},
		"a report of two":     {Kind: Kind_KIND_REPORTED, Name: "n", Report: &Report{Chunks: 1, Entries: []*Entry{{Name: "n"}, {Name: "m"}}}},
		"half a name's":       {Kind: Kind_KIND_REPORTED, Name: "n", Report: &Report{Chunks: 2, Entries: []*Entry{{Name: "n"}}}},
	}
	for what, m := range cases {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(what, err)
		}
		if got, err := Decode(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
	}
	if _, err := Decode(make([]byte, MessageBytesMax+1)); !errors.Is(err, ErrMalformed) {
		t.Errorf("too long: %v", err)
	}
	if _, err := Decode([]byte{0xff}); !errors.Is(err, ErrMalformed) {
		t.Errorf("no protobuf: %v", err)
	}
}

func slicesOf(b []byte, n int) (out [][]byte) {
	for range n {
		out = append(out, b)
	}
	return out
}

// FuzzDecode: whatever is accepted can be encoded and comes back the same.
func FuzzDecode(f *testing.F) {
	for _, m := range samples() {
		b, err := Encode(nil, &m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		c, err := Encode(nil, &m)
		if err != nil {
			t.Fatalf("%+v: %v", m, err)
		}
		n, err := Decode(c)
		if err != nil {
			t.Fatalf("%+v: %v", m, err)
		}
		if d, _ := Encode(nil, &n); !bytes.Equal(c, d) && !reflect.DeepEqual(m, n) {
			t.Fatalf("%+v came back as %+v", m, n)
		}
	})
}

// libraryFrame is EncodeFrame and DecodeFrame by the protobuf library alone.
func libraryFrame(g Group, m *sigma.Message) ([]byte, error) {
	prefix, err := g.Prefix.AppendBinary(nil)
	if err != nil {
		return nil, err
	}
	return proto.Marshal(&Frame{Prefix: prefix, Gen: g.Gen, Message: messageOf(m)})
}

func readByLibrary(b []byte) (m sigma.Message, err error) {
	p := new(Frame)
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, p); err != nil {
		return m, err
	}
	if p.Message == nil || p.Message.ViewGen != uint32(p.Gen) {
		return m, ErrMalformed
	}
	if prefix, rest, err := keyspace.DecodePrefix(p.Prefix); err != nil || len(rest) > 0 || !prefix.Valid() {
		return m, ErrMalformed
	}
	return decode(p.Message)
}

func TestFramesByHandAreThoseOfTheLibrary(t *testing.T) {
	for _, g := range groups() {
		for _, m := range samples() {
			b, err := EncodeFrame(nil, g, &m)
			if err != nil {
				t.Fatal(err)
			}
			if want, err := libraryFrame(g, &m); err != nil || !bytes.Equal(b, want) {
				t.Errorf("%v: %x\nwant %x, %v", m.Kind, b, want, err)
			}
		}
	}
	if _, err := EncodeFrame(nil, Group{}, &sigma.Message{Kind: sigma.Request, Name: "\xff"}); err == nil {
		t.Error("a name that is not UTF-8 was encoded")
	}
}

// FuzzDecodeFrame: as FuzzDecode, and what is read is what the library reads.
func FuzzDecodeFrame(f *testing.F) {
	for i, m := range samples() {
		b, err := EncodeFrame(nil, groups()[i%len(groups())], &m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		g, m, err := DecodeFrame(b)
		if want, bad := readByLibrary(b); (err == nil) != (bad == nil) || !reflect.DeepEqual(m, want) {
			t.Fatalf("%x was read as %+v, %v\nwant %+v, %v", b, m, err, want, bad)
		}
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		c, err := EncodeFrame(nil, g, &m)
		if err != nil {
			t.Fatalf("%+v: %v", m, err)
		}
		h, n, err := DecodeFrame(c)
		if err != nil {
			t.Fatalf("%+v: %v", m, err)
		}
		if d, _ := EncodeFrame(nil, h, &n); g != h || !bytes.Equal(c, d) && !reflect.DeepEqual(m, n) {
			t.Fatalf("%+v of %+v came back as %+v of %+v", m, g, n, h)
		}
	})
}

func BenchmarkFrame(b *testing.B) {
	g, m := groups()[1], samples()[0]
	m.View.Gen = g.ViewGen()
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if buf, err = EncodeFrame(buf[:0], g, &m); err != nil {
			b.Fatal(err)
		}
		if _, _, err := DecodeFrame(buf); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRequest(b *testing.B) {
	m := samples()[0]
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if buf, err = Encode(buf[:0], &m); err != nil {
			b.Fatal(err)
		}
		if _, err = Decode(buf); err != nil {
			b.Fatal(err)
		}
	}
}
