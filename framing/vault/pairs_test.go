package vault

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"pgregory.net/rapid"
)

func entry(kind, id, path, more string) *Entry {
	e := new(Entry)
	Parse(e, fmt.Appendf(nil, `{"request":{"id":%q,"operation":"read","path":%q},"type":%q%s}`, id, path, kind, more), nil)
	if e.Err != "" {
		panic(e.Err)
	}
	return e
}

// model is Pairs as one would write it without caring for time and memory: a list of
// ids in the order in which they came into their lists.
type model struct {
	timeout       time.Duration
	most, telling int
	blind         bool
	now           time.Duration
	started       time.Duration
	ids           []*modelID
	known         map[netip.Addr]time.Duration
	left          uint64
}

type modelID struct {
	key, path string
	list      uint8
	at        time.Duration
	halves    [2]string // the bytes of each
	copies    [2]int    // of each that may be undone; negative: one is kept
	detail    bool      // it may wait again
}

func (m *model) of(list uint8) (all []*modelID) {
	for _, d := range m.ids {
		if d.list == list {
			all = append(all, d)
		}
	}
	return all
}

func (m *model) find(key string) *modelID {
	if i := slices.IndexFunc(m.ids, func(d *modelID) bool { return d.key == key }); i >= 0 {
		return m.ids[i]
	}
	return nil
}

func (m *model) forget(d *modelID) {
	m.ids = slices.DeleteFunc(slices.Clone(m.ids), func(o *modelID) bool { return o == d })
}

// move puts d at the end of a list, where nothing is told of it any more unless it waits.
func (m *model) move(d *modelID, list uint8) {
	m.forget(d)
	d.list, d.at, d.detail = list, m.now, list == waiting
	m.ids = append(m.ids, d)
}

func (m *model) see(key, kind, path, bytes string, from netip.Addr) Verdict {
	if _, ok := m.known[from]; !ok {
		m.known[from] = m.now
	}
	half := max(0, slices.Index(halves[:], kind))
	if d := m.find(key); d != nil {
		switch d.halves[half] {
		case "":
		case bytes:
			if d.copies[half] < 0 {
				return Duplicate
			}
			d.copies[half]++
			return Again
		default:
			return Repeated
		}
		d.halves[half], d.copies[half] = bytes, 1
		switch {
		case d.list == told:
			return Late
		case d.halves[1-half] != "":
			detail := d.detail
			m.move(d, done)
			d.detail = detail
			return Paired
		case d.list == waiting:
			return First
		}
		return Alone
	}
	m.room()
	d := &modelID{key: key, path: path}
	d.halves[half], d.copies[half] = bytes, 1
	if !slices.Contains(halves[:], kind) || m.blind || path == "sys/seal" || kind == "response" && m.now-max(m.known[from], m.started) < m.timeout {
		m.move(d, done)
		return Alone
	}
	m.wait(d)
	return First
}

// wait makes d wait, and the oldest not any more if too many do.
func (m *model) wait(d *modelID) {
	m.forget(d)
	if all := m.of(waiting); len(all) >= m.most {
		m.left++
		m.move(all[0], done)
	}
	m.move(d, waiting)
}

func (m *model) keep(d *modelID, half int) {
	d.copies[half] = -1
	if d.list == done && d.copies[1-half] < 0 {
		d.detail = false
	}
}

func (m *model) undo(d *modelID, half int) {
	if d.copies[half]--; d.copies[half] != 0 {
		d.copies[half] = max(d.copies[half], -1)
		return
	}
	d.halves[half] = ""
	if d.list == done && d.detail {
		m.wait(d)
	}
}

func (m *model) forgo(key string) {
	switch d := m.find(key); {
	case d == nil:
		m.room()
		m.move(&modelID{key: key}, done)
	case d.list == waiting:
		m.move(d, done)
	default:
		d.detail = false
	}
}

// room makes the oldest leave that don't wait, if too many are known.
func (m *model) room() {
	if all := m.of(done); len(all) >= m.most {
		if all[0].halves[0] == "" || all[0].halves[1] == "" {
			m.started = m.now
		}
		m.forget(all[0])
	}
	if all := m.of(told); len(all) >= m.telling {
		m.started = m.now
		m.forget(all[0])
	}
}

func (m *model) expire() (missing []string) {
	for _, d := range m.of(waiting) {
		switch {
		case m.now-d.at < m.timeout:
		case d.halves == [2]string{}:
			m.forget(d)
		default:
			which := "response"
			if d.halves[0] == "" {
				which = "request"
			}
			missing = append(missing, which+" "+d.key+" "+d.path)
			m.move(d, told)
		}
	}
	for _, d := range m.ids {
		if d.list == done && m.now-d.at >= m.timeout || d.list == told && m.now-d.at >= toldFor*m.timeout {
			m.forget(d)
		}
	}
	return missing
}

// TestPairsModel holds Pairs against the model, with a memory of few ids.
func TestPairsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base := time.Now()
		m := &model{timeout: time.Minute, most: rapid.IntRange(1, 6).Draw(t, "most"), telling: rapid.IntRange(1, 4).Draw(t, "telling"),
			blind: rapid.IntRange(0, 9).Draw(t, "blind") == 0, known: map[netip.Addr]time.Duration{}}
		p := NewPairs(PairOptions{Timeout: m.timeout, Blind: m.blind}, base)
		p.most, p.telling = m.most, m.telling
		type seen struct {
			key, bytes string
			half       int
			mark       Mark
		}
		var all []seen
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0, 1:
				m.now += time.Duration(rapid.SampledFrom([]int{0, 1, 29, 30, 60, 90, 1000}).Draw(t, "seconds")) * time.Second
			case 2:
				var got []string
				for more := true; more; {
					more = false
					p.Expire(base.Add(m.now), func(x Missing) bool {
						got = append(got, fmt.Sprintf("%s %s %s", x.Type, x.ID, x.Path))
						more = len(got)%2 == 0 // two at a time
						return !more
					})
				}
				if want := m.expire(); !slices.Equal(got, want) {
					t.Fatalf("missing %q, want %q", got, want)
				}
			case 3:
				id := fmt.Sprint(rapid.IntRange(0, 9).Draw(t, "id"))
				p.Forget(Value{Kind: String, Raw: []byte(id)}, base.Add(m.now))
				m.forgo(id)
			case 4, 5:
				if len(all) == 0 {
					continue
				}
				s := all[rapid.IntRange(0, len(all)-1).Draw(t, "which")]
				d := m.find(s.key)
				known := d != nil && d.halves[s.half] == s.bytes && s.mark != (Mark{})
				if rapid.Bool().Draw(t, "kept") {
					if p.Keep(s.mark); known {
						m.keep(d, s.half)
					}
				} else if p.Undo(s.mark, base.Add(m.now)); known {
					m.undo(d, s.half)
				}
			default:
				id := fmt.Sprint(rapid.IntRange(0, 9).Draw(t, "id"))
				kind := rapid.SampledFrom([]string{"request", "response", "request", "response", "kmip-request"}).Draw(t, "kind")
				path := rapid.SampledFrom([]string{"a", "a", "a", "sys/seal"}).Draw(t, "path")
				from := netip.AddrFrom4([4]byte{192, 0, 2, byte(rapid.IntRange(0, 1).Draw(t, "from"))})
				e := entry(kind, id, path, fmt.Sprintf(`,"more":%d`, rapid.IntRange(0, 3).Draw(t, "bytes")/3))
				key := id
				if kind == "kmip-request" {
					key += kind
				}
				got, mark := p.See(e, Sender{Addr: from}, base.Add(m.now))
				if want := m.see(key, kind, path, string(e.Body), from); got != want {
					t.Fatalf("%s %s: %d, want %d", kind, id, got, want)
				}
				if again := got == Duplicate || got == Repeated; again != (mark == Mark{}) {
					t.Fatalf("%d has the mark %v", got, mark)
				}
				all = append(all, seen{key, string(e.Body), max(0, slices.Index(halves[:], kind)), mark})
			}
			if p.Unwatched != m.left {
				t.Fatalf("%d unwatched, want %d", p.Unwatched, m.left)
			}
			for i := range p.lists {
				if got, want := p.lists[i].n, len(m.of(uint8(i))); got != want {
					t.Fatalf("%d in list %d, want %d", got, i, want)
				}
			}
			details := 0
			for _, d := range m.ids {
				if d.detail {
					details++
				}
			}
			// What is not in use is used before more is made.
			if n := p.lists[waiting].n + p.lists[done].n + p.lists[told].n; n != len(p.ids) || n > 2*m.most+m.telling+1 || len(p.nodes) > 3*m.most+m.telling+80 || len(p.details)-len(p.spare) != details {
				t.Fatalf("%d ids, %d nodes, %d details of which %d are free", n, len(p.nodes), len(p.details), len(p.spare))
			}
		}
	})
}

// TestPairsMemory: many more ids than are kept, none of which is ever answered, take
// a bounded memory, and leave without being told; what is over is given back.
func TestPairsMemory(t *testing.T) {
	const most, telling = 2000, 500
	now := time.Now()
	p := NewPairs(PairOptions{Timeout: time.Minute}, now)
	p.most, p.telling = most, telling
	for i := range 5 * most {
		p.See(entry("request", fmt.Sprintf("%036d", i), "secret/data/a", ""), Sender{}, now)
	}
	if p.Waiting() != most || p.Unwatched != 4*most || len(p.nodes) > 2*most+1 || len(p.details) > most+1 {
		t.Errorf("%d wait, %d unwatched, %d nodes, %d details", p.Waiting(), p.Unwatched, len(p.nodes), len(p.details))
	}
	missing := 0
	p.Expire(now.Add(time.Minute), func(Missing) bool { missing++; return true })
	if missing != most || p.Waiting() != 0 || p.lists[done].n != 0 {
		t.Errorf("%d missing", missing)
	}
	// Ids that were told go as others come.
	for i := range 2 * most {
		p.See(entry("kmip-request", fmt.Sprint(i), "x", ""), Sender{}, now.Add(time.Minute))
	}
	if n := p.lists[told].n; n >= telling {
		t.Errorf("%d told", n)
	}
	p.Expire(now.Add(time.Hour), nil)
	if len(p.nodes) != 0 || len(p.ids) != 0 {
		t.Errorf("%d nodes are kept for nothing", len(p.nodes))
	}

	if bytes := MaxIDs * (2*unsafe.Sizeof(node{}) + unsafe.Sizeof(detail{})); bytes > 40<<20 {
		t.Errorf("%d bytes for as many ids as there may be", bytes)
	}
}

// TestPairsSenders: more senders than are known make no false alarm.
func TestPairsSenders(t *testing.T) {
	now := time.Now()
	p := NewPairs(PairOptions{Timeout: time.Minute}, now)
	for i := range 5 * maxSender {
		p.See(entry("request", fmt.Sprint(i), "a", ""), Sender{Addr: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}, now)
	}
	if len(p.senders) > maxSender {
		t.Errorf("%d senders", len(p.senders))
	}
	if v, _ := p.See(entry("response", "x", "a", ""), Sender{}, now.Add(time.Hour)); v != Alone {
		t.Errorf("a new sender's response is %d", v)
	}
}

// TestPairsLongID: an alert names the beginning of an id, and ids that begin alike are
// two.
func TestPairsLongID(t *testing.T) {
	now := time.Now()
	p := NewPairs(PairOptions{Timeout: time.Minute}, now)
	long := strings.Repeat("i", 100)
	p.See(entry("request", long+"1", strings.Repeat("p", 300), ""), Sender{}, now)
	p.See(entry("request", long+"2", "a", ""), Sender{}, now)
	if v, _ := p.See(entry("response", long+"2", "a", ""), Sender{}, now); v != Paired {
		t.Errorf("verdict %d", v)
	}
	p.Expire(now.Add(time.Minute), func(m Missing) bool {
		if string(m.ID) != long[:keptID] || string(m.Path) != strings.Repeat("p", keptPath) {
			t.Errorf("%s %s", m.ID, m.Path)
		}
		return true
	})
}

// TestPairsWholeText: what an alert names ends with a character.
func TestPairsWholeText(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{strings.Repeat("i", keptID-1) + "ä", strings.Repeat("i", keptID-1)},
		{strings.Repeat("i", keptID-2) + "ä", strings.Repeat("i", keptID-2) + "ä"},
		{strings.Repeat("i", keptID-3) + "😀", strings.Repeat("i", keptID-3)},
		{strings.Repeat("i", keptID) + "ä", strings.Repeat("i", keptID)},
	} {
		now := time.Now()
		p := NewPairs(PairOptions{Timeout: time.Minute}, now)
		p.See(entry("request", c.text, strings.Repeat("p", keptPath-keptID)+c.text, ""), Sender{}, now)
		p.Expire(now.Add(time.Minute), func(m Missing) bool {
			if string(m.ID) != c.want || string(m.Path) != strings.Repeat("p", keptPath-keptID)+c.want {
				t.Errorf("%q: %q %q", c.text, m.ID, m.Path)
			}
			return true
		})
	}
}

// TestSeeDoesNotAllocate once the memory is as large as it has to be.
func TestSeeDoesNotAllocate(t *testing.T) {
	now := time.Now()
	p := NewPairs(PairOptions{Timeout: time.Minute}, now)
	var all [][2]*Entry
	for i := range 2000 {
		id := fmt.Sprintf("%036d", i)
		all = append(all, [2]*Entry{entry("request", id, "a", ""), entry("response", id, "a", "")})
	}
	i := 0
	round := func() {
		for _, e := range all[i%len(all)] {
			if v, _ := p.See(e, Sender{}, now); v == Duplicate {
				t.Fatal("a duplicate")
			}
		}
		now = now.Add(100 * time.Millisecond)
		p.Expire(now, func(Missing) bool { t.Fatal("missing"); return false })
		i++
	}
	for range 4000 {
		round()
	}
	if n := testing.AllocsPerRun(1000, round); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
