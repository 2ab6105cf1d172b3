package deploy

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	k8syaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// help is the output of "qlock node --help", which a test of that package keeps up to date.
const help = "../cmd/qlock/internal/cli/testdata/help/node.txt"

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// known reports whether qlock node has a variable.
func known(t *testing.T, variable string) bool {
	t.Helper()
	return regexp.MustCompile(`\[` + regexp.QuoteMeta(variable) + `\]`).MatchString(read(t, help))
}

// objects are what the manifest describes, decoded as the API server does it when it
// is told to be strict: a field that it does not have is an error.
type objects struct {
	services map[string]*corev1.Service
	budget   *policyv1.PodDisruptionBudget
	set      *appsv1.StatefulSet
}

func manifest(t *testing.T) objects {
	t.Helper()
	o := objects{services: map[string]*corev1.Service{}, budget: &policyv1.PodDisruptionBudget{}, set: &appsv1.StatefulSet{}}
	r := k8syaml.NewYAMLReader(bufio.NewReader(strings.NewReader(read(t, "kubernetes/qlock.yaml"))))
	for {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			return o
		}
		if err != nil {
			t.Fatal(err)
		}
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal(doc, &kind); err != nil {
			t.Fatal(err)
		}
		var into any
		switch kind.APIVersion + " " + kind.Kind {
		case "":
			continue
		case "v1 Service":
			into = &corev1.Service{}
		case "policy/v1 PodDisruptionBudget":
			into = o.budget
		case "apps/v1 StatefulSet":
			into = o.set
		default:
			t.Fatalf("the manifest has a %s %s", kind.APIVersion, kind.Kind)
		}
		if err := yaml.UnmarshalStrict(doc, into, yaml.DisallowUnknownFields); err != nil {
			t.Fatalf("%s: %v", kind.Kind, err)
		}
		if s, ok := into.(*corev1.Service); ok {
			o.services[s.Name] = s
		}
	}
}

// What belongs together in the manifest does.
func TestKubernetes(t *testing.T) {
	o := manifest(t)
	set, pod := o.set, o.set.Spec.Template
	selects := func(what string, l map[string]string) {
		t.Helper()
		if len(l) == 0 || !labels.SelectorFromSet(l).Matches(labels.Set(pod.Labels)) {
			t.Errorf("%s selects %v, the pods have %v", what, l, pod.Labels)
		}
	}
	selects("the set", set.Spec.Selector.MatchLabels)
	selects("the budget", o.budget.Spec.Selector.MatchLabels)
	headless := o.services[set.Spec.ServiceName]
	if headless == nil || headless.Spec.ClusterIP != corev1.ClusterIPNone || !headless.Spec.PublishNotReadyAddresses {
		t.Fatalf("the set's service is %+v", headless)
	}
	if len(o.services) != 2 {
		t.Errorf("%d services", len(o.services))
	}
	n := int(*set.Spec.Replicas)
	if down := o.budget.Spec.MaxUnavailable.IntValue(); down < 1 || down > (n-1)/2 {
		t.Errorf("of %d nodes %d may be down", n, down)
	}

	if len(pod.Spec.Containers) != 1 {
		t.Fatalf("%d containers", len(pod.Spec.Containers))
	}
	c := pod.Spec.Containers[0]
	ports := map[string]int32{}
	for _, p := range c.Ports {
		ports[p.Name] = p.ContainerPort
	}
	for name, s := range o.services {
		selects("service "+name, s.Spec.Selector)
		for _, p := range s.Spec.Ports {
			if ports[p.TargetPort.StrVal] != p.Port {
				t.Errorf("service %s: port %d goes to %s, which is %d", name, p.Port, p.TargetPort.StrVal, ports[p.TargetPort.StrVal])
			}
		}
	}
	env := map[string]string{}
	for _, e := range c.Env {
		env[e.Name] = e.Value
		if !known(t, e.Name) {
			t.Errorf("qlock node knows no variable %s", e.Name)
		}
	}
	var names, routes []string
	for i := range n {
		name := fmt.Sprintf("%s-%d", set.Name, i)
		names = append(names, name)
		routes = append(routes, fmt.Sprintf("nats://%s.%s:%d", name, headless.Name, ports["routes"]))
	}
	if got := strings.Join(names, ","); env["QLOCK_NODES"] != got {
		t.Errorf("QLOCK_NODES %s, the pods are %s", env["QLOCK_NODES"], got)
	}
	if got := strings.Join(routes, ","); env["QLOCK_ROUTES"] != got {
		t.Errorf("QLOCK_ROUTES %s, the pods are at %s", env["QLOCK_ROUTES"], got)
	}
	for variable, port := range map[string]string{"QLOCK_LISTEN": "nats", "QLOCK_CLUSTER_LISTEN": "routes", "QLOCK_HTTP": "http"} {
		if want := fmt.Sprintf("0.0.0.0:%d", ports[port]); env[variable] != want {
			t.Errorf("%s is %s, the port %s is %s", variable, env[variable], port, want)
		}
	}
	for path, p := range map[string]*corev1.Probe{"/readyz": c.ReadinessProbe, "/healthz": c.LivenessProbe} {
		if p == nil || p.HTTPGet == nil || p.HTTPGet.Path != path || ports[p.HTTPGet.Port.StrVal] == 0 {
			t.Errorf("the probe of %s is %+v", path, p)
		}
	}
	if len(set.Spec.VolumeClaimTemplates) != 1 || len(c.VolumeMounts) != 1 ||
		set.Spec.VolumeClaimTemplates[0].Name != c.VolumeMounts[0].Name || !strings.HasPrefix(env["QLOCK_STATE_DIR"], c.VolumeMounts[0].MountPath) {
		t.Errorf("the state in %s is not on the volume", env["QLOCK_STATE_DIR"])
	}
	apart := pod.Spec.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	if len(apart) != 1 || apart[0].TopologyKey != corev1.LabelHostname {
		t.Errorf("two nodes may be on one machine: %+v", apart)
	} else {
		selects("the anti-affinity", apart[0].LabelSelector.MatchLabels)
	}
	if *c.SecurityContext.AllowPrivilegeEscalation || !*c.SecurityContext.ReadOnlyRootFilesystem || !*pod.Spec.SecurityContext.RunAsNonRoot {
		t.Error("the container may do more than it needs")
	}
}

// The procedure on the page of operations changes what the manifest has, by commands that the image
// has.
func TestKubernetesProcedure(t *testing.T) {
	set := manifest(t).set
	_, text, ok := strings.Cut(read(t, "../docs/operations.md"), "\n### On Kubernetes\n")
	if !ok {
		t.Fatal("the page has no procedure")
	}
	text, _, _ = strings.Cut(text, "\n### ")
	image := regexp.MustCompile(`ENTRYPOINT \["([^"]+)"\]`).FindStringSubmatch(read(t, "Dockerfile"))
	if image == nil {
		t.Fatal("the image has no command")
	}
	env := map[string]string{}
	for _, e := range set.Spec.Template.Spec.Containers[0].Env {
		env[e.Name] = e.Value
	}
	pod := regexp.MustCompile("^" + regexp.QuoteMeta(set.Name) + `-\d+$`)
	volume := regexp.MustCompile("^" + regexp.QuoteMeta(set.Spec.VolumeClaimTemplates[0].Name+"-"+set.Name) + `-\d+$`)
	pods, replicas, seen := int(*set.Spec.Replicas), 0, 0
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(text, -1) {
		for _, line := range strings.Split(strings.TrimSpace(block[1]), "\n") {
			line, _, _ = strings.Cut(line, " #")
			words := strings.Fields(line)
			bad := func(why string) { t.Errorf("%s: %s", line, why) }
			if len(words) < 3 || words[0] != "kubectl" {
				bad("not a command of kubectl")
				continue
			}
			seen++
			switch words[1] {
			case "exec":
				if !pod.MatchString(words[2]) || words[3] != "--" || words[4] != image[1] || words[5] != "nodes" {
					bad("the pods are named " + set.Name + "-0 and so on, and the image has " + image[1])
				}
				if len(words) > 6 && words[6] == "change" && slices.ContainsFunc(words[7:], func(w string) bool { return !pod.MatchString(w) }) {
					bad("a node is named otherwise than its pod")
				}
			case "set", "rollout", "scale":
				i := slices.IndexFunc(words, func(w string) bool { return strings.HasPrefix(w, "statefulset/") })
				if i < 0 || words[i] != "statefulset/"+set.Name {
					bad("the set is " + set.Name)
					break
				}
				for _, w := range words[i+1:] {
					name, value, given := strings.Cut(w, "=")
					switch removed, isRemoval := strings.CutSuffix(w, "-"); {
					case strings.HasPrefix(w, "--replicas="):
						_, _ = fmt.Sscanf(w, "--replicas=%d", &replicas)
					case isRemoval && env[removed] != "":
						delete(env, removed)
					case given && known(t, name):
						env[name] = value
					default:
						bad("there is no " + w)
					}
				}
			case "delete":
				for _, w := range words[3:] {
					if name := map[string]*regexp.Regexp{"pvc": volume, "pod": pod}[words[2]]; name == nil || !name.MatchString(w) && !strings.HasPrefix(w, "--") {
						bad("there is no " + w)
					}
				}
			default:
				bad("what does it do?")
			}
		}
	}
	// qlock node --join takes no list, and needs a directory and a way to the others.
	if env["QLOCK_JOIN"] != "true" || env["QLOCK_NODES"] != "" || env["QLOCK_STATE_DIR"] == "" || env["QLOCK_ROUTES"] == "" {
		t.Errorf("after the procedure pods have %v", env)
	}
	if seen < 10 || replicas != pods {
		t.Errorf("%d commands, and at the end %d replicas; the manifest has %d", seen, replicas, pods)
	}
}

// The decoder does find what the API does not have: else the test above says little.
func TestStrict(t *testing.T) {
	text := strings.Replace(read(t, "kubernetes/qlock.yaml"), "readinessProbe:", "readynessProbe:", 1)
	_, doc, ok := strings.Cut(text, "kind: StatefulSet")
	if !ok {
		t.Fatal("no StatefulSet")
	}
	err := yaml.UnmarshalStrict([]byte("apiVersion: apps/v1\nkind: StatefulSet"+doc), &appsv1.StatefulSet{}, yaml.DisallowUnknownFields)
	if err == nil || !strings.Contains(err.Error(), "readynessProbe") {
		t.Errorf("a field that does not exist: %v", err)
	}
}

func TestCompose(t *testing.T) {
	p, err := loader.LoadWithContext(context.Background(), types.ConfigDetails{
		WorkingDir:  ".",
		ConfigFiles: []types.ConfigFile{{Filename: "compose.yaml", Content: []byte(read(t, "compose.yaml"))}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Services) != 3 {
		t.Fatalf("%d services", len(p.Services))
	}
	seen := map[string]bool{}
	for _, s := range p.Services {
		value := func(name string) string {
			if v := s.Environment[name]; v != nil {
				return *v
			}
			return ""
		}
		for name := range s.Environment {
			if !known(t, name) {
				t.Errorf("%s: qlock node knows no variable %s", s.Name, name)
			}
		}
		if value("QLOCK_NODE_NAME") != s.Name || !slices.Contains(strings.Split(value("QLOCK_NODES"), ","), s.Name) || !strings.Contains(value("QLOCK_ROUTES"), "nats://"+s.Name+":6222") {
			t.Errorf("%s: its names do not fit: %v", s.Name, s.Environment)
		}
		if len(s.Volumes) != 1 || s.Volumes[0].Source != s.Name || s.Volumes[0].Target != value("QLOCK_STATE_DIR") || seen[s.Volumes[0].Source] {
			t.Errorf("%s: its state is in %+v", s.Name, s.Volumes)
		}
		seen[s.Volumes[0].Source] = true
		for _, port := range s.Ports {
			if port.HostIP != "127.0.0.1" {
				t.Errorf("%s: port %s is open to all", s.Name, port.Published)
			}
		}
		if !strings.HasSuffix(filepath.ToSlash(s.Build.Dockerfile), "deploy/Dockerfile") || strings.Join(s.Command, " ") != "node" {
			t.Errorf("%s: %+v %v", s.Name, s.Build, s.Command)
		}
	}
}

// The settings are names of flags, which the command's own tests try.
func TestSystemd(t *testing.T) {
	var settings map[string]any
	if err := yaml.UnmarshalStrict([]byte(read(t, "systemd/node.yaml")), &settings); err != nil {
		t.Fatal(err)
	}
	for key := range settings {
		if !regexp.MustCompile(`(?m)^ +(-\w, )?--` + key + ` `).MatchString(read(t, help)) {
			t.Errorf("qlock node has no setting %s", key)
		}
	}
	unit := read(t, "systemd/qlock-node.service")
	if !strings.Contains(unit, "ExecStart=/usr/local/bin/qlock node --config /etc/qlock/node.yaml\n") {
		t.Error("the unit starts something else")
	}
	verify, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("no systemd-analyze to look at the unit")
	}
	// It wants to see the program.
	file := filepath.Join(t.TempDir(), "qlock-node.service")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(unit, "/usr/local/bin/qlock", "/bin/true")), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(verify, "verify", "--man=no", file).CombinedOutput()
	if err != nil || strings.Contains(string(out), file) {
		t.Errorf("%v\n%s", err, out)
	}
}

// buildContext copies what the build of the image gets to see: it must suffice.
func buildContext(t *testing.T) string {
	t.Helper()
	context := t.TempDir()
	var in, out []string
	for i, line := range strings.Split(strings.TrimSpace(read(t, "Dockerfile.dockerignore")), "\n") {
		name, wanted := strings.CutPrefix(line, "!")
		pattern, anywhere := strings.CutPrefix(line, "**/")
		switch {
		case i == 0 && line == "*":
		case wanted:
			in = append(in, name)
		case anywhere:
			out = append(out, pattern)
		default:
			t.Fatalf("this test does not understand %q in Dockerfile.dockerignore", line)
		}
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range in {
		paths, err := filepath.Glob(filepath.Join(root, name))
		if err != nil || len(paths) == 0 && name != "vendor" {
			t.Fatalf("Dockerfile.dockerignore lets in %s, which is not there: %v", name, err)
		}
		for _, top := range paths {
			err := filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
				if err != nil {
					return err
				}
				for _, pattern := range out {
					if ignored, err := filepath.Match(pattern, d.Name()); err != nil {
						return err
					} else if ignored && d.IsDir() {
						return filepath.SkipDir
					} else if ignored {
						return nil
					}
				}
				if d.IsDir() {
					return nil
				}
				rel, err := filepath.Rel(root, path)
				if err != nil {
					return err
				}
				b, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				to := filepath.Join(context, rel)
				if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
					return err
				}
				return os.WriteFile(to, b, 0o600)
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return context
}

// The image has nothing but the binary, so that must need nothing.
func TestImage(t *testing.T) {
	text := read(t, "Dockerfile")
	stages := strings.Split(text, "\nFROM ")
	last := stages[len(stages)-1]
	for _, want := range []string{"scratch\n", "USER 65532:65532\n", `ENTRYPOINT ["/qlock"]`, "STOPSIGNAL SIGTERM", "/var/lib/qlock"} {
		if !strings.Contains(last, want) {
			t.Errorf("the last stage has no %q", strings.TrimSpace(want))
		}
	}
	if strings.Contains(last, "RUN ") {
		t.Error("the last stage runs something, in an image without a shell")
	}
	build := regexp.MustCompile(`RUN (CGO_ENABLED=0) (go build .*) -o \S+ (\./cmd/qlock)\n`).FindStringSubmatch(text)
	if build == nil {
		t.Fatal("the build is not found")
	}
	if runtime.GOOS != "linux" || testing.Short() {
		t.Skip("a build for Linux, where it can be looked at")
	}
	out := filepath.Join(t.TempDir(), "qlock")
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute) // all packages, on a machine that builds others too
	defer cancel()
	flags := regexp.MustCompile(`-ldflags="([^"]*)"`).FindStringSubmatch(build[2])
	if flags == nil {
		t.Fatal("the flags of the linker are not found")
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags="+strings.ReplaceAll(flags[1], "${VERSION}", "1.2.3-test"), "-o", out, build[3])
	cmd.Dir, cmd.Env = buildContext(t), append(os.Environ(), build[1])
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	f, err := elf.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the binary needs a dynamic linker")
		}
	}
	if libs, err := f.ImportedLibraries(); err != nil || len(libs) > 0 {
		t.Errorf("the binary needs %v: %v", libs, err)
	}
	// As in the image: no home, no user, no settings.
	version := exec.Command(out, "version")
	version.Env = []string{}
	if b, err := version.CombinedOutput(); err != nil || !bytes.HasPrefix(b, []byte("qlock 1.2.3-test, ")) {
		t.Errorf("%v\n%s", err, b)
	}
	nodes := exec.Command(out, "nodes", "--server", "nats://127.0.0.1:1")
	nodes.Env = []string{"XDG_CONFIG_HOME=/etc"}
	if b, err := nodes.CombinedOutput(); err == nil || !strings.Contains(string(b), "connect to NATS at nats://127.0.0.1:1") {
		t.Errorf("%v\n%s", err, b)
	}
}

// The alerts ask for metrics that there are, and the page has each of them.
func TestAlerts(t *testing.T) {
	var rules struct {
		Groups []struct {
			Name  string `json:"name"`
			Rules []struct {
				Alert       string            `json:"alert"`
				Expr        string            `json:"expr"`
				For         string            `json:"for"`
				Labels      map[string]string `json:"labels"`
				Annotations map[string]string `json:"annotations"`
			} `json:"rules"`
		} `json:"groups"`
	}
	if err := yaml.UnmarshalStrict([]byte(read(t, "prometheus/alerts.yaml")), &rules, yaml.DisallowUnknownFields); err != nil {
		t.Fatal(err)
	}
	source := read(t, "../metrics/metrics.go") + read(t, "../metrics/locker.go") + read(t, "../metrics/events.go")
	page := read(t, "../docs/operations.md")
	seen := 0
	for _, r := range rules.Groups[0].Rules {
		seen++
		if !strings.Contains(page, "| `"+r.Alert+"` |") {
			t.Errorf("docs/operations.md does not say what to do about %s", r.Alert)
		}
		if r.Labels["severity"] == "" || r.Annotations["summary"] == "" {
			t.Errorf("%s: no severity or summary", r.Alert)
		}
		for _, m := range regexp.MustCompile(`qlock_[a-z_]+`).FindAllString(r.Expr, -1) {
			if !strings.Contains(source, `"`+m+`"`) {
				t.Errorf("%s asks for %s, which nobody counts", r.Alert, m)
			}
		}
	}
	if seen < 5 {
		t.Errorf("%d alerts", seen)
	}
	for _, m := range regexp.MustCompile(`"(qlock_[a-z_]+)"`).FindAllStringSubmatch(source, -1) {
		// Names that share a beginning are written once: qlock_a_x, _y.
		last := m[1][strings.LastIndex(strings.TrimSuffix(m[1], "_total"), "_"):]
		if !strings.Contains(page, "`"+m[1]) && !strings.Contains(page, "`"+last) && !strings.Contains(page, "_"+strings.Join(strings.Split(m[1], "_")[2:], "_")+"`") {
			t.Errorf("docs/operations.md does not have %s", m[1])
		}
	}
}
