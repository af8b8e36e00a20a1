package framing

// Datagram returns the message of one datagram (RFC 5426 section 3.1: one message each).
// Trailing LF, CR LF and NUL are taken off; inner ones stay. An octet count in front,
// `45 <13>…`, which a sender set to stream framing leaves there, is taken off and
// flagged Counted. Without content it returns false. Of o only MaxMessageSize, Oversize
// and NonSyslog count: what is longer keeps its first bytes, flagged Truncated, under
// Split and Close too; under Drop it returns false with the flag set. The message
// aliases b.
func Datagram(b []byte, o Options) (Message, bool) {
	var m Message
	if _, n, _ := octetCount(b); n > 0 {
		if ok, _ := beginsMessage(b[n:], o.NonSyslog); ok {
			b, m.Flags = b[n:], Counted
		}
	}
	b = trimEnd(b)
	if limit := o.maxMessageSize(); len(b) > limit {
		m.Flags |= Truncated
		if o.Oversize == Drop {
			return m, false
		}
		b = b[:limit]
	}
	m.Data = b[:len(b):len(b)]
	return m, len(b) > 0
}
