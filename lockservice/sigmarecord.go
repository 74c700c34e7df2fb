package lockservice

import (
	"encoding/binary"

	"latchkey/lockservice/sigma"
	sigmapb "latchkey/lockservice/sigma/pb"
	"latchkey/lockservice/voterlog"
	"latchkey/replicagroup"
)

// recorder records what one voter has promised, and knows what its former life has. Without a log it does nothing.
type recorder struct {
	log   *voterlog.Log
	key   string
	none  sigma.ViewID // of which it is recorded that there is nothing
	space *recording   // nil while there is nothing to record
}

// recording is the storage of what is being recorded.
type recording struct {
	batch voterlog.Batch
	bytes []byte
}

// open returns it.
func (r *recorder) open() *recording {
	if r.space == nil {
		r.space = new(recording)
	}
	return r.space
}

// begin prepares r for the voter of a seat. A replica that joins anew has another key.
func (r *recorder) begin(log *voterlog.Log, s *replicagroup.Seat) {
	if r.log = log; log == nil {
		return
	}
	g := s.Group()
	key, err := g.Prefix.AppendBinary(make([]byte, 0, 64))
	if err != nil {
		r.log = nil
		return
	}
	key = binary.BigEndian.AppendUint64(key, g.Gen)
	r.key = string(binary.BigEndian.AppendUint64(key, uint64(s.Replica())))
}

// table returns what the former life has recorded; nil where that is nothing, or cannot be used.
func (r *recorder) table() *sigma.Table {
	if r.log == nil {
		return nil
	}
	head, names := r.log.Of(r.key)
	if head == nil {
		return nil
	}
	h, err := sigmapb.DecodeHead(head)
	t := &sigma.Table{Head: h, Names: make(map[string]sigma.Saved, len(names))}
	for name, b := range names {
		s, e := sigmapb.DecodeSaved(b)
		if e != nil {
			err = e
		}
		t.Names[name] = s
	}
	if err != nil {
		log.Errorw("what a voter has recorded cannot be read: it counts as lost", "err", err)
		return nil
	}
	return t
}

// nothing records that the voter has promised nothing in a view, beyond what its head says.
func (r *recorder) nothing(h sigma.Head) error {
	if r.log == nil || r.none == h.View {
		return nil
	}
	r.none = h.View
	s := r.open()
	s.batch.Void()
	s.bytes = sigmapb.AppendHead(s.bytes[:0], &h)
	s.batch.Head(s.bytes)
	err := r.log.Write(r.key, &s.batch)
	r.rest()
	return err
}

// rest lets go of memory: there may be ten thousand voters, most of them without a replica.
func (r *recorder) rest() { r.space = nil }

// record carries out what a replica's step has recorded. The messages of the step must not leave where it fails.
func (r *recorder) record(replica *sigma.Replica, out []sigma.Action) error {
	if r.log == nil {
		return nil
	}
	space := r.open()
	space.batch.Reset()
	for i := range out {
		switch a := &out[i]; a.Kind {
		case sigma.Void:
			space.batch.Void()
		case sigma.SaveHead:
			h := replica.Head()
			r.none = h.View
			space.bytes = sigmapb.AppendHead(space.bytes[:0], &h)
			space.batch.Head(space.bytes)
		case sigma.Save:
			s, ok := replica.Saved(a.Msg.Name)
			if !ok {
				space.batch.Delete(a.Msg.Name)
				continue
			}
			space.bytes = sigmapb.AppendSaved(space.bytes[:0], &s)
			space.batch.Save(a.Msg.Name, space.bytes)
		}
	}
	if space.batch.Empty() {
		return nil
	}
	return r.log.Write(r.key, &space.batch)
}
