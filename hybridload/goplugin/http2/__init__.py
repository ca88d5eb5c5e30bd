"""gRPC over HTTP/2 without grpcio: a channel and a server of the shapes that generated ``*_pb2_grpc`` code expects.

From the bottom up:

- `frames`, `header_blocks`, `events`, `limits`, `connection`: HTTP/2 without sockets and threads (RFC 9113, RFC 7541);
- `metadata`, `messages`, `status`: what gRPC puts on top, pure as well;
- `link`: one stream and one connection under one lock, and who may write when;
- `inbox`: what both sides' calls have in common: the messages that came, and how much more may come;
- `timers`, `workers`: the few threads there are;
- `channel` with `calls`: the client. `server` with `context`: the server.

Importing `channel` or `server` imports no grpc; `hpack` is imported when a peer compresses its headers.
"""
