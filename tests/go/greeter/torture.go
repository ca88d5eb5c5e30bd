package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"hybridload.dev/tests/kinds"
	greeterpb "hybridload.dev/tests/protocol/greeterpb"
	torturepb "hybridload.dev/tests/protocol/torturepb"
)

type torturePlugin struct {
	plugin.NetRPCUnsupportedPlugin
}

func (p *torturePlugin) GRPCServer(broker *plugin.GRPCBroker, server *grpc.Server) error {
	service := newTorture()
	service.broker = broker
	torturepb.RegisterTortureServer(server, service)
	return nil
}

func newTorture() *torture {
	service := &torture{log: hclog.New(&hclog.LoggerOptions{
		Name: "torture", Level: hclog.Trace, Output: rawStderr, JSONFormat: true,
	})}
	interrupts := make(chan os.Signal, 16)
	signal.Notify(interrupts, os.Interrupt)
	go func() {
		for range interrupts {
			service.interrupts.Add(1)
		}
	}()
	return service
}

func (p *torturePlugin) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, nil
}

type torture struct {
	torturepb.UnimplementedTortureServer
	broker     *plugin.GRPCBroker
	log        hclog.Logger
	interrupts atomic.Int32
}

func (t *torture) Echo(_ context.Context, request *torturepb.Data) (*torturepb.Data, error) {
	return request, nil
}

// Output

func (t *torture) Write(_ context.Context, request *torturepb.WriteRequest) (*torturepb.WriteResponse, error) {
	targets := map[torturepb.WriteRequest_Target]*os.File{
		torturepb.WriteRequest_OS_STDOUT:  os.Stdout,
		torturepb.WriteRequest_OS_STDERR:  os.Stderr,
		torturepb.WriteRequest_RAW_STDOUT: rawStdout,
		torturepb.WriteRequest_RAW_STDERR: rawStderr,
	}
	target := targets[request.Target]
	if len(request.Text) > 0 {
		written, err := target.Write(request.Text)
		return &torturepb.WriteResponse{Written: int64(written)}, err
	}
	written, err := io.Copy(target, io.LimitReader(&pattern{lineLength: int(request.LineLength)}, request.Size))
	return &torturepb.WriteResponse{Written: written}, err
}

// pattern is an endless text: the alphabet again and again, with a newline as the last byte of each line.
type pattern struct {
	lineLength int
	position   int
}

func (p *pattern) Read(buffer []byte) (int, error) {
	for index := range buffer {
		buffer[index] = byte('a' + p.position%26)
		p.position++
		if p.lineLength > 0 && p.position%p.lineLength == 0 {
			buffer[index] = '\n'
		}
	}
	return len(buffer), nil
}

func (t *torture) Log(_ context.Context, request *torturepb.LogRequest) (*torturepb.Empty, error) {
	level := hclog.LevelFromString(request.Level)
	if level == hclog.NoLevel {
		level = hclog.Info
	}
	padding := strings.Repeat("x", int(request.Padding))
	if request.Format == torturepb.LogRequest_HCLOG {
		for number := range request.Lines {
			t.log.Log(level, fmt.Sprintf("line %d%s", number, padding), "number", number)
		}
		return &torturepb.Empty{}, nil
	}
	tag := ""
	if request.Format == torturepb.LogRequest_TAGGED {
		tag = "[" + strings.ToUpper(level.String()) + "] "
	}
	var lines bytes.Buffer
	for number := range request.Lines {
		fmt.Fprintf(&lines, "%sline %d%s\n", tag, number, padding)
	}
	_, err := lines.WriteTo(rawStderr)
	return &torturepb.Empty{}, err
}

// Silence and ends

func (t *torture) Sleep(ctx context.Context, request *torturepb.SleepRequest) (*torturepb.Empty, error) {
	select {
	case <-time.After(seconds(request.Seconds)):
		return &torturepb.Empty{}, nil
	case <-ctx.Done():
		t.log.Info("cancelled", "cause", ctx.Err().Error())
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

func (t *torture) Hang(context.Context, *torturepb.Empty) (*torturepb.Empty, error) {
	select {}
}

func (t *torture) Freeze(context.Context, *torturepb.Empty) (*torturepb.Empty, error) {
	return &torturepb.Empty{}, syscall.Kill(os.Getpid(), syscall.SIGSTOP)
}

func (t *torture) Exit(_ context.Context, request *torturepb.ExitRequest) (*torturepb.Empty, error) {
	end := func() {
		if request.Signal != 0 {
			_ = syscall.Kill(os.Getpid(), syscall.Signal(request.Signal))
			select {} // the signal may come a moment later
		}
		os.Exit(int(request.Code))
	}
	if !request.AfterAnswer {
		end()
	}
	time.AfterFunc(50*time.Millisecond, end)
	return &torturepb.Empty{}, nil
}

func (t *torture) Panic(_ context.Context, request *torturepb.PanicRequest) (*torturepb.Empty, error) {
	go panic(request.Message)
	select {}
}

func (t *torture) Fail(_ context.Context, request *torturepb.FailRequest) (*torturepb.Empty, error) {
	failure := status.New(codes.Code(request.Code), request.Message)
	if len(request.Details) > 0 {
		detailed, err := failure.WithDetails(&torturepb.Data{Data: request.Details})
		if err != nil {
			return nil, err
		}
		failure = detailed
	}
	return nil, failure.Err()
}

// Streams

func (t *torture) Count(request *torturepb.CountRequest, stream torturepb.Torture_CountServer) error {
	padding := bytes.Repeat([]byte("x"), int(request.Size))
	for number := range request.Count {
		if request.FailAfter > 0 && number == request.FailAfter {
			return status.Errorf(codes.Internal, "failed after %d items", number)
		}
		if err := stream.Send(&torturepb.Item{Number: number, Padding: padding}); err != nil {
			return err
		}
		if request.Pause > 0 {
			time.Sleep(seconds(request.Pause))
		}
	}
	return nil
}

func (t *torture) Collect(stream torturepb.Torture_CollectServer) error {
	sum := &torturepb.Sum{}
	for {
		item, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stream.SendAndClose(sum)
		}
		if err != nil {
			return err
		}
		if item.Number != sum.Count {
			return status.Errorf(codes.DataLoss, "item %d came when %d was due", item.Number, sum.Count)
		}
		sum.Count++
		sum.Bytes += int64(len(item.Padding))
	}
}

func (t *torture) Chat(stream torturepb.Torture_ChatServer) error {
	for {
		data, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(data); err != nil {
			return err
		}
	}
}

// Processes

func (t *torture) Process(context.Context, *torturepb.Empty) (*torturepb.ProcessInfo, error) {
	folder, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	environment := map[string]string{}
	for _, variable := range os.Environ() {
		name, value, _ := strings.Cut(variable, "=")
		environment[name] = value
	}
	return &torturepb.ProcessInfo{
		Pid: int32(os.Getpid()), Parent: int32(os.Getppid()), Arguments: os.Args,
		Environment: environment, Folder: folder, Interrupts: t.interrupts.Load(),
	}, nil
}

func (t *torture) Spawn(_ context.Context, request *torturepb.SpawnRequest) (*torturepb.SpawnResponse, error) {
	child := exec.Command("sleep", fmt.Sprint(request.Seconds))
	if request.KeepPipes {
		child.Stdout, child.Stderr = rawStdout, rawStderr
	}
	if err := child.Start(); err != nil {
		return nil, err
	}
	go child.Wait()
	return &torturepb.SpawnResponse{Pid: int32(child.Process.Pid)}, nil
}

// The broker

func (t *torture) CallBack(ctx context.Context, request *torturepb.CallBackRequest) (*torturepb.CallBackResponse, error) {
	connection, err := t.broker.Dial(request.ServiceId)
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	client := greeterpb.NewGreeterServiceClient(connection)
	response := &torturepb.CallBackResponse{}
	for range request.Times {
		greeting, err := client.Greet(ctx, &greeterpb.Empty{})
		if err != nil {
			return nil, err
		}
		response.Messages = append(response.Messages, greeting.Message)
	}
	return response, nil
}

func (t *torture) Offer(_ context.Context, request *torturepb.OfferRequest) (*torturepb.OfferResponse, error) {
	response := &torturepb.OfferResponse{}
	for range request.Count {
		id := t.broker.NextId()
		accepting := make(chan struct{}, 1)
		go t.broker.AcceptAndServe(id, func(options []grpc.ServerOption) *grpc.Server {
			server := grpc.NewServer(options...)
			kinds.RegisterGreeter(server, fmt.Sprintf("Hello from service %d!", id))
			accepting <- struct{}{}
			return server
		})
		// A multiplexed broker that is knocked at too early stops accepting for good; with a host that has opened no
		// broker stream, nothing is ever accepted, and the ids are all it gets.
		select {
		case <-accepting:
		case <-time.After(time.Second):
		}
		response.ServiceIds = append(response.ServiceIds, id)
	}
	return response, nil
}

func seconds(value float64) time.Duration {
	return time.Duration(value * float64(time.Second))
}
