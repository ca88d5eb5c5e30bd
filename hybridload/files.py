"""Reads files that somebody else may have put something in the place of.

Opening a FIFO waits for whoever writes to it, some devices do things when they are opened, and `/dev/zero` has no end.
So a file is looked at before it is opened, opened in a way that waits for nobody, and looked at again.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

LARGEST: Final = 16 * 2**20
"""Bytes; what people and this library write for it is far smaller."""

_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


def read_file(path: str | os.PathLike[str], *, own: bool = False) -> bytes:
    """All that is in a regular file.

    :param own: refuse one that is somebody else's, and a symbolic link.
    :raises OSError: it cannot be read, is no regular file, or is larger than `LARGEST`; `strerror` says which.
    """
    _check(os.stat(path, follow_symlinks=not own), path, own)
    descriptor = os.open(path, _FLAGS | _NO_LINK if own else _FLAGS)
    with open(descriptor, "rb") as file:
        _check(os.fstat(descriptor), path, own)
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise _refused(errno.EFBIG, f"it has more than {LARGEST >> 20} MiB", path)
    return content


def _check(found: os.stat_result, path: str | os.PathLike[str], own: bool) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise _refused(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(found.st_mode):
        raise _refused(errno.EINVAL, "it is no regular file", path)
    if found.st_size > LARGEST:
        raise _refused(errno.EFBIG, f"it has more than {LARGEST >> 20} MiB", path)
    if own and hasattr(os, "geteuid") and found.st_uid != os.geteuid():
        raise _refused(errno.EPERM, "it is somebody else's", path)


def _refused(number: int, why: str, path: str | os.PathLike[str]) -> OSError:
    return OSError(number, why, os.fspath(path))
