"""How a gRPC call ends: its status, and the exception that carries a bad one.

Users of generated stubs write ``except grpc.RpcError`` and compare ``error.code()`` with ``grpc.StatusCode`` members.
So where the process has imported grpc, for whatever reason, both are grpc's own; elsewhere they are the equivalents
here. grpc is never imported for it.
"""

from __future__ import annotations

import sys
from enum import Enum
from functools import cache
from typing import Any, NamedTuple

from hybridload.errors import PluginError

from .frames import ErrorCode
from .metadata import Metadata


class StatusCode(Enum):
    """The status codes of gRPC; members have the names and values of `grpc.StatusCode`."""

    OK = (0, "ok")
    CANCELLED = (1, "cancelled")
    UNKNOWN = (2, "unknown")
    INVALID_ARGUMENT = (3, "invalid argument")
    DEADLINE_EXCEEDED = (4, "deadline exceeded")
    NOT_FOUND = (5, "not found")
    ALREADY_EXISTS = (6, "already exists")
    PERMISSION_DENIED = (7, "permission denied")
    RESOURCE_EXHAUSTED = (8, "resource exhausted")
    FAILED_PRECONDITION = (9, "failed precondition")
    ABORTED = (10, "aborted")
    OUT_OF_RANGE = (11, "out of range")
    UNIMPLEMENTED = (12, "unimplemented")
    INTERNAL = (13, "internal")
    UNAVAILABLE = (14, "unavailable")
    DATA_LOSS = (15, "data loss")
    UNAUTHENTICATED = (16, "unauthenticated")

    @classmethod
    def of(cls, code: Any) -> StatusCode:
        """The member for a member here, one of grpc's, a number or a name; UNKNOWN for what is none of them."""
        if isinstance(code, cls):
            return code
        name = code if isinstance(code, str) else getattr(code, "name", None)
        if isinstance(name, str):
            return cls.__members__.get(name, cls.UNKNOWN)
        return _BY_NUMBER.get(code, cls.UNKNOWN) if isinstance(code, int) else cls.UNKNOWN


_BY_NUMBER = {code.value[0]: code for code in StatusCode}

_BY_RESET = {
    ErrorCode.REFUSED_STREAM: StatusCode.UNAVAILABLE,
    ErrorCode.CANCEL: StatusCode.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: StatusCode.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: StatusCode.PERMISSION_DENIED,
}

_BY_HTTP = {
    b"400": StatusCode.INTERNAL,
    b"401": StatusCode.UNAUTHENTICATED,
    b"403": StatusCode.PERMISSION_DENIED,
    b"404": StatusCode.UNIMPLEMENTED,
    b"429": StatusCode.UNAVAILABLE,
    b"502": StatusCode.UNAVAILABLE,
    b"503": StatusCode.UNAVAILABLE,
    b"504": StatusCode.UNAVAILABLE,
}


class Status(NamedTuple):
    """A call's end. `trailing_metadata` may carry ``grpc-status-details-bin``.

    `lost` tells that no server has said this: the connection broke, and the call with it.
    """

    code: StatusCode
    details: str
    trailing_metadata: Metadata = ()
    lost: bool = False

    @classmethod
    def of_reset(cls, code: int, reason: str) -> Status:
        """What a stream's reset means (the table of gRPC over HTTP/2)."""
        return cls(_BY_RESET.get(code, StatusCode.INTERNAL), reason)  # type: ignore[call-overload]

    @classmethod
    def of_http(cls, status: bytes) -> Status:
        """What a response means that is not gRPC's (the table of gRPC's http-grpc-status-mapping)."""
        code = _BY_HTTP.get(status, StatusCode.UNKNOWN)
        return cls(code, f"the peer answered HTTP {status.decode('latin-1')}, which is not gRPC")


OK = Status(StatusCode.OK, "")


class RpcError(PluginError):
    """A call that ended with another status than OK.

    Raised by the channel's calls. It has what `grpc.Call` offers once a call is over. Where grpc is imported, it is a
    `grpc.RpcError` too.
    """

    deadline: float | None = None
    """By when the call was to have ended, on the clock of `time.monotonic`."""

    def __init__(self, status: Status, initial_metadata: Metadata = (), method: str = "") -> None:
        called = f"{method}: " if method else ""
        super().__init__(f"{called}{status.code.name}: {status.details}")
        self._status = status
        self._initial_metadata = initial_metadata

    @property
    def status(self) -> Status:
        return self._status

    def code(self) -> Any:
        """The status code: `grpc.StatusCode`'s member where grpc is imported, otherwise `StatusCode`'s."""
        return public_code(self._status.code)

    def details(self) -> str:
        return self._status.details

    def initial_metadata(self) -> Metadata:
        return self._initial_metadata

    def trailing_metadata(self) -> Metadata:
        return self._status.trailing_metadata

    def debug_error_string(self) -> str:
        return str(self)

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> None:
        return None

    def cancel(self) -> bool:
        return False


class RpcCancelled(Exception):
    """`result` of a future whose call was cancelled on this side. Where grpc is imported, grpc's own as well."""


class RpcFutureTimeout(TimeoutError):
    """`result` of a future that is not done in time. Where grpc is imported, grpc's own as well."""


def public_code(code: StatusCode) -> Any:
    """The member that users compare with."""
    grpc_code = getattr(sys.modules.get("grpc"), "StatusCode", None)
    return code if grpc_code is None else grpc_code[code.name]


def rpc_error(
    status: Status, initial_metadata: Metadata = (), method: str = "", deadline: float | None = None
) -> RpcError:
    """The exception for a status, of a class that is grpc's too where there is one."""
    kind: type[RpcError] = _public(RpcError, "RpcError")
    error = kind(status, initial_metadata, method)
    error.deadline = deadline
    return error


def rpc_cancelled(message: str) -> Exception:
    return _public(RpcCancelled, "FutureCancelledError")(message)  # type: ignore[no-any-return]


def rpc_future_timeout(message: str) -> Exception:
    return _public(RpcFutureTimeout, "FutureTimeoutError")(message)  # type: ignore[no-any-return]


def _public(own: type[Exception], grpc_name: str) -> Any:
    theirs = getattr(sys.modules.get("grpc"), grpc_name, None)
    return own if theirs is None else _combined(own, theirs)  # type: ignore[arg-type]  # classes are hashable


@cache
def _combined(own: type[Exception], theirs: type[Exception]) -> type[Exception]:
    return type(own.__name__, (own, theirs), {"__module__": own.__module__, "__doc__": own.__doc__})
