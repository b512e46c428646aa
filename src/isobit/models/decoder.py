"""The decoder-only transformer, assembled from a ModelConfig: flags, not subclasses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor, nn

from isobit.errors import UsageError
from isobit.formats.caches import AUTO, CacheFormat
from isobit.kernels.cached import Cached
from isobit.models.attention import Attention
from isobit.models.batch import Batch, Overlay
from isobit.models.blueprint import layer_modules, layer_prefix
from isobit.models.cache.contiguous import ContiguousCache
from isobit.models.cache.memory import bytes_per_token, cache_key, dtype_name, new_layers
from isobit.models.cache.paged import PagedCache
from isobit.models.cache.protocol import Cache
from isobit.models.config import Kept, ModelConfig, SelfAttention
from isobit.models.experts import ExpertsMLP
from isobit.models.layers import Embedding, Layer
from isobit.models.linear import Linear
from isobit.models.norms import Norm
from isobit.models.ops.table import choose, lacks
from isobit.models.parts import Listeners
from isobit.models.place import Place
from isobit.models.rope import Angles, query_factors
from isobit.models.step import LayerOps, Stack, Step


class Decoder(nn.Module):
    """A causal language model.

    Attributes:
        config: what it is.
        dtype: what activations are computed in; norms, rotary angles and logits are float32 whatever it is.
        place: where it lives; token ids may come from anywhere.
        notes: what people should know who use it; see ``Checkpoint.notes``.
        stored: what its caches hold keys and values as; without a cache they are rounded all the same.
    """

    def __init__(
        self,
        config: ModelConfig,
        embed_tokens: Embedding,
        layers: list[Layer],
        norm: Norm,
        lm_head: Linear,
        dtype: torch.dtype,
        place: Place = Place(),  # noqa: B008 - frozen
        notes: tuple[str, ...] = (),
        stored: CacheFormat = AUTO,
    ) -> None:
        super().__init__()
        stored.require(dtype_name(dtype))
        for width in {width for one in config.layers for width in one.attention.kept.widths}:
            stored.require_width(width)
        self.config, self.dtype, self.place, self.notes, self.stored = config, dtype, place, notes, stored
        self.embed_tokens, self.norm, self.lm_head = embed_tokens, norm, lm_head
        self.layers = nn.ModuleList(layers)
        shapes = [layer.attention.angles for layer in config.layers]
        kinds = [*dict.fromkeys(shapes)]
        self._tables = [Angles(rope, dim, dtype, place.tensors) for rope, dim in kinds]
        self._table_of = [kinds.index(shape) for shape in shapes]  # layer -> its table
        parts = [layer.attention for layer in config.layers]
        self._scales = [part.query_scale if isinstance(part, SelfAttention) else None for part in parts]
        self._cache_key = cache_key(config, dtype, stored)
        self._listeners = Listeners(self.layers.modules())

    def forward(self, batch: Batch, cache: Cache | None = None) -> Tensor:
        """Logits of tokens that follow what the cache holds of their sequences (or that begin them, without one).

        Args:
            batch: the tokens; from ``cache.batch`` where there is a cache, else from ``Batch.of``.
            cache: keys and values so far; this call adds those of the batch.

        Returns:
            float32 ``[R, vocab]``: of the tokens in ``batch.outputs``, or of all.

        Raises:
            UsageError: the batch is none for this model, or the cache is another's.
        """
        return self.logits(self.hidden_states(batch, cache), batch.outputs)

    def logits(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """What the residual stream behind the last layer makes of the next tokens.

        Args:
            x: ``[T, hidden]``, from :meth:`hidden_states`.
            rows: int64 ``[R]``, of them those that are wanted; None for all.

        Returns:
            float32 ``[R, vocab]``.
        """
        if rows is not None:
            x = x.index_select(0, rows)
        ops = self.layer_ops
        (logits,) = ops.project((self.lm_head,), ops.norm(x, self.norm.spec, (self.lm_head,)))
        logits = logits.float()
        if self.config.logit_factor != 1:
            logits = logits * self.config.logit_factor
        cap = self.config.logit_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def hidden_states(self, batch: Batch, cache: Cache | None = None) -> Tensor:
        """The residual stream ``[T, hidden]`` behind the last layer, before the final norm; see :meth:`forward`."""
        x = self._embedded(batch)
        if cache is not None and (cache.key != self._cache_key or cache.block != batch.sequences.block):
            raise UsageError("this key-value cache was not made for this model and batch: take them from one model")
        x = self._run_layers(x.contiguous(), self._step(batch, cache))
        if cache is not None:
            cache.stored(batch)
        return x

    def _embedded(self, batch: Batch) -> Tensor:
        if batch.tokens is not None:
            x = self.embed_tokens(batch.tokens)
            if batch.overlay is not None:
                x = self._overlaid(x, batch.overlay)
        else:
            assert batch.embeds is not None
            x = batch.embeds.to(self.place.tensors, self.dtype)
        if x.dim() != 2 or x.shape[-1] != self.config.hidden_size:
            raise UsageError(f"expected token ids [T], or embeddings [T, {self.config.hidden_size}]")
        return x  # type: ignore[no-any-return]

    def _overlaid(self, x: Tensor, overlay: Overlay) -> Tensor:
        """Embeddings of tokens, of which some have others."""
        if overlay.embeds.shape[-1] != x.shape[-1]:
            raise UsageError(f"expected embeddings [n, {x.shape[-1]}] instead of those of tokens")
        return x.index_copy(0, overlay.rows, overlay.embeds.to(x.device, x.dtype))

    def _step(self, batch: Batch, cache: Cache | None) -> Step:
        end, positions, room = batch.reach or batch.sequences.most, batch.positions, self._room(batch, cache)
        angles = [table.at(positions, end, room) for table in self._tables]
        by_layer = [angles[number] for number in self._table_of]
        places = positions if batch.places is None else batch.places
        scales = {scale: None if scale is None else query_factors(scale, places) for scale in self._scales}
        factors = [scales[scale] for scale in self._scales]
        memory, stride = (cache.memory, cache.stride) if cache is not None else self._alone(batch)
        return Step(self.layer_ops, batch, by_layer.__getitem__, memory, stride, factors=factors.__getitem__)

    def _room(self, batch: Batch, cache: Cache | None) -> int | list[tuple[int, int]]:
        """How long sequences may become: see :class:`isobit.models.rope.Angles`."""
        if cache is None:
            return [(span.end - span.begin, span.length) for span in batch.spans]
        return cache.longest or self.config.max_context

    def _alone(self, batch: Batch) -> tuple[Callable[[int], Cached], int | None]:
        """Memory of one call, and how far apart layers lie in it."""
        memory = self._scratch(batch)
        return memory.__getitem__, 0 if _one(memory) else None

    def _scratch(self, batch: Batch) -> list[Cached]:
        """Memory of keys and values for one call, by layer; layers that are alike use the same, one after the other."""
        made: dict[Kept, Cached] = {}
        count, block = len(batch.spans), batch.sequences.block
        kept = [layer.attention.kept for layer in self.config.layers]
        for one in kept:
            if one not in made:
                made[one] = new_layers([one], count, block, self.dtype, self.place.tensors, self.stored)[0]
        return [made[one] for one in kept]

    def _run_layers(self, x: Tensor, step: Step) -> Tensor:
        """All layers in one call where the row can, unless somebody listens to a part of them."""
        stack = self._stack
        if not isinstance(stack, str) and step.stride is not None and not self._listeners.any():
            return stack(x, step)
        more: Tensor | None = None  # of what a layer adds: the next one's first norm takes both
        for layer in self.layers:
            assert isinstance(layer, Layer)
            if layer.observed:  # who listens sees the sum
                x, more = layer(x if more is None else self.layer_ops.add(x, more), step), None
            else:
                x, more = layer.run(x, more, step)
        return x if more is None else self.layer_ops.add(x, more)

    @cached_property
    def _stack(self) -> Stack | str:
        return self.layer_ops.stack(self.layers)

    @property
    def why_by_layer(self) -> str | None:
        """Why layers do not run in one call, on a row that has one; else None."""
        return self._stack or None if isinstance(self._stack, str) else None

    @property
    def kernels_lack(self) -> str | None:
        """What the kernels of its place cannot do for its layers, so that PyTorch does all that is not a linear."""
        return lacks(self.dtype, self.place, self.config.layers)

    @cached_property
    def layer_ops(self) -> LayerOps:
        """What runs all that is not a linear."""
        return choose(self.dtype, self.place, self.config.layers, self.stored)

    def new_cache(self, sequences: int, max_len: int) -> ContiguousCache:
        """An empty cache for so many sequences of up to ``max_len`` tokens each."""
        return ContiguousCache(self.config, sequences, max_len, self.dtype, self.place.tensors, self.stored)

    def paged_cache(self, blocks: int) -> PagedCache:
        """An empty cache in so many blocks for sequences that come and go."""
        return PagedCache(self.config, blocks, self.dtype, self.place.tensors, self.stored)

    def cache_bytes(self, tokens: int) -> int:
        """Bytes that a cache takes for so many tokens."""
        kept = [layer.attention.kept for layer in self.config.layers]
        return tokens * bytes_per_token(kept, self.stored, self.dtype)

    def reserve(self, sequences: int, most_new: int, most: int) -> None:
        """Says that batches of so many sequences, of up to ``most_new`` new tokens and ``most`` in all, will come.

        What attention writes between its launches has one arena, which is then large enough when a graph is recorded.
        """
        for layer in self.layers:
            assert isinstance(layer, Layer)
            part = layer.self_attn
            self.layer_ops.reserve(part.heads if isinstance(part, Attention) else part.spec, sequences, most_new, most)

    def angle_tables(self, end: int) -> list[tuple[Tensor, Tensor]]:
        """The cosines and sines of positions below ``end``: a recorded graph reads them, and so has to keep them."""
        return [table.upto(end, self.config.max_context) for table in self._tables]

    def linears(self) -> Iterator[tuple[str, Linear]]:
        """Every linear layer with the name of its module in the checkpoint, in the order of computation.

        Several of one name are rows of one stored matrix.
        """
        for name, module in self.named_modules():
            if isinstance(module, Linear):
                yield module.stored or (name if name == "lm_head" else f"model.{name}"), module

    def mixtures(self) -> Iterator[tuple[ExpertsMLP, tuple[str, ...], tuple[str, ...]]]:
        """Every mixture of experts, with the modules in the checkpoint that read its input, and those behind them."""
        for number, (layer, spec) in enumerate(zip(self.layers, self.config.layers, strict=True)):
            assert isinstance(layer, Layer)
            if isinstance(layer.mlp, ExpertsMLP):
                modules = [part for part in layer_modules(spec, self.config.hidden_size) if part.expert is not None]
                inner, outer = (
                    tuple(layer_prefix(number) + part.name for part in modules if (part.role == "down") == last)
                    for last in (False, True)
                )
                yield layer.mlp, inner, outer


def _one(memory: list[Cached]) -> bool:
    """Whether all layers use the same memory."""
    return all(layer is memory[0] for layer in memory)
