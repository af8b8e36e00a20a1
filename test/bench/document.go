package bench

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"strconv"
)

// What the speed-of-light program does with a line when it parses: the fewest
// steps from an RFC 3164 or RFC 5424 header to a document that can be searched.
// It is a measure and no parser: what it does not expect becomes the message.

// header is a line taken apart; slices are parts of the line.
type header struct {
	pri                int
	at, host, app, pid []byte
	message            []byte
	stamp              [20]byte // what at is of, if the line has no such time
}

// appendDocument appends the document of a line and its LF. h is memory to use.
func (h *header) appendDocument(dst, line []byte) []byte {
	*h = header{pri: 13, message: line}
	if rest, ok := h.priority(line); ok {
		if len(rest) > 2 && rest[0] == '1' && rest[1] == ' ' {
			h.rfc5424(rest[2:])
		} else {
			h.rfc3164(rest)
		}
	}
	dst = append(dst, `{"@timestamp":"`...)
	dst = append(dst, h.at...)
	dst = append(dst, `","message":"`...)
	dst = appendText(dst, h.message)
	dst = append(dst, `","source":{"ip":"127.0.0.1","port":51422},"log":{"syslog":{"priority":`...)
	dst = strconv.AppendInt(dst, int64(h.pri), 10)
	dst = append(dst, `,"facility":{"code":`...)
	dst = strconv.AppendInt(dst, int64(h.pri>>3), 10)
	dst = append(dst, `,"name":"`...)
	dst = append(dst, facilities[h.pri>>3]...)
	dst = append(dst, `"},"severity":{"code":`...)
	dst = strconv.AppendInt(dst, int64(h.pri&7), 10)
	dst = append(dst, `,"name":"`...)
	dst = append(dst, severities[h.pri&7]...)
	dst = append(dst, `"},"hostname":"`...)
	dst = appendText(dst, h.host)
	dst = append(dst, `","appname":"`...)
	dst = appendText(dst, h.app)
	if len(h.pid) > 0 {
		dst = append(dst, `","procid":"`...)
		dst = appendText(dst, h.pid)
	}
	return append(dst, "\"}}}\n"...)
}

var (
	facilities = [24]string{"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp", "audit", "alert", "clock",
		"local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7"}
	severities = [8]string{"emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"}
)

func (h *header) priority(b []byte) (rest []byte, ok bool) {
	if len(b) < 5 || b[0] != '<' {
		return nil, false
	}
	n, i := 0, 1
	for ; i < 4 && b[i]-'0' < 10; i++ {
		n = n*10 + int(b[i]-'0')
	}
	if b[i] != '>' || n > 191 {
		return nil, false
	}
	h.pri = n
	return b[i+1:], true
}

func (h *header) rfc5424(b []byte) {
	at, b := word(b)
	h.host, b = word(b)
	h.app, b = word(b)
	h.pid, b = word(b)
	_, b = word(b) // message id
	if len(b) == 0 || len(at) < 20 || at[len(at)-1] != 'Z' {
		return
	}
	h.at = at
	end := 1
	if b[0] == '[' {
		quoted := false
		for end = 1; end < len(b) && (quoted || b[end-1] != ']' || b[end] == '['); end++ {
			switch {
			case b[end] == '\\' && quoted:
				end++
			case b[end] == '"':
				quoted = !quoted
			}
		}
	}
	if end < len(b) {
		h.message = b[end+1:]
	}
}

func (h *header) rfc3164(b []byte) {
	if len(b) < 17 || b[6] != ' ' || b[9] != ':' || b[12] != ':' || b[15] != ' ' {
		return
	}
	month := 1 + bytes.Index([]byte("JanFebMarAprMayJunJulAugSepOctNovDec"), b[:3])/3
	h.at = append(h.stamp[:0], "2026-00-00T00:00:00Z"...)
	h.at[5], h.at[6] = '0'+byte(month/10), '0'+byte(month%10)
	h.at[8], h.at[9] = b[4]|'0', b[5] // a day below 10 has a space before it
	copy(h.at[11:], b[7:15])
	h.host, b = word(b[16:])
	end := bytes.IndexByte(b, ':')
	if end < 0 || end+1 >= len(b) {
		return
	}
	h.app, h.message = b[:end], b[end+2:]
	if i := bytes.IndexByte(h.app, '['); i >= 0 {
		h.app, h.pid = h.app[:i], h.app[i+1:end-1]
	}
}

func word(b []byte) (w, rest []byte) {
	i := bytes.IndexByte(b, ' ')
	if i < 0 {
		return b, nil
	}
	return b[:i], b[i+1:]
}

// appendText appends s as the inside of a JSON string, looking at eight bytes at a
// time for one that must be escaped.
func appendText(dst, s []byte) []byte {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	done := 0
	for i := 0; i < len(s); {
		if i+8 <= len(s) {
			w := binary.LittleEndian.Uint64(s[i:])
			quote, back := w^ones*'"', w^ones*'\\'
			hit := ((w-ones*0x20)&^w | (quote-ones)&^quote | (back-ones)&^back) & tops
			if hit == 0 {
				i += 8
				continue
			}
			i += bits.TrailingZeros64(hit) / 8
		} else if c := s[i]; c >= 0x20 && c != '"' && c != '\\' {
			i++
			continue
		}
		dst = append(dst, s[done:i]...)
		if c := s[i]; c == '"' || c == '\\' {
			dst = append(dst, '\\', c)
		} else {
			dst = append(dst, '\\', 'u', '0', '0', '0'+c>>4, "0123456789abcdef"[c&15])
		}
		i++
		done = i
	}
	return append(dst, s[done:]...)
}
