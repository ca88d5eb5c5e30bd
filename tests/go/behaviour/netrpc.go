package main

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"net/rpc"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc/status"

	pb "hybridload.dev/tests/protocol/behaviourpb"
)

// callsPlugin is the same plugin over net/rpc, as far as calls go. What has one parameter takes it as it is; what has
// several takes them in a map, or in a struct where the contract says so; an object that is called back is the id under
// which the broker reaches it.
type callsPlugin struct{}

func init() {
	gob.Register(map[string]string{}) // what travels in a map of arguments, and is neither basic nor a list of such
}

func (*callsPlugin) Server(broker *plugin.MuxBroker) (any, error) {
	return &calls{everything: newEverything(nil, logger()), broker: broker}, nil
}

func (*callsPlugin) Client(*plugin.MuxBroker, *rpc.Client) (any, error) {
	return nil, errors.New("this plugin has no client half")
}

type calls struct {
	everything *everything
	broker     *plugin.MuxBroker

	lock sync.Mutex
	kept *rpc.Client
}

// Values

type Line struct {
	Name  string
	Price float64
	Tags  []string
}

type Parcel struct {
	Number  int64
	Label   string
	Colour  string
	Lines   []Line
	ByName  map[string]Line
	Sent    time.Time
	Lasts   time.Duration
	Photo   []byte
	Fragile bool
	Inner   *Parcel
	Note    *string
}

func (*calls) EchoParcel(parcel Parcel, answer *Parcel) error {
	*answer = parcel
	return nil
}

func (*calls) EchoText(value string, answer *string) error {
	*answer = value
	return nil
}

func (*calls) EchoNumber(value int64, answer *int64) error {
	*answer = value
	return nil
}

func (*calls) EchoRatio(value float64, answer *float64) error {
	*answer = value
	return nil
}

func (*calls) EchoFlag(value bool, answer *bool) error {
	*answer = value
	return nil
}

func (*calls) EchoData(value []byte, answer *[]byte) error {
	*answer = value
	return nil
}

func (*calls) EchoWords(value []string, answer *[]string) error {
	*answer = value
	return nil
}

func (*calls) EchoScores(value map[string]float64, answer *map[string]float64) error {
	*answer = value
	return nil
}

func (*calls) EchoColour(value string, answer *string) error {
	*answer = value
	return nil
}

func (*calls) EchoMoment(value time.Time, answer *time.Time) error {
	*answer = value
	return nil
}

func (*calls) EchoSpan(value time.Duration, answer *time.Duration) error {
	*answer = value
	return nil
}

// EchoMaybe takes an interface: outside of a struct, gob has no other nil.
func (*calls) EchoMaybe(value any, answer *any) error {
	*answer = value
	return nil
}

type DescribeArgs struct {
	Name  string
	Count int
	Loud  bool
	Title *string
}

func (*calls) Describe(arguments DescribeArgs, answer *string) error {
	title, name := "-", arguments.Name
	if arguments.Title != nil {
		title = *arguments.Title
	}
	if arguments.Loud {
		name = strings.ToUpper(name)
	}
	*answer = fmt.Sprintf("%s %s %d", title, name, arguments.Count)
	return nil
}

func (*calls) Grow(words []string, answer *int) error {
	*answer = len(append(words, "more"))
	return nil
}

func (*calls) Nothing(any, *any) error { return nil }

// Callbacks

func (c *calls) dial(object any) (*rpc.Client, error) {
	connection, err := c.broker.Dial(object.(uint32))
	if err != nil {
		return nil, err
	}
	return rpc.NewClient(connection), nil
}

func (c *calls) Tell(arguments map[string]any, answer *[]string) error {
	listener, err := c.dial(arguments["listener"])
	if err != nil {
		return err
	}
	defer listener.Close()
	for _, text := range arguments["texts"].([]string) {
		var heard string
		if err := listener.Call("Plugin.Hear", text, &heard); err != nil {
			return err
		}
		*answer = append(*answer, heard)
	}
	return nil
}

func (c *calls) Keep(id uint32, _ *any) error {
	listener, err := c.dial(id)
	if err != nil {
		return err
	}
	c.lock.Lock()
	defer c.lock.Unlock()
	c.kept = listener
	return nil
}

func (c *calls) TellKept(text string, answer *string) error {
	c.lock.Lock()
	kept := c.kept
	c.lock.Unlock()
	if kept == nil {
		return errors.New("nobody to tell")
	}
	return kept.Call("Plugin.Hear", text, answer)
}

func (c *calls) Counter(start int64, answer *uint32) error {
	*answer = c.broker.NextId()
	go c.broker.AcceptAndServe(*answer, &callsCounter{counter{value: start}})
	return nil
}

type callsCounter struct{ counter counter }

func (c *callsCounter) Add(by int64, answer *int64) error {
	response, err := c.counter.Add(context.Background(), &pb.AddRequest{By: by})
	*answer = response.GetResult()
	return plain(err)
}

func (c *calls) Bounce(arguments map[string]any, answer *int) error {
	depth := arguments["depth"].(int)
	if depth == 0 {
		return nil
	}
	peer, err := c.dial(arguments["peer"])
	if err != nil {
		return err
	}
	defer peer.Close()
	var rest int
	err = peer.Call("Plugin.Catch", depth-1, &rest)
	*answer = 1 + rest
	return err
}

// Asynchronous methods: in Go there is no other kind

func (*calls) SlowText(value string, answer *string) error {
	*answer = value
	return nil
}

func (c *calls) Forever(key string, _ *any) error {
	_, err := c.everything.Forever(context.Background(), &pb.ForeverRequest{Key: key})
	return plain(err)
}

func (*calls) SlowFail(how string, _ *any) error { return plain(failure(how)) }

// Errors and concurrency

func (*calls) Fail(how string, _ *any) error { return plain(failure(how)) }

func (c *calls) Hold(key string, _ *any) error {
	_, err := c.everything.Hold(context.Background(), &pb.HoldRequest{Key: key})
	return plain(err)
}

func (c *calls) Release(key string, _ *any) error {
	c.everything.set(key + " release")
	return nil
}

func (c *calls) Ended(key string, answer *bool) error {
	response, err := c.everything.Ended(context.Background(), &pb.EndedRequest{Key: key})
	*answer = response.GetResult()
	return plain(err)
}

func (c *calls) Meet(arguments map[string]any, answer *int64) error {
	response, err := c.everything.Meet(context.Background(), &pb.MeetRequest{
		Key: arguments["key"].(string), Parties: int64(arguments["parties"].(int)),
	})
	*answer = response.GetResult()
	return plain(err)
}

// Output

func (c *calls) Log(arguments map[string]any, _ *any) error {
	_, err := c.everything.Log(context.Background(), &pb.LogRequest{
		Logger: arguments["logger"].(string), Level: arguments["level"].(string),
		Message: arguments["message"].(string), Fields: arguments["fields"].(map[string]string),
	})
	return plain(err)
}

func (c *calls) LogException(message string, _ *any) error {
	_, err := c.everything.LogException(context.Background(), &pb.LogExceptionRequest{Message: message})
	return plain(err)
}

func (c *calls) Warn(message string, _ *any) error {
	_, err := c.everything.Warn(context.Background(), &pb.WarnRequest{Message: message})
	return plain(err)
}

func (c *calls) Say(text string, _ *any) error {
	_, err := c.everything.Say(context.Background(), &pb.SayRequest{Text: text})
	return plain(err)
}

func (*calls) Pid(_ any, answer *int) error {
	*answer = os.Getpid()
	return nil
}

// plain is an error's text without gRPC's part in it.
func plain(err error) error {
	if err == nil {
		return nil
	}
	return errors.New(status.Convert(err).Message())
}
