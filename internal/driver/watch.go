package driver

import (
	"time"

	"github.com/qlock/qlock/internal/wire"
)

// closedChannel is returned to callers that need not wait.
var closedChannel = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// changed returns a channel that is closed when what h waits for may have changed since the last
// call.
func (m *machine) changed(h *Hold) <-chan struct{} {
	s := m.begin()
	defer m.finish(s)
	w := h.watching()
	if !w.watched {
		w.watched = true
		if h.state == waiting && !h.request.terms().Watch && !m.closed {
			m.table.Watch(s.now, h.use, &s.Out)
		}
	}
	if w.dirty {
		w.dirty = false
		return closedChannel
	}
	if w.changed == nil {
		w.changed = make(chan struct{})
	}
	return w.changed
}

// tellChanged wakes the caller that waits for a change of what h waits for. The caller holds m.mu.
func (m *machine) tellChanged(s *step, h *Hold) {
	w := h.watching()
	if w.changed == nil {
		w.dirty = true
		return
	}
	s.tell = append(s.tell, w.changed)
	w.changed = nil
}

// waiting returns the status of h, or the zero Waiting if h does not wait.
func (m *machine) waiting(h *Hold) (w Waiting) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h.state != waiting || h.use == nil {
		return w
	}
	now := m.at(time.Now())
	w.For, w.Ahead = m.start.Add(now.Mono).Sub(h.asked), m.table.Ahead(h.use)
	if w.Own, w.IsOwn = m.table.Ours(now, h.use); w.IsOwn {
		w.Known = true
		return w
	}
	w.Report = m.table.Report(now, h.use)
	w.Ahead += w.Report.Place
	w.Known = w.Report.Queued
	return w
}

// wanted returns a channel that is closed when somebody else waits for what h holds.
func (m *machine) wanted(h *Hold) <-chan struct{} {
	s := m.begin()
	defer m.finish(s)
	w := h.watching()
	if w.wanted == nil {
		w.wanted = make(chan struct{})
		if h.state == held && !m.closed {
			m.table.Wanted(s.now, h.use, &s.Out)
		}
	}
	return w.wanted
}

// stands returns how long h stays held without another message.
func (m *machine) stands(h *Hold) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h.state != held {
		return 0
	}
	return m.table.Stands(m.at(time.Now()), h.use)
}

// refreshing is for callers that wait for the answers to a refresh. The machine's mutex guards it.
type refreshing struct {
	done    chan struct{} // to close when it is answered
	waiters int
}

// refreshed returns what to wait for until a quorum has answered the refresh in progress for h. It
// returns nil if there is none. The caller must call leaveRefresh afterwards.
func (m *machine) refreshed(h *Hold) *refreshing {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h.state != held || m.closed || m.table.Refreshed(h.use) {
		return nil
	}
	r := m.refreshes[h]
	if r == nil {
		if m.refreshes == nil {
			m.refreshes = map[*Hold]*refreshing{}
		}
		r = &refreshing{done: make(chan struct{})}
		m.refreshes[h] = r
	}
	r.waiters++
	return r
}

// leaveRefresh forgets a caller that waited. Otherwise a hold would stay in memory until the nodes
// answer, which may be never.
func (m *machine) leaveRefresh(h *Hold, r *refreshing) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.waiters--; r.waiters == 0 && m.refreshes[h] == r {
		delete(m.refreshes, h)
	}
}

// ended returns why h, which was granted, is not held, or nil if it is held. noticed is false if it
// is not held any more, and nobody has noticed yet.
func (m *machine) ended(h *Hold) (why error, noticed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case h.lost != nil:
		return h.lost, true
	case h.state != held:
		return ErrUnlocked, true
	}
	return nil, m.table.HeldAt(m.at(time.Now()), h.use)
}

// tellRefreshed wakes the callers whose refresh has been answered. Only answers to refreshes are
// worth looking at all of them. The caller holds m.mu.
func (m *machine) tellRefreshed(s *step, a *wire.Answer) {
	if a.Kind != wire.Refreshed {
		return
	}
	for h, r := range m.refreshes {
		if h.state != held || m.table.Refreshed(h.use) {
			s.tell = append(s.tell, r.done)
			delete(m.refreshes, h)
		}
	}
}

// tellWanted wakes callers that wait until somebody else wants what h holds. The caller holds m.mu.
func (m *machine) tellWanted(s *step, h *Hold) {
	if w := h.watch; w != nil && w.wanted != nil && !w.told {
		w.told = true
		s.tell = append(s.tell, w.wanted)
	}
}
