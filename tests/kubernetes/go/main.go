// A Kubernetes control plane, kubectl and KEDA in one executable, since each link takes a minute; the first argument
// names the program.
package main

import (
	"fmt"
	"os"
	_ "time/tzdata"

	"github.com/kedacore/keda/v2/cmd/adapter"
	"github.com/kedacore/keda/v2/cmd/operator"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

func main() {
	programs := map[string]func(){
		"etcd":                    func() { etcdmain.Main(os.Args) },
		"kube-apiserver":          func() { run(apiserver.NewAPIServerCommand()) },
		"kube-controller-manager": func() { run(controllers.NewControllerManagerCommand()) },
		"kube-scheduler":          func() { run(scheduler.NewSchedulerCommand()) },
		"kubectl":                 func() { run(kubectl.NewDefaultKubectlCommand()) },
		"keda-operator":           operator.Main,
		"keda-adapter":            adapter.Main,
	}
	if len(os.Args) > 1 {
		if program, known := programs[os.Args[1]]; known {
			os.Args = os.Args[1:]
			program()
			return
		}
	}
	fmt.Fprintln(os.Stderr, "name a program: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubectl, keda-operator or keda-adapter")
	os.Exit(2)
}

func run(command *cobra.Command) {
	os.Exit(cli.Run(command))
}
