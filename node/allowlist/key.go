package allowlist

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"latchkey/node/allowlist/pb"
	"latchkey/replicagroup/placement"
)

// Key is an overlay's admin key, which signs its lists. It is a secret; every way of printing it leaves that out.
type Key struct {
	genesis placement.Genesis
	private ed25519.PrivateKey
	admin   *pb.Certificate
}

// Format implements [fmt.Formatter] for every verb.
func (k *Key) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "admin key %d of overlay %v", k.admin.Number, k.genesis.ID())
}

// NewKey draws an admin key that the overlay's root key vouches for. number is one more than that of the last list's key
// ([List.Admin]), and 1 for the first. Errors match [ErrKey].
func NewKey(g placement.Genesis, root ed25519.PrivateKey, number uint64) (*Key, error) {
	if len(root) != ed25519.PrivateKeySize || !bytes.Equal(root.Public().(ed25519.PublicKey), g.RootKey) {
		return nil, fmt.Errorf("%w: this is not the root key of overlay %v", ErrKey, g.ID())
	}
	if number == 0 {
		return nil, fmt.Errorf("%w: number 0", ErrKey)
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	k := &Key{genesis: g, private: private, admin: &pb.Certificate{Number: number, Key: public}}
	k.admin.Signature = sign(root, adminDomain, certified(g, k.admin))
	return k, nil
}

// ReadKey reads what [Key.Bytes] wrote. Errors match [ErrKey].
func ReadKey(g placement.Genesis, b []byte) (*Key, error) {
	var m pb.AdminKey
	if err := proto.Unmarshal(b, &m); err != nil || len(m.Seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("%w: it holds no admin key", ErrKey)
	}
	k := &Key{genesis: g, private: ed25519.NewKeyFromSeed(m.Seed), admin: m.Admin}
	if err := checkCertificate(g, m.Admin); err != nil {
		return nil, fmt.Errorf("%w: an admin key of another overlay than %v: %w", ErrKey, g.ID(), err)
	}
	if !bytes.Equal(k.private.Public().(ed25519.PublicKey), m.Admin.Key) {
		return nil, fmt.Errorf("%w: the key and what vouches for it are not of each other", ErrKey)
	}
	return k, nil
}

// Bytes returns the key for a file that nobody else reads.
func (k *Key) Bytes() ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(&pb.AdminKey{Seed: k.private.Seed(), Admin: k.admin})
}

// Number returns which admin key of the overlay it is.
func (k *Key) Number() uint64 { return k.admin.Number }

// Signs reports whether the key has signed a list, so that it may change it.
func (k *Key) Signs(l *List) bool { return bytes.Equal(k.admin.Key, l.admin.Key) }

// Found makes the first list of a key: with the entries of the list before it, if there was one, and these members. Errors match [ErrEntry], [ErrFull].
func (k *Key) Found(before *List, members []peer.ID, now time.Time) (*List, error) {
	d := &Draft{number: 1, now: now}
	if before != nil {
		if before.admin.Number >= k.admin.Number {
			return nil, fmt.Errorf("%w: key %d would not count beside the list of key %d", ErrKey, k.admin.Number, before.admin.Number)
		}
		d.number, d.entries = before.number+1, before.Entries()
	}
	for _, p := range members {
		if err := d.Allow(p, ""); err != nil {
			return nil, err
		}
	}
	return k.close(d)
}

// Edit makes the list that follows l: change changes a draft of it. Without a change it returns l. Errors are those of change, and match
// [ErrKey] when l is not the key's.
func (k *Key) Edit(l *List, now time.Time, change func(*Draft) error) (*List, error) {
	if !k.Signs(l) {
		return nil, fmt.Errorf("%w: the overlay's list is signed by admin key %d, and this is key %d", ErrKey, l.admin.Number, k.admin.Number)
	}
	d := &Draft{number: l.number + 1, entries: l.Entries(), now: now}
	if err := change(d); err != nil {
		return nil, err
	}
	if slices.Equal(d.entries, l.entries) {
		return l, nil
	}
	return k.close(d)
}

// close signs a draft.
func (k *Key) close(d *Draft) (*List, error) {
	d.tidy()
	if len(d.entries) > EntriesMax {
		return nil, fmt.Errorf("%w: %d entries (at most %d); revoke invitations that nobody will use", ErrFull, len(d.entries), EntriesMax)
	}
	id := k.genesis.ID()
	m := &pb.List{Overlay: id[:], Number: d.number}
	for _, e := range d.entries {
		q := &pb.Entry{Peer: []byte(e.Peer), Kind: pb.Kind(e.Kind), Since: e.Since, Note: e.Note, Once: e.Once, UsedBy: []byte(e.UsedBy)}
		if e.Kind == Invitation {
			q.Expires = e.Expires.Unix()
		}
		m.Entries = append(m.Entries, q)
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEntry, err)
	}
	doc, err := proto.MarshalOptions{Deterministic: true}.Marshal(&pb.Document{List: body, Signature: sign(k.private, listDomain, body), Admin: k.admin})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEntry, err)
	}
	return Open(k.genesis, doc)
}

// Draft is a list that is being changed.
type Draft struct {
	number  uint64
	entries []Entry
	now     time.Time
}

// Find returns what the draft says of a peer.
func (d *Draft) Find(p peer.ID) (Entry, bool) {
	if i, ok := find(d.entries, p); ok {
		return d.entries[i], true
	}
	return Entry{}, false
}

func (d *Draft) put(e Entry) error {
	if err := checkPeer(e.Peer); err != nil {
		return err
	}
	if err := CheckNote(e.Note); err != nil {
		return err
	}
	e.Since = d.number
	if i, ok := find(d.entries, e.Peer); ok {
		d.entries[i] = e
	} else {
		d.entries = slices.Insert(d.entries, i, e)
	}
	return nil
}

// Allow makes a peer a member, whatever it was. A member stays as it is, but for a note that is not empty.
func (d *Draft) Allow(p peer.ID, note string) error {
	if e, ok := d.Find(p); ok && e.Kind == Member && (note == "" || note == e.Note) {
		return nil
	}
	return d.put(Entry{Peer: p, Kind: Member, Note: note})
}

// Revoke takes a member or an invitation off. The list remembers that for a while. Errors match [ErrEntry] where the peer is neither.
func (d *Draft) Revoke(p peer.ID) error {
	e, ok := d.Find(p)
	switch {
	case !ok:
		return fmt.Errorf("%w: %s is not on the list, so it is kept out already", ErrEntry, p)
	case e.Kind == Revoked:
		return nil
	}
	return d.put(Entry{Peer: p, Kind: Revoked, Note: e.Note})
}

// Invite lets p enrol a member until a time: one only if once is set. Where it is itself to be the member, it enrols itself. Errors match
// [ErrEntry].
func (d *Draft) Invite(p peer.ID, expires time.Time, once bool, note string) error {
	if e, ok := d.Find(p); ok && e.Kind == Member {
		return fmt.Errorf("%w: %s is a member already", ErrEntry, p)
	}
	if life := expires.Sub(d.now); life <= 0 || life > InvitationLifeMax {
		return fmt.Errorf("%w: an invitation is good for a second to %v", ErrEntry, InvitationLifeMax)
	}
	return d.put(Entry{Peer: p, Kind: Invitation, Expires: time.Unix(expires.Unix(), 0), Once: once, Note: note})
}

// Enrol makes joiner a member by an invitation. Who has been enrolled by it is so again, without a change. Errors match [ErrRefused].
func (d *Draft) Enrol(invitation, joiner peer.ID) error {
	if e, ok := d.Find(joiner); ok && e.Kind == Revoked {
		return fmt.Errorf("%w: %s was revoked", ErrRefused, joiner)
	}
	e, ok := d.Find(invitation)
	switch {
	case ok && e.Kind == Member && invitation == joiner:
		return nil // it was, and its answer was lost
	case !ok || e.Kind != Invitation:
		return fmt.Errorf("%w: this is no invitation any more", ErrRefused)
	case e.UsedBy == joiner:
		return nil
	case e.UsedBy != "":
		return fmt.Errorf("%w: %s", ErrRefused, Used)
	case !d.now.Before(e.Expires):
		return fmt.Errorf("%w: %s", ErrRefused, Expired)
	}
	if invitation == joiner {
		return d.put(Entry{Peer: joiner, Kind: Member, Note: e.Note})
	}
	if m, ok := d.Find(joiner); ok && m.Kind == Invitation {
		return fmt.Errorf("%w: %s is an invitation itself", ErrRefused, joiner)
	}
	if err := d.Allow(joiner, e.Note); err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if e.Once {
		e.UsedBy = joiner
		return d.put(e)
	}
	return nil
}

// tidy forgets invitations long over, and the oldest of too many revoked ones.
func (d *Draft) tidy() {
	d.entries = slices.DeleteFunc(d.entries, func(e Entry) bool { return e.Kind == Invitation && d.now.Sub(e.Expires) > expiredKept })
	var revoked []Entry
	for _, e := range d.entries {
		if e.Kind == Revoked {
			revoked = append(revoked, e)
		}
	}
	if len(revoked) <= RevokedMax {
		return
	}
	slices.SortFunc(revoked, func(a, b Entry) int {
		if a.Since != b.Since {
			if a.Since < b.Since {
				return -1
			}
			return 1
		}
		return strings.Compare(string(a.Peer), string(b.Peer))
	})
	for _, e := range revoked[:len(revoked)-RevokedMax] {
		if i, ok := find(d.entries, e.Peer); ok {
			d.entries = slices.Delete(d.entries, i, i+1)
		}
	}
}
