"""The decoder-only transformer, assembled from a ModelConfig: flags, not subclasses."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from isobit.errors import UsageError
from isobit.models.cache import KVCache
from isobit.models.config import ModelConfig
from isobit.models.layers import Embedding, Layer, RMSNorm
from isobit.models.linear import Linear
from isobit.models.ops import choose
from isobit.models.parts import Listeners
from isobit.models.place import Place
from isobit.models.rope import RotaryTable
from isobit.models.step import LayerOps, Step


class Decoder(nn.Module):
    """A causal language model.

    Attributes:
        config: what it is.
        dtype: what activations are computed in; norms, rotary angles and logits are float32 whatever it is.
        place: where it lives; token ids may come from anywhere.
        notes: what people should know who use it; see ``Checkpoint.notes``.
    """

    def __init__(
        self,
        config: ModelConfig,
        embed_tokens: Embedding,
        layers: list[Layer],
        norm: RMSNorm,
        lm_head: Linear,
        dtype: torch.dtype,
        place: Place = Place(),  # noqa: B008 - frozen
        notes: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.config, self.dtype, self.place, self.notes = config, dtype, place, notes
        self.embed_tokens, self.norm, self.lm_head = embed_tokens, norm, lm_head
        self.layers = nn.ModuleList(layers)
        self._rotary = RotaryTable(config.layers[0].attention.rope, config.layers[0].attention.dim, place.tensors)
        self._stacks: dict[str, Callable[[Tensor, Step], Tensor] | None] = {}  # by name of the layer ops
        self._listeners = Listeners(self.layers.modules())

    def forward(
        self,
        ids: Tensor | None,
        cache: KVCache | None = None,
        *,
        embeds: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Logits of tokens that follow what the cache holds (or that start at position 0 without one).

        Args:
            ids: int64 ``[B, T]``; None when ``embeds`` is given.
            cache: keys and values so far; this call adds T tokens to it.
            embeds: ``[B, T, hidden]`` instead of ids, e.g. from an image or audio encoder.
            last_only: compute the logits of the last position only.

        Returns:
            float32 ``[B, T, vocab]``, or ``[B, 1, vocab]``.

        Raises:
            UsageError: neither or both of ids and embeds, or no tokens.
            CapacityError: the cache is full.
        """
        x, ops = self._hidden_states(ids, cache, embeds)
        if last_only and x.shape[1] > 1:
            x = x[:, -1:].contiguous()
        logits = self.lm_head(ops.norm(x, self.norm.weight, self.norm.eps)).float()
        cap = self.config.logit_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def hidden_states(
        self, ids: Tensor | None, cache: KVCache | None = None, *, embeds: Tensor | None = None
    ) -> Tensor:
        """The residual stream ``[B, T, hidden]`` behind the last layer, before the final norm; see :meth:`forward`."""
        return self._hidden_states(ids, cache, embeds)[0]

    def _hidden_states(
        self, ids: Tensor | None, cache: KVCache | None, embeds: Tensor | None
    ) -> tuple[Tensor, LayerOps]:
        """The residual stream behind the last layer, and the row that ran the layers."""
        if (ids is None) == (embeds is None):
            raise UsageError("give either token ids or embeddings")
        if ids is not None:
            x = self.embed_tokens(ids.to(self.place.tensors))
        else:
            assert embeds is not None
            x = embeds.to(self.place.tensors, self.dtype)
        if x.dim() != 3 or x.shape[-1] != self.config.hidden_size or x.shape[0] == 0:
            raise UsageError(f"expected token ids [B, T], or embeddings [B, T, {self.config.hidden_size}]")
        tokens = x.shape[1]
        if tokens == 0:
            raise UsageError("there are no tokens to run the model on")
        if cache is not None:
            cache.require(self.config, x.shape[0], x.dtype)
        begin = 0 if cache is None else cache.length
        ops = self.layer_ops(x.dtype, x.device.type)
        cos, sin = (part.to(x.dtype) for part in self._rotary.at(begin, begin + tokens))
        windows = set(self.config.windows) if ops.needs_masks else set()
        masks = {window: attention_mask(begin, tokens, window, x.dtype, x.device) for window in windows}
        step = Step(ops, begin, cos, sin, masks, cache)
        x = self._run_layers(x.contiguous(), step)
        if cache is not None:
            cache.advance(tokens)
        return x, ops

    def _run_layers(self, x: Tensor, step: Step) -> Tensor:
        """All layers in one call where the row can, unless somebody listens to a part of them."""
        name = step.ops.name
        if name not in self._stacks:
            self._stacks[name] = step.ops.stack(self.layers)
        stack = self._stacks[name]
        if stack is not None and not self._listeners.any():
            return stack(x, step)
        for layer in self.layers:
            x = layer(x, step)
        return x

    def layer_ops(self, dtype: torch.dtype | None = None, device: str = "cpu") -> LayerOps:
        """The row that runs what is not a linear, for this dtype (default: the model's) on this device."""
        return choose(dtype or self.dtype, device, self.config.layers)

    def new_cache(self, batch: int, max_len: int) -> KVCache:
        """An empty cache for ``batch`` sequences of up to ``max_len`` tokens."""
        return KVCache(self.config, batch, max_len, self.dtype, self.place.tensors)

    def linears(self) -> Iterator[tuple[str, Linear]]:
        """Every linear layer with the name of its module in the checkpoint, in the order of computation."""
        for name, module in self.named_modules():
            if isinstance(module, Linear):
                yield (name if name == "lm_head" else f"model.{name}"), module


def attention_mask(
    begin: int, tokens: int, window: int | None, dtype: torch.dtype, device: torch.device | None = None
) -> Tensor | None:
    """What tokens ``begin .. begin + tokens - 1`` must not see: additive ``[tokens, begin + tokens]``, or None.

    A token sees itself and what came before it; with a window, only the latest ``window`` tokens, itself included.
    """
    end = begin + tokens
    if tokens == 1 and (window is None or end <= window):
        return None
    query = torch.arange(begin, end, device=device)[:, None]
    key = torch.arange(end, device=device)[None, :]
    hidden = key > query
    if window is not None:
        hidden |= key <= query - window
    return torch.zeros(tokens, end, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))
