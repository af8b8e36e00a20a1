package main

import (
	"context"
	"log/slog"
	"net"

	"spillway/edge/listen"
	"spillway/edge/pipeline"
	"spillway/framing/ecs"
)

// server is what an input listens with.
type server interface {
	Serve(ctx, hard context.Context)
	Addrs() []net.Addr
	Close()
	Reload() error
}

// input is a server and what turns its messages into records.
type input struct {
	cfg Input
	server
	stats    *listen.Stats
	requests *listen.HTTPStats // nil: it takes none
	records  *pipeline.Input   // nil: nobody serves
}

// listen are the options of the input's sockets, without what belongs to its lane.
func (in *Input) listen(log *slog.Logger) listen.Options {
	network := in.Scheme
	if network == "tls" {
		network = "tcp"
	}
	return listen.Options{
		Name: in.Name, Variable: in.variable(), Network: network, Address: in.Address, TLS: in.TLS,
		Socket:  listen.SocketFile{Mode: in.SocketMode, Owner: in.SocketOwner, Group: in.SocketGroup},
		Framing: in.framing(), ReceiveBuffer: int(in.SoRcvbuf), MaxConnections: in.MaxConnections, IdleTimeout: in.IdleTimeout, MaxMessageAge: in.MaxMessageAge,
		KeepAlive: in.KeepAlive, Allow: in.AllowFrom, PeerUIDs: in.PeerUIDs, ProxyProtocol: in.ProxyProtocol, Log: log,
	}
}

// listenHTTP is listen of an input that takes requests.
func (in *Input) listenHTTP(log *slog.Logger) listen.HTTPOptions {
	o := listen.HTTPOptions{
		Name: in.Name, Variable: in.variable(), Address: in.Address, Path: in.Path, TLS: in.TLS, MaxMessageSize: int(in.MaxMessageSize),
		MaxConnections: in.MaxConnections, IdleTimeout: in.IdleTimeout, StoreTimeout: in.StoreTimeout, KeepAlive: in.KeepAlive, Allow: in.AllowFrom, Log: log,
	}
	if in.Token != "" {
		o.Token = secret(in.Token, in.TokenFile)
	}
	return o
}

// open opens the sockets of the input, whose messages go to records; nil: nobody is
// going to serve them. memory is shared by the inputs of a lane.
func (in *Input) open(records *pipeline.Input, memory *listen.Memory, log *slog.Logger) (*input, error) {
	if in.http() {
		o := in.listenHTTP(log)
		o.Memory = memory
		if records != nil {
			o.Open = records.OpenStorer
		}
		s, err := listen.ListenHTTP(o)
		if err != nil {
			return nil, err
		}
		return &input{*in, s, s.Stats, &s.Requests, records}, nil
	}
	o := in.listen(log)
	o.Memory = memory
	if records != nil {
		o.Gate, o.Open = records.Gate(), records.Open
	}
	s, err := listen.Listen(o)
	if err != nil {
		return nil, err
	}
	return &input{*in, s, &s.Stats, nil, records}, nil
}

// pipeline is what makes records of the input's messages, for a lane.
func (in *Input) pipeline(c *Config, l *pipeline.Lane, host string) *pipeline.Input {
	return pipeline.NewInput(pipeline.InputOptions{
		Name: in.Name, Lane: l, Parse: in.Parse, Format: in.Format, Zone: in.Timezone, Vault: in.Vault, Filter: in.Filter, OnFull: in.OnFull,
		Records: ecs.Options{Dataset: in.Dataset, Agent: c.Agent, Host: host, InputType: inputKinds[in.Socket].kind, Pipeline: in.Pipeline, Tags: in.Tags,
			PreserveOriginal: in.PreserveOriginal, ShortNames: c.SyslogNames == "short"},
	})
}
