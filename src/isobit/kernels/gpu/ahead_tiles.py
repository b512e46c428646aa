"""Which attentions of prompts run on ``triton/attention_ahead.py``, and how it is compiled. Pure."""

from __future__ import annotations

from dataclasses import replace

from isobit.kernels.gpu.layer_tiles import AttentionShape, attention_many
from isobit.kernels.gpu.tiles import Config
from isobit.targets.spec import Target

_QUERIES, _KEYS, _WARPS = 64, 64, 4  # of a program, of which a multiprocessor has two
_AHEAD = 2  # tiles that copies run ahead: with three of keys and of values, two programs fill the shared memory
_WIDTHS = (64, 128)  # of heads, whose sums of a tile fit the registers of a warp group beside all else


def misfit_ahead(shape: AttentionShape, target: Target) -> str | None:
    """Why an attention runs on ``attention_many``, or None."""
    unit = target.unit(shape.dtype, shape.dtype)
    if unit is None or unit.instruction != "HGMMA":
        return f"{target.name} has no matrix unit that a warp group leaves to itself"
    if shape.dtype not in ("bfloat16", "float16") or shape.element:
        return "keys and values are not multiplied as they are stored"
    if shape.dim not in _WIDTHS:
        return f"heads have {shape.dim} numbers"
    return None if shape.block % _KEYS == 0 else f"a block of {shape.block} tokens has no whole tiles of {_KEYS}"


def attention_ahead(shape: AttentionShape, target: Target) -> Config:
    """Configuration of ``attention_ahead``."""
    many = attention_many(shape, target)
    names = ("HEADS", "KV_HEADS", "DIM", "NEW", "WINDOW", "CHUNK", "SINKS", "SOFTCAP", "OVERLAP")
    constants = {name: many.constexprs[name] for name in names}
    constants |= {"BLOCK_M": _QUERIES, "BLOCK_N": _KEYS, "DEPTH": _AHEAD}
    return replace(many, constexprs=constants, num_warps=_WARPS, num_stages=1)
