package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"latchkey/lockservice"
	"latchkey/node/allowlist"
	"latchkey/node/config"
	"latchkey/node/invite"
)

// adminDir makes the founder of an overlay whose allow-list names it alone.
func adminDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "admin")
	if _, _, err := InitDir(dir, InitOptions{Profile: config.Test, FoundOptions: FoundOptions{Name: t.Name()}}); err != nil {
		t.Fatal(err)
	}
	root, err := ReadRootKey(RootKeyFile(dir))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := InitAdmin(t.Context(), dir, root, nil, false); err != nil {
		t.Fatal(err)
	}
	return dir
}

// invited makes an invitation with the admin key in dir.
func invited(t *testing.T, dir string, n *Node, o InviteOptions) invite.Invite {
	t.Helper()
	i, err := Invite(t.Context(), dir, now(n), o)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// refusedJoin fails the test unless nobody joins by an invitation, and returns why.
func refusedJoin(t *testing.T, i invite.Invite, want error) string {
	t.Helper()
	_, err := JoinDir(t.Context(), filepath.Join(t.TempDir(), "peer"), i, JoinOptions{Profile: config.Test})
	if !errors.Is(err, want) {
		t.Fatalf("%v, want %v", err, want)
	}
	return err.Error()
}

func change(t *testing.T, dir string, f func(*allowlist.Draft) error) *allowlist.List {
	t.Helper()
	l, err := EditAllowList(t.Context(), dir, f)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestWhoIsNotOnTheListIsKeptOut(t *testing.T) {
	t.Parallel()
	dir := adminDir(t)
	n := runDir(t, dir)
	// An invitation is good until it has been used, and for nothing but to enrol.
	i := invited(t, dir, n, InviteOptions{Once: true, Note: "second"})
	dir2, j2 := joinDir(t, i, config.Test)
	second := runDir(t, dir2)
	everybody(t, n, second)
	if e, ok := n.access.access.List().Find(j2.ID); !ok || e.Kind != allowlist.Member || e.Note != "second" {
		t.Errorf("the list says %v of the joiner", e)
	}
	if says := refusedJoin(t, i, ErrRefused); !strings.Contains(says, "another has used it") {
		t.Errorf("used: %s", says)
	}
	before := n.Refused()[RefusedInvitation]
	if before == 0 {
		t.Error("the used invitation was not counted")
	}
	// Who has the swarm key and is not on the list gets nowhere, and is told.
	plain := i
	plain.Expires, plain.Once, plain.Key = time.Time{}, false, nil
	if says := refusedJoin(t, plain, ErrRefused); !strings.Contains(says, "not on the overlay's allow-list") {
		t.Errorf("unlisted: %s", says)
	}
	if n.Refused()[RefusedUnlisted] == 0 {
		t.Error("the stranger was not counted")
	}
	// The other peer enrols nobody: it has no admin key.
	elsewhere := invited(t, dir, second, InviteOptions{})
	elsewhere.Bootstrap = elsewhere.Bootstrap[:1]
	if elsewhere.Bootstrap[0].ID != second.ID() {
		elsewhere.Bootstrap = []peer.AddrInfo{{ID: second.ID(), Addrs: second.host.Addrs()}}
	}
	entry := asInvitation(t, elsewhere).ID()
	eventually(t, "the other peer knows the invitation", func() bool { return second.access.access.Judge(entry) == allowlist.Invited })
	if says := refusedJoin(t, elsewhere, ErrRefused); !strings.Contains(says, "admin key") {
		t.Errorf("elsewhere: %s", says)
	}
	// Who is revoked is disconnected by all, told so, and does not come back.
	change(t, dir, func(l *allowlist.Draft) error { return l.Revoke(j2.ID) })
	eventually(t, "the revoked peer is disconnected", func() bool { return !connected(n.host, second.host) })
	if err := n.host.Connect(within(t, waitMax), info(second.host)); err == nil {
		t.Error("a revoked peer is dialled")
	}
	eventually(t, "the revoked peer is told why", func() bool {
		err := Diagnose(within(t, waitMax), second.host, n.Genesis(), nil, info(n.host))
		return errors.Is(err, ErrRefused) && strings.Contains(err.Error(), "was revoked")
	})
	if n.Refused()[RefusedRevoked] == 0 {
		t.Error("the revoked peer was not counted")
	}
	// It is given the list, and says so itself, until it is let in again.
	out := func() string {
		s, err := second.Status(within(t, waitMax))
		if err != nil {
			t.Fatal(err)
		}
		return s.ShutOut
	}
	eventually(t, "the revoked peer says so", func() bool { return out() == gated[gatedRevoked] })
	change(t, dir, func(l *allowlist.Draft) error { return l.Allow(j2.ID, "") })
	if _, err := n.Status(within(t, waitMax)); err != nil {
		t.Fatal(err)
	}
	if err := n.host.Connect(within(t, waitMax), info(second.host)); err != nil {
		t.Error(err)
	}
	eventually(t, "it is let in again", func() bool {
		tell, _, _ := second.access.told.all()
		return tell == 0 && out() == ""
	})
}

// A peer that was revoked stops serving what it has, as soon as it is told: a group of which it is a majority by itself grants no lock any
// more, not to itself either, and those it has run out. It is told while it is connected, or when it comes anew. Only the list counts.
func TestARevokedPeerKeepsNoLocks(t *testing.T) {
	t.Parallel()
	dir := adminDir(t)
	n := runDir(t, dir)
	dir2, j2 := joinDir(t, invited(t, dir, n, InviteOptions{}), config.Test)
	d, err := OpenDir(dir2)
	if err != nil {
		t.Fatal(err)
	}
	second, h, err := d.Run(t.Context(), d.Config(), nil)
	if err != nil {
		t.Fatal(errors.Join(err, d.Close()))
	}
	stop := sync.OnceValue(func() error { return errors.Join(second.Close(), h.Close(), d.Close()) })
	t.Cleanup(func() { stop() })
	everybody(t, n, second)
	revoke := func(l *allowlist.Draft) error { return l.Revoke(j2.ID) }
	allow := func(l *allowlist.Draft) error { return l.Allow(j2.ID, "") }

	// A lock of a group that the second keeps alone.
	var lock *lockservice.Handle
	for i := 0; lock == nil; i++ {
		name := fmt.Sprint("lock ", i)
		k, err := second.Key(within(t, waitMax), name)
		if err != nil {
			t.Fatal(err)
		}
		if len(k.Group.Members) == 1 && k.Group.Leader == j2.ID.String() {
			if lock, err = second.Locks().Lock(within(t, waitMax), name, lockservice.WithTTL(time.Second)); err != nil {
				t.Fatal(err)
			}
		}
	}
	change(t, dir, revoke)
	select {
	case <-lock.Context().Done():
	case <-time.After(waitMax):
		t.Fatal("the lock stays held")
	}
	// On a busy machine the lock may have been lost before.
	eventually(t, "it is given the list", func() bool { return second.access.access.Judge(j2.ID) == allowlist.WasRevoked })
	refused := func(second *Node) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if h, err := second.Locks().TryLock(ctx, lock.Name()); err == nil {
			t.Errorf("a revoked peer has granted itself the lock, token %v", h.Token())
		}
	}
	refused(second)
	// Let in again it goes on: nobody has brought the group back elsewhere.
	change(t, dir, allow)
	eventually(t, "it serves again", func() bool {
		if err := n.host.Connect(within(t, waitMax), info(second.host)); err != nil {
			return false
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		h, err := second.Locks().TryLock(ctx, lock.Name())
		if err != nil {
			return false
		}
		if h.Token() <= lock.Token() {
			t.Errorf("token %v after %v", h.Token(), lock.Token())
		}
		return h.Release(within(t, waitMax)) == nil
	})
	// One that was away hears of it when it comes back, and does not forget.
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	change(t, dir, revoke)
	eventually(t, "the change counts", func() bool { return n.access.access.Judge(j2.ID) == allowlist.WasRevoked })
	second = runDir(t, dir2)
	eventually(t, "it is given the list", func() bool {
		l, err := ReadAllowList(dir2)
		return err == nil && l.Judge(j2.ID, time.Now()) == allowlist.WasRevoked
	})
	a := second.access.access
	if _, err := a.Take(a.List().Document()); err != nil { // it waits until the taking of another is over
		t.Fatal(err)
	}
	refused(second)
	eventually(t, "it is sent away", func() bool { return !connected(n.host, second.host) })
}

// What is written into the directory of a running peer is in effect when the peer has said which list it has, and an invitation when it
// has been written: nobody has to wait a moment.
func TestAListAndAnInvitationAreInEffectAtOnce(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "admin")
	if _, _, err := InitDir(dir, InitOptions{Profile: config.Test, FoundOptions: FoundOptions{Name: t.Name()}}); err != nil {
		t.Fatal(err)
	}
	n := runDir(t, dir)
	root, err := ReadRootKey(RootKeyFile(dir))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := InitAdmin(t.Context(), dir, root, nil, false); err != nil {
		t.Fatal(err)
	}
	joinDir(t, invited(t, dir, n, InviteOptions{Once: true}), config.Test) // before the daemon has looked by itself
	for want := uint64(4); want < 8; want++ {                              // the list, the invitation, its use
		key := hostOf(t, profile(t, config.Test, anyTCP), nil, nil).ID()
		change(t, dir, func(l *allowlist.Draft) error { return l.Allow(key, "") })
		if s, err := n.Status(t.Context()); err != nil || s.AllowList == nil || s.AllowList.Number != want || s.ShutOut != "" {
			t.Fatalf("the list is number %d, and status says %+v, %v", want, s.AllowList, err)
		}
	}
}

// A peer that knows nothing of an invitation says so plainly.
func TestAnInvitationThatAPeerDoesNotKnow(t *testing.T) {
	t.Parallel()
	dir := adminDir(t)
	i, err := Invite(t.Context(), dir, nil, InviteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(t.TempDir(), "open") // of the same overlay, and never told that it has a list
	key, _, err := crypto.GenerateEd25519Key(nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Default(config.Test)
	if err != nil {
		t.Fatal(err)
	}
	if err := CreateDir(open, DirSpec{Key: key, Genesis: i.Genesis, SwarmKey: i.SwarmKey, Config: c}); err != nil {
		t.Fatal(err)
	}
	i.Bootstrap = now(runDir(t, open))
	if says := refusedJoin(t, i, ErrRefused); !strings.Contains(says, "does not know of the invitation; if the peer that made it runs, run join again") {
		t.Error(says)
	}
}

// Who is to stay outside reaches no handler of any protocol, however much it tries: not with another swarm key, without one, unlisted, revoked, or
// by an invitation that has expired. Only members do.
func TestWhoIsRefusedReachesNoHandler(t *testing.T) {
	t.Parallel()
	dir := adminDir(t)
	n := runDir(t, dir)
	psk, err := ReadSwarmKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	var reached sync.Map
	n.host.SetStreamHandler("/anything", func(s network.Stream) {
		reached.Store(s.Conn().RemotePeer(), true)
		s.Reset()
	})
	test := profile(t, config.Test, anyTCP)
	member, revoked := hostOf(t, test, psk, nil), hostOf(t, test, psk, nil)
	change(t, dir, func(l *allowlist.Draft) error {
		return errors.Join(l.Allow(member.ID(), ""), l.Allow(revoked.ID(), ""))
	})
	change(t, dir, func(l *allowlist.Draft) error { return l.Revoke(revoked.ID()) })
	expired := asInvitation(t, invited(t, dir, n, InviteOptions{Life: time.Second}))
	eventually(t, "the invitation is over", func() bool { return n.access.newest().Judge(expired.ID(), time.Now()) == allowlist.Expired })
	hosts := map[string]host.Host{
		"another key": hostOf(t, test, key(9), nil), "no key": hostOf(t, test, nil, nil), "unlisted": hostOf(t, test, psk, nil), "revoked": revoked, "expired": expired,
		"member": member,
	}
	for what, h := range hosts {
		opened := false
		for range 5 {
			if h.Connect(within(t, waitMax), info(n.host)) != nil {
				continue
			}
			if s, err := h.NewStream(within(t, waitMax), n.ID(), "/anything"); err == nil {
				opened = true
				s.SetDeadline(time.Now().Add(waitMax))
				s.Write([]byte{1})
				s.Read(make([]byte, 1)) // until it is reset, here or there
			}
		}
		if what == "member" && !opened {
			t.Error("a member opens no stream")
		}
	}
	for what, h := range hosts {
		if _, got := reached.Load(h.ID()); got != (what == "member") {
			t.Errorf("%s: it has reached a handler %v", what, got)
		}
	}
	counted := n.Refused()
	for _, why := range []Refusal{RefusedHandshake, RefusedUnlisted, RefusedRevoked, RefusedInvitation} {
		if counted[why] == 0 {
			t.Errorf("nobody was counted as %s: %v", why, counted)
		}
	}
}

// An invitation may speak the join protocol alone.
func TestAnInvitationSpeaksNothingElse(t *testing.T) {
	t.Parallel()
	dir := adminDir(t)
	n := runDir(t, dir)
	i := invited(t, dir, n, InviteOptions{})
	h := asInvitation(t, i)
	if err := h.Connect(within(t, waitMax), info(n.host)); err != nil {
		t.Fatal(err)
	}
	prefix := overlayPrefix(n.Genesis())
	for _, id := range n.host.Mux().Protocols() {
		if !strings.HasPrefix(string(id), prefix) || id == joinProtocol(n.Genesis()) {
			continue
		}
		s, err := h.NewStream(within(t, waitMax), n.ID(), protocol.ID(id))
		if err == nil {
			s.SetDeadline(time.Now().Add(waitMax))
			s.Write([]byte{1, 0})
			_, err = s.Read(make([]byte, 1))
		}
		var reset *network.StreamError
		if !errors.As(err, &reset) || reset.ErrorCode != network.StreamGated {
			t.Errorf("%s: %v", id, err)
		}
	}
}

func TestBoundAndExpiredInvitations(t *testing.T) {
	t.Parallel()
	dir := adminDir(t)
	n := runDir(t, dir)
	at := filepath.Join(t.TempDir(), "bound")
	id, err := PrepareDir(at)
	if err != nil {
		t.Fatal(err)
	}
	i := invited(t, dir, n, InviteOptions{Peer: id})
	if i.Key != nil {
		t.Error("an invitation for one peer holds a key")
	}
	if says := refusedJoin(t, i, ErrNotInvited); !strings.Contains(says, id.String()) {
		t.Error(says)
	}
	eventually(t, "the daemon knows the invitation", func() bool { return n.access.access.Judge(id) == allowlist.Invited })
	j, err := JoinDir(t.Context(), at, i, JoinOptions{Profile: config.Test})
	if err != nil || j.ID != id {
		t.Fatal(j.ID, err)
	}
	// One that has expired: the daemon says so, whatever the token says.
	i = invited(t, dir, n, InviteOptions{Life: time.Second})
	i.Expires = i.Expires.Add(time.Hour)
	h := asInvitation(t, i)
	eventually(t, "it expires", func() bool { return n.access.access.Judge(h.ID()) == allowlist.Expired })
	if says := refusedJoin(t, i, ErrRefused); !strings.Contains(says, "has expired") {
		t.Error(says)
	}
	if n.Refused()[RefusedInvitation] == 0 {
		t.Error("it was not counted")
	}
}

// A join that was interrupted after the peer was enrolled can be repeated, also when the invitation was good once.
func TestJoinGoesOnWhereItWasInterrupted(t *testing.T) {
	t.Parallel()
	dir := adminDir(t)
	n := runDir(t, dir)
	i := invited(t, dir, n, InviteOptions{Once: true})
	at := filepath.Join(t.TempDir(), "peer")
	key, err := joiningKey(at)
	if err != nil {
		t.Fatal(err)
	}
	h := asInvitation(t, i)
	if err := h.Connect(within(t, waitMax), info(n.host)); err != nil {
		t.Fatal(err)
	}
	if _, err := enrolAt(within(t, waitMax), h, i.Genesis, key, n.ID()); err != nil {
		t.Fatal(err)
	}
	h.Close()
	j, err := JoinDir(t.Context(), at, i, JoinOptions{Profile: config.Test})
	if err != nil {
		t.Fatal(err)
	}
	if l, err := ReadAllowList(at); err != nil || l.Judge(j.ID, time.Now()) != allowlist.Admitted {
		t.Error(l, err)
	}
}

// A peer that was away while the list changed learns of it from those whom its own list does not name yet, and no older list counts
// after that, also after a restart.
func TestListsOnlyGoForward(t *testing.T) {
	t.Parallel()
	dir := adminDir(t)
	n := runDir(t, dir)
	dir2, _ := joinDir(t, invited(t, dir, n, InviteOptions{}), config.Test)
	old, err := ReadAllowList(dir2)
	if err != nil {
		t.Fatal(err)
	}
	_, j3 := joinDir(t, invited(t, dir, n, InviteOptions{}), config.Test)
	second := runDir(t, dir2)
	eventually(t, "it hears of the third", func() bool { return second.access.access.Admits(j3.ID) })
	if took, err := second.access.access.Take(old.Document()); took || err != nil {
		t.Errorf("an older list: %v, %v", took, err)
	}
	kept, err := ReadAllowList(dir2)
	if err != nil || kept.Judge(j3.ID, time.Now()) != allowlist.Admitted {
		t.Errorf("kept: %v, %v", kept, err)
	}
	a, err := openAccess(dir2, n.Genesis())
	if err != nil {
		t.Fatal(err)
	}
	if took, err := a.Take(old.Document()); took || err != nil {
		t.Errorf("an older list after a restart: %v, %v", took, err)
	}
	forged := append([]byte{}, kept.Document()...)
	forged[len(forged)/2] ^= 1
	if took, err := a.Take(forged); took || !errors.Is(err, allowlist.ErrDocument) {
		t.Errorf("a forged list: %v, %v", took, err)
	}
}

// On an application's host, which has no gater of ours, a peer that is not on the list gets no further than opening a stream.
func TestAnApplicationsHostKeepsToTheList(t *testing.T) {
	t.Parallel()
	test := profile(t, config.Test, anyTCP)
	founder := hostOf(t, test, nil, nil)
	g, store, root, err := FoundWithRootKey(founder, FoundOptions{Name: t.Name()})
	if err != nil {
		t.Fatal(err)
	}
	k, err := allowlist.NewKey(g, root, 1)
	if err != nil {
		t.Fatal(err)
	}
	member, stranger := hostOf(t, test, nil, nil), hostOf(t, test, nil, nil)
	l, err := k.Found(nil, []peer.ID{founder.ID(), member.ID()}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	a, err := NewAccess(g, l.Document(), nil)
	if err != nil {
		t.Fatal(err)
	}
	start := func(n *Node, err error) *Node {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		if err := n.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		return n
	}
	n := start(New(founder, WithOverlay(g), WithStore(store), WithAccess(a)))
	m := start(New(member, WithOverlay(g), WithBootstrap(info(founder))))
	s := start(New(stranger, WithOverlay(g), WithBootstrap(info(founder))))
	eventually(t, "the member is told of the list", func() bool { return m.access.access.List() != nil })
	everybody(t, n, m)
	eventually(t, "the stranger is counted", func() bool { return n.Refused()[RefusedHello] > 0 })
	if !connected(founder, stranger) {
		t.Error("the application's connection was ended")
	}
	if n.Overlay().DHT().RoutingTable().Find(stranger.ID()) != "" || s.access.access.List() != nil {
		t.Error("the stranger got in")
	}
	if err := Diagnose(within(t, waitMax), hostOf(t, test, nil, nil), g, nil, info(founder)); !errors.Is(err, ErrRefused) {
		t.Errorf("a stranger is told: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := s.Locks().TryLock(ctx, "n"); err == nil {
		t.Error("the stranger took a lock")
	}
}

// asInvitation is a host whose identity is an invitation's.
func asInvitation(t *testing.T, i invite.Invite) host.Host {
	t.Helper()
	key, err := crypto.UnmarshalEd25519PrivateKey(i.Key)
	if err != nil {
		t.Fatal(err)
	}
	h, err := newAsker(key, i.SwarmKey)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}
