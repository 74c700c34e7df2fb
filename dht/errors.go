package dht

import (
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"
)

var (
	// ErrClosed is matched when the overlay has been closed or was never started.
	ErrClosed = errors.New("dht: overlay not running")
	// ErrOption is matched by errors of [New] about an option.
	ErrOption = errors.New("dht: bad option")
	// ErrOutboxFull is matched when too much waits to be sent to that peer, or too many calls to it await their answer. The
	// message was not taken.
	ErrOutboxFull = errors.New("dht: outbox full")
	// ErrTooLarge is matched when a message exceeds [MessageBytesMax]. It was not taken.
	ErrTooLarge = errors.New("dht: message too large")
	// ErrService is matched when a service's name is empty, too long or not UTF-8.
	ErrService = errors.New("dht: bad service name")
	// ErrUnreachable is matched when no stream to the peer could be opened, or the peer or we refused the other's hello. The
	// message was not sent.
	ErrUnreachable = errors.New("dht: peer unreachable")
	// ErrLinkLost is matched when the stream to the peer was lost before the answer came. The peer may have served the request.
	ErrLinkLost = errors.New("dht: link lost")
	// ErrSuspected is matched when the peer fell silent before the answer came, or was silent already ([Overlay.OnSuspect]). It
	// may have served the request.
	ErrSuspected = errors.New("dht: peer suspected")
	// ErrTimeout is matched when a call of [Overlay.Go] had no answer in time. The peer may have served the request.
	ErrTimeout = errors.New("dht: no answer in time")
	// ErrLookup is matched when a look-up failed.
	ErrLookup = errors.New("dht: look-up failed")
	// ErrUnknownService is matched when the peer has no such service.
	ErrUnknownService = errors.New("dht: unknown service")
	// ErrBusy is matched when the peer has too many of our requests in service. This one was not served.
	ErrBusy = errors.New("dht: peer busy")
)

// RemoteError is the answer of a service that failed a request ([Request.Fail]).
type RemoteError struct {
	Peer    peer.ID
	Service string
	Text    string
}

func (e *RemoteError) Error() string {
	return fmt.Sprintf("dht: service %s at %s: %s", e.Service, e.Peer, e.Text)
}
