// Package crash runs the buffer and the real binary on the real kernel: power cuts,
// disks that are full, fail or can't be written, and kill -9 at any moment. It needs
// root and loop devices.
package crash

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain runs the tests in a mount and a network namespace of their own. What they
// mount goes with the last process in it, however that ends; its loop devices go with
// what is mounted, and nobody else takes a port from an agent between two lives.
func TestMain(m *testing.M) {
	if arg := os.Getenv(writerEnv); arg != "" {
		os.Exit(runWriter(arg))
	}
	const inside = "SPILLWAY_CRASH_INSIDE"
	if os.Getenv(inside) != "" {
		if err := loopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, "set up the loopback interface of a network namespace:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // Pdeathsig is about the thread
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintf(os.Stderr, "these tests need a mount and a network namespace of their own: %v: run them as root, in a container with CAP_SYS_ADMIN\n", err)
		os.Exit(1)
	}
	code := cmd.ProcessState.ExitCode()
	if code < 0 {
		fmt.Fprintln(os.Stderr, cmd.ProcessState)
		code = 1
	}
	os.Exit(code)
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// setting is a whole number in the environment of the tests.
func setting(name string, otherwise int) int {
	v := os.Getenv(name)
	if v == "" {
		return otherwise
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 {
		panic(fmt.Sprintf("%s=%q: want a whole number above 0", name, v))
	}
	return n
}

// seed is where random tests begin; SPILLWAY_CRASH_SEED repeats a run.
func seed() uint64 { return uint64(setting("SPILLWAY_CRASH_SEED", 1)) }
