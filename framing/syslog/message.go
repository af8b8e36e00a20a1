package syslog

import "time"

// Message holds what a header parse found. Every slice aliases the input of
// Parse and is valid as long as that is; a nil slice is an absent (or NIL)
// field. The zero value is ready; Parse resets it.
type Message struct {
	Priority int    // 0..191; -1: none was sent
	Version  []byte // RFC 5424 VERSION as sent, "1" as a rule; nil for RFC 3164

	Time    time.Time // header time, in UTC, nanoseconds; meaningful with HasTime
	HasTime bool      // false: absent, NIL or not parsable: the receive time applies

	Hostname []byte
	AppName  []byte
	ProcID   []byte
	MsgID    []byte

	// SD is the STRUCTURED-DATA of an RFC 5424 message as sent, brackets
	// included, already validated: NextElement and NextParam walk it without
	// checking again. nil for none or NIL.
	SD []byte

	// Sequence is the number that Cisco IOS puts in front of its time, digits
	// only; nil for none.
	Sequence []byte

	// Text is MSG: without BOM, without the one space that ends the header.
	// It is always the end of the input (less trailing CR, LF and NUL), and the
	// whole of it when nothing of the header was parsable or when the input ends
	// inside the header.
	Text []byte

	// Flags that the header carried or that parsing it raised.
	Flags Flags

	// Err is what was wrong, "" for nothing; constant texts only, so that a
	// failure does not allocate. Pos is the 1-based offset in the input at
	// which it was found. One fault is told: the one that Fault is about, else
	// the first. Fields that could be parsed, before or behind it, are kept.
	Err string
	Pos int

	// Fault is the timestamp or version that Err is about, as it was sent, or the
	// name that UnknownZone is about. It is in no other field, unless Text is the
	// whole line. nil: there is no such word.
	Fault []byte
}

// fail records the first fault; i is the 0-based offset.
func (m *Message) fail(text string, i int) {
	if m.Err == "" {
		m.Err, m.Pos = text, i+1
	}
}

// failWord records that b[i:end] is at fault, which no other field holds. It
// goes before a fault that lost nothing.
func (m *Message) failWord(text string, b []byte, i, end int) {
	m.Err, m.Pos, m.Fault = text, i+1, b[i:end]
}

// Flags of a parsed header.
type Flags uint16

// Flags. The numbers are internal.
const (
	ClockUnset  Flags = 1 << 0  // Cisco "*": the sender's clock was never set
	ClockLost   Flags = 1 << 1  // Cisco ".": set once, its time server is lost
	Uptime      Flags = 1 << 2  // Cisco sent its uptime in place of a time; it is left out
	YearGuessed Flags = 1 << 3  // the header has no year; it was chosen by the receive time
	UnknownZone Flags = 1 << 4  // a zone name that is in no table: taken as the parser's zone
	FractionCut Flags = 1 << 5  // more than nine digits of a second; nine were kept
	LeapSecond  Flags = 1 << 6  // second 60: set to the last nanosecond of second 59
	SDInText    Flags = 1 << 7  // STRUCTURED-DATA was not conformant: Text begins with it
	DuplicateID Flags = 1 << 8  // an SD-ID occurs twice; set unchecked beyond 32 elements
	OctetCount  Flags = 1 << 9  // an octet count stood in front of the message
	Mark        Flags = 1 << 10 // Text is a "-- MARK --" of syslogd
)
