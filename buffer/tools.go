package buffer

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"time"

	"spillway/buffer/batch"
)

// The tools in this file and in tools_stats.go read a directory without a lock,
// also that of a running agent or a copy: segments are only ever appended to. They
// change nothing. Salvage reads in the same way and writes elsewhere; Rewind and
// Trim take the lock.

// States of a segment, as both its ends tell them. What lies between is for Verify.
const (
	StateOpen       = "open"       // the newest, without a footer: being written, or its writer was killed
	StateSealed     = "sealed"     // closed with a footer
	StateUnclosed   = "unclosed"   // without a footer, and ends behind an intact batch: its writer was killed, or gave it up; a newer one follows
	StateTorn       = "torn"       // ends in a write that was cut off, and a newer one follows; or it has no header yet
	StateDamaged    = "damaged"    // its header was destroyed, or is another segment's
	StateNewer      = "newer"      // written by a newer spillway
	StateUnreadable = "unreadable" // the file can't be opened
)

// SegmentInfo is what Segments says about one segment, from its name, its header
// and its footer alone.
type SegmentInfo struct {
	Name    string      `json:"name"`
	Ordinal uint64      `json:"ordinal"`
	Epoch   batch.Epoch `json:"-"`
	EpochHx string      `json:"epoch"`
	Agent   string      `json:"agent"`
	Bytes   int64       `json:"bytes"`
	First   uint64      `json:"first"`
	// Last is the number of the last record: from the footer, else from the next
	// segment of the same epoch, else from the batch that an unclosed one ends with, else
	// 0 (not known without reading it all).
	Last    uint64    `json:"last,omitempty"`
	Created time.Time `json:"created,omitzero"`
	State   string    `json:"state"`
}

// Position is what the cursor says.
type Position struct {
	Committed uint64            `json:"committed"`      // every record up to this one was delivered, or told as lost
	Next      uint64            `json:"next"`           // the number that came next when the cursor was saved
	Plan      *Plan             `json:"plan,omitempty"` // the object that was about to be handed over
	Acked     map[string]uint64 `json:"acked"`          // by output, the last record that it acknowledged
	HandOvers []HandOver        `json:"hand_overs"`     // who took what, oldest first, as far as the cursor can hold it
	Doubts    []Doubt           `json:"in_doubt"`       // oldest first; without an output: any may have it
	Lost      map[string]uint64 `json:"lost"`           // records by reason
	Gaps      []Gap             `json:"gaps,omitempty"` // not yet told in-band
}

// Listing is what lies in a directory.
type Listing struct {
	Segments []SegmentInfo // oldest first
	// Foreign are the names of what is none of the buffer's, or is where a segment or
	// the cursor should be and no regular file. Misnamed are those of them that begin
	// with the header of a segment: Salvage knows what they are. Cursors are those that
	// a cursor can be read from.
	Foreign, Misnamed, Cursors []string
	Cursor                     bool // there is a file with its name
	Asides                     bool // there is a rejected/ or a quarantine/
}

// Empty reports whether nothing in the directory is a buffer's.
func (l *Listing) Empty() bool {
	return len(l.Segments) == 0 && len(l.Misnamed) == 0 && !l.Cursor && !l.Asides
}

// Segments lists what lies in dir. It reads a few hundred bytes per file, and of one
// without a footer that is not the newest a header per batch and its last payload.
func Segments(dir string) (*Listing, error) {
	d, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	files, err := listed(d)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	l := &Listing{Segments: []SegmentInfo{}}
	if err := l.strangers(d); err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	parsed := parseNames(files)
	for i, s := range parsed {
		info := SegmentInfo{Name: s.name(), Ordinal: s.ordinal, Epoch: s.epoch, EpochHx: s.epoch.String(), Agent: s.agent, Bytes: s.size, First: s.first}
		if i+1 < len(parsed) && parsed[i+1].epoch == s.epoch {
			info.Last = parsed[i+1].first - 1
		}
		f, err := d.Open(info.Name, false)
		if errors.Is(err, fs.ErrNotExist) {
			continue // delivered meanwhile
		}
		if err != nil {
			info.State = StateUnreadable
		} else {
			info.look(f, s, i+1 == len(parsed))
			f.Close()
		}
		l.Segments = append(l.Segments, info)
	}
	return l, nil
}

// look finds out the state of s, whose file is f.
func (i *SegmentInfo) look(f File, s *segment, newest bool) {
	var buf [segmentHeaderSize]byte
	n, _ := readAt(f, buf[:], 0)
	head := buf[:n]
	h, err := readSegmentHeader(f)
	began := n == segmentHeaderSize && head[0] != 0 // else what was to be its header never came to the disk
	intact := err == nil && h.Salt == s.salt
	if intact {
		i.Created = instant(h.Created)
	}
	n, _ = readAt(f, buf[:footerSize], max(0, s.size-footerSize))
	foot, sealed := parseFooter(buf[:n], s.size-footerSize)
	if sealed = sealed && foot.Salt == s.salt; sealed {
		i.Last = foot.Last
	}
	switch {
	case errors.Is(err, ErrVersion):
		i.State = StateNewer
	case !intact && (began || sealed):
		i.State = StateDamaged
	case sealed:
		i.State = StateSealed
	case newest && intact:
		i.State = StateOpen
	default:
		i.State = StateTorn
		if !intact {
			break
		}
		if last := lastBatch(f, s); last > 0 {
			i.State, i.Last = StateUnclosed, cmp.Or(i.Last, last)
		}
	}
}

// lastBatch returns the number of the last record in f if the file ends with an intact
// batch, else 0.
func lastBatch(f File, s *segment) uint64 {
	scan := scanner{r: f, end: s.size, salt: s.salt}
	var last Extent
	for e, ok := scan.next(); ok; e, ok = scan.next() {
		last = e
	}
	if last.Kind != KindBatch {
		return 0
	}
	scan.off, scan.payloads = last.Off, true
	if last, _ = scan.next(); last.Kind != KindBatch {
		return 0
	}
	return last.Batch.Last()
}

// listed lists d. Of segments none is left out before one that is listed, and each that another
// one follows has its last size, also while an agent writes: its names and sizes are found one
// by one, so of two lists the second has all that was there before the newest of the first.
func listed(d FS) ([]FileInfo, error) {
	newest := uint64(0)
	files, err := d.List("")
	for _, f := range files {
		if s, ok := parseName(f.Name); ok {
			newest = max(newest, s.ordinal)
		}
	}
	if err == nil {
		files, err = d.List("")
	}
	return slices.DeleteFunc(files, func(f FileInfo) bool {
		s, ok := parseName(f.Name)
		return ok && s.ordinal > newest
	}), err
}

// strangers finds what in d has none of the buffer's names.
func (l *Listing) strangers(d *osFS) error {
	entries, err := fs.ReadDir(d.root.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		_, segment := parseName(e.Name())
		switch {
		case e.Type().IsRegular() && segment:
		case e.Type().IsRegular() && e.Name() == cursorFile:
			l.Cursor = true
		case e.IsDir() && (e.Name() == quarantine || e.Name() == rejected):
			l.Asides = true
		default:
			l.Foreign = append(l.Foreign, e.Name())
			if !e.Type().IsRegular() {
				continue
			}
			switch segment, cursor := holds(d, e.Name()); {
			case segment:
				l.Misnamed = append(l.Misnamed, e.Name())
			case cursor:
				l.Cursors = append(l.Cursors, e.Name())
			}
		}
	}
	return nil
}

// holds reports whether a file begins with the header of a segment, or has the slot of
// a cursor.
func holds(d FS, name string) (segment, cursor bool) {
	f, err := d.Open(name, false)
	if err != nil {
		return false, false
	}
	defer f.Close()
	var buf [2 * slotSize]byte
	n, _ := readAt(f, buf[:], 0)
	if _, err = parseSegmentHeader(buf[:n]); err == nil || errors.Is(err, ErrVersion) {
		return true, false
	}
	_, first := parseSlot(buf[:min(n, slotSize)])
	_, second := parseSlot(buf[min(n, slotSize):n])
	return false, first == nil || second == nil || errors.Is(first, ErrVersion) || errors.Is(second, ErrVersion)
}

// ReadPosition returns what the cursor of dir says; ok is false if there is no
// readable one. One that a newer version saved is ErrVersion.
func ReadPosition(dir string) (pos Position, ok bool, err error) {
	d, err := openDir(dir)
	if err != nil {
		return pos, false, err
	}
	defer d.Close()
	p, ok, err := readPosition(d)
	if err != nil {
		return pos, false, fmt.Errorf("%s: %w", cursorFile, err)
	}
	if !ok {
		return pos, false, nil
	}
	pos = Position{Committed: p.committed, Next: p.next, Acked: map[string]uint64{}, Lost: map[string]uint64{}, Gaps: p.gaps,
		HandOvers: append([]HandOver{}, p.handOvers()...), Doubts: append([]Doubt{}, p.doubts...)}
	if p.plan != (Plan{}) {
		pos.Plan = &p.plan
	}
	for _, h := range p.acks {
		pos.Acked[h.output] = h.last
	}
	for i, reason := range dropped {
		if reason != "" {
			pos.Lost[reason] = p.drops[i]
		}
	}
	return pos, true, nil
}

// readPosition is what the cursor in d says, if one can be read. Only a newer version is an
// error; an older slot beside it says less than is so.
func readPosition(d FS) (p position, ok bool, err error) {
	var c cursor
	p, ok, _ = c.read(d)
	return p, ok, c.newer
}

// Finding is one thing that Verify has to say about a place.
type Finding struct {
	File string `json:"file"`
	Off  int64  `json:"offset"` // where it begins in the file
	End  int64  `json:"end"`    // where it ends
	// What is "damaged" (bytes that were durable once), "torn" (a write that was cut
	// off: normal after a crash), "lost" (numbers that are missing before Off), "gone"
	// (the same, of segments that were delivered or dropped and told of: normal), "sum"
	// (SHA-256 does not match), "seal" (does not follow the batch before it), "lines"
	// (of VerifyDeep: what a payload holds is not what its header says),
	// "version" (written by a newer spillway), "unreadable" (the file can't be opened),
	// or of Salvage alone "left" (readable, and not saved: Err says why).
	What  string      `json:"what"`
	Epoch batch.Epoch `json:"-"`
	First uint64      `json:"first,omitempty"` // records concerned, as far as known
	Last  uint64      `json:"last,omitempty"`
	Err   error       `json:"-"`
}

// Bad reports whether f means that something durable is gone or was changed.
func (f *Finding) Bad() bool { return f.What != "torn" && f.What != "gone" }

func (f *Finding) String() string {
	s := fmt.Sprintf("%s: bytes %d to %d: %s", f.File, f.Off, f.End, f.What)
	if f.First > 0 {
		s += fmt.Sprintf(": records %d to %d of epoch %s", f.First, f.Last, f.Epoch)
	}
	if f.Err != nil {
		s += ": " + f.Err.Error()
	}
	return s
}

// Report is the sum of a Verify.
type Report struct {
	Segments, Batches, Records uint64
	Bytes, Payload             int64  // of files; of valid payloads
	Lost                       uint64 // records whose numbers are missing
	Damaged, Torn              int64  // bytes
	Duplicates                 uint64 // batches that lie there twice, which is normal after a failed write
	Bad                        uint64 // findings for which Bad is true
}

// walker goes through the batches of a directory in their order: number
// arithmetic and the seal chain, for all the tools.
type walker struct {
	report  Report
	find    func(Finding)
	each    func(b *batch.Batch, s *segment, before batch.Seal) error
	headers bool // payloads are not read, and not checked
	deep    bool // payloads are decompressed

	epoch    batch.Epoch
	next     uint64 // expected; 0: nothing is
	seal     batch.Seal
	known    bool   // the seal before the next batch is
	joined   bool   // … from the batch before it, or it is the epoch's first: not from a header that some may lie before
	follower uint64 // first number of the next segment of this epoch; 0: there is none

	segs    []*segment
	at      int                     // of segs, which one is walked through
	vouched int                     // of its epoch, the last one that says that all before it was durable; -1: none, -2: not looked for
	saved   stored                  // what the cursor says that was durable
	files   func(*segment) []string // where a segment lies; nil: under its name

	hurt      bool                           // there is damage behind the last batch
	stored    uint64                         // the highest number that footers of this epoch tell
	committed uint64                         // as the cursor says
	passed    Range                          // and what was dropped and told behind that
	again     func() (position, bool, error) // reads the cursor; nil: there is none
}

// refresh reads the cursor again before anything is called lost: a running agent may
// have delivered and removed it meanwhile, and said so in the cursor before.
func (w *walker) refresh() {
	if w.again == nil {
		return
	}
	if p, ok, _ := w.again(); ok {
		w.committed, w.passed = p.committed, p.passed
	}
}

// Verify reads every byte of the segments in dir and checks all that can be
// checked: headers, CRC32C and SHA-256 of payloads, seals, and the arithmetic of
// record numbers, from which it counts exactly what is lost, also what the cursor
// knows to have been stored behind the last batch. each is called for every finding,
// in order; it may be nil.
func Verify(dir string, each func(Finding)) (Report, error) {
	return verify(dir, walker{find: each})
}

// VerifyDeep is Verify, and decompresses each payload: it must be whole, end at a line
// end, and have as many bytes and lines as its header says. It stops where a payload
// yields more than that, and its memory is bounded by a decoder's window, whatever
// the payload promises.
func VerifyDeep(dir string, each func(Finding)) (Report, error) {
	return verify(dir, walker{find: each, deep: true})
}

func verify(dir string, w walker) (Report, error) {
	if w.find == nil {
		w.find = func(Finding) {}
	}
	err := w.walk(dir)
	return w.report, err
}

// Cat calls each with every valid batch in dir in the order of their numbers, one
// call per batch even if it lies there twice, with the agent and the epoch of its
// identity and the seal before it. The payload is valid until each returns. An
// error of each ends it.
func Cat(dir string, each func(b *batch.Batch, agent string, epoch batch.Epoch, before batch.Seal) error) error {
	w := walker{find: func(Finding) {}, each: func(b *batch.Batch, s *segment, before batch.Seal) error {
		return each(b, s.agent, s.epoch, before)
	}}
	return w.walk(dir)
}

func (w *walker) walk(dir string) error {
	d, err := openDir(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	w.again = func() (position, bool, error) { return readPosition(d) }
	p, cursor, err := w.again()
	if err != nil {
		w.tell(Finding{File: cursorFile, What: "version", Err: err})
	}
	if cursor {
		w.committed, w.passed = p.committed, p.passed
		w.saved = p.stored()
	}
	files, err := listed(d)
	if err != nil {
		return fmt.Errorf("list %s: %w", dir, err)
	}
	segs := parseNames(files)
	for i, s := range segs {
		w.follow(segs, i)
		if err := w.copies(d, s, []string{s.name()}); err != nil {
			return err
		}
	}
	w.end(segs, &p, cursor)
	return nil
}

// end tells what was stored behind the last batch of all and is not there: nothing
// behind it shows that, but a footer, or the cursor, if that is of the same epoch.
func (w *walker) end(segs []*segment, p *position, cursor bool) {
	f := Finding{File: cursorFile, What: "lost", Epoch: p.epoch, Last: w.stored}
	if n := len(segs); n > 0 {
		s := segs[n-1]
		f.File, f.Off, f.End, f.Epoch = s.name(), s.size, s.size, s.epoch
	}
	if cursor && p.seal != (batch.Seal{}) && (len(segs) == 0 || f.Epoch == p.epoch) {
		f.Last = max(f.Last, p.next-1)
	}
	if f.First = max(w.next, w.committed+1); f.First <= f.Last {
		w.refresh()
	}
	if f.First = max(w.next, w.committed+1); f.First <= f.Last {
		w.report.Lost += f.Last - f.First + 1
		w.tell(f)
	}
}

// follow gets ready for segs[i].
func (w *walker) follow(segs []*segment, i int) {
	if i+1 == len(segs) {
		segs[i].last = math.MaxUint64 // nothing behind it says where it ends
	}
	w.follower = 0
	if i+1 < len(segs) && segs[i+1].epoch == segs[i].epoch {
		w.follower = segs[i+1].first
	}
	if w.segs, w.at = segs, i; i == 0 || segs[i-1].epoch != segs[i].epoch {
		w.vouched = -2
	}
}

// stored returns what p says that was durable when it was saved.
func (p *position) stored() (s stored) {
	if p.durable {
		s = stored{p.epoch, p.next}
	}
	if last := s.next - 1; p.passed.holds(Range{last, last}) {
		s.next = p.passed.First // the rest was dropped, from memory perhaps
	}
	return s
}

// durable returns the number below which every record of the segment was durable once, as far as
// what lies behind it says: a later segment of its epoch, or the cursor. Else 0.
func (w *walker) durable(d FS) (next uint64) {
	if w.saved.epoch == w.epoch {
		next = w.saved.next
	}
	if w.follower == 0 {
		return next
	}
	if w.vouched == -2 {
		w.vouched = w.vouch(d)
	}
	if w.at < w.vouched {
		return w.follower
	}
	return min(next, w.follower)
}

// vouch returns the last segment of the epoch whose header says that all before it was durable, or
// -1.
func (w *walker) vouch(d FS) int {
	i := w.at
	for i+1 < len(w.segs) && w.segs[i+1].epoch == w.epoch {
		i++
	}
	for ; i > w.at; i-- {
		s := w.segs[i]
		names := []string{s.name()}
		if w.files != nil {
			names = w.files(s)
		}
		for _, name := range names {
			f, err := d.Open(name, false)
			if err != nil {
				continue
			}
			h, err := readSegmentHeader(f)
			f.Close()
			if err == nil && h.Salt == s.salt && h.Durable {
				return i
			}
		}
	}
	return -1
}

// copies walks through s, which lies in these files of d: one, or several copies.
func (w *walker) copies(d FS, s *segment, files []string) error {
	var all []*piece
	for _, name := range files {
		f, err := d.Open(name, false)
		if errors.Is(err, fs.ErrNotExist) {
			continue // delivered meanwhile
		}
		if err != nil {
			w.hurt = true
			w.tell(Finding{File: name, End: s.size, What: "unreadable", Epoch: s.epoch, Err: err})
			continue
		}
		defer f.Close()
		p := &piece{name: name, f: f, promise: -1}
		size, err := f.Size()
		if err != nil || len(files) == 1 {
			size = s.size // as it was listed: a running agent appends to it
		}
		p.scan = scanner{r: f, end: size, salt: s.salt, payloads: !w.headers}
		w.report.Bytes += size
		all = append(all, p)
	}
	if len(all) == 0 {
		return nil
	}
	w.report.Segments++
	w.begin(s)
	for {
		// Of several copies, each batch is taken from the first that has it.
		var least *piece
		for _, p := range all {
			for p.ahead == nil && !p.done {
				w.step(d, s, p)
			}
			if p.ahead != nil && (least == nil || p.ahead.Batch.First < least.ahead.Batch.First) {
				least = p
			}
		}
		if least == nil {
			return nil
		}
		e := least.ahead
		least.ahead = nil
		if err := w.batch(s, least.name, e); err != nil {
			return err
		}
	}
}

// piece is one file of a segment, and how far it was read.
type piece struct {
	name    string
	f       File
	scan    scanner
	ahead   *Extent // a batch that is not walked over yet
	done    bool
	promise int64  // bytes below this were durable once; -1: not looked at
	durable uint64 // numbers below this too; known with promise
}

var errMisplaced = errors.New("it is another segment under this one's name: salvage finds out which")

// misplaced reports whether p begins with the header of a segment, and not of this one.
func (p *piece) misplaced() bool {
	h, err := readSegmentHeader(p.f)
	return err == nil && h.Salt != p.scan.salt
}

// begin gets ready for the first batch of s.
func (w *walker) begin(s *segment) {
	if s.epoch != w.epoch {
		w.epoch, w.seal, w.stored, w.joined = s.epoch, batch.Seal{}, 0, true
		w.next = max(w.next, s.first)
	}
	if w.next == 0 {
		w.next = s.first
	}
	w.known = w.next > s.first || w.seal != (batch.Seal{})
}

// step reads one extent of p.
func (w *walker) step(d FS, s *segment, p *piece) {
	e, ok := p.scan.next()
	if !ok {
		p.done = true
		return
	}
	switch e.Kind {
	case KindFooter:
		w.stored = max(w.stored, e.Footer.Last)
	case KindHeader:
		if e.header.First == s.first && w.next <= s.first {
			w.joined = w.joined && w.seal == e.header.Before
			w.seal, w.known = e.header.Before, true
			if e.header.Aside {
				w.next = s.first
			}
		}
	case KindDamage:
		if p.promise < 0 {
			rest := scanner{r: p.f, off: e.End, end: p.scan.end, salt: s.salt}
			p.promise, p.durable = rest.promise(), w.durable(d)
		}
		w.damage(s, p, &e)
	case KindBatch:
		p.ahead = &e
	}
}

// batch walks over one batch.
func (w *walker) batch(s *segment, file string, e *Extent) error {
	b := &e.Batch
	if b.Last() < w.next || b.First > s.last { // the copy in the next segment counts
		w.report.Duplicates++
		return nil
	}
	found := Finding{File: file, Off: e.Off, End: e.End, Epoch: s.epoch, First: b.First, Last: b.Last()}
	follows := b.Chain(w.seal, s.epoch) == b.Seal
	if b.First > w.next {
		lost := found
		lost.What, lost.End, lost.First, lost.Last = "lost", e.Off, w.next, b.First-1
		// drop_oldest spares what is planned: segments behind that go before it.
		removed := func() bool {
			return lost.Last <= w.committed || w.passed.First <= lost.First && lost.Last <= w.passed.Last
		}
		whole := b.First == s.first && !w.hurt
		if whole && !removed() {
			w.refresh()
		}
		gone := whole && removed()
		if gone {
			lost.What = "gone"
		} else {
			w.report.Lost += b.First - w.next
		}
		if follows && w.joined && !gone {
			lost.Err = errors.New("left out by the writer: the seals join")
		}
		w.tell(lost)
		w.known = follows
	}
	before := w.seal
	if w.known && !follows {
		found.What, found.Err = "seal", errors.New("the seal does not follow the batch before it")
		w.tell(found)
	}
	if !w.headers {
		if err := b.Check(); err != nil {
			found.What, found.Err = "sum", err
			w.tell(found)
		}
	}
	if w.deep {
		if err := b.Inspect(); err != nil {
			found.What, found.Err = "lines", err
			w.tell(found)
		}
	}
	w.next, w.seal, w.known, w.joined, w.hurt = b.Last()+1, b.Seal, true, true, false
	w.report.Batches++
	w.report.Records += uint64(b.Count)
	w.report.Payload += int64(b.Length)
	if w.each != nil {
		return w.each(b, s, before)
	}
	return nil
}

// damage tells about a damaged extent. What is missing in it is told by the
// numbers of the batch behind it.
func (w *walker) damage(s *segment, p *piece, e *Extent) {
	f := Finding{File: p.name, Off: e.Off, End: e.End, What: "torn", Epoch: s.epoch, Err: e.Err}
	w.hurt = true
	if e.Batch.Count > 0 {
		f.First, f.Last = e.Batch.First, e.Batch.Last()
	}
	first := max(w.next, s.first)
	if w.follower == 0 {
		first = max(first, w.committed+1) // what was delivered may have been in memory only
	}
	misplaced := e.Off == 0 && p.misplaced()
	if misplaced {
		f.Err = errMisplaced
	}
	switch {
	case errors.Is(e.Err, ErrVersion):
		f.What = "version"
	case e.Off < p.promise || first < p.durable || misplaced:
		f.What = "damaged"
		w.report.Damaged += e.End - e.Off
	default:
		w.report.Torn += e.End - e.Off
	}
	w.tell(f)
}

func (w *walker) tell(f Finding) {
	if f.Bad() {
		w.report.Bad++
	}
	w.find(f)
}
