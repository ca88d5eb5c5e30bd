// tlspeer is one end of a mutual TLS connection as go-plugin's AutoMTLS sets it up, for tests of the other end.
//
// It makes a P-521 certificate of the shape that go-plugin gives its own, prints it as base64 DER on its first line,
// reads the certificate that it shall trust from standard input (PEM, up to a line END), and then serves or dials.
// Every further line is a JSON object about one connection.
package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"time"
)

var (
	role        = flag.String("role", "server", "server or client")
	address     = flag.String("address", "", "path of the unix socket")
	alpn        = flag.String("alpn", "", "protocol to offer, e.g. h2")
	name        = flag.String("name", "localhost", "name in the certificate, or expected of the server")
	maxVersion  = flag.String("max-version", "1.3", "1.1, 1.2 or 1.3")
	expired     = flag.Bool("expired", false, "make a certificate that is not valid any more")
	size        = flag.Int("size", 1<<20, "bytes that a client sends and expects back")
	connections = flag.Int("connections", 1, "connections to serve or make, one after the other")
)

var versions = map[string]uint16{"1.1": tls.VersionTLS11, "1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}

type report struct {
	Version string `json:"version"`
	ALPN    string `json:"alpn"`
	Echoed  int64  `json:"echoed"`
	Error   string `json:"error"`
}

func main() {
	flag.Parse()
	own, err := certificate()
	check(err)
	fmt.Println(base64.RawStdEncoding.EncodeToString(own.Certificate[0]))
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(readTrusted())
	config := &tls.Config{
		Certificates: []tls.Certificate{own},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    trusted,
		RootCAs:      trusted,
		ServerName:   *name,
		MinVersion:   tls.VersionTLS10,
		MaxVersion:   versions[*maxVersion],
	}
	if *alpn != "" {
		config.NextProtos = []string{*alpn}
	}
	if *role == "client" {
		for i := 0; i < *connections; i++ {
			connection, err := net.Dial("unix", *address)
			check(err)
			tell(dial(tls.Client(connection, config)))
		}
		return
	}
	listener, err := net.Listen("unix", *address)
	check(err)
	fmt.Println("listening")
	for i := 0; i < *connections; i++ {
		connection, err := listener.Accept()
		check(err)
		tell(echo(tls.Server(connection, config)))
	}
}

// echo sends back what it receives until the other end has said that it is done, then says so too.
func echo(connection *tls.Conn) (told report) {
	defer connection.Close()
	if told.note(connection, connection.Handshake()) {
		return
	}
	count, err := io.Copy(connection, connection)
	told.Echoed = count
	told.note(connection, err)
	return
}

// dial sends random bytes while it receives, says that it is done, and compares.
func dial(connection *tls.Conn) (told report) {
	defer connection.Close()
	if told.note(connection, connection.Handshake()) {
		return
	}
	sent := make([]byte, *size)
	rand.Read(sent)
	failed := make(chan error, 1)
	go func() {
		_, err := connection.Write(sent)
		if err == nil {
			err = connection.CloseWrite()
		}
		failed <- err
	}()
	received, err := io.ReadAll(connection)
	if told.note(connection, err) || told.note(connection, <-failed) {
		return
	}
	told.Echoed = int64(len(received))
	if !bytes.Equal(sent, received) {
		told.Error = "what came back is not what was sent"
	}
	return
}

func (r *report) note(connection *tls.Conn, err error) bool {
	state := connection.ConnectionState()
	if state.HandshakeComplete {
		r.Version = tls.VersionName(state.Version)
		r.ALPN = state.NegotiatedProtocol
	}
	if err != nil {
		r.Error = err.Error()
	}
	return err != nil
}

func certificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	end := time.Now().Add(time.Hour)
	if *expired {
		end = time.Now().Add(-time.Minute)
	}
	host := "localhost"
	if *role == "server" {
		host = *name
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(time.Now().UnixNano()),
		Subject:               pkix.Name{CommonName: host},
		DNSNames:              []string{host},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              end,
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment |
			x509.KeyUsageKeyAgreement | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

func readTrusted() []byte {
	var text bytes.Buffer
	line := make([]byte, 1)
	for !bytes.HasSuffix(text.Bytes(), []byte("END\n")) {
		if _, err := os.Stdin.Read(line); err != nil {
			check(err)
		}
		text.Write(line)
	}
	return text.Bytes()
}

func tell(told report) {
	check(json.NewEncoder(os.Stdout).Encode(told))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
