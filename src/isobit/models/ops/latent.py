"""Latent attention in plain PyTorch, for every dtype and device: one sequence after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from isobit.kernels.latent import LatentSpec, halves, mixed
from isobit.models.norms import normed
from isobit.models.rope import rotate
from isobit.models.step import Step


def attend(spec: LatentSpec, layer: int, q: Tensor, kv: Tensor, step: Step) -> Tensor:
    """See ``LayerOps.latent``."""
    query = q.view(len(q), spec.heads, spec.query)
    plain, turned = query[..., : spec.plain], query[..., spec.plain :]
    latent, key = kv[:, : spec.rank], kv[:, None, spec.rank :]
    latent = normed(latent, spec.norm)
    if spec.interleaved:
        turned, key = halves(turned), halves(key)
    cos, sin = (part[:, None] for part in step.angles(layer))
    turned, key = rotate(turned, cos, sin), rotate(key, cos, sin)
    held = step.memory(layer)
    held.store(step.batch.sequences.slots, latent[:, None], key)
    found = torch.empty(len(q), spec.heads * spec.value, dtype=q.dtype, device=q.device)
    for span in step.batch.spans:
        latents, keys = held.read(span.blocks, span.length, q.dtype)
        new = slice(span.begin, span.end)
        found[new] = mixed(spec, plain[new], turned[new], latents[0], keys[0]).flatten(1).to(q.dtype)
    return found
