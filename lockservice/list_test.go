package lockservice

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/lockservice/pb"
	"latchkey/lockservice/sigma"
	"latchkey/replicagroup/session"
)

// listed collects what a list tells of, by name. A name that is told of twice is an error.
func listed(t *testing.T, s *Service, prefix string) map[string]Info {
	t.Helper()
	all := make(map[string]Info)
	ctx, cancel := context.WithTimeout(t.Context(), hostsWait)
	defer cancel()
	err := s.List(ctx, prefix, func(p ListPage) error {
		for n, i := range p.Locks {
			if _, twice := all[i.Name]; twice || n > 0 && p.Locks[n-1].Name >= i.Name {
				t.Errorf("%q is told of twice, or out of order", i.Name)
			}
			all[i.Name] = i
		}
		return p.Err
	})
	if err != nil {
		t.Errorf("list %q: %v", prefix, err)
	}
	return all
}

// TestLocksOfAnOverlayAreListed: on real peers, names that voters keep and names that the table does, of several groups, and more of one
// group than a page takes; also while a voter is down.
func TestLocksOfAnOverlayAreListed(t *testing.T) {
	t.Parallel()
	w := newHosts(t, 4, func(w *hosts) { w.fixed, w.genesis.Depth, w.genesis.TTLMax = true, 2, time.Minute })
	voters, other := w.among("n")
	want := make(map[string]Token)
	hold := func(name string, opts ...Option) *Handle {
		h, err := other.locks.Lock(w.ctx(), name, append(opts, WithTTL(time.Minute))...)
		if err != nil {
			t.Fatal(err)
		}
		want[name] = h.Token()
		return h
	}
	for i := range sigma.ReportEntriesMax + 6 {
		hold(w.name(i))
	}
	for i := range 8 { // of any group
		hold(fmt.Sprint("other/", i))
	}
	tabled := hold(w.name(100), WithProtocol(ProtocolGroup))
	permit, err := other.locks.Semaphore("permits", 3).Acquire(w.ctx(), WithTTL(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	want["permits"] = permit.Token()
	ctx, leave := context.WithCancel(w.ctx())
	left := make(chan error, 1)
	go func() {
		_, err := voters[1].locks.Lock(ctx, w.name(3), WithTTL(hostsTTL))
		left <- err
	}()
	w.until("somebody waits", func() bool { i, err := other.locks.Info(w.ctx(), w.name(3)); return err == nil && i.Waiting == 1 })

	check := func(from *sigmaHost, prefix string) {
		t.Helper()
		got := listed(t, from.locks, prefix)
		for name, token := range want {
			i, in := got[name]
			if in != strings.HasPrefix(name, prefix) || in && (!i.Held || i.Token != token || !i.Confirmed) {
				t.Errorf("%q in a list of %q: %v, %+v, and its token is %v", name, prefix, in, i, token)
			}
		}
		for name := range got {
			if want[name] == 0 {
				t.Errorf("%q is listed, and nobody holds it", name)
			}
		}
		if i := got[w.name(3)]; prefix == "" && (i.Waiting != 1 || i.Protocol != ProtocolSigma) {
			t.Errorf("one waits for %+v", i)
		}
		if i := got[tabled.Name()]; prefix == "" && i.Protocol != ProtocolGroup {
			t.Errorf("the table has %+v", i)
		}
		if i := got["permits"]; prefix == "" && (i.Permits != 3 || i.Holding != 1) {
			t.Errorf("a semaphore: %+v", i)
		}
	}
	check(other, "")
	check(voters[0], "other/")
	check(other, w.name(70)) // of which some are beyond the first page
	check(other, "nobody's")
	voters[2].kill()
	check(other, "")

	stop := errors.New("enough")
	pages := 0
	if err := other.locks.List(w.ctx(), "", func(ListPage) error { pages++; return stop }); !errors.Is(err, stop) || pages != 1 {
		t.Errorf("a list that is stopped after a page: %d pages, %v", pages, err)
	}
	leave()
	<-left
}

// TestAListEndsWhereTheShortestPageDoes: voters that know different names cut their pages at different ones, and beyond the first of these
// not all is known.
func TestAListEndsWhereTheShortestPageDoes(t *testing.T) {
	s := NewSigma(SigmaConfig{Limits: LimitsOf(worldTTLMax, 0), Clock: newTestClock(0)})
	defer s.Close()
	d := sigma.Descriptor{View: sigma.ViewID{Num: 1}, Members: nodesAt("a", "b", "c")}
	page := func(more bool, names ...string) *sigma.Message {
		m := &sigma.Message{Kind: sigma.Listed, Ack: more, Report: &sigma.Report{Chunks: 1}}
		for _, n := range names {
			party := sigma.ReportParty{Req: sigma.Req{Session: sigma.Session{n[0]}, Seq: 1}, TTL: time.Second, Left: time.Second, Tok: 7}
			m.Report.Entries = append(m.Report.Entries, sigma.ReportEntry{Name: n, Parties: []sigma.ReportParty{party}})
		}
		return m
	}
	l := s.mergeListing(d, map[keyspace.NodeID]*sigma.Message{
		d.Members[0]: page(true, "a", "c", "e"), d.Members[1]: page(true, "a", "b", "c", "d"), d.Members[2]: page(false, "c", "e", "g"),
	})
	held := make(map[string]bool)
	for _, i := range l.locks {
		held[i.Name] = i.Held && i.Confirmed
	}
	if want := map[string]bool{"a": true, "b": false, "c": true, "d": false}; l.last != "d" || !maps.Equal(held, want) {
		t.Errorf("up to %q: %v, want %v", l.last, held, want)
	}
}

func TestAPageOfATableIsBounded(t *testing.T) {
	m := worldMachine()
	long := func(i int) string { return fmt.Sprintf("%04d%s", i, strings.Repeat("x", NameBytesMax-4)) }
	for i := range 3 * listNamesMax {
		call(t, m, time.Second, 1, acquire(fmt.Sprintf("n%04d", i), uint64(i+1), 10*time.Second))
	}
	for i := range 40 {
		call(t, m, time.Second, 1, acquire(long(i), uint64(1000+i), 10*time.Second))
	}
	ask := func(from string) *pb.Listing {
		data := m.Query(session.Context{Now: time.Second}, mustMarshal(&pb.Query{List: &pb.List{From: from}}))
		l, err := decodeListing(data)
		if err != nil || len(data) > resultBytesMax || len(l.Locks) > listNamesMax {
			t.Fatalf("a page of %d bytes, %d names: %v", len(data), len(l.Locks), err)
		}
		return l
	}
	seen := make(map[string]bool)
	from, pages := "", 0
	for more := true; more; pages++ {
		l := ask(from)
		for _, x := range l.Locks {
			if seen[x.Name] && x.Name != from || x.Info.Status != pb.Status_STATUS_HELD {
				t.Fatalf("%q again, or free", x.Name)
			}
			seen[x.Name] = true
			from = x.Name
		}
		more = l.More
	}
	if len(seen) != 3*listNamesMax+40 || pages < 6 {
		t.Errorf("%d names on %d pages", len(seen), pages)
	}
	if l := ask("zzz"); l.More || len(l.Locks) != 0 {
		t.Errorf("beyond the last name: %v", l)
	}
	var res pb.Listing
	if err := unmarshal(m.Query(session.Context{}, mustMarshal(&pb.Query{List: &pb.List{From: "a\nb"}})), resultBytesMax, &res); err != nil || res.Status != pb.Status_STATUS_BAD_NAME {
		t.Errorf("from a name that is none: %v, %v", err, res.Status)
	}
}

func TestLowestNames(t *testing.T) {
	names := strings.Split("h b g a f c e d", " ")
	for from, want := range map[string]string{"": "a b c", "b": "b c d", "c!": "d e f", "g": "g h", "i": ""} {
		low, more := sigma.Lowest(slices.Values(names), from, 3)
		if got := strings.Join(low, " "); got != want || more != (from < "f") {
			t.Errorf("from %q: %s, more %v", from, got, more)
		}
	}
}
