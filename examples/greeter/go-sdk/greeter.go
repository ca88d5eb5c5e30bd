// Package greeter is what hosts and greeter plugins written in Go share: the interface, how it travels, and the
// handshake. It says the same as the Python package greeter_sdk.
package greeter

import (
	"context"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"hybridload.dev/examples/greeter/go-sdk/greeterpb"
)

//go:generate python -m grpc_tools.protoc -I../../../proto --go_out=greeterpb --go_opt=paths=source_relative,Mgreeter.proto=hybridload.dev/examples/greeter/go-sdk/greeterpb;greeterpb --go-grpc_out=greeterpb --go-grpc_opt=paths=source_relative,Mgreeter.proto=hybridload.dev/examples/greeter/go-sdk/greeterpb;greeterpb greeter.proto

// Greeter says hello.
type Greeter interface {
	Greet() (string, error)
}

// Handshake is shared by every host and plugin.
var Handshake = plugin.HandshakeConfig{
	ProtocolVersion:  1,
	MagicCookieKey:   "BASIC_PLUGIN",
	MagicCookieValue: "hello",
}

// Plugins is the plugin set. A plugin gives its implementation, a host nil.
func Plugins(implementation Greeter) plugin.PluginSet {
	return plugin.PluginSet{"greeter": &greeterPlugin{implementation: implementation}}
}

type greeterPlugin struct {
	plugin.NetRPCUnsupportedPlugin
	implementation Greeter
}

func (p *greeterPlugin) GRPCServer(_ *plugin.GRPCBroker, server *grpc.Server) error {
	greeterpb.RegisterGreeterServiceServer(server, &service{implementation: p.implementation})
	return nil
}

func (p *greeterPlugin) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, connection *grpc.ClientConn) (any, error) {
	return &stub{client: greeterpb.NewGreeterServiceClient(connection)}, nil
}

type service struct {
	greeterpb.UnimplementedGreeterServiceServer
	implementation Greeter
}

func (s *service) Greet(context.Context, *greeterpb.Empty) (*greeterpb.GreetResponse, error) {
	message, err := s.implementation.Greet()
	return &greeterpb.GreetResponse{Message: message}, err
}

type stub struct {
	client greeterpb.GreeterServiceClient
}

func (s *stub) Greet() (string, error) {
	response, err := s.client.Greet(context.Background(), &greeterpb.Empty{})
	return response.GetMessage(), err
}
