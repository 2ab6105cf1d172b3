//go:build unix

package chaos

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

func TestChaos(t *testing.T) {
	const around = 2 * time.Minute // for start, recovery and checks; they take seconds
	if end, ok := t.Deadline(); ok && time.Until(end) < *runFor+around {
		t.Fatalf("-chaos.for=%v and %v around it do not fit into what is left of -timeout, %v", *runFor, around, time.Until(end).Round(time.Second))
	}
	faults := schedule(*seed, *runFor)
	again := fmt.Sprintf("go test ./integration/chaos -run '^TestChaos$' -v -chaos.for=%v -chaos.seed=%d", *runFor, *seed)
	t.Logf("seed %d, %d faults in %v; the same again, but for how the processes run: %s", *seed, len(faults), *runFor, again)
	w := start(t, *seed)
	began := time.Now()
	w.play(faults)
	time.Sleep(time.Until(began.Add(*runFor)))
	recovered := w.finish()
	took := time.Since(began)
	w.logs()
	w.store.close()

	w.rec.accesses = w.store.accesses
	found, figures, illegal := w.rec.check()
	w.illegal = illegal
	found = append(w.found, found...)
	text := w.report(figures, found, took, recovered)
	t.Logf("\n%s", text)
	if *reportFile != "" {
		must(t, os.WriteFile(*reportFile, []byte(text), 0o666))
	}
	for i, v := range found {
		if i == 20 {
			t.Errorf("and %d violations more", len(found)-i)
			break
		}
		t.Errorf("%s: %s", v.kind, v.text)
	}
	if figures.exclusive == 0 || figures.shared == 0 {
		t.Error("nothing was granted: the run shows nothing")
	}
	if t.Failed() {
		t.Logf("seed %d. To run it again: %s", *seed, again)
	}
}

// keep leaves the record of a run that failed.
func (w *world) keep() {
	dir := w.t.ArtifactDir()
	files, _ := filepath.Glob(filepath.Join(w.dir, "*.log"))
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil && len(text) > 0 {
			_ = os.WriteFile(filepath.Join(dir, filepath.Base(f)), text, 0o666)
		}
	}
	var b strings.Builder
	for _, h := range w.rec.holdings {
		fmt.Fprintf(&b, "%+v\n", *h)
	}
	_ = os.WriteFile(filepath.Join(dir, "holdings.txt"), []byte(b.String()), 0o666)
	b.Reset()
	for _, a := range w.rec.accesses {
		fmt.Fprintf(&b, "%+v\n", a)
	}
	_ = os.WriteFile(filepath.Join(dir, "accesses.txt"), []byte(b.String()), 0o666)
	b.Reset()
	for _, name := range sortedKeys(w.rec.lives) {
		fmt.Fprintf(&b, "%s %+v\n", name, *w.rec.lives[name])
	}
	_ = os.WriteFile(filepath.Join(dir, "lives.txt"), []byte(b.String()), 0o666)
	if w.illegal != nil {
		_, info := porcupine.CheckOperationsVerbose(model, w.illegal, time.Minute)
		_ = porcupine.VisualizePath(model, info, filepath.Join(dir, "history.html"))
	}
	w.t.Logf("the record is in %s, kept with go test -artifacts", dir)
}

// report is the figures of a run, for a person.
func (w *world) report(f figures, found []violation, took, recovered time.Duration) string {
	var b strings.Builder
	head := func(text string) { fmt.Fprintf(&b, "%s\n", text) }
	row := func(what string, n any) {
		if d, ok := n.(time.Duration); ok {
			n = d.Round(time.Millisecond)
		}
		fmt.Fprintf(&b, "  %-55s%10v\n", what, n)
	}
	rows := func(counts map[string]int, format string) (all int) {
		for _, what := range sortedKeys(counts) {
			row(fmt.Sprintf(format, what), counts[what])
			all += counts[what]
		}
		return all
	}
	head(fmt.Sprintf("chaos: %d nodes, %d clients of %d workers, %d locks, leases of %v", nodes, clients, workers, len(resources), lease))
	row("seed", *seed)
	row("faults for", *runFor)
	row("in all, with recovery and the clients' end", took)
	head("locks granted")
	row("exclusive", f.exclusive)
	row("shared", f.shared)
	row("in all", f.exclusive+f.shared)
	rows(w.denied, "not granted: %s")
	rows(w.evicted, "evictions: %s")
	row("longest time without a grant to anybody", f.silence)
	head("how they ended")
	row("unlocked", f.unlocked)
	row("lost: the holder was told", f.lost)
	row("killed with the holder", f.killed)
	if f.handed > 0 {
		row(fmt.Sprintf("shortest time from the telling to the next grant, of %d", f.handed), f.notice)
	}
	head("faults injected")
	row("in all", rows(w.faults, "%s"))
	head("harm done to links among these")
	rows(w.harm, "%s")
	head("the store")
	row("reads taken", f.read)
	row("writes taken, each the increment of the one before", f.written)
	row("stale reads refused", f.reads.all())
	row("stale writes refused", f.writes.all())
	row("  the holder had been told of its loss", f.writes.told)
	row("  the holder was stopped", f.writes.stopped)
	row("  the holder's process was late, by the machine's load", f.writes.starved)
	head("the check")
	row("operations checked by porcupine", f.operations)
	row("in", f.checked)
	row("longest pause of a client that nobody had stopped", f.tardiest)
	row("after the last fault every worker had a lock within", recovered)
	row("violations", len(found))
	kinds := map[string]int{}
	for _, v := range found {
		kinds[v.kind]++
	}
	rows(kinds, "  %s")
	return b.String()
}
