package access

import (
	"context"

	"latchkey/coherence/protocol"
)

// Watch calls fn with the value, and again each time it may have become another one, until ctx ends or fn returns an error, which it returns. Of values
// that follow each other fast only the last is sure to be seen; the same one may be seen twice. What is said of fn at [Object.View] holds here.
func (o *Object) Watch(ctx context.Context, fn func([]byte) error) error {
	var last *protocol.Cell
	for {
		o.mu.Lock()
		if o.changed == nil {
			o.changed = make(chan struct{})
		}
		changed := o.changed // taken before the value is: what comes after that closes it
		o.mu.Unlock()
		c, err := o.find(ctx)
		if err != nil {
			return err
		}
		if c != last {
			if err := o.cut(fn(c.Bytes)); err != nil {
				return err
			}
			last = c
		}
		select {
		case <-changed:
		case <-o.epoch.done:
			return ErrRestarted
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// changedLocked wakes those who watch.
func (o *Object) changedLocked() {
	if o.changed != nil {
		close(o.changed)
		o.changed = nil
	}
}
