// Asks a server for its services by server reflection, as grpcurl does, with grpc-go's own messages and protobuf-go's
// own linker: what this program prints, a Go tool can use.
//
//	reflector NETWORK ADDRESS [v1|v1alpha]
//
// It prints one JSON object a line: for each service its file and its methods, then the answers to a list of odd
// questions. Each service is linked from the files that the server gave for it and nothing else.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	v1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	v1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// asker is one open stream; both versions have the same bytes.
type asker struct {
	stream interface {
		Send(*v1.ServerReflectionRequest) error
		Recv() (*v1.ServerReflectionResponse, error)
	}
}

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(network, address, version string) error {
	target := address
	if network == "unix" {
		target = "unix:" + address
	}
	connection, err := grpc.Dial(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	a, err := open(ctx, connection, version)
	if err != nil {
		return err
	}
	listed, err := a.ask(&v1.ServerReflectionRequest{
		MessageRequest: &v1.ServerReflectionRequest_ListServices{ListServices: "*"},
	})
	if err != nil {
		return err
	}
	for _, service := range listed.GetListServicesResponse().GetService() {
		// A stream of its own: what was sent once is not sent again.
		fresh, err := open(ctx, connection, version)
		if err != nil {
			return err
		}
		if err := fresh.describe(service.Name); err != nil {
			return fmt.Errorf("%s: %w", service.Name, err)
		}
	}
	return a.oddities()
}

func open(ctx context.Context, connection *grpc.ClientConn, version string) (*asker, error) {
	if version == "v1" {
		stream, err := v1.NewServerReflectionClient(connection).ServerReflectionInfo(ctx)
		return &asker{stream}, err
	}
	stream, err := v1alpha.NewServerReflectionClient(connection).ServerReflectionInfo(ctx)
	return &asker{alpha{stream}}, err
}

type alpha struct {
	stream v1alpha.ServerReflection_ServerReflectionInfoClient
}

func (a alpha) Send(request *v1.ServerReflectionRequest) error {
	data, err := proto.Marshal(request)
	if err != nil {
		return err
	}
	other := &v1alpha.ServerReflectionRequest{}
	if err := proto.Unmarshal(data, other); err != nil {
		return err
	}
	return a.stream.Send(other)
}

func (a alpha) Recv() (*v1.ServerReflectionResponse, error) {
	other, err := a.stream.Recv()
	if err != nil {
		return nil, err
	}
	data, err := proto.Marshal(other)
	if err != nil {
		return nil, err
	}
	response := &v1.ServerReflectionResponse{}
	return response, proto.Unmarshal(data, response)
}

func (a *asker) ask(request *v1.ServerReflectionRequest) (*v1.ServerReflectionResponse, error) {
	if err := a.stream.Send(request); err != nil {
		return nil, err
	}
	response, err := a.stream.Recv()
	if err == nil && !proto.Equal(response.OriginalRequest, request) {
		err = fmt.Errorf("the answer is to %v", response.OriginalRequest)
	}
	return response, err
}

func (a *asker) describe(name string) error {
	response, err := a.ask(&v1.ServerReflectionRequest{
		Host:           "here",
		MessageRequest: &v1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: name},
	})
	if err != nil {
		return err
	}
	if response.GetErrorResponse() != nil {
		report(map[string]any{"service": name, "error": response.GetErrorResponse().ErrorMessage})
		return nil
	}
	set := &descriptorpb.FileDescriptorSet{}
	for _, data := range response.GetFileDescriptorResponse().FileDescriptorProto {
		file := &descriptorpb.FileDescriptorProto{}
		if err := proto.Unmarshal(data, file); err != nil {
			return err
		}
		set.File = append(set.File, file)
	}
	files, err := protodesc.NewFiles(set)
	if err != nil {
		return err
	}
	found, err := files.FindDescriptorByName(protoreflect.FullName(name))
	if err != nil {
		return err
	}
	methods := []string{}
	service := found.(protoreflect.ServiceDescriptor)
	for i := 0; i < service.Methods().Len(); i++ {
		method := service.Methods().Get(i)
		methods = append(methods, fmt.Sprintf("%s(%s%s) returns (%s%s)", method.Name(),
			stream(method.IsStreamingClient()), method.Input().FullName(),
			stream(method.IsStreamingServer()), method.Output().FullName()))
	}
	report(map[string]any{"service": name, "file": found.ParentFile().Path(), "methods": methods, "host": response.ValidHost})
	return nil
}

// oddities asks what few clients ask, all on one stream.
func (a *asker) oddities() error {
	questions := map[string]*v1.ServerReflectionRequest{
		"unknown symbol":    {MessageRequest: &v1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: "no.Such"}},
		"method":            {MessageRequest: &v1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: "plugin.GRPCStdio.StreamStdio"}},
		"enum value":        {MessageRequest: &v1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: "plugin.StdioData.STDOUT"}},
		"unknown file":      {MessageRequest: &v1.ServerReflectionRequest_FileByFilename{FileByFilename: "no/such.proto"}},
		"known file":        {MessageRequest: &v1.ServerReflectionRequest_FileByFilename{FileByFilename: "google/protobuf/empty.proto"}},
		"unknown extension": {MessageRequest: &v1.ServerReflectionRequest_FileContainingExtension{FileContainingExtension: &v1.ExtensionRequest{ContainingType: "plugin.ConnInfo", ExtensionNumber: 7}}},
		"numbers":           {MessageRequest: &v1.ServerReflectionRequest_AllExtensionNumbersOfType{AllExtensionNumbersOfType: "plugin.ConnInfo"}},
		"unknown numbers":   {MessageRequest: &v1.ServerReflectionRequest_AllExtensionNumbersOfType{AllExtensionNumbersOfType: "no.Such"}},
	}
	for what, question := range questions {
		response, err := a.ask(question)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		answer := map[string]any{"question": what}
		switch {
		case response.GetErrorResponse() != nil:
			answer["code"] = response.GetErrorResponse().ErrorCode
		case response.GetAllExtensionNumbersResponse() != nil:
			answer["numbers"] = len(response.GetAllExtensionNumbersResponse().ExtensionNumber)
		default:
			answer["files"] = len(response.GetFileDescriptorResponse().FileDescriptorProto)
		}
		report(answer)
	}
	// A question without content ends the stream.
	_, err := a.ask(&v1.ServerReflectionRequest{})
	report(map[string]any{"question": "nothing", "error": fmt.Sprint(err)})
	return nil
}

func stream(streams bool) string {
	if streams {
		return "stream "
	}
	return ""
}

func report(fields map[string]any) {
	line, err := json.Marshal(fields)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(line))
}
