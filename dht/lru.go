package dht

import "container/list"

// lru is a map that holds at most max entries and drops the one not used longest. Not safe for concurrent use.
type lru[K comparable, V any] struct {
	max     int
	entries map[K]*list.Element
	order   list.List // of lruEntry[K, V], the one used last in front
}

type lruEntry[K comparable, V any] struct {
	key   K
	value V
}

func newLRU[K comparable, V any](max int) *lru[K, V] {
	return &lru[K, V]{max: max, entries: make(map[K]*list.Element)}
}

// get returns the value at key and counts as a use of it.
func (m *lru[K, V]) get(key K) (value V, ok bool) {
	e, ok := m.entries[key]
	if !ok {
		return value, false
	}
	m.order.MoveToFront(e)
	return e.Value.(*lruEntry[K, V]).value, true
}

// put sets the value at key.
func (m *lru[K, V]) put(key K, value V) {
	if e, ok := m.entries[key]; ok {
		e.Value.(*lruEntry[K, V]).value = value
		m.order.MoveToFront(e)
		return
	}
	if len(m.entries) >= m.max {
		last := m.order.Back()
		m.order.Remove(last)
		delete(m.entries, last.Value.(*lruEntry[K, V]).key)
	}
	m.entries[key] = m.order.PushFront(&lruEntry[K, V]{key, value})
}

// all calls f for every value, in no order that matters, without counting as a use.
func (m *lru[K, V]) all(f func(V)) {
	for _, e := range m.entries {
		f(e.Value.(*lruEntry[K, V]).value)
	}
}
