package kinds

import (
	"fmt"
	"net/rpc"
	"sync"

	"github.com/hashicorp/go-plugin"
)

// NetRPCGreeter is the kind "greeter" over net/rpc, in the shape of go-plugin's first tutorial: the argument is an empty
// interface, the answer a string.
type NetRPCGreeter struct {
	Greeting string
}

func (p *NetRPCGreeter) Server(*plugin.MuxBroker) (any, error) {
	return &netrpcGreeter{greeting: p.Greeting}, nil
}

func (p *NetRPCGreeter) Client(_ *plugin.MuxBroker, client *rpc.Client) (any, error) {
	return netrpcGreeterClient{client}, nil
}

type netrpcGreeter struct {
	greeting string
}

func (g *netrpcGreeter) Greet(_ any, answer *string) error {
	*answer = g.greeting
	return nil
}

type netrpcGreeterClient struct {
	client *rpc.Client
}

func (c netrpcGreeterClient) Greet() (string, error) {
	var answer string
	err := c.client.Call("Plugin.Greet", new(any), &answer)
	return answer, err
}

// NetRPCStore is the kind "kv" over net/rpc: Put takes a map of interfaces, Get a plain string.
type NetRPCStore struct{}

func (p *NetRPCStore) Server(*plugin.MuxBroker) (any, error) {
	return &netrpcStore{values: map[string][]byte{}}, nil
}

func (p *NetRPCStore) Client(_ *plugin.MuxBroker, client *rpc.Client) (any, error) {
	return netrpcStoreClient{client}, nil
}

type netrpcStore struct {
	lock   sync.Mutex
	values map[string][]byte
}

func (s *netrpcStore) Put(arguments map[string]any, _ *any) error {
	s.lock.Lock()
	defer s.lock.Unlock()
	key, isString := arguments["key"].(string)
	value, isBytes := arguments["value"].([]byte)
	if !isString || !isBytes {
		return fmt.Errorf("key is %T and value is %T", arguments["key"], arguments["value"])
	}
	s.values[key] = value
	return nil
}

func (s *netrpcStore) Get(key string, answer *[]byte) error {
	s.lock.Lock()
	defer s.lock.Unlock()
	value, found := s.values[key]
	if !found {
		return fmt.Errorf("no value under %q", key)
	}
	*answer = value
	return nil
}

type netrpcStoreClient struct {
	client *rpc.Client
}

func (c netrpcStoreClient) Get(key string) ([]byte, error) {
	var answer []byte
	err := c.client.Call("Plugin.Get", key, &answer)
	return answer, err
}

func (c netrpcStoreClient) Put(key string, value []byte) error {
	var answer any
	return c.client.Call("Plugin.Put", map[string]any{"key": key, "value": value}, &answer)
}
