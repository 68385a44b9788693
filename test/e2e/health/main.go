// Command health serves gRPC's health protocol on port 9000, as programs do that
// the kubelet probes by gRPC. It is static and runs in a container.
package main

import (
	"fmt"
	"net"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func main() {
	l, err := net.Listen("tcp", ":9000")
	if err == nil {
		s := grpc.NewServer()
		grpc_health_v1.RegisterHealthServer(s, health.NewServer())
		err = s.Serve(l)
	}
	fmt.Fprintln(os.Stderr, "health:", err)
	os.Exit(1)
}
