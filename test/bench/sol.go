package bench

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// The speed of light: what must be done at the least to take lines, have them on
// disk and deliver them, and nothing else. Lines become blocks of 1 MiB, blocks
// zstd frames in one file with an fsync for each MiB, frames messages of a stream.
// No hashes, numbers, recovery, limits or failover; the ratio to it is what a
// measurement on another machine may be compared by.
const (
	solBlock   = 1 << 20                // of lines; a stream's message holds one, compressed
	solSync    = 1 << 20                // bytes of frames between two fsyncs
	solLinger  = 200 * time.Millisecond // longest wait of a line for its block to fill
	solFile    = 64 << 20               // the file is begun again at this size
	solPending = 16                     // messages that wait for their acknowledgement
)

// sol runs the speed-of-light program until it is killed.
func sol(args []string) error {
	f := flag.NewFlagSet("sol", flag.ExitOnError)
	address := f.String("address", "", "tcp address to listen on")
	dir := f.String("dir", ".", "directory of the file")
	url := f.String("nats", "", "server with a stream over logs.>")
	parse := f.Bool("parse", false, "parse headers and store a JSON document for each line")
	f.Parse(args)

	s := &light{parse: *parse, full: make(chan []byte, 2), free: make(chan []byte, 4), slots: make(chan struct{}, solPending)}
	var err error
	if s.file, err = os.Create(filepath.Join(*dir, "frames.zst")); err != nil {
		return err
	}
	s.encoder, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20), zstd.WithEncoderCRC(false))
	if err != nil {
		return err
	}
	nc, err := nats.Connect(*url)
	if err != nil {
		return err
	}
	if s.stream, err = jetstream.New(nc); err != nil {
		return err
	}
	l, err := net.Listen("tcp", *address)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go s.read(c)
		}
	}()
	return s.store()
}

type light struct {
	parse bool
	full  chan []byte
	free  chan []byte // blocks to use again

	mu    sync.Mutex
	open  []byte // block being filled
	since time.Time

	// Of store alone.
	file           *os.File
	size, unsynced int // bytes
	encoder        *zstd.Encoder
	frames         [][]byte // written, not published
	stream         jetstream.JetStream
	slots          chan struct{} // one for each message in flight
	header         header
	text           []byte
}

// read copies whole lines into the open block. A short read is followed by a wait,
// so that lines gather: at a steady trickle most of the cost is waking up.
func (s *light) read(c net.Conn) {
	defer c.Close()
	buf := make([]byte, 256<<10)
	kept := 0
	for {
		n, err := c.Read(buf[kept:])
		end := kept + n
		if whole := bytes.LastIndexByte(buf[:end], '\n') + 1; whole > 0 {
			s.add(buf[:whole])
			kept = copy(buf, buf[whole:end])
		} else {
			kept = end
		}
		if err != nil {
			return
		}
		if n < 16<<10 {
			time.Sleep(5 * time.Millisecond)
		}
	}
}

func (s *light) add(lines []byte) {
	s.mu.Lock()
	if len(s.open) == 0 {
		s.since = time.Now()
	}
	s.open = append(s.open, lines...)
	var full []byte
	if len(s.open) >= solBlock {
		full, s.open = s.open, s.block()
	}
	s.mu.Unlock()
	if full != nil {
		s.full <- full
	}
}

// block is an empty one, with room for what a read adds to a nearly full one.
func (s *light) block() []byte {
	select {
	case b := <-s.free:
		return b[:0]
	default:
		return make([]byte, 0, solBlock+512<<10)
	}
}

// store compresses, writes, syncs and publishes blocks in their order.
func (s *light) store() error {
	tick := time.NewTicker(solLinger / 4)
	for {
		select {
		case b := <-s.full:
			if err := s.write(b); err != nil {
				return err
			}
		case <-tick.C:
			var old []byte
			s.mu.Lock()
			if len(s.open) > 0 && time.Since(s.since) > solLinger {
				old, s.open = s.open, s.block()
			}
			s.mu.Unlock()
			if old != nil {
				if err := s.write(old); err != nil {
					return err
				}
			} else if s.unsynced > 0 && len(s.full) == 0 {
				if err := s.sync(); err != nil {
					return err
				}
			}
		}
	}
}

func (s *light) write(block []byte) error {
	text := block
	if s.parse {
		s.text = s.text[:0]
		for rest := block; len(rest) > 0; {
			i := bytes.IndexByte(rest, '\n')
			s.text = s.header.appendDocument(s.text, rest[:i])
			rest = rest[i+1:]
		}
		text = s.text
	}
	frame := s.encoder.EncodeAll(text, make([]byte, 0, len(text)/4))
	select {
	case s.free <- block:
	default:
	}
	if _, err := s.file.Write(frame); err != nil {
		return err
	}
	s.frames = append(s.frames, frame)
	s.unsynced += len(frame)
	s.size += len(frame)
	if s.unsynced >= solSync {
		return s.sync()
	}
	return nil
}

func (s *light) sync() error {
	if err := s.file.Sync(); err != nil {
		return err
	}
	s.unsynced = 0
	for _, frame := range s.frames {
		s.slots <- struct{}{}
		ack, err := s.stream.PublishAsync("logs.sol", frame)
		if err != nil {
			return err
		}
		go func() {
			select {
			case <-ack.Ok():
				<-s.slots
			case err := <-ack.Err():
				fmt.Fprintln(os.Stderr, "sol:", err)
				os.Exit(1)
			}
		}()
	}
	s.frames = s.frames[:0]
	if s.size < solFile {
		return nil
	}
	// All acknowledged: the file is no longer needed.
	select {
	case <-s.stream.PublishAsyncComplete():
	case <-time.After(time.Minute):
		return context.DeadlineExceeded
	}
	s.size = 0
	if err := s.file.Truncate(0); err != nil {
		return err
	}
	_, err := s.file.Seek(0, 0)
	return err
}
