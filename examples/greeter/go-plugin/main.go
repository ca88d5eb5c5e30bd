// A greeter written in Go. It knows nothing of hybridload: any go-plugin host runs it.
package main

import (
	"os"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"

	greeter "hybridload.dev/examples/greeter/go-sdk"
)

type gopher struct {
	greeting string
}

func (g *gopher) Greet() (string, error) {
	return g.greeting, nil
}

func main() {
	greeting, chosen := os.LookupEnv("GREETING")
	if !chosen {
		greeting = "Hello from Go!"
	}
	// A host reads log records off standard error, as JSON.
	log := hclog.New(&hclog.LoggerOptions{Name: "gopher", Output: os.Stderr, JSONFormat: true})
	log.Info("ready", "greeting", greeting)
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: greeter.Handshake,
		Plugins:         greeter.Plugins(&gopher{greeting: greeting}),
		GRPCServer:      plugin.DefaultGRPCServer,
		Logger:          log,
	})
}
