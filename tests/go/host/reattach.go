package main

import (
	"encoding/json"
	"fmt"
	"net"

	"github.com/hashicorp/go-plugin"
)

// reattachment is a ReattachConfig in the JSON form that Terraform made common.
type reattachment struct {
	Protocol        string
	ProtocolVersion int
	Pid             int
	Test            bool
	Addr            struct{ Network, String string }
}

func reattachJSON(config *plugin.ReattachConfig) *reattachment {
	if config == nil {
		return nil
	}
	r := &reattachment{
		Protocol: string(config.Protocol), ProtocolVersion: config.ProtocolVersion, Pid: config.Pid, Test: config.Test,
	}
	r.Addr.Network, r.Addr.String = config.Addr.Network(), config.Addr.String()
	return r
}

func parseReattach(text string) (*plugin.ReattachConfig, error) {
	r := reattachment{}
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return nil, fmt.Errorf("-reattach: %w", err)
	}
	config := &plugin.ReattachConfig{
		Protocol: plugin.Protocol(r.Protocol), ProtocolVersion: r.ProtocolVersion, Pid: r.Pid, Test: r.Test,
	}
	var err error
	switch r.Addr.Network {
	case "unix":
		config.Addr, err = net.ResolveUnixAddr("unix", r.Addr.String)
	case "tcp":
		config.Addr, err = net.ResolveTCPAddr("tcp", r.Addr.String)
	default:
		err = fmt.Errorf("-reattach: unknown network %q", r.Addr.Network)
	}
	return config, err
}
