// A host application written in Go. It runs any greeter plugin, the Python one included, and prints what it says:
//
//	go-host hello-plugin
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"

	greeter "hybridload.dev/examples/greeter/go-sdk"
)

func main() {
	mtls := flag.Bool("mtls", true, "encrypt and authenticate both ways (AutoMTLS)")
	level := flag.String("log", "warn", "the lowest level of log records to show")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "usage: go-host [flags] COMMAND [ARGUMENT...]")
		os.Exit(2)
	}
	if err := run(flag.Args(), *mtls, *level); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(command []string, mtls bool, level string) error {
	client := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:  greeter.Handshake,
		Plugins:          greeter.Plugins(nil),
		Cmd:              exec.Command(command[0], command[1:]...),
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		AutoMTLS:         mtls,
		SyncStdout:       os.Stdout,
		SyncStderr:       os.Stderr,
		Logger:           hclog.New(&hclog.LoggerOptions{Level: hclog.LevelFromString(level), Output: os.Stderr}),
	})
	defer client.Kill()

	connection, err := client.Client()
	if err != nil {
		return err
	}
	raw, err := connection.Dispense("greeter")
	if err != nil {
		return err
	}
	message, err := raw.(greeter.Greeter).Greet()
	if err != nil {
		return err
	}
	fmt.Println(message)
	return nil
}
