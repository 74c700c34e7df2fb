package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/lockservice"
	"latchkey/replicagroup/placement"
	"latchkey/testnet"
)

// Parameters of [Join].
const (
	JoinPeersDefault  = 25
	JoinGroupsDefault = 64

	joinUpMax     = 5 * time.Minute        // for the testnet and its groups
	joinSettleMax = 10 * time.Minute       // for the groups, each time
	joinPause     = 500 * time.Millisecond // between two questions to the root
	joinIdle      = 6                      // questions to the root while what idle peers send is measured
	joinQuiet     = 12 * time.Second       // so long nothing has changed: longer than any wait of a testnet's plan but those for peers that fail
)

// JoinOptions configures [Join]. The zero value stands for the defaults.
type JoinOptions struct {
	N        int // peers before the join; 0 is JoinPeersDefault
	Groups   int // that exist then, at least; 0 is JoinGroupsDefault, at most JoinGroupsMax
	Progress func(testnet.Progress)

	quiet time.Duration // in place of joinQuiet, for tests
}

// JoinGroupsMax is how many groups a testnet of the default depth can have.
const JoinGroupsMax = 1 << placement.DepthDefault

// JoinResult is what [Join] found. Its JSON form is part of the command line's contract.
type JoinResult struct {
	Bench        string  `json:"bench"`
	Operation    string  `json:"operation"`
	Peers        int     `json:"peers"` // before
	Groups       int     `json:"groups"`
	Touched      int     `json:"groups_touched"`    // whose members changed
	Gained       int     `json:"replicas_gained"`   // that the newcomer runs at the end, of groups without the root
	Views        uint64  `json:"views"`             // that those groups went through
	Bytes        uint64  `json:"bytes"`             // that the newcomer received and sent until the last of those views, heartbeats included
	BytesTouched float64 `json:"bytes_per_touched"` // 0 when none was touched
	Messages     uint64  `json:"messages"`          // likewise
	SettledS     float64 `json:"settled_after_s"`   // from the join to the last change
	IdleBytesS   float64 `json:"idle_bytes_per_s"`  // sent by all peers together before the join
	Load         float64 `json:"load"`              // average of the last minute, at the end; -1 where the system does not tell
}

// Text writes the result for people, in columns separated by tabs.
func (r *JoinResult) Text(w io.Writer) {
	fmt.Fprintf(w, "%s\t%s\n", r.Bench, r.Operation)
	fmt.Fprintf(w, "groups touched\t%d of %d, in %d views; the newcomer has %d replicas\n", r.Touched, r.Groups, r.Views, r.Gained)
	fmt.Fprintf(w, "moved\t%d bytes in %d messages to and from the newcomer, %.0f bytes a group touched\n", r.Bytes, r.Messages, r.BytesTouched)
	fmt.Fprintf(w, "settled\t%.1f s after the join\n", r.SettledS)
	fmt.Fprintf(w, "idle\t%.0f bytes a second, sent by all peers together before the join\n", r.IdleBytesS)
	fmt.Fprintf(w, "load average\t%.2f\n", r.Load)
}

// Join measures what a peer that joins a testnet moves: the groups that take it in, and the bytes sent until they have.
func Join(ctx context.Context, o JoinOptions) (_ *JoinResult, err error) {
	o.N, o.Groups = cmp.Or(o.N, JoinPeersDefault), cmp.Or(o.Groups, JoinGroupsDefault)
	o.quiet = cmp.Or(o.quiet, joinQuiet)
	if o.Groups < 0 || o.Groups > JoinGroupsMax {
		return nil, fmt.Errorf("bench: %d groups: between 1 and %d", o.Groups, JoinGroupsMax)
	}
	up, cancel := context.WithTimeoutCause(ctx, joinUpMax, fmt.Errorf("bench: the testnet and its groups are not up after %v", joinUpMax))
	defer cancel()
	n, err := testnet.Up(up, testnet.Options{N: o.N, Progress: o.Progress})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	asked, err := n.Peer(0)
	if err != nil {
		return nil, err
	}
	if err := makeGroups(up, asked, o.Groups); err != nil {
		return nil, fmt.Errorf("bench: groups to begin with: %w", err)
	}
	before, _, err := settledViews(ctx, asked, o.quiet, nil, func() {})
	if err != nil {
		return nil, err
	}
	start, idle := time.Now(), traffic(n)
	for range joinIdle { // with the questions that are asked later, too
		if _, err := asked.Node().Groups().Children(ctx); err != nil {
			return nil, err
		}
		if err := wait(ctx, joinPause); err != nil {
			return nil, err
		}
	}
	began := traffic(n)
	idleS := float64(began.bytes-idle.bytes) / time.Since(start).Seconds()

	start = time.Now()
	i, err := n.Join(ctx)
	if err != nil {
		return nil, err
	}
	newcomer, err := n.Peer(i)
	if err != nil {
		return nil, err
	}
	var moved sent
	after, last, err := settledViews(ctx, asked, o.quiet, before, func() {
		st := newcomer.Node().Overlay().Stats()
		moved = sent{
			bytes:    st.BytesSent + st.BytesReceived + st.RawSent + st.RawReceived,
			messages: st.MessagesSent + st.MessagesReceived,
		}
	})
	if err != nil {
		return nil, err
	}
	r := &JoinResult{
		Bench: "join", Operation: fmt.Sprintf("one peer joins %d, who keep %d groups", o.N, len(before)),
		Peers: o.N, Groups: len(before), SettledS: max(last.Sub(start), 0).Seconds(), IdleBytesS: idleS,
		Bytes: moved.bytes, Messages: moved.messages,
	}
	for p, v := range before {
		if after[p] > v {
			r.Touched++
			r.Views += after[p] - v
		}
	}
	if r.Touched > 0 {
		r.BytesTouched = float64(r.Bytes) / float64(r.Touched)
	}
	all, err := newcomer.Node().Groups().Status(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range all {
		if s.Group.Prefix.Len > 0 {
			r.Gained++
		}
	}
	r.Load = loadAverage()
	return r, nil
}

// makeGroups takes locks, and gives them back, until there are so many groups.
func makeGroups(ctx context.Context, p *testnet.Peer, n int) error {
	prefixes := make(map[keyspace.Prefix]bool)
	for i := 0; len(prefixes) < n; i++ {
		name := fmt.Sprint("bench ", i)
		prefix := p.Node().Genesis().PrefixOf(keyspace.Preimage(name).Key())
		if prefixes[prefix] {
			continue
		}
		h, err := p.Node().Locks().Lock(ctx, name, lockservice.WithTTL(testnet.TTLMax))
		if err != nil {
			return err
		}
		if err := h.Release(ctx); err != nil {
			return err
		}
		prefixes[prefix] = true
	}
	return nil
}

// settledViews waits until the groups' views have not changed for so long, as the root knows them, and returns them and when the last
// change was seen, with each of which it calls changed. views are those that were known before, if any.
func settledViews(ctx context.Context, p *testnet.Peer, quiet time.Duration, known map[keyspace.Prefix]uint64, changed func()) (views map[keyspace.Prefix]uint64, last time.Time, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, joinSettleMax, fmt.Errorf("bench: the groups go on changing after %v", joinSettleMax))
	defer cancel()
	views = known
	for last = time.Now(); views == nil || time.Since(last) < quiet; {
		children, err := p.Node().Groups().Children(ctx)
		if err != nil {
			return nil, last, err
		}
		now, other := make(map[keyspace.Prefix]uint64), false
		for _, c := range children {
			now[c.Prefix] = c.View
			other = other || views != nil && views[c.Prefix] != c.View
		}
		if views = now; other {
			last = time.Now()
			changed()
		}
		if err := wait(ctx, joinPause); err != nil {
			return nil, last, err
		}
	}
	return views, last, nil
}

// sent is what all peers have sent.
type sent struct{ bytes, messages uint64 }

func traffic(n *testnet.Network) (s sent) {
	for i := range n.N() {
		if p, err := n.Peer(i); err == nil {
			st := p.Node().Overlay().Stats()
			s.bytes += st.BytesSent + st.RawSent
			s.messages += st.MessagesSent
		}
	}
	return s
}
