package sor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// Limits of problems.
const (
	// SideMin is the least of rows and columns: a border, and something inside.
	SideMin = 3
	// RowsMax bounds the rows, each of which is an object; ColsMax the cells of one, which fit an object's megabyte.
	RowsMax = 1 << 15
	ColsMax = 1 << 17
	// CellsMax bounds the grid: 128 MiB.
	CellsMax = 1 << 24
	// StepsMax bounds the steps.
	StepsMax = 1_000_000
	// WorkersMax bounds the workers.
	WorkersMax = 64
)

// ErrProblem matches the error about a problem that is none.
var ErrProblem = errors.New("sor: no such problem")

// Problem says what is to be solved, and by how many. Its border stays as it is.
type Problem struct {
	Rows    int `json:"rows"` // the border is among them
	Cols    int `json:"cols"`
	Steps   int `json:"steps"`
	Workers int `json:"workers"`
}

// Validate says what is wrong with a problem. The error matches [ErrProblem].
func (p Problem) Validate() error {
	for _, c := range []struct {
		what        string
		n, min, max int
	}{
		{"rows", p.Rows, SideMin, RowsMax}, {"columns", p.Cols, SideMin, ColsMax}, {"steps", p.Steps, 1, StepsMax},
		{"workers", p.Workers, 1, min(WorkersMax, max(p.Rows, 1))},
	} {
		if c.n < c.min || c.n > c.max {
			return fmt.Errorf("%w: %d %s: give %d to %d", ErrProblem, c.n, c.what, c.min, c.max)
		}
	}
	if p.Rows*p.Cols > CellsMax {
		return fmt.Errorf("%w: %d cells: at most %d", ErrProblem, p.Rows*p.Cols, CellsMax)
	}
	return nil
}

// block returns the rows of a worker: from first, to before end.
func (p Problem) block(worker int) (first, end int) {
	return p.Rows * worker / p.Workers, p.Rows * (worker + 1) / p.Workers
}

// owner returns the worker whose row it is.
func (p Problem) owner(row int) int {
	w := row * p.Workers / p.Rows
	for _, end := p.block(w); row >= end; _, end = p.block(w) {
		w++
	}
	return w
}

// object names the object of a row. Those of a block are kept by one group.
func (p Problem) object(row int) string { return fmt.Sprintf("rows/%d/%d", p.owner(row), row) }

// first writes a row as it is at first: numbers from 0 to 1 that look drawn, so that a cell that was forgotten shows.
func (p Problem) first(row int, cells []float64) {
	for col := range cells {
		x := uint64(row)<<32 + uint64(col) + 0x9e3779b97f4a7c15 // splitmix64
		x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
		x = (x ^ x>>27) * 0x94d049bb133111eb
		cells[col] = float64((x^x>>31)>>11) / (1 << 53)
	}
}

// omega is by how much a cell goes beyond the mean of those around it.
const omega = 1.5

// relax makes the cells of a colour in a row that is not of the border. Every product and sum is rounded for itself: the result is the same on
// every machine.
func relax(above, cells, below []float64, row, colour int) {
	for col := 1 + (row+colour+1)%2; col < len(cells)-1; col += 2 {
		sum := float64(float64(above[col]+below[col]) + float64(cells[col-1]+cells[col+1]))
		cells[col] = float64(cells[col] + float64(omega*float64(float64(sum*0.25)-cells[col])))
	}
}

// Solve does all of it alone, and returns the rows. It fails with the cause of ctx.
func (p Problem) Solve(ctx context.Context) ([][]float64, error) {
	grid := make([][]float64, p.Rows)
	for row := range grid {
		grid[row] = make([]float64, p.Cols)
		p.first(row, grid[row])
	}
	for half := range 2 * p.Steps {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		for row := 1; row < p.Rows-1; row++ {
			relax(grid[row-1], grid[row], grid[row+1], row, half%2)
		}
	}
	return grid, nil
}

// encode appends cells to b, 8 bytes each.
func encode(b []byte, cells []float64) []byte {
	for _, c := range cells {
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(c))
	}
	return b
}

// decode reads a row.
func decode(b []byte, cells []float64) error {
	if len(b) != 8*len(cells) {
		return fmt.Errorf("sor: a row of %d bytes, not %d", len(b), 8*len(cells))
	}
	for i := range cells {
		cells[i] = math.Float64frombits(binary.LittleEndian.Uint64(b[8*i:]))
	}
	return nil
}
