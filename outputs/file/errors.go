package file

import (
	"errors"
	"fmt"
	"syscall"

	"spillway/outputs"
)

// errStranger means that another file is where an object belongs.
var errStranger = errors.New("a file with other bytes is there")

// fullError means that MAX_BYTES leaves no room.
type fullError struct {
	used, need int64
	max        outputs.Size
}

func (e *fullError) Error() string {
	return fmt.Sprintf("the directory holds %d bytes, %d more exceed %v", e.used, e.need, e.max)
}

// unfitError means that one batch is larger than the directory may become.
type unfitError struct {
	size int
	max  outputs.Size
}

func (e *unfitError) Error() string {
	return fmt.Sprintf("a batch of %d bytes, larger than MAX_BYTES (%v)", e.size, e.max)
}

// isFull reports whether there was no room.
func isFull(err error) bool {
	var full *fullError
	return errors.As(err, &full) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// classes says what follows a system error, and what the operator should do.
var classes = []struct {
	errs   []syscall.Errno
	action outputs.Action
	hint   string
}{
	{[]syscall.Errno{syscall.ENOSPC, syscall.EDQUOT}, outputs.Failover,
		"free space on the disk: let a consumer take files away"},
	{[]syscall.Errno{syscall.EIO, syscall.ESTALE, syscall.ENXIO, syscall.ENODEV}, outputs.Failover,
		"the disk fails or the mount is gone: see the kernel log"},
	{[]syscall.Errno{syscall.EROFS}, outputs.Misconfigured,
		"mount the file system writable"},
	{[]syscall.Errno{syscall.EPERM, syscall.EOPNOTSUPP, syscall.ENOSYS, syscall.EMLINK}, outputs.Misconfigured,
		"the file system refuses link(2): use one with hard links, not FAT or exFAT; or the directory is immutable"},
	{[]syscall.Errno{syscall.EACCES}, outputs.Misconfigured,
		"let the agent's user write and list the directory; under systemd also ReadWritePaths"},
	{[]syscall.Errno{syscall.ENOTDIR, syscall.ELOOP, syscall.EISDIR, syscall.ENAMETOOLONG}, outputs.Misconfigured,
		"the path of the output must be a directory"},
}

// error is the classified form of err, which ended op.
func (o *Output) error(op string, stored outputs.Stored, err error) error {
	e := &outputs.Error{Output: o.name, Op: op, Stored: stored, Action: outputs.Retry, Err: err}
	var full *fullError
	var unfit *unfitError
	switch {
	case errors.As(err, &full):
		e.Action, e.Hint = outputs.Failover, "let a consumer take files away, or raise MAX_BYTES"
	case errors.As(err, &unfit):
		e.Action, e.Hint = outputs.Unfit, "raise MAX_BYTES"
	case errors.Is(err, errStranger):
		e.Action, e.Hint = outputs.Misconfigured, "move that file away: it was changed after it was written, or something else wrote it"
	default:
		for _, c := range classes {
			for _, errno := range c.errs {
				if errors.Is(err, errno) {
					e.Action, e.Hint = c.action, c.hint
					return e
				}
			}
		}
	}
	return e
}
