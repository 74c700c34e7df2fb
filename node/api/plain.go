package api

import (
	"regexp"
	"strings"
)

// Plain takes the names of packages out of the text of an error, which say where in the code it was made: who reads it on a command line, or as
// the answer of a daemon, is told what is wrong in a plain sentence. What stands in double quotes is left as it is. Errors keep their
// names within a program, as they do in logs; what they match does not depend on their text.
func Plain(text string) string {
	return packages.ReplaceAllStringFunc(text, func(m string) string {
		if strings.HasPrefix(m, `"`) {
			return m
		}
		before := m[:strings.IndexFunc(m, func(r rune) bool { return r >= 'a' && r <= 'z' })]
		return before
	})
}

// packages matches text in quotes, and names of packages at the beginning of a text or of a part of it. Those that are also words of the
// command line (config, testnet, bench) are none here.
var packages = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|(?:^|: |; |\n)(?:(?:` +
	`access|allowlist|api|appmanager|apps|automaton|cachedcopy|cachedobject|chunk|chunks|coherence|detector|dht|disk|driver|` +
	`durablefile|filelock|hold|httpguard|invariant|keyspace|lockservice|loglevels|manager|node|order|` +
	`placement|protocol|protofield|quorum|raft|register|replicagroup|session|sigma|sim|simworld|sor|sqlguard|store|table|transfer|tsp|twins|voterlog|wire): )+`)
