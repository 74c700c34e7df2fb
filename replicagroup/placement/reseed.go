package placement

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"

	"latchkey/replicagroup/order"
)

// OverlayGenMax is the last generation of an overlay: a token has eight bits for it. One whose root would need another one cannot be
// given a new root.
const OverlayGenMax = 1<<8 - 1

// ReseedBytesMax bounds an encoded reseed document.
const ReseedBytesMax = 1 + 32 + 1 + sha256.Size + 1 + MembersMax*(1+PeerIDBytesMax+1+AddrsMax*(1+AddrBytesMax)+16) + ed25519.SignatureSize

// Version 2 names the state to begin with; a document without one is written as version 1.
const (
	reseedVersion      = 1
	reseedVersionState = 2
)

// reseedDomain keeps a signature of a reseed document from being one of anything else.
const reseedDomain = "latchkey reseed document\x00"

// ErrReseed is matched by every error about a reseed document that is not to be believed, or cannot be made.
var ErrReseed = errors.New("placement: reseed document")

// Reseed names a new root for an overlay whose root group is lost for good (replica-groups.md section 6.5). It counts only with
// the signature of the overlay's root key, which [Genesis.RootKey] verifies, and only where its generation is larger than any known.
type Reseed struct {
	Overlay    order.OverlayID
	OverlayGen uint8  // above zero; one more than the last
	Founders   []Host // the new root's voters, an odd number, at most 2F+1; replica i+1 is Founders[i]
	// State is the SHA-256 of the snapshot of a directory of the former root, with which the new one begins ([Inherit]); zero: with none.
	State [sha256.Size]byte
}

// RootGroup returns the id of the new root group.
func (r Reseed) RootGroup() order.GroupID {
	return order.GroupID{Overlay: r.Overlay, Gen: uint64(r.OverlayGen) << 32}
}

// RootDescriptor returns the new root's descriptor as the document knows it.
func (r Reseed) RootDescriptor() Descriptor { return describe(r.RootGroup(), r.Founders) }

// Inherits reports whether the new root begins with what is left of the former one's state.
func (r Reseed) Inherits() bool { return r.State != [sha256.Size]byte{} }

func (r Reseed) check(g Genesis) error {
	switch {
	case r.Overlay != g.ID():
		return fmt.Errorf("%w: it is of overlay %v, and this is %v", ErrReseed, r.Overlay, g.ID())
	case r.OverlayGen == 0:
		return fmt.Errorf("%w: generation 0 is that of the genesis document", ErrReseed)
	}
	if err := checkHosts(r.Founders, g.F); err != nil {
		return fmt.Errorf("%w: founders: %v", ErrReseed, err)
	}
	return nil
}

func (r Reseed) body() []byte {
	b := append([]byte{reseedVersion}, r.Overlay[:]...)
	if b = append(b, r.OverlayGen); r.Inherits() {
		b[0] = reseedVersionState
		b = append(b, r.State[:]...)
	}
	return appendHosts(b, r.Founders)
}

// Propose returns the document without a signature, for whoever has the key. It counts for nothing. Errors match [ErrReseed].
func (r Reseed) Propose(g Genesis) ([]byte, error) {
	if err := r.check(g); err != nil {
		return nil, err
	}
	return r.body(), nil
}

// DecodeProposal reads what [Reseed.Propose] wrote. Errors match [ErrMalformed], and [ErrReseed] where it is of another overlay.
func DecodeProposal(g Genesis, b []byte) (Reseed, error) {
	if len(b) > ReseedBytesMax {
		return Reseed{}, fmt.Errorf("%w: reseed document of %d bytes (at most %d)", ErrMalformed, len(b), ReseedBytesMax)
	}
	r := reader{b: b}
	version := r.u8()
	if r.err == nil && version != reseedVersion && version != reseedVersionState {
		r.fail("reseed document of version %d, this program reads %d and %d", version, reseedVersion, reseedVersionState)
	}
	var doc Reseed
	r.fixed(doc.Overlay[:])
	doc.OverlayGen = r.u8()
	if version == reseedVersionState {
		if r.fixed(doc.State[:]); r.err == nil && !doc.Inherits() {
			r.fail("a state that is none written out")
		}
	}
	doc.Founders = r.hosts()
	if err := r.end(); err != nil {
		return Reseed{}, err
	}
	return doc, doc.check(g)
}

// Sign returns the document with the signature of the overlay's root key. A key that is not the overlay's, like every other error,
// matches [ErrReseed].
func (r Reseed) Sign(g Genesis, key ed25519.PrivateKey) ([]byte, error) {
	if err := r.check(g); err != nil {
		return nil, err
	}
	if len(key) != ed25519.PrivateKeySize || !bytes.Equal(key.Public().(ed25519.PublicKey), g.RootKey) {
		return nil, fmt.Errorf("%w: this is not the root key of overlay %v", ErrReseed, r.Overlay)
	}
	b := r.body()
	return append(b, ed25519.Sign(key, append([]byte(reseedDomain), b...))...), nil
}

// OpenReseed reads a document that [Reseed.Sign] made and verifies it. Errors match [ErrMalformed] where it cannot be read, and
// [ErrReseed] where it is of another overlay or not signed by its root key.
func OpenReseed(g Genesis, b []byte) (Reseed, error) {
	if len(b) > ReseedBytesMax || len(b) < ed25519.SignatureSize {
		return Reseed{}, fmt.Errorf("%w: reseed document of %d bytes (%d to %d)", ErrMalformed, len(b), ed25519.SignatureSize, ReseedBytesMax)
	}
	body, signature := b[:len(b)-ed25519.SignatureSize], b[len(b)-ed25519.SignatureSize:]
	doc, err := DecodeProposal(g, body)
	if err != nil {
		return Reseed{}, err
	}
	if !ed25519.Verify(g.RootKey, append([]byte(reseedDomain), body...), signature) {
		return Reseed{}, fmt.Errorf("%w: it is not signed by the root key of overlay %v", ErrReseed, doc.Overlay)
	}
	return doc, nil
}
