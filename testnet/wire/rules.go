package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Bounds of [Rules].
const (
	// BlockedMax is how many addresses can be blocked.
	BlockedMax = 1024
	// LatencyMax is the longest latency, one way.
	LatencyMax = 10 * time.Second
)

var (
	// ErrRules is matched when rules are refused.
	ErrRules = errors.New("wire: rules")
	// ErrStale is matched when rules are refused because newer ones are in effect.
	ErrStale = errors.New("wire: older rules than those in effect")
	// ErrAddress is matched when an address to dial is none that rules could block: a name, or an address that stands for several.
	ErrAddress = errors.New("wire: address")
)

// Rules say what happens to the connections that a wire's owner dials. Connections that it accepts are the business of the
// wire at their other end, so between two peers one wire acts, and each peer must be known by one listening address. The zero
// value is a perfect network.
type Rules struct {
	// Blocked are the addresses, IP:port, that nothing gets to or comes from. It is silence, not an error: connections stay
	// open, what is under way is held, and dials hang. Once unblocked everything goes on in its order.
	Blocked []string `json:"blocked,omitempty"`
	// Latency is how long everything takes, each way: 0 to [LatencyMax]. A new connection takes a round trip. Throughput is
	// bounded: [LineBytesMax] of each direction can be under way.
	Latency time.Duration `json:"latency_ns,omitempty"`
	// Version orders rules: a wire takes none of a lower version than those it has. Rules for another process may be on their way
	// for long, and arrive after later ones, when that process is stopped.
	Version uint64 `json:"version,string,omitempty"`
}

// Validate reports whether [Wire.SetRules] would take the rules. The error matches [ErrRules].
func (r Rules) Validate() error {
	_, err := r.compile()
	return err
}

// rule is what rules mean for one connection.
type rule struct {
	blocked bool
	latency time.Duration
}

// ruleset is rules in the form they are applied in.
type ruleset struct {
	blocked []netip.AddrPort // sorted
	latency time.Duration
	version uint64
}

func (r Rules) compile() (ruleset, error) {
	s := ruleset{latency: r.Latency, version: r.Version}
	if r.Latency < 0 || r.Latency > LatencyMax {
		return s, fmt.Errorf("%w: latency is %v; it can be 0 to %v", ErrRules, r.Latency, LatencyMax)
	}
	if len(r.Blocked) > BlockedMax {
		return s, fmt.Errorf("%w: %d addresses blocked; %d are the most", ErrRules, len(r.Blocked), BlockedMax)
	}
	for _, a := range r.Blocked {
		ap, err := netip.ParseAddrPort(a)
		if err != nil {
			return s, fmt.Errorf("%w: %q is not IP:port", ErrRules, a)
		}
		s.blocked = append(s.blocked, plainAddress(ap))
	}
	slices.SortFunc(s.blocked, netip.AddrPort.Compare)
	return s, nil
}

// on returns the rule for a connection that was dialled to address.
func (s ruleset) on(address netip.AddrPort) rule {
	_, blocked := slices.BinarySearchFunc(s.blocked, address, netip.AddrPort.Compare)
	return rule{blocked, s.latency}
}

// plainAddress returns the one way in which rules write an address.
func plainAddress(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}
