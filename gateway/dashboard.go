package gateway

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"net/http"
	"path"
	"strconv"
	"time"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/election"
	"github.com/qlock/qlock/members"
	"github.com/qlock/qlock/partition"
	"github.com/qlock/qlock/queue"
	"github.com/qlock/qlock/semaphore"
)

// The dashboard is a page that uses the API as every other caller does. Its files are served
// as they are, without a build step, and nothing is loaded from elsewhere.

//go:embed web/ui
var dashboardFiles embed.FS

// dashboardPolicy lets the page make one policy for trusted types: the address of its worker.
const dashboardPolicy = policy + "; trusted-types qlock"

var contentTypes = map[string]string{
	".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
	".svg": "image/svg+xml", ".md": "text/plain; charset=utf-8", ".LICENSE": "text/plain; charset=utf-8",
}

// dashboard serves the page at / and its files below /ui/.
func (g *Gateway) dashboard(mux *http.ServeMux) {
	err := fs.WalkDir(dashboardFiles, "web/ui", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := dashboardFiles.ReadFile(name)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(text)
		kind, etag := contentTypes[path.Ext(name)], `"`+hex.EncodeToString(sum[:8])+`"`
		pattern := "GET /" + name[len("web/"):]
		if name == "web/ui/index.html" {
			pattern = "GET /{$}"
		}
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			h := w.Header()
			h.Set("Content-Type", kind)
			h.Set("ETag", etag)
			h.Set("Cache-Control", "no-cache") // a new gateway has new files under the same names
			h.Set("Content-Security-Policy", dashboardPolicy)
			h.Set("Referrer-Policy", "no-referrer")
			h.Set("Cross-Origin-Resource-Policy", "same-origin")
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(text))
		})
		return nil
	})
	if err != nil {
		panic(err) // the files are in the program
	}
}

// Finding is the result of a check of the cluster, in the words of qlock check.
type Finding struct {
	Grade string `json:"grade" enum:"ok,warning,problem"`
	About string `json:"about" doc:"a word for programs"`
	Text  string `json:"text"`
	Help  string `json:"help,omitempty" doc:"what to do about it"`
}

func (g *Gateway) findings(m *qlock.Members) []Finding {
	if g.cfg.Check == nil {
		return []Finding{}
	}
	return append([]Finding{}, g.cfg.Check(m)...)
}

// Use is the purpose of a lock that a recipe made, according to its name.
type Use struct {
	Kind string `json:"kind" enum:"leader,leader-value,semaphore-queue,permit,member,member-metadata,partition,queue-key"`
	Of   string `json:"of" doc:"the name of the election, semaphore, group or queue"`
	Part string `json:"part,omitempty" doc:"the number of the permit or partition, the id of the member, or the key"`
}

// useOf is nil for an ordinary lock.
func useOf(lock string) *Use {
	if shown(lock) == "" {
		return nil // its parts could not be written
	}
	if name, leader, ok := election.ParseName(lock); ok {
		if leader {
			return &Use{Kind: "leader", Of: name}
		}
		return &Use{Kind: "leader-value", Of: name}
	}
	if name, permit, ok := semaphore.ParseName(lock); ok {
		if permit == 0 {
			return &Use{Kind: "semaphore-queue", Of: name}
		}
		return &Use{Kind: "permit", Of: name, Part: strconv.Itoa(permit)}
	}
	if group, id, ok := members.ParseName(lock); ok {
		if lock == "qlock.members."+group+"."+id {
			return &Use{Kind: "member", Of: group, Part: id}
		}
		return &Use{Kind: "member-metadata", Of: group, Part: id}
	}
	if group, number, ok := partition.ParseName(lock); ok {
		return &Use{Kind: "partition", Of: group, Part: strconv.Itoa(number)}
	}
	if name, key, ok := queue.ParseName(lock); ok {
		return &Use{Kind: "queue-key", Of: name, Part: key}
	}
	return nil
}
