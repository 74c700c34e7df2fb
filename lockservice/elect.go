package lockservice

import "context"

// Leadership is an election won: a held lock, whose holder is the leader and whose token is the term. It ends as a hold does: with
// [Handle.Context] before anybody else can be elected. A leader that is held up, say by a pause of its program, may go on believing
// for a moment when that is over; pass the term along with what it does ([Guard]), and nothing of a former term takes effect.
type Leadership struct {
	*Handle
	value string
}

// Term returns the term, which rises with every leader of this name: it is [Handle.Token].
func (l *Leadership) Term() Token { return l.Token() }

// Value returns what the leader told of itself.
func (l *Leadership) Value() string { return l.value }

// Resign lets another be elected. It is [Handle.Release].
func (l *Leadership) Resign(ctx context.Context) error { return l.Release(ctx) }

// Elect waits until the caller is the leader called name, and tells value, at most [ValueBytesMax] bytes of UTF-8 such as an address,
// to those who observe. Candidates lead in the order in which they came. An election and a lock of one name are the same thing, so
// they exclude each other. Otherwise, and in its errors, it is as [Service.Lock].
func (s *Service) Elect(ctx context.Context, name, value string, opts ...Option) (*Leadership, error) {
	c := configOf(opts)
	c.value = value
	h, err := s.lock(ctx, name, c)
	if err != nil {
		return nil, err
	}
	return &Leadership{h, value}, nil
}

// Leader is who leads, as [Service.Observe] sees it.
type Leader struct {
	Elected bool // false: nobody leads now, and the rest is zero
	Value   string
	Term    Token
	Holder  Party
	Err     error // why it cannot be told now; the observation goes on
}

// Observe tells who leads now and every change, until ctx ends or the service is closed; then the channel is closed. One that has
// been elected and has not yet taken it up does not lead. It sees what [Service.Watch] sees, and as often; what it tells may be over
// when it is read. Errors: [ErrName], [ErrClosed].
func (s *Service) Observe(ctx context.Context, name string) (<-chan Leader, error) {
	ctx, cancel := context.WithCancel(ctx)
	events, err := s.Watch(ctx, name)
	if err != nil {
		cancel()
		return nil, err
	}
	leaders := make(chan Leader, 1)
	go func() {
		defer close(leaders)
		defer cancel()
		var last *Leader
		for ev := range events {
			l := leaderOf(ev)
			if last != nil && (l.Err != nil && last.Err != nil || l == *last) {
				continue
			}
			last = &l
			select {
			case <-leaders:
			default:
			}
			leaders <- l
		}
	}()
	return leaders, nil
}

func leaderOf(ev WatchEvent) Leader {
	switch i := ev.Info; {
	case ev.Err != nil:
		return Leader{Err: ev.Err}
	case !i.Held || !i.Confirmed:
		return Leader{}
	default:
		return Leader{Elected: true, Value: i.Value, Term: i.Token, Holder: i.Holder}
	}
}
