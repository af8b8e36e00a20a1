// Package syslog parses the headers of syslog messages: RFC 5424, and BSD
// syslog (RFC 3164) as it is really sent.
//
// A Parser never fails, never panics, never allocates, and its time is linear
// in the input. What it can't parse it leaves in Message.Text and tells in
// Message.Err or Message.Flags. All slices of a Message alias the input. Use
// one Parser per connection: it remembers the last minute and zone offset, which
// makes it fast, never different.
//
// # Order of detection
//
//  1. CR, LF and NUL at the end are framing that a counting sender counted, and
//     a BOM in front of everything is none of the message: both are left out.
//  2. An octet count ("45 ") in front of a valid priority is left out (OctetCount).
//  3. "<" must begin a priority, 0 to 191 without leading zeros; otherwise Err,
//     and the whole line is text.
//  4. Behind it, a number of one to three digits and a space are the version of
//     RFC 5424. With Auto this must also look like it: a date behind the version,
//     or structured data in its column. "<14>3 files copied" is a text.
//  5. A version out of range, or one letter, in front of an RFC 3339 time is
//     RFC 5424 with Err; the other columns are parsed.
//  6. All else is BSD syslog (RFC5424: Err). A line with neither priority nor
//     time nor tag is plain text with Auto, and Err with RFC3164.
//
// # RFC 5424
//
//	"<" pri ">" version SP time SP host SP app SP pid SP msgid SP (sd / "-") [SP [BOM] text]
//
// Every column but the version may be "-". No column is cut to the lengths of
// the RFC. A time that is none is a fault, and the other columns are parsed; an
// empty column (two spaces) and a control character are faults that move
// nothing. A time or a version at fault is in no column: it is kept as Fault. If the header ends early, the columns so far are kept, and the whole
// line is text.
//
// Structured data that is not conformant, or that is followed by anything but a
// space, stays in front of the text (SDInText). It is no Err: much
// of what is met is a message whose sender left structured data out. Values
// without quotes (VMware) are accepted, as are names longer than 32 bytes. See
// sd.go for the grammar.
//
// # BSD syslog
//
//	["<" pri ">" *SP] [cisco] [time [":"]] [SP host] [SP tag] [SP text]
//
//	cisco = [*digit ":" SP] [origin ":" SP] ["*" / "."]        in front of a time, an uptime or "%"
//	time  = Mmm d [yyyy] clock tail / yyyy Mmm d clock tail / mm/dd/yyyy:clock tail
//	      / yyyy-mm-dd ("T" / SP) clock [offset] tail
//	clock = hh:mm:ss [("." / ",") *digit]
//	tail  = [AM / PM] [zone] [yyyy]                            zone and year in either order
//	host  = 1*255(letter / digit / one of -._/@~+#%) / IPv6 / "[" IP "]" / ("quoted")
//	tag   = name ":" (SP / end) / name "[" pid "]" [":"]
//
// Parsers differ where this is ambiguous. Here:
//
//   - A host is expected behind a time only. It is the next word, unless that is
//     a tag, begins with "%", or is the last of the line. Without a priority and
//     behind an ISO time it must have a tag behind it: "2026-11-20 12:00:00 INFO
//     started" is what applications write to their own logs.
//   - A bare word is text, not a tag (as Elastic; syslog-ng and rsyslog call it
//     the program), and so is one whose colon no space follows ("CEF:0|..."),
//     and a number.
//   - Without a time a pid needs its colon.
//   - "last message repeated" and "-- MARK --" are texts, not hosts; "Message
//     forwarded from HOST:" is a host.
//   - Text loses one leading space, not more.
//   - A Cisco uptime in place of the time is left out (Uptime).
//
// # Times
//
// Message.Time is UTC. Stamps without a zone are in the parser's zone; at a
// change of its offset the choice is that of time.Date. Names of zones are those
// of a closed list, in any case, and "Z"; an unknown one of two to five upper-case
// letters between the time and the ": %" of a Cisco tag is skipped (UnknownZone).
// Without a year the latest is taken that puts the time no more than 24 hours
// ahead of reception, for 29 February the latest leap year that does.
//
// Lower-case "t" and "z", a space for "T", a comma for the dot, offsets without
// colon or minutes, and a missing offset are accepted everywhere; an offset of
// 24 hours or 60 minutes is not. Of more than nine digits nine are kept
// (FractionCut). Second 60 becomes the last nanosecond of second 59
// (LeapSecond). In RFC 5424 a dot needs a digit behind it.
package syslog
