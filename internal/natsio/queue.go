package natsio

import (
	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/internal/wire"
)

// queue is messages that wait to be published, in order. Its subjects become one string
// when they are published. It has no lock of its own: the publisher's guards it.
type queue struct {
	messages  []message
	subjects  []byte
	bodies    []byte
	acquired  uint64 // highest claim number that its requests ask for, or 0
	batchable int    // requests that may go in one message with others
}

type message struct {
	verb          wire.Verb // "": an event
	name          int       // where the resource begins, which is the end of the subject if there is none
	subject, body int       // their ends; they begin where those of the message before end
	reply         bool
}

// batchable reports whether the message may go in one with others.
func (m *message) batchable() bool { return m.verb.InBatch() && m.name < m.subject }

// mostWaiting is how many bytes wait for a connection that stands still. What does
// not fit is dropped: the protocol repeats what matters.
const mostWaiting = 4 << 20

func (q *queue) isFull() bool { return len(q.bodies) > mostWaiting }

// addRequest adds a request, whose resource is encoded already. If it is longer than
// most, it goes without what is for people: a lock matters more.
func (q *queue) addRequest(cluster string, r *wire.Request, most int) {
	q.subjects = subject.AppendRequest(q.subjects, cluster, string(r.Verb), r.Client, r.Resource)
	begin := len(q.bodies)
	q.bodies = wire.AppendRequest(q.bodies, r)
	if len(q.bodies)-begin > most {
		r.Note = ""
		if r.Verb == wire.Evict {
			r.Query = ""
		}
		q.bodies = wire.AppendRequest(q.bodies[:begin], r)
	}
	q.end(r.Verb, len(r.Resource), r.Verb != wire.Release && r.Verb != wire.Yield)
	if r.Verb == wire.Acquire {
		q.acquired = max(q.acquired, r.Claim.Seq)
	}
}

// addEvent adds what nobody answers. If it is longer than most, it goes without its note.
func (q *queue) addEvent(cluster, kind, client, resource string, e *wire.EventBody, most int) {
	q.subjects = subject.AppendEvent(q.subjects, cluster, kind, client, resource)
	begin := len(q.bodies)
	if q.bodies = wire.AppendEvent(q.bodies, e); len(q.bodies)-begin > most {
		e.Note = ""
		q.bodies = wire.AppendEvent(q.bodies[:begin], e)
	}
	q.end("", 0, false)
}

func (q *queue) end(verb wire.Verb, name int, reply bool) {
	m := message{verb, len(q.subjects) - name, len(q.subjects), len(q.bodies), reply}
	if q.messages = append(q.messages, m); m.batchable() {
		q.batchable++
	}
}

// emptied is a queue without messages that has the memory of q, unless that is much.
func (q *queue) emptied() queue {
	if cap(q.bodies) > mostWaiting/4 {
		return queue{} // that was a bad time, do not keep it
	}
	return queue{messages: q.messages[:0], subjects: q.subjects[:0], bodies: q.bodies[:0]}
}
