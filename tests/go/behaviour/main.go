// The Go plugin of the behaviour suite (tests/behaviour): it does in Go what behaviour_plugin does in Python, so that
// one table of behaviours runs over both. The service is the .proto that the Python contract prints; over net/rpc, with
// BEHAVIOUR_PROTOCOL=netrpc, its calls are those of netrpc.go.
package main

import (
	"context"
	"os"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	pb "hybridload.dev/tests/protocol/behaviourpb"
)

func main() {
	config := &plugin.ServeConfig{
		HandshakeConfig: plugin.HandshakeConfig{
			ProtocolVersion:  1,
			MagicCookieKey:   "BEHAVIOUR_PLUGIN",
			MagicCookieValue: "the same everywhere",
		},
		Plugins:    plugin.PluginSet{"everything": &everythingPlugin{}},
		GRPCServer: plugin.DefaultGRPCServer,
	}
	if os.Getenv("BEHAVIOUR_PROTOCOL") == "netrpc" {
		config.Plugins = plugin.PluginSet{"everything": &callsPlugin{}}
		config.GRPCServer = nil
	}
	plugin.Serve(config)
}

// logger writes as the host of a Go plugin expects it: every record that matters to it, as JSON.
func logger() hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, JSONFormat: true})
}

type everythingPlugin struct {
	plugin.NetRPCUnsupportedPlugin
}

func (*everythingPlugin) GRPCServer(broker *plugin.GRPCBroker, server *grpc.Server) error {
	pb.RegisterEverythingServer(server, newEverything(broker, logger()))
	return nil
}

func (*everythingPlugin) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, nil
}
