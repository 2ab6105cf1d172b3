package members

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Limits of names and metadata, in bytes.
const (
	MaxGroup = 64
	MaxID    = 256
	MaxMeta  = 256 // that of a note of a lock
)

// ErrInvalid: a name of a group, an id or metadata that cannot be one.
var ErrInvalid = errors.New("members: invalid argument")

// The locks of a group are
//
//	qlock.members.GROUP.ID            held by the member; its note is the metadata of Join
//	qlock.members.GROUP.@TOKEN.N.ID   held as well; its note is the N-th metadata after that
//
// A lock has the note that it was acquired with. So new metadata is a lock more, that of
// the metadata before is then released, and there is no moment in which the member has
// neither. TOKEN is the token of the member's own lock: what a former member of the same
// id left behind, until its lease is over, has another.
const prefix = "qlock.members."

// ParseName splits the name of a lock that a member holds, such as
// qlock.members.workers.7, for those who show locks. It reports false for other names.
func ParseName(lock string) (group, id string, ok bool) {
	p, ok := parse(lock)
	return p.group, p.id, ok
}

type parsed struct {
	group, id string
	token     uint64 // of the member, if this lock is for its metadata
	n         uint64 // of the metadata; 0: the member's own lock
}

func parse(lock string) (p parsed, ok bool) {
	rest, ok := strings.CutPrefix(lock, prefix)
	if !ok {
		return parsed{}, false
	}
	group, rest, ok := strings.Cut(rest, ".")
	if !ok || checkGroup(group) != nil {
		return parsed{}, false
	}
	p = parsed{group: group, id: rest}
	if meta, isMeta := strings.CutPrefix(rest, "@"); isMeta {
		part := strings.SplitN(meta, ".", 3)
		if len(part) < 3 {
			return parsed{}, false
		}
		var err1, err2 error
		p.token, err1 = strconv.ParseUint(part[0], 10, 64)
		p.n, err2 = strconv.ParseUint(part[1], 10, 64)
		p.id = part[2]
		if err1 != nil || err2 != nil || p.token == 0 || p.n == 0 {
			return parsed{}, false
		}
	}
	return p, checkID(p.id) == nil
}

func memberLock(group, id string) string { return prefix + group + "." + id }

func metaLock(group, id string, token, n uint64) string {
	return fmt.Sprintf("%s%s.@%d.%d.%s", prefix, group, token, n, id)
}

func pattern(group string) string { return prefix + group + ".>" }

func checkGroup(group string) error {
	if group == "" || len(group) > MaxGroup {
		return fmt.Errorf("%w: the name of a group has 1 to %d bytes, got %d", ErrInvalid, MaxGroup, len(group))
	}
	for _, c := range []byte(group) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-') {
			return fmt.Errorf("%w: the name of a group %q: use letters, digits, _ and -", ErrInvalid, group)
		}
	}
	return nil
}

func checkID(id string) error {
	switch {
	case id == "" || len(id) > MaxID:
		return fmt.Errorf("%w: the id of a member has 1 to %d bytes, got %d", ErrInvalid, MaxID, len(id))
	case id[0] == '@':
		return fmt.Errorf("%w: the id %q: ids that begin with @ are reserved", ErrInvalid, id)
	}
	return nil
}

// checkMeta accepts what a note of a lock shows as it is.
func checkMeta(meta string) error {
	if len(meta) > MaxMeta {
		return fmt.Errorf("%w: metadata of %d bytes, the limit is %d: keep more elsewhere, and its address here", ErrInvalid, len(meta), MaxMeta)
	}
	if !utf8.ValidString(meta) {
		return fmt.Errorf("%w: the metadata is not UTF-8: encode it, for example with base64", ErrInvalid)
	}
	for _, r := range meta {
		if !strconv.IsPrint(r) {
			return fmt.Errorf("%w: the metadata has the character %q, which is not printable: encode it, for example as JSON", ErrInvalid, r)
		}
	}
	return nil
}
