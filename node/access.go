package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-yamux/v5"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/quic-go/quic-go"

	"latchkey/node/allowlist"
	"latchkey/node/allowlist/pb"
	"latchkey/replicagroup/placement"
)

// Refusals of peers by the overlay's allow-list.
const (
	// RefusedUnlisted: a peer that is not on the allow-list.
	RefusedUnlisted Refusal = "not on the allow-list"
	// RefusedRevoked: a peer that was taken off it.
	RefusedRevoked Refusal = "revoked"
	// RefusedInvitation: an invitation that has expired, was used, or cannot be used with this peer.
	RefusedInvitation Refusal = "invitation not good"
)

// Codes with which a connection ends that the allow-list refuses, so that the other side can be told why. They begin like no code of
// libp2p's own.
const (
	gatedUnlisted network.ConnErrorCode = 0x6c6b0000 + iota
	gatedRevoked
	gatedExpired
	gatedUsed
	gatedElsewhere // a good invitation, and this peer has no admin key
)

// gated says what a code tells the peer that gets it.
var gated = map[network.ConnErrorCode]string{
	gatedUnlisted:  "our peer id is not on the overlay's allow-list; have it allowed (latchkey overlay admin allow), or ask for a new invitation",
	gatedRevoked:   "our peer id was revoked; whoever holds the overlay's admin key can allow it again",
	gatedExpired:   "the invitation has expired; ask for a new one",
	gatedUsed:      "the invitation was good for one peer, and another has used it; ask for a new one",
	gatedElsewhere: "this peer does not have the overlay's admin key, so it can enrol nobody; the one that made the invitation must run",
}

// Access is what one peer knows of who may be in its overlay: the newest allow-list it has heard of. Without a list everybody may who has
// the swarm key. It is safe for concurrent use.
//
// Whoever makes a host for a node gives it [Access.Gater], which refuses others once they are authenticated, before any protocol (one that
// was revoked is given the list that says so first); a node
// itself refuses their streams ([WithAccess]), which is what keeps them out on a host that has a gater of its own.
type Access struct {
	genesis placement.Genesis
	list    atomic.Pointer[allowlist.List]
	keep    func(doc []byte) error
	reload  func() // looks for what others have changed where the list is kept; nil: there is nothing to look at

	refusals   atomic.Pointer[Refusals]
	introduces atomic.Pointer[func(peer.ID) bool] // whom we may dial to learn of a newer list
	tells      atomic.Pointer[func(network.Conn)] // tells a peer that was revoked, before it is sent away; nil: nobody does
	enrols     atomic.Bool                        // this peer can put others on the list

	mu      sync.Mutex // held while a list is taken
	changed []func()   // told of each new one
}

// NewAccess returns what a peer knows at its start: doc is the list it knew last, or nil. keep makes a newer one durable before it
// counts; nil forgets lists at the end of the process. Errors match [allowlist.ErrDocument].
func NewAccess(g placement.Genesis, doc []byte, keep func(doc []byte) error) (*Access, error) {
	a := &Access{genesis: g, keep: keep}
	if doc != nil {
		l, err := allowlist.Open(g, doc)
		if err != nil {
			return nil, err
		}
		a.list.Store(l)
	}
	return a, nil
}

// List returns the newest list, nil where there is none.
func (a *Access) List() *allowlist.List { return a.list.Load() }

// Judge tells what the list says to a peer now.
func (a *Access) Judge(p peer.ID) allowlist.Verdict { return a.List().Judge(p, time.Now()) }

// Admits reports whether a peer may be in the overlay.
func (a *Access) Admits(p peer.ID) bool { return a.Judge(p) == allowlist.Admitted }

// Take takes over a list if it counts more than the one that is known, and reports whether it does. It is durable then, and peers that
// are not on it are being sent away. Errors match [allowlist.ErrDocument], or are those of keeping it.
func (a *Access) Take(doc []byte) (bool, error) {
	l, err := allowlist.Open(a.genesis, doc)
	if err != nil {
		return false, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !l.Newer(a.List().Have()) {
		return false, nil
	}
	if a.keep != nil {
		if err := a.keep(doc); err != nil {
			return false, fmt.Errorf("node: the overlay's allow-list, number %d, cannot be kept and does not count here: %w", l.Number(), err)
		}
	}
	a.list.Store(l)
	for _, f := range a.changed {
		f()
	}
	return true, nil
}

// have names the list.
func (a *Access) have() *pb.Have { return a.List().Have() }

// onChange registers a function that is called after each new list. It must not block.
func (a *Access) onChange(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.changed = append(a.changed, f)
}

// counts sets where refusals are counted.
func (a *Access) counts(r *Refusals) { a.refusals.Store(r) }

// refusalOf tells how to turn a peer away.
func refusalOf(v allowlist.Verdict) (network.ConnErrorCode, Refusal) {
	switch v {
	case allowlist.WasRevoked:
		return gatedRevoked, RefusedRevoked
	case allowlist.Expired:
		return gatedExpired, RefusedInvitation
	case allowlist.Used:
		return gatedUsed, RefusedInvitation
	case allowlist.Invited:
		return gatedElsewhere, RefusedInvitation
	}
	return gatedUnlisted, RefusedUnlisted
}

// introducer reports whether we may dial a peer that is not on our list: others have been in the overlay longer and may have a newer
// one, which says that it is. One that was revoked is not dialled.
func (a *Access) introducer(p peer.ID, v allowlist.Verdict) bool {
	f := a.introduces.Load()
	return v != allowlist.WasRevoked && f != nil && (*f)(p)
}

// dials reports whether a peer may be dialled.
func (a *Access) dials(p peer.ID) bool {
	v := a.Judge(p)
	return v == allowlist.Admitted || a.introducer(p, v)
}

// Gater returns a connection gater that keeps the list, for a host whose connections are the overlay's.
func (a *Access) Gater() connmgr.ConnectionGater { return accessGater{a} }

type accessGater struct{ a *Access }

func (g accessGater) InterceptPeerDial(p peer.ID) bool { return g.a.dials(p) }

func (g accessGater) InterceptAddrDial(peer.ID, ma.Multiaddr) bool { return true }

func (g accessGater) InterceptAccept(network.ConnMultiaddrs) bool { return true }

// InterceptSecured lets everybody pass, to the next step: only there can the other side be told why it is refused.
func (g accessGater) InterceptSecured(network.Direction, peer.ID, network.ConnMultiaddrs) bool {
	return true
}

// InterceptUpgraded is asked when a peer is authenticated, before a stream is accepted.
func (g accessGater) InterceptUpgraded(c network.Conn) (bool, control.DisconnectReason) {
	p, inbound := c.RemotePeer(), c.Stat().Direction == network.DirInbound
	v := g.a.Judge(p)
	if v == allowlist.Unknown && inbound && g.a.reload != nil { // it may have been invited a moment ago
		g.a.reload()
		v = g.a.Judge(p)
	}
	switch {
	case v == allowlist.Admitted,
		v == allowlist.Invited && inbound && g.a.enrols.Load(),
		!inbound && g.a.introducer(p, v):
		return true, 0
	}
	code, why := refusalOf(v)
	if r := g.a.refusals.Load(); r != nil && inbound {
		r.add(why)
	}
	log.Debugw("refused", "peer", p, "reason", why)
	if f := g.a.tells.Load(); f != nil && v == allowlist.WasRevoked && inbound {
		(*f)(c)
	}
	closeWith(c, code)
	return false, control.DisconnectReason(0)
}

// closeWith ends a connection that the host has not taken yet, which the host would do with a code that tells less.
func closeWith(c network.Conn, code network.ConnErrorCode) {
	var y *yamux.Session
	var q *quic.Conn
	switch {
	case c.As(&y):
		y.CloseWithError(uint32(code))
	case c.As(&q):
		q.CloseWithError(quic.ApplicationErrorCode(code), "")
	}
}

// bareStream is a stream of a connection that the host has not taken yet.
type bareStream interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
}

// openBare opens one. It ends with the connection.
func openBare(ctx context.Context, c network.Conn) (bareStream, error) {
	var y *yamux.Session
	var q *quic.Conn
	switch {
	case c.As(&y):
		return y.OpenStream(ctx)
	case c.As(&q):
		return q.OpenStreamSync(ctx)
	}
	return nil, errors.New("node: no streams on such a connection")
}

// toldWhy returns what the other side said when it ended a connection because of the allow-list. A connection that goes on says nothing.
func toldWhy(ctx context.Context, c network.Conn) (why string, told bool) {
	code, told := toldCode(ctx, c)
	return gated[code], told
}

// toldCode is toldWhy with the code.
func toldCode(ctx context.Context, c network.Conn) (code network.ConnErrorCode, told bool) {
	if !c.IsClosed() {
		return 0, false
	}
	_, err := c.NewStream(ctx)
	var end *network.ConnError
	if !errors.As(err, &end) || !end.Remote {
		return 0, false
	}
	_, told = gated[end.ErrorCode]
	return end.ErrorCode, told
}
