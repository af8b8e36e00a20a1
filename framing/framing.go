// Package framing cuts what a sender sent into messages.
//
// It is pure: no sockets, no clock, no files, no goroutines. A Splitter is fed
// by its owner (one connection) and hands out messages that alias its buffer.
package framing

// Flags say what happened to a message on its way through framing. They are
// exported to records as log.flags.
type Flags uint8

// Flags of a message. The numbers are internal; the names travel.
const (
	Truncated    Flags = 1 << 0 // longer than the limit: the first part is kept
	Unterminated Flags = 1 << 1 // the stream ended before the delimiter
	Invalid      Flags = 1 << 2 // a framing error: the bytes are kept, the stream can't be resynchronised
	Counted      Flags = 1 << 3 // a datagram carried an octet count, which was taken off
	Multiline    Flags = 1 << 4 // several lines were joined into one message
)

// Message is one message of one sender.
type Message struct {
	// Data is the message without its framing. It aliases memory of the
	// Splitter (or of the datagram reader) and is valid until the next Fill.
	Data  []byte
	Flags Flags
	// Err says what was wrong with the framing, with Flags&Invalid; a constant
	// text, never an error value, so that nothing allocates per message.
	Err string
}
