"""Where a plugin's unix sockets are.

- By default in a folder of their own, ``hybridload-…`` in the temporary folder, which only this user may enter; it is
  removed with everything in it.
- With PLUGIN_UNIX_SOCKET_DIR in the host's folder itself (a runner translates addresses by the last part of the path);
  then only the sockets are removed.
- With PLUGIN_UNIX_SOCKET_GROUP members of that group may connect as well.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable

from hybridload.goplugin.streams.sockets import group_id, private_folder


class SocketFolder:
    """Gives paths for sockets and removes what is there afterwards; also at the interpreter's exit.

    :param folder: the host's folder, or `None` for one of our own.
    :param group: name or number of a group whose members may connect.
    :param parent: where the folder of our own is made; the temporary folder by default.
    :param announce: told the path of a folder of our own before that is made.
    :raises OSError: when the folder cannot be made, or does not exist.
    :raises LookupError: when there is no such group.
    """

    def __init__(
        self,
        folder: str | None = None,
        group: str | None = None,
        *,
        parent: str | None = None,
        announce: Callable[[str], object] | None = None,
    ) -> None:
        self._group = None if group is None else group_id(group)
        self._paths: list[str] = []
        # A forked child must not remove what is its parent's.
        self._owner = os.getpid()
        self._own = folder is None
        if folder is None:
            folder = private_folder(parent, announce)
            try:
                if self._group is not None:
                    _share(folder, self._group, 0o710)
            except BaseException:
                os.rmdir(folder)
                raise
        elif not os.path.isdir(folder):
            raise NotADirectoryError(f"the host's PLUGIN_UNIX_SOCKET_DIR, {folder}, does not exist")
        self.path = folder
        _open.add(self)

    def new_path(self) -> str:
        """A path for a socket, which does not exist yet."""
        name = "plugin" if self._own and not self._paths else f"plugin{os.urandom(6).hex()}"
        path = os.path.join(self.path, name)
        self._paths.append(path)
        return path

    def share(self, path: str) -> None:
        """Let the group, if there is one, use a socket that was bound."""
        if self._group is not None:
            _share(path, self._group, 0o660)

    def close(self) -> None:
        """Remove the sockets, and the folder when it is our own. Safe to call twice."""
        _open.discard(self)
        if os.getpid() != self._owner:
            return
        for path in self._paths:
            try:
                os.unlink(path)
            except OSError:
                continue
        self._paths.clear()
        if self._own:
            try:
                os.rmdir(self.path)
            except OSError:
                import shutil  # not for folders that are empty, as they mostly are

                shutil.rmtree(self.path, ignore_errors=True)


# The interpreter never forgets a hook altogether, not even one that was taken back, so all folders share one.
_open: set[SocketFolder] = set()


@atexit.register
def _close_all() -> None:
    for folder in list(_open):
        folder.close()


def _share(path: str, group: int, mode: int) -> None:
    os.chown(path, -1, group)
    os.chmod(path, mode)
