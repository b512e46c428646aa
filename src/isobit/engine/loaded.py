"""A loaded model as the Python interface gives it. Nothing here imports torch before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from isobit import arguments
from isobit.errors import UsageError

if TYPE_CHECKING:
    from isobit.engine.answer import Completion
    from isobit.engine.generate import Generator
    from isobit.engine.grammar import Grammar


class Model:
    """A loaded model that generates text. Made by :func:`isobit.load`."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator

    def generate(self, prompt: str | list[int], *, constraint: Grammar | None = None, **sampling: Any) -> Completion:
        """Complete a prompt.

        Args:
            prompt: text, or token ids.
            constraint: which answers are right, like ``isobit.Grammar.json_schema(...)``; None for any.
            sampling: fields of :class:`isobit.engine.params.SamplingParams`, e.g. ``max_tokens=64, temperature=0.7``.
                Where nothing is given, what the model's generation_config.json asks for holds (:attr:`sampling`).

        Raises:
            UsageError: a prompt or an option that cannot be used.
        """
        return self._generator.generate(arguments.prompt(prompt), self._params(sampling), constraint)

    def stream(self, prompt: str | list[int], *, constraint: Grammar | None = None, **sampling: Any) -> Iterator[Any]:
        """Complete a prompt piece by piece; takes what :meth:`generate` takes."""
        return self._generator.stream(arguments.prompt(prompt), self._params(sampling), constraint)

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know who use this checkpoint: what of it isobit, or another engine, does otherwise."""
        return tuple(self._generator.notes)

    @property
    def sampling(self) -> dict[str, Any]:
        """What :meth:`generate` takes from the model's generation_config.json; empty for greedy decoding."""
        return dict(self._generator.tokenizer.defaults.choose({}).used)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, with ``encode`` and ``decode``."""
        return self._generator.tokenizer

    def _params(self, sampling: dict[str, Any]) -> Any:
        from isobit.engine.params import SamplingParams

        unknown = sorted(set(sampling) - set(SamplingParams.__dataclass_fields__))
        if unknown:
            known = ", ".join(SamplingParams.__dataclass_fields__)
            raise UsageError(f"unknown sampling option {', '.join(unknown)}; the options are: {known}")
        replace(SamplingParams(), **sampling)  # checks what was given before anything is made of it
        return SamplingParams(**self._generator.tokenizer.defaults.choose(sampling).settings)
