"""Exceptions as data: a gRPC status whose details hold what is needed to raise the exception again elsewhere.

What travels is a `google.rpc.Status` with one `hybridload.v1.RemoteException` in it: type name, message, scalar
arguments and attributes, notes, the traceback's text, cause, context and, for groups, members.

Rules:

- Nothing is imported by name, unpickled or evaluated. A received type name is only compared with classes that are
  already at hand: builtin exceptions, those bound in the interface's module (or in the interface itself), and those
  listed in ``Contract(errors=[...])``. Everything else is a `RemoteError`.
- SystemExit, KeyboardInterrupt, GeneratorExit and their like are never rebuilt, nor are hybridload's own errors, which
  would speak of another plugin.
- A class's own `__init__` is not called: the instance is made by the builtin class at its root, with the arguments that
  its `args` had, and then gets the attributes. So a constructor with other parameters can neither fail nor act twice.
- What is received may be made up, and CPython trusts what an exception holds: positions are not compared with the text
  that they point into, and carets are drawn as far as they say. So each root has its rule of what its arguments may be
  (`_SUITS`), an attribute may not hide what the class itself has, and size, depth and number have limits. What does not
  keep to them is a `RemoteError` with the text.
- An argument that is no scalar (str, bytes, int, float, bool, None, or a tuple of them) arrives as its `repr`; an
  attribute that is none stays behind.
- The chain of `__cause__` ends in a `RemoteError` that holds the remote traceback.
- The whole stays under `LIMIT` bytes as sent, or grpcio's client would report RESOURCE_EXHAUSTED instead: attributes go
  first, then chain and members, and then the middle of the traceback. Encoding never fails.
"""

from __future__ import annotations

import builtins
import functools
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hybridload.control_characters import escape_controls
from hybridload.errors import PluginError, RemoteError
from hybridload.frozen import frozen

if TYPE_CHECKING:
    from hybridload.contract.service import Contract

LIMIT = 6000
"""Bytes that message and details may take together in the trailers, where details are base64 and the message is
percent-encoded."""

MESSAGE_LIMIT = 1024
_TEXT_LIMIT = 400
_CHAIN_LIMIT = 8
_UNICODE_WINDOW = 64
_INT_BYTES = 64

_RECEIVED_LIMIT = 4 * LIMIT
"""Bytes of details that are looked at: other implementations may send more than we do, but not without end."""
_DEEPEST = 32
_MOST_EXCEPTIONS = 500
_FARTHEST_COLUMN = 10_000
_LAST_LINE = 2**31 - 1

CODES: Mapping[str, int] = MappingProxyType(
    {
        "OK": 0,
        "CANCELLED": 1,
        "UNKNOWN": 2,
        "INVALID_ARGUMENT": 3,
        "DEADLINE_EXCEEDED": 4,
        "NOT_FOUND": 5,
        "ALREADY_EXISTS": 6,
        "PERMISSION_DENIED": 7,
        "RESOURCE_EXHAUSTED": 8,
        "FAILED_PRECONDITION": 9,
        "ABORTED": 10,
        "OUT_OF_RANGE": 11,
        "UNIMPLEMENTED": 12,
        "INTERNAL": 13,
        "UNAVAILABLE": 14,
        "DATA_LOSS": 15,
        "UNAUTHENTICATED": 16,
    }
)
"""The gRPC status codes by name."""

_CODE_OF: tuple[tuple[type[BaseException], str], ...] = (
    (FileExistsError, "ALREADY_EXISTS"),
    (FileNotFoundError, "NOT_FOUND"),
    (PermissionError, "PERMISSION_DENIED"),
    (TimeoutError, "DEADLINE_EXCEEDED"),
    (NotImplementedError, "UNIMPLEMENTED"),
    (IndexError, "OUT_OF_RANGE"),
    (LookupError, "NOT_FOUND"),
    (OverflowError, "OUT_OF_RANGE"),
    (ValueError, "INVALID_ARGUMENT"),
    (TypeError, "INVALID_ARGUMENT"),
    (MemoryError, "RESOURCE_EXHAUSTED"),
    (GeneratorExit, "CANCELLED"),
    (KeyboardInterrupt, "CANCELLED"),
)
# Without NameError's name: Python's traceback asks the `self` of the frame that caught it for an attribute of that
# name, and suggests names of that frame, none of which has to do with the plugin.
_SLOTTED: Mapping[type[Exception], tuple[str, ...]] = {ImportError: ("name", "path"), AttributeError: ("name",)}
_OSERROR = ("errno", "strerror", "filename", "filename2")
_TYPE = "type.googleapis.com/hybridload.v1.RemoteException"


@frozen
class Status:
    """How a call failed, in gRPC's words.

    :param code: a status code's name, e.g. ``"NOT_FOUND"``.
    :param message: for humans.
    :param details: a serialized `google.rpc.Status` for the trailer ``grpc-status-details-bin``.
    """

    code: str
    message: str
    details: bytes | None = None


def encode_exception(exc: BaseException, contract: Contract[Any]) -> Status:
    """Turn an exception that an implementation raised into a status.

    :param exc: with its traceback, notes, cause and context.
    :param contract: of the interface whose method raised it.
    """
    code = status_code(exc)
    message = _cut(message_of(exc), MESSAGE_LIMIT)
    if isinstance(exc, RemoteError) and exc.code in CODES and exc.code != "OK":
        code = exc.code
    budget = LIMIT - _percent_encoded(message)
    try:
        details = _details(exc, CODES[code], message, budget * 3 // 4 - 8)
    except Exception:  # an exception whose own methods fail must not hide that the call failed
        details = None
    return Status(code, message, details)


def message_of(exc: BaseException) -> str:
    """What an exception says, or its type's name when it says nothing."""
    return _text(exc) or type(exc).__name__


def status_code(exc: BaseException) -> str:
    """The gRPC code that says most nearly what an exception says, for hosts in other languages."""
    return next((code for kind, code in _CODE_OF if isinstance(exc, kind)), "UNKNOWN")


def decode_exception(
    status: Status, contract: Contract[Any], plugin: str | None = None, *, stream: bool = False
) -> Exception:
    """Turn a status into the exception to raise for it.

    :param contract: of the interface whose method was called; it says which classes are known.
    :param plugin: the plugin's name, for messages.
    :param stream: whether the exception ends a stream; there StopIteration would pass for the stream's end, so it
        becomes a RuntimeError, as it does in Python's generators.
    :returns: the exception; its chain of causes ends in a `RemoteError`.
    """
    data = _received(status)
    code = status.code if status.code in CODES else "UNKNOWN"
    if data is None:
        return RemoteError(status.message, plugin=plugin, code=code)
    rebuilding = _Rebuilding(contract, plugin, code)
    remote = rebuilding.remote_error(data)
    rebuilt = rebuilding.rebuild(data)
    if rebuilt is None:
        remote.__cause__ = rebuilding.cause(data, None)
        return remote
    _set(rebuilt, "__cause__", rebuilding.cause(data, remote))
    if stream and isinstance(rebuilt, (StopIteration, StopAsyncIteration)):
        error = RuntimeError(f"the stream raised {type(rebuilt).__name__}")
        error.__cause__ = rebuilt
        return error
    return rebuilt


# Encoding


def _details(exc: BaseException, code: int, message: str, room: int) -> bytes:
    """Serialize with less and less beside the exception itself, until it fits into `room` bytes."""
    messages = _messages()
    text = _traceback_text(exc)
    for with_attributes, chain, trace in (
        (True, _CHAIN_LIMIT, 2500),
        (True, 3, 1500),
        (False, 1, 1000),
        (False, 0, 600),
        (False, 0, 0),
    ):
        for limit in (4 * _TEXT_LIMIT, 2 * _TEXT_LIMIT, _TEXT_LIMIT, 100):
            data = messages["RemoteException"]()
            _describe(data, exc, with_attributes, chain, limit)
            used = len(data.SerializeToString()) + len(message) + 200
            data.traceback = _cut_middle(text, min(max(trace, room - used), max(0, room - used)) if trace else 0)
            status = messages["Status"](code=code, message=message)
            detail = status.details.add(type_url=_TYPE)
            detail.value = data.SerializeToString()
            encoded: bytes = status.SerializeToString()
            if len(encoded) <= room and (not text or data.traceback or not trace):
                return encoded
    data = messages["RemoteException"](type_name=_cut(_type_name(type(exc)), 100), message=_cut(message, 100))
    status = messages["Status"](code=code, message=_cut(message, 100))
    status.details.add(type_url=_TYPE).value = data.SerializeToString()
    return status.SerializeToString()  # type: ignore[no-any-return]


def _describe(data: Any, exc: BaseException, with_attributes: bool, chain: int, limit: int) -> None:
    arguments = _arguments(exc)
    data.type_name = _cut(_type_name(type(exc)), 200)
    data.message = _cut(_text(exc), limit)
    if type(exc) is RemoteError:  # it speaks for an exception from elsewhere, which may be known at the next hop
        data.type_name = _cut(exc.type_name, 200)
        data.message = data.message.removeprefix(f"{data.type_name}: ")
        arguments = (data.message,)
    for argument in arguments:
        _set_value(data.args.add(), argument, limit)
    if with_attributes:
        for name, value in _attributes(exc):
            _set_value(data.attributes[_clean(name)], value, limit)
    notes = getattr(exc, "__notes__", None)
    for note in list(notes)[:8] if isinstance(notes, list) else ():
        data.notes.append(_cut(str(note), limit))
    if chain <= 0:
        return
    if exc.__cause__ is not None:
        _describe(data.cause, exc.__cause__, with_attributes, chain - 1, limit)
    elif exc.__context__ is not None and not exc.__suppress_context__:
        _describe(data.context, exc.__context__, with_attributes, chain - 1, limit)
    if isinstance(exc, BaseExceptionGroup):
        for member in exc.exceptions[:16]:
            _describe(data.members.add(), member, with_attributes, chain - 1, limit)


def _arguments(exc: BaseException) -> tuple[Any, ...]:
    if isinstance(exc, OSError) and exc.errno is not None:
        return tuple(getattr(exc, name) for name in _OSERROR)
    if isinstance(exc, (UnicodeDecodeError, UnicodeEncodeError, UnicodeTranslateError)):
        return _unicode_arguments(exc)
    if isinstance(exc, BaseExceptionGroup):
        return (exc.message,)
    return exc.args


def _unicode_arguments(exc: Any) -> tuple[Any, ...]:
    """The arguments with only the surroundings of the fault, as the text it is in may be of any size."""
    first = min(max(0, exc.start), len(exc.object))  # whoever made it may have said anything
    start = max(0, first - _UNICODE_WINDOW)
    end = max(first, min(len(exc.object), exc.end, first + _UNICODE_WINDOW))
    around = (exc.object[start : end + _UNICODE_WINDOW], first - start, end - start, exc.reason)
    return around if isinstance(exc, UnicodeTranslateError) else (exc.encoding, *around)


def _attributes(exc: BaseException) -> Iterator[tuple[str, Any]]:
    slotted = [name for kind, names in _SLOTTED.items() if isinstance(exc, kind) for name in names]
    found = {name: getattr(exc, name, None) for name in slotted} | getattr(exc, "__dict__", {})
    for name, value in list(found.items())[:32]:
        if isinstance(name, str) and name != "__notes__" and value is not None and _is_scalar(value):
            yield name, value


def _is_scalar(value: Any) -> bool:
    if isinstance(value, tuple):
        return type(value) is tuple and all(_is_scalar(item) for item in value)
    return value is None or isinstance(value, (str, bytes, bool, float)) or _is_small_int(value)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_small_int(value: Any) -> bool:
    return isinstance(value, int) and value.bit_length() < _INT_BYTES * 8


def _set_value(data: Any, value: Any, limit: int) -> None:
    if value is None:
        data.none = True
    elif isinstance(value, bool):
        data.flag = value
    elif _is_small_int(value):
        data.integer = int(value).to_bytes(value.bit_length() // 8 + 1, "big", signed=True)
    elif isinstance(value, float):
        data.number = value
    elif isinstance(value, bytes):
        data.data = value[:limit]
    elif isinstance(value, str):
        if value.isascii() or _is_utf8(value):
            data.text = _cut(value, limit)
        else:
            data.surrogates = value[: limit // 4].encode("utf-8", "surrogatepass")
    elif _is_scalar(value):
        data.items.SetInParent()
        for item in value[:16]:
            _set_value(data.items.values.add(), item, limit)
    else:
        data.text = _cut(_repr(value), limit)


def _traceback_text(exc: BaseException) -> str:
    try:
        return _clean("".join(traceback.format_exception(exc, chain=True)))
    except Exception:
        return ""


def _type_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _text(exc: BaseException) -> str:
    try:
        return _clean(str(exc))
    except Exception as error:
        return f"<str() of this {type(exc).__name__} raised {type(error).__name__}>"


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception:
        return f"<{type(value).__qualname__}>"


def _clean(text: str) -> str:
    """A text that UTF-8 can hold."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _cut(text: str, limit: int) -> str:
    text = _clean(text)
    if len(text.encode()) <= limit:
        return text
    return text.encode()[: limit - 3].decode("utf-8", "ignore") + "…"


def _cut_middle(text: str, limit: int) -> str:
    """A text without its middle: the first lines say where a call came from, the last ones what went wrong."""
    data = text.encode()
    if len(data) <= limit:
        return text
    mark = "\n  […]\n"
    rest = limit - len(mark.encode())
    if rest < 40:
        return ""
    head, tail = data[: rest // 3], data[-(rest - rest // 3) :]
    return head.decode("utf-8", "ignore") + mark + tail.decode("utf-8", "ignore")


def _percent_encoded(message: str) -> int:
    return sum(1 if 0x20 <= byte <= 0x7E and byte != 0x25 else 3 for byte in message.encode())


# Decoding


def _received(status: Status) -> Any | None:
    if not status.details or len(status.details) > _RECEIVED_LIMIT:
        return None
    messages = _messages()
    try:
        details = messages["Status"].FromString(status.details).details
        found = next((detail for detail in details if detail.type_url == _TYPE), None)
        data = None if found is None else messages["RemoteException"].FromString(found.value)
    except Exception:  # the trailer comes from anyone; without details there is still the status itself
        return None
    return data if data is not None and _within_limits(data) else None


def _within_limits(data: Any) -> bool:
    """Whether chains and groups are so few and so shallow that formatting them neither recurses nor grows too far."""
    rest, count = [(data, 1)], 1
    while rest:
        each, depth = rest.pop()
        inner = [*each.members, *(getattr(each, link) for link in ("cause", "context") if each.HasField(link))]
        count += len(inner)
        if depth > _DEEPEST or count > _MOST_EXCEPTIONS:
            return False
        rest += [(one, depth + 1) for one in inner]
    return True


class _Rebuilding:
    """Makes exceptions of received data, with the classes that a contract knows."""

    def __init__(self, contract: Contract[Any], plugin: str | None, code: str) -> None:
        self._contract = contract
        self._plugin = plugin
        self._code = code

    def remote_error(self, data: Any) -> RemoteError:
        message = ": ".join(filter(None, (data.type_name, data.message)))
        error = RemoteError(
            message,
            plugin=self._plugin,
            type_name=data.type_name,
            remote_traceback=data.traceback,
            code=self._code,
        )
        for note in () if data.traceback else data.notes:  # the traceback's text has them, too
            error.add_note(escape_controls(note))
        if data.traceback:
            error.add_note(f"Remote traceback:\n{error.remote_traceback.rstrip()}")
        return error

    def cause(self, data: Any, end: RemoteError | None) -> BaseException | None:
        """The rebuilt cause of an exception, and so on; the last of the chain is `end`."""
        if not data.HasField("cause"):
            return end
        cause = self.rebuild(data.cause) or self.remote_error(data.cause)
        _set(cause, "__cause__", self.cause(data.cause, end))
        return cause

    def rebuild(self, data: Any) -> Exception | None:
        """An exception of the type that was sent, or `None` when that type is not known here."""
        kind = self._class_named(data.type_name)
        if kind is None:
            return None
        try:
            error = self._make(kind, data)
        except Exception:  # arguments from elsewhere need not suit the class: then it is a RemoteError
            return None
        if data.notes:
            _set(error, "__notes__", list(data.notes))
        for name, value in data.attributes.items():
            try:
                _set_attribute(error, name, _value(value))
            except ValueError:  # the exception is worth more than its attribute
                continue
        if data.HasField("context"):
            _set(error, "__context__", self.rebuild(data.context) or self.remote_error(data.context))
        return error

    def _make(self, kind: type[Exception], data: Any) -> Exception:
        arguments = [_value(argument) for argument in data.args]
        root = _root(kind)
        if issubclass(root, BaseExceptionGroup):
            members = [self.rebuild(member) or self.remote_error(member) for member in data.members]
            arguments = [arguments[0] if arguments else data.message, members or [self.remote_error(data)]]
        if not _suits(root, arguments):
            raise ValueError(f"{root} is not to be trusted with these arguments")
        if issubclass(root, OSError) and len(arguments) == len(_OSERROR):
            number, text, filename, filename2 = arguments
            arguments = [number, text, *((filename, None, filename2) if filename is not None else ())]
        error: Exception = root.__new__(kind, *arguments)
        root.__init__(error, *arguments)  # type: ignore[misc]
        if type(error) is not kind:
            raise TypeError(f"{kind} made a {type(error)}")
        return error

    def _class_named(self, type_name: str) -> type[Exception] | None:
        found = vars(builtins).get(type_name)
        if _is_exception(found):
            return found
        for kind in self._contract.errors:
            if _type_name(kind) == type_name:
                return kind
        for kind in _bound_exceptions(self._contract.interface):
            if _type_name(kind) == type_name:
                return kind
        short = type_name.rpartition(".")[2]
        alike = [kind for kind in self._contract.errors if kind.__name__ == short]
        # A listed class may live in another module over there (`__main__`, for one).
        return alike[0] if len(alike) == 1 and type_name.startswith("__main__.") else None


def _bound_exceptions(interface: type) -> Iterator[type[Exception]]:
    for base in interface.__mro__:
        if base.__module__ in ("builtins", "typing", "abc"):
            continue
        for namespace in (vars(base), vars(sys.modules.get(base.__module__, builtins))):
            for value in list(namespace.values()):
                if _is_exception(value) and not (issubclass(value, PluginError) and _is_own(value)):
                    yield value


def _is_own(kind: type) -> bool:
    return kind.__module__ == PluginError.__module__


def _is_exception(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)


def _root(kind: type) -> type:
    """The builtin class whose layout a class has, which is the one to make its instances."""
    while kind.__module__ != "builtins":
        assert kind.__base__ is not None
        kind = kind.__base__
    return kind


def _suits_unicode(arguments: Sequence[Any], *kinds: type) -> bool:
    """CPython reads the text at these positions without a look at its length."""
    if [type(argument) for argument in arguments] != [*kinds, int, int, str]:
        return False
    text, start, end = arguments[-4:-1]
    return bool(0 <= start <= end <= len(text))


def _suits_syntax(arguments: Sequence[Any]) -> bool:
    """The place of a syntax error is computed with, and drawn as far as it says."""
    if len(arguments) != 2:
        return True
    place = arguments[1]
    if not isinstance(place, tuple) or len(place) not in (4, 6):
        return False
    filename, line, column, text, *end = place
    lines, columns = (line, *end[:1]), (column, *end[1:])
    return (
        all(each is None or type(each) is str for each in (filename, text))
        and all(each is None or (type(each) is int and -1 <= each <= _LAST_LINE) for each in lines)
        and all(each is None or (type(each) is int and -1 <= each <= _FARTHEST_COLUMN) for each in columns)
    )


def _suits_os(arguments: Sequence[Any]) -> bool:
    """Two to five arguments have a meaning each; our own form has four."""
    if len(arguments) < 2 or len(arguments) > 5:
        return True
    names = arguments[2:]
    return (
        len(arguments) in (2, len(_OSERROR))
        and (not isinstance(arguments[0], int) or -(2**31) <= arguments[0] < 2**31)
        and all(each is None or isinstance(each, (str, bytes)) or _is_descriptor(each) for each in names)
    )


def _is_descriptor(value: Any) -> bool:
    return type(value) is int and -(2**31) <= value < 2**31


_SUITS: tuple[tuple[type[BaseException], Callable[[Sequence[Any]], bool]], ...] = (
    (UnicodeDecodeError, lambda arguments: _suits_unicode(arguments, str, bytes)),
    (UnicodeEncodeError, lambda arguments: _suits_unicode(arguments, str, str)),
    (UnicodeTranslateError, lambda arguments: _suits_unicode(arguments, str)),
    (SyntaxError, _suits_syntax),
    (OSError, _suits_os),
    (BaseExceptionGroup, lambda arguments: type(arguments[0]) is str),
    (StopIteration, lambda arguments: True),
    (ImportError, lambda arguments: True),
    (NameError, lambda arguments: True),
    (AttributeError, lambda arguments: True),
)
"""Builtin classes with more in them than `args`, and whether CPython can be trusted with arguments for them. Whatever
else has a layout of its own, in a Python to come, is not rebuilt."""


def _suits(root: type, arguments: Sequence[Any]) -> bool:
    for kind, suits in _SUITS:
        if issubclass(root, kind):
            return suits(arguments)
    return root.__basicsize__ == BaseException.__basicsize__


def _set(error: BaseException, name: str, value: Any) -> None:
    """Set what every exception has, whatever the class thinks of it: a frozen dataclass would refuse."""
    BaseException.__setattr__(error, name, value)


def _set_attribute(error: Exception, name: str, value: Any) -> None:
    if any(name in names for kind, names in _SLOTTED.items() if isinstance(error, kind)):
        if type(value) is str and _is_utf8(value):  # Python 3.13 looks for names like it, and fails where UTF-8 does
            _set(error, name, value)
    elif not (name.startswith("__") and name.endswith("__")) and _is_free(type(error), name):
        error.__dict__[name] = value


def _is_free(kind: type, name: str) -> bool:
    """Whether an attribute of that name hides nothing of the class but a plain default.

    A method would no longer be callable; and what lies in the instance under a descriptor's name is out of sight until
    the exception is copied or unpickled, which sets it for good: the position of a `UnicodeDecodeError`, say.
    """
    found = next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)
    return not (callable(found) or hasattr(type(found), "__get__"))


def _value(data: Any, depth: int = 0) -> Any:
    kind = data.WhichOneof("kind")
    if kind is None or kind == "none":
        return None
    if kind == "integer":
        return int.from_bytes(data.integer[:_INT_BYTES], "big", signed=True)
    if kind == "surrogates":
        return data.surrogates.decode("utf-8", "surrogatepass")
    if kind == "items":
        if depth > _DEEPEST:
            raise ValueError("nested too deeply")
        return tuple(_value(item, depth + 1) for item in data.items.values)
    return getattr(data, kind)


@functools.cache
def _messages() -> dict[str, Any]:
    """The message classes, made when the first exception travels."""
    from hybridload.contract.protobuf import REPEATED, FieldType, MessageData, class_of, file_data, new_pool

    package = ".hybridload.v1."
    detail = MessageData("Detail")  # laid out as google.protobuf.Any
    detail.field("type_url", 1, FieldType.STRING)
    detail.field("value", 2, FieldType.BYTES)
    status = MessageData("Status")
    status.field("code", 1, FieldType.INT32)
    status.field("message", 2, FieldType.STRING)
    status.field("details", 3, FieldType.MESSAGE, ".google.rpc.Detail", label=REPEATED)

    value = MessageData("Value")
    kind = value.oneof("kind")
    value.field("none", 1, FieldType.BOOL, oneof=kind)
    value.field("flag", 2, FieldType.BOOL, oneof=kind)
    value.field("integer", 3, FieldType.BYTES, oneof=kind)
    value.field("number", 4, FieldType.DOUBLE, oneof=kind)
    value.field("text", 5, FieldType.STRING, oneof=kind)
    value.field("data", 6, FieldType.BYTES, oneof=kind)
    value.field("items", 7, FieldType.MESSAGE, f"{package}Values", oneof=kind)
    value.field("surrogates", 8, FieldType.BYTES, oneof=kind)
    values = MessageData("Values")
    values.field("values", 1, FieldType.MESSAGE, f"{package}Value", label=REPEATED)

    remote = MessageData("RemoteException")
    remote.field("type_name", 1, FieldType.STRING)
    remote.field("message", 2, FieldType.STRING)
    remote.field("args", 3, FieldType.MESSAGE, f"{package}Value", label=REPEATED)
    entry = remote.entry("AttributesEntry")
    entry.field("key", 1, FieldType.STRING)
    entry.field("value", 2, FieldType.MESSAGE, f"{package}Value")
    remote.field("attributes", 4, FieldType.MESSAGE, f"{package}RemoteException.AttributesEntry", label=REPEATED)
    remote.field("notes", 5, FieldType.STRING, label=REPEATED)
    remote.field("traceback", 6, FieldType.STRING)
    remote.field("cause", 7, FieldType.MESSAGE, f"{package}RemoteException")
    remote.field("context", 8, FieldType.MESSAGE, f"{package}RemoteException")
    remote.field("members", 9, FieldType.MESSAGE, f"{package}RemoteException", label=REPEATED)

    pool = new_pool()
    pool.AddSerializedFile(file_data("google/rpc/status.proto", "google.rpc", [detail, status]))
    pool.AddSerializedFile(file_data("hybridload/v1/exception.proto", "hybridload.v1", [value, values, remote]))
    find: Callable[[str], Any] = pool.FindMessageTypeByName
    return {
        "Status": class_of(find("google.rpc.Status")),
        "RemoteException": class_of(find("hybridload.v1.RemoteException")),
    }
