package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"latchkey/node/api"
	"latchkey/node/invite"
)

// turnedAway is what the daemon of a directory says of those it has refused.
func turnedAway(t *testing.T, dir string) string {
	t.Helper()
	for line := range strings.Lines(ok(t, at(t, dir, "status")).out.String()) {
		if strings.HasPrefix(line, "turned away") {
			return line
		}
	}
	t.Fatal("status says nothing of those turned away")
	return ""
}

func TestWithoutAnAllowListNobodyIsRevokedOrLimited(t *testing.T) {
	dir := shortDir(t)
	initTest(t, dir)
	for _, c := range []struct {
		code int
		says string
		args []string
	}{
		{exitUsage, "--expires: it needs an allow-list", []string{"invite", "--expires", "1h"}},
		{exitUsage, "--single-use: it needs an allow-list", []string{"invite", "--single-use"}},
		{exitUsage, "--peer: it needs an allow-list", []string{"invite", "--peer", "12D3KooWFk4oM6LEbuCoddHBdFerfQRMNKX9i6pLgDkGNAmysFZd"}},
		{exitFailure, "nobody is kept out", []string{"overlay", "admin", "revoke", "12D3KooWFk4oM6LEbuCoddHBdFerfQRMNKX9i6pLgDkGNAmysFZd"}},
		{exitFailure, "nobody is kept out", []string{"overlay", "admin", "allow", "12D3KooWFk4oM6LEbuCoddHBdFerfQRMNKX9i6pLgDkGNAmysFZd"}},
		{exitNotFound, "no allow-list", []string{"overlay", "admin", "ls"}},
	} {
		if p := at(t, dir, c.args...); p.code != c.code || !strings.Contains(p.oneLine(), c.says) {
			t.Errorf("%v: exit %d, %q; want %d and %q", c.args, p.code, p.oneLine(), c.code, c.says)
		}
	}
}

// What the verbs write is in effect when they return: nobody joins by an open invitation after init, nor by one that was revoked.
func TestAnAllowListIsInEffectWhenInitReturns(t *testing.T) {
	a := filepath.Join(shortDir(t), "a")
	initTest(t, a)
	startDaemon(t, a, nil)
	before, _ := invited(t, a)
	ok(t, at(t, a, "overlay", "admin", "init"))
	if p := fed(t, filepath.Join(shortDir(t), "b"), before, "join", "-", "--profile", "test"); p.code != exitFailure || !strings.Contains(p.oneLine(), "not on the overlay's allow-list") {
		t.Errorf("by an open invitation: exit %d, %s", p.code, p.oneLine())
	}
	token := ok(t, at(t, a, "invite", "--single-use")).out.String()
	list := ok(t, at(t, a, "overlay", "admin", "ls")).out.String()
	_, id, found := strings.Cut(list, "invitation")
	if !found {
		t.Fatal(list)
	}
	ok(t, at(t, a, "overlay", "admin", "revoke", strings.Fields(id)[0]))
	if p := fed(t, filepath.Join(shortDir(t), "c"), token, "join", "-", "--profile", "test"); p.code != exitFailure || !strings.Contains(p.oneLine(), "was revoked") {
		t.Errorf("by a revoked invitation: exit %d, %s", p.code, p.oneLine())
	}
}

// Three machines by init, invite and join alone, in an overlay with an allow-list; and everybody who is to stay outside does, is told why on
// one line, and is counted.
func TestThreeGetInAndTheOthersAreToldWhyNot(t *testing.T) {
	t.Parallel()
	a, b, c := filepath.Join(shortDir(t), "a"), filepath.Join(shortDir(t), "b"), filepath.Join(shortDir(t), "c")
	initTest(t, a)
	ok(t, at(t, a, "overlay", "admin", "init"))
	if p := at(t, a, "overlay", "admin", "init"); p.code != exitFailure || !strings.Contains(p.oneLine(), "--new-key") {
		t.Errorf("a second init: exit %d, %s", p.code, p.oneLine())
	}
	startDaemon(t, a, nil)
	spare := ok(t, at(t, a, "invite", "--expires", "1s")).out.String() // which will be over
	bound := strings.TrimSpace(ok(t, at(t, c, "join", "--prepare")).out.String())
	used := ok(t, at(t, a, "invite", "--single-use", "--note", "second")).out.String()
	ok(t, fed(t, b, used, "join", "-", "--profile", "test"))
	ok(t, fed(t, c, ok(t, at(t, a, "invite", "--peer", bound)).out.String(), "join", "-", "--profile", "test"))
	startDaemon(t, b, nil)
	startDaemon(t, c, nil)
	meeting(t, a, b, c)
	lockFrom(t, a, b, c)
	if got := peerOf(t, c); got != bound {
		t.Errorf("the peer of the bound invitation is %s, want %s", got, bound)
	}
	if p := at(t, b, "invite"); p.code != exitFailure || !strings.Contains(p.oneLine(), "no admin.key") {
		t.Errorf("invite without the admin key: exit %d, %s", p.code, p.oneLine())
	}

	i, err := invite.Parse(used)
	if err != nil {
		t.Fatal(err)
	}
	edited := func(change func(*invite.Invite)) string {
		t.Helper()
		i := i
		change(&i)
		token, err := i.Token()
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	plain := func(i *invite.Invite) { i.Expires, i.Once, i.Key = time.Time{}, false, nil }
	other := shortDir(t)
	initTest(t, other)
	_, o := invited(t, other)
	eventually(t, "the invitation is over", func() bool {
		e, err := invite.Parse(spare)
		return err == nil && time.Now().After(e.Expires)
	})
	for what, j := range map[string]struct{ token, says, counted string }{
		"wrong key":     {edited(func(i *invite.Invite) { plain(i); i.SwarmKey = o.SwarmKey }), "swarm key", "handshake"},
		"without key":   {edited(func(i *invite.Invite) { plain(i); i.SwarmKey = nil }), "swarm key", "handshake"},
		"not invited":   {edited(plain), "not on the overlay's allow-list", "not on the allow-list"},
		"other overlay": {edited(func(i *invite.Invite) { plain(i); i.Genesis = o.Genesis }), "not on the overlay's allow-list", "not on the allow-list"},
		"expired":       {spare, "expired", "invitation not good"},
		"used":          {used, "another has used it", "invitation not good"},
	} {
		dir := filepath.Join(shortDir(t), "peer")
		profile := "test"
		p := fed(t, dir, j.token, "join", "-", "--profile", profile)
		if p.code != exitFailure || !strings.Contains(p.oneLine(), j.says) {
			t.Errorf("%s: exit %d, %q; want %q", what, p.code, p.oneLine(), j.says)
		}
		if strings.Count(p.oneLine(), "ask for a new one") > 1 {
			t.Errorf("%s: it is said twice: %s", what, p.oneLine())
		}
		if got := turnedAway(t, a); !strings.Contains(got, j.counted) {
			t.Errorf("%s: %s; want %s", what, got, j.counted)
		}
	}

	ok(t, at(t, a, "overlay", "admin", "revoke", bound))
	// The revoked is told so, and not to mend the network; that it turns others away is by its old list.
	eventually(t, "the revoked says so", func() bool {
		says := ok(t, at(t, c, "status")).out.String()
		return strings.Contains(says, "our peer id was revoked; whoever holds") && strings.Contains(says, "there may be a newer one")
	})
	if p := at(t, c, "lock", "never locked before", "--wait", "2s", "--", "true"); p.code != exitFailure || !strings.Contains(p.oneLine(), "shut out of the overlay: our peer id was revoked") {
		t.Errorf("lock by the revoked: exit %d, %s", p.code, p.oneLine())
	}
	for _, dir := range []string{a, b} {
		eventually(t, dir+" counts the revoked", func() bool { return strings.Contains(turnedAway(t, dir), "revoked") })
	}
	if p := at(t, a, "overlay", "admin", "revoke", peerOf(t, a)); p.code != exitUsage || !strings.Contains(p.oneLine(), "itself") {
		t.Errorf("revoking oneself: exit %d, %s", p.code, p.oneLine())
	}
	lockFrom(t, a, b)
}

func peerOf(t *testing.T, dir string) string {
	t.Helper()
	var i api.Info
	if err := json.Unmarshal(ok(t, at(t, dir, "id", "-o", "json")).out.Bytes(), &i); err != nil {
		t.Fatal(err)
	}
	return i.Peer
}
