package lockservice

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/lockservice/pb"
	"latchkey/lockservice/sigma"
)

// Lister is a [Backend] that can tell of every lock of an overlay.
type Lister interface {
	// List is as [Service.List]. fn is called on one goroutine at a time.
	List(ctx context.Context, prefix string, fn func(ListPage) error) error
}

// ListPage is some of the locks of one group, or why a group does not tell of its locks.
type ListPage struct {
	Group string // its prefix, like a3/8
	Locks []Info // by rising name, which are never in two pages
	Err   error  // of this group, whose locks are not in other pages either, or not all of them
	// Unsure says that most voters of the group have lost what they knew, as when the power of their machines has failed: locks that are held since
	// before may be missing. The group grants nothing until their leases are over.
	Unsure bool
}

// List tells of the locks of the whole overlay that somebody holds or waits for, or that are granted to nobody for a while, and whose names
// begin with prefix; any with an empty one. It asks each group of the overlay, some at a time, and calls fn with every page as it comes:
// names rise within a group, and groups come in any order. When fn returns an error, List ends and returns it.
//
// It is no snapshot: a lock that somebody holds from before List is called until it returns is in it, and others may be. What a page
// tells of a lock is what [Service.Info] tells, but for further holders and waiters, whose numbers it has, and breaks. A group that gives no
// answer within [ListGroupTimeout] is told of in a page with an error, and the others go on.
//
// It is for people: it costs the root a reading of its directory, and each group a linearizable reading and, where voters keep
// locks, a question to each of them, for each page of at most 64 names; and each voter a walk through its table for each page. A sleeping
// group is woken.
//
// Errors: [ErrNoQuorum] when the root does not answer within [ListGroupTimeout], [ErrClosed], errors.ErrUnsupported through a backend that is no [Lister], otherwise
// context.Cause(ctx).
func (s *Service) List(ctx context.Context, prefix string, fn func(ListPage) error) error {
	if s.closing.Err() != nil {
		return ErrClosed
	}
	l, ok := s.backend.(Lister)
	if !ok {
		return fmt.Errorf("lockservice: locks cannot be listed here: %w", errors.ErrUnsupported)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.closing, func() { cancel(ErrClosed) })()
	return l.List(ctx, prefix, func(p ListPage) error {
		for i := range p.Locks {
			p.Locks[i].tidy()
		}
		return fn(p)
	})
}

const (
	// ListGroupTimeout bounds the wait for one page of one group, and that for the root's directory.
	ListGroupTimeout = 5 * time.Second
	// listGroupsMax is how many groups are asked at a time.
	listGroupsMax = 8
)

// listGroups lists the locks of every group of an overlay, each by page, which returns what is known of the names from one on.
func listGroups(ctx context.Context, prefixes func(context.Context) ([]keyspace.Prefix, error), prefix string, fn func(ListPage) error,
	page func(ctx context.Context, key keyspace.Key, from string) (listing, error)) error {
	if prefixes == nil {
		return fmt.Errorf("lockservice: locks cannot be listed here: %w", errors.ErrUnsupported)
	}
	root, stop := context.WithTimeout(ctx, ListGroupTimeout)
	groups, err := prefixes(root)
	late := root.Err() != nil && !errors.Is(ctx.Err(), context.Canceled)
	stop()
	switch {
	case err != nil && late:
		return fmt.Errorf("%w: the root group, which knows of the others", ErrNoQuorum)
	case err != nil:
		return groupError(ctx, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next, pages := make(chan keyspace.Prefix), make(chan ListPage)
	var asking sync.WaitGroup
	for range min(listGroupsMax, len(groups)) {
		asking.Go(func() {
			for p := range next {
				listGroup(ctx, p, prefix, page, func(page ListPage) {
					select {
					case pages <- page:
					case <-ctx.Done():
					}
				})
			}
		})
	}
	go func() {
		defer close(pages)
		defer asking.Wait()
		defer close(next)
		for _, p := range groups {
			select {
			case next <- p:
			case <-ctx.Done():
				return
			}
		}
	}()
	for p := range pages {
		if ctx.Err() != nil {
			continue // until all have stopped
		}
		if err := fn(p); err != nil {
			cancel(err)
		}
	}
	return context.Cause(ctx)
}

// listGroup lists the locks of one group.
func listGroup(ctx context.Context, p keyspace.Prefix, prefix string, page func(context.Context, keyspace.Key, string) (listing, error), tell func(ListPage)) {
	for from, last := prefix, ""; ; from = last {
		call, cancel := context.WithTimeout(ctx, ListGroupTimeout)
		l, err := page(call, keyspace.Key(p.Bits), from)
		if err != nil && call.Err() != nil { // whatever it was that did not come in time
			err = fmt.Errorf("%w within %v", ErrNoQuorum, ListGroupTimeout)
		}
		cancel()
		out := ListPage{Group: p.String(), Err: err, Unsure: l.unsure}
		past := false
		for _, i := range l.locks {
			switch {
			case i.Name == last: // the page before ended with it
			case !strings.HasPrefix(i.Name, prefix):
				past = true
			case i.Held || i.Waiting > 0 || i.DelayLeft > 0 || i.TakenOver:
				out.Locks = append(out.Locks, i)
			}
		}
		if ctx.Err() != nil {
			return
		}
		if out.Err != nil || len(out.Locks) > 0 || out.Unsure {
			tell(out)
		}
		if err != nil || past || l.last == "" || l.last == last {
			return
		}
		last = l.last
	}
}

func byListedName(a, b Info) int { return cmp.Compare(a.Name, b.Name) }

// List implements [Lister].
func (b *groupBackend) List(ctx context.Context, prefix string, fn func(ListPage) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(b.life, func() { cancel(ErrClosed) })()
	return listGroups(ctx, b.cfg.Prefixes, prefix, fn, b.list)
}

// list asks the group that owns key for the names of its table from one on. A lock whose key has a group of its own is asked for there.
func (b *groupBackend) list(ctx context.Context, key keyspace.Key, from string) (l listing, err error) {
	data, err := marshal(&pb.Query{List: &pb.List{From: from}})
	if err != nil {
		return l, err
	}
	if data, err = b.groups.Query(ctx, key, ServiceName, data); err != nil {
		return l, groupError(ctx, err)
	}
	m, err := decodeListing(data)
	if err == nil {
		err = refusal(m.Status, m.Detail)
	}
	if err != nil {
		return l, err
	}
	for _, x := range m.Locks {
		i, err := Info{}, error(nil)
		if x.Away {
			if i, err = b.Info(ctx, x.Name); err != nil {
				return l, err
			}
			i.Waiters, i.Breaks, i.Holders = nil, nil, nil
		} else {
			i = b.infoOf(x.Name, x.Info)
			i.Holders = nil
		}
		l.locks = append(l.locks, i)
	}
	if n := len(m.Locks); m.More && n > 0 {
		l.last = m.Locks[n-1].Name
	}
	return l, nil
}

// List implements [Lister].
func (b *sigmaBackend) List(ctx context.Context, prefix string, fn func(ListPage) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(b.closing, func() { cancel(ErrClosed) })()
	return listGroups(ctx, b.table.cfg.Prefixes, prefix, fn, b.list)
}

// list puts together what the voters keep and what the table does, up to where both are known. The voters are asked first: a name that the
// table takes over meanwhile is in the table's part.
func (b *sigmaBackend) list(ctx context.Context, key keyspace.Key, from string) (listing, error) {
	kept, err := b.sigma.list(ctx, key, from)
	if err != nil {
		return listing{}, err
	}
	for i, x := range kept.locks {
		if len(x.Waiters) >= sigma.ReportQueueMax { // a list names no more
			if kept.locks[i], err = b.Info(ctx, x.Name); err != nil {
				return listing{}, err
			}
		}
		kept.locks[i].Waiters, kept.locks[i].Breaks = nil, nil
	}
	tabled, err := b.table.list(ctx, key, from)
	if err != nil {
		return listing{}, err
	}
	all := tabled
	all.unsure = kept.unsure
	for _, i := range kept.locks {
		if _, twice := slices.BinarySearchFunc(tabled.locks, i, byListedName); !twice {
			all.locks = append(all.locks, i)
		}
	}
	slices.SortFunc(all.locks, byListedName)
	if all.last == "" || kept.last != "" && kept.last < all.last {
		all.last = kept.last
	}
	if all.last != "" {
		all.locks = slices.DeleteFunc(all.locks, func(i Info) bool { return i.Name > all.last })
	}
	return all, nil
}
