package dht

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"google.golang.org/protobuf/encoding/protowire"
)

// ProtocolFamily begins the protocol ids of every overlay.
const ProtocolFamily = "/latchkey/"

// ControlProtocol returns the id of an overlay's control protocol, which each of its peers speaks.
func ControlProtocol(overlay [32]byte) protocol.ID {
	return protocol.ID(ProtocolFamily + hex.EncodeToString(overlay[:4]) + "/control/1.0.0")
}

// HelloError says that two peers did not accept each other's hello.
type HelloError struct {
	Peer   peer.ID
	Reason Reason // [ReasonVersion], [ReasonOverlay], [ReasonRefused], or what was wrong with the peer's bytes
	Ours   bool   // the peer refused our hello; otherwise we refuse its
}

func (e *HelloError) Error() string {
	if e.Ours {
		return fmt.Sprintf("dht: %s refused our hello: %s", e.Peer, e.Reason)
	}
	return fmt.Sprintf("dht: hello of %s: %s", e.Peer, e.Reason)
}

// Greet exchanges hellos with p, over a stream that it closes, and tells by a nil error that p is a running peer of the
// overlay. It is for a host that does not run the overlay: one that does would lose its own streams to p, since a hello with
// another session says that they are gone. For the same reason one Greet of a peer ends before the next begins. Errors: [*HelloError], [ErrUnreachable], context.Cause(ctx).
func Greet(ctx context.Context, h host.Host, overlay [32]byte, p peer.ID) error {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	fail := func(err error) error {
		var reset *network.StreamError
		if bad, ok := asBadFrame(err); ok {
			return &HelloError{Peer: p, Reason: bad}
		} else if errors.As(err, &reset) && reset.Remote && reset.ErrorCode == network.StreamGated {
			return &HelloError{Peer: p, Reason: ReasonRefused, Ours: true}
		} else if errors.As(err, &reset) && reset.Remote && reset.ErrorCode == network.StreamProtocolViolation {
			return &HelloError{Peer: p, Reason: ReasonVersion, Ours: true} // the overlay's id is in the protocol's already
		} else if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("%w: %s: %w", ErrUnreachable, p, err)
	}
	s, err := h.NewStream(ctx, p, ControlProtocol(overlay))
	if err != nil {
		return fail(err)
	}
	defer s.Reset() // no effect after Close
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	body, err := encodeHello(overlay, hello{session: newSession()})
	if err != nil {
		return fail(err)
	}
	if _, err := s.Write(append(protowire.AppendVarint(nil, uint64(len(body))), body...)); err != nil {
		return fail(err)
	}
	if body, err = readFrame(bufio.NewReader(s), helloFrameBytesMax, nil); err != nil {
		return fail(err)
	}
	if _, err := decodeHello(body, overlay); err != nil {
		return fail(err)
	}
	return s.Close()
}
