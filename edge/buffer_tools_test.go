package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"spillway/buffer"
	"spillway/buffer/batch"
)

// damages are the ways in which TestDamagedDirectories spoils a lane's directory, by
// the first column of the table in docs/operations.md.
var damages = map[string]func(t *testing.T, dir string, segs []string){
	"the cursor is deleted":      func(t *testing.T, dir string, _ []string) { remove(t, dir, "cursor") },
	"the cursor is destroyed":    func(t *testing.T, dir string, _ []string) { write(t, dir, "cursor", bytes.Repeat([]byte{'x'}, 8192)) },
	"the cursor is a directory":  func(t *testing.T, dir string, _ []string) { remove(t, dir, "cursor"); mkdir(t, dir, "cursor") },
	"the cursor can't be opened": func(t *testing.T, dir string, _ []string) { remove(t, dir, "cursor"); mkdir(t, dir, "cursor") },
	"the cursor is that of another buffer": func(t *testing.T, dir string, _ []string) {
		other, _ := laneDir(t, 1)
		write(t, dir, "cursor", read(t, other, "cursor"))
	},
	"the cursor is newer than the segments": func(t *testing.T, dir string, segs []string) { remove(t, dir, segs[2]) },
	"nothing but the cursor is left":        func(t *testing.T, dir string, segs []string) { remove(t, dir, segs...) },
	"nothing is left":                       func(t *testing.T, dir string, segs []string) { remove(t, dir, append(segs, "cursor")...) },
	"it is the wrong directory": func(t *testing.T, dir string, segs []string) {
		mkdir(t, dir, "main")
		for _, name := range append(segs, "cursor") {
			rename(t, dir, name, "main/"+name)
		}
	},
	"all names are lost, as after a repair of the file system": func(t *testing.T, dir string, segs []string) {
		for i, name := range segs {
			rename(t, dir, name, fmt.Sprintf("FSCK%04d.REC", i))
		}
	},
	"segments of another buffer are in it": func(t *testing.T, dir string, _ []string) {
		other, segs := laneDir(t, 1)
		write(t, dir, segs[0], read(t, other, segs[0]))
	},
	"it belongs to another user": func(t *testing.T, dir string, _ []string) {
		if err := os.Chown(dir, 12345, -1); err != nil && os.Getuid() == 0 {
			t.Fatal(err)
		} else if err != nil {
			t.Skipf("only root can give a directory away: %v", err)
		}
	},
	"others may write to it": func(t *testing.T, dir string, _ []string) {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	},
	"a newer version wrote to it": func(t *testing.T, dir string, segs []string) {
		b := read(t, dir, segs[2])
		b = slices.Concat(newer(slices.Concat(b[:108], make([]byte, 12)), 112), b[112:]) // its header is longer
		write(t, dir, segs[2], b)
	},
	"only the cursor is of a newer version": func(t *testing.T, dir string, _ []string) {
		b := read(t, dir, "cursor")
		n := binary.LittleEndian.Uint32(b[4:])
		write(t, dir, "cursor", slices.Concat(newer(b[:n], n), b[n:]))
	},
	"only the batches of a segment are of a newer version": func(t *testing.T, dir string, segs []string) {
		b := read(t, dir, segs[1])
		write(t, dir, segs[1], slices.Concat(b[:112], newer(b[112:112+batch.HeaderSize], batch.HeaderSize-8), b[112+batch.HeaderSize:]))
	},
	"a segment is renamed": func(t *testing.T, dir string, segs []string) { rename(t, dir, segs[1], "recovered.001") },
	"two segments have each other's names": func(t *testing.T, dir string, segs []string) {
		rename(t, dir, segs[0], "x")
		rename(t, dir, segs[1], segs[0])
		rename(t, dir, "x", segs[1])
	},
	"a segment is there twice": func(t *testing.T, dir string, segs []string) {
		write(t, dir, "copy of "+segs[1], read(t, dir, segs[1]))
	},
	"a segment is cut off": func(t *testing.T, dir string, segs []string) {
		b := read(t, dir, segs[1])
		write(t, dir, segs[1], b[:len(b)/2])
	},
	"a segment's first block is destroyed": func(t *testing.T, dir string, segs []string) {
		b := read(t, dir, segs[1])
		clear(b[:512])
		write(t, dir, segs[1], b)
	},
	"a segment is zeros: the disk has forgotten it":    func(t *testing.T, dir string, segs []string) { zero(t, dir, segs[1]) },
	"the newest segment is zeros":                      func(t *testing.T, dir string, segs []string) { zero(t, dir, segs[2]) },
	"the newest segment is zeros, and the cursor gone": func(t *testing.T, dir string, segs []string) { zero(t, dir, segs[2]); remove(t, dir, "cursor") },
	"a segment is zeros, and the rest is delivered": func(t *testing.T, dir string, segs []string) {
		zero(t, dir, segs[1])
		for range 3 { // what is before it, and behind it
			if err := deliver(dir, 4); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := buffer.Trim(dir, buffer.Cut{Delivered: true}); err != nil {
			t.Fatal(err)
		}
	},
	"a segment is deleted":                 func(t *testing.T, dir string, segs []string) { remove(t, dir, segs[1]) },
	"a segment is a directory":             func(t *testing.T, dir string, segs []string) { remove(t, dir, segs[1]); mkdir(t, dir, segs[1]) },
	"files of others are in it":            func(t *testing.T, dir string, _ []string) { write(t, dir, "notes.txt", []byte("mine\n")) },
	"a segment can't be read by this user": func(t *testing.T, dir string, segs []string) { chmod(t, filepath.Join(dir, segs[1]), 0) },
	"it is deleted": func(t *testing.T, dir string, _ []string) {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	},
	"a file is in its place": func(t *testing.T, dir string, _ []string) {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Dir(dir), filepath.Base(dir), nil)
	},
	"an agent is running on it, for a change":  nil,
	"two agents start on it":                   nil,
	"an agent is running on it, for a look":    nil,
	"there is nothing that could be saved":     func(t *testing.T, dir string, segs []string) { remove(t, dir, segs...) },
	"NEWDIR is in use":                         nil,
	"nothing that was delivered is kept":       nil,
	"what is to be removed is not delivered":   nil,
	"nothing in it is as old as that":          nil,
	"what is to be sent again is not kept":     nil,
	"what is to be sent again is not sent yet": nil,
}

// newer makes b a header, or a slot of the cursor, of version 2 with this in its length field.
func newer(b []byte, length uint32) []byte {
	binary.LittleEndian.PutUint32(b[4:], length)
	b[8] = 2
	binary.LittleEndian.PutUint32(b[len(b)-4:], batch.CRC32C(b[:len(b)-4]))
	return b
}

func remove(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func zero(t *testing.T, dir, name string) {
	t.Helper()
	write(t, dir, name, make([]byte, len(read(t, dir, name))))
}

func mkdir(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, dir, from, to string) {
	t.Helper()
	if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, dir, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, dir, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// lanes are two buffers of three segments with 60 records each, of which 20 are
// delivered, as name and content.
var lanes = [2]func() (map[string][]byte, error){sync.OnceValues(makeLane), sync.OnceValues(makeLane)}

func makeLane() (files map[string][]byte, err error) {
	dir, err := os.MkdirTemp("", "spillway-lane-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	for range 3 {
		if err := makeBuffer(dir, 6, batch.Zstd); err != nil {
			return nil, err
		}
	}
	if err := deliver(dir, 2); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	files = map[string][]byte{}
	for _, e := range entries {
		if files[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// laneDir makes the n-th of lanes; segs are the names of its segments, oldest first.
func laneDir(t *testing.T, n int) (dir string, segs []string) {
	t.Helper()
	files, err := lanes[n]()
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	chmod(t, dir, 0o700)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		write(t, dir, name, files[name])
		if name != "cursor" {
			segs = append(segs, name)
		}
	}
	if len(segs) != 3 {
		t.Fatalf("%d segments", len(segs))
	}
	return dir, segs
}

// deliver lets an agent deliver n batches.
func deliver(dir string, n int) error {
	b, err := buffer.Open(dir, buffer.Options{Agent: "gw1"})
	if err != nil {
		return err
	}
	defer b.Close()
	run, err := b.Next(context.Background(), batch.Limits{Batches: n})
	if err != nil {
		return err
	}
	if err := b.Commit(run.Last(), "hub"); err != nil {
		return err
	}
	return b.Close()
}

// TestDamagedDirectories does what the table in docs/operations.md says, row by row,
// and compares what is said with what is quoted there; … stands for anything.
func TestDamagedDirectories(t *testing.T) {
	doc, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| ([^|]+) \\| ([^|]+) \\| `([^`|]+)`, ([012]): `([^`]+)` \\|$").FindAllStringSubmatch(string(doc), -1)
	var done []string
	for _, row := range rows {
		what, args, code, message := row[1], strings.Fields(row[3]), row[4], row[5]
		spoil, known := damages[what]
		if !known {
			t.Errorf("nothing here makes that %s", what)
			continue
		}
		done = append(done, what)
		t.Run(what+": "+row[3], func(t *testing.T) {
			dir, segs := laneDir(t, 0)
			if args[0] == "run" {
				state := t.TempDir()
				mkdir(t, state, "buffer")
				rename(t, "/", dir, filepath.Join(state, "buffer", "main"))
				dir = filepath.Join(state, "buffer", "main")
			}
			into := filepath.Join(t.TempDir(), "new")
			switch what {
			case "an agent is running on it, for a change", "an agent is running on it, for a look", "two agents start on it":
				b, err := buffer.Open(dir, buffer.Options{Agent: "gw1"})
				if err != nil {
					t.Fatal(err)
				}
				defer b.Close()
			case "NEWDIR is in use":
				into = dir
			case "nothing that was delivered is kept", "what is to be sent again is not kept":
				n := 4 // to the end of the first segment
				if what == "what is to be sent again is not kept" {
					n += 4
				}
				if err := deliver(dir, n); err != nil {
					t.Fatal(err)
				}
				if _, err := buffer.Trim(dir, buffer.Cut{Delivered: true}); err != nil {
					t.Fatal(err)
				}
			default:
				if spoil != nil {
					spoil(t, dir, segs)
				}
			}
			for i := range args {
				args[i] = strings.NewReplacer("NEWDIR", into, "DIR", dir).Replace(args[i])
			}
			run := runBuffer
			switch {
			case args[0] == "run":
				run = runAgent
				args = append(args, dir)
			case strings.HasSuffix(what, "by this user"):
				run = runBufferAsNobody
				chown(t, dir)
			}
			got, out := run(t, args...)
			if fmt.Sprint(got) != code {
				t.Errorf("exit code %d, want %s:\n%s", got, code, out)
			}
			pattern := strings.ReplaceAll(regexp.QuoteMeta(strings.NewReplacer("NEWDIR", into, "DIR", dir).Replace(message)), "…", ".*")
			if !regexp.MustCompile("(?m)^" + pattern + "$").MatchString(out) {
				t.Errorf("want %s\ngot\n%s", message, out)
			}
		})
	}
	for what := range damages {
		if !slices.Contains(done, what) {
			t.Errorf("docs/operations.md does not say what happens when %s", what)
		}
	}
}

// runAgent runs the agent with the lane's directory args[1] until it is ready, and
// stops it; or it ends by itself.
func runAgent(t *testing.T, args ...string) (code int, out string) {
	t.Helper()
	state := filepath.Dir(filepath.Dir(args[1]))
	short, err := os.MkdirTemp("", "spillway-") // a socket's path has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(short)
	cmd := exec.Command("spillway") // TestMain is the real program under this name
	cmd.Env = append(os.Environ(), "SPILLWAY_STATE_DIR="+state, "SPILLWAY_AGENT=gw1", "SPILLWAY_INPUTS=unix", "SPILLWAY_INPUT_UNIX_URL=unix://"+filepath.Join(short, "s"),
		"SPILLWAY_ADMIN_ADDRESS=127.0.0.1:0", "SPILLWAY_OUTPUTS=hub", "SPILLWAY_OUTPUT_HUB_URL=nats://127.0.0.1:1", "SPILLWAY_SHUTDOWN_GRACE=10ms", "SPILLWAY_LOG_FORMAT=text")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		fmt.Fprintln(&all, lines.Text())
		if strings.Contains(lines.Text(), " msg=ready ") {
			cmd.Process.Signal(syscall.SIGTERM)
		}
	}
	cmd.Wait()
	return cmd.ProcessState.ExitCode(), all.String()
}

// runBuffer runs `spillway ARGS` and returns all that it prints.
func runBuffer(t *testing.T, args ...string) (code int, out string) {
	t.Helper()
	var all bytes.Buffer
	if args[0] != "buffer" {
		t.Fatalf("spillway %v: not `spillway buffer`", args)
	}
	code = cmdBuffer(context.Background(), args[1:], &all, &all, nil)
	return code, all.String()
}

const nobody = 65534

// chown gives dir to nobody, if this process may do that.
func chown(t *testing.T, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	for path := dir; len(path) > len(os.TempDir()); path = filepath.Dir(path) {
		chmod(t, path, 0o755)
	}
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
}

// runBufferAsNobody is runBuffer in a process of a user whom modes hold back.
func runBufferAsNobody(t *testing.T, args ...string) (code int, out string) {
	if os.Geteuid() != 0 {
		return runBuffer(t, args...)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// TestMain is the real program under this name.
	dir := t.TempDir()
	path := filepath.Join(dir, "spillway")
	from, err := os.Open(exe)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(to, from)
	if cerr := to.Close(); err != nil || cerr != nil {
		t.Fatal(err, cerr)
	}
	for up := dir; len(up) > len(os.TempDir()); up = filepath.Dir(up) {
		chmod(t, up, 0o755)
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	all, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(all)
}

// TestBufferToolsJSON: what programs get.
func TestBufferToolsJSON(t *testing.T) {
	dir, _ := laneDir(t, 0)
	get := func(v any, args ...string) {
		t.Helper()
		code, out := runBuffer(t, append([]string{"buffer"}, args...)...)
		if err := json.Unmarshal([]byte(out), v); code != exitOK || err != nil {
			t.Fatalf("%v: exit code %d, %v\n%s", args, code, err, out)
		}
	}
	type totals struct{ Batches, Records uint64 }
	var stats struct {
		Segments           []struct{ State string }
		Delivered, Pending totals
		Cursor             bool
		Sizes              []struct{ Below, Batches uint64 } `json:"batch_bytes"`
	}
	get(&stats, "stats", dir, "--json")
	if len(stats.Segments) != 3 || stats.Segments[0].State != "partly" || stats.Segments[1].State != "pending" || stats.Delivered != (totals{2, 20}) ||
		stats.Pending != (totals{16, 160}) || !stats.Cursor || len(stats.Sizes) == 0 {
		t.Errorf("stats: %+v", stats)
	}
	var salvaged struct {
		Complete bool
		totals
		Segments, Committed, Next uint64
		Position                  string
		Findings                  []json.RawMessage
	}
	get(&salvaged, "salvage", dir, filepath.Join(t.TempDir(), "new"), "--json")
	if !salvaged.Complete || salvaged.totals != (totals{18, 180}) || salvaged.Segments != 3 || salvaged.Committed != 20 || salvaged.Next != 182 || salvaged.Findings == nil {
		t.Errorf("salvage: %+v", salvaged)
	}
	var rewound struct{ First, Last, Batches uint64 }
	get(&rewound, "rewind", "--json", "--to=11", dir)
	if rewound.First != 11 || rewound.Last != 20 || rewound.Batches != 1 {
		t.Errorf("rewind: %+v", rewound)
	}
	var trimmed struct{ Segments, Bytes, Lost uint64 }
	get(&trimmed, "trim", dir, "--to", "60", "--undelivered", "--json")
	if trimmed.Segments != 1 || trimmed.Bytes == 0 || trimmed.Lost != 50 {
		t.Errorf("trim: %+v", trimmed)
	}
}
