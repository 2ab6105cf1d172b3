package cli

import (
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/internal/printable"
)

// A command that runs under a lock may ask for another lock, by a program of this kind. To the
// nodes they are two clients. The variables QLOCK_NAME and QLOCK_TOKEN say under which lock a
// program runs, so its note repeats them, for people and for qlock check:
//
//	ada@web1 4711: make, under nightly 1764242561234567

const (
	mostNote  = 256 // bytes of a note
	mostUnder = 64  // bytes of the lock's name in it
)

var underNote = regexp.MustCompile(`(?:^|, )under (.+) ([0-9]+)$`)

// withUnder is a note, and under which lock this program runs, if it does and if that fits.
func withUnder(note string) string {
	name := os.Getenv("QLOCK_NAME")
	token, err := strconv.ParseUint(os.Getenv("QLOCK_TOKEN"), 10, 64)
	if name == "" || err != nil || token == 0 {
		return note
	}
	under := "under " + underName(name) + " " + strconv.FormatUint(token, 10)
	if note != "" {
		under = ", " + under
	}
	if len(printable.Text(note))+len(under) > mostNote {
		return note
	}
	return note + under
}

func underName(name string) string {
	return strings.ToValidUTF8(clipped(printable.Text(name), mostUnder), "")
}

// claimOn is a claim on a lock.
type claimOn struct {
	lock  string
	claim *qlock.ClaimInfo
}

// outerOf returns, by the ID of a claim, the claim under whose lock its program runs.
func outerOf(locks []qlock.LockInfo) map[string]claimOn {
	type key struct {
		name  string
		token uint64
	}
	held := map[key][]claimOn{}
	for i := range locks {
		name := locks[i].Name
		if u := useOf(name); u != nil && (u.Kind == "permit" || u.Kind == "leader") {
			name = u.Of // which is what the command was given
		}
		for h := range locks[i].Holders {
			c := &locks[i].Holders[h]
			k := key{underName(name), c.Token}
			held[k] = append(held[k], claimOn{locks[i].Name, c})
		}
	}
	out := map[string]claimOn{}
	find := func(c *qlock.ClaimInfo) {
		found := underNote.FindStringSubmatch(c.Note)
		if found == nil {
			return
		}
		token, err := strconv.ParseUint(found[2], 10, 64)
		if err != nil {
			return
		}
		// Readers may have one token: then it is not known which of them it is.
		if of := held[key{found[1], token}]; len(of) == 1 && party(of[0].claim) != party(c) {
			out[c.ID] = of[0]
		}
	}
	eachClaim(locks, find)
	return out
}

// eachClaim calls f for the holders and then the waiters of each lock.
func eachClaim(locks []qlock.LockInfo, f func(*qlock.ClaimInfo)) {
	for i := range locks {
		for h := range locks[i].Holders {
			f(&locks[i].Holders[h])
		}
		for q := range locks[i].Queue {
			f(&locks[i].Queue[q])
		}
	}
}
