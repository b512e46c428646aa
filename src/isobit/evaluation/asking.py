"""What may be asked of an evaluation, checked before a model is looked for. No torch until it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from isobit import arguments
from isobit.errors import UsageError
from isobit.evaluation.tasks.results import TaskSetup

if TYPE_CHECKING:
    from isobit.evaluation.measure import Asked

LARGEST_SEED = 2**64 - 1
MOST_BATCH = 4096
MOST_SHOTS = 10_000


@dataclass(frozen=True)
class TextSettings:
    """How a text is measured, in the words of the interface: None is the default of each."""

    file: str | None
    ctx: int | None
    stride: int | None
    tokens: int | None
    seed: int
    command: str
    progress: Callable[[int, int], None] | None

    @classmethod
    def checked(
        cls, text: object, ctx: object, stride: object, tokens: object, seed: object, command: object, progress: object
    ) -> TextSettings:
        """Settings that can be used.

        Raises:
            UsageError: one cannot; names it.
        """
        file = arguments.optional_path("text", text)
        ctx = arguments.optional_whole("ctx", ctx, 0)
        if ctx in (0, 1):
            raise UsageError(f"ctx: a context of {ctx} tokens scores nothing; use at least 2")
        stride = arguments.optional_whole("stride", stride, 1)
        if not isinstance(tokens, bool) and isinstance(tokens, int) and tokens < 0:
            raise UsageError(f"tokens: {tokens} tokens to score; give at least 1, or 0 for the whole text")
        count = arguments.optional_whole("tokens", tokens, 0)
        seed = arguments.whole("seed", seed, 0, LARGEST_SEED)
        if not isinstance(command, str):
            raise UsageError(f"command must be text, not {command!r:.200}")
        if progress is not None and not callable(progress):
            raise UsageError(f"progress must be a function of (windows done, windows in all), not {progress!r}")
        return cls(file, ctx, stride, count, seed, command, progress)

    def asked(
        self, device: str, lowering: str | None, kv_cache: str = "auto", batch_invariant: bool | None = None
    ) -> Asked:
        """The same with the text read.

        Raises:
            UsageError: it cannot be used.
        """
        from isobit.evaluation import corpus
        from isobit.evaluation.measure import Asked
        from isobit.evaluation.windows import DEFAULT_TOKENS

        return Asked(
            corpus=corpus.heldout() if self.file is None else corpus.read_corpus(Path(self.file)),
            ctx=self.ctx,
            stride=self.stride,
            tokens=DEFAULT_TOKENS if self.tokens is None else self.tokens or None,
            seed=self.seed,
            device=device,
            lowering=lowering,
            command=self.command,
            progress=self.progress,
            kv_cache=kv_cache,
            batch_invariant=batch_invariant,
        )


def names(models: Sequence[str], short: Callable[[str], str]) -> list[str]:
    """What to call models: the last part of each name, or all of it where others are called so, too.

    Raises:
        UsageError: a model is named twice.
    """
    if len(set(models)) < len(models):
        twice = next(model for model in models if models.count(model) > 1)
        raise UsageError(f"{twice} is named twice; name each model once")
    last = [short(model) for model in models]
    return [name if last.count(name) == 1 else model for name, model in zip(last, models, strict=True)]


def gigabytes(name: str, value: object) -> int:
    """Bytes of a number of gigabytes that is not negative.

    Raises:
        UsageError: it is no such number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise UsageError(f"{name} must be a number of gigabytes that is not negative, not {value!r:.200}")
    return int(value * 1e9)


def task_setup(
    tasks: object,
    *,
    shots: object = None,
    limit: object = None,
    include: object = (),
    chat: object = False,
    system: object = None,
    add_bos: object = None,
    max_length: object = None,
    batch: object = 64,
    seed: int | None = None,
) -> TaskSetup:
    """Tasks, and how they are asked; arguments as :class:`isobit.evaluation.tasks.results.TaskSetup` has them.

    Raises:
        UsageError: one cannot be used; names it.
    """
    names = arguments.texts("tasks", tasks)
    if not names:
        raise UsageError("tasks: no task is named; give some, for example hellaswag,arc_easy")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float) or not limit > 0):
        raise UsageError(f"limit must be a number of items, or a share of them below 1, not {limit!r:.200}")
    if not isinstance(chat, bool):
        chat = arguments.text("chat", chat)
    if add_bos is not None:
        arguments.flag("add_bos", add_bos)
    if system is not None and not chat:
        raise UsageError("system: a system message needs conversations; ask for the chat template, too")
    return TaskSetup(
        tasks=tuple(dict.fromkeys(names)),
        shots=arguments.optional_whole("shots", shots, 0, MOST_SHOTS),
        limit=None if limit is None else float(limit),
        include=tuple(arguments.path("include", one) for one in arguments.texts("include", include)),
        chat=chat,
        system=arguments.optional_text("system", system),
        add_bos=add_bos,  # type: ignore[arg-type]
        max_length=arguments.optional_whole("max_length", max_length, 2),
        batch=arguments.whole("batch", batch, 1, MOST_BATCH),
        seed=seed,
    )
