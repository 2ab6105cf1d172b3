package child

import (
	"encoding/json"
	"io"
	"sync"
)

// Journal writes what a child says. Its method is safe for concurrent use.
type Journal struct {
	mu  sync.Mutex // one line at a time
	out io.Writer
}

// NewJournal returns a journal that writes to out, which is the child's standard output.
func NewJournal(out io.Writer) *Journal { return &Journal{out: out} }

// Write writes a line.
func (j *Journal) Write(line any) {
	text, err := json.Marshal(line)
	if err != nil {
		panic(err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	// A parent that does not read any more is dead, and so are its children soon.
	_, _ = j.out.Write(append(text, '\n'))
}
