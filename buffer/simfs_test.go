package buffer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// simDisk is one directory on a disk that keeps only what it must. It is
// stricter than ext4, xfs and f2fs:
//
//   - written bytes are pending per sector of 512 bytes until Sync. A power cut
//     keeps any subset of them; a sector that was being written may hold garbage,
//     though only in the bytes that were written (power-safe overwrite), or, with
//     spoils, in all of it, also where it was durable;
//   - the size after a cut is anything between the durable and the present one, and
//     what was never written in between is zero, garbage, or what a file that was
//     removed had there;
//   - creates, removes and renames are pending until SyncDir; any subset of them,
//     in order, survives, and of a rename either half;
//   - after a failed Sync the bytes count as clean and any of them are not on the
//     disk: the next Sync says that all is well (Linux);
//   - a create, remove or rename that failed may have been done all the same;
//   - blocks of 4 KiB can't be read, a few times or until they are written again.
//
// Everything it decides comes from rng, so a seed repeats a run. One goroutine uses it.
type simDisk struct {
	mu      sync.Mutex // guards all, while several goroutines use the disk
	rng     *rand.Rand
	names   map[string]*inode // as processes see it
	disk    map[string]*inode // as a power cut would leave it, without pending
	pending []dirOp
	life    int // files of earlier lives are gone

	calls   int  // of any kind
	changes int  // calls that would change the disk
	cutAt   int  // the call at which the power fails; 0: none
	read    int  // bytes that reads have returned
	dead    bool // it has failed
	fail    func(op string, call int, name string) error
	room    int64 // bytes that may still be written; < 0: no limit
	full    error // that says so

	replaced bool            // the cursor was removed
	unwanted map[string]bool // names for which Remove or Quarantine was called

	spoils  bool // no power-safe overwrite
	spoilt  []spoil
	removed [][]byte // what the last removed files held
	bad     map[badBlock]int
	done    map[string]int // calls by kind
}

// spoil is a range of durable bytes that a cut has destroyed, and the file before.
type spoil struct {
	name   string
	before []byte
	lo, hi int
}

// badBlock is a block of 4 KiB of a file that can't be read, so many times more;
// < 0: until it is written.
type badBlock struct {
	n  *inode
	at int
}

type inode struct {
	data  []byte // as processes see it
	disk  []byte
	dirty map[int]span // by sector
}

type span struct{ lo, hi int } // in the sector

// dirOp is one pending change of a name: to an inode, or away.
type dirOp struct {
	name  string
	inode *inode // nil: removed
}

const sector = 512

var (
	errCut   = errors.New("power fails") // during this call
	errDead  = errors.New("power is off")
	errShort = errors.New("write half of it")
)

// keepRemoved is how many removed files' bytes may come up again.
const keepRemoved = 4

func newSimDisk(rng *rand.Rand) *simDisk {
	return &simDisk{rng: rng, names: map[string]*inode{}, disk: map[string]*inode{}, room: -1, full: syscall.ENOSPC, done: map[string]int{}, unwanted: map[string]bool{}}
}

// call, with mu held, counts one call and says how it ends: nil, an injected error, or errCut.
func (d *simDisk) call(op, name string, change bool) error {
	if d.dead {
		return errDead
	}
	d.calls++
	d.done[op]++
	if change {
		d.changes++
	}
	if d.cutAt > 0 && d.calls >= d.cutAt {
		d.dead = true
		return errCut
	}
	if d.fail != nil {
		return d.fail(op, d.calls, name)
	}
	return nil
}

// kill ends the process: open files are gone, the disk's memory is not.
func (d *simDisk) kill() { d.life++ }

// reboot is a power cut and what the disk has afterwards.
func (d *simDisk) reboot() {
	d.kill()
	mode := d.rng.IntN(4)
	for _, op := range d.pending {
		if mode == 0 || mode != 1 && d.rng.IntN(2) == 0 {
			if op.inode == nil {
				delete(d.disk, op.name)
			} else {
				d.disk[op.name] = op.inode
			}
		}
	}
	d.pending = nil
	done := map[*inode]bool{}
	for _, name := range slices.Sorted(maps.Keys(d.disk)) {
		if n := d.disk[name]; !done[n] {
			done[n] = true
			d.crash(name, n)
		}
	}
	d.names = maps.Clone(d.disk)
	d.dead, d.cutAt = false, 0
}

// crash decides what of n's pending bytes a cut has kept.
func (d *simDisk) crash(name string, n *inode) {
	rng := d.rng
	durable := len(n.disk)
	size := durable
	if grown := len(n.data) - durable; grown > 0 {
		switch rng.IntN(3) {
		case 0:
			size = len(n.data)
		case 1:
			size += rng.IntN(grown + 1)
		}
	} else if len(n.dirty) == 0 {
		n.data = append(n.data[:0], n.disk...) // what a failed Sync has lost
		return
	}
	before := n.disk
	out := make([]byte, size)
	if k := copy(out, n.disk); k < size {
		switch rng.IntN(4) {
		case 0:
			garbage(rng, out[k:])
		case 1:
			// At the same place: it looks most like what should be there. Not a cursor: what a
			// removed one held was true once, and may name a higher generation.
			if len(d.removed) > 0 && name != cursorFile {
				if old := d.removed[rng.IntN(len(d.removed))]; k < len(old) {
					copy(out[k:], old[k:])
				}
			}
		}
	}
	mode := rng.IntN(4) // 0: all, 1: nothing, else any subset
	for _, s := range slices.Sorted(maps.Keys(n.dirty)) {
		at := n.dirty[s]
		if mode == 3 && rng.IntN(4) == 0 {
			at.lo += rng.IntN(at.hi - at.lo) // torn in the middle
		}
		lo, hi := min(s*sector+at.lo, size), min(s*sector+at.hi, size)
		what := rng.IntN(4)
		switch {
		case lo == hi || mode == 1:
		case mode == 0 || what < 2:
			copy(out[lo:hi], n.data[lo:hi])
		case what == 2 && d.spoils:
			lo, hi = s*sector, min((s+1)*sector, size)
			garbage(rng, out[lo:hi])
			if lo < durable {
				d.spoilt = append(d.spoilt, spoil{name, before, lo, min(hi, durable)})
			}
		case what == 2:
			garbage(rng, out[lo:hi])
		}
	}
	n.data, n.disk, n.dirty = out, bytes.Clone(out), nil
}

// garbage fills p with anything.
func garbage(rng *rand.Rand, p []byte) {
	for len(p) >= 8 {
		le.PutUint64(p, rng.Uint64())
		p = p[8:]
	}
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
}

// flip inverts one bit of a durable file.
func (d *simDisk) flip(name string, bit int) {
	n := d.names[name]
	n.data[bit/8] ^= 1 << (bit % 8)
	n.disk[bit/8] ^= 1 << (bit % 8)
}

// clone is a copy of a settled disk (right after reboot).
func (d *simDisk) clone(rng *rand.Rand) *simDisk {
	c := newSimDisk(rng)
	for name, n := range d.names {
		c.names[name] = &inode{data: bytes.Clone(n.data), disk: bytes.Clone(n.data)}
	}
	c.disk = maps.Clone(c.names)
	return c
}

// newest is the generation of the newest valid slot of a cursor, 0 if there is none.
func newest(cursor []byte) (g uint64) {
	for i := range 2 {
		if p, err := parseSlot(cursor[min(len(cursor), i*slotSize):min(len(cursor), (i+1)*slotSize)]); err == nil {
			g = max(g, p.generation)
		}
	}
	return g
}

// belief is the generation that a process reads in the cursor and that is not on the
// disk, because a sync has failed; else 0.
func (d *simDisk) belief() uint64 {
	n := d.names[cursorFile]
	if n == nil || d.disk[cursorFile] == n && newest(n.disk) == newest(n.data) {
		return 0
	}
	return newest(n.data)
}

// segments are the names of the segments, oldest first.
func (d *simDisk) segments() (out []string) {
	for _, name := range slices.Sorted(maps.Keys(d.names)) {
		if _, ok := parseName(name); ok {
			out = append(out, name)
		}
	}
	return out
}

func (d *simDisk) List(sub string) ([]FileInfo, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.call("list", sub, false); err != nil {
		return nil, err
	}
	var out []FileInfo
	for _, name := range slices.Sorted(maps.Keys(d.names)) {
		base := name
		if sub != "" {
			base = strings.TrimPrefix(name, sub+"/")
			if base == name {
				continue
			}
		}
		if !strings.Contains(base, "/") {
			out = append(out, FileInfo{base, int64(len(d.names[name].data))})
		}
	}
	return out, nil
}

func (d *simDisk) set(name string, n *inode) {
	if n == nil {
		delete(d.names, name)
	} else {
		d.names[name] = n
	}
	d.pending = append(d.pending, dirOp{name, n})
}

// anyway reports whether a change of a name that ends with err was done.
func (d *simDisk) anyway(err error) bool {
	return err == errCut || err == syscall.EIO && d.rng.IntN(4) == 0
}

func (d *simDisk) Create(name string) (File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.call("create", name, true)
	if err != nil && !d.anyway(err) {
		return nil, err
	}
	if d.names[name] != nil {
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrExist}
	}
	n := &inode{}
	d.set(name, n)
	if err != nil {
		return nil, err
	}
	return &simFile{d, n, name, d.life}, nil
}

func (d *simDisk) Open(name string, write bool) (File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.call("open", name, false); err != nil {
		return nil, err
	}
	n := d.names[name]
	if n == nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return &simFile{d, n, name, d.life}, nil
}

func (d *simDisk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.call("remove", name, true)
	d.unwanted[name] = d.unwanted[name] || err != errDead
	if err != nil && !d.anyway(err) {
		return err
	}
	if d.names[name] == nil {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	n := d.names[name]
	if d.room >= 0 {
		d.room += int64(len(n.data))
	}
	d.replaced = d.replaced || name == cursorFile
	d.removed = append(d.removed, n.disk)
	d.removed = d.removed[max(0, len(d.removed)-keepRemoved):]
	d.set(name, nil)
	return err
}

func (d *simDisk) Quarantine(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.call("quarantine", name, true)
	d.unwanted[name] = d.unwanted[name] || err != errDead
	if err != nil && !d.anyway(err) {
		return err
	}
	n := d.names[name]
	if n == nil {
		return &fs.PathError{Op: "rename", Path: name, Err: fs.ErrNotExist}
	}
	d.set(quarantine+"/"+name, n)
	d.set(name, nil)
	return err
}

func (d *simDisk) SyncDir() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.call("syncdir", "", false); err != nil {
		return err
	}
	d.disk = maps.Clone(d.names)
	d.pending = nil
	return nil
}

func (d *simDisk) Free() (free, total int64, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.call("free", "", false); err != nil {
		return 0, 0, err
	}
	if d.room >= 0 {
		return d.room, 1 << 40, nil
	}
	return 1 << 40, 1 << 40, nil
}

func (d *simDisk) Close() error { return nil }

type simFile struct {
	d    *simDisk
	n    *inode
	name string
	life int
}

func (f *simFile) check(op string, change bool) error {
	if f.life != f.d.life {
		panic(fmt.Sprintf("%s %s: the process that opened it is dead", op, f.name))
	}
	return f.d.call(op, f.name, change)
}

func (f *simFile) ReadAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.check("read", false); err != nil {
		return 0, err
	}
	if off >= int64(len(f.n.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.n.data[off:])
	if len(f.d.bad) > 0 {
		for at := int(off) / block; at*block < int(off)+n; at++ {
			b := badBlock{f.n, at}
			if times := f.d.bad[b]; times > 0 {
				if f.d.bad[b]--; times == 1 {
					delete(f.d.bad, b)
				}
			} else if times == 0 {
				continue
			}
			return max(0, at*block-int(off)), syscall.EIO
		}
	}
	f.d.read += n
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *simFile) WriteAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	err := f.check("write", true)
	if err == nil && f.d.room >= 0 {
		if grow := max(0, off+int64(len(p))-int64(len(f.n.data))); grow > f.d.room {
			p, err = p[:max(0, int64(len(p))-(grow-f.d.room))], f.d.full
		}
		f.d.room -= max(0, off+int64(len(p))-int64(len(f.n.data)))
	} else if err == errDead {
		return 0, err
	} else if err != nil {
		if err != errCut && err != errShort && f.d.rng.IntN(2) == 0 {
			p = nil
		}
		p = p[:f.d.rng.IntN(len(p)+1)]
		if err == errShort {
			err = nil // a short count is all that it says
		}
	}
	if need := int(off) + len(p); need > len(f.n.data) {
		f.n.data = append(f.n.data, make([]byte, need-len(f.n.data))...)
	}
	copy(f.n.data[off:], p)
	if len(f.d.bad) > 0 && len(p) > 0 {
		for at := int(off) / block; at*block < int(off)+len(p); at++ {
			delete(f.d.bad, badBlock{f.n, at})
		}
	}
	if f.n.dirty == nil {
		f.n.dirty = map[int]span{}
	}
	for lo := int(off); lo < int(off)+len(p); {
		s := lo / sector
		hi := min((s+1)*sector, int(off)+len(p))
		at, ok := f.n.dirty[s]
		if !ok {
			at = span{lo - s*sector, hi - s*sector}
		}
		f.n.dirty[s] = span{min(at.lo, lo-s*sector), max(at.hi, hi-s*sector)}
		lo = hi
	}
	return len(p), err
}

func (f *simFile) Size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.check("size", false); err != nil {
		return 0, err
	}
	return int64(len(f.n.data)), nil
}

func (f *simFile) Sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	err := f.check("sync", false)
	if err == errCut || err == errDead {
		return err
	}
	// Bytes that an earlier failed Sync has lost stay lost. A failing one reports once,
	// calls the pages clean and keeps their content until the memory is needed.
	if len(f.n.disk) < len(f.n.data) && (err == nil || f.d.rng.IntN(2) == 0) {
		f.n.disk = append(f.n.disk, make([]byte, len(f.n.data)-len(f.n.disk))...)
	}
	for _, s := range slices.Sorted(maps.Keys(f.n.dirty)) {
		if err != nil && f.d.rng.IntN(2) == 0 {
			continue
		}
		at := f.n.dirty[s]
		if lo, hi := s*sector+at.lo, min(s*sector+at.hi, len(f.n.disk)); lo < hi {
			copy(f.n.disk[lo:hi], f.n.data[lo:hi])
		}
	}
	f.n.dirty = nil
	return err
}

func (f *simFile) Evict() {}

func (f *simFile) Close() error { return nil }
