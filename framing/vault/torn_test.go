package vault

import (
	"fmt"
	"testing"
	"time"
)

// part returns what is read of the first n bytes of an entry.
func part(e *Entry, n int) *Entry {
	torn := new(Entry)
	if Parse(torn, e.Data[:n], nil); !torn.Torn {
		panic("not torn")
	}
	return torn
}

// TestTornKnownAgain cuts an entry at every byte behind its id: the whole one is known by
// each part, whichever is read first, if it comes on a later connection and in time.
func TestTornKnownAgain(t *testing.T) {
	whole := entry("request", "cd09708b-11cc-2985-648b-cfe262cf7e50", "secret/data/a", "")
	other := entry("response", "cd09708b-11cc-2985-648b-cfe262cf7e50", "secret/data/a", "")
	base := time.Now()
	for n := len(`{"request":{"id":"cd09708b-11cc-2985-648b-cfe262cf7e50"`); n < len(whole.Data); n++ {
		part := part(whole, n)
		for _, c := range []struct {
			name        string
			first       bool          // the whole one is read first
			later       time.Duration // that its connection is younger by
			after       time.Duration // that the second is read behind the first
			resent      uint64
			unexplained int
		}{
			{"sent again", false, time.Second, time.Second, 1, 0},
			{"read first", true, time.Second, time.Second, 1, 0},
			{"same connection", false, 0, time.Second, 0, 1},
			{"same connection, read first", true, 0, time.Second, 0, 1},
			{"older connection", false, -time.Second, time.Second, 0, 1},
			{"read first, but long ago", true, time.Second, time.Minute, 0, 1},
		} {
			p := NewPairs(PairOptions{Timeout: time.Minute}, base)
			cut, next := Sender{Since: base}, Sender{Since: base.Add(c.later)}
			now := base.Add(time.Hour)
			if c.first {
				p.See(whole, next, now)
				now = now.Add(c.after)
				p.See(other, next, now)
				if got := p.Torn(part, cut, now); got != (c.resent > 0) {
					t.Fatalf("%s, %d bytes: %t", c.name, n, got)
				}
			} else {
				p.Torn(part, cut, now)
				p.See(whole, next, now.Add(c.after))
				p.See(whole, next, now.Add(c.after)) // explains nothing more
			}
			if p.Resent != c.resent {
				t.Fatalf("%s, %d bytes: %d known", c.name, n, p.Resent)
			}
			if got := p.Expire(now.Add(time.Hour), func(Missing) bool { return true }); got != c.unexplained {
				t.Fatalf("%s, %d bytes: %d not explained, want %d", c.name, n, got, c.unexplained)
			}
			if got := p.Expire(now.Add(2*time.Hour), nil); got != 0 {
				t.Fatalf("%s, %d bytes: %d told again", c.name, n, got)
			}
		}
	}
}

// TestTornOthers: a part explains no other entry, and of many parts the newest are
// known.
func TestTornOthers(t *testing.T) {
	base := time.Now()
	p := NewPairs(PairOptions{Timeout: time.Minute}, base)
	const many = 20
	for i := range many {
		e := entry("request", fmt.Sprintf("%036d", i), "a", "")
		p.Torn(part(e, 60), Sender{Since: base}, base)
	}
	p.See(entry("request", "another", "a", ""), Sender{Since: base.Add(time.Second)}, base)
	if p.Resent != 0 {
		t.Errorf("%d known of nothing", p.Resent)
	}
	for i := range many {
		p.See(entry("request", fmt.Sprintf("%036d", i), "a", ""), Sender{Since: base.Add(time.Second)}, base)
	}
	if want := uint64(len(p.torn)); p.Resent != want {
		t.Errorf("%d known, want %d", p.Resent, want)
	}
}

// TestTornAlike: what ends before its id and its time is of any entry, and explains none.
func TestTornAlike(t *testing.T) {
	const auth = `<json:object name="auth"><json:string name="accessor">hmac</json:string></json:object>`
	jsonx := func(id string) *Entry {
		e := new(Entry)
		Parse(e, []byte(auth+`<json:object name="request"><json:string name="id">`+id+`</json:string></json:object><json:string name="type">request</json:string>`), nil)
		return e
	}
	base := time.Now()
	for _, c := range []struct {
		name        string
		lost, other *Entry
		n           int
	}{
		{"jsonx", jsonx("a"), jsonx("b"), len(auth) + 20},
		{"in the id", jsonx("aa"), jsonx("ab"), len(auth) + 52},
		{"json", entry("request", "a", "p", ""), entry("request", "b", "p", ""), 8},
		{"behind the id", jsonx("a"), jsonx("b"), len(auth) + 70},
	} {
		for _, first := range []bool{false, true} {
			p := NewPairs(PairOptions{Timeout: time.Minute}, base)
			cut, next := Sender{Since: base}, Sender{Since: base.Add(time.Second)}
			if first {
				p.See(c.other, next, base)
			}
			p.Torn(part(c.lost, c.n), cut, base)
			if !first {
				p.See(c.other, next, base)
			}
			if p.Resent != 0 {
				t.Errorf("%s, read first %t: another entry counts as sent again", c.name, first)
			}
		}
	}
}
