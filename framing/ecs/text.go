package ecs

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

func indexLF(b []byte) int { return bytes.IndexByte(b, '\n') }

// appendText appends s as the inside of a JSON string and notes whether it was
// valid UTF-8.
func (e *Encoder) appendText(dst, s []byte) []byte {
	dst, valid := appendText(dst, s)
	if !valid {
		e.invalid = true
	}
	return dst
}

// appendText appends s as the inside of a JSON string: quote, backslash and
// the control characters below U+0020 escaped, each byte that is not part of
// valid UTF-8 replaced by U+FFFD. valid says that nothing was replaced.
func appendText(dst, s []byte) (_ []byte, valid bool) {
	valid = true
	done, i := 0, 0 // s[:done] is in dst, s[done:i] can be copied as it is
	for {
		i = nextSpecial(s, i)
		if i == len(s) {
			return append(dst, s[done:]...), valid
		}
		c := s[i]
		if c < utf8.RuneSelf {
			dst = append(dst, s[done:i]...)
			dst = appendEscape(dst, c)
			i++
			done = i
			continue
		}
		for i < len(s) && s[i] >= utf8.RuneSelf { // text in other scripts comes in long pieces
			r, n := utf8.DecodeRune(s[i:])
			if r == utf8.RuneError && n == 1 {
				valid = false
				dst = append(dst, s[done:i]...)
				dst = append(dst, "\ufffd"...)
				done = i + 1
			}
			i += n
		}
	}
}

// appendEscape appends the escape of c, an ASCII character that needs one.
func appendEscape(dst []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(dst, '\\', c)
	case '\n':
		return append(dst, '\\', 'n')
	case '\t':
		return append(dst, '\\', 't')
	case '\r':
		return append(dst, '\\', 'r')
	}
	return append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
}

// nextSpecial returns the index of the first byte of s[i:] that is not copied
// blindly, len(s) without one. It looks at eight bytes at a time.
func nextSpecial(s []byte, i int) int {
	for ; i+8 <= len(s); i += 8 {
		if m := specials(binary.LittleEndian.Uint64(s[i:])); m != 0 {
			return i + bits.TrailingZeros64(m)>>3
		}
	}
	for ; i < len(s); i++ {
		if special[s[i]] {
			break
		}
	}
	return i
}

// specials sets the highest bit of the lowest byte of x that is special, and
// maybe bits above it, which the borrow of a subtraction reaches; no bit is
// set when none is special. A byte above 0x7f sets its bit by itself, so the
// differences need not be guarded against those.
func specials(x uint64) uint64 {
	const ones, high = 0x0101010101010101, 0x8080808080808080
	return (x | (x - ones*' ') | ((x ^ ones*'"') - ones) | ((x ^ ones*'\\') - ones)) & high
}

var special = func() (t [256]bool) {
	for c := range t {
		t[c] = c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf
	}
	return t
}()
