package lockservice

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/history"
	"latchkey/lockservice/sigma"
	sigmapb "latchkey/lockservice/sigma/pb"
)

// rawFrame sends a message to every voter of a name's group, as a peer may that keeps no rules.
func (p *sigmaHost) rawFrame(t *testing.T, name string, g sigmapb.Group, d sigma.Descriptor, m sigma.Message) {
	t.Helper()
	frame, err := sigmapb.EncodeFrame(nil, g, &m)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range d.Members {
		p.Send(n, keyspace.Preimage(name).Key(), frame)
	}
}

// TestVotersBearWhatAPeerMaySend: on real peers, one that is no voter sends what no client would while another holds a lock and a third waits
// for it: with the holder's name, of other views, generations and groups, with tokens and leases that cannot be, and more requests
// than may wait. Those who keep the rules notice nothing.
func TestVotersBearWhatAPeerMaySend(t *testing.T) {
	t.Parallel()
	w := newHosts(t, 4, func(w *hosts) { w.fixed, w.genesis.TTLMax = true, time.Minute })
	voters, evil := w.among("n")
	holder, waiter := voters[0], voters[1]
	h, err := holder.locks.Lock(w.ctx(), "n", WithTTL(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	waits := make(chan *Handle, 1)
	go func() {
		h, err := waiter.locks.Lock(w.ctx(), "n", WithTTL(time.Minute))
		if err != nil {
			t.Error(err)
		}
		waits <- h
	}()
	w.until("one waits", func() bool { i, err := holder.locks.Info(w.ctx(), "n"); return err == nil && i.Waiting == 1 })
	g, d, err := holder.sigma.place(w.ctx(), keyspace.Preimage("n").Key())
	if err != nil {
		t.Fatal(err)
	}
	var of sigma.Req // the holder's
	holder.sigma.mu.Lock()
	for s, l := range holder.sigma.lines {
		if l.name == "n" {
			of = sigma.Req{Session: s, Seq: l.seq}
		}
	}
	holder.sigma.mu.Unlock()
	q, as, err := evil.sigma.ask() // so that what is answered is heard
	if err != nil {
		t.Fatal(err)
	}
	defer evil.sigma.asked(as)
	own, tok := sigma.Req{Session: as, Seq: 1}, sigma.Token(h.Token())
	for _, c := range []struct {
		what string
		msg  sigma.Message
		want sigma.Kind // of the answer of each voter; 0: silence, for what is sent under the name of another
	}{
		{"a renewal of another's", sigma.Message{Kind: sigma.Request, View: d.View, Req: of, CS: 1, TTL: time.Minute, Tok: tok}, 0},
		{"a release of another's", sigma.Message{Kind: sigma.Release, View: d.View, Req: of, Tok: tok, Ack: true}, 0},
		{"giving back another's", sigma.Message{Kind: sigma.Yield, View: d.View, Req: of}, 0},
		{"an old request of another's", sigma.Message{Kind: sigma.Request, View: d.View, Req: sigma.Req{Session: of.Session}, CS: 1, TTL: time.Minute}, 0},
		{"a later request of another's", sigma.Message{Kind: sigma.Release, View: d.View, Req: sigma.Req{Session: of.Session, Seq: of.Seq + 1}}, 0},
		{"a later view", sigma.Message{Kind: sigma.Release, View: sigma.ViewID{Gen: d.View.Gen, Num: d.View.Num + 9}, Req: of, Tok: tok}, 0},
		{"an earlier view", sigma.Message{Kind: sigma.Request, View: sigma.ViewID{Gen: d.View.Gen}, Req: own, CS: 1, TTL: time.Minute}, sigma.Moved},
		{"a token that nobody was given", sigma.Message{Kind: sigma.Request, View: d.View, Req: own, CS: 1, TTL: time.Minute, Tok: tok + 1<<30}, sigma.Refused},
		{"no lease", sigma.Message{Kind: sigma.Request, View: d.View, Req: own, CS: 1}, sigma.Refused},
		{"an endless lease", sigma.Message{Kind: sigma.Request, View: d.View, Req: own, CS: 1, TTL: time.Hour}, sigma.Refused},
		{"an endless lock delay", sigma.Message{Kind: sigma.Request, View: d.View, Req: own, CS: 1, TTL: time.Minute, Delay: time.Hour}, sigma.Refused},
		{"a question about an earlier view", sigma.Message{Kind: sigma.Inspect, View: sigma.ViewID{Gen: d.View.Gen}, Req: own}, sigma.Moved},
		{"a list of an earlier view", sigma.Message{Kind: sigma.List, View: sigma.ViewID{Gen: d.View.Gen}, Req: own}, sigma.Moved},
	} {
		c.msg.Name = "n"
		evil.rawFrame(t, "n", g, d, c.msg)
		for n := 0; c.want != 0 && n < len(d.Members); n++ {
			select {
			case a := <-q.answers:
				if a.msg.Kind != c.want {
					t.Errorf("%s: %v answers %v, want %v", c.what, a.from, a.msg.Kind, c.want)
				}
			case <-time.After(hostsWait):
				t.Fatalf("%s: %d of %d voters answer", c.what, n, len(d.Members))
			}
		}
	}
	other := g // another generation: nobody has that group
	other.Gen++
	evil.rawFrame(t, "n", other, d, sigma.Message{Kind: sigma.Request, View: sigma.ViewID{Gen: other.ViewGen(), Num: 1}, Name: "n", Req: own, CS: 1, TTL: time.Minute})
	if a := <-q.answers; a.msg.Kind != sigma.WrongGen {
		t.Errorf("another generation: %v", a.msg.Kind)
	}
	for len(q.answers) > 0 {
		<-q.answers
	}

	// More wait than may: what is too much is refused. They ask later than the one that waits already, and so are behind it.
	later := sigma.Message{Kind: sigma.Request, View: d.View, Name: "n", ReqTS: 1 << 61, CS: 1, TTL: time.Minute}
	w.until("a flood of requests is refused", func() bool {
		for range 64 {
			m := later
			m.Req.Seq = 1
			rand.Read(m.Req.Session[:])
			evil.rawFrame(t, "n", g, d, m)
		}
		q, as, err := evil.sigma.ask() // one that does not stand in the queue yet
		if err != nil {
			t.Fatal(err)
		}
		defer evil.sigma.asked(as)
		m := later
		m.Req = sigma.Req{Session: as, Seq: 1}
		evil.rawFrame(t, "n", g, d, m)
		select {
		case a := <-q.answers:
			if a.msg.Kind == sigma.Refused && a.msg.Reason == sigma.TooManyWaiters {
				return true
			}
		case <-time.After(time.Second):
		}
		m.Kind = sigma.Release
		evil.rawFrame(t, "n", g, d, m)
		return false
	})

	i, err := holder.locks.Info(w.ctx(), "n")
	if err != nil || !i.Held || i.Token != h.Token() || !strings.HasPrefix(h.Holder(), i.Holder.Session) || h.Context().Err() != nil {
		t.Errorf("the holder's lock: %+v, %v, %v", i, err, context.Cause(h.Context()))
	}
	mustRelease(t, h)
	next := <-waits
	if next.Token() <= h.Token() {
		t.Errorf("token %v after %v", next.Token(), h.Token())
	}
	mustRelease(t, next)
}

// TestMisusedGrantsAreRefused: on real peers, by either protocol, a grant that is not the caller's, an old one and one that was never made
// are not held; what is released twice is released; and nothing of a service works after its Close.
func TestMisusedGrantsAreRefused(t *testing.T) {
	t.Parallel()
	w := newHosts(t, 4, func(w *hosts) { w.fixed, w.genesis.TTLMax = true, time.Minute })
	voters, other := w.among("n")
	p := voters[0]
	for _, by := range []Protocol{ProtocolSigma, ProtocolGroup} {
		name := w.name(1 + int(by))
		own := p.locks.backend
		ask := Request{Name: name, TTL: time.Minute, Protocol: by}
		old, err := own.Acquire(w.ctx(), ask)
		if err == nil {
			err = own.Release(w.ctx(), old)
		}
		if err != nil {
			t.Fatal(err)
		}
		g, err := own.Acquire(w.ctx(), ask)
		if err != nil {
			t.Fatal(err)
		}
		future, another := g, g
		future.Token += 1 << 20
		another.Name = w.name(90)
		for what, c := range map[string]struct {
			backend Backend
			grant   Grant
		}{
			"another session's": {other.locks.backend, g}, "an old one": {own, old}, "a future token": {own, future}, "of another lock": {own, another},
		} {
			if err := c.backend.Renew(w.ctx(), c.grant); !errors.Is(err, ErrNotHeld) {
				t.Errorf("%v: renew %s: %v", by, what, err)
			}
			if err := c.backend.Release(w.ctx(), c.grant); !errors.Is(err, ErrNotHeld) {
				t.Errorf("%v: release %s: %v", by, what, err)
			}
		}
		for _, token := range []Token{old.Token, future.Token} {
			if _, err := other.locks.Break(w.ctx(), name, token); !errors.Is(err, ErrNotHeld) {
				t.Errorf("%v: break with token %v of %v: %v", by, token, g.Token, err)
			}
		}
	}
	h := p.lock(w.name(7))
	for range 3 {
		if err := h.Release(w.ctx()); err != nil {
			t.Errorf("released again: %v", err)
		}
	}
	longest := strings.Repeat("x", NameBytesMax)
	mustRelease(t, p.lock(longest))
	for _, c := range []struct {
		name string
		ttl  time.Duration
		want error
	}{
		{longest + "x", hostsTTL, ErrName}, {"", hostsTTL, ErrName}, {"a\x00b", hostsTTL, ErrName}, {"\xff", hostsTTL, ErrName},
		{"n", TTLMin - 1, ErrTTL}, {"n", time.Minute + 1, ErrTTL}, {"n", -1, ErrTTL},
	} {
		for _, by := range []Protocol{ProtocolSigma, ProtocolGroup} {
			if _, err := p.locks.Lock(w.ctx(), c.name, WithTTL(c.ttl), WithProtocol(by)); !errors.Is(err, c.want) {
				t.Errorf("%v: %.8q for %v: %v", by, c.name, c.ttl, err)
			}
		}
	}
	held, released := p.lock(w.name(8)), p.lock(w.name(9))
	mustRelease(t, released)
	if err := p.locks.Close(); err != nil {
		t.Error(err)
	}
	if err := held.Release(w.ctx()); err != nil || held.Remaining() != 0 || !errors.Is(context.Cause(held.Context()), ErrNotHeld) {
		t.Errorf("a handle that Close has released: %v, %v left, %v", err, held.Remaining(), context.Cause(held.Context()))
	}
	if err := released.Release(w.ctx()); err != nil {
		t.Errorf("a handle that was released before: %v", err)
	}
	_, lockErr := p.locks.Lock(w.ctx(), "n")
	_, tryErr := p.locks.TryLock(w.ctx(), "n")
	_, infoErr := p.locks.Info(w.ctx(), "n")
	_, watchErr := p.locks.Watch(w.ctx(), "n")
	_, breakErr := p.locks.Break(w.ctx(), "n", 1)
	listErr := p.locks.List(w.ctx(), "", func(ListPage) error { return nil })
	for what, err := range map[string]error{"lock": lockErr, "try": tryErr, "info": infoErr, "watch": watchErr, "break": breakErr, "list": listErr} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close: %v", what, err)
		}
	}
}

// TestMixedProtocolsAreLinearizable: on real peers, clients of both protocols and of either take one lock in turns, so that it goes from the
// voters to the table. What they saw is recorded, and there is an order in which one lock, with tokens that rise, does just that.
func TestMixedProtocolsAreLinearizable(t *testing.T) {
	t.Parallel()
	w := newHosts(t, 4, func(w *hosts) { w.fixed = true })
	h := history.New()
	var clients sync.WaitGroup
	for c, by := range []Protocol{ProtocolSigma, ProtocolGroup, ProtocolAuto, ProtocolSigma} {
		clients.Go(func() {
			p := w.all[c]
			for range 6 {
				op := h.Call(c, history.Acquire("n"))
				held, err := p.locks.Lock(w.ctx(), "n", WithTTL(hostsTTL), WithProtocol(by))
				if err != nil {
					t.Errorf("client %d: %v", c, err)
					return
				}
				token := uint64(held.Token())
				h.Return(op, history.Answer{Token: token})
				stop := context.AfterFunc(held.Context(), func() {
					if errors.Is(context.Cause(held.Context()), ErrLost) {
						h.Lost(c, "n", token)
					}
				})
				if !stop() { // lost already
					continue
				}
				op = h.Call(c, history.Release("n", token))
				switch err := held.Release(w.ctx()); {
				case err == nil:
					h.Return(op, history.Answer{OK: true})
				case errors.Is(err, ErrLost), errors.Is(err, ErrNotHeld):
					h.Return(op, history.Answer{})
				default:
					t.Errorf("client %d: release: %v", c, err)
				}
			}
		})
	}
	clients.Wait()
	if r := h.CheckLock(time.Minute); r.Err() != nil || r.Judged < 40 {
		t.Errorf("%d operations: %v", r.Judged, r.Err())
	}
	if err := h.CheckTokens(); err != nil {
		t.Error(err)
	}
}
