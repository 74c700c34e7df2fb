package api_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"latchkey/node/api"
)

func TestErrorsAreTextsWithoutPackageNames(t *testing.T) {
	for in, want := range map[string]string{
		"":                            "",
		"lockservice: lock lost":      "lock lost",
		"lockservice: api: lock lost": "lock lost",
		`lock "n" may be lost: lockservice: lock lost: api: daemon not reachable at x`: `lock "n" may be lost: lock lost: daemon not reachable at x`,
		`lockservice: "a: api: b" is not free`:                                         `"a: api: b" is not free`,
		`lockservice: "a\": api: b" is not free; node: closed`:                         `"a\": api: b" is not free; closed`,
		"config: network.listen: not an address":                                       "config: network.listen: not an address",
		"it speaks of the api: as a word":                                              "it speaks of the api: as a word",
		"lockservice: close\nlockservice: release":                                     "close\nrelease",
	} {
		if got := api.Plain(in); got != want {
			t.Errorf("%q becomes %q, not %q", in, got, want)
		}
	}
}

// words of the command line that are names of packages, too, and of what is never printed by it.
var words = []string{"config", "testnet", "bench", "demo", "daemon", "invite", "litmus", "rawbench", "curves", "history"}

// TestEveryPackageThatNamesItselfInErrorsIsKnown: an error of a new package would begin with its name on the command line.
func TestEveryPackageThatNamesItselfInErrorsIsKnown(t *testing.T) {
	named := regexp.MustCompile(`^([a-z]+): `)
	seen := 0
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			text, ok := call.Args[0].(*ast.BasicLit)
			if f, is := call.Fun.(*ast.SelectorExpr); !is || !ok || text.Kind != token.STRING || f.Sel.Name != "New" && f.Sel.Name != "Errorf" {
				return true
			}
			s, err := strconv.Unquote(text.Value)
			if m := named.FindStringSubmatch(s); err == nil && m != nil && m[1] == file.Name.Name && !slices.Contains(words, m[1]) {
				if seen++; api.Plain(m[0]) != "" {
					t.Errorf("%s: %q: name its package in plain.go", path, s)
				}
			}
			return true
		})
		return nil
	})
	if err != nil || seen < 100 {
		t.Errorf("%d errors that name their packages: %v", seen, err)
	}
}
