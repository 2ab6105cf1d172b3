package gateway

import (
	"bytes"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

var terraformBinary = flag.String("gateway.terraform", "", "a terraform or tofu to run against a gateway")

// TestTerraformBinary runs the binary itself: init, applies that exclude each other, an apply
// that is killed, force-unlock, and a writer whose lock was removed. terraform_data is built
// in, so nothing is downloaded.
//
//	go test ./gateway -run TestTerraformBinary -gateway.terraform terraform -v
func TestTerraformBinary(t *testing.T) {
	if *terraformBinary == "" {
		t.Skip("-gateway.terraform terraform runs it")
	}
	g := newStateWorld(t, 3).gateway(func(c *Config) { c.Drain = time.Millisecond })
	var mu sync.Mutex
	var wire []string
	lost := 0 // answers to LOCK that are to be lost
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		wire = append(wire, r.Method+" "+r.URL.RequestURI()+" "+r.Header.Get("Content-Type"))
		lose := r.Method == "LOCK" && lost > 0
		if lose {
			lost--
		}
		mu.Unlock()
		if lose {
			g.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		}
		g.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	address := srv.URL + "/v1/stores/tf/terraform/net"
	work := func(sleep string) string {
		dir := t.TempDir()
		text := `terraform {
  backend "http" {
    address        = "` + address + `"
    lock_address   = "` + address + `"
    unlock_address = "` + address + `"
    retry_wait_min = 1
  }
}
variable "v" { default = "a" }
resource "terraform_data" "x" {
  input            = var.v
  triggers_replace = var.v
  provisioner "local-exec" { command = "` + sleep + `" }
}
`
		if err := os.WriteFile(filepath.Join(dir, "main.tf"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	command := func(dir string, args ...string) (*exec.Cmd, *bytes.Buffer) {
		cmd := exec.Command(*terraformBinary, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "CHECKPOINT_DISABLE=1", "TF_IN_AUTOMATION=1", "NO_COLOR=1")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		return cmd, &out
	}
	run := func(ok bool, want, dir string, args ...string) string {
		t.Helper()
		cmd, out := command(dir, append(args, "-no-color")...)
		if err := cmd.Run(); (err == nil) != ok || !strings.Contains(out.String(), want) {
			t.Fatalf("%v: %v\n%s\n%s", args, err, out, strings.Join(wire, "\n"))
		}
		return out.String()
	}
	begun := filepath.Join(t.TempDir(), "begun")
	quick, slow := work("true"), work("touch "+begun+"; sleep 20")
	lockID := regexp.MustCompile(`ID:\s+([0-9a-f-]{36})`)
	awaitApply := func() {
		for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
			if _, err := os.Stat(begun); err == nil {
				return
			}
			if time.Now().After(end) {
				t.Fatal("the apply does not begin")
			}
		}
	}
	apply := []string{"apply", "-auto-approve", "-input=false"}
	run(true, "successfully initialized", quick, "init", "-input=false")
	run(true, "successfully initialized", slow, "init", "-input=false")
	run(true, "1 added", quick, apply...)
	run(true, "0 added", quick, apply...)
	mu.Lock()
	lost = 1
	mu.Unlock()
	run(true, "0 added", quick, apply...)

	// A second apply is refused while the first runs, and the first is killed.
	first, _ := command(slow, append(apply, "-no-color", "-var", "v=b")...)
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	awaitApply()
	run(false, "Error acquiring the state lock", quick, apply...)
	_ = first.Process.Kill()
	_ = first.Wait()
	out := run(false, "Error acquiring the state lock", quick, apply...)
	id := lockID.FindStringSubmatch(out)
	if id == nil {
		t.Fatalf("the holder is not shown:\n%s", out)
	}
	run(true, "successfully unlocked", quick, "force-unlock", "-force", id[1])
	run(true, "", quick, apply...)

	// The lock of an apply is removed while it runs, and another applies. The first must not
	// overwrite what that one wrote.
	_ = os.Remove(begun)
	first, text := command(slow, append(apply, "-no-color", "-var", "v=c")...)
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	awaitApply()
	out = run(false, "Error acquiring the state lock", quick, apply...)
	run(true, "", quick, "force-unlock", "-force", lockID.FindStringSubmatch(out)[1])
	run(true, "", quick, append(apply, "-var", "v=d")...)
	if err := first.Wait(); err == nil {
		t.Errorf("an apply without its lock has written:\n%s", text)
	}
	if out := run(true, "", quick, "state", "pull"); !strings.Contains(out, `"d"`) || strings.Contains(out, `"c"`) {
		t.Errorf("%s", out)
	}
	run(true, "", quick, append(apply, "-lock=false", "-var", "v=e")...)
	t.Log(strings.Join(wire, "\n"))
}
