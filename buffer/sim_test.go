package buffer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway/buffer/batch"
)

// budget multiplies the number of rounds of the tests below.
func budget(t testing.TB, n int) int {
	if s := os.Getenv("SPILLWAY_CRASH_BUDGET"); s != "" {
		f, err := strconv.ParseFloat(s, 64)
		if err != nil {
			t.Fatalf("SPILLWAY_CRASH_BUDGET=%q: want a factor", s)
		}
		n = max(1, int(float64(n)*f))
	}
	return n
}

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
	id          string
	seal        batch.Seal
	payload     []byte
	promised    bool // Append returned nil before the power went
	stored      bool // Append returned nil, or ErrMemory
	memory      bool // Append returned ErrMemory, and it has not come to the disk since, as far as is known
	delivered   bool // Next returned it
	told        bool // inside a Gap
	inBand      bool // GapsTold for that gap
	now         bool // Next returned it in this life
	sent        bool // Next returned it in a life that did not end with Close
	refused     bool // Reject was called for it since Next returned it last
	unsure      bool // with refused: Reject failed, or could not keep it
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
//	I5 position: it never goes back in a life, and nothing below it is undelivered
//	I6 conservation: what is told as lost is counted exactly
//	I7 opening never fails for damage and writes nothing
//	I8 opening twice is opening once
//	I9 every call ends
//	I10 doubts: what InDoubt returned for is durable until its output acknowledges it; a plan given up never comes back
//	I11 taken: no output is said to have what it did not acknowledge
//	I12 reading again: what Next may return or has returned and is kept, byte for byte and in order
//	I13 rejected: at the head of the line still, or kept aside and told
type world struct {
	rng   *rand.Rand
	disk  *simDisk
	o     Options
	now   time.Time
	all   []*sent
	byID  map[string]*sent
	seen  map[number]uint32          // CRC that the outside has seen under a number
	plan  Plan                       // SetPlan returned nil for it and nothing touched it since
	maybe bool                       // plan may be there or not
	gone  map[string]bool            // keys of plans that were given up for good
	short bool                       // the disk was full and took no cursor: what Reject did may stay untold
	many  bool                       // gaps were so many that some are merged
	doubt []Doubt                    // InDoubt returned nil for them
	acked map[string]map[uint64]bool // records by the output that acknowledged them
	b     *Buffer
	w     *writer

	stats struct{ lives, appends, runs, cuts, kills, newEpochs, gaps, doubts, reads, rejects, memory int }
	steps []string // what was done, for the report
}

func newWorld(seed uint64, o Options) *world {
	rng := rand.New(rand.NewPCG(seed, seed))
	w := &world{rng: rng, disk: newSimDisk(rng), o: o, now: time.Unix(1_800_000_000, 0), byID: map[string]*sent{}, seen: map[number]uint32{},
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

func (w *world) did(format string, args ...any) {
	w.steps = append(w.steps, fmt.Sprintf(format, args...))
}

// open starts a life. It returns false if the power went or a fault was injected.
func (w *world) open() bool {
	w.stats.lives++
	changes := w.disk.changes
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
	if w.disk.fail == nil && w.rng.IntN(4) == 0 { // I8; both read only
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
	if w.disk.fail == nil {
		w.aside()
	}
	w.collect()
	w.taken()
	fresh := st.Previous != nil
	if fresh {
		w.stats.newEpochs++
	}
	for _, s := range w.all {
		if s.promised && s.last >= st.Next {
			w.fail("I4: record %d was promised, and numbering goes on at %d", s.last, st.Next)
		}
		if s.delivered && !s.memory && s.last >= st.Next && w.o.Sync != SyncNever && !(w.o.Memory > 0 && w.o.Sync == SyncInterval) { // what is not synced may come to memory
			w.fail("I4: record %d was seen, and numbering goes on at %d", s.last, st.Next)
		}
		if s.promised && s.last <= b.pos.committed && !s.delivered && !s.told {
			w.fail("I5: position %d, but %s was never delivered", b.pos.committed, s.id)
		}
		if !fresh && s.epoch == st.Epoch && s.last == st.Next-1 && s.seal == st.Seal {
			fresh = true // the seals join
		}
		if s.promised && st.Previous != nil && s.epoch == st.Previous.Epoch && s.last > st.Previous.Last {
			w.fail("a new epoch says that %d was the last record, but %d was promised", st.Previous.Last, s.last)
		}
	}
	if !fresh && len(w.all) > 0 && st.Next > 1 {
		w.fail("the seal at %d is not that of the batch before", st.Next)
	}
	return true
}

// append stores a few batches.
func (w *world) append() {
	n := 1 + w.rng.IntN(3)
	before := *w.w
	var batches []*batch.Batch
	var recs []*sent
	for range n {
		size := 1 + w.rng.IntN(900)
		if w.rng.IntN(20) == 0 {
			size += 3000
		}
		p := make([]byte, size)
		for i := range p {
			p[i] = byte(w.rng.Uint32())
		}
		x := w.w.seal(1+uint32(w.rng.IntN(5)), p)
		s := &sent{first: x.First, last: x.Last(), epoch: w.w.Epoch, id: x.Identity(w.o.Agent, w.w.Epoch).String(), seal: x.Seal, payload: p}
		batches, recs = append(batches, x), append(recs, s)
		w.all, w.byID[s.id] = append(w.all, s), s
	}
	for try := 0; ; try++ {
		err := w.b.Append(context.Background(), batches...)
		w.did("append %d-%d: %v", batches[0].First, batches[n-1].Last(), err)
		w.stats.appends++
		if errors.Is(err, ErrMemory) {
			w.stats.memory++
			for _, s := range recs {
				s.stored, s.memory = true, true
			}
			return
		}
		if err == nil {
			for _, s := range recs {
				s.stored = true
				s.promised = !w.disk.dead && w.o.Sync == SyncGroup
			}
			w.whole()
			return
		}
		if w.disk.dead || try > 2 {
			break
		}
		if errors.Is(err, ErrFull) {
			w.deliver(true)
			w.tick(w.o.KeepAcked + time.Minute)
		} else if w.disk.fail == nil && w.disk.room < 0 {
			w.fail("append: %v", err)
		}
	}
	// The numbers come again, and so must the content: keep to it by ending the life.
	*w.w = before
	w.w = nil
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

// deliver takes one run, if there is one, and commits some of it.
func (w *world) deliver(all bool) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	l := batch.Limits{Batches: 1 + w.rng.IntN(4)}
	run, err := w.b.Next(ended, l)
	if err != nil {
		if !errors.Is(err, context.Canceled) && !w.disk.dead && w.disk.fail == nil {
			w.fail("next: %v", err)
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
	case run.Key != "":
		w.fail("plan %+v came back as %q, %d to %d", w.plan, run.Key, run.First(), run.Last())
	case !w.maybe:
		w.fail("plan %+v is gone: next run is %d to %d", w.plan, run.First(), run.Last())
	}
	if run.Key == "" && w.rng.IntN(4) == 0 {
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
	if !all && w.rng.IntN(3) == 0 { // as if the output had failed
		switch w.rng.IntN(3) {
		case 0:
			w.inDoubt(Range{run.First(), run.Last()})
		case 1:
			w.reject(&run)
		}
		return
	}
	last := run.Last()
	if w.plan == (Plan{}) && !all {
		last = run.Batches[w.rng.IntN(len(run.Batches))].Last()
	}
	was := w.b.Stats().Committed
	output := w.output()
	if w.acked[output] == nil {
		w.acked[output] = map[uint64]bool{}
	}
	for n := run.First(); n <= last; n++ {
		w.acked[output][n] = true
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
	case err == nil || w.disk.dead || w.disk.fail != nil:
		w.maybe = w.maybe || givesUp
	default:
		w.fail("in doubt: %v", err)
	}
}

// reject takes a run out of the line.
func (w *world) reject(run *batch.Run) {
	w.stats.rejects++
	recs := w.of(run)
	err := w.b.Reject(run, "nobody takes it")
	w.did("reject %d-%d: %v", run.First(), run.Last(), err)
	if err != nil && !w.disk.dead && w.disk.fail == nil {
		w.fail("reject: %v", err)
	}
	for _, s := range recs {
		s.refused, s.unsure = true, err != nil || w.b.Stats().Degraded
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
		id := run.Batches[i].Identity(run.Agent, run.Epoch).String()
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
		if len(gaps) == 0 && !s.inBand && !w.short {
			w.fail("I13: %s was rejected, is out of the line and not told", s.id)
		}
		// Reject had failed, and it was dropped later; merged gaps have the reason of the first.
		dropped := slices.ContainsFunc(gaps, func(g Gap) bool { return byPolicy(g.Reason) }) || s.unsure && (w.many || w.o.Memory > 0)
		if !kept[s.id] && !dropped && w.o.RejectedBytes == 0 {
			w.fail("I13: %s was rejected, is out of the line and not kept aside", s.id)
		}
	}
}

// scan returns the identities of all intact batches in a directory.
func (w *world) scan(dir string) map[string]bool {
	found := map[string]bool{}
	for name, n := range w.disk.names {
		base, ok := strings.CutPrefix(name, dir)
		seg, ours := parseName(base)
		if !ok || !ours {
			continue
		}
		for e := range Scan(bytes.NewReader(n.data), int64(len(n.data)), base) {
			if e.Kind == KindBatch {
				found[e.Batch.Identity(seg.agent, seg.epoch).String()] = true
			}
		}
	}
	return found
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
	r := Range{First: first + w.rng.Uint64N(max(1, w.b.start.Next-first))}
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
		run, err := w.b.Read(context.Background(), Range{from, r.Last}, l)
		if w.disk.dead {
			return
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			if w.disk.fail == nil {
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
			if x.Chain(before, run.Epoch) != x.Seal && !(i == 0 && (w.broken(s) || !kept[w.before(s)] || w.o.Sync != SyncGroup)) {
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
	if w.disk.fail != nil || w.o.Sync == SyncNever {
		return
	}
	for _, s := range w.all {
		if (s.promised || s.delivered) && !s.told && kept[s.id] && s.last >= r.First && s.first <= r.Last && !got[s] {
			w.fail("I12: %s is kept and not read", s.id)
		}
	}
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
		if x.Seal != s.seal || x.Chain(prev, run.Epoch) != x.Seal && !(i == 0 && (w.broken(s) || w.o.Sync != SyncGroup)) { // without sync the header that says it may be torn
			w.fail("%s does not follow the seal before it", id)
		}
		prev = x.Seal
		at := number{run.Epoch, x.First}
		if crc, ok := w.seen[at]; ok && crc != x.CRC {
			w.fail("I4: record %d of epoch %v was seen with other content", x.First, run.Epoch)
		}
		w.seen[at] = x.CRC
		s.delivered, s.now, s.refused = true, true, false
		doubted := s.sent || slices.ContainsFunc(w.doubt, func(d Doubt) bool { return d.overlaps(Range{s.first, s.last}) })
		if doubted && run.Attempt != 2 {
			w.fail("I10: %s is in doubt and handed out as attempt %d", id, run.Attempt)
		}
	}
}

// byPolicy reports whether what reason says was wanted.
func byPolicy(reason string) bool {
	return reason == ReasonFull || reason == ReasonTrimmed || reason == ReasonExpired
}

// before is the identity of the batch before s, if it was of the same epoch.
func (w *world) before(s *sent) string {
	for _, o := range w.all {
		if o.epoch == s.epoch && o.last == s.first-1 {
			return o.id
		}
	}
	return ""
}

// broken reports whether the batch before s is told as lost, so that the seal
// before s need not be known.
func (w *world) broken(s *sent) bool {
	for _, o := range w.all {
		if o.epoch == s.epoch && o.last == s.first-1 && o.told {
			return true
		}
	}
	return false
}

// collect takes the gaps that were found.
func (w *world) collect() {
	gaps := w.b.Gaps()
	w.many = w.many || len(gaps) >= maxGaps
	for _, g := range gaps {
		w.stats.gaps++
		w.did("gap %s %d-%d (%d)", g.Reason, g.First, g.Last, g.Count)
		var least, most uint64
		for _, s := range w.all {
			if !s.in(g) || s.epoch != g.Epoch && !w.many {
				continue
			}
			// Merged ones have the reason of the first.
			dropped := byPolicy(g.Reason) || g.Reason == ReasonRejected && (s.refused || w.many)
			if s.promised && !dropped {
				w.fail("I1: %s was promised and is told as %s", s.id, g.Reason)
			}
			most += s.last - s.first + 1
			// Of more gaps than a cursor holds, neighbours are merged: what lies between
			// them may be delivered or pending, and does not count.
			if merged := g.Count < g.Last-g.First+1; s.stored && !merged {
				least += s.last - s.first + 1
			}
			s.told = true
			s.refused = s.refused && !byPolicy(g.Reason)
		}
		// What Append failed for may lie there and count, or not.
		if (g.Reason == ReasonFull || g.Reason == ReasonExpired) && w.o.Sync == SyncGroup && (g.Count < least || g.Count > most) {
			w.fail("I6: %d records told as %s in %d to %d, but %d to %d were stored there", g.Count, g.Reason, g.First, g.Last, least, most)
		}
	}
	if len(gaps) > 0 && w.rng.IntN(2) == 0 {
		w.b.GapsTold(len(gaps), w.b.Stats().Next-1)
		for _, s := range w.all {
			for _, g := range gaps {
				s.inBand = s.inBand || s.in(g)
			}
		}
	}
}

func (w *world) tick(d time.Duration) {
	w.now = w.now.Add(d)
	w.b.Maintain(w.now)
	w.whole()
	if !slices.Contains(w.steps[max(0, len(w.steps)-1):], fmt.Sprintf("maintain +%v", d)) {
		w.did("maintain +%v", d)
	}
}

// life opens, works n steps and ends in one of four ways.
func (w *world) life(n int) {
	closed := false
	defer func() {
		for _, s := range w.all {
			s.sent = s.sent || s.now && !closed && !s.memory && w.b.saved // else nothing on the disk knows of this life
			s.now = false
			s.stored, s.refused = s.stored && !s.memory, s.refused && !s.memory
		}
	}()
	if w.open() {
		for range n {
			if w.disk.dead || w.w == nil {
				break
			}
			w.step()
		}
		if !w.disk.dead && w.rng.IntN(3) == 0 {
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
	w.disk.fail = nil
	if w.rng.IntN(3) == 0 {
		w.did("kill") // between two calls, or in the middle of one
		w.stats.kills++
		w.disk.kill()
		w.disk.dead, w.disk.cutAt = false, 0
		return
	}
	w.did("power cut")
	w.stats.cuts++
	w.disk.reboot()
	w.maybe = w.maybe || w.o.Sync == SyncNever // what it covers may be gone
	for _, s := range w.all {
		s.stored = s.stored && (s.promised || s.delivered) // of the rest nothing is known
		s.refused = s.refused && w.o.Sync != SyncNever
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
		if w.plan != (Plan{}) && w.disk.fail == nil {
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
	w.disk.fail, w.disk.cutAt, w.disk.room = nil, 0, -1
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
	for _, s := range w.all {
		if s.promised && !s.delivered && !s.told {
			w.fail("I1: %s was promised and is lost", s.id)
		}
	}
	if err := w.b.Close(); err != nil {
		w.fail("close: %v", err)
	}
	w.disk.kill()
}

// try runs f and turns a violation into a failure with the way to it.
func (w *world) try(t *testing.T, name string, f func()) {
	t.Helper()
	defer func() {
		switch v := recover().(type) {
		case nil:
		case violation:
			t.Fatalf("%s: %s\n%v", name, v.text, tailOf(w.steps, 60))
		default:
			t.Errorf("%s\n%v", name, tailOf(w.steps, 60))
			panic(v)
		}
	}()
	f()
}

func tailOf(s []string, n int) string {
	out := ""
	for _, x := range s[max(0, len(s)-n):] {
		out += "  " + x + "\n"
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
	}
}

func (w *world) total() string {
	return fmt.Sprintf("%d lives, %d power cuts, %d kills, %d appends, %d runs, %d calls, %d new epochs, %d gaps, %d doubts, %d reads, %d rejects, %d times in memory only", w.stats.lives, w.stats.cuts, w.stats.kills,
		w.stats.appends, w.stats.runs, w.disk.calls, w.stats.newEpochs, w.stats.gaps, w.stats.doubts, w.stats.reads, w.stats.rejects, w.stats.memory)
}

// TestPowerCuts runs many directories through several lives each, with a power
// cut at a random call of most of them, also while opening.
func TestPowerCuts(t *testing.T) {
	seed := seedOf(t)
	cuts, want := 0, budget(t, 5000)
	var sum [6]string
	start := time.Now()
	for n := seed; cuts < want; n++ {
		o := policies()[n%6]
		w := newWorld(n, o)
		w.try(t, fmt.Sprintf("SPILLWAY_CRASH_SEED=%d (%s, %s)", n, o.Sync, o.Full), func() {
			for range 8 {
				if w.rng.IntN(4) > 0 {
					w.disk.cutAt = w.disk.calls + 1 + w.rng.IntN(1+w.rng.IntN(250))
				}
				w.life(1 + w.rng.IntN(30))
			}
			w.finish()
		})
		cuts += w.stats.cuts
		sum[n%6] = w.total()
	}
	t.Logf("%d power cuts from seed %d in %v; the last of each kind: %q", cuts, seed, time.Since(start).Round(time.Millisecond), sum)
}

// TestEveryCall runs short scripts and cuts the power at every single call of
// them, several times with different outcomes.
func TestEveryCall(t *testing.T) {
	seed := seedOf(t)
	states, want := 0, budget(t, 2000)
	start := time.Now()
	for n := seed; states < want; n++ {
		o := policies()[n%6]
		for at := 1; ; at++ {
			done := false
			for outcome := range 3 {
				w := newWorld(n, o)
				w.try(t, fmt.Sprintf("SPILLWAY_CRASH_SEED=%d, script %d, cut at call %d, outcome %d", seed, n, at, outcome), func() {
					w.disk.cutAt = at
					w.life(6)
					done = w.disk.calls < at
					for range outcome {
						w.rng.Uint64() // another outcome of the next cut
					}
					w.life(4)
					w.finish()
				})
				states++
			}
			if done {
				break
			}
		}
	}
	t.Logf("%d states from seed %d in %v", states, seed, time.Since(start).Round(time.Millisecond))
}

// TestEveryFault fails every single call of scripts in turn, with every kind of
// error, and cuts the power soon after.
func TestEveryFault(t *testing.T) {
	seed := seedOf(t)
	states, want := 0, budget(t, 8000)
	start := time.Now()
	faults := []error{syscall.EIO, syscall.ENOSPC, errShort}
	for n := seed; states < want; n++ {
		o := policies()[n%6]
		for at := 1; ; at++ {
			done := false
			for i, fault := range faults {
				for length := 1; length <= 4; length += 3 { // one call, or a few in a row
					w := newWorld(n, o)
					name := fmt.Sprintf("SPILLWAY_CRASH_SEED=%d, script %d, %v at call %d, %d in a row", seed, n, fault, at, length)
					w.try(t, name, func() {
						w.disk.fail = func(op string, call int, name string) error {
							if call < at || call >= at+length || fault == errShort && op != "write" {
								return nil
							}
							w.did("fault %d in %s %s", i, op, name)
							w.short = w.short || fault == syscall.ENOSPC && name == cursorFile
							return fault
						}
						w.life(10)
						done = w.disk.calls < at
						w.life(4)
						w.finish()
					})
					states++
				}
			}
			if done {
				break
			}
		}
	}
	t.Logf("%d states from seed %d in %v", states, seed, time.Since(start).Round(time.Millisecond))
}
