package main

import (
	"context"
	"errors"
	"fmt"
	"net/rpc"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc/status"

	"hybridload.dev/tests/kinds"
	torturepb "hybridload.dev/tests/protocol/torturepb"
)

// netrpcPlugins is the same plugin set over net/rpc, with TORTURE_PROTOCOL=netrpc. The calls of "torture" do what those
// over gRPC do; each takes a struct of the request's fields, and answers the response's only field or a struct.
func netrpcPlugins(greeting string) plugin.PluginSet {
	return plugin.PluginSet{
		"greeter": &kinds.NetRPCGreeter{Greeting: greeting},
		"kv":      &kinds.NetRPCStore{},
		"torture": &netrpcTorturePlugin{},
	}
}

type netrpcTorturePlugin struct{}

func (p *netrpcTorturePlugin) Server(broker *plugin.MuxBroker) (any, error) {
	return &netrpcTorture{calls: newTorture(), broker: broker}, nil
}

func (p *netrpcTorturePlugin) Client(*plugin.MuxBroker, *rpc.Client) (any, error) {
	return nil, errors.New("this plugin has no client half")
}

type netrpcTorture struct {
	calls  *torture
	broker *plugin.MuxBroker
}

type (
	EchoArgs  struct{ Data []byte }
	WriteArgs struct {
		Target, Size, LineLength int
		Text                     []byte
	}
	LogArgs struct {
		Format, Lines int
		Level         string
		Padding       int
	}
	SleepArgs struct{ Seconds float64 }
	ExitArgs  struct {
		Code        int
		AfterAnswer bool
		Signal      int
	}
	PanicArgs struct{ Message string }
	FailArgs  struct {
		Code    int
		Message string
		Details []byte
	}
	SpawnArgs struct {
		Seconds   float64
		KeepPipes bool
	}
	CallBackArgs struct{ ServiceId, Times int }
	OfferArgs    struct{ Count int }

	ProcessInfo struct {
		Pid, Parent int
		Arguments   []string
		Environment map[string]string
		Folder      string
		Interrupts  int
	}
)

func (t *netrpcTorture) Echo(args EchoArgs, answer *[]byte) error {
	*answer = args.Data
	return nil
}

func (t *netrpcTorture) Write(args WriteArgs, answer *int) error {
	response, err := t.calls.Write(context.Background(), &torturepb.WriteRequest{
		Target: torturepb.WriteRequest_Target(args.Target), Size: int64(args.Size),
		LineLength: int32(args.LineLength), Text: args.Text,
	})
	*answer = int(response.GetWritten())
	return plain(err)
}

func (t *netrpcTorture) Log(args LogArgs, _ *struct{}) error {
	_, err := t.calls.Log(context.Background(), &torturepb.LogRequest{
		Format: torturepb.LogRequest_Format(args.Format), Lines: int64(args.Lines),
		Level: args.Level, Padding: int64(args.Padding),
	})
	return plain(err)
}

func (t *netrpcTorture) Sleep(args SleepArgs, _ *struct{}) error {
	_, err := t.calls.Sleep(context.Background(), &torturepb.SleepRequest{Seconds: args.Seconds})
	return plain(err)
}

func (t *netrpcTorture) Hang(struct{}, *struct{}) error { select {} }

func (t *netrpcTorture) Freeze(struct{}, *struct{}) error {
	_, err := t.calls.Freeze(context.Background(), &torturepb.Empty{})
	return plain(err)
}

func (t *netrpcTorture) Exit(args ExitArgs, _ *struct{}) error {
	_, err := t.calls.Exit(context.Background(), &torturepb.ExitRequest{
		Code: int32(args.Code), AfterAnswer: args.AfterAnswer, Signal: int32(args.Signal),
	})
	return plain(err)
}

func (t *netrpcTorture) Panic(args PanicArgs, _ *struct{}) error {
	_, err := t.calls.Panic(context.Background(), &torturepb.PanicRequest{Message: args.Message})
	return plain(err)
}

func (t *netrpcTorture) Fail(args FailArgs, _ *struct{}) error { return errors.New(args.Message) }

func (t *netrpcTorture) Process(_ struct{}, answer *ProcessInfo) error {
	info, err := t.calls.Process(context.Background(), &torturepb.Empty{})
	*answer = ProcessInfo{
		Pid: int(info.GetPid()), Parent: int(info.GetParent()), Arguments: info.GetArguments(),
		Environment: info.GetEnvironment(), Folder: info.GetFolder(), Interrupts: int(info.GetInterrupts()),
	}
	return plain(err)
}

func (t *netrpcTorture) Spawn(args SpawnArgs, answer *int) error {
	response, err := t.calls.Spawn(context.Background(), &torturepb.SpawnRequest{
		Seconds: args.Seconds, KeepPipes: args.KeepPipes,
	})
	*answer = int(response.GetPid())
	return plain(err)
}

func (t *netrpcTorture) CallBack(args CallBackArgs, answer *[]string) error {
	connection, err := t.broker.Dial(uint32(args.ServiceId))
	if err != nil {
		return err
	}
	client := rpc.NewClient(connection)
	defer client.Close()
	for range args.Times {
		var greeting string
		if err := client.Call("Plugin.Greet", new(any), &greeting); err != nil {
			return err
		}
		*answer = append(*answer, greeting)
	}
	return nil
}

func (t *netrpcTorture) Offer(args OfferArgs, answer *[]int) error {
	for range args.Count {
		id := t.broker.NextId()
		service, err := (&kinds.NetRPCGreeter{Greeting: fmt.Sprintf("Hello from service %d!", id)}).Server(t.broker)
		if err != nil {
			return err
		}
		go t.broker.AcceptAndServe(id, service)
		*answer = append(*answer, int(id))
	}
	return nil
}

// plain is an error's text without gRPC's part in it.
func plain(err error) error {
	if err == nil {
		return nil
	}
	return errors.New(status.Convert(err).Message())
}
