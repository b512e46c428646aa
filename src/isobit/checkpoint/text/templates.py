"""The chat templates of a folder by name. They are read here and run elsewhere (:mod:`isobit.engine.chat`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isobit.checkpoint.files import is_there, read_file
from isobit.checkpoint.jsonfile import read_json
from isobit.errors import CheckpointError

LARGEST_TEMPLATE = 16 << 20  # bytes


def chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name; the usual one is ``default``.

    Files win over tokenizer_config.json (``config``), where a template is a string or a list of named ones.

    Raises:
        CheckpointError: a template cannot be read; names the file.
    """
    files = {"default": folder / "chat_template.jinja"}
    files.update({path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))})
    found = {name: read_template(path) for name, path in files.items() if is_there(path)}
    if found:
        return found
    where = folder / "tokenizer_config.json"
    value = config.get("chat_template")
    if value is None and is_there(legacy := folder / "chat_template.json"):
        where, value = legacy, read_json(legacy).get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {entry.get("name"): entry.get("template") for entry in value}
    if isinstance(value, dict) and all(isinstance(part, str) for entry in value.items() for part in entry):
        return dict(value)
    raise CheckpointError("chat_template must be a text or a list of {name, template}", file=where)


def read_template(path: Path) -> str:
    """A chat template from a file.

    Raises:
        CheckpointError: it is no regular file, too large, or not UTF-8 text.
    """
    try:
        return read_file(path, LARGEST_TEMPLATE).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        raise CheckpointError("this chat template is not UTF-8 text", file=path) from None
