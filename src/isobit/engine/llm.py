"""A model and its tokenizer behind the engine: many prompts at once, as lists, streams, or step by step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from torch import Tensor

from isobit import arguments
from isobit.engine import conversation, scoring
from isobit.engine.answer import Answer, Completion, Piece
from isobit.engine.constraint import Constraint
from isobit.engine.embedding import POOLS, embedding
from isobit.engine.engine import SEQUENCES, Engine
from isobit.engine.flight import Runner
from isobit.engine.gallery import Gallery
from isobit.engine.gpu_runner import runner_for
from isobit.engine.grammar import Grammar
from isobit.engine.grammars import Grammars
from isobit.engine.params import SamplingParams, TokenLogprob
from isobit.engine.prepare import Model, Prompt, prepared, usual, window_of
from isobit.engine.runner import ModelRunner
from isobit.engine.tokenizer import Tokenizer
from isobit.engine.waiting import Waiting
from isobit.errors import UsageError
from isobit.models.media import MediaPrompt, Medium, Tower, require_taken
from isobit.shortage import shortages
from isobit.targets.prefill import prefill_chunk


class LLM(Waiting):
    """A model that answers many prompts at once.

    Any number of threads may ask; whoever waits for an answer takes the steps, which serve all of them.

    Args:
        model: loaded.
        tokenizer: its own.
        runner: what computes; None for the model as it is.
        sequences: prompts that take part in a step at most; the others wait.
        chunk: tokens that a step feeds at most; None for what suits the machine.
        wide: the same where so many are due, as a plan has it (:attr:`isobit.models.room.Room.piece`); None for what
            is usual for models of that width. With ``chunk`` it has no effect.
        cache_tokens: tokens that the key-value cache holds; None for as many as the prompts at hand need.
        prefix_cache: whether prompts that begin alike are computed once.
        tower: what encodes pictures, videos and sounds for the model; or why it takes none, as a sentence.

    Attributes:
        tower: what encodes media for the model; None where there is none.
        why_no_media: why there is none, and what to do.
        notes: what a person should know about this model and its tokenizer, as sentences.
        on_fault, on_recovery, broken: see :class:`isobit.engine.desk.Desk`.

    Raises:
        CapacityError: there is no memory for the cache.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        runner: Runner | None = None,
        *,
        sequences: int = SEQUENCES,
        chunk: int | None = None,
        wide: int | None = None,
        cache_tokens: int | None = None,
        prefix_cache: bool = True,
        tower: Tower | str = "this model reads text alone: leave out the images, videos and sounds",
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.tower: Tower | None = None if isinstance(tower, str) else tower
        self.why_no_media = tower if isinstance(tower, str) else ""
        encode = None if self.tower is None else self.tower.encode

        def new_engine() -> Engine:
            gallery = Gallery(encode)
            if isinstance(runner, ModelRunner):
                runner.gallery = gallery
            return Engine(
                runner if runner is not None else runner_for(model, sequences, gallery),
                tokens=chunk or prefill_chunk(model.place.target),
                wide=0 if chunk else wide or prefill_chunk(model.place.target, model.config.hidden_size),
                sequences=sequences,
                cache_tokens=cache_tokens,
                prefix_cache=prefix_cache,
                window=window_of(model.config),
                gallery=gallery,
            )

        super().__init__(new_engine)
        self.notes = (*model.notes, *tokenizer.notes)
        self._grammars = Grammars(tokenizer, int(model.config.vocab_size))

    @property
    def context_length(self) -> int:
        """The most tokens of prompt and answer together."""
        return int(self.model.config.max_context)

    def constraint(self, grammar: Grammar) -> Constraint:
        """The state of one answer under a grammar, for one prompt; a grammar that is new takes up to seconds.

        Raises:
            UsageError: the grammar is wrong, cannot be enforced, or costs too much; the message says why.
            Unsupported: grammars cannot be used with this model's tokenizer.
        """
        return self._grammars.constraint(grammar)

    def prepare(self) -> None:
        """Does before the first prompt what its steps would do when they come: on a GPU records them, in seconds.

        A cache that grows with what is asked for would move, and what is recorded does not: it takes what all prompts
        of a step may need now, up to half of the memory that is free.

        Raises:
            CapacityError: memory does not suffice.
        """
        self.engine.prepare(self.context_length)

    def media_prompt(
        self,
        template: str,
        messages: Sequence[Mapping[str, Any]],
        media: Sequence[Medium] = (),
        **options: Any,
    ) -> MediaPrompt:
        """The prompt of a conversation in which there are pictures, videos or sounds.

        What people write into messages is text, also where it looks like what stands for a medium.

        Args:
            template: the model's chat template.
            messages: their content is text, or a list of parts, of which ``{"type": "image"}``, ``{"type": "video"}``
                and ``{"type": "audio"}`` stand for the media, in their order.
            media: as many as there are such parts.
            options: as :func:`isobit.engine.chat.render` takes them.

        Raises:
            UsageError: the model takes no such media, there are more or fewer of them than parts, or one cannot be
                prepared; and as :func:`isobit.engine.conversation.encode`.
        """
        if self.tower is None:
            if media or conversation.parts_of(messages):
                raise UsageError(self.why_no_media)
            return MediaPrompt(tuple(conversation.encode(self.tokenizer, template, messages, **options)))
        require_taken(self.tower.kinds, [medium.kind for medium in media])
        arrange = partial(self.tower.messages, media=media)
        hidden = [self.tokenizer.token_text(id) for id in sorted(self.tower.placeholders)]
        ids = conversation.encode(self.tokenizer, template, messages, arrange, hidden, **options)
        return self.tower.prompt(ids, media)

    # Whole answers

    def generate(
        self,
        prompts: str | MediaPrompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int = 0,
        constraint: Grammar | Constraint | None = None,
    ) -> list[Completion]:
        """Complete prompts; the answers come in their order.

        Args:
            prompts: each a text, encoded with the special tokens the tokenizer adds, or token ids, used as they are, or
                what :meth:`media_prompt` makes. A single text or :class:`MediaPrompt` is a list of one.
            params: how, for all of them or for each; None for what the model's generation_config.json asks for.
            priority: a smaller number goes before other callers' prompts.
            constraint: which answers are right: a grammar for all of them, or the state of a single one.

        Raises:
            UsageError: a prompt is empty, no text, has impossible ids, or leaves no room for max_tokens; the grammar
                cannot be used.
            CapacityError: a prompt alone is longer than the context, or memory does not suffice.
            IsobitError: the model's logits are NaN.
        """
        listed: list[Prompt] = [prompts] if isinstance(prompts, str | MediaPrompt) else list(prompts)
        params = usual(self.tokenizer) if params is None else params
        each = [params] * len(listed) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(listed):
            raise UsageError(f"{len(listed)} prompts and {len(each)} SamplingParams: give one, or one for each prompt")
        if constraint is not None and not isinstance(constraint, Grammar) and len(listed) > 1:
            raise UsageError(f"a constraint is the state of one answer, and there are {len(listed)}: give a Grammar")
        pairs = zip(listed, each, strict=True)
        return self._completed([self._prepared(prompt, one, constraint) for prompt, one in pairs], priority)

    def score(
        self,
        sequences: Sequence[Sequence[int] | MediaPrompt],
        first_scored: int | Sequence[int] = 1,
        top: int = 0,
        *,
        priority: int = 0,
    ) -> list[tuple[TokenLogprob, ...]]:
        """How probable given tokens are, each behind all that come before it.

        What comes before the scored tokens is computed once for sequences that begin alike, if the prefix cache is on.

        Args:
            sequences: token ids; or prompts with media, whose own tokens are scored like any others.
            first_scored: place of the first token that is scored, 1 to the sequence's length; for all, or for each.
            top: also give so many of the most probable tokens in each one's place.
            priority: as in :meth:`generate`.

        Returns:
            For each sequence the scores of its tokens from ``first_scored`` on.

        Raises:
            UsageError: a sequence is empty or has impossible ids, or a place is outside of it.
            CapacityError: a sequence is longer than the context, or memory does not suffice.
            IsobitError: the model's logits are NaN.
        """
        places = [first_scored] * len(sequences) if isinstance(first_scored, int) else list(first_scored)
        if len(places) != len(sequences):
            raise UsageError(f"{len(sequences)} sequences and {len(places)} places: give one, or one for each sequence")
        params = SamplingParams(max_tokens=0, prompt_logprobs=top)
        answers = [self._prepared(one, params, scored=place) for one, place in zip(sequences, places, strict=True)]
        beginnings = [answer.prompt[:place] for answer, place in zip(answers, places, strict=True)]
        found: list[tuple[TokenLogprob, ...]] = [()] * len(answers)
        for wave in scoring.waves(beginnings, self.engine.scheduler.sequences):
            ended = self._completed([answers[at] for at in wave], priority)
            for at, one in zip(wave, ended, strict=True):
                found[at] = tuple(score for score in one.prompt_logprobs or () if score is not None)
        return found

    def embed(self, text: Prompt, pool: str = "last", *, normalized: bool = True) -> Tensor:
        """A text as a vector: what the model's last norm makes of its last token, or the mean of all.

        It is computed by itself, between two steps.

        Args:
            text: a text, encoded with the special tokens the tokenizer adds, or token ids.
            pool: "last" or "mean".
            normalized: to length 1.

        Returns:
            float32 ``[hidden]``.

        Raises:
            UsageError: the text is empty, or has impossible ids; there is no such way to pool.
            CapacityError: the text is longer than the context.
        """
        arguments.choice("pool", pool, POOLS)
        if isinstance(text, MediaPrompt):
            raise UsageError("a vector is made of text: a prompt with media has none")
        answer = self._prepared(text, SamplingParams(max_tokens=0, prompt_logprobs=0))
        with self._lock, shortages():
            return embedding(self.model, answer.prompt, pool, normalized=normalized)

    # One answer, piece by piece

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        constraint: Grammar | Constraint | None = None,
    ) -> Iterator[Piece]:
        """Complete a prompt piece by piece; takes and raises what :meth:`generate` does, before the first piece.

        The model works while a piece is asked for. Closing the iterator ends the answer.
        """
        return self._alone(self._prepared(prompt, params, constraint), priority)

    def stream_all(
        self, prompts: Sequence[Prompt], params: Sequence[SamplingParams | None], *, priority: int = 0
    ) -> Iterator[tuple[int, Piece]]:
        """Complete prompts beside each other: pieces as they come, each with the place of its prompt.

        The error of one ends all. Closing the iterator ends the answers.
        """
        return self._pieces([self._prepared(*one) for one in zip(prompts, params, strict=True)], priority)

    async def stream_async(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        constraint: Grammar | None = None,
    ) -> AsyncGenerator[Piece]:
        """The same for asyncio: a thread takes the steps while there is an answer to be made.

        Cancelling the task, or closing the iterator, ends the answer.
        """
        every = self.stream_all_async([prompt], [params], priority=priority, constraint=constraint)
        async with aclosing(every) as pieces:
            async for _, piece in pieces:
                yield piece

    async def stream_all_async(
        self,
        prompts: Sequence[Prompt],
        params: Sequence[SamplingParams | None],
        *,
        priority: int = 0,
        constraint: Grammar | None = None,
    ) -> AsyncGenerator[tuple[int, Piece]]:
        """Complete prompts beside each other, for asyncio: pieces as they come, each with the place of its prompt.

        The error of one ends all. Cancelling the task, or closing the iterator, ends the answers.
        """
        every = self.stream_batches_async(prompts, params, priority=priority, constraint=constraint)
        async with aclosing(every) as batches:
            async for batch in batches:
                for one in batch:
                    yield one

    async def stream_batches_async(
        self,
        prompts: Sequence[Prompt],
        params: Sequence[SamplingParams | None],
        *,
        priority: int = 0,
        constraint: Grammar | None = None,
    ) -> AsyncGenerator[list[tuple[int, Piece]]]:
        """The same, all pieces at once that have come while the reader was busy with those before."""
        rules: list[Constraint | None] = [None] * len(prompts)
        if constraint is not None:  # compiling takes longer than the event loop may wait
            rules = [await asyncio.to_thread(self.constraint, constraint) for _ in prompts]
        answers = [self._prepared(*one) for one in zip(prompts, params, rules, strict=True)]
        async with aclosing(self._pieces_async(answers, priority)) as batches:
            async for batch in batches:
                yield batch

    # Step by step

    def add(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        constraint: Grammar | Constraint | None = None,
    ) -> int:
        """A prompt arrives, to be answered in the steps to come; takes and raises what :meth:`generate` does.

        Returns:
            Its id, by which :meth:`step` gives its pieces.
        """
        answer = self._prepared(prompt, params, constraint)
        id = next(self._ids)
        return self._begin(answer, self._unread.append, id, priority, id)

    def step(self) -> list[tuple[int, Piece]]:
        """Take one step for all that are there.

        Returns:
            The pieces of answers that came by :meth:`add`, with their ids: of this step, and of those that others have
            taken since the last call.

        Raises:
            CapacityError: memory or threads do not suffice.
        """
        with self._lock:
            if self._busy:
                self._step()
            came = [*self._unread]
            self._unread.clear()
            return came

    @property
    def unfinished(self) -> bool:
        """Whether :meth:`step` has something to do, or to give."""
        return self._busy or bool(self._unread)

    def abort(self, id: int) -> Completion | None:
        """End an answer now; returns what there is of it, or None if it has ended already."""
        with self._lock:
            answer = self._answers.get(id)
            if answer is None:
                return None
            self.engine.abort(id)
            piece = answer.abort()
            self._give(id, piece)
            for pair in [pair for pair in self._unread if pair[0] == id]:  # all of it is in what is returned here
                self._unread.remove(pair)
            return piece.completion

    # What they share

    def _prepared(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        grammar: Grammar | Constraint | None = None,
        *,
        scored: int = 1,
    ) -> Answer:
        """An answer that has not begun (:func:`isobit.engine.prepare.prepared`)."""
        rule = self.constraint(grammar) if isinstance(grammar, Grammar) else grammar
        if isinstance(prompt, MediaPrompt) and prompt.placed and self.tower is None:
            raise UsageError(self.why_no_media)
        return prepared(self.model, self.tokenizer, prompt, params, scored, rule)
