package ecs

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"slices"
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

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
//
// Text is ASCII until a byte says otherwise. Then what is left is checked once
// and goes the way of valid text, or of text that is not.
func appendText(dst, s []byte) (_ []byte, valid bool) {
	i := 0
	if len(s) >= 8 {
		// Eight bytes are copied as they are looked at; what is written beyond the
		// byte that ends the copying is written again.
		const room = 16 // for eight bytes, or an escape and what is beyond it
		n := len(dst)
		dst = slices.Grow(dst, len(s)+room)
		dst = dst[:cap(dst)]
		for {
			var m uint64
			rest := len(s) - i
			if rest >= 8 {
				x := binary.LittleEndian.Uint64(s[i:])
				binary.LittleEndian.PutUint64(dst[n:], x)
				if m = notPlain8(x); m == 0 {
					i += 8
					n += 8
					continue
				}
			} else {
				// The last bytes once more, those before them shifted out; what is
				// shifted in are NULs, which are not plain either.
				x := binary.LittleEndian.Uint64(s[len(s)-8:]) >> (8 * (8 - rest) & 63)
				if rest == 0 {
					return dst[:n], true
				}
				binary.LittleEndian.PutUint64(dst[n:], x)
				m = notPlain8(x)
			}
			k := bits.TrailingZeros64(m) >> 3
			i += k
			n += k
			if i == len(s) {
				return dst[:n], true
			}
			c := s[i]
			if c >= utf8.RuneSelf {
				dst = dst[:n]
				break
			}
			n = len(appendEscape(dst[:n], c))
			i++
			if len(dst)-n < len(s)-i+room {
				dst = slices.Grow(dst[:n], 2*(len(s)-i)+room)
				dst = dst[:cap(dst)]
			}
		}
	} else {
		for i < len(s) && !notPlain[s[i]] {
			i++
		}
		if i == len(s) {
			return append(dst, s...), true
		}
		dst = append(dst, s[:i]...)
		for ; i < len(s) && s[i] < utf8.RuneSelf; i++ {
			if notPlain[s[i]] {
				dst = appendEscape(dst, s[i])
			} else {
				dst = append(dst, s[i])
			}
		}
		if i == len(s) {
			return dst, true
		}
	}
	if utf8.Valid(s[i:]) {
		return appendValidText(dst, s[i:]), true
	}
	return appendInvalidText(dst, s[i:]), false
}

// appendValidText is appendText for valid UTF-8.
func appendValidText(dst, s []byte) []byte {
	done, i := 0, 0
	for {
		i = nextEscaped(s, i)
		dst = append(dst, s[done:i]...)
		if i == len(s) {
			return dst
		}
		dst = appendEscape(dst, s[i])
		i++
		done = i
	}
}

// appendInvalidText is appendText for any bytes, one character at a time.
func appendInvalidText(dst, s []byte) []byte {
	for len(s) > 0 {
		r, n := utf8.DecodeRune(s)
		switch {
		case r == utf8.RuneError && n == 1:
			dst = append(dst, "\ufffd"...)
		case n == 1 && isEscaped(s[0]):
			dst = appendEscape(dst, s[0])
		default:
			dst = append(dst, s[:n]...)
		}
		s = s[n:]
	}
	return dst
}

func isEscaped(c byte) bool { return c < ' ' || c == '"' || c == '\\' }

// appendEscape appends the escape of c, for which isEscaped.
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

// Eight bytes are looked at as one number: x-ones*c borrows from the highest
// bit of a byte that is below c, and x^ones*c makes a byte that is c zero. The
// borrow goes on to the next byte, so only the lowest bit found counts.
const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// notPlain8 has the highest bit set of the lowest byte of x that is not ASCII or
// is escaped, and is 0 without one; bits above that one mean nothing.
func notPlain8(x uint64) uint64 {
	// A byte beyond ASCII counts by itself, whatever the differences say of it.
	return (x | (x - ones*' ') | ((x ^ ones*'"') - ones) | ((x ^ ones*'\\') - ones)) & highs
}

// nextEscaped returns the index of the first byte at or after s[i] that is
// escaped, len(s) without one.
func nextEscaped(s []byte, i int) int {
	for ; i+8 <= len(s); i += 8 {
		x := binary.LittleEndian.Uint64(s[i:])
		m := ((x - ones*' ') | ((x ^ ones*'"') - ones) | ((x ^ ones*'\\') - ones)) &^ x & highs
		if m != 0 {
			return i + bits.TrailingZeros64(m)>>3
		}
	}
	for i < len(s) && !isEscaped(s[i]) {
		i++
	}
	return i
}

var notPlain = func() (t [256]bool) {
	for c := range t {
		t[c] = isEscaped(byte(c)) || c >= utf8.RuneSelf
	}
	return t
}()

func indexLF(b []byte) int { return bytes.IndexByte(b, '\n') }
