package framing

import (
	"errors"
	"fmt"
	"strconv"
)

// Mode says how a stream is cut into messages.
type Mode uint8

// The modes. The numbers are internal; the names of ParseMode are the interface.
const (
	Auto      Mode = 0 // per frame: octet counted, or up to LF or NUL
	Delimiter Mode = 1 // up to the delimiter, nothing else
	RFC6587   Mode = 2 // per frame: octet counted, or up to the delimiter (RFC 6587 section 3.4)
	Octet     Mode = 3 // octet counted only (RFC 5425 section 4.3)
	NUL       Mode = 4 // up to NUL, nothing else
	JSONX     Mode = 5 // the records of Vault's `format=jsonx`, which nothing delimits
)

var modeNames = [...]string{Auto: "auto", Delimiter: "delimiter", RFC6587: "rfc6587", Octet: "octet", NUL: "nul", JSONX: "jsonx"}

// ParseMode reads one of auto, delimiter, rfc6587, octet, nul and jsonx.
func ParseMode(s string) (Mode, error) {
	for m, name := range modeNames {
		if s == name {
			return Mode(m), nil
		}
	}
	return 0, fmt.Errorf("unknown framing %q: use auto, delimiter, rfc6587, octet, nul or jsonx", s)
}

// String returns the name that ParseMode reads.
func (m Mode) String() string { return nameOf(modeNames[:], int(m)) }

// Oversize says what becomes of a message that is longer than MaxMessageSize.
type Oversize uint8

// The over-size policies.
const (
	Truncate Oversize = 0 // hand out the first MaxMessageSize bytes, flagged Truncated; discard the rest
	Split    Oversize = 1 // hand out all of it in parts of at most MaxMessageSize bytes, each flagged Part
	Drop     Oversize = 2 // discard all of it
	Close    Oversize = 3 // as Truncate, and the stream is broken: the connection is to be closed
)

var oversizeNames = [...]string{Truncate: "truncate", Split: "split", Drop: "drop", Close: "close"}

// ParseOversize reads one of truncate, split, drop and close.
func ParseOversize(s string) (Oversize, error) {
	for o, name := range oversizeNames {
		if s == name {
			return Oversize(o), nil
		}
	}
	return 0, fmt.Errorf("unknown over-size policy %q: use truncate, split, drop or close", s)
}

// String returns the name that ParseOversize reads.
func (o Oversize) String() string { return nameOf(oversizeNames[:], int(o)) }

// MultilineRule says which lines of a stream are one message.
type MultilineRule uint8

// The multi-line rules.
const (
	MultilineNone MultilineRule = 0 // each line is a message
	MultilinePRI  MultilineRule = 1 // a line that does not begin with a PRI goes on with the message before it
)

var multilineNames = [...]string{MultilineNone: "off", MultilinePRI: "pri"}

// ParseMultiline reads one of off and pri.
func ParseMultiline(s string) (MultilineRule, error) {
	for m, name := range multilineNames {
		if s == name {
			return MultilineRule(m), nil
		}
	}
	return 0, fmt.Errorf("unknown multi-line rule %q: use off or pri", s)
}

// String returns the name that ParseMultiline reads.
func (m MultilineRule) String() string { return nameOf(multilineNames[:], int(m)) }

func nameOf(names []string, i int) string {
	if i < len(names) {
		return names[i]
	}
	return strconv.Itoa(i)
}

// DefaultMaxMessageSize is the limit of a message in bytes unless another is set.
const DefaultMaxMessageSize = 20 << 20

// Options of a Splitter. The zero value is Auto, LF, 20 MiB, truncate.
type Options struct {
	Mode Mode

	// Delimiter ends a frame that is not counted, in the modes Auto, Delimiter and
	// RFC6587: any byte string, taken off exactly. Nil is LF, and LF takes one CR
	// before it along. A delimiter that is not LF switches off what Auto skips
	// between frames, and one that contains NUL that NUL also ends a frame.
	Delimiter []byte

	MaxMessageSize int // bytes; 0 is DefaultMaxMessageSize
	Oversize       Oversize

	// Multiline joins lines in the modes Auto, Delimiter and RFC6587. The others know
	// no lines, and it changes nothing there.
	Multiline MultilineRule

	// NonSyslog lets Auto and Datagram also believe a count that is followed by `{`
	// or a byte order mark, for inputs whose messages are not syslog.
	NonSyslog bool
}

func (o Options) maxMessageSize() int {
	if o.MaxMessageSize > 0 {
		return o.MaxMessageSize
	}
	return DefaultMaxMessageSize
}

// ParseDelimiter decodes the escapes \n \r \t \0 \\ and \xHH (two hex digits) and takes
// every other byte as it is. The result is never empty.
func ParseDelimiter(s string) ([]byte, error) {
	if s == "" {
		return nil, errors.New(`empty delimiter: leave it out for \n`)
	}
	d := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			d = append(d, s[i])
			continue
		}
		if i++; i == len(s) {
			return nil, fmt.Errorf(`delimiter %q ends in a lone backslash: write \\ for one`, s)
		}
		switch s[i] {
		case 'n':
			d = append(d, '\n')
		case 'r':
			d = append(d, '\r')
		case 't':
			d = append(d, '\t')
		case '\\':
			d = append(d, '\\')
		case '0':
			// C would read up to three octal digits here.
			if i+1 < len(s) && s[i+1] >= '0' && s[i+1] <= '7' {
				return nil, fmt.Errorf(`delimiter %q has an octal escape: write it as \xHH`, s)
			}
			d = append(d, 0)
		case 'x':
			if i+2 >= len(s) {
				return nil, fmt.Errorf(`delimiter %q: \x needs two hex digits`, s)
			}
			b, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if err != nil {
				return nil, fmt.Errorf(`delimiter %q: \x needs two hex digits, not %q`, s, s[i+1:i+3])
			}
			d = append(d, byte(b))
			i += 2
		default:
			return nil, fmt.Errorf(`delimiter %q: unknown escape %q: use \n \r \t \0 \\ or \xHH`, s, s[i-1:i+1])
		}
	}
	return d, nil
}
