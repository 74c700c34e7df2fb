package coherence

import "context"

// RestartedSince is what a call fails with that an application's new beginning has ended.
func (s *Service) RestartedSince(ctx context.Context, app string) error {
	return s.restartedSince(ctx, AppKey(app))
}
