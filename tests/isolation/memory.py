"""How much memory this process has, and whether it has grown.

Python's own blocks are counted, which a leak of objects shows to the last one. What the kernel counts shows what is
beneath them (OpenSSL, cryptography, protobuf, threads), once C's allocator has given back what it keeps for later.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from dataclasses import dataclass

import psutil

BLOCKS = 3_000
"""What may be left: a plugin that something holds on to is about a thousand, and caches settle within a few hundred."""
BYTES = 6_000_000
"""The same: pages that cannot be given back because something small lives on them, a megabyte or two."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What is in use, or the difference between two such.

    :param blocks: memory blocks that the interpreter has allocated.
    :param bytes: of this process alone (USS), after malloc_trim(3).
    """

    blocks: int
    bytes: int

    @classmethod
    def of_this_process(cls) -> Memory:
        for _ in range(3):  # what a finalizer lets go of may be a cycle of its own
            gc.collect()
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)
        return cls(sys.getallocatedblocks(), psutil.Process().memory_full_info().uss)

    def __sub__(self, other: Memory) -> Memory:
        return Memory(self.blocks - other.blocks, self.bytes - other.bytes)

    def is_next_to_nothing(self) -> None:
        """Fails when a difference is more than that."""
        assert self.blocks < BLOCKS
        assert self.bytes < BYTES
