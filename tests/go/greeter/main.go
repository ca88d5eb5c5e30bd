// A go-plugin plugin over gRPC or net/rpc for the tests of Python hosts. It serves three kinds: "greeter", as every tutorial
// has it, "kv", and "torture" (../protocol/torture.proto), whose calls make it as difficult a neighbour as a test asks
// for.
//
// What has to be decided before the first call is set by environment variables; ../README.md lists them.
package main

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"hybridload.dev/tests/kinds"
)

// plugin.Serve puts pipes into os.Stdout and os.Stderr; these stay with the descriptors.
var rawStdout, rawStderr = os.Stdout, os.Stderr

func main() {
	pause("TORTURE_START_SECONDS")
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig:  handshake(),
		VersionedPlugins: versions(),
		GRPCServer:       server,
	})
	pause("TORTURE_STOP_SECONDS")
	if os.Getenv("TORTURE_IGNORE_SHUTDOWN") != "" {
		select {}
	}
}

func handshake() plugin.HandshakeConfig {
	key, value, found := strings.Cut(os.Getenv("TORTURE_COOKIE"), "=")
	if !found {
		key, value = "BASIC_PLUGIN", "hello"
	}
	return plugin.HandshakeConfig{MagicCookieKey: key, MagicCookieValue: value}
}

// versions is the same plugin set for each version of TORTURE_VERSIONS, with a greeting that tells which one it is.
func versions() map[int]plugin.PluginSet {
	listed := os.Getenv("TORTURE_VERSIONS")
	if listed == "" {
		return map[int]plugin.PluginSet{1: plugins("Hello from Go!")}
	}
	sets := map[int]plugin.PluginSet{}
	for _, text := range strings.Split(listed, ",") {
		version, err := strconv.Atoi(text)
		if err != nil {
			fail("TORTURE_VERSIONS: %v", err)
		}
		sets[version] = plugins(fmt.Sprintf("Hello from Go, version %d!", version))
	}
	return sets
}

func plugins(greeting string) plugin.PluginSet {
	if chosen, found := os.LookupEnv("GREETING"); found {
		greeting = chosen
	}
	if os.Getenv("TORTURE_PROTOCOL") == "netrpc" {
		return netrpcPlugins(greeting)
	}
	return plugin.PluginSet{
		"greeter": &kinds.GRPCGreeter{Greeting: greeting},
		"kv":      &kinds.GRPCStore{},
		"torture": &torturePlugin{},
	}
}

func server(options []grpc.ServerOption) *grpc.Server {
	switch limit := os.Getenv("TORTURE_MAX_MESSAGE"); limit {
	case "":
	case "unlimited":
		options = append(options, grpc.MaxRecvMsgSize(math.MaxInt32), grpc.MaxSendMsgSize(math.MaxInt32))
	default:
		size, err := strconv.Atoi(limit)
		if err != nil {
			fail("TORTURE_MAX_MESSAGE: %v", err)
		}
		options = append(options, grpc.MaxRecvMsgSize(size), grpc.MaxSendMsgSize(size))
	}
	if os.Getenv("TORTURE_KEEPALIVE") == "strict" {
		// The third ping without data gets GOAWAY, however slowly they come. What takes ten minutes with Go's own
		// policy shows within seconds.
		options = append(options, grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 24 * time.Hour}))
	}
	return grpc.NewServer(options...)
}

func pause(variable string) {
	if text := os.Getenv(variable); text != "" {
		seconds, err := strconv.ParseFloat(text, 64)
		if err != nil {
			fail("%s: %v", variable, err)
		}
		time.Sleep(time.Duration(seconds * float64(time.Second)))
	}
}

func fail(format string, arguments ...any) {
	fmt.Fprintf(rawStderr, format+"\n", arguments...)
	os.Exit(2)
}
