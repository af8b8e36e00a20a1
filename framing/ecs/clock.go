package ecs

import "time"

// clock writes times as RFC 3339 in UTC and keeps the text of the last second,
// which most records share.
type clock struct {
	second int64 // since 1970
	text   [len(secondLayout)]byte
}

const secondLayout = "2006-01-02T15:04:05"

// The seconds that four digits of a year can name.
var (
	firstSecond = time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
	lastSecond  = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC).Unix()
)

// writable says that t has a form in RFC 3339.
func writable(t time.Time) bool {
	s := t.Unix()
	return s >= firstSecond && s <= lastSecond
}

// appendTime appends t, which is writable.
func (c *clock) appendTime(dst []byte, t time.Time) []byte {
	if s := t.Unix(); s != c.second || c.text[0] == 0 {
		var b [64]byte
		copy(c.text[:], t.UTC().AppendFormat(b[:0], secondLayout))
		c.second = s
	}
	dst = append(dst, c.text[:]...)
	if ns := t.Nanosecond(); ns != 0 {
		var f [10]byte
		f[0] = '.'
		n := len(f)
		for i := n - 1; i > 0; i-- {
			f[i] = byte('0' + ns%10)
			ns /= 10
		}
		for f[n-1] == '0' {
			n--
		}
		dst = append(dst, f[:n]...)
	}
	return append(dst, 'Z')
}
