package vault

import (
	"encoding/binary"
	"math/bits"
)

// scanner reads data from i on. Its methods return false at the first fault, which
// is at i.
type scanner struct {
	b      []byte
	i      int
	err    string
	torn   bool
	spaced bool // white space that is no space was skipped
}

func (s *scanner) fail(text string) bool { s.err = text; return false }

// end fails because data ends where more must come.
func (s *scanner) end() bool {
	s.i, s.torn = len(s.b), true
	return s.fail(errTorn)
}

// space skips white space between tokens.
func (s *scanner) space() {
	for ; s.i < len(s.b); s.i++ {
		switch s.b[s.i] {
		case ' ':
		case '\n', '\r', '\t':
			s.spaced = true
		default:
			return
		}
	}
}

// peek returns the next byte behind white space, 0 at the end (where it is not
// valid either).
func (s *scanner) peek() byte {
	if s.i < len(s.b) && s.b[s.i] > ' ' {
		return s.b[s.i]
	}
	s.space()
	if s.i == len(s.b) {
		return 0
	}
	return s.b[s.i]
}

// json reads the object of an entry.
func (s *scanner) json(e *Entry) bool {
	switch s.peek() {
	case '{':
		s.i++
		return s.members(e, top, 1)
	default:
		if s.i == len(s.b) {
			return s.end()
		}
		return s.fail(errBegin)
	}
}

// members reads an object behind its { to its end; depth counts it.
func (s *scanner) members(e *Entry, c container, depth int) bool {
	if s.peek() == '}' {
		s.i++
		return true
	}
	for {
		at := s.i
		name, escaped, ok := s.name()
		if !ok {
			return false
		}
		if escaped {
			var buf [longestName]byte
			if len(name) > 6*longestName {
				name = nil
			} else {
				name = appendUnescaped(buf[:0], name)
			}
		}
		f, inside := lookup(c, name)
		if !e.first(f, inside) {
			s.i = at
			return s.fail(errTwice)
		}
		if inside != noneInside && s.peek() == '{' {
			s.i++
			if !s.members(e, inside, depth+1) {
				return false
			}
		} else {
			kind := kindOf(s.peek())
			start := s.i
			if !s.value(depth) {
				return false
			}
			if f != nothing {
				v := Value{Kind: kind, Raw: s.b[start:s.i:s.i], json: true}
				if kind == String {
					v.Raw = s.b[start+1 : s.i-1 : s.i-1]
				}
				e.set(f, v, s.i)
			}
		}
		switch s.peek() {
		case ',':
			s.i++
		case '}':
			s.i++
			return true
		default:
			if s.i == len(s.b) {
				return s.end()
			}
			return s.fail("neither , nor } behind a member")
		}
	}
}

// name reads the name of a member and its colon. What it returns has escapes if
// escaped.
func (s *scanner) name() (name []byte, escaped, ok bool) {
	if s.peek() != '"' {
		if s.i == len(s.b) {
			return nil, false, s.end()
		}
		return nil, false, s.fail("no name of a member")
	}
	start := s.i + 1
	if escaped, ok = s.text(); !ok {
		return nil, false, false
	}
	name = s.b[start : s.i-1]
	if s.peek() != ':' {
		if s.i == len(s.b) {
			return nil, false, s.end()
		}
		return nil, false, s.fail("no colon behind the name of a member")
	}
	s.i++
	return name, escaped, true
}

// kindOf returns the kind of the value that begins with c.
func kindOf(c byte) Kind {
	switch c {
	case '"':
		return String
	case '{':
		return Object
	case '[':
		return Array
	case 't', 'f':
		return Bool
	case 'n':
		return Null
	}
	return Number
}

// value reads one value, of any depth, and is in depth objects and arrays.
func (s *scanner) value(depth int) bool {
	var objects [MaxDepth / 64]uint64 // a bit for each that is open: an object
	base := depth
	for {
		switch c := s.peek(); c {
		case '{', '[':
			if depth == MaxDepth {
				return s.fail(errDepth)
			}
			s.i++
			if s.peek() == c+2 { // } or ]
				s.i++
				break
			}
			if objects[depth/64] &^= 1 << (depth % 64); c == '{' {
				objects[depth/64] |= 1 << (depth % 64)
			}
			if depth++; c == '{' {
				if _, _, ok := s.name(); !ok {
					return false
				}
			}
			continue
		case '"':
			if _, ok := s.text(); !ok {
				return false
			}
		case 't':
			if !s.literal("true") {
				return false
			}
		case 'f':
			if !s.literal("false") {
				return false
			}
		case 'n':
			if !s.literal("null") {
				return false
			}
		default:
			if !s.number() {
				return false
			}
		}
		// A value has ended, and with it maybe what it was the last one of.
		for more := false; !more; {
			if depth == base {
				return true
			}
			c := s.peek()
			object := objects[(depth-1)/64]>>((depth-1)%64)&1 != 0
			switch {
			case c == ',' && object:
				s.i++
				if _, _, ok := s.name(); !ok {
					return false
				}
				more = true
			case c == ',':
				s.i++
				more = true
			case c == '}' && object, c == ']' && !object:
				s.i++
				depth--
			case s.i == len(s.b):
				return s.end()
			case object:
				return s.fail("neither , nor } behind a member")
			default:
				return s.fail("neither , nor ] behind an element")
			}
		}
	}
}

func (s *scanner) literal(word string) bool {
	for k := range len(word) {
		if s.i == len(s.b) {
			return s.end()
		}
		if s.b[s.i] != word[k] {
			return s.fail("no value of JSON")
		}
		s.i++
	}
	return true
}

// number reads a number. One that data ends behind may go on, so that it is not
// whole at the top of a torn entry; there it never stands.
func (s *scanner) number() bool {
	start := s.i
	if s.at('-') {
		s.i++
	}
	switch {
	case s.i == len(s.b):
		return s.end()
	case s.at('0'):
		s.i++
	case !s.digits():
		if s.i == start {
			return s.fail("no value of JSON")
		}
		return s.fail("no digit of a number")
	}
	if s.at('.') {
		if s.i++; !s.digits() {
			return s.noDigit()
		}
	}
	if s.at('e') || s.at('E') {
		if s.i++; s.at('+') || s.at('-') {
			s.i++
		}
		if !s.digits() {
			return s.noDigit()
		}
	}
	return true
}

func (s *scanner) noDigit() bool {
	if s.i == len(s.b) {
		return s.end()
	}
	return s.fail("no digit of a number")
}

func (s *scanner) at(c byte) bool { return s.i < len(s.b) && s.b[s.i] == c }

// digits skips digits and reports whether there was one.
func (s *scanner) digits() bool {
	start := s.i
	for s.i < len(s.b) && '0' <= s.b[s.i] && s.b[s.i] <= '9' {
		s.i++
	}
	return s.i > start
}

// text reads a string with its quotes.
func (s *scanner) text() (escaped, ok bool) {
	b := s.b
	i := s.i + 1
	for {
		for i+8 <= len(b) {
			m := special8(binary.LittleEndian.Uint64(b[i:]))
			if m != 0 {
				i += bits.TrailingZeros64(m) >> 3
				break
			}
			i += 8
		}
		if i >= len(b) {
			return false, s.end()
		}
		switch c := b[i]; {
		case c == '"':
			s.i = i + 1
			return escaped, true
		case c < ' ':
			s.i = i
			return false, s.fail("a control character in a string")
		case c != '\\':
			i++ // the last bytes, one at a time
			continue
		}
		escaped = true
		if i++; i == len(b) {
			return false, s.end()
		}
		switch b[i] {
		case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			i++
		case 'u':
			i++
			for k := range 4 {
				if i+k == len(b) {
					return false, s.end()
				}
				if hexDigit(b[i+k]) < 0 {
					s.i = i + k
					return false, s.fail("no hex digit of an escape in a string")
				}
			}
			i += 4
		default:
			s.i = i
			return false, s.fail("no escape of JSON in a string")
		}
	}
}

// Eight bytes are looked at as one number: x-ones*c borrows from the highest bit of
// a byte that is below c, and x^ones*c makes a byte that is c zero. The borrow goes
// on to the next byte, so only the lowest bit found counts.
const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// special8 has the highest bit set of the lowest byte of x that is a quote, a
// backslash or below space, and is 0 without one; bits above that one mean nothing.
func special8(x uint64) uint64 {
	return ((x - ones*' ') | ((x ^ ones*'"') - ones) | ((x ^ ones*'\\') - ones)) &^ x & highs
}

func hexDigit(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
