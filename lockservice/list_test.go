package lockservice

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
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

// TestLocksAreListedByWhoHasAskedNobodyYet: a peer that does not know the views of the groups is told them, at first and after every
// voter, or one that loses its table, has started again; also of groups whose names the table alone keeps.
func TestLocksAreListedByWhoHasAskedNobodyYet(t *testing.T) {
	t.Parallel()
	w := newHosts(t, 4, func(w *hosts) { w.fixed, w.genesis.Depth, w.genesis.TTLMax = true, 2, time.Minute })
	voters, other := w.among("n")
	var want []string
	check := func(when string) {
		t.Helper()
		for i, p := range w.all {
			got := listed(t, p.locks, "")
			for _, name := range want {
				if !got[name].Held {
					t.Errorf("%s, peer %d: %q is held, and the list says %+v", when, i, name, got[name])
				}
			}
			if len(got) != len(want) {
				t.Errorf("%s, peer %d: %d are listed, of %d", when, i, len(got), len(want))
			}
		}
	}
	hold := func(i int, opts ...Option) {
		name := fmt.Sprint("held/", i)
		if _, err := other.locks.Lock(w.ctx(), name, append(opts, WithTTL(time.Minute))...); err != nil {
			t.Fatal(err)
		}
		want = append(want, name)
	}
	for i := range 8 {
		hold(i, WithProtocol(ProtocolGroup))
	}
	check("names of the log only")
	for i := range 8 {
		hold(8 + i)
	}
	if _, err := other.locks.Lock(w.ctx(), "n", WithTTL(time.Minute)); err != nil {
		t.Fatal(err)
	}
	want = append(want, "n")
	check("names of voters, too")
	answers := func() bool { // every group, again
		for _, name := range want {
			if i, err := other.locks.Info(w.ctx(), name); err != nil || !i.Held {
				return false
			}
		}
		return true
	}
	for _, p := range voters {
		p.kill()
	}
	for _, p := range voters {
		p.start()
	}
	w.until("the groups answer", answers)
	check("after all have started again")
	voters, _ = w.among("n")
	voters[1].cut()
	voters[1].start()
	check("while a voter that has lost its table is told it")
	w.until("a view for it", func() bool {
		if _, err := other.locks.Info(w.ctx(), "n"); err != nil {
			return false
		}
		other.sigma.mu.Lock()
		defer other.sigma.mu.Unlock()
		p := other.sigma.places[w.genesis.PrefixOf(keyspace.Preimage("n").Key())]
		return p != nil && p.view.View.Num >= 2
	})
	check("in a new view")
}

// TestAListEndsThoughTheRootIsGone: in a minority nobody says which groups there are.
func TestAListEndsThoughTheRootIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silent := func(ctx context.Context) ([]keyspace.Prefix, error) { <-ctx.Done(); return nil, context.Cause(ctx) }
		begun := time.Now()
		err := listGroups(t.Context(), silent, "", nil, nil)
		if took := time.Since(begun); !errors.Is(err, ErrNoQuorum) || took != ListGroupTimeout || strings.Contains(err.Error(), "context") {
			t.Errorf("after %v: %v", took, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := listGroups(ctx, silent, "", nil, nil); !errors.Is(err, ErrNoQuorum) {
			t.Errorf("at the caller's deadline: %v", err)
		}
		one := func(context.Context) ([]keyspace.Prefix, error) { return make([]keyspace.Prefix, 1), nil }
		var told []ListPage
		err = listGroups(t.Context(), one, "", func(p ListPage) error { told = append(told, p); return nil }, func(ctx context.Context, _ keyspace.Key, _ string) (listing, error) {
			<-ctx.Done()
			return listing{}, groupError(ctx, context.Cause(ctx))
		})
		if err != nil || len(told) != 1 || !errors.Is(told[0].Err, ErrNoQuorum) || strings.Contains(told[0].Err.Error(), "context") {
			t.Errorf("a group that does not answer: %v, %v", told, err)
		}
	})
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
	if want := map[string]bool{"a": true, "b": false, "c": true, "d": false}; l.last != "d" || !maps.Equal(held, want) || l.unsure {
		t.Errorf("up to %q: %v, want %v; unsure %v", l.last, held, want, l.unsure)
	}
	forgot := page(false)
	forgot.Embargo = time.Second
	for n, m := range map[int]*sigma.Message{1: page(false), 2: forgot} { // of three
		l := s.mergeListing(d, map[keyspace.NodeID]*sigma.Message{d.Members[0]: forgot, d.Members[1]: page(false), d.Members[2]: m})
		if l.unsure != (n == 2) {
			t.Errorf("%d of three voters have forgotten: unsure %v", n, l.unsure)
		}
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
