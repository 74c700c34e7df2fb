package invite

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"latchkey/node/invite/pb"
	"latchkey/replicagroup/placement"
)

// Limits of an invitation.
const (
	// TokenBytesMax bounds the text. The largest genesis document with the most addresses fits.
	TokenBytesMax = 32 << 10
	// AddrsMax bounds the addresses, of all peers together.
	AddrsMax = 16
	// AddrBytesMax bounds one address in its text form, so that with the peer's id behind it it fits a configuration.
	AddrBytesMax = 192
	// SwarmKeyBytes is the length of a swarm key.
	SwarmKeyBytes = 32
)

const (
	family   = "latchkey"
	prefix   = family + "1."
	version  = 1
	checksum = 4 // bytes

	expiresMax = 1 << 40 // as Unix time
)

// Errors to match with errors.Is.
var (
	// ErrNotToken: the text is something else than an invitation.
	ErrNotToken = errors.New("invite: not an invitation")
	// ErrDamaged: the text began as an invitation and was cut off or changed since.
	ErrDamaged = errors.New("invite: damaged invitation")
	// ErrVersion: a newer latchkey made the invitation.
	ErrVersion = errors.New("invite: invitation of a newer version")
	// ErrContents: what the invitation says is out of range or contradicts itself.
	ErrContents = errors.New("invite: bad contents")
	// ErrSeveral: the text holds different invitations.
	ErrSeveral = errors.New("invite: more than one invitation")
)

// Invite is what an invitation says. Every way of printing it leaves the key out.
type Invite struct {
	Genesis   placement.Genesis
	SwarmKey  pnet.PSK        // SwarmKeyBytes of them; nil: the overlay is public
	Bootstrap []peer.AddrInfo // peers that may answer; each once, each with an address

	// Of an invitation to an overlay with an allow-list, which is to be enrolled with; else zero.
	Expires time.Time          // to the second; the list says the same
	Once    bool               // good for one peer
	Peer    peer.ID            // good for this peer only; else empty, and
	Key     ed25519.PrivateKey // of the peer id that may enrol the joiner and do nothing else
}

// Listed reports whether the overlay has an allow-list, so that the joiner has to be enrolled.
func (i Invite) Listed() bool { return !i.Expires.IsZero() }

// Private reports whether the overlay has a swarm key.
func (i Invite) Private() bool { return i.SwarmKey != nil }

// Format implements [fmt.Formatter] for every verb.
func (i Invite) Format(f fmt.State, _ rune) {
	kind := "public"
	if i.Private() {
		kind = "private"
	}
	fmt.Fprintf(f, "invitation to %s overlay %q, id %v", kind, i.Genesis.Name, i.Genesis.ID())
}

// check says what is out of range, if anything. Errors match [ErrContents].
func (i Invite) check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrContents}, args...)...)
	}
	if err := i.Genesis.Validate(); err != nil {
		return bad("%w", err)
	}
	if n := len(i.SwarmKey); i.SwarmKey != nil && n != SwarmKeyBytes {
		return bad("swarm key of %d bytes (%d)", n, SwarmKeyBytes)
	}
	switch {
	case !i.Listed() && (i.Once || i.Peer != "" || i.Key != nil):
		return bad("an enrolment that never expires")
	case !i.Listed():
	case i.Expires.Unix() <= 0 || i.Expires.Unix() > expiresMax:
		return bad("it expires at no time")
	case (i.Peer == "") == (i.Key == nil):
		return bad("it is either for one peer or has a key")
	case i.Key != nil && len(i.Key) != ed25519.PrivateKeySize:
		return bad("key of %d bytes (%d)", len(i.Key), ed25519.PrivateKeySize)
	case i.Peer != "":
		if _, err := peer.IDFromBytes([]byte(i.Peer)); err != nil || len(i.Peer) > placement.PeerIDBytesMax {
			return bad("bad peer id")
		}
	}
	addrs := 0
	for n, p := range i.Bootstrap {
		if _, err := peer.IDFromBytes([]byte(p.ID)); err != nil || len(p.ID) > placement.PeerIDBytesMax {
			return bad("bootstrap peer %d: bad peer id", n)
		}
		for _, q := range i.Bootstrap[:n] {
			if p.ID == q.ID {
				return bad("bootstrap peer %d: named twice", n)
			}
		}
		if len(p.Addrs) == 0 {
			return bad("bootstrap peer %d: no address", n)
		}
		for _, a := range p.Addrs {
			if len(a) == 0 || len(a.String()) > AddrBytesMax {
				return bad("bootstrap peer %d: bad address", n)
			}
		}
		addrs += len(p.Addrs)
	}
	if addrs > AddrsMax {
		return bad("%d addresses (at most %d)", addrs, AddrsMax)
	}
	return nil
}

// Token returns the invitation as one line of text. For a private overlay the line is a secret. Errors match [ErrContents].
func (i Invite) Token() (string, error) {
	if err := i.check(); err != nil {
		return "", err
	}
	genesis, err := i.Genesis.Encode()
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrContents, err)
	}
	m := &pb.Invite{Genesis: genesis, SwarmKey: i.SwarmKey}
	for _, p := range i.Bootstrap {
		q := &pb.Peer{Id: []byte(p.ID)}
		for _, a := range p.Addrs {
			q.Addrs = append(q.Addrs, a.Bytes())
		}
		m.Bootstrap = append(m.Bootstrap, q)
	}
	if i.Listed() {
		m.Expires, m.SingleUse, m.Peer = i.Expires.Unix(), i.Once, []byte(i.Peer)
		if i.Key != nil {
			m.InviteKey = i.Key.Seed()
		}
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("%w: it cannot be encoded", ErrContents)
	}
	b := append([]byte{version}, body...)
	sum := sha256.Sum256(b)
	return prefix + base64.RawURLEncoding.EncodeToString(append(b, sum[:checksum]...)), nil
}

var errMistyped = fmt.Errorf("%w: it was cut off or mistyped; copy the whole line again", ErrDamaged)

// open reads what follows the prefix of a token.
func open(text string) (Invite, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) < 1+checksum {
		return Invite{}, errMistyped
	}
	b, sum := b[:len(b)-checksum], b[len(b)-checksum:]
	if want := sha256.Sum256(b); !bytes.Equal(sum, want[:checksum]) {
		return Invite{}, errMistyped
	}
	if b[0] != version {
		return Invite{}, fmt.Errorf("%w: version %d, this program reads %d; install the latchkey that made it", ErrVersion, b[0], version)
	}
	return decode(b[1:])
}

// decode reads the message inside a token.
func decode(b []byte) (Invite, error) {
	var m pb.Invite
	if err := proto.Unmarshal(b, &m); err != nil {
		return Invite{}, fmt.Errorf("%w: not a message this program knows", ErrContents)
	}
	unknown := len(m.ProtoReflect().GetUnknown())
	for _, p := range m.Bootstrap {
		unknown += len(p.ProtoReflect().GetUnknown())
	}
	if unknown > 0 {
		return Invite{}, fmt.Errorf("%w: it says more than this program understands; install the latchkey that made it", ErrVersion)
	}
	g, err := placement.DecodeGenesis(m.Genesis)
	if err != nil {
		return Invite{}, fmt.Errorf("%w: genesis document: %w", ErrContents, err)
	}
	i := Invite{Genesis: g}
	if len(m.SwarmKey) > 0 {
		i.SwarmKey = m.SwarmKey
	}
	i.Once, i.Peer = m.SingleUse, peer.ID(m.Peer)
	if m.Expires != 0 {
		i.Expires = time.Unix(m.Expires, 0)
	}
	switch len(m.InviteKey) {
	case 0:
	case ed25519.SeedSize:
		i.Key = ed25519.NewKeyFromSeed(m.InviteKey)
	default:
		return Invite{}, fmt.Errorf("%w: key of %d bytes (%d)", ErrContents, len(m.InviteKey), ed25519.SeedSize)
	}
	addrs := 0
	for n, p := range m.Bootstrap {
		info := peer.AddrInfo{ID: peer.ID(p.Id)}
		if addrs += len(p.Addrs); addrs > AddrsMax {
			return Invite{}, fmt.Errorf("%w: more than %d addresses", ErrContents, AddrsMax)
		}
		for _, b := range p.Addrs {
			a, err := ma.NewMultiaddrBytes(b)
			if err != nil {
				return Invite{}, fmt.Errorf("%w: bootstrap peer %d: bad address", ErrContents, n)
			}
			info.Addrs = append(info.Addrs, a)
		}
		i.Bootstrap = append(i.Bootstrap, info)
	}
	if err := i.check(); err != nil {
		return Invite{}, err
	}
	return i, nil
}
