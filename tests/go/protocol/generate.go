// Package protocol holds the code generated from the services that the test programs speak.
//
// It needs grpcio-tools, and these on PATH:
//
//	go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.6
//	go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.3.0
package protocol

//go:generate python -m grpc_tools.protoc -I. --go_out=torturepb --go_opt=paths=source_relative,Mtorture.proto=hybridload.dev/tests/protocol/torturepb --go-grpc_out=torturepb --go-grpc_opt=paths=source_relative,Mtorture.proto=hybridload.dev/tests/protocol/torturepb torture.proto
//go:generate python -m grpc_tools.protoc -I../../../proto --go_out=greeterpb --go_opt=paths=source_relative,Mgreeter.proto=hybridload.dev/tests/protocol/greeterpb --go-grpc_out=greeterpb --go-grpc_opt=paths=source_relative,Mgreeter.proto=hybridload.dev/tests/protocol/greeterpb greeter.proto
//go:generate python -m grpc_tools.protoc -I../../../examples/kv --go_out=kvpb --go_opt=paths=source_relative,Mkv.proto=hybridload.dev/tests/protocol/kvpb --go-grpc_out=kvpb --go-grpc_opt=paths=source_relative,Mkv.proto=hybridload.dev/tests/protocol/kvpb kv.proto
//go:generate python -m grpc_tools.protoc -I. --go_out=behaviourpb --go_opt=paths=source_relative,Mbehaviour.proto=hybridload.dev/tests/protocol/behaviourpb,Mbehaviour_listener.proto=hybridload.dev/tests/protocol/behaviourpb,Mbehaviour_peer.proto=hybridload.dev/tests/protocol/behaviourpb,Mbehaviour_counter.proto=hybridload.dev/tests/protocol/behaviourpb --go-grpc_out=behaviourpb --go-grpc_opt=paths=source_relative,Mbehaviour.proto=hybridload.dev/tests/protocol/behaviourpb,Mbehaviour_listener.proto=hybridload.dev/tests/protocol/behaviourpb,Mbehaviour_peer.proto=hybridload.dev/tests/protocol/behaviourpb,Mbehaviour_counter.proto=hybridload.dev/tests/protocol/behaviourpb behaviour.proto behaviour_listener.proto behaviour_peer.proto behaviour_counter.proto
