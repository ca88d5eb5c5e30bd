"""How much memory this process has, and whether it has grown.

Python's own blocks are counted, which a leak of objects shows to the last one. What the kernel counts shows what is
beneath them (OpenSSL, cryptography, protobuf, threads), once C's allocator has given back what it keeps for later.

Neither RSS nor USS will do: a page of a library's file is private or shared, and counted or not, as other processes
come and go. And C's allocator has an arena for each of some threads; each grows to what it once needed and stays there
(`MALLOC_ARENA_MAX=1` has one, and shows that nothing else grows).
"""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from dataclasses import dataclass
from pathlib import Path

BLOCKS = 3_000
"""What may be left: a plugin that something holds on to is about a thousand, and caches settle within a few hundred."""
BYTES = 16 * 1024 * 1024
"""The same: pages of arenas that cannot be given back because something small lives on them, up to 7 MB as measured."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What is in use, or the difference between two such.

    :param blocks: memory blocks that the interpreter has allocated.
    :param bytes: that are no file's, after malloc_trim(3).
    """

    blocks: int
    bytes: int

    @classmethod
    def of_this_process(cls) -> Memory:
        for _ in range(3):  # what a finalizer lets go of may be a cycle of its own
            gc.collect()
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)
        kilobytes = re.search(r"^Anonymous: +(\d+) kB$", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
        assert kilobytes is not None
        return cls(sys.getallocatedblocks(), 1024 * int(kilobytes[1]))

    def __sub__(self, other: Memory) -> Memory:
        return Memory(self.blocks - other.blocks, self.bytes - other.bytes)

    def is_next_to_nothing(self) -> None:
        """Fails when a difference is more than that."""
        assert self.blocks < BLOCKS
        assert self.bytes < BYTES
