package dashboard

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/election"
	"github.com/qlock/qlock/embedded"
	"github.com/qlock/qlock/gateway"
	"github.com/qlock/qlock/members"
	"github.com/qlock/qlock/nodes"
	"github.com/qlock/qlock/semaphore"
)

const isLive = `document.querySelector("header .status").textContent === "live"`

func hold(t *testing.T, l *qlock.Locker, name, note string) *qlock.Lock {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	lock, err := l.Lock(qlock.ContextWithNote(ctx, note), name)
	if err != nil {
		t.Fatal(err)
	}
	return lock
}

// wait makes a client wait for a lock, and returns when the nodes have its claim.
func wait(t *testing.T, l *qlock.Locker, name, note string, queued int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		if lock, err := l.Lock(qlock.ContextWithNote(ctx, note), name); err == nil {
			_ = lock.Unlock(context.Background()) // the test is over
		}
	})
	t.Cleanup(func() { cancel(); all.Wait() })
	end := time.Now().Add(patience)
	for {
		info, err := l.Inspect(ctx, name)
		if err == nil && len(info.Queue) == queued {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s is not queued: %v", name, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Locks appear and go without a reload, and so do nodes.
func TestLive(t *testing.T) {
	w := newWorld(t)
	billing := w.locker("billing")
	lock := hold(t, billing, "orders.42", "monthly run")
	p := w.open("")
	p.has("orders.42")
	p.has("monthly run")
	p.has("3/3")
	p.has("voting")
	p.until(isLive)
	hold(t, billing, "orders.43", "")
	p.has("orders.43")
	if err := lock.Unlock(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.until(`!document.querySelector(".list").innerText.includes("orders.42")`)

	if err := w.cluster.Crash("n3"); err != nil {
		t.Fatal(err)
	}
	p.has("node n3 does not answer")
	p.has("2/3")
	p.has("No answer from n3")
	p.picture("node-down", 1280, 800, false)
	p.click(".row.head + .all a")
	p.has("no answer")
	p.picture("lock-node-down", 1280, 800, true)
}

// While the list of nodes changes, the page says how many of each list vote.
func TestListOfNodesChanges(t *testing.T) {
	w := newWorld(t)
	p := w.open("")
	p.has("3 of 3 vote")
	if err := nodes.Change(t.Context(), w.connect(), []string{"n1", "n2"}, nodes.StayJoint()); err != nil {
		t.Fatal(err)
	}
	p.has("The list changes to n1 n2: 2 of 2 vote, and both lists have to.")
	p.has("3 of 3 vote.")
	p.picture("list-changes", 1280, 800, false)
}

// A page whose gateway is gone says so, and goes on by itself with the next one.
func TestStale(t *testing.T) {
	w := newWorld(t)
	billing := w.locker("billing")
	hold(t, billing, "orders.42", "")
	p := w.open("", "net::ERR_")
	p.has("orders.42")
	p.until(isLive)
	w.stopServing()
	p.has("This page is stale")
	p.has("stale:")
	p.has("orders.42")
	p.picture("stale", 1280, 800, false)
	p.picture("stale-narrow", 390, 844, true)
	hold(t, billing, "orders.43", "")
	w.serve()
	p.has("orders.43")
	p.until(isLive)
	p.until(`!document.body.innerText.includes("stale")`)
	p.do(chromedp.Evaluate[chromedp.Void](`location.hash = "#/events"`))
	hold(t, billing, "orders.44", "")
	p.has("orders.44") // the stream of events goes on as well
}

// What clients name is text.
func TestHostileNames(t *testing.T) {
	w := newWorld(t)
	const image = `<img src=x onerror="document.title='broken in'">`
	names := []string{
		image, `"><script>document.title='broken in'</script>`, "a\u202Egnp.exe", "line\nbreak\ttab\x00nul\x1b[31m", "\xff\xfe not text",
		strings.Repeat("long ", 200), "..", ".", "a/../b", "javascript:alert(1)", "`${document.title='broken in'}`", "%3Cb%3E", "__proto__", "{{constructor}}", " ", "\u3164",
	}
	l := w.locker("mallory")
	for _, name := range names {
		hold(t, l, name, image+"\u202E"+name)
	}
	hold(t, l, "qlock.members."+"g"+"."+"<b>x", image)
	wait(t, w.locker("waiter"), image, image, 1)
	p := w.open("")
	p.until(fmt.Sprintf(`document.querySelector(".list").ariaRowCount === "%d"`, len(names)+1))
	p.has(image)
	p.has(`a\u{202E}gnp.exe`)
	p.has(`line\u{A}break\u{9}tab\u{0}nul\u{1B}[31m`)
	p.has("%FF%FE%20not%20text")
	p.picture("hostile", 1280, 800, false)
	check := func() {
		t.Helper()
		if n := p.number(`document.querySelectorAll("#app img, #app script, #app iframe, main b b, [onerror]").length`); n != 0 {
			t.Errorf("%d elements were made of names", n)
		}
		if title := run(p, chromedp.Title()); title != "qlock" {
			t.Errorf("the title is %q", title)
		}
	}
	check()
	for i := range names { // each has a page of its own, where it and its note are shown
		p.do(chromedp.Evaluate[chromedp.Void](fmt.Sprintf(`location.hash = document.querySelectorAll(".all a")[%d].getAttribute("href")`, i)))
		p.until(`location.hash.startsWith("#/lock/")`)
		p.until(`[...document.querySelectorAll(".claim dd")].some((e) => e.textContent === "mallory")`)
		check()
		if i == 0 {
			p.picture("hostile-lock", 1280, 800, true)
		}
		p.do(chromedp.Evaluate[chromedp.Void](`location.hash = "#/"`))
		p.until(fmt.Sprintf(`document.querySelector(".one") === null && document.querySelectorAll(".all a").length > %d`, len(names)))
	}
	p.until(isLive) // it hears events
	hold(t, l, image+"2", image)
	p.do(chromedp.Evaluate[chromedp.Void](`location.hash = "#/events"`))
	p.has(image + "2")
	check()
	p.do(chromedp.Evaluate[chromedp.Void](`location.hash = "#/groups"`))
	p.has("<b>x")
	check()
}

// However many locks there are, few rows are in the page.
func TestManyLocks(t *testing.T) {
	const count = 10_000
	const lease = 5 * time.Minute // a small machine may not keep so many for less
	w := newWorldOf(t, func(c *embedded.Config) { c.Node.MaxLease = lease })
	w.serve()
	l := w.locker("bulk", qlock.WithLease(lease))
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			for j := i; j < count; j += 20 {
				if _, err := l.Lock(t.Context(), fmt.Sprintf("many.%05d", j)); err != nil {
					t.Errorf("%d: %v", j, err)
					return
				}
			}
		})
	}
	all.Wait()
	p := w.open("")
	p.do(chromedp.Evaluate[chromedp.Void](`globalThis.longest = 0; new PerformanceObserver((l) => l.getEntries().forEach((e) => (longest = Math.max(longest, e.duration)))).observe({ entryTypes: ["longtask"] })`))
	p.has("10,000 locks")
	p.has("many.00000")
	few := func() {
		t.Helper()
		if n := p.number(`document.querySelectorAll(".all .row").length`); n < 10 || n > 250 {
			t.Errorf("%d rows are in the page", n)
		}
	}
	few()
	p.picture("many", 1280, 800, false)
	p.picture("many-narrow-dark", 390, 844, true)
	p.do(chromedp.Focus(chromedp.CSS(".list")))
	p.key(kb.End)
	p.until(`document.querySelector(".selected")?.innerText.includes("many.09999")`)
	few()
	p.key("k")
	p.until(`document.querySelector(".selected")?.innerText.includes("many.09998")`)
	p.key(kb.Home)
	p.until(`document.querySelector(".selected")?.innerText.includes("many.00000")`)
	// Scrolls through all of it, and looks at each step whether rows are in view.
	run(p, chromedp.Evaluate[bool](`(async () => {
		const box = document.querySelector(".list");
		for (let top = 0; top < box.scrollHeight; top += box.scrollHeight / 20) {
			box.scrollTop = top;
			const seen = () => [...box.querySelectorAll(".all .row")].some((r) => { const y = r.getBoundingClientRect().top - box.getBoundingClientRect().top; return y > 0 && y < box.clientHeight; });
			for (let i = 0; !seen(); i++) await new Promise(requestAnimationFrame);
		}
		return true;
	})()`, chromedp.EvalAwaitPromise))
	few()
	p.filter("7777")
	p.has("1 shown of 10,000 locks")
	p.until(`document.querySelectorAll(".all .row").length === 1`)
	t.Logf("the longest task took %d ms", p.number("Math.round(longest)"))
}

// The page of a lock has its queue in order, votes by node, and what happens.
func TestLock(t *testing.T) {
	w := newWorld(t)
	lock := hold(t, w.locker("billing"), "orders.42", "monthly run")
	for i := range 5 {
		wait(t, w.locker(fmt.Sprintf("waiter-%d", i)), "orders.42", fmt.Sprintf("waits as number %d", i), i+1)
	}
	p := w.open("#/lock/orders.42")
	p.has("monthly run")
	p.until(`[...document.querySelectorAll("tbody .n + td")].map((e) => e.textContent).join(" ") === "waiter-0 waiter-1 waiter-2 waiter-3 waiter-4"`)
	p.until(`[...document.querySelectorAll(".votes-by-node tbody tr")].filter((r) => r.textContent.includes("billing")).length === 3`)
	p.picture("lock", 1280, 900, false)
	p.until(isLive) // it hears events
	wait(t, w.locker("late"), "orders.42", "", 6)
	p.until(`[...document.querySelectorAll(".history li")].some((e) => e.textContent.includes("late waits"))`)
	if err := lock.Unlock(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.until(`[...document.querySelectorAll(".history li.released")].some((e) => e.textContent.includes("billing"))`)
	p.until(`[...document.querySelectorAll(".history li.acquired")].some((e) => e.textContent.includes("waiter-0"))`)
	p.picture("lock-dark", 1280, 900, true)
	p.picture("lock-narrow", 390, 844, false)
}

// Eviction needs a reason and a confirmation, and reaches the holder.
func TestEvict(t *testing.T) {
	w := newWorld(t)
	lock := hold(t, w.locker("billing"), "orders.42", "monthly run")
	p := w.open("#/lock/orders.42")
	p.until(isLive) // it hears events
	p.until(`document.querySelector(".act .evict:enabled") !== null`)
	p.key("e")
	p.has("Evict the holder?")
	p.key(kb.Escape)
	p.until(`document.querySelector("dialog") === null`)
	p.click(".act .evict")
	p.has("Evict the holder?")
	p.key(kb.Enter) // without a reason
	if lock.Context().Err() != nil {
		t.Fatal("evicted without a reason")
	}
	p.key("it is <b>stuck</b>")
	p.picture("evict", 1280, 800, false)
	p.key(kb.Enter)
	select {
	case <-lock.Context().Done():
	case <-time.After(patience):
		t.Fatal("the lock goes on")
	}
	if cause := context.Cause(lock.Context()); !errors.Is(cause, qlock.ErrEvicted) || !strings.Contains(cause.Error(), "it is <b>stuck</b>") {
		t.Errorf("the holder learns %v", cause)
	}
	// On a slow machine it may not be known within the gateway's two seconds what the nodes have done.
	const unknown = `/unknown whether/.test(document.querySelector("dialog")?.innerText)`
	p.until(unknown + ` || /Evicted:|Its client was told/.test(document.querySelector("dialog")?.innerText)`)
	if run(p, chromedp.Evaluate[bool](unknown)) {
		p.key(kb.Escape)
	} else {
		p.key(kb.Enter) // on the button
	}
	p.until(`document.querySelector("dialog") === null`)
	p.has("lost")
	p.has("It has no holder and no waiters.")
}

// Where NATS does not permit it, the button says so.
func TestEvictForbidden(t *testing.T) {
	w := newWorldOf(t, func(c *embedded.Config) {
		c.ConnOptions = []nats.Option{nats.UserInfo("all", "x")}
		c.Options = func(o *server.Options) {
			o.AuthTimeout = patience.Seconds()
			o.Users = []*server.User{{Username: "all", Password: "x"}, {
				Username: "looker", Password: "x",
				Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"lock.*.admin.evict.>"}, Allow: []string{">"}}},
			}}
		}
	})
	w.user = nats.UserInfo("all", "x")
	lock := hold(t, w.locker("billing"), "orders.42", "")
	w.user = nats.UserInfo("looker", "x")
	w.serve()
	p := w.open("#/lock/orders.42", "403")
	p.until(`document.querySelector(".act .evict:enabled") !== null`)
	p.key("e")
	p.has("Evict the holder?")
	p.key("stuck")
	p.key(kb.Enter)
	p.until(`document.querySelector("dialog .finding") !== null`)
	p.key(kb.Escape)
	p.has("Not permitted: NATS does not let this user evict.")
	p.until(`document.querySelector(".act .evict:disabled") !== null`)
	if lock.Context().Err() != nil {
		t.Error("evicted")
	}
	p.picture("forbidden", 1280, 800, false)
}

// newWorldOfUsers has no gateway yet.
func newWorldOfUsers(t *testing.T) *world {
	t.Helper()
	w := newWorldOf(t, func(c *embedded.Config) {
		c.ConnOptions = []nats.Option{nats.UserInfo("all", "x")}
		c.Options = func(o *server.Options) {
			o.AuthTimeout = patience.Seconds()
			o.Users = []*server.User{{Username: "all", Password: "x"}, {Username: "eve", Password: "sécret"}}
		}
	})
	w.user = nats.UserInfo("all", "x")
	return w
}

// asEach lets a gateway act as the user whose credentials a request has.
func (w *world) asEach(cfg *gateway.Config) {
	url := w.cluster.Servers()[0].ClientURL()
	cfg.Connect = func(_ context.Context, c gateway.Credentials) (*nats.Conn, error) {
		return nats.Connect(url, append(c.Options(), nats.Timeout(patience))...)
	}
}

// With credentials of requests, the page asks for them, and holds them in its memory alone.
func TestSignIn(t *testing.T) {
	w := newWorldOfUsers(t)
	hold(t, w.locker("billing"), "orders.42", "")
	w.serve(w.asEach)
	p := w.open("", "401")
	p.has("Sign in")
	p.picture("sign-in", 1280, 800, false)
	p.do(chromedp.SendKeys(chromedp.CSS("input[name=user]"), "eve"), chromedp.SendKeys(chromedp.CSS("input[name=password]"), "wrong"+kb.Enter))
	p.has("refused")
	p.do(chromedp.Evaluate[chromedp.Void](`document.querySelector("input[name=password]").value = ""`), chromedp.SendKeys(chromedp.CSS("input[name=password]"), "sécret"+kb.Enter))
	p.has("orders.42")
	p.until(isLive)
	if n := p.number(`localStorage.length + sessionStorage.length + document.cookie.length`); n != 0 {
		t.Error("the page stores something")
	}
}

// The answer to a request that was sent before somebody signed in may come afterwards. The page does
// not take it for a refusal of those credentials.
func TestLateRefusals(t *testing.T) {
	for _, late := range []string{"/v1/nodes", "/v1/locks"} {
		t.Run(late, func(t *testing.T) { lateRefusal(t, late) })
	}
}

func lateRefusal(t *testing.T, late string) {
	w := newWorldOfUsers(t)
	hold(t, w.locker("billing"), "orders.42", "")
	accepted, again := make(chan struct{}), make(chan struct{})
	accept, ask := sync.OnceFunc(func() { close(accepted) }), sync.OnceFunc(func() { close(again) })
	w.front = func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			switch signedIn := r.Header.Get("Authorization") != ""; {
			case r.URL.Path != "/v1/nodes" && r.URL.Path != "/v1/locks":
			case r.URL.Path != late && signedIn:
				defer accept()
			case r.URL.Path == late && signedIn:
				ask() // so the page has the late answer
			case r.URL.Path == late:
				select {
				case <-accepted:
				case <-r.Context().Done():
				}
			}
			next.ServeHTTP(rw, r)
		})
	}
	w.serve(w.asEach)
	p := w.open("", "401")
	p.has("Sign in")
	p.do(chromedp.SendKeys(chromedp.CSS("input[name=user]"), "eve"), chromedp.SendKeys(chromedp.CSS("input[name=password]"), "sécret"+kb.Enter))
	select {
	case <-again:
	case <-time.After(patience):
		t.Fatalf("the page does not ask for %s again", late)
	}
	p.has("orders.42")
	p.has("3 of 3 vote")
	p.until(isLive)
}

// What recipes make of locks is shown as what it is.
func TestGroups(t *testing.T) {
	w := newWorld(t)
	l := w.locker("svc-a")
	e, err := election.New(l, "scheduler")
	if err != nil {
		t.Fatal(err)
	}
	leads, err := e.Campaign(t.Context(), "10.0.0.7:8080")
	if err != nil {
		t.Fatal(err)
	}
	other, err := election.New(w.locker("svc-b"), "scheduler")
	if err != nil {
		t.Fatal(err)
	}
	var candidate sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	candidate.Go(func() { _, _ = other.Campaign(ctx, "10.0.0.8:8080") }) // until the test ends
	t.Cleanup(func() { cancel(); candidate.Wait() })
	s, err := semaphore.New(l, "renders", 4)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Acquire(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	g, err := members.New(l, "workers")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Join(t.Context(), "worker-7", "zone=b"); err != nil {
		t.Fatal(err)
	}
	hold(t, l, "qlock.partition.orders.3", "")
	p := w.open("#/groups")
	for _, text := range []string{"Elections", "scheduler", "10.0.0.7:8080", "Semaphores", "renders", "2 permits held", "Members", "worker-7", "zone=b", "Partitions", "partition 3"} {
		p.has(text)
	}
	p.has("10.0.0.8:8080")
	p.has("1 candidate waits.")
	p.picture("groups", 1280, 800, false)
	if err := leads.Proclaim(t.Context(), "10.0.0.9:8080"); err != nil {
		t.Fatal(err)
	}
	p.has("10.0.0.9:8080")
	p.key("1")
	p.until(`[...document.querySelectorAll(".chips button")].length === 5`)
	p.click(".chips button:nth-child(3)")
	p.until(`[...document.querySelectorAll(".all .row")].every((r) => r.textContent.includes("permit") || r.textContent.includes("semaphore"))`)
}

// All of it works without a mouse.
func TestKeys(t *testing.T) {
	w := newWorld(t)
	l := w.locker("billing")
	for i := range 3 {
		hold(t, l, fmt.Sprintf("orders.%d", i), "")
	}
	p := w.open("")
	p.has("orders.2")
	p.key("j")
	p.until(`document.querySelector(".selected")?.innerText.includes("orders.0")`)
	p.key("j")
	p.until(`document.querySelector(".selected")?.innerText.includes("orders.1")`)
	p.key(kb.Enter)
	p.until(`document.querySelector(".one h2")?.textContent.trim() === "orders.1"`)
	p.key(kb.Escape)
	p.until(`document.querySelector(".one") === null`)
	p.filter("orders.2")
	p.until(`document.querySelectorAll(".all .row").length === 1`)
	p.key(kb.ArrowDown)
	p.key(kb.Enter)
	p.until(`document.querySelector(".one h2")?.textContent.trim() === "orders.2"`)
	p.key("3")
	p.has("Clients publish events")
	p.key("2")
	p.has("There are no elections")
	p.key("?")
	p.until(`document.querySelector("dialog")?.open`)
	p.picture("help", 1280, 800, true)
	p.key(kb.Escape)
	p.until(`document.querySelector("dialog") === null`)
}

// A busy cluster, for pictures.
func TestBusy(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	t.Cleanup(func() { cancel(); all.Wait() })
	for i, name := range []string{"billing", "orders", "mail", "search", "reports"} {
		l := w.locker(name)
		all.Go(func() {
			for n := i; ctx.Err() == nil; n++ {
				lock, err := l.Lock(qlock.ContextWithNote(ctx, []string{"host7: nightly report", "monthly run", "import of stock", ""}[n%4]), fmt.Sprintf("%s.%d", []string{"orders", "stock", "reports"}[n%3], n%7))
				if err != nil {
					return
				}
				time.Sleep(time.Duration(20+n*37%400) * time.Millisecond)
				_ = lock.Unlock(ctx) // the test is ending
			}
		})
	}
	hold(t, w.locker("scheduler"), "qlock.election.scheduler.leader", "10.0.0.7:8080")
	hold(t, w.locker("backup"), "nightly", "host3: backup.sh")
	wait(t, w.locker("backup-2"), "nightly", "host4: backup.sh", 1)
	p := w.open("")
	p.has("nightly")
	p.until(isLive)
	p.do(chromedp.Evaluate[chromedp.Void](`location.hash = "#/events"`))
	p.until(`document.querySelectorAll(".event").length > 20`)
	p.picture("events", 1280, 800, false)
	p.picture("events-narrow", 390, 844, true)
	p.do(chromedp.Evaluate[chromedp.Void](`location.hash = "#/"`))
	if *pictures != "" {
		time.Sleep(45 * time.Second)
	}
	p.picture("busy", 1280, 720, false)
	p.picture("busy-dark", 1280, 720, true)
	p.do(chromedp.Evaluate[chromedp.Void](`location.hash = "#/lock/nightly"`))
	p.has("backup-2")
	p.picture("nightly-dark", 1280, 720, true)
}
