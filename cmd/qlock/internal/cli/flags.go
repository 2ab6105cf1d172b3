package cli

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

const (
	annotationEnv   = "qlock-env"
	annotationGroup = "qlock-group"
)

// env assigns an environment variable to a flag, and adds the variable to its help.
func env(fs *pflag.FlagSet, flag, variable string) {
	f := fs.Lookup(flag)
	f.Usage += " [" + variable + "]"
	if err := fs.SetAnnotation(flag, annotationEnv, []string{variable}); err != nil {
		panic(err) // there is no such flag: a bug of this program
	}
}

// fromEnvironment sets the flags that were not given from their variables. An empty
// variable counts as not set, because compose files leave one out like that.
func fromEnvironment(fs *pflag.FlagSet) error {
	var errs []error
	fs.VisitAll(func(f *pflag.Flag) {
		variables := f.Annotations[annotationEnv]
		if f.Changed || len(variables) == 0 {
			return
		}
		value := os.Getenv(variables[0])
		if value == "" {
			return
		}
		if err := fs.Set(f.Name, value); err != nil {
			errs = append(errs, fmt.Errorf("environment variable %s (--%s)%s: %w", variables[0], f.Name, quoted(f.Name, value), cause(err)))
		}
	})
	if err := errors.Join(errs...); err != nil {
		return usage("%w", err)
	}
	return nil
}

// quoted returns an invalid value for an error message. It returns nothing for a value that
// may be or contain a secret.
func quoted(flag, value string) string {
	switch flag {
	case "server", "routes", "user", "password", "token", "route-user", "route-password":
		return ""
	}
	return fmt.Sprintf(" %q", value)
}

// cause removes pflag's own text from an error about a value.
func cause(err error) error {
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) {
		return invalid.Unwrap()
	}
	return err
}

// durationValue is a duration of at least min.
type durationValue struct {
	d   *time.Duration
	min time.Duration
}

func durationFlag(fs *pflag.FlagSet, d *time.Duration, name string, value, min time.Duration, use string) {
	*d = value
	fs.Var(&durationValue{d, min}, name, use)
}

func (v *durationValue) Set(s string) error {
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		return errors.New("use a duration such as 500ms, 10s or 2m")
	case d < v.min:
		return fmt.Errorf("use a duration of at least %v", v.min)
	}
	*v.d = d
	return nil
}

func (v *durationValue) Type() string { return "duration" }
func (v *durationValue) String() string {
	if *v.d == 0 {
		return "" // so that help shows no default if there is none
	}
	return short(*v.d)
}

// short formats a duration without the units that are zero: 1m, not 1m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// choiceValue is one of a few words.
type choiceValue struct {
	s       *string
	allowed []string
}

func choiceFlag(fs *pflag.FlagSet, s *string, name, value string, allowed []string, use string) {
	*s = value
	fs.Var(&choiceValue{s, allowed}, name, use+": "+strings.Join(allowed, ", "))
}

func (v *choiceValue) Set(s string) error {
	if !slices.Contains(v.allowed, s) {
		return fmt.Errorf("allowed are %s", strings.Join(v.allowed, ", "))
	}
	*v.s = s
	return nil
}

func (v *choiceValue) Type() string   { return "word" }
func (v *choiceValue) String() string { return *v.s }

// countValue is a number within bounds.
type countValue struct {
	n        *int
	min, max int
}

func countFlag(fs *pflag.FlagSet, n *int, name string, value, min, max int, use string) {
	*n = value
	fs.Var(&countValue{n, min, max}, name, use)
}

func (v *countValue) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < v.min || n > v.max {
		return fmt.Errorf("use a whole number from %d to %d", v.min, v.max)
	}
	*v.n = n
	return nil
}

func (v *countValue) Type() string { return "number" }
func (v *countValue) String() string {
	if *v.n == 0 {
		return ""
	}
	return strconv.Itoa(*v.n)
}

// sizeValue is a number of bytes within bounds, such as 64KiB.
type sizeValue struct {
	n        *int64
	min, max int64
}

func sizeFlag(fs *pflag.FlagSet, n *int64, name string, value, min, max int64, use string) {
	*n = value
	fs.Var(&sizeValue{n, min, max}, name, use)
}

var sizeUnits = []struct {
	name string
	n    int64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

func (v *sizeValue) Set(s string) error {
	number, unit := s, int64(1)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(s, u.name); ok {
			number, unit = rest, u.n
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < v.min/unit || n > v.max/unit || n*unit < v.min {
		return fmt.Errorf("use a number of bytes such as 65536, 64KiB or 1MiB, from %s to %s", sizeText(v.min), sizeText(v.max))
	}
	*v.n = n * unit
	return nil
}

func sizeText(n int64) string {
	for _, u := range sizeUnits {
		if n >= u.n && n%u.n == 0 {
			return strconv.FormatInt(n/u.n, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

func (v *sizeValue) Type() string   { return "size" }
func (v *sizeValue) String() string { return sizeText(*v.n) }

// addressValue is host:port.
type addressValue struct{ s *string }

func addressFlag(fs *pflag.FlagSet, s *string, name, value, use string) {
	*s = value
	fs.Var(&addressValue{s}, name, use)
}

func (v *addressValue) Set(s string) error {
	if s != "" {
		if _, _, err := splitAddress(s); err != nil {
			return err
		}
	}
	*v.s = s
	return nil
}

func (v *addressValue) Type() string   { return "host:port" }
func (v *addressValue) String() string { return *v.s }

func splitAddress(s string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(s)
	if err == nil {
		port, err = strconv.Atoi(p)
	}
	if err != nil || port < 0 || port > 65535 {
		return "", 0, errors.New("use an address such as 0.0.0.0:4222, with a port from 0 (any that is free) to 65535")
	}
	return orElse(host, "0.0.0.0"), port, nil
}
