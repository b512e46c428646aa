"""How attention of one new token, with what stands before it, is compiled and spread over a machine. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from isobit.kernels.gpu import layer_tiles as tiles
from isobit.kernels.gpu.layer_tiles import AttentionShape, RopeShape
from isobit.kernels.gpu.tiles import Config, Constant
from isobit.targets.spec import Target

# Keys of a tile, for four warps, or eight where a thread has few registers. Bits depend on both, so they are the same
# for any number of sequences. Whole steps of a 7B in fp8 on an H200 (dev/LOG.md, 2026-11-28), behind 192 and 4032
# tokens, and 64 behind 72 and 512: 2.36, 2.77, 3.96 and 7.22 ms; with eight warps 2.35, 2.98, 4.54 and 8.01; with tiles
# of 32 2.45, 2.82, 3.87 and 7.43. Keys of more than 256 bytes come in half as many, one tile ahead: there are no
# registers for more.
_KEYS, _WIDE_KEYS, _WIDE = 64, 32, 256
# Programs of a long sequence, two for each of an H200's 132 multiprocessors: one more would wait until all others have
# ended. Steps of eight layers of a 7B behind 4040 tokens took 598 us with 512 programs, and 540 with 256 whose loads
# are asked for two tiles ahead (dev/LOG.md, 2026-11-29). Bits depend on it, so no machine has another number.
_PROGRAMS = 256
PART = 256  # keys of a part at least
# Heads times tokens of a sequence alone up to which each of several heads reads the keys that they share for itself. An
# 8B (32 heads) in int4 on an H200, ms a step behind 64, 512 and 4032 tokens: 1.81, 1.96, 2.14; in kernels apart 1.89,
# 1.98, 2.16. Beyond: not measured.
ALONE = 32 * 4096
_ROOMY = 2  # programs of a multiprocessor up to which each may have registers for two tiles


@dataclass(frozen=True)
class OneShape:
    """What a compiled attention of one new token depends on.

    Attributes:
        attention, rope: what it is, and what stands before it.
        ahead: tiles that a program asks for before the kernel in front has ended.
        split: whether a sequence may have more than one part. Neither changes a bit of the result.
    """

    attention: AttentionShape
    rope: RopeShape
    ahead: int = 1
    split: bool = False


def fuses(heads: int, kv_heads: int, alone: int = 0) -> bool:
    """Whether one new token is rotated, stored and attended from in one kernel.

    Where query heads share keys, matrix units are worth more: four of them took longer this way (8B in int4 on an H200,
    64 sequences of 512: 5.4 to 6.2 ms a step and not 4.9). But not for one short sequence alone, whose step is a kernel
    shorter then.

    Args:
        alone: tokens at most of the only sequence of a step; 0 where there are more, or more new tokens.
    """
    return heads == kv_heads or 0 < heads * alone <= ALONE


def spread(attention: AttentionShape, rope: RopeShape, parts: int, sequences: int, multiprocessors: int) -> OneShape:
    """How a step is spread over a machine.

    Args:
        parts: of a sequence at most.
        sequences: how many.
        multiprocessors: of the machine.
    """
    few = parts * sequences * attention.heads <= _ROOMY * multiprocessors
    return OneShape(attention, rope, 2 if few else 1, parts > 1)


def most_parts(heads: int) -> int:
    """Parts of a sequence at most, a power of two: with all heads about two programs for each multiprocessor."""
    return max(1, min(tiles.MOST_PARTS, tiles.power_of_two(-(-_PROGRAMS // heads))))


def _is_packed(shape: AttentionShape) -> bool:
    """Whether a head's keys are whole words."""
    return shape.dim * (1 if shape.element else shape.key_bytes // shape.width) % 4 == 0


def attention_one(shape: OneShape, target: Target) -> Config:
    """Configuration of ``attention_one``."""
    plain = shape.attention
    few, rope = tiles.attention_few(plain, target), tiles.rope_append(shape.rope, target)
    warps = tiles.warps_of(target)
    lanes = target.backend[2] if target.backend is not None else 32
    bytes_of_key = plain.width if plain.element else plain.key_bytes
    keys, ahead = (_KEYS, shape.ahead) if bytes_of_key <= _WIDE else (_WIDE_KEYS, 1)
    slots = min(keys, max(1, 16 * lanes * warps // bytes_of_key))  # rows that all threads read with one load each
    shared = (
        "HEADS", "KV_HEADS", "DIM", "WIDTH", "ONE", "WINDOW", "CHUNK", "SINKS", "SOFTCAP", "ELEMENT",
        "ASM", "OVERLAP",
    )  # fmt: skip
    constants: dict[str, Constant] = {name: few.constexprs[name] for name in shared} | {
        "ROWS": max(1, lanes * warps // plain.width) if plain.element else slots, "SLOTS": slots,
        "DEEP": keys // slots, "AHEAD": ahead, "PACKED": _is_packed(plain), "SPLIT": shape.split,
        "NORM": shape.rope.norm, "BLOCK": 0 if plain.columns == 1 else plain.block, "MOST": most_parts(plain.heads),
        "PART": PART,
    }  # fmt: skip
    types = {**few.signature, **rope.signature, "counters": "*i32"}
    del types["rotated"], types["queries"]
    return Config(types, constants, warps, 1, divisible=rope.divisible)
