package framing

import (
	"bytes"
	"regexp"
	"strings"
)

var (
	modelCount    = regexp.MustCompile(`^([1-9][0-9]{0,8}) `)
	modelDigits   = regexp.MustCompile(`^[1-9][0-9]{0,8}$`)
	modelSyslog   = regexp.MustCompile(`^ ?[1-9][0-9]{0,8} <`)
	modelOther    = regexp.MustCompile(`^ ?[1-9][0-9]{0,8} (?:<|\{|\x{FEFF})`)
	modelTrimEnd  = regexp.MustCompile(`(?:\r?\n|\x00)*$`)
	modelLeftover = regexp.MustCompile(`^[\r\n\x00]+`)
	modelLess     = regexp.MustCompile(`^ ?<`)
	modelPRI      = regexp.MustCompile(`^<[0-9]{1,3}>`)
	modelCountPRI = regexp.MustCompile(`^(?:[1-9][0-9]{0,8} )?<[0-9]{1,3}>`)
)

// outcome is all that a stream comes to.
type outcome struct {
	messages []Message
	stats    Stats
	broken   error
	at       []int // run: where in the stream each message begins
}

// model is the specification of a Splitter, written to be read: it has the whole stream
// before it, looks at each frame from its beginning and cares for no cost. It does not
// know Stats.Discarded.
func model(in []byte, opt Options) outcome {
	var o outcome
	limit := opt.maxMessageSize()
	delim := opt.Delimiter
	switch opt.Mode {
	case NUL:
		delim = []byte{0}
	case JSONX:
		delim = nil
	}
	lf := len(delim) == 0 || string(delim) == "\n"
	if lf {
		delim = []byte{'\n'}
	}
	alsoNUL := opt.Mode == Auto && !bytes.Contains(delim, []byte{0})
	multiline := opt.Multiline == MultilinePRI && (opt.Mode == Auto || opt.Mode == Delimiter || opt.Mode == RFC6587)
	skips := lf && (opt.Mode == Auto || opt.Mode == JSONX)
	typeless := false
	first, _, _ := bytes.Cut(in, []byte{'\n'})
	if bytes.Contains(first[:min(len(first), 1<<10)], []byte("<json:")) && opt.Mode != JSONX && opt.Mode != Octet {
		o.stats.LooksJSONX++
	}
	const (
		lineBefore = iota
		nulBefore
		countBefore
	)
	before := lineBefore
	believed := modelSyslog
	if opt.NonSyslog {
		believed = modelOther
	}

	for o.broken == nil {
		if skips {
			left := modelLeftover.Find(in)
			if before != countBefore && opt.Mode == Auto {
				o.stats.Empty += uint64(bytes.Count(left, []byte{'\n'}) + bytes.Count(left, []byte{0}))
			}
			in = in[len(left):]
			if string(in) == " " && opt.Mode == Auto {
				break
			}
		}
		if len(in) == 0 {
			break
		}

		var isCounted bool
		switch opt.Mode {
		case RFC6587, Octet:
			isCounted = modelCount.Match(in)
		case Auto:
			isCounted = believed.Match(in) && (lf || in[0] != ' ')
		}
		var frame []byte    // the content that the frame would have without a limit
		var whole, rest int // bytes of content with what is trimmed; bytes up to the next frame
		var flags Flags
		var joins, joinsLast bool // with its delimiter in it, any part of it is flagged so, or its last part
		several := func(b []byte, last bool) (f Flags) {
			if (joins || joinsLast && last) && bytes.Contains(b, delim) {
				f = Multiline
			}
			return f
		}
		trim := func(b []byte) []byte { return bytes.TrimRight(b, "\x00") }
		trimAll := func(b []byte) []byte { return b[:modelTrimEnd.FindIndex(b)[0]] }
		now := lineBefore

		switch {
		case isCounted:
			if in[0] == ' ' {
				in = in[1:]
			}
			now, trim = countBefore, trimAll
			head := modelCount.FindSubmatch(in)
			n := 0
			for _, d := range head[1] {
				n = n*10 + int(d-'0')
			}
			in = in[len(head[0]):]
			if n > len(in) {
				// It never gets whole. What is over the limit is handed out on the way.
				o.partial(in, n, limit, opt.Oversize)
				in = nil
				continue
			}
			frame, whole, rest = in[:n], n, n
		case opt.Mode == Octet:
			if modelDigits.Match(in) {
				o.stats.Partial++
				in = nil
				continue
			}
			n := min(len(in), limit)
			flags = Invalid
			if n < len(in) {
				flags |= Truncated
			}
			o.messages = append(o.messages, Message{Data: in[:n], Flags: flags})
			o.stats.Errors++
			o.broken = ErrCount
			continue
		case opt.Mode == JSONX:
			end, width := modelRecord(string(in), &typeless)
			switch {
			case end < 0:
				frame, whole, rest, flags = in, len(in), len(in), Unterminated
			case width == 1:
				frame, rest = bytes.TrimSuffix(in[:end], []byte{'\r'}), end+1
				whole = len(frame)
			default:
				frame, whole, rest = in[:end], end, end
			}
		default:
			if opt.Mode == Auto && lf && bytes.HasPrefix(in, []byte(" <")) {
				in = in[1:]
			}
			pri := in[0] == '<'
			end, width := bytes.Index(in, delim), len(delim)
			held := alsoNUL && lf && pri && before == nulBefore
			if multiline || held {
				end = -1
				for from := 0; from < len(in); {
					i := bytes.Index(in[from:], delim)
					if i < 0 {
						break
					}
					next := from + i + len(delim)
					rest := in[next:]
					var begins bool
					switch {
					case !multiline:
						begins = modelLess.Match(rest) || believed.Match(rest)
					case opt.Mode == Delimiter:
						begins = modelPRI.Match(rest)
					case opt.Mode == Auto && lf:
						begins = modelCountPRI.Match(bytes.TrimPrefix(rest, []byte{' '}))
					default:
						begins = modelCountPRI.Match(rest)
					}
					if begins || len(rest) == 0 || skips && string(rest) == " " {
						end = from + i
						break
					}
					from = next
				}
			}
			if nul := bytes.IndexByte(in, 0); alsoNUL && nul >= 0 && (end < 0 || nul < end) {
				end, width = nul, 1
			}
			switch {
			case end < 0:
				frame, whole, rest, flags = in, len(in), len(in), Unterminated
			case width == 1 && in[end] == 0:
				frame, whole, rest, trim = in[:end], end, end+1, trimAll
				if pri && alsoNUL {
					now = nulBefore
				}
			default:
				frame, rest = in[:end], end+width
				if lf {
					frame = bytes.TrimSuffix(frame, []byte{'\r'})
				}
				whole = len(frame)
			}
			joins = multiline
			joinsLast = held && (end < 0 || in[end] != 0)
			if multiline && lf {
				trim = trimAll
			}
		}
		before = now

		switch {
		case whole <= limit:
			if frame = trim(frame); len(frame) == 0 {
				o.stats.Empty++
				break
			}
			o.messages = append(o.messages, Message{Data: frame, Flags: flags | several(frame, true)})
			if (opt.Mode == Delimiter || opt.Mode == NUL) && modelSyslog.Match(frame) && frame[0] != ' ' {
				o.stats.LooksCounted++
			}
		case opt.Oversize == Split:
			o.stats.Oversize++
			for len(frame) > limit {
				o.messages = append(o.messages, Message{Data: frame[:limit], Flags: Part | several(frame[:limit], false)})
				frame = frame[limit:]
			}
			if frame = trim(frame); len(frame) > 0 {
				o.messages = append(o.messages, Message{Data: frame, Flags: flags | Part | several(frame, true)})
			}
		default:
			o.stats.Oversize++
			if opt.Oversize != Drop {
				o.messages = append(o.messages, Message{Data: frame[:limit], Flags: Truncated | several(frame[:limit], false)})
			}
			if opt.Oversize == Close {
				o.broken = ErrOversize
			}
		}
		in = in[rest:]
	}
	return o
}

// partial is a frame of n bytes of which only those in b ever came.
func (o *outcome) partial(b []byte, n, limit int, policy Oversize) {
	if n > limit && (len(b) >= limit || policy == Drop) {
		o.stats.Oversize++
		switch policy {
		case Drop:
			return
		case Split:
			for n > limit && len(b) >= limit {
				o.messages = append(o.messages, Message{Data: b[:limit], Flags: Part})
				b, n = b[limit:], n-limit
			}
		case Close:
			o.messages = append(o.messages, Message{Data: b[:limit], Flags: Truncated})
			o.broken = ErrOversize
			return
		default:
			o.messages = append(o.messages, Message{Data: b[:limit], Flags: Truncated})
			return
		}
	}
	o.stats.Partial++
}

var (
	modelFront  = regexp.MustCompile(`<json:(?:object|array|string|number|boolean|null)|\n`)
	modelTokens = []string{
		"<json:object", "<json:array", "<json:string", "<json:number", "<json:boolean", "<json:null",
		"</json:object>", "</json:array>", "</json:string>", "</json:number>", "</json:boolean>",
	}
)

// modelTag is what in begins with: an element's kind (with a slash in front if it ends
// here), its name as far as it is looked at, the length of it without `>`, and whether the
// stream ended before that was certain.
func modelTag(in string) (kind, name string, n int, cut bool) {
	for _, t := range modelTokens {
		if strings.HasPrefix(t, in) && t != in {
			return "", "", 0, true
		}
		if !strings.HasPrefix(in, t) {
			continue
		}
		if kind, ok := strings.CutPrefix(t, "</json:"); ok {
			return "/" + strings.TrimSuffix(kind, ">"), "", len(t), false
		}
		kind, rest := t[len("<json:"):], in[len(t):]
		const attribute = ` name="`
		if strings.HasPrefix(attribute, rest) && rest != attribute {
			return "", "", 0, true
		}
		if rest, ok := strings.CutPrefix(rest, attribute); ok {
			end := strings.IndexAny(rest, `">`)
			if end < 0 && len(rest) < 16 {
				return "", "", 0, true
			}
			if end < 0 || end > 16 {
				end = 16
			}
			name = rest[:end]
		}
		return kind, name, len(t), false
	}
	return "", "", 0, false
}

// modelRecord is the end of the JSONx record at the front of in, which reaches to the
// end of the stream, and the length of its terminator if it is a line.
func modelRecord(in string, typeless *bool) (end, width int) {
	front := modelFront.FindStringIndex(in)
	if front == nil {
		return -1, 0
	}
	at := front[0]
	if in[at] == '\n' {
		return at, 1
	}
	var open, members int
	var before string
	for {
		kind, name, n, cut := modelTag(in[at:])
		switch {
		case at == len(in) && *typeless && open == 0:
			return at, 0
		case cut:
			return -1, 0
		case kind == "" && open == 0:
			*typeless = true
			return at, 0
		case kind == "":
			next := strings.IndexByte(in[at+1:], '<')
			if next < 0 {
				return -1, 0
			}
			at += 1 + next
			continue
		case kind[0] == '/':
			if kind == "/object" || kind == "/array" {
				open = max(0, open-1)
			}
			at += n
			continue
		}
		if open == 0 {
			if members > 0 && (name < before || name == before && len(name) < 16) {
				*typeless = true
				return at, 0
			}
			members, before = members+1, name
		}
		i := strings.IndexByte(in[at+n:], '>')
		if i < 0 {
			return -1, 0
		}
		at += n + i + 1
		if in[at-2] == '/' {
			continue
		}
		switch kind {
		case "object", "array":
			open++
		case "number", "boolean":
			if i = strings.IndexByte(in[at:], '<'); i < 0 {
				return -1, 0
			}
			at += i
		case "string":
			for {
				const closing = "</json:string>"
				if i = strings.Index(in[at:], closing); i < 0 {
					return -1, 0
				}
				at += i + len(closing)
				isType := name == "type"
				if open == 0 {
					if isType {
						return at, 0
					}
					break
				}
				kind, name, _, cut := modelTag(in[at:])
				if kind == "" && cut {
					return -1, 0
				}
				ends := kind == "/object" || kind == "/array"
				begins := kind != "" && kind[0] != '/'
				if isType {
					if kind == "" || begins && name <= "type" {
						return at, 0
					}
					if ends || begins {
						break
					}
					continue
				}
				if ends || begins {
					break
				}
			}
		}
	}
}
