package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Report is the result of a run: all measurements, unprocessed.
type Report struct {
	Machine  Machine  `json:"machine"`
	Settings settings `json:"settings"`
	Cells    []Cell   `json:"cells"`
}

// Cell is one workload on one rival in one round.
type Cell struct {
	Workload   string             `json:"workload"`
	Rival      string             `json:"rival"`
	Transport  string             `json:"transport"`
	Floor      string             `json:"floor"` // the rival that ratios refer to
	Round      int                `json:"round"`
	Values     map[string]float64 `json:"values,omitempty"`
	Violations int64              `json:"violations,omitempty"` // of exclusion
	Note       string             `json:"note,omitempty"`
	Error      string             `json:"error,omitempty"`
	Skipped    string             `json:"skipped,omitempty"`
}

func readReport(name string) (*Report, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	r := new(Report)
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return r, nil
}

func (r *Report) write(name string) error {
	data, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(name, append(data, '\n'), 0o644)
}

// failed returns an error with everything that a reader of the tables must not overlook.
func (r *Report) failed() error {
	var errs []error
	for _, c := range r.Cells {
		if c.Violations > 0 {
			errs = append(errs, fmt.Errorf("%s, %s, round %d: exclusion was violated %d times: %s", c.Workload, c.Rival, c.Round, c.Violations, c.Note))
		}
		if c.Error != "" {
			errs = append(errs, fmt.Errorf("%s, %s, round %d: %s", c.Workload, c.Rival, c.Round, c.Error))
		}
	}
	return errors.Join(errs...)
}

// column is one figure of a workload.
type column struct {
	key, title string
	unit       unit
	more       bool // more is better
	ratio      bool // a ratio to the floor: comparable between machines
	counted    bool // messages or bytes: comparable as they are
}

type unit int

const (
	nanoseconds unit = iota
	perSecond
	count
	fraction
	percent
	byteCount
)

// rivals returns the names of the rivals that have cells of a workload, in order.
func (r *Report) rivals(workload string) (names []string) {
	for _, c := range r.Cells {
		if c.Workload == workload && !slices.Contains(names, c.Rival) {
			names = append(names, c.Rival)
		}
	}
	return names
}

func (r *Report) cells(workload, rival string) (cells []Cell) {
	for _, c := range r.Cells {
		if c.Workload == workload && c.Rival == rival {
			cells = append(cells, c)
		}
	}
	return cells
}

func (r *Report) values(workload, rival, key string) (values []float64) {
	for _, c := range r.cells(workload, rival) {
		if v, ok := c.Values[key]; ok {
			values = append(values, v)
		}
	}
	return values
}

// ratios returns a rival's values divided by those of its floor in the same round.
func (r *Report) ratios(workload, rival, key string) (ratios []float64) {
	for _, c := range r.cells(workload, rival) {
		v, ok := c.Values[key]
		if !ok {
			continue
		}
		for _, f := range r.cells(workload, c.Floor) {
			if base := f.Values[key]; f.Round == c.Round && base != 0 {
				ratios = append(ratios, v/base)
			}
		}
	}
	return ratios
}

// table writes a workload's table as Markdown that is also readable as plain text.
func (r *Report) table(w io.Writer, wl *workload) {
	columns := slices.DeleteFunc(slices.Clone(wl.columns), func(c column) bool {
		return !slices.ContainsFunc(r.rivals(wl.name), func(rival string) bool { return len(r.values(wl.name, rival, c.key)) > 0 })
	})
	head := []string{"", "transport"}
	right := []bool{false, false}
	for _, c := range columns {
		head, right = append(head, c.title), append(right, true)
		if c.ratio {
			head, right = append(head, "× floor"), append(right, true)
		}
	}
	head, right = append(head, "exclusion"), append(right, false)
	var rows [][]string
	var notes []string
	for _, rival := range r.rivals(wl.name) {
		cells := r.cells(wl.name, rival)
		row := []string{rival, cells[0].Transport}
		for _, c := range columns {
			row = append(row, c.format(summarize(r.values(wl.name, rival, c.key))))
			if c.ratio {
				row = append(row, formatRatio(summarize(r.ratios(wl.name, rival, c.key))))
			}
		}
		rows = append(rows, append(row, exclusion(cells)))
		for _, c := range cells {
			for _, text := range []string{c.Note, c.Skipped, c.Error} {
				if line := rival + ": " + text; text != "" && !slices.Contains(notes, line) {
					notes = append(notes, line)
				}
			}
		}
	}
	markdown(w, head, right, rows)
	for i, line := range notes {
		if i == 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "- %s\n", strings.ReplaceAll(line, "\n", "; "))
	}
}

func exclusion(cells []Cell) string {
	var violations int64
	checked := false
	for _, c := range cells {
		violations += c.Violations
		checked = checked || len(c.Values) > 0
	}
	switch {
	case violations > 0:
		return fmt.Sprintf("**violated %d times**", violations)
	case !checked || strings.HasPrefix(cells[0].Rival, "floor"):
		return "–"
	}
	return "kept"
}

func markdown(w io.Writer, head []string, right []bool, rows [][]string) {
	width := make([]int, len(head))
	for _, row := range append([][]string{head}, rows...) {
		for i, s := range row {
			width[i] = max(width[i], utf8.RuneCountInString(s), 3)
		}
	}
	line := func(row []string) {
		for i, s := range row {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(s))
			if right[i] {
				s = pad + s
			} else {
				s += pad
			}
			fmt.Fprintf(w, "| %s ", s)
		}
		fmt.Fprintln(w, "|")
	}
	line(head)
	for i := range head {
		rule := strings.Repeat("-", width[i])
		if right[i] {
			rule = rule[1:] + ":"
		}
		fmt.Fprintf(w, "| %s ", rule)
	}
	fmt.Fprintln(w, "|")
	for _, row := range rows {
		line(row)
	}
}

// format returns the median, and also the minimum and the maximum where they differ.
func (c column) format(s spreadOf) string {
	if s.n == 0 {
		return "–"
	}
	scale, name := c.unit.scale(s.median)
	number := func(x float64) string { return significant(x / scale) }
	out := number(s.median) + name
	if least, most := number(s.min), number(s.max); s.n > 1 && least != most {
		out += fmt.Sprintf(" (%s–%s)", least, most)
	}
	return out
}

func (u unit) scale(x float64) (float64, string) {
	switch u {
	case nanoseconds:
		switch {
		case x < 1e3:
			return 1, " ns"
		case x < 1e6:
			return 1e3, " µs"
		case x < 1e9:
			return 1e6, " ms"
		}
		return 1e9, " s"
	case byteCount:
		switch {
		case x < 10e3:
			return 1, " B"
		case x < 10e6:
			return 1e3, " kB"
		}
		return 1e6, " MB"
	case percent:
		return 0.01, " %"
	}
	return 1, ""
}

func formatRatio(s spreadOf) string {
	if s.n == 0 {
		return "–"
	}
	return significant(s.median)
}

// significant writes three digits, or all digits before the decimal point.
func significant(x float64) string {
	if math.IsNaN(x) {
		return "–"
	}
	digits := 2
	if a := math.Abs(x); a >= 1 {
		digits = max(0, 2-int(math.Floor(math.Log10(a))))
	}
	s := strconv.FormatFloat(x, 'f', digits, 64)
	if strings.Contains(s, ".") {
		return strings.TrimSuffix(strings.TrimRight(s, "0"), ".")
	}
	if n, err := strconv.Atoi(s); err == nil {
		return thousands(n)
	}
	return s
}

func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// section writes a workload's part of the page: the table and how it was made.
func (r *Report) section(w io.Writer, wl *workload) {
	rounds := 0
	for _, c := range r.Cells {
		if c.Workload == wl.name {
			rounds = max(rounds, c.Round+1)
		}
	}
	fmt.Fprintf(w, "%s. Median (least–most) of rounds: %d, %s.\n\n", upperFirst(wl.title), rounds, wl.extent(r.Settings))
	r.table(w, wl)
}

func upperFirst(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// replaceSections puts the measurements into a page, between the markers <!-- bench:NAME
// --> and <!-- /bench:NAME -->, and leaves the rest of the page unchanged.
func (r *Report) replaceSections(page string, workloads []*workload) (string, error) {
	page, err := replaceBetween(page, "machine", r.machineText())
	for _, wl := range workloads {
		if err != nil {
			return "", err
		}
		var text strings.Builder
		r.section(&text, wl)
		page, err = replaceBetween(page, wl.name, text.String())
	}
	return page, err
}

func replaceBetween(page, name, text string) (string, error) {
	begin, end := "<!-- bench:"+name+" -->", "<!-- /bench:"+name+" -->"
	before, rest, ok := strings.Cut(page, begin)
	if !ok {
		return "", fmt.Errorf("the page has no marker %s", begin)
	}
	_, after, ok := strings.Cut(rest, end)
	if !ok {
		return "", fmt.Errorf("the page has no marker %s after %s", end, begin)
	}
	return before + begin + "\n\n" + strings.TrimSpace(text) + "\n\n" + end + after, nil
}
