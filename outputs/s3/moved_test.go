package s3

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"spillway/outputs"
)

// Moved follows what the far side takes: it is called all along, and not for bytes
// that only lie in a buffer of this host.
func TestMoved(t *testing.T) {
	setenv(t)
	const size, window = 8 << 20, 64 << 10
	release := make(chan struct{})
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"1"`)
		w.WriteHeader(http.StatusContinue)
		<-release
		_, _ = io.Copy(io.Discard, r.Body)
	}))
	server.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if err := c.(*net.TCPConn).SetReadBuffer(window); err != nil {
			t.Error(err)
		}
		return ctx
	}
	server.Start()
	defer server.Close()
	o := open(t, settings(server.URL))
	run := newRun(o, strings.Repeat("x", size))
	var moved atomic.Int64
	done := make(chan error, 1)
	go func() {
		_, err := o.Publish(outputs.WithMoved(t.Context(), func() { moved.Add(1) }), run)
		done <- err
	}()
	// The far side takes nothing: the calls come to a stand.
	var last int64
	for still := 0; still < 20; still++ {
		time.Sleep(10 * time.Millisecond)
		if n := moved.Load(); n != last || n == 0 {
			last, still = n, 0
		}
	}
	t.Logf("%d KiB", last*movedStep>>10)
	if most := int64(1 << 20); last*movedStep > most {
		t.Errorf("%d bytes are told as moved to a far side that takes none, want at most %d", last*movedStep, most)
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := moved.Load(); n < size/movedStep/2 || n > size/movedStep {
		t.Errorf("%d calls for %d bytes", n, size)
	}
}
