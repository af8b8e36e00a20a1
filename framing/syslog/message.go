package syslog

import "time"

// Message holds what a header parse found. Every slice aliases the input of
// Parse and is valid as long as that is; a nil slice is an absent (or NIL)
// field. The zero value is ready; Parse resets it.
type Message struct {
	Priority int // 0..191; -1: none was sent
	Version  []byte // RFC 5424 VERSION as sent, "1" as a rule; nil for RFC 3164

	Time    time.Time // header time; meaningful with HasTime
	HasTime bool      // false: absent, NIL or not parsable: the receive time applies

	Hostname []byte
	AppName  []byte
	ProcID   []byte
	MsgID    []byte

	// SD is the STRUCTURED-DATA of an RFC 5424 message as sent, brackets
	// included, already validated: ecs walks it with NextElement/NextParam
	// without checking again. nil for none or NIL.
	SD []byte

	// Text is MSG: without BOM, without the one space that ends the header.
	// When nothing of the header was parsable it is the whole input.
	Text []byte

	// Flags that the header carried (Cisco clock marks, merged SD elements, …).
	Flags Flags

	// Err is what was wrong, "" for nothing; constant texts only, so that a
	// failure does not allocate. Pos is the 1-based offset it was found at.
	// Fields parsed before the fault are kept.
	Err string
	Pos int
}

// Flags of a parsed header.
type Flags uint8
