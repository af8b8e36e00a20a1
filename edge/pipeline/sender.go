package pipeline

import (
	"spillway/edge/listen"
	"spillway/framing/ecs"
)

// setSender makes from the sender of what follows. Connections take turns at a sink, so
// that this happens much more often than somebody connects: what costs is kept with the
// connection.
func (s *sink) setSender(from listen.Sender) {
	s.from = from
	source := ecs.Source{Addr: from.Addr}
	if c := from.Conn; c != nil {
		source.Proxy = c.Proxy
		if c.TLS != nil {
			told, ok := c.Told.(*ecs.TLS)
			if !ok {
				told = ecs.NewTLS(c.TLS.Version, c.TLS.Cipher, c.TLS.Client)
				c.Told = told
			}
			source.TLS = told
		}
	}
	s.enc.SetSource(source)
}
