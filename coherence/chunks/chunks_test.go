package chunks

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"latchkey/coherence/appmanager"
	"latchkey/coherence/protocol"
	"latchkey/dht"
	"latchkey/dht/keyspace"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	app     = keyspace.Key{0xaa}
	errDown = errors.New("down")
)

// net is an overlay of peers that may be down, lose answers, or answer with other bytes than they have.
type net struct {
	t     testing.TB
	f     int
	mu    sync.Mutex
	peers map[peer.ID]*member
	calls map[string]int // by what was asked
	// fault decides about a question; its error is the asker's. An answer may be spoiled.
	fault func(to peer.ID, q *request) error
	spoil func(from peer.ID, a *reply)
}

type member struct {
	net  *net
	id   peer.ID
	down bool
	*Service
	store *MemoryStore
}

func newNet(t testing.TB, f, peers int) *net {
	n := &net{t: t, f: f, peers: make(map[peer.ID]*member), calls: make(map[string]int)}
	for i := range peers {
		n.add(i)
	}
	return n
}

func (n *net) add(i int) *member {
	m := &member{net: n, id: peer.ID(fmt.Sprintf("peer %d", i)), store: new(MemoryStore)}
	m.start()
	n.mu.Lock()
	n.peers[m.id] = m
	n.mu.Unlock()
	return m
}

// start makes a service of a member, on what its store has.
func (m *member) start() {
	k, err := NewKeeper(m.store)
	if err != nil {
		m.net.t.Fatal(err)
	}
	if m.Service != nil {
		m.Service.Close()
	}
	m.Service = New(m, m.net.f, k)
	service := m.Service
	m.net.t.Cleanup(func() { service.Close() })
}

func (m *member) Self() peer.ID              { return m.id }
func (m *member) Handle(string, dht.Handler) {}

func (m *member) ReplicaSet(_ context.Context, at keyspace.Preimage, r int) (out []peer.AddrInfo, _ error) {
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	key := at.Key()
	distance := func(p peer.ID) []byte {
		d := sha256.Sum256([]byte(p))
		for i := range d {
			d[i] ^= key[i]
		}
		return d[:]
	}
	ids := slices.SortedFunc(maps.Keys(m.net.peers), func(a, b peer.ID) int { return bytes.Compare(distance(a), distance(b)) })
	for _, id := range ids[:min(r, len(ids))] {
		out = append(out, peer.AddrInfo{ID: id})
	}
	return out, nil
}

func (m *member) Call(_ context.Context, to peer.ID, _ keyspace.Key, _ string, msg []byte) ([]byte, error) {
	q, err := decodeRequest(msg)
	if err != nil {
		m.net.t.Errorf("%v asks %x: %v", m.id, msg, err)
	}
	n := m.net
	n.mu.Lock()
	o := n.peers[to]
	n.calls[kindOf(&q)]++
	if o.down {
		err = errDown
	} else if n.fault != nil {
		err = n.fault(to, &q)
	}
	n.mu.Unlock()
	if err != nil {
		return nil, err
	}
	o.Service.mu.Lock()
	b, err := o.answer(msg)
	o.Service.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if n.spoil != nil {
		a, err := decodeReply(b, len(q.have))
		if err != nil {
			return nil, err
		}
		n.spoil(to, &a)
		return a.encode()
	}
	return b, nil
}

func kindOf(q *request) string {
	switch {
	case len(q.have) > 0:
		return "have"
	case q.put != nil:
		return "put"
	case len(q.roots) > 0:
		return "collect"
	}
	return "get"
}

// keepers lists who has a chunk.
func (n *net) keepers(name protocol.Hash) (ids []peer.ID) {
	for id, m := range n.peers {
		m.Service.mu.Lock()
		if _, ok := m.keeper.apps[app][name]; ok {
			ids = append(ids, id)
		}
		m.Service.mu.Unlock()
	}
	slices.Sort(ids)
	return ids
}

func (n *net) any() *member { return n.peers["peer 0"] }

func value(i, size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{byte(i), byte(i >> 8)}).Read(b)
	return b
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestAChunkIsAtTheClosestAndOutlivesFOfThem(t *testing.T) {
	ctx := t.Context()
	n := newNet(t, 2, 9)
	for i, size := range []int{0, 1, smallChunk, smallChunk + 1, BytesMax} {
		chunk := value(i, size)
		name := must[protocol.Hash](t)(n.any().Put(ctx, app, 1, chunk))
		closest := must[[]peer.ID](t)(n.any().peers(ctx, name[0], 5))
		slices.Sort(closest)
		if at := n.keepers(name); !slices.Equal(at, closest) {
			t.Errorf("%d bytes are at %v, and the closest are %v", size, at, closest)
		}
		n.peers[closest[0]].down, n.peers[closest[1]].down = true, true
		for _, m := range n.peers {
			if m.down {
				continue
			}
			if got, err := m.Get(ctx, app, name); err != nil || !bytes.Equal(got, chunk) {
				t.Errorf("%d bytes: %v reads %d: %v", size, m.id, len(got), err)
			}
		}
		if _, err := n.any().Get(ctx, keyspace.Key{0xbb}, name); !errors.Is(err, ErrMissing) {
			t.Errorf("another application reads it: %v", err)
		}
		n.peers[closest[0]].down, n.peers[closest[1]].down = false, false
	}
	if _, err := n.any().Put(ctx, app, 1, make([]byte, BytesMax+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("one byte more: %v", err)
	}
}

func TestTooFewKeepersAreAnError(t *testing.T) {
	ctx := t.Context()
	n := newNet(t, 1, 3)
	for _, m := range n.peers {
		m.down = true
	}
	if _, err := n.any().Put(ctx, app, 1, []byte("x")); !errors.Is(err, ErrStored) || !errors.Is(err, errDown) {
		t.Errorf("one of three: %v", err)
	}
	n.peers["peer 1"].down = false
	if _, err := n.any().Put(ctx, app, 1, []byte("x")); err != nil {
		t.Errorf("two of three: %v", err)
	}
	alone := newNet(t, 1, 1)
	if _, err := alone.any().Put(ctx, app, 1, []byte("x")); err != nil {
		t.Errorf("in an overlay of one: %v", err)
	}
}

// TestWhatIsAlteredIsRefused: by one keeper, by all, and on the disk.
func TestWhatIsAlteredIsRefused(t *testing.T) {
	ctx := t.Context()
	n := newNet(t, 1, 5)
	chunk := []byte("the value")
	name := must[protocol.Hash](t)(n.any().Put(ctx, app, 1, chunk))
	at := n.keepers(name)
	var reader *member
	for id, m := range n.peers {
		if !slices.Contains(at, id) {
			reader = m
		}
	}
	spoiled := at[:1]
	n.spoil = func(from peer.ID, a *reply) {
		if a.chunk != nil && slices.Contains(spoiled, from) {
			a.chunk = []byte("another one")
		}
	}
	if got, err := reader.Get(ctx, app, name); err != nil || !bytes.Equal(got, chunk) {
		t.Errorf("one of three is altered: %q, %v", got, err)
	}
	spoiled = at
	if got, err := reader.Get(ctx, app, name); !errors.Is(err, ErrAltered) || got != nil {
		t.Errorf("all are altered: %q, %v", got, err)
	}
	n.spoil = nil
	for _, id := range at[:2] {
		n.peers[id].store.rot(name)
	}
	if got, err := reader.Get(ctx, app, name); err != nil || !bytes.Equal(got, chunk) {
		t.Errorf("two of three are altered on the disk: %q, %v", got, err)
	}
	n.peers[at[2]].store.rot(name)
	if _, err := reader.Get(ctx, app, name); !errors.Is(err, ErrMissing) {
		t.Errorf("all are altered on the disk: %v", err)
	}
	if left := n.keepers(name); len(left) > 0 {
		t.Errorf("%v think that they have it", left)
	}
}

// rot changes a chunk where it is stored.
func (s *MemoryStore) rot(name protocol.Hash) {
	at := [2][32]byte{app, name}
	s.blobs[at] = blob{s.blobs[at].note, []byte("rotten")}
}

// objects puts values and returns the manifest that names them, and the values.
func objects(t testing.TB, n *net, id protocol.CheckpointID, from, to, size int) (appmanager.Manifest, map[keyspace.Key][]byte) {
	m := appmanager.Manifest{Objects: make(map[keyspace.Key]protocol.Hash), Threads: make(map[protocol.ThreadID]protocol.Hash)}
	values := make(map[keyspace.Key][]byte)
	for i := from; i < to; i++ {
		key := keyspace.Key{byte(i >> 8), byte(i)}
		values[key] = value(i, size)
		m.Objects[key] = must[protocol.Hash](t)(n.any().Put(t.Context(), app, id, values[key]))
		m.Threads[protocol.ThreadID{byte(i >> 8), byte(i)}] = m.Objects[key]
	}
	m.Threads[protocol.ThreadID{0xff}] = protocol.Hash{} // without a state
	return m, values
}

func TestACheckpointComesBackWhole(t *testing.T) {
	ctx := t.Context()
	n := newNet(t, 1, 7)
	m, values := objects(t, n, 1, 0, 50, 100)
	root := must[protocol.Hash](t)(n.any().Save(ctx, app, 1, m))
	for _, p := range n.peers {
		got := must[appmanager.Manifest](t)(p.Load(ctx, app, root))
		if !reflect.DeepEqual(got, m) {
			t.Fatalf("%v reads another manifest", p.id)
		}
		for key, name := range got.Objects {
			if b := must[[]byte](t)(p.Get(ctx, app, name)); !bytes.Equal(b, values[key]) {
				t.Fatalf("%v reads another value of %x", p.id, key[:2])
			}
		}
	}
	if _, err := n.any().Load(ctx, keyspace.Key{0xbb}, root); !errors.Is(err, ErrMissing) {
		t.Errorf("another application's: %v", err)
	}
	if m, err := n.any().Load(ctx, app, protocol.Hash{}); err != nil || len(m.Objects) > 0 {
		t.Errorf("before the first: %v, %v", m, err)
	}
}

// TestSavingGoesOnWhereItWas: after a failure, by somebody else, only what is missing is sent.
func TestSavingGoesOnWhereItWas(t *testing.T) {
	ctx := t.Context()
	n := newNet(t, 1, 3)
	m, _ := objects(t, n, 1, 0, 40, 2*smallChunk)
	lost := slices.SortedFunc(maps.Values(m.Objects), func(a, b protocol.Hash) int { return bytes.Compare(a[:], b[:]) })[:10]
	var lostNames [][32]byte
	for _, name := range lost {
		lostNames = append(lostNames, name)
	}
	for _, p := range n.peers { // one keeper of each of ten has lost it, another one of all of them
		p.Service.mu.Lock()
		if p.id != "peer 0" {
			p.keeper.drop(app, lostNames)
		}
		p.Service.mu.Unlock()
	}
	puts := 0
	n.fault = func(_ peer.ID, q *request) error {
		if q.put != nil {
			if puts++; puts > 5 {
				return errDown
			}
		}
		return nil
	}
	clear(n.calls)
	if _, err := n.any().Save(ctx, app, 1, m); !errors.Is(err, ErrStored) {
		t.Fatalf("with links that fail: %v", err)
	}
	n.fault = nil
	clear(n.calls)
	root := must[protocol.Hash](t)(n.peers["peer 1"].Save(ctx, app, 1, m))
	if most := 20 - 5 + 2*3; n.calls["put"] > most {
		t.Errorf("%d chunks are put, at most %d were missing", n.calls["put"], most)
	}
	clear(n.calls)
	if again := must[protocol.Hash](t)(n.peers["peer 2"].Save(ctx, app, 1, m)); again != root {
		t.Error("the same manifest has two names")
	}
	for _, name := range lost {
		if at := n.keepers(name); len(at) != 3 {
			t.Errorf("%x is at %v", name[:4], at)
		}
	}
}

// TestAMissingChunkFailsTheSave: never a manifest that names what nobody has.
func TestAMissingChunkFailsTheSave(t *testing.T) {
	n := newNet(t, 1, 3)
	m, _ := objects(t, n, 1, 0, 5, 10)
	m.Objects[keyspace.Key{9}] = Name([]byte("nobody has put this"))
	if root, err := n.any().Save(t.Context(), app, 1, m); !errors.Is(err, ErrMissing) || root != (protocol.Hash{}) {
		t.Errorf("%x, %v", root, err)
	}
}

// collect tells keepers, and waits until they have done it.
func (n *net) collect(id protocol.CheckpointID, roots ...protocol.Hash) {
	for _, m := range n.peers {
		if !m.down {
			m.collectOf(&request{app: app, id: id, roots: roots})
		}
	}
}

func TestOnlyWhatNoManifestNamesIsCollected(t *testing.T) {
	ctx := t.Context()
	n := newNet(t, 1, 5)
	old, _ := objects(t, n, 1, 0, 10, 100)
	root1 := must[protocol.Hash](t)(n.any().Save(ctx, app, 1, old))
	mid, _ := objects(t, n, 2, 5, 15, 100)
	root2 := must[protocol.Hash](t)(n.any().Save(ctx, app, 2, mid))
	last, _ := objects(t, n, 3, 10, 20, 100)
	root3 := must[protocol.Hash](t)(n.any().Save(ctx, app, 3, last))
	aborted := must[protocol.Hash](t)(n.any().Put(ctx, app, 2, []byte("of a checkpoint that was given up")))
	next := must[protocol.Hash](t)(n.any().Put(ctx, app, 4, []byte("of one that has begun")))
	reused := old.Objects[keyspace.Key{0, 0}]
	must[protocol.Hash](t)(n.any().Put(ctx, app, 4, value(0, 100))) // wanted again

	n.collect(3, root2, root3)
	there := func(what string, want bool, names ...protocol.Hash) {
		t.Helper()
		for _, name := range names {
			if at := n.keepers(name); (len(at) > 0) != want {
				t.Errorf("%s: %x is at %v", what, name[:4], at)
			}
		}
	}
	there("manifests", true, root2, root3)
	there("the one before the one before", false, root1)
	there("given up", false, aborted)
	there("begun", true, next, reused)
	for i := 1; i < 20; i++ {
		there(fmt.Sprint("object ", i), i >= 5, Name(value(i, 100)))
	}
	// What cannot be known is not dropped.
	n.collect(9, root1)
	there("after a manifest that is gone", true, root2, root3, next, reused)
	if err := n.any().Collect(ctx, app, 3, root1, root2, root3); !errors.Is(err, ErrManifest) {
		t.Errorf("three manifests count: %v", err)
	}
	n.collect(20) // the application is over
	there("nothing", false, root2, root3, next, reused)
}

func TestAKeeperHasLimits(t *testing.T) {
	k := must[*Keeper](t)(NewKeeper(new(MemoryStore)))
	k.countMax, k.bytesMax = 3, 100
	for i, c := range []struct {
		size int
		err  error
	}{{60, nil}, {41, ErrFull}, {40, nil}, {0, nil}, {1, ErrFull}} {
		if err := k.Put(app, 1, value(i, c.size)); !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
			t.Errorf("chunk %d of %d bytes: %v", i, c.size, err)
		}
	}
	if err := k.Put(app, 2, value(0, 60)); err != nil {
		t.Errorf("one that is there: %v", err)
	}
	if n, b := k.Usage(); n != 3 || b != 100 {
		t.Errorf("%d chunks of %d bytes", n, b)
	}
	if n, err := k.Collect(app, 1, nil); n != 2 || err != nil {
		t.Errorf("%d collected, %v", n, err)
	}
	if n, b := k.Usage(); n != 1 || b != 60 {
		t.Errorf("%d chunks of %d bytes are left", n, b)
	}
	n := newNet(t, 1, 3)
	for _, m := range n.peers {
		m.keeper.bytesMax = 10
	}
	if _, err := n.any().Put(t.Context(), app, 1, value(1, 11)); !errors.Is(err, ErrFull) || !errors.Is(err, ErrStored) {
		t.Errorf("no room anywhere: %v", err)
	}
}

// TestTheLastCheckpointIsAlwaysThere draws overlays in which at most f peers fail between two checkpoints, peers join, and checkpoints are given up:
// what was saved last can be read, whole, from everywhere and at any time.
func TestTheLastCheckpointIsAlwaysThere(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 7))
		f := 1 + r.IntN(2)
		n := newNet(t, f, 2*f+1+r.IntN(6))
		ctx := t.Context()
		state := make(map[keyspace.Key][]byte)
		var saved map[keyspace.Key][]byte
		manifest := appmanager.Manifest{Objects: map[keyspace.Key]protocol.Hash{}, Threads: map[protocol.ThreadID]protocol.Hash{}}
		var root, before protocol.Hash
		up := func() (ms []*member) {
			for _, m := range n.peers {
				if !m.down {
					ms = append(ms, m)
				}
			}
			slices.SortFunc(ms, func(a, b *member) int { return cmp.Compare(a.id, b.id) })
			return ms
		}
		pick := func() *member { ms := up(); return ms[r.IntN(len(ms))] }
		for id := protocol.CheckpointID(1); id < 12; id++ {
			for _, m := range n.peers { // who failed comes back, some with nothing
				if m.down {
					if m.down = false; r.IntN(2) == 0 {
						m.store = new(MemoryStore)
					}
					m.start()
				}
			}
			// The repair of what the returned ones lost is a save's; before it nobody else fails.
			next := appmanager.Manifest{Objects: maps.Clone(manifest.Objects), Threads: map[protocol.ThreadID]protocol.Hash{}}
			for range r.IntN(6) {
				key := keyspace.Key{byte(r.IntN(10))}
				state[key] = value(r.IntN(1000), r.IntN(3*smallChunk))
				name, err := pick().Put(ctx, app, id, state[key])
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				next.Objects[key] = name
			}
			if r.IntN(4) == 0 { // given up
				for key := range state {
					delete(state, key)
				}
				maps.Copy(state, saved)
				continue
			}
			name, err := pick().Save(ctx, app, id, next)
			if err != nil {
				t.Fatalf("seed %d: checkpoint %d: %v", seed, id, err)
			}
			before, root, manifest, saved = root, name, next, maps.Clone(state)
			roots := slices.DeleteFunc([]protocol.Hash{before, root}, func(h protocol.Hash) bool { return h == protocol.Hash{} })
			n.collect(id, roots...)
			switch r.IntN(3) {
			case 0:
				n.add(100 + int(id))
			case 1:
				ms := up()
				for _, i := range r.Perm(len(ms))[:f] {
					ms[i].down = true
				}
			}
			reader := pick()
			got, err := reader.Load(ctx, app, root)
			if err != nil || !maps.Equal(got.Objects, manifest.Objects) {
				t.Fatalf("seed %d: checkpoint %d: %v", seed, id, err)
			}
			for key, name := range got.Objects {
				if b, err := reader.Get(ctx, app, name); err != nil || !bytes.Equal(b, saved[key]) {
					t.Fatalf("seed %d: checkpoint %d: object %x: %v", seed, id, key[:1], err)
				}
			}
		}
		for _, m := range n.peers {
			m.Close()
		}
	}
}

func requests() []request {
	return []request{
		{app: app, id: 1, have: []protocol.Hash{{1}, {2}}}, {app: app, id: 2, put: []byte{3}}, {app: app, put: []byte{}}, {app: app, get: protocol.Hash{4}},
		{app: app, id: 5, roots: []protocol.Hash{{6}, {7}}},
	}
}

func TestQuestionsComeBackAsTheyWere(t *testing.T) {
	longest := request{app: app, id: 1<<64 - 1, put: make([]byte, BytesMax)}
	many := request{app: app, have: make([]protocol.Hash, NamesMax)}
	for _, q := range append(requests(), longest, many) {
		b := must[[]byte](t)(q.encode())
		if got, err := decodeRequest(b); err != nil || !same(&got, &q) {
			t.Errorf("%v: %v", kindOf(&q), err)
		}
	}
	tooLarge, tooMany := request{app: app, put: make([]byte, BytesMax+1)}, request{app: app, have: make([]protocol.Hash, NamesMax+1)}
	both, three := request{app: app, put: []byte{1}, get: protocol.Hash{1}}, request{app: app, roots: make([]protocol.Hash, rootsMax+1)}
	for _, q := range []request{{app: app}, both, tooLarge, tooMany, three} {
		if _, err := decodeRequest(must[[]byte](t)(q.encode())); !errors.Is(err, ErrMalformed) {
			t.Errorf("%v: %v", kindOf(&q), err)
		}
	}
	if _, err := decodeRequest(make([]byte, MessageBytesMax+1)); !errors.Is(err, ErrMalformed) {
		t.Errorf("too long: %v", err)
	}
	a := reply{has: []bool{true, false, true, true, false, false, false, false, true}}
	if got, err := decodeReply(must[[]byte](t)(a.encode()), 9); err != nil || !slices.Equal(got.has, a.has) {
		t.Errorf("%v, %v", got.has, err)
	}
	if _, err := decodeReply(must[[]byte](t)(a.encode()), 8); !errors.Is(err, ErrMalformed) {
		t.Errorf("an answer about more than was asked: %v", err)
	}
}

func same(a, b *request) bool {
	return a.app == b.app && a.id == b.id && slices.Equal(a.have, b.have) && bytes.Equal(a.put, b.put) && a.get == b.get && slices.Equal(a.roots, b.roots)
}

func FuzzDecodeRequest(f *testing.F) {
	for _, q := range requests() {
		f.Add(must[[]byte](f)(q.encode()))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := decodeRequest(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Error(err)
			}
			return
		}
		if got, err := decodeRequest(must[[]byte](t)(q.encode())); err != nil || !same(&got, &q) {
			t.Error(err)
		}
	})
}

func FuzzDecodeReply(f *testing.F) {
	for _, a := range []reply{{has: []bool{true, false}}, {chunk: []byte{1}}, {chunk: []byte{}}, {full: true}, {busy: true}} {
		f.Add(must[[]byte](f)(a.encode()), len(a.has))
	}
	f.Fuzz(func(t *testing.T, b []byte, names int) {
		if a, err := decodeReply(b, min(max(names, 0), NamesMax)); err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Error(err)
			}
		} else if got, err := decodeReply(must[[]byte](t)(a.encode()), len(a.has)); err != nil || !reflect.DeepEqual(got, a) {
			t.Errorf("%+v becomes %+v: %v", a, got, err)
		}
	})
}

// TestTheLargestManifestFits: parts below BytesMax, and all of it back.
func TestTheLargestManifestFits(t *testing.T) {
	m := appmanager.Manifest{Objects: make(map[keyspace.Key]protocol.Hash), Threads: make(map[protocol.ThreadID]protocol.Hash)}
	for i := range protocol.ObjectsMax {
		m.Objects[keyspace.Key{byte(i), byte(i >> 8), byte(i >> 16), 1}] = protocol.Hash{byte(i)}
	}
	for i := range protocol.ThreadsMax {
		m.Threads[protocol.ThreadID{byte(i), byte(i >> 8)}] = protocol.Hash{byte(i)}
	}
	parts := must[[][]byte](t)(encodeManifest(app, 1, m))
	got := appmanager.Manifest{Objects: make(map[keyspace.Key]protocol.Hash), Threads: make(map[protocol.ThreadID]protocol.Hash)}
	root := parts[len(parts)-1]
	if _, names, err := decodeRoot(app, root); err != nil || len(names) != len(parts)-1 {
		t.Fatal(err)
	}
	for _, b := range parts[:len(parts)-1] {
		if err := decodePart(b, &got); err != nil || len(b) > BytesMax {
			t.Fatalf("a part of %d bytes: %v", len(b), err)
		}
	}
	if !reflect.DeepEqual(got, m) {
		t.Error("another manifest comes back")
	}
	m.Objects[keyspace.Key{}] = protocol.Hash{1}
	if _, err := encodeManifest(app, 1, m); !errors.Is(err, ErrManifest) {
		t.Errorf("one object more: %v", err)
	}
}

func FuzzDecodeManifest(f *testing.F) {
	m := appmanager.Manifest{Objects: map[keyspace.Key]protocol.Hash{{1}: {2}}, Threads: map[protocol.ThreadID]protocol.Hash{{3}: {4}}}
	for _, b := range must[[][]byte](f)(encodeManifest(app, 1, m)) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got := appmanager.Manifest{Objects: make(map[keyspace.Key]protocol.Hash), Threads: make(map[protocol.ThreadID]protocol.Hash)}
		if err := decodePart(b, &got); err != nil && !errors.Is(err, ErrManifest) {
			t.Error(err)
		}
		if _, _, err := decodeRoot(app, b); err != nil && !errors.Is(err, ErrManifest) {
			t.Error(err)
		}
	})
}
