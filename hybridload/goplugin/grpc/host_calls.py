"""What a plugin's stubs for its host's objects need to know: the other end of a callback is the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hybridload.contract import Status, decode_exception
from hybridload.deadlines import limited
from hybridload.errors import CallTimeout, PluginClosed
from hybridload.goplugin.message_limits import explained

if TYPE_CHECKING:
    from hybridload.contract import Contract

_DETAILS = "grpc-status-details-bin"


class HostCalls:
    """The call context of an object that the host lent; see `contract_client.CallContext`."""

    def __init__(self, contract: Contract[Any], rpc_error: tuple[type[Exception], ...]) -> None:
        # A channel that was closed raises ValueError, as grpcio's does.
        self.rpc_error = (*rpc_error, ValueError)
        self._contract = contract

    def timeout(self) -> float | None:
        """No limit of the plugin's own, but what is left of the call that this is part of."""
        return limited(None, "host")

    def translate(self, error: Any, timeout: float | None, *, stream: bool = False) -> Exception:
        """The exception that the plugin's code sees."""
        if not hasattr(error, "code"):
            return PluginClosed("The host's object can no longer be called: the connection is closed.")
        code, message = error.code().name, error.details() or ""
        details = next((value for key, value in error.trailing_metadata() or () if key == _DETAILS), None)
        if details is None and code in ("UNAVAILABLE", "CANCELLED"):
            return PluginClosed(f"The host's object can no longer be called: {message}.")
        if details is None and code == "DEADLINE_EXCEEDED":
            return CallTimeout("The host's object did not answer in time.")
        if details is None and code == "RESOURCE_EXHAUSTED":
            message = explained(message, calls="plugin") or message
        return decode_exception(Status(code, message, details), self._contract, "host", stream=stream)
