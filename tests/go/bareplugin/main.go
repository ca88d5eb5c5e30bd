// A plugin made without go-plugin's server: a plain gRPC server with a greeter, and a handshake line by hand. It shows
// what a host may not take for granted: which fields the line has, which network it names, which services there are.
package main

import (
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"hybridload.dev/tests/kinds"
)

func main() {
	network := flag.String("network", "unix", "unix or tcp")
	fields := flag.Int("fields", 6, "how many fields the line has, 5 or more")
	withHealth := flag.Bool("health", true, "serve grpc.health.v1.Health")
	ending := flag.String("ending", "\n", "what ends the line")
	linger := flag.Duration("linger", 0, "between the line and the first connection that is accepted")
	before := flag.Int("stderr-before", 0, "bytes on stderr before the line")
	after := flag.Int("stdout-after", 0, "bytes on stdout right after the line, without a newline")
	flag.Parse()

	listener, err := listen(*network)
	if err != nil {
		panic(err)
	}
	server := grpc.NewServer()
	kinds.RegisterGreeter(server, "Hello from a bare server!")
	if *withHealth {
		service := health.NewServer()
		service.SetServingStatus("plugin", grpc_health_v1.HealthCheckResponse_SERVING)
		grpc_health_v1.RegisterHealthServer(server, service)
	}
	fmt.Fprint(os.Stderr, strings.Repeat("words before the line\n", *before/22))
	line := []string{"1", "1", *network, listener.Addr().String(), "grpc", "", "true", "future", "fields"}
	fmt.Print(strings.Join(line[:*fields], "|") + *ending)
	fmt.Print(strings.Repeat("x", *after))
	time.Sleep(*linger)
	if err := server.Serve(listener); err != nil {
		panic(err)
	}
}

func listen(network string) (net.Listener, error) {
	if network == "tcp" {
		return net.Listen("tcp", "127.0.0.1:0")
	}
	folder, err := os.MkdirTemp("", "bare-") // nobody cleans up after a plugin that is killed
	if err != nil {
		return nil, err
	}
	return net.Listen("unix", filepath.Join(folder, "socket"))
}
