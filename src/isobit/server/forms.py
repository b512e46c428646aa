"""Forms with a file in them (``multipart/form-data``), read with limits and kept in memory."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from isobit.checkpoint.jsonfile import bare
from isobit.server.bodies import arriving
from isobit.server.errors import Refusal, wrong

MOST_FIELDS = 64
LONGEST = 64 << 10  # bytes of a field that is no file, or of the head of a part
ROOM = 1 << 20  # bytes of a body beside its file

# What is wrong with a form is told to whoever sent it.
logging.getLogger("python_multipart.multipart").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Form:
    """A form.

    Attributes:
        fields: what was sent, by name; of one that may be there several times all of it.
        file: bytes of the file; None if there is none.
    """

    fields: dict[str, str | list[str]]
    file: bytes | None


async def read_form(request: Request, file: str, most: int, silence: float, several: frozenset[str]) -> Form:
    """The form that a request carries.

    Args:
        request: it.
        file: name of the field with the file.
        most: bytes of the file.
        silence: seconds that the next part of the body may take.
        several: fields that may be there several times; ``name`` and ``name[]`` are one.

    Raises:
        Refusal: it is no form, or is broken, too large, has several files or a field twice, or does not come.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        raise Refusal(415, f"the body must be multipart/form-data, not {bare(kind.decode('latin-1')) or 'nothing'}")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "the body must not be compressed")
    if not options.get(b"boundary"):
        raise wrong("the form cannot be read: its content-type names no boundary", code="invalid_form")
    parts = _Parts(file)
    try:
        parser = MultipartParser(options[b"boundary"], parts.callbacks())  # type: ignore[arg-type]
        async for data in arriving(request, most + ROOM, silence):
            parser.write(data)
        parser.finalize()
    except FormParserError:
        raise wrong("the form cannot be read: its parts are not as RFC 7578 has them", code="invalid_form") from None
    if not parts.whole:
        raise wrong("the form breaks off before its last boundary", code="invalid_form")
    return _form(parts.found, file, most, several)


@dataclass
class _Part:
    name: str = ""
    is_file: bool = False
    head: dict[bytes, bytes] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)


class _Parts:
    """Collects the parts of a form while it comes."""

    def __init__(self, file: str) -> None:
        self.found: list[_Part] = []
        self.whole = False
        self._file = file
        self._name, self._value = b"", b""

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin, "on_part_data": self._data, "on_header_field": self._header_name,
            "on_header_value": self._header_value, "on_header_end": self._header_end,
            "on_headers_finished": self._headers_end, "on_end": self._end,
        }  # fmt: skip

    def _begin(self) -> None:
        if len(self.found) >= MOST_FIELDS:
            raise wrong(f"the form has more than {MOST_FIELDS} fields", code="invalid_form")
        self.found.append(_Part())

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]
        self._require_short(self._name)

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._require_short(self._value)

    def _header_end(self) -> None:
        self.found[-1].head[self._name.lower()] = self._value
        self._name, self._value = b"", b""

    def _headers_end(self) -> None:
        part = self.found[-1]
        _, options = parse_options_header(part.head.get(b"content-disposition", b""))
        if b"name" not in options:
            raise wrong("a part of the form has no name in its content-disposition", code="invalid_form")
        part.name, part.is_file = options[b"name"].decode("utf-8", "replace"), b"filename" in options
        if part.is_file and part.name != self._file:
            reason = f"a file is sent as {bare(part.name)}; it belongs into the field {self._file}"
            raise wrong(reason, self._file)
        if part.is_file and sum(one.is_file for one in self.found) > 1:
            raise wrong("the form has several files; one is read", self._file)

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self.found[-1]
        part.data += data[start:end]
        if not part.is_file:
            self._require_short(part.data)

    def _end(self) -> None:
        self.whole = True

    def _require_short(self, data: bytes | bytearray) -> None:
        if len(data) > LONGEST:
            name = bare(self.found[-1].name) or "the head of a part"
            raise wrong(f"{name} has more than {LONGEST:,} bytes", self.found[-1].name or None)


def _form(found: list[_Part], file: str, most: int, several: frozenset[str]) -> Form:
    data: bytes | None = None
    fields: dict[str, str | list[str]] = {}
    for part in found:
        if part.is_file:
            data = bytes(part.data)
            if len(data) > most:
                raise Refusal(413, f"{file} has {len(data):,} bytes; the limit is {most:,}", param=file)
            continue
        name = part.name.removesuffix("[]")
        try:
            value = part.data.decode("utf-8")
        except UnicodeDecodeError:
            raise wrong(f"{bare(name)} is not UTF-8 text", name) from None
        before = fields.get(name)
        if name in several:
            fields[name] = [*(before or []), value]
        elif before is not None:
            raise wrong(f"{bare(name)} is there twice", name)
        else:
            fields[name] = value
    return Form(fields, data)
