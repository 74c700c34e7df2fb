package allowlist

import (
	"fmt"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/node/allowlist/pb"
	"latchkey/replicagroup/placement"
)

// EnrolBytesMax bounds a request to be enrolled.
const EnrolBytesMax = 4 << 10

// EnrolRequest returns what a peer sends to be put on the list by an invitation. key is the peer's own.
func EnrolRequest(g placement.Genesis, key crypto.PrivKey, invitation peer.ID) (*pb.EnrolRequest, error) {
	p, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	signature, err := key.Sign(enrolment(g, invitation))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return &pb.EnrolRequest{Peer: []byte(p), Signature: signature}, nil
}

// CheckEnrolRequest returns who asks to be put on the list by an invitation, having checked that it has that peer's key. Errors match
// [ErrRefused].
func CheckEnrolRequest(g placement.Genesis, invitation peer.ID, m *pb.EnrolRequest) (peer.ID, error) {
	p := peer.ID(m.Peer)
	if err := checkPeer(p); err != nil {
		return "", fmt.Errorf("%w: %w", ErrRefused, err)
	}
	key, err := p.ExtractPublicKey()
	if err != nil {
		return "", fmt.Errorf("%w: the peer id does not hold its key: use an Ed25519 identity", ErrRefused)
	}
	if ok, err := key.Verify(enrolment(g, invitation), m.Signature); err != nil || !ok {
		return "", fmt.Errorf("%w: who asks has not the key of %s", ErrRefused, p)
	}
	return p, nil
}

func enrolment(g placement.Genesis, invitation peer.ID) []byte {
	id := g.ID()
	return append(append([]byte(enrolDomain), id[:]...), invitation...)
}
