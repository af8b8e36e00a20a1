package s3

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"spillway/outputs"
)

var _ outputs.Reloader = (*Output)(nil)

// TestReload is about the SDK's file of credentials: it is read again by Reload and
// after a refusal, and one that can't be used changes nothing.
func TestReload(t *testing.T) {
	setenv(t)
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	path := filepath.Join(t.TempDir(), "credentials")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", path)
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte("[default]\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	key := func(id string) string { return "aws_access_key_id=" + id + "\naws_secret_access_key=x\n" }
	taken := "one" // access key that the server takes
	f := newFar(t, false, func(_ int, w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.Header.Get("Authorization"), "Credential="+taken+"/") {
			refuse(w, 403, "InvalidAccessKeyId")
		}
	})
	write(key("one"))
	o := open(t, settings(f.URL))
	publish := func(requests int) {
		t.Helper()
		before := f.asked()
		if n, err := o.Publish(t.Context(), newRun(o, "a\n")); n != 1 || err != nil {
			t.Errorf("accepted %d: %v", n, err)
		}
		if n := f.asked() - before; n != requests {
			t.Errorf("%d requests, want %d", n, requests)
		}
	}
	publish(1)

	taken = "two"
	write(key("two"))
	publish(2) // the first is refused, and the file read

	taken = "three"
	write(key("three"))
	if err := o.Reload(); err != nil {
		t.Error(err)
	}
	publish(1)

	write("aws_access_key_id=four\n")
	if err := o.Reload(); err == nil || !strings.HasPrefix(err.Error(), "AWS settings of output archive: ") || !strings.Contains(err.Error(), "partial credentials found") || strings.Contains(err.Error(), "\n") {
		t.Errorf("half of a pair of keys: %v", err)
	}
	publish(1)
}
