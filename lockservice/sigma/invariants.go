package sigma

import "fmt"

// Check tests every invariant of a replica's state. It walks the whole state: tests call it after every step.
func (r *Replica) Check() error {
	perPeer, queued := 0, 0
	for name, l := range r.locks {
		if l.name != name || l.idle && l.live() || !l.idle && l.at < 0 {
			return fmt.Errorf("I0: %q: live %v, idle %v, place %d", name, l.live(), l.idle, l.at)
		}
		if l.at >= 0 && (l.at >= len(r.due) || r.due[l.at] != l) {
			return fmt.Errorf("I0: %q is not at its place %d", name, l.at)
		}
		sessions := make(map[Session]bool)
		note := func(w *wish, ended bool) error {
			if perPeer++; sessions[w.req.Session] {
				return fmt.Errorf("I1: %q: session %v stands twice", name, w.req.Session)
			}
			sessions[w.req.Session] = r.known(l) // before, a candidate may have spoken too
			if ended && l.over(w.req) {
				return fmt.Errorf("I9: %q: %v has ended", name, w.req)
			}
			return nil
		}
		if l.owned {
			if l.prop > r.log.Ceil {
				return fmt.Errorf("A2': %q: %d is offered, the ceiling is %d", name, l.prop, r.log.Ceil)
			}
			if err := note(&l.owner, true); err != nil {
				return err
			}
			if len(l.candidates) > 0 || !r.known(l) {
				return fmt.Errorf("S7: %q: granted beside %d candidates, settled %v", name, len(l.candidates), r.settled)
			}
		}
		for i := range l.queue {
			if err := note(&l.queue[i], r.known(l)); err != nil {
				return err
			}
			if i > 0 && l.queue[i-1].compare(&l.queue[i]) >= 0 {
				return fmt.Errorf("I0: %q: the queue is out of order at %d", name, i)
			}
		}
		for i := range l.candidates {
			if err := note(&l.candidates[i].wish, r.known(l)); err != nil {
				return err
			}
		}
		queued += len(l.queue)
	}
	sum := 0
	for _, n := range r.perPeer {
		sum += n
	}
	if sum != perPeer || queued != r.queued {
		return fmt.Errorf("I0: %d requests, counted %d; %d waiters, counted %d", perPeer, sum, queued, r.queued)
	}
	for i, l := range r.due {
		if p := (i - 1) / 2; l.at != i || i > 0 && l.wake < r.due[p].wake {
			return fmt.Errorf("I0: due %d of %q out of order", i, l.name)
		}
	}
	return nil
}
