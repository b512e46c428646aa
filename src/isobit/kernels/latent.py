"""Latent attention of one sequence in plain torch, in both of its orders: the law for faster kernels.

Keys and values of all heads are linear in one short latent of a token. ``expanded`` makes them and attends as usual;
``absorbed`` multiplies queries and results instead, so that every head reads the latents as they are cached. Both are
the same function; which is less work depends on how many tokens ask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from isobit.kernels.norm import NormSpec

_AT_ONCE = 1 << 24  # numbers of keys and values made at once


@dataclass(frozen=True, eq=False)
class LatentSpec:
    """What a latent attention of one layer is.

    Attributes:
        heads: of queries, keys and values.
        plain, rotated: dimensions of a query and a key without and with a position.
        value: dimensions of a head's value.
        scale: what scores are multiplied by.
        interleaved: whether rotated pairs are neighbours in what the projections give.
        norm: of the latent.
        up: ``[heads, plain + value, rank]`` in the activations' dtype, or in one that holds its numbers: makes keys and
            values of a latent.
    """

    heads: int
    plain: int
    rotated: int
    value: int
    scale: float
    interleaved: bool
    norm: NormSpec
    up: Tensor

    @property
    def rank(self) -> int:
        """Width of the latent."""
        return self.norm.weight.shape[0]

    @property
    def query(self) -> int:
        """Width of a head's query."""
        return self.plain + self.rotated

    def absorbs(self, new: int, length: int) -> bool:
        """Whether ``absorbed`` is less work for so many new tokens of a sequence of that length."""
        made = self.plain + self.value
        expanded = length * made * self.rank + new * length * (self.query + self.value)
        return new * made * self.rank + new * length * (2 * self.rank + self.rotated) <= expanded


def halves(x: Tensor) -> Tensor:
    """Pairs of neighbours ``[..., dims]`` as pairs of halves: the even ones in front of the odd ones."""
    return torch.cat((x[..., ::2], x[..., 1::2]), dim=-1)


def mixed(spec: LatentSpec, plain: Tensor, turned: Tensor, latents: Tensor, keys: Tensor) -> Tensor:
    """What the new tokens of a sequence, its last ones, get by attending to all of it.

    Args:
        spec: the attention.
        plain, turned: ``[T, heads, plain]``, ``[T, heads, rotated]``: their queries, rotated.
        latents: ``[length, rank]``: of all tokens, normed.
        keys: ``[length, rotated]``: of all tokens, the part of their keys that is rotated.

    Returns:
        ``[T, heads, value]`` in the dtype of ``latents``.
    """
    run = absorbed if spec.absorbs(len(plain), len(latents)) else expanded
    plain, turned = plain.to(latents.dtype), turned.to(latents.dtype)
    return run(spec, plain.transpose(0, 1), turned.transpose(0, 1), latents, keys).transpose(0, 1)


def absorbed(spec: LatentSpec, plain: Tensor, turned: Tensor, latents: Tensor, keys: Tensor) -> Tensor:
    """``[heads, T, ...]``: every head reads the same ``rank + rotated`` numbers of a token."""
    up = spec.up.to(latents.dtype)
    query = torch.cat((plain @ up[:, : spec.plain], turned), dim=-1)
    key = torch.cat((latents, keys), dim=-1)
    found = _attend(query, key[None], latents[None], spec.scale)
    return found @ up[:, spec.plain :].transpose(1, 2)


def expanded(spec: LatentSpec, plain: Tensor, turned: Tensor, latents: Tensor, keys: Tensor) -> Tensor:
    """``[heads, T, ...]``: keys and values are made, of some heads at once."""
    up = spec.up.to(latents.dtype)
    step = max(1, _AT_ONCE // (len(latents) * (spec.plain + spec.value)))
    parts = []
    for begin in range(0, spec.heads, step):
        heads = slice(begin, begin + step)
        made = latents @ up[heads].transpose(1, 2)
        shared = keys.expand(len(made), *keys.shape)
        key, value = torch.cat((made[..., : spec.plain], shared), dim=-1), made[..., spec.plain :]
        parts.append(_attend(torch.cat((plain[heads], turned[heads]), dim=-1), key, value, spec.scale))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    new, length = query.shape[1], key.shape[1]
    mask = None
    if new > 1:
        mask = torch.ones(new, length, dtype=torch.bool, device=query.device).tril(length - new)
    return F.scaled_dot_product_attention(
        query[None], key[None], value[None], attn_mask=mask, scale=scale, enable_gqa=len(query) > len(key)
    )[0]
