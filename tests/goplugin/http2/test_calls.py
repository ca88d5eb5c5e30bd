"""Every kind of call, with our client and our server, and with grpcio in the place of either."""

from __future__ import annotations

import gc
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from hybridload.goplugin.http2.calls import UnaryCall
from hybridload.goplugin.http2.context import Context, ServerCall


def test_a_unary_call_gives_its_response(channel: Any) -> None:
    echo = channel.unary_unary("/t.T/Echo")
    assert [echo(b"%d" % number) for number in range(20)] == [b"%d" % number for number in range(20)]


def test_an_empty_message_is_a_message(channel: Any) -> None:
    assert channel.unary_unary("/t.T/Echo")(b"") == b""


def test_a_unary_call_leaves_no_work_to_the_garbage_collector(channel: Any) -> None:
    echo = channel.unary_unary("/t.T/Echo")
    echo(b"warm")
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            echo(b"x")
        left = [each for each in gc.get_objects() if isinstance(each, (UnaryCall, ServerCall, Context))]
    finally:
        gc.enable()
    assert len(left) <= 1  # the one that the server has just answered


def test_with_call_gives_the_status_too(channel: Any) -> None:
    response, call = channel.unary_unary("/t.T/Echo").with_call(b"x", timeout=10)
    assert (response, call.code(), call.details()) == (b"x", grpc.StatusCode.OK, "")


def test_a_future_gives_its_response_and_calls_back(channel: Any) -> None:
    called: queue.Queue[Any] = queue.Queue()
    future = channel.unary_unary("/t.T/Echo").future(b"x")
    future.add_done_callback(called.put)
    assert future.result(timeout=10) == b"x"
    assert called.get(timeout=10) is future
    assert future.done()
    assert not future.cancelled()
    assert future.exception() is None


def test_many_futures_at_once(channel: Any) -> None:
    echo = channel.unary_unary("/t.T/Echo")
    futures = [echo.future(b"%d" % number) for number in range(200)]
    assert [future.result(timeout=20) for future in futures] == [b"%d" % number for number in range(200)]


def test_a_response_stream_gives_all_in_order(channel: Any) -> None:
    assert list(channel.unary_stream("/t.T/Count")(b"5000")) == [b"%d" % number for number in range(5000)]


def test_an_empty_stream_ends(channel: Any) -> None:
    call = channel.unary_stream("/t.T/Count")(b"0")
    assert list(call) == []
    assert call.code() is grpc.StatusCode.OK


def test_a_request_stream_arrives_in_order(channel: Any) -> None:
    join = channel.stream_unary("/t.T/Join")
    assert join(b"%d" % number for number in range(3000)) == b"+".join(b"%d" % number for number in range(3000))


def test_an_empty_request_stream(channel: Any) -> None:
    assert channel.stream_unary("/t.T/Join")(iter(())) == b""


def test_a_server_may_answer_before_the_request_stream_ends(channel: Any) -> None:
    more = threading.Event()

    def requests() -> Any:
        yield b"first"
        more.wait(10)

    assert channel.stream_unary("/t.T/FirstOnly")(requests()) == b"first"
    more.set()


def test_a_conversation_takes_turns(channel: Any) -> None:
    requests: queue.Queue[bytes | None] = queue.Queue()
    responses = channel.stream_stream("/t.T/Chat")(iter(requests.get, None))
    for number in range(50):
        requests.put(b"%d" % number)
        assert next(responses) == b"<%d>" % number
    requests.put(None)
    assert list(responses) == []


def test_an_error_carries_code_message_and_metadata(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/t.T/Fail")(b"")
    error: Any = caught.value
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "nö 100%\n")
    metadata = {key: value for key, value in error.trailing_metadata() if key in ("reason", "details-bin")}
    assert metadata == {"reason": "test", "details-bin": b"\x00\xff"}


def test_an_exception_of_the_handler_is_unknown(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/t.T/Raise")(b"")
    assert (caught.value.code(), caught.value.details()) == (
        grpc.StatusCode.UNKNOWN,
        "Exception calling application: boom",
    )


def test_a_code_can_be_set_without_aborting(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/t.T/SetCode")(b"")
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "not yet")


def test_an_unknown_method_is_unimplemented(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/t.T/Nothing")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_stream_may_fail_after_some_messages(channel: Any) -> None:
    responses = channel.unary_stream("/t.T/CountThenFail")(b"3")
    assert [next(responses) for _ in range(3)] == [b"0", b"1", b"2"]
    with pytest.raises(grpc.RpcError) as caught:
        next(responses)
    assert caught.value.code() is grpc.StatusCode.DATA_LOSS


def test_metadata_goes_both_ways(channel: Any) -> None:
    metadata = (("x-text", "a b"), ("x-empty", ""), ("x-bin", bytes(range(256))), ("x-text", "again"))
    _, call = channel.unary_unary("/t.T/Metadata").with_call(b"", metadata=metadata)
    assert [tuple(each) for each in call.initial_metadata() if each[0].startswith("x-")] == list(metadata)
    assert [tuple(each) for each in call.trailing_metadata()] == list(metadata)


def test_metadata_that_cannot_travel_is_refused(channel: Any) -> None:
    with pytest.raises((ValueError, grpc.RpcError), match="metadata"):
        channel.unary_unary("/t.T/Echo")(b"", metadata=(("Bad Key", "x"),))


def test_the_deadline_reaches_the_server(channel: Any) -> None:
    assert 20 < float(channel.unary_unary("/t.T/Remaining")(b"", timeout=30)) < 30.1  # grpcio rounds up


def test_every_call_has_its_own_time_out(channel: Any) -> None:
    remaining = channel.unary_unary("/t.T/Remaining")
    for timeout in (100, 1000, 100, 1000):
        assert timeout / 2 < float(remaining(b"", timeout=timeout)) < timeout * 1.1  # grpcio rounds up


def test_a_call_without_a_deadline_has_none(channel: Any) -> None:
    remaining = channel.unary_unary("/t.T/Remaining")(b"")
    assert remaining == b"None" or float(remaining) > 1e18  # what grpcio says for None


@pytest.mark.parametrize("how", ["call", "future", "stream"])
def test_a_deadline_ends_a_call_at_both_ends(channel: Any, service: Any, how: str) -> None:
    make = {
        "call": lambda: channel.unary_unary("/t.T/Hang")(b"", timeout=1.0),
        "future": lambda: channel.unary_unary("/t.T/Hang").future(b"", timeout=1.0).result(),
        "stream": lambda: list(channel.unary_stream("/t.T/HangStream")(b"", timeout=1.0)),
    }[how]
    began = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        make()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert 0.9 < time.monotonic() - began < 10
    assert service.event("hung").wait(5)
    assert service.seen == [True]


def test_cancelling_a_future_reaches_the_handler(channel: Any, service: Any) -> None:
    future = channel.unary_unary("/t.T/Hang").future(b"")
    assert service.event("hanging").wait(5)
    assert future.cancel()
    assert future.cancelled()
    with pytest.raises(grpc.FutureCancelledError):
        future.result()
    assert service.event("hung").wait(5)
    assert service.seen == [True]


def test_cancelling_a_stream_wakes_its_reader_and_reaches_the_handler(channel: Any, service: Any) -> None:
    responses = channel.unary_stream("/t.T/HangStream")(b"")
    assert next(responses) == b"first"
    assert service.event("hanging").wait(5)
    threading.Timer(0.05, responses.cancel).start()
    with pytest.raises(grpc.RpcError) as caught:
        next(responses)
    assert caught.value.code() is grpc.StatusCode.CANCELLED
    assert service.event("hung").wait(5)


def test_a_callback_tells_of_the_end(channel: Any) -> None:
    told, ended = threading.Event(), threading.Event()

    def requests() -> Iterator[bytes]:
        yield b"x"
        told.wait(5)  # or it may be over before anybody asks to be called back

    responses = channel.stream_stream("/t.T/Chat")(requests())
    assert responses.add_callback(ended.set)
    told.set()
    assert list(responses) == [b"<x>"]
    assert ended.wait(5)
    assert not responses.is_active()


def test_gzip_goes_both_ways(channel: Any) -> None:
    data = b"compressible " * 10000
    assert channel.unary_unary("/t.T/Gzip")(data, compression=grpc.Compression.Gzip) == data
    responses = channel.stream_stream("/t.T/Chat")(iter((data, b"")), compression=grpc.Compression.Gzip)
    assert list(responses) == [b"<" + data + b">", b"<>"]


@pytest.mark.parametrize("size", [5, 16379, 16384, 16385, 65530, 65536, 262144, 1 << 20])
def test_messages_of_every_size_come_back_whole(channel: Any, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert channel.unary_unary("/t.T/Echo")(data) == data


def test_64_mebibytes_there_and_back(channel: Any) -> None:
    data = b"0123456789abcdef" * (1 << 22)
    assert channel.unary_unary("/t.T/Echo")(data, timeout=100) == data


def test_large_messages_in_streams(channel: Any) -> None:
    data = [bytes([number]) * (3 << 20) for number in range(6)]
    assert list(channel.stream_stream("/t.T/Chat")(iter(data))) == [b"<" + each + b">" for each in data]


def test_a_request_iterator_that_raises_ends_the_call(channel: Any) -> None:
    def requests() -> Any:
        yield b"x"
        raise RuntimeError("no more")

    with pytest.raises(grpc.RpcError) as caught:
        channel.stream_unary("/t.T/Join")(requests())
    assert caught.value.code() is grpc.StatusCode.UNKNOWN


def test_many_threads_share_a_channel(channel: Any) -> None:
    echo = channel.unary_unary("/t.T/Echo")
    count = channel.unary_stream("/t.T/Count")
    wrong: list[Any] = []

    def work(number: int) -> None:
        for turn in range(40):
            data = b"%d-%d" % (number, turn) * (1 + turn * 50)
            if echo(data, timeout=30) != data:
                wrong.append(data)
        if len(list(count(b"300", timeout=30))) != 300:
            wrong.append("count")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_closed_channel_says_so(channel: Any) -> None:
    echo = channel.unary_unary("/t.T/Echo")
    echo(b"")
    channel.close()
    with pytest.raises(ValueError, match="closed channel"):
        echo(b"")
