package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"

	"latchkey/dht"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/placement"
)

// Verdicts of [Diagnose], from the one that says least to the one that says most. All but the first are definite: trying again
// without changing anything ends the same.
var (
	// ErrUnreachable: nobody answered, or not in time.
	ErrUnreachable = errors.New("node: peer not reachable")
	// ErrNotLatchkey: something answers, and it is no latchkey peer.
	ErrNotLatchkey = errors.New("node: not a latchkey peer")
	// ErrOtherPeer: a libp2p peer answers, and it is not the one that was expected.
	ErrOtherPeer = errors.New("node: another peer answers")
	// ErrSwarmKey: a libp2p peer answers, and one of us has no swarm key, or each another one.
	ErrSwarmKey = errors.New("node: swarm key does not fit")
	// ErrOtherOverlay: the peer belongs to another overlay.
	ErrOtherOverlay = errors.New("node: peer of another overlay")
	// ErrVersion: the peer is of our overlay, and no version of the protocol is known to both.
	ErrVersion = errors.New("node: peer of another version")
	// ErrRefused: the peer is of our overlay and does not let us in.
	ErrRefused = errors.New("node: peer refuses us")
)

// verdicts lists them in that order.
var verdicts = []error{ErrUnreachable, ErrNotLatchkey, ErrOtherPeer, ErrSwarmKey, ErrOtherOverlay, ErrVersion, ErrRefused}

// tells says how much a verdict tells.
func tells(verdict error) int {
	return slices.IndexFunc(verdicts, func(v error) bool { return errors.Is(verdict, v) })
}

// Times of a diagnosis.
const (
	// diagnoseMax bounds one, whatever ctx says.
	diagnoseMax = 10 * time.Second
	// announceMax is how long a connected peer may take to say by itself that it speaks our protocol: a daemon that is starting opens
	// its port first. Then it is asked.
	announceMax  = 2 * time.Second
	announcePoll = 10 * time.Millisecond
	// askAgain is the time between two questions to one that has begun to.
	askAgain = 250 * time.Millisecond
	// lookAfter is how long a dial may take before we look at what answers meanwhile: under two swarm keys the ends often wait
	// for each other until their time is up.
	lookAfter = 400 * time.Millisecond
	// meetingsMax is how often a peer may hang up before it has said what it speaks.
	meetingsMax = 3
)

// Diagnose tells whether p is a running peer of the overlay that g founds, and why not if it is not: nil, or an error that
// matches one of the verdicts, reads as one line and names address and peer. psk is the overlay's swarm key, nil for a public
// one; h must have been made with the same. Where p answers but libp2p cannot say why the two do not understand each other,
// it looks at the first bytes that p sends over TCP. It blocks until it knows, at most until ctx ends or for ten seconds.
//
// A host that runs the overlay itself need not be in it yet; it then takes p's word, and exchanges no hello of its own.
func Diagnose(ctx context.Context, h host.Host, g placement.Genesis, psk pnet.PSK, p peer.AddrInfo) error {
	return diagnose(ctx, h, g, psk, p, true)
}

// diagnose does what Diagnose does. Without greets it takes the peer's word: h is one that is not to be greeted yet.
func diagnose(ctx context.Context, h host.Host, g placement.Genesis, psk pnet.PSK, p peer.AddrInfo, greets bool) error {
	if len(p.Addrs) == 0 {
		return fmt.Errorf("%w: no address of %s is known", ErrUnreachable, p.ID)
	}
	ctx, cancel := context.WithTimeout(ctx, diagnoseMax)
	defer cancel()
	d := diagnosis{host: h, overlay: g.ID(), psk: psk, peer: p, greets: greets}
	// A third of the time is kept for a look at what answers.
	end, _ := ctx.Deadline()
	dial, stop := context.WithDeadline(ctx, end.Add(-time.Until(end)/3))
	defer stop()
	conns := watchConns(h, p.ID)
	defer conns.stop()
	for range meetingsMax {
		if s, ok := h.Network().(*swarm.Swarm); ok {
			s.Backoff().Clear(p.ID) // it would make us repeat the last failure without trying
		}
		if verdict := d.connect(ctx, dial); verdict != nil {
			return verdict
		}
		protocols := d.announced(ctx)
		if why, at, told := conns.toldWhy(ctx); told {
			return fmt.Errorf("%w: %s at %s: %s", ErrRefused, p.ID, at, why)
		}
		if len(protocols) > 0 {
			return d.met(ctx, protocols)
		}
		if h.Network().Connectedness(p.ID) == network.Connected {
			return fmt.Errorf("%w: %s at %s is connected and does not say what it speaks", ErrUnreachable, p.ID, p.Addrs[0])
		}
	}
	return fmt.Errorf("%w: %s at %s hangs up before it says what it speaks", ErrUnreachable, p.ID, p.Addrs[0])
}

// watchedConns are the connections with a peer since somebody began to look.
type watchedConns struct {
	host   host.Host
	peer   peer.ID
	notify *network.NotifyBundle

	mu    sync.Mutex
	conns []network.Conn
}

func watchConns(h host.Host, p peer.ID) *watchedConns {
	w := &watchedConns{host: h, peer: p}
	w.notify = &network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) {
		if c.RemotePeer() == p {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.conns = append(w.conns, c)
		}
	}}
	h.Network().Notify(w.notify)
	return w
}

func (w *watchedConns) stop() { w.host.Network().StopNotify(w.notify) }

// toldWhy returns why the peer has ended one of the connections, if it said so and none goes on.
func (w *watchedConns) toldWhy(ctx context.Context) (why string, at ma.Multiaddr, told bool) {
	if w.host.Network().Connectedness(w.peer) == network.Connected {
		return "", nil, false
	}
	w.mu.Lock()
	conns := slices.Clone(w.conns)
	w.mu.Unlock()
	for _, c := range conns {
		if why, told := toldWhy(ctx, c); told {
			return why, c.RemoteMultiaddr(), true
		}
	}
	return "", nil, false
}

type diagnosis struct {
	host    host.Host
	overlay order.OverlayID
	psk     pnet.PSK
	peer    peer.AddrInfo
	greets  bool
}

// connect dials the peer until dial ends, and judges it if that fails.
func (d *diagnosis) connect(ctx, dial context.Context) error {
	dial, stop := context.WithCancel(dial)
	defer stop()
	dialled := make(chan error, 1)
	go func() { dialled <- d.host.Connect(dial, d.peer) }()
	early := time.NewTimer(lookAfter)
	defer early.Stop()
	select {
	case err := <-dialled:
		return d.unmet(ctx, err)
	case <-early.C:
	}
	verdicts := d.look(ctx, nil)
	if !slices.ContainsFunc(verdicts, func(v error) bool { return errors.Is(v, ErrUnreachable) }) {
		stop() // nothing can come of it
		if err := <-dialled; err == nil {
			return nil
		}
		return most(verdicts)
	}
	return d.unmet(ctx, <-dialled)
}

// announced waits until the connected peer has said that it speaks our control protocol, or for long enough, and returns what
// it speaks. Before the verdict it is asked, as [strangers] do: what libp2p takes for its last word need not be that. One that speaks
// other protocols of our overlay, and control of no version, is starting: it has as long as the diagnosis.
func (d *diagnosis) announced(ctx context.Context) []protocol.ID {
	control := dht.ControlProtocol(d.overlay)
	poll := time.NewTicker(announcePoll)
	defer poll.Stop()
	for asking := time.Now().Add(announceMax); ; {
		protocols, err := d.host.Peerstore().GetProtocols(d.peer.ID)
		switch {
		case err == nil && slices.Contains(protocols, control),
			d.host.Network().Connectedness(d.peer.ID) != network.Connected:
			return protocols
		case time.Now().After(asking):
			if agrees(ctx, d.host, d.peer.ID, control) {
				return append(protocols, control)
			}
			if !d.starting(protocols) {
				return protocols
			}
			asking = time.Now().Add(askAgain)
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return protocols
		}
	}
}

// starting reports whether a peer that speaks these protocols has begun to open those of our overlay: control is among the last ones.
func (d *diagnosis) starting(speaks []protocol.ID) bool {
	ours := strings.TrimSuffix(string(dht.ControlProtocol(d.overlay)), "control/1.0.0")
	of := func(prefix string) bool {
		return slices.ContainsFunc(speaks, func(p protocol.ID) bool { return strings.HasPrefix(string(p), prefix) })
	}
	return of(ours) && !of(ours+"control/")
}

// met judges a peer we have been connected to by what it speaks.
func (d *diagnosis) met(ctx context.Context, speaks []protocol.ID) error {
	at := d.peer.Addrs[0]
	for _, c := range d.host.Network().ConnsToPeer(d.peer.ID) {
		at = c.RemoteMultiaddr()
	}
	control := dht.ControlProtocol(d.overlay)
	if !slices.Contains(speaks, control) {
		return d.stranger(at, speaks)
	}
	if !d.greets || slices.Contains(d.host.Mux().Protocols(), control) {
		return nil
	}
	err := dht.Greet(ctx, d.host, d.overlay, d.peer.ID)
	var hello *dht.HelloError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &hello):
		return fmt.Errorf("%w: %s at %s speaks latchkey and does not answer: %v", ErrUnreachable, d.peer.ID, at, err)
	case hello.Reason == dht.ReasonRefused:
		return fmt.Errorf("%w: %s at %s: %s", ErrRefused, d.peer.ID, at, gated[gatedUnlisted])
	case hello.Reason == dht.ReasonOverlay:
		return fmt.Errorf("%w: %s at %s is in one whose id only begins like ours, %v", ErrOtherOverlay, d.peer.ID, at, d.overlay)
	}
	return fmt.Errorf("%w: %s at %s does not understand our hello, or we not its; run the same latchkey on both", ErrVersion, d.peer.ID, at)
}

// stranger judges a peer that does not speak our control protocol.
func (d *diagnosis) stranger(at ma.Multiaddr, speaks []protocol.ID) error {
	if d.starting(speaks) {
		return fmt.Errorf("%w: %s at %s is starting, and does not answer yet; try again in a moment", ErrUnreachable, d.peer.ID, at)
	}
	ours := strings.TrimPrefix(string(dht.ControlProtocol(d.overlay)), dht.ProtocolFamily)
	ours, _, _ = strings.Cut(ours, "/")
	var theirs []string
	for _, p := range speaks {
		rest, ok := strings.CutPrefix(string(p), dht.ProtocolFamily)
		id, _, more := strings.Cut(rest, "/")
		switch {
		case !ok || !more:
		case id == ours:
			return fmt.Errorf("%w: %s at %s speaks %.100q and not %s; run the same latchkey on both", ErrVersion, d.peer.ID, at, p, dht.ControlProtocol(d.overlay))
		case len(id) == len(ours) && isHex(id) && !slices.Contains(theirs, id):
			theirs = append(theirs, id)
		}
	}
	if len(theirs) == 0 {
		return fmt.Errorf("%w: %s at %s is a libp2p peer that speaks no latchkey", ErrNotLatchkey, d.peer.ID, at)
	}
	slices.Sort(theirs)
	theirs = theirs[:min(len(theirs), 3)]
	return fmt.Errorf("%w: %s at %s is in overlay %s…, we are in %s…", ErrOtherOverlay, d.peer.ID, at, strings.Join(theirs, "…, "), ours)
}

// isHex reports whether s may be the begin of an overlay's id.
func isHex(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune("0123456789abcdef", r) })
}

// unmet judges a peer that we could not connect to because of err, if that is not nil: the address that tells most decides.
func (d *diagnosis) unmet(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	causes := make(map[string]error)
	var dialled *swarm.DialError
	if errors.As(err, &dialled) {
		for _, e := range dialled.DialErrors {
			causes[e.Address.String()] = e.Cause
		}
	}
	verdict := most(d.look(ctx, causes))
	if n := len(d.peer.Addrs) - 1; n > 0 && errors.Is(verdict, ErrUnreachable) {
		return fmt.Errorf("%w (other addresses that failed too: %d)", verdict, n)
	}
	return verdict
}

// most returns the verdict that tells most.
func most(verdicts []error) error {
	return slices.MaxFunc(verdicts, func(a, b error) int { return tells(a) - tells(b) })
}

// look judges every address of a peer we are not connected to. causes are why dialling failed, by address.
func (d *diagnosis) look(ctx context.Context, causes map[string]error) []error {
	verdicts := make([]error, len(d.peer.Addrs))
	var looks sync.WaitGroup
	for i, a := range d.peer.Addrs {
		looks.Go(func() { verdicts[i] = d.unmetAt(ctx, a, causes[a.String()]) })
	}
	looks.Wait()
	return verdicts
}

// unmetAt judges one address. cause is why it failed; nil when it was not tried to its end.
func (d *diagnosis) unmetAt(ctx context.Context, at ma.Multiaddr, cause error) error {
	unreachable := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s at %s: %s", ErrUnreachable, d.peer.ID, at, fmt.Sprintf(format, args...))
	}
	var mismatch sec.ErrPeerIDMismatch
	var op *net.OpError
	switch {
	case errors.As(cause, &mismatch):
		return fmt.Errorf("%w: at %s is %s where %s was expected", ErrOtherPeer, at, mismatch.Actual, d.peer.ID)
	case errors.As(cause, &op) && op.Op == "dial":
		return unreachable("%s", plainly(cause))
	case errors.Is(cause, swarm.ErrNoTransport):
		return unreachable("we have no transport for it")
	}
	switch a, err := lookAt(ctx, at, d.psk); {
	case errors.Is(err, errNoLook) && cause != nil:
		return unreachable("%s", plainly(cause))
	case errors.Is(err, errNoLook):
		return unreachable("no answer in time")
	case err != nil:
		return unreachable("%s", plainly(err))
	case a == silent:
		return unreachable("it takes connections and says nothing")
	case a == hangsUp:
		return unreachable("it takes connections and ends them at once")
	case a == foreign:
		return fmt.Errorf("%w: what answers at %s does not speak libp2p", ErrNotLatchkey, at)
	case a == open && d.psk != nil:
		return fmt.Errorf("%w: what answers at %s uses no swarm key, and our overlay has one", ErrSwarmKey, at)
	case (a == keyed || a == perhaps) && d.psk == nil:
		return fmt.Errorf("%w: what answers at %s asks for a swarm key, and we have none", ErrSwarmKey, at)
	case a == keyed, a == perhaps && cause != nil && !errors.Is(cause, os.ErrDeadlineExceeded) && !errors.Is(cause, context.DeadlineExceeded):
		return fmt.Errorf("%w: what answers at %s uses another one than ours", ErrSwarmKey, at)
	case cause != nil:
		return unreachable("it answers and did not get to say who it is: %s", plainly(cause))
	}
	return unreachable("it answers and did not get to say who it is in time")
}

// plainly says why something failed without what the reader knows from the line already.
func plainly(err error) string {
	var op *net.OpError
	var call *os.SyscallError
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "no answer in time"
	case errors.As(err, &call):
		return call.Err.Error()
	case errors.As(err, &op):
		return plainly(op.Err)
	}
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}
