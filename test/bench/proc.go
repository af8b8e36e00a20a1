package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a program under measurement, or a server beside it.
type process struct {
	name  string
	log   string // file with what it says
	begin time.Time
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // of its end; valid after ended
}

// start runs exe with env added to a nearly empty environment, so that no variable
// of the caller changes what is measured.
func start(dir, exe string, env []string, args ...string) (*process, error) {
	p := &process{name: filepath.Base(exe), ended: make(chan struct{})}
	if filepath.Base(exe) == filepath.Base(os.Args[0]) && len(args) > 0 {
		p.name = args[0]
	}
	p.log = filepath.Join(dir, p.name+".log")
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p.cmd = exec.Command(exe, args...)
	p.cmd.Dir = dir
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}, env...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p.begin = time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { p.err = p.cmd.Wait(); close(p.ended) }()
	return p, nil
}

// stop ends the process as an operator would and reports if it does not end well.
func (p *process) stop() error {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
		return p.failure()
	case <-time.After(20 * time.Second):
		p.kill()
		return p.wrap(errors.New("does not end on SIGTERM"))
	}
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.ended
}

// failure is nil while the process runs and after it ended well.
func (p *process) failure() error {
	select {
	case <-p.ended:
		if p.err != nil {
			return p.wrap(p.err)
		}
	default:
	}
	return nil
}

// wrap names the process and adds the end of what it said.
func (p *process) wrap(err error) error {
	said, _ := os.ReadFile(p.log)
	lines := strings.Split(strings.TrimSpace(string(said)), "\n")
	return fmt.Errorf("%s: %w; it said:\n%s", p.name, err, strings.Join(lines[max(0, len(lines)-8):], "\n"))
}

// wait calls ok until it succeeds and returns how long after the start that was.
func (p *process) wait(ok func() error) (time.Duration, error) {
	for {
		err := ok()
		took := time.Since(p.begin)
		select {
		case <-p.ended:
			return 0, p.wrap(errors.New("ended before it was ready"))
		default:
		}
		if err == nil {
			return took, nil
		}
		if took > 30*time.Second {
			return 0, p.wrap(fmt.Errorf("not ready: %w", err))
		}
		time.Sleep(time.Millisecond)
	}
}

// dial is a condition for wait: somebody listens there.
func dial(address string) func() error {
	return func() error {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
		}
		return err
	}
}

// get is a condition for wait: 200 is answered.
func get(url string) func() error {
	return func() error {
		r, err := http.Get(url)
		if err != nil {
			return err
		}
		r.Body.Close()
		if r.StatusCode != http.StatusOK {
			return errors.New(r.Status)
		}
		return nil
	}
}

// usage is what a process has cost since its start.
type usage struct {
	cpu, system float64 // seconds; system is part of cpu
	rss, peak   int64   // bytes
	written     int64   // bytes given to the block layer
}

// usage reads proc(5). None of the programs measured has children.
func (p *process) usage() (u usage, err error) {
	dir := fmt.Sprintf("/proc/%d/", p.cmd.Process.Pid)
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return u, p.wrap(err)
	}
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+2:])
	u.cpu, u.system = ticks(f[11])+ticks(f[12]), ticks(f[12])
	status, io := pairs(dir+"status"), pairs(dir+"io")
	u.rss, u.peak, u.written = status["VmRSS"]<<10, status["VmHWM"]<<10, io["write_bytes"]
	return u, nil
}

// ticks are USER_HZ, a hundredth of a second on every Linux that Go supports.
func ticks(b []byte) float64 {
	n, _ := strconv.ParseInt(string(b), 10, 64)
	return float64(n) / 100
}

// pairs reads the numbers of a file of "name: number" lines.
func pairs(path string) map[string]int64 {
	m := map[string]int64{}
	text, _ := os.ReadFile(path)
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		k, v, _ := strings.Cut(s.Text(), ":")
		if f := strings.Fields(v); len(f) > 0 {
			m[k], _ = strconv.ParseInt(f[0], 10, 64)
		}
	}
	return m
}

// machine is the CPU time in seconds that the whole machine has spent so far, on
// whatever it was, time stolen by other guests of the host included.
func machine() float64 {
	text, _ := os.ReadFile("/proc/stat")
	line, _, _ := bytes.Cut(text, []byte("\n"))
	var busy float64
	for i, f := range bytes.Fields(line)[1:] {
		if i != 3 && i != 4 && i < 8 { // idle, iowait; guests are in user already
			busy += ticks(f)
		}
	}
	return busy
}

// self is the CPU time in seconds that this program has spent.
func self() float64 {
	var r syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano()).Seconds()
}

// load is the load average of the last minute.
func load() float64 {
	text, _ := os.ReadFile("/proc/loadavg")
	f, _, _ := strings.Cut(string(text), " ")
	v, _ := strconv.ParseFloat(f, 64)
	return v
}

// freePort returns a port of 127.0.0.1 that nobody uses now, below those that the
// kernel gives to outgoing connections.
func freePort() string {
	for {
		address := "127.0.0.1:" + strconv.Itoa(10000+int(time.Now().UnixNano()/1000%20000))
		if l, err := net.Listen("tcp", address); err == nil {
			l.Close()
			return address
		}
	}
}
