package driver

import "time"

// closedChannel is what is waited for where there is nothing to wait for.
var closedChannel = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// changed is closed when what h waits for may have changed since the last call.
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

// tellChanged tells whoever waits for a change of what h waits for. Call with m.mu held.
func (m *machine) tellChanged(s *step, h *Hold) {
	w := h.watching()
	if w.changed == nil {
		w.dirty = true
		return
	}
	s.tell = append(s.tell, w.changed)
	w.changed = nil
}

// waiting tells how h stands, which waits; the zero Waiting if it does not.
func (m *machine) waiting(h *Hold) (w Waiting) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h.state != waiting || h.use == nil {
		return w
	}
	now := m.at(time.Now())
	w.For, w.Ahead = m.start.Add(now.Mono).Sub(h.asked), m.table.Ahead(h.use)
	if mode, since, ours := m.table.Ours(now, h.use); ours {
		w.IsOwn, w.Own, w.Known = true, Own{mode, since}, true
		return w
	}
	w.Report = m.table.Report(now, h.use)
	w.Ahead += w.Report.Place
	w.Known = w.Report.Queued
	return w
}

// wanted is closed when somebody else waits for what h holds.
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

// stands is how long h stays held without another message.
func (m *machine) stands(h *Hold) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h.state != held {
		return 0
	}
	return m.table.Stands(m.at(time.Now()), h.use)
}

// refreshed is closed when the refresh that is under way has been answered by a quorum, as
// far as h is concerned; nil if none is.
func (m *machine) refreshed(h *Hold) <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h.state != held || m.closed || m.table.Refreshed(h.use) {
		return nil
	}
	if m.refreshes == nil {
		m.refreshes = map[*Hold]chan struct{}{}
	}
	if m.refreshes[h] == nil {
		m.refreshes[h] = make(chan struct{})
	}
	return m.refreshes[h]
}

// tellRefreshed tells those that wait for the answers to a refresh which have come. Call with
// m.mu held.
func (m *machine) tellRefreshed(s *step) {
	for h, c := range m.refreshes {
		if h.state != held || m.table.Refreshed(h.use) {
			s.tell = append(s.tell, c)
			delete(m.refreshes, h)
		}
	}
}

// tellWanted tells whoever waits for somebody else to want what h holds. Call with m.mu held.
func (m *machine) tellWanted(s *step, h *Hold) {
	if w := h.watch; w != nil && w.wanted != nil && !w.told {
		w.told = true
		s.tell = append(s.tell, w.wanted)
	}
}
