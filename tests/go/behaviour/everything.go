package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "hybridload.dev/tests/protocol/behaviourpb"
)

const patience = 30 * time.Second

type everything struct {
	pb.UnimplementedEverythingServer
	broker *plugin.GRPCBroker
	log    hclog.Logger

	lock   sync.Mutex
	events map[string]chan struct{}
	groups map[string]*meeting
	kept   pb.ListenerServiceClient
}

type meeting struct {
	come int64
	all  chan struct{}
}

func newEverything(broker *plugin.GRPCBroker, log hclog.Logger) *everything {
	return &everything{
		broker: broker, log: log,
		events: map[string]chan struct{}{}, groups: map[string]*meeting{},
	}
}

// Values

func (*everything) EchoParcel(_ context.Context, r *pb.EchoParcelRequest) (*pb.EchoParcelResponse, error) {
	return &pb.EchoParcelResponse{Result: r.Parcel}, nil
}

func (*everything) EchoText(_ context.Context, r *pb.EchoTextRequest) (*pb.EchoTextResponse, error) {
	return &pb.EchoTextResponse{Result: r.Value}, nil
}

func (*everything) EchoNumber(_ context.Context, r *pb.EchoNumberRequest) (*pb.EchoNumberResponse, error) {
	return &pb.EchoNumberResponse{Result: r.Value}, nil
}

func (*everything) EchoRatio(_ context.Context, r *pb.EchoRatioRequest) (*pb.EchoRatioResponse, error) {
	return &pb.EchoRatioResponse{Result: r.Value}, nil
}

func (*everything) EchoFlag(_ context.Context, r *pb.EchoFlagRequest) (*pb.EchoFlagResponse, error) {
	return &pb.EchoFlagResponse{Result: r.Value}, nil
}

func (*everything) EchoData(_ context.Context, r *pb.EchoDataRequest) (*pb.EchoDataResponse, error) {
	return &pb.EchoDataResponse{Result: r.Value}, nil
}

func (*everything) EchoWords(_ context.Context, r *pb.EchoWordsRequest) (*pb.EchoWordsResponse, error) {
	return &pb.EchoWordsResponse{Result: r.Value}, nil
}

func (*everything) EchoScores(_ context.Context, r *pb.EchoScoresRequest) (*pb.EchoScoresResponse, error) {
	return &pb.EchoScoresResponse{Result: r.Value}, nil
}

func (*everything) EchoColour(_ context.Context, r *pb.EchoColourRequest) (*pb.EchoColourResponse, error) {
	return &pb.EchoColourResponse{Result: r.Value}, nil
}

func (*everything) EchoMoment(_ context.Context, r *pb.EchoMomentRequest) (*pb.EchoMomentResponse, error) {
	return &pb.EchoMomentResponse{Result: r.Value}, nil
}

func (*everything) EchoSpan(_ context.Context, r *pb.EchoSpanRequest) (*pb.EchoSpanResponse, error) {
	return &pb.EchoSpanResponse{Result: r.Value}, nil
}

func (*everything) EchoMaybe(_ context.Context, r *pb.EchoMaybeRequest) (*pb.EchoMaybeResponse, error) {
	return &pb.EchoMaybeResponse{Result: r.Value}, nil
}

func (*everything) Describe(_ context.Context, r *pb.DescribeRequest) (*pb.DescribeResponse, error) {
	title, name := "-", r.Name
	if r.Title != nil {
		title = *r.Title
	}
	if r.Loud {
		name = strings.ToUpper(name)
	}
	return &pb.DescribeResponse{Result: fmt.Sprintf("%s %s %d", title, name, r.Count)}, nil
}

func (*everything) Grow(_ context.Context, r *pb.GrowRequest) (*pb.GrowResponse, error) {
	return &pb.GrowResponse{Result: int64(len(append(r.Words, "more")))}, nil
}

func (*everything) Nothing(context.Context, *pb.NothingRequest) (*pb.NothingResponse, error) {
	return &pb.NothingResponse{}, nil
}

// Streams

func (*everything) Count(r *pb.CountRequest, stream pb.Everything_CountServer) error {
	for number := r.Start; number < r.Stop; number++ {
		if err := stream.Send(&pb.CountResponse{Result: number}); err != nil {
			return err
		}
	}
	return nil
}

func (*everything) CountThenFail(r *pb.CountThenFailRequest, stream pb.Everything_CountThenFailServer) error {
	for number := range r.Good {
		if err := stream.Send(&pb.CountThenFailResponse{Result: number}); err != nil {
			return err
		}
	}
	return status.Errorf(codes.InvalidArgument, "no more than %d", r.Good)
}

func (e *everything) Endless(r *pb.EndlessRequest, stream pb.Everything_EndlessServer) error {
	defer e.set(r.Key)
	for number := int64(0); ; number++ {
		if err := stream.Send(&pb.EndlessResponse{Result: number}); err != nil {
			return err
		}
	}
}

func (*everything) Total(stream pb.Everything_TotalServer) error {
	var total int64
	for {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stream.SendAndClose(&pb.TotalResponse{Result: total})
		}
		if err != nil {
			return err
		}
		total += request.Numbers
	}
}

func (*everything) First(stream pb.Everything_FirstServer) error {
	request, err := stream.Recv()
	if err != nil {
		return err
	}
	return stream.SendAndClose(&pb.FirstResponse{Result: request.Numbers})
}

func (*everything) Scaled(stream pb.Everything_ScaledServer) error {
	head, err := stream.Recv()
	if err != nil {
		return err
	}
	for {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&pb.ScaledResponse{Result: head.Factor * request.Numbers}); err != nil {
			return err
		}
	}
}

func (*everything) Until(stream pb.Everything_UntilServer) error {
	head, err := stream.Recv()
	if err != nil {
		return err
	}
	for {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if request.Numbers == head.Stop {
			return nil
		}
		if err := stream.Send(&pb.UntilResponse{Result: request.Numbers}); err != nil {
			return err
		}
	}
}

// Callbacks

func (e *everything) Tell(ctx context.Context, r *pb.TellRequest) (*pb.TellResponse, error) {
	connection, err := e.broker.Dial(r.Listener)
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	listener := pb.NewListenerServiceClient(connection)
	response := &pb.TellResponse{}
	for _, text := range r.Texts {
		heard, err := listener.Hear(ctx, &pb.HearRequest{Text: text})
		if err != nil {
			return nil, err
		}
		response.Result = append(response.Result, heard.Result)
	}
	return response, nil
}

func (e *everything) Keep(_ context.Context, r *pb.KeepRequest) (*pb.KeepResponse, error) {
	connection, err := e.broker.Dial(r.Listener)
	if err != nil {
		return nil, err
	}
	e.lock.Lock()
	defer e.lock.Unlock()
	e.kept = pb.NewListenerServiceClient(connection)
	return &pb.KeepResponse{}, nil
}

func (e *everything) TellKept(ctx context.Context, r *pb.TellKeptRequest) (*pb.TellKeptResponse, error) {
	e.lock.Lock()
	kept := e.kept
	e.lock.Unlock()
	if kept == nil {
		return nil, status.Error(codes.NotFound, "nobody to tell")
	}
	heard, err := kept.Hear(ctx, &pb.HearRequest{Text: r.Text})
	if err != nil {
		return nil, err
	}
	return &pb.TellKeptResponse{Result: heard.Result}, nil
}

func (e *everything) Counter(_ context.Context, r *pb.CounterRequest) (*pb.CounterResponse, error) {
	id := e.broker.NextId()
	go e.broker.AcceptAndServe(id, func(options []grpc.ServerOption) *grpc.Server {
		server := grpc.NewServer(options...)
		pb.RegisterCounterServiceServer(server, &counter{value: r.Start})
		return server
	})
	return &pb.CounterResponse{Result: id}, nil
}

type counter struct {
	pb.UnimplementedCounterServiceServer
	lock  sync.Mutex
	value int64
}

func (c *counter) Add(_ context.Context, r *pb.AddRequest) (*pb.AddResponse, error) {
	c.lock.Lock()
	defer c.lock.Unlock()
	c.value += r.By
	return &pb.AddResponse{Result: c.value}, nil
}

func (e *everything) Bounce(ctx context.Context, r *pb.BounceRequest) (*pb.BounceResponse, error) {
	if r.Depth == 0 {
		return &pb.BounceResponse{}, nil
	}
	connection, err := e.broker.Dial(r.Peer)
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	answer, err := pb.NewPeerServiceClient(connection).Catch(ctx, &pb.CatchRequest{Depth: r.Depth - 1})
	if err != nil {
		return nil, err
	}
	return &pb.BounceResponse{Result: 1 + answer.Result}, nil
}

// Asynchronous methods: in Go there is no other kind

func (*everything) SlowText(_ context.Context, r *pb.SlowTextRequest) (*pb.SlowTextResponse, error) {
	return &pb.SlowTextResponse{Result: r.Value}, nil
}

func (e *everything) Forever(ctx context.Context, r *pb.ForeverRequest) (*pb.ForeverResponse, error) {
	e.set(r.Key + " begun")
	defer e.set(r.Key)
	select {
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	case <-e.event(r.Key + " release"):
		e.set(r.Key + " to its end")
		return &pb.ForeverResponse{}, nil
	}
}

func (e *everything) SlowFail(_ context.Context, r *pb.SlowFailRequest) (*pb.SlowFailResponse, error) {
	return nil, failure(r.How)
}

func (*everything) SlowTotal(stream pb.Everything_SlowTotalServer) error {
	var total int64
	for {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stream.SendAndClose(&pb.SlowTotalResponse{Result: total})
		}
		if err != nil {
			return err
		}
		total += request.Numbers
	}
}

func (*everything) SlowCount(r *pb.SlowCountRequest, stream pb.Everything_SlowCountServer) error {
	for number := range r.Stop {
		if err := stream.Send(&pb.SlowCountResponse{Result: number}); err != nil {
			return err
		}
	}
	return nil
}

func (e *everything) SlowEndless(r *pb.SlowEndlessRequest, stream pb.Everything_SlowEndlessServer) error {
	defer e.set(r.Key)
	for number := int64(0); ; number++ {
		if err := stream.Send(&pb.SlowEndlessResponse{Result: number}); err != nil {
			return err
		}
	}
}

func (*everything) SlowScaled(stream pb.Everything_SlowScaledServer) error {
	head, err := stream.Recv()
	if err != nil {
		return err
	}
	for {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&pb.SlowScaledResponse{Result: head.Factor * request.Numbers}); err != nil {
			return err
		}
	}
}

// Errors and concurrency

func (*everything) Fail(_ context.Context, r *pb.FailRequest) (*pb.FailResponse, error) {
	return nil, failure(r.How)
}

// failure gives the codes that hybridload gives for the Python exceptions of the same names.
func failure(how string) error {
	switch how {
	case "value":
		return status.Error(codes.InvalidArgument, "bad value")
	case "key":
		return status.Error(codes.NotFound, "missing")
	case "unsupported":
		return status.Error(codes.Unimplemented, "not yet")
	case "permission":
		return status.Error(codes.PermissionDenied, "Permission denied")
	case "timeout":
		return status.Error(codes.DeadlineExceeded, "too slow")
	case "long":
		return status.Error(codes.InvalidArgument, strings.Repeat("x", 3000))
	}
	return errors.New(how)
}

func (e *everything) Hold(ctx context.Context, r *pb.HoldRequest) (*pb.HoldResponse, error) {
	e.set(r.Key + " begun")
	defer e.set(r.Key)
	select {
	case <-e.event(r.Key + " release"):
		return &pb.HoldResponse{}, nil
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	case <-time.After(patience):
		return nil, status.Errorf(codes.DeadlineExceeded, "nobody released %s", r.Key)
	}
}

func (e *everything) Release(_ context.Context, r *pb.ReleaseRequest) (*pb.ReleaseResponse, error) {
	e.set(r.Key + " release")
	return &pb.ReleaseResponse{}, nil
}

func (e *everything) Ended(_ context.Context, r *pb.EndedRequest) (*pb.EndedResponse, error) {
	select {
	case <-e.event(r.Key):
		return &pb.EndedResponse{Result: true}, nil
	case <-time.After(patience):
		return &pb.EndedResponse{}, nil
	}
}

func (e *everything) Meet(_ context.Context, r *pb.MeetRequest) (*pb.MeetResponse, error) {
	e.lock.Lock()
	group, found := e.groups[r.Key]
	if !found {
		group = &meeting{all: make(chan struct{})}
		e.groups[r.Key] = group
	}
	place := group.come
	group.come++
	if group.come == r.Parties {
		close(group.all)
	}
	e.lock.Unlock()
	select {
	case <-group.all:
		return &pb.MeetResponse{Result: place}, nil
	case <-time.After(patience):
		return nil, status.Error(codes.DeadlineExceeded, "the others did not come")
	}
}

func (e *everything) event(key string) chan struct{} {
	e.lock.Lock()
	defer e.lock.Unlock()
	event, found := e.events[key]
	if !found {
		event = make(chan struct{})
		e.events[key] = event
	}
	return event
}

func (e *everything) set(key string) {
	event := e.event(key)
	e.lock.Lock()
	defer e.lock.Unlock()
	select {
	case <-event:
	default:
		close(event)
	}
}

// Output

func (e *everything) Log(_ context.Context, r *pb.LogRequest) (*pb.LogResponse, error) {
	levels := map[string]hclog.Level{
		"DEBUG": hclog.Debug, "INFO": hclog.Info, "WARNING": hclog.Warn, "ERROR": hclog.Error,
	}
	var fields []any
	for name, value := range r.Fields {
		fields = append(fields, name, value)
	}
	e.log.Named(r.Logger).Log(levels[r.Level], r.Message, fields...)
	return &pb.LogResponse{}, nil
}

func (e *everything) LogException(_ context.Context, r *pb.LogExceptionRequest) (*pb.LogExceptionResponse, error) {
	e.log.Named("behaviour").Error(r.Message, "error", errors.New("logged, not raised"))
	return &pb.LogExceptionResponse{}, nil
}

func (*everything) Warn(_ context.Context, r *pb.WarnRequest) (*pb.WarnResponse, error) {
	_, err := fmt.Fprintf(os.Stderr, "warning: %s\n", r.Message)
	return &pb.WarnResponse{}, err
}

func (*everything) Say(_ context.Context, r *pb.SayRequest) (*pb.SayResponse, error) {
	_, err := fmt.Println(r.Text)
	return &pb.SayResponse{}, err
}

func (*everything) Pid(context.Context, *pb.PidRequest) (*pb.PidResponse, error) {
	return &pb.PidResponse{Result: int64(os.Getpid())}, nil
}
