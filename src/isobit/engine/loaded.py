"""A loaded model as the Python interface gives it. Nothing here imports torch before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from isobit import arguments
from isobit.errors import UsageError

if TYPE_CHECKING:
    from isobit.engine.answer import Completion
    from isobit.engine.generate import Generator
    from isobit.engine.grammar import Grammar
    from isobit.models.media import MediaPrompt, Medium

    Prompt = str | list[int] | MediaPrompt


class Model:
    """A loaded model that generates text. Made by :func:`isobit.load`."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator

    def generate(self, prompt: Prompt, *, constraint: Grammar | None = None, **sampling: Any) -> Completion:
        """Complete a prompt.

        Args:
            prompt: text, token ids, or what :meth:`media_prompt` makes.
            constraint: which answers are right, like ``isobit.Grammar.json_schema(...)``; None for any.
            sampling: fields of :class:`isobit.engine.params.SamplingParams`, e.g. ``max_tokens=64, temperature=0.7``.
                Where nothing is given, what the model's generation_config.json asks for holds (:attr:`sampling`).

        Raises:
            UsageError: a prompt or an option that cannot be used.
        """
        return self._generator.generate(self._prompt(prompt), self._params(sampling), constraint)

    def stream(self, prompt: Prompt, *, constraint: Grammar | None = None, **sampling: Any) -> Iterator[Any]:
        """Complete a prompt piece by piece; takes what :meth:`generate` takes."""
        return self._generator.stream(self._prompt(prompt), self._params(sampling), constraint)

    def media_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        media: Sequence[Medium],
        *,
        template: str | None = None,
        **options: Any,
    ) -> MediaPrompt:
        """The prompt of a conversation with pictures, videos or sounds in it (docs/media.md).

        Args:
            messages: their content is text, or a list of parts, of which ``{"type": "image"}``, ``{"type": "video"}``
                and ``{"type": "audio"}`` stand for the media, in their order.
            media: as many as there are such parts, from :func:`isobit.media.picture`, ``clip`` and ``sound``.
            template: a chat template; None for the model's own.
            options: of the template, e.g. ``enable_thinking=False``.

        Raises:
            UsageError: the model takes no such media, or has no template; there are more or fewer of them than parts,
                or one cannot be prepared.
            TemplateError: the template refuses the messages.
        """
        own = self._generator.tokenizer.chat_template if template is None else template
        if own is None:
            raise UsageError("this model has no chat template: give one (template=)")
        return self._generator.llm.media_prompt(own, messages, media, **options)

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

    @staticmethod
    def _prompt(prompt: Any) -> Any:
        from isobit.models.media import MediaPrompt

        return prompt if isinstance(prompt, MediaPrompt) else arguments.prompt(prompt)
