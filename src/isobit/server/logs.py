"""The server's log: a JSON object a line on standard error. Whatever clients send is escaped, so no line is theirs."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from typing import Any

from starlette.types import Scope

from isobit.errors import IsobitError, printable

_LONGEST = 400  # characters of a value


def line(happened: str, **values: Any) -> None:
    """Writes a line: what happened, and what there is to know."""
    shown = {name: _value(value) for name, value in values.items() if value is not None}
    text = json.dumps({"time": round(time.time(), 3), "event": happened, **shown}, ensure_ascii=True)
    print(text, file=sys.stderr, flush=True)


def note(scope: Scope, error: BaseException) -> None:
    """Writes down an error that a client met."""
    failure("error", error, request=scope.get("isobit.id"))


def failure(happened: str, error: BaseException, **values: Any) -> None:
    """Writes down an error; one that isobit did not raise on purpose with where it happened."""
    own = not isinstance(error, IsobitError)
    where = "".join(traceback.format_exception(error)[-6:])[-3000:] if own else None
    line(happened, **values, kind=type(error).__name__, message=str(error), where=where)


def _value(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value, 3000 if "\n" in value else _LONGEST)
    return value


class ToLines(logging.Handler):
    """What libraries log, as lines of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write it."""
        line("log", level=record.levelname.lower(), source=record.name, message=record.getMessage())
