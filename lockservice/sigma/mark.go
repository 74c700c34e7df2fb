package sigma

import (
	"encoding/binary"
	"hash/fnv"
)

// Mark returns a number that differs, but for one chance in 2^64, from any that was returned while this replica had something else to say
// of a name than it has now; time alone changes nothing. A name that nobody has or wants has none: 0.
func (r *Replica) Mark(name string) uint64 {
	l := r.locks[name]
	if l == nil || !l.live() && l.delay <= r.now {
		return 0
	}
	var b []byte
	request := func(w *wish) {
		b = append(b, w.req.Session[:]...)
		b = binary.BigEndian.AppendUint64(b, w.req.Seq)
	}
	if l.owned {
		b = append(b, 1)
		request(&l.owner)
		b = binary.BigEndian.AppendUint64(b, uint64(l.prop))
	}
	for i := range l.candidates {
		b = append(b, 2)
		request(&l.candidates[i].wish)
	}
	for i := range l.queue {
		b = append(b, 3)
		request(&l.queue[i])
	}
	if l.delay > r.now {
		b = append(b, 4)
	}
	h := fnv.New64a()
	h.Write(b)
	return h.Sum64()
}
