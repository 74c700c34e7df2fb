package node

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"latchkey/coherence"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

// mute answers nothing that it is not asked to know.
type mute struct{ anew *coherence.Anew }

func (m mute) Anew(ctx context.Context, _ string) (*coherence.Anew, error) {
	if m.anew == nil {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return m.anew, nil
}

func (m mute) PeerOf(ctx context.Context, _ string, _ keyspace.NodeID) (string, bool) {
	<-ctx.Done()
	return "", false
}

// TestAReasonThatNobodyTellsTakesNotTheRest: of why an application began anew. The name of a peer that is gone for good took two seconds, and a reason that
// was not told took all that app info had to say.
func TestAReasonThatNobodyTellsTakesNotTheRest(t *testing.T) {
	why := &coherence.Anew{Epoch: 2, Cause: coherence.Silent, Node: protocol.NodeRef{ID: keyspace.NodeID{7}, Inc: 1}}
	for _, c := range []struct {
		of    mute
		has   time.Duration // 0: for ever
		takes time.Duration
		peer  string
	}{
		{mute{why}, 0, anewPeerTimeout, "seven"},
		{mute{why}, time.Minute, anewPeerTimeout, "seven"},
		{mute{why}, anewPeerTimeout, anewPeerTimeout / 2, "seven"},
		{mute{}, 0, anewTimeout, ""},
		{mute{}, time.Second, time.Second / 2, ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx := t.Context()
			if c.has > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, c.has)
				defer cancel()
			}
			begin := time.Now()
			a := anewOf(ctx, c.of, "app", func(keyspace.NodeID) string { return "seven" })
			if took := time.Since(begin); took != c.takes || ctx.Err() != nil {
				t.Errorf("%+v: it takes %v, want %v", c, took, c.takes)
			}
			if (a == nil) != (c.peer == "") || a != nil && (a.Peer != c.peer || a.Epoch != 2 || a.Cause != "silent") {
				t.Errorf("%+v: %+v", c, a)
			}
		})
	}
}
