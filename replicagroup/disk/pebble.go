package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/cockroachdb/pebble/v2"
	logging "github.com/ipfs/go-log/v2"
)

var log = logging.Logger("latchkey/store")

// Pebble, made small: a peer's replicas are a few megabytes that are written and hardly ever read.
const (
	cacheBytes    = 4 << 20 // blocks of tables; they are read at start and by compactions
	memtableBytes = 4 << 20 // grows to this from 256 KiB as data comes
	manifestBytes = 1 << 20 // begins a new one then
	openFilesMax  = 256
	// reclaimAfter is how long deleted ranges may wait in memory before they are written out, so that their space is given back.
	reclaimAfter = 30 * time.Second
	// format is part of [FormatVersion]. From FormatWALSyncChunks on, a log tells a torn end from damage before it.
	format = pebble.FormatTableFormatV6
)

func (o Options) pebble(f *fence, lock *pebble.Lock) *pebble.Options {
	p := &pebble.Options{
		FS:                    f,
		Lock:                  lock,
		CacheSize:             cacheBytes,
		MemTableSize:          memtableBytes,
		MaxManifestFileSize:   manifestBytes,
		MaxOpenFiles:          openFilesMax,
		FormatMajorVersion:    format,
		FlushDelayDeleteRange: reclaimAfter,
		Logger:                pebbleLog{f},
		EventListener: &pebble.EventListener{
			BackgroundError: func(err error) { background(f, err) },
			DataCorruption:  func(i pebble.DataCorruptionInfo) { f.fail(rotten(fmt.Errorf("%s: %w", i.Path, i.Details))) },
			WriteStallBegin: func(i pebble.WriteStallBeginInfo) { log.Debugw("writes wait for compactions", "reason", i.Reason) },
		},
	}
	if o.reclaimAfter > 0 {
		p.FlushDelayDeleteRange = o.reclaimAfter
	}
	if o.memtableBytes > 0 {
		p.MemTableSize = o.memtableBytes
	}
	p.DisableAutomaticCompactions = o.noCompactions
	p.Experimental.ReadSamplingMultiplier = -1 // reading never starts a compaction
	p.Experimental.FileCacheShards = 1
	p.Experimental.CompactionScheduler = &compactions{fence: f}
	return p
}

// background ends the store when a flush or compaction fails: it would fail again.
func background(f *fence, err error) {
	if pebble.IsCorruptionError(err) || errors.Is(err, fs.ErrNotExist) {
		err = rotten(err)
	}
	f.fail(err)
}

// pebbleLog is Pebble's way to our log. What it says of its daily work is for debugging only.
type pebbleLog struct{ fence *fence }

func (pebbleLog) Infof(format string, args ...any)  { log.Debugf(format, args...) }
func (pebbleLog) Errorf(format string, args ...any) { log.Warnf(format, args...) }

// Fatalf is called when Pebble cannot go on. It does not come from the disk, whose errors end at the fence: Pebble contradicts
// itself. It must not return.
func (l pebbleLog) Fatalf(format string, args ...any) {
	err := fmt.Errorf("disk: pebble cannot go on: "+format, args...)
	l.fence.fail(err)
	panic(err)
}
