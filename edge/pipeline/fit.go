package pipeline

import (
	"bytes"
	"time"
	"unicode/utf8"

	"spillway/buffer/batch"
	"spillway/framing"
	"spillway/framing/ecs"
	"spillway/framing/vault"
)

// What a large message may cost. A control character is one byte of a message and six
// of its record, with event.original twelve. What is text does not double by escapes.
// So the record of a message of n bytes has at most
//
//	2n bytes, 4n with event.original, or textLine if that is more, and maxLine,
//
// and of a message that would need more the end is cut off. An audit entry is in its
// record as it was sent, and of its members those that Parse extracts once or twice
// more: at most 3n bytes, and maxLine.
//
// Until it is on the disk, a line is in its block or in an open batch, for a moment in
// both, and compressed. With the message itself that is less than 300 MiB for one of
// 64 MiB.
const (
	// maxLine is the longest line that fits a batch of one with its tail, also if no
	// codec can compress it: gzip then makes it longer by 5 bytes for each 64 KiB.
	maxLine   = batch.MaxSingle - 64<<10
	textLine  = 4 << 20
	lineRoom  = 16 << 10 // of a line, for all that does not come from its message
	maxGrowth = 32       // a line of a message that is cut to a part of maxLine fits, whatever the message is
)

// fit returns how long the record of a message that parse read gets, lineRoom not
// counted, and how much of the message may stay for that.
func (s *sink) fit(data []byte) (line, keep int) {
	most := s.in.maxLine - lineRoom
	if s.raw {
		if line = len(data) + bytes.Count(data, []byte{'\n'}); line > most {
			return most, most / 2
		}
		return line, len(data)
	}
	original := s.in.o.Records.PreserveOriginal
	if s.vault == nil {
		return textFit(data, original, most)
	}
	// An entry is not cut to make room for event.original, which is the same once more.
	for s.vault.tight = false; ; s.vault.tight, original = true, ecs.OriginalNone {
		if s.vault.entry.Err != "" {
			line, keep = textFit(data, original, most)
		} else if line = entrySize(&s.vault.entry, original); line <= most {
			keep = len(data)
		} else {
			line, keep = textFit(data[:s.in.maxLine/maxGrowth], original, most) // which is no entry then
		}
		if keep == len(data) || original == ecs.OriginalNone {
			return line, keep
		}
	}
}

// textFit is fit for a message that becomes text.
func textFit(data []byte, original ecs.Original, most int) (line, keep int) {
	text, plain := 3, 0 // bytes of a record, in thirds, for each byte of the text's inside and of the message
	copies := 2
	switch original {
	case ecs.OriginalText:
		text, copies = 6, 4
	case ecs.OriginalBase64:
		plain, copies = 4, 4
	}
	most = min(most, max(textLine, copies*len(data)))
	return escaped(data, text, plain, most)
}

// escaped returns how much of data may stay for a record of at most most bytes, and how
// long that gets. What stays ends with a character.
func escaped(data []byte, text, plain, most int) (line, keep int) {
	most *= 3
	for keep < len(data) {
		size, inside := 1, 0
		if c := data[keep]; c < utf8.RuneSelf {
			inside = int(escapes[c])
		} else {
			var r rune
			r, size = utf8.DecodeRune(data[keep:])
			if inside = size; r == utf8.RuneError {
				inside = utf8.RuneLen(r)
			}
		}
		n := line + inside*text + size*plain
		if n > most {
			break
		}
		line, keep = n, keep+size
	}
	return line/3 + 1, keep
}

// escapes is how long each character of ASCII is inside a string of JSON.
var escapes = func() (t [utf8.RuneSelf]uint8) {
	for c := range t {
		switch {
		case c == '"', c == '\\', c == '\n', c == '\r', c == '\t':
			t[c] = 2
		case c < ' ':
			t[c] = 6
		default:
			t[c] = 1
		}
	}
	return t
}()

// entrySize is how long the record of an entry gets.
func entrySize(e *vault.Entry, original ecs.Original) int {
	inside := func(b []byte) int { return len(b) } // of JSON, which it is already
	if e.Format == vault.JSONX {
		inside = size
	}
	n := inside(e.Body)
	for f := vault.Time; f <= vault.WrappedAccessor; f++ {
		n += 2 * inside(e.Get(f).Raw)
	}
	switch original {
	case ecs.OriginalText:
		n += size(e.Data)
	case ecs.OriginalBase64:
		n += 2 * len(e.Data)
	}
	return n
}

// size is how long text gets inside a string of JSON, at most.
func size(text []byte) int {
	n, _ := escaped(text, 3, 0, 8*len(text))
	return n
}

// cut cuts a message off, and reads again what is left.
func (s *sink) cut(m framing.Message, keep int, now time.Time) framing.Message {
	s.short = true
	m.Data, m.Flags = m.Data[:min(keep, len(m.Data))], m.Flags|framing.Truncated
	s.parse(m, now)
	return m
}
