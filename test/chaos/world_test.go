package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sys/unix"

	"spillway/test/agent"
	"spillway/test/faults"
	"spillway/test/servers"
)

// world is the agent of one schedule with its far sides, and what is done to them.
type world struct {
	t       *testing.T
	s       *schedule
	dir     string       // of everything
	disk    *faults.Disk // of the state directory; nil: that of dir
	agent   *agent.Agent
	sources []string // SOURCE of cat and verify

	hub      *servers.NATS
	hubLink  *faults.Proxy
	archive  *servers.S3
	s3Link   *faults.Proxy
	s3       *faults.S3 // behind s3Link
	settings []string   // environment
}

// build starts what the schedule needs, the agent excepted.
func build(t *testing.T, s *schedule) *world {
	t.Helper()
	w := &world{t: t, s: s, dir: t.TempDir()}
	state := filepath.Join(w.dir, "state")
	if s.small {
		w.disk = faults.NewDisk(t, smallDisk)
		state = filepath.Join(w.disk.Dir, "state")
	}
	t.Cleanup(w.keep)
	w.settings = slices.Clone(s.env)
	for _, name := range s.outputs {
		switch name {
		case "hub":
			w.buildHub()
		case "archive":
			w.buildArchive()
		case "outdir":
			w.set("OUTPUT_OUTDIR_URL", "file://"+w.outdir())
			w.set("OUTPUT_OUTDIR_MAX_BYTES", dirBytes)
			w.sources = append(w.sources, w.outdir())
			if err := os.Mkdir(w.outdir(), 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.agent = agent.New(t, w.dir)
	w.set("STATE_DIR", state)
	w.agent.State = state
	second := 0
	if s.audit {
		second = servers.FreePort(t)
		w.set("INPUT_TCP2_URL", fmt.Sprintf("tcp://127.0.0.1:%d", second))
		w.set("INPUT_TCP2_LANE", "audit")
	}
	for i := range s.loads {
		l := &s.loads[i]
		l.Drain = settle
		l.Address = "127.0.0.1:" + strconv.Itoa(map[string]int{"tcp": w.agent.TCP, "udp": w.agent.UDP, "tcp2": second}[l.Input])
	}
	w.agent.Env = append(w.agent.Env, w.settings...)
	if !strings.Contains(strings.Join(s.env, "\n"), "udp") {
		w.agent.Env = slices.DeleteFunc(w.agent.Env, func(e string) bool { return strings.HasPrefix(e, "SPILLWAY_INPUT_UDP_") })
	}
	return w
}

func (w *world) set(name string, v any) {
	w.settings = append(w.settings, fmt.Sprintf("SPILLWAY_%s=%v", name, v))
}

func (w *world) outdir() string { return filepath.Join(w.dir, "outdir") }

// keep saves everything of a schedule that failed. The processes have ended.
func (w *world) keep() {
	if !w.t.Failed() {
		return
	}
	bin, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		w.t.Error(err)
		return
	}
	to := filepath.Join(bin, "tmp", "chaos", fmt.Sprint("seed-", w.s.seed))
	// The temporary directory of the test has the servers' logs beside ours.
	script := `rm -rf "$1" && mkdir -p "$1" && cp -a "$2"/. "$1" && find "$1" -name filler -delete`
	if out, err := exec.Command("sh", "-c", script, "sh", to, filepath.Dir(w.dir)).CombinedOutput(); err != nil {
		w.t.Errorf("keep what there is: %v\n%s", err, out)
	}
	w.t.Logf("logs, buffers and what the far sides hold are in %s; again: make chaos N=1 SEED=%d", to, w.s.seed)
}

var hubStream = servers.StreamConfig{Name: "LOGS", Subjects: []string{"logs.>"}, Discard: natsjs.DiscardNew, AllowDirect: true, MaxMsgs: -1}

func (w *world) buildHub() {
	w.hub = servers.StartNATS(w.t, filepath.Join(w.dir, "hub"))
	servers.CreateStream(w.t, w.hub.URL, hubStream)
	w.hubLink = faults.New(w.t, w.hub.URL)
	w.set("OUTPUT_HUB_URL", "nats://"+w.hubLink.Address)
	w.set("OUTPUT_HUB_STREAM", "LOGS")
	w.set("OUTPUT_HUB_IGNORE_DISCOVERED", true)
	w.sources = append(w.sources, w.hub.URL+"/LOGS")
}

func (w *world) buildArchive() {
	w.archive = servers.StartS3(w.t, filepath.Join(w.dir, "archive"))
	w.archive.Bucket(w.t, "logs")
	w.s3 = faults.NewS3(w.t, w.archive.Endpoint)
	w.s3Link = faults.New(w.t, w.s3.URL)
	w.set("OUTPUT_ARCHIVE_URL", "s3://logs/edge")
	w.set("OUTPUT_ARCHIVE_ENDPOINT", "http://"+w.s3Link.Address)
	w.settings = append(w.settings, "AWS_ACCESS_KEY_ID="+w.archive.AccessKey, "AWS_SECRET_ACCESS_KEY="+w.archive.Secret, "AWS_REGION="+w.archive.Region)
	w.sources = append(w.sources, "s3://logs/edge?endpoint="+w.archive.Endpoint)
}

// begin makes f happen.
func (w *world) begin(f fault) {
	w.t.Helper()
	switch f.thing {
	case "hub":
		switch f.what {
		case "killed":
			w.hub.Kill(w.t)
		case "stopped":
			w.hub.Stop(w.t)
		case "paused":
			w.hub.Pause(w.t)
		case "full":
			c := hubStream
			c.MaxMsgs = 1
			servers.CreateStream(w.t, w.hub.URL, c)
		case "gone", "other":
			c := hubStream
			c.Subjects = []string{"elsewhere"}
			servers.CreateStream(w.t, w.hub.URL, c)
			if f.what == "other" {
				servers.CreateStream(w.t, w.hub.URL, servers.StreamConfig{Name: "OTHER", Subjects: []string{"logs.>"}})
			}
		default:
			link(w.t, w.hubLink, f)
		}
	case "archive":
		switch f.what {
		case "killed":
			w.archive.Kill(w.t)
		case "stopped":
			w.archive.Stop(w.t)
		case "paused":
			w.archive.Pause(w.t)
		case "answers", "stored":
			w.s3.Fail(-1, faults.Fault{Status: f.n, Code: codes[f.n], Stored: f.what == "stored"})
		case "lost":
			w.s3.Fail(-1, faults.Fault{Stored: true})
		case "flips":
			w.s3.Fail(-1, faults.Fault{Flip: true})
		default:
			link(w.t, w.s3Link, f)
		}
	case "outdir":
		switch f.what {
		case "full":
			w.fill(filepath.Join(w.outdir(), "filler"), dirBytes+1)
		case "absent":
			w.swap()
		}
	case "agent":
		switch f.what {
		case "killed":
			w.agent.Kill()
		case "stopped":
			// On a full disk the position can't be saved, which the exit code says.
			if code := w.agent.Stop(w.t); code != 0 && (code != 1 || w.disk == nil) {
				w.t.Errorf("the agent was stopped and exits %d", code)
			}
		case "paused":
			w.agent.Signal(w.t, syscall.SIGSTOP)
		}
	case "disk":
		w.disk.Fill(w.t, 0)
	}
}

// end makes f good.
func (w *world) end(f fault) {
	w.t.Helper()
	switch f.thing {
	case "hub":
		switch f.what {
		case "killed", "stopped":
			w.hub.Start(w.t)
		case "paused":
			w.hub.Resume(w.t)
		case "full":
			servers.CreateStream(w.t, w.hub.URL, hubStream)
		case "other":
			w.other()
			fallthrough
		case "gone":
			servers.CreateStream(w.t, w.hub.URL, hubStream)
		default:
			w.hubLink.Forward()
		}
	case "archive":
		switch f.what {
		case "killed", "stopped":
			w.archive.Start(w.t)
		case "paused":
			w.archive.Resume(w.t)
		case "answers", "stored", "lost", "flips":
			w.s3.Heal()
		default:
			w.s3Link.Forward()
		}
	case "outdir":
		switch f.what {
		case "full":
			w.remove(filepath.Join(w.outdir(), "filler"))
		case "absent":
			w.swap()
		}
	case "agent":
		if f.what == "paused" {
			w.agent.Signal(w.t, syscall.SIGCONT)
		} else {
			w.agent.Start(w.t)
		}
	case "disk":
		w.disk.Free(w.t)
	}
}

// codes are those of S3 for a status.
var codes = map[int]string{403: "AccessDenied", 404: "NoSuchBucket", 409: "OperationAborted", 429: "TooManyRequests",
	500: "InternalError", 503: "SlowDown", 507: "InsufficientStorage"}

func link(t *testing.T, p *faults.Proxy, f fault) {
	t.Helper()
	switch f.what {
	case "refuses":
		p.Refuse()
	case "reset":
		p.Reset()
	case "silent":
		p.Silence()
	case "deaf":
		p.DropAnswers()
	case "slow":
		p.Slow(f.n, 0)
	default:
		t.Fatalf("no such fault: %v", f)
	}
}

// other removes the stream that stood in for ours. The agent asked for ours, so it
// holds nothing.
func (w *world) other() {
	w.t.Helper()
	servers.JetStream(w.t, w.hub.URL, func(ctx context.Context, js natsjs.JetStream) error {
		s, err := js.Stream(ctx, "OTHER")
		if err != nil {
			return err
		}
		if n := s.CachedInfo().State.Msgs; n > 0 {
			w.t.Errorf("another stream than the one that the agent was told of has %d messages", n)
		}
		return js.DeleteStream(ctx, "OTHER")
	})
}

// fill makes a file of n bytes that takes no room on the disk.
func (w *world) fill(name string, n int64) {
	w.t.Helper()
	err := os.WriteFile(name, nil, 0o600)
	if err = errors.Join(err, os.Truncate(name, n)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) remove(name string) {
	w.t.Helper()
	if err := os.Remove(name); err != nil {
		w.t.Fatal(err)
	}
}

// swap puts a file where the directory output's directory is, or the directory
// back, at one blow: the agent would make a directory where there is none.
func (w *world) swap() {
	w.t.Helper()
	aside := w.outdir() + ".aside"
	err := unix.Renameat2(unix.AT_FDCWD, w.outdir(), unix.AT_FDCWD, aside, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.ENOENT) { // the first time
		if err = os.WriteFile(aside, nil, 0o600); err == nil {
			err = unix.Renameat2(unix.AT_FDCWD, w.outdir(), unix.AT_FDCWD, aside, unix.RENAME_EXCHANGE)
		}
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// kernelDrops is how many datagrams the kernel dropped at a port of 127.0.0.1.
func kernelDrops(t *testing.T, port int) (n uint64) {
	t.Helper()
	text, err := os.ReadFile("/proc/net/udp")
	if err != nil {
		t.Fatal(err)
	}
	local := fmt.Sprintf("0100007F:%04X", port)
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) >= 13 && f[1] == local {
			v, err := strconv.ParseUint(f[12], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			n += v
		}
	}
	return n
}

// settle is how long anything may take once all is well: the longest pause of the
// agent's own back-off, and some.
const settle = 60 * time.Second
