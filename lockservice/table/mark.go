package table

import (
	"encoding/binary"
	"hash/fnv"
)

// Mark returns a number that differs, but for one chance in 2^64, from any that was returned while something else was to be told of
// a lock by [Table.Info]; time alone changes nothing. A lock that nobody has, wants or has broken has none: 0.
func (t *Table) Mark(name string) uint64 {
	var b []byte
	number := func(n uint64) { b = binary.BigEndian.AppendUint64(b, n) }
	flag := func(f bool) {
		if f {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
	}
	for i := range t.breaks {
		if x := &t.breaks[i]; x.Name == name {
			number(uint64(x.Token))
			number(uint64(x.Now))
		}
	}
	l := t.locks[name]
	if l == nil && len(b) == 0 {
		return 0
	}
	if l != nil {
		number(uint64(l.permits))
		flag(l.wake != nil)
		number(uint64(len(l.owners)))
		for _, o := range l.owners {
			b = append(b, o.Client[:]...)
			number(o.Req)
			number(o.Counter)
			flag(o.Confirmed)
		}
		number(uint64(len(l.queue)))
		for i := range l.queue {
			b = append(b, l.queue[i].Client[:]...)
			number(l.queue[i].Req)
		}
		if h := l.hand; h != nil {
			flag(h.Pending)
			for i := range h.Candidates {
				c := &h.Candidates[i]
				b = append(b, c.Wish.Session[:]...)
				number(c.Wish.Seq)
			}
		}
	}
	h := fnv.New64a()
	h.Write(b)
	return h.Sum64()
}
