// Package framing cuts what a sender sent into messages.
//
// It is pure: no sockets, no clock, no files, no goroutines. A Splitter belongs
// to one stream connection; its owner alternates Fill (one read) and Next (every
// message that is complete), and calls End when the stream has ended. Datagram
// does the same for one datagram. Neither may be used by two goroutines at once.
//
// # Guarantees
//
//   - The messages depend on the bytes alone, never on how they were cut into
//     reads. (Three things follow the reads, because only the owner's clock decides
//     them: what Cut and Release hand out, and how much of the text goes along with a
//     framing error.)
//   - A message is a run of bytes that the peer sent, in order. Nothing is
//     invented; what is left out is the framing itself, trailing NULs, frames
//     without content, and what Stats.Discarded counts.
//   - Memory follows what a peer sent, never what it announced: the buffer is at most
//     four times the bytes that came (and at least 4 KiB), and never larger than
//     MaxMessageSize plus 512 KiB. A connection whose peer has sent all it had, and no
//     half message, holds 4 KiB, and nothing after Settle.
//   - Work is linear in the bytes received, for any message size and any read size.
//   - Next allocates nothing.
//
// # How a frame is recognised
//
// RFC 6587 describes two framings of syslog over a stream and RFC 5425 prescribes
// the first of them for TLS: octet counting (`5 <13>x`, section 3.4.1), and
// non-transparent framing (`<13>x\n`, section 3.4.2; NUL and CR LF are also seen).
// Auto and RFC6587 decide anew for each frame:
//
//	a count     1-9, then at most eight digits, then one space; in Auto followed by
//	            `<` (with Options.NonSyslog also by `{` or a UTF-8 byte order mark).
//	            While only digits have come, wait.
//	otherwise   up to the delimiter; in Auto up to the delimiter or NUL.
//
// With the default delimiter, LF, one CR before it goes too, and Auto skips what an
// earlier frame left behind: LF, CR, NUL, and one space if `<` or a count follows it
// (Cisco ASA ends its frames in LF and space). Trailing NULs are taken off in all
// modes, and trailing LF, CR LF and NUL from frames that were counted (rsyslog counts
// the LF of its template) or ended in NUL.
//
// What is ambiguous is decided like this:
//
//	sent                            Auto                          RFC6587
//	10 users logged in\n            one line                      `users logg`, `ed in`: it is a valid count
//	2026-11-20 12:00:00 text\n      one line                      one line
//	5 <13>xyz\n                     `<13>x`, `yz`                 the same
//	0 <13>x\n, 007 <13>x\n          one line                      one line
//	1234567890 <13>x\n              one line (ten digits)         one line
//	12 users, end of stream         one line, unterminated        nothing: 9 bytes of 12 are `Partial`
//	100 <13>short, end of stream    nothing, counted `Partial`    the same
//	<1>a\0<1>b\nc\0                 `<1>a`, `<1>b\nc`             `<1>a\0<1>b`, `c`
//	`  at f()\n`                    kept with its spaces          the same
//
// The last but one is Python's SysLogHandler, which ends everything in NUL and sends
// tracebacks: behind a frame that began with `<` and ended in NUL, LF ends the next
// frame that begins with `<` only if a frame that begins with `<` or a count follows, or
// the end of the stream. Should such a sender change to LF, one message is Waiting for the
// next one, or for Release. That such a sender's very first message is a traceback can't be
// known at its first LF: it comes as lines, unless they are joined by their PRI.
//
// # Lines that are one message
//
// With MultilinePRI a line that does not begin with `<`, one to three digits and `>` goes on
// with the message before it, in Auto, Delimiter and RFC6587:
//
//	sent                              messages
//	<13>a\n  at f()\n<13>b\n          `<13>a\n  at f()`; `<13>b` is Waiting
//	text\nmore\n<13>b\n               `text\nmore`; `<13>b` is Waiting: what no PRI precedes is a message too
//	<13>a\n\n<13>b\n                  `<13>a`: line ends behind the last line go
//	<13>a\nb\0<13>c                   Auto: `<13>a\nb`, since NUL ends a message, at once
//	<13>a\nb\n5 <13>cd\n              Auto, RFC6587: `<13>a\nb`, `<13>c`; `d` is Waiting
//
// A counted frame ends by its count and is joined to nothing; one that follows a line is
// recognised by a count with a PRI behind it. A message that has several lines is flagged
// Multiline. The last one waits for the next, the end of the stream, or Release, which the
// owner calls when the peer has been quiet for a while. So a message whose lines come with
// a pause between them may come in two.
//
// # JSONx
//
// The audit records of Vault's `format=jsonx` are elements one behind the other without
// anything between them, and their values are not escaped: raw LF and `<` are everyday.
// JSONX follows the tags: a record ends with its member `type`, the last one since members
// are sorted, outside of every object and array. (jsonx.go draws the grammar.)
//
//	sent                                              messages
//	…<json:string name="type">request</json:string>   a record: what stands before it back to the last one
//	vault-a: <json:object name="auth">…               the text in front belongs to the record
//	LF, CR and NUL between records                    skipped: a relay's line ends
//	{"time":…}\n                                      a line of text is a message: the format is json, or a
//	                                                  prefix has an LF in it
//	<json:object name="type">…, or inside an object   goes on: only a string outside of all ends a record
//	…<json:string name="time">…<json:object name="auth">…   two records, the first without a type: a member
//	                                                  out of order, or text, begins the next one
//
// A record without its type (Vault Enterprise can exclude it) so waits for the next one, the
// end of the stream or, once the stream had another such record, for Release; it never
// grows past MaxMessageSize. Whoever can write `</json:string>` and a tag into a value, as
// anyone can into a path, can make the record look like two, or wait for the next one. No
// byte is lost by that, and the record after it is whole. format=json has none of this.
//
// # Limits
//
// A message of exactly MaxMessageSize passes; one byte more is over-size. A line is
// measured without its terminator (and the CR), a counted frame by its count. What
// happens then is Options.Oversize. At the end of the stream a line without its
// delimiter is handed out as Unterminated, an unfinished counted frame is dropped and
// counted (RFC 5425 section 4.4: it may have been cut off by anyone).
//
// In Octet mode anything but a count breaks the stream for good: what is there comes
// as one Invalid message and Broken is true. The other modes never break, unless
// Oversize is Close.
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
	Part         Flags = 1 << 5 // one part of a message longer than the limit, in order; all parts carry it
)

// Message is one message of one sender.
type Message struct {
	// Data is the message without its framing, never empty. It aliases memory of
	// the Splitter (or of the datagram reader) and is valid until the next Fill;
	// later its bytes may be another connection's. Its capacity ends where it ends.
	Data  []byte
	Flags Flags
	// Err says what was wrong with the framing, with Flags&Invalid; a constant
	// text, never an error value, so that nothing allocates per message.
	Err string
}
