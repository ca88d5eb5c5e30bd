// The Go plugin of the behaviour suite (tests/behaviour): it does in Go what behaviour_plugin does in Python, so that
// one table of behaviours runs over both. The service is the .proto that the Python contract prints.
package main

import (
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"context"

	pb "hybridload.dev/tests/protocol/behaviourpb"
)

func main() {
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: plugin.HandshakeConfig{
			ProtocolVersion:  1,
			MagicCookieKey:   "BEHAVIOUR_PLUGIN",
			MagicCookieValue: "the same everywhere",
		},
		Plugins:    plugin.PluginSet{"everything": &everythingPlugin{}},
		GRPCServer: plugin.DefaultGRPCServer,
	})
}

type everythingPlugin struct {
	plugin.NetRPCUnsupportedPlugin
}

func (*everythingPlugin) GRPCServer(broker *plugin.GRPCBroker, server *grpc.Server) error {
	// As the host of a Go plugin expects it: every record that matters to it, as JSON.
	log := hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, JSONFormat: true})
	pb.RegisterEverythingServer(server, newEverything(broker, log))
	return nil
}

func (*everythingPlugin) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, nil
}
