package bench

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"strconv"
	"time"
)

// What the speed-of-light program does with a line when it parses: the fewest
// steps from an RFC 3164 or RFC 5424 header to a document that can be searched.
// It is a measure and no parser: what it does not expect becomes the message.

// header is a line taken apart; slices are parts of the line.
type header struct {
	pri            int
	at             int64 // Unix time in microseconds, 0: none
	host, app, pid []byte
	message        []byte
}

func appendDocument(dst, line []byte, clock *second) []byte {
	h := header{pri: 13, message: line}
	if rest, ok := h.priority(line); ok {
		if len(rest) > 2 && rest[0] == '1' && rest[1] == ' ' {
			h.rfc5424(rest[2:])
		} else {
			h.rfc3164(rest)
		}
	}
	dst = append(dst, `{"@timestamp":"`...)
	dst = clock.append(dst, h.at)
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
	h.at = unixMicro(two(at)*100+two(at[2:]), two(at[5:]), two(at[8:]), at[11:])
	for i, unit := 20, int64(100_000); i < len(at)-1 && unit > 0; i, unit = i+1, unit/10 {
		h.at += int64(at[i]-'0') * unit
	}
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
	h.at = unixMicro(2026, month, int(b[4]&15)*10+int(b[5]&15), b[7:])
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

func two(b []byte) int { return int(b[0]&15)*10 + int(b[1]&15) }

// unixMicro is the Unix time in microseconds of a UTC date and of clock, hh:mm:ss.
func unixMicro(year, month, day int, clock []byte) int64 {
	if month < 3 { // the leap day is the last of a year that begins in March
		year, month = year-1, month+12
	}
	days := year*365 + year/4 - year/100 + year/400 + (153*month-457)/5 + day - 719469
	return (int64(days)*86400 + int64(two(clock)*3600+two(clock[3:])*60+two(clock[6:]))) * 1e6
}

// second renders times; the text of a whole second is kept for the next.
type second struct {
	at   int64
	text []byte
}

func (s *second) append(dst []byte, micro int64) []byte {
	if at := micro / 1e6; at != s.at || s.text == nil {
		s.at = at
		s.text = time.Unix(at, 0).UTC().AppendFormat(s.text[:0], "2006-01-02T15:04:05.")
	}
	dst = append(dst, s.text...)
	var b [7]byte
	b[6] = 'Z'
	for i, n := 5, micro%1e6; i >= 0; i-- {
		b[i] = byte('0' + n%10)
		n /= 10
	}
	return append(dst, b[:]...)
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
