package pipeline

import (
	"spillway/edge/listen"
	"spillway/framing/ecs"
)

// setSender makes from the sender of what follows.
func (s *sink) setSender(from listen.Sender) {
	s.from = from
	s.enc.SetSource(ecs.Source{Addr: from.Addr})
}
