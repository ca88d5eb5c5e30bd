// yamuxpeer is one end of a yamux session made with hashicorp/yamux, for tests of the other end.
//
// Every stream that the other end opens is echoed until it says that it is done. Commands come on standard input, one a
// line; each is answered by one JSON object on standard output:
//
//	open COUNT SIZE  open so many streams at once, send so many bytes on each, expect them back
//	ping             ask for a sign of life
//	stall            leave the next stream that is opened unread ...
//	resume           ... and now read it to its end
//	goaway           take no new streams
//	streams          tell how many streams there are
//	close            close the session
package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

var (
	role         = flag.String("role", "server", "server listens and is the yamux server, client connects")
	address      = flag.String("address", "", "path of the unix socket")
	keepalive    = flag.Duration("keepalive", 30*time.Second, "between pings")
	closeTimeout = flag.Duration("close-timeout", 5*time.Minute, "after which a half closed stream is reset")
	backlog      = flag.Int("backlog", 256, "streams that may wait to be accepted")
	accepting    = flag.Bool("accept", true, "whether streams are accepted at all")
)

type report struct {
	Count   int     `json:"count"`
	Failed  int     `json:"failed"`
	Error   string  `json:"error"`
	Seconds float64 `json:"seconds"`
}

type peer struct {
	session *yamux.Session
	stalled chan *yamux.Stream
	stall   chan struct{}
}

func main() {
	flag.Parse()
	config := yamux.DefaultConfig()
	config.KeepAliveInterval = *keepalive
	config.StreamCloseTimeout = *closeTimeout
	config.AcceptBacklog = *backlog
	p := &peer{session: connect(config), stalled: make(chan *yamux.Stream, 1), stall: make(chan struct{}, 1)}
	if *accepting {
		go p.accept()
	}
	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		check(json.NewEncoder(os.Stdout).Encode(p.obey(commands.Text())))
	}
}

func connect(config *yamux.Config) *yamux.Session {
	if *role == "client" {
		connection, err := net.Dial("unix", *address)
		check(err)
		session, err := yamux.Client(connection, config)
		check(err)
		return session
	}
	listener, err := net.Listen("unix", *address)
	check(err)
	fmt.Println("listening")
	connection, err := listener.Accept()
	check(err)
	session, err := yamux.Server(connection, config)
	check(err)
	return session
}

func (p *peer) accept() {
	for {
		stream, err := p.session.AcceptStream()
		if err != nil {
			return
		}
		select {
		case <-p.stall:
			p.stalled <- stream
		default:
			go func() {
				io.Copy(stream, stream)
				stream.Close()
			}()
		}
	}
}

func (p *peer) obey(command string) (told report) {
	var count, size int
	start := time.Now()
	switch name, _, _ := strings.Cut(command, " "); name {
	case "open":
		fmt.Sscanf(command, "open %d %d", &count, &size)
		told = p.open(count, size)
	case "ping":
		_, err := p.session.Ping()
		told.note(err)
	case "stall":
		p.stall <- struct{}{}
	case "resume":
		read, err := io.Copy(io.Discard, <-p.stalled)
		told.Count = int(read)
		told.note(err)
	case "goaway":
		told.note(p.session.GoAway())
	case "streams":
		told.Count = p.session.NumStreams()
	case "close":
		told.note(p.session.Close())
	default:
		told.Error = "what is " + command + "?"
	}
	told.Seconds = time.Since(start).Seconds()
	return
}

func (p *peer) open(count, size int) (told report) {
	var wait sync.WaitGroup
	var lock sync.Mutex
	for i := 0; i < count; i++ {
		wait.Add(1)
		go func() {
			defer wait.Done()
			err := p.exchange(size)
			lock.Lock()
			defer lock.Unlock()
			told.Count++
			if err != nil {
				told.Failed++
				told.note(err)
			}
		}()
	}
	wait.Wait()
	return
}

// exchange opens a stream, sends random bytes while it receives, closes its half and compares.
func (p *peer) exchange(size int) error {
	stream, err := p.session.OpenStream()
	if err != nil {
		return err
	}
	sent := make([]byte, size)
	rand.Read(sent)
	failed := make(chan error, 1)
	go func() {
		_, err := stream.Write(sent)
		stream.Close()
		failed <- err
	}()
	received, err := io.ReadAll(stream)
	if err != nil {
		return err
	}
	if err := <-failed; err != nil {
		return err
	}
	if !bytes.Equal(sent, received) {
		return fmt.Errorf("%d bytes came back that are not the %d that were sent", len(received), len(sent))
	}
	return nil
}

func (r *report) note(err error) {
	if err != nil {
		r.Error = err.Error()
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
