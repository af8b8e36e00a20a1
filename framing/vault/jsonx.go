package vault

import "bytes"

// opening begins each element of jsonx.
const opening = "<json:"

// hasOrBegins reports whether b begins with text, or with as much of it as b has.
func hasOrBegins(b []byte, text string) bool {
	n := min(len(b), len(text))
	return string(b[:n]) == text[:n]
}

// xml reads the elements of an entry up to "type" at the top.
func (s *scanner) xml(e *Entry) bool {
	for {
		f, ok := s.xmlMember(e, top, 1)
		if !ok || f == Type {
			return ok
		}
	}
}

// xmlMember reads an element of c, which is in depth-1 objects and arrays, and
// reports which field it was.
func (s *scanner) xmlMember(e *Entry, c container, depth int) (Field, bool) {
	at := s.i
	kind, name, empty, ok := s.tag()
	if !ok {
		return nothing, false
	}
	f, inside := lookup(c, name)
	if !e.first(f, inside) {
		s.i = at
		return nothing, s.fail(errTwice)
	}
	if inside != noneInside && kind == Object && !empty {
		for {
			if closed, ok := s.closing(Object); closed || !ok {
				return nothing, ok
			}
			if _, ok := s.xmlMember(e, inside, depth+1); !ok {
				return nothing, false
			}
		}
	}
	v, ok := s.xmlValue(kind, empty, depth)
	if ok && f != nothing {
		e.set(f, v, s.i)
	}
	return f, ok
}

// element reads one element, for Value.Item.
func (s *scanner) element() (v Value, name []byte, ok bool) {
	kind, name, empty, ok := s.tag()
	if !ok {
		return Value{}, nil, false
	}
	v, ok = s.xmlValue(kind, empty, 0)
	return v, name, ok
}

// kinds are the names of elements. closings are the tags that end them.
var (
	kinds    = [...]string{String: "string", Number: "number", Bool: "boolean", Null: "null", Array: "array", Object: "object"}
	closings = [...]string{String: "</json:string>", Number: "</json:number>", Bool: "</json:boolean>", Null: "</json:null>", Array: "</json:array>", Object: "</json:object>"}
)

// tag reads a tag that begins an element:
//
//	<json:string name="id">   <json:string>   <json:null name="n" />   <json:null />
//
// empty says that it is the whole element.
func (s *scanner) tag() (kind Kind, name []byte, empty, ok bool) {
	rest := s.b[s.i:]
	if len(rest) < len(opening) {
		if hasOrBegins(rest, opening) {
			return 0, nil, false, s.end()
		}
		return 0, nil, false, s.fail("no element of jsonx")
	}
	if string(rest[:len(opening)]) != opening {
		return 0, nil, false, s.fail("no element of jsonx")
	}
	rest = rest[len(opening):]
	for k := String; k <= Object; k++ {
		if n := len(kinds[k]); len(rest) > n && string(rest[:n]) == kinds[k] {
			kind, rest = k, rest[n:]
			break
		}
		if len(rest) <= len(kinds[k]) && hasOrBegins(rest, kinds[k]) {
			return 0, nil, false, s.end()
		}
	}
	if kind == None {
		return 0, nil, false, s.fail("no kind of a jsonx element")
	}
	const attribute = ` name="`
	if len(rest) < len(attribute) && hasOrBegins(rest, attribute) {
		return 0, nil, false, s.end()
	}
	if hasOrBegins(rest, attribute) {
		rest = rest[len(attribute):]
		quote := bytes.IndexByte(rest, '"') // one in a name is &#34;
		if quote < 0 {
			return 0, nil, false, s.end()
		}
		name, rest = rest[:quote], rest[quote+1:]
	}
	switch {
	case len(rest) > 0 && rest[0] == '>':
		s.i = len(s.b) - len(rest) + 1
		return kind, name, false, true
	case len(rest) >= 3 && string(rest[:3]) == " />":
		s.i = len(s.b) - len(rest) + 3
		return kind, name, true, true
	case hasOrBegins(rest, " />"):
		return 0, nil, false, s.end()
	}
	s.i = len(s.b) - len(rest)
	return 0, nil, false, s.fail("no end of a jsonx tag")
}

// closing takes the tag that ends an element of a kind, if it comes next. It is not
// ok if data ends inside it.
func (s *scanner) closing(kind Kind) (closed, ok bool) {
	text := closings[kind]
	switch rest := s.b[s.i:]; {
	case !hasOrBegins(rest, text):
		return false, true
	case len(rest) < len(text):
		return false, s.end()
	}
	s.i += len(text)
	return true, true
}

// xmlValue reads the content and the end of an element whose tag was read; depth
// counts it if it is an object or array.
func (s *scanner) xmlValue(kind Kind, empty bool, depth int) (v Value, ok bool) {
	v = Value{Kind: kind}
	if empty {
		return v, true
	}
	start := s.i
	if kind < Array {
		end := bytes.Index(s.b[s.i:], []byte(closings[kind]))
		if end < 0 {
			return v, s.end()
		}
		v.Raw = s.b[start : start+end : start+end]
		s.i += end + len(closings[kind])
		return v, true
	}
	var objects [MaxDepth / 64]uint64 // a bit for each that is open: an object
	base := depth
	for open := kind; ; {
		if open != None {
			if depth == MaxDepth {
				return v, s.fail(errDepth)
			}
			if objects[depth/64] &^= 1 << (depth % 64); open == Object {
				objects[depth/64] |= 1 << (depth % 64)
			}
			depth++
			open = None
		}
		inside := Array
		if objects[(depth-1)/64]>>((depth-1)%64)&1 != 0 {
			inside = Object
		}
		end := s.i
		switch closed, ok := s.closing(inside); {
		case !ok:
			return v, false
		case closed:
			if depth--; depth == base {
				v.Raw = s.b[start:end:end]
				return v, true
			}
			continue
		}
		kind, _, empty, ok := s.tag()
		switch {
		case !ok:
			return v, false
		case empty:
		case kind >= Array:
			open = kind
		default:
			end := bytes.Index(s.b[s.i:], []byte(closings[kind]))
			if end < 0 {
				return v, s.end()
			}
			s.i += end + len(closings[kind])
		}
	}
}
