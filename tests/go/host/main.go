// A go-plugin host for the tests of plugins that Python serves: it starts any command as a plugin, makes the calls that it
// is told to make, and reports as JSON, one object a line on stdout, what a host sees:
//
//	{"event":"started", "pid":…, "protocol":…, "version":…, "reattach":{…}}
//	{"event":"answer", "call":…, "value":… or "error":…, "seconds":…}        one for each -call
//	{"event":"bench", "calls":…, "threads":…, "seconds":…, "p50":…, …}       with -bench; seconds
//	{"event":"waiting"}                                                      with -wait
//	{"event":"stopped", "exited":…, "seconds":…, "sync_stdout":{…}, "sync_stderr":{…}, "stderr":{…}, "log":[…]}
//	{"event":"failed", "error":…, …}                                         in place of started; exit code 1
//
// ../README.md lists the flags.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
)

type options struct {
	cookie, protocols, versions, sum, group, socketDir, reattach, wait string
	mtls, multiplex, skipEnvironment, noKill                           bool
	startTimeout                                                       time.Duration
	logBuffer, bench, threads                                          int
	calls, environment                                                 list
	command                                                            []string
}

type list []string

func (l *list) String() string         { return strings.Join(*l, ", ") }
func (l *list) Set(value string) error { *l = append(*l, value); return nil }

func main() {
	o := options{}
	flag.StringVar(&o.cookie, "cookie", "BASIC_PLUGIN=hello", "the magic cookie, KEY=VALUE")
	flag.StringVar(&o.protocols, "protocols", "grpc,netrpc", "allowed protocols")
	flag.StringVar(&o.versions, "versions", "1", "application versions on offer, such as 2,5")
	flag.BoolVar(&o.mtls, "mtls", false, "AutoMTLS")
	flag.BoolVar(&o.multiplex, "multiplex", false, "GRPCBrokerMultiplex")
	flag.BoolVar(&o.skipEnvironment, "skip-host-env", false, "SkipHostEnv: the plugin gets -env alone")
	flag.Var(&o.environment, "env", "NAME=VALUE for the plugin; may be repeated")
	flag.StringVar(&o.sum, "sha256", "", "SecureConfig: the hexadecimal SHA-256 of the command's file")
	flag.StringVar(&o.group, "group", "", "UnixSocketConfig.Group")
	flag.StringVar(&o.socketDir, "socket-dir", "", "UnixSocketConfig.TempDir")
	flag.DurationVar(&o.startTimeout, "start-timeout", time.Minute, "StartTimeout")
	flag.IntVar(&o.logBuffer, "log-buffer", 0, "PluginLogBufferSize")
	flag.StringVar(&o.reattach, "reattach", "", "reattach to this, JSON as in the started event, in place of a command")
	flag.Var(&o.calls, "call", "a call to make; may be repeated; see calls.go for what can be said")
	flag.IntVar(&o.bench, "bench", 0, "make the first -call so many times and report the times")
	flag.IntVar(&o.threads, "threads", 1, "goroutines that share the -bench calls")
	flag.StringVar(&o.wait, "wait", "", "after the calls: `stdin` waits for its end, `exit` for the plugin's, `ever` to be killed")
	flag.BoolVar(&o.noKill, "no-kill", false, "leave without stopping the plugin")
	flag.Parse()
	o.command = flag.Args()
	if err := run(&o); err != nil {
		os.Exit(1)
	}
}

func run(o *options) error {
	syncStdout, syncStderr, stderr, log := &recording{}, &recording{}, &recording{}, &recording{}
	config, err := clientConfig(o)
	if err != nil {
		return failed(err, log)
	}
	config.SyncStdout, config.SyncStderr, config.Stderr = syncStdout, syncStderr, stderr
	config.Logger = hclog.New(&hclog.LoggerOptions{
		Level: hclog.Trace, Output: io.MultiWriter(os.Stderr, log), JSONFormat: true,
	})
	// A plugin in the same process group is told of Ctrl-C as well; what becomes of it is the host's decision.
	signal.Ignore(os.Interrupt)

	client := plugin.NewClient(config)
	connection, err := client.Client()
	if err != nil {
		client.Kill()
		return failed(err, log)
	}
	report("started", map[string]any{
		"pid": client.ID(), "protocol": client.Protocol(), "version": client.NegotiatedVersion(),
		"reattach": reattachJSON(client.ReattachConfig()),
	})
	caller := &caller{connection: connection, dispensed: map[string]any{}}
	for _, call := range o.calls {
		began := time.Now()
		value, err := caller.call(call)
		answer := map[string]any{"call": call, "value": value, "seconds": time.Since(began).Seconds()}
		if err != nil {
			answer["error"] = err.Error()
		}
		report("answer", answer)
	}
	if o.bench > 0 {
		if err := caller.bench(o); err != nil {
			client.Kill()
			return failed(err, log)
		}
	}
	waitFor(o.wait, client)
	began := time.Now()
	if !o.noKill {
		client.Kill()
	}
	report("stopped", map[string]any{
		"exited": client.Exited(), "seconds": time.Since(began).Seconds(),
		"sync_stdout": syncStdout.summary(), "sync_stderr": syncStderr.summary(), "stderr": stderr.summary(),
		"log": log.records(),
	})
	return nil
}

func clientConfig(o *options) (*plugin.ClientConfig, error) {
	key, value, _ := strings.Cut(o.cookie, "=")
	config := &plugin.ClientConfig{
		HandshakeConfig:     plugin.HandshakeConfig{MagicCookieKey: key, MagicCookieValue: value},
		VersionedPlugins:    map[int]plugin.PluginSet{},
		AutoMTLS:            o.mtls,
		GRPCBrokerMultiplex: o.multiplex,
		SkipHostEnv:         o.skipEnvironment,
		StartTimeout:        o.startTimeout,
		PluginLogBufferSize: o.logBuffer,
	}
	for _, text := range strings.Split(o.versions, ",") {
		version, err := strconv.Atoi(text)
		if err != nil {
			return nil, fmt.Errorf("-versions: %w", err)
		}
		config.VersionedPlugins[version] = pluginSet()
	}
	for _, protocol := range strings.Split(o.protocols, ",") {
		config.AllowedProtocols = append(config.AllowedProtocols, plugin.Protocol(protocol))
	}
	if o.group != "" || o.socketDir != "" {
		config.UnixSocketConfig = &plugin.UnixSocketConfig{Group: o.group, TempDir: o.socketDir}
	}
	if o.sum != "" {
		sum, err := hex.DecodeString(o.sum)
		if err != nil {
			return nil, fmt.Errorf("-sha256: %w", err)
		}
		config.SecureConfig = &plugin.SecureConfig{Checksum: sum, Hash: sha256.New()}
	}
	if o.reattach != "" {
		reattach, err := parseReattach(o.reattach)
		config.Reattach = reattach
		// A reattached client negotiates nothing: it takes the set that has the version of the handshake.
		config.Plugins = pluginSet()
		return config, err
	}
	if len(o.command) == 0 {
		return nil, errors.New("give the plugin's command after the flags")
	}
	config.Cmd = exec.Command(o.command[0], o.command[1:]...)
	config.Cmd.Env = o.environment
	return config, nil
}

func waitFor(what string, client *plugin.Client) {
	if what == "" {
		return
	}
	report("waiting", map[string]any{})
	switch what {
	case "stdin":
		_, _ = io.Copy(io.Discard, os.Stdin)
	case "exit":
		for !client.Exited() {
			time.Sleep(time.Millisecond)
		}
	case "ever":
		for {
			time.Sleep(time.Hour)
		}
	}
}

func failed(err error, log *recording) error {
	report("failed", map[string]any{"error": err.Error(), "log": log.records()})
	return err
}

func report(event string, fields map[string]any) {
	fields["event"] = event
	line, err := json.Marshal(fields)
	if err != nil {
		panic(err)
	}
	os.Stdout.Write(append(line, '\n'))
}
