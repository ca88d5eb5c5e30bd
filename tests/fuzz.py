"""Decoders under a coverage-guided fuzzer: what no property test has the time for. Run by hand:

    pip install atheris && python -m tests.fuzz gob -max_total_time=300 -rss_limit_mb=1024 -timeout=10

and the same for netrpc, yamux and http2. What follows the name is libFuzzer's. Any exception but those by which a
decoder refuses what it reads, more memory or more time than that is a find: the input is written to a file, and the
same command with its path repeats it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["hybridload"]):
    from hybridload.goplugin.http2.connection import Role
    from hybridload.goplugin.netrpc.gob import GobCorrupt, Interface, String
    from hybridload.goplugin.netrpc.rpc import RpcClient, RpcServer
    from hybridload.goplugin.streams.yamux import Session
    from tests.goplugin.http2.test_connection import with_requests
    from tests.goplugin.netrpc.test_gob_hostile import LIMITS, RECEIVERS, SAMPLES, consume

SERVICES = {"A": {"B": Interface(), "C": String()}}
_HEAD = 2  # bytes of the input that say how the rest is read


def pieces(data: bytes) -> list[bytes]:
    step = (1, 3, 17, 100_000)[data[0] % 4]
    return [data[at : at + step] for at in range(_HEAD, len(data), step)]


def gob(data: bytes) -> None:
    first = data[1] % len(RECEIVERS)
    consume(data[_HEAD:], [*RECEIVERS[first:], *RECEIVERS[:first]][:4], (1, 3, 17, 100_000)[data[0] % 4])


def netrpc(data: bytes) -> None:
    client, server = RpcClient(limits=LIMITS), RpcServer(SERVICES, limits=LIMITS)
    for method in ("A.B", "A.C", "A.D"):
        client.call(method, "x", String())
    receive = (client.receive, server.receive)[data[1] % 2]
    try:
        for piece in pieces(data):
            list(receive(piece))
    except GobCorrupt:
        return


def yamux(data: bytes) -> None:
    session = Session(client=data[1] % 2 == 0)
    ours = session.open()
    for piece in pieces(data):
        session.receive_data(piece)
        if data[1] & 2 and session.failure is None and session.can_send(ours):
            session.close(ours)


def http2(data: bytes) -> None:
    connection = with_requests(Role.CLIENT if data[1] % 2 else Role.SERVER)
    for piece in pieces(data):
        connection.receive(piece)


TARGETS: dict[str, Callable[[bytes], None]] = {each.__name__: each for each in (gob, netrpc, yamux, http2)}
SEEDS = {"gob": SAMPLES, "netrpc": SAMPLES}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        raise SystemExit(__doc__)
    _, name, *arguments = sys.argv
    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(SEEDS.get(name, [])):
            Path(corpus, str(number)).write_bytes(bytes(_HEAD) + seed)
        atheris.Setup([sys.argv[0], *arguments, corpus], lambda data: target(data) if len(data) > _HEAD else None)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
