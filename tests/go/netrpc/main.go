// A go-plugin plugin over net/rpc for the tests of Python hosts. Kinds: "greeter" and "kv" (../kinds), and "torture",
// whose methods take and answer other shapes, write to the output streams, fail, and call back through the broker.
// TORTURE_COOKIE, TORTURE_START_SECONDS and GREETING work as with ../greeter.
package main

import (
	"errors"
	"fmt"
	"net/rpc"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-plugin"

	"hybridload.dev/tests/kinds"
)

func main() {
	if text := os.Getenv("TORTURE_START_SECONDS"); text != "" {
		seconds, err := strconv.ParseFloat(text, 64)
		if err != nil {
			panic(err)
		}
		time.Sleep(time.Duration(seconds * float64(time.Second)))
	}
	greeting := "Hello from Go, over net/rpc!"
	if chosen, found := os.LookupEnv("GREETING"); found {
		greeting = chosen
	}
	key, value, found := strings.Cut(os.Getenv("TORTURE_COOKIE"), "=")
	if !found {
		key, value = "BASIC_PLUGIN", "hello"
	}
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: plugin.HandshakeConfig{ProtocolVersion: 1, MagicCookieKey: key, MagicCookieValue: value},
		Plugins: plugin.PluginSet{
			"greeter": &kinds.NetRPCGreeter{Greeting: greeting},
			"kv":      &kinds.NetRPCStore{},
			"torture": &torturePlugin{},
		},
	})
}

type torturePlugin struct{}

func (p *torturePlugin) Server(broker *plugin.MuxBroker) (any, error) {
	return &torture{broker: broker}, nil
}

func (p *torturePlugin) Client(*plugin.MuxBroker, *rpc.Client) (any, error) {
	return nil, errors.New("this plugin has no client half")
}

type torture struct {
	broker *plugin.MuxBroker
}

// WriteRequest asks for so many bytes on os.Stdout, or os.Stderr.
type WriteRequest struct {
	Stderr bool
	Size   int
}

// Person stands for the structs that plugins pass around.
type Person struct {
	Name    string
	Age     int
	Weight  float64
	Tags    []string
	Friends []Person
	Notes   map[string]string
}

func (t *torture) Echo(data []byte, answer *[]byte) error {
	*answer = data
	return nil
}

func (t *torture) Birthday(person Person, answer *Person) error {
	*answer = person
	answer.Age++
	return nil
}

func (t *torture) Write(request WriteRequest, answer *int) error {
	target := os.Stdout
	if request.Stderr {
		target = os.Stderr
	}
	written, err := target.WriteString(strings.Repeat("x", request.Size))
	*answer = written
	return err
}

func (t *torture) Sleep(seconds float64, answer *bool) error {
	time.Sleep(time.Duration(seconds * float64(time.Second)))
	*answer = true
	return nil
}

func (t *torture) Fail(message string, _ *bool) error {
	return errors.New(message)
}

func (t *torture) Exit(code int, _ *bool) error {
	os.Exit(code)
	return nil
}

func (t *torture) Pid(_ any, answer *int) error {
	*answer = os.Getpid()
	return nil
}

// CallBack calls Plugin.Greet on what the host accepts under the id.
func (t *torture) CallBack(id uint32, answer *string) error {
	connection, err := t.broker.Dial(id)
	if err != nil {
		return fmt.Errorf("dial %d: %w", id, err)
	}
	client := rpc.NewClient(connection)
	defer client.Close()
	return client.Call("Plugin.Greet", new(any), answer)
}

// Offer accepts a greeter under the id that it answers.
func (t *torture) Offer(greeting string, answer *uint32) error {
	*answer = t.broker.NextId()
	service, err := (&kinds.NetRPCGreeter{Greeting: greeting}).Server(t.broker)
	if err != nil {
		return err
	}
	go t.broker.AcceptAndServe(*answer, service)
	return nil
}
