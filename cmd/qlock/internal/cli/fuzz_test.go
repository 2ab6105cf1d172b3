package cli

import (
	"os"
	"testing"
)

// Whatever is published on the subjects of watch, watch displays or ignores it, and
// continues.
func FuzzWatch(f *testing.F) {
	const acquire = `{"instance":"0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a11","seq":7,"beat":5250000,"mode":"exclusive","at":9007199254740991,"ttl_ms":10000,"digest":"00"}`
	for subject, body := range map[string]string{
		"lock.prod.event.acquired.a.x":  `{"mode":"exclusive","token":7,"votes":2,"nodes":3,"waited_ms":1e300,"note":"\u001b[2J"}`,
		"lock.prod.event.lost.a.x":      `{"mode":"","held_ms":-1e300,"evicted_by":"b"}`,
		"lock.prod.event.released.a.%4": `{}`,
		"lock.prod.node.acquire.a.x":    acquire,
		"lock.prod.node.yield.a.x":      `{"instance":"0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a11","seq":7,"beat":1,"node":"n1"}`,
		"lock.prod.node.release.a.x":    `{"instance":"0b8f6f5e-3a64-4a53-9f0e-6d1f0c7c2a11","seq":7,"now":1}`,
		"lock.prod.node.a":              `[{"verb":"acquire","name":"x",` + acquire[1:] + `]`,
		"lock.prod.node":                "", "": "", "....": "[]", "lock..event...": "null",
	} {
		f.Add(subject, []byte(body), false)
		f.Add(subject, []byte(body), true)
	}
	out, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, subject string, body []byte, asJSON bool) {
		w := newWatcher(out, asJSON, "prod")
		for range 2 {
			w.hear(subject, body)
			w.hear("lock.prod.event.acquired.a.x", []byte(`{"mode":"exclusive","token":7}`))
		}
		if err := w.close(); err != nil {
			t.Error(err)
		}
	})
}
