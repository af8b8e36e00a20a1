package file

import (
	"context"
	"fmt"
	"os"
	"time"

	"spillway/outputs"
)

var _ outputs.Inspector = (*Output)(nil)

// Inspect implements outputs.Inspector.
func (o *Output) Inspect(ctx context.Context, need outputs.Need) (all []outputs.Finding) {
	start := time.Now()
	if err := o.Probe(ctx, ""); err != nil {
		return append(all, outputs.FindingOf("write", err))
	}
	all = append(all, outputs.Finding{Level: outputs.Good, What: "write",
		Text: fmt.Sprintf("%s: a file was written, fsynced, linked and removed, as user %d, in %s", o.c.Dir, os.Getuid(), outputs.Took(start))})

	o.mu.Lock()
	used := o.used
	o.mu.Unlock()
	disk, err := outputs.DiskOf(o.c.Dir)
	if err != nil {
		return append(all, outputs.FindingOf("disk", err))
	}
	left := int64(o.c.MaxBytes) - used
	f := outputs.Finding{Level: outputs.Good, What: "disk",
		Text: fmt.Sprintf("%s, %s free; %s of MAX_BYTES=%v are used", disk.Kind, outputs.Human(disk.Free), outputs.Human(used), o.c.MaxBytes)}
	if disk.Free < left {
		f.Level, f.Hint = outputs.Warning, "the disk is full before MAX_BYTES is reached: free space, or lower MAX_BYTES"
	}
	return append(all, f)
}
