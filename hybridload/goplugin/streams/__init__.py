"""Byte streams under the go-plugin protocol: sockets, TLS and yamux, each able to carry the next."""
