// A go-plugin host for the benchmarks: it starts a plugin, and then measures what it is told to on its standard input,
// one JSON object a line, and answers each with one line. Times are seconds.
//
//	{"do":"call","method":"greet","size":0,"calls":300,"threads":1}  ->  {"p50":…, "rate":…}
//	{"do":"stream","count":10000}                                     ->  {"rate":…}
//	{"do":"start"}                                                    ->  {"seconds":…}
//	{"do":"pid"}                                                      ->  {"pid":…}
//
// `greet` is the call of go-plugin's tutorials; `echo` sends so many bytes there and back.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"hybridload.dev/tests/kinds"
	torturepb "hybridload.dev/tests/protocol/torturepb"
)

type request struct {
	Do      string `json:"do"`
	Method  string `json:"method"`
	Size    int    `json:"size"`
	Calls   int    `json:"calls"`
	Threads int    `json:"threads"`
	Count   int64  `json:"count"`
}

type host struct {
	mtls      bool
	protocols []plugin.Protocol
	command   []string
}

func main() {
	h := host{}
	protocol := flag.String("protocol", "grpc", "grpc or netrpc")
	flag.BoolVar(&h.mtls, "mtls", false, "AutoMTLS")
	flag.Parse()
	h.protocols = []plugin.Protocol{plugin.Protocol(*protocol)}
	h.command = flag.Args()
	running, err := h.open()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer running.client.Kill()
	answers := json.NewEncoder(os.Stdout)
	for input := bufio.NewScanner(os.Stdin); input.Scan(); {
		var asked request
		err := json.Unmarshal(input.Bytes(), &asked)
		var answer map[string]any
		if err == nil {
			answer, err = h.measure(running, &asked)
		}
		if err != nil {
			answer = map[string]any{"error": err.Error()}
		}
		_ = answers.Encode(answer)
	}
}

func (h *host) measure(running *running, asked *request) (map[string]any, error) {
	switch asked.Do {
	case "call":
		call, err := running.method(asked)
		if err != nil {
			return nil, err
		}
		return bench(call, asked.Calls, asked.Threads)
	case "stream":
		return running.stream(asked.Count)
	case "start":
		return h.start()
	case "pid":
		pid, err := strconv.Atoi(running.client.ID())
		return map[string]any{"pid": pid}, err
	}
	return nil, fmt.Errorf("unknown request %q", asked.Do)
}

// connectionKind hands out the bare gRPC connection.
type connectionKind struct {
	plugin.NetRPCUnsupportedPlugin
}

func (k *connectionKind) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error { return nil }

func (k *connectionKind) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return c, nil
}

type running struct {
	client  *plugin.Client
	greeter kinds.Greeter
	torture torturepb.TortureClient
}

func (h *host) open() (*running, error) {
	netrpc := h.protocols[0] == plugin.ProtocolNetRPC
	set := plugin.PluginSet{"greeter": &kinds.GRPCGreeter{}, "connection": &connectionKind{}}
	if netrpc {
		set = plugin.PluginSet{"greeter": &kinds.NetRPCGreeter{}}
	}
	client := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig: plugin.HandshakeConfig{
			ProtocolVersion: 1, MagicCookieKey: "BASIC_PLUGIN", MagicCookieValue: "hello",
		},
		Plugins:          set,
		AllowedProtocols: h.protocols,
		AutoMTLS:         h.mtls,
		Cmd:              exec.Command(h.command[0], h.command[1:]...),
		Logger:           hclog.NewNullLogger(),
	})
	made, err := dispense(client, netrpc)
	if err != nil {
		client.Kill()
	}
	return made, err
}

func dispense(client *plugin.Client, netrpc bool) (*running, error) {
	connection, err := client.Client()
	if err != nil {
		return nil, err
	}
	greeter, err := connection.Dispense("greeter")
	if err != nil {
		return nil, err
	}
	made := &running{client: client, greeter: greeter.(kinds.Greeter)}
	if !netrpc {
		bare, err := connection.Dispense("connection")
		if err != nil {
			return nil, err
		}
		made.torture = torturepb.NewTortureClient(bare.(*grpc.ClientConn))
	}
	return made, nil
}

func (r *running) method(asked *request) (func() error, error) {
	switch {
	case asked.Method == "greet":
		return func() error { _, err := r.greeter.Greet(); return err }, nil
	case asked.Method == "echo" && r.torture != nil:
		data := []byte(strings.Repeat("x", asked.Size))
		return func() error {
			_, err := r.torture.Echo(context.Background(), &torturepb.Data{Data: data})
			return err
		}, nil
	}
	return nil, fmt.Errorf("there is no %q here", asked.Method)
}

func (r *running) stream(count int64) (map[string]any, error) {
	if r.torture == nil {
		return nil, errors.New("there are no streams here")
	}
	began := time.Now()
	items, err := r.torture.Count(context.Background(), &torturepb.CountRequest{Count: count})
	if err != nil {
		return nil, err
	}
	got := int64(0)
	for {
		if _, err := items.Recv(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		got++
	}
	if got != count {
		return nil, fmt.Errorf("%d of %d items came", got, count)
	}
	return map[string]any{"rate": float64(count) / time.Since(began).Seconds()}, nil
}

// start takes the time from nothing to the first answer.
func (h *host) start() (map[string]any, error) {
	began := time.Now()
	another, err := h.open()
	if err != nil {
		return nil, err
	}
	defer another.client.Kill()
	if _, err := another.greeter.Greet(); err != nil {
		return nil, err
	}
	return map[string]any{"seconds": time.Since(began).Seconds()}, nil
}

func bench(call func() error, calls, threads int) (map[string]any, error) {
	times := make([][]float64, threads)
	failures := make([]error, threads)
	run := func(count int, note bool) float64 {
		var workers sync.WaitGroup
		began := time.Now()
		for worker := range threads {
			workers.Add(1)
			go func() {
				defer workers.Done()
				for range max(1, count/threads) {
					start := time.Now()
					if err := call(); err != nil {
						failures[worker] = err
						return
					}
					if note {
						times[worker] = append(times[worker], time.Since(start).Seconds())
					}
				}
			}()
		}
		workers.Wait()
		return time.Since(began).Seconds()
	}
	run(calls/5, false)
	elapsed := run(calls, true)
	if err := errors.Join(failures...); err != nil {
		return nil, err
	}
	all := []float64{}
	for _, part := range times {
		all = append(all, part...)
	}
	sort.Float64s(all)
	return map[string]any{"p50": all[len(all)/2], "rate": float64(len(all)) / elapsed}, nil
}
