package pb

import "latchkey/coherence/protocol"

// part is a field that messages of some kinds have.
type part uint16

const (
	object part = 1 << iota
	requester
	seq
	lastInv
	copied // which copy it is
	value
	ack
	life
	thread
	migration
	node
	checkpoint
	hash
	manifest
	parent
	flag
)

// shape is what is said, by whom and to whom.
type shape struct {
	kind     protocol.Kind
	from, to protocol.Party
}

// form says which parts a message has. Those of must are not zero.
type form struct {
	must, may part
	reader    bool // it is for the application manager as the reader of a checkpoint, which the address names
}

// forms holds all that the automata say.
var forms = map[shape]form{
	{protocol.Read, protocol.Node, protocol.ObjectManager}:            {must: object | requester | seq},
	{protocol.Read, protocol.AppManager, protocol.ObjectManager}:      {must: object | requester | seq},
	{protocol.Write, protocol.Node, protocol.ObjectManager}:           {must: object | requester | seq},
	{protocol.WriteConfirm, protocol.ObjectManager, protocol.Node}:    {must: object | requester | seq | lastInv},
	{protocol.WriteConfirm, protocol.Node, protocol.ObjectManager}:    {must: object | requester | seq | lastInv},
	{protocol.WriteInvalidate, protocol.Node, protocol.ObjectManager}: {must: object | requester | seq, may: lastInv},
	{protocol.ForwardedWrite, protocol.ObjectManager, protocol.Node}:  {must: object | requester | seq | lastInv},
	{protocol.WriteAck, protocol.Node, protocol.ObjectManager}:        {must: object | requester, may: lastInv},
	{protocol.ReadAck, protocol.Node, protocol.ObjectManager}:         {must: object | requester | seq},
	{protocol.ReadAck, protocol.AppManager, protocol.ObjectManager}:   {must: object | requester | seq},
	{protocol.Invalidate, protocol.ObjectManager, protocol.Node}:      {must: object | lastInv, may: requester},

	{protocol.Invalidate, protocol.ObjectManager, protocol.AppManager}:    {must: object | lastInv, reader: true},
	{protocol.InvalidateAck, protocol.Node, protocol.ObjectManager}:       {must: object | requester | lastInv},
	{protocol.InvalidateAck, protocol.AppManager, protocol.ObjectManager}: {must: object | requester | lastInv},
	{protocol.FirstTouch, protocol.ObjectManager, protocol.Node}:          {must: object | seq},
	{protocol.Copy, protocol.Node, protocol.Node}:                         {must: object | seq | value, may: lastInv | copied | flag},
	{protocol.Copy, protocol.Node, protocol.AppManager}:                   {must: object | seq | hash, may: lastInv, reader: true},
	{protocol.ForwardedRead, protocol.ObjectManager, protocol.Node}:       {must: object | requester | seq, may: lastInv},
	{protocol.TransferDone, protocol.ObjectManager, protocol.Node}:        {must: object | lastInv},
	{protocol.TransferDone, protocol.Node, protocol.ObjectManager}:        {must: object | requester | lastInv},
	{protocol.Refused, protocol.Node, protocol.ObjectManager}:             {must: object | requester},
	{protocol.Refused, protocol.Node, protocol.AppManager}:                {must: requester, may: object},
	{protocol.NoCopy, protocol.ObjectManager, protocol.AppManager}:        {must: object | requester | seq, may: life, reader: true},
	{protocol.NoCopy, protocol.ObjectManager, protocol.Node}:              {must: object | requester | seq | flag},

	// Between nodes, of readers that the manager does not know of.
	{protocol.Read, protocol.Node, protocol.Node}:                {must: object | requester | seq},
	{protocol.NoCopy, protocol.Node, protocol.Node}:              {must: object | requester | seq},
	{protocol.Invalidate, protocol.Node, protocol.Node}:          {must: object | requester | lastInv},
	{protocol.InvalidateAck, protocol.Node, protocol.Node}:       {must: object | requester | lastInv},
	{protocol.InvalidateAck, protocol.AppManager, protocol.Node}: {must: object | requester | lastInv},
	{protocol.Refused, protocol.Node, protocol.Node}:             {must: object | requester},
	{protocol.Query, protocol.Node, protocol.AppManager}:         {must: object | requester | ack | lastInv},

	{protocol.Touched, protocol.ObjectManager, protocol.AppManager}:    {must: object | seq, may: life},
	{protocol.Touched, protocol.AppManager, protocol.ObjectManager}:    {must: object | seq, may: life | flag},
	{protocol.Query, protocol.ObjectManager, protocol.AppManager}:      {must: object | requester | ack, may: seq | lastInv},
	{protocol.RestartReq, protocol.ObjectManager, protocol.AppManager}: {must: object | requester, may: flag},
	{protocol.NotSuspect, protocol.AppManager, protocol.ObjectManager}: {must: object | requester},
	{protocol.Reinit, protocol.AppManager, protocol.ObjectManager}:     {must: object},

	{protocol.Injection, protocol.Node, protocol.AppManager}:       {must: object | requester, may: node},
	{protocol.BecomeOwner, protocol.AppManager, protocol.Node}:     {must: object | requester},
	{protocol.Create, protocol.Node, protocol.AppManager}:          {must: thread | node, may: parent | hash | checkpoint | flag},
	{protocol.Created, protocol.AppManager, protocol.Node}:         {must: thread, may: node | manifest | flag | parent | checkpoint},
	{protocol.Start, protocol.AppManager, protocol.Node}:           {must: thread, may: hash | manifest | checkpoint | flag},
	{protocol.Started, protocol.Node, protocol.AppManager}:         {must: thread, may: flag},
	{protocol.Unfreeze, protocol.AppManager, protocol.Node}:        {},
	{protocol.Migrate, protocol.Node, protocol.AppManager}:         {must: thread | node},
	{protocol.Grant, protocol.AppManager, protocol.Node}:           {must: thread | migration | node},
	{protocol.Transfer, protocol.Node, protocol.Node}:              {must: thread | migration, may: hash | manifest},
	{protocol.Arrived, protocol.Node, protocol.Node}:               {must: thread | migration},
	{protocol.Moved, protocol.Node, protocol.AppManager}:           {must: thread | migration},
	{protocol.Moved, protocol.AppManager, protocol.Node}:           {must: thread | migration},
	{protocol.MigrationFailed, protocol.Node, protocol.AppManager}: {must: thread | migration},
	{protocol.MigrationFailed, protocol.AppManager, protocol.Node}: {must: thread | migration},
	{protocol.Terminated, protocol.Node, protocol.AppManager}:      {must: thread},
	{protocol.Terminated, protocol.AppManager, protocol.Node}:      {must: thread},
	{protocol.Destroy, protocol.AppManager, protocol.Node}:         {},
	{protocol.Destroy, protocol.ObjectManager, protocol.Node}:      {must: object},
	{protocol.Checkpoint, protocol.AppManager, protocol.Node}:      {must: checkpoint},
	{protocol.Stopped, protocol.Node, protocol.AppManager}:         {must: thread | checkpoint, may: migration | hash},
	{protocol.Resume, protocol.AppManager, protocol.Node}:          {must: checkpoint},
}

// partsOf lists the parts of m that are not zero.
func partsOf(m *protocol.Message) (ps part) {
	for p, has := range [...]bool{
		m.Object != [32]byte{}, !m.Requester.IsZero(), m.Seq != 0, m.LastInv != 0, m.Copy != 0, m.Value != nil, m.Ack != 0, m.Life != 0,
		m.Thread != protocol.ThreadID{}, m.Migration != 0, !m.Node.IsZero(), m.Checkpoint != 0, m.Hash != protocol.Hash{}, m.Manifest != protocol.Hash{}, m.Parent != protocol.ThreadID{}, m.Flag,
	} {
		if has {
			ps |= 1 << p
		}
	}
	return ps
}

// wellFormed reports whether the automata send such a message.
func wellFormed(m *protocol.Message) bool {
	f, ok := forms[shape{m.Kind, m.From.Party, m.To.Party}]
	ps := partsOf(m)
	return ok && m.Epoch > 0 && ps&f.must == f.must && ps&^(f.must|f.may) == 0 &&
		m.From.Node.IsZero() == (m.From.Party != protocol.Node) && m.To.Node.IsZero() == (m.To.Party != protocol.Node && !f.reader) &&
		(m.Ack == 0 || m.Ack == protocol.ReadAck || m.Ack == protocol.InvalidateAck)
}
