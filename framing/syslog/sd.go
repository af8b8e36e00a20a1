package syslog

import "bytes"

// STRUCTURED-DATA (RFC 5424 section 6.3):
//
//	sd      = 1*element
//	element = "[" id *(" " name "=" value) "]"
//	value   = DQUOTE *octet DQUOTE        \" \\ \] are escapes; bare " and ] are not allowed
//	        / 1*octet                     VMware: no space, quote, bracket, "=", nor two \ in a row
//
// Ids and names are 1*octet without space, control, "=", "]" and DQUOTE; their
// length is not limited to 32.

// structuredData returns the offset behind the elements that begin at b[i], and
// i when they are not conformant. It sets DuplicateID.
func (p *Parser) structuredData(m *Message, b []byte, i int) int {
	start := i
	for n := 0; i < len(b) && b[i] == '['; n++ {
		i++
		from := i
		i = nameEnd(b, i)
		if i == from {
			return start
		}
		p.note(m, b, n, span{from, i})
		for i < len(b) && b[i] == ' ' {
			i++
			from = i
			i = nameEnd(b, i)
			if i == from || len(b)-i < 2 || b[i] != '=' {
				return start
			}
			i++
			from = i
			if b[i] == '"' {
				if i = quotedEnd(b, i+1); i == len(b) || b[i] != '"' {
					return start
				}
				i++
			} else if i = bareEnd(b, i); i == from {
				return start
			}
		}
		if i == len(b) || b[i] != ']' {
			return start
		}
		i++
	}
	return i
}

// note keeps the id of element n and looks for it among those before. Beyond
// what p.ids holds it does not look, so that the time it takes is bounded.
func (p *Parser) note(m *Message, b []byte, n int, id span) {
	if n >= len(p.ids) {
		m.Flags |= DuplicateID
		return
	}
	for _, o := range p.ids[:n] {
		if o.to-o.from == id.to-id.from && bytes.Equal(b[o.from:o.to], b[id.from:id.to]) {
			m.Flags |= DuplicateID
		}
	}
	p.ids[n] = id
}

// nameEnd returns the offset behind the SD-NAME at b[i].
func nameEnd(b []byte, i int) int {
	for i < len(b) && class[b[i]]&sdByte != 0 {
		i++
	}
	return i
}

// quotedEnd returns the offset of the quote that ends the value at b[i], or of
// the unescaped "]" in it, or len(b).
func quotedEnd(b []byte, i int) int {
	for ; i < len(b); i++ {
		switch b[i] {
		case '"', ']':
			return i
		case '\\':
			if i+1 < len(b) && escapable(b[i+1]) {
				i++
			}
		}
	}
	return i
}

// bareEnd returns the offset behind the unquoted value at b[i], i for none.
func bareEnd(b []byte, i int) int {
	from := i
	i = nameEnd(b, i)
	if bytes.Contains(b[from:i], []byte(`\\`)) || bytes.IndexByte(b[from:i], '[') >= 0 {
		return from
	}
	return i
}

func escapable(c byte) bool { return c == '"' || c == '\\' || c == ']' }

// NextElement takes the first SD-ELEMENT off sd, which is a Message.SD or a
// rest of it: its SD-ID, its parameters for NextParam, and what follows. ok is
// false at the end. The slices alias sd.
func NextElement(sd []byte) (id, params, rest []byte, ok bool) {
	if len(sd) == 0 || sd[0] != '[' {
		return nil, nil, nil, false
	}
	n := nameEnd(sd, 1)
	i := n
	for i < len(sd) && sd[i] != ']' {
		if sd[i] == '"' {
			i = quotedEnd(sd, i+1)
		}
		i++
	}
	if i >= len(sd) {
		return nil, nil, nil, false
	}
	return sd[1:n], sd[n:i], sd[i+1:], true
}

// NextParam takes the first SD-PARAM off params, which is that of a NextElement
// or a rest of it. value is still escaped: see AppendUnescaped. ok is false at
// the end. The slices alias params.
func NextParam(params []byte) (name, value, rest []byte, ok bool) {
	if len(params) == 0 || params[0] != ' ' {
		return nil, nil, nil, false
	}
	n := nameEnd(params, 1)
	if len(params)-n < 2 {
		return nil, nil, nil, false
	}
	if params[n+1] != '"' {
		end := nameEnd(params, n+1)
		return params[1:n], params[n+1 : end], params[end:], true
	}
	end := quotedEnd(params, n+2)
	if end == len(params) {
		return nil, nil, nil, false
	}
	return params[1:n], params[n+2 : end], params[end+1:], true
}

// AppendUnescaped appends value without the backslashes that escape a quote, a
// backslash or a closing bracket (RFC 5424 section 6.3.3). Other backslashes
// stand for themselves and stay.
func AppendUnescaped(dst, value []byte) []byte {
	for {
		i := bytes.IndexByte(value, '\\')
		if i < 0 || i+1 == len(value) {
			return append(dst, value...)
		}
		dst = append(dst, value[:i]...)
		if !escapable(value[i+1]) {
			dst = append(dst, '\\')
		}
		dst = append(dst, value[i+1])
		value = value[i+2:]
	}
}
