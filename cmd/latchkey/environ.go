package main

import (
	"fmt"
	"slices"
	"strings"

	"latchkey/node/config"
)

// environPrefix begins the names of all variables that are ours.
const environPrefix = "LATCHKEY_"

// environNames are the variables that mean something: to us, or to commands that run under a lock or on an object.
func environNames() []string {
	names := []string{"LATCHKEY_PATH", "LATCHKEY_API", "LATCHKEY_LOCK", "LATCHKEY_FENCE", "LATCHKEY_HOLDER", "LATCHKEY_OBJECT", "LATCHKEY_EPOCH"}
	names = append(names, config.ClientVariables...)
	for _, f := range config.Fields() {
		names = append(names, f.Env())
	}
	return names
}

// strangeVariables says of each variable that looks like ours and means nothing what may have been meant.
func strangeVariables(environ []string) (notes []string) {
	known := environNames()
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if value == "" || !strings.HasPrefix(strings.ToUpper(name), environPrefix) || strings.HasPrefix(name, "LATCHKEY_TEST_") || slices.Contains(known, name) || ofSection(name) {
			continue
		}
		near := slices.MinFunc(known, func(a, b string) int { return distance(a, strings.ToUpper(name)) - distance(b, strings.ToUpper(name)) })
		note := fmt.Sprintf("%.100s is set in the environment, and means nothing", inLine(name))
		if distance(near, strings.ToUpper(name)) <= 2 {
			note += "; did you mean " + near + "?"
		} else {
			note += "; latchkey config --help lists the fields, whose variables are called like LATCHKEY_NETWORK_LISTEN"
		}
		notes = append(notes, note)
	}
	slices.Sort(notes)
	return slices.Compact(notes)
}

// ofSection reports whether a variable is one of a section of the configuration, whose reader refuses those that are of no field. Section
// api is left out: its variables look like those of clients, who read no configuration.
func ofSection(name string) bool {
	return slices.ContainsFunc(config.Fields(), func(f config.Field) bool {
		section, _, ok := strings.Cut(f.Name, ".")
		return ok && section != "api" && strings.HasPrefix(name, environPrefix+strings.ToUpper(section)+"_")
	})
}

// distance is how many letters one has to insert, leave out or replace to get from one word to another.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := before
			if a[i] != b[j] {
				replaced++
			}
			before = row[j+1]
			row[j+1] = min(replaced, row[j]+1, before+1)
		}
	}
	return row[len(b)]
}
