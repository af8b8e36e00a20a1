package vault

import (
	"bytes"
	"hash/maphash"
	"net/netip"
	"time"
	"unicode/utf8"
)

// Limits of Pairs.
const (
	MaxIDs    = 100_000 // requests that wait for their other half, and as many that have it
	keptID    = 64      // bytes of an id
	keptPath  = 128     // bytes of a path
	maxTold   = 10_000  // ids that stay known after they were told as missing,
	toldFor   = 30      // so many timeouts: there are requests that take an hour
	maxSender = 1024
)

// Pairs finds out which entries are missing. Vault writes an entry of type request
// before it handles a request, and one of type response, with the same request.id,
// behind it. What has no other half within the timeout has lost it.
//
// Entries are not in order: a connection that is cut in the middle of a request
// leaves its first half in one socket and its second in another, and nobody knows
// which is read first. So either half may come first, and nothing is missing before
// the timeout.
//
// Not every half has another. A response is not waited for behind, nor a request
// told as missing before:
//
//   - entries without an id, and of other types than these two (kmip-request);
//   - the probe sys/audit/test, and all of sys/audit/: what enables a device has its
//     request before the first entry, and what disables one its response behind the
//     last;
//   - operation help, sys/seal, sys/step-down, sys/wrapping/ (one that is refused has
//     no response) and sys/replication/…status;
//   - responses of a sender within the first timeout since it was first seen, or since
//     its last probe: their requests may be older than what we see of it. A sender is
//     an address, not a connection: Vault that comes back after a cut is known, and
//     the one entry that such a cut swallows is found.
//
// What is seen is not yet kept: the record of an entry may find no room. So its Mark
// is for Keep or for Undo.
//
// The memory is bounded: of more than MaxIDs ids that wait the oldest leave and count
// as Unwatched, never as missing. For each id it is about 100 bytes with its place in
// the map, and 250 more while it waits, or while a half of it may be undone. The same
// memory finds entries that were sent twice.
//
// Times come from the caller, and only their differences count. Not safe for
// concurrent use. The zero value is not ready: see NewPairs.
type Pairs struct {
	// Counters, only growing.
	Unwatched uint64 // ids that left because too many waited
	Resent    uint64 // torn entries that came again as a whole

	o       PairOptions
	most    int // ids that wait, and as many that don't
	telling int // ids that stay known after they were told
	base    time.Time
	seed    maphash.Seed
	started time.Duration // responses are not trusted to have had a request before that and a timeout

	ids     map[uint64]int32 // index of nodes
	nodes   []node
	details []detail
	free    int32 // first of the nodes that are not in use, linked by next; negative: none
	spare   []int32

	lists   [3]list
	senders map[netip.Addr]*sender

	torn   [16]tornTail
	firsts [16]firstEntry
	turn   [2]int // next of torn and firsts to be written over
}

// PairOptions configure Pairs.
type PairOptions struct {
	Timeout time.Duration // longer than Vault lets a request take (90 s by default)

	// Blind says that halves may be missing for other reasons than loss (filters,
	// several agents behind one address): nothing is told as missing.
	Blind bool
}

// The lists that a node is in, the oldest first.
const (
	waiting = 0 // for its other half
	done    = 1 // has it, or does without; kept to know it again
	told    = 2 // as missing
)

// node is one id. 48 bytes.
type node struct {
	key        uint64
	at         time.Duration // when it came into its list
	sums       [2]uint64     // hash of the entry of each half; 0: it has not come
	prev, next int32         // in its list; negative: none
	detail     int32         // negative: none
	list       uint8
	copies     [2]uint8 // of the entry of each half that Keep or Undo is to come for; or kept
}

// kept in place of copies says that Keep came for one of them.
const kept = 255

// detail is what is to be told of an id that waits, or may wait again.
type detail struct {
	seen       time.Time
	addr       netip.Addr
	id         [keptID]byte
	path       [keptPath]byte
	nID, nPath uint8
}

type list struct {
	first, last int32
	n           int
}

type sender struct {
	known   time.Duration // since when it is watched
	last    time.Duration
	changed time.Time // its newest connection
}

// Sender is where an entry came from.
type Sender struct {
	Addr  netip.Addr // not valid: a local program
	Since time.Time  // when its connection was accepted; zero: it has none
}

// Verdict is what an entry is to those before it.
type Verdict uint8

// Verdicts.
const (
	Alone     Verdict = 0 // it has no other half, as far as is known
	First     Verdict = 1 // its other half is waited for
	Paired    Verdict = 2 // its other half has come before
	Late      Verdict = 3 // so has it, but it had been told as missing
	Duplicate Verdict = 4 // the same bytes have come before, and are kept
	Again     Verdict = 5 // they have come before, and may yet be undone
	Repeated  Verdict = 6 // the same half has come before, with other bytes
)

// Missing is an entry that did not come.
type Missing struct {
	ID      []byte // request.id, at most its first 64 bytes; valid during the call
	Path    []byte // request.path, at most its first 128 bytes; valid during the call
	Type    string // which half is missing: request or response
	Seen    time.Time
	Addr    netip.Addr // who sent the half that came; not valid: a local program
	Changed time.Time  // when the sender of the other half last connected; zero: it has no connections
}

// NewPairs returns Pairs that begin at now.
func NewPairs(o PairOptions, now time.Time) *Pairs {
	return &Pairs{o: o, most: MaxIDs, telling: maxTold, base: now, seed: maphash.MakeSeed(), ids: map[uint64]int32{}, free: -1,
		lists: [3]list{{-1, -1, 0}, {-1, -1, 0}, {-1, -1, 0}}, senders: map[netip.Addr]*sender{}}
}

// half returns which half of a pair e is; ok is false for what is none.
func (e *Entry) half() (half int, ok bool) {
	switch {
	case e.Is(Type, "request"):
		return 0, true
	case e.Is(Type, "response"):
		return 1, true
	}
	return 0, false
}

var halves = [2]string{"request", "response"}

// single reports whether an entry of this path and operation may have no other
// half.
func (e *Entry) single() bool {
	path := e.values[Path]
	return path.Begins("sys/audit/") || path.Begins("sys/wrapping/") ||
		path.Begins("sys/replication/") && bytes.HasSuffix(path.Raw, []byte("status")) ||
		path.Is("sys/seal") || path.Is("sys/step-down") || e.Is(Operation, "help")
}

// Mark is what Keep and Undo need. The zero value is of an entry that neither is for.
type Mark struct {
	key, sum uint64
	half     uint8
}

// See takes note of an entry that came from a sender at now, and says what it is to
// those before it. With the same bytes comes the same mark.
func (p *Pairs) See(e *Entry, from Sender, now time.Time) (Verdict, Mark) {
	at := now.Sub(p.base)
	s, newest := p.sender(from, at)
	if e.IsProbe() {
		s.known = at
	}
	p.whole(e, from.Since, newest, at)

	var buf [keptID]byte
	id := e.values[RequestID].AppendText(buf[:0])
	if len(id) == 0 {
		return Alone, Mark{}
	}
	h, pairs := e.half()
	key := maphash.Bytes(p.seed, id)
	if !pairs {
		key ^= maphash.Bytes(p.seed, e.values[Type].Raw) | 1
	}
	sum := maphash.Bytes(p.seed, e.Body) | 1
	mark := Mark{key, sum, uint8(h)}
	if i, known := p.ids[key]; known {
		n := &p.nodes[i]
		switch n.sums[h] {
		case 0:
		case sum:
			if n.copies[h] == kept {
				return Duplicate, Mark{}
			}
			n.copies[h] = min(n.copies[h]+1, kept-1)
			return Again, mark
		default:
			return Repeated, Mark{}
		}
		n.sums[h], n.copies[h] = sum, 1
		switch {
		case n.list == told:
			return Late, mark
		case n.sums[1-h] == 0: // that of both was undone
			if n.list == waiting {
				return First, mark
			}
			return Alone, mark
		}
		p.unlink(i) // with its detail: one half may be undone
		p.push(i, done, at)
		return Paired, mark
	}

	i := p.add(key, at)
	n := &p.nodes[i]
	n.sums[h], n.copies[h] = sum, 1
	if !pairs || p.o.Blind || e.single() || h == 1 && at-max(s.known, p.started) < p.o.Timeout {
		p.push(i, done, at)
		return Alone, mark
	}
	p.yield(at)
	n.detail = p.describe(e, id, from, now)
	p.push(i, waiting, at)
	return First, mark
}

// Keep notes that an entry that was seen will not be undone: what comes with the same
// bytes is a duplicate.
func (p *Pairs) Keep(m Mark) {
	n, _ := p.find(m)
	if n == nil {
		return
	}
	n.copies[m.half] = kept
	if n.list == done && n.copies[1-m.half] == kept {
		p.forgo(n)
	}
}

// Undo forgets an entry that was seen and could not be kept, unless another one with
// the same bytes is, or may be: when it comes again it is not a duplicate. Until then
// it is as missing as one that never came, and its other half waits from now on.
func (p *Pairs) Undo(m Mark, now time.Time) {
	n, i := p.find(m)
	if n == nil || n.copies[m.half] == kept {
		return
	}
	if n.copies[m.half]--; n.copies[m.half] > 0 {
		return
	}
	n.sums[m.half] = 0
	if n.list == done && n.detail >= 0 {
		at := now.Sub(p.base)
		p.unlink(i)
		p.yield(at)
		p.push(i, waiting, at)
	}
}

// find returns the node of a mark, nil if its entry was forgotten.
func (p *Pairs) find(m Mark) (*node, int32) {
	i, ok := p.ids[m.key]
	if !ok || m.sum == 0 || p.nodes[i].sums[m.half] != m.sum {
		return nil, 0
	}
	return &p.nodes[i], i
}

// yield makes room for one more that waits.
func (p *Pairs) yield(at time.Duration) {
	if p.lists[waiting].n >= p.most {
		p.Unwatched++
		p.move(p.lists[waiting].first, done, at)
	}
}

// Forget makes nothing be told of an id one half of which has come, but not whole,
// whether the other came before or is yet to come.
func (p *Pairs) Forget(id Value, now time.Time) {
	var buf [keptID]byte
	text := id.AppendText(buf[:0])
	if len(text) == 0 {
		return
	}
	key, at := maphash.Bytes(p.seed, text), now.Sub(p.base)
	switch i, known := p.ids[key]; {
	case !known:
		p.push(p.add(key, at), done, at)
	case p.nodes[i].list == waiting:
		p.move(i, done, at)
	default:
		p.forgo(&p.nodes[i])
	}
}

// Expire tells what is missing at now, the oldest first, until tell returns false; what
// is left is told by the next call. It returns how many torn entries have not come
// again. It is called every now and then.
func (p *Pairs) Expire(now time.Time, tell func(Missing) (more bool)) (torn int) {
	at := now.Sub(p.base)
	for more := true; more; {
		i := p.lists[waiting].first
		if i < 0 || at-p.nodes[i].at < p.o.Timeout {
			break
		}
		n, d := &p.nodes[i], &p.details[p.nodes[i].detail]
		if n.sums == [2]uint64{} { // undone
			p.remove(i)
			continue
		}
		m := Missing{ID: d.id[:d.nID], Path: d.path[:d.nPath], Type: halves[0], Seen: d.seen, Addr: d.addr}
		if n.sums[0] != 0 {
			m.Type = halves[1]
		}
		if s := p.senders[d.addr]; s != nil {
			m.Changed = s.changed
		}
		more = tell(m)
		p.move(i, told, at)
	}
	p.drop(done, at-p.o.Timeout)
	p.drop(told, at-toldFor*p.o.Timeout)
	for k := range p.torn {
		t := &p.torn[k]
		if t.size > 0 && at-t.at >= p.o.Timeout {
			t.size = 0
			torn++
		}
	}
	if len(p.ids) == 0 && len(p.nodes) > 1024 {
		p.nodes, p.details, p.spare, p.free, p.ids = nil, nil, nil, -1, map[uint64]int32{}
	}
	return torn
}

// drop removes what is in a list since before a time, or since then.
func (p *Pairs) drop(from uint8, until time.Duration) {
	for i := p.lists[from].first; i >= 0 && p.nodes[i].at <= until; i = p.lists[from].first {
		p.remove(i)
	}
}

// Waiting returns how many ids wait for their other half.
func (p *Pairs) Waiting() int { return p.lists[waiting].n }

// sender returns what is known of a sender; newest says that this is the first entry
// of its newest connection.
func (p *Pairs) sender(from Sender, at time.Duration) (s *sender, newest bool) {
	s = p.senders[from.Addr]
	if s == nil {
		if len(p.senders) >= maxSender {
			for a, s := range p.senders {
				if at-s.last >= p.o.Timeout {
					delete(p.senders, a)
				}
			}
			if len(p.senders) >= maxSender {
				clear(p.senders)
			}
		}
		s = &sender{known: at}
		p.senders[from.Addr] = s
	}
	s.last = at
	if newest = from.Since.After(s.changed); newest {
		s.changed = from.Since
	}
	return s, newest
}

// add returns a new node that is in no list, and makes room for it.
func (p *Pairs) add(key uint64, at time.Duration) int32 {
	if p.lists[done].n >= p.most {
		// The other half of what is forgotten here would look as if it were the only
		// one.
		if n := &p.nodes[p.lists[done].first]; n.sums[0] == 0 || n.sums[1] == 0 {
			p.started = at
		}
		p.remove(p.lists[done].first)
	}
	if p.lists[told].n >= p.telling {
		p.started = at
		p.remove(p.lists[told].first)
	}
	i := p.free
	if i >= 0 {
		p.free = p.nodes[i].next
	} else {
		i = int32(len(p.nodes))
		p.nodes = append(p.nodes, node{})
	}
	p.nodes[i] = node{key: key, detail: -1}
	p.ids[key] = i
	return i
}

func (p *Pairs) describe(e *Entry, id []byte, from Sender, now time.Time) int32 {
	var k int32
	if n := len(p.spare); n > 0 {
		k = p.spare[n-1]
		p.spare = p.spare[:n-1]
	} else {
		k = int32(len(p.details))
		p.details = append(p.details, detail{})
	}
	d := &p.details[k]
	d.seen, d.addr = now, from.Addr
	d.nID = uint8(copyText(d.id[:], id))
	var buf [keptPath]byte
	d.nPath = uint8(copyText(d.path[:], e.values[Path].AppendText(buf[:0])))
	return k
}

// copyText copies as much of text as fits without cutting a character, and returns
// how many bytes that is.
func copyText(dst, text []byte) int {
	n := copy(dst, text)
	for k := n; n < len(text) && k > n-utf8.UTFMax && k > 0; k-- {
		if utf8.RuneStart(text[k]) {
			return k
		}
	}
	return n
}

// push puts a node at the end of a list.
func (p *Pairs) push(i int32, to uint8, at time.Duration) {
	n, l := &p.nodes[i], &p.lists[to]
	n.list, n.at, n.prev, n.next = to, at, l.last, -1
	if l.last >= 0 {
		p.nodes[l.last].next = i
	} else {
		l.first = i
	}
	l.last = i
	l.n++
}

// unlink takes a node out of its list. It keeps its detail.
func (p *Pairs) unlink(i int32) {
	n := &p.nodes[i]
	l := &p.lists[n.list]
	if n.prev >= 0 {
		p.nodes[n.prev].next = n.next
	} else {
		l.first = n.next
	}
	if n.next >= 0 {
		p.nodes[n.next].prev = n.prev
	} else {
		l.last = n.prev
	}
	l.n--
}

// forgo frees the detail of a node.
func (p *Pairs) forgo(n *node) {
	if n.detail >= 0 {
		p.spare = append(p.spare, n.detail)
		n.detail = -1
	}
}

// move moves a node, of which nothing is to be told any more, to another list.
func (p *Pairs) move(i int32, to uint8, at time.Duration) {
	p.unlink(i)
	p.forgo(&p.nodes[i])
	p.push(i, to, at)
}

func (p *Pairs) remove(i int32) {
	p.unlink(i)
	p.forgo(&p.nodes[i])
	delete(p.ids, p.nodes[i].key)
	p.nodes[i].next = p.free
	p.free = i
}
