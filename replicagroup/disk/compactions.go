package disk

import (
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// compactions lets one compaction run at a time, and none once the disk has failed. Pebble's own scheduler would look for work
// ten times a second, and go on looking when Pebble could not be opened.
type compactions struct {
	fence *fence
	db    pebble.DBForCompaction

	mu       sync.Mutex
	running  bool
	over     bool // Unregister was called
	granting sync.WaitGroup
}

var (
	_ pebble.CompactionScheduler   = (*compactions)(nil)
	_ pebble.CompactionGrantHandle = (*compactions)(nil)
)

func (c *compactions) Register(_ int, db pebble.DBForCompaction) { c.db = db }

// Unregister ends all granting and waits until the database is not asked any more.
func (c *compactions) Unregister() {
	c.mu.Lock()
	c.over = true
	c.mu.Unlock()
	c.granting.Wait()
}

// TrySchedule implements [pebble.CompactionScheduler]. The database holds its locks meanwhile.
func (c *compactions) TrySchedule() (bool, pebble.CompactionGrantHandle) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.take() {
		return false, nil
	}
	return true, c
}

// take begins a compaction if one may begin. The caller holds mu.
func (c *compactions) take() bool {
	if c.running || c.over || c.fence.failure() != nil {
		return false
	}
	c.running = true
	return true
}

// Done ends a compaction and lets the next one begin, if one is waiting.
func (c *compactions) Done() {
	c.mu.Lock()
	c.running = false
	ok := c.take()
	if ok {
		c.granting.Add(1)
	}
	c.mu.Unlock()
	if !ok {
		return
	}
	defer c.granting.Done()
	if waiting, _ := c.db.GetWaitingCompaction(); waiting && c.db.Schedule(c) {
		return
	}
	c.mu.Lock()
	c.running = false
	c.mu.Unlock()
}

// One compaction is always allowed, so nothing of the following matters.

func (c *compactions) UpdateGetAllowedWithoutPermission()                  {}
func (c *compactions) Started()                                            {}
func (c *compactions) MeasureCPU(pebble.CompactionGoroutineKind)           {}
func (c *compactions) CumulativeStats(s pebble.CompactionGrantHandleStats) {}
