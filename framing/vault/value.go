package vault

import (
	"bytes"
	"unicode/utf16"
	"unicode/utf8"
)

// Kind says what a value is.
type Kind uint8

// Kinds.
const (
	None   Kind = 0 // there is no value
	String Kind = 1
	Number Kind = 2
	Bool   Kind = 3
	Null   Kind = 4
	Array  Kind = 5
	Object Kind = 6
)

// Value is a value as it stands in an entry.
type Value struct {
	Kind Kind

	// Raw is its text: of a string what is between the quotes, with escapes (jsonx:
	// between the tags, without), of an array or object all of it (jsonx: between
	// the tags).
	Raw []byte

	json bool
}

// Escaped reports whether Raw is the inside of a string of JSON.
func (v Value) Escaped() bool { return v.json && v.Kind == String }

// AppendText appends the text of a string without escapes, of any other kind
// nothing. Halves of surrogate pairs become U+FFFD.
func (v Value) AppendText(dst []byte) []byte {
	switch {
	case v.Kind != String:
		return dst
	case !v.json:
		return append(dst, v.Raw...)
	}
	return appendUnescaped(dst, v.Raw)
}

// Is reports whether v is the string text.
func (v Value) Is(text string) bool {
	if v.Kind != String {
		return false
	}
	if !v.json || bytes.IndexByte(v.Raw, '\\') < 0 {
		return string(v.Raw) == text
	}
	if len(v.Raw) > 6*len(text) {
		return false
	}
	var buf [64]byte
	return string(appendUnescaped(buf[:0], v.Raw)) == text
}

// Begins reports whether v is a string that begins with text, which has no escapes
// in what Vault writes.
func (v Value) Begins(text string) bool {
	return v.Kind == String && len(v.Raw) >= len(text) && string(v.Raw[:len(text)]) == text
}

// Item takes the first element off an array. Its Kind is None when there is none.
func (v *Value) Item() (item Value) {
	if v.Kind != Array {
		return Value{}
	}
	s := scanner{b: v.Raw}
	if !v.json {
		if len(v.Raw) > 0 {
			item, _, _ = s.element()
			v.Raw = v.Raw[s.i:]
		}
		return item
	}
	// Raw begins with [ or the , behind the element before.
	s.i++
	c := s.peek()
	if s.i >= len(v.Raw) || c == ']' {
		v.Raw = v.Raw[len(v.Raw):]
		return Value{}
	}
	start := s.i
	if !s.value(0) {
		return Value{}
	}
	item = Value{Kind: kindOf(c), Raw: v.Raw[start:s.i:s.i], json: true}
	if item.Kind == String {
		item.Raw = v.Raw[start+1 : s.i-1 : s.i-1]
	}
	s.space()
	v.Raw = v.Raw[s.i:]
	return item
}

// appendUnescaped appends the text of the inside of a valid string of JSON.
func appendUnescaped(dst, raw []byte) []byte {
	for {
		i := bytes.IndexByte(raw, '\\')
		if i < 0 {
			return append(dst, raw...)
		}
		dst = append(dst, raw[:i]...)
		c := raw[i+1]
		raw = raw[i+2:]
		switch c {
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'u':
			r := hex4(raw)
			raw = raw[4:]
			if utf16.IsSurrogate(r) {
				low := rune(-1)
				if len(raw) >= 6 && raw[0] == '\\' && raw[1] == 'u' {
					low = hex4(raw[2:])
				}
				if r = utf16.DecodeRune(r, low); r != utf8.RuneError {
					raw = raw[6:]
				}
			}
			dst = utf8.AppendRune(dst, r)
		default:
			dst = append(dst, c)
		}
	}
}

func hex4(b []byte) (r rune) {
	for _, c := range b[:4] {
		r = r<<4 | rune(hexDigit(c))
	}
	return r
}
