package apps

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/coherence"
	"latchkey/testnet"
	"latchkey/testnet/apps/sor"
	"latchkey/testnet/apps/tsp"
)

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// TestSorSurvives kills a peer after a checkpoint, and has one join: the result is that of one process, to the last bit.
func TestSorSurvives(t *testing.T) {
	t.Parallel()
	job := &sor.Job{Problem: sor.Problem{Rows: 20, Cols: 16, Steps: 24, Workers: 3}}
	r, err := Run(bounded(t), job, Options{Name: "sor", N: 3, Workers: 3, Kill: true, Join: true})
	if err != nil {
		t.Fatal(err)
	}
	if !r.Equal || r.Of != 20*16 || r.Restarts < 1 || r.Checkpoints != 1 || len(r.Events) != 2 {
		t.Errorf("%+v", r)
	}
	var text strings.Builder
	r.Text(&text)
	t.Log("\n" + text.String())
	if !strings.Contains(text.String(), "peer 2 killed at") || !strings.Contains(text.String(), "peer 3 joined") || !strings.Contains(text.String(), "320 cells") {
		t.Error("the report does not say what happened")
	}
}

// TestTspSurvives kills a peer after a checkpoint, while trips are searched, and has another one leave.
func TestTspSurvives(t *testing.T) {
	t.Parallel()
	job := &tsp.Job{Problem: tsp.Problem{Cities: 8, Seed: 3, Workers: 5}}
	r, err := Run(bounded(t), job, Options{Name: "tsp", N: 5, Workers: 5, Kill: true, Leave: true})
	if err != nil {
		t.Fatal(err)
	}
	if !r.Equal || r.Of != 9 || r.Restarts < 1 || r.Checkpoints != 1 || len(r.Events) != 2 {
		t.Errorf("%+v", r)
	}
	var text strings.Builder
	r.Text(&text)
	t.Log("\n" + text.String())
	if !strings.Contains(text.String(), "peer 4 killed at") || !strings.Contains(text.String(), "peer 1 left at") || !strings.Contains(text.String(), "9 numbers") {
		t.Error("the report does not say what happened")
	}
}

// TestWithoutACheckpointAllIsDoneAgain has the application begin anew half way when it has none: its first threads begin with empty objects.
func TestWithoutACheckpointAllIsDoneAgain(t *testing.T) {
	t.Parallel()
	ctx := bounded(t)
	net, err := testnet.Up(ctx, testnet.Options{N: 3, Depth: 4})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { net.Close() })
	job := &midway{Job: &sor.Job{Problem: sor.Problem{Rows: 8, Cols: 8, Steps: 6, Workers: 3}}}
	job.at = func() error {
		p, err := net.Peer(1)
		if err != nil {
			return err
		}
		_, err = p.Node().Objects().Restart(ctx, "sor")
		return err
	}
	if err := job.Alone(ctx); err != nil {
		t.Fatal(err)
	}
	u := &run{Options: Options{Name: "sor", N: 3, Workers: 3, Progress: func(testnet.Progress) {}}, job: job, net: net, r: new(Report)}
	if err := u.run(ctx); err != nil {
		t.Fatal(err)
	}
	r := u.r
	if !r.Equal || r.Restarts < 1 || r.Checkpoints != 0 {
		t.Errorf("%+v", r)
	}
}

// midway is a job at which something happens once, when two steps are done.
type midway struct {
	*sor.Job
	at func() error
}

func (m *midway) Gate(ctx context.Context, app *coherence.App, upTo int) error {
	if m.at != nil {
		upTo = 2
	}
	return m.Job.Gate(ctx, app, upTo)
}

func (m *midway) Start(ctx context.Context, app *coherence.App, peers []peer.ID) error {
	return errors.Join(m.Gate(ctx, app, 0), m.Job.Start(ctx, app, peers))
}

func (m *midway) Done(ctx context.Context, app *coherence.App) (int, error) {
	n, err := m.Job.Done(ctx, app)
	if at := m.at; err == nil && n == 2 && at != nil {
		m.at = nil
		err = at()
	}
	return n, err
}

// wrong is a job whose peers solve a problem that is not quite the one that is solved alone.
type wrong struct{ *sor.Job }

func (w wrong) Alone(ctx context.Context) error {
	w.Steps--
	defer func() { w.Steps++ }()
	return w.Job.Alone(ctx)
}

func TestADifferentResultIsFoundOut(t *testing.T) {
	t.Parallel()
	r, err := Run(bounded(t), wrong{&sor.Job{Problem: sor.Problem{Rows: 6, Cols: 6, Steps: 2, Workers: 3}}}, Options{Name: "sor", Workers: 3})
	if !errors.Is(err, ErrDiffers) || r == nil || r.Equal || r.Differ != 16 || r.Of != 36 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestAThreadThatFailsEndsTheRun(t *testing.T) {
	t.Parallel()
	job := &sor.Job{Problem: sor.Problem{Rows: 6, Cols: 6, Steps: 0, Workers: 3}} // which no worker accepts
	if r, err := Run(bounded(t), stubborn{job}, Options{Name: "sor", Workers: 3}); err == nil || r != nil || !strings.Contains(err.Error(), "steps") {
		t.Errorf("%+v, %v", r, err)
	}
}

// stubborn is a job that is not over when it should be.
type stubborn struct{ *sor.Job }

func (stubborn) Total() int { return 1 }

func TestOptionsHaveLimits(t *testing.T) {
	for _, o := range []Options{{N: PeersMin - 1}, {N: PeersMax + 1}, {N: 3, Leave: true}, {N: 4, Leave: true, Kill: true}, {N: -1}} {
		if _, err := Run(t.Context(), &sor.Job{}, o); !errors.Is(err, ErrOptions) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	little := &sor.Job{Problem: sor.Problem{Rows: 6, Cols: 6, Steps: EventTotalMin - 1, Workers: 3}}
	if _, err := Run(t.Context(), little, Options{Kill: true}); !errors.Is(err, ErrOptions) {
		t.Errorf("%v", err)
	}
	for _, o := range []Options{{N: 4, Leave: true}, {N: 4, Leave: true, Join: true, Kill: true}, {N: PeersMax, Kill: true}} {
		if err := o.Validate(); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
