package session

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/replicagroup/order"
)

// jar is a machine that keeps words for names: "name=word" puts one in, "name" reads it.
type jar struct {
	quiet
	words  map[string]string
	owners map[string]order.ClientID
	ended  []order.ClientID
}

// quiet is what a machine has that does nothing by itself.
type quiet struct{}

func (quiet) Query(Context, []byte) []byte         { return nil }
func (quiet) Tick(Context)                         {}
func (quiet) SessionEnded(Context, order.ClientID) {}
func (quiet) Deadline() (time.Duration, bool)      { return 0, false }
func (quiet) Resend(Context)                       {}
func (quiet) Apply(Context, []byte) []byte         { return nil }
func (quiet) Snapshot() []byte                     { return nil }
func (quiet) Restore([]byte) error                 { return nil }

func newJar() *jar { return &jar{words: map[string]string{}, owners: map[string]order.ClientID{}} }

func (j *jar) Apply(c Context, data []byte) []byte {
	if name, word, ok := strings.Cut(string(data), "="); ok {
		j.words[name], j.owners[name] = j.words[name]+word, c.Client
	}
	name, _, _ := strings.Cut(string(data), "=")
	return []byte(j.words[name])
}

func (j *jar) SessionEnded(_ Context, id order.ClientID) { j.ended = append(j.ended, id) }

func (j *jar) KeyOf(data []byte, _ bool) (keyspace.Key, bool) {
	name, _, _ := strings.Cut(string(data), "=")
	return keyspace.Preimage(name).Key(), name != ""
}

func (j *jar) Carve(_ Context, name string) ([]byte, []PartClient) {
	word, ok := j.words[name]
	if !ok {
		return []byte{}, nil
	}
	delete(j.words, name)
	return []byte(name + "=" + word), []PartClient{{ID: j.owners[name], Keep: time.Minute}}
}

func (j *jar) Graft(_ Context, part []byte) error {
	name, word, _ := strings.Cut(string(part), "=")
	if word == "broken" {
		return errors.New("broken")
	}
	if name != "" {
		j.words[name] = word
	}
	return nil
}

// door is a gate that a command shuts for one name, carving it out, or opens, grafting what was.
type door struct {
	quiet
	shut string
	part []byte
}

func (d *door) Away(k keyspace.Key) bool { return d.shut != "" && keyspace.Preimage(d.shut).Key() == k }
func (d *door) Open() bool               { return d.shut == "" }
func (d *door) Apply(c Context, data []byte) []byte {
	if d.shut != "" {
		d.shut = ""
		return fmt.Append(nil, c.Parts.Graft(d.part))
	}
	var err error
	if d.part, err = c.Parts.Carve(string(data)); err == nil {
		d.shut = string(data)
	}
	return fmt.Append(nil, err)
}

type splitWorld struct {
	*Table
	jar  *jar
	door *door
	n    uint64
}

func newSplitWorld() *splitWorld {
	w := &splitWorld{jar: newJar(), door: new(door)}
	w.Table = NewTable(automaton.DriftDefault, map[string]Machine{"jar": w.jar, "door": w.door})
	return w
}

func (w *splitWorld) do(c order.Command) Result {
	w.n++
	return w.Table.Apply(order.Entry{Index: w.n, Kind: order.Normal, Cmd: c}, new(Outputs))
}

func (w *splitWorld) open(id byte) {
	w.do(order.Command{Client: order.ClientID{id}, Author: keyspace.NodeID{id}, Service: Service, Data: OpenData(time.Second)})
}

func (w *splitWorld) call(id byte, seq uint64, service, data string) Result {
	return w.do(order.Command{Client: order.ClientID{id}, Author: keyspace.NodeID{id}, Seq: seq, Service: service, Data: []byte(data)})
}

func TestCommandsOfAKeyThatIsAwayTakeNoEffect(t *testing.T) {
	w := newSplitWorld()
	w.open(1)
	w.open(2)
	w.call(1, 1, "jar", "a=x")
	if res := w.call(2, 1, "door", "a"); string(res.Data) != "<nil>" {
		t.Fatalf("carve: %s", res.Data)
	}
	for _, c := range []struct {
		seq  uint64
		data string
		want Status
	}{
		{1, "a=x", OK}, // an answer from before is there still
		{2, "a=y", Moved}, {3, "b=z", OK}, {2, "a=y", Moved},
	} {
		if res := w.call(1, c.seq, "jar", c.data); res.Status != c.want {
			t.Errorf("%d %s: %v, want %v", c.seq, c.data, res.Status, c.want)
		}
	}
	if s, _ := w.Query("jar", keyspace.NodeID{}, []byte("a")); s != Moved {
		t.Errorf("query: %v", s)
	}
	if res := w.call(2, 2, "door", ""); string(res.Data) != "<nil>" {
		t.Fatalf("graft: %s", res.Data)
	}
	if res := w.call(1, 2, "jar", "a=y"); res.Status != Moved {
		t.Errorf("a number that was answered moved is answered otherwise: %v", res.Status)
	}
	if res := w.call(1, 4, "jar", "a"); string(res.Data) != "x" {
		t.Errorf("back: %q", res.Data)
	}
}

// Behind the entry that shuts a gate for ever, every replica tells alike what became of a command, and asks nobody.
func TestOutcomeBehindTheGate(t *testing.T) {
	w := newSplitWorld()
	w.open(1)
	w.call(1, 1, "jar", "a=x")
	w.call(1, 2, "jar", "a=y")
	ask := func(by byte, seq uint64, service, data string) (Status, string, bool) {
		s, d, ok := w.Outcome(order.Command{Client: order.ClientID{1}, Author: keyspace.NodeID{by}, Seq: seq, Acked: 1, Service: service, Data: []byte(data)})
		return s, string(d), ok
	}
	if _, _, ok := ask(1, 2, "jar", "a=y"); ok {
		t.Error("an outcome while the key is served")
	}
	w.call(1, 3, "door", "a")
	before := w.Digest()
	if s, d, ok := ask(1, 2, "jar", "a=y"); s != OK || d != "xy" || !ok {
		t.Errorf("executed before: %v, %q, %v", s, d, ok)
	}
	if s, _, ok := ask(1, 4, "jar", "a=z"); s != Moved || !ok {
		t.Errorf("never executed: %v, %v", s, ok)
	}
	if _, _, ok := ask(1, 5, "door", "a"); ok {
		t.Error("an outcome of what is not about a key")
	}
	if _, _, ok := ask(1, 6, "jar", "b=z"); ok {
		t.Error("an outcome of what is served")
	}
	if _, _, ok := ask(2, 2, "jar", "a=y"); ok {
		t.Error("an outcome for another peer")
	}
	if w.Digest() != before {
		t.Error("asking has changed something")
	}
	if got := w.call(1, 4, "jar", "a=z"); got.Status != Moved {
		t.Errorf("the log says %v", got.Status)
	}
	w.do(order.Command{Client: order.ClientID{1}, Author: keyspace.NodeID{1}, Seq: 7, Acked: 2, Service: "jar", Data: []byte("a=z")})
	if _, _, ok := ask(1, 2, "jar", "a=y"); ok {
		t.Error("an outcome of what was acknowledged")
	}
}

func TestSessionsGoAlongWithTheirKey(t *testing.T) {
	from, to := newSplitWorld(), newSplitWorld()
	from.open(1)
	from.call(1, 1, "jar", "a=x")
	part, err := from.Carve("a")
	if err != nil {
		t.Fatal(err)
	}
	if err := to.Graft(part); err != nil || to.Sessions() != 1 {
		t.Fatalf("graft: %v, %d sessions", err, to.Sessions())
	}
	if res := to.call(1, 1, "jar", "a"); res.Status != OK || string(res.Data) != "x" {
		t.Errorf("its owner: %+v", res)
	}
	// A session that was ended here is over, and so is what it waited for.
	over := newSplitWorld()
	over.open(1)
	over.do(order.Command{Client: order.ClientID{1}, Author: keyspace.NodeID{1}, Service: Service, Data: CloseData()})
	over.jar.ended = nil
	if err := over.Graft(part); err != nil || over.Sessions() != 0 || len(over.jar.ended) != 1 {
		t.Errorf("graft: %v, %d sessions, ended %v", err, over.Sessions(), over.jar.ended)
	}
}

func TestPartsThatDoNotFitChangeNothing(t *testing.T) {
	w := newSplitWorld()
	w.open(1)
	for i := range uint64(5) {
		w.call(1, i+1, "jar", "a="+strings.Repeat("x", PartBytesMax/5))
	}
	if _, err := w.Carve("a"); !errors.Is(err, ErrPartTooLarge) || len(w.jar.words["a"]) < PartBytesMax/5*5 {
		t.Errorf("carve: %v, %d bytes left", err, len(w.jar.words["a"]))
	}
	w.jar.words["a"] = "broken"
	part, err := w.Carve("a")
	if err != nil {
		t.Fatal(err)
	}
	if err := newSplitWorld().Graft(part); !errors.Is(err, ErrNoRoom) {
		t.Errorf("graft: %v", err)
	}
	other := NewTable(automaton.DriftDefault, map[string]Machine{"quiet": quiet{}, "jar": newJar()})
	if _, err := other.Carve("a"); !errors.Is(err, ErrIndivisible) {
		t.Errorf("a service that cannot be split: %v", err)
	}
	if err := NewTable(automaton.DriftDefault, nil).Graft(part); !errors.Is(err, ErrNoRoom) {
		t.Errorf("a service that is not there: %v", err)
	}
}

func FuzzGraft(f *testing.F) {
	w := newSplitWorld()
	w.open(1)
	w.call(1, 1, "jar", "a=x")
	part, _ := w.Carve("a")
	f.Add(part)
	f.Fuzz(func(t *testing.T, b []byte) {
		w := newSplitWorld()
		before := w.Digest()
		if w.Graft(b) != nil && w.Digest() != before {
			t.Fatal("a refused part has changed something")
		}
	})
}
