package listen

// Memory bounds the partial messages of all connections of a lane together: bytes
// that came and do not make a message yet. Safe for concurrent use.
type Memory struct {
	limit int64
}

// NewMemory returns a Memory of limit bytes.
func NewMemory(limit int64) *Memory { return &Memory{limit: limit} }
