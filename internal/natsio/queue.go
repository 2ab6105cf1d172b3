package natsio

import (
	"github.com/qlock/qlock/internal/subject"
	"github.com/qlock/qlock/internal/wire"
)

// queue holds messages that wait to be published, in order. Its subjects become one string
// when they are published. It has no lock of its own: the publisher's guards it.
type queue struct {
	messages  []message
	subjects  []byte
	bodies    []byte
	acquired  uint64 // highest claim number that its requests ask for, or 0
	batchable int    // number of requests that may share a message with others
}

type message struct {
	verb wire.Verb // "": an event
	// where the resource begins; the end of the subject if there is none
	name          int
	subject, body int // where they end; they begin where those of the previous message end
	reply         bool
}

// batchable reports whether the message may share a message with others.
func (m *message) batchable() bool { return m.verb.InBatch() && m.name < m.subject }

// mostWaiting is how many bytes may wait for a blocked connection. Messages beyond that are
// dropped: the protocol repeats what matters.
const mostWaiting = 4 << 20

func (q *queue) isFull() bool { return len(q.bodies) > mostWaiting }

// addRequest adds a request, whose resource must be encoded already. If it is longer than
// most bytes, it is sent without the texts for people, because the lock matters more.
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

// addEvent adds an event. If it is longer than most bytes, it is sent without its note.
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

// emptied returns an empty queue that reuses the memory of q, unless that is large.
func (q *queue) emptied() queue {
	if cap(q.bodies) > mostWaiting/4 {
		return queue{} // it grew in an exceptional situation: free it
	}
	return queue{messages: q.messages[:0], subjects: q.subjects[:0], bodies: q.bodies[:0]}
}
