package ecs

import (
	"bytes"
	"slices"
	"unicode/utf8"

	"spillway/framing/syslog"
)

// maxParams bounds the elements and parameters of structured data that become
// an object: finding names that are there twice needs all of them at hand, and
// a sender can put millions into one message.
const maxParams = 512

// maxCompared is how many of them are compared each with each; more are
// sorted.
const maxCompared = 64

// maxScratch is how much of scratch an Encoder keeps from one record to the
// next, in bytes.
const maxScratch = 16 << 10

// param is one parameter of structured data, or the element itself.
type param struct {
	id, name, value []byte
	element         bool // name and value have no meaning
}

// compareParams orders by element, and in it by name, the element itself
// first.
func compareParams(a, b param) int {
	if c := bytes.Compare(a.id, b.id); c != 0 {
		return c
	}
	if a.element != b.element {
		if a.element {
			return -1
		}
		return 1
	}
	return bytes.Compare(a.name, b.name)
}

// collect fills e.params with sd, so that equal elements, and in them equal
// names, follow each other. It reports false, and there are none, when sd has
// more than maxParams. release must follow before the next record.
func (e *Encoder) collect(sd []byte) bool {
	if len(sd) == 0 {
		return true
	}
	if !utf8.Valid(sd) {
		// Names that differ only in what is replaced must not become two
		// members of one name: replace before comparing.
		e.invalid = true
		e.scratch = appendValid(e.scratch[:0], sd)
		sd = e.scratch
	}
	twice, ok := e.split(sd)
	if !ok {
		e.release()
		return false
	}
	if twice {
		slices.SortStableFunc(e.params, compareParams)
	}
	return true
}

// release lets go of the message that e.params is of.
func (e *Encoder) release() {
	clear(e.params)
	e.params = e.params[:0]
	e.scratch = e.scratch[:0]
	if cap(e.scratch) > maxScratch {
		e.scratch = nil
	}
}

// split fills e.params with sd in its order. twice says that names may come
// more than once, ok that there are not more than maxParams.
func (e *Encoder) split(sd []byte) (twice, ok bool) {
	for {
		id, params, rest, more := syslog.NextElement(sd)
		if !more {
			return twice || len(e.params) > maxCompared, true
		}
		sd = rest
		if !twice && len(e.params) <= maxCompared {
			for i := range e.params {
				if e.params[i].element && bytes.Equal(e.params[i].id, id) {
					twice = true
					break
				}
			}
		}
		if len(e.params) == maxParams {
			return false, false
		}
		first := len(e.params) + 1
		e.params = append(e.params, param{id: id, element: true})
		for {
			name, value, rest, more := syslog.NextParam(params)
			if !more {
				break
			}
			params = rest
			if !twice && len(e.params) <= maxCompared {
				for i := first; i < len(e.params); i++ {
					if bytes.Equal(e.params[i].name, name) {
						twice = true
						break
					}
				}
			}
			if len(e.params) == maxParams {
				return false, false
			}
			e.params = append(e.params, param{id: id, name: name, value: value})
		}
	}
}

// appendParams appends the member structured_data, an object of objects of
// strings, from e.params:
//
//	"structured_data":{"origin":{"software":"x","ip":["192.0.2.1","192.0.2.129"]},"empty":{}}
//
// RFC 5424 forbids that an element comes twice; one that does is merged. It
// allows that a parameter does (section 7.2.1 has one), which then is an array
// of all its values in their order. Members are in the order of the message,
// or sorted when anything came twice or there are more than maxCompared.
func (e *Encoder) appendParams(dst []byte) []byte {
	dst = appendName(dst, `,"structured_data":{`)
	p := e.params
	for i := 0; i < len(p); {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, '"')
		dst = e.appendText(dst, p[i].id)
		dst = append(dst, `":{`...)
		id := p[i].id
		for i < len(p) && p[i].element && bytes.Equal(p[i].id, id) { // more than one when merged
			i++
		}
		for first := true; i < len(p) && !p[i].element; first = false {
			if !first {
				dst = append(dst, ',')
			}
			dst = append(dst, '"')
			dst = e.appendText(dst, p[i].name)
			dst = append(dst, `":`...)
			n := i + 1
			for n < len(p) && !p[n].element && bytes.Equal(p[n].name, p[i].name) {
				n++
			}
			if n > i+1 {
				dst = append(dst, '[')
			}
			for j := i; j < n; j++ {
				if j > i {
					dst = append(dst, ',')
				}
				dst = append(dst, '"')
				dst = e.appendValue(dst, p[j].value)
				dst = append(dst, '"')
			}
			if n > i+1 {
				dst = append(dst, ']')
			}
			i = n
		}
		dst = append(dst, '}')
	}
	return append(dst, '}')
}

// appendValue appends the value of a parameter, in which RFC 5424 escapes.
func (e *Encoder) appendValue(dst, value []byte) []byte {
	if bytes.IndexByte(value, '\\') < 0 {
		return e.appendText(dst, value)
	}
	n := len(e.scratch) // behind sd, if it had to be changed
	e.scratch = syslog.AppendUnescaped(e.scratch, value)
	dst = e.appendText(dst, e.scratch[n:])
	e.scratch = e.scratch[:n]
	return dst
}

// appendValid appends s with U+FFFD for each byte that is not part of valid
// UTF-8.
func appendValid(dst, s []byte) []byte {
	for len(s) > 0 {
		r, n := utf8.DecodeRune(s)
		if r == utf8.RuneError && n == 1 {
			dst = append(dst, "\ufffd"...)
		} else {
			dst = append(dst, s[:n]...)
		}
		s = s[n:]
	}
	return dst
}
