package bench

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// usage is what a process has cost since its start. None of the programs that are
// measured has children.
type usage struct {
	cpu       float64 // seconds
	rss, peak int64   // bytes
	written   int64   // bytes given to the block layer
}

// used reads proc(5).
func used(t testing.TB, pid int) (u usage) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/", pid)
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		t.Fatal(err)
	}
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+2:])
	u.cpu = ticks(f[11]) + ticks(f[12])
	u.rss, u.peak, u.written = number(dir+"status", "VmRSS")<<10, number(dir+"status", "VmHWM")<<10, number(dir+"io", "write_bytes")
	return u
}

// ticks are hundredths of a second on every Linux that Go supports.
func ticks(b []byte) float64 {
	n, _ := strconv.ParseInt(string(b), 10, 64)
	return float64(n) / 100
}

// number is the number behind name in a file of "name: number" lines.
func number(path, name string) int64 {
	n, _, _ := strings.Cut(text(path, name), " ")
	v, _ := strconv.ParseInt(n, 10, 64)
	return v
}

// text is what stands behind name in a file of "name: text" lines.
func text(path, name string) string {
	all, _ := os.ReadFile(path)
	for line := range strings.Lines(string(all)) {
		if k, v, _ := strings.Cut(line, ":"); strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// foreign is the CPU time in seconds that the machine has spent so far on anything
// but this process and those of its children that have ended: kernel threads,
// interrupts and what the host gave to other guests included.
func foreign() float64 {
	stat, _ := os.ReadFile("/proc/stat")
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	var busy float64
	for i, f := range bytes.Fields(line)[1:] {
		if i < 8 && i != 3 && i != 4 { // idle and iowait; guests, behind, are in user already
			busy += ticks(f)
		}
	}
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var r syscall.Rusage
		syscall.Getrusage(who, &r)
		busy -= time.Duration(r.Utime.Nano() + r.Stime.Nano()).Seconds()
	}
	return busy
}

// load is the load average of the last minute.
func load() float64 {
	b, _ := os.ReadFile("/proc/loadavg")
	f, _, _ := strings.Cut(string(b), " ")
	v, _ := strconv.ParseFloat(f, 64)
	return v
}

// host describes the machine.
func host() string {
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	model := text("/proc/cpuinfo", "model name")
	if model == "" {
		model = runtime.GOARCH
	}
	return fmt.Sprintf("%s, %d CPUs, %d MiB, Linux %s", model, runtime.NumCPU(), number("/proc/meminfo", "MemTotal")>>10, bytes.TrimSpace(release))
}
