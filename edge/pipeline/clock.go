package pipeline

import (
	"time"

	"spillway/buffer/batch"
)

// clock says whether times may be trusted. It asks at most once a second.
type clock struct {
	synchronised func() bool // nil: it is
	asked        time.Time
	flag         batch.Flags
}

// flags are those of a batch with records that are received now.
func (c *clock) flags() batch.Flags {
	if c.synchronised == nil {
		return 0
	}
	if now := time.Now(); c.asked.IsZero() || now.Sub(c.asked) >= time.Second {
		c.asked, c.flag = now, 0
		if !c.synchronised() {
			c.flag = batch.Unsynced
		}
	}
	return c.flag
}
