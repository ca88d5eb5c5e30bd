package main

import (
	"context"
	"fmt"
	"strconv"
	"sync"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"hybridload.dev/tests/kinds"
	greeterpb "hybridload.dev/tests/protocol/greeterpb"
	torturepb "hybridload.dev/tests/protocol/torturepb"
)

// brokered is a connection, and the broker that opens more of them.
type brokered struct {
	*grpc.ClientConn
	broker *plugin.GRPCBroker
}

// brokerCall makes a call for which further connections are brokered:
//
//	callback:TIMES    serve a greeter and have the plugin call it so many times
//	offer:COUNT       have the plugin serve so many greeters and call each, all at once
//	dial:ID           dial an id and call the greeter there
func (c *caller) brokerCall(name, argument string) (any, error) {
	number, err := strconv.ParseUint(argument, 10, 32)
	if err != nil {
		return nil, err
	}
	connection, err := dispense[*brokered](c, "connection")
	if err != nil {
		return nil, err
	}
	torture := torturepb.NewTortureClient(connection)
	switch name {
	case "callback":
		return connection.callback(torture, int32(number))
	case "offer":
		return connection.offer(torture, int32(number))
	}
	return connection.greetAt(uint32(number))
}

func (b *brokered) callback(torture torturepb.TortureClient, times int32) (any, error) {
	id := b.broker.NextId()
	var server *grpc.Server
	serving := make(chan struct{})
	go b.broker.AcceptAndServe(id, func(options []grpc.ServerOption) *grpc.Server {
		server = grpc.NewServer(options...)
		kinds.RegisterGreeter(server, fmt.Sprintf("Hello from the host's service %d!", id))
		close(serving)
		return server
	})
	response, err := torture.CallBack(context.Background(), &torturepb.CallBackRequest{ServiceId: id, Times: times})
	<-serving
	server.Stop()
	return response.GetMessages(), err
}

func (b *brokered) offer(torture torturepb.TortureClient, count int32) (any, error) {
	response, err := torture.Offer(context.Background(), &torturepb.OfferRequest{Count: count})
	if err != nil {
		return nil, err
	}
	greetings := make([]string, len(response.ServiceIds))
	errs := make([]error, len(response.ServiceIds))
	var all sync.WaitGroup
	for index, id := range response.ServiceIds {
		all.Add(1)
		go func() {
			defer all.Done()
			greetings[index], errs[index] = b.greetAt(id)
		}()
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return greetings, err
		}
	}
	return greetings, nil
}

func (b *brokered) greetAt(id uint32) (string, error) {
	connection, err := b.broker.Dial(id)
	if err != nil {
		return "", err
	}
	defer connection.Close()
	response, err := greeterpb.NewGreeterServiceClient(connection).Greet(context.Background(), &greeterpb.Empty{})
	return response.GetMessage(), err
}
