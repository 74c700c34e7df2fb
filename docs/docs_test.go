// Package docs_test holds pages of this directory to the code.
package docs_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// testsIn returns the names of the test functions of a package of this module.
func testsIn(t *testing.T, dir string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[string]bool)
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") {
				names[fn.Name.Name] = true
			}
		}
	}
	return names
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var (
	goTest    = regexp.MustCompile("`([a-z/]+)\\.(Test[A-Za-z0-9]+)`")
	suiteTest = regexp.MustCompile("`ordertest/([0-9]{2})`")
	longForm  = regexp.MustCompile("`(-[a-z.]+)`")
)

func TestTheConformancePageNamesTestsThatExist(t *testing.T) {
	page, suite, nightly := read(t, "conformance.md"), read(t, "../replicagroup/order/ordertest/ordertest.go"), read(t, "../.ci/run")
	packages := make(map[string]map[string]bool)
	named := goTest.FindAllStringSubmatch(page, -1)
	if len(named) < 100 {
		t.Errorf("%d tests are named: the page is not read as it is written", len(named))
	}
	for _, m := range named {
		if packages[m[1]] == nil {
			packages[m[1]] = testsIn(t, m[1])
		}
		if !packages[m[1]][m[2]] {
			t.Errorf("there is no test %s in %s", m[2], m[1])
		}
	}
	in := make(map[string]bool)
	for _, m := range suiteTest.FindAllStringSubmatch(page, -1) {
		in[m[1]] = true
		if !strings.Contains(suite, `{"`+m[1]) {
			t.Errorf("the suite has no test %s", m[1])
		}
	}
	for _, m := range regexp.MustCompile(`\{"([0-9]{2})[A-Z]`).FindAllStringSubmatch(suite, -1) {
		if !in[m[1]] {
			t.Errorf("the suite's test %s is not on the page", m[1])
		}
	}
	for _, m := range longForm.FindAllStringSubmatch(page, -1) {
		if !strings.Contains(nightly, m[1]+" ") {
			t.Errorf(".ci/run gives no test %s", m[1])
		}
	}
	// What has planted mistakes of its own belongs on the page.
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "mutant_test.go") {
			return err
		}
		if dir := strings.TrimPrefix(filepath.ToSlash(filepath.Dir(path)), "../"); !strings.Contains(page, "`"+dir+".") && !strings.HasPrefix(dir, "lockservice/sigma") {
			t.Errorf("the planted mistakes of %s are not on the page", dir)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
