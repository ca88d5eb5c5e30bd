// A store written in Go, out of kv.proto alone: it keeps each value in a file of the folder STORE_FOLDER.
package main

import (
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"hybridload.dev/examples/kv/go-plugin/kvpb"
)

//go:generate python -m grpc_tools.protoc -I.. --go_out=kvpb --go_opt=paths=source_relative,Mkv.proto=hybridload.dev/examples/kv/go-plugin/kvpb;kvpb --go-grpc_out=kvpb --go-grpc_opt=paths=source_relative,Mkv.proto=hybridload.dev/examples/kv/go-plugin/kvpb;kvpb kv.proto

type store struct {
	kvpb.UnimplementedKeyValueServer
	folder string
}

func (s *store) Get(_ context.Context, request *kvpb.GetRequest) (*kvpb.GetResponse, error) {
	value, err := os.ReadFile(s.path(request.Key))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, status.Errorf(codes.NotFound, "no value under %q", request.Key)
	}
	return &kvpb.GetResponse{Result: value}, err
}

func (s *store) Put(_ context.Context, request *kvpb.PutRequest) (*kvpb.PutResponse, error) {
	return &kvpb.PutResponse{}, os.WriteFile(s.path(request.Key), request.Value, 0o600)
}

func (s *store) path(key string) string {
	return filepath.Join(s.folder, hex.EncodeToString([]byte(key)))
}

type storePlugin struct {
	plugin.NetRPCUnsupportedPlugin
	store *store
}

func (p *storePlugin) GRPCServer(_ *plugin.GRPCBroker, server *grpc.Server) error {
	kvpb.RegisterKeyValueServer(server, p.store)
	return nil
}

func (p *storePlugin) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("this program only serves")
}

func main() {
	folder, chosen := os.LookupEnv("STORE_FOLDER")
	if !chosen {
		folder = "."
	}
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: plugin.HandshakeConfig{
			ProtocolVersion: 1, MagicCookieKey: "KV_PLUGIN", MagicCookieValue: "store",
		},
		Plugins:    plugin.PluginSet{"kv": &storePlugin{store: &store{folder: folder}}},
		GRPCServer: plugin.DefaultGRPCServer,
	})
}
