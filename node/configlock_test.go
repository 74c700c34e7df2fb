package node

import (
	"context"
	"errors"
	"sync"
	"testing"
)

func TestConfigurationIsChangedByOneAtATime(t *testing.T) {
	dir := t.TempDir()
	inside := make(chan struct{}, 1)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			unlock, err := LockConfig(within(t, waitMax), dir)
			if err != nil {
				t.Error(err)
				return
			}
			select {
			case inside <- struct{}{}:
			default:
				t.Error("two have the lock")
			}
			<-inside
			if err := unlock(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

func TestWaitForTheConfigurationEnds(t *testing.T) {
	dir := t.TempDir()
	unlock, err := LockConfig(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if _, err := LockConfig(ctx, dir); !errors.Is(err, ErrInUse) || !errors.Is(err, why) {
		t.Error(err)
	}
}
