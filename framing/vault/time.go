package vault

import "time"

// When returns the time of the entry in UTC; ok is false if it has none, or none
// that RFC 3339 knows. Of more than nine digits of a fraction nine count, and
// second 60 is the first of the next minute.
func (e *Entry) When() (t time.Time, ok bool) {
	var buf [64]byte
	v := e.values[Time]
	if v.Kind != String || len(v.Raw) > len(buf) {
		return time.Time{}, false
	}
	return parseTime(v.AppendText(buf[:0]))
}

// parseTime reads
//
//	2026-11-20T12:00:00[.356625452](Z|+01:00)      T, Z or t, z; a space for T
func parseTime(b []byte) (t time.Time, ok bool) {
	const seconds = len("2026-11-20T12:00:00")
	if len(b) <= seconds || b[4] != '-' || b[7] != '-' || b[10]|0x20 != 't' && b[10] != ' ' || b[13] != ':' || b[16] != ':' {
		return t, false
	}
	year := 100*two(b) + two(b[2:])
	month, day := two(b[5:]), two(b[8:])
	hour, minute, second := two(b[11:]), two(b[14:]), two(b[17:])
	if two(b) < 0 || two(b[2:]) < 0 || month < 1 || month > 12 || day < 1 || day > daysIn(month, year) ||
		hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0 || second > 60 {
		return t, false
	}
	b = b[seconds:]
	nano := 0
	if b[0] == '.' {
		i, unit := 1, 100_000_000
		for ; i < len(b) && '0' <= b[i] && b[i] <= '9'; i++ {
			nano += int(b[i]-'0') * unit
			unit /= 10
		}
		if i == 1 || i == len(b) {
			return t, false
		}
		b = b[i:]
	}
	offset := 0
	switch {
	case len(b) == 1 && b[0]|0x20 == 'z':
	case len(b) == len("+01:00") && (b[0] == '+' || b[0] == '-') && b[3] == ':':
		h, m := two(b[1:]), two(b[4:])
		if h < 0 || h > 23 || m < 0 || m > 59 {
			return t, false
		}
		if offset = h*3600 + m*60; b[0] == '-' {
			offset = -offset
		}
	default:
		return t, false
	}
	return time.Date(year, time.Month(month), day, hour, minute, second-offset, nano, time.UTC), true
}

// two reads two digits, negative if they are none.
func two(b []byte) int {
	if b[0] < '0' || b[0] > '9' || b[1] < '0' || b[1] > '9' {
		return -1 << 16
	}
	return int(b[0]-'0')*10 + int(b[1]-'0')
}

func daysIn(month, year int) int {
	switch month {
	case 2:
		if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
			return 29
		}
		return 28
	case 4, 6, 9, 11:
		return 30
	}
	return 31
}
