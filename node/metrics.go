package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"latchkey/lockservice"
	"latchkey/replicagroup"
)

// Bounds of the answers to monitoring.
const (
	// scrapesMax is how many are made at a time; one more is answered 503.
	scrapesMax = 4
	// scrapeTimeout bounds one, and how long a client may take for its request.
	scrapeTimeout = 5 * time.Second
	// scrapeHeaderMax bounds a request's header.
	scrapeHeaderMax = 16 << 10
)

// States of groups as metrics tell them. A replica is in one of them.
const (
	metricServing    = "serving"
	metricAsleep     = "asleep"     // it has nothing to do
	metricLeaderless = "leaderless" // no majority answers, so it serves nobody
	metricUnleased   = "unleased"   // led here, and the root does not renew its lease
	metricLeaving    = "leaving"    // the group has removed this replica
	metricHalted     = "halted"     // for good
)

var metricStates = []string{metricServing, metricAsleep, metricLeaderless, metricUnleased, metricLeaving, metricHalted}

// durableMetrics are those of durable objects.
type durableMetrics struct {
	objects, bytes, waiting                                                   *prometheus.Desc
	hits, misses, refused, invalidations, stores, renewals, leases, evictions *prometheus.Desc
	tenures, taken, sent, proposed, confirms                                  *prometheus.Desc // of leaders
}

// groupMetrics tells Prometheus of a node's groups and locks: everything is read when it is asked for, so that nothing is kept between.
type groupMetrics struct {
	node *Node

	groups, led, peers, retired                              *prometheus.Desc
	apps, copies, hits, misses, invalidations, restarts      *prometheus.Desc
	durables                                                 durableMetrics
	views, commands, snapshots, buried, twins, stray, refuse *prometheus.Desc

	held, waiting, acquires, oneRound, acquireTime, lost, refused *prometheus.Desc // locks
}

// Collector returns what tells Prometheus of this node's groups and locks, to be registered where an application has its own metrics. Labels are
// from closed sets: no peer, lock name or key is told. Collecting asks the replicas, for a few seconds at most.
func (n *Node) Collector() prometheus.Collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("latchkey_"+name, help, labels, nil)
	}
	return &groupMetrics{
		node:    n,
		groups:  desc("groups", "Replica groups that this peer takes part in, by state.", "state"),
		led:     desc("groups_led", "Replica groups that this peer leads."),
		retired: desc("groups_retired", "Replicas put aside in this peer's store, since their group's generation is over."),
		peers:   desc("peers_connected", "Peers of the overlay that this one is connected to."),

		views:     desc("group_view_changes_total", "Changes of view in groups that this peer led."),
		commands:  desc("group_commands_total", "Commands executed in groups that this peer led."),
		snapshots: desc("group_snapshots_total", "Snapshots taken of this peer's replicas."),
		buried:    desc("group_retirements_total", "Replicas that this peer has put aside since it started."),
		twins:     desc("twins_refused_total", "Streams refused because the other side's store runs in two places."),
		stray:     desc("group_stray_messages_total", "Messages dropped that were for no replica of this peer, or from nobody who may send them."),
		refuse:    desc("group_busy_total", "Requests refused for want of room."),

		held:          desc("lock_held", "Locks and permits held through this peer."),
		waiting:       desc("lock_waiting", "Calls through this peer that have asked for a lock and wait for it."),
		acquires:      desc("lock_acquires_total", "Locks granted to callers of this peer, by the protocol that they were asked for by.", "protocol"),
		oneRound:      desc("lock_one_round_total", "Locks held as soon as a majority of voters had answered the first question (protocol sigma)."),
		acquireTime:   desc("lock_acquire_seconds", "How long callers of this peer waited for the locks that they were granted."),
		lost:          desc("lock_lost_total", "Holds through this peer that their group has ended, or that were neither renewed nor given back in time."),
		apps:          desc("object_applications", "Applications with shared objects that are open on this peer."),
		copies:        desc("object_copies", "Copies of shared objects that this peer has, valid or not."),
		hits:          desc("object_hits_total", "Accesses to shared objects that found the right they needed on this peer; an estimate, since one in 64 is counted."),
		misses:        desc("object_misses_total", "Accesses to shared objects that waited for other peers."),
		invalidations: desc("object_invalidations_total", "Copies of shared objects that this peer gave up, since others wrote."),
		durables: durableMetrics{
			objects:       desc("durable_objects", "Durable objects that this peer has copies of, present ones or not."),
			bytes:         desc("durable_bytes", "Bytes of the durable objects that this peer has copies of, names and all."),
			waiting:       desc("durable_waiting", "Calls on durable objects that wait on this peer now."),
			hits:          desc("durable_hits_total", "Reads of durable objects that asked nobody; an estimate, since one in 64 is counted."),
			misses:        desc("durable_misses_total", "Reads of durable objects that asked their group."),
			refused:       desc("durable_refused_hits_total", "Reads that found a copy and were not given it, since its lease was over, or might be."),
			invalidations: desc("durable_invalidations_total", "Copies of durable objects that this peer gave up, since somebody writes."),
			stores:        desc("durable_writes_total", "Writes of durable objects that callers of this peer have made."),
			renewals:      desc("durable_renewals_total", "Renewals of its leases that this peer has asked for."),
			leases:        desc("durable_leases_total", "Answers to this peer that came with a lease."),
			evictions:     desc("durable_evictions_total", "Durable objects that this peer forgot for want of room."),
			tenures:       desc("durable_led_tenures_total", "Times that this peer began to lead durable objects of a group."),
			taken:         desc("durable_led_received_total", "Messages about durable objects that leaders on this peer took."),
			sent:          desc("durable_led_sent_total", "Messages about durable objects that leaders on this peer sent."),
			proposed:      desc("durable_led_proposed_total", "Writes, and marks of what is settled, that leaders on this peer proposed."),
			confirms:      desc("durable_led_confirms_total", "Times that leaders of durable objects on this peer asked whether they lead still."),
		},
		restarts: desc("object_restarts_total", "Executions of applications that ended while this peer had them open."),

		refused: desc("lock_refused_total", "Calls through this peer that got no lock, by reason.", "reason"),
	}
}

// Describe implements [prometheus.Collector].
func (m *groupMetrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		m.groups, m.led, m.retired, m.peers, m.views, m.commands, m.snapshots, m.buried, m.twins, m.stray, m.refuse,
		m.held, m.waiting, m.acquires, m.oneRound, m.acquireTime, m.lost, m.refused,
		m.apps, m.copies, m.hits, m.misses, m.invalidations, m.restarts,
		m.durables.objects, m.durables.bytes, m.durables.waiting, m.durables.hits, m.durables.misses, m.durables.refused, m.durables.invalidations,
		m.durables.stores, m.durables.renewals, m.durables.leases, m.durables.evictions,
		m.durables.tenures, m.durables.taken, m.durables.sent, m.durables.proposed, m.durables.confirms,
	} {
		to <- d
	}
}

// Collect implements [prometheus.Collector].
func (m *groupMetrics) Collect(to chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}

	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout/2)
	defer cancel()
	if groups, err := m.node.groups.Status(ctx); err != nil {
		to <- prometheus.NewInvalidMetric(m.groups, fmt.Errorf("node: the replicas did not say how they are: %w", err))
	} else {
		states, led := make(map[string]int), 0
		for _, g := range groups {
			states[metricState(g)]++
			if g.Status.Leading && !g.Halted {
				led++
			}
		}
		for _, s := range metricStates {
			gauge(m.groups, states[s], s)
		}
		gauge(m.led, led)
	}
	if yard, ok := m.node.store.(replicagroup.Graveyard); ok {
		if graves, err := yard.Graves(); err == nil {
			gauge(m.retired, len(graves))
		}
	}
	connected := 0
	for _, p := range m.node.overlay.Peers() {
		if p.Connected {
			connected++
		}
	}
	gauge(m.peers, connected)
	c := m.node.groups.Counters()
	counter(m.views, c.Views)
	counter(m.commands, c.Commands)
	counter(m.snapshots, c.Snapshots)
	counter(m.buried, c.Buried)
	counter(m.twins, m.node.Refused()[RefusedTwin])
	counter(m.stray, c.StrayMessages)
	counter(m.refuse, c.Busy)

	o := m.node.objects.Stats()
	gauge(m.apps, o.Applications)
	gauge(m.copies, o.Copies)
	counter(m.hits, o.Hits)
	counter(m.misses, o.Misses)
	counter(m.invalidations, o.Invalidations)
	counter(m.restarts, o.Restarts)

	d := m.node.objects.DurableStats()
	gauge(m.durables.objects, d.Objects)
	gauge(m.durables.bytes, int(d.Bytes))
	gauge(m.durables.waiting, d.Waiting)
	counter(m.durables.hits, d.Hits)
	counter(m.durables.misses, d.Misses)
	counter(m.durables.refused, d.Refused)
	counter(m.durables.invalidations, d.Invalidations)
	counter(m.durables.stores, d.Stores)
	counter(m.durables.renewals, d.Renewals)
	counter(m.durables.leases, d.Leases)
	counter(m.durables.evictions, d.Evictions)
	led := m.node.durable.Stats()
	counter(m.durables.tenures, led.Tenures)
	counter(m.durables.taken, led.Taken)
	counter(m.durables.sent, led.Sent)
	counter(m.durables.proposed, led.Proposed)
	counter(m.durables.confirms, led.Confirms)

	l := m.node.meter.Counts()
	gauge(m.held, l.Held)
	gauge(m.waiting, l.Waiting)
	counter(m.acquires, l.Sigma, lockservice.ProtocolSigma.String())
	counter(m.acquires, l.Group, lockservice.ProtocolGroup.String())
	counter(m.oneRound, m.node.SigmaStats().OneRound)
	counter(m.lost, l.Lost)
	for i, why := range lockservice.Refusals() {
		counter(m.refused, l.Refused[i], why)
	}
	all, upTo := uint64(0), make(map[float64]uint64, len(l.Waits))
	for i, n := range l.Waits {
		if all += n; i < len(lockservice.WaitBuckets) {
			upTo[lockservice.WaitBuckets[i].Seconds()] = all
		}
	}
	to <- prometheus.MustNewConstHistogram(m.acquireTime, all, l.WaitTime.Seconds(), upTo)
}

// metricState tells in which state a replica is, the worst first.
func metricState(r replicagroup.ReplicaStatus) string {
	switch {
	case r.Halted:
		return metricHalted
	case r.Leaves:
		return metricLeaving
	case r.Leaderless > 0:
		return metricLeaderless
	case r.Unleased:
		return metricUnleased
	case r.Status.Quiesced:
		return metricAsleep
	}
	return metricServing
}

// MetricsServer answers Prometheus for a node, at /metrics.
type MetricsServer struct {
	listener net.Listener
	server   *http.Server
	served   chan error
}

// ServeMetrics answers Prometheus at addr, HOST:PORT, with metrics of the node, of Go and of the process. Without a host that is the
// loopback. At /healthz it says whether the node runs, and at /readyz whether all groups that it hosts serve: 200, or 503 with a line that
// says why not. Whoever reaches the address may ask, so another one is for networks in which everybody may know how the peer is doing. The
// caller closes the server, before the node.
func (n *Node) ServeMetrics(addr string) (*MetricsServer, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("node: metrics: %w", err)
	}
	if host == "" {
		addr = net.JoinHostPort("127.0.0.1", port)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("node: metrics: %w", err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(n.Collector(), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: scrapesMax, Timeout: scrapeTimeout, ErrorHandling: promhttp.ContinueOnError,
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { n.tellHealth(w, n.healthy()) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), scrapeTimeout/2)
		defer cancel()
		n.tellHealth(w, n.readied(ctx))
	})
	m := &MetricsServer{listener: l, served: make(chan error, 1), server: &http.Server{
		Handler: mux, ReadTimeout: scrapeTimeout, WriteTimeout: 2 * scrapeTimeout, MaxHeaderBytes: scrapeHeaderMax,
	}}
	go func() { m.served <- m.server.Serve(l) }()
	return m, nil
}

// healthy returns why the node has stopped by itself, which only a new start mends; nil: it runs.
func (n *Node) healthy() error {
	if err := n.Err(); err != nil {
		return err
	}
	select {
	case <-n.Done():
		return errors.New("the node has stopped")
	default:
		return nil
	}
}

// readied returns why the node cannot serve all that it hosts just now: it has stopped, its replicas do not answer, or a group has no leader.
func (n *Node) readied(ctx context.Context) error {
	if err := n.healthy(); err != nil {
		return err
	}
	groups, err := n.groups.Status(ctx)
	if err != nil {
		return fmt.Errorf("the replicas do not answer: %w", err)
	}
	down := 0
	for _, g := range groups {
		if metricState(g) == metricLeaderless {
			down++
		}
	}
	if down > 0 {
		return fmt.Errorf("%d of %d groups have no leader", down, len(groups))
	}
	return nil
}

// tellHealth answers 200 when err is nil, and else 503 with a line that says why.
func (n *Node) tellHealth(w http.ResponseWriter, err error) {
	if err != nil {
		http.Error(w, strings.Join(strings.Fields(err.Error()), " "), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

// Addr returns where it answers.
func (m *MetricsServer) Addr() net.Addr { return m.listener.Addr() }

// Close stops answering, and cuts answers under way off.
func (m *MetricsServer) Close() error {
	err := m.server.Close()
	if served := <-m.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	m.served <- http.ErrServerClosed // for another Close
	return err
}
