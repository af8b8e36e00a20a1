package outputs

import (
	"sort"
	"time"

	"spillway/buffer/batch"
)

// Work is what a chain saw of one output since the start, all lanes together.
type Work struct {
	Output string

	InFlight      int   // batches in calls of Publish that have not ended
	InFlightBytes int64 // of their payloads

	Repeats  uint64                         // calls of Publish with records that had been handed over before, to this output or another
	Failures [len(actions)]uint64           // calls of Publish and Last that failed, by Action - 1
	Failed   [len(actions)]time.Time        // when the last of them did; zero: none
	Latency  [len(LatencyBounds) + 1]uint64 // calls of Publish that were accepted whole, by how long they took: up to each bound, and longer
	Took     time.Duration                  // all of those together

	Probes       uint64 // that ended
	FailedProbes uint64 // of those
}

// LatencyBounds are the upper bounds, inclusive, of what Work.Latency counts: from
// a file on a local disk to a large object over a bad link.
var LatencyBounds = [...]time.Duration{
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second,
	10 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute,
}

// begins and ends note that a call of Publish begins and has ended.
func (c *Chain) begins(w *watch, run *batch.Run) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.route(w.lane).call = w
	m := &w.m.work
	m.InFlight += len(run.Batches)
	m.InFlightBytes += run.Bytes()
	if run.Attempt > 1 {
		m.Repeats++
	}
}

func (c *Chain) ends(w *watch, run *batch.Run, accepted int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	m := &w.m.work
	m.InFlight -= len(run.Batches)
	m.InFlightBytes -= run.Bytes()
	if err == nil {
		took := now.Sub(w.began)
		m.Latency[sort.Search(len(LatencyBounds), func(i int) bool { return took <= LatencyBounds[i] })]++
		m.Took += took
	}
	r := c.route(w.lane)
	r.call = nil
	if accepted > 0 {
		r.acked = now
	}
}

func (w *Work) failed(a Action) {
	if a >= Retry && a <= Misconfigured {
		w.Failures[a-1]++
		w.Failed[a-1] = time.Now()
	}
}

// Work returns what the chain saw of each output, in the order of the chain.
func (c *Chain) Work() []Work {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]Work, len(c.members))
	for i, m := range c.members {
		all[i] = m.work
		all[i].Output = m.out.Name()
	}
	return all
}

// Moved returns when something last got through for lane: an output acknowledged
// records, or, in a call of Publish that is under way with an output that is well,
// took bytes of a run. Zero: nothing since the start. Bytes do not count while the
// output fails, or every attempt would look like progress.
func (c *Chain) Moved(lane string) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.routes[lane]
	if r == nil {
		return time.Time{}
	}
	if w := r.call; w != nil && w.m.state(lane) == Up && w.moved.Load() > 0 {
		return w.silent()
	}
	return r.acked
}
