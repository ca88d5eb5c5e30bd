// Go's own gRPC as a peer of hybridload's HTTP/2 engine: a server and a client of a service whose messages are raw bytes.
//
//	h2peer serve SOCKET   serves until its standard input ends
//	h2peer call SOCKET    makes calls of every kind, prints "ok <name>" for each that went as it should
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// raw passes *[]byte through as it is.
type raw struct{}

func (raw) Name() string { return "raw" }
func (raw) Marshal(v any) ([]byte, error) {
	return *v.(*[]byte), nil
}
func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: h2peer serve|call SOCKET")
		os.Exit(2)
	}
	if os.Args[1] == "serve" {
		serve(os.Args[2])
	} else {
		callAll(os.Args[2])
	}
}

// The server.

func handle(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	receive := func() ([]byte, error) {
		var data []byte
		err := stream.RecvMsg(&data)
		return data, err
	}
	send := func(data []byte) error { return stream.SendMsg(&data) }
	first, err := receive()
	switch method {
	case "/t.T/Echo":
		if incoming, ok := metadata.FromIncomingContext(stream.Context()); ok {
			echoed := metadata.MD{"x-bin": incoming["x-bin"], "x-text": incoming["x-text"]}
			if err := stream.SetHeader(echoed); err != nil {
				return err
			}
			stream.SetTrailer(echoed)
		}
		return send(first)
	case "/t.T/Fail":
		return status.Error(codes.NotFound, "nö 100%\n")
	case "/t.T/Hang":
		<-stream.Context().Done()
		fmt.Println("hung", stream.Context().Err())
		return stream.Context().Err()
	case "/t.T/Count":
		count, _ := strconv.Atoi(string(first))
		for number := 0; number < count; number++ {
			if err := send([]byte(strconv.Itoa(number))); err != nil {
				return err
			}
		}
		return nil
	case "/t.T/Join":
		var all [][]byte
		for err == nil {
			all = append(all, first)
			first, err = receive()
		}
		return send(bytes.Join(all, []byte("+")))
	case "/t.T/Chat":
		for err == nil {
			if err := send([]byte("<" + string(first) + ">")); err != nil {
				return err
			}
			first, err = receive()
		}
		return nil
	}
	return status.Error(codes.Unimplemented, method)
}

func serve(socket string) {
	listener, err := net.Listen("unix", socket)
	check(err)
	server := grpc.NewServer(grpc.ForceServerCodec(raw{}), grpc.UnknownServiceHandler(handle),
		grpc.MaxRecvMsgSize(1<<30), grpc.MaxSendMsgSize(1<<30))
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		server.Stop()
	}()
	fmt.Println("serving")
	check(server.Serve(listener))
}

// The client.

func callAll(socket string) {
	conn, err := grpc.Dial("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{}), grpc.MaxCallRecvMsgSize(1<<30), grpc.MaxCallSendMsgSize(1<<30)))
	check(err)
	defer conn.Close()
	for _, scenario := range []struct {
		name string
		run  func(*grpc.ClientConn) error
	}{
		{"unary", unary}, {"large", large}, {"concurrent", concurrent}, {"error", failing}, {"metadata", withMetadata},
		{"count", count}, {"join", join}, {"chat", chat}, {"deadline", deadline}, {"cancel", cancel},
		{"gzip", zipped}, {"unknown", unknown}, {"slow reader", slowReader},
	} {
		if err := scenario.run(conn); err != nil {
			fmt.Printf("failed %s: %v\n", scenario.name, err)
			os.Exit(1)
		}
		fmt.Println("ok", scenario.name)
	}
}

func invoke(ctx context.Context, conn *grpc.ClientConn, method string, in []byte, options ...grpc.CallOption) ([]byte, error) {
	var out []byte
	err := conn.Invoke(ctx, "/t.T/"+method, &in, &out, options...)
	return out, err
}

func echo(conn *grpc.ClientConn, in []byte, options ...grpc.CallOption) error {
	out, err := invoke(context.Background(), conn, "Echo", in, options...)
	if err == nil && !bytes.Equal(in, out) {
		err = fmt.Errorf("%d bytes came back as %d others", len(in), len(out))
	}
	return err
}

func unary(conn *grpc.ClientConn) error {
	for number := 0; number < 200; number++ {
		if err := echo(conn, []byte(strconv.Itoa(number))); err != nil {
			return err
		}
	}
	return echo(conn, []byte{})
}

func large(conn *grpc.ClientConn) error {
	for _, size := range []int{16379, 16384, 65535, 65536, 1 << 20, 64 << 20} {
		if err := echo(conn, bytes.Repeat([]byte("x"), size)); err != nil {
			return err
		}
	}
	return nil
}

func concurrent(conn *grpc.ClientConn) error {
	var group sync.WaitGroup
	failures := make(chan error, 64)
	for worker := 0; worker < 16; worker++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for number := 0; number < 200; number++ {
				if err := echo(conn, bytes.Repeat([]byte("y"), number*37)); err != nil {
					failures <- err
					return
				}
			}
		}()
	}
	group.Wait()
	close(failures)
	return <-failures
}

func failing(conn *grpc.ClientConn) error {
	_, err := invoke(context.Background(), conn, "Fail", nil)
	if status.Code(err) != codes.NotFound || status.Convert(err).Message() != "nö 100%\n" {
		return fmt.Errorf("got %v", err)
	}
	return nil
}

func withMetadata(conn *grpc.ClientConn) error {
	var header, trailer metadata.MD
	ctx := metadata.AppendToOutgoingContext(context.Background(), "x-text", "a b", "x-bin", "\x00\xff")
	if _, err := invoke(ctx, conn, "Metadata", nil, grpc.Header(&header), grpc.Trailer(&trailer)); err != nil {
		return err
	}
	for _, each := range []metadata.MD{header, trailer} {
		if fmt.Sprint(each["x-text"], each["x-bin"]) != fmt.Sprint([]string{"a b"}, []string{"\x00\xff"}) {
			return fmt.Errorf("got %v", each)
		}
	}
	return nil
}

func open(ctx context.Context, conn *grpc.ClientConn, method string) (grpc.ClientStream, error) {
	return conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/t.T/"+method)
}

func sendAll(stream grpc.ClientStream, messages ...[]byte) error {
	for _, message := range messages {
		if err := stream.SendMsg(&message); err != nil {
			return err
		}
	}
	return stream.CloseSend()
}

func count(conn *grpc.ClientConn) error {
	stream, err := open(context.Background(), conn, "Count")
	check(err)
	check(sendAll(stream, []byte("5000")))
	for number := 0; ; number++ {
		var got []byte
		err := stream.RecvMsg(&got)
		if errors.Is(err, io.EOF) && number == 5000 {
			return nil
		}
		if err != nil || string(got) != strconv.Itoa(number) {
			return fmt.Errorf("message %d is %q, %v", number, got, err)
		}
	}
}

func slowReader(conn *grpc.ClientConn) error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	stream, err := open(ctx, conn, "Count")
	check(err)
	check(sendAll(stream, []byte("1000000")))
	var got []byte
	check(stream.RecvMsg(&got))
	return unary(conn)
}

func join(conn *grpc.ClientConn) error {
	stream, err := open(context.Background(), conn, "Join")
	check(err)
	var messages [][]byte
	for number := 0; number < 2000; number++ {
		messages = append(messages, []byte(strconv.Itoa(number)))
	}
	check(sendAll(stream, messages...))
	var got []byte
	check(stream.RecvMsg(&got))
	if !bytes.Equal(got, bytes.Join(messages, []byte("+"))) {
		return fmt.Errorf("got %d bytes", len(got))
	}
	return nil
}

func chat(conn *grpc.ClientConn) error {
	stream, err := open(context.Background(), conn, "Chat")
	check(err)
	for number := 0; number < 100; number++ {
		message := []byte(strconv.Itoa(number))
		check(stream.SendMsg(&message))
		var got []byte
		check(stream.RecvMsg(&got))
		if string(got) != "<"+string(message)+">" {
			return fmt.Errorf("got %q", got)
		}
	}
	check(stream.CloseSend())
	var got []byte
	if err := stream.RecvMsg(&got); !errors.Is(err, io.EOF) {
		return fmt.Errorf("got %q, %v at the end", got, err)
	}
	return nil
}

func deadline(conn *grpc.ClientConn) error {
	ctx, stop := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer stop()
	if _, err := invoke(ctx, conn, "Hang", nil); status.Code(err) != codes.DeadlineExceeded {
		return fmt.Errorf("got %v", err)
	}
	return nil
}

func cancel(conn *grpc.ClientConn) error {
	ctx, stop := context.WithCancel(context.Background())
	time.AfterFunc(100*time.Millisecond, stop)
	if _, err := invoke(ctx, conn, "Hang", nil); status.Code(err) != codes.Canceled {
		return fmt.Errorf("got %v", err)
	}
	return nil
}

func zipped(conn *grpc.ClientConn) error {
	return echo(conn, bytes.Repeat([]byte("compressible"), 10000), grpc.UseCompressor(gzip.Name))
}

func unknown(conn *grpc.ClientConn) error {
	if _, err := invoke(context.Background(), conn, "Nothing", nil); status.Code(err) != codes.Unimplemented {
		return fmt.Errorf("got %v", err)
	}
	return nil
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
