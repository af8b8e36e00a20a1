package framing

import "bytes"

// JSONx as Vault writes it (`format=jsonx`): the members of a record one behind the other,
// without a root, a declaration, a delimiter or a line end.
//
//	stream  = *( LF / CR / NUL / line / record )  what is between frames is skipped
//	line    = text LF                             a sender of lines; text has neither LF nor the beginning of a member
//	record  = [text] *member type                 text: the device's prefix
//	type    = `<json:string name="type">` value `</json:string>`
//	member  = object / array / string / scalar / null
//	object  = `<json:object` [name] `>` *member `</json:object>`
//	array   = `<json:array`  [name] `>` *member `</json:array>`
//	string  = `<json:string` [name] `>` value `</json:string>`
//	scalar  = `<json:number` … `</json:number>` / `<json:boolean` … `</json:boolean>`
//	null    = `<json:null`   [name] ` />`         any other tag that ends in "/>" is an end too
//	name    = ` name="` escaped `"`               escaped: none of < > " in it
//
// The members of an object, and of a record, are sorted by name, so the type is a record's
// last member. A value is any bytes: nothing in it is escaped, and no scanner can be sure
// where it ends. This one errs towards two records made of one, never towards one made of
// two, since a record that never ends hides all that follow:
//
//   - Inside of an object or array a value ends at `</json:string>` only if a tag follows.
//   - A string called type that is followed by text, or by a member that is not sorted behind
//     it, is the end of a record, however many objects a value claims to have opened.
//   - A record without a type (a filter may take it out) ends where a top-level member
//     begins that is not sorted behind the one before it, or text.
//   - A closing tag too many is ignored.
type jsonx struct {
	at       int           // everything before it was looked at
	in       place         // what begins at at
	tag      token         // inTag: its kind
	depth    int           // objects and arrays that are open
	isType   bool          // inString: it is called type
	last     [maxName]byte // the name of the top-level member before
	lastLen  int           // the length of it; -1: there is none
	width    int           // ended: length of the terminator at at
	typeless bool          // a record of this stream ended without its type
	looked   uint64        // bytes looked at: tests hold it linear in the bytes received
}

// place is what a scanner is inside of.
type place uint8

const (
	inFront  place = 0 // the text in front of a record
	inTags   place = 1 // a member, or the end of the object or array
	inTag    place = 2 // the rest of a start tag
	inString place = 3 // the value of a string
	inScalar place = 4 // what is no tag, as the value of a number is
	ended    place = 5 // the frame has ended
)

// token is what a tag begins with.
type token uint8

const (
	noTag     token = 0
	stringTag token = 1
	nestTag   token = 2 // of an object or array
	scalarTag token = 3
	nullTag   token = 4
	closeTag  token = 5 // the end of an object or array
	strayTag  token = 6 // the end of a scalar, or of a string where there is none
)

// begins says whether t begins a member.
func (t token) begins() bool { return t >= stringTag && t <= nullTag }

const (
	jsonxTag  = "<json:"
	stringEnd = "</json:string>"
	nameStart = ` name="`
	typeName  = "type"
	maxName   = 16                                                                 // what is looked at of a name: longer than any that Vault has at the top
	jsonxTail = len(stringEnd) + len("</json:boolean>") + len(nameStart) + maxName // most bytes that are looked at together
)

// tokens are sorted by how often they are met.
var tokens = [...]struct {
	text string
	is   token
}{
	{"<json:string", stringTag},
	{"</json:object>", closeTag},
	{"<json:object", nestTag},
	{"</json:array>", closeTag},
	{"<json:array", nestTag},
	{"<json:number", scalarTag},
	{"</json:number>", strayTag},
	{"<json:boolean", scalarTag},
	{"</json:boolean>", strayTag},
	{"<json:null", nullTag},
	{stringEnd, strayTag},
}

// record finds the end of the frame under way in a stream of JSONx: its position, -1 if it
// has not come yet, and the length of its terminator, which only a line has.
func (s *Splitter) record() (end, width int) {
	x := &s.jsonx
	for {
		var more bool
		switch x.in {
		case inFront:
			more = s.front()
		case inTags:
			more = s.tags()
		case inTag:
			if more = !s.seek(">"); more {
				break
			}
			x.at++
			empty := x.at > 1 && s.buf[x.at-2] == '/' // the start is the end too
			switch {
			case empty || x.tag == nullTag:
				x.in = inTags
			case x.tag == stringTag:
				x.in = inString
			case x.tag == scalarTag:
				x.in = inScalar
			default:
				x.in = inTags
				x.depth++
			}
		case inScalar:
			if more = !s.seek("<"); !more {
				x.in = inTags
			}
		case inString:
			if more = !s.seek(stringEnd) || s.endOfString(); !more {
				x.at += len(stringEnd)
			}
		default:
			return x.at, x.width
		}
		if more && s.eof && s.complete() {
			return len(s.buf), 0
		}
		if more {
			return -1, 0
		}
	}
}

// seek steps to what, or as far as it can't begin before.
func (s *Splitter) seek(what string) bool {
	x := &s.jsonx
	b := s.buf[x.at:]
	var i int
	if len(what) == 1 {
		i = bytes.IndexByte(b, what[0])
	} else {
		i = bytes.Index(b, []byte(what))
	}
	if i < 0 {
		x.looked += uint64(len(b))
		x.at = max(x.at, len(s.buf)-len(what)+1)
		return false
	}
	x.looked += uint64(i + len(what))
	x.at += i
	return true
}

// front looks for the first member of a record, or the end of a line. It returns true if
// more bytes are needed.
func (s *Splitter) front() (more bool) {
	x := &s.jsonx
	x.at = max(x.at, s.start)
	b := s.buf[x.at:]
	i := bytes.IndexAny(b, "<\n")
	if i < 0 {
		x.looked += uint64(len(b))
		x.at = len(s.buf)
		return true
	}
	x.looked += uint64(i)
	x.at += i
	if b[i] == '\n' {
		x.looked++
		x.in, x.width = ended, 1
		return false
	}
	t, _, more := tokenAt(b[i:])
	switch {
	case more:
		return true
	case t.begins():
		x.in = inTags
	default:
		x.looked++
		x.at++
	}
	return false
}

// tags steps into the tag that is next, or finds that the record has ended before it. It
// returns true if more bytes are needed.
func (s *Splitter) tags() (more bool) {
	x := &s.jsonx
	b := s.buf[x.at:]
	t, n, more := tokenAt(b)
	if more {
		return true
	}
	x.looked += uint64(n)
	switch {
	case t == closeTag:
		x.depth = max(0, x.depth-1)
		x.at += n
	case t == strayTag:
		x.at += n
	case t == noTag && x.depth == 0:
		x.in, x.typeless = ended, true
	case t == noTag:
		x.at++
		x.in = inScalar // up to the next tag
	default:
		name, more := nameAt(b[n:])
		if more {
			return true
		}
		if x.depth == 0 {
			if x.lastLen >= 0 {
				c := bytes.Compare(name, x.last[:x.lastLen])
				if c < 0 || c == 0 && len(name) < maxName {
					x.in, x.typeless = ended, true
					return false
				}
			}
			x.lastLen = copy(x.last[:], name)
		}
		x.in, x.tag, x.isType = inTag, t, t == stringTag && string(name) == typeName
		x.at += n
	}
	return false
}

// endOfString says what the `</json:string>` that is next is: the end of the string, of the
// record too, or text. It returns true if more bytes are needed.
func (s *Splitter) endOfString() (more bool) {
	x := &s.jsonx
	if x.depth == 0 {
		if x.in = inTags; x.isType {
			x.in = ended
		}
		return false
	}
	b := s.buf[x.at+len(stringEnd):]
	t, n, more := tokenAt(b)
	if more {
		return true
	}
	inside := t == closeTag
	if t.begins() && x.isType {
		name, more := nameAt(b[n:])
		if more {
			return true
		}
		inside = string(name) > typeName
	} else if t.begins() {
		inside = true
	}
	switch {
	case inside:
		x.in = inTags
	case x.isType && t != strayTag:
		x.in = ended
	}
	return false
}

// complete says whether a record without its type may be whole: in a stream that had such
// a record, and behind a top-level member that is.
func (s *Splitter) complete() bool {
	x := &s.jsonx
	return x.typeless && x.in == inTags && x.depth == 0 && x.lastLen >= 0 && x.at == len(s.buf)
}

// tokenAt reads what b begins with: what it is, its length, and whether b ended before
// that was certain.
func tokenAt(b []byte) (t token, n int, more bool) {
	if len(b) > 0 && b[0] != '<' {
		return noTag, 0, false
	}
	for i := range tokens {
		ok, m := startsWith(b, tokens[i].text)
		if ok {
			return tokens[i].is, len(tokens[i].text), false
		}
		more = more || m
	}
	return noTag, 0, more
}

// nameAt reads up to maxName bytes of the name of a start tag, of which b is what is behind
// its token, and says whether b ended before there was as much. Without a name it is empty.
func nameAt(b []byte) (name []byte, more bool) {
	if ok, more := startsWith(b, nameStart); !ok {
		return nil, more
	}
	b = b[len(nameStart):]
	for i, c := range b {
		if i == maxName || c == '"' || c == '>' {
			return b[:i], false
		}
	}
	if len(b) == maxName {
		return b, false
	}
	return nil, true
}

// startsWith says whether b begins with text, and whether b ended before that was certain.
func startsWith(b []byte, text string) (ok, more bool) {
	if len(b) < len(text) {
		return false, string(b) == text[:len(b)]
	}
	return string(b[:len(text)]) == text, false
}
