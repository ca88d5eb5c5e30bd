package main

import (
	"context"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	greeterpb "hybridload.dev/tests/protocol/greeterpb"
)

type greeterPlugin struct {
	plugin.NetRPCUnsupportedPlugin
	greeting string
}

func (p *greeterPlugin) GRPCServer(_ *plugin.GRPCBroker, server *grpc.Server) error {
	greeterpb.RegisterGreeterServiceServer(server, &greeter{greeting: p.greeting})
	return nil
}

func (p *greeterPlugin) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, nil
}

type greeter struct {
	greeterpb.UnimplementedGreeterServiceServer
	greeting string
}

func (g *greeter) Greet(context.Context, *greeterpb.Empty) (*greeterpb.GreetResponse, error) {
	return &greeterpb.GreetResponse{Message: g.greeting}, nil
}
