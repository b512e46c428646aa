"""Whether the files that travel with a model can be used: asked before hours of work go into a copy of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from isobit.checkpoint.jsonfile import read_json
from isobit.checkpoint.text.fast import has_tokenizer, read_fast
from isobit.checkpoint.text.generation import read_defaults
from isobit.checkpoint.text.templates import chat_templates
from isobit.checkpoint.text.tokens import CONFIG, optional_json
from isobit.errors import CheckpointError

_VOCABULARIES = ("vocab.json", "tekken.json")  # of other tokenizers: isobit does not read them


def check_companions(folder: Path, companions: tuple[Path, ...]) -> list[str]:
    """Reads every file that travels with the weights as those will who use the copy.

    Args:
        folder: the model's folder.
        companions: the files that will be copied.

    Returns:
        what a person should know, as sentences.

    Raises:
        CheckpointError: files that cannot be used; all of them are listed.
    """
    problems: dict[str, None] = {}  # each once: several readers meet the same file

    def attempt(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except CheckpointError as error:
            problems[str(error)] = None
            return None

    notes: list[str] = []
    if has_tokenizer(folder):
        attempt(lambda: read_fast(folder))
    else:
        notes.append(
            "there is no tokenizer.json, so isobit can plan and load the copy but not generate, chat or measure with it"
        )
    attempt(lambda: read_defaults(folder))
    attempt(lambda: chat_templates(folder, optional_json(folder / CONFIG)))
    for path in companions:
        if path.suffix == ".json" and path.name not in _VOCABULARIES and path.name != "tokenizer.json":
            attempt(lambda path=path: read_json(path))  # type: ignore[misc]
    if not problems:
        return notes
    advice = "The copy would be of no use: mend or download them again"
    if len(problems) == 1:
        raise CheckpointError(f"{next(iter(problems))}. {advice}")
    listed = "\n".join(f"  - {problem}" for problem in problems)
    raise CheckpointError(f"files that travel with the model cannot be used:\n{listed}\n  {advice}")
