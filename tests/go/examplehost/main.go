// A host for the examples that ship with go-plugin, with their own halves of each interface, that can do what their own
// hosts never ask for: AutoMTLS, multiplexing, one protocol alone. It starts a command, makes the calls that show the
// example, and reports as one JSON object:
//
//	{"protocol":…, "version":…, "start":…, "calls":…, "answers":[…]}    or {"error":…} and exit code 1
//
// start and calls are seconds. An answer is what was returned, or {"error":…}.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	basic "github.com/hashicorp/go-plugin/examples/basic/shared"
	bidirectional "github.com/hashicorp/go-plugin/examples/bidirectional/shared"
	kv "github.com/hashicorp/go-plugin/examples/grpc/shared"
	streaming "github.com/hashicorp/go-plugin/examples/streaming/shared"
)

type example struct {
	versions map[int]plugin.PluginSet
	kind     string
	calls    func(dispensed any) []any
}

var examples = map[string]example{
	"basic":         {sets(1, &basic.GreeterPlugin{}, "greeter"), "greeter", greet},
	"bidirectional": {sets(1, &bidirectional.CounterPlugin{}, "counter"), "counter", count},
	"grpc":          {sets(1, &kv.KVGRPCPlugin{}, "kv_grpc"), "kv_grpc", keep},
	"netrpc":        {sets(1, &kv.KVPlugin{}, "kv"), "kv", keep},
	"negotiated":    {map[int]plugin.PluginSet{2: {"kv": &kv.KVPlugin{}}, 3: {"kv": &kv.KVGRPCPlugin{}}}, "kv", keep},
	"streaming":     {sets(1, &streaming.StreamerPlugin{}, "streamer"), "streamer", stream},
}

func sets(version int, half plugin.Plugin, kind string) map[int]plugin.PluginSet {
	return map[int]plugin.PluginSet{version: {kind: half}}
}

func main() {
	name := flag.String("example", "grpc", "basic, bidirectional, grpc, netrpc, negotiated or streaming")
	mtls := flag.Bool("mtls", false, "AutoMTLS")
	multiplex := flag.Bool("multiplex", false, "GRPCBrokerMultiplex")
	highest := flag.Int("highest", 99, "offer no application version above this one")
	flag.Parse()
	result, err := run(examples[*name], *mtls, *multiplex, *highest, flag.Args())
	if err != nil {
		result = map[string]any{"error": err.Error()}
	}
	text, encodingError := json.Marshal(result)
	if encodingError != nil {
		panic(encodingError)
	}
	fmt.Println(string(text))
	if err != nil {
		os.Exit(1)
	}
}

func run(e example, mtls, multiplex bool, highest int, command []string) (map[string]any, error) {
	for version := range e.versions {
		if version > highest {
			delete(e.versions, version)
		}
	}
	client := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:     plugin.HandshakeConfig{MagicCookieKey: "BASIC_PLUGIN", MagicCookieValue: "hello"},
		VersionedPlugins:    e.versions,
		Cmd:                 exec.Command(command[0], command[1:]...),
		AllowedProtocols:    []plugin.Protocol{plugin.ProtocolNetRPC, plugin.ProtocolGRPC},
		AutoMTLS:            mtls,
		GRPCBrokerMultiplex: multiplex,
		Logger:              hclog.New(&hclog.LoggerOptions{Output: os.Stderr, Level: hclog.Debug}),
	})
	defer client.Kill()
	began := time.Now()
	connection, err := client.Client()
	if err != nil {
		return nil, err
	}
	dispensed, err := connection.Dispense(e.kind)
	if err != nil {
		return nil, err
	}
	started := time.Now()
	answers := e.calls(dispensed)
	return map[string]any{
		"protocol": client.Protocol(), "version": client.NegotiatedVersion(),
		"start": started.Sub(began).Seconds(), "calls": time.Since(started).Seconds(), "answers": answers,
	}, nil
}

func greet(dispensed any) []any {
	return []any{dispensed.(basic.Greeter).Greet()}
}

func keep(dispensed any) []any {
	store := dispensed.(kv.KV)
	return []any{
		answer(nil, store.Put("hello", []byte("world"))),
		answer(text(store.Get("hello"))),
		answer(text(store.Get("missing"))),
	}
}

type adder struct{}

func (adder) Sum(a, b int64) (int64, error) { return a + b, nil }

type refuser struct{}

func (refuser) Sum(a, b int64) (int64, error) { return 0, fmt.Errorf("%d and %d are too much", a, b) }

func count(dispensed any) []any {
	counter := dispensed.(bidirectional.Counter)
	value := func() any {
		got, err := counter.Get("n")
		return answer(got, err)
	}
	return []any{
		answer(nil, counter.Put("n", 20, adder{})),
		answer(nil, counter.Put("n", 22, adder{})),
		value(),
		answer(nil, counter.Put("n", 1, refuser{})),
		value(),
	}
}

func stream(dispensed any) []any {
	streamer := dispensed.(streaming.Streamer)
	ctx := context.Background()
	path := filepath.Join(must(os.Getwd()), "streamed")
	return []any{
		answer(nil, streamer.Configure(ctx, path, 10)),
		answer(nil, streamer.Write(ctx, []byte(strings.Repeat("Lorem ipsum dolor sit amet. ", 1000)))),
		answer(text(streamer.Read(ctx))),
	}
}

func text(value []byte, err error) (any, error) { return string(value), err }

func answer(value any, err error) any {
	if err != nil {
		return map[string]string{"error": err.Error()}
	}
	return value
}

func must(value string, err error) string {
	if err != nil {
		panic(err)
	}
	return value
}
