"""One token at a time on a GPU as CUDA graphs: all kernels of a step are started at once, not one by one from Python.

A graph has fixed shapes and addresses. So where a step depends on how many tokens there are, it reads that number on
the device: a token attends to a *span* of the cache, whose unused end is hidden, and there is a graph for each span.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isobit.kernels.heads import AttentionSpec
from isobit.models.cache import KVCache
from isobit.models.decoder import Decoder
from isobit.models.rope import rotate
from isobit.models.step import Step

SHORTEST = 256  # tokens of the first span; each further one is twice as long: a graph for each takes time to record


def span_of(tokens: int, most: int) -> int:
    """Tokens of the cache that a step behind ``tokens - 1`` others reads, out of ``most``."""
    span = SHORTEST
    while span < tokens:
        span *= 2
    return min(span, most)


class FixedStep:
    """One token through a model in fixed shapes; its id and its place are read on the device.

    Attributes:
        token: int64 ``[1, 1]``: its id.
        position: int64 ``[1]``: tokens in front of it.
        span: tokens of the cache that are read.
    """

    def __init__(self, model: Decoder, cache: KVCache, token: Tensor, position: Tensor, span: int) -> None:
        self.model, self.token, self.position, self.span = model, token, position, span
        self._keys, self._values = cache.room_of_all(0)
        cos, sin = model._rotary.at(0, cache.max_len)
        self._cos, self._sin = cos.to(model.dtype), sin.to(model.dtype)
        self._places = torch.arange(span, device=token.device)
        ops = model.layer_ops(model.dtype, token.device.type)
        self._ops = replace(ops, name="one token", attend=self._attend)

    def __call__(self) -> Tensor:
        """Its logits ``[vocab]``, float32; its keys and values are then in the cache."""
        model, position = self.model, self.position
        cos, sin = (part.index_select(0, position) for part in (self._cos, self._sin))
        masks = {window: self._mask(window) for window in set(model.config.windows)}
        step = Step(self._ops, 0, cos, sin, masks, None)
        x = model.embed_tokens(self.token)
        for layer in model.layers:
            x = layer(x, step)
        logits = model.lm_head(self._ops.norm(x, model.norm.weight, model.norm.eps)).float()
        return logits[0, -1]  # type: ignore[no-any-return]

    def _mask(self, window: int | None) -> Tensor:
        """What the token must not see of the span: additive ``[1, span]``."""
        hidden = self._places > self.position
        if window is not None:
            hidden |= self._places <= self.position - window
        return torch.zeros(1, self.span, dtype=self.model.dtype, device=hidden.device).masked_fill(
            hidden[None], float("-inf")
        )

    def _attend(self, heads: AttentionSpec, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        """As the plain row of ``models.ops`` does; query heads of one key-value head are its queries."""
        query, key, value = (part.view(*part.shape[:-1], -1, heads.dim).transpose(1, 2) for part in (q, k, v))
        if heads.q_norm is not None and heads.k_norm is not None:
            query, key = step.ops.norm(query, heads.q_norm, heads.eps), step.ops.norm(key, heads.k_norm, heads.eps)
        query, key = rotate(query, step.cos, step.sin), rotate(key, step.cos, step.sin)
        for held, new in ((self._keys[layer], key), (self._values[layer], value)):
            held.index_copy_(2, self.position, new)
        keys, values = (held[layer][:, :, : self.span] for held in (self._keys, self._values))
        queries = query.reshape(1, heads.kv_heads, -1, heads.dim)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=step.masks[heads.window])
        return mixed.reshape(1, 1, -1)


class DecodeGraphs:
    """The steps behind a prompt, for one model and one cache of one sequence."""

    def __init__(self, model: Decoder, cache: KVCache) -> None:
        self.model, self.cache = model, cache
        device = model.place.tensors
        self._token = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        for held in cache.room_of_all(0):  # a hidden place counts zero times what is there, which must be a number
            held[:, :, :, cache.length :].zero_()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # By span: the graph, its logits, and the step, which owns memory that the graph reads.
        self._graphs: dict[int, tuple[Any, Tensor, FixedStep]] = {}

    def step(self, token: int) -> Tensor:
        """Logits ``[vocab]`` behind one more token; they hold until the next call.

        Raises:
            CapacityError: the cache is full.
        """
        self.cache.room_of_all(1)
        self._token.fill_(token)
        self._position.fill_(self.cache.length)
        span = span_of(self.cache.length + 1, self.cache.max_len)
        if span in self._graphs:
            graph, logits, _ = self._graphs[span]
            graph.replay()
        else:
            logits = self._record(span)
        self.cache.advance(1)
        return logits

    def _record(self, span: int) -> Tensor:
        """Records the step of a span; returns the logits of a first one, which has run as usual.

        That first one is on the stream of the recording, so that workspaces which are made once per stream are there.
        """
        step = FixedStep(self.model, self.cache, self._token, self._position, span)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            first = step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            logits = step()
        self._graphs[span] = (graph, logits, step)
        torch.cuda.current_stream().wait_stream(self._stream)
        return first
