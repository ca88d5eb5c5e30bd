// Programs that are no good as plugins, one for each argument: what a host has to survive before, at and right after the
// handshake line. Plugins that start well and go wrong later are ../greeter's business.
//
// Unless a mode says otherwise, the process stays until it is killed.
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
)

const goodAddress = "127.0.0.1:1" // the tcpmux port: nobody listens there

type mode struct {
	usage string
	run   func(arguments []string)
}

var modes map[string]mode

func init() {
	modes = map[string]mode{
		"cookie":         {"a real plugin that expects another cookie: its text for humans, exit 1", cookie},
		"exit":           {"CODE: exit with words on stderr and no line", exit},
		"silent":         {"never print anything", stay},
		"line":           {"TEXT: print TEXT and a newline", func(a []string) { say(a[0] + "\n"); stay(nil) }},
		"part":           {"TEXT: print TEXT without a newline", func(a []string) { say(a[0]); stay(nil) }},
		"part-exit":      {"TEXT: print TEXT without a newline and exit 0", func(a []string) { say(a[0]) }},
		"line-exit":      {"CODE: print a good line and exit", func(a []string) { say(line("tcp", goodAddress)); os.Exit(number(a[0])) }},
		"binary":         {"bytes that are no text in any encoding, then a newline", func([]string) { say("\xff\xfe\x00\x80|\xc3\x28|\x1b[2J\n"); stay(nil) }},
		"flood-lines":    {"BYTES: so much stdout, in lines, and never a handshake line", func(a []string) { flood(os.Stdout, number(a[0]), 80); stay(nil) }},
		"flood":          {"BYTES: so much stdout without any newline", func(a []string) { flood(os.Stdout, number(a[0]), 0); stay(nil) }},
		"flood-stderr":   {"BYTES: so much stderr, and never a handshake line", func(a []string) { flood(os.Stderr, number(a[0]), 80); stay(nil) }},
		"close-stdout":   {"close stdout and hang", func([]string) { _ = os.Stdout.Close(); stay(nil) }},
		"core-version":   {"speak core protocol 99", func([]string) { say("99|1|tcp|" + goodAddress + "|grpc\n"); stay(nil) }},
		"app-version":    {"a real plugin of application version 99 only", appVersion},
		"protocol":       {"speak a protocol called carrier-pigeon", func([]string) { say("1|1|tcp|" + goodAddress + "|carrier-pigeon\n"); stay(nil) }},
		"network":        {"be on a network called token-ring", func([]string) { say("1|1|token-ring|" + goodAddress + "|grpc\n"); stay(nil) }},
		"nobody-tcp":     {"a tcp address where nobody listens", func([]string) { say(line("tcp", goodAddress)); stay(nil) }},
		"nobody-unix":    {"a unix socket that does not exist", func([]string) { say(line("unix", socketPath())); stay(nil) }},
		"mute":           {"accept connections and never answer", func([]string) { accept(func(net.Conn) {}) }},
		"hang-up":        {"accept connections and close them", func([]string) { accept(func(c net.Conn) { _ = c.Close() }) }},
		"babble":         {"accept connections and answer with what is not HTTP/2", func([]string) { accept(func(c net.Conn) { flood(c, 1<<20, 80) }) }},
		"no-certificate": {"be asked for TLS and leave the certificate out of the line", func([]string) { accept(func(net.Conn) {}) }},
		"grandchild":     {"exit without a line while a child holds stdout and stderr open", grandchild},
	}
}

func main() {
	if len(os.Args) < 2 || modes[os.Args[1]].run == nil {
		usage()
		os.Exit(2)
	}
	modes[os.Args[1]].run(os.Args[2:])
}

func usage() {
	var lines []string
	for name, mode := range modes {
		lines = append(lines, fmt.Sprintf("  %-15s %s", name, mode.usage))
	}
	sort.Strings(lines)
	fmt.Fprintf(os.Stderr, "badplugins MODE [ARGUMENT]\n%s\n", strings.Join(lines, "\n"))
}

func cookie([]string) {
	serve(plugin.HandshakeConfig{MagicCookieKey: "ANOTHER_PLUGIN", MagicCookieValue: "goodbye"}, 1)
}

func appVersion([]string) {
	serve(plugin.HandshakeConfig{MagicCookieKey: "BASIC_PLUGIN", MagicCookieValue: "hello"}, 99)
}

func serve(handshake plugin.HandshakeConfig, version int) {
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: handshake,
		// A kind that no host asks for: the host is to give up before that.
		VersionedPlugins: map[int]plugin.PluginSet{version: {"nothing": nothing{}}},
		GRPCServer:       plugin.DefaultGRPCServer,
	})
}

func exit(arguments []string) {
	fmt.Fprintln(os.Stderr, "cannot find my settings")
	fmt.Fprintln(os.Stderr, "giving up")
	os.Exit(number(arguments[0]))
}

func grandchild([]string) {
	child := exec.Command("sleep", "600")
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	if err := child.Start(); err != nil {
		panic(err)
	}
	fmt.Fprintln(os.Stderr, "my child outlives me")
	os.Exit(1)
}

func accept(handle func(net.Conn)) {
	listener, err := net.Listen("unix", socketPath())
	if err != nil {
		panic(err)
	}
	say(line("unix", listener.Addr().String()))
	for {
		connection, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		go handle(connection)
	}
}

// socketPath is in a folder whose name no check for leftovers minds: nobody cleans up after a plugin that is killed.
func socketPath() string {
	folder, err := os.MkdirTemp("", "bad-")
	if err != nil {
		panic(err)
	}
	return filepath.Join(folder, "socket")
}

func line(network, address string) string {
	return fmt.Sprintf("1|1|%s|%s|grpc|\n", network, address)
}

func say(text string) {
	if _, err := os.Stdout.WriteString(text); err != nil {
		panic(err)
	}
}

func flood(target io.Writer, size, lineLength int) {
	buffered := bufio.NewWriterSize(target, 1<<16)
	for position := 1; position <= size; position++ {
		letter := byte('x')
		if lineLength > 0 && position%lineLength == 0 {
			letter = '\n'
		}
		if err := buffered.WriteByte(letter); err != nil {
			return
		}
	}
	_ = buffered.Flush()
}

func stay([]string) {
	for { // a bare select{} would be ended by Go's runtime as a deadlock
		time.Sleep(time.Hour)
	}
}

func number(text string) int {
	value, err := strconv.Atoi(text)
	if err != nil {
		panic(err)
	}
	return value
}

type nothing struct{ plugin.NetRPCUnsupportedPlugin }

func (nothing) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error { return nil }

func (nothing) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, nil
}
