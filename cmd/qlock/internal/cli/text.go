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

// printableLines is printable for what has lines of its own.
func printableLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = printable.Text(lines[i])
	}
	return strings.Join(lines, "\n")
}

// encoded is a lock's name as in subjects and permissions: what no encoding of text
// changes, as names are any bytes and JSON has none but those of UTF-8.
func encoded(name string) string {
	s, _ := subject.EncodeName(name) // of a name that is one
	return s
}

// lockNamed is a lock's name: as it is, or where that could not be seen between $' and
// ', where bash and zsh take it from.
func lockNamed(name string) string {
	if printable.Text(name) == name && strings.TrimSpace(name) == name {
		return name
	}
	return "$'" + printable.Escape(name, `\'`) + "'"
}

// jsonText is v in one line of JSON, or indented in several. What a terminal would not
// show as it is is written \uXXXX, which is the same to a program.
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

// json writes v for a program to read.
func (a *app) json(v any) error {
	b, err := jsonText(v, "  ")
	if err == nil {
		_, err = a.out.Write(b)
	}
	return err
}

// age is what a person wants to know of a duration: two digits or so.
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

// size is that of the terminal that f is; 0 where there is none.
func size(f *os.File) (width, height int) {
	width, height, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0, 0
	}
	return width, height
}

// wrapped breaks s between words, at the width of a terminal; 0: nowhere.
func wrapped(s string, width int) string {
	if width <= 0 {
		return s
	}
	return trailing.ReplaceAllString(text.WrapSoft(s, width), "")
}

var trailing = regexp.MustCompile(`(?m) +$`)

// column is one of a grid, which is a table that fits a terminal.
type column struct {
	title string
	right bool
	least int  // it may be shortened to so much; 0: it may not
	end   bool // what is shortened keeps its end
	drop  int  // left out if all does not fit otherwise: the highest first; 0: never
}

type grid struct {
	title   string
	columns []column
	rows    [][]string
}

// render gives the table, and the titles of what it had no room for. width 0: there
// is room for all.
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

// fit shortens what may be, the longest first, until the columns fit.
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

// tailOf is as much of the end of s, which has no colours, as is not wider than width.
func tailOf(s string, width int) string {
	runes := []rune(s)
	i := len(runes)
	for ; i > 0 && width >= text.RuneWidth(runes[i-1]); i-- {
		width -= text.RuneWidth(runes[i-1])
	}
	return string(runes[i:])
}
