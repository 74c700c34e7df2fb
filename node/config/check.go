package config

import (
	"fmt"
	"slices"

	ma "github.com/multiformats/go-multiaddr"
)

// among makes the check of a field that has one of these values.
func among[S ~string](values []S) func(any) error {
	return func(v any) error {
		if !slices.Contains(values, S(v.(string))) {
			return fmt.Errorf("want %s", oneOf(values))
		}
		return nil
	}
}

// within makes the check of a number.
func within(low, high int) func(any) error {
	return func(v any) error {
		if n := v.(int); n < low || n > high {
			return fmt.Errorf("want %d to %d", low, high)
		}
		return nil
	}
}

// listCheck makes the check of a list with low to high entries.
func listCheck(low, high int, entry func(ma.Multiaddr) error) func(any) error {
	return func(v any) error {
		list := v.([]string)
		if len(list) < low || len(list) > high {
			return fmt.Errorf("%d entries; want %d to %d", len(list), low, high)
		}
		for _, s := range list {
			if len(s) > addrBytesMax {
				return fmt.Errorf("%s: longer than %d bytes", excerpt(s), addrBytesMax)
			}
			a, err := ma.NewMultiaddr(s)
			if err != nil {
				return fmt.Errorf("%s: want a multiaddr like /ip4/192.0.2.1/tcp/4701: %v", excerpt(s), err)
			}
			if err := entry(a); err != nil {
				return fmt.Errorf("%s: %v", excerpt(s), err)
			}
		}
		return nil
	}
}

func checkAddr(a ma.Multiaddr) error { return nil }

func checkListen(a ma.Multiaddr) error { return nil }

func checkBootstrap(a ma.Multiaddr) error { return nil }

// Validate says what is wrong with the configuration of a peer: a value out of its range, or values that do not go together.
// private tells whether the peer has a swarm key. Errors match [ErrInvalid].
func (c Config) Validate(private bool) error { return Loaded{Config: c}.Validate(private) }
