package gatewaymetrics

import (
	"context"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/qlock/qlock/gateway"
	"github.com/qlock/qlock/qlocktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// What a gateway does is counted, and the page has every metric.
func TestMetrics(t *testing.T) {
	c := qlocktest.StartCluster(t, 1, qlocktest.WithLease(30*time.Second)) // of locks that are to be held at the end
	g, err := gateway.New(t.Context(), gateway.Config{Conn: c.Servers()[0].Conn(), Client: "gateway"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	ask := func(method, path string) int {
		w := httptest.NewRecorder()
		g.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, "http://localhost"+path, nil))
		if w.Code == 201 { // else Close waits until the lease is over
			t.Cleanup(func() {
				g.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(context.Background(), "DELETE", "http://localhost"+w.Header().Get("Location"), nil))
			})
		}
		return w.Code
	}
	for path, want := range map[string]int{"/v1/locks/a": 201, "/v1/locks/b": 201, "/v1/nothing": 404} {
		if got := ask("POST", path); got != want {
			t.Errorf("%s: %d", path, got)
		}
	}
	if got := ask("POST", "/v1/locks/a"); got != 409 {
		t.Errorf("%d", got)
	}
	if got := ask("GET", "/v1/stores/orders/keys/a"); got != 501 { // no JetStream
		t.Errorf("%d", got)
	}
	reg := prometheus.NewPedanticRegistry()
	if err := reg.Register(New(g)); err != nil {
		t.Fatal(err)
	}
	want := `
# HELP qlock_gateway_leases Leases that are held or wait.
# TYPE qlock_gateway_leases gauge
qlock_gateway_leases{cluster="default",state="held"} 2
qlock_gateway_leases{cluster="default",state="waiting"} 0
# HELP qlock_gateway_leases_ended_total Leases that are over.
# TYPE qlock_gateway_leases_ended_total counter
qlock_gateway_leases_ended_total{cause="held",cluster="default"} 1
# HELP qlock_gateway_leases_granted_total Leases that were granted.
# TYPE qlock_gateway_leases_granted_total counter
qlock_gateway_leases_granted_total{cluster="default"} 2
# HELP qlock_gateway_requests_total Requests that were answered.
# TYPE qlock_gateway_requests_total counter
qlock_gateway_requests_total{cluster="default",door="http",operation="",status="404"} 1
qlock_gateway_requests_total{cluster="default",door="http",operation="acquire",status="201"} 2
qlock_gateway_requests_total{cluster="default",door="http",operation="acquire",status="409"} 1
qlock_gateway_requests_total{cluster="default",door="http",operation="getKey",status="501"} 1
# HELP qlock_gateway_store_operations_total Reads, writes and transactions of the store.
# TYPE qlock_gateway_store_operations_total counter
qlock_gateway_store_operations_total{cluster="default",operation="get",outcome="no-jetstream"} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "qlock_gateway_leases", "qlock_gateway_leases_ended_total", "qlock_gateway_leases_granted_total", "qlock_gateway_requests_total", "qlock_gateway_store_operations_total"); err != nil {
		t.Error(err)
	}
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}

	page, err := os.ReadFile("../../docs/gateway.md")
	if err != nil {
		t.Fatal(err)
	}
	descs := make(chan *prometheus.Desc, 100)
	New(g).Describe(descs)
	close(descs)
	named := regexp.MustCompile(`fqName: "([^"]+)"`)
	for d := range descs {
		if name := named.FindStringSubmatch(d.String())[1]; !strings.Contains(string(page), "| `"+name+"`") {
			t.Errorf("the page lacks %s", name)
		}
	}
}
