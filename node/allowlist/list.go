package allowlist

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"latchkey/node/allowlist/pb"
	"latchkey/replicagroup/placement"
)

// Limits of a list.
const (
	// EntriesMax bounds the entries of a list: members, invitations and those that were revoked.
	EntriesMax = 4096
	// RevokedMax bounds the revoked ones among them; of one more the oldest is forgotten, which changes nothing but what it is told.
	RevokedMax = 1024
	// NoteBytesMax bounds an entry's note.
	NoteBytesMax = 64
	// DocumentBytesMax bounds a list with its signatures.
	DocumentBytesMax = 1 << 20
	// InvitationLifeMax is how long an invitation is good at most.
	InvitationLifeMax = 366 * 24 * time.Hour
	// expiredKept is how long an expired invitation stays on the list, so that it can be told so.
	expiredKept = 7 * 24 * time.Hour
)

// Errors to match with errors.Is.
var (
	// ErrDocument: a list that is not to be believed: malformed, of another overlay, or not signed as it must be.
	ErrDocument = errors.New("allowlist: not a list of this overlay")
	// ErrKey: a key that may not do what it was to do.
	ErrKey = errors.New("allowlist: key does not fit")
	// ErrFull: no room for one more entry.
	ErrFull = errors.New("allowlist: list is full")
	// ErrEntry: what was asked for makes no sense for that peer.
	ErrEntry = errors.New("allowlist: bad entry")
	// ErrRefused: an invitation or a request to enrol that is not good.
	ErrRefused = errors.New("allowlist: not enrolled")
)

// Domains keep a signature of one thing from being one of another.
const (
	listDomain  = "latchkey allow-list\x00"
	adminDomain = "latchkey admin key\x00"
	enrolDomain = "latchkey enrolment\x00"
)

// Kind is what a peer on a list is.
type Kind uint8

// The kinds.
const (
	Member     Kind = iota + 1 // may be in the overlay
	Invitation                 // may enrol a member until it expires, and nothing else
	Revoked                    // was one of the others
)

func (k Kind) String() string {
	switch k {
	case Member:
		return "member"
	case Invitation:
		return "invitation"
	case Revoked:
		return "revoked"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Entry is what a list says of one peer.
type Entry struct {
	Peer    peer.ID
	Kind    Kind
	Since   uint64 // the number of the list with which it became that
	Note    string
	Expires time.Time // of an invitation, to the second; else zero
	Once    bool      // of an invitation: it enrols one peer only
	UsedBy  peer.ID   // of such a one: whom it has enrolled; else empty
}

// Verdict is what a list says to a peer that comes.
type Verdict uint8

// The verdicts.
const (
	Unknown     Verdict = iota // not on the list
	Admitted                   // a member
	Invited                    // may enrol somebody now
	Expired                    // could have, until its time was over
	Used                       // could have, and has
	WasRevoked                 // was taken off
	verdictsEnd                // their number
)

func (v Verdict) String() string {
	switch v {
	case Unknown:
		return "not on the overlay's allow-list"
	case Admitted:
		return "on the overlay's allow-list"
	case Invited:
		return "an invitation"
	case Expired:
		return "an invitation that has expired"
	case Used:
		return "an invitation that was good once and has been used"
	case WasRevoked:
		return "revoked"
	}
	return fmt.Sprintf("verdict %d", uint8(v))
}

// List is an overlay's allow-list, as a signed document says it. It does not change and is safe for concurrent use.
type List struct {
	admin   *pb.Certificate
	number  uint64
	entries []Entry // by peer, each once
	body    []byte
	doc     []byte
	digest  [sha256.Size]byte
}

// Open reads a document and checks that the overlay's keys vouch for it. Errors match [ErrDocument].
func Open(g placement.Genesis, doc []byte) (*List, error) {
	bad := func(format string, args ...any) (*List, error) {
		return nil, fmt.Errorf("%w: "+format, append([]any{ErrDocument}, args...)...)
	}
	if len(doc) > DocumentBytesMax {
		return bad("%d bytes (at most %d)", len(doc), DocumentBytesMax)
	}
	var d pb.Document
	if err := proto.Unmarshal(doc, &d); err != nil {
		return bad("malformed")
	}
	if err := checkCertificate(g, d.Admin); err != nil {
		return bad("%w", err)
	}
	if !verify(d.Admin.Key, listDomain, d.List, d.Signature) {
		return bad("the overlay's admin key has not signed it")
	}
	var m pb.List
	if err := proto.Unmarshal(d.List, &m); err != nil {
		return bad("malformed list")
	}
	id := g.ID()
	switch {
	case !bytes.Equal(m.Overlay, id[:]):
		return bad("it is of overlay %.16x", m.Overlay)
	case m.Number == 0:
		return bad("without a number")
	case len(m.Entries) > EntriesMax:
		return bad("%d entries (at most %d)", len(m.Entries), EntriesMax)
	}
	l := &List{admin: d.Admin, number: m.Number, body: d.List, doc: bytes.Clone(doc), digest: sha256.Sum256(d.List)}
	for i, e := range m.Entries {
		entry, err := decodeEntry(e)
		if err != nil {
			return bad("entry %d: %w", i, err)
		}
		if i > 0 && entry.Peer <= l.entries[i-1].Peer {
			return bad("entry %d: out of order", i)
		}
		if entry.Since > m.Number {
			return bad("entry %d: since list %d, in list %d", i, entry.Since, m.Number)
		}
		l.entries = append(l.entries, entry)
	}
	return l, nil
}

func decodeEntry(m *pb.Entry) (Entry, error) {
	e := Entry{Peer: peer.ID(m.Peer), Kind: Kind(m.Kind), Since: m.Since, Note: m.Note, Once: m.Once, UsedBy: peer.ID(m.UsedBy)}
	if m.Kind < pb.Kind_KIND_MEMBER || m.Kind > pb.Kind_KIND_REVOKED {
		return e, fmt.Errorf("%w: kind %d", ErrEntry, m.Kind)
	}
	if err := checkPeer(e.Peer); err != nil {
		return e, err
	}
	if err := CheckNote(e.Note); err != nil {
		return e, err
	}
	if e.Kind != Invitation {
		if m.Expires != 0 || e.Once || e.UsedBy != "" {
			return e, fmt.Errorf("%w: a %v that is an invitation too", ErrEntry, e.Kind)
		}
		return e, nil
	}
	if m.Expires <= 0 || m.Expires > 1<<40 {
		return e, fmt.Errorf("%w: an invitation without a time to expire", ErrEntry)
	}
	e.Expires = time.Unix(m.Expires, 0)
	if e.UsedBy != "" {
		if !e.Once {
			return e, fmt.Errorf("%w: used, and not good once only", ErrEntry)
		}
		return e, checkPeer(e.UsedBy)
	}
	return e, nil
}

func checkPeer(p peer.ID) error {
	if _, err := peer.IDFromBytes([]byte(p)); err != nil || len(p) > placement.PeerIDBytesMax {
		return fmt.Errorf("%w: bad peer id", ErrEntry)
	}
	return nil
}

// CheckNote tells whether a text may be a note: a short line that only shows. Errors match [ErrEntry].
func CheckNote(s string) error {
	switch {
	case len(s) > NoteBytesMax:
		return fmt.Errorf("%w: a note of %d bytes (at most %d)", ErrEntry, len(s), NoteBytesMax)
	case !utf8.ValidString(s), strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }):
		return fmt.Errorf("%w: a note with characters that do not print", ErrEntry)
	}
	return nil
}

func checkCertificate(g placement.Genesis, c *pb.Certificate) error {
	switch {
	case c == nil || c.Number == 0 || len(c.Key) != ed25519.PublicKeySize:
		return errors.New("no admin key")
	case !verify(g.RootKey, adminDomain, certified(g, c), c.Signature):
		return errors.New("the overlay's root key does not vouch for the admin key")
	}
	return nil
}

// certified is what a root key signs of a certificate.
func certified(g placement.Genesis, c *pb.Certificate) []byte {
	id := g.ID()
	b := append([]byte{}, id[:]...)
	b = binary.BigEndian.AppendUint64(b, c.Number)
	return append(b, c.Key...)
}

func verify(key ed25519.PublicKey, domain string, b, signature []byte) bool {
	return len(key) == ed25519.PublicKeySize && len(signature) == ed25519.SignatureSize &&
		ed25519.Verify(key, append([]byte(domain), b...), signature)
}

func sign(key ed25519.PrivateKey, domain string, b []byte) []byte {
	return ed25519.Sign(key, append([]byte(domain), b...))
}

// Document returns the list as [Open] reads it. The caller must not change it.
func (l *List) Document() []byte { return l.doc }

// Number returns which list of the overlay it is, of one admin key.
func (l *List) Number() uint64 { return l.number }

// Admin returns which admin key of the overlay has signed it.
func (l *List) Admin() uint64 { return l.admin.Number }

// Have returns what names the list among those of its overlay; of no list, when l is nil.
func (l *List) Have() *pb.Have {
	if l == nil {
		return &pb.Have{}
	}
	return &pb.Have{Admin: l.admin.Number, Number: l.number, Digest: l.digest[:]}
}

// Newer reports whether l counts more than what is named by h.
func (l *List) Newer(h *pb.Have) bool {
	if l == nil {
		return false
	}
	switch {
	case l.admin.Number != h.GetAdmin():
		return l.admin.Number > h.GetAdmin()
	case l.number != h.GetNumber():
		return l.number > h.GetNumber()
	}
	return bytes.Compare(l.digest[:], h.GetDigest()) > 0
}

// Entries returns all entries, in the order of the peers' bytes. The caller may change the slice.
func (l *List) Entries() []Entry { return slices.Clone(l.entries) }

// Members returns how many members the list has.
func (l *List) Members() int {
	n := 0
	for _, e := range l.entries {
		if e.Kind == Member {
			n++
		}
	}
	return n
}

// Find returns what the list says of a peer.
func (l *List) Find(p peer.ID) (Entry, bool) {
	i, ok := find(l.entries, p)
	if !ok {
		return Entry{}, false
	}
	return l.entries[i], true
}

func find(entries []Entry, p peer.ID) (int, bool) {
	return slices.BinarySearchFunc(entries, p, func(e Entry, p peer.ID) int { return strings.Compare(string(e.Peer), string(p)) })
}

// Judge tells what a peer may do at a time. Where there is no list, l is nil and everybody is admitted.
func (l *List) Judge(p peer.ID, now time.Time) Verdict {
	if l == nil {
		return Admitted
	}
	e, ok := l.Find(p)
	switch {
	case !ok:
		return Unknown
	case e.Kind == Member:
		return Admitted
	case e.Kind == Revoked:
		return WasRevoked
	case !now.Before(e.Expires):
		return Expired
	case e.UsedBy != "":
		return Used
	}
	return Invited
}

// Enrolled returns the peer that an invitation has enrolled, of one that is good once.
func (l *List) Enrolled(invitation peer.ID) (peer.ID, bool) {
	if l == nil {
		return "", false
	}
	e, ok := l.Find(invitation)
	return e.UsedBy, ok && e.UsedBy != ""
}
