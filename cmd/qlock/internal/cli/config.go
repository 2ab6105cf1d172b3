package cli

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/spf13/pflag"
)

// configFile is a YAML file whose keys are names of flags.
type configFile struct {
	path   string
	values []setting
}

type setting struct {
	key   string
	line  int
	value []string // one value, or the elements of a list
	list  bool
}

func (s setting) text() string { return strings.Join(s.value, ",") }

// readConfig reads a file. If path is empty, the result has no values.
func readConfig(path string) (*configFile, error) {
	f := &configFile{path: path}
	if path == "" {
		return f, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, usage("--config: %w", err)
	}
	tree, err := parser.ParseBytes(text, 0)
	if err != nil {
		// Without the lines around the fault, which may contain passwords.
		return nil, usage("--config %s: not YAML: %s", path, yaml.FormatError(err, false, false))
	}
	if len(tree.Docs) > 1 {
		return nil, usage("--config %s: it has several documents; only one is allowed", path)
	}
	if len(tree.Docs) == 0 || tree.Docs[0].Body == nil {
		return f, nil
	}
	var pairs []*ast.MappingValueNode
	switch n := tree.Docs[0].Body.(type) {
	case *ast.MappingNode:
		pairs = n.Values
	case *ast.MappingValueNode:
		pairs = []*ast.MappingValueNode{n}
	case *ast.CommentGroupNode:
	default:
		return nil, usage("--config %s:%d: use lines such as \"name: n1\"", path, n.GetToken().Position.Line)
	}
	for _, p := range pairs {
		s := setting{key: p.Key.GetToken().Value, line: p.Key.GetToken().Position.Line}
		if s.value, s.list, err = scalars(p.Value); err != nil {
			return nil, usage("--config %s:%d: %s: %w", path, s.line, s.key, err)
		}
		f.values = append(f.values, s)
	}
	return f, nil
}

// scalars returns the strings of a value: one, or those of a list.
func scalars(n ast.Node) ([]string, bool, error) {
	switch n := n.(type) {
	case *ast.SequenceNode:
		var out []string
		for _, v := range n.Values {
			s, list, err := scalars(v)
			if err != nil || list {
				return nil, true, errors.New("use a list of words")
			}
			out = append(out, s...)
		}
		return out, true, nil
	case *ast.MappingNode, *ast.MappingValueNode:
		return nil, false, errors.New("use a word or a list, not keys under keys")
	case *ast.NullNode:
		return []string{""}, false, nil
	case *ast.StringNode:
		return []string{n.Value}, false, nil
	case *ast.LiteralNode:
		return []string{n.Value.Value}, false, nil
	case ast.ScalarNode:
		return []string{n.GetToken().Value}, false, nil
	}
	return nil, false, errors.New("use a word, a number or a list")
}

// notInFile has the flags that a file cannot set. A file with bootstrap would permit the
// node to forget its votes at every start, and a file with config would name itself.
var notInFile = []string{"config", "bootstrap", "help"}

// apply sets the flags that neither the command line nor the environment set.
func (f *configFile) apply(fs *pflag.FlagSet) error {
	seen := map[string]bool{}
	var errs []error
	for _, s := range f.values {
		flag := fs.Lookup(s.key)
		fault := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("%s:%d: %s: %w", f.path, s.line, s.key, fmt.Errorf(format, args...)))
		}
		switch {
		case flag == nil || slices.Contains(notInFile, s.key):
			fault("there is no such setting%s", closest(fs, s.key))
		case seen[s.key]:
			fault("it is set twice")
		case s.list && flag.Value.Type() != "stringSlice":
			fault("it takes one value, not a list")
		case flag.Changed && !seen[s.key]:
		default:
			if err := fs.Set(s.key, s.text()); err != nil {
				fault("%s%w", strings.TrimPrefix(quoted(s.key, s.text())+": ", " "), cause(err))
			}
		}
		seen[s.key] = true
	}
	if err := errors.Join(errs...); err != nil {
		return usage("--config: %w", err)
	}
	return nil
}

// closest returns a hint at the flag that was probably meant.
func closest(fs *pflag.FlagSet, key string) string {
	best, least := "", 3
	fs.VisitAll(func(f *pflag.Flag) {
		if d := distance(f.Name, strings.ReplaceAll(key, "_", "-")); d < least && !slices.Contains(notInFile, f.Name) {
			best, least = f.Name, d
		}
	})
	if best == "" {
		return "; settings are named like the flags of qlock node"
	}
	return fmt.Sprintf(", did you mean %s?", best)
}

// distance returns the Levenshtein distance. It is for words as short as names of flags.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		left := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := left
			if a[i] != b[j] {
				change++
			}
			left = row[j+1]
			row[j+1] = min(change, left+1, row[j]+1)
		}
	}
	return row[len(b)]
}

// reload handles SIGHUP. It applies those changes that a running node can apply, and logs
// the names of the others. An invalid file changes nothing.
func (o *nodeOptions) reload(before *configFile, certs *certificates, level *slog.LevelVar, log *slog.Logger) *configFile {
	now, err := readConfig(o.config)
	if err == nil {
		var trial nodeOptions
		check := pflag.NewFlagSet("reload", pflag.ContinueOnError)
		trial.flags(check)
		err = now.apply(check)
	}
	if err != nil {
		log.Error("reload failed, nothing was changed", "error", plain(err))
		return before
	}
	if err := certs.load(); err != nil {
		log.Error("reload: certificates are unchanged", "error", plain(err))
	}
	was, is := before.byKey(), now.byKey()
	var restart []string
	for key := range merged(was, is) {
		if was[key] == is[key] {
			continue
		}
		if key != "log-level" {
			restart = append(restart, key)
			continue
		}
		if o.levelFixed {
			log.Warn("reload: a flag or the environment overrides the file", "key", key)
			continue
		}
		o.level = orElse(is[key], "info")
		level.Set(parseLevel(o.level))
	}
	slices.Sort(restart)
	if len(restart) > 0 {
		log.Warn("reload: these settings changed and need a restart", "keys", restart)
	}
	log.Info("reloaded", "log_level", o.level)
	return now
}

func (f *configFile) byKey() map[string]string {
	m := map[string]string{}
	for _, s := range f.values {
		m[s.key] = s.text()
	}
	return m
}

func merged(a, b map[string]string) map[string]string {
	m := maps.Clone(a)
	maps.Copy(m, b)
	return m
}
