// Package dashboard tests the gateway's dashboard in a real browser.
package dashboard

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/gateway"
	"github.com/qlock/qlock/internal/loopback"
)

var pictures = flag.String("dashboard.pictures", "", "directory for pictures of the pages")

// browserPath finds a browser. CI says which one there must be.
func browserPath(t *testing.T) string {
	t.Helper()
	if name := os.Getenv("QLOCK_BROWSER"); name != "" {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatalf("QLOCK_BROWSER: %v", err)
		}
		return path
	}
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip("there is no Chromium on this machine: install it, or name it in QLOCK_BROWSER")
	return ""
}

type world struct {
	t       *testing.T
	cluster *embedded.Cluster
	gateway *gateway.Gateway
	server  *http.Server
	port    *loopback.Port // kept while no gateway serves
	addr    string
	user    nats.Option                     // as which connect connects
	front   func(http.Handler) http.Handler // stands before the next gateway; nil: nothing does
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := newWorldOf(t, func(*embedded.Config) {})
	w.serve()
	return w
}

// newWorldOf has no gateway yet.
func newWorldOf(t *testing.T, change func(*embedded.Config)) *world {
	t.Helper()
	return newWorldOn(t, 3, change)
}

// newWorldOn has so many servers.
func newWorldOn(t *testing.T, servers int, change func(*embedded.Config)) *world {
	t.Helper()
	browserPath(t)
	cluster, err := embedded.StartCluster(t.Context(), servers, func(_ int, c *embedded.Config) { change(c) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cluster.Close() })
	port, err := loopback.Reserve()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = port.Close() })
	return &world{t: t, cluster: cluster, port: port, addr: fmt.Sprintf("127.0.0.1:%d", port.Number), user: func(*nats.Options) error { return nil }}
}

// connect connects to the first two servers: tests stop the third.
func (w *world) connect() *nats.Conn {
	w.t.Helper()
	servers := w.cluster.Servers()
	nc, err := nats.Connect(servers[0].ClientURL()+","+servers[min(1, len(servers)-1)].ClientURL(), nats.MaxReconnects(-1), nats.Timeout(patience), w.user)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(nc.Close)
	return nc
}

// locker has a long lease: the browser may keep a small machine busy.
func (w *world) locker(name string, opts ...qlock.Option) *qlock.Locker {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	l, err := qlock.New(ctx, w.connect(), append([]qlock.Option{qlock.WithName(name), qlock.WithLease(qlock.DefaultMaxLease)}, opts...)...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = l.Close() })
	return l
}

// serve starts a gateway, also once more under the same address.
func (w *world) serve(change ...func(*gateway.Config)) {
	w.t.Helper()
	cfg := gateway.Config{Conn: w.connect(), Client: "gateway", Check: findings}
	for _, f := range change {
		f(&cfg)
	}
	g, err := gateway.New(w.t.Context(), cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	l, err := net.Listen("tcp", w.addr)
	if err != nil {
		w.t.Fatal(err)
	}
	server := gateway.NewServer(g)
	if w.front != nil {
		server.Handler = w.front(server.Handler)
	}
	w.addr, w.gateway, w.server = l.Addr().String(), g, server
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			w.t.Errorf("serve: %v", err)
		}
	}()
	w.t.Cleanup(func() { _ = server.Close(); _ = g.Close() })
}

// findings stands for qlock check, whose words are tested elsewhere.
func findings(m *qlock.Members) []gateway.Finding {
	out := []gateway.Finding{{Grade: "ok", About: "quorum", Text: fmt.Sprintf("%d nodes vote", m.Voting())}}
	for _, name := range m.Missing() {
		out = append(out, gateway.Finding{Grade: "warning", About: "unreachable", Text: "node " + name + " does not answer", Help: "check that it runs"})
	}
	return out
}

func (w *world) stopServing() {
	_ = w.server.Close()
	_ = w.gateway.Close()
}

// page is a tab of the browser. Whatever its console says of errors and of violations of the
// policy fails the test, unless it is tolerated.
type page struct {
	context.Context
	t         *testing.T
	tolerated []string
}

// open opens a page. What its console may say is settled before: it may say it as soon as the
// page loads.
func (w *world) open(hash string, tolerated ...string) *page {
	w.t.Helper()
	dir, err := os.MkdirTemp("", "qlock-browser-")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		// Processes of the browser may still write there when it has ended.
		for end := time.Now().Add(patience); os.RemoveAll(dir) != nil && time.Now().Before(end); {
			time.Sleep(50 * time.Millisecond)
		}
	})
	opts := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(browserPath(w.t)), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(dir),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.WindowSize(1280, 800), chromedp.WSURLReadTimeout(patience))
	alloc, cancelAlloc := chromedp.NewExecAllocator(context.Background(), opts...)
	ctx, cancel := chromedp.NewContext(alloc)
	p := &page{Context: ctx, t: w.t, tolerated: tolerated}
	said := chromedp.Console(ctx) // starts the browser
	var reading sync.WaitGroup
	reading.Go(func() {
		for m, err := range said {
			if err != nil {
				return
			}
			p.hear(m)
		}
	})
	w.t.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // waits until the browser has ended
		cancel()
		cancelAlloc()
		reading.Wait()
	})
	p.do(chromedp.Navigate("http://" + w.addr + "/" + hash))
	return p
}

// tooSlow is what the browser says of an answer that nodes or NATS were too late for, as they may
// be on a busy machine. The page asks again.
const tooSlow = "the server responded with a status of 503"

func (p *page) hear(m chromedp.ConsoleMessage) {
	if m.Type != "error" && !m.IsException() {
		return
	}
	text := m.Text + " " + m.URL
	for _, ok := range append([]string{tooSlow}, p.tolerated...) {
		if strings.Contains(text, ok) {
			return
		}
	}
	p.t.Errorf("the browser's console: %s", text)
}

// patience is for what a slow machine does late, not for what it may leave out.
var patience = 2 * time.Minute

func TestMain(m *testing.M) {
	flag.DurationVar(&patience, "dashboard.patience", patience, "how long to wait for what must come")
	flag.Parse()
	os.Exit(m.Run())
}

func run[T any](p *page, action chromedp.Action[T]) T {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.Context, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, action)
	if err != nil {
		text, _ := chromedp.Run(p.Context, chromedp.Evaluate[string]("document.body.innerText"))
		p.t.Fatalf("%v\nthe page:\n%.3000s", err, text)
	}
	return v
}

func (p *page) do(actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	for _, a := range actions {
		run(p, a)
	}
}

// until waits for an expression to be true. An element that the expression looks into may not be
// there yet.
func (p *page) until(expression string) {
	p.t.Helper()
	expression = "(() => { try { return " + expression + " } catch (e) { if (e instanceof TypeError) return false; throw e } })()"
	run(p, chromedp.Poll[chromedp.Void](expression, chromedp.WithPollingInterval(50*time.Millisecond), chromedp.WithPollingTimeout(patience)))
}

// has waits for a text.
func (p *page) has(text string) {
	p.t.Helper()
	p.until(fmt.Sprintf("document.body.innerText.includes(%q)", text))
}

func (p *page) number(expression string) int {
	p.t.Helper()
	return run(p, chromedp.Evaluate[int](expression))
}

// click clicks on an element when it is there and nothing covers it. The page looks and clicks in
// one step: what comes in between could move the element away from under the mouse.
func (p *page) click(selector string) {
	p.t.Helper()
	p.until(fmt.Sprintf(`(() => {
		const e = document.querySelector(%q);
		e.scrollIntoView({ block: "nearest" });
		const box = e.getBoundingClientRect();
		if (!e.contains(document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2))) return false;
		e.click();
		return true;
	})()`, selector))
}

// filter types into the filter.
func (p *page) filter(text string) {
	p.t.Helper()
	p.until(`document.getElementById("filter") !== null`)
	p.key("/")
	p.until(`document.activeElement.id === "filter"`)
	// The driver types the / as well, which the page prevents for a keyboard.
	p.do(chromedp.Evaluate[chromedp.Void](`document.activeElement.value = ""; document.activeElement.dispatchEvent(new Event("input", { bubbles: true }))`))
	p.key(text)
}

func (p *page) key(keys string) {
	p.t.Helper()
	p.do(chromedp.KeyEvent(keys))
}

// picture writes the page to a file, if pictures are asked for.
func (p *page) picture(name string, width, height int64, dark bool) {
	p.t.Helper()
	if *pictures == "" {
		return
	}
	scheme := "light"
	if dark {
		scheme = "dark"
	}
	media := emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}}
	if _, err := chromedp.Call(p.Context, emulation.SetEmulatedMedia, media); err != nil {
		p.t.Fatal(err)
	}
	p.do(chromedp.EmulateViewport(width, height), chromedp.Sleep(700*time.Millisecond)) // the list asks its worker for the rows of the new size
	png := run(p, chromedp.CaptureScreenshot())
	if err := os.WriteFile(filepath.Join(*pictures, name+".png"), png, 0o600); err != nil {
		p.t.Fatal(err)
	}
	p.do(chromedp.EmulateViewport(1280, 800))
}
