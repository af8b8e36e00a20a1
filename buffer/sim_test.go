package buffer

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"spillway/buffer/batch"
)

// fullBudget is SPILLWAY_CRASH_BUDGET=full: as much as docs/reliability.md shows.
func fullBudget() bool { return os.Getenv("SPILLWAY_CRASH_BUDGET") == "full" }

// rounds is how much a test does: n, or n times SPILLWAY_CRASH_BUDGET, or all if that
// is "full".
func rounds(t testing.TB, n, all int) int {
	s := os.Getenv("SPILLWAY_CRASH_BUDGET")
	switch {
	case fullBudget():
		return all
	case s != "":
		f, err := strconv.ParseFloat(s, 64)
		if err != nil {
			t.Fatalf("SPILLWAY_CRASH_BUDGET=%q: want a factor or full", s)
		}
		n = max(1, int(float64(n)*f))
	}
	return n
}

// budget is rounds with a usual factor.
func budget(t testing.TB, n int) int { return rounds(t, n, 50*n) }

// seedOf is SPILLWAY_CRASH_SEED, to repeat a run, or a fixed number.
func seedOf(t testing.TB) uint64 {
	if s := os.Getenv("SPILLWAY_CRASH_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("SPILLWAY_CRASH_SEED=%q: want a number", s)
		}
		return n
	}
	return 1
}

// sent is a batch that Append was called for, and what became of it.
type sent struct {
	first, last uint64
	epoch       batch.Epoch
	id          batch.Identity
	seal        batch.Seal
	payload     []byte
	promised    bool // Append returned nil before the power went
	stored      bool // Append returned nil, or ErrMemory
	memory      bool // Append returned ErrMemory, and it has not come to the disk since, as far as is known
	delivered   bool // Next returned it
	told        bool // inside a Gap that says so
	merged      bool // between the ends of a Gap that stands for several
	hit         bool // the disk has lost bytes of it that were durable
	inBand      bool // GapsTold for that gap
	now         bool // Next returned it in this life
	sent        bool // Next returned it in a life that did not end with Close
	refused     bool // Reject was called for it since Next returned it last
	unsure      bool // with refused: Reject failed, or could not keep it
	once        bool // Reject was called for it
	passed      bool // Commit or Reject was called for it, or nobody knows that it was dropped: the position may lie behind it
	taken       bool // Commit was called for it
	loose       bool // Next returned it in a life that could not make it durable
	adrift      bool // and not the cursor either, or the disk has forgotten that cursor and never had it
}

// in reports whether g tells of s. Of very many gaps neighbours are merged, also over
// the end of an epoch; a number alone says which record it is.
func (s *sent) in(g Gap) bool { return g.First <= s.first && s.last <= g.Last }

// number is one position in the whole world.
type number struct {
	epoch batch.Epoch
	first uint64
}

// world is what the outside knows over many lives of one directory; its methods
// are the oracle. The invariants are those that the comments name:
//
//	I1 durable: what Append returned for before the power went is delivered, or told as dropped by policy
//	I2 true: what is delivered was appended, byte for byte
//	I3 order: numbers only grow for a reader
//	I4 identity: one number is seen with one content only
//	I5 position: it never goes back in a life, and what lies below it was acknowledged, rejected or told as lost
//	I6 conservation: what is told as lost is counted exactly
//	I7 opening never fails for damage and writes nothing
//	I8 opening twice is opening once
//	I9 every call ends
//	I10 doubts: what InDoubt returned for is durable until its output acknowledges it; a plan given up never comes back
//	I11 taken: no output is said to have what it did not acknowledge
//	I12 reading again: what Next may return or has returned and is kept, byte for byte and in order
//	I13 rejected: at the head of the line still, or kept aside and told
type world struct {
	rng      *rand.Rand
	disk     *simDisk
	o        Options
	now      time.Time
	all      []*sent
	byID     map[batch.Identity]*sent
	seen     map[number]uint32          // CRC that the outside has seen under a number
	plan     Plan                       // SetPlan returned nil for it and nothing touched it since
	maybe    bool                       // plan may be there or not
	gone     map[string]bool            // keys of plans that were given up for good
	short    bool                       // the disk was full and took no cursor: what Reject did may stay untold
	many     bool                       // gaps were so many that some are merged
	doubt    []Doubt                    // InDoubt returned nil for them
	acked    map[string]map[uint64]bool // records by the output that acknowledged them
	exact    []exactGap                 // gaps that tell of one hole
	loose    []looseGap                 // gaps that stand for several
	blind    bool                       // a segment could not be read
	unsynced bool                       // a sync has failed
	worn     bool                       // the cursor may have been damaged: what it held may be forgotten
	b        *Buffer
	w        *writer
	ended    bool           // the script has closed it
	unread   CorruptError   // Next's last error
	shut     []string       // segments that could not be opened since Next was called
	back     []segment      // that were removed, and are there: it failed, or a cut undid it
	belief   uint64         // generation of the cursor that this life has read, if it is not durable; else 0
	again    []*batch.Batch // Append failed for them: they come next, or never

	stats worldStats
	steps []step // what was done, for the report
}

// worldStats says where a world has been.
type worldStats struct {
	lives, cuts, kills, calls, newEpochs, appends, runs, plans, doubts, rejects, reads, memory int
	gaps, merged                                                                               int // merged: of many gaps, held against what was lost
	hits, cutOff                                                                               int // cutOff: batches destroyed at the end of an epoch
}

func (s *worldStats) add(o *worldStats) {
	from := o.all()
	for i, n := range s.all() {
		*n += *from[i]
	}
}

func (s *worldStats) all() []*int {
	return []*int{&s.lives, &s.cuts, &s.kills, &s.calls, &s.newEpochs, &s.appends, &s.runs, &s.plans, &s.doubts, &s.rejects, &s.reads, &s.memory, &s.gaps, &s.merged, &s.hits, &s.cutOff}
}

func newWorld(seed uint64, o Options) *world {
	rng := rand.New(rand.NewPCG(seed, seed))
	w := &world{rng: rng, disk: newSimDisk(rng), o: o, now: time.Unix(1_800_000_000, 0), byID: map[batch.Identity]*sent{}, seen: map[number]uint32{},
		gone: map[string]bool{}, acked: map[string]map[uint64]bool{}}
	w.o.FS = w.disk
	w.o.Agent = "gw-1"
	w.o.SyncGap = -1
	w.o.Now = func() time.Time { return w.now }
	w.o.random = rng.Uint64
	return w
}

type violation struct{ text string }

func (w *world) fail(format string, args ...any) {
	panic(violation{fmt.Sprintf(format, args...)})
}

// step is put into words only if there is a report.
type step struct {
	format string
	args   []any
}

func (w *world) did(format string, args ...any) {
	w.steps = append(w.steps, step{format, args})
}

// healthy reports whether the disk does what it is asked for.
func (w *world) healthy() bool { return !w.disk.dead && w.disk.fail == nil && len(w.disk.bad) == 0 }

// open starts a life. It returns false if the power went or a fault was injected.
func (w *world) open() bool {
	w.stats.lives++
	w.again = nil
	if w.disk.replaced { // a cursor that could not be saved went, and perhaps nothing came after it
		w.wear()
		w.disk.replaced = false
	}
	w.belief = w.disk.belief()
	for _, name := range w.disk.segments() {
		if w.disk.unwanted[name] {
			x, _ := parseName(name)
			w.back = append(w.back, x)
		}
	}
	changes, healthy := w.disk.changes, w.healthy()
	b, err := Open("sim", w.o)
	if changes != w.disk.changes {
		w.fail("I7: opening changed the disk")
	}
	if err != nil {
		if w.disk.dead || w.disk.fail != nil {
			return false
		}
		w.fail("I7: open: %v", err)
	}
	if w.disk.dead {
		return false
	}
	if healthy && w.healthy() && w.rng.IntN(4) == 0 { // I8; both read only
		again, err := Open("sim", w.o)
		if w.disk.dead {
			return false
		}
		if err != nil {
			w.fail("I8: second open: %v", err)
		}
		x, y := b.start, again.start
		if x.Previous != nil || x.Next == 1 {
			x.Epoch, y.Epoch = 0, 0 // random
			if fmt.Sprint(x.Previous) != fmt.Sprint(y.Previous) {
				w.fail("I8: %+v and %+v", x.Previous, y.Previous)
			}
			x.Previous, y.Previous = nil, nil
		}
		if x != y || b.pos.committed != again.pos.committed {
			w.fail("I8: %+v and %+v", x, y)
		}
	}
	st := b.Begin()
	if w.disk.dead {
		return false
	}
	w.b, w.w = b, newWriter(st)
	w.did("open: epoch %v next %d committed %d unclean %v", st.Epoch, st.Next, b.pos.committed, st.Unclean)
	w.undone()
	if healthy {
		w.aside()
	}
	w.collect()
	w.taken()
	fresh := st.Previous != nil
	if fresh {
		w.stats.newEpochs++
	}
	for _, s := range w.all {
		if !fresh && s.epoch == st.Epoch && s.last == st.Next-1 && s.seal == st.Seal {
			fresh = true // the seals join
		}
		if s.hit {
			continue // what was in it is not known any more
		}
		if s.promised && s.last >= st.Next {
			w.fail("I4: record %d was promised, and numbering goes on at %d", s.last, st.Next)
		}
		if s.delivered && !s.memory && !s.adrift && s.last >= st.Next && w.o.Sync != SyncNever && !(w.o.Memory > 0 && w.o.Sync == SyncInterval) { // what is not synced may come to memory
			w.fail("I4: record %d was seen, and numbering goes on at %d", s.last, st.Next)
		}
		if s.promised && s.last <= b.pos.committed && !s.passed && !s.told && !s.merged {
			w.fail("I5: position %d, but %s was never acknowledged", b.pos.committed, s.id)
		}
		if s.promised && (b.pos.epoch == s.epoch || !s.told && !s.delivered) && healthy && st.Previous != nil && s.epoch == st.Previous.Epoch && s.last > st.Previous.Last {
			w.fail("a new epoch says that %d was the last record, but %d was promised", st.Previous.Last, s.last)
		}
	}
	if !fresh && len(w.all) > 0 && st.Next > 1 && healthy {
		w.fail("the seal at %d is not that of the batch before", st.Next)
	}
	return true
}

// append stores a few batches, or tries again those that could not be stored.
func (w *world) append() {
	if len(w.again) == 0 {
		for range 1 + w.rng.IntN(3) {
			size := 1 + w.rng.IntN(900)
			if w.rng.IntN(20) == 0 {
				size += 3000
			}
			p := make([]byte, size)
			garbage(w.rng, p)
			x := w.w.seal(1+uint32(w.rng.IntN(5)), p)
			s := &sent{first: x.First, last: x.Last(), epoch: w.w.Epoch, id: x.Identity(w.o.Agent, w.w.Epoch), seal: x.Seal, payload: p}
			w.again = append(w.again, x)
			w.all, w.byID[s.id] = append(w.all, s), s
		}
	}
	for range 4 {
		err := w.b.Append(context.Background(), w.again...)
		w.did("append %d-%d: %v", w.again[0].First, w.again[len(w.again)-1].Last(), err)
		w.stats.appends++
		if memory := errors.Is(err, ErrMemory); err == nil || memory {
			for _, x := range w.again {
				s := w.byID[x.Identity(w.o.Agent, w.w.Epoch)]
				s.stored, s.memory = true, memory
				s.promised = !memory && !w.disk.dead && w.o.Sync == SyncGroup
			}
			w.again = nil
			if memory {
				w.stats.memory++
			} else {
				w.whole()
			}
			return
		}
		if w.disk.dead {
			return
		}
		if errors.Is(err, ErrFull) {
			w.deliver(true)
			if !w.disk.dead {
				w.tick(w.o.KeepAcked + time.Minute)
			}
		} else if w.disk.fail == nil && w.disk.room < 0 {
			w.fail("append: %v", err)
		}
		if w.disk.dead {
			return
		}
	}
}

// whole takes note that what was in memory is on the disk, if it is.
func (w *world) whole() {
	if w.disk.dead || w.b.Stats().Degraded {
		return
	}
	for _, s := range w.all {
		if s.memory && s.epoch == w.b.start.Epoch {
			s.memory, s.promised = false, w.o.Sync == SyncGroup
		}
	}
}

// handling is what becomes of a run.
type handling struct {
	batches int  // at most; 0: some
	plan    bool // of an object, before it is handed over
	answer  answer
}

type answer uint8

const (
	takes     answer = iota // the output takes all of it
	takesSome               // some of it, if there is no plan
	silent                  // as if the output had failed
	doubts                  // it has failed and may have it
	rejects                 // and nobody takes it
)

// deliver takes one run, if there is one, and commits some or all of it.
func (w *world) deliver(all bool) {
	h := handling{plan: w.rng.IntN(4) == 0, answer: takes}
	if !all {
		h.answer = []answer{takesSome, takesSome, silent, doubts, rejects, takesSome}[w.rng.IntN(6)]
	}
	w.take(h)
}

// take takes one run, if there is one.
func (w *world) take(h handling) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	l := batch.Limits{Batches: h.batches}
	if l.Batches == 0 {
		l.Batches = 1 + w.rng.IntN(4)
	}
	healthy, damaged, read := w.healthy(), w.b.stats.torn+w.b.stats.corrupt, w.disk.read
	w.shut = nil
	run, err := w.b.Next(ended, l)
	passed := []CorruptError{w.unread}
	for _, name := range w.shut {
		passed = append(passed, CorruptError{File: name})
	}
	for _, at := range passed {
		if damaged == w.b.stats.torn+w.b.stats.corrupt || at.File == "" || w.disk.fail == nil {
			continue
		}
		if read == w.disk.read {
			w.fail("%v counts as damaged, and the disk can't be read at all", &at)
		}
		if n := w.disk.names[at.File]; n != nil {
			w.hurt(at.File, n.data, int(at.Offset), 1<<30)
		}
	}
	if err != nil {
		var bad *CorruptError
		switch {
		case errors.Is(err, context.Canceled) || w.disk.dead:
		case healthy:
			w.fail("next: %v", err)
		case w.disk.fail != nil && errors.As(err, &bad):
			w.unread = *bad
		}
		if !w.disk.dead {
			w.collect()
		}
		return
	}
	w.did("next %d-%d key %q", run.First(), run.Last(), run.Key)
	w.stats.runs++
	if w.disk.dead {
		return // nobody hears of it
	}
	w.collect()
	w.check(&run)
	switch {
	case w.gone[run.Key]:
		w.fail("I10: the plan %s was given up and comes back", run.Key)
	case w.plan == (Plan{}):
	case run.Key == w.plan.Key && run.First() == w.plan.First && run.Last() == w.plan.Last:
	case run.Key != "" && w.maybe && w.o.Memory > 0: // of a life whose cursor could not be saved for long
	case run.Key != "" && w.worn:
		w.plan = Plan{w.plan.Output, run.First(), run.Last(), run.Key} // an older one
	case run.Key != "":
		w.fail("plan %+v came back as %q, %d to %d", w.plan, run.Key, run.First(), run.Last())
	case !w.maybe && !w.spoilt(w.plan):
		w.fail("plan %+v is gone: next run is %d to %d", w.plan, run.First(), run.Last())
	}
	if run.Key == "" && h.plan {
		w.stats.plans++
		p := Plan{Output: w.output(), First: run.First(), Last: run.Last(), Key: fmt.Sprint("key-", w.rng.Uint32())}
		err := w.b.SetPlan(p)
		w.did("plan %d-%d %s: %v", p.First, p.Last, p.Key, err)
		if err != nil {
			w.plan, w.maybe = p, true
			if got, _ := w.b.Plan(); got != p { // the one before may be there too
				w.plan = Plan{}
				w.maybe = true
			}
			return
		}
		w.plan, w.maybe = p, w.disk.dead || w.b.Stats().Degraded
	}
	if w.disk.dead {
		return
	}
	last := run.Last()
	switch h.answer {
	case silent:
		return
	case doubts:
		w.inDoubt(Range{run.First(), run.Last()})
		return
	case rejects:
		w.reject(&run)
		return
	case takesSome:
		if w.plan == (Plan{}) {
			last = run.Batches[w.rng.IntN(len(run.Batches))].Last()
		}
	}
	was := w.b.Stats().Committed
	output := w.output()
	if w.acked[output] == nil {
		w.acked[output] = map[uint64]bool{}
	}
	for n := run.First(); n <= last; n++ {
		w.acked[output][n] = true
	}
	for _, s := range w.of(&run) {
		s.taken = s.taken || s.last <= last
		s.passed = s.passed || s.taken
	}
	if err := w.b.Commit(last, output); err != nil {
		w.fail("commit: %v", err)
	}
	w.did("commit %d to %s", last, output)
	w.taken()
	if w.plan != (Plan{}) && last >= w.plan.Last {
		w.maybe = true
		if w.b.pos.plan != (Plan{}) {
			w.fail("commit %d left plan %+v", last, w.b.pos.plan)
		}
	}
	if got := w.b.Stats().Committed; got < was || got != last {
		w.fail("I5: position went from %d to %d", was, got)
	}
}

// output is one of a few.
func (w *world) output() string { return []string{"s3", "hub", "file"}[w.rng.IntN(3)] }

// inDoubt gives a run up that an output did not answer for, or a part of it.
func (w *world) inDoubt(r Range) {
	w.stats.doubts++
	if n := r.Last - r.First; w.rng.IntN(2) == 0 {
		r.First += w.rng.Uint64N(n + 1)
	}
	d := Doubt{w.output(), r}
	err := w.b.InDoubt(d.Output, r)
	w.did("in doubt at %s: %d-%d: %v", d.Output, r.First, r.Last, err)
	givesUp := w.plan.Output == d.Output && w.plan.First <= r.Last && r.First <= w.plan.Last
	switch {
	case err == nil && !w.disk.dead && w.b.Stats().Degraded:
		w.maybe = w.maybe || givesUp
	case err == nil && !w.disk.dead:
		w.doubt = append(w.doubt, d)
		if givesUp && !w.maybe {
			w.gone[w.plan.Key] = true
		}
		if givesUp {
			w.plan = Plan{}
		}
	case err == nil || w.disk.dead || w.disk.fail != nil || w.disk.room >= 0:
		w.maybe = w.maybe || givesUp
	default:
		w.fail("in doubt: %v", err)
	}
}

// reject takes a run out of the line.
func (w *world) reject(run *batch.Run) {
	w.stats.rejects++
	recs := w.of(run)
	for _, s := range recs {
		s.passed = true
	}
	err := w.b.Reject(run, "nobody takes it")
	w.did("reject %d-%d: %v", run.First(), run.Last(), err)
	if err != nil && !w.disk.dead && w.disk.fail == nil && w.disk.room < 0 {
		w.fail("reject: %v", err)
	}
	for _, s := range recs {
		s.refused, s.once, s.unsure = true, true, err != nil || w.b.Stats().Degraded
	}
	if w.plan.First <= run.Last() {
		w.maybe = true
	}
	if err == nil && w.b.Stats().Committed != run.Last() {
		w.fail("I13: rejected up to %d, and the position is %d", run.Last(), w.b.Stats().Committed)
	}
	if err == nil && !w.disk.dead {
		w.aside()
	}
}

// of finds the batches of a run.
func (w *world) of(run *batch.Run) (out []*sent) {
	for i := range run.Batches {
		id := run.Batches[i].Identity(run.Agent, run.Epoch)
		s := w.byID[id]
		if s == nil {
			w.fail("I2: %s was never appended", id)
		}
		out = append(out, s)
	}
	return out
}

// aside checks that what was rejected and is not in the line any more is in
// rejected/, or was more than that holds, and is told.
func (w *world) aside() {
	if !slices.ContainsFunc(w.all, func(s *sent) bool { return s.refused }) {
		return
	}
	kept := w.scan(rejected + "/")
	p := &w.b.pos
	for _, s := range w.all {
		if !s.refused || s.last > p.committed {
			continue
		}
		gaps := slices.Clone(p.gaps)
		for _, t := range p.told {
			gaps = append(gaps, t.Gap)
		}
		gaps = slices.DeleteFunc(gaps, func(g Gap) bool { return !s.in(g) })
		if len(gaps) == 0 && !s.inBand && !w.short && !s.hit {
			w.fail("I13: %s was rejected, is out of the line and not told", s.id)
		}
		// Reject had failed, and it was dropped later; merged gaps have the reason of the first.
		dropped := slices.ContainsFunc(gaps, func(g Gap) bool { return byPolicy(g.Reason) }) || s.unsure && (w.many || w.short || w.o.Memory > 0)
		if !kept[s.id] && !dropped && !s.hit && w.o.RejectedBytes == 0 {
			w.fail("I13: %s was rejected, is out of the line and not kept aside", s.id)
		}
	}
}

// scan returns the identities of all intact batches in a directory.
func (w *world) scan(dir string) identities {
	found := identities{}
	for name, n := range w.disk.names {
		if base, ok := strings.CutPrefix(name, dir); ok {
			found.add(base, n)
		}
	}
	return found
}

// identities are those of batches.
type identities map[batch.Identity]bool

// add adds those of the intact batches of a segment with this name.
func (m identities) add(base string, n *inode) {
	seg, ours := parseName(base)
	if !ours {
		return
	}
	for e := range Scan(bytes.NewReader(n.data), int64(len(n.data)), base) {
		if e.Kind == KindBatch {
			m[e.Batch.Identity(seg.agent, seg.epoch)] = true
		}
	}
}

// taken checks what the buffer says that outputs have.
func (w *world) taken() {
	for _, output := range []string{"s3", "hub", "file"} {
		next := uint64(0)
		for _, r := range w.b.Taken(output) {
			if r.First <= next || r.Last < r.First || r.Last > w.b.pos.committed || r.First < w.b.segs[0].first {
				w.fail("I11: %s took %v", output, w.b.Taken(output))
			}
			for n := r.First; n <= r.Last; n++ {
				if !w.acked[output][n] {
					w.fail("I11: %s is said to have %d of %v", output, n, w.b.Taken(output))
				}
			}
			next = r.Last + 1
		}
	}
}

// read reads a range again.
func (w *world) read() {
	w.stats.reads++
	first := uint64(1)
	if len(w.b.segs) > 0 {
		first = w.b.segs[0].first
	}
	r := Range{First: first + w.rng.Uint64N(max(1, w.b.start.Next-min(first, w.b.start.Next)))}
	r.Last = r.First + w.rng.Uint64N(300)
	if w.rng.IntN(3) == 0 {
		r = Range{1, 1 << 40}
	}
	l := batch.Limits{Batches: 1 + w.rng.IntN(5)}
	if w.rng.IntN(2) == 0 {
		l.Bytes = int64(w.rng.IntN(3000))
	}
	got, kept := map[*sent]bool{}, w.scan("")
	end, drops := uint64(0), w.rng.IntN(6) == 0
	for from := r.First; from <= r.Last; from = end + 1 {
		healthy := w.healthy()
		run, err := w.b.Read(context.Background(), Range{from, r.Last}, l)
		if w.disk.dead {
			return
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			if healthy {
				w.fail("I12: read %d-%d: %v", from, r.Last, err)
			}
			return // and tried again some time
		}
		before := run.Before
		for i, s := range w.of(&run) {
			x := &run.Batches[i]
			if x.Last() < from || x.First > r.Last || x.First <= end || i > 0 && x.First != end+1 {
				w.fail("I12: of %d-%d, %d-%d was read behind %d", from, r.Last, x.First, x.Last(), end)
			}
			if !bytes.Equal(x.Payload, s.payload) || x.Check() != nil || x.Seal != s.seal {
				w.fail("I2: %s is read with other bytes", s.id)
			}
			if x.Chain(before, run.Epoch) != x.Seal && !(i == 0 && (w.broken(s) || w.o.Sync != SyncGroup || w.stats.hits > 0 || !w.keptBefore(s, kept))) {
				w.fail("I12: %s is read behind another seal", s.id)
			}
			before, end = x.Seal, x.Last()
			got[s] = true
		}
		if drops && w.rng.IntN(2) == 0 { // what lies ahead may go
			w.tick(w.o.KeepAcked + time.Minute)
			if w.disk.dead {
				return
			}
		}
	}
	if drops {
		kept = w.scan("")
	}
	w.did("read %d-%d: %d batches", r.First, r.Last, len(got))
	if !w.healthy() || w.o.Sync == SyncNever {
		return
	}
	for _, s := range w.all {
		if (s.promised || s.delivered) && !s.told && !s.merged && !s.hit && kept[s.id] && s.last >= r.First && s.first <= r.Last && !got[s] && !((s.last <= w.b.pos.committed || !s.promised) && w.leftOver(s)) {
			w.fail("I12: %s is kept and not read", s.id)
		}
	}
}

// leftOver reports whether all that is kept of s lies in files that were given up: behind each
// of them one begins with the number of s or a lower one. What was promised of s was in
// another file, which is gone since it was delivered, or in memory.
func (w *world) leftOver(s *sent) bool {
	names := w.disk.segments()
	for i, name := range names {
		given := slices.ContainsFunc(names[i+1:], func(behind string) bool {
			x, _ := parseName(behind)
			return x.epoch == s.epoch && x.first <= s.first
		})
		kept := identities{}
		if kept.add(name, w.disk.names[name]); kept[s.id] && !given {
			return false
		}
	}
	return true
}

// check is what must hold for every run.
func (w *world) check(run *batch.Run) {
	committed := w.b.Stats().Committed
	if run.First() <= committed {
		w.fail("I3: record %d again, %d is committed", run.First(), committed)
	}
	prev := run.Before
	for i, s := range w.of(run) {
		x, id := &run.Batches[i], s.id
		if !bytes.Equal(x.Payload, s.payload) || x.Check() != nil {
			w.fail("I2: %s has other bytes", id)
		}
		if i > 0 && x.First != run.Batches[i-1].Last()+1 {
			w.fail("a run crosses a hole at %d", x.First)
		}
		if x.Seal != s.seal || x.Chain(prev, run.Epoch) != x.Seal && !(i == 0 && (w.broken(s) || w.o.Sync != SyncGroup || w.stats.hits > 0 || !s.promised && !w.headed(s))) { // without sync the header that says it may be torn
			w.fail("%s does not follow the seal before it", id)
		}
		prev = x.Seal
		at := number{run.Epoch, x.First}
		if crc, ok := w.seen[at]; ok && crc != x.CRC {
			w.fail("I4: record %d of epoch %v was seen with other content", x.First, run.Epoch)
		}
		w.seen[at] = x.CRC
		s.delivered, s.now, s.refused = true, true, false
		s.loose = s.loose || w.b.loose
		s.adrift = s.adrift || (w.b.loose || w.unsynced) && !w.b.saved
		doubted := s.sent || slices.ContainsFunc(w.doubt, func(d Doubt) bool { return d.overlaps(Range{s.first, s.last}) })
		if doubted && run.Attempt != 2 {
			w.fail("I10: %s is in doubt and handed out as attempt %d", id, run.Attempt)
		}
	}
}

// headed reports whether the header of a segment says what comes before s.
func (w *world) headed(s *sent) bool {
	return slices.ContainsFunc(w.disk.segments(), func(name string) bool {
		x, _ := parseName(name)
		h, err := readSegmentHeader(bytes.NewReader(w.disk.names[name].data))
		return err == nil && h.Salt == x.salt && x.epoch == s.epoch && h.First == s.first
	})
}

// keptBefore reports whether the batch before s, if it was of the same epoch, is kept, and not
// only in a file that was given up.
func (w *world) keptBefore(s *sent, kept identities) bool {
	for _, o := range w.all {
		if o.epoch == s.epoch && o.last == s.first-1 {
			return kept[o.id] && !w.leftOver(o)
		}
	}
	return false
}

// vain reports whether s may be on the disk only in part, for nobody was told that it is
// stored. A failed sync that a kill has followed looks like a good one to the next life.
func (w *world) vain(s *sent) bool {
	return (w.o.Memory > 0 || w.unsynced) && w.o.Sync == SyncGroup && !s.promised
}

// spoilt reports whether a batch of p may not be whole any more: bytes of it were destroyed, or nobody
// was told that it is stored; and of what SyncInterval has not synced, a sync failed.
func (w *world) spoilt(p Plan) bool {
	kept := w.scan("")
	return slices.ContainsFunc(w.all, func(s *sent) bool {
		lost := (w.o.Memory > 0 || w.unsynced || s.loose) && !s.promised && !kept[s.id]
		return (s.hit || w.vain(s) || lost) && p.First <= s.last && s.first <= p.Last
	})
}

// broken reports whether the batch before s is told as lost, so that the seal
// before s need not be known.
func (w *world) broken(s *sent) bool {
	for _, o := range w.all {
		if o.epoch == s.epoch && o.last == s.first-1 && (o.told || o.merged || o.hit || w.vain(o)) {
			return true
		}
	}
	return false
}

// exactGap is a gap that tells of one hole.
type exactGap struct {
	Range
	inBand bool // GapsTold, and not untold again since
}

// looseGap is a gap that stands for several, and for how many records more than those
// that were told one by one.
type looseGap struct {
	Range
	more uint64
}

// collect takes the gaps that were found.
//
// Of more gaps than a cursor holds, neighbours are merged: one range, and how many
// records are missing in it. What lies between its ends may be lost, delivered or
// pending, which the gap can't say; settle holds the count against what is lost in the end.
func (w *world) collect() {
	gaps := w.b.Gaps()
	w.many = w.many || len(gaps) >= maxGaps
	var listed []Range // of those that tell of one hole
	for _, g := range gaps {
		w.stats.gaps++
		w.did("gap %s %d-%d (%d)", g.Reason, g.First, g.Last, g.Count)
		one := g.Count >= g.Last-g.First+1 // or two that touch; a merged one may count a part twice
		var least, most uint64
		for _, s := range w.all {
			if !s.in(g) || s.epoch != g.Epoch && !w.many {
				continue
			}
			n := s.last - s.first + 1
			most += n
			if !one {
				s.merged = true
				continue
			}
			// Merged ones have the reason of the first.
			dropped := byPolicy(g.Reason) || g.Reason == ReasonRejected && (s.once || w.many)
			// The disk was so full that delivered segments, and those that were dropped, made
			// room without a note.
			dropped = dropped || w.short && (g.Reason == ReasonMissing || g.Reason == ReasonDamaged && w.isBack(g)) && (s.delivered || w.o.Full == DropOldest)
			// A gap that was told before has grown: there were too many for another one.
			dropped = dropped || w.many && slices.ContainsFunc(w.exact, func(x exactGap) bool { return x.First == g.First && x.Last < s.first })
			// Without the cursor, a file that was given up may lie where they were.
			dropped = dropped || w.worn && (g.Reason == ReasonTorn || g.Reason == ReasonDamaged && w.isBack(g)) && (s.delivered || s.told)
			if s.promised && !dropped && !s.hit {
				w.fail("I1: %s was promised and is told as %s", s.id, g.Reason)
			}
			if s.stored && !s.hit {
				least += n
			}
			s.told = true
			s.refused = s.refused && !byPolicy(g.Reason)
		}
		// What Append failed for may lie there and count, or not; and where a segment's
		// end could not be read, too many are told, rather than none.
		if (g.Reason == ReasonFull || g.Reason == ReasonExpired) && w.o.Sync == SyncGroup && (g.Count < least || g.Count > most && !w.blind) {
			w.fail("I6: %d records told as %s in %d to %d, but %d to %d were stored there", g.Count, g.Reason, g.First, g.Last, least, most)
		}
		if r := (Range{g.First, g.Last}); one {
			listed = append(listed, r)
		}
	}
	for _, g := range gaps {
		r := Range{g.First, g.Last}
		if slices.Contains(listed, r) {
			i := slices.IndexFunc(w.exact, func(x exactGap) bool { return x.Range == r })
			if i < 0 {
				w.exact = append(w.exact, exactGap{Range: r})
			} else {
				w.exact[i].inBand = false
			}
			continue
		}
		w.weigh(r, g.Count, listed)
	}
	if len(gaps) > 0 && w.rng.IntN(2) == 0 {
		w.b.GapsTold(len(gaps), w.b.Stats().Next-1)
		for _, s := range w.all {
			for _, g := range gaps {
				s.inBand = s.inBand || s.in(g)
			}
		}
		for i := range w.exact {
			x := &w.exact[i]
			x.inBand = x.inBand || slices.ContainsFunc(gaps, func(g Gap) bool { return Range{g.First, g.Last}.holds(x.Range) })
		}
	}
}

// isBack reports whether a segment before g, or in its place, had been removed. If it is
// damaged, and without the cursor, what had been removed behind it looks like a part of that.
func (w *world) isBack(g Gap) bool {
	return slices.ContainsFunc(w.back, func(s segment) bool { return s.epoch == g.Epoch && s.first <= g.First })
}

// undone takes note of what a kill or a cut took back: batches that were rejected, or told
// as lost, and are in the line again. They have to be passed, or told, once more.
func (w *world) undone() {
	var kept identities
	again := func(s *sent) bool {
		if s.first <= w.b.pos.committed {
			return false
		}
		if kept == nil {
			kept = w.scan("")
		}
		return kept[s.id]
	}
	// A segment's floor may say what Commit was called for, or what a record tells; or an older
	// cursor was read.
	reset := func(s *sent) { s.refused, s.passed = false, s.passed && (s.taken || s.inBand || w.worn) }
	for _, s := range w.all {
		if s.refused && again(s) {
			reset(s)
		}
	}
	w.exact = slices.DeleteFunc(w.exact, func(x exactGap) bool {
		if x.inBand || x.Last <= w.b.pos.committed {
			return false
		}
		back := false
		for _, s := range w.all {
			// What was dropped stays so; a gap that was rejected may have become a part of another.
			if r := (Range{s.first, s.last}); s.once && x.holds(r) && again(s) && !w.b.pos.passed.overlaps(r) {
				reset(s)
				s.told, back = s.told && w.worn, true
			}
		}
		return back
	})
}

// weigh finds out for how many records a gap counts that stands for several and was
// found beside listed. A hole that was told, that the position has passed and that no
// record tells in-band must still be among the gaps: what no other of them covers
// is a part of this one.
func (w *world) weigh(r Range, count uint64, listed []Range) {
	var parts []Range
	if !w.short && w.o.Sync == SyncGroup {
		for _, x := range w.exact {
			if r.holds(x.Range) && !x.inBand && x.Last <= w.b.pos.committed {
				parts = append(parts, x.Range)
			}
		}
	}
	known := records(append(slices.Clone(parts), listed...)) - records(listed)
	if count < known {
		w.fail("I6: %d records told in %d to %d, but %d of them were told one by one before", count, r.First, r.Last, known)
	}
	more := count - known
	if i := slices.IndexFunc(w.loose, func(g looseGap) bool { return g.Range == r }); i >= 0 {
		w.loose[i].more = max(w.loose[i].more, more)
	} else {
		w.loose = append(w.loose, looseGap{r, more})
	}
}

// records is how many numbers are in any of rs.
func records(rs []Range) (n uint64) {
	rs = slices.Clone(rs)
	slices.SortFunc(rs, func(a, b Range) int { return cmp.Compare(a.First, b.First) })
	next := uint64(0)
	for _, r := range rs {
		if r.Last >= next {
			n += r.Last + 1 - max(next, r.First)
			next = r.Last + 1
		}
	}
	return n
}

// settle holds what is lost against what was told, when nothing is pending any more.
// Promised batches between the ends of merged gaps that were neither delivered nor told
// one by one can't be more than those gaps count beyond what was told one by one. Of
// gaps that grew, the last counts, and of gaps that overlap the sum.
//
// It can't be known better: which of several batches in a merged gap it means is nowhere
// on the disk, and a hole that is found by two lives, of which the first could not note
// it, is in the count twice.
func (w *world) settle() {
	grown := slices.DeleteFunc(slices.Clone(w.loose), func(g looseGap) bool {
		return slices.ContainsFunc(w.loose, func(o looseGap) bool { return o.Range != g.Range && o.holds(g.Range) })
	})
	slices.SortFunc(grown, func(a, b looseGap) int { return cmp.Compare(a.First, b.First) })
	for i := 0; i < len(grown); {
		all, more := grown[i].Range, grown[i].more
		for i++; i < len(grown) && grown[i].First <= all.Last; i++ {
			all.Last, more = max(all.Last, grown[i].Last), more+grown[i].more
		}
		var lost uint64
		for _, s := range w.all {
			if s.promised && !s.delivered && !s.told && !s.hit && all.holds(Range{s.first, s.last}) {
				lost += s.last - s.first + 1
			}
		}
		if w.stats.merged++; lost > more {
			w.fail("I6: %d records in %d to %d are lost and not told one by one, but the gaps there count only %d more", lost, all.First, all.Last, more)
		}
	}
	for _, s := range w.all {
		if !s.promised || s.delivered || s.told || s.merged {
			continue
		}
		if !s.hit {
			w.fail("I1: %s was promised and is lost", s.id)
		}
		if !w.worn && slices.ContainsFunc(w.all, func(o *sent) bool { return o.epoch == s.epoch && o.first > s.last && o.delivered }) {
			w.fail("I6: %s was destroyed, what follows it was delivered, and it is not told", s.id)
		}
		w.stats.cutOff++
	}
}

// byPolicy reports whether what reason says was wanted.
func byPolicy(reason string) bool {
	return reason == ReasonFull || reason == ReasonTrimmed || reason == ReasonExpired
}

// hurt notes that bytes lo to hi of a durable file with this content are lost.
func (w *world) hurt(name string, data []byte, lo, hi int) {
	w.stats.hits++
	if name == cursorFile {
		w.wear()
		return
	}
	base := name[strings.LastIndexByte(name, '/')+1:]
	seg, ok := parseName(base)
	if !ok {
		return
	}
	for e := range Scan(bytes.NewReader(data), int64(len(data)), base) {
		if e.Kind == KindBatch && e.Off < int64(hi) && e.End > int64(lo) {
			if s := w.byID[e.Batch.Identity(seg.agent, seg.epoch)]; s != nil {
				s.hit = true
				w.did("%s is hit", s.id)
			}
		}
	}
}

// wear notes that the cursor may be gone, or be an older one: what only it knew is
// forgotten.
func (w *world) wear() {
	w.worn, w.short, w.maybe = true, true, true
	w.doubt = nil
	clear(w.gone)
	w.unnoted() // what was dropped, and noted in the cursor only
	durable := identities{}
	for name, n := range w.disk.disk {
		durable.add(name, &inode{data: n.disk})
	}
	for _, s := range w.all {
		s.adrift = s.adrift || s.loose && !durable[s.id]
	}
}

// unnoted takes what is not on the disk any more for lost without a note.
func (w *world) unnoted() {
	kept := w.scan("")
	for _, s := range w.all {
		s.hit = s.hit || s.promised && !s.delivered && !kept[s.id]
		s.passed = s.passed || !kept[s.id]
	}
}

func (w *world) tick(d time.Duration) {
	w.now = w.now.Add(d)
	w.b.Maintain(w.now)
	w.whole()
	w.did("maintain +%v", d)
}

// life opens, works n steps and ends in one of four ways.
func (w *world) life(n int) {
	w.lead(func() {
		for range n {
			if w.disk.dead {
				break
			}
			w.step()
		}
	})
}

// lead opens, works and ends in one of four ways.
func (w *world) lead(work func()) {
	closed, opened := false, false
	w.ended = false
	defer func() {
		for _, s := range w.all {
			s.sent = s.sent || s.now && !closed && !s.memory && w.b.saved // else nothing on the disk knows of this life
			s.now = false
			// What is not synced may have come to memory too.
			inMemory := s.memory || w.o.Memory > 0 && w.o.Sync != SyncGroup
			s.stored, s.refused = s.stored && !s.memory, s.refused && !inMemory
		}
	}()
	if w.open() {
		opened = true
		work()
		closed = w.ended
		if !closed && !w.disk.dead && w.rng.IntN(3) == 0 {
			err := w.b.Close()
			w.did("close: %v", err)
			closed = true // if it failed, the cursor may say so or not
			if err != nil && !w.disk.dead && w.disk.fail == nil && w.disk.room < 0 {
				w.fail("close: %v", err)
			}
			if err == nil {
				w.whole()
			}
			if !w.disk.dead && w.disk.fail == nil && err == nil && w.rng.IntN(2) == 0 {
				w.disk.kill() // an orderly restart
				return
			}
		}
	}
	sound := w.disk.fail == nil && len(w.disk.bad) == 0
	w.disk.fail = nil
	if w.short {
		// Where not even the cursor could be overwritten, what had been passed made room
		// without a note of it.
		w.unnoted()
	}
	if w.rng.IntN(3) == 0 {
		w.did("kill") // between two calls, or in the middle of one
		w.stats.kills++
		w.disk.kill()
		w.disk.dead, w.disk.cutAt = false, 0
		if opened && sound {
			w.survived()
		}
		return
	}
	w.cut()
}

// survived checks that a kill took nothing that Append had returned for, where that was
// not durable yet: SyncInterval and SyncNever promise that as long as the disk does what it
// is asked for. What SyncGroup promises is held against what is delivered.
func (w *world) survived() {
	if w.o.Sync == SyncGroup || w.o.Memory > 0 || w.o.Full == DropOldest {
		return
	}
	kept := w.scan("")
	for _, s := range w.all {
		if s.stored && s.epoch == w.b.start.Epoch && !s.passed && !s.told && !s.merged && !s.hit && !kept[s.id] {
			w.fail("I1: %s was taken, and a kill took it away", s.id)
		}
	}
}

// cut lets the power fail, and come back.
func (w *world) cut() {
	w.did("power cut")
	w.stats.cuts++
	w.disk.reboot()
	if n := w.disk.names[cursorFile]; w.belief > 0 && (n == nil || newest(n.data) < w.belief) {
		// A save failed, and what it had written was in memory until now: the life that was begun by
		// it, and could not save either, had no way to know.
		w.wear()
	}
	for _, x := range w.disk.spoilt {
		w.hurt(x.name, x.before, x.lo, x.hi)
	}
	w.disk.spoilt = nil
	w.maybe = w.maybe || w.o.Sync == SyncNever // what it covers may be gone
	for _, s := range w.all {
		s.stored = s.stored && (s.promised || s.delivered) // of the rest nothing is known
		// A life that follows a failed sync and a kill hands out what is not durable.
		s.refused = s.refused && w.o.Sync != SyncNever && !((w.unsynced || w.o.Memory > 0) && !s.promised)
	}
}

func (w *world) step() {
	switch k := w.rng.IntN(22); {
	case k < 9:
		w.append()
	case k < 16:
		w.deliver(false)
	case k < 18:
		w.tick(time.Duration(w.rng.IntN(3000)) * time.Millisecond)
	case k < 19:
		w.tick(w.o.KeepAcked + time.Minute)
	case k < 21:
		w.read()
	default:
		if w.plan != (Plan{}) && w.disk.fail == nil && w.disk.room < 0 {
			if w.b.SetPlan(Plan{}) == nil && !w.disk.dead {
				w.plan, w.maybe = Plan{}, false
			} else {
				w.maybe = true
			}
			w.did("clear plan")
		}
	}
}

// finish drains everything in a healthy life and settles accounts.
func (w *world) finish() {
	w.disk.fail, w.disk.cutAt, w.disk.room, w.disk.bad = nil, 0, -1, nil
	if !w.open() {
		w.fail("I7: the last open failed")
	}
	w.append()
	for i := 0; w.b.Stats().PendingRecords > 0; i++ {
		if i > 100_000 {
			w.fail("I9: %d records are pending and never come", w.b.Stats().PendingRecords)
		}
		before := w.b.Stats().Committed
		w.tick(time.Minute)
		w.deliver(true)
		if w.b.Stats().Committed == before && i > 1000 {
			w.fail("I9: no progress at %d", before)
		}
	}
	w.settle()
	if err := w.b.Close(); err != nil {
		w.fail("close: %v", err)
	}
	w.disk.kill()
}

// run runs f and returns a violation, or a panic, with the way to it.
func (w *world) run(name string, f func()) (failure string) {
	return guard(name, func(at **world) {
		*at = w
		f()
	})
}

// guard is run for an f that says which world it is in.
func guard(name string, f func(at **world)) (failure string) {
	w := &world{}
	defer func() {
		switch v := recover().(type) {
		case nil:
		case violation:
			failure = fmt.Sprintf("%s: %s\n%v", name, v.text, tailOf(w.steps, 60))
		default:
			failure = fmt.Sprintf("%s: panic: %v\n%v%s", name, v, tailOf(w.steps, 60), debug.Stack())
		}
	}()
	f(&w)
	return ""
}

// catch makes a failure of a helper one that guard returns, on any goroutine.
type catch struct{ testing.TB }

func (c catch) Fatalf(format string, args ...any) { panic(violation{fmt.Sprintf(format, args...)}) }
func (c catch) Fatal(args ...any)                 { panic(violation{fmt.Sprint(args...)}) }

// try is run that ends the test.
func (w *world) try(t *testing.T, name string, f func()) {
	t.Helper()
	if failure := w.run(name, f); failure != "" {
		t.Fatal(failure)
	}
}

// each calls f with first, first+1, … on all processors until the sum of what it returns
// has reached want. Which numbers those are depends on f alone. Of failures, that with the lowest
// number is told.
func each(t *testing.T, first uint64, want int, f func(n uint64) (done int, failure string)) (sum int) {
	t.Helper()
	const stretch = 48
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	for ; sum < want; first += stretch {
		var done [stretch]int
		var failures [stretch]string
		var next atomic.Int64
		var wg sync.WaitGroup
		for range runtime.GOMAXPROCS(0) {
			wg.Go(func() {
				for i := next.Add(1) - 1; i < stretch; i = next.Add(1) - 1 {
					done[i], failures[i] = f(first + uint64(i))
				}
			})
		}
		wg.Wait()
		for i, s := range failures {
			if s != "" {
				t.Fatal(s)
			}
			sum += done[i]
		}
	}
	return sum
}

func tailOf(s []step, n int) string {
	out := ""
	for _, x := range s[max(0, len(s)-n):] {
		out += "  " + fmt.Sprintf(x.format, x.args...) + "\n"
	}
	return out
}

// policies are the buffers that the power is cut under.
func policies() []Options {
	return []Options{
		{SegmentBytes: 4096, MaxBytes: 1 << 30, KeepAcked: -1},
		{SegmentBytes: 1500, MaxBytes: 1 << 30, KeepAcked: 10 * time.Second},
		{SegmentBytes: 4096, MaxBytes: 16 << 10, KeepAcked: time.Minute, Full: DropOldest},
		{SegmentBytes: 3000, MaxBytes: 1 << 30, KeepAcked: -1, Sync: SyncInterval, MaxUnsynced: 6000},
		{SegmentBytes: 4096, MaxBytes: 1 << 30, KeepAcked: -1, Sync: SyncNever},
		{SegmentBytes: 2000, MaxBytes: 12 << 10, KeepAcked: -1, Sync: SyncInterval, Full: DropOldest, RejectedBytes: 2500},
		{SegmentBytes: 2000, MaxBytes: 1 << 30, KeepAcked: time.Minute, Memory: 24 << 10},
		{SegmentBytes: 2000, MaxBytes: 24 << 10, KeepAcked: -1, Full: DropOldest, Memory: 8 << 10},
	}
}

func (w *world) total() string {
	w.stats.calls = w.disk.calls
	return fmt.Sprintf("%+v", w.stats)
}
