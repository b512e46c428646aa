"""Answers: tokens as they come, the text they make, and where it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from isobit.engine.asked import Output
from isobit.engine.constraint import Constraint
from isobit.engine.detokenizer import DecodeStream
from isobit.engine.params import SamplingParams, TokenLogprob
from isobit.engine.request import FinishReason, made
from isobit.engine.stops import StopWatch
from isobit.engine.tokenizer import Tokenizer
from isobit.models.media import MediaPrompt


@dataclass(frozen=True)
class Usage:
    """Tokens read and written; ``cached_tokens`` of the prompt were read from the cache, where another left them."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """Seconds, measured on a monotonic clock; ``tokens_per_second`` is of decoding alone, None for fewer than 2 tokens.

    They are those of the steps that the request took part in, whoever else did. The first token comes out of the
    prefill; the decode time is that of the tokens after it.
    """

    prefill_seconds: float
    decode_seconds: float
    tokens_per_second: float | None


@dataclass(frozen=True)
class Completion:
    """A finished answer.

    Attributes:
        text: without special tokens and without the stop string.
        token_ids: every token that was chosen, also the end-of-text token or those of a stop string.
        finish_reason: "stop" at an end-of-text token or stop string, "length" at max_tokens or the context's end,
            "abort" when it was ended from outside.
        stop: what stopped it: the stop string, or the id of the end-of-text token; None for the others, and where
            nothing could follow by the answer's grammar.
        logprobs: one per token of ``token_ids`` if asked for.
        prompt_logprobs: one per token of the prompt if asked for; None for its first, which nothing comes before.
        notes: what a person should know about this prompt, as sentences.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop: str | int | None
    logprobs: tuple[TokenLogprob, ...] | None
    usage: Usage
    timings: Timings
    notes: tuple[str, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None


class Piece(NamedTuple):
    """A part of an answer as it comes: text that is final (often empty), and the tokens since the last piece.

    The last piece has ``completion``; the texts of all pieces concatenate to ``completion.text``. An answer that fails
    ends with a piece that has ``error`` instead. ``logprobs`` are those of ``token_ids`` if they were asked for.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    completion: Completion | None = None
    error: Exception | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


class _Pieces(dict[int, "Piece | None"]):
    """Pieces of one token each behind a text that is complete; None where its text depends on what stands there.

    They are the same in every answer, so each is made once.
    """

    def __init__(self, texts: Mapping[int, str | None]) -> None:
        self._texts = texts

    def __missing__(self, token: int) -> Piece | None:
        text = self._texts[token]
        piece = self[token] = made(Piece, (text, (token,), None, None, ())) if text else None
        return piece


def _pieces(tokenizer: Tokenizer, skip_special: bool) -> _Pieces:
    key = _Pieces, skip_special
    found: _Pieces | None = tokenizer.kept.get(key)
    return tokenizer.kept.setdefault(key, _Pieces(tokenizer.all_behind(skip_special))) if found is None else found


_NO_STOP = StopWatch(())  # remembers nothing: one for all


class Answer:
    """One answer while it is made.

    Args:
        prompt: token ids.
        params: what was asked for.
        most: tokens that it may have.
        notes: what a person should know about this prompt.
        scored: place of the first token of the prompt that is scored; None for none.
        constraint: what the answer may be made of.
        media: the prompt with what its tokens stand for; None where all are text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: list[int],
        params: SamplingParams,
        most: int,
        notes: tuple[str, ...] = (),
        scored: int | None = None,
        constraint: Constraint | None = None,
        media: MediaPrompt | None = None,
    ) -> None:
        self.constraint, self.media = constraint, media
        self.prompt, self.params, self.most, self.scored = prompt, params, most, scored
        self.stops = frozenset() if params.ignore_eos else tokenizer.eos_ids
        self.deliver: Callable[[tuple[int, Piece]], object] = lambda piece: None
        self.place = 0  # what whoever waits knows it by, which comes with each piece
        self.priority = 0
        self.whole = False  # whether only its end is waited for: then its text is made there
        self._said = 0  # tokens whose text is in _text; where the others have been given in pieces, that was theirs
        self._notes = notes
        self._tokenizer = tokenizer
        self._pieces = _pieces(tokenizer, not params.kept_special)
        self._watch, self._watches = StopWatch(params.stop) if params.stop else _NO_STOP, bool(params.stop)
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._scores: list[TokenLogprob] = []
        self._text: list[str] = []
        self._prefill = self._decode = 0.0
        self._cached = 0

    @cached_property
    def _decoder(self) -> DecodeStream:  # not before the first token: the first step waits for what is done here
        return DecodeStream(self._tokenizer, kept=frozenset(self.params.kept_special))

    @property
    def begun(self) -> bool:
        """Whether there is something of it."""
        return bool(self._tokens or self._scores)

    def push(self, output: Output) -> Piece:
        """One more token, or the error that ends the answer; the piece has a completion if it was the last."""
        if output.scores:
            self._scores += output.scores
        choice = output.choice
        if choice is None:  # the prompt's scores were all that was asked for
            self._prefill, self._cached = output.seconds, output.cached
            return self._last("", (), "length", None)
        if choice.error is not None:
            return Piece("", error=choice.error)
        token = choice.token
        self._say()
        self._tokens.append(token)
        self._said += 1
        logprobs = () if choice.logprob is None else (choice.logprob,)
        if logprobs:
            self._logprobs += logprobs
        if len(self._tokens) == 1:
            self._prefill, self._cached = output.seconds, output.cached
        else:
            self._decode += output.seconds
        at_eos = output.reason == "stop" and token in self.stops
        text = "" if at_eos else self._decoder.push(token)
        if self._watches and not at_eos:
            text = self._watch.push(text)
        if output.reason is None and self._watch.found is None:
            self._text.append(text)
            return made(Piece, (text, (token,), None, None, logprobs))
        stop = self._watch.found if self._watch.found is not None else token if at_eos else None
        whole = stop is not None or output.reason == "stop"
        last = self._last(text, (token,), "stop" if whole else "length", stop)
        return last._replace(logprobs=logprobs) if logprobs else last

    def go_on(self, token: int, seconds: float) -> Piece | None:
        """:meth:`push` of a token behind others, that neither ends the answer nor is scored; None if nobody asks."""
        self._decode += seconds
        if not self._watches:
            if self.whole:
                self._tokens.append(token)
                return None
            if self._decoder.complete:
                piece = self._pieces[token]
                if piece is not None:
                    self._tokens.append(token)
                    return piece
        self._say()
        self._tokens.append(token)
        self._said += 1
        text = self._decoder.push(token)
        if self._watches:
            text = self._watch.push(text)
            if self._watch.found is not None:
                return self._last(text, (token,), "stop", self._watch.found)
        self._text.append(text)
        return made(Piece, (text, (token,), None, None, ()))

    def _say(self) -> None:
        """Makes the text of tokens that have none yet."""
        if self._said < len(self._tokens):
            self._text.append(self._decoder.push_all(self._tokens[self._said :]))
            self._said = len(self._tokens)

    def abort(self) -> Piece:
        """It ends here, from outside."""
        return self._last("", (), "abort", None)

    def _last(self, text: str, tokens: tuple[int, ...], reason: FinishReason, stop: str | int | None) -> Piece:
        self._say()
        if self._watch.found is None:  # what was held back, up to a stop string in it
            text += self._watch.push(self._decoder.finish())
            text += self._watch.finish()
            if self._watch.found is not None and reason != "abort":
                reason, stop = "stop", self._watch.found
        self._text.append(text)
        return Piece(text, tokens, self._completion(reason, stop))

    def _completion(self, reason: FinishReason, stop: str | int | None) -> Completion:
        made = len(self._tokens)
        rate = (made - 1) / self._decode if made > 1 and self._decode > 0 else None
        return Completion(
            text="".join(self._text),
            token_ids=tuple(self._tokens),
            finish_reason=reason,
            stop=stop,
            logprobs=None if self.params.logprobs is None else tuple(self._logprobs),
            usage=Usage(len(self.prompt), made, self._cached),
            timings=Timings(self._prefill, self._decode, rate),
            notes=self._notes,
            prompt_logprobs=self._prompt_logprobs(),
        )

    def _prompt_logprobs(self) -> tuple[TokenLogprob | None, ...] | None:
        """None, too, for an answer that was ended before all of its prompt was read."""
        if self.scored is None or len(self._scores) < len(self.prompt) - self.scored:
            return None
        return (*[None] * self.scored, *self._scores)
