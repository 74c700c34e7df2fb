package attack

import (
	"bufio"
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// directories of the packages that docs/limits.md names.
var directories = map[string]string{
	"node": "node", "dht": "dht", "twins": "dht/twins", "replicagroup": "replicagroup", "placement": "replicagroup/placement", "raft": "replicagroup/raft",
	"order": "replicagroup/order", "session": "replicagroup/session", "transfer": "replicagroup/transfer", "table": "lockservice/table",
	"lockservice": "lockservice", "sigma": "lockservice/sigma", "sigmapb": "lockservice/sigma/pb", "voterlog": "lockservice/voterlog", "testnet": "testnet", "access": "coherence/access", "allowlist": "node/allowlist", "api": "node/api", "httpguard": "lockservice/httpguard",
	"protocol": "coherence/protocol", "appmanager": "coherence/appmanager", "cachedcopy": "coherence/cachedcopy", "manager": "coherence/manager",
	"coherencepb": "coherence/pb", "coherence": "coherence", "chunks": "coherence/chunks", "disk": "replicagroup/disk",
	"durable": "coherence/durable", "store": "coherence/durable/store", "register": "coherence/durable/register", "cachedobject": "coherence/durable/cachedobject", "copies": "coherence/durable/copies",
	"durablepb": "coherence/durable/pb", "apps": "testnet/apps", "sor": "testnet/apps/sor", "tsp": "testnet/apps/tsp",
}

// row is a line of a table that names a limit and its value.
var row = regexp.MustCompile("^\\| `([a-z]+)\\.([A-Za-z0-9]+)` \\| ([^|]+) \\|")

// units of values, and what constants are counted in.
var units = map[string]int64{
	"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "bytes": 1, "ms": int64(time.Millisecond), "s": int64(time.Second), "min": int64(time.Minute),
}

func TestDocumentedLimitsAreThoseOfTheCode(t *testing.T) {
	f, err := os.Open("../../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	packages := make(map[string]*types.Package)
	named := 0
	for lines := bufio.NewScanner(f); lines.Scan(); {
		m := row.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		named++
		if packages[m[1]] == nil {
			packages[m[1]] = constantsOf(t, "../../"+directories[m[1]])
		}
		switch o := packages[m[1]].Scope().Lookup(m[2]).(type) {
		case *types.Const:
			if got, want := o.Val(), value(t, m[3]); !constant.Compare(constant.ToInt(got), token.EQL, want) {
				t.Errorf("%s.%s is %v, and the page says %s", m[1], m[2], got, m[3])
			}
		case *types.Var: // a table by class, which the page puts in words
		default:
			t.Errorf("there is no %s.%s", m[1], m[2])
		}
	}
	if named < 30 {
		t.Errorf("%d limits found on the page", named)
	}
}

// value reads "64 MiB", "15 s" or "4096".
func value(t *testing.T, text string) constant.Value {
	t.Helper()
	number, unit, _ := strings.Cut(strings.TrimSpace(text), " ")
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || units[unit] == 0 {
		t.Fatalf("value %q: %v", text, err)
	}
	return constant.MakeInt64(n * units[unit])
}

// constantsOf type-checks a package as far as that goes without what it imports, other than time: enough for its constants.
func constantsOf(t *testing.T, dir string) *types.Package {
	t.Helper()
	set := token.NewFileSet()
	var files []*ast.File
	names, err := fs.Glob(os.DirFS(dir), "*.go")
	if err != nil || len(names) == 0 {
		t.Fatalf("%s: %d files, %v", dir, len(names), err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(set, path.Join(dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	config := types.Config{Importer: onlyTime{}, Error: func(error) {}, IgnoreFuncBodies: true}
	p, _ := config.Check(dir, set, files, nil)
	return p
}

// onlyTime imports package time, of which it knows the durations, and no other.
type onlyTime struct{}

func (onlyTime) Import(path string) (*types.Package, error) {
	if path != "time" {
		return nil, fmt.Errorf("%s is not needed", path)
	}
	p := types.NewPackage("time", "time")
	name := types.NewTypeName(token.NoPos, p, "Duration", nil)
	duration := types.NewNamed(name, types.Typ[types.Int64], nil)
	p.Scope().Insert(name)
	for name, d := range map[string]time.Duration{"Microsecond": time.Microsecond, "Millisecond": time.Millisecond,
		"Second": time.Second, "Minute": time.Minute, "Hour": time.Hour} {
		p.Scope().Insert(types.NewConst(token.NoPos, p, name, duration, constant.MakeInt64(int64(d))))
	}
	p.MarkComplete()
	return p, nil
}
