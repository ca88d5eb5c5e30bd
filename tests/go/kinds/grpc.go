// Package kinds holds both halves of the plugins that hosts and plugins in this module share: a greeter and a key-value
// store, over gRPC and over net/rpc.
package kinds

import (
	"context"
	"sync"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	greeterpb "hybridload.dev/tests/protocol/greeterpb"
	kvpb "hybridload.dev/tests/protocol/kvpb"
)

// Greeter says hello.
type Greeter interface {
	Greet() (string, error)
}

// Store keeps values under keys.
type Store interface {
	Get(key string) ([]byte, error)
	Put(key string, value []byte) error
}

// GRPCGreeter is the kind "greeter" over gRPC. Greeting matters on the plugin's side only.
type GRPCGreeter struct {
	plugin.NetRPCUnsupportedPlugin
	Greeting string
}

func (p *GRPCGreeter) GRPCServer(_ *plugin.GRPCBroker, server *grpc.Server) error {
	RegisterGreeter(server, p.Greeting)
	return nil
}

func (p *GRPCGreeter) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, connection *grpc.ClientConn) (any, error) {
	return grpcGreeterClient{greeterpb.NewGreeterServiceClient(connection)}, nil
}

type grpcGreeterClient struct {
	client greeterpb.GreeterServiceClient
}

func (c grpcGreeterClient) Greet() (string, error) {
	response, err := c.client.Greet(context.Background(), &greeterpb.Empty{})
	return response.GetMessage(), err
}

// RegisterGreeter serves a greeter that always says the same.
func RegisterGreeter(server *grpc.Server, greeting string) {
	greeterpb.RegisterGreeterServiceServer(server, &grpcGreeter{greeting: greeting})
}

type grpcGreeter struct {
	greeterpb.UnimplementedGreeterServiceServer
	greeting string
}

func (g *grpcGreeter) Greet(context.Context, *greeterpb.Empty) (*greeterpb.GreetResponse, error) {
	return &greeterpb.GreetResponse{Message: g.greeting}, nil
}

// GRPCStore is the kind "kv" over gRPC; the plugin keeps its values in memory.
type GRPCStore struct {
	plugin.NetRPCUnsupportedPlugin
}

func (p *GRPCStore) GRPCServer(_ *plugin.GRPCBroker, server *grpc.Server) error {
	kvpb.RegisterKeyValueServer(server, &grpcStore{values: map[string][]byte{}})
	return nil
}

func (p *GRPCStore) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, connection *grpc.ClientConn) (any, error) {
	return grpcStoreClient{kvpb.NewKeyValueClient(connection)}, nil
}

type grpcStoreClient struct {
	client kvpb.KeyValueClient
}

func (c grpcStoreClient) Get(key string) ([]byte, error) {
	response, err := c.client.Get(context.Background(), &kvpb.GetRequest{Key: key})
	return response.GetResult(), err
}

func (c grpcStoreClient) Put(key string, value []byte) error {
	_, err := c.client.Put(context.Background(), &kvpb.PutRequest{Key: key, Value: value})
	return err
}

type grpcStore struct {
	kvpb.UnimplementedKeyValueServer
	lock   sync.Mutex
	values map[string][]byte
}

func (s *grpcStore) Get(_ context.Context, request *kvpb.GetRequest) (*kvpb.GetResponse, error) {
	s.lock.Lock()
	defer s.lock.Unlock()
	value, found := s.values[request.Key]
	if !found {
		return nil, status.Errorf(codes.NotFound, "no value under %q", request.Key)
	}
	return &kvpb.GetResponse{Result: value}, nil
}

func (s *grpcStore) Put(_ context.Context, request *kvpb.PutRequest) (*kvpb.PutResponse, error) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.values[request.Key] = request.Value
	return &kvpb.PutResponse{}, nil
}
