package sor

import (
	"errors"
	"math"
	"testing"
)

func TestBlocksAreAllRowsOnce(t *testing.T) {
	for rows := SideMin; rows < 40; rows++ {
		for workers := 1; workers <= rows; workers++ {
			p := Problem{Rows: rows, Cols: 3, Steps: 1, Workers: workers}
			next := 0
			for w := range workers {
				first, end := p.block(w)
				if first != next || end <= first {
					t.Fatalf("%+v: block %d is %d to %d, after %d", p, w, first, end, next)
				}
				for row := first; row < end; row++ {
					if p.owner(row) != w {
						t.Fatalf("%+v: row %d is of worker %d, not %d", p, row, p.owner(row), w)
					}
				}
				next = end
			}
			if next != rows {
				t.Fatalf("%+v: the last block ends at %d", p, next)
			}
		}
	}
}

// TestHalvesAreIndependent: the order of rows within a half makes no difference, and no cell but those of the colour changes.
func TestHalvesAreIndependent(t *testing.T) {
	p := Problem{Rows: 9, Cols: 12, Steps: 1, Workers: 1}
	down, up := make([][]float64, p.Rows), make([][]float64, p.Rows)
	for row := range down {
		down[row], up[row] = make([]float64, p.Cols), make([]float64, p.Cols)
		p.first(row, down[row])
		p.first(row, up[row])
	}
	for half := range 2 {
		for row := 1; row < p.Rows-1; row++ {
			relax(down[row-1], down[row], down[row+1], row, half)
			back := p.Rows - 1 - row
			was := append([]float64(nil), up[back]...)
			relax(up[back-1], up[back], up[back+1], back, half)
			for col := range was {
				inside := col > 0 && col < p.Cols-1 && (back+col)%2 == half
				if changed := was[col] != up[back][col]; changed != inside {
					t.Errorf("half %d: row %d, column %d: changed %v", half, back, col, changed)
				}
			}
		}
	}
	grid, err := p.Solve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for row, want := range grid {
		for col := range want {
			if math.Float64bits(up[row][col]) != math.Float64bits(want[col]) || math.Float64bits(down[row][col]) != math.Float64bits(want[col]) {
				t.Errorf("row %d, column %d: %v from above, %v from below, %v", row, col, down[row][col], up[row][col], want[col])
			}
		}
	}
}

// TestSolutionIsHarmonic: after many steps each cell is the mean of those around it.
func TestSolutionIsHarmonic(t *testing.T) {
	g, err := Problem{Rows: 10, Cols: 10, Steps: 300, Workers: 1}.Solve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for row := 1; row < 9; row++ {
		for col := 1; col < 9; col++ {
			mean := (g[row-1][col] + g[row+1][col] + g[row][col-1] + g[row][col+1]) / 4
			if math.Abs(mean-g[row][col]) > 1e-12 {
				t.Errorf("row %d, column %d: %v among %v", row, col, g[row][col], mean)
			}
		}
	}
}

func TestProblemsHaveLimits(t *testing.T) {
	good := Problem{Rows: 100, Cols: 100, Steps: 1, Workers: 3}
	for _, p := range []Problem{
		good, {SideMin, SideMin, StepsMax, SideMin}, {RowsMax, CellsMax / RowsMax, 1, WorkersMax}, {CellsMax / ColsMax, ColsMax, 1, 1},
	} {
		if err := p.Validate(); err != nil {
			t.Errorf("%+v: %v", p, err)
		}
	}
	for _, p := range []Problem{
		{}, {SideMin - 1, 9, 1, 1}, {9, SideMin - 1, 1, 1}, {RowsMax + 1, 9, 1, 1}, {9, ColsMax + 1, 1, 1}, {9, 9, 0, 1}, {9, 9, StepsMax + 1, 1},
		{9, 9, 1, 0}, {9, 9, 1, 10}, {100, 9, 1, WorkersMax + 1}, {RowsMax, CellsMax/RowsMax + 1, 1, 1},
	} {
		if err := p.Validate(); !errors.Is(err, ErrProblem) {
			t.Errorf("%+v: %v", p, err)
		}
	}
	if err := decode(make([]byte, 23), make([]float64, 3)); err == nil {
		t.Error("a short row is read")
	}
}
