package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"spillway/buffer"
	"spillway/buffer/batch"
	"spillway/outputs"
)

// cmdCat is `spillway cat`: the records of each source on stdout, in the source's
// order. Memory is bounded by one batch or one decoder, whatever a source holds.
// What can't be read is named on stderr, and the rest is printed.
func cmdCat(ctx context.Context, args []string, stdout, stderr io.Writer, _ []string) int {
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		fmt.Fprintln(stderr, "usage: spillway cat SOURCE...")
		fmt.Fprintln(stderr, "SOURCE: a file or directory of a file output, a segment or directory of a buffer, or a URL:")
		fmt.Fprintln(stderr, "  s3://bucket/prefix[?endpoint=…&region=…&path_style=…]   nats://host/STREAM[?subject=…]")
		return exitUsage
	}
	if err := checkSources(args); err != nil {
		fmt.Fprintln(stderr, err)
		return exitUsage
	}
	c := newCat(stdout, stderr)
	for _, source := range args {
		c.source(ctx, source)
	}
	if !c.close() {
		return exitFailure
	}
	return exitOK
}

// cat is one run of the command.
type cat struct {
	out    lineWriter
	stderr io.Writer
	failed bool
}

func newCat(stdout, stderr io.Writer) *cat {
	return &cat{out: lineWriter{w: bufio.NewWriterSize(stdout, 256<<10)}, stderr: stderr}
}

// close writes what is left and reports whether everything could be read.
func (c *cat) close() (good bool) {
	if err := c.out.w.Flush(); err != nil {
		c.complain("stdout", err)
	}
	return !c.failed
}

func (c *cat) complain(source string, err error) {
	c.failed = true
	c.out.w.Flush() // so that both streams on one terminal are in order
	fmt.Fprintf(c.stderr, "%s: %v\n", redact(source), err)
}

func (c *cat) source(ctx context.Context, source string) {
	if strings.Contains(source, "://") {
		s, _, err := openSource(ctx, source)
		if err != nil {
			c.complain(source, err)
			return
		}
		c.objects(ctx, source, s)
		return
	}
	info, err := os.Stat(source)
	switch {
	case err != nil:
		c.complain(source, pathCause(err))
	case !info.IsDir():
		c.file(source)
	case isBuffer(source):
		c.buffer(source)
	default:
		c.directory(ctx, source)
	}
}

// openSource returns what url holds, and the kind of output that stored it.
func openSource(ctx context.Context, url string) (outputs.Source, *kind, error) {
	k, err := sourceKind(url)
	if err != nil {
		return nil, nil, err
	}
	s, err := k.source(ctx, url)
	return s, k, err
}

// sourceKind returns the kind of output that stores at url.
func sourceKind(url string) (*kind, error) {
	scheme, _, _ := strings.Cut(url, "://")
	i := slices.IndexFunc(kinds, func(k kind) bool { return slices.Contains(k.schemes, scheme) })
	switch {
	case i >= 0:
		return &kinds[i], nil
	case schemes[scheme] != "":
		return nil, fmt.Errorf("this binary was built without %s: use one with it", schemes[scheme])
	}
	return nil, fmt.Errorf("%s:// is no source: use a path, or %s", scheme, or(examples()))
}

// checkSources returns an error for the first source with a URL that is none.
func checkSources(sources []string) error {
	for _, s := range sources {
		if !strings.Contains(s, "://") {
			continue
		}
		if _, err := sourceKind(s); err != nil {
			return fmt.Errorf("%s: %w", redact(s), err)
		}
	}
	return nil
}

// openDirectory returns the tree of a file output.
func openDirectory(ctx context.Context, dir string) (outputs.Source, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	s, _, err := openSource(ctx, (&url.URL{Scheme: "file", Path: abs}).String())
	return s, err
}

// buffer prints the batches in a lane's directory, in their order, each once.
func (c *cat) buffer(dir string) {
	_, err := buffer.Verify(dir, func(f buffer.Finding) {
		if f.Bad() {
			c.complain(dir, errors.New(f.String()))
		}
	})
	if err == nil {
		err = buffer.Cat(dir, func(b *batch.Batch, _ string, _ batch.Epoch, _ batch.Seal) error {
			if err := c.batch(b); err != nil {
				c.complain(dir, fmt.Errorf("records %d to %d: %w", b.First, b.Last(), err))
			}
			return nil
		})
	}
	if err != nil {
		c.complain(dir, err)
	}
}

// pathCause is what went wrong with a path that the reader is told anyway.
func pathCause(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// isBuffer reports whether dir is one of a lane: it has segments, or had some.
func isBuffer(dir string) bool {
	segments, _ := filepath.Glob(filepath.Join(globEscape(dir), "*.seg"))
	_, err := os.Stat(filepath.Join(dir, "cursor"))
	return len(segments) > 0 || err == nil
}

var globEscape = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace

// directory prints the tree of a file output.
func (c *cat) directory(ctx context.Context, dir string) {
	s, err := openDirectory(ctx, dir)
	if err != nil {
		c.complain(dir, err)
		return
	}
	entries, err := os.ReadDir(dir)
	if c.objects(ctx, dir, s) == 0 && err == nil && len(entries) > 0 {
		c.complain(dir, errNothingHere)
	}
}

var errNothingHere = errors.New("holds nothing of Spillway: give the directory of a file output, or of a lane, as in <state>/buffer/main")

// objects prints what s yields and returns how many objects that were.
func (c *cat) objects(ctx context.Context, source string, s outputs.Source) (n int) {
	ctx = outputs.WithStrangers(ctx, func(name string, err error) {
		if err != nil {
			c.complain(source+": "+name, err)
		}
	})
	for o, err := range s.Objects(ctx) {
		if err != nil {
			c.complain(source, err)
			return n + 1
		}
		n++
		if err := c.object(o); err != nil {
			c.complain(source+": "+o.Name, err)
		}
	}
	return n
}

// object prints one object and compares its bytes with the CRC of its name.
func (c *cat) object(o *outputs.Object) error {
	defer o.Body.Close()
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	body := &summed{r: o.Body, h: sum}
	if err := c.stream(body); err != nil {
		return err
	}
	if o.CRC != 0 && sum.Sum32() != o.CRC {
		return fmt.Errorf("its bytes have CRC32C %08x, not %08x as when it was sent: it was changed", sum.Sum32(), o.CRC)
	}
	return nil
}

// summed feeds a hash with what is read.
type summed struct {
	r io.Reader
	h hash.Hash32
}

func (s *summed) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.h.Write(p[:n])
	return n, err
}

// stream prints the lines of delivered bytes.
func (c *cat) stream(r io.Reader) error {
	lines, err := batch.NewReader(r)
	if err != nil {
		return err
	}
	defer lines.Close()
	defer c.out.endLine()
	if _, err := io.Copy(&c.out, lines); err != nil {
		return fmt.Errorf("after %d bytes of lines: %w", c.out.line, err)
	}
	_, err = io.Copy(io.Discard, r) // for whoever sums them
	return err
}

// file prints a file, told by its content: a segment, or delivered bytes.
func (c *cat) file(name string) {
	f, err := os.Open(name)
	if err != nil {
		c.complain(name, pathCause(err))
		return
	}
	defer f.Close()
	var magic [4]byte
	if n, _ := f.ReadAt(magic[:], 0); n == 4 && bytes.Equal(magic[:], segmentMagic) {
		c.segment(name, f)
		return
	}
	if err := c.stream(f); err != nil {
		c.complain(name, err)
	}
}

// segmentMagic is how a segment begins (docs/format.md).
var segmentMagic = []byte{0x5b, 0x2a, 0x4d, 0x18}

// segment prints every good batch of a segment.
func (c *cat) segment(name string, f *os.File) {
	info, err := f.Stat()
	if err != nil {
		c.complain(name, err)
		return
	}
	for e := range buffer.Scan(f, info.Size(), filepath.Base(name)) {
		switch e.Kind {
		case buffer.KindBatch:
			if err := c.batch(&e.Batch); err != nil {
				c.complain(name, fmt.Errorf("batch at byte %d: %w", e.Off, err))
			}
		case buffer.KindDamage:
			lost := ""
			if e.Batch.Count > 0 {
				lost = fmt.Sprintf("; records %d to %d are lost", e.Batch.First, e.Batch.Last())
			}
			c.complain(name, fmt.Errorf("damaged from byte %d to %d: %v%s", e.Off, e.End, e.Err, lost))
		}
	}
}

// batch prints one batch.
func (c *cat) batch(b *batch.Batch) error { return c.stream(bytes.NewReader(b.Payload)) }

// lineWriter knows where in a line it is.
type lineWriter struct {
	w    *bufio.Writer
	line int64 // bytes since the source began
	open bool  // the last byte was no line feed
}

func (l *lineWriter) Write(p []byte) (int, error) {
	n, err := l.w.Write(p)
	l.line += int64(n)
	if n > 0 {
		l.open = p[n-1] != '\n'
	}
	return n, err
}

// endLine ends a line that was cut, so that the next source begins its own.
func (l *lineWriter) endLine() {
	if l.open {
		l.w.WriteByte('\n')
	}
	l.open, l.line = false, 0
}
