package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	"hybridload.dev/tests/kinds"
	_ "hybridload.dev/tests/protocol/torturepb"
)

// pluginSet has both protocols for each kind, and "connection", which hands out the bare gRPC connection and its broker.
func pluginSet() plugin.PluginSet {
	return plugin.PluginSet{"greeter": &greeterKind{}, "kv": &storeKind{}, "connection": &connectionKind{}}
}

type greeterKind struct {
	kinds.NetRPCGreeter
	grpc kinds.GRPCGreeter
}

func (k *greeterKind) GRPCServer(broker *plugin.GRPCBroker, server *grpc.Server) error {
	return k.grpc.GRPCServer(broker, server)
}

func (k *greeterKind) GRPCClient(ctx context.Context, broker *plugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return k.grpc.GRPCClient(ctx, broker, c)
}

type storeKind struct {
	kinds.NetRPCStore
	grpc kinds.GRPCStore
}

func (k *storeKind) GRPCServer(broker *plugin.GRPCBroker, server *grpc.Server) error {
	return k.grpc.GRPCServer(broker, server)
}

func (k *storeKind) GRPCClient(ctx context.Context, broker *plugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return k.grpc.GRPCClient(ctx, broker, c)
}

type connectionKind struct {
	plugin.NetRPCUnsupportedPlugin
}

func (k *connectionKind) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error { return nil }

func (k *connectionKind) GRPCClient(_ context.Context, b *plugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return &brokered{ClientConn: c, broker: b}, nil
}

// call makes one call, said in one of these ways:
//
//	ping                          the protocol's own ping
//	greet                         Greet of the kind "greeter"
//	get:KEY, put:KEY=VALUE        of the kind "kv"
//	sleep:SECONDS                 the host itself does nothing for so long
//	callback:TIMES, offer:COUNT, dial:ID    the broker's, see broker.go
//	SERVICE/METHOD[={JSON}]       any unary or server-streaming method of greeter.proto, kv.proto and torture.proto
func (c *caller) call(call string) (any, error) {
	name, argument, _ := strings.Cut(call, ":")
	switch {
	case call == "ping":
		return nil, c.connection.Ping()
	case call == "greet":
		greeter, err := dispense[kinds.Greeter](c, "greeter")
		if err != nil {
			return nil, err
		}
		return greeter.Greet()
	case name == "get" || name == "put":
		return c.storeCall(name, argument)
	case name == "callback" || name == "offer" || name == "dial":
		return c.brokerCall(name, argument)
	case name == "sleep":
		pause, err := time.ParseDuration(argument + "s")
		time.Sleep(pause)
		return nil, err
	case strings.Contains(call, "/"):
		return c.serviceCall(call)
	}
	return nil, fmt.Errorf("unknown call %q", call)
}

// caller dispenses each kind once, as hosts do: over net/rpc every further one is a new object in the plugin.
type caller struct {
	connection plugin.ClientProtocol
	lock       sync.Mutex
	dispensed  map[string]any
}

func dispense[T any](c *caller, kind string) (T, error) {
	c.lock.Lock()
	defer c.lock.Unlock()
	if c.dispensed[kind] == nil {
		raw, err := c.connection.Dispense(kind)
		if err != nil {
			var none T
			return none, err
		}
		c.dispensed[kind] = raw
	}
	return c.dispensed[kind].(T), nil
}

func (c *caller) storeCall(name, argument string) (any, error) {
	store, err := dispense[kinds.Store](c, "kv")
	if err != nil {
		return nil, err
	}
	if name == "get" {
		value, err := store.Get(argument)
		return string(value), err
	}
	key, value, _ := strings.Cut(argument, "=")
	return nil, store.Put(key, []byte(value))
}

func (c *caller) serviceCall(call string) (any, error) {
	path, argument, found := strings.Cut(call, "=")
	if !found {
		argument = "{}"
	}
	method, err := findMethod(path)
	if err != nil {
		return nil, err
	}
	connection, err := dispense[*brokered](c, "connection")
	if err != nil {
		return nil, err
	}
	request := dynamicpb.NewMessage(method.Input())
	if err := protojson.Unmarshal([]byte(argument), request); err != nil {
		return nil, err
	}
	if method.IsStreamingServer() {
		return collect(connection.ClientConn, path, method, request)
	}
	response := dynamicpb.NewMessage(method.Output())
	if err := connection.Invoke(context.Background(), "/"+path, request, response); err != nil {
		return nil, err
	}
	return plain(response)
}

func findMethod(path string) (protoreflect.MethodDescriptor, error) {
	service, name, _ := strings.Cut(path, "/")
	descriptor, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", service, err)
	}
	found, isService := descriptor.(protoreflect.ServiceDescriptor)
	if !isService || found.Methods().ByName(protoreflect.Name(name)) == nil {
		return nil, fmt.Errorf("%s has no method %s", service, name)
	}
	return found.Methods().ByName(protoreflect.Name(name)), nil
}

func collect(
	connection *grpc.ClientConn, path string, method protoreflect.MethodDescriptor, request *dynamicpb.Message,
) (any, error) {
	stream, err := connection.NewStream(context.Background(), &grpc.StreamDesc{ServerStreams: true}, "/"+path)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(stream.SendMsg(request), stream.CloseSend()); err != nil {
		return nil, err
	}
	items := []any{}
	for {
		item := dynamicpb.NewMessage(method.Output())
		if err := stream.RecvMsg(item); errors.Is(err, io.EOF) {
			return items, nil
		} else if err != nil {
			return items, err
		}
		value, err := plain(item)
		if err != nil {
			return items, err
		}
		items = append(items, value)
	}
}

func plain(message *dynamicpb.Message) (any, error) {
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(message)
	return rawJSON(text), err
}

type rawJSON []byte

func (r rawJSON) MarshalJSON() ([]byte, error) { return r, nil }

// bench makes the first call again and again; what it reports is seconds.
func (c *caller) bench(o *options) error {
	call := "greet"
	if len(o.calls) > 0 {
		call = o.calls[0]
	}
	run := func() error { _, err := c.call(call); return err }
	times := make([][]float64, o.threads)
	failures := make([]error, o.threads)
	var workers sync.WaitGroup
	began := time.Now()
	for worker := range o.threads {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for range o.bench / o.threads {
				start := time.Now()
				if err := run(); err != nil {
					failures[worker] = err
					return
				}
				times[worker] = append(times[worker], time.Since(start).Seconds())
			}
		}()
	}
	workers.Wait()
	elapsed := time.Since(began).Seconds()
	if err := errors.Join(failures...); err != nil {
		return err
	}
	all := []float64{}
	for _, part := range times {
		all = append(all, part...)
	}
	sort.Float64s(all)
	at := func(share float64) float64 { return all[int(share*float64(len(all)-1))] }
	report("bench", map[string]any{
		"call": call, "calls": len(all), "threads": o.threads, "seconds": elapsed,
		"min": all[0], "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": all[len(all)-1],
	})
	return nil
}
