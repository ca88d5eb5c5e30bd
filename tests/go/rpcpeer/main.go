// Rpcpeer is the other end of the net/rpc tests, over its standard input and output.
//
//	rpcpeer serve  serves the methods below
//	rpcpeer call   calls the methods that the test serves, and prints what came of each to standard error, as JSON
package main

import (
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"net/rpc"
	"os"
	"sync"
)

type Point struct{ X, Y int }

type Person struct {
	Name string
	Age  uint8
	Home *Point
	Tags map[string]string
}

// Plugin has the shapes of arguments and replies that go-plugin's tutorials and Mattermost's plugins use.
type Plugin struct{ gate chan struct{} }

func (*Plugin) Greet(_ any, reply *string) error { *reply = "Hello!"; return nil }

func (*Plugin) Put(args map[string]any, reply *any) error {
	*reply = fmt.Sprintf("%v=%s", args["key"], args["value"])
	return nil
}

func (*Plugin) Get(key string, reply *[]byte) error { *reply = []byte("value of " + key); return nil }

func (*Plugin) Move(person Person, reply *Person) error {
	*reply = person
	reply.Home = &Point{person.Home.Y, person.Home.X}
	return nil
}

func (*Plugin) Fail(text string, _ *string) error { return errors.New(text) }

func (*Plugin) Any(_ any, reply *any) error { *reply = Point{3, 4}; return nil }

func (*Plugin) Nothing(_ bool, _ *struct{}) error { return nil }

// Wait answers when Open is called.
func (p *Plugin) Wait(text string, reply *string) error { <-p.gate; *reply = text; return nil }

func (p *Plugin) Open(_ bool, _ *bool) error { close(p.gate); return nil }

type stdio struct{}

func (stdio) Read(p []byte) (int, error)  { return os.Stdin.Read(p) }
func (stdio) Write(p []byte) (int, error) { return os.Stdout.Write(p) }
func (stdio) Close() error                { return os.Stdout.Close() }

func main() {
	gob.Register(Point{})
	gob.Register(map[string]any{})
	switch {
	case len(os.Args) == 2 && os.Args[1] == "serve":
		server := rpc.NewServer()
		if err := server.RegisterName("Plugin", &Plugin{make(chan struct{})}); err != nil {
			panic(err)
		}
		server.ServeConn(stdio{})
	case len(os.Args) == 2 && os.Args[1] == "call":
		call(rpc.NewClient(stdio{}))
	default:
		fmt.Fprintln(os.Stderr, "usage: rpcpeer serve|call")
		os.Exit(2)
	}
}

func call(client *rpc.Client) {
	results := map[string]any{}
	ask := func(method string, args, reply any) {
		if err := client.Call(method, args, reply); err != nil {
			results[method] = "error: " + err.Error()
			return
		}
		results[method] = reply
	}
	text := func() *string { return new(string) }
	ask("Plugin.Greet", new(any), text())
	ask("Plugin.Put", map[string]any{"key": "k", "value": []byte("v"), "more": map[string]any{"n": 1}}, text())
	ask("Plugin.Move", Person{"Ann", 40, &Point{1, 2}, nil}, new(Person))
	ask("Plugin.Fail", true, text())
	ask("Plugin.Unsendable", "x", text())
	ask("Plugin.Missing", true, text())
	ask("Missing.Method", true, text())
	ask("nodot", true, text())
	ask("Plugin.Length", 5, new(int))

	var waiting sync.WaitGroup
	sums := make([]int, 50)
	for n := range sums {
		waiting.Add(1)
		go func() {
			defer waiting.Done()
			if err := client.Call("Plugin.Length", fmt.Sprintf("%0*d", n, 0), &sums[n]); err != nil {
				panic(err)
			}
		}()
	}
	waiting.Wait()
	results["lengths"] = sums
	if err := json.NewEncoder(os.Stderr).Encode(results); err != nil {
		panic(err)
	}
}
