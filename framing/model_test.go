package framing

import (
	"bytes"
	"regexp"
)

var (
	modelCount    = regexp.MustCompile(`^([1-9][0-9]{0,8}) `)
	modelDigits   = regexp.MustCompile(`^[1-9][0-9]{0,8}$`)
	modelSyslog   = regexp.MustCompile(`^ ?[1-9][0-9]{0,8} <`)
	modelOther    = regexp.MustCompile(`^ ?[1-9][0-9]{0,8} (?:<|\{|\x{FEFF})`)
	modelTrimEnd  = regexp.MustCompile(`(?:\r?\n|\x00)*$`)
	modelLeftover = regexp.MustCompile(`^[\r\n\x00]+`)
)

// outcome is all that a stream comes to.
type outcome struct {
	messages []Message
	stats    Stats
	broken   error
}

// model is the specification of a Splitter, written to be read: it has the whole stream
// before it, looks at each frame from its beginning and cares for no cost. It does not
// know Stats.Discarded.
func model(in []byte, opt Options) outcome {
	var o outcome
	limit := opt.maxMessageSize()
	delim := opt.Delimiter
	if opt.Mode == NUL {
		delim = []byte{0}
	}
	lf := len(delim) == 0 || string(delim) == "\n"
	if lf {
		delim = []byte{'\n'}
	}
	alsoNUL := opt.Mode == Auto && !bytes.Contains(delim, []byte{0})
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
		if opt.Mode == Auto && lf {
			left := modelLeftover.Find(in)
			if before != countBefore {
				o.stats.Empty += uint64(bytes.Count(left, []byte{'\n'}) + bytes.Count(left, []byte{0}))
			}
			in = in[len(left):]
			if string(in) == " " {
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
		default:
			if opt.Mode == Auto && lf && bytes.HasPrefix(in, []byte(" <")) {
				in = in[1:]
			}
			pri := in[0] == '<'
			end, width := bytes.Index(in, delim), len(delim)
			if alsoNUL && lf && pri && before == nulBefore {
				end = -1
				for i, c := range in {
					if rest := in[i+1:]; c == '\n' && (len(rest) == 0 || rest[0] == '<' || rest[0] != ' ' && believed.Match(rest)) {
						end = i
						break
					}
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
		}
		before = now

		switch {
		case whole <= limit:
			if frame = trim(frame); len(frame) == 0 {
				o.stats.Empty++
				break
			}
			o.messages = append(o.messages, Message{Data: frame, Flags: flags})
			if (opt.Mode == Delimiter || opt.Mode == NUL) && modelSyslog.Match(frame) && frame[0] != ' ' {
				o.stats.LooksCounted++
			}
		case opt.Oversize == Split:
			o.stats.Oversize++
			for len(frame) > limit {
				o.messages = append(o.messages, Message{Data: frame[:limit], Flags: Part})
				frame = frame[limit:]
			}
			if frame = trim(frame); len(frame) > 0 {
				o.messages = append(o.messages, Message{Data: frame, Flags: flags | Part})
			}
		default:
			o.stats.Oversize++
			if opt.Oversize != Drop {
				o.messages = append(o.messages, Message{Data: frame[:limit], Flags: Truncated})
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
