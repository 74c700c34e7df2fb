package floors

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

const module = "latchkey"

// The floors, from the ground up. A package imports packages of lower floors only.
const (
	ground   = iota // arithmetic and words: standard library only
	automata        // pure deterministic automata
	tools           // what drivers share, and generated messages
	overlay
	groups
	services
	api
	peer
	nets
	show
	command
	support // made for tests: product packages do not import it, testnet and cmd aside
)

// packages gives each package its floor.
var packages = map[string]int{
	"dht/keyspace":       ground,
	"internal/automaton": ground,
	"internal/invariant": ground,

	"replicagroup/quorum":    automata,
	"replicagroup/order":     automata,
	"replicagroup/raft":      automata,
	"replicagroup/placement": automata,
	"replicagroup/session":   automata,
	"replicagroup/transfer":  automata,
	"lockservice/table":      automata,
	"lockservice/hold":       automata,
	"lockservice/sigma":      automata,
	"coherence/protocol":     automata,
	"coherence/manager":      automata,
	"coherence/cachedcopy":   automata,
	"coherence/appmanager":   automata,
	"dht/detector":           automata,
	"dht/twins":              automata,

	"coherence/durable":              automata,
	"coherence/durable/store":        automata,
	"coherence/durable/register":     automata,
	"coherence/durable/cachedobject": automata,
	"coherence/durable/pb":           tools,
	"coherence/durable/hit":          overlay, // above internal/driver, whose clock it goes by; it imports nothing of the overlay

	"coherence/durable/host":   services,
	"coherence/durable/copies": groups, // above hit; it imports nothing of the overlay, nor of groups

	"internal/driver":      tools,
	"internal/durablefile": tools,
	"internal/filelock":    tools,
	"internal/footprint":   tools,
	"internal/loglevels":   tools,
	"internal/protofield":  tools,
	"dht/pb":               tools,
	"replicagroup/pb":      tools,
	"lockservice/pb":       tools,
	"lockservice/voterlog": tools,
	"lockservice/sigma/pb": overlay, // above internal/protofield; it imports nothing of the overlay

	"dht":                   overlay,
	"replicagroup":          groups,
	"replicagroup/disk":     services, // implements what replicagroup keeps its replicas in
	"lockservice":           services,
	"lockservice/httpguard": api, // above the guard that it puts before a handler
	"coherence":             services,
	"coherence/access":      tools,
	"coherence/pb":          tools,
	"coherence/chunks":      groups,

	"node/api/latchkey/v1":                   tools,
	"node/api/latchkey/v1/latchkeyv1connect": overlay, // above the messages it carries; beside our own overlay it imports nothing of it
	"node/api":                               api,
	"node/allowlist/pb":                      tools,
	"node/allowlist":                         api,
	"node/invite/pb":                         tools,
	"node/invite":                            api,
	"node":                                   peer,
	"node/config":                            overlay, // above the files it writes; it imports nothing of the overlay
	"testnet/wire":                           tools,
	"testnet/litmus":                         tools,
	"testnet":                                nets,
	"testnet/demo":                           show,
	"testnet/memory":                         show,
	"testnet/apps":                           show,
	"testnet/apps/sor":                       nets, // of ours it imports coherence only
	"testnet/apps/tsp":                       nets, // the same
	"testnet/bench":                          show,
	"testnet/curves":                         show,
	"testnet/attack":                         show,
	"cmd/latchkey":                           command,

	"internal/sim":                 support,
	"internal/history":             support,
	"internal/simworld":            support,
	"docs":                         support,
	"internal/floors":              support,
	"internal/protofield/odd":      support,
	"replicagroup/order/ordertest": support,
	"coherence/coherencetest":      support,
	"node/api/apitest":             support,
	"dht/rawbench":                 support,

	"coherence/durable/durabletest": support,
}

// families says how high each top directory is. A package imports its own family and lower ones: dht knows nothing of groups
// even where the floors would allow it. lockservice and coherence never meet.
var families = map[string]int{"dht": 0, "replicagroup": 1, "lockservice": 2, "coherence": 2, "node": 3, "testnet": 4, "cmd": 5}

// beside lists what an automaton may import on its own floor.
var beside = map[string][]string{
	"replicagroup/order":     {"replicagroup/quorum"},
	"replicagroup/raft":      {"replicagroup/quorum", "replicagroup/order"},
	"replicagroup/placement": {"replicagroup/quorum", "replicagroup/order"},
	"replicagroup/session":   {"replicagroup/quorum", "replicagroup/order"},
	"replicagroup/transfer":  {"replicagroup/order"},
	"lockservice/sigma":      {"replicagroup/quorum"},
	"lockservice/table":      {"lockservice/sigma"}, // whose requests it takes over
	"coherence/manager":      {"coherence/protocol"},
	"coherence/cachedcopy":   {"coherence/protocol"},
	"coherence/appmanager":   {"coherence/protocol"},

	"coherence/durable":              {"coherence/protocol"}, // whose nodes and cells it shares
	"coherence/durable/store":        {"coherence/protocol", "coherence/durable"},
	"coherence/durable/register":     {"coherence/protocol", "coherence/durable", "coherence/durable/store"},
	"coherence/durable/cachedobject": {"coherence/protocol", "coherence/durable"},
}

// foreign lists what an automaton may import from outside, by path prefix.
var foreign = map[string][]string{"replicagroup/raft": {"go.etcd.io/raft/v3", "google.golang.org/protobuf"}}

// pure lists what the two lowest floors may import of the standard library.
var pure = strings.Fields(`bytes cmp container/heap container/list crypto/ed25519 crypto/sha256 encoding/base64 encoding/binary
	encoding/hex encoding/json errors fmt hash hash/fnv io iter maps math math/bits math/rand/v2 slices sort strconv strings time
	unicode unicode/utf8`)

// impure lists what the two lowest floors may not name of packages they may import; a leading ! turns the list into all that
// they may.
var impure = map[string][]string{
	"time":         {"Now", "Since", "Until", "After", "AfterFunc", "Sleep", "Tick", "NewTimer", "NewTicker"},
	"fmt":          {"Print", "Printf", "Println", "Scan", "Scanf", "Scanln"},
	"math/rand/v2": {"!", "New", "NewPCG", "NewChaCha8", "NewZipf", "Rand", "Source", "PCG", "ChaCha8", "Zipf"},
}

// source is one package as it stands in the tree: its files that are not tests.
type source struct {
	path  string
	files map[string]*ast.File
}

// load parses every package below fsys: all files for all systems, tests and nested modules left out.
func load(fsys fs.FS) (map[string]*source, *token.FileSet, error) {
	pkgs, fset := make(map[string]*source), token.NewFileSet()
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			_, nested := fs.Stat(fsys, path.Join(name, "go.mod"))
			if name != "." && (nested == nil || d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") || strings.HasPrefix(d.Name(), "_")) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasPrefix(d.Name(), "_") || strings.HasPrefix(d.Name(), ".") {
			return nil
		}
		dir := path.Dir(name)
		if pkgs[dir] == nil { // a package of tests alone counts too
			pkgs[dir] = &source{path: dir, files: make(map[string]*ast.File)}
		}
		if strings.HasSuffix(name, "_test.go") {
			return nil
		}
		text, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		pkgs[dir].files[name], err = parser.ParseFile(fset, name, text, parser.SkipObjectResolution)
		return err
	})
	return pkgs, fset, err
}

// check returns every breach of the rules below fsys, in order.
func check(fsys fs.FS) ([]string, error) {
	pkgs, fset, err := load(fsys)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, name := range slices.Sorted(maps.Keys(pkgs)) {
		floor, ok := packages[name]
		if !ok {
			found = append(found, fmt.Sprintf("%s: unknown package: give it a floor in the table packages of internal/floors/floors_test.go", name))
			continue
		}
		for _, file := range slices.Sorted(maps.Keys(pkgs[name].files)) {
			f := pkgs[name].files[file]
			for _, spec := range f.Imports {
				imp, _ := strconv.Unquote(spec.Path.Value)
				if why := refuse(name, imp); why != "" {
					found = append(found, fmt.Sprintf("%s imports %s: %s", file, imp, why))
				}
			}
			if floor <= automata {
				found = append(found, impurities(fset, f)...)
			}
		}
	}
	return found, nil
}

// refuse says why package pkg may not import imp, or nothing.
func refuse(pkg, imp string) string {
	floor := packages[pkg]
	target, ours := strings.CutPrefix(imp, module+"/")
	if !ours {
		std := !strings.Contains(strings.Split(imp, "/")[0], ".")
		within := func(p string) bool { return imp == p || strings.HasPrefix(imp, p+"/") }
		switch {
		case floor > automata || std && slices.Contains(pure, imp) || slices.ContainsFunc(foreign[pkg], within):
			return ""
		case std:
			return "automata see no clock, network, lock, file or goroutine (what they may import is listed in pure)"
		}
		return "automata import the standard library and the floor below only"
	}
	to, known := packages[target]
	family, rank := inFamily(pkg)
	targetFamily, targetRank := inFamily(target)
	switch {
	case !known:
		return "unknown package"
	case floor == support: // may see everything that it tests
		return ""
	case to == support && floor < nets:
		return "made for tests"
	case to == support:
		return ""
	case family != "" && targetFamily != "" && targetRank > rank:
		return fmt.Sprintf("upwards: %s is above %s", targetFamily, family)
	case family != targetFamily && rank == targetRank && family != "" && targetFamily != "":
		return "siblings never meet"
	case floor == automata && to == automata && !slices.Contains(beside[pkg], target):
		return "automata do not import each other"
	case floor != automata && to >= floor, to > floor:
		return "upwards: imports point to lower floors only"
	}
	return ""
}

// inFamily returns pkg's top directory, and how high it is. The ground floor belongs to no family: everybody may use it.
func inFamily(pkg string) (string, int) {
	family, _, _ := strings.Cut(pkg, "/")
	rank, ok := families[family]
	if !ok || packages[pkg] == ground {
		return "", 0
	}
	return family, rank
}

// impurities returns what f names or does that no automaton may.
func impurities(fset *token.FileSet, f *ast.File) []string {
	var found []string
	report := func(n ast.Node, what string) {
		found = append(found, fmt.Sprintf("%v: %s: automata have no goroutine, clock, output or randomness of their own", fset.Position(n.Pos()), what))
	}
	names := make(map[string]string) // what an import is called in this file
	for _, spec := range f.Imports {
		imp, _ := strconv.Unquote(spec.Path.Value)
		name := path.Base(strings.TrimSuffix(imp, "/v2"))
		if spec.Name != nil {
			name = spec.Name.Name
		}
		if name == "." {
			report(spec, "dot import")
		}
		names[name] = imp
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			report(n, "go statement")
		case *ast.SelectStmt:
			report(n, "select statement")
		case *ast.ChanType:
			report(n, "channel")
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && forbidden(names[x.Name], n.Sel.Name) {
				report(n, names[x.Name]+"."+n.Sel.Name)
			}
		}
		return true
	})
	return found
}

func forbidden(imp, name string) bool {
	list := impure[imp]
	if len(list) > 0 && list[0] == "!" {
		return !slices.Contains(list, name)
	}
	return slices.Contains(list, name)
}

// root returns the directory of the module.
func root(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above this test")
		}
	}
}

func TestImportsPointDown(t *testing.T) {
	found, err := check(os.DirFS(root(t)))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		t.Error(f)
	}
}

// Everything the test exists to catch is caught, and what is allowed is not.
func TestPlantedBreachesAreCaught(t *testing.T) {
	file := func(pkg, rest string) string { return "package " + path.Base(pkg) + "\n" + rest + "\n" }
	imports := func(imp string) string { return fmt.Sprintf("import _ %q", imp) }
	for _, c := range []struct {
		pkg, rest string
		caught    string // part of the only report; empty when all is well
	}{
		{"dht/keyspace", imports("crypto/sha256"), ""},
		{"dht/keyspace", imports("latchkey/replicagroup/quorum"), "upwards"},
		{"dht/keyspace", imports("os"), "no clock"},
		{"replicagroup/raft", imports("go.etcd.io/raft/v3/raftpb"), ""},
		{"replicagroup/raft", imports("go.etcd.io/raft/v3"), ""},
		{"replicagroup/raft", imports("go.etcd.io/raftother"), "standard library"},
		{"replicagroup/order", imports("go.etcd.io/raft/v3"), "standard library"},
		{"replicagroup/placement", imports("latchkey/replicagroup/quorum"), ""},
		{"replicagroup/placement", imports("latchkey/internal/automaton"), ""},
		{"replicagroup/placement", imports("latchkey/replicagroup/raft"), "each other"},
		{"replicagroup/placement", imports("latchkey/replicagroup/pb"), "upwards"},
		{"replicagroup/placement", imports("latchkey/replicagroup"), "upwards"},
		{"replicagroup/placement", imports("latchkey/internal/sim"), "made for tests"},
		{"replicagroup/placement", imports("sync"), "no clock"},
		{"replicagroup/placement", imports("net"), "no clock"},
		{"replicagroup/placement", imports("crypto/rand"), "no clock"},
		{"replicagroup/placement", imports("math/rand"), "no clock"},
		{"replicagroup/placement", imports("context"), "no clock"},
		{"replicagroup/placement", imports("github.com/libp2p/go-libp2p"), "standard library"},
		{"lockservice/table", imports("latchkey/replicagroup/order"), "each other"},
		{"lockservice/table", imports("latchkey/lockservice/hold"), "each other"},
		{"lockservice/hold", imports("latchkey/lockservice/table"), "each other"},
		{"lockservice/hold", imports("latchkey/lockservice"), "upwards"},
		{"dht", imports("latchkey/replicagroup/order"), "upwards"},
		{"dht", imports("latchkey/dht/pb"), ""},
		{"replicagroup", imports("latchkey/lockservice/table"), "upwards"},
		{"replicagroup", imports("latchkey/dht"), ""},
		{"lockservice", imports("latchkey/coherence"), "siblings"},
		{"coherence", imports("latchkey/lockservice"), "siblings"},
		{"coherence", imports("latchkey/lockservice/table"), "siblings"},
		{"lockservice", imports("latchkey/node"), "upwards"},
		{"node/api", imports("latchkey/node"), "upwards"},
		{"node", imports("latchkey/testnet"), "upwards"},
		{"node", imports("latchkey/internal/history"), "made for tests"},
		{"testnet/demo", imports("latchkey/internal/history"), ""},
		{"testnet", imports("latchkey/cmd/latchkey"), "upwards"},
		{"cmd/latchkey", imports("latchkey/testnet/demo"), ""},
		{"cmd/latchkey", imports("latchkey/nowhere"), "unknown package"},
		{"brand/new", "", "unknown package: give it a floor"},

		{"lockservice/table", "import \"time\"\nvar x = time.Second", ""},
		{"lockservice/table", "import \"time\"\nvar x = time.Now()", "time.Now"},
		{"lockservice/table", "import \"time\"\nvar x = time.After", "time.After"},
		{"lockservice/table", "import clock \"time\"\nfunc f() { clock.Sleep(1) }", "time.Sleep"},
		{"lockservice/table", "import . \"time\"\nvar x = Now()", "dot import"},
		{"lockservice/table", "import \"math/rand/v2\"\nvar x = rand.New(rand.NewPCG(1, 2))", ""},
		{"lockservice/table", "import \"math/rand/v2\"\nvar x = rand.IntN(3)", "math/rand/v2.IntN"},
		{"lockservice/table", "import \"fmt\"\nfunc f() { fmt.Println() }", "fmt.Println"},
		{"lockservice/table", "func f() { go f() }", "go statement"},
		{"lockservice/table", "func f() { select {} }", "select statement"},
		{"lockservice/table", "type t struct{ c chan int }", "channel"},
		{"lockservice", "import \"time\"\nfunc f() { go f(); time.Sleep(1) }", ""},
	} {
		// The breach stands in a file for another system, which the compiler here would never look at.
		tree := fstest.MapFS{c.pkg + "/x_plan9.go": {Data: []byte("//go:build plan9\n\n" + file(c.pkg, c.rest))}}
		found, err := check(tree)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case c.caught == "" && len(found) > 0:
			t.Errorf("%s: %s\n\treported: %v", c.pkg, c.rest, found)
		case c.caught != "" && (len(found) != 1 || !strings.Contains(found[0], c.caught)):
			t.Errorf("%s: %s\n\treported: %v, want one about %q", c.pkg, c.rest, found, c.caught)
		}
	}
}

func TestWhatIsNotPartOfThePackageIsLeftAlone(t *testing.T) {
	bad := []byte("package table\nimport _ \"os\"\n")
	tree := fstest.MapFS{
		"lockservice/table/x_test.go":       {Data: bad},
		"lockservice/table/testdata/x.go":   {Data: bad},
		"examples/own/go.mod":               {Data: []byte("module own\n")},
		"examples/own/main.go":              {Data: bad},
		".hidden/x.go":                      {Data: bad},
		"lockservice/table/_scratch/x.go":   {Data: bad},
		"lockservice/table/_scratch.go":     {Data: bad},
		"lockservice/table/testdata/go.mod": {Data: bad},
	}
	if found, err := check(tree); err != nil || len(found) > 0 {
		t.Errorf("%v, %v", found, err)
	}
}
