package api

import (
	"context"
	"time"
)

// LimitDaemon returns a context whose calls tell the daemon to answer until end. When ctx itself lasts a little longer, what the
// daemon has to say about why it could not do more arrives here; without it, both give up at the same moment, and chance decides
// who is heard. A daemon that has nothing to say but that its time was up is an error that matches context.DeadlineExceeded.
func LimitDaemon(ctx context.Context, end time.Time) context.Context {
	if outer, ok := ctx.Deadline(); ok && outer.Before(end) {
		end = outer
	}
	return limited{ctx, end}
}

// limited has another deadline than it ends at. The RPC client sends what Deadline says.
type limited struct {
	context.Context
	end time.Time
}

type limitKey struct{}

func (l limited) Deadline() (time.Time, bool) { return l.end, true }

func (l limited) Value(key any) any {
	if key == (limitKey{}) {
		return l.end
	}
	return l.Context.Value(key)
}

// isLimited reports whether the deadline of ctx is one that LimitDaemon has set, for the daemon alone.
func isLimited(ctx context.Context) bool {
	end, ok := ctx.Deadline()
	limit, set := ctx.Value(limitKey{}).(time.Time)
	return ok && set && end.Equal(limit)
}
