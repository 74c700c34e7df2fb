package coherence

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/coherence/cachedcopy"
	"latchkey/coherence/protocol"
	"latchkey/dht"
	"latchkey/dht/keyspace"
)

// serviceNames is the overlay's service by which a node that has an application open is asked which objects it owns there, and what one is called.
// Managers know objects by their keys alone, which say nothing of names; owners have been told them, or ask who hands an object over.
const serviceNames = "coherence/names"

const (
	// namesPageMax bounds the names in one answer, and namesBytesMax the bytes of one. Who wants more asks for those after the last.
	namesPageMax  = 4096
	namesBytesMax = 256 << 10
	// namesAskingMax bounds the questions of a host under way: one more waits.
	namesAskingMax = 16
	// namesTimeout bounds how long a node has to answer.
	namesTimeout = 3 * time.Second
)

// Listed is what [App.List] finds.
type Listed struct {
	Objects []ListedObject // by rising name
	Unnamed int            // objects whose owners do not know what they are called; which of them would be listed nobody knows
	Silent  []peer.ID      // who has the application open and gave no answer: what they own is missing
}

// ListedObject is an object with a value.
type ListedObject struct {
	Name  string
	Bytes int
	Owner peer.ID
}

// List returns the objects of the application that have a value, and names that begin with prefix, at most limit of them, the first ones. It asks the
// nodes that have the application open what they own, so it is no snapshot: what is handed from one to another meanwhile may be missing, or be there
// twice. An object without bytes is none. It blocks until all have answered, each for some seconds at most, or ctx ends.
func (a *App) List(ctx context.Context, prefix string, limit int) (Listed, error) {
	if prefix != "" {
		if err := checkName("an object", prefix); err != nil {
			return Listed{}, err
		}
	}
	if a.isOver.Load() {
		return Listed{}, ErrRestarted
	}
	info, err := a.s.ask(ctx, a.key)
	if err != nil {
		return Listed{}, err
	}
	if info.Epoch != a.Epoch() {
		return Listed{}, ErrRestarted
	}
	var mu sync.Mutex
	var all Listed
	var asked sync.WaitGroup
	room := make(chan struct{}, namesAskingMax)
	for _, n := range info.Nodes {
		asked.Go(func() {
			room <- struct{}{}
			defer func() { <-room }()
			p, got, err := a.ownedBy(ctx, n, prefix, limit)
			mu.Lock()
			defer mu.Unlock()
			all.Objects = append(all.Objects, got.Objects...)
			all.Unnamed += got.Unnamed
			if err != nil {
				log.Debugw("a node does not tell of its objects", "app", a.name, "node", n, "err", err)
				all.Silent = append(all.Silent, p)
			}
		})
	}
	asked.Wait()
	if ctx.Err() != nil {
		return Listed{}, context.Cause(ctx)
	}
	slices.SortFunc(all.Objects, func(x, y ListedObject) int { return strings.Compare(x.Name, y.Name) })
	all.Objects = slices.CompactFunc(all.Objects, func(x, y ListedObject) bool { return x.Name == y.Name })
	all.Objects = all.Objects[:min(len(all.Objects), limit)]
	slices.Sort(all.Silent)
	return all, nil
}

// ownedBy asks one node, this one included.
func (a *App) ownedBy(ctx context.Context, n protocol.NodeRef, prefix string, limit int) (p peer.ID, got Listed, err error) {
	p = a.s.overlay.Self()
	if n != a.self {
		ok := false
		if p, ok = a.s.peerOf(ctx, a.key, n.ID); !ok {
			return "", got, fmt.Errorf("coherence: node %v is not known here", n)
		}
	}
	for after := ""; len(got.Objects) < limit; {
		var page namesPage
		if n == a.self {
			page = a.owned(prefix, after)
		} else if page, err = a.s.askNames(ctx, p, n, a.key, prefix, after); err != nil {
			return p, got, err
		}
		if after == "" {
			got.Unnamed = page.unnamed
		}
		for i, name := range page.names {
			got.Objects = append(got.Objects, ListedObject{name, page.bytes[i], p})
		}
		if !page.more || len(page.names) == 0 {
			break
		}
		after = page.names[len(page.names)-1]
	}
	return p, got, nil
}

// namesPage is some of the objects that a node owns.
type namesPage struct {
	names   []string // rising
	bytes   []int
	unnamed int
	more    bool // there are others after the last
}

// owned returns the first objects that this node owns with names above after.
func (a *App) owned(prefix, after string) (p namesPage) {
	type object struct {
		name  string
		bytes int
	}
	var all []object
	a.objects.Range(func(_, v any) bool {
		c := v.(*copyOf)
		name := c.called()
		if name != "" && (name <= after || !strings.HasPrefix(name, prefix)) {
			return true
		}
		size := 0
		c.cached.Inspect(func(k *cachedcopy.Copy) {
			if k.State().Master() {
				size = len(k.Value().Bytes)
			}
		})
		switch {
		case size == 0:
		case name == "":
			p.unnamed++
		default:
			all = append(all, object{name, size})
		}
		return true
	})
	slices.SortFunc(all, func(x, y object) int { return strings.Compare(x.name, y.name) })
	total := 0
	for _, o := range all {
		if total += len(o.name) + 2*binary.MaxVarintLen32; len(p.names) == namesPageMax || total > namesBytesMax/2 {
			p.more = true
			break
		}
		p.names, p.bytes = append(p.names, o.name), append(p.bytes, o.bytes)
	}
	return p
}

// A question is: a byte, the application's key, the incarnation that is asked; then, to list, prefix and after, each with its length, or, for a name, the
// object's key. The answer to a list is: unnamed, more, number; for each: name with its length, bytes. To a name: the name. A node that is not asked
// any more answers nothing.
const (
	askList = 1 + iota
	askName
)

func (s *Service) askNames(ctx context.Context, p peer.ID, n protocol.NodeRef, app keyspace.Key, prefix, after string) (namesPage, error) {
	q := binary.AppendUvarint(append([]byte{askList}, app[:]...), n.Inc)
	q = appendString(appendString(q, prefix), after)
	ctx, cancel := context.WithTimeout(ctx, namesTimeout)
	defer cancel()
	b, err := s.overlay.Call(ctx, p, keyspace.Key{}, serviceNames, q)
	switch {
	case err != nil:
		return namesPage{}, err
	case len(b) == 0:
		return namesPage{}, fmt.Errorf("coherence: %v does not have the application open any more", p)
	}
	return decodePage(b, prefix, after)
}

// answerNames tells of what this node owns.
func (s *Service) answerNames(req *dht.Request) {
	r := &reader{b: req.Data}
	kind, app := r.byte(), r.key()
	inc := r.uint()
	var prefix, after string
	var object keyspace.Key
	switch kind {
	case askList:
		prefix, after = r.string(), r.string()
	case askName:
		object = r.key()
	default:
		r.fail("question %d", kind)
	}
	if r.end() != nil || req.OneWay() {
		req.Misbehaved("malformed question about objects")
		return
	}
	s.mu.Lock()
	a := s.apps[app]
	s.mu.Unlock()
	var b []byte
	switch {
	case a == nil || a.self.Inc != inc:
	case kind == askList:
		b = a.owned(prefix, after).encode()
	default:
		if c, ok := a.objects.Load(object); ok {
			b = []byte(c.(*copyOf).called())
		}
	}
	req.Reply(b)
}

func (p namesPage) encode() []byte {
	more := uint64(0)
	if p.more {
		more = 1
	}
	b := binary.AppendUvarint(nil, uint64(p.unnamed))
	b = binary.AppendUvarint(binary.AppendUvarint(b, more), uint64(len(p.names)))
	for i, name := range p.names {
		b = binary.AppendUvarint(appendString(b, name), uint64(p.bytes[i]))
	}
	return b
}

// decodePage reads what a node says of the objects that it owns. It refuses what was not asked for.
func decodePage(b []byte, prefix, after string) (p namesPage, err error) {
	r := &reader{b: b}
	if len(b) > namesBytesMax {
		r.fail("%d bytes about objects", len(b))
	}
	p.unnamed = int(min(r.uint(), ObjectsMax))
	p.more = r.uint() == 1
	n := r.uint()
	if n > namesPageMax || n > uint64(len(r.b)/2) {
		r.fail("%d names in %d bytes", n, len(r.b))
	}
	for range n {
		name := r.string()
		size := int(min(r.uint(), protocol.ValueMax))
		if r.err != nil {
			break
		}
		if name <= after || !strings.HasPrefix(name, prefix) || checkName("an object", name) != nil {
			r.fail("%.80q was not asked for", name)
			break
		}
		p.names, p.bytes = append(p.names, name), append(p.bytes, size)
		after = name
	}
	if err := r.end(); err != nil {
		return namesPage{}, err
	}
	return p, nil
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// called returns the object's name, or nothing where this node was not told.
func (c *copyOf) called() string {
	if n := c.name.Load(); n != nil {
		return *n
	}
	return ""
}

// nameTries is how often a node asks what an object is called that it is to own, before it owns one without a name. Whom it does not know it waits for
// no longer than for an answer.
const nameTries = 3

// naming is a question what an object is called.
type naming struct {
	from  protocol.NodeRef // who hands the object over
	since time.Time        // that one is to be introduced to this node; zero: it is known
	asked bool             // somebody was asked, and has not answered
	tries int              // questions to from that were not answered
}

// next says what a BECOME_OWNER of from, which this node may know, has it do at that time: to ask, to take it without a name, or to wait for another one.
func (n *naming) next(from protocol.NodeRef, known bool, at time.Time) (ask, take bool) {
	if n.from != from {
		*n = naming{from: from, asked: n.asked}
	}
	switch {
	case n.asked:
	case known:
		take = n.tries >= nameTries
		ask = !take
		n.asked, n.since = ask, time.Time{}
	case n.since.IsZero():
		n.since = at
	default:
		take = at.Sub(n.since) >= namesTimeout
	}
	return ask, take
}

// learnName has a node that is to own an object, of which it knows nothing but the key, ask who hands it over what it is called, and reports whether m, which
// makes it the owner, is to be taken at once. If not it is taken when the answer is here. When none comes it is dropped: it is repeated, and who
// sent it stays for as long, so one answer that is lost leaves no object without a name. Each hand-over is asked about anew. It does not block.
func (a *App) learnName(c *copyOf, m *protocol.Message) (now bool) {
	if c.called() != "" {
		return true
	}
	wants := false
	c.cached.Inspect(func(k *cachedcopy.Copy) { wants = k.Wants(m) })
	if !wants {
		return true // it is refused, or does nothing
	}
	from := m.Requester
	p, known := a.s.overlay.PeerOf(from.ID)
	a.names.Lock()
	n := a.naming[c.key]
	ask, now := n.next(from, known, time.Now())
	if now {
		delete(a.naming, c.key)
	} else {
		if a.naming == nil {
			a.naming = make(map[keyspace.Key]naming)
		}
		a.naming[c.key] = n
	}
	a.names.Unlock()
	switch {
	case now:
	case ask:
		a.askName(c, p, *m)
	case !known:
		a.s.introduce(c.key, from.ID, func(peer.ID) {})
	}
	return now
}

// askName asks who hands an object over what it is called, and takes m with the answer.
func (a *App) askName(c *copyOf, p peer.ID, m protocol.Message) {
	from := m.Requester
	q := append(binary.AppendUvarint(append([]byte{askName}, a.key[:]...), from.Inc), c.key[:]...)
	a.s.overlay.Go(p, keyspace.Key{}, serviceNames, q, namesTimeout, func(b []byte, err error) {
		// The key proves the name. Who answers with none does not know it either.
		name := string(b)
		knows := err == nil && checkName("an object", name) == nil && ObjectKey(a.name, name) == c.key
		if knows {
			c.name.Store(&name)
		}
		a.names.Lock()
		n := a.naming[c.key]
		take := knows || err == nil && n.from == from
		switch n.asked = false; {
		case take:
			delete(a.naming, c.key)
		case n.from == from:
			n.tries++
			fallthrough
		default: // somebody else is to hand it over meanwhile, and is asked when the message is repeated
			a.naming[c.key] = n
		}
		a.names.Unlock()
		if take && a.ctx.Err() == nil {
			c.cached.Step(cachedcopy.Event{Kind: cachedcopy.Receive, Msg: &m})
			a.settled()
		}
	})
}
