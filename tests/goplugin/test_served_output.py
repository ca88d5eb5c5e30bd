"""What a plugin prints, between writers and readers."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from hybridload.goplugin.served_output import CHUNK, STDERR, STDOUT, OutputBuffer, text_writer


def collect(buffer: OutputBuffer) -> tuple[threading.Thread, list[tuple[int, bytes]]]:
    """A reader that takes everything until the buffer is finished."""
    chunks: list[tuple[int, bytes]] = []
    reader = buffer.reader()

    def read() -> None:
        chunks.extend(reader)
        reader.close()

    thread = threading.Thread(target=read)
    thread.start()
    return thread, chunks


def channel(chunks: list[tuple[int, bytes]], number: int) -> bytes:
    return b"".join(data for found, data in chunks if found == number)


def test_order_is_kept_across_channels_and_small_writes_travel_together() -> None:
    buffer = OutputBuffer()
    for number, data in ((STDOUT, b"a"), (STDOUT, b"b"), (STDERR, b"c"), (STDOUT, b"d")):
        buffer.write(number, data)
    thread, chunks = collect(buffer)
    assert buffer.finish(5)
    thread.join()
    assert chunks == [(STDOUT, b"ab"), (STDERR, b"c"), (STDOUT, b"d")]


def test_a_first_reader_that_comes_late_gets_what_is_left() -> None:
    buffer = OutputBuffer()
    buffer.write(STDOUT, b"closing")
    with ThreadPoolExecutor() as pool:
        finished = pool.submit(buffer.finish, 20, expects_reader=True)
        while not finished.running():
            time.sleep(0.001)
        with pytest.raises(TimeoutError):
            finished.result(0.1)
        thread, chunks = collect(buffer)
        assert finished.result(20)
    thread.join()
    assert chunks == [(STDOUT, b"closing")]


def test_a_first_reader_is_waited_for_only_where_there_is_something_for_it() -> None:
    buffer = OutputBuffer()
    assert buffer.finish(0, expects_reader=True)
    buffer = OutputBuffer()
    buffer.write(STDOUT, b"closing")
    assert buffer.finish(0)
    buffer = OutputBuffer()
    thread, _ = collect(buffer)
    assert buffer.finish(20)
    thread.join()


def test_with_a_reader_nothing_is_lost_and_writers_wait() -> None:
    buffer = OutputBuffer(limit=1000)
    thread, chunks = collect(buffer)
    lines = [[b"%d %d\n" % (writer, number) * 50 for number in range(200)] for writer in range(4)]
    writers = [threading.Thread(target=lambda own=own: [buffer.write(STDOUT, line) for line in own]) for own in lines]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert buffer.finish(5)
    thread.join()
    got = channel(chunks, STDOUT)
    assert len(got) == sum(len(line) for own in lines for line in own)
    # A write that is larger than what the buffer holds is not split by another one.
    for own in lines:
        assert all(line in got for line in own)


def test_a_writer_waits_for_the_reader_to_take_some() -> None:
    buffer = OutputBuffer(limit=100)
    reader = buffer.reader()
    done = threading.Event()

    def write() -> None:
        buffer.write(STDOUT, b"x" * 250)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    taken = 0
    for _, data in reader:
        assert not done.is_set() or taken >= 150
        taken += len(data)
        if taken == 250:
            break
    reader.close()
    thread.join()
    assert done.is_set()


def test_before_the_first_reader_writers_wait_a_little_and_then_the_oldest_is_dropped() -> None:
    buffer = OutputBuffer(limit=1000, patience=0.2)
    began = time.monotonic()
    for number in range(10):
        buffer.write(STDOUT, b"%d" % number * 500)
    assert 0.2 <= time.monotonic() - began < 2
    thread, chunks = collect(buffer)
    assert buffer.finish(5)
    thread.join()
    assert chunks[0][0] == STDERR
    assert b"4000 bytes of output were dropped" in chunks[0][1]
    assert channel(chunks[1:], STDOUT) == b"8" * 500 + b"9" * 500


def test_a_reader_that_comes_in_time_gets_everything() -> None:
    buffer = OutputBuffer(limit=1000, patience=60)
    writer = threading.Thread(target=buffer.write, args=(STDOUT, b"x" * 100_000))
    writer.start()
    thread, chunks = collect(buffer)
    writer.join()
    assert buffer.finish(5)
    thread.join()
    assert channel(chunks, STDOUT) == b"x" * 100_000


def test_after_a_reader_left_writers_do_not_wait_for_the_next() -> None:
    buffer = OutputBuffer(limit=1000, patience=60)
    buffer.reader().close()
    buffer.write(STDOUT, b"x" * 10_000)
    thread, chunks = collect(buffer)
    assert buffer.finish(5)
    thread.join()
    assert channel(chunks, STDOUT) == b"x" * 1000


def test_a_writer_that_waits_goes_on_when_its_reader_leaves() -> None:
    buffer = OutputBuffer(limit=1000)
    reader = buffer.reader()
    writer = threading.Thread(target=buffer.write, args=(STDOUT, b"x" * 10_000))
    writer.start()
    reader.close()
    writer.join(10)
    assert not writer.is_alive()


def test_what_was_not_delivered_goes_to_the_next_reader() -> None:
    buffer = OutputBuffer()
    buffer.write(STDOUT, b"first")
    first = buffer.reader()
    chunk = next(iter(first))
    first.put_back(chunk)
    first.cancel()
    first.close()
    second = buffer.reader()
    assert next(iter(second)) == (STDOUT, b"first")
    second.close()


def test_cancelling_wakes_a_reader_that_waits() -> None:
    buffer = OutputBuffer()
    reader = buffer.reader()
    thread = threading.Thread(target=lambda: list(reader))
    thread.start()
    reader.cancel()
    thread.join(10)
    assert not thread.is_alive()
    reader.close()
    reader.close()


def test_two_readers_share_the_chunks() -> None:
    buffer = OutputBuffer(limit=CHUNK)
    both = [collect(buffer) for _ in range(2)]
    buffer.write(STDOUT, b"x" * (20 * CHUNK))
    assert buffer.finish(5)
    for thread, _ in both:
        thread.join()
    assert sum(len(channel(chunks, STDOUT)) for _, chunks in both) == 20 * CHUNK


def test_finish_delivers_first_and_does_not_wait_for_ever() -> None:
    buffer = OutputBuffer()
    reader = buffer.reader()
    buffer.write(STDOUT, b"late")
    assert not buffer.finish(0.05)
    assert not buffer.write(STDOUT, b"too late")
    assert list(reader) == [(STDOUT, b"late")]
    reader.close()
    assert buffer.finish(5)


def test_finish_frees_writers_that_wait() -> None:
    buffer = OutputBuffer(limit=10)
    reader = buffer.reader()
    results: list[bool] = []
    writer = threading.Thread(target=lambda: results.append(buffer.write(STDOUT, b"x" * 100)))
    writer.start()
    buffer.finish(0.05)
    writer.join(10)
    assert results == [False]
    reader.close()


def test_text_and_bytes_arrive_in_order_and_at_once() -> None:
    buffer = OutputBuffer()
    out = text_writer(buffer, STDOUT)
    print("é", 1, end="", file=out)
    out.buffer.write(bytearray(b"[raw]"))
    print("\udc80", "𝄞", file=out)
    assert buffer.rest() == [(STDOUT, "é 1[raw]\\udc80 𝄞\n".encode())]


def test_a_writer_is_a_file_like_others() -> None:
    out = text_writer(OutputBuffer(), STDERR)
    assert (out.fileno(), out.isatty(), out.writable(), out.readable(), out.seekable()) == (
        2,
        False,
        True,
        False,
        False,
    )
    assert (out.encoding, out.name, out.closed) == ("utf-8", "<stderr>", False)
    out.flush()
    out.close()
    with pytest.raises(ValueError, match="closed"):
        out.write("x")


def test_a_finalizer_that_prints_while_output_is_taken_blocks_nobody() -> None:
    buffer = OutputBuffer(limit=64)

    class Prints:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            buffer.write(STDERR, b"finalized\n" * 20)

    thread, chunks = collect(buffer)
    for _ in range(50):
        Prints()
        buffer.write(STDOUT, b"x" * 100)
        gc.collect(0)
    assert buffer.finish(10)
    thread.join()
    assert len(channel(chunks, STDOUT)) == 5000


def test_what_nobody_took_goes_to_the_raw_descriptors_and_waits_for_nobody() -> None:
    code = """
import os, time
from hybridload.goplugin.served_output import STDERR, STDOUT, OutputBuffer, write_rest
buffer = OutputBuffer(patience=0)
buffer.write(STDERR, b"err")
buffer.write(STDOUT, b"x" * 500_000)
began = time.monotonic()
write_rest(buffer)
assert time.monotonic() - began < 5
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=20, check=True)
    assert (done.stdout, done.stderr) == (b"x" * 500_000, b"err")
    reader, writer = os.pipe()
    subprocess.run([sys.executable, "-c", code], stdout=writer, timeout=20, check=True)
    os.close(writer)
    os.close(reader)
