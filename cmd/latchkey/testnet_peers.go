package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"latchkey/testnet"
)

// numberMax bounds the numbers that are read, so that a range of them is never long.
const numberMax = 9999

// peerNumber reads the number of a peer.
func peerNumber(s string) (int, error) {
	i, err := strconv.ParseUint(s, 10, 16)
	if err != nil || i > numberMax {
		return 0, usagef("testnet: %q is no peer; they are numbered from 0 (see latchkey testnet ls)", s)
	}
	return int(i), nil
}

// peerList reads "2", "0-4", "0,2,5" or, as other tools have it, "[0-4]". The numbers come in the order given, each once.
func peerList(s string) ([]int, error) {
	bare := s
	if inner, ok := strings.CutPrefix(s, "["); ok && strings.HasSuffix(inner, "]") {
		bare = inner[:len(inner)-1]
	}
	var list []int
	for part := range strings.SplitSeq(bare, ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		first, err1 := peerNumber(from)
		last, err2 := peerNumber(to)
		if err1 != nil || err2 != nil || first > last {
			return nil, usagef("testnet: %q is no peer or list of peers; write 2, 0-4 or 0,2,5 (see latchkey testnet ls)", s)
		}
		for i := first; i <= last; i++ {
			if !slices.Contains(list, i) {
				list = append(list, i)
			}
		}
	}
	return list, nil
}

// peerSides reads a partition: lists of peers with slashes between them.
func peerSides(s string) ([][]int, error) {
	var sides [][]int
	on := map[int]bool{}
	for part := range strings.SplitSeq(s, "/") {
		if part == "" {
			return nil, usagef("testnet partition: %q has an empty side; write the peers of each, like 0,1/2-6", s)
		}
		side, err := peerList(part)
		if err != nil {
			return nil, err
		}
		for _, i := range side {
			if on[i] {
				return nil, usagef("testnet partition: peer %d is on two sides of %q", i, s)
			}
			on[i] = true
		}
		sides = append(sides, side)
	}
	return sides, nil
}

// sidesText writes sides as peerSides reads them.
func sidesText(sides [][]int) string {
	var parts []string
	for _, side := range sides {
		parts = append(parts, strings.ReplaceAll(strings.Trim(fmt.Sprint(side), "[]"), " ", ","))
	}
	return strings.Join(parts, "/")
}

// pick returns the peers of a list, all of which must answer; without a list, those that do.
func pick(ctx context.Context, r *testnet.Remote, list []int) ([]testnet.PeerStatus, error) {
	st, err := r.Status(ctx)
	if err != nil {
		return nil, err
	}
	if list == nil {
		up := slices.DeleteFunc(st.Peers, func(p testnet.PeerStatus) bool { return !p.Up || p.Paused })
		if len(up) == 0 {
			return nil, exitf(exitUnreachable, "testnet: no peer is up; bring one back with: latchkey testnet restart N")
		}
		return up, nil
	}
	if err := known(st, list); err != nil {
		return nil, err
	}
	var peers []testnet.PeerStatus
	for _, i := range list {
		switch p := st.Peers[i]; {
		case p.Paused:
			return nil, exitf(exitUnreachable, "testnet: peer %d is paused; let it go on with: latchkey testnet resume %d", p.N, p.N)
		case !p.Up && p.PID != 0:
			return nil, exitf(exitUnreachable, "testnet: peer %d is still starting", p.N)
		case p.Left:
			return nil, exitf(exitUnreachable, "testnet: peer %d has left; let it come again with: latchkey testnet restart %d", p.N, p.N)
		case !p.Up:
			return nil, exitf(exitUnreachable, "testnet: peer %d is down; bring it back with: latchkey testnet restart %d", p.N, p.N)
		default:
			peers = append(peers, p)
		}
	}
	return peers, nil
}

// known returns [testnet.ErrNoPeer] when the testnet has not all peers of a list.
func known(st testnet.Status, list []int) error {
	for _, i := range list {
		if i >= len(st.Peers) {
			return fmt.Errorf("%w: %d; the peers are 0 to %d", testnet.ErrNoPeer, i, len(st.Peers)-1)
		}
	}
	return nil
}
