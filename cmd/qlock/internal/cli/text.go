package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/term"

	"github.com/qlock/qlock/internal/printable"
	"github.com/qlock/qlock/internal/subject"
)

// printableLines does what printable.Text does, but keeps line breaks.
func printableLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = printable.Text(lines[i])
	}
	return strings.Join(lines, "\n")
}

// encoded returns a lock's name as in subjects and permissions. Reports need it because a
// name may be any bytes, while JSON has only UTF-8 text.
func encoded(name string) string {
	s, _ := subject.EncodeName(name) // the name is valid
	return s
}

// lockNamed returns a lock's name for people. A name that is not visible as it is appears
// between $' and ', from where it can be copied to bash and zsh.
func lockNamed(name string) string {
	if printable.Text(name) == name && strings.TrimSpace(name) == name {
		return name
	}
	return "$'" + printable.Escape(name, `\'`) + "'"
}

// jsonText returns v as JSON in one line, or indented in several. Characters that a
// terminal would not show as they are become \uXXXX, which is equivalent to a program.
func jsonText(v any, indent string) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", indent)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	out := make([]byte, 0, b.Len())
	for _, r := range b.String() {
		if r < 0x7f || strconv.IsPrint(r) {
			out = utf8.AppendRune(out, r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			out = fmt.Appendf(out, `\u%04x`, unit)
		}
	}
	return out, nil
}

// json writes v for a program.
func (a *app) json(v any) error {
	b, err := jsonText(v, "  ")
	if err == nil {
		_, err = a.out.Write(b)
	}
	return err
}

// age formats a duration for people, with about two digits.
func age(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return short(d.Round(time.Second))
	case d < 2*day:
		return short(d.Round(time.Minute))
	}
	return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
}

// size returns the size of the terminal f, or zeros if f is not a terminal.
func size(f *os.File) (width, height int) {
	width, height, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0, 0
	}
	return width, height
}

// wrapped breaks s between words at width columns. If width is 0, it breaks nowhere.
func wrapped(s string, width int) string {
	if width <= 0 {
		return s
	}
	return trailing.ReplaceAllString(text.WrapSoft(s, width), "")
}

var trailing = regexp.MustCompile(`(?m) +$`)

// column is a column of a grid, which is a table that fits a terminal.
type column struct {
	title string
	right bool
	least int  // minimal width if it may be shortened; 0: it may not
	end   bool // a shortened value keeps its end
	drop  int  // left out if the table is too wide, the highest first; 0: never
}

type grid struct {
	title   string
	columns []column
	rows    [][]string
}

// render returns the table, and the titles of the columns that it left out. If width is 0,
// the width is not limited.
func (g *grid) render(width int) (string, []string) {
	var without []string
	keep := make([]int, len(g.columns))
	for i := range keep {
		keep[i] = i
	}
	for {
		widths, ok := g.fit(keep, width)
		last := slices.MaxFunc(keep, func(i, j int) int { return g.columns[i].drop - g.columns[j].drop })
		if ok || g.columns[last].drop == 0 {
			return g.draw(keep, widths), without
		}
		keep = slices.DeleteFunc(keep, func(i int) bool { return i == last })
		without = append(without, g.columns[last].title)
	}
}

// fit shortens columns, the longest first, until all fit.
func (g *grid) fit(keep []int, width int) ([]int, bool) {
	widths := make([]int, len(keep))
	total := 3*len(keep) + 1
	for k, i := range keep {
		widths[k] = text.StringWidthWithoutEscSequences(g.columns[i].title)
		for _, row := range g.rows {
			widths[k] = max(widths[k], text.StringWidthWithoutEscSequences(row[i]))
		}
		total += widths[k]
	}
	for width > 0 && total > width {
		longest := -1
		for k, i := range keep {
			if least := g.columns[i].least; least > 0 && widths[k] > least && (longest < 0 || widths[k] > widths[longest]) {
				longest = k
			}
		}
		if longest < 0 {
			return widths, false
		}
		widths[longest]--
		total--
	}
	return widths, true
}

func (g *grid) draw(keep []int, widths []int) string {
	t := table.NewWriter()
	t.SetStyle(table.StyleRounded) // as in the nats command
	t.Style().Title.Align = text.AlignCenter
	t.Style().Format.Header = text.FormatDefault
	t.SetTitle(g.title)
	head, configs := table.Row{}, []table.ColumnConfig{}
	for k, i := range keep {
		head = append(head, g.columns[i].title)
		c := table.ColumnConfig{Number: k + 1}
		if g.columns[i].right {
			c.Align, c.AlignHeader = text.AlignRight, text.AlignRight
		}
		configs = append(configs, c)
	}
	t.AppendHeader(head)
	t.SetColumnConfigs(configs)
	for _, row := range g.rows {
		cells := table.Row{}
		for k, i := range keep {
			cell := row[i]
			if text.StringWidthWithoutEscSequences(cell) > widths[k] {
				tail := ""
				if g.columns[i].end {
					tail = tailOf(cell, (widths[k]-1)/2)
				}
				cell = text.Snip(cell, widths[k]-text.StringWidthWithoutEscSequences(tail), "…") + tail
			}
			cells = append(cells, cell)
		}
		t.AppendRow(cells)
	}
	return t.Render() + "\n"
}

// tailOf returns the longest end of s that is not wider than width. s must have no colours.
func tailOf(s string, width int) string {
	runes := []rune(s)
	i := len(runes)
	for ; i > 0 && width >= text.RuneWidth(runes[i-1]); i-- {
		width -= text.RuneWidth(runes[i-1])
	}
	return string(runes[i:])
}
