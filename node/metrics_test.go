package node

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"latchkey/lockservice"
	"latchkey/replicagroup"
	"latchkey/replicagroup/order"
)

// scrape reads the metrics that are told at an address, those of Go and the process aside.
func scrape(t *testing.T, m *MetricsServer) map[string]float64 {
	t.Helper()
	r, err := http.Get("http://" + m.Addr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	all := make(map[string]float64)
	for lines := bufio.NewScanner(r.Body); lines.Scan(); {
		name, value, ok := strings.Cut(lines.Text(), " ")
		if v, err := strconv.ParseFloat(value, 64); ok && err == nil && strings.HasPrefix(name, "latchkey_") {
			all[name] = v
		}
	}
	io.Copy(io.Discard, r.Body)
	http.DefaultClient.CloseIdleConnections()
	return all
}

func TestPrometheusIsToldOfGroups(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	g, store, err := Found(h, FoundOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n, err := New(h, WithOverlay(g), WithStore(store))
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	m, err := n.ServeMetrics(":0")
	if err != nil {
		t.Fatal(err)
	}
	if host, _, _ := strings.Cut(m.Addr().String(), ":"); host != "127.0.0.1" {
		t.Errorf("without a host it listens at %v", m.Addr())
	}
	before := scrape(t, m)
	lock, err := n.Locks().Lock(within(t, 20*time.Second), "told", lockservice.WithTTL(time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Locks().TryLock(within(t, 20*time.Second), "told"); !errors.Is(err, lockservice.ErrLocked) {
		t.Error(err)
	}
	while := scrape(t, m)
	if err := lock.Release(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	dead := order.GroupID{Overlay: g.ID(), Gen: 7}
	if err := store.Create(replicagroup.Identity{Group: dead, Self: 1}); err != nil {
		t.Fatal(err)
	}
	if err := store.Bury(dead); err != nil {
		t.Fatal(err)
	}
	after := scrape(t, m)
	granted := func(all map[string]float64) float64 {
		return all[`latchkey_lock_acquires_total{protocol="sigma"}`] + all[`latchkey_lock_acquires_total{protocol="group"}`]
	}
	if granted(before) != 0 || granted(while) != 1 || while["latchkey_lock_held"] != 1 || after["latchkey_lock_held"] != 0 || after["latchkey_lock_waiting"] != 0 ||
		after[`latchkey_lock_refused_total{reason="locked"}`] != 1 || after["latchkey_lock_acquire_seconds_count"] != 1 || after["latchkey_lock_lost_total"] != 0 {
		t.Errorf("%v locks granted at first, then %v; %v", granted(before), granted(while), after)
	}
	total := func(all map[string]float64) (n float64) {
		for _, s := range metricStates {
			v, ok := all[`latchkey_groups{state="`+s+`"}`]
			if !ok {
				t.Errorf("nothing of groups that are %s", s)
			}
			n += v
		}
		return n
	}
	if was, is := total(before), total(after); was != 1 || is != 2 || after["latchkey_groups_led"] != 2 {
		t.Errorf("%v groups, then %v, of which %v are led", was, is, after["latchkey_groups_led"])
	}
	if after["latchkey_group_commands_total"] < before["latchkey_group_commands_total"]+3 { // a creation, an acquisition and a release, at least
		t.Errorf("commands: %v, then %v", before["latchkey_group_commands_total"], after["latchkey_group_commands_total"])
	}
	if before["latchkey_groups_retired"] != 0 || after["latchkey_groups_retired"] != 1 {
		t.Errorf("retired: %v, then %v", before["latchkey_groups_retired"], after["latchkey_groups_retired"])
	}
	for _, name := range []string{"peers_connected", "group_view_changes_total", "group_snapshots_total", "group_retirements_total", "twins_refused_total",
		"group_stray_messages_total", "group_busy_total"} {
		if v, ok := after["latchkey_"+name]; !ok || v != 0 {
			t.Errorf("latchkey_%s is %v (%v)", name, v, ok)
		}
	}
	if r, err := http.Get("http://" + m.Addr().String() + "/"); err != nil || r.StatusCode != http.StatusNotFound {
		t.Errorf("beside /metrics: %v, %v", r, err)
	} else {
		r.Body.Close()
	}
	http.DefaultClient.CloseIdleConnections()
	for range 2 {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := n.ServeMetrics("nowhere"); err == nil {
		t.Error("an address without a port is taken")
	}
	// Names and help are as Prometheus wants them: unique, and the collector tells what it has described.
	if err := prometheus.NewPedanticRegistry().Register(n.Collector()); err != nil {
		t.Error(err)
	}
}

// Each replica is in one state: the one that an operator should hear of first.
func TestStatesOfGroupsInMetrics(t *testing.T) {
	for want, r := range map[string]replicagroup.ReplicaStatus{
		metricServing:    {},
		metricAsleep:     {Status: order.Status{Quiesced: true}},
		metricUnleased:   {Unleased: true, Status: order.Status{Quiesced: true}},
		metricLeaderless: {Leaderless: time.Second, Status: order.Status{Quiesced: true}},
		metricLeaving:    {Leaves: true, Leaderless: time.Second},
		metricHalted:     {Halted: true, Leaves: true},
	} {
		if got := metricState(r); got != want {
			t.Errorf("%+v is %s, want %s", r, got, want)
		}
	}
}
