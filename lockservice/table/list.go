package table

import "latchkey/lockservice/sigma"

// Listed is a name of the table.
type Listed struct {
	Name string
	Away bool // a group of the key's own has it
}

// List returns the names from a name on that somebody has, wants or may have, or that are granted to nobody for a while, by rising name: at most
// most of them, and more says that there are others. It costs a step for every name of the table.
func (t *Table) List(from string, most int) (all []Listed, more bool) {
	names, more := sigma.Lowest(func(yield func(string) bool) {
		for name, l := range t.locks {
			if !l.idle() && !yield(name) {
				return
			}
		}
	}, from, most)
	for _, name := range names {
		all = append(all, Listed{name, t.locks[name].away})
	}
	return all, more
}
