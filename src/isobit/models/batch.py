"""A batch: new tokens of some sequences, laid one after the other. One sequence is a batch of one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isobit.errors import UsageError
from isobit.kernels.sequences import Sequences
from isobit.models.staging import send

_Numbers = NDArray[np.int64]
Wanted = Literal["all", "last"]
New = Sequence[int] | Tensor  # token ids, or embeddings [T, hidden]


@dataclass(frozen=True, eq=False)
class Overlay:
    """Embeddings that some tokens have instead of their own, as those that stand for an image.

    Attributes:
        rows: int64 ``[n]``: these tokens: places among the new tokens of a sequence; or, in a batch, among all.
        embeds: ``[n, hidden]``; of a batch on its device. No factor of the token embeddings touches them.
    """

    rows: Tensor
    embeds: Tensor


Positions = Sequence[Tensor | None] | None
Overlays = Sequence[Overlay | None] | None


class Span(NamedTuple):
    """One sequence of a batch, as the host knows it.

    Attributes:
        begin, end: its new tokens in the batch.
        length: its tokens, with the new ones.
        blocks: the blocks of the cache that hold it.
    """

    begin: int
    end: int
    length: int
    blocks: tuple[int, ...]

    @property
    def past(self) -> int:
        """Tokens in front of the new ones."""
        return self.length - (self.end - self.begin)


@dataclass(frozen=True)
class Batch:
    """What a model reads in one call; tensors are where the model is.

    Attributes:
        tokens: int64 ``[T]``: ids; None where there are embeddings.
        embeds: ``[T, hidden]``: instead of ids, e.g. from an image or audio encoder.
        positions: what rotary embeddings are told of each token: int64 ``[T]``, or ``[T, axes]`` where that differs
            between axes.
        sequences: which tokens belong to which sequence, and where a cache keeps them.
        spans: the same as the host knows it; empty in a recorded graph, whose lengths only the device knows.
        outputs: int64 ``[R]``: tokens whose logits are wanted; None for all.
        places: int64 ``[T]``: where each token stands in its sequence; None where that is its position.
        reach: all positions are below it; 0: they are below ``sequences.most``.
        overlay: embeddings that some of the tokens have instead of their own.
    """

    tokens: Tensor | None
    embeds: Tensor | None
    positions: Tensor
    sequences: Sequences
    spans: tuple[Span, ...]
    outputs: Tensor | None = None
    places: Tensor | None = None
    reach: int = 0
    overlay: Overlay | None = None

    @classmethod
    def of(
        cls,
        new: Sequence[New],
        *,
        wanted: Wanted | Sequence[range] = "all",
        device: torch.device | None = None,
        positions: Positions = None,
        overlays: Overlays = None,
    ) -> Batch:
        """Whole sequences, each from its first token on, for a model without a cache.

        Args:
            new: the tokens of each.
            wanted: whose logits: of all tokens, of each sequence's last, or of ranges of each sequence's tokens.
            device: where the model is; None for the CPU.
            positions, overlays: see :func:`lay_out`.

        Raises:
            UsageError: as :func:`lay_out`.
        """
        longest = max((_count(one) for one in new), default=0)
        blocks = [(number,) for number in range(len(new))]
        past = [0] * len(new)
        return lay_out(new, past, blocks, longest, wanted=wanted, device=device, positions=positions, overlays=overlays)


def lay_out(
    new: Sequence[New],
    past: Sequence[int],
    blocks: Sequence[Sequence[int]],
    block: int,
    *,
    wanted: Wanted | Sequence[range] = "all",
    device: torch.device | None = None,
    positions: Positions = None,
    overlays: Overlays = None,
) -> Batch:
    """New tokens of sequences that a cache holds the beginnings of.

    Args:
        new: those of each sequence.
        past: tokens in front of them.
        blocks: the blocks of the cache that hold each sequence; there is room in them for the new tokens.
        block: tokens of a block.
        wanted: whose logits: of all tokens, of each sequence's last, or of ranges of each sequence's new tokens.
        device: where the model is; None for the CPU.
        positions: what rotary embeddings are told of each sequence's new tokens, int64 ``[n]`` or ``[n, axes]`` on the
            CPU; None, of all or of one, for their places.
        overlays: embeddings that some of each sequence's new tokens have instead of their own; None for none.

    Raises:
        UsageError: there are no tokens, or ids and embeddings are mixed; positions or overlays are not of these tokens.
    """
    counts = [_count(one) for one in new]
    if not counts or 0 in counts:
        raise UsageError("there are no tokens to run the model on")
    starts = [0, *itertools.accumulate(counts)]
    lengths = [before + count for before, count in zip(past, counts, strict=True)]
    spans = tuple(
        Span(begin, begin + count, length, tuple(held))
        for begin, count, length, held in zip(starts, counts, lengths, blocks, strict=False)
    )
    pages = max(len(held) for held in blocks)
    table = np.array([[*held, *[held[-1]] * (pages - len(held))] for held in blocks], np.int32)
    places, slots = _places(np.array(past, np.int64), np.array(counts, np.int64), table, block)
    ids, embeds = _contents(new, device)
    rows = _outputs(spans, wanted)
    told = _told(positions, places, starts)
    overlay = _overlaid(overlays, starts, device)
    if overlay is not None and embeds is not None:
        raise UsageError("give either token ids, of which some have embeddings of their own, or embeddings of all")
    arrays: list[NDArray[Any]] = [np.array(starts, np.int32), np.array(lengths, np.int32), table, slots, places]
    arrays += [array for array in (ids, rows, told) if isinstance(array, np.ndarray)]
    sent = iter(send(device, *arrays))
    sequences = Sequences(next(sent), next(sent), next(sent), next(sent), block, max(counts), max(lengths), min(counts))
    placed = next(sent)
    tokens = next(sent) if isinstance(ids, np.ndarray) else ids
    outputs = None if rows is None else next(sent)
    if told is None:
        return Batch(tokens, embeds, placed, sequences, spans, outputs, overlay=overlay)
    reach = max(1 + int(told.max()), max(lengths))
    return Batch(tokens, embeds, next(sent), sequences, spans, outputs, placed, reach, overlay)


def _told(positions: Positions, places: _Numbers, starts: Sequence[int]) -> _Numbers | None:
    """Positions of all new tokens, ``[T]`` or ``[T, axes]``; None where all of them are places."""
    if positions is None or all(one is None for one in positions):
        return None
    given = [None if one is None else one.numpy() for one in positions]
    axes = {one.shape[1] for one in given if one is not None and one.ndim == 2}
    new = list(zip(given, itertools.pairwise(starts), strict=True))
    parts = [places[begin:end] if one is None else one for one, (begin, end) in new]
    sound = all(
        one.ndim in (1, 2) and len(one) == end - begin and one.dtype == np.int64 and one.min() >= 0
        for one, (_, (begin, end)) in zip(parts, new, strict=True)
    )
    if not sound or len(axes) > 1:
        raise UsageError("expected positions, int64 [n] or [n, axes] from 0 on, of each sequence's new tokens")
    if axes:
        wide = (len(places), axes.pop())
        return np.concatenate([np.broadcast_to(one.reshape(len(one), -1), (len(one), wide[1])) for one in parts])
    return np.concatenate(parts)


def _overlaid(overlays: Overlays, starts: Sequence[int], device: torch.device | None) -> Overlay | None:
    """The overlays of all sequences as one, on the device."""
    found = [] if overlays is None else list(zip(overlays, itertools.pairwise(starts), strict=True))
    given = [(one, begin, end - begin) for one, (begin, end) in found if one is not None and len(one.rows)]
    if not given:
        return None
    for one, _, count in given:
        wrong = one.embeds.dim() != 2 or len(one.rows) != len(one.embeds)
        if wrong or not 0 <= int(one.rows.min()) <= int(one.rows.max()) < count:
            raise UsageError(f"expected embeddings [n, hidden] and the rows of {count} new tokens that have them")
    rows = torch.cat([one.rows.to("cpu", torch.int64) + begin for one, begin, _ in given])
    embeds = [one.embeds if device is None else one.embeds.to(device) for one, _, _ in given]
    (sent,) = send(device, rows.numpy())
    return Overlay(sent, embeds[0] if len(embeds) == 1 else torch.cat(embeds))


def _places(past: _Numbers, counts: _Numbers, table: NDArray[np.int32], block: int) -> tuple[_Numbers, _Numbers]:
    """(positions, slots) of new tokens, one sequence after the other."""
    sequence = np.repeat(np.arange(len(counts)), counts)
    begins = np.cumsum(counts) - counts
    positions = np.arange(int(counts.sum())) + (past - begins)[sequence]
    return positions, table[sequence, positions // block].astype(np.int64) * block + positions % block


def _count(new: New) -> int:
    """Tokens of one sequence."""
    if isinstance(new, Tensor) and new.dim() not in (1, 2):
        raise UsageError("expected token ids [T], or embeddings [T, hidden], of each sequence")
    return len(new)


def _contents(new: Sequence[New], device: torch.device | None) -> tuple[_Numbers | Tensor | None, Tensor | None]:
    """(ids, None) or (None, embeddings) of all sequences, one behind the other; ids still to be sent as an array."""
    embedded = [isinstance(one, Tensor) and one.is_floating_point() for one in new]
    if any(embedded) and not all(embedded):
        raise UsageError("give either token ids or embeddings")
    if not any(isinstance(one, Tensor) for one in new):
        return np.fromiter(itertools.chain.from_iterable(new), np.int64, sum(map(len, new))), None
    parts = [one if isinstance(one, Tensor) else torch.from_numpy(np.array(one, np.int64)) for one in new]
    wanted = 2 if embedded[0] else 1
    if any(part.dim() != wanted for part in parts):
        raise UsageError("expected token ids [T], or embeddings [T, hidden], of each sequence")
    joined = parts[0] if len(parts) == 1 else torch.cat(parts)
    joined = joined if device is None else joined.to(device)
    return (None, joined) if embedded[0] else (joined.to(torch.int64), None)


def _outputs(spans: tuple[Span, ...], wanted: Wanted | Sequence[range]) -> _Numbers | None:
    if wanted == "all":
        return None
    if wanted == "last":
        if all(span.end - span.begin == 1 for span in spans):  # of one new token each: they are all
            return None
        return np.array([span.end - 1 for span in spans], np.int64)
    return np.array([span.begin + at for span, one in zip(spans, wanted, strict=True) for at in one], np.int64)
