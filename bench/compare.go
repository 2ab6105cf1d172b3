package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
)

// change is a figure that differs between two runs by more than it varies within each of
// them.
type change struct {
	workload, rival, figure string
	base, now               spreadOf
	worse                   bool
}

func (c change) relative() float64 { return c.now.median/c.base.median - 1 }

// compare finds what changed from one run to another. It looks at ratios to the floor of
// the same round, and at messages and bytes. It never looks at times, which depend more on
// the machine and on its other load. A figure has changed if all rounds of one run are on
// one side of all rounds of the other. The medians must also differ by the tolerance, since
// consecutive rounds vary less than runs on two days.
func compare(base, now *Report, workloads []*workload, tolerance float64) (changes []change, compared int) {
	for _, wl := range workloads {
		for _, rival := range now.rivals(wl.name) {
			for _, col := range wl.columns {
				var b, n spreadOf
				figure := col.title
				switch {
				case col.ratio:
					if isFloor(base, wl.name, rival) || isFloor(now, wl.name, rival) {
						continue
					}
					b, n = summarize(base.ratios(wl.name, rival, col.key)), summarize(now.ratios(wl.name, rival, col.key))
					figure += " × floor"
				case col.counted:
					b, n = summarize(base.values(wl.name, rival, col.key)), summarize(now.values(wl.name, rival, col.key))
				default:
					continue
				}
				if b.n == 0 || n.n == 0 {
					continue
				}
				compared++
				more, less := n.min > b.max, n.max < b.min
				c := change{wl.name, rival, figure, b, n, more != col.more}
				if (more || less) && (b.median == 0 || math.Abs(c.relative()) >= tolerance) {
					changes = append(changes, c)
				}
			}
		}
	}
	return changes, compared
}

func isFloor(r *Report, workload, rival string) bool {
	return slices.ContainsFunc(r.cells(workload, rival), func(c Cell) bool { return c.Floor == rival })
}

func compareFiles(w io.Writer, files []string, tolerance float64, fail bool) error {
	if len(files) != 2 {
		return errors.New("-compare takes two files: base.json new.json")
	}
	base, err := readReport(files[0])
	if err != nil {
		return err
	}
	now, err := readReport(files[1])
	if err != nil {
		return err
	}
	changes, compared := compare(base, now, allWorkloads, tolerance)
	if compared == 0 {
		return errors.New("the two files have nothing in common that could be compared")
	}
	worse := 0
	var rows [][]string
	for _, c := range changes {
		verdict := "better"
		if c.worse {
			verdict = "**worse**"
			worse++
		}
		plain := column{unit: count}
		rows = append(rows, []string{c.workload, c.rival, c.figure, plain.format(c.base), plain.format(c.now),
			fmt.Sprintf("%+.0f %%", 100*c.relative()), verdict})
	}
	fmt.Fprintf(w, "%d figures compared, %d changed beyond their spread and %s %%, %d for the worse.\n",
		compared, len(changes), significant(100*tolerance), worse)
	if base.Machine.CPU != now.Machine.CPU || base.Machine.Cores != now.Machine.Cores {
		fmt.Fprintln(w, "The machines differ: ratios bear that only so far.")
	}
	if len(rows) > 0 {
		fmt.Fprintln(w)
		markdown(w, []string{"workload", "", "figure", "base", "new", "change", ""},
			[]bool{false, false, false, true, true, true, false}, rows)
	}
	if fail && worse > 0 {
		return fmt.Errorf("%d figures are worse", worse)
	}
	return nil
}
