package buffer

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"spillway/buffer/batch"
)

// Salvaging chooses what Salvage saves. The zero value is everything.
type Salvaging struct {
	Epoch batch.Epoch // of this epoch only; 0: of all
	Agent string      // who wrote the segments of which no name tells it
}

// Salvaged is what Salvage saved.
type Salvaged struct {
	Segments int `json:"segments"`
	Totals
	Rejected Aside  `json:"rejected"`
	Lost     uint64 `json:"lost"` // records between and behind what is saved whose numbers are known
	// Committed is the position in the new directory; Position says where it is from.
	Committed uint64   `json:"committed"`
	Position  string   `json:"position"`
	Next      uint64   `json:"next"` // with which numbering goes on there, in a new epoch
	Bad       uint64   `json:"bad"`  // findings that mean that something is not saved, or was changed
	Foreign   []string `json:"foreign,omitempty"`
}

// Positions of Salvaged.
const (
	PositionTaken   = "taken over"
	PositionNone    = "none: there is no cursor that can be read, so everything counts as not delivered"
	PositionForeign = "none: the cursor belongs to another buffer, so everything counts as not delivered"
)

// Salvage writes every batch that can still be read in dir to into, a buffer of its
// own that Open and all tools take: payloads, numbers, identities and seals as they
// are, holes as holes. dir is only read, without a lock; into must be empty or absent,
// and not inside dir. each is called for everything that is damaged, missing or left
// out; it may be nil.
//
// What a file is, its contents tell before its name: the segment header, else the
// salt of its batches and, from the seals, the epoch. Only the agent is nowhere but in
// the names: a file whose own name does not tell it has that of others of its epoch.
// Of several files that are the same segment, each batch is taken where it is intact.
// Where epochs that can't be of one buffer lie together, the larger is saved. What
// lies in rejected/ is saved to rejected/; quarantine/ is a directory to be salvaged
// by itself: what is there was delivered.
//
// The position and all that the cursor holds is taken over if it is readable and of
// this buffer. Numbering never goes on in an epoch that was salvaged, because its
// original may go on too: the next agent begins a new one, above every number found.
//
// The result depends on dir alone. After an error, into is of no use.
func Salvage(dir, into string, o Salvaging, each func(Finding)) (*Salvaged, error) {
	if o.Agent != "" && !ValidAgent(o.Agent) {
		return nil, fmt.Errorf("agent name %q: want 1 to %d of A-Z a-z 0-9 _ -", o.Agent, MaxAgent)
	}
	if err := fresh(dir, into); err != nil {
		return nil, err
	}
	from, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	s := salvage{from: from, o: o, agents: map[batch.Epoch]string{}, joints: map[batch.Epoch][]joint{}, find: each}
	if each == nil {
		s.find = func(Finding) {}
	}
	if err := s.survey(dir); err != nil {
		return nil, err
	}
	if len(s.live) == 0 && len(s.aside) == 0 {
		return nil, fmt.Errorf("%w: there is no segment that can be saved", ErrNothing)
	}
	to, err := openOS(into, true)
	if err != nil {
		return nil, err
	}
	defer to.Close()
	s.to = to
	if err := s.save(); err != nil {
		return nil, fmt.Errorf("salvage to %s, which is not complete, and has to go before the next try: %w", into, err)
	}
	return &s.sum, nil
}

// fresh refuses a directory that is in use, or inside the one that is only read.
func fresh(dir, into string) error {
	entries, err := os.ReadDir(into)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case len(entries) > 0:
		return fmt.Errorf("%s is not empty: give the name of a directory that does not exist yet: %w", into, fs.ErrExist)
	}
	outer, err := os.Stat(dir)
	if err != nil {
		return err
	}
	up, err := filepath.Abs(into)
	if err != nil {
		return err
	}
	for {
		if info, err := os.Stat(up); err == nil && os.SameFile(outer, info) {
			return fmt.Errorf("%s lies in %s, which is only read: give a directory elsewhere: %w", into, dir, fs.ErrInvalid)
		}
		if up == filepath.Dir(up) {
			return nil
		}
		up = filepath.Dir(up)
	}
}

// salvage is one Salvage.
type salvage struct {
	from, to FS
	o        Salvaging
	find     func(Finding)
	sum      Salvaged

	agents map[batch.Epoch]string // by the names; "": they contradict each other
	joints map[batch.Epoch][]joint
	cursor position // of the new directory
	next   uint64   // as the cursor that was taken over says, of its epoch; 0: none was
	saved  stored   // what that one says that was durable

	live, aside []*origin // by their numbers
}

// joint is a seal that is known to stand behind a record.
type joint struct {
	number uint64
	seal   batch.Seal
}

// origin is a segment in the directory that is salvaged.
type origin struct {
	segment
	files  []string // one, or several copies
	head   segmentHeader
	headed bool   // head is intact
	seen   uint64 // highest number in an intact header of a batch
	stored uint64 // highest number that a footer tells
}

func (s *salvage) tell(f Finding) {
	if f.Bad() {
		s.sum.Bad++
	}
	s.find(f)
}

func (s *salvage) leave(file string, size int64, format string, args ...any) {
	s.tell(Finding{File: file, End: size, What: "left", Err: fmt.Errorf(format, args...)})
}

// survey finds out what every file is.
func (s *salvage) survey(dir string) error {
	p, readable, err := readPosition(s.from)
	if err != nil {
		readable = false
		s.tell(Finding{File: cursorFile, What: "version", Err: err})
	}
	if readable {
		s.joint(p.epoch, p.next-1, p.seal)
	}
	if s.o.Epoch != 0 {
		s.joint(s.o.Epoch, 0, batch.Seal{})
	}
	lists := map[string][]FileInfo{}
	for _, sub := range []string{"", rejected, quarantine} {
		list := s.from.List
		if sub == "" {
			list = func(string) ([]FileInfo, error) { return listed(s.from) }
		}
		files, err := list(sub)
		if err != nil && sub == "" {
			return fmt.Errorf("list %s: %w", dir, err)
		}
		if err != nil {
			s.tell(Finding{File: sub, What: "unreadable", Err: err})
		}
		slices.SortFunc(files, func(a, b FileInfo) int { return strings.Compare(a.Name, b.Name) })
		lists[sub] = files
		for _, f := range files {
			if seg, ok := parseName(f.Name); ok {
				if a, ok := s.agents[seg.epoch]; ok && a != seg.agent {
					s.agents[seg.epoch] = ""
				} else {
					s.agents[seg.epoch] = seg.agent
				}
			}
		}
	}
	s.live = s.identify("", lists[""])
	s.aside = s.identify(rejected, lists[rejected])
	s.live = s.alone(s.live)

	known := map[batch.Epoch]bool{}
	found := uint64(0)
	for _, o := range s.live {
		known[o.epoch] = true
		found = max(found, o.seen, o.stored, o.first-1)
	}
	// An agent that began an epoch and stored nothing in it has left a position without a seal.
	began := p.seal == (batch.Seal{}) && p.next > found
	switch {
	case !readable:
		s.sum.Position = PositionNone
	case known[p.epoch] || began:
		s.sum.Position, s.cursor, s.next, s.saved = PositionTaken, p, p.next, p.stored()
		found = max(found, p.committed, max(p.next, 1)-1)
	default:
		s.sum.Position = PositionForeign
	}
	if s.next == 0 && len(s.live) > 0 {
		s.cursor.committed, s.cursor.epoch = s.live[0].first-1, s.live[len(s.live)-1].epoch
	}
	// Not the number behind the last one: with that, the last epoch would go on. Nor does it
	// say that anything was stored up to there.
	s.cursor.next, s.cursor.seal, s.cursor.closed = found+2, batch.Seal{}, false
	s.sum.Committed, s.sum.Next = s.cursor.committed, s.cursor.next
	return nil
}

func (s *salvage) joint(e batch.Epoch, number uint64, seal batch.Seal) {
	s.joints[e] = append(s.joints[e], joint{number, seal})
}

// identify finds out which of the files in sub are which segments, and sorts them by
// their numbers.
func (s *salvage) identify(sub string, files []FileInfo) (all []*origin) {
	var later []FileInfo
	for _, f := range files {
		path := filepath.Join(sub, f.Name)
		if path == cursorFile {
			continue
		}
		o, err := s.look(path, f)
		name, named := parseName(f.Name)
		name.size = f.Size
		switch {
		case o != nil:
			all = append(all, o)
		case err == nil:
			later = append(later, f)
		case named: // the walker will say what is wrong with it
			all = append(all, &origin{segment: name, files: []string{path}})
		case errors.Is(err, ErrVersion):
			s.leave(path, f.Size, "%w: salvage it with that one", err)
		default:
			s.tell(Finding{File: path, End: f.Size, What: "unreadable", Err: err})
		}
	}
	for _, f := range later {
		path := filepath.Join(sub, f.Name)
		o, batches := s.prove(path, f)
		name, named := parseName(f.Name)
		name.size = f.Size
		switch {
		case o != nil:
			all = append(all, o)
		case batches:
			s.leave(path, f.Size, "it holds batches, but neither header nor name nor seals tell the epoch that they are of")
		case named:
			all = append(all, &origin{segment: name, files: []string{path}})
		default:
			s.sum.Foreign = append(s.sum.Foreign, path)
		}
	}
	return s.merge(all)
}

// look identifies a file by its header, or by its name if its batches agree. It
// returns nil if neither tells.
func (s *salvage) look(path string, info FileInfo) (*origin, error) {
	f, err := s.from.Open(path, false)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h, err := readSegmentHeader(f)
	if errors.Is(err, ErrVersion) {
		return nil, err
	}
	name, named := parseName(info.Name)
	o := &origin{files: []string{path}}
	// A name is believed if it does not contradict the header.
	switch {
	case err == nil && named && name.salt == h.Salt && name.epoch == h.Epoch && (name.first == h.First || h.First == 0):
		o.segment, o.head, o.headed = name, h, h.First > 0
	case err == nil:
		o.segment, o.head, o.headed = segment{ordinal: h.Ordinal, epoch: h.Epoch, first: h.First, salt: h.Salt}, h, h.First > 0
	case named:
		o.segment = name
	default:
		return nil, nil
	}
	o.size = info.Size
	first := s.measure(o, f)
	if o.headed {
		s.joint(h.Epoch, h.First-1, h.Before)
	} else if first == 0 && err != nil {
		return nil, nil // a name without a batch that agrees with it
	}
	if o.first == 0 { // as of one that was salvaged before
		o.first = first
	}
	if o.first == 0 {
		return nil, nil
	}
	return o, nil
}

// measure steps over the headers of o: what it holds, and the seals there. It returns
// the number of the first record, 0 if there is no batch.
func (s *salvage) measure(o *origin, f File) (first uint64) {
	scan := scanner{r: f, end: o.size, salt: o.salt}
	var last batch.Header
	for {
		e, ok := scan.next()
		if !ok {
			break
		}
		switch e.Kind {
		case KindBatch:
			last = e.Batch.Header
			if first == 0 {
				first = last.First
			}
			o.seen = max(o.seen, last.Last())
		case KindFooter:
			o.stored = max(o.stored, e.Footer.Last)
		}
	}
	if last.Count > 0 {
		s.joint(o.epoch, last.Last(), last.Seal)
	}
	return first
}

// prove identifies a file of which neither header nor name tells what it is: by the
// salt in its batches, and by an epoch under which their seals follow from one another
// or from others that are known. batches says that there are any.
func (s *salvage) prove(path string, info FileInfo) (o *origin, batches bool) {
	f, err := s.from.Open(path, false)
	if err != nil {
		return nil, false
	}
	defer f.Close()
	salts := saltsIn(f, info.Size)
	for _, salt := range salts {
		for _, e := range slices.Sorted(maps.Keys(s.joints)) {
			if s.follows(f, info.Size, salt, e) {
				o := &origin{segment: segment{epoch: e, salt: salt, size: info.Size}, files: []string{path}}
				o.first = s.measure(o, f)
				return o, true
			}
		}
	}
	return nil, len(salts) > 0
}

// follows reports whether a seal in f shows that its batches are of epoch e.
func (s *salvage) follows(f File, size int64, salt uint64, e batch.Epoch) bool {
	scan := scanner{r: f, end: size, salt: salt}
	last := joint{} // so a batch that begins the epoch follows too
	for {
		x, ok := scan.next()
		if !ok {
			return false
		}
		if x.Kind != KindBatch {
			continue
		}
		h := &x.Batch.Header
		if (last.number == 0 || last.number+1 == h.First) && h.Chain(last.seal, e) == h.Seal {
			return true
		}
		for _, j := range s.joints[e] {
			if j.number+1 == h.First && h.Chain(j.seal, e) == h.Seal || j.number == h.Last() && j.seal == h.Seal {
				return true
			}
		}
		last = joint{h.Last(), h.Seal}
	}
}

// maxSalts is how many salts are tried in a file that nothing else tells of.
const maxSalts = 8

// saltsIn returns the salts of the intact batch headers in r.
func saltsIn(r io.ReaderAt, size int64) (salts []uint64) {
	scan := scanner{r: r, end: size}
	buf := make([]byte, window)
	for off := int64(0); off < size; off += window - batch.HeaderSize {
		win := scan.read(buf, off)
		for i := 0; i+batch.HeaderSize <= len(win); i++ {
			if le.Uint32(win[i:]) != magicBatch {
				continue
			}
			h, err := batch.ParseHeader(win[i:])
			fits := err == nil && int64(h.Length) <= size-off-int64(i)-batch.HeaderSize
			if fits && !slices.Contains(salts, h.Salt) {
				if salts = append(salts, h.Salt); len(salts) == maxSalts {
					return salts
				}
			}
		}
	}
	return salts
}

// merge makes one origin of several copies, names the agent of each, and sorts them by
// their numbers. In one buffer that is the order of their ordinals.
func (s *salvage) merge(files []*origin) (all []*origin) {
	type key struct {
		epoch batch.Epoch
		salt  uint64
	}
	by := map[key]*origin{}
	for _, o := range files {
		k := key{o.epoch, o.salt}
		if s.o.Epoch != 0 && o.epoch != s.o.Epoch {
			continue
		}
		if m := by[k]; m != nil {
			m.files = append(m.files, o.files...)
			m.size, m.seen, m.stored = max(m.size, o.size), max(m.seen, o.seen), max(m.stored, o.stored)
			m.ordinal = max(m.ordinal, o.ordinal)
			m.agent = cmp.Or(m.agent, o.agent)
			if o.headed && !m.headed {
				m.head, m.headed, m.first = o.head, true, o.first
			} else if !m.headed {
				m.first = min(m.first, o.first)
			}
			continue
		}
		by[k] = o
		all = append(all, o)
	}
	all = slices.DeleteFunc(all, func(o *origin) bool {
		if o.agent = cmp.Or(o.agent, s.agents[o.epoch], s.o.Agent); o.agent == "" {
			s.leave(o.files[0], o.size, "no name tells which agent wrote epoch %s: if you know it, give --agent", o.epoch)
			return true
		}
		return false
	})
	slices.SortFunc(all, func(a, b *origin) int {
		return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(a.ordinal, b.ordinal), cmp.Compare(a.salt, b.salt))
	})
	return all
}

// alone leaves epochs out whose numbers are those of another one that is larger: in one
// buffer an epoch begins above every number there.
func (s *salvage) alone(all []*origin) []*origin {
	type extent struct {
		Range
		epoch batch.Epoch
		bytes int64
	}
	var epochs []*extent
	var before *origin // of the same epoch
	for _, o := range all {
		i := slices.IndexFunc(epochs, func(x *extent) bool { return x.epoch == o.epoch })
		if i < 0 {
			epochs = append(epochs, &extent{Range{o.first, o.first - 1}, o.epoch, 0})
			i, before = len(epochs)-1, nil
		}
		x := epochs[i]
		x.bytes += o.size
		if before != nil && before.epoch == o.epoch {
			x.Last = min(x.Last, o.first-1) // what is behind that was given up
		}
		x.Last = max(x.Last, o.first-1, o.seen)
		before = o
	}
	left := map[batch.Epoch]batch.Epoch{}
	var kept *extent
	for _, x := range epochs {
		switch {
		case kept == nil || x.First > kept.Last:
			kept = x
		case x.bytes > kept.bytes:
			left[kept.epoch], kept = x.epoch, x
		default:
			left[x.epoch] = kept.epoch
		}
	}
	return slices.DeleteFunc(all, func(o *origin) bool {
		other, out := left[o.epoch]
		if out {
			s.leave(o.files[0], o.size, "its epoch %s has the same numbers as %s: another buffer; salvage it by itself with --epoch %s", o.epoch, other, o.epoch)
		}
		return out
	})
}

// save writes the new directory. The cursor goes first, so that there is no moment in
// which a number could be given twice.
func (s *salvage) save() error {
	var c cursor
	defer func() {
		if c.f != nil {
			c.f.Close()
		}
	}()
	if err := c.save(s.to, &s.cursor); err != nil {
		return err
	}
	w := walker{committed: s.cursor.committed, passed: s.cursor.passed, saved: s.saved}
	last, seal, err := s.line(&w, "", s.live)
	if err != nil {
		return err
	}
	s.sum.Lost = w.report.Lost
	w = walker{}
	if _, _, err := s.line(&w, rejected, s.aside); err != nil {
		return err
	}
	if err := s.to.SyncDir(); err != nil {
		return err
	}
	if len(s.live) == 0 {
		return nil
	}
	return s.ending(&c, last, seal)
}

// ending notes what is missing at the end of the last epoch: nothing behind it will
// show that. last is the number of the last record that was saved, seal its seal.
func (s *salvage) ending(c *cursor, last uint64, seal batch.Seal) error {
	n := s.live[len(s.live)-1]
	stored := uint64(0)
	for _, o := range s.live {
		if o.epoch == n.epoch {
			stored = max(stored, o.stored)
		}
	}
	if s.cursor.epoch == n.epoch && s.next > 0 {
		stored = max(stored, s.next-1)
	}
	first := max(last, s.cursor.committed) + 1
	if first > stored {
		return nil
	}
	g := Gap{Reason: ReasonDamaged, Epoch: n.epoch, First: first, Last: stored, Count: stored - first + 1}
	if last+1 == first {
		g.Before = seal
	}
	s.tell(Finding{File: n.files[0], Off: n.size, End: n.size, What: "lost", Epoch: n.epoch, First: first, Last: stored})
	s.sum.Lost += g.Count
	gaps := &s.cursor.gaps
	if k := len(*gaps); k == maxGaps {
		(*gaps)[k-1] = mergeGaps((*gaps)[k-1], g)
	} else {
		*gaps = append(*gaps, g)
	}
	return c.save(s.to, &s.cursor)
}

// line walks through all and writes what can be read to sub, a segment for each. It
// returns the number of the last record, and the seal behind it.
func (s *salvage) line(w *walker, sub string, all []*origin) (last uint64, seal batch.Seal, err error) {
	segs := make([]*segment, len(all))
	by := map[*segment]*origin{}
	for i, o := range all {
		segs[i], by[&o.segment] = &o.segment, o
	}
	var at *segment // that is being written
	out := segmentWriter{}
	end := func() error {
		if out.f == nil {
			return nil
		}
		err := out.end()
		err = errors.Join(err, out.f.Close())
		out.f = nil
		return err
	}
	defer end()
	ordinal := uint64(0)
	w.find = s.tell
	w.files = func(seg *segment) []string { return by[seg].files }
	w.each = func(b *batch.Batch, seg *segment, before batch.Seal) error {
		if seg != at {
			if err := end(); err != nil {
				return err
			}
			o := by[seg]
			ordinal++
			h := segmentHeader{Opens: o.head.Opens, Epoch: o.epoch, Ordinal: ordinal, First: o.first, Created: o.head.Created, Salt: o.salt,
				Floor: o.head.Floor, Before: o.head.Before, Aside: sub == rejected, Durable: o.head.Durable}
			if h.Aside {
				h.Ordinal = h.First
			}
			name := filepath.Join(sub, segmentName(h.Ordinal, h.Epoch, h.First, h.Salt, o.agent))
			switch {
			case o.headed:
			case last+1 == o.first && at != nil && at.epoch == o.epoch:
				h.Before = seal
			case b.First == o.first && b.Chain(batch.Seal{}, o.epoch) == b.Seal:
			default:
				h.First = 0 // which says that the seal before it is not known
			}
			f, err := s.to.Create(name)
			if err != nil {
				return fmt.Errorf("create %s: %w", name, err)
			}
			at, out.f = seg, f
			out.begin(&h)
			if sub == rejected {
				s.sum.Rejected.Files++
			} else {
				s.sum.Segments++
			}
		}
		if err := out.add(b); err != nil {
			return err
		}
		if sub == rejected {
			s.sum.Rejected.add(&b.Header)
			s.sum.Rejected.Bytes += int64(b.Length) + batch.HeaderSize
		} else {
			s.sum.Totals.add(&b.Header)
		}
		last, seal = b.Last(), b.Seal
		return nil
	}
	for i, o := range all {
		o.last = o.first - 1 // as parseNames does
		if i+1 < len(all) {
			o.last = max(o.last, all[i+1].first-1)
		}
		w.follow(segs, i)
		if err := w.copies(s.from, &o.segment, o.files); err != nil {
			return last, seal, err
		}
	}
	return last, seal, end()
}
