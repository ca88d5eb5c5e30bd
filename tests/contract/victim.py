"""A host of which plugins make exceptions: what `test_hostile_exceptions` runs as a process, under a memory limit.

Standard input has the details of one status after the other, each behind its length; for each one a line of JSON comes
back: the type that was raised, and how many characters its traceback has, or what failed.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle
import resource
import sys
import traceback
from dataclasses import dataclass
from typing import Any, Protocol

from hybridload.contract import Contract, Status, decode_exception

MEMORY = 1 << 30


class Missing(LookupError):
    limit = 0

    def describe(self) -> str:
        return f"missing: {self}"


class Garbled(UnicodeDecodeError):
    pass


class Unparsed(LookupError, SyntaxError):
    pass


class Several(ExceptionGroup[Exception]):
    pass


@dataclass(frozen=True)
class Frozen(Exception):
    code: int = 0


class Shelf(Protocol):
    def get(self, key: str) -> str: ...


SHELF = Contract(Shelf, errors=[Missing, Garbled, Unparsed, Several, Frozen])


def use(error: BaseException) -> int:
    """What a host does with an exception that it caught."""
    str(error), repr(error)
    if not isinstance(error, Frozen):
        error.add_note("caught")
    error.with_traceback(None)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.Logger("victim")
    logger.addHandler(handler)
    try:
        raise error
    except Exception:
        logger.exception("it failed")
    return len(stream.getvalue()) + len("".join(traceback.format_exception(error)))


def holds_frozen(error: BaseException) -> bool:
    """Whether one is of the class that can be neither copied nor given notes, wherever it comes from."""
    if isinstance(error, BaseExceptionGroup):
        return any(map(holds_frozen, error.exceptions))
    return isinstance(error, Frozen)


def caught(details: bytes) -> dict[str, Any]:
    error = decode_exception(Status("UNKNOWN", "the message", details), SHELF, "plugin")
    size = use(error)
    if isinstance(error, Missing):
        error.describe()
    if holds_frozen(error):
        return {"type": type(error).__name__, "size": size}
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        if type(again) is not type(error):
            raise TypeError(f"the copy is a {type(again)}")
        use(again)
    return {"type": type(error).__name__, "size": size}


def main() -> None:
    logging.raiseExceptions = True
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    requests = sys.stdin.buffer
    while head := requests.read(8):
        details = requests.read(int.from_bytes(head, "big"))
        try:
            answer = caught(details)
        except BaseException as failure:
            answer = {"failure": f"{type(failure).__name__}: {failure}", "traceback": traceback.format_exc()[-2000:]}
        print(json.dumps(answer), flush=True)
