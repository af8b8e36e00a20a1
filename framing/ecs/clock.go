package ecs

import "time"

// clock writes times as RFC 3339 in UTC and keeps the text of the last one:
// most records share the second, and those of one read the whole receive time.
type clock struct {
	second int64 // since 1970
	nano   int
	text   [len("2006-01-02T15:04:05.000000000Z")]byte
	length int // of text; 0: nothing is kept
}

// threeDigits are 000 to 999.
var threeDigits = func() (t [1000][3]byte) {
	for i := range t {
		t[i] = [3]byte{'0' + byte(i/100), '0' + byte(i/10%10), '0' + byte(i%10)}
	}
	return t
}()

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
	second, nano := t.Unix(), t.Nanosecond()
	if second != c.second || c.length == 0 {
		var b [64]byte
		copy(c.text[:len(secondLayout)], t.UTC().AppendFormat(b[:0], secondLayout))
		c.second, c.nano = second, -1
	}
	if nano != c.nano {
		c.nano = nano
		n := len(secondLayout)
		if nano != 0 {
			// Nine digits: three times three, the last ones often zeros.
			c.text[n] = '.'
			millis, rest := nano/1e6, nano%1e6
			copy(c.text[n+1:], threeDigits[millis][:])
			copy(c.text[n+4:], threeDigits[rest/1e3][:])
			copy(c.text[n+7:], threeDigits[rest%1e3][:])
			n += 10
			for c.text[n-1] == '0' {
				n--
			}
		}
		c.text[n] = 'Z'
		c.length = n + 1
	}
	return append(dst, c.text[:c.length]...)
}
